/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Requests: parsing, and every check that the protocol asks for before one is carried out.
 */

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "request.h"
#include "status.h"

/* Flags of each command, beside FUA, which any of them may carry; PAYLOAD_LEN is looked at apart.
 */
static const uint16_t known_flags[] = {
  [NBD_CMD_READ] = NBD_CMD_FLAG_DF,
  [NBD_CMD_WRITE] = 0,
  [NBD_CMD_DISC] = 0,
  [NBD_CMD_FLUSH] = 0,
  [NBD_CMD_TRIM] = 0,
  [NBD_CMD_CACHE] = 0,
  [NBD_CMD_WRITE_ZEROES] = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
  [NBD_CMD_BLOCK_STATUS] = NBD_CMD_FLAG_REQ_ONE,
  [NBD_CMD_RESIZE] = 0,
};

#define N_COMMANDS (sizeof known_flags / sizeof known_flags[0])

#define RESIZE_UNIT 512u

/* The filter that BLOCK_STATUS may carry as its payload: an effect length and context numbers. */
#define FILTER_MIN sizeof (uint64_t)
#define FILTER_MAX (sizeof (uint64_t) + MAX_META_CONTEXTS * sizeof (uint32_t))

/* Answers what is not going to be tried. */
#define reject(s, rq, ...) (stats_add (&(s)->stats->rejected, 1), reply_error (s, rq, __VA_ARGS__))

/* ---- checks ---------------------------------------------------------------------------------- */

static bool
past_end (const struct request *rq)
{
  return rq->offset > rq->export->size || rq->len > rq->export->size - rq->offset;
}

/* The last block of a disk may be a part of one. */
static bool
aligned (const struct request *rq)
{
  uint32_t mask = rq->export->min_block - 1;
  return (rq->offset & mask) == 0 &&
         ((rq->len & mask) == 0 || rq->offset + rq->len == rq->export->size);
}

/* Everything but payloads.  Sends the error reply and returns false if RQ cannot be carried out. */
static bool
acceptable (struct session *s, const struct request *rq)
{
  bool writes =
      rq->type == NBD_CMD_WRITE || rq->type == NBD_CMD_TRIM || rq->type == NBD_CMD_WRITE_ZEROES;

  if (s->stopping) {
    reject (s, rq, ESHUTDOWN,
            s->shard->stopping ? "the server is shutting down"
                               : "the connection is being ended by the server");
    return false;
  }
  if (rq->type >= N_COMMANDS || (rq->type == NBD_CMD_RESIZE && !rq->export->resizable)) {
    reject (s, rq, EINVAL, "unknown command %u", rq->type);
    return false;
  }
  unsigned unknown = rq->flags & ~(known_flags[rq->type] | NBD_CMD_FLAG_FUA);
  if (rq->mode == MODE_SIMPLE)
    unknown |= rq->flags & NBD_CMD_FLAG_DF;
  if (unknown) {
    reject (s, rq, EINVAL, "unknown flags 0x%x for command %u", unknown, rq->type);
    return false;
  }
  if (writes && rq->export->read_only) {
    reject (s, rq, EPERM, "the export is read-only");
    return false;
  }
  if (rq->type == NBD_CMD_FLUSH) {
    if (rq->offset != 0 || rq->len != 0) {
      reject (s, rq, EINVAL, "flush with a nonzero offset or length");
      return false;
    }
    return true;
  }
  if (rq->type == NBD_CMD_RESIZE) {
    if (rq->offset % RESIZE_UNIT != 0 || rq->len != 0) {
      reject (s, rq, EINVAL, "resize to %" PRIu64 " bytes: a multiple of %u is wanted", rq->offset,
              RESIZE_UNIT);
      return false;
    }
    return true;
  }
  if (!aligned (rq)) {
    reject (s, rq, EINVAL,
            "%" PRIu64 " bytes at offset %" PRIu64 " are not whole blocks of %u bytes", rq->len,
            rq->offset, rq->export->min_block);
    return false;
  }
  if (past_end (rq)) {
    bool space = rq->type == NBD_CMD_WRITE || rq->type == NBD_CMD_WRITE_ZEROES;
    reject (s, rq, space ? ENOSPC : EINVAL,
            "%" PRIu64 " bytes at offset %" PRIu64 " exceed the export's size of %" PRIu64, rq->len,
            rq->offset, rq->export->size);
    return false;
  }
  if (rq->type == NBD_CMD_READ && rq->len > NBD_MAX_PAYLOAD) {
    if (rq->mode == MODE_SIMPLE) {
      reject (s, rq, EINVAL, "read is longer than the maximum payload");
      return false;
    }
    if (rq->flags & NBD_CMD_FLAG_DF) {
      reject (s, rq, EOVERFLOW, "read of %" PRIu64 " bytes in one piece: the most is %u", rq->len,
              NBD_MAX_PAYLOAD);
      return false;
    }
  }
  if (rq->type == NBD_CMD_WRITE && rq->len > NBD_MAX_PAYLOAD) {
    reject (s, rq, EINVAL, "write of %" PRIu64 " bytes: the most is %u", rq->len, NBD_MAX_PAYLOAD);
    return false;
  }
  if (rq->type == NBD_CMD_BLOCK_STATUS) {
    if (rq->contexts == 0) {
      reject (s, rq, EINVAL, "block status without a metadata context");
      return false;
    }
    if (rq->len == 0) {
      reject (s, rq, EINVAL, "block status of 0 bytes");
      return false;
    }
  }
  return true;
}

