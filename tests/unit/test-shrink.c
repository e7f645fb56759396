/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making a disk smaller, and larger again; preallocation of what is new.
 */

#include "unit.h"

#include <unistd.h>

#define K 1024u

static struct q_image *
reopen (struct fixture *f, struct q_image *img)
{
  unit_close (img);
  unit_check (f, "disk");
  return unit_open (f, "disk");
}

static void
shrink (struct fixture *f, struct q_image *img, uint64_t size)
{
  if (q_shrink (img, size, &f->err) < 0)
    fail_msg ("%s", f->err.text);
  assert_int_equal (q_size (img), size);
}

static void
grow (struct fixture *f, struct q_image *img, uint64_t size)
{
  if (q_resize (img, size, &f->err) < 0)
    fail_msg ("%s", f->err.text);
}

/* Smaller, then larger: what was cut off is gone, its clusters are free, and zeros are in its
 * place. */
static void
story (unsigned version, unsigned cluster_bits, uint64_t to, bool snapshot)
{
  const uint64_t size = 3000 * K;
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_create_options o;
  struct mem_file *m;
  struct fixture f;
  struct q_image *img;

  unit_init (&f);
  q_create_options_init (&o);
  o.version = version;
  o.cluster_bits = cluster_bits;
  o.backing_file = "below";
  o.backing_format = "raw";
  unit_raw (&f, "below", size, 9);
  m = unit_create (&f, "disk", size, &o);
  img = unit_open (&f, "disk");
  unit_reads (img, 0, size, 9);
  unit_writes (img, 0, size, 1);
  if (snapshot)
    assert_int_equal (q_snapshot_create (img, "full", id, &f.err), 0);
  unit_writes (img, size / 2, K, 2);
  shrink (&f, img, to);
  unit_reads (img, 0, to < size / 2 ? to : size / 2, 1);
  img = reopen (&f, img);
  assert_int_equal (q_size (img), to);
  grow (&f, img, size);
  unit_reads (img, to, size - to, 0);
  unit_reads (img, 0, to < size / 2 ? to : size / 2, 1);
  if (!snapshot && to == 0) {
    uint64_t l1 = get64 (unit_header (m)->l1_table_offset);

    unit_close (img); /* nothing is left of it */
    assert_int_equal (unit_refcount (m, l1), 1);
    img = unit_open (&f, "disk");
  }
  unit_writes (img, to, size - to, 3);
  if (snapshot) {
    assert_int_equal (q_snapshot_apply (img, "full", &f.err), 0);
    assert_int_equal (q_size (img), size);
    unit_reads (img, 0, size, 1);
  }
  img = reopen (&f, img);
  unit_close (img);
  unit_done (&f);
}

static void
test_sizes (void **state)
{
  (void)state;
  for (unsigned bits = 9; bits <= 16; bits += bits == 9 ? 3 : 4)
    for (uint64_t to = 0; to < 3000 * K; to += 512 * (1 + to / 512 * 3 / 2))
      for (unsigned snapshot = 0; snapshot < 2; ++snapshot)
        story (3, bits, to, snapshot);
  for (unsigned snapshot = 0; snapshot < 2; ++snapshot) {
    story (2, 9, 100 * K + 512, snapshot);
    story (2, 16, 512, snapshot);
  }
}

static void
test_refused (void **state)
{
  struct q_create_options o;
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  q_create_options_init (&o);
  o.version = 2;
  unit_create (&f, "disk", 1 << 20, &o);
  img = unit_open (&f, "disk");
  assert_int_equal (q_shrink (img, (1 << 20) + 512, &f.err), -EINVAL);
  assert_int_equal (q_shrink (img, 1000, &f.err), -EINVAL);
  assert_int_equal (q_shrink (img, 1 << 20, &f.err), 0);
  unit_close (img);
  unit_done (&f);
}

