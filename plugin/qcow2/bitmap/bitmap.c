/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Persistent dirty bitmaps: the list of an image's, and what callers see of them.  See bitmap.h.
 *
 * What is damaged in one entry makes that bitmap unusable and leaves the others alone; what leaves
 * no telling where an entry ends makes the directory unreadable.
 */

#include <errno.h>
#include <stdlib.h>

#include "bitmap.h"

#define ull(v) ((unsigned long long)(v))

/* ---- the directory --------------------------------------------------------------------------- */

struct q_bitmap *
q_bitmap_new (struct q_image *img, const char *name, unsigned granularity_bits)
{
  struct q_bitmap *b = calloc (1, sizeof *b);

  if (!b)
    return NULL;
  b->img = img;
  b->type = Q_BITMAP_DIRTY_TRACKING;
  b->granularity_bits = (uint8_t)granularity_bits;
  b->position = Q_BITMAP_NOWHERE;
  b->name = strdup (name);
  b->name_size = (uint16_t)strlen (name);
  if (!b->name) {
    free (b);
    return NULL;
  }
  return b;
}

void
q_bitmap_destroy (struct q_bitmap *b)
{
  struct q_bits *bits = atomic_load (&b->bits);

  if (bits)
    b->img->bitmaps.memory -= bits->bytes;
  q_bits_free (bits);
  free (b->table);
  free (b->extra);
  free (b->bytes);
  free (b->name);
  free (b);
}

/* Why the bits of an entry could not be used even if it were not in use. */
static const char *
entry_objection (const struct q_image *img, const struct q_bitmap *b)
{
  uint64_t bytes, clusters;

  if (b->extra_size > 0 && !(b->flags & Q_BITMAP_EXTRA_COMPATIBLE))
    return "it has extra data that this program does not know";
  if (b->type != Q_BITMAP_DIRTY_TRACKING)
    return "its type is not 1 (dirty tracking), the only one that is known";
  if (b->flags & Q_BITMAP_RESERVED)
    return "reserved flags are set";
  if (b->bytes)
    return "its name is empty or has NUL bytes in it";
  if (b->granularity_bits > 63)
    return "its granularity_bits are not 0 to 63";
  bytes = q_bits_bytes (q_size (img), b->granularity_bits);
  clusters = q_div_up (bytes, q_cluster_bytes (img));
  if (bytes > Q_BITMAP_MAX_BYTES)
    return "it has more than 512 MiB of bits, which is the most that is supported";
  if ((b->table_offset & (q_cluster_bytes (img) - 1)) || b->table_offset >= Q_MAX_HOST_OFFSET ||
      b->table_offset == 0)
    return "its table offset is not a cluster's";
  /* Who did not save it may have changed the disk's size as well. */
  if (b->table_size != clusters && !(b->flags & Q_BITMAP_IN_USE))
    return "its table is not as long as the disk needs";
  return NULL;
}

/* A bitmap whose name has the SIZE bytes at BYTES. */
static struct q_bitmap *
new_as_found (struct q_image *img, const uint8_t *bytes, uint16_t size, unsigned granularity_bits)
{
  bool is_text = size > 0 && !memchr (bytes, 0, size);
  char *name = is_text ? strndup ((const char *)bytes, size) : calloc (1, size + 2u);
  struct q_bitmap *b;

  /* Something to call it by, for who wants to remove it. */
  for (unsigned i = 0; name && !is_text && (i < size || i == 0); ++i)
    name[i] = i < size && bytes[i] ? (char)bytes[i] : '?';
  b = name ? q_bitmap_new (img, name, granularity_bits) : NULL;
  free (name);
  if (!b || is_text)
    return b;
  b->bytes = malloc (size + 1u);
  if (!b->bytes) {
    q_bitmap_destroy (b);
    return NULL;
  }
  memcpy (b->bytes, bytes, size);
  b->name_size = size;
  return b;
}

/* The entry at *POS of the directory; moves *POS to the next. */
static int
parse_entry (struct q_image *img, const uint8_t *dir, uint64_t *pos, struct q_bitmap **out,
             struct q_error *err)
{
  uint64_t left = img->bitmap_dir_size - *pos, length;
  struct qcow2_bitmap d;
  struct q_bitmap *b;

