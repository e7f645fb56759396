/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The header (specification: "Header", "Additional fields"): parsing with every field checked, and
 * the few changes that are made to a header in use.
 *
 * A header in use is only changed so that a crash at any point leaves a valid one: either one write
 * inside the first 512-byte sector, or an extension added in the unused part of the first cluster
 * and switched on by a write of 8 bytes.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "image.h"

#define ull(v) ((unsigned long long)(v))

static int
check_table (const struct q_image *img, const char *what, uint64_t offset, uint64_t bytes,
             uint64_t max, struct q_error *err)
{
  if (offset & (q_cluster_bytes (img) - 1))
    return q_fail (err, -EINVAL, "%s: %s offset %#llx is not aligned to the cluster size %llu",
                   img->filename, what, ull (offset), ull (q_cluster_bytes (img)));
  if (bytes > max)
    return q_fail (err, -EFBIG, "%s: %s of %llu bytes, at most %llu are supported", img->filename,
                   what, ull (bytes), ull (max));
  if (offset > Q_MAX_HOST_OFFSET || bytes > Q_MAX_HOST_OFFSET - offset)
    return q_fail (err, -EINVAL, "%s: %s offset %#llx is past the end of what a file can be",
                   img->filename, what, ull (offset));
  return 0;
}

/* Names the incompatible features in UNKNOWN, as the image does. */
static int
refuse_features (const struct q_image *img, uint64_t unknown, struct q_error *err)
{
  const bool several = unknown & (unknown - 1);
  char list[600] = "", buf[64];
  size_t n = 0;

  for (; unknown; unknown &= unknown - 1) {
    unsigned bit = (unsigned)__builtin_ctzll (unknown);
    const char *name = q_feature_name (img, 0, bit, buf);

    if (n + 100 > sizeof list) { /* a name has less than 64 bytes */
      snprintf (list + n, sizeof list - n, ", ...");
      break;
    }
    n += (size_t)snprintf (list + n, sizeof list - n, "%s%u (%s)", n ? ", " : "", bit,
                           name ? name : "which the image does not name");
  }
  return q_fail (err, -ENOTSUP,
                 several ? "%s: incompatible feature bits %s are not supported, the image cannot "
                           "be read without them"
                         : "%s: incompatible feature bit %s is not supported, the image cannot be "
                           "read without it",
                 img->filename, list);
}

static int
check_features (struct q_image *img, struct q_error *err)
{
  uint64_t known = Q_INCOMPAT_DIRTY | Q_INCOMPAT_CORRUPT | Q_INCOMPAT_COMPRESSION |
                   Q_INCOMPAT_EXTL2 | Q_INCOMPAT_DATA_FILE;
  uint64_t unknown = img->incompatible & ~known;

  if (unknown)
    return refuse_features (img, unknown, err);
  if ((img->autoclear & Q_AUTOCLEAR_DATA_FILE_RAW) && !q_has_data_file (img))
    return q_fail (err, -EINVAL,
                   "%s: autoclear feature bit 1 (raw external data) is set without incompatible "
                   "feature bit 2 (external data file)",
                   img->filename);
  if (img->crypt_method > Q_CRYPT_LUKS)
    return q_fail (err, -EINVAL, "%s: crypt_method is %u, should be 0 (none), 1 (AES) or 2 (LUKS)",
                   img->filename, img->crypt_method);
  if ((img->crypt_method == Q_CRYPT_LUKS) != (q_extension_find (img, Q_EXT_CRYPTO) != NULL))
    return q_fail (
        err, -EINVAL,
        "%s: crypt_method is %u %s an encryption header extension: it goes with 2 (LUKS) "
        "and nothing else",
        img->filename, img->crypt_method, img->crypt_method == Q_CRYPT_LUKS ? "without" : "with");
  return 0;
}

static int
parse_compression (struct q_image *img, struct q_error *err)
{
  bool flagged = img->incompatible & Q_INCOMPAT_COMPRESSION;

  if (flagged != (img->compression_type != Q_COMPRESSION_ZLIB))
    return q_fail (err, -EINVAL,
                   "%s: compression_type is %u while incompatible feature bit 3 is %s: they must "
                   "agree",
                   img->filename, img->compression_type, flagged ? "set" : "clear");
  if (img->compression_type > Q_COMPRESSION_ZSTD)
    return q_fail (err, -ENOTSUP, "%s: compression_type %u is not supported (0 zlib, 1 zstd)",
                   img->filename, img->compression_type);
  return 0;
}

