/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "nbd-file.h"

bool
img_is_nbd (const char *name)
{
  static const char *const schemes[] = { "nbd://",       "nbds://",      "nbd+unix://",
                                         "nbds+unix://", "nbd+vsock://", "nbds+vsock://" };

  for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
    if (strncmp (name, schemes[i], strlen (schemes[i])) == 0)
      return true;
  return false;
}

#ifndef HAVE_LIBNBD

static int
open_nbd (void *opaque, const char *name, unsigned flags, struct q_file **file, struct q_error *err)
{
  if ((flags & Q_FILE_LOCAL) || !img_is_nbd (name))
    return q_file_open_local (opaque, name, flags, file, err);
  *file = NULL;
  snprintf (err->text, sizeof err->text, "%s: this nbdcow-img was built without libnbd", name);
  return -ENOTSUP;
}

#else

#include <libnbd.h>

/* Connections to one export at most: as many as img_for_pieces has threads by default. */
#define MAX_CONNECTIONS 16u

/* What one request moves at most, unless the server wants less. */
#define MAX_REQUEST     (32u << 20)

/* Data goes in requests of about this size, so many of which are under way on a connection. */
#define GRAIN           (256u << 10)
#define DEPTH           16u

#define ALLOCATION "base:allocation"

struct nbd_file {
  struct q_file base;
  uint64_t size;
  uint32_t align; /* offsets and lengths of requests are multiples of it */
  uint32_t max;   /* bytes of data in one request; a multiple of align */
  bool can_zero, can_flush, has_allocation;
  unsigned limit; /* connections that may be made */

  pthread_rwlock_t rmw; /* held alone while part of a block is read, changed and written */
  pthread_mutex_t lock; /* of all below */
  pthread_cond_t freed;
  unsigned made, n_free;
  struct nbd_handle *all[MAX_CONNECTIONS];
  struct nbd_handle *free[MAX_CONNECTIONS];
};

static struct nbd_file *
nbd_of (struct q_file *f)
{
  return (struct nbd_file *)f;
}

static int
last_errno (void)
{
  int e = nbd_get_errno ();

  return e > 0 ? -e : -EIO;
}

/* ---- connections ----------------------------------------------------------------------------- */

static struct nbd_handle *
connect_to (const char *uri)
{
  struct nbd_handle *h = nbd_create ();

  /* A person wrote the URI, so that it may name files with keys. */
  if (h && nbd_add_meta_context (h, ALLOCATION) == 0 &&
      nbd_set_uri_allow_local_file (h, true) == 0 && nbd_connect_uri (h, uri) == 0)
    return h;
  nbd_close (h);
  return NULL;
}

/* A connection that nobody else uses meanwhile. */
static struct nbd_handle *
take_connection (struct nbd_file *f)
{
  struct nbd_handle *h = NULL;

  pthread_mutex_lock (&f->lock);
  while (!h) {
    if (f->n_free > 0) {
      h = f->free[--f->n_free];
      break;
    }
    if (f->made >= f->limit) {
      pthread_cond_wait (&f->freed, &f->lock);
      continue;
    }
    unsigned slot = f->made++;

    pthread_mutex_unlock (&f->lock);
    h = connect_to (f->base.name);
    pthread_mutex_lock (&f->lock);
    f->all[slot] = h;
    if (!h)
      f->limit = slot > 0 ? slot : 1; /* what there is must do; the first one there always is */
  }
  pthread_mutex_unlock (&f->lock);
  return h;
}

static void
give_connection (struct nbd_file *f, struct nbd_handle *h)
{
  pthread_mutex_lock (&f->lock);
  f->free[f->n_free++] = h;
  pthread_cond_signal (&f->freed);
  pthread_mutex_unlock (&f->lock);
}

/* ---- requests -------------------------------------------------------------------------------- */

static bool
is_aligned (const struct nbd_file *f, uint64_t offset, uint64_t len)
{
  return offset % f->align == 0 && len % f->align == 0;
}

