/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Refcounts (specification: "Host cluster management"): the refcount table, its blocks, and counts
 * of every width.  Everything here is called with alloc_lock held (or before the image is shared).
 *
 * Invariant 1. Counts before references: a count in memory is raised before anything that refers to
 * the cluster is published, and lowered only after the last reference has left the disk; flush.c
 * writes in the same order.
 *
 * A new refcount block describes itself: it lies in the range that it covers.  A table that is full
 * is replaced by a larger one, placed in the first range that the old one could not describe; the
 * header points to it once it is durable.
 */

#include <errno.h>
#include <stdlib.h>

#include "image.h"

#define ull(v) ((unsigned long long)(v))

/* ---- counts in a block, 1 to 64 bits wide --------------------------------------------------- */

uint64_t
q_refblock_read (const uint8_t *mem, unsigned order, uint64_t index)
{
  switch (order) {
  case 0:
  case 1:
  case 2: {
    unsigned bits = 1u << order;
    uint64_t bit = index << order;

    return (mem[bit >> 3] >> (bit & 7)) & ((1u << bits) - 1);
  }
  case 3:
    return mem[index];
  case 4:
    return get16 (((const be16 *)mem)[index]);
  case 5:
    return get32 (((const be32 *)mem)[index]);
  default:
    return get64 (((const be64 *)mem)[index]);
  }
}

void
q_refblock_write (uint8_t *mem, unsigned order, uint64_t index, uint64_t count)
{
  switch (order) {
  case 0:
  case 1:
  case 2: {
    unsigned bits = 1u << order;
    uint64_t bit = index << order;
    uint8_t mask = (uint8_t)(((1u << bits) - 1) << (bit & 7));

    mem[bit >> 3] = (uint8_t)((mem[bit >> 3] & ~mask) | ((count << (bit & 7)) & mask));
    break;
  }
  case 3:
    mem[index] = (uint8_t)count;
    break;
  case 4:
    ((be16 *)mem)[index] = put16 ((uint16_t)count);
    break;
  case 5:
    ((be32 *)mem)[index] = put32 ((uint32_t)count);
    break;
  default:
    ((be64 *)mem)[index] = put64 (count);
  }
}

uint64_t
q_refblock_entries (const struct q_image *img)
{
  return q_cluster_bytes (img) * 8 >> img->refcount_order;
}

uint64_t
q_refcount_max (const struct q_image *img)
{
  return img->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << img->refcount_order)) - 1;
}

/* ---- open and close ------------------------------------------------------------------------- */

int
q_refcount_open (struct q_image *img, struct q_error *err)
{
  uint32_t bytes = img->reftable_clusters << img->cluster_bits;
  int r;

  img->reftable_entries = bytes / 8;
  img->reftable = q_table_new (img, Q_TABLE_REFTABLE, 0, img->reftable_offset, bytes);
  img->refblock = calloc (img->reftable_entries, sizeof *img->refblock);
  if (!img->reftable || !img->refblock)
    return q_fail (err, -ENOMEM, "%s: out of memory for the refcount table", img->filename);
  r = q_file_pread (img->file, img->reftable->mem, bytes, img->reftable_offset);
  if (r < 0)
    return q_fail (err, r, "%s: cannot read the refcount table: %s", img->filename, strerror (-r));
  for (uint32_t i = 0; i < img->reftable_entries; ++i) {
    uint64_t e = q_entry_get (img->reftable, i);

    if ((e & (q_cluster_bytes (img) - 1)) != 0 || e >= Q_MAX_HOST_OFFSET)
      return q_fail (err, -EINVAL,
                     "%s: refcount table entry %u is %#llx, not the offset of a cluster",
                     img->filename, i, ull (e));
  }
  q_table_switch (img->reftable);
  return 0;
}

void
q_refcount_free_old (struct q_image *img)
{
  struct q_table *t;

  q_alloc_lock (img);
  while ((t = img->old_reftables) != NULL) {
    img->old_reftables = t->dirty_next;
    q_table_free (t);
  }
  q_alloc_unlock (img);
}

void
q_refcount_close (struct q_image *img)
{
  q_refcount_free_old (img);
  for (uint32_t i = 0; img->refblock && i < img->reftable_entries; ++i)
    q_table_free (img->refblock[i]);
  free (img->refblock);
  q_table_free (img->reftable);
  img->refblock = NULL;
  img->reftable = NULL;
}

/* ---- the cache of blocks -------------------------------------------------------------------- */

