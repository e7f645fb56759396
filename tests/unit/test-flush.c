/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Flush: what it owes to whoever asked, how many syncs that costs, and what a failure leaves.  The
 * order of writes under a power cut is for tests/crash.
 */

#include "unit.h"

#include <semaphore.h>
#include <unistd.h>

#define K 65536ull /* a cluster */

/* ---- cost ----------------------------------------------------------------------------------- */

static void
test_syncs (void **state)
{
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 64 * K, NULL);
  img = unit_open (&f, "disk");
  f.calls[MEM_SYNC] = f.calls[MEM_WRITE] = 0;
  unit_writes (img, 0, 4 * K, 1);
  assert_int_equal (q_flush (img), 0);
  assert_true (f.calls[MEM_SYNC] == 2); /* data and counts; references */
  f.calls[MEM_SYNC] = f.calls[MEM_WRITE] = 0;
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (f.calls[MEM_SYNC], 0); /* nothing was written since */
  for (unsigned i = 0; i < 4; ++i)
    unit_writes (img, i * K, K, 2);
  f.calls[MEM_WRITE] = 0;
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (f.calls[MEM_SYNC], 1); /* only data */
  assert_int_equal (f.calls[MEM_WRITE], 0);
  unit_close (img);
  unit_done (&f);
}

/* What is flushed is in the file: another reader of the file, now, sees it. */
static void
assert_durable (struct fixture *f, uint64_t offset, uint64_t len, uint8_t byte)
{
  struct mem_file *copy = mem_add (&f->store, "copy");
  struct mem_file *disk = mem_find (&f->store, "disk");
  bool read_only = f->opts.read_only;
  struct q_image *img;

  mem_set (copy, disk->data, disk->size);
  f->opts.read_only = true;
  img = unit_open (f, "copy");
  unit_reads (img, offset, len, byte);
  unit_close (img);
  f->opts.read_only = read_only;
}

static void
test_flushed_is_in_the_file (void **state)
{
  struct fixture f;
  struct q_image *img;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 1ull << 30, NULL);
  img = unit_open (&f, "disk");
  unit_writes (img, 5 * K + 5, 3 * K, 1);
  unit_writes (img, 600 << 20, K, 2);
  assert_durable (&f, 5 * K, 4 * K, 0);
  assert_int_equal (q_flush (img), 0);
  assert_durable (&f, 5 * K + 5, 3 * K, 1);
  assert_durable (&f, 600 << 20, K, 2);
  assert_int_equal (q_zero (img, 5 * K, 4 * K, Q_ZERO_UNMAP), 0);
  assert_int_equal (q_flush (img), 0);
  assert_durable (&f, 5 * K, 4 * K, 0);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* ---- failures ------------------------------------------------------------------------------- */

/* Invariant 7: the image turns read-only, says so once, and leaves what was flushed alone. */
static void
expect_sticky (enum mem_kind kind)
{
  struct fixture f;
  struct q_image *img;
  struct mem_file *m, *before;

  unit_init (&f);
  m = unit_create (&f, "disk", 64 * K, NULL);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, K, 1);
  assert_int_equal (q_flush (img), 0);
  unit_writes (img, K, K, 2);
  f.fail_kind = kind;
  f.fail_with = -EIO;
  assert_int_equal (q_flush (img), -EIO);
  f.fail_with = 0;
  assert_true (q_read_only (img));
  assert_int_equal (unit_logged (Q_LOG_ERROR), 1);
  assert_contains (unit_last_log (), "read-only from now on");
  before = mem_add (&f.store, "before");
  mem_set (before, m->data, m->size);
  assert_int_equal (q_flush (img), -EIO); /* not good again by itself */
  assert_int_equal (q_pwrite (img, "x", 0, 1), -EROFS);
  assert_int_equal (q_pwrite (img, "x", 9 * K, 1), -EROFS);
  assert_int_equal (q_zero (img, 0, K, 0), -EROFS);
  assert_int_equal (q_discard (img, 0, K), -EROFS);
  unit_reads (img, 0, K, 1);
  unit_reads (img, K, K, 2); /* reading goes on, what was written last included */
  assert_int_equal (q_close (&img, &f.err), -EIO);
  assert_contains (f.err.text, "may be lost");
  assert_null (img);
  assert_int_equal (unit_logged (Q_LOG_ERROR), 1);
  assert_memory_equal (m->data, before->data, m->size); /* nothing more was written */
  img = unit_open (&f, "disk");
  unit_reads (img, 0, K, 1);
  unit_close (img);
  unit_done (&f);
}

static void
test_sticky_write (void **state)
{
  (void)state;
  expect_sticky (MEM_WRITE);
}

static void
test_sticky_sync (void **state)
{
  (void)state;
  expect_sticky (MEM_SYNC);
}

/* The same where only data had to be made durable: a failed sync may have forgotten it, and the
 * next one would answer 0.  A full disk that is found out so late is no better. */
