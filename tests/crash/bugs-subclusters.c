/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Extended L2 entries: two words that are read and written one after the other, and subclusters
 * that others write at the same time.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bugs.h"
#include "schedule.h"

#define CLUSTER 16384ull
#define SUB     512ull

#define EXTENDED_IMAGE                                                                             \
  .version = 3, .cluster_bits = 14, .refcount_bits = 16, .clusters = 24, .threads = 1,             \
  .operations = 200, .extended_l2 = true

/* ---- an entry that changes while it is read ----------------------------------------------------
 *
 * Between the two loads another thread changes both words.  Needs probes. */

static struct {
  bool armed;
  struct guest *guest;
  unsigned what;
  pthread_t reader;
} halfway;

static void
change_entry (struct guest *g)
{
  switch (halfway.what) {
  case 0: /* from unallocated, or from data that a snapshot shares, to data */
    guest_write (g, 3 * SUB, SUB);
    break;
  case 1:
    guest_discard (g, 0, CLUSTER);
    break;
  default:
    guest_zero (g, 0, CLUSTER, Q_ZERO_PROVISION);
  }
}

static void
at_half (const char *place)
{
  struct other o;

  if (!halfway.armed || strcmp (place, "descriptor read, bitmap not") != 0 ||
      !pthread_equal (pthread_self (), halfway.reader))
    return;
  halfway.armed = false;
  start_other (&o, halfway.guest, change_entry);
  pthread_join (o.id, NULL);
}

static void
record (void *opaque, const struct mem_call *call)
{
  rec_done (opaque, call);
}

static void
meet (const struct workload *image, unsigned what, bool flushing)
{
  struct states_options o = { .each = 8 };
  struct states_counts n = { 0 };
  struct mem_tap tap = { .done = record };
  struct recorder rec;
  struct guest g;
  struct run run;

  open_run (&run, image);
  guest_init (&g, &run, 0, 0, run.size);
  g.steps = false;
  if (what == 1)
    guest_write (&g, 0, CLUSTER);
  flush (&run);
  check (q_pread (run.img, run.contents, 0, run.size) == 0, "reading failed");
  rec_init (&rec, run.top);
  tap.opaque = &rec;
  run.top->tap = &tap;
  run.rec = &rec;
  guest_write (&g, CLUSTER, 4096); /* for a flush to copy the first entry, beside this one */
  halfway.guest = &g;
  halfway.what = what;
  halfway.reader = pthread_self ();
  halfway.armed = true;
  schedule_watch (at_half);
  if (flushing)
    flush (&run);
  else
    guest_read (&g, 0, CLUSTER);
  schedule_watch (NULL);
  check (!halfway.armed, "nobody reads an entry: the test is wrong");
  check (!run.failure[0], "%s", run.failure);
  guest_free (&g);
  check (workload_close (&run, NULL) == 0, "close failed");
  run.top->tap = NULL;
  check (states_try (&run, &rec, &o, &n), "%s", run.failure);
  rec_free (&rec);
  workload_free (&run);
}

void
test_halves_of_an_entry (void)
{
  static const struct workload images[] = {
    { .name = "empty", EXTENDED_IMAGE },
    { .name = "overlay", .image = IMAGE_OVERLAY, EXTENDED_IMAGE },
    { .name = "compressed", .image = IMAGE_COMPRESSED, EXTENDED_IMAGE },
  };

  for (size_t i = 0; schedule_has_probes () && i < sizeof images / sizeof images[0]; ++i)
    for (unsigned what = 0; what < 3; ++what)
      for (int flushing = 0; flushing < 2; ++flushing)
        if (images[i].image < IMAGE_FOREIGN || images_have_qemu ())
          meet (&images[i], what, flushing);
}

/* ---- a subcluster that is data already ---------------------------------------------------------
 *
 * Others may be overwriting it in place: an allocating write that ends in it must not put back what
 * it read of the rest. */

void
test_data_is_not_copied (void)
{
  static const struct workload image = { .name = "overlay",
                                         .image = IMAGE_OVERLAY,
                                         EXTENDED_IMAGE };
  struct q_write_plan plan;
  struct guest g;
  struct run run;
  q_pin_t pin;

  open_run (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  g.steps = false;
  guest_discard (&g, 0, CLUSTER);
  guest_write (&g, 2 * SUB, SUB);
  pin = q_pin ();
  check (q_write_begin (run.img, SUB, SUB + 100, Q_NOWAIT, &plan) == 0,
         "a write up to data in place waits for a copy");
  check (plan.len == SUB + 100 && plan.allocates && plan.tail == 0,
         "a write up to data in place takes what follows along");
  q_write_abort (&plan);
  q_unpin (pin);
  guest_free (&g);
  end_run (&run);
}
