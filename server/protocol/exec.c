/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How a request gets done.
 *
 * Inline, on the loop: what the engine can map without waiting and the page cache answers without
 * waiting.  Everything else on the worker pool, through the engine's blocking calls.  This file is
 * where that choice is made.
 */

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "file.h"
#include "log.h"
#include "merge.h"
#include "quantum.h"
#include "request.h"
#include "room.h"
#include "spread.h"
#include "status.h"

/* The most that a loop moves for one request before it looks after its other clients: more, if it
 * is only moved once. */
#define INLINE_READ_MAX   (256 * 1024)
#define INLINE_BORROW_MAX (1024 * 1024)
#define INLINE_WRITE_MAX  (64 * 1024)
/* So much of a reply can be queued, however short memory is. */
#define INLINE_LOW (8 * 1024)
/* A reply that is no longer is copied out of a buffer that is much larger. */
#define COPY_REPLY_MAX 4096

/* A read that is longer than what one reply may hold is answered in pieces of this size, the next
 * one when the last one has been sent.
 *
 * When memory is short, all that do not fit are, in the largest that do.  Where the protocol knows
 * no pieces, the bytes of one reply come bit by bit all the same: then the session begins nothing
 * else before the last of them (session.alone), and an error on the way is told by disconnecting.
 */
#define READ_PIECE (4 * 1024 * 1024)

/* Of requests without data, between two looks at the time.  A multiple of any cluster. */
#define TURN_PIECE_MIN (UINT64_C (64) << 20)
#define TURN_PIECE_MAX (UINT64_C (16) << 30)

/* A read that is more scattered than that is for a worker. */
#define MAX_RING_EXTENTS 8

/* ---- on a worker ----------------------------------------------------------------------------- */

/* Whether the export has it wait when the disk is full.  Where nothing will ever be written again,
 * because a sync has failed, there is nothing to wait for. */
static bool
may_wait (const struct request *rq)
{
  return rq->export->room && rq->type != NBD_CMD_READ && rq->type != NBD_CMD_RESIZE &&
         !q_read_only (rq->export->img);
}

static void
finish (struct request *rq, int error)
{
  if (error == -ESHUTDOWN)
    error = -EIO; /* the storage's: the room's own is told to nobody */
  if (error == -ENOSPC && may_wait (rq)) {
    error = room_park (rq->export->room, rq);
    if (error == 0)
      return;
  } else if (rq->waited_since > 0)
    room_passed (rq->export->room, rq, error);
  if (error < 0)
    rq->error = error;
  job_done (&rq->job);
}

/* Flushes, for all requests that are waiting for one; on success and on failure they share the
 * result.  A request that arrives while a flush is under way waits for the next one: the one under
 * way may have begun before the writes that the request is to make durable. */
static void
run_flush (struct job *job)
{
  struct export *x = ((struct request *)job)->export;

  job->run = run_flush; /* if it has to be done again */
  pthread_mutex_lock (&x->flush_lock);
  job->next = x->flush_waiting;
  x->flush_waiting = job;
  if (!x->flush_running) {
    x->flush_running = true;
    while (x->flush_waiting) {
      struct job *all = x->flush_waiting;
      unsigned n = 0;
      x->flush_waiting = NULL;
      pthread_mutex_unlock (&x->flush_lock);
      for (const struct job *j = all; j; j = j->next)
        n++;
      stats_flush (x->stats, n);
      int r = q_flush (x->img);
      while (all) {
        struct job *next = all->next;
        finish ((struct request *)all, r);
        all = next;
      }
      pthread_mutex_lock (&x->flush_lock);
    }
    x->flush_running = false;
    pthread_cond_broadcast (&x->flush_over);
  }
  pthread_mutex_unlock (&x->flush_lock);
}

static bool
wants_flush (const struct request *rq)
{
  return ((rq->flags & NBD_CMD_FLAG_FUA) || rq->export->write_through) &&
         !rq->export->ignore_flush && !rq->whole;
}

static void
finish_write (struct request *rq, int r)
{
  if (r == 0 && wants_flush (rq))
    run_flush (&rq->job);
  else
    finish (rq, r);
}