static void
cache_insert (struct q_image *img, struct q_table *t)
{
  struct q_table_cache *c = &img->refblock_cache;

  /* Everything is under one lock here, so a victim can be freed at once. */
  for (uint64_t tries = 2 * c->tables; c->bytes >= c->max_bytes && c->hand && tries > 0; --tries) {
    struct q_table *v = c->hand;

    c->hand = v->next;
    if (atomic_exchange (&v->referenced, false) || q_table_is_dirty (v) ||
        atomic_load (&v->users) > 0)
      continue;
    q_cache_remove (c, v);
    img->refblock[v->index] = NULL;
    q_table_free (v);
  }
  q_cache_insert (c, t);
  img->refblock[t->index] = t;
}

/* The block with refcount table index INDEX; *T is NULL if there is none. */
static int
get_block (struct q_image *img, uint64_t index, unsigned flags, struct q_table **t)
{
  uint64_t host;
  int r;

  *t = NULL;
  if (index >= img->reftable_entries)
    return 0;
  *t = img->refblock[index];
  if (*t) {
    ++img->refblock_hits;
    atomic_store_explicit (&(*t)->referenced, true, memory_order_relaxed);
    return 0;
  }
  host = q_entry_get (img->reftable, (uint32_t)index);
  if (host == 0)
    return 0;
  if (flags & Q_NOWAIT)
    return -EAGAIN;
  *t = q_table_new (img, Q_TABLE_REFBLOCK, index, host, (uint32_t)q_cluster_bytes (img));
  if (!*t)
    return -ENOMEM;
  r = q_file_contains (img->file, host, (*t)->bytes);
  if (r == 0) {
    q_table_free (*t);
    *t = NULL;
    return q_corrupt (img, "truncated: the refcount block at byte %llu is not in the file",
                      ull (host));
  }
  if (r > 0)
    r = q_file_pread (img->file, (*t)->mem, (*t)->bytes, host);
  if (r < 0) {
    q_table_free (*t);
    *t = NULL;
    q_log (Q_LOG_ERROR, "%s: cannot read the refcount block at byte %llu: %s", img->filename,
           ull (host), strerror (-r));
    return r;
  }
  ++img->refblock_misses;
  cache_insert (img, *t);
  return 0;
}

/* ---- making room for counts ------------------------------------------------------------------ */

static void
set_in_block (struct q_image *img, struct q_table *t, uint64_t index, uint64_t count)
{
  q_refblock_write (t->mem, img->refcount_order, index, count);
  q_table_mark_dirty (t, (uint32_t)((index << img->refcount_order) >> 3), 1);
}

/* A fresh block for table index INDEX at host cluster CLUSTER, entered in the table.  The first
 * LEADING clusters of its range are counted before it is: the block's own cluster may be among
 * them, and this process may be killed at any instant. */
static struct q_table *
new_block (struct q_image *img, uint64_t index, uint64_t cluster, uint64_t leading)
{
  struct q_table *t = q_table_new (img, Q_TABLE_REFBLOCK, index, cluster << img->cluster_bits,
                                   (uint32_t)q_cluster_bytes (img));

  if (!t)
    return NULL;
  t->fresh = t->host;
  for (uint64_t i = 0; i < q_min (leading, q_refblock_entries (img)); ++i)
    q_refblock_write (t->mem, img->refcount_order, i, 1);
  cache_insert (img, t);
  q_table_mark_dirty (t, 0, t->bytes);
  q_entry_set (img->reftable, (uint32_t)index, t->host);
  q_table_mark_dirty (img->reftable, (uint32_t)index * 8, 8);
  return t;
}

/* Replaces the table by one that has room for index INDEX.  The new blocks and the new table
 * take the first clusters past everything that the old table could describe. */
