/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Rehearsing a repair: a file over the image's whose writes stay in memory.
 *
 * A repair is carried out on it, and what it leaves is checked; only then are the same writes and
 * syncs, in the same order, done to the image.  A repair that would make an image worse is thus
 * found out before a byte is changed, and a dry run is a rehearsal without a performance.
 */

#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "check.h"

#define PAGE 4096u

/* Changes are told to the journal in runs of words of this size. */
#define WORD     8u
#define MAX_TOLD 4096u /* bytes at a time */

/* What a rehearsal may hold in memory. */
#define MAX_HELD (1ull << 30)

struct page {
  uint64_t index; /* plus one: 0 is an empty slot */
  uint8_t *data;
};

enum act { WRITE, TRUNCATE, SYNC };

struct step {
  enum act act;
  uint64_t offset, len; /* TRUNCATE: len is the size */
  uint8_t *data;
};

struct rehearsal {
  struct q_file base;
  struct q_file *inner;
  uint64_t size;
  struct page *page; /* a hash table, at most half full */
  uint64_t n_pages, slots;
  struct step *step;
  size_t n_steps, allocated;
  uint64_t held;
};

static struct rehearsal *
rehearsal_of (struct q_file *f)
{
  return (struct rehearsal *)f;
}

/* ---- pages ----------------------------------------------------------------------------------- */

static struct page *
find (const struct rehearsal *h, uint64_t index)
{
  uint64_t at = (index * 0x9e3779b97f4a7c15u >> 20) & (h->slots - 1);

  while (h->page[at].index != 0 && h->page[at].index != index + 1)
    at = (at + 1) & (h->slots - 1);
  return &h->page[at];
}

static int
reserve (struct rehearsal *h)
{
  struct page *old = h->page;
  uint64_t slots = h->slots;

  if (2 * (h->n_pages + 1) <= slots)
    return 0;
  h->slots = slots ? 2 * slots : 1024;
  h->page = calloc (h->slots, sizeof *h->page);
  if (!h->page) {
    h->page = old;
    h->slots = slots;
    return -ENOMEM;
  }
  for (uint64_t i = 0; i < slots; i++)
    if (old[i].index)
      *find (h, old[i].index - 1) = old[i];
  free (old);
  return 0;
}

/* The page, with what the file has if it is new. */
static int
take_page (struct rehearsal *h, uint64_t index, uint8_t **data)
{
  struct page *p;
  int r = reserve (h);

  if (r < 0)
    return r;
  p = find (h, index);
  if (!p->index) {
    p->data = malloc (PAGE);
    r = p->data ? q_file_pread (h->inner, p->data, PAGE, index * PAGE) : -ENOMEM;
    if (r < 0) {
      free (p->data);
      p->data = NULL;
      return r;
    }
    p->index = index + 1;
    h->n_pages++;
    h->held += PAGE;
  }
  *data = p->data;
  return 0;
}

/* ---- the file -------------------------------------------------------------------------------- */

static int
rehearsal_pread (struct q_file *f, void *buf, size_t len, uint64_t offset)
{
  struct rehearsal *h = rehearsal_of (f);
  int r = q_file_pread (h->inner, buf, len, offset);

  for (uint64_t at = offset, n; r == 0 && h->slots && at < offset + len; at += n) {
    const struct page *p = find (h, at / PAGE);

    n = q_min (PAGE - at % PAGE, offset + len - at);
    if (p->index)
      memcpy ((uint8_t *)buf + (at - offset), p->data + at % PAGE, n);
  }
  return r;
}

/* Takes DATA over. */
static int
note_step (struct rehearsal *h, enum act act, uint64_t offset, uint64_t len, uint8_t *data)
{
  if (h->n_steps == h->allocated) {
    size_t more = h->allocated ? 2 * h->allocated : 64;
    struct step *s = reallocarray (h->step, more, sizeof *s);

    if (!s) {
      free (data);
      return -ENOMEM;
    }
    h->step = s;
    h->allocated = more;
  }
  h->step[h->n_steps++] = (struct step){ act, offset, len, data };
  h->held += data ? len : 0;
  return h->held > MAX_HELD ? -ENOMEM : 0;
}

static int
rehearsal_pwritev (struct q_file *f, const struct iovec *iov, int iovcnt, uint64_t offset)
{
  struct rehearsal *h = rehearsal_of (f);
  uint64_t len = 0, done = 0;
  uint8_t *data;
  int r = 0;

  for (int i = 0; i < iovcnt; i++)
    len += iov[i].iov_len;
  data = malloc (len ? len : 1);
  if (!data)
    return -ENOMEM;
  for (int i = 0; i < iovcnt; i++) {
    memcpy (data + done, iov[i].iov_base, iov[i].iov_len);
    done += iov[i].iov_len;
  }
  for (uint64_t at = 0, n; r == 0 && at < len; at += n) {
    uint8_t *page;

    n = q_min (PAGE - (offset + at) % PAGE, len - at);
    r = take_page (h, (offset + at) / PAGE, &page);
    if (r == 0)
      memcpy (page + (offset + at) % PAGE, data + at, n);
  }
  if (h->size < offset + len && !h->base.is_device)
    h->size = offset + len;
  if (r < 0) {
    free (data);
    return r;
  }
  return note_step (h, WRITE, offset, len, data);
}

