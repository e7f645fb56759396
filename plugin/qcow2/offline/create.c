/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making images: lays out and writes everything that a new qcow2 file holds.
 *
 * The file is laid out in this order, each part starting on a cluster:
 *
 *     header | refcount table | refcount blocks | L1 table | encryption header | L2 tables | data
 *
 * the third last only with encryption, and the last two only with preallocation.  All of it is
 * known before the first byte is written, so whatever cannot work is refused while the file is
 * still as it was.
 *
 * Invariant: the first sector, which carries the magic, is written last, after everything else is
 * on stable storage.  A crash leaves a file that is no qcow2 image, or a complete one.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "luks.h"

/* The header's atomic unit: no disk tears less. */
#define SECTOR 512u

/* Bytes kept free between the end marker of the extensions and the backing file name, so that an
 * extension (the writer's session: 8 + 16 bytes) can be appended without moving the name. */
#define EXTENSION_ROOM 64u

/* QEMU's reader refuses longer format names. */
#define MAX_BACKING_FORMAT 15u

/* Zeros are written this much at a time by full preallocation. */
#define FILL_CHUNK (1u << 20)

/* Where everything goes.  Clusters, except where a name says bytes. */
struct layout {
  unsigned cluster_bits, refcount_order;
  uint64_t size; /* virtual, bytes */
  uint64_t reftable, n_reftable;
  uint64_t refblocks, n_refblocks;
  uint64_t l1, n_l1;
  uint32_t l1_entries;
  uint64_t crypto, n_crypto;
  uint64_t l2, n_l2;     /* 0 without preallocation, ... */
  uint64_t n_mapped;     /* ... as are the L2 entries that are made, ... */
  uint64_t data, n_data; /* ... for clusters here, or in a data file */
  uint64_t total;
};

struct creation {
  const char *filename;
  const struct q_create_options *opts;
  struct layout layout;
  struct q_file *file;
  struct q_file *data; /* where guest data goes: the same, or an external data file */
  uint8_t *cluster;    /* scratch, one cluster */
  uint8_t *crypto;     /* the encryption header; NULL without */
  size_t crypto_bytes;
  struct q_error *err;
};

void
q_create_options_init (struct q_create_options *opts)
{
  *opts = (struct q_create_options){ .version = 3, .cluster_bits = 16, .refcount_bits = 16 };
  q_encrypt_options_init (&opts->encrypt);
}

/* ---- what is asked for ----------------------------------------------------------------------- */

static int
check_version_limits (const char *filename, const struct q_create_options *opts,
                      struct q_error *err)
{
  if (opts->version != 2 && opts->version != 3)
    return q_fail (err, -EINVAL, "%s: qcow2 version %u does not exist: it is 2 or 3", filename,
                   opts->version);
  if (opts->version == 3)
    return 0;
  if (opts->refcount_bits != 16)
    return q_fail (err, -EINVAL,
                   "%s: refcount_bits %u needs version 3 (compat=1.1): version 2 has only 16",
                   filename, opts->refcount_bits);
  if (opts->lazy_refcounts)
    return q_fail (err, -EINVAL, "%s: lazy refcounts need version 3 (compat=1.1), not version 2",
                   filename);
  if (opts->extended_l2)
    return q_fail (err, -EINVAL,
                   "%s: extended L2 entries need version 3 (compat=1.1), not version 2", filename);
  if (opts->data_file)
    return q_fail (err, -EINVAL,
                   "%s: an external data file needs version 3 (compat=1.1), not version 2",
                   filename);
  if (opts->zstd)
    return q_fail (
        err, -EINVAL,
        "%s: compression type zstd needs version 3 (compat=1.1): version 2 has only zlib",
        filename);
  return 0;
}