static int
grow_table (struct q_image *img, uint64_t index)
{
  uint64_t per_block = q_refblock_entries (img);
  uint64_t first = img->reftable_entries * per_block; /* cluster */
  uint64_t old_bytes = img->reftable->bytes, blocks = 1, entries, table_clusters, i;
  struct q_table *old = img->reftable, *t;
  struct q_table **refblock;
  int r;

  do { /* the blocks must cover themselves and the table, the table the blocks */
    entries = img->reftable_entries + blocks;
    if (entries <= index)
      entries = index + 1;
    /* With room to spare, so that the next time is far away, as far as the limit goes. */
    if (entries * 8 <= Q_MAX_REFTABLE_BYTES)
      entries = q_min (entries + entries / 2, Q_MAX_REFTABLE_BYTES / 8);
    table_clusters = q_div_up (entries * 8, q_cluster_bytes (img));
    if (blocks + table_clusters <= blocks * per_block)
      break;
    blocks = q_div_up (blocks + table_clusters, per_block);
  } while (true);
  entries = table_clusters << img->cluster_bits >> 3;
  if (entries * 8 > Q_MAX_REFTABLE_BYTES ||
      first + blocks + table_clusters > Q_MAX_HOST_OFFSET >> img->cluster_bits) {
    q_log (Q_LOG_ERROR, "%s: the refcount table cannot grow past %u bytes: the image is full",
           img->filename, Q_MAX_REFTABLE_BYTES);
    return -ENOSPC;
  }

  if (q_alloc_is_fixed_metadata (img, first, blocks + table_clusters))
    return q_corrupt (img, "the refcount table does not cover all of the image's metadata");
  r = q_alloc_reserve_space (img, first, blocks + table_clusters);
  if (r < 0)
    return r;
  r = q_limbo_reserve (&img->limbo, 1);
  if (r < 0)
    return r;
  t = q_table_new (img, Q_TABLE_REFTABLE, 0, (first + blocks) << img->cluster_bits,
                   (uint32_t)(entries * 8));
  refblock = calloc (entries, sizeof *refblock);
  if (!t || !refblock)
    goto nomem;
  memcpy (t->mem, old->mem, old_bytes);
  memcpy (refblock, img->refblock, img->reftable_entries * sizeof *refblock);
  t->fresh = t->host;

  /* From here on the new table is the table; on failure half way, what it already says is true
   * and the rest is simply not there. */
  free (img->refblock);
  img->refblock = refblock;
  img->reftable = t;
  {
    uint64_t old_index = img->reftable_entries;

    img->reftable_entries = (uint32_t)entries;
    for (i = 0; i < blocks; ++i) {
      uint64_t left = blocks + table_clusters - i * per_block;
      struct q_table *b = new_block (img, old_index + i, first + i,
                                     i * per_block < blocks + table_clusters ? left : 0);

      if (!b) {
        /* Without its block the table's own clusters have no counts: take it all back. */
        for (uint64_t j = 0; j < i; ++j)
          q_entry_set (t, (uint32_t)(old_index + j), 0);
        r = -ENOMEM;
        break;
      }
    }
  }
  if (r < 0)
    return q_stick (img, r, "growing the refcount table");

  /* The old table leaves the disk when the header points to the new one. */
  q_limbo_add (&img->limbo, old->host >> img->cluster_bits, old_bytes >> img->cluster_bits);
  q_alloc_raise (img, first, blocks + table_clusters);
  img->reftable_moved = true;
  img->reftable_offset = t->host;
  img->reftable_clusters = (uint32_t)table_clusters;
  q_table_mark_dirty (t, 0, t->bytes);
  q_table_switch (t);
  /* A flush may be writing from it. */
  if (atomic_load (&old->users) == 0)
    q_table_free (old);
  else {
    old->dirty_next = img->old_reftables;
    img->old_reftables = old;
  }
  return 0;

nomem:
  q_table_free (t);
  free (refblock);
  q_limbo_cancel (&img->limbo, 1);
  return -ENOMEM;
}

/* The block for table index INDEX, made if there is none. */
static int
get_or_make_block (struct q_image *img, uint64_t index, unsigned flags, struct q_table **t)
{
  uint64_t cluster = index * q_refblock_entries (img);
  int r;

  r = get_block (img, index, flags, t);
  if (r < 0 || *t)
    return r;
  if (flags & Q_NOWAIT)
    return -EAGAIN;
  if (cluster >= Q_MAX_HOST_OFFSET >> img->cluster_bits)
    return -ENOSPC;
  if (index >= img->reftable_entries) {
    r = grow_table (img, index);
    if (r < 0)
      return r;
    r = get_block (img, index, flags, t); /* the growth may have made it */
    if (r < 0 || *t)
      return r;
  }
  /* No block: every cluster of its range is free, the first one too. */
  if (q_alloc_is_fixed_metadata (img, cluster, 1))
    return q_corrupt (img, "refcount table entry %llu is 0 although its range holds metadata",
                      ull (index));
  r = q_alloc_reserve_space (img, cluster, 1);
  if (r < 0)
    return r;
  *t = new_block (img, index, cluster, 1);
  if (!*t)
    return -ENOMEM;
  q_alloc_raise (img, cluster, 1);
  return 0;
}

/* ---- counts --------------------------------------------------------------------------------- */

int
q_refcount_get (struct q_image *img, uint64_t cluster, unsigned flags, uint64_t *count)
{
  uint64_t per_block = q_refblock_entries (img);
  struct q_table *t;
  int r = get_block (img, cluster / per_block, flags, &t);

  if (r == 0)
    *count = t ? q_refblock_read (t->mem, img->refcount_order, cluster % per_block) : 0;
  return r;
}

