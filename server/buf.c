/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "buf.h"

#define PAGE 4096

/* Small replies share a buffer of this size. */
#define OUTQ_BUF_SIZE (64 * 1024)

/* A thread that served a burst of large requests does not keep more than this for the next one. */
#define CACHE_MAX_BYTES (16u * 1024 * 1024)

/* From this size on, memory comes from mmap. */
#define MMAP_MIN (256 * 1024)

static_assert (sizeof (struct buf) + BUF_HEADROOM <= PAGE, "headroom lies in the first page");

static unsigned
size_class (size_t size)
{
  unsigned shift = BUF_MIN_SHIFT;
  while (shift <= BUF_MAX_SHIFT && ((size_t)1 << shift) < size)
    shift++;
  return shift;
}

/* Memory for a burst of large requests goes back to the system when the burst is over, and not, as
 * free would have it, when the last chunk of its heap does. */
static struct buf *
obtain (size_t size)
{
  void *p;

  if (size > SIZE_MAX - PAGE)
    return NULL;
  if (size >= MMAP_MIN) {
    p = mmap (NULL, PAGE + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
      return NULL;
  } else if (posix_memalign (&p, PAGE, PAGE + size) != 0)
    return NULL;
  struct buf *b = p;
  b->data = (uint8_t *)p + PAGE;
  b->cap = size;
  return b;
}

static void
give_back (struct buf *b)
{
  if (b->cap >= MMAP_MIN)
    munmap (b, PAGE + b->cap);
  else
    free (b);
}

struct buf *
buf_alloc (struct buf_cache *cache, size_t size)
{
  unsigned shift = size_class (size);
  struct buf *b = NULL;

  if (shift <= BUF_MAX_SHIFT) {
    size = (size_t)1 << shift;
    if (cache && (b = cache->free[shift - BUF_MIN_SHIFT]) != NULL) {
      cache->free[shift - BUF_MIN_SHIFT] = b->next;
      cache->bytes -= b->cap;
    }
  }
  if (!b) {
    b = obtain (size);
    if (!b)
      return NULL;
  }
  b->counted = cache != NULL;
  if (cache)
    cache->outstanding += b->cap;
  b->next = NULL;
  b->start = b->end = b->data;
  return b;
}

void
buf_free (struct buf_cache *cache, struct buf *b)
{
  if (!b)
    return;
  unsigned shift = size_class (b->cap);
  if (b->counted)
    cache->outstanding -= b->cap;
  if (cache && shift <= BUF_MAX_SHIFT && cache->bytes + b->cap <= CACHE_MAX_BYTES) {
    b->next = cache->free[shift - BUF_MIN_SHIFT];
    cache->free[shift - BUF_MIN_SHIFT] = b;
    cache->bytes += b->cap;
    return;
  }
  give_back (b);
}

void
buf_cache_destroy (struct buf_cache *cache)
{
  for (unsigned i = 0; i < sizeof cache->free / sizeof cache->free[0]; i++) {
    struct buf *b;
    while ((b = cache->free[i]) != NULL) {
      cache->free[i] = b->next;
      give_back (b);
    }
  }
  cache->bytes = 0;
}

static size_t
room (const struct buf *b)
{
  return (size_t)(b->data + b->cap - b->end);
}

static void
link_buf (struct outq *q, struct buf *b)
{
  b->next = NULL;
  if (q->tail)
    q->tail->next = b;
  else
    q->head = b;
  q->tail = b;
  q->memory += b->cap;
}

uint8_t *
outq_reserve (struct outq *q, struct buf_cache *cache, size_t n)
{
  if (!q->tail || room (q->tail) < n) {
    struct buf *b = buf_alloc (cache, n > OUTQ_BUF_SIZE ? n : OUTQ_BUF_SIZE);
    if (!b)
      return NULL;
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

void
outq_append (struct outq *q, struct buf *b)
{
  link_buf (q, b);
  q->bytes += (size_t)(b->end - b->start);
}

int
outq_iov (const struct outq *q, struct iovec *iov, int max)
{
  int n = 0;
  for (const struct buf *b = q->head; b && n < max; b = b->next) {
    if (b->end == b->start)
      continue; /* reserved, not committed */
    iov[n].iov_base = b->start;
    iov[n].iov_len = (size_t)(b->end - b->start);
    n++;
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
    if (n < here) {
      b->start += n;
      return;
    }
    n -= here;
    q->head = b->next;
    if (!q->head)
      q->tail = NULL;
    q->memory -= b->cap;
    buf_free (cache, b);
  }
}

void
outq_clear (struct outq *q, struct buf_cache *cache)
{
  outq_sent (q, cache, q->bytes);
}
