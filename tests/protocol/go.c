/* SPDX-License-Identifier: BSD-3-Clause */

/* INFO and GO. Each case is tried with INFO, and with GO where that matters. */

#include <inttypes.h>
#include <string.h>

#include "client.h"

static struct bytes *
data_for (struct test *t, const char *export)
{
  const uint16_t infos[] = { NBD_INFO_BLOCK_SIZE };

  return go_data (t, export, 1, infos);
}

static void
expect_export (struct conn *c, const struct answer *a, const char *what)
{
  const struct export_info *e = info_parse (c, a);

  expect_answer (c, a, what, REP_ACK);
  CHECK (c->t, e->size == c->t->target->size, "%s: the size is %" PRIu64 ", not %" PRIu64, what,
         e->size, c->t->target->size);
}

/* As expect_export; but a server with unusual constraints may insist on being asked for them. If
 * it does, it tells them first. */
static void
expect_export_unless_blocks (struct conn *c, const struct answer *a, const char *what)
{
  if (unit (c->t) > 1 && a->final == NBD_REP_ERR_BLOCK_SIZE_REQD)
    CHECK (c->t, info_parse (c, a)->has_block_size,
           "BLOCK_SIZE_REQD without telling the block sizes");
  else
    expect_export (c, a, what);
}

static void
info_nothing (struct test *t)
{
  struct conn *c = open_haggling (t);

  expect_export_unless_blocks (c,
                               opt_ask (c, NBD_OPT_INFO, go_data (t, t->target->export, 0, NULL)),
                               "INFO without requests");
  expect_haggling (c);
}

static void
info_each (struct test *t)
{
  struct conn *c = open_haggling (t);

  for (unsigned n = NBD_INFO_EXPORT; n <= NBD_INFO_BLOCK_SIZE; n++) {
    uint16_t i = (uint16_t)n;
    const struct answer *a = opt_ask (c, NBD_OPT_INFO, go_data (t, t->target->export, 1, &i));
    const struct export_info *e = info_parse (c, a);

    if (i == NBD_INFO_BLOCK_SIZE)
      expect_export (c, a, "INFO");
    else
      expect_export_unless_blocks (c, a, "INFO");
    CHECK (t, i != NBD_INFO_NAME || e->name == NULL || strcmp (e->name, t->target->export) == 0,
           "the canonical name is \"%s\"", e->name);
    CHECK (t, i != NBD_INFO_BLOCK_SIZE || e->has_block_size, "no block sizes were told");
  }
}

static void
info_all (struct test *t)
{
  const uint16_t all[] = { NBD_INFO_BLOCK_SIZE, NBD_INFO_DESCRIPTION, NBD_INFO_NAME,
                           NBD_INFO_EXPORT };
  struct conn *c = open_haggling (t);

  expect_export (c, opt_ask (c, NBD_OPT_INFO, go_data (t, t->target->export, 4, all)), "INFO");
}

static void
info_description (struct test *t)
{
  const uint16_t info = NBD_INFO_DESCRIPTION;
  struct conn *c = open_haggling (t);
  const struct export_info *e =
      info_parse (c, opt_ask (c, NBD_OPT_INFO, go_data (t, t->target->export, 1, &info)));

  CHECK (t, e->description && strcmp (e->description, t->target->description) == 0,
         "the description is \"%s\"", e->description ? e->description : "missing");
}

static void
info_unknown_requests (struct test *t)
{
  const uint16_t odd[] = { 4, 5, 0x7fff, 0x8000, 0xffff, NBD_INFO_BLOCK_SIZE };
  struct conn *c = open_haggling (t);

  expect_export (c, opt_ask (c, NBD_OPT_INFO, go_data (t, t->target->export, 6, odd)),
                 "INFO with unknown requests");
  expect_export (c, opt_ask (c, NBD_OPT_GO, go_data (t, t->target->export, 6, odd)),
                 "GO with unknown requests");
  expect_in_sync (c);
}

static void
info_duplicates (struct test *t)
{
  const uint16_t twice[] = { NBD_INFO_BLOCK_SIZE, NBD_INFO_NAME, NBD_INFO_BLOCK_SIZE,
                             NBD_INFO_NAME };
  struct conn *c = open_haggling (t);
  const struct answer *a = opt_ask (c, NBD_OPT_INFO, go_data (t, t->target->export, 4, twice));

  info_parse (c, a); /* which minds an information told twice */
  expect_answer (c, a, "INFO with duplicates", REPS (NBD_REP_ACK, NBD_REP_ERR_INVALID));
  expect_haggling (c);
}

/* As many different requests as the field can count, bar one: 131 KB of data. */
static void
info_very_many (struct test *t)
{
  struct conn *c = open_haggling (t);
  uint16_t *list = test_alloc (t, 65535 * sizeof *list);
  const struct answer *a;

  for (uint32_t i = 0; i < 65535; i++)
    list[i] = (uint16_t)i;
  a = opt_try (c, NBD_OPT_INFO, go_data (t, t->target->export, 65535, list));
  if (!a->hung_up) {
    expect_answer (c, a, "INFO with 65535 requests",
                   REPS (NBD_REP_ACK, NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_INVALID));
    expect_haggling (c);
  }
  expect_alive (t);
}

