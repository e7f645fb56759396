/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Amending an image: its version, the width of its refcounts, lazy refcounts, what it says about
 * its data file, its size.
 *
 * One thing after the other, each durable before the next: what needs version 3 after an upgrade,
 * and before a downgrade.  Whatever can be refused without looking at the tables is refused before
 * the first change.
 */

#include <errno.h>
#include <stdlib.h>

#include "amend.h"
#include "rewrite.h"

void
q_amend_options_init (struct q_amend_options *opts)
{
  *opts = (struct q_amend_options){ .lazy_refcounts = -1, .data_file_raw = -1, .zstd = -1 };
}

/* ---- what is asked for ---------------------------------------------------------------------- */

static bool
same_string (const char *a, const char *b)
{
  return a && b ? strcmp (a, b) == 0 : a == b;
}

static int
check_backing_options (const struct q_image *img, const struct q_amend_options *opts,
                       struct q_error *err)
{
  if (!opts->backing_file && !opts->backing_format)
    return 0;
  if (same_string (opts->backing_file, img->backing_file) &&
      same_string (opts->backing_format, img->backing_format))
    return 0;
  return q_fail (err, -EINVAL, "%s: cannot amend the backing file: that is for rebase",
                 img->filename);
}

static int
check_data_options (const struct q_image *img, const struct q_amend_options *opts,
                    struct q_error *err)
{
  if (opts->data_file && !q_has_data_file (img))
    return q_fail (err, -EINVAL,
                   "%s: data_file can only be set for images that use an external data file",
                   img->filename);
  if (opts->data_file && strlen (opts->data_file) > Q_MAX_BACKING_NAME)
    return q_fail (err, -EINVAL, "%s: data_file is longer than %u bytes", img->filename,
                   Q_MAX_BACKING_NAME);
  if (opts->data_file_raw > 0 && !(img->autoclear & Q_AUTOCLEAR_DATA_FILE_RAW))
    return q_fail (err, -EINVAL,
                   "%s: data_file_raw cannot be set on an existing image: what its data file holds "
                   "is not all of the disk",
                   img->filename);
  return 0;
}

/* Version 2 must be able to say all that the image is. */
static int
check_downgrade (const struct q_image *img, uint64_t size, struct q_error *err)
{
  const struct q_snapshots *list = atomic_load (&img->snapshots);
  uint64_t other = img->incompatible & ~(Q_INCOMPAT_DIRTY | Q_INCOMPAT_COMPRESSION);
  char buf[64];

  if (q_has_data_file (img))
    return q_fail (err, -ENOTSUP, "%s: an image with an external data file cannot be downgraded",
                   img->filename);
  if (other) {
    unsigned bit = (unsigned)__builtin_ctzll (other);
    const char *name = q_feature_name (img, 0, bit, buf);

    return q_fail (err, -ENOTSUP,
                   "%s: cannot be downgraded: version 2 has no incompatible feature bit %u (%s)",
                   img->filename, bit, name ? name : "which the image does not name");
  }
  if (img->nb_bitmaps > 0)
    return q_fail (err, -ENOTSUP,
                   "%s: version 2 has no bitmaps: remove the %u that the image has before it is "
                   "downgraded",
                   img->filename, img->nb_bitmaps);
  for (uint32_t i = 0; list && i < list->n; ++i) {
    const struct q_snapshot_info *s = &list->s[i].info;

    if (s->vm_state_size > UINT32_MAX || s->disk_size != size)
      return q_fail (err, -ENOTSUP,
                     "%s: internal snapshot %s keeps it from being downgraded: version 2 cannot "
                     "say that its disk has %llu bytes and its VM state %llu",
                     img->filename, list->s[i].id, (unsigned long long)s->disk_size,
                     (unsigned long long)s->vm_state_size);
  }
  return 0;
}

