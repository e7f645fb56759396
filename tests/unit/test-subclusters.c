/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Extended L2 entries: what is mapped, written, zeroed and discarded by subclusters, and what an
 * entry may not say.
 */

#include "unit.h"

#define CLUSTER 65536ull
#define SUB     2048ull
#define SIZE    (8 * CLUSTER)

#define DATA(from, to) ((2ull << (to)) - (1ull << (from)))
#define ZERO(from, to) (DATA (from, to) << 32)

static struct mem_file *
make (struct fixture *f, const char *backing)
{
  struct q_create_options o;

  q_create_options_init (&o);
  o.extended_l2 = true;
  o.backing_file = backing;
  o.backing_format = backing ? "raw" : NULL;
  return unit_create (f, "disk", SIZE, &o);
}

/* A host cluster for GC with the bytes BYTE, of which BITMAP says what is used. */
static uint64_t
set_host (struct mem_file *m, uint64_t gc, uint8_t byte, uint64_t bitmap)
{
  uint64_t host = unit_set_data (m, gc, byte);

  unit_set_bitmap (m, gc, bitmap);
  return host;
}

/* ---- looking --------------------------------------------------------------------------------- */

static void
expect_extent (struct q_image *img, uint64_t offset, unsigned flags, uint8_t kind, uint64_t len,
               unsigned depth)
{
  struct q_extent e;
  q_pin_t pin = q_pin ();

  assert_int_equal (q_map (img, offset, SIZE - offset, &e, 1, flags), 1);
  q_unpin (pin);
  assert_int_equal (e.kind, kind);
  assert_int_equal (e.len, len);
  assert_int_equal (e.depth, depth);
}

