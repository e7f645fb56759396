/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Many clients at once on one export, and a proof that every byte is one that it may be.
 *
 *     stress [OPTION...] URI
 *       --clients=N     connections, a thread each (8)
 *       --depth=N       requests in flight on each (8)
 *       --seconds=N     how long to go on (10); a round ends, and all is verified, every second
 *       --seed=N        of the requests; threads still interleave as they like
 *       --area=BYTES    how much of the export is used (32 MiB)
 *       --no-trim       no discards
 *       --hangups       clients close their connection now and then with requests in flight
 *       --enospc        writes may fail with ENOSPC
 *       --disconnect    print "stress: running", expect the server to go away, then read a line
 *                       with a new URI from stdin and verify through that
 *     Exit status 0 if everything was as it may be.  Prints figures, one line.
 *
 * The area is cut into stripes of three kinds, so that each cluster meets each kind of neighbour:
 * stripes of one owner, stripes in which blocks of all clients alternate, and stripes that
 * everybody writes.  Each 8-byte word that a request writes is made from the request's identity and
 * the word's place.
 *
 * What may be found.  A global clock ticks when a request is sent and when its reply is in.  When a
 * round has ended and nothing is in flight, a word may come from any write W of the round (zeroing
 * is a write of zeros) unless another write of that sector was sent after W's reply; from what was
 * there before the round if no write of the sector was acknowledged; and it may be zero if a
 * discard touched the sector that no later write superseded.  A request without a proper reply
 * (hang-up, ENOSPC) may or may not have happened: it may be found, and it supersedes nothing. After
 * a hang-up it may also happen later, in the next rounds.  On sectors that it alone writes, and
 * where no such request may come in between, a client knows exactly what is there, and reads them
 * while the others write.
 */

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#define SECTOR      512
#define BLOCK       4096         /* of alternating owners */
#define STRIPE      (192 * 1024) /* no multiple or divisor of common cluster sizes */
#define MAX_CLIENTS 64
#define MAX_DEPTH   64
#define MAX_REQUEST (128 * 1024)
#define LATE_ROUNDS 3 /* in which a request of before a hang-up may happen */
#define NEVER       UINT64_MAX

enum op { OP_WRITE, OP_ZERO, OP_TRIM, OP_READ, OP_FLUSH };

/* One write, zero or discard of the current round, or without an answer of one before. */
struct record {
  uint64_t id;           /* what its words are made from; 0 writes zeros */
  uint64_t sent, done;   /* clock; done is NEVER if nobody knows */
  uint32_t first, count; /* sectors */
  bool acknowledged;
  unsigned rounds; /* that it has seen */
  enum op op;
};

struct slot {
  bool busy;
  enum op op;
  size_t record; /* index in the client's records; not for reads and flushes */
  uint32_t first, count;
  bool exact; /* a read of sectors whose contents are known */
  struct client *client;
  uint8_t buf[MAX_REQUEST];
  uint8_t want[MAX_REQUEST];
};

struct client {
  unsigned index;
  pthread_t thread;
  uint64_t rng;
  struct nbd_handle *nbd;
  struct record *records;
  size_t n_records, cap_records;
  uint64_t requests, hangups, enospc;
  struct slot *slots;
};

static unsigned n_clients = 8, depth = 8, seconds = 10;
static uint64_t seed = 1, area = 32 << 20;
static bool no_trim, hangups, allow_enospc, disconnect;
static const char *uri;

static struct client clients[MAX_CLIENTS];
static atomic_uint_fast64_t ticks = 1;
static atomic_uint_fast64_t next_id = 1;
static atomic_bool round_over, gone;
static pthread_barrier_t barrier;
static volatile bool finished; /* changes only while all are at the barrier */
static bool can_trim, can_fua;

/* What the disk held when the round began, then what private writers did to their sectors since.
 * certain[] says for which sectors that is exact, doubtful[] where a request of before a hang-up
 * may still come; all belong to the owner of the sector while a round goes on, and to the main
 * thread between rounds. */
