/* SPDX-License-Identifier: BSD-3-Clause */

/* Clients that mean harm, or are broken. Whatever they do, others are served meanwhile, and
 * afterwards nothing is left of them.
 */

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client.h"

/* A small generator, so that a failure can be repeated. */
static uint32_t
next_random (uint32_t *state)
{
  *state ^= *state << 13;
  *state ^= *state >> 17;
  *state ^= *state << 5;
  return *state;
}

static struct bytes *
noise (struct test *t, uint32_t seed, size_t len)
{
  struct bytes *b = bytes_new (t);

  for (size_t i = 0; i < len; i++)
    put_fill (b, (int)(next_random (&seed) >> 16 & 0xff), 1);
  return b;
}

/* Reads to the end, whatever comes. */
static void
drain (struct conn *c)
{
  while (!conn_at_eof (c))
    c->head = c->tail;
}

static void
come_and_go (struct test *t)
{
  for (int i = 0; i < 200; i++) {
    struct conn *c = conn_open (t);

    if (i % 2)
      conn_reset (c);
    else
      conn_close (c);
  }
  expect_alive (t);
}

static void
half_greeting (struct test *t)
{
  for (size_t len = 0; len < 4; len++) {
    struct conn *c = conn_open (t);

    conn_send (c, "\0\0\0", len);
    conn_half_close (c);
    drain (c);
  }
  expect_alive (t);
}

static void
half_option (struct test *t)
{
  const uint16_t infos[] = { NBD_INFO_BLOCK_SIZE };
  const struct bytes *data = go_data (t, t->target->export, 1, infos);
  struct bytes *whole = opt_header (bytes_new (t), NBD_OPT_GO, (uint32_t)data->len);

  put (whole, data->data, data->len);
  for (size_t len = 0; len < whole->len; len++) {
    struct conn *c = open_haggling (t);

    conn_send (c, whole->data, len);
    conn_half_close (c);
    expect_eof (c, "when the client leaves amid an option");
  }
  expect_alive (t);
}

static void
half_request (struct test *t)
{
  struct bytes *whole = put_header (bytes_new (t), t->mode, 0, NBD_CMD_READ, 1, 0, 4096);

  for (size_t len = 0; len < whole->len; len++) {
    struct conn *c = open_transmission (t);

    conn_send (c, whole->data, len);
    conn_half_close (c);
    expect_eof (c, "when the client leaves amid a request");
  }
  expect_alive (t);
}

static void
noise_for_greeting (struct test *t)
{
  for (uint32_t seed = 1; seed <= 30; seed++) {
    struct conn *c = conn_open (t);

    conn_send_bytes (c, noise (t, seed, 4096));
    conn_half_close (c);
    drain (c);
  }
  expect_alive (t);
}

static void
noise_for_options (struct test *t)
{
  for (uint32_t seed = 1; seed <= 60; seed++) {
    struct conn *c = open_haggling (t);
    uint32_t option = seed % 13, len = seed * 7 % 100;
    struct bytes *b = opt_header (bytes_new (t), option, len);

    conn_send_bytes (c, put (b, noise (t, seed, len)->data, len));
    conn_half_close (c);
    drain (c);
  }
  expect_alive (t);
}

static void
noise_for_requests (struct test *t)
{
  for (uint32_t seed = 1; seed <= 30; seed++) {
    struct conn *c = open_transmission (t);

    conn_send_bytes (c, noise (t, seed, 4096));
    conn_half_close (c);
    drain (c);
  }
  expect_alive (t);
}

/* The magic is right and the rest is noise: commands, flags, ranges at random. The offsets are
 * past the end, so that nothing is written. */
static void
noise_behind_magic (struct test *t)
{
  uint32_t seed = 0x1234567;

  for (int i = 0; i < 100; i++) {
    struct conn *c = open_transmission (t);
    struct bytes *b = bytes_new (t);

    for (int j = 0; j < 20; j++) {
      uint16_t flags = (uint16_t)(next_random (&seed) >> (next_random (&seed) % 32));
      uint16_t type = (uint16_t)(next_random (&seed) % 10);
      uint64_t offset = (UINT64_C (1) << 63) + next_random (&seed);
      uint64_t len = next_random (&seed) >> (next_random (&seed) % 32);

      put_header (b, c->mode, flags, type, next_random (&seed), offset, len);
    }
    conn_send_bytes (c, put_fill (b, 0, 100));
    conn_half_close (c);
    drain (c);
  }
  expect_alive (t);
}

