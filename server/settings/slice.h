/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A part of a file that the engine takes for the whole: an opener that gives the file of one name
 * from an offset on, and all others as they are.
 */

#ifndef SLICE_H
#define SLICE_H

#include "file.h"

struct slice {
  struct q_file_opener opener; /* for q_open_options.opener */
  char *filename;              /* whose part it is */
  uint64_t offset, size;       /* size may be UINT64_MAX: to the end */
};

/* NULL without memory. */
struct slice *slice_new (const char *filename, uint64_t offset, uint64_t size);
void slice_free (struct slice *s);

#endif /* SLICE_H */
