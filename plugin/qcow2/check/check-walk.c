/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Everything in an image that refers to host clusters, except the refcount structures: the header,
 * L1 and L2 tables (the active ones and those of snapshots), the snapshot table, bitmaps, and the
 * encryption header.
 *
 * A table entry that cannot be right is reported and, if there is no telling what it meant, not
 * followed; c->lost then says that references may be missing from the counts.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"

#define ull(v) ((unsigned long long)(v))

/* Bitmap table entries that are read at a time. */
#define BITMAP_BATCH 4096u

/* ---- counting -------------------------------------------------------------------------------- */

/* Remembers what is referred to past the end of the file, as far as a repair might put something
 * there. */
static int
note_dangling (struct q_check *c, uint64_t offset, uint64_t len)
{
  const unsigned bits = c->img->cluster_bits;
  uint64_t first = offset >> bits, last = offset > UINT64_MAX - len ? UINT64_MAX : offset + len - 1;
  int r = 0;

  last = q_min (last >> bits, c->refs.clusters - 1);
  if (first < c->clusters)
    first = c->clusters;
  for (uint64_t i = first; r == 0 && i <= last; i++)
    r = q_refmap_set_mark (&c->refs, i, Q_REFMAP_DANGLING);
  return r;
}

int
q_check_count (struct q_check *c, uint64_t offset, uint64_t len, enum q_check_use use, bool *ok)
{
  const unsigned bits = c->img->cluster_bits;
  const uint64_t end = c->clusters << bits;

  if (ok)
    *ok = true;
  if (len == 0)
    return 0;
  if (offset >= end || len > end - offset) {
    c->lost = true;
    if (ok)
      *ok = false;
    q_check_corruption (c, false,
                        "counting reference for region exceeding the end of the file by one "
                        "cluster or more: offset 0x%llx size 0x%llx",
                        ull (offset), ull (len));
    return note_dangling (c, offset, len);
  }
  for (uint64_t i = offset >> bits; i <= (offset + len - 1) >> bits; i++) {
    if (q_refmap_get (&c->refs, i) >= c->max_count)
      q_check_corruption (c, false,
                          "overflow cluster offset=0x%llx: it has more references than a refcount "
                          "of %u bits can count; convert the image to one with wider refcounts",
                          ull (i << bits), 1u << c->img->refcount_order);

    int r = use == Q_CHECK_L2 ? q_refmap_add_l2 (&c->refs, i) : q_refmap_add (&c->refs, i);

    if (r == 0 && use == Q_CHECK_EXCLUSIVE)
      r = q_refmap_set_mark (&c->refs, i, Q_REFMAP_EXCLUSIVE);
    if (r == 0 && c->survey && use == Q_CHECK_REFCOUNTS)
      r = q_refmap_set_mark (&c->refs, i, Q_REFMAP_REFCOUNTS);
    if (r == 0 && c->survey && use == Q_CHECK_COMPRESSED)
      r = q_refmap_set_mark (&c->refs, i, Q_REFMAP_COMPRESSED);
    if (r < 0)
      return r;
  }
  return 0;
}

int
q_check_read_entries (struct q_check *c, uint64_t offset, uint64_t n, uint64_t *entries)
{
  int r = q_file_pread (c->img->file, entries, 8 * n, offset);

  for (uint64_t i = 0; r == 0 && i < n; i++)
    entries[i] = be64toh (entries[i]);
  return r;
}

/* ---- L2 tables ------------------------------------------------------------------------------- */

enum q_entry_kind
q_check_entry_kind (const struct q_image *img, uint64_t entry, uint64_t bitmap)
{
  bool extended = img->incompatible & Q_INCOMPAT_EXTL2;

  if (entry & Q_L2_COMPRESSED)
    return Q_ENTRY_COMPRESSED;
  if ((entry & Q_OFFSET_MASK) == 0)
    /* In an external data file the first cluster has offset 0; COPIED says that it is there. */
    return (img->incompatible & Q_INCOMPAT_DATA_FILE) && (entry & Q_COPIED) && !(entry & Q_L2_ZERO)
               ? Q_ENTRY_STANDARD
               : Q_ENTRY_NONE;
  if (extended ? !(bitmap & Q_L2_BITMAP_ALLOCATED) : entry & Q_L2_ZERO)
    return Q_ENTRY_ZERO;
  return Q_ENTRY_STANDARD;
}

unsigned
q_check_entry_words (const struct q_image *img)
{
  return img->incompatible & Q_INCOMPAT_EXTL2 ? 2 : 1;
}

