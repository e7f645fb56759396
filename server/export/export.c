/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "control.h"
#include "describe.h"
#include "export.h"
#include "log.h"
#include "nbd.h"
#include "slice.h"
#include "snapshot.h"
#include "stats.h"
#include "status.h"
#include "throwaway.h"
#include "wanted.h"

static void
export_free (struct export *x)
{
  if (!x)
    return;
  slice_free (x->slice);
  export_forget_chain (x);
  stats_free (x->stats);
  free (x->name);
  free (x->description);
  free (x->settings);
  free (x->snapshot);
  wanted_free (x->recipe);
  pthread_mutex_destroy (&x->flush_lock);
  pthread_cond_destroy (&x->flush_over);
  free (x);
}

static struct export *
export_new (struct exports *set, const struct export_options *opts)
{
  struct export *x = calloc (1, sizeof *x);

  if (!x)
    return NULL;
  pthread_mutex_init (&x->flush_lock, NULL);
  pthread_cond_init (&x->flush_over, NULL);
  x->set = set;
  x->base = opts->base;
  x->stats = stats_new ();
  x->configured = opts->configured;
  x->name = strdup (opts->name);
  x->description = opts->description ? strdup (opts->description) : NULL;
  x->settings = export_settings (opts);
  if (!x->stats || !x->name || (opts->description && !x->description) || !x->settings ||
      !export_keep_chain (x, opts)) {
    export_free (x);
    return NULL;
  }
  return x;
}

/* What happens when room becomes short. */
static int
watch (struct export *x, const struct export_options *opts)
{
  bool grows = !x->read_only && q_image_format (x->img) == Q_FORMAT_QCOW2;

  if (opts->watermark.at.bytes + opts->watermark.at.percent > 0 && !grows && !x->read_only)
    log_warning ("export \"%s\": a raw image has no watermark: none of it is allocated later",
                 x->name);
  if (!x->read_only && opts->on_enospc.wait && !(x->room = room_new (x->name, &opts->on_enospc)))
    return -ENOMEM;
  if (grows && !(x->watermark = watermark_new (x->name, x->img, x->room, &opts->watermark)))
    return -ENOMEM;
  return 0;
}

/* The image is about to be closed. */
static void
unwatch (struct export *x)
{
  watermark_free (x->watermark);
  room_free (x->room);
  x->watermark = NULL;
  x->room = NULL;
}

static int
close_image (struct export *x, struct q_error *err)
{
  if (!export_borrows (x))
    return q_close (&x->img, err);
  x->img = NULL;
  return 0;
}

/* The last client has gone, but whoever carried its last flush out may still be on the way out of
 * it. */
void
export_quiesce (struct export *x)
{
  pthread_mutex_lock (&x->flush_lock);
  while (x->flush_running)
    pthread_cond_wait (&x->flush_over, &x->flush_lock);
  pthread_mutex_unlock (&x->flush_lock);
}

int
export_close (struct export *x, struct q_error *err)
{
  export_quiesce (x);
  unwatch (x);
  status_close (x);
  int r = close_image (x, err);
  export_free (x);
  return r;
}

/* ---- what an export is ----------------------------------------------------------------------- */

/* Whether the file or device lies on a disk for which the order of requests matters.  What cannot
 * be found out does not. */
static bool
is_rotational (const char *filename)
{
  static const char *const where[] = { "queue", "../queue" }; /* a disk, a partition */
  struct stat st;

  if (stat (filename, &st) < 0)
    return false;
  dev_t dev = S_ISBLK (st.st_mode) ? st.st_rdev : st.st_dev;
  for (size_t i = 0; i < sizeof where / sizeof where[0]; i++) {
    char path[128];
    snprintf (path, sizeof path, "/sys/dev/block/%u:%u/%s/rotational", major (dev), minor (dev),
              where[i]);
    FILE *f = fopen (path, "re");
    if (!f)
      continue;
    int c = fgetc (f);
    fclose (f);
    return c == '1';
  }
  return false;
}

