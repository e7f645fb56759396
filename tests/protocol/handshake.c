/* SPDX-License-Identifier: BSD-3-Clause */

/* The greeting, the client's flags, EXPORT_NAME and ABORT. */

#include <inttypes.h>
#include <string.h>

#include "client.h"

static void
greeting (struct test *t)
{
  struct conn *c = conn_open (t);

  greet (c, NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
  CHECK (t, c->handshake_flags == (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
         "handshake flags are %#x", c->handshake_flags);
  expect_haggling (c);
}

/* The server says nothing more until it has the client's flags. */
static void
greeting_is_all (struct test *t)
{
  struct conn *c = conn_open (t);
  uint8_t b[18];

  conn_recv (c, b, sizeof b, "the greeting");
  conn_half_close (c);
  expect_eof (c, "when the client says nothing");
}

static void
client_flags_unknown (struct test *t)
{
  const uint32_t unknown[] = { 1u << 2, 1u << 15, 1u << 16, 1u << 31, UINT32_MAX };

  for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
    struct conn *c = conn_open (t);

    greet (c, NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES | unknown[i]);
    opt_send (c, NBD_OPT_LIST, NULL);
    expect_eof (c, "on an unknown client flag");
  }
}

static void
client_flags_slowly (struct test *t)
{
  struct conn *c = conn_open (t);
  struct bytes *b = put_u32 (bytes_new (t), NBD_FLAG_C_FIXED_NEWSTYLE);
  uint8_t greeting_bytes[18];

  conn_recv (c, greeting_bytes, sizeof greeting_bytes, "the greeting");
  opt_header (b, NBD_OPT_STRUCTURED_REPLY, 0);
  conn_send_slowly (c, b);
  expect_answer (c, opt_answer (c, NBD_OPT_STRUCTURED_REPLY), "a split option",
                 REPS (NBD_REP_ACK, NBD_REP_ERR_UNSUP));
  expect_haggling (c);
}

/* A client that is not fixed newstyle may be served options or dropped, but gets an end. */
static void
not_fixed_option (struct test *t)
{
  struct conn *c = conn_open (t);

  greet (c, 0);
  opt_try (c, NBD_OPT_LIST, NULL);
}

/* EXPORT_NAME, and then a command in the mode negotiated before. */
static void
enter_by_name (struct test *t, uint32_t client_flags, enum mode mode)
{
  struct conn *c = conn_open (t);
  uint8_t b[134];
  size_t len = client_flags & NBD_FLAG_C_NO_ZEROES ? 10 : 134;

  greet (c, client_flags);
  negotiate_mode (c, mode);
  opt_send (c, NBD_OPT_EXPORT_NAME, put_string (bytes_new (t), t->target->export));
  conn_recv (c, b, len, "the export's size and flags");
  c->size = get_u64 (b);
  c->flags = get_u16 (b + 8);
  CHECK (t, c->size == t->target->size, "the size is %" PRIu64 ", not %" PRIu64, c->size,
         t->target->size);
  CHECK (t, c->flags == t->target->flags[mode], "the flags are %#x, GO says %#x", c->flags,
         t->target->flags[mode]);
  CHECK (t, all_zero (b + 10, len - 10), "the padding is not zero");
  expect_in_sync (c);
}

static void
export_name (struct test *t)
{
  enter_by_name (t, NBD_FLAG_C_FIXED_NEWSTYLE, SIMPLE);
}

static void
export_name_no_zeroes (struct test *t)
{
  enter_by_name (t, NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES, SIMPLE);
}

static void
export_name_not_fixed (struct test *t)
{
  enter_by_name (t, 0, SIMPLE);
}

static void
export_name_not_fixed_no_zeroes (struct test *t)
{
  enter_by_name (t, NBD_FLAG_C_NO_ZEROES, SIMPLE);
}

static void
export_name_structured (struct test *t)
{
  enter_by_name (t, NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES, STRUCTURED);
}

static void
drop_by_name (struct test *t, const struct bytes *name)
{
  struct conn *c = open_haggling (t);

  opt_send (c, NBD_OPT_EXPORT_NAME, name);
  expect_eof (c, "on an export name it does not have");
  expect_alive (t);
}

static void
export_name_unknown (struct test *t)
{
  drop_by_name (t, put_string (bytes_new (t), "no such export"));
}

static void
export_name_longest (struct test *t)
{
  drop_by_name (t, put_fill (bytes_new (t), 'x', NBD_MAX_STRING));
}

static void
export_name_too_long (struct test *t)
{
  drop_by_name (t, put_fill (bytes_new (t), 'x', NBD_MAX_STRING + 1));
}

static void
export_name_far_too_long (struct test *t)
{
  drop_by_name (t, put_fill (bytes_new (t), 'x', 1 * MiB));
}

static void
export_name_endless (struct test *t)
{
  struct conn *c = open_haggling (t);

  conn_send_bytes (c, opt_header (bytes_new (t), NBD_OPT_EXPORT_NAME, UINT32_MAX));
  expect_eof (c, "on an export name of 4 GiB");
  expect_alive (t);
}

static void
export_name_with_nul (struct test *t)
{
  struct bytes *b = put_string (bytes_new (t), t->target->export);

  drop_by_name (t, put (b, "\0more", 5));
}

static void
abort_acknowledged (struct test *t)
{
  struct conn *c = open_haggling (t);

  expect_answer (c, opt_ask (c, NBD_OPT_ABORT, NULL), "ABORT", REP_ACK);
  expect_eof (c, "after ABORT");
}

static void
abort_with_data (struct test *t)
{
  struct conn *c = open_haggling (t);
  const struct bytes *data = put_fill (bytes_new (t), 'x', 100);

  expect_answer (c, opt_ask (c, NBD_OPT_ABORT, data), "ABORT with data", REP_ACK);
  expect_eof (c, "after ABORT");
}

static void
abort_without_waiting (struct test *t)
{
  for (int i = 0; i < 20; i++) {
    struct conn *c = open_haggling (t);

    opt_send (c, NBD_OPT_ABORT, NULL);
    conn_close (c);
  }
  expect_alive (t);
}

/* Nothing that follows ABORT is answered. */
static void
abort_is_final (struct test *t)
{
  struct conn *c = open_haggling (t);
  struct bytes *b = opt_header (bytes_new (t), NBD_OPT_ABORT, 0);

  conn_send_bytes (c, opt_header (b, NBD_OPT_LIST, 0));
  expect_answer (c, opt_answer (c, NBD_OPT_ABORT), "ABORT", REP_ACK);
  expect_eof (c, "after ABORT");
}

static void
option_magic (struct test *t)
{
  const uint64_t wrong[] = { 0, NBD_MAGIC_OPTION + 1, NBD_MAGIC_REPLY, UINT64_MAX };

  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    struct conn *c = open_haggling (t);

    conn_send_bytes (c, put_u32 (put_u32 (put_u64 (bytes_new (t), wrong[i]), NBD_OPT_LIST), 0));
    expect_eof (c, "on a wrong option magic");
  }
  expect_alive (t);
}

