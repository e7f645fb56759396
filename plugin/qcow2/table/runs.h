/* SPDX-License-Identifier: BSD-3-Clause
 *
 * L2 tables that are only read, kept small.
 *
 * Most tables of most images are regular: clusters that were written in order lie in order, and
 * neighbours are unallocated together.  Such a table is a few runs of entries, each of which is the
 * one before it plus a constant, and the runs take a fraction of the memory of what is on disk: an
 * eighth at most, a thousandth often.  So the same cache keeps that many more tables.
 *
 *     t = q_runs_pack (img, index, host, mem);    of what was read from disk; NULL: not regular
 *     entry = q_runs_entry (t, index);           any thread, with a pin, no lock
 *     whole = q_runs_unpack (t);                  before it is changed
 *
 * A packed table never changes and is never dirty: whoever is to change an entry puts the whole
 * table in its place (l2.c).  It has no place in the state file, which is for what is not on disk
 * yet.
 */

#ifndef Q_RUNS_H
#define Q_RUNS_H

#include "image.h"

/* Entry FIRST is ENTRY, the next one ENTRY + STEP, and so on up to the next run. */
struct q_entry_run {
  uint32_t first, step;
  uint64_t entry;
};

/* MEM is a table of entries of 8 bytes, as it is on disk.  NULL also without memory. */
struct q_table *q_runs_pack (struct q_image *img, uint64_t index, uint64_t host, const void *mem);
/* NULL without memory. */
struct q_table *q_runs_unpack (const struct q_table *t);
uint64_t q_runs_entry (const struct q_table *t, uint32_t index);

#endif /* Q_RUNS_H */