/* Where a table was reached from. */
struct reach {
  bool active;        /* from the active L1 table: COPIED flags are accurate there */
  uint64_t next_host; /* where the next data cluster of the table would not be a fragment */
  uint64_t guest;     /* offset of the cluster that the entry is for */
};

static int
walk_compressed (struct q_check *c, const struct reach *reach, uint64_t entry, unsigned index)
{
  uint64_t host;
  uint32_t csize;

  if (entry & Q_COPIED) {
    c->entries = true; /* also in a snapshot's table, where other flags mean nothing */
    q_check_corruption (c, true,
                        "L2 entry %llx: the copied flag must never be set for compressed clusters",
                        ull (entry));
  }
  if (c->img->incompatible & Q_INCOMPAT_DATA_FILE) {
    q_check_corruption (c, false, "compressed cluster %u with an external data file, entry=0x%llx",
                        index, ull (entry));
    return 0;
  }
  if (reach->active) {
    c->res->allocated_clusters++;
    c->res->compressed_clusters++;
    c->res->fragmented_clusters++;
  }
  q_compressed_decode (entry & ~(Q_COPIED | Q_L2_COMPRESSED), c->img->cluster_bits, &host, &csize);
  return q_check_count (c, host, csize, Q_CHECK_COMPRESSED, NULL);
}

/* A COPIED flag of the cluster at HOST that does not go with the recorded count.  Harmless, unless
 * the cluster turns out to be shared (q_check_compare). */
static int
note_flag (struct q_check *c, uint64_t entry, uint64_t cluster)
{
  c->flags = true;
  c->res->stale_flags++;
  return (entry & Q_COPIED) && cluster < c->refs.clusters
             ? q_refmap_set_mark (&c->refs, cluster, Q_REFMAP_FLAGGED)
             : 0;
}

static int
check_data_copied (struct q_check *c, uint64_t entry)
{
  uint64_t cluster = (entry & Q_OFFSET_MASK) >> c->img->cluster_bits;
  bool external = c->img->incompatible & Q_INCOMPAT_DATA_FILE;
  bool one = external || q_refmap_has_mark (&c->refs, cluster, Q_REFMAP_ONE);

  if (one == ((entry & Q_COPIED) != 0) || c->behind || (!external && q_check_unknown (c, cluster)))
    return 0;
  q_check_corruption (c, true, "OFLAG_COPIED data cluster: l2_entry=%llx refcount=%llu",
                      ull (entry), ull (external ? 1 : q_check_recorded (c, cluster)));
  return note_flag (c, entry, cluster);
}

static int
walk_standard (struct q_check *c, struct reach *reach, uint64_t entry, enum q_entry_kind kind)
{
  uint64_t host = entry & Q_OFFSET_MASK;

  if (reach->active) {
    c->res->allocated_clusters++;
    if (reach->next_host && host != reach->next_host)
      c->res->fragmented_clusters++;
    reach->next_host = host + q_cluster_bytes (c->img);

    int r = check_data_copied (c, entry);

    if (r < 0)
      return r;
  }
  if (!q_check_aligned (c, host)) {
    if (kind == Q_ENTRY_ZERO) {
      /* No data is lost by forgetting where a cluster of zeros was. */
      c->entries = true;
      q_check_corruption (c, true,
                          "offset=%llx: Preallocated cluster is not properly aligned; L2 entry "
                          "corrupted.",
                          ull (host));
      if (c->repair & Q_REPAIR_ERRORS)
        return 0;
    } else {
      c->lost = true;
      q_check_corruption (c, false,
                          "offset=%llx: Data cluster is not properly aligned; L2 entry corrupted.",
                          ull (host));
    }
  }
  if (q_has_data_file (c->img)) { /* not in this file */
    if (host != reach->guest)
      q_check_corruption (
          c, false,
          "offset=%llx: Data cluster for guest offset %llx is not at that offset of "
          "the external data file; L2 entry corrupted.",
          ull (host), ull (reach->guest));
    return 0;
  }
  return q_check_count (c, host, q_cluster_bytes (c->img), Q_CHECK_DATA, NULL);
}

