/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A connection, all of it in this process: see nbd-connection.h.
 */

#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "log.h"
#include "nbd-connection.h"
#include "fuzz.h"
#include "mem.h"
#include "real-file.h"
#include "session-state.h"
#include "skeleton.h"

#define TURN_BUDGET (1 << 20)
#define MAX_SERVER  (16u << 20)
#define MAX_MEMORY  (4u << 20)
#define MAX_MOVED   (24u << 20) /* bytes, of which the client then has enough */
#define MAX_HANDED  64u         /* times: all that is queued is copied each time */
#define MAX_TURNS   2000u       /* in which nothing happens */

/* ---- images ---------------------------------------------------------------------------------- */

const char *const connection_image[CONNECTION_IMAGES] = { "v3",          "bitmaps",    "compressed",
                                                          "subclusters", "everything", "large" };

static struct mem_store store;
static struct mem_file *image;
static struct bytes made[CONNECTION_IMAGES], contents[CONNECTION_IMAGES];
static const struct q_file_opener real_opener = { real_file_open, &store };

static void
read_contents (struct bytes *to)
{
  struct q_open_options o;
  struct q_error err;
  struct q_image *img;

  q_open_options_init (&o);
  o.opener = &store.opener;
  o.lock = Q_LOCK_OFF;
  o.read_only = true;
  if (q_open (&img, "image", &o, &err) < 0)
    die ("%s", err.text);
  to->n = q_size (img) < (1u << 20) ? q_size (img) : 1u << 20;
  to->data = xalloc (to->n);
  if (q_pread (img, to->data, 0, to->n) < 0)
    die ("reading failed");
  q_close (&img, &err);
}

static void
make_images (void)
{
  if (image)
    return;
  log_set_level ("error");
  mem_store_init (&store);
  skeleton_surroundings (&store);
  image = mem_add (&store, "image");
  for (size_t i = 0; i < CONNECTION_IMAGES; ++i)
    for (unsigned k = 0; k < n_skeletons; ++k)
      if (strcmp (skeletons[k].name, connection_image[i]) == 0) {
        skeleton_make (&skeletons[k], &store);
        bytes_add (&made[i], image->data, image->size);
        read_contents (&contents[i]);
      }
}

static void
open_export (struct exports *set, const struct choice *c)
{
  static const char *bitmaps[] = { "b1" };
  struct export_options eo = { .name = "x", .description = "fuzz" };
  const struct bytes *b = &made[c->image % CONNECTION_IMAGES];
  struct q_error err = { "" };

  if (c->bits & REAL_FILE)
    real_file_set (b->data, b->n);
  else {
    image->limit = 0;
    mem_set (image, b->data, b->n);
    image->limit = b->n + (c->limit ? c->limit * 512u : 4u << 20);
  }
  q_open_options_init (&eo.source.open);
  eo.source.filename = (char *)"image";
  eo.source.open.opener = c->bits & REAL_FILE ? &real_opener : &store.opener;
  eo.source.open.lock = Q_LOCK_OFF;
  eo.source.open.discard = true;
  eo.source.open.read_only = c->bits & READ_ONLY;
  eo.source.size = SOURCE_TO_END;
  eo.source.compress = c->bits & COMPRESS;
  eo.source.write_through = c->bits & WRITE_THROUGH;
  eo.source.detect_zeroes = (enum detect_zeroes) (c->detect % 3);
  eo.allocation_depth = true;
  eo.resizable = c->bits & RESIZABLE;
  eo.min_block = 1u << c->min_block % 13;
  eo.multi_conn = true;
  if (strcmp (connection_image[c->image % CONNECTION_IMAGES], "bitmaps") == 0) {
    eo.bitmaps = bitmaps;
    eo.n_bitmaps = 1;
  }
  if (exports_add (set, &eo, &err) < 0)
    die ("%s", err.text);
}

/* ---- the connection -------------------------------------------------------------------------- */

static void
wake (struct mailbox *m)
{
  (void)m;
}

