/* SPDX-License-Identifier: BSD-3-Clause */

/* Extended headers: 64-bit lengths, payloads with any command, and block status of selected
 * contexts. That each reply repeats the request's offset is checked of every reply, in
 * transmit.c.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client.h"

static struct conn *
open_allocation (struct test *t)
{
  return open_contexts (t, QUERIES ("base:allocation"));
}

/* A request whose payload is junk of this length. */
static struct request
with_junk (struct test *t, uint16_t type, size_t len)
{
  return (struct request){ .type = type, .payload = test_alloc (t, len + 1), .payload_len = len };
}

static const uint16_t without_payload[] = {
  NBD_CMD_READ, NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES, 9, 0x4242,
};

static void
payload_uncalled_for (struct test *t)
{
  const size_t sizes[] = { 1, 8, 512, 4096, 64 * KiB, 1 * MiB };
  struct conn *c = open_allocation (t);

  for (size_t i = 0; i < sizeof without_payload / sizeof without_payload[0]; i++)
    for (size_t j = 0; j < sizeof sizes / sizeof sizes[0]; j++) {
      char what[80];

      snprintf (what, sizeof what, "request type %u with a payload of %zu", without_payload[i],
                sizes[j]);
      expect_error (c, ask (c, with_junk (t, without_payload[i], sizes[j]))->error, what,
                    ERRS (NBD_EINVAL));
    }
  expect_in_sync (c);
}

/* On a read-only export the payload is consumed as well. */
static void
payload_read_only (struct test *t)
{
  struct conn *c = open_transmission (t);

  for (size_t i = 0; i < sizeof without_payload / sizeof without_payload[0]; i++)
    expect_error (c, ask (c, with_junk (t, without_payload[i], 4096))->error,
                  "a payload uncalled for", ERRS (NBD_EINVAL, NBD_EPERM));
  expect_in_sync (c);
}

static void
payload_too_long (struct test *t)
{
  const uint64_t lengths[] = { UINT64_C (1) << 32, (UINT64_C (1) << 32) + 512, UINT64_C (1) << 40,
                               UINT64_C (1) << 63, UINT64_MAX };
  const uint16_t types[] = { NBD_CMD_WRITE, NBD_CMD_READ, NBD_CMD_BLOCK_STATUS, 0x4242 };

  for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
    for (size_t j = 0; j < sizeof types / sizeof types[0]; j++) {
      struct conn *c = open_allocation (t);

      conn_send_bytes (c, put_header (bytes_new (t), EXTENDED, NBD_CMD_FLAG_PAYLOAD_LEN, types[j],
                                      1, SCRATCH, lengths[i]));
      for (size_t got = 0; !conn_at_eof (c); c->head = c->tail) {
        got += c->tail - c->head; /* an error may come before the end */
        CHECK (t, got <= 38 + NBD_MAX_STRING, "more than an error came for a payload of 4 GiB");
      }
    }
  expect_alive (t);
}

/* QEMU's client does not set the flag: what it writes is taken all the same, or refused. */
static void
write_without_flag (struct test *t)
{
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);

  put_request (b, c,
               &(struct request){
                   .type = NBD_CMD_WRITE, .cookie = 1, .offset = SCRATCH, .length = 64 * KiB });
  put_fill (b, 0, 64 * KiB);
  conn_send_bytes (c, b);
  if (conn_at_eof (c))
    return; /* the client broke a MUST: the server may end the session */
  expect_error (c, recv_reply (c, 1)->error, "a write without PAYLOAD_LEN",
                ERRS (NBD_OK, NBD_EINVAL));
  expect_in_sync (c);
}

static void
write_empty_payload (struct test *t)
{
  struct conn *c = open_transmission (t);

  ask (c, (struct request){ .type = NBD_CMD_WRITE, .offset = SCRATCH, .length = 0, .payload = "" });
  expect_in_sync (c);
}

/* 64-bit lengths */

static void
zeroes_5gib (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t len = t->target->size - BIG_START;
  const size_t tail = 64 * KiB;
  uint8_t *p = test_alloc (t, tail);

  memset (p, 0x99, tail);
  expect_error (c, do_write (c, 0, t->target->size - tail, p, tail), "write", SUCCESS);
  expect_error (c, do_write (c, 0, BIG_START - tail, p, tail), "write", SUCCESS);
  expect_error (c, do_cmd (c, NBD_CMD_WRITE_ZEROES, 0, BIG_START, len), "zeroing 5 GiB", SUCCESS);
  CHECK (t, all_zero (do_read (c, t->target->size - tail, tail), tail), "its end is not zero");
  CHECK (t, all_zero (do_read (c, BIG_START, tail), tail), "its beginning is not zero");
  CHECK (t, memcmp (do_read (c, BIG_START - tail, tail), p, tail) == 0,
         "what lies before it has changed");
}

