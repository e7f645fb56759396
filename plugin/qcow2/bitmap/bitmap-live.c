/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bitmaps of an image that is open for writing: from opening to closing, and what a change of the
 * disk's size means for them.  See bitmap.h.
 */

#include <errno.h>
#include <stdlib.h>

#include "bitmap.h"

#define ull(v) ((unsigned long long)(v))

/* ---- opening --------------------------------------------------------------------------------- */

/* What is left of bitmaps that a program without knowledge of them has written past.  Their
 * clusters are leaked: a check frees them. */
static int
drop_stale (struct q_image *img, struct q_error *err)
{
  const struct q_extension *e = q_extension_find (img, Q_EXT_BITMAPS);
  struct qcow2_bitmaps_extension x;
  int r;

  if ((img->autoclear & Q_AUTOCLEAR_BITMAPS) || !e)
    return 0;
  memcpy (&x, e->data, sizeof x); /* its length has been checked */
  if (get32 (x.nb_bitmaps) > 0)   /* else it was only room for one that did not come about */
    q_log (Q_LOG_WARNING,
           "%s: a program that does not know bitmaps has written to this image: its bitmaps are "
           "gone (nbdcow-img check -r leaks frees their clusters)",
           img->filename);
  r = q_header_drop_extension (img, Q_EXT_BITMAPS);
  return r < 0 ? q_fail (err, r, "%s: cannot drop the stale bitmaps extension: %s", img->filename,
                         strerror (-r))
               : 0;
}

/* Readies one that is enabled.  Who cannot be kept up to date is not to be believed any more. */
static int
open_enabled (struct q_bitmap *b, struct q_error *err)
{
  struct q_error why = { "" };
  int r = 0;

  if (!b->unusable) {
    r = q_bitmap_read_bits (b, &why);
    if (r == 0 || r == -EIO || r == -ENOMEM)
      return r < 0 ? q_fail (err, r, "%s", why.text) : 0;
  }
  q_log (Q_LOG_WARNING,
         "%s: bitmap '%s' cannot be kept up to date and is marked as in use: from now on its bits "
         "mean nothing (%s)",
         b->img->filename, b->name, b->unusable ? b->unusable : why.text);
  b->inconsistent = true;
  return 0;
}

int
q_bitmaps_open (struct q_image *img, struct q_error *err)
{
  int r;

  pthread_mutex_lock (&img->bitmap_lock);
  r = q_bitmaps_read (img, err);
  if (r < 0)
    q_error_prefix (err,
                    "%s: cannot be written: its bitmaps would no longer be true (nbdcow-img check "
                    "-r all drops what of them makes no sense)",
                    img->filename);
  else if (img->bitmaps.n > 0 && !q_directory_is_own (img))
    r = q_fail (err, -EINVAL,
                "%s: the bitmap directory at byte %llu has a wrong refcount; nbdcow-img check -r "
                "all mends it",
                img->filename, ull (img->bitmap_dir_offset));
  for (unsigned i = 0; r == 0 && i < img->bitmaps.n; ++i) {
    struct q_bitmap *b = img->bitmaps.bitmap[i];

    if (b->inconsistent)
      q_log (Q_LOG_WARNING,
             "%s: bitmap '%s' was left in use: it is not kept up to date, and only good for being "
             "removed",
             img->filename, b->name);
    else if (b->enabled)
      r = open_enabled (b, err);
  }
  pthread_mutex_unlock (&img->bitmap_lock);
  return r;
}

/* Bits that are to be kept up to date go where a kill leaves them; before they are marked in use,
 * so that there is no instant at which they could be lost. */
static void
share (struct q_image *img)
{
  struct q_bitmaps *l = &img->bitmaps;
  struct q_shared_record record;

  q_shared_record_begin (img, &record);
  for (unsigned i = 0; i < l->n; ++i) {
    struct q_bitmap *b = l->bitmap[i];
    bool live = b->enabled && !b->inconsistent;

    if (live)
      q_bits_share (img, atomic_load (&b->bits));
    q_shared_record_add (&record, b, live ? atomic_load (&b->bits) : NULL, live);
  }
  q_shared_record_end (img, &record);
  q_shared_record_commit (img, &record);
}

