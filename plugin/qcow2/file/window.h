/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Windows: the page cache of a file as memory, for a reader that must not wait.
 *
 * A server that reads what is cached pays more for asking the file system than for the bytes.  A
 * window is a mapping of a stretch of the file; q_window_find says where bytes are in it if they
 * were in the page cache when last looked, which was at most Q_WINDOW_MS ago.  So
 *
 * - the memory changes when the file does: send it while holding the pin of the map, and never
 *   count on two looks at it being alike;
 * - it may have left the cache since, and then touching it reads the disk: rare, and one page;
 * - it may be beyond the end of a file that somebody has cut, or on a bad sector: touch it only
 *   through a system call (sendmsg), which fails with EFAULT then, where touching it from C would
 *   kill the process.
 *
 * What it costs: page tables, two thousandths of what has been looked at in the windows that are
 * mapped, of which there are at most Q_MAX_WINDOWS a file.  The least recently used makes room.
 *
 * Thread-safe, no lock on the way.
 */

#ifndef Q_WINDOW_H
#define Q_WINDOW_H

#include <stdint.h>

#define Q_WINDOW_MS   200
#define Q_WINDOW_BITS 28u /* bytes of file in one mapping */
#define Q_MAX_WINDOWS 512u

struct q_windows;

/* For the open file FD, which stays the caller's.  NULL if residency cannot be known (then nothing
 * is lost but speed). */
struct q_windows *q_windows_new (int fd);
/* When no pin is left under which something was found. */
void q_windows_free (struct q_windows *w);
/* Where the LEN bytes at OFFSET are, or NULL.  Valid while the caller's pin is held. */
const void *q_window_find (struct q_windows *w, uint64_t offset, uint64_t len);

#endif /* Q_WINDOW_H */
