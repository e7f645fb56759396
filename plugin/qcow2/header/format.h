/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bytes on disk: docs/interop/qcow2.rst, sections "Header" to "Bitmap table".
 *
 * Nothing outside this header knows a byte offset, a magic number or a bit position of the format.
 * Everything on disk is big-endian.  Structs mirror the disk exactly and are only ever copied
 * from or to a buffer; their fields are read through be16/be32/be64 below.
 */

#ifndef Q_FORMAT_H
#define Q_FORMAT_H

#include <assert.h>
#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- numbers as they stand on disk: types that cannot be used without conversion ------------ */

typedef struct {
  uint16_t raw;
} __attribute__ ((packed)) be16;
typedef struct {
  uint32_t raw;
} __attribute__ ((packed)) be32;
typedef struct {
  uint64_t raw;
} __attribute__ ((packed)) be64;

static inline uint16_t
get16 (be16 v)
{
  return be16toh (v.raw);
}
static inline uint32_t
get32 (be32 v)
{
  return be32toh (v.raw);
}
static inline uint64_t
get64 (be64 v)
{
  return be64toh (v.raw);
}
static inline be16
put16 (uint16_t v)
{
  return (be16){ htobe16 (v) };
}
static inline be32
put32 (uint32_t v)
{
  return (be32){ htobe32 (v) };
}
static inline be64
put64 (uint64_t v)
{
  return (be64){ htobe64 (v) };
}

/* ---- header -------------------------------------------------------------------------------- */

#define Q_MAGIC 0x514649fbu /* "QFI\xfb" */

struct qcow2_header {
  be32 magic;
  be32 version;
  be64 backing_file_offset;
  be32 backing_file_size;
  be32 cluster_bits;
  be64 size;
  be32 crypt_method;
  be32 l1_size;
  be64 l1_table_offset;
  be64 refcount_table_offset;
  be32 refcount_table_clusters;
  be32 nb_snapshots;
  be64 snapshots_offset;
  /* version 3 from here on */
  be64 incompatible_features;
  be64 compatible_features;
  be64 autoclear_features;
  be32 refcount_order;
  be32 header_length;
  /* additional fields, present if header_length says so */
  uint8_t compression_type;
  uint8_t padding[7];
} __attribute__ ((packed));

#define Q_HEADER_V2_LENGTH 72u
#define Q_HEADER_V3_LENGTH 104u /* the least that version 3 has */

static_assert (offsetof (struct qcow2_header, backing_file_offset) == 8, "header");
static_assert (offsetof (struct qcow2_header, l1_size) == 36, "header");
static_assert (offsetof (struct qcow2_header, refcount_table_offset) == 48, "header");
static_assert (offsetof (struct qcow2_header, snapshots_offset) == 64, "header");
static_assert (offsetof (struct qcow2_header, incompatible_features) == Q_HEADER_V2_LENGTH, "v2");
static_assert (offsetof (struct qcow2_header, refcount_order) == 96, "header");
static_assert (offsetof (struct qcow2_header, compression_type) == Q_HEADER_V3_LENGTH, "v3");
static_assert (sizeof (struct qcow2_header) == 112, "header");

enum { Q_CRYPT_NONE = 0, Q_CRYPT_AES = 1, Q_CRYPT_LUKS = 2 };
enum { Q_COMPRESSION_ZLIB = 0, Q_COMPRESSION_ZSTD = 1 };

/* incompatible features */
#define Q_INCOMPAT_DIRTY       (1ull << 0)
#define Q_INCOMPAT_CORRUPT     (1ull << 1)
#define Q_INCOMPAT_DATA_FILE   (1ull << 2)
#define Q_INCOMPAT_COMPRESSION (1ull << 3)
#define Q_INCOMPAT_EXTL2       (1ull << 4)
/* compatible features */
#define Q_COMPAT_LAZY_REFCOUNTS (1ull << 0)
/* autoclear features */
#define Q_AUTOCLEAR_BITMAPS       (1ull << 0)
#define Q_AUTOCLEAR_DATA_FILE_RAW (1ull << 1)
#define Q_AUTOCLEAR_SESSION       (1ull << 63) /* nbdcow's own: DESIGN, "Acknowledged writes ..." */

/* ---- header extensions --------------------------------------------------------------------- */

struct qcow2_extension {
  be32 type;
  be32 length; /* of the data that follows, without the padding to 8 */
} __attribute__ ((packed));
static_assert (sizeof (struct qcow2_extension) == 8, "extension");

#define Q_EXT_END            0u
#define Q_EXT_BACKING_FORMAT 0xe2792acau
#define Q_EXT_FEATURE_NAMES  0x6803f857u
#define Q_EXT_BITMAPS        0x23852875u
#define Q_EXT_CRYPTO         0x0537be77u
#define Q_EXT_DATA_FILE      0x44415441u
/* nbdcow's own: the highest allocated offset, be64, cluster-aligned, exclusive ("HALC") ... */
#define Q_EXT_HIGHEST_OFFSET 0x48414c43u
/* ... and the session of the writer that has the image open, 16 random bytes ("NBCS") */
#define Q_EXT_SESSION 0x4e424353u
/* ... and the room that an extension leaves when it is dropped from among others ("NBCU") */
#define Q_EXT_UNUSED 0x4e424355u

struct qcow2_feature_name {
  uint8_t type; /* 0 incompatible, 1 compatible, 2 autoclear */
  uint8_t bit;
  char name[46]; /* not terminated if it fills the field */
} __attribute__ ((packed));
static_assert (sizeof (struct qcow2_feature_name) == 48, "feature name");

