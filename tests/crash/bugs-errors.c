/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bugs of other engines: what an error leaves behind.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bugs.h"

/* ---- aborts: after an error nothing that is live is free ---------------------------------------
 *
 * QEMU after EIO in an L2 update; cloud-hypervisor 8637 (the relocation of a shared L2 table fails
 * and the old one is free), 8748 (a write fails and its cluster is handed out twice).  Each call
 * of a short piece of work fails in turn; then everything is allocated that can be, and all must
 * still be there. */

/* The first write is to find a table that it cannot change in its place. */
static void
share_tables (struct run *run)
{
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_error err;

  check (q_snapshot_create (run->img, "shared", id, &err) == 0, "%s", err.text);
}

static void
abort_everywhere (const struct workload *w, unsigned kinds, int code)
{
  for (uint64_t at = 1, calls = 1; at <= calls; ++at) {
    struct failing f;
    struct guest g;
    struct run run;

    open_run (&run, w);
    guest_init (&g, &run, 0, 0, run.size);
    if (w->image == IMAGE_SNAPSHOT)
      share_tables (&run);
    fail_calls (&f, &run, kinds, at, at, code);
    run.may_stick = code != ENOSPC;
    guest_write (&g, 700, 2000);
    guest_write (&g, 5 * 4096 + 100, 3 * 4096);
    guest_zero (&g, 2 * 4096, 4096, Q_ZERO_UNMAP);
    guest_discard (&g, 9 * 4096, 4096);
    if (workload_flush (&run) == 0)
      guest_write (&g, 20 * 4096 + 7, 1000);
    calls = f.calls;
    f.from = UINT64_MAX;
    if (!q_read_only (run.img)) {
      run.storm = 0;
      for (uint64_t c = 0; c + 4096 <= run.size; c += 4096)
        if (c / 4096 % 3 == 0)
          guest_write (&g, c, 4096);
      flush (&run);
      check_image (&run);
      guest_read (&g, 0, run.size);
      guest_free (&g);
      end_run (&run);
    } else { /* what was not flushed may be lost, but nothing else */
      check (run.may_stick, "a full disk makes an image read-only");
      guest_read (&g, 0, run.size);
      check (!run.failure[0], "%s", run.failure);
      workload_close (&run, NULL);
      run.top->tap = NULL;
      check (!images_have_qemu () || images_qemu_check (&run.store, "top") < 2,
             "qemu-img check finds corruption");
      guest_free (&g);
      workload_free (&run);
    }
  }
}

void
test_abort_after_eio (void)
{
  static const struct workload image = { .name = "empty", .fill = 50, SMALL_IMAGE };

  abort_everywhere (&image, 1u << MEM_WRITE | 1u << MEM_ALLOCATE | 1u << MEM_READ, EIO);
}

void
test_failed_l2_relocation (void)
{
  static const struct workload image = { .name = "shared", .image = IMAGE_SNAPSHOT, SMALL_IMAGE };

  abort_everywhere (&image, 1u << MEM_ALLOCATE, ENOSPC);
  abort_everywhere (&image, 1u << MEM_WRITE | 1u << MEM_ALLOCATE, ENOSPC);
  abort_everywhere (&image, 1u << MEM_WRITE | 1u << MEM_ALLOCATE | 1u << MEM_READ, EIO);
}

void
test_failed_write (void)
{
  static const struct workload image = { .name = "deflated",
                                         .image = IMAGE_COMPRESSED,
                                         SMALL_IMAGE };

  abort_everywhere (&image, 1u << MEM_WRITE, ENOSPC);
  abort_everywhere (&image, 1u << MEM_WRITE | 1u << MEM_READ, EIO);
}

/* ---- a full disk --------------------------------------------------------------------------------
 *
 * What was accepted can be flushed, even if not one byte more fits: tables have had their room
 * reserved.  And what is full is not broken. */

static void
fill_up (const struct workload *w, uint64_t clusters)
{
  struct guest g;
  struct run run;
  uint64_t at;
  int r = 0;

  open_run (&run, w);
  guest_init (&g, &run, 0, 0, run.size);
  g.steps = false; /* an aborted write keeps its clusters until the next flush */
  guest_write (&g, 0, 512);
  flush (&run);
  run.top->limit = run.top->size + (clusters << run.cluster_bits);
  run.storm = ENOSPC;
  /* Most of these need an L2 table of their own, and some a refcount block. */
  for (at = 0; r == 0 && at < run.size; at += 40 * 512)
    r = guest_write (&g, at, 512);
  check (r == -ENOSPC, "the disk is not full: the test is wrong");
  flush (&run);
  check (guest_write (&g, 0, 512) == 0, "a full disk refuses to write in place");
  /* What is given back can be had again. */
  guest_discard (&g, 0, 512);
  flush (&run);
  flush (&run);
  check (guest_write (&g, 0, 512) == 0, "what a discard gave back cannot be had again");
  flush (&run);
  run.top->limit = 0;
  run.storm = 0;
  for (at = 0; at < run.size; at += 40 * 512)
    guest_write (&g, at, 512);
  flush (&run);
  guest_free (&g);
  end_run (&run);
}

void
test_full_disk (void)
{
  static const struct workload narrow = { .name = "narrow",
                                          .version = 3,
                                          .cluster_bits = 9,
                                          .refcount_bits = 16,
                                          .clusters = 3000,
                                          .threads = 1,
                                          .operations = 400 };
  static const struct workload wide = { .name = "wide",
                                        .version = 3,
                                        .cluster_bits = 9,
                                        .refcount_bits = 64,
                                        .clusters = 3000,
                                        .threads = 1,
                                        .operations = 400 };

  for (uint64_t clusters = 0; clusters < 90; ++clusters) {
    fill_up (&narrow, clusters);
    fill_up (&wide, clusters);
  }
}
