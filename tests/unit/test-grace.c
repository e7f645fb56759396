/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pins and grace: what is stamped while somebody is pinned stays until that pin has gone.
 */

#include "unit.h"

#include <semaphore.h>
#include <time.h>

/* Moves time on as far as it will go. */
static void
advance (void)
{
  for (int i = 0; i < 8; ++i)
    q_grace_advance ();
}

static bool
passes (uint64_t stamp)
{
  advance ();
  return q_grace_passed (stamp);
}

static void
test_no_pins (void **state)
{
  uint64_t stamp = q_grace_stamp ();

  (void)state;
  assert_false (q_grace_passed (stamp));
  q_grace_advance (); /* one call is enough when nobody is pinned */
  assert_true (q_grace_passed (stamp));
}

static void
test_pinned_before (void **state)
{
  q_pin_t pin = q_pin ();
  uint64_t stamp = q_grace_stamp ();

  (void)state;
  assert_false (passes (stamp));
  assert_false (passes (stamp));
  q_unpin (pin);
  assert_true (passes (stamp));
}

/* A pin that is taken after the stamp cannot see the old, once time has moved on. */
static void
test_pinned_after (void **state)
{
  uint64_t stamp = q_grace_stamp ();
  q_pin_t pin;

  (void)state;
  advance ();
  pin = q_pin ();
  assert_true (passes (stamp));
  stamp = q_grace_stamp ();
  assert_false (passes (stamp));
  q_unpin (pin);
  assert_true (passes (stamp));
}

static void
test_nested (void **state)
{
  q_pin_t outer = q_pin (), inner = q_pin ();
  uint64_t stamp = q_grace_stamp ();

  (void)state;
  q_unpin (inner);
  assert_false (passes (stamp));
  inner = q_pin ();
  assert_false (passes (stamp));
  q_unpin (outer); /* in any order; the inner one is newer than the stamp or as old */
  q_unpin (inner);
  assert_true (passes (stamp));
}

static void
test_out_of_order (void **state)
{
  q_pin_t a = q_pin (), b, c;
  uint64_t stamp_a = q_grace_stamp (), stamp_b;

  (void)state;
  advance (); /* B is in a later epoch than A */
  b = q_pin ();
  stamp_b = q_grace_stamp ();
  assert_int_not_equal (a, b);
  q_unpin (a);
  assert_true (passes (stamp_a));
  assert_false (passes (stamp_b)); /* B is held still */
  c = q_pin ();
  q_unpin (b);
  assert_true (passes (stamp_b));
  stamp_b = q_grace_stamp ();
  assert_false (passes (stamp_b));
  q_unpin (c);
  assert_true (passes (stamp_b));
}

/* ---- other threads -------------------------------------------------------------------------- */

struct holder {
  pthread_t id;
  sem_t pinned, release;
  bool unpin;
};

static void *
hold (void *opaque)
{
  struct holder *h = opaque;
  q_pin_t pin = q_pin ();

  sem_post (&h->pinned);
  sem_wait (&h->release);
  q_unpin (pin);
  return NULL;
}

static void
start (struct holder *h)
{
  sem_init (&h->pinned, 0, 0);
  sem_init (&h->release, 0, 0);
  assert_int_equal (pthread_create (&h->id, NULL, hold, h), 0);
  sem_wait (&h->pinned);
}

static void
stop (struct holder *h)
{
  sem_post (&h->release);
  pthread_join (h->id, NULL);
  sem_destroy (&h->pinned);
  sem_destroy (&h->release);
}

static void
test_other_threads (void **state)
{
  struct holder h[3];
  uint64_t stamp;

  (void)state;
  for (size_t i = 0; i < lengthof (h); ++i)
    start (&h[i]);
  stamp = q_grace_stamp ();
  for (size_t i = 0; i < lengthof (h); ++i) {
    assert_false (passes (stamp));
    stop (&h[i]);
  }
  assert_true (passes (stamp));
}

/* Threads come and go: their slots are used again and hold nothing up. */
static void
test_thread_exit (void **state)
{
  (void)state;
  for (int i = 0; i < 200; ++i) {
    struct holder h;
    uint64_t stamp;

    start (&h);
    stamp = q_grace_stamp ();
    assert_false (passes (stamp));
    stop (&h);
    assert_true (passes (stamp));
  }
}

/* ---- retired objects ------------------------------------------------------------------------ */

static _Atomic unsigned freed;

static void
count_free (void *p)
{
  free (p);
  ++freed;
}

static void
test_retire (void **state)
{
  q_pin_t pin;

  (void)state;
  freed = 0;
  pin = q_pin ();
  q_grace_retire (malloc (1), count_free);
  q_grace_retire (malloc (1), count_free);
  advance ();
  assert_int_equal (freed, 0);
  q_unpin (pin);
  advance ();
  assert_int_equal (freed, 2);
}

/* Readers follow a pointer that a writer replaces all the time: nobody sees what was freed. */
static int *_Atomic published;
static _Atomic bool stopping;
static _Atomic unsigned wrong;

static void
poison (void *p)
{
  *(volatile int *)p = -1;
  free (p);
  ++freed;
}

static void *
follow (void *opaque)
{
  (void)opaque;
  while (!stopping)
    for (int i = 0; i < 100; ++i) {
      q_pin_t pin = q_pin ();
      const volatile int *p = atomic_load_explicit (&published, memory_order_acquire);

      for (int j = 0; j < 20; ++j)
        if (*p != 42)
          ++wrong;
      q_unpin (pin);
    }
  return NULL;
}

static void
test_readers (void **state)
{
  pthread_t id[4];
  struct timespec start_time, now;
  unsigned retired = 0;

  (void)state;
  freed = wrong = 0;
  stopping = false;
  published = malloc (sizeof *published);
  *published = 42;
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_create (&id[i], NULL, follow, NULL), 0);
  clock_gettime (CLOCK_MONOTONIC, &start_time);
  do {
    int *next = malloc (sizeof *next);

    *next = 42;
    q_grace_retire (atomic_exchange (&published, next), poison);
    ++retired;
    clock_gettime (CLOCK_MONOTONIC, &now);
  } while (now.tv_sec - start_time.tv_sec < 2 && wrong == 0);
  stopping = true;
  for (size_t i = 0; i < lengthof (id); ++i)
    pthread_join (id[i], NULL);
  advance ();
  assert_int_equal (wrong, 0);
  assert_int_equal (freed, retired);
  free (published);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_no_pins),      cmocka_unit_test (test_pinned_before),
    cmocka_unit_test (test_pinned_after), cmocka_unit_test (test_nested),
    cmocka_unit_test (test_out_of_order), cmocka_unit_test (test_other_threads),
    cmocka_unit_test (test_thread_exit),  cmocka_unit_test (test_retire),
    cmocka_unit_test (test_readers),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
