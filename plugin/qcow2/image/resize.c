/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making a disk larger or smaller while it is in use.
 *
 * Larger: a longer L1 table if it takes one; then the new part is made to read as zeros (a backing
 * file may be longer than the old size, and the last cluster may have stale bytes behind it), all
 * of it durable; last the size in the header.  A crash before that leaves the old size with
 * harmless zeros behind it.
 *
 * Smaller: when nothing is left that may refuse it (bitmaps, room for a table), the rest of what
 * will be the last cluster is zeroed; then, with the gate closed, one write to the header makes a
 * shorter L1 table and the new size the disk's.  A crash before that leaves the old size, with at
 * most that rest changed.  What the new table does not refer to is given back when no pin is left
 * under which it may still be read; a crash meanwhile leaves counts that are too high, for which
 * the dirty bit is set (version 3).
 */

#include <errno.h>
#include <stdlib.h>

#include "cluster.h"
#include "tree.h"

#define ull(v) ((unsigned long long)(v))

/* Whether what is right before SIZE comes from a backing file that is not open, and shares its
 * (sub)cluster with what is behind SIZE, so that zeros cannot be put there: 1, 0, or an error. */
static int
edge_is_unseen (struct q_image *img, uint64_t size)
{
  struct q_extent e;
  q_pin_t pin;
  int n;

  if (!img->backing_file || img->backing || (size & (q_subcluster_bytes (img) - 1)) == 0)
    return 0;
  pin = q_pin ();
  n = q_map (img, size - 1, 1, &e, 1, Q_MAP_TOP);
  q_unpin (pin);
  return n < 0 ? n : e.kind == Q_ZERO && e.depth > 0;
}

/* ---- larger -----------------------------------------------------------------------------------
 */

static int
grow_raw (struct q_image *img, uint64_t size)
{
  int r = img->data->is_device ? -ENOTSUP : q_file_truncate (img->data, size);

  if (r == 0)
    atomic_store (&img->size, size);
  q_note_data_written (img);
  return r;
}

static int
grow_qcow2 (struct q_image *img, uint64_t size, struct q_error *err)
{
  uint64_t old = q_size (img);
  unsigned shift = img->cluster_bits + img->l2_bits;
  struct q_bitmaps_resize *bitmaps;
  int r = edge_is_unseen (img, old);

  if (r > 0)
    return q_fail (err, -ENOTSUP,
                   "%s: cannot grow from %llu bytes, which is within a cluster of the backing file "
                   "'%s', unless that is open",
                   img->filename, ull (old), img->backing_file);
  if (r == 0)
    r = q_snapshots_record_sizes (img, err);
  if (r == 0)
    r = q_bitmaps_resize_prepare (img, size, &bitmaps, err);
  if (r < 0)
    return r;
  q_flush_hold (img);
  r = q_l1_grow (img, (uint32_t)q_div_up (size, 1ull << shift));
  q_flush_let_go (img);
  if (r == 0 && q_has_data_file (img))
    r = q_data_grow (img, size);
  if (r < 0) {
    q_bitmaps_resize_abort (bitmaps);
    return r;
  }
  /* From here on requests may reach the new part; nobody knows of it before we return. */
  atomic_store (&img->size, size);
  r = img->data_raw ? q_data_settle (img, old, size - old)
                    : q_zero (img, old, size - old, Q_ZERO_UNMAP);
  if (r == 0)
    r = q_flush (img);
  if (r == 0) {
    bool full; /* nothing was changed, and it may be tried again */

    q_flush_hold (img);
    r = q_header_write_size (img);
    full = r == -ENOSPC;
    if (r == 0)
      r = q_file_sync (img->file);
    if (r < 0 && !full)
      q_stick (img, r, "writing the new size failed");
    q_flush_let_go (img);
  }
  if (r < 0)
    atomic_store (&img->size, old);
  if (r == 0)
    q_bitmaps_resize_commit (bitmaps);
  else
    q_bitmaps_resize_abort (bitmaps);
  return r;
}

