/* SPDX-License-Identifier: BSD-3-Clause
 *
 * NBD exports as files: an opener for the engine, over libnbd.
 *
 * A name that is an NBD URI (nbd://, nbd+unix://, nbds://, ...) is a file that behaves like a block
 * device of a fixed size; every other name is a local file.  Nothing but what a person wrote is
 * opened in this way: the engine refuses backing file names with a scheme before it asks.
 *
 * Requests of several threads travel over several connections where the server says that this is
 * safe (multi-conn), else they take turns.  Each is cut into several that are under way at once.
 */

#ifndef NBD_FILE_H
#define NBD_FILE_H

#include "file.h"

extern const struct q_file_opener img_nbd_opener;

/* Whether NAME is an NBD URI. */
bool img_is_nbd (const char *name);

#endif /* NBD_FILE_H */
