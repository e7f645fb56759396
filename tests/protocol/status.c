/* SPDX-License-Identifier: BSD-3-Clause */

/* BLOCK_STATUS. The rules on extents (none empty, none starting behind the range, one at most
 * with REQ_ONE, one chunk for each context) are checked of every reply, in transmit.c.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client.h"

#define ALLOCATION "base:allocation"

static struct conn *
open_allocation (struct test *t)
{
  return open_contexts (t, QUERIES (ALLOCATION));
}

static const struct reply *
ask_status (struct conn *c, uint16_t flags, uint64_t offset, uint64_t length)
{
  return ask (
      c, (struct request){
             .type = NBD_CMD_BLOCK_STATUS, .flags = flags, .offset = offset, .length = length });
}

static const struct status *
status_of (struct conn *c, uint16_t flags, uint64_t offset, uint64_t length)
{
  const struct reply *r = ask_status (c, flags, offset, length);

  CHECK (c->t, r->error == 0, "status of %" PRIu64 "+%" PRIu64 ": %s", offset, length,
         error_name (r->error));
  return &r->status[0];
}

/* The whole range has these flags, however many requests it takes to learn that. */
static void
expect_flags (struct conn *c, uint16_t one, uint64_t start, uint64_t end, uint64_t mask,
              uint64_t flags)
{
  for (uint64_t at = start; at < end;) {
    const struct status *s = status_of (c, one, at, end - at);

    for (size_t i = 0; i < s->n && at < end; i++) {
      CHECK (c->t, (s->extents[i].flags & mask) == flags,
             "%" PRIu64 "+%" PRIu64 " has flags %#" PRIx64 ", not %#" PRIx64, at,
             s->extents[i].length, s->extents[i].flags & mask, flags);
      at += s->extents[i].length;
    }
  }
}

static void
areas (struct test *t)
{
  struct conn *c = open_allocation (t);

  for (uint16_t one = 0; one <= NBD_CMD_FLAG_REQ_ONE; one += NBD_CMD_FLAG_REQ_ONE) {
    expect_flags (c, one, DATA_START, DATA_END, NBD_STATE_ZERO, 0);
    expect_flags (c, one, DATA_START, DATA_END, NBD_STATE_HOLE, 0);
  }
}

static void
areas_exactly (struct test *t)
{
  struct conn *c = open_allocation (t);

  for (uint16_t one = 0; one <= NBD_CMD_FLAG_REQ_ONE; one += NBD_CMD_FLAG_REQ_ONE) {
    expect_flags (c, one, DATA_END, ZERO_END, NBD_STATE_ZERO, NBD_STATE_ZERO);
    expect_flags (c, one, ZERO_END, HOLE_END, 3, NBD_STATE_ZERO | NBD_STATE_HOLE);
  }
}

/* What is said to be zero reads as zeroes; asked from anywhere. */
static void
truthful (struct test *t)
{
  const uint64_t starts[] = { DATA_END - 1 * MiB, DATA_END - 1 * MiB + unit (t), ZERO_END - 1 * MiB,
                              ZERO_END + 3 * unit (t) };
  struct conn *c = open_allocation (t);

  for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
    const struct status *s = status_of (c, 0, starts[i], 2 * MiB);
    uint64_t at = starts[i];

    for (size_t j = 0; j < s->n; j++) {
      uint64_t len = s->extents[j].length < 2 * MiB ? s->extents[j].length : 2 * MiB;

      if (s->extents[j].flags & NBD_STATE_ZERO)
        CHECK (t, all_zero (do_read (c, at, len), len),
               "%" PRIu64 "+%" PRIu64 " is said to be zero and is not", at, len);
      at += s->extents[j].length;
    }
  }
}

/* Asking from where the last answer ended gets through the export. */
static void
progress (struct test *t)
{
  struct conn *c = open_allocation (t);
  uint64_t at = 0;
  int asked = 0;

  while (at < t->target->size) {
    uint64_t left = t->target->size - at;
    const struct status *s = status_of (c, 0, at, left < 1 * GiB ? left : 1 * GiB);

    CHECK (t, asked++ < 10000, "10000 requests and only %" PRIu64 " bytes", at);
    for (size_t i = 0; i < s->n; i++)
      at += s->extents[i].length;
  }
}

static void
at_end (struct test *t)
{
  struct conn *c = open_allocation (t);

  for (uint64_t len = unit (t); len <= 64 * KiB; len *= 2) {
    status_of (c, 0, t->target->size - len, len);
    status_of (c, NBD_CMD_FLAG_REQ_ONE, t->target->size - len, len);
  }
}