/* BITMAP: the second word of an extended entry. */
static void
check_reserved (struct q_check *c, uint64_t entry, uint64_t bitmap, enum q_entry_kind kind)
{
  if (kind == Q_ENTRY_COMPRESSED) {
    c->entries = c->entries || bitmap;
    if (bitmap)
      q_check_corruption (c, true,
                          "compressed cluster with non-zero subcluster allocation bitmap, "
                          "entry=0x%llx",
                          ull (entry));
    return;
  }

  bool extended = c->img->incompatible & Q_INCOMPAT_EXTL2;

  if ((entry & Q_L2_RESERVED) || (extended && (entry & Q_L2_ZERO)))
    q_check_corruption (c, false, "found l2 entry with reserved bits set: %llx", ull (entry));
  else if (c->img->version < 3 && (entry & Q_L2_ZERO))
    q_check_corruption (c, false, "found l2 entry with the zero flag, which version 2 lacks: %llx",
                        ull (entry));
  if (extended && ((bitmap >> 32) & (uint32_t)bitmap))
    q_check_corruption (c, false, "subclusters both allocated and zero: l2_entry=%llx bitmap=%llx",
                        ull (entry), ull (bitmap));
  if (extended && kind == Q_ENTRY_NONE && (uint32_t)bitmap)
    q_check_corruption (c, false,
                        "subclusters allocated without a host cluster: l2_entry=%llx bitmap=%llx",
                        ull (entry), ull (bitmap));
}

static int
walk_l2 (struct q_check *c, uint32_t index, uint64_t offset, bool active)
{
  const unsigned words = q_check_entry_words (c->img);
  const uint64_t n = q_cluster_bytes (c->img) / 8;
  uint64_t *table = (uint64_t *)c->table;
  struct reach reach = { .active = active };
  int r = q_check_go_on (c);

  if (r < 0)
    return r;
  r = q_check_read_entries (c, offset, n, table);
  if (r == -ENOMEM)
    return r;
  if (r < 0) {
    q_check_unreadable (c, "the L2 table at offset 0x%llx cannot be read: %s", ull (offset),
                        strerror (-r));
    return 0;
  }
  for (uint64_t i = 0; i < n; i += words) {
    uint64_t entry = table[i], bitmap = words == 2 ? table[i + 1] : 0;

    if (entry == 0 && bitmap == 0)
      continue;

    enum q_entry_kind kind = q_check_entry_kind (c->img, entry, bitmap);

    reach.guest = (index * (n / words) + i / words) << c->img->cluster_bits;
    check_reserved (c, entry, bitmap, kind);
    if (kind == Q_ENTRY_COMPRESSED)
      r = walk_compressed (c, &reach, entry, (unsigned)(i / words));
    else if (kind != Q_ENTRY_NONE)
      r = walk_standard (c, &reach, entry, kind);
    if (r < 0)
      return r;
  }
  return 0;
}

/* ---- L1 tables ------------------------------------------------------------------------------- */

static int
walk_l1_entry (struct q_check *c, uint32_t index, uint64_t entry, bool active)
{
  uint64_t offset = entry & Q_OFFSET_MASK;
  uint64_t cluster = offset >> c->img->cluster_bits;
  bool ok;
  int r;

  if (entry & Q_L1_RESERVED) {
    c->lost = c->lost || !offset;
    q_check_corruption (c, false, "found L1 entry with reserved bits set: %llx", ull (entry));
  }
  if (!offset)
    return 0;
  if (active && !c->behind && !q_check_unknown (c, cluster) &&
      q_refmap_has_mark (&c->refs, cluster, Q_REFMAP_ONE) != ((entry & Q_COPIED) != 0)) {
    q_check_corruption (c, true, "OFLAG_COPIED L2 cluster: l1_index=%u l1_entry=%llx refcount=%llu",
                        index, ull (entry), ull (q_check_recorded (c, cluster)));
    r = note_flag (c, entry, cluster);
    if (r < 0)
      return r;
  }

  r = q_check_count (c, offset, q_cluster_bytes (c->img), Q_CHECK_L2, &ok);

  if (r < 0)
    return r;
  if (!q_check_aligned (c, offset)) {
    c->lost = true;
    q_check_corruption (
        c, false, "l2_offset=%llx: Table is not cluster aligned; L1 entry corrupted", ull (offset));
    return 0;
  }
  return ok ? walk_l2 (c, index, offset, active) : 0;
}