/* Requests of one connection that are under way. */
struct flight {
  unsigned n;
  int error; /* the first one's */
};

static int
landed (void *opaque, int *error)
{
  struct flight *flight = opaque;

  flight->n--;
  if (*error && !flight->error)
    flight->error = -*error;
  return 1;
}

/* One direction of what follows: OUT, or to IN. */
static int64_t
launch (struct nbd_handle *h, char *in, const char *out, uint64_t len, uint64_t offset,
        struct flight *flight)
{
  const nbd_completion_callback done = { .callback = landed, .user_data = flight };

  return out ? nbd_aio_pwrite (h, out, len, offset, done, 0)
             : nbd_aio_pread (h, in, len, offset, done, 0);
}

/* Several requests at a time: the server works on one while another is on its way. */
static int
transfer (struct nbd_file *f, char *in, const char *out, uint64_t len, uint64_t offset)
{
  const uint64_t grain = f->align > GRAIN ? f->align : GRAIN / f->align * f->align;
  const uint64_t most = grain < f->max ? grain : f->max;
  struct nbd_handle *h = take_connection (f);
  struct flight flight = { 0 };
  uint64_t at = 0;

  while (flight.n > 0 || (at < len && !flight.error)) {
    const uint64_t n = len - at < most ? len - at : most;

    if (at < len && !flight.error && flight.n < DEPTH) {
      flight.n++;
      if (launch (h, in ? in + at : NULL, out ? out + at : NULL, n, offset + at, &flight) == -1) {
        flight.n--;
        flight.error = last_errno ();
      }
      at += n;
    } else if (nbd_poll (h, -1) == -1 && (nbd_aio_is_dead (h) || nbd_aio_is_closed (h))) {
      /* Nothing is under way any more. */
      flight.error = flight.error ? flight.error : -EIO;
      break;
    }
  }
  give_connection (f, h);
  return flight.error;
}

static int
read_aligned (struct nbd_file *f, char *buf, uint64_t len, uint64_t offset)
{
  return transfer (f, buf, NULL, len, offset);
}

static int
write_aligned (struct nbd_file *f, const char *buf, uint64_t len, uint64_t offset)
{
  return transfer (f, NULL, buf, len, offset);
}

static int
nbd_file_pread (struct q_file *file, void *buf, size_t len, uint64_t offset)
{
  struct nbd_file *f = nbd_of (file);
  uint64_t inside = offset >= f->size ? 0 : f->size - offset < len ? f->size - offset : len;

  memset ((char *)buf + inside, 0, len - inside);
  if (inside == 0)
    return 0;
  if (is_aligned (f, offset, inside))
    return read_aligned (f, buf, inside, offset);

  uint64_t start = offset - offset % f->align;
  uint64_t end = (offset + inside + f->align - 1) / f->align * f->align;
  char *whole = malloc (end - start);
  int r = whole ? read_aligned (f, whole, end - start, start) : -ENOMEM;

  if (r == 0)
    memcpy (buf, whole + (offset - start), inside);
  free (whole);
  return r;
}

/* Puts the vector into one buffer of whole blocks, with what surrounds it read before. */
static int
write_gathered (struct nbd_file *f, const struct iovec *iov, int iovcnt, uint64_t len,
                uint64_t offset)
{
  uint64_t start = offset - offset % f->align;
  uint64_t end = (offset + len + f->align - 1) / f->align * f->align;
  char *whole = malloc (end - start), *p;
  int r = whole ? 0 : -ENOMEM;

  if (r == 0 && start != offset)
    r = read_aligned (f, whole, f->align, start);
  if (r == 0 && end != offset + len)
    r = read_aligned (f, whole + (end - start - f->align), f->align, end - f->align);
  if (r == 0) {
    p = whole + (offset - start);
    for (int i = 0; i < iovcnt; p += iov[i].iov_len, i++)
      memcpy (p, iov[i].iov_base, iov[i].iov_len);
    r = write_aligned (f, whole, end - start, start);
  }
  free (whole);
  return r;
}

