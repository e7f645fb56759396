/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writing compressed clusters: what becomes of each kind of contents, how they are packed, what is
 * let go of, and errors.
 */

#include "unit.h"

#define K 65536ull /* a cluster */

/* LEN bytes that become a few hundred. */
static void
fill_easy (uint8_t *buf, size_t len, unsigned seed)
{
  for (size_t i = 0; i < len; ++i)
    buf[i] = (uint8_t)(1 + (i / 512 + seed * 31) % 251);
}

/* LEN bytes of which about PERCENT are left. */
static void
fill_hard (uint8_t *buf, size_t len, unsigned seed, unsigned percent)
{
  uint64_t s = seed * 0x9e3779b97f4a7c15ull + 1;

  for (size_t i = 0; i < len; ++i) {
    s = s * 6364136223846793005ull + 1442695040888963407ull;
    buf[i] = i % 100 < percent ? (uint8_t)(s >> 56) : 7;
  }
}

static struct mem_file *
create (struct fixture *f, uint64_t size, unsigned cluster_bits, unsigned refcount_bits, bool zstd)
{
  struct q_create_options o;

  q_create_options_init (&o);
  o.cluster_bits = cluster_bits;
  o.refcount_bits = refcount_bits;
  o.zstd = zstd;
  return unit_create (f, "disk", size, &o);
}

static void
assert_reads (struct q_image *img, uint64_t offset, uint64_t len, const uint8_t *expected)
{
  uint8_t *buf = xalloc (len);

  assert_int_equal (q_pread (img, buf, offset, len), 0);
  assert_memory_equal (buf, expected, len);
  free (buf);
}

static void
map_one (struct q_image *img, uint64_t offset, struct q_extent *e)
{
  q_pin_t pin = q_pin ();

  assert_int_equal (q_map (img, offset, 1, e, 1, 0), 1);
  q_unpin (pin);
}

/* Easy, zero and hard contents, both types, read back at once and after opening again. */
static void
test_contents (void **state)
{
  static const unsigned bits[] = { 9, 12, 16, 21 };
  (void)state;
  for (unsigned i = 0; i < 2 * lengthof (bits); ++i) {
    uint64_t cluster = 1ull << bits[i / 2];
    uint8_t *buf = xalloc (4 * cluster);
    struct fixture f;
    struct q_image *img;
    struct q_extent e;

    unit_init (&f);
    create (&f, 3 * cluster + 512, bits[i / 2], 16, i % 2);
    fill_easy (buf, cluster, 1);
    memset (buf + cluster, 0, cluster);
    fill_hard (buf + 2 * cluster, cluster, 2, 100);
    fill_easy (buf + 3 * cluster, 512, 3);
    img = unit_open (&f, "disk");
    assert_int_equal (q_write_compressed (img, buf, 0, 3 * cluster + 512), 0);
    for (int again = 0; again < 2; ++again) {
      assert_reads (img, 0, 3 * cluster + 512, buf);
      map_one (img, 0, &e);
      assert_int_equal (e.kind, Q_COMPRESSED);
      map_one (img, cluster, &e);
      assert_int_equal (e.kind, Q_ZERO);
      assert_true (e.flags & Q_HOLE);
      map_one (img, 2 * cluster, &e);
      assert_int_equal (e.kind, Q_DATA);
      map_one (img, 3 * cluster, &e);
      assert_int_equal (e.kind, Q_COMPRESSED);
      unit_close (img);
      unit_check (&f, "disk");
      img = unit_open (&f, "disk");
    }
    unit_close (img);
    free (buf);
    unit_done (&f);
  }
}

/* The file ends with a sector. */
static void
test_end_of_file (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint8_t *buf = xalloc (K);

  (void)state;
  unit_init (&f);
  m = create (&f, 4 * K, 16, 16, false);
  fill_easy (buf, K, 1);
  img = unit_open (&f, "disk");
  assert_int_equal (q_write_compressed (img, buf, K, K), 0);
  unit_close (img);
  assert_int_equal (m->size % 512, 0);
  assert_true (m->size % K != 0);
  unit_check (&f, "disk");
  free (buf);
  unit_done (&f);
}

