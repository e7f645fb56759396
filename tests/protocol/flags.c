/* SPDX-License-Identifier: BSD-3-Clause */

/* Command flags and commands that do not belong. After each the stream has to be in step: the
 * payload of a refused write is consumed, and nothing else is taken for one.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client.h"

struct command {
  uint16_t type;
  const char *name;
  unsigned needs;
  uint16_t flags; /* those that belong to it, FUA apart */
};

static const struct command commands[] = {
  { NBD_CMD_READ, "READ", 0, NBD_CMD_FLAG_DF },
  { NBD_CMD_WRITE, "WRITE", WRITABLE, NBD_CMD_FLAG_PAYLOAD_LEN },
  { NBD_CMD_FLUSH, "FLUSH", FLUSH, 0 },
  { NBD_CMD_TRIM, "TRIM", TRIM | WRITABLE, 0 },
  { NBD_CMD_CACHE, "CACHE", CACHE, 0 },
  { NBD_CMD_WRITE_ZEROES, "WRITE_ZEROES", ZEROES | WRITABLE,
    NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO },
  { NBD_CMD_BLOCK_STATUS, "BLOCK_STATUS", STATUS, NBD_CMD_FLAG_REQ_ONE },
};
#define N_COMMANDS (sizeof commands / sizeof commands[0])

/* With base:allocation, if there are chunks to tell it in. */
static struct conn *
open_any (struct test *t)
{
  if (t->mode != SIMPLE && (t->target->has & STATUS))
    return open_contexts (t, QUERIES ("base:allocation"));
  return open_transmission (t);
}

static bool
available (const struct test *t, const struct command *cmd)
{
  return !(cmd->needs & ~t->target->has) &&
         (cmd->type != NBD_CMD_BLOCK_STATUS || t->mode != SIMPLE);
}

static uint32_t
issue (struct conn *c, const struct command *cmd, uint16_t flags)
{
  const uint64_t at = cmd->type == NBD_CMD_FLUSH ? 0 : SCRATCH;
  const uint64_t len = cmd->type == NBD_CMD_FLUSH ? 0 : 64 * KiB;

  if (cmd->type == NBD_CMD_WRITE)
    return do_write (c, flags, at, test_alloc (c->t, len), len);
  return do_cmd (c, cmd->type, flags, at, len);
}

static void
expect_refused (struct conn *c, const struct command *cmd, uint16_t flags)
{
  char what[80];

  snprintf (what, sizeof what, "%s with flags %#x", cmd->name, flags);
  expect_error (c, issue (c, cmd, flags), what, ERRS (NBD_EINVAL));
}

static void
unknown_bits (struct test *t)
{
  struct conn *c = open_any (t);

  for (size_t i = 0; i < N_COMMANDS; i++) {
    if (!available (t, &commands[i]))
      continue;
    for (unsigned bit = NBD_CMD_FLAG_UNKNOWN; bit <= 0x8000; bit <<= 1)
      expect_refused (c, &commands[i], (uint16_t)bit);
    expect_error (c, issue (c, &commands[i], 0), commands[i].name, SUCCESS);
  }
  expect_in_sync (c);
}

static void
bits_of_others (struct test *t)
{
  struct conn *c = open_any (t);

  for (size_t i = 0; i < N_COMMANDS; i++) {
    if (!available (t, &commands[i]))
      continue;
    for (unsigned bit = NBD_CMD_FLAG_NO_HOLE; bit <= NBD_CMD_FLAG_FAST_ZERO; bit <<= 1)
      if (!(commands[i].flags & bit))
        expect_refused (c, &commands[i], (uint16_t)bit);
  }
  expect_in_sync (c);
}

static void
payload_len (struct test *t)
{
  struct conn *c = open_any (t);

  for (size_t i = 0; i < N_COMMANDS; i++)
    if (available (t, &commands[i]))
      expect_refused (c, &commands[i], NBD_CMD_FLAG_PAYLOAD_LEN);
  expect_in_sync (c);
}

static void
df_not_offered (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_refused (c, &commands[0], NBD_CMD_FLAG_DF);
  expect_in_sync (c);
}

static void
fua_everywhere (struct test *t)
{
  struct conn *c = open_any (t);

  for (size_t i = 0; i < N_COMMANDS; i++)
    if (available (t, &commands[i])) {
      char what[80];

      snprintf (what, sizeof what, "%s with FUA", commands[i].name);
      expect_error (c, issue (c, &commands[i], NBD_CMD_FLAG_FUA), what, SUCCESS);
    }
}