/* The part of the disk in the image that is served. */
static int
choose_part (struct export *x, const struct source *s, struct q_error *err)
{
  uint64_t disk = q_size (x->img);

  if (s->offset > disk) {
    snprintf (err->text, sizeof err->text,
              "%s: offset %" PRIu64 " lies past the end of the disk, whose size is %" PRIu64,
              s->filename, s->offset, disk);
    return -EINVAL;
  }
  x->offset = s->offset;
  x->is_part = s->offset > 0 || s->size != SOURCE_TO_END;
  uint64_t size = disk - s->offset;
  if (s->size != SOURCE_TO_END) {
    if (s->size > size) {
      snprintf (err->text, sizeof err->text,
                "%s: size %" PRIu64 " at offset %" PRIu64
                " goes past the end of the disk, whose size is %" PRIu64,
                s->filename, s->size, s->offset, disk);
      return -EINVAL;
    }
    size = s->size;
  }
  x->size = size;
  return 0;
}

static void
describe (struct export *x, const struct export_options *opts, const struct source *s)
{
  struct stat st;

  if (stat (s->filename, &st) == 0) {
    x->dev = st.st_dev;
    x->ino = st.st_ino;
  }
  x->backing = s->open.backing;
  x->data_file_policy = s->open.data_file_policy;
  x->read_only = s->open.read_only;
  x->multi_conn = opts->multi_conn;
  x->direct = s->open.cache == Q_CACHE_DIRECT;
  x->write_through = s->write_through;
  x->ignore_flush = s->ignore_flush;
  x->compress = s->compress && !x->read_only;
  x->detect_zeroes = s->detect_zeroes;
  x->rotational = is_rotational (s->filename);
  x->tls_only = opts->tls_only;
  x->authz = opts->authz;
  x->resizable = opts->resizable && !x->read_only;
  x->max_connections = opts->max_connections;
  atomic_store (&x->rate.bytes_per_second, opts->rate);
  x->min_block = opts->min_block ? opts->min_block : 1;
  /* What is allocated and copied as a whole. */
  x->preferred_block = q_allocation_size (x->img);
  if (x->preferred_block < 4096)
    x->preferred_block = 4096;
  if (x->preferred_block < x->min_block)
    x->preferred_block = x->min_block;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* Opens what S says, and takes its slice over. */
static int
open_image (struct export *x, const struct export_options *opts, struct source *s,
            struct q_error *err)
{
  char *snapshot = NULL;
  int r = 0;

  if (opts->base && !opts->snapshot) {
    x->img = opts->base->img;
    return 0;
  }
  if (opts->throw_away)
    r = throwaway_overlay (s, err);
  else if (opts->snapshot) {
    s->open.read_only = true;
    r = snapshot_id (s, opts->snapshot, &snapshot, err);
    s->open.snapshot = snapshot;
  }
  if (r == 0) {
    r = q_open (&x->img, s->filename, &s->open, err);
    if (opts->throw_away)
      unlink (s->filename); /* from here on it lives as long as it is open */
  }
  if (r == 0 && snapshot && !(x->snapshot = snapshot_shown (x->img, snapshot))) {
    struct q_error ignored;
    q_close (&x->img, &ignored);
    r = -ENOMEM;
  }
  free (snapshot);
  x->slice = s->slice;
  s->slice = NULL;
  return r;
}

static int
open_export (struct export *x, const struct export_options *opts, struct source *s,
             struct q_error *err)
{
  int r = open_image (x, opts, s, err);
  if (r < 0)
    return r;
  r = choose_part (x, s, err);
  if (r == 0 && s->compress && !s->open.read_only && !q_can_compress (x->img)) {
    snprintf (err->text, sizeof err->text,
              "%s: cannot be compressed: compress is for qcow2 images that are not encrypted and "
              "keep their data themselves",
              s->filename);
    r = -ENOTSUP;
  }
  if (r == 0)
    r = status_open (x, opts, err);
  if (r == 0) {
    describe (x, opts, s);
    r = watch (x, opts);
  }
  if (r < 0) {
    struct q_error ignored;
    if (*err->text == '\0')
      snprintf (err->text, sizeof err->text, "%s: out of memory", s->filename);
    unwatch (x);
    status_close (x);
    close_image (x, &ignored);
    return r;
  }
  return 0;
}

static int
check_options (const struct export_options *opts, struct q_error *err)
{
  if (opts->resizable && (opts->source.offset > 0 || opts->source.size != SOURCE_TO_END)) {
    snprintf (err->text, sizeof err->text,
              "export \"%s\": resize=on is for whole disks, without offset and size", opts->name);
    return -EINVAL;
  }
  if (opts->throw_away && opts->snapshot) {
    snprintf (err->text, sizeof err->text,
              "export \"%s\": an internal snapshot is read-only: it cannot be loaded under a "
              "temporary overlay",
              opts->name);
    return -EINVAL;
  }
  if (opts->throw_away && opts->snapshots) {
    snprintf (err->text, sizeof err->text,
              "export \"%s\": snapshots=on cannot be used with a temporary overlay, which has no "
              "internal snapshots: give them to an export without snapshot=on (or --snapshot)",
              opts->name);
    return -EINVAL;
  }
  return 0;
}

/* One export, open and in no list. */
int
export_make (struct exports *set, const struct export_options *opts, struct export **export,
             struct q_error *err)
{
  struct source s = { 0 };
  int r = check_options (opts, err);

  if (r < 0)
    return r;
  struct export *x = export_new (set, opts);
  if (!x || source_copy (&s, &opts->source) < 0) {
    export_free (x);
    snprintf (err->text, sizeof err->text, "export \"%s\": out of memory", opts->name);
    return -ENOMEM;
  }
  r = open_export (x, opts, &s, err);
  source_free (&s);
  if (r == 0 && set->keep_recipes && (r = wanted_recipe (&x->recipe, opts, err)) < 0) {
    struct q_error ignored;
    export_close (x, &ignored);
    return r;
  }
  if (r < 0) {
    export_free (x);
    return r;
  }
  *export = x;
  return 0;
}

/* ---- use ------------------------------------------------------------------------------------- */

struct export *
export_ref (struct export *x)
{
  pthread_mutex_lock (&x->set->lock);
  assert (x->refs > 0);
  x->refs++;
  pthread_mutex_unlock (&x->set->lock);
  return x;
}

void
export_put (struct export *x)
{
  struct exports *set = x->set;

  pthread_mutex_lock (&set->lock);
  assert (x->refs > 0);
  if ((--x->refs == 0 && x->state == EXPORT_LEAVING) || set->state == EXPORTS_SUSPENDED)
    pthread_cond_broadcast (&set->unused);
  pthread_mutex_unlock (&set->lock);
}

int
export_enter (struct export *x, unsigned *max)
{
  int r = 0;

  pthread_mutex_lock (&x->set->lock);
  *max = x->max_connections;
  if (x->state != EXPORT_SERVED)
    r = -ESHUTDOWN;
  else if (*max > 0 && x->connections >= *max) {
    atomic_fetch_add (&stats_server.refused, 1);
    r = -EMFILE;
  } else
    x->connections++;
  pthread_mutex_unlock (&x->set->lock);
  return r;
}

int
export_enter_again (struct export *x)
{
  int r = 0;

  pthread_mutex_lock (&x->set->lock);
  if (x->state != EXPORT_SERVED)
    r = -ESHUTDOWN;
  else
    x->connections++;
  pthread_mutex_unlock (&x->set->lock);
  return r;
}

void
export_leave (struct export *x)
{
  pthread_mutex_lock (&x->set->lock);
  assert (x->connections > 0);
  x->connections--;
  pthread_mutex_unlock (&x->set->lock);
}

unsigned
export_connections (struct export *x)
{
  pthread_mutex_lock (&x->set->lock);
  unsigned n = x->connections;
  pthread_mutex_unlock (&x->set->lock);
  return n;
}

unsigned
export_max_connections (struct export *x)
{
  pthread_mutex_lock (&x->set->lock);
  unsigned max = x->max_connections;
  pthread_mutex_unlock (&x->set->lock);
  return max;
}

void
export_description (const struct export *x, char text[EXPORT_DESCRIPTION_SIZE])
{
  pthread_mutex_lock (&x->set->lock);
  snprintf (text, EXPORT_DESCRIPTION_SIZE, "%s", x->description ? x->description : "");
  pthread_mutex_unlock (&x->set->lock);
}

void
export_admission (const struct export *x, bool *tls_only, struct authz **authz)
{
  pthread_mutex_lock (&x->set->lock);
  *tls_only = x->tls_only;
  *authz = x->authz;
  pthread_mutex_unlock (&x->set->lock);
}

uint16_t
export_flags (const struct export *x)
{
  unsigned flags =
      NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

  if (x->read_only)
    flags |= NBD_FLAG_READ_ONLY;
  else
    flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
  if (x->multi_conn)
    flags |= NBD_FLAG_CAN_MULTI_CONN;
  if (x->rotational)
    flags |= NBD_FLAG_ROTATIONAL;
  if (x->resizable)
    flags |= NBD_FLAG_SEND_RESIZE;
  return (uint16_t)flags;
}
