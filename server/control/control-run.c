/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <signal.h>

#include "control-run.h"

static void *
run (void *arg)
{
  struct runner *r = arg;

  pthread_mutex_lock (&r->lock);
  for (;;) {
    while (!r->first && !r->stop)
      pthread_cond_wait (&r->changed, &r->lock);
    if (r->stop)
      break;
    struct call *call = r->first;
    r->first = call->next;
    if (!r->first)
      r->last = NULL;
    r->running = call;
    pthread_mutex_unlock (&r->lock);
    call->result = call->command->run (&call->public, call->args, &call->ret, &call->err);
    pthread_mutex_lock (&r->lock);
    r->running = NULL;
    call->next = r->done;
    r->done = call;
    r->wake (r->opaque);
  }
  pthread_mutex_unlock (&r->lock);
  return NULL;
}

int
runner_start (struct runner *r, void (*wake) (void *opaque), void *opaque)
{
  sigset_t all, old;

  *r = (struct runner){ .wake = wake, .opaque = opaque };
  pthread_mutex_init (&r->lock, NULL);
  pthread_cond_init (&r->changed, NULL);
  /* Signals are the main thread's. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  int e = pthread_create (&r->thread, NULL, run, r);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  r->started = e == 0;
  return -e;
}

/* The lock is held: nobody wants any more what has been submitted so far. */
static void
hurry (struct runner *r)
{
  if (r->running)
    atomic_store (&r->running->public.unwanted, true);
  for (struct call *call = r->first; call; call = call->next)
    atomic_store (&call->public.unwanted, true);
}

void
runner_submit (struct runner *r, struct call *call)
{
  call->next = NULL;
  pthread_mutex_lock (&r->lock);
  if (call->command->pace == CONTROL_URGENT)
    hurry (r);
  if (r->last)
    r->last->next = call;
  else
    r->first = call;
  r->last = call;
  pthread_cond_signal (&r->changed);
  pthread_mutex_unlock (&r->lock);
}

struct call *
runner_take (struct runner *r)
{
  pthread_mutex_lock (&r->lock);
  struct call *done = r->done;
  r->done = NULL;
  pthread_mutex_unlock (&r->lock);
  return done;
}

struct call *
runner_stop (struct runner *r)
{
  struct call *left;

  pthread_mutex_lock (&r->lock);
  r->stop = true;
  hurry (r);
  pthread_cond_signal (&r->changed);
  pthread_mutex_unlock (&r->lock);
  if (r->started)
    pthread_join (r->thread, NULL);
  left = r->done;
  while (r->first) {
    struct call *call = r->first;
    r->first = call->next;
    call->result = -ESHUTDOWN;
    call->next = left;
    left = call;
  }
  pthread_mutex_destroy (&r->lock);
  pthread_cond_destroy (&r->changed);
  return left;
}
