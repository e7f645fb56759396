/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Fuzzing the order of threads: at the engine's probes (probe.h) a thread goes on, lets others run,
 * or sleeps a little, by a random choice that depends on the seed, the place and the thread.
 *
 * Without NBDCOW_PROBES there are no probes, and this does nothing.
 */

#ifndef CRASH_SCHEDULE_H
#define CRASH_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* From now on, by SEED; 0 stops it.  Call it while the engine is idle. */
void schedule_fuzz (uint64_t seed);
/* Calls FN at every probe besides; NULL: no more. */
void schedule_watch (void (*fn) (const char *place));
/* Which places were reached, and how often. */
void schedule_report (FILE *out);
bool schedule_has_probes (void);

#endif /* CRASH_SCHEDULE_H */