static int
check_backing (const char *filename, const struct q_create_options *opts, struct q_error *err)
{
  if (!opts->backing_file) {
    if (opts->backing_format)
      return q_fail (err, -EINVAL, "%s: backing format '%s' without a backing file", filename,
                     opts->backing_format);
    return 0;
  }

  size_t len = strlen (opts->backing_file);

  if (len == 0)
    return q_fail (err, -EINVAL, "%s: the backing file name is empty", filename);
  if (len > Q_MAX_BACKING_NAME)
    return q_fail (err, -EINVAL, "%s: the backing file name has %zu bytes: at most %u are possible",
                   filename, len, Q_MAX_BACKING_NAME);
  if (opts->backing_format) {
    len = strlen (opts->backing_format);
    if (len == 0 || len > MAX_BACKING_FORMAT)
      return q_fail (err, -EINVAL, "%s: backing format '%.64s' has %zu bytes: 1 to %u are possible",
                     filename, opts->backing_format, len, MAX_BACKING_FORMAT);
  }
  if (opts->preallocation != Q_PREALLOC_OFF && !opts->extended_l2)
    return q_fail (err, -EINVAL,
                   "%s: preallocation hides what the backing file holds: use one or the other, or "
                   "extended L2 entries (extended_l2=on)",
                   filename);
  return 0;
}

static const char *
data_file_name (const struct q_create_options *opts)
{
  return opts->data_file_name ? opts->data_file_name : opts->data_file;
}

static int
check_data_file (const char *filename, const struct q_create_options *opts, struct q_error *err)
{
  struct stat a, b;
  size_t len;

  if (!opts->data_file)
    return !opts->data_file_raw && !opts->data_file_keep
               ? 0
               : q_fail (err, -EINVAL, "%s: %s without a data file (data_file=FILE)", filename,
                         opts->data_file_raw ? "data_file_raw" : "keep_data_file");
  if (opts->data_file_keep && !opts->data_file_raw && opts->preallocation != Q_PREALLOC_METADATA)
    return q_fail (
        err, -EINVAL,
        "%s: keep_data_file needs data_file_raw=on or preallocation=metadata, or nothing "
        "of the data file would be seen",
        filename);
  if (opts->data_file_keep && opts->preallocation > Q_PREALLOC_METADATA)
    return q_fail (err, -EINVAL,
                   "%s: keep_data_file and a preallocation that writes the data file cannot be "
                   "used together",
                   filename);
  len = strlen (data_file_name (opts));
  if (len == 0 || len > Q_MAX_BACKING_NAME)
    return q_fail (err, -EINVAL, "%s: the data file name has %zu bytes: 1 to %u are possible",
                   filename, len, Q_MAX_BACKING_NAME);
  if (opts->data_file_raw && opts->backing_file)
    return q_fail (err, -EINVAL,
                   "%s: a raw data file has all of the disk: there cannot be a backing file too",
                   filename);
  if (strcmp (filename, opts->data_file) == 0 ||
      (!opts->opener && stat (filename, &a) == 0 && stat (opts->data_file, &b) == 0 &&
       a.st_dev == b.st_dev && a.st_ino == b.st_ino))
    return q_fail (err, -EINVAL, "%s: cannot be its own data file", filename);
  return 0;
}

static int
check_options (const char *filename, const struct q_create_options *opts, struct q_error *err)
{
  if (opts->cluster_bits < Q_MIN_CLUSTER_BITS || opts->cluster_bits > Q_MAX_CLUSTER_BITS)
    return q_fail (
        err, -EINVAL,
        "%s: cluster size 2^%u is out of range: it is a power of two from %u to %u bytes", filename,
        opts->cluster_bits, 1u << Q_MIN_CLUSTER_BITS, 1u << Q_MAX_CLUSTER_BITS);
  if (opts->extended_l2 && opts->cluster_bits < Q_MIN_EXTL2_BITS)
    return q_fail (err, -EINVAL,
                   "%s: cluster size %u is too small for extended L2 entries: at least %u bytes",
                   filename, 1u << opts->cluster_bits, 1u << Q_MIN_EXTL2_BITS);
  if (opts->refcount_bits < 1 || opts->refcount_bits > 64 ||
      (opts->refcount_bits & (opts->refcount_bits - 1)) != 0)
    return q_fail (err, -EINVAL,
                   "%s: refcount_bits %u is not possible: it is a power of two from 1 to 64",
                   filename, opts->refcount_bits);

  int r = check_version_limits (filename, opts, err);

  if (r == 0)
    r = check_backing (filename, opts, err);
  return r == 0 ? check_data_file (filename, opts, err) : r;
}

/* Whether what is preallocated has to be written, through an image that is there. */
static bool
is_written_later (const struct q_create_options *opts)
{
  return opts->preallocation != Q_PREALLOC_OFF && opts->version < 3 && opts->secret;
}

