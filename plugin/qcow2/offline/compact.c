/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Compacting: clusters from the end of the file move into free ones further down, and the file ends
 * where the last one is then.
 *
 * The image is open for this alone, with no tables in memory, and was found sound.  Everything that
 * refers to a cluster by a word of 64 bits can follow it: L2 entries, of the present state and of
 * snapshots, L1 entries, refcount table entries, bitmap tables and their directory, the header and
 * its extensions, and the snapshot table.  Compressed data, which has no clusters of its own, is
 * moved piece by piece (compact-pieces.c).
 *
 * Invariant: at every moment both the old and the new cluster have a count that covers the
 * references to them.  In this order, each step durable before the next:
 *
 *     1. the new cluster has the old one's count and contents;
 *     2. the words that refer to the old one refer to the new one, one after the other;
 *     3. the old one's count is 0.
 *
 * In between some words have the one and some the other; both have the same contents, and nobody
 * writes.  What is cut off the file afterwards has had its counts cleared durably.
 *
 * What fails before step 2 is durable goes back: the words refer to the old clusters again,
 * durably, and then the counts of the new ones are 0, so that nothing is leaked.  Only if that
 * fails as well do both keep their counts (compaction.torn).  After a failed sync nobody knows what
 * the disk has: each word is written again, whatever it reads as.  If there was no room, what has
 * been moved so far gives its room back, and the rest is tried again, less and less at a time.
 */

#include <errno.h>
#include <stdlib.h>

#include "compact.h"

#define ull(v) ((unsigned long long)(v))

/* ---- references ------------------------------------------------------------------------------ */

static int
note (struct compaction *k, uint64_t host, uint64_t word)
{
  uint64_t cluster = host >> k->c.img->cluster_bits;

  if (cluster < k->low || cluster >= k->high)
    return 0;
  if (k->n_refs == k->allocated) {
    size_t more = k->allocated ? 2 * k->allocated : 4096;
    struct ref *p = reallocarray (k->ref, more, sizeof *p);

    if (!p)
      return -ENOMEM;
    k->ref = p;
    k->allocated = more;
  }
  k->ref[k->n_refs++] = (struct ref){ cluster, word };
  return 0;
}

static int
gather_l2 (struct compaction *k, uint64_t offset, enum compact_phase phase)
{
  struct q_check *c = &k->c;
  const unsigned words = q_check_entry_words (c->img);
  const uint64_t n = q_cluster_bytes (c->img) / 8;
  uint64_t *table = (uint64_t *)c->table;
  int r = q_check_read_entries (c, offset, n, table);

  for (uint64_t i = 0; r == 0 && i < n; i += words) {
    enum q_entry_kind kind = q_check_entry_kind (c->img, table[i], words == 2 ? table[i + 1] : 0);

    if (phase == COMPACT_PIECES) {
      if (kind == Q_ENTRY_COMPRESSED)
        r = q_compact_note_piece (k, table[i], offset + 8 * i);
    } else if (kind == Q_ENTRY_STANDARD || kind == Q_ENTRY_ZERO)
      r = note (k, table[i] & Q_OFFSET_MASK, offset + 8 * i);
  }
  return r;
}

static int
gather_l1 (struct compaction *k, uint64_t offset, uint32_t entries, enum compact_phase phase)
{
  uint64_t *l1 = malloc (8ull * entries + 8);
  int r = l1 ? q_check_read_entries (&k->c, offset, entries, l1) : -ENOMEM;

  for (uint32_t i = 0; r == 0 && i < entries; i++) {
    uint64_t host = l1[i] & Q_OFFSET_MASK;

    if (host)
      r = phase == COMPACT_TABLES ? note (k, host, offset + 8ull * i) : gather_l2 (k, host, phase);
  }
  free (l1);
  return r;
}

static int
gather_bitmap_table (struct compaction *k, uint64_t offset, uint32_t entries)
{
  int r = 0;

  for (uint32_t i = 0; r == 0 && i < entries; i++) {
    uint64_t entry;

    r = q_check_read_entries (&k->c, offset + 8ull * i, 1, &entry);
    if (r == 0 && (entry & Q_OFFSET_MASK))
      r = note (k, entry & Q_OFFSET_MASK, offset + 8ull * i);
  }
  return r;
}

