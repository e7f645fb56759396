/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Persistent dirty bitmaps (specification: "Bitmaps", "Bitmap directory", "Bitmap table"): the
 * list, and the bits of one of them in memory, for reading.
 */

#include <errno.h>
#include <stdlib.h>

#include "image.h"

#define ull(v) ((unsigned long long)(v))

#define MAX_BITMAP_BYTES     (512u << 20) /* of bits in memory */
#define MAX_GRANULARITY_BITS 31u
#define MIN_GRANULARITY_BITS 9u

/* One directory entry, checked. */
struct entry {
  uint64_t table_offset;
  uint32_t table_size, flags, extra_data_size;
  uint8_t type, granularity_bits;
  char name[1024];
};

struct q_bitmap {
  uint64_t size; /* of the disk */
  unsigned granularity_bits;
  uint64_t bytes;
  uint8_t bits[]; /* bit 0 first in each byte, as on disk */
};

/* ---- the directory -------------------------------------------------------------------------- */

/* The entry at *POS of the directory; moves *POS to the next. */
static int
parse_entry (struct q_image *img, uint64_t *pos, struct entry *e, struct q_error *err)
{
  const uint8_t *buf = img->bitmap_dir;
  uint64_t left = img->bitmap_dir_size - *pos, length;
  struct qcow2_bitmap d;

  if (left < sizeof d)
    return q_fail (err, -EINVAL, "%s: the bitmap directory ends in the middle of an entry",
                   img->filename);
  memcpy (&d, buf + *pos, sizeof d);
  length = sizeof d + (uint64_t)get32 (d.extra_data_size) + get16 (d.name_size);
  if (length > left)
    return q_fail (err, -EINVAL, "%s: a bitmap directory entry of %llu bytes, only %llu are left",
                   img->filename, ull (length), ull (left));
  if (get16 (d.name_size) == 0 || get16 (d.name_size) >= sizeof e->name)
    return q_fail (err, -EINVAL, "%s: a bitmap's name is %u bytes long, should be 1 to 1023",
                   img->filename, get16 (d.name_size));
  *e = (struct entry){ .table_offset = get64 (d.table_offset),
                       .table_size = get32 (d.table_size),
                       .flags = get32 (d.flags),
                       .type = d.type,
                       .granularity_bits = d.granularity_bits,
                       .extra_data_size = get32 (d.extra_data_size) };
  memcpy (e->name, buf + *pos + sizeof d + e->extra_data_size, get16 (d.name_size));
  *pos += q_min (q_round_up (length, 8), left);
  return 0;
}

/* bitmap_lock held. */
static int
read_directory (struct q_image *img, struct q_error *err)
{
  uint64_t pos = 0;
  struct entry e;
  int r = 0;

  if (img->bitmap_entry)
    return 0;
  img->bitmap_dir = malloc (img->bitmap_dir_size);
  img->bitmap_entry = calloc (img->nb_bitmaps, sizeof *img->bitmap_entry);
  if (!img->bitmap_dir || !img->bitmap_entry) {
    q_fail (err, -ENOMEM, "%s: out of memory for the bitmap directory", img->filename);
    r = -ENOMEM;
  } else {
    r = q_file_pread (img->file, img->bitmap_dir, img->bitmap_dir_size, img->bitmap_dir_offset);
    if (r < 0)
      q_fail (err, r, "%s: cannot read the bitmap directory: %s", img->filename, strerror (-r));
  }
  for (unsigned i = 0; r == 0 && i < img->nb_bitmaps; ++i) {
    img->bitmap_entry[i] = (uint32_t)pos;
    r = parse_entry (img, &pos, &e, err);
  }
  if (r < 0) {
    free (img->bitmap_dir);
    free (img->bitmap_entry);
    img->bitmap_dir = NULL;
    img->bitmap_entry = NULL;
  }
  return r;
}

static int
get_entry (struct q_image *img, unsigned index, struct entry *e, struct q_error *err)
{
  uint64_t pos;
  int r;

  pthread_mutex_lock (&img->bitmap_lock);
  r = read_directory (img, err);
  if (r == 0) {
    pos = img->bitmap_entry[index];
    r = parse_entry (img, &pos, e, err);
  }
  pthread_mutex_unlock (&img->bitmap_lock);
  return r;
}

int
q_get_bitmap (struct q_image *img, unsigned index, struct q_bitmap_info *info, struct q_error *err)
{
  struct entry e;
  int r;

  if (index >= img->nb_bitmaps)
    return -ENOENT;
  r = get_entry (img, index, &e, err);
  if (r == 0) {
    *info = (struct q_bitmap_info){ .granularity = 1ull << (e.granularity_bits & 63),
                                    .in_use = e.flags & Q_BITMAP_IN_USE,
                                    .automatic = e.flags & Q_BITMAP_AUTO };
    memcpy (info->name, e.name, sizeof info->name);
  }
  return r;
}

static int
find_entry (struct q_image *img, const char *name, struct entry *e, struct q_error *err)
{
  for (unsigned i = 0; i < img->nb_bitmaps; ++i) {
    int r = get_entry (img, i, e, err);

    if (r < 0 || strcmp (e->name, name) == 0)
      return r;
  }
  return q_fail (err, -ENOENT, "%s: has no bitmap '%s'", img->filename, name);
}

/* ---- the bits ------------------------------------------------------------------------------- */

