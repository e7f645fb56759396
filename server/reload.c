/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "log.h"
#include "nbd.h"
#include "reload.h"
#include "secret.h"
#include "serve.h"
#include "service.h"
#include "wanted.h"

struct reload {
  struct reload_context context;
  pthread_mutex_t lock;    /* one at a time; guards: */
  struct options *options; /* of the last reload; NULL: those of the context */

  pthread_mutex_t begin_lock; /* guards the rest */
  pthread_t thread;
  bool started; /* the thread is to be joined */
  bool running, again;
};

/* A reload under way. */
struct plan {
  struct reload *reload;
  const struct options *old;
  struct options *options;        /* the new ones */
  struct q_secret *key;           /* of --key-file, if it is needed */
  struct wanted *wanted, *before; /* all that is asked for, and was */
  struct leaving *leaving;
  struct reload_summary summary;
};

/* An export that is to go. */
struct leaving {
  struct leaving *next;
  char *name;
  uint64_t id; /* a command may have put another one under its name since */
  uint64_t dev, ino;
  bool lost; /* it has no image, and its clients have been sent away */
  bool gone;
};

static int
no_memory (struct q_error *err)
{
  snprintf (err->text, sizeof err->text, "out of memory");
  return -ENOMEM;
}

/* ---- what changed beside exports ------------------------------------------------------------- */

static bool
differ (const char *a, const char *b)
{
  return a && b ? strcmp (a, b) != 0 : a != b;
}

static void
warn_if (bool changed, const char *option)
{
  if (changed)
    log_warning ("configuration: '%s' has changed: that takes effect when the server is started "
                 "again",
                 option);
}

static void
warn_of_others (const struct options *a, const struct options *b)
{
  warn_if (differ (a->socket, b->socket), "socket");
  warn_if (differ (a->bind, b->bind), "bind");
  warn_if (differ (a->port, b->port), "port");
  warn_if (differ (a->vsock, b->vsock), "vsock");
  warn_if (a->shared != b->shared, "shared");
  warn_if (a->persistent != b->persistent, "persistent");
  warn_if (a->handshake_limit != b->handshake_limit, "handshake-limit");
  warn_if (a->idle_limit != b->idle_limit, "idle-limit");
  warn_if (a->memory != b->memory, "memory");
  warn_if (a->threads != b->threads, "threads");
  warn_if (a->workers != b->workers, "workers");
  warn_if (a->poll_us != b->poll_us, "poll");
  warn_if (differ (a->tls_creds, b->tls_creds), "tls-creds");
  warn_if (differ (a->tls_authz, b->tls_authz), "tls-authz");
  warn_if (a->tls_optional != b->tls_optional, "tls");
  warn_if (differ (a->pid_file, b->pid_file), "pid-file");
  warn_if (differ (a->log, b->log), "log");
  warn_if (differ (a->user, b->user), "user");
  warn_if (differ (a->group, b->group), "group");
}

/* ---- what is asked for ----------------------------------------------------------------------- */

static int
collect (void *opaque, const struct export_options *opts, struct q_error *err)
{
  return wanted_add (opaque, opts, err);
}

static int
read_options (struct plan *p, struct q_error *err)
{
  const struct reload_context *c = &p->reload->context;
  int r;

  p->options = calloc (1, sizeof *p->options);
  if (!p->options)
    return no_memory (err);
  r = options_parse_again (p->options, c->argc, c->argv, err);
  if (r < 0) {
    free (p->options);
    p->options = NULL;
    return r;
  }
  r = objects_carry_over (&p->options->objects, &p->old->objects, err);
  if (r == 0)
    r = objects_load_secrets (&p->options->objects, NULL, err);
  if (r == 0)
    r = serve_hooks (p->options, err);
  if (r == 0)
    r = serve_all (p->options, c->tls, collect, &p->wanted, err);
  return r;
}

/* ---- what was lost in a takeover that failed ------------------------------------------------- */

static bool
is_wanted_as_it_is (const struct plan *p, const struct export *x)
{
  const struct wanted *w = wanted_find (p->wanted, x->name);

  return x->configured && !x->parent && w && strcmp (w->settings, x->settings) == 0;
}

/* The same of the export whose snapshot X shows, which is served. */
static bool
goes_with_wanted (const struct plan *p, const struct export *x)
{
  struct exports *set = p->reload->context.exports;
  bool wanted = false;

  for (struct export *y = exports_next (set, NULL); y; y = exports_next (set, y))
    wanted = wanted || (y->id == x->parent && is_wanted_as_it_is (p, y));
  return wanted;
}

