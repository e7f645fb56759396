/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "merge.h"
#include "request.h"
#include "room.h"
#include "session.h"

/* Replies queued before requests are left waiting: enough to keep any socket busy. */
#define MAX_QUEUED (1024 * 1024)
/* Memory held by replies and by requests in flight.  One more request may begin below it. */
#define MAX_HELD     (16u * 1024 * 1024)
#define MAX_INFLIGHT 256
/* Calls to the file system after which replies are sent. */
#define SLICE 8

/* Requests that are kept for the next burst of them. */
#define MAX_FREE_REQUESTS 4096

/* ---- shard ----------------------------------------------------------------------------------- */

void
shard_init (struct shard *shard, struct exports *exports, struct pool *pool, size_t max_memory,
            void (*wake) (struct mailbox *))
{
  *shard = (struct shard){
    .exports = exports,
    .pool = pool,
    .done = { .wake = wake },
    .cache = { .limit = max_memory },
  };
}

void
shard_submit (struct shard *shard)
{
  shard->now = 0;
  ring_submit (shard->ring);
  if (shard->batch.first)
    pool_submit (shard->pool, &shard->batch);
}

void
shard_complete (struct shard *shard)
{
  struct job *j = mailbox_take (&shard->done);
  while (j) {
    struct job *next = j->next;
    exec_completed ((struct request *)j);
    j = next;
  }
}

void
shard_destroy (struct shard *shard)
{
  assert (!shard->batch.first);
  while (shard->free_requests) {
    struct job *j = shard->free_requests;
    shard->free_requests = j->next;
    free ((struct request *)j);
  }
  merge_destroy (shard);
  buf_cache_destroy (&shard->cache);
}

struct request *
request_new (struct shard *shard)
{
  struct request *rq = (struct request *)shard->free_requests;

  if (rq) {
    shard->free_requests = rq->job.next;
    shard->n_free_requests--;
  } else
    rq = calloc (1, sizeof *rq);
  if (rq)
    shard->cache.outstanding += sizeof *rq;
  return rq;
}

void
request_free (struct shard *shard, struct request *rq)
{
  if (!rq)
    return;
  buf_free (&shard->cache, rq->payload);
  buf_free (&shard->cache, rq->out);
  shard->cache.outstanding -= sizeof *rq;
  if (shard->n_free_requests == MAX_FREE_REQUESTS) {
    free (rq);
    return;
  }
  rq->payload = rq->out = NULL; /* it may be freed again before it is filled in */
  rq->job.next = shard->free_requests;
  shard->free_requests = &rq->job;
  shard->n_free_requests++;
}

void
request_discard (struct request *rq)
{
  struct request *whole = rq->whole;
  struct session *s = rq->session;

  if (s->alone == rq)
    s->alone = NULL;
  s->held -= rq->held;
  request_free (s->shard, rq);
  if (whole)
    long_write_piece_done (whole);
}

/* The snapshots of an image are one export in this: they are read from one file. */
void
session_join_lane (struct session *s)
{
  const struct export *x = s->export;
  const uint64_t path[] = { x->parent ? x->parent : x->id, s->peer, 0 };

  s->lane = lane_join (s->shard->pool, path, sizeof path / sizeof path[0]);
}

/* ---- input ----------------------------------------------------------------------------------- */

bool
memory_is_short (const struct shard *shard)
{
  return shard->cache.outstanding >= shard->cache.limit;
}

/* Memory counts beside bytes: a piece of a long read that is a hole is few bytes of a large buffer.
 */
bool
session_full (const struct session *s)
{
  bool low = memory_is_short (s->shard);
  return s->out.bytes >= MAX_QUEUED || s->held + s->out.memory >= (low ? LOW_HELD : MAX_HELD);
}

bool
session_blocked (const struct session *s)
{
  unsigned most = memory_is_short (s->shard) ? LOW_INFLIGHT : MAX_INFLIGHT;
  return s->inflight >= most || s->alone || s->listing || session_full (s);
}

