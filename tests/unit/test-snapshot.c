/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Internal snapshots: made, deleted, gone back to, on images of all geometries, while others read
 * and write, and while the storage fails.
 */

#include "unit.h"

#include <unistd.h>

#define K 1024u

static char id[Q_SNAPSHOT_ID_SIZE];

static void
create (struct fixture *f, struct q_image *img, const char *name)
{
  if (q_snapshot_create (img, name, id, &f->err) < 0)
    fail_msg ("create %s: %s", name, f->err.text);
}

static void delete (struct fixture *f, struct q_image *img, const char *name)
{
  if (q_snapshot_delete (img, name, &f->err) < 0)
    fail_msg ("delete %s: %s", name, f->err.text);
}

static void
apply (struct fixture *f, struct q_image *img, const char *name)
{
  if (q_snapshot_apply (img, name, &f->err) < 0)
    fail_msg ("apply %s: %s", name, f->err.text);
}

/* What the snapshot NAME shows is BYTE from OFFSET on. */
static void
snapshot_reads (struct fixture *f, const char *name, uint64_t offset, uint64_t len, uint8_t byte)
{
  struct q_open_options was = f->opts;
  struct q_image *img;

  f->opts.read_only = true;
  f->opts.snapshot = name;
  img = unit_open (f, "disk");
  unit_reads (img, offset, len, byte);
  unit_close (img);
  f->opts = was;
}

static struct q_image *
reopen (struct fixture *f, struct q_image *img)
{
  unit_close (img);
  unit_check (f, "disk");
  return unit_open (f, "disk");
}

/* ---- all geometries -------------------------------------------------------------------------- */

static void
story (unsigned version, unsigned cluster_bits, unsigned refcount_bits)
{
  struct q_create_options o;
  struct fixture f;
  struct q_image *img;
  int r;

  unit_init (&f);
  q_create_options_init (&o);
  o.version = version;
  o.cluster_bits = cluster_bits;
  o.refcount_bits = refcount_bits;
  unit_create (&f, "disk", 2 << 20, &o);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 300000, 1);
  create (&f, img, "one");
  assert_string_equal (id, "1");
  unit_writes (img, 100000, 300000, 2);
  create (&f, img, "two");
  assert_string_equal (id, "2");
  unit_writes (img, 0, 500000, 3);
  assert_int_equal (q_discard (img, 0, 200000), 0);
  img = reopen (&f, img);
  snapshot_reads (&f, "one", 0, 300000, 1);
  snapshot_reads (&f, "one", 300000, 200000, 0);
  snapshot_reads (&f, "two", 0, 100000, 1);
  snapshot_reads (&f, "2", 100000, 300000, 2);
  apply (&f, img, "1");
  unit_reads (img, 0, 300000, 1);
  unit_reads (img, 300000, 200000, 0);
  unit_writes (img, 7, 100, 9);
  img = reopen (&f, img);
  /* What both and the disk share may be one more than two bits can count. */
  r = q_snapshot_apply (img, "two", &f.err);
  if (r < 0) {
    assert_int_equal (r, -ERANGE);
    assert_int_equal (refcount_bits, 2);
    assert_contains (f.err.text, "2 bits");
    unit_reads (img, 7, 100, 9);
    img = reopen (&f, img);
    delete (&f, img, "one");
    apply (&f, img, "two");
    create (&f, img, "one");
  }
  unit_reads (img, 0, 100000, 1);
  unit_reads (img, 100000, 300000, 2);
  delete (&f, img, "one");
  img = reopen (&f, img);
  unit_writes (img, 0, 500000, 3);
  delete (&f, img, "2");
  unit_reads (img, 0, 500000, 3);
  assert_int_equal (q_snapshot_delete (img, "2", &f.err), -ENOENT);
  assert_int_equal (q_snapshot_apply (img, "two", &f.err), -ENOENT);
  img = reopen (&f, img);
  unit_close (img);
  unit_done (&f);
}

