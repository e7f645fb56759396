/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Connecting to an NBD server and negotiating, blocking.
 *
 * Everything that goes wrong is fatal, with what the server said.
 */

#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct target {
  const char *unix_path;   /* or NULL */
  const char *host, *port; /* if unix_path is NULL */
  const char *export_name;
  bool structured; /* negotiate structured replies */
  bool allocation; /* and the context base:allocation */
};

struct export
{
  uint64_t size;
  uint16_t flags;
};

/* Returns a connected blocking socket, or -1 with errno set if nobody listens there (yet). */
int client_connect (const struct target *t);
/* The same, but waits a few seconds for a server that is starting or whose backlog is full. */
int client_connect_patiently (const struct target *t);
/* Negotiates up to the transmission phase. */
void client_handshake (int fd, const struct target *t, struct export *e);
/* One blocking simple read on a connection without other requests in flight; for structured replies
 * too.  BUF may be NULL. */
void client_read (int fd, uint64_t offset, uint32_t len, void *buf);
/* Says goodbye and closes. */
void client_close (int fd);

/* All of it or fatal. */
void send_full (int fd, const void *buf, size_t len);
void recv_full (int fd, void *buf, size_t len);

#endif /* BENCH_CLIENT_H */