  if (left < sizeof d)
    return q_fail (err, -EINVAL, "%s: the bitmap directory ends in the middle of an entry",
                   img->filename);
  assert (dir);
  memcpy (&d, dir + *pos, sizeof d);
  length = sizeof d + (uint64_t)get32 (d.extra_data_size) + get16 (d.name_size);
  if (length > left)
    return q_fail (err, -EINVAL, "%s: a bitmap directory entry of %llu bytes, only %llu are left",
                   img->filename, ull (length), ull (left));
  b = new_as_found (img, dir + *pos + sizeof d + get32 (d.extra_data_size), get16 (d.name_size),
                    d.granularity_bits);
  if (b)
    b->extra = malloc (get32 (d.extra_data_size) + 1ull);
  if (!b || !b->extra) {
    if (b)
      q_bitmap_destroy (b);
    return q_fail (err, -ENOMEM, "%s: out of memory for the bitmap directory", img->filename);
  }
  b->extra_size = get32 (d.extra_data_size);
  memcpy (b->extra, dir + *pos + sizeof d, b->extra_size);
  b->type = d.type;
  b->position = *pos;
  b->flags = get32 (d.flags);
  b->table_offset = get64 (d.table_offset);
  b->table_size = get32 (d.table_size);
  b->enabled = b->flags & Q_BITMAP_AUTO;
  b->unusable = entry_objection (img, b);
  b->inconsistent = b->flags & Q_BITMAP_IN_USE;
  *out = b;
  *pos += q_min (q_round_up (length, 8), left);
  return 0;
}

static int
by_name (const void *a, const void *b)
{
  struct q_bitmap *const *x = a, *const *y = b;
  int r = strcmp ((*x)->name, (*y)->name);

  return r ? r : (*x)->position < (*y)->position ? -1 : 1;
}

/* A name that two bitmaps have is that of the first. */
static int
find_duplicates (struct q_bitmaps *l)
{
  struct q_bitmap **sorted = malloc ((l->n + 1) * sizeof *sorted);

  if (!sorted)
    return -ENOMEM;
  for (unsigned i = 0; i < l->n; ++i)
    sorted[i] = l->bitmap[i];
  qsort (sorted, l->n, sizeof *sorted, by_name);
  for (unsigned i = 1; i < l->n; ++i)
    if (strcmp (sorted[i]->name, sorted[i - 1]->name) == 0)
      sorted[i]->unusable = "another bitmap has the same name";
  free (sorted);
  return 0;
}

static void
free_list (struct q_bitmaps *l)
{
  for (unsigned i = 0; i < l->n; ++i)
    q_bitmap_destroy (l->bitmap[i]);
  free (l->bitmap);
  l->bitmap = NULL;
  l->n = 0;
}

int
q_bitmaps_read (struct q_image *img, struct q_error *err)
{
  struct q_bitmaps *l = &img->bitmaps;
  uint64_t pos = 0;
  uint8_t *dir = NULL;
  int r = 0;

  if (l->bitmap || img->nb_bitmaps == 0)
    return 0;
  dir = malloc (img->bitmap_dir_size);
  l->bitmap = calloc (img->nb_bitmaps, sizeof (struct q_bitmap *));
  if (!dir || !l->bitmap)
    r = q_fail (err, -ENOMEM, "%s: out of memory for the bitmap directory", img->filename);
  if (r == 0) {
    r = q_file_pread (img->file, dir, img->bitmap_dir_size, img->bitmap_dir_offset);
    if (r < 0)
      q_fail (err, r, "%s: cannot read the bitmap directory: %s", img->filename, strerror (-r));
  }
  while (r == 0 && l->n < img->nb_bitmaps) {
    r = parse_entry (img, dir, &pos, &l->bitmap[l->n], err);
    l->n += r == 0;
  }
  if (r == 0 && pos != img->bitmap_dir_size)
    r = q_fail (err, -EINVAL, "%s: the bitmap directory has %llu bytes, its %u entries have %llu",
                img->filename, ull (img->bitmap_dir_size), l->n, ull (pos));
  if (r == 0 && find_duplicates (l) < 0)
    r = q_fail (err, -ENOMEM, "%s: out of memory for the bitmap directory", img->filename);
  free (dir);
  if (r < 0)
    free_list (l);
  return r;
}

