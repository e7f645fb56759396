/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Checking an image: every reference in it against the refcounts.  check.h has the parts.
 *
 * After a repair the image is read-only until it is opened anew.
 *
 * A repair is a check, the mending of what it found, in memory at first, and a second check of what
 * that leaves: what is counted as fixed is what the second one no longer finds.  Only if it finds
 * no more than the first is anything written.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"

/* ---- findings -------------------------------------------------------------------------------- */

static void vline (struct q_check *c, const char *prefix, const char *fmt, va_list ap)
    __attribute__ ((format (printf, 3, 0)));

static void
vline (struct q_check *c, const char *prefix, const char *fmt, va_list ap)
{
  char line[512];
  int n = snprintf (line, sizeof line, "%s", prefix);

  if (!c->report)
    return;
  vsnprintf (line + n, sizeof line - (size_t)n, fmt, ap);
  q_make_printable (line);
  c->report (c->opaque, line);
}

void
q_check_line (struct q_check *c, const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  vline (c, "", fmt, ap);
  va_end (ap);
}

void
q_check_corruption (struct q_check *c, bool mendable, const char *fmt, ...)
{
  va_list ap;

  c->res->corruptions++;
  va_start (ap, fmt);
  vline (c, mendable && (c->repair & Q_REPAIR_ERRORS) ? "Repairing " : "ERROR ", fmt, ap);
  va_end (ap);
}

void
q_check_unreadable (struct q_check *c, const char *fmt, ...)
{
  va_list ap;

  c->res->check_errors++;
  c->lost = true;
  va_start (ap, fmt);
  vline (c, "ERROR ", fmt, ap);
  va_end (ap);
}

/* ---- one check ------------------------------------------------------------------------------- */

static int
check_open (struct q_check *c)
{
  const struct q_image *img = c->img;
  int r = q_file_size (img->file, &c->file_size);

  if (r < 0)
    return q_fail (c->err, r, "%s: size: %s", img->filename, strerror (-r));
  c->max_count = img->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << img->refcount_order)) - 1;
  c->table = malloc (q_cluster_bytes (img));
  if (!c->table)
    return -ENOMEM;

  /* Beyond the file: where a repair may put new refcount structures. */
  c->clusters = q_div_up (c->file_size, q_cluster_bytes (img));
  c->highest = 1; /* the header */
  r = q_refmap_init (&c->refs,
                     c->clusters + 2 * (c->clusters / q_refblock_entries (img)) + Q_REFMAP_PIECE);
  if (r == -EFBIG)
    q_fail (c->err, r, "%s: the file of %llu bytes has more clusters than can be checked (%llu)",
            img->filename, (unsigned long long)c->file_size, (unsigned long long)Q_REFMAP_MAX);
  return r;
}

void
q_check_close (struct q_check *c)
{
  q_refmap_free (&c->refs);
  free (c->reftable);
  free (c->unknown);
  free (c->table);
}

int
q_check_look (struct q_check *c)
{
  const struct q_image *img = c->img;
  int r = check_open (c);

  c->res->total_clusters = q_div_up (atomic_load (&img->size), q_cluster_bytes (img));
  if (r == 0)
    r = q_check_load_refcounts (c);
  if (r == 0)
    r = q_check_walk (c);
  if (r == 0)
    r = q_check_count_refcounts (c);
  if (r == 0)
    r = q_check_compare (c);
  c->res->image_end_offset = c->highest << img->cluster_bits;
  if (r == -ENOMEM)
    q_fail (c->err, r,
            "%s: no memory to count the references to the clusters of a file of %llu "
            "bytes",
            img->filename, (unsigned long long)c->file_size);
  return r;
}

/* After a repair: bits that say the image needed one.  Whoever has the image open for writing sets
 * the dirty bit anew when it is due. */
static int
clear_trouble_bits (struct q_image *img, struct q_error *err)
{
  uint64_t before = img->incompatible;

  img->incompatible &= ~(Q_INCOMPAT_DIRTY | Q_INCOMPAT_CORRUPT);
  if (img->incompatible == before)
    return 0;

  int r = q_header_write_features (img);

  if (r == 0)
    r = q_file_sync (img->file);
  if (r < 0) {
    img->incompatible = before;
    return q_fail (err, r, "%s: writing the incompatible features: %s", img->filename,
                   strerror (-r));
  }
  return 0;
}

