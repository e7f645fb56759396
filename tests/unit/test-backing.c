/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Recording another backing file: it is there afterwards, and what a crash leaves is the old name
 * with the old format or the new one with the new.
 */

#include "unit.h"

struct recorder {
  struct mem_file *file;
  unsigned changes, stop_at;
  uint8_t *copy;
  uint64_t size;
};

static void
note_change (void *opaque, const struct mem_call *call)
{
  struct recorder *r = opaque;

  (void)call;
  if (r->changes++ != r->stop_at)
    return;
  r->size = r->file->size;
  r->copy = malloc (r->size);
  assert_non_null (r->copy);
  memcpy (r->copy, r->file->data, r->size);
}

static int
set (struct fixture *f, const char *name, const char *format)
{
  struct q_image *img;
  int r;

  f->opts.metadata_only = true;
  img = unit_open (f, "top");
  f->opts.metadata_only = false;
  r = q_set_backing (img, name, format, &f->err);
  unit_close (img);
  return r;
}

/* Whether the recorded name and format are these. */
static bool
is_recorded (struct fixture *f, const char *name, const char *format)
{
  struct q_image_info info;
  struct q_image *img;
  bool same;

  f->opts.metadata_only = f->opts.read_only = true;
  img = unit_open (f, "top");
  f->opts.metadata_only = f->opts.read_only = false;
  q_get_info (img, &info);
  same = name ? info.backing_file && strcmp (info.backing_file, name) == 0 && info.backing_format &&
                    strcmp (info.backing_format, format) == 0
              : !info.backing_file;
  unit_close (img);
  return same;
}

static void
test_set (void **state)
{
  struct fixture f;
  char longest[301];

  (void)state;
  memset (longest, 'x', sizeof longest - 1);
  longest[sizeof longest - 1] = '\0';
  unit_init (&f);
  unit_overlay (&f, "top", 1 << 20, "old", "qcow2");
  assert_int_equal (set (&f, "new", "raw"), 0);
  assert_true (is_recorded (&f, "new", "raw"));
  assert_int_equal (set (&f, longest, "qcow2"), 0);
  assert_true (is_recorded (&f, longest, "qcow2"));
  assert_int_equal (set (&f, NULL, NULL), 0);
  assert_true (is_recorded (&f, NULL, NULL));
  assert_int_equal (set (&f, "again", "raw"), 0);
  assert_true (is_recorded (&f, "again", "raw"));
  assert_int_equal (set (&f, "", "raw"), -EINVAL);
  assert_true (is_recorded (&f, "again", "raw"));
  unit_check (&f, "top");
  unit_done (&f);
}

/* A kill after each change. */
static void
test_crash (void **state)
{
  static const struct {
    const char *name, *format;
  } to[] = { { "new", "raw" }, { "a/much/longer/name", "qcow2" }, { NULL, NULL } };

  (void)state;
  for (unsigned i = 0; i < lengthof (to); i++) {
    bool more = true;

    for (unsigned stop_at = 0; more; stop_at++) {
      struct fixture f;
      struct recorder r = { .stop_at = stop_at };
      struct mem_tap tap = { .done = note_change, .opaque = &r };
      const struct mem_tap *before;

      unit_init (&f);
      r.file = unit_overlay (&f, "top", 1 << 20, "old", "qcow2");
      before = r.file->tap;
      r.file->tap = &tap;
      assert_int_equal (set (&f, to[i].name, to[i].format), 0);
      r.file->tap = before;
      more = r.copy;
      if (more) {
        mem_set (r.file, r.copy, r.size);
        free (r.copy);
        assert_true (is_recorded (&f, "old", "qcow2") ||
                     is_recorded (&f, to[i].name, to[i].format));
      } else
        assert_true (r.changes > 0);
      unit_done (&f);
    }
  }
}

/* What expects a backing file later is marked where it reads as zeros now. */
static void
test_expect (void **state)
{
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create (&f, "top", 1 << 20, NULL);
  unit_raw (&f, "base", 1 << 20, 7);
  img = unit_open (&f, "top");
  q_expect_backing (img);
  assert_int_equal (q_zero (img, 65536, 65536, 0), 0);
  unit_close (img);
  assert_int_equal (set (&f, "base", "raw"), 0);
  img = unit_open (&f, "top");
  unit_reads (img, 0, 65536, 7);
  unit_reads (img, 65536, 65536, 0);
  unit_reads (img, 131072, 65536, 7);
  unit_close (img);
  unit_done (&f);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_set),
    cmocka_unit_test (test_crash),
    cmocka_unit_test (test_expect),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
