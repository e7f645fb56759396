/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Growing a disk while it is in use.
 *
 * The order: a longer L1 table if it takes one; then the new part is made to read as zeros (a
 * backing file may be longer than the old size, and the last cluster may have stale bytes behind
 * it), all of it durable; last the size in the header.  A crash before that leaves the old size
 * with harmless zeros behind it.  Bitmaps are readied before, and grow after it.
 */

#include <errno.h>

#include "image.h"

#define ull(v) ((unsigned long long)(v))

static int
grow_raw (struct q_image *img, uint64_t size)
{
  int r = img->file->is_device ? -ENOTSUP : q_file_truncate (img->file, size);

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
  int r = q_bitmaps_resize_prepare (img, size, &bitmaps, err);

  if (r < 0)
    return r;
  q_flush_hold (img);
  r = q_l1_grow (img, (uint32_t)q_div_up (size, 1ull << shift));
  q_flush_let_go (img);
  if (r < 0) {
    q_bitmaps_resize_abort (bitmaps);
    return r;
  }
  /* From here on requests may reach the new part; nobody knows of it before we return. */
  atomic_store (&img->size, size);
  r = q_zero (img, old, size - old, Q_ZERO_UNMAP);
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

int
q_resize (struct q_image *img, uint64_t size, struct q_error *err)
{
  uint64_t old = q_size (img);
  unsigned shift = img->cluster_bits + img->l2_bits;
  int r = q_writable (img);

  if (err)
    err->text[0] = '\0';
  if (r < 0)
    return q_fail (err, r, "%s: the image is read-only", img->filename);
  if (size % 512 != 0)
    return q_fail (err, -EINVAL, "%s: a size of %llu is not a multiple of 512", img->filename,
                   ull (size));
  if (size < old)
    return q_fail (err, -ENOTSUP, "%s: cannot be made smaller (from %llu to %llu bytes)",
                   img->filename, ull (old), ull (size));
  if (img->format == Q_FORMAT_QCOW2) {
    if (img->version == 2 && q_snapshots_count (img) > 0)
      return q_fail (
          err, -ENOTSUP,
          "%s: a version 2 image with snapshots cannot change its size: the snapshots do "
          "not record theirs",
          img->filename);
    if (size > INT64_MAX - q_cluster_bytes (img) ||
        q_div_up (size, 1ull << shift) > Q_MAX_L1_BYTES / 8)
      return q_fail (err, -EFBIG, "%s: %llu bytes are more than clusters of %u bytes allow",
                     img->filename, ull (size), q_cluster_size (img));
  }
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