static void
trim_5gib (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, do_cmd (c, NBD_CMD_TRIM, 0, BIG_START, t->target->size - BIG_START),
                "trimming 5 GiB", SUCCESS);
  expect_in_sync (c);
}

static void
cache_5gib (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, do_cmd (c, NBD_CMD_CACHE, 0, BIG_START, t->target->size - BIG_START),
                "caching 5 GiB", ERRS (NBD_OK, NBD_EINVAL, NBD_EOVERFLOW));
  expect_in_sync (c);
}

static void
read_5gib (struct test *t)
{
  struct conn *c = open_transmission (t);
  struct bytes *b = put_header (bytes_new (t), EXTENDED, 0, NBD_CMD_READ, 1, 0, UINT64_C (5) * GiB);

  conn_send_bytes (c, b);
  conn_skip (c, 32, "the beginning of a reply");
  conn_close (c);
  expect_alive (t);
}

static void
status_all (struct test *t)
{
  struct conn *c = open_allocation (t);
  const struct reply *r =
      ask (c, (struct request){ .type = NBD_CMD_BLOCK_STATUS, .length = t->target->size });

  CHECK (t, r->error == 0, "status of all: %s", error_name (r->error));
  r = ask (c, (struct request){ .type = NBD_CMD_BLOCK_STATUS,
                                .flags = NBD_CMD_FLAG_REQ_ONE,
                                .offset = BIG_START,
                                .length = t->target->size - BIG_START });
  CHECK (t, r->error == 0, "status of one: %s", error_name (r->error));
}

/* Nobody ever wrote there in a fresh image, and one extent can say so. */
static void
status_beyond_4gib (struct test *t)
{
  struct conn *c = open_allocation (t);
  const struct reply *r;

  expect_error (c, do_cmd (c, NBD_CMD_WRITE_ZEROES, 0, BIG_START, t->target->size - BIG_START),
                "zeroing 5 GiB", SUCCESS);
  r = ask (c, (struct request){ .type = NBD_CMD_BLOCK_STATUS,
                                .offset = BIG_START,
                                .length = t->target->size - BIG_START });
  CHECK (t, r->error == 0, "status: %s", error_name (r->error));
  CHECK (t, r->status[0].n == 1 && r->status[0].extents[0].length > UINT32_MAX,
         "%zu extents, the first of %" PRIu64 " bytes", r->status[0].n,
         r->status[0].extents[0].length);
}

static void
lengths_past_end (struct test *t)
{
  struct conn *c = open_allocation (t);
  const uint64_t size = t->target->size, u = unit (t);
  const uint64_t ranges[][2] = {
    { 0, size + u },
    { 0, UINT64_C (1) << 32 << 10 },
    { 0, UINT64_C (1) << 63 },
    { 0, UINT64_MAX - u + 1 },
    { u, UINT64_MAX - u + 1 }, /* the sum is 0 */
    { size, UINT64_MAX - size + 1 },
    { UINT64_MAX - u + 1, UINT64_MAX - u + 1 },
    { 64 * KiB, UINT64_MAX - 64 * KiB + 1 + u },
  };
  const struct {
    uint16_t type;
    unsigned needs;
    uint32_t error;
  } kinds[] = {
    { NBD_CMD_READ, 0, NBD_EINVAL },
    { NBD_CMD_TRIM, TRIM | WRITABLE, NBD_EINVAL },
    { NBD_CMD_CACHE, CACHE, NBD_EINVAL },
    { NBD_CMD_WRITE_ZEROES, ZEROES | WRITABLE, NBD_ENOSPC },
    { NBD_CMD_BLOCK_STATUS, 0, NBD_EINVAL },
  };

  for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++)
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
      char what[100];

      if (kinds[k].needs & ~t->target->has)
        continue;
      snprintf (what, sizeof what, "request type %u for %" PRIu64 "+%" PRIu64, kinds[k].type,
                ranges[i][0], ranges[i][1]);
      expect_error (c, do_cmd (c, kinds[k].type, 0, ranges[i][0], ranges[i][1]), what,
                    ERRS (kinds[k].error));
    }
  expect_in_sync (c);
}

/* The offset comes back even where it means nothing. */
static void
offset_echo (struct test *t)
{
  struct conn *c = open_allocation (t);
  const uint64_t offsets[] = { 1, UINT64_MAX, UINT64_C (0x0123456789abcdef) };

  for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
    do_cmd (c, 0x4242, 0, offsets[i], 0);
    do_cmd (c, NBD_CMD_READ, 0, offsets[i], UINT32_MAX);
    do_cmd (c, NBD_CMD_FLUSH, 0, offsets[i], 0);
    do_cmd (c, NBD_CMD_BLOCK_STATUS, 0x8000, offsets[i], 512);
  }
  expect_in_sync (c);
}