static uint64_t
less (uint64_t before, uint64_t after)
{
  return before > after ? before - after : 0;
}

/* What keeps an image from being written.  Snapshots that do not say how large they are do not. */
static uint64_t
trouble (const struct q_check_result *r)
{
  return r->corruptions - r->unsized_snapshots + r->check_errors;
}

/* The highest allocated offset covers what the repair added, up to END; it is never lowered.  What
 * memory knows of it stays as it is in a dry run. */
static int
record_highest (struct q_image *img, uint64_t end, bool dry_run, struct q_error *err)
{
  struct q_extension *e = q_extension_find (img, Q_EXT_HIGHEST_OFFSET);
  uint64_t known = q_highest_offset (img), value = end > known ? end : known;
  be64 v = put64 (value), recorded;
  int r;

  if (!dry_run)
    atomic_store (&img->highest, value);
  if (!e || e->length != sizeof recorded)
    return 0; /* whoever opens the image for writing adds it */
  memcpy (&recorded, e->data, sizeof recorded);
  if (get64 (recorded) >= value)
    return 0;
  r = q_file_pwrite (img->file, &v, sizeof v, e->offset);
  if (r == 0)
    r = q_file_sync (img->file);
  if (r == 0 && !dry_run) {
    memcpy (e->data, &v, sizeof v);
    img->highest_recorded = value;
  }
  return r < 0 ? q_fail (err, r, "%s: recording the highest allocated offset: %s", img->filename,
                         strerror (-r))
               : 0;
}

/* A table that lies where that of the snapshots is has this changed with it when it is mended, and
 * then nobody could open the image any more: F, a rehearsal of the repair of REAL, has left it as
 * it was. */
static int
snapshots_kept (const struct q_image *img, struct q_file *real, struct q_file *f,
                struct q_error *err)
{
  const uint64_t bytes = img->nb_snapshots ? img->snapshots_bytes : 0;
  uint8_t *was = malloc (2 * bytes + 1);
  int r = was ? 0 : -ENOMEM;

  if (r == 0)
    r = q_file_pread (real, was, bytes, img->snapshots_offset);
  if (r == 0)
    r = q_file_pread (f, was + bytes, bytes, img->snapshots_offset);
  if (r < 0)
    q_fail (err, r, "%s: repairing: %s", img->filename, strerror (-r));
  else if (memcmp (was, was + bytes, bytes) != 0)
    r = q_fail (err, -EIO,
                "%s: a repair would change the snapshot table, which another table lies upon: "
                "nothing was written; copy what is readable to a new image",
                img->filename);
  free (was);
  return r;
}

/* Mends what C found, in memory, checks what that leaves, and if that is no worse, writes it.
 * *RESULT becomes what is left. */
static int
mend (struct q_check *c, const struct q_check_options *o, bool dirty, bool *wrote)
{
  struct q_image *img = c->img;
  struct q_check_result after = { 0 };
  struct q_check again = { .img = img,
                           .res = &after,
                           .err = c->err,
                           .threads = o->threads,
                           .progress = o->progress,
                           .stop = o->stop,
                           .opaque = o->opaque };
  struct q_file *real = img->file, *f;
  int r = q_rehearsal_open (real, &f);

  if (r < 0)
    return q_fail (c->err, r, "%s: repairing: %s", img->filename, strerror (-r));
  img->file = f;
  *wrote = true; /* the tables in memory are not those of the file any more, whatever happens */
  r = q_check_repair (c);
  if (r == 0)
    r = snapshots_kept (img, real, f, c->err);
  if (r == 0) {
    r = q_check_look (&again);
    q_check_close (&again);
  }
  if (r == 0 && dirty && trouble (&after) == 0)
    r = clear_trouble_bits (img, c->err);
  if (r == 0 && !c->opening)
    r = record_highest (img, after.image_end_offset, o->dry_run, c->err);
  img->file = real;
  if (r == 0 && trouble (&after) > trouble (c->res))
    r = q_fail (
        c->err, -EIO,
        "%s: a repair would leave %llu errors where there are %llu: nothing was written; copy "
        "what is readable to a new image",
        img->filename, (unsigned long long)trouble (&after), (unsigned long long)trouble (c->res));
  if (r == 0) {
    r = q_rehearsal_perform (f, o);
    if (r < 0)
      q_fail (c->err, r, "%s: writing the repair: %s", img->filename, strerror (-r));
  }
  if (r == 0) {
    after.corruptions_fixed = less (c->res->corruptions, after.corruptions);
    after.leaks_fixed = less (c->res->leaks, after.leaks);
    *c->res = after;
  }
  q_file_close (&f);
  return r;
}

