/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Whether what a server sent is an answer to what a client sent: see judge.h.
 */

#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "judge.h"
#include "mem.h"
#include "nbd.h"

#define MAX_REQUESTS 4096u
#define PIECE        4096u

void
bytes_add (struct bytes *b, const void *p, size_t n)
{
  if (b->n + n > b->capacity) {
    b->capacity = 2 * (b->n + n) + 256;
    b->data = realloc (b->data, b->capacity);
    if (!b->data)
      die ("out of memory");
  }
  if (n > 0)
    memcpy (b->data + b->n, p, n);
  b->n += n;
}

void
bytes_free (struct bytes *b)
{
  free (b->data);
  *b = (struct bytes){ 0 };
}

enum mode { SIMPLE, STRUCTURED, EXTENDED };

struct asked {
  uint64_t cookie, offset, len;
  uint16_t type, flags;
  bool done;
  bool failed;
  uint64_t covered; /* bytes of a READ that have come */
  unsigned chunks;
  const uint8_t *payload; /* of a WRITE ... */
  uint64_t sent;          /* ... so many bytes of it */
};

struct court {
  const struct trial *t;
  size_t c, s; /* how far both sides have been looked at */
  enum mode mode;
  bool over; /* one of the sides has nothing more that could be judged */
  uint64_t contexts;
  struct asked *asked;
  unsigned n_asked;
};

/* ---- reading --------------------------------------------------------------------------------- */

/* The next N bytes of the client; NULL: they have not all been sent, and the trial is over. */
static const uint8_t *
from_client (struct court *j, uint64_t n)
{
  static const uint8_t nothing;
  size_t at = j->c;

  if (n > j->t->client->n - j->c) {
    j->over = true;
    return NULL;
  }
  j->c += n;
  return n ? j->t->client->data + at : &nothing;
}

/* The next N bytes of the server, which are due. */
static const uint8_t *
from_server (struct court *j, uint64_t n, const char *what)
{
  static const uint8_t nothing;
  size_t at = j->s;

  if (n > j->t->server->n - j->s) {
    if (!j->t->cut)
      broken ("%s: the server has sent %zu bytes, %" PRIu64 " are due", what,
              j->t->server->n - j->s, n);
    j->over = true;
    return NULL;
  }
  j->s += n;
  return n ? j->t->server->data + at : &nothing;
}

static uint16_t
u16 (const uint8_t *p)
{
  uint16_t v;

  memcpy (&v, p, sizeof v);
  return be16toh (v);
}

static uint32_t
u32 (const uint8_t *p)
{
  uint32_t v;

  memcpy (&v, p, sizeof v);
  return be32toh (v);
}

static uint64_t
u64 (const uint8_t *p)
{
  uint64_t v;

  memcpy (&v, p, sizeof v);
  return be64toh (v);
}

/* The server must have dropped the client here. */
static void
must_drop (struct court *j, const char *why)
{
  if (!j->t->cut)
    broken ("%s, and the client was not disconnected", why);
  if (j->s != j->t->server->n)
    broken ("%s, and the server sent %zu bytes more", why, j->t->server->n - j->s);
  j->over = true;
}

/* ---- handshake ------------------------------------------------------------------------------- */

static void
judge_info (const uint8_t *p, uint32_t len)
{
  static const uint32_t lens[] = { 12, 0, 0, 14 };
  uint16_t type;

  if (len < 2)
    broken ("NBD_REP_INFO of %u bytes", len);
  type = u16 (p);
  if (type > NBD_INFO_BLOCK_SIZE || (lens[type] && len != lens[type]))
    broken ("NBD_REP_INFO: information %u of %u bytes", type, len);
}