/* How much of RQ is read next. */
static uint64_t
choose_piece (const struct request *rq)
{
  uint64_t left = rq->len - rq->done;
  uint64_t piece = rq->len > NBD_MAX_PAYLOAD ? READ_PIECE : NBD_MAX_PAYLOAD;

  while (piece > LOW_PIECE && !buf_fits (&rq->session->shard->cache, left < piece ? left : piece))
    piece /= 2;
  return left < piece ? left : piece;
}

/* Where RQ is in the image, of which the export may be a part. */
static uint64_t
image_offset (const struct request *rq)
{
  return rq->export->offset + rq->offset;
}

/* Whether RQ's answer would be sent to nobody. */
static bool
is_unwanted (const struct request *rq)
{
  return atomic_load_explicit (&rq->session->dropped, memory_order_relaxed);
}

static void
run_read (struct job *job)
{
  struct request *rq = (struct request *)job;
  struct buf *b = rq->out;
  uint64_t len = rq->piece;

  if (is_unwanted (rq)) {
    finish (rq, -ECANCELED);
    return;
  }
  /* The header goes before the payload area, so that data lie on a page boundary. */
  b->start = b->data - read_header_size (rq);
  ssize_t n = read_reply (rq, rq->offset + rq->done, len, rq->done + len == rq->len, false,
                          b->start, &rq->error_offset);
  if (n >= 0) {
    b->end = b->start + n;
    rq->done += len;
  }
  finish (rq, n < 0 ? (int)n : 0);
}

static void
run_write (struct job *job)
{
  struct request *rq = (struct request *)job;

  finish_write (rq, q_pwrite (rq->export->img, rq->payload->start + rq->done,
                              image_offset (rq) + rq->done, rq->len - rq->done));
}

static void
spread_done (void *opaque, int r)
{
  finish_write (opaque, r);
}

static void
run_compressed (struct job *job)
{
  struct request *rq = (struct request *)job;

  spread_write (rq->session->shard->pool, rq->session->lane, rq->export->img, rq->payload->start,
                image_offset (rq), rq->len, spread_done, rq);
}

/* A write of zeroes that was detected to be one. */
static void
run_detected (struct job *job)
{
  struct request *rq = (struct request *)job;
  unsigned flags = rq->export->detect_zeroes == DETECT_ZEROES_UNMAP ? Q_ZERO_UNMAP : 0;

  finish_write (rq, q_zero (rq->export->img, image_offset (rq), rq->len, flags));
}

/* Long ones do not keep a worker from others: when the time is up, what is left goes to the end of
 * the queue.  And they are not done for a client that has hung up, but for their next piece: all
 * that is not long is done by then.  Pieces end where clusters do. */
static void
run_in_turns (struct request *rq, int (*work) (const struct request *, uint64_t at, uint64_t len))
{
  struct quantum q = quantum_begin ();
  uint64_t end = image_offset (rq) + rq->len, piece = TURN_PIECE_MIN;
  struct batch rest = { 0 };
  int r = 0;

  while (r == 0 && rq->done < rq->len && (piece == TURN_PIECE_MIN || !quantum_over (&q))) {
    uint64_t at = image_offset (rq) + rq->done;
    uint64_t last = (at + piece) & ~(uint64_t)(TURN_PIECE_MIN - 1);
    uint64_t len = (last < end ? last : end) - at;
    r = work (rq, at, len);
    if (r == 0)
      rq->done += len;
    if (piece < TURN_PIECE_MAX)
      piece *= 2;
    if (r == 0 && rq->done < rq->len &&
        atomic_load_explicit (&rq->session->hung_up, memory_order_relaxed))
      r = -ECANCELED;
  }
  if (r == 0 && rq->done < rq->len) {
    batch_add (&rest, &rq->job);
    pool_submit (rq->session->shard->pool, &rest);
  } else if (rq->type == NBD_CMD_CACHE)
    finish (rq, r);
  else
    finish_write (rq, r);
}

static unsigned
zero_flags (const struct request *rq)
{
  return rq->flags & NBD_CMD_FLAG_NO_HOLE ? Q_ZERO_PROVISION : Q_ZERO_UNMAP;
}

