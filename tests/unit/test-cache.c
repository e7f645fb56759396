/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The caches of tables: bounded, and nothing is lost by being evicted.
 */

#include "unit.h"

#define CLUSTER 4096ull
#define TABLE   (CLUSTER / 8 * CLUSTER) /* guest bytes of one L2 table: 2 MiB */
#define TABLES  64u

static void
test_evicted_and_back (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  m = unit_create_clusters (&f, "disk", TABLES * TABLE, 12);
  f.opts.l2_cache_size = CLUSTER; /* one whole table, or some that are kept as runs */
  f.opts.refcount_cache_size = CLUSTER;
  img = unit_open (&f, "disk");
  for (unsigned round = 0; round < 3; ++round) {
    for (unsigned i = 0; i < TABLES; ++i) {
      unit_writes (img, i * TABLE + round * CLUSTER, CLUSTER, (uint8_t)(i + round));
      /* What is dirty cannot be evicted, and does not pile up either. */
      assert_true (img->l2_cache->bytes <= 16 * CLUSTER);
      assert_true (img->l2_cache->tables >= img->l2_cache->bytes / CLUSTER);
    }
    for (unsigned i = 0; i < TABLES; ++i)
      for (unsigned j = 0; j <= round; ++j)
        unit_reads (img, i * TABLE + j * CLUSTER, CLUSTER, (uint8_t)(i + j));
  }
  assert_int_equal (q_flush (img), 0);
  for (unsigned i = 0; i < TABLES; ++i)
    unit_reads (img, i * TABLE, 1, (uint8_t)i);
  assert_true (img->l2_cache->bytes <= 2 * CLUSTER);
  assert_true (img->l2_cache->tables < TABLES / 2);
  unit_close (img);
  unit_check (&f, "disk");
  assert_true (unit_get_entry (m, 0) & Q_COPIED);
  unit_done (&f);
}

/* One cache for the whole chain. */
static void
test_chain_shares (void **state)
{
  struct q_create_options o;
  struct fixture f;
  struct mem_file *base;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  base = unit_create_clusters (&f, "base", TABLES * TABLE, 12);
  for (unsigned i = 0; i < TABLES; ++i)
    unit_set_data (base, i * (TABLE / CLUSTER) + 1, (uint8_t)(i + 1));
  q_create_options_init (&o);
  o.cluster_bits = 12;
  o.backing_file = "base";
  o.backing_format = "qcow2";
  unit_create (&f, "top", TABLES * TABLE, &o);
  f.opts.l2_cache_size = 8 * CLUSTER;
  img = unit_open (&f, "top");
  for (unsigned i = 0; i < TABLES; ++i) {
    unit_writes (img, i * TABLE, CLUSTER, (uint8_t)(100 + i));
    unit_reads (img, i * TABLE + CLUSTER, CLUSTER, (uint8_t)(i + 1));
    assert_ptr_equal (img->backing->l2_cache, img->l2_cache);
    assert_true (img->l2_cache->bytes <= 16 * CLUSTER);
  }
  unit_close (img);
  unit_done (&f);
}

/* Readers of tables that come and go under them, and writers beside them. */
static struct q_image *shared;
static _Atomic bool stopping;
static _Atomic unsigned wrong;

static void *
read_around (void *opaque)
{
  uint64_t seed = random_seed ((uintptr_t)opaque);

  while (!stopping) {
    uint64_t i = random_below (&seed, TABLES);
    uint8_t buf[16];

    if (q_pread (shared, buf, i * TABLE + random_below (&seed, CLUSTER - sizeof buf), sizeof buf) <
            0 ||
        buf[0] != i + 1 || buf[15] != i + 1)
      ++wrong;
  }
  return NULL;
}

static void
test_readers_and_writers (void **state)
{
  struct q_create_options o;
  struct fixture f;
  pthread_t id[3];

  (void)state;
  unit_init (&f);
  q_create_options_init (&o);
  o.cluster_bits = 12;
  o.refcount_bits = 64; /* a block counts 512 clusters: four of them here */
  unit_create (&f, "disk", TABLES * TABLE, &o);
  f.opts.l2_cache_size = 4 * CLUSTER;
  f.opts.refcount_cache_size = CLUSTER;
  shared = unit_open (&f, "disk");
  for (unsigned i = 0; i < TABLES; ++i)
    unit_writes (shared, i * TABLE, CLUSTER, (uint8_t)(i + 1));
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_create (&id[i], NULL, read_around, (void *)i), 0);
  for (unsigned round = 1; round < 30; ++round)
    for (unsigned i = 0; i < TABLES; ++i)
      unit_writes (shared, i * TABLE + round * CLUSTER, CLUSTER, (uint8_t)round);
  stopping = true;
  for (size_t i = 0; i < lengthof (id); ++i)
    pthread_join (id[i], NULL);
  assert_int_equal (wrong, 0);
  unit_close (shared);
  unit_check (&f, "disk");
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_evicted_and_back),
    cmocka_unit_test (test_chain_shares),
    cmocka_unit_test (test_readers_and_writers),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
