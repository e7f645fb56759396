/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading the configuration again while clients are connected: SIGHUP with --config, and the
 * control socket.
 *
 *     r = reload_new (&context, &err);
 *     reload_config (r, &summary, &err)        any thread but a loop's; blocking
 *     reload_begin (r)                         the main thread: the same, in the background
 *     reload_end (r);                          the main thread; before the loops end
 *     reload_free (r);                         the main thread; after the last client has gone
 *
 * The command line is read again, with the configuration files that it names, and the exports that
 * it asks for are compared, by name, with those that are served.
 *
 *     not there yet             added
 *     not asked for any more    removed: its clients are disconnected at a request boundary
 *     the same                  nobody notices anything
 *     differs only in description, rate, max-connections (not to or from 1), tls or tls-authz
 *                               changed in place
 *     differs in anything else  removed and added again, if it has no clients
 *
 * All or nothing: whatever is wrong (syntax, an unknown or bad setting, a missing or locked image,
 * an export that has clients and would have to be removed and added again) leaves everything as it
 * was.  New images are opened before anything is changed; where that cannot be, because the server
 * itself still has the file open, it is at least tried whether they can be read.
 *
 * What was lost in a takeover that failed, and is asked for as it was, is opened again in place.
 *
 * Exports that were added by a command are none of the configuration's: they stay, and their names
 * are taken.  Objects other than secrets are what they were when the server was started.  Secrets
 * are read when they are new, or their settings are.  Settings that are not about exports take
 * effect when the server is started again; a warning names those that have changed.
 */

#ifndef RELOAD_H
#define RELOAD_H

#include "export.h"
#include "options.h"

struct reload;

struct reload_context {
  int argc;
  char **argv;
  const struct options *options; /* what ARGV said in the beginning; outlives the reload */
  struct exports *exports;
  struct tls *tls; /* may be NULL */
};

struct reload_summary {
  unsigned added, changed, replaced, removed, unchanged;
};

/* NULL without memory. */
struct reload *reload_new (const struct reload_context *context);
/* Returns 0 or -errno, with a line that names the place; the log has the outcome as well. */
int reload_config (struct reload *r, struct reload_summary *summary, struct q_error *err);
/* Once more if it is being done already.  Tells the service manager. */
void reload_begin (struct reload *r);
/* From here to reload_release nothing is reloaded.  -EBUSY while something is.  R may be NULL. */
int reload_hold (struct reload *r);
void reload_release (struct reload *r);
/* Waits for what was begun, while there are loops still: it may be waiting for them.  The main
 * thread, which begins nothing any more.  R may be NULL. */
void reload_end (struct reload *r);
/* R may be NULL. */
void reload_free (struct reload *r);

#endif /* RELOAD_H */
