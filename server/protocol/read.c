/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The reply to a READ: where its bytes are (the engine's map), fetching them, and how they go on
 * the wire.  One function for both the loops and the workers: they differ only in whether they
 * wait.
 */

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>

#include "file.h"
#include "request.h"

/* A shorter hole inside other data is sent as zeros: it costs two more headers, and a client that
 * writes what it reads likes blocks. */
#define MIN_HOLE 4096

#define MAX_EXTENTS 16

/* The most that a loop copies for one extent of a reply. */
#define COPY_NOW_MAX (256 * 1024)

static_assert (sizeof (struct nbd_extended_reply) + sizeof (struct nbd_chunk_hole) +
                       sizeof (struct nbd_extended_reply) + sizeof (uint64_t) <=
                   READ_OVERHEAD,
               "a hole and the header of the data after it");
static_assert (READ_OVERHEAD <= MIN_HOLE, "a hole inside makes room for its own headers");
static_assert (sizeof (struct nbd_extended_reply) + sizeof (uint64_t) <= BUF_HEADROOM, "headroom");

/* Reads without waiting for a disk: into BORROWER's loans if it has any to take, or AT.  A page
 * that is not in the cache, the end of the file, or a file without a descriptor: all of that is for
 * a worker to sort out. */
static int
read_now (const struct q_extent *e, uint8_t *at, struct outq *borrower)
{
  int fd = q_file_fd (e->file);
  if (fd < 0 || e->kind != Q_DATA)
    return -EAGAIN;
  if (borrower) {
    const void *mem = q_file_window (e->file, e->host, e->len);
    if (mem && outq_borrow (borrower, at, (size_t)e->len, mem, e->file, e->host))
      return 0;
  }
  if (e->len > COPY_NOW_MAX)
    return -EAGAIN;
  struct iovec iov = { .iov_base = at, .iov_len = (size_t)e->len };
  ssize_t n = preadv2 (fd, &iov, 1, (off_t)e->host, RWF_NOWAIT);
  return n == (ssize_t)e->len ? 0 : -EAGAIN;
}

size_t
read_header_size (const struct request *rq)
{
  if (rq->done > 0 && !read_is_in_pieces (rq))
    return 0; /* it has been sent */
  return chunk_header_size (rq->mode) + (rq->mode == MODE_SIMPLE ? 0 : sizeof (uint64_t));
}

/* The reply while it is being written. */
struct writer {
  const struct request *rq;
  uint8_t *at;        /* where the next byte goes */
  uint8_t *data;      /* header of the chunk of data that is open (if it has one), or NULL */
  uint64_t data_from; /* and the guest offset that it begins at */
};

static void
open_data (struct writer *w, uint64_t offset)
{
  w->data = w->at;
  w->data_from = offset;
  w->at += read_header_size (w->rq);
}

static void
close_data (struct writer *w, uint64_t offset, bool done)
{
  uint8_t *at = w->data;
  bool in_pieces = read_is_in_pieces (w->rq);
  w->data = NULL;
  if (!at || read_header_size (w->rq) == 0)
    return;
  chunk_header (at, w->rq, NBD_REPLY_TYPE_OFFSET_DATA,
                sizeof (uint64_t) + (in_pieces ? offset - w->data_from : w->rq->len),
                done || !in_pieces);
  if (w->rq->mode != MODE_SIMPLE) {
    uint64_t be = htobe64 (w->data_from);
    memcpy (at + chunk_header_size (w->rq->mode), &be, sizeof be);
  }
}

static void
put_hole (struct writer *w, uint64_t offset, uint64_t len, bool done)
{
  struct nbd_chunk_hole hole = { .offset = htobe64 (offset), .length = htobe32 ((uint32_t)len) };
  size_t header = chunk_header_size (w->rq->mode);

  close_data (w, offset, false);
  chunk_header (w->at, w->rq, NBD_REPLY_TYPE_OFFSET_HOLE, sizeof hole, done);
  memcpy (w->at + header, &hole, sizeof hole);
  w->at += header + sizeof hole;
}

ssize_t
read_reply (const struct request *rq, uint64_t offset, uint64_t len, bool last, bool nowait,
            uint8_t *at, uint64_t *error_offset)
{
  struct outq *borrower = nowait && rq->session->may_borrow ? &rq->session->out : NULL;
  unsigned loans = borrower ? outq_loans (borrower) : 0;
  struct writer w = { .rq = rq, .at = at };
  bool holes = read_is_in_pieces (rq);
  uint64_t end = offset + len;
  uint64_t min_hole = len < MIN_HOLE ? len : MIN_HOLE;
  struct q_extent extents[MAX_EXTENTS];
  int r = 0;

  assert (at && (!nowait || rq->session->in_turn));
  while (offset < end) {
    q_pin_t pin = nowait ? 0 : q_pin (); /* without waiting: the turn's */
    int n = q_map (rq->export->img, rq->export->offset + offset, end - offset, extents, MAX_EXTENTS,
                   nowait ? Q_NOWAIT : 0);
    r = n < 0 ? n : 0;
    for (int i = 0; i < n && r == 0; i++) {
      const struct q_extent *e = &extents[i];
      if (e->kind == Q_ZERO && holes && e->len >= min_hole)
        put_hole (&w, offset, e->len, last && offset + e->len == end);
      else {
        if (!w.data)
          open_data (&w, offset);
        if (e->kind == Q_ZERO)
          memset (w.at, 0, e->len);
        else
          r = nowait ? read_now (e, w.at, borrower) : q_read_extent (e, 0, e->len, w.at);
        w.at += e->len;
      }
      if (r == 0)
        offset += e->len;
    }
    if (!nowait)
      q_unpin (pin);
    if (r < 0) {
      if (borrower)
        outq_forget_loans (borrower, loans);
      *error_offset = offset;
      return r;
    }
  }
  close_data (&w, end, last);
  return w.at - at;
}

/* ---- for the ring ---------------------------------------------------------------------------- */

/* Data of files that can be read as they are.  What is to be copied out of the page cache is read
 * by the loop itself, at the end, so there is not to be too much of it. */
bool
read_is_for_ring (const struct q_extent *extents, unsigned n, uint64_t len)
{
  for (unsigned i = 0; i < n; i++) {
    const struct q_extent *e = &extents[i];
    uint32_t align = q_file_ring_align (e->file);
    if (e->kind != Q_DATA || align == 0 || ((e->host | e->len) & (align - 1)) != 0 ||
        (align == 1 && e->len > COPY_NOW_MAX))
      return false;
    len -= e->len;
  }
  return len == 0;
}

uint8_t *
read_put_header (const struct request *rq, struct buf *b, uint64_t offset, uint64_t len, bool last)
{
  struct writer w = { .rq = rq, .at = b->data - read_header_size (rq) };

  b->start = w.at;
  b->end = b->data + len;
  open_data (&w, offset);
  close_data (&w, offset + len, last);
  return b->data;
}
