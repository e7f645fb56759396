/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The worker pool: threads for all that may block, shared by every loop; and the mailbox through
 * which finished jobs come home.
 *
 *     pool_submit (pool, &batch);     any thread: waits for no worker, but to create one
 *     job->run (job);                 on a worker: does the work, then calls job_done
 *     job_done (job);                 any thread: posts the job to job->home
 *     jobs = mailbox_take (home);     on the owner's thread, after its wake function was called
 *
 * Threads are created when a job finds no idle one, up to a bound, and stay.
 */

#ifndef WORKER_H
#define WORKER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct job;

/* Jobs that came home, newest first.  wake() is called by the thread that posts to an empty
 * mailbox: one wake-up for however many jobs the owner finds when it looks. */
struct mailbox {
  _Atomic (struct job *) head;
  void (*wake) (struct mailbox *);
};

struct lane;

struct job {
  struct job *next;
  void (*run) (struct job *);
  struct mailbox *home;
  struct lane *lane; /* whose turn it takes; NULL: the pool's own */
};

struct batch {
  struct job *first, *last;
  unsigned count;
};

void batch_add (struct batch *b, struct job *j);
struct job *batch_take (struct batch *b); /* the first; B is not empty */

void job_done (struct job *j);
/* All jobs that came home, oldest first, linked by next. */
struct job *mailbox_take (struct mailbox *m);

struct pool;

/* Jobs wait in lanes, which are the leaves of a tree: by export, by client, by connection.  At each
 * level there are turns, so that neither how many jobs somebody has nor by how many connections
 * they come puts another one's first behind all of them.  And whoever is not alone at a level
 * leaves a quarter of the threads there to the others, whether they have something to do just now
 * or not: what is under way cannot be stopped when they do.  Whoever is alone may have all of them.
 *
 * PATH: N keys from the root down; lanes that begin with the same keys share these levels, and a
 * key of 0 is like no other.  NULL without memory, which is a lane too. */
struct lane *lane_join (struct pool *p, const uint64_t *path, unsigned n);
/* Nothing for NULL.  Its jobs have come home, if the last one's run has perhaps not returned yet.
 */
void lane_leave (struct pool *p, struct lane *lane);

/* A pool of at most MAX threads.  With MAX 0, pool_submit runs the jobs itself: for tests that want
 * everything on one thread. */
struct pool *pool_new (unsigned max);
/* Empties B.  Never fails: if no thread at all can be created, the caller runs the jobs. */
void pool_submit (struct pool *p, struct batch *b);
/* No job may be submitted any more; waits for those that were, and frees P. */
void pool_free (struct pool *p);

#endif /* WORKER_H */
