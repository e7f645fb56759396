/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which layer below the top has a guest cluster.
 *
 * Layers below the top never change while they are open.  So what a walk down a long chain has
 * found once holds as long as the image is open, and the next walk goes there at once: three
 * lookups, however long the chain.
 *
 * One byte a guest cluster, in pieces that are made when first needed.  It is only for chains whose
 * lower layers all allocate by the same clusters, and for the part of the disk that all of them
 * cover; elsewhere the walk takes each step.
 */

#include <errno.h>
#include <stdlib.h>

#include "image.h"

#define CHUNK_BITS 13u         /* clusters in a piece */
#define MAX_CHUNKS (1u << 13)  /* in memory: 64 MiB, which is 4 TiB at 64 KiB a cluster */
#define MAX_DEPTH  (UINT8_MAX) /* 0 says that nothing is known */

struct q_below {
  unsigned cluster_bits;
  uint64_t end;                         /* guest offset that all layers reach, in whole clusters */
  struct q_image *layer[MAX_DEPTH + 1]; /* by depth; the top is 0 */
  uint64_t n_chunks;
  _Atomic uint64_t made;
  _Atomic (_Atomic uint8_t *) chunk[];
};

int
q_below_open (struct q_image *top)
{
  struct q_image *first = top->backing;
  uint64_t end = UINT64_MAX;
  unsigned depth = 0;
  struct q_below *b;

  if (!first || !first->backing || first->format != Q_FORMAT_QCOW2)
    return 0;
  for (struct q_image *i = first; i; i = i->backing) {
    if (++depth > MAX_DEPTH)
      return 0;
    if (i->format == Q_FORMAT_QCOW2 &&
        (i->cluster_bits != first->cluster_bits || (i->incompatible & Q_INCOMPAT_EXTL2)))
      return 0;
    end = q_min (end, q_size (i));
  }
  end &= ~(q_cluster_bytes (first) - 1);
  uint64_t n_chunks = q_div_up (end >> first->cluster_bits, 1u << CHUNK_BITS);
  /* The pointers alone are not worth more memory than what they point to may take. */
  if (n_chunks > MAX_CHUNKS * 64ull) {
    n_chunks = MAX_CHUNKS * 64ull;
    end = n_chunks << CHUNK_BITS << first->cluster_bits;
  }
  b = calloc (1, sizeof *b + n_chunks * sizeof b->chunk[0]);
  if (!b)
    return -ENOMEM;
  b->cluster_bits = first->cluster_bits;
  b->end = end;
  b->n_chunks = n_chunks;
  depth = 0;
  for (struct q_image *i = top; i; i = i->backing)
    b->layer[depth++] = i;
  top->below = b;
  return 0;
}

void
q_below_close (struct q_image *top)
{
  struct q_below *b = top->below;

  for (uint64_t i = 0; b && i < b->n_chunks; ++i)
    free ((void *)atomic_load (&b->chunk[i]));
  free (b);
  top->below = NULL;
}

struct q_image *
q_below_find (const struct q_below *b, uint64_t offset, unsigned *depth, uint64_t *len)
{
  uint64_t cluster = offset >> b->cluster_bits;
  _Atomic uint8_t *chunk = NULL;
  uint8_t known = 0;

  if (offset < b->end)
    chunk = atomic_load_explicit (&b->chunk[cluster >> CHUNK_BITS], memory_order_acquire);
  if (chunk)
    known = atomic_load_explicit (&chunk[cluster & ((1u << CHUNK_BITS) - 1)], memory_order_relaxed);
  if (known > 0) {
    *len = q_min (*len, ((cluster + 1) << b->cluster_bits) - offset);
    *depth = known;
  } else
    *depth = 1;
  return b->layer[*depth];
}

/* NULL if there are enough, or no memory. */
static _Atomic uint8_t *
make_chunk (struct q_below *b, uint64_t index)
{
  _Atomic uint8_t *chunk, *other = NULL;

  if (atomic_fetch_add (&b->made, 1) >= MAX_CHUNKS) {
    atomic_fetch_sub (&b->made, 1);
    return NULL;
  }
  chunk = calloc (1u << CHUNK_BITS, 1);
  if (chunk && atomic_compare_exchange_strong (&b->chunk[index], &other, chunk))
    return chunk;
  atomic_fetch_sub (&b->made, 1);
  free ((void *)chunk);
  return other;
}

void
q_below_found (struct q_below *b, uint64_t offset, unsigned depth)
{
  uint64_t cluster = offset >> b->cluster_bits, index = cluster >> CHUNK_BITS;
  _Atomic uint8_t *chunk;

  assert (depth > 0 && depth <= MAX_DEPTH);
  if (offset >= b->end)
    return;
  chunk = atomic_load_explicit (&b->chunk[index], memory_order_acquire);
  if (!chunk)
    chunk = make_chunk (b, index);
  if (chunk)
    atomic_store_explicit (&chunk[cluster & ((1u << CHUNK_BITS) - 1)], (uint8_t)depth,
                           memory_order_relaxed);
}