static bool
same_info (const struct answer *a, const struct answer *b)
{
  if (a->n != b->n)
    return false;
  for (size_t i = 0; i < a->n; i++) {
    bool found = false;

    for (size_t j = 0; j < b->n; j++)
      found |= a->replies[i].len == b->replies[j].len &&
               memcmp (a->replies[i].data, b->replies[j].data, a->replies[i].len) == 0;
    if (!found)
      return false;
  }
  return true;
}

static void
go_as_info (struct test *t)
{
  const uint16_t all[] = { NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE };
  struct conn *c = open_haggling (t);
  const struct answer *info, *went;

  if (t->mode != SIMPLE) {
    negotiate_mode (c, t->mode);
    if (t->target->has & STATUS)
      set_contexts (c, QUERIES ("base:allocation"));
  }
  info = opt_ask (c, NBD_OPT_INFO, go_data (t, t->target->export, 3, all));
  went = opt_ask (c, NBD_OPT_GO, go_data (t, t->target->export, 3, all));
  expect_export (c, info, "INFO");
  expect_export (c, went, "GO");
  CHECK (t, same_info (info, went), "GO told other information than INFO before it");
  expect_in_sync (c);
}

/* GO has no padding, whatever was negotiated. */
static void
go_without_no_zeroes (struct test *t)
{
  struct conn *c = conn_open (t);

  greet (c, NBD_FLAG_C_FIXED_NEWSTYLE);
  go (c);
  expect_in_sync (c);
}

static void
go_slowly (struct test *t)
{
  struct conn *c = open_haggling (t);
  const struct bytes *data = data_for (t, t->target->export);
  struct bytes *b = opt_header (bytes_new (t), NBD_OPT_GO, (uint32_t)data->len);

  conn_send_slowly (c, put (b, data->data, data->len));
  expect_export (c, opt_answer (c, NBD_OPT_GO), "a split GO");
  expect_in_sync (c);
}

/* After GO nothing is an option any more. */
static void
go_twice (struct test *t)
{
  struct conn *c = open_haggling (t);

  go (c);
  opt_send (c, NBD_OPT_INFO, put_fill (bytes_new (t), 0, 64)); /* longer than any request header */
  expect_eof (c, "on an option in transmission");
}

/* Both options, each followed by what shows that haggling goes on. */
static void
expect_refusal (struct test *t, const struct bytes *data, const char *what, const uint32_t *wanted)
{
  struct conn *c = open_haggling (t);
  const uint32_t options[] = { NBD_OPT_INFO, NBD_OPT_GO };

  for (size_t i = 0; i < 2; i++) {
    const struct answer *a = opt_ask (c, options[i], data);

    expect_answer (c, a, what, wanted);
    CHECK (t, a->n == 0 || a->final != NBD_REP_ERR_UNKNOWN,
           "information was told on an export that is not there");
    expect_haggling (c);
  }
  go (c);
  expect_in_sync (c);
}

static void
go_unknown (struct test *t)
{
  expect_refusal (t, data_for (t, "no such export"), "an unknown export",
                  REPS (NBD_REP_ERR_UNKNOWN));
}

static void
go_name_longest (struct test *t)
{
  char *name = test_alloc (t, NBD_MAX_STRING + 1);

  memset (name, 'x', NBD_MAX_STRING);
  expect_refusal (t, data_for (t, name), "a name of 4096 bytes",
                  REPS (NBD_REP_ERR_UNKNOWN, NBD_REP_ERR_TOO_BIG));
}

static void
go_name_too_long (struct test *t)
{
  char *name = test_alloc (t, NBD_MAX_STRING + 2);

  memset (name, 'x', NBD_MAX_STRING + 1);
  expect_refusal (t, data_for (t, name), "a name of 4097 bytes",
                  REPS (NBD_REP_ERR_INVALID, NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_UNKNOWN));
}

static void
go_name_with_nul (struct test *t)
{
  struct bytes *b = put_u32 (bytes_new (t), (uint32_t)strlen (t->target->export) + 5);

  put (put_string (b, t->target->export), "\0more", 5);
  expect_refusal (t, put_u16 (b, 0), "a name with a NUL",
                  REPS (NBD_REP_ERR_INVALID, NBD_REP_ERR_UNKNOWN));
}

static void
go_name_not_utf8 (struct test *t)
{
  static const char *const names[] = { "\x80", "a\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xff\xfe" };

  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    expect_refusal (t, data_for (t, names[i]), "a name that is not UTF-8",
                    REPS (NBD_REP_ERR_INVALID, NBD_REP_ERR_UNKNOWN));
}

/* Every prefix of a right request is a wrong one. */
static void
go_truncated (struct test *t)
{
  const uint16_t infos[] = { NBD_INFO_NAME, NBD_INFO_BLOCK_SIZE };
  const struct bytes *whole = go_data (t, "abc", 2, infos);

  for (size_t len = 0; len < whole->len; len++) {
    const struct bytes *part = put (bytes_new (t), whole->data, len);
    struct conn *c = open_haggling (t);

    expect_answer (c, opt_ask (c, NBD_OPT_INFO, part), "INFO cut short",
                   REPS (NBD_REP_ERR_INVALID));
    expect_answer (c, opt_ask (c, NBD_OPT_GO, part), "GO cut short", REPS (NBD_REP_ERR_INVALID));
    go (c);
    expect_in_sync (c);
    conn_close (c);
  }
}

