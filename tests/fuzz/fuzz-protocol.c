/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A client's bytes, from the first one on, given to a session (session.h) in pieces, on one thread,
 * with an image in memory.
 *
 * The input begins with 16 bytes that choose the export, how the bytes are cut, both coming and
 * going, and how often another process goes on with the session.  Then come records, from which the
 * client's bytes are put together: options and requests that are well-formed but for what the
 * record says, and bytes as they are.
 *
 * The oracle: what comes back is an answer (judge.h); the session always goes on or ends; and no
 * memory is left when it has ended.
 */

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "export.h"
#include "fuzz.h"
#include "judge.h"
#include "log.h"
#include "nbd.h"
#include "session-state.h"
#include "session.h"
#include "skeleton.h"

#define TURN_BUDGET (1 << 20)
#define MAX_CLIENT  (12u << 20)
#define MAX_SERVER  (16u << 20)
#define MAX_MEMORY  (4u << 20)
#define MAX_MOVED   (24u << 20) /* bytes, of which the client then has enough */
#define MAX_TURNS   2000u       /* in which nothing happens */

enum start { RAW, EXPORT_NAME, STRUCTURED, EXTENDED, STARTS };

struct choice {
  uint8_t start; /* what the client has said before the records */
  uint8_t image;
  uint8_t bits;
  uint8_t min_block;
  uint8_t seed;    /* of the cuts */
  uint8_t in, out; /* the longest piece: 1 << these */
  uint8_t detect;
  uint8_t limit; /* the disk is full */
  uint8_t spare[6];
  uint8_t handover; /* not after so many turns on average, and then after one; 0: never */
};

enum choice_bits {
  READ_ONLY = 1,
  RESIZABLE = 2,
  COMPRESS = 4,
  WRITE_THROUGH = 8,
  LITTLE_MEMORY = 16,
  STOPPING = 32,
  EOF_EARLY = 64,
};

/* ---- images ---------------------------------------------------------------------------------- */

static const char *const image_names[] = { "v3",          "bitmaps",    "compressed",
                                           "subclusters", "everything", "large" };
#define N_IMAGES (sizeof image_names / sizeof image_names[0])

static struct mem_store store;
static struct mem_file *image;
static struct bytes made[N_IMAGES], contents[N_IMAGES];

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
  for (size_t i = 0; i < N_IMAGES; ++i)
    for (unsigned k = 0; k < n_skeletons; ++k)
      if (strcmp (skeletons[k].name, image_names[i]) == 0) {
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
  const struct bytes *b = &made[c->image % N_IMAGES];
  struct q_error err = { "" };

  image->limit = 0;
  mem_set (image, b->data, b->n);
  image->limit = b->n + (c->limit ? c->limit * 512u : 4u << 20);
  q_open_options_init (&eo.source.open);
  eo.source.filename = (char *)"image";
  eo.source.open.opener = &store.opener;
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
  if (strcmp (image_names[c->image % N_IMAGES], "bitmaps") == 0) {
    eo.bitmaps = bitmaps;
    eo.n_bitmaps = 1;
  }
  if (exports_add (set, &eo, &err) < 0)
    die ("%s", err.text);
}

/* ---- what the client sends ------------------------------------------------------------------- */

static void
add16 (struct bytes *b, uint16_t v)
{
  v = htobe16 (v);
  bytes_add (b, &v, sizeof v);
}

static void
add32 (struct bytes *b, uint32_t v)
{
  v = htobe32 (v);
  bytes_add (b, &v, sizeof v);
}

static void
add64 (struct bytes *b, uint64_t v)
{
  v = htobe64 (v);
  bytes_add (b, &v, sizeof v);
}

static void
add_option (struct bytes *b, uint32_t option, const struct bytes *data)
{
  add64 (b, NBD_OPTION_MAGIC);
  add32 (b, option);
  add32 (b, (uint32_t)data->n);
  bytes_add (b, data->data, data->n);
}