static int
zero (const struct request *rq, uint64_t at, uint64_t len)
{
  return q_zero (rq->export->img, at, len, zero_flags (rq));
}

static void
run_zero (struct job *job)
{
  struct request *rq = (struct request *)job;
  int r = 0;

  /* All of it is fast, or nothing is done. */
  if ((rq->flags & NBD_CMD_FLAG_FAST_ZERO) && rq->done == 0)
    r = q_zero_is_fast (rq->export->img, image_offset (rq), rq->len, zero_flags (rq));
  if (r < 0)
    finish (rq, r);
  else
    run_in_turns (rq, zero);
}

static int
trim (const struct request *rq, uint64_t at, uint64_t len)
{
  return q_discard (rq->export->img, at, len);
}

static void
run_trim (struct job *job)
{
  run_in_turns ((struct request *)job, trim);
}

static int
prefetch (const struct request *rq, uint64_t at, uint64_t len)
{
  return q_prefetch (rq->export->img, at, len);
}

static void
run_cache (struct job *job)
{
  run_in_turns ((struct request *)job, prefetch);
}

static void
run_status (struct job *job)
{
  struct request *rq = (struct request *)job;
  finish (rq, is_unwanted (rq) ? -ECANCELED : status_answer (rq));
}

static void
run_resize (struct job *job)
{
  struct request *rq = (struct request *)job;
  struct q_error err = { "" };
  int r = export_resize (rq->export, rq->offset, &err);

  if (r < 0 && r != -EPERM)
    log_warning ("%s", err.text);
  finish (rq, r);
}

/* ---- on the loop ----------------------------------------------------------------------------- */

static void
to_pool (struct request *rq, void (*run) (struct job *))
{
  struct shard *shard = rq->session->shard;

  rq->job.run = run;
  rq->job.home = &shard->done;
  rq->job.lane = rq->session->lane;
  batch_add (&shard->batch, &rq->job);
}

/* The ring has read all of a piece, or not: then a worker does it again and finds out why. */
static void
ring_done (struct ring_job *j)
{
  struct request *rq = (struct request *)((char *)j - offsetof (struct request, ring));
  uint64_t len = rq->piece;

  q_unpin (rq->pin);
  if (j->failed || j->bytes != len) {
    to_pool (rq, run_read);
    return;
  }
  rq->done += len;
  exec_completed (rq);
}

/* Puts the reads for the next LEN bytes of RQ into the ring.  The pin under which they were mapped
 * is held until they are done (invariant 5). */
static bool
read_by_ring (struct request *rq, uint64_t len)
{
  struct ring *ring = rq->session->shard->ring;
  struct q_extent extents[MAX_RING_EXTENTS];
  uint64_t offset = rq->offset + rq->done;

  if (!ring || !ring_usable (ring, MAX_RING_EXTENTS))
    return false;
  rq->pin = q_pin ();
  int n = q_map (rq->export->img, image_offset (rq) + rq->done, len, extents, MAX_RING_EXTENTS,
                 Q_NOWAIT);
  if (n < 0 || !read_is_for_ring (extents, (unsigned)n, len)) {
    q_unpin (rq->pin);
    return false;
  }
  uint8_t *at = read_put_header (rq, rq->out, offset, len, rq->done + len == rq->len);
  rq->ring = (struct ring_job){ .done = ring_done };
  for (int i = 0; i < n; at += extents[i++].len)
    ring_read (ring, &rq->ring, q_file_ring_fd (extents[i].file), at, (uint32_t)extents[i].len,
               extents[i].host);
  return true;
}

/* Makes RQ outlive the call, as a request in flight.  NULL without memory. */
static struct request *
detach (struct request *rq)
{
  struct session *s = rq->session;

  if (!rq->heap) {
    struct request *copy = request_new (s->shard);
    if (!copy)
      return NULL;
    *copy = *rq;
    copy->heap = true;
    rq = copy;
  }
  session_count_inflight (s, 1);
  if (rq->arrived == 0)
    rq->arrived = s->arrived;
  return rq;
}

