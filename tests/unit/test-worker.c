/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The worker pool's turns: who gets the next thread, how many of them one client may have, and that
 * none is left idle by it when nobody else is there.
 */

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "unit.h"
#include "worker.h"

#define MANY 64

/* Jobs that note that they run, and end when they may. */
struct stage {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  unsigned running, most, done;
  unsigned may_end; /* so many more may */
  int order[4096];  /* whose jobs began, in their order */
  unsigned n_order;
  struct mailbox home;
};

struct task {
  struct job job;
  struct stage *stage;
  int whose;
};

static void
no_wake (struct mailbox *m)
{
  (void)m;
}

static void
stage_init (struct stage *st)
{
  *st = (struct stage){ .home = { .wake = no_wake } };
  pthread_mutex_init (&st->lock, NULL);
  pthread_cond_init (&st->changed, NULL);
}

static void
perform (struct job *j)
{
  struct task *t = (struct task *)j;
  struct stage *st = t->stage;

  pthread_mutex_lock (&st->lock);
  st->order[st->n_order++] = t->whose;
  if (++st->running > st->most)
    st->most = st->running;
  pthread_cond_broadcast (&st->changed);
  while (st->may_end == 0)
    pthread_cond_wait (&st->changed, &st->lock);
  st->may_end--;
  st->running--;
  pthread_mutex_unlock (&st->lock);
  job_done (j);
  pthread_mutex_lock (&st->lock);
  st->done++;
  pthread_cond_broadcast (&st->changed);
  pthread_mutex_unlock (&st->lock);
}

/* Until so many run, or are done; false if that is not so after 30 seconds. */
static bool
await (struct stage *st, const unsigned *count, unsigned wanted)
{
  struct timespec end;
  int r = 0;

  clock_gettime (CLOCK_REALTIME, &end);
  end.tv_sec += 30;
  pthread_mutex_lock (&st->lock);
  while (*count < wanted && r == 0)
    r = pthread_cond_timedwait (&st->changed, &st->lock, &end);
  bool there = *count >= wanted;
  pthread_mutex_unlock (&st->lock);
  return there;
}

static void
let_end (struct stage *st, unsigned n)
{
  pthread_mutex_lock (&st->lock);
  st->may_end += n;
  pthread_cond_broadcast (&st->changed);
  pthread_mutex_unlock (&st->lock);
}

/* N jobs of WHOSE, in LANE. */
static void
submit (struct pool *p, struct stage *st, struct lane *lane, struct task *tasks, unsigned n,
        int whose)
{
  struct batch b = { 0 };

  for (unsigned i = 0; i < n; i++) {
    tasks[i] = (struct task){ .job = { .run = perform, .home = &st->home, .lane = lane },
                              .stage = st,
                              .whose = whose };
    batch_add (&b, &tasks[i].job);
  }
  pool_submit (p, &b);
}

static struct lane *
join (struct pool *p, uint64_t export, uint64_t client)
{
  const uint64_t path[] = { export, client, 0 };
  struct lane *lane = lane_join (p, path, 3);

  assert_non_null (lane);
  return lane;
}

/* All that were submitted end, and nothing is left. */
static void
finish (struct pool *p, struct stage *st, unsigned n)
{
  let_end (st, n);
  assert_true (await (st, &st->done, n));
  pool_free (p);
  pthread_mutex_destroy (&st->lock);
  pthread_cond_destroy (&st->changed);
}

/* Whoever is alone, by however many connections, has all threads. */
static void
test_alone (void **state)
{
  static struct task tasks[3][MANY];
  struct pool *p = pool_new (16);
  struct lane *one = join (p, 1, 7), *two;
  struct stage st;

  (void)state;
  stage_init (&st);
  submit (p, &st, one, tasks[0], MANY, 0);
  assert_true (await (&st, &st.running, 16));
  let_end (&st, MANY);
  assert_true (await (&st, &st.done, MANY));
  two = join (p, 1, 7);
  submit (p, &st, one, tasks[1], MANY, 0);
  submit (p, &st, two, tasks[2], MANY, 1);
  assert_true (await (&st, &st.running, 16));
  lane_leave (p, NULL);
  let_end (&st, 2 * MANY);
  assert_true (await (&st, &st.done, 3 * MANY));
  assert_int_equal (st.most, 16);
  lane_leave (p, one);
  lane_leave (p, two);
  finish (p, &st, 0);
}

/* With nothing that ends, the one who comes second runs all the same: beside another export,
 * another client of the same one, another connection of the same client.  The first one has eight
 * connections with more jobs than there are threads, at each of them. */
