/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bugs of other engines: what only long use shows.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bugs.h"

/* ---- cloud-hypervisor 8606, 8597: long use ------------------------------------------------------
 *
 * Live L2 tables handed out after long use; refcount blocks stranded at each flush, so that the
 * file grew without bound.  The soak allocates, frees and reuses with caches that hold next to
 * nothing, flushes all the time, checks every so often, and bounds the file. */

static void
soak (const struct workload *w)
{
  uint64_t most = 0, bound;
  struct q_error err;
  struct guest g;
  struct run run;

  if (!workload_prepare (&run, w, bugs_seed))
    return;
  free (run.op);
  run.op = xalloc (bugs_operations * sizeof *run.op);
  run.opts.l2_cache_size = run.opts.refcount_cache_size = 4ull << run.cluster_bits;
  check (workload_open (&run, &err) == 0, "%s", err.text);
  guest_init (&g, &run, 0, 0, run.size);
  /* What the disk holds, as much again that waits in limbo for the next flush, and tables. */
  bound = run.top->size + 2 * run.size + run.size / 4 + (64ull << run.cluster_bits);
  for (unsigned long i = 0; i < bugs_operations && !run.failure[0]; ++i) {
    guest_operate (&g);
    if (i % 200 == 199) {
      check_image (&run);
      guest_read (&g, 0, run.size);
    }
    most = run.top->size > most ? run.top->size : most;
    check (most <= bound, "the file grows to %llu bytes, for a disk of %llu",
           (unsigned long long)most, (unsigned long long)run.size);
  }
  printf ("  %s: %lu operations, disk %llu KiB, file at most %llu KiB\n", w->name, bugs_operations,
          (unsigned long long)run.size >> 10, (unsigned long long)most >> 10);
  guest_free (&g);
  end_run (&run);
}

void
test_soak (void)
{
  static const struct workload images[] = {
    { .name = "soak",
      .version = 3,
      .cluster_bits = 9,
      .refcount_bits = 64,
      .clusters = 1500,
      .threads = 1,
      .operations = 1,
      .mix = { .small = 20, .cluster = 25, .large = 2, .zero = 8, .discard = 25, .flush = 20 } },
    { .name = "soak-snapshot",
      .image = IMAGE_SNAPSHOT,
      .version = 3,
      .cluster_bits = 9,
      .refcount_bits = 16,
      .clusters = 1000,
      .threads = 1,
      .operations = 1,
      .mix = { .small = 20, .cluster = 25, .large = 2, .zero = 8, .discard = 25, .flush = 20 } },
    { .name = "soak-compressed",
      .image = IMAGE_COMPRESSED,
      .version = 3,
      .cluster_bits = 12,
      .refcount_bits = 16,
      .clusters = 200,
      .threads = 1,
      .operations = 1,
      .mix = { .small = 20, .cluster = 25, .large = 2, .zero = 8, .discard = 25, .flush = 20 } },
  };

  for (size_t i = 0; i < sizeof images / sizeof images[0]; ++i)
    soak (&images[i]);
}

/* Flushing alone, again and again, makes nothing grow. */
void
test_flushes_do_not_grow (void)
{
  static const struct workload image = { .name = "empty", .fill = 100, SMALL_IMAGE };
  struct guest g;
  struct run run;
  uint64_t size = 0;

  open_run (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  for (unsigned i = 0; i < 600; ++i) {
    uint64_t at = i % 8 * 4096;

    guest_discard (&g, at, 4096);
    flush (&run);
    guest_write (&g, at, 4096);
    flush (&run);
    if (i == 20)
      size = run.top->size;
  }
  check (run.top->size <= size + 4 * 4096, "the file has grown from %llu to %llu bytes",
         (unsigned long long)size, (unsigned long long)run.top->size);
  guest_free (&g);
  end_run (&run);
}
