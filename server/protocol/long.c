/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Long writes, taken in piece by piece, so that what one client may have the server hold in memory
 * does not depend on how much it puts into one request.
 *
 * The pieces are requests of their own but for their replies: there is one, when the last of them
 * is done.  Whichever fails fails the whole, and then what is left of it is skipped.  Between two
 * pieces the session looks for a header of one byte, which takes nothing in but begins the next
 * piece: so the limits that hold up new requests hold up pieces as well.  When memory is short,
 * much is long.
 */

#include <assert.h>
#include <errno.h>

#include "request.h"

#define PIECE (4u * 1024 * 1024)

bool
long_write_is (const struct session *s, uint64_t len)
{
  return len > PIECE || (len > LOW_PIECE && !buf_fits (&s->shard->cache, (size_t)len));
}

/* What follows in the input is a header again. */
static void
end_of_payload (struct session *s)
{
  struct request *whole = s->long_write;

  s->long_write = NULL;
  request_expect_header (s);
  long_write_piece_done (whole);
}

/* Nothing of the input is taken: it is the payload's. */
static size_t
begin_piece (struct session *s, const uint8_t *p, size_t n)
{
  struct request *whole = s->long_write, *rq = NULL;
  uint64_t left = whole->len - whole->done, len = left < PIECE ? left : PIECE;

  (void)p;
  (void)n;
  if (long_write_is (s, len))
    len = LOW_PIECE;
  if (whole->error == 0 && !((rq = request_new (s->shard)) && session_keep (s, (size_t)len))) {
    request_free (s->shard, rq);
    whole->error = -ENOMEM;
  }
  if (whole->error < 0) {
    session_skip (s, left);
    end_of_payload (s);
    return 0;
  }
  *rq = *whole;
  rq->whole = whole;
  rq->offset += whole->done;
  rq->len = len;
  rq->done = 0;
  rq->held = buf_memory (s->payload);
  s->held += rq->held;
  s->receiving = rq;
  whole->pieces++;
  whole->done += len;
  if (whole->done == whole->len)
    end_of_payload (s);
  return 0;
}

void
long_write_restore (struct session *s, struct request *whole)
{
  assert (!s->long_write && !s->receiving);
  whole->pieces = 1;
  s->long_write = whole;
  s->header_size = 1;
  s->on_header = begin_piece;
}

bool
long_write_begin (struct session *s, const struct request *rq)
{
  struct request *whole = request_new (s->shard);

  assert (!s->long_write && !s->receiving);
  if (!whole)
    return false;
  *whole = *rq;
  whole->heap = true;
  whole->arrived = s->arrived;
  whole->pieces = 1;
  s->long_write = whole;
  s->header_size = 1;
  s->on_header = begin_piece;
  return true;
}

void
long_write_abandon (struct session *s)
{
  struct request *whole = s->long_write;

  if (s->receiving && s->receiving->whole)
    s->receiving->whole->abandoned = true;
  if (!whole)
    return;
  whole->abandoned = true;
  s->long_write = NULL;
  long_write_piece_done (whole);
}

void
long_write_piece_done (struct request *whole)
{
  assert (whole->pieces > 0);
  if (--whole->pieces > 0)
    return;
  if (whole->abandoned || whole->session->dropped)
    request_discard (whole);
  else
    exec_whole (whole);
}