static void
test_left (void **state)
{
  static const struct {
    uint64_t export, client;
    unsigned most; /* that the first one has */
  } second[] = { { 2, 7, 12 }, { 1, 8, 12 }, { 1, 7, 16 } };
  static struct task tasks[8][MANY], late[MANY];
  struct lane *first[8], *other;
  struct stage st;

  (void)state;
  for (unsigned c = 0; c < 3; c++) {
    /* A connection of the same client is a ninth one: none of nine has more than 12, and all of
     * them may have 16.  With two it is only the limit for each that leaves room. */
    const unsigned n = c == 2 ? 1 : 8;
    const unsigned most = c == 2 ? 12 : second[c].most;
    struct pool *p = pool_new (16);

    stage_init (&st);
    for (unsigned i = 0; i < n; i++)
      first[i] = join (p, 1, 7);
    other = join (p, second[c].export, second[c].client);
    for (unsigned i = 0; i < n; i++)
      submit (p, &st, first[i], tasks[i], MANY, 0);
    assert_true (await (&st, &st.running, most));
    submit (p, &st, other, late, 4, 1);
    assert_true (await (&st, &st.running, most + 4));
    assert_int_equal (st.most, 16);
    unsigned theirs = 0;
    for (unsigned i = 0; i < st.n_order; i++)
      theirs += st.order[i] == 1;
    assert_int_equal (theirs, 4);

    /* The other one goes: the first has all of them again. */
    let_end (&st, n * MANY + 4);
    assert_true (await (&st, &st.done, n * MANY + 4));
    submit (p, &st, first[0], tasks[0], MANY, 0);
    assert_true (await (&st, &st.running, n == 1 ? 12 : 9));
    lane_leave (p, other);
    for (unsigned i = 1; i < n; i++)
      lane_leave (p, first[i]);
    assert_true (await (&st, &st.running, 16));
    let_end (&st, MANY);
    assert_true (await (&st, &st.done, (n + 1) * MANY + 4));
    lane_leave (p, first[0]);
    finish (p, &st, 0);
  }
}

/* With a single thread the order can be seen: between two jobs of one there is one of the other, at
 * each level. */
static void
test_turns (void **state)
{
  static const struct {
    uint64_t export, client;
  } second[] = { { 2, 7 }, { 1, 8 }, { 1, 7 } };
  static struct task gate, tasks[8][MANY], late[MANY];
  struct lane *first[8], *other;
  struct stage st;

  (void)state;
  for (unsigned c = 0; c < 3; c++) {
    const unsigned n = c == 2 ? 1 : 8; /* connections that are one client's count as one */
    struct pool *p = pool_new (1);

    stage_init (&st);
    submit (p, &st, NULL, &gate, 1, -1);
    assert_true (await (&st, &st.running, 1));
    for (unsigned i = 0; i < n; i++)
      first[i] = join (p, 1, 7);
    other = join (p, second[c].export, second[c].client);
    for (unsigned i = 0; i < n; i++)
      submit (p, &st, first[i], tasks[i], MANY, 0);
    submit (p, &st, other, late, MANY, 1);
    let_end (&st, 1 + (n + 1) * MANY);
    assert_true (await (&st, &st.done, 1 + (n + 1) * MANY));
    for (unsigned i = 1, seen = 0; seen < MANY; i++) {
      assert_true (i < st.n_order);
      seen += st.order[i] == 1;
      assert_true (i <= 2 * seen + 1);
    }
    lane_leave (p, other);
    for (unsigned i = 0; i < n; i++)
      lane_leave (p, first[i]);
    finish (p, &st, 0);
  }
}

/* Without threads whoever submits runs them; and a lane is left while the last job is still on its
 * way out. */
static void
test_edges (void **state)
{
  static struct task tasks[4][MANY];
  struct pool *p = pool_new (0);
  struct lane *lane = join (p, 1, 0), *other = join (p, 1, 0);
  struct stage st;

  (void)state;
  stage_init (&st);
  st.may_end = 3 * MANY;
  submit (p, &st, lane, tasks[0], MANY, 0);
  submit (p, &st, other, tasks[1], MANY, 0);
  submit (p, &st, NULL, tasks[2], MANY, 0);
  assert_int_equal (st.done, 3 * MANY);
  lane_leave (p, lane);
  lane_leave (p, other);
  finish (p, &st, 0);

  p = pool_new (2);
  stage_init (&st);
  for (unsigned i = 0; i < 1000; i++) {
    lane = join (p, 1 + i % 3, i % 2);
    submit (p, &st, lane, tasks[0], 1, 0);
    let_end (&st, 1);
    assert_true (await (&st, &st.done, i + 1));
    lane_leave (p, lane);
  }
  finish (p, &st, 0);
}

#define TURNS 1000

struct turns {
  struct job job;
  struct pool *pool;
  unsigned taken, depth, deepest;
  struct mailbox home;
};

/* Goes to the end of the queue until it has had all its turns. */
static void
take_turn (struct job *j)
{
  struct turns *t = (struct turns *)j;
  struct batch rest = { 0 };

  if (++t->depth > t->deepest)
    t->deepest = t->depth;
  if (++t->taken < TURNS) {
    batch_add (&rest, j);
    pool_submit (t->pool, &rest);
  }
  t->depth--;
}

/* No thread can be had: whoever submits runs a job that takes turns, inside of itself no deeper
 * than there may be threads. */
static void
test_no_threads (void **state)
{
  struct turns t = { .job = { .run = take_turn }, .pool = pool_new (2) };
  struct batch b = { 0 };
  pthread_attr_t before, huge;

  (void)state;
  assert_int_equal (pthread_getattr_default_np (&before), 0);
  assert_int_equal (pthread_getattr_default_np (&huge), 0);
  assert_int_equal (pthread_attr_setstacksize (&huge, (size_t)1 << 47), 0);
  assert_int_equal (pthread_setattr_default_np (&huge), 0);
  batch_add (&b, &t.job);
  pool_submit (t.pool, &b);
  assert_int_equal (pthread_setattr_default_np (&before), 0);
  assert_int_equal (t.taken, TURNS);
  assert_in_range (t.deepest, 1, 2);
  pthread_attr_destroy (&before);
  pthread_attr_destroy (&huge);
  pool_free (t.pool);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_alone),      cmocka_unit_test (test_left),
    cmocka_unit_test (test_turns),      cmocka_unit_test (test_edges),
    cmocka_unit_test (test_no_threads),
  };
  return cmocka_run_group_tests (tests, NULL, NULL);
}