/* The replies to OPTION.  True if the last one is an acknowledgement. */
static bool
judge_option (struct court *j, uint32_t option)
{
  for (;;) {
    const uint8_t *p = from_server (j, sizeof (struct nbd_option_reply), "reply to an option");
    uint32_t type, len;

    if (!p)
      return false;
    type = u32 (p + 12);
    len = u32 (p + 16);
    if (u64 (p) != NBD_OPTION_REPLY_MAGIC || u32 (p + 8) != option)
      broken ("reply to option %u: magic 0x%" PRIx64 ", option %u", option, u64 (p), u32 (p + 8));
    p = from_server (j, len, "data of a reply to an option");
    if (!p)
      return false;
    if (type & NBD_REP_ERROR_BIT) {
      if (type > NBD_REP_ERR_EXT_HEADER_REQD || type == NBD_REP_ERROR_BIT)
        broken ("reply to option %u: error 0x%08x is not known", option, type);
      return false;
    }
    switch (type) {
    case NBD_REP_ACK:
      if (len > 0)
        broken ("NBD_REP_ACK with %u bytes", len);
      return true;
    case NBD_REP_SERVER:
      if (option != NBD_OPT_LIST || len < 4 || u32 (p) > len - 4)
        broken ("reply to option %u: NBD_REP_SERVER of %u bytes", option, len);
      break;
    case NBD_REP_INFO:
      if (option != NBD_OPT_INFO && option != NBD_OPT_GO)
        broken ("NBD_REP_INFO for option %u", option);
      judge_info (p, len);
      break;
    case NBD_REP_META_CONTEXT:
      if ((option != NBD_OPT_LIST_META_CONTEXT && option != NBD_OPT_SET_META_CONTEXT) || len < 5)
        broken ("reply to option %u: NBD_REP_META_CONTEXT of %u bytes", option, len);
      if (option == NBD_OPT_SET_META_CONTEXT && u32 (p) < 64)
        j->contexts |= UINT64_C (1) << u32 (p);
      break;
    default:
      broken ("reply to option %u: type %u", option, type);
    }
  }
}

/* True once the transmission phase has begun. */
static bool
judge_handshake (struct court *j)
{
  const uint8_t *p = from_server (j, sizeof (struct nbd_hello), "greeting");
  bool no_zeroes;
  uint32_t flags;

  if (!p)
    return false;
  if (u64 (p) != NBD_MAGIC || u64 (p + 8) != NBD_OPTION_MAGIC)
    broken ("the greeting has other magic numbers");
  p = from_client (j, 4);
  if (!p)
    return false;
  flags = u32 (p);
  if (flags & ~3u) {
    must_drop (j, "unknown client flags");
    return false;
  }
  no_zeroes = flags & NBD_FLAG_NO_ZEROES;
  while (!j->over) {
    uint32_t option, len;

    p = from_client (j, sizeof (struct nbd_option));
    if (!p)
      return false;
    if (u64 (p) != NBD_OPTION_MAGIC) {
      must_drop (j, "an option with another magic number");
      return false;
    }
    option = u32 (p + 8);
    len = u32 (p + 12);
    if (!from_client (j, len)) {
      /* Too long to be waited for: refused, or dropped, at once. */
      return false;
    }
    if (option == NBD_OPT_EXPORT_NAME) {
      j->over = !from_server (j, no_zeroes ? 10 : 134, "reply to NBD_OPT_EXPORT_NAME");
      return !j->over;
    }
    if (option == NBD_OPT_SET_META_CONTEXT)
      j->contexts = 0;
    if (!judge_option (j, option))
      continue;
    switch (option) {
    case NBD_OPT_ABORT:
      if (j->s != j->t->server->n)
        broken ("the server goes on after NBD_OPT_ABORT");
      return false;
    case NBD_OPT_STRUCTURED_REPLY:
      j->mode = STRUCTURED;
      break;
    case NBD_OPT_EXTENDED_HEADERS:
      j->mode = EXTENDED;
      break;
    case NBD_OPT_GO:
      return true;
    case NBD_OPT_STARTTLS:
      broken ("NBD_OPT_STARTTLS was acknowledged without TLS");
    }
  }
  return false;
}

/* ---- requests -------------------------------------------------------------------------------- */