static void
notify (struct session *s)
{
  (void)s;
}

static size_t
piece (struct connection *w, uint8_t most)
{
  /* Bytes one by one are for clients that have few, and are sent few. */
  return 1 + (w->client.n + w->moved) / 2048 +
         (size_t)random_below (&w->random, UINT64_C (1) << most % 20);
}

/* N bytes at P, which may be borrowed from a file.  False: they are gone. */
static bool
send_bytes (struct connection *w, const void *p, size_t n)
{
  if (w->server.n >= MAX_SERVER) {
    w->cut = true;
    return true;
  }
  if (w->c->bits & REAL_FILE)
    return real_send (&w->server, p, n);
  bytes_add (&w->server, p, n);
  return true;
}

/* Takes some of what is to be sent. */
static void
send_some (struct connection *w)
{
  size_t room = piece (w, w->c->out);
  struct iovec iov[8];
  int n = outq_iov (&w->s.out, iov, 8);
  size_t taken = 0;

  for (int i = 0; i < n && taken < room; ++i) {
    size_t k = iov[i].iov_len < room - taken ? iov[i].iov_len : room - taken;

    /* Nobody else has the file. */
    if (!send_bytes (w, iov[i].iov_base, k))
      broken ("%zu bytes are to be sent from where there is no memory", k);
    taken += k;
  }
  w->moved += taken;
  if (taken > 0)
    outq_sent (&w->s.out, &w->shard.cache, taken);
}

/* Gives the session what is held, up to where it has been received. */
static void
take_in (struct connection *w)
{
  const uint8_t *p = w->client.data;

  w->held_from += session_input (&w->s, p + w->held_from, w->sent - w->held_from);
  while (session_next_slice (&w->s)) {
    send_some (w);
    w->held_from += session_input (&w->s, p + w->held_from, w->sent - w->held_from);
  }
}

/* Receives some more. */
static void
receive_some (struct connection *w)
{
  size_t n = piece (w, w->c->in), left = w->client.n - w->sent, direct;
  uint8_t *payload;

  if (left == 0) {
    session_eof (&w->s);
    return;
  }
  n = n < left ? n : left;
  direct = w->sent == w->held_from ? session_payload (&w->s, &payload) : 0;
  if (direct > 0 && (w->random & 1)) {
    n = n < direct ? n : direct;
    memcpy (payload, w->client.data + w->sent, n);
    w->sent += n;
    w->held_from = w->sent;
    session_payload_received (&w->s, n);
    take_in (w);
    return;
  }
  w->sent += n;
  take_in (w);
}

static void
check_memory (const struct connection *w)
{
  /* The bound that session.h gives. */
  size_t most = w->shard.cache.limit + SESSION_LOW;

  /* A lie may bring as much as a takeover lets it. */
  if (!w->lied && w->shard.cache.outstanding > most)
    broken ("%zu bytes of memory for one client", w->shard.cache.outstanding);
}

/* What has been received and not been carried out, as it is handed over, is what the client sent:
 * but for a flag, that a client may have left out. */
static void
check_unread (const struct connection *w, const struct saved_session *saved)
{
  if (saved->unread > w->sent)
    broken ("%zu bytes are handed over, of %zu", saved->unread, w->sent);
  if (saved->unread == 0)
    return;
  const uint8_t *sent = w->client.data + w->sent - saved->unread;
  for (size_t i = 0; i < saved->unread; ++i)
    if (sent[i] != saved->bytes[i] && (i != offsetof (struct nbd_extended_request, flags) + 1 ||
                                       (sent[i] ^ saved->bytes[i]) != NBD_CMD_FLAG_PAYLOAD_LEN))
      broken ("byte %zu of %zu that are handed over is not the client's", i, saved->unread);
}

/* The client's bytes from AT on, of which there may be none at all. */
static const uint8_t *
client_from (const struct connection *w, size_t at)
{
  return at < w->client.n ? w->client.data + at : NULL;
}

