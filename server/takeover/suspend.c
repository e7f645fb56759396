/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Exports whose images are closed for a while, for another process to go on with.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "export.h"
#include "lock.h"
#include "log.h"
#include "status.h"
#include "wanted.h"

/* Seconds that those who look at an export, without being its clients, may take. */
#define PATIENCE 10

static int
fail (struct q_error *err, int r, const char *name, const char *what)
{
  snprintf (err->text, sizeof err->text, "export \"%s\": %s", name, what);
  return r;
}

/* One that could not be opened again has no image, and only keeps its name. */
static bool
is_lost (const struct export *x)
{
  return x->state == EXPORT_LEAVING && !x->img;
}

/* Nobody adds, removes or changes exports from here on. */
static int
lock_all (struct exports *set, const struct timespec *deadline, struct q_error *err)
{
  if (pthread_mutex_timedlock (&set->removing, deadline) != 0) {
    snprintf (err->text, sizeof err->text, "an export is being removed");
    return -EBUSY;
  }
  if (pthread_mutex_timedlock (&set->snapshots, deadline) != 0) {
    snprintf (err->text, sizeof err->text, "an export, or a snapshot, is being made");
    pthread_mutex_unlock (&set->removing);
    return -EBUSY;
  }
  return 0;
}

/* Undoes lock_all. */
static void
set_state (struct exports *set, int state)
{
  pthread_mutex_lock (&set->lock);
  set->state = state;
  pthread_cond_broadcast (&set->resumed);
  pthread_mutex_unlock (&set->lock);
  pthread_mutex_unlock (&set->snapshots);
  pthread_mutex_unlock (&set->removing);
}

/* Under the lock: nobody but sessions, which are still, refers to an export any more. */
static int
wait_for_others (struct exports *set, const struct timespec *deadline, struct q_error *err)
{
  for (struct export *x = set->first; x;) {
    if (x->state != EXPORT_SERVED && !is_lost (x))
      return fail (err, -EBUSY, x->name, "is being added or removed");
    if (is_lost (x) || x->refs == x->connections)
      x = x->next;
    else if (pthread_cond_timedwait (&set->unused, &set->lock, deadline) == ETIMEDOUT)
      return fail (err, -EBUSY, x->name, "is being looked at by a command");
    else
      x = set->first;
  }
  return 0;
}

/* Whether X is something that another process can have. */
static int
check_one (const struct export *x, struct q_error *err)
{
  if (x->base)
    return fail (err, -ENOTSUP, x->name,
                 "shows the image of another export, and cannot be handed over: remove it first");
  if (x->recipe->options.throw_away)
    return fail (err, -ENOTSUP, x->name,
                 "what is written to it is in a temporary overlay, which cannot be handed over");
  return 0;
}

int
exports_check_suspend (struct exports *set, struct q_error *err)
{
  int r = 0;

  pthread_mutex_lock (&set->lock);
  for (const struct export *x = set->first; x && r == 0; x = x->next)
    if (x->state == EXPORT_SERVED)
      r = check_one (x, err);
  pthread_mutex_unlock (&set->lock);
  return r;
}

/* All files of X's image must be those that were opened. */
static int
guard (const struct export *x, int *guards, unsigned *n, unsigned max, struct q_error *err)
{
  int r = check_one (x, err);

  if (r == 0)
    r = q_lock_guards (x->img, guards + *n, max - *n, err);
  if (r > 0)
    *n += (unsigned)r;
  return r < 0 ? r : 0;
}

/* So that a disk that is full, or broken, is found out while images are open, and those who wrote
 * can still be told. */
static int
flush_all (struct exports *set, struct q_error *err)
{
  int r = 0;

  for (struct export *x = set->first; x && r == 0; x = x->next)
    if (!is_lost (x) && !x->read_only && (r = q_flush (x->img)) < 0)
      fail (err, r, x->name, strerror (-r));
  return r;
}

static int
suspend_one (struct export *x, struct q_error *err)
{
  export_quiesce (x);
  for (unsigned i = 0; i < x->n_contexts; i++) {
    q_bitmap_release (x->contexts[i].bitmap);
    x->contexts[i].bitmap = NULL;
  }
  watermark_detach (x->watermark);
  return q_close (&x->img, err);
}

/* X gets the image, and what hangs on it, of an export that was made as it was. */
static int
resume_one (struct export *x, struct q_error *err)
{
  struct export *fresh;
  int r = export_make (x->set, &x->recipe->options, &fresh, err);

  if (r < 0)
    return r;
  if (fresh->dev != x->dev || fresh->ino != x->ino || fresh->size != x->size ||
      fresh->n_contexts != x->n_contexts)
    r = fail (err, -ESTALE, x->name, "its image is not what it was");
  else {
    struct q_image *img = x->img;
    struct slice *slice = x->slice;
    pthread_mutex_lock (&x->set->lock); /* others tell by its image that it is not lost */
    x->img = fresh->img;
    x->slice = fresh->slice;
    fresh->img = img;
    fresh->slice = slice;
    for (unsigned i = 0; i < x->n_contexts; i++) {
      x->contexts[i].bitmap = fresh->contexts[i].bitmap;
      fresh->contexts[i].bitmap = NULL;
    }
    pthread_mutex_unlock (&x->set->lock);
  }
  struct q_error ignored;
  export_close (fresh, &ignored); /* its watermark lets go of the image */
  if (r == 0)
    watermark_attach (x->watermark, x->img);
  return r;
}

