/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Files in memory: see mem.h.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "mem.h"

void
die (const char *fmt, ...)
{
  va_list ap;

  fflush (stdout);
  va_start (ap, fmt);
  vfprintf (stderr, fmt, ap);
  va_end (ap);
  fputc ('\n', stderr);
  exit (1);
}

void *
xalloc (size_t bytes)
{
  void *p = calloc (1, bytes ? bytes : 1);

  if (!p)
    die ("out of memory");
  return p;
}

/* ---- the bytes ------------------------------------------------------------------------------- */

void
mem_resize (struct mem_file *f, uint64_t size)
{
  if (size > MEM_MAX_BYTES)
    die ("%s: grows to %llu bytes, at most %u are expected", f->name, (unsigned long long)size,
         MEM_MAX_BYTES);
  if (size > f->capacity) {
    uint64_t capacity = size + size / 2 + 4096;
    uint8_t *data = realloc (f->data, capacity);

    if (!data)
      die ("out of memory");
    f->data = data;
    f->capacity = capacity;
  }
  if (size > f->size)
    memset (f->data + f->size, 0, size - f->size);
  f->size = size;
}

void
mem_set (struct mem_file *f, const void *data, uint64_t size)
{
  f->size = 0;
  mem_resize (f, size);
  if (size > 0)
    memcpy (f->data, data, size);
}

static bool
is_full (struct mem_file *f, uint64_t offset, uint64_t len)
{
  bool full;

  pthread_mutex_lock (&f->lock);
  full = (f->device || (f->limit > 0 && offset + len > f->limit)) && offset + len > f->size;
  pthread_mutex_unlock (&f->lock);
  return full;
}

/* ---- the clock ------------------------------------------------------------------------------- */

int64_t (*mem_now) (void);

/* Lock held. */
static void
stamp (struct mem_file *m)
{
  if (mem_now)
    m->changed = mem_now ();
}

void
mem_put_tap (struct mem_file *f, const struct mem_tap *tap)
{
  f->tap = tap;
  if (f->beside)
    f->beside->tap = tap;
}

/* ---- the seam -------------------------------------------------------------------------------- */

/* The least that is punched out. */
#define HOLE 512u

struct handle {
  struct q_file base;
  struct mem_file *mem;
};

static struct mem_file *
mem_of (struct q_file *f)
{
  return ((struct handle *)f)->mem;
}

static int
before (struct mem_file *m, struct mem_call *call, uint64_t *partial)
{
  uint64_t ignored;

  call->beside = m->is_beside;
  return m->tap && m->tap->before
             ? m->tap->before (m->tap->opaque, call, partial ? partial : &ignored)
             : 0;
}

static void
done (struct mem_file *m, const struct mem_call *call)
{
  if (m->tap && m->tap->done)
    m->tap->done (m->tap->opaque, call);
}

static int
mem_pread (struct q_file *f, void *buf, size_t len, uint64_t offset)
{
  struct mem_file *m = mem_of (f);
  struct mem_call call = { .kind = MEM_READ, .offset = offset, .len = len };
  uint64_t n;
  int r = before (m, &call, NULL);

  if (r < 0)
    return r;
  pthread_mutex_lock (&m->lock);
  n = offset >= m->size ? 0 : m->size - offset < len ? m->size - offset : len;
  if (n > 0)
    memcpy (buf, m->data + offset, n);
  pthread_mutex_unlock (&m->lock);
  memset ((char *)buf + n, 0, len - n);
  return 0;
}

/* Lock held. */
static void
put (struct mem_file *m, const struct mem_call *call)
{
  if (call->len == 0)
    return;
  if (call->offset + call->len > m->size)
    mem_resize (m, call->offset + call->len);
  memcpy (m->data + call->offset, call->data, call->len);
  stamp (m);
  done (m, call);
}

