/* SPDX-License-Identifier: BSD-3-Clause
 *
 * L2 entries in memory (specification: "L2 table entry", "Extended L2 Entries").
 *
 * An entry is a cluster descriptor of 8 bytes; in an image with extended L2 entries a bitmap of 8
 * bytes follows, which says for each 32nd of the cluster whether it is allocated and whether it
 * reads as zeros.  Nothing outside this header and entry.c knows how wide an entry is.
 *
 *     struct q_l2_entry e = q_l2_entry_get (t, index);     any thread, with a pin, no lock
 *     q_l2_entry_set (t, index, e);                        with the claim on the guest cluster
 *     q_l2_mark_dirty (t, index, count);                   afterwards, as after any change
 *
 * Readers see an entry as some writer left it, never half of one and half of another: entry.c says
 * how, and what a process that is killed between the two halves leaves in the state file.
 */

#ifndef Q_ENTRY_H
#define Q_ENTRY_H

#include "runs.h"

struct q_l2_entry {
  uint64_t descriptor;
  uint64_t bitmap; /* 0 unless entries are extended */
};

static inline bool
q_l2_entry_equal (struct q_l2_entry a, struct q_l2_entry b)
{
  return a.descriptor == b.descriptor && a.bitmap == b.bitmap;
}

/* For entries of 16 bytes. */
struct q_l2_entry q_l2_entry_get_wide (const struct q_table *t, uint32_t index);

static inline struct q_l2_entry
q_l2_entry_get (const struct q_table *t, uint32_t index)
{
  if (__builtin_expect (t->wide, false))
    return q_l2_entry_get_wide (t, index);
  if (t->runs > 0)
    return (struct q_l2_entry){ .descriptor = q_runs_entry (t, index) };
  return (struct q_l2_entry){ .descriptor = q_entry_get (t, index) };
}

/* Publishes E.  Whoever changes an entry holds the claim on its guest cluster; other entries of the
 * table may be changed at the same time. */
void q_l2_entry_set (struct q_table *t, uint32_t index, struct q_l2_entry e);

void q_l2_mark_dirty (struct q_table *t, uint32_t index, uint32_t count);

/* Copies LEN bytes from byte OFFSET on, as they are on disk, to TO: whole entries of any table but
 * a refcount block. */
void q_entries_copy (const struct q_table *t, uint32_t offset, uint32_t len, uint8_t *to);

#endif /* Q_ENTRY_H */
