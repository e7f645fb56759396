/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bits that survive a killed process.
 *
 * Beside the state file of an image (state.h) is one for its bitmaps, named after it: the bits of
 * those that are live are in memory that is shared with it.  It begins with a header; behind that
 * it only grows: stretches of bits, and records.  A record is the list of the image's bitmaps as it
 * is, with where the bits of the live ones are; the header says which record counts, in one store,
 * so that whatever instant the process is killed at there is one list, and bits that go with it.
 * What is not needed any more is punched out.
 *
 * It is proven by the state file: it carries the same session.  Recovery, once the tables are on
 * disk, opens the image as anybody would and saves the bitmaps of the record; it can be done again
 * until it is finished.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bitmap.h"
#include "state.h"

#define ull(v) ((unsigned long long)(v))

#define SHARED_MAGIC   0x70616d7469427143ull
#define SHARED_VERSION 1u
#define PAGE           4096u

struct shared_header {
  uint64_t magic;
  uint32_t version, padding;
  uint8_t session[16];
  _Atomic uint64_t record; /* where it is; 0: there is none */
};

struct shared_record {
  uint64_t bytes; /* of all of it */
  uint32_t n, padding;
};

enum {
  ENTRY_LIVE = 1,
  ENTRY_ENABLED = 2,
  ENTRY_NEW = 4, /* the directory on disk does not have it, unless it got there meanwhile: what it
                  * has under this name may be another one, which was removed */
};

struct shared_entry {
  uint64_t size;   /* of the disk */
  uint64_t offset; /* of the bits; 0: they are not here */
  uint8_t granularity_bits, flags;
  uint16_t name_size;
  uint32_t padding; /* the name follows, and zeros up to a multiple of 8 */
};

/* The open file; counted, since bits may outlive the image until pins drain. */
struct q_shared {
  _Atomic uint32_t refs;
  int fd;
  char *path;
  struct shared_header *header;
  uint64_t end;
  uint64_t record, record_bytes; /* that counts */
  bool full;                     /* said so once */
  _Atomic bool kept;             /* the image was closed, and this is for the next open */
};

/* ---- the file -------------------------------------------------------------------------------- */

static void
shared_drop (struct q_shared *s)
{
  if (!s || atomic_fetch_sub (&s->refs, 1) != 1)
    return;
  if (s->header)
    munmap (s->header, PAGE);
  if (s->fd >= 0)
    close (s->fd);
  free (s->path);
  free (s);
}

static char *
path_beside (const struct q_state *state)
{
  char *path;

  return asprintf (&path, "%s.bitmaps", state->path) == -1 ? NULL : path;
}

/* LEN bytes, reserved in the tmpfs: writing to a page that there is no room for would kill us. */
static void *
map_more (struct q_shared *s, uint64_t len, uint64_t *offset)
{
  void *map;

  *offset = s->end;
  len = q_round_up (len, PAGE);
  if (ftruncate (s->fd, (off_t)(s->end + len)) == -1 ||
      fallocate (s->fd, 0, (off_t)s->end, (off_t)len) == -1)
    return NULL;
  map = mmap (NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, (off_t)s->end);
  if (map == MAP_FAILED)
    return NULL;
  s->end += len;
  return map;
}

static void
unmap (struct q_shared *s, void *map, uint64_t offset, uint64_t len)
{
  len = q_round_up (len, PAGE);
  munmap (map, len);
  if (!atomic_load (&s->kept)) /* else the bits are freed here and count there */
    fallocate (s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len);
}

static void
complain (struct q_shared *s, int error)
{
  if (!s->full)
    q_log (Q_LOG_WARNING,
           "%s: %s: bitmaps that do not fit would be lost if this process were killed", s->path,
           strerror (error));
  s->full = true;
}

