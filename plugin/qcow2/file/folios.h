/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Small writes into a file whose page cache is made of large folios.
 *
 * The kernel keeps what was read in order in folios of up to 2 MiB, and ext4 walks all of a folio's
 * blocks for each write into it: 4 KiB then take 34 microseconds where they take 1.7 in a page of
 * their own.  Guests read in order (when they boot, or are backed up) and write all over the place.
 * So the first small write into a stretch that is in the page cache has the folio there split,
 * which takes as long as two such writes.  The kernel splits a folio when a part of it is said to
 * be cold.
 *
 * Not every file system walks, and not every kernel has large folios or splits them.  That is found
 * out by trying: some first writes are made with, some without it before, both are timed, and what
 * is faster is what is done.
 *
 *     started = q_folios_before (f, offset, len);
 *     pwrite ...
 *     q_folios_after (f, started);
 *
 * Thread-safe, no lock.
 */

#ifndef Q_FOLIOS_H
#define Q_FOLIOS_H

#include <stdint.h>

/* Longer writes are worth a walk. */
#define Q_FOLIOS_MAX_WRITE 65536u

struct q_folios;
struct q_windows;

/* For the file that W are the windows of.  NULL without memory, or if W is. */
struct q_folios *q_folios_new (struct q_windows *w);
void q_folios_free (struct q_folios *f);
uint64_t q_folios_before (struct q_folios *f, uint64_t offset, uint64_t len);
void q_folios_after (struct q_folios *f, uint64_t started);

#endif /* Q_FOLIOS_H */