int
q_refcount_set (struct q_image *img, uint64_t cluster, unsigned flags, uint64_t count)
{
  uint64_t per_block = q_refblock_entries (img);
  struct q_table *t;
  int r;

  if (count > q_refcount_max (img))
    return -ERANGE;
  r = get_or_make_block (img, cluster / per_block, flags, &t);
  if (r == 0)
    set_in_block (img, t, cluster % per_block, count);
  if (r == 0 && count == 0)
    q_pack_forget (img, cluster, 1);
  return r;
}

int
q_refcount_find_free (struct q_image *img, uint64_t from, uint64_t max, unsigned flags,
                      uint64_t *cluster, uint64_t *count)
{
  uint64_t per_block = q_refblock_entries (img), c = from, n = 0;

  while (n < max) {
    uint64_t index = c / per_block, i = c % per_block;
    struct q_table *t;
    int r;

    if (n > 0 && i == 0)
      break; /* a run stays inside one block: the next block may have to be made, in this range */
    r = get_or_make_block (img, index, flags, &t);
    if (r < 0)
      return r;
    for (; i < per_block && n < max; ++i, ++c) {
      if (q_refblock_read (t->mem, img->refcount_order, i) == 0) {
        if (n++ == 0)
          *cluster = c;
      } else if (n > 0) {
        *count = n;
        return 0;
      }
    }
  }
  *count = n;
  return 0;
}

/* The first COUNT clusters of a range that no block describes yet, after the blocks that this
 * takes: for tables that are longer than the range of one block. */
static int
take_fresh_range (struct q_image *img, uint64_t count, uint64_t *cluster)
{
  uint64_t per_block = q_refblock_entries (img), blocks = q_div_up (count, per_block - 1), index, i;
  int r = 0;

  index = q_div_up (q_highest_offset (img) >> img->cluster_bits, per_block);
  while (index < img->reftable_entries && q_entry_get (img->reftable, (uint32_t)index) != 0)
    ++index;
  if ((index + blocks) * per_block > Q_MAX_HOST_OFFSET >> img->cluster_bits)
    return -ENOSPC;
  if (index + blocks > img->reftable_entries) {
    /* The growth takes the start of the first range past the table: begin behind that. */
    r = grow_table (img, index + 2 * blocks + 1);
    if (r < 0)
      return r;
    return take_fresh_range (img, count, cluster);
  }
  for (i = 0; i < blocks; ++i)
    if (q_entry_get (img->reftable, (uint32_t)(index + i)) != 0)
      return -ENOSPC; /* refcount structures scattered over empty space: not a layout to grow in */
  *cluster = index * per_block + blocks;
  r = q_alloc_reserve_space (img, index * per_block, blocks + count);
  for (i = 0; r == 0 && i < blocks; ++i)
    if (!new_block (img, index + i, index * per_block + i, blocks + count - i * per_block))
      r = q_stick (img, -ENOMEM, "making refcount blocks");
  if (r == 0)
    q_alloc_raise (img, index * per_block, blocks + count);
  return r;
}

int
q_refcount_take_run (struct q_image *img, uint64_t count, uint64_t *cluster)
{
  uint64_t n = 0, from = img->free_hint, i;
  int r;

  if (count >= q_refblock_entries (img))
    return take_fresh_range (img, count, cluster);
  do {
    r = q_refcount_find_free (img, from, count, 0, cluster, &n);
    if (r < 0)
      return r;
    from = *cluster + n;
  } while (n < count);
  if (q_alloc_is_fixed_metadata (img, *cluster, count))
    return q_corrupt (img, "host cluster %llu has refcount 0 although it holds metadata",
                      ull (*cluster));
  r = q_alloc_reserve_space (img, *cluster, count);
  for (i = 0; r == 0 && i < count; ++i)
    r = q_refcount_set (img, *cluster + i, 0, 1);
  if (r == 0)
    q_alloc_raise (img, *cluster, count);
  return r;
}

int
q_refcount_top (struct q_image *img, uint64_t floor, uint64_t ceiling, uint64_t *top)
{
  uint64_t per_block = q_refblock_entries (img);
  uint64_t end = q_min (img->reftable_entries, q_div_up (ceiling, per_block));

  for (uint64_t index = end; index-- > floor / per_block;) {
    struct q_table *t;
    int r = get_block (img, index, 0, &t);

    if (r < 0)
      return r;
    for (uint64_t i = t ? per_block : 0; i-- > 0;)
      if (index * per_block + i >= floor && index * per_block + i < ceiling &&
          q_refblock_read (t->mem, img->refcount_order, i) != 0) {
        *top = index * per_block + i + 1;
        return 0;
      }
  }
  *top = floor;
  return 0;
}
