/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Fuzzing the order of threads: see schedule.h.
 *
 * Two kinds of choices.  Each run has a few favourite places, where threads are held for long: so
 * that the two halves of a race stand apart by more than luck.  Everywhere else they mostly go on.
 */

#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "schedule.h"

#ifdef NBDCOW_PROBES

#include "probe.h"

#define MAX_PLACES 64

static _Atomic uint64_t run_seed;
static struct {
  _Atomic (const char *) name;
  atomic_ulong count;
} places[MAX_PLACES];
static atomic_uint threads;
static _Thread_local uint64_t state;
static void (*_Atomic watcher) (const char *place);

static uint64_t
mix (uint64_t v)
{
  v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9ull;
  v = (v ^ v >> 27) * 0x94d049bb133111ebull;
  return v ^ v >> 31;
}

/* The place's number; the same string has one address in the engine, or few. */
static unsigned
number_of (const char *place)
{
  for (unsigned i = 0; i < MAX_PLACES; ++i) {
    const char *there = atomic_load_explicit (&places[i].name, memory_order_relaxed);

    if (!there && atomic_compare_exchange_strong (&places[i].name, &there, place))
      there = place;
    if (there == place || strcmp (there, place) == 0)
      return i;
  }
  return MAX_PLACES - 1;
}

static uint64_t
hash_name (const char *place)
{
  uint64_t h = 0;

  while (*place)
    h = mix (h ^ (uint8_t)*place++);
  return h;
}

static void
sleep_for (uint64_t microseconds)
{
  struct timespec t = { .tv_nsec = (long)microseconds * 1000 };

  nanosleep (&t, NULL);
}

void
q_probe_hook (const char *place)
{
  uint64_t seed = atomic_load_explicit (&run_seed, memory_order_relaxed), choice;
  void (*fn) (const char *) = atomic_load_explicit (&watcher, memory_order_relaxed);
  bool favourite;

  if (fn)
    fn (place);
  if (seed == 0)
    return;
  atomic_fetch_add_explicit (&places[number_of (place)].count, 1, memory_order_relaxed);
  if (state == 0)
    state = mix (seed + atomic_fetch_add (&threads, 1)) | 1;
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  choice = mix (state) % 1000;
  favourite = mix (seed ^ hash_name (place)) % 8 == 0;
  if (favourite && choice < 300)
    sleep_for (50 + choice);
  else if (choice < 10)
    sleep_for (20);
  else if (choice < 150)
    sched_yield ();
}

void
schedule_fuzz (uint64_t seed)
{
  atomic_store (&run_seed, seed);
}

void
schedule_watch (void (*fn) (const char *place))
{
  atomic_store (&watcher, fn);
}

void
schedule_report (FILE *out)
{
  for (unsigned i = 0; i < MAX_PLACES && atomic_load (&places[i].name); ++i)
    fprintf (out, "  %10lu  %s\n", atomic_load (&places[i].count), atomic_load (&places[i].name));
}

bool
schedule_has_probes (void)
{
  return true;
}

#else

void
schedule_fuzz (uint64_t seed)
{
  (void)seed;
}

void
schedule_watch (void (*fn) (const char *place))
{
  (void)fn;
}

void
schedule_report (FILE *out)
{
  (void)out;
}

bool
schedule_has_probes (void)
{
  return false;
}

#endif
