/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writing in steps: what begin plans, what commit publishes, what abort gives back, and that
 * Q_NOWAIT waits for nothing.
 */

#include "unit.h"

#include <unistd.h>

#define K 65536ull /* a cluster */

/* Begins, and must succeed. */
static void
begin (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags,
       struct q_write_plan *plan)
{
  int r = q_write_begin (img, offset, len, flags, plan);

  if (r < 0)
    fail_msg ("begin of %llu at %llu: %s", (unsigned long long)len, (unsigned long long)offset,
              strerror (-r));
}

static void
write_data (struct q_write_plan *plan, uint8_t byte)
{
  uint8_t *buf = xalloc (plan->len);

  memset (buf, byte, plan->len);
  assert_int_equal (q_write_data (plan, buf), 0);
  free (buf);
}

/* ---- what is planned ------------------------------------------------------------------------ */

static void
test_fresh (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_write_plan plan;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 16 * K, NULL);
  img = unit_open (&f, "disk");
  pin = q_pin ();
  begin (img, K + 1000, 2 * K, 0, &plan);
  assert_true (plan.allocates);
  assert_int_equal (plan.offset, K + 1000);
  assert_int_equal (plan.len, 2 * K);
  assert_int_equal (plan.n_runs, 1);
  assert_int_equal (plan.run[0].len, 2 * K);
  assert_int_equal (plan.run[0].host % K, 1000);
  /* Never allocated before: a hole in the file reads as zeros already. */
  assert_int_equal (plan.head, 0);
  assert_int_equal (plan.tail, 0);
  write_data (&plan, 7);
  unit_reads (img, 0, 16 * K, 0); /* nothing is seen before commit */
  q_write_commit (&plan);
  q_unpin (pin);
  unit_reads (img, 0, K + 1000, 0);
  unit_reads (img, K + 1000, 2 * K, 7);
  unit_reads (img, 3 * K + 1000, 13 * K - 1000, 0);

  /* Now it is there: in place. */
  pin = q_pin ();
  begin (img, K, 3 * K, 0, &plan);
  assert_false (plan.allocates);
  assert_int_equal (plan.len, 3 * K);
  assert_int_equal (plan.n_runs, 1);
  q_write_abort (&plan); /* does nothing */
  /* A plan is of one sort. */
  begin (img, 3 * K + 5, 2 * K, 0, &plan);
  assert_false (plan.allocates);
  assert_int_equal (plan.len, K - 5);
  begin (img, 0, 16 * K, 0, &plan);
  assert_true (plan.allocates);
  assert_int_equal (plan.len, K);
  q_write_abort (&plan);
  q_unpin (pin);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* What a device holds where nothing was written is anybody's guess. */