/* Block status with a payload */

static struct conn *
open_two (struct test *t)
{
  struct conn *c = open_contexts (t, t->target->has & DEPTH
                                         ? QUERIES ("base:allocation", "qemu:allocation-depth")
                                         : QUERIES ("base:allocation"));

  CHECK (t, c->flags & NBD_FLAG_BLOCK_STATUS_PAYLOAD,
         "BLOCK_STATUS_PAYLOAD is not offered, though contexts were selected");
  return c;
}

static const struct reply *
filtered (struct conn *c, uint16_t flags, uint64_t offset, uint64_t effect, size_t n,
          const uint32_t *ids)
{
  return ask (c, (struct request){ .type = NBD_CMD_BLOCK_STATUS,
                                   .flags = flags,
                                   .offset = offset,
                                   .length = effect,
                                   .filter = true,
                                   .ids = ids,
                                   .n_ids = n });
}

static void
filter_each (struct test *t)
{
  struct conn *c = open_two (t);

  for (size_t i = 0; i < c->n_contexts; i++) {
    expect_error (c, filtered (c, 0, 64 * KiB, 1 * MiB, 1, &c->contexts[i].id)->error,
                  "status of one context", SUCCESS);
    expect_error (
        c, filtered (c, NBD_CMD_FLAG_REQ_ONE, 64 * KiB, 1 * MiB, 1, &c->contexts[i].id)->error,
        "status of one context", SUCCESS);
  }
}

static void
filter_all (struct test *t)
{
  struct conn *c = open_two (t);
  uint32_t ids[2];

  for (size_t i = 0; i < c->n_contexts; i++)
    ids[i] = c->contexts[c->n_contexts - 1 - i].id;
  expect_error (c, filtered (c, 0, 0, t->target->size, c->n_contexts, ids)->error,
                "status of all contexts by name", SUCCESS);
  expect_error (c, do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 1 * MiB), "status without a filter",
                SUCCESS);
}

/* No ids: not forbidden, not defined; an answer without chunks or an error. */
static void
filter_none (struct test *t)
{
  struct conn *c = open_two (t);

  expect_error (c, filtered (c, 0, 0, 1 * MiB, 0, NULL)->error, "status of no context",
                ERRS (NBD_OK, NBD_EINVAL));
  expect_in_sync (c);
}