/* ---- layout ---------------------------------------------------------------------------------- */

static int
plan_layout (struct creation *c, uint64_t size)
{
  const struct q_create_options *opts = c->opts;
  struct layout *l = &c->layout;
  const unsigned bits = opts->cluster_bits;
  const uint64_t cluster = 1ull << bits;
  /* Guest bytes below one L2 table. */
  const uint64_t l2_reach = cluster << (bits - (opts->extended_l2 ? 4 : 3));
  const uint64_t max_size = Q_MAX_L1_BYTES / 8 * l2_reach;

  if (opts->data_file && size > Q_MAX_HOST_OFFSET)
    return q_fail (c->err, -EFBIG,
                   "%s: size %llu is too large for an external data file: at most %llu bytes",
                   c->filename, (unsigned long long)size, (unsigned long long)Q_MAX_HOST_OFFSET);
  if (size > max_size)
    return q_fail (
        c->err, -EFBIG,
        "%s: size %llu is too large for cluster size %llu: at most %llu bytes, for which "
        "the L1 table has %u MiB; use larger clusters",
        c->filename, (unsigned long long)size, (unsigned long long)cluster,
        (unsigned long long)max_size, Q_MAX_L1_BYTES >> 20);

  l->cluster_bits = bits;
  l->refcount_order = (unsigned)__builtin_ctz (opts->refcount_bits);
  l->size = size;

  /* An empty disk also gets an entry, so that every image has an L1 table. */
  uint64_t entries = q_div_up (size, l2_reach);

  l->l1_entries = entries ? (uint32_t)entries : 1;
  l->n_l1 = q_div_up (8ull * l->l1_entries, cluster);
  l->n_crypto = q_div_up (c->crypto_bytes, cluster);
  if (opts->data_file_raw || (opts->preallocation != Q_PREALLOC_OFF && !is_written_later (opts))) {
    l->n_l2 = entries;
    l->n_mapped = q_div_up (size, cluster);
  }
  l->n_data = opts->data_file ? 0 : l->n_mapped;

  /* The refcount structures count themselves, so their size is the fixed point of this. */
  const uint64_t per_block = cluster * 8 >> l->refcount_order;
  const uint64_t rest = 1 + l->n_l1 + l->n_crypto + l->n_l2 + l->n_data;
  uint64_t blocks, total;

  do {
    blocks = l->n_refblocks;
    l->n_reftable = q_div_up (8 * (blocks ? blocks : 1), cluster);
    total = rest + l->n_reftable + blocks;
    l->n_refblocks = q_div_up (total, per_block);
  } while (l->n_refblocks != blocks);
  if (l->n_reftable * cluster > Q_MAX_REFTABLE_BYTES)
    return q_fail (c->err, -EFBIG,
                   "%s: size %llu cannot be preallocated with cluster size %llu and %u refcount "
                   "bits: the refcount table would need %llu MiB, at most %u are possible; use "
                   "larger clusters",
                   c->filename, (unsigned long long)size, (unsigned long long)cluster,
                   opts->refcount_bits, (unsigned long long)(l->n_reftable * cluster >> 20),
                   Q_MAX_REFTABLE_BYTES >> 20);
  if (total > Q_MAX_HOST_OFFSET >> bits)
    return q_fail (c->err, -EFBIG,
                   "%s: size %llu cannot be preallocated: the file would pass 64 PiB, the most "
                   "that the format can address",
                   c->filename, (unsigned long long)size);

  l->reftable = 1;
  l->refblocks = l->reftable + l->n_reftable;
  l->l1 = l->refblocks + l->n_refblocks;
  l->crypto = l->l1 + l->n_l1;
  l->l2 = l->crypto + l->n_crypto;
  l->data = l->l2 + l->n_l2;
  l->total = total;
  return 0;
}

/* ---- the header cluster ---------------------------------------------------------------------- */

static size_t
extension_bytes (size_t data)
{
  return sizeof (struct qcow2_extension) + q_round_up (data, 8);
}

static uint8_t *
put_extension (uint8_t *p, uint32_t type, const void *data, size_t length)
{
  struct qcow2_extension ext = { .type = put32 (type), .length = put32 ((uint32_t)length) };

  memcpy (p, &ext, sizeof ext);
  if (length)
    memcpy (p + sizeof ext, data, length);
  return p + extension_bytes (length);
}