static int
gather_bitmaps (struct compaction *k)
{
  const struct q_image *img = k->c.img;
  uint64_t at = img->bitmap_dir_offset;
  int r = 0;

  if (!(img->autoclear & Q_AUTOCLEAR_BITMAPS))
    return 0;
  for (uint32_t i = 0; r == 0 && i < img->nb_bitmaps; i++) {
    struct qcow2_bitmap b;

    r = q_file_pread (img->file, &b, sizeof b, at);
    if (r == 0)
      r = gather_bitmap_table (k, get64 (b.table_offset), get32 (b.table_size));
    at += q_round_up (sizeof b + (uint64_t)get32 (b.extra_data_size) + get16 (b.name_size), 8);
  }
  return r;
}

static int
compare_refs (const void *a, const void *b)
{
  const struct ref *x = a, *y = b;

  if (x->cluster != y->cluster)
    return x->cluster < y->cluster ? -1 : 1;
  return x->word < y->word ? -1 : x->word > y->word;
}

/* What refers, in this phase, to the clusters of the window.  A table that several snapshots share
 * is met several times; its words count once. */
static int
gather (struct compaction *k, enum compact_phase phase)
{
  const struct q_image *img = k->c.img;
  int r;

  k->n_refs = 0;
  k->n_pieces = 0;
  r = gather_l1 (k, img->l1_offset, img->l1_size, phase);
  for (unsigned i = 0; r == 0 && i < q_snapshots_count (img); i++) {
    const struct q_snapshot *s = &atomic_load (&img->snapshots)->s[i];

    r = gather_l1 (k, s->l1_table_offset, s->l1_size, phase);
  }
  if (r == 0 && phase == COMPACT_DATA)
    r = gather_bitmaps (k);
  if (r == 0 && k->n_refs > 0)
    qsort (k->ref, k->n_refs, sizeof *k->ref, compare_refs);
  return r;
}

/* ---- moving ---------------------------------------------------------------------------------- */

/* What is at WORD, which is to refer to cluster FROM.  -EBUSY if it does not: somebody else writes,
 * or the word is not where it is thought to be. */
static int
read_word (struct compaction *k, uint64_t word, uint64_t mask, uint64_t from, uint64_t *value)
{
  const struct q_image *img = k->c.img;
  be64 raw;
  int r = q_file_pread (img->file, &raw, sizeof raw, word);

  if (r < 0)
    return r;
  *value = get64 (raw);
  return (*value & mask) == from << img->cluster_bits ? 0 : -EBUSY;
}

static int
redirect (struct compaction *k, uint64_t word, uint64_t mask, uint64_t from, uint64_t to)
{
  uint64_t value;
  be64 raw;
  int r = read_word (k, word, mask, from, &value);

  if (r < 0)
    return r;
  raw = put64 ((value & ~mask) | to << k->c.img->cluster_bits);
  return q_file_pwrite (k->c.img->file, &raw, sizeof raw, word);
}

/* WORD, which refers to FROM or TO, refers to FROM. */
static int
restore (struct compaction *k, uint64_t word, uint64_t mask, uint64_t from, uint64_t to)
{
  int r = redirect (k, word, mask, to, from);

  return r == -EBUSY ? redirect (k, word, mask, from, from) : r;
}

static int
redirect_all (struct compaction *k, const struct move *m,
              int (*change) (struct compaction *k, uint64_t word, uint64_t mask, uint64_t from,
                             uint64_t to))
{
  const struct ref *ref = &k->ref[m->first];
  int r = 0;

  for (size_t i = 0; r == 0 && i < m->n; i++)
    if (i == 0 || ref[i].word != ref[i - 1].word)
      r = change (k, ref[i].word, Q_OFFSET_MASK, m->from, m->to);
  return r;
}

