/* SPDX-License-Identifier: BSD-3-Clause */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "stats.h"
#include "worker.h"

/* Invariant: while the queue is not empty, a thread is on its way to it (signalled, or just
 * created), or all threads that may exist are busy and will look at the queue when they are done.
 * Whoever takes a job and leaves others behind wakes the next thread.  So short jobs stay with one
 * or two threads, and jobs that block spread over as many as it takes. */
struct pool {
  pthread_mutex_t lock;
  pthread_cond_t wake;
  struct batch queue;
  unsigned waiting; /* threads in pthread_cond_wait */
  unsigned started;
  unsigned max;
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
  atomic_store_explicit (&stats_server.queued, p->queue.count, memory_order_relaxed);
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

static void *
worker (void *arg)
{
  struct pool *p = arg;

  pthread_mutex_lock (&p->lock);
  for (;;) {
    while (!p->queue.first && !p->stop) {
      p->waiting++;
      publish (p);
      pthread_cond_wait (&p->wake, &p->lock);
      p->waiting--;
    }
    if (!p->queue.first)
      break;
    struct job *j = batch_take (&p->queue);
    if (p->queue.first)
      wake_one (p);
    publish (p);
    pthread_mutex_unlock (&p->lock);
    j->run (j);
    pthread_mutex_lock (&p->lock);
  }
  pthread_mutex_unlock (&p->lock);
  return NULL;
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
  return p;
}

static void
run_here (struct job *j)
{
  while (j) {
    struct job *next = j->next;
    j->run (j);
    j = next;
  }
}

void
pool_submit (struct pool *p, struct batch *b)
{
  struct job *orphans = NULL;

  if (!b->first)
    return;
  pthread_mutex_lock (&p->lock);
  bool was_empty = p->queue.first == NULL;
  if (was_empty)
    p->queue = *b;
  else {
    p->queue.last->next = b->first;
    p->queue.last = b->last;
    p->queue.count += b->count;
  }
  *b = (struct batch){ 0 };
  if (was_empty)
    wake_one (p);
  if (p->started == 0) {
    orphans = p->queue.first;
    p->queue = (struct batch){ 0 };
  }
  publish (p);
  pthread_mutex_unlock (&p->lock);
  run_here (orphans);
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