static int
nbd_file_pwritev (struct q_file *file, const struct iovec *iov, int iovcnt, uint64_t offset)
{
  struct nbd_file *f = nbd_of (file);
  uint64_t len = 0;
  bool aligned;
  int r;

  for (int i = 0; i < iovcnt; i++)
    len += iov[i].iov_len;
  if (offset > f->size || len > f->size - offset)
    return -ENOSPC;
  if (len == 0)
    return 0;
  aligned = is_aligned (f, offset, len);
  if (aligned)
    pthread_rwlock_rdlock (&f->rmw);
  else
    pthread_rwlock_wrlock (&f->rmw);
  r = aligned && iovcnt == 1 ? write_aligned (f, iov->iov_base, len, offset)
                             : write_gathered (f, iov, iovcnt, len, offset);
  pthread_rwlock_unlock (&f->rmw);
  return r;
}

static int
nbd_file_sync (struct q_file *file)
{
  struct nbd_file *f = nbd_of (file);
  struct nbd_handle *h;
  int r;

  if (!f->can_flush)
    return 0;
  h = take_connection (f);
  r = nbd_flush (h, 0) == -1 ? last_errno () : 0;
  give_connection (f, h);
  return r;
}

static int
nbd_file_zero (struct q_file *file, uint64_t offset, uint64_t len, bool unmap)
{
  struct nbd_file *f = nbd_of (file);
  struct nbd_handle *h;
  int r = 0;

  if (!f->can_zero || !is_aligned (f, offset, len))
    return -ENOTSUP;
  if (offset > f->size || len > f->size - offset)
    return -ENOSPC;
  h = take_connection (f);
  while (r == 0 && len > 0) {
    uint64_t n = len < 1u << 30 ? len : 1u << 30;

    if (nbd_zero (h, n, offset, unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) == -1)
      r = last_errno ();
    offset += n;
    len -= n;
  }
  give_connection (f, h);
  return r;
}

static int
nbd_file_truncate (struct q_file *file, uint64_t size)
{
  return size <= nbd_of (file)->size ? 0 : -ENOSPC;
}

static int
nbd_file_allocate (struct q_file *file, uint64_t offset, uint64_t len)
{
  (void)file, (void)offset, (void)len;
  return -ENOTSUP;
}

static int
nbd_file_size (struct q_file *file, uint64_t *size)
{
  *size = nbd_of (file)->size;
  return 0;
}

struct first_extent {
  uint64_t len, flags;
};

static int
note_extent (void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t n,
             int *error)
{
  struct first_extent *first = opaque;

  (void)offset, (void)error;
  if (strcmp (context, ALLOCATION) == 0 && n >= 2)
    *first = (struct first_extent){ entries[0], entries[1] };
  return 0;
}

static int
nbd_file_extent (struct q_file *file, uint64_t offset, uint64_t *end, bool *is_hole)
{
  struct nbd_file *f = nbd_of (file);
  struct first_extent first = { 0 };
  uint64_t start = offset - offset % f->align;
  uint64_t len = f->size - start;
  struct nbd_handle *h;
  int r;

  if (!f->has_allocation)
    return -ENOTSUP;
  if (offset >= f->size) {
    *is_hole = true;
    *end = f->size;
    return 0;
  }
  /* A request has 32 bits for it. */
  if (len > UINT32_MAX)
    len = UINT32_MAX / f->align * f->align;
  h = take_connection (f);
  r = nbd_block_status (h, len, start,
                        (nbd_extent_callback){ .callback = note_extent, .user_data = &first },
                        0) == -1
          ? last_errno ()
          : 0;
  give_connection (f, h);
  if (r == 0 && first.len <= offset - start)
    r = -EIO;
  *is_hole = first.flags & LIBNBD_STATE_ZERO;
  *end = first.len < f->size - start ? start + first.len : f->size;
  return r;
}

