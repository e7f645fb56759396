/* SPDX-License-Identifier: BSD-3-Clause
 *
 * External data files (specification: incompatible feature bit 2, autoclear feature bit 1).
 *
 * The guest's clusters are in a file of their own, each at its guest offset; the qcow2 file has the
 * metadata, and its refcounts count that alone.  So there is nothing to allocate and nothing to
 * free: an L2 entry only says whether the cluster's place in the data file counts.  A cluster that
 * a mapping let go of is punched at once, before that is durable: what shows until then is its old
 * bytes or zeros.  What its place holds when it counts again is anybody's guess, so that padding is
 * always written, except into a hole.
 *
 * A raw data file (autoclear bit 1) is the disk, as it stands, at all times, also after a crash:
 *
 * Invariant: where an L2 entry says that a cluster is not data, on disk or in memory, its place in
 * a raw data file reads as zeros.  So no entry ever becomes anything but data: zeros go to the data
 * file.  And no data is written where the entry on disk is not data yet: q_data_settle makes the
 * entries durable first, a whole L2 table at a time, so that this is rare; while that is under way
 * (raw_unsettled) nobody takes an entry that says data at its word.
 */

#include <errno.h>
#include <stdlib.h>

#include "cluster.h"
#include "names.h"
#include "state.h"

#define ull(v) ((unsigned long long)(v))

/* ---- opening -------------------------------------------------------------------------------- */

static bool
is_same_file (const struct q_file *a, const struct q_file *b)
{
  return a && b && (a->dev || a->ino) && a->dev == b->dev && a->ino == b->ino;
}

/* LAYER's data file is nothing else in the chain from TOP down. */
static int
check_alone (const struct q_image *top, const struct q_image *layer, struct q_error *err)
{
  bool loop = is_same_file (layer->data, layer->file);
  const struct q_image *i;

  for (i = top; i && !loop; i = i->backing)
    loop =
        i != layer && (is_same_file (layer->data, i->file) || is_same_file (layer->data, i->data));
  return !loop ? 0
               : q_fail (err, -ELOOP,
                         "%s: its data file %s is also an image of the chain, or the data file of "
                         "one",
                         layer->filename, layer->data->name);
}

/* What the image says about its data file must go together. */
static int
check_header (const struct q_image *img, struct q_error *err)
{
  if (q_size (img) > Q_MAX_HOST_OFFSET)
    return q_fail (err, -EFBIG,
                   "%s: size is %llu: with an external data file, at most %llu bytes can be mapped",
                   img->filename, ull (q_size (img)), ull (Q_MAX_HOST_OFFSET));
  if (img->nb_snapshots > 0 && !img->read_only)
    return q_fail (err, -ENOTSUP,
                   "%s: has %u internal snapshots and an external data file, which the format does "
                   "not allow together: it can only be opened read-only",
                   img->filename, img->nb_snapshots);
  return 0;
}

int
q_data_open (struct q_image *img, const struct q_image *top, const char *chosen,
             const struct q_open_options *opts, unsigned flags, struct q_error *err)
{
  unsigned more;
  int r;

  if (!q_has_data_file (img)) {
    img->data = img->guest = img->file;
    return !chosen ? 0
                   : q_fail (err, -EINVAL, "%s: data-file=%s: the image has no external data file",
                             img->filename, chosen);
  }
  img->data = NULL;
  img->data_raw = (img->autoclear & Q_AUTOCLEAR_DATA_FILE_RAW) && !img->backing_file;
  if (opts->repair || (opts->metadata_only && img->read_only))
    return 0;
  r = check_header (img, err);
  if (r == 0)
    r = q_name_check_data (img, chosen, opts->data_file_policy, &img->data_path, &more, err);
  if (r < 0)
    return r;
  r = q_file_open (img->opener, img->data_path, flags | more, &img->data, err);
  img->guest = img->data;
  if (r < 0) {
    q_error_prefix (
        err, "%s: cannot open data file '%s'%s", img->filename, chosen ? chosen : img->data_file,
        r == -EPERM && (more & Q_FILE_REGULAR) ? " (data-file-policy=any opens block devices)"
        : r == -ENOENT && !chosen              ? " (data-file=FILE names another)"
                                               : "");
    return r;
  }
  /* Before the lock, which would be taken against ourselves. */
  r = check_alone (top ? top : img, img, err);
  if (r == 0 && img->lock == Q_LOCK_ON)
    r = q_file_lock (img->data, !img->read_only, err);
  return r;
}