static void
test_raw (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  m = unit_raw (&f, "disk", 10240, 5);
  f.opts.format = Q_FORMAT_RAW;
  img = unit_open (&f, "disk");
  shrink (&f, img, 5120);
  assert_int_equal (m->size, 5120);
  grow (&f, img, 10240);
  unit_reads (img, 0, 5120, 5);
  unit_reads (img, 5120, 5120, 0);
  unit_close (img);
  unit_done (&f);
}

/* Requests go on at the end of the disk while it moves. */
struct worker {
  struct q_image *img;
  _Atomic bool *stop;
};

static void *
work_at_the_end (void *opaque)
{
  struct worker *w = opaque;
  uint64_t seed = random_seed ((uintptr_t)&w);
  static const uint8_t zeros[8 * K];
  uint8_t buf[8 * K];

  while (!*w->stop) {
    uint64_t offset = random_below (&seed, 2000) * K;
    int r = q_pwrite (w->img, zeros, offset, sizeof zeros);

    assert_true (r == 0 || r == -ENOSPC);
    r = q_pread (w->img, buf, offset, sizeof buf);
    assert_true (r == 0 || r == -EINVAL);
    r = q_discard (w->img, offset, sizeof zeros);
    assert_true (r == 0 || r == -ENOSPC);
    r = q_zero (w->img, offset, sizeof zeros, Q_ZERO_UNMAP);
    assert_true (r == 0 || r == -ENOSPC);
  }
  return NULL;
}

static void
test_in_use (void **state)
{
  struct fixture f;
  struct q_image *img;
  pthread_t id[3];
  struct worker w;
  _Atomic bool stop = false;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "disk", 2000 * K, 9);
  img = unit_open (&f, "disk");
  w = (struct worker){ img, &stop };
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_create (&id[i], NULL, work_at_the_end, &w), 0);
  for (unsigned i = 0; i < 30; ++i) {
    shrink (&f, img, 100 * K * (i % 7));
    usleep (500);
    grow (&f, img, 2000 * K);
  }
  stop = true;
  for (size_t i = 0; i < lengthof (id); ++i)
    pthread_join (id[i], NULL);
  unit_reads (img, 0, 2000 * K, 0);
  img = reopen (&f, img);
  unit_close (img);
  unit_done (&f);
}

/* The storage fails at every call: the disk has the old size and its contents, or the new one. */
static bool
fail_at (enum mem_kind kind, int code, unsigned n)
{
  struct fixture f;
  struct q_image *img;
  struct q_check_result result;
  bool reached;
  int r;

  unit_init (&f);
  unit_create_clusters (&f, "disk", 300 * K, 9);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 300 * K, 1);
  assert_int_equal (q_flush (img), 0);
  f.fail_kind = kind;
  f.fail_with = code;
  f.fail_after = n;
  r = q_shrink (img, 33 * K, &f.err);
  reached = f.fail_after == 0;
  f.fail_with = 0;
  assert_int_equal (q_size (img), r == 0 ? 33 * K : 300 * K);
  unit_reads (img, 0, 33 * K, 1);
  if (r < 0)
    unit_reads (img, 34 * K, 266 * K, 1);
  q_close (&img, NULL);
  img = unit_open (&f, "disk");
  unit_reads (img, 0, 33 * K, 1);
  assert_true (q_size (img) == 33 * K || q_size (img) == 300 * K);
  unit_close (img);
  f.opts.read_only = true;
  img = unit_open (&f, "disk");
  assert_int_equal (q_check (img, 0, &result, NULL, NULL, &f.err), 0);
  assert_int_equal (result.corruptions, 0);
  unit_close (img);
  unit_done (&f);
  return reached;
}

