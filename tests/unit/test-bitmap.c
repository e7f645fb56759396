/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Dirty bitmaps: bits, changes at one instant, and entries that are not as we would write them.
 */

#include "bitmap.h"
#include "unit.h"

#define MIB (1u << 20)

static int
change (struct fixture *f, struct q_image *img, enum q_bitmap_op op, const char *name)
{
  struct q_bitmap_action a = { .op = op, .name = name };

  return q_bitmap_change (img, &a, 1, &f->err);
}

/* "[FROM, TO) ..." of what is dirty, in units of 512 bytes. */
static const char *
dirty (struct q_image *img, const char *name)
{
  static char text[512];
  struct q_bitmap *b;
  struct q_error err;
  size_t n = 0;
  bool is;

  text[0] = '\0';
  if (q_bitmap_hold (img, name, &b, &err) < 0)
    fail_msg ("%s", err.text);
  for (uint64_t at = 0, end; at < q_size (img); at = end) {
    q_bitmap_next (b, at, q_size (img), &is, &end);
    assert_true (end > at && end <= q_size (img));
    if (is)
      n += (size_t)snprintf (text + n, sizeof text - n, "[%llu,%llu)", (unsigned long long)at / 512,
                             (unsigned long long)end / 512);
  }
  q_bitmap_release (b);
  return text;
}

static struct q_bitmap_info
info_of (struct q_image *img, const char *name)
{
  struct q_bitmap_info info = { 0 }, *list;
  struct q_error err;
  int n = q_get_bitmaps (img, &list, &err);

  for (int i = 0; i < n; ++i)
    if (strcmp (list[i].name, name) == 0)
      info = list[i];
  free (list);
  if (!info.granularity)
    fail_msg ("no bitmap '%s'", name);
  info.name = name;
  return info;
}

static void
add (struct fixture *f, struct q_image *img, const char *name, uint64_t granularity, bool disabled)
{
  struct q_bitmap_action a = {
    .op = Q_BITMAP_ADD, .name = name, .granularity = granularity, .disabled = disabled
  };

  if (q_bitmap_change (img, &a, 1, &f->err) < 0)
    fail_msg ("%s", f->err.text);
}

static void
test_life (void **state)
{
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "a", MIB, 9);
  img = unit_open (&f, "a");
  add (&f, img, "one", 512, false);
  add (&f, img, "two", 4096, true);
  unit_writes (img, 1000, 100, 1);
  unit_writes (img, 8 * 512, 512, 1);
  assert_string_equal (dirty (img, "one"), "[1,3)[8,9)");
  assert_string_equal (dirty (img, "two"), "");
  assert_true (info_of (img, "one").in_use);
  assert_false (info_of (img, "two").in_use); /* saved when it was made */
  assert_int_equal (q_zero (img, 20 * 512, 512, Q_ZERO_UNMAP), 0);
  assert_int_equal (change (&f, img, Q_BITMAP_DISABLE, "one"), 0);
  assert_false (info_of (img, "one").in_use);
  unit_writes (img, 100 * 512, 512, 1);
  assert_string_equal (dirty (img, "one"), "[1,3)[8,9)[20,21)");
  unit_close (img);
  unit_check (&f, "a");

  img = unit_open (&f, "a");
  assert_string_equal (dirty (img, "one"), "[1,3)[8,9)[20,21)");
  assert_int_equal (change (&f, img, Q_BITMAP_ENABLE, "one"), 0);
  unit_writes (img, 2047 * 512, 512, 1);
  assert_int_equal (q_resize (img, 2 * MIB, &f.err), 0);
  assert_string_equal (dirty (img, "one"), "[1,3)[8,9)[20,21)[2047,4096)"); /* what is new, too */
  unit_writes (img, 4095 * 512, 512, 1);
  unit_close (img);
  unit_check (&f, "a");
  img = unit_open (&f, "a");
  assert_string_equal (dirty (img, "one"), "[1,3)[8,9)[20,21)[2047,4096)");
  assert_int_equal (change (&f, img, Q_BITMAP_CLEAR, "one"), 0);
  assert_string_equal (dirty (img, "one"), "");
  assert_int_equal (change (&f, img, Q_BITMAP_REMOVE, "one"), 0);
  assert_int_equal (change (&f, img, Q_BITMAP_REMOVE, "two"), 0);
  unit_close (img);
  unit_check (&f, "a");
  unit_done (&f);
}

