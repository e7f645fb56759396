/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One lie in an image: see mutate.h.  What it reads may be the result of earlier lies: nothing is
 * believed but that it is inside of the image.
 */

#include "format.h"
#include "luks.h"
#include "mem.h"
#include "mutate.h"

#define MAX_FIELDS 4096u
#define MAX_PLACES 512u

struct field {
  uint32_t at;
  uint8_t bytes; /* 1, 2, 4 or 8, big-endian */
};

struct survey {
  uint8_t *image;
  size_t size;
  unsigned cluster_bits;
  bool extended;
  struct field field[MAX_FIELDS];
  unsigned n_fields;
  uint64_t place[MAX_PLACES]; /* offsets that mean something */
  unsigned n_places;
};

static bool
inside (const struct survey *s, uint64_t at, uint64_t bytes)
{
  return at <= s->size && bytes <= s->size - at;
}

static uint64_t
get (const struct survey *s, uint64_t at, unsigned bytes)
{
  uint64_t v = 0;

  for (unsigned i = 0; i < bytes && inside (s, at, bytes); ++i)
    v = v << 8 | s->image[at + i];
  return v;
}

static void
set (struct survey *s, uint64_t at, unsigned bytes, uint64_t v)
{
  for (unsigned i = 0; i < bytes; ++i)
    s->image[at + i] = (uint8_t)(v >> 8 * (bytes - 1 - i));
}

static void
add_field (struct survey *s, uint64_t at, unsigned bytes)
{
  if (s->n_fields < MAX_FIELDS && inside (s, at, bytes))
    s->field[s->n_fields++] = (struct field){ (uint32_t)at, (uint8_t)bytes };
}

static void
add_place (struct survey *s, uint64_t at)
{
  if (s->n_places < MAX_PLACES)
    s->place[s->n_places++] = at;
}

/* ---- what there is --------------------------------------------------------------------------- */

#define FIELD(type, member)                                                                        \
  {                                                                                                \
    offsetof (struct type, member), sizeof (((struct type *)0)->member)                            \
  }

static void
add_struct (struct survey *s, uint64_t at, const struct field *f, size_t n)
{
  for (size_t i = 0; i < n; ++i)
    add_field (s, at + f[i].at, f[i].bytes);
}

static void
survey_header (struct survey *s)
{
  static const struct field fields[] = {
    FIELD (qcow2_header, version),
    FIELD (qcow2_header, backing_file_offset),
    FIELD (qcow2_header, backing_file_size),
    FIELD (qcow2_header, cluster_bits),
    FIELD (qcow2_header, size),
    FIELD (qcow2_header, crypt_method),
    FIELD (qcow2_header, l1_size),
    FIELD (qcow2_header, l1_table_offset),
    FIELD (qcow2_header, refcount_table_offset),
    FIELD (qcow2_header, refcount_table_clusters),
    FIELD (qcow2_header, nb_snapshots),
    FIELD (qcow2_header, snapshots_offset),
    FIELD (qcow2_header, incompatible_features),
    FIELD (qcow2_header, compatible_features),
    FIELD (qcow2_header, autoclear_features),
    FIELD (qcow2_header, refcount_order),
    FIELD (qcow2_header, header_length),
    FIELD (qcow2_header, compression_type),
  };

  add_struct (s, 0, fields, sizeof fields / sizeof fields[0]);
}

/* An L2 table. */
static void
survey_l2 (struct survey *s, uint64_t at)
{
  unsigned step = s->extended ? 16 : 8, n = (1u << s->cluster_bits) / step;

  add_place (s, at);
  for (unsigned i = 0; i < n; ++i) {
    uint64_t entry = get (s, at + (uint64_t)i * step, 8);

    /* Those that say nothing are many and alike. */
    if (entry == 0 && i > 2 && i + 1 < n)
      continue;
    add_field (s, at + (uint64_t)i * step, 8);
    if (s->extended)
      add_field (s, at + (uint64_t)i * step + 8, 8);
    if (entry && !(entry & Q_L2_COMPRESSED))
      add_place (s, entry & Q_OFFSET_MASK);
  }
}

