/* SPDX-License-Identifier: BSD-3-Clause
 *
 * --user and --group.
 */

#ifndef PRIVILEGES_H
#define PRIVILEGES_H

#include <sys/types.h>

#include "qcow2.h"

struct identity {
  uid_t uid;
  gid_t gid;
  char *name; /* of the user; NULL if only a number is known */
};

/* USER and GROUP are names or numbers; GROUP may be NULL: the user's own. */
int identity_find (struct identity *id, const char *user, const char *group, struct q_error *err);
/* Becomes ID, for good: user, group, and the user's further groups. */
int identity_assume (const struct identity *id, struct q_error *err);
void identity_free (struct identity *id);

#endif /* PRIVILEGES_H */