static void
go_name_past_end (struct test *t)
{
  const uint32_t lengths[] = { 9, 100, 0x7fffffff, 0xfffffff8, 0xfffffffa, UINT32_MAX };

  for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
    struct bytes *b = put_string (put_u32 (bytes_new (t), lengths[i]), "12345678");

    expect_refusal (t, b, "a name that goes past the data", REPS (NBD_REP_ERR_INVALID));
  }
}

static void
go_trailing (struct test *t)
{
  struct bytes *b = data_for (t, t->target->export);

  expect_refusal (t, put_fill (b, 0, 2), "more data than requests", REPS (NBD_REP_ERR_INVALID));
  b = data_for (t, t->target->export);
  expect_refusal (t, put_fill (b, 0, 1), "half a request", REPS (NBD_REP_ERR_INVALID));
}

static void
go_count_past_end (struct test *t)
{
  struct bytes *b =
      put_string (put_u32 (bytes_new (t), (uint32_t)strlen (t->target->export)), t->target->export);

  expect_refusal (t, put_u16 (put_u16 (b, 0xffff), NBD_INFO_BLOCK_SIZE),
                  "fewer requests than counted", REPS (NBD_REP_ERR_INVALID));
}

static void
go_without_sizes (struct test *t)
{
  struct conn *c = open_haggling (t);
  const struct answer *a = opt_ask (c, NBD_OPT_GO, go_data (t, t->target->export, 0, NULL));

  expect_export_unless_blocks (c, a, "GO without asking for block sizes");
  if (a->final != NBD_REP_ACK)
    go (c); /* which asks for them */
  expect_in_sync (c);
}

static void
go_other_export (struct test *t)
{
  struct conn *c = open_haggling (t);
  const struct answer *a = opt_ask (c, NBD_OPT_INFO, data_for (t, t->target->other));

  info_parse (c, a);
  expect_answer (c, a, "INFO on the second export", REP_ACK);
  go (c);
  expect_in_sync (c);
}

#define SYNTAX "a request that does not fit its length fails with INVALID; the session goes on"

const struct tcase go_cases[] = {
  { "info.no-requests", ONCE, PLAIN, info_nothing, "at least NBD_INFO_EXPORT MUST be told" },
  { "info.each-request", ONCE, PLAIN, info_each, "each information has its own form" },
  { "info.all-requests", ONCE, PLAIN, info_all, "each information SHOULD come only once" },
  { "info.description", ONCE, PLAIN | DESCRIPTION, info_description,
    "the description is told to who asks" },
  { "info.unknown-requests", ONCE, PLAIN, info_unknown_requests,
    "information requests not understood MUST be ignored" },
  { "info.duplicate-requests", ONCE, PLAIN, info_duplicates,
    "a client MUST NOT ask twice; the answer is right or INVALID" },
  { "info.very-many-requests", ONCE, PLAIN, info_very_many, "ignored, or refused as too big" },
  { "go.as-info", IN_ALL, PLAIN, go_as_info,
    "GO after INFO with the same parameters MUST tell the same" },
  { "go.no-padding", ONCE, PLAIN, go_without_no_zeroes,
    "no zeroes follow the ACK, whether or not NO_ZEROES was negotiated" },
  { "go.split-in-bytes", ONCE, PLAIN, go_slowly,
    "how the bytes are divided into packets means nothing" },
  { "go.twice", ONCE, PLAIN, go_twice, "an option is no request: its magic is wrong" },
  { "go.unknown-export", ONCE, PLAIN, go_unknown, "ERR_UNKNOWN and no information" },
  { "go.name-longest", ONCE, PLAIN, go_name_longest, "a name may have 4096 bytes" },
  { "go.name-too-long", ONCE, PLAIN, go_name_too_long, "a name has at most 4096 bytes" },
  { "go.name-with-nul", ONCE, PLAIN, go_name_with_nul, "a name holds no NUL" },
  { "go.name-not-utf8", ONCE, PLAIN, go_name_not_utf8, "a name is UTF-8" },
  { "go.cut-short", ONCE, PLAIN, go_truncated, SYNTAX },
  { "go.name-past-end", ONCE, PLAIN, go_name_past_end, SYNTAX },
  { "go.trailing-data", ONCE, PLAIN, go_trailing, SYNTAX },
  { "go.count-past-end", ONCE, PLAIN, go_count_past_end, SYNTAX },
  { "go.without-block-sizes", ONCE, PLAIN, go_without_sizes,
    "BLOCK_SIZE_REQD only for unusual constraints, and after telling them" },
  { "info.other-export", ONCE, PLAIN | TWO_EXPORTS, go_other_export,
    "INFO on one export binds nobody to it" },
  { NULL, 0, 0, NULL, NULL },
};