static void
survey_l1 (struct survey *s, uint64_t at, uint32_t entries)
{
  add_place (s, at);
  for (uint32_t i = 0; i < entries && i < 16; ++i) {
    uint64_t l2 = get (s, at + i * 8ull, 8) & Q_OFFSET_MASK;

    add_field (s, at + i * 8ull, 8);
    if (l2)
      survey_l2 (s, l2);
  }
}

static void
survey_refcounts (struct survey *s, uint64_t at, uint32_t clusters)
{
  uint64_t n = ((uint64_t)(clusters & 0xff) << s->cluster_bits) / 8;

  add_place (s, at);
  for (uint64_t i = 0; i < n && i < 64; ++i) {
    uint64_t block = get (s, at + i * 8, 8) & Q_REFTABLE_MASK;

    if (block == 0 && i > 1)
      continue;
    add_field (s, at + i * 8, 8);
    if (!block)
      continue;
    add_place (s, block);
    for (unsigned k = 0; k < 1u << s->cluster_bits && inside (s, block + k, 8); k += 2)
      if (get (s, block + k, 2))
        add_field (s, block + k, 2);
  }
}

static void
survey_snapshots (struct survey *s, uint64_t at, uint32_t n)
{
  static const struct field fields[] = {
    FIELD (qcow2_snapshot, l1_table_offset), FIELD (qcow2_snapshot, l1_size),
    FIELD (qcow2_snapshot, id_size),         FIELD (qcow2_snapshot, name_size),
    FIELD (qcow2_snapshot, vm_state_size),   FIELD (qcow2_snapshot, extra_data_size),
    FIELD (qcow2_snapshot, vm_clock_nsec),   FIELD (qcow2_snapshot, date_sec),
  };

  add_place (s, at);
  for (uint32_t i = 0; i < n && i < 8; ++i) {
    uint64_t extra = get (s, at + offsetof (struct qcow2_snapshot, extra_data_size), 4),
             id = get (s, at + offsetof (struct qcow2_snapshot, id_size), 2),
             name = get (s, at + offsetof (struct qcow2_snapshot, name_size), 2);

    add_struct (s, at, fields, sizeof fields / sizeof fields[0]);
    survey_l1 (s, get (s, at, 8), (uint32_t)get (s, at + 8, 4));
    at += sizeof (struct qcow2_snapshot);
    for (unsigned k = 0; k < extra && k < 24; k += 8)
      add_field (s, at + k, 8);
    for (unsigned k = 0; k < id + name && k < 8; ++k)
      add_field (s, at + extra + k, 1);
    at = (at + extra + id + name + 7) & ~7ull;
  }
}

static void
survey_bitmaps (struct survey *s, uint64_t ext)
{
  static const struct field fields[] = {
    FIELD (qcow2_bitmap, table_offset), FIELD (qcow2_bitmap, table_size),
    FIELD (qcow2_bitmap, flags),        FIELD (qcow2_bitmap, type),
    FIELD (qcow2_bitmap, name_size),    FIELD (qcow2_bitmap, granularity_bits),
    FIELD (qcow2_bitmap, flags),        FIELD (qcow2_bitmap, extra_data_size),
  };
  uint64_t n = get (s, ext, 4), at = get (s, ext + 16, 8);

  add_field (s, ext, 4);
  add_field (s, ext + 4, 4);
  add_field (s, ext + 8, 8);
  add_field (s, ext + 16, 8);
  add_place (s, at);
  for (unsigned i = 0; i < n && i < 8; ++i) {
    uint64_t table = get (s, at, 8), entries = get (s, at + 8, 4),
             name = get (s, at + offsetof (struct qcow2_bitmap, name_size), 2),
             extra = get (s, at + offsetof (struct qcow2_bitmap, extra_data_size), 4);

    add_struct (s, at, fields, sizeof fields / sizeof fields[0]);
    add_place (s, table);
    for (unsigned k = 0; k < entries && k < 8; ++k) {
      add_field (s, table + 8ull * k, 8);
      add_place (s, get (s, table + 8ull * k, 8) & Q_OFFSET_MASK);
    }
    at += sizeof (struct qcow2_bitmap);
    for (unsigned k = 0; k < name && k < 4; ++k)
      add_field (s, at + extra + k, 1);
    at = (at + extra + name + 7) & ~7ull;
  }
}

