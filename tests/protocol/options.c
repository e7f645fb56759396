/* SPDX-License-Identifier: BSD-3-Clause */

/* Options that take no data, and options nobody knows. */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client.h"

static const struct bytes *
junk (struct test *t, size_t len)
{
  return put_fill (bytes_new (t), 'j', len);
}

/* LIST */

struct listed {
  const char *name, *description;
};

static size_t
parse_list (struct conn *c, const struct answer *a, struct listed **list)
{
  struct listed *l = test_alloc (c->t, (a->n + 1) * sizeof *l);

  for (size_t i = 0; i < a->n; i++) {
    const uint8_t *p = a->replies[i].data;
    uint32_t len = a->replies[i].len, name;
    char *copy;

    CHECK (c->t, len >= 4, "NBD_REP_SERVER of %" PRIu32 " bytes", len);
    name = get_u32 (p);
    CHECK (c->t, name <= len - 4, "a name of %" PRIu32 " bytes in a reply of %" PRIu32, name, len);
    CHECK (c->t, is_nbd_string (p + 4, name), "a listed name is no valid string");
    CHECK (c->t, is_nbd_string (p + 4 + name, len - 4 - name),
           "a listed description is no valid string");
    copy = test_alloc (c->t, name + 1);
    memcpy (copy, p + 4, name);
    l[i].name = copy;
    l[i].description = (const char *)p + 4 + name;
    for (size_t j = 0; j < i; j++)
      CHECK (c->t, strcmp (l[j].name, copy) != 0, "export \"%s\" is listed twice", copy);
  }
  *list = l;
  return a->n;
}

static void
list_exports (struct test *t)
{
  struct conn *c = open_haggling (t);
  const struct answer *a = opt_ask (c, NBD_OPT_LIST, NULL);
  struct listed *list;
  size_t n = parse_list (c, a, &list), found = 0;

  expect_answer (c, a, "LIST", REP_ACK);
  for (size_t i = 0; i < n; i++) {
    found += strcmp (list[i].name, t->target->export) == 0;
    found += t->target->other && strcmp (list[i].name, t->target->other) == 0;
  }
  CHECK (t, found == (t->target->other ? 2 : 1), "%zu of the exports are in the list", found);
  expect_haggling (c);
}

static void
list_description (struct test *t)
{
  struct conn *c = open_haggling (t);
  struct listed *list;
  size_t n = parse_list (c, opt_ask (c, NBD_OPT_LIST, NULL), &list);

  for (size_t i = 0; i < n; i++)
    if (strcmp (list[i].name, t->target->export) == 0)
      CHECK (t, strcmp (list[i].description, t->target->description) == 0,
             "the description is \"%s\", not \"%s\"", list[i].description, t->target->description);
}

static void
list_with_data (struct test *t)
{
  struct conn *c = open_haggling (t);
  const size_t sizes[] = { 1, 4096, 65536 };

  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    const struct answer *a = opt_ask (c, NBD_OPT_LIST, junk (t, sizes[i]));

    expect_answer (c, a, "LIST with data", REPS (NBD_REP_ERR_INVALID));
    CHECK (t, a->n == 0, "exports were listed before the error");
  }
  expect_haggling (c);
}

static void
list_twice (struct test *t)
{
  struct conn *c = open_haggling (t);
  struct listed *list;
  size_t n = parse_list (c, opt_ask (c, NBD_OPT_LIST, NULL), &list);

  CHECK (t, parse_list (c, opt_ask (c, NBD_OPT_LIST, NULL), &list) == n,
         "the second list is not as long as the first");
}

/* Unknown options */

static const uint32_t unknown_options[] = {
  0, NBD_OPT_PEEK_EXPORT, 12, 255, 0x7fffffff, 0x80000000, UINT32_MAX,
};

static void
unknown_with_data_of (struct test *t, size_t len)
{
  struct conn *c = open_haggling (t);

  for (size_t i = 0; i < sizeof unknown_options / sizeof unknown_options[0]; i++)
    expect_answer (c, opt_ask (c, unknown_options[i], junk (t, len)), "an unknown option",
                   REPS (NBD_REP_ERR_UNSUP));
  expect_haggling (c);
}

static void
unknown (struct test *t)
{
  unknown_with_data_of (t, 0);
}

static void
unknown_with_data (struct test *t)
{
  const size_t sizes[] = { 1, 511, 4096, 4097 };

  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    unknown_with_data_of (t, sizes[i]);
}

