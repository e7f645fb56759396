/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One request of the transmission phase, from its header to its reply.
 *
 *     request.c   parses and checks it; nothing past there is malformed or out of range
 *     long.c      takes a long WRITE in in pieces
 *     exec.c      does it: inline, or by way of the worker pool
 *     reply.c     encodes the answer
 */

#ifndef REQUEST_H
#define REQUEST_H

#include "ring.h"
#include "session.h"

struct request {
  struct job job; /* must be first */
  struct session *session;
  struct export *export;
  enum reply_mode mode;
  bool heap; /* from request_new, not on a stack */
  uint16_t type, flags;
  uint64_t cookie, offset, len;
  uint64_t contexts; /* BLOCK_STATUS: which to answer for */

  uint64_t
      waited_since; /* room.h: when it first met a full disk, if it is to wait; 0: it has not */
  uint64_t arrived; /* stats.h; 0: it is answered in the turn that it came in */

  uint64_t done;         /* of len: written inline, or read and queued */
  struct buf *payload;   /* WRITE: the data; BLOCK_STATUS: the filter */
  uint64_t piece;        /* READ: how much of it is in OUT, or about to be; BLOCK_STATUS: the
                            most descriptors of a context */
  struct buf *out;       /* the reply (or the next piece of it), if it is more than success */
  size_t held;           /* what this counts for in session.held */
  struct request *whole; /* the long WRITE that this is a piece of */
  unsigned pieces;       /* of a long WRITE: those under way, and one while more are to come */
  bool abandoned;        /* a long WRITE that will never be complete */
  struct ring_job ring;  /* while the ring reads it ... */
  q_pin_t pin;           /* ... under this pin */
  int error;             /* -errno, 0 on success */
  uint64_t error_offset;
};

/* The next bytes of input are a request's header. */
void request_expect_header (struct session *s);
struct request *request_new (struct shard *shard);
void request_free (struct shard *shard, struct request *rq);
/* Frees a request that needs no more, with what it holds; of a piece, tells the whole. */
void request_discard (struct request *rq);

/* ---- long.c ---------------------------------------------------------------------------------- */

/* Whether a WRITE of LEN bytes is to be taken in in pieces. */
bool long_write_is (const struct session *s, uint64_t len);
/* Takes in RQ, on the stack: false without memory. */
bool long_write_begin (struct session *s, const struct request *rq);
/* Goes on with WHOLE, of which whole->done bytes have been carried out. */
void long_write_restore (struct session *s, struct request *whole);
/* The rest of it will not come. */
void long_write_abandon (struct session *s);
/* A piece of WHOLE is done with. */
void long_write_piece_done (struct request *whole);

/* Whether the answer to RQ, a READ, is made of pieces that each say what they are.  Otherwise it
 * has one header, after which nothing else may be sent, errors included, before the last of its
 * bytes. */
static inline bool
read_is_in_pieces (const struct request *rq)
{
  return rq->mode != MODE_SIMPLE && !(rq->flags & NBD_CMD_FLAG_DF);
}

/* ---- exec.c ---------------------------------------------------------------------------------- */

/* Carries RQ out.  If rq->heap, RQ is taken over; if not, it is copied should it outlive the call.
 * PAYLOAD is the data of a WRITE that lies in a receive buffer and not in rq->payload. */
void exec_request (struct request *rq, const uint8_t *payload);
/* WHOLE, a long WRITE, has had all its pieces carried out, or one of them failed. */
void exec_whole (struct request *whole);
/* RQ, on the stack, whose PAYLOAD is in the receive buffer, has been written together with others,
 * or failed to be with R. */
void exec_merged (struct request *rq, const uint8_t *payload, int r);
/* On the shard's thread: the pool is done with RQ. */
void exec_completed (struct request *rq);
/* Goes on with a parked read. */
void exec_resume (struct request *rq);

/* ---- reply.c --------------------------------------------------------------------------------- */

/* Success without a payload, and failure.  ERROR is a (negative or positive) errno; FMT is the text
 * for the user, sent in the modes that have room for one. */
void reply_ok (struct session *s, const struct request *rq);
void reply_error (struct session *s, const struct request *rq, int error, const char *fmt, ...)
    __attribute__ ((format (printf, 4, 5)));
/* The failure of a READ that has already sent part of its reply, or knows where it failed. */
void reply_read_error (struct session *s, const struct request *rq, int error, uint64_t offset);

/* Encoding into a buffer that the caller sends.  A reply's header: in simple mode the only one. */
size_t chunk_header_size (enum reply_mode mode);
/* Puts a header for PAYLOAD bytes of payload at AT. */
void chunk_header (uint8_t *at, const struct request *rq, enum nbd_reply_type type,
                   uint64_t payload, bool done);

/* ---- read.c ---------------------------------------------------------------------------------- */

/* The most that read_reply writes beyond the bytes that are read. */
#define READ_OVERHEAD 96

/* Reads LEN bytes at OFFSET, part of RQ (all of it, unless it is too long for one piece; LAST says
 * that nothing comes after it), and writes the reply's bytes to AT: headers, data and holes.  With
 * NOWAIT, in the session's turn, it never blocks but returns -EAGAIN, and may leave data on loan
 * to the session's queue, in which AT is reserved.  Returns how many bytes were written or -errno,
 * with *ERROR_OFFSET where. */
ssize_t read_reply (const struct request *rq, uint64_t offset, uint64_t len, bool last, bool nowait,
                    uint8_t *at, uint64_t *error_offset);
/* Whether the N extents, a map of LEN bytes, can be read by the ring. */
bool read_is_for_ring (const struct q_extent *extents, unsigned n, uint64_t len);
/* Puts the header of a reply of LEN bytes of data before the payload area of B, whose bytes are to
 * be read to where it returns. */
uint8_t *read_put_header (const struct request *rq, struct buf *b, uint64_t offset, uint64_t len,
                          bool last);
/* The size of what precedes the first byte of data of the next piece. */
size_t read_header_size (const struct request *rq);

#endif /* REQUEST_H */
