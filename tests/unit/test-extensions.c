/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Header extensions: parsing of the area, and the strings in it.
 */

#include "unit.h"

#include <time.h>

#define AREA  512u /* bytes of file; the area begins at START */
#define START 104u

struct area {
  uint8_t bytes[AREA];
  uint64_t end; /* as filled so far */
  struct q_image img;
  struct q_error err;
};

static void
area_init (struct area *a)
{
  memset (a, 0, sizeof *a);
  memset (a->bytes, 0xee, START); /* a header that must not be looked at */
  a->end = START;
  a->img.filename = (char *)"disk";
  a->img.cluster_bits = 9;
}

static void
area_done (struct area *a)
{
  q_header_free (&a->img);
}

static void
add (struct area *a, uint32_t type, uint32_t length, const void *data)
{
  struct qcow2_extension h = { put32 (type), put32 (length) };

  memcpy (a->bytes + a->end, &h, sizeof h);
  if (data)
    memcpy (a->bytes + a->end + sizeof h, data, length);
  a->end += sizeof h + q_round_up (length, 8);
}

static int
parse (struct area *a, uint64_t end)
{
  return q_extensions_parse (&a->img, a->bytes, START, end, &a->err);
}

static void
test_unknown_kept_in_order (void **state)
{
  struct area a;
  const struct q_extension *e;

  (void)state;
  area_init (&a);
  add (&a, 0x11111111, 5, "first");
  add (&a, 0x22222222, 0, NULL);
  add (&a, Q_EXT_BACKING_FORMAT, 5, "qcow2");
  add (&a, 0x11111111, 6, "second"); /* unknown types may come again */
  assert_int_equal (parse (&a, AREA), 0);
  e = a.img.extensions;
  assert_int_equal (e->type, 0x11111111);
  assert_int_equal (e->length, 5);
  assert_int_equal (e->offset, START + 8);
  assert_memory_equal (e->data, "first", 5);
  e = e->next;
  assert_int_equal (e->type, 0x22222222);
  assert_int_equal (e->length, 0);
  e = e->next;
  assert_int_equal (e->type, Q_EXT_BACKING_FORMAT);
  e = e->next;
  assert_int_equal (e->offset, START + 16 + 8 + 16 + 8);
  assert_memory_equal (e->data, "second", 6);
  assert_null (e->next);
  assert_string_equal (a.img.backing_format, "qcow2");
  assert_int_equal (a.img.extensions_end, a.end);
  assert_true (a.img.extensions_marked);
  area_done (&a);
}

/* Lengths that wrap when they are rounded to 8 in 32 bits, or added to an offset. */
static void
test_lengths_past_the_area (void **state)
{
  static const uint32_t lengths[] = { AREA - START - 8 + 1, AREA,       0x7fffffff, 0x80000000,
                                      0xfffffff8,           0xfffffff9, 0xffffffff };

  (void)state;
  for (size_t i = 0; i < lengthof (lengths); ++i) {
    struct area a;
    char number[32];
    be32 length;

    area_init (&a);
    add (&a, 0x12345678, 0, NULL);
    length = put32 (lengths[i]);
    memcpy (a.bytes + START + offsetof (struct qcow2_extension, length), &length, sizeof length);
    assert_int_equal (parse (&a, AREA), -EINVAL);
    snprintf (number, sizeof number, "length %u ", lengths[i]);
    assert_contains (a.err.text, number);
    assert_contains (a.err.text, "0x12345678");
    assert_contains (a.err.text, "byte 104");
    assert_null (a.img.extensions);
    area_done (&a);
  }
}

static void
test_longest_that_fits (void **state)
{
  static const uint8_t data[AREA];
  struct area a;

  (void)state;
  area_init (&a);
  add (&a, 0x12345678, AREA - START - 8, data);
  assert_int_equal (parse (&a, AREA), 0);
  assert_int_equal (a.img.extensions->length, AREA - START - 8);
  assert_false (a.img.extensions_marked); /* no room for an end marker */
  assert_int_equal (a.img.extensions_end, AREA);
  area_done (&a);
}

