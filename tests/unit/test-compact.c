/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Compacting: what it gains, what it keeps, and what a crash or an error at any point leaves.
 */

#include "unit.h"

#define CLUSTERS 48u

/* An image with a hole in the file at every other cluster of data: the guest has something at the
 * odd ones, of which every other one is compressed.  A snapshot has the same, and shares most of
 * it. */
static void
fill (uint8_t *buf, unsigned i, uint64_t cluster)
{
  uint64_t random = random_seed (i);

  memset (buf, i % 2 ? (int)i + 1 : 0, cluster);
  for (uint64_t k = 0; i % 4 == 3 && k < cluster * (i % 3 + 1) / 4; k++)
    buf[k] = (uint8_t)random_below (&random, 256);
}

static void
make_fragmented (struct fixture *f, unsigned cluster_bits)
{
  const uint64_t cluster = 1ull << cluster_bits;
  uint8_t *buf = malloc (cluster);
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_image *img;

  assert_non_null (buf);
  unit_create_clusters (f, "disk", CLUSTERS * cluster, cluster_bits);
  f->opts.discard = true;
  img = unit_open (f, "disk");
  for (unsigned i = 0; i < CLUSTERS; i++) {
    fill (buf, i, cluster);
    if (i % 4 == 3)
      assert_int_equal (q_write_compressed (img, buf, i * cluster, cluster), 0);
    else
      unit_writes (img, i * cluster, cluster, (uint8_t)(i + 1));
  }
  for (unsigned i = 0; i < CLUSTERS; i += 2)
    assert_int_equal (q_discard (img, i * cluster, cluster), 0);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (q_snapshot_create (img, "s", id, &f->err), 0);
  unit_writes (img, cluster, cluster, 2); /* the same once more, but in a table of its own */
  unit_close (img);
  free (buf);
}

static int
compact (struct fixture *f, struct q_compact_result *result)
{
  const struct q_compact_options o = { .progress = NULL };
  struct q_image *img;
  int r;

  f->opts.repair = f->opts.metadata_only = true;
  r = unit_try_open (f, "disk", &img);
  f->opts.repair = f->opts.metadata_only = false;
  if (r < 0)
    return r;
  r = q_compact (img, &o, result, &f->err);
  q_close (&img, NULL);
  return r;
}

static void
expect_contents (struct fixture *f, uint64_t cluster)
{
  uint8_t *want = malloc (cluster), *got = malloc (cluster);

  assert_non_null (want);
  assert_non_null (got);
  for (unsigned snapshot = 0; snapshot < 2; snapshot++) {
    struct q_image *img;

    f->opts.snapshot = snapshot ? "s" : NULL;
    f->opts.read_only = snapshot;
    img = unit_open (f, "disk");
    for (unsigned i = 0; i < CLUSTERS; i++) {
      fill (want, i, cluster);
      assert_int_equal (q_pread (img, got, i * cluster, cluster), 0);
      assert_memory_equal (want, got, cluster);
    }
    unit_close (img);
  }
  f->opts.snapshot = NULL;
  f->opts.read_only = false;
  free (want);
  free (got);
}

static void
test_gain (void **state)
{
  struct fixture f;
  struct q_compact_result result;

  (void)state;
  for (unsigned bits = 9; bits <= 16; bits += 7) {
    unit_init (&f);
    make_fragmented (&f, bits);
    assert_int_equal (compact (&f, &result), 0);
    assert_true (result.moved >= CLUSTERS / 6);
    assert_true (result.end_before - result.end_after >= (uint64_t)(CLUSTERS / 3) << bits);
    assert_int_equal (mem_find (&f.store, "disk")->size, result.end_after);
    unit_check (&f, "disk");
    expect_contents (&f, 1ull << bits);
    /* There is nothing more to gain. */
    assert_int_equal (compact (&f, &result), 0);
    assert_int_equal (result.end_before, result.end_after);
    unit_done (&f);
  }
}

