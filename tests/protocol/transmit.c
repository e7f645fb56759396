/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests and replies. Every reply received is held against each rule that its kind has, in
 * whatever case it comes; see check_* and take_*. */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client.h"

struct range {
  uint64_t start, end;
};

struct pending {
  struct pending *next;
  struct request r;
  struct reply *reply;
  bool done;
  struct range *content; /* where content chunks were; error offsets as ranges of a byte */
  size_t n_content;
  uint64_t covered;
};

/* Requests */

struct bytes *
put_header (struct bytes *b, enum mode mode, uint16_t flags, uint16_t type, uint64_t cookie,
            uint64_t offset, uint64_t length)
{
  put_u32 (b, mode == EXTENDED ? NBD_MAGIC_EXTENDED_REQUEST : NBD_MAGIC_REQUEST);
  put_u64 (put_u64 (put_u16 (put_u16 (b, flags), type), cookie), offset);
  return mode == EXTENDED ? put_u64 (b, length) : put_u32 (b, (uint32_t)length);
}

void
put_request (struct bytes *b, struct conn *c, const struct request *request)
{
  struct pending *p = test_alloc (c->t, sizeof *p), **last = &c->pending;
  struct request r = *request;
  uint64_t length = r.length;

  if (r.filter) {
    struct bytes *ids = put_u64 (bytes_new (c->t), r.length);

    for (size_t i = 0; i < r.n_ids; i++)
      put_u32 (ids, r.ids[i]);
    r.payload = ids->data;
    r.payload_len = ids->len;
  } else if (r.type == NBD_CMD_WRITE && r.payload_len == 0)
    r.payload_len = r.length;
  if (c->mode == EXTENDED && r.payload) {
    r.flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
    length = r.payload_len;
  }
  put_header (b, c->mode, r.flags, r.type, r.cookie, r.offset, length);
  if (r.payload)
    put (b, r.payload, r.payload_len);
  p->r = r;
  p->reply = test_alloc (c->t, sizeof *p->reply);
  p->reply->message = "";
  while (*last)
    last = &(*last)->next;
  *last = p;
}

uint64_t
send_request (struct conn *c, struct request r)
{
  struct bytes *b = bytes_new (c->t);

  if (r.cookie == 0)
    r.cookie = c->next_cookie++;
  put_request (b, c, &r);
  conn_send_bytes (c, b);
  return r.cookie;
}

/* Replies */

const char *
error_name (uint32_t error)
{
  switch (error) {
  case NBD_OK:
    return "success";
  case NBD_EPERM:
    return "EPERM";
  case NBD_EIO:
    return "EIO";
  case NBD_ENOMEM:
    return "ENOMEM";
  case NBD_EINVAL:
    return "EINVAL";
  case NBD_ENOSPC:
    return "ENOSPC";
  case NBD_EOVERFLOW:
    return "EOVERFLOW";
  case NBD_ENOTSUP:
    return "ENOTSUP";
  case NBD_ESHUTDOWN:
    return "ESHUTDOWN";
  default:
    return NULL;
  }
}

static uint32_t
limit (const struct conn *c)
{
  return c->t->target->max_payload ? c->t->target->max_payload : UINT32_MAX;
}

static void
check_error_value (struct conn *c, const struct pending *p, uint32_t error)
{
  const struct request *r = &p->r;

  CHECK (c->t, error != 0, "an error chunk without an error");
  CHECK (c->t, error_name (error), "error %" PRIu32 " is not defined", error);
  if (error == NBD_ENOTSUP)
    CHECK (c->t, r->type == NBD_CMD_WRITE_ZEROES && (r->flags & NBD_CMD_FLAG_FAST_ZERO),
           "ENOTSUP in answer to other than a fast zero request");
  if (error == NBD_EOVERFLOW)
    CHECK (c->t, r->type == NBD_CMD_READ || (r->payload == NULL && r->length > NBD_ANY_PAYLOAD),
           "EOVERFLOW in answer to request type %u of %" PRIu64 " bytes", r->type, r->length);
}

