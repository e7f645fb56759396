/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The header: the limits of each field, and what is said when one is passed.
 */

#include "unit.h"

#define SIZE (1u << 20)

enum width { W8, W32, W64 };

struct mutation {
  const char *field; /* part of the message */
  size_t offset;
  enum width width;
  uint64_t value;
  int expect;        /* 0: must open */
  const char *shows; /* part of the message: the value */
};

#define FIELD(name) offsetof (struct qcow2_header, name)

static void
put (struct mem_file *m, size_t offset, enum width width, uint64_t value)
{
  be32 v32 = put32 ((uint32_t)value);

  if (width == W64)
    unit_put_be64 (m, offset, value);
  else if (width == W32)
    memcpy (m->data + offset, &v32, sizeof v32);
  else
    m->data[offset] = (uint8_t)value;
}

static void
try_mutations (struct fixture *f, const struct mem_file *good, const struct mutation *mutations,
               size_t n)
{
  for (size_t i = 0; i < n; ++i) {
    const struct mutation *t = &mutations[i];
    struct mem_file *m = mem_add (&f->store, "mutated");
    struct q_image *img = NULL;
    int r;

    mem_set (m, good->data, good->size);
    put (m, t->offset, t->width, t->value);
    r = unit_try_open (f, "mutated", &img);
    if (r != t->expect)
      fail_msg ("%s = %#llx: %d (%s), should be %d", t->field, (unsigned long long)t->value, r,
                f->err.text, t->expect);
    if (r == 0) {
      unit_close (img);
      continue;
    }
    assert_null (img);
    assert_contains (f->err.text, "mutated: ");
    assert_contains (f->err.text, t->field);
    assert_contains (f->err.text, t->shows);
    assert_null (strchr (f->err.text, '\n'));
  }
}

static void
test_fields (void **state)
{
  static const struct mutation mutations[] = {
    { "qcow2 image", FIELD (magic), W32, 0x514649fa, -EINVAL, "0x514649fa" },
    { "version", FIELD (version), W32, 0, -ENOTSUP, "0" },
    { "version", FIELD (version), W32, 1, -ENOTSUP, "1" },
    { "version", FIELD (version), W32, 4, -ENOTSUP, "4" },
    { "version", FIELD (version), W32, 0xffffffff, -ENOTSUP, "4294967295" },
    { "cluster_bits", FIELD (cluster_bits), W32, 0, -EINVAL, "0" },
    { "cluster_bits", FIELD (cluster_bits), W32, 8, -EINVAL, "8, should be 9 to 21" },
    { "cluster_bits", FIELD (cluster_bits), W32, 22, -EINVAL, "22, should be 9 to 21" },
    { "cluster_bits", FIELD (cluster_bits), W32, 64, -EINVAL, "64" },
    { "size", FIELD (size), W64, INT64_MAX, -EFBIG, "9223372036854775807" },
    { "size", FIELD (size), W64, UINT64_MAX, -EFBIG, "18446744073709551615" },
    { "l1_size", FIELD (size), W64, (512ull << 20) + 1, -EINVAL, "is 1, too small" },
    { "l1_size", FIELD (size), W64, 512ull << 20, 0, "" }, /* what one entry covers */
    { "l1_size", FIELD (l1_size), W32, 0, -EINVAL, "is 0, too small" },
    { "l1_table", FIELD (l1_size), W32, (4u << 20) + 1, -EFBIG, "33554440 bytes" },
    { "l1_table", FIELD (l1_size), W32, 0xffffffff, -EFBIG, "34359738360 bytes" },
    { "L1 table", FIELD (l1_size), W32, 65536, -EINVAL, "truncated" },
    { "l1_table", FIELD (l1_table_offset), W64, 0, -EINVAL, "0" },
    { "l1_table", FIELD (l1_table_offset), W64, 0x10200, -EINVAL, "0x10200" },
    { "l1_table", FIELD (l1_table_offset), W64, 1ull << 57, -EINVAL, "0x200000000000000" },
    { "l1_table", FIELD (l1_table_offset), W64, 0xffffffffffff0000, -EINVAL, "0xffffffffffff0000" },
    { "L1 table", FIELD (l1_table_offset), W64, 1ull << 40, -EINVAL, "1099511627784" },
    { "encrypted", FIELD (crypt_method), W32, 1, -ENOKEY, "legacy AES" },
    { "crypt_method", FIELD (crypt_method), W32, 2, -EINVAL, "is 2 without" },
    { "crypt_method", FIELD (crypt_method), W32, 3, -EINVAL, "is 3, should be" },
    { "refcount_table", FIELD (refcount_table_offset), W64, 0, -EINVAL, "0" },
    { "refcount_table", FIELD (refcount_table_offset), W64, 0x10001, -EINVAL, "0x10001" },
    { "refcount table", FIELD (refcount_table_offset), W64, 1ull << 40, -EINVAL, "1099511627776" },
    { "refcount_table", FIELD (refcount_table_clusters), W32, 0, -EINVAL, "clusters is 0" },
    { "refcount_table", FIELD (refcount_table_clusters), W32, 129, -EFBIG, "8454144 bytes" },
    { "refcount_table", FIELD (refcount_table_clusters), W32, 0xffffffff, -EFBIG,
      "281474976645120 bytes" },
    { "nb_snapshots", FIELD (nb_snapshots), W32, 65537, -EFBIG, "65537" },
    { "nb_snapshots", FIELD (nb_snapshots), W32, 0xffffffff, -EFBIG, "4294967295" },
    { "snapshots", FIELD (snapshots_offset), W64, 0x12345, 0, "" }, /* not used: there are none */
    { "bit 4 (extended L2 entries)", FIELD (incompatible_features), W64, 1 << 4, 0, "" },
    { "external data file", FIELD (incompatible_features), W64, 1 << 2, -EINVAL, "does not name" },
    { "bit 5", FIELD (incompatible_features), W64, 1 << 5, -ENOTSUP, "does not name" },
    { "bit 63", FIELD (incompatible_features), W64, 1ull << 63, -ENOTSUP, "does not name" },
    { "bits 5 (which", FIELD (incompatible_features), W64, 1 << 5 | 1 << 9, -ENOTSUP,
      "name), 9 (which the image does not name) are" },
    { "bits 5 (which", FIELD (incompatible_features), W64, ~31ull, -ENOTSUP, ", ... are not" },
    { "marked corrupt", FIELD (incompatible_features), W64, 1 << 1, -EROFS, "read-only" },
    { "compression_type", FIELD (incompatible_features), W64, 1 << 3, -EINVAL, "0" },
    { "compression_type", FIELD (compression_type), W8, 1, -EINVAL, "1" },
    { "compatible", FIELD (compatible_features), W64, UINT64_MAX, 0, "" },
    { "bitmaps", FIELD (autoclear_features), W64, 1, -EINVAL, "bit 0" },
    { "autoclear", FIELD (autoclear_features), W64, 0xfffffffffffffffc, 0, "" },
    { "raw external data", FIELD (autoclear_features), W64, 2, -EINVAL,
      "bit 1 (raw external data)" },
    { "refcount_order", FIELD (refcount_order), W32, 7, -EINVAL, "7, should be at most 6" },
    { "refcount_order", FIELD (refcount_order), W32, 0xffffffff, -EINVAL, "4294967295" },
    { "header_length", FIELD (header_length), W32, 0, -EINVAL, "0" },
    { "header_length", FIELD (header_length), W32, 72, -EINVAL, "72" },
    { "header_length", FIELD (header_length), W32, 103, -EINVAL, "103" },
    { "header_length", FIELD (header_length), W32, 108, -EINVAL, "108" },
    { "header_length", FIELD (header_length), W32, 65544, -EINVAL, "65544" },
    { "header_length", FIELD (header_length), W32, 0xfffffff8, -EINVAL, "4294967288" },
    { "header_length", FIELD (header_length), W32, 65536, 0, "" }, /* all of the first cluster */
  };
  struct fixture f;
  const struct mem_file *good;

  (void)state;
  unit_init (&f);
  good = unit_create (&f, "good", SIZE, NULL);
  assert_int_equal (get32 (((struct qcow2_header *)good->data)->l1_size), 1);
  try_mutations (&f, good, mutations, lengthof (mutations));
  unit_done (&f);
}