static void
test_device (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_write_plan plan;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  m = unit_raw (&f, "disk", 16 * K, 0xdd);
  m->device = true;
  unit_create (&f, "disk", 64 * K, NULL);
  img = unit_open (&f, "disk");
  pin = q_pin ();
  begin (img, K + 1000, K, 0, &plan);
  assert_int_equal (plan.head, 1000);
  assert_int_equal (plan.tail, K - 1000);
  assert_false (plan.copy_head || plan.copy_tail);
  write_data (&plan, 7);
  q_write_commit (&plan);
  q_unpin (pin);
  unit_reads (img, K, 1000, 0);
  unit_reads (img, K + 1000, K, 7);
  unit_reads (img, 2 * K + 1000, K - 1000, 0);
  /* It ends somewhere. */
  unit_writes (img, 3 * K, K, 8);
  for (uint64_t gc = 4;; ++gc) {
    uint8_t byte = 9;
    int r = q_pwrite (img, &byte, gc * K, 1);

    if (r == -ENOSPC)
      break;
    assert_int_equal (r, 0);
    assert_true (gc < 16);
  }
  assert_false (q_read_only (img));
  assert_true (q_highest_offset (img) <= 16 * K);
  unit_writes (img, 3 * K, K, 10); /* in place there is room */
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

static void
test_copy_on_write (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_write_plan plan;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", 4 * K, 5);
  unit_overlay (&f, "top", 4 * K + 512, "base", "raw");
  img = unit_open (&f, "top");
  pin = q_pin ();
  begin (img, K + 1000, K, 0, &plan);
  assert_true (plan.copy_head && plan.copy_tail);
  assert_int_equal (plan.head, 1000);
  assert_int_equal (plan.tail, K - 1000);
  write_data (&plan, 7);
  unit_reads (img, 0, 4 * K, 5);
  q_write_commit (&plan);
  unit_reads (img, K, 1000, 5);
  unit_reads (img, K + 1000, K, 7);
  unit_reads (img, 2 * K + 1000, K - 1000, 5);

  begin (img, 0, K, 0, &plan); /* a whole cluster: nothing to copy */
  assert_int_equal (plan.head + plan.tail, 0);
  q_write_abort (&plan);
  begin (img, 4 * K, 512, 0, &plan); /* the disk ends before the cluster, and base before that */
  assert_false (plan.copy_tail);
  q_write_abort (&plan);
  q_unpin (pin);
  unit_close (img);
  unit_check (&f, "top");
  unit_done (&f);
}

/* Clusters that are allocated and read as zeros are used again, with their padding. */
static void
test_reuse (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_write_plan plan;
  uint64_t host;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 4 * K, NULL);
  host = unit_set_data (m, 1, 99); /* must never be seen */
  unit_set_entry (m, 1, host | Q_COPIED | Q_L2_ZERO);
  img = unit_open (&f, "disk");
  pin = q_pin ();
  begin (img, K + 100, 100, 0, &plan);
  assert_true (plan.allocates);
  assert_int_equal (plan.run[0].host, host + 100);
  assert_int_equal (plan.head, 100);
  assert_int_equal (plan.tail, K - 200);
  write_data (&plan, 7);
  q_write_commit (&plan);
  q_unpin (pin);
  unit_reads (img, K, 100, 0);
  unit_reads (img, K + 100, 100, 7);
  unit_reads (img, K + 200, K - 200, 0);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

static void
test_bounds (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_write_plan plan;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  m = unit_create_clusters (&f, "disk", 64 << 20, 12);
  /* Data scattered in the file: as many runs as there is room for. */
  for (uint64_t gc = 0; gc < 40; ++gc) {
    unit_set_data (m, gc, (uint8_t)gc);
    unit_take (m, 1);
  }
  img = unit_open (&f, "disk");
  pin = q_pin ();
  begin (img, 0, 40 << 12, 0, &plan);
  assert_int_equal (plan.n_runs, Q_PLAN_RUNS);
  assert_int_equal (plan.len, Q_PLAN_RUNS << 12);
  /* New clusters: bounded in bytes, and within one table (2 MiB here). */
  begin (img, 1 << 20, 32 << 20, 0, &plan);
  assert_int_equal (plan.len, 1 << 20);
  q_write_abort (&plan);
  q_unpin (pin);

  pin = q_pin ();
  assert_int_equal (q_write_begin (img, 0, 0, 0, &plan), -EINVAL);
  assert_int_equal (q_write_begin (img, 64 << 20, 1, 0, &plan), -ENOSPC);
  assert_int_equal (q_write_begin (img, (64 << 20) - 1, 2, 0, &plan), -ENOSPC);
  assert_int_equal (q_write_begin (img, 1, UINT64_MAX, 0, &plan), -ENOSPC);
  assert_int_equal (q_write_begin (img, UINT64_MAX, 2, 0, &plan), -ENOSPC);
  q_unpin (pin);
  assert_int_equal (q_pwrite (img, "x", 64 << 20, 1), -ENOSPC);
  assert_int_equal (q_pwrite (img, "x", 64 << 20, 0), 0);
  unit_close (img);

  unit_create (&f, "large", 64 << 20, NULL);
  img = unit_open (&f, "large");
  pin = q_pin ();
  begin (img, 0, 64 << 20, 0, &plan);
  assert_true (plan.len <= (8 << 20) + K);
  assert_true (plan.len >= 4 << 20);
  q_write_abort (&plan);
  q_unpin (pin);
  unit_close (img);
  unit_done (&f);
}

/* ---- abort and failure ---------------------------------------------------------------------- */

static void
test_abort (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_write_plan plan;
  uint64_t host;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 16 * K, NULL);
  f.opts.discard = false; /* what was written stays in the file */
  img = unit_open (&f, "disk");
  unit_writes (img, 0, K, 1);
  pin = q_pin ();
  begin (img, K, 4 * K, 0, &plan);
  host = plan.run[0].host;
  write_data (&plan, 7);
  q_write_abort (&plan);
  unit_reads (img, K, 15 * K, 0);
  /* Not given out again before whoever may be writing there has let go. */
  begin (img, K, K, 0, &plan);
  assert_true (plan.run[0].host >= host + 4 * K);
  q_write_abort (&plan);
  q_unpin (pin);
  assert_int_equal (q_flush (img), 0);
  pin = q_pin ();
  begin (img, K, K, 0, &plan);
  assert_int_equal (plan.run[0].host, host);
  q_write_abort (&plan);
  q_unpin (pin);
  assert_int_equal (q_flush (img), 0);
  /* Written to by the aborted plan, so its padding must be written now. */
  unit_writes (img, K + 10, 10, 8);
  unit_reads (img, K, 10, 0);
  unit_reads (img, K + 10, 10, 8);
  unit_reads (img, K + 20, K - 20, 0);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* A full disk fails the request and nothing else. */
static void
test_enospc (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint8_t *buf = xalloc (4 * K);

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 1ull << 30, NULL); /* two L2 tables */
  img = unit_open (&f, "disk");
  unit_writes (img, 0, K, 1);
  f.full_at = q_round_up (m->size, K) + 2 * K;
  assert_int_equal (q_pwrite (img, buf, K, 4 * K), -ENOSPC);
  assert_int_equal (q_pwrite (img, buf, 512 << 20, 4 * K), -ENOSPC);
  unit_reads (img, 0, K, 1);
  unit_reads (img, K, 4 * K, 0);
  assert_false (q_read_only (img));
  assert_int_equal (q_flush (img), 0);
  unit_writes (img, 0, K, 2); /* in place */
  f.full_at = 0;
  unit_writes (img, K, 4 * K, 3);
  unit_writes (img, 512 << 20, 4 * K, 4);
  unit_close (img);
  unit_check (&f, "disk"); /* not a cluster was leaked */
  free (buf);
  unit_done (&f);
}

