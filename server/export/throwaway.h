/* SPDX-License-Identifier: BSD-3-Clause
 *
 * --snapshot: a temporary overlay that takes the writes, so that the image stays as it is.
 */

#ifndef THROWAWAY_H
#define THROWAWAY_H

#include "source.h"

/* Makes an empty qcow2 image over S, in TMPDIR (or /var/tmp), and S that image.  Remove the file
 * s->filename as soon as it has been opened, or has not. */
int throwaway_overlay (struct source *s, struct q_error *err);

#endif /* THROWAWAY_H */