/* The first one after the export with that id that is wanted as it was.  False: there is none. */
static bool
next_to_recover (const struct plan *p, uint64_t *id, bool *is_snapshot)
{
  struct exports *set = p->reload->context.exports;
  bool found = false;

  for (struct export *x = exports_next_lost (set, NULL); x; x = exports_next_lost (set, x))
    if (!found && x->id > *id && (is_wanted_as_it_is (p, x) || goes_with_wanted (p, x))) {
      found = true;
      *id = x->id;
      *is_snapshot = x->parent != 0;
    }
  return found;
}

/* What can be opened again as it was is: so the exports of snapshots, and their clients, stay as
 * they are.  Where there is another image by now, the export is removed and added again, like one
 * that has changed.  A snapshot that cannot be opened is not served, as anywhere. */
static int
recover (const struct plan *p, struct q_error *err)
{
  bool is_snapshot;
  int r = 0;

  for (uint64_t id = 0; r == 0 && next_to_recover (p, &id, &is_snapshot);) {
    struct q_error why = { "" };
    r = exports_recover (p->reload->context.exports, id, &why);
    if (r < 0 && is_snapshot)
      log_warning ("%s", why.text);
    if (r == -ESTALE || is_snapshot)
      r = 0;
    else if (r < 0)
      *err = why;
  }
  return r;
}

/* ---- what is to be done ---------------------------------------------------------------------- */

static int
leave (struct plan *p, const struct export *x, struct q_error *err)
{
  struct leaving *l = calloc (1, sizeof *l);

  if (!l || !(l->name = strdup (x->name))) {
    free (l);
    return no_memory (err);
  }
  l->id = x->id;
  l->dev = x->dev;
  l->ino = x->ino;
  l->lost = !x->img;
  l->next = p->leaving;
  p->leaving = l;
  return 0;
}

static bool
same_in_place (struct export *x, const struct export_options *o)
{
  char description[EXPORT_DESCRIPTION_SIZE];
  struct authz *authz;
  bool tls_only;

  export_description (x, description);
  export_admission (x, &tls_only, &authz);
  return strcmp (description, o->description ? o->description : "") == 0 &&
         tls_only == o->tls_only && authz == o->authz &&
         atomic_load (&x->rate.bytes_per_second) == o->rate &&
         export_max_connections (x) == o->max_connections;
}

/* X is served.  What is to become of it? */
static int
compare (struct plan *p, struct export *x, struct q_error *err)
{
  struct wanted *w = wanted_find (p->wanted, x->name);
  char view[NBD_MAX_STRING + 1];
  unsigned clients;

  if (x->parent)
    return 0; /* comes and goes with the export whose snapshot it is */
  if (!x->configured) {
    if (!w)
      return 0;
    snprintf (err->text, sizeof err->text,
              "export \"%s\": there is one of that name already, which a command has added",
              x->name);
    return -EEXIST;
  }
  if (!w) {
    p->summary.removed++;
    return leave (p, x, err);
  }
  if (strcmp (w->settings, x->settings) == 0) {
    w->action = same_in_place (x, &w->options) ? WANTED_UNCHANGED : WANTED_CHANGE;
    p->summary.unchanged += w->action == WANTED_UNCHANGED;
    p->summary.changed += w->action == WANTED_CHANGE;
    return 0;
  }
  w->action = WANTED_REPLACE;
  p->summary.replaced++;
  if (exports_has_view (x->set, x, view, sizeof view)) {
    snprintf (err->text, sizeof err->text,
              "export \"%.400s\": export \"%.400s\" shows its image: remove that first, or leave "
              "this one as it is but for description, rate, max-connections, tls and tls-authz",
              x->name, view);
    return -EBUSY;
  }
  clients = export_connections (x);
  if (clients == 0)
    return leave (p, x, err);
  snprintf (err->text, sizeof err->text,
            "export \"%s\": while clients are connected (%u), only description, rate, "
            "max-connections (but to or from 1), tls and tls-authz can be changed",
            x->name, clients);
  return -EBUSY;
}

/* X was lost, and is so still: it comes back if its image, whatever that is by now, can be opened.
 */
static int
bring_back (struct plan *p, struct export *x, struct q_error *err)
{
  struct wanted *w = wanted_find (p->wanted, x->name);

  if (x->parent || (!x->configured && !w))
    return 0;
  if (w) {
    w->action = WANTED_REPLACE;
    p->summary.replaced++;
  } else
    p->summary.removed++;
  return leave (p, x, err);
}

static int
make_plan (struct plan *p, struct q_error *err)
{
  int r = 0;

  for (struct export *x = exports_next (p->reload->context.exports, NULL); x;
       x = exports_next (p->reload->context.exports, x))
    if (r == 0)
      r = compare (p, x, err);
  for (struct export *x = exports_next_lost (p->reload->context.exports, NULL); x;
       x = exports_next_lost (p->reload->context.exports, x))
    if (r == 0)
      r = bring_back (p, x, err);
  for (const struct wanted *w = p->wanted; w; w = w->next)
    p->summary.added += w->action == WANTED_ADD;
  return r;
}

