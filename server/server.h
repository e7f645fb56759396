/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The server as a whole: takes connections in, spreads them over the loops, and knows when it is
 * over.
 */

#ifndef SERVER_H
#define SERVER_H

#include "clients.h"
#include "export.h"
#include "listen.h"
#include "tls.h"

#define SERVER_MAX_LOOPS 256

/* Bytes for the requests of all clients, if nothing else is said: so many, or so many for each
 * loop.  Each has its share, into which the longest read, of 32 MiB, is to fit; and the least that
 * makes sense. */
#define SERVER_MEMORY      ((size_t)512 << 20)
#define SERVER_LOOP_MEMORY ((size_t)64 << 20)
#define SERVER_MIN_MEMORY  (64u << 20)

struct server;

struct server_options {
  unsigned loops;          /* threads that serve clients, at most SERVER_MAX_LOOPS */
  unsigned workers;        /* threads, at most, for what blocks */
  unsigned max_clients;    /* at once; 0 for any number.  The others wait in the backlog */
  bool persistent;         /* go on when the last client has disconnected */
  double handshake_limit;  /* seconds; 0 for none */
  unsigned poll_us;        /* poller.h; 0 for none */
  double idle_limit;       /* seconds without a request; 0 for none */
  size_t memory;           /* bytes for requests and replies of all clients */
  struct tls *tls;         /* NULL for none */
  struct control *control; /* control.h; NULL: none */
  const struct export_options *defaults; /* of exports that it adds */
  struct clients *clients;               /* clients.h */
  struct reload *reload;                 /* reload.h; NULL: there is no configuration file */
  int attached;            /* a connected socket, the first client; -1 if there is none */
  struct metrics *metrics; /* metrics.h; NULL: none */
  bool tied;               /* to a device or a child: it cannot be taken over */
  /* All threads of the server are there, and no client is.  False: end at once, the reason has been
   * logged. */
  bool (*confine) (void *opaque);
  /* Clients are being taken in.  Returns the process number of a child to end with, 0 if there is
   * none, or -1: end at once, the reason has been logged. */
  int (*ready) (void *opaque);
  /* Before clients are taken in: there may be some already.  False: end at once; the reason has
   * been logged.  NULL: there are none. */
  bool (*adopt) (void *opaque, struct server *sv);
  void *opaque;
};

/* Serves until SIGTERM, SIGINT or (if there is nothing to be read again) SIGHUP, until the child
 * has ended, or (unless persistent, and there is no child) until the last client has disconnected.
 * Closes LS.  When it returns, no request is in flight.  Returns 0, or the child's exit status (128
 * + the signal that ended it), or -1 if it could not begin; the reason is logged. */
int server_run (const struct server_options *options, struct listeners *ls,
                struct exports *exports);

/* ---- for takeovers --------------------------------------------------------------------------- */

struct loop;
struct saved_session;

/* Runs FN on the main thread, and waits for it.  Any thread but the main one.  False: the server is
 * ending, and FN is not run. */
bool server_call (struct server *sv, void (*fn) (struct server *sv, void *opaque), void *opaque);
unsigned server_loops (struct server *sv, struct loop ***loops);
const struct listeners *server_listeners (const struct server *sv);
struct listeners *server_metrics (const struct server *sv); /* NULL: none */
/* The main thread: no connections are taken in; they wait in the backlog. */
void server_hold (struct server *sv, bool on);
/* The main thread (or, when it does not answer any more, any): the server ends, and the
 * sockets that it listens on stay where they are. */
void server_leave (struct server *sv);
/* The main thread, in options.adopt: a connection that goes on from SAVED.  Takes all over. */
void server_adopt (struct server *sv, int fd, char *peer, struct saved_session *saved);

#endif /* SERVER_H */
