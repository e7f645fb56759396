/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bits of a bitmap in memory: see bitmap.h.
 *
 * Bits are in 64-bit words that are read and changed atomically, so that writers mark and readers
 * look without a lock.  A writer looks before it sets: on a disk that has been written all over, no
 * cache line is written.
 */

#include <stdlib.h>

#include "bitmap.h"

uint64_t
q_bits_bytes (uint64_t size, unsigned granularity_bits)
{
  return q_div_up (q_div_up (size, 1ull << granularity_bits), 8);
}

static uint64_t
words_of (uint64_t bytes)
{
  return q_div_up (bytes, sizeof (uint64_t));
}

struct q_bits *
q_bits_new (struct q_image *img, uint64_t size, unsigned granularity_bits)
{
  uint64_t bytes = q_bits_bytes (size, granularity_bits);
  uint64_t chunks = q_div_up (bytes, q_cluster_bytes (img));
  struct q_bits *b;

  if (bytes > Q_BITMAP_MAX_BYTES)
    return NULL;
  b = calloc (1, sizeof *b + chunks);
  if (!b)
    return NULL;
  *b = (struct q_bits){ .size = size,
                        .n = q_div_up (size, 1ull << granularity_bits),
                        .bytes = bytes,
                        .granularity_bits = granularity_bits,
                        .chunk_bits = img->cluster_bits,
                        .chunks = (uint32_t)chunks };
  b->word = calloc (words_of (bytes) + 1, sizeof *b->word);
  if (!b->word) {
    free (b);
    return NULL;
  }
  return b;
}

void
q_bits_free (struct q_bits *b)
{
  if (!b)
    return;
  if (b->shared)
    q_bits_unshare (b);
  else
    free (b->word);
  free (b);
}

/* ---- setting --------------------------------------------------------------------------------- */

static void
set_word (struct q_bits *b, uint64_t w, uint64_t mask)
{
  _Atomic uint8_t *changed = &b->changed[w >> (b->chunk_bits - 3)];

  if ((atomic_load_explicit (&b->word[w], memory_order_relaxed) & mask) == mask)
    return;
  atomic_fetch_or_explicit (&b->word[w], mask, memory_order_release);
  if (!atomic_load_explicit (changed, memory_order_relaxed))
    atomic_store_explicit (changed, 1, memory_order_relaxed);
}

/* Bits FIRST to LAST. */
static void
set_range (struct q_bits *b, uint64_t first, uint64_t last)
{
  uint64_t w = first / 64, end = last / 64;
  uint64_t mask = ~0ull << (first % 64), tail = ~0ull >> (63 - last % 64);

  for (; w < end; ++w, mask = ~0ull)
    set_word (b, w, mask);
  set_word (b, w, mask & tail);
}

void
q_bits_set (struct q_bits *b, uint64_t offset, uint64_t len)
{
  if (len == 0 || offset >= b->size)
    return;
  len = q_min (len, b->size - offset);
  set_range (b, offset >> b->granularity_bits, (offset + len - 1) >> b->granularity_bits);
}

void
q_tracker_mark (const struct q_tracker *t, uint64_t offset, uint64_t len)
{
  for (unsigned i = 0; i < t->n; ++i)
    q_bits_set (t->bits[i], offset, len);
}

void
q_bits_merge (struct q_bits *to, const struct q_bits *from)
{
  uint64_t end = q_min (to->size, from->size), offset = 0;

  if (to->granularity_bits == from->granularity_bits && to->size == from->size) {
    for (uint64_t w = 0; w < words_of (to->bytes); ++w) {
      uint64_t v = atomic_load_explicit (&from->word[w], memory_order_acquire);

      if (v)
        set_word (to, w, v);
    }
    return;
  }
  while (offset < end) {
    uint64_t run_end;

    if (q_bits_next (from, offset, end, &run_end))
      q_bits_set (to, offset, run_end - offset);
    offset = run_end;
  }
}

void
q_bits_copy (struct q_bits *to, const struct q_bits *from)
{
  uint64_t n = q_min (to->n, from->n);

  assert (to->granularity_bits == from->granularity_bits);
  for (uint64_t w = 0; w * 64 < n; ++w) {
    uint64_t v = atomic_load_explicit (&from->word[w], memory_order_acquire);

    if (n - w * 64 < 64)
      v &= ~0ull >> (64 - (n - w * 64));
    if (v)
      atomic_fetch_or_explicit (&to->word[w], v, memory_order_relaxed);
  }
  for (uint32_t i = 0; i < to->chunks && i < from->chunks; ++i)
    atomic_store_explicit (&to->changed[i],
                           i + 1 == to->chunks || i + 1 == from->chunks || from->changed[i],
                           memory_order_relaxed);
}

