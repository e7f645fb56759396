/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Metrics over HTTP, for Prometheus and whatever else reads OpenMetrics.
 *
 *     m = metrics_open ("127.0.0.1:9754", &err);    makes the sockets
 *     metrics_start (m, &exports, &err);            answers, on a thread of its own
 *     metrics_stop (m);                             before the exports are closed
 *     metrics_close (m);
 *
 * There is one thread for each socket; it serves a few connections, for a few seconds each, and
 * those who serve data never wait for it.  GET /metrics is all that there is to ask for (GET / says
 * so); whoever does not ask for OpenMetrics gets the older text format.
 *
 * There is no access control: a socket on the loopback interface is for all users of the machine.
 */

#ifndef METRICS_H
#define METRICS_H

#include <stdio.h>
#include <sys/types.h>

#include "export.h"
#include "listen.h"

struct metrics;

/* ADDRESS is PORT (of the loopback interface), HOST:PORT, [IPV6]:PORT, :PORT (all addresses) or
 * unix:PATH.  NULL on error. */
struct metrics *metrics_open (const char *address, struct q_error *err);
/* The same with sockets that are there already; LS is empty afterwards, unless it is an error. */
struct metrics *metrics_adopt (struct listeners *ls, struct q_error *err);
/* Whether LS, which another process listens on, has what metrics_open would make for ADDRESS. */
bool metrics_is_at (const struct listeners *ls, const char *address);
/* NULL if M is. */
struct listeners *metrics_listeners (struct metrics *m);
/* Socket files are to belong to that user, who the server is about to become. */
void metrics_give (struct metrics *m, uid_t uid, gid_t gid);
/* After the last fork.  EXPORTS stays until metrics_stop. */
int metrics_start (struct metrics *m, struct exports *exports, struct q_error *err);
/* M may be NULL here, or not have been started. */
void metrics_stop (struct metrics *m);
void metrics_close (struct metrics *m);

/* metrics-text.c: all of it, as OpenMetrics or in the older format. */
int metrics_write (FILE *f, struct exports *exports, bool openmetrics);

#endif /* METRICS_H */
