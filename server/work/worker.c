/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "stats.h"
#include "worker.h"

/* A place in the tree of turns: a leaf with jobs, or the level above others.  Everything in it is
 * under the pool's lock. */
struct lane {
  struct lane *parent; /* NULL: the root */
  struct lane *children, *sibling, **before;
  unsigned n_children;
  unsigned refs;             /* whoever joined it, and its children */
  uint64_t key;              /* among its siblings */
  unsigned running;          /* jobs, in it and below */
  bool ready;                /* in its parent's list ... */
  struct lane *next;         /* ... as a link of it */
  struct lane *first, *last; /* its own list: of its children, in the order of their turns */
  struct batch jobs;         /* of a leaf, that wait */
};

/* Invariant: a lane is in its parent's list if it has jobs, or children in its own list, and may
 * have another one running (limit).  It is not there otherwise, but for one that was when somebody
 * joined whom it has to leave threads to: that one has one more turn.
 *
 * While the root's list is not empty, a thread is on its way to it (signalled, or just created), or
 * all threads that may exist are busy and will look at it when they are done.  Whoever takes a job
 * and leaves others behind wakes the next thread.  So short jobs stay with one or two threads, and
 * jobs that block spread over as many as it takes. */
struct pool {
  pthread_mutex_t lock;
  pthread_cond_t wake;
  struct lane root;
  struct lane own;  /* of jobs without one; takes turns like the others, and has no siblings */
  unsigned queued;  /* jobs that wait, in all lanes */
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

/* ---- turns; all with the lock held ------------------------------------------------------------
 */

/* So many of its jobs may run at once. */
static unsigned
limit (const struct pool *p, const struct lane *lane)
{
  if (!lane->parent || lane == &p->own)
    return p->max > 0 ? p->max : 1;
  unsigned all = limit (p, lane->parent);
  if (lane->parent->n_children == 1)
    return all;
  unsigned left = (all + 3) / 4;
  return all > left ? all - left : 1;
}

/* At the end of its parent's list, and so on up, if it belongs there and is not in it. */
static void
make_ready (struct pool *p, struct lane *lane)
{
  for (; lane->parent; lane = lane->parent) {
    struct lane *above = lane->parent;

    if (lane->ready || (!lane->jobs.first && !lane->first) || lane->running >= limit (p, lane))
      return;
    lane->ready = true;
    lane->next = NULL;
    if (above->first)
      above->last->next = lane;
    else
      above->first = lane;
    above->last = lane;
  }
}

/* The next job, and whose it is; some lane is ready. */
static struct job *
take (struct pool *p, struct lane **whose)
{
  struct lane *lane = &p->root;

  while (lane->first) {
    struct lane *turn = lane->first;
    lane->first = turn->next;
    turn->ready = false;
    lane = turn;
  }
  struct job *j = batch_take (&lane->jobs);
  *whose = lane;
  p->queued--;
  for (struct lane *l = lane; l; l = l->parent)
    l->running++;
  for (; lane; lane = lane->parent)
    make_ready (p, lane);
  return j;
}

/* All that is ready now that LANE is alone. */
static void
make_all_ready (struct pool *p, struct lane *lane)
{
  for (struct lane *l = lane->children; l; l = l->sibling)
    make_all_ready (p, l);
  make_ready (p, lane);
}

/* Frees LANE, and those above it, if nobody needs them any more. */
static void
let_go (struct pool *p, struct lane *lane)
{
  while (lane->parent && lane != &p->own && lane->refs == 0 && lane->running == 0) {
    struct lane *above = lane->parent;

    assert (!lane->ready && !lane->jobs.first && !lane->children);
    *lane->before = lane->sibling;
    if (lane->sibling)
      lane->sibling->before = lane->before;
    free (lane);
    above->refs--;
    if (--above->n_children == 1)
      make_all_ready (p, above->children);
    lane = above;
  }
}

static void
ran (struct pool *p, struct lane *lane)
{
  for (struct lane *l = lane; l; l = l->parent) {
    l->running--;
    make_ready (p, l);
  }
  let_go (p, lane);
}

/* Called and returns with the lock held. */
static void
run_next (struct pool *p)
{
  struct lane *lane; /* J is gone when it has run */
  struct job *j = take (p, &lane);

  if (p->root.first)
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
    while (!p->root.first && !p->stop) {
      p->waiting++;
      publish (p);
      pthread_cond_wait (&p->wake, &p->lock);
      p->waiting--;
    }
    if (!p->root.first)
      break;
    run_next (p);
  }
  pthread_mutex_unlock (&p->lock);
  return NULL;
}

/* The child of LANE with that KEY, new if there is none; NULL without memory.  With the lock held.
 */
static struct lane *
child (struct lane *lane, uint64_t key)
{
  struct lane *l = key ? lane->children : NULL;

  while (l && l->key != key)
    l = l->sibling;
  if (l)
    return l;
  l = calloc (1, sizeof *l);
  if (!l)
    return NULL;
  *l = (struct lane){
    .parent = lane, .key = key, .sibling = lane->children, .before = &lane->children
  };
  if (l->sibling)
    l->sibling->before = &l->sibling;
  lane->children = l;
  lane->n_children++;
  lane->refs++;
  return l;
}

struct lane *
lane_join (struct pool *p, const uint64_t *path, unsigned n)
{
  struct lane *lane = &p->root, *next = lane;

  pthread_mutex_lock (&p->lock);
  for (unsigned i = 0; next && i < n; i++)
    if ((next = child (lane, path[i])) != NULL)
      lane = next;
  if (next)
    lane->refs++;
  else
    let_go (p, lane);
  pthread_mutex_unlock (&p->lock);
  return next;
}

void
lane_leave (struct pool *p, struct lane *lane)
{
  if (!lane)
    return;
  pthread_mutex_lock (&p->lock);
  bool was_empty = p->root.first == NULL;
  lane->refs--;
  let_go (p, lane);
  if (was_empty && p->root.first)
    wake_one (p);
  pthread_mutex_unlock (&p->lock);
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
  p->own.parent = &p->root;
  return p;
}

void
pool_submit (struct pool *p, struct batch *b)
{
  if (!b->first)
    return;
  pthread_mutex_lock (&p->lock);
  bool was_empty = p->root.first == NULL;
  while (b->first) {
    struct job *j = batch_take (b);
    struct lane *lane = j->lane ? j->lane : &p->own;
    batch_add (&lane->jobs, j);
    p->queued++;
    make_ready (p, lane);
  }
  if (was_empty && p->root.first)
    wake_one (p);
  publish (p);
  if (p->started == 0)
    while (p->root.first)
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
  assert (!p->root.children);
  pthread_mutex_destroy (&p->lock);
  pthread_cond_destroy (&p->wake);
  free (p);
}
