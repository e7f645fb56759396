/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writing compressed clusters: compress, find room, write, publish.  As many guest clusters as an
 * L2 table and a buffer hold go together, so that several threads, who all write at the end of one
 * file, seldom meet there.
 *
 * The invariants are those of write.c, the gate included.  2: the bytes are written before the L2
 * entry is published, and flush.c syncs them before the entry reaches the disk.  4: the claim is
 * held from before the old mapping is looked at until the new one is published.  6: publishing
 * cannot fail; if writing fails, the references that pack.c took go to limbo.  Compressed data is
 * never changed where it is: whatever is written to the guest cluster next, compressed or not, gets
 * another place, and what it lets go of waits in limbo like everything else.
 */

#include <errno.h>
#include <stdlib.h>

#include "cluster.h"

/* The format has no compressed clusters that are encrypted, and in the clear they must not be. */
bool
q_can_compress (const struct q_image *img)
{
  return img->deflate != NULL && !img->crypt && !q_has_data_file (img);
}

/* Compressed data on its way to a guest cluster. */
struct piece {
  uint64_t gc;
  const uint8_t *plain; /* the whole cluster, of which LEN bytes are on the disk */
  uint64_t len;
  uint64_t lost, n_lost; /* host clusters that the old entry refers to */
};

#define MAX_PIECES 128u

/* Several of them, which are written at once: their entries are in one L2 table. */
struct batch {
  struct q_image *img;
  struct q_deflator *d;
  unsigned n;
  struct piece piece[MAX_PIECES]; /* in ascending order */
  uint32_t size[MAX_PIECES];      /* compressed */
  size_t used;                    /* bytes, in the deflator's buffer */
  struct q_table *table;          /* held */
};

static uint32_t
entry_index (const struct batch *b, unsigned i)
{
  return (uint32_t)(b->piece[i].gc & ((1u << b->img->l2_bits) - 1));
}

/* Whether what is past the end of the disk may change beside us: the disk may have grown, or grow
 * now, and what is there already be overwritten in place, which takes no claim. */
static bool
end_is_unsure (const struct q_image *img, const struct piece *p, const struct q_cluster *c)
{
  bool in_place = !c->compressed && c->own && c->data;

  return p->len < q_cluster_bytes (img) &&
         (in_place || (p->gc << img->cluster_bits) + p->len != q_size (img));
}

/* What the pieces from FIRST on replace.  -EFBIG: the first cannot be compressed data; *N: so many
 * can. */
static int
look (struct batch *b, unsigned first, unsigned *n)
{
  int r = 0;

  for (*n = 0; r == 0 && first + *n < b->n; ++*n) {
    struct piece *p = &b->piece[first + *n];
    struct q_l2_entry entry = q_l2_entry_get (b->table, entry_index (b, first + *n));
    struct q_cluster c;

    r = q_decode_entry (b->img, p->gc, entry, &c);
    if (r == 0 && end_is_unsure (b->img, p, &c)) {
      r = *n == 0 ? -EFBIG : 0;
      break;
    }
    if (r == 0)
      q_entry_references (b->img, entry, &p->lost, &p->n_lost);
  }
  return r;
}

static unsigned
count_lost (const struct piece *p, unsigned n)
{
  unsigned lost = 0;

  for (unsigned i = 0; i < n; ++i)
    lost += p[i].n_lost > 0;
  return lost;
}

/* Everything that can fail before the write of *N pieces from FIRST on; it may make them fewer.
 * The claim is held. */
static int
begin (struct batch *b, unsigned first, unsigned *n, uint64_t *host)
{
  struct q_image *img = b->img;
  const unsigned lost = count_lost (&b->piece[first], *n);
  unsigned taken = 0;
  int r;

  q_alloc_lock (img);
  r = q_limbo_reserve (&img->limbo, lost);
  if (r == 0) {
    r = q_pack_take (img, &b->size[first], *n, host, &taken);
    q_limbo_cancel (&img->limbo, lost - count_lost (&b->piece[first], taken));
  }
  q_alloc_unlock (img);
  *n = taken;
  return r;
}

