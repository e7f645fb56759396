/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Names of files: such as outlive a change of directory, and such as lie in others' directories.
 */

#ifndef PATH_H
#define PATH_H

#include <sys/types.h>

/* NAME, counted from the root directory if it is not already.  To be freed; NULL without memory, or
 * if there is no working directory any more. */
char *path_absolute (const char *name);

/* As open with O_CREAT and O_CLOEXEC, but that root, in a directory that others can write to, opens
 * regular files only, and nothing by a link, hard or symbolic: who put it there may mean any file
 * of root's.  -errno, with *WHY it is so. */
int path_create (const char *name, int flags, mode_t mode, const char **why);

#endif /* PATH_H */
