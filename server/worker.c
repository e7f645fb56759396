/* SPDX-License-Identifier: BSD-3-Clause */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "stats.h"
#include "worker.h"

/* Everything in it under the pool's lock. */
struct lane {
  struct lane *next; /* in pool.ready */
  struct batch jobs; /* that wait */
  unsigned running;
  bool listed;    /* in pool.ready */
  bool abandoned; /* to be freed when nothing runs any more */
};

/* Invariant: a lane is in the ready list if and only if it has jobs and may have another one
 * running.  While that list is not empty, a thread is on its way to it (signalled, or just
 * created), or all threads that may exist are busy and will look at it when they are done.  Whoever
 * takes a job and leaves others behind wakes the next thread.  So short jobs stay with one or two
 * threads, and jobs that block spread over as many as it takes. */
struct pool {
  pthread_mutex_t lock;
  pthread_cond_t wake;
  struct lane *ready, *last_ready; /* whose turn it is next */
  struct lane own;                 /* of jobs without one; takes turns like the others */
  unsigned queued;                 /* jobs that wait, in all lanes */
  unsigned waiting;                /* threads in pthread_cond_wait */
  unsigned started;
  unsigned max;
  unsigned most; /* threads that one lane may have */
  bool stop;
  bool warned; /* that a thread could not be created */
  pthread_t thread[];
};

/* ---- batches and mailboxes ------------------------------------------------------------------- */

void
batch_add (struct batch *b, struct job *j)
{
  j->next = NULL;
  if (b->last)
    b->last->next = j;
  else
    b->first = j;
  b->last = j;
  b->count++;
}

struct job *
batch_take (struct batch *b)
{
  struct job *j = b->first;
  b->first = j->next;
  if (!b->first)
    b->last = NULL;
  b->count--;
  return j;
}

void
job_done (struct job *j)
{
  struct mailbox *m = j->home;
  struct job *head = atomic_load_explicit (&m->head, memory_order_relaxed);

  do
    j->next = head;
  while (!atomic_compare_exchange_weak_explicit (&m->head, &head, j, memory_order_release,
                                                 memory_order_relaxed));
  /* From here on J may be gone. */
  if (!head)
    m->wake (m);
}

struct job *
mailbox_take (struct mailbox *m)
{
  struct job *newest = atomic_exchange_explicit (&m->head, NULL, memory_order_acquire);
  struct job *oldest = NULL;

  while (newest) {
    struct job *next = newest->next;
    newest->next = oldest;
    oldest = newest;
    newest = next;
  }
  return oldest;
}

/* ---- the pool -------------------------------------------------------------------------------- */

static void *worker (void *arg);

/* For people and their instruments.  Called with the lock held. */
static void
publish (const struct pool *p)
{
  atomic_store_explicit (&stats_server.queued, p->queued, memory_order_relaxed);
  atomic_store_explicit (&stats_server.workers, p->started, memory_order_relaxed);
  atomic_store_explicit (&stats_server.workers_busy, p->started - p->waiting, memory_order_relaxed);
}

/* Called with the lock held and jobs in the queue. */
static void
wake_one (struct pool *p)
{
  if (p->waiting > 0) {
    pthread_cond_signal (&p->wake);
    return;
  }
  if (p->started == p->max)
    return;
  int r = pthread_create (&p->thread[p->started], NULL, worker, p);
  if (r == 0)
    p->started++;
  else if (!p->warned) {
    p->warned = true;
    log_warning ("cannot create worker thread %u of at most %u: %s", p->started + 1, p->max,
                 strerror (r));
  }
}

static bool
may_run (const struct pool *p, const struct lane *lane)
{
  return lane->jobs.first && (lane == &p->own || lane->running < p->most);
}

/* At the end of the list, if it belongs there and is not in it. */
static void
list_lane (struct pool *p, struct lane *lane)
{
  if (lane->listed || !may_run (p, lane))
    return;
  lane->listed = true;
  lane->next = NULL;
  if (p->ready)
    p->last_ready->next = lane;
  else
    p->ready = lane;
  p->last_ready = lane;
}

/* The next job; some lane is ready. */
static struct job *
take (struct pool *p)
{
  struct lane *lane = p->ready;

  p->ready = lane->next;
  lane->listed = false;
  struct job *j = batch_take (&lane->jobs);
  lane->running++;
  p->queued--;
  list_lane (p, lane);
  return j;
}

static void
ran (struct pool *p, struct lane *lane)
{
  lane->running--;
  if (lane != &p->own && lane->abandoned && lane->running == 0)
    free (lane);
  else
    list_lane (p, lane);
}

/* Called and returns with the lock held. */
static void
run_next (struct pool *p)
{
  struct job *j = take (p);
  struct lane *lane = j->lane ? j->lane : &p->own; /* J is gone when it has run */

  if (p->ready)
    wake_one (p);
  publish (p);
  pthread_mutex_unlock (&p->lock);
  j->run (j);
  pthread_mutex_lock (&p->lock);
  ran (p, lane);
}

static void *
worker (void *arg)
{
  struct pool *p = arg;

  pthread_mutex_lock (&p->lock);
  for (;;) {
    while (!p->ready && !p->stop) {
      p->waiting++;
      publish (p);
      pthread_cond_wait (&p->wake, &p->lock);
      p->waiting--;
    }
    if (!p->ready)
      break;
    run_next (p);
  }
  pthread_mutex_unlock (&p->lock);
  return NULL;
}

struct lane *
lane_new (void)
{
  return calloc (1, sizeof (struct lane));
}

void
lane_free (struct pool *p, struct lane *lane)
{
  if (!lane)
    return;
  pthread_mutex_lock (&p->lock);
  bool idle = lane->running == 0;
  lane->abandoned = true;
  pthread_mutex_unlock (&p->lock);
  if (idle)
    free (lane);
}

struct pool *
pool_new (unsigned max)
{
  struct pool *p = calloc (1, sizeof *p + max * sizeof p->thread[0]);
  if (!p)
    return NULL;
  pthread_mutex_init (&p->lock, NULL);
  pthread_cond_init (&p->wake, NULL);
  p->max = max;
  p->most = max > 1 ? max - (max + 3) / 4 : 1;
  return p;
}

void
pool_submit (struct pool *p, struct batch *b)
{
  if (!b->first)
    return;
  pthread_mutex_lock (&p->lock);
  bool was_empty = p->ready == NULL;
  while (b->first) {
    struct job *j = batch_take (b);
    struct lane *lane = j->lane ? j->lane : &p->own;
    batch_add (&lane->jobs, j);
    p->queued++;
    list_lane (p, lane);
  }
  if (was_empty && p->ready)
    wake_one (p);
  publish (p);
  if (p->started == 0)
    while (p->ready)
      run_next (p);
  pthread_mutex_unlock (&p->lock);
}

void
pool_free (struct pool *p)
{
  if (!p)
    return;
  pthread_mutex_lock (&p->lock);
  p->stop = true;
  pthread_cond_broadcast (&p->wake);
  pthread_mutex_unlock (&p->lock);
  for (unsigned i = 0; i < p->started; i++)
    pthread_join (p->thread[i], NULL);
  pthread_mutex_destroy (&p->lock);
  pthread_cond_destroy (&p->wake);
  free (p);
}