static int
begin_tracking (struct q_image *img, struct q_error *err)
{
  struct q_bitmaps *l = &img->bitmaps;
  struct q_bitmap **b = malloc ((l->n + 1) * sizeof (struct q_bitmap *));
  struct q_tracker *t = malloc (sizeof *t + l->n * sizeof t->bits[0]);
  unsigned n = 0;
  int r;

  if (!b || !t) {
    free (b);
    free (t);
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  }
  share (img);
  for (unsigned i = 0; i < l->n; ++i)
    if (l->bitmap[i]->enabled)
      b[n++] = l->bitmap[i];
  r = q_bitmaps_mark_in_use (img, b, n, err);
  t->n = 0;
  for (unsigned i = 0; i < n; ++i)
    if (b[i]->live)
      t->bits[t->n++] = atomic_load (&b[i]->bits);
  atomic_store (&img->tracker, t);
  free (b);
  return r;
}

int
q_bitmaps_start (struct q_image *img, struct q_error *err)
{
  int r;

  pthread_mutex_lock (&img->bitmap_lock);
  r = drop_stale (img, err);
  if (r == 0 && img->bitmaps.n > 0)
    r = begin_tracking (img, err);
  pthread_mutex_unlock (&img->bitmap_lock);
  return r;
}

/* ---- saving ---------------------------------------------------------------------------------- */

/* Saves the live ones; DISABLED: only those that nobody sets bits in any more. */
static int
save_live (struct q_image *img, bool disabled, struct q_error *err)
{
  struct q_bitmaps *l = &img->bitmaps;
  struct q_bitmap **b = malloc ((l->n + 1) * sizeof (struct q_bitmap *));
  unsigned n = 0;
  int r;

  if (!b)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  for (unsigned i = 0; i < l->n; ++i)
    if (l->bitmap[i]->live && !(disabled && l->bitmap[i]->enabled))
      b[n++] = l->bitmap[i];
  r = q_bitmaps_save (img, b, n, err);
  free (b);
  return r;
}

/* Those that no directory on disk names, nor will any more. */
static void
drop_unlisted (struct q_image *img)
{
  struct q_leaving leaving = { 0 };

  for (unsigned i = 0; i < img->bitmaps.n; ++i)
    if (img->bitmaps.bitmap[i]->position == Q_BITMAP_NOWHERE)
      q_bitmap_leave (img, &leaving, img->bitmaps.bitmap[i]);
  q_let_go (img, &leaving);
}

int
q_bitmaps_close (struct q_image *img, struct q_error *err)
{
  int r;

  pthread_mutex_lock (&img->bitmap_lock);
  r = save_live (img, false, err);
  if (r < 0 && atomic_load (&img->sticky) == 0)
    drop_unlisted (img);
  pthread_mutex_unlock (&img->bitmap_lock);
  return r;
}

void
q_bitmaps_save_disabled (struct q_image *img)
{
  struct q_error err = { "" };

  if (save_live (img, true, &err) < 0)
    q_log (Q_LOG_WARNING, "%s", err.text);
}

/* ---- another size ---------------------------------------------------------------------------- */

struct q_bitmaps_resize {
  struct q_image *img;
  struct q_tracker *tracker;
  struct q_shared_record record;
  struct q_bits *bits[]; /* by bitmap; NULL: it has none */
};

static void
free_resize (struct q_bitmaps_resize *z)
{
  pthread_mutex_unlock (&z->img->bitmap_lock);
  free (z);
}

void
q_bitmaps_resize_abort (struct q_bitmaps_resize *z)
{
  if (!z)
    return;
  for (unsigned i = 0; i < z->img->bitmaps.n; ++i)
    q_bits_free (z->bits[i]);
  free (z->tracker);
  q_shared_record_drop (z->img, &z->record);
  q_bitmaps_save_disabled (z->img);
  free_resize (z);
}

/* Bits for B on a disk of SIZE bytes, beside *TOTAL bytes of others, to which they are added; those
 * for what is new are set if it is enabled. */
static int
prepare_one (struct q_image *img, struct q_bitmap *b, uint64_t size, uint64_t *total,
             struct q_bits **bits, struct q_error *err)
{
  const uint64_t old = q_size (img);
  uint64_t bytes;
  int r;

