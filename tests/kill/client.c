/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Clients of a server that is killed under them.
 *
 *     kill-client [OPTION...] SOCKET
 *       -s SEED         of operations and instants (1)
 *       -c CONNECTIONS  a thread each (8)
 *       -q DEPTH        requests in flight on each (4)
 *       -a BYTES        how much of the disk is used (16 MiB)
 *       -m MAX          most milliseconds until a kill (200)
 *
 * Reads lines from standard input.  "base": reads what the disk holds.  "load PID": writes until it
 * has killed process PID at a random instant, and the connections are gone.  "verify": connects and
 * looks whether everything acknowledged is there.  Answers each with a line that begins with "ok";
 * if something is wrong it ends with status 1.
 */

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libnbd.h>

#include "ledger.h"

#define MAX_DEPTH 16

static uint64_t seed = 1, rng, area = 16 << 20;
static unsigned connections = 8, depth = 4, longest = 200;
static const char *server;
static struct ledger *ledger;
static pthread_barrier_t started;

static struct nbd_handle *
dial (void)
{
  struct nbd_handle *nbd = nbd_create ();

  if (!nbd || nbd_connect_unix (nbd, server) == -1) {
    fprintf (stderr, "kill-client: %s\n", nbd_get_error ());
    exit (1);
  }
  return nbd;
}

/* ---- load ------------------------------------------------------------------------------------ */

struct request {
  int64_t cookie; /* 0: idle */
  struct ledger_op op;
  uint8_t *buf;
};

static int64_t
issue (struct nbd_handle *nbd, struct request *q)
{
  uint32_t fua = q->op.fua ? LIBNBD_CMD_FLAG_FUA : 0;

  switch (q->op.kind) {
  case LEDGER_WRITE:
    ledger_fill (&q->op, q->buf);
    return nbd_aio_pwrite (nbd, q->buf, q->op.len, q->op.offset, NBD_NULL_COMPLETION, fua);
  case LEDGER_ZERO:
    return nbd_aio_zero (nbd, q->op.len, q->op.offset, NBD_NULL_COMPLETION,
                         fua | (q->op.unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE));
  case LEDGER_DISCARD:
    return nbd_aio_trim (nbd, q->op.len, q->op.offset, NBD_NULL_COMPLETION, fua);
  default:
    return nbd_aio_flush (nbd, NBD_NULL_COMPLETION, 0);
  }
}

/* True while the connection lives.  A reply that came before the end counts; an error in a
 * reply does not happen. */
static bool
collect (struct nbd_handle *nbd, struct request *q)
{
  int r = nbd_aio_command_completed (nbd, (uint64_t)q->cookie);

  if (r == 0)
    return true;
  if (r == -1) {
    int error = nbd_get_errno ();

    if (nbd_aio_is_ready (nbd)) {
      fprintf (stderr,
               "kill-client: seed %" PRIu64 ": operation %d at %" PRIu64 "+%" PRIu64 ": %s\n", seed,
               (int)q->op.kind, q->op.offset, q->op.len, strerror (error));
      exit (1);
    }
    q->cookie = 0;
    return false;
  }
  ledger_done (ledger, &q->op);
  q->cookie = 0;
  return true;
}

static void *
connection_main (void *arg)
{
  unsigned index = (unsigned)(uintptr_t)arg;
  uint64_t mine = seed * 1000003 + rng * 31 + index;
  struct request *requests = calloc (depth, sizeof *requests);
  struct nbd_handle *nbd = dial ();
  bool alive = true;

  for (unsigned i = 0; i < depth; ++i)
    requests[i].buf = malloc (LEDGER_MAX_BYTES);
  pthread_barrier_wait (&started);
  while (alive) {
    for (unsigned i = 0; alive && i < depth; ++i) {
      struct request *q = &requests[i];
      unsigned writer = index * depth + i;

      if (q->cookie == 0) {
        ledger_pick (ledger, writer, &mine, &q->op);
        q->cookie = issue (nbd, q);
        alive = q->cookie != -1;
      }
    }
    if (alive)
      alive = nbd_poll (nbd, -1) != -1;
    for (unsigned i = 0; i < depth; ++i)
      if (requests[i].cookie > 0 && !collect (nbd, &requests[i]))
        alive = false;
  }
  for (unsigned i = 0; i < depth; ++i)
    free (requests[i].buf);
  free (requests);
  nbd_close (nbd);
  return NULL;
}

