/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The handshake: fixed newstyle negotiation, from the greeting to the transmission phase.
 *
 * An option arrives as a header and, if it has any, data that is received whole before it is looked
 * at.  Each option has one function that answers it; all lengths inside the data are checked by the
 * cursor that takes it apart.
 */

#include <endian.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "log.h"
#include "session.h"
#include "status.h"

/* Data of one option.  Metadata queries are the longest. */
#define MAX_OPTION_DATA (64 * 1024)
/* The same when memory is short: room for a name and some queries. */
#define LOW_OPTION_DATA (16 * 1024)
/* Beyond this, what a client says about the length is not believed, and it is dropped. */
#define MAX_SKIPPED_DATA (32u * 1024 * 1024)
/* Options before the transmission phase. */
#define MAX_OPTIONS 1024
/* Exports that are told of in one turn. */
#define LIST_AT_A_TIME 256
/* Queries in one option about metadata contexts. */
#define MAX_QUERIES 256

/* ---- taking option data apart ---------------------------------------------------------------- */

struct cursor {
  const uint8_t *p;
  size_t left;
};

static bool
take (struct cursor *c, size_t n, const uint8_t **p)
{
  if (n > c->left)
    return false;
  *p = c->p;
  c->p += n;
  c->left -= n;
  return true;
}

static bool
take_u16 (struct cursor *c, uint16_t *v)
{
  const uint8_t *p;
  if (!take (c, sizeof *v, &p))
    return false;
  memcpy (v, p, sizeof *v);
  *v = be16toh (*v);
  return true;
}

static bool
take_u32 (struct cursor *c, uint32_t *v)
{
  const uint8_t *p;
  if (!take (c, sizeof *v, &p))
    return false;
  memcpy (v, p, sizeof *v);
  *v = be32toh (*v);
  return true;
}

struct text {
  const uint8_t *p;
  uint32_t len;
};

/* A string with its length before it. */
static bool
take_string (struct cursor *c, struct text *s)
{
  return take_u32 (c, &s->len) && s->len <= NBD_MAX_STRING && take (c, s->len, &s->p) &&
         (s->len == 0 || !memchr (s->p, 0, s->len));
}

/* A name of the client's choice, fit for messages. */
struct printable {
  char text[129];
};

static const char *
printable (const struct text *s, struct printable *out)
{
  uint32_t n = s->len < sizeof out->text ? s->len : sizeof out->text - 1;

  for (uint32_t i = 0; i < n; i++)
    out->text[i] = (char)(s->p[i] >= 0x20 && s->p[i] < 0x7f ? s->p[i] : '?');
  out->text[n] = '\0';
  return out->text;
}

/* ---- replies --------------------------------------------------------------------------------- */

/* A reply of two parts, the second of which may be empty. */
static void
option_reply2 (struct session *s, uint32_t type, const void *a, size_t a_len, const void *b,
               size_t b_len)
{
  struct nbd_option_reply h = {
    .magic = htobe64 (NBD_OPTION_REPLY_MAGIC),
    .option = htobe32 (s->option),
    .type = htobe32 (type),
    .length = htobe32 ((uint32_t)(a_len + b_len)),
  };
  session_send (s, &h, sizeof h);
  if (a_len > 0)
    session_send (s, a, a_len);
  if (b_len > 0)
    session_send (s, b, b_len);
}

static void
option_reply (struct session *s, uint32_t type, const void *data, size_t len)
{
  option_reply2 (s, type, data, len, NULL, 0);
}

static void
ack (struct session *s)
{
  option_reply (s, NBD_REP_ACK, NULL, 0);
}

static void __attribute__ ((format (printf, 3, 4)))
refuse (struct session *s, uint32_t type, const char *fmt, ...)
{
  char text[256];
  va_list args;

  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  log_debug ("option %u refused: %s", s->option, text);
  option_reply (s, type, text, strlen (text));
}

/* ---- exports --------------------------------------------------------------------------------- */

enum admission { ADMITTED, NEEDS_TLS, FORBIDDEN };

