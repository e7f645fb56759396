/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Names in an image of other files: where they lead, and whether the user lets us follow them.
 *
 * All functions: negative errno, with ERR filled; -EPERM if a policy is in the way, and then the
 * message says which word would allow it.
 */

#ifndef Q_NAMES_H
#define Q_NAMES_H

#include "image.h"

/* Turns the RECORDED name of a WHAT ("backing file") into *PATH, relative to the directory of
 * IMG; the caller frees it.  It is to be opened with Q_FILE_LOCAL; should somebody else see it, it
 * never begins as a protocol's name does because of what is RECORDED.  -ENOTSUP for what is not a
 * local file's name; HINT ends the message.
 */
int q_name_resolve (const struct q_image *img, const char *what, const char *hint,
                    const char *recorded, char **path, struct q_error *err);

/* Whether POLICY lets IMG's backing file, whose name was resolved, be opened: by *PATH, which the
 * caller frees, and with these q_file_flags. */
int q_name_check_backing (const struct q_image *img, enum q_backing policy, char **path,
                          unsigned *flags, struct q_error *err);
/* As which format. */
int q_name_backing_format (const struct q_image *img, enum q_backing policy, enum q_format *format,
                           struct q_error *err);

/* The data file to open: CHOSEN by the user, or else the one that IMG names, if POLICY lets it be
 * opened, with these q_file_flags.  The caller frees *PATH. */
int q_name_check_data (const struct q_image *img, const char *chosen,
                       enum q_data_file_policy policy, char **path, unsigned *flags,
                       struct q_error *err);

#endif /* Q_NAMES_H */