/* Notes that [start, start + len) has been told, which must be inside the request and new. */
static void
take_content (struct conn *c, struct pending *p, uint64_t start, uint64_t len, bool is_error)
{
  const struct request *r = &p->r;
  struct range range = { start, start + len };

  CHECK (c->t,
         start >= r->offset && start - r->offset < r->length && len <= r->length &&
             start - r->offset <= r->length - len,
         "a chunk about %" PRIu64 "+%" PRIu64 " in answer to %" PRIu64 "+%" PRIu64, start, len,
         r->offset, r->length);
  for (size_t i = 0; !is_error && i < p->n_content; i++)
    CHECK (c->t, range.end <= p->content[i].start || range.start >= p->content[i].end,
           "a chunk about %" PRIu64 "+%" PRIu64 " overlaps an earlier one", start, len);
  p->content = test_realloc (c->t, p->content, (p->n_content + 1) * sizeof range);
  p->content[p->n_content++] = range;
  if (!is_error)
    p->covered += len;
}

static void
take_data (struct conn *c, struct pending *p, uint64_t len)
{
  uint8_t b[8];
  uint64_t start;

  CHECK (c->t, p->r.type == NBD_CMD_READ, "a data chunk in answer to request type %u", p->r.type);
  CHECK (c->t, len >= 9, "a data chunk of %" PRIu64 " bytes", len);
  CHECK (c->t, len - 8 <= limit (c), "a data chunk of %" PRIu64 " bytes exceeds the limit",
         len - 8);
  conn_recv (c, b, 8, "a data chunk's offset");
  start = get_u64 (b);
  take_content (c, p, start, len - 8, false);
  if (p->reply->data == NULL)
    p->reply->data = test_alloc (c->t, p->r.length);
  conn_recv (c, p->reply->data + (start - p->r.offset), len - 8, "a data chunk's data");
  p->reply->data_chunks++;
}

static void
take_hole (struct conn *c, struct pending *p, uint64_t len)
{
  uint8_t b[12];

  CHECK (c->t, p->r.type == NBD_CMD_READ, "a hole chunk in answer to request type %u", p->r.type);
  CHECK (c->t, len == 12, "a hole chunk of %" PRIu64 " bytes", len);
  conn_recv (c, b, 12, "a hole chunk");
  CHECK (c->t, get_u32 (b + 8) > 0, "a hole of 0 bytes");
  take_content (c, p, get_u64 (b), get_u32 (b + 8), false);
  if (p->reply->data == NULL)
    p->reply->data = test_alloc (c->t, p->r.length);
  p->reply->hole_chunks++;
}

static void
check_extents (struct conn *c, const struct pending *p, const struct status *s, const char *name)
{
  const struct request *r = &p->r;
  uint64_t sum = 0;

  CHECK (c->t, s->n > 0, "no extents for context %s", name);
  CHECK (c->t, s->n <= NBD_MAX_EXTENTS, "%zu extents in a chunk", s->n);
  if (r->flags & NBD_CMD_FLAG_REQ_ONE)
    CHECK (c->t, s->n == 1 && (s->extents[0].length <= r->length || r->length == 0),
           "%zu extents, the first of %" PRIu64 " bytes, for one of at most %" PRIu64, s->n,
           s->extents[0].length, r->length);
  for (size_t i = 0; i < s->n; i++) {
    uint64_t len = s->extents[i].length;

    CHECK (c->t, len > 0, "an extent of 0 bytes for context %s", name);
    CHECK (c->t, i == 0 || sum < r->length, "extent %zu starts behind the range asked for", i);
    CHECK (c->t, len <= c->size - r->offset - sum, "extents go past the end of the export");
    sum += len;
    CHECK (c->t, len % c->t->target->min_block == 0 || r->offset + sum == c->size,
           "an extent of %" PRIu64 " bytes is no multiple of the minimum block size", len);
    if (strcmp (name, "base:allocation") == 0)
      CHECK (c->t, (s->extents[i].flags & ~UINT64_C (3)) == 0,
             "base:allocation flags %#" PRIx64 " have reserved bits", s->extents[i].flags);
  }
}

