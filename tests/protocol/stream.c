/* SPDX-License-Identifier: BSD-3-Clause */

/* The stream of requests: cookies, many requests at once, requests in pieces, how it ends, and
 * several streams to one export.
 */

#include <inttypes.h>
#include <string.h>

#include "client.h"

/* Cookies */

static void
cookies (struct test *t)
{
  static const uint64_t values[] = { 1, UINT64_MAX, UINT64_C (1) << 63,
                                     UINT64_C (0x6744669867446698), UINT64_C (0x668e33ef668e33ef) };
  struct conn *c = open_transmission (t);

  for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
    const struct request good = { .type = NBD_CMD_READ, .cookie = values[i], .length = 4096 };
    const struct request bad = {
      .type = NBD_CMD_READ, .cookie = values[i], .offset = t->target->size, .length = 4096
    };

    CHECK (t, ask (c, good)->error == 0, "a read failed");
    CHECK (t, ask (c, bad)->error != 0, "a read past the end succeeded");
  }
}

/* A cookie is opaque: 0 is one, and two requests may even share it. */
static void
cookie_zero_twice (struct test *t)
{
  struct conn *c = open_transmission (t);
  const struct request r = { .type = NBD_CMD_READ, .length = 4096 };
  struct bytes *b = bytes_new (t);

  put_request (b, c, &r);
  put_request (b, c, &r);
  conn_send_bytes (c, b);
  recv_all (c);
  expect_in_sync (c);
}

/* Pipelining */

static void
pipeline_reads (struct test *t)
{
  enum { N = 64 };
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);
  const size_t len = 16 * KiB;

  for (uint64_t i = 0; i < N; i++)
    put_request (
        b, c,
        &(struct request){
            .type = NBD_CMD_READ, .cookie = i + 1, .offset = (i * 37 % N) * len, .length = len });
  conn_send_bytes (c, b);
  for (uint64_t i = N; i-- > 0;) { /* asking for the last first */
    const struct reply *r = recv_reply (c, i + 1);

    CHECK (t, r->error == 0, "read %" PRIu64 ": %s", i, error_name (r->error));
    if (t->target->has & PATTERN)
      expect_pattern (c, r->data, (i * 37 % N) * len, len);
  }
}

static void
pipeline_writes (struct test *t)
{
  enum { N = 64 };
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);
  const size_t len = 4 * KiB > unit (t) ? 4 * KiB : unit (t);
  uint8_t *p = test_alloc (t, len);

  for (uint64_t i = 0; i < N; i++) {
    memset (p, (int)i + 1, len);
    put_request (b, c,
                 &(struct request){ .type = NBD_CMD_WRITE,
                                    .cookie = i + 1,
                                    .offset = SCRATCH + (i * 37 % N) * len,
                                    .length = len,
                                    .payload = p });
  }
  conn_send_bytes (c, b);
  recv_all (c);
  for (uint64_t i = 0; i < N; i++) {
    const uint8_t *got = do_read (c, SCRATCH + (i * 37 % N) * len, len);

    for (size_t j = 0; j < len; j++)
      CHECK (t, got[j] == i + 1, "write %" PRIu64 " reads back as %#x", i, got[j]);
  }
}

