/* SPDX-License-Identifier: BSD-3-Clause */

/* Replies in chunks, structured and extended: what is specific to their being chunks. That chunks
 * lie inside the request, do not overlap, cover it, and end with DONE is checked of every reply,
 * in transmit.c.
 */

#include <inttypes.h>
#include <string.h>

#include "client.h"

static const struct reply *
read_df (struct conn *c, uint64_t offset, uint64_t length)
{
  return ask (
      c, (struct request){
             .type = NBD_CMD_READ, .flags = NBD_CMD_FLAG_DF, .offset = offset, .length = length });
}

static void
df_small (struct test *t)
{
  const uint64_t offsets[] = { 0, DATA_END - 32 * KiB, DATA_END, ZERO_END - 32 * KiB, ZERO_END };
  struct conn *c = open_transmission (t);

  for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
    const struct reply *r = read_df (c, offsets[i], 64 * KiB);

    CHECK (t, r->error == 0, "an unfragmented read of 64 KiB: %s", error_name (r->error));
    if (offsets[i] < DATA_END) {
      size_t data = DATA_END - offsets[i] < 64 * KiB ? DATA_END - offsets[i] : 64 * KiB;

      expect_pattern (c, r->data, offsets[i], data);
      CHECK (t, all_zero (r->data + data, 64 * KiB - data), "the rest is not zero");
      CHECK (t, r->hole_chunks == 0, "data came as a hole");
    } else
      CHECK (t, all_zero (r->data, 64 * KiB), "zeroes read as something else");
  }
}

/* Data and zeroes in turns: the one chunk has the zeroes written out. */
static void
df_fragments (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t at = SCRATCH + 50 * MiB;
  const size_t piece = 4 * KiB > unit (t) ? 4 * KiB : unit (t);
  uint8_t *p = test_alloc (t, piece);
  const struct reply *r;

  memset (p, 0x3c, piece);
  if (has_flag (t, NBD_FLAG_SEND_TRIM))
    do_cmd (c, NBD_CMD_TRIM, 0, at, 1 * MiB);
  expect_error (c, do_cmd (c, NBD_CMD_WRITE_ZEROES, 0, at, 1 * MiB), "zeroing", SUCCESS);
  for (uint64_t i = 0; i < 8; i++)
    expect_error (c, do_write (c, 0, at + 2 * i * piece, p, piece), "write", SUCCESS);
  r = read_df (c, at, 16 * piece);
  if (16 * piece > 64 * KiB && r->error == NBD_EOVERFLOW)
    return;
  CHECK (t, r->error == 0, "an unfragmented read: %s", error_name (r->error));
  for (size_t i = 0; i < 16; i++)
    CHECK (t, r->data[i * piece] == (i % 2 ? 0 : 0x3c), "piece %zu is wrong", i);
  r = ask (c, (struct request){ .type = NBD_CMD_READ, .offset = at, .length = 16 * piece });
  CHECK (t, r->error == 0, "a read in pieces: %s", error_name (r->error));
  for (size_t i = 0; i < 16; i++)
    CHECK (t, r->data[i * piece] == (i % 2 ? 0 : 0x3c), "piece %zu is wrong", i);
}

static void
df_large (struct test *t)
{
  struct conn *c = open_transmission (t);

  for (uint64_t len = 128 * KiB; len <= max_payload (t); len *= 4) {
    const struct reply *r = read_df (c, 0, len);

    expect_error (c, r->error, "a large unfragmented read", ERRS (NBD_OK, NBD_EOVERFLOW));
    CHECK (t, r->error == 0 || r->data_chunks + r->hole_chunks == 0, "content came with EOVERFLOW");
    if (r->error == 0)
      expect_pattern (c, r->data, 0, len);
  }
  expect_in_sync (c);
}

/* Past any limit, data and zeroes: one chunk of more than the maximum payload MUST NOT be. */
static void
df_too_large (struct test *t)
{
  struct conn *c = open_transmission (t);
  const struct reply *r = read_df (c, 0, HOLE_END);

  expect_error (c, r->error, "an unfragmented read of 64 MiB",
                ERRS (NBD_OK, NBD_EOVERFLOW, NBD_EINVAL));
  expect_in_sync (c);
}

