/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The highest allocated offset: the end, exclusive, in bytes, of the highest host cluster ever
 * allocated, for those who have to grow a volume before it is full.
 *
 * In the file it is header extension 0x48414c43: eight bytes, big-endian.  It is a hint until
 * proven: a writer that does not know the extension keeps it but does not keep it up to date.  So
 * at open the refcounts from the recorded value upwards are looked at, and nothing below it: never
 * the whole image.  A value that cannot be (unaligned, or past the end of the file, which another
 * writer has cut) counts as not recorded; then the look stops at the first cluster in use, coming
 * from the end.
 *
 * alloc.c raises it, and tells who watches it; flush.c calls q_highest_persist.
 *
 * Who watches takes watch_lock alone, which nobody holds for longer than it takes to wake somebody
 * up, and never alloc_lock, under which tables are read.  So none is lost: the allocator stores
 * `highest' and then looks at `watch_above'; who watches stores that and then looks at `highest'.
 */

#include <errno.h>

#include "image.h"

#define ull(v) ((unsigned long long)(v))

int
q_highest_open (struct q_image *img, struct q_error *err)
{
  const struct q_extension *e = q_extension_find (img, Q_EXT_HIGHEST_OFFSET);
  uint64_t recorded = 0, file_size, file_end, top;
  int r;

  r = q_file_size (img->file, &file_size);
  if (r < 0)
    return q_fail (err, r, "%s: cannot tell the file's size: %s", img->filename, strerror (-r));
  file_end = q_round_up (file_size, q_cluster_bytes (img));
  if (e && e->length == sizeof (be64)) {
    be64 v;

    memcpy (&v, e->data, sizeof v);
    recorded = get64 (v);
  } else if (e)
    q_log (Q_LOG_WARNING,
           "%s: highest allocated offset: length %u, should be 8; it is counted anew",
           img->filename, e->length);
  img->highest_recorded = recorded;
  if (recorded & (q_cluster_bytes (img) - 1)) {
    q_log (Q_LOG_WARNING,
           "%s: recorded highest allocated offset %llu is not aligned to a cluster; it is counted "
           "anew",
           img->filename, ull (recorded));
    recorded = 0;
  }
  if (recorded > file_end)
    recorded = 0; /* another writer cut the file, or a full disk kept it short */
  q_alloc_lock (img);
  r = q_refcount_top (img, recorded >> img->cluster_bits, file_end >> img->cluster_bits, &top);
  q_alloc_unlock (img);
  if (r < 0 && img->read_only) {
    /* Damaged refcounts keep nobody from reading, nor from checking: this is an upper bound. */
    top = file_end >> img->cluster_bits;
    r = 0;
  }
  if (r < 0)
    return q_fail (err, r, "%s: cannot read the refcounts past byte %llu: %s", img->filename,
                   ull (recorded), strerror (-r));
  atomic_store (&img->highest, top << img->cluster_bits);
  /* What lies past both was never written by anybody. */
  img->hole_from = file_end;
  return 0;
}

int
q_highest_persist (struct q_image *img)
{
  struct q_extension *e = q_extension_find (img, Q_EXT_HIGHEST_OFFSET);
  uint64_t value = q_highest_offset (img);
  be64 v = put64 (value);
  int r;

  if (e && e->length == sizeof v) {
    r = q_file_pwrite (img->file, &v, sizeof v, e->offset);
    memcpy (e->data, &v, sizeof v);
  } else if (e)
    r = 0; /* somebody else's idea of it: leave it alone */
  else {
    r = q_header_append_extension (img, Q_EXT_HIGHEST_OFFSET, &v, sizeof v);
    if (r == -E2BIG) {
      q_log (Q_LOG_INFO, "%s: the first cluster has no room to record the highest allocated offset",
             img->filename);
      r = 0;
    }
  }
  if (r == 0)
    img->highest_recorded = value;
  return r;
}

void
q_highest_tell (struct q_image *img)
{
  pthread_mutex_lock (&img->watch_lock);
  if (q_highest_offset (img) > atomic_load (&img->watch_above)) {
    atomic_store (&img->watch_above, UINT64_MAX); /* once */
    img->watch_fn (img->watch_opaque);
  }
  pthread_mutex_unlock (&img->watch_lock);
}

int
q_watch_highest (struct q_image *img, uint64_t threshold, q_highest_fn fn, void *opaque)
{
  if (img->format != Q_FORMAT_QCOW2)
    return -ENOTSUP;
  pthread_mutex_lock (&img->watch_lock);
  img->watch_fn = fn;
  img->watch_opaque = opaque;
  atomic_store (&img->watch_above, fn ? threshold : UINT64_MAX);
  pthread_mutex_unlock (&img->watch_lock);
  if (fn && q_highest_offset (img) > threshold)
    q_highest_tell (img);
  return 0;
}

uint64_t
q_amount_bytes (const struct q_image *img, const struct q_amount *amount)
{
  uint64_t whole;

  if (amount->percent == 0)
    return amount->bytes;
  whole = q_device_size (img);
  if (whole == 0)
    whole = q_size (img);
  return whole / 100 * amount->percent + whole % 100 * amount->percent / 100;
}

uint64_t
q_next_mark (uint64_t at, uint64_t step, uint64_t offset)
{
  uint64_t next;

  if (at >= offset)
    return at;
  if (step == 0 || __builtin_mul_overflow (q_div_up (offset - at, step), step, &next) ||
      __builtin_add_overflow (at, next, &next))
    return UINT64_MAX;
  return next;
}