/* Right and wrong requests of every kind in one packet. */
static void
pipeline_mixed (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t size = t->target->size;
  const bool writable = t->target->has & WRITABLE;
  const struct request kinds[] = {
    { .type = NBD_CMD_READ, .offset = 64 * KiB, .length = 4 * KiB },
    { .type = NBD_CMD_READ, .offset = size, .length = 4096 },
    { .type = NBD_CMD_WRITE, .offset = SCRATCH, .length = 8 * KiB },
    { .type = NBD_CMD_WRITE, .offset = size, .length = 8 * KiB },
    { .type = 0x4242, .length = 4096 },
    { .type = NBD_CMD_READ, .flags = 0x8000, .length = 4096 },
    { .type = NBD_CMD_WRITE, .flags = 0x8000, .offset = SCRATCH, .length = 100 * KiB },
  };
  const bool fails[] = { false, true, !writable, true, true, true, true };
  enum { KINDS = sizeof kinds / sizeof kinds[0], ROUNDS = 10 };
  struct bytes *b = bytes_new (t);

  for (uint64_t i = 0; i < ROUNDS * KINDS; i++) {
    struct request r = kinds[i % KINDS];

    r.cookie = i + 1;
    if (r.type == NBD_CMD_WRITE)
      r.payload = test_alloc (t, r.length);
    put_request (b, c, &r);
  }
  conn_send_bytes (c, b);
  for (uint64_t i = 0; i < ROUNDS * KINDS; i++) {
    const struct reply *r = recv_reply (c, i + 1);

    CHECK (t, !!r->error == fails[i % KINDS], "request kind %d: %s", (int)(i % KINDS),
           error_name (r->error));
  }
  expect_in_sync (c);
}

static void
pipeline_thousands (struct test *t)
{
  enum { N = 5000 };
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);
  size_t head = c->mode == EXTENDED ? 32 : 20;

  /* their replies are read without the help of a table of that size */
  for (uint64_t i = 0; i < N; i++)
    put_header (b, c->mode, 0, 0x4242, i, 0, 0);
  conn_send_bytes (c, b);
  for (size_t i = 0; i < N; i++) {
    uint8_t h[32];
    uint64_t rest;

    conn_recv (c, h, 16, "a reply");
    if (get_u32 (h) == NBD_MAGIC_SIMPLE_REPLY)
      continue;
    conn_recv (c, h + 16, head - 16, "a reply chunk");
    rest = c->mode == EXTENDED ? get_u64 (h + 24) : get_u32 (h + 16);
    CHECK (t, rest <= 6 + NBD_MAX_STRING && (get_u16 (h + 4) & NBD_REPLY_FLAG_DONE),
           "an error reply of %" PRIu64 " bytes", rest);
    conn_skip (c, rest, "an error chunk");
  }
  expect_in_sync (c);
}

/* Pieces */

static void
split_requests (struct test *t)
{
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);

  put_request (b, c, &(struct request){ .type = NBD_CMD_READ, .cookie = 1, .length = 4096 });
  put_request (
      b, c, &(struct request){ .type = NBD_CMD_READ, .cookie = 2, .offset = 4096, .length = 4096 });
  conn_send_slowly (c, b);
  recv_all (c);
}

static void
split_write (struct test *t)
{
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);
  const size_t len = unit (t) > 512 ? unit (t) : 512;
  uint8_t *p = test_alloc (t, len);

  for (size_t i = 0; i < len; i++)
    p[i] = (uint8_t)(i * 7);
  put_request (
      b, c,
      &(struct request){
          .type = NBD_CMD_WRITE, .cookie = 1, .offset = SCRATCH, .length = len, .payload = p });
  conn_send_slowly (c, b);
  recv_all (c);
  CHECK (t, memcmp (do_read (c, SCRATCH, len), p, len) == 0, "what was written is not read");
}

/* Each packet ends in the middle of a request and starts the rest of it. */
static void
split_unevenly (struct test *t)
{
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);
  const size_t len = 64 * KiB, steps[] = { 1, 31, 64 * KiB - 3, 17, 5, 64 * KiB + 40, 3, 29 };
  uint8_t *p = test_alloc (t, len);
  size_t at = 0;

  for (uint64_t i = 0; i < 16; i++) {
    memset (p, (int)i + 100, len);
    put_request (b, c,
                 &(struct request){ .type = NBD_CMD_WRITE,
                                    .cookie = i + 1,
                                    .offset = SCRATCH + i * len,
                                    .length = len,
                                    .payload = p });
  }
  for (size_t i = 0; at < b->len; i++) {
    size_t n = steps[i % (sizeof steps / sizeof steps[0])];

    n = n < b->len - at ? n : b->len - at;
    conn_send (c, b->data + at, n);
    at += n;
  }
  recv_all (c);
  for (uint64_t i = 0; i < 16; i++) {
    const uint8_t *got = do_read (c, SCRATCH + i * len, len);

    CHECK (t, got[0] == i + 100 && memcmp (got, got + 1, len - 1) == 0,
           "write %" PRIu64 " is wrong", i);
  }
}

