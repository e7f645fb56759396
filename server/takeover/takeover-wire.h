/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the two sides of a takeover say to each other: messages over a unix socket, each a JSON
 * object with a "type", and with it perhaps descriptors and bytes.
 *
 * The other side is a process of the same user or root's (wire_check_peer), but what it says is
 * checked as if it were not: sizes are bounded here, fields are checked by whoever takes them.
 */

#ifndef TAKEOVER_WIRE_H
#define TAKEOVER_WIRE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "qcow2.h"

/* The number of the protocol: both sides must have the same. */
#define TAKEOVER_VERSION 1

/* Descriptors in one message, which is the most that the kernel lets through, and bytes. */
#define WIRE_MAX_FDS  250
#define WIRE_MAX_JSON (4u << 20)
#define WIRE_MAX_BLOB (256u << 20)

struct wire {
  int fd;         /* a connected unix socket; closing it is the owner's affair */
  int timeout_ms; /* how long a message may keep us waiting */
};

struct wire_message {
  json_t *body;     /* an object */
  const char *type; /* in it */
  int fds[WIRE_MAX_FDS];
  unsigned n_fds; /* close-on-exec.  Those that are taken over are to be set to -1 */
  uint8_t *blob;
  size_t blob_size;
};

/* The other process: -EPERM if it belongs to neither this user nor root nor ALSO. */
int wire_check_peer (int fd, uid_t also, pid_t *pid, struct q_error *err);

/* BODY is taken over (NULL: no memory); the descriptors and bytes are not. */
int wire_send (const struct wire *w, json_t *body, const int *fds, unsigned n_fds, const void *blob,
               size_t blob_size, struct q_error *err);
/* A message of TYPE (NULL: of any).  -EPIPE: the other side is gone; -ETIMEDOUT; -EPROTO: it said
 * something else; -ECANCELED: it said "failed", and ERR says why. */
int wire_receive (const struct wire *w, const char *type, struct wire_message *m,
                  struct q_error *err);
/* Frees it, and closes the descriptors that are left. */
void wire_free (struct wire_message *m);

#endif /* TAKEOVER_WIRE_H */