static void
test_geometries (void **state)
{
  (void)state;
  for (unsigned bits = 9; bits <= 21; ++bits) {
    story (2, bits, 16);
    for (unsigned refcount_bits = 2; refcount_bits <= 64; refcount_bits *= 2)
      if (bits % 3 == 0 || refcount_bits == 16)
        story (3, bits, refcount_bits);
  }
}

/* One bit cannot count two. */
static void
test_one_bit (void **state)
{
  struct q_create_options o;
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint8_t *before;
  uint64_t size;

  (void)state;
  unit_init (&f);
  q_create_options_init (&o);
  o.refcount_bits = 1;
  m = unit_create (&f, "disk", 2 << 20, &o);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 300000, 1);
  assert_int_equal (q_flush (img), 0);
  size = m->size;
  before = malloc (size);
  memcpy (before, m->data, size);
  assert_int_equal (q_snapshot_create (img, "one", id, &f.err), -ERANGE);
  assert_contains (f.err.text, "1 bit");
  assert_int_equal (m->size, size);
  assert_memory_equal (m->data, before, size);
  free (before);
  img = reopen (&f, img);
  unit_close (img);
  unit_done (&f);
}

/* ---- the table ------------------------------------------------------------------------------- */

/* Extra data that nobody understands, VM state and clock of other snapshots stay as they are. */
static void
test_table_kept (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct qcow2_snapshot s;
  uint64_t table, l1;
  uint8_t extra[40];

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 1 << 20, NULL);
  l1 = unit_take (m, 1);
  table = unit_take (m, 1);
  s = (struct qcow2_snapshot){ .l1_table_offset = put64 (l1),
                               .l1_size = put32 (1),
                               .id_size = put16 (2),
                               .name_size = put16 (3),
                               .date_sec = put32 (11),
                               .date_nsec = put32 (22),
                               .vm_clock_nsec = put64 (33),
                               .vm_state_size = put32 (44),
                               .extra_data_size = put32 (sizeof extra) };
  memset (extra, 0x5a, sizeof extra);
  unit_put_be64 (m, table + sizeof s, 1ull << 40);
  memcpy (m->data + table, &s, sizeof s);
  memcpy (m->data + table + sizeof s, extra, sizeof extra);
  unit_put_be64 (m, table + sizeof s, 1ull << 40);
  unit_put_be64 (m, table + sizeof s + 8, 1 << 20);
  memcpy (extra, m->data + table + sizeof s, sizeof extra);
  memcpy (m->data + table + sizeof s + sizeof extra, "77old", 5);
  unit_header (m)->nb_snapshots = put32 (1);
  unit_header (m)->snapshots_offset = put64 (table);
  unit_check (&f, "disk");
  img = unit_open (&f, "disk");
  create (&f, img, "new");
  assert_string_equal (id, "78");
  create (&f, img, "");
  assert_string_equal (id, "79");
  delete (&f, img, "new");
  img = reopen (&f, img);
  table = get64 (unit_header (m)->snapshots_offset);
  assert_int_equal (get32 (unit_header (m)->nb_snapshots), 2);
  assert_memory_equal (m->data + table, &s, sizeof s);
  assert_memory_equal (m->data + table + sizeof s, extra, sizeof extra);
  assert_memory_equal (m->data + table + sizeof s + sizeof extra, "77old", 5);
  {
    struct q_snapshot_info *info;

    assert_int_equal (q_get_snapshots (img, &info), 2);
    assert_int_equal (info[0].vm_state_size, 1ull << 40);
    assert_string_equal (info[0].id, "77");
    assert_string_equal (info[0].name, "old");
    assert_string_equal (info[1].name, "");
    assert_int_equal (info[1].icount, -1);
    assert_int_equal (info[1].disk_size, 1 << 20);
    assert_true (info[1].date_sec > 1600000000);
    free (info);
  }
  unit_close (img);
  unit_done (&f);
}