/* Whether this client may use X. */
static enum admission
admission (const struct session *s, const struct export *x)
{
  bool tls_only;
  struct authz *authz;

  export_admission (x, &tls_only, &authz);
  if (tls_only && !s->tls)
    return NEEDS_TLS;
  if (!authz)
    return ADMITTED;
  const char *identity = s->tls ? tls_identity (s->tls) : NULL;
  return identity && authz_allows (authz, identity) ? ADMITTED : FORBIDDEN;
}

/* A reference to the export of that name, if this client may use it.  Otherwise refuses the option.
 */
static struct export *
find_export (struct session *s, const struct text *name)
{
  struct export *x = exports_get (s->shard->exports, name->p, name->len);
  struct printable p;

  if (!x) {
    refuse (s, NBD_REP_ERR_UNKNOWN, "there is no export \"%s\"", printable (name, &p));
    return NULL;
  }
  switch (admission (s, x)) {
  case ADMITTED:
    return x;
  case NEEDS_TLS:
    /* Where TLS is not required for everything, only INFO and GO may say TLS_REQD. */
    refuse (s,
            s->option == NBD_OPT_INFO || s->option == NBD_OPT_GO ? NBD_REP_ERR_TLS_REQD
                                                                 : NBD_REP_ERR_POLICY,
            "export \"%s\" needs TLS", printable (name, &p));
    break;
  case FORBIDDEN:
    refuse (s, NBD_REP_ERR_POLICY, "this client is not authorised for export \"%s\"",
            printable (name, &p));
    break;
  }
  export_put (x);
  return NULL;
}

static uint16_t
transmission_flags (const struct session *s, const struct export *x)
{
  unsigned flags = export_flags (x);
  if (s->mode != MODE_SIMPLE)
    flags |= NBD_FLAG_SEND_DF;
  if (s->mode == MODE_EXTENDED && s->meta_export == x->id && s->meta_selected != 0)
    flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
  return (uint16_t)flags;
}

static void
option_export_name (struct session *s, struct cursor *data)
{
  struct export *x = NULL;
  unsigned max;

  if (data->left <= NBD_MAX_STRING)
    x = exports_get (s->shard->exports, data->p, data->left);
  if (!x || admission (s, x) != ADMITTED || s->mode == MODE_EXTENDED || s->stopping ||
      export_enter (x, &max) < 0) {
    log_debug (
        "NBD_OPT_EXPORT_NAME refused: no such export, not for this client or not without TLS, "
        "all its connections are taken, or extended headers are in use");
    if (x)
      export_put (x);
    session_drop (s); /* this option has no error reply */
    return;
  }
  struct nbd_export_name_reply r = {
    .size = htobe64 (x->size),
    .flags = htobe16 (transmission_flags (s, x)),
  };
  session_send (s, &r, sizeof r - (s->no_zeroes ? sizeof r.zeroes : 0));
  s->export = x;
  transmission_begin (s);
}

static void
list_export (struct session *s, const struct export *x)
{
  char description[EXPORT_DESCRIPTION_SIZE];
  uint32_t len = (uint32_t)strlen (x->name);
  uint32_t be_len = htobe32 (len);
  uint8_t entry[sizeof be_len + NBD_MAX_STRING];

  memcpy (entry, &be_len, sizeof be_len);
  memcpy (entry + sizeof be_len, x->name, len);
  export_description (x, description);
  option_reply2 (s, NBD_REP_SERVER, entry, sizeof be_len + len, description, strlen (description));
  s->budget -= REQUEST_COST;
}

/* A long list is told bit by bit, as the client takes it; before its end, it is sent nothing else.
 * While there is more to come, something is queued: once that is sent, the list goes on. */
void
handshake_list (struct session *s, bool all)
{
  struct export *x = exports_after (s->shard->exports, s->listed);
  unsigned n = 0;

  while (x && (all || (n < LIST_AT_A_TIME && !session_full (s)))) {
    if (admission (s, x) == ADMITTED) {
      list_export (s, x);
      n++;
    }
    s->listed = x->id;
    x = exports_next (s->shard->exports, x);
  }
  s->listing = x && !s->dropped;
  if (x)
    export_put (x);
  else
    ack (s);
}