/* Builds the header, its extensions and the backing file name in c->cluster, and says how many
 * bytes they take.
 *
 * A backing file name must fit.  What is there for comfort goes in if there is room for it: the
 * highest allocated offset (which can also be found from the refcounts), then the feature name
 * table (clusters of 512 bytes are too small for it). */
static int
build_header (struct creation *c, size_t *used)
{
  const struct q_create_options *opts = c->opts;
  const struct layout *l = &c->layout;
  const size_t cluster = (size_t)1 << l->cluster_bits;
  const size_t header_length =
      opts->version == 2 ? Q_HEADER_V2_LENGTH : sizeof (struct qcow2_header);
  const size_t name_length = opts->backing_file ? strlen (opts->backing_file) : 0;
  size_t need = header_length + extension_bytes (0) + name_length;

  if (opts->backing_format)
    need += extension_bytes (strlen (opts->backing_format));
  if (c->crypto)
    need += extension_bytes (sizeof (struct qcow2_crypto_extension));
  if (opts->data_file)
    need += extension_bytes (strlen (data_file_name (opts)));
  if (need > cluster && opts->data_file)
    return q_fail (c->err, -EINVAL,
                   "%s: the names of data file and backing file are too long to fit in the first "
                   "cluster of %zu bytes beside the header",
                   c->filename, cluster);
  if (need > cluster)
    return q_fail (c->err, -EINVAL,
                   "%s: the backing file name has %zu bytes: %zu fit in the first cluster beside "
                   "the header; use a shorter name or clusters larger than %zu bytes",
                   c->filename, name_length, cluster - (need - name_length), cluster);

  bool with_highest = need + extension_bytes (8) <= cluster;

  if (with_highest)
    need += extension_bytes (8);

  struct qcow2_feature_name names[Q_N_FEATURES];
  bool with_names =
      opts->version >= 3 && need + extension_bytes (sizeof names) + EXTENSION_ROOM <= cluster;

  if (with_names)
    need += extension_bytes (sizeof names);
  q_feature_names (names);

  size_t room = need + EXTENSION_ROOM <= cluster ? EXTENSION_ROOM : 0;

  struct qcow2_header h = {
    .magic = put32 (Q_MAGIC),
    .version = put32 (opts->version),
    .cluster_bits = put32 (l->cluster_bits),
    .size = put64 (l->size),
    .crypt_method = put32 (c->crypto ? Q_CRYPT_LUKS : Q_CRYPT_NONE),
    .l1_size = put32 (l->l1_entries),
    .l1_table_offset = put64 (l->l1 << l->cluster_bits),
    .refcount_table_offset = put64 (l->reftable << l->cluster_bits),
    .refcount_table_clusters = put32 ((uint32_t)l->n_reftable),
    .incompatible_features = put64 ((opts->zstd ? Q_INCOMPAT_COMPRESSION : 0) |
                                    (opts->extended_l2 ? Q_INCOMPAT_EXTL2 : 0) |
                                    (opts->data_file ? Q_INCOMPAT_DATA_FILE : 0)),
    .autoclear_features = put64 (opts->data_file_raw ? Q_AUTOCLEAR_DATA_FILE_RAW : 0),
    .compatible_features = put64 (opts->lazy_refcounts ? Q_COMPAT_LAZY_REFCOUNTS : 0),
    .refcount_order = put32 (l->refcount_order),
    .header_length = put32 ((uint32_t)header_length),
    .compression_type = opts->zstd ? Q_COMPRESSION_ZSTD : Q_COMPRESSION_ZLIB,
  };
  uint8_t *p = c->cluster + header_length;

  memset (c->cluster, 0, cluster);
  if (opts->backing_format)
    p = put_extension (p, Q_EXT_BACKING_FORMAT, opts->backing_format,
                       strlen (opts->backing_format));
  if (c->crypto) {
    struct qcow2_crypto_extension crypto = { .offset = put64 (l->crypto << l->cluster_bits),
                                             .length = put64 (c->crypto_bytes) };

    p = put_extension (p, Q_EXT_CRYPTO, &crypto, sizeof crypto);
  }
  if (opts->data_file)
    p = put_extension (p, Q_EXT_DATA_FILE, data_file_name (opts), strlen (data_file_name (opts)));
  if (with_names)
    p = put_extension (p, Q_EXT_FEATURE_NAMES, names, sizeof names);
  if (with_highest) {
    be64 highest = put64 (l->total << l->cluster_bits);

    p = put_extension (p, Q_EXT_HIGHEST_OFFSET, &highest, sizeof highest);
  }
  p = put_extension (p, Q_EXT_END, NULL, 0);
  if (name_length) {
    p += room;
    h.backing_file_offset = put64 ((uint64_t)(p - c->cluster));
    h.backing_file_size = put32 ((uint32_t)name_length);
    memcpy (p, opts->backing_file, name_length);
    p += name_length;
  }
  memcpy (c->cluster, &h, header_length);
  *used = (size_t)(p - c->cluster);
  return 0;
}

