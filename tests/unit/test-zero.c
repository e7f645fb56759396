/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Write zeroes and discard: what each turns every kind of cluster into, in both versions, with and
 * without a backing file.
 */

#include "unit.h"

#define K 65536ull /* a cluster */

enum { DATA, ALLOCATED_ZERO, PLAIN_ZERO, UNALLOCATED, COMPRESSED, SHARED, KINDS };

/* What an entry may be afterwards. */
enum outcome { IS_EMPTY, IS_PLAIN, IS_ALLOCATED_ZERO, IS_DATA, IS_AS_BEFORE };

static int
discard (struct q_image *img)
{
  return q_discard (img, 0, KINDS * K);
}

static int
zero_keep (struct q_image *img)
{
  return q_zero (img, 0, KINDS * K, 0);
}

static int
zero_unmap (struct q_image *img)
{
  return q_zero (img, 0, KINDS * K, Q_ZERO_UNMAP);
}

static int
zero_provision (struct q_image *img)
{
  return q_zero (img, 0, KINDS * K, Q_ZERO_PROVISION);
}

static enum outcome
outcome_of (uint64_t before, uint64_t after)
{
  if (after == 0)
    return IS_EMPTY;
  if (after == Q_L2_ZERO)
    return IS_PLAIN;
  if ((after & (Q_COPIED | Q_L2_ZERO | Q_L2_COMPRESSED)) == (Q_COPIED | Q_L2_ZERO) &&
      (after & Q_OFFSET_MASK))
    return IS_ALLOCATED_ZERO;
  if (after == before)
    return IS_AS_BEFORE;
  return IS_DATA;
}

/* An image with one cluster of each kind, all of which but PLAIN_ZERO and ALLOCATED_ZERO read as
 * something else than zeros if there is a backing file. */
static struct mem_file *
make (struct fixture *f, unsigned version, bool backing)
{
  struct q_create_options o;
  struct mem_file *m;
  uint64_t host;

  q_create_options_init (&o);
  o.version = version;
  if (backing) {
    unit_raw (f, "base", KINDS * K, 5);
    o.backing_file = "base";
    o.backing_format = "raw";
  }
  m = unit_create (f, "disk", KINDS * K, &o);
  unit_set_data (m, DATA, 1);
  if (version >= 3) {
    host = unit_take (m, 1);
    unit_set_entry (m, ALLOCATED_ZERO, host | Q_COPIED | Q_L2_ZERO);
    unit_set_entry (m, PLAIN_ZERO, Q_L2_ZERO);
  } else {
    unit_set_data (m, ALLOCATED_ZERO, 2);
    unit_set_data (m, PLAIN_ZERO, 3);
  }
  host = unit_take (m, 1); /* not inflated by what is done here */
  unit_set_entry (m, COMPRESSED, Q_L2_COMPRESSED | host);
  host = unit_set_data (m, SHARED, 6); /* with a snapshot that is not there: a leak */
  unit_set_entry (m, SHARED, host);
  unit_set_refcount (m, host, 2);
  return m;
}

static void
expect (unsigned version, bool backing, bool discard_option, int (*run) (struct q_image *),
        const enum outcome *outcomes)
{
  uint64_t before[KINDS], shared_host, data_host;
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;

  unit_init (&f);
  m = make (&f, version, backing);
  for (unsigned i = 0; i < KINDS; ++i)
    before[i] = unit_get_entry (m, i);
  data_host = before[DATA] & Q_OFFSET_MASK;
  shared_host = before[SHARED] & Q_OFFSET_MASK;
  f.opts.discard = discard_option;
  img = unit_open (&f, "disk");
  assert_int_equal (run (img), 0);
  for (unsigned i = 0; i < KINDS; ++i) {
    if (outcomes[i] == IS_AS_BEFORE)
      continue;
    unit_reads (img, i * K, K, 0);
  }
  unit_close (img);
  for (unsigned i = 0; i < KINDS; ++i) {
    uint64_t after = unit_get_entry (m, i);
    enum outcome got = outcome_of (before[i], after);

    if (outcomes[i] == IS_AS_BEFORE ? after != before[i] : got != outcomes[i])
      fail_msg ("version %u, %s backing file: cluster %u was %#llx and is %#llx", version,
                backing ? "with" : "without", i, (unsigned long long)before[i],
                (unsigned long long)after);
  }
  /* What was let go of has been counted down, and no more than that. */
  if ((unit_get_entry (m, DATA) & Q_OFFSET_MASK) != data_host)
    assert_int_equal (unit_refcount (m, data_host) <= 1, 1);
  if ((unit_get_entry (m, SHARED) & Q_OFFSET_MASK) != shared_host) {
    assert_int_equal (unit_refcount (m, shared_host), 1);
    assert_int_equal (m->data[shared_host], 6); /* and is somebody else's still */
    unit_set_refcount (m, shared_host, 0);
  } else
    unit_set_refcount (m, shared_host, 1);
  if (outcomes[SHARED] != IS_AS_BEFORE)
    unit_check (&f, "disk");
  unit_done (&f);
}

#define EXPECT(version, backing, discard_option, run, ...)                                         \
  do {                                                                                             \
    static const enum outcome outcomes_[KINDS] = { __VA_ARGS__ };                                  \
    expect (version, backing, discard_option, run, outcomes_);                                     \
  } while (0)