static uint8_t *model;
static uint8_t *certain;
static uint8_t *doubtful;

static void __attribute__ ((format (printf, 1, 2), noreturn)) die (const char *fmt, ...)
{
  va_list args;

  fprintf (stderr, "stress: seed %" PRIu64 ": ", seed);
  va_start (args, fmt);
  vfprintf (stderr, fmt, args);
  va_end (args);
  fputc ('\n', stderr);
  exit (1);
}

static uint64_t
mix (uint64_t x)
{
  x ^= x >> 30;
  x *= UINT64_C (0xbf58476d1ce4e5b9);
  x ^= x >> 27;
  x *= UINT64_C (0x94d049bb133111eb);
  return x ^ x >> 31;
}

static uint64_t
rnd (struct client *c, uint64_t below)
{
  return mix (c->rng += UINT64_C (0x9e3779b97f4a7c15)) % below;
}

static uint64_t
word_at (uint64_t id, uint64_t offset)
{
  return id ? mix (id ^ offset << 24) | 1 : 0;
}

static void
fill (uint8_t *buf, uint64_t id, uint64_t offset, uint64_t len)
{
  for (uint64_t i = 0; i < len; i += 8) {
    uint64_t w = word_at (id, offset + i);
    memcpy (buf + i, &w, 8);
  }
}

/* ---- who owns what ------------------------------------------------------------------------- */

/* The client that alone writes SECTOR, or -1 for everybody. */
static int
owner_of (uint32_t sector)
{
  uint64_t offset = (uint64_t)sector * SECTOR;
  uint64_t stripe = offset / STRIPE;

  switch (stripe % 3) {
  case 0:
    return stripe / 3 % n_clients;
  case 1:
    return offset / BLOCK % n_clients;
  default:
    return -1;
  }
}

/* A range for client C: within its own sectors, or within a stripe that all share. */
static void
pick (struct client *c, uint32_t *first, uint32_t *count)
{
  for (;;) {
    uint32_t start = rnd (c, area / SECTOR);
    uint32_t longest = rnd (c, 4) ? 16 : MAX_REQUEST / SECTOR;
    uint32_t want = 1 + rnd (c, longest), n = 0;
    int owner = owner_of (start);

    if (owner != -1 && owner != (int)c->index)
      continue;
    while (n < want && start + n < area / SECTOR && owner_of (start + n) == owner)
      n++;
    *first = start;
    *count = n;
    return;
  }
}

static bool
overlaps_in_flight (struct client *c, uint32_t first, uint32_t count)
{
  for (unsigned i = 0; i < depth; i++) {
    struct slot *s = &c->slots[i];
    if (s->busy && s->op != OP_FLUSH && s->first < first + count && first < s->first + s->count)
      return true;
  }
  return false;
}

/* ---- requests ------------------------------------------------------------------------------ */

static struct record *
new_record (struct client *c)
{
  if (c->n_records == c->cap_records) {
    c->cap_records = c->cap_records ? 2 * c->cap_records : 1024;
    c->records = realloc (c->records, c->cap_records * sizeof *c->records);
    if (!c->records)
      die ("out of memory");
  }
  return &c->records[c->n_records++];
}

/* The owner's knowledge of its own sectors after a request that has ended. */
static void
learn (struct slot *s, const struct record *r, bool acknowledged)
{
  if (owner_of (s->first) == -1)
    return;
  if (!acknowledged || s->op == OP_TRIM) {
    memset (certain + s->first, 0, s->count);
    return;
  }
  fill (model + (uint64_t)s->first * SECTOR, r->id, (uint64_t)s->first * SECTOR,
        (uint64_t)s->count * SECTOR);
  for (uint32_t i = s->first; i < s->first + s->count; i++)
    certain[i] = !doubtful[i];
}

/* R has no answer, and its server may not have begun with it. */
static void
doubt (const struct record *r)
{
  if (owner_of (r->first) == -1)
    return;
  memset (certain + r->first, 0, r->count);
  memset (doubtful + r->first, 1, r->count);
}