/* Ids and names: deleting looks for a name first, going back for an id. */
static void
test_names (void **state)
{
  struct fixture f;
  struct q_image *img;
  char name[300];

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 1 << 20, NULL);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, K, 1);
  create (&f, img, "2");
  unit_writes (img, 0, K, 2);
  create (&f, img, "1");
  unit_writes (img, 0, K, 3);
  apply (&f, img, "1");
  unit_reads (img, 0, K, 1);
  apply (&f, img, "2");
  unit_reads (img, 0, K, 2);
  delete (&f, img, "1");
  assert_int_equal (q_snapshot_apply (img, "1", &f.err), 0);
  unit_reads (img, 0, K, 1);
  memset (name, 'x', sizeof name);
  name[256] = '\0';
  assert_int_equal (q_snapshot_create (img, name, id, &f.err), -EINVAL);
  name[255] = '\0';
  create (&f, img, name);
  img = reopen (&f, img);
  unit_close (img);
  unit_done (&f);
}

static void
test_refused (void **state)
{
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "raw", 10000, 5);
  unit_create (&f, "disk", 1 << 20, NULL);
  f.opts.format = Q_FORMAT_RAW;
  img = unit_open (&f, "raw");
  assert_int_equal (q_snapshot_create (img, "x", id, &f.err), -ENOTSUP);
  assert_int_equal (q_snapshot_apply (img, "x", &f.err), -ENOTSUP);
  assert_int_equal (q_snapshot_delete (img, "x", &f.err), -ENOTSUP);
  unit_close (img);
  f.opts.format = Q_FORMAT_AUTO;
  f.opts.read_only = true;
  img = unit_open (&f, "disk");
  assert_int_equal (q_snapshot_create (img, "x", id, &f.err), -EROFS);
  unit_close (img);
  unit_done (&f);
}

/* ---- sizes ----------------------------------------------------------------------------------- */

/* Going back takes the size along. */
static void
test_sizes (void **state)
{
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "disk", 100 * K, 9);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 100 * K, 1);
  create (&f, img, "small");
  assert_int_equal (q_resize (img, 10000 * K, &f.err), 0);
  unit_reads (img, 100 * K, 9900 * K, 0);
  unit_writes (img, 9000 * K, 1000 * K, 2);
  create (&f, img, "large");
  apply (&f, img, "small");
  assert_int_equal (q_size (img), 100 * K);
  unit_reads (img, 0, 100 * K, 1);
  img = reopen (&f, img);
  assert_int_equal (q_size (img), 100 * K);
  unit_writes (img, 50 * K, K, 4);
  apply (&f, img, "large");
  assert_int_equal (q_size (img), 10000 * K);
  unit_reads (img, 9000 * K, 1000 * K, 2);
  unit_reads (img, 50 * K, K, 1);
  unit_writes (img, 9999 * K, K, 5);
  img = reopen (&f, img);
  unit_reads (img, 9999 * K, K, 5);
  unit_close (img);
  unit_done (&f);
}

static void
test_empty (void **state)
{
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 0, NULL);
  img = unit_open (&f, "disk");
  create (&f, img, "nothing");
  assert_int_equal (q_resize (img, 64 * K, &f.err), 0);
  unit_writes (img, 0, 64 * K, 1);
  apply (&f, img, "nothing");
  assert_int_equal (q_size (img), 0);
  img = reopen (&f, img);
  delete (&f, img, "nothing");
  img = reopen (&f, img);
  unit_close (img);
  unit_done (&f);
}

/* ---- in use ---------------------------------------------------------------------------------- */

/* Each writer writes a number to its first sector and then to its last, over and over.  So a moment
 * between two writes has the first number equal to the last, or one more. */
#define WRITERS 4
#define SPAN    (600 * K)

struct writer {
  struct q_image *img;
  unsigned index;
  _Atomic bool *stop;
};

static void *
write_pairs (void *opaque)
{
  struct writer *w = opaque;
  uint64_t base = w->index * (uint64_t)SPAN, seed = random_seed (w->index);
  uint64_t sector[64];

  for (uint64_t n = 1; !*w->stop; ++n) {
    for (unsigned i = 0; i < 64; ++i)
      sector[i] = n;
    assert_int_equal (q_pwrite (w->img, sector, base, 512), 0);
    assert_int_equal (q_pwrite (w->img, sector, base + SPAN - 512, 512), 0);
    assert_int_equal (
        q_pwrite (w->img, sector, base + 512 + random_below (&seed, SPAN - 2 * K), 512), 0);
    if (n % 16 == 0)
      assert_int_equal (q_discard (w->img, base + 8 * K, 64 * K), 0);
  }
  return NULL;
}

