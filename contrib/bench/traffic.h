/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Keeping a server busy: N connections, each with D requests in flight, and what came of it.
 *
 * One thread drives many connections with epoll, or one with plain blocking calls.  All replies
 * that have arrived are taken with one receive, and all requests that they make room for leave with
 * one send, so that the client costs a fraction of what any server can.
 */

#ifndef BENCH_TRAFFIC_H
#define BENCH_TRAFFIC_H

#include "client.h"
#include "util.h"

#include <sys/types.h>

enum pattern {
  PATTERN_RANDOM,  /* any block, each time */
  PATTERN_SEQ,     /* in order; each connection has its own part of the range, and starts over */
  PATTERN_PERMUTE, /* each block once, in random order; then over again */
};

struct traffic {
  struct target target;
  unsigned connections, depth, threads;
  uint32_t block;
  enum pattern pattern;
  /* Blocks lie at start, start + stride, ... below end (0: the end of the export). */
  uint64_t start, end, stride;
  unsigned read_weight, write_weight;
  bool status;          /* in place of reads and writes: walk the allocation of the range */
  unsigned flush_every; /* a flush behind every so many writes of a connection; 0: none */
  uint64_t warm_ns;     /* not measured */
  uint64_t run_ns;      /* how long, or ... */
  uint64_t count;       /* ... how many requests (walks: how many times over the range), if not 0 */
  uint64_t seed;
  bool spin;         /* poll for replies in place of sleeping */
  bool stamp;        /* writes carry their offset in every sector, reads look for it */
  bool compressible; /* data that deflates to about a third */
  pid_t pid;         /* of the server; 0: do not look at it */
};

struct traffic_result {
  uint64_t elapsed_ns;
  uint64_t requests; /* all that were answered, flushes included */
  uint64_t bytes;    /* read or written */
  uint64_t flushes;
  uint64_t extents; /* block status: descriptors received */
  double walks;     /* block status: how often the whole range was walked */
  uint64_t server_cpu_ns, own_cpu_ns;
  struct hist latency;
};

/* Any error reply is fatal: a server that fails fast must not look like a fast server. */
void traffic_run (const struct traffic *t, struct traffic_result *r);

#endif /* BENCH_TRAFFIC_H */