static int
completed (void *opaque, int *error)
{
  struct slot *s = opaque;
  struct client *c = s->client;
  uint64_t now = atomic_fetch_add (&ticks, 1);

  s->busy = false;
  if (*error == 0)
    c->requests++;
  else if (disconnect && *error == ESHUTDOWN)
    atomic_store (&gone, true);
  if (s->op == OP_FLUSH || s->op == OP_READ) {
    if (*error && !disconnect && !hangups && !(allow_enospc && s->op == OP_FLUSH))
      die ("a %s failed: %s", s->op == OP_READ ? "read" : "flush", strerror (*error));
    if (*error == 0 && s->exact && memcmp (s->buf, s->want, (size_t)s->count * SECTOR) != 0) {
      for (uint32_t i = 0; i < s->count * SECTOR; i++)
        if (s->buf[i] != s->want[i])
          die ("client %u, who alone writes there, reads %#x instead of %#x at %" PRIu64, c->index,
               s->buf[i], s->want[i], (uint64_t)s->first * SECTOR + i);
    }
    return 1;
  }

  struct record *r = &c->records[s->record];
  if (*error == 0) {
    r->done = now;
    r->acknowledged = true;
  } else if (allow_enospc && *error == ENOSPC) {
    r->done = now;
    c->enospc++;
  } else if (!hangups && !disconnect) {
    die ("a request failed: %s", strerror (*error));
  } else {
    doubt (r);
  }
  learn (s, r, r->acknowledged);
  return 1;
}

static void
send_one (struct client *c, struct slot *s)
{
  static const enum op ops[] = { OP_WRITE, OP_WRITE, OP_WRITE, OP_WRITE, OP_WRITE, OP_READ,
                                 OP_READ,  OP_READ,  OP_ZERO,  OP_TRIM,  OP_FLUSH };
  uint32_t flags = 0;
  int64_t r;

  s->op = ops[rnd (c, sizeof ops / sizeof ops[0])];
  if (s->op == OP_TRIM && (no_trim || !can_trim))
    s->op = OP_WRITE;
  if (s->op == OP_FLUSH && rnd (c, 4))
    s->op = OP_WRITE;
  nbd_completion_callback done = { .callback = completed, .user_data = s };

  s->exact = false;
  if (s->op != OP_FLUSH) {
    unsigned tries = 0;
    do {
      pick (c, &s->first, &s->count);
      if (++tries > 100)
        return;
    } while (owner_of (s->first) != -1 && overlaps_in_flight (c, s->first, s->count));
  }
  uint64_t offset = (uint64_t)s->first * SECTOR, len = (uint64_t)s->count * SECTOR;
  struct record *rec = NULL;

  if (s->op == OP_READ) {
    s->exact = owner_of (s->first) != -1;
    for (uint32_t i = 0; s->exact && i < s->count; i++)
      s->exact = certain[s->first + i];
    if (s->exact)
      memcpy (s->want, model + offset, len);
  } else if (s->op != OP_FLUSH) {
    rec = new_record (c);
    s->record = rec - c->records;
    *rec = (struct record){ .id = s->op == OP_WRITE ? atomic_fetch_add (&next_id, 1) : 0,
                            .done = NEVER,
                            .first = s->first,
                            .count = s->count,
                            .op = s->op };
    if (can_fua && rnd (c, 32) == 0)
      flags |= LIBNBD_CMD_FLAG_FUA;
    /* Not to be read as exact again before the reply. */
    if (owner_of (s->first) != -1)
      memset (certain + s->first, 0, s->count);
    rec->sent = atomic_fetch_add (&ticks, 1);
  }
  s->busy = true;
  switch (s->op) {
  case OP_WRITE:
    fill (s->buf, rec->id, offset, len);
    r = nbd_aio_pwrite (c->nbd, s->buf, len, offset, done, flags);
    break;
  case OP_ZERO:
    if (rnd (c, 2))
      flags |= LIBNBD_CMD_FLAG_NO_HOLE;
    r = nbd_aio_zero (c->nbd, len, offset, done, flags);
    break;
  case OP_TRIM:
    r = nbd_aio_trim (c->nbd, len, offset, done, flags);
    break;
  case OP_READ:
    r = nbd_aio_pread (c->nbd, s->buf, len, offset, done, 0);
    break;
  default:
    r = nbd_aio_flush (c->nbd, done, 0);
  }
  if (r == -1) {
    if (!disconnect)
      die ("could not send: %s", nbd_get_error ());
    s->busy = false; /* the record stays: it may have been sent in part, so it proves nothing */
    atomic_store (&gone, true);
  }
}