static void *
flush_often (void *opaque)
{
  struct writer *w = opaque;

  while (!*w->stop) {
    assert_int_equal (q_flush (w->img), 0);
    usleep (200);
  }
  return NULL;
}

static void *
read_often (void *opaque)
{
  struct writer *w = opaque;
  static uint8_t buf[WRITERS * SPAN];

  while (!*w->stop) {
    assert_int_equal (q_pread (w->img, buf, 0, sizeof buf), 0);
    {
      struct q_snapshot_info *info;
      int n = q_get_snapshots (w->img, &info);

      for (int i = 0; i < n; ++i)
        assert_int_equal (info[i].name[0], 's');
      free (info);
    }
  }
  return NULL;
}

static void
pairs_hold (struct q_image *img)
{
  for (unsigned i = 0; i < WRITERS; ++i) {
    uint64_t first, last;

    assert_int_equal (q_pread (img, &first, i * (uint64_t)SPAN, 8), 0);
    assert_int_equal (q_pread (img, &last, (i + 1) * (uint64_t)SPAN - 512, 8), 0);
    if (first != last && first != last + 1)
      fail_msg ("writer %u: %llu and %llu are not of one moment", i, (unsigned long long)first,
                (unsigned long long)last);
  }
}

static void
in_use (unsigned cluster_bits, bool small_cache)
{
  struct fixture f;
  struct q_image *img;
  pthread_t thread[WRITERS + 2];
  struct writer w[WRITERS + 2];
  _Atomic bool stop = false;
  char name[16];

  unit_init (&f);
  unit_create_clusters (&f, "disk", WRITERS * SPAN, cluster_bits);
  if (small_cache)
    f.opts.l2_cache_size = 4ull << cluster_bits;
  img = unit_open (&f, "disk");
  for (unsigned i = 0; i < WRITERS + 2; ++i) {
    w[i] = (struct writer){ .img = img, .index = i, .stop = &stop };
    assert_int_equal (pthread_create (&thread[i], NULL,
                                      i < WRITERS    ? write_pairs
                                      : i == WRITERS ? flush_often
                                                     : read_often,
                                      &w[i]),
                      0);
  }
  for (unsigned i = 0; i < 12; ++i) {
    snprintf (name, sizeof name, "s%u", i);
    create (&f, img, name);
    if (i >= 3) {
      snprintf (name, sizeof name, "s%u", i - 3);
      delete (&f, img, name);
    }
  }
  stop = true;
  for (unsigned i = 0; i < WRITERS + 2; ++i)
    pthread_join (thread[i], NULL);
  for (unsigned i = 9; i < 12; ++i) {
    snprintf (name, sizeof name, "s%u", i);
    apply (&f, img, name);
    pairs_hold (img);
  }
  img = reopen (&f, img);
  pairs_hold (img);
  unit_close (img);
  unit_done (&f);
}

static void
test_in_use (void **state)
{
  (void)state;
  in_use (9, false);
  in_use (12, true);
  in_use (16, false);
}

/* Going back while others write and read: the image stays sound, and every sector has what was
 * written once. */
static void
test_going_back_in_use (void **state)
{
  struct fixture f;
  struct q_image *img;
  pthread_t thread[WRITERS + 2];
  struct writer w[WRITERS + 2];
  _Atomic bool stop = false;

  (void)state;
  unit_init (&f);
  unit_create_clusters (&f, "disk", WRITERS * SPAN, 12);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, WRITERS * SPAN, 0);
  create (&f, img, "s0");
  for (unsigned i = 0; i < WRITERS + 2; ++i) {
    w[i] = (struct writer){ .img = img, .index = i, .stop = &stop };
    assert_int_equal (pthread_create (&thread[i], NULL,
                                      i < WRITERS    ? write_pairs
                                      : i == WRITERS ? flush_often
                                                     : read_often,
                                      &w[i]),
                      0);
  }
  for (unsigned i = 0; i < 20; ++i)
    apply (&f, img, "s0");
  stop = true;
  for (unsigned i = 0; i < WRITERS + 2; ++i)
    pthread_join (thread[i], NULL);
  apply (&f, img, "s0");
  unit_reads (img, 0, WRITERS * SPAN, 0);
  img = reopen (&f, img);
  unit_close (img);
  unit_done (&f);
}