int
q_data_start (struct q_image *img, struct q_error *err)
{
  uint64_t size;
  int r;

  if (!q_has_data_file (img))
    return 0;
  r = q_file_size (img->data, &size);
  if (r == 0 && img->data_raw && size < q_size (img)) {
    if (img->data->is_device)
      return q_fail (err, -ENOSPC,
                     "%s: the data file %s is a device of %llu bytes, the disk has %llu: what is "
                     "missing cannot be written",
                     img->filename, img->data->name, ull (size), ull (q_size (img)));
    r = q_file_truncate (img->data, q_size (img));
  }
  return r < 0 ? q_fail (err, r, "%s: cannot make the data file %s as long as the disk: %s",
                         img->filename, img->data->name, strerror (-r))
               : 0;
}

void
q_data_close (struct q_image *img)
{
  if (img->data != img->file)
    q_file_close (&img->data);
  img->data = NULL;
  free (img->data_path);
  img->data_path = NULL;
}

/* ---- places in the data file ---------------------------------------------------------------- */

bool
q_data_is_hole (struct q_image *img, uint64_t offset, uint64_t len)
{
  uint64_t end;
  bool hole;

  return img->guest->holes_are_zero && q_file_extent (img->guest, offset, &end, &hole) == 0 &&
         hole && (end >= offset + len || q_file_contains (img->guest, end, 1) == 0);
}

void
q_data_punch (struct q_image *img, uint64_t offset, uint64_t len)
{
  if (!img->discard)
    return;
  Q_PROBE ("before a punch in the data file");
  /* Best effort: what cannot be punched stays, out of sight. */
  q_file_zero (img->data, offset, len, true);
  q_note_data_written (img);
}

int
q_data_reserve (struct q_image *img, uint64_t offset, uint64_t len)
{
  uint64_t size;
  int r;

  if (img->data->is_device) {
    r = q_file_size (img->data, &size);
    return r < 0 ? r : offset + len > size ? -ENOSPC : 0;
  }
  len = q_min (len, q_size (img) - offset);
  r = q_file_allocate (img->data, offset, len);
  if (r == -ENOTSUP) /* none of it counts, or all of it is zeros already */
    r = q_file_write_zeroes (img->data, offset, len, false);
  q_note_data_written (img);
  return r;
}

int
q_data_grow (struct q_image *img, uint64_t size)
{
  uint64_t have, old = q_size (img);
  int r = q_file_size (img->data, &have);

  if (r == 0 && img->data_raw && have > old) /* somebody has left something there */
    r = q_file_write_zeroes (img->guest, old, q_min (size, have) - old, true);
  if (r == 0 && have < size)
    r = img->data->is_device ? -ENOSPC : q_file_truncate (img->data, size);
  q_note_data_written (img);
  return r;
}

/* ---- raw data files ------------------------------------------------------------------------- */

int
q_data_zero (struct q_image *img, uint64_t offset, uint64_t len, bool unmap, bool provision)
{
  int r = q_gate_enter (img, 0);

  if (r < 0)
    return r;
  q_bitmaps_mark (img, offset, len);
  r = q_file_write_zeroes (img->guest, offset, len, unmap && img->discard);
  if (r == 0 && provision) {
    r = q_file_allocate (img->data, offset, len);
    if (r == -ENOTSUP) /* what was written is there */
      r = 0;
  }
  q_note_data_written (img);
  q_gate_leave (img);
  return r;
}

