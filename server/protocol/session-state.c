/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "request.h"
#include "session-state.h"
#include "stats.h"
#include "status.h"

static const char *const phases[] = { "greeting", "options", "transmission" };
static const char *const modes[] = { "simple", "structured", "extended" };

/* More than any session has queued or received. */
#define MAX_BYTES (64u << 20)

static int __attribute__ ((format (printf, 3, 4)))
fail (struct q_error *err, int r, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  vsnprintf (err->text, sizeof err->text, fmt, args);
  va_end (args);
  return r;
}

/* ---- saving ---------------------------------------------------------------------------------- */

/* The header of RQ as the client sent it. */
static size_t
put_header (const struct request *rq, uint64_t len, uint8_t *at)
{
  if (rq->mode == MODE_EXTENDED) {
    struct nbd_extended_request h = {
      .magic = htobe32 (NBD_EXTENDED_REQUEST_MAGIC),
      .flags = htobe16 (rq->flags | NBD_CMD_FLAG_PAYLOAD_LEN),
      .type = htobe16 (rq->type),
      .cookie = rq->cookie,
      .offset = htobe64 (rq->offset),
      .length = htobe64 (len),
    };
    memcpy (at, &h, sizeof h);
    return sizeof h;
  }
  struct nbd_request h = {
    .magic = htobe32 (NBD_REQUEST_MAGIC),
    .flags = htobe16 (rq->flags),
    .type = htobe16 (rq->type),
    .cookie = rq->cookie,
    .offset = htobe64 (rq->offset),
    .length = htobe32 ((uint32_t)len),
  };
  memcpy (at, &h, sizeof h);
  return sizeof h;
}

/* The header of what S is receiving the payload of, at AT; 0 if it is none. */
static size_t
put_receiving (const struct session *s, uint64_t len, uint8_t *at)
{
  if (!s->transmission) {
    struct nbd_option h = {
      .magic = htobe64 (NBD_OPTION_MAGIC),
      .option = htobe32 (s->option),
      .length = htobe32 ((uint32_t)len),
    };
    memcpy (at, &h, sizeof h);
    return sizeof h;
  }
  return s->receiving->whole ? 0 : put_header (s->receiving, len, at);
}

/* Everything that has come from the client and has not been carried out. */
static void
put_unread (const struct session *s, const uint8_t *held, size_t n, struct saved_session *saved)
{
  uint8_t *p = saved->bytes;

  if (s->payload) {
    size_t here = (size_t)(s->payload->end - s->payload->start);
    p += put_receiving (s, here + s->payload_left, p);
    memcpy (p, s->payload->start, here);
    p += here;
  }
  if (n > 0)
    memcpy (p, held, n);
  saved->unread = (size_t)(p - saved->bytes) + n;
}

static void
put_unsent (const struct session *s, struct saved_session *saved)
{
  uint8_t *p = saved->bytes + saved->unread;

  for (const struct buf *b = s->out.head; b; b = b->next) {
    size_t n = (size_t)(b->end - b->start);
    memcpy (p, b->start, n);
    p += n;
  }
  saved->unsent = (size_t)(p - saved->bytes) - saved->unread;
}

/* Cookies are any 64 bits; JSON's integers are signed. */
static json_t *
save_request (const struct request *rq, uint64_t done)
{
  return json_pack ("{s:i,s:i,s:I,s:I,s:I,s:I,s:i}", "type", (int)rq->type, "flags", (int)rq->flags,
                    "cookie", (json_int_t)rq->cookie, "offset", (json_int_t)rq->offset, "length",
                    (json_int_t)rq->len, "done", (json_int_t)done, "error", rq->error);
}

static json_t *
save_parked (const struct session *s)
{
  json_t *list = json_array ();

  for (const struct job *j = s->parked.first; j; j = j->next) {
    const struct request *rq = (const struct request *)j;
    if (json_array_append_new (list, save_request (rq, rq->done)) < 0) {
      json_decref (list);
      return NULL;
    }
  }
  return list;
}

