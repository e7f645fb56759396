/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Statistics: the buckets, adding up what several threads count, and what stays when an export
 * goes.
 */

#include <pthread.h>

#include "stats.h"
#include "unit.h"

/* Buckets are without gaps, each ends where it says, and none is wider than a quarter of where it
 * begins. */
static void
test_buckets (void **state)
{
  (void)state;
  assert_int_equal (stats_bucket (0), 0);
  assert_int_equal (stats_bucket (UINT64_MAX), STATS_BUCKETS - 1);
  assert_int_equal (stats_bucket_end (STATS_BUCKETS - 1), UINT64_MAX);
  for (unsigned i = 0; i + 1 < STATS_BUCKETS; i++) {
    uint64_t end = stats_bucket_end (i), begin = i > 0 ? stats_bucket_end (i - 1) : 0;
    assert_true (end > begin);
    assert_int_equal (stats_bucket (end), i);
    assert_int_equal (stats_bucket (end + 1), i + 1);
    if (i > 0)
      assert_true ((end - begin) * STATS_FINE <= begin);
  }
  /* Each power of two ends a bucket: metrics show no more than these. */
  for (unsigned bits = STATS_FIRST_BITS; bits <= STATS_LAST_BITS; bits++)
    assert_int_equal (stats_bucket_end (stats_bucket (1ull << bits)), 1ull << bits);
}

static void
test_groups (void **state)
{
  static const struct {
    unsigned n, group;
  } cases[] = { { 0, 0 },   { 1, 0 },   { 2, 1 },   { 3, 2 },         { 4, 2 },
                { 5, 3 },   { 8, 3 },   { 9, 4 },   { 32, 5 },        { 33, 6 },
                { 128, 7 }, { 129, 8 }, { 256, 8 }, { UINT32_MAX, 8 } };

  (void)state;
  for (size_t i = 0; i < lengthof (cases); i++)
    assert_int_equal (stats_group (cases[i].n), cases[i].group);
}

static uint64_t
observed (const struct stats_op_sum *op)
{
  uint64_t n = 0;

  for (unsigned i = 0; i < STATS_BUCKETS; i++)
    n += op->latency[i];
  return n;
}

/* A turn's requests get the turn's latency when it ends, those that take longer their own. */
static void
test_counting (void **state)
{
  int loop;
  struct stats *st = stats_new ();
  struct stats_counters *c = stats_counters (st, &loop);
  struct stats_sum sum;

  (void)state;
  assert_ptr_equal (stats_counters (st, &loop), c);
  assert_ptr_not_equal (stats_counters (st, &sum), c);
  assert_false (stats_pending (c));
  stats_inline (c, STATS_READ, 4096, false);
  stats_inline (c, STATS_READ, 512, false);
  stats_inline (c, STATS_WRITE, 4096, true);
  assert_true (stats_pending (c));
  stats_settle (c, 1000, 6000);
  assert_false (stats_pending (c));
  stats_settle (c, 0, UINT64_MAX); /* nothing */
  stats_done (c, STATS_FLUSH, 0, false, 10000, 30000);
  stats_done (c, STATS_FLUSH, 0, false, 30000, 20000); /* a clock may stand still, at worst */
  stats_merged (c, 1);
  stats_merged (c, 7);
  stats_flush (st, 3);

  stats_sum (st, &sum);
  assert_int_equal (sum.op[STATS_READ].requests, 2);
  assert_int_equal (sum.op[STATS_READ].bytes, 4608);
  assert_int_equal (sum.op[STATS_READ].errors, 0);
  assert_int_equal (sum.op[STATS_READ].nanoseconds, 10000);
  assert_int_equal (sum.op[STATS_READ].latency[stats_bucket (5000)], 2);
  assert_int_equal (sum.op[STATS_WRITE].requests, 1);
  assert_int_equal (sum.op[STATS_WRITE].errors, 1);
  assert_int_equal (sum.op[STATS_WRITE].bytes, 0);
  assert_int_equal (sum.op[STATS_FLUSH].latency[stats_bucket (20000)], 1);
  assert_int_equal (sum.op[STATS_FLUSH].latency[0], 1);
  assert_int_equal (sum.op[STATS_FLUSH].nanoseconds, 20000);
  assert_int_equal (sum.last_ns, 20000);
  assert_int_equal (sum.merged_requests, 8);
  assert_int_equal (sum.merged[0], 1);
  assert_int_equal (sum.merged[3], 1);
  assert_int_equal (sum.flushed_requests, 3);
  assert_int_equal (sum.flushes[2], 1);
  for (unsigned op = 0; op < STATS_OPS; op++)
    assert_int_equal (observed (&sum.op[op]), sum.op[op].requests);
  stats_free (st);
}

/* ---- threads --------------------------------------------------------------------------------- */

#define THREADS 4
#define ROUNDS  20000

struct worker {
  pthread_t thread;
  struct stats *st;
};

static void *
count_much (void *arg)
{
  struct worker *w = arg;
  struct stats_counters *c = stats_counters (w->st, w);

  for (unsigned i = 0; i < ROUNDS; i++) {
    stats_add (&c->in_flight, 1);
    stats_inline (c, STATS_WRITE, 10, i % 10 == 0);
    if (i % 7 == 0)
      stats_settle (c, i, i + 5000);
    stats_add (&c->in_flight, (uint64_t)-1);
  }
  stats_settle (c, 0, 1);
  return NULL;
}

/* Whoever reads while others count sees numbers that only rise, and in the end all of it. */
static void
test_threads (void **state)
{
  struct worker w[THREADS];
  struct stats *st = stats_new ();
  struct stats_sum sum, total, before;
  uint64_t seen = 0;

  (void)state;
  stats_total (&before);
  for (unsigned i = 0; i < THREADS; i++) {
    w[i].st = st;
    assert_int_equal (pthread_create (&w[i].thread, NULL, count_much, &w[i]), 0);
  }
  do {
    stats_sum (st, &sum);
    assert_true (sum.op[STATS_WRITE].requests >= seen);
    assert_true (observed (&sum.op[STATS_WRITE]) <= THREADS * ROUNDS);
    seen = sum.op[STATS_WRITE].requests;
  } while (seen < THREADS * ROUNDS);
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join (w[i].thread, NULL);
  stats_sum (st, &sum);
  assert_int_equal (sum.op[STATS_WRITE].requests, THREADS * ROUNDS);
  assert_int_equal (sum.op[STATS_WRITE].errors, THREADS * ROUNDS / 10);
  assert_int_equal (sum.op[STATS_WRITE].bytes, THREADS * (ROUNDS - ROUNDS / 10) * 10);
  assert_int_equal (observed (&sum.op[STATS_WRITE]), THREADS * ROUNDS);
  assert_int_equal (sum.in_flight, 0);

  /* The total has it, also when the export has gone. */
  stats_total (&total);
  assert_int_equal (total.op[STATS_WRITE].requests - before.op[STATS_WRITE].requests,
                    THREADS * ROUNDS);
  stats_free (st);
  stats_total (&sum);
  assert_memory_equal (&sum, &total, sizeof sum);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_buckets),
    cmocka_unit_test (test_groups),
    cmocka_unit_test (test_counting),
    cmocka_unit_test (test_threads),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
