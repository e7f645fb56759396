/* SPDX-License-Identifier: BSD-3-Clause
 *
 * From what the command line says about exports to open ones.
 */

#ifndef SERVE_H
#define SERVE_H

#include <jansson.h>

#include "export.h"

/* Adds the export that SETTINGS (a tree, see keyval.h) describe; WHAT is where they come from.
 * DEFAULTS holds for what they leave out. */
int serve_export (struct exports *set, json_t *settings, const char *what,
                  const struct export_options *defaults, struct q_error *err);
/* The same for each image in the directory SETTINGS.dir, under its file name: FILE.qcow2, FILE.raw
 * and FILE.img (raw), or, if SETTINGS have a format, every file. */
int serve_directory (struct exports *set, json_t *settings, const struct export_options *defaults,
                     struct q_error *err);

#endif /* SERVE_H */
