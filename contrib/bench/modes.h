/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is measured besides traffic: connecting, idling, and starting up.
 */

#ifndef BENCH_MODES_H
#define BENCH_MODES_H

#include "client.h"
#include "util.h"

#include <sys/types.h>

struct connect_result {
  uint64_t connects, elapsed_ns, server_cpu_ns, own_cpu_ns;
  struct hist latency; /* from connect to the end of the handshake */
};

/* THREADS clients connect, negotiate, say goodbye and close, again and again for RUN_NS. */
void connect_run (const struct target *t, unsigned threads, uint64_t run_ns, pid_t pid,
                  struct connect_result *r);

struct idle_result {
  struct process_memory before, after;
};

/* Opens N connections, reads BLOCK bytes once on each (a connection that was never used may not
 * own its buffers yet), and looks at what process PID has become.  All read the same bytes: a
 * server that maps the image would else count its page cache as the connections' memory. */
void idle_run (const struct target *t, unsigned n, uint32_t block, pid_t pid,
               struct idle_result *r);

/* Starts COMMAND, a server that stays in the foreground, N times over; adds to H how long it took
 * from there to the first byte read through it.  Ends it with SIGTERM.  A unix socket left behind
 * is removed before each start. */
void open_run (const struct target *t, unsigned n, char *const command[], struct hist *h);

#endif /* BENCH_MODES_H */
