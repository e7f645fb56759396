/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The death test: the process is killed at every instant that can make a difference, and nothing
 * that it acknowledged is lost.
 *
 *     deaths [-s SEED] [-d SECONDS] [-w WORKLOAD] [-p ONE-IN] [-v]
 *
 * What is left when a process is killed is the image with everything that was written to it, synced
 * or not, and the state file.  Both are copied before each call to the storage and, in a build with
 * probes, at each probe; workloads have one thread, so that a copy is of one instant.  Then each
 * pair is opened: the state must be taken up, every operation that had been answered must be there,
 * the image must have no corruption, and writing must go on from there.  Some of them are killed
 * once more while they take it up. -p says of how many instants one is tried.
 *
 * The storage is slow here: whatever reads it or waits for it takes longer than the difference that
 * the proof allows between the last sign of life and the last change of the image.  Nobody waits
 * for that: the clock is ours.
 */

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "images.h"
#include "snaps.h"
#include "schedule.h"
#include "statefile.h"
#include "states.h"

/* ---- time ------------------------------------------------------------------------------------ */

#define SLOW_NS 1500000000ll

static int64_t clock_ns = 1000000000ll * 1000000000ll;

static int64_t
now_ns (void)
{
  return clock_ns;
}

int __real_clock_gettime (clockid_t id, struct timespec *t);
int __wrap_clock_gettime (clockid_t id, struct timespec *t);

int
__wrap_clock_gettime (clockid_t id, struct timespec *t)
{
  if (id != CLOCK_REALTIME_COARSE)
    return __real_clock_gettime (id, t);
  *t = (struct timespec){ clock_ns / 1000000000ll, clock_ns % 1000000000ll };
  return 0;
}

/* ---- instants -------------------------------------------------------------------------------- */

struct instant {
  size_t entries;  /* of the recording: what had been done */
  int64_t changed; /* when the image was last */
  const char *place;
  struct state_copy state;
};

struct watch {
  struct mem_tap tap;
  struct mem_file *file;
  struct recorder rec;
  struct instant *instant;
  size_t n, capacity;
  unsigned one_in;
  uint64_t random;
};

static struct watch *watching; /* for the probes, which know nothing */

static void
take_instant (struct watch *w, const char *place)
{
  if (random_below (&w->random, w->one_in) != 0)
    return;
  if (w->n == w->capacity) {
    w->capacity = w->capacity ? 2 * w->capacity : 64;
    w->instant = realloc (w->instant, w->capacity * sizeof *w->instant);
    if (!w->instant)
      die ("out of memory");
  }
  w->instant[w->n].entries = w->rec.n;
  w->instant[w->n].changed = w->file->changed;
  w->instant[w->n].place = place;
  state_save (&w->instant[w->n++].state);
}

static void
at_probe (const char *place)
{
  /* Reading changes nothing, and there is much of it. */
  if (watching && strcmp (place, "descriptor read, bitmap not") != 0)
    take_instant (watching, place);
}

static int
before (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  (void)partial;
  if (call->kind != MEM_READ && call->kind != MEM_SIZE)
    take_instant (opaque, "a call to the storage");
  if (call->kind == MEM_READ || call->kind == MEM_SYNC)
    clock_ns += SLOW_NS;
  return 0;
}

static void
done (void *opaque, const struct mem_call *call)
{
  rec_done (&((struct watch *)opaque)->rec, call);
}

static void
watch_begin (struct watch *w, struct mem_file *f, unsigned one_in, uint64_t seed)
{
  *w = (struct watch){ .file = f, .one_in = one_in, .random = random_seed (seed) };
  w->tap = (struct mem_tap){ before, done, w };
  rec_init (&w->rec, f);
  mem_put_tap (f, &w->tap);
  watching = w;
}

static void
watch_end (struct mem_file *f)
{
  mem_put_tap (f, NULL);
  watching = NULL;
}

static void
watch_free (struct watch *w)
{
  for (size_t i = 0; i < w->n; ++i)
    state_free (&w->instant[i].state);
  free (w->instant);
  rec_free (&w->rec);
}

/* ---- what must hold -------------------------------------------------------------------------- */

struct counts {
  uint64_t runs, instants, taken_up, twice;
  double seconds; /* that the instants took */
};

