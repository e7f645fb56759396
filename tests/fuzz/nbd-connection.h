/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A client's connection to a server, all of it in this process and on this thread, with an image in
 * memory: the client's bytes are given to a session (session.h) in pieces, what it has to say is
 * taken in pieces, and now and then another process goes on with it (takeover.h).
 *
 *     connection_begin (&w, &choice);       an export, and a session for it
 *     client_assemble (&w.client, ...);     what the client sends
 *     connection_run (&w);                  until the session has ended
 *     w.server                              what it has said
 *     connection_end (&w);
 *
 * What must hold meanwhile (fuzz.h: broken): the session goes on or ends; its memory is bounded,
 * and none is left when it has ended; what is saved of it is the client's own bytes, can be
 * restored, and saved again is the same; and whatever the client has done, its image is sound.
 */

#ifndef FUZZ_NBD_CONNECTION_H
#define FUZZ_NBD_CONNECTION_H

#include <jansson.h>

#include "export.h"
#include "judge.h"
#include "session.h"

enum choice_bits {
  READ_ONLY = 1,
  RESIZABLE = 2,
  COMPRESS = 4,
  WRITE_THROUGH = 8,
  LITTLE_MEMORY = 16,
  STOPPING = 32,
  EOF_EARLY = 64,
  REAL_FILE = 128, /* the image has a descriptor, and no bound: real-file.h */
};

/* Of a real file: */
enum choice_more {
  BORROW = 1, /* replies are sent from its page cache */
  RING = 2,
  MISSES = 4,
};

/* The head of an input. */
struct choice {
  uint8_t start; /* nbd-client.h, modulo STARTS */
  uint8_t image; /* modulo CONNECTION_IMAGES */
  uint8_t bits;
  uint8_t min_block;
  uint8_t seed;    /* of the cuts */
  uint8_t in, out; /* the longest piece: 1 << these */
  uint8_t detect;
  uint8_t limit; /* the disk is full */
  uint8_t more;
  uint8_t spare[5];
  uint8_t handover; /* not after so many turns on average, and then after one; 0: never */
};

#define CONNECTION_IMAGES 6u
extern const char *const connection_image[CONNECTION_IMAGES];

/* What another process gets of a session. */
struct cargo {
  json_t *state; /* NULL: it got nothing */
  uint8_t *bytes;
  size_t size;
  bool honest; /* it is what was saved */
};

struct connection {
  const struct choice *c;
  struct exports exports;
  struct pool *pool;
  struct shard shard;
  struct session s;
  struct bytes client, server;
  /* Makes what was saved (STATE, a text, and SIZE bytes) the cargo.  NULL: as it is. */
  void (*carry) (struct connection *w, const char *state, const uint8_t *bytes, size_t size,
                 struct cargo *cargo);
  void *opaque;     /* CARRY's */
  size_t sent;      /* of the client's bytes, given to the session, or ... */
  size_t held_from; /* ... received, and held from here on */
  bool cut;         /* the server's side may end anywhere */
  bool lied;        /* a cargo was not honest: neither side is what it was */
  bool over;        /* and then the session could not go on */
  size_t moved;     /* bytes, both ways */
  unsigned handed;  /* how often */
  uint64_t random;
};

/* C outlives W. */
void connection_begin (struct connection *w, const struct choice *c);
void connection_run (struct connection *w);
void connection_end (struct connection *w);
/* The disk as it was in the beginning. */
const struct bytes *connection_disk (const struct connection *w);

#endif /* FUZZ_NBD_CONNECTION_H */