/* The end */

static void
wrong_magic (struct test *t)
{
  const uint32_t wrong[] = {
    t->mode == EXTENDED ? NBD_MAGIC_REQUEST : NBD_MAGIC_EXTENDED_REQUEST,
    0,
    UINT32_MAX,
    0x12560953, /* of old */
    0x25609514,
    NBD_MAGIC_SIMPLE_REPLY,
  };

  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    struct conn *c = open_transmission (t);
    struct bytes *b = put_u32 (bytes_new (t), wrong[i]);

    conn_send_bytes (c, put_fill (b, 0, 28));
    expect_eof (c, "on a wrong request magic");
  }
  expect_alive (t);
}

/* Good requests ahead of it may be answered or not; the rest is not. */
static void
wrong_magic_later (struct test *t)
{
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);

  put_request (b, c, &(struct request){ .type = NBD_CMD_READ, .cookie = 1, .length = 4096 });
  put_fill (b, 0xee, 64);
  put_request (b, c, &(struct request){ .type = NBD_CMD_READ, .cookie = 2, .length = 4096 });
  conn_send_bytes (c, b);
  if (!conn_at_eof (c)) {
    recv_reply (c, 1);
    expect_eof (c, "on a wrong request magic");
  }
}

static void
disconnect (struct test *t)
{
  struct conn *c = open_transmission (t);

  conn_send_bytes (c, put_header (bytes_new (t), c->mode, 0, NBD_CMD_DISC, 1, 0, 0));
  expect_eof (c, "after DISC");
}

static void
disconnect_odd (struct test *t)
{
  const uint64_t fields[][3] = {
    { 0, 512, 512 }, { 0, UINT64_MAX, UINT32_MAX }, { 1, 0, 0 }, { 0x8000, 0, 0 }
  };

  for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
    struct conn *c = open_transmission (t);

    conn_send_bytes (c, put_header (bytes_new (t), c->mode, (uint16_t)fields[i][0], NBD_CMD_DISC, 1,
                                    fields[i][1], fields[i][2]));
    expect_eof (c, "after DISC");
  }
}

static void
disconnect_in_flight (struct test *t)
{
  enum { N = 32 };
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);

  for (uint64_t i = 0; i < N; i++)
    put_request (
        b, c,
        &(struct request){
            .type = NBD_CMD_READ, .cookie = i + 1, .offset = i * 1 * MiB, .length = 128 * KiB });
  conn_send_bytes (c, put_header (b, c->mode, 0, NBD_CMD_DISC, 99, 0, 0));
  recv_all (c);
  expect_eof (c, "after DISC");
}

static void
disconnect_after_writes (struct test *t)
{
  enum { N = 8 };
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);
  const size_t len = 64 * KiB;
  uint8_t *p = test_alloc (t, len);

  memset (p, 0x40 + (int)t->mode, len);
  for (uint64_t i = 0; i < N; i++)
    put_request (b, c,
                 &(struct request){ .type = NBD_CMD_WRITE,
                                    .cookie = i + 1,
                                    .offset = SCRATCH + 30 * MiB + i * len,
                                    .length = len,
                                    .payload = p });
  conn_send_bytes (c, put_header (b, c->mode, 0, NBD_CMD_DISC, 99, 0, 0));
  recv_all (c);
  expect_eof (c, "after DISC");
  c = open_transmission (t);
  for (uint64_t i = 0; i < N; i++)
    CHECK (t, memcmp (do_read (c, SCRATCH + 30 * MiB + i * len, len), p, len) == 0,
           "write %" PRIu64 " before DISC is lost", i);
}

