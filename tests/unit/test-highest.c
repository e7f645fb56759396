/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The highest allocated offset: kept, recorded, and proven at open whatever was recorded; who
 * watches it; and how an extension gets into a header that is in use.
 */

#include "unit.h"

#define K 65536ull /* a cluster */

/* Where extension TYPE's data is in the file, or 0. */
static uint64_t
find_extension (struct mem_file *m, uint32_t type)
{
  uint64_t at = get32 (unit_header (m)->version) == 2 ? 72 : get32 (unit_header (m)->header_length);
  uint64_t name = get64 (unit_header (m)->backing_file_offset);
  uint64_t end = name ? name : 1ull << get32 (unit_header (m)->cluster_bits);

  while (at + 8 <= end) {
    uint64_t head = unit_be64 (m, at);

    if (head >> 32 == type)
      return at + 8;
    if (head >> 32 == Q_EXT_END)
      return 0;
    at += 8 + q_round_up ((uint32_t)head, 8);
  }
  return 0;
}

static uint64_t
recorded (struct mem_file *m)
{
  uint64_t at = find_extension (m, Q_EXT_HIGHEST_OFFSET);

  assert_true (at > 0);
  return unit_be64 (m, at);
}

static void
test_kept_and_recorded (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t before, after;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 64 * K, NULL);
  img = unit_open (&f, "disk");
  before = q_highest_offset (img);
  assert_int_equal (before, 4 * K); /* header, refcount table, block, L1 table */
  unit_writes (img, 0, 3 * K, 1);   /* and an L2 table */
  after = q_highest_offset (img);
  assert_int_equal (after, before + 4 * K);
  assert_int_equal (recorded (m), before); /* with the flush */
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (recorded (m), after);
  assert_int_equal (q_discard (img, 0, 64 * K), 0);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (q_highest_offset (img), after); /* never lowered */
  unit_writes (img, 10 * K, 3 * K, 1);              /* into what is free again */
  assert_int_equal (q_highest_offset (img), after);
  unit_writes (img, 20 * K, K, 1);
  assert_int_equal (q_highest_offset (img), after + K);
  unit_close (img);
  assert_int_equal (recorded (m), after + K);
  img = unit_open (&f, "disk");
  assert_int_equal (q_highest_offset (img), after + K);
  unit_close (img);
  unit_done (&f);
}

/* Whatever is recorded, what is shown is true; and reading the image is not needed to find out. */
static void
test_proof (void **state)
{
  static const struct {
    uint64_t recorded, shown;
  } tries[] = {
    { 8 * K, 8 * K },
    { 0, 8 * K },
    { 3 * K, 8 * K },
    { 7 * K, 8 * K },
    { 9 * K, 9 * K }, /* allocated once, free now: "ever" */
    { 10 * K, 10 * K },
    { 11 * K, 8 * K },
    { 8 * K + 512, 8 * K },
    { 1, 8 * K },
    { 1ull << 40, 8 * K },
    { UINT64_MAX, 8 * K },
    { UINT64_MAX - K + 1, 8 * K },
  };
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 64 * K, NULL);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 3 * K, 1);
  unit_close (img);
  mem_resize (m, 10 * K);
  f.opts.read_only = true;
  for (size_t i = 0; i < lengthof (tries); ++i) {
    unit_put_be64 (m, find_extension (m, Q_EXT_HIGHEST_OFFSET), tries[i].recorded);
    img = unit_open (&f, "disk");
    if (q_highest_offset (img) != tries[i].shown)
      fail_msg ("recorded %llu: shown %llu, should be %llu", (unsigned long long)tries[i].recorded,
                (unsigned long long)q_highest_offset (img), (unsigned long long)tries[i].shown);
    unit_close (img);
    assert_int_equal (unit_logged (Q_LOG_WARNING), tries[i].recorded % K != 0);
    unit_forget_log ();
  }
  unit_done (&f);
}

/* Opening for writing corrects what is recorded. */
static void
test_corrected (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 64 * K, NULL);
  unit_set_data (m, 0, 1); /* somebody who does not know the extension */
  assert_int_equal (recorded (m), 4 * K);
  img = unit_open (&f, "disk");
  assert_int_equal (q_highest_offset (img), 6 * K);
  unit_close (img);
  assert_int_equal (recorded (m), 6 * K);
  unit_done (&f);
}

