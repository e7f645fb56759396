/* SPDX-License-Identifier: BSD-3-Clause */

#include <time.h>

#include "rate.h"

#define SECOND INT64_C (1000000000)

/* The most that one transfer costs: a limit of a few bytes a second must not stop a client for
 * good.
 */
#define MAX_COST (60 * SECOND)

static int64_t
now (void)
{
  struct timespec ts;
  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (int64_t)ts.tv_sec * SECOND + ts.tv_nsec;
}

void
rate_charge (struct rate *r, uint64_t bytes)
{
  uint64_t limit = atomic_load_explicit (&r->bytes_per_second, memory_order_relaxed);

  if (limit == 0)
    return;
  double exact = (double)bytes * (double)SECOND / (double)limit;
  int64_t cost = exact < (double)MAX_COST ? (int64_t)exact : MAX_COST;
  int64_t time = now ();
  int64_t due = atomic_load_explicit (&r->due, memory_order_relaxed), next;
  do
    next = (due > time ? due : time) + cost;
  while (!atomic_compare_exchange_weak_explicit (&r->due, &due, next, memory_order_relaxed,
                                                 memory_order_relaxed));
}

double
rate_wait (struct rate *r)
{
  if (atomic_load_explicit (&r->bytes_per_second, memory_order_relaxed) == 0)
    return 0;
  int64_t wait = atomic_load_explicit (&r->due, memory_order_relaxed) - now ();
  return wait > 0 ? (double)wait / (double)SECOND : 0;
}