/* ---- smaller ----------------------------------------------------------------------------------
 */

static int
shrink_raw (struct q_image *img, uint64_t size)
{
  int r = img->file->is_device ? -ENOTSUP : 0;

  if (r < 0)
    return r;
  q_gate_close (img);
  r = q_file_truncate (img->file, size);
  if (r == 0)
    atomic_store (&img->size, size);
  q_note_data_written (img);
  q_gate_open (img);
  return r;
}

struct shrinking {
  struct q_image *img;
  uint64_t size;
  uint64_t *entry; /* the L1 table that there is, in host byte order */
  uint32_t entries, old_entries;
  uint64_t old_host, cluster;
};

/* Writes the beginning of the L1 table to its new place, and switches to it.  The gate is closed,
 * the flush held: on disk and in memory everything is the same. */
static int
cut_l1 (struct shrinking *s)
{
  struct q_image *img = s->img;
  struct q_l1 *l1 = atomic_load (&img->l1), *new = NULL;
  be64 *disk = malloc (s->entries * sizeof *disk);
  int r = disk ? q_flush_round (img) : -ENOMEM;

  s->old_entries = l1->entries;
  s->old_host = img->l1_offset;
  s->entry = calloc (l1->entries + 1ul, sizeof *s->entry);
  if (r == 0 && !s->entry)
    r = -ENOMEM;
  for (uint32_t i = 0; r == 0 && i < l1->entries; ++i)
    s->entry[i] = q_entry_get (l1->table, i);
  for (uint32_t i = 0; r == 0 && i < s->entries; ++i)
    disk[i] = put64 (s->entry[i]);
  if (r == 0)
    r = q_file_pwrite (img->file, disk, s->entries * sizeof *disk, s->cluster << img->cluster_bits);
  if (r == 0) {
    r = q_file_sync (img->file);
    if (r < 0)
      q_stick (img, r, "syncing the new L1 table failed");
  }
  if (r == 0)
    r = q_l1_new (img, s->entry, s->entries, s->cluster << img->cluster_bits, &new);
  if (r == 0)
    r = q_l1_switch (img, new, s->size);
  if (r < 0)
    q_l1_free (new);
  free (disk);
  return r;
}

/* What lies beyond the end: of the last table, entries; tables; and the old L1 table. */
static void
give_back (struct shrinking *s)
{
  struct q_image *img = s->img;
  uint64_t per_table = 1ull << img->l2_bits, end = q_div_up (s->size, q_cluster_bytes (img));

  if (end < s->entries * per_table)
    q_empty_clusters (img, end, s->entries * per_table);
  q_grace_drain ();
  for (uint32_t i = 0; i < s->old_entries; ++i)
    if (i < s->entries)
      s->entry[i] = 0;
  q_tree_lower_all (img, s->entry, s->old_entries);
  q_alloc_release (img, s->old_host >> img->cluster_bits,
                   q_div_up (s->old_entries * 8ull, q_cluster_bytes (img)));
}