/* ---- writing --------------------------------------------------------------------------------- */

static int
write_at (struct creation *c, const void *buf, size_t len, uint64_t offset, const char *what)
{
  int r = q_file_pwrite (c->file, buf, len, offset);

  if (r < 0)
    return q_fail (c->err, r, "%s: writing the %s at offset %llu: %s", c->filename, what,
                   (unsigned long long)offset, strerror (-r));
  return 0;
}

static int
sync_file (struct creation *c)
{
  int r = q_file_sync (c->file);

  return r < 0 ? q_fail (c->err, r, "%s: sync: %s", c->filename, strerror (-r)) : 0;
}

/* With zeros to the end of its last cluster. */
static int
write_crypto (struct creation *c)
{
  const uint64_t at = c->layout.crypto << c->layout.cluster_bits;
  const uint64_t end = at + (c->layout.n_crypto << c->layout.cluster_bits);
  int r = write_at (c, c->crypto, c->crypto_bytes, at, "encryption header");

  if (r == 0 && at + c->crypto_bytes < end) {
    r = q_file_write_zeroes (c->file, at + c->crypto_bytes, end - at - c->crypto_bytes, false);
    if (r < 0)
      q_fail (c->err, r, "%s: writing the encryption header: %s", c->filename, strerror (-r));
  }
  return r;
}

/* COUNT table clusters at cluster FIRST, whose USED entries hold the offsets of consecutive
 * clusters beginning with TARGET, or'ed with FLAGS; the rest of the entries are 0.  An entry is
 * WORDS words of which the others are 0: no subcluster is allocated, whatever the cluster holds. */
static int
write_pointers (struct creation *c, uint64_t first, uint64_t count, uint64_t target, uint64_t used,
                uint64_t flags, unsigned words, const char *what)
{
  const unsigned bits = c->layout.cluster_bits;
  const uint64_t per_cluster = (1ull << bits) / 8;
  uint64_t done = 0;

  for (uint64_t i = 0; i < count; i++) {
    memset (c->cluster, 0, (size_t)1 << bits);
    for (uint64_t k = 0; k < per_cluster; k += words) {
      be64 entry = put64 (done < used ? ((target + done) << bits) | flags : 0);

      memcpy (c->cluster + 8 * k, &entry, sizeof entry);
      done++;
    }

    int r = write_at (c, c->cluster, (size_t)1 << bits, (first + i) << bits, what);

    if (r < 0)
      return r;
  }
  return 0;
}

/* Every cluster of the layout is referenced once. */
static int
write_refblocks (struct creation *c)
{
  const struct layout *l = &c->layout;
  const size_t cluster = (size_t)1 << l->cluster_bits;
  const uint64_t per_block = (uint64_t)cluster * 8 >> l->refcount_order;
  uint64_t filled = 0; /* counts that c->cluster holds */

  memset (c->cluster, 0, cluster);
  for (uint64_t i = 0; i < l->n_refblocks; i++) {
    uint64_t n = q_min (l->total - i * per_block, per_block);

    if (n < filled) {
      memset (c->cluster, 0, cluster);
      filled = 0;
    }
    for (; filled < n; filled++)
      q_refblock_write (c->cluster, l->refcount_order, filled, 1);

    int r =
        write_at (c, c->cluster, cluster, (l->refblocks + i) << l->cluster_bits, "refcount block");

    if (r < 0)
      return r;
  }
  return 0;
}