/* ---- doing it -------------------------------------------------------------------------------- */

/* The key that holds for all exports without one of their own: it has been forgotten since. */
static int
load_key (struct plan *p, const struct options *opts, struct wanted *list, struct q_error *err)
{
  if (!opts->key_file || p->key)
    return 0;
  p->key = secret_from_key_file (opts->key_file, "--key-file", err);
  if (!p->key)
    return -EINVAL;
  for (struct wanted *w = list; w; w = w->next)
    if (!w->options.source.open.secret)
      w->options.source.open.secret = p->key;
  return 0;
}

/* Whether one of those that are to go has W's file open. */
static bool
is_ours (const struct plan *p, const struct wanted *w)
{
  struct stat st;

  if (w->action == WANTED_REPLACE)
    return true;
  if (stat (w->options.source.filename, &st) < 0)
    return false;
  for (const struct leaving *l = p->leaving; l; l = l->next)
    if (l->ino != 0 && l->dev == st.st_dev && l->ino == st.st_ino)
      return true;
  return false;
}

/* Whether W's image can be read, though we have it open and locked. */
static int
try_image (const struct wanted *w, struct q_error *err)
{
  struct q_open_options o = w->options.source.open;
  struct q_error ignored;
  struct q_image *img;

  o.read_only = true;
  o.lock = Q_LOCK_OFF;
  o.state_dir = NULL;
  int r = q_open (&img, w->options.source.filename, &o, err);
  if (r == 0)
    q_close (&img, &ignored);
  return r;
}

/* Everything that can go wrong before anything has been changed. */
static int
prepare (struct plan *p, struct q_error *err)
{
  int r = 0;

  for (struct wanted *w = p->wanted; w && r == 0; w = w->next) {
    if (w->action != WANTED_ADD && w->action != WANTED_REPLACE)
      continue;
    r = load_key (p, p->options, p->wanted, err);
    if (r == 0 && is_ours (p, w)) {
      w->late = true;
      r = try_image (w, err);
    } else if (r == 0)
      r = exports_prepare (p->reload->context.exports, &w->options, &w->prepared, err);
  }
  return r;
}

/* Brings back what has been removed. */
static void
undo (struct plan *p)
{
  struct exports *set = p->reload->context.exports;
  struct q_error err = { "" };
  int r = 0;

  for (struct wanted *w = p->wanted; w; w = w->next)
    if (w->late && w->prepared) {
      exports_abandon (w->prepared);
      w->prepared = NULL;
    }
  secret_free (p->key);
  p->key = NULL;
  if (!p->before)
    r = serve_all (p->old, p->reload->context.tls, collect, &p->before, &err);
  if (r == 0)
    r = load_key (p, p->old, p->before, &err);
  for (const struct leaving *l = p->leaving; l; l = l->next) {
    const struct wanted *w = wanted_find (p->before, l->name);
    if (!l->gone)
      continue;
    if (r == 0 && w)
      r = exports_add (set, &w->options, &err);
    if (r < 0 || !w)
      log_error ("export \"%s\" cannot be brought back: %s", l->name, err.text);
    r = 0;
  }
}

static int
remove_one (struct plan *p, struct leaving *l, bool hard, struct q_error *err)
{
  struct q_error why = { "" };
  int r = exports_remove_id (p->reload->context.exports, l->name, l->id, hard, &why);

  if (r == -EBUSY || r == -ENOENT) {
    *err = why;
    return r;
  }
  l->gone = true;
  if (r < 0)
    log_error ("%s", why.text); /* it is gone nevertheless */
  return 0;
}

/* Removes those whose image, or name, is wanted by others, and opens these. */
static int
exchange (struct plan *p, struct q_error *err)
{
  bool any = false;
  int r = 0;

  for (const struct wanted *w = p->wanted; w; w = w->next)
    any = any || w->late;
  if (!any)
    return 0;
  for (struct leaving *l = p->leaving; l && r == 0; l = l->next)
    r = remove_one (p, l, l->lost || !wanted_find (p->wanted, l->name), err);
  for (struct wanted *w = p->wanted; w && r == 0; w = w->next)
    if (w->late)
      r = exports_prepare (p->reload->context.exports, &w->options, &w->prepared, err);
  if (r < 0)
    undo (p);
  return r;
}

static void
change (struct plan *p, const struct wanted *w)
{
  const struct export_options *o = &w->options;
  struct export_changes changes = {
    .description = o->description,
    .max_connections = o->max_connections,
    .rate = o->rate,
    .tls_only = o->tls_only,
    .authz = o->authz,
  };
  struct export *x = exports_get (p->reload->context.exports, o->name, strlen (o->name));

  if (x && export_change (x, &changes) < 0)
    log_error ("export \"%s\": not changed: out of memory", o->name);
  if (x)
    export_put (x);
}

