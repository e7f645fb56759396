/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Compressed clusters: inflating both kinds, the cache of what was inflated, and when it is
 * forgotten.
 */

#include "unit.h"

#include <zlib.h>
#include <zstd.h>

#define K 65536ull /* a cluster */

/* LEN bytes that compress, different for each SEED. */
static void
fill (uint8_t *buf, size_t len, unsigned seed)
{
  for (size_t i = 0; i < len; ++i)
    buf[i] = (uint8_t)(i / 7 + seed * 31 + i / 1000);
}

static size_t
deflate_raw (const uint8_t *in, size_t len, uint8_t *out, size_t room)
{
  z_stream z = {
    .next_in = (uint8_t *)in, .avail_in = (uInt)len, .next_out = out, .avail_out = (uInt)room
  };

  assert_int_equal (deflateInit2 (&z, 6, Z_DEFLATED, -12, 8, Z_DEFAULT_STRATEGY), Z_OK);
  assert_int_equal (deflate (&z, Z_FINISH), Z_STREAM_END);
  deflateEnd (&z);
  return room - z.avail_out;
}

/* Puts LEN compressed bytes at HOST and lets guest cluster GC point to them. */
static void
point (struct mem_file *m, uint64_t gc, uint64_t host, size_t len)
{
  uint64_t sectors = (host % 512 + len - 1) / 512;

  unit_set_entry (m, gc, Q_L2_COMPRESSED | sectors << 54 | host);
}

static void
put_compressed (struct mem_file *m, uint64_t gc, uint64_t host, const uint8_t *contents, bool zstd)
{
  uint8_t *out = xalloc (2 * K);
  size_t n =
      zstd ? ZSTD_compress (out, 2 * K, contents, K, 3) : deflate_raw (contents, K, out, 2 * K);

  memcpy (m->data + host, out, n);
  point (m, gc, host, n);
  free (out);
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
test_both_kinds (void **state)
{
  uint8_t *contents = xalloc (K);

  (void)state;
  for (int zstd = 0; zstd < 2; ++zstd) {
    struct q_create_options o;
    struct fixture f;
    struct mem_file *m;
    struct q_image *img;
    uint64_t host;

    unit_init (&f);
    q_create_options_init (&o);
    o.zstd = zstd;
    m = unit_create (&f, "disk", 4 * K, &o);
    unit_set_entry (m, 1, 0); /* the table */
    host = unit_take (m, 2);
    fill (contents, K, 1);
    put_compressed (m, 1, host + 777, contents, zstd); /* at any byte */
    img = unit_open (&f, "disk");
    assert_reads (img, K, K, contents);           /* the whole */
    assert_reads (img, K + 5, 100, contents + 5); /* parts */
    assert_reads (img, 2 * K - 1, 1, contents + K - 1);
    unit_reads (img, 0, K, 0);
    unit_close (img);
    unit_done (&f);
  }
  free (contents);
}

/* Parts of one cluster are inflated once. */
static void
test_cache (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint8_t *contents = xalloc (K);
  uint64_t host;
  unsigned reads;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 64 * K, NULL);
  unit_set_entry (m, 0, 0);
  host = unit_take (m, 40);
  for (unsigned gc = 0; gc < 40; ++gc) {
    fill (contents, K, gc);
    put_compressed (m, gc, host + gc * K, contents, false);
  }
  img = unit_open (&f, "disk");
  fill (contents, K, 3);
  assert_reads (img, 3 * K, 512, contents);
  reads = f.calls[MEM_READ];
  for (unsigned i = 0; i < 10; ++i)
    assert_reads (img, 3 * K + i * 100, 100, contents + i * 100);
  assert_int_equal (f.calls[MEM_READ], reads);
  /* More of them than there is room for, twice over: always the right ones. */
  for (unsigned i = 0; i < 80; ++i) {
    fill (contents, K, i % 40);
    assert_reads (img, i % 40 * K + 1000, 100, contents + 1000);
  }
  unit_close (img);
  free (contents);
  unit_done (&f);
}

/* The host clusters of compressed data that was let go of hold something else afterwards: what was
 * inflated from them must not be taken for that. */
static void
test_forgotten (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_extent e;
  uint8_t *contents = xalloc (K);
  uint64_t host, entry;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 8 * K, NULL);
  unit_set_entry (m, 1, 0);
  host = unit_take (m, 1);
  fill (contents, K, 1);
  put_compressed (m, 1, host, contents, false);
  entry = unit_get_entry (m, 1);
  img = unit_open (&f, "disk");
  assert_reads (img, K, 100, contents); /* into the cache */
  assert_int_equal (q_discard (img, K, K), 0);
  unit_reads (img, K, 100, 0);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (unit_refcount (m, host), 0);
  /* The cluster is used again, and as luck has it for compressed data once more. */
  unit_writes (img, 5 * K, K, 5);
  assert_int_equal (q_map (img, 5 * K, 1, &e, 1, 0), 1);
  assert_int_equal (e.host, host);
  fill (contents, K, 2);
  put_compressed (m, 7, host, contents, false);
  assert_true (entry != 0);
  {
    struct q_extent x = {
      .file = img->file, .host = host, .len = K, .kind = Q_COMPRESSED, .csize = 4096, .layer = img
    };
    uint8_t buf[100];

    assert_int_equal (q_read_extent (&x, 0, sizeof buf, buf), 0);
    assert_memory_equal (buf, contents, sizeof buf);
  }
  free (contents);
  q_close (&img, NULL);
  unit_done (&f);
}

