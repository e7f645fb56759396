/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Exports that a configuration asks for: a list of their settings, kept beyond the configuration's
 * own reading.
 */

#ifndef WANTED_H
#define WANTED_H

#include "export.h"

enum wanted_action { WANTED_ADD, WANTED_CHANGE, WANTED_REPLACE, WANTED_UNCHANGED };

struct wanted {
  struct wanted *next;
  struct export_options options; /* its strings are ours, but for those of source.open */
  char *settings;                /* as export.settings */
  enum wanted_action action;
  bool late;                                /* can be opened only when another has been closed */
  struct export *prepared;                  /* NULL if it is not */
  struct q_secret *keys[SOURCE_LAYERS + 1]; /* of a recipe */
};

/* Adds a copy to the end of LIST.  -EEXIST: there is one of that name; -ENOMEM. */
int wanted_add (struct wanted **list, const struct export_options *opts, struct q_error *err);
/* The same, alone, and with keys of its own: all that there is to open it later. */
int wanted_recipe (struct wanted **recipe, const struct export_options *opts, struct q_error *err);
struct wanted *wanted_find (struct wanted *list, const char *name);
void wanted_free (struct wanted *list);

#endif /* WANTED_H */
