/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One client's side of the protocol, without any I/O: bytes go in, bytes come out.
 *
 *     session_init (&s, shard, notify);     queues the greeting; s.peer may be set then
 *     session_begin_turn (&s, may_borrow);
 *     used = session_input (&s, p, n);      takes in what it can of n received bytes
 *     session_next_slice (&s);              true: send, and then call session_input for the rest
 *     space = session_payload (&s, &p);     > 0: the next bytes go straight to p ...
 *     session_payload_received (&s, n);     ... and n of them have arrived
 *     s.out                                 what is to be sent (outq_iov, outq_sent)
 *     session_end_turn (&s);
 *     session_resume (&s);                  after sending: goes on with what waited for that
 *     session_state (&s);                   what the owner is to do now
 *     session_destroy (&s);                 when s.inflight is 0
 *
 * All calls are made on the thread of the shard.  Requests that might block run on the worker pool;
 * when they come back (shard_complete), their replies are queued and notify is called.
 *
 * Input is taken in during a turn, and what it produces is best sent before the turn ends.  A turn
 * holds one pin from its first request to its end, and this is where invariant 5 (a map is a lease)
 * is kept for replies: those to READ may be on loan from the page cache (outq.h), found by maps
 * under that pin, and session_end_turn settles what is left of them before it lets go of the pin.
 * Only one session of a shard has its turn at a time.  Sending is allowed outside of turns, too.
 *
 * What is bounded, for each session: bytes queued for sending, requests in flight, the memory they
 * hold, and the work of one call of session_input (s.budget).  And for all of a shard: what does
 * not fit into its memory (buf_fits) is done piece by piece, so that each session has no more than
 * SESSION_LOW beyond it, and none is refused anything or waits for another one.
 */

#ifndef SESSION_H
#define SESSION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buf.h"
#include "export.h"
#include "nbd.h"
#include "outq.h"
#include "stats.h"
#include "tls.h"
#include "worker.h"

struct merge;
struct request;
struct ring;

/* What the sessions of one thread share. */
struct shard {
  struct exports *exports;
  struct tls *tls; /* NULL if it is not offered */
  struct pool *pool;
  struct mailbox done; /* requests coming back from the pool */
  struct batch batch;  /* requests on their way to it */
  struct merge *merge; /* merge.h: writes of the turn that go together; NULL before the first */
  struct ring *ring;   /* for reads that would wait; NULL: the pool does them */
  struct buf_cache cache;
  struct loans loans; /* of the session that has its turn */
  struct job *free_requests;
  unsigned n_free_requests;
  uint64_t now;  /* stats.h: when this round of completions began; 0: the clock was not read yet */
  bool stopping; /* the server is shutting down: so are all sessions */
};

/* WAKE is called, on any thread, when shard_complete has something to do. */
void shard_init (struct shard *shard, struct exports *exports, struct pool *pool, size_t max_memory,
                 void (*wake) (struct mailbox *));
/* Hands the batch over to the pool, and what is in the ring to the kernel. */
void shard_submit (struct shard *shard);
/* Finishes the requests that came back. */
void shard_complete (struct shard *shard);
void shard_destroy (struct shard *shard);
/* Each session has to do with little. */
bool memory_is_short (const struct shard *shard);

enum reply_mode { MODE_SIMPLE, MODE_STRUCTURED, MODE_EXTENDED };

enum session_state {
  SESSION_READ,  /* wants input */
  SESSION_READY, /* has input left that it can go on with: call session_input again */
  SESSION_TLS,   /* once s.out is sent: tls_start, if no input is left over, and session_secured */
  SESSION_WAIT,  /* takes no input before its replies are sent or its requests are done */
  SESSION_END,   /* all is done: once s.out is sent, close */
  SESSION_DROP,  /* close at once */
};

/* What a session may have when there is no memory left: what it holds when another request is
 * begun, that one, and the requests themselves.  What the manual promises beyond --memory is this,
 * what its connection keeps of the next ones, and both themselves. */
#define SESSION_LOW  (48 * 1024)
#define LOW_HELD     (24 * 1024)
#define LOW_PIECE    (16 * 1024) /* with a page before it */
#define LOW_INFLIGHT 8
#define LOW_INPUT    (4 * 1024) /* of a connection */

/* What a request costs of the budget, beside the bytes that it moves inline. */
#define REQUEST_COST 2048

struct session {
  struct shard *shard;
  void (*notify) (struct session *);
  struct outq out;
  bool in_turn;
  bool may_borrow;  /* s.out may take loans in this turn */
  q_pin_t pin;      /* of the turn */
  int64_t budget;   /* bytes; session_input stops when it is used up.  Set by the owner */
  int slice;        /* calls to the file system; the same */
  uint64_t arrived; /* stats.h: when the input that is being taken in was received */