void
q_bitmaps_free (struct q_image *img)
{
  free (atomic_load (&img->tracker));
  atomic_store (&img->tracker, NULL);
  free_list (&img->bitmaps);
  free (img->bitmaps.leaving.run);
}

struct q_bitmap *
q_bitmap_find (struct q_image *img, const char *name)
{
  for (unsigned i = 0; i < img->bitmaps.n; ++i)
    if (strcmp (img->bitmaps.bitmap[i]->name, name) == 0)
      return img->bitmaps.bitmap[i];
  return NULL;
}

const char *
q_bitmap_objection (const struct q_bitmap *b, bool to_remove)
{
  if (to_remove)
    return NULL;
  if (b->inconsistent)
    return "it is marked in use: its last user did not save it, so its bits mean nothing; remove "
           "it";
  return b->unusable;
}

/* ---- the bits of one ------------------------------------------------------------------------- */

int
q_bitmap_read_table (struct q_bitmap *b, struct q_error *err)
{
  struct q_image *img = b->img;
  uint64_t *table, file_size = 0;
  int r;

  if (b->table || b->table_offset == 0)
    return 0;
  table = malloc (b->table_size * sizeof *table + 1);
  r = table ? q_file_size (img->file, &file_size) : -ENOMEM;
  if (r == 0)
    r = q_file_pread (img->file, table, b->table_size * sizeof *table, b->table_offset);
  if (r < 0)
    q_fail (err, r, "%s: cannot read the table of bitmap '%s': %s", img->filename, b->name,
            strerror (-r));
  for (uint32_t i = 0; r == 0 && i < b->table_size; ++i) {
    uint64_t t = table[i] = be64toh (table[i]), host = t & Q_OFFSET_MASK;

    /* Past the end of the file it would read as clean. */
    if ((t & Q_BITMAP_ENTRY_RESERVED) || (host & (q_cluster_bytes (img) - 1)) || host > file_size ||
        (host && (t & Q_BITMAP_ENTRY_ONES)))
      r = q_fail (err, -EINVAL, "%s: bitmap '%s': table entry %u is %#llx, which cannot be",
                  img->filename, b->name, i, ull (t));
  }
  if (r == 0)
    b->table = table;
  else
    free (table);
  return r;
}

static int
read_chunks (struct q_bitmap *b, struct q_bits *bits, struct q_error *err)
{
  struct q_image *img = b->img;
  uint64_t cluster = q_cluster_bytes (img);
  uint8_t *buf = malloc (cluster);
  int r = buf ? 0 : -ENOMEM;

  for (uint32_t i = 0; r == 0 && i < bits->chunks; ++i) {
    uint64_t host = b->table[i] & Q_OFFSET_MASK;

    if (host) {
      r = q_file_pread (img->file, buf, q_min (cluster, bits->bytes - i * cluster), host);
      if (r == 0)
        q_bits_chunk_put (bits, i, buf);
    } else if (b->table[i] & Q_BITMAP_ENTRY_ONES)
      q_bits_chunk_put (bits, i, NULL);
  }
  free (buf);
  if (r < 0)
    q_fail (err, r, "%s: cannot read bitmap '%s': %s", img->filename, b->name, strerror (-r));
  return r;
}

int
q_bitmap_read_bits (struct q_bitmap *b, struct q_error *err)
{
  struct q_image *img = b->img;
  uint64_t bytes = q_bits_bytes (q_size (img), b->granularity_bits);
  struct q_bits *bits;
  int r;

  if (atomic_load (&b->bits))
    return 0;
  if (bytes > Q_BITMAP_MAX_TOTAL - img->bitmaps.memory)
    return q_fail (err, -EFBIG,
                   "%s: bitmap '%s' has %llu bytes of bits: with %llu bytes of others that is more "
                   "than the %llu that may be in memory",
                   img->filename, b->name, ull (bytes), ull (img->bitmaps.memory),
                   ull (Q_BITMAP_MAX_TOTAL));
  r = q_bitmap_read_table (b, err);
  if (r < 0)
    return r;
  bits = q_bits_new (img, q_size (img), b->granularity_bits);
  if (!bits)
    return q_fail (err, -ENOMEM, "%s: out of memory for bitmap '%s'", img->filename, b->name);
  r = read_chunks (b, bits, err);
  if (r < 0) {
    q_bits_free (bits);
    return r;
  }
  for (uint32_t i = 0; i < bits->chunks; ++i)
    atomic_store_explicit (&bits->changed[i], 0, memory_order_relaxed);
  img->bitmaps.memory += bytes;
  atomic_store (&b->bits, bits);
  return 0;
}