static void
test_data_error (void **state)
{
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 16 * K, NULL);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, K, 1);
  f.fail_kind = MEM_WRITE;
  f.fail_with = -EIO;
  assert_int_equal (q_pwrite (img, "x", 8 * K, 1), -EIO);
  assert_int_equal (q_pwrite (img, "x", 0, 1), -EIO);
  f.fail_with = 0;
  assert_false (q_read_only (img)); /* data is the guest's affair */
  unit_reads (img, 8 * K, K, 0);
  unit_writes (img, 8 * K, K, 2);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* ---- Q_NOWAIT ------------------------------------------------------------------------------- */

static void
expect_again (struct fixture *f, struct q_image *img, uint64_t offset, uint64_t len)
{
  struct q_write_plan plan;
  unsigned reads = f->calls[MEM_READ], writes = f->calls[MEM_WRITE], syncs = f->calls[MEM_SYNC];
  unsigned allocates = f->calls[MEM_ALLOCATE];
  uint64_t highest = q_highest_offset (img), dropped = img->dropped.clusters;
  q_pin_t pin = q_pin ();

  assert_int_equal (q_write_begin (img, offset, len, Q_NOWAIT, &plan), -EAGAIN);
  q_unpin (pin);
  assert_int_equal (f->calls[MEM_READ], reads);
  assert_int_equal (f->calls[MEM_WRITE], writes);
  assert_int_equal (f->calls[MEM_SYNC], syncs);
  assert_int_equal (f->calls[MEM_ALLOCATE], allocates);
  assert_int_equal (q_highest_offset (img), highest); /* nothing was taken */
  assert_int_equal (img->dropped.clusters, dropped);
}

/* Each case that would have to wait.  If one did, it would wait for this very thread. */
static void
test_nowait (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_write_plan plan, other;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  unit_raw (&f, "base", 4 * K, 5);
  m = unit_overlay (&f, "top", 1ull << 30, "base", "raw");
  unit_set_data (m, 0, 1);
  img = unit_open (&f, "top");

  expect_again (&f, img, 0, K);         /* the L2 table must be read */
  unit_reads (img, 0, 1, 1);            /* it is in memory now */
  expect_again (&f, img, 512 << 20, K); /* a new L2 table */
  pin = q_pin ();
  begin (img, 0, K, Q_NOWAIT, &plan); /* in place: no counts needed */
  assert_false (plan.allocates);
  q_unpin (pin);
  expect_again (&f, img, K + 1, 1); /* copy on write */

  pin = q_pin ();
  begin (img, 10 * K, K, 0, &plan);         /* reads the refcount block */
  expect_again (&f, img, 10 * K, K);        /* its claim */
  begin (img, 11 * K, K, Q_NOWAIT, &other); /* next to it: free */
  assert_true (other.allocates);
  q_write_abort (&other);
  q_write_abort (&plan);
  q_unpin (pin);

  q_alloc_lock (img);
  expect_again (&f, img, 12 * K, K);
  q_alloc_unlock (img);
  pthread_mutex_lock (&img->stripe[0]);
  expect_again (&f, img, 12 * K, K);
  pthread_mutex_unlock (&img->stripe[0]);
  pin = q_pin ();
  begin (img, 12 * K, K, Q_NOWAIT, &plan);
  q_write_abort (&plan);
  q_unpin (pin);
  unit_close (img);
  unit_check (&f, "top");
  unit_done (&f);
}

