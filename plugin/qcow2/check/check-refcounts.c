/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The refcount structures: read, counted as references themselves, and compared with what the walk
 * counted.
 */

#include <errno.h>
#include <stdlib.h>

#include "check.h"

#define ull(v) ((unsigned long long)(v))

bool
q_check_refblock (const struct q_check *c, uint64_t index, uint64_t *offset)
{
  uint64_t entry = index < c->reftable_entries ? c->reftable[index] : 0;

  *offset = entry & Q_REFTABLE_MASK;
  return *offset != 0 && q_check_aligned (c, *offset) && *offset < c->file_size;
}

bool
q_check_unknown (const struct q_check *c, uint64_t cluster)
{
  uint64_t index = cluster / q_refblock_entries (c->img);

  return index < c->reftable_entries && c->unknown[index];
}

int
q_check_read_refblock (struct q_check *c, uint64_t index)
{
  uint64_t offset;

  if (!q_check_refblock (c, index, &offset))
    return 0;

  int r = q_file_pread (c->img->file, c->table, q_cluster_bytes (c->img), offset);

  return r < 0 ? r : 1;
}

uint64_t
q_check_references (const struct q_check *c, uint64_t cluster)
{
  return q_min (q_refmap_get (&c->refs, cluster), c->max_count);
}

uint64_t
q_check_recorded (struct q_check *c, uint64_t cluster)
{
  const uint64_t per_block = q_refblock_entries (c->img);
  const uint64_t index = cluster % per_block;
  const unsigned order = c->img->refcount_order;
  uint64_t offset, word = 0;

  /* Only the 8 bytes that hold the count: c->table is in use by the caller. */
  if (!q_check_refblock (c, cluster / per_block, &offset))
    return 0;

  uint64_t byte = (index << order) / 8, first = byte & ~7ull;

  if (q_file_pread (c->img->file, &word, sizeof word, offset + first) < 0)
    return 0;
  return q_refblock_read ((uint8_t *)&word, order, index - (first * 8 >> order));
}

/* ---- reading --------------------------------------------------------------------------------- */

static int
mark_ones (struct q_check *c, uint64_t first, uint64_t n)
{
  for (uint64_t i = 0; i < n; i++)
    if (q_refblock_read (c->table, c->img->refcount_order, i) == 1) {
      int r = q_refmap_set_mark (&c->refs, first + i, Q_REFMAP_ONE);

      if (r < 0)
        return r;
    }
  return 0;
}

int
q_check_load_refcounts (struct q_check *c)
{
  const struct q_image *img = c->img;
  const uint64_t per_block = q_refblock_entries (img);
  uint64_t bytes = (uint64_t)img->reftable_clusters << img->cluster_bits;

  /* The table is bounded, or there is none. */
  c->no_table = q_header_check_reftable (img, c->file_size, NULL) < 0;
  if (c->no_table)
    bytes = 0;
  c->reftable_entries = bytes / 8;
  free (c->reftable);
  free (c->unknown);
  q_refmap_clear_mark (&c->refs, Q_REFMAP_ONE);
  c->reftable = malloc (bytes + 1);
  c->unknown = calloc (c->reftable_entries + 1, sizeof *c->unknown);
  if (!c->reftable || !c->unknown)
    return -ENOMEM;

  int r = q_check_read_entries (c, img->reftable_offset, c->reftable_entries, c->reftable);

  if (r < 0)
    return q_fail (c->err, r, "%s: reading the refcount table at offset %llu: %s", img->filename,
                   ull (img->reftable_offset), strerror (-r));
  for (uint64_t i = 0; i < c->reftable_entries; i++) {
    c->unknown[i] = !q_check_aligned (c, c->reftable[i] & Q_REFTABLE_MASK);
    if (i * per_block >= c->refs.clusters)
      continue;
    r = q_check_go_on (c);
    if (r < 0)
      return r;
    r = q_check_read_refblock (c, i);
    if (r == -ENOMEM)
      return r;
    if (r < 0)
      c->unknown[i] = true; /* the comparison says so */
    else if (r > 0)
      r = mark_ones (c, i * per_block, q_min (per_block, c->refs.clusters - i * per_block));
    if (r == -ENOMEM)
      return r;
  }
  return 0;
}