static void
unaligned (struct test *t)
{
  const uint64_t ranges[][2] = {
    { 1, 1 }, { 511, 2 }, { 12345, 54321 }, { DATA_END - 1, 2 }, { ZERO_END + 1, 1 }
  };
  struct conn *c = open_allocation (t);

  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
    status_of (c, 0, ranges[i][0], ranges[i][1]);
    status_of (c, NBD_CMD_FLAG_REQ_ONE, ranges[i][0], ranges[i][1]);
  }
  expect_in_sync (c);
}

static void
past_end (struct test *t)
{
  struct conn *c = open_allocation (t);
  const uint64_t size = t->target->size, u = unit (t);
  const uint64_t ranges[][2] = { { size, u },
                                 { size - u, 2 * u },
                                 { size + 1 * MiB, 1 * MiB },
                                 { size - u, UINT32_MAX - u + 1 },
                                 { UINT64_C (1) << 63, u },
                                 { UINT64_MAX - u + 1, u },
                                 { UINT64_MAX - u + 1, 4 * u } };

  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    for (uint16_t one = 0; one <= NBD_CMD_FLAG_REQ_ONE; one += NBD_CMD_FLAG_REQ_ONE)
      expect_error (c, ask_status (c, one, ranges[i][0], ranges[i][1])->error,
                    "status past the end", ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

static void
length_zero (struct test *t)
{
  struct conn *c = open_allocation (t);

  do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 0);
  do_cmd (c, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 4096, 0);
  do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, t->target->size, 0);
  expect_in_sync (c);
}

static void
nearly_4gib (struct test *t)
{
  struct conn *c = open_allocation (t);

  status_of (c, 0, 0, UINT32_MAX - 64 * KiB + 1);
  status_of (c, 0, BIG_START, UINT32_MAX - 64 * KiB + 1);
  status_of (c, NBD_CMD_FLAG_REQ_ONE, BIG_START, UINT32_MAX - 64 * KiB + 1);
  expect_in_sync (c);
}