/* The image stays locked meanwhile, but whoever tries to open it, and is kept out by that, holds
 * locks that keep us out for a moment: it is no reason to lose the export. */
static int
reopen (struct export *x, struct q_error *err)
{
  const struct timespec moment = { .tv_nsec = 20000000 };
  int r = resume_one (x, err);

  for (unsigned tries = 0; r == -EAGAIN && tries < 50; tries++) {
    nanosleep (&moment, NULL);
    r = resume_one (x, err);
  }
  return r;
}

static void
close_guards (const int *guards, unsigned n)
{
  for (unsigned i = 0; i < n; i++)
    close (guards[i]);
}

int
exports_suspend (struct exports *set, int *guards, unsigned max, struct q_error *err)
{
  struct timespec deadline;
  unsigned n = 0;

  clock_gettime (CLOCK_REALTIME, &deadline);
  deadline.tv_sec += PATIENCE;
  int r = lock_all (set, &deadline, err);
  if (r < 0)
    return r;
  pthread_mutex_lock (&set->lock);
  set->state = EXPORTS_SUSPENDED;
  r = wait_for_others (set, &deadline, err);
  pthread_mutex_unlock (&set->lock);
  /* The list does not change any more. */
  for (struct export *x = set->first; x && r == 0; x = x->next)
    if (!is_lost (x))
      r = guard (x, guards, &n, max, err);
  if (r == 0)
    r = flush_all (set, err);
  if (r < 0) {
    close_guards (guards, n);
    set_state (set, EXPORTS_OPEN);
    return r;
  }
  for (struct export *x = set->first; x; x = x->next) {
    int closed = is_lost (x) ? 0 : suspend_one (x, err);
    r = r < 0 ? r : closed;
  }
  if (r == 0)
    return (int)n;
  /* What could not be flushed is for the clients to hear of: from this server. */
  exports_resume (set, guards, n);
  return r;
}

/* X cannot be opened any more: its clients are to go. */
static void
give_up (struct exports *set, struct export *x)
{
  pthread_mutex_lock (&set->lock);
  x->state = EXPORT_LEAVING;
  atomic_store (&x->leaving, true);
  if (set->sweep)
    set->sweep (set->opaque);
  pthread_mutex_unlock (&set->lock);
}

void
exports_resume (struct exports *set, const int *guards, unsigned n)
{
  struct q_error err = { "" };

  for (unsigned i = 0; i < n; i++)
    if (q_lock_adopt (guards[i]) < 0)
      log_warning ("a lock was lost: out of memory");
  for (struct export *x = set->first; x; x = x->next) {
    if (!is_lost (x) && reopen (x, &err) < 0) {
      log_error ("export \"%s\" cannot be opened again: %s", x->name, err.text);
      give_up (set, x);
    }
  }
  q_lock_disown ();
  set_state (set, EXPORTS_OPEN);
}

/* Under the lock. */
static struct export *
find_lost (struct exports *set, uint64_t id)
{
  struct export *x = set->first;

  while (x && !(x->id == id && is_lost (x)))
    x = x->next;
  return x;
}

int
exports_recover (struct exports *set, uint64_t id, struct q_error *err)
{
  /* From here on nobody removes it, nor the snapshot that it shows. */
  pthread_mutex_lock (&set->removing);
  pthread_mutex_lock (&set->snapshots);
  pthread_mutex_lock (&set->lock);
  struct export *x = find_lost (set, id);
  while (x && x->refs > 0) /* its clients are still on their way out */
    pthread_cond_wait (&set->unused, &set->lock);
  pthread_mutex_unlock (&set->lock);
  int r = x ? reopen (x, err) : fail (err, -ENOENT, "", "is not lost");
  if (r == 0) {
    pthread_mutex_lock (&set->lock);
    x->state = EXPORT_SERVED;
    atomic_store (&x->leaving, false);
    pthread_mutex_unlock (&set->lock);
  }
  pthread_mutex_unlock (&set->snapshots);
  pthread_mutex_unlock (&set->removing);
  return r;
}

const struct export *
exports_suspended (struct exports *set, uint64_t id)
{
  const struct export *x = set->first; /* the list does not change */

  while (x && x->id != id)
    x = x->next;
  return x;
}

void
exports_leave (struct exports *set)
{
  set_state (set, EXPORTS_GONE);
}
