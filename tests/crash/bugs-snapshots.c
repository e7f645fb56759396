/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Our own bugs: snapshots of a disk that is written meanwhile.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bugs.h"
#include "image.h"
#include "schedule.h"

/* ---- a disk that is written faster than it can be counted --------------------------------------
 *
 * What was counted is saved when it changes, and once the memory for that is full it is taken back.
 * Here there is memory for a few tables alone, and while the one that makes the snapshot waits for
 * the storage another thread writes to all of them.  The last times that it waits the snapshot's
 * moment is over: what is written then is not the snapshot's. */

/* 32 L2 tables. */
static const struct workload image = { .name = "outrun",
                                       .version = 3,
                                       .cluster_bits = 9,
                                       .refcount_bits = 16,
                                       .clusters = 2000,
                                       .threads = 1,
                                       .operations = 100 };
#define TABLE_BYTES (64u * 512)
#define SAVED       4u /* tables, at most */

struct outrun {
  struct mem_tap tap;
  struct run *run;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  unsigned syncs, at; /* while the disk is counted; it is outrun at the first, and at number AT */
  bool waiting, back;
  atomic_bool away;        /* it has been outrun */
  uint64_t changes, fails; /* from then on; the one for which there is no room, from 1 */
  int result;
  uint8_t *last; /* the disk as it was before it was outrun for the last time */
  bool starves;  /* by then there is no memory to save a table at all */
};

static struct outrun *outrun;
static _Thread_local bool making;
static atomic_uint taken_back;
static _Thread_local bool starving; /* no table gets memory */
static atomic_uint starved;

void *__real_malloc (size_t bytes);
void *__wrap_malloc (size_t bytes);

void *
__wrap_malloc (size_t bytes)
{
  if (!starving || bytes != 512)
    return __real_malloc (bytes);
  atomic_fetch_add (&starved, 1);
  return NULL;
}

static void
count_taken_back (const char *place)
{
  if (strcmp (place, "what was counted is taken back") == 0)
    atomic_fetch_add (&taken_back, 1);
}

static void
wait_there (struct outrun *o)
{
  pthread_mutex_lock (&o->lock);
  o->waiting = true;
  pthread_cond_broadcast (&o->changed);
  while (o->waiting)
    pthread_cond_wait (&o->changed, &o->lock);
  pthread_mutex_unlock (&o->lock);
}

static int
before (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  const unsigned changes =
      1u << MEM_WRITE | 1u << MEM_ZERO | 1u << MEM_TRUNCATE | 1u << MEM_ALLOCATE;
  struct outrun *o = opaque;
  struct q_image *img = o->run->img;

  (void)partial;
  if (!making)
    return 0;
  /* Not when the disk stands still, and those who write wait for us. */
  if (call->kind == MEM_SYNC && atomic_load (&img->counting) && !atomic_load (&img->gate.closed) &&
      (++o->syncs == 1 || o->syncs == o->at))
    wait_there (o);
  return atomic_load (&o->away) && (changes >> call->kind & 1) && ++o->changes == o->fails ? -ENOSPC
                                                                                           : 0;
}

static void
make_snapshot (struct guest *g)
{
  struct outrun *o = outrun;
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_error err;

  making = true;
  o->result = q_snapshot_create (g->run->img, "outrun", id, &err);
  pthread_mutex_lock (&o->lock);
  o->back = true;
  pthread_cond_broadcast (&o->changed);
  pthread_mutex_unlock (&o->lock);
}

/* Writes to each table; whole clusters, if there is no memory to copy a part of one. */
static void
write_everywhere (struct guest *g)
{
  for (uint64_t at = 0; at < g->run->size; at += TABLE_BYTES)
    guest_write (g, at + 512, starving ? 1024 : 700);
}

static void
run_away (struct outrun *o, struct guest *g)
{
  struct other other;

  outrun = o;
  pthread_mutex_init (&o->lock, NULL);
  pthread_cond_init (&o->changed, NULL);
  o->tap = (struct mem_tap){ .before = before, .opaque = o };
  mem_put_tap (o->run->top, &o->tap);
  atomic_store (&taken_back, 0);
  schedule_watch (count_taken_back);
  start_other (&other, g, make_snapshot);
  pthread_mutex_lock (&o->lock);
  while (!o->back) {
    if (!o->waiting) {
      pthread_cond_wait (&o->changed, &o->lock);
      continue;
    }
    pthread_mutex_unlock (&o->lock);
    check (q_pread (o->run->img, o->last, 0, o->run->size) == 0, "cannot read");
    starving = o->starves && atomic_load (&o->away);
    write_everywhere (g);
    starving = false;
    atomic_store (&o->away, true);
    pthread_mutex_lock (&o->lock);
    o->waiting = false;
    pthread_cond_broadcast (&o->changed);
  }
  pthread_mutex_unlock (&o->lock);
  pthread_join (other.id, NULL);
  schedule_watch (NULL);
  mem_put_tap (o->run->top, NULL);
  pthread_cond_destroy (&o->changed);
  pthread_mutex_destroy (&o->lock);
}

