/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who is connected: for those who want to see it, or to disconnect somebody, while the loops serve.
 *
 *     clients_add (&clients, &c->client);       the loop's thread, when the connection begins
 *     clients_chose (&clients, &c->client);     ... when it has got an export
 *     clients_closed (&clients, &c->client);    ... before its socket is closed
 *     clients_remove (&clients, &c->client);    ... when its requests are done
 *     n = clients_list (&clients, &infos);      any thread
 *     clients_disconnect (&clients, id);        any thread
 *
 * Locking.  The lock guards the list, and each client's socket and export.  What is in the list has
 * a loop and (once it has chosen) an export that it holds a reference to; so whoever holds the lock
 * may look at all of these.  The counters are atomic and written by the loop's thread alone.
 * Under this lock no other is taken but the loop's own.
 */

#ifndef CLIENTS_H
#define CLIENTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct export;
struct loop;
struct session;

/* A part of a connection. */
struct client {
  struct client *next, **prev;
  uint64_t id;  /* never used again */
  double since; /* seconds since 1970 */
  int fd;       /* -1: it is closed, and its last requests are being carried out */
  struct loop *loop;
  const struct session *session; /* for its counters */
  const struct export *export;   /* NULL during the handshake */
  bool tls;                      /* has begun TLS by the time that it chose */
  atomic_bool leave;             /* it is to be disconnected */
};

struct clients {
  pthread_mutex_t lock;
  struct client *first;
  uint64_t last_id;
};

struct client_info {
  uint64_t id;
  char *peer;   /* address and port, or process; NULL without memory, or if it has gone */
  char *export; /* its name; NULL during the handshake */
  double since; /* seconds since 1970 */
  bool tls;
  uint64_t requests, bytes_read, bytes_written;
};

void clients_init (struct clients *cs);
void clients_destroy (struct clients *cs);

/* C has its fd, loop and session; gives it an id. */
void clients_add (struct clients *cs, struct client *c);
void clients_chose (struct clients *cs, struct client *c, const struct export *x, bool tls);
void clients_closed (struct clients *cs, struct client *c);
/* It uses its export no longer. */
void clients_remove (struct clients *cs, struct client *c);

/* All that are connected, the latest first.  Returns how many, or -ENOMEM.  To be freed with
 * clients_free_list. */
int clients_list (struct clients *cs, struct client_info **list);
void clients_free_list (struct client_info *list, int n);

/* The client is disconnected at a request boundary: what is under way is carried out and answered,
 * what comes after that is refused with ESHUTDOWN.  Does not wait for it.  -ENOENT. */
int clients_disconnect (struct clients *cs, uint64_t id);

#endif /* CLIENTS_H */