/* ---- what callers see ------------------------------------------------------------------------ */

/* Infos, and behind them their names.  bitmap_lock held. */
static int
copy_infos (const struct q_image *img, struct q_bitmap_info **list, struct q_error *err)
{
  const struct q_bitmaps *l = &img->bitmaps;
  size_t bytes = (l->n + 1ul) * sizeof **list;
  char *name;

  for (unsigned i = 0; i < l->n; ++i)
    bytes += strlen (l->bitmap[i]->name) + 1;
  *list = malloc (bytes);
  if (!*list)
    return q_fail (err, -ENOMEM, "%s: out of memory for %u bitmaps", img->filename, l->n);
  name = (char *)(*list + l->n + 1);
  for (unsigned i = 0; i < l->n; ++i) {
    const struct q_bitmap *b = l->bitmap[i];
    const struct q_bits *bits = atomic_load (&b->bits);

    (*list)[i] = (struct q_bitmap_info){ .name = name,
                                         .granularity = 1ull << (b->granularity_bits & 63),
                                         .in_use = b->live || (b->flags & Q_BITMAP_IN_USE),
                                         .automatic = b->enabled,
                                         .inconsistent = b->inconsistent,
                                         .busy = b->users > 0,
                                         .in_memory = bits && !b->inconsistent };
    if ((*list)[i].in_memory)
      (*list)[i].dirty = q_bits_count (bits) << b->granularity_bits;
    name = stpcpy (name, b->name) + 1;
  }
  return (int)l->n;
}

int
q_get_bitmaps (struct q_image *img, struct q_bitmap_info **list, struct q_error *err)
{
  int n;

  *list = NULL;
  if (err)
    err->text[0] = '\0';
  pthread_mutex_lock (&img->bitmap_lock);
  n = q_bitmaps_read (img, err);
  if (n == 0)
    n = copy_infos (img, list, err);
  pthread_mutex_unlock (&img->bitmap_lock);
  return n;
}

int
q_bitmap_hold (struct q_image *img, const char *name, struct q_bitmap **bitmap, struct q_error *err)
{
  struct q_bitmap *b = NULL;
  int r;

  *bitmap = NULL;
  if (err)
    err->text[0] = '\0';
  pthread_mutex_lock (&img->bitmap_lock);
  r = q_bitmaps_read (img, err);
  if (r == 0) {
    b = q_bitmap_find (img, name);
    r = !b ? q_fail (err, -ENOENT, "%s: has no bitmap '%s'", img->filename, name)
        : q_bitmap_objection (b, false)
            ? q_fail (err, -EINVAL, "%s: bitmap '%s' cannot be used: %s", img->filename, name,
                      q_bitmap_objection (b, false))
            : q_bitmap_read_bits (b, err);
  }
  if (r == 0) {
    ++b->users;
    *bitmap = b;
  }
  pthread_mutex_unlock (&img->bitmap_lock);
  return r;
}

void
q_bitmap_release (struct q_bitmap *b)
{
  struct q_image *img;

  if (!b)
    return;
  img = b->img;
  pthread_mutex_lock (&img->bitmap_lock);
  assert (b->users > 0);
  --b->users;
  pthread_mutex_unlock (&img->bitmap_lock);
}

void
q_bitmap_next (const struct q_bitmap *b, uint64_t offset, uint64_t end, bool *dirty,
               uint64_t *run_end)
{
  q_pin_t pin = q_pin (); /* a resize replaces them */

  assert (offset < end);
  *dirty = q_bits_next (atomic_load (&b->bits), offset, end, run_end);
  q_unpin (pin);
}

uint64_t
q_bitmap_count (const struct q_bitmap *b)
{
  q_pin_t pin = q_pin ();
  const struct q_bits *bits = atomic_load (&b->bits);
  uint64_t n = q_bits_count (bits) << bits->granularity_bits;

  q_unpin (pin);
  return n;
}

bool
q_bitmap_enabled (const struct q_bitmap *b)
{
  return b->enabled && !b->inconsistent; /* nobody changes it while it is held */
}
