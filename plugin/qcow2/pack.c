/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where compressed data goes: host clusters that several guest clusters share, at byte grain
 * (specification: "Compressed Clusters Descriptor").
 *
 * Each guest cluster's data holds one reference to every host cluster that it touches, so a host
 * cluster that is being filled has as many as there are pieces in it.  The last few of those that
 * have room left are remembered, and a piece goes where it fits best; failing that into a new host
 * cluster, beginning in the one before it if that is among them and so is left full.
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

/* The one with the least room that still has NEED bytes, or NULL. */
static struct q_pack_tail *
best_fit (struct q_image *img, uint32_t need)
{
  struct q_pack_tail *best = NULL;

  for (unsigned i = 0; i < img->pack.n; ++i) {
    struct q_pack_tail *t = &img->pack.tail[i];

    if (need <= q_cluster_bytes (img) - t->used && (!best || t->used > best->used))
      best = t;
  }
  return best;
}

static struct q_pack_tail *
find (struct q_image *img, uint64_t cluster)
{
  for (unsigned i = 0; i < img->pack.n; ++i)
    if (img->pack.tail[i].cluster == cluster)
      return &img->pack.tail[i];
  return NULL;
}

/* One reference more.  -ERANGE if the count cannot say so. */
static int
raise_count (struct q_image *img, uint64_t cluster)
{
  uint64_t count;
  int r = q_refcount_get (img, cluster, 0, &count);

  if (r < 0)
    return r;
  if (count == 0) /* or it would have been forgotten */
    return q_corrupt (img, "host cluster %llu holds compressed data and has refcount 0",
                      (unsigned long long)cluster);
  return count == UINT64_MAX ? -ERANGE : q_refcount_set (img, cluster, 0, count + 1);
}

/* In what is left of one host cluster.  1 if there is no place. */
static int
take_from_tail (struct q_image *img, uint32_t need, uint64_t *host)
{
  struct q_pack_tail *t;

  while ((t = best_fit (img, need)) != NULL) {
    int r = raise_count (img, t->cluster);

    if (r == 0) {
      *host = (t->cluster << img->cluster_bits) + t->used;
      t->used += need;
      if (t->used == q_cluster_bytes (img))
        forget (img, t);
      return 0;
    }
    if (r != -ERANGE)
      return r;
    forget (img, t);
  }
  return 1;
}

int
q_pack_take (struct q_image *img, uint32_t need, uint64_t *host)
{
  uint64_t limit = Q_COMPRESSED_LIMIT (img->cluster_bits), cluster, got;
  struct q_pack_tail *before;
  bool fresh;
  int r;

  assert (need > 0 && need < q_cluster_bytes (img));
  r = take_from_tail (img, need, host);
  if (r <= 0)
    return r;
  if (q_highest_offset (img) + 2 * q_cluster_bytes (img) > limit)
    return -EFBIG;
  r = q_alloc_run (img, 1, 0, host, &got, &fresh);
  if (r < 0)
    return r;
  cluster = *host >> img->cluster_bits;
  before = find (img, cluster - 1);
  if (before && raise_count (img, before->cluster) == 0) {
    uint32_t room = (uint32_t)q_cluster_bytes (img) - before->used;

    *host -= room;
    need -= room;
    forget (img, before);
  }
  remember (img, cluster, need);
  return 0;
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
