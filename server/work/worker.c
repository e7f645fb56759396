/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
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
 * While the root's list, or the inbox, is not empty, a thread is on its way to it (woken, or just
 * created), or all threads that may exist are busy and will look at it when they are done.  Whoever
 * takes a job and leaves others behind wakes the next thread.  So short jobs stay with one or two
 * threads, and jobs that block spread over as many as it takes.
 *
 * A loop that hands jobs in must not wait for workers, which need not have a processor when they
 * have the lock: so it puts them into the inbox, and whoever has the lock next takes them out.  And
 * it wakes by a semaphore, since signalling a condition can wait for those that were signalled
 * before.  An idle thread is woken by whoever takes it off the count, so that none is woken twice.
 * It looks into the inbox once more after it has counted itself, and who fills that looks at the
 * count afterwards: one of them sees the other. */
struct pool {
  _Atomic (struct job *) inbox; /* newest first */
  _Atomic unsigned idle;        /* threads that wait, or are about to, and nobody has woken */
  sem_t wake;
  pthread_mutex_t lock; /* for the rest */
  struct lane root;
  struct lane own; /* of jobs without one; takes turns like the others, and has no siblings */
  _Atomic unsigned started; /* changed under the lock */
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
  unsigned started = p->started, idle = p->idle;

  atomic_store_explicit (&stats_server.workers, started, memory_order_relaxed);
  atomic_store_explicit (&stats_server.workers_busy, started > idle ? started - idle : 0,
                         memory_order_relaxed);
}

/* False if no thread is idle. */
static bool
wake_idle (struct pool *p)
{
  unsigned n = p->idle;

  while (n > 0)
    if (atomic_compare_exchange_weak (&p->idle, &n, n - 1)) {
      sem_post (&p->wake);
      return true;
    }
  return false;
}

/* Called with the lock held and jobs in the queue. */
static void
wake_one (struct pool *p)
{
  if (wake_idle (p) || p->started == p->max)
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

/* ---- the inbox ------------------------------------------------------------------------------- */

/* Empties B.  Whether there was nothing before. */
static bool
hand_in (struct pool *p, struct batch *b)
{
  struct job *oldest = b->first, *newest = NULL, *head;

  atomic_fetch_add_explicit (&stats_server.queued, b->count, memory_order_relaxed);
  while (b->first) {
    struct job *j = batch_take (b);
    j->next = newest;
    newest = j;
  }
  head = p->inbox;
  do
    oldest->next = head;
  while (!atomic_compare_exchange_weak (&p->inbox, &head, newest));
  return !head;
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

/* Puts what was handed in into its lanes. */
static void
take_in (struct pool *p)
{
  struct job *newest = p->inbox ? atomic_exchange (&p->inbox, NULL) : NULL;
  struct batch all = { 0 };

  for (struct job *j = newest, *next; j; j = next) {
    next = j->next;
    j->next = all.first;
    all.first = j;
  }
  while (all.first) {
    struct job *j = batch_take (&all);
    struct lane *lane = j->lane ? j->lane : &p->own;
    batch_add (&lane->jobs, j);
    make_ready (p, lane);
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
  atomic_fetch_sub_explicit (&stats_server.queued, 1, memory_order_relaxed);
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
    take_in (p);
    if (p->root.first)
      run_next (p);
    else if (p->stop)
      break;
    else {
      atomic_fetch_add (&p->idle, 1);
      publish (p);
      pthread_mutex_unlock (&p->lock);
      if (p->inbox)
        wake_idle (p); /* this one, perhaps */
      while (sem_wait (&p->wake) < 0)
        assert (errno == EINTR);
      pthread_mutex_lock (&p->lock);
    }
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
  sem_init (&p->wake, 0, 0);
  p->max = max;
  p->own.parent = &p->root;
  return p;
}

void
pool_submit (struct pool *p, struct batch *b)
{
  if (!b->first)
    return;
  bool was_empty = hand_in (p, b);
  if (p->started > 0 && (!was_empty || wake_idle (p) || p->started == p->max))
    return;
  pthread_mutex_lock (&p->lock);
  take_in (p);
  if (p->root.first)
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
  for (unsigned i = 0; i < p->started; i++)
    sem_post (&p->wake);
  pthread_mutex_unlock (&p->lock);
  for (unsigned i = 0; i < p->started; i++)
    pthread_join (p->thread[i], NULL);
  assert (!p->root.children);
  pthread_mutex_destroy (&p->lock);
  sem_destroy (&p->wake);
  free (p);
}
