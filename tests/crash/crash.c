/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The crash test: runs workloads with a recorder below them and tries the file at every power cut.
 *
 *     crash [-s SEED] [-d SECONDS] [-w WORKLOAD] [-e STATES] [-q ONE-IN] [-o FILE] [-l] [-v]
 *
 * Goes from workload to workload and from seed to seed, beginning with SEED, until SECONDS are over
 * (10 unless said; 0: each workload once, to the end).  -e says how many states are tried at each
 * place beside the certain ones, -q of how many states one is also shown to qemu-img check.  -l
 * lists the workloads.  On failure the file as it was is saved as FILE.  A workload of one thread
 * fails again with the same seed.
 */

#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "images.h"
#include "schedule.h"
#include "states.h"

struct tap {
  struct mem_tap tap;
  struct recorder rec;
  bool yield;
  _Atomic uint64_t random;
};

static int
before (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct tap *t = opaque;

  (void)call;
  (void)partial;
  /* Threads meet in more ways if calls take time. */
  if (t->yield) {
    uint64_t random = t->random * 6364136223846793005ull + 1442695040888963407ull;

    t->random = random;
    for (unsigned i = (unsigned)(random >> 60); i > 8; --i)
      sched_yield ();
  }
  return 0;
}

static void
done (void *opaque, const struct mem_call *call)
{
  rec_done (&((struct tap *)opaque)->rec, call);
}

static void
quiet (void *opaque, enum q_log_level level, const char *text)
{
  if (opaque && level <= Q_LOG_WARNING)
    printf ("  %s\n", text);
}

/* False: it has failed, and run->failure says why. */
static bool
one_run (struct run *run, const struct states_options *o, struct states_counts *n)
{
  struct tap t = { .yield = run->w->threads > 1, .random = run->seed };
  struct q_error err;
  bool good;

  t.tap = (struct mem_tap){ before, done, &t };
  rec_init (&t.rec, run->top);
  mem_put_tap (run->top, &t.tap);
  run->rec = &t.rec;
  if (workload_open (run, &err) < 0)
    workload_fail (run, "open: %s", err.text);
  else {
    schedule_fuzz (run->w->threads > 1 ? run->seed : 0);
    workload_run (run);
    schedule_fuzz (0);
    if (workload_close (run, &err) < 0)
      workload_fail (run, "close: %s", err.text);
  }
  mem_put_tap (run->top, NULL);
  run->rec = NULL;
  good = !run->failure[0] && states_try (run, &t.rec, o, n);
  rec_free (&t.rec);
  return good;
}

int
main (int argc, char **argv)
{
  struct states_options o = { .each = 6, .qemu_one_in = 400 };
  struct states_counts n = { 0 };
  const char *only = NULL, *save = NULL;
  uint64_t seed = 1, runs = 0;
  double seconds = 10, start = monotonic ();
  bool failed = false, skipped = false;
  int c;

  while ((c = getopt (argc, argv, "s:d:w:e:q:o:lv")) != -1)
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
    case 'e':
      o.each = (unsigned)strtoul (optarg, NULL, 0);
      break;
    case 'q':
      o.qemu_one_in = (unsigned)strtoul (optarg, NULL, 0);
      break;
    case 'o':
      save = optarg;
      break;
    case 'v':
      o.verbose = true;
      break;
    case 'l':
      for (size_t i = 0; i < n_workloads; ++i)
        puts (workloads[i].name);
      return 0;
    default:
      return 2;
    }
  q_set_log (quiet, o.verbose ? &o : NULL);

  for (bool any = true; any && !failed; ++seed) {
    any = false;
    for (size_t i = 0; i < n_workloads && !failed; ++i) {
      struct run run;
      double now = monotonic (), share = seconds / (double)n_workloads / 2;

      if ((only && strcmp (only, workloads[i].name) != 0) || (seconds && now > start + seconds))
        continue;
      /* Two rounds, or more if there is time left. */
      o.until = seconds ? now + (only ? seconds : share) : 0;
      if (!workload_prepare (&run, &workloads[i], seed)) {
        skipped = true;
        continue;
      }
      any = seconds > 0;
      ++runs;
      if (o.verbose)
        printf ("%s: seed %llu, clusters of %u, refcounts of %u bits\n", workloads[i].name,
                (unsigned long long)seed, 1u << run.cluster_bits, run.refcount_bits);
      /* With threads no two runs are alike: rather more of them than all of one. */
      o.place_one_in = seconds > 0 && run.w->threads > 1 ? 12 : 0;
      if (!one_run (&run, &o, &n)) {
        failed = true;
        fprintf (stderr, "crash: FAILED: -w %s -s %llu: %s\n", workloads[i].name,
                 (unsigned long long)seed, run.failure);
        if (save && mem_find (&run.store, "cut"))
          mem_save (mem_find (&run.store, "cut"), save);
      }
      workload_free (&run);
    }
  }
  workload_cleanup ();
  if (o.verbose)
    schedule_report (stdout);
  printf ("crash: %llu runs, %llu places, %llu crash states (%llu written again, %llu shown to "
          "qemu-img)%s\n",
          (unsigned long long)runs, (unsigned long long)n.places, (unsigned long long)n.states,
          (unsigned long long)n.recovered, (unsigned long long)n.qemu,
          skipped ? "; qemu-img is missing: workloads were left out" : "");
  return failed ? 1 : 0;
}
