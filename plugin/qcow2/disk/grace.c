/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pins: who may still be looking at something that has been unpublished.
 *
 * Invariant 5. A map is a lease: extents and tables are valid inside a pin.  What is unpublished
 * (an evicted table, a host cluster in limbo) is reused only after the pins that are older than the
 * unpublishing have gone.
 *
 * Time is a global epoch that only moves on while nobody is pinned in the epoch before the
 * present one.  So a stamp E taken now has passed at E + 2: by then nobody is left who pinned at E
 * or before.  Each thread counts its pins by epoch in a cache line of its own; a pin writes
 * nothing that another thread writes.
 *
 *     pin:      count[e]++ (sequentially consistent), then see that the epoch is still e
 *     advance:  epoch e -> e + 1 only if count[e - 1] is 0 in every thread
 *
 * A pin that saw e after counting itself keeps the epoch from passing e + 1.  Counters are
 * indexed modulo 4: at most two epochs have pins, so a slot is empty when its turn comes again.
 */

#include <stdlib.h>
#include <time.h>

#include "image.h"

#define SLOTS 4u

struct thread_pins {
  _Atomic uint32_t count[SLOTS];
  _Atomic bool in_use;      /* by a live thread; reused after it ends */
  struct thread_pins *next; /* of all; never removed */
} __attribute__ ((aligned (64)));

struct retired {
  struct retired *next;
  void *ptr;
  void (*fn) (void *);
  uint64_t stamp;
};

static _Atomic uint64_t epoch __attribute__ ((aligned (64))) = 2;
static struct thread_pins *_Atomic all_threads __attribute__ ((aligned (64)));
static pthread_mutex_t advance_lock = PTHREAD_MUTEX_INITIALIZER;
static struct retired *retired_list; /* under advance_lock */
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static _Thread_local struct thread_pins *mine;

static void
thread_ended (void *p)
{
  struct thread_pins *t = p;

  atomic_store (&t->in_use, false);
}

static void
make_key (void)
{
  /* Without a key, the slots of threads that end are not reused: memory, not correctness. */
  if (pthread_key_create (&key, thread_ended) != 0)
    abort ();
}

static struct thread_pins *
register_thread (void)
{
  struct thread_pins *t;

  pthread_once (&key_once, make_key);
  for (t = atomic_load (&all_threads); t; t = t->next) {
    bool free_slot = false;

    if (atomic_compare_exchange_strong (&t->in_use, &free_slot, true))
      break;
  }
  if (!t) {
    if (posix_memalign ((void **)&t, 64, sizeof *t) != 0)
      abort (); /* 64 bytes once a thread: there is no way to go on without */
    for (unsigned i = 0; i < SLOTS; ++i)
      atomic_init (&t->count[i], 0);
    atomic_init (&t->in_use, true);
    t->next = atomic_load (&all_threads);
    while (!atomic_compare_exchange_weak (&all_threads, &t->next, t))
      ;
  }
  pthread_setspecific (key, t);
  mine = t;
  return t;
}

q_pin_t
q_pin (void)
{
  struct thread_pins *t = mine ? mine : register_thread ();
  uint64_t e = atomic_load_explicit (&epoch, memory_order_relaxed);

  for (;;) {
    uint64_t now;

    Q_PROBE ("pinning");
    atomic_fetch_add (&t->count[e % SLOTS], 1);
    now = atomic_load (&epoch);
    if (now == e)
      return e;
    atomic_fetch_sub_explicit (&t->count[e % SLOTS], 1, memory_order_release);
    e = now;
  }
}

void
q_unpin (q_pin_t pin)
{
  atomic_fetch_sub_explicit (&mine->count[pin % SLOTS], 1, memory_order_release);
}

uint64_t
q_grace_stamp (void)
{
  /* A read-modify-write, so that the unpublishing before it is visible to every pin that sees a
   * later epoch. */
  return atomic_fetch_add (&epoch, 0);
}

bool
q_grace_passed (uint64_t stamp)
{
  return atomic_load (&epoch) >= stamp + 2;
}

/* advance_lock held. */
static bool
advance_once (void)
{
  uint64_t e = atomic_load (&epoch);

  for (struct thread_pins *t = atomic_load (&all_threads); t; t = t->next)
    if (atomic_load (&t->count[(e - 1) % SLOTS]) != 0)
      return false;
  Q_PROBE ("before time moves on");
  atomic_store (&epoch, e + 1);
  return true;
}

/* advance_lock held: takes the retired objects whose time has come off the list. */
static struct retired *
take_passed (void)
{
  struct retired **p = &retired_list, *passed = NULL, *r;

  while ((r = *p) != NULL) {
    if (q_grace_passed (r->stamp)) {
      *p = r->next;
      r->next = passed;
      passed = r;
    } else
      p = &r->next;
  }
  return passed;
}

void
q_grace_advance (void)
{
  struct retired *passed, *r;

  if (pthread_mutex_trylock (&advance_lock) != 0)
    return; /* somebody is at it */
  if (advance_once ())
    advance_once ();
  passed = take_passed ();
  pthread_mutex_unlock (&advance_lock);

  while ((r = passed) != NULL) {
    passed = r->next;
    r->fn (r->ptr);
    free (r);
  }
}

void
q_grace_drain (void)
{
  static const struct timespec while_ = { .tv_nsec = 200000 };
  uint64_t stamp = q_grace_stamp ();

  for (q_grace_advance (); !q_grace_passed (stamp); q_grace_advance ())
    nanosleep (&while_, NULL);
}

void
q_grace_retire (void *ptr, void (*fn) (void *))
{
  struct retired *r = malloc (sizeof *r);

  if (!r) {
    /* Losing the object is better than freeing it under a reader. */
    q_log (Q_LOG_WARNING, "out of memory: a retired table is not given back");
    return;
  }
  r->ptr = ptr;
  r->fn = fn;
  r->stamp = q_grace_stamp ();
  pthread_mutex_lock (&advance_lock);
  r->next = retired_list;
  retired_list = r;
  pthread_mutex_unlock (&advance_lock);
  q_grace_advance ();
}
