/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Growing a disk: what the new part shows, a longer L1 table, and growing under load.
 */

#include "unit.h"

#define K 65536ull /* a cluster */

static void
grow (struct q_image *img, uint64_t size)
{
  struct q_error err;

  if (q_resize (img, size, &err) < 0)
    fail_msg ("%s", err.text);
  assert_int_equal (q_size (img), size);
}

static void
test_plain (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t host;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", K + 512, NULL);
  unit_set_data (m, 0, 1);
  host = unit_set_data (m, 1, 2); /* stale bytes behind the end of the disk */
  img = unit_open (&f, "disk");
  unit_reads (img, K, 512, 2);
  grow (img, 8 * K + 1024);
  assert_int_equal (get64 (unit_header (m)->size), 8 * K + 1024);
  unit_reads (img, 0, K, 1);
  unit_reads (img, K, 512, 2);
  unit_reads (img, K + 512, 7 * K + 512, 0);
  unit_writes (img, 8 * K, 1024, 3);
  unit_close (img);
  assert_int_equal (m->data[host + 512], 0); /* on disk as well */
  unit_check (&f, "disk");
  img = unit_open (&f, "disk");
  unit_reads (img, K + 512, 7 * K - 512, 0);
  unit_reads (img, 8 * K, 1024, 3);
  unit_close (img);
  unit_done (&f);
}

/* What a longer backing file has behind the old end must not come into sight. */
static void
test_longer_backing (void **state)
{
  (void)state;
  for (unsigned version = 2; version <= 3; ++version) {
    struct q_create_options o;
    struct fixture f;
    struct q_image *img;

    unit_init (&f);
    unit_raw (&f, "base", 6 * K + 100, 5);
    q_create_options_init (&o);
    o.version = version;
    o.backing_file = "base";
    o.backing_format = "raw";
    unit_create (&f, "top", 2 * K + 512, &o);
    img = unit_open (&f, "top");
    grow (img, 10 * K);
    unit_reads (img, 0, 2 * K + 512, 5);
    unit_reads (img, 2 * K + 512, 8 * K - 512, 0);
    unit_close (img);
    unit_check (&f, "top");
    unit_done (&f);
  }
}

static void
test_longer_l1 (void **state)
{
  const uint64_t table = 64 * 512; /* what an L2 table of 512 bytes covers */
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t old;

  (void)state;
  unit_init (&f);
  m = unit_create_clusters (&f, "disk", 4 * table, 9);
  old = get64 (unit_header (m)->l1_table_offset);
  img = unit_open (&f, "disk");
  for (unsigned i = 0; i < 4; ++i)
    unit_writes (img, i * table, 512, (uint8_t)(i + 1));
  grow (img, 1000 * table);
  assert_true (get64 (unit_header (m)->l1_table_offset) != old);
  assert_int_equal (get32 (unit_header (m)->l1_size), 1000);
  for (unsigned i = 0; i < 1000; i += 37)
    unit_writes (img, i * table + 512, 512, (uint8_t)i);
  for (unsigned i = 0; i < 4; ++i)
    unit_reads (img, i * table, 512, (uint8_t)(i + 1));
  unit_close (img);
  unit_check (&f, "disk");
  img = unit_open (&f, "disk");
  for (unsigned i = 0; i < 1000; i += 37)
    unit_reads (img, i * table + 512, 512, (uint8_t)i);
  unit_close (img);
  unit_done (&f);
}

