/* SPDX-License-Identifier: BSD-3-Clause */

/* The handshake's messages: options and their replies. */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client.h"

#define MAX_REPLIES 10000 /* more to one option is a server gone mad */
#define MAX_REPLY_LEN                                                                              \
  (1 << 16) /* no reply defined can be longer: two strings and their lengths                       \
             */

void
greet (struct conn *c, uint32_t client_flags)
{
  uint8_t b[18];
  uint16_t flags;

  conn_recv (c, b, sizeof b, "the greeting");
  CHECK (c->t, get_u64 (b) == NBD_MAGIC_INIT, "the greeting starts with %#" PRIx64, get_u64 (b));
  CHECK (c->t, get_u64 (b + 8) == NBD_MAGIC_OPTION, "the greeting's second magic is %#" PRIx64,
         get_u64 (b + 8));
  flags = get_u16 (b + 16);
  CHECK (c->t, (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) == 0,
         "handshake flags %#x: one is not defined", flags);
  c->handshake_flags = flags;
  conn_send_bytes (c, put_u32 (bytes_new (c->t), client_flags));
}

struct conn *
open_haggling (struct test *t)
{
  struct conn *c = conn_open (t);

  greet (c, NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
  CHECK (t, c->handshake_flags & NBD_FLAG_FIXED_NEWSTYLE, "the server is not fixed newstyle");
  return c;
}

struct bytes *
opt_header (struct bytes *b, uint32_t option, uint32_t len)
{
  return put_u32 (put_u32 (put_u64 (b, NBD_MAGIC_OPTION), option), len);
}

void
opt_send (struct conn *c, uint32_t option, const struct bytes *data)
{
  struct bytes *b = opt_header (bytes_new (c->t), option, data ? (uint32_t)data->len : 0);

  if (data)
    put (b, data->data, data->len);
  conn_send_bytes (c, b);
}

const char *
rep_name (uint32_t type)
{
  static const char *const errors[] = { "ERR 0",       "ERR_UNSUP",          "ERR_POLICY",
                                        "ERR_INVALID", "ERR_PLATFORM",       "ERR_TLS_REQD",
                                        "ERR_UNKNOWN", "ERR_SHUTDOWN",       "ERR_BLOCK_SIZE_REQD",
                                        "ERR_TOO_BIG", "ERR_EXT_HEADER_REQD" };
  static const char *const others[] = { "hang-up", "ACK", "SERVER", "INFO", "META_CONTEXT" };
  uint32_t n = type & ~NBD_REP_ERR;

  if (type & NBD_REP_ERR)
    return n < sizeof errors / sizeof errors[0] ? errors[n] : "an unknown error";
  return n < sizeof others / sizeof others[0] ? others[n] : "an unknown reply";
}

/* The reply type an option may have besides the final one; 0 if none. */
static uint32_t
partial_type (uint32_t option)
{
  switch (option) {
  case NBD_OPT_LIST:
    return NBD_REP_SERVER;
  case NBD_OPT_INFO:
  case NBD_OPT_GO:
    return NBD_REP_INFO;
  case NBD_OPT_LIST_META_CONTEXT:
  case NBD_OPT_SET_META_CONTEXT:
    return NBD_REP_META_CONTEXT;
  default:
    return 0;
  }
}

static struct opt_reply
recv_opt_reply (struct conn *c, uint32_t option)
{
  uint8_t b[20];
  struct opt_reply r;

  conn_recv (c, b, sizeof b, "an option reply");
  CHECK (c->t, get_u64 (b) == NBD_MAGIC_REPLY, "an option reply's magic is %#" PRIx64, get_u64 (b));
  CHECK (c->t, get_u32 (b + 8) == option, "a reply to option %" PRIu32 " came for option %" PRIu32,
         get_u32 (b + 8), option);
  r.type = get_u32 (b + 12);
  r.len = get_u32 (b + 16);
  CHECK (c->t, r.len <= MAX_REPLY_LEN, "an option reply of %" PRIu32 " bytes", r.len);
  r.data = test_alloc (c->t, (size_t)r.len + 1);
  conn_recv (c, r.data, r.len, "an option reply's data");
  if (r.type == NBD_REP_ACK)
    CHECK (c->t, r.len == 0, "NBD_REP_ACK with %" PRIu32 " bytes of data", r.len);
  else if (r.type & NBD_REP_ERR) {
    CHECK (c->t, r.type >= NBD_REP_ERR_UNSUP && r.type <= NBD_REP_ERR_EXT_HEADER_REQD,
           "error reply type %#" PRIx32 " is not defined", r.type);
    CHECK (c->t, is_nbd_string (r.data, r.len), "the text of %s is no valid string",
           rep_name (r.type));
  } else
    CHECK (c->t, r.type == partial_type (option),
           "reply type %" PRIu32 " does not belong to option %" PRIu32, r.type, option);
  return r;
}

struct answer *
opt_answer (struct conn *c, uint32_t option)
{
  struct answer *a = test_alloc (c->t, sizeof *a);

  a->text = "";
  while (!conn_at_eof (c)) {
    struct opt_reply r = recv_opt_reply (c, option);

    if (r.type == NBD_REP_ACK || (r.type & NBD_REP_ERR)) {
      a->final = r.type;
      a->text = (const char *)r.data;
      return a;
    }
    CHECK (c->t, a->n < MAX_REPLIES, "more than %d replies to one option", MAX_REPLIES);
    a->replies = test_realloc (c->t, a->replies, (a->n + 1) * sizeof *a->replies);
    a->replies[a->n++] = r;
  }
  a->hung_up = true;
  return a;
}

struct answer *
opt_try (struct conn *c, uint32_t option, const struct bytes *data)
{
  opt_send (c, option, data);
  return opt_answer (c, option);
}

struct answer *
opt_ask (struct conn *c, uint32_t option, const struct bytes *data)
{
  struct answer *a = opt_try (c, option, data);

  CHECK (c->t, !a->hung_up, "the server hung up on option %" PRIu32, option);
  return a;
}

void
expect_answer (struct conn *c, const struct answer *a, const char *what, const uint32_t *wanted)
{
  char list[200] = "";

  for (const uint32_t *w = wanted; *w; w++) {
    if (a->final == *w && !a->hung_up)
      return;
    snprintf (list + strlen (list), sizeof list - strlen (list), "%s%s", w == wanted ? "" : " or ",
              rep_name (*w));
  }
  fail (c->t, "%s: %s%s%s%s, not %s", what, rep_name (a->final), a->text[0] ? " (" : "", a->text,
        a->text[0] ? ")" : "", list);
}

struct bytes *
go_data (struct test *t, const char *export, size_t n, const uint16_t *infos)
{
  struct bytes *b = bytes_new (t);

  put_u16 (put_string (put_u32 (b, (uint32_t)strlen (export)), export), (uint16_t)n);
  for (size_t i = 0; i < n; i++)
    put_u16 (b, infos[i]);
  return b;
}

struct bytes *
meta_data (struct test *t, const char *export, const char *const *queries)
{
  struct bytes *b = bytes_new (t);
  uint32_t n = 0;

  while (queries[n])
    n++;
  put_u32 (put_string (put_u32 (b, (uint32_t)strlen (export)), export), n);
  for (uint32_t i = 0; i < n; i++)
    put_string (put_u32 (b, (uint32_t)strlen (queries[i])), queries[i]);
  return b;
}

static void
check_block_sizes (struct conn *c, const struct export_info *e)
{
  CHECK (c->t, e->min_block && (e->min_block & (e->min_block - 1)) == 0,
         "minimum block size %" PRIu32 " is no power of two", e->min_block);
  CHECK (c->t, e->min_block <= NBD_MAX_MIN_BLOCK, "minimum block size %" PRIu32 " exceeds %d",
         e->min_block, NBD_MAX_MIN_BLOCK);
  CHECK (c->t, e->preferred && (e->preferred & (e->preferred - 1)) == 0,
         "preferred block size %" PRIu32 " is no power of two", e->preferred);
  CHECK (c->t, e->preferred >= 512 && e->preferred >= e->min_block,
         "preferred block size %" PRIu32 " is below 512 or the minimum", e->preferred);
  CHECK (c->t, e->max_payload >= e->preferred && e->max_payload >= 1 * MiB,
         "maximum payload %" PRIu32 " is below the preferred block size or 1 MiB", e->max_payload);
}

struct export_info *
info_parse (struct conn *c, const struct answer *a)
{
  struct export_info *e = test_alloc (c->t, sizeof *e);
  unsigned seen = 0;

  for (size_t i = 0; i < a->n; i++) {
    const uint8_t *p = a->replies[i].data;
    uint32_t len = a->replies[i].len;
    uint16_t type;

    CHECK (c->t, len >= 2, "NBD_REP_INFO of %" PRIu32 " bytes", len);
    type = get_u16 (p);
    CHECK (c->t, type <= NBD_INFO_BLOCK_SIZE, "information type %u is not defined", type);
    CHECK (c->t, !(seen & 1u << type), "information type %u came twice", type);
    seen |= 1u << type;
    switch (type) {
    case NBD_INFO_EXPORT:
      CHECK (c->t, len == 12, "NBD_INFO_EXPORT of %" PRIu32 " bytes", len);
      e->size = get_u64 (p + 2);
      e->flags = get_u16 (p + 10);
      e->n_export++;
      CHECK (c->t, e->flags & NBD_FLAG_HAS_FLAGS, "transmission flags %#x lack HAS_FLAGS",
             e->flags);
      break;
    case NBD_INFO_NAME:
      CHECK (c->t, is_nbd_string (p + 2, len - 2), "the export's name is no valid string");
      e->name = (const char *)p + 2;
      break;
    case NBD_INFO_DESCRIPTION:
      CHECK (c->t, is_nbd_string (p + 2, len - 2), "the description is no valid string");
      e->description = (const char *)p + 2;
      break;
    case NBD_INFO_BLOCK_SIZE:
      CHECK (c->t, len == 14, "NBD_INFO_BLOCK_SIZE of %" PRIu32 " bytes", len);
      e->has_block_size = true;
      e->min_block = get_u32 (p + 2);
      e->preferred = get_u32 (p + 6);
      e->max_payload = get_u32 (p + 10);
      check_block_sizes (c, e);
      break;
    }
  }
  if (a->final == NBD_REP_ACK)
    CHECK (c->t, e->n_export == 1, "success without NBD_INFO_EXPORT");
  return e;
}

size_t
contexts_parse (struct conn *c, const struct answer *a, struct context **contexts)
{
  struct context *list = test_alloc (c->t, (a->n + 1) * sizeof *list);

  for (size_t i = 0; i < a->n; i++) {
    const uint8_t *p = a->replies[i].data;
    uint32_t len = a->replies[i].len;

    CHECK (c->t, len > 4 && is_nbd_string (p + 4, len - 4), "a context's name is no valid string");
    list[i].id = get_u32 (p);
    list[i].name = (const char *)p + 4;
    CHECK (c->t, strchr (list[i].name, ':') && list[i].name[0] != ':',
           "context \"%s\" has no namespace", list[i].name);
    for (size_t j = 0; j < i; j++)
      CHECK (c->t, strcmp (list[j].name, list[i].name) != 0, "context \"%s\" came twice",
             list[i].name);
  }
  *contexts = list;
  return a->n;
}

void
negotiate_mode (struct conn *c, enum mode mode)
{
  static const uint32_t option[] = {
    [STRUCTURED] = NBD_OPT_STRUCTURED_REPLY, [EXTENDED] = NBD_OPT_EXTENDED_HEADERS
  };

  if (mode != SIMPLE)
    expect_answer (c, opt_ask (c, option[mode], NULL), "the option for the mode", REP_ACK);
  c->mode = mode;
}

void
set_contexts (struct conn *c, const char *const *queries)
{
  const struct bytes *data = meta_data (c->t, c->t->target->export, queries);
  const struct answer *a = opt_ask (c, NBD_OPT_SET_META_CONTEXT, data);

  expect_answer (c, a, "SET_META_CONTEXT", REP_ACK);
  c->n_contexts = contexts_parse (c, a, &c->contexts);
  for (size_t i = 0; i < c->n_contexts; i++)
    for (size_t j = 0; j < i; j++)
      CHECK (c->t, c->contexts[i].id != c->contexts[j].id, "contexts %s and %s share id %" PRIu32,
             c->contexts[i].name, c->contexts[j].name, c->contexts[i].id);
}

void
go (struct conn *c)
{
  const uint16_t infos[] = { NBD_INFO_BLOCK_SIZE };
  const struct answer *a = opt_ask (c, NBD_OPT_GO, go_data (c->t, c->t->target->export, 1, infos));
  const struct export_info *e = info_parse (c, a);

  expect_answer (c, a, "GO", REP_ACK);
  c->size = e->size;
  c->flags = e->flags;
  CHECK (c->t, e->size == c->t->target->size, "the export has %" PRIu64 " bytes, not %" PRIu64,
         e->size, c->t->target->size);
}

struct conn *
open_transmission (struct test *t)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, t->mode);
  go (c);
  return c;
}

struct conn *
open_contexts (struct test *t, const char *const *queries)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, t->mode);
  set_contexts (c, queries);
  go (c);
  return c;
}

void
expect_haggling (struct conn *c)
{
  const uint16_t infos[] = { NBD_INFO_BLOCK_SIZE };
  const struct bytes *data = go_data (c->t, c->t->target->export, 1, infos);

  expect_answer (c, opt_ask (c, NBD_OPT_INFO, data), "INFO afterwards", REP_ACK);
}
