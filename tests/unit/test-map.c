/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Mapping: what each kind of entry becomes, what is merged, and chains made flat.
 */

#include "unit.h"

#include <unistd.h>

#define K   65536ull /* a cluster */
#define MAX 32

struct expected {
  uint64_t len;
  uint8_t kind, flags;
  uint16_t depth;
  uint64_t host; /* Q_DATA without Q_MAP_MERGE */
};

static void
maps_to (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags,
         const struct expected *x, int n)
{
  struct q_extent e[MAX];
  q_pin_t pin = q_pin ();
  int got = q_map (img, offset, len, e, MAX, flags);

  assert_int_equal (got, n);
  for (int i = 0; i < n; ++i) {
    if (e[i].len != x[i].len || e[i].kind != x[i].kind || e[i].flags != x[i].flags ||
        e[i].depth != x[i].depth)
      fail_msg ("extent %d: %llu bytes, kind %u, flags %u, depth %u; should be %llu, %u, %u, %u", i,
                (unsigned long long)e[i].len, e[i].kind, e[i].flags, e[i].depth,
                (unsigned long long)x[i].len, x[i].kind, x[i].flags, x[i].depth);
    if (e[i].kind == Q_DATA && !(flags & Q_MAP_MERGE))
      assert_int_equal (e[i].host, x[i].host);
    assert_true ((e[i].file != NULL) == (e[i].kind != Q_ZERO));
  }
  q_unpin (pin);
}

#define MAPS_TO(img, offset, len, flags, ...)                                                      \
  do {                                                                                             \
    static struct expected expected_[] = { __VA_ARGS__ };                                          \
    maps_to (img, offset, len, flags, expected_, (int)lengthof (expected_));                       \
  } while (0)

/* Opens read-only, so that everything is Q_STABLE. */
static struct q_image *
open_it (struct fixture *f, const char *name)
{
  f->opts.read_only = true;
  return unit_open (f, name);
}

/* ---- one layer ------------------------------------------------------------------------------ */

static void
test_kinds (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t a, host;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 16 * K, NULL);
  a = unit_set_data (m, 0, 1); /* 0, 1: in a row in the file */
  unit_set_data (m, 1, 2);
  unit_take (m, 1);
  unit_set_data (m, 2, 3);          /* not in a row */
  unit_set_entry (m, 3, Q_L2_ZERO); /* plain */
  host = unit_take (m, 1);
  unit_set_entry (m, 4, host | Q_COPIED | Q_L2_ZERO); /* allocated */
  unit_set_entry (m, 6, Q_L2_COMPRESSED | (a + 512)); /* 6, 7: compressed */
  unit_set_entry (m, 7, Q_L2_COMPRESSED | (a + 1024));
  unit_set_data (m, 8, 8);
  img = open_it (&f, "disk");
  assert_int_equal (a, 5 * K); /* behind header, counts, L1 and L2 */

  MAPS_TO (img, 0, 16 * K, 0, { 2 * K, Q_DATA, Q_STABLE, 0, 5 * K },
           { K, Q_DATA, Q_STABLE, 0, 8 * K }, { 3 * K, Q_ZERO, Q_STABLE, 0, 0 },
           { K, Q_COMPRESSED, Q_STABLE, 0, 0 }, { K, Q_COMPRESSED, Q_STABLE, 0, 0 },
           { K, Q_DATA, Q_STABLE, 0, 10 * K }, { 7 * K, Q_ZERO, Q_STABLE | Q_HOLE, 1, 0 });
  /* Block status: where in the file is no difference, being allocated is. */
  MAPS_TO (img, 0, 16 * K, Q_MAP_MERGE, { 3 * K, Q_DATA, Q_STABLE, 0, 0 },
           { K, Q_ZERO, Q_STABLE | Q_HOLE, 0, 0 }, { K, Q_ZERO, Q_STABLE, 0, 0 },
           { K, Q_ZERO, Q_STABLE | Q_HOLE, 1, 0 }, { 2 * K, Q_COMPRESSED, Q_STABLE, 0, 0 },
           { K, Q_DATA, Q_STABLE, 0, 0 }, { 7 * K, Q_ZERO, Q_STABLE | Q_HOLE, 1, 0 });
  /* From and to the middle of clusters. */
  MAPS_TO (img, 100, 1, 0, { 1, Q_DATA, Q_STABLE, 0, 5 * K + 100 });
  MAPS_TO (img, K - 1, 2, 0, { 2, Q_DATA, Q_STABLE, 0, 6 * K - 1 });
  MAPS_TO (img, 2 * K - 1, 2, 0, { 1, Q_DATA, Q_STABLE, 0, 7 * K - 1 },
           { 1, Q_DATA, Q_STABLE, 0, 8 * K });
  MAPS_TO (img, 4 * K + 5, K, 0, { K, Q_ZERO, Q_STABLE, 0, 0 });
  MAPS_TO (img, 16 * K - 1, 1, 0, { 1, Q_ZERO, Q_STABLE | Q_HOLE, 1, 0 });
  unit_close (img);
  unit_done (&f);
}

