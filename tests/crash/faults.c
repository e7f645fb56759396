/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The fault test: the storage fails the Nth call, for every N.
 *
 *     faults [-s SEED] [-d SECONDS] [-w WORKLOAD] [-m MODE] [-n CALL] [-o FILE] [-l] [-v]
 *
 * A workload of one thread makes the same calls each time, up to the fault.  It is run once without
 * one to count them, and then once for each call and each mode of failing; where SECONDS (10 unless
 * said; 0: no limit, every call) do not suffice for all, calls are picked at random.  Of each run
 * must hold:
 *
 *   - nothing crashes, and whatever is read is right or an error;
 *   - a failed sync makes the image read-only, and so it stays (invariant 7);
 *   - a full disk does not: with room again everything can be written and flushed, and once the
 *     image is closed no cluster is leaked;
 *   - the file that is left, also after a power cut then or before, opens, has no corruption, and
 *     holds what was flushed.
 */

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "images.h"
#include "states.h"

#define ON(kind) (1u << (kind))
#define CHANGES  (ON (MEM_WRITE) | ON (MEM_ZERO) | ON (MEM_TRUNCATE) | ON (MEM_ALLOCATE))

static const struct mode {
  const char *name;
  unsigned kinds; /* of the calls that are counted and fail */
  int code;
  bool lasts;   /* all later ones fail too */
  bool partial; /* some of what was to be written is */
} modes[] = {
  { "eio", CHANGES | ON (MEM_READ) | ON (MEM_SIZE) | ON (MEM_SYNC), EIO, false, false },
  { "eio-lasts", CHANGES | ON (MEM_READ) | ON (MEM_SIZE) | ON (MEM_SYNC), EIO, true, false },
  { "eio-partial", ON (MEM_WRITE), EIO, false, true },
  { "enospc", CHANGES, ENOSPC, false, false },
  { "enospc-lasts", CHANGES, ENOSPC, true, false },
  { "enospc-partial", ON (MEM_WRITE), ENOSPC, false, true },
  { "sync", ON (MEM_SYNC), EIO, false, false },
  { "sync-enospc", ON (MEM_SYNC), ENOSPC, false, false },
  { "sync-lasts", ON (MEM_SYNC), EIO, true, false },
  { "read-lasts", ON (MEM_READ), EIO, true, false },
};
#define N_MODES (sizeof modes / sizeof modes[0])

/* ---- the tap --------------------------------------------------------------------------------- */

struct tap {
  struct mem_tap tap;
  struct recorder rec;
  const struct mode *mode; /* NULL: the disk is well */
  uint64_t calls;          /* of those kinds so far */
  uint64_t at;             /* the one that fails; UINT64_MAX: none */
  uint64_t failed, syncs_failed;
  uint64_t random;
};

static int
before (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct tap *t = opaque;
  uint64_t n;

  if (!t->mode || call->kind == MEM_SYNCED || !(t->mode->kinds & ON (call->kind)))
    return 0;
  n = t->calls++;
  if (n < t->at || (n > t->at && !t->mode->lasts))
    return 0;
  ++t->failed;
  t->syncs_failed += call->kind == MEM_SYNC;
  if (t->mode->partial) { /* up to a sector */
    uint64_t end = (call->offset + random_below (&t->random, call->len + 1)) / SECTOR * SECTOR;

    *partial = end > call->offset ? end - call->offset : 0;
  }
  return -t->mode->code;
}

static void
done (void *opaque, const struct mem_call *call)
{
  rec_done (&((struct tap *)opaque)->rec, call);
}

/* ---- what must hold -------------------------------------------------------------------------- */

