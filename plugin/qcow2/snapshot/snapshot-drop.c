/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Deleting an internal snapshot, and going back to one (specification: "Snapshots").
 *
 * Deleting: a snapshot table without it is written to a new place, and the header pointed to that.
 * When this is durable, nothing on disk refers to what the snapshot held: the counts are lowered,
 * and what is the disk's alone from then on gets its COPIED flags back.
 *
 * Going back: the snapshot's L1 table is copied to a new place; everything that it refers to is
 * counted once more, for the disk.  With the gate closed one write to the header makes the copy,
 * and the size that goes with it, the disk's.  What the disk referred to until then is given back
 * when no pin is left under which it may still be read.
 *
 * In both the order on the disk is: the dirty bit; counts that go up; what the header will point
 * to; the header; counts that go down.  At every point a count is at least the number of references
 * (invariant 1); what is too high after a crash is put right by whoever opens the image next (in
 * version 2: leaked).
 */

#include <errno.h>
#include <stdlib.h>

#include "entry.h"
#include "readers.h"
#include "tree.h"

#define ull(v) ((unsigned long long)(v))

/* ---- what both need -------------------------------------------------------------------------- */

static int
check_possible (struct q_image *img, struct q_error *err)
{
  int r = q_writable (img);

  if (img->format != Q_FORMAT_QCOW2)
    return q_fail (err, -ENOTSUP, "%s: a raw disk has no internal snapshots", img->filename);
  if (r < 0)
    return q_fail (err, r, "%s: the image is read-only", img->filename);
  if (img->incompatible & Q_INCOMPAT_DATA_FILE)
    return q_fail (err, -ENOTSUP,
                   "%s: an image with an external data file has no internal snapshots",
                   img->filename);
  return 0;
}

static int
not_found (const struct q_image *img, const char *what, struct q_error *err)
{
  return q_fail (err, -ENOENT, "%s: has no snapshot with name or id '%s' (there are %u)",
                 img->filename, what, q_snapshots_count (img));
}

/* Reads the L1 table of S, without flags, into ENTRY, which has room for it. */
static int
read_l1 (struct q_image *img, const struct q_snapshot *s, uint64_t *entry, struct q_error *err)
{
  int r = q_file_pread (img->file, entry, s->l1_size * 8ull, s->l1_table_offset);

  if (r < 0)
    return q_fail (err, r, "%s: cannot read the L1 table of snapshot '%s': %s", img->filename,
                   s->name, strerror (-r));
  for (uint32_t i = 0; i < s->l1_size; ++i) {
    entry[i] = be64toh (entry[i]);
    if ((entry[i] & Q_L1_RESERVED) || (entry[i] & Q_OFFSET_MASK & (q_cluster_bytes (img) - 1)))
      return q_fail (err, -EINVAL,
                     "%s: snapshot '%s': L1 entry %u is %#llx, which cannot be; run nbdcow-img "
                     "check",
                     img->filename, s->name, i, ull (entry[i]));
    entry[i] &= Q_OFFSET_MASK;
  }
  return 0;
}

static uint64_t
l1_clusters (const struct q_image *img, uint32_t entries)
{
  return q_div_up (entries * 8ull, q_cluster_bytes (img));
}

/* ---- deleting -------------------------------------------------------------------------------- */

/* Gives back what the L1 table ENTRY, which lay at HOST, referred to. */
static void
give_back (struct q_image *img, const uint64_t *entry, uint32_t entries, uint64_t host)
{
  q_tree_lower_all (img, entry, entries);
  if (entries > 0)
    q_alloc_release (img, host >> img->cluster_bits, l1_clusters (img, entries));
}

/* What lies below the L1 entries that the snapshot had may be the disk's alone now. */
static void
set_flags (struct q_image *img, const uint64_t *entry, uint32_t entries)
{
  for (uint32_t i = 0; i < entries && i < img->l1_size; ++i) {
    struct q_plan_claim claim;

    if (entry[i] == 0 || q_tree_claim (img, i, &claim) < 0)
      continue;
    q_tree_set_copied (img, i);
    q_tree_release (img, &claim);
    q_flush_throttle (img);
  }
}