/* What OPTS open shows the disk as it is; not a cluster is lost, nor wrongly counted unless LEAKS.
 */
static void
look (struct run *run, const struct q_open_options *opts, bool leaks, const char *when)
{
  struct q_check_result result;
  struct q_error err;
  uint64_t bad;
  uint8_t byte;

  check (q_open (&run->img, "top", opts, &err) == 0, "%s: %s", when, err.text);
  check (workload_compare (run->img, &run->live, &bad, &byte), "%s: byte %llu is %#x", when,
         (unsigned long long)bad, byte);
  check (q_check (run->img, 0, &result, NULL, NULL, &err) == 0, "%s: %s", when, err.text);
  check (result.corruptions == 0 && (leaks || result.leaks == 0),
         "%s: %llu corruptions, %llu clusters leaked", when, (unsigned long long)result.corruptions,
         (unsigned long long)result.leaks);
  q_close (&run->img, NULL);
}

/* The snapshot is the disk as it was when it was made: at the end, or before it was outrun for the
 * last time (true). */
static bool
look_at_snapshot (struct run *run, const struct q_open_options *opts, const uint8_t *end,
                  const uint8_t *last, const char *when)
{
  struct q_open_options show = *opts;
  uint8_t *data = xalloc (run->size);
  struct q_error err;
  bool is_last;

  show.snapshot = "outrun";
  check (q_open (&run->img, "top", &show, &err) == 0, "%s: %s", when, err.text);
  check (q_pread (run->img, data, 0, run->size) == 0, "%s: cannot read", when);
  is_last = memcmp (data, last, run->size) == 0;
  check (is_last || memcmp (data, end, run->size) == 0, "%s: the snapshot is not what the disk was",
         when);
  q_close (&run->img, NULL);
  free (data);
  return is_last;
}

/* Outrun at sync AT, without memory if it STARVES, and no room for change FAILS after that; false
 * if it does not come to that.  *LATE: when the snapshot's moment was over.  LEAKS: some are
 * tolerated until it is opened for writing. */
static bool
outrun_at (unsigned at, bool starves, uint64_t fails, bool leaks, bool *late)
{
  struct outrun o = { .at = at, .starves = starves, .fails = fails };
  struct q_open_options show;
  struct q_error err;
  struct guest g;
  struct run run;
  char when[100];
  uint8_t *end;

  snprintf (when, sizeof when, "outrun at sync %u%s, then no room for change %llu", at,
            starves ? " without memory" : "", (unsigned long long)fails);
  check (workload_prepare (&run, &image, bugs_seed), "cannot make an image");
  run.opts.l2_cache_size = SAVED * 512;
  run.opts.refcount_cache_size = 0;
  run.opts.state_dir = NULL;
  check (workload_open (&run, &err) == 0, "%s", err.text);
  run.img->dirty_max = UINT64_MAX; /* the writer does not wait for a flush, which waits for it */
  guest_init (&g, &run, 0, 0, run.size);
  guest_write (&g, 0, run.size);
  flush (&run);
  o.run = &run;
  o.last = xalloc (run.size);
  atomic_store (&starved, 0);
  run_away (&o, &g);
  check (!run.failure[0], "%s: %s", when, run.failure);
  check (!starves || o.syncs < at || atomic_load (&starved) >= 32,
         "%s: of 32 tables %u were to be saved", when, atomic_load (&starved));
  check (!schedule_has_probes () || atomic_load (&taken_back) >= 32 - SAVED,
         "%s: of 32 tables %u are not saved, there is room for %u", when, atomic_load (&taken_back),
         SAVED);
  check (o.result == 0 || (fails && o.result == -ENOSPC), "%s: %s", when, strerror (-o.result));
  check (!q_read_only (run.img), "%s: and the image is read-only", when);
  end = xalloc (run.size);
  check (q_pread (run.img, end, 0, run.size) == 0, "%s: cannot read", when);
  guest_write (&g, 5000, 5000);
  guest_read (&g, 0, run.size);
  check (!run.failure[0], "%s: %s", when, run.failure);
  check (q_close (&run.img, &err) == 0, "%s: %s", when, err.text);

  show = run.opts;
  show.read_only = true;
  look (&run, &show, leaks && o.result < 0, when);
  if (o.result == 0)
    *late = look_at_snapshot (&run, &show, end, o.last, when);
  if (leaks) {
    check (q_open (&run.img, "top", &run.opts, &err) == 0, "%s: %s", when, err.text);
    check (q_close (&run.img, &err) == 0, "%s: %s", when, err.text);
    look (&run, &show, false, when);
  }
  free (end);
  free (o.last);
  guest_free (&g);
  workload_free (&run);
  return fails ? o.changes >= fails : o.syncs >= at;
}