/* The disk is well again. */
static void
check_recovers (struct run *run, const struct tap *t)
{
  uint8_t byte = 1;
  uint64_t bad;
  int r;

  if (q_read_only (run->img)) {
    r = q_pwrite (run->img, &byte, 0, 1);
    if (r != -EROFS)
      workload_fail (run, "a write to an image that says it is read-only: %s", strerror (-r));
    if (q_flush (run->img) == 0)
      workload_fail (run, "a flush of an image with a sticky error succeeds");
    if (t->mode->code == ENOSPC && t->syncs_failed == 0)
      workload_fail (run, "a full disk made the image read-only");
  } else {
    if (t->syncs_failed > 0)
      workload_fail (run, "a sync failed and the image is not read-only");
    r = workload_flush (run);
    if (r < 0)
      workload_fail (run, "the disk is well again and a flush fails: %s", strerror (-r));
  }
  if (!workload_compare (run->img, &run->live, &bad, &byte))
    workload_fail (run, "once the disk is well again: byte %llu reads as %#x",
                   (unsigned long long)bad, byte);
}

/* Of the image that was closed when the disk was well again. */
static void
check_no_leaks (struct run *run)
{
  struct q_open_options opts = run->opts;
  struct q_check_result result = { 0 };
  struct q_image *img;
  struct q_error err;

  opts.read_only = true;
  opts.state_dir = NULL;
  if (q_open (&img, run->top->name, &opts, &err) < 0 ||
      q_check (img, 0, &result, NULL, NULL, &err) < 0)
    die ("%s", err.text);
  q_close (&img, NULL);
  if (result.leaks > 0)
    workload_fail (run, "after a full disk %llu clusters are leaked",
                   (unsigned long long)result.leaks);
}

/* True if it was as it should be. */
static bool
one_run (struct run *run, struct tap *t, const struct states_options *o, struct states_counts *n)
{
  const struct mode *mode = t->mode;
  struct q_error err = { "" };
  bool good, sticky, well = false;
  int r;

  t->tap = (struct mem_tap){ before, done, t };
  rec_init (&t->rec, run->top);
  mem_put_tap (run->top, &t->tap);
  run->rec = &t->rec;
  run->storm = mode->code;
  run->may_stick = mode->code != ENOSPC || (mode->kinds & ON (MEM_SYNC));
  r = workload_open (run, &err);
  if (r < 0) {
    if (t->failed == 0)
      workload_fail (run, "open: %s", err.text);
    else if (err.text[0] == '\0')
      workload_fail (run, "open failed without a word");
  } else {
    uint64_t opening = t->syncs_failed;

    workload_run (run);
    t->syncs_failed -= opening;
    if (mode->lasts && t->failed > 0 && random_below (&t->random, 2) == 0)
      ; /* closed while it still fails */
    else {
      struct tap was = *t;

      t->mode = NULL;
      check_recovers (run, &was);
      well = mode->code == ENOSPC && t->syncs_failed == 0;
    }
    sticky = q_read_only (run->img);
    r = workload_close (run, &err);
    if (r < 0 && !sticky && t->failed == 0)
      workload_fail (run, "close: %s", err.text);
    /* If it says 0, all that was ever answered must be there: states_try holds it to that. */
  }
  mem_put_tap (run->top, NULL);
  run->rec = NULL;
  if (well && r == 0 && !sticky)
    check_no_leaks (run);
  good = !run->failure[0] && (o->each == 0 || states_try (run, &t->rec, o, n));
  rec_free (&t->rec);
  return good;
}

/* ---- all of them ----------------------------------------------------------------------------- */

struct session {
  struct states_options states;
  struct states_counts counts;
  uint64_t points, hits, runs;
  const char *save;
  bool verbose;
};

static bool
try_point (struct session *s, const struct workload *w, uint64_t seed, const struct mode *mode,
           uint64_t at, uint64_t *calls)
{
  struct tap t = { .mode = mode, .at = at, .random = random_seed (seed ^ at) };
  struct run run;
  bool good;

  if (!workload_prepare (&run, w, seed))
    return true;
  good = one_run (&run, &t, &s->states, &s->counts);
  if (calls)
    *calls = t.calls;
  s->hits += t.failed > 0;
  if (!good) {
    fprintf (stderr, "faults: FAILED: -w %s -s %llu -m %s -n %llu: %s\n", w->name,
             (unsigned long long)seed, mode->name, (unsigned long long)at, run.failure);
    if (s->save && mem_find (&run.store, "cut"))
      mem_save (mem_find (&run.store, "cut"), s->save);
  }
  workload_free (&run);
  return good;
}