/* Only what lies past the recorded value is looked at. */
static void
test_bounded_look (void **state)
{
  struct q_create_options o;
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  unsigned with, without;

  (void)state;
  unit_init (&f);
  q_create_options_init (&o);
  o.cluster_bits = 9; /* a block counts 256 clusters: 128 KiB */
  o.preallocation = Q_PREALLOC_METADATA;
  m = unit_create (&f, "disk", 16 << 20, &o);
  f.opts.read_only = true;
  f.calls[MEM_READ] = 0;
  img = unit_open (&f, "disk");
  with = f.calls[MEM_READ];
  unit_close (img);
  assert_true (with < 30);
  /* Not even if it is far off: from the end, the first count above 0 is enough. */
  unit_put_be64 (m, find_extension (m, Q_EXT_HIGHEST_OFFSET), 0);
  f.calls[MEM_READ] = 0;
  img = unit_open (&f, "disk");
  without = f.calls[MEM_READ];
  unit_close (img);
  assert_true (without < 30);
  unit_done (&f);
}

static void
test_other_lengths (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t at;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 64 * K, NULL);
  at = find_extension (m, Q_EXT_HIGHEST_OFFSET);
  unit_put_be64 (m, at - 8, (uint64_t)Q_EXT_HIGHEST_OFFSET << 32 | 5); /* padded to 8 as well */
  unit_put_be64 (m, at, 0x1122334455667788ull);
  img = unit_open (&f, "disk");
  assert_int_equal (unit_logged (Q_LOG_WARNING), 1);
  assert_contains (unit_last_log (), "length 5");
  assert_int_equal (q_highest_offset (img), 4 * K);
  unit_writes (img, 0, K, 1);
  unit_close (img);
  /* Somebody else's: left as it is. */
  assert_true (unit_be64 (m, at) == 0x1122334455667788ull);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* ---- adding the extension ------------------------------------------------------------------- */

/* Takes out every extension, and puts in a feature name table of LENGTH bytes (0: none). */
static void
strip (struct mem_file *m, uint32_t length)
{
  uint64_t at = get32 (unit_header (m)->header_length), name;

  name = get64 (unit_header (m)->backing_file_offset);
  memset (m->data + at, 0, (name ? name : K) - at);
  if (length) {
    unit_put_be64 (m, at, 0x7777777700000000ull | length);
    memset (m->data + at + 8, 0x5a, length);
  }
}

static void
open_and_close (struct fixture *f, const char *name)
{
  struct q_image *img = unit_open (f, name);

  unit_close (img);
}

static void
test_append (void **state)
{
  struct fixture f;
  struct mem_file *m;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 64 * K, NULL);
  strip (m, 13);
  open_and_close (&f, "disk");
  assert_int_equal (find_extension (m, Q_EXT_HIGHEST_OFFSET), 112 + 8 + 16 + 8);
  assert_int_equal (recorded (m), 4 * K);
  assert_int_equal (m->data[120 + 12], 0x5a); /* the unknown one is what it was */
  unit_check (&f, "disk");
  unit_done (&f);
}

/* An overlay whose backing name begins at byte AT of the first cluster, with an unknown extension
 * of LENGTH bytes before it; 512-byte clusters. */
static struct mem_file *
make_overlay (struct fixture *f, const char *backing, uint64_t at, uint32_t length)
{
  struct q_create_options o;
  struct mem_file *m;

  q_create_options_init (&o);
  o.cluster_bits = 9;
  o.backing_file = "b";
  m = unit_create (f, "disk", 64 * K, &o);
  unit_header (m)->backing_file_offset = put64 (at);
  unit_header (m)->backing_file_size = put32 ((uint32_t)strlen (backing));
  memset (m->data + 112, 0, 512 - 112);
  strip (m, length);
  memcpy (m->data + at, backing, strlen (backing));
  f->opts.metadata_only = true;
  return m;
}

