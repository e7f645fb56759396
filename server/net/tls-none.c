/* SPDX-License-Identifier: BSD-3-Clause
 *
 * tls.h where GnuTLS is not there to build with: TLS cannot be opened, so that nothing else of it
 * is ever called with anything to work on.
 */

#include <stdio.h>

#include "tls.h"

struct tls *
tls_open (const struct tls_options *options, struct q_error *err)
{
  snprintf (err->text, sizeof err->text,
            "--tls-creds=%s: this nbdcow was built without TLS (GnuTLS)", options->creds);
  return NULL;
}

bool
tls_required (const struct tls *tls)
{
  (void)tls;
  return false;
}

struct authz *
tls_authz (struct tls *tls, const char *id, struct q_error *err)
{
  (void)tls;
  snprintf (err->text, sizeof err->text, "--tls-authz=%s needs --tls-creds", id);
  return NULL;
}

void
tls_reload (struct tls *tls)
{
  (void)tls;
}

void
tls_watch (struct tls *tls, struct ev_loop *ev)
{
  (void)tls;
  (void)ev;
}

void
tls_free (struct tls *tls)
{
  (void)tls;
}

struct tls_session *
tls_start (struct tls *tls, struct transport *t, const char *peer)
{
  (void)tls;
  (void)t;
  (void)peer;
  return NULL;
}

const char *
tls_identity (const struct tls_session *s)
{
  (void)s;
  return NULL;
}
