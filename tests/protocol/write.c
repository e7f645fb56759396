/* SPDX-License-Identifier: BSD-3-Clause */

/* WRITE, WRITE_ZEROES, TRIM and FLUSH. All of it happens in the scratch area. */

#include <inttypes.h>
#include <string.h>

#include "client.h"

static uint8_t *
filled (struct test *t, int byte, size_t len)
{
  uint8_t *p = test_alloc (t, len);

  memset (p, byte, len);
  return p;
}

static void
expect_filled (struct conn *c, const uint8_t *p, int byte, size_t len)
{
  for (size_t i = 0; i < len; i++)
    CHECK (c->t, p[i] == byte, "byte %zu reads as %#x, not %#x", i, p[i], byte);
}

static void
write_filled (struct conn *c, uint16_t flags, uint64_t offset, int byte, size_t len)
{
  expect_error (c, do_write (c, flags, offset, filled (c->t, byte, len), len), "write", SUCCESS);
}

/* Something is written in the midst of other bytes, which stay. zeroing: by WRITE_ZEROES. */
static void
in_the_midst (struct conn *c, uint64_t at, size_t before, size_t len, size_t after, bool zeroing,
              uint16_t flags)
{
  const uint8_t *p;

  write_filled (c, 0, at, 0xaa, before + len + after);
  if (zeroing)
    expect_error (c, do_cmd (c, NBD_CMD_WRITE_ZEROES, flags, at + before, len), "write zeroes",
                  SUCCESS);
  else
    write_filled (c, flags, at + before, 0x55, len);
  p = do_read (c, at, before + len + after);
  expect_filled (c, p, 0xaa, before);
  expect_filled (c, p + before, zeroing ? 0 : 0x55, len);
  expect_filled (c, p + before + len, 0xaa, after);
}

static void
midst_aligned (struct conn *c, bool zeroing, uint16_t flags)
{
  in_the_midst (c, SCRATCH, 64 * KiB, 64 * KiB, 64 * KiB, zeroing, flags);
  in_the_midst (c, SCRATCH + 1 * MiB, 4 * KiB, 4 * KiB, 120 * KiB, zeroing, flags);
  in_the_midst (c, SCRATCH + 2 * MiB, 64 * KiB, 1 * MiB, 64 * KiB, zeroing, flags);
}

static void
midst_unaligned (struct conn *c, bool zeroing, uint16_t flags)
{
  in_the_midst (c, SCRATCH + 4 * MiB + 1, 511, 1, 512, zeroing, flags);
  in_the_midst (c, SCRATCH + 5 * MiB - 3, 2, 2, 2, zeroing, flags);
  in_the_midst (c, SCRATCH + 6 * MiB + 77, 1000, 65536, 1000, zeroing, flags);
  in_the_midst (c, SCRATCH + 7 * MiB + 65535, 1, 131074, 1, zeroing, flags);
}

static void
write_aligned (struct test *t)
{
  midst_aligned (open_transmission (t), false, 0);
}

static void
write_unaligned (struct test *t)
{
  midst_unaligned (open_transmission (t), false, 0);
}

static void
write_fua (struct test *t)
{
  midst_aligned (open_transmission (t), false, NBD_CMD_FLAG_FUA);
}

static void
write_at_end (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t size = t->target->size, u = unit (t);

  write_filled (c, 0, size - 64 * u, 0x11, 64 * u);
  write_filled (c, 0, size - u, 0x22, u);
  expect_filled (c, do_read (c, size - 64 * u, 63 * u), 0x11, 63 * u);
  expect_filled (c, do_read (c, size - u, u), 0x22, u);
}

static void
write_past_end (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t size = t->target->size, u = unit (t);
  const uint64_t ranges[][2] = {
    { size, u },
    { size - u, 2 * u },
    { size + 1 * MiB, 64 * KiB },
    { size - 64 * KiB, 1 * MiB },
    { UINT64_C (1) << 62, u },
    { UINT64_C (1) << 63, u },
    { UINT64_MAX - u + 1, u },
    { UINT64_MAX - u + 1, 64 * KiB },
  };

  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    expect_error (c, do_write (c, 0, ranges[i][0], filled (t, 0x77, ranges[i][1]), ranges[i][1]),
                  "a write past the end", ERRS (NBD_ENOSPC));
  expect_in_sync (c);
}

