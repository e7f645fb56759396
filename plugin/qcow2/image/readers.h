/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who in this process shows snapshots of a file that may be written meanwhile (readers.c).
 *
 * Several images of one process may have the same qcow2 file open: one that writes it, and others,
 * each of which shows one of its snapshots (q_open_options.snapshot) and takes what the snapshot
 * refers to for something that never changes.  That is so as long as the snapshot is listed: what a
 * listed snapshot refers to is counted, and so never written.  So:
 *
 * 1. A snapshot that an image shows stays listed: q_snapshots_write refuses, with -EBUSY, a list
 *    that lacks it.
 * 2. Who opens a snapshot reads the header and the snapshot table while nobody replaces them, and
 *    is known before the next one may.
 *
 * Order of calls: q_readers_join when the file is open and before its header is read; then the file
 * is the caller's until q_readers_unlock, which for a reader is when it is known what it shows, and
 * for the writer when the image is open.  q_readers_leave at the end, in any state.
 *
 * Locks: that of the file comes after the layout lock and before the flush and the gate.  Files
 * without an identity (q_file.dev and ino are 0) are never the same.
 */

#ifndef Q_READERS_H
#define Q_READERS_H

#include "image.h"

/* -ENOMEM.  Only a top layer that writes, or that will show a snapshot. */
int q_readers_join (struct q_image *img);
void q_readers_leave (struct q_image *img);

void q_readers_lock (struct q_image *img);
void q_readers_unlock (struct q_image *img);
/* With the lock: the image that writes the file, or NULL. */
struct q_image *q_readers_writer (const struct q_image *img);
/* With the lock: whether the snapshot whose L1 table is at HOST is shown by another image. */
bool q_readers_show (const struct q_image *img, uint64_t host);
/* With the lock: whether every snapshot that is shown is in LIST. */
bool q_readers_allow (const struct q_image *img, const struct q_snapshots *list);

#endif /* Q_READERS_H */
