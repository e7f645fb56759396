/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making the refcount structures anew, for images in which they are damaged, missing, or claimed by
 * something else.
 *
 * The new table and blocks go past everything that is in the file or known to it, and nothing
 * refers to them until they are durable; then one write of the header switches to them.  A crash
 * leaves the old structures or the new ones.  The clusters of the old ones are free afterwards.
 */

#include <errno.h>
#include <stdlib.h>

#include "check.h"

#define ull(v) ((unsigned long long)(v))

#define MAX_ENTRIES (Q_MAX_REFTABLE_BYTES / 8)
#define NEEDED      1u

struct rebuild {
  struct q_check *c;
  bool keep; /* what has a refcount but no reference keeps its refcount */
  uint64_t per_block;
  uint64_t start; /* cluster: the blocks, then the table */
  uint64_t n_blocks, n_table;
  uint64_t entries;  /* of the table that are used */
  uint64_t *table;   /* the new one; NEEDED before its blocks have their place */
  uint64_t n_old;    /* blocks for what is there ... */
  uint64_t last_old; /* ... and the highest index of one */
  bool *trusted;     /* old blocks, by index, whose counts may be kept */
};

static int
too_large (struct rebuild *b)
{
  return q_fail (b->c->err, -EFBIG,
                 "%s: new refcount structures are not possible: the refcount table would need more "
                 "than %u MiB; convert the image to one with larger clusters",
                 b->c->img->filename, Q_MAX_REFTABLE_BYTES >> 20);
}

/* Makes the new block INDEX in c->table.  True if any count in it is not 0. */
static int
make_block (struct rebuild *b, uint64_t index)
{
  struct q_check *c = b->c;
  const unsigned order = c->img->refcount_order;
  const uint64_t end = b->start + b->n_blocks + b->n_table;
  const uint64_t first = index * b->per_block;
  bool any = false;
  bool old = b->keep && index < c->reftable_entries && b->trusted[index];
  int r = old ? q_check_read_refblock (c, index) : 0;

  if (r == -ENOMEM)
    return r;
  if (r <= 0 && first >= c->refs.clusters && (first >= end || first + b->per_block <= b->start))
    return 0; /* nothing known and nothing new: most of a large table */
  if (r <= 0)
    memset (c->table, 0, q_cluster_bytes (c->img));
  for (uint64_t i = 0; i < b->per_block; i++) {
    uint64_t cluster = first + i;
    uint64_t recorded = q_refblock_read (c->table, order, i);
    uint64_t count = q_check_references (c, cluster);

    if (cluster >= b->start && cluster < end)
      count = 1;
    if (count < recorded)
      count = recorded; /* 0 unless they are to be kept */
    else if (count > recorded)
      q_refblock_write (c->table, order, i, count);
    any = any || count;
  }
  return any;
}

/* The blocks that are needed for what is there. */
static int
plan_old (struct rebuild *b)
{
  struct q_check *c = b->c;
  uint64_t n = q_div_up (c->clusters, b->per_block);

  if (b->keep && c->reftable_entries > n)
    n = c->reftable_entries;
  if (n > MAX_ENTRIES)
    return too_large (b);
  b->table = calloc (MAX_ENTRIES, sizeof *b->table);
  if (!b->table)
    return -ENOMEM;
  for (uint64_t i = 0; i < n; i++) {
    int r = make_block (b, i);

    if (r < 0)
      return r;
    if (r > 0) {
      b->table[i] = NEEDED;
      b->n_old++;
      b->last_old = i;
    }
  }
  return 0;
}

/* How much there is if it starts at b->start.  The new structures may need blocks for themselves: a
 * fixed point. */
static int
plan_size (struct rebuild *b)
{
  const uint64_t base = b->start / b->per_block;
  uint64_t before;

  b->n_blocks = b->n_table = 0;
  do {
    before = b->n_blocks + b->n_table;

    uint64_t top = before ? (b->start + before - 1) / b->per_block : base;

    b->n_blocks = b->n_old;
    for (uint64_t i = base; i <= top; i++)
      if (i >= MAX_ENTRIES)
        return too_large (b);
      else if (b->table[i] != NEEDED)
        b->n_blocks++;
    b->entries = (top > b->last_old ? top : b->last_old) + 1;
    b->n_table = q_div_up (b->entries * 8, q_cluster_bytes (b->c->img));
  } while (b->n_blocks + b->n_table != before);
  return b->n_table << b->c->img->cluster_bits > Q_MAX_REFTABLE_BYTES ? too_large (b) : 0;
}

/* Past the last cluster in [first, end) that something refers to without its being there: what is
 * put there would become visible through that reference.  END if there is none. */
