/* SPDX-License-Identifier: BSD-3-Clause */

/* READ, and CACHE, which promises nothing but not to harm. */

#include <inttypes.h>
#include <string.h>

#include "client.h"

/* Bytes start..start+len of an image laid out as in suite.h. */
static void
expect_layout (struct conn *c, const uint8_t *p, uint64_t start, size_t len)
{
  size_t data = start >= DATA_END ? 0 : DATA_END - start < len ? DATA_END - start : len;

  expect_pattern (c, p, start, data);
  CHECK (c->t, all_zero (p + data, len - data), "%" PRIu64 "+%zu does not read as zeroes",
         start + data, len - data);
}

static void
read_ranges (struct test *t, const uint64_t (*ranges)[2], size_t n)
{
  struct conn *c = open_transmission (t);

  for (size_t i = 0; i < n; i++)
    expect_layout (c, do_read (c, ranges[i][0], ranges[i][1]), ranges[i][0], ranges[i][1]);
}

#define RANGES(t, ...)                                                                             \
  do {                                                                                             \
    static const uint64_t ranges[][2] = { __VA_ARGS__ };                                           \
    read_ranges ((t), ranges, sizeof ranges / sizeof ranges[0]);                                   \
  } while (0)

static void
aligned (struct test *t)
{
  RANGES (t, { 0, 65536 }, { 65536, 65536 }, { 1 * MiB, 1 * MiB }, { 39 * MiB, 1 * MiB },
          { 20 * MiB + 65536, 3 * 65536 });
}

static void
unaligned (struct test *t)
{
  RANGES (t, { 0, 1 }, { 1, 1 }, { 511, 1 }, { 511, 2 }, { 0, 511 }, { 0, 513 }, { 1, 4096 },
          { 4095, 2 }, { 65535, 2 }, { 65537, 65535 }, { 123457, 1234567 }, { 3 * MiB - 7, 15 });
}

static void
across_areas (struct test *t)
{
  RANGES (t, { DATA_END - 65536, 131072 }, { DATA_END - 1 * MiB, 2 * MiB },
          { DATA_END, ZERO_END - DATA_END }, { ZERO_END - 65536, 131072 },
          { ZERO_END + 65536, 131072 }, { DATA_END - 65536, HOLE_END - DATA_END });
}

static void
across_areas_unaligned (struct test *t)
{
  RANGES (t, { DATA_END - 1, 2 }, { DATA_END - 513, 1030 }, { ZERO_END - 1, 2 },
          { DATA_END + 1, 1 }, { ZERO_END + 12345, 54321 });
}

static void
at_end (struct test *t)
{
  struct conn *c = open_transmission (t);
  uint64_t size = t->target->size;

  for (uint64_t len = unit (t); len <= 64 * KiB; len *= 2)
    do_read (c, size - len, len);
}

/* Ranges that are not inside the export, with lengths that leave no doubt about payloads. */
static void
expect_outside (struct conn *c, uint16_t type, const uint32_t *wanted)
{
  const uint64_t size = c->t->target->size, u = unit (c->t);
  const uint64_t ranges[][2] = {
    { size, u },
    { size - u, 2 * u },
    { size + u, u },
    { size - 64 * KiB, 64 * KiB + u },
    { UINT64_C (1) << 62, u },
    { (UINT64_C (1) << 63) - u, u },
    { UINT64_C (1) << 63, u },
    { UINT64_MAX - u + 1, u }, /* the sum is 0 */
    { UINT64_MAX - 2 * u + 1, 4 * u },
    { size - u, UINT32_MAX - u + 1 },
  };

  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    expect_error (c, do_cmd (c, type, 0, ranges[i][0], ranges[i][1]), "past the end", wanted);
  expect_in_sync (c);
}

static void
past_end (struct test *t)
{
  expect_outside (open_transmission (t), NBD_CMD_READ, ERRS (NBD_EINVAL));
}

/* What a server does is its own affair, unless it hangs up. */
static void
nothing (struct test *t, uint16_t type)
{
  struct conn *c = open_transmission (t);
  const uint64_t size = t->target->size, offsets[] = { 0, 65536, size - unit (t), size };

  for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++)
    do_cmd (c, type, 0, offsets[i], 0);
  expect_in_sync (c);
}

static void
length_zero (struct test *t)
{
  nothing (t, NBD_CMD_READ);
}

static void
large (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_layout (c, do_read (c, 1 * MiB, max_payload (t)), 1 * MiB, max_payload (t));
}

static void
too_large (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t length = max_payload (t) + 1 * MiB;
  const struct reply *r =
      ask (c, (struct request){ .type = NBD_CMD_READ, .offset = 2 * MiB, .length = length });

  expect_error (c, r->error, "a read beyond the maximum payload",
                ERRS (NBD_OK, NBD_EINVAL, NBD_EOVERFLOW));
  if (r->error == 0)
    expect_layout (c, r->data, 2 * MiB, length);
  expect_in_sync (c);
}