  /* Input: a header of header_size bytes, then (if the header calls for it) a payload that is
   * either kept, in *payload, or skipped. */
  size_t header_size;
  size_t (*on_header) (struct session *, const uint8_t *p, size_t n); /* returns bytes used */
  void (*on_payload) (struct session *, struct buf *b);               /* takes b over */
  struct buf *payload;
  uint64_t payload_left, skip_left;
  bool starved;  /* the last session_input stopped for want of bytes */
  bool ending;   /* no further input is looked at */
  bool farewell; /* NBD_CMD_DISC has come: what came before it is done to its end */
  bool stopping; /* requests that come from here on are refused */

  /* Set by the shard's thread, and read by workers as well, between pieces of what takes long. */
  atomic_bool dropped; /* the client broke the protocol, or is gone: nothing more is sent */
  atomic_bool hung_up; /* the client has left without a farewell, or is dropped so */

  /* Handshake. */
  bool transmission; /* the handshake is over */
  bool no_zeroes, fixed_newstyle;
  bool starting_tls;       /* nothing is taken in as plain text any more */
  struct tls_session *tls; /* NULL as long as everything is plain text */
  unsigned n_options;
  uint32_t option;        /* whose data is being received, or that is being answered: */
  bool listing;           /* the exports, of which some are still to be told ... */
  uint64_t listed;        /* ... beginning after the one with this id */
  struct export *export;  /* chosen: a reference, and one of its connections */
  uint64_t meta_export;   /* the id of that of the last SET_META_CONTEXT (0: none) ... */
  uint64_t meta_selected; /* ... and what it selected; bit N: context N of that export */

  /* Transmission. */
  enum reply_mode mode;
  struct request *receiving;  /* whose payload is being received */
  struct request *long_write; /* of which more pieces are to come */
  /* Written by the shard's thread alone, read by any (clients.c). */
  _Atomic uint64_t n_requests, bytes_read, bytes_written;
  bool unwanted; /* room.h: its requests do not wait for room any more; under the room's lock */
  struct stats_counters *stats; /* of the export, on this shard */
  uint64_t peer;                /* the same for connections of one client; 0: not known */
  struct lane *lane;            /* in the pool; may be NULL */
  struct batch parked;          /* long reads that wait for their last piece to be sent */
  struct request *alone;        /* a read that nothing else is begun beside (exec.c) */
  unsigned inflight;            /* requests at the pool or parked */
  size_t held;                  /* bytes of memory that they, and the one being received, hold */
};

void session_init (struct session *s, struct shard *shard, void (*notify) (struct session *));
/* MAY_BORROW: s.out will be sent by system calls from where it lies. */
void session_begin_turn (struct session *s, bool may_borrow);
/* Nothing if it is not in a turn.  May drop the session. */
void session_end_turn (struct session *s);
/* Ends all loans.  May drop the session. */
void session_settle (struct session *s);
size_t session_input (struct session *s, const uint8_t *p, size_t n);
/* Whether session_input stopped because enough has been done for its replies to be sent: the client
 * can be at work on them while the rest is done.  In a turn. */
bool session_next_slice (struct session *s);
size_t session_payload (struct session *s, uint8_t **p);
void session_payload_received (struct session *s, size_t n);
void session_resume (struct session *s);
/* Before it is saved (session-state.h): what cannot be is brought to its end, however much memory
 * that takes. */
void session_conclude (struct session *s);
enum session_state session_state (const struct session *s);
/* The client is gone, or is to be: drops what is queued.  Of requests in flight, reads do no more,
 * and the rest is done; but see session_hang_up. */
void session_drop (struct session *s);
/* Requests that have not been taken in yet are refused from here on. */
void session_stop (struct session *s);
/* No more will come from the client: what is in flight is answered, then it is over. */
void session_eof (struct session *s);
/* It has closed its side.  Unless it said that it would (NBD_CMD_DISC), zeroing, discarding and
 * caching in flight end after their next piece: that is not the protocol's way to leave, and what
 * was not answered then is done or not. */
void session_hang_up (struct session *s);
void session_destroy (struct session *s);
/* What comes in from here on has come through TLS. */
void session_secured (struct session *s, struct tls_session *tls);
/* Seconds until the export's rate lets SESSION_READY come true; 0: at once. */
double session_throttle (const struct session *s);

/* ---- for the parts of the protocol ----------------------------------------------------------- */

/* The next N bytes of input are payload: to be kept and then handed to on_payload, or skipped. */
bool session_keep (struct session *s, size_t n);
void session_skip (struct session *s, uint64_t n);
/* Too much is queued, in flight or held to begin with another request. */
bool session_blocked (const struct session *s);
/* The same of what is queued and held. */
bool session_full (const struct session *s);
/* N more requests in flight, or fewer. */
void session_count_inflight (struct session *s, int n);
/* The export is chosen: its requests have a lane in the pool. */
void session_join_lane (struct session *s);
/* Queues N bytes; without memory the session is dropped. */
void session_send (struct session *s, const void *p, size_t n);

/* handshake.c */
void handshake_begin (struct session *s);
/* The greeting is over. */
void handshake_expect_option (struct session *s);
/* Goes on with a list of exports, as far as the session is not full; or, if ALL, to its end. */
void handshake_list (struct session *s, bool all);
/* request.c */
void transmission_begin (struct session *s);

#endif /* SESSION_H */
