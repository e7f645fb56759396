/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changes that take effect at one instant, between two writes: of bitmaps, and snapshots, of one
 * image or of several.
 *
 * 1. All or nothing: whatever fails before the instant is undone.  What follows it cannot fail, but
 *    for a storage that does, after which the image is read-only (invariant 7).
 * 2. At the instant the gates of all images are closed at once, those of images that are only
 *    merged from too: no write is in one image's part of the change and not in another's.
 *
 * The steps:
 *
 *     bitmaps of other images are held
 *     layout locks; snapshots count what they refer to         while the disks are in use
 *     bitmap locks; bitmaps prepare
 *     readers' locks, flushes, gates                           here the disks stand still ...
 *     snapshots count the rest
 *     snapshots are made durable and written, unless there is only one and nothing else
 *     bitmaps change
 *     gates                                                    ... up to here
 *     the only snapshot is made durable
 *     flushes
 *     the only snapshot is written
 *     bitmaps are finished; snapshots settle, or are undone
 *
 * A snapshot that is not alone is written while the disks stand still, for bitmaps that have
 * changed cannot be undone; that costs the pause a flush and two syncs an image.
 *
 * Locks of one kind are taken in the order of the images' addresses, so that two of these calls do
 * not wait for each other.  A crash may leave some images changed and others not, and with a
 * snapshot no change of bitmaps: each image for itself is sound.
 */

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "bitmap.h"
#include "readers.h"
#include "tree.h"

/* One image, and what happens to it. */
struct part {
  struct q_image *img;
  const struct q_bitmap_action **action;
  unsigned n;
  struct q_bitmap_changes *bitmaps;
  struct q_change *snapshot; /* NULL: none */
  struct q_making *making;
};

struct changing {
  struct part *part; /* in the order of their images' addresses */
  unsigned n;
  unsigned n_snapshots;
  bool bitmaps;
};

/* ---- sorting out ----------------------------------------------------------------------------- */

static int
by_address (const void *a, const void *b)
{
  const struct part *x = a, *y = b;

  return x->img < y->img ? -1 : x->img > y->img;
}

static struct part *
find_part (struct changing *t, struct q_image *img)
{
  for (unsigned i = 0; i < t->n; ++i)
    if (t->part[i].img == img)
      return &t->part[i];
  t->part[t->n].img = img;
  return &t->part[t->n++];
}

static int
add (struct changing *t, struct q_change *c, unsigned n, struct q_error *err)
{
  struct part *p = find_part (t, c->img);

  if (c->snapshot) {
    if (p->snapshot)
      return q_fail (err, -EINVAL, "%s: one snapshot at a time, not '%s' and '%s'",
                     c->img->filename, p->snapshot->snapshot, c->snapshot);
    p->snapshot = c;
    ++t->n_snapshots;
    return 0;
  }
  if (!p->action) {
    p->action = calloc (n, sizeof (struct q_bitmap_action *));
    if (!p->action)
      return q_fail (err, -ENOMEM, "%s: out of memory", c->img->filename);
  }
  p->action[p->n++] = &c->bitmap;
  t->bitmaps = true;
  if (c->bitmap.op == Q_BITMAP_MERGE && c->bitmap.source_image)
    find_part (t, c->bitmap.source_image);
  return 0;
}

static int
sort_out (struct changing *t, struct q_change *c, unsigned n, struct q_error *err)
{
  int r = 0;

  t->part = calloc (2ul * n + 1, sizeof *t->part);
  if (!t->part)
    return q_fail (err, -ENOMEM, "out of memory for %u changes", n);
  for (unsigned i = 0; r == 0 && i < n; ++i)
    r = add (t, &c[i], n, err);
  qsort (t->part, t->n, sizeof *t->part, by_address);
  return r;
}

/* ---- while the disks are in use -------------------------------------------------------------- */

static int
prepare (struct changing *t, struct q_error *err)
{
  int r = 0;

  for (unsigned i = 0; r == 0 && i < t->n; ++i)
    if (t->part[i].n > 0)
      r = q_bitmap_begin (t->part[i].img, t->part[i].action, t->part[i].n, &t->part[i].bitmaps,
                          err);
  for (unsigned i = 0; r == 0 && i < t->n; ++i)
    if (t->part[i].snapshot)
      r = q_snapshot_begin (t->part[i].img, t->part[i].snapshot->snapshot, t->part[i].snapshot->id,
                            &t->part[i].making, err);
  for (unsigned i = 0; r == 0 && i < t->n; ++i)
    if (t->part[i].bitmaps)
      r = q_bitmap_prepare (t->part[i].bitmaps, err);
  return r;
}

/* ---- while they stand still ------------------------------------------------------------------ */

static void
stop (struct changing *t)
{
  for (unsigned i = 0; i < t->n; ++i)
    if (t->part[i].snapshot)
      q_readers_lock (t->part[i].img);
  for (unsigned i = 0; i < t->n; ++i)
    if (t->part[i].snapshot)
      q_flush_hold (t->part[i].img);
  for (unsigned i = 0; i < t->n; ++i)
    q_gate_close (t->part[i].img);
}

static void
go_on (struct changing *t)
{
  for (unsigned i = t->n; i-- > 0;)
    q_gate_open (t->part[i].img);
}

