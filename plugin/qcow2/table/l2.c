/* SPDX-License-Identifier: BSD-3-Clause
 *
 * L2 tables in memory: found without a lock, read and made under one, evicted by a clock.
 *
 * A reader goes L1 index -> table pointer -> entry, three loads.  The pointer is published before
 * the L1 entry that makes the table exist, so that whoever sees an entry without a pointer has only
 * to ask again under the stripe lock.
 *
 * Evicting needs the table's stripe lock, sees that nobody changes it (users) and nothing of it is
 * dirty, unpublishes the pointer, and leaves the memory to grace.c: readers may still be inside
 * (invariant 5).
 */

#include <errno.h>
#include <stdlib.h>

#include "runs.h"
#include "tree.h"

#define ull(v) ((unsigned long long)(v))

static pthread_mutex_t *
stripe (struct q_image *img, uint64_t index)
{
  return &img->stripe[index % Q_TABLE_STRIPES];
}

/* ---- the L1 table --------------------------------------------------------------------------- */

static void
l1_free (struct q_l1 *l1)
{
  if (!l1)
    return;
  for (uint32_t i = 0; i < l1->entries; ++i)
    q_table_free (atomic_load_explicit (&l1->l2[i], memory_order_relaxed));
  q_table_free (l1->table);
  free (l1);
}

int
q_l2_open (struct q_image *img, struct q_error *err)
{
  struct q_l1 *l1 = calloc (1, sizeof *l1 + img->l1_size * sizeof (l1->l2[0]));
  int r;

  if (l1)
    l1->table =
        q_table_new (img, Q_TABLE_L1, 0, img->l1_offset, img->l1_size ? img->l1_size * 8 : 8);
  if (!l1 || !l1->table) {
    free (l1);
    return q_fail (err, -ENOMEM, "%s: out of memory for an L1 table of %u entries", img->filename,
                   img->l1_size);
  }
  l1->entries = img->l1_size;
  atomic_store (&img->l1, l1);
  r = q_file_pread (img->file, l1->table->mem, img->l1_size * 8ull, img->l1_offset);
  if (r < 0)
    return q_fail (err, r, "%s: cannot read the L1 table: %s", img->filename, strerror (-r));
  for (uint32_t i = 0; i < l1->entries; ++i) {
    uint64_t e = q_entry_get (l1->table, i), host = e & Q_OFFSET_MASK;

    if ((e & Q_L1_RESERVED) || (host & (q_cluster_bytes (img) - 1)))
      return q_fail (err, -EINVAL, "%s: L1 entry %u is %#llx: %s; run nbdcow-img check",
                     img->filename, i, ull (e),
                     e & Q_L1_RESERVED ? "reserved bits are set"
                                       : "its offset is not aligned to a cluster");
  }
  return 0;
}

void
q_l2_close (struct q_image *img)
{
  l1_free (atomic_load (&img->l1));
  atomic_store (&img->l1, NULL);
}

/* ---- the cache ------------------------------------------------------------------------------ */

/* Unpublishes T if nobody changes it; the cache lock is held, so only try for the stripe. */
static bool
unpublish (struct q_table *t)
{
  struct q_image *img = t->img; /* any layer of the chain */
  bool done = false;

  if (pthread_mutex_trylock (stripe (img, t->index)) != 0)
    return false;
  if (atomic_load (&t->users) == 0 && !q_table_is_dirty (t)) {
    atomic_store (&atomic_load (&img->l1)->l2[t->index], NULL);
    done = true;
  }
  pthread_mutex_unlock (stripe (img, t->index));
  return done;
}

/* Adds T, evicting what makes room.  The caller holds T's stripe. */
static void
cache_insert (struct q_image *img, struct q_table *t)
{
  struct q_table_cache *c = img->l2_cache;
  struct q_table *evicted = NULL, *v;

  pthread_mutex_lock (&c->lock);
  for (uint64_t tries = 2 * c->tables; c->bytes >= c->max_bytes && c->hand && tries > 0; --tries) {
    v = c->hand;
    c->hand = v->next;
    if (atomic_exchange_explicit (&v->referenced, false, memory_order_relaxed) || !unpublish (v))
      continue;
    q_cache_remove (c, v);
    v->next = evicted;
    evicted = v;
  }
  q_cache_insert (c, t);
  pthread_mutex_unlock (&c->lock);

  while ((v = evicted) != NULL) {
    evicted = v->next;
    Q_PROBE ("L2 table evicted, not retired");
    q_table_retired (v);
    q_grace_retire (v, q_table_free);
  }
}

