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

struct rebuild {
  struct q_check *c;
  bool keep; /* what has a refcount but no reference keeps its refcount */
  uint64_t per_block;
  uint64_t start; /* cluster: the blocks, then the table */
  uint64_t n_blocks, n_table;
  uint64_t entries; /* of the table that are used */
  uint64_t *table;  /* host byte order; 0: no block needed */
};

/* Makes the new block INDEX in c->table.  True if any count in it is not 0. */
static int
make_block (struct rebuild *b, uint64_t index)
{
  struct q_check *c = b->c;
  const unsigned order = c->img->refcount_order;
  const uint64_t end = b->start + b->n_blocks + b->n_table;
  bool any = false;
  int r = b->keep ? q_check_read_refblock (c, index) : 0;

  if (r == -ENOMEM)
    return r;
  if (r <= 0)
    memset (c->table, 0, q_cluster_bytes (c->img));
  for (uint64_t i = 0; i < b->per_block; i++) {
    uint64_t cluster = index * b->per_block + i;
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

/* Finds where everything goes.  New structures may need blocks for themselves: a fixed point. */
static int
plan (struct rebuild *b)
{
  struct q_check *c = b->c;
  const struct q_image *img = c->img;
  const uint64_t max_entries = Q_MAX_REFTABLE_BYTES / 8;
  uint64_t old = q_div_up (c->refs.clusters, b->per_block), used = 0, last = 0, base;

  if (b->keep && c->reftable_entries > old)
    old = c->reftable_entries;
  b->start = q_div_up (c->file_size, q_cluster_bytes (img));
  if (c->highest > b->start || c->img->file->is_device)
    b->start = c->highest;
  if (old > max_entries)
    goto too_large;
  b->table = calloc (max_entries, sizeof *b->table);
  if (!b->table)
    return -ENOMEM;
  for (uint64_t i = 0; i < old; i++) {
    int r = make_block (b, i);

    if (r < 0)
      return r;
    if (r > 0) {
      b->table[i] = 1;
      used++;
      last = i;
    }
  }

  base = b->start / b->per_block;
  do {
    uint64_t end = b->start + b->n_blocks + b->n_table;
    uint64_t top = end > b->start ? (end - 1) / b->per_block : base;

    b->n_blocks = used;
    for (uint64_t i = base; i <= top; i++)
      if (i >= max_entries)
        goto too_large;
      else if (b->table[i] != 1)
        b->n_blocks++;
    b->entries = (top > last ? top : last) + 1;
    b->n_table = q_div_up (b->entries * 8, q_cluster_bytes (img));
    if (b->start + b->n_blocks + b->n_table == end)
      break;
  } while (true);

  for (uint64_t i = base; i * b->per_block < b->start + b->n_blocks + b->n_table; i++)
    b->table[i] = 1;
  if (b->n_table << img->cluster_bits > Q_MAX_REFTABLE_BYTES)
    goto too_large;
  if ((b->start + b->n_blocks + b->n_table) << img->cluster_bits > c->file_size &&
      c->img->file->is_device)
    return q_fail (c->err, -ENOSPC,
                   "%s: the device has no room for new refcount structures: %llu bytes are needed "
                   "from offset %llu on, it ends at %llu",
                   img->filename, ull ((b->n_blocks + b->n_table) << img->cluster_bits),
                   ull (b->start << img->cluster_bits), ull (c->file_size));
  return 0;

too_large:
  return q_fail (c->err, -EFBIG,
                 "%s: new refcount structures are not possible: the refcount table would need more "
                 "than %u MiB; convert the image to one with larger clusters",
                 img->filename, Q_MAX_REFTABLE_BYTES >> 20);
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
  q_check_drop_refcounts (c);
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

    if (atomic_load (&c->img->highest) < end)
      atomic_store (&c->img->highest, end);
  }
  free (b.table);
  return r;
}