/* False if the cookie has been used: then nobody can tell which of the two a reply is for. */
static bool
note (struct court *j, const struct asked *a)
{
  for (unsigned i = 0; i < j->n_asked; ++i)
    if (j->asked[i].cookie == a->cookie)
      return false;
  if (j->n_asked == MAX_REQUESTS)
    return false;
  j->asked[j->n_asked++] = *a;
  return true;
}

/* What the client has sent of the next PAYLOAD bytes, which go with its last request. */
static void
note_payload (struct court *j, uint64_t payload)
{
  struct asked *a = &j->asked[j->n_asked - 1];
  uint64_t left = j->t->client->n - j->c;

  if (a->type != NBD_CMD_WRITE || left == 0)
    return;
  a->payload = j->t->client->data + j->c;
  a->sent = payload < left ? payload : left;
}

/* All that the client has asked for, as far as it has been sent whole.  False if that cannot be
 * judged. */
static bool
collect (struct court *j, bool *dropped)
{
  size_t header = j->mode == EXTENDED ? 32 : 28;
  uint32_t magic = j->mode == EXTENDED ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC;

  for (;;) {
    const uint8_t *p = from_client (j, header);
    uint64_t payload = 0;
    struct asked a;

    if (!p)
      return true;
    if (u32 (p) != magic) {
      *dropped = true;
      return true;
    }
    a = (struct asked){ .flags = u16 (p + 4),
                        .type = u16 (p + 6),
                        .cookie = u64 (p + 8),
                        .offset = u64 (p + 16),
                        .len = j->mode == EXTENDED ? u64 (p + 24) : u32 (p + 24) };
    if (j->mode != EXTENDED)
      payload = a.type == NBD_CMD_WRITE ? a.len : 0;
    else if (a.type == NBD_CMD_WRITE || (a.flags & NBD_CMD_FLAG_PAYLOAD_LEN))
      payload = a.len; /* QEMU's client does not say that a write has one */
    if (j->mode == EXTENDED && payload > NBD_MAX_PAYLOAD) {
      *dropped = true;
      return true;
    }
    if (a.type == NBD_CMD_DISC)
      return true;
    if (!note (j, &a))
      return false;
    note_payload (j, payload);
    if (!from_client (j, payload)) {
      /* It may be refused before its payload has come, or not be answered at all. */
      j->asked[j->n_asked - 1].done = true;
      return true;
    }
  }
}

/* ---- replies --------------------------------------------------------------------------------- */

static struct asked *
find (struct court *j, uint64_t cookie)
{
  for (unsigned i = 0; i < j->n_asked; ++i)
    if (j->asked[i].cookie == cookie)
      return &j->asked[i];
  broken ("a reply to cookie 0x%" PRIx64 ", for which there is no request", cookie);
}

static void
judge_error (uint32_t error)
{
  static const uint32_t known[] = { NBD_EPERM,  NBD_EIO,       NBD_ENOMEM,  NBD_EINVAL,
                                    NBD_ENOSPC, NBD_EOVERFLOW, NBD_ENOTSUP, NBD_ESHUTDOWN };

  for (size_t i = 0; i < sizeof known / sizeof known[0]; ++i)
    if (known[i] == error)
      return;
  broken ("a reply with error %u, which the protocol does not know", error);
}

/* What A may have made of the N bytes at OFFSET, which are DATA: where it could be its own, MINE.
 */
static void
claim (const struct asked *a, uint64_t offset, uint64_t n, const uint8_t *data, bool *mine)
{
  bool zeros = a->type == NBD_CMD_TRIM || a->type == NBD_CMD_WRITE_ZEROES;
  uint64_t len = zeros ? a->len : a->sent;
  uint64_t from = a->offset > offset ? a->offset : offset;

  for (uint64_t at = from; at - offset < n && at - a->offset < len; ++at)
    mine[at - offset] |= data[at - offset] == (zeros ? 0 : a->payload[at - a->offset]);
}

/* The part of the disk that DATA is: what it was, or what the client has made of it.  Nearly all of
 * it is right: pieces are compared at once. */