static void
survey_luks (struct survey *s, uint64_t ext)
{
  static const struct field fields[] = {
    FIELD (luks_header, version),
    FIELD (luks_header, payload_sector),
    FIELD (luks_header, key_bytes),
    FIELD (luks_header, iterations),
    { 0, 1 },
    { offsetof (struct luks_header, cipher), 4 },
    { offsetof (struct luks_header, mode), 4 },
    { offsetof (struct luks_header, hash), 4 },
  };
  static const struct field slot[] = {
    FIELD (luks_slot, state),
    FIELD (luks_slot, iterations),
    FIELD (luks_slot, material_sector),
    FIELD (luks_slot, stripes),
  };
  uint64_t at = get (s, ext, 8);

  add_field (s, ext, 8);
  add_field (s, ext + 8, 8);
  add_place (s, at);
  add_struct (s, at, fields, sizeof fields / sizeof fields[0]);
  for (unsigned i = 0; i < Q_LUKS_SLOTS; ++i)
    add_struct (s, at + offsetof (struct luks_header, slot) + i * sizeof (struct luks_slot), slot,
                sizeof slot / sizeof slot[0]);
}

static void
survey_extensions (struct survey *s)
{
  uint64_t at = get (s, 4, 4) < 3 ? Q_HEADER_V2_LENGTH
                                  : get (s, offsetof (struct qcow2_header, header_length), 4);

  for (unsigned i = 0; i < 16 && inside (s, at, 8); ++i) {
    uint32_t type = (uint32_t)get (s, at, 4), length = (uint32_t)get (s, at + 4, 4);

    add_field (s, at, 4);
    add_field (s, at + 4, 4);
    if (type == Q_EXT_END)
      return;
    if (type == Q_EXT_BITMAPS)
      survey_bitmaps (s, at + 8);
    else if (type == Q_EXT_CRYPTO)
      survey_luks (s, at + 8);
    else if (type != Q_EXT_FEATURE_NAMES)
      for (unsigned k = 0; k < length && k < 16; ++k)
        add_field (s, at + 8 + k, 1);
    if (type == Q_EXT_HIGHEST_OFFSET)
      add_field (s, at + 8, 8);
    at = (at + 8 + length + 7) & ~7ull;
  }
}

static bool
look (struct survey *s)
{
  unsigned bits;

  if (s->size < Q_HEADER_V2_LENGTH || get (s, 0, 4) != Q_MAGIC)
    return false;
  bits = (unsigned)get (s, offsetof (struct qcow2_header, cluster_bits), 4);
  s->cluster_bits = bits >= Q_MIN_CLUSTER_BITS && bits <= Q_MAX_CLUSTER_BITS ? bits : 12;
  s->extended = get (s, 4, 4) >= 3 && (get (s, 72, 8) & Q_INCOMPAT_EXTL2);
  add_place (s, 0);
  add_place (s, s->size);
  add_place (s, (s->size + (1ull << s->cluster_bits) - 1) >> s->cluster_bits << s->cluster_bits);
  survey_header (s);
  survey_extensions (s);
  survey_l1 (s, get (s, offsetof (struct qcow2_header, l1_table_offset), 8),
             (uint32_t)get (s, offsetof (struct qcow2_header, l1_size), 4));
  survey_refcounts (s, get (s, offsetof (struct qcow2_header, refcount_table_offset), 8),
                    (uint32_t)get (s, offsetof (struct qcow2_header, refcount_table_clusters), 4));
  survey_snapshots (s, get (s, offsetof (struct qcow2_header, snapshots_offset), 8),
                    (uint32_t)get (s, offsetof (struct qcow2_header, nb_snapshots), 4));
  return true;
}

