/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How long a job may have a worker at a time: what takes longer lets others have their turn, or
 * makes do with a part.  Processor time is what there is least of; but who waits for a disk has a
 * thread that others want as well, so that is bounded too, much later.  A machine that is busy with
 * other things does not make an answer shorter.
 */

#ifndef QUANTUM_H
#define QUANTUM_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define QUANTUM_PROCESSOR (10 * 1000 * 1000) /* nanoseconds */
#define QUANTUM_CLOCK     (250 * 1000 * 1000)

struct quantum {
  int64_t processor, clock; /* when it began */
};

static inline int64_t
quantum_read (clockid_t which)
{
  struct timespec ts;

  clock_gettime (which, &ts);
  return ts.tv_sec * INT64_C (1000000000) + ts.tv_nsec;
}

static inline struct quantum
quantum_begin (void)
{
  return (struct quantum){ quantum_read (CLOCK_THREAD_CPUTIME_ID), quantum_read (CLOCK_MONOTONIC) };
}

/* The same thread. */
static inline bool
quantum_over (const struct quantum *q)
{
  return quantum_read (CLOCK_THREAD_CPUTIME_ID) - q->processor >= QUANTUM_PROCESSOR ||
         quantum_read (CLOCK_MONOTONIC) - q->clock >= QUANTUM_CLOCK;
}

#endif /* QUANTUM_H */
