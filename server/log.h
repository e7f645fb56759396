/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the server says: one line a message, to stderr.  Any thread.
 *
 * Warnings and errors are always shown; info and debug only after log_set_verbose.
 */

#ifndef LOG_H
#define LOG_H

#include <stdbool.h>

/* Takes the engine's messages over as well.  Call it before anything else. */
void log_init (const char *program);
void log_set_verbose (bool verbose);
bool log_is_verbose (void);

void log_error (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));
void log_warning (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));
void log_info (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));

#endif /* LOG_H */
