/* SPDX-License-Identifier: BSD-3-Clause */

/* A client that sends exactly the bytes it is told to and believes nothing it receives.
 *
 * Every wait has a deadline. All functions end the case (see suite.h) when the server breaks a
 * rule that holds for every message, so a case checks only what is its own.
 */

#ifndef CLIENT_H
#define CLIENT_H

#include "suite.h"
#include "wire.h"

/* Bytes under construction, big-endian. */
struct bytes {
  struct test *t;
  uint8_t *data;
  size_t len, room;
};

struct bytes *bytes_new (struct test *t);
struct bytes *put (struct bytes *b, const void *data, size_t len);
struct bytes *put_u16 (struct bytes *b, uint16_t v);
struct bytes *put_u32 (struct bytes *b, uint32_t v);
struct bytes *put_u64 (struct bytes *b, uint64_t v);
struct bytes *put_string (struct bytes *b, const char *s); /* its bytes, no length */
struct bytes *put_fill (struct bytes *b, int c, size_t len);

uint16_t get_u16 (const void *p);
uint32_t get_u32 (const void *p);
uint64_t get_u64 (const void *p);

/* A string as the specification defines one: UTF-8, no NUL, at most 4096 bytes. */
bool is_nbd_string (const uint8_t *s, size_t len);

struct context {
  uint32_t id;
  const char *name;
};

struct conn {
  struct test *t;
  struct conn *next;
  int fd;
  /* bytes received and not yet consumed: in[head..tail) */
  uint8_t *in;
  size_t head, tail;
  /* what has been negotiated */
  enum mode mode;
  uint16_t handshake_flags;
  uint64_t size;
  uint16_t flags; /* transmission flags */
  struct context *contexts;
  size_t n_contexts;
  /* the requests not yet answered in full, oldest first */
  struct pending *pending;
  uint64_t next_cookie;
  const char *message; /* the text of the last reply that was an error */
};

/* client.c: the byte stream */

struct conn *conn_open (struct test *t); /* connects; nothing is sent or read */
void conn_close (struct conn *c);
void conn_reset (struct conn *c);      /* closes by a reset rather than an orderly shutdown */
void conn_half_close (struct conn *c); /* no more will be sent */
/* Sends it all. A server that hangs up meanwhile is found out at the next read. */
void conn_send (struct conn *c, const void *data, size_t len);
void conn_send_bytes (struct conn *c, const struct bytes *b);
void conn_send_slowly (struct conn *c, const struct bytes *b); /* a byte a packet */
/* Sends what the server takes until it has taken no more for wait_ms; returns how much it took. */
size_t conn_send_some (struct conn *c, const void *data, size_t len, int wait_ms);
void conn_recv (struct conn *c, void *data, size_t len, const char *what);
void conn_skip (struct conn *c, uint64_t len, const char *what);
bool conn_at_eof (struct conn *c); /* waits for a byte, which it leaves, or the end */
void expect_eof (struct conn *c, const char *what);

/* negotiate.c: options */

struct opt_reply {
  uint32_t type, len;
  uint8_t *data; /* NUL-terminated beyond len */
};

/* All replies to an option. */
struct answer {
  bool hung_up;              /* instead of the final reply */
  uint32_t final;            /* NBD_REP_ACK or an error; 0 if hung up */
  const char *text;          /* what came with an error, "" if nothing */
  struct opt_reply *replies; /* those before the final one */
  size_t n;
};

struct export_info {
  uint64_t size;
  uint16_t flags;
  const char *name, *description; /* NULL: not told */
  bool has_block_size;
  uint32_t min_block, preferred, max_payload;
  size_t n_export; /* how often NBD_INFO_EXPORT came */
};

void greet (struct conn *c, uint32_t client_flags); /* reads the greeting, sends the flags */
struct conn *open_haggling (struct test *t);        /* connected and greeted, fixed newstyle */
struct bytes *opt_header (struct bytes *b, uint32_t option, uint32_t len);
void opt_send (struct conn *c, uint32_t option, const struct bytes *data); /* NULL: no data */
struct answer *opt_answer (struct conn *c, uint32_t option);               /* may have hung up */
struct answer *opt_try (struct conn *c, uint32_t option, const struct bytes *data);
struct answer *opt_ask (struct conn *c, uint32_t option,
                        const struct bytes *data); /* must answer */
/* Fails unless the option's answer is one of wanted, a list ended by 0. */
void expect_answer (struct conn *c, const struct answer *a, const char *what,
                    const uint32_t *wanted);
