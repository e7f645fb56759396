/* SPDX-License-Identifier: BSD-3-Clause */

#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "poller.h"

/* The first window; one that has shrunk below it is none. */
#define MIN_WINDOW_NS 8000

/* Looking twice takes a microsecond.  If it took this long, somebody else had the processor. */
#define PREEMPTED_NS 100000

/* Loops of this process that are polling now, and may at most. */
static _Atomic int spinning;
static _Atomic int max_spinning;

static uint64_t
now_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool
begin_spinning (struct poller *p)
{
  int n = atomic_load_explicit (&spinning, memory_order_relaxed);

  if (p->spinning)
    return true;
  do
    if (n >= atomic_load_explicit (&max_spinning, memory_order_relaxed))
      return false;
  while (!atomic_compare_exchange_weak (&spinning, &n, n + 1));
  p->spinning = true;
  ev_idle_start (p->ev, &p->spin);
  return true;
}

static void
end_spinning (struct poller *p)
{
  if (!p->spinning)
    return;
  p->spinning = false;
  ev_idle_stop (p->ev, &p->spin);
  atomic_fetch_sub (&spinning, 1);
}

/* Nothing happened for WAITED: was the window right? */
static void
adapt (struct poller *p, uint64_t waited)
{
  if (waited <= p->window_ns)
    return;
  if (waited > p->max_ns)
    p->window_ns = p->window_ns / 2 < MIN_WINDOW_NS ? 0 : p->window_ns / 2;
  else
    p->window_ns = p->window_ns == 0 ? MIN_WINDOW_NS : p->window_ns * 2;
  if (p->window_ns > p->max_ns)
    p->window_ns = p->max_ns;
}

static void
on_before (struct ev_loop *ev, ev_prepare *w, int revents)
{
  struct poller *p = w->data;
  uint64_t now = now_ns ();

  (void)ev;
  (void)revents;
  if (!p->found_nothing)
    p->last_event = now;
  else if (p->spinning && now - p->last_look > PREEMPTED_NS)
    p->backoff_until = now + POLLER_BACKOFF_MS * UINT64_C (1000000);
  p->found_nothing = false;
  p->last_look = now;
  if (now >= p->last_event + p->window_ns || now < p->backoff_until || !begin_spinning (p)) {
    end_spinning (p);
    p->sleeping = true;
  }
}

static void
on_after (struct ev_loop *ev, ev_check *w, int revents)
{
  struct poller *p = w->data;

  (void)ev;
  (void)revents;
  if (!p->sleeping)
    return;
  p->sleeping = false;
  adapt (p, now_ns () - p->last_event);
}

static void
on_spin (struct ev_loop *ev, ev_idle *w, int revents)
{
  struct poller *p = w->data;

  (void)ev;
  (void)revents;
  p->found_nothing = true;
}

void
poller_start (struct poller *p, struct ev_loop *ev, unsigned max_us)
{
  cpu_set_t cpus;

  *p = (struct poller){ .ev = ev, .max_ns = max_us * UINT64_C (1000) };
  if (max_us == 0)
    return;
  if (sched_getaffinity (0, sizeof cpus, &cpus) == 0)
    atomic_store (&max_spinning, CPU_COUNT (&cpus) - 1);
  ev_prepare_init (&p->before, on_before);
  ev_check_init (&p->after, on_after);
  ev_idle_init (&p->spin, on_spin);
  p->before.data = p->after.data = p->spin.data = p;
  ev_prepare_start (ev, &p->before);
  ev_check_start (ev, &p->after);
}

void
poller_stop (struct poller *p)
{
  if (p->max_ns == 0)
    return;
  end_spinning (p);
  ev_prepare_stop (p->ev, &p->before);
  ev_check_stop (p->ev, &p->after);
}