static int delete (struct q_image *img, const struct q_snapshot *s, struct q_error *err)
{
  uint32_t entries = s->l1_size;
  uint64_t host = s->l1_table_offset, *entry = malloc (entries * 8ull + 8);
  bool gone = false;
  int r;

  if (!entry)
    return q_fail (err, -ENOMEM, "%s: out of memory for an L1 table of %u entries", img->filename,
                   entries);
  r = q_file_contains (img->file, host, entries * 8ull);
  if (r == 0)
    r = q_fail (err, -EINVAL, "%s: snapshot '%s': truncated: its L1 table is not in the file",
                img->filename, s->name);
  else if (r > 0)
    r = read_l1 (img, s, entry, err);
  if (r == 0) {
    q_readers_lock (img);
    r = q_readers_show (img, host)
            ? q_fail (err, -EBUSY,
                      "%s: snapshot '%s' is in use: it is open, or exported, as a disk",
                      img->filename, s->name)
            : q_snapshots_replace (img, s, &gone, err);
    q_readers_unlock (img);
  }
  if (r < 0)
    q_fail (err, r, "%s: cannot delete the snapshot: %s", img->filename, strerror (-r));
  if (gone && q_writable (img) == 0) {
    give_back (img, entry, entries, host);
    set_flags (img, entry, entries);
  }
  free (entry);
  return r;
}

int
q_snapshot_take_back (struct q_image *img, const char *id, struct q_error *err)
{
  const struct q_snapshot *s = q_snapshot_by_id (img, id);

  return s ? delete (img, s, err) : not_found (img, id, err);
}

int
q_snapshot_delete (struct q_image *img, const char *name_or_id, struct q_error *err)
{
  const struct q_snapshot *s;
  int r;

  if (err)
    err->text[0] = '\0';
  r = check_possible (img, err);
  if (r < 0)
    return r;
  pthread_mutex_lock (&img->layout_lock);
  s = q_snapshot_by_name (img, name_or_id);
  if (!s)
    s = q_snapshot_by_id (img, name_or_id);
  r = s ? delete (img, s, err) : not_found (img, name_or_id, err);
  if (s)
    q_tree_settle (img);
  pthread_mutex_unlock (&img->layout_lock);
  return r;
}

/* ---- going back ------------------------------------------------------------------------------ */

struct going_back {
  struct q_image *img;
  uint64_t *entry; /* the L1 table that the disk will have, in host byte order */
  uint32_t entries;
  uint32_t counted; /* what is below so many of them has been counted */
  uint8_t *l2;
  uint64_t cluster;  /* where it will lie */
  uint64_t *old;     /* the one that the disk has ... */
  uint64_t old_host; /* ... and where ... */
  uint32_t n_old;    /* ... and how long it is */
  uint64_t size;
};

/* Counts what is below an L1 entry of the snapshot.  Nothing there changes: it is shared, at least
 * by the snapshot and the disk to be. */
static int
count_entry (struct going_back *b, uint64_t host)
{
  struct q_image *img = b->img;
  int r = q_tree_read (img, host, b->l2);

  if (r < 0)
    return r;
  r = q_tree_raise (img, b->l2);
  if (r == 0) {
    r = q_tree_raise_cluster (img, host);
    if (r < 0)
      q_tree_lower (img, b->l2);
  }
  /* A flag that is meaningless in a snapshot would not be on the disk. */
  if (r == 0 && q_tree_has_copied (img, b->l2)) {
    q_tree_clear_copied (img, b->l2);
    r = q_file_pwrite (img->file, b->l2, q_cluster_bytes (img), host);
    q_note_data_written (img);
    if (r < 0) {
      q_tree_lower (img, b->l2);
      q_alloc_release (img, host >> img->cluster_bits, 1);
    }
  }
  return r;
}

static int
count_all (struct going_back *b)
{
  int r = 0;

  for (; r == 0 && b->counted < b->entries; ++b->counted) {
    if (b->entry[b->counted] == 0)
      continue;
    r = count_entry (b, b->entry[b->counted]);
    if (r < 0)
      break;
    r = q_flush_throttle (b->img);
  }
  return r;
}

static int
write_l1 (struct going_back *b)
{
  struct q_image *img = b->img;
  uint64_t bytes = b->entries * 8ull;
  be64 *l1 = malloc (bytes);
  int r = l1 ? 0 : -ENOMEM;

  for (uint32_t i = 0; l1 && i < b->entries; ++i)
    l1[i] = put64 (b->entry[i]);
  if (r == 0)
    r = q_file_pwrite (img->file, l1, bytes, b->cluster << img->cluster_bits);
  q_note_data_written (img);
  free (l1);
  return r;
}