static int
check_entry (struct q_image *img, const struct entry *e, uint64_t bytes, struct q_error *err)
{
  uint64_t clusters = q_div_up (bytes, q_cluster_bytes (img));

  if (e->flags & Q_BITMAP_IN_USE)
    return q_fail (
        err, -EINVAL,
        "%s: bitmap '%s' is marked in use: its last user did not save it, so its bits mean "
        "nothing; remove it",
        img->filename, e->name);
  if (e->extra_data_size > 0 && !(e->flags & Q_BITMAP_EXTRA_COMPATIBLE))
    return q_fail (err, -ENOTSUP, "%s: bitmap '%s' has extra data that this program does not know",
                   img->filename, e->name);
  if (e->type != 1)
    return q_fail (err, -ENOTSUP, "%s: bitmap '%s' has type %u, only 1 (dirty tracking) is known",
                   img->filename, e->name, e->type);
  if (e->table_size != clusters)
    return q_fail (err, -EINVAL, "%s: bitmap '%s': a table of %u entries, should be %llu",
                   img->filename, e->name, e->table_size, ull (clusters));
  if ((e->table_offset & (q_cluster_bytes (img) - 1)) || e->table_offset >= Q_MAX_HOST_OFFSET ||
      (clusters > 0 && e->table_offset == 0))
    return q_fail (err, -EINVAL, "%s: bitmap '%s': table offset %#llx is not a cluster's",
                   img->filename, e->name, ull (e->table_offset));
  return 0;
}

static int
read_bits (struct q_image *img, const struct entry *e, struct q_bitmap *b, struct q_error *err)
{
  uint64_t cluster = q_cluster_bytes (img);
  be64 *table = malloc (e->table_size * sizeof *table + 1);
  int r = table ? q_file_pread (img->file, table, e->table_size * sizeof *table, e->table_offset)
                : -ENOMEM;

  for (uint32_t i = 0; r == 0 && i < e->table_size; ++i) {
    uint64_t t = get64 (table[i]), host = t & Q_OFFSET_MASK;
    uint8_t *to = b->bits + i * cluster;
    uint64_t n = q_min (cluster, b->bytes - i * cluster);

    if ((t & Q_BITMAP_ENTRY_RESERVED) || (host & (cluster - 1)) || (host && (t & 1))) {
      r = q_fail (err, -EINVAL, "%s: bitmap '%s': table entry %u is %#llx, which cannot be",
                  img->filename, e->name, i, ull (t));
      break;
    }
    if (host)
      r = q_file_pread (img->file, to, n, host);
    else
      memset (to, t & Q_BITMAP_ENTRY_ONES ? 0xff : 0, n);
  }
  free (table);
  if (r < 0)
    q_fail (err, r, "%s: cannot read bitmap '%s': %s", img->filename, e->name, strerror (-r));
  return r;
}

int
q_bitmap_load (struct q_image *img, const char *name, struct q_bitmap **bitmap, struct q_error *err)
{
  struct entry e;
  uint64_t bits, bytes;
  int r;

  *bitmap = NULL;
  if (err)
    err->text[0] = '\0';
  r = find_entry (img, name, &e, err);
  if (r < 0)
    return r;
  if (e.granularity_bits < MIN_GRANULARITY_BITS || e.granularity_bits > MAX_GRANULARITY_BITS)
    return q_fail (err, -EINVAL, "%s: bitmap '%s': granularity_bits is %u, should be %u to %u",
                   img->filename, name, e.granularity_bits, MIN_GRANULARITY_BITS,
                   MAX_GRANULARITY_BITS);
  bits = q_div_up (q_size (img), 1ull << e.granularity_bits);
  bytes = q_div_up (bits, 8);
  if (bytes > MAX_BITMAP_BYTES)
    return q_fail (err, -EFBIG, "%s: bitmap '%s' has %llu bytes of bits, at most %u are supported",
                   img->filename, name, ull (bytes), MAX_BITMAP_BYTES);
  r = check_entry (img, &e, bytes, err);
  if (r < 0)
    return r;
  *bitmap = calloc (1, sizeof **bitmap + bytes);
  if (!*bitmap)
    return q_fail (err, -ENOMEM, "%s: out of memory for bitmap '%s'", img->filename, name);
  (*bitmap)->size = q_size (img);
  (*bitmap)->granularity_bits = e.granularity_bits;
  (*bitmap)->bytes = bytes;
  r = read_bits (img, &e, *bitmap, err);
  if (r < 0) {
    free (*bitmap);
    *bitmap = NULL;
  }
  return r;
}

static bool
is_set (const struct q_bitmap *b, uint64_t bit)
{
  return b->bits[bit >> 3] >> (bit & 7) & 1;
}

void
q_bitmap_next (const struct q_bitmap *b, uint64_t offset, uint64_t end, bool *dirty,
               uint64_t *run_end)
{
  uint64_t bit = offset >> b->granularity_bits, last, whole;

  assert (offset < end && end <= b->size);
  last = (end - 1) >> b->granularity_bits;
  *dirty = is_set (b, bit);
  whole = *dirty ? 0xff : 0;
  ++bit;
  while (bit <= last) {
    if ((bit & 7) == 0 && bit + 8 <= last && b->bits[bit >> 3] == whole)
      bit += 8;
    else if (is_set (b, bit) == *dirty)
      ++bit;
    else
      break;
  }
  *run_end = q_min (end, bit << b->granularity_bits);
}

void
q_bitmap_free (struct q_bitmap *b)
{
  free (b);
}