static void
take_status (struct conn *c, struct pending *p, uint64_t len, bool extended)
{
  const uint64_t head = extended ? 8 : 4, each = extended ? 16 : 8;
  const char *name = NULL;
  struct status s;
  uint8_t *b;

  CHECK (c->t, p->r.type == NBD_CMD_BLOCK_STATUS, "a status chunk in answer to request type %u",
         p->r.type);
  CHECK (c->t,
         len >= head + each && (len - head) % each == 0 && len <= head + each * NBD_MAX_EXTENTS,
         "a status chunk of %" PRIu64 " bytes", len);
  b = test_alloc (c->t, len);
  conn_recv (c, b, len, "a status chunk");
  s.id = get_u32 (b);
  s.n = (len - head) / each;
  if (extended)
    CHECK (c->t, get_u32 (b + 4) == s.n, "a status chunk of %zu extents says it has %" PRIu32, s.n,
           get_u32 (b + 4));
  s.extents = test_alloc (c->t, s.n * sizeof *s.extents);
  for (size_t i = 0; i < s.n; i++) {
    const uint8_t *e = b + head + i * each;

    s.extents[i].length = extended ? get_u64 (e) : get_u32 (e);
    s.extents[i].flags = extended ? get_u64 (e + 8) : get_u32 (e + 4);
  }
  for (size_t i = 0; i < c->n_contexts; i++)
    if (c->contexts[i].id == s.id)
      name = c->contexts[i].name;
  CHECK (c->t, name, "a status chunk for context id %" PRIu32 ", which was not selected", s.id);
  for (size_t i = 0; i < p->reply->n_status; i++)
    CHECK (c->t, p->reply->status[i].id != s.id, "two status chunks for context %s", name);
  check_extents (c, p, &s, name);
  p->reply->status = test_realloc (c->t, p->reply->status, (p->reply->n_status + 1) * sizeof s);
  p->reply->status[p->reply->n_status++] = s;
}

static void
take_error (struct conn *c, struct pending *p, uint64_t len, bool with_offset)
{
  const uint64_t head = with_offset ? 14 : 6;
  uint16_t text;
  uint8_t *b;

  CHECK (c->t, len >= head && len <= head + NBD_MAX_STRING, "an error chunk of %" PRIu64 " bytes",
         len);
  b = test_alloc (c->t, len + 1);
  conn_recv (c, b, len, "an error chunk");
  check_error_value (c, p, get_u32 (b));
  text = get_u16 (b + 4);
  CHECK (c->t, text <= len - head, "an error text of %u bytes in a chunk of %" PRIu64, text, len);
  CHECK (c->t, is_nbd_string (b + 6, text), "an error's text is no valid string");
  if (with_offset) {
    CHECK (c->t, p->r.type != NBD_CMD_FLUSH && p->r.type <= NBD_CMD_BLOCK_STATUS,
           "an error with an offset in answer to request type %u", p->r.type);
    take_content (c, p, get_u64 (b + 6 + text), 1, true);
    b[6 + text] = 0;
  }
  if (p->reply->error == 0) {
    p->reply->error = get_u32 (b);
    p->reply->message = (const char *)b + 6;
  }
}

/* The last chunk has come: is all there? */
static void
finish (struct conn *c, struct pending *p)
{
  const struct request *r = &p->r;
  const struct reply *reply = p->reply;

  p->done = true;
  c->message = reply->message;
  if (r->type == NBD_CMD_READ) {
    if (r->flags & NBD_CMD_FLAG_DF)
      CHECK (c->t, reply->data_chunks + reply->hole_chunks <= 1, "%zu chunks in spite of DF",
             reply->data_chunks + reply->hole_chunks);
    if (reply->error == 0)
      CHECK (c->t, p->covered == r->length,
             "a successful read of %" PRIu64 " bytes brought %" PRIu64, r->length, p->covered);
  }
  if (r->type == NBD_CMD_BLOCK_STATUS && reply->error == 0) {
    size_t want = r->filter ? r->n_ids : c->n_contexts;

    CHECK (c->t, reply->n_status == want, "status chunks for %zu contexts, not %zu",
           reply->n_status, want);
    for (size_t i = 0; r->filter && i < reply->n_status; i++) {
      bool asked = false;

      for (size_t j = 0; j < r->n_ids; j++)
        asked |= r->ids[j] == reply->status[i].id;
      CHECK (c->t, asked, "a status chunk for context id %" PRIu32 ", which was filtered out",
             reply->status[i].id);
    }
  }
}

