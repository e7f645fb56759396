/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who is let in: QEMU's objects authz-simple, authz-list and authz-list-file, asked about the
 * identity that a TLS client has proved to have: its certificate's distinguished name, or its user
 * name with a pre-shared key.
 *
 *     authz = authz_open (object, &err);
 *     if (authz_allows (authz, "CN=laptop,O=Example")) ...     any thread, at any time
 *     authz_reload (authz, &err);                               reads a list-file again
 */

#ifndef AUTHZ_H
#define AUTHZ_H

#include <stdbool.h>

#include "objects.h"

struct authz;
struct ev_loop;

/* OBJECT has to outlive it.  NULL on error. */
struct authz *authz_open (const struct object *object, struct q_error *err);
bool authz_allows (struct authz *a, const char *identity);
/* On an error, which it returns as -errno, the rules stay what they were. */
int authz_reload (struct authz *a, struct q_error *err);
/* From now on, reloads a list-file (unless its object has refresh=no) when it changes. */
void authz_watch (struct authz *a, struct ev_loop *ev);
const struct object *authz_object (const struct authz *a);
void authz_free (struct authz *a);

#endif /* AUTHZ_H */