static void
test_backing_name (void **state)
{
  static const struct mutation mutations[] = {
    { "backing_file_size", FIELD (backing_file_size), W32, 1024, -EINVAL, "1024" },
    { "backing_file_size", FIELD (backing_file_size), W32, 0xffffffff, -EINVAL, "4294967295" },
    { "backing_file_offset", FIELD (backing_file_offset), W64, 8, -EINVAL, "8" },
    { "backing_file_offset", FIELD (backing_file_offset), W64, 65533, -EINVAL, "65533" },
    { "backing_file_offset", FIELD (backing_file_offset), W64, 65537, -EINVAL, "65537" },
    { "backing_file_offset", FIELD (backing_file_offset), W64, UINT64_MAX, -EINVAL,
      "18446744073709551615" },
    { "backing", FIELD (backing_file_offset), W64, 0, 0, "" }, /* none */
    { "backing", FIELD (backing_file_size), W32, 0, 0, "" },
    { "NUL", FIELD (backing_file_offset), W64, 60000, -EINVAL, "backing file name" },
  };
  struct fixture f;
  struct mem_file *good;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", SIZE, 1);
  good = unit_overlay (&f, "good", SIZE, "base", "raw");
  try_mutations (&f, good, mutations, lengthof (mutations));
  unit_done (&f);
}

/* Version 2 ends at byte 72: what is there in version 3 is something else. */
static void
test_version_2 (void **state)
{
  struct q_create_options o;
  struct q_image_info info;
  struct mem_file *m;
  struct q_image *img;
  struct fixture f;

  (void)state;
  unit_init (&f);
  q_create_options_init (&o);
  o.version = 2;
  m = unit_create (&f, "disk", SIZE, &o);
  assert_int_equal (unit_be64 (m, 72) >> 32, Q_EXT_HIGHEST_OFFSET);
  img = unit_open (&f, "disk");
  q_get_info (img, &info);
  assert_int_equal (info.version, 2);
  assert_int_equal (info.refcount_bits, 16);
  assert_int_equal (info.incompatible | info.compatible | info.autoclear, 0);
  unit_close (img);
  unit_done (&f);
}