/* WHAT names the table in messages. */
static int
walk_l1 (struct q_check *c, uint64_t offset, uint32_t entries, bool active, const char *what)
{
  uint64_t *table;
  bool ok;
  int r = q_check_count (c, offset, 8ull * entries, Q_CHECK_EXCLUSIVE, &ok);

  if (r < 0 || !ok || entries == 0)
    return r;
  table = malloc (8ull * entries);
  if (!table)
    return -ENOMEM;
  r = q_check_read_entries (c, offset, entries, table);
  if (r < 0 && r != -ENOMEM) {
    q_check_unreadable (c, "the L1 table of %s at offset 0x%llx cannot be read: %s", what,
                        ull (offset), strerror (-r));
    r = 0;
  } else {
    r = r < 0 ? r : q_check_fast (c, table, entries, active);
    for (uint32_t i = 0; r == 0 && i < entries; i++)
      if (table[i])
        r = walk_l1_entry (c, i, table[i], active);
  }
  free (table);
  return r;
}

/* ---- snapshots ------------------------------------------------------------------------------- */

static int
walk_snapshot (struct q_check *c, unsigned index)
{
  const struct q_snapshot *s = &atomic_load (&c->img->snapshots)->s[index];
  char what[64];

  if (c->img->version >= 3 && s->extra_data_size < 16) {
    c->res->unsized_snapshots++;
    q_check_corruption (c, true,
                        "snapshot table entry %u is incomplete: %u bytes of extra data, version 3 "
                        "has at least 16",
                        index, s->extra_data_size);
  }
  if (!q_check_aligned (c, s->l1_table_offset) || s->l1_size > Q_MAX_L1_BYTES / 8) {
    c->lost = true;
    q_check_corruption (c, false,
                        "snapshot %s (%s) l1_offset=%#llx l1_size=%#x: L1 table is not cluster "
                        "aligned or too large; snapshot table entry corrupted",
                        s->id, s->name, ull (s->l1_table_offset), s->l1_size);
    return 0;
  }
  snprintf (what, sizeof what, "snapshot %u", index);
  return walk_l1 (c, s->l1_table_offset, s->l1_size, false, what);
}

/* ---- bitmaps --------------------------------------------------------------------------------- */

static int
walk_bitmap_table (struct q_check *c, uint64_t offset, uint32_t entries, uint32_t index)
{
  uint64_t *batch;
  bool ok;
  int r = q_check_count (c, offset, 8ull * entries, Q_CHECK_EXCLUSIVE, &ok);

  if (r < 0 || !ok)
    return r;
  batch = malloc (8 * BITMAP_BATCH);
  if (!batch)
    return -ENOMEM;
  for (uint32_t done = 0, n; r == 0 && done < entries; done += n) {
    n = (uint32_t)q_min (entries - done, BITMAP_BATCH);
    r = q_check_go_on (c);
    if (r < 0)
      break;
    r = q_check_read_entries (c, offset + 8ull * done, n, batch);
    if (r < 0 && r != -ENOMEM) {
      q_check_unreadable (c, "the table of bitmap %u at offset 0x%llx cannot be read: %s", index,
                          ull (offset), strerror (-r));
      r = 0;
      break;
    }
    for (uint32_t i = 0; r == 0 && i < n; i++) {
      uint64_t host = batch[i] & Q_OFFSET_MASK;

      if ((batch[i] & Q_BITMAP_ENTRY_RESERVED) || (host && (batch[i] & Q_BITMAP_ENTRY_ONES)) ||
          !q_check_aligned (c, host)) {
        c->lost = true;
        q_check_corruption (c, false,
                            "bitmap %u: table entry %u is %llx: reserved bits set or not "
                            "cluster aligned",
                            index, done + i, ull (batch[i]));
      } else if (host)
        r = q_check_count (c, host, q_cluster_bytes (c->img), Q_CHECK_EXCLUSIVE, NULL);
    }
  }
  free (batch);
  return r;
}

/* From entry INDEX on, at byte AT, nobody can tell what the directory means.  A repair ends it
 * there: then nothing refers any more to what it may have pointed at. */
static void
cut_directory (struct q_check *c, uint32_t index, uint64_t at, const char *why)
{
  c->cut_bitmaps = true;
  c->bitmaps_kept = index;
  c->bitmaps_bytes = at;
  c->lost = c->lost || !q_check_cuts_bitmaps (c);
  q_check_corruption (
      c, !c->opening,
      "bitmap directory: %s: the first %u of %u bitmaps can be read, a repair drops "
      "the others",
      why, index, c->img->nb_bitmaps);
}