/* With the gate closed and the flush held. */
static int
switch_l1 (struct going_back *b, struct q_l1 *new)
{
  struct q_image *img = b->img;
  struct q_l1 *l1 = atomic_load (&img->l1);
  /* What the disk has now is on disk then, and nothing of it dirty in memory. */
  int r = q_flush_round (img);

  if (r < 0)
    return r;
  b->old = malloc (l1->entries * 8ull + 8);
  if (!b->old)
    return -ENOMEM;
  b->n_old = l1->entries;
  b->old_host = img->l1_offset;
  for (uint32_t i = 0; i < b->n_old; ++i)
    b->old[i] = q_entry_get (l1->table, i);
  /* Before the disk changes: a kill finds it in what survives.  What lies beyond the disk as it is
   * has no bits yet: see take_bits in bitmap-state.c. */
  q_bitmaps_mark (img, 0, q_size (img));
  Q_PROBE ("before the disk goes back");
  return q_l1_switch (img, new, b->size);
}

static int
go_back (struct going_back *b, struct q_error *err)
{
  struct q_image *img = b->img;
  struct q_bitmaps_resize *bitmaps = NULL;
  struct q_l1 *new = NULL;
  int r = b->size == q_size (img) ? 0 : q_snapshots_record_sizes (img, err);

  if (r == 0)
    r = q_header_set_dirty (img, true);
  if (r == 0)
    r = q_alloc_table (img, l1_clusters (img, b->entries), &b->cluster);
  if (r < 0)
    return r;
  r = count_all (b);
  if (r == 0)
    r = write_l1 (b);
  if (r == 0)
    r = q_flush (img); /* the counts, and the table */
  if (r == 0)
    r = q_l1_new (img, b->entry, b->entries, b->cluster << img->cluster_bits, &new);
  if (r == 0 && b->size != q_size (img))
    r = q_bitmaps_resize_prepare (img, b->size, &bitmaps, err);
  if (r == 0) {
    q_flush_hold (img);
    q_gate_close (img);
    r = switch_l1 (b, new);
    q_gate_open (img);
    q_flush_let_go (img);
    if (r == 0 && bitmaps)
      q_bitmaps_resize_commit (bitmaps);
    else if (bitmaps)
      q_bitmaps_resize_abort (bitmaps);
  }
  if (r == 0) {
    q_grace_drain ();
    give_back (img, b->old, b->n_old, b->old_host);
    return 0;
  }
  q_l1_free (new);
  /* If the header could not be written, it may point to the table all the same. */
  if (q_writable (img) == 0) {
    q_tree_lower_all (img, b->entry, b->counted);
    q_alloc_drop (img, b->cluster, l1_clusters (img, b->entries));
  }
  return r;
}

static int
apply (struct q_image *img, const struct q_snapshot *s, struct q_error *err)
{
  struct going_back b = { .img = img, .size = s->info.disk_size };
  unsigned shift = img->cluster_bits + img->l2_bits;
  int r = q_snapshot_check (img, s, err);

  if (r < 0)
    return r;
  b.entries = (uint32_t)q_div_up (b.size, 1ull << shift);
  b.entries = b.entries > s->l1_size ? b.entries : s->l1_size;
  b.entries = b.entries ? b.entries : 1;
  b.entry = calloc (b.entries, sizeof *b.entry);
  b.l2 = malloc (q_cluster_bytes (img));
  if (!b.entry || !b.l2)
    r = q_fail (err, -ENOMEM, "%s: out of memory for an L1 table of %u entries", img->filename,
                b.entries);
  if (r == 0)
    r = read_l1 (img, s, b.entry, err);
  if (r == 0) {
    r = go_back (&b, err);
    if (r == -ERANGE)
      q_fail (err, r,
              "%s: some cluster is shared by as many snapshots as refcounts of %u bits can count; "
              "delete one, or convert the image to one with wider refcounts",
              img->filename, 1u << img->refcount_order);
    else if (r < 0)
      q_fail (err, r, "%s: cannot go back to the snapshot '%s': %s", img->filename, s->name,
              strerror (-r));
    q_tree_settle (img);
  }
  free (b.entry);
  free (b.l2);
  free (b.old);
  return r;
}

int
q_snapshot_apply (struct q_image *img, const char *id_or_name, struct q_error *err)
{
  const struct q_snapshot *s;
  int r;

  if (err)
    err->text[0] = '\0';
  r = check_possible (img, err);
  if (r < 0)
    return r;
  pthread_mutex_lock (&img->layout_lock);
  s = q_snapshot_by_id (img, id_or_name);
  if (!s)
    s = q_snapshot_by_name (img, id_or_name);
  r = s ? apply (img, s, err) : not_found (img, id_or_name, err);
  pthread_mutex_unlock (&img->layout_lock);
  return r;
}