/* Nothing here fails. */
static void
carry_out (struct plan *p)
{
  struct q_error err = { "" };

  for (struct wanted *w = p->wanted; w; w = w->next) {
    if (w->prepared)
      exports_commit (w->prepared);
    w->prepared = NULL;
    if (w->action == WANTED_CHANGE)
      change (p, w);
  }
  for (struct leaving *l = p->leaving; l; l = l->next)
    if (!l->gone && remove_one (p, l, true, &err) < 0)
      log_info ("%s", err.text); /* a command was faster */
}

static void
plan_free (struct plan *p)
{
  for (struct wanted *w = p->wanted; w; w = w->next)
    if (w->prepared)
      exports_abandon (w->prepared);
  wanted_free (p->wanted);
  wanted_free (p->before);
  while (p->leaving) {
    struct leaving *l = p->leaving;
    p->leaving = l->next;
    free (l->name);
    free (l);
  }
  secret_free (p->key);
  if (p->options) {
    options_free (p->options);
    free (p->options);
  }
}

static int
execute (struct plan *p, struct q_error *err)
{
  int r = read_options (p, err);

  if (r == 0)
    r = recover (p, err);
  if (r == 0)
    r = make_plan (p, err);
  if (r == 0)
    r = prepare (p, err);
  if (r == 0)
    r = exchange (p, err);
  if (r < 0)
    return r;
  carry_out (p);
  warn_of_others (p->old, p->options);
  return 0;
}

int
reload_config (struct reload *r, struct reload_summary *summary, struct q_error *err)
{
  struct plan p = { .reload = r };

  pthread_mutex_lock (&r->lock);
  p.old = r->options ? r->options : r->context.options;
  int result = execute (&p, err);
  if (result == 0) {
    struct options *old = r->options;
    r->options = p.options;
    p.options = old;
    const struct reload_summary *s = &p.summary;
    log_info ("configuration reloaded: %u export%s added, %u changed, %u replaced, %u removed, %u "
              "as before",
              s->added, s->added == 1 ? "" : "s", s->changed, s->replaced, s->removed,
              s->unchanged);
  } else
    log_error ("the configuration stays as it was: %s", err->text);
  if (summary)
    *summary = p.summary;
  plan_free (&p);
  pthread_mutex_unlock (&r->lock);
  return result;
}

/* ---- in the background ----------------------------------------------------------------------- */

static bool
is_wanted_again (struct reload *r)
{
  pthread_mutex_lock (&r->begin_lock);
  bool again = r->again;
  r->again = false;
  r->running = again;
  pthread_mutex_unlock (&r->begin_lock);
  return again;
}

static void *
run (void *arg)
{
  struct reload *r = arg;
  struct q_error err = { "" };

  do {
    service_reloading ();
    reload_config (r, NULL, &err);
    service_reloaded ();
  } while (is_wanted_again (r));
  return NULL;
}

static int
start_thread (struct reload *r)
{
  sigset_t all, before;

  /* Signals are the main loop's. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  int e = pthread_create (&r->thread, NULL, run, r);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  return e;
}

void
reload_begin (struct reload *r)
{
  pthread_mutex_lock (&r->begin_lock);
  bool running = r->running;
  r->again = running;
  r->running = true;
  pthread_mutex_unlock (&r->begin_lock);
  if (running)
    return;
  if (r->started)
    pthread_join (r->thread, NULL);
  int e = start_thread (r);
  r->started = e == 0;
  if (e != 0) {
    r->running = false;
    log_error ("the configuration stays as it was: cannot create a thread: %s", strerror (e));
  }
}

int
reload_hold (struct reload *r)
{
  return r ? -pthread_mutex_trylock (&r->lock) : 0;
}

void
reload_release (struct reload *r)
{
  if (r)
    pthread_mutex_unlock (&r->lock);
}

struct reload *
reload_new (const struct reload_context *context)
{
  struct reload *r = calloc (1, sizeof *r);

  if (!r)
    return NULL;
  r->context = *context;
  pthread_mutex_init (&r->lock, NULL);
  pthread_mutex_init (&r->begin_lock, NULL);
  return r;
}

void
reload_end (struct reload *r)
{
  if (r && r->started)
    pthread_join (r->thread, NULL);
  if (r)
    r->started = false;
}

void
reload_free (struct reload *r)
{
  if (!r)
    return;
  reload_end (r);
  if (r->options) {
    options_free (r->options);
    free (r->options);
  }
  pthread_mutex_destroy (&r->lock);
  pthread_mutex_destroy (&r->begin_lock);
  free (r);
}
