/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The command that checks an image while it is served, and whether what it says is true.
 *
 *     check_judged (call, &trial);      runs CALL, which is for `check-image'
 *
 * What is in the file is told to the checker that looks at images which nobody has open, too.  For
 * that there is to be something to find: while the command runs, a field of the metadata in the
 * file is another one.
 *
 * What must hold: the command finds what the other checker finds, in as many lines; it fails only
 * if that fails, or for a reason of its own; it leaves the file as it is; and in an image into
 * which nobody put a lie there is no corruption.
 */

#ifndef FUZZ_QMP_CHECK_H
#define FUZZ_QMP_CHECK_H

#include "control-run.h"
#include "mem.h"

struct check_trial {
  struct mem_store *store; /* where the images are */
  uint16_t field;          /* which field is changed, modulo how many there are ... */
  uint8_t flip;            /* ... and the bits of one of its bytes; 0: none is */
  bool sound;              /* nobody has written the images but the exports */
};

void check_judged (struct call *call, const struct check_trial *t);

#endif /* FUZZ_QMP_CHECK_H */