static void
option_list (struct session *s)
{
  s->listed = 0;
  handshake_list (s, false);
}

static void
send_info (struct session *s, const struct export *x, uint16_t type)
{
  uint16_t be_type = htobe16 (type);
  char description[EXPORT_DESCRIPTION_SIZE];

  switch (type) {
  case NBD_INFO_EXPORT: {
    struct nbd_info_export info = {
      .type = be_type,
      .size = htobe64 (x->size),
      .flags = htobe16 (transmission_flags (s, x)),
    };
    option_reply (s, NBD_REP_INFO, &info, sizeof info);
    break;
  }
  case NBD_INFO_NAME:
    option_reply2 (s, NBD_REP_INFO, &be_type, sizeof be_type, x->name, strlen (x->name));
    break;
  case NBD_INFO_DESCRIPTION:
    export_description (x, description);
    if (*description)
      option_reply2 (s, NBD_REP_INFO, &be_type, sizeof be_type, description, strlen (description));
    break;
  case NBD_INFO_BLOCK_SIZE: {
    struct nbd_info_block_size info = {
      .type = be_type,
      .minimum = htobe32 (x->min_block),
      .preferred = htobe32 (x->preferred_block),
      .maximum = htobe32 (NBD_MAX_PAYLOAD),
    };
    option_reply (s, NBD_REP_INFO, &info, sizeof info);
    break;
  }
  }
}

/* Answers INFO and GO for X; true if the session now has it. */
static bool
answer_info (struct session *s, struct export *x, unsigned wanted)
{
  unsigned max;
  int r;

  /* A client that has not heard of block sizes will not keep to them. */
  if (x->min_block > 1 && !(wanted & (1u << NBD_INFO_BLOCK_SIZE))) {
    send_info (s, x, NBD_INFO_BLOCK_SIZE); /* saves it another look */
    refuse (s, NBD_REP_ERR_BLOCK_SIZE_REQD,
            "requests must be whole blocks of %u bytes: ask for NBD_INFO_BLOCK_SIZE", x->min_block);
    return false;
  }
  if (s->option == NBD_OPT_GO && (r = export_enter (x, &max)) < 0) {
    if (r == -EMFILE)
      refuse (s, NBD_REP_ERR_POLICY, "the export already has its %u connections", max);
    else
      refuse (s, NBD_REP_ERR_SHUTDOWN, "the export is no longer served");
    return false;
  }
  for (unsigned i = NBD_INFO_EXPORT; i <= NBD_INFO_BLOCK_SIZE; i++)
    if (wanted & (1u << i))
      send_info (s, x, (uint16_t)i);
  ack (s);
  if (s->option != NBD_OPT_GO)
    return false;
  s->export = x;
  transmission_begin (s);
  return true;
}

/* INFO and GO. */
static void
option_info (struct session *s, struct cursor *data)
{
  struct text name;
  uint16_t n, type;
  unsigned wanted = 1 << NBD_INFO_EXPORT;

  if (!take_string (data, &name) || !take_u16 (data, &n) || data->left != n * sizeof type) {
    refuse (s, NBD_REP_ERR_INVALID, "malformed export name or list of information requests");
    return;
  }
  while (take_u16 (data, &type))
    if (type <= NBD_INFO_BLOCK_SIZE)
      wanted |= 1u << type;

  struct export *x = find_export (s, &name);
  if (x && !answer_info (s, x, wanted))
    export_put (x);
}

/* ---- metadata contexts ----------------------------------------------------------------------- */

/* A query selects a context by its whole name.  In LIST, one that ends with a colon (a namespace,
 * or a group inside one) matches everything that begins with it. */