static int
rehearsal_sync (struct q_file *f)
{
  return note_step (rehearsal_of (f), SYNC, 0, 0, NULL);
}

static int
rehearsal_truncate (struct q_file *f, uint64_t size)
{
  rehearsal_of (f)->size = size;
  return note_step (rehearsal_of (f), TRUNCATE, 0, size, NULL);
}

static int
rehearsal_zero (struct q_file *f, uint64_t offset, uint64_t len, bool unmap)
{
  (void)f, (void)offset, (void)len, (void)unmap;
  return -ENOTSUP;
}

static int
rehearsal_allocate (struct q_file *f, uint64_t offset, uint64_t len)
{
  (void)f, (void)offset, (void)len;
  return -ENOTSUP;
}

static int
rehearsal_size (struct q_file *f, uint64_t *size)
{
  *size = rehearsal_of (f)->size;
  return 0;
}

static int
rehearsal_usage (struct q_file *f, uint64_t *bytes)
{
  return q_file_usage (rehearsal_of (f)->inner, bytes);
}

static int
rehearsal_extent (struct q_file *f, uint64_t offset, uint64_t *end, bool *is_hole)
{
  (void)f, (void)offset, (void)end, (void)is_hole;
  return -ENOTSUP;
}

static int
rehearsal_prefetch (struct q_file *f, uint64_t offset, uint64_t len)
{
  (void)f, (void)offset, (void)len;
  return 0;
}

static void
rehearsal_close (struct q_file *f)
{
  struct rehearsal *h = rehearsal_of (f);

  for (uint64_t i = 0; i < h->slots; i++)
    free (h->page[i].data);
  for (size_t i = 0; i < h->n_steps; i++)
    free (h->step[i].data);
  free (h->page);
  free (h->step);
  free (h);
}

static const struct q_file_ops rehearsal_ops = {
  .pread = rehearsal_pread,
  .pwritev = rehearsal_pwritev,
  .sync = rehearsal_sync,
  .zero = rehearsal_zero,
  .truncate = rehearsal_truncate,
  .allocate = rehearsal_allocate,
  .size = rehearsal_size,
  .usage = rehearsal_usage,
  .extent = rehearsal_extent,
  .prefetch = rehearsal_prefetch,
  .close = rehearsal_close,
};

int
q_rehearsal_open (struct q_file *inner, struct q_file **f)
{
  struct rehearsal *h = calloc (1, sizeof *h);
  int r = h ? q_file_size (inner, &h->size) : -ENOMEM;

  *f = NULL;
  if (r < 0) {
    free (h);
    return r;
  }
  h->base.ops = &rehearsal_ops;
  h->base.name = inner->name;
  h->base.fd = -1;
  h->base.holes_are_zero = inner->holes_are_zero;
  h->base.is_device = inner->is_device;
  h->inner = inner;
  *f = &h->base;
  return 0;
}

/* ---- the performance ------------------------------------------------------------------------- */

static int
tell (const struct step *s, const uint8_t *before, const struct q_check_options *o)
{
  int r = 0;

  for (uint64_t at = 0, end; r == 0 && at < s->len; at = end) {
    end = q_min (at + WORD, s->len);
    if (memcmp (before + at, s->data + at, end - at) == 0)
      continue;
    while (end < s->len && end - at < MAX_TOLD &&
           memcmp (before + end, s->data + end, q_min (WORD, s->len - end)) != 0)
      end = q_min (end + WORD, s->len);
    r = o->journal (o->opaque, s->offset + at, before + at, s->data + at, end - at);
  }
  return r < 0 ? r : o->journal (o->opaque, 0, NULL, NULL, 0);
}

/* The bytes before come from the file itself: with a dry run, from what the steps before left. */
static int
tell_write (struct q_file *f, const struct step *s, const struct q_check_options *o)
{
  uint8_t *before = malloc (s->len ? s->len : 1);
  int r = before ? q_file_pread (f, before, s->len, s->offset) : -ENOMEM;

  if (r == 0)
    r = tell (s, before, o);
  free (before);
  return r;
}

int
q_rehearsal_perform (struct q_file *f, const struct q_check_options *o)
{
  struct rehearsal *h = rehearsal_of (f);
  struct q_file *shown = NULL; /* a dry run's own image of what it would have written */
  int r = o->dry_run && o->journal ? q_rehearsal_open (h->inner, &shown) : 0;

  for (size_t i = 0; r == 0 && i < h->n_steps; i++) {
    const struct step *s = &h->step[i];

    if (s->act == WRITE && o->journal)
      r = tell_write (shown ? shown : h->inner, s, o);
    if (r < 0 || (o->dry_run && !shown))
      continue;

    struct q_file *to = shown ? shown : h->inner;

    r = s->act == WRITE      ? q_file_pwrite (to, s->data, s->len, s->offset)
        : s->act == TRUNCATE ? q_file_truncate (to, s->len)
                             : q_file_sync (to);
  }
  q_file_close (&shown);
  return r;
}