/* Fields that version 2 has, and version 3 adds. */
static int
parse_fields (struct q_image *img, const struct qcow2_header *h, struct q_error *err)
{
  img->version = get32 (h->version);
  if (img->version != 2 && img->version != 3)
    return q_fail (err, -ENOTSUP, "%s: qcow2 version %u is not supported (2 and 3 are)",
                   img->filename, img->version);
  img->cluster_bits = get32 (h->cluster_bits);
  if (img->cluster_bits < Q_MIN_CLUSTER_BITS || img->cluster_bits > Q_MAX_CLUSTER_BITS)
    return q_fail (err, -EINVAL, "%s: cluster_bits is %u, should be %u to %u", img->filename,
                   img->cluster_bits, Q_MIN_CLUSTER_BITS, Q_MAX_CLUSTER_BITS);
  img->l2_bits = img->cluster_bits - 3;
  img->subcluster_bits = img->cluster_bits;
  atomic_init (&img->size, get64 (h->size));
  img->backing_file_offset = get64 (h->backing_file_offset);
  img->backing_file_size = get32 (h->backing_file_size);
  img->crypt_method = get32 (h->crypt_method);
  img->l1_size = get32 (h->l1_size);
  img->l1_offset = get64 (h->l1_table_offset);
  img->reftable_offset = get64 (h->refcount_table_offset);
  img->reftable_clusters = get32 (h->refcount_table_clusters);
  img->nb_snapshots = get32 (h->nb_snapshots);
  img->snapshots_offset = get64 (h->snapshots_offset);
  if (img->version == 2) {
    img->refcount_order = 4;
    img->header_length = Q_HEADER_V2_LENGTH;
    return 0;
  }
  img->incompatible = get64 (h->incompatible_features);
  img->compatible = get64 (h->compatible_features);
  img->autoclear = get64 (h->autoclear_features);
  if (img->incompatible & Q_INCOMPAT_EXTL2) {
    if (img->cluster_bits < Q_MIN_EXTL2_BITS)
      return q_fail (err, -EINVAL,
                     "%s: cluster_bits is %u, should be at least %u with extended L2 entries",
                     img->filename, img->cluster_bits, Q_MIN_EXTL2_BITS);
    img->l2_bits = img->cluster_bits - 4;
    img->subcluster_bits = img->cluster_bits - Q_SUBCLUSTER_BITS;
  }
  img->refcount_order = get32 (h->refcount_order);
  img->header_length = get32 (h->header_length);
  if (img->refcount_order > 6)
    return q_fail (err, -EINVAL, "%s: refcount_order is %u, should be at most 6", img->filename,
                   img->refcount_order);
  if (img->header_length < Q_HEADER_V3_LENGTH || img->header_length % 8 != 0 ||
      img->header_length > q_cluster_bytes (img))
    return q_fail (err, -EINVAL,
                   "%s: header_length is %u, should be a multiple of 8 from %u to the cluster size",
                   img->filename, img->header_length, Q_HEADER_V3_LENGTH);
  if (img->header_length > offsetof (struct qcow2_header, compression_type))
    img->compression_type = h->compression_type;
  return parse_compression (img, err);
}

int
q_header_check_reftable (const struct q_image *img, uint64_t file_size, struct q_error *err)
{
  int r = check_table (img, "refcount_table", img->reftable_offset,
                       (uint64_t)img->reftable_clusters << img->cluster_bits, Q_MAX_REFTABLE_BYTES,
                       err);

  if (r < 0)
    return r;
  if (img->reftable_clusters == 0 || img->reftable_offset == 0)
    return q_fail (err, -EINVAL, "%s: refcount_table_%s is 0: there is no refcount table",
                   img->filename, img->reftable_clusters == 0 ? "clusters" : "offset");
  if (img->reftable_offset >= file_size)
    return q_fail (err, -EINVAL,
                   "%s: truncated: the refcount table begins at byte %llu, the file ends at %llu",
                   img->filename, ull (img->reftable_offset), ull (file_size));
  return 0;
}