static void
no_context (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, ask_status (c, 0, 0, 4096)->error, "status without a context",
                ERRS (NBD_EINVAL));
  expect_error (c, ask_status (c, NBD_CMD_FLAG_REQ_ONE, 0, 4096)->error, "status without a context",
                ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

/* What is written is told, at once. */
static void
follows_writes (struct test *t)
{
  struct conn *c = open_allocation (t);
  const uint64_t at = SCRATCH + 55 * MiB;
  const size_t len = 1 * MiB;
  uint8_t *p = test_alloc (t, len);

  memset (p, 0x21, len);
  expect_error (c, do_write (c, 0, at, p, len), "write", SUCCESS);
  expect_flags (c, 0, at, at + len, 3, 0);
}

static void
follows_zeroes (struct test *t)
{
  struct conn *c = open_allocation (t);
  const uint64_t at = SCRATCH + 57 * MiB;
  const size_t len = 1 * MiB;
  uint8_t *p = test_alloc (t, len);

  memset (p, 0x21, len);
  expect_error (c, do_write (c, 0, at, p, len), "write", SUCCESS);
  expect_error (c, do_cmd (c, NBD_CMD_WRITE_ZEROES, 0, at, len), "write zeroes", SUCCESS);
  expect_flags (c, 0, at, at + len, NBD_STATE_ZERO, NBD_STATE_ZERO);
  expect_error (c, do_write (c, 0, at, p, len), "write", SUCCESS);
  expect_flags (c, 0, at, at + len, NBD_STATE_ZERO, 0);
}

/* With NO_HOLE space is there to be written, and the status does not deny it. */
static void
follows_no_hole (struct test *t)
{
  struct conn *c = open_allocation (t);
  const uint64_t at = SCRATCH + 59 * MiB;

  expect_error (c, do_cmd (c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, at, 1 * MiB),
                "write zeroes", SUCCESS);
  expect_flags (c, 0, at, at + 1 * MiB, NBD_STATE_HOLE, 0);
}

static void
follows_trim (struct test *t)
{
  struct conn *c = open_allocation (t);
  const uint64_t at = SCRATCH + 61 * MiB;
  const size_t len = 1 * MiB;
  uint8_t *p = test_alloc (t, len);

  memset (p, 0x21, len);
  expect_error (c, do_write (c, 0, at, p, len), "write", SUCCESS);
  expect_error (c, do_cmd (c, NBD_CMD_TRIM, 0, at, len), "trim", SUCCESS);
  for (uint64_t done = 0; done < len;) {
    const struct status *s = status_of (c, NBD_CMD_FLAG_REQ_ONE, at + done, len - done);
    const uint8_t *got = do_read (c, at + done, s->extents[0].length);

    if (s->extents[0].flags & NBD_STATE_ZERO)
      CHECK (t, all_zero (got, s->extents[0].length), "trimmed, said to be zero, and not zero");
    done += s->extents[0].length;
  }
}

/* Two contexts: each has a chunk, and allocation-depth says whether anything is there. */
static void
depth (struct test *t)
{
  struct conn *c = open_contexts (t, QUERIES (ALLOCATION, "qemu:allocation-depth"));
  const uint64_t offsets[] = { DATA_START, ZERO_END };

  CHECK (t, c->n_contexts == 2, "%zu contexts were selected", c->n_contexts);
  for (size_t i = 0; i < 2; i++)
    for (uint16_t one = 0; one <= NBD_CMD_FLAG_REQ_ONE; one += NBD_CMD_FLAG_REQ_ONE) {
      const struct reply *r = ask_status (c, one, offsets[i], 1 * MiB);

      CHECK (t, r->error == 0, "status: %s", error_name (r->error));
      for (size_t j = 0; j < r->n_status; j++)
        for (size_t k = 0; k < c->n_contexts; k++)
          if (c->contexts[k].id == r->status[j].id &&
              strcmp (c->contexts[k].name, "qemu:allocation-depth") == 0)
            CHECK (t, r->status[j].extents[0].flags == (i == 0 ? 1 : 0),
                   "allocation-depth at %" PRIu64 " is %" PRIu64, offsets[i],
                   r->status[j].extents[0].flags);
    }
}

static void
pipelined (struct test *t)
{
  enum { N = 64 };
  struct conn *c = open_allocation (t);
  struct bytes *b = bytes_new (t);

  for (uint64_t i = 0; i < N; i++)
    put_request (b, c,
                 &(struct request){ .type = i % 2 ? NBD_CMD_READ : NBD_CMD_BLOCK_STATUS,
                                    .cookie = i + 1,
                                    .offset = i * 64 * KiB,
                                    .length = 64 * KiB });
  conn_send_bytes (c, b);
  recv_all (c);
}

#define TOLD "a status tells what a read or a write would find"

const struct tcase status_cases[] = {
  { "status.data-area", IN_CHUNKS, PLAIN | STATUS | PATTERN, areas,
    "data is neither zero nor a hole" },
  { "status.zero-and-hole", IN_CHUNKS, PLAIN | STATUS | PATTERN | EXACT_MAP, areas_exactly,
    "zeroes and holes SHOULD be told where they are known" },
  { "status.truthful", IN_CHUNKS, PLAIN | STATUS | PATTERN, truthful,
    "what has NBD_STATE_ZERO reads as zeroes" },
  { "status.progress", IN_CHUNKS, PLAIN | STATUS, progress,
    "a successful reply tells at least one byte" },
  { "status.at-end", IN_CHUNKS, PLAIN | STATUS, at_end, "the last byte is part of the export" },
  { "status.unaligned", IN_CHUNKS, PLAIN | STATUS | BYTES, unaligned,
    "with a minimum block size of 1 any range can be asked about" },
  { "status.past-end", IN_CHUNKS, PLAIN | STATUS, past_end,
    "a range that is not inside the export SHOULD fail with EINVAL" },
  { "status.length-zero", IN_CHUNKS, PLAIN | STATUS, length_zero,
    "a length of 0 is unspecified, but SHOULD NOT make the server hang up" },
  { "status.nearly-4GiB", IN_CHUNKS, PLAIN | STATUS | HUGE, nearly_4gib,
    "without a payload the maximum payload is no limit" },
  { "status.no-context", IN_ALL, PLAIN, no_context,
    "without a selected context SHOULD fail with EINVAL" },
  { "status.follows-writes", IN_CHUNKS, PLAIN | STATUS | WRITABLE, follows_writes, TOLD },
  { "status.follows-zeroes", IN_CHUNKS, PLAIN | STATUS | WRITABLE | ZEROES | EXACT_MAP,
    follows_zeroes, TOLD },
  { "status.follows-no-hole", IN_CHUNKS, PLAIN | STATUS | WRITABLE | ZEROES, follows_no_hole,
    "after NO_HOLE the area MUST be provisioned" },
  { "status.follows-trim", IN_CHUNKS, PLAIN | STATUS | WRITABLE | TRIM, follows_trim, TOLD },
  { "status.allocation-depth", IN_CHUNKS, PLAIN | STATUS | DEPTH | PATTERN, depth,
    "one chunk for each context; depth 0 is unallocated, 1 is here" },
  { "status.pipelined", IN_CHUNKS, PLAIN | STATUS, pipelined, "status and reads go together" },
  { NULL, 0, 0, NULL, NULL },
};
