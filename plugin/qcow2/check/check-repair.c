/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Mending an image in place.
 *
 * Invariant: no step leaves the image worse than it was, whatever happens next.  In this order,
 * each step durable before the one after it:
 *
 *   0. a bitmap directory that makes no sense ends where it ceases to make any;
 *   1. refcounts that are too low are raised, or all refcount structures are made anew;
 *   2. COPIED flags of clusters with more than one reference are cleared;
 *   3. refcounts that are too high are lowered;
 *   4. COPIED flags of clusters with exactly one reference are set.
 *
 * Nothing is written into a cluster that is claimed both as a table and as something else, and
 * nothing is freed while a table could not be followed: what it pointed at looks like a leak.
 */

#include <errno.h>
#include <stdlib.h>

#include "bitmap.h"
#include "check.h"

#define ull(v) ((unsigned long long)(v))

/* ---- refcounts ------------------------------------------------------------------------------- */

enum direction { RAISE, LOWER };

/* Brings the refcounts in block INDEX to the references, as far as DIRECTION goes. */
static int
mend_block (struct q_check *c, uint64_t index, enum direction direction)
{
  const uint64_t per_block = q_refblock_entries (c->img);
  const unsigned order = c->img->refcount_order;
  uint64_t offset;
  bool changed = false;
  int r = q_check_read_refblock (c, index);

  if (r <= 0)
    return r;
  for (uint64_t i = 0; i < per_block; i++) {
    uint64_t recorded = q_refblock_read (c->table, order, i);
    uint64_t references = q_check_references (c, index * per_block + i);

    if (direction == RAISE ? recorded < references : recorded > references) {
      q_refblock_write (c->table, order, i, references);
      changed = true;
    }
  }
  if (!changed)
    return 0;
  q_check_refblock (c, index, &offset);
  return q_file_pwrite (c->img->file, c->table, q_cluster_bytes (c->img), offset);
}

static int
mend_blocks (struct q_check *c, enum direction direction)
{
  int r = 0;

  for (uint64_t i = 0; r == 0 && i < c->reftable_entries; i++)
    r = mend_block (c, i, direction);
  return r < 0 ? r : q_file_sync (c->img->file);
}

/* ---- flags ----------------------------------------------------------------------------------- */

enum pass { CLEAR, SET };

/* What ENTRY of an L1 or L2 table should be.  HOST: the cluster that it refers to. */
static uint64_t
mend_copied (const struct q_check *c, uint64_t entry, uint64_t host, enum pass pass, bool external)
{
  uint64_t cluster = host >> c->img->cluster_bits;
  bool one = external || (q_refmap_has_mark (&c->refs, cluster, Q_REFMAP_ONE) &&
                          q_check_references (c, cluster) <= 1);

  if (pass == CLEAR && !one)
    return entry & ~Q_COPIED;
  if (pass == SET && one)
    return entry | Q_COPIED;
  return entry;
}

/* *BITMAP: the second word of an extended entry, or 0. */
static uint64_t
mend_l2_entry (const struct q_check *c, uint64_t entry, uint64_t *bitmap, enum pass pass,
               bool active)
{
  enum q_entry_kind kind = q_check_entry_kind (c->img, entry, *bitmap);
  uint64_t host = entry & Q_OFFSET_MASK;

  if (kind == Q_ENTRY_ZERO && !q_check_aligned (c, host))
    return c->img->incompatible & Q_INCOMPAT_EXTL2 ? 0 : Q_L2_ZERO;
  if (kind == Q_ENTRY_COMPRESSED) {
    *bitmap = 0;
    return entry & ~Q_COPIED;
  }
  if (!active || kind == Q_ENTRY_NONE)
    return entry;
  return mend_copied (c, entry, host, pass, c->img->incompatible & Q_INCOMPAT_DATA_FILE);
}