void
session_count_inflight (struct session *s, int n)
{
  s->inflight += (unsigned)n;
  stats_add (&s->stats->in_flight, (uint64_t)(int64_t)n);
}

double
session_throttle (const struct session *s)
{
  return s->export ? rate_wait (&s->export->rate) : 0;
}

/* Whether another header may be looked at. */
static bool
may_go_on (const struct session *s)
{
  return !s->ending && !s->dropped && !s->starting_tls && s->budget > 0 && s->slice > 0 &&
         !session_blocked (s) && session_throttle (s) <= 0;
}

size_t
session_input (struct session *s, const uint8_t *p, size_t n)
{
  size_t used = 0;

  assert (s->in_turn);
  s->starved = false;
  for (;;) {
    size_t left = n - used;

    if (s->ending || s->dropped) {
      used = n;
      break;
    }
    if (s->skip_left > 0 || s->payload_left > 0) {
      if (left == 0) {
        s->starved = true;
        break;
      }
      if (s->skip_left > 0) {
        size_t take = left < s->skip_left ? left : (size_t)s->skip_left;
        s->skip_left -= take;
        used += take;
      } else {
        size_t take = left < s->payload_left ? left : (size_t)s->payload_left;
        memcpy (s->payload->end, p + used, take);
        used += take;
        s->budget -= (int64_t)take;
        session_payload_received (s, take);
      }
      continue;
    }
    if (left < s->header_size) {
      s->starved = true;
      break;
    }
    if (!may_go_on (s))
      break;
    used += s->on_header (s, p + used, left);
  }
  merge_flush (s->shard);
  return used;
}

/* What was answered since the turn, or the slice, began is as good as sent. */
static void
settle_stats (struct session *s)
{
  if (s->stats && stats_pending (s->stats))
    stats_settle (s->stats, s->arrived, stats_clock ());
}

bool
session_next_slice (struct session *s)
{
  assert (s->in_turn);
  if (s->slice > 0 || s->budget <= 0 || s->dropped || s->starved)
    return false;
  s->slice = SLICE;
  settle_stats (s);
  return true;
}

size_t
session_payload (struct session *s, uint8_t **p)
{
  if (s->skip_left > 0 || s->payload_left == 0 || s->ending || s->dropped)
    return 0;
  *p = s->payload->end;
  return (size_t)s->payload_left;
}

void
session_payload_received (struct session *s, size_t n)
{
  assert (n <= s->payload_left);
  s->payload->end += n;
  s->payload_left -= n;
  if (s->payload_left == 0) {
    struct buf *b = s->payload;
    s->payload = NULL;
    s->on_payload (s, b);
  }
}

bool
session_keep (struct session *s, size_t n)
{
  assert (n > 0 && !s->payload);
  s->payload = buf_alloc (&s->shard->cache, n);
  if (!s->payload)
    return false;
  s->payload_left = n;
  return true;
}

void
session_skip (struct session *s, uint64_t n)
{
  s->skip_left = n;
}

/* ---- turns ----------------------------------------------------------------------------------- */

void
session_begin_turn (struct session *s, bool may_borrow)
{
  assert (!s->in_turn && s->shard->loans.end == 0);
  s->in_turn = true;
  s->may_borrow = may_borrow;
  s->slice = SLICE;
  /* What is left over from an earlier turn has been waiting since then. */
  if (s->starved && STATS_ON)
    s->arrived = stats_clock ();
  s->pin = q_pin ();
}

void
session_end_turn (struct session *s)
{
  if (!s->in_turn)
    return;
  session_settle (s);
  settle_stats (s);
  s->in_turn = false;
  q_unpin (s->pin);
}

void
session_settle (struct session *s)
{
  int r = outq_settle (&s->out);
  if (r < 0) {
    log_error ("a read failed after its reply had begun, so its client is disconnected: %s",
               strerror (-r));
    session_drop (s);
  }
}

