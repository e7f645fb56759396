/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Checking an image that is open for writing: it can be stopped wherever it is, what it holds up
 * waits no longer than was said, and nothing is held afterwards.
 */

#include <time.h>

#include "unit.h"

#define MiB    (1ull << 20)
#define SECOND 1000000000ull

/* Time passes when a test says so. */
static _Atomic uint64_t clock_ns = SECOND;

int __wrap_clock_gettime (clockid_t id, struct timespec *t);

int
__wrap_clock_gettime (clockid_t id, struct timespec *t)
{
  uint64_t now = atomic_load (&clock_ns);

  (void)id;
  *t = (struct timespec){ (time_t)(now / SECOND), (long)(now % SECOND) };
  return 0;
}

struct looking {
  struct q_image *img;
  unsigned asked, held;        /* how often; of these while flushes waited */
  unsigned stop_at;            /* the question that is answered with true; 0: none */
  uint64_t beside_ns, held_ns; /* that each takes beside the writer, and while flushes wait */
  unsigned lines;
};

static bool
is_over (void *opaque)
{
  struct looking *l = opaque;

  l->held += l->img->flush_running;
  atomic_fetch_add (&clock_ns, l->img->flush_running ? l->held_ns : l->beside_ns);
  return ++l->asked == l->stop_at;
}

static void
count_line (void *opaque, const char *line)
{
  (void)line;
  ++((struct looking *)opaque)->lines;
}

static int
look (struct fixture *f, struct looking *l, uint64_t max_held_ns, struct q_check_result *result,
      uint64_t *held_ns)
{
  const struct q_check_options o = {
    .threads = 2, .report = count_line, .stop = is_over, .opaque = l
  };

  f->err.text[0] = '\0';
  return q_check_live (l->img, &o, max_held_ns, result, held_ns, &f->err);
}

/* Several L2 tables, a snapshot's too, refcount blocks, a bitmap that is saved, and one leak. */
static struct q_image *
make (struct fixture *f)
{
  const struct q_bitmap_action add = {
    .op = Q_BITMAP_ADD, .name = "b", .granularity = 512, .disabled = true
  };
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_image *img;
  struct mem_file *m;

  unit_init (f);
  m = unit_create_clusters (f, "disk", MiB, 9);
  unit_take (m, 1);
  img = unit_open (f, "disk");
  for (uint64_t at = 0; at < MiB; at += 64 << 10)
    unit_writes (img, at, 4096, 1);
  assert_int_equal (q_snapshot_create (img, "s", id, &f->err), 0);
  assert_int_equal (q_bitmap_change (img, &add, 1, &f->err), 0);
  unit_writes (img, 0, 4096, 2);
  return img;
}

/* Whoever changes the image, or flushes, is not kept waiting. */
static void
goes_on (struct fixture *f, struct q_image *img, uint8_t byte)
{
  char id[Q_SNAPSHOT_ID_SIZE];

  unit_writes (img, 0, 4096, byte);
  assert_int_equal (q_flush (img), 0);
  assert_int_equal (q_snapshot_create (img, "t", id, &f->err), 0);
  assert_int_equal (q_snapshot_delete (img, "t", &f->err), 0);
  unit_reads (img, 0, 4096, byte);
}

/* Stopped at each question. */
static void
test_stop (void **state)
{
  unsigned beside = 0, held = 0, at = 0;
  struct q_check_result result;
  struct looking l;
  struct fixture f;
  uint64_t held_ns;
  int r;

  (void)state;
  l.img = make (&f);
  do {
    l = (struct looking){ .img = l.img, .stop_at = ++at };
    r = look (&f, &l, SECOND, &result, &held_ns);
    if (r == 0)
      break;
    assert_int_equal (r, -EINTR);
    assert_contains (f.err.text, "stopped");
    beside += l.held == 0;
    held += l.held > 0;
    goes_on (&f, l.img, (uint8_t)at);
  } while (at < 10000);
  assert_int_equal (r, 0);
  assert_int_equal (result.corruptions, 0);
  assert_true (result.leaks >= 1 && l.lines >= 1);
  assert_true (beside > 30 && held > 30);
  unit_close (l.img);
  unit_done (&f);
}

/* What was quick beside the writer takes long while flushes wait; or it takes long from the
 * beginning. */
static void
test_time (void **state)
{
  struct q_check_result result;
  struct fixture f;
  struct looking l = { .img = make (&f) };
  unsigned all;
  uint64_t held_ns;

  (void)state;
  assert_int_equal (look (&f, &l, SECOND, &result, &held_ns), 0);
  assert_int_equal (held_ns, 0);
  all = l.held;

  l = (struct looking){ .img = l.img, .held_ns = SECOND / 5 };
  assert_int_equal (look (&f, &l, SECOND, &result, &held_ns), -ETIME);
  assert_contains (f.err.text, "given up");
  assert_int_equal (held_ns, SECOND);
  assert_int_equal (l.held, 5);
  goes_on (&f, l.img, 3);

  l = (struct looking){ .img = l.img, .held_ns = SECOND / 5 };
  assert_int_equal (look (&f, &l, UINT64_MAX, &result, &held_ns), 0);
  assert_true (l.held >= all && held_ns == l.held * SECOND / 5);

  l = (struct looking){ .img = l.img, .beside_ns = SECOND };
  assert_int_equal (look (&f, &l, SECOND, &result, &held_ns), -ETIME);
  assert_contains (f.err.text, "allow more");
  assert_true (l.held == 0 && held_ns == 0);
  unit_close (l.img);
  unit_done (&f);
}

/* The storage fails each read in turn: that is found, or an error, and nothing is held. */
static void
test_faults (void **state)
{
  unsigned errors = 0, found = 0, reads;
  struct q_check_result result;
  struct fixture f;
  struct looking l = { .img = make (&f) };
  uint64_t held_ns;
  int r;

  (void)state;
  assert_int_equal (q_flush (l.img), 0);
  f.calls[MEM_READ] = 0;
  assert_int_equal (look (&f, &l, SECOND, &result, &held_ns), 0);
  reads = f.calls[MEM_READ];
  for (unsigned at = 0; at < reads; ++at) {
    f.fail_kind = MEM_READ;
    f.fail_after = at;
    f.fail_times = 1;
    f.fail_with = -EIO;
    r = look (&f, &l, SECOND, &result, &held_ns);
    f.fail_with = 0;
    assert_true (r == 0 || (r == -EIO && f.err.text[0]));
    errors += r < 0;
    found += r == 0 && result.check_errors > 0;
    assert_int_equal (result.corruptions, 0);
  }
  assert_true (errors > 0 && found > 0);
  goes_on (&f, l.img, 5);
  unit_close (l.img);
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_stop),
    cmocka_unit_test (test_time),
    cmocka_unit_test (test_faults),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