static void
load (pid_t pid)
{
  uint64_t us = ledger_random (&rng, longest * 1000ull / (ledger_random (&rng, 2) ? 1 : 20) + 1);
  struct timespec ts = { (time_t)(us / 1000000), (long)(us % 1000000) * 1000 };
  pthread_t thread[LEDGER_MAX_WRITERS];

  pthread_barrier_init (&started, NULL, connections + 1);
  for (unsigned i = 0; i < connections; ++i)
    if (pthread_create (&thread[i], NULL, connection_main, (void *)(uintptr_t)i) != 0)
      exit (1);
  pthread_barrier_wait (&started);
  nanosleep (&ts, NULL);
  kill (pid, SIGKILL);
  for (unsigned i = 0; i < connections; ++i)
    pthread_join (thread[i], NULL);
  pthread_barrier_destroy (&started);
  printf ("ok\n");
}

/* ---- looking --------------------------------------------------------------------------------- */

static void
look (bool base)
{
  struct nbd_handle *nbd = dial ();
  uint8_t *buf = malloc (LEDGER_MAX_BYTES);
  uint64_t wrong = 0;

  if (base) {
    if (nbd_get_size (nbd) < (int64_t)area) {
      fprintf (stderr, "kill-client: the disk has less than %" PRIu64 " bytes\n", area);
      exit (1);
    }
    ledger = ledger_new (area, nbd_get_block_size (nbd, LIBNBD_SIZE_MINIMUM) > 64 ? 512 : 64,
                         connections * depth, false);
  }
  for (uint64_t offset = 0; offset < area; offset += LEDGER_MAX_BYTES) {
    if (nbd_pread (nbd, buf, LEDGER_MAX_BYTES, offset, 0) == -1) {
      fprintf (stderr, "kill-client: seed %" PRIu64 ": %s\n", seed, nbd_get_error ());
      exit (1);
    }
    if (base)
      ledger_base (ledger, offset, LEDGER_MAX_BYTES, buf);
    else
      wrong += ledger_check (ledger, offset, LEDGER_MAX_BYTES, buf, true);
  }
  free (buf);
  nbd_shutdown (nbd, 0);
  nbd_close (nbd);
  if (wrong > 0) {
    fprintf (stderr, "kill-client: seed %" PRIu64 ": %" PRIu64 " cells are wrong\n", seed, wrong);
    exit (1);
  }
  printf ("ok, after %" PRIu64 " writes, %" PRIu64 " zeroings, %" PRIu64 " trims, %" PRIu64
          " flushes\n",
          ledger_count (ledger, LEDGER_WRITE), ledger_count (ledger, LEDGER_ZERO),
          ledger_count (ledger, LEDGER_DISCARD), ledger_count (ledger, LEDGER_FLUSH));
}

static uint64_t
number (int letter, const char *text, uint64_t min, uint64_t max)
{
  char *end;
  unsigned long long v = strtoull (text, &end, 10);

  if (!*text || *end || v < min || v > max) {
    fprintf (stderr, "kill-client: -%c %s: a number from %" PRIu64 " to %" PRIu64 " is wanted\n",
             letter, text, min, max);
    exit (2);
  }
  return v;
}

int
main (int argc, char *argv[])
{
  char line[256];
  int c, pid;

  while ((c = getopt (argc, argv, "s:c:q:a:m:")) != -1)
    switch (c) {
    case 's':
      seed = number (c, optarg, 0, UINT64_MAX);
      break;
    case 'c':
      connections = (unsigned)number (c, optarg, 1, LEDGER_MAX_WRITERS);
      break;
    case 'q':
      depth = (unsigned)number (c, optarg, 1, MAX_DEPTH);
      break;
    case 'a':
      area = number (c, optarg, LEDGER_MAX_BYTES, 1u << 30) & ~(uint64_t)(LEDGER_MAX_BYTES - 1);
      break;
    case 'm':
      longest = (unsigned)number (c, optarg, 1, 100000);
      break;
    default:
      return 2;
    }
  if (argc - optind != 1 || connections * depth > LEDGER_MAX_WRITERS) {
    fprintf (stderr, "kill-client: one socket and at most %d requests in flight are wanted\n",
             LEDGER_MAX_WRITERS);
    return 2;
  }
  server = argv[optind];
  rng = seed;
  signal (SIGPIPE, SIG_IGN);
  while (fgets (line, sizeof line, stdin)) {
    if (strcmp (line, "base\n") == 0 && !ledger)
      look (true);
    else if (strcmp (line, "verify\n") == 0 && ledger)
      look (false);
    else if (sscanf (line, "load %d", &pid) == 1 && ledger && pid > 1)
      load (pid);
    else {
      fprintf (stderr, "kill-client: base, then load PID or verify, not %s", line);
      return 2;
    }
    fflush (stdout);
  }
  return 0;
}
