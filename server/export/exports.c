/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The set of exports: which there are, and who finds them.
 */

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "describe.h"
#include "export.h"
#include "log.h"
#include "nbd.h"

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
    r = export_make (x->set, &so, export, err);
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

/* Under the lock.  False: there are no exports any more. */
static bool
is_open (struct exports *set)
{
  while (set->state == EXPORTS_SUSPENDED)
    pthread_cond_wait (&set->resumed, &set->lock);
  return set->state == EXPORTS_OPEN;
}

static int
check_open (struct exports *set, const char *name, struct q_error *err)
{
  pthread_mutex_lock (&set->lock);
  bool open = is_open (set);
  pthread_mutex_unlock (&set->lock);
  if (!open)
    snprintf (err->text, sizeof err->text,
              "export \"%s\": another process has taken this server over", name);
  return open ? 0 : -ESHUTDOWN;
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
  int r = check_open (set, opts->name, err);
  if (r == 0)
    r = export_make (set, opts, &list, err);
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
exports_remove_id (struct exports *set, const char *name, uint64_t id, bool hard,
                   struct q_error *err)
{
  struct export *list = NULL;
  int r = 0;

  /* Whoever removes a snapshot's export waits for its clients with the lock given up.  Its parent,
   * which takes it along, is not to free it meanwhile, nor to be opened again by the next one
   * while the snapshot's image is still open. */
  pthread_mutex_lock (&set->removing);
  pthread_mutex_lock (&set->lock);
  struct export *x = is_open (set) ? find (set->first, name, strlen (name)) : NULL;
  /* One that could not be opened again (exports_resume) has no image, and is removed like any. */
  if (!x || (id != 0 && x->id != id) || (x->state != EXPORT_SERVED && x->img)) {
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

int
exports_remove (struct exports *set, const char *name, bool hard, struct q_error *err)
{
  return exports_remove_id (set, name, 0, hard, err);
}

void
exports_init (struct exports *set)
{
  *set = (struct exports){ .first = NULL };
  pthread_mutex_init (&set->removing, NULL);
  pthread_mutex_init (&set->lock, NULL);
  pthread_mutex_init (&set->snapshots, NULL);
  pthread_cond_init (&set->unused, NULL);
  pthread_cond_init (&set->resumed, NULL);
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
  pthread_cond_destroy (&set->resumed);
  pthread_mutex_destroy (&set->snapshots);
  pthread_mutex_destroy (&set->lock);
  pthread_mutex_destroy (&set->removing);
  return first_error;
}

/* ---- finding --------------------------------------------------------------------------------- */

struct export *
exports_get (struct exports *set, const void *name, size_t len)
{
  pthread_mutex_lock (&set->lock);
  struct export *x = is_open (set) ? find (set->first, name, len) : NULL;
  if (x && x->state != EXPORT_SERVED)
    x = NULL;
  if (x)
    x->refs++;
  pthread_mutex_unlock (&set->lock);
  return x;
}

/* The list is in the order of the ids. */
struct export *
exports_after (struct exports *set, uint64_t id)
{
  pthread_mutex_lock (&set->lock);
  struct export *x = is_open (set) ? set->first : NULL;
  while (x && (x->id <= id || x->state != EXPORT_SERVED))
    x = x->next;
  if (x)
    x->refs++;
  pthread_mutex_unlock (&set->lock);
  return x;
}

enum walk { WALK_SERVED, WALK_ANY, WALK_LOST };

/* One without an image is one that could not be opened again (exports_resume). */
static bool
is_seen (const struct export *x, enum walk walk)
{
  if (!x->img)
    return walk == WALK_LOST && x->state == EXPORT_LEAVING;
  return (walk != WALK_LOST && x->state == EXPORT_SERVED) ||
         (walk == WALK_ANY && x->state == EXPORT_LEAVING);
}

static struct export *
walk (struct exports *set, struct export *x, enum walk walk)
{
  pthread_mutex_lock (&set->lock);
  struct export *next = x               ? x->next
                        : is_open (set) ? set->first
                                        : NULL; /* with a reference, it is still in the list */
  while (next && !is_seen (next, walk))
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
  return walk (set, x, WALK_SERVED);
}

struct export *
exports_next_any (struct exports *set, struct export *x)
{
  return walk (set, x, WALK_ANY);
}

struct export *
exports_next_lost (struct exports *set, struct export *x)
{
  return walk (set, x, WALK_LOST);
}

unsigned
exports_count (struct exports *set)
{
  unsigned n = 0;

  pthread_mutex_lock (&set->lock);
  for (const struct export *x = set->first; x; x = x->next)
    n += x->state == EXPORT_SERVED;
  pthread_mutex_unlock (&set->lock);
  return n;
}

bool
exports_has_view (struct exports *set, const struct export *x, char *name, size_t size)
{
  bool found = false;

  pthread_mutex_lock (&set->lock);
  for (const struct export *y = set->first; y && !found; y = y->next)
    if (y->base == x && y->state == EXPORT_SERVED) {
      found = true;
      snprintf (name, size, "%s", y->name);
    }
  pthread_mutex_unlock (&set->lock);
  return found;
}