/* ---- lies ------------------------------------------------------------------------------------ */

static uint64_t
reference (const struct survey *s, uint64_t *random)
{
  static const uint64_t flags[] = { 0,
                                    Q_COPIED,
                                    Q_COPIED,
                                    Q_L2_COMPRESSED,
                                    Q_COPIED | Q_L2_COMPRESSED,
                                    Q_L2_ZERO,
                                    Q_COPIED | Q_L2_ZERO };
  uint64_t place = s->place[random_below (random, s->n_places)];

  switch (random_below (random, 8)) {
  case 0:
    place += 1ull << s->cluster_bits;
    break;
  case 1:
    place += 512 * random_below (random, 16);
    break;
  case 2:
    place = random_below (random, (s->size >> s->cluster_bits) + 4) << s->cluster_bits;
    break;
  default:
    break;
  }
  return place | flags[random_below (random, sizeof flags / sizeof flags[0])];
}

static uint64_t
lie (const struct survey *s, const struct field *f, uint64_t *random)
{
  static const uint64_t known[] = { 0,
                                    1,
                                    2,
                                    3,
                                    8,
                                    9,
                                    21,
                                    22,
                                    63,
                                    64,
                                    511,
                                    512,
                                    1023,
                                    1024,
                                    4096,
                                    65535,
                                    65536,
                                    0x7fffffff,
                                    0x80000000,
                                    0xffffffff,
                                    0x100000000,
                                    Q_MAX_L1_BYTES / 8,
                                    Q_MAX_L1_BYTES / 8 + 1,
                                    Q_MAX_REFTABLE_BYTES,
                                    Q_MAX_HOST_OFFSET - 512,
                                    Q_MAX_HOST_OFFSET,
                                    INT64_MAX & ~511ull,
                                    INT64_MAX,
                                    1ull << 63,
                                    UINT64_MAX - 511,
                                    UINT64_MAX };
  uint64_t old = get (s, f->at, f->bytes);
  const struct field *other = &s->field[random_below (random, s->n_fields)];

  switch (random_below (random, 9)) {
  case 0:
    return known[random_below (random, sizeof known / sizeof known[0])];
  case 1:
    return old ^ 1ull << random_below (random, f->bytes * 8ull);
  case 2:
    return old + 1;
  case 3:
    return old - 1;
  case 4:
    return get (s, other->at, other->bytes);
  case 5:
    return random_next (random) >> random_below (random, 64);
  case 6:
    return old << random_below (random, 9);
  default:
    return f->bytes == 8 ? reference (s, random) : random_below (random, 70);
  }
}

/* What one structure holds comes to be in another's place as well. */
static void
copy_cluster (struct survey *s, uint64_t *random)
{
  uint64_t cluster = 1ull << s->cluster_bits,
           from = s->place[random_below (random, s->n_places)] & ~(cluster - 1),
           to = s->place[random_below (random, s->n_places)] & ~(cluster - 1);

  if (inside (s, from, cluster) && inside (s, to, cluster))
    memmove (s->image + to, s->image + from, cluster);
}

bool
mutate_image (uint8_t *image, size_t size, uint64_t *random)
{
  static struct survey s;
  const struct field *f;

  s = (struct survey){ .image = image, .size = size };
  if (!look (&s) || s.n_fields == 0)
    return false;
  if (random_below (random, 40) == 0) {
    copy_cluster (&s, random);
    return true;
  }
  f = &s.field[random_below (
      random, random_below (random, 3) == 0 ? (s.n_fields < 18 ? s.n_fields : 18) : s.n_fields)];
  set (&s, f->at, f->bytes, lie (&s, f, random));
  return true;
}