static void
test_faults (void **state)
{
  static const struct {
    enum mem_kind kind;
    int code;
  } faults[] = { { MEM_WRITE, -EIO },      { MEM_WRITE, -ENOSPC }, { MEM_SYNC, -EIO },
                 { MEM_READ, -EIO },       { MEM_SIZE, -EIO },     { MEM_ALLOCATE, -ENOSPC },
                 { MEM_ZERO, -EOPNOTSUPP } };

  (void)state;
  for (size_t i = 0; i < lengthof (faults); ++i)
    for (unsigned n = 0; n < 300 && fail_at (faults[i].kind, faults[i].code, n); ++n)
      ;
}

/* ---- preallocation --------------------------------------------------------------------------- */

static void
test_preallocate (void **state)
{
  static const enum q_preallocation modes[] = { Q_PREALLOC_METADATA, Q_PREALLOC_FALLOC,
                                                Q_PREALLOC_FULL };

  (void)state;
  for (unsigned bits = 9; bits <= 16; bits += 7)
    for (size_t i = 0; i < lengthof (modes); ++i) {
      const uint64_t old = 100 * K + 512, size = 2000 * K + 1536;
      struct fixture f;
      struct q_image *img;

      unit_init (&f);
      unit_create_clusters (&f, "disk", old, bits);
      img = unit_open (&f, "disk");
      unit_writes (img, 0, old, 7);
      assert_int_equal (q_discard (img, 0, 64 * K), 0); /* free clusters with old bytes */
      assert_int_equal (q_flush (img), 0);
      grow (&f, img, size);
      assert_int_equal (q_preallocate (img, old, size - old, modes[i]), 0);
      unit_reads (img, old, size - old, 0);
      for (uint64_t at = old; at < size; at += 512) {
        struct q_extent e;
        q_pin_t pin = q_pin ();

        assert_int_equal (q_map (img, at, 512, &e, 1, 0), 1);
        q_unpin (pin);
        assert_int_equal (e.kind, Q_DATA);
      }
      img = reopen (&f, img);
      unit_reads (img, old, size - old, 0);
      unit_close (img);
      unit_done (&f);
    }
}

/* A request beyond the end of a disk that has just become smaller: the entries of a raw data file
 * are settled within the disk as it is by then. */
static void
test_settled_within (void **state)
{
  struct q_create_options o;
  struct fixture f;
  struct q_image *img;

  (void)state;
  for (unsigned bits = 9; bits <= 16; bits += 7) {
    unit_init (&f);
    q_create_options_init (&o);
    o.cluster_bits = bits;
    o.data_file = "data";
    o.data_file_raw = true;
    unit_create (&f, "disk", 1 << 20, &o);
    f.opts.discard = true;
    img = unit_open (&f, "disk");
    unit_writes (img, 0, 1 << 20, 5);
    assert_int_equal (q_discard (img, 0, 1 << 20), 0);
    shrink (&f, img, 200 * K + 512);
    /* As q_pwrite calls it when it has looked at the size before: a table is settled as far as the
     * disk goes, and none beyond it. */
    assert_int_equal (q_data_settle (img, 700 * K, 1000), bits == 9 ? -ENOSPC : 0);
    assert_int_equal (q_data_settle (img, 150 * K, 100 * K), bits == 9 ? -ENOSPC : 0);
    assert_int_equal (q_data_settle (img, 200 * K, 512), 0);
    unit_writes (img, 200 * K, 512, 6);
    assert_int_equal (q_resize (img, 1 << 20, &f.err), 0);
    unit_reads (img, 200 * K + 512, (1 << 20) - 200 * K - 512, 0);
    unit_close (img);
    unit_check (&f, "disk");
    unit_done (&f);
  }
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_sizes),       cmocka_unit_test (test_refused),
    cmocka_unit_test (test_raw),         cmocka_unit_test (test_settled_within),
    cmocka_unit_test (test_in_use),      cmocka_unit_test (test_faults),
    cmocka_unit_test (test_preallocate),
  };

  alarm (240); /* under a sanitizer, on a busy machine */
  return cmocka_run_group_tests (tests, NULL, NULL);
}
