/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Amending images: what a crash leaves is sound and holds the same, the disk and a snapshot of it,
 * and only what nobody refers to may be counted.
 */

#include "unit.h"

#define SIZE (256u << 10)

enum crash {
  KILLED,    /* everything that was written is there */
  UNSYNCED,  /* nothing since the last sync is */
  LAST_ONLY, /* of that, only the last write is */
  CRASHES
};

struct recorder {
  struct mem_file *file;
  enum crash crash;
  unsigned changes, stop_at;
  uint8_t *synced, *copy;
  uint64_t synced_size, size;
};

static uint8_t *
duplicate (const uint8_t *data, uint64_t size)
{
  uint8_t *copy = malloc (size);

  assert_non_null (copy);
  memcpy (copy, data, size);
  return copy;
}

static void
note_sync (struct recorder *r)
{
  free (r->synced);
  r->synced = duplicate (r->file->data, r->file->size);
  r->synced_size = r->file->size;
}

static int
before (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  (void)partial;
  if (call->kind == MEM_SYNCED)
    note_sync (opaque);
  return 0;
}

static void
done (void *opaque, const struct mem_call *call)
{
  struct recorder *r = opaque;

  if (r->changes++ != r->stop_at)
    return;
  /* The size survives; what was lost within it is zeros. */
  r->size = r->file->size;
  r->copy = duplicate (r->file->data, r->size);
  if (r->crash == KILLED)
    return;
  memset (r->copy, 0, r->size);
  memcpy (r->copy, r->synced, r->synced_size < r->size ? r->synced_size : r->size);
  if (r->crash == LAST_ONLY && call->kind == MEM_WRITE)
    memcpy (r->copy + call->offset, r->file->data + call->offset, call->len);
}

/* Data, zeros over the backing file, and holes; a snapshot that has them otherwise. */
static struct mem_file *
make (struct fixture *f, unsigned cluster_bits, unsigned version, unsigned refcount_bits)
{
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_create_options o;
  struct mem_file *m;
  struct q_image *img;

  q_create_options_init (&o);
  o.cluster_bits = cluster_bits;
  o.version = version;
  o.refcount_bits = refcount_bits;
  o.backing_file = "base";
  o.backing_format = "raw";
  unit_raw (f, "base", SIZE, 9);
  m = unit_create (f, "top", SIZE, &o);
  img = unit_open (f, "top");
  unit_writes (img, 0, SIZE / 4, 1);
  assert_int_equal (q_zero (img, SIZE / 2, SIZE / 8, 0), 0);
  assert_int_equal (q_snapshot_create (img, "s", id, &f->err), 0);
  unit_writes (img, SIZE / 8, SIZE / 8, 2);
  assert_int_equal (q_zero (img, SIZE / 4, SIZE / 8, 0), 0);
  unit_close (img);
  unit_check (f, "top");
  return m;
}

static void
holds_the_same (struct fixture *f)
{
  struct q_check_result result;
  struct q_image *img;

  img = unit_open (f, "top"); /* as the next one would */
  unit_reads (img, 0, SIZE / 8, 1);
  unit_reads (img, SIZE / 8, SIZE / 8, 2);
  unit_reads (img, SIZE / 4, SIZE / 8, 0);
  unit_reads (img, SIZE / 4 + SIZE / 8, SIZE / 8, 9);
  unit_reads (img, SIZE / 2, SIZE / 8, 0);
  unit_reads (img, SIZE / 2 + SIZE / 8, SIZE / 4, 9);
  if (q_check (img, 0, &result, NULL, NULL, &f->err) < 0)
    fail_msg ("%s", f->err.text);
  assert_int_equal (result.corruptions, 0);
  assert_int_equal (result.check_errors, 0);
  unit_close (img);
  f->opts.read_only = true;
  f->opts.snapshot = "s";
  img = unit_open (f, "top");
  unit_reads (img, 0, SIZE / 4, 1);
  unit_reads (img, SIZE / 4, SIZE / 4, 9);
  unit_reads (img, SIZE / 2, SIZE / 8, 0);
  unit_reads (img, SIZE / 2 + SIZE / 8, SIZE / 4, 9);
  unit_close (img);
  f->opts.read_only = false;
  f->opts.snapshot = NULL;
}

/* Returns false when there are not so many changes. */
static bool
crash_at (const struct q_amend_options *opts, unsigned cluster_bits, unsigned version,
          unsigned refcount_bits, enum crash crash, unsigned stop_at)
{
  struct fixture f;
  struct recorder r = { .crash = crash, .stop_at = stop_at };
  struct mem_tap tap = { .before = before, .done = done, .opaque = &r };
  const struct mem_tap *was;
  struct q_image *img;
  bool stopped;

  unit_init (&f);
  r.file = make (&f, cluster_bits, version, refcount_bits);
  note_sync (&r);
  was = r.file->tap;
  r.file->tap = &tap;
  img = unit_open (&f, "top");
  if (q_amend (img, opts, &f.err) < 0)
    fail_msg ("%s", f.err.text);
  unit_close (img);
  r.file->tap = was;
  stopped = r.copy;
  if (stopped)
    mem_set (r.file, r.copy, r.size);
  else
    assert_true (r.changes > 0);
  holds_the_same (&f);
  if (!stopped)
    unit_check (&f, "top");
  free (r.copy);
  free (r.synced);
  unit_done (&f);
  return stopped;
}

static void
test_crash (void **state)
{
  static const struct {
    unsigned cluster_bits, version, refcount_bits; /* the image */
    unsigned to_version, to_bits;
    int lazy;
  } cases[] = {
    { 12, 2, 16, 3, 0, 1 },  { 12, 3, 16, 2, 0, -1 }, { 12, 3, 16, 0, 64, -1 },
    { 12, 3, 8, 2, 16, -1 }, { 12, 2, 16, 3, 8, 1 },  { 16, 3, 16, 2, 0, -1 },
    { 10, 3, 16, 2, 0, -1 }, { 10, 2, 16, 3, 0, -1 }, { 10, 3, 32, 0, 4, 1 },
  };

  (void)state;
  for (unsigned i = 0; i < lengthof (cases); i++)
    for (unsigned crash = 0; crash < CRASHES; crash++) {
      struct q_amend_options opts;
      unsigned stop_at = 0;

      q_amend_options_init (&opts);
      opts.version = cases[i].to_version;
      opts.refcount_bits = cases[i].to_bits;
      opts.lazy_refcounts = cases[i].lazy;
      print_message ("case %u, crash %u\n", i, crash);
      while (crash_at (&opts, cases[i].cluster_bits, cases[i].version, cases[i].refcount_bits,
                       crash, stop_at))
        stop_at++;
    }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_crash),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
