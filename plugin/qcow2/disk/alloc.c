/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Host clusters: allocation, limbo, and the highest allocated offset.
 *
 * Invariant 3. Free last: a cluster that a mapping has let go of keeps its count, and so cannot be
 * allocated, while it is in limbo.  It leaves limbo (is punched, its count lowered) when the
 * metadata that let go of it is durable and every pin that could have seen the old mapping has
 * gone.
 *
 * Invariant 6, this file's part: an abort puts new clusters in limbo, for which begin reserved the
 * room.
 *
 * Everything is under alloc_lock.
 */

#include <errno.h>
#include <stdlib.h>

#include "state.h"

#define ull(v) ((unsigned long long)(v))

void
q_alloc_lock (struct q_image *img)
{
  pthread_mutex_lock (&img->alloc_lock);
}

bool
q_alloc_trylock (struct q_image *img)
{
  return pthread_mutex_trylock (&img->alloc_lock) == 0;
}

void
q_alloc_unlock (struct q_image *img)
{
  pthread_mutex_unlock (&img->alloc_lock);
}

/* ---- allocation ----------------------------------------------------------------------------- */

static bool
overlaps (uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
  return b_len > 0 && a < b + b_len && b < a + a_len;
}

bool
q_alloc_is_fixed_metadata (const struct q_image *img, uint64_t cluster, uint64_t count)
{
  uint64_t host = cluster << img->cluster_bits, len = count << img->cluster_bits;
  uint64_t reftable_len = (uint64_t)img->reftable_clusters << img->cluster_bits;

  return overlaps (host, len, 0, q_cluster_bytes (img)) ||
         overlaps (host, len, img->l1_offset, img->l1_size * 8ull) ||
         overlaps (host, len, img->reftable_offset, reftable_len) ||
         overlaps (host, len, img->snapshots_offset, img->snapshots_bytes) ||
         overlaps (host, len, img->crypto_offset, q_min (img->crypto_length, Q_MAX_HOST_OFFSET)) ||
         overlaps (host, len, img->bitmap_dir_offset, img->bitmap_dir_size);
}

void
q_alloc_raise (struct q_image *img, uint64_t cluster, uint64_t count)
{
  uint64_t end = (cluster + count) << img->cluster_bits;

  if (end <= atomic_load_explicit (&img->highest, memory_order_relaxed))
    return;
  atomic_store (&img->highest, end);
  if (end > atomic_load (&img->watch_above))
    q_highest_tell (img);
}

uint64_t
q_highest_offset (const struct q_image *img)
{
  return atomic_load (&img->highest);
}

/* A block device ends somewhere, and may have been grown since we last looked. */
static int
fits (struct q_image *img, uint64_t cluster, uint64_t *count)
{
  uint64_t room;

  if (!img->file->is_device)
    return 0;
  if ((cluster + *count) << img->cluster_bits > img->device_size) {
    int r = q_file_size (img->file, &img->device_size);

    if (r < 0)
      return r;
  }
  room = img->device_size >> img->cluster_bits;
  if (cluster >= room)
    return -ENOSPC;
  *count = q_min (*count, room - cluster);
  return 0;
}

int
q_alloc_reserve_space (struct q_image *img, uint64_t cluster, uint64_t count)
{
  uint64_t fit = count;
  int r = fits (img, cluster, &fit);

  if (r < 0 || fit < count)
    return r < 0 ? r : -ENOSPC;
  if (img->file->is_device)
    return 0;
  r = q_file_allocate (img->file, cluster << img->cluster_bits, count << img->cluster_bits);
  if (r == -ENOTSUP)
    r = q_file_write_zeroes (img->file, cluster << img->cluster_bits, count << img->cluster_bits,
                             false);
  return r;
}

int
q_alloc_run (struct q_image *img, uint64_t want, unsigned flags, uint64_t *host, uint64_t *got,
             bool *fresh)
{
  uint64_t cluster, count, i;
  int r;

  r = q_refcount_find_free (img, img->free_hint, want, flags, &cluster, &count);
  if (r < 0)
    return r;
  if (((cluster + count) << img->cluster_bits) > Q_MAX_HOST_OFFSET)
    return -ENOSPC;
  r = fits (img, cluster, &count);
  if (r < 0)
    return r;
  if (q_alloc_is_fixed_metadata (img, cluster, count))
    return q_corrupt (img, "host cluster %llu has refcount 0 although it holds metadata",
                      ull (cluster));
  *host = cluster << img->cluster_bits;
  *fresh =
      img->guest->holes_are_zero && *host >= atomic_load (&img->highest) && *host >= img->hole_from;
  for (i = 0; r == 0 && i < count; ++i)
    r = q_refcount_set (img, cluster + i, flags, 1);
  assert (r == 0); /* the block is in memory: find_free has just looked at it */
  img->free_hint = cluster + count;
  q_alloc_raise (img, cluster, count);
  *got = count;
  return 0;
}

int
q_alloc_metadata (struct q_image *img, unsigned flags, uint64_t *host)
{
  uint64_t got;
  bool fresh;
  int r;

  if (flags & Q_NOWAIT)
    return -EAGAIN; /* reserving space may take long */
  r = q_limbo_reserve (&img->dropped, 1);
  if (r < 0)
    return r;
  r = q_alloc_run (img, 1, flags, host, &got, &fresh);
  if (r == 0) {
    r = q_alloc_reserve_space (img, *host >> img->cluster_bits, 1);
    if (r < 0) {
      q_limbo_add (&img->dropped, *host >> img->cluster_bits, 1);
      return r;
    }
  }
  q_limbo_cancel (&img->dropped, 1);
  return r;
}

/* ---- limbo ---------------------------------------------------------------------------------- */

