/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is written of bitmaps: in-use marks, bits, tables, the directory, the header extension.
 *
 * Saving, in this order (bitmap.h, invariants 2 and 3):
 *
 *     bits that differ, into the clusters that hold them, or new ones
 *     flush         bits and counts are durable
 *     tables, in place or at a new place
 *     sync
 *     the entries' flags, in place, without the mark; or a new directory, a flush, and the header
 *     sync
 *     what is not referred to any more goes to limbo
 *
 * Bits and tables of a bitmap that is in use may be written where they are, for nobody reads them.
 * When that fails for want of room, tables at a new place and all that only they refer to are given
 * back at once.  One that was written where it was may be the old one or the new on disk: what
 * either refers to stays the bitmap's until the next time.  The mark is four aligned bytes and
 * cannot tear.  The header extension has 24: where they lie in two sectors, the autoclear bit is
 * off while they change.
 *
 * A cluster that others refer to as well, or that holds something else, is not written and not let
 * go of: an image that is damaged does not get worse here.
 */

#include <errno.h>
#include <stdlib.h>

#include "bitmap.h"

#define ull(v) ((unsigned long long)(v))

#define SECTOR 512u

/* ---- clusters -------------------------------------------------------------------------------- */

static uint64_t
clusters_of (const struct q_image *img, uint64_t bytes)
{
  return q_div_up (bytes, q_cluster_bytes (img));
}

/* BYTES in one piece, with their space on disk. */
static int
take (struct q_image *img, uint64_t bytes, uint64_t *host)
{
  uint64_t cluster;
  int r;

  q_alloc_lock (img);
  r = q_refcount_take_run (img, clusters_of (img, bytes), &cluster);
  q_alloc_unlock (img);
  if (r == 0)
    *host = cluster << img->cluster_bits;
  return r;
}

static void
drop (struct q_image *img, uint64_t host, uint64_t bytes)
{
  if (host)
    q_alloc_drop (img, host >> img->cluster_bits, clusters_of (img, bytes));
}

/* One reference each is counted for the clusters, and where other METADATA is they are not. */
static bool
owns (struct q_image *img, uint64_t host, uint64_t bytes, bool metadata)
{
  uint64_t first = host >> img->cluster_bits, n = clusters_of (img, bytes), count = 1;

  if (host & (q_cluster_bytes (img) - 1))
    return false;
  q_alloc_lock (img);
  if (metadata && q_alloc_is_fixed_metadata (img, first, n))
    count = 0;
  for (uint64_t i = 0; i < n && count == 1; ++i)
    if (q_refcount_get (img, first + i, 0, &count) < 0)
      count = 0;
  q_alloc_unlock (img);
  return count == 1;
}

bool
q_bitmap_owns (struct q_image *img, uint64_t host, uint64_t bytes)
{
  return owns (img, host, bytes, true);
}

bool
q_directory_is_own (struct q_image *img)
{
  return owns (img, img->bitmap_dir_offset, img->bitmap_dir_size, false);
}

static int
write_at (struct q_image *img, const void *buf, size_t len, uint64_t host)
{
  int r = q_file_pwrite (img->file, buf, len, host);

  atomic_store (&img->file_needs_sync, true); /* not needs_sync: that is of img->data */
  return r;
}

static int
sync_file (struct q_image *img)
{
  int r;

  r = q_file_sync (img->file);
  return r < 0 ? q_stick (img, r, "syncing bitmaps failed") : 0;
}

/* ---- letting go ------------------------------------------------------------------------------ */

static int
add_leaving (struct q_leaving *l, uint64_t host, uint64_t bytes)
{
  if (l->n == l->capacity) {
    size_t capacity = l->capacity ? 2 * l->capacity : 16;
    void *run = realloc (l->run, capacity * sizeof *l->run);

    if (!run)
      return -ENOMEM;
    l->run = run;
    l->capacity = capacity;
  }
  l->run[l->n].host = host;
  l->run[l->n++].bytes = bytes;
  return 0;
}