static void
test_instant (void **state)
{
  struct q_bitmap_action checkpoint[] = {
    { .op = Q_BITMAP_DISABLE, .name = "old" },
    { .op = Q_BITMAP_ADD, .name = "new", .granularity = 512 },
    { .op = Q_BITMAP_ADD, .name = "sum", .granularity = 65536, .disabled = true },
    { .op = Q_BITMAP_MERGE, .name = "sum", .source = "old" },
  };
  struct q_bitmap_action bad[] = {
    { .op = Q_BITMAP_CLEAR, .name = "old" },
    { .op = Q_BITMAP_ADD, .name = "x" },
    { .op = Q_BITMAP_MERGE, .name = "x", .source = "none" },
  };
  struct fixture f;
  struct q_image *img;
  struct q_bitmap *held;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "a", MIB, 12);
  img = unit_open (&f, "a");
  add (&f, img, "old", 512, false);
  unit_writes (img, 3 * 512, 512, 1);
  assert_int_equal (q_bitmap_change (img, bad, lengthof (bad), &f.err), -ENOENT);
  assert_contains (f.err.text, "'none' not found");
  assert_string_equal (dirty (img, "old"), "[3,4)");
  assert_int_equal (q_bitmap_change (img, checkpoint, lengthof (checkpoint), &f.err), 0);
  unit_writes (img, 5 * 512, 512, 1);
  assert_string_equal (dirty (img, "old"), "[3,4)");
  assert_string_equal (dirty (img, "new"), "[5,6)");
  assert_string_equal (dirty (img, "sum"), "[0,128)");

  /* Who holds one keeps it as it is. */
  assert_int_equal (q_bitmap_hold (img, "new", &held, &f.err), 0);
  for (enum q_bitmap_op op = Q_BITMAP_REMOVE; op <= Q_BITMAP_DISABLE; ++op)
    assert_int_equal (change (&f, img, op, "new"), -EBUSY);
  assert_contains (f.err.text, "currently in use by another operation");
  assert_true (q_bitmap_enabled (held));
  assert_int_equal (q_bitmap_count (held), 512);
  q_bitmap_release (held);
  assert_int_equal (change (&f, img, Q_BITMAP_ADD, "new"), -EEXIST);
  assert_int_equal (change (&f, img, Q_BITMAP_ADD, ""), -EINVAL);
  unit_close (img);
  unit_check (&f, "a");
  unit_done (&f);
}

/* Where the directory entry of the only bitmap is. */
static uint8_t *
entry (struct mem_file *m)
{
  for (uint64_t at = 112; at < 4000; at += 8)
    if (unit_be64 (m, at) == ((uint64_t)Q_EXT_BITMAPS << 32 | 24))
      return m->data + unit_be64 (m, at + 8 + 16);
  fail_msg ("no bitmaps extension");
  return NULL;
}

static void
test_foreign_entries (void **state)
{
  static const struct {
    size_t offset;
    uint8_t byte;
    const char *why;
  } bad[] = {
    { offsetof (struct qcow2_bitmap, type), 2, "type" },
    { offsetof (struct qcow2_bitmap, flags), 0x80, "reserved flags" },
    { offsetof (struct qcow2_bitmap, granularity_bits), 64, "granularity_bits" },
    { offsetof (struct qcow2_bitmap, granularity_bits), 5, "table is not as long" },
    { offsetof (struct qcow2_bitmap, granularity_bits), 10, "table is not as long" },
    { offsetof (struct qcow2_bitmap, table_offset) + 7, 1, "table offset" },
  };

  (void)state;
  for (size_t i = 0; i < lengthof (bad); ++i) {
    struct fixture f;
    struct mem_file *m;
    struct q_image *img;
    struct q_bitmap *b;

    unit_init (&f);
    m = unit_create_clusters (&f, "a", 8 * MIB, 9);
    img = unit_open (&f, "a");
    add (&f, img, "odd", 512, false);
    unit_close (img);
    entry (m)[bad[i].offset] = bad[i].byte;

    /* Read, it cannot be used; written, nobody may trust it any more; it can be removed. */
    f.opts.read_only = true;
    img = unit_open (&f, "a");
    assert_int_equal (q_bitmap_hold (img, "odd", &b, &f.err), -EINVAL);
    assert_contains (f.err.text, bad[i].why);
    unit_close (img);
    f.opts.read_only = false;
    unit_forget_log ();
    img = unit_open (&f, "a");
    assert_contains (unit_last_log (), "cannot be kept up to date");
    unit_writes (img, 0, 512, 1);
    assert_true (info_of (img, "odd").inconsistent);
    unit_close (img);
    assert_int_equal (entry (m)[offsetof (struct qcow2_bitmap, flags) + 3] & 3, 3);
    img = unit_open (&f, "a");
    assert_int_equal (change (&f, img, Q_BITMAP_CLEAR, "odd"), -EINVAL);
    assert_int_equal (change (&f, img, Q_BITMAP_REMOVE, "odd"), 0);
    unit_close (img);
    unit_done (&f);
  }
}

