/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "export.h"
#include "log.h"
#include "nbd.h"
#include "slice.h"
#include "snapshot.h"
#include "status.h"
#include "throwaway.h"

static void
export_free (struct export *x)
{
  if (!x)
    return;
  slice_free (x->slice);
  free (x->name);
  free (x->description);
  pthread_mutex_destroy (&x->flush_lock);
  free (x);
}

static struct export *
export_new (const struct export_options *opts)
{
  struct export *x = calloc (1, sizeof *x);

  if (!x)
    return NULL;
  pthread_mutex_init (&x->flush_lock, NULL);
  x->name = strdup (opts->name);
  x->description = opts->description ? strdup (opts->description) : NULL;
  if (!x->name || (opts->description && !x->description)) {
    export_free (x);
    return NULL;
  }
  return x;
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
  x->read_only = s->open.read_only;
  x->multi_conn = opts->multi_conn;
  x->write_through = s->write_through;
  x->ignore_flush = s->ignore_flush;
  x->compress = s->compress && !x->read_only;
  x->detect_zeroes = s->detect_zeroes;
  x->rotational = is_rotational (s->filename);
  x->tls_only = opts->tls_only;
  x->authz = opts->authz;
  x->resizable = opts->resizable && !x->read_only;
  x->max_connections = opts->max_connections;
  x->rate.bytes_per_second = opts->rate;
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
  free (snapshot);
  x->slice = s->slice;
  s->slice = NULL;
  return r;
}

static void
append (struct exports *set, struct export *x)
{
  if (set->last)
    set->last->next = x;
  else
    set->first = x;
  set->last = x;
}

/* An export for each snapshot of X's image: called NAME@SNAPSHOT, by the snapshot's name or, where
 * that is empty or not its own, by its number. */
static int
add_snapshots (struct exports *set, struct export *x, const struct export_options *opts,
               struct q_error *err)
{
  struct q_snapshot_info info;
  int r = 0;

  for (unsigned i = 0; r == 0 && q_get_snapshot (x->img, i, &info) == 0; i++) {
    struct export_options so = *opts;
    char *name = NULL, *snapshot = NULL;
    r = source_copy (&so.source, &opts->source);
    if (r < 0) {
      snprintf (err->text, sizeof err->text, "export \"%s\": out of memory", x->name);
      break;
    }
    if (asprintf (&snapshot, "snapshot.id=%s", info.id) < 0)
      snapshot = NULL;
    if (asprintf (&name, "%s@%s", x->name, *info.name ? info.name : info.id) < 0)
      name = NULL;
    if (name && exports_find (set, name, strlen (name))) {
      free (name);
      if (asprintf (&name, "%s@%s", x->name, info.id) < 0)
        name = NULL;
    }
    so.name = name;
    so.snapshot = snapshot;
    so.snapshots = false;
    so.n_bitmaps = 0;
    so.source.open.state_dir = NULL;
    /* The image is locked already, by us; what a snapshot holds does not change. */
    so.source.open.lock = Q_LOCK_OFF;
    if (name && snapshot && strlen (name) <= NBD_MAX_STRING)
      r = exports_add (set, &so, err);
    else {
      snprintf (err->text, sizeof err->text, "export \"%s\": no name for its snapshot %s", x->name,
                info.id);
      r = -EINVAL;
    }
    free (name);
    free (snapshot);
    source_free (&so.source);
  }
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
  if (r < 0) {
    struct q_error ignored;
    status_close (x);
    q_close (&x->img, &ignored);
    return r;
  }
  describe (x, opts, s);
  return 0;
}

int
exports_add (struct exports *set, const struct export_options *opts, struct q_error *err)
{
  struct source s = { 0 };

  if (exports_find (set, opts->name, strlen (opts->name))) {
    snprintf (err->text, sizeof err->text, "export name \"%s\" is used twice", opts->name);
    return -EEXIST;
  }
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
  struct export *x = export_new (opts);
  if (!x || source_copy (&s, &opts->source) < 0) {
    export_free (x);
    snprintf (err->text, sizeof err->text, "export \"%s\": out of memory", opts->name);
    return -ENOMEM;
  }
  int r = open_export (x, opts, &s, err);
  source_free (&s);
  if (r < 0) {
    export_free (x);
    return r;
  }
  append (set, x);
  return opts->snapshots ? add_snapshots (set, x, opts, err) : 0;
}

/* ---- use ------------------------------------------------------------------------------------- */

struct export *
exports_find (const struct exports *set, const void *name, size_t len)
{
  for (struct export *x = set->first; x; x = x->next)
    if (strlen (x->name) == len && (len == 0 || memcmp (x->name, name, len) == 0))
      return x;
  return NULL;
}

int
exports_close (struct exports *set)
{
  int first_error = 0;

  while (set->first) {
    struct export *x = set->first;
    struct q_error err = { "" };
    set->first = x->next;
    status_close (x);
    int r = q_close (&x->img, &err);
    if (r < 0) {
      log_error ("%s", err.text);
      if (first_error == 0)
        first_error = r;
    }
    export_free (x);
  }
  set->last = NULL;
  return first_error;
}

bool
export_enter (struct export *x)
{
  unsigned n = atomic_fetch_add (&x->connections, 1);

  if (x->max_connections > 0 && n >= x->max_connections) {
    atomic_fetch_sub (&x->connections, 1);
    return false;
  }
  return true;
}

void
export_leave (struct export *x)
{
  atomic_fetch_sub (&x->connections, 1);
}

int
export_resize (struct export *x, uint64_t size)
{
  struct q_error err = { "" };

  if (size < x->size)
    return -EPERM;
  int r = q_resize (x->img, size, &err);
  if (r < 0) {
    log_warning ("%s", err.text);
    return r;
  }
  /* Of two at the same time the larger one holds. */
  uint64_t old = x->size;
  while (old < size && !atomic_compare_exchange_weak (&x->size, &old, size))
    ;
  log_info ("export \"%s\": resized to %" PRIu64 " bytes", x->name, size);
  return 0;
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