static void
let_flush_go (struct changing *t)
{
  for (unsigned i = t->n; i-- > 0;)
    if (t->part[i].snapshot)
      q_flush_let_go (t->part[i].img);
}

static int
settle_snapshots (struct changing *t, bool stopped, struct q_error *err)
{
  int r = 0;

  for (unsigned i = 0; i < t->n; ++i)
    if (t->part[i].making) {
      int r2 = q_snapshot_settle (t->part[i].making, stopped, r < 0 ? NULL : err);
      r = r < 0 ? r : r2;
    }
  return r;
}

static int
write_snapshots (struct changing *t, struct q_error *err)
{
  int r = 0;

  for (unsigned i = 0; r == 0 && i < t->n; ++i)
    if (t->part[i].making)
      r = q_snapshot_write (t->part[i].making, err);
  return r;
}

static uint64_t
now_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* All that is changed at the instant has to be on disk before the disk goes on, or none of it could
 * be taken back; but a snapshot alone was either made at its instant or not at all, and need not
 * keep anybody waiting for the storage.  *DONE: the instant has been, and bitmaps have changed. */
static int
take_effect (struct changing *t, bool *done, struct q_error *err)
{
  bool alone = t->n_snapshots == 1 && !t->bitmaps;
  uint64_t start, paused;
  int r = 0, r2;

  stop (t);
  start = now_ns ();
  for (unsigned i = 0; r == 0 && i < t->n; ++i)
    if (t->part[i].making)
      r = q_snapshot_stop (t->part[i].making, err);
  if (!alone) {
    r2 = settle_snapshots (t, true,
                           r < 0 ? NULL : err); /* what has stood still, also if others failed */
    r = r < 0 ? r : r2;
  }
  if (r == 0 && !alone)
    r = write_snapshots (t, err);
  *done = r == 0;
  for (unsigned i = 0; r == 0 && i < t->n; ++i)
    if (t->part[i].bitmaps)
      q_bitmap_commit (t->part[i].bitmaps);
  go_on (t);
  paused = now_ns () - start;
  if (r == 0 && alone)
    r = settle_snapshots (t, false, err);
  let_flush_go (t);
  if (r == 0 && alone)
    r = write_snapshots (t, err);
  for (unsigned i = 0; r == 0 && i < t->n; ++i)
    if (t->part[i].snapshot)
      q_log (Q_LOG_INFO, "%s: snapshot %s ('%s'): writes stood still for %.3f ms",
             t->part[i].img->filename, t->part[i].snapshot->id, t->part[i].snapshot->snapshot,
             (double)paused / 1e6);
  for (unsigned i = t->n; i-- > 0;)
    if (t->part[i].snapshot)
      q_readers_unlock (t->part[i].img);
  return r;
}

/* ---- afterwards ------------------------------------------------------------------------------ */

static int
finish (struct changing *t, bool done, int r, struct q_error *err)
{
  for (unsigned i = t->n; i-- > 0;) {
    struct part *p = &t->part[i];
    int r2 = 0;

    if (p->bitmaps && done)
      r2 = q_bitmap_finish (p->bitmaps, r < 0 ? NULL : err);
    else if (p->bitmaps)
      q_bitmap_abandon (p->bitmaps);
    r = r < 0 ? r : r2;
  }
  for (unsigned i = t->n; i-- > 0;)
    q_bitmap_end (t->part[i].bitmaps); /* no bitmap lock is held any more */
  for (unsigned i = t->n; i-- > 0;)
    q_snapshot_end (t->part[i].making, done);
  return r;
}

int
q_change (struct q_change *changes, unsigned n, struct q_error *err)
{
  struct changing t = { 0 };
  bool done = false;
  int r;

  if (err)
    err->text[0] = '\0';
  r = sort_out (&t, changes, n, err);
  if (r == 0) {
    for (unsigned i = 0; i < t.n; ++i)
      if (t.part[i].snapshot)
        pthread_mutex_lock (&t.part[i].img->layout_lock);
    r = prepare (&t, err);
    if (r == 0)
      r = take_effect (&t, &done, err);
    r = finish (&t, done, r, err);
    for (unsigned i = t.n; i-- > 0;)
      if (t.part[i].snapshot)
        pthread_mutex_unlock (&t.part[i].img->layout_lock);
  }
  for (unsigned i = 0; t.part && i < t.n; ++i)
    free (t.part[i].action);
  free (t.part);
  return r;
}

/* ---- one kind alone -------------------------------------------------------------------------- */

int
q_bitmap_change (struct q_image *img, const struct q_bitmap_action *actions, unsigned n,
                 struct q_error *err)
{
  struct q_change *c = calloc (n + 1ul, sizeof *c);
  int r;

  if (err)
    err->text[0] = '\0';
  if (!c)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  for (unsigned i = 0; i < n; ++i)
    c[i] = (struct q_change){ .img = img, .bitmap = actions[i] };
  r = q_change (c, n, err);
  free (c);
  return r;
}

int
q_snapshot_create (struct q_image *img, const char *name, char id[Q_SNAPSHOT_ID_SIZE],
                   struct q_error *err)
{
  struct q_change c = { .img = img, .snapshot = name };
  int r = q_change (&c, 1, err);

  memcpy (id, c.id, sizeof c.id);
  return r;
}