/* Silent connections in each phase, and others are served. */
static void
silent_many (struct test *t)
{
  enum { N = 40 };

  for (int i = 0; i < N; i++) {
    struct conn *c = conn_open (t);

    if (i % 3 == 1)
      conn_send (c, "\0\0", 2);
    else if (i % 3 == 2) {
      greet (c, NBD_FLAG_C_FIXED_NEWSTYLE);
      conn_send_bytes (c, put_u64 (bytes_new (t), NBD_MAGIC_OPTION));
    }
  }
  expect_alive (t);
}

/* Asks for much and reads nothing: the server has to stop taking requests from this one, keep its
 * memory bounded, and serve the others. */
static void
never_reads (struct test *t)
{
  enum { N = 4 };
  struct bytes *b = bytes_new (t);

  for (uint64_t i = 0; i < 2000; i++)
    put_header (b, t->mode, 0, NBD_CMD_READ, i, (i % 32) * MiB, 1 * MiB);
  for (int i = 0; i < N; i++) {
    struct conn *c = open_transmission (t);

    conn_send_some (c, b->data, b->len, 200);
  }
  for (int i = 0; i < 3; i++)
    expect_alive (t);
}

/* Options whose answers nobody reads. */
static void
never_reads_options (struct test *t)
{
  struct bytes *b = bytes_new (t);
  struct conn *c = open_haggling (t);

  for (int i = 0; i < 50000; i++)
    opt_header (b, NBD_OPT_LIST, 0);
  conn_send_some (c, b->data, b->len, 200);
  expect_alive (t);
}

static void
slow_reader (struct test *t)
{
  const struct timespec pause = { .tv_nsec = 10000000 };
  struct conn *c = open_transmission (t);
  struct bytes *b = bytes_new (t);

  for (uint64_t i = 0; i < 32; i++)
    put_request (b, c,
                 &(struct request){
                     .type = NBD_CMD_READ, .cookie = i + 1, .offset = i * MiB, .length = 1 * MiB });
  conn_send_bytes (c, b);
  for (uint64_t i = 0; i < 32; i++) {
    const struct reply *r = recv_reply (c, i + 1);

    CHECK (t, r->error == 0, "a read: %s", error_name (r->error));
    expect_pattern (c, r->data, i * MiB, 1 * MiB);
    nanosleep (&pause, NULL);
  }
}

/* What is left behind */

static size_t
count_descriptors (struct test *t)
{
  char path[64];
  DIR *dir;
  size_t n = 0;

  snprintf (path, sizeof path, "/proc/%ld/fd", t->target->pid);
  dir = opendir (path);
  if (dir == NULL)
    skip (t, "%s cannot be read", path);
  while (readdir (dir))
    n++;
  closedir (dir);
  return n;
}

/* In KiB; the label is that of /proc/PID/status. */
static long
memory_of (struct test *t, const char *label)
{
  char path[64], line[256];
  long kib = -1;
  FILE *f;

  snprintf (path, sizeof path, "/proc/%ld/status", t->target->pid);
  f = fopen (path, "r");
  if (f == NULL)
    skip (t, "%s cannot be read", path);
  while (fgets (line, sizeof line, f))
    if (strncmp (line, label, strlen (label)) == 0)
      kib = strtol (line + strlen (label), NULL, 10);
  fclose (f);
  CHECK (t, kib >= 0, "no %s in %s", label, path);
  return kib;
}

static void
open_and_break (struct test *t)
{
  for (int i = 0; i < 100; i++) {
    struct conn *c = i % 4 == 0   ? conn_open (t)
                     : i % 4 == 1 ? open_haggling (t)
                                  : open_transmission (t);

    if (i % 4 == 3)
      conn_send_bytes (c, put_header (bytes_new (t), c->mode, 0, NBD_CMD_READ, 1, 0, 1 * MiB));
    if (i % 2)
      conn_close (c);
    else
      conn_reset (c);
  }
}

static void
descriptors (struct test *t)
{
  const struct timespec pause = { .tv_nsec = 50000000 };
  size_t before, after;

  open_and_break (t); /* whatever is set up once is set up now */
  nanosleep (&pause, NULL);
  before = count_descriptors (t);
  open_and_break (t);
  for (int i = 0; i < 1200; i++) {
    nanosleep (&pause, NULL);
    after = count_descriptors (t);
    if (after <= before)
      return;
  }
  fail (t, "%zu descriptors before, %zu after", before, after);
}

/* Lengths of 4 GiB in every place that takes one, on many connections. Neither the peak nor what
 * stays may come near what was promised. */