/* Makes FILE, called NAME, END bytes long, or, to KEEP what it has, at least; a device must have
 * them. */
static int
set_length (struct creation *c, struct q_file *file, const char *name, uint64_t end, bool keep)
{
  uint64_t have = 0;
  int r = keep || file->is_device ? q_file_size (file, &have) : 0;

  if (r < 0)
    return q_fail (c->err, r, "%s: size: %s", name, strerror (-r));
  if (keep && have >= end)
    return 0;
  if (!file->is_device) {
    r = q_file_truncate (file, end);
    return r < 0 ? q_fail (c->err, r, "%s: extending the file to %llu bytes: %s", name,
                           (unsigned long long)end, strerror (-r))
                 : 0;
  }
  if (have < end)
    return q_fail (c->err, -ENOSPC,
                   "%s: the device has %llu bytes: the image needs %llu to begin with", name,
                   (unsigned long long)have, (unsigned long long)end);
  return 0;
}

static int
fill_zeros (struct q_file *file, uint64_t at, uint64_t end)
{
  void *zeros = calloc (1, FILL_CHUNK);
  int r = zeros ? 0 : -ENOMEM;

  for (; r == 0 && at < end; at += FILL_CHUNK)
    r = q_file_pwrite (file, zeros, (size_t)q_min (FILL_CHUNK, end - at), at);
  free (zeros);
  return r;
}

/* Zeros for the guest in [data, end) of the file that its data is in, as preallocated as is asked
 * for.  FROM: where the space that is reserved begins. */
static int
prepare_data (struct creation *c, uint64_t from, uint64_t data, uint64_t end)
{
  int r = 0;

  if (data == end || c->opts->data_file_keep)
    return 0;
  if (!c->data->holes_are_zero)
    r = q_file_write_zeroes (c->data, data, end - data, true);
  if (r == 0 && !c->data->is_device && c->opts->preallocation == Q_PREALLOC_FALLOC)
    r = q_file_allocate (c->data, from, end - from);
  if (r == 0 && c->opts->preallocation == Q_PREALLOC_FULL)
    r = fill_zeros (c->data, data, end);
  return r;
}

/* Space for the file, and zeros for the guest in every preallocated cluster. */
static int
prepare_space (struct creation *c)
{
  const struct layout *l = &c->layout;
  const uint64_t end = l->total << l->cluster_bits;
  const bool external = c->data != c->file;
  int r = set_length (c, c->file, c->filename, end, false);

  if (r == 0 && external)
    r = set_length (c, c->data, c->opts->data_file, l->size, c->opts->data_file_keep);
  if (r < 0)
    return r;
  /* What is on a device is not known to be zeros, and its old first sector may be that of another
   * image. */
  if (!c->file->holes_are_zero) {
    r = q_file_write_zeroes (c->file, 0, 1ull << l->cluster_bits, true);
    if (r == 0)
      r = q_file_sync (c->file);
  }
  if (r == 0 && l->n_mapped)
    r = external ? prepare_data (c, 0, 0, l->size)
                 : prepare_data (c, 0, l->data << l->cluster_bits, end);
  return r < 0 ? q_fail (c->err, r, "%s: preallocating %llu bytes: %s", c->filename,
                         (unsigned long long)(external ? l->size : end), strerror (-r))
               : 0;
}

static int
write_tables (struct creation *c)
{
  const struct layout *l = &c->layout;
  int r = write_refblocks (c);

  if (r == 0)
    r = write_pointers (c, l->reftable, l->n_reftable, l->refblocks, l->n_refblocks, 0, 1,
                        "refcount table");
  if (r == 0 && (l->n_l2 || !c->file->holes_are_zero))
    r = write_pointers (c, l->l1, l->n_l1, l->l2, l->n_l2, Q_COPIED, 1, "L1 table");
  if (r == 0 && c->crypto)
    r = write_crypto (c);
  /* What is in the clusters would be decrypted, and that does not give zeros. */
  if (r == 0 && l->n_l2)
    r = write_pointers (c, l->l2, l->n_l2, c->data == c->file ? l->data : 0, l->n_mapped,
                        Q_COPIED | (c->crypto && !c->opts->extended_l2 ? Q_L2_ZERO : 0),
                        c->opts->extended_l2 ? 2 : 1, "L2 table");
  return r;
}

