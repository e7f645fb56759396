/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the server says: one line a message.  Any thread.
 *
 * Messages go to stderr until log_open says otherwise.  Warnings and errors are always shown, info
 * (who connects, what they did) and debug (why an option was refused) if the level asks for them.
 */

#ifndef LOG_H
#define LOG_H

#include <stdbool.h>

#include "qcow2.h"

/* Takes the engine's messages over as well.  Call it before anything else. */
void log_init (const char *program);

/* DESTINATION is stderr, syslog, journal, or the absolute name of a file.  Call it before there are
 * threads.  Returns 0 or -errno. */
int log_open (const char *destination, struct q_error *err);
/* Until this is called, errors go to stderr as well, wherever messages go: somebody is waiting to
 * hear whether the server starts. */
void log_started (void);
/* error, warning (the default), info or debug. */
bool log_set_level (const char *level);
const char *log_level_name (void);
/* Info is shown. */
bool log_is_verbose (void);
/* Messages go through a socket, to the system's log or journal. */
bool log_is_remote (void);
/* Messages go to stderr. */
bool log_is_stderr (void);

void log_error (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));
void log_warning (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));
void log_info (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));
void log_debug (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));

#endif /* LOG_H */