static void
assert_backing (struct fixture *f, struct mem_file *m, const char *name)
{
  struct q_image_info info;
  struct q_image *img = unit_open (f, "disk");

  q_get_info (img, &info);
  assert_string_equal (info.backing_file, name);
  unit_close (img);
  assert_memory_equal (m->data + get64 (unit_header (m)->backing_file_offset), name, strlen (name));
}

static void
test_name_in_the_way (void **state)
{
  static const uint64_t places[] = {
    120, /* right behind the end marker */
    112, /* no end marker at all: the name ends the area */
    117, /* too little room for one */
    128, 135, 136, 137, 300,
  };
  struct fixture f;

  (void)state;
  for (size_t i = 0; i < lengthof (places); ++i) {
    struct mem_file *m;

    unit_init (&f);
    m = make_overlay (&f, "some/backing-file", places[i], 0);
    open_and_close (&f, "disk");
    assert_int_equal (find_extension (m, Q_EXT_HIGHEST_OFFSET), 120);
    assert_int_equal (unit_be64 (m, 128), 0); /* the end marker */
    assert_backing (&f, m, "some/backing-file");
    unit_done (&f);
  }
}

/* No room: nothing is written to the first cluster, and nothing else suffers. */
static void
test_full_header (void **state)
{
  static const struct {
    uint64_t name_at;
    uint32_t length; /* of the unknown extension that fills the header */
    bool fits;
  } tries[] = {
    { 300, 100, true },  /* 112 + 8 + 104 = 224; 24 more before the name */
    { 480, 336, true },  /* 456 + 16 + 8 = 480: to the byte */
    { 480, 344, true },  /* the name moves */
    { 480, 360, false }, /* and cannot move here */
    { 490, 336, true },  { 495, 352, false },
  };
  struct fixture f;

  (void)state;
  for (size_t i = 0; i < lengthof (tries); ++i) {
    struct mem_file *m;
    struct q_image *img;
    uint8_t header[512];

    unit_init (&f);
    m = make_overlay (&f, "a-backing-file", tries[i].name_at, tries[i].length);
    memcpy (header, m->data, sizeof header);
    img = unit_open (&f, "disk");
    assert_int_equal (q_flush (img), 0);
    unit_close (img);
    assert_int_equal (find_extension (m, Q_EXT_HIGHEST_OFFSET) > 0, tries[i].fits);
    if (!tries[i].fits)
      assert_memory_equal (m->data, header, sizeof header);
    assert_backing (&f, m, "a-backing-file");
    unit_done (&f);
  }
}

/* The same without a backing name: the cluster itself ends. */
static void
test_full_cluster (void **state)
{
  static const uint32_t lengths[] = { 360, 368, 369, 384, 392 }; /* 368: room to the byte */

  (void)state;
  for (size_t i = 0; i < lengthof (lengths); ++i) {
    struct fixture f;
    struct mem_file *m;
    uint8_t *copy;

    unit_init (&f);
    m = unit_create_clusters (&f, "disk", 64 * K, 9);
    memset (m->data + 112, 0, 512 - 112);
    unit_put_be64 (m, 112, 0x7777777700000000ull | lengths[i]);
    copy = xalloc (m->size);
    memcpy (copy, m->data, m->size);
    open_and_close (&f, "disk");
    if (lengths[i] <= 368)
      assert_int_equal (recorded (m), 5 * 512); /* the L1 table has two */
    else
      assert_memory_equal (m->data, copy, m->size);
    free (copy);
    unit_check (&f, "disk");
    unit_done (&f);
  }
}

/* Killed after any write: the header is one or the other. */
static void
test_every_write (void **state)
{
  static const uint64_t places[] = { 112, 117, 120, 300 };

  (void)state;
  for (size_t i = 0; i < lengthof (places); ++i)
    for (unsigned n = 0;; ++n) {
      struct fixture f;
      struct mem_file *m;
      struct q_image *img;
      bool reached;

      unit_init (&f);
      m = make_overlay (&f, "some/backing-file", places[i], 0);
      img = unit_open (&f, "disk");
      f.fail_kind = MEM_WRITE;
      f.fail_with = -EIO;
      f.fail_after = n;
      reached = q_close (&img, NULL) == -EIO;
      f.fail_with = 0;
      f.opts.read_only = true;
      assert_backing (&f, m, "some/backing-file");
      unit_done (&f);
      if (!reached) {
        assert_true (n >= 2);
        break;
      }
    }
}

