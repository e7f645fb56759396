/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Doing without the zero flag of L2 entries (specification: "Standard Cluster Descriptor", bit 0),
 * which version 2 does not have.
 *
 * Where nothing would show below, an entry that says zero becomes one that says nothing; else it
 * gets a cluster full of zeros.
 *
 * The active tables are changed like a guest would: a table that a snapshot shares is copied first.
 * What tables of snapshots then still have is changed where they stand.  Such a table is reached
 * from as many L1 tables as its refcount says, and each counts what it points to; so a cluster of
 * its own gets that refcount, which is durable, like its zeros, before the entry that points to it
 * (invariants 1 and 2); and what it lets go of is let go of so many times, afterwards (invariant
 * 3).
 */

#include <errno.h>
#include <stdlib.h>

#include "amend.h"
#include "cluster.h"

static bool
needs_zeros (const struct q_image *img, uint64_t gc)
{
  return img->backing_file && (!img->backing || gc << img->cluster_bits < q_size (img->backing));
}

/* ---- the active tables ---------------------------------------------------------------------- */

/* Drops the zero flags of one active table, as far as that needs no cluster.  *LEFT: some do.  What
 * is past the disk's end needs none: it reads as zeros whenever the disk reaches there. */
static int
empty_active (struct q_image *img, uint64_t index, bool *left)
{
  const uint64_t first = index << img->l2_bits;
  const uint32_t n = 1u << img->l2_bits;
  const uint64_t end = q_div_up (q_size (img), q_cluster_bytes (img));
  struct q_table *t;
  int r = q_l2_hold (img, index, 0, &t);

  *left = false;
  if (r < 0)
    return r;
  q_alloc_lock (img);
  for (uint32_t i = 0; r == 0 && i < n; ++i) {
    struct q_cluster c;

    r = q_decode_entry (img, first + i, q_l2_entry_get (t, i), &c);
    if (r < 0 || !c.zero)
      continue;
    if (first + i < end && needs_zeros (img, first + i)) {
      *left = true;
      continue;
    }
    r = q_limbo_reserve (&img->limbo, 1);
    if (r < 0)
      break;
    q_l2_entry_set (t, i, (struct q_l2_entry){ 0 });
    q_l2_mark_dirty (t, i, 1);
    if (c.host)
      q_limbo_add (&img->limbo, c.host >> img->cluster_bits, 1);
    else
      q_limbo_cancel (&img->limbo, 1);
  }
  q_alloc_unlock (img);
  q_l2_release (t);
  return r;
}

/* Writes zeros where the range reads as zeros by its own entries. */
static int
write_active (struct q_image *img, uint64_t offset, uint64_t len, const void *zeros)
{
  const uint64_t cluster = q_cluster_bytes (img);
  int r = 0;

  while (r == 0 && len > 0) {
    struct q_extent e;
    q_pin_t pin = q_pin ();
    int n = q_map (img, offset, len, &e, 1, Q_MAP_TOP | Q_MAP_MERGE); /* else depths mix */

    q_unpin (pin);
    if (n < 0)
      return n;
    for (uint64_t at = 0, some; r == 0 && e.kind == Q_ZERO && e.depth == 0 && at < e.len;
         at += some) {
      some = q_min (cluster - ((offset + at) & (cluster - 1)), e.len - at);
      r = q_pwrite (img, zeros, offset + at, some);
    }
    offset += e.len;
    len -= e.len;
  }
  return r;
}

static bool
table_has_zero_flag (const struct q_image *img, const struct q_table *t)
{
  for (uint32_t i = 0; i < 1u << img->l2_bits; ++i) {
    uint64_t entry = q_l2_entry_get (t, i).descriptor;

    if (!(entry & Q_L2_COMPRESSED) && (entry & Q_L2_ZERO))
      return true;
  }
  return false;
}

static int
expand_active (struct q_image *img, const void *zeros, const struct q_amend_progress *progress)
{
  const unsigned shift = img->cluster_bits + img->l2_bits;
  const uint64_t size = q_size (img), tables = img->l1_size;
  int r = 0;

  for (uint64_t i = 0; r == 0 && i < tables; ++i) {
    struct q_table *t;
    q_pin_t pin = q_pin ();
    bool left = false;

    r = q_l2_get (img, i, 0, &t);
    if (r == 0 && (!t || !table_has_zero_flag (img, t)))
      t = NULL; /* neither copied nor touched for nothing */
    q_unpin (pin);
    if (r == 0 && t)
      r = empty_active (img, i, &left);
    if (r == 0 && left)
      r = write_active (img, i << shift, q_min (1ull << shift, size - (i << shift)), zeros);
    if (r == 0)
      r = q_flush_throttle (img);
    q_amend_report (progress, (double)i / (double)tables / 2);
  }
  for (int round = 0; r == 0 && round < 3; ++round)
    r = q_flush (img); /* what a snapshot does not share is no longer counted as if it did */
  return r;
}

/* ---- tables of snapshots -------------------------------------------------------------------- */

static bool
has_zero_flag (const struct q_image *img, const uint8_t *table)
{
  for (uint64_t i = 0; i < q_cluster_bytes (img) / 8; ++i) {
    be64 entry;

    memcpy (&entry, table + 8 * i, sizeof entry);
    if (!(get64 (entry) & Q_L2_COMPRESSED) && (get64 (entry) & Q_L2_ZERO))
      return true;
  }
  return false;
}