static void
test_refused (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_error err;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 4 * K, NULL);
  img = unit_open (&f, "disk");
  assert_int_equal (q_resize (img, 4 * K + 1, &err), -EINVAL);
  assert_contains (err.text, "262145");
  assert_int_equal (q_resize (img, 3 * K, &err), -ENOTSUP);
  assert_contains (err.text, "smaller");
  assert_int_equal (q_resize (img, 1ull << 62, &err), -EFBIG);
  assert_int_equal (q_resize (img, UINT64_MAX & ~511ull, &err), -EFBIG);
  assert_int_equal (q_resize (img, 4 * K, &err), 0);
  f.fail_kind = MEM_SYNC;
  f.fail_with = -EIO;
  assert_int_equal (q_resize (img, 5 * K, &err), -EIO);
  f.fail_with = 0;
  assert_int_equal (q_resize (img, 5 * K, &err), -EROFS);
  q_close (&img, NULL);
  f.opts.read_only = true;
  img = unit_open (&f, "disk");
  assert_int_equal (q_resize (img, 5 * K, &err), -EROFS);
  assert_contains (err.text, "read-only");
  unit_close (img);
  f.opts.read_only = false;

  unit_done (&f);
}

/* Snapshots that do not say how large they are keep the size that they had. */
static void
unrecorded_sizes (unsigned version, int change)
{
  struct q_create_options o;
  struct q_snapshot_info *info;
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t table, l1;
  struct qcow2_snapshot s;

  unit_init (&f);
  q_create_options_init (&o);
  o.version = version;
  m = unit_create (&f, "old", 400 * K, &o);
  table = unit_take (m, 1);
  l1 = unit_take (m, 1);
  s = (struct qcow2_snapshot){ .l1_table_offset = put64 (l1),
                               .l1_size = put32 (1),
                               .id_size = put16 (1),
                               .name_size = put16 (4),
                               .vm_state_size = put32 (77) };
  memcpy (m->data + table, &s, sizeof s);
  memcpy (m->data + table + sizeof s, "1a\0\377b", 5);
  unit_header (m)->nb_snapshots = put32 (1);
  unit_header (m)->snapshots_offset = put64 (table);
  img = unit_open (&f, "old");
  unit_writes (img, 0, 400 * K, 3);
  if (change > 0)
    assert_int_equal (q_resize (img, 500 * K, &f.err), 0);
  else
    assert_int_equal (q_shrink (img, 100 * K, &f.err), 0);
  unit_close (img);
  unit_check (&f, "old");
  img = unit_open (&f, "old");
  assert_int_equal (q_size (img), (change > 0 ? 500 : 100) * K);
  assert_int_equal (q_get_snapshots (img, &info), 1);
  assert_int_equal (info[0].disk_size, 400 * K);
  assert_int_equal (info[0].vm_state_size, 77);
  free (info);
  /* A name keeps all of its bytes. */
  table = get64 (unit_header (m)->snapshots_offset);
  assert_memory_equal (m->data + table + sizeof s + sizeof (struct qcow2_snapshot_extra),
                       "1a\0\377b", 5);
  assert_int_equal (q_snapshot_apply (img, "1", &f.err), 0);
  assert_int_equal (q_size (img), 400 * K);
  unit_reads (img, 0, 400 * K, 0);
  unit_close (img);
  unit_check (&f, "old");
  unit_done (&f);
}

static void
test_unrecorded_sizes (void **state)
{
  (void)state;
  for (unsigned version = 2; version <= 3; ++version)
    for (int change = -1; change <= 1; change += 2)
      unrecorded_sizes (version, change);
}

static void
test_raw (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  m = unit_raw (&f, "disk", 1024, 5);
  f.opts.format = Q_FORMAT_RAW;
  img = unit_open (&f, "disk");
  grow (img, 4096);
  assert_int_equal (m->size, 4096);
  unit_reads (img, 0, 1024, 5);
  unit_reads (img, 1024, 3072, 0);
  unit_close (img);
  unit_done (&f);
}