/* Many share one host cluster; one reaches into the next if that follows. */
static void
test_packing (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_extent e[3];
  uint8_t *buf = xalloc (K);

  (void)state;
  unit_init (&f);
  m = create (&f, 64 * K, 16, 16, false);
  img = unit_open (&f, "disk");
  unit_writes (img, 63 * K, K, 1); /* the L2 table is there */
  for (unsigned i = 0; i < 3; ++i) {
    fill_hard (buf, K, i, 40);
    assert_int_equal (q_write_compressed (img, buf, i * K, K), 0);
    map_one (img, i * K, &e[i]);
    assert_int_equal (e[i].kind, Q_COMPRESSED);
  }
  assert_int_equal (e[0].host % K, 0);
  assert_int_equal (e[1].host / K, e[0].host / K); /* beside it */
  assert_true (e[1].host < e[0].host + e[0].csize);
  assert_int_equal (e[2].host / K, e[0].host / K);                        /* begins there ... */
  assert_int_equal ((e[2].host + e[2].csize - 1) / K, e[0].host / K + 1); /* and goes on */
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (unit_refcount (m, e[0].host), 3);
  assert_int_equal (unit_refcount (m, e[0].host + K), 1);
  for (unsigned i = 0; i < 3; ++i) {
    fill_hard (buf, K, i, 40);
    assert_reads (img, i * K, K, buf);
  }
  unit_close (img);
  unit_check (&f, "disk");
  free (buf);
  unit_done (&f);
}

/* If the next cluster is somebody else's, the tail is left, and a smaller piece takes it. */
static void
test_tail_is_remembered (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_extent first, second, third;
  uint8_t *buf = xalloc (K);

  (void)state;
  unit_init (&f);
  create (&f, 64 * K, 16, 16, false);
  img = unit_open (&f, "disk");
  fill_hard (buf, K, 1, 60);
  assert_int_equal (q_write_compressed (img, buf, 0, K), 0);
  unit_writes (img, 10 * K, K, 1);
  assert_int_equal (q_write_compressed (img, buf, K, K), 0);
  fill_easy (buf, K, 1);
  assert_int_equal (q_write_compressed (img, buf, 2 * K, K), 0);
  map_one (img, 0, &first);
  map_one (img, K, &second);
  map_one (img, 2 * K, &third);
  assert_int_equal (second.host % K, 0);
  assert_int_equal (second.host, first.host + 2 * K);
  /* Both have room; which of them is up to what is left. */
  assert_true (third.host / K == first.host / K || third.host / K == second.host / K);
  unit_close (img);
  unit_check (&f, "disk");
  free (buf);
  unit_done (&f);
}

/* A count that cannot say so many keeps others out. */
static void
test_narrow_counts (void **state)
{
  static const unsigned bits[] = { 1, 2, 4, 8, 64 };

  (void)state;
  for (unsigned i = 0; i < lengthof (bits); ++i) {
    uint64_t most = bits[i] == 64 ? UINT64_MAX : (1ull << bits[i]) - 1, share = 0;
    uint8_t *buf = xalloc (K);
    struct fixture f;
    struct q_image *img;
    struct q_extent e, before = { 0 };

    unit_init (&f);
    create (&f, 64 * K, 16, bits[i], true);
    img = unit_open (&f, "disk");
    for (unsigned gc = 0; gc < 20; ++gc) {
      fill_easy (buf, K, gc);
      assert_int_equal (q_write_compressed (img, buf, gc * K, K), 0);
      map_one (img, gc * K, &e);
      share = gc > 0 && e.host / K == before.host / K ? share + 1 : 1;
      assert_true (share <= most);
      before = e;
    }
    if (most < 20) /* but as many as there can be */
      assert_int_equal (share, 20 % most ? 20 % most : most);
    for (unsigned gc = 0; gc < 20; ++gc) {
      fill_easy (buf, K, gc);
      assert_reads (img, gc * K, K, buf);
    }
    unit_close (img);
    unit_check (&f, "disk");
    free (buf);
    unit_done (&f);
  }
}

/* Compressed over compressed, data over compressed, compressed over data: what was there is free
 * after a flush, and a host cluster is when its last piece has gone. */
static void
test_overwrite (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_extent old[2], e;
  uint8_t *buf = xalloc (K);

  (void)state;
  unit_init (&f);
  m = create (&f, 8 * K, 16, 16, false);
  img = unit_open (&f, "disk");
  for (unsigned gc = 0; gc < 2; ++gc) {
    fill_easy (buf, K, gc);
    assert_int_equal (q_write_compressed (img, buf, gc * K, K), 0);
    map_one (img, gc * K, &old[gc]);
  }
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (unit_refcount (m, old[0].host), 2);

  unit_writes (img, 0, K, 9); /* data over it */
  fill_hard (buf, K, 5, 50);  /* and compressed, in the same host cluster as what it replaces */
  assert_int_equal (q_write_compressed (img, buf, K, K), 0);
  map_one (img, K, &e);
  assert_int_equal (e.host / K, old[0].host / K);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (unit_refcount (m, e.host), 1);
  unit_reads (img, 0, K, 9);
  assert_reads (img, K, K, buf);

  /* The last one goes, and with it what is left of the host cluster. */
  fill_hard (buf, K, 6, 90);
  assert_int_equal (q_write_compressed (img, buf, K, K), 0);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (unit_refcount (m, e.host), 0);
  unit_writes (img, 3 * K, K, 3); /* takes it whole */
  fill_easy (buf, K, 8);
  assert_int_equal (q_write_compressed (img, buf, 0, K), 0); /* compressed over data */
  assert_int_equal (q_write_compressed (img, buf, 4 * K, K), 0);
  unit_reads (img, 3 * K, K, 3);
  assert_reads (img, 0, K, buf);
  assert_reads (img, 4 * K, K, buf);
  unit_writes (img, 100, 10, 77); /* part of a compressed one */
  memset (buf + 100, 77, 10);
  assert_reads (img, 0, K, buf);
  unit_close (img);
  unit_check (&f, "disk");
  free (buf);
  unit_done (&f);
}