static void
publish (struct q_l1 *l1, struct q_table *t)
{
  cache_insert (t->img, t);
  atomic_store (&l1->l2[t->index], t);
}

/* Reads the table at byte HOST of the file. */
static int
read_table (struct q_image *img, uint64_t host, void *mem)
{
  uint64_t bytes = q_cluster_bytes (img);
  int r = q_file_contains (img->file, host, bytes);

  if (r == 0)
    return q_corrupt (img, "truncated: the L2 table at byte %llu is not in the file", ull (host));
  if (r > 0)
    r = q_file_pread (img->file, mem, bytes, host);
  if (r < 0)
    q_log (Q_LOG_ERROR, "%s: cannot read the L2 table at byte %llu: %s", img->filename, ull (host),
           strerror (-r));
  return r;
}

/* What a table that is only going to be read is kept as. */
static struct q_table *
pack_or_copy (struct q_image *img, uint64_t index, uint64_t host, const void *mem)
{
  struct q_table *t = q_runs_pack (img, index, host, mem);

  if (!t) {
    t = q_table_new (img, Q_TABLE_L2, index, host, (uint32_t)q_cluster_bytes (img));
    if (t)
      memcpy (t->mem, mem, t->bytes);
  }
  return t;
}

/* Reads the table that L1 entry ENTRY points to, and publishes it.  Stripe held.  WHOLE: it is
 * going to be changed. */
static int
load (struct q_image *img, struct q_l1 *l1, uint64_t index, uint64_t entry, bool whole,
      struct q_table **t)
{
  uint64_t host = entry & Q_OFFSET_MASK;
  void *mem = NULL;
  int r;

  *t = NULL;
  if (whole || (img->incompatible & Q_INCOMPAT_EXTL2)) {
    *t = q_table_new (img, Q_TABLE_L2, index, host, (uint32_t)q_cluster_bytes (img));
    r = *t ? read_table (img, host, (*t)->mem) : -ENOMEM;
  } else if (posix_memalign (&mem, 4096, q_round_up (q_cluster_bytes (img), 4096)) != 0)
    return -ENOMEM;
  else {
    r = read_table (img, host, mem);
    if (r == 0 && !(*t = pack_or_copy (img, index, host, mem)))
      r = -ENOMEM;
    free (mem);
  }
  Q_PROBE ("L2 table read, not published");
  if (r < 0) {
    q_table_free (*t);
    *t = NULL;
    return r;
  }
  atomic_fetch_add_explicit (&img->l2_misses, 1, memory_order_relaxed);
  publish (l1, *t);
  return 0;
}

/* Puts the whole table in the place of *T, which is one of runs.  Stripe held. */
static int
make_whole (struct q_image *img, struct q_l1 *l1, struct q_table **t)
{
  struct q_table_cache *c = img->l2_cache;
  struct q_table *runs = *t, *whole = q_runs_unpack (runs);

  if (!whole)
    return -ENOMEM;
  publish (l1, whole);
  *t = whole;
  pthread_mutex_lock (&c->lock);
  q_cache_remove (c, runs);
  pthread_mutex_unlock (&c->lock);
  q_grace_retire (runs, q_table_free);
  return 0;
}

/* The table for INDEX, NULL if there is none, and its L1 entry.  Stripe held: the L1 table is
 * replaced, also by one that says something else, under all stripes.  WHOLE: it is going to be
 * changed. */
static int
find_or_load (struct q_image *img, uint64_t index, bool whole, struct q_table **t, uint64_t *entry)
{
  struct q_l1 *l1 = atomic_load (&img->l1);
  uint64_t e = index < l1->entries ? q_entry_get (l1->table, (uint32_t)index) : 0;

  if (entry)
    *entry = e;
  *t = NULL;
  if (index < l1->entries)
    *t = atomic_load_explicit (&l1->l2[index], memory_order_acquire);
  if (*t)
    return whole && (*t)->runs > 0 ? make_whole (img, l1, t) : 0;
  return (e & Q_OFFSET_MASK) == 0 ? 0 : load (img, l1, index, e, whole, t);
}