static bool
any_busy (struct client *c)
{
  for (unsigned i = 0; i < depth; i++)
    if (c->slots[i].busy)
      return true;
  return false;
}

static struct nbd_handle *
connect_to (const char *to)
{
  struct nbd_handle *h = nbd_create ();

  if (!h || nbd_set_uri_allow_local_file (h, true) == -1 || nbd_connect_uri (h, to) == -1)
    die ("%s: %s", to, nbd_get_error ());
  return h;
}

/* Goes away without a word, requests in flight, and comes back. */
static void
hang_up (struct client *c)
{
  nbd_close (c->nbd); /* completes what is in flight, with an error */
  for (unsigned i = 0; i < depth; i++)
    c->slots[i].busy = false;
  c->nbd = connect_to (uri);
  c->hangups++;
}

static void
one_round (struct client *c)
{
  uint64_t hang_up_after = hangups ? 50 + rnd (c, 500) : NEVER;

  for (uint64_t n = 0; !atomic_load (&round_over) && !atomic_load (&gone); n++) {
    for (unsigned i = 0; i < depth && !atomic_load (&gone); i++)
      if (!c->slots[i].busy)
        send_one (c, &c->slots[i]);
    if (n >= hang_up_after) {
      hang_up (c);
      hang_up_after = n + 50 + rnd (c, 500);
      continue;
    }
    if (nbd_poll (c->nbd, 1000) == -1) {
      if (!disconnect)
        die ("client %u: %s", c->index, nbd_get_error ());
      atomic_store (&gone, true);
    }
  }
  while (any_busy (c) && nbd_poll (c->nbd, 1000) != -1)
    if (atomic_load (&gone) && (nbd_aio_is_dead (c->nbd) || nbd_aio_is_closed (c->nbd)))
      break;
  if (any_busy (c) && !disconnect)
    die ("client %u: replies are missing: %s", c->index, nbd_get_error ());
}

static void *
client_main (void *opaque)
{
  struct client *c = opaque;

  for (;;) {
    pthread_barrier_wait (&barrier); /* the round begins */
    if (finished)
      return NULL;
    one_round (c);
    pthread_barrier_wait (&barrier); /* the round has ended */
  }
}

/* ---- the verdict --------------------------------------------------------------------------- */

/* For a sector: the writes that may be found there, as a list. */
struct allowed {
  uint64_t id;
  struct allowed *next;
};

/* Keeps what C asked for before a hang-up, for a while. */
static void
forget_answered (struct client *c)
{
  size_t kept = 0;

  for (size_t i = 0; i < c->n_records; i++)
    if (c->records[i].done == NEVER && ++c->records[i].rounds < LATE_ROUNDS) {
      c->records[kept] = c->records[i];
      doubt (&c->records[kept++]);
    }
  c->n_records = kept;
}