struct qcow2_bitmaps_extension {
  be32 nb_bitmaps;
  be32 reserved;
  be64 directory_size;
  be64 directory_offset;
} __attribute__ ((packed));
static_assert (sizeof (struct qcow2_bitmaps_extension) == 24, "bitmaps extension");

struct qcow2_crypto_extension {
  be64 offset;
  be64 length;
} __attribute__ ((packed));
static_assert (sizeof (struct qcow2_crypto_extension) == 16, "crypto extension");

/* ---- snapshot table ------------------------------------------------------------------------ */

struct qcow2_snapshot {
  be64 l1_table_offset;
  be32 l1_size;
  be16 id_size;
  be16 name_size;
  be32 date_sec;
  be32 date_nsec;
  be64 vm_clock_nsec;
  be32 vm_state_size;
  be32 extra_data_size;
  /* extra data, id, name, padding to 8 */
} __attribute__ ((packed));
static_assert (sizeof (struct qcow2_snapshot) == 40, "snapshot");

struct qcow2_snapshot_extra {
  be64 vm_state_size;
  be64 disk_size;
  be64 icount;
} __attribute__ ((packed));
static_assert (sizeof (struct qcow2_snapshot_extra) == 24, "snapshot extra data");

/* ---- bitmap directory ---------------------------------------------------------------------- */

struct qcow2_bitmap {
  be64 table_offset;
  be32 table_size; /* entries */
  be32 flags;
  uint8_t type;
  uint8_t granularity_bits;
  be16 name_size;
  be32 extra_data_size;
  /* extra data, name, padding to 8 */
} __attribute__ ((packed));
static_assert (sizeof (struct qcow2_bitmap) == 24, "bitmap directory entry");

#define Q_BITMAP_IN_USE           (1u << 0)
#define Q_BITMAP_AUTO             (1u << 1)
#define Q_BITMAP_EXTRA_COMPATIBLE (1u << 2)
#define Q_BITMAP_RESERVED         0xfffffff8u
#define Q_BITMAP_ENTRY_ONES       (1ull << 0)
#define Q_BITMAP_ENTRY_RESERVED   0xff000000000001feull

/* ---- table entries, in host byte order ------------------------------------------------------ */

#define Q_OFFSET_MASK         0x00fffffffffffe00ull /* bits 9-55: L1, L2, bitmap table entries */
#define Q_COPIED              (1ull << 63)
#define Q_L1_RESERVED         0x7f000000000001ffull
#define Q_L2_COMPRESSED       (1ull << 62)
#define Q_L2_ZERO             (1ull << 0)
#define Q_L2_BITMAP_ALLOCATED 0x00000000ffffffffull /* of an extended entry ... */
#define Q_L2_BITMAP_ZERO      0xffffffff00000000ull
#define Q_L2_RESERVED         0x3f000000000001feull /* of a standard cluster descriptor */
#define Q_REFTABLE_MASK       0xfffffffffffffe00ull
#define Q_REFTABLE_RESERVED   0x1ffull

/* What the sector count of a descriptor can say at most: two clusters, though no sane writer stores
 * more than one. */
#define Q_MAX_COMPRESSED_BYTES(cluster_bits) (2ull << (cluster_bits))

/* A compressed cluster descriptor: where its bytes start, and the most that there can be. */
static inline void
q_compressed_decode (uint64_t entry, unsigned cluster_bits, uint64_t *host, uint32_t *csize)
{
  unsigned x = 62 - (cluster_bits - 8);
  uint64_t sectors = ((entry >> x) & ((1ull << (cluster_bits - 8)) - 1)) + 1;

  /* "If cluster_bits is small enough that this field includes bits beyond 55, those upper bits
   * must be set to 0": the caller rejects offsets past 2^56. */
  *host = entry & ((1ull << x) - 1);
  *csize = (uint32_t)(sectors * 512 - (*host & 511));
}

/* Compressed data must end below this, for its descriptor to say where it begins. */
#define Q_COMPRESSED_LIMIT(cluster_bits)                                                           \
  (1ull << ((cluster_bits) < 14 ? 56u : 62u - ((cluster_bits)-8)))

/* Whether a descriptor can say that CSIZE bytes are at HOST. */
static inline bool
q_compressed_fits (unsigned cluster_bits, uint64_t host, uint32_t csize)
{
  return csize > 0 && host + csize <= Q_COMPRESSED_LIMIT (cluster_bits) &&
         ((host + csize - 1) >> 9) - (host >> 9) < 1ull << (cluster_bits - 8);
}

static inline uint64_t
q_compressed_encode (unsigned cluster_bits, uint64_t host, uint32_t csize)
{
  unsigned x = 62 - (cluster_bits - 8);
  uint64_t sectors = ((host + csize - 1) >> 9) - (host >> 9); /* after the first one */

  assert (q_compressed_fits (cluster_bits, host, csize));
  return Q_L2_COMPRESSED | sectors << x | host;
}

/* ---- limits -------------------------------------------------------------------------------- */

#define Q_MIN_CLUSTER_BITS   9u
#define Q_MAX_CLUSTER_BITS   21u
#define Q_MIN_EXTL2_BITS     14u
#define Q_SUBCLUSTER_BITS    5u /* 32 in a cluster with extended L2 entries */
#define Q_MAX_L1_BYTES       (32u << 20)
#define Q_MAX_REFTABLE_BYTES (8u << 20)
#define Q_MAX_SNAPSHOTS      65536u
#define Q_MAX_SNAPSHOT_TABLE (64u << 20)
#define Q_MAX_BITMAPS        65535u
#define Q_MAX_BITMAP_DIR     (64u << 20)
#define Q_MAX_BACKING_NAME   1023u
#define Q_MAX_FORMAT_NAME    64u
#define Q_MAX_HOST_OFFSET    (1ull << 56)

#endif /* Q_FORMAT_H */