/* A full disk while growing: the old size, and nothing lost. */
static void
test_enospc (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_error err;

  (void)state;
  unit_init (&f);
  m = unit_create_clusters (&f, "disk", 4 * 64 * 512, 9);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 512, 7);
  assert_int_equal (q_flush (img), 0);
  f.full_at = m->size;
  assert_int_equal (q_resize (img, 100000 * 512, &err), -ENOSPC);
  assert_contains (err.text, "51200000");
  f.full_at = 0;
  assert_int_equal (q_size (img), 4 * 64 * 512);
  assert_false (q_read_only (img));
  unit_writes (img, 512, 512, 8);
  grow (img, 100000 * 512);
  unit_reads (img, 0, 512, 7);
  unit_reads (img, 512, 512, 8);
  unit_close (img);
  unit_check (&f, "disk");

  /* The L1 table is long enough, but the zeros over the backing file need a table. */
  unit_raw (&f, "base", 8 * K, 5);
  m = unit_overlay (&f, "top", 4 * K, "base", "raw");
  img = unit_open (&f, "top");
  f.full_at = m->size;
  assert_int_equal (q_resize (img, 8 * K, &err), -ENOSPC);
  f.full_at = 0;
  assert_int_equal (q_size (img), 4 * K);
  assert_int_equal (get64 (unit_header (m)->size), 4 * K);
  grow (img, 8 * K);
  unit_reads (img, 0, 4 * K, 5);
  unit_reads (img, 4 * K, 4 * K, 0);
  unit_close (img);
  unit_check (&f, "top");
  unit_done (&f);
}

/* ---- under load ----------------------------------------------------------------------------- */

#define AREA (256u << 10) /* of each thread, at the beginning of the disk */

static struct q_image *shared;
static _Atomic bool stopping;
static _Atomic unsigned wrong, operations;

static void *
load (void *opaque)
{
  uint64_t base = (uintptr_t)opaque * AREA, seed = random_seed ((uintptr_t)opaque);
  uint8_t *model = xalloc (AREA), *buf = xalloc (8192);

  while (!stopping) {
    uint64_t len = 1 + random_below (&seed, 8192), at = random_below (&seed, AREA - len);

    if (random_below (&seed, 2)) {
      for (uint64_t i = 0; i < len; ++i)
        model[at + i] = buf[i] = (uint8_t)(random_next (&seed) >> 32);
      wrong += q_pwrite (shared, buf, base + at, len) != 0;
    } else
      wrong += q_pread (shared, buf, base + at, len) != 0 || memcmp (buf, model + at, len) != 0;
    if (random_below (&seed, 50) == 0)
      wrong += q_flush (shared) != 0;
    ++operations;
  }
  free (model);
  free (buf);
  return NULL;
}

static void
test_under_load (void **state)
{
  struct fixture f;
  pthread_t id[4];

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "disk", 4 * AREA, 9);
  f.opts.l2_cache_size = 8192; /* tables come and go */
  shared = unit_open (&f, "disk");
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_create (&id[i], NULL, load, (void *)i), 0);
  for (unsigned i = 1; i <= 40; ++i) {
    unsigned seen = operations;

    grow (shared, 4 * AREA + i * (1u << 20));
    unit_writes (shared, q_size (shared) - 512, 512, (uint8_t)i);
    while (operations - seen < 100 && wrong == 0)
      sched_yield ();
  }
  stopping = true;
  for (size_t i = 0; i < lengthof (id); ++i)
    pthread_join (id[i], NULL);
  assert_int_equal (wrong, 0);
  for (unsigned i = 1; i <= 40; ++i) {
    unit_reads (shared, 4 * AREA + i * (1u << 20) - 512, 512, (uint8_t)i);
    unit_reads (shared, 4 * AREA + i * (1u << 20) - 1024, 512, 0);
  }
  unit_close (shared);
  unit_check (&f, "disk");
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_plain),
    cmocka_unit_test (test_longer_backing),
    cmocka_unit_test (test_longer_l1),
    cmocka_unit_test (test_refused),
    cmocka_unit_test (test_unrecorded_sizes),
    cmocka_unit_test (test_raw),
    cmocka_unit_test (test_enospc),
    cmocka_unit_test (test_under_load),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