static uint64_t
past_dangling (const struct q_check *c, uint64_t first, uint64_t end)
{
  for (uint64_t i = end; i-- > first;)
    if (q_refmap_has_mark (&c->refs, i, Q_REFMAP_DANGLING))
      return i + 1;
  return first;
}

/* Finds where everything goes.  Past the end of a file there is nothing that could be overwritten,
 * whatever damaged refcounts say.  A device has no such place: there it is past everything in use.
 */
static int
plan (struct rebuild *b)
{
  struct q_check *c = b->c;
  const unsigned bits = c->img->cluster_bits;
  uint64_t next = c->img->file->is_device ? c->highest : c->clusters, end;
  int r = plan_old (b);

  do {
    b->start = next;
    if (r == 0)
      r = plan_size (b);
    if (r < 0)
      return r;
    end = b->start + b->n_blocks + b->n_table;
    next = past_dangling (c, b->start, end);
  } while (next != b->start);

  for (uint64_t i = b->start / b->per_block; i * b->per_block < end; i++)
    b->table[i] = NEEDED;
  if (c->img->file->is_device && end > c->file_size >> bits)
    return q_fail (c->err, -ENOSPC,
                   "%s: the device has no room for new refcount structures: %llu bytes are needed "
                   "from offset %llu on, it ends at %llu",
                   c->img->filename, ull ((b->n_blocks + b->n_table) << bits),
                   ull (b->start << bits), ull (c->file_size));
  if (!c->img->file->is_device && end > c->refs.clusters)
    return q_fail (c->err, -ENOSPC,
                   "%s: there is no room for new refcount structures: references to what is past "
                   "the end of the file take it up to offset %llu; convert the image",
                   c->img->filename, ull (end << bits));
  return 0;
}

static int
write_structures (struct rebuild *b)
{
  struct q_check *c = b->c;
  const unsigned bits = c->img->cluster_bits;
  uint64_t next = b->start;
  int r = 0;

  for (uint64_t i = 0; r >= 0 && i < b->entries; i++) {
    if (!b->table[i])
      continue;
    r = make_block (b, i);
    if (r < 0)
      break;
    b->table[i] = htobe64 (next << bits);
    r = q_file_pwrite (c->img->file, c->table, q_cluster_bytes (c->img), next << bits);
    next++;
  }
  if (r >= 0)
    r = q_file_pwrite (c->img->file, b->table, b->n_table << bits, next << bits);
  if (r >= 0)
    r = q_file_sync (c->img->file);
  return r;
}

static int
switch_over (struct rebuild *b)
{
  struct q_image *img = b->c->img;
  const uint64_t old_offset = img->reftable_offset;
  const uint32_t old_clusters = img->reftable_clusters;

  img->reftable_offset = (b->start + b->n_blocks) << img->cluster_bits;
  img->reftable_clusters = (uint32_t)b->n_table;

  int r = q_header_write_reftable (img, img->reftable_offset, img->reftable_clusters);

  if (r == 0)
    r = q_file_sync (b->c->img->file);
  if (r < 0) {
    img->reftable_offset = old_offset;
    img->reftable_clusters = old_clusters;
  }
  return r;
}

/* A block that something else also claims holds anything but refcounts. */
static int
find_trusted (struct rebuild *b)
{
  struct q_check *c = b->c;
  uint64_t offset;

  b->trusted = calloc (c->reftable_entries + 1, sizeof *b->trusted);
  if (!b->trusted)
    return -ENOMEM;
  for (uint64_t i = 0; i < c->reftable_entries; i++)
    b->trusted[i] = q_check_refblock (c, i, &offset) &&
                    q_refmap_get (&c->refs, offset >> c->img->cluster_bits) == 1;
  return 0;
}

int
q_check_rebuild (struct q_check *c)
{
  struct rebuild b = {
    .c = c,
    .keep = c->lost || !(c->repair & Q_REPAIR_LEAKS),
    .per_block = q_refblock_entries (c->img),
  };
  int r;

  q_check_line (c, "Rebuilding refcount structure");
  r = find_trusted (&b);
  q_check_drop_refcounts (c);
  if (r == 0)
    r = plan (&b);
  if (r == 0) {
    r = write_structures (&b);
    if (r < 0 && !c->img->file->is_device)
      q_file_truncate (c->img->file, c->file_size); /* best effort: what is there harms nobody */
  }
  if (r == 0)
    r = switch_over (&b);
  if (r == 0) {
    uint64_t end = (b.start + b.n_blocks + b.n_table) << c->img->cluster_bits;

    if (!c->img->file->is_device)
      c->file_size = end; /* what is there is part of the image from now on */
    if (atomic_load (&c->img->highest) < end)
      atomic_store (&c->img->highest, end);
  }
  free (b.table);
  free (b.trusted);
  return r;
}