/* Entry I, all of which is there. */
static int
walk_bitmap_entry (struct q_check *c, const struct qcow2_bitmap *b, const uint8_t *name, uint32_t i)
{
  const int shown = get16 (b->name_size) < 64 ? get16 (b->name_size) : 64;
  const uint64_t table = get64 (b->table_offset);

  if (get16 (b->name_size) == 0)
    q_check_corruption (c, false, "bitmap %u has no name: it can be removed as '?'", i);
  if (q_check_aligned (c, table) && table)
    return walk_bitmap_table (c, table, get32 (b->table_size), i);
  c->lost = true;
  q_check_corruption (c, false,
                      "bitmap %u ('%.*s'): table offset 0x%llx is not a cluster's: remove the "
                      "bitmap",
                      i, shown, (const char *)name, ull (table));
  return 0;
}

static int
walk_bitmap_directory (struct q_check *c, const uint8_t *dir, uint64_t size)
{
  uint64_t at = 0;
  int r = 0;

  for (uint32_t i = 0; r == 0 && i < c->img->nb_bitmaps; i++) {
    struct qcow2_bitmap b;
    uint64_t bytes = sizeof b;

    if (size - at >= sizeof b) {
      memcpy (&b, dir + at, sizeof b);
      bytes += (uint64_t)get32 (b.extra_data_size) + get16 (b.name_size);
    }
    if (bytes > size - at) {
      cut_directory (c, i, at, "it ends in the middle of an entry");
      return 0;
    }
    r = walk_bitmap_entry (c, &b, dir + at + sizeof b + get32 (b.extra_data_size), i);
    at += q_min (q_round_up (bytes, 8), size - at);
  }
  if (r == 0 && at != c->img->bitmap_dir_size)
    cut_directory (c, c->img->nb_bitmaps, at, "its size is not that of its entries");
  return r;
}

/* SIZE: as far as the directory is in the file. */
static int
read_bitmap_directory (struct q_check *c, uint64_t size)
{
  const uint64_t offset = c->img->bitmap_dir_offset;
  uint8_t *dir = malloc (size);
  int r = dir ? q_file_pread (c->img->file, dir, size, offset) : -ENOMEM;

  if (r == 0)
    r = walk_bitmap_directory (c, dir, size);
  else if (r != -ENOMEM) {
    q_check_unreadable (c, "the bitmap directory at offset 0x%llx cannot be read: %s", ull (offset),
                        strerror (-r));
    r = 0;
  }
  free (dir);
  if (c->cut_bitmaps)
    size = c->bitmaps_bytes;
  return r < 0 ? r : q_check_count (c, offset, size, Q_CHECK_EXCLUSIVE, NULL);
}

static int
walk_bitmaps (struct q_check *c)
{
  const struct q_image *img = c->img;
  const uint64_t end = c->clusters << img->cluster_bits;

  /* Without the autoclear bit the extension is stale, and what it points at is garbage. */
  if (!(img->autoclear & Q_AUTOCLEAR_BITMAPS))
    return 0;
  if (img->bitmaps_lost)
    cut_directory (c, 0, 0, "the header extension that leads to it cannot be right");
  else if (img->nb_bitmaps && img->bitmap_dir_offset >= end)
    cut_directory (c, 0, 0, "it is not in the file");
  else if (img->nb_bitmaps)
    return read_bitmap_directory (c, q_min (img->bitmap_dir_size, end - img->bitmap_dir_offset));
  return 0;
}

/* ---- all ------------------------------------------------------------------------------------- */

int
q_check_walk (struct q_check *c)
{
  const struct q_image *img = c->img;
  const uint32_t snapshots = q_snapshots_count (img);
  int r = q_check_count (c, 0, q_cluster_bytes (img), Q_CHECK_EXCLUSIVE, NULL);

  if (r == 0)
    r = walk_l1 (c, img->l1_offset, img->l1_size, true, "the image");
  if (r == 0 && snapshots && (img->incompatible & Q_INCOMPAT_DATA_FILE))
    q_check_corruption (c, false, "%u snapshots in an image with an external data file", snapshots);
  for (unsigned i = 0; r == 0 && i < snapshots; i++)
    r = walk_snapshot (c, i);
  if (r == 0 && snapshots)
    r = q_check_count (c, img->snapshots_offset, img->snapshots_bytes, Q_CHECK_EXCLUSIVE, NULL);
  if (r == 0 && img->crypt_method == Q_CRYPT_LUKS)
    r = q_check_count (c, img->crypto_offset, img->crypto_length, Q_CHECK_EXCLUSIVE, NULL);
  if (r == 0)
    r = walk_bitmaps (c);
  return r;
}
