/* SPDX-License-Identifier: BSD-3-Clause
 *
 * --list: what another NBD server offers.
 */

#ifndef LIST_H
#define LIST_H

#include "objects.h"

struct list_options {
  const char *socket; /* unix socket; if it is NULL: */
  const char *host, *port;
  const struct object *tls; /* credentials; NULL to speak plain text */
  const char *tls_hostname; /* whom the server's certificate must be for; NULL: host */
};

/* Prints to stdout what a server offers, in the form that qemu-nbd --list has.  Returns 0 or
 * -errno. */
int list_exports (const struct list_options *options, struct q_error *err);

#endif /* LIST_H */
