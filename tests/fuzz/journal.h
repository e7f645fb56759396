/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The journal of a repair (q_check_options), checked against the file: what it says was there, was
 * there; what it says comes there, and nothing else, is there in the end.
 *
 *     journal_begin (&j, file);             the image is open
 *     o.journal = journal_note; o.opaque = &j;
 *     q_check_image (...)
 *     journal_end (&j, performed);          before it is closed
 */

#ifndef FUZZ_JOURNAL_H
#define FUZZ_JOURNAL_H

#include "mem.h"

struct journal {
  struct mem_file *file;
  uint8_t *should;         /* the file, with all that was told */
  uint64_t size, capacity; /* of SHOULD */
  uint64_t told;           /* a digest of it all */
};

void journal_begin (struct journal *j, struct mem_file *file);
int journal_note (void *opaque, uint64_t offset, const void *before, const void *after,
                  uint64_t len);
/* PERFORMED: the repair was done, and has not failed. */
void journal_end (struct journal *j, bool performed);

#endif /* FUZZ_JOURNAL_H */
