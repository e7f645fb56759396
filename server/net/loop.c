/* SPDX-License-Identifier: BSD-3-Clause */

#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "conn.h"
#include "log.h"
#include "loop.h"
#include "ring.h"

/* ---- turns ----------------------------------------------------------------------------------- */

void
loop_run_later (struct loop *l, struct conn *c)
{
  if (c->is_runnable)
    return;
  c->is_runnable = true;
  c->next_runnable = NULL;
  *l->runnable_tail = c;
  l->runnable_tail = &c->next_runnable;
  ev_idle_start (l->ev, &l->idle);
}

/* After each poll: one turn for each that was waiting for one.  Those that want another get it
 * after the next poll, when everybody else has been looked after. */
static void
on_check (struct ev_loop *ev, ev_check *w, int revents)
{
  struct loop *l = w->data;
  struct conn *c = l->runnable;

  (void)revents;
  if (!c)
    return;
  l->runnable = NULL;
  l->runnable_tail = &l->runnable;
  ev_idle_stop (ev, &l->idle);
  while (c) {
    struct conn *next = c->next_runnable;
    c->is_runnable = false;
    conn_run (c);
    c = next;
  }
}

static void
on_idle (struct ev_loop *ev, ev_idle *w, int revents)
{
  (void)ev;
  (void)w;
  (void)revents;
}

/* ---- news from other threads ----------------------------------------------------------------- */

static void
wake (struct mailbox *m)
{
  struct loop *l = (struct loop *)((char *)m - offsetof (struct loop, shard.done));
  ev_async_send (l->ev, &l->async);
}

static void
step_dirty (struct loop *l)
{
  struct conn *c = l->dirty;

  l->dirty = NULL;
  while (c) {
    struct conn *next = c->next_dirty;
    c->is_dirty = false;
    conn_step (c);
    c = next;
  }
}

/* Reads came back from the ring. */
static void
on_ring (void *opaque)
{
  struct loop *l = opaque;

  step_dirty (l);
  shard_submit (&l->shard); /* those that a worker is to do again */
}

struct loop_call {
  struct loop_call *next;
  void (*fn) (struct loop *l, void *opaque);
  void *opaque;
  bool done; /* under the loop's lock */
};

void
loop_call (struct loop *l, void (*fn) (struct loop *l, void *opaque), void *opaque)
{
  struct loop_call call = { .fn = fn, .opaque = opaque };

  pthread_mutex_lock (&l->lock);
  call.next = l->calls;
  l->calls = &call;
  ev_async_send (l->ev, &l->async);
  while (!call.done)
    pthread_cond_wait (&l->called, &l->lock);
  pthread_mutex_unlock (&l->lock);
}

static void
run_calls (struct loop *l)
{
  pthread_mutex_lock (&l->lock);
  while (l->calls) {
    struct loop_call *call = l->calls;
    l->calls = call->next;
    pthread_mutex_unlock (&l->lock);
    call->fn (l, call->opaque);
    pthread_mutex_lock (&l->lock);
    call->done = true;
    pthread_cond_broadcast (&l->called);
  }
  pthread_mutex_unlock (&l->lock);
}

static void
on_async (struct ev_loop *ev, ev_async *w, int revents)
{
  struct loop *l = w->data;

  (void)ev;
  (void)revents;
  atomic_store_explicit (&l->pinged, false, memory_order_relaxed);
  shard_complete (&l->shard);
  step_dirty (l);

  pthread_mutex_lock (&l->lock);
  struct conn *incoming = l->incoming;
  bool drain = l->drain, sweep = l->sweep;
  l->incoming = NULL;
  l->sweep = false;
  pthread_mutex_unlock (&l->lock);
  while (incoming) {
    struct conn *c = incoming;
    incoming = c->next_incoming;
    c->frozen = l->frozen;
    conn_start (c);
  }
  run_calls (l);
  if (drain)
    l->shard.stopping = true;
  if (drain || sweep)
    for (struct conn *c = l->conns, *next; c; c = next) {
      next = c->next;
      if (!c->draining && (drain || conn_is_to_leave (c)))
        conn_drain (c);
    }
  if (drain)
    loop_conn_gone (l);
}

void
loop_conn_gone (struct loop *l)
{
  if (l->shard.stopping && !l->conns)
    ev_break (l->ev, EVBREAK_ALL);
}

bool
loop_add (struct loop *l, int fd, char *peer)
{
  return loop_add_saved (l, fd, peer, NULL);
}

