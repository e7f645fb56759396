/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "buf.h"

/* A thread that served a burst of large requests does not keep more than this for the next one. */
#define CACHE_MAX_BYTES (16u * 1024 * 1024)

/* From this size on, memory comes from mmap.  The queues of a crowd are of such buffers. */
#define MMAP_MIN (64 * 1024)

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

  if (size > SIZE_MAX - BUF_PAGE)
    return NULL;
  if (size >= MMAP_MIN) {
    p = mmap (NULL, BUF_PAGE + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
      return NULL;
  } else if (posix_memalign (&p, BUF_PAGE, BUF_PAGE + size) != 0)
    return NULL;
  struct buf *b = p;
  b->data = (uint8_t *)p + BUF_PAGE;
  b->cap = size;
  return b;
}

/* False if the system does not take it, since there would be one mapping too many where now is one:
 * then it has at least the pages of it. */
static bool
give_back (struct buf *b)
{
  if (b->cap < MMAP_MIN)
    free (b);
  else if (munmap (b, BUF_PAGE + b->cap) < 0) {
    madvise (b->data, b->cap, MADV_DONTNEED);
    return false;
  }
  return true;
}

size_t
buf_memory (const struct buf *b)
{
  return BUF_PAGE + b->cap;
}

size_t
buf_memory_for (size_t size)
{
  unsigned shift = size_class (size);

  return BUF_PAGE + (shift <= BUF_MAX_SHIFT ? (size_t)1 << shift : size);
}

bool
buf_fits (const struct buf_cache *cache, size_t size)
{
  size_t left = cache->outstanding < cache->limit ? cache->limit - cache->outstanding : 0;

  return size <= left && buf_memory_for (size) <= left;
}

static size_t
kept (const struct buf_cache *cache, unsigned shift)
{
  return (size_t)cache->n[shift - BUF_MIN_SHIFT] << shift;
}

static void
keep (struct buf_cache *cache, struct buf *b, unsigned shift)
{
  b->next = cache->free[shift - BUF_MIN_SHIFT];
  cache->free[shift - BUF_MIN_SHIFT] = b;
  cache->n[shift - BUF_MIN_SHIFT]++;
  cache->bytes += b->cap;
}

/* The one of that class that was kept last, or NULL. */
static struct buf *
take_kept (struct buf_cache *cache, unsigned shift)
{
  struct buf *b = cache->free[shift - BUF_MIN_SHIFT];

  if (b) {
    cache->free[shift - BUF_MIN_SHIFT] = b->next;
    cache->n[shift - BUF_MIN_SHIFT]--;
    cache->bytes -= b->cap;
  }
  return b;
}

/* Whether one more of class SHIFT can be kept.  The class that has the most kept makes room for it,
 * so that what one burst has left does not keep out what the next one needs, and those that are
 * needed at the same time come to have equal shares. */
static bool
make_room (struct buf_cache *cache, unsigned shift)
{
  const size_t size = (size_t)1 << shift;

  while (cache->bytes + size > CACHE_MAX_BYTES) {
    unsigned most = BUF_MIN_SHIFT;

    for (unsigned i = most + 1; i <= BUF_MAX_SHIFT; i++)
      if (kept (cache, i) > kept (cache, most))
        most = i;
    if (kept (cache, shift) + size > kept (cache, most))
      return false;
    struct buf *b = take_kept (cache, most);
    if (!give_back (b)) {
      keep (cache, b, most);
      return false;
    }
  }
  return true;
}

struct buf *
buf_alloc (struct buf_cache *cache, size_t size)
{
  unsigned shift = size_class (size);
  struct buf *b = NULL;

  if (shift <= BUF_MAX_SHIFT) {
    size = (size_t)1 << shift;
    if (cache)
      b = take_kept (cache, shift);
  }
  if (!b) {
    b = obtain (size);
    if (!b)
      return NULL;
  }
  b->counted = cache != NULL;
  if (cache)
    cache->outstanding += buf_memory (b);
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
    cache->outstanding -= buf_memory (b);
  bool for_cache = cache && shift <= BUF_MAX_SHIFT;
  if ((for_cache && make_room (cache, shift)) || (!give_back (b) && for_cache))
    keep (cache, b, shift);
}

void
buf_cache_destroy (struct buf_cache *cache)
{
  struct buf *b;

  for (unsigned i = BUF_MIN_SHIFT; i <= BUF_MAX_SHIFT; i++)
    while ((b = take_kept (cache, i)) != NULL)
      give_back (b);
}
