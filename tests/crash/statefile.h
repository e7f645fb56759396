/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Copies of the state file of an image in memory: with the image, what a killed process leaves.
 */

#ifndef CRASH_STATEFILE_H
#define CRASH_STATEFILE_H

#include <stdbool.h>
#include <sys/types.h>

struct state_copy {
  struct state_file_copy {
    bool exists;
    off_t size;
    struct state_piece *pieces; /* the data between the holes */
  } file[2];                    /* the state file, and the one for bitmaps beside it */
};

/* As it is now.  Nobody may be changing it: one thread, and that is here. */
void state_save (struct state_copy *c);
/* Puts it there, in place of whatever was. */
void state_restore (const struct state_copy *c);
void state_free (struct state_copy *c);

#endif /* CRASH_STATEFILE_H */