/* Before extensions existed the backing name stood right behind the header. */
static void
test_name_behind_header (void **state)
{
  static const char name[] = "/a/base.img";
  struct q_create_options o;
  struct q_image_info info;
  struct mem_file *m;
  struct q_image *img;
  struct fixture f;

  (void)state;
  unit_init (&f);
  q_create_options_init (&o);
  o.version = 2;
  m = unit_create (&f, "disk", SIZE, &o);
  memset (m->data + 72, 0, 65536 - 72);
  memcpy (m->data + 72, name, strlen (name));
  unit_header (m)->backing_file_offset = put64 (72);
  unit_header (m)->backing_file_size = put32 ((uint32_t)strlen (name));
  f.opts.metadata_only = true;
  img = unit_open (&f, "disk");
  q_get_info (img, &info);
  assert_string_equal (info.backing_file, name);
  assert_null (info.backing_format);
  unit_close (img);

  /* Closing has recorded the highest allocated offset and moved the name out of its way. */
  assert_int_equal (unit_be64 (m, 72), (uint64_t)Q_EXT_HIGHEST_OFFSET << 32 | 8);
  img = unit_open (&f, "disk");
  q_get_info (img, &info);
  assert_string_equal (info.backing_file, name);
  unit_close (img);
  unit_done (&f);
}

static void
test_short_files (void **state)
{
  static const uint64_t sizes[] = { 0, 3, 4, 71, 72, 103, 512, 65535 };
  struct fixture f;
  struct mem_file *m;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", SIZE, NULL);
  for (size_t i = lengthof (sizes); i-- > 0;) {
    struct q_image *img;

    mem_resize (m, sizes[i]);
    assert_int_equal (unit_try_open (&f, "disk", &img), -EINVAL);
    assert_contains (f.err.text, "disk: ");
  }
  unit_done (&f);
}

/* What may be opened although it may not be written. */
static void
test_read_only (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint8_t *copy;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", SIZE, NULL);
  unit_header (m)->incompatible_features = put64 (Q_INCOMPAT_CORRUPT);
  unit_header (m)->autoclear_features = put64 (1ull << 40);
  copy = xalloc (m->size);
  memcpy (copy, m->data, m->size);
  f.opts.read_only = true;
  img = unit_open (&f, "disk");
  unit_reads (img, 0, SIZE, 0);
  assert_int_equal (q_pwrite (img, "x", 0, 1), -EROFS);
  assert_int_equal (q_zero (img, 0, SIZE, 0), -EROFS);
  assert_int_equal (q_discard (img, 0, SIZE), -EROFS);
  unit_close (img);
  assert_memory_equal (m->data, copy, m->size);
  free (copy);
  unit_done (&f);
}

/* A writer that does not know an autoclear bit clears it before it writes. */
static void
test_autoclear (void **state)
{
  struct fixture f;
  struct q_create_options o;
  struct mem_file *m;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  q_create_options_init (&o);
  o.data_file = "data";
  o.data_file_raw = true;
  m = unit_create (&f, "disk", SIZE, &o);
  unit_header (m)->autoclear_features = put64 (1ull << 40 | Q_AUTOCLEAR_DATA_FILE_RAW);
  img = unit_open (&f, "disk");
  assert_int_equal (get64 (unit_header (m)->autoclear_features), Q_AUTOCLEAR_DATA_FILE_RAW);
  unit_close (img);
  unit_done (&f);
}

/* A data file that is kept: who cannot learn how long it is does not cut it. */
static void
test_kept_data_file (void **state)
{
  int r = -1;

  (void)state;
  for (unsigned n = 0; r < 0; n++) {
    struct q_create_options o;
    struct fixture f;
    struct mem_file *kept;

    unit_init (&f);
    kept = unit_raw (&f, "kept", 2 * SIZE, 7);
    mem_add (&f.store, "disk");
    q_create_options_init (&o);
    o.opener = &f.store.opener;
    o.data_file = "kept";
    o.data_file_raw = o.data_file_keep = true;
    f.fail_kind = MEM_SIZE;
    f.fail_after = n;
    f.fail_with = -EIO;
    r = q_create ("disk", SIZE, &o, &f.err);
    f.fail_with = 0;
    assert_true (r == 0 || r == -EIO);
    assert_true (n > 0 || r < 0);
    assert_int_equal (kept->size, 2 * SIZE);
    unit_done (&f);
  }
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_fields),      cmocka_unit_test (test_backing_name),
    cmocka_unit_test (test_version_2),   cmocka_unit_test (test_name_behind_header),
    cmocka_unit_test (test_short_files), cmocka_unit_test (test_read_only),
    cmocka_unit_test (test_autoclear),   cmocka_unit_test (test_kept_data_file),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
