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