static void
commit (struct batch *b, unsigned first, unsigned n, uint64_t host)
{
  struct q_image *img = b->img;
  const bool frees = count_lost (&b->piece[first], n) > 0;

  q_note_data_written (img);
  Q_PROBE ("before compressed data is published");
  /* As in write.c: the flusher must not find in limbo what is not yet marked. */
  if (frees)
    q_alloc_lock (img);
  for (unsigned i = first; i < first + n; host += b->size[i++]) {
    const struct piece *p = &b->piece[i];
    struct q_l2_entry entry = { .descriptor =
                                    q_compressed_encode (img->cluster_bits, host, b->size[i]) };

    q_l2_entry_set (b->table, entry_index (b, i), entry);
    if (p->n_lost > 0)
      q_limbo_add (&img->limbo, p->lost, p->n_lost);
    Q_PROBE ("compressed data published, table not marked");
    q_l2_mark_dirty (b->table, entry_index (b, i), 1);
  }
  if (frees)
    q_alloc_unlock (img);
}

static void
abandon (struct batch *b, unsigned first, unsigned n, uint64_t host)
{
  struct q_image *img = b->img;
  const unsigned lost = count_lost (&b->piece[first], n);

  if (lost > 0) {
    q_alloc_lock (img);
    q_limbo_cancel (&img->limbo, lost);
    q_alloc_unlock (img);
  }
  for (unsigned i = first; i < first + n; host += b->size[i++]) {
    uint64_t cluster = host >> img->cluster_bits;

    q_alloc_drop (img, cluster, ((host + b->size[i] - 1) >> img->cluster_bits) - cluster + 1);
  }
}

/* From piece *DONE, which is DATA, on, under claim and pin. */
static int
store_claimed (struct batch *b, unsigned *done, const uint8_t *data)
{
  int r = q_l2_hold (b->img, b->piece[0].gc >> b->img->l2_bits, 0, &b->table);

  if (r < 0)
    return r;
  while (r == 0 && *done < b->n) {
    uint64_t host, bytes = 0;
    unsigned n;

    r = look (b, *done, &n);
    if (r == 0)
      r = begin (b, *done, &n, &host);
    if (r < 0)
      break;
    for (unsigned i = 0; i < n; ++i)
      bytes += b->size[*done + i];
    Q_PROBE ("compressed write begun");
    r = q_file_pwrite (b->img->file, data, bytes, host);
    if (r == 0)
      commit (b, *done, n, host);
    else
      abandon (b, *done, n, host);
    if (r == 0)
      *done += n;
    data += bytes;
  }
  q_l2_release (b->table);
  return r;
}

static int
store (struct batch *b, unsigned *done, const uint8_t *data)
{
  struct q_image *img = b->img;
  const uint64_t first = b->piece[*done].gc, last = b->piece[b->n - 1].gc;
  struct q_plan_claim claim;
  q_pin_t pin;
  int r;

  r = q_gate_enter (img, 0);
  if (r < 0)
    return r;
  r = -ENOSPC; /* it may have been made smaller meanwhile */
  if (last << img->cluster_bits >= q_size (img))
    goto out;
  q_bitmaps_mark (img, first << img->cluster_bits, (last - first + 1) << img->cluster_bits);
  r = q_claim_take (img, &claim, first, last, 0);
  if (r < 0)
    goto out;
  pin = q_pin ();
  r = store_claimed (b, done, data);
  q_unpin (pin);
  q_claim_release (img, &claim);
out:
  q_gate_leave (img);
  return r;
}