static void
write_length_zero (struct test *t)
{
  struct conn *c = open_transmission (t);

  do_write (c, 0, SCRATCH, "", 0);
  do_write (c, 0, t->target->size, "", 0);
  expect_in_sync (c);
}

static void
write_large (struct test *t)
{
  struct conn *c = open_transmission (t);
  size_t len = max_payload (t);

  write_filled (c, 0, SCRATCH, 0x33, len);
  expect_filled (c, do_read (c, SCRATCH, len), 0x33, len);
}

/* Bytes that tell where they belong. */
static uint8_t *
numbered (struct test *t, uint32_t salt, size_t len)
{
  uint8_t *p = test_alloc (t, len);

  for (size_t i = 0; i < len; i++)
    p[i] = (uint8_t)((i >> 12) * 7 + i + salt);
  return p;
}

/* Long payloads, one after the other and with short requests between them, before any reply is
 * looked at: however a server takes them in, each byte gets to its place. */
static void
write_long_pipeline (struct test *t)
{
  enum { N = 3 };
  struct conn *c = open_transmission (t);
  size_t len = max_payload (t) < 20 * MiB ? max_payload (t) : 20 * MiB;
  struct bytes *b = bytes_new (t);
  uint8_t *data[N];

  for (uint32_t i = 0; i < N; i++) {
    data[i] = numbered (t, i, len);
    put_request (b, c,
                 &(struct request){ .type = NBD_CMD_WRITE,
                                    .flags = has_flag (t, NBD_FLAG_SEND_FUA) ? NBD_CMD_FLAG_FUA : 0,
                                    .cookie = 2 * i + 1,
                                    .offset = SCRATCH + i * 20 * MiB,
                                    .length = len,
                                    .payload = data[i] });
    put_request (
        b, c, &(struct request){ .type = NBD_CMD_READ, .cookie = 2 * i + 2, .length = 64 * KiB });
  }
  conn_send_bytes (c, b);
  recv_all (c);
  for (uint32_t i = 0; i < N; i++) {
    const uint8_t *got = do_read (c, SCRATCH + i * 20 * MiB, len);

    CHECK (t, memcmp (got, data[i], len) == 0, "write %u reads back as something else", i);
  }
}

/* A long payload that ends in the middle gets no answer of success. */
static void
write_cut_short (struct test *t)
{
  const size_t cuts[] = { 1, 4 * MiB - 1, 4 * MiB, 4 * MiB + 1, 9 * MiB };
  size_t len = max_payload (t) < 20 * MiB ? max_payload (t) : 20 * MiB;

  for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
    struct conn *c = open_transmission (t);
    struct bytes *b = bytes_new (t);
    uint16_t flags = c->mode == EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;

    if (cuts[i] >= len)
      continue;
    put_header (b, c->mode, flags, NBD_CMD_WRITE, 1, SCRATCH, len);
    conn_send_bytes (c, put_fill (b, 0x66, cuts[i]));
    conn_half_close (c);
    CHECK (t, conn_at_eof (c), "an answer to a write of which %zu of %zu bytes came", cuts[i], len);
  }
  expect_alive (t);
}

/* A payload beyond the limit may be refused, after all of it, or cut off. */
static void
write_too_large (struct test *t)
{
  struct conn *c = open_transmission (t);
  size_t len = max_payload (t) + 64 * KiB;
  uint64_t cookie = send_request (c, (struct request){ .type = NBD_CMD_WRITE,
                                                       .offset = SCRATCH,
                                                       .length = len,
                                                       .payload = filled (t, 0x44, len) });

  if (!conn_at_eof (c)) {
    expect_error (c, recv_reply (c, cookie)->error, "a write beyond the maximum payload",
                  ERRS (NBD_OK, NBD_EINVAL, NBD_EOVERFLOW, NBD_ENOMEM));
    send_request (c, (struct request){ .type = NBD_CMD_READ, .length = 64 * KiB });
    if (!conn_at_eof (c))
      recv_all (c);
  }
  expect_alive (t);
}

/* The header promises 4 GiB, of which little comes. */
static void
write_endless (struct test *t)
{
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);
  uint16_t flags = c->mode == EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;

  put_header (b, c->mode, flags, NBD_CMD_WRITE, 1, SCRATCH, UINT32_MAX);
  conn_send_bytes (c, put_fill (b, 0x66, 64 * KiB));
  conn_half_close (c);
  while (!conn_at_eof (c))
    c->head = c->tail;
  expect_alive (t);
}