int
q_leave (struct q_image *img, struct q_leaving *l, uint64_t host, uint64_t bytes)
{
  return host && bytes && q_bitmap_owns (img, host, bytes) ? add_leaving (l, host, bytes) : 0;
}

static int
leave_directory (struct q_image *img, struct q_leaving *l)
{
  return img->bitmap_dir_size && q_directory_is_own (img)
             ? add_leaving (l, img->bitmap_dir_offset, img->bitmap_dir_size)
             : 0;
}

static void
forget (struct q_leaving *l)
{
  free (l->run);
  *l = (struct q_leaving){ 0 };
}

/* They are not referred to any more.  Without memory they are leaked, and a check finds them. */
void
q_let_go (struct q_image *img, struct q_leaving *l)
{
  q_alloc_lock (img);
  if (q_limbo_reserve (&img->limbo, l->n) == 0)
    for (size_t i = 0; i < l->n; ++i)
      q_limbo_add (&img->limbo, l->run[i].host >> img->cluster_bits,
                   clusters_of (img, l->run[i].bytes));
  q_alloc_unlock (img);
  forget (l);
}

/* The same without memory. */
void
q_let_go_later (struct q_image *img, struct q_leaving *l)
{
  for (size_t i = 0; i < l->n; ++i)
    add_leaving (&img->bitmaps.leaving, l->run[i].host, l->run[i].bytes);
  forget (l);
}

int
q_bitmap_leave (struct q_image *img, struct q_leaving *l, struct q_bitmap *b)
{
  int r = q_bitmap_read_table (b, NULL);

  for (uint32_t i = 0; r == 0 && b->table && i < b->table_size; ++i)
    r = q_leave (img, l, b->table[i] & Q_OFFSET_MASK, q_cluster_bytes (img));
  if (r == 0)
    r = q_leave (img, l, b->table_offset, b->table_size * sizeof (uint64_t));
  return r == -ENOMEM ? r : 0;
}

/* ---- tables of new bitmaps ------------------------------------------------------------------- */

int
q_bitmap_make_table (struct q_bitmap *b)
{
  struct q_image *img = b->img;
  uint32_t n = atomic_load (&b->bits)->chunks;
  uint64_t host;
  int r;

  if (n == 0)
    return -EINVAL; /* a disk of no bytes has nothing to keep track of */
  b->table = calloc (n, sizeof *b->table);
  if (!b->table)
    return -ENOMEM;
  r = take (img, n * sizeof *b->table, &host);
  if (r < 0)
    return r;
  b->table_offset = host;
  b->table_size = n;
  return write_at (img, b->table, n * sizeof *b->table, host);
}

void
q_bitmap_drop_table (struct q_bitmap *b)
{
  if (atomic_load (&b->img->sticky) == 0)
    drop (b->img, b->table_offset, b->table_size * sizeof *b->table);
}

/* ---- the directory --------------------------------------------------------------------------- */

static uint64_t
entry_bytes (const struct q_bitmap *b)
{
  return q_round_up (sizeof (struct qcow2_bitmap) + b->extra_size + b->name_size, 8);
}

/* The flags that B's entry should have. */
static uint32_t
entry_flags (const struct q_bitmap *b)
{
  uint32_t flags = b->flags & ~(Q_BITMAP_AUTO | Q_BITMAP_IN_USE);

  if (b->enabled)
    flags |= Q_BITMAP_AUTO;
  if (b->live || b->inconsistent)
    flags |= Q_BITMAP_IN_USE;
  return flags;
}

static void
put_entry (const struct q_bitmap *b, uint8_t *to)
{
  struct qcow2_bitmap d = { .table_offset = put64 (b->table_offset),
                            .table_size = put32 (b->table_size),
                            .flags = put32 (entry_flags (b)),
                            .type = b->type,
                            .granularity_bits = b->granularity_bits,
                            .name_size = put16 (b->name_size),
                            .extra_data_size = put32 (b->extra_size) };

  memcpy (to, &d, sizeof d);
  if (b->extra_size > 0)
    memcpy (to + sizeof d, b->extra, b->extra_size);
  memcpy (to + sizeof d + b->extra_size, b->bytes ? (char *)b->bytes : b->name, b->name_size);
}

