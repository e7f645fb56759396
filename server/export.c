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

static void
export_free (struct export *x)
{
  if (!x)
    return;
  slice_free (x->slice);
  stats_free (x->stats);
  free (x->name);
  free (x->description);
  free (x->settings);
  free (x->snapshot);
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
  if (!x->stats || !x->name || (opts->description && !x->description) || !x->settings) {
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
static int
export_close (struct export *x, struct q_error *err)
{
  pthread_mutex_lock (&x->flush_lock);
  while (x->flush_running)
    pthread_cond_wait (&x->flush_over, &x->flush_lock);
  pthread_mutex_unlock (&x->flush_lock);
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
static int
make_export (struct exports *set, const struct export_options *opts, struct export **export,
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
  if (r < 0) {
    export_free (x);
    return r;
  }
  *export = x;
  return 0;
}

/* ---- adding ---------------------------------------------------------------------------------- */

static struct export *
find (const struct export *list, const void *name, size_t len)
{
  for (const struct export *x = list; x; x = x->next)
    if (strlen (x->name) == len && (len == 0 || memcmp (x->name, name, len) == 0))
      return (struct export *)x;
  return NULL;
}

/* Also by one that is prepared, or leaving. */
static bool
is_taken (struct exports *set, const struct export *more, const char *name)
{
  pthread_mutex_lock (&set->lock);
  bool taken = find (set->first, name, strlen (name)) != NULL;
  pthread_mutex_unlock (&set->lock);
  return taken || find (more, name, strlen (name));
}

static int
name_is_taken (const char *name, struct q_error *err)
{
  snprintf (err->text, sizeof err->text, "export name \"%s\" is used twice", name);
  return -EEXIST;
}

/* The name of the snapshot's export: NAME@SNAPSHOT, by its name or, where that is empty, too long
 * or another export's, by its id.  NULL: there is none, or no memory. */
static char *
name_snapshot (struct export *x, const struct q_snapshot_info *info)
{
  const char *const words[] = { info->name, info->id };

  for (size_t i = 0; i < 2; i++) {
    char *name;
    if (*words[i] == '\0')
      continue;
    if (asprintf (&name, "%s@%s", x->name, words[i]) < 0)
      return NULL;
    if (strlen (name) <= NBD_MAX_STRING && !is_taken (x->set, x, name))
      return name;
    free (name);
  }
  return NULL;
}

/* Makes an export for the snapshot INFO of X's image, to stand behind X and others. */
static int
make_snapshot_export (struct export *x, const struct q_snapshot_info *info,
                      const struct export_options *opts, struct export **export,
                      struct q_error *err)
{
  struct export_options so = *opts;

  for (const struct export *other = x->next; other; other = other->next)
    if (other->snapshot && strcmp (other->snapshot, info->id) == 0)
      return -EEXIST; /* the id stands for that one */
  so.name = name_snapshot (x, info);
  if (!so.name)
    return -EEXIST;
  int r = source_copy (&so.source, &opts->source);
  if (r == 0) {
    so.snapshot = info->id;
    so.snapshots = false;
    so.n_bitmaps = 0;
    so.source.open.state_dir = NULL;
    /* The image is locked already, by us; what a snapshot holds does not change. */
    so.source.open.lock = Q_LOCK_OFF;
    r = make_export (x->set, &so, export, err);
    source_free (&so.source);
  }
  free ((char *)so.name);
  return r;
}

/* Each opens the image anew, with its list of all the snapshots. */
#define MAX_SNAPSHOT_EXPORTS 256

/* Makes one for each snapshot of X's image, to stand behind X.  What the image says of them must
 * not keep it from being served: those that cannot be are left out, with a warning. */
static void
make_snapshot_exports (struct export *x, const struct export_options *opts)
{
  struct export *last = x;
  struct q_snapshot_info *list;
  int n = q_get_snapshots (x->img, &list);

  if (n < 0)
    log_warning ("export \"%s\": no snapshot is served: %s", x->name, strerror (-n));
  if (n > MAX_SNAPSHOT_EXPORTS) {
    log_warning (
        "export \"%s\": snapshots=on: the image has %d snapshots, and of more than %d none "
        "is served: load-snapshot serves one",
        x->name, n, MAX_SNAPSHOT_EXPORTS);
    n = 0;
  }
  for (int i = 0; i < n; i++) {
    struct q_error why = { "" };
    int r = make_snapshot_export (x, &list[i], opts, &last->next, &why);
    if (r == 0)
      last = last->next;
    else
      log_warning ("export \"%s\": snapshot %d of its image is not served: %s", x->name, i + 1,
                   why.text[0]    ? why.text
                   : r == -EEXIST ? "its name, or its id, is that of another"
                                  : strerror (-r));
  }
  free (list);
}

/* Closes those in LIST, which nobody else knows. */
static void
close_list (struct export *list)
{
  while (list) {
    struct export *x = list;
    struct q_error err = { "" };
    list = x->next;
    if (export_close (x, &err) < 0)
      log_error ("%s", err.text);
  }
}

/* Puts those in LIST, the first of which is the others' parent, at the end of the set. */
static int
append (struct exports *set, struct export *list, struct q_error *err)
{
  const struct export *base = list->base;
  int r = 0;

  pthread_mutex_lock (&set->lock);
  if (base && base->state != EXPORT_SERVED) {
    snprintf (err->text, sizeof err->text, "there is no export \"%s\"", base->name);
    r = -ENOENT;
  }
  for (const struct export *x = list; x && r == 0; x = x->next)
    if (find (set->first, x->name, strlen (x->name)) || find (x->next, x->name, strlen (x->name)))
      r = name_is_taken (x->name, err);
  for (struct export *x = list; x && r == 0; x = x->next) {
    x->id = ++set->last_id;
    x->parent = base ? base->id : x == list ? 0 : list->id;
    x->state = EXPORT_PREPARED;
    if (set->last)
      set->last->next = x;
    else
      set->first = x;
    set->last = x;
  }
  pthread_mutex_unlock (&set->lock);
  return r;
}

int
exports_prepare (struct exports *set, const struct export_options *opts, struct export **prepared,
                 struct q_error *err)
{
  struct export *list = NULL;
  struct export_options view;

  *prepared = NULL;
  if (is_taken (set, NULL, opts->name))
    return name_is_taken (opts->name, err);
  if (opts->base) {
    view = *opts;
    int r = export_view (&view, err);
    if (r < 0)
      return r;
    opts = &view;
  }
  /* Nobody deletes a snapshot between its being opened and the export's being in the set. */
  pthread_mutex_lock (&set->snapshots);
  int r = make_export (set, opts, &list, err);
  if (r == 0 && opts->snapshots)
    make_snapshot_exports (list, opts);
  if (r == 0 && (r = append (set, list, err)) < 0)
    close_list (list);
  pthread_mutex_unlock (&set->snapshots);
  if (r == 0)
    *prepared = list;
  return r;
}

/* Whether X is PARENT or goes with it. */
static bool
belongs_to (const struct export *x, const struct export *parent)
{
  return x == parent || x->parent == parent->id;
}

void
exports_commit (struct export *prepared)
{
  struct exports *set = prepared->set;

  pthread_mutex_lock (&set->lock);
  for (struct export *x = prepared; x; x = x->next)
    /* What a view shows may be leaving already: then so is the view. */
    if (belongs_to (x, prepared) && x->state == EXPORT_PREPARED) {
      x->state = EXPORT_SERVED;
      if (x->watermark)
        watermark_arm (x->watermark);
    }
  pthread_mutex_unlock (&set->lock);
}

int
exports_add (struct exports *set, const struct export_options *opts, struct q_error *err)
{
  struct export *x;
  int r = exports_prepare (set, opts, &x, err);

  if (r == 0)
    exports_commit (x);
  return r;
}

/* ---- removing -------------------------------------------------------------------------------- */

/* Under the lock: unless it is FORCED, says who is in the way. */
static int
check_idle (struct export *parent, struct q_error *err)
{
  for (const struct export *x = parent; x; x = x->next)
    if (belongs_to (x, parent) && x->connections > 0) {
      snprintf (err->text, sizeof err->text, "export \"%s\" is in use: %u client%s connected",
                x->name, x->connections, x->connections == 1 ? " is" : "s are");
      return -EBUSY;
    }
  return 0;
}

/* Under the lock: takes PARENT and what belongs to it out of the list; returns them as a list, in
 * which PARENT, whose image the others may show, is the last. */
static struct export *
take_out (struct exports *set, const struct export *parent)
{
  struct export *out = NULL;
  uint64_t id = parent->id;

  set->last = NULL;
  for (struct export **p = &set->first; *p;) {
    struct export *x = *p;
    if (x->id == id || x->parent == id) {
      *p = x->next;
      x->next = out;
      out = x;
    } else {
      set->last = x;
      p = &x->next;
    }
  }
  return out;
}

/* Under the lock, which is given up meanwhile: PARENT and what belongs to it are found by nobody
 * any more; when this returns, nobody uses them. */
static void
retire (struct exports *set, struct export *parent)
{
  unsigned clients = 0;

  for (struct export *x = parent; x; x = x->next)
    if (belongs_to (x, parent)) {
      x->state = EXPORT_LEAVING;
      atomic_store (&x->leaving, true);
      room_end (x->room);
      clients += x->connections;
    }
  if (clients > 0 && set->sweep)
    set->sweep (set->opaque);
  for (struct export *x = parent; x;) {
    if (belongs_to (x, parent) && x->refs > 0) {
      pthread_cond_wait (&set->unused, &set->lock);
      x = parent;
    } else
      x = x->next;
  }
}

/* Closes what was taken out. */
static int
close_all (struct export *list, struct q_error *err)
{
  int first_error = 0;

  while (list) {
    struct export *x = list;
    struct q_error one = { "" };
    json_t *data = json_pack ("{s:o}", "id", describe_text (x->name));
    list = x->next;
    int r = export_close (x, &one);
    control_event ("BLOCK_EXPORT_DELETED", data);
    if (r < 0 && first_error == 0) {
      first_error = r;
      *err = one;
    }
  }
  return first_error;
}

void
exports_abandon (struct export *prepared)
{
  struct exports *set = prepared->set;

  pthread_mutex_lock (&set->lock);
  struct export *list = take_out (set, prepared);
  pthread_mutex_unlock (&set->lock);
  close_list (list);
}

int
exports_remove (struct exports *set, const char *name, bool hard, struct q_error *err)
{
  struct export *list = NULL;
  int r = 0;

  /* Whoever removes a snapshot's export waits for its clients with the lock given up.  Its parent,
   * which takes it along, is not to free it meanwhile, nor to be opened again by the next one
   * while the snapshot's image is still open. */
  pthread_mutex_lock (&set->removing);
  pthread_mutex_lock (&set->lock);
  struct export *x = find (set->first, name, strlen (name));
  if (!x || x->state != EXPORT_SERVED) {
    snprintf (err->text, sizeof err->text, "there is no export \"%s\"", name);
    r = -ENOENT;
  } else if (hard || (r = check_idle (x, err)) == 0) {
    retire (set, x);
    list = take_out (set, x);
  }
  pthread_mutex_unlock (&set->lock);
  if (r == 0)
    r = close_all (list, err);
  pthread_mutex_unlock (&set->removing);
  return r;
}

void
exports_init (struct exports *set)
{
  *set = (struct exports){ .first = NULL };
  pthread_mutex_init (&set->removing, NULL);
  pthread_mutex_init (&set->lock, NULL);
  pthread_mutex_init (&set->snapshots, NULL);
  pthread_cond_init (&set->unused, NULL);
}

void
exports_set_sweep (struct exports *set, void (*sweep) (void *opaque), void *opaque)
{
  pthread_mutex_lock (&set->lock);
  set->sweep = sweep;
  set->opaque = opaque;
  pthread_mutex_unlock (&set->lock);
}

int
exports_close (struct exports *set)
{
  struct export *list = NULL;
  int first_error = 0;

  /* Those that came last go first: a view before what it shows. */
  while (set->first) {
    struct export *x = set->first;
    set->first = x->next;
    x->next = list;
    list = x;
  }
  while (list) {
    struct export *x = list;
    struct q_error err = { "" };
    assert (x->refs == 0);
    list = x->next;
    int r = export_close (x, &err);
    if (r < 0) {
      log_error ("%s", err.text);
      if (first_error == 0)
        first_error = r;
    }
  }
  set->last = NULL;
  pthread_cond_destroy (&set->unused);
  pthread_mutex_destroy (&set->snapshots);
  pthread_mutex_destroy (&set->lock);
  pthread_mutex_destroy (&set->removing);
  return first_error;
}

/* ---- use ------------------------------------------------------------------------------------- */

struct export *
exports_get (struct exports *set, const void *name, size_t len)
{
  pthread_mutex_lock (&set->lock);
  struct export *x = find (set->first, name, len);
  if (x && x->state != EXPORT_SERVED)
    x = NULL;
  if (x)
    x->refs++;
  pthread_mutex_unlock (&set->lock);
  return x;
}

static struct export *
walk (struct exports *set, struct export *x, enum export_state most)
{
  pthread_mutex_lock (&set->lock);
  struct export *next = x ? x->next : set->first; /* with a reference, it is still in the list */
  while (next && (next->state == EXPORT_PREPARED || next->state > most))
    next = next->next;
  if (next)
    next->refs++;
  pthread_mutex_unlock (&set->lock);
  if (x)
    export_put (x);
  return next;
}

struct export *
exports_next (struct exports *set, struct export *x)
{
  return walk (set, x, EXPORT_SERVED);
}

struct export *
exports_next_any (struct exports *set, struct export *x)
{
  return walk (set, x, EXPORT_LEAVING);
}

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
  if (--x->refs == 0 && x->state == EXPORT_LEAVING)
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