static int
copy_clusters (struct compaction *k, uint64_t from, uint64_t to, uint64_t count)
{
  const unsigned bits = k->c.img->cluster_bits;
  int r = 0;

  for (uint64_t i = 0; r == 0 && i < count; i++) {
    r = q_file_pread (k->c.img->file, k->buffer, 1ull << bits, (from + i) << bits);
    if (r == 0)
      r = q_file_pwrite (k->c.img->file, k->buffer, 1ull << bits, (to + i) << bits);
  }
  return r;
}

/* None of the moves has been made; of the first REDIRECTED the words may say otherwise. */
static void
go_back (struct compaction *k, size_t redirected)
{
  int r = 0;

  for (size_t i = 0; r == 0 && i < redirected; i++)
    r = redirect_all (k, &k->move[i], restore);
  if (r == 0 && redirected > 0)
    r = q_file_sync (k->c.img->file);
  k->torn = k->torn || r < 0;
  for (size_t i = 0; r == 0 && i < k->n_moves; i++) {
    q_compact_release (k, k->move[i].to, 1, k->move[i].n);
    q_compact_settle (k, k->move[i].to, 1);
  }
}

/* Carries out the moves that were planned, or none of them. */
static int
perform (struct compaction *k)
{
  struct q_file *f = k->c.img->file;
  size_t redirected = 0;
  int r = 0;

  if (k->n_moves == 0)
    return 0;
  for (size_t i = 0; r == 0 && i < k->n_moves; i++) {
    r = q_compact_set_count (k, k->move[i].to, k->move[i].n);
    if (r == 0)
      r = copy_clusters (k, k->move[i].from, k->move[i].to, 1);
  }
  if (r == 0)
    r = q_file_sync (f);
  while (r == 0 && redirected < k->n_moves)
    r = redirect_all (k, &k->move[redirected++], redirect);
  if (r == 0)
    r = q_file_sync (f);
  if (r < 0) {
    go_back (k, redirected);
    k->n_moves = 0;
  }
  for (size_t i = 0; i < k->n_moves; i++) {
    q_compact_release (k, k->move[i].from, 1, k->move[i].n);

    int r2 = q_compact_settle (k, k->move[i].from, 1);

    r = r == 0 ? r2 : r;
    k->res->moved++;
  }
  if (r == 0 && k->tight)
    r = q_file_sync (f);
  for (size_t i = 0; r == 0 && i < k->n_moves; i++)
    r = q_compact_vacate (k, k->move[i].from, 1);
  k->n_moves = 0;
  return r;
}

bool
q_compact_stop (struct compaction *k, uint64_t done)
{
  return k->o->progress && k->o->progress (k->o->opaque, done, k->c.clusters);
}

/* Plans to move the last cluster that the references before *END are to, and moves *END before
 * these. Clusters to which something else refers as well, compressed data among them, stay.  1:
 * there is none, or no place for it. */
static int
plan (struct compaction *k, size_t *end)
{
  size_t first = *end;
  uint64_t cluster, to;
  int r = 0;

  if (*end == 0)
    return 1;
  cluster = k->ref[*end - 1].cluster;
  while (first > 0 && k->ref[first - 1].cluster == cluster)
    first--;
  if (q_refmap_get (&k->c.refs, cluster) == *end - first) {
    if (!q_compact_find_free (k, 1, q_min (cluster, k->target), &to))
      return 1;
    r = q_compact_reserve (k, to, 1, *end - first);
    if (r == 0)
      k->move[k->n_moves++] = (struct move){ cluster, to, first, *end - first };
  }
  *end = first;
  return r;
}

/* Moves what was gathered, the last cluster first. */
static int
move_window (struct compaction *k)
{
  size_t end = k->n_refs, batch = end; /* what is planned begins before BATCH */
  bool more = true;
  int r = 0;

  while (r == 0 && more) {
    r = plan (k, &end);
    more = r == 0;
    if (more && k->n_moves < k->batch >> k->c.img->cluster_bits)
      continue;

    int r2 = perform (k);

    if (r2 == -ENOSPC && q_compact_tighten (k)) {
      end = batch;
      more = true;
      r2 = 0;
    }
    batch = end;
    r = r < 0 ? r : r2;
    if (r == 0 && q_compact_stop (k, k->res->moved))
      r = -EINTR;
  }
  return r;
}