static int
check_options (const struct q_image *img, const struct q_amend_options *opts, unsigned version,
               unsigned order, struct q_error *err)
{
  int r = check_backing_options (img, opts, err);

  if (r == 0)
    r = check_data_options (img, opts, err);
  if (r < 0)
    return r;
  if (opts->version != 0 && opts->version != 2 && opts->version != 3)
    return q_fail (err, -EINVAL, "%s: version %u does not exist: it is 2 or 3", img->filename,
                   opts->version);
  if (opts->refcount_bits > 64 || (opts->refcount_bits & (opts->refcount_bits - 1)) != 0)
    return q_fail (err, -EINVAL, "%s: refcount_bits %u is not a power of two from 1 to 64",
                   img->filename, opts->refcount_bits);
  if (version < 3 && order != 4 && opts->refcount_bits)
    return q_fail (err, -EINVAL, "%s: refcounts of other than 16 bits need version 3 (compat=1.1)",
                   img->filename);
  if (version < 3 && order != 4)
    return q_fail (err, -ENOTSUP, "%s: version 2 (compat=0.10) needs refcount_bits=16",
                   img->filename);
  if (version < 3 && opts->zstd > 0)
    return q_fail (err, -EINVAL, "%s: zstd needs version 3 (compat=1.1)", img->filename);
  if (version < 3 && opts->lazy_refcounts > 0 && !(img->compatible & Q_COMPAT_LAZY_REFCOUNTS))
    return q_fail (err, -EINVAL, "%s: lazy refcounts need version 3 (compat=1.1)", img->filename);
  return version < img->version ? check_downgrade (img, opts->size ? opts->size : q_size (img), err)
                                : 0;
}

/* ---- one thing after the other -------------------------------------------------------------- */

/* Until nothing is dirty and limbo is empty. */
static int
settle (struct q_image *img, struct q_error *err)
{
  int r = 0;

  for (int round = 0; r == 0 && round < 3; ++round)
    r = q_flush (img);
  return r < 0 ? q_fail (err, r, "%s: flush: %s", img->filename, strerror (-r)) : 0;
}

static int
write_draft (struct q_image *img, struct q_draft *d, struct q_error *err)
{
  int r;

  q_flush_hold (img);
  r = q_header_rewrite (img, d, err);
  q_flush_let_go (img);
  return r;
}

/* With the names of features, or without if there is no room for them. */
static int
write_named_draft (struct q_image *img, struct q_draft *d, struct q_error *err)
{
  int r = q_draft_name_features (d);

  if (r == 0)
    r = write_draft (img, d, err);
  if (r == -E2BIG) {
    if (err)
      err->text[0] = '\0';
    r = q_draft_set (d, Q_EXT_FEATURE_NAMES, NULL, 0);
    if (r == 0)
      r = write_draft (img, d, err);
  }
  return r;
}

static int
upgrade (struct q_image *img, struct q_error *err)
{
  struct q_draft d;
  /* Version 3 wants to know the size of a snapshot's disk. */
  int r = q_snapshots_record_sizes (img, err);

  if (r == 0)
    r = settle (img, err);
  if (r < 0)
    return r;
  r = q_draft_init (&d, img);
  if (r == 0) {
    d.version = 3;
    r = write_named_draft (img, &d, err);
  }
  q_draft_free (&d);
  return r < 0 ? q_fail (err, r, "%s: upgrading: %s", img->filename, strerror (-r)) : 0;
}

static int
has_compressed (struct q_image *img)
{
  uint64_t offset = 0, size = q_size (img);

  while (offset < size) {
    struct q_extent e;
    q_pin_t pin = q_pin ();
    int n = q_map (img, offset, size - offset, &e, 1, Q_MAP_TOP);

    q_unpin (pin);
    if (n < 0)
      return n;
    if (e.kind == Q_COMPRESSED)
      return 1;
    offset += e.len;
  }
  return 0;
}

/* There must be nothing that was compressed in the old way. */
static int
change_compression (struct q_image *img, bool zstd, struct q_error *err)
{
  struct q_draft d;
  int r = has_compressed (img);

  if (r < 0)
    return q_fail (err, r, "%s: cannot read its tables: %s", img->filename, strerror (-r));
  if (r > 0 || q_snapshots_count (img) > 0)
    return q_fail (err, -ENOTSUP,
                   "%s: the compression type cannot be changed while there %s: 'nbdcow-img "
                   "recompress' changes it",
                   img->filename,
                   r > 0 ? "are compressed clusters" : "may be compressed clusters in snapshots");
  r = q_draft_init (&d, img);
  if (r == 0) {
    d.compression_type = zstd ? Q_COMPRESSION_ZSTD : Q_COMPRESSION_ZLIB;
    d.incompatible &= ~Q_INCOMPAT_COMPRESSION;
    d.incompatible |= zstd ? Q_INCOMPAT_COMPRESSION : 0;
    r = write_named_draft (img, &d, err);
  }
  q_draft_free (&d);
  return r < 0 ? q_fail (err, r, "%s: changing the compression type: %s", img->filename,
                         strerror (-r))
               : 0;
}