static bool
query_matches (const struct text *query, const char *name, bool listing)
{
  size_t len = strlen (name);

  if (query->len == len)
    return memcmp (query->p, name, len) == 0;
  return listing && query->len > 0 && query->len < len && query->p[query->len - 1] == ':' &&
         memcmp (query->p, name, query->len) == 0;
}

/* Answers N queries about X. */
static void
answer_queries (struct session *s, const struct export *x, struct cursor *data, uint32_t n)
{
  bool listing = s->option == NBD_OPT_LIST_META_CONTEXT;
  struct text query;
  uint64_t matched = 0;

  if (n > MAX_QUERIES) {
    refuse (s, NBD_REP_ERR_TOO_BIG, "%u metadata context queries: the most is %u", n, MAX_QUERIES);
    return;
  }
  if (listing && n == 0)
    matched = UINT64_MAX;
  for (uint32_t i = 0; i < n; i++) {
    if (!take_string (data, &query)) {
      refuse (s, NBD_REP_ERR_INVALID, "malformed metadata context query %u", i);
      return;
    }
    for (unsigned c = 0; c < x->n_contexts; c++)
      if (query_matches (&query, x->contexts[c].name, listing))
        matched |= UINT64_C (1) << c;
  }
  if (data->left > 0) {
    refuse (s, NBD_REP_ERR_INVALID, "%zu bytes after the last metadata context query", data->left);
    return;
  }

  for (unsigned c = 0; c < x->n_contexts; c++) {
    if (!(matched & (UINT64_C (1) << c)))
      continue;
    uint32_t be_id = htobe32 (listing ? 0 : c);
    option_reply2 (s, NBD_REP_META_CONTEXT, &be_id, sizeof be_id, x->contexts[c].name,
                   strlen (x->contexts[c].name));
  }
  ack (s);
  if (!listing) {
    s->meta_export = x->id;
    s->meta_selected = matched;
  }
}

static void
option_meta_context (struct session *s, struct cursor *data)
{
  struct text name;
  uint32_t n;

  if (s->option == NBD_OPT_SET_META_CONTEXT) {
    /* Whatever comes of it, what was selected before is no longer. */
    s->meta_export = 0;
    s->meta_selected = 0;
  }
  if (s->mode == MODE_SIMPLE) {
    refuse (s, NBD_REP_ERR_INVALID, "negotiate structured replies or extended headers first");
    return;
  }
  if (!take_string (data, &name) || !take_u32 (data, &n)) {
    refuse (s, NBD_REP_ERR_INVALID, "malformed export name or number of queries");
    return;
  }
  struct export *x = find_export (s, &name);
  if (!x)
    return;
  answer_queries (s, x, data, n);
  export_put (x);
}

/* ---- options --------------------------------------------------------------------------------- */

/* The server requires TLS, and the client has not begun it: refuses all but that, and goodbye. */
static bool
demand_tls (struct session *s)
{
  if (!s->shard->tls || s->tls || !tls_required (s->shard->tls) || s->option == NBD_OPT_STARTTLS ||
      s->option == NBD_OPT_ABORT)
    return false;
  if (s->option == NBD_OPT_EXPORT_NAME)
    session_drop (s);
  else
    refuse (s, NBD_REP_ERR_TLS_REQD, "this server requires TLS");
  return true;
}

static void
option_starttls (struct session *s)
{
  if (s->tls)
    refuse (s, NBD_REP_ERR_INVALID, "TLS has begun already");
  else if (!s->shard->tls)
    refuse (s, NBD_REP_ERR_POLICY, "the server is not configured for TLS");
  else {
    ack (s);
    s->starting_tls = true;
  }
}

