/* SPDX-License-Identifier: BSD-3-Clause
 *
 * --takeover: this process goes on in the place of a server that is running, whose clients see a
 * pause.  The new one's side; the old one's is handover.h.
 *
 *     t = takeover_begin (control_path, user, &err);  asks the running server for it
 *     takeover_listeners, _metrics, _control, _pid_file (t, ...)     take what it has offered
 *     takeover_ready (t, &err);           it stands still, its images are closed, and the guards
 *                                         (lock.h) are ours
 *     ... open the images ...
 *     takeover_sessions (t, ...);         its clients are ours, and it ends
 *     takeover_end (t);
 *
 * Messages (takeover-wire.h), from the old one unless they are marked:
 *
 *     offer     listening sockets, control socket, pid file
 *     ready     (new) which of these it goes on with ("took")
 *     guards    one or more
 *     opened    (new)
 *     session   for each: its socket, what it has come to, bytes
 *     end       how many there were
 *     taken     (new) all of them have been looked at
 *     go        also: nothing more, if the old one dies instead
 *     serving   (new) the point of no return
 *
 * Before `go' this process serves nobody, and whatever goes wrong (an error, its death) leaves the
 * old one as it was: its own part is to close the images, and end.
 */

#ifndef TAKEOVER_H
#define TAKEOVER_H

#include <stdbool.h>

#include "control.h"
#include "listen.h"
#include "metrics.h"
#include "server.h"

struct takeover;

/* The running server is this user's, or root's, or USER's.  NULL on error. */
struct takeover *takeover_begin (const char *control_path, uid_t user, struct q_error *err);

/* All of its listening sockets; they are still the other's to remove.  UNIX_PATH (may be NULL) must
 * be among them.  0 or -errno. */
int takeover_listeners (struct takeover *t, struct listeners *ls, const char *unix_path,
                        struct q_error *err);
/* Its metrics, if they are at ADDRESS, and its control socket, if that is at PATH; else NULL with
 * ERR empty, or an error. */
struct metrics *takeover_metrics (struct takeover *t, const char *address, struct q_error *err);
struct control *takeover_control (struct takeover *t, const char *path, struct q_error *err);
/* Its pid file, if that is PATH: 1.  0: it has another one, or none.  -errno. */
int takeover_pid_file (struct takeover *t, const char *path, struct q_error *err);

/* What of the other's this process goes on with: the old one leaves that where it is, and removes
 * what it had besides. */
enum takeover_part { TAKEOVER_CONTROL = 1, TAKEOVER_METRICS = 2, TAKEOVER_PID_FILE = 4 };
bool takeover_took (const struct takeover *t, enum takeover_part part);
/* Whether the other process is root's.  If it is not, nothing is to be done as root with files by
 * the names that it says they have. */
bool takeover_is_from_root (const struct takeover *t);

/* Everything else is ready: clients wait from here on.  0 or -errno. */
int takeover_ready (struct takeover *t, struct q_error *err);
/* The images are open, the loops run.  0: SV has its clients, and everything is this process's. */
int takeover_sessions (struct takeover *t, struct server *sv, struct exports *exports,
                       struct q_error *err);
/* What was offered belongs to this process. */
bool takeover_is_done (const struct takeover *t);
/* T may be NULL.  If it is not done, everything of the other's that is still held goes. */
void takeover_end (struct takeover *t);

#endif /* TAKEOVER_H */
