/* SPDX-License-Identifier: BSD-3-Clause
 *
 * TLS credentials, as they were in their files when they were loaded: QEMU's objects
 * tls-creds-x509, tls-creds-psk and tls-creds-anon.  They never change: to reload is to load
 * others.
 *
 * The files, in the object's dir:
 *
 *     x509: ca-cert.pem (if clients are verified), server-cert.pem, server-key.pem,
 *           and, where they exist, ca-crl.pem, dh-params.pem
 *     psk:  keys.psk, lines of USER:HEXADECIMAL-KEY; dh-params.pem
 *     anon: dh-params.pem
 */

#ifndef TLS_CREDS_H
#define TLS_CREDS_H

#include <gnutls/gnutls.h>

#include "objects.h"

struct tls_creds;

/* For a server.  O is of one of the TLS types; SECRETS has the secret of its passwordid.  NULL on
 * error. */
struct tls_creds *tls_creds_load (const struct object *o, const struct objects *secrets,
                                  struct q_error *err);
/* Any thread.  Sessions hold a reference. */
struct tls_creds *tls_creds_ref (struct tls_creds *c);
void tls_creds_unref (struct tls_creds *c);
/* Makes a session use them.  Returns GnuTLS's 0 or error. */
int tls_creds_set (const struct tls_creds *c, gnutls_session_t session);
/* What the client of SESSION, whose handshake is over, has proved to be; NULL if nothing.  To be
 * freed with gnutls_free. */
char *tls_creds_identity (const struct tls_creds *c, gnutls_session_t session);

#endif /* TLS_CREDS_H */