static void
test_compressed_part (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_extent e[2];
  uint64_t host;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 4 * K, NULL);
  host = unit_take (m, 1);
  unit_set_entry (m, 1, Q_L2_COMPRESSED | 3ull << 54 | (host + 700));
  img = open_it (&f, "disk");
  assert_int_equal (q_map (img, K + 1000, 5000, e, 2, 0), 1);
  assert_int_equal (e[0].kind, Q_COMPRESSED);
  assert_int_equal (e[0].host, host + 700);
  assert_int_equal (e[0].csize, 4 * 512 - 700 % 512);
  assert_int_equal (e[0].skip, 1000);
  assert_int_equal (e[0].len, 5000);
  assert_ptr_equal (e[0].layer, img);
  unit_close (img);
  unit_done (&f);
}

static void
test_max_and_range (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_extent e[3];

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 4 * K, NULL);
  unit_set_data (m, 1, 1);
  unit_set_entry (m, 2, Q_L2_ZERO);
  img = open_it (&f, "disk");
  assert_int_equal (q_map (img, 0, 4 * K, e, 1, 0), 1);
  assert_int_equal (e[0].len, K);
  assert_int_equal (q_map (img, 0, 4 * K, e, 2, 0), 2);
  assert_int_equal (e[1].len, K);
  /* The last one that there is room for still grows: 2 and 3 both read as zeros. */
  assert_int_equal (q_map (img, 0, 4 * K, e, 3, 0), 3);
  assert_int_equal (e[2].len, 2 * K);

  assert_int_equal (q_map (img, 0, 4 * K, e, 0, 0), -EINVAL);
  assert_int_equal (q_map (img, 0, 0, e, 3, 0), -EINVAL);
  assert_int_equal (q_map (img, 4 * K, 1, e, 3, 0), -EINVAL);
  assert_int_equal (q_map (img, 0, 4 * K + 1, e, 3, 0), -EINVAL);
  assert_int_equal (q_map (img, 1, UINT64_MAX, e, 3, 0), -EINVAL);
  assert_int_equal (q_map (img, UINT64_MAX, 2, e, 3, 0), -EINVAL);
  assert_int_equal (q_pread (img, e, 4 * K, 1), -EINVAL);
  assert_int_equal (q_pread (img, e, 4 * K, 0), 0);
  unit_close (img);
  unit_done (&f);
}

static void
test_nowait (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_extent e[2];
  unsigned reads;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 1ull << 30, NULL); /* two L2 tables */
  unit_set_data (m, 0, 1);
  img = open_it (&f, "disk");
  reads = f.calls[MEM_READ];
  assert_int_equal (q_map (img, 0, K, e, 2, Q_NOWAIT), -EAGAIN);
  assert_int_equal (q_map (img, 512 << 20, K, e, 2, Q_NOWAIT), 1); /* no table: nothing to read */
  assert_int_equal (e[0].kind, Q_ZERO);
  assert_int_equal (f.calls[MEM_READ], reads);
  assert_int_equal (q_map (img, 0, K, e, 2, 0), 1);
  assert_int_equal (f.calls[MEM_READ], reads + 1);
  assert_int_equal (q_map (img, 0, K, e, 2, Q_NOWAIT), 1);
  assert_int_equal (f.calls[MEM_READ], reads + 1);
  unit_close (img);
  unit_done (&f);
}