static int
mend_l2 (struct q_check *c, uint64_t offset, enum pass pass, bool active)
{
  const unsigned words = q_check_entry_words (c->img);
  const uint64_t n = q_cluster_bytes (c->img) / 8;
  const uint64_t cluster = offset >> c->img->cluster_bits;
  uint64_t *table = (uint64_t *)c->table;
  uint64_t first = n, last = 0;

  /* Tables that the walk did not follow, or that are something else as well. */
  if (!offset || !q_check_aligned (c, offset) || q_refmap_l2 (&c->refs, cluster) == 0 ||
      q_check_is_mixed (c, cluster))
    return 0;

  int r = q_check_read_entries (c, offset, n, table);

  if (r < 0)
    return r == -ENOMEM ? r : 0; /* the walk has reported it */
  for (uint64_t i = 0; i < n; i += words) {
    uint64_t bitmap = words == 2 ? table[i + 1] : 0, before = bitmap;
    uint64_t entry = mend_l2_entry (c, table[i], &bitmap, pass, active);

    if (entry == table[i] && bitmap == before)
      continue;
    table[i] = entry;
    if (words == 2)
      table[i + 1] = bitmap;
    if (first == n)
      first = i;
    last = i + words - 1;
  }
  if (first == n)
    return 0;
  for (uint64_t i = first; i <= last; i++)
    table[i] = htobe64 (table[i]);
  return q_file_pwrite (c->img->file, table + first, 8 * (last - first + 1), offset + 8 * first);
}

static int
mend_l1 (struct q_check *c, uint64_t offset, uint32_t entries, enum pass pass, bool active)
{
  uint64_t *table;
  int r;

  if (entries == 0 || offset > c->file_size || 8ull * entries > c->file_size - offset)
    return 0;
  table = malloc (8ull * entries);
  if (!table)
    return -ENOMEM;
  r = q_check_read_entries (c, offset, entries, table);
  if (r < 0 && r != -ENOMEM)
    entries = r = 0; /* the walk has reported it */
  for (uint32_t i = 0; r == 0 && i < entries; i++) {
    uint64_t host = table[i] & Q_OFFSET_MASK, at = offset + 8ull * i;

    if (!host)
      continue;
    r = mend_l2 (c, host, pass, active);

    uint64_t entry = active ? mend_copied (c, table[i], host, pass, false) : table[i];

    if (r == 0 && entry != table[i] && q_check_references (c, at >> c->img->cluster_bits) == 1) {
      be64 raw = put64 (entry);

      r = q_file_pwrite (c->img->file, &raw, sizeof raw, at);
    }
  }
  free (table);
  return r;
}

static int
mend_flags (struct q_check *c, enum pass pass)
{
  const struct q_image *img = c->img;
  int r = q_check_load_refcounts (c); /* as they are by now */

  if (r == 0)
    r = mend_l1 (c, img->l1_offset, img->l1_size, pass, true);
  for (unsigned i = 0; r == 0 && c->entries && pass == CLEAR && i < q_snapshots_count (img); i++) {
    const struct q_snapshot *s = &atomic_load (&img->snapshots)->s[i];

    r = mend_l1 (c, s->l1_table_offset, s->l1_size, pass, false);
  }
  return r < 0 ? r : q_file_sync (img->file);
}

/* ---- all ------------------------------------------------------------------------------------- */

int
q_check_repair (struct q_check *c)
{
  const bool errors = c->repair & Q_REPAIR_ERRORS, leaks = c->repair & Q_REPAIR_LEAKS;
  bool rebuilt = false, lower = leaks && c->lower;
  int r = 0;

  const bool flags = errors && (c->flags || c->entries || c->raise || c->lower || c->rebuild);

  if (lower && c->lost) {
    q_check_line (c, "Leaked clusters are kept: a table could not be followed, they may be what it "
                     "points at");
    lower = false;
  }
  if (c->rebuild && !errors) {
    q_check_line (c,
                  "Leaked clusters are kept: the refcounts need to be rebuilt first; repair all");
    lower = false;
  }
  if (q_check_cuts_bitmaps (c))
    r = q_directory_cut (c->img, c->bitmaps_kept, c->bitmaps_bytes);
  if (r == 0 && c->rebuild && errors) {
    r = q_check_rebuild (c);
    rebuilt = r == 0;
  } else if (r == 0 && c->raise && errors)
    r = mend_blocks (c, RAISE);
  if (r == 0 && flags)
    r = mend_flags (c, CLEAR);
  if (r == 0 && lower && !rebuilt)
    r = mend_blocks (c, LOWER);
  /* A refcount that was lowered to 1 needs the flag, whatever else is wrong. */
  if (r == 0 && (flags || lower))
    r = mend_flags (c, SET);
  if (r < 0)
    q_fail (c->err, r, "%s: repairing: %s", c->img->filename, strerror (-r));
  return r;
}