int
q_l2_get (struct q_image *img, uint64_t index, unsigned flags, struct q_table **t)
{
  struct q_l1 *l1 = atomic_load_explicit (&img->l1, memory_order_acquire);
  int r = 0;

  if (index >= l1->entries) {
    *t = NULL;
    return 0;
  }
  *t = atomic_load_explicit (&l1->l2[index], memory_order_acquire);
  if (*t) {
    q_tally_hit (&img->tally);
    /* Look before writing: the line stays shared. */
    if (!atomic_load_explicit (&(*t)->referenced, memory_order_relaxed))
      atomic_store_explicit (&(*t)->referenced, true, memory_order_relaxed);
    return 0;
  }
  if ((q_entry_get (l1->table, (uint32_t)index) & Q_OFFSET_MASK) == 0)
    return 0;
  if (flags & Q_NOWAIT)
    return -EAGAIN;
  pthread_mutex_lock (stripe (img, index));
  r = find_or_load (img, index, false, t, NULL);
  pthread_mutex_unlock (stripe (img, index));
  return r;
}

/* ---- for changing --------------------------------------------------------------------------- */

static void
set_l1_entry (struct q_l1 *l1, struct q_table *t)
{
  q_entry_set (l1->table, (uint32_t)t->index, t->host | Q_COPIED);
  q_table_mark_dirty (l1->table, (uint32_t)t->index * 8, 8);
}

/* An empty table for L1 index INDEX.  Stripe held. */
static int
create (struct q_image *img, struct q_l1 *l1, uint64_t index, unsigned flags, struct q_table **t)
{
  uint64_t host;
  int r;

  *t = NULL;
  if (flags & Q_NOWAIT)
    return -EAGAIN;
  q_alloc_lock (img);
  r = q_alloc_metadata (img, flags, &host);
  q_alloc_unlock (img);
  if (r < 0)
    return r;
  *t = q_table_new (img, Q_TABLE_L2, index, host, (uint32_t)q_cluster_bytes (img));
  if (!*t) {
    q_alloc_drop (img, host >> img->cluster_bits, 1);
    return -ENOMEM;
  }
  (*t)->fresh = host;
  q_table_mark_dirty (*t, 0, (*t)->bytes);
  publish (l1, *t);
  set_l1_entry (l1, *t);
  return 0;
}

/* Gives a table that a snapshot shares a cluster of its own.  Stripe held.  Nothing of it can be
 * dirty: a shared table is never changed. */
static int
move (struct q_image *img, struct q_l1 *l1, struct q_table *t, unsigned flags)
{
  uint64_t host;
  int r;

  if (flags & Q_NOWAIT)
    return -EAGAIN;
  assert (!q_table_is_dirty (t));
  q_alloc_lock (img);
  r = q_limbo_reserve (&img->limbo, 1);
  if (r == 0) {
    r = q_alloc_metadata (img, flags, &host);
    if (r < 0)
      q_limbo_cancel (&img->limbo, 1);
  }
  q_alloc_unlock (img);
  if (r < 0)
    return r;
  {
    uint64_t old = t->host >> img->cluster_bits;

    q_table_move (t, host);
    t->fresh = host;
    q_table_mark_dirty (t, 0, t->bytes);
    set_l1_entry (l1, t);
    q_table_moved (t);
    q_alloc_lock (img);
    q_limbo_add (&img->limbo, old, 1);
    q_alloc_unlock (img);
  }
  return 0;
}

int
q_l2_hold (struct q_image *img, uint64_t index, unsigned flags, struct q_table **t)
{
  struct q_l1 *l1;
  uint64_t entry;
  int r = 0;

  if (flags & Q_NOWAIT) {
    if (pthread_mutex_trylock (stripe (img, index)) != 0)
      return -EAGAIN;
  } else
    pthread_mutex_lock (stripe (img, index));
  l1 = atomic_load (&img->l1);
  assert (index < l1->entries);
  *t = atomic_load_explicit (&l1->l2[index], memory_order_acquire);
  entry = q_entry_get (l1->table, (uint32_t)index);
  if (*t)
    q_tally_hit (&img->tally);
  else {
    if ((entry & Q_OFFSET_MASK) == 0)
      r = create (img, l1, index, flags, t);
    else if (flags & Q_NOWAIT)
      r = -EAGAIN;
    else
      r = load (img, l1, index, entry, true, t);
    entry = q_entry_get (l1->table, (uint32_t)index);
  }
  if (r == 0 && (*t)->runs > 0)
    r = flags & Q_NOWAIT ? -EAGAIN : make_whole (img, l1, t);
  if (r == 0)
    r = q_counting_save (img, *t, flags);
  if (r == 0 && !(entry & Q_COPIED))
    r = move (img, l1, *t, flags);
  if (r == 0)
    atomic_fetch_add (&(*t)->users, 1);
  pthread_mutex_unlock (stripe (img, index));
  return r;
}