int
q_limbo_reserve (struct q_limbo *l, size_t n)
{
  size_t need = l->n + l->reserved + n;

  if (need > l->capacity) {
    size_t capacity = need < 64 ? 64 : need + need / 2;
    struct q_limbo_entry *e = realloc (l->entry, capacity * sizeof *e);

    if (!e)
      return -ENOMEM;
    l->entry = e;
    l->capacity = capacity;
  }
  l->reserved += n;
  return 0;
}

void
q_limbo_cancel (struct q_limbo *l, size_t n)
{
  assert (l->reserved >= n);
  l->reserved -= n;
}

void
q_limbo_add (struct q_limbo *l, uint64_t cluster, uint64_t count)
{
  struct q_limbo_entry *last = l->n > l->n_marked ? &l->entry[l->n - 1] : NULL;

  assert (l->reserved > 0 && l->n < l->capacity);
  --l->reserved;
  l->clusters += count;
  if (last && last->cluster + last->count == cluster) {
    last->count += count;
    last->stamp = q_grace_stamp ();
    return;
  }
  l->entry[l->n++] = (struct q_limbo_entry){ cluster, count, q_grace_stamp () };
}

static void
drop_first (struct q_limbo *l, size_t n)
{
  memmove (l->entry, l->entry + n, (l->n - n) * sizeof *l->entry);
  l->n -= n;
  l->n_durable = l->n_durable > n ? l->n_durable - n : 0;
  l->n_marked = l->n_marked > n ? l->n_marked - n : 0;
}

void
q_alloc_drop (struct q_image *img, uint64_t cluster, uint64_t count)
{
  q_alloc_lock (img);
  if (q_limbo_reserve (&img->dropped, 1) == 0)
    q_limbo_add (&img->dropped, cluster, count);
  else
    q_log (Q_LOG_WARNING, "%s: out of memory: %llu clusters are leaked until the next check",
           img->filename, ull (count));
  q_alloc_unlock (img);
}

/* Lowers the counts of E by one, punching what nobody refers to any more.  alloc_lock is held on
 * entry and exit, and let go while punching: the counts are still there then, so nobody else can
 * take the clusters. */
static int
release_entry (struct q_image *img, const struct q_limbo_entry *e)
{
  uint64_t c = e->cluster, end = e->cluster + e->count;

  while (c < end) {
    uint64_t count = 0, run = 0;
    int r;

    /* the run of clusters from C whose last reference this is */
    while (c + run < end) {
      r = q_refcount_get (img, c + run, 0, &count);
      if (r < 0)
        return r;
      if (count != 1)
        break;
      ++run;
    }
    if (run > 0) {
      q_pack_forget (img, c, run);
      if (img->discard) {
        q_alloc_unlock (img);
        Q_PROBE ("before a punch");
        q_file_zero (img->file, c << img->cluster_bits, run << img->cluster_bits, true);
        Q_PROBE ("punched, still counted");
        q_alloc_lock (img);
      }
      q_inflate_forget (img);
      for (uint64_t i = 0; i < run; ++i) {
        r = q_refcount_set (img, c + i, 0, 0);
        if (r < 0)
          return r;
      }
      if (c < img->free_hint)
        img->free_hint = c;
      c += run;
      continue;
    }
    if (count == 0)
      return q_corrupt (img, "host cluster %llu was in use with refcount 0", ull (c));
    r = q_refcount_set (img, c, 0, count - 1);
    if (r < 0)
      return r;
    ++c;
  }
  return 0;
}

int
q_alloc_release (struct q_image *img, uint64_t cluster, uint64_t count)
{
  struct q_limbo_entry e = { .cluster = cluster, .count = count };
  int r;

  q_alloc_lock (img);
  if (q_alloc_is_fixed_metadata (img, cluster, count))
    r = q_corrupt (
        img, "host clusters %llu to %llu, which hold metadata, are also used as something else",
        ull (cluster), ull (cluster + count - 1));
  else
    r = release_entry (img, &e);
  if (r < 0)
    img->leaked = true;
  q_alloc_unlock (img);
  return r;
}

int
q_alloc_table (struct q_image *img, uint64_t count, uint64_t *cluster)
{
  int r;

  q_alloc_lock (img);
  r = q_refcount_take_run (img, count, cluster);
  q_alloc_unlock (img);
  if (r == -ENOSPC && q_flush_frees_space (img)) {
    q_alloc_lock (img);
    r = q_refcount_take_run (img, count, cluster);
    q_alloc_unlock (img);
  }
  return r;
}

static int
release_list (struct q_image *img, struct q_limbo *l, size_t limit)
{
  struct q_limbo_entry *ripe;
  size_t n = 0;
  int r = 0;

  /* Entries stand in the order of their stamps. */
  while (n < limit && (img->closing || q_grace_passed (l->entry[n].stamp)))
    ++n;
  if (n == 0)
    return 0;
  /* Off the list before the lock is let go, so that nobody releases them twice. */
  ripe = malloc (n * sizeof *ripe);
  if (!ripe)
    return 0; /* they stay in limbo */
  memcpy (ripe, l->entry, n * sizeof *ripe);
  drop_first (l, n);
  for (size_t i = 0; i < n; ++i)
    l->clusters -= ripe[i].count;
  for (size_t i = 0; r == 0 && i < n; ++i)
    r = release_entry (img, &ripe[i]);
  free (ripe);
  return r; /* what was not released is leaked, and a check finds it */
}

int
q_limbo_release (struct q_image *img)
{
  int r, r2;

  Q_PROBE ("in limbo");
  q_grace_advance ();
  q_alloc_lock (img);
  r = release_list (img, &img->limbo, img->limbo.n_durable);
  r2 = release_list (img, &img->dropped, img->dropped.n);
  q_alloc_unlock (img);
  return r < 0 ? r : r2;
}