/* Writes what has been gathered; what cannot be compressed data then, as it is. */
static int
write_batch (struct batch *b)
{
  const uint8_t *data = q_deflator_buffer (b->d);
  bool retried = false;
  int r = 0;

  for (unsigned done = 0, before = 0; r == 0 && done < b->n; before = done) {
    r = q_flush_throttle (b->img);
    if (r == 0)
      r = store (b, &done, data);
    for (; before < done; retried = false)
      data += b->size[before++];
    if (r == -EFBIG) {
      const struct piece *p = &b->piece[done];

      r = q_pwrite (b->img, p->plain, p->gc << b->img->cluster_bits, p->len);
      data += b->size[done++];
    } else if (r == -ENOSPC && !retried && q_flush_frees_space (b->img)) {
      retried = true;
      r = 0;
    }
  }
  b->n = 0;
  b->used = 0;
  return r;
}

static bool
is_zero (const uint8_t *p, size_t n)
{
  return p[0] == 0 && memcmp (p, p + 1, n - 1) == 0;
}

/* One cluster, of which LEN bytes are on the disk; PLAIN has all of it, until the batch is
 * written. */
static int
write_cluster (struct batch *b, const uint8_t *plain, uint64_t offset, uint64_t len)
{
  struct q_image *img = b->img;
  const uint64_t gc = offset >> img->cluster_bits;
  uint32_t size;
  int r = 0;

  if (is_zero (plain, len))
    return q_zero (img, offset, len, Q_ZERO_UNMAP);
  if (b->n == MAX_PIECES || b->used + q_cluster_bytes (img) > q_deflator_room (img) ||
      (b->n > 0 && b->piece[0].gc >> img->l2_bits != gc >> img->l2_bits))
    r = write_batch (b);
  if (r < 0)
    return r;
  size = q_deflator_run (img, b->d, plain, q_deflator_buffer (b->d) + b->used);
  if (size == 0)
    return q_pwrite (img, plain, offset, len);
  b->piece[b->n] = (struct piece){ .gc = gc, .plain = plain, .len = len };
  b->size[b->n++] = size;
  b->used += size;
  return 0;
}

/* Whole clusters; the last one may be the end of the disk. */
static int
write_clusters (struct q_image *img, const uint8_t *at, uint64_t offset, uint64_t end)
{
  uint64_t cluster = q_cluster_bytes (img);
  struct batch *b = malloc (sizeof *b);
  uint8_t *padded = NULL;
  int r = b ? 0 : -ENOMEM;

  if (r == 0) {
    b->img = img;
    b->n = 0;
    b->used = 0;
    b->d = q_deflator_take (img);
    r = b->d ? 0 : -ENOMEM;
  }
  while (r == 0 && offset < end) {
    uint64_t n = q_min (end - offset, cluster);

    if (n < cluster) { /* the last one */
      assert (!padded);
      padded = calloc (1, cluster);
      if (!padded) {
        r = -ENOMEM;
        break;
      }
      memcpy (padded, at, n);
    }
    r = write_cluster (b, padded ? padded : at, offset, n);
    at += n;
    offset += n;
  }
  if (r == 0)
    r = write_batch (b);
  free (padded);
  if (b && b->d)
    q_deflator_give (img, b->d);
  free (b);
  return r;
}

int
q_write_compressed (struct q_image *img, const void *buf, uint64_t offset, uint64_t len)
{
  uint64_t cluster = q_cluster_bytes (img), size = q_size (img), first, last, end;
  const uint8_t *at = buf;
  int r = q_writable (img);

  if (r < 0)
    return r;
  if (!q_can_compress (img))
    return -ENOTSUP;
  if (offset > size || len > size - offset)
    return -ENOSPC;
  end = offset + len;
  first = q_round_up (offset, cluster);
  last = end == size ? end : end & ~(cluster - 1);
  if (first >= last)
    return q_pwrite (img, buf, offset, len);
  r = q_pwrite (img, at, offset, first - offset);
  if (r == 0)
    r = write_clusters (img, at + (first - offset), first, last);
  if (r == 0)
    r = q_pwrite (img, at + (last - offset), last, end - last);
  return r;
}