static void
hold (struct request *rq, const struct buf *b)
{
  rq->held += buf_memory (b);
  rq->session->held += buf_memory (b);
}

static void
release (struct request *rq, const struct buf *b)
{
  rq->held -= buf_memory (b);
  rq->session->held -= buf_memory (b);
}

/* RQ has been answered (or needs no answer any more). */
static void
dispose (struct request *rq)
{
  if (rq->heap)
    request_discard (rq);
}

/* RQ has been answered, in a later turn than it came in.  A function of its own, so that the others
 * do not pay for its frame. */
static void __attribute__ ((noinline))
count_late (const struct request *rq, enum stats_op op, uint64_t bytes, bool error)
{
  struct shard *shard = rq->session->shard;

  if (shard->now == 0)
    shard->now = stats_clock ();
  stats_done (rq->session->stats, op, bytes, error, rq->arrived, shard->now);
}

/* RQ has been answered.  The pieces of a long WRITE are no requests of their own. */
static inline void
count (const struct request *rq, bool error)
{
  static const enum stats_op op[] = {
    [NBD_CMD_READ] = STATS_READ,     [NBD_CMD_WRITE] = STATS_WRITE,
    [NBD_CMD_FLUSH] = STATS_FLUSH,   [NBD_CMD_TRIM] = STATS_TRIM,
    [NBD_CMD_CACHE] = STATS_CACHE,   [NBD_CMD_WRITE_ZEROES] = STATS_ZERO,
    [NBD_CMD_RESIZE] = STATS_RESIZE, [NBD_CMD_BLOCK_STATUS] = STATS_BLOCK_STATUS,
  };
  uint64_t bytes = rq->type == NBD_CMD_BLOCK_STATUS ? 0 : rq->len;

  if (rq->whole || !STATS_ON)
    return;
  if (rq->arrived == 0)
    stats_inline (rq->session->stats, op[rq->type], bytes, error);
  else
    count_late (rq, op[rq->type], bytes, error);
}

static void
succeed (struct request *rq)
{
  if (!rq->whole)
    reply_ok (rq->session, rq);
  count (rq, false);
  dispose (rq);
}

static void
fail (struct request *rq, int error)
{
  static const char *const what[] = {
    [NBD_CMD_READ] = "read",
    [NBD_CMD_WRITE] = "write",
    [NBD_CMD_FLUSH] = "flush",
    [NBD_CMD_TRIM] = "trim",
    [NBD_CMD_CACHE] = "cache",
    [NBD_CMD_WRITE_ZEROES] = "write zeroes",
    [NBD_CMD_BLOCK_STATUS] = "block status",
    [NBD_CMD_RESIZE] = "resize",
  };

  const char *why = strerrordesc_np (-error);

  if (rq->type == NBD_CMD_READ && rq->done > 0 && !read_is_in_pieces (rq)) {
    log_error ("a read failed after its reply had begun, so its client is disconnected: %s", why);
    session_drop (rq->session);
  }
  /* A client that did not ask for speed has no use for "not supported". */
  int code = error == -ENOTSUP && !(rq->flags & NBD_CMD_FLAG_FAST_ZERO) ? -EIO : error;
  if (rq->whole)
    rq->whole->error = error;
  else if (rq->type == NBD_CMD_READ)
    reply_read_error (rq->session, rq, code, rq->error_offset);
  else if (error != -ESHUTDOWN) /* room.h: the end of the connection is the answer */
    reply_error (rq->session, rq, code, "%s of %" PRIu64 " bytes at offset %" PRIu64 ": %s",
                 what[rq->type], rq->len, rq->offset, why ? why : "unknown error");
  count (rq, true);
  dispose (rq);
}

static void
pool_or_fail (struct request *rq, void (*run) (struct job *))
{
  struct request *detached = detach (rq);
  if (detached)
    to_pool (detached, run);
  else
    fail (rq, -ENOMEM);
}

/* Flushes in the pool if the request wants it, and answers. */
static void
written (struct request *rq)
{
  if (rq->payload) {
    release (rq, rq->payload);
    buf_free (&rq->session->shard->cache, rq->payload);
    rq->payload = NULL;
  }
  if (wants_flush (rq))
    pool_or_fail (rq, run_flush);
  else
    succeed (rq);
}