/* The refcount block is not in memory. */
static void
test_nowait_counts (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  m = unit_create_clusters (&f, "disk", 8 << 20, 12);
  unit_set_data (m, 0, 1);
  img = unit_open (&f, "disk");
  unit_reads (img, 0, 1, 1);
  /* As if it had been evicted. */
  assert_non_null (img->refblock[0]);
  q_cache_remove (&img->refblock_cache, img->refblock[0]);
  q_table_free (img->refblock[0]);
  img->refblock[0] = NULL;
  expect_again (&f, img, 1 << 12, 1 << 12);
  unit_writes (img, 1 << 12, 1 << 12, 2);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* ---- two writers, one cluster --------------------------------------------------------------- */

struct writer {
  struct q_image *img;
  _Atomic bool done;
};

static void *
write_second_half (void *opaque)
{
  struct writer *w = opaque;
  static uint8_t buf[1000];

  memset (buf, 8, sizeof buf);
  if (q_pwrite (w->img, buf, K + 1000, sizeof buf) == 0)
    w->done = true;
  return NULL;
}

static void
test_second_writer_waits (void **state)
{
  struct fixture f;
  struct q_image *img;
  struct q_write_plan plan;
  struct writer w;
  pthread_t id;
  uint64_t highest;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 4 * K, NULL);
  img = unit_open (&f, "disk");
  w = (struct writer){ .img = img };
  pin = q_pin ();
  begin (img, K, 1000, 0, &plan);
  highest = q_highest_offset (img);
  assert_int_equal (pthread_create (&id, NULL, write_second_half, &w), 0);
  usleep (50000);
  assert_false (w.done);
  write_data (&plan, 7);
  q_write_commit (&plan);
  q_unpin (pin);
  pthread_join (id, NULL);
  assert_true (w.done);
  unit_reads (img, K, 1000, 7);
  unit_reads (img, K + 1000, 1000, 8);
  assert_int_equal (q_highest_offset (img), highest); /* into the same cluster */
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* ---- limbo ---------------------------------------------------------------------------------- */

/* A cluster that was let go of is not used again while somebody may be reading it, nor before the
 * metadata that let go of it is on disk. */
static void
test_limbo (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_extent e;
  uint8_t buf[100];
  uint64_t host;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 16 * K, NULL);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, K, 1);
  assert_int_equal (q_flush (img), 0);
  pin = q_pin ();
  assert_int_equal (q_map (img, 0, K, &e, 1, 0), 1);
  host = e.host;
  assert_int_equal (q_discard (img, 0, K), 0);
  unit_reads (img, 0, K, 0);
  unit_writes (img, K, K, 2);
  assert_int_equal (q_flush (img), 0); /* durable, but pinned */
  unit_writes (img, 2 * K, K, 3);
  assert_int_equal (q_read_extent (&e, 0, sizeof buf, buf), 0); /* still its old bytes */
  for (size_t i = 0; i < sizeof buf; ++i)
    assert_int_equal (buf[i], 1);
  assert_int_equal (unit_refcount (m, host), 1);
  q_unpin (pin);

  assert_int_equal (q_map (img, K, 2 * K, &e, 1, 0), 1);
  assert_true (e.host != host);
  assert_int_equal (q_discard (img, K, K), 0);
  unit_writes (img, 3 * K, K, 4); /* not flushed: must not go where cluster 1 was */
  assert_int_equal (q_map (img, 3 * K, K, &e, 1, 0), 1);
  assert_true (e.host != host && e.host > host + K);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (img->limbo.clusters, 0);
  assert_int_equal (m->data[host], 0); /* punched */
  unit_writes (img, 4 * K, K, 5);
  assert_int_equal (q_map (img, 4 * K, K, &e, 1, 0), 1);
  assert_int_equal (e.host, host); /* and now it is free */
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* A table that a snapshot shares gets a cluster of its own; the shared one stays as it is. */
static void
test_shared_table (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  uint64_t l1, l2, data, snapshot_l1;

  (void)state;
  unit_init (&f);
  m = unit_create (&f, "disk", 16 * K, NULL);
  data = unit_set_data (m, 0, 1);
  l1 = get64 (unit_header (m)->l1_table_offset);
  l2 = unit_be64 (m, l1) & Q_OFFSET_MASK;
  /* What a snapshot leaves: counts of 2, no copied flags. */
  snapshot_l1 = unit_take (m, 1);
  unit_put_be64 (m, snapshot_l1, l2);
  unit_put_be64 (m, l1, l2);
  unit_set_entry (m, 0, data);
  unit_set_refcount (m, l2, 2);
  unit_set_refcount (m, data, 2);
  {
    uint64_t table = unit_take (m, 1);
    struct qcow2_snapshot s = { .l1_table_offset = put64 (snapshot_l1),
                                .l1_size = put32 (1),
                                .id_size = put16 (1),
                                .name_size = put16 (1),
                                .extra_data_size = put32 (16) };

    memcpy (m->data + table, &s, sizeof s);
    unit_put_be64 (m, table + sizeof s + 8, 16 * K);
    memcpy (m->data + table + sizeof s + 16, "1s", 2);
    unit_header (m)->nb_snapshots = put32 (1);
    unit_header (m)->snapshots_offset = put64 (table);
  }
  unit_check (&f, "disk");
  img = unit_open (&f, "disk");
  unit_writes (img, 10, 10, 2);
  unit_writes (img, 5 * K, 10, 3);
  unit_close (img);
  unit_check (&f, "disk");
  assert_int_equal (unit_be64 (m, snapshot_l1), l2);
  assert_int_equal (unit_be64 (m, l2), data);
  assert_int_equal (unit_be64 (m, l2 + 5 * 8), 0);
  assert_int_equal (m->data[data + 10], 1);
  assert_int_equal (unit_refcount (m, l2), 1);
  assert_int_equal (unit_refcount (m, data), 1);
  assert_true (unit_be64 (m, l1) != l2);
  unit_done (&f);
}