static void
test_sticky_data_sync (void **state)
{
  static const int errors[] = { -EIO, -ENOSPC };

  (void)state;
  for (size_t i = 0; i < lengthof (errors); ++i) {
    struct fixture f;
    struct q_image *img;

    unit_init (&f);
    unit_create (&f, "disk", 64 * K, NULL);
    img = unit_open (&f, "disk");
    unit_writes (img, 0, K, 1);
    assert_int_equal (q_flush (img), 0);
    unit_writes (img, 0, K, 2);
    f.fail_kind = MEM_SYNC;
    f.fail_with = errors[i];
    assert_int_equal (q_flush (img), -EIO); /* not one that is worth waiting with */
    f.fail_with = 0;
    assert_true (q_read_only (img));
    assert_int_equal (q_flush (img), -EIO);
    assert_int_equal (q_pwrite (img, "x", 0, 1), -EROFS);
    assert_int_equal (q_close (&img, &f.err), -EIO);
    unit_done (&f);
  }
}

/* A full disk in a flush is an error of that flush; later it works, and nothing was lost. */
static void
test_enospc (void **state)
{
  (void)state;
  for (unsigned after = 0;; ++after) {
    struct fixture f;
    struct q_image *img;
    int r;

    unit_init (&f);
    unit_create (&f, "disk", 1ull << 30, NULL);
    img = unit_open (&f, "disk");
    unit_writes (img, 0, K, 1);
    assert_int_equal (q_flush (img), 0);
    assert_int_equal (q_discard (img, 0, K), 0);
    unit_writes (img, 2 * K, K, 2);
    unit_writes (img, 600 << 20, K, 3);
    f.fail_kind = MEM_WRITE;
    f.fail_with = -ENOSPC;
    f.fail_after = after;
    r = q_flush (img);
    if (r == 0 && f.fail_after > 0) { /* there are no more writes */
      f.fail_with = 0;
      unit_close (img);
      unit_done (&f);
      break;
    }
    assert_true (r == 0 || r == -ENOSPC);
    assert_false (q_read_only (img));
    f.fail_with = 0;
    assert_int_equal (q_flush (img), 0);
    assert_durable (&f, 2 * K, K, 2);
    assert_durable (&f, 600 << 20, K, 3);
    unit_close (img);
    unit_check (&f, "disk");
    unit_done (&f);
    assert_true (after < 50);
  }
}

/* ---- tickets -------------------------------------------------------------------------------- */

/* Storage whose syncs wait until they are let go. */
struct slow {
  struct fixture f;
  sem_t syncing, go;
  _Atomic bool slow;
  int (*before) (void *opaque, const struct mem_call *call, uint64_t *partial);
};

static int
wait_in_sync (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct slow *s = opaque;

  if (call->kind == MEM_SYNC && s->slow) {
    sem_post (&s->syncing);
    sem_wait (&s->go);
  }
  return s->before (&s->f, call, partial);
}

static void
slow_init (struct slow *s)
{
  memset (s, 0, sizeof *s);
  unit_init (&s->f);
  s->before = s->f.tap.before;
  s->f.tap.before = wait_in_sync;
  s->f.tap.opaque = s;
  sem_init (&s->syncing, 0, 0);
  sem_init (&s->go, 0, 0);
}

struct flusher {
  pthread_t id;
  struct q_image *img;
  _Atomic bool done;
  int result;
};

static void *
flush_it (void *opaque)
{
  struct flusher *w = opaque;

  w->result = q_flush (w->img);
  w->done = true;
  return NULL;
}

/* Until N flushes have been asked for in all. */
static void
await_requests (struct q_image *img, uint64_t n)
{
  for (uint64_t now = 0; now < n; usleep (1000)) {
    pthread_mutex_lock (&img->flush_lock);
    now = img->flush_requested;
    pthread_mutex_unlock (&img->flush_lock);
  }
}

/* A flush that comes while one is under way is not answered by it: what was written in between may
 * not have been part of it. */
static void
test_late_flush (void **state)
{
  struct slow s;
  struct q_image *img;
  struct flusher a, b[3];
  uint64_t before;

  (void)state;
  slow_init (&s);
  unit_create (&s.f, "disk", 64 * K, NULL);
  img = unit_open (&s.f, "disk");
  unit_writes (img, 0, K, 1);
  assert_int_equal (q_flush (img), 0);

  unit_writes (img, 0, K, 2);
  s.slow = true;
  a = (struct flusher){ .img = img };
  pthread_create (&a.id, NULL, flush_it, &a);
  sem_wait (&s.syncing); /* A is in its sync */
  unit_writes (img, 0, K, 3);
  before = img->flush_requested;
  for (size_t i = 0; i < lengthof (b); ++i) {
    b[i] = (struct flusher){ .img = img };
    pthread_create (&b[i].id, NULL, flush_it, &b[i]);
  }
  await_requests (img, before + lengthof (b));
  s.f.calls[MEM_SYNC] = 0;
  sem_post (&s.go);
  pthread_join (a.id, NULL);
  assert_int_equal (a.result, 0);
  sem_wait (&s.syncing); /* a round of their own */
  for (size_t i = 0; i < lengthof (b); ++i)
    assert_false (b[i].done);
  sem_post (&s.go);
  for (size_t i = 0; i < lengthof (b); ++i) {
    pthread_join (b[i].id, NULL);
    assert_int_equal (b[i].result, 0);
  }
  assert_int_equal (s.f.calls[MEM_SYNC], 2); /* A's, and one for all the others */
  s.slow = false;
  unit_close (img);
  unit_done (&s.f);
}