/* A write that fails leaves what was there, and no leak. */
static void
test_fails (void **state)
{
  static const int codes[] = { -EIO, -ENOSPC };

  (void)state;
  for (unsigned i = 0; i < lengthof (codes); ++i) {
    struct fixture f;
    struct q_image *img;
    uint8_t *buf = xalloc (K), *other = xalloc (K);

    unit_init (&f);
    create (&f, 8 * K, 16, 16, false);
    img = unit_open (&f, "disk");
    fill_easy (buf, K, 1);
    fill_easy (other, K, 2);
    assert_int_equal (q_write_compressed (img, buf, 0, K), 0);
    assert_int_equal (q_flush (img), 0);
    f.fail_kind = MEM_WRITE;
    f.fail_with = codes[i];
    assert_int_equal (q_write_compressed (img, other, 0, K), codes[i]);
    f.fail_with = 0;
    assert_reads (img, 0, K, buf);
    assert_int_equal (q_write_compressed (img, other, 0, K), 0);
    assert_reads (img, 0, K, other);
    unit_close (img);
    unit_check (&f, "disk");
    free (buf);
    free (other);
    unit_done (&f);
  }
}

struct writer {
  struct q_image *img;
  unsigned number;
};

static void *
write_over_and_over (void *opaque)
{
  struct writer *w = opaque;
  uint8_t *buf = xalloc (K);
  int r = 0;

  memset (buf, 1 + (int)w->number, K);
  for (unsigned i = 0; r == 0 && i < 60; ++i)
    r = w->number % 3 == 2 ? q_pwrite (w->img, buf, i % 2 * K, K)
                           : q_write_compressed (w->img, buf, i % 2 * K, K);
  free (buf);
  return (void *)(intptr_t)r;
}

/* Several threads put something else in the place of one thing: each thing is let go of once, and
 * what is there in the end is what one of them wrote. */
static void
test_threads (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct writer w[6];
  pthread_t id[lengthof (w)];
  uint8_t *buf = xalloc (K);

  (void)state;
  unit_init (&f);
  create (&f, 4 * K, 16, 16, false);
  img = unit_open (&f, "disk");
  for (unsigned i = 0; i < lengthof (w); ++i) {
    w[i] = (struct writer){ img, i };
    assert_int_equal (pthread_create (&id[i], NULL, write_over_and_over, &w[i]), 0);
  }
  for (unsigned i = 0; i < lengthof (w); ++i) {
    void *r;

    pthread_join (id[i], &r);
    assert_null (r);
    if (i == 0)
      assert_int_equal (q_flush (img), 0);
  }
  for (unsigned gc = 0; gc < 2; ++gc) {
    assert_int_equal (q_pread (img, buf, gc * K, K), 0);
    assert_in_range (buf[0], 1, lengthof (w));
    unit_reads (img, gc * K, K, buf[0]);
  }
  unit_close (img);
  unit_check (&f, "disk");
  free (buf);
  unit_done (&f);
}

static void
test_refusals (void **state)
{
  struct fixture f;
  struct q_image *img;
  uint8_t *buf = xalloc (2 * K);

  (void)state;
  unit_init (&f);
  create (&f, 3 * K + 512, 16, 16, false);
  fill_easy (buf, 2 * K, 1);
  img = unit_open (&f, "disk");
  assert_true (q_can_compress (img));
  assert_int_equal (q_write_compressed (img, buf, 3 * K, K), -ENOSPC);
  assert_int_equal (q_write_compressed (img, buf, UINT64_MAX - K + 1, K), -ENOSPC);
  assert_int_equal (q_write_compressed (img, buf, 0, 0), 0);
  unit_close (img);
  f.opts.read_only = true;
  img = unit_open (&f, "disk");
  assert_int_equal (q_write_compressed (img, buf, 0, K), -EROFS);
  unit_close (img);
  f.opts.read_only = false;
  unit_raw (&f, "raw", 4 * K, 1);
  f.opts.format = Q_FORMAT_RAW;
  img = unit_open (&f, "raw");
  assert_false (q_can_compress (img));
  assert_int_equal (q_write_compressed (img, buf, 0, K), -ENOTSUP);
  unit_close (img);
  f.opts.format = Q_FORMAT_AUTO;
  f.opts.compression_level = 99;
  assert_int_equal (unit_try_open (&f, "disk", &img), -EINVAL);
  assert_contains (f.err.text, "compression level 99: zlib has levels 1 to ");
  free (buf);
  unit_done (&f);
}