/* Every call, or as many at random as there is time for. */
static bool
try_mode (struct session *s, const struct workload *w, uint64_t seed, const struct mode *mode,
          double until)
{
  uint64_t calls = 0, random = random_seed (seed), step, *order;
  struct states_options all = s->states;
  bool good;

  s->states.each = 0;
  good = try_point (s, w, seed, mode, UINT64_MAX, &calls);
  s->states = all;
  order = xalloc (calls * sizeof *order);
  for (uint64_t i = 0; i < calls; ++i) {
    uint64_t j = random_below (&random, i + 1);

    order[i] = order[j];
    order[j] = i;
  }
  for (step = 0; good && step < calls && (until == 0 || monotonic () < until); ++step) {
    ++s->points;
    good = try_point (s, w, seed, mode, order[step], NULL);
  }
  free (order);
  ++s->runs;
  if (s->verbose)
    printf ("%s: seed %llu: %s: %llu of %llu calls\n", w->name, (unsigned long long)seed,
            mode->name, (unsigned long long)step, (unsigned long long)calls);
  return good;
}

static void
quiet (void *opaque, enum q_log_level level, const char *text)
{
  if (opaque && level <= Q_LOG_WARNING)
    printf ("  %s\n", text);
}

int
main (int argc, char **argv)
{
  struct session s = { .states = { .each = 3, .place_one_in = 40, .qemu_one_in = 1500 } };
  const char *only = NULL, *only_mode = NULL;
  uint64_t seed = 1, call = UINT64_MAX;
  double seconds = 10, start = monotonic ();
  bool good = true;
  int c;

  while ((c = getopt (argc, argv, "s:d:w:m:n:o:lv")) != -1)
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
    case 'm':
      only_mode = optarg;
      break;
    case 'n':
      call = strtoull (optarg, NULL, 0);
      break;
    case 'o':
      s.save = optarg;
      break;
    case 'v':
      s.verbose = true;
      break;
    case 'l':
      for (size_t i = 0; i < n_workloads; ++i)
        if (workloads[i].threads == 1)
          puts (workloads[i].name);
      for (size_t i = 0; i < N_MODES; ++i)
        printf ("-m %s\n", modes[i].name);
      return 0;
    default:
      return 2;
    }
  q_set_log (quiet, s.verbose ? &s : NULL);

  for (bool any = true; any && good; ++seed) {
    any = false;
    for (size_t i = 0; good && i < n_workloads * N_MODES; ++i) {
      const struct workload *w = &workloads[i / N_MODES];
      const struct mode *mode = &modes[i % N_MODES];
      double now = monotonic (), share = seconds / (double)(n_workloads * N_MODES);

      if (w->threads > 1 || (only && strcmp (only, w->name) != 0) ||
          (only_mode && strcmp (only_mode, mode->name) != 0) ||
          (seconds > 0 && now > start + seconds))
        continue;
      if (call != UINT64_MAX)
        good = try_point (&s, w, seed, mode, call, NULL);
      else {
        good = try_mode (&s, w, seed, mode, seconds > 0 ? now + share : 0);
        any = seconds > 0;
      }
    }
  }
  workload_cleanup ();
  printf ("faults: %llu workloads and modes, %llu fault points, %llu failed as told; %llu crash "
          "states after them (%llu shown to qemu-img)\n",
          (unsigned long long)s.runs, (unsigned long long)s.points, (unsigned long long)s.hits,
          (unsigned long long)s.counts.states, (unsigned long long)s.counts.qemu);
  return good ? 0 : 1;
}