static int
shrink_qcow2 (struct q_image *img, uint64_t size, struct q_error *err)
{
  uint64_t cluster = q_cluster_bytes (img), clusters;
  unsigned shift = img->cluster_bits + img->l2_bits;
  uint64_t rest = q_min (q_round_up (size, cluster), q_size (img)) - size;
  struct shrinking s = { .img = img, .size = size };
  struct q_bitmaps_resize *bitmaps = NULL;
  int unseen = edge_is_unseen (img, size);
  int r = unseen < 0 ? unseen : q_snapshots_record_sizes (img, err);

  if (r == 0)
    r = q_bitmaps_resize_prepare (img, size, &bitmaps, err);
  if (r < 0)
    return r;
  s.entries = (uint32_t)q_div_up (size, 1ull << shift);
  s.entries = s.entries ? s.entries : 1;
  clusters = q_div_up (s.entries * 8ull, cluster);
  r = q_header_set_dirty (img, true);
  if (r == 0)
    r = q_alloc_table (img, clusters, &s.cluster);
  if (r < 0) {
    q_bitmaps_resize_abort (bitmaps);
    q_tree_settle (img); /* or the dirty bit stays */
    return r;
  }
  /* Where it is the backing file's, nothing is there to be zeroed. */
  if (rest > 0 && !unseen)
    r = q_zero (img, size, rest, 0);
  if (r == 0)
    r = q_flush (img);
  if (r == 0) {
    q_flush_hold (img);
    q_gate_close (img);
    r = cut_l1 (&s);
    q_gate_open (img);
    q_flush_let_go (img);
  }
  if (r == 0)
    q_bitmaps_resize_commit (bitmaps);
  else
    q_bitmaps_resize_abort (bitmaps);
  if (r == 0)
    give_back (&s);
  else if (q_writable (img) == 0)
    q_alloc_drop (img, s.cluster, clusters);
  q_tree_settle (img);
  free (s.entry);
  return r;
}

/* ---- calls ------------------------------------------------------------------------------------
 */

/* What is wrong with SIZE whatever it was before. */
static int
check_size (struct q_image *img, uint64_t size, struct q_error *err)
{
  unsigned shift = img->cluster_bits + img->l2_bits;
  int r = q_writable (img);

  if (r < 0)
    return q_fail (err, r, "%s: the image is read-only", img->filename);
  if (size % 512 != 0)
    return q_fail (err, -EINVAL, "%s: a size of %llu is not a multiple of 512", img->filename,
                   ull (size));
  if (img->format != Q_FORMAT_QCOW2)
    return 0;
  if (size > INT64_MAX - q_cluster_bytes (img) ||
      q_div_up (size, 1ull << shift) > Q_MAX_L1_BYTES / 8 ||
      (q_has_data_file (img) && size > Q_MAX_HOST_OFFSET))
    return q_fail (err, -EFBIG, "%s: %llu bytes are more than clusters of %u bytes allow",
                   img->filename, ull (size), q_cluster_size (img));
  return 0;
}

int
q_shrink (struct q_image *img, uint64_t size, struct q_error *err)
{
  int r;

  if (err)
    err->text[0] = '\0';
  r = check_size (img, size, err);
  if (r < 0)
    return r;
  pthread_mutex_lock (&img->layout_lock);
  if (size > q_size (img))
    r = q_fail (err, -EINVAL, "%s: %llu bytes are more than the %llu that it has", img->filename,
                ull (size), ull (q_size (img)));
  else if (size < q_size (img)) {
    r = img->format == Q_FORMAT_QCOW2 ? shrink_qcow2 (img, size, err) : shrink_raw (img, size);
    if (r < 0)
      q_fail (err, r, "%s: cannot shrink to %llu bytes: %s", img->filename, ull (size),
              strerror (-r));
  }
  pthread_mutex_unlock (&img->layout_lock);
  return r;
}

int
q_resize (struct q_image *img, uint64_t size, struct q_error *err)
{
  uint64_t old = q_size (img);
  int r;

  if (err)
    err->text[0] = '\0';
  r = check_size (img, size, err);
  if (r < 0)
    return r;
  if (size < old)
    return q_fail (
        err, -ENOTSUP,
        "%s: cannot be made smaller (from %llu to %llu bytes) like this: nbdcow-img resize "
        "--shrink does it",
        img->filename, ull (old), ull (size));
  if (size == old)
    return 0;
  pthread_mutex_lock (&img->layout_lock);
  r = size < q_size (img)             ? -EAGAIN /* another call was faster and went further */
      : img->format == Q_FORMAT_QCOW2 ? grow_qcow2 (img, size, err)
                                      : grow_raw (img, size);
  pthread_mutex_unlock (&img->layout_lock);
  return r < 0 ? q_fail (err, r, "%s: cannot grow to %llu bytes: %s", img->filename, ull (size),
                         strerror (-r))
               : 0;
}
