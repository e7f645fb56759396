/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A limit on bytes per second, kept by letting each transfer pay afterwards: what has been moved
 * sets the time before which nothing more may begin.  No lock; any thread.
 */

#ifndef RATE_H
#define RATE_H

#include <stdatomic.h>
#include <stdint.h>

struct rate {
  _Atomic uint64_t bytes_per_second; /* 0: no limit.  May be changed at any time */
  _Atomic int64_t due;               /* nanoseconds of CLOCK_MONOTONIC */
};

/* BYTES are being moved.  Nothing is done without a limit. */
void rate_charge (struct rate *r, uint64_t bytes);
/* Seconds until more may be moved; 0: at once. */
double rate_wait (struct rate *r);

#endif /* RATE_H */