/* Has the next piece of a read read, by the ring or the pool, or parks it; RQ is detached. */
static bool
next_piece (struct request *rq)
{
  struct session *s = rq->session;
  uint64_t len = rq->piece = choose_piece (rq);

  if (len < rq->len && !read_is_in_pieces (rq) && !s->alone) {
    s->alone = rq;
    merge_flush (s->shard); /* what is still to be written may have to be flushed, too */
  }
  if (s->alone == rq && s->inflight > 1 && !s->dropped) {
    batch_add (&s->parked, &rq->job); /* until the others have been answered */
    return true;
  }
  rq->out = buf_alloc (&s->shard->cache, len);
  if (!rq->out)
    return false;
  hold (rq, rq->out);
  if (!read_by_ring (rq, len))
    to_pool (rq, run_read);
  return true;
}

static void
exec_read (struct request *rq)
{
  struct session *s = rq->session;

  if (rq->len <= INLINE_LOW || (rq->len <= (s->may_borrow ? INLINE_BORROW_MAX : INLINE_READ_MAX) &&
                                buf_fits (&s->shard->cache, rq->len + READ_OVERHEAD))) {
    uint8_t *at = outq_reserve (&s->out, &s->shard->cache, rq->len + READ_OVERHEAD);
    ssize_t n = -ENOMEM;
    if (at)
      n = read_reply (rq, rq->offset, rq->len, true, true, at, &rq->error_offset);
    if (n >= 0) {
      outq_commit (&s->out, (size_t)n);
      count (rq, false);
      s->budget -= (int64_t)rq->len;
      return;
    }
    if (s->out.bytes == 0)
      outq_clear (&s->out, &s->shard->cache); /* an idle connection holds no buffer */
    if (n != -EAGAIN) {
      fail (rq, (int)n);
      return;
    }
  }
  struct request *detached = detach (rq);
  if (!detached)
    fail (rq, -ENOMEM);
  else if (!next_piece (detached)) {
    session_count_inflight (s, -1);
    fail (detached, -ENOMEM);
  }
}

/* Writes what can be written without waiting for metadata: rq->done says how much.  1: it will be
 * written together with others.  RECEIVED: DATA is in the receive buffer. */
static int
write_now (struct request *rq, const uint8_t *data, bool received)
{
  q_pin_t pin = q_pin ();
  int r = 0;

  while (rq->done < rq->len) {
    struct q_write_plan plan;
    r = q_write_begin (rq->export->img, image_offset (rq) + rq->done, rq->len - rq->done, Q_NOWAIT,
                       &plan);
    if (r < 0)
      break;
    if (received && rq->done == 0 && merge_add (rq->session->shard, rq, data, &plan)) {
      r = 1;
      break;
    }
    uint64_t covered = plan.len;
    r = q_write_data (&plan, data + rq->done);
    if (r < 0) {
      q_write_abort (&plan);
      break;
    }
    q_write_commit (&plan);
    rq->session->slice--;
    rq->done += covered;
  }
  q_unpin (pin);
  rq->session->budget -= (int64_t)(r == 1 ? rq->len : rq->done);
  return r;
}

static bool
is_zero (const uint8_t *p, size_t n)
{
  return p[0] == 0 && memcmp (p, p + 1, n - 1) == 0;
}

static void
write_by_pool (struct request *rq, const uint8_t *payload, void (*run) (struct job *))
{
  struct session *s = rq->session;
  struct request *detached = detach (rq);
  if (!detached) {
    fail (rq, -ENOMEM);
    return;
  }
  if (!detached->payload) {
    /* The receive buffer is needed for what comes next. */
    detached->payload = buf_alloc (&s->shard->cache, rq->len);
    if (!detached->payload) {
      session_count_inflight (s, -1);
      fail (detached, -ENOMEM);
      return;
    }
    assert (payload);
    memcpy (detached->payload->start, payload, rq->len);
    hold (detached, detached->payload);
  }
  to_pool (detached, run);
}