static int
nbd_file_prefetch (struct q_file *file, uint64_t offset, uint64_t len)
{
  (void)file, (void)offset, (void)len;
  return 0;
}

static void
nbd_file_close (struct q_file *file)
{
  struct nbd_file *f = nbd_of (file);

  for (unsigned i = 0; i < f->made; i++)
    if (f->all[i]) {
      nbd_shutdown (f->all[i], 0);
      nbd_close (f->all[i]);
    }
  pthread_rwlock_destroy (&f->rmw);
  pthread_mutex_destroy (&f->lock);
  pthread_cond_destroy (&f->freed);
  free (file->name);
  free (f);
}

static const struct q_file_ops nbd_ops = {
  .pread = nbd_file_pread,
  .pwritev = nbd_file_pwritev,
  .sync = nbd_file_sync,
  .zero = nbd_file_zero,
  .truncate = nbd_file_truncate,
  .allocate = nbd_file_allocate,
  .size = nbd_file_size,
  .usage = nbd_file_size,
  .extent = nbd_file_extent,
  .prefetch = nbd_file_prefetch,
  .close = nbd_file_close,
};

/* ---- opening --------------------------------------------------------------------------------- */

static bool
is_power_of_two (int64_t v)
{
  return v > 0 && (v & (v - 1)) == 0;
}

/* What the server said about the export. */
static int
learn (struct nbd_file *f, struct nbd_handle *h, bool write, struct q_error *err)
{
  int64_t size = nbd_get_size (h), align = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t max = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  if (size < 0) {
    snprintf (err->text, sizeof err->text, "%s: %s", f->base.name, nbd_get_error ());
    return last_errno ();
  }
  if (write && nbd_is_read_only (h) != 0) {
    snprintf (err->text, sizeof err->text, "%s: the server exports it read-only", f->base.name);
    return -EROFS;
  }
  f->align = is_power_of_two (align) && align <= 65536 ? (uint32_t)align : 1;
  f->size = (uint64_t)size / f->align * f->align;
  f->max = max > 0 && max < MAX_REQUEST ? (uint32_t)max / f->align * f->align : MAX_REQUEST;
  if (f->max == 0)
    f->max = f->align;
  f->can_zero = nbd_can_zero (h) == 1;
  f->can_flush = nbd_can_flush (h) == 1;
  f->has_allocation = nbd_can_meta_context (h, ALLOCATION) == 1;
  f->limit = nbd_can_multi_conn (h) == 1 ? MAX_CONNECTIONS : 1;
  return 0;
}

static int
open_nbd (void *opaque, const char *name, unsigned flags, struct q_file **file, struct q_error *err)
{
  struct nbd_file *f;
  struct nbd_handle *h;
  int r = -ENOMEM;

  if ((flags & Q_FILE_LOCAL) || !img_is_nbd (name))
    return q_file_open_local (opaque, name, flags, file, err);
  *file = NULL;
  f = calloc (1, sizeof *f);
  if (!f) {
    snprintf (err->text, sizeof err->text, "%s: out of memory", name);
    return -ENOMEM;
  }
  pthread_rwlock_init (&f->rmw, NULL);
  pthread_mutex_init (&f->lock, NULL);
  pthread_cond_init (&f->freed, NULL);
  f->base.ops = &nbd_ops;
  f->base.fd = -1;
  f->base.is_device = true;
  f->base.name = strdup (name);
  h = f->base.name ? connect_to (name) : NULL;
  if (h) {
    f->all[f->made++] = f->free[f->n_free++] = h;
    r = learn (f, h, flags & Q_FILE_WRITE, err);
  } else {
    r = last_errno ();
    snprintf (err->text, sizeof err->text, "%s: %s", name, nbd_get_error ());
  }
  if (r == 0)
    *file = &f->base;
  else
    nbd_file_close (&f->base);
  return r;
}

#endif /* HAVE_LIBNBD */

const struct q_file_opener img_nbd_opener = { open_nbd, NULL };
