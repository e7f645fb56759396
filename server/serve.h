/* SPDX-License-Identifier: BSD-3-Clause
 *
 * From settings to exports: FILE, --export and --export-dir, of a command line or a configuration
 * file.
 *
 * Errors are one line in ERR; all return 0 or -errno.
 */

#ifndef SERVE_H
#define SERVE_H

#include <jansson.h>

#include "options.h"

/* What is to be done with an export.  OPTS and what it points to are good during the call. */
typedef int (*serve_fn) (void *opaque, const struct export_options *opts, struct q_error *err);

/* Calls SERVE for each export that OPTS ask for, in their order, until it returns an error. */
int serve_all (const struct options *opts, struct tls *tls, serve_fn serve, void *opaque,
               struct q_error *err);

/* Allows (hooks.h) the commands that OPTS have for exports. */
int serve_hooks (const struct options *opts, struct q_error *err);

/* What holds for an export of which nothing is said: what is about FILE alone is not a default for
 * the others. */
void serve_defaults (const struct options *opts, struct tls *tls, struct export_options *defaults);

/* Adds the export that SETTINGS describe over DEFAULTS, in the words of --export; WHAT is where
 * they come from, for messages.  If DEFAULTS have a base, it is a view of that one, and SETTINGS
 * name no file. */
int serve_export (struct exports *set, json_t *settings, const char *what,
                  const struct export_options *defaults, struct q_error *err);

#endif /* SERVE_H */
