/* SPDX-License-Identifier: BSD-3-Clause
 *
 * System calls that are made with zeros for arguments: what has to be refused is refused before
 * they are looked at.
 */

#ifndef CALLS_H
#define CALLS_H

#include <stdbool.h>

struct call {
  const char *name; /* NULL after the last one of a list */
  long number;
};

extern const struct call absent[]; /* as if the kernel did not have them */
extern const struct call deadly[]; /* the end of the process */

int list_calls (const struct call *list);
bool find_call (const char *name, const struct call *list, long *number);

#endif /* CALLS_H */