static void
compare (const struct court *j, uint64_t offset, uint64_t n, const uint8_t *data)
{
  const uint8_t *was = j->t->disk + offset;
  bool mine[PIECE] = { false };

  if (memcmp (data, was, n) == 0)
    return;
  for (unsigned i = 0; i < j->n_asked; ++i)
    claim (&j->asked[i], offset, n, data, mine);
  for (uint64_t i = 0; i < n; ++i)
    if (data[i] != was[i] && !mine[i])
      broken ("read: byte %" PRIu64
              " of the disk is 0x%02x, was 0x%02x, and nobody has written that",
              offset + i, data[i], was[i]);
}

/* The same for any number of bytes; NULL: zeros. */
static void
compare_all (const struct court *j, uint64_t offset, uint64_t len, const uint8_t *data)
{
  static const uint8_t zeros[PIECE];

  for (uint64_t at = 0, n; at < len; at += n) {
    n = len - at < PIECE ? len - at : PIECE;
    compare (j, offset + at, n, data ? data + at : zeros);
  }
}

static void
judge_data (struct court *j, struct asked *a, uint64_t offset, uint64_t len, const uint8_t *data)
{
  if (a->type != NBD_CMD_READ || offset < a->offset || offset - a->offset > a->len ||
      len > a->len - (offset - a->offset) || len == 0)
    broken ("%" PRIu64 " bytes at %" PRIu64 " for command %u of %" PRIu64 " bytes at %" PRIu64, len,
            offset, a->type, a->len, a->offset);
  a->covered += len;
  if (offset < j->t->size)
    compare_all (j, offset, len < j->t->size - offset ? len : j->t->size - offset, data);
}

static void
judge_simple (struct court *j)
{
  const uint8_t *p = from_server (j, sizeof (struct nbd_simple_reply), "simple reply"), *data;
  struct asked *a;
  uint32_t error;

  if (!p)
    return;
  if (u32 (p) != NBD_SIMPLE_REPLY_MAGIC)
    broken ("simple reply: magic 0x%08x", u32 (p));
  error = u32 (p + 4);
  a = find (j, u64 (p + 8));
  if (a->done && a->type != NBD_CMD_WRITE)
    broken ("a second reply to cookie 0x%" PRIx64, a->cookie);
  a->done = true;
  if (error) {
    judge_error (error);
    return;
  }
  if (a->type == NBD_CMD_BLOCK_STATUS)
    broken ("a simple reply to NBD_CMD_BLOCK_STATUS");
  if (a->type == NBD_CMD_READ && a->len > 0) {
    data = from_server (j, a->len, "data of a simple reply");
    if (data)
      judge_data (j, a, a->offset, a->len, data);
  }
}

static void
judge_status (struct court *j, struct asked *a, uint16_t type, const uint8_t *p, uint64_t len)
{
  size_t head = j->mode == EXTENDED ? 8 : 4, each = j->mode == EXTENDED ? 16 : 8;
  uint64_t n = len >= head ? (len - head) / each : 0, sum = 0;

  if (a->type != NBD_CMD_BLOCK_STATUS ||
      type != (j->mode == EXTENDED ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS))
    broken ("chunk %u for command %u", type, a->type);
  if (n == 0 || head + n * each != len || (j->mode == EXTENDED && u32 (p + 4) != n))
    broken ("block status of %" PRIu64 " bytes", len);
  if (u32 (p) >= 64 || !(j->contexts & UINT64_C (1) << u32 (p)))
    broken ("block status for context %u, which was not selected", u32 (p));
  for (uint64_t i = 0; i < n; ++i) {
    uint64_t l = j->mode == EXTENDED ? u64 (p + head + i * each) : u32 (p + head + i * each);

    if (l == 0)
      broken ("block status: descriptor %" PRIu64 " of no bytes", i);
    sum += l;
  }
  if ((a->flags & NBD_CMD_FLAG_REQ_ONE) && (n != 1 || sum > a->len) &&
      !(a->flags & NBD_CMD_FLAG_PAYLOAD_LEN))
    broken ("block status: %" PRIu64 " descriptors for one", n);
}

