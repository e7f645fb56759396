/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Buffers for what is received and what is sent.
 *
 * A buffer's payload begins on a page boundary, which O_DIRECT wants and copies like, with
 * BUF_HEADROOM bytes before it, the rest of the page that the buffer itself is in: a reply's header
 * goes there, so that header and payload are one piece, and the small replies before it.
 *
 * Each loop keeps a cache of freed buffers.  A cache belongs to one thread and takes no lock;
 * another thread passes NULL for it.  A buffer may be freed into another cache than the one it came
 * from.
 *
 * A cache counts what is out of it, and has a limit for that.  Nothing is refused: whoever is about
 * to allocate asks buf_fits, and makes do with little if the answer is no.  So what is outstanding
 * passes the limit by no more than that little, for each that makes do.
 */

#ifndef BUF_H
#define BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
  struct buf *next;
  uint8_t *data; /* the payload area: cap bytes, page-aligned */
  size_t cap;
  bool counted;         /* in the outstanding bytes of a cache */
  uint8_t *start, *end; /* the bytes in use, from data - BUF_HEADROOM to data + cap */
};

#define BUF_PAGE     4096
#define BUF_HEADROOM (BUF_PAGE - sizeof (struct buf))

/* Sizes are rounded up to powers of two from 4 KiB to 32 MiB; larger ones are made to measure and
 * never cached. */
#define BUF_MIN_SHIFT 12
#define BUF_MAX_SHIFT 25

struct buf_cache {
  struct buf *free[BUF_MAX_SHIFT - BUF_MIN_SHIFT + 1];
  unsigned n[BUF_MAX_SHIFT - BUF_MIN_SHIFT + 1]; /* in free[] */
  size_t bytes;                                  /* held in free[] */
  size_t outstanding;                            /* memory allocated here and not freed yet */
  size_t limit;                                  /* of that */
};

/* The memory that B takes: with the page before its payload; and one of SIZE bytes would take. */
size_t buf_memory (const struct buf *b);
size_t buf_memory_for (size_t size);
/* Whether one more buffer of SIZE bytes, or so much memory of another kind, is within the limit. */
bool buf_fits (const struct buf_cache *cache, size_t size);

/* An empty buffer (start = end = data) with at least SIZE bytes, or NULL without memory. */
struct buf *buf_alloc (struct buf_cache *cache, size_t size);
void buf_free (struct buf_cache *cache, struct buf *b); /* NULL is fine */
void buf_cache_destroy (struct buf_cache *cache);

#endif /* BUF_H */
