/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Listening sockets: TCP, unix, vsock, or inherited from whoever started us (LISTEN_FDS).
 *
 * Errors are one line in ERR.
 */

#ifndef LISTEN_H
#define LISTEN_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

#define MAX_LISTENERS 64

struct listener {
  int fd;
  char *unix_path;   /* to be removed at the end; NULL if there is none, or it is not ours */
  uint64_t dev, ino; /* what bind made of it: another server may have put its own there since */
  char *name;        /* of an inherited socket (LISTEN_FDNAMES); NULL if it has none */
};

struct listeners {
  unsigned n;
  struct listener l[MAX_LISTENERS];
};

/* HOST may be a name or an address, "" for all addresses of both families; PORT a number or a
 * service name.  Listens on every address that HOST has. */
int listen_tcp (struct listeners *ls, const char *host, const char *port, struct q_error *err);
/* A socket that is there already is replaced, anything else is left alone. */
int listen_unix (struct listeners *ls, const char *path, struct q_error *err);
/* A socket that only its owner can connect to.  One that is there already is replaced if nobody
 * answers at it. */
int listen_private (struct listeners *ls, const char *path, struct q_error *err);
/* PORT is a number; any context of this host. */
int listen_vsock (struct listeners *ls, const char *port, struct q_error *err);
/* The SELinux label of the sockets that are made from here on; NULL: the usual one again. */
int listen_set_label (const char *label, struct q_error *err);
/* How many sockets were handed to us by LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES; clears those
 * variables. */
int listen_inherited (struct listeners *ls, struct q_error *err);
/* Whether one of LS is what listen_unix would make at PATH, and is still there; or what listen_tcp
 * would make for HOST and PORT. */
bool listen_has_unix (const struct listeners *ls, const char *path);
bool listen_has_tcp (const struct listeners *ls, const char *host, const char *port);
/* Closes all and removes the unix sockets. */
void listen_close (struct listeners *ls);

/* The unix sockets are another process's to remove. */
void listen_leave (struct listeners *ls);
/* Adds FD, which is listening, and is taken over: as another process has made it.  -E2BIG, -ENOMEM;
 * then it is closed. */
int listen_adopt (struct listeners *ls, int fd, const char *unix_path, uint64_t dev, uint64_t ino,
                  const char *name, struct q_error *err);

/* What a client connects to: nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH or
 * nbd+vsock://2:PORT/EXPORT; nbds for nbd if it is to begin TLS.  To be freed; NULL without memory.
 */
char *listener_uri (const struct listener *l, const char *export_name, bool tls);

/* A connection's other end, for messages; to be freed. */
char *peer_name (int fd);
/* The same number for connections of one client: a process of this host, or an address (of IPv6,
 * the network that one host has for itself).  0 if it cannot be told. */
uint64_t peer_identity (int fd);

#endif /* LISTEN_H */