/* Writes the flags of B's entry where it is. */
static int
write_flags (struct q_bitmap *b)
{
  be32 flags = put32 (entry_flags (b));
  int r =
      write_at (b->img, &flags, sizeof flags,
                b->img->bitmap_dir_offset + b->position + offsetof (struct qcow2_bitmap, flags));

  if (r == 0)
    b->flags = get32 (flags);
  return r;
}

/* Makes sure that the header has the extension, which means nothing without its autoclear bit. */
static int
make_room (struct q_image *img)
{
  struct qcow2_bitmaps_extension x = { .nb_bitmaps = put32 (0) };
  int r = 0;

  /* The flusher may be adding one of its own (highest.c). */
  q_flush_hold (img);
  if (!q_extension_find (img, Q_EXT_BITMAPS))
    r = q_header_append_extension (img, Q_EXT_BITMAPS, &x, sizeof x);
  q_flush_let_go (img);
  return r;
}

int
q_directory_write (struct q_image *img, struct q_bitmap *const *list, unsigned n,
                   struct q_new_directory *d)
{
  uint64_t at = 0;
  uint8_t *buf;
  int r;

  *d = (struct q_new_directory){ .n = n };
  for (unsigned i = 0; i < n; ++i)
    d->bytes += entry_bytes (list[i]);
  if (d->bytes > Q_MAX_BITMAP_DIR || n > Q_MAX_BITMAPS)
    return -E2BIG;
  if (n == 0)
    return 0;
  buf = calloc (1, d->bytes);
  if (!buf)
    return -ENOMEM;
  for (unsigned i = 0; i < n; ++i) {
    put_entry (list[i], buf + at);
    at += entry_bytes (list[i]);
  }
  r = make_room (img);
  if (r == 0)
    r = take (img, d->bytes, &d->host);
  if (r == 0)
    r = write_at (img, buf, d->bytes, d->host);
  if (r < 0) {
    q_directory_drop (img, d);
    d->host = 0;
  }
  free (buf);
  return r;
}

void
q_directory_drop (struct q_image *img, const struct q_new_directory *d)
{
  /* After a failure nobody knows what the header says. */
  if (atomic_load (&img->sticky) == 0)
    drop (img, d->host, d->bytes);
}

/* ---- the header ------------------------------------------------------------------------------ */

static int
write_autoclear (struct q_image *img, bool on)
{
  uint64_t before = img->autoclear;
  int r;

  if (on)
    img->autoclear |= Q_AUTOCLEAR_BITMAPS;
  else
    img->autoclear &= ~Q_AUTOCLEAR_BITMAPS;
  r = q_header_write_features (img);
  if (r < 0) {
    img->autoclear = before;
    return r;
  }
  return sync_file (img);
}

/* Makes the header say where the directory is.  The flush is held.  After -ENOSPC it says what it
 * said before: there are bitmaps where it said that, and where it said nothing it says nothing. */
static int
write_extension (struct q_image *img, const struct q_new_directory *d)
{
  struct qcow2_bitmaps_extension x = { .nb_bitmaps = put32 (d->n),
                                       .directory_size = put64 (d->bytes),
                                       .directory_offset = put64 (d->host) };
  struct q_extension *e = q_extension_find (img, Q_EXT_BITMAPS); /* make_room has seen to it */
  bool on = img->autoclear & Q_AUTOCLEAR_BITMAPS;
  int r = 0;

  if (d->n == 0) {
    if (on)
      r = write_autoclear (img, false);
    /* What is stale then is dropped by the next open if it cannot be now. */
    if (r == 0 && e)
      r = q_header_drop_extension (img, Q_EXT_BITMAPS);
    return r == -ENOSPC && !(img->autoclear & Q_AUTOCLEAR_BITMAPS) ? 0 : r;
  }
  if (on && e->offset / SECTOR != (e->offset + sizeof x - 1) / SECTOR)
    r = write_autoclear (img, false);
  if (r == 0)
    r = write_at (img, &x, sizeof x, e->offset);
  if (r == 0)
    r = sync_file (img);
  if (r == 0 && !(img->autoclear & Q_AUTOCLEAR_BITMAPS))
    r = write_autoclear (img, true);
  if (r == 0)
    memcpy (e->data, &x, sizeof x);
  else if (on && !(img->autoclear & Q_AUTOCLEAR_BITMAPS))
    r = q_stick (img, r, "writing the bitmaps extension failed");
  return r;
}

