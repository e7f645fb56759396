/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writing compressed clusters: compress, find room, write, publish; one guest cluster after the
 * other.
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

/* Compressed data on its way to guest cluster GC. */
struct piece {
  struct q_image *img;
  uint64_t gc;
  const uint8_t *data;
  uint32_t csize;
  uint64_t part; /* 0, or how much of the cluster, which is the last one, is on the disk */
  uint64_t host;
  struct q_table *table; /* held */
  uint32_t index;
  uint64_t lost, n_lost; /* host clusters that the old entry refers to */
};

/* Whether what is past the end of the disk may change beside us: the disk may have grown, or grow
 * now, and what is there already be overwritten in place, which takes no claim. */
static bool
end_is_unsure (const struct piece *p, const struct q_cluster *c)
{
  bool in_place = !c->compressed && c->own && c->data;

  return p->part > 0 && (in_place || (p->gc << p->img->cluster_bits) + p->part != q_size (p->img));
}

/* Everything that can fail before the write.  The claim is held.  -EFBIG: it cannot be compressed
 * data. */
static int
begin (struct piece *p)
{
  struct q_image *img = p->img;
  struct q_l2_entry entry;
  struct q_cluster c;
  int r;

  p->index = (uint32_t)(p->gc & ((1u << img->l2_bits) - 1));
  r = q_l2_hold (img, p->gc >> img->l2_bits, 0, &p->table);
  if (r < 0)
    return r;
  entry = q_l2_entry_get (p->table, p->index);
  r = q_decode_entry (img, p->gc, entry, &c);
  if (r == 0 && end_is_unsure (p, &c))
    r = -EFBIG;
  if (r == 0) {
    q_entry_references (img, entry, &p->lost, &p->n_lost);
    q_alloc_lock (img);
    r = q_limbo_reserve (&img->limbo, 1);
    if (r == 0) {
      r = q_pack_take (img, p->csize, &p->host);
      if (r < 0 || p->n_lost == 0)
        q_limbo_cancel (&img->limbo, 1);
    }
    q_alloc_unlock (img);
  }
  if (r < 0)
    q_l2_release (p->table);
  return r;
}

static void
commit (struct piece *p)
{
  struct q_image *img = p->img;
  struct q_l2_entry entry = { .descriptor =
                                  q_compressed_encode (img->cluster_bits, p->host, p->csize) };

  q_note_data_written (img);
  Q_PROBE ("before compressed data is published");
  /* As in write.c: the flusher must not find in limbo what is not yet marked. */
  if (p->n_lost > 0)
    q_alloc_lock (img);
  q_l2_entry_set (p->table, p->index, entry);
  if (p->n_lost > 0)
    q_limbo_add (&img->limbo, p->lost, p->n_lost);
  Q_PROBE ("compressed data published, table not marked");
  q_l2_mark_dirty (p->table, p->index, 1);
  if (p->n_lost > 0)
    q_alloc_unlock (img);
  q_l2_release (p->table);
}

static void
abandon (struct piece *p)
{
  struct q_image *img = p->img;
  uint64_t first = p->host >> img->cluster_bits;
  uint64_t last = (p->host + p->csize - 1) >> img->cluster_bits;

  if (p->n_lost > 0) {
    q_alloc_lock (img);
    q_limbo_cancel (&img->limbo, 1);
    q_alloc_unlock (img);
  }
  q_alloc_drop (img, first, last - first + 1);
  q_l2_release (p->table);
}

static int
store (struct piece *p)
{
  struct q_image *img = p->img;
  struct q_plan_claim claim;
  q_pin_t pin;
  int r;

  r = q_gate_enter (img, 0);
  if (r < 0)
    return r;
  r = -ENOSPC; /* it may have been made smaller meanwhile */
  if (p->gc << img->cluster_bits >= q_size (img))
    goto out;
  q_bitmaps_mark (img, p->gc << img->cluster_bits, q_cluster_bytes (img));
  r = q_claim_take (img, &claim, p->gc, p->gc, 0);
  if (r < 0)
    goto out;
  pin = q_pin ();
  r = begin (p);
  if (r == 0) {
    Q_PROBE ("compressed write begun");
    r = q_file_pwrite (img->file, p->data, p->csize, p->host);
    if (r == 0)
      commit (p);
    else
      abandon (p);
  }
  q_unpin (pin);
  q_claim_release (img, &claim);
out:
  q_gate_leave (img);
  return r;
}

static bool
is_zero (const uint8_t *p, size_t n)
{
  return p[0] == 0 && memcmp (p, p + 1, n - 1) == 0;
}

/* One cluster, of which LEN bytes are on the disk; PADDED has all of it. */
static int
write_cluster (struct q_image *img, struct q_deflator *d, const uint8_t *padded, uint64_t offset,
               uint64_t len)
{
  struct piece p = { .img = img, .gc = offset >> img->cluster_bits };
  bool retried = false;
  int r;

  if (is_zero (padded, len))
    return q_zero (img, offset, len, Q_ZERO_UNMAP);
  p.part = len < q_cluster_bytes (img) ? len : 0;
  p.csize = q_deflator_run (img, d, padded, &p.data);
  if (p.csize == 0)
    return q_pwrite (img, padded, offset, len);
  do {
    r = q_flush_throttle (img);
    if (r == 0)
      r = store (&p);
    if (r != -ENOSPC || retried)
      break;
    retried = true;
  } while (q_flush_frees_space (img));
  return r == -EFBIG ? q_pwrite (img, padded, offset, len) : r;
}

/* Whole clusters; the last one may be the end of the disk. */
static int
write_clusters (struct q_image *img, const uint8_t *at, uint64_t offset, uint64_t end)
{
  uint64_t cluster = q_cluster_bytes (img);
  struct q_deflator *d = q_deflator_take (img);
  uint8_t *padded = NULL;
  int r = d ? 0 : -ENOMEM;

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
    r = write_cluster (img, d, padded ? padded : at, offset, n);
    at += n;
    offset += n;
  }
  free (padded);
  if (d)
    q_deflator_give (img, d);
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
