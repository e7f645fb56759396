/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A running server hands everything over to another process: the old one's side of a takeover.  The
 * other side is takeover.h, which also says what they say to each other.
 *
 *     prepare      the new one gets the listening sockets, and gets ready; clients notice nothing
 *     freeze       sessions stop at a request boundary: what is under way is carried out
 *     suspend      images are flushed and closed; guards (lock.h) keep them locked
 *     images       the new one opens them
 *     sessions     the new one gets the clients' sockets, and what each session has come to
 *     leave        the new one serves: this one ends, and touches nothing that is the other's now
 *
 * Up to the new one's last word, `serving', everything can be undone: the old one makes sure that
 * the new one is gone (it is killed if it does not go by itself), opens the images again, and goes
 * on; for the clients there was a pause.
 */

#ifndef HANDOVER_H
#define HANDOVER_H

#include <stdbool.h>

#include "qcow2.h"

struct control;
struct exports;
struct reload;
struct server;

struct handover_context {
  struct server *server;
  struct exports *exports;
  struct reload *reload;   /* may be NULL */
  struct control *control; /* may be NULL */
};

/* To the process that listens on the unix socket PATH.  Blocking; any thread but the main one and
 * the loops'.  0: the server is ending.  -errno: it goes on as before. */
int handover (const struct handover_context *context, const char *path, struct q_error *err);
/* Any thread. */
bool handover_is_under_way (void);

#endif /* HANDOVER_H */
