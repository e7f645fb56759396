/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The gate: stopping every change of an image for a moment.
 *
 * Whoever changes guest data or a mapping is inside the gate from before it looks at the mapping
 * until it has published the new one (q_write_begin to commit or abort; one step of zero.c).
 * Whoever needs the mapping still, between two writes, closes the gate.
 *
 * 1. When q_gate_close has returned, nobody is inside, and nobody gets in before q_gate_open.
 * 2. Nobody inside waits for something that only comes when the gate opens: the gate is the first
 *    thing that is taken (gate -> claim -> pin -> table -> allocator), and nobody enters twice
 *    unless with Q_NOWAIT.
 * 3. Whoever has closed it does not wait for pins: those who wait to enter may hold one.
 * 4. There is one closer at a time; another one waits.
 * 5. Passing an open gate writes no cache line that another thread writes.
 *
 * Each image counts who is inside in several counters, one a cache line; a thread uses the one that
 * its number falls on.  Entering counts, then looks whether the gate is closed; closing marks, then
 * sums up (both sequentially consistent): one of the two sees the other.  A plan may end on another
 * thread than it began on, so only the sum of the counters means something.  It can be read counter
 * by counter: while the gate is closed counters only fall, but for those who come to see that it is
 * closed, which count up before they count down.  So what is read is never less than the truth.
 *
 * Readers do not come here, and are not held up.
 */

#include <errno.h>

#include "image.h"

static _Atomic uint64_t threads; /* that there have been */
_Thread_local uint64_t q_thread_number;

uint64_t
q_thread_enroll (void)
{
  q_thread_number = atomic_fetch_add_explicit (&threads, 1, memory_order_relaxed) + 1;
  return q_thread_number;
}

static _Atomic uint64_t *
counter (struct q_gate *g)
{
  return &g->inside[q_thread_slot ()].count;
}

void
q_gate_init (struct q_gate *g)
{
  for (unsigned i = 0; i < Q_GATE_COUNTERS; ++i)
    atomic_init (&g->inside[i].count, 0);
  atomic_init (&g->closed, false);
  pthread_mutex_init (&g->lock, NULL);
  pthread_cond_init (&g->changed, NULL);
}

void
q_gate_destroy (struct q_gate *g)
{
  pthread_mutex_destroy (&g->lock);
  pthread_cond_destroy (&g->changed);
}

/* One less inside; whoever is closing may have waited for that. */
static void
step_out (struct q_gate *g)
{
  atomic_fetch_sub (counter (g), 1);
  if (!atomic_load (&g->closed))
    return;
  pthread_mutex_lock (&g->lock);
  pthread_cond_broadcast (&g->changed);
  pthread_mutex_unlock (&g->lock);
}

int
q_gate_enter (struct q_image *img, unsigned flags)
{
  struct q_gate *g = &img->gate;

  for (;;) {
    atomic_fetch_add (counter (g), 1);
    Q_PROBE ("counted, gate not looked at");
    if (!atomic_load (&g->closed))
      return 0;
    step_out (g);
    if (flags & Q_NOWAIT)
      return -EAGAIN;
    pthread_mutex_lock (&g->lock);
    while (atomic_load (&g->closed))
      pthread_cond_wait (&g->changed, &g->lock);
    pthread_mutex_unlock (&g->lock);
  }
}

void
q_gate_leave (struct q_image *img)
{
  step_out (&img->gate);
}

static bool
is_empty (const struct q_gate *g)
{
  uint64_t sum = 0;

  for (unsigned i = 0; i < Q_GATE_COUNTERS; ++i)
    sum += atomic_load (&g->inside[i].count);
  return sum == 0;
}

void
q_gate_close (struct q_image *img)
{
  struct q_gate *g = &img->gate;

  pthread_mutex_lock (&g->lock);
  while (atomic_load (&g->closed))
    pthread_cond_wait (&g->changed, &g->lock);
  atomic_store (&g->closed, true);
  Q_PROBE ("gate closed, not empty");
  while (!is_empty (g))
    pthread_cond_wait (&g->changed, &g->lock);
  pthread_mutex_unlock (&g->lock);
}

void
q_gate_open (struct q_image *img)
{
  struct q_gate *g = &img->gate;

  pthread_mutex_lock (&g->lock);
  assert (atomic_load (&g->closed));
  atomic_store (&g->closed, false);
  pthread_cond_broadcast (&g->changed);
  pthread_mutex_unlock (&g->lock);
}