static void
write_not_aligned (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t u = unit (t);
  const uint64_t ranges[][2] = { { 1, u }, { 0, 1 }, { u, u - 1 }, { u - 1, 1 }, { 0, u + 1 } };

  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    expect_error (
        c, do_write (c, 0, SCRATCH + ranges[i][0], filled (t, 0x12, ranges[i][1]), ranges[i][1]),
        "a write that is not aligned", ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

/* Read-only exports */

static void
read_only_write (struct test *t)
{
  struct conn *c = open_transmission (t);
  const size_t sizes[] = { unit (t), 64 * KiB, 1 * MiB };

  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    expect_error (c, do_write (c, 0, 0, filled (t, 0x99, sizes[i]), sizes[i]),
                  "a write to a read-only export", ERRS (NBD_EPERM));
  expect_in_sync (c);
}

static void
read_only_zeroes (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, do_cmd (c, NBD_CMD_WRITE_ZEROES, 0, 0, 64 * KiB), "zeroing a read-only export",
                ERRS (NBD_EPERM));
  expect_error (c, do_cmd (c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 0, 64 * KiB),
                "zeroing a read-only export", ERRS (NBD_EPERM));
  expect_in_sync (c);
}

static void
read_only_trim (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, do_cmd (c, NBD_CMD_TRIM, 0, 0, 64 * KiB), "trimming a read-only export",
                ERRS (NBD_EPERM));
  expect_in_sync (c);
}

static void
read_only_flush (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, do_cmd (c, NBD_CMD_FLUSH, 0, 0, 0), "flushing a read-only export", SUCCESS);
}

/* FLUSH */

static void
flush (struct test *t)
{
  struct conn *c = open_transmission (t);

  for (int i = 0; i < 3; i++)
    expect_error (c, do_cmd (c, NBD_CMD_FLUSH, 0, 0, 0), "flush", SUCCESS);
}

/* The client MUST NOT; a server may mind or not, but it answers. */
static void
flush_with_range (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t ranges[][2] = { { 512, 0 }, { 0, 512 }, { UINT64_MAX, UINT32_MAX } };

  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    expect_error (c, do_cmd (c, NBD_CMD_FLUSH, 0, ranges[i][0], ranges[i][1]), "flush with a range",
                  ERRS (NBD_OK, NBD_EINVAL));
  expect_in_sync (c);
}

/* WRITE_ZEROES */

static void
zeroes_aligned (struct test *t)
{
  midst_aligned (open_transmission (t), true, 0);
}

static void
zeroes_unaligned (struct test *t)
{
  midst_unaligned (open_transmission (t), true, 0);
}

static void
zeroes_no_hole (struct test *t)
{
  struct conn *c = open_transmission (t);

  midst_aligned (c, true, NBD_CMD_FLAG_NO_HOLE);
  if (t->target->has & BYTES)
    midst_unaligned (c, true, NBD_CMD_FLAG_NO_HOLE);
}

static void
zeroes_fua (struct test *t)
{
  struct conn *c = open_transmission (t);

  midst_aligned (c, true, NBD_CMD_FLAG_FUA);
  midst_aligned (c, true, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE);
}

static void
zeroes_length_zero (struct test *t)
{
  struct conn *c = open_transmission (t);

  do_cmd (c, NBD_CMD_WRITE_ZEROES, 0, SCRATCH, 0);
  do_cmd (c, NBD_CMD_WRITE_ZEROES, 0, t->target->size, 0);
  expect_in_sync (c);
}

static void
expect_outside (struct test *t, uint16_t type, const uint32_t *wanted)
{
  struct conn *c = open_transmission (t);
  const uint64_t size = t->target->size, u = unit (t);
  const uint64_t ranges[][2] = {
    { size, u },
    { size - u, 2 * u },
    { size + 1 * MiB, 1 * MiB },
    { size - u, UINT32_MAX - u + 1 },
    { UINT64_C (1) << 62, u },
    { UINT64_C (1) << 63, u },
    { UINT64_MAX - u + 1, u },
    { UINT64_MAX - u + 1, UINT32_MAX - u + 1 },
  };

  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    expect_error (c, do_cmd (c, type, 0, ranges[i][0], ranges[i][1]), "past the end", wanted);
  expect_in_sync (c);
}

static void
zeroes_past_end (struct test *t)
{
  expect_outside (t, NBD_CMD_WRITE_ZEROES, ERRS (NBD_ENOSPC));
}

