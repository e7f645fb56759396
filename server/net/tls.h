/* SPDX-License-Identifier: BSD-3-Clause
 *
 * TLS: what the server offers and demands (struct tls), and a client's connection inside of it
 * (struct tls_session), which takes the place of the plain socket in the client's transport.
 *
 *     tls = tls_open (&options, &err);
 *     s = tls_start (tls, &transport, peer);    STARTTLS has been acknowledged: from here on the
 *                                               transport does the handshake and then TLS
 *     tls_identity (s)                          once anything has been received by it
 *     tls_reload (tls);                         for those who connect from now on
 *
 * Nothing blocks: the handshake advances whenever the transport is received from, and until it is
 * over that has nothing to give.  transport_close says goodbye to the client and frees the session.
 *
 * Only one thread uses a session at a time; the calls about struct tls may be made from any thread,
 * but tls_open, tls_watch, tls_reload and tls_free, which are the main thread's.
 */

#ifndef TLS_H
#define TLS_H

#include <stdbool.h>

#include "authz.h"
#include "objects.h"
#include "transport.h"

struct ev_loop;
struct tls;
struct tls_session;

struct tls_options {
  const struct objects *objects; /* have to live as long as the server */
  const char *creds;             /* of which the credentials; an id that objects_find_tls knows */
  const char *authz;             /* who may connect at all; an id, or NULL for anybody */
  bool optional;                 /* clients may go without, but for exports that demand it */
};

/* NULL on error. */
struct tls *tls_open (const struct tls_options *options, struct q_error *err);
/* Clients have to begin with it (FORCEDTLS in the protocol's words; otherwise SELECTIVETLS). */
bool tls_required (const struct tls *tls);
/* Whom the object of that id lets in.  It belongs to TLS.  NULL on error. */
struct authz *tls_authz (struct tls *tls, const char *id, struct q_error *err);
/* Reads all files again.  What cannot be read stays as it was, and the log says why. */
void tls_reload (struct tls *tls);
/* EV, the main thread's, is to watch the files of authz-list-file objects. */
void tls_watch (struct tls *tls, struct ev_loop *ev);
/* After the last connection. */
void tls_free (struct tls *tls);

/* Puts TLS into T, a plain socket, which from then on owns the session.  PEER names the client in
 * messages; it may be NULL and has to live as long as T.  NULL without memory, T unchanged. */
struct tls_session *tls_start (struct tls *tls, struct transport *t, const char *peer);
/* What the client has proved to be, NULL if nothing was asked of it. */
const char *tls_identity (const struct tls_session *s);

#endif /* TLS_H */
