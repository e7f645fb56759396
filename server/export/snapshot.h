/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Internal snapshots by the words of a command line.
 */

#ifndef SNAPSHOT_H
#define SNAPSHOT_H

#include "source.h"

/* Finds the snapshot that TEXT names, as qemu-nbd's --load-snapshot does: "ID_OR_NAME", or
 * "snapshot.id=ID", "snapshot.name=NAME" or both.  On success *ID is for q_open_options.snapshot,
 * to be freed. */
int snapshot_id (const struct source *s, const char *text, char **id, struct q_error *err);

/* The id of the snapshot that IMG shows, which was opened by WORD: an id or else a name.  To be
 * freed; NULL without memory. */
char *snapshot_shown (const struct q_image *img, const char *word);

#endif /* SNAPSHOT_H */