static bool recovered, set_aside; /* the engine has said so */
static bool verbose;

static void
listen (void *opaque, enum q_log_level level, const char *text)
{
  (void)opaque;
  if (strstr (text, "were recovered from"))
    recovered = true;
  if (strstr (text, "is not used"))
    set_aside = true;
  if (verbose && level <= Q_LOG_WARNING)
    printf ("  %s\n", text);
}

/* What there was at that instant: the file as the recording has it, and the state file. */
static void
rebuild (const struct recorder *rec, const struct instant *at, struct mem_file *f)
{
  uint64_t random = 1;
  struct replay p;

  replay_init (&p, rec);
  while (p.next < at->entries)
    replay_step (&p);
  replay_cut (&p, CUT_ALL, &random, f);
  replay_free (&p);
  f->changed = at->changed;
  state_restore (&at->state);
}

/* Opens the store's file "cut" with the state file that is there. */
static bool
take_up (struct run *run, const struct expect *x, uint64_t *random, struct counts *n)
{
  struct q_image *img;
  struct q_check_result result;
  struct q_error err;
  uint64_t bad;
  uint8_t byte;
  bool good = false;

  recovered = set_aside = false;
  if (states_open (run, "cut", &img, &err) < 0) {
    workload_fail (run, "open: %s", err.text);
    return false;
  }
  n->taken_up += recovered;
  if (set_aside)
    workload_fail (run, "the state was set aside");
  else if (!workload_compare (img, x, &bad, &byte))
    workload_fail (run, "byte %llu is %#x, answered was %#x (%s)", (unsigned long long)bad, byte,
                   x->certain[bad], recovered ? "after recovery" : "nothing was recovered");
  else if (!bitmaps_hold (run, img, "taken up"))
    ;
  else if (q_check (img, 0, &result, NULL, NULL, &err) < 0)
    workload_fail (run, "check: %s", err.text);
  else if (result.corruptions > 0)
    workload_fail (run, "check: %llu corruptions", (unsigned long long)result.corruptions);
  else
    good = true;
  if (q_close (&img, &err) < 0) {
    workload_fail (run, "close: %s", err.text);
    good = false;
  }
  /* Closed is durable: and it can be written. */
  return good && states_examine (run, "cut", x, random_below (random, 3) == 0, random);
}

/* The same, killed once more on the way. */
static bool
take_up_twice (struct run *run, const struct expect *x, uint64_t *random, struct counts *n)
{
  struct mem_file *f = mem_find (&run->store, "cut");
  struct watch w;
  struct q_image *img;
  struct q_error err;
  bool good = true;

  watch_begin (&w, f, 1, *random);
  if (states_open (run, "cut", &img, &err) < 0) {
    workload_fail (run, "open: %s", err.text);
    good = false;
  }
  watch_end (f);
  if (good && q_close (&img, &err) < 0)
    good = false;
  for (unsigned i = 0; good && i < 3 && w.n > 0; ++i) {
    const struct instant *again = &w.instant[random_below (random, w.n)];

    rebuild (&w.rec, again, f);
    good = take_up (run, x, random, n);
    ++n->twice;
  }
  watch_free (&w);
  return good;
}

/* Of how many instants one is tried, so that there is time for those of the whole run. */
static uint64_t
choose_one_in (const struct watch *w, double until, const struct counts *n)
{
  double each = n->instants > 20 ? n->seconds / (double)n->instants : 0.005;
  double room = until - monotonic ();

  return until == 0 ? 1 : room > 0 ? (uint64_t)((double)w->n * each / room) + 1 : UINT64_MAX;
}