static void
count_call (void *opaque)
{
  ++*(unsigned *)opaque;
}

/* Who watches hears of it once, as soon as the offset lies above what was said, and not before. */
static void
test_watched (void **state)
{
  struct fixture f;
  struct q_image *img;
  unsigned first = 0, second = 0;
  uint64_t high;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 64 * K, NULL);
  unit_raw (&f, "raw", K, 0);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, K, 1);
  high = q_highest_offset (img);

  assert_int_equal (q_watch_highest (img, high + K, count_call, &first), 0);
  unit_writes (img, K, K, 1); /* just up to it */
  assert_int_equal (q_highest_offset (img), high + K);
  assert_int_equal (first, 0);
  unit_writes (img, K, K, 2); /* in place */
  assert_int_equal (first, 0);
  unit_writes (img, 2 * K, 1, 1);
  assert_int_equal (first, 1);
  unit_writes (img, 3 * K, 5 * K, 1);
  assert_int_equal (first, 1); /* once */

  /* It was above already. */
  assert_int_equal (q_watch_highest (img, high, count_call, &first), 0);
  assert_int_equal (first, 2);
  assert_int_equal (q_watch_highest (img, 0, count_call, &first), 0);
  assert_int_equal (first, 3);

  /* The next one takes the place of the one before. */
  high = q_highest_offset (img);
  assert_int_equal (q_watch_highest (img, high, count_call, &first), 0);
  assert_int_equal (q_watch_highest (img, high, count_call, &second), 0);
  unit_writes (img, 20 * K, K, 1);
  assert_int_equal (first, 3);
  assert_int_equal (second, 1);
  high = q_highest_offset (img);
  assert_int_equal (q_watch_highest (img, high, count_call, &second), 0);
  assert_int_equal (q_watch_highest (img, 0, NULL, NULL), 0);
  unit_writes (img, 21 * K, K, 1);
  assert_int_equal (second, 1);
  unit_close (img);

  /* What was allocated before a restart counts; and who watches waits for no allocation. */
  img = unit_open (&f, "disk");
  q_alloc_lock (img);
  assert_int_equal (q_watch_highest (img, high + K, count_call, &second), 0);
  q_alloc_unlock (img);
  assert_int_equal (second, 1);
  assert_int_equal (q_watch_highest (img, high, count_call, &second), 0);
  assert_int_equal (second, 2);
  unit_close (img);

  /* Metadata counts like data: with small clusters, a table of counts must grow as well. */
  unit_create_clusters (&f, "small", 64 << 20, 9);
  img = unit_open (&f, "small");
  for (uint64_t at = 0; at < 8 << 20; at += 64 << 10) {
    unsigned told = 0;

    high = q_highest_offset (img);
    assert_int_equal (q_watch_highest (img, high, count_call, &told), 0);
    unit_writes (img, at, 64 << 10, 1);
    assert_true (q_highest_offset (img) > high);
    assert_int_equal (told, 1);
  }
  unit_close (img);

  f.opts.format = Q_FORMAT_RAW;
  img = unit_open (&f, "raw");
  assert_int_equal (q_watch_highest (img, 0, count_call, &first), -ENOTSUP);
  unit_close (img);
  unit_done (&f);
}

