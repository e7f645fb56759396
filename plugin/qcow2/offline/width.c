/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changing the width of refcounts (specification: "Host cluster management", refcount_order).
 *
 * A complete set of new refcount structures is put behind everything that the file has:
 *
 *     new blocks | new table
 *
 * which count themselves and no longer count the old ones.  Nothing refers to them until the header
 * does: where the table is and how wide its counts are change in one write.  A crash before that
 * leaves the old structures in force, and beyond their end a few clusters of no meaning.
 */

#include <errno.h>
#include <stdlib.h>

#include "amend.h"
#include "rewrite.h"

#define ull(v) ((unsigned long long)(v))

struct widening {
  struct q_image *img;
  unsigned order;
  uint64_t per_block;         /* new counts in a block */
  uint64_t start;             /* first cluster of the new structures ... */
  uint64_t n_needed, n_table; /* ... so many blocks, and so many clusters of table */
  uint64_t n_blocks;          /* blocks that the table has entries for */
  uint8_t *needed;            /* by block: some count in it is not 0 */
  uint64_t *old;              /* clusters of the old blocks, in their order in the file */
  uint64_t n_old;
  struct q_error *err;
};

static int
by_number (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return (*x > *y) - (*x < *y);
}

static int
note_old_blocks (struct widening *w)
{
  struct q_image *img = w->img;

  w->old = malloc ((img->reftable_entries + 1) * sizeof *w->old);
  if (!w->old)
    return -ENOMEM;
  for (uint32_t i = 0; i < img->reftable_entries; ++i) {
    uint64_t host = q_entry_get (img->reftable, i);

    if (host)
      w->old[w->n_old++] = host >> img->cluster_bits;
  }
  qsort (w->old, w->n_old, sizeof *w->old, by_number);
  return 0;
}

/* The count that CLUSTER is to have: as it was, but for the structures themselves. */
static int
new_count (const struct widening *w, uint64_t cluster, uint64_t *count)
{
  struct q_image *img = w->img;
  uint64_t table = img->reftable_offset >> img->cluster_bits;
  int r;

  if (cluster >= w->start) {
    *count = cluster < w->start + w->n_needed + w->n_table;
    return 0;
  }
  r = q_refcount_get (img, cluster, 0, count);
  if (r < 0 || *count == 0)
    return r;
  if (cluster >= table && cluster < table + img->reftable_clusters)
    --*count;
  if (bsearch (&cluster, w->old, w->n_old, sizeof cluster, by_number))
    --*count;
  return 0;
}

static int
overflow (const struct widening *w, uint64_t cluster, uint64_t count)
{
  return q_fail (w->err, -ERANGE,
                 "%s: cannot make refcounts %u bits wide: the cluster at offset %#llx has a "
                 "refcount of %llu",
                 w->img->filename, 1u << w->order, ull (cluster << w->img->cluster_bits),
                 ull (count));
}

/* Marks the new blocks that any old count needs, and sees to it that all counts fit. */
static int
survey (struct widening *w)
{
  struct q_image *img = w->img;
  const uint64_t per_old = q_refblock_entries (img);
  const uint64_t max = w->order == 6 ? UINT64_MAX : (1ull << (1u << w->order)) - 1;

  for (uint64_t block = 0; block < img->reftable_entries; ++block) {
    if (q_entry_get (img->reftable, (uint32_t)block) == 0)
      continue;
    for (uint64_t c = block * per_old; c < (block + 1) * per_old && c < w->start; ++c) {
      uint64_t count;
      int r = new_count (w, c, &count);

      if (r < 0)
        return r;
      if (count > max)
        return overflow (w, c, count);
      if (count > 0)
        w->needed[c / w->per_block] = 1;
    }
  }
  return 0;
}

static uint64_t
count_needed (const struct widening *w)
{
  uint64_t n = 0;

  for (uint64_t i = 0; i < w->n_blocks; ++i)
    n += w->needed[i];
  return n;
}

/* How many blocks and clusters of table there will be: they count themselves. */
static int
lay_out (struct widening *w)
{
  const uint64_t most = Q_MAX_REFTABLE_BYTES / 8;
  struct q_image *img = w->img;
  uint64_t before;

  do {
    uint64_t end;

    before = w->n_needed + w->n_table;
    end = w->start + before;
    if (q_div_up (end, w->per_block) > most || end > Q_MAX_HOST_OFFSET >> img->cluster_bits)
      return q_fail (w->err, -EFBIG,
                     "%s: refcounts of %u bits for a file of %llu bytes need a refcount table of "
                     "more than %u bytes",
                     img->filename, 1u << w->order, ull (end << img->cluster_bits),
                     Q_MAX_REFTABLE_BYTES);
    for (uint64_t c = w->start; c < end; c = (c / w->per_block + 1) * w->per_block)
      w->needed[c / w->per_block] = 1;
    w->n_blocks = q_div_up (end, w->per_block);
    w->n_needed = count_needed (w);
    w->n_table = q_div_up (8 * w->n_blocks, q_cluster_bytes (img));
  } while (w->n_needed + w->n_table != before);
  return 0;
}