static void
test_many (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_bitmap_action a[200];
  char name[200][600];

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "a", MIB, 9);
  img = unit_open (&f, "a");
  for (unsigned i = 0; i < 200; ++i) {
    memset (name[i], 'n', sizeof name[i]);
    snprintf (name[i] + 500, 20, "%u", i);
    a[i] = (struct q_bitmap_action){ .op = Q_BITMAP_ADD, .name = name[i], .granularity = 512 };
  }
  assert_int_equal (q_bitmap_change (img, a, 200, &f.err), 0);
  unit_writes (img, 512, 512, 1);
  unit_close (img);
  unit_check (&f, "a");
  img = unit_open (&f, "a");
  assert_string_equal (dirty (img, name[0]), "[1,2)");
  assert_string_equal (dirty (img, name[199]), "[1,2)");
  for (unsigned i = 0; i < 200; ++i)
    a[i].op = Q_BITMAP_REMOVE;
  assert_int_equal (q_bitmap_change (img, a, 200, &f.err), 0);
  unit_close (img);
  unit_check (&f, "a");
  unit_done (&f);
}

static void
test_refusals (void **state)
{
  static const uint64_t granularity[] = { 1, 256, 3000, 1ull << 32 };
  struct q_create_options v2;
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "a", MIB, 9);
  img = unit_open (&f, "a");
  for (size_t i = 0; i < lengthof (granularity); ++i) {
    struct q_bitmap_action a = { .op = Q_BITMAP_ADD, .name = "x", .granularity = granularity[i] };

    assert_int_equal (q_bitmap_change (img, &a, 1, &f.err), -EINVAL);
    assert_contains (f.err.text, "power of two");
  }
  unit_close (img);
  q_create_options_init (&v2);
  v2.version = 2;
  unit_create (&f, "b", MIB, &v2);
  img = unit_open (&f, "b");
  assert_int_equal (change (&f, img, Q_BITMAP_ADD, "x"), -ENOTSUP);
  unit_close (img);
  f.opts.read_only = true;
  img = unit_open (&f, "a");
  assert_int_equal (change (&f, img, Q_BITMAP_ADD, "x"), -EROFS);
  unit_close (img);
  unit_done (&f);
}

/* Going back to a snapshot changes all of the disk, and what it is larger by. */
static void
test_going_back (void **state)
{
  char id[Q_SNAPSHOT_ID_SIZE];
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "a", MIB, 9);
  img = unit_open (&f, "a");
  unit_writes (img, 0, MIB, 1);
  add (&f, img, "on", 512, false);
  add (&f, img, "off", 512, true);
  assert_int_equal (q_snapshot_create (img, "s", id, &f.err), 0);
  assert_string_equal (dirty (img, "on"), "");
  assert_int_equal (q_snapshot_apply (img, "s", &f.err), 0);
  assert_string_equal (dirty (img, "on"), "[0,2048)");
  assert_int_equal (q_shrink (img, MIB / 2, &f.err), 0);
  assert_int_equal (change (&f, img, Q_BITMAP_CLEAR, "on"), 0);
  assert_int_equal (q_snapshot_apply (img, "s", &f.err), 0);
  assert_string_equal (dirty (img, "on"), "[0,2048)");
  assert_string_equal (dirty (img, "off"), "");
  unit_close (img);
  unit_check (&f, "a");
  img = unit_open (&f, "a");
  assert_string_equal (dirty (img, "on"), "[0,2048)");
  unit_close (img);
  unit_done (&f);
}

