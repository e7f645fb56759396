/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Power cuts: from the recording of a run, the states that its file may be in, and what must hold
 * of each.
 */

#ifndef CRASH_STATES_H
#define CRASH_STATES_H

#include "workload.h"

struct states_options {
  unsigned each;         /* states for each place in the recording, beside everything and nothing */
  unsigned place_one_in; /* of so many places one is tried, and the last; 0 and 1: all */
  unsigned qemu_one_in;  /* of so many states one is also shown to qemu-img check; 0: none */
  double until; /* monotonic seconds: be done by then, with fewer places, evenly spread; 0: no
                 * limit */
  bool verbose;
};

struct states_counts {
  uint64_t places, states, recovered, qemu;
  double seconds; /* that the states have taken */
};

/* Looks at the states of RUN, which is over and closed, as REC has it.  False: run->failure says
 * what is wrong, and the state is left in the store's file "cut". */
bool states_try (struct run *run, const struct recorder *rec, const struct states_options *o,
                 struct states_counts *n);
/* Whether F, a file of run->store by the name NAME, opens, has no corruption, holds what X allows,
 * and, with RECOVER, can be written and closed and is right after it. */
bool states_examine (struct run *run, const char *name, const struct expect *x, bool recover,
                     uint64_t *random);
/* Opens the store's file NAME, which has its data in the file beside it, if there is one. */
int states_open (struct run *run, const char *name, struct q_image **img, struct q_error *err);
/* The store's file "cut", like run->top, with a file beside it if that has one. */
struct mem_file *states_cut_file (struct run *run);
double monotonic (void);

#endif /* CRASH_STATES_H */