static int
move_phase (struct compaction *k, enum compact_phase phase)
{
  int r = 0;

  for (k->high = k->c.clusters; r == 0 && k->high > k->target; k->high = k->low) {
    k->low = k->high - k->target > WINDOW ? k->high - WINDOW : k->target;
    r = gather (k, phase);
    if (r == 0)
      r = phase == COMPACT_PIECES ? q_compact_move_pieces (k) : move_window (k);
    if (r == 0 && q_compact_stop (k, k->res->moved))
      r = -EINTR;
  }
  return r;
}

/* ---- tables that one word refers to ---------------------------------------------------------- */

/* Moves COUNT clusters in a row, exclusively referred to by WORD.  *MOVED: to where, or 0; the
 * caller then takes the counts of the old ones back, once it knows where they are. */
static int
try_table (struct compaction *k, uint64_t from, uint64_t count, uint64_t word, uint64_t mask,
           uint64_t *moved)
{
  struct q_file *f = k->c.img->file;
  bool redirected = false;
  uint64_t to, value;
  int r = 0;

  *moved = 0;
  if (from + count <= k->target || !q_compact_find_free (k, count, q_min (from, k->target), &to))
    return 0;
  for (uint64_t i = 0; i < count; i++)
    if (q_refmap_get (&k->c.refs, from + i) != 1)
      return 0;
  r = read_word (k, word, mask, from, &value); /* nothing has been changed yet */
  if (r == 0)
    r = q_compact_reserve (k, to, count, 1);
  if (r < 0)
    return r;
  /* Before copying: what is copied may be the block that has the counts. */
  for (uint64_t i = 0; r == 0 && i < count; i++)
    r = q_compact_set_count (k, to + i, 1);
  if (r == 0)
    r = copy_clusters (k, from, to, count);
  if (r == 0)
    r = q_file_sync (f);
  if (r == 0) {
    redirected = true;
    r = redirect (k, word, mask, from, to);
  }
  if (r == 0)
    r = q_file_sync (f);
  if (r == 0) {
    q_compact_release (k, from, count, 1);
    k->res->moved += count;
    *moved = to;
    return 0;
  }

  int back = redirected ? restore (k, word, mask, from, to) : 0;

  if (back == 0 && redirected)
    back = q_file_sync (f);
  if (back == 0) {
    q_compact_release (k, to, count, 1);
    q_compact_settle (k, to, count);
  }
  k->torn = k->torn || back < 0;
  return r;
}

static int
move_table (struct compaction *k, uint64_t from, uint64_t count, uint64_t word, uint64_t mask,
            uint64_t *moved)
{
  int r = try_table (k, from, count, word, mask, moved);

  return r == -ENOSPC && !k->tight && q_compact_tighten (k)
             ? try_table (k, from, count, word, mask, moved)
             : r;
}

/* The BYTES at *OFFSET, which stand at WORD. */
static int
move_bytes (struct compaction *k, uint64_t *offset, uint64_t bytes, uint64_t word)
{
  const unsigned bits = k->c.img->cluster_bits;
  const uint64_t from = *offset >> bits, count = q_div_up (bytes, 1ull << bits);
  uint64_t to;
  int r = bytes ? move_table (k, from, count, word, UINT64_MAX, &to) : 0;

  if (r < 0 || !bytes || !to)
    return r;
  *offset = to << bits;
  return q_compact_settle (k, from, count);
}

static int
move_l1_tables (struct compaction *k)
{
  struct q_image *img = k->c.img;
  uint64_t word = img->snapshots_offset;
  int r = move_bytes (k, &img->l1_offset, 8ull * img->l1_size,
                      offsetof (struct qcow2_header, l1_table_offset));

  for (unsigned i = 0; r == 0 && i < q_snapshots_count (img); i++) {
    struct q_snapshot *s = &atomic_load (&img->snapshots)->s[i]; /* nobody else has it */

    r = move_bytes (k, &s->l1_table_offset, 8ull * s->l1_size,
                    word + offsetof (struct qcow2_snapshot, l1_table_offset));
    word += q_snapshot_entry_bytes (s);
  }
  return r;
}

