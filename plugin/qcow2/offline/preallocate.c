/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Giving a part of the disk that reads as zeros its clusters, and their space, before they are
 * written.
 *
 * Whole clusters are allocated by plans like those of a write (write.c), whose data is zeros that
 * the storage makes: a hole, or reserved space.  Parts of clusters, and encrypted disks, whose
 * zeros are not the storage's, are written.
 */

#include <errno.h>
#include <stdlib.h>

#include "image.h"

/* Makes the bytes at HOST zeros, and the file long enough for them: a cluster past its end that a
 * table points at is what checkers call corrupt, also when there was no room for the next one. */
static int
make_zeros (struct q_file *file, uint64_t host, uint64_t len, enum q_preallocation mode)
{
  int r = q_file_write_zeroes (file, host, len, true);

  if (r == 0 && mode == Q_PREALLOC_FALLOC) {
    r = q_file_allocate (file, host, len);
    if (r == -ENOTSUP)
      r = q_file_write_zeroes (file, host, len, false);
  }
  return r;
}

/* What has a place already, as all of a raw data file has. */
static int
reserve (struct q_file *file, uint64_t host, uint64_t len, enum q_preallocation mode)
{
  int r = mode == Q_PREALLOC_FALLOC ? q_file_allocate (file, host, len) : 0;

  return r == -ENOTSUP ? 0 : r;
}

/* Some clusters at OFFSET; *DONE says how many bytes. */
static int
allocate (struct q_image *img, uint64_t offset, uint64_t len, enum q_preallocation mode,
          uint64_t *done)
{
  struct q_write_plan plan;
  q_pin_t pin = q_pin ();
  int r = q_write_begin (img, offset, len, 0, &plan);

  if (r < 0)
    goto out;
  *done = plan.len;
  for (unsigned i = 0; r == 0 && i < plan.n_runs; ++i)
    r = plan.allocates ? make_zeros (plan.file, plan.run[i].host, plan.run[i].len, mode)
                       : reserve (plan.file, plan.run[i].host, plan.run[i].len, mode);
  if (r == 0)
    q_write_commit (&plan);
  else
    q_write_abort (&plan);
out:
  q_unpin (pin);
  return r;
}

static int
allocate_all (struct q_image *img, uint64_t offset, uint64_t end, enum q_preallocation mode)
{
  bool retried = false;
  int r = 0;

  while (r == 0 && offset < end) {
    uint64_t done = 0;

    r = q_flush_throttle (img);
    if (r == 0)
      r = allocate (img, offset, end - offset, mode, &done);
    if (r == 0)
      offset += done;
    if (r == -ENOSPC && !retried && q_flush_frees_space (img)) {
      retried = true;
      r = 0;
    }
  }
  return r;
}

static int
preallocate_raw (struct q_image *img, uint64_t offset, uint64_t len)
{
  int r = q_file_allocate (img->file, offset, len);

  q_note_data_written (img);
  return r == -ENOTSUP ? q_write_zeros (img, offset, len) : r;
}

int
q_preallocate (struct q_image *img, uint64_t offset, uint64_t len, enum q_preallocation mode)
{
  uint64_t cluster = q_cluster_bytes (img), end = offset + len, first, last;
  int r = q_writable (img);

  if (r < 0)
    return r;
  if (offset > q_size (img) || len > q_size (img) - offset)
    return -ENOSPC;
  if (mode == Q_PREALLOC_OFF || len == 0)
    return 0;
  if (mode == Q_PREALLOC_FULL || img->crypt_method != Q_CRYPT_NONE)
    return q_write_zeros (img, offset, len);
  if (img->format != Q_FORMAT_QCOW2)
    return mode == Q_PREALLOC_METADATA ? -ENOTSUP : preallocate_raw (img, offset, len);
  first = q_min (q_round_up (offset, cluster), end);
  last = end & ~(cluster - 1);
  last = last > first ? last : first;
  r = q_write_zeros (img, offset, first - offset);
  if (r == 0)
    r = allocate_all (img, first, last, mode);
  if (r == 0)
    r = q_write_zeros (img, last, end - last);
  return r;
}
