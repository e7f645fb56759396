/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The queue of bytes to send.
 *
 * It is made of buffers: those that small replies share, and those of what was read, which come
 * with room for the small replies before them.  So what small replies take is in proportion to
 * their bytes, in whatever order they are made.
 *
 * And it can take a part of what is in them on loan: the place is there, but
 * the bytes still lie in the page cache of an image's file, mapped, and go to the socket from
 * there.  A loan rests on the pin under which its place in the file was found, so it lasts as long
 * as its owner's turn: what has not been sent by then is settled, that is, read into its place.
 * Such memory is never touched but by system calls (window.h says why).
 */

#ifndef OUTQ_H
#define OUTQ_H

#include <stdbool.h>

#include "buf.h"

struct iovec;
struct q_file;

struct loan {
  uint8_t *at; /* its place in the queue */
  size_t len;
  const uint8_t *mem; /* where the bytes are ... */
  struct q_file *file;
  uint64_t host; /* ... and how to get at them otherwise */
};

/* The most loans of one turn; what goes beyond is copied. */
#define MAX_LOANS 512

/* In the order of the queue.  All queues of a thread share one: only one of them has its turn. */
struct loans {
  unsigned first, end;
  struct loan loan[MAX_LOANS];
};

struct outq {
  struct buf *head, *tail;
  struct buf **at_tail; /* what points at the tail, if there is one */
  size_t bytes;         /* not sent yet */
  size_t memory;        /* that the buffers held take */
  struct loans *loans;
};

/* N contiguous bytes at the end of the queue to be written to, or NULL without memory.  Nothing is
 * queued before outq_commit says how many of them are. */
uint8_t *outq_reserve (struct outq *q, struct buf_cache *cache, size_t n);
void outq_commit (struct outq *q, size_t n);
/* Takes the LEN bytes at AT, which is reserved, on loan.  False if there are too many loans. */
bool outq_borrow (struct outq *q, uint8_t *at, size_t len, const void *mem, struct q_file *file,
                  uint64_t host);
/* Forgets the loans made since outq_loans was COUNT: their reservation is not committed. */
unsigned outq_loans (const struct outq *q);
void outq_forget_loans (struct outq *q, unsigned count);
/* Takes B over.  Its bytes before b->start are the queue's to use. */
void outq_append (struct outq *q, struct buf_cache *cache, struct buf *b);
/* Fills IOV with what is to be sent next and returns how many entries of it. */
int outq_iov (const struct outq *q, struct iovec *iov, int max);
/* N bytes were sent. */
void outq_sent (struct outq *q, struct buf_cache *cache, size_t n);
/* Ends all loans by reading what has not been sent into its place.  May wait for a disk.  -errno if
 * the file cannot be read: the queue is then good for nothing but outq_clear. */
int outq_settle (struct outq *q);
void outq_clear (struct outq *q, struct buf_cache *cache);

#endif /* OUTQ_H */