/* A server may take this for an attack; if it does not, it has to find the next option. */
static void
big_data (struct test *t, uint32_t option, size_t len)
{
  struct conn *c = open_haggling (t);
  const struct answer *a = opt_try (c, option, junk (t, len));

  if (!a->hung_up) {
    expect_answer (c, a, "an option with much data",
                   REPS (NBD_REP_ERR_UNSUP, NBD_REP_ERR_INVALID, NBD_REP_ERR_TOO_BIG));
    expect_haggling (c);
  }
  expect_alive (t);
}

static void
unknown_big (struct test *t)
{
  big_data (t, 0x4242, 65536);
  big_data (t, 0x4242, 1 * MiB);
  big_data (t, 0x4242, 16 * MiB);
}

static void
known_big (struct test *t)
{
  for (uint32_t option = NBD_OPT_LIST; option <= NBD_OPT_EXTENDED_HEADERS; option++)
    big_data (t, option, 1 * MiB);
}

/* The length promises 4 GiB and nothing comes: no memory may be set aside for it, and when the
 * client leaves, so does the server. */
static void
endless (struct test *t)
{
  for (uint32_t option = 0; option <= NBD_OPT_EXTENDED_HEADERS; option++) {
    struct conn *c = open_haggling (t);

    conn_send_bytes (c, opt_header (bytes_new (t), option, UINT32_MAX));
    conn_send_bytes (c, junk (t, 1000));
    conn_half_close (c);
    while (!conn_at_eof (c))
      c->head = c->tail; /* an early error is as good as none */
  }
  expect_alive (t);
}

/* The client stays: who waits for the rest has it read by the server for ever. */
static void
beyond_any (struct test *t)
{
  const uint32_t lengths[] = { 64 * MiB + 1, UINT32_MAX };
  const uint32_t options[] = { NBD_OPT_LIST, NBD_OPT_GO, NBD_OPT_SET_META_CONTEXT, 0x4242 };

  for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
    for (size_t j = 0; j < sizeof options / sizeof options[0]; j++) {
      struct conn *c = open_haggling (t);

      conn_send_bytes (c, opt_header (bytes_new (t), options[j], lengths[i]));
      while (!conn_at_eof (c))
        c->head = c->tail; /* an error may come before the end */
    }
  expect_alive (t);
}

static void
data_slowly (struct test *t)
{
  struct conn *c = open_haggling (t);
  struct bytes *b = put_fill (opt_header (bytes_new (t), 0x4242, 40), 'j', 40);

  conn_send_slowly (c, b);
  expect_answer (c, opt_answer (c, 0x4242), "a split option", REPS (NBD_REP_ERR_UNSUP));
  expect_haggling (c);
}

static void
many_options (struct test *t)
{
  struct conn *c = open_haggling (t);

  for (int i = 0; i < 1000; i++)
    expect_answer (c, opt_ask (c, NBD_OPT_LIST, NULL), "LIST", REP_ACK);
  expect_haggling (c);
}

static void
errors_have_text (struct test *t)
{
  struct conn *c = open_haggling (t);
  const uint32_t options[] = { 0x4242,
                               NBD_OPT_LIST,
                               NBD_OPT_INFO,
                               NBD_OPT_STARTTLS,
                               NBD_OPT_STRUCTURED_REPLY,
                               NBD_OPT_EXTENDED_HEADERS,
                               NBD_OPT_LIST_META_CONTEXT,
                               NBD_OPT_SET_META_CONTEXT };

  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
    const struct answer *a = opt_ask (c, options[i], junk (t, 3));

    CHECK (t, a->final & NBD_REP_ERR, "option %" PRIu32 " with junk succeeded", options[i]);
    CHECK (t, a->text[0], "%s for option %" PRIu32 " came without text", rep_name (a->final),
           options[i]);
  }
}

/* STARTTLS without TLS */

static void
starttls_refused (struct test *t)
{
  struct conn *c = open_haggling (t);

  for (int i = 0; i < 2; i++)
    expect_answer (c, opt_ask (c, NBD_OPT_STARTTLS, NULL), "STARTTLS",
                   REPS (NBD_REP_ERR_POLICY, NBD_REP_ERR_UNSUP, NBD_REP_ERR_PLATFORM));
  expect_haggling (c);
}

static void
starttls_with_data (struct test *t)
{
  struct conn *c = open_haggling (t);

  expect_answer (
      c, opt_ask (c, NBD_OPT_STARTTLS, junk (t, 4)), "STARTTLS with data",
      REPS (NBD_REP_ERR_INVALID, NBD_REP_ERR_POLICY, NBD_REP_ERR_UNSUP, NBD_REP_ERR_PLATFORM));
  expect_haggling (c);
}