/* No payload travels, so the length is no burden. */
static void
zeroes_large (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t len = UINT32_MAX - 64 * KiB + 1;

  write_filled (c, 0, BIG_START + len - 64 * KiB, 0x5a, 64 * KiB);
  expect_error (c, do_cmd (c, NBD_CMD_WRITE_ZEROES, 0, BIG_START, len), "zeroing nearly 4 GiB",
                SUCCESS);
  CHECK (t, all_zero (do_read (c, BIG_START + len - 64 * KiB, 64 * KiB), 64 * KiB),
         "its end does not read as zeroes");
}

/* Whatever a fast zero request answers, what is read afterwards goes with it. */
static void
zeroes_fast (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint16_t more[] = { 0, NBD_CMD_FLAG_NO_HOLE };
  const uint64_t at = SCRATCH + 10 * MiB;

  for (size_t i = 0; i < 2; i++)
    for (uint64_t len = unit (t) > 512 ? unit (t) : 512; len <= 1 * MiB; len *= 4) {
      uint32_t error;

      write_filled (c, 0, at, 0xcc, len);
      error = do_cmd (c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO | more[i], at, len);
      expect_error (c, error, "a fast zero", ERRS (NBD_OK, NBD_ENOTSUP));
      expect_filled (c, do_read (c, at, len), error ? 0xcc : 0, len);
    }
  expect_in_sync (c);
}

static void
zeroes_fast_not_offered (struct test *t)
{
  struct conn *c = open_transmission (t);

  if (has_flag (t, NBD_FLAG_SEND_FAST_ZERO))
    skip (t, "fast zeroes are offered");
  expect_error (c, do_cmd (c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, SCRATCH, 64 * KiB),
                "a fast zero that was not offered", ERRS (NBD_EINVAL));
}

/* TRIM */

static void
trim (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t at = SCRATCH + 20 * MiB, u = unit (t);

  write_filled (c, 0, at, 0xdd, 2 * MiB);
  expect_error (c, do_cmd (c, NBD_CMD_TRIM, 0, at + 512 * KiB, 1 * MiB), "trim", SUCCESS);
  expect_error (c, do_cmd (c, NBD_CMD_TRIM, 0, at + u, u), "trim", SUCCESS);
  expect_filled (c, do_read (c, at + 64 * KiB, 448 * KiB), 0xdd, 448 * KiB);
  expect_filled (c, do_read (c, at + 1536 * KiB, 512 * KiB), 0xdd, 512 * KiB);
  do_read (c, at, 2 * MiB); /* whatever it holds, it can be read */
  write_filled (c, 0, at, 0xee, 2 * MiB);
  expect_filled (c, do_read (c, at, 2 * MiB), 0xee, 2 * MiB);
}

static void
trim_past_end (struct test *t)
{
  expect_outside (t, NBD_CMD_TRIM, ERRS (NBD_EINVAL));
}

static void
trim_length_zero (struct test *t)
{
  struct conn *c = open_transmission (t);

  do_cmd (c, NBD_CMD_TRIM, 0, SCRATCH, 0);
  do_cmd (c, NBD_CMD_TRIM, 0, t->target->size, 0);
  expect_in_sync (c);
}

static void
trim_large (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, do_cmd (c, NBD_CMD_TRIM, 0, BIG_START, UINT32_MAX - 64 * KiB + 1),
                "trimming nearly 4 GiB", SUCCESS);
  expect_in_sync (c);
}

static void
trim_fua (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, do_cmd (c, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, SCRATCH, 1 * MiB), "trim", SUCCESS);
  expect_in_sync (c);
}

#define NO_SPACE "a write past the end SHOULD fail with ENOSPC, its payload consumed"
#define ZERO     "a length of 0 is unspecified, but SHOULD NOT make the server hang up"
#define PERM     "a read-only export SHOULD answer EPERM"
#define LARGE    "without a payload the maximum payload is no limit"