static void
test_discard (void **state)
{
  (void)state;
  EXPECT (3, false, true, discard, IS_EMPTY, IS_EMPTY, IS_PLAIN, IS_EMPTY, IS_EMPTY, IS_EMPTY);
  /* Never what the backing file has there. */
  EXPECT (3, true, true, discard, IS_PLAIN, IS_PLAIN, IS_PLAIN, IS_AS_BEFORE, IS_PLAIN, IS_PLAIN);
  EXPECT (2, false, true, discard, IS_EMPTY, IS_EMPTY, IS_EMPTY, IS_EMPTY, IS_EMPTY, IS_EMPTY);
  EXPECT (2, true, true, discard, IS_AS_BEFORE, IS_AS_BEFORE, IS_AS_BEFORE, IS_AS_BEFORE,
          IS_AS_BEFORE, IS_AS_BEFORE);
  EXPECT (3, true, false, discard, IS_AS_BEFORE, IS_AS_BEFORE, IS_AS_BEFORE, IS_AS_BEFORE,
          IS_AS_BEFORE, IS_AS_BEFORE);
}

static void
test_zero (void **state)
{
  (void)state;
  EXPECT (3, false, true, zero_unmap, IS_EMPTY, IS_EMPTY, IS_PLAIN, IS_EMPTY, IS_EMPTY, IS_EMPTY);
  EXPECT (3, true, true, zero_unmap, IS_PLAIN, IS_PLAIN, IS_PLAIN, IS_PLAIN, IS_PLAIN, IS_PLAIN);
  EXPECT (3, true, true, zero_keep, IS_ALLOCATED_ZERO, IS_ALLOCATED_ZERO, IS_PLAIN, IS_PLAIN,
          IS_PLAIN, IS_PLAIN);
  EXPECT (3, true, false, zero_unmap, IS_ALLOCATED_ZERO, IS_ALLOCATED_ZERO, IS_PLAIN, IS_PLAIN,
          IS_PLAIN, IS_PLAIN);
  EXPECT (2, false, true, zero_unmap, IS_EMPTY, IS_EMPTY, IS_EMPTY, IS_EMPTY, IS_EMPTY, IS_EMPTY);
}

static void
test_provision (void **state)
{
  (void)state;
  EXPECT (3, true, true, zero_provision, IS_ALLOCATED_ZERO, IS_ALLOCATED_ZERO, IS_ALLOCATED_ZERO,
          IS_ALLOCATED_ZERO, IS_ALLOCATED_ZERO, IS_ALLOCATED_ZERO);
  EXPECT (3, false, true, zero_provision, IS_ALLOCATED_ZERO, IS_ALLOCATED_ZERO, IS_ALLOCATED_ZERO,
          IS_ALLOCATED_ZERO, IS_ALLOCATED_ZERO, IS_ALLOCATED_ZERO);
}

/* Parts of clusters: zeros are written, a discard leaves them alone; the last cluster of the disk
 * is whole although the disk ends in it. */
static void
test_parts (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 3 * K + 512, NULL);
  for (unsigned i = 0; i < 4; ++i)
    unit_set_data (m, i, (uint8_t)(i + 1));
  img = unit_open (&f, "disk");
  assert_int_equal (q_discard (img, 100, K), 0); /* no whole one */
  unit_reads (img, 0, K, 1);
  unit_reads (img, K, K, 2);
  assert_int_equal (q_zero (img, 100, K, Q_ZERO_UNMAP), 0);
  unit_reads (img, 0, 100, 1);
  unit_reads (img, 100, K, 0);
  unit_reads (img, K + 100, K - 100, 2);
  assert_int_equal (q_zero (img, 50, 100, Q_ZERO_FAST), -ENOTSUP);
  unit_reads (img, 50, 50, 1); /* and nothing was changed */
  assert_int_equal (q_zero (img, 2 * K - 5, K + 5, Q_ZERO_FAST), -ENOTSUP);
  unit_reads (img, 2 * K, K, 3);
  assert_int_equal (q_zero (img, 2 * K, K + 100, Q_ZERO_FAST), -ENOTSUP);
  unit_reads (img, 2 * K, K, 3);
  unit_reads (img, 3 * K, 512, 4);
  assert_int_equal (q_zero (img, 2 * K, K, Q_ZERO_FAST), 0);
  unit_reads (img, 2 * K, K, 0);
  assert_int_equal (q_zero (img, 2 * K + 200, 10, Q_ZERO_FAST), 0); /* zeros already */
  assert_int_equal (q_discard (img, 3 * K, 511), 0);
  unit_reads (img, 3 * K, 512, 4);
  assert_int_equal (q_discard (img, 3 * K, 512), 0);
  unit_reads (img, 3 * K, 512, 0);
  assert_int_equal (q_discard (img, 3 * K, 513), -ENOSPC);
  assert_int_equal (q_zero (img, 3 * K, 513, 0), -ENOSPC);
  assert_int_equal (q_zero (img, 1, UINT64_MAX, 0), -ENOSPC);
  assert_int_equal (q_zero (img, 3 * K + 512, 0, 0), 0);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* A large range costs what is allocated in it, not its length. */
static void
test_large (void **state)
{
  struct fixture f;
  struct q_image *img;
  uint64_t highest;
  unsigned reads;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 1ull << 40, NULL);
  img = unit_open (&f, "disk");
  unit_writes (img, 1ull << 39, K, 7);
  reads = f.calls[MEM_READ];
  highest = q_highest_offset (img);
  assert_int_equal (q_zero (img, 0, 1ull << 40, Q_ZERO_UNMAP), 0);
  assert_int_equal (q_discard (img, 0, 1ull << 40), 0);
  assert_true (f.calls[MEM_READ] - reads < 10);
  assert_int_equal (q_highest_offset (img), highest); /* no tables to say nothing with */
  unit_reads (img, 1ull << 39, K, 0);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_discard),   cmocka_unit_test (test_zero),
    cmocka_unit_test (test_provision), cmocka_unit_test (test_parts),
    cmocka_unit_test (test_large),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