/* RQ was written at once, or not. */
static void
wrote_now (struct request *rq, const uint8_t *payload, int r)
{
  if (r == 0)
    written (rq);
  else if (r == -EAGAIN || r == -ENOSPC) /* a worker may find room by flushing */
    write_by_pool (rq, payload, run_write);
  else
    fail (rq, r);
}

static void
exec_write (struct request *rq, const uint8_t *payload)
{
  if (rq->export->detect_zeroes != DETECT_ZEROES_OFF &&
      is_zero (payload ? payload : rq->payload->start, rq->len)) {
    pool_or_fail (rq, run_detected);
    return;
  }

  if (rq->export->compress && spread_is_worthwhile (rq->export->img, image_offset (rq), rq->len)) {
    write_by_pool (rq, payload, run_compressed);
    return;
  }

  int r = -EAGAIN;
  if (rq->len <= INLINE_WRITE_MAX)
    r = write_now (rq, payload ? payload : rq->payload->start, payload != NULL);
  if (r <= 0)
    wrote_now (rq, payload, r);
}

static void
exec_status (struct request *rq)
{
  struct session *s = rq->session;
  struct request *detached = detach (rq);

  if (detached)
    detached->out = buf_alloc (&s->shard->cache, status_bound (detached, LOW_PIECE));
  if (!detached || !detached->out) {
    if (detached)
      session_count_inflight (s, -1);
    fail (detached ? detached : rq, -ENOMEM);
    return;
  }
  hold (detached, detached->out);
  to_pool (detached, run_status);
}

void
exec_whole (struct request *whole)
{
  if (whole->error < 0)
    fail (whole, whole->error);
  else
    written (whole);
}

void
exec_merged (struct request *rq, const uint8_t *payload, int r)
{
  wrote_now (rq, payload, r);
}

void
exec_request (struct request *rq, const uint8_t *payload)
{
  switch (rq->type) {
  case NBD_CMD_READ:
    if (rq->len > 0)
      exec_read (rq);
    else
      succeed (rq);
    break;
  case NBD_CMD_WRITE:
    if (rq->len > 0)
      exec_write (rq, payload);
    else
      written (rq);
    break;
  case NBD_CMD_FLUSH:
    if (rq->export->ignore_flush)
      succeed (rq);
    else
      pool_or_fail (rq, run_flush);
    break;
  case NBD_CMD_TRIM:
    pool_or_fail (rq, run_trim);
    break;
  case NBD_CMD_CACHE:
    pool_or_fail (rq, run_cache);
    break;
  case NBD_CMD_WRITE_ZEROES:
    pool_or_fail (rq, run_zero);
    break;
  case NBD_CMD_BLOCK_STATUS:
    exec_status (rq);
    break;
  case NBD_CMD_RESIZE:
    pool_or_fail (rq, run_resize);
    break;
  }
}

/* A short one does not keep a large buffer. */
static void
queue_reply (struct session *s, struct buf *b)
{
  size_t n = (size_t)(b->end - b->start);

  if (n <= COPY_REPLY_MAX && b->cap > 4 * n) {
    session_send (s, b->start, n);
    buf_free (&s->shard->cache, b);
  } else
    outq_append (&s->out, &s->shard->cache, b);
}

void
exec_completed (struct request *rq)
{
  struct session *s = rq->session;

  session_count_inflight (s, -1);
  if (s->dropped)
    dispose (rq);
  else if (rq->error < 0)
    fail (rq, rq->error);
  else if (rq->out) {
    release (rq, rq->out);
    queue_reply (s, rq->out);
    rq->out = NULL;
    if (rq->type == NBD_CMD_READ && rq->done < rq->len) {
      batch_add (&s->parked, &rq->job);
      session_count_inflight (s, 1);
    } else {
      count (rq, false);
      dispose (rq);
    }
  } else
    succeed (rq);
  s->notify (s);
}

void
exec_resume (struct request *rq)
{
  if (!next_piece (rq)) {
    rq->error_offset = rq->offset + rq->done;
    session_count_inflight (rq->session, -1);
    fail (rq, -ENOMEM);
  }
}
