/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One lie in an image: see mutate.h.
 */

#include "format.h"
#include "mem.h"
#include "mutate.h"
#include "survey.h"

/* ---- what a field could say ------------------------------------------------------------------ */

static uint64_t
cluster_of (const struct survey *s)
{
  return UINT64_C (1) << s->cluster_bits;
}

/* Where something is, or could be. */
static uint64_t
somewhere (const struct survey *s, uint64_t *random)
{
  uint64_t place = s->place[random_below (random, s->n_places)];

  switch (random_below (random, 8)) {
  case 0:
    return place + cluster_of (s);
  case 1:
    return place + 512 * random_below (random, 16);
  case 2:
    return random_below (random, (s->size >> s->cluster_bits) + 4) << s->cluster_bits;
  default:
    return place;
  }
}

/* A descriptor of compressed data at HOST, which may begin and end at any byte. */
static uint64_t
compressed (const struct survey *s, uint64_t host, uint64_t *random)
{
  const unsigned offset_bits = 62 - (s->cluster_bits - 8);
  uint64_t sectors = random_below (random, UINT64_C (1) << (s->cluster_bits - 8));

  host += random_below (random, 4) ? 0 : random_below (random, 512);
  sectors = random_below (random, 2) ? sectors & 3 : sectors;
  return Q_L2_COMPRESSED | sectors << offset_bits | (host & ((UINT64_C (1) << offset_bits) - 1));
}

/* Which of a cluster's parts are allocated, and which are zeros. */
static uint64_t
subclusters (uint64_t *random)
{
  uint64_t a = random_next (random) >> random_below (random, 64),
           z = random_next (random) >> random_below (random, 64);

  switch (random_below (random, 4)) {
  case 0:
    return a << 32; /* zeros */
  case 1:
    return a & UINT32_MAX;
  case 2:
    return (a & UINT32_MAX) | (z & ~a) << 32;
  default:
    return a ^ z << 32; /* also both at once, which must not be */
  }
}

static uint64_t
features (uint64_t old, uint64_t *random)
{
  static const uint64_t known[] = { 1, 2, 4, 8, 16, Q_AUTOCLEAR_SESSION };

  return old ^ known[random_below (random, sizeof known / sizeof known[0])];
}

static uint64_t
plausible (const struct survey *s, const struct field *f, uint64_t *random)
{
  static const uint64_t l2[] = { 0, Q_COPIED, Q_COPIED, Q_L2_ZERO, Q_COPIED | Q_L2_ZERO };
  uint64_t place = somewhere (s, random);

  switch ((enum field_kind)f->kind) {
  case FIELD_L1:
    return place | (random_below (random, 3) ? Q_COPIED : 0);
  case FIELD_L2:
    return random_below (random, 3) == 0
               ? compressed (s, place, random)
               : place | l2[random_below (random, sizeof l2 / sizeof l2[0])];
  case FIELD_BITMAP:
    return random_below (random, 4) == 0 ? 1 : place;
  case FIELD_SUBCLUSTERS:
    return subclusters (random);
  case FIELD_FEATURES:
    return features (survey_get (s, f->at, f->bytes), random);
  default:
    return place;
  }
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
  uint64_t old = survey_get (s, f->at, f->bytes);
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
    return survey_get (s, other->at, other->bytes);
  case 5:
    return random_next (random) >> random_below (random, 64);
  case 6:
    return old << random_below (random, 9);
  default:
    return f->kind == FIELD_NUMBER && f->bytes < 8 ? random_below (random, 70)
                                                   : plausible (s, f, random);
  }
}

/* ---- lies that fit together ------------------------------------------------------------------ */

/* What one structure holds comes to be in another's place as well. */
static void
copy_cluster (struct survey *s, uint64_t *random)
{
  uint64_t cluster = cluster_of (s),
           from = s->place[random_below (random, s->n_places)] & ~(cluster - 1),
           to = s->place[random_below (random, s->n_places)] & ~(cluster - 1);

  if (survey_inside (s, from, cluster) && survey_inside (s, to, cluster))
    memmove (s->image + to, s->image + from, cluster);
}