static void
judge_chunk (struct court *j)
{
  bool extended = j->mode == EXTENDED;
  size_t header =
      extended ? sizeof (struct nbd_extended_reply) : sizeof (struct nbd_structured_reply);
  const uint8_t *p = from_server (j, header, "chunk");
  uint16_t flags, type;
  struct asked *a;
  uint64_t len;

  if (!p)
    return;
  if (u32 (p) != (extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC))
    broken ("chunk: magic 0x%08x", u32 (p));
  flags = u16 (p + 4);
  type = u16 (p + 6);
  a = find (j, u64 (p + 8));
  len = extended ? u64 (p + 24) : u32 (p + 16);
  if (extended && u64 (p + 16) != a->offset)
    broken ("chunk: offset %" PRIu64 " for a request at %" PRIu64, u64 (p + 16), a->offset);
  if (flags & ~NBD_REPLY_FLAG_DONE)
    broken ("chunk: flags 0x%x", flags);
  if (a->done && a->type != NBD_CMD_WRITE && !(a->flags & NBD_CMD_FLAG_PAYLOAD_LEN))
    broken ("chunk: command %u, cookie 0x%" PRIx64 ", has been answered", a->type, a->cookie);
  p = from_server (j, len, "payload of a chunk");
  if (!p)
    return;
  a->chunks++;
  switch (type) {
  case NBD_REPLY_TYPE_NONE:
    if (len || !flags)
      broken ("NBD_REPLY_TYPE_NONE of %" PRIu64 " bytes, flags 0x%x", len, flags);
    break;
  case NBD_REPLY_TYPE_OFFSET_DATA:
    if (len < 9)
      broken ("NBD_REPLY_TYPE_OFFSET_DATA of %" PRIu64 " bytes", len);
    judge_data (j, a, u64 (p), len - 8, p + 8);
    break;
  case NBD_REPLY_TYPE_OFFSET_HOLE:
    if (len != sizeof (struct nbd_chunk_hole))
      broken ("NBD_REPLY_TYPE_OFFSET_HOLE of %" PRIu64 " bytes", len);
    judge_data (j, a, u64 (p), u32 (p + 8), NULL);
    break;
  case NBD_REPLY_TYPE_BLOCK_STATUS:
  case NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
    judge_status (j, a, type, p, len);
    break;
  case NBD_REPLY_TYPE_ERROR:
  case NBD_REPLY_TYPE_ERROR_OFFSET:
    if (len < 6 || 6ull + u16 (p + 4) + (type == NBD_REPLY_TYPE_ERROR ? 0 : 8) != len)
      broken ("an error chunk of %" PRIu64 " bytes", len);
    judge_error (u32 (p));
    a->failed = true;
    break;
  default:
    broken ("a chunk of type %u", type);
  }
  if (!flags)
    return;
  a->done = true;
  if (a->type == NBD_CMD_READ && !a->failed && a->covered != a->len)
    broken ("a read of %" PRIu64 " bytes was answered with %" PRIu64, a->len, a->covered);
  if (a->type == NBD_CMD_READ && (a->flags & NBD_CMD_FLAG_DF) && a->chunks > 1 && !a->failed)
    broken ("a read in one piece came in %u chunks", a->chunks);
}

static void
judge_transmission (struct court *j)
{
  bool dropped = false;

  if (!collect (j, &dropped))
    return;
  if (dropped && !j->t->cut)
    broken ("a request with another magic number, and the client was not disconnected");
  j->over = false;
  while (!j->over && j->s < j->t->server->n)
    if (j->mode == SIMPLE)
      judge_simple (j);
    else
      judge_chunk (j);
  for (unsigned i = 0; !j->t->cut && i < j->n_asked; ++i)
    if (!j->asked[i].done)
      broken ("command %u, cookie 0x%" PRIx64 ", has not been answered", j->asked[i].type,
              j->asked[i].cookie);
}

void
judge (const struct trial *t)
{
  struct court j = { .t = t, .asked = xalloc (MAX_REQUESTS * sizeof *j.asked) };

  if (judge_handshake (&j))
    judge_transmission (&j);
  free (j.asked);
}