/* The long WRITE that is being taken in, without the piece of which not all has come. */
static json_t *
save_long_write (const struct session *s)
{
  const struct request *piece = s->receiving && s->receiving->whole ? s->receiving : NULL;
  const struct request *whole = piece ? piece->whole : s->long_write;

  return whole ? save_request (whole, whole->done - (piece ? piece->len : 0)) : json_null ();
}

/* [[number, name], ...] */
static json_t *
save_contexts (const struct export *x, uint64_t selected)
{
  json_t *list = json_array ();

  for (unsigned i = 0; i < x->n_contexts; i++)
    if (selected & (UINT64_C (1) << i) &&
        json_array_append_new (list, json_pack ("[i,s]", (int)i, x->contexts[i].name)) < 0) {
      json_decref (list);
      return NULL;
    }
  return list;
}

static json_t *
save_export (const struct session *s, const struct export *x)
{
  uint64_t selected = s->meta_export == x->id ? s->meta_selected : 0;

  return json_pack ("{s:s,s:I,s:I,s:I,s:i,s:i,s:s?,s:o}", "name", x->name, "dev",
                    (json_int_t)x->dev, "ino", (json_int_t)x->ino, "size", (json_int_t)x->size,
                    "flags", (int)export_flags (x), "min-block", (int)x->min_block, "snapshot",
                    x->snapshot, "contexts", save_contexts (x, selected));
}

/* The export that the handshake has selected contexts of, if it is still there. */
static json_t *
save_meta (const struct session *s)
{
  const struct export *x = NULL;

  if (!s->transmission && s->meta_export != 0)
    x = exports_suspended (s->shard->exports, s->meta_export);
  return x ? save_export (s, x) : json_null ();
}

static json_t *
save_state (const struct session *s)
{
  unsigned phase = s->transmission ? 2 : s->header_size == sizeof (uint32_t) ? 0 : 1;
  /* It will be counted again. */
  bool counted = s->receiving && !s->receiving->whole && s->receiving->type == NBD_CMD_WRITE;
  uint64_t again = counted ? s->receiving->len : 0;

  return json_pack (
      "{s:s,s:s,s:b,s:b,s:b,s:I,s:I,s:I,s:I,s:I,s:o,s:o,s:o,s:o}", "phase", phases[phase], "mode",
      modes[s->mode], "no-zeroes", s->no_zeroes, "fixed-newstyle", s->fixed_newstyle, "ending",
      s->ending, "options", (json_int_t)(s->n_options - (s->payload && !s->transmission)), "skip",
      (json_int_t)s->skip_left, "requests", (json_int_t)(s->n_requests - counted), "read",
      (json_int_t)s->bytes_read, "written", (json_int_t)(s->bytes_written - again), "export",
      s->export ? save_export (s, s->export) : json_null (), "meta", save_meta (s), "long-write",
      save_long_write (s), "parked", save_parked (s));
}

int
session_save (const struct session *s, const uint8_t *held, size_t n, struct saved_session *saved,
              struct q_error *err)
{
  size_t payload = s->payload ? (size_t)(s->payload->end - s->payload->start) : 0;

  *saved = (struct saved_session){ .state = NULL };
  assert (!s->in_turn && s->inflight == s->parked.count);
  if (s->tls || s->starting_tls || s->dropped)
    return fail (err, -ENOTSUP, "a connection with TLS cannot be handed over");
  saved->bytes = malloc (sizeof (struct nbd_extended_request) + payload + n + s->out.bytes + 1);
  saved->state = saved->bytes ? save_state (s) : NULL;
  if (!saved->state) {
    saved_session_free (saved);
    return fail (err, -ENOMEM,
                 "a connection cannot be described: memory is short, or a name is not UTF-8");
  }
  put_unread (s, held, n, saved);
  put_unsent (s, saved);
  if (json_object_set_new (saved->state, "unread", json_integer ((json_int_t)saved->unread)) < 0 ||
      json_object_set_new (saved->state, "unsent", json_integer ((json_int_t)saved->unsent)) < 0) {
    saved_session_free (saved);
    return fail (err, -ENOMEM, "out of memory");
  }
  return 0;
}