static int
check_geometry (struct q_image *img, struct q_error *err)
{
  uint64_t size = atomic_load (&img->size), cluster = q_cluster_bytes (img), need, file_size;
  unsigned shift = img->cluster_bits + img->l2_bits;
  int r;

  if (size > INT64_MAX - cluster)
    return q_fail (err, -EFBIG, "%s: size %llu is more than a disk can have", img->filename,
                   ull (size));
  need = q_div_up (size, 1ull << shift);
  r = check_table (img, "l1_table", img->l1_offset, img->l1_size * 8ull, Q_MAX_L1_BYTES, err);
  if (r < 0)
    return r;
  if (img->l1_size < need)
    return q_fail (err, -EINVAL, "%s: l1_size is %u, too small for a size of %llu: %llu are needed",
                   img->filename, img->l1_size, ull (size), ull (need));
  if (img->l1_size > 0 && img->l1_offset == 0)
    return q_fail (err, -EINVAL, "%s: l1_table_offset is 0: there is no L1 table", img->filename);
  if (img->nb_snapshots > Q_MAX_SNAPSHOTS)
    return q_fail (err, -EFBIG, "%s: nb_snapshots is %u, at most %u are supported", img->filename,
                   img->nb_snapshots, Q_MAX_SNAPSHOTS);
  if (img->nb_snapshots > 0) {
    r = check_table (img, "snapshots", img->snapshots_offset,
                     img->nb_snapshots * (uint64_t)sizeof (struct qcow2_snapshot),
                     Q_MAX_SNAPSHOT_TABLE, err);
    if (r < 0)
      return r;
  }

  /* The tables that everything hangs on must be in the file: past its end they would read as empty
   * and a truncated image would pass for a blank disk. */
  r = q_file_size (img->file, &file_size);
  if (r < 0)
    return q_fail (err, r, "%s: cannot tell the file's size: %s", img->filename, strerror (-r));
  if (img->l1_offset + img->l1_size * 8ull > file_size)
    return q_fail (err, -EINVAL,
                   "%s: truncated: the L1 table ends at byte %llu, the file at byte %llu",
                   img->filename, ull (img->l1_offset + img->l1_size * 8ull), ull (file_size));
  if (!img->repairing) { /* who repairs makes another one */
    struct q_error why = { "" };

    r = q_header_check_reftable (img, file_size, &why);
    if (r < 0)
      return q_fail (err, r, "%s (nbdcow-img check -r all makes another one)", why.text);
  }
  if (img->nb_snapshots > 0 && img->snapshots_offset >= file_size)
    return q_fail (err, -EINVAL,
                   "%s: truncated: the snapshot table begins at byte %llu, the file ends at %llu",
                   img->filename, ull (img->snapshots_offset), ull (file_size));
  return 0;
}

static int
parse_backing_name (struct q_image *img, const uint8_t *buf, uint64_t cluster, struct q_error *err)
{
  uint64_t offset = img->backing_file_offset, size = img->backing_file_size;

  if (offset == 0)
    return 0;
  if (size > Q_MAX_BACKING_NAME)
    return q_fail (err, -EINVAL, "%s: backing_file_size is %llu, at most %u are allowed",
                   img->filename, ull (size), Q_MAX_BACKING_NAME);
  if (offset < img->header_length || offset > cluster || size > cluster - offset)
    return q_fail (err, -EINVAL,
                   "%s: backing_file_offset %llu with a name of %llu bytes is not inside the first "
                   "cluster",
                   img->filename, ull (offset), ull (size));
  if (size == 0)
    return 0;
  if (memchr (buf + offset, 0, size))
    return q_fail (err, -EINVAL, "%s: the backing file name has a NUL byte in it", img->filename);
  img->backing_file = strndup ((const char *)buf + offset, size);
  return img->backing_file ? 0 : q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
}