/* One call looks at a bounded number of entries, and says how far it came. */
static void
test_bounded_work (void **state)
{
  const uint64_t clusters = (1u << 18) + 5000, cluster = 4096;
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_extent e;
  uint64_t covered = 0;
  unsigned calls = 0;

  (void)state;
  unit_init (&f);
  m = unit_create_clusters (&f, "disk", clusters * cluster, 12);
  for (uint64_t gc = 0; gc < clusters; ++gc)
    unit_set_entry (m, gc, Q_L2_ZERO);
  img = open_it (&f, "disk");
  while (covered < clusters * cluster) {
    assert_int_equal (q_map (img, covered, clusters * cluster - covered, &e, 1, Q_MAP_MERGE), 1);
    assert_int_equal (e.kind, Q_ZERO);
    covered += e.len;
    ++calls;
  }
  assert_int_equal (covered, clusters * cluster);
  assert_true (calls > 1 && calls < 10);
  unit_close (img);
  unit_done (&f);
}

/* ---- entries that cannot be ----------------------------------------------------------------- */

static void
test_bad_entries (void **state)
{
  static const struct {
    uint64_t entry;
    const char *text;
  } bad[] = {
    { 0x50200 | Q_COPIED, "not aligned" },
    { 0x50000 | 1ull << 56 | Q_COPIED, "reserved" },
    { 0x50000 | 1ull << 61 | Q_COPIED, "reserved" },
    { 0x50000 | 2 | Q_COPIED, "reserved" },
    { Q_COPIED, "header" },
    { Q_L2_COMPRESSED | 0x200, "impossible offset" }, /* in the header */
  };
  struct fixture f;
  struct mem_file *m;
  struct q_extent e[3];

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 4 * K, NULL);
  unit_set_data (m, 0, 1);
  for (size_t i = 0; i < lengthof (bad); ++i) {
    struct q_image *img;

    unit_set_entry (m, 1, bad[i].entry);
    img = open_it (&f, "disk");
    assert_int_equal (q_map (img, K, K, e, 3, 0), -EIO);
    assert_contains (unit_last_log (), bad[i].text);
    assert_contains (unit_last_log (), "guest cluster 1");
    /* What comes before it can be read. */
    assert_int_equal (q_map (img, 0, 4 * K, e, 3, 0), 1);
    assert_int_equal (e[0].len, K);
    assert_int_equal (q_map (img, 2 * K, K, e, 3, 0), 1);
    unit_close (img);
  }
  unit_done (&f);
}

/* A writable image turns read-only, and says so in its header. */
static void
test_corrupt_bit (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_extent e;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 4 * K, NULL);
  unit_set_entry (m, 1, 0x50200 | Q_COPIED);
  img = unit_open (&f, "disk");
  assert_int_equal (q_map (img, K, K, &e, 1, 0), -EIO);
  assert_int_equal (q_map (img, K, K, &e, 1, 0), -EIO);
  assert_int_equal (unit_logged (Q_LOG_ERROR), 1);
  assert_true (q_read_only (img));
  assert_int_equal (q_pwrite (img, "x", 0, 1), -EROFS);
  assert_int_equal (get64 (unit_header (m)->incompatible_features), Q_INCOMPAT_CORRUPT);
  assert_int_equal (q_close (&img, &f.err), -EIO);
  assert_null (img);
  unit_done (&f);
}

/* ---- chains --------------------------------------------------------------------------------- */