/* An option's last data byte and the next option may come in one packet, or in two. */
static void
options_back_to_back (struct test *t)
{
  struct conn *c = open_haggling (t);
  struct bytes *b = bytes_new (t);

  put_fill (opt_header (b, 0x1234, 5), 'x', 5);
  opt_header (b, NBD_OPT_LIST, 0);
  put_fill (opt_header (b, 0x1235, 1), 'x', 1);
  conn_send_bytes (c, b);
  expect_answer (c, opt_answer (c, 0x1234), "an unknown option", REPS (NBD_REP_ERR_UNSUP));
  expect_answer (c, opt_answer (c, NBD_OPT_LIST), "LIST", REP_ACK);
  expect_answer (c, opt_answer (c, 0x1235), "an unknown option", REPS (NBD_REP_ERR_UNSUP));
  expect_haggling (c);
}

#define DROP "an export that is not there cannot be refused, so the session MUST end"

const struct tcase handshake_cases[] = {
  { "handshake.greeting", ONCE, PLAIN, greeting,
    "NBDMAGIC, IHAVEOPT, and only FIXED_NEWSTYLE and NO_ZEROES as flags" },
  { "handshake.greeting-is-all", ONCE, 0, greeting_is_all,
    "after the greeting it is the client's turn" },
  { "handshake.unknown-client-flags", ONCE, 0, client_flags_unknown,
    "the server MUST drop a client that sets a flag it does not know" },
  { "handshake.split-in-bytes", ONCE, PLAIN, client_flags_slowly,
    "how the bytes are divided into packets means nothing" },
  { "handshake.not-fixed-option", ONCE, 0, not_fixed_option,
    "the server may honour options of such a client, or drop it" },
  { "export-name.zeroes", ONCE, PLAIN, export_name,
    "124 zero bytes follow unless NO_ZEROES was negotiated" },
  { "export-name.no-zeroes", ONCE, PLAIN, export_name_no_zeroes,
    "with NO_ZEROES the 124 bytes MUST NOT be sent" },
  { "export-name.not-fixed", ONCE, PLAIN, export_name_not_fixed,
    "EXPORT_NAME is the one option of non-fixed newstyle" },
  { "export-name.not-fixed-no-zeroes", ONCE, PLAIN, export_name_not_fixed_no_zeroes,
    "NO_ZEROES is independent of FIXED_NEWSTYLE" },
  { "export-name.structured", ONCE, PLAIN | CHUNKS, export_name_structured,
    "what was negotiated holds after EXPORT_NAME, too" },
  { "export-name.unknown", ONCE, PLAIN, export_name_unknown, DROP },
  { "export-name.longest", ONCE, PLAIN, export_name_longest, DROP },
  { "export-name.too-long", ONCE, PLAIN, export_name_too_long, DROP },
  { "export-name.far-too-long", ONCE, PLAIN, export_name_far_too_long, DROP },
  { "export-name.endless", ONCE, PLAIN, export_name_endless, DROP },
  { "export-name.with-nul", ONCE, PLAIN, export_name_with_nul,
    "a name holds no NUL: there is no such export" },
  { "abort.acknowledged", ONCE, 0, abort_acknowledged, "the server MUST reply with ACK" },
  { "abort.with-data", ONCE, 0, abort_with_data, "data with ABORT SHOULD be ignored" },
  { "abort.without-waiting", ONCE, PLAIN, abort_without_waiting,
    "a client may close without waiting for the reply" },
  { "abort.is-final", ONCE, 0, abort_is_final, "ABORT ends the session" },
  { "option.wrong-magic", ONCE, PLAIN, option_magic,
    "without the magic the stream cannot be followed: the session ends" },
  { "option.back-to-back", ONCE, PLAIN, options_back_to_back,
    "an option's length says where the next one starts" },
  { NULL, 0, 0, NULL, NULL },
};