static void
answer_option (struct session *s, struct cursor *data)
{
  if (!s->fixed_newstyle && s->option != NBD_OPT_EXPORT_NAME) {
    session_drop (s); /* plain newstyle has no other option, and no replies */
    return;
  }
  if (s->stopping && s->option != NBD_OPT_ABORT && s->option != NBD_OPT_EXPORT_NAME) {
    refuse (s, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
    return;
  }
  if (demand_tls (s))
    return;

  switch (s->option) {
  case NBD_OPT_EXPORT_NAME:
    option_export_name (s, data);
    return;
  case NBD_OPT_ABORT:
    ack (s);
    s->ending = true;
    return;
  case NBD_OPT_INFO:
  case NBD_OPT_GO:
    option_info (s, data);
    return;
  case NBD_OPT_LIST_META_CONTEXT:
  case NBD_OPT_SET_META_CONTEXT:
    option_meta_context (s, data);
    return;
  case NBD_OPT_LIST:
  case NBD_OPT_STARTTLS:
  case NBD_OPT_STRUCTURED_REPLY:
  case NBD_OPT_EXTENDED_HEADERS:
    break;
  default:
    refuse (s, NBD_REP_ERR_UNSUP, "option %u is not supported", s->option);
    return;
  }

  /* Those that come without data. */
  if (data->left > 0) {
    refuse (s, NBD_REP_ERR_INVALID, "option %u must not have data, and has %zu bytes", s->option,
            data->left);
    return;
  }
  switch (s->option) {
  case NBD_OPT_LIST:
    option_list (s);
    break;
  case NBD_OPT_STARTTLS:
    option_starttls (s);
    break;
  case NBD_OPT_STRUCTURED_REPLY:
    if (s->mode == MODE_EXTENDED) {
      refuse (s, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers are already negotiated");
      break;
    }
    s->mode = MODE_STRUCTURED;
    ack (s);
    break;
  case NBD_OPT_EXTENDED_HEADERS:
    s->mode = MODE_EXTENDED;
    ack (s);
    break;
  }
}

static void
option_data (struct session *s, struct buf *b)
{
  struct cursor data = { b->start, (size_t)(b->end - b->start) };

  answer_option (s, &data);
  buf_free (&s->shard->cache, b);
}

static size_t
option_header (struct session *s, const uint8_t *p, size_t n)
{
  const struct nbd_option *h = (const struct nbd_option *)p;
  uint32_t len = be32toh (h->length);

  if (h->magic != htobe64 (NBD_OPTION_MAGIC) || ++s->n_options > MAX_OPTIONS ||
      len > MAX_SKIPPED_DATA) {
    session_drop (s);
    return n;
  }
  s->budget -= REQUEST_COST;
  s->option = be32toh (h->option);
  uint32_t most = buf_fits (&s->shard->cache, MAX_OPTION_DATA) ? MAX_OPTION_DATA : LOW_OPTION_DATA;
  if (len > most) {
    session_skip (s, len);
    if (s->option == NBD_OPT_EXPORT_NAME || !s->fixed_newstyle)
      session_drop (s);
    else if (!demand_tls (s))
      refuse (s, NBD_REP_ERR_TOO_BIG, "%u bytes of option data: the most is %u%s", len, most,
              most < MAX_OPTION_DATA ? " while memory is short" : "");
  } else if (len == 0) {
    struct cursor none = { NULL, 0 };
    answer_option (s, &none);
  } else if (!session_keep (s, len))
    session_drop (s);
  return sizeof *h;
}

void
handshake_expect_option (struct session *s)
{
  s->header_size = sizeof (struct nbd_option);
  s->on_header = option_header;
}

/* The four bytes that answer the greeting. */
static size_t
client_flags (struct session *s, const uint8_t *p, size_t n)
{
  uint32_t flags;

  memcpy (&flags, p, sizeof flags);
  flags = be32toh (flags);
  if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
    session_drop (s);
    return n;
  }
  s->fixed_newstyle = flags & NBD_FLAG_FIXED_NEWSTYLE;
  s->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
  handshake_expect_option (s);
  return sizeof flags;
}

void
handshake_begin (struct session *s)
{
  struct nbd_hello hello = {
    .magic = htobe64 (NBD_MAGIC),
    .option_magic = htobe64 (NBD_OPTION_MAGIC),
    .flags = htobe16 (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
  };

  s->header_size = sizeof (uint32_t);
  s->on_header = client_flags;
  s->on_payload = option_data;
  session_send (s, &hello, sizeof hello);
}
