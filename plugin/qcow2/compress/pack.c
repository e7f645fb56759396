/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where compressed data goes: host clusters that several guest clusters share, at byte grain
 * (specification: "Compressed Clusters Descriptor").
 *
 * Each guest cluster's data holds one reference to every host cluster that it touches, so a host
 * cluster that is being filled has as many as there are pieces in it.  The last few of those that
 * have room left are remembered.  Pieces come in batches, to be written at once: what fits in the
 * middle of the file goes there; the rest goes behind what is last in the file, and on into new
 * clusters.
 *
 * Invariant 1: the counts are raised here, before anything can refer to the bytes.  Invariant 3: a
 * byte is handed out once.  What was left of a host cluster when its last reference went is
 * forgotten before the cluster is punched or its count lowered: it is then free as a whole, and for
 * anybody.  So is what is left at the end, when the image is closed.
 *
 * Everything is under alloc_lock.
 */

#include <errno.h>

#include "image.h"

static void
forget (struct q_image *img, struct q_pack_tail *t)
{
  *t = img->pack.tail[--img->pack.n];
}

void
q_pack_forget (struct q_image *img, uint64_t cluster, uint64_t count)
{
  for (unsigned i = img->pack.n; i-- > 0;)
    if (img->pack.tail[i].cluster - cluster < count)
      forget (img, &img->pack.tail[i]);
}

/* Remembers that USED bytes of CLUSTER are taken, in place of the one with the least room if there
 * are too many. */
static void
remember (struct q_image *img, uint64_t cluster, uint32_t used)
{
  struct q_pack_tail *t = &img->pack.tail[img->pack.n];

  if (img->pack.n < Q_PACK_TAILS)
    ++img->pack.n;
  else {
    t = &img->pack.tail[0];
    for (unsigned i = 1; i < Q_PACK_TAILS; ++i)
      if (img->pack.tail[i].used > t->used)
        t = &img->pack.tail[i];
    if (used >= t->used)
      return;
  }
  *t = (struct q_pack_tail){ cluster, used };
}

/* The one with the least room that still has NEED bytes, or NULL; but not EXCEPT. */
static struct q_pack_tail *
best_fit (struct q_image *img, uint32_t need, const struct q_pack_tail *except)
{
  struct q_pack_tail *best = NULL;

  for (unsigned i = 0; i < img->pack.n; ++i) {
    struct q_pack_tail *t = &img->pack.tail[i];

    if (t != except && need <= q_cluster_bytes (img) - t->used && (!best || t->used > best->used))
      best = t;
  }
  return best;
}

/* The one behind which the allocator looks next, or NULL. */
static struct q_pack_tail *
at_the_end (struct q_image *img)
{
  for (unsigned i = 0; i < img->pack.n; ++i)
    if (img->pack.tail[i].cluster + 1 == img->free_hint)
      return &img->pack.tail[i];
  return NULL;
}

/* How many of N pieces fit between FROM and END, counted from the start of a host cluster that has
 * COUNT references, one after the other, with no count above what it can be; they take *BYTES. */
static unsigned
lay_out (struct q_image *img, uint64_t from, uint64_t end, uint64_t count, const uint32_t *size,
         unsigned n, uint64_t *bytes)
{
  const uint64_t most = q_refcount_max (img);
  const unsigned bits = img->cluster_bits;
  uint64_t cluster = 0, at = from;
  unsigned i;

  for (i = 0; i < n && size[i] <= end - at; at += size[i++]) {
    if (at >> bits != cluster)
      count = 0;
    if (count == most)
      break;
    cluster = (at + size[i] - 1) >> bits;
    count = cluster == at >> bits ? count + 1 : 1;
  }
  *bytes = at - from;
  return i;
}

/* Gives one reference for each piece to the host clusters that it touches, from AT on.  The first
 * one has COUNT already; the others are new. */