static void
test_map (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t host;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", SIZE, 5);
  m = make (&f, "base");
  host = set_host (m, 0, 1, DATA (4, 7) | ZERO (8, 9) | DATA (30, 31));
  assert_int_equal (set_host (m, 1, 2, DATA (0, 0)), host + CLUSTER);
  unit_set_entry (m, 2, 0);
  unit_set_bitmap (m, 2, ZERO (0, 31));
  unit_set_bitmap (m, 3, ZERO (0, 15));
  f.opts.read_only = true;
  img = unit_open (&f, "disk");

  unit_reads (img, 0, 4 * SUB, 5);
  unit_reads (img, 4 * SUB, 4 * SUB, 1);
  unit_reads (img, 8 * SUB, 2 * SUB, 0);
  unit_reads (img, 10 * SUB, 20 * SUB, 5);
  unit_reads (img, 30 * SUB, 2 * SUB, 1);
  unit_reads (img, CLUSTER, SUB, 2);
  unit_reads (img, CLUSTER + SUB, 31 * SUB, 5);
  unit_reads (img, 2 * CLUSTER, CLUSTER + 16 * SUB, 0);
  unit_reads (img, 3 * CLUSTER + 16 * SUB, CLUSTER, 5);

  /* Runs of what is alike are one extent, across clusters too. */
  expect_extent (img, 0, Q_MAP_TOP, Q_ZERO, 4 * SUB, 1);
  expect_extent (img, 100, 0, Q_DATA, 4 * SUB - 100, 1);
  expect_extent (img, 5 * SUB + 7, 0, Q_DATA, 3 * SUB - 7, 0);
  expect_extent (img, 8 * SUB, 0, Q_ZERO, 2 * SUB, 0);
  expect_extent (img, 10 * SUB, 0, Q_DATA, 20 * SUB, 1);
  expect_extent (img, 30 * SUB, 0, Q_DATA, 3 * SUB, 0);
  expect_extent (img, 30 * SUB, Q_MAP_MERGE, Q_DATA, 3 * SUB, 0);
  expect_extent (img, 2 * CLUSTER, 0, Q_ZERO, CLUSTER + 16 * SUB, 0);
  expect_extent (img, 3 * CLUSTER + 16 * SUB, 0, Q_DATA, SIZE - 3 * CLUSTER - 16 * SUB, 1);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

static void
test_impossible (void **state)
{
  static const struct {
    uint64_t entry, bitmap;
    const char *message;
  } cases[] = {
    { Q_COPIED, DATA (3, 4) | ZERO (4, 4), "both allocated and zeros" },
    { 0, DATA (0, 0), "without a host cluster" },
    { Q_COPIED | Q_L2_ZERO, DATA (0, 0), "the zero flag is set" },
    { Q_COPIED | 2, DATA (0, 0), "reserved bits" },
    { Q_COPIED | 512, DATA (0, 0), "not aligned" },
  };

  (void)state;
  for (size_t i = 0; i < lengthof (cases); ++i) {
    struct fixture f;
    struct mem_file *m;
    struct q_image *img;
    uint64_t host, entry = cases[i].entry;
    uint8_t byte;

    unit_init (&f);
    m = make (&f, NULL);
    host = unit_take (m, 1);
    if (entry)
      entry += host;
    unit_set_entry (m, 1, entry);
    unit_set_bitmap (m, 1, cases[i].bitmap);
    img = unit_open (&f, "disk");
    assert_int_equal (q_pread (img, &byte, CLUSTER, 1), -EIO);
    assert_contains (unit_last_log (), cases[i].message);
    assert_contains (unit_last_log (), "guest cluster 1");
    assert_int_equal (q_pwrite (img, &byte, CLUSTER, 1), -EROFS);
    q_close (&img, NULL);
    assert_true (get64 (unit_header (m)->incompatible_features) & Q_INCOMPAT_CORRUPT);
    unit_done (&f);
  }
}

/* As QEMU has it, that field is not used. */
static void
test_compressed_with_bitmap (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_extent e;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  m = make (&f, NULL);
  unit_set_entry (m, 0, Q_L2_COMPRESSED | unit_take (m, 1));
  unit_set_bitmap (m, 0, DATA (0, 3));
  f.opts.read_only = true;
  img = unit_open (&f, "disk");
  pin = q_pin ();
  assert_int_equal (q_map (img, 5000, 4096, &e, 1, 0), 1);
  assert_int_equal (e.kind, Q_COMPRESSED);
  assert_int_equal (e.skip, 5000);
  q_unpin (pin);
  unit_close (img);
  unit_done (&f);
}

static void
test_small_clusters (void **state)
{
  struct q_create_options o;
  struct fixture f;
  struct q_image *img;
  struct qcow2_header *h;

  (void)state;
  unit_init (&f);
  q_create_options_init (&o);
  o.extended_l2 = true;
  o.cluster_bits = 13;
  o.opener = &f.store.opener;
  assert_int_equal (q_create ("small", SIZE, &o, &f.err), -EINVAL);
  assert_contains (f.err.text, "at least 16384");
  o.cluster_bits = 14;
  o.version = 2;
  f.err.text[0] = '\0';
  assert_int_equal (q_create ("small", SIZE, &o, &f.err), -EINVAL);
  assert_contains (f.err.text, "version 3");

  h = unit_header (unit_create_clusters (&f, "disk", SIZE, 13));
  h->incompatible_features = put64 (Q_INCOMPAT_EXTL2);
  assert_int_equal (unit_try_open (&f, "disk", &img), -EINVAL);
  assert_contains (f.err.text, "cluster_bits is 13");
  unit_done (&f);
}

/* ---- writing --------------------------------------------------------------------------------- */

static void
expect_plan (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags, bool allocates,
             uint32_t head, uint32_t tail)
{
  struct q_write_plan plan;
  q_pin_t pin = q_pin ();

  assert_int_equal (q_write_begin (img, offset, len, flags, &plan), 0);
  assert_int_equal (plan.len, len);
  assert_int_equal (plan.allocates, allocates);
  assert_int_equal (plan.head, head);
  assert_int_equal (plan.tail, tail);
  q_write_abort (&plan);
  q_unpin (pin);
}

/* Only the subclusters that are written are allocated, and only their rests are copied. */
static void
test_write (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t host;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", SIZE, 5);
  m = make (&f, "base");
  img = unit_open (&f, "disk");

  /* Nothing to copy: it need not wait. */
  unit_writes (img, CLUSTER, 1, 9); /* the table */
  expect_plan (img, 2 * SUB, 3 * SUB, Q_NOWAIT, true, 0, 0);
  expect_plan (img, 2 * SUB + 100, 1000, 0, true, 100, SUB - 1100);
  unit_writes (img, 2 * SUB + 100, 1000, 1);
  unit_reads (img, 0, 2 * SUB + 100, 5);
  unit_reads (img, 2 * SUB + 100, 1000, 1);
  unit_reads (img, 2 * SUB + 1100, CLUSTER - 2 * SUB - 1100, 5);
  assert_int_equal (q_flush (img), 0);
  host = unit_get_entry (m, 0);
  assert_true (host & Q_COPIED);
  assert_int_equal (unit_get_bitmap (m, 0), DATA (2, 2));

  /* What is there is overwritten in place, up to where it ends. */
  {
    struct q_write_plan plan;
    q_pin_t pin = q_pin ();

    assert_int_equal (q_write_begin (img, 2 * SUB + 5, 2 * SUB, Q_NOWAIT, &plan), 0);
    assert_false (plan.allocates);
    assert_int_equal (plan.len, SUB - 5);
    assert_int_equal (plan.run[0].host, (host & Q_OFFSET_MASK) + 2 * SUB + 5);
    q_write_commit (&plan);
    q_unpin (pin);
  }

  /* The rest of the cluster is used before another is taken; data beside it stays as it is. */
  expect_plan (img, 0, 2 * SUB + 7, Q_NOWAIT, true, 0, 0);
  expect_plan (img, SUB + 1, 100, 0, true, 1, SUB - 101);
  unit_writes (img, SUB + 1, 2 * SUB, 2);
  unit_reads (img, SUB, 1, 5);
  unit_reads (img, SUB + 1, 2 * SUB, 2);
  unit_reads (img, 3 * SUB + 1, 10 * SUB, 5);
  unit_writes (img, 0, CLUSTER, 3);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (unit_get_entry (m, 0), host);
  assert_int_equal (unit_get_bitmap (m, 0), DATA (0, 31));
  unit_reads (img, 0, CLUSTER, 3);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* Over zeros: the rest of a subcluster is zeros, whatever is in the host cluster. */
static void
test_write_over_zeros (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t host;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", SIZE, 5);
  m = make (&f, "base");
  host = set_host (m, 0, 1, ZERO (0, 3) | DATA (4, 4));
  img = unit_open (&f, "disk");
  expect_plan (img, SUB + 10, 20, 0, true, 10, SUB - 30);
  unit_writes (img, SUB + 10, 20, 2);
  unit_reads (img, 0, SUB + 10, 0);
  unit_reads (img, SUB + 10, 20, 2);
  unit_reads (img, SUB + 30, 3 * SUB - 30, 0);
  unit_reads (img, 4 * SUB, SUB, 1);
  unit_reads (img, 5 * SUB, 27 * SUB, 5);
  unit_close (img);
  assert_int_equal (unit_get_entry (m, 0), host | Q_COPIED);
  assert_int_equal (unit_get_bitmap (m, 0), DATA (1, 1) | DATA (4, 4) | ZERO (0, 0) | ZERO (2, 3));
  unit_check (&f, "disk");
  unit_done (&f);
}

/* A cluster that a snapshot shares: what it holds goes along, and nothing else. */
static void
test_write_shared (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t host;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", SIZE, 5);
  m = make (&f, "base");
  host = set_host (m, 0, 1, DATA (10, 11) | DATA (13, 13) | ZERO (14, 20));
  unit_set_entry (m, 0, host);
  unit_set_refcount (m, host, 2);
  img = unit_open (&f, "disk");
  expect_plan (img, 8 * SUB + 1, 10, 0, true, 1, 6 * SUB - 11);
  expect_plan (img, 16 * SUB, SUB, 0, true, 6 * SUB, 0);
  expect_plan (img, 9 * SUB, 6 * SUB, 0, true, 0, 0);
  unit_writes (img, 16 * SUB, 100, 2);
  unit_reads (img, 0, 10 * SUB, 5);
  unit_reads (img, 10 * SUB, 2 * SUB, 1);
  unit_reads (img, 12 * SUB, SUB, 5);
  unit_reads (img, 13 * SUB, SUB, 1);
  unit_reads (img, 14 * SUB, 2 * SUB, 0);
  unit_reads (img, 16 * SUB, 100, 2);
  unit_reads (img, 16 * SUB + 100, 5 * SUB - 100, 0);
  unit_reads (img, 21 * SUB, 11 * SUB, 5);
  unit_close (img);
  assert_true (unit_get_entry (m, 0) != host && (unit_get_entry (m, 0) & Q_COPIED));
  assert_int_equal (unit_get_bitmap (m, 0), DATA (10, 16) | ZERO (17, 20));
  assert_int_equal (unit_refcount (m, host), 1);
  unit_set_refcount (m, host, 0); /* there was no snapshot */
  unit_check (&f, "disk");
  unit_done (&f);
}

/* ---- zeroes and discard ---------------------------------------------------------------------- */

static void
expect_entry (struct mem_file *m, uint64_t gc, uint64_t entry, uint64_t bitmap)
{
  if (unit_get_entry (m, gc) != entry || unit_get_bitmap (m, gc) != bitmap)
    fail_msg ("cluster %llu: %#llx %#llx, should be %#llx %#llx", (unsigned long long)gc,
              (unsigned long long)unit_get_entry (m, gc),
              (unsigned long long)unit_get_bitmap (m, gc), (unsigned long long)entry,
              (unsigned long long)bitmap);
}

static void
test_zero (void **state)
{
  static const unsigned all_flags[] = { 0, Q_ZERO_UNMAP, Q_ZERO_FAST, Q_ZERO_FAST | Q_ZERO_UNMAP };

  (void)state;
  for (size_t i = 0; i < lengthof (all_flags); ++i) {
    unsigned flags = all_flags[i];
    bool unmap = flags & Q_ZERO_UNMAP;
    struct fixture f;
    struct mem_file *m;
    struct q_image *img;
    uint64_t a, b, shared;

    unit_init (&f);
    f.opts.discard = true;
    unit_raw (&f, "base", 5 * CLUSTER, 5);
    m = make (&f, "base");
    a = set_host (m, 0, 1, DATA (0, 15));
    b = set_host (m, 1, 2, DATA (3, 3));
    shared = set_host (m, 2, 3, DATA (0, 1));
    unit_set_entry (m, 2, shared);
    unit_set_refcount (m, shared, 2);
    img = unit_open (&f, "disk");
    assert_int_equal (q_zero (img, 4 * SUB, 2 * SUB, flags), 0);
    /* Not whole, but zeros already. */
    assert_int_equal (q_zero (img, 4 * SUB + 7, SUB, flags), 0);
    assert_int_equal (q_zero (img, 20 * SUB, SUB, flags), 0);
    assert_int_equal (q_zero (img, CLUSTER + 3 * SUB, SUB, flags), 0);
    assert_int_equal (q_zero (img, 2 * CLUSTER + SUB, SUB, flags), 0);
    assert_int_equal (q_zero (img, 3 * CLUSTER + SUB, 2 * SUB, flags), 0);
    /* Past the end of what is below there is nothing to hide. */
    assert_int_equal (q_zero (img, 6 * CLUSTER + SUB, 2 * SUB, flags), 0);
    unit_reads (img, 0, 4 * SUB, 1);
    unit_reads (img, 4 * SUB, 2 * SUB, 0);
    unit_reads (img, 6 * SUB, 10 * SUB, 1);
    unit_reads (img, 16 * SUB, 4 * SUB, 5);
    unit_reads (img, 20 * SUB, SUB, 0);
    unit_reads (img, CLUSTER + 3 * SUB, SUB, 0);
    unit_reads (img, CLUSTER + 4 * SUB, SUB, 5);
    unit_close (img);
    expect_entry (m, 0, a | Q_COPIED, DATA (0, 3) | DATA (6, 15) | ZERO (4, 5) | ZERO (20, 20));
    expect_entry (m, 1, unmap ? 0 : b | Q_COPIED, ZERO (3, 3));
    expect_entry (m, 2, shared, DATA (0, 0) | ZERO (1, 1));
    expect_entry (m, 3, 0, ZERO (1, 2));
    expect_entry (m, 6, 0, 0);
    assert_int_equal (unit_refcount (m, b), !unmap);
    unit_set_refcount (m, shared, 1);
    unit_set_entry (m, 2, shared | Q_COPIED);
    unit_check (&f, "disk");
    unit_done (&f);
  }
}

static void
test_zero_part (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t a;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", SIZE, 5);
  m = make (&f, "base");
  a = set_host (m, 0, 1, DATA (0, 31));
  unit_set_entry (m, 1, Q_L2_COMPRESSED | unit_take (m, 1));
  img = unit_open (&f, "disk");
  assert_int_equal (q_zero (img, SUB + 1, 2 * SUB, Q_ZERO_FAST), -ENOTSUP);
  assert_int_equal (q_zero (img, CLUSTER + SUB, SUB, Q_ZERO_FAST), -ENOTSUP);
  assert_int_equal (q_zero (img, SUB, CLUSTER, Q_ZERO_FAST), -ENOTSUP);
  assert_int_equal (q_zero (img, SUB, 2 * CLUSTER - SUB, Q_ZERO_FAST), 0);
  unit_reads (img, SUB, 2 * CLUSTER - SUB, 0);
  assert_int_equal (q_zero (img, 100, 100, 0), 0);
  unit_reads (img, 0, 100, 1);
  unit_reads (img, 100, 100, 0);
  unit_reads (img, 200, SUB - 200, 1);
  unit_close (img);
  expect_entry (m, 0, a | Q_COPIED, DATA (0, 0) | ZERO (1, 31));
  expect_entry (m, 1, 0, ZERO (0, 31));
  unit_check (&f, "disk");
  unit_done (&f);
}

static void
test_discard (void **state)
{
  (void)state;
  for (int backing = 0; backing < 2; ++backing) {
    struct fixture f;
    struct mem_file *m;
    struct q_image *img;
    uint64_t a, b, compressed;

    unit_init (&f);
    f.opts.discard = true;
    if (backing)
      unit_raw (&f, "base", SIZE, 5);
    m = make (&f, backing ? "base" : NULL);
    a = set_host (m, 0, 1, DATA (0, 15));
    b = set_host (m, 1, 2, DATA (3, 4));
    compressed = unit_take (m, 1);
    unit_set_entry (m, 2, Q_L2_COMPRESSED | compressed);
    img = unit_open (&f, "disk");
    /* What was never written stays as it is; what is not a whole subcluster, too. */
    assert_int_equal (q_discard (img, 10 * SUB + 1, 10 * SUB), 0);
    unit_reads (img, 0, 11 * SUB, 1);
    unit_reads (img, 11 * SUB, 5 * SUB, 0);
    unit_reads (img, 16 * SUB, 16 * SUB, backing ? 5 : 0);
    /* The last data takes the host cluster with it. */
    assert_int_equal (q_discard (img, CLUSTER + 3 * SUB, SUB), 0);
    assert_int_equal (q_flush (img), 0);
    assert_int_equal (unit_refcount (m, b), 1);
    assert_int_equal (q_discard (img, CLUSTER + 4 * SUB, SUB), 0);
    /* Compressed clusters go as a whole or not at all. */
    assert_int_equal (q_discard (img, 2 * CLUSTER + SUB, SUB), 0);
    unit_close (img);
    expect_entry (m, 0, a | Q_COPIED, DATA (0, 10) | (backing ? ZERO (11, 15) : 0));
    expect_entry (m, 1, 0, backing ? ZERO (3, 4) : 0);
    expect_entry (m, 2, Q_L2_COMPRESSED | compressed, 0);
    assert_int_equal (unit_refcount (m, b), 0);
    unit_check (&f, "disk");
    unit_done (&f);
  }
}

static void
test_provision (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t a;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", SIZE, 5);
  m = make (&f, "base");
  a = set_host (m, 0, 1, DATA (3, 3));
  img = unit_open (&f, "disk");
  assert_int_equal (q_zero (img, 0, 2 * CLUSTER + SUB, Q_ZERO_PROVISION), 0);
  unit_reads (img, 0, 2 * CLUSTER + SUB, 0);
  unit_reads (img, 2 * CLUSTER + SUB, SUB, 5);
  unit_close (img);
  expect_entry (m, 0, a | Q_COPIED, ZERO (0, 31));
  assert_true (unit_get_entry (m, 1) & Q_COPIED);
  assert_int_equal (unit_get_bitmap (m, 1), ZERO (0, 31));
  assert_true (unit_get_entry (m, 2) & Q_COPIED);
  assert_int_equal (unit_get_bitmap (m, 2), DATA (0, 0));
  unit_check (&f, "disk");
  unit_done (&f);
}

/* To the end of a disk that ends within a cluster, and even within a subcluster. */
static void
test_end_of_disk (void **state)
{
  struct q_create_options o;
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t size = CLUSTER + 5 * SUB + 512;

  (void)state;
  unit_init (&f);
  f.opts.discard = true;
  unit_raw (&f, "base", size, 5);
  q_create_options_init (&o);
  o.extended_l2 = true;
  o.backing_file = "base";
  o.backing_format = "raw";
  m = unit_create (&f, "disk", size, &o);
  img = unit_open (&f, "disk");
  assert_int_equal (q_zero (img, size - 100, 100, 0), 0);
  unit_reads (img, CLUSTER, 5 * SUB + 412, 5);
  unit_reads (img, size - 100, 100, 0);
  assert_int_equal (q_discard (img, size - 100, 100), 0);
  unit_writes (img, size - 600, 600, 7);
  unit_reads (img, size - 600, 600, 7);
  assert_int_equal (q_zero (img, size - 512, 512, Q_ZERO_FAST), 0);
  unit_reads (img, size - 600, 88, 7);
  unit_reads (img, size - 512, 512, 0);
  assert_int_equal (q_discard (img, CLUSTER, size - CLUSTER), 0);
  unit_close (img);
  assert_int_equal (unit_get_entry (m, 1), 0);
  unit_check (&f, "disk");
  unit_done (&f);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_map),
    cmocka_unit_test (test_impossible),
    cmocka_unit_test (test_compressed_with_bitmap),
    cmocka_unit_test (test_small_clusters),
    cmocka_unit_test (test_write),
    cmocka_unit_test (test_write_over_zeros),
    cmocka_unit_test (test_write_shared),
    cmocka_unit_test (test_zero),
    cmocka_unit_test (test_zero_part),
    cmocka_unit_test (test_discard),
    cmocka_unit_test (test_provision),
    cmocka_unit_test (test_end_of_disk),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