static void
filter_duplicate (struct test *t)
{
  struct conn *c = open_two (t);
  const uint32_t ids[] = { c->contexts[0].id, c->contexts[0].id };

  expect_error (c, filtered (c, 0, 0, 1 * MiB, 2, ids)->error, "a filter with duplicates",
                ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

static void
filter_unknown (struct test *t)
{
  struct conn *c = open_two (t);
  uint32_t ids[] = { c->contexts[0].id, 0x7f3a2b1c };

  expect_error (c, filtered (c, 0, 0, 1 * MiB, 2, ids)->error, "a filter with an unknown id",
                ERRS (NBD_EINVAL));
  expect_error (c, filtered (c, 0, 0, 1 * MiB, 1, ids + 1)->error, "a filter with an unknown id",
                ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

static void
filter_wrong_length (struct test *t)
{
  const size_t sizes[] = { 1, 4, 7, 9, 10, 11, 13, 15, 4097 };
  struct conn *c = open_two (t);

  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    expect_error (c, ask (c, with_junk (t, NBD_CMD_BLOCK_STATUS, sizes[i]))->error,
                  "a filter of a wrong length", ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

static void
filter_huge (struct test *t)
{
  const size_t sizes[] = { 64 * KiB, 1 * MiB, 8 * MiB };
  struct conn *c = open_two (t);

  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    expect_error (c, ask (c, with_junk (t, NBD_CMD_BLOCK_STATUS, sizes[i]))->error,
                  "a filter of very many ids", ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

static void
filter_past_end (struct test *t)
{
  struct conn *c = open_two (t);
  const uint64_t size = t->target->size, u = unit (t);
  const uint64_t ranges[][2] = {
    { size, u }, { size - u, 2 * u }, { 0, UINT64_MAX - u + 1 }, { UINT64_MAX - u + 1, u }
  };

  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    expect_error (c, filtered (c, 0, ranges[i][0], ranges[i][1], 1, &c->contexts[0].id)->error,
                  "a filtered status past the end", ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

static void
filter_length_zero (struct test *t)
{
  struct conn *c = open_two (t);

  filtered (c, 0, 0, 0, 1, &c->contexts[0].id);
  expect_in_sync (c);
}

static void
filter_flags (struct test *t)
{
  struct conn *c = open_two (t);

  for (unsigned bit = NBD_CMD_FLAG_UNKNOWN; bit <= 0x8000; bit <<= 1)
    expect_error (c, filtered (c, (uint16_t)bit, 0, 1 * MiB, 1, &c->contexts[0].id)->error,
                  "a filtered status with an unknown flag", ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

/* Without contexts there is nothing to filter, but the payload is there all the same. */
static void
filter_without_contexts (struct test *t)
{
  const uint32_t ids[] = { 0, 1, 2 };
  struct conn *c = open_transmission (t);

  for (size_t n = 0; n <= 3; n++)
    expect_error (c, filtered (c, 0, 0, 1 * MiB, n, ids)->error,
                  "a filtered status without contexts", ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

static void
filter_slowly (struct test *t)
{
  struct conn *c = open_two (t);
  struct bytes *b = bytes_new (t);

  put_request (b, c,
               &(struct request){ .type = NBD_CMD_BLOCK_STATUS,
                                  .cookie = 1,
                                  .length = 1 * MiB,
                                  .filter = true,
                                  .ids = &c->contexts[0].id,
                                  .n_ids = 1 });
  put_request (b, c, &(struct request){ .type = NBD_CMD_READ, .cookie = 2, .length = 4096 });
  conn_send_slowly (c, b);
  recv_all (c);
}

#define CONSUME "a payload that does not belong is consumed, and answered with EINVAL"
#define WIDE    "an effect length has 64 bits"
#define FORM    "a malformed filter is consumed, and answered with EINVAL"

const struct tcase extended_cases[] = {
  { "payload.uncalled-for", IN_EXTENDED, PLAIN | STATUS | WRITABLE, payload_uncalled_for, CONSUME },
  { "payload.read-only", IN_EXTENDED, PLAIN | READ_ONLY, payload_read_only, CONSUME },
  { "payload.too-long", IN_EXTENDED, PLAIN | STATUS, payload_too_long,
    "a payload beyond the maximum SHOULD end the session" },
  { "payload.write-without-flag", IN_EXTENDED, PLAIN | WRITABLE, write_without_flag,
    "a write MUST have PAYLOAD_LEN; QEMU's client sends none" },
  { "payload.write-empty", IN_EXTENDED, PLAIN | WRITABLE, write_empty_payload,
    "a length of 0 is unspecified, but SHOULD NOT make the server hang up" },
  { "length.zeroes-5GiB", IN_EXTENDED, PLAIN | WRITABLE | ZEROES | HUGE, zeroes_5gib, WIDE },
  { "length.trim-5GiB", IN_EXTENDED, PLAIN | WRITABLE | TRIM | HUGE, trim_5gib, WIDE },
  { "length.cache-5GiB", IN_EXTENDED, PLAIN | CACHE | HUGE, cache_5gib, WIDE },
  { "length.read-5GiB", IN_EXTENDED, PLAIN | HUGE, read_5gib,
    "an error, or a reply in chunks with bounded memory" },
  { "length.status-of-all", IN_EXTENDED, PLAIN | STATUS | HUGE, status_all, WIDE },
  { "length.extent-beyond-4GiB", IN_EXTENDED, PLAIN | STATUS | HUGE | WRITABLE | ZEROES | EXACT_MAP,
    status_beyond_4gib, "an extent's length has 64 bits" },
  { "length.past-end", IN_EXTENDED, PLAIN | STATUS, lengths_past_end,
    "a range that is not inside the export SHOULD fail with EINVAL, zeroing with ENOSPC" },
  { "reply.offset", IN_EXTENDED, PLAIN | STATUS, offset_echo,
    "a reply's offset MUST be the request's" },
  { "filter.each", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_each,
    "only the contexts asked for are told" },
  { "filter.all", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_all,
    "only the contexts asked for are told" },
  { "filter.none", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_none,
    "an empty filter is not defined: no chunks, or EINVAL" },
  { "filter.duplicate", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_duplicate, FORM },
  { "filter.unknown-id", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_unknown, FORM },
  { "filter.wrong-length", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_wrong_length, FORM },
  { "filter.huge", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_huge, FORM },
  { "filter.past-end", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_past_end,
    "an effect length past the end SHOULD fail with EINVAL" },
  { "filter.length-zero", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_length_zero,
    "a length of 0 is unspecified, but SHOULD NOT make the server hang up" },
  { "filter.unknown-flags", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_flags, FORM },
  { "filter.without-contexts", IN_EXTENDED, PLAIN, filter_without_contexts, CONSUME },
  { "filter.split-in-bytes", IN_EXTENDED, PLAIN | STATUS | FILTER, filter_slowly,
    "how the bytes are divided into packets means nothing" },
  { NULL, 0, 0, NULL, NULL },
};
