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

/* Guards keep files locked while the process that has an image open gives it to another one, or
 * opens it again: a writer's, so that nobody else opens it, and a reader's, of a backing file for
 * one, so that nobody changes it meanwhile.  A guard is a descriptor with such locks, and with
 * nothing else to it:
 *
 *     n = q_lock_guards (img, fds, max, &err)      beside the image's own locks
 *     ... close the image ...                      the guards' locks stay
 *     q_lock_adopt (fd)                            in whichever process is to open it: who locks
 *                                                  that file there is not kept out by the guard,
 *                                                  only by others who have locked it (who fails may
 *                                                  try again, also when it was another file)
 *     ... open the image ...
 *     q_lock_disown ()
 *
 * There is no moment without a lock: the opener's are taken while the guard's are still held. */

/* Guards for all files of IMG's chain that are locked: returns how many, in FDS, which are the
 * caller's; -E2BIG if there are more than MAX; -ESTALE if another file has the name of one now. */
int q_lock_guards (struct q_image *img, int *fds, unsigned max, struct q_error *err);
/* One, for the file NAME, which must be the one that FD has open. */
int q_lock_guard (const char *name, int fd, bool write, struct q_error *err);
/* Takes FD over.  -ENOMEM, then it is closed. */
int q_lock_adopt (int fd);
/* Closes all that was adopted. */
void q_lock_disown (void);

#endif /* Q_LOCK_H */