static int
downgrade (struct q_image *img, const struct q_amend_progress *progress, struct q_error *err)
{
  struct q_draft d;
  int r = 0;

  if (img->incompatible & Q_INCOMPAT_COMPRESSION) {
    r = has_compressed (img);
    if (r < 0)
      return q_fail (err, r, "%s: cannot read its tables: %s", img->filename, strerror (-r));
    if (r > 0 || q_snapshots_count (img) > 0)
      return q_fail (err, -ENOTSUP,
                     "%s: cannot be downgraded: version 2 has no compression of type zstd, and "
                     "there %s",
                     img->filename,
                     r > 0 ? "are compressed clusters" : "may be compressed clusters in snapshots");
  }
  r = q_expand_zeroes (img, progress, err);
  if (r == 0)
    r = settle (img, err);
  if (r < 0)
    return r;
  r = q_draft_init (&d, img);
  if (r == 0) {
    d.version = 2;
    d.incompatible = d.compatible = d.autoclear = 0;
    d.compression_type = Q_COMPRESSION_ZLIB;
    r = q_draft_name_features (&d);
  }
  if (r == 0)
    r = write_draft (img, &d, err);
  q_draft_free (&d);
  return r < 0 ? q_fail (err, r, "%s: downgrading: %s", img->filename, strerror (-r)) : 0;
}

/* What is said in the header alone. */
static int
change_header (struct q_image *img, const struct q_amend_options *opts, struct q_error *err)
{
  struct q_draft d;
  int r = q_draft_init (&d, img);

  if (opts->lazy_refcounts >= 0) {
    d.compatible &= ~Q_COMPAT_LAZY_REFCOUNTS;
    d.compatible |= opts->lazy_refcounts > 0 ? Q_COMPAT_LAZY_REFCOUNTS : 0;
  }
  if (opts->data_file_raw == 0)
    d.autoclear &= ~Q_AUTOCLEAR_DATA_FILE_RAW;
  if (r == 0 && opts->data_file)
    r = q_draft_set (&d, Q_EXT_DATA_FILE, opts->data_file[0] ? opts->data_file : NULL,
                     (uint32_t)strlen (opts->data_file));
  if (r == 0)
    r = write_draft (img, &d, err);
  q_draft_free (&d);
  if (r == 0)
    img->data_raw = img->data_raw && (img->autoclear & Q_AUTOCLEAR_DATA_FILE_RAW);
  return r < 0 ? q_fail (err, r, "%s: changing the header: %s", img->filename, strerror (-r)) : 0;
}

static int
check_image (struct q_image *img, struct q_error *err)
{
  if (img->format != Q_FORMAT_QCOW2)
    return q_fail (err, -ENOTSUP, "%s: a raw image has nothing to amend", img->filename);
  if (q_writable (img) < 0)
    return q_fail (err, -EROFS, "%s: is open read-only", img->filename);
  if (img->state)
    return q_fail (err, -EBUSY, "%s: is open with a state file: it cannot be amended",
                   img->filename);
  return 0;
}

int
q_amend (struct q_image *img, const struct q_amend_options *opts, struct q_error *err)
{
  unsigned version = opts->version ? opts->version : img->version;
  unsigned order =
      opts->refcount_bits ? (unsigned)__builtin_ctz (opts->refcount_bits) : img->refcount_order;
  unsigned steps = (version != img->version) + (order != img->refcount_order);
  struct q_amend_progress progress = { .fn = opts->progress,
                                       .opaque = opts->opaque,
                                       .to = steps ? 1.0 / steps : 1 };
  int r;

  if (err)
    err->text[0] = '\0';
  r = check_image (img, err);
  if (r == 0)
    r = check_options (img, opts, version, order, err);
  if (r == 0)
    r = settle (img, err);
  if (r == 0 && version > img->version)
    r = upgrade (img, err);
  if (r == 0 && order != img->refcount_order) {
    if (version > 2 && steps == 2 && opts->version > 2)
      progress.from = 0.5, progress.to = 1;
    q_flush_hold (img);
    r = q_refcount_change_width (img, order, &progress, err);
    q_flush_let_go (img);
  }
  if (r == 0 && (opts->lazy_refcounts >= 0 || opts->data_file_raw == 0 || opts->data_file))
    r = change_header (img, opts, err);
  if (r == 0 && opts->zstd >= 0 && (img->compression_type == Q_COMPRESSION_ZSTD) != opts->zstd)
    r = change_compression (img, opts->zstd, err);
  if (r == 0 && opts->size && opts->size != q_size (img))
    r = q_resize (img, opts->size, err);
  if (r == 0 && version < img->version) {
    progress.from = steps == 2 ? 0.5 : 0;
    progress.to = 1;
    r = settle (img, err);
    if (r == 0)
      r = downgrade (img, &progress, err);
  }
  if (r == 0)
    q_amend_report (&(struct q_amend_progress){ opts->progress, opts->opaque, 0, 1 }, 1);
  return r;
}