/* On a read-only export the refusal of flags and of writing may come in either order. */
static void
read_only_bits (struct test *t)
{
  struct conn *c = open_any (t);

  for (unsigned bit = NBD_CMD_FLAG_UNKNOWN; bit <= 0x8000; bit <<= 1)
    expect_error (c, issue (c, &commands[NBD_CMD_WRITE], (uint16_t)bit),
                  "WRITE with an unknown flag", ERRS (NBD_EINVAL, NBD_EPERM));
  expect_in_sync (c);
}

static void
unknown_commands (struct test *t)
{
  static const uint16_t types[] = { NBD_CMD_RESIZE, 9, 10, 255, 256, 0x7fff, 0x8000, 0xffff };
  static const uint64_t ranges[][2] = { { 0, 0 }, { 0, 512 }, { UINT64_MAX, UINT32_MAX } };
  struct conn *c = open_transmission (t);

  for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
    if (types[i] == NBD_CMD_RESIZE && has_flag (t, NBD_FLAG_SEND_RESIZE))
      continue;
    for (size_t j = 0; j < sizeof ranges / sizeof ranges[0]; j++) {
      char what[80];

      snprintf (what, sizeof what, "request type %u", types[i]);
      expect_error (c, do_cmd (c, types[i], 0, ranges[j][0], ranges[j][1]), what,
                    ERRS (NBD_EINVAL));
    }
  }
  expect_in_sync (c);
}

static void
unknown_command_and_flags (struct test *t)
{
  struct conn *c = open_transmission (t);

  expect_error (c, do_cmd (c, 0x1234, 0xffc0, 0, 4096), "request type 0x1234", ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

/* The commands that a flag has not offered: answered somehow, and no harm done. */
static void
not_offered (struct test *t)
{
  static const struct {
    uint16_t type, flag;
  } map[] = {
    { NBD_CMD_FLUSH, NBD_FLAG_SEND_FLUSH },
    { NBD_CMD_TRIM, NBD_FLAG_SEND_TRIM },
    { NBD_CMD_CACHE, NBD_FLAG_SEND_CACHE },
    { NBD_CMD_WRITE_ZEROES, NBD_FLAG_SEND_WRITE_ZEROES },
  };
  struct conn *c = open_transmission (t);
  size_t tried = 0;

  for (size_t i = 0; i < sizeof map / sizeof map[0]; i++)
    if (!has_flag (t, map[i].flag)) {
      do_cmd (c, map[i].type, 0, 0, map[i].type == NBD_CMD_FLUSH ? 0 : 4096);
      tried++;
    }
  if (tried == 0)
    skip (t, "all commands are offered");
  expect_in_sync (c);
}

static void
errors_have_text (struct test *t)
{
  struct conn *c = open_transmission (t);
  const struct request wrong[] = {
    { .type = NBD_CMD_READ, .offset = t->target->size, .length = 512 },
    { .type = NBD_CMD_READ, .flags = 0x8000, .length = 512 },
    { .type = NBD_CMD_TRIM, .offset = t->target->size, .length = 512 },
    { .type = NBD_CMD_BLOCK_STATUS, .length = 512 },
    { .type = 0x4242 },
  };

  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    const struct reply *r = ask (c, wrong[i]);

    CHECK (t, r->error, "request %zu succeeded", i);
    CHECK (t, r->message[0], "the error of request type %u came without text", wrong[i].type);
  }
}

#define FLAG "a flag that is unknown or of another command SHOULD fail with EINVAL"

const struct tcase flag_cases[] = {
  { "flags.unknown", IN_ALL, PLAIN, unknown_bits, FLAG },
  { "flags.of-other-commands", IN_ALL, PLAIN, bits_of_others, FLAG },
  { "flags.payload-len", IN_SIMPLE | IN_STRUCTURED, PLAIN, payload_len,
    "PAYLOAD_LEN is only valid with extended headers" },
  { "flags.df-not-offered", IN_SIMPLE, PLAIN, df_not_offered,
    "DF without SEND_DF SHOULD fail with EINVAL" },
  { "flags.fua-everywhere", IN_ALL, PLAIN | FUA, fua_everywhere,
    "with SEND_FUA all commands MUST be accepted with FUA" },
  { "flags.unknown-read-only", IN_ALL, PLAIN | READ_ONLY, read_only_bits, FLAG },
  { "command.unknown", IN_ALL, PLAIN, unknown_commands,
    "an unknown command SHOULD fail with EINVAL, and has no payload" },
  { "command.unknown-with-flags", IN_ALL, PLAIN, unknown_command_and_flags,
    "an unknown command SHOULD fail with EINVAL, and has no payload" },
  { "command.not-offered", IN_ALL, PLAIN, not_offered, "a reply, and the session goes on" },
  { "command.errors-have-text", IN_CHUNKS, PLAIN | ERROR_TEXT, errors_have_text,
    "an error chunk may carry a text; this server promises one" },
  { NULL, 0, 0, NULL, NULL },
};
