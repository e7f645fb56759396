/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Names of files that outlive a change of directory.
 */

#ifndef PATH_H
#define PATH_H

/* NAME, counted from the root directory if it is not already.  To be freed; NULL without memory, or
 * if there is no working directory any more. */
char *path_absolute (const char *name);

#endif /* PATH_H */
