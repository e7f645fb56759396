/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The server as a whole: takes connections in, spreads them over the loops, and knows when it is
 * over.
 */

#ifndef SERVER_H
#define SERVER_H

#include "export.h"
#include "listen.h"

#define SERVER_MAX_LOOPS 256

struct server_options {
  unsigned loops;               /* threads that serve clients, at most SERVER_MAX_LOOPS */
  unsigned workers;             /* threads, at most, for what blocks */
  unsigned max_clients;         /* at once; 0 for any number.  The others wait in the backlog */
  bool persistent;              /* go on when the last client has disconnected */
  double handshake_limit;       /* seconds; 0 for none */
  void (*ready) (void *opaque); /* clients are being taken in */
  void *opaque;
};

/* Serves until SIGTERM, SIGINT or SIGHUP, or (unless persistent) until the last client has
 * disconnected.  Closes LS.  When it returns, no request is in flight.  Returns false if it could
 * not begin; the reason is logged. */
bool server_run (const struct server_options *options, struct listeners *ls,
                 const struct exports *exports);

#endif /* SERVER_H */