static void
nothing_after_disconnect (struct test *t)
{
  struct conn *c = open_transmission (t);
  struct bytes *b = put_header (bytes_new (t), c->mode, 0, NBD_CMD_DISC, 1, 0, 0);

  put_header (b, c->mode, 0, NBD_CMD_READ, 2, 0, 4096);
  conn_send_bytes (c, b);
  expect_eof (c, "after DISC");
}

static void
leave_in_the_middle (struct test *t)
{
  struct bytes *whole = bytes_new (t);
  uint16_t flags = t->mode == EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;

  put_header (whole, t->mode, flags, NBD_CMD_WRITE, 1, SCRATCH, 64 * KiB);
  put_fill (whole, 0, 64 * KiB);
  for (size_t len = 1; len < whole->len; len = len * 3 + 1) {
    struct conn *c = open_transmission (t);

    conn_send (c, whole->data, len);
    conn_close (c);
  }
  expect_alive (t);
}

static void
leave_with_replies_due (struct test *t)
{
  for (int i = 0; i < 10; i++) {
    struct conn *c = open_transmission (t);
    struct bytes *b = bytes_new (t);

    for (uint64_t j = 0; j < 16; j++)
      put_header (b, c->mode, 0, NBD_CMD_READ, j, j * 1 * MiB, 1 * MiB);
    conn_send_bytes (c, b);
    if (i % 2)
      conn_close (c);
    else
      conn_reset (c);
  }
  expect_alive (t);
}

/* Several connections */

static void
many_connections (struct test *t)
{
  enum { N = 32 };
  struct conn *c[N];
  const size_t len = 64 * KiB;

  for (int i = 0; i < N; i++)
    c[i] = open_transmission (t);
  for (uint64_t round = 0; round < 4; round++) {
    for (uint64_t i = 0; i < N; i++)
      send_request (c[i], (struct request){ .type = NBD_CMD_READ,
                                            .cookie = round + 1,
                                            .offset = (i * 4 + round) * len,
                                            .length = len });
    for (uint64_t i = N; i-- > 0;) {
      const struct reply *r = recv_reply (c[i], round + 1);

      CHECK (t, r->error == 0, "read: %s", error_name (r->error));
      if (t->target->has & PATTERN)
        expect_pattern (c[i], r->data, (i * 4 + round) * len, len);
    }
  }
}

/* All modes at once on one export. */
static void
modes_together (struct test *t)
{
  struct conn *c[MODES];

  for (enum mode m = SIMPLE; m < MODES; m++) {
    t->mode = m;
    c[m] = m == EXTENDED && !(t->target->has & HEADERS) ? NULL : open_transmission (t);
  }
  for (int round = 0; round < 3; round++)
    for (enum mode m = SIMPLE; m < MODES; m++)
      if (c[m])
        expect_in_sync (c[m]);
}

/* Writes on one connection, reads on another, after what makes the effects visible. */
static void
coherent (struct test *t, uint16_t flags, bool flushing)
{
  struct conn *a = open_transmission (t), *b = open_transmission (t);
  const uint64_t at = SCRATCH + 40 * MiB;
  const size_t len = 64 * KiB;
  uint8_t *p = test_alloc (t, len);

  for (int i = 1; i <= 20; i++) {
    struct conn *writer = i % 2 ? a : b, *reader = i % 2 ? b : a;

    memset (p, i, len);
    expect_error (writer, do_write (writer, flags, at, p, len), "write", SUCCESS);
    if (flushing)
      expect_error (writer, do_cmd (writer, NBD_CMD_FLUSH, 0, 0, 0), "flush", SUCCESS);
    CHECK (t, memcmp (do_read (reader, at, len), p, len) == 0,
           "write %d is not seen on the other connection", i);
  }
}

static void
coherent_by_flush (struct test *t)
{
  coherent (t, 0, true);
}

static void
coherent_by_fua (struct test *t)
{
  coherent (t, NBD_CMD_FLAG_FUA, false);
}