static int
write_image (struct creation *c)
{
  size_t used;
  int r = prepare_space (c);

  if (r == 0)
    r = write_tables (c);
  if (r == 0)
    r = build_header (c, &used);
  if (r == 0 && used > SECTOR)
    r = write_at (c, c->cluster + SECTOR, used - SECTOR, SECTOR, "header extensions");
  if (r == 0 && c->data != c->file && (r = q_file_sync (c->data)) < 0)
    q_fail (c->err, r, "%s: sync: %s", c->opts->data_file, strerror (-r));
  if (r == 0)
    r = sync_file (c);
  if (r == 0)
    r = write_at (c, c->cluster, SECTOR, 0, "header");
  if (r == 0)
    r = sync_file (c);
  return r;
}

/* Opens NAME empty.  *MADE: it was not there before. */
static int
make_file (struct creation *c, const char *name, struct q_file **file, bool *made)
{
  struct stat st;

  *made = !c->opts->opener && lstat (name, &st) == -1;
  return q_file_open (c->opts->opener, name, Q_FILE_WRITE | Q_FILE_CREATE | Q_FILE_LOCK, file,
                      c->err);
}

/* Closes *FILE, and removes it if REMOVE, unless something else is there under its name by now. */
static void
finish_file (struct q_file **file, const char *name, bool remove)
{
  struct stat st;

  if (*file && remove && lstat (name, &st) == 0 && (uint64_t)st.st_dev == (*file)->dev &&
      (uint64_t)st.st_ino == (*file)->ino)
    unlink (name);
  q_file_close (file);
}

/* Zeros for the guest in all of the image, which is complete and empty. */
static int
write_later (const struct creation *c)
{
  struct q_open_options open;
  struct q_image *img;
  int r, closed;

  q_open_options_init (&open);
  open.format = Q_FORMAT_QCOW2;
  open.opener = c->opts->opener;
  open.secret = c->opts->secret;
  r = q_open (&img, c->filename, &open, c->err);
  if (r < 0)
    return r;
  r = q_preallocate (img, 0, q_size (img), c->opts->preallocation);
  if (r < 0)
    q_fail (c->err, r, "%s: preallocating %llu bytes: %s", c->filename,
            (unsigned long long)q_size (img), strerror (-r));
  closed = q_close (&img, r < 0 ? NULL : c->err);
  return r < 0 ? r : closed;
}

int
q_create (const char *filename, uint64_t size, const struct q_create_options *opts,
          struct q_error *err)
{
  struct creation c = { .filename = filename, .opts = opts, .err = err };
  bool made = false, made_data = false;
  size_t used;
  int r = check_options (filename, opts, err);

  if (r == 0 && opts->secret)
    r = q_luks_create (&opts->encrypt, opts->secret, &c.crypto, &c.crypto_bytes, filename, err);
  if (r == 0)
    r = plan_layout (&c, size);
  if (r < 0) {
    free (c.crypto);
    return r;
  }
  c.cluster = malloc ((size_t)1 << c.layout.cluster_bits);
  if (!c.cluster) {
    free (c.crypto);
    return q_fail (err, -ENOMEM, "%s: no memory for a cluster of %u bytes", filename,
                   1u << opts->cluster_bits);
  }

  /* The header is built here once more only to learn whether it fits. */
  r = build_header (&c, &used);
  if (r == 0)
    r = make_file (&c, filename, &c.file, &made);
  c.data = c.file;
  if (r == 0 && opts->data_file)
    r = opts->data_file_keep
            ? q_file_open (opts->opener, opts->data_file, Q_FILE_WRITE | Q_FILE_LOCK, &c.data, err)
            : make_file (&c, opts->data_file, &c.data, &made_data);
  if (r == 0)
    r = write_image (&c);
  if (c.data != c.file)
    finish_file (&c.data, opts->data_file, r < 0 && made_data);
  finish_file (&c.file, filename, r < 0 && made);
  if (r == 0 && is_written_later (opts) && (r = write_later (&c)) < 0 && made)
    unlink (filename);
  free (c.cluster);
  free (c.crypto);
  return r;
}