int
q_header_read (struct q_image *img, struct q_error *err)
{
  struct qcow2_header h;
  uint64_t file_size, end;
  uint8_t *buf = NULL;
  int r;

  r = q_file_size (img->file, &file_size);
  if (r == 0)
    r = q_file_pread (img->file, &h, sizeof h, 0);
  if (r < 0)
    return q_fail (err, r, "%s: cannot read the header: %s", img->filename, strerror (-r));
  if (file_size < Q_HEADER_V2_LENGTH)
    return q_fail (err, -EINVAL, "%s: is %llu bytes long, a qcow2 header is at least %u",
                   img->filename, ull (file_size), Q_HEADER_V2_LENGTH);
  if (get32 (h.magic) != Q_MAGIC)
    return q_fail (err, -EINVAL,
                   "%s: is not a qcow2 image: it begins with 0x%08x, not with 0x%08x (a raw image "
                   "must be named as such: format raw)",
                   img->filename, get32 (h.magic), Q_MAGIC);
  r = parse_fields (img, &h, err);
  if (r < 0)
    return r;

  buf = malloc (q_cluster_bytes (img));
  if (!buf)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  r = q_file_pread (img->file, buf, q_cluster_bytes (img), 0);
  if (r < 0) {
    q_fail (err, r, "%s: cannot read the header: %s", img->filename, strerror (-r));
    goto out;
  }
  end = q_cluster_bytes (img);
  /* Writers before 2012 put the name directly behind a version 2 header. */
  if (img->backing_file_offset >= img->header_length && img->backing_file_offset < end)
    end = img->backing_file_offset;
  r = q_extensions_parse (img, buf, img->header_length, end, err);
  if (r == 0)
    r = check_features (img, err);
  if (r == 0)
    r = parse_backing_name (img, buf, q_cluster_bytes (img), err);
  if (r == 0)
    r = check_geometry (img, err);
out:
  free (buf);
  return r;
}

void
q_header_free (struct q_image *img)
{
  struct q_extension *e;

  while ((e = img->extensions) != NULL) {
    img->extensions = e->next;
    free (e);
  }
  free (img->backing_file);
  free (img->backing_format);
  free (img->backing_path);
  free (img->data_file);
  img->nb_bitmaps = 0;
  img->backing_file = img->backing_format = img->backing_path = img->data_file = NULL;
}

/* ---- changes in place ---------------------------------------------------------------------- */

/* What is written is what the three are by then: nobody's change is undone by another's write. */
int
q_header_write_features (struct q_image *img)
{
  struct {
    be64 incompatible, compatible, autoclear;
  } __attribute__ ((packed)) f;
  int r;

  if (img->version < 3)
    return 0;
  pthread_mutex_lock (&img->features_lock);
  f.incompatible = put64 (img->incompatible);
  f.compatible = put64 (img->compatible);
  f.autoclear = put64 (img->autoclear);
  r = q_file_pwrite (img->file, &f, sizeof f,
                     offsetof (struct qcow2_header, incompatible_features));
  pthread_mutex_unlock (&img->features_lock);
  return r;
}

int
q_header_write_l1 (struct q_image *img)
{
  struct {
    be32 l1_size;
    be64 l1_table_offset;
  } __attribute__ ((packed)) f = { put32 (img->l1_size), put64 (img->l1_offset) };

  return q_file_pwrite (img->file, &f, sizeof f, offsetof (struct qcow2_header, l1_size));
}

int
q_header_write_size (struct q_image *img)
{
  be64 size = put64 (q_size (img));

  return q_file_pwrite (img->file, &size, sizeof size, offsetof (struct qcow2_header, size));
}

/* A sync here may be the one that was to make other writes durable: its failure cannot be forgotten
 * (invariant 7). */
static int
sync_header (struct q_image *img)
{
  int r = q_file_sync (img->file);

  return r < 0 ? q_stick (img, r, "syncing the header failed") : 0;
}

int
q_header_write_disk (struct q_image *img, uint64_t size, uint32_t l1_size, uint64_t l1_offset)
{
  struct {
    be64 size;
    be32 crypt_method, l1_size;
    be64 l1_table_offset;
  } __attribute__ ((packed))
  f = { put64 (size), put32 (img->crypt_method), put32 (l1_size), put64 (l1_offset) };

  return q_file_pwrite (img->file, &f, sizeof f, offsetof (struct qcow2_header, size));
}

int
q_header_write_snapshots (struct q_image *img, uint32_t n, uint64_t offset)
{
  struct {
    be32 nb_snapshots;
    be64 snapshots_offset;
  } __attribute__ ((packed)) f = { put32 (n), put64 (offset) };

  return q_file_pwrite (img->file, &f, sizeof f, offsetof (struct qcow2_header, nb_snapshots));
}

/* Whether that is a change. */
static bool
set_dirty (struct q_image *img, bool dirty)
{
  uint64_t before = dirty ? atomic_fetch_or (&img->incompatible, Q_INCOMPAT_DIRTY)
                          : atomic_fetch_and (&img->incompatible, ~Q_INCOMPAT_DIRTY);

  return !(before & Q_INCOMPAT_DIRTY) == dirty;
}