static void
memory (struct test *t)
{
  enum { N = 16 };
  const long allowed = 512 * 1024;
  long before = memory_of (t, "VmRSS:"), peak;
  struct conn *c[N];

  for (int i = 0; i < N; i++) {
    struct bytes *b = bytes_new (t);

    if (i % 2) {
      c[i] = open_haggling (t);
      opt_header (b, i % 4 == 1 ? 0x4242 : NBD_OPT_SET_META_CONTEXT, UINT32_MAX);
    } else {
      c[i] = open_transmission (t);
      put_header (b, t->mode, t->mode == EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0, NBD_CMD_WRITE, 1,
                  SCRATCH, i % 4 ? UINT32_MAX - 65535 : 512 * MiB);
    }
    conn_send_some (c[i], put_fill (b, 0, 256 * KiB)->data, b->len, 100);
  }
  expect_alive (t);
  peak = memory_of (t, "VmRSS:");
  CHECK (t, peak - before < allowed, "the server grew by %ld KiB", peak - before);
}

/* The longest writes there are, of which the end never comes: what they hold of the server's memory
 * is not what they are long. */
static void
held_writes (struct test *t)
{
  enum { N = 24 };
  const size_t len = max_payload (t), sent = len - 64 * KiB;
  const long allowed = (long)(N * (len / 4) * 3 / KiB);
  const uint16_t flags = t->mode == EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;
  const struct bytes *payload = put_fill (bytes_new (t), 0x5a, sent);
  long before = memory_of (t, "VmRSS:"), peak;

  for (int i = 0; i < N; i++) {
    struct conn *c = open_transmission (t);

    conn_send_bytes (c, put_header (bytes_new (t), t->mode, flags, NBD_CMD_WRITE, 1, SCRATCH, len));
    conn_send_some (c, payload->data, payload->len, 100);
  }
  expect_alive (t);
  peak = memory_of (t, "VmRSS:");
  CHECK (t, peak - before < allowed, "the server grew by %ld KiB, more than %ld", peak - before,
         allowed);
}

/* Options of which the end never comes, unknown ones and such as have data. */
static void
held_options (struct test *t)
{
  enum { N = 24 };
  const uint32_t options[] = { 0x4242, NBD_OPT_GO, NBD_OPT_SET_META_CONTEXT };
  const size_t len = 16 * MiB, sent = 8 * MiB;
  const long allowed = (long)(N * (sent / 4) / KiB);
  const struct bytes *data = put_fill (bytes_new (t), 0x5a, sent);
  long before = memory_of (t, "VmRSS:"), peak;

  for (int i = 0; i < N; i++) {
    struct conn *c = open_haggling (t);

    conn_send_bytes (c, opt_header (bytes_new (t), options[i % 3], (uint32_t)len));
    conn_send_some (c, data->data, data->len, 1000);
  }
  expect_alive (t);
  peak = memory_of (t, "VmRSS:");
  CHECK (t, peak - before < allowed, "the server grew by %ld KiB, more than %ld", peak - before,
         allowed);
}

#define ALIVE "whatever a client does, the server stays, and serves the others"

const struct tcase hostile_cases[] = {
  { "hostile.come-and-go", ONCE, PLAIN, come_and_go, ALIVE },
  { "hostile.half-greeting", ONCE, PLAIN, half_greeting, ALIVE },
  { "hostile.half-option", ONCE, PLAIN, half_option, ALIVE },
  { "hostile.half-request", IN_ALL, PLAIN, half_request, ALIVE },
  { "hostile.noise-for-greeting", ONCE, PLAIN, noise_for_greeting, ALIVE },
  { "hostile.noise-for-options", ONCE, PLAIN, noise_for_options, ALIVE },
  { "hostile.noise-for-requests", IN_ALL, PLAIN, noise_for_requests, ALIVE },
  { "hostile.noise-behind-magic", IN_ALL, PLAIN, noise_behind_magic, ALIVE },
  { "hostile.silent-many", ONCE, PLAIN, silent_many, ALIVE },
  { "hostile.never-reads", IN_ALL, PLAIN, never_reads, ALIVE },
  { "hostile.never-reads-options", ONCE, PLAIN, never_reads_options, ALIVE },
  { "hostile.slow-reader", IN_ALL, PLAIN | PATTERN, slow_reader,
    "replies wait for the client, in order and whole" },
  { "hostile.descriptors", IN_ALL, PLAIN | PID, descriptors,
    "a connection that ends leaves no descriptor open" },
  { "hostile.memory", IN_ALL, PLAIN | PID | WRITABLE, memory,
    "a length is a promise, nothing to allocate by" },
  { "hostile.held-options", ONCE, PLAIN | PID, held_options,
    "many long options must not use up the server's memory" },
  { "hostile.held-writes", IN_SIMPLE | IN_EXTENDED, PLAIN | PID | WRITABLE, held_writes,
    "many long requests must not use up the server's memory" },
  { NULL, 0, 0, NULL, NULL },
};