void
q_bits_changed_all (struct q_bits *b)
{
  for (uint32_t i = 0; i < b->chunks; ++i)
    atomic_store_explicit (&b->changed[i], 1, memory_order_relaxed);
}

/* ---- looking --------------------------------------------------------------------------------- */

/* The first bit from BIT on, below END, that is not VALUE; END if there is none. */
static uint64_t
find_other (const struct q_bits *b, uint64_t bit, uint64_t end, bool value)
{
  while (bit < end) {
    uint64_t v = atomic_load_explicit (&b->word[bit / 64], memory_order_acquire);

    v = (value ? ~v : v) >> (bit % 64);
    if (v)
      return q_min (end, bit + (uint64_t)__builtin_ctzll (v));
    bit = (bit / 64 + 1) * 64;
  }
  return end;
}

bool
q_bits_next (const struct q_bits *b, uint64_t offset, uint64_t end, uint64_t *run_end)
{
  uint64_t bit = offset >> b->granularity_bits, last;
  bool value;

  *run_end = end;
  if (offset >= b->size)
    return false;
  last = (q_min (end, b->size) - 1) >> b->granularity_bits;
  value = atomic_load_explicit (&b->word[bit / 64], memory_order_acquire) >> (bit % 64) & 1;
  /* Its own bit may have been set since: a run has one bit at least. */
  bit = find_other (b, bit + 1, last + 1, value);
  if (bit <= last)
    *run_end = bit << b->granularity_bits;
  else if (value)
    *run_end = q_min (end, b->size); /* past the end nothing is dirty */
  return value;
}

uint64_t
q_bits_count (const struct q_bits *b)
{
  uint64_t n = 0;

  for (uint64_t w = 0; w < words_of (b->bytes); ++w)
    n += (uint64_t)__builtin_popcountll (atomic_load_explicit (&b->word[w], memory_order_relaxed));
  return n;
}

/* ---- chunks ---------------------------------------------------------------------------------- */

/* The bits of a chunk: [*first, *last). */
static void
chunk_range (const struct q_bits *b, uint32_t chunk, uint64_t *first, uint64_t *last)
{
  *first = (uint64_t)chunk << (b->chunk_bits + 3);
  *last = q_min (b->n, *first + (8ull << b->chunk_bits));
}

enum q_chunk_kind
q_bits_chunk_kind (const struct q_bits *b, uint32_t chunk)
{
  uint64_t first, last;

  chunk_range (b, chunk, &first, &last);
  if (find_other (b, first, last, false) == last)
    return Q_CHUNK_ZEROS;
  return find_other (b, first, last, true) == last ? Q_CHUNK_ONES : Q_CHUNK_MIXED;
}

void
q_bits_chunk_get (const struct q_bits *b, uint32_t chunk, void *cluster)
{
  uint64_t first, last, words;
  uint8_t *to = cluster;

  chunk_range (b, chunk, &first, &last);
  words = q_div_up (last - first, 64);
  memset (to, 0, 1ull << b->chunk_bits);
  for (uint64_t i = 0; i < words; ++i) {
    uint64_t v = htole64 (atomic_load_explicit (&b->word[first / 64 + i], memory_order_acquire));

    memcpy (to + i * 8, &v, sizeof v);
  }
}

void
q_bits_chunk_put (struct q_bits *b, uint32_t chunk, const void *cluster)
{
  const uint8_t *from = cluster;
  uint64_t first, last;

  chunk_range (b, chunk, &first, &last);
  if (!from) {
    set_range (b, first, last - 1);
    return;
  }
  for (uint64_t bit = first; bit < last; bit += 64, from += 8) {
    uint64_t v;

    memcpy (&v, from, sizeof v);
    v = le64toh (v);
    if (last - bit < 64) /* what is behind the last bit may be anything */
      v &= ~0ull >> (64 - (last - bit));
    if (v)
      atomic_fetch_or_explicit (&b->word[bit / 64], v, memory_order_relaxed);
  }
}