int
q_header_set_dirty (struct q_image *img, bool dirty)
{
  int r;

  if (img->version < 3 || !set_dirty (img, dirty))
    return 0;
  r = q_header_write_features (img);
  if (r == 0)
    return sync_header (img);
  set_dirty (img, !dirty);
  return r;
}

int
q_header_write_reftable (struct q_image *img, uint64_t offset, uint32_t clusters)
{
  struct {
    be64 offset;
    be32 clusters;
  } __attribute__ ((packed)) f = { put64 (offset), put32 (clusters) };

  return q_file_pwrite (img->file, &f, sizeof f,
                        offsetof (struct qcow2_header, refcount_table_offset));
}

/* Moves the backing file name to byte TO, out of the way of what is to be added.  The old name
 * stays until the new one is durable.  Where the old name itself ends the extension area, an end
 * marker must take its place in the same instant: one write inside the first sector, or not at all.
 */
static int
move_backing_name (struct q_image *img, uint64_t to)
{
  uint8_t sector[512];
  be64 f = put64 (to);
  int r;

  if (!img->extensions_marked &&
      img->extensions_end + sizeof (struct qcow2_extension) > sizeof sector)
    return -E2BIG;
  r = img->backing_file_size > 0
          ? q_file_pwrite (img->file, img->backing_file, img->backing_file_size, to)
          : 0;
  if (r == 0)
    r = sync_header (img);
  if (r == 0)
    r = q_file_pread (img->file, sector, sizeof sector, 0);
  if (r == 0) {
    memcpy (sector + offsetof (struct qcow2_header, backing_file_offset), &f, sizeof f);
    if (!img->extensions_marked)
      memset (sector + img->extensions_end, 0, sizeof (struct qcow2_extension));
    r = q_file_pwrite (img->file, sector, sizeof sector, 0);
  }
  if (r == 0)
    r = sync_header (img);
  if (r == 0) {
    img->backing_file_offset = to;
    img->extensions_marked = true;
  }
  return r;
}

/* Where the name begins, extensions end, also if it is of no bytes. */
static bool
name_is_before (const struct q_image *img, uint64_t end)
{
  return img->backing_file_offset > 0 && img->backing_file_offset < end;
}

/* Adds an entry to the feature name table, which is the last extension.  A table with an entry of
 * zeros is valid at every point: first room behind it, then its length, then the entry. */
static int
extend_feature_names (struct q_image *img, struct q_extension **pe,
                      const struct qcow2_feature_name *f)
{
  uint8_t blank[sizeof *f + sizeof (struct qcow2_extension)] = { 0 };
  struct q_extension *e = *pe, *longer;
  uint64_t end = e->offset + e->length;
  be32 length = put32 (e->length + (uint32_t)sizeof *f);
  int r;

  longer = realloc (e, sizeof *e + e->length + sizeof *f);
  if (!longer)
    return -ENOMEM;
  *pe = e = longer;
  r = q_file_pwrite (img->file, blank, sizeof blank, end);
  if (r == 0)
    r = sync_header (img);
  if (r == 0)
    r = q_file_pwrite (img->file, &length, sizeof length,
                       e->offset - sizeof (struct qcow2_extension) +
                           offsetof (struct qcow2_extension, length));
  if (r == 0)
    r = sync_header (img);
  if (r == 0)
    r = q_file_pwrite (img->file, f, sizeof *f, end);
  if (r == 0) {
    memcpy (e->data + e->length, f, sizeof *f);
    e->length += (uint32_t)sizeof *f;
    img->extensions_end += sizeof *f;
  }
  return r;
}