/* ---- crashes --------------------------------------------------------------------------------- */

/* The file after each change, and which of the changes were durable. */
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

static void
no_corruption (struct fixture *f)
{
  struct q_check_result result;
  struct q_image *img;

  f->opts.read_only = true;
  img = unit_open (f, "disk");
  assert_int_equal (q_check (img, 0, &result, NULL, NULL, &f->err), 0);
  assert_int_equal (result.corruptions + result.check_errors, 0);
  unit_close (img);
  f->opts.read_only = false;
}

/* A kill after each change: sound but for leaks, and the contents are there. */
static void
test_crash (void **state)
{
  bool more = true;

  (void)state;
  for (unsigned stop_at = 0; more; stop_at++) {
    struct fixture f;
    struct recorder r = { .stop_at = stop_at };
    struct mem_tap tap = { .done = note_change, .opaque = &r };
    const struct mem_tap *before;
    struct q_compact_result result;

    unit_init (&f);
    make_fragmented (&f, 9);
    r.file = mem_find (&f.store, "disk");
    before = r.file->tap;
    r.file->tap = &tap;
    assert_int_equal (compact (&f, &result), 0);
    r.file->tap = before;
    more = r.copy;
    if (more) {
      mem_set (r.file, r.copy, r.size);
      free (r.copy);
      no_corruption (&f);
      expect_contents (&f, 512);
    } else
      assert_true (r.changes > 2 * CLUSTERS / 4);
    unit_done (&f);
  }
}

/* ---- power cuts ------------------------------------------------------------------------------ */

#define MAX_CHANGES 4096u

/* All that was done, and between which syncs. */
struct history {
  unsigned n, epoch;
  struct {
    struct mem_call call;
    unsigned epoch;
    uint8_t *data;
  } change[MAX_CHANGES];
};

static void
record (void *opaque, const struct mem_call *call)
{
  struct history *h = opaque;

  if (call->kind != MEM_WRITE && call->kind != MEM_TRUNCATE && call->kind != MEM_ZERO)
    return;
  assert_true (h->n < MAX_CHANGES);
  h->change[h->n].call = *call;
  h->change[h->n].epoch = h->epoch;
  if (call->kind == MEM_WRITE) {
    h->change[h->n].data = malloc (call->len);
    assert_non_null (h->change[h->n].data);
    memcpy (h->change[h->n].data, call->data, call->len);
  }
  h->n++;
}

static int
count_syncs (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct history *h = opaque;

  (void)partial;
  h->epoch += call->kind == MEM_SYNCED;
  return 0;
}

static void
replay (struct mem_file *m, const struct history *h, unsigned i)
{
  const struct mem_call *call = &h->change[i].call;

  if (call->kind == MEM_TRUNCATE)
    mem_resize (m, call->len);
  else if (call->kind == MEM_ZERO && call->offset < m->size)
    memset (m->data + call->offset, 0,
            call->len < m->size - call->offset ? call->len : m->size - call->offset);
  else if (call->kind == MEM_WRITE) {
    if (m->size < call->offset + call->len)
      mem_resize (m, call->offset + call->len);
    memcpy (m->data + call->offset, h->change[i].data, call->len);
  }
}