/* The refcount of the cluster at HOST, changed by BY.  False if there is no place for it. */
static bool
count (struct survey *s, uint64_t host, int by)
{
  unsigned order =
      s->version < 3 ? 4
                     : (unsigned)survey_get (s, offsetof (struct qcow2_header, refcount_order), 4);
  uint64_t table = survey_get (s, offsetof (struct qcow2_header, refcount_table_offset), 8),
           index = host >> s->cluster_bits, per_block, block, at;
  unsigned shift, mask;

  if (order > 6)
    return false;
  per_block = cluster_of (s) * 8 >> order;
  block = survey_get (s, table + index / per_block * 8, 8) & Q_REFTABLE_MASK;
  at = block + (index % per_block << order) / 8;
  if (block == 0 || !survey_inside (s, at, 8))
    return false;
  if (order >= 3) {
    survey_set (s, at, 1u << order >> 3, survey_get (s, at, 1u << order >> 3) + (uint64_t)by);
    return true;
  }
  /* Several in a byte, the first one lowest. */
  shift = (unsigned)(index % per_block << order) % 8;
  mask = (1u << (1u << order)) - 1;
  s->image[at] = (uint8_t)((s->image[at] & ~(mask << shift)) |
                           ((((unsigned)s->image[at] >> shift) + (unsigned)by) & mask) << shift);
  return true;
}

/* Nobody may write in place what more than one leads to. */
static void
drop_copied (struct survey *s, uint64_t host)
{
  for (unsigned i = 0; i < s->n_fields; ++i) {
    const struct field *f = &s->field[i];
    uint64_t entry = survey_get (s, f->at, f->bytes);

    if ((f->kind == FIELD_L1 || (f->kind == FIELD_L2 && !(entry & Q_L2_COMPRESSED))) &&
        (entry & Q_OFFSET_MASK) == host)
      survey_set (s, f->at, f->bytes, entry & ~Q_COPIED);
  }
}

/* What a field leads to is counted as often as it is led to, so that counts alone give nothing
 * away: one field leads to where another does already. */
static void
share (struct survey *s, uint64_t *random)
{
  const struct field *f = &s->field[random_below (random, s->n_fields)];
  uint64_t place = s->place[random_below (random, s->n_places)] & ~(cluster_of (s) - 1), old;

  for (unsigned tries = 0; tries < 64 && (f->kind < FIELD_OFFSET || f->kind > FIELD_BITMAP);
       ++tries)
    f = &s->field[random_below (random, s->n_fields)];
  if (f->kind < FIELD_OFFSET || f->kind > FIELD_BITMAP || !count (s, place, 1))
    return;
  old = survey_get (s, f->at, f->bytes);
  if (!(f->kind == FIELD_L2 && (old & Q_L2_COMPRESSED)) && (old & Q_OFFSET_MASK) > 0)
    count (s, old & Q_OFFSET_MASK, -1);
  survey_set (s, f->at, f->bytes, place);
  drop_copied (s, place);
}

/* Two entries of L1 tables lead to one L2 table, as after a snapshot: all is counted twice. */
static void
share_table (struct survey *s, uint64_t *random)
{
  const struct field *from = NULL, *to = NULL;
  unsigned step = s->extended ? 16 : 8;
  uint64_t table;

  for (unsigned i = 0; i < s->n_fields; ++i) {
    const struct field *f = &s->field[i];

    if (f->kind != FIELD_L1)
      continue;
    if ((survey_get (s, f->at, 8) & Q_OFFSET_MASK) == 0)
      to = !to || random_below (random, 2) ? f : to;
    else
      from = !from || random_below (random, 2) ? f : from;
  }
  if (!from || !to)
    return;
  table = survey_get (s, from->at, 8) & Q_OFFSET_MASK;
  if (!survey_inside (s, table, cluster_of (s)) || !count (s, table, 1))
    return;
  survey_set (s, to->at, 8, table);
  drop_copied (s, table);
  for (uint64_t at = table; at < table + cluster_of (s); at += step) {
    uint64_t entry = survey_get (s, at, 8), host = entry & Q_OFFSET_MASK;

    if ((entry & Q_L2_COMPRESSED) || host == 0)
      continue;
    count (s, host, 1);
    survey_set (s, at, 8, entry & ~Q_COPIED);
    drop_copied (s, host);
  }
}

bool
mutate_image (uint8_t *image, size_t size, uint64_t *random)
{
  static struct survey s;
  const struct field *f;

  if (!survey_image (&s, image, size) || s.n_fields == 0)
    return false;
  switch (random_below (random, 40)) {
  case 0:
    copy_cluster (&s, random);
    return true;
  case 1:
  case 2:
  case 3:
  case 4:
    share (&s, random);
    return true;
  case 5:
    share_table (&s, random);
    return true;
  default:
    break;
  }
  f = &s.field[random_below (
      random, random_below (random, 3) == 0 ? (s.n_fields < 18 ? s.n_fields : 18) : s.n_fields)];
  survey_set (&s, f->at, f->bytes, lie (&s, f, random));
  return true;
}