static int
count_pieces (struct q_image *img, uint64_t at, uint64_t count, const uint32_t *size, unsigned n)
{
  const unsigned bits = img->cluster_bits;
  uint64_t cluster = at >> bits;
  int r = 0;

  for (unsigned i = 0; r == 0 && i < n; at += size[i++]) {
    uint64_t last = (at + size[i] - 1) >> bits;

    if (at >> bits != cluster)
      count = 0;
    cluster = at >> bits;
    r = q_refcount_set (img, cluster, 0, ++count);
    assert (r == 0 || i == 0); /* the block was looked at just now */
    if (r == 0 && last != cluster) {
      cluster = last;
      count = 1; /* as it was allocated */
    }
  }
  return r;
}

/* New clusters are free again. */
static void
give_back (struct q_image *img, uint64_t host, uint64_t count)
{
  uint64_t cluster = host >> img->cluster_bits;

  for (uint64_t i = 0; i < count; ++i)
    q_refcount_set (img, cluster + i, 0, 0);
  if (count > 0 && cluster < img->free_hint)
    img->free_hint = cluster;
}

/* Puts as many pieces as possible into what is left of BEFORE (NULL: nothing is) and, if NEW, into
 * host clusters that follow it. */
static int
take (struct q_image *img, const struct q_pack_tail *before, bool new, const uint32_t *size,
      unsigned n, uint64_t *host, unsigned *taken)
{
  const uint64_t bytes = q_cluster_bytes (img), old = before ? before->cluster : 0;
  const unsigned bits = img->cluster_bits;
  uint64_t from = before ? before->used : 0, room = before ? bytes - from : 0;
  uint64_t count = 0, total, got = 0, start = 0;
  bool fresh;
  int r = before ? q_refcount_get (img, old, 0, &count) : 0;

  if (r < 0)
    return r;
  if (before && count == 0) /* or it would have been forgotten */
    return q_corrupt (img, "host cluster %llu holds compressed data and has refcount 0",
                      (unsigned long long)old);
  n = lay_out (img, from, new ? UINT64_MAX : bytes, count, size, n, &total);
  if (n == 0)
    return -ERANGE;
  if (total > room) {
    uint64_t want = q_div_up (total - room, bytes);

    if (q_highest_offset (img) + (want + 1) * bytes > Q_COMPRESSED_LIMIT (bits))
      return -EFBIG;
    r = q_alloc_run (img, want, 0, &start, &got, &fresh);
    if (r < 0)
      return r;
    if (before && start >> bits != old + 1) {
      give_back (img, start, got);
      return -ERANGE;
    }
    if (got < want)
      n = lay_out (img, from, bytes * (got + (before ? 1 : 0)), count, size, n, &total);
  }
  *host = before ? (old << bits) + from : start;
  r = count_pieces (img, *host, count, size, n);
  if (r < 0) {
    give_back (img, start, got);
    return r;
  }
  *taken = n;
  if (before)
    q_pack_forget (img, old, 1);
  if ((*host + total) & (bytes - 1))
    remember (img, (*host + total) >> bits, (uint32_t)((*host + total) & (bytes - 1)));
  return 0;
}

int
q_pack_take (struct q_image *img, const uint32_t *size, unsigned n, uint64_t *host, unsigned *taken)
{
  struct q_pack_tail *last, *t;
  int r;

  assert (n > 0 && size[0] > 0 && size[0] < q_cluster_bytes (img));
  last = at_the_end (img);
  while ((t = best_fit (img, size[0], last)) != NULL) {
    r = take (img, t, false, size, n, host, taken);
    if (r != -ERANGE)
      return r;
    q_pack_forget (img, t->cluster, 1);
    last = at_the_end (img);
  }
  if (last) {
    r = take (img, last, true, size, n, host, taken);
    if (r == -ENOSPC && best_fit (img, size[0], NULL) == last)
      r = take (img, last, false, size, n, host, taken);
    if (r != -ERANGE)
      return r;
  }
  return take (img, NULL, true, size, n, host, taken);
}

void
q_pack_close (struct q_image *img)
{
  uint64_t size;

  if (img->pack.n == 0 || img->file->is_device)
    return;
  if (q_file_size (img->file, &size) == 0 && size % 512 != 0) {
    q_note_data_written (img);
    q_file_truncate (img->file, q_round_up (size, 512)); /* a courtesy: it may fail */
  }
  img->pack.n = 0;
}
