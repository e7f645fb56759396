/* SPDX-License-Identifier: BSD-3-Clause
 *
 * QEMU's image locks: open-file-description locks on single bytes of the image file, so that QEMU
 * and nbdcow never write one image together.
 *
 * For each permission P there are two bytes.  Whoever uses P holds a shared lock on byte 100 + P;
 * whoever does not want others to use P holds a shared lock on byte 200 + P.  After taking its own,
 * each side tests whether a byte that contradicts it is locked by somebody else.
 */

#ifndef Q_LOCK_H
#define Q_LOCK_H

#include "qcow2.h"

/* Takes the locks of a reader, or of a writer, on FD.  They go when the descriptor's last copy
 * is closed.  -EAGAIN with a message naming NAME if somebody is in the way; 0 where the file system
 * has no such locks. */
int q_lock_take (int fd, bool write, const char *name, struct q_error *err);

#endif /* Q_LOCK_H */