/* The area ends at a backing name that need not be aligned: padding is not part of the length. */
static void
test_area_ends (void **state)
{
  struct area a;

  (void)state;
  area_init (&a); /* nothing at all, as before extensions existed */
  memset (a.bytes + START, 'x', AREA - START);
  assert_int_equal (parse (&a, START), 0);
  assert_null (a.img.extensions);
  assert_false (a.img.extensions_marked);
  assert_int_equal (a.img.extensions_end, START);
  area_done (&a);

  area_init (&a); /* too little for another header */
  memset (a.bytes + START, 'x', AREA - START);
  assert_int_equal (parse (&a, START + 7), 0);
  assert_null (a.img.extensions);
  area_done (&a);

  area_init (&a); /* the padding of the last one is missing */
  add (&a, Q_EXT_BACKING_FORMAT, 3, "raw");
  memset (a.bytes + START + 11, 'x', AREA - START - 11);
  assert_int_equal (parse (&a, START + 11), 0);
  assert_string_equal (a.img.backing_format, "raw");
  area_done (&a);

  area_init (&a); /* one byte less */
  add (&a, Q_EXT_BACKING_FORMAT, 3, "raw");
  assert_int_equal (parse (&a, START + 10), -EINVAL);
  area_done (&a);

  area_init (&a); /* nothing behind the end marker is looked at */
  add (&a, 0x11111111, 4, "data");
  add (&a, Q_EXT_END, 0, NULL);
  add (&a, 0x22222222, 0xffffffff, NULL);
  assert_int_equal (parse (&a, AREA), 0);
  assert_null (a.img.extensions->next);
  area_done (&a);
}

static void
test_known_twice (void **state)
{
  static const uint32_t known[] = { Q_EXT_BACKING_FORMAT, Q_EXT_DATA_FILE, Q_EXT_FEATURE_NAMES,
                                    Q_EXT_HIGHEST_OFFSET, Q_EXT_SESSION };

  (void)state;
  for (size_t i = 0; i < lengthof (known); ++i) {
    struct area a;

    area_init (&a);
    add (&a, known[i], 0, NULL);
    add (&a, 0x11111111, 0, NULL);
    add (&a, known[i], 0, NULL);
    assert_int_equal (parse (&a, AREA), -EINVAL);
    assert_contains (a.err.text, "twice");
    assert_contains (a.err.text, "byte 120");
    area_done (&a);
  }
}

static int
parse_format (struct area *a, const char *data, uint32_t length)
{
  area_init (a);
  add (a, Q_EXT_BACKING_FORMAT, length, data);
  return parse (a, AREA);
}

static void
test_backing_format (void **state)
{
  char longest[Q_MAX_FORMAT_NAME + 8];
  struct area a;

  (void)state;
  assert_int_equal (parse_format (&a, "qcow2\0\0\0", 8), 0); /* writers of 2009 counted padding */
  assert_string_equal (a.img.backing_format, "qcow2");
  area_done (&a);
  assert_int_equal (parse_format (&a, "qcow2", 5), 0);
  assert_string_equal (a.img.backing_format, "qcow2");
  area_done (&a);
  assert_int_equal (parse_format (&a, "raw\0qcow", 8), -EINVAL);
  assert_contains (a.err.text, "backing format");
  assert_contains (a.err.text, "byte 3");
  area_done (&a);
  assert_int_equal (parse_format (&a, "", 0), 0); /* empty is as good as none */
  assert_null (a.img.backing_format);
  area_done (&a);
  assert_int_equal (parse_format (&a, "\0\0\0\0", 4), 0);
  assert_null (a.img.backing_format);
  area_done (&a);

  memset (longest, 'f', sizeof longest);
  assert_int_equal (parse_format (&a, longest, Q_MAX_FORMAT_NAME), 0);
  assert_int_equal (strlen (a.img.backing_format), Q_MAX_FORMAT_NAME);
  area_done (&a);
  assert_int_equal (parse_format (&a, longest, Q_MAX_FORMAT_NAME + 1), -EINVAL);
  assert_contains (a.err.text, "65 bytes");
  assert_contains (a.err.text, "64");
  area_done (&a);
}

static int
parse_bitmaps (struct area *a, uint32_t nb, uint32_t reserved, uint64_t size, uint64_t offset)
{
  struct qcow2_bitmaps_extension b = { put32 (nb), put32 (reserved), put64 (size), put64 (offset) };

  area_init (a);
  a->img.autoclear = Q_AUTOCLEAR_BITMAPS;
  add (a, Q_EXT_BITMAPS, sizeof b, &b);
  return parse (a, AREA);
}