/* Power fails: what was synced is there, and of the rest any part. */
static void
test_power_cuts (void **state)
{
  const char *given = getenv ("SEED");
  const uint64_t seed = given ? strtoull (given, NULL, 10) : 1;
  uint64_t random = random_seed (seed);
  static struct history h;
  struct q_compact_result result;
  struct fixture f;
  uint8_t *before;
  uint64_t size;

  (void)state;
  print_message ("SEED=%llu\n", (unsigned long long)seed);
  unit_init (&f);
  make_fragmented (&f, 9);

  struct mem_file *m = mem_find (&f.store, "disk");
  const struct mem_tap *tap = m->tap;
  struct mem_tap recorder = { .before = count_syncs, .done = record, .opaque = &h };

  size = m->size;
  before = malloc (size);
  assert_non_null (before);
  memcpy (before, m->data, size);
  m->tap = &recorder;
  assert_int_equal (compact (&f, &result), 0);
  m->tap = tap;
  assert_true (h.epoch > 4);
  for (unsigned n = 0; n < 400; n++) {
    const unsigned cut = (unsigned)random_below (&random, h.epoch + 1);
    const uint64_t share = random_below (&random, 101);

    mem_set (m, before, size);
    for (unsigned i = 0; i < h.n; i++)
      if (h.change[i].epoch < cut ||
          (h.change[i].epoch == cut && random_below (&random, 100) < share))
        replay (m, &h, i);
    no_corruption (&f);
    expect_contents (&f, 512);
  }
  for (unsigned i = 0; i < h.n; i++)
    free (h.change[i].data);
  free (before);
  unit_done (&f);
}

/* ---- errors ---------------------------------------------------------------------------------- */

/* An error of every call: the same, and it is reported. */
static void
fail_each (enum mem_kind kind, int error)
{
  int r = -1;

  for (unsigned n = 0; r < 0; n++) {
    struct fixture f;
    struct q_compact_result result;

    unit_init (&f);
    make_fragmented (&f, 9);
    memset (&f.calls, 0, sizeof f.calls);
    f.fail_kind = kind;
    f.fail_after = n;
    f.fail_with = error;
    r = compact (&f, &result);
    f.fail_with = 0;
    no_corruption (&f);
    expect_contents (&f, 512);
    unit_done (&f);
    assert_true (n < 2000);
  }
}

static void
test_faults (void **state)
{
  (void)state;
  fail_each (MEM_WRITE, -EIO);
  fail_each (MEM_WRITE, -ENOSPC);
  fail_each (MEM_SYNC, -EIO);
}

/* No room for a few calls, whichever: it ends well, or says that there was none.  What it may not
 * do is to try again what it has done, and take that for somebody else's. */
static void
test_room_again (void **state)
{
  (void)state;
  for (unsigned times = 1; times <= 6; times++) {
    bool failed = true;

    for (unsigned n = 0; failed; n++) {
      struct fixture f;
      struct q_compact_result result;
      int r;

      unit_init (&f);
      make_fragmented (&f, 9);
      f.fail_kind = MEM_WRITE;
      f.fail_after = n;
      f.fail_times = times;
      f.fail_with = -ENOSPC;
      r = compact (&f, &result);
      failed = f.fail_with == 0;
      f.fail_with = 0;
      assert_int_equal (r < 0 ? r : -ENOSPC, -ENOSPC);
      no_corruption (&f);
      expect_contents (&f, 512);
      unit_done (&f);
      assert_true (n < 2000);
    }
  }
}

static void
test_refused (void **state)
{
  struct fixture f;
  struct q_compact_result result;
  struct mem_file *m;

  (void)state;
  unit_init (&f);
  make_fragmented (&f, 9);
  m = mem_find (&f.store, "disk");
  unit_take (m, 1); /* leaked */
  assert_int_equal (compact (&f, &result), -EINVAL);
  assert_contains (f.err.text, "leaked");
  unit_done (&f);
}

/* Names may hold any byte: entries of the snapshot table are as long as they say, not as a string
 * is. */