static void
too_large_served (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_layout (c, do_read (c, 0, HOLE_END), 0, HOLE_END);
  expect_in_sync (c);
}

/* Nearly 4 GiB, all inside the export. An error is right, and so is to begin; then we leave. */
static void
four_gib (struct test *t)
{
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);

  conn_send_bytes (c, put_header (b, c->mode, 0, NBD_CMD_READ, 1, 0, UINT32_MAX - 65535));
  if (!conn_at_eof (c))
    conn_skip (c, 16, "the beginning of a reply");
  conn_close (c);
  expect_alive (t);
}

static void
not_aligned (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t u = unit (t);
  const uint64_t ranges[][2] = { { 1, u }, { 0, 1 }, { u, u - 1 }, { u - 1, 1 }, { 0, u + 1 } };

  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    expect_error (c, do_cmd (c, NBD_CMD_READ, 0, ranges[i][0], ranges[i][1]),
                  "a read that is not aligned", ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

/* CACHE */

static void
cache (struct test *t)
{
  struct conn *c = open_transmission (t);
  const uint64_t ranges[][2] = { { 0, 64 * KiB },
                                 { 1 * MiB, 2 * MiB },
                                 { DATA_END, 64 * KiB },
                                 { HOLE_END - 64 * KiB, 64 * KiB },
                                 { t->target->size - unit (t), unit (t) } };

  for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
    expect_error (c, do_cmd (c, NBD_CMD_CACHE, 0, ranges[i][0], ranges[i][1]), "cache",
                  ERRS (NBD_OK, NBD_EINVAL));
  expect_in_sync (c);
}

static void
cache_past_end (struct test *t)
{
  expect_outside (open_transmission (t), NBD_CMD_CACHE, ERRS (NBD_EINVAL));
}

static void
cache_length_zero (struct test *t)
{
  nothing (t, NBD_CMD_CACHE);
}

static void
cache_large (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, do_cmd (c, NBD_CMD_CACHE, 0, 0, SCRATCH_END), "cache of 128 MiB",
                ERRS (NBD_OK, NBD_EINVAL, NBD_EOVERFLOW));
  expect_in_sync (c);
}

#define OUTSIDE "a range that is not inside the export SHOULD fail with EINVAL"
#define ZERO    "a length of 0 is unspecified, but SHOULD NOT make the server hang up"

const struct tcase read_cases[] = {
  { "read.aligned", IN_ALL, PLAIN | PATTERN, aligned, "what was written is read" },
  { "read.unaligned", IN_ALL, PLAIN | PATTERN | BYTES, unaligned,
    "with a minimum block size of 1 any range is read" },
  { "read.across-areas", IN_ALL, PLAIN | PATTERN, across_areas,
    "zeroed and unallocated ranges read as zeroes" },
  { "read.across-areas-unaligned", IN_ALL, PLAIN | PATTERN | BYTES, across_areas_unaligned,
    "chunks meet where data and zeroes do" },
  { "read.at-end", IN_ALL, PLAIN, at_end, "the last byte is part of the export" },
  { "read.past-end", IN_ALL, PLAIN, past_end, OUTSIDE },
  { "read.length-zero", IN_ALL, PLAIN, length_zero, ZERO },
  { "read.maximum-payload", IN_ALL, PLAIN | PATTERN, large,
    "32 MiB, or the maximum payload advertised, SHOULD be served" },
  { "read.beyond-maximum-payload", IN_ALL, PLAIN | PATTERN, too_large,
    "served, or refused with EOVERFLOW or EINVAL" },
  { "read.64MiB", IN_CHUNKS, PLAIN | PATTERN | LARGE_READS, too_large_served,
    "reads beyond the maximum payload MAY be split into chunks; this server promises it" },
  { "read.4GiB", IN_ALL, PLAIN | HUGE, four_gib, "an error, or a reply with bounded memory" },
  { "read.not-aligned", IN_ALL, PLAIN | BLOCKS, not_aligned,
    "a request not aligned to the minimum block size SHOULD fail with EINVAL" },
  { "cache.ranges", IN_ALL, PLAIN | CACHE, cache, "success, or always EINVAL" },
  { "cache.past-end", IN_ALL, PLAIN | CACHE, cache_past_end, OUTSIDE },
  { "cache.length-zero", IN_ALL, PLAIN | CACHE, cache_length_zero, ZERO },
  { "cache.large", IN_ALL, PLAIN | CACHE, cache_large,
    "no payload, so the maximum payload is no reason to hang up" },
  { NULL, 0, 0, NULL, NULL },
};
