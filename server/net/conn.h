/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One connection: a socket, the session it carries, and when to read and write.
 *
 * All calls are made on the thread of the loop, but conn_new.
 */

#ifndef CONN_H
#define CONN_H

#include "clients.h"
#include "loop.h"
#include "session-state.h"
#include "transport.h"

struct conn {
  struct loop *loop;
  struct transport transport; /* closed: waiting for requests in flight */
  char *peer;                 /* for messages; may be NULL */
  struct session session;
  struct client client;
  struct buf *held; /* received but not taken in yet */
  ev_io reader, writer;
  ev_timer pause;            /* until the export's rate lets it go on */
  ev_timer hangup;           /* looks whether the client has gone while it is not read from */
  ev_timer idle;             /* looks whether the client still asks for anything */
  ev_tstamp started, active; /* when it connected, and when something was last received */
  ev_timer limit;            /* for the handshake; for sending the last replies */
  struct conn *next, **prev; /* in loop.conns */
  struct conn *next_dirty, *next_runnable, *next_incoming;
  bool is_dirty, is_runnable;
  bool draining, limited;
  bool frozen; /* takes nothing in; what is under way comes to its end, and is sent */
  bool handed; /* frozen, and another process may go on with it: nothing is sent either */
  struct saved_session *saved; /* what it is to go on from; NULL: it begins at the beginning */
};

struct conn *conn_new (struct loop *l, int fd, char *peer);
/* On the loop's thread from here on. */
void conn_start (struct conn *c);
/* A turn for a connection with input left over. */
void conn_run (struct conn *c);
/* Sends what can be sent, and finds out what comes next.  C may be gone afterwards. */
void conn_step (struct conn *c);
/* Answers what is there, refuses the rest, and closes it. */
void conn_drain (struct conn *c);
/* For a takeover: it stops at a request boundary, and goes on. */
void conn_freeze (struct conn *c);
void conn_thaw (struct conn *c);
/* It is frozen, and nothing is under way any more. */
bool conn_is_still (const struct conn *c);
/* Of a connection that is still.  What is to be sent is the other's from here on: until conn_thaw,
 * not a byte of it is sent by us.  -ENOTSUP: it is not for others to go on with, since it has begun
 * TLS, or is being ended. */
int conn_save (struct conn *c, struct saved_session *saved, struct q_error *err);
/* The exports are another process's: C is closed if it was saved, and else ended. */
void conn_release (struct conn *c);
/* Somebody wants it to be drained. */
bool conn_is_to_leave (const struct conn *c);

#endif /* CONN_H */
