/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What this server, with its options, is to be able to do in the sandbox.
 */

#ifndef CONFINE_H
#define CONFINE_H

struct exports;
struct listeners;
struct options;
struct sandbox;
struct tls;

struct confine_context {
  const struct options *options;
  const struct listeners *listeners;
  const struct exports *exports;
  const struct tls *tls;      /* NULL: none */
  const char *private_socket; /* of --run; NULL: none */
};

/* Adds to SB what is done while the server serves and when it ends, apart from serving.  All is
 * open. */
void confine_list (const struct confine_context *c, struct sandbox *sb);

#endif /* CONFINE_H */