static int
write_cluster (struct widening *w, uint64_t cluster, const void *bytes)
{
  return q_file_pwrite (w->img->file, bytes, q_cluster_bytes (w->img),
                        cluster << w->img->cluster_bits);
}

static int
write_block (struct widening *w, uint64_t block, uint64_t cluster, uint8_t *bytes)
{
  uint64_t first = block * w->per_block;

  memset (bytes, 0, q_cluster_bytes (w->img));
  for (uint64_t i = 0; i < w->per_block; ++i) {
    uint64_t count;
    int r = new_count (w, first + i, &count);

    if (r < 0)
      return r;
    if (count > 0)
      q_refblock_write (bytes, w->order, i, count);
  }
  return write_cluster (w, cluster, bytes);
}

static int
write_all (struct widening *w, const struct q_amend_progress *progress)
{
  const uint64_t per_cluster = q_cluster_bytes (w->img) / 8;
  uint8_t *bytes = malloc (q_cluster_bytes (w->img));
  uint64_t next = w->start, table = w->start + w->n_needed, at = w->start;
  int r = bytes ? 0 : -ENOMEM;

  for (uint64_t i = 0; r == 0 && i < w->n_blocks; ++i)
    if (w->needed[i]) {
      r = write_block (w, i, next++, bytes);
      q_amend_report (progress, (double)i / (double)w->n_blocks);
    }
  for (uint64_t i = 0; r == 0 && i < w->n_table; ++i) {
    for (uint64_t k = 0; k < per_cluster; ++k) {
      uint64_t block = i * per_cluster + k;
      bool here = block < w->n_blocks && w->needed[block];
      be64 entry = put64 (here ? at++ << w->img->cluster_bits : 0);

      memcpy (bytes + 8 * k, &entry, sizeof entry);
    }
    r = write_cluster (w, table + i, bytes);
  }
  free (bytes);
  return r == 0 ? q_file_sync (w->img->file) : r;
}

/* Points the header to them, and reads them. */
static int
switch_over (struct widening *w)
{
  struct q_image *img = w->img;
  struct q_draft d;
  int r = q_draft_init (&d, img);

  if (r < 0)
    return r;
  d.refcount_order = w->order;
  d.reftable_offset = (w->start + w->n_needed) << img->cluster_bits;
  d.reftable_clusters = (uint32_t)w->n_table;
  r = q_header_rewrite (img, &d, w->err);
  q_draft_free (&d);
  if (r < 0)
    return r;
  q_refcount_close (img);
  img->refblock_cache.hand = NULL;
  img->refblock_cache.tables = img->refblock_cache.bytes = 0;
  img->free_hint = 0;
  r = q_refcount_open (img, w->err);
  if (r < 0)
    return q_stick (img, r, "reading the new refcount table failed");
  q_alloc_lock (img);
  q_alloc_raise (img, w->start, w->n_needed + w->n_table);
  q_alloc_unlock (img);
  return 0;
}

static int
change (struct widening *w, const struct q_amend_progress *progress)
{
  struct q_image *img = w->img;
  uint64_t size = 0;
  int r = img->file->is_device ? 0 : q_file_size (img->file, &size);

  /* Nothing is dirty: what is written must not need a refcount of the old width. */
  assert (atomic_load (&img->dirty_tables) == 0);
  if (r < 0)
    return r;
  w->start = q_div_up (size, q_cluster_bytes (img));
  if (w->start < q_highest_offset (img) >> img->cluster_bits)
    w->start = q_highest_offset (img) >> img->cluster_bits;
  w->needed = calloc (Q_MAX_REFTABLE_BYTES / 8, 1);
  if (!w->needed)
    return -ENOMEM;
  r = note_old_blocks (w);
  if (r == 0 && q_div_up (w->start, w->per_block) <= Q_MAX_REFTABLE_BYTES / 8)
    r = survey (w);
  if (r == 0)
    r = lay_out (w);
  if (r == 0)
    r = q_alloc_reserve_space (img, w->start, w->n_needed + w->n_table);
  if (r == 0)
    r = write_all (w, progress);
  return r == 0 ? switch_over (w) : r;
}

int
q_refcount_change_width (struct q_image *img, unsigned order,
                         const struct q_amend_progress *progress, struct q_error *err)
{
  struct widening w = {
    .img = img, .order = order, .per_block = q_cluster_bytes (img) * 8 >> order, .err = err
  };
  int r = change (&w, progress);

  free (w.needed);
  free (w.old);
  return r < 0 ? q_fail (err, r, "%s: changing the width of refcounts: %s", img->filename,
                         strerror (-r))
               : 0;
}