/* ---- when the storage fails -------------------------------------------------------------------
 */

enum act { CREATE, DELETE, APPLY, ACTS };

static int
do_act (struct fixture *f, struct q_image *img, enum act act)
{
  return act == CREATE   ? q_snapshot_create (img, "new", id, &f->err)
         : act == DELETE ? q_snapshot_delete (img, "old", &f->err)
                         : q_snapshot_apply (img, "old", &f->err);
}

/* Fails the calls of KIND after the Nth; false if there are not so many. */
static bool
fail_at (enum act act, enum mem_kind kind, int code, unsigned n)
{
  struct fixture f;
  struct q_image *img;
  bool reached;
  int r;

  unit_init (&f);
  unit_create_clusters (&f, "disk", 300 * K, 9);
  f.opts.l2_cache_size = 1024;
  f.opts.refcount_cache_size = 1024;
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 200 * K, 1);
  create (&f, img, "old");
  unit_writes (img, 100 * K, 100 * K, 2);
  f.fail_kind = kind;
  f.fail_with = code;
  f.fail_after = n;
  r = do_act (&f, img, act);
  reached = f.fail_after == 0;
  if (r < 0)
    assert_true (f.err.text[0] != '\0');
  f.fail_with = 0;
  if (!q_read_only (img)) {
    if (act == APPLY && r == 0)
      unit_reads (img, 0, 200 * K, 1);
    else {
      unit_reads (img, 0, 100 * K, 1);
      unit_reads (img, 100 * K, 100 * K, 2);
    }
    assert_int_equal (q_flush (img), 0);
    unit_writes (img, 99 * K, 2 * K, 3);
    assert_int_equal (q_flush (img), 0);
    r = do_act (&f, img, act); /* nothing is left in the way */
    assert_true (r == 0 || r == -ENOENT);
    unit_close (img);
  } else
    q_close (&img, NULL);
  /* Repairs what the dirty bit speaks of. */
  img = unit_open (&f, "disk");
  unit_close (img);
  {
    struct q_check_result result;

    f.opts.read_only = true;
    img = unit_open (&f, "disk");
    assert_int_equal (q_check (img, 0, &result, NULL, NULL, &f.err), 0);
    assert_int_equal (result.corruptions, 0);
    unit_close (img);
    f.opts.read_only = false;
  }
  if (act != DELETE)
    snapshot_reads (&f, "old", 0, 200 * K, 1);
  unit_done (&f);
  return reached;
}

static void
test_faults (void **state)
{
  static const struct {
    enum mem_kind kind;
    int code;
  } faults[] = { { MEM_WRITE, -EIO }, { MEM_WRITE, -ENOSPC },    { MEM_SYNC, -EIO },
                 { MEM_READ, -EIO },  { MEM_ALLOCATE, -ENOSPC }, { MEM_ZERO, -EIO },
                 { MEM_SIZE, -EIO } };

  (void)state;
  for (enum act act = 0; act < ACTS; ++act)
    for (size_t i = 0; i < lengthof (faults); ++i)
      for (unsigned n = 0; fail_at (act, faults[i].kind, faults[i].code, n); n += n < 60 ? 1 : 7)
        ;
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_geometries),
    cmocka_unit_test (test_one_bit),
    cmocka_unit_test (test_table_kept),
    cmocka_unit_test (test_names),
    cmocka_unit_test (test_refused),
    cmocka_unit_test (test_sizes),
    cmocka_unit_test (test_empty),
    cmocka_unit_test (test_in_use),
    cmocka_unit_test (test_going_back_in_use),
    cmocka_unit_test (test_faults),
  };

  alarm (240); /* under a sanitizer, on a busy machine */
  return cmocka_run_group_tests (tests, NULL, NULL);
}
