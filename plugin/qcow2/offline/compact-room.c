/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Compacting: which clusters are free, taking them and giving them back.
 */

#include <errno.h>

#include "compact.h"

/* ---- refcounts ------------------------------------------------------------------------------- */

static bool
has_block (const struct compaction *k, uint64_t cluster)
{
  uint64_t offset;

  return q_check_refblock (&k->c, cluster / q_refblock_entries (k->c.img), &offset);
}

int
q_compact_set_count (struct compaction *k, uint64_t cluster, uint64_t count)
{
  const struct q_image *img = k->c.img;
  const unsigned order = img->refcount_order;
  const uint64_t index = cluster % q_refblock_entries (img);
  const uint64_t first = (index << order) / 8 & ~7ull;
  uint64_t block, word;
  int r;

  q_check_refblock (&k->c, cluster / q_refblock_entries (img), &block);
  r = q_file_pread (img->file, &word, sizeof word, block + first);
  if (r < 0)
    return r;
  q_refblock_write ((uint8_t *)&word, order, index - (first * 8 >> order), count);
  return q_file_pwrite (img->file, &word, sizeof word, block + first);
}

bool
q_compact_find_free (struct compaction *k, uint64_t count, uint64_t limit, uint64_t *cluster)
{
  const struct q_refmap *m = &k->c.refs;
  uint64_t run = 0;

  while (k->next < limit && q_refmap_get (m, k->next))
    k->next++;
  for (uint64_t i = k->next; i < limit; i++) {
    run = q_refmap_get (m, i) == 0 && has_block (k, i) ? run + 1 : 0;
    if (run == count) {
      *cluster = i + 1 - count;
      return true;
    }
  }
  return false;
}

int
q_compact_reserve (struct compaction *k, uint64_t cluster, uint64_t count, uint64_t refs)
{
  for (uint64_t i = 0; i < count; i++)
    for (uint64_t n = 0; n < refs; n++)
      if (q_refmap_add (&k->c.refs, cluster + i) < 0) {
        q_compact_release (k, cluster, i, refs);
        q_compact_release (k, cluster + i, 1, n);
        return -ENOMEM;
      }
  return 0;
}

void
q_compact_release (struct compaction *k, uint64_t cluster, uint64_t count, uint64_t refs)
{
  for (uint64_t i = 0; i < count; i++)
    for (uint64_t n = 0; n < refs; n++)
      q_refmap_drop (&k->c.refs, cluster + i);
  k->next = q_min (k->next, cluster);
}

/* Writes what is counted in memory for COUNT clusters from CLUSTER on, for all that can be written.
 * A second attempt is worth it: a count that stays too high is a leak. */
int
q_compact_settle (struct compaction *k, uint64_t cluster, uint64_t count)
{
  int r = 0;

  for (uint64_t i = 0; i < count; i++) {
    const uint64_t refs = q_refmap_get (&k->c.refs, cluster + i);

    if (q_compact_set_count (k, cluster + i, refs) < 0) {
      int r2 = q_compact_set_count (k, cluster + i, refs);

      r = r == 0 ? r2 : r;
    }
  }
  k->torn = k->torn || r < 0;
  return r;
}

/* ---- room ------------------------------------------------------------------------------------ */

int
q_compact_punch (struct compaction *k, uint64_t from, uint64_t end)
{
  const unsigned bits = k->c.img->cluster_bits;
  int r = 0;

  for (uint64_t i = from, start; r == 0 && i < end; i++) {
    for (start = i; i < end && !q_refmap_get (&k->c.refs, i);)
      i++;
    if (i > start)
      r = q_file_zero (k->c.img->file, start << bits, (i - start) << bits, true);
  }
  return r == -ENOTSUP ? 0 : r; /* it stays occupied */
}

int
q_compact_vacate (struct compaction *k, uint64_t cluster, uint64_t count)
{
  return k->tight ? q_compact_punch (k, cluster, cluster + count) : 0;
}

bool
q_compact_tighten (struct compaction *k)
{
  if (k->torn) /* some words of the batch may have followed: it cannot be planned again */
    return false;
  if (k->tight) {
    k->batch /= 2;
    return k->batch >> k->c.img->cluster_bits > 0;
  }
  k->tight = true;
  return q_file_sync (k->c.img->file) == 0 && q_compact_punch (k, 0, k->c.clusters) == 0;
}