/* ---- payloads -------------------------------------------------------------------------------- */

static void
filter_received (struct session *s, struct request *rq)
{
  const uint8_t *p = rq->payload->start;
  size_t n = ((size_t)(rq->payload->end - p) - sizeof (uint64_t)) / sizeof (uint32_t);
  uint64_t wanted = 0;
  bool valid = true;

  memcpy (&rq->len, p, sizeof rq->len);
  rq->len = be64toh (rq->len);
  for (size_t i = 0; i < n; i++) {
    uint32_t id;
    memcpy (&id, p + sizeof (uint64_t) + i * sizeof id, sizeof id);
    id = be32toh (id);
    uint64_t bit = id < MAX_META_CONTEXTS ? UINT64_C (1) << id : 0;
    if (!(rq->contexts & bit) || (wanted & bit))
      valid = false;
    wanted |= bit;
  }
  rq->contexts = wanted;
  if (!valid) {
    reject (s, rq, EINVAL, "block status filter names a context twice, or an unknown one");
    request_discard (rq);
  } else if (!acceptable (s, rq))
    request_discard (rq);
  else
    exec_request (rq, NULL);
}

static void
payload_received (struct session *s, struct buf *b)
{
  struct request *rq = s->receiving;

  s->receiving = NULL;
  rq->payload = b;
  if (rq->type == NBD_CMD_WRITE)
    exec_request (rq, NULL);
  else
    filter_received (s, rq);
}

/* Receives the N bytes of payload that RQ (on the stack) needs. */
static void
receive (struct session *s, const struct request *rq, size_t n)
{
  bool is_long = rq->type == NBD_CMD_WRITE && long_write_is (s, n);

  if (is_long && long_write_begin (s, rq))
    return;
  struct request *heap = is_long ? NULL : request_new (s->shard);
  if (!heap || !session_keep (s, n)) {
    reject (s, rq, ENOMEM, "no memory for %zu bytes of payload", n);
    if (heap)
      request_free (s->shard, heap);
    session_skip (s, n);
    return;
  }
  *heap = *rq;
  heap->heap = true;
  heap->held = buf_memory (s->payload);
  s->held += heap->held;
  s->receiving = heap;
}

/* ---- headers --------------------------------------------------------------------------------- */

/* Only this thread writes to it. */
static void
add (_Atomic uint64_t *counter, uint64_t n)
{
  if (STATS_ON)
    atomic_store_explicit (counter, atomic_load_explicit (counter, memory_order_relaxed) + n,
                           memory_order_relaxed);
}

/* RQ is going to be carried out. */
static void
account (struct session *s, const struct request *rq)
{
  add (&s->n_requests, 1);
  if (rq->type == NBD_CMD_READ)
    add (&s->bytes_read, rq->len);
  else if (rq->type == NBD_CMD_WRITE)
    add (&s->bytes_written, rq->len);
  else
    return;
  rate_charge (&rq->export->rate, rq->len);
}

/* RQ is complete but for its PAYLOAD bytes of payload, which begin at DATA, where HERE bytes have
 * already arrived.  Returns how many of those were used. */