/* Once the session of the state file has begun. */
static void
shared_open (struct q_image *img)
{
  struct q_shared *s = calloc (1, sizeof *s);
  uint64_t offset;

  if (!s)
    return;
  atomic_init (&s->refs, 1);
  s->fd = -1;
  s->path = path_beside (img->state);
  if (s->path) {
    unlink (s->path);
    s->fd = open (s->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  }
  s->header = s->fd >= 0 ? map_more (s, PAGE, &offset) : NULL;
  if (!s->header) {
    q_log (Q_LOG_WARNING, "%s: %s: bitmaps would be lost if this process were killed",
           s->path ? s->path : img->filename, strerror (errno));
    if (s->path)
      unlink (s->path);
    shared_drop (s);
    return;
  }
  s->header->magic = SHARED_MAGIC;
  s->header->version = SHARED_VERSION;
  memcpy (s->header->session, img->state->header->session, sizeof s->header->session);
  img->shared = s;
}

void
q_shared_close (struct q_image *img, bool keep)
{
  if (!img->shared)
    return;
  if (keep)
    atomic_store (&img->shared->kept, true);
  else
    unlink (img->shared->path);
  shared_drop (img->shared);
  img->shared = NULL;
}

void
q_shared_forget (struct q_image *img)
{
  char *path = path_beside (img->state);

  if (path)
    unlink (path);
  free (path);
}

/* ---- bits ------------------------------------------------------------------------------------ */

void
q_bits_share (struct q_image *img, struct q_bits *b)
{
  uint64_t bytes = q_div_up (b->bytes, 8) * 8, offset;
  _Atomic uint64_t *word;

  if (!img->state || !img->state->header || b->shared || bytes == 0)
    return;
  if (!img->shared)
    shared_open (img);
  if (!img->shared)
    return;
  word = map_more (img->shared, bytes, &offset);
  if (!word) {
    complain (img->shared, errno);
    return;
  }
  for (uint64_t w = 0; w < bytes / 8; ++w) {
    uint64_t v = atomic_load_explicit (&b->word[w], memory_order_relaxed);

    if (v) /* it is zeros, and those need no page of their own */
      atomic_store_explicit (&word[w], v, memory_order_relaxed);
  }
  free (b->word);
  b->word = word;
  b->shared = img->shared;
  b->shared_offset = offset;
  atomic_fetch_add (&img->shared->refs, 1);
}

void
q_bits_unshare (struct q_bits *b)
{
  unmap (b->shared, b->word, b->shared_offset, q_div_up (b->bytes, 8) * 8);
  shared_drop (b->shared);
}

/* ---- records --------------------------------------------------------------------------------- */

void
q_shared_record_begin (struct q_image *img, struct q_shared_record *r)
{
  *r = (struct q_shared_record){ 0 };
  r->wanted = img->state && img->state->header;
  r->used = sizeof (struct shared_record);
  r->buf = r->wanted ? calloc (1, r->used) : NULL;
  r->capacity = r->used;
}

void
q_shared_record_add (struct q_shared_record *r, const struct q_bitmap *b, const struct q_bits *bits,
                     bool enabled)
{
  const size_t name_size = strlen (b->name);
  struct shared_entry e = { .name_size = (uint16_t)name_size };
  uint64_t len = q_round_up (sizeof e + name_size, 8);

  if (!r->buf)
    return;
  if (bits) {
    e.size = bits->size;
    e.offset = bits->shared_offset;
    e.granularity_bits = (uint8_t)bits->granularity_bits;
    e.flags = (uint8_t)(ENTRY_LIVE | (enabled ? ENTRY_ENABLED : 0) |
                        (b->position == Q_BITMAP_NOWHERE ? ENTRY_NEW : 0));
    r->live = true;
  }
  if (r->used + len > r->capacity) {
    uint64_t capacity = 2 * r->capacity + len;
    uint8_t *buf = realloc (r->buf, capacity);

    if (!buf) {
      free (r->buf);
      r->buf = NULL;
      return;
    }
    r->buf = buf;
    r->capacity = capacity;
  }
  memset (r->buf + r->used, 0, len);
  memcpy (r->buf + r->used, &e, sizeof e);
  memcpy (r->buf + r->used + sizeof e, b->name, name_size);
  r->used += len;
  ++r->n;
}

void
q_shared_record_end (struct q_image *img, struct q_shared_record *r)
{
  struct shared_record head = { .bytes = r->used, .n = r->n };
  void *map;

  if (!r->wanted)
    return;
  if (!img->shared && r->live)
    shared_open (img);
  if (!img->shared)
    goto out;
  if (r->buf)
    memcpy (r->buf, &head, sizeof head);
  map = r->buf ? map_more (img->shared, r->used, &r->offset) : NULL;
  if (map) {
    memcpy (map, r->buf, r->used);
    munmap (map, q_round_up (r->used, PAGE));
  } else {
    complain (img->shared, r->buf ? errno : ENOMEM);
    r->offset = 0; /* then no record counts: bitmaps are lost in a kill, but none is wrong */
  }
out:
  free (r->buf);
  r->buf = NULL;
}

static void
punch_record (struct q_shared *s, uint64_t offset, uint64_t len)
{
  if (offset)
    fallocate (s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
               (off_t)q_round_up (len, PAGE));
}

void
q_shared_record_commit (struct q_image *img, struct q_shared_record *r)
{
  struct q_shared *s = img->shared;

  if (!s || !r->wanted)
    return;
  atomic_store (&s->header->record, r->offset);
  Q_PROBE ("a record of bitmaps counts");
  punch_record (s, s->record, s->record_bytes);
  s->record = r->offset;
  s->record_bytes = r->used;
}

void
q_shared_record_drop (struct q_image *img, struct q_shared_record *r)
{
  free (r->buf);
  r->buf = NULL;
  if (img->shared)
    punch_record (img->shared, r->offset, r->used);
}

/* ---- recovery -------------------------------------------------------------------------------- */

/* What was left behind, mapped. */
struct left {
  char *path;
  const uint8_t *map;
  uint64_t bytes;
  const struct shared_record *record;
  const uint8_t *entries, *end;
};

/* The image file as it is, for an image that is opened in the meantime. */
struct relay {
  struct q_file base;
  struct q_file *to;
};

static struct q_file *
below (struct q_file *f)
{
  return ((struct relay *)f)->to;
}

static int
relay_pread (struct q_file *f, void *buf, size_t len, uint64_t offset)
{
  return q_file_pread (below (f), buf, len, offset);
}

static int
relay_pwritev (struct q_file *f, const struct iovec *iov, int iovcnt, uint64_t offset)
{
  int r = 0;

  for (int i = 0; r == 0 && i < iovcnt; ++i) {
    r = q_file_pwrite (below (f), iov[i].iov_base, iov[i].iov_len, offset);
    offset += iov[i].iov_len;
  }
  return r;
}

static int
relay_sync (struct q_file *f)
{
  return q_file_sync (below (f));
}

static int
relay_zero (struct q_file *f, uint64_t offset, uint64_t len, bool unmapped)
{
  return q_file_zero (below (f), offset, len, unmapped);
}

static int
relay_truncate (struct q_file *f, uint64_t size)
{
  return q_file_truncate (below (f), size);
}

static int
relay_allocate (struct q_file *f, uint64_t offset, uint64_t len)
{
  return q_file_allocate (below (f), offset, len);
}

static int
relay_size (struct q_file *f, uint64_t *size)
{
  return q_file_size (below (f), size);
}

static int
relay_usage (struct q_file *f, uint64_t *bytes)
{
  return q_file_usage (below (f), bytes);
}

static void
relay_close (struct q_file *f)
{
  free (f);
}

static int
relay_open (void *opaque, const char *name, unsigned flags, struct q_file **file,
            struct q_error *err)
{
  static const struct q_file_ops ops = { .pread = relay_pread,
                                         .pwritev = relay_pwritev,
                                         .sync = relay_sync,
                                         .zero = relay_zero,
                                         .truncate = relay_truncate,
                                         .allocate = relay_allocate,
                                         .size = relay_size,
                                         .usage = relay_usage,
                                         .close = relay_close };
  struct relay *r = calloc (1, sizeof *r);

  (void)flags;
  if (!r)
    return q_fail (err, -ENOMEM, "%s: out of memory", name);
  r->to = opaque;
  r->base.ops = &ops;
  r->base.name = (char *)name;
  r->base.fd = -1;
  r->base.is_device = r->to->is_device;
  r->base.holes_are_zero = r->to->holes_are_zero;
  *file = &r->base;
  return 0;
}

/* Finds the record and sees that all of it is inside the file. */
static bool
left_is_sane (struct left *l, const struct qcow2_session *session)
{
  const struct shared_header *h = (const struct shared_header *)l->map;
  const uint8_t *at;
  uint64_t record;

  if (l->bytes < PAGE || h->magic != SHARED_MAGIC || h->version != SHARED_VERSION ||
      memcmp (h->session, session->session, sizeof h->session) != 0)
    return false;
  record = atomic_load (&h->record);
  if (record == 0 || record % PAGE != 0 || record >= l->bytes ||
      l->bytes - record < sizeof *l->record)
    return false;
  l->record = (const struct shared_record *)(l->map + record);
  if (l->record->bytes < sizeof *l->record || l->record->bytes > l->bytes - record)
    return false;
  at = l->entries = (const uint8_t *)(l->record + 1);
  l->end = (const uint8_t *)l->record + l->record->bytes;
  for (uint32_t i = 0; i < l->record->n; ++i) {
    const struct shared_entry *e = (const struct shared_entry *)at;
    uint64_t room = (uint64_t)(l->end - at), words;

    if (room < sizeof *e || e->name_size == 0 || q_round_up (sizeof *e + e->name_size, 8) > room)
      return false;
    if (e->offset) {
      if (e->granularity_bits > 63 ||
          q_bits_bytes (e->size, e->granularity_bits) > Q_BITMAP_MAX_BYTES)
        return false;
      words = q_div_up (q_bits_bytes (e->size, e->granularity_bits), 8);
      if (e->offset % PAGE != 0 || e->offset > l->bytes || words * 8 > l->bytes - e->offset)
        return false;
    }
    at += q_round_up (sizeof *e + e->name_size, 8);
  }
  return true;
}

/* The entry at *AT, and its NAME, for which there is room for any; moves *AT to the next. */
static const struct shared_entry *
next_entry (const uint8_t **at, char *name)
{
  const struct shared_entry *e = (const struct shared_entry *)*at;

  memcpy (name, e + 1, e->name_size);
  name[e->name_size] = '\0';
  *at += q_round_up (sizeof *e + e->name_size, 8);
  return e;
}

/* Gives B the bits that are left, for the disk as it is now. */
static int
take_bits (struct q_image *img, const struct left *l, const struct shared_entry *e,
           struct q_bitmap *b)
{
  const uint64_t *word = (const uint64_t *)(l->map + e->offset);
  uint64_t n = q_div_up (e->size, 1ull << e->granularity_bits);
  struct q_bits *bits;

  if (q_bits_bytes (q_size (img), e->granularity_bits) > Q_BITMAP_MAX_BYTES)
    return -EFBIG;
  bits = q_bits_new (img, q_size (img), e->granularity_bits);
  if (!bits)
    return -ENOMEM;
  for (uint64_t bit = 0; bit < n && bit < bits->n; bit += 64) {
    uint64_t v = word[bit / 64], left = q_min (n, bits->n) - bit;

    atomic_store (&bits->word[bit / 64], left < 64 ? v & ~0ull >> (64 - left) : v);
  }
  /* The process was killed when the disk had grown and the bitmaps had not. */
  if (e->flags & ENTRY_ENABLED)
    q_bits_set (bits, e->size, q_size (img) > e->size ? q_size (img) - e->size : 0);
  q_bits_changed_all (bits);
  b->granularity_bits = e->granularity_bits;
  b->enabled = e->flags & ENTRY_ENABLED;
  b->inconsistent = false;
  img->bitmaps.memory += bits->bytes;
  atomic_store (&b->bits, bits);
  return 0;
}

/* The next one of that name on disk: the first that is not in LIST yet.  Two should not have one
 * name; where they have, the record has both, in their order. */
static struct q_bitmap *
find_next (struct q_image *img, const char *name, struct q_bitmap *const *list, unsigned n)
{
  for (unsigned i = 0; i < img->bitmaps.n; ++i) {
    struct q_bitmap *b = img->bitmaps.bitmap[i];
    bool seen = false;

    if (strcmp (b->name, name) != 0)
      continue;
    for (unsigned k = 0; !seen && k < n; ++k)
      seen = list[k] == b;
    if (!seen)
      return b;
  }
  return NULL;
}

/* The image's bitmaps as the record has them. */
static int
restore_list (struct q_image *img, const struct left *l, struct q_bitmap **list, unsigned *n,
              struct q_bitmap **live, unsigned *n_live)
{
  const uint8_t *at = l->entries;
  char *name = malloc (UINT16_MAX + 1u);
  int r = name ? 0 : -ENOMEM;

  for (uint32_t i = 0; r == 0 && i < l->record->n; ++i) {
    const struct shared_entry *e = next_entry (&at, name);
    struct q_bitmap *b = find_next (img, name, list, *n);

    /* Another one, or it got there meanwhile.  If there was no room for its bits, one that nobody
     * believes says that it is lost. */
    if ((e->flags & ENTRY_NEW) && b && (e->offset || !b->inconsistent))
      b = NULL;
    if (!b && !e->offset)
      continue;
    if (!b) {
      b = q_bitmap_new (img, name, e->granularity_bits);
      if (!b) {
        r = -ENOMEM;
        break;
      }
    }
    list[(*n)++] = b;
    if (!e->offset || b->unusable)
      continue;
    r = take_bits (img, l, e, b);
    if (r == 0)
      live[(*n_live)++] = b;
  }
  free (name);
  return r;
}

/* Everything is on disk as the record has it when this returns 0. */
static int
restore (struct q_image *img, const struct left *l, struct q_error *err)
{
  struct q_bitmaps *all = &img->bitmaps;
  size_t room = l->record->n + 1ull;
  struct q_bitmap **list = calloc (room, sizeof *list), **live = calloc (room, sizeof *live);
  struct q_leaving leaving = { 0 };
  struct q_new_directory d = { 0 };
  unsigned n = 0, n_live = 0;
  bool fewer = false;
  int r = list && live ? restore_list (img, l, list, &n, live, &n_live) : -ENOMEM;

  if (r < 0) {
    r = q_fail (err, r, "%s: %s", img->filename, strerror (-r));
    goto out;
  }
  for (unsigned i = 0; i < all->n; ++i) {
    bool kept = false;

    for (unsigned j = 0; j < n; ++j)
      kept = kept || list[j] == all->bitmap[i];
    if (!kept) { /* it was removed, or another one of its name has taken its place */
      fewer = true;
      q_bitmap_leave (img, &leaving, all->bitmap[i]);
      q_bitmap_destroy (all->bitmap[i]);
    }
  }
  free (all->bitmap);
  all->bitmap = list;
  all->n = n;
  list = NULL;
  r = q_bitmaps_mark_in_use (img, live, n_live, err);
  if (r == 0)
    r = q_bitmaps_save (img, live, n_live, err);
  if (r == 0 && fewer) {
    r = q_directory_write (img, all->bitmap, all->n, &d);
    if (r == 0)
      r = q_directory_switch (img, all->bitmap, &d, &leaving);
    if (r < 0)
      q_fail (err, r, "%s: cannot write the bitmap directory: %s", img->filename, strerror (-r));
  }
  if (r == 0)
    q_log (Q_LOG_WARNING, "%s: a server was killed: %u bitmaps were recovered from %s",
           img->filename, n_live, l->path);
out:
  free (leaving.run);
  free (list);
  free (live);
  return r;
}

static int
restore_into (struct q_image *top, const struct left *l, struct q_error *err)
{
  struct q_file_opener opener = { relay_open, top->file };
  struct q_open_options opts;
  struct q_image *img;
  int r, r2;

  q_open_options_init (&opts);
  opts.format = Q_FORMAT_QCOW2;
  opts.metadata_only = opts.recovering = true;
  opts.lock = Q_LOCK_OFF;
  opts.opener = &opener;
  r = q_open (&img, top->filename, &opts, err);
  if (r < 0)
    return r;
  pthread_mutex_lock (&img->bitmap_lock);
  r = q_bitmaps_read (img, err);
  if (r == 0)
    r = restore (img, l, err);
  pthread_mutex_unlock (&img->bitmap_lock);
  r2 = q_close (&img, r < 0 ? NULL : err);
  return r < 0 ? r : r2;
}

int
q_shared_recover (struct q_image *img, const struct qcow2_session *session, struct q_error *err)
{
  struct left l = { .path = path_beside (img->state), .map = MAP_FAILED };
  struct stat st;
  int fd, r = 0;

  if (!l.path)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  fd = open (l.path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd == -1) {
    free (l.path);
    return 0;
  }
  if (fstat (fd, &st) == 0 && S_ISREG (st.st_mode) && st.st_uid == geteuid () && st.st_size > 0) {
    l.bytes = (uint64_t)st.st_size;
    l.map = mmap (NULL, l.bytes, PROT_READ, MAP_SHARED, fd, 0);
  }
  if (l.map == MAP_FAILED || !left_is_sane (&l, session)) {
    if (l.map != MAP_FAILED && l.bytes >= PAGE &&
        atomic_load (&((const struct shared_header *)l.map)->record) != 0)
      q_log (
          Q_LOG_WARNING,
          "%s: the bitmaps that a killed server left in %s are not used: the file is damaged, or "
          "from another session",
          img->filename, l.path);
  } else {
    r = restore_into (img, &l, err);
    if (r < 0)
      q_error_prefix (err, "%s: cannot save the bitmaps that a killed server left in %s",
                      img->filename, l.path);
  }
  if (r == 0)
    unlink (l.path);
  if (l.map != MAP_FAILED)
    munmap ((void *)l.map, l.bytes);
  close (fd);
  free (l.path);
  return r;
}
