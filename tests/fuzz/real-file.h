/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a session meets of the system when it serves a file with a descriptor: the file itself (of
 * memory), its page cache, which it borrows from, and a ring that reads for it.
 *
 *     real_file_set (data, n);          what is in the file
 *     real_begin (seed, misses);        of the choices below
 *     opener.open = real_file_open;     "image" is that file
 *     shard.ring = real_ring ();
 *     real_ring_turn (true);            everything that is in the ring has been read
 *
 * Instead of io_uring, reads are done where real_ring_turn says so, in any order; some of them fail
 * or come short, and are for a worker to do again.  With MISSES what is asked of the page cache is
 * not there now and then.
 */

#ifndef FUZZ_REAL_FILE_H
#define FUZZ_REAL_FILE_H

#include "judge.h"
#include "mem.h"

struct ring;

/* The most bytes that it may have: then it is full (EFBIG). */
#define REAL_FILE_MAX (64u << 20)

void real_file_set (const void *data, size_t n);
void real_begin (uint64_t seed, bool misses);
/* Of a struct q_file_opener; OPAQUE: a struct mem_store, for all other names. */
int real_file_open (void *opaque, const char *name, unsigned flags, struct q_file **file,
                    struct q_error *err);

struct ring *real_ring (void);
/* Reads some of what is in the ring, or all of it.  False: there was nothing. */
bool real_ring_turn (bool all);

/* Adds the N bytes at P as a socket would take them: by the kernel, which notices if there is no
 * such memory (any more).  False: it did. */
bool real_send (struct bytes *to, const void *p, size_t n);

#endif /* FUZZ_REAL_FILE_H */