static void
test_chain (void **state)
{
  struct fixture f;
  struct mem_file *top, *mid, *base;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  base = unit_create (&f, "base", 8 * K, NULL);
  for (unsigned i = 0; i < 8; ++i)
    unit_set_data (base, i, (uint8_t)(10 + i));
  mid = unit_overlay (&f, "mid", 6 * K, "base", "qcow2"); /* shorter than both */
  unit_set_data (mid, 1, 21);
  unit_set_entry (mid, 2, Q_L2_ZERO);
  top = unit_overlay (&f, "top", 8 * K + 512, "mid", "qcow2");
  unit_set_data (top, 3, 33);
  img = unit_open (&f, "top");
  unit_reads (img, 0, K, 10);
  unit_reads (img, K, K, 21);
  unit_reads (img, 2 * K, K, 0);
  unit_reads (img, 3 * K, K, 33);
  unit_reads (img, 4 * K, K, 14);
  unit_reads (img, 5 * K, K, 15);
  unit_reads (img, 6 * K, 2 * K + 512, 0); /* past the end of mid: never what base has there */

  MAPS_TO (img, 0, 6 * K, 0, { K, Q_DATA, Q_STABLE, 2, 5 * K }, { K, Q_DATA, Q_STABLE, 1, 5 * K },
           { K, Q_ZERO, Q_STABLE | Q_HOLE, 1, 0 }, { K, Q_DATA, 0, 0, 5 * K },
           { 2 * K, Q_DATA, Q_STABLE, 2, 9 * K });
  MAPS_TO (img, 6 * K, 2 * K + 512, Q_MAP_MERGE, { 2 * K + 512, Q_ZERO, Q_STABLE | Q_HOLE, 1, 0 });
  /* Data next to data of another layer stays apart in block status. */
  MAPS_TO (img, 0, 2 * K, Q_MAP_MERGE, { K, Q_DATA, Q_STABLE, 2, 0 },
           { K, Q_DATA, Q_STABLE, 1, 0 });
  MAPS_TO (img, 0, 8 * K + 512, Q_MAP_TOP, { 3 * K, Q_ZERO, Q_STABLE | Q_HOLE, 1, 0 },
           { K, Q_DATA, 0, 0, 5 * K }, { 4 * K + 512, Q_ZERO, Q_STABLE | Q_HOLE, 1, 0 });
  unit_close (img);
  unit_done (&f);
}

/* The end of a shorter layer is in the middle of a cluster of the one above. */
static void
test_unaligned_end (void **state)
{
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", K + 1000, 5);
  unit_overlay (&f, "top", 3 * K, "base", "raw");
  img = unit_open (&f, "top");
  MAPS_TO (img, 0, 3 * K, 0, { K + 1000, Q_DATA, Q_STABLE, 1, 0 },
           { 2 * K - 1000, Q_ZERO, Q_STABLE | Q_HOLE, 1, 0 });
  unit_reads (img, 0, K + 1000, 5);
  unit_reads (img, K + 1000, 2 * K - 1000, 0);
  /* Copy on write across it. */
  unit_writes (img, K + 900, 10, 9);
  unit_reads (img, K, 900, 5);
  unit_reads (img, K + 900, 10, 9);
  unit_reads (img, K + 910, 90, 5);
  unit_reads (img, K + 1000, 2 * K - 1000, 0);
  unit_close (img);
  unit_check (&f, "top");
  unit_done (&f);
}

static void
test_different_cluster_sizes (void **state)
{
  struct fixture f;
  struct mem_file *base, *top;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  base = unit_create_clusters (&f, "base", 8 * K, 10);
  for (unsigned i = 0; i < 8 * K / 1024; i += 2)
    unit_set_data (base, i, (uint8_t)i);
  top = unit_overlay (&f, "top", 8 * K, "base", "qcow2");
  unit_set_data (top, 3, 77);
  img = unit_open (&f, "top");
  for (unsigned i = 0; i < 8 * K / 1024; ++i)
    unit_reads (img, i * 1024ull, 1024, i / 64 == 3 ? 77 : i % 2 ? 0 : (uint8_t)i);
  unit_close (img);
  unit_done (&f);
}