int
q_directory_cut (struct q_image *img, uint32_t n, uint64_t bytes)
{
  const struct q_new_directory d = { .host = n ? img->bitmap_dir_offset : 0,
                                     .bytes = n ? bytes : 0,
                                     .n = n };
  int r = write_extension (img, &d);

  assert (!img->bitmaps.bitmap);
  if (r == 0) {
    img->bitmaps_lost = false;
    img->nb_bitmaps = d.n;
    img->bitmap_dir_offset = d.host;
    img->bitmap_dir_size = d.bytes;
  }
  return r;
}

int
q_directory_switch (struct q_image *img, struct q_bitmap *const *list,
                    const struct q_new_directory *d, struct q_leaving *leaving)
{
  const size_t others = leaving->n;
  uint64_t at = 0;
  int r = leave_directory (img, leaving);

  if (r < 0)
    return r;
  atomic_store (&img->file_needs_sync, true);
  q_flush_hold (img);
  r = q_flush_round (img);
  if (r == 0) {
    r = write_extension (img, d);
    if (r < 0 && r != -ENOSPC)
      q_stick (img, r, "writing the bitmaps extension failed");
    if (r == 0) {
      img->bitmaps.relist = false;
      q_alloc_lock (img); /* which asks where metadata is */
      img->nb_bitmaps = d->n;
      img->bitmap_dir_offset = d->host;
      img->bitmap_dir_size = d->bytes;
      q_alloc_unlock (img);
    }
  }
  q_flush_let_go (img);
  if (r < 0) {
    leaving->n = others;
    return r;
  }
  for (unsigned i = 0; i < d->n; ++i) {
    list[i]->position = at;
    list[i]->flags = entry_flags (list[i]);
    at += entry_bytes (list[i]);
  }
  q_let_go (img, leaving);
  q_let_go (img, &img->bitmaps.leaving);
  return 0;
}

/* ---- in use ---------------------------------------------------------------------------------- */

int
q_bitmaps_mark_in_use (struct q_image *img, struct q_bitmap *const *b, unsigned n,
                       struct q_error *err)
{
  bool wrote = false;
  int r = 0;

  for (unsigned i = 0; r == 0 && i < n; ++i) {
    b[i]->live = !b[i]->inconsistent;
    if (b[i]->position == Q_BITMAP_NOWHERE || (b[i]->flags & Q_BITMAP_IN_USE))
      continue;
    r = write_flags (b[i]);
    wrote = true;
  }
  if (r == 0 && wrote)
    r = sync_file (img);
  return r < 0 ? q_fail (err, r, "%s: cannot mark the bitmaps as in use: %s", img->filename,
                         strerror (-r))
               : 0;
}

/* ---- saving ---------------------------------------------------------------------------------- */

/* One bitmap that is being saved. */
struct saving {
  struct q_bitmap *b;
  bool changes; /* the table; else all up to LEAVING counts for nothing */
  /* As it is to be on disk; once adopted, as it was: */
  uint64_t *table; /* in host byte order; NULL: there was none */
  uint32_t size;
  uint64_t host;
  bool moves;               /* to a new place, */
  bool written;             /* or it may be, in part, on top of the old one */
  bool done;                /* the disk says that it is saved */
  struct q_leaving leaving; /* what it will not refer to any more */
};

/* A place for a chunk's bits: the old one if it is ours. */
static int
place_chunk (struct q_image *img, uint64_t old, uint64_t *host)
{
  uint64_t got;
  bool hole;
  int r;

  if (old && q_bitmap_owns (img, old, 1)) {
    *host = old;
    return 0;
  }
  q_alloc_lock (img);
  r = q_alloc_run (img, 1, 0, host, &got, &hole);
  q_alloc_unlock (img);
  return r;
}