static struct pending *
find_pending (struct conn *c, uint64_t cookie)
{
  struct pending *p = c->pending;

  while (p && (p->done || p->r.cookie != cookie))
    p = p->next;
  CHECK (c->t, p, "a reply with cookie %#" PRIx64 ", which is not in flight", cookie);
  return p;
}

static void
recv_simple (struct conn *c)
{
  struct pending *p;
  uint8_t b[12];
  uint32_t error;

  CHECK (c->t, c->mode != EXTENDED, "a simple reply, though extended headers were negotiated");
  conn_recv (c, b, sizeof b, "a simple reply");
  error = get_u32 (b);
  p = find_pending (c, get_u64 (b + 4));
  if (c->mode == STRUCTURED) {
    CHECK (c->t, p->r.type != NBD_CMD_READ,
           "a simple reply to a read, though structured replies were negotiated");
    CHECK (c->t, p->r.type != NBD_CMD_BLOCK_STATUS || error != 0,
           "a simple reply for success of block status");
    CHECK (c->t, p->n_content == 0 && p->reply->n_status == 0, "a simple reply after chunks");
  }
  if (error)
    check_error_value (c, p, error);
  else if (p->r.type == NBD_CMD_READ) {
    p->reply->data = test_alloc (c->t, p->r.length);
    conn_recv (c, p->reply->data, p->r.length, "a read's data");
    p->covered = p->r.length;
  }
  p->reply->error = error;
  p->reply->simple = true;
  finish (c, p);
}

static void
recv_chunk (struct conn *c, bool extended)
{
  struct pending *p;
  uint8_t b[28];
  uint16_t flags, type;
  uint64_t len;

  CHECK (c->t, c->mode == (extended ? EXTENDED : STRUCTURED),
         "%s reply chunk, which was not negotiated", extended ? "an extended" : "a structured");
  conn_recv (c, b, extended ? 28 : 16, "a reply chunk");
  flags = get_u16 (b);
  type = get_u16 (b + 2);
  p = find_pending (c, get_u64 (b + 4));
  if (extended) {
    CHECK (c->t, get_u64 (b + 12) == p->r.offset, "a reply's offset is %" PRIu64 ", not %" PRIu64,
           get_u64 (b + 12), p->r.offset);
    len = get_u64 (b + 20);
  } else
    len = get_u32 (b + 12);
  CHECK (c->t, (flags & ~NBD_REPLY_FLAG_DONE) == 0, "reply flags %#x are not defined", flags);
  switch (type) {
  case NBD_REPLY_TYPE_NONE:
    CHECK (c->t, flags & NBD_REPLY_FLAG_DONE, "a chunk of type NONE is not the last");
    CHECK (c->t, len == 0, "a chunk of type NONE has %" PRIu64 " bytes", len);
    break;
  case NBD_REPLY_TYPE_OFFSET_DATA:
    take_data (c, p, len);
    break;
  case NBD_REPLY_TYPE_OFFSET_HOLE:
    take_hole (c, p, len);
    break;
  case NBD_REPLY_TYPE_BLOCK_STATUS:
  case NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
    CHECK (c->t, (type == NBD_REPLY_TYPE_BLOCK_STATUS_EXT) == extended,
           "a status chunk of type %u in the wrong mode", type);
    take_status (c, p, len, extended);
    break;
  case NBD_REPLY_TYPE_ERROR:
  case NBD_REPLY_TYPE_ERROR_OFFSET:
    take_error (c, p, len, type == NBD_REPLY_TYPE_ERROR_OFFSET);
    break;
  default:
    fail (c->t, "chunk type %#x is not defined", type);
  }
  if (flags & NBD_REPLY_FLAG_DONE)
    finish (c, p);
}

static void
recv_message (struct conn *c)
{
  uint8_t b[4];

  conn_recv (c, b, sizeof b, "a reply");
  switch (get_u32 (b)) {
  case NBD_MAGIC_SIMPLE_REPLY:
    recv_simple (c);
    break;
  case NBD_MAGIC_STRUCTURED_REPLY:
    recv_chunk (c, false);
    break;
  case NBD_MAGIC_EXTENDED_REPLY:
    recv_chunk (c, true);
    break;
  default:
    fail (c->t, "a reply's magic is %#" PRIx32, get_u32 (b));
  }
}