void
saved_session_free (struct saved_session *saved)
{
  json_decref (saved->state);
  free (saved->bytes);
  *saved = (struct saved_session){ .state = NULL };
}

/* ---- checking -------------------------------------------------------------------------------- */

static bool
number (const json_t *o, const char *key, json_int_t min, json_int_t max)
{
  const json_t *v = json_object_get (o, key);
  return json_is_integer (v) && json_integer_value (v) >= min && json_integer_value (v) <= max;
}

static json_int_t
value (const json_t *o, const char *key)
{
  return json_integer_value (json_object_get (o, key));
}

/* The index of a word; N if it is none of them. */
static unsigned
word (const json_t *o, const char *key, const char *const *words, unsigned n)
{
  const char *text = json_string_value (json_object_get (o, key));
  unsigned i = 0;

  while (i < n && !(text && strcmp (text, words[i]) == 0))
    i++;
  return i;
}

/* FLAGS are those that it may have. */
static bool
good_request (const json_t *o, const struct export *x, unsigned type, unsigned flags,
              json_int_t longest)
{
  return number (o, "type", type, type) && number (o, "flags", 0, UINT16_MAX) &&
         !((unsigned)value (o, "flags") & ~flags) &&
         json_is_integer (json_object_get (o, "cookie")) && number (o, "offset", 0, INT64_MAX) &&
         number (o, "length", 1, longest) && number (o, "done", 0, value (o, "length") - 1) &&
         number (o, "error", -4095, 0) && !(type == NBD_CMD_WRITE && x->read_only) &&
         (uint64_t)value (o, "offset") <= x->size &&
         (uint64_t)value (o, "length") <= x->size - (uint64_t)value (o, "offset");
}

static bool
good_write (const json_t *o, const struct export *x)
{
  return good_request (o, x, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, NBD_MAX_PAYLOAD);
}

/* read_is_in_pieces, of a request that is not there yet. */
static bool
in_pieces (const json_t *o, unsigned mode)
{
  return mode != MODE_SIMPLE && !(value (o, "flags") & NBD_CMD_FLAG_DF);
}

/* What the protocol has no pieces for is no longer than one reply. */
static bool
good_read (const json_t *o, const struct export *x, unsigned mode)
{
  return good_request (o, x, NBD_CMD_READ, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF,
                       in_pieces (o, mode) ? INT64_MAX : NBD_MAX_PAYLOAD);
}

/* Whether the client finds X, which is ours, as it has left STATE. */
static int
same_export (const json_t *state, const struct export *x, struct q_error *err)
{
  const json_t *contexts = json_object_get (state, "contexts"), *c;
  size_t i;

  const char *snapshot = json_string_value (json_object_get (state, "snapshot"));
  if ((uint64_t)value (state, "dev") != x->dev || (uint64_t)value (state, "ino") != x->ino ||
      (snapshot && x->snapshot ? strcmp (snapshot, x->snapshot) != 0 : snapshot != x->snapshot))
    return fail (err, -ENOTSUP, "export \"%s\": is another image than its clients know", x->name);
  if (!number (state, "size", 0, INT64_MAX) || (uint64_t)value (state, "size") != x->size)
    return fail (err, -ENOTSUP, "export \"%s\": has another size than its clients know", x->name);
  if (!number (state, "flags", export_flags (x), export_flags (x)) ||
      !number (state, "min-block", x->min_block, x->min_block))
    return fail (err, -ENOTSUP, "export \"%s\": its clients know it with other properties",
                 x->name);
  json_array_foreach ((json_t *)contexts, i, c)
  {
    const json_t *id = json_array_get (c, 0);
    const char *name = json_string_value (json_array_get (c, 1));
    if (!json_is_integer (id) || !name || json_integer_value (id) < 0 ||
        json_integer_value (id) >= (json_int_t)x->n_contexts ||
        strcmp (x->contexts[json_integer_value (id)].name, name) != 0)
      return fail (err, -ENOTSUP,
                   "export \"%s\": has other metadata contexts than its clients know", x->name);
  }
  return 0;
}