static bool
try_instants (struct run *run, const struct watch *w, double until, struct counts *n)
{
  struct mem_file *f = states_cut_file (run);
  uint64_t random = random_seed (run->seed), one_in = choose_one_in (w, until, n);
  double start = monotonic ();
  size_t at = 0, i;
  bool good = true;
  struct expect x;

  expect_init (&x, run->contents, run->size);
  run->least = 0;
  snaps_rewind (run->snaps);
  for (i = 0; good && i < w->n; ++i) {
    /* The one in the middle at least. */
    if (i != w->n / 2 && random_below (&random, one_in) != 0)
      continue;
    for (; at < w->instant[i].entries; ++at) {
      const struct rec_entry *e = &w->rec.entry[at];

      if (e->kind == REC_MARK && e->mark == MARK_BEGUN)
        expect_begin (&x, &run->op[e->subject]);
      else if (e->kind == REC_MARK && e->mark == MARK_DONE) {
        expect_done (&x, &run->op[e->subject]);
        expect_settle_op (&x, &run->op[e->subject]);
      } else if (e->kind == REC_MARK && e->mark == MARK_SIZE)
        run->least = e->subject;
      else if (e->kind == REC_MARK)
        snaps_follow (run->snaps, e->mark, e->subject);
    }
    rebuild (&w->rec, &w->instant[i], f);
    ++n->instants;
    good = random_below (&random, 6) == 0 ? take_up_twice (run, &x, &random, n)
                                          : take_up (run, &x, &random, n);
    if (!good) {
      char failure[sizeof run->failure];

      memcpy (failure, run->failure, sizeof failure);
      snprintf (run->failure, sizeof run->failure, "killed at instant %zu of %zu (%s): %.400s", i,
                w->n, w->instant[i].place, failure);
    }
  }
  n->seconds += monotonic () - start;
  expect_free (&x);
  return good;
}

static bool
one_run (struct run *run, unsigned one_in, double until, struct counts *n)
{
  struct q_error err;
  struct watch w;
  bool good;

  images_lose_state ();
  watch_begin (&w, run->top, one_in, run->seed);
  run->rec = &w.rec;
  if (workload_open (run, &err) < 0)
    workload_fail (run, "open: %s", err.text);
  else {
    workload_run (run);
    if (workload_close (run, &err) < 0)
      workload_fail (run, "close: %s", err.text);
  }
  watch_end (run->top);
  run->rec = NULL;
  good = !run->failure[0] && try_instants (run, &w, until, n);
  watch_free (&w);
  return good;
}

int
main (int argc, char **argv)
{
  struct counts n = { 0 };
  const char *only = NULL;
  unsigned one_in = 3;
  uint64_t seed = 1;
  double seconds = 10, start = monotonic ();
  bool good = true;
  int c;

  while ((c = getopt (argc, argv, "s:d:w:p:v")) != -1)
    switch (c) {
    case 's':
      seed = strtoull (optarg, NULL, 0);
      break;
    case 'd':
      seconds = strtod (optarg, NULL);
      break;
    case 'w':
      only = optarg;
      break;
    case 'p':
      one_in = (unsigned)strtoul (optarg, NULL, 0);
      break;
    case 'v':
      verbose = true;
      break;
    default:
      return 2;
    }
  if (one_in == 0)
    return 2;
  q_set_log (listen, NULL);
  schedule_watch (at_probe);
  mem_now = now_ns;

  for (bool any = true; any && good; ++seed) {
    any = false;
    for (size_t i = 0; i < n_workloads && good; ++i) {
      const struct workload *w = &workloads[i];
      double now = monotonic (), share = seconds / (double)n_workloads;
      struct run run;

      if (w->threads > 1 || w->version < 3 || w->image == IMAGE_DIRTY ||
          (only && strcmp (only, w->name) != 0) || now > start + seconds ||
          !workload_prepare (&run, w, seed))
        continue;
      workload_keep_state (&run);
      run.bitmaps_may_be_lost = false;
      any = true;
      ++n.runs;
      good = one_run (&run, one_in, now + (only ? seconds : share), &n);
      if (!good)
        fprintf (stderr, "deaths: FAILED: -w %s -s %llu -p %u: %s\n", w->name,
                 (unsigned long long)seed, one_in, run.failure);
      workload_free (&run);
    }
  }
  workload_cleanup ();
  printf ("deaths: %llu runs, killed at %llu instants%s, %llu of them with something to recover, "
          "%llu killed again in recovery\n",
          (unsigned long long)n.runs, (unsigned long long)n.instants,
          schedule_has_probes () ? "" : " (calls alone: no probes in this build)",
          (unsigned long long)n.taken_up, (unsigned long long)n.twice);
  if (good && n.taken_up == 0) {
    fprintf (stderr, "deaths: nothing was ever recovered: the test has tested nothing\n");
    return 1;
  }
  return good ? 0 : 1;
}