const struct tcase write_cases[] = {
  { "write.aligned", IN_ALL, PLAIN | WRITABLE, write_aligned, "what is written is read" },
  { "write.unaligned", IN_ALL, PLAIN | WRITABLE | BYTES, write_unaligned,
    "what is written is read, and nothing beside it changes" },
  { "write.fua", IN_ALL, PLAIN | WRITABLE | FUA, write_fua, "FUA is honoured" },
  { "write.at-end", IN_ALL, PLAIN | WRITABLE, write_at_end, "the last byte can be written" },
  { "write.past-end", IN_ALL, PLAIN | WRITABLE, write_past_end, NO_SPACE },
  { "write.length-zero", IN_ALL, PLAIN | WRITABLE, write_length_zero, ZERO },
  { "write.maximum-payload", IN_ALL, PLAIN | WRITABLE, write_large,
    "32 MiB, or the maximum payload advertised, SHOULD be served" },
  { "write.long-pipeline", IN_ALL, PLAIN | WRITABLE, write_long_pipeline,
    "what is written is read" },
  { "write.cut-short", IN_ALL, PLAIN | WRITABLE, write_cut_short,
    "a request that did not come is not done" },
  { "write.beyond-maximum-payload", IN_ALL, PLAIN | WRITABLE, write_too_large,
    "an error after all of the payload, or a hang-up" },
  { "write.endless", IN_ALL, PLAIN | WRITABLE, write_endless,
    "a length is a promise, nothing to allocate by" },
  { "write.not-aligned", IN_ALL, PLAIN | WRITABLE | BLOCKS, write_not_aligned,
    "a request not aligned to the minimum block size SHOULD fail with EINVAL" },
  { "read-only.write", IN_ALL, PLAIN | READ_ONLY, read_only_write, PERM },
  { "read-only.write-zeroes", IN_ALL, PLAIN | READ_ONLY, read_only_zeroes, PERM },
  { "read-only.trim", IN_ALL, PLAIN | READ_ONLY, read_only_trim, PERM },
  { "read-only.flush", IN_ALL, PLAIN | READ_ONLY | FLUSH, read_only_flush, "FLUSH is no write" },
  { "flush.plain", IN_ALL, PLAIN | FLUSH, flush, "FLUSH succeeds" },
  { "flush.with-range", IN_ALL, PLAIN | FLUSH, flush_with_range, "offset and length are reserved" },
  { "zeroes.aligned", IN_ALL, PLAIN | WRITABLE | ZEROES, zeroes_aligned,
    "the range reads back as zeroes" },
  { "zeroes.unaligned", IN_ALL, PLAIN | WRITABLE | ZEROES | BYTES, zeroes_unaligned,
    "the range reads back as zeroes, and nothing beside it changes" },
  { "zeroes.no-hole", IN_ALL, PLAIN | WRITABLE | ZEROES, zeroes_no_hole,
    "NO_HOLE MUST be supported with WRITE_ZEROES" },
  { "zeroes.fua", IN_ALL, PLAIN | WRITABLE | ZEROES | FUA, zeroes_fua, "FUA is honoured" },
  { "zeroes.length-zero", IN_ALL, PLAIN | WRITABLE | ZEROES, zeroes_length_zero, ZERO },
  { "zeroes.past-end", IN_ALL, PLAIN | WRITABLE | ZEROES, zeroes_past_end,
    "zeroing past the end SHOULD fail with ENOSPC" },
  { "zeroes.nearly-4GiB", IN_ALL, PLAIN | WRITABLE | ZEROES | HUGE, zeroes_large, LARGE },
  { "zeroes.fast", IN_ALL, PLAIN | WRITABLE | ZEROES | FAST_ZERO, zeroes_fast,
    "done, or ENOTSUP and nothing altered" },
  { "zeroes.fast-not-offered", IN_ALL, PLAIN | WRITABLE | ZEROES, zeroes_fast_not_offered,
    "FAST_ZERO without SEND_FAST_ZERO SHOULD fail with EINVAL" },
  { "trim.ranges", IN_ALL, PLAIN | WRITABLE | TRIM, trim,
    "nothing beside the range changes, and the range can be read and written" },
  { "trim.past-end", IN_ALL, PLAIN | WRITABLE | TRIM, trim_past_end,
    "a trim past the end SHOULD fail with EINVAL" },
  { "trim.length-zero", IN_ALL, PLAIN | WRITABLE | TRIM, trim_length_zero, ZERO },
  { "trim.nearly-4GiB", IN_ALL, PLAIN | WRITABLE | TRIM | HUGE, trim_large, LARGE },
  { "trim.fua", IN_ALL, PLAIN | WRITABLE | TRIM | FUA, trim_fua, "FUA is honoured" },
  { NULL, 0, 0, NULL, NULL },
};