/* A reference to the export that STATE, an object, is about. */
static struct export *
find_export (struct exports *set, const json_t *state)
{
  const char *name = json_string_value (json_object_get (state, "name"));
  return name ? exports_get (set, name, strlen (name)) : NULL;
}

static int
check_export (struct exports *set, const json_t *state, unsigned mode, const json_t *long_write,
              const json_t *parked, struct q_error *err)
{
  const char *name = json_string_value (json_object_get (state, "name"));
  struct export *x = find_export (set, state);
  const json_t *rq;
  size_t i;

  if (!x)
    return fail (err, -ENOENT, "export \"%s\": has clients, and is not there any more",
                 name ? name : "?");
  int r = same_export (state, x, err);
  if (r == 0 && !json_is_null (long_write) && !good_write (long_write, x))
    r = fail (err, -EPROTO, "export \"%s\": a write under way that makes no sense", x->name);
  json_array_foreach ((json_t *)parked, i, rq)
  {
    if (r == 0 && !good_read (rq, x, mode))
      r = fail (err, -EPROTO, "export \"%s\": a read under way that makes no sense", x->name);
  }
  export_put (x);
  return r;
}

/* Of replies that are not made of pieces there is one at most (session.alone); once it has begun,
 * it has nothing else beside it. */
static bool
fit_together (const json_t *parked, unsigned mode)
{
  const json_t *rq;
  unsigned whole = 0;
  bool begun = false;
  size_t i;

  json_array_foreach ((json_t *)parked, i, rq)
  {
    if (in_pieces (rq, mode))
      continue;
    whole++;
    begun = begun || value (rq, "done") > 0;
  }
  return whole <= 1 && (!begun || json_array_size (parked) == 1);
}

int
saved_session_check (struct exports *set, json_t *state, uint8_t *bytes, size_t size,
                     struct saved_session *saved, struct q_error *err)
{
  const json_t *export = json_object_get (state, "export"), *meta = json_object_get (state, "meta");
  const json_t *long_write = json_object_get (state, "long-write");
  const json_t *parked = json_object_get (state, "parked");
  unsigned phase = word (state, "phase", phases, 3), mode = word (state, "mode", modes, 3);
  int r = 0;

  if (phase == 3 || mode == 3 || !json_is_boolean (json_object_get (state, "no-zeroes")) ||
      !json_is_boolean (json_object_get (state, "fixed-newstyle")) ||
      !json_is_boolean (json_object_get (state, "ending")) ||
      !number (state, "options", 0, UINT32_MAX) || !number (state, "skip", 0, INT64_MAX) ||
      !number (state, "requests", 0, INT64_MAX) || !number (state, "read", 0, INT64_MAX) ||
      !number (state, "written", 0, INT64_MAX) || !number (state, "unread", 0, MAX_BYTES) ||
      !number (state, "unsent", 0, MAX_BYTES) ||
      (uint64_t)value (state, "unread") + (uint64_t)value (state, "unsent") != size ||
      !json_is_array (parked) || json_array_size (parked) > 256 || !fit_together (parked, mode) ||
      json_is_object (export) != (phase == 2) ||
      (phase != 2 && (!json_is_null (long_write) || json_array_size (parked) > 0)))
    return fail (err, -EPROTO, "a connection's state makes no sense");
  if (json_is_object (export))
    r = check_export (set, export, mode, long_write, parked, err);
  if (r == 0 && json_is_object (meta))
    r = check_export (set, meta, mode, json_null (), parked, err);
  if (r < 0)
    return r;
  *saved = (struct saved_session){
    .state = json_incref (state),
    .bytes = bytes,
    .unread = (size_t)value (state, "unread"),
    .unsent = (size_t)value (state, "unsent"),
  };
  return 0;
}

/* ---- restoring ------------------------------------------------------------------------------- */