/* ---- raw ------------------------------------------------------------------------------------ */

static void
test_raw (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_image *img;
  struct q_write_plan plan;
  struct q_image_info info;
  q_pin_t pin;

  (void)state;
  unit_init (&f);
  m = unit_raw (&f, "disk", 10000, 5);
  f.opts.format = Q_FORMAT_RAW;
  img = unit_open (&f, "disk");
  assert_int_equal (q_size (img), 10000);
  assert_int_equal (q_highest_offset (img), 0);
  q_get_info (img, &info);
  assert_int_equal (info.version, 0);
  pin = q_pin ();
  begin (img, 9000, 1000, Q_NOWAIT, &plan);
  assert_false (plan.allocates);
  assert_int_equal (plan.run[0].host, 9000);
  assert_int_equal (plan.len, 1000);
  write_data (&plan, 6);
  q_write_commit (&plan);
  assert_int_equal (q_write_begin (img, 9000, 1001, 0, &plan), -ENOSPC);
  q_unpin (pin);
  unit_reads (img, 0, 9000, 5);
  unit_reads (img, 9000, 1000, 6);
  assert_int_equal (q_zero (img, 100, 50, 0), 0);
  unit_reads (img, 100, 50, 0);
  unit_reads (img, 150, 50, 5);
  assert_int_equal (q_zero (img, 100, 50, Q_ZERO_FAST), -ENOTSUP);
  assert_int_equal (q_discard (img, 200, 50), 0);
  unit_reads (img, 200, 50, 0);
  m->plain = true; /* a file system that cannot punch */
  assert_int_equal (q_zero (img, 300, 50, Q_ZERO_UNMAP), 0);
  unit_reads (img, 300, 50, 0);
  assert_int_equal (q_discard (img, 400, 50), 0);
  unit_reads (img, 400, 50, 5);
  assert_int_equal (f.calls[MEM_SYNC], 0);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (f.calls[MEM_SYNC], 1);
  assert_int_equal (q_flush (img), 0); /* nothing was written since */
  assert_int_equal (f.calls[MEM_SYNC], 1);
  unit_close (img);
  assert_int_equal (m->size, 10000);
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_fresh),
    cmocka_unit_test (test_device),
    cmocka_unit_test (test_copy_on_write),
    cmocka_unit_test (test_reuse),
    cmocka_unit_test (test_bounds),
    cmocka_unit_test (test_abort),
    cmocka_unit_test (test_enospc),
    cmocka_unit_test (test_data_error),
    cmocka_unit_test (test_nowait),
    cmocka_unit_test (test_nowait_counts),
    cmocka_unit_test (test_second_writer_waits),
    cmocka_unit_test (test_limbo),
    cmocka_unit_test (test_shared_table),
    cmocka_unit_test (test_raw),
  };

  alarm (240); /* Q_NOWAIT that waits is a failure, not a hang */
  return cmocka_run_group_tests (tests, NULL, NULL);
}
