/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A part with an end behaves like a block device of that size: it neither grows nor shrinks, and
 * what was never written in it need not be zeros.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "slice.h"

struct slice_file {
  struct q_file base;
  struct q_file *inner;
  uint64_t offset, size;
};

static struct slice_file *
slice_of (struct q_file *f)
{
  return (struct slice_file *)f;
}

static bool
fits (const struct slice_file *s, uint64_t offset, uint64_t len)
{
  return offset <= s->size && len <= s->size - offset;
}

static int
slice_pread (struct q_file *f, void *buf, size_t len, uint64_t offset)
{
  struct slice_file *s = slice_of (f);
  uint64_t left = offset < s->size ? s->size - offset : 0;
  size_t inside = left < len ? (size_t)left : len;

  memset ((char *)buf + inside, 0, len - inside);
  return inside > 0 ? q_file_pread (s->inner, buf, inside, s->offset + offset) : 0;
}

static int
slice_pwritev (struct q_file *f, const struct iovec *iov, int iovcnt, uint64_t offset)
{
  struct slice_file *s = slice_of (f);
  uint64_t len = 0;

  for (int i = 0; i < iovcnt; i++)
    len += iov[i].iov_len;
  return fits (s, offset, len) ? s->inner->ops->pwritev (s->inner, iov, iovcnt, s->offset + offset)
                               : -ENOSPC;
}

static int
slice_sync (struct q_file *f)
{
  return q_file_sync (slice_of (f)->inner);
}

static int
slice_zero (struct q_file *f, uint64_t offset, uint64_t len, bool unmap)
{
  struct slice_file *s = slice_of (f);
  return fits (s, offset, len) ? q_file_zero (s->inner, s->offset + offset, len, unmap) : -ENOSPC;
}

static int
slice_truncate (struct q_file *f, uint64_t size)
{
  struct slice_file *s = slice_of (f);

  if (!fits (s, size, 0))
    return -ENOSPC;
  return f->is_device ? 0 : q_file_truncate (s->inner, s->offset + size);
}

static int
slice_allocate (struct q_file *f, uint64_t offset, uint64_t len)
{
  struct slice_file *s = slice_of (f);
  return fits (s, offset, len) ? q_file_allocate (s->inner, s->offset + offset, len) : -ENOSPC;
}

static int
slice_size (struct q_file *f, uint64_t *size)
{
  struct slice_file *s = slice_of (f);
  uint64_t inner;
  int r = q_file_size (s->inner, &inner);

  if (r < 0)
    return r;
  *size = inner > s->offset ? inner - s->offset : 0;
  if (*size > s->size)
    *size = s->size;
  return 0;
}

static int
slice_changed (struct q_file *f, int64_t *ns)
{
  return q_file_changed (slice_of (f)->inner, ns);
}

static int
slice_usage (struct q_file *f, uint64_t *bytes)
{
  return q_file_usage (slice_of (f)->inner, bytes);
}

static int
slice_extent (struct q_file *f, uint64_t offset, uint64_t *end, bool *is_hole)
{
  struct slice_file *s = slice_of (f);
  int r = q_file_extent (s->inner, s->offset + offset, end, is_hole);

  if (r == 0) {
    *end = *end > s->offset ? *end - s->offset : 0;
    if (*end > s->size)
      *end = s->size;
  }
  return r;
}

static int
slice_prefetch (struct q_file *f, uint64_t offset, uint64_t len)
{
  struct slice_file *s = slice_of (f);
  return fits (s, offset, len) ? q_file_prefetch (s->inner, s->offset + offset, len) : 0;
}

static int
slice_lock (struct q_file *f, bool write, struct q_error *err)
{
  return q_file_lock (slice_of (f)->inner, write, err);
}

static int
slice_guard (struct q_file *f, bool write, struct q_error *err)
{
  return q_file_guard (slice_of (f)->inner, write, err);
}

static void
slice_close (struct q_file *f)
{
  struct slice_file *s = slice_of (f);

  q_file_close (&s->inner);
  free (s->base.name);
  free (s);
}

static const struct q_file_ops slice_ops = {
  .pread = slice_pread,
  .pwritev = slice_pwritev,
  .sync = slice_sync,
  .zero = slice_zero,
  .truncate = slice_truncate,
  .allocate = slice_allocate,
  .size = slice_size,
  .changed = slice_changed,
  .usage = slice_usage,
  .extent = slice_extent,
  .prefetch = slice_prefetch,
  .lock = slice_lock,
  .guard = slice_guard,
  .close = slice_close,
};

static int
slice_open (void *opaque, const char *name, unsigned flags, struct q_file **file,
            struct q_error *err)
{
  const struct slice *slice = opaque;
  uint64_t inner_size = 0;
  int r = q_file_open_local (NULL, name, flags, file, err);

  if (r < 0 || strcmp (name, slice->filename) != 0)
    return r;
  struct slice_file *s = calloc (1, sizeof *s);
  char *copy = strdup (name);
  r = s && copy ? q_file_size (*file, &inner_size) : -ENOMEM;
  if (r == 0 && (slice->offset > inner_size ||
                 (slice->size != UINT64_MAX && slice->size > inner_size - slice->offset)))
    r = -EINVAL;
  if (r < 0) {
    free (s);
    free (copy);
    q_file_close (file);
    if (r == -EINVAL)
      snprintf (err->text, sizeof err->text,
                "%s: offset %" PRIu64 " and size %" PRIu64 " go past its end, byte %" PRIu64, name,
                slice->offset, slice->size == UINT64_MAX ? 0 : slice->size, inner_size);
    else
      snprintf (err->text, sizeof err->text, "%s: %s", name, strerror (-r));
    return r;
  }
  bool bounded = slice->size != UINT64_MAX || (*file)->is_device;
  *s = (struct slice_file){
    .base = {
      .ops = &slice_ops,
      .name = copy,
      .fd = -1,
      .holes_are_zero = (*file)->holes_are_zero && !bounded,
      .is_device = bounded,
      .dev = (*file)->dev,
      .ino = (*file)->ino + slice->offset, /* parts of one file are told apart */
    },
    .inner = *file,
    .offset = slice->offset,
    .size = slice->size == UINT64_MAX && bounded ? inner_size - slice->offset : slice->size,
  };
  /* No overflow when the two are added up, here or above. */
  if (s->size > INT64_MAX - slice->offset)
    s->size = INT64_MAX - slice->offset;
  *file = &s->base;
  return 0;
}

struct slice *
slice_new (const char *filename, uint64_t offset, uint64_t size)
{
  struct slice *s = malloc (sizeof *s);

  if (!s)
    return NULL;
  *s = (struct slice){ { slice_open, s }, strdup (filename), offset, size };
  if (!s->filename) {
    free (s);
    return NULL;
  }
  return s;
}

void
slice_free (struct slice *s)
{
  if (!s)
    return;
  free (s->filename);
  free (s);
}