/* What a session comes to that goes on from CARGO, which is a lie: the unread bytes are not the
 * client's any more. */
static void
take_lies (struct connection *w, const struct saved_session *taken)
{
  struct bytes client = { 0 };

  bytes_add (&client, taken->bytes, taken->unread);
  bytes_add (&client, client_from (w, w->sent), w->client.n - w->sent);
  bytes_free (&w->client);
  w->client = client;
  w->sent = taken->unread;
  w->held_from = 0;
}

/* A session that has just been restored is saved again. */
static void
check_again (const struct connection *w, const struct saved_session *taken)
{
  struct saved_session again;
  struct q_error err = { "" };

  if (session_save (&w->s, taken->bytes, taken->unread, &again, &err) < 0)
    broken ("a session that was restored cannot be saved: %s", err.text);
  if (!json_equal (again.state, taken->state) || again.unread != taken->unread ||
      again.unsent != taken->unsent ||
      memcmp (again.bytes, taken->bytes, taken->unread + taken->unsent) != 0)
    broken ("a session that was restored is another one: %s",
            json_dumps (again.state, JSON_COMPACT));
  saved_session_free (&again);
}

/* A new session goes on with CARGO. */
static void
go_on (struct connection *w, struct cargo *cargo, const char *text)
{
  struct saved_session taken = { .state = NULL };
  struct q_error err = { "" };
  int r = saved_session_check (&w->exports, cargo->state, cargo->bytes, cargo->size, &taken, &err);

  if (r == 0) {
    cargo->bytes = NULL;
    r = session_restore (&w->s, &w->shard, notify, 0, &taken);
    if (r < 0)
      session_destroy (&w->s);
  } else if (err.text[0] == '\0')
    broken ("a state is refused, and nothing is said");
  if (r < 0 && cargo->honest)
    broken ("%s: %s", err.text, text);
  w->over = r < 0;
  w->lied |= !cargo->honest;
  if (r == 0 && cargo->honest) {
    check_again (w, &taken);
    w->held_from = w->sent - taken.unread;
  } else if (r == 0)
    take_lies (w, &taken);
  saved_session_free (&taken);
}

/* Whatever is being done for the session is done: some of it, or all. */
static void
carry_out (struct connection *w, bool all)
{
  bool any;

  do {
    any = real_ring_turn (all);
    shard_submit (&w->shard);
    shard_complete (&w->shard);
  } while (all && any);
}

/* Another process goes on (takeover.h): all that it knows is what is saved. */
static void
hand_over (struct connection *w)
{
  struct saved_session saved;
  struct cargo cargo = { .honest = !w->lied };
  struct q_error err = { "" };

  carry_out (w, true);
  session_conclude (&w->s);
  if (w->s.dropped)
    return;
  if (session_save (&w->s, client_from (w, w->held_from), w->sent - w->held_from, &saved, &err) < 0)
    broken ("a session cannot be saved: %s", err.text);
  if (!w->lied)
    check_unread (w, &saved);
  if (saved.unsent != w->s.out.bytes)
    broken ("%zu bytes are to be sent, of %zu", saved.unsent, w->s.out.bytes);
  char *text = json_dumps (saved.state, JSON_COMPACT);
  if (w->carry)
    w->carry (w, text, saved.bytes, saved.unread + saved.unsent, &cargo);
  else {
    cargo.state = json_loads (text, 0, NULL);
    cargo.bytes = saved.bytes;
    cargo.size = saved.unread + saved.unsent;
    saved.bytes = NULL;
  }
  session_destroy (&w->s);
  go_on (w, &cargo, text);
  saved_session_free (&saved);
  json_decref (cargo.state);
  free (cargo.bytes);
  free (text);
}

