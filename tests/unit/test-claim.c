/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Claims on ranges of guest clusters: who waits for whom.
 */

#include "unit.h"

#include <unistd.h>

static void
image_init (struct q_image *img)
{
  memset (img, 0, sizeof *img);
  pthread_mutex_init (&img->claim_lock, NULL);
  pthread_cond_init (&img->claim_released, NULL);
}

static void
image_done (struct q_image *img)
{
  assert_null (img->claims);
  pthread_mutex_destroy (&img->claim_lock);
  pthread_cond_destroy (&img->claim_released);
}

static void
test_overlap (void **state)
{
  static const struct {
    uint64_t first, last;
    bool conflict;
  } tries[] = {
    { 0, 9, false },           { 9, 10, true },         { 10, 10, true },
    { 5, 30, true },           { 20, 21, true },        { 21, 21, false },
    { 21, UINT64_MAX, false }, { 0, UINT64_MAX, true }, { 15, 15, true },
  };
  struct q_plan_claim held, c;
  struct q_image img;

  (void)state;
  image_init (&img);
  assert_int_equal (q_claim_take (&img, &held, 10, 20, 0), 0);
  for (size_t i = 0; i < lengthof (tries); ++i) {
    int r = q_claim_take (&img, &c, tries[i].first, tries[i].last, Q_NOWAIT);

    assert_int_equal (r, tries[i].conflict ? -EAGAIN : 0);
    if (r == 0)
      q_claim_release (&img, &c);
  }
  q_claim_release (&img, &held);
  assert_int_equal (q_claim_take (&img, &c, 15, 15, Q_NOWAIT), 0);
  q_claim_release (&img, &c);
  image_done (&img);
}

/* Given back first, last and in the middle. */
static void
test_any_order (void **state)
{
  static const unsigned orders[][3] = { { 0, 1, 2 }, { 2, 1, 0 }, { 1, 0, 2 }, { 1, 2, 0 } };
  struct q_plan_claim c[3], d;
  struct q_image img;

  (void)state;
  image_init (&img);
  for (size_t i = 0; i < lengthof (orders); ++i) {
    for (unsigned j = 0; j < 3; ++j)
      assert_int_equal (q_claim_take (&img, &c[j], j, j, Q_NOWAIT), 0);
    for (unsigned j = 0; j < 3; ++j) {
      unsigned which = orders[i][j];

      q_claim_release (&img, &c[which]);
      assert_int_equal (q_claim_take (&img, &d, which, which, Q_NOWAIT), 0);
      q_claim_release (&img, &d);
      for (unsigned k = j + 1; k < 3; ++k)
        assert_int_equal (q_claim_take (&img, &d, orders[i][k], orders[i][k], Q_NOWAIT), -EAGAIN);
    }
  }
  image_done (&img);
}

struct waiter {
  struct q_image *img;
  uint64_t first, last;
  _Atomic bool got;
};

static void *
take_and_release (void *opaque)
{
  struct waiter *w = opaque;
  struct q_plan_claim c;

  q_claim_take (w->img, &c, w->first, w->last, 0);
  w->got = true;
  q_claim_release (w->img, &c);
  return NULL;
}

static void
test_waits (void **state)
{
  struct q_plan_claim a, b;
  struct q_image img;
  struct waiter w = { .img = &img, .first = 5, .last = 25 };
  pthread_t id;

  (void)state;
  image_init (&img);
  q_claim_take (&img, &a, 0, 9, 0);
  q_claim_take (&img, &b, 20, 29, 0);
  assert_int_equal (pthread_create (&id, NULL, take_and_release, &w), 0);
  usleep (50000);
  assert_false (w.got);
  q_claim_release (&img, &a); /* the other one is still in the way */
  usleep (50000);
  assert_false (w.got);
  q_claim_release (&img, &b);
  pthread_join (id, NULL);
  assert_true (w.got);
  image_done (&img);
}

/* Whoever waits for something else does not keep it from whom it is for. */
static void
test_right_one_wakes (void **state)
{
  struct q_plan_claim a, b;
  struct q_image img;
  struct waiter w[2];
  pthread_t id[2];

  (void)state;
  image_init (&img);
  w[0] = (struct waiter){ .img = &img, .first = 20, .last = 29 };
  w[1] = (struct waiter){ .img = &img, .first = 0, .last = 9 };
  q_claim_take (&img, &a, 0, 9, 0);
  q_claim_take (&img, &b, 20, 29, 0);
  for (size_t i = 0; i < lengthof (id); ++i) {
    assert_int_equal (pthread_create (&id[i], NULL, take_and_release, &w[i]), 0);
    usleep (50000); /* the first one waits first */
  }
  q_claim_release (&img, &a);
  pthread_join (id[1], NULL);
  assert_false (w[0].got);
  q_claim_release (&img, &b);
  pthread_join (id[0], NULL);
  image_done (&img);
}

/* Many threads on few clusters: what a claim guards is never touched by two. */
#define CLUSTERS 16
#define ROUNDS   4000

static _Atomic unsigned inside[CLUSTERS];
static _Atomic unsigned collisions, taken;

static void *
hammer (void *opaque)
{
  struct q_image *img = opaque;
  uint64_t seed = random_seed ((uintptr_t)&img);

  for (unsigned i = 0; i < ROUNDS; ++i) {
    uint64_t first = random_below (&seed, CLUSTERS);
    uint64_t last = first + random_below (&seed, CLUSTERS - first);
    unsigned flags = random_below (&seed, 2) ? Q_NOWAIT : 0;
    struct q_plan_claim c;

    if (q_claim_take (img, &c, first, last, flags) < 0)
      continue;
    ++taken;
    for (uint64_t j = first; j <= last; ++j)
      if (inside[j]++ != 0)
        ++collisions;
    for (uint64_t j = first; j <= last; ++j)
      --inside[j];
    q_claim_release (img, &c);
  }
  return NULL;
}

static void
test_threads (void **state)
{
  struct q_image img;
  pthread_t id[6];

  (void)state;
  image_init (&img);
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_create (&id[i], NULL, hammer, &img), 0);
  for (size_t i = 0; i < lengthof (id); ++i)
    pthread_join (id[i], NULL);
  assert_int_equal (collisions, 0);
  assert_true (taken > lengthof (id) * ROUNDS / 4);
  image_done (&img);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_overlap), cmocka_unit_test (test_any_order),
    cmocka_unit_test (test_waits),   cmocka_unit_test (test_right_one_wakes),
    cmocka_unit_test (test_threads),
  };

  alarm (240);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