static void
add_string (struct bytes *b, const char *s)
{
  add32 (b, (uint32_t)strlen (s));
  bytes_add (b, s, strlen (s));
}

/* GO or INFO; LIST_ or SET_META_CONTEXT. */
static void
add_named (struct bytes *b, uint32_t option, uint8_t how)
{
  static const char *const names[] = { "x", "", "y", "x\1" };
  static const char *const queries[] = { "base:allocation",      "qemu:", "qemu:allocation-depth",
                                         "qemu:dirty-bitmap:b1", "base:", "?",
                                         "qemu:dirty-bitmap:",   "" };
  struct bytes data = { 0 };

  add_string (&data, how & 0x80 ? names[how / 16 % 4] : "x");
  if (option == NBD_OPT_GO || option == NBD_OPT_INFO) {
    add16 (&data, how & 3);
    for (unsigned i = 0; i < (how & 3u); ++i)
      add16 (&data, (uint16_t)(how & 4 ? i + 1 : NBD_INFO_BLOCK_SIZE));
  } else {
    add32 (&data, how & 7);
    for (unsigned i = 0; i < (how & 7u); ++i)
      add_string (&data, queries[(how / 8 + i) % 8]);
  }
  add_option (b, option, &data);
  bytes_free (&data);
}

static void
add_start (struct bytes *b, enum start start)
{
  struct bytes none = { 0 }, name = { 0 };

  if (start == RAW)
    return;
  add32 (b, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  if (start == EXPORT_NAME) {
    bytes_add (&name, "x", 1);
    add_option (b, NBD_OPT_EXPORT_NAME, &name);
    bytes_free (&name);
    return;
  }
  add_option (b, start == EXTENDED ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY, &none);
  add_named (b, NBD_OPT_SET_META_CONTEXT, 4);
  add_named (b, NBD_OPT_GO, 1);
}

/* A number that is interesting on a disk. */
static uint64_t
number (struct input *in, uint64_t size)
{
  uint8_t how = take8 (in), v = take8 (in);

  switch (how & 7) {
  case 0:
    return (uint64_t)v << 9;
  case 1:
    return v;
  case 2:
    return size - v;
  case 3:
    return (uint64_t)v << (how >> 3);
  case 4:
    return UINT64_MAX - v;
  case 5:
    return UINT64_C (1) << (v & 63);
  case 6:
    return take32 (in);
  default:
    return size / 256 * v;
  }
}

static void
add_request (struct bytes *b, struct input *in, bool extended, uint64_t size, uint64_t cookie)
{
  uint8_t what = take8 (in), how = take8 (in), fill = take8 (in);
  uint16_t type = what % 10, flags = how & 0x1f;
  uint64_t offset = number (in, size), len = number (in, size), payload = 0;
  uint8_t buf[4096];

  if (extended && (type == NBD_CMD_WRITE) != !!(how & 0x80))
    flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
  if (what & 0x80)
    len %= 65536; /* most writes are short */
  if (type == NBD_CMD_FLUSH && !(how & 0x40))
    offset = len = 0;
  if (extended ? flags & NBD_CMD_FLAG_PAYLOAD_LEN : type == NBD_CMD_WRITE)
    payload = extended ? len : (uint32_t)len;
  add32 (b, extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
  add16 (b, flags);
  add16 (b, type);
  add64 (b, cookie);
  add64 (b, offset);
  if (extended)
    add64 (b, len);
  else
    add32 (b, (uint32_t)len);
  if (type == NBD_CMD_BLOCK_STATUS && payload > 0 && payload < 64) {
    add64 (b, number (in, size));
    for (uint64_t i = 8; i + 4 <= payload; i += 4)
      add32 (b, take8 (in) % 5);
    return;
  }
  memset (buf, fill, sizeof buf);
  for (uint64_t n; payload > 0 && b->n < MAX_CLIENT; payload -= n) {
    n = payload < sizeof buf ? payload : sizeof buf;
    bytes_add (b, buf, n);
  }
}

static void
add_literal (struct bytes *b, struct input *in)
{
  size_t n = take8 (in);

  n = n < in->left ? n : in->left;
  bytes_add (b, in->at, n);
  in->at += n;
  in->left -= n;
}

static void
assemble (struct bytes *b, struct input *in, const struct choice *c, uint64_t size)
{
  static const uint32_t named[] = { NBD_OPT_GO, NBD_OPT_INFO, NBD_OPT_LIST_META_CONTEXT,
                                    NBD_OPT_SET_META_CONTEXT };
  enum start start = (enum start) (c->start % STARTS);
  uint64_t cookie = 0x1000;

  add_start (b, start);
  while (in->left > 0 && b->n < MAX_CLIENT) {
    uint8_t record = take8 (in);
    struct bytes data = { 0 };

    switch (record & 15) {
    case 0:
      add_literal (b, in);
      break;
    case 1:
      add_literal (&data, in);
      add_option (b, record >> 4, &data);
      break;
    case 2:
      add_option (b, record >> 4, &data);
      break;
    case 3:
      add_named (b, named[record / 16 % 4], take8 (in));
      break;
    case 4:
      add32 (b, record >> 4); /* client flags */
      break;
    case 5:
      add_request (b, in, start != EXTENDED, size, ++cookie); /* of the other kind */
      break;
    default:
      add_request (b, in, start == EXTENDED, size, ++cookie);
      break;
    }
    bytes_free (&data);
  }
}

/* ---- the connection -------------------------------------------------------------------------- */

struct wire {
  struct shard shard;
  struct session s;
  const struct choice *c;
  const struct bytes *client;
  size_t sent;      /* of the client's bytes, given to the session, or ... */
  size_t held_from; /* ... received, and held from here on */
  struct bytes server;
  bool cut;
  size_t moved; /* bytes, both ways */
  uint64_t random;
};

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
piece (struct wire *w, uint8_t most)
{
  /* Bytes one by one are for clients that have few, and are sent few. */
  return 1 + (w->client->n + w->moved) / 2048 +
         (size_t)random_below (&w->random, UINT64_C (1) << most % 20);
}

/* Takes some of what is to be sent. */
static void
send_some (struct wire *w)
{
  size_t room = piece (w, w->c->out);
  struct iovec iov[8];
  int n = outq_iov (&w->s.out, iov, 8);
  size_t taken = 0;

  for (int i = 0; i < n && taken < room; ++i) {
    size_t k = iov[i].iov_len < room - taken ? iov[i].iov_len : room - taken;

    if (w->server.n < MAX_SERVER)
      bytes_add (&w->server, iov[i].iov_base, k);
    else
      w->cut = true;
    taken += k;
  }
  w->moved += taken;
  if (taken > 0)
    outq_sent (&w->s.out, &w->shard.cache, taken);
}

/* Gives the session what is held, up to where it has been received. */
static void
take_in (struct wire *w)
{
  const uint8_t *p = w->client->data;

  w->held_from += session_input (&w->s, p + w->held_from, w->sent - w->held_from);
  while (session_next_slice (&w->s)) {
    send_some (w);
    w->held_from += session_input (&w->s, p + w->held_from, w->sent - w->held_from);
  }
}

/* Receives some more. */
static void
receive_some (struct wire *w)
{
  size_t n = piece (w, w->c->in), left = w->client->n - w->sent, direct;
  uint8_t *payload;

  if (left == 0) {
    session_eof (&w->s);
    return;
  }
  n = n < left ? n : left;
  direct = w->sent == w->held_from ? session_payload (&w->s, &payload) : 0;
  if (direct > 0 && (w->random & 1)) {
    n = n < direct ? n : direct;
    memcpy (payload, w->client->data + w->sent, n);
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
check_memory (const struct wire *w)
{
  /* What is queued and in flight, and one more request of any length, twice if its buffer is
   * rounded up. */
  size_t most = (16u << 20) + (64u << 20) + (1u << 20);

  if (w->shard.cache.outstanding > most)
    broken ("%zu bytes of memory for one client", w->shard.cache.outstanding);
}

/* What has been received and not been carried out, as it is handed over, is what the client sent:
 * but for a flag, that a client may have left out. */
static void
check_unread (const struct wire *w, const struct saved_session *saved)
{
  if (saved->unread > w->sent)
    broken ("%zu bytes are handed over, of %zu", saved->unread, w->sent);
  const uint8_t *sent = w->client->data + w->sent - saved->unread;
  for (size_t i = 0; i < saved->unread; ++i)
    if (sent[i] != saved->bytes[i] && (i != offsetof (struct nbd_extended_request, flags) + 1 ||
                                       (sent[i] ^ saved->bytes[i]) != NBD_CMD_FLAG_PAYLOAD_LEN))
      broken ("byte %zu of %zu that are handed over is not the client's", i, saved->unread);
}

/* Another process goes on (takeover.h): all that it knows is what is saved. */
static void
hand_over (struct wire *w)
{
  struct saved_session saved, taken;
  struct q_error err = { "" };
  size_t unsent = w->s.out.bytes;

  if (w->s.dropped)
    return;
  if (session_save (&w->s, w->client->data + w->held_from, w->sent - w->held_from, &saved, &err) <
      0)
    broken ("a session cannot be saved: %s", err.text);
  check_unread (w, &saved);
  char *text = json_dumps (saved.state, JSON_COMPACT);
  json_t *state = json_loads (text, 0, NULL);
  session_destroy (&w->s);
  if (saved_session_check (w->shard.exports, state, saved.bytes, saved.unread + saved.unsent,
                           &taken, &err) < 0)
    broken ("%s: %s", err.text, text);
  saved.bytes = NULL;
  if (session_restore (&w->s, &w->shard, notify, 0, &taken) < 0 || w->s.out.bytes != unsent)
    broken ("a session cannot be restored: %s", text);
  w->held_from = w->sent - taken.unread;
  saved_session_free (&saved);
  saved_session_free (&taken);
  json_decref (state);
  free (text);
}

/* Until the session has ended. */
static void
run (struct wire *w)
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
    if (state == SESSION_DROP || (state == SESSION_END && w->s.out.bytes == 0))
      return;
    if (state == SESSION_TLS)
      broken ("a session without TLS wants to begin it");
    w->s.budget = TURN_BUDGET;
    session_begin_turn (&w->s, false);
    if (state == SESSION_READ)
      receive_some (w);
    else if (state == SESSION_READY)
      take_in (w);
    else
      send_some (w);
    if (w->random & 2)
      send_some (w);
    session_end_turn (&w->s);
    session_resume (&w->s);
    shard_submit (&w->shard);
    shard_complete (&w->shard);
    check_memory (w);
    if (w->c->handover > 0 && random_below (&w->random, w->c->handover + 1u) == 0)
      hand_over (w);
    if ((w->c->bits & STOPPING) && turn == 3)
      w->shard.stopping = true;
    if (((w->c->bits & EOF_EARLY) && turn == 40) || w->moved > MAX_MOVED) {
      session_drop (&w->s);
      w->cut = true;
    }
  }
}

int
LLVMFuzzerTestOneInput (const uint8_t *bytes, size_t size)
{
  struct input in = { bytes, size };
  struct exports exports;
  struct bytes client = { 0 };
  struct wire w = { 0 };
  struct choice c;

  fuzz_begin ();
  make_images ();
  take (&in, &c, sizeof c);
  exports_init (&exports);
  open_export (&exports, &c);
  assemble (&client, &in, &c, exports.first->size);

  w.c = &c;
  w.client = &client;
  w.random = random_seed (c.seed);
  struct pool *pool = pool_new (0);
  shard_init (&w.shard, &exports, pool, c.bits & LITTLE_MEMORY ? 65536 : MAX_MEMORY, wake);
  session_init (&w.s, &w.shard, notify);
  run (&w);
  if (session_state (&w.s) == SESSION_DROP)
    w.cut = true;

  const struct bytes *disk = &contents[c.image % N_IMAGES];
  struct trial t = { .client = &client,
                     .server = &w.server,
                     .cut = w.cut || (c.bits & STOPPING),
                     .disk = disk->data,
                     .size = disk->n };
  judge (&t);

  session_destroy (&w.s);
  shard_complete (&w.shard);
  if (w.shard.cache.outstanding != 0)
    broken ("%zu bytes are left when the session has ended", w.shard.cache.outstanding);
  shard_destroy (&w.shard);
  pool_free (pool);
  exports_close (&exports);
  bytes_free (&client);
  bytes_free (&w.server);
  return 0;
}

/* ---- inputs ---------------------------------------------------------------------------------- */

void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  /* Some of each: read, write, zeroes, discard, flush, block status, cache, resize. */
  static const uint8_t plain[] = { 6, 0,    0, 1, 0, 0, 0, 8,   6, 0x81, 0, 7, 0, 3, 0, 9,
                                   6, 6,    0, 0, 0, 4, 0, 8,   6, 4,    0, 0, 0, 0, 0, 64,
                                   6, 7,    0, 0, 0, 0, 7, 255, 6, 3,    0, 0, 0, 0, 0, 0,
                                   6, 0,    4, 0, 0, 0, 7, 9,   6, 5,    0, 0, 0, 0, 0, 8,
                                   6, 0x88, 0, 0, 2, 0, 0, 0,   6, 0,    0, 0, 0, 1, 7, 200 };
  static const uint8_t talk[] = { 0x34, 0x82, 0x33, 2, 0x32, 0xb2, 0x23, 0x40, 0x33, 0x0c,
                                  0x13, 0x83, 0x03, 1, 6,    0,    0,    1,    0,    0,
                                  0,    8,    6,    2, 0,    0,    0,    0,    0,    0 };
  uint8_t input[256];
  char name[64];

  for (unsigned start = 0; start < STARTS; ++start)
    for (unsigned k = 0; k < 2 * N_IMAGES; ++k) {
      unsigned i = k % N_IMAGES;
      struct choice c = { .start = (uint8_t)start,
                          .image = (uint8_t)i,
                          .handover = (uint8_t)(k / N_IMAGES),
                          .bits = (uint8_t)(i == 0   ? RESIZABLE
                                            : i == 2 ? COMPRESS
                                                     : 0),
                          .in = (uint8_t)(i * 3 + 1),
                          .out = (uint8_t)(18 - i * 3),
                          .detect = (uint8_t)i };
      const uint8_t *p = start == RAW ? talk : plain;
      size_t n = start == RAW ? sizeof talk : sizeof plain;

      memcpy (input, &c, sizeof c);
      memcpy (input + sizeof c, p, n);
      snprintf (name, sizeof name, "start%u-%s%s", start, image_names[i],
                c.handover ? "-handed" : "");
      emit (opaque, name, input, sizeof c + n);
    }
  /* A write of 6 MiB, which is taken in in pieces, and one that is compressed. */
  for (unsigned k = 0; k < 8; ++k) {
    unsigned i = k % 4;
    static const uint8_t writes[] = { 6, 1, 0, 7, 0, 1, 163, 6, 6, 0, 0, 0, 0, 1, 0, 8 };
    struct choice c = { .start = (uint8_t)(EXPORT_NAME + i % 3),
                        .image = i < 3 ? 5 : 2,
                        .bits = i < 3 ? 0 : COMPRESS,
                        .in = 17,
                        .out = 17,
                        .handover = (uint8_t)(k / 4) };

    memcpy (input, &c, sizeof c);
    memcpy (input + sizeof c, writes, sizeof writes);
    if (i == 3)
      input[sizeof c + 6] = 3 | 15 << 3, input[sizeof c + 7] = 1; /* 32 KiB */
    snprintf (name, sizeof name, "long%u%s", i, c.handover ? "-handed" : "");
    emit (opaque, name, input, sizeof c + sizeof writes);
  }
}
