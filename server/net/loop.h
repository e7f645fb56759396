/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The event loops that serve clients: one thread each.  A connection lives on one loop.
 *
 *     loop_start (&l, ...);     creates the thread
 *     loop_add (l, fd, peer);   any thread: hands a connected socket over
 *     loop_drain (l);           any thread: answer what is in flight, refuse the rest, close
 *     loop_join (l);            waits until the last connection has ended
 *     loop_free (l);            when the pool is gone too: a worker may still be waking the loop
 */

#ifndef LOOP_H
#define LOOP_H

#include <ev.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "poller.h"
#include "session.h"

struct conn;
struct loop_call;
struct saved_session;

struct loop_options {
  struct exports *exports;
  struct clients *clients;
  struct tls *tls; /* NULL for none */
  struct pool *pool;
  size_t max_memory;      /* bytes for requests and replies of this loop's clients */
  double handshake_limit; /* seconds; 0 for none */
  double idle_limit;      /* seconds without a request; 0 for none */
  unsigned poll_us;       /* poller.h; 0 for none */
  /* A connection is over.  NEGOTIATED: it had got to the transmission phase.  Any thread. */
  void (*closed) (void *opaque, bool negotiated);
  void *opaque;
};

/* Bytes of the receive buffer that the connections of a loop share. */
#define LOOP_RX_SIZE (256 * 1024)

struct loop {
  struct shard shard;
  struct loop_options options;
  struct ev_loop *ev;
  pthread_t thread;
  uint8_t *rx;

  struct conn *conns;                     /* all of this loop */
  struct conn *dirty;                     /* those with requests that came back */
  struct conn *runnable, **runnable_tail; /* those with input left over from their last turn */
  ev_check check;                         /* gives the runnable ones a turn after each poll ... */
  ev_idle idle; /* ... that this one, while there are any, keeps from blocking */

  struct poller poller;
  ev_async async;       /* the pool, or another thread, has something for us: */
  pthread_mutex_t lock; /* for the rest */
  struct conn *incoming;
  bool running; /* its thread is, and has all that it asks the system for */
  bool drain, sweep;
  struct loop_call *calls;
  pthread_cond_t called;
  bool frozen;        /* for a takeover: so are those who come; the loop's thread's */
  atomic_bool pinged; /* and has not been round since */
};

/* NULL without memory or threads; the reason is logged. */
struct loop *loop_start (const struct loop_options *options);
/* Takes FD over; PEER (may be NULL) is freed with the connection.  Returns false without memory, FD
 * closed. */
bool loop_add (struct loop *l, int fd, char *peer);
void loop_drain (struct loop *l);
/* Any thread: those whose client.leave is set, or whose export is leaving, are drained. */
void loop_sweep (struct loop *l);
/* Any thread but the loop's own: runs FN on the loop's thread, between two turns, and waits for it.
 */
void loop_call (struct loop *l, void (*fn) (struct loop *l, void *opaque), void *opaque);
/* As loop_add, for a connection that goes on from SAVED, which is taken over. */
bool loop_add_saved (struct loop *l, int fd, char *peer, struct saved_session *saved);
/* Whether the loop has been round since the last call, and asks it to go round again. */
bool loop_ping (struct loop *l);
void loop_join (struct loop *l);
void loop_free (struct loop *l);

/* ---- for conn.c ------------------------------------------------------------------------------ */

/* C wants a turn after the next poll. */
void loop_run_later (struct loop *l, struct conn *c);
/* A connection has left loop.conns. */
void loop_conn_gone (struct loop *l);

#endif /* LOOP_H */
