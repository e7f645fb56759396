/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Requests that run beside operations on the whole disk: each of these once lost what had been
 * acknowledged.
 */

#include <pthread.h>
#include <unistd.h>

#include "unit.h"

#define MiB   (1ull << 20)
#define GiB   (1ull << 30)
#define BLOCK 4096u

static struct q_image *img;
static char state_dir[] = "/dev/shm/nbdcow-beside-XXXXXX";

static void
write_block (uint64_t offset, uint8_t byte)
{
  unit_writes (img, offset, BLOCK, byte);
}

static void *
make_snapshot (void *result)
{
  struct q_error err;
  char id[Q_SNAPSHOT_ID_SIZE];

  *(int *)result = q_snapshot_create (img, "s", id, &err);
  return NULL;
}

static void *
write_second (void *written)
{
  static const uint8_t two[BLOCK] = { [0 ... BLOCK - 1] = 3 };
  struct q_write_plan b;
  q_pin_t pin = q_pin ();

  assert_int_equal (q_write_begin (img, 2 * BLOCK, BLOCK, 0, &b), 0);
  assert_int_equal (q_write_data (&b, two), 0);
  q_write_commit (&b);
  q_unpin (pin);
  atomic_store ((_Atomic bool *)written, true);
  return NULL;
}

/* A write in place that is on its way when a snapshot begins, and another one to the same cluster:
 * the second must not copy the cluster as it is before the first has arrived. */
static void
test_overwrite_beside_snapshot (void **state)
{
  static const uint8_t one[BLOCK] = { [0 ... BLOCK - 1] = 2 };
  struct q_write_plan a;
  struct fixture f;
  pthread_t t, second;
  _Atomic bool written = false;
  bool begun = false;
  q_pin_t pin;
  int r, made = 1;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 64 * GiB, NULL);
  img = unit_open (&f, "disk");
  for (uint64_t i = 0; i < 128; i++) /* many tables, so that counting them takes a while */
    write_block (i * 512 * MiB, 1);
  assert_int_equal (q_flush (img), 0);
  pin = q_pin ();
  assert_int_equal (q_write_begin (img, 0, BLOCK, 0, &a), 0);
  assert_false (a.allocates);
  assert_int_equal (pthread_create (&t, NULL, make_snapshot, &made), 0);
  while (!atomic_load (&img->gate.closed)) {
    struct q_write_plan b;

    r = q_write_begin (img, 2 * BLOCK, BLOCK, Q_NOWAIT, &b);
    if (r == -EAGAIN && !atomic_load (&img->gate.closed)) {
      /* As a worker goes on with it: by a copy, if it may.  Or it waits until the snapshot is made,
       * which waits for the first. */
      assert_int_equal (pthread_create (&second, NULL, write_second, &written), 0);
      begun = true;
      while (!atomic_load (&written) && !atomic_load (&img->gate.closed))
        usleep (100);
      break;
    }
    if (r == 0)
      q_write_abort (&b);
  }
  assert_int_equal (q_write_data (&a, one), 0);
  q_write_commit (&a);
  q_unpin (pin);
  if (begun)
    pthread_join (second, NULL);
  pthread_join (t, NULL);
  assert_int_equal (made, 0);
  unit_reads (img, 0, BLOCK, 2);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* Growing again and again while somebody still looks at the first L1 table. */
static void
test_growing_beside_reader (void **state)
{
  struct fixture f;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", GiB, NULL);
  f.opts.state_dir = state_dir;
  img = unit_open (&f, "disk");
  write_block (0, 7);
  assert_int_equal (q_flush (img), 0);
  pin = q_pin ();
  for (uint64_t gib = 2; gib <= 3; ++gib) {
    assert_int_equal (q_resize (img, gib * GiB, &f.err), 0);
    unit_reads (img, 0, BLOCK, 7);
  }
  q_unpin (pin);
  for (uint64_t gib = 4; gib <= 9; ++gib) {
    q_grace_drain ();
    assert_int_equal (q_resize (img, gib * GiB, &f.err), 0);
    unit_reads (img, 0, BLOCK, 7);
  }
  unit_close (img);
  f.opts.state_dir = NULL;
  img = unit_open (&f, "disk");
  unit_reads (img, 0, BLOCK, 7);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

static void *
discard (void *end)
{
  assert_int_equal (q_discard (img, 0, *(uint64_t *)end), 0);
  return NULL;
}

/* A long discard up to the end, behind which there is more before it gets there. */
static void
test_discard_beside_growing (void **state)
{
  enum { TABLES = 1500 };
  uint64_t end = TABLES * 512 * MiB + 10 * 65536 + 32768;
  uint8_t first[BLOCK];
  struct fixture f;
  pthread_t t;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", end, NULL);
  f.opts.discard = true;
  img = unit_open (&f, "disk");
  for (uint64_t i = 0; i < TABLES; i++)
    write_block (i * 512 * MiB, 1);
  write_block (end - BLOCK, 1);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (pthread_create (&t, NULL, discard, &end), 0);
  do
    assert_int_equal (q_pread (img, first, 0, BLOCK), 0);
  while (first[0]);
  assert_int_equal (q_resize (img, end + 32768, &f.err), 0);
  write_block (end, 9);
  pthread_join (t, NULL);
  unit_reads (img, end, BLOCK, 9);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_overwrite_beside_snapshot),
    cmocka_unit_test (test_growing_beside_reader),
    cmocka_unit_test (test_discard_beside_growing),
  };
  int failed;

  alarm (240);
  assert_non_null (mkdtemp (state_dir));
  failed = cmocka_run_group_tests (tests, NULL, NULL);
  rmdir (state_dir);
  return failed;
}