/* Two images merge from each other, and change at one instant with a snapshot. */
static void
test_together (void **state)
{
  struct fixture f;
  struct q_image *a, *b;
  struct q_snapshot_info *info;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "a", MIB, 9);
  unit_create_clusters (&f, "b", MIB, 12);
  a = unit_open (&f, "a");
  b = unit_open (&f, "b");
  add (&f, a, "x", 512, false);
  add (&f, b, "x", 512, false);
  unit_writes (a, 0, 512, 1);
  unit_writes (b, 512, 512, 1);
  struct q_change c[] = {
    { .img = a, .bitmap = { .op = Q_BITMAP_ADD, .name = "y", .granularity = 512 } },
    { .img = b, .snapshot = "at" },
    { .img = a, .bitmap = { .op = Q_BITMAP_MERGE, .name = "y", .source = "x", .source_image = b } },
    { .img = b, .bitmap = { .op = Q_BITMAP_ADD, .name = "y", .granularity = 512 } },
    { .img = b, .bitmap = { .op = Q_BITMAP_MERGE, .name = "y", .source = "x", .source_image = a } },
    { .img = a, .snapshot = "at" },
    { .img = a, .bitmap = { .op = Q_BITMAP_DISABLE, .name = "none" } },
  };

  /* Nothing of it, if one cannot be done. */
  assert_int_equal (q_change (c, lengthof (c), &f.err), -ENOENT);
  assert_contains (f.err.text, "a: ");
  assert_int_equal (q_get_snapshots (b, &info), 0);
  free (info);
  unit_reads (b, 512, 512, 1);
  assert_int_equal (q_change (c, lengthof (c) - 1, &f.err), 0);
  assert_string_equal (c[1].id, "1");
  assert_string_equal (dirty (a, "y"), "[1,2)");
  assert_string_equal (dirty (b, "y"), "[0,1)");
  unit_writes (a, 0, MIB, 2);
  assert_int_equal (q_snapshot_apply (a, "at", &f.err), 0);
  unit_reads (a, 0, 512, 1);
  unit_reads (a, 512, 512, 0);

  /* The storage fails in one of them: the other has no snapshot either, or it is said that it could
   * not be taken back because the storage fails still. */
  c[0] = (struct q_change){ .img = a, .snapshot = "two" };
  c[1] = (struct q_change){ .img = b, .snapshot = "two" };
  for (unsigned n = 0; n < 200 && !q_read_only (a) && !q_read_only (b); n += 1 + n / 20) {
    int r, in_a, in_b;

    f.fail_kind = MEM_WRITE;
    f.fail_with = -ENOSPC;
    f.fail_after = n;
    unit_forget_log ();
    r = q_change (c, 2, &f.err);
    f.fail_with = 0;
    in_a = q_get_snapshots (a, &info);
    free (info);
    in_b = q_get_snapshots (b, &info);
    free (info);
    if (r == 0) {
      assert_int_equal (in_a + in_b, 4);
      assert_int_equal (q_snapshot_delete (a, "two", &f.err), 0);
      assert_int_equal (q_snapshot_delete (b, "two", &f.err), 0);
    } else if (in_a != 1 || in_b != 1) {
      assert_contains (unit_last_log (), "stays");
      assert_int_equal (in_a + in_b, 3);
      assert_int_equal (q_snapshot_delete (in_a > 1 ? a : b, "two", &f.err), 0);
    }
  }
  unit_close (a);
  unit_close (b);
  unit_check (&f, "a");
  unit_check (&f, "b");
  unit_done (&f);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_life),
    cmocka_unit_test (test_instant),
    cmocka_unit_test (test_foreign_entries),
    cmocka_unit_test (test_many),
    cmocka_unit_test (test_refusals),
    cmocka_unit_test (test_going_back),
    cmocka_unit_test (test_together),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