/* A refused STARTTLS changes nothing. */
static void
starttls_keeps_state (struct test *t)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, STRUCTURED);
  opt_ask (c, NBD_OPT_STARTTLS, NULL);
  go (c);
  expect_in_sync (c);
}

/* STRUCTURED_REPLY and EXTENDED_HEADERS */

static void
structured (struct test *t)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, STRUCTURED);
  go (c);
  CHECK (t, (c->flags & NBD_FLAG_SEND_DF) != 0, "SEND_DF is not set");
  expect_in_sync (c);
}

static void
structured_twice (struct test *t)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, STRUCTURED);
  expect_answer (c, opt_ask (c, NBD_OPT_STRUCTURED_REPLY, NULL), "the second STRUCTURED_REPLY",
                 REPS (NBD_REP_ACK, NBD_REP_ERR_INVALID));
  go (c);
  expect_in_sync (c);
}

static void
structured_with_data (struct test *t)
{
  struct conn *c = open_haggling (t);

  expect_answer (c, opt_ask (c, NBD_OPT_STRUCTURED_REPLY, junk (t, 4)),
                 "STRUCTURED_REPLY with data", REPS (NBD_REP_ERR_INVALID));
  go (c); /* in simple mode: the option failed */
  CHECK (t, (c->flags & NBD_FLAG_SEND_DF) == 0, "SEND_DF is set in simple mode");
  expect_in_sync (c);
}

static void
headers (struct test *t)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, EXTENDED);
  go (c);
  expect_in_sync (c);
}

static void
headers_after_structured (struct test *t)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, STRUCTURED);
  negotiate_mode (c, EXTENDED);
  go (c);
  expect_in_sync (c);
}

static void
headers_before_structured (struct test *t)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, EXTENDED);
  expect_answer (c, opt_ask (c, NBD_OPT_STRUCTURED_REPLY, NULL),
                 "STRUCTURED_REPLY after EXTENDED_HEADERS", REPS (NBD_REP_ERR_EXT_HEADER_REQD));
  go (c);
  expect_in_sync (c);
}

static void
headers_twice (struct test *t)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, EXTENDED);
  expect_answer (c, opt_ask (c, NBD_OPT_EXTENDED_HEADERS, NULL), "the second EXTENDED_HEADERS",
                 REPS (NBD_REP_ACK, NBD_REP_ERR_INVALID));
  go (c);
  expect_in_sync (c);
}

static void
headers_with_data (struct test *t)
{
  struct conn *c = open_haggling (t);

  expect_answer (c, opt_ask (c, NBD_OPT_EXTENDED_HEADERS, junk (t, 4)),
                 "EXTENDED_HEADERS with data", REPS (NBD_REP_ERR_INVALID));
  go (c);
  expect_in_sync (c);
}

static void
headers_unknown (struct test *t)
{
  struct conn *c = open_haggling (t);

  expect_answer (c, opt_ask (c, NBD_OPT_EXTENDED_HEADERS, NULL), "EXTENDED_HEADERS",
                 REPS (NBD_REP_ERR_UNSUP, NBD_REP_ERR_POLICY));
  go (c);
  expect_in_sync (c);
}

/* The client MUST NOT do this; the server may drop it, or serve it rightly. */
static void
headers_export_name (struct test *t)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, EXTENDED);
  opt_send (c, NBD_OPT_EXPORT_NAME, put_string (bytes_new (t), t->target->export));
  if (!conn_at_eof (c)) {
    conn_skip (c, 10, "the export's size and flags");
    expect_in_sync (c);
  }
}

static void
transmission_flags (struct test *t)
{
  uint16_t flags = t->target->flags[t->mode];

  CHECK (t, flags & NBD_FLAG_HAS_FLAGS, "flags %#x lack HAS_FLAGS", flags);
  CHECK (t, (flags & 0xe000) == 0, "flags %#x have bits not defined", flags);
  CHECK (t, !!(flags & NBD_FLAG_READ_ONLY) == !!(t->target->has & READ_ONLY),
         "flags %#x: read-only in one mode and not in another", flags);
  CHECK (t, !(flags & NBD_FLAG_SEND_FAST_ZERO) || (flags & NBD_FLAG_SEND_WRITE_ZEROES),
         "flags %#x: FAST_ZERO without WRITE_ZEROES", flags);
  CHECK (t, t->mode != SIMPLE || !(flags & NBD_FLAG_SEND_DF), "flags %#x: DF in simple mode",
         flags);
  CHECK (t, t->mode == EXTENDED || !(flags & NBD_FLAG_BLOCK_STATUS_PAYLOAD),
         "flags %#x: BLOCK_STATUS_PAYLOAD without extended headers", flags);
}