int
q_header_name_session (struct q_image *img)
{
  struct qcow2_feature_name f = { 2, 63, "nbdcow session" };
  struct q_extension **pe = &img->extensions, *e;
  uint64_t limit = q_cluster_bytes (img);
  size_t i;

  while ((e = *pe) != NULL && e->type != Q_EXT_FEATURE_NAMES)
    pe = &e->next;
  if (!e) {
    int r = q_header_append_extension (img, Q_EXT_FEATURE_NAMES, &f, sizeof f);

    return r == -E2BIG ? 0 : r;
  }
  for (i = 0; i + sizeof f <= e->length; i += sizeof f)
    if (e->data[i] == f.type && e->data[i + 1] == f.bit)
      return 0;
  if (e->next)
    return 0; /* no room behind it: the name is a courtesy */
  if (name_is_before (img, img->extensions_end + sizeof f + sizeof (struct qcow2_extension))) {
    uint64_t to = q_round_up (img->backing_file_offset + img->backing_file_size, 8) +
                  sizeof f; /* past both the old name and the longer table */
    int r;

    if (to + img->backing_file_size > limit)
      return 0;
    r = move_backing_name (img, to);
    if (r < 0)
      return r == -E2BIG ? 0 : r;
  }
  if (img->extensions_end + sizeof f + sizeof (struct qcow2_extension) > limit)
    return 0;
  return extend_feature_names (img, pe, &f);
}

/* Room of exactly LENGTH that a dropped extension has left, or NULL. */
static struct q_extension *
find_unused (const struct q_image *img, uint32_t length)
{
  struct q_extension *e = img->extensions;

  while (e && (e->type != Q_EXT_UNUSED || e->length != length))
    e = e->next;
  return e;
}

/* Four aligned bytes that cannot tear. */
static int
write_type (struct q_image *img, struct q_extension *e, uint32_t type)
{
  be32 raw = put32 (type);
  int r = q_file_pwrite (img->file, &raw, sizeof raw, e->offset - sizeof (struct qcow2_extension));

  if (r == 0)
    r = sync_header (img);
  if (r == 0)
    e->type = type;
  return r;
}

static int
use_again (struct q_image *img, struct q_extension *e, uint32_t type, const void *data)
{
  int r = q_file_pwrite (img->file, data, e->length, e->offset);

  if (r == 0)
    r = sync_header (img);
  if (r == 0)
    r = write_type (img, e, type);
  if (r == 0)
    memcpy (e->data, data, e->length);
  return r;
}

int
q_header_append_extension (struct q_image *img, uint32_t type, const void *data, uint32_t length)
{
  struct qcow2_extension head = { put32 (type), put32 (length) };
  uint64_t pos = img->extensions_end;
  uint64_t padded = q_round_up (length, 8);
  uint64_t end = pos + sizeof head + padded; /* where the end marker goes */
  uint64_t limit = q_cluster_bytes (img);
  struct q_extension **p = &img->extensions, *e = find_unused (img, length);
  uint8_t *tail = NULL;
  int r;

  if (e)
    return use_again (img, e, type, data);
  if (end + sizeof head > limit)
    return -E2BIG;
  if (name_is_before (img, end + sizeof head)) {
    /* The new name may overlap neither the old one nor the new extension. */
    uint64_t to = end + sizeof head;

    if (to < img->backing_file_offset + img->backing_file_size)
      to = q_round_up (img->backing_file_offset + img->backing_file_size, 8);
    if (to + img->backing_file_size > limit)
      return -E2BIG;
    r = move_backing_name (img, to);
    if (r < 0)
      return r;
  }
  if (!img->extensions_marked)
    return -E2BIG;                    /* the area reaches the end of the cluster */
  e = calloc (1, sizeof *e + padded); /* what takes its place may be longer, as on disk */
  tail = calloc (1, padded + sizeof head);
  if (!e || !tail) {
    free (e);
    free (tail);
    return -ENOMEM;
  }
  /* Data and the new end marker first, behind the old marker where nobody looks; then its own
   * header over the old marker, 8 aligned bytes that cannot tear. */
  memcpy (tail, data, length);
  r = q_file_pwrite (img->file, tail, padded + sizeof head, pos + sizeof head);
  if (r == 0)
    r = sync_header (img);
  if (r == 0)
    r = q_file_pwrite (img->file, &head, sizeof head, pos);
  if (r == 0)
    r = sync_header (img);
  free (tail);
  if (r < 0) {
    free (e);
    return r;
  }
  *e = (struct q_extension){ .type = type, .length = length, .offset = pos + sizeof head };
  memcpy (e->data, data, length);
  while (*p)
    p = &(*p)->next;
  *p = e;
  img->extensions_end = end;
  return 0;
}

int
q_header_drop_extension (struct q_image *img, uint32_t type)
{
  struct q_extension *e = q_extension_find (img, type);

  return e ? write_type (img, e, Q_EXT_UNUSED) : 0;
}