int
q_l2_keep (struct q_image *img, uint64_t index, struct q_table **t, bool *own)
{
  uint64_t entry;
  int r;

  pthread_mutex_lock (stripe (img, index));
  r = find_or_load (img, index, true, t, &entry);
  if (r == 0 && *t)
    atomic_fetch_add (&(*t)->users, 1);
  *own = entry & Q_COPIED;
  pthread_mutex_unlock (stripe (img, index));
  return r;
}

void
q_l2_release (struct q_table *t)
{
  atomic_fetch_sub (&t->users, 1);
}

void
q_l1_set_copied (struct q_image *img, uint64_t index, bool copied)
{
  struct q_l1 *l1;
  uint64_t old, new;

  pthread_mutex_lock (stripe (img, index));
  l1 = atomic_load (&img->l1);
  old = q_entry_get (l1->table, (uint32_t)index);
  new = copied ? old | Q_COPIED : old & ~Q_COPIED;
  if (new != old) {
    q_entry_set (l1->table, (uint32_t)index, new);
    q_table_mark_dirty (l1->table, (uint32_t)index * 8, 8);
  }
  pthread_mutex_unlock (stripe (img, index));
}

/* ---- replacing ------------------------------------------------------------------------------ */

/* The tables it points to live on below its successor. */
static void
free_replaced_l1 (void *p)
{
  struct q_l1 *l1 = p;

  q_table_free (l1->table);
  free (l1);
}

static void
set_l1_place (struct q_image *img, uint64_t offset, uint32_t entries)
{
  q_alloc_lock (img);
  img->l1_offset = offset;
  img->l1_size = entries;
  q_alloc_unlock (img);
}

/* Puts a longer copy of the L1 table on disk and points the header to it.  All stripes are held and
 * nothing is dirty: disk and memory are alike.  A full disk changes nothing. */
static int
replace_l1 (struct q_image *img, const struct q_l1 *old, struct q_l1 *new, uint64_t host)
{
  uint64_t old_offset = img->l1_offset, old_bytes = old->entries * 8ull;
  bool full;
  int r;

  for (uint32_t i = 0; i < old->entries; ++i) {
    q_entry_set (new->table, i, q_entry_get (old->table, i));
    atomic_store (&new->l2[i], atomic_load (&old->l2[i]));
  }
  q_alloc_lock (img);
  r = q_limbo_reserve (&img->limbo, 1);
  q_alloc_unlock (img);
  if (r < 0)
    return r;
  r = q_file_pwrite (img->file, new->table->mem, new->table->bytes, host);
  full = r == -ENOSPC;
  if (r == 0)
    r = q_file_sync (img->file);
  if (r < 0 && !full)
    q_stick (img, r, "writing the new L1 table failed");
  if (r < 0)
    goto fail;

  set_l1_place (img, host, new->entries);
  r = q_header_write_l1 (img); /* in one sector: all of it or nothing */
  full = r == -ENOSPC;
  if (r == 0)
    r = q_file_sync (img->file);
  if (full)
    set_l1_place (img, old_offset, old->entries);
  else if (r < 0)
    q_stick (img, r, "pointing the header to the new L1 table failed");
  if (r < 0)
    goto fail;
  atomic_store (&img->l1, new);
  q_alloc_lock (img);
  if (old_bytes > 0)
    q_limbo_add (&img->limbo, old_offset >> img->cluster_bits,
                 q_div_up (old_bytes, q_cluster_bytes (img)));
  else
    q_limbo_cancel (&img->limbo, 1);
  q_alloc_unlock (img);
  return 0;

fail:
  q_alloc_lock (img);
  q_limbo_cancel (&img->limbo, 1);
  q_alloc_unlock (img);
  return r;
}