int
q_data_discard (struct q_image *img, uint64_t offset, uint64_t len)
{
  int r = q_gate_enter (img, 0);

  if (r < 0)
    return r;
  q_bitmaps_mark (img, offset, len);
  r = q_file_zero (img->guest, offset, len, true);
  q_note_data_written (img);
  q_gate_leave (img);
  return r == -ENOTSUP ? 0 : r;
}

/* Zeros where entries do not say data, so that they can. */
static int
clear_place (struct q_image *img, uint64_t offset, uint64_t len)
{
  if (offset >= q_size (img))
    return 0; /* the disk ends inside this cluster */
  len = q_min (len, q_size (img) - offset);
  if (q_data_is_hole (img, offset, len))
    return 0;
  q_note_data_written (img);
  return q_file_write_zeroes (img->guest, offset, len, true);
}

/* Makes all clusters of the table from FIRST to LAST say data. */
static int
settle_table (struct q_image *img, struct q_table *t, uint64_t first, uint64_t last)
{
  const uint32_t all = q_all_subclusters (img);
  uint32_t index = (uint32_t)(first & ((1u << img->l2_bits) - 1));
  int r = 0;

  for (uint64_t gc = first; r == 0 && gc <= last; ++gc, ++index) {
    struct q_cluster c;

    r = q_decode_entry (img, gc, q_l2_entry_get (t, index), &c);
    if (r < 0 || c.data == all)
      continue;
    for (unsigned sub = 0, n; r == 0 && sub < q_subclusters (img); sub += n) {
      n = q_subcluster_run (img, &c, sub);
      if (!(c.data >> sub & 1))
        r = clear_place (img, (gc << img->cluster_bits) + ((uint64_t)sub << img->subcluster_bits),
                         (uint64_t)n << img->subcluster_bits);
    }
    if (r < 0)
      break;
    c = (struct q_cluster){ .own = true, .host = gc << img->cluster_bits, .data = all };
    atomic_store (&img->raw_unsettled, true);
    q_l2_entry_set (t, index, q_encode_entry (img, &c));
    q_l2_mark_dirty (t, index, 1);
  }
  return r;
}

int
q_data_settle (struct q_image *img, uint64_t offset, uint64_t len)
{
  const unsigned shift = img->cluster_bits + img->l2_bits;
  uint64_t index = offset >> shift, last_index = (offset + len - 1) >> shift;
  int r = 0;

  pthread_mutex_lock (&img->raw_lock);
  for (; r == 0 && index <= last_index; ++index) {
    uint64_t first = index << img->l2_bits;
    uint64_t last = first + (1ull << img->l2_bits) - 1, clusters;
    struct q_plan_claim claim;
    struct q_table *t;
    q_pin_t pin;

    r = q_gate_enter (img, 0);
    if (r < 0)
      break;
    /* The disk may have been made smaller; while we are inside the gate it is not. */
    clusters = q_div_up (q_size (img), q_cluster_bytes (img));
    last = q_min (last, clusters - 1);
    r = first < clusters ? q_claim_take (img, &claim, first, last, 0) : -ENOSPC;
    if (r < 0) {
      q_gate_leave (img);
      break;
    }
    pin = q_pin ();
    r = q_l2_hold (img, index, 0, &t);
    if (r == 0) {
      r = settle_table (img, t, first, last);
      q_l2_release (t);
    }
    q_unpin (pin);
    q_claim_release (img, &claim);
    q_gate_leave (img);
  }
  if (r == 0 && atomic_load (&img->raw_unsettled)) {
    r = q_flush (img);
    if (r == 0)
      atomic_store (&img->raw_unsettled, false);
  }
  pthread_mutex_unlock (&img->raw_lock);
  return r;
}