static struct request *
restore_request (struct session *s, const json_t *o)
{
  struct request *rq = request_new (s->shard);

  if (rq)
    *rq = (struct request){
      .session = s,
      .export = s->export,
      .mode = s->mode,
      .heap = true,
      .type = (uint16_t)value (o, "type"),
      .flags = (uint16_t)value (o, "flags"),
      .cookie = (uint64_t)value (o, "cookie"),
      .offset = (uint64_t)value (o, "offset"),
      .error_offset = (uint64_t)value (o, "offset"),
      .len = (uint64_t)value (o, "length"),
      .done = (uint64_t)value (o, "done"),
      .error = (int)value (o, "error"),
      .arrived = stats_clock (), /* of what came before, the other process has a record */
    };
  return rq;
}

static uint64_t
selected_contexts (const json_t *export)
{
  const json_t *c;
  uint64_t selected = 0;
  size_t i;

  json_array_foreach (json_object_get (export, "contexts"), i, c) selected |=
      UINT64_C (1) << json_integer_value (json_array_get (c, 0));
  return selected;
}

static int
restore_transmission (struct session *s, const json_t *state)
{
  const json_t *export = json_object_get (state, "export"), *o;
  struct export *x = find_export (s->shard->exports, export);
  size_t i;

  if (!x)
    return -ENOENT;
  int r = export_enter_again (x);
  if (r < 0) {
    export_put (x);
    return r;
  }
  s->export = x;
  s->meta_export = x->id;
  s->meta_selected = selected_contexts (export);
  transmission_begin (s);
  if (s->dropped)
    return -ENOMEM;
  o = json_object_get (state, "long-write");
  if (!json_is_null (o)) {
    struct request *whole = restore_request (s, o);
    if (!whole)
      return -ENOMEM;
    long_write_restore (s, whole);
  }
  json_array_foreach (json_object_get (state, "parked"), i, o)
  {
    struct request *rq = restore_request (s, o);
    if (!rq)
      return -ENOMEM;
    session_count_inflight (s, 1);
    batch_add (&s->parked, &rq->job);
    if (!read_is_in_pieces (rq))
      s->alone = rq; /* also if it has not begun, but waits for the others */
  }
  return 0;
}

int
session_restore (struct session *s, struct shard *shard, void (*notify) (struct session *),
                 uint64_t peer, const struct saved_session *saved)
{
  const json_t *state = saved->state, *meta = json_object_get (state, "meta");
  unsigned phase = word (state, "phase", phases, 3);

  session_init (s, shard, notify);
  s->peer = peer;
  s->arrived = stats_clock ();
  s->starved = saved->unread == 0;
  outq_clear (&s->out, &shard->cache); /* the greeting was sent long ago */
  s->mode = (enum reply_mode)word (state, "mode", modes, 3);
  s->no_zeroes = json_is_true (json_object_get (state, "no-zeroes"));
  s->fixed_newstyle = json_is_true (json_object_get (state, "fixed-newstyle"));
  s->ending = json_is_true (json_object_get (state, "ending"));
  s->n_options = (unsigned)value (state, "options");
  s->skip_left = (uint64_t)value (state, "skip");
  s->n_requests = (uint64_t)value (state, "requests");
  s->bytes_read = (uint64_t)value (state, "read");
  s->bytes_written = (uint64_t)value (state, "written");
  /* In pieces, lest it takes more memory than it did. */
  for (size_t at = 0, n; at < saved->unsent; at += n) {
    n = saved->unsent - at < LOW_PIECE ? saved->unsent - at : LOW_PIECE;
    session_send (s, saved->bytes + saved->unread + at, n);
  }
  if (phase == 2)
    return restore_transmission (s, state);
  if (phase == 1)
    handshake_expect_option (s);
  struct export *x = json_is_object (meta) ? find_export (shard->exports, meta) : NULL;
  if (x) {
    s->meta_export = x->id;
    s->meta_selected = selected_contexts (meta);
    export_put (x);
  }
  return 0;
}