int
q_l1_grow (struct q_image *img, uint32_t entries)
{
  struct q_l1 *old = atomic_load (&img->l1), *new;
  uint64_t clusters, cluster;
  int r;

  if (entries <= old->entries)
    return 0;
  if (entries > Q_MAX_L1_BYTES / 8)
    return -EFBIG;
  q_grace_advance (); /* tables that earlier growth replaced */
  clusters = q_div_up (entries * 8ull, q_cluster_bytes (img));
  new = calloc (1, sizeof *new + entries * sizeof (new->l2[0]));
  if (!new)
    return -ENOMEM;
  new->entries = entries;

  for (int i = 0; i < Q_TABLE_STRIPES; ++i)
    pthread_mutex_lock (&img->stripe[i]);
  q_alloc_lock (img);
  r = q_refcount_take_run (img, clusters, &cluster);
  q_alloc_unlock (img);
  if (r == 0) {
    new->table = q_table_new (img, Q_TABLE_L1, 0, cluster << img->cluster_bits, entries * 8);
    r = new->table ? q_flush_round (img) : -ENOMEM; /* the counts, and all else that is dirty */
    if (r == 0)
      r = replace_l1 (img, old, new, cluster << img->cluster_bits);
    if (r < 0)
      q_alloc_drop (img, cluster, clusters);
  }
  for (int i = Q_TABLE_STRIPES; i-- > 0;)
    pthread_mutex_unlock (&img->stripe[i]);
  if (r == 0) {
    q_table_retired (old->table);
    q_grace_retire (old, free_replaced_l1);
  } else
    free_replaced_l1 (new);
  return r;
}

int
q_l1_new (struct q_image *img, const uint64_t *entry, uint32_t entries, uint64_t host,
          struct q_l1 **l1)
{
  struct q_l1 *new = calloc (1, sizeof *new + entries * sizeof (new->l2[0]));

  *l1 = NULL;
  if (!new)
    return -ENOMEM;
  new->entries = entries;
  new->table = q_table_new (img, Q_TABLE_L1, 0, host, entries * 8);
  if (!new->table) {
    free (new);
    return -ENOMEM;
  }
  for (uint32_t i = 0; i < entries; ++i)
    q_entry_set (new->table, i, entry[i]);
  *l1 = new;
  return 0;
}

void
q_l1_free (struct q_l1 *l1)
{
  if (l1)
    free_replaced_l1 (l1);
}

/* The tables below an L1 table that nobody finds any more.  All stripes held. */
static void
retire_tables (struct q_image *img, struct q_l1 *l1)
{
  struct q_table_cache *c = img->l2_cache;

  for (uint32_t i = 0; i < l1->entries; ++i) {
    struct q_table *t = atomic_load (&l1->l2[i]);

    if (!t)
      continue;
    assert (!q_table_is_dirty (t) && atomic_load (&t->users) == 0);
    pthread_mutex_lock (&c->lock);
    q_cache_remove (c, t);
    pthread_mutex_unlock (&c->lock);
    q_table_retired (t);
    q_grace_retire (t, q_table_free);
  }
}

int
q_l1_switch (struct q_image *img, struct q_l1 *new, uint64_t size)
{
  struct q_l1 *old = atomic_load (&img->l1);
  int r;

  for (int i = 0; i < Q_TABLE_STRIPES; ++i)
    pthread_mutex_lock (&img->stripe[i]);
  r = q_header_write_disk (img, size, new->entries, new->table->host);
  if (r == -ENOSPC)
    goto out; /* it is in one sector, which was not written */
  if (r == 0)
    r = q_file_sync (img->file);
  if (r < 0)
    q_stick (img, r, "pointing the header to another L1 table failed");
  else {
    q_alloc_lock (img);
    img->l1_offset = new->table->host;
    img->l1_size = new->entries;
    q_alloc_unlock (img);
    atomic_store (&img->l1, new);
    atomic_store (&img->size, size);
    retire_tables (img, old);
    q_table_retired (old->table);
  }
out:
  for (int i = Q_TABLE_STRIPES; i-- > 0;)
    pthread_mutex_unlock (&img->stripe[i]);
  if (r == 0)
    q_grace_retire (old, free_replaced_l1);
  return r;
}
