/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Connecting a device of the kernel needs rights that the server gives up, and a server that is
 * already at work: so a process of its own does it.
 *
 *     attach_start (&a, device, ...)   forks it: while we are root, and before threads and secrets
 *     attach_connect (&a, name, &err)  once the server serves: it connects the device, and has the
 *                                      kernel look for partitions after that
 *     attach_end (&a)                  it ends, if it has not already
 */

#ifndef ATTACH_H
#define ATTACH_H

#include "qcow2.h"

struct attach {
  int control; /* to the process; -1: there is none */
};

/* DEVICE has the number INDEX.  KERNEL and SERVER are the two ends of its connection: the first one
 * is closed here, and the other one there. */
int attach_start (struct attach *a, const char *device, int index, int kernel, int server,
                  struct q_error *err);
/* Connects it to that export.  Waits until the kernel has it. */
int attach_connect (struct attach *a, const char *export_name, struct q_error *err);
void attach_end (struct attach *a);

#endif /* ATTACH_H */