/* A write into a compressed cluster keeps the rest of it. */
static void
test_overwrite (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint8_t *contents = xalloc (K);
  uint64_t host;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 8 * K, NULL);
  unit_set_entry (m, 1, 0);
  host = unit_take (m, 2);
  unit_set_refcount (m, host, 2); /* two share the first host cluster; one reaches into the next */
  fill (contents, K, 1);
  put_compressed (m, 1, host + 100, contents, false);
  point (m, 2, host + K - 600, 900);
  unit_check (&f, "disk");
  img = unit_open (&f, "disk");
  unit_writes (img, K + 1000, 1000, 9);
  memset (contents + 1000, 9, 1000);
  assert_reads (img, K, K, contents);
  assert_int_equal (q_discard (img, 2 * K, K), 0);
  unit_close (img);
  assert_int_equal (unit_refcount (m, host), 0);
  assert_int_equal (unit_refcount (m, host + K), 0);
  unit_check (&f, "disk");
  free (contents);
  unit_done (&f);
}

/* The longest descriptor there is: twice a cluster of data, most of it not used. */
static void
test_longest (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint8_t *contents = xalloc (K);
  uint64_t host;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 8 * K, NULL);
  unit_set_entry (m, 1, 0);
  host = unit_take (m, 3);
  memset (m->data + host, 0xa5, 3 * K);
  fill (contents, K, 1);
  put_compressed (m, 1, host, contents, false);
  unit_set_entry (m, 1, Q_L2_COMPRESSED | 255ull << 54 | host);
  img = unit_open (&f, "disk");
  assert_reads (img, K, K, contents);
  assert_reads (img, K + 1, 10, contents + 1);
  unit_close (img);
  free (contents);
  unit_done (&f);
}

static void
test_damaged (void **state)
{
  uint8_t *contents = xalloc (K), *out = xalloc (2 * K);

  (void)state;
  for (int zstd = 0; zstd < 2; ++zstd) {
    struct q_create_options o;
    struct fixture f;
    struct mem_file *m;
    struct q_image *img;
    uint64_t host;
    size_t n;

    unit_init (&f);
    q_create_options_init (&o);
    o.zstd = zstd;
    m = unit_create (&f, "disk", 8 * K, &o);
    unit_set_entry (m, 1, 0);
    host = unit_take (m, 4);
    fill (contents, K, 1);
    /* 1: not compressed data at all; 2: ends too early; 3: behind the end of the file */
    memset (m->data + host, 0xff, K);
    point (m, 1, host, 4096);
    n = zstd ? ZSTD_compress (out, 2 * K, contents, K / 2, 3)
             : deflate_raw (contents, K / 2, out, 2 * K);
    memcpy (m->data + host + K, out, n);
    point (m, 2, host + K, n);
    point (m, 3, 1 << 30, 4096);
    img = unit_open (&f, "disk");
    for (unsigned gc = 1; gc <= 3; ++gc) {
      assert_int_equal (q_pread (img, out, gc * K, K), -EIO);
      assert_int_equal (q_pread (img, out, gc * K + 7, 100), -EIO);
      assert_int_equal (q_pread (img, out, gc * K + 7, 100), -EIO);
      assert_contains (unit_last_log (), "does not inflate");
    }
    unit_reads (img, 0, K, 0);
    q_close (&img, NULL);
    unit_done (&f);
  }
  free (contents);
  free (out);
}

/* ---- threads -------------------------------------------------------------------------------- */

static struct q_image *shared;
static _Atomic unsigned wrong;

static void *
read_parts (void *opaque)
{
  uint64_t seed = random_seed ((uintptr_t)opaque);
  uint8_t buf[512], *contents = xalloc (K);

  for (unsigned i = 0; i < 600; ++i) {
    unsigned gc = (unsigned)random_below (&seed, 40);
    uint64_t at = random_below (&seed, K - sizeof buf);

    fill (contents, K, gc);
    if (q_pread (shared, buf, gc * K + at, sizeof buf) < 0 ||
        memcmp (buf, contents + at, sizeof buf) != 0)
      ++wrong;
  }
  free (contents);
  return NULL;
}

static void
test_threads (void **state)
{
  struct fixture f;
  struct mem_file *m;
  uint8_t *contents = xalloc (K);
  pthread_t id[6];
  uint64_t host;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 64 * K, NULL);
  unit_set_entry (m, 0, 0);
  host = unit_take (m, 40);
  for (unsigned gc = 0; gc < 40; ++gc) {
    fill (contents, K, gc);
    put_compressed (m, gc, host + gc * K, contents, false);
  }
  shared = unit_open (&f, "disk");
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_create (&id[i], NULL, read_parts, (void *)i), 0);
  for (size_t i = 0; i < lengthof (id); ++i)
    pthread_join (id[i], NULL);
  assert_int_equal (wrong, 0);
  unit_close (shared);
  free (contents);
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_both_kinds), cmocka_unit_test (test_cache),
    cmocka_unit_test (test_forgotten),  cmocka_unit_test (test_overwrite),
    cmocka_unit_test (test_longest),    cmocka_unit_test (test_damaged),
    cmocka_unit_test (test_threads),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