static void
test_bitmaps (void **state)
{
  static const struct {
    uint32_t nb, reserved;
    uint64_t size, offset;
    const char *text;
  } bad[] = {
    { 0, 0, 24, 512, "0 bitmaps" },
    { 65536, 0, 65536 * 24, 512, "65536 bitmaps" },
    { 1, 7, 24, 512, "reserved field is 0x7" },
    { 2, 0, 47, 512, "directory of 47 bytes" },
    { 1, 0, (64 << 20) + 1, 512, "directory of 67108865 bytes" },
    { 1, 0, 24, 0, "offset 0 " },
    { 1, 0, 24, 513, "offset 0x201" },
    { 1, 0, 24, 1ull << 56, "offset 0x100000000000000" },
  };
  struct area a;

  (void)state;
  assert_int_equal (parse_bitmaps (&a, 2, 0, 48, 512), 0);
  assert_int_equal (a.img.nb_bitmaps, 2);
  assert_int_equal (a.img.bitmap_dir_size, 48);
  assert_int_equal (a.img.bitmap_dir_offset, 512);
  area_done (&a);
  for (size_t i = 0; i < lengthof (bad); ++i) {
    assert_int_equal (parse_bitmaps (&a, bad[i].nb, bad[i].reserved, bad[i].size, bad[i].offset),
                      -EINVAL);
    assert_contains (a.err.text, bad[i].text);
    area_done (&a);
  }

  /* Stale without its autoclear bit: not even looked at. */
  area_init (&a);
  add (&a, Q_EXT_BITMAPS, sizeof (struct qcow2_bitmaps_extension),
       "\377\377\377\377 not looked at at all");
  assert_int_equal (parse (&a, AREA), 0);
  assert_int_equal (a.img.nb_bitmaps, 0);
  area_done (&a);

  area_init (&a); /* the bit without the extension */
  a.img.autoclear = Q_AUTOCLEAR_BITMAPS;
  assert_int_equal (parse (&a, AREA), -EINVAL);
  assert_contains (a.err.text, "bitmaps");
  area_done (&a);

  area_init (&a);
  add (&a, Q_EXT_BITMAPS, 16, "wrong length....");
  assert_int_equal (parse (&a, AREA), -EINVAL);
  assert_contains (a.err.text, "length 16");
  area_done (&a);
}

static void
test_feature_names (void **state)
{
  struct qcow2_feature_name names[2] = { { 0, 17, "a bit of ours" }, { 2, 63, "" } };
  struct area a;
  char buf[64];

  (void)state;
  memset (names[1].name, 'n', sizeof names[1].name); /* fills the field: not terminated */
  names[1].name[3] = '\n';
  area_init (&a);
  add (&a, Q_EXT_FEATURE_NAMES, sizeof names, names);
  assert_int_equal (parse (&a, AREA), 0);
  assert_string_equal (q_feature_name (&a.img, 0, 17, buf), "a bit of ours");
  assert_int_equal (strlen (q_feature_name (&a.img, 2, 63, buf)), 46);
  assert_int_equal (buf[3], '?'); /* a message is one line */
  assert_string_equal (q_feature_name (&a.img, 0, 4, buf), "extended L2 entries");
  assert_null (q_feature_name (&a.img, 0, 18, buf));
  assert_null (q_feature_name (&a.img, 1, 17, buf));
  area_done (&a);

  area_init (&a);
  add (&a, Q_EXT_FEATURE_NAMES, 47, names);
  assert_int_equal (parse (&a, AREA), -EINVAL);
  assert_contains (a.err.text, "length 47");
  area_done (&a);
}

/* A header full of them is read in the time that reading takes. */
static void
test_many (void **state)
{
  uint64_t bytes = 2u << 20, n = (bytes - START) / 8 - 1, found = 0;
  uint8_t *buf = xalloc (bytes);
  clock_t start = clock ();
  struct area a;

  (void)state;
  area_init (&a);
  for (uint64_t i = 0; i < n; ++i)
    buf[START + i * 8] = 0x42;
  assert_int_equal (q_extensions_parse (&a.img, buf, START, bytes, &a.err), 0);
  for (const struct q_extension *e = a.img.extensions; e; e = e->next)
    ++found;
  assert_int_equal (found, n);
  assert_true ((clock () - start) / CLOCKS_PER_SEC < 5); /* every one after every other: minutes */
  area_done (&a);
  free (buf);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_unknown_kept_in_order),
    cmocka_unit_test (test_lengths_past_the_area),
    cmocka_unit_test (test_longest_that_fits),
    cmocka_unit_test (test_area_ends),
    cmocka_unit_test (test_known_twice),
    cmocka_unit_test (test_backing_format),
    cmocka_unit_test (test_bitmaps),
    cmocka_unit_test (test_feature_names),
    cmocka_unit_test (test_many),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