static void
test_odd_names (void **state)
{
  struct fixture f;
  struct q_compact_result result;

  (void)state;
  for (unsigned at = 0; at < 2; at++) {
    char id[Q_SNAPSHOT_ID_SIZE];
    struct q_image *img;
    struct mem_file *m;
    uint8_t *name;

    unit_init (&f);
    unit_create_clusters (&f, "disk", CLUSTERS * 512, 9);
    img = unit_open (&f, "disk");
    unit_writes (img, 0, CLUSTERS * 512, 1);
    assert_int_equal (q_snapshot_create (img, "below", id, &f.err), 0);
    unit_writes (img, 0, CLUSTERS * 512, 2);
    assert_int_equal (q_snapshot_create (img, "a name of 26 bytes, with a", id, &f.err), 0);
    unit_writes (img, 0, 512, 3);
    assert_int_equal (q_snapshot_create (img, "s", id, &f.err), 0);
    assert_int_equal (q_snapshot_delete (img, "below", &f.err), 0); /* there is room now */
    unit_close (img);
    m = mem_find (&f.store, "disk");
    name = memmem (m->data, m->size, "a name of 26", 12);
    while (name) { /* also in old tables, where it does no harm */
      memset (name + 6 * at, 0, 26 - 6 * at);
      name = memmem (m->data, m->size, "a name of 26", 12);
    }
    assert_int_equal (compact (&f, &result), 0);
    unit_check (&f, "disk");
    unit_done (&f);
  }
}

/* A descriptor that counts all the sectors it can, and a stream whose end nobody can find: behind
 * a piece of odd length there must not be a sector more. */
static void
test_longest_piece (void **state)
{
  enum { BITS = 12, CLUSTER = 1 << BITS };
  struct fixture f;
  struct q_compact_result result;
  struct q_image *img;
  struct mem_file *m;
  uint64_t was, odd, host, size = 2 * CLUSTER;
  uint8_t *p;

  (void)state;
  unit_init (&f);
  m = unit_create_clusters (&f, "disk", CLUSTERS * CLUSTER, BITS);
  img = unit_open (&f, "disk");
  p = malloc (CLUSTER);
  assert_non_null (p);
  memset (p, 5, CLUSTER);
  assert_int_equal (q_write_compressed (img, p, 0, CLUSTER), 0);
  free (p);
  unit_close (img);

  /* That one, and the other behind it, behind clusters that are free. */
  mem_resize (m, q_round_up (m->size, CLUSTER) + 16 * CLUSTER);
  was = unit_get_entry (m, 0) & (Q_COMPRESSED_LIMIT (BITS) - 1);
  odd = unit_take (m, 1);
  memcpy (m->data + odd, m->data + was, CLUSTER);
  unit_set_entry (m, 0, unit_get_entry (m, 0) - was + odd);
  unit_set_refcount (m, was & ~(CLUSTER - 1ull), 0);
  host = unit_take (m, 2);
  unit_set_entry (m, 1, q_compressed_encode (BITS, host, (uint32_t)size));
  /* Blocks as they are, not the last: CLUSTER bytes of 6, and then empty ones. */
  p = m->data + host;
  memcpy (
      p, (uint8_t[]){ 0, CLUSTER & 255, CLUSTER >> 8, 255 - (CLUSTER & 255), 255 - (CLUSTER >> 8) },
      5);
  memset (p + 5, 6, CLUSTER);
  for (uint64_t at = 5 + CLUSTER; at + 5 <= size; at += 5)
    memcpy (p + at, (uint8_t[]){ 0, 0, 0, 255, 255 }, 5);
  unit_check (&f, "disk");

  assert_int_equal (compact (&f, &result), 0);
  assert_true (result.end_before - result.end_after >= 15 * CLUSTER);
  unit_check (&f, "disk");
  f.opts.read_only = true;
  img = unit_open (&f, "disk");
  unit_reads (img, 0, CLUSTER, 5);
  unit_reads (img, CLUSTER, CLUSTER, 6);
  unit_close (img);
  unit_done (&f);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_gain),       cmocka_unit_test (test_crash),
    cmocka_unit_test (test_power_cuts), cmocka_unit_test (test_faults),
    cmocka_unit_test (test_room_again), cmocka_unit_test (test_refused),
    cmocka_unit_test (test_odd_names),  cmocka_unit_test (test_longest_piece),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