static int
mem_pwritev (struct q_file *f, const struct iovec *iov, int iovcnt, uint64_t offset)
{
  struct mem_file *m = mem_of (f);
  struct mem_call call = { .kind = MEM_WRITE, .offset = offset };
  uint64_t at = 0, partial = 0;
  uint8_t *data;
  int r;

  for (int i = 0; i < iovcnt; ++i)
    call.len += iov[i].iov_len;
  data = xalloc (call.len);
  for (int i = 0; i < iovcnt; at += iov[i].iov_len, ++i)
    memcpy (data + at, iov[i].iov_base, iov[i].iov_len);
  call.data = data;
  if (is_full (m, offset, call.len))
    r = -ENOSPC;
  else {
    r = before (m, &call, &partial);
    if (r < 0)
      call.len = partial < call.len ? partial : call.len;
    pthread_mutex_lock (&m->lock);
    put (m, &call);
    pthread_mutex_unlock (&m->lock);
  }
  free (data);
  return r;
}

static int
mem_sync (struct q_file *f)
{
  struct mem_file *m = mem_of (f);
  struct mem_call call = { .kind = MEM_SYNC };
  int r = before (m, &call, NULL);

  call.kind = r < 0 ? MEM_SYNC_FAILED : MEM_SYNC;
  pthread_mutex_lock (&m->lock);
  done (m, &call);
  pthread_mutex_unlock (&m->lock);
  if (r < 0)
    return r;
  call.kind = MEM_SYNCED;
  before (m, &call, NULL);
  pthread_mutex_lock (&m->lock);
  done (m, &call);
  pthread_mutex_unlock (&m->lock);
  return 0;
}

static int
mem_zero (struct q_file *f, uint64_t offset, uint64_t len, bool unmap)
{
  struct mem_file *m = mem_of (f);
  struct mem_call call = { .kind = MEM_ZERO, .offset = offset, .len = len };
  int r;

  (void)unmap;
  if (m->plain)
    return -ENOTSUP;
  r = before (m, &call, NULL);
  if (r < 0)
    return r;
  pthread_mutex_lock (&m->lock);
  if (offset < m->size)
    memset (m->data + offset, 0, m->size - offset < len ? m->size - offset : len);
  stamp (m);
  done (m, &call);
  pthread_mutex_unlock (&m->lock);
  return 0;
}

static int
mem_truncate (struct q_file *f, uint64_t size)
{
  struct mem_file *m = mem_of (f);
  struct mem_call call = { .kind = MEM_TRUNCATE, .len = size };
  int r = m->device                                           ? -EINVAL
          : m->limit > 0 && size > m->limit && size > m->size ? -EFBIG
                                                              : before (m, &call, NULL);

  if (r < 0)
    return r;
  pthread_mutex_lock (&m->lock);
  mem_resize (m, size);
  stamp (m);
  done (m, &call);
  pthread_mutex_unlock (&m->lock);
  return 0;
}

static int
mem_allocate (struct q_file *f, uint64_t offset, uint64_t len)
{
  struct mem_file *m = mem_of (f);
  struct mem_call call = { .kind = MEM_ALLOCATE, .offset = offset, .len = len };
  int r;

  if (m->plain || m->device)
    return -ENOTSUP;
  r = is_full (m, offset, len) ? -ENOSPC : before (m, &call, NULL);
  if (r < 0)
    return r;
  pthread_mutex_lock (&m->lock);
  if (offset + len > m->size)
    mem_resize (m, offset + len);
  stamp (m);
  done (m, &call);
  pthread_mutex_unlock (&m->lock);
  return 0;
}

static int
mem_size (struct q_file *f, uint64_t *size)
{
  struct mem_file *m = mem_of (f);
  struct mem_call call = { .kind = MEM_SIZE };
  int r = before (m, &call, NULL);

  if (r < 0)
    return r;
  pthread_mutex_lock (&m->lock);
  *size = m->size;
  pthread_mutex_unlock (&m->lock);
  return 0;
}

static int
mem_changed (struct q_file *f, int64_t *ns)
{
  struct mem_file *m = mem_of (f);

  if (!mem_now)
    return -ENOTSUP;
  pthread_mutex_lock (&m->lock);
  *ns = m->changed;
  pthread_mutex_unlock (&m->lock);
  return 0;
}