/* The directory of the bitmaps, to which a header extension refers, and their tables. */
static int
move_bitmap_tables (struct compaction *k)
{
  struct q_image *img = k->c.img;
  const struct q_extension *e = q_extension_find (img, Q_EXT_BITMAPS);
  uint64_t at;
  int r;

  if (!(img->autoclear & Q_AUTOCLEAR_BITMAPS) || !e)
    return 0;
  r = move_bytes (k, &img->bitmap_dir_offset, img->bitmap_dir_size,
                  e->offset + offsetof (struct qcow2_bitmaps_extension, directory_offset));
  at = img->bitmap_dir_offset;
  for (uint32_t i = 0; r == 0 && i < img->nb_bitmaps; i++) {
    struct qcow2_bitmap b;
    uint64_t offset;

    r = q_file_pread (img->file, &b, sizeof b, at);
    offset = get64 (b.table_offset);
    if (r == 0)
      r = move_bytes (k, &offset, 8ull * get32 (b.table_size),
                      at + offsetof (struct qcow2_bitmap, table_offset));
    at += q_round_up (sizeof b + (uint64_t)get32 (b.extra_data_size) + get16 (b.name_size), 8);
  }
  return r;
}

/* Tables of several clusters, which want free ones in a row: before anything else takes these. */
static int
move_tables (struct compaction *k)
{
  struct q_image *img = k->c.img;
  int r =
      move_bytes (k, &img->reftable_offset, (uint64_t)img->reftable_clusters << img->cluster_bits,
                  offsetof (struct qcow2_header, refcount_table_offset));

  if (r == 0)
    r = move_bytes (k, &img->snapshots_offset, img->snapshots_bytes,
                    offsetof (struct qcow2_header, snapshots_offset));
  if (r == 0)
    r = move_l1_tables (k);
  return r == 0 ? move_bitmap_tables (k) : r;
}

static int
move_blocks (struct compaction *k)
{
  struct q_check *c = &k->c;
  const unsigned bits = c->img->cluster_bits;
  int r = 0;

  for (uint64_t i = 0; r == 0 && i < c->reftable_entries; i++) {
    uint64_t offset, to;

    if (!q_check_refblock (c, i, &offset))
      continue;
    r = move_table (k, offset >> bits, 1, c->img->reftable_offset + 8 * i, Q_REFTABLE_MASK, &to);
    if (r < 0 || !to)
      continue;
    c->reftable[i] = to << bits;
    r = q_compact_settle (k, offset >> bits, 1);
  }
  return r;
}

/* ---- the end --------------------------------------------------------------------------------- */

/* Cuts the tail off, and gives back what is free before it. */
static int
give_back (struct compaction *k)
{
  struct q_image *img = k->c.img;
  const unsigned bits = img->cluster_bits;
  uint64_t end = k->c.clusters;
  int r = q_file_sync (img->file); /* the cleared counts */

  while (r == 0 && end > 1 && !q_refmap_get (&k->c.refs, end - 1))
    end--;
  if (r == 0 && end < k->c.clusters)
    r = img->file->is_device
            ? q_file_zero (img->file, end << bits, k->c.file_size - (end << bits), true)
            : q_file_truncate (img->file, end << bits);
  if (r == 0 || r == -ENOTSUP)
    r = q_compact_punch (k, 0, end);
  if (r < 0)
    return r;
  k->res->end_after = q_min (end << bits, k->c.file_size);
  atomic_store (&img->highest, end << bits);
  r = q_extension_find (img, Q_EXT_HIGHEST_OFFSET) ? q_highest_persist (img) : 0;
  return r < 0 ? r : q_file_sync (img->file);
}