/* The same in one call: pieces of the layer below end where the layer above has something. */
static void
test_pieces_below (void **state)
{
  struct fixture f;
  struct mem_file *base, *top;
  struct q_image *img;
  uint8_t *buf = xalloc (8 * K);

  (void)state;
  unit_init (&f);
  base = unit_create (&f, "base", 8 * K, NULL);
  unit_set_data (base, 0, 10);
  unit_take (base, 1);
  for (unsigned i = 1; i < 8; ++i)
    unit_set_data (base, i, (uint8_t)(10 + i)); /* in a row */
  top = unit_overlay (&f, "top", 8 * K, "base", "qcow2");
  unit_set_data (top, 3, 77);
  unit_set_data (top, 6, 78);
  img = unit_open (&f, "top");
  assert_int_equal (q_pread (img, buf, 0, 8 * K), 0);
  for (unsigned i = 0; i < 8; ++i)
    for (unsigned j = 0; j < K; ++j)
      assert_int_equal (buf[i * K + j], i == 3 ? 77 : i == 6 ? 78 : 10 + i);
  unit_close (img);
  free (buf);
  unit_done (&f);
}

static void
test_chain_formats (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", 4 * K, 5);
  m = unit_overlay (&f, "top", 4 * K, "base", "raw");
  f.opts.read_only = true;
  /* No recorded format: never a guess, unless allowed. */
  for (uint64_t at = 112; at < 512; ++at)
    if (unit_be64 (m, at) >> 32 == Q_EXT_BACKING_FORMAT)
      unit_put_be64 (m, at, 0x7777777700000003ull);
  assert_int_equal (unit_try_open (&f, "top", &img), -EINVAL);
  assert_contains (f.err.text, "format is not recorded");
  f.opts.backing = Q_BACKING_PROBE;
  img = unit_open (&f, "top");
  unit_reads (img, 0, 4 * K, 5);
  unit_close (img);
  f.opts.backing = Q_BACKING_NONE;
  img = unit_open (&f, "top");
  assert_null (q_backing_image (img));
  unit_reads (img, 0, 4 * K, 0);
  unit_close (img);
  f.opts.backing = Q_BACKING_RECORDED;

  unit_overlay (&f, "vmdk", 4 * K, "base", "vmdk");
  assert_int_equal (unit_try_open (&f, "vmdk", &img), -ENOTSUP);
  assert_contains (f.err.text, "'vmdk'");
  unit_overlay (&f, "nbd", 4 * K, "nbd://host/x", "raw");
  assert_int_equal (unit_try_open (&f, "nbd", &img), -ENOTSUP);
  assert_contains (f.err.text, "'nbd:'");
  unit_overlay (&f, "gone", 4 * K, "missing", "raw");
  assert_int_equal (unit_try_open (&f, "gone", &img), -ENOENT);
  assert_contains (f.err.text, "gone: cannot open backing file 'missing'");
  unit_overlay (&f, "dir/relative", 4 * K, "../base", "raw"); /* from the overlay's directory */
  assert_int_equal (unit_try_open (&f, "dir/relative", &img), -ENOENT);
  assert_contains (f.err.text, "dir/../base");
  unit_raw (&f, "not-qcow2", 4 * K, 5);
  assert_int_equal (unit_try_open (&f, "not-qcow2", &img), -EINVAL);
  assert_contains (f.err.text, "0x05050505");
  unit_done (&f);
}

/* 256 layers and no more. */
static void
test_long_chain (void **state)
{
  char name[32], below[32];
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "l0", K, 5);
  for (unsigned i = 1; i <= Q_MAX_CHAIN; ++i) {
    struct q_create_options o;

    q_create_options_init (&o);
    o.cluster_bits = 10;
    o.backing_file = below;
    o.backing_format = i == 1 ? "raw" : "qcow2";
    snprintf (below, sizeof below, "l%u", i - 1);
    snprintf (name, sizeof name, "l%u", i);
    unit_create (&f, name, K, &o);
  }
  snprintf (name, sizeof name, "l%u", Q_MAX_CHAIN - 1);
  img = unit_open (&f, name);
  MAPS_TO (img, 0, K, 0, { K, Q_DATA, Q_STABLE, Q_MAX_CHAIN - 1, 0 });
  unit_close (img);
  snprintf (name, sizeof name, "l%u", Q_MAX_CHAIN);
  assert_int_equal (unit_try_open (&f, name, &img), -ELOOP);
  assert_contains (f.err.text, "256");
  unit_done (&f);
}