  if (b->unusable)
    return q_fail (err, -ENOTSUP, "%s: bitmap '%s' cannot be resized with the disk: %s",
                   img->filename, b->name, b->unusable);
  bytes = q_bits_bytes (size, b->granularity_bits);
  if (bytes > Q_BITMAP_MAX_BYTES)
    return q_fail (err, -EFBIG,
                   "%s: bitmap '%s' would have more than %llu MiB of bits for a disk of %llu bytes",
                   img->filename, b->name, ull (Q_BITMAP_MAX_BYTES >> 20), ull (size));
  if (bytes > Q_BITMAP_MAX_TOTAL - *total)
    return q_fail (err, -EFBIG,
                   "%s: all bitmaps together would have more than %llu MiB of bits for a disk of "
                   "%llu bytes",
                   img->filename, ull (Q_BITMAP_MAX_TOTAL >> 20), ull (size));
  *total += bytes;
  r = q_bitmap_read_bits (b, err);
  if (r < 0)
    return r;
  *bits = q_bits_new (img, size, b->granularity_bits);
  if (!*bits)
    return q_fail (err, -ENOMEM, "%s: out of memory for bitmap '%s'", img->filename, b->name);
  if (b->enabled && size > old)
    q_bits_set (*bits, old, size - old);
  q_bits_share (img, *bits);
  return 0;
}

int
q_bitmaps_resize_prepare (struct q_image *img, uint64_t size, struct q_bitmaps_resize **resize,
                          struct q_error *err)
{
  struct q_bitmaps *l = &img->bitmaps;
  struct q_bitmaps_resize *z;
  struct q_bitmap **b = NULL;
  uint64_t total = 0;
  unsigned n = 0;
  int r = 0;

  *resize = NULL;
  pthread_mutex_lock (&img->bitmap_lock);
  z = calloc (1, sizeof *z + (l->n + 1) * sizeof z->bits[0]);
  b = malloc ((l->n + 1) * sizeof (struct q_bitmap *));
  if (!z || !b) {
    pthread_mutex_unlock (&img->bitmap_lock);
    free (z);
    free (b);
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  }
  z->img = img;
  for (unsigned i = 0; r == 0 && i < l->n; ++i)
    if (!l->bitmap[i]->inconsistent) {
      /* A table has one entry at least. */
      r = size > 0 ? prepare_one (img, l->bitmap[i], size, &total, &z->bits[i], err)
                   : q_fail (err, -EINVAL,
                             "%s: a disk with bitmap '%s' cannot be made 0 bytes long: remove the "
                             "bitmap first",
                             img->filename, l->bitmap[i]->name);
      b[n++] = l->bitmap[i];
    }
  if (r == 0) {
    z->tracker = malloc (sizeof *z->tracker + l->n * sizeof z->tracker->bits[0]);
    r = z->tracker ? q_bitmaps_mark_in_use (img, b, n, err)
                   : q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  }
  free (b);
  q_shared_record_begin (img, &z->record);
  for (unsigned i = 0; i < l->n; ++i)
    q_shared_record_add (&z->record, l->bitmap[i], z->bits[i], l->bitmap[i]->enabled);
  q_shared_record_end (img, &z->record);
  if (r < 0)
    q_bitmaps_resize_abort (z);
  else
    *resize = z;
  return r;
}

static void
free_bits (void *bits)
{
  q_bits_free (bits);
}

void
q_bitmaps_resize_commit (struct q_bitmaps_resize *z)
{
  struct q_image *img = z->img;
  struct q_bitmaps *l = &img->bitmaps;
  struct q_tracker *old_tracker = atomic_load (&img->tracker);

  z->tracker->n = 0;
  q_gate_close (img);
  for (unsigned i = 0; i < l->n; ++i) {
    struct q_bitmap *b = l->bitmap[i];
    struct q_bits *old = atomic_load (&b->bits);

    if (!z->bits[i])
      continue;
    q_bits_copy (z->bits[i], old);
    l->memory += z->bits[i]->bytes;
    l->memory -= old->bytes;
    atomic_store (&b->bits, z->bits[i]);
    if (b->enabled)
      z->tracker->bits[z->tracker->n++] = z->bits[i];
    z->bits[i] = old;
  }
  atomic_store (&img->tracker, z->tracker);
  q_shared_record_commit (img, &z->record);
  q_gate_open (img);
  /* Not before the record that names them has gone; and who holds a bitmap may be looking. */
  for (unsigned i = 0; i < l->n; ++i)
    if (z->bits[i])
      q_grace_retire (z->bits[i], free_bits);
  free (old_tracker);
  q_bitmaps_save_disabled (img);
  free_resize (z);
}