void
test_snapshot_outrun (void)
{
  unsigned at = 1, n_late = 0;
  bool late = false;

  for (; outrun_at (at, false, 0, false, &late); ++at) {
    check (late || n_late == 0, "at sync %u the snapshot's moment is to come again", at);
    n_late += late;
  }
  check (at - n_late > 3,
         "the disk is outrun at %u places before the snapshot's moment, should be "
         "at 3 or more",
         at - n_late - 1);
  check (n_late > 0, "the disk is not outrun after the snapshot's moment");
  check (outrun_at (at - n_late, true, 0, false, &late) && late,
         "without memory the snapshot's moment is to come again");
  for (unsigned i = 0; i < 3; ++i) {
    uint64_t fails = 1;

    while (outrun_at (i == 0 ? 1 : at - n_late, i == 2, fails, i > 0, &late))
      ++fails;
    check (fails > 3, "there is no room at %llu places, should be at 3 or more",
           (unsigned long long)fails - 1);
  }
}

/* ---- a write in place that is under way ---------------------------------------------------------
 *
 * It goes to a cluster that was the disk's alone when it began.  When that is shared the next one
 * copies it: not before the first has arrived, which would be lost. */

struct passing {
  struct mem_tap tap;
  struct guest *g;
  bool begun;
  atomic_bool passed;
};

static void
write_beside (struct guest *g)
{
  guest_write (g, 0, 512);
}

/* What was counted is about to be durable, so that the flags have gone. */
static int
when_flags_have_gone (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct passing *p = opaque;
  struct q_image *img = p->g->run->img;
  struct other o;

  (void)partial;
  if (p->begun || call->kind != MEM_SYNC || !atomic_load (&img->counting) ||
      atomic_load (&img->gate.closed))
    return 0;
  p->begun = true;
  start_other (&o, p->g, write_beside);
  pthread_join (o.id, NULL);
  atomic_store (&p->passed, true);
  return 0;
}

static void
make_beside (struct guest *g)
{
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_error err;

  check (q_snapshot_create (g->run->img, "beside", id, &err) == 0, "%s", err.text);
}

void
test_snapshot_passes_write (void)
{
  static const struct workload small = { .name = "passing", SMALL_IMAGE, .mix = { .snapshot = 1 } };
  struct passing p = { .tap = { .before = when_flags_have_gone } };
  uint8_t buf[512], back[sizeof buf];
  struct q_write_plan plan;
  struct other o;
  struct guest g;
  struct run run;
  q_pin_t pin;

  open_run (&run, &small);
  guest_init (&g, &run, 0, 0, run.size);
  g.steps = false;
  guest_write (&g, 0, 4 * 4096);
  flush (&run);
  pin = q_pin ();
  check (q_write_begin (run.img, 1024, sizeof buf, 0, &plan) == 0 && !plan.allocates,
         "the write is not in place");
  p.g = &g;
  p.tap.opaque = &p;
  mem_put_tap (run.top, &p.tap);
  start_other (&o, &g, make_beside);
  /* It waits for us, or it does not. */
  for (unsigned i = 0; !atomic_load (&run.img->gate.closed) && !atomic_load (&p.passed); ++i) {
    check (i < 60000, "the snapshot does not come to where flags are cleared");
    usleep (1000);
  }
  guest_fill (77, 1024, sizeof buf, buf);
  check (q_write_data (&plan, buf) == 0, "writing failed");
  q_write_commit (&plan);
  q_unpin (pin);
  pthread_join (o.id, NULL);
  mem_put_tap (run.top, NULL);
  check (p.begun, "nobody wrote while the snapshot was made: the test is wrong");
  check (q_pread (run.img, back, 1024, sizeof back) == 0 && memcmp (buf, back, sizeof buf) == 0,
         "a write in place that was under way when a snapshot began is lost");
  guest_write (&g, 1024, sizeof buf); /* so that what the guest expects is what is there */
  guest_free (&g);
  end_run (&run);
}