/* ---- output ---------------------------------------------------------------------------------- */

void
session_send (struct session *s, const void *p, size_t n)
{
  if (s->dropped)
    return;
  uint8_t *at = outq_reserve (&s->out, &s->shard->cache, n);
  if (!at) {
    session_drop (s);
    return;
  }
  memcpy (at, p, n);
  outq_commit (&s->out, n);
}

void
session_resume (struct session *s)
{
  unsigned n;

  if (s->listing)
    handshake_list (s, false);
  /* Those that still have to wait are parked again. */
  for (n = s->parked.count; n > 0 && s->parked.first && !session_full (s); n--)
    exec_resume ((struct request *)batch_take (&s->parked));
  /* What is full may be a payload that the client goes on with once it has its reply. */
  for (n = s->parked.count;
       n > 0 && s->parked.first && s->out.bytes == 0 && s->inflight == s->parked.count; n--)
    exec_resume ((struct request *)batch_take (&s->parked));
}

void
session_conclude (struct session *s)
{
  if (s->listing)
    handshake_list (s, true);
}

/* ---- life ------------------------------------------------------------------------------------ */

void
session_init (struct session *s, struct shard *shard, void (*notify) (struct session *))
{
  *s = (struct session){
    .shard = shard, .notify = notify, .starved = true, .stopping = shard->stopping
  };
  s->out.loans = &shard->loans;
  handshake_begin (s);
}

enum session_state
session_state (const struct session *s)
{
  if (s->dropped)
    return SESSION_DROP;
  if (s->ending)
    return s->inflight == 0 ? SESSION_END : SESSION_WAIT;
  if (s->starting_tls)
    return SESSION_TLS;
  if (s->starved)
    return SESSION_READ;
  return session_blocked (s) ? SESSION_WAIT : SESSION_READY;
}

/* Whatever was negotiated in plain text may have been somebody else's words. */
void
session_secured (struct session *s, struct tls_session *tls)
{
  s->tls = tls;
  s->starting_tls = false;
  s->starved = true;
  s->mode = MODE_SIMPLE;
  s->meta_export = 0;
  s->meta_selected = 0;
}

/* Forgets a payload of which not all has come, and the request that it belongs to. */
static void
abandon_payload (struct session *s)
{
  buf_free (&s->shard->cache, s->payload);
  s->payload = NULL;
  s->payload_left = 0;
  long_write_abandon (s);
  if (s->receiving)
    request_discard (s->receiving);
  s->receiving = NULL;
}

/* Nobody waits for answers that may be long in coming. */
static void
stop_waiting (struct session *s)
{
  if (s->export && s->inflight > 0)
    room_drop (s->export->room, s);
}

void
session_eof (struct session *s)
{
  s->ending = true;
  stop_waiting (s);
  abandon_payload (s);
}

void
session_hang_up (struct session *s)
{
  if (!s->farewell)
    atomic_store_explicit (&s->hung_up, true, memory_order_relaxed);
}

void
session_stop (struct session *s)
{
  s->stopping = true;
  stop_waiting (s);
}

void
session_drop (struct session *s)
{
  struct shard *shard = s->shard;

  s->dropped = true;
  s->listing = false;
  session_hang_up (s);
  stop_waiting (s);
  outq_clear (&s->out, &shard->cache);
  abandon_payload (s);
  while (s->parked.first) {
    struct request *rq = (struct request *)batch_take (&s->parked);
    session_count_inflight (s, -1);
    request_discard (rq);
  }
}

void
session_destroy (struct session *s)
{
  session_drop (s);
  assert (s->inflight == 0 && s->held == 0);
  lane_leave (s->shard->pool, s->lane);
  s->lane = NULL;
  if (s->export) {
    export_leave (s->export);
    export_put (s->export);
  }
}