/* Where watermarks lie: no arithmetic wraps. */
static void
test_marks (void **state)
{
  static const struct {
    uint64_t at, step, offset, next;
  } cases[] = {
    { 10, 0, 0, 10 },
    { 10, 0, 10, 10 },
    { 10, 0, 11, UINT64_MAX },
    { 10, 5, 3, 10 },
    { 10, 5, 11, 15 },
    { 10, 5, 15, 15 },
    { 10, 5, 16, 20 },
    { 10, 5, 1000001, 1000005 },
    { 0, 1, UINT64_MAX - 1, UINT64_MAX - 1 },
    { 1, UINT64_MAX, 2, UINT64_MAX }, /* 2^64 */
    { 1, UINT64_MAX / 2 + 1, UINT64_MAX, UINT64_MAX },
  };
  struct fixture f;
  struct q_image *img;
  struct q_amount a = { .bytes = 4711 };

  (void)state;
  for (size_t i = 0; i < lengthof (cases); ++i)
    assert_int_equal (q_next_mark (cases[i].at, cases[i].step, cases[i].offset), cases[i].next);

  /* Of the disk's size, in a file. */
  unit_init (&f);
  unit_create (&f, "disk", 1023 * 512, NULL);
  img = unit_open (&f, "disk");
  assert_int_equal (q_amount_bytes (img, &a), 4711);
  a.percent = 100;
  assert_int_equal (q_amount_bytes (img, &a), 1023 * 512);
  a.percent = 25;
  assert_int_equal (q_amount_bytes (img, &a), 1023 * 512 / 4);
  assert_int_equal (q_device_size (img), 0);
  unit_close (img);
  unit_done (&f);
}

#define READS 2000u

static void *
read_often (void *opaque)
{
  uint8_t buf[512];
  uintptr_t failed = 0;

  for (unsigned i = 0; i < READS; ++i)
    failed += q_pread (opaque, buf, 0, sizeof buf) != 0;
  return (void *)failed;
}

/* What the engine counts. */
static void
test_stats (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_stats before, after;
  uint8_t buf[512];

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 64 * K, NULL);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 8 * K, 1);
  assert_int_equal (q_flush (img), 0);
  unit_close (img);

  img = unit_open (&f, "disk");
  q_get_stats (img, &before);
  assert_int_equal (before.l2_misses, 0);
  assert_int_equal (q_pread (img, buf, 0, sizeof buf), 0);
  q_get_stats (img, &after);
  assert_int_equal (after.l2_misses, 1);
  assert_true (after.l2_cache_bytes > before.l2_cache_bytes);
  assert_true (after.l2_cache_bytes <= after.l2_cache_max);
  before = after;
  for (int i = 0; i < 10; ++i)
    assert_int_equal (q_pread (img, buf, i * 512ull, sizeof buf), 0);
  q_get_stats (img, &after);
  assert_int_equal (after.l2_hits, before.l2_hits + 10);
  assert_int_equal (after.l2_misses, 1);

  /* More threads than there are counters: some share one, and none is lost. */
  pthread_t id[Q_GATE_COUNTERS + 8];
  void *failed;
  before = after;
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_create (&id[i], NULL, read_often, img), 0);
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_join (id[i], &failed), 0), assert_null (failed);
  q_get_stats (img, &after);
  assert_int_equal (after.l2_hits, before.l2_hits + lengthof (id) * READS);

  before = after;
  assert_int_equal (q_discard (img, 0, 2 * K), 0);
  q_get_stats (img, &after);
  assert_int_equal (after.limbo_bytes, 2 * K);
  assert_true (after.dirty_tables > 0);
  assert_int_equal (q_flush (img), 0);
  q_get_stats (img, &after);
  assert_int_equal (after.limbo_bytes, 0);
  assert_int_equal (after.flush_requests, before.flush_requests + 1);
  assert_int_equal (after.flush_rounds, before.flush_rounds + 1);
  assert_int_equal (after.metadata_rounds, before.metadata_rounds + 1);
  assert_int_equal (q_flush (img), 0);
  q_get_stats (img, &after);
  assert_int_equal (after.flush_rounds, before.flush_rounds + 2);
  assert_true (after.refcount_hits + after.refcount_misses > 0);
  unit_close (img);
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_kept_and_recorded),
    cmocka_unit_test (test_proof),
    cmocka_unit_test (test_corrected),
    cmocka_unit_test (test_bounded_look),
    cmocka_unit_test (test_other_lengths),
    cmocka_unit_test (test_append),
    cmocka_unit_test (test_name_in_the_way),
    cmocka_unit_test (test_full_header),
    cmocka_unit_test (test_full_cluster),
    cmocka_unit_test (test_every_write),
    cmocka_unit_test (test_watched),
    cmocka_unit_test (test_marks),
    cmocka_unit_test (test_stats),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