/* What this cannot deal with, and what should be dealt with before. */
static int
refuse (struct compaction *k, struct q_error *err)
{
  const struct q_image *img = k->c.img;
  const struct q_check_result *found = k->c.res;

  if (img->incompatible & Q_INCOMPAT_DATA_FILE)
    return q_fail (err, -ENOTSUP, "%s: its data is in another file, '%s': there is nothing to gain",
                   img->filename, img->data_file ? img->data_file : "");
  if (img->crypt_method != Q_CRYPT_NONE)
    return q_fail (err, -ENOTSUP,
                   "%s: what is encrypted cannot be moved: where it is is part of its encryption; "
                   "convert the image",
                   img->filename);
  if (found->corruptions || found->check_errors || found->leaks || k->c.lost)
    return q_fail (err, -EINVAL,
                   "%s: has %llu errors and %llu leaked clusters: only a sound image can be "
                   "compacted; nbdcow-img check -r %s first",
                   img->filename, ull (found->corruptions + found->check_errors),
                   ull (found->leaks), found->corruptions ? "all" : "leaks");
  return 0;
}

static int
run (struct compaction *k, struct q_error *err)
{
  struct q_check *c = &k->c;
  const unsigned bits = c->img->cluster_bits;
  int r = q_check_look (c);

  if (r == 0)
    r = refuse (k, err);
  if (r < 0)
    return r;
  k->res->end_before = c->file_size;
  for (uint64_t i = 0; i < c->clusters; i++)
    k->target += q_refmap_get (&c->refs, i) > 0;
  k->batch = BATCH;
  k->move = malloc ((BATCH >> bits) * sizeof *k->move);
  k->buffer = malloc (q_cluster_bytes (c->img));
  if (!k->move || !k->buffer)
    r = -ENOMEM;
  if (r == 0)
    r = move_tables (k);
  for (enum compact_phase p = 0; r == 0 && p < COMPACT_PHASES; p++)
    r = move_phase (k, p);
  if (r == 0)
    r = move_blocks (k);
  if (r != -EBUSY) { /* also after an error: what has moved has */
    int r2 = give_back (k);

    r = r == 0 || (r == -EINTR && r2 < 0) ? r2 : r;
  }
  return r;
}

/* What has gone wrong, and what to do about it. */
static int
explain (const struct compaction *k, int r, struct q_error *err)
{
  const char *name = k->c.img->filename;
  const char *leaks = k->torn ? "; nbdcow-img check -r leaks gives back what is counted twice" : "";

  if (r == -ENOSPC)
    return q_fail (
        err, r,
        "%s: compacting: no room for what is moved: it is sound, and what has been moved "
        "has given its room back; free %u MiB on its file system and compact again%s",
        name, 2 * BATCH >> 20, leaks);
  if (r == -EBUSY)
    return q_fail (err, r,
                   "%s: compacting: somebody else has written to it meanwhile: stop whoever that "
                   "is, and then nbdcow-img check -r all",
                   name);
  return q_fail (err, r, "%s: compacting: %s%s%s", name, strerror (-r),
                 k->res->end_before ? ": it is sound and holds what it held" : "", leaks);
}

int
q_compact (struct q_image *img, const struct q_compact_options *o, struct q_compact_result *result,
           struct q_error *err)
{
  struct q_check_result found = { 0 };
  struct compaction k = { .c = { .img = img, .res = &found, .err = err }, .o = o, .res = result };
  int r = q_writable (img);

  *result = (struct q_compact_result){ 0 };
  if (err)
    err->text[0] = '\0';
  if (img->format != Q_FORMAT_QCOW2)
    r = q_fail (err, -ENOTSUP,
                "%s: is a raw image, which has no clusters that could move: convert -O qcow2, or "
                "fallocate --dig-holes",
                img->filename);
  if (r == 0 && atomic_load (&img->l1))
    r = -EINVAL; /* its tables are in memory: not opened for repair */
  if (r == 0 && img->nb_snapshots && !atomic_load (&img->snapshots))
    r = q_snapshots_read (img, err);
  if (r == 0 && !img->inflated)
    r = q_inflate_open (img);
  if (r == 0)
    r = run (&k, err);
  q_check_close (&k.c);
  free (k.ref);
  free (k.piece);
  free (k.move);
  free (k.buffer);
  img->read_only = true;
  return r < 0 ? explain (&k, r, err) : 0;
}
