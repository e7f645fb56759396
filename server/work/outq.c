/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <string.h>
#include <sys/uio.h>

#include "file.h"
#include "outq.h"

/* Small replies share a buffer of this size; of the other one when memory is short. */
#define OUTQ_BUF_SIZE     (64 * 1024)
#define OUTQ_BUF_SIZE_LOW BUF_PAGE

static size_t
room (const struct buf *b)
{
  return (size_t)(b->data + b->cap - b->end);
}

static void
link_buf (struct outq *q, struct buf *b)
{
  b->next = NULL;
  q->at_tail = q->tail ? &q->tail->next : &q->head;
  *q->at_tail = b;
  q->tail = b;
  q->memory += buf_memory (b);
}

uint8_t *
outq_reserve (struct outq *q, struct buf_cache *cache, size_t n)
{
  if (!q->tail || room (q->tail) < n) {
    size_t size = buf_fits (cache, OUTQ_BUF_SIZE) ? OUTQ_BUF_SIZE : OUTQ_BUF_SIZE_LOW;
    struct buf *b = buf_alloc (cache, n > size + BUF_HEADROOM ? n - BUF_HEADROOM : size);
    if (!b)
      return NULL;
    b->start = b->end = b->data - BUF_HEADROOM;
    link_buf (q, b);
  }
  return q->tail->end;
}

void
outq_commit (struct outq *q, size_t n)
{
  assert (n <= room (q->tail));
  q->tail->end += n;
  q->bytes += n;
}

/* ---- loans ----------------------------------------------------------------------------------- */

bool
outq_borrow (struct outq *q, uint8_t *at, size_t len, const void *mem, struct q_file *file,
             uint64_t host)
{
  struct loans *l = q->loans;

  if (l->end == MAX_LOANS)
    return false;
  l->loan[l->end++] = (struct loan){ at, len, mem, file, host };
  return true;
}

unsigned
outq_loans (const struct outq *q)
{
  return q->loans->end;
}

void
outq_forget_loans (struct outq *q, unsigned count)
{
  q->loans->end = count;
}

/* The first loan, if it lies in what is left of B. */
static const struct loan *
loan_in (const struct loans *l, unsigned i, const struct buf *b)
{
  return i < l->end && l->loan[i].at >= b->data - BUF_HEADROOM && l->loan[i].at < b->end
             ? &l->loan[i]
             : NULL;
}

/* What lies before B->start, or in B altogether if nothing is left of it, has been sent. */
static void
repay (struct outq *q, const struct buf *b)
{
  struct loans *l = q->loans;
  const struct loan *i;

  while ((i = loan_in (l, l->first, b)) != NULL && i->at + i->len <= b->start)
    l->first++;
  if (l->first == l->end)
    l->first = l->end = 0;
}

int
outq_settle (struct outq *q)
{
  struct loans *l = q->loans;
  int r = 0;

  for (; r == 0 && l->first < l->end; l->first++) {
    const struct loan *i = &l->loan[l->first];
    size_t sent = loan_in (l, l->first, q->head) && i->at < q->head->start
                      ? (size_t)(q->head->start - i->at)
                      : 0;
    r = q_file_pread (i->file, i->at + sent, i->len - sent, i->host + sent);
  }
  l->first = l->end = 0;
  return r;
}

/* ---- buffers of others ----------------------------------------------------------------------- */

/* The small replies at the end of the queue go into B's headroom: each time one is followed by what
 * was read, it would keep a buffer for itself otherwise.  Not what is on loan: its place is fixed.
 */
static void
move_tail (struct outq *q, struct buf_cache *cache, struct buf *b)
{
  struct buf *t = q->tail;
  const struct loans *l = q->loans;
  size_t n = t ? (size_t)(t->end - t->start) : 0;

  if (!t || n > (size_t)(b->start - (b->data - BUF_HEADROOM)) ||
      (l->end > 0 && loan_in (l, l->end - 1, t)))
    return;
  b->start -= n;
  memcpy (b->start, t->start, n);
  b->next = NULL;
  *q->at_tail = b;
  q->tail = b;
  q->memory += buf_memory (b);
  q->memory -= buf_memory (t);
  q->bytes -= n;
  buf_free (cache, t);
}

void
outq_append (struct outq *q, struct buf_cache *cache, struct buf *b)
{
  move_tail (q, cache, b);
  if (q->tail != b)
    link_buf (q, b);
  q->bytes += (size_t)(b->end - b->start);
}

/* ---- sending --------------------------------------------------------------------------------- */

static void
add_iov (struct iovec *iov, int *n, int max, const void *p, size_t len)
{
  if (*n < max && len > 0)
    iov[(*n)++] = (struct iovec){ (void *)p, len };
}

int
outq_iov (const struct outq *q, struct iovec *iov, int max)
{
  const struct loans *l = q->loans;
  unsigned next = l->first;
  int n = 0;

  for (const struct buf *b = q->head; b && n < max; b = b->next) {
    const uint8_t *p = b->start;
    const struct loan *i;
    for (; n < max && (i = loan_in (l, next, b)) != NULL; next++) {
      size_t sent = 0;
      if (p < i->at)
        add_iov (iov, &n, max, p, (size_t)(i->at - p));
      else
        sent = (size_t)(p - i->at);
      add_iov (iov, &n, max, i->mem + sent, i->len - sent);
      p = i->at + i->len;
    }
    if (p < b->end)
      add_iov (iov, &n, max, p, (size_t)(b->end - p));
  }
  return n;
}

void
outq_sent (struct outq *q, struct buf_cache *cache, size_t n)
{
  assert (n <= q->bytes);
  q->bytes -= n;
  while (q->head) {
    struct buf *b = q->head;
    size_t here = (size_t)(b->end - b->start);
    size_t take = n < here ? n : here;
    b->start += take;
    n -= take;
    repay (q, b);
    if (take < here)
      return;
    q->head = b->next;
    if (!q->head)
      q->tail = NULL;
    else if (q->head == q->tail)
      q->at_tail = &q->head;
    q->memory -= buf_memory (b);
    buf_free (cache, b);
  }
}

void
outq_clear (struct outq *q, struct buf_cache *cache)
{
  outq_sent (q, cache, q->bytes);
}