/* What one table lets go of: once for each L1 table that leads to it. */
struct release {
  uint64_t cluster, times;
};

/* Changes the COUNT entries at TABLE, which are those of the guest clusters from FIRST and lead
 * from TIMES L1 tables.  *N entries of RELEASES, which has room for all, are filled. */
static int
change_shared (struct q_image *img, uint8_t *table, uint64_t first, uint64_t times,
               const void *zeros, struct release *releases, uint64_t *n)
{
  const uint64_t cluster = q_cluster_bytes (img);
  int r = 0;

  *n = 0;
  for (uint64_t i = 0; r == 0 && i < cluster / 8; ++i) {
    uint64_t entry, host, got, new = 0;
    bool fresh;
    be64 raw;

    memcpy (&raw, table + 8 * i, sizeof raw);
    entry = get64 (raw);
    if ((entry & Q_L2_COMPRESSED) || !(entry & Q_L2_ZERO))
      continue;
    if (needs_zeros (img, first + i)) {
      q_alloc_lock (img);
      r = q_alloc_run (img, 1, 0, &host, &got, &fresh);
      if (r == 0)
        r = q_refcount_set (img, host >> img->cluster_bits, 0, times);
      q_alloc_unlock (img);
      if (r == 0)
        r = q_file_pwrite (img->guest, zeros, cluster, host);
      q_note_data_written (img);
      new = host;
    }
    if (entry & Q_OFFSET_MASK)
      releases[(*n)++] = (struct release){ (entry & Q_OFFSET_MASK) >> img->cluster_bits, times };
    raw = put64 (new);
    memcpy (table + 8 * i, &raw, sizeof raw);
  }
  return r;
}

static int
let_go (struct q_image *img, const struct release *releases, uint64_t n)
{
  int r = 0;

  q_alloc_lock (img);
  for (uint64_t i = 0; r == 0 && i < n; ++i)
    for (uint64_t k = 0; r == 0 && k < releases[i].times; ++k) {
      r = q_limbo_reserve (&img->limbo, 1);
      if (r == 0)
        q_limbo_add (&img->limbo, releases[i].cluster, 1);
    }
  q_alloc_unlock (img);
  for (int round = 0; r == 0 && round < 2; ++round)
    r = q_flush (img);
  return r;
}

static int
expand_table (struct q_image *img, uint64_t index, uint64_t host, const void *zeros,
              struct q_error *err)
{
  const uint64_t cluster = q_cluster_bytes (img);
  uint8_t *table = malloc (cluster);
  struct release *releases = malloc (cluster / 8 * sizeof *releases);
  uint64_t times = 0, n = 0;
  int r = table && releases ? q_file_pread (img->file, table, cluster, host) : -ENOMEM;

  if (r == 0 && has_zero_flag (img, table)) {
    q_alloc_lock (img);
    r = q_refcount_get (img, host >> img->cluster_bits, 0, &times);
    q_alloc_unlock (img);
    if (r == 0 && times == 0)
      r = q_fail (err, -EINVAL, "%s: the L2 table at offset %#llx has no refcount: check the image",
                  img->filename, (unsigned long long)host);
    if (r == 0)
      r = change_shared (img, table, index << img->l2_bits, times, zeros, releases, &n);
    if (r == 0)
      r = q_flush (img); /* counts and zeros */
    if (r == 0)
      r = q_file_pwrite (img->file, table, cluster, host);
    if (r == 0)
      r = q_file_sync (img->file);
    if (r < 0 && r != -ENOSPC && r != -ENOMEM && r != -EINVAL)
      q_stick (img, r, "expanding clusters of zeros failed");
    if (r == 0)
      r = let_go (img, releases, n);
  }
  free (table);
  free (releases);
  return r;
}

static int
expand_snapshot (struct q_image *img, const struct q_snapshot *s, const void *zeros,
                 struct q_error *err)
{
  uint64_t bytes = s->l1_size * 8ull;
  be64 *l1 = malloc (bytes ? bytes : 1);
  int r = l1 ? q_file_pread (img->file, l1, bytes, s->l1_table_offset) : -ENOMEM;

  for (uint32_t i = 0; r == 0 && i < s->l1_size; ++i) {
    uint64_t host = get64 (l1[i]) & Q_OFFSET_MASK;

    if (host & (q_cluster_bytes (img) - 1))
      r = q_fail (err, -EINVAL, "%s: snapshot %s: L1 entry %u is not the offset of a cluster",
                  img->filename, s->id, i);
    else if (host)
      r = expand_table (img, i, host, zeros, err);
  }
  free (l1);
  return r;
}

/* ---- all ------------------------------------------------------------------------------------ */

int
q_expand_zeroes (struct q_image *img, const struct q_amend_progress *progress, struct q_error *err)
{
  const struct q_snapshots *list = atomic_load (&img->snapshots); /* nobody else has it */
  void *zeros = calloc (1, q_cluster_bytes (img));
  int r = zeros ? expand_active (img, zeros, progress) : -ENOMEM;

  for (uint32_t i = 0; r == 0 && list && i < list->n; ++i) {
    r = expand_snapshot (img, &list->s[i], zeros, err);
    q_amend_report (progress, 0.5 + (double)i / (double)list->n / 2);
  }
  free (zeros);
  return r < 0 ? q_fail (err, r, "%s: turning clusters of zeros into data: %s", img->filename,
                         strerror (-r))
               : 0;
}
