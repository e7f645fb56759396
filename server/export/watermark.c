/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One lock guards all watermarks.  It is taken before the engine's own, under which passed() is
 * called, and before a room's.  What other threads ask for comes in by atomics, so that nobody
 * waits for the main loop, which holds the lock while it logs.
 */

#include <errno.h>
#include <ev.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "control.h"
#include "describe.h"
#include "hooks.h"
#include "keyval.h"
#include "log.h"
#include "room.h"
#include "watermark.h"

/* Seconds between two looks at how large a device is. */
#define LOOK_INTERVAL 2.0

#define NEVER UINT64_MAX

/* A command that is being run; it may outlive its watermark. */
struct hook {
  uint32_t id;
  struct watermark *w; /* NULL: that has gone */
  char *name;
  struct hook *next;
};

struct watermark {
  struct watermark *next, **prev;
  char *name, *exec;   /* exec may be NULL */
  struct q_image *img; /* NULL: it is closed for a while */
  struct watermark_options options;
  atomic_bool look;         /* the main loop has to: something was passed, or is to be watched */
  struct room *room;        /* the export's; may be NULL */
  atomic_bool armed;        /* watermark_arm was called */
  uint64_t reported;        /* where the offset was when the watermark was last told; 0: never */
  uint64_t mark;            /* what is told next, by the options; NEVER: nothing */
  uint64_t device;          /* the size of the device that it was reckoned from */
  _Atomic uint64_t asked;   /* by watermark_ask; 0: nothing */
  _Atomic uint64_t watched; /* what the engine was told to watch */
  _Atomic uint64_t n_passed, n_failed;
  struct hook *hook;  /* NULL: none is being run */
  bool again;         /* ... and another one is to be */
  uint64_t last_mark; /* what it is about */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct watermark *all;
static struct hook *hooks;
static struct ev_loop *_Atomic loop; /* NULL: it does not run */
static ev_async news;
static ev_timer look_again;

/* ---- amounts --------------------------------------------------------------------------------- */

bool
watermark_parse (const char *text, struct q_amount *amount)
{
  char *end;

  if (*text >= '0' && *text <= '9') {
    unsigned long percent = strtoul (text, &end, 10);
    if (strcmp (end, "%") == 0) {
      *amount = (struct q_amount){ .percent = (unsigned)percent };
      return percent >= 1 && percent <= 100;
    }
  }
  *amount = (struct q_amount){ 0 };
  return parse_size (text, &amount->bytes) && amount->bytes > 0;
}

/* ---- what is watched ------------------------------------------------------------------------- */

static void
wake (struct watermark *w)
{
  struct ev_loop *ev = atomic_load (&loop);

  atomic_store (&w->look, true);
  if (ev)
    ev_async_send (ev, &news);
}

/* Called with the allocator's lock held. */
static void
passed (void *opaque)
{
  wake (opaque);
}

/* What is told next.  With the lock, on the main loop's thread. */
static void
rearm (struct watermark *w)
{
  const struct watermark_options *o = &w->options;

  if (!w->img)
    return; /* watermark_attach sees to it */
  uint64_t at = q_amount_bytes (w->img, &o->at), next;
  w->device = q_device_size (w->img);
  w->mark = NEVER;
  if (atomic_load (&w->armed) && at > 0)
    w->mark = q_next_mark (at, q_amount_bytes (w->img, &o->repeat), w->reported);
  next = atomic_load (&w->asked);
  if (next == 0 || w->mark < next)
    next = w->mark;
  atomic_store (&w->watched, next);
  q_watch_highest (w->img, next, next == NEVER ? NULL : passed, w);
}

static bool
depends_on_device (const struct watermark *w)
{
  return w->device > 0 && (w->options.at.percent > 0 || w->options.repeat.percent > 0);
}

/* ---- the command ----------------------------------------------------------------------------- */

static void run_hook (struct watermark *w);

static void
hook_free (struct hook *h)
{
  struct hook **p = &hooks;

  while (*p != h)
    p = &(*p)->next;
  *p = h->next;
  free (h->name);
  free (h);
}

static void
say_how (const char *name, int status)
{
  if (WIFSIGNALED (status))
    log_warning ("export \"%s\": the watermark's command was ended by signal %d", name,
                 WTERMSIG (status));
  else if (WEXITSTATUS (status) != 0)
    log_warning ("export \"%s\": the watermark's command ended with status %d", name,
                 WEXITSTATUS (status));
  else
    log_info ("export \"%s\": the watermark's command has ended", name);
}

/* With the lock. */
static void
hook_ended (struct hook *h, int status)
{
  struct watermark *w = h->w;

  hook_free (h);
  if (!w)
    return;
  w->hook = NULL;
  if (status != 0)
    atomic_fetch_add (&w->n_failed, 1);
  rearm (w); /* it will have grown the device */
  room_resume (w->room);
  if (w->again && w->img)
    run_hook (w);
}

static void
on_hook_ended (uint32_t id, int status)
{
  pthread_mutex_lock (&lock);
  for (struct hook *h = hooks, *next; h; h = next) {
    next = h->next;
    if (id > 0 && h->id != id)
      continue;
    if (id > 0)
      say_how (h->name, status);
    hook_ended (h, id > 0 ? status : -1);
    if (id > 0)
      break;
  }
  pthread_mutex_unlock (&lock);
}

static char *
fact (const char *name, const char *value)
{
  char *text;

  return asprintf (&text, "%s=%s", name, value) < 0 ? NULL : text;
}

static char *
number_fact (const char *name, uint64_t value)
{
  char text[24];

  snprintf (text, sizeof text, "%" PRIu64, value);
  return fact (name, text);
}

#define N_FACTS 6

/* With the lock, on the main loop's thread. */
static void
run_hook (struct watermark *w)
{
  char *facts[N_FACTS + 1] = {
    fact ("NBDCOW_EXPORT", w->name),
    fact ("NBDCOW_FILE", q_filename (w->img)),
    number_fact ("NBDCOW_HIGHEST", q_highest_offset (w->img)),
    number_fact ("NBDCOW_THRESHOLD", w->last_mark),
    number_fact ("NBDCOW_DEVICE_SIZE", q_device_size (w->img)),
    number_fact ("NBDCOW_SIZE", q_size (w->img)),
  };
  struct hook *h = calloc (1, sizeof *h);
  struct q_error err = { "out of memory" };
  bool complete = h && (h->name = strdup (w->name)) != NULL;
  int64_t id = -ENOMEM;

  w->again = false;
  for (int i = 0; i < N_FACTS; i++)
    complete = complete && facts[i];
  if (complete)
    id = hooks_run (w->exec, (const char *const *)facts, &err);
  for (int i = 0; i < N_FACTS; i++)
    free (facts[i]);
  if (id < 0) {
    log_error ("export \"%s\": cannot run the watermark's command: %s", w->name, err.text);
    atomic_fetch_add (&w->n_failed, 1);
    if (h)
      free (h->name);
    free (h);
    return;
  }
  h->id = (uint32_t)id;
  h->w = w;
  h->next = hooks;
  hooks = h;
  w->hook = h;
}

/* ---- telling --------------------------------------------------------------------------------- */

/* As QEMU tells it (qapi/block-core.json). */
static void
tell_threshold (const struct watermark *w, uint64_t threshold, uint64_t highest)
{
  control_event ("BLOCK_WRITE_THRESHOLD",
                 json_pack ("{s:o, s:I, s:I}", "node-name", describe_text (w->name),
                            "amount-exceeded", (json_int_t)(highest - threshold), "write-threshold",
                            (json_int_t)threshold));
}

static void
tell (struct watermark *w, uint64_t highest)
{
  uint64_t device = q_device_size (w->img);
  char of[64] = "";

  if (device > 0)
    snprintf (of, sizeof of, ", of a device of %" PRIu64, device);
  log_warning ("export \"%s\": %s is allocated up to byte %" PRIu64
               ", past the watermark of %" PRIu64 "%s",
               w->name, q_filename (w->img), highest, w->mark, of);
  tell_threshold (w, w->mark, highest);
  control_event ("NBDCOW_WATERMARK",
                 json_pack ("{s:o, s:o, s:I, s:I, s:I}", "id", describe_text (w->name), "file",
                            describe_text (q_filename (w->img)), "highest-offset",
                            (json_int_t)highest, "watermark", (json_int_t)w->mark, "device-size",
                            (json_int_t)device));
  atomic_fetch_add (&w->n_passed, 1);
  w->last_mark = w->mark;
  w->reported = highest;
  if (w->exec && w->hook)
    w->again = true;
  else if (w->exec)
    run_hook (w);
}

/* With the lock, on the main loop's thread. */
static void
look (struct watermark *w)
{
  if (!w->img)
    return;
  uint64_t highest = q_highest_offset (w->img), asked = atomic_load (&w->asked);

  if (asked > 0 && highest > asked) {
    tell_threshold (w, asked, highest);
    /* Unless somebody has asked for another one meanwhile: that is looked at next. */
    atomic_compare_exchange_strong (&w->asked, &asked, 0);
  }
  if (w->mark != NEVER && highest > w->mark)
    tell (w, highest);
  else if (w->again && !w->hook)
    run_hook (w); /* the image was closed when it was its turn */
  rearm (w);      /* and perhaps wakes us again */
  if (depends_on_device (w) && !ev_is_active (&look_again))
    ev_timer_again (atomic_load (&loop), &look_again);
}

static void
look_at_all (void)
{
  pthread_mutex_lock (&lock);
  for (struct watermark *w = all; w; w = w->next)
    if (atomic_exchange (&w->look, false))
      look (w);
  pthread_mutex_unlock (&lock);
}

static void
on_news (struct ev_loop *ev, ev_async *a, int revents)
{
  (void)ev;
  (void)a;
  (void)revents;
  look_at_all ();
}

static void
on_look_again (struct ev_loop *ev, ev_timer *t, int revents)
{
  bool any = false;

  (void)revents;
  pthread_mutex_lock (&lock);
  for (struct watermark *w = all; w; w = w->next) {
    if (!depends_on_device (w))
      continue;
    any = true;
    if (w->img && q_device_size (w->img) != w->device)
      rearm (w);
  }
  pthread_mutex_unlock (&lock);
  if (!any)
    ev_timer_stop (ev, t);
}

/* ---- life ------------------------------------------------------------------------------------ */

struct watermark *
watermark_new (const char *name, struct q_image *img, struct room *room,
               const struct watermark_options *options)
{
  struct watermark *w = calloc (1, sizeof *w);

  if (!w)
    return NULL;
  w->img = img;
  w->room = room;
  w->options = *options;
  w->mark = NEVER;
  atomic_store (&w->watched, NEVER);
  w->name = strdup (name);
  w->exec = options->exec ? strdup (options->exec) : NULL;
  if (!w->name || (options->exec && !w->exec)) {
    free (w->name);
    free (w->exec);
    free (w);
    return NULL;
  }
  pthread_mutex_lock (&lock);
  w->next = all;
  w->prev = &all;
  if (all)
    all->prev = &w->next;
  all = w;
  pthread_mutex_unlock (&lock);
  return w;
}

void
watermark_arm (struct watermark *w)
{
  atomic_store (&w->armed, true);
  wake (w);
}

void
watermark_ask (struct watermark *w, uint64_t threshold)
{
  atomic_store (&w->asked, threshold);
  wake (w);
}

uint64_t
watermark_asked (const struct watermark *w)
{
  return atomic_load (&w->asked);
}

uint64_t
watermark_next (const struct watermark *w)
{
  uint64_t watched = atomic_load (&w->watched);
  return watched == NEVER ? 0 : watched;
}

uint64_t
watermark_passed (const struct watermark *w)
{
  return atomic_load (&w->n_passed);
}

uint64_t
watermark_failed (const struct watermark *w)
{
  return atomic_load (&w->n_failed);
}

void
watermark_detach (struct watermark *w)
{
  if (!w)
    return;
  pthread_mutex_lock (&lock);
  if (w->img)
    q_watch_highest (w->img, 0, NULL, NULL);
  w->img = NULL;
  pthread_mutex_unlock (&lock);
}

void
watermark_attach (struct watermark *w, struct q_image *img)
{
  if (!w)
    return;
  pthread_mutex_lock (&lock);
  w->img = img;
  pthread_mutex_unlock (&lock);
  wake (w);
}

void
watermark_free (struct watermark *w)
{
  if (!w)
    return;
  watermark_detach (w);
  pthread_mutex_lock (&lock);
  if (w->hook)
    w->hook->w = NULL;
  *w->prev = w->next;
  if (w->next)
    w->next->prev = w->prev;
  pthread_mutex_unlock (&lock);
  free (w->name);
  free (w->exec);
  free (w);
}

void
watermarks_start (struct ev_loop *ev)
{
  ev_async_init (&news, on_news);
  ev_async_start (ev, &news);
  hooks_start (ev, on_hook_ended);
  ev_init (&look_again, on_look_again);
  look_again.repeat = LOOK_INTERVAL;
  atomic_store (&loop, ev);
  ev_async_send (ev, &news); /* what was armed before */
}

void
watermarks_stop (void)
{
  struct ev_loop *ev = atomic_load (&loop);

  if (!ev)
    return;
  look_at_all (); /* what was passed in the end is told as well */
  atomic_store (&loop, NULL);
  pthread_mutex_lock (&lock);
  while (hooks) {
    if (hooks->w)
      hooks->w->hook = NULL;
    hook_free (hooks);
  }
  pthread_mutex_unlock (&lock);
  hooks_stop ();
  ev_async_stop (ev, &news);
  ev_timer_stop (ev, &look_again);
}