/* ---- references to and of the refcount structures ---------------------------------------------
 */

static int
count_block (struct q_check *c, uint64_t index)
{
  uint64_t entry = c->reftable[index], offset;

  if (entry & Q_REFTABLE_RESERVED) {
    c->rebuild = true;
    q_check_corruption (c, true, "refcount table entry %llu has reserved bits set: %llx",
                        ull (index), ull (entry));
  }
  if ((entry & Q_REFTABLE_MASK) == 0)
    return 0;
  if (!q_check_refblock (c, index, &offset)) {
    c->rebuild = true;
    if (!q_check_aligned (c, offset))
      q_check_corruption (c, true,
                          "refcount block %llu is not cluster aligned; refcount table entry "
                          "corrupted: %llx",
                          ull (index), ull (entry));
    else
      q_check_corruption (c, true, "refcount block %llu is outside image: %llx", ull (index),
                          ull (entry));
    return 0;
  }

  int r = q_check_count (c, offset, q_cluster_bytes (c->img), Q_CHECK_REFCOUNTS, NULL);

  if (r < 0)
    return r;

  /* A block that something else also takes for its own cannot be written to. */
  uint64_t references = q_refmap_get (&c->refs, offset >> c->img->cluster_bits);

  if (references != 1) {
    c->rebuild = true;
    q_check_corruption (c, true, "refcount block %llu refcount=%llu", ull (index),
                        ull (references));
  }
  return 0;
}

int
q_check_count_refcounts (struct q_check *c)
{
  const struct q_image *img = c->img;
  const uint64_t bytes = (uint64_t)img->reftable_clusters << img->cluster_bits;
  int r;

  if (c->no_table) {
    c->rebuild = true;
    q_check_corruption (c, true,
                        "refcount_table_offset %llx, refcount_table_clusters %x: there can be no "
                        "refcount table",
                        ull (img->reftable_offset), img->reftable_clusters);
    return 0;
  }
  r = q_check_count (c, img->reftable_offset, bytes, Q_CHECK_REFCOUNTS, NULL);
  for (uint64_t i = 0; r == 0 && i < img->reftable_clusters; i++)
    if (q_refmap_get (&c->refs, (img->reftable_offset >> img->cluster_bits) + i) > 1)
      c->rebuild = true;
  for (uint64_t i = 0; r == 0 && i < c->reftable_entries; i++)
    r = count_block (c, i);
  return r;
}

static void
drop (struct q_check *c, uint64_t cluster)
{
  if (cluster < c->refs.clusters && q_refmap_get (&c->refs, cluster) > 0)
    q_refmap_drop (&c->refs, cluster);
}

void
q_check_drop_refcounts (struct q_check *c)
{
  const struct q_image *img = c->img;
  uint64_t offset;

  for (uint64_t i = 0; !c->no_table && i < img->reftable_clusters; i++)
    drop (c, (img->reftable_offset >> img->cluster_bits) + i);
  for (uint64_t i = 0; i < c->reftable_entries; i++)
    if (q_check_refblock (c, i, &offset))
      drop (c, offset >> img->cluster_bits);
}

/* ---- comparing ------------------------------------------------------------------------------- */

static void
mismatch (struct q_check *c, uint64_t cluster, uint64_t recorded, uint64_t references)
{
  bool leak = recorded > references;
  bool mend = c->repair & (leak ? Q_REPAIR_LEAKS : Q_REPAIR_ERRORS);

  if (c->behind && !leak)
    return;
  q_check_line (c, "%s cluster %llu refcount=%llu reference=%llu",
                mend   ? "Repairing"
                : leak ? "Leaked"
                       : "ERROR",
                ull (cluster), ull (recorded), ull (references));
  if (leak) {
    c->lower = true;
    c->res->leaks++;
  } else {
    c->raise = true;
    c->res->corruptions++;
  }
}