static int
mem_extent (struct q_file *f, uint64_t offset, uint64_t *end, bool *is_hole)
{
  static const uint8_t zeros[HOLE];
  struct mem_file *m = mem_of (f);
  uint64_t at = offset;
  bool hole;

  /* Whatever is zeros is a hole: nothing else is known of it. */
  if (m->plain || m->device)
    return -ENOTSUP;
  pthread_mutex_lock (&m->lock);
  for (*is_hole = hole = true; at < m->size && hole == *is_hole;) {
    uint64_t next = (at / HOLE + 1) * HOLE, n = next < m->size ? next - at : m->size - at;

    hole = memcmp (m->data + at, zeros, n) == 0;
    if (at == offset)
      *is_hole = hole;
    at = hole == *is_hole ? at + n : at;
  }
  pthread_mutex_unlock (&m->lock);
  *end = at;
  return 0;
}

static int
mem_prefetch (struct q_file *f, uint64_t offset, uint64_t len)
{
  (void)f;
  (void)offset;
  (void)len;
  return 0;
}

static void
mem_close (struct q_file *f)
{
  free (f->name);
  free (f);
}

static const struct q_file_ops mem_ops = {
  .pread = mem_pread,
  .pwritev = mem_pwritev,
  .sync = mem_sync,
  .zero = mem_zero,
  .truncate = mem_truncate,
  .allocate = mem_allocate,
  .size = mem_size,
  .changed = mem_changed,
  .usage = mem_size,
  .extent = mem_extent,
  .prefetch = mem_prefetch,
  .close = mem_close,
};

static int
mem_open (void *opaque, const char *name, unsigned flags, struct q_file **file, struct q_error *err)
{
  struct mem_store *s = opaque;
  struct mem_file *m = flags & Q_FILE_CREATE ? mem_add (s, name) : mem_find (s, name);
  struct handle *h;

  *file = NULL;
  if (!m) {
    if (err)
      snprintf (err->text, sizeof err->text, "%s: no such file in the store", name);
    return -ENOENT;
  }
  if ((flags & Q_FILE_CREATE) && !m->device)
    mem_resize (m, 0);
  h = xalloc (sizeof *h);
  h->mem = m;
  h->base = (struct q_file){ .ops = &mem_ops,
                             .name = strdup (name),
                             .fd = -1,
                             .holes_are_zero = !m->device,
                             .is_device = m->device };
  if (!h->base.name)
    die ("out of memory");
  *file = &h->base;
  return 0;
}

/* ---- the store ------------------------------------------------------------------------------- */

void
mem_store_init (struct mem_store *s)
{
  *s = (struct mem_store){ .opener = { .open = mem_open, .opaque = s } };
}

void
mem_store_free (struct mem_store *s)
{
  struct mem_file *f;

  while ((f = s->files) != NULL) {
    s->files = f->next;
    pthread_mutex_destroy (&f->lock);
    free (f->name);
    free (f->data);
    free (f);
  }
}

struct mem_file *
mem_find (struct mem_store *s, const char *name)
{
  struct mem_file *f = s->files;

  while (f && strcmp (f->name, name) != 0)
    f = f->next;
  return f;
}

struct mem_file *
mem_add (struct mem_store *s, const char *name)
{
  struct mem_file *f = mem_find (s, name);

  if (f)
    return f;
  f = xalloc (sizeof *f);
  f->name = strdup (name);
  if (!f->name)
    die ("out of memory");
  pthread_mutex_init (&f->lock, NULL);
  f->next = s->files;
  s->files = f;
  return f;
}

/* ---- host files ------------------------------------------------------------------------------ */

void
mem_load (struct mem_file *f, const char *path)
{
  FILE *in = fopen (path, "rb");
  long size;

  if (!in || fseek (in, 0, SEEK_END) != 0 || (size = ftell (in)) < 0 ||
      fseek (in, 0, SEEK_SET) != 0)
    die ("%s: %s", path, strerror (errno));
  f->size = 0;
  mem_resize (f, (uint64_t)size);
  if (fread (f->data, 1, f->size, in) != f->size)
    die ("%s: cannot read: %s", path, strerror (errno));
  fclose (in);
}

void
mem_save (const struct mem_file *f, const char *path)
{
  FILE *out = fopen (path, "wb");

  if (!out || fwrite (f->data, 1, f->size, out) != f->size || fclose (out) != 0)
    die ("%s: %s", path, strerror (errno));
}