static int
check_and_mend (struct q_image *img, const struct q_check_options *o, bool opening,
                struct q_check_result *result, bool *wrote, struct q_error *err)
{
  struct q_check c = { .img = img,
                       .repair = o->repair,
                       .opening = opening,
                       .res = result,
                       .report = o->report,
                       .err = err,
                       .behind = o->in_use && (img->incompatible & Q_INCOMPAT_DIRTY),
                       .threads = o->threads,
                       .progress = o->progress,
                       .stop = o->stop,
                       .opaque = o->opaque };
  const bool bits = img->incompatible & (Q_INCOMPAT_DIRTY | Q_INCOMPAT_CORRUPT);
  int r;

  memset (result, 0, sizeof *result);
  r = q_check_look (&c);
  if (r == 0 && o->repair &&
      (result->corruptions || result->leaks || c.rebuild || (bits && trouble (result) == 0)))
    r = mend (&c, o, bits, wrote);
  q_check_close (&c);
  return r;
}

/* *WROTE: the file was, or may have been, changed. */
static int
check (struct q_image *img, const struct q_check_options *o, bool opening,
       struct q_check_result *result, bool *wrote, struct q_error *err)
{
  /* An image that is being opened may not have read its snapshots yet.  Without them everything
   * that only they refer to would look like a leak. */
  const bool unread = img->nb_snapshots && !atomic_load (&img->snapshots);
  int r = unread ? q_snapshots_read (img, err) : 0;

  *wrote = false;
  if (r == 0)
    r = check_and_mend (img, o, opening, result, wrote, err);
  if (unread)
    q_snapshots_free (img);
  return r;
}

/* ---- what the engine calls --------------------------------------------------------------------
 */

int
q_check_image (struct q_image *img, const struct q_check_options *o, struct q_check_result *result,
               struct q_error *err)
{
  bool wrote;
  int r = 0;

  memset (result, 0, sizeof *result);
  if (img->format != Q_FORMAT_QCOW2)
    return q_fail (err, -ENOTSUP, "%s: a raw image has nothing that could be checked",
                   img->filename);
  if (o->repair && !o->dry_run && q_writable (img) < 0)
    return q_fail (err, -EROFS, "%s: cannot be repaired: it is open read-only", img->filename);
  if (q_writable (img) == 0 && atomic_load (&img->l1))
    r = q_flush (img); /* an image opened for repair has no tables in memory */
  if (r < 0)
    return q_fail (err, r, "%s: flush: %s", img->filename, strerror (-r));

  r = check (img, o, false, result, &wrote, err);
  /* The tables in memory are those of before: nothing may be written from them. */
  if (wrote)
    img->read_only = true;
  return r;
}

int
q_check (struct q_image *img, unsigned repair, struct q_check_result *result,
         void (*report) (void *opaque, const char *line), void *opaque, struct q_error *err)
{
  const struct q_check_options o = { .repair = repair, .report = report, .opaque = opaque };

  return q_check_image (img, &o, result, err);
}

int
q_check_repair_dirty (struct q_image *img, struct q_error *err)
{
  struct q_check_result result;
  bool wrote;
  const struct q_check_options o = { .repair = Q_REPAIR_LEAKS | Q_REPAIR_ERRORS };
  int r = check (img, &o, true, &result, &wrote, err);

  if (r < 0)
    return r;
  if (trouble (&result))
    return q_fail (err, -EIO,
                   "%s: the image was not closed properly and %llu corruptions cannot be repaired: "
                   "nbdcow-img check says what they are",
                   img->filename, (unsigned long long)trouble (&result));
  return 0;
}