static size_t
dispatch (struct session *s, struct request *rq, uint64_t payload, const uint8_t *data, size_t here)
{
  bool filter = payload > 0 && rq->type == NBD_CMD_BLOCK_STATUS;

  if (rq->type == NBD_CMD_DISC) {
    s->farewell = true;
    session_eof (s);
    return 0;
  }
  if (filter && payload >= FILTER_MIN && payload <= FILTER_MAX &&
      (payload - sizeof (uint64_t)) % sizeof (uint32_t) == 0) {
    receive (s, rq, (size_t)payload); /* checked when it is complete */
    return 0;
  }
  if (payload > 0 && rq->type != NBD_CMD_WRITE) {
    reject (s, rq, EINVAL, "command %u with a payload of %" PRIu64 " bytes", rq->type, payload);
    session_skip (s, payload);
    return 0;
  }
  if (!acceptable (s, rq)) {
    session_skip (s, payload);
    return 0;
  }
  account (s, rq);
  if (payload <= here && !long_write_is (s, payload)) {
    /* In one piece (or there is none): without a copy, if it can be done at once. */
    exec_request (rq, payload > 0 ? data : NULL);
    return (size_t)payload;
  }
  receive (s, rq, (size_t)payload);
  return 0;
}

static void
init_request (struct session *s, struct request *rq)
{
  *rq = (struct request){ .session = s, .export = s->export, .mode = s->mode };
  rq->contexts = s->meta_selected;
}

static size_t
compact_header (struct session *s, const uint8_t *p, size_t n)
{
  const struct nbd_request *h = (const struct nbd_request *)p;
  struct request rq;

  if (h->magic != htobe32 (NBD_REQUEST_MAGIC)) {
    session_drop (s);
    return n;
  }
  init_request (s, &rq);
  rq.flags = be16toh (h->flags);
  rq.type = be16toh (h->type);
  rq.cookie = h->cookie;
  rq.offset = rq.error_offset = be64toh (h->offset);
  rq.len = be32toh (h->length);
  s->budget -= REQUEST_COST;
  return sizeof *h +
         dispatch (s, &rq, rq.type == NBD_CMD_WRITE ? rq.len : 0, p + sizeof *h, n - sizeof *h);
}

static size_t
extended_header (struct session *s, const uint8_t *p, size_t n)
{
  const struct nbd_extended_request *h = (const struct nbd_extended_request *)p;
  struct request rq;

  if (h->magic != htobe32 (NBD_EXTENDED_REQUEST_MAGIC)) {
    session_drop (s);
    return n;
  }
  init_request (s, &rq);
  rq.flags = be16toh (h->flags);
  rq.type = be16toh (h->type);
  rq.cookie = h->cookie;
  rq.offset = rq.error_offset = be64toh (h->offset);
  rq.len = be64toh (h->length);
  s->budget -= REQUEST_COST;

  uint64_t payload = 0;
  /* A client MUST set the flag when it writes; that of QEMU (to version 11 at least) does not, and
   * sends the payload all the same. */
  if (rq.flags & NBD_CMD_FLAG_PAYLOAD_LEN || rq.type == NBD_CMD_WRITE) {
    rq.flags &= (uint16_t)~NBD_CMD_FLAG_PAYLOAD_LEN;
    payload = rq.len;
    if (payload > NBD_MAX_PAYLOAD) {
      session_drop (s); /* as the spec advises: it may be a desynchronised stream */
      return n;
    }
  }
  return sizeof *h + dispatch (s, &rq, payload, p + sizeof *h, n - sizeof *h);
}

void
request_expect_header (struct session *s)
{
  if (s->mode == MODE_EXTENDED) {
    s->header_size = sizeof (struct nbd_extended_request);
    s->on_header = extended_header;
  } else {
    s->header_size = sizeof (struct nbd_request);
    s->on_header = compact_header;
  }
}

void
transmission_begin (struct session *s)
{
  s->transmission = true;
  /* What was selected counts only for the export that it was selected for. */
  if (s->meta_export != s->export->id)
    s->meta_selected = 0;
  session_join_lane (s);
  s->stats = stats_counters (s->export->stats, s->shard);
  if (!s->stats)
    session_drop (s);
  request_expect_header (s);
  s->on_payload = payload_received;
}
