/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Internal snapshots of a workload's disk: what was made, deleted and gone back to, and what of it
 * must be there after a crash.
 *
 * Snapshot N is called "sN".  Its contents are known if the guest has one thread.  At any time it
 * may be on the disk (making it has begun, deleting it has not ended), and it must (made, and
 * deleting it has not begun); marks in the recording say when.
 */

#ifndef CRASH_SNAPS_H
#define CRASH_SNAPS_H

#include "workload.h"

#define MAX_SNAPS 64

struct snap {
  uint8_t *contents; /* NULL: not known */
  uint64_t size;
  bool there;     /* while running: to be deleted or gone back to */
  bool may, must; /* at the place in the recording that is looked at */
  bool before;    /* it was there when the recording began */
};

struct snaps {
  unsigned n;
  struct snap s[MAX_SNAPS];
};

void snaps_free (struct snaps *s);
/* One operation at random; making one. */
void snaps_operate (struct guest *g);
void snaps_make (struct run *run);
/* The recording that follows begins with those that there are now. */
void snaps_begin (struct snaps *s);
/* Before a recording is gone through, and for each mark in it that is one of ours. */
void snaps_rewind (struct snaps *s);
void snaps_follow (struct snaps *s, enum workload_mark mark, size_t subject);
/* Compares what the store's file NAME has with what it may and must have. */
bool snaps_check (struct run *run, const char *name, const char *when);
/* Deletes those there are, one by one. */
bool snaps_delete_all (struct run *run, struct q_image *img);

#endif /* CRASH_SNAPS_H */