void
connection_run (struct connection *w)
{
  size_t before = 0;

  for (unsigned turn = 0, idle = 0;; ++turn, ++idle) {
    enum session_state state = session_state (&w->s);

    if (w->moved + w->sent != before)
      idle = 0;
    before = w->moved + w->sent;
    if (idle == MAX_TURNS)
      broken ("the session does not end: state %d, %zu bytes to be sent, %u requests in flight",
              (int)state, w->s.out.bytes, w->s.inflight);
    if (state == SESSION_DROP)
      w->cut = true;
    if (state == SESSION_DROP || (state == SESSION_END && w->s.out.bytes == 0))
      return;
    if (state == SESSION_TLS)
      broken ("a session without TLS wants to begin it");
    w->s.budget = TURN_BUDGET;
    session_begin_turn (&w->s, (w->c->bits & REAL_FILE) && (w->c->more & BORROW));
    if (state == SESSION_READ)
      receive_some (w);
    else if (state == SESSION_READY)
      take_in (w);
    else
      send_some (w);
    if (w->s.may_borrow || (w->random & 2)) /* what is borrowed is given back with the turn */
      send_some (w);
    session_end_turn (&w->s);
    session_resume (&w->s);
    carry_out (w, false);
    check_memory (w);
    if (w->c->handover > 0 && random_below (&w->random, w->c->handover + 1u) == 0 &&
        w->handed++ < MAX_HANDED)
      hand_over (w);
    if (w->over) {
      w->cut = true;
      return;
    }
    if ((w->c->bits & STOPPING) && turn == 3)
      w->shard.stopping = true;
    if (((w->c->bits & EOF_EARLY) && turn == 40) || w->moved > MAX_MOVED) {
      session_drop (&w->s);
      w->cut = true;
    }
  }
}

/* ---- from beginning to end ------------------------------------------------------------------- */

void
connection_begin (struct connection *w, const struct choice *c)
{
  make_images ();
  *w = (struct connection){ .c = c, .random = random_seed (c->seed) };
  exports_init (&w->exports);
  open_export (&w->exports, c);
  w->pool = pool_new (0);
  shard_init (&w->shard, &w->exports, w->pool, c->bits & LITTLE_MEMORY ? 65536 : MAX_MEMORY, wake);
  real_begin (c->seed, c->more & MISSES);
  if ((c->bits & REAL_FILE) && (c->more & RING))
    w->shard.ring = real_ring ();
  session_init (&w->s, &w->shard, notify);
}

static void
check_image (const struct connection *w)
{
  const struct q_check_options co = { .threads = 1 };
  struct q_check_result r = { 0 };
  struct q_open_options o;
  struct q_error err = { "" };
  struct q_image *img;
  bool real = w->c->bits & REAL_FILE;

  q_open_options_init (&o);
  o.opener = real ? &real_opener : &store.opener;
  o.lock = Q_LOCK_OFF;
  o.read_only = o.metadata_only = true;
  if (q_open (&img, "image", &o, &err) < 0 || q_check_image (img, &co, &r, &err) < 0)
    broken ("the image cannot be opened and checked at the end: %s", err.text);
  /* Where there was room for all of it nothing is lost. */
  bool room = real && q_size (img) < REAL_FILE_MAX / 2;
  q_close (&img, &err);
  if (r.corruptions || r.check_errors || (r.leaks && room))
    broken ("the image has %llu corruptions, %llu errors and %llu leaks",
            (unsigned long long)r.corruptions, (unsigned long long)r.check_errors,
            (unsigned long long)r.leaks);
}

void
connection_end (struct connection *w)
{
  carry_out (w, true);
  if (!w->over)
    session_destroy (&w->s);
  shard_complete (&w->shard);
  if (w->shard.cache.outstanding != 0)
    broken ("%zu bytes are left when the session has ended", w->shard.cache.outstanding);
  shard_destroy (&w->shard);
  pool_free (w->pool);
  exports_close (&w->exports);
  check_image (w);
  bytes_free (&w->client);
  bytes_free (&w->server);
}

const struct bytes *
connection_disk (const struct connection *w)
{
  return &contents[w->c->image % CONNECTION_IMAGES];
}