/* Parts of clusters are written as they are, and keep what is around them. */
static void
test_parts (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_extent e;
  uint8_t *buf = xalloc (8 * K);

  (void)state;
  unit_init (&f);
  create (&f, 8 * K, 16, 16, true);
  fill_easy (buf, 8 * K, 1);
  img = unit_open (&f, "disk");
  assert_int_equal (q_write_compressed (img, buf, 0, 8 * K), 0);
  fill_easy (buf + K / 2, 3 * K, 9);
  assert_int_equal (q_write_compressed (img, buf + K / 2, K / 2, 3 * K), 0);
  fill_easy (buf + 5 * K + 7, 100, 77);
  assert_int_equal (q_write_compressed (img, buf + 5 * K + 7, 5 * K + 7, 100), 0);
  assert_reads (img, 0, 8 * K, buf);
  for (unsigned gc = 0; gc < 8; ++gc) {
    map_one (img, gc * K, &e);
    assert_int_equal (e.kind, gc == 0 || gc == 3 || gc == 5 ? Q_DATA : Q_COMPRESSED);
  }
  unit_close (img);
  unit_check (&f, "disk");
  free (buf);
  unit_done (&f);
}

/* Higher levels do not make it larger. */
static void
test_levels (void **state)
{
  (void)state;
  for (int zstd = 0; zstd < 2; ++zstd) {
    uint64_t size[2];

    for (int high = 0; high < 2; ++high) {
      struct fixture f;
      struct mem_file *m;
      struct q_image *img;
      uint8_t *buf = xalloc (K);

      unit_init (&f);
      m = create (&f, 64 * K, 16, 16, zstd);
      f.opts.compression_level = high ? q_compression_max_level (zstd) : 1;
      img = unit_open (&f, "disk");
      for (unsigned gc = 0; gc < 40; ++gc) {
        for (unsigned i = 0; i < K; ++i)
          buf[i] = (uint8_t) "the quick brown fox jumps over the lazy dog"[(i * i / 97 + gc) % 43];
        assert_int_equal (q_write_compressed (img, buf, gc * K, K), 0);
      }
      unit_close (img);
      unit_check (&f, "disk");
      size[high] = m->size;
      free (buf);
      unit_done (&f);
    }
    assert_true (size[1] < size[0]);
  }
}

/* Past what a descriptor can say, clusters are written as they are. */
static void
test_far_away (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_extent e;
  uint8_t *buf = xalloc (1u << 21);

  (void)state;
  unit_init (&f);
  create (&f, 4u << 21, 21, 16, false);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 512, 1);
  atomic_store (&img->highest, Q_COMPRESSED_LIMIT (21));
  fill_easy (buf, 1u << 21, 1);
  assert_int_equal (q_write_compressed (img, buf, 1u << 21, 1u << 21), 0);
  map_one (img, 1u << 21, &e);
  assert_int_equal (e.kind, Q_DATA);
  assert_reads (img, 1u << 21, 1u << 21, buf);
  q_close (&img, NULL);
  free (buf);
  unit_done (&f);
}

/* The disk's last cluster, part of which is past its end. */
static void
test_last_cluster (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_extent e;
  uint8_t *buf = xalloc (K);

  (void)state;
  unit_init (&f);
  create (&f, K + 1024, 16, 16, false);
  img = unit_open (&f, "disk");
  fill_easy (buf, K, 1);
  unit_writes (img, K, 512, 3); /* may be overwritten in place by whoever makes the disk larger */
  assert_int_equal (q_write_compressed (img, buf, K, 1024), 0);
  map_one (img, K, &e);
  assert_int_equal (e.kind, Q_DATA);
  assert_reads (img, K, 1024, buf);
  assert_int_equal (q_resize (img, 2 * K, &f.err), 0);
  unit_reads (img, K + 1024, K - 1024, 0);
  unit_close (img);
  unit_check (&f, "disk");
  free (buf);
  unit_done (&f);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_contents),      cmocka_unit_test (test_end_of_file),
    cmocka_unit_test (test_packing),       cmocka_unit_test (test_tail_is_remembered),
    cmocka_unit_test (test_narrow_counts), cmocka_unit_test (test_overwrite),
    cmocka_unit_test (test_fails),         cmocka_unit_test (test_refusals),
    cmocka_unit_test (test_threads),       cmocka_unit_test (test_parts),
    cmocka_unit_test (test_levels),        cmocka_unit_test (test_far_away),
    cmocka_unit_test (test_last_cluster),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