static int
save_chunk (struct q_image *img, struct saving *s, uint32_t chunk, uint8_t *buf)
{
  struct q_bits *bits = atomic_load (&s->b->bits);
  bool known = s->b->table && chunk < s->b->table_size;
  uint64_t old = known ? s->b->table[chunk] & Q_OFFSET_MASK : 0, host;
  enum q_chunk_kind kind = q_bits_chunk_kind (bits, chunk);
  int r;

  if (kind != Q_CHUNK_MIXED) {
    s->table[chunk] = kind == Q_CHUNK_ONES ? Q_BITMAP_ENTRY_ONES : 0;
    return q_leave (img, &s->leaving, old, q_cluster_bytes (img));
  }
  r = place_chunk (img, old, &host);
  if (r < 0)
    return r;
  s->table[chunk] = host;
  q_bits_chunk_get (bits, chunk, buf);
  return write_at (img, buf, q_cluster_bytes (img), host);
}

/* The bits that differ. */
static int
save_bits (struct q_image *img, struct saving *s)
{
  struct q_bitmap *b = s->b;
  struct q_bits *bits = atomic_load (&b->bits);
  uint64_t bytes = bits->chunks * sizeof (uint64_t);
  bool any = bits->chunks > 0 && (b->table_offset == 0 || b->table_size != bits->chunks);
  uint8_t *buf;
  int r = 0;

  for (uint32_t i = 0; !any && i < bits->chunks; ++i)
    any = bits->changed[i];
  if (!any)
    return 0;
  r = q_bitmap_read_table (b, NULL);
  s->size = bits->chunks;
  s->host = b->table_offset;
  s->table = calloc (bits->chunks + 1ull, sizeof *s->table);
  buf = malloc (q_cluster_bytes (img));
  if (r == 0 && (!s->table || !buf))
    r = -ENOMEM;
  s->changes = s->table;
  for (uint32_t i = 0; r == 0 && i < bits->chunks; ++i)
    if (!b->table || i >= b->table_size || bits->changed[i])
      r = save_chunk (img, s, i, buf);
    else
      s->table[i] = b->table[i];
  for (uint32_t i = bits->chunks; r == 0 && b->table && i < b->table_size; ++i)
    r = q_leave (img, &s->leaving, b->table[i] & Q_OFFSET_MASK, q_cluster_bytes (img));
  if (r == 0 && (b->table_size != s->size || b->table_offset == 0 ||
                 !q_bitmap_owns (img, b->table_offset, bytes))) {
    r = take (img, bytes, &s->host);
    s->moves = r == 0;
    if (r == 0)
      r = q_leave (img, &s->leaving, b->table_offset, b->table_size * sizeof (uint64_t));
  }
  free (buf);
  return r;
}

static int
save_table (struct q_image *img, struct saving *s)
{
  be64 *raw;
  int r;

  if (!s->changes)
    return 0;
  raw = malloc (s->size * sizeof *raw + 1);
  if (!raw)
    return -ENOMEM;
  for (uint32_t i = 0; i < s->size; ++i)
    raw[i] = put64 (s->table[i]);
  s->written = !s->moves;
  r = write_at (img, raw, s->size * sizeof *raw, s->host);
  free (raw);
  return r;
}

/* Makes the table of S the bitmap's; or, after that, the old one again. */
static void
adopt (struct saving *s)
{
  struct q_bitmap *b = s->b;
  const struct saving was = { .table = b->table, .size = b->table_size, .host = b->table_offset };

  if (!s->changes)
    return;
  b->table = s->table;
  b->table_size = s->size;
  b->table_offset = s->host;
  s->table = was.table;
  s->size = was.size;
  s->host = was.host;
}

/* What S has written is what counts. */
static void
settle (struct q_image *img, struct saving *s)
{
  struct q_bits *bits = atomic_load (&s->b->bits);

  q_let_go (img, &s->leaving);
  for (uint32_t i = 0; i < bits->chunks; ++i)
    atomic_store_explicit (&bits->changed[i], 0, memory_order_relaxed);
}

