/* SPDX-License-Identifier: BSD-3-Clause
 *
 * L2 entries in memory.
 *
 * An entry of 8 bytes is one atomic word.  One of 16 is two, and whoever reads them one after the
 * other could get the descriptor from before a change and the bitmap from after it.
 *
 * Readers.  A table counts the changes of both words that were begun and those that were finished.
 * A reader loads `finished', both words, and `begun'; if the two counts are the same, every change
 * that had begun by the end had finished at the start, so none was under way meanwhile.  Two counts
 * and not one sequence number, since several writers may change entries of one table at once, each
 * under the claim on its own guest cluster: none has to wait for another.
 *
 * The memory order: a writer adds to `begun', stores the words with release, adds to `finished'
 * with release.  A reader that sees a word of a change sees, by that word's acquire load, that the
 * change has begun; one that sees it counted as finished sees all of it, and all that were finished
 * before, since each addition continues the release sequence of the ones before it.  So a word of a
 * change that `finished' did not count makes `begun' larger than it.
 *
 * A change of the bitmap alone (most changes: subclusters of a cluster that is there already) is
 * one store and needs no counting: no change of the descriptor was under way between a reader's two
 * loads, so the bitmap that it saw was set while the descriptor was the one that it saw.
 *
 * Killed in between.  Tables are in the state file (state.h), so a process that is killed between
 * the two stores leaves half of a change there.  The order of the stores is such that this half is
 * no worse than a write or discard that was under way:
 *
 *   the new bitmap has allocated subclusters: the descriptor first.  The old bitmap then speaks of
 *       the new host cluster, into which every subcluster that was allocated has been copied or
 *       written (invariant 2);
 *   else, the bitmap first.  Nothing is then read from the old host cluster any more;
 *   but if the old or the new descriptor is compressed: the bitmap is changed while it is, for a
 *       compressed cluster needs none.  What is left is a compressed descriptor with a bitmap that
 *       the format does not allow; recover.c takes the bitmap out.
 *
 * On disk an entry lies in one sector, which is written whole or not at all, and q_entries_copy
 * gives the flusher whole entries.
 */

#include <sched.h>

#include "entry.h"

/* Tries before a reader lets a writer that was preempted between two stores run. */
#define SPINS 64

struct q_l2_entry
q_l2_entry_get_wide (const struct q_table *t, uint32_t index)
{
  struct q_l2_entry e;
  uint64_t finished;
  unsigned spins = 0;

  for (;;) {
    finished = atomic_load_explicit (&t->finished, memory_order_acquire);
    e.descriptor = q_entry_get (t, 2 * index);
    Q_PROBE ("descriptor read, bitmap not");
    e.bitmap = q_entry_get (t, 2 * index + 1);
    if (atomic_load_explicit (&t->begun, memory_order_relaxed) == finished)
      return e;
    if (++spins % SPINS == 0)
      sched_yield ();
  }
}

static bool
descriptor_first (struct q_l2_entry old, struct q_l2_entry new)
{
  if (old.descriptor & Q_L2_COMPRESSED)
    return false;
  return (new.descriptor &Q_L2_COMPRESSED) || (new.bitmap &Q_L2_BITMAP_ALLOCATED);
}

void
q_l2_entry_set (struct q_table *t, uint32_t index, struct q_l2_entry new)
{
  struct q_l2_entry old;

  if (!t->wide) {
    assert (new.bitmap == 0);
    q_entry_set (t, index, new.descriptor);
    return;
  }
  old.descriptor = q_entry_get (t, 2 * index);
  old.bitmap = q_entry_get (t, 2 * index + 1);
  if (old.descriptor == new.descriptor) {
    q_entry_set (t, 2 * index + 1, new.bitmap);
    return;
  }
  atomic_fetch_add_explicit (&t->begun, 1, memory_order_acq_rel);
  if (descriptor_first (old, new)) {
    q_entry_set (t, 2 * index, new.descriptor);
    Q_PROBE ("descriptor set, bitmap not");
    q_entry_set (t, 2 * index + 1, new.bitmap);
  } else {
    q_entry_set (t, 2 * index + 1, new.bitmap);
    Q_PROBE ("bitmap set, descriptor not");
    q_entry_set (t, 2 * index, new.descriptor);
  }
  atomic_fetch_add_explicit (&t->finished, 1, memory_order_release);
}

void
q_l2_mark_dirty (struct q_table *t, uint32_t index, uint32_t count)
{
  unsigned bytes = t->wide ? 16 : 8;

  q_table_mark_dirty (t, index * bytes, count * bytes);
}

static void
put_word (uint8_t *to, uint64_t v)
{
  v = htobe64 (v);
  memcpy (to, &v, sizeof v);
}

void
q_entries_copy (const struct q_table *t, uint32_t offset, uint32_t len, uint8_t *to)
{
  if (t->wide)
    for (uint32_t i = 0; i < len; i += 16) {
      struct q_l2_entry e = q_l2_entry_get_wide (t, (offset + i) / 16);

      put_word (to + i, e.descriptor);
      put_word (to + i + 8, e.bitmap);
    }
  else
    for (uint32_t i = 0; i < len; i += 8)
      put_word (to + i, q_entry_get (t, (offset + i) / 8));
}