/* Whether a payload form is offered depends on there being contexts to filter. */
static void
flags_without_contexts (struct test *t)
{
  struct conn *c = open_transmission (t);

  CHECK (t, !(c->flags & NBD_FLAG_BLOCK_STATUS_PAYLOAD),
         "BLOCK_STATUS_PAYLOAD is set, though no context was selected");
}

#define NEXT_OPTION "a server MUST answer what it does not know with UNSUP and find the next option"
#define NO_MEMORY   "a length is a promise, nothing to allocate by"
#define NO_DATA     "the option carries no data: INVALID if it does, and it had no effect"

const struct tcase list_cases[] = {
  { "list.exports", ONCE, PLAIN, list_exports, "SERVER replies, one for each export, then ACK" },
  { "list.description", ONCE, PLAIN | DESCRIPTION, list_description,
    "what follows the name in SERVER is a text for people" },
  { "list.with-data", ONCE, PLAIN, list_with_data, "LIST with data SHOULD fail with INVALID" },
  { "list.twice", ONCE, PLAIN, list_twice, "LIST changes no state" },
  { "option.unknown", ONCE, PLAIN, unknown, NEXT_OPTION },
  { "option.unknown-with-data", ONCE, PLAIN, unknown_with_data, NEXT_OPTION },
  { "option.unknown-big", ONCE, PLAIN, unknown_big,
    "data too much to be real is drained, or the session ends" },
  { "option.known-big", ONCE, PLAIN, known_big,
    "data too much to be real is drained, or the session ends" },
  { "option.endless", ONCE, PLAIN, endless, NO_MEMORY },
  { "option.beyond-any", ONCE, PLAIN, beyond_any,
    "an option longer than any can be ends the session" },
  { "option.data-slowly", ONCE, PLAIN, data_slowly,
    "how the bytes are divided into packets means nothing" },
  { "option.many", ONCE, PLAIN, many_options, "there is no limit on honest options" },
  { "option.errors-have-text", ONCE, PLAIN | ERROR_TEXT, errors_have_text,
    "an error may carry a text; this server promises one" },
  { "starttls.refused", ONCE, PLAIN, starttls_refused,
    "without TLS: POLICY or UNSUP, never TLS_REQD" },
  { "starttls.with-data", ONCE, PLAIN, starttls_with_data, "an error, and haggling goes on" },
  { "starttls.keeps-state", ONCE, PLAIN | CHUNKS, starttls_keeps_state,
    "only a STARTTLS that succeeds drops what was negotiated" },
  { "structured-reply.yes", ONCE, PLAIN | CHUNKS, structured,
    "ACK, and reads are answered in chunks" },
  { "structured-reply.twice", ONCE, PLAIN | CHUNKS, structured_twice,
    "a repeated option may be INVALID, and takes nothing back" },
  { "structured-reply.with-data", ONCE, PLAIN | CHUNKS, structured_with_data, NO_DATA },
  { "extended-headers.yes", ONCE, PLAIN | HEADERS, headers,
    "the option needs no structured replies before it" },
  { "extended-headers.after-structured", ONCE, PLAIN | CHUNKS | HEADERS, headers_after_structured,
    "extended headers take precedence over structured replies" },
  { "extended-headers.before-structured", ONCE, PLAIN | HEADERS, headers_before_structured,
    "STRUCTURED_REPLY then fails with EXT_HEADER_REQD" },
  { "extended-headers.twice", ONCE, PLAIN | HEADERS, headers_twice,
    "a repeated option may be INVALID, and takes nothing back" },
  { "extended-headers.with-data", ONCE, PLAIN | HEADERS, headers_with_data, NO_DATA },
  { "extended-headers.unknown", ONCE, PLAIN | NO_HEADERS, headers_unknown,
    "a server without them says UNSUP and serves compact headers" },
  { "extended-headers.export-name", ONCE, PLAIN | HEADERS, headers_export_name,
    "a client MUST NOT use EXPORT_NAME then; the server may end the session" },
  { "flags.consistent", IN_ALL, PLAIN, transmission_flags,
    "DF only with chunks, FAST_ZERO only with WRITE_ZEROES, PAYLOAD only with extended headers" },
  { "flags.without-contexts", IN_EXTENDED, PLAIN, flags_without_contexts,
    "BLOCK_STATUS_PAYLOAD SHOULD NOT be advertised when no context was selected" },
  { NULL, 0, 0, NULL, NULL },
};