/* S was not saved, and its bits still count as changed.  The clusters that it has taken go back;
 * but where the table on disk may be the old one or the new, what either refers to stays. */
static void
undo (struct q_image *img, struct saving *s)
{
  struct q_bitmap *b = s->b;

  for (uint32_t i = 0; s->changes && i < s->size; ++i) {
    uint64_t host = s->table[i] & Q_OFFSET_MASK;

    if (host == 0 || (b->table && i < b->table_size && b->table[i] == host))
      continue;
    if (s->written)
      b->table[i] = host;
    else
      drop (img, host, 1);
  }
  if (s->moves)
    drop (img, s->host, s->size * sizeof (uint64_t));
  forget (&s->leaving);
}

static int
finish_flags (struct q_image *img, struct saving *s, unsigned n)
{
  bool placed = false;
  int r;

  for (unsigned i = 0; i < n; ++i)
    placed = placed || s[i].written;
  r = placed ? sync_file (img) : 0; /* what they are about to vouch for */
  for (unsigned i = 0; r == 0 && i < n; ++i) {
    s[i].b->live = false;
    r = write_flags (s[i].b);
    s[i].done = r == 0;
    s[i].b->live = r < 0;
  }
  if (r == 0)
    r = sync_file (img);
  if (r < 0 && r != -ENOSPC)
    q_stick (img, r, "taking the in-use mark off bitmaps failed");
  return r;
}

static int
finish_directory (struct q_image *img, struct saving *s, unsigned n)
{
  struct q_bitmaps *l = &img->bitmaps;
  struct q_leaving nothing = { 0 };
  struct q_new_directory d = { 0 };
  int r;

  for (unsigned i = 0; i < n; ++i)
    s[i].b->live = false;
  r = q_directory_write (img, l->bitmap, l->n, &d);
  if (r == 0)
    r = q_directory_switch (img, l->bitmap, &d, &nothing);
  if (r < 0)
    q_directory_drop (img, &d);
  for (unsigned i = 0; i < n; ++i) {
    s[i].b->live = r < 0;
    s[i].done = r == 0;
  }
  forget (&nothing);
  return r;
}

static int
save_all (struct q_image *img, struct saving *s, unsigned n)
{
  bool relist = img->bitmaps.relist, placed = false;
  int r = 0;

  for (unsigned i = 0; r == 0 && i < n; ++i) {
    r = save_bits (img, &s[i]);
    relist = relist || s[i].moves || s[i].b->position == Q_BITMAP_NOWHERE;
    placed = placed || s[i].changes;
  }
  Q_PROBE ("bits of bitmaps written, not durable");
  if (r == 0 && placed)
    r = q_flush (img);
  for (unsigned i = 0; r == 0 && i < n; ++i)
    r = save_table (img, &s[i]);
  Q_PROBE ("tables of bitmaps written, still in use");
  if (r == 0) {
    for (unsigned i = 0; i < n; ++i)
      adopt (&s[i]);
    r = relist ? finish_directory (img, s, n) : finish_flags (img, s, n);
    for (unsigned i = 0; i < n; ++i)
      if (!s[i].done)
        adopt (&s[i]);
  }
  for (unsigned i = 0; i < n; ++i)
    if (s[i].done)
      settle (img, &s[i]);
    else
      undo (img, &s[i]);
  return r;
}

int
q_bitmaps_save (struct q_image *img, struct q_bitmap *const *b, unsigned n, struct q_error *err)
{
  struct saving *s = calloc (n + 1ull, sizeof *s);
  int r = s ? 0 : -ENOMEM;

  for (unsigned i = 0; r == 0 && i < n; ++i)
    s[i].b = b[i];
  if (r == 0 && (n > 0 || img->bitmaps.relist))
    r = save_all (img, s, n);
  for (unsigned i = 0; s && i < n; ++i)
    free (s[i].table);
  free (s);
  return r < 0 ? q_fail (err, r, "%s: cannot save the bitmaps: %s; they stay marked in use",
                         img->filename, strerror (-r))
               : 0;
}
