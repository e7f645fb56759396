/* SPDX-License-Identifier: BSD-3-Clause
 *
 * discard-no-unref: what is discarded stays allocated, reads as zeros, and its space is given back.
 */

#include "unit.h"

#define K 1024u

static void
test_stays (void **state)
{
  for (unsigned way = 0; way < 2; ++way) {
    struct fixture f;
    struct mem_file *m;
    struct q_image *img;
    uint64_t host, entry;

    (void)state;
    unit_init (&f);
    f.opts.discard_no_unref = true;
    m = unit_create (&f, "disk", 1 << 20, NULL);
    img = unit_open (&f, "disk");
    unit_writes (img, 0, 320 * K, 1);
    assert_int_equal (q_flush (img), 0);
    entry = unit_get_entry (m, 1);
    host = entry & Q_OFFSET_MASK;
    assert_int_equal (m->data[host], 1);
    assert_int_equal (
        way ? q_zero (img, 64 * K, 128 * K, Q_ZERO_UNMAP) : q_discard (img, 64 * K, 128 * K), 0);
    unit_reads (img, 0, 64 * K, 1);
    unit_reads (img, 64 * K, 128 * K, 0);
    unit_reads (img, 192 * K, 128 * K, 1);
    for (unsigned i = 0; i < 128 * K; i += 512)
      assert_int_equal (m->data[host + i], 0); /* punched */
    assert_int_equal (q_flush (img), 0);
    assert_int_equal (unit_get_entry (m, 1), entry | Q_L2_ZERO);
    assert_int_equal (unit_refcount (m, host), 1);
    unit_writes (img, 70 * K, K, 2); /* where it was */
    unit_close (img);
    unit_check (&f, "disk");
    assert_int_equal (unit_get_entry (m, 1), entry);
    assert_int_equal (m->data[host + 6 * K], 2);
    unit_done (&f);
  }
}

/* What a snapshot shares is let go of, and not punched. */
static void
test_shared (void **state)
{
  char id[Q_SNAPSHOT_ID_SIZE];
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  f.opts.discard_no_unref = true;
  unit_create (&f, "disk", 1 << 20, NULL);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 320 * K, 1);
  assert_int_equal (q_snapshot_create (img, "x", id, &f.err), 0);
  assert_int_equal (q_discard (img, 0, 128 * K), 0);
  unit_reads (img, 0, 128 * K, 0);
  assert_int_equal (q_snapshot_apply (img, "x", &f.err), 0);
  unit_reads (img, 0, 320 * K, 1);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* Never shows what is below. */
static void
test_below (void **state)
{
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  f.opts.discard_no_unref = true;
  unit_raw (&f, "below", 1 << 20, 9);
  unit_overlay (&f, "disk", 1 << 20, "below", "raw");
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 128 * K, 1);
  assert_int_equal (q_discard (img, 0, 128 * K), 0);
  unit_reads (img, 0, 128 * K, 0);
  unit_reads (img, 128 * K, 128 * K, 9);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

static void
test_version_2 (void **state)
{
  struct q_create_options o;
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  f.opts.discard_no_unref = true;
  q_create_options_init (&o);
  o.version = 2;
  unit_create (&f, "disk", 1 << 20, &o);
  assert_int_equal (unit_try_open (&f, "disk", &img), -ENOTSUP);
  assert_contains (f.err.text, "version 2");
  f.opts.read_only = true;
  img = unit_open (&f, "disk");
  unit_close (img);
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_stays),
    cmocka_unit_test (test_shared),
    cmocka_unit_test (test_below),
    cmocka_unit_test (test_version_2),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