struct reply *
recv_reply (struct conn *c, uint64_t cookie)
{
  struct pending **link = &c->pending, *p;

  while (*link && (*link)->r.cookie != cookie)
    link = &(*link)->next;
  p = *link;
  CHECK (c->t, p, "the case waits for cookie %#" PRIx64 ", which it never sent", cookie);
  while (!p->done)
    recv_message (c);
  *link = p->next;
  return p->reply;
}

bool
reply_came (const struct conn *c, uint64_t cookie)
{
  const struct pending *p = c->pending;

  while (p && p->r.cookie != cookie)
    p = p->next;
  return p && p->done;
}

struct reply *
ask (struct conn *c, struct request r)
{
  return recv_reply (c, send_request (c, r));
}

void
recv_all (struct conn *c)
{
  while (c->pending) {
    uint16_t type = c->pending->r.type;
    const struct reply *r = recv_reply (c, c->pending->r.cookie);

    CHECK (c->t, r->error == 0, "request type %u: %s", type, error_name (r->error));
  }
}

uint32_t
do_cmd (struct conn *c, uint16_t type, uint16_t flags, uint64_t offset, uint64_t length)
{
  return ask (c,
              (struct request){ .type = type, .flags = flags, .offset = offset, .length = length })
      ->error;
}

uint32_t
do_write (struct conn *c, uint16_t flags, uint64_t offset, const void *data, size_t len)
{
  return ask (c, (struct request){ .type = NBD_CMD_WRITE,
                                   .flags = flags,
                                   .offset = offset,
                                   .length = len,
                                   .payload = data })
      ->error;
}

uint8_t *
do_read (struct conn *c, uint64_t offset, size_t len)
{
  const struct reply *r =
      ask (c, (struct request){ .type = NBD_CMD_READ, .offset = offset, .length = len });

  CHECK (c->t, r->error == 0, "reading %" PRIu64 "+%zu: %s (%s)", offset, len,
         error_name (r->error), r->message);
  return r->data;
}

void
expect_error (struct conn *c, uint32_t error, const char *what, const uint32_t *wanted)
{
  char list[200] = "";

  for (const uint32_t *w = wanted; *w != UINT32_MAX; w++) {
    if (error == *w)
      return;
    snprintf (list + strlen (list), sizeof list - strlen (list), "%s%s", w == wanted ? "" : " or ",
              error_name (*w));
  }
  fail (c->t, "%s: %s%s%s%s, not %s", what, error_name (error), c->message[0] ? " (" : "",
        c->message, c->message[0] ? ")" : "", list);
}

void
fill_pattern (uint8_t *p, uint64_t offset, size_t len)
{
  for (size_t i = 0; i < len; i++) {
    uint64_t at = offset + i, word = (at & ~UINT64_C (7)) + 1;

    p[i] = (uint8_t)(word >> (8 * (7 - (at & 7))));
  }
}

void
expect_pattern (struct conn *c, const uint8_t *p, uint64_t offset, size_t len)
{
  uint8_t want[4096];

  while (len > 0) {
    size_t n = len < sizeof want ? len : sizeof want;

    fill_pattern (want, offset, n);
    for (size_t i = 0; i < n; i++)
      CHECK (c->t, p[i] == want[i], "byte %" PRIu64 " reads as %#x, not %#x", offset + i, p[i],
             want[i]);
    p += n;
    offset += n;
    len -= n;
  }
}

bool
all_zero (const uint8_t *p, size_t len)
{
  return len == 0 || (p[0] == 0 && memcmp (p, p + 1, len - 1) == 0);
}

uint32_t
max_payload (const struct test *t)
{
  uint32_t told = t->target->max_payload;

  return told && told < NBD_ANY_PAYLOAD ? told : NBD_ANY_PAYLOAD;
}

uint32_t
unit (const struct test *t)
{
  return t->target->min_block;
}

void
expect_in_sync (struct conn *c)
{
  size_t len = unit (c->t) > 512 ? unit (c->t) : 512;
  const uint8_t *p = do_read (c, 0, len);

  if (c->t->target->has & PATTERN)
    expect_pattern (c, p, 0, len);
}

void
expect_alive (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_in_sync (c);
  conn_close (c);
}