static void
verify (struct nbd_handle *h)
{
  uint32_t sectors = area / SECTOR;
  uint64_t *last_sent = calloc (sectors, sizeof *last_sent); /* of acknowledged writes; 0 none */
  struct allowed **lists = calloc (sectors, sizeof *lists);
  struct allowed *pool = NULL;
  size_t used = 0, room = 0;
  uint8_t *disk = malloc (area);

  if (!last_sent || !lists || !disk)
    die ("out of memory");
  for (uint64_t at = 0; at < area; at += 1 << 20)
    if (nbd_pread (h, disk + at, area - at < 1 << 20 ? area - at : 1 << 20, at, 0) == -1)
      die ("verifying: %s", nbd_get_error ());

  for (unsigned c = 0; c < n_clients; c++)
    for (size_t i = 0; i < clients[c].n_records; i++) {
      struct record *r = &clients[c].records[i];
      room += r->count;
      if (r->acknowledged && r->op != OP_TRIM)
        for (uint32_t s = r->first; s < r->first + r->count; s++)
          if (last_sent[s] < r->sent)
            last_sent[s] = r->sent;
    }
  pool = malloc ((room + 1) * sizeof *pool);
  if (!pool)
    die ("out of memory");
  for (unsigned c = 0; c < n_clients; c++)
    for (size_t i = 0; i < clients[c].n_records; i++) {
      struct record *r = &clients[c].records[i];
      for (uint32_t s = r->first; s < r->first + r->count; s++)
        if (r->done >= last_sent[s]) {
          pool[used] = (struct allowed){ r->id, lists[s] };
          lists[s] = &pool[used++];
        }
    }

  for (uint32_t s = 0; s < sectors; s++)
    for (uint64_t at = (uint64_t)s * SECTOR; at < (uint64_t)(s + 1) * SECTOR; at += 8) {
      uint64_t got, before;
      struct allowed *a;

      memcpy (&got, disk + at, 8);
      memcpy (&before, model + at, 8);
      /* model still holds what was there before the round, except on a private sector, where it
       * follows the owner's acknowledged writes: all of them are in the list as well. */
      if (last_sent[s] == 0 && got == before)
        continue;
      for (a = lists[s]; a && got != word_at (a->id, at); a = a->next)
        ;
      if (!a) {
        unsigned n = 0;
        for (a = lists[s]; a; a = a->next)
          n++;
        die ("the word at %" PRIu64 " (owner %d) is %#" PRIx64 ", none of the %u that it may be; "
             "before the round %#" PRIx64 "%s",
             at, owner_of (s), got, n, before,
             got == before ? ": an acknowledged write was lost"
             : got == 0    ? ": zeros that nobody wrote"
                           : "");
      }
    }
  memcpy (model, disk, area);
  memset (certain, 1, sectors);
  memset (doubtful, 0, sectors);
  for (unsigned c = 0; c < n_clients; c++)
    forget_answered (&clients[c]);
  free (pool);
  free (lists);
  free (last_sent);
  free (disk);
}

/* ---- main ---------------------------------------------------------------------------------- */

static void
options (int argc, char **argv)
{
  static const struct option longs[] = {
    { "clients", required_argument, NULL, 'c' }, { "depth", required_argument, NULL, 'd' },
    { "seconds", required_argument, NULL, 's' }, { "seed", required_argument, NULL, 'r' },
    { "area", required_argument, NULL, 'a' },    { "no-trim", no_argument, NULL, 't' },
    { "hangups", no_argument, NULL, 'h' },       { "enospc", no_argument, NULL, 'e' },
    { "disconnect", no_argument, NULL, 'x' },    { NULL, 0, NULL, 0 },
  };
  int o;

  while ((o = getopt_long (argc, argv, "", longs, NULL)) != -1)
    switch (o) {
    case 'c':
      n_clients = strtoul (optarg, NULL, 0);
      break;
    case 'd':
      depth = strtoul (optarg, NULL, 0);
      break;
    case 's':
      seconds = strtoul (optarg, NULL, 0);
      break;
    case 'r':
      seed = strtoull (optarg, NULL, 0);
      break;
    case 'a':
      area = strtoull (optarg, NULL, 0);
      break;
    case 't':
      no_trim = true;
      break;
    case 'h':
      hangups = true;
      break;
    case 'e':
      allow_enospc = true;
      break;
    case 'x':
      disconnect = true;
      break;
    default:
      exit (2);
    }
  if (optind != argc - 1 || n_clients < 1 || n_clients > MAX_CLIENTS || depth < 1 ||
      depth > MAX_DEPTH) {
    fprintf (stderr, "usage: stress [OPTION...] URI (at most %d clients of depth %d)\n",
             MAX_CLIENTS, MAX_DEPTH);
    exit (2);
  }
  uri = argv[optind];
}

