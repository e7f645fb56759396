/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an image has where: see survey.h.  What it reads may be lies already: nothing is believed
 * but that it is inside of the image.
 */

#include <stddef.h>

#include "format.h"
#include "luks.h"
#include "survey.h"

bool
survey_inside (const struct survey *s, uint64_t at, uint64_t bytes)
{
  return at <= s->size && bytes <= s->size - at;
}

uint64_t
survey_get (const struct survey *s, uint64_t at, unsigned bytes)
{
  uint64_t v = 0;

  for (unsigned i = 0; i < bytes && survey_inside (s, at, bytes); ++i)
    v = v << 8 | s->image[at + i];
  return v;
}

void
survey_set (struct survey *s, uint64_t at, unsigned bytes, uint64_t v)
{
  for (unsigned i = 0; i < bytes; ++i)
    s->image[at + i] = (uint8_t)(v >> 8 * (bytes - 1 - i));
}

static void
add_kind (struct survey *s, uint64_t at, unsigned bytes, enum field_kind kind)
{
  if (s->n_fields < SURVEY_FIELDS && survey_inside (s, at, bytes))
    s->field[s->n_fields++] = (struct field){ (uint32_t)at, (uint8_t)bytes, (uint8_t)kind };
}

static void
add_field (struct survey *s, uint64_t at, unsigned bytes)
{
  add_kind (s, at, bytes, FIELD_NUMBER);
}

static void
add_place (struct survey *s, uint64_t at)
{
  if (s->n_places < SURVEY_PLACES)
    s->place[s->n_places++] = at;
}

/* ---- the structures -------------------------------------------------------------------------- */

#define FIELD_OF(type, member, kind)                                                               \
  {                                                                                                \
    offsetof (struct type, member), sizeof (((struct type *)0)->member), kind                      \
  }
#define FIELD(type, member)  FIELD_OF (type, member, FIELD_NUMBER)
#define OFFSET(type, member) FIELD_OF (type, member, FIELD_OFFSET)

static void
add_struct (struct survey *s, uint64_t at, const struct field *f, size_t n)
{
  for (size_t i = 0; i < n; ++i)
    add_kind (s, at + f[i].at, f[i].bytes, (enum field_kind)f[i].kind);
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
    OFFSET (qcow2_header, l1_table_offset),
    OFFSET (qcow2_header, refcount_table_offset),
    FIELD (qcow2_header, refcount_table_clusters),
    FIELD (qcow2_header, nb_snapshots),
    OFFSET (qcow2_header, snapshots_offset),
    FIELD_OF (qcow2_header, incompatible_features, FIELD_FEATURES),
    FIELD_OF (qcow2_header, compatible_features, FIELD_FEATURES),
    FIELD_OF (qcow2_header, autoclear_features, FIELD_FEATURES),
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
    uint64_t entry = survey_get (s, at + (uint64_t)i * step, 8);

    /* Those that say nothing are many and alike. */
    if (entry == 0 && i > 2 && i + 1 < n)
      continue;
    add_kind (s, at + (uint64_t)i * step, 8, FIELD_L2);
    if (s->extended)
      add_kind (s, at + (uint64_t)i * step + 8, 8, FIELD_SUBCLUSTERS);
    if (entry && !(entry & Q_L2_COMPRESSED))
      add_place (s, entry & Q_OFFSET_MASK);
  }
}

static void
survey_l1 (struct survey *s, uint64_t at, uint32_t entries)
{
  add_place (s, at);
  for (uint32_t i = 0; i < entries && i < 16; ++i) {
    uint64_t l2 = survey_get (s, at + i * 8ull, 8) & Q_OFFSET_MASK;

    add_kind (s, at + i * 8ull, 8, FIELD_L1);
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
    uint64_t block = survey_get (s, at + i * 8, 8) & Q_REFTABLE_MASK;

    if (block == 0 && i > 1)
      continue;
    add_kind (s, at + i * 8, 8, FIELD_OFFSET);
    if (!block)
      continue;
    add_place (s, block);
    for (unsigned k = 0; k < 1u << s->cluster_bits && survey_inside (s, block + k, 8); k += 2)
      if (survey_get (s, block + k, 2))
        add_field (s, block + k, 2);
  }
}