/* Whatever the count, what is counted cannot be right: metadata that something else also claims.
 * A count that is too low is a corruption itself; one that is too high would pass for a leak. */
static void
check_overlap (struct q_check *c, uint64_t cluster)
{
  bool l2 = q_refmap_l2 (&c->refs, cluster) > 0;

  if (q_refmap_has_mark (&c->refs, cluster, Q_REFMAP_EXCLUSIVE) || q_check_is_mixed (c, cluster))
    q_check_corruption (c, false,
                        "cluster %llu holds %s and is also referenced as something else: copy what "
                        "is readable to a new image",
                        ull (cluster), l2 ? "an L2 table" : "metadata of the image");
}

/* HAVE: c->table holds the block.  Without a block all its refcounts are 0. */
static void
compare_block (struct q_check *c, uint64_t first, uint64_t n, bool have)
{
  for (uint64_t i = 0; i < n; i++) {
    uint64_t cluster = first + i;
    uint64_t recorded = have ? q_refblock_read (c->table, c->img->refcount_order, i) : 0;
    uint64_t references = q_check_references (c, cluster);

    if (recorded == 0 && references == 0)
      continue;
    if (references > 1 && q_refmap_has_mark (&c->refs, cluster, Q_REFMAP_FLAGGED))
      c->res->stale_flags--; /* it would be written to in place although it is shared */
    c->highest = cluster + 1;
    if (recorded != references) {
      mismatch (c, cluster, recorded, references);
      if (!have)
        c->rebuild = true; /* there is no block to put the count into */
    }
    if (references > 1 && recorded >= references)
      check_overlap (c, cluster);
  }
}

/* Without a block, goes from piece to piece of the map: most of a sparse file is not there. */
static void
compare_nothing (struct q_check *c, uint64_t first, uint64_t n)
{
  for (uint64_t at = first; at < first + n;) {
    uint64_t end = q_min ((at / Q_REFMAP_PIECE + 1) * Q_REFMAP_PIECE, first + n);

    if (!q_refmap_empty_at (&c->refs, at))
      compare_block (c, at, end - at, false);
    at = end;
  }
}

/* Nothing can be said about the clusters of a block that cannot be read. */
static void
compare_unknown (struct q_check *c, uint64_t index)
{
  const uint64_t per_block = q_refblock_entries (c->img);
  const uint64_t first = index * per_block;
  const uint64_t n = c->clusters > first ? q_min (c->clusters - first, per_block) : 0;

  c->rebuild = true;
  c->res->check_errors += n;
  if (n)
    q_check_line (c,
                  "ERROR refcount block %llu at %llx cannot be read: the refcounts of clusters "
                  "%llu to %llu are not known",
                  ull (index), ull (c->reftable[index]), ull (first), ull (first + n - 1));
}

/* Also looks at what the blocks say about clusters past the end of the file: a writer that died
 * may have left refcounts there. */
int
q_check_compare (struct q_check *c)
{
  const uint64_t per_block = q_refblock_entries (c->img);
  const uint64_t blocks = q_div_up (c->clusters, per_block);

  for (uint64_t i = 0; i < blocks || i < c->reftable_entries; i++) {
    uint64_t first = i * per_block;
    int r = q_check_go_on (c);

    if (r < 0)
      return r;
    if (i < c->reftable_entries && !c->unknown[i])
      r = q_check_read_refblock (c, i);
    if (r == -ENOMEM)
      return r;
    if (r < 0 || q_check_unknown (c, first))
      compare_unknown (c, i);
    else if (r > 0)
      compare_block (c, first, per_block, true);
    else if (i < blocks)
      compare_nothing (c, first, q_min (per_block, c->clusters - first));
  }
  return 0;
}