int
main (int argc, char **argv)
{
  struct nbd_handle *main_nbd;
  static char line[4096];
  uint64_t requests = 0, hung = 0, full = 0;
  unsigned rounds = 0;
  time_t end;

  options (argc, argv);
  main_nbd = connect_to (uri);
  int64_t size = nbd_get_size (main_nbd);
  if (size < (int64_t)area)
    area = size;
  area -= area % SECTOR;
  can_trim = nbd_can_trim (main_nbd) == 1;
  can_fua = nbd_can_fua (main_nbd) == 1;
  if (n_clients > 1 && nbd_can_multi_conn (main_nbd) != 1)
    die ("the server does not say that many connections see one disk");
  model = calloc (1, area);
  certain = calloc (1, area / SECTOR);
  doubtful = calloc (1, area / SECTOR);
  if (!model || !certain || !doubtful)
    die ("out of memory");
  for (uint64_t at = 0; at < area; at += 1 << 20)
    if (nbd_pread (main_nbd, model + at, area - at < 1 << 20 ? area - at : 1 << 20, at, 0) == -1)
      die ("%s", nbd_get_error ());
  memset (certain, 1, area / SECTOR);

  pthread_barrier_init (&barrier, NULL, n_clients + 1);
  for (unsigned i = 0; i < n_clients; i++) {
    struct client *c = &clients[i];
    c->index = i;
    c->rng = mix (seed + 1) + i * UINT64_C (0x1000003);
    c->nbd = connect_to (uri);
    c->slots = calloc (depth, sizeof *c->slots);
    if (!c->slots)
      die ("out of memory");
    for (unsigned s = 0; s < depth; s++)
      c->slots[s].client = c;
    if (pthread_create (&c->thread, NULL, client_main, c) != 0)
      die ("pthread_create failed");
  }

  end = time (NULL) + seconds;
  do {
    atomic_store (&round_over, false);
    pthread_barrier_wait (&barrier);
    if (disconnect) { /* the round lasts until the server goes, or until the time is up */
      puts ("stress: running");
      fflush (stdout);
      while (!atomic_load (&gone) && time (NULL) < end)
        usleep (10000);
    } else {
      sleep (1);
    }
    atomic_store (&round_over, true);
    pthread_barrier_wait (&barrier);
    rounds++;
    if (disconnect)
      break;
    verify (main_nbd);
  } while (time (NULL) < end);

  if (disconnect) {
    if (!atomic_load (&gone))
      die ("the server did not go away");
    for (unsigned i = 0; i < n_clients; i++)
      nbd_close (clients[i].nbd); /* some servers wait for their clients to go */
    nbd_close (main_nbd);
    if (!fgets (line, sizeof line, stdin))
      die ("no URI to verify through");
    line[strcspn (line, "\n")] = '\0';
    main_nbd = connect_to (line);
    verify (main_nbd);
  }
  finished = true;
  pthread_barrier_wait (&barrier);
  for (unsigned i = 0; i < n_clients; i++) {
    struct client *c = &clients[i];
    pthread_join (c->thread, NULL);
    if (!disconnect) {
      nbd_shutdown (c->nbd, 0);
      nbd_close (c->nbd);
    }
    requests += c->requests;
    hung += c->hangups;
    full += c->enospc;
    free (c->slots);
    free (c->records);
  }
  nbd_shutdown (main_nbd, 0);
  nbd_close (main_nbd);
  printf ("stress: seed %" PRIu64 ": %" PRIu64 " requests by %u clients in %u rounds, %" PRIu64
          " hang-ups, %" PRIu64 " refused for lack of space: every byte as it may be\n",
          seed, requests, n_clients, rounds, hung, full);
  if (requests == 0)
    die ("nothing was done");
  free (model);
  free (certain);
  free (doubtful);
  return 0;
}
