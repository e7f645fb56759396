/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The gate: who is inside, who waits, and that nobody is inside while it is closed.
 */

#include "unit.h"

#include <unistd.h>

static void
image_init (struct q_image *img)
{
  memset (img, 0, sizeof *img);
  q_gate_init (&img->gate);
}

static void
image_done (struct q_image *img)
{
  uint64_t sum = 0;

  for (unsigned i = 0; i < Q_GATE_COUNTERS; ++i)
    sum += img->gate.inside[i].count;
  assert_int_equal (sum, 0);
  q_gate_destroy (&img->gate);
}

static void
test_counters (void **state)
{
  struct q_gate *g = NULL;

  (void)state;
  assert_int_equal (sizeof g->inside[0], 64);
}

static void
test_nowait (void **state)
{
  struct q_image img;

  (void)state;
  image_init (&img);
  assert_int_equal (q_gate_enter (&img, Q_NOWAIT), 0);
  assert_int_equal (q_gate_enter (&img, Q_NOWAIT), 0);
  q_gate_leave (&img);
  q_gate_leave (&img);
  q_gate_close (&img);
  for (int i = 0; i < 3; ++i)
    assert_int_equal (q_gate_enter (&img, Q_NOWAIT), -EAGAIN);
  q_gate_open (&img);
  assert_int_equal (q_gate_enter (&img, Q_NOWAIT), 0);
  q_gate_leave (&img);
  image_done (&img);
}

struct actor {
  struct q_image *img;
  _Atomic bool done;
};

static void *
close_and_open (void *opaque)
{
  struct actor *a = opaque;

  q_gate_close (a->img);
  a->done = true;
  q_gate_open (a->img);
  return NULL;
}

static void *
enter_and_leave (void *opaque)
{
  struct actor *a = opaque;

  assert_int_equal (q_gate_enter (a->img, 0), 0);
  a->done = true;
  q_gate_leave (a->img);
  return NULL;
}

static void *
only_leave (void *opaque)
{
  struct actor *a = opaque;

  q_gate_leave (a->img);
  return NULL;
}

/* Closing waits for those inside, of whom one leaves on another thread than it entered on, and
 * keeps newcomers out meanwhile. */
static void
test_closing_waits (void **state)
{
  struct q_image img;
  struct actor a = { .img = &img };
  pthread_t closer, other;

  (void)state;
  image_init (&img);
  q_gate_enter (&img, 0);
  q_gate_enter (&img, 0);
  assert_int_equal (pthread_create (&closer, NULL, close_and_open, &a), 0);
  while (q_gate_enter (&img, Q_NOWAIT) == 0) {
    q_gate_leave (&img);
    usleep (1000);
  }
  assert_false (a.done);
  q_gate_leave (&img);
  usleep (50000);
  assert_false (a.done);
  assert_int_equal (q_gate_enter (&img, Q_NOWAIT), -EAGAIN);
  assert_int_equal (pthread_create (&other, NULL, only_leave, &a), 0);
  pthread_join (other, NULL);
  pthread_join (closer, NULL);
  assert_true (a.done);
  image_done (&img);
}

static void
test_entering_waits (void **state)
{
  struct q_image img;
  struct actor in = { .img = &img }, closer = { .img = &img };
  pthread_t id[2];

  (void)state;
  image_init (&img);
  q_gate_close (&img);
  assert_int_equal (pthread_create (&id[0], NULL, enter_and_leave, &in), 0);
  assert_int_equal (pthread_create (&id[1], NULL, close_and_open, &closer), 0);
  usleep (50000);
  assert_false (in.done);
  assert_false (closer.done); /* one at a time */
  q_gate_open (&img);
  for (int i = 0; i < 2; ++i)
    pthread_join (id[i], NULL);
  assert_true (in.done);
  assert_true (closer.done);
  image_done (&img);
}

/* More threads than counters: writers that come and go, closers that look for one inside.  What the
 * closers write is not atomic: a thread sanitizer sees whether the gate orders it. */
#define WRITERS (Q_GATE_COUNTERS + 3)
#define ROUNDS  300

static _Atomic int inside;
static _Atomic unsigned intruders, entered;
static unsigned still; /* changes only while the gate is closed; read inside */

static void *
write_often (void *opaque)
{
  struct q_image *img = opaque;
  uint64_t seed = random_seed ((uintptr_t)&img);
  unsigned sum = 0;

  for (unsigned i = 0; i < ROUNDS; ++i) {
    if (q_gate_enter (img, random_below (&seed, 3) == 0 ? Q_NOWAIT : 0) < 0)
      continue;
    ++inside;
    ++entered;
    sum += still;
    if (random_below (&seed, 16) == 0 && q_gate_enter (img, Q_NOWAIT) == 0)
      q_gate_leave (img);
    --inside;
    q_gate_leave (img);
  }
  return (void *)(uintptr_t)(sum & 1);
}

static void *
close_often (void *opaque)
{
  struct q_image *img = opaque;

  for (unsigned i = 0; i < ROUNDS; ++i) {
    q_gate_close (img);
    if (inside != 0)
      ++intruders;
    ++still;
    if (inside != 0)
      ++intruders;
    q_gate_open (img);
    if (i % 8 == 0)
      usleep (100);
  }
  return NULL;
}

static void
test_threads (void **state)
{
  pthread_t id[WRITERS + 2];
  struct q_image img;

  (void)state;
  image_init (&img);
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_create (&id[i], NULL, i < WRITERS ? write_often : close_often, &img),
                      0);
  for (size_t i = 0; i < lengthof (id); ++i)
    pthread_join (id[i], NULL);
  assert_int_equal (intruders, 0);
  assert_int_equal (still, 2 * ROUNDS);
  assert_true (entered > WRITERS * ROUNDS / 2);
  image_done (&img);
}

/* Writes by threads go on around closings, and the image is sound. */
static void *
write_image (void *opaque)
{
  struct q_image *img = opaque;
  uint64_t seed = random_seed ((uintptr_t)&img);
  uint8_t buf[3000];

  memset (buf, 7, sizeof buf);
  for (unsigned i = 0; i < 200; ++i) {
    uint64_t offset = random_below (&seed, (4 << 20) - sizeof buf);

    assert_int_equal (q_pwrite (img, buf, offset, sizeof buf), 0);
    if (i % 16 == 0)
      assert_int_equal (q_discard (img, offset & ~0xffffull, 1 << 17), 0);
  }
  return NULL;
}

static void
test_image (void **state)
{
  struct fixture f;
  struct q_image *img;
  pthread_t id[4];

  (void)state;
  unit_init (&f);
  f.opts.discard = true;
  unit_create_clusters (&f, "a", 8 << 20, 12);
  img = unit_open (&f, "a");
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_create (&id[i], NULL, write_image, img), 0);
  for (unsigned i = 0; i < 50; ++i) {
    q_gate_close (img);
    assert_null (img->claims);
    q_gate_open (img);
    usleep (500);
  }
  for (size_t i = 0; i < lengthof (id); ++i)
    pthread_join (id[i], NULL);
  unit_close (img);
  unit_check (&f, "a");
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_counters),      cmocka_unit_test (test_nowait),
    cmocka_unit_test (test_closing_waits), cmocka_unit_test (test_entering_waits),
    cmocka_unit_test (test_threads),       cmocka_unit_test (test_image),
  };

  alarm (240);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
