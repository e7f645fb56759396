/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reads that would make a loop wait, by io_uring: the loop goes on, and no other thread is woken.
 *
 *     ring_start (&r, ev, completed);   before the loop has its thread
 *     ring_read (r, job, ...);          once for each piece; all of them in the same turn
 *     ring_submit (r);                  at the end of the turn: one system call for all
 *     job->done (job);                  when the last of its pieces has been read
 *     ring_stop (&r);                   when no job is under way
 *
 * Made for O_DIRECT, and for what is missing in the page cache.  Buffered writes are better off
 * with the workers: io_uring hands them to threads of its own, which costs more.
 *
 * Where there is no io_uring (built without liburing, forbidden by the administrator, or by a
 * sandbox) ring_usable is false, and the workers do it all.  All calls but the first are made on
 * the thread of the loop.
 */

#ifndef RING_H
#define RING_H

#include <ev.h>
#include <stdbool.h>
#include <stdint.h>

struct ring_job {
  void (*done) (struct ring_job *j);
  unsigned pending; /* pieces that have not come back; 0 before the first */
  uint64_t bytes;   /* read by those that have */
  bool failed;      /* one of them was not */
};

struct ring;

/* A ring for the loop EV, which can only read; *RING is NULL if there cannot be one.  COMPLETED is
 * called after each batch of jobs that are done. */
void ring_start (struct ring **ring, struct ev_loop *ev, void (*completed) (void *), void *opaque);
/* Room for N pieces; from the first call on, the ring works. */
bool ring_usable (struct ring *r, unsigned n);
/* After ring_usable said so. */
void ring_read (struct ring *r, struct ring_job *j, int fd, void *buf, uint32_t len,
                uint64_t offset);
void ring_submit (struct ring *r); /* NULL is fine */
void ring_stop (struct ring **r);

#endif /* RING_H */