static void
df_past_end (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, read_df (c, t->target->size, 4096)->error, "an unfragmented read past the end",
                ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

static void
holes (struct test *t)
{
  const uint64_t offsets[] = { DATA_END, ZERO_END };
  struct conn *c = open_transmission (t);

  for (size_t i = 0; i < 2; i++) {
    const struct reply *r =
        ask (c, (struct request){ .type = NBD_CMD_READ, .offset = offsets[i], .length = 1 * MiB });

    CHECK (t, r->error == 0, "reading a hole: %s", error_name (r->error));
    CHECK (t, r->hole_chunks > 0 && r->data_chunks == 0, "%zu hole chunks, %zu data chunks",
           r->hole_chunks, r->data_chunks);
  }
}

static void
data_then_hole (struct test *t)
{
  struct conn *c = open_transmission (t);
  const struct reply *r = ask (
      c, (struct request){ .type = NBD_CMD_READ, .offset = DATA_END - 1 * MiB, .length = 2 * MiB });

  CHECK (t, r->error == 0, "reading: %s", error_name (r->error));
  expect_pattern (c, r->data, DATA_END - 1 * MiB, 1 * MiB);
  CHECK (t, all_zero (r->data + 1 * MiB, 1 * MiB), "the zero area is not zero");
  CHECK (t, r->hole_chunks > 0, "the zero area came as data");
}

/* Chunks of several replies may be interleaved; each is checked on its own. */
static void
interleaved (struct test *t)
{
  enum { N = 24 };
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);

  for (uint64_t i = 0; i < N; i++)
    put_request (b, c,
                 &(struct request){ .type = NBD_CMD_READ,
                                    .cookie = i + 1,
                                    .offset = DATA_END - 12 * MiB + i * 1 * MiB,
                                    .length = 1 * MiB });
  conn_send_bytes (c, b);
  for (uint64_t i = 0; i < N; i++) {
    const uint64_t at = DATA_END - 12 * MiB + i * 1 * MiB;
    const struct reply *r = recv_reply (c, i + 1);

    CHECK (t, r->error == 0, "reading: %s", error_name (r->error));
    if (at < DATA_END)
      expect_pattern (c, r->data, at, 1 * MiB);
    else
      CHECK (t, all_zero (r->data, 1 * MiB), "the zero area is not zero");
  }
}

/* Errors of reads are chunks, even those found out before anything is read. */
static void
read_errors (struct test *t)
{
  struct conn *c = open_transmission (t);
  const struct request wrong[] = {
    { .type = NBD_CMD_READ, .offset = t->target->size, .length = 1 },
    { .type = NBD_CMD_READ, .offset = UINT64_MAX, .length = UINT32_MAX },
    { .type = NBD_CMD_READ, .flags = 0x8000, .length = 4096 },
    { .type = NBD_CMD_READ, .flags = NBD_CMD_FLAG_FAST_ZERO, .length = 4096 },
  };

  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    const struct reply *r = ask (c, wrong[i]);

    expect_error (c, r->error, "a wrong read", ERRS (NBD_EINVAL));
    CHECK (t, r->data_chunks + r->hole_chunks == 0, "content came with the error");
  }
  expect_in_sync (c);
}

#define ONE "with DF at most one content chunk, and 64 KiB MUST be supported"

const struct tcase chunk_cases[] = {
  { "df.64KiB", IN_CHUNKS, PLAIN | DF | PATTERN, df_small, ONE },
  { "df.fragments", IN_CHUNKS, PLAIN | DF | WRITABLE | ZEROES, df_fragments,
    "a range of data and holes MUST come as data, the zeroes written out" },
  { "df.large", IN_CHUNKS, PLAIN | DF | PATTERN, df_large,
    "one content chunk, or EOVERFLOW and none" },
  { "df.64MiB", IN_CHUNKS, PLAIN | DF, df_too_large, "one content chunk, or EOVERFLOW and none" },
  { "df.past-end", IN_CHUNKS, PLAIN | DF, df_past_end,
    "a range that is not inside the export SHOULD fail with EINVAL" },
  { "chunks.holes", IN_CHUNKS, PLAIN | PATTERN | HOLE_CHUNKS, holes,
    "zeroes may come as a hole; this server promises it" },
  { "chunks.data-then-hole", IN_CHUNKS, PLAIN | PATTERN | HOLE_CHUNKS, data_then_hole,
    "zeroes may come as a hole; this server promises it" },
  { "chunks.interleaved", IN_CHUNKS, PLAIN | PATTERN, interleaved,
    "a chunk's cookie says which reply it is of" },
  { "chunks.read-errors", IN_CHUNKS, PLAIN, read_errors,
    "a read MUST NOT be answered by a simple reply, not even an early error" },
  { NULL, 0, 0, NULL, NULL },
};