#define REPS(...) ((const uint32_t[]){ __VA_ARGS__, 0 })
#define REP_ACK   REPS (NBD_REP_ACK)
const char *rep_name (uint32_t type);

/* Data of INFO and GO, of the META_CONTEXT options (queries ended by NULL). */
struct bytes *go_data (struct test *t, const char *export, size_t n, const uint16_t *infos);
struct bytes *meta_data (struct test *t, const char *export, const char *const *queries);
#define QUERIES(...) ((const char *const[]){ __VA_ARGS__, NULL })
#define NO_QUERIES   ((const char *const[]){ NULL })

struct export_info *info_parse (struct conn *c, const struct answer *a);
/* Reads the contexts of an answer; checks ids and names. */
size_t contexts_parse (struct conn *c, const struct answer *a, struct context **contexts);

void negotiate_mode (struct conn *c, enum mode mode); /* the option that asks for it */
/* SET_META_CONTEXT, to be acknowledged; c->contexts holds what was selected. */
void set_contexts (struct conn *c, const char *const *queries);
void go (struct conn *c);                        /* into transmission */
struct conn *open_transmission (struct test *t); /* in the case's mode, no contexts */
struct conn *open_contexts (struct test *t, const char *const *queries);
/* The server still answers options on this connection. */
void expect_haggling (struct conn *c);

/* transmit.c: requests and replies */

struct request {
  uint16_t flags, type;
  uint64_t cookie, offset, length;
  /* Payload, NULL if there is none to send. For a write it has length bytes. In extended mode any
   * payload sets the flag PAYLOAD_LEN and becomes what the header's length counts. */
  const void *payload;
  size_t payload_len;
  /* The block status form with a payload: the effect length is length, the contexts are these. */
  bool filter;
  const uint32_t *ids;
  size_t n_ids;
};

struct extent {
  uint64_t length, flags;
};

struct status {
  uint32_t id;
  size_t n;
  struct extent *extents;
};

/* A whole reply, all chunks of it. */
struct reply {
  uint32_t error;      /* 0: success */
  const char *message; /* "" if none came */
  uint8_t *data;       /* a read's bytes, holes filled with zeroes */
  size_t data_chunks, hole_chunks;
  bool simple; /* came as a simple reply */
  struct status *status;
  size_t n_status;
};

/* Builds a request; registers it as pending, so that its reply is expected. */
void put_request (struct bytes *b, struct conn *c, const struct request *r);
/* A request header alone, of any content, from which no reply is expected. */
struct bytes *put_header (struct bytes *b, enum mode mode, uint16_t flags, uint16_t type,
                          uint64_t cookie, uint64_t offset, uint64_t length);
uint64_t send_request (struct conn *c, struct request r);   /* picks a cookie if 0; returns it */
struct reply *recv_reply (struct conn *c, uint64_t cookie); /* others are kept for later */
bool reply_came (const struct conn *c, uint64_t cookie);    /* and was kept for later */
struct reply *ask (struct conn *c, struct request r);
void recv_all (struct conn *c); /* all pending replies, each to be a success */

/* One command, its error returned. */
uint32_t do_cmd (struct conn *c, uint16_t type, uint16_t flags, uint64_t offset, uint64_t length);
uint32_t do_write (struct conn *c, uint16_t flags, uint64_t offset, const void *data, size_t len);
/* One read, to be a success. */
uint8_t *do_read (struct conn *c, uint64_t offset, size_t len);

const char *error_name (uint32_t error);
/* Fails unless error is one of wanted, a list ended by UINT32_MAX. */
void expect_error (struct conn *c, uint32_t error, const char *what, const uint32_t *wanted);
#define ERRS(...) ((const uint32_t[]){ __VA_ARGS__, UINT32_MAX })
#define SUCCESS   ERRS (NBD_OK)

/* The stream is where it should be: a read with a fresh cookie is answered, and rightly. */
void expect_in_sync (struct conn *c);
/* A new client is served. */
void expect_alive (struct test *t);

/* The largest payload every server of this kind has to take. */
uint32_t max_payload (const struct test *t);
/* The smallest length and alignment of a request. */
uint32_t unit (const struct test *t);

/* The pattern of the data area, at any offset. */
void fill_pattern (uint8_t *p, uint64_t offset, size_t len);
void expect_pattern (struct conn *c, const uint8_t *p, uint64_t offset, size_t len);
bool all_zero (const uint8_t *p, size_t len);

#endif