static void
survey_snapshots (struct survey *s, uint64_t at, uint32_t n)
{
  static const struct field fields[] = {
    OFFSET (qcow2_snapshot, l1_table_offset), FIELD (qcow2_snapshot, l1_size),
    FIELD (qcow2_snapshot, id_size),          FIELD (qcow2_snapshot, name_size),
    FIELD (qcow2_snapshot, vm_state_size),    FIELD (qcow2_snapshot, extra_data_size),
    FIELD (qcow2_snapshot, vm_clock_nsec),    FIELD (qcow2_snapshot, date_sec),
  };

  add_place (s, at);
  for (uint32_t i = 0; i < n && i < 8; ++i) {
    uint64_t extra = survey_get (s, at + offsetof (struct qcow2_snapshot, extra_data_size), 4),
             id = survey_get (s, at + offsetof (struct qcow2_snapshot, id_size), 2),
             name = survey_get (s, at + offsetof (struct qcow2_snapshot, name_size), 2);

    add_struct (s, at, fields, sizeof fields / sizeof fields[0]);
    survey_l1 (s, survey_get (s, at, 8), (uint32_t)survey_get (s, at + 8, 4));
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
    OFFSET (qcow2_bitmap, table_offset), FIELD (qcow2_bitmap, table_size),
    FIELD (qcow2_bitmap, flags),         FIELD (qcow2_bitmap, type),
    FIELD (qcow2_bitmap, name_size),     FIELD (qcow2_bitmap, granularity_bits),
    FIELD (qcow2_bitmap, flags),         FIELD (qcow2_bitmap, extra_data_size),
  };
  uint64_t n = survey_get (s, ext, 4), at = survey_get (s, ext + 16, 8);

  add_field (s, ext, 4);
  add_field (s, ext + 4, 4);
  add_field (s, ext + 8, 8);
  add_kind (s, ext + 16, 8, FIELD_OFFSET);
  add_place (s, at);
  for (unsigned i = 0; i < n && i < 8; ++i) {
    uint64_t table = survey_get (s, at, 8), entries = survey_get (s, at + 8, 4),
             name = survey_get (s, at + offsetof (struct qcow2_bitmap, name_size), 2),
             extra = survey_get (s, at + offsetof (struct qcow2_bitmap, extra_data_size), 4);

    add_struct (s, at, fields, sizeof fields / sizeof fields[0]);
    add_place (s, table);
    for (unsigned k = 0; k < entries && k < 8; ++k) {
      add_kind (s, table + 8ull * k, 8, FIELD_BITMAP);
      add_place (s, survey_get (s, table + 8ull * k, 8) & Q_OFFSET_MASK);
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
    { 0, 1, FIELD_NUMBER },
    { offsetof (struct luks_header, cipher), 4, FIELD_NUMBER },
    { offsetof (struct luks_header, mode), 4, FIELD_NUMBER },
    { offsetof (struct luks_header, hash), 4, FIELD_NUMBER },
  };
  static const struct field slot[] = {
    FIELD (luks_slot, state),
    FIELD (luks_slot, iterations),
    FIELD (luks_slot, material_sector),
    FIELD (luks_slot, stripes),
  };
  uint64_t at = survey_get (s, ext, 8);

  add_kind (s, ext, 8, FIELD_OFFSET);
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
  uint64_t at = survey_get (s, 4, 4) < 3
                    ? Q_HEADER_V2_LENGTH
                    : survey_get (s, offsetof (struct qcow2_header, header_length), 4);

  for (unsigned i = 0; i < 16 && survey_inside (s, at, 8); ++i) {
    uint32_t type = (uint32_t)survey_get (s, at, 4), length = (uint32_t)survey_get (s, at + 4, 4);

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

bool
survey_image (struct survey *s, uint8_t *image, size_t size)
{
  unsigned bits;

  *s = (struct survey){ .image = image, .size = size };
  if (s->size < Q_HEADER_V2_LENGTH || survey_get (s, 0, 4) != Q_MAGIC)
    return false;
  bits = (unsigned)survey_get (s, offsetof (struct qcow2_header, cluster_bits), 4);
  s->cluster_bits = bits >= Q_MIN_CLUSTER_BITS && bits <= Q_MAX_CLUSTER_BITS ? bits : 12;
  s->version = (unsigned)survey_get (s, 4, 4);
  s->extended = survey_get (s, 4, 4) >= 3 && (survey_get (s, 72, 8) & Q_INCOMPAT_EXTL2);
  add_place (s, 0);
  add_place (s, s->size);
  add_place (s, (s->size + (1ull << s->cluster_bits) - 1) >> s->cluster_bits << s->cluster_bits);
  survey_header (s);
  survey_extensions (s);
  survey_l1 (s, survey_get (s, offsetof (struct qcow2_header, l1_table_offset), 8),
             (uint32_t)survey_get (s, offsetof (struct qcow2_header, l1_size), 4));
  survey_refcounts (
      s, survey_get (s, offsetof (struct qcow2_header, refcount_table_offset), 8),
      (uint32_t)survey_get (s, offsetof (struct qcow2_header, refcount_table_clusters), 4));
  survey_snapshots (s, survey_get (s, offsetof (struct qcow2_header, snapshots_offset), 8),
                    (uint32_t)survey_get (s, offsetof (struct qcow2_header, nb_snapshots), 4));
  return true;
}