/* What is published while a flush writes is in the next one. */
static void
test_write_during_flush (void **state)
{
  struct slow s;
  struct q_image *img;
  struct flusher a;

  (void)state;
  slow_init (&s);
  unit_create (&s.f, "disk", 64 * K, NULL);
  img = unit_open (&s.f, "disk");
  unit_writes (img, 3 * K, K, 3);
  assert_int_equal (q_flush (img), 0);
  unit_writes (img, 0, K, 1);
  s.slow = true;
  a = (struct flusher){ .img = img };
  pthread_create (&a.id, NULL, flush_it, &a);
  sem_wait (&s.syncing);
  unit_writes (img, 2 * K, K, 2); /* not held up by it */
  assert_int_equal (q_discard (img, 3 * K, K), 0);
  s.slow = false;
  sem_post (&s.go);
  pthread_join (a.id, NULL);
  assert_int_equal (a.result, 0);
  assert_durable (&s.f, 0, K, 1);
  assert_durable (&s.f, 3 * K, K, 3); /* on disk it is in use still */
  assert_int_equal (q_flush (img), 0);
  assert_durable (&s.f, 3 * K, K, 0);
  assert_durable (&s.f, 2 * K, K, 2);
  unit_close (img);
  unit_check (&s.f, "disk");
  unit_done (&s.f);
}

/* ---- a race --------------------------------------------------------------------------------- */

/* Two threads change one table.  The first is stopped on its way into the list of dirty tables, at
 * the list's lock; what the second then writes and flushes must be in the file all the same. */
static struct {
  struct q_image *img;
  _Atomic bool armed, passed;
  sem_t reached, go;
} gate;

int __real_pthread_mutex_lock (pthread_mutex_t *m);
int __wrap_pthread_mutex_lock (pthread_mutex_t *m);

int
__wrap_pthread_mutex_lock (pthread_mutex_t *m)
{
  if (gate.img && m == &gate.img->dirty_lock && atomic_exchange (&gate.armed, false)) {
    sem_post (&gate.reached);
    sem_wait (&gate.go);
  }
  return __real_pthread_mutex_lock (m);
}

static void *
write_first (void *opaque)
{
  (void)opaque;
  unit_writes (gate.img, 0, K, 1);
  return NULL;
}

static void *
write_second (void *opaque)
{
  unit_writes (gate.img, 2 * K, K, 2);
  *(int *)opaque = q_flush (gate.img);
  gate.passed = true;
  return NULL;
}

static void
test_listed_means_on_the_list (void **state)
{
  struct fixture f;
  pthread_t a, b;
  int result = -1;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 64 * K, NULL);
  gate.img = unit_open (&f, "disk");
  unit_writes (gate.img, 0, 4 * K, 1);
  assert_int_equal (q_zero (gate.img, 0, 4 * K, 0), 0);
  assert_int_equal (q_flush (gate.img), 0);
  /* Allocated, and zeros: writing to these changes the table and nothing else. */
  sem_init (&gate.reached, 0, 0);
  sem_init (&gate.go, 0, 0);
  gate.armed = true;
  pthread_create (&a, NULL, write_first, NULL);
  sem_wait (&gate.reached);
  pthread_create (&b, NULL, write_second, &result);
  /* Either it waits for the first, or what it flushed is in the file. */
  for (int i = 0; i < 20 && !gate.passed; ++i)
    usleep (10000);
  if (gate.passed)
    assert_durable (&f, 2 * K, K, 2);
  sem_post (&gate.go);
  pthread_join (a, NULL);
  pthread_join (b, NULL);
  assert_int_equal (result, 0);
  assert_durable (&f, 2 * K, K, 2);
  assert_int_equal (q_flush (gate.img), 0);
  assert_durable (&f, 0, K, 1);
  unit_close (gate.img);
  gate.img = NULL;
  unit_check (&f, "disk");
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_syncs),
    cmocka_unit_test (test_flushed_is_in_the_file),
    cmocka_unit_test (test_sticky_write),
    cmocka_unit_test (test_sticky_sync),
    cmocka_unit_test (test_sticky_data_sync),
    cmocka_unit_test (test_enospc),
    cmocka_unit_test (test_late_flush),
    cmocka_unit_test (test_write_during_flush),
    cmocka_unit_test (test_listed_means_on_the_list),
  };

  alarm (240);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
