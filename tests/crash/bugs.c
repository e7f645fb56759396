/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bugs that corrupted images in other engines, or in ours, each as a test by name.
 *
 *     bugs [-s SEED] [-n OPERATIONS] [-l] [NAME...]
 *
 * Without names all are run.  -n is for the soak, which can be made as long as one likes.
 */

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bugs.h"

uint64_t bugs_seed = 1;
unsigned long bugs_operations = 6000;

static const struct {
  const char *name;
  void (*fn) (void);
} tests[] = {
  { "discard-during-allocating-write", test_discard_during_write },
  { "discard-during-overwrite", test_discard_during_overwrite },
  { "zeroes-beside-write-in-flight", test_zeroes_beside_write },
  { "freed-before-l2-update-is-durable", test_free_last },
  { "block-status-while-tables-change", test_status_while_changing },
  { "abort-after-eio", test_abort_after_eio },
  { "discard-uncovers-backing-file", test_uncovered_backing },
  { "late-punch-into-reused-cluster", test_late_punch },
  { "late-punch-into-packed-cluster", test_late_punch_of_packed },
  { "several-queues-over-backing-file", test_queues_over_backing },
  { "failed-l2-relocation", test_failed_l2_relocation },
  { "failed-write-frees-nothing-live", test_failed_write },
  { "l2-table-counted-before-published", test_tables_counted_first },
  { "device-shows-nothing-old", test_device_shows_nothing_old },
  { "published-during-a-flush", test_published_during_flush },
  { "published-during-a-snapshot", test_published_during_snapshot },
  { "moved-while-new", test_moved_while_new },
  { "refcount-table-grows", test_refcount_table_grows },
  { "full-disk-can-be-flushed", test_full_disk },
  { "name-taken-for-an-extension", test_name_behind_header },
  { "flush-of-nothing-keeps-state", test_flush_of_nothing_keeps_state },
  { "flush-of-counts-keeps-state", test_flush_of_counts_keeps_state },
  { "state-of-another-session", test_state_of_another_session },
  { "killed-again-leaks-nothing", test_killed_again_leaks_nothing },
  { "killed-while-a-table-moves", test_killed_while_a_table_moves },
  { "killed-at-half-an-entry", test_killed_at_half_an_entry },
  { "flushes-strand-refcount-blocks", test_flushes_do_not_grow },
  { "halves-of-an-entry", test_halves_of_an_entry },
  { "data-is-not-copied", test_data_is_not_copied },
  { "bitmaps-follow-the-disk", test_bitmaps_follow_the_disk },
  { "bitmaps-that-cannot-be-saved", test_bitmaps_that_cannot_be_saved },
  { "bitmaps-when-closing-fails", test_bitmaps_when_closing_fails },
  { "bitmaps-astride-sectors", test_bitmaps_astride_sectors },
  { "bitmaps-replaced-and-killed", test_bitmaps_replaced },
  { "bitmaps-replaced-without-room", test_bitmaps_replaced_without_room },
  { "bitmaps-of-one-name", test_bitmaps_of_one_name },
  { "snapshot-outrun", test_snapshot_outrun },
  { "snapshot-beside-write-in-flight", test_snapshot_passes_write },
  { "soak", test_soak },
};
#define N_TESTS (sizeof tests / sizeof tests[0])

void
bugs_quiet (void *opaque, enum q_log_level level, const char *text)
{
  (void)opaque;
  (void)level;
  (void)text;
}

int
main (int argc, char **argv)
{
  unsigned run = 0;
  int c;

  while ((c = getopt (argc, argv, "s:n:l")) != -1)
    switch (c) {
    case 's':
      bugs_seed = strtoull (optarg, NULL, 0);
      break;
    case 'n':
      bugs_operations = strtoul (optarg, NULL, 0);
      break;
    case 'l':
      for (size_t i = 0; i < N_TESTS; ++i)
        puts (tests[i].name);
      return 0;
    default:
      return 2;
    }
  q_set_log (bugs_quiet, NULL);
  atexit (workload_cleanup);
  for (size_t i = 0; i < N_TESTS; ++i) {
    bool wanted = optind == argc;

    for (int a = optind; a < argc; ++a)
      wanted = wanted || strcmp (argv[a], tests[i].name) == 0;
    if (!wanted)
      continue;
    printf ("%s\n", tests[i].name);
    fflush (stdout);
    tests[i].fn ();
    ++run;
  }
  if (run == 0) {
    fprintf (stderr, "bugs: no such test; -l lists them\n");
    return 2;
  }
  return 0;
}
