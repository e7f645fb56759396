/* SPDX-License-Identifier: BSD-3-Clause
 *
 * L2 tables that are kept as runs: the same entries, and whole again when they are changed.
 */

#include "unit.h"

#include "entry.h"

#define CLUSTER 4096ull
#define ENTRIES (CLUSTER / 8)

/* Any entries at all, alike, in steps of a cluster or of something else, must come back as they
 * were; and so they must in the whole table. */
static void
test_any_entries (void **state)
{
  uint64_t seed = random_seed (3);
  unsigned packed = 0, left = 0;
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "disk", 64 * CLUSTER, 12);
  f.opts.read_only = true;
  img = unit_open (&f, "disk");
  for (unsigned round = 0; round < 2000; ++round) {
    be64 mem[ENTRIES];
    unsigned longest = 1 + (unsigned)random_below (&seed, 3 * ENTRIES / 2), runs = 0;
    bool regular = true;

    for (unsigned i = 0; i < ENTRIES;) {
      unsigned end = i + 1 + (unsigned)random_below (&seed, longest);
      uint64_t e = random_below (&seed, 4) ? random_next (&seed) : UINT64_MAX - CLUSTER * 2;
      uint64_t step = random_below (&seed, 3) * (random_below (&seed, 9) ? CLUSTER / 2 : 1);

      regular = regular && (step == 0 || step == CLUSTER);
      for (++runs; i < ENTRIES && i < end; ++i, e += step)
        mem[i] = put64 (e);
    }
    struct q_table *t = q_runs_pack (img, 1, 5 * CLUSTER, mem), *whole;
    if (!t) {
      assert_false (regular && runs <= ENTRIES / 16);
      ++left;
      continue;
    }
    ++packed;
    assert_true (t->bytes < CLUSTER);
    whole = q_runs_unpack (t);
    assert_non_null (whole);
    assert_true (whole->runs == 0 && whole->host == t->host && whole->index == t->index);
    for (unsigned i = 0; i < ENTRIES; ++i) {
      assert_int_equal (q_l2_entry_get (t, i).descriptor, get64 (mem[i]));
      assert_int_equal (q_l2_entry_get (whole, i).descriptor, get64 (mem[i]));
    }
    q_table_free (whole);
    q_table_free (t);
  }
  assert_true (packed > 100 && left > 100);
  unit_close (img);
  unit_done (&f);
}

static uint32_t
runs_of (struct q_image *img, uint64_t index)
{
  struct q_table *t;
  q_pin_t pin = q_pin ();
  uint32_t runs;

  assert_int_equal (q_l2_get (img, index, 0, &t), 0);
  runs = t ? t->runs : 0;
  q_unpin (pin);
  return runs;
}

/* Reading and overwriting in place leave a table as it is kept; a new mapping makes it whole. */
static void
test_life (void **state)
{
  struct q_write_plan plan;
  struct fixture f;
  struct q_image *img;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "disk", 2 * ENTRIES * CLUSTER, 12);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 100 * CLUSTER, 1);
  assert_int_equal (runs_of (img, 0), 0); /* it was made here, and changed since */
  unit_close (img);

  img = unit_open (&f, "disk");
  unit_reads (img, 0, 100 * CLUSTER, 1);
  unit_reads (img, 100 * CLUSTER, 20 * CLUSTER, 0);
  assert_int_equal (runs_of (img, 0), 2);
  unit_writes (img, 7 * CLUSTER + 5, 2 * CLUSTER, 2);
  assert_int_equal (runs_of (img, 0), 2);
  /* To change it takes time. */
  pin = q_pin ();
  assert_int_equal (q_write_begin (img, 200 * CLUSTER, CLUSTER, Q_NOWAIT, &plan), -EAGAIN);
  q_unpin (pin);
  assert_int_equal (runs_of (img, 0), 2);
  unit_writes (img, 200 * CLUSTER, CLUSTER, 3);
  assert_int_equal (runs_of (img, 0), 0);
  assert_int_equal (q_discard (img, 50 * CLUSTER, CLUSTER), 0);
  for (unsigned i = 0; i < 2; ++i) {
    unit_reads (img, 0, 7 * CLUSTER + 5, 1);
    unit_reads (img, 7 * CLUSTER + 5, 2 * CLUSTER, 2);
    unit_reads (img, 10 * CLUSTER, 40 * CLUSTER, 1);
    unit_reads (img, 50 * CLUSTER, CLUSTER, 0);
    unit_reads (img, 51 * CLUSTER, 49 * CLUSTER, 1);
    unit_reads (img, 100 * CLUSTER, 100 * CLUSTER, 0);
    unit_reads (img, 200 * CLUSTER, CLUSTER, 3);
    unit_close (img);
    unit_check (&f, "disk");
    img = unit_open (&f, "disk");
  }
  unit_reads (img, 0, CLUSTER, 1);
  assert_true (runs_of (img, 0) > 2);
  unit_close (img);
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_any_entries),
    cmocka_unit_test (test_life),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