bool
loop_add_saved (struct loop *l, int fd, char *peer, struct saved_session *saved)
{
  struct conn *c = conn_new (l, fd, peer);
  if (!c) {
    close (fd);
    free (peer);
    if (saved)
      saved_session_free (saved);
    free (saved);
    return false;
  }
  c->saved = saved;
  pthread_mutex_lock (&l->lock);
  c->next_incoming = l->incoming;
  l->incoming = c;
  pthread_mutex_unlock (&l->lock);
  ev_async_send (l->ev, &l->async);
  return true;
}

void
loop_drain (struct loop *l)
{
  pthread_mutex_lock (&l->lock);
  l->drain = true;
  pthread_mutex_unlock (&l->lock);
  ev_async_send (l->ev, &l->async);
}

void
loop_sweep (struct loop *l)
{
  pthread_mutex_lock (&l->lock);
  l->sweep = true;
  pthread_mutex_unlock (&l->lock);
  ev_async_send (l->ev, &l->async);
}

bool
loop_ping (struct loop *l)
{
  bool stuck = atomic_exchange_explicit (&l->pinged, true, memory_order_relaxed);
  ev_async_send (l->ev, &l->async);
  return !stuck;
}

/* ---- life ------------------------------------------------------------------------------------ */

/* The least that the kernel heeds, in nanoseconds. */
#define TIME_SLICE 100000

#define FLAG_RESET_ON_FORK 1

/* Turns are short, and whoever waits for one is to have it soon, also where workers and other
 * processes keep all processors busy: who asks for little time at once is given it before them, and
 * has no larger share all the same.  Linux 6.12 heeds that; older ones take no notice.  Threads
 * made by this one are as they would be else, but for a priority above the usual: that is left
 * alone. */
static void
ask_for_short_slices (void)
{
  struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attr = { .size = sizeof attr };

  if (syscall (SYS_sched_getattr, 0, &attr, sizeof attr, 0) < 0 || attr.policy != SCHED_OTHER ||
      attr.nice < 0)
    return;
  attr.flags = FLAG_RESET_ON_FORK;
  attr.runtime = TIME_SLICE;
  syscall (SYS_sched_setattr, 0, &attr, 0);
}

static void *
run (void *arg)
{
  struct loop *l = arg;
  ask_for_short_slices ();
  pthread_mutex_lock (&l->lock);
  l->running = true;
  pthread_cond_broadcast (&l->called);
  pthread_mutex_unlock (&l->lock);
  ev_run (l->ev, 0);
  ring_stop (&l->shard.ring);
  poller_stop (&l->poller);
  return NULL;
}

void
loop_free (struct loop *l)
{
  if (!l)
    return;
  shard_destroy (&l->shard);
  if (l->ev)
    ev_loop_destroy (l->ev);
  pthread_cond_destroy (&l->called);
  pthread_mutex_destroy (&l->lock);
  free (l->rx);
  free (l);
}

struct loop *
loop_start (const struct loop_options *options)
{
  struct loop *l = calloc (1, sizeof *l);
  if (!l) {
    log_error ("cannot create an event loop: out of memory");
    return NULL;
  }
  shard_init (&l->shard, options->exports, options->pool, options->max_memory, wake);
  l->shard.tls = options->tls;
  l->options = *options;
  l->runnable_tail = &l->runnable;
  pthread_mutex_init (&l->lock, NULL);
  pthread_cond_init (&l->called, NULL);
  l->ev = ev_loop_new (EVFLAG_AUTO | EVFLAG_NOENV);
  l->rx = malloc (LOOP_RX_SIZE);
  if (!l->ev || !l->rx) {
    log_error ("cannot create an event loop: out of memory or file descriptors");
    loop_free (l);
    return NULL;
  }

  ev_async_init (&l->async, on_async);
  ev_check_init (&l->check, on_check);
  ev_idle_init (&l->idle, on_idle);
  l->async.data = l->check.data = l->idle.data = l;
  ev_async_start (l->ev, &l->async);
  ev_check_start (l->ev, &l->check);
  poller_start (&l->poller, l->ev, options->poll_us);
  ring_start (&l->shard.ring, l->ev, on_ring, l);

  /* Signals are the main loop's.  The pool's threads, which are started from here, inherit that. */
  sigset_t all, before;
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  int r = pthread_create (&l->thread, NULL, run, l);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (r != 0) {
    log_error ("cannot create a thread: %s", strerror (r));
    ring_stop (&l->shard.ring);
    loop_free (l);
    return NULL;
  }
  /* Once the process is confined, it would be refused. */
  pthread_mutex_lock (&l->lock);
  while (!l->running)
    pthread_cond_wait (&l->called, &l->lock);
  pthread_mutex_unlock (&l->lock);
  return l;
}

void
loop_join (struct loop *l)
{
  pthread_join (l->thread, NULL);
}