/* A flush on one connection covers what the others were told is written. */
static void
flush_covers_others (struct test *t)
{
  struct conn *a = open_transmission (t), *b = open_transmission (t);
  const uint64_t at = SCRATCH + 41 * MiB;
  const size_t len = 64 * KiB;
  uint8_t *p = test_alloc (t, len);

  memset (p, 0xf1, len);
  expect_error (a, do_write (a, 0, at, p, len), "write", SUCCESS);
  expect_error (b, do_cmd (b, NBD_CMD_FLUSH, 0, 0, 0), "flush", SUCCESS);
  CHECK (t, memcmp (do_read (open_transmission (t), at, len), p, len) == 0,
         "a third connection does not see what was flushed");
}

#define COOKIE   "the reply has the request's cookie, whatever it is"
#define PACKETS  "how the bytes are divided into packets means nothing"
#define DISC     "DISC: all requests before it are handled, then the session ends without a reply"
#define COHERENT "with CAN_MULTI_CONN the effects of FLUSH and FUA MUST be visible everywhere"

const struct tcase stream_cases[] = {
  { "cookie.any", IN_ALL, PLAIN, cookies, COOKIE },
  { "cookie.zero-twice", IN_ALL, PLAIN, cookie_zero_twice, COOKIE },
  { "pipeline.reads", IN_ALL, PLAIN, pipeline_reads, "64 requests in one packet, 64 replies" },
  { "pipeline.writes", IN_ALL, PLAIN | WRITABLE, pipeline_writes,
    "64 requests in one packet, 64 replies" },
  { "pipeline.mixed", IN_ALL, PLAIN, pipeline_mixed, "a wrong request harms none of the others" },
  { "pipeline.thousands", IN_ALL, PLAIN, pipeline_thousands,
    "there is no limit on requests in flight" },
  { "split.requests", IN_ALL, PLAIN, split_requests, PACKETS },
  { "split.write", IN_ALL, PLAIN | WRITABLE, split_write, PACKETS },
  { "split.unevenly", IN_ALL, PLAIN | WRITABLE, split_unevenly, PACKETS },
  { "magic.wrong", IN_ALL, PLAIN, wrong_magic,
    "without the magic the stream cannot be followed: the session ends" },
  { "magic.wrong-later", IN_ALL, PLAIN, wrong_magic_later,
    "nothing behind a wrong magic is taken for a request" },
  { "disc.plain", IN_ALL, PLAIN, disconnect, DISC },
  { "disc.odd", IN_ALL, PLAIN, disconnect_odd, DISC },
  { "disc.in-flight", IN_ALL, PLAIN | PATTERN, disconnect_in_flight, DISC },
  { "disc.after-writes", IN_ALL, PLAIN | WRITABLE, disconnect_after_writes, DISC },
  { "disc.is-final", IN_ALL, PLAIN, nothing_after_disconnect, DISC },
  { "leave.in-the-middle", IN_ALL, PLAIN | WRITABLE, leave_in_the_middle,
    "a client that leaves amid a request harms nobody" },
  { "leave.replies-due", IN_ALL, PLAIN, leave_with_replies_due,
    "a client that leaves amid replies harms nobody" },
  { "connections.many", IN_ALL, PLAIN, many_connections, "each has its own stream" },
  { "connections.all-modes", ONCE, PLAIN | CHUNKS, modes_together,
    "what one client negotiates is its own" },
  { "coherence.flush", IN_ALL, PLAIN | WRITABLE | FLUSH | MULTI_CONN, coherent_by_flush, COHERENT },
  { "coherence.fua", IN_ALL, PLAIN | WRITABLE | FUA | MULTI_CONN, coherent_by_fua, COHERENT },
  { "coherence.flush-covers-others", IN_ALL, PLAIN | WRITABLE | FLUSH | MULTI_CONN,
    flush_covers_others, COHERENT },
  { NULL, 0, 0, NULL, NULL },
};