/* What was found once below the top is found again, whatever the top becomes; layers have different
 * lengths, and the lowest is raw. */
static void
test_remembered (void **state)
{
  enum { LAYERS = 7, CLUSTERS = 40 };
  static const uint64_t sizes[LAYERS] = { 33 * K + 512, 36 * K,       40 * K, 35 * K,
                                          40 * K,       39 * K + 512, 40 * K };
  static uint8_t want[CLUSTERS * K], got[sizeof want];
  char name[32], below[32];
  struct fixture f;
  struct q_image *img;
  unsigned rnd = 1;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "l0", sizes[0], 1);
  memset (want, 0, sizeof want);
  memset (want, 1, sizes[0]);
  for (unsigned i = 1; i < LAYERS; ++i) {
    struct q_create_options o;
    struct mem_file *m;

    q_create_options_init (&o);
    o.backing_file = below;
    o.backing_format = i == 1 ? "raw" : "qcow2";
    snprintf (below, sizeof below, "l%u", i - 1);
    snprintf (name, sizeof name, "l%u", i);
    m = unit_create (&f, name, sizes[i], &o);
    if (sizes[i] < sizeof want)
      memset (want + sizes[i], 0, sizeof want - sizes[i]);
    for (unsigned gc = i; gc < sizes[i] / K; gc += i + 2) {
      if (gc % 3 == 0)
        unit_set_entry (m, gc, Q_L2_ZERO);
      else
        unit_set_data (m, gc, (uint8_t)(16 * i + gc % 16));
      memset (want + gc * K, gc % 3 == 0 ? 0 : (int)(16 * i + gc % 16), K);
    }
  }
  img = unit_open (&f, name);
  assert_non_null (img->below);
  for (unsigned round = 0; round < 4000; ++round) {
    uint64_t offset, len;

    rnd = rnd * 1103515245 + 12345;
    offset = (rnd >> 8) % (sizeof want / 512) * 512;
    rnd = rnd * 1103515245 + 12345;
    len = q_min (((rnd >> 8) % 900 + 1) * 512, sizeof want - offset);
    if (round % 100 == 99) {
      memset (want + offset, (int)round, len);
      unit_writes (img, offset, len, (uint8_t)round);
    } else if (round % 100 == 49) {
      memset (want + offset, 0, len);
      assert_int_equal (q_zero (img, offset, len, Q_ZERO_UNMAP), 0);
    }
    assert_int_equal (q_pread (img, got, offset, len), 0);
    assert_memory_equal (got, want + offset, len);
  }
  unit_close (img);
  unit_done (&f);
}

/* There is no memory of layers that allocate by different clusters. */
static void
test_not_remembered (void **state)
{
  struct fixture f;
  struct q_create_options o;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "a", 64 * K, 10);
  for (unsigned i = 0; i < 2; ++i) {
    q_create_options_init (&o);
    o.cluster_bits = 11 - i;
    o.backing_file = i ? "b" : "a";
    o.backing_format = "qcow2";
    unit_create (&f, i ? "c" : "b", 64 * K, &o);
  }
  img = unit_open (&f, "c");
  assert_null (img->below);
  unit_close (img);
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_kinds),          cmocka_unit_test (test_compressed_part),
    cmocka_unit_test (test_max_and_range),  cmocka_unit_test (test_nowait),
    cmocka_unit_test (test_bounded_work),   cmocka_unit_test (test_bad_entries),
    cmocka_unit_test (test_corrupt_bit),    cmocka_unit_test (test_chain),
    cmocka_unit_test (test_unaligned_end),  cmocka_unit_test (test_different_cluster_sizes),
    cmocka_unit_test (test_pieces_below),   cmocka_unit_test (test_chain_formats),
    cmocka_unit_test (test_long_chain),     cmocka_unit_test (test_remembered),
    cmocka_unit_test (test_not_remembered),
  };

  alarm (240);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
