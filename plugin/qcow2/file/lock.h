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

/* Guards keep a file locked while the process that writes it gives it to another one, or opens it
 * again.  A guard is a descriptor with a writer's locks, and with nothing else to it:
 *
 *     fd = q_lock_guard (name, dev, ino, &err)     beside one's own locks
 *     ... close the image ...                      the guard's locks stay
 *     q_lock_adopt (fd)                            in whichever process is to open it: the next one
 * who locks that file, once, is not kept out by the guard (who fails may try again)
 *     ... open the image ...
 *     q_lock_disown ()
 *
 * There is no moment without a lock: the opener's are taken while the guard's are still held. */

/* A guard for the file NAME, which must be the one with that identity: -ESTALE if it is not. */
int q_lock_guard (const char *name, uint64_t dev, uint64_t ino, struct q_error *err);
/* Takes FD over.  -ENOMEM, then it is closed. */
int q_lock_adopt (int fd);
/* Closes all that was adopted. */
void q_lock_disown (void);

#endif /* Q_LOCK_H */
