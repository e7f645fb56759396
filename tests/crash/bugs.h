/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The tests of single bugs, and what they share: one image, one guest that does what it is told,
 * and storage that waits or fails when it is told.  A test that fails ends the program with a
 * message.
 */

#ifndef CRASH_BUGS_H
#define CRASH_BUGS_H

#include <stdatomic.h>

#include "images.h"
#include "states.h"

extern uint64_t bugs_seed;
extern unsigned long bugs_operations; /* of the soak */
/* The log of every test that does not want to hear it. */
void bugs_quiet (void *opaque, enum q_log_level level, const char *text);

void test_discard_during_write (void);
void test_discard_during_overwrite (void);
void test_zeroes_beside_write (void);
void test_status_while_changing (void);
void test_late_punch (void);
void test_late_punch_of_packed (void);
void test_queues_over_backing (void);
void test_abort_after_eio (void);
void test_failed_l2_relocation (void);
void test_failed_write (void);
void test_free_last (void);
void test_uncovered_backing (void);
void test_tables_counted_first (void);
void test_full_disk (void);
void test_name_behind_header (void);
void test_flush_of_nothing_keeps_state (void);
void test_flush_of_counts_keeps_state (void);
void test_refcount_table_grows (void);
void test_device_shows_nothing_old (void);
void test_published_during_flush (void);
void test_published_during_snapshot (void);
void test_moved_while_new (void);
void test_state_of_another_session (void);
void test_killed_again_leaks_nothing (void);
void test_killed_while_a_table_moves (void);
void test_killed_at_half_an_entry (void);
void test_halves_of_an_entry (void);
void test_data_is_not_copied (void);
void test_bitmaps_follow_the_disk (void);
void test_bitmaps_that_cannot_be_saved (void);
void test_bitmaps_when_closing_fails (void);
void test_bitmaps_astride_sectors (void);
void test_bitmaps_replaced (void);
void test_bitmaps_replaced_without_room (void);
void test_bitmaps_of_one_name (void);
void test_snapshot_outrun (void);
void test_snapshot_passes_write (void);
void test_soak (void);
void test_flushes_do_not_grow (void);

/* ---- one image ------------------------------------------------------------------------------- */

#define SMALL_IMAGE                                                                                \
  .version = 3, .cluster_bits = 12, .refcount_bits = 16, .clusters = 64, .threads = 1,             \
  .operations = 2000

/* Ends the program unless GOOD. */
void check (bool good, const char *fmt, ...) __attribute__ ((format (printf, 2, 3)));
/* Makes the image and opens it; ends the program as skipped if that needs what is not there. */
void open_run (struct run *run, const struct workload *w);
/* Closes, and looks at what is on the disk: no corruption, and all that the guest wrote. */
void end_run (struct run *run);
/* The open image has no corruption. */
void check_image (struct run *run);
/* Flushes, which must succeed. */
void flush (struct run *run);
/* Where guest OFFSET is in the file; 0 if nowhere. */
uint64_t host_of (struct run *run, uint64_t offset);

/* ---- things that meet ------------------------------------------------------------------------ */

/* Something that is done on another thread, and whether it has come back. */
struct other {
  pthread_t id;
  void (*fn) (struct guest *g);
  struct guest *g;
  atomic_bool back;
};

/* A gate in the storage: calls of one kind wait until it is opened. */
struct gate {
  struct mem_tap tap;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  unsigned kind;
  unsigned waiting;
  bool open;
};

/* Storage that fails: the calls of some kinds, from one on, or only that one. */
struct failing {
  struct mem_tap tap;
  unsigned kinds;
  uint64_t calls, from, to;
  int code;
};

void start_other (struct other *o, struct guest *g, void (*fn) (struct guest *g));
/* Long enough for it to have come back if nothing keeps it, on most machines: for a look that it
 * has not. */
void give_time (const struct other *o);
/* Whether it comes back, on any machine: within a minute. */
bool comes_back (const struct other *o);

void gate_close (struct gate *g, struct run *run, unsigned kind);
/* Until somebody waits at it. */
void gate_await (struct gate *g);
void gate_open (struct gate *g);

/* Calls FROM to TO (counted from 1) of these kinds fail with CODE; half of a write is done. */
void fail_calls (struct failing *f, struct run *run, unsigned kinds, uint64_t from, uint64_t to,
                 int code);

#endif /* CRASH_BUGS_H */
