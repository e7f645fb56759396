/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "tls-creds.h"
#include "tls.h"

/* Plain bytes in one record, at most. */
#define RECORD 16384
/* A record with its header, padding and tag. */
#define MAX_RECORD (RECORD + 512)
/* Records encrypted before they are sent by one system call. */
#define BATCH (4 * MAX_RECORD)
/* What GnuTLS may have queued on its own account: the server's part of a handshake. */
#define MAX_UNSENT (256 * 1024)
/* Plain bytes that one tls_receive delivers: an event loop has other clients. */
#define MAX_RECEIVE (256 * 1024)
/* Records without any plain bytes that one tls_receive puts up with. */
#define MAX_EMPTY 16

struct tls {
  struct tls_options options;
  pthread_mutex_t lock;
  struct tls_creds *creds; /* for the next connection; changed under the lock */
  struct authz *authz;     /* who may connect; may be NULL */
  pthread_mutex_t manage;  /* held while the rest is looked up or read again: */
  struct authz **known;    /* all that were asked for */
  unsigned n_known;
};

struct tls_session {
  struct tls *tls;
  struct tls_creds *creds;
  gnutls_session_t session;
  const char *peer;
  int fd;
  char *identity;
  bool ready;  /* the handshake is over */
  bool failed; /* no more can be sent or received, and the log knows */

  /* From the socket, read ahead of what GnuTLS has asked for. */
  uint8_t in[MAX_RECORD];
  size_t in_start, in_end;
  bool drained; /* the socket has nothing more ... */
  bool stalled; /* ... and GnuTLS wanted it */

  /* To the socket.  The plain bytes of it, encrypted, count as sent when all of it is. */
  uint8_t *out;
  size_t out_start, out_end, out_size;
  size_t encrypted;
};

/* ---- the socket, as GnuTLS sees it ----------------------------------------------------------- */

static ssize_t
pull (gnutls_transport_ptr_t ptr, void *data, size_t n)
{
  struct tls_session *s = ptr;

  if (s->in_start == s->in_end) {
    ssize_t got = -1;
    errno = EAGAIN;
    if (!s->drained)
      do
        got = recv (s->fd, s->in, sizeof s->in, MSG_DONTWAIT);
      while (got < 0 && errno == EINTR);
    if (got < 0) {
      s->stalled = errno == EAGAIN;
      gnutls_transport_set_errno (s->session, errno);
      return -1;
    }
    /* When less came than was asked for, the next call would get nothing; if there is something by
     * then, or the end, the event loop knows. */
    s->drained = got > 0 && (size_t)got < sizeof s->in;
    s->in_start = 0;
    s->in_end = (size_t)got;
  }
  if (n > s->in_end - s->in_start)
    n = s->in_end - s->in_start;
  memcpy (data, s->in + s->in_start, n);
  s->in_start += n;
  return (ssize_t)n;
}

static bool
make_room (struct tls_session *s, size_t n)
{
  if (s->out_size - s->out_end >= n)
    return true;
  size_t size = s->out_end + n > BATCH ? s->out_end + n : BATCH;
  if (size > MAX_UNSENT)
    return false;
  uint8_t *p = realloc (s->out, size);
  if (!p)
    return false;
  s->out = p;
  s->out_size = size;
  return true;
}

static ssize_t
push (gnutls_transport_ptr_t ptr, const void *data, size_t n)
{
  struct tls_session *s = ptr;

  if (!make_room (s, n)) {
    gnutls_transport_set_errno (s->session, ENOBUFS);
    return -1;
  }
  memcpy (s->out + s->out_end, data, n);
  s->out_end += n;
  return (ssize_t)n;
}

static bool
unsent (const struct tls_session *s)
{
  return s->out_start < s->out_end;
}

/* Sends what the socket takes.  False if that is at its end; errno says why. */
static bool
flush (struct tls_session *s)
{
  while (unsent (s)) {
    ssize_t n =
        send (s->fd, s->out + s->out_start, s->out_end - s->out_start, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
      return true;
    if (n < 0 && errno != EINTR)
      return false;
    if (n > 0)
      s->out_start += (size_t)n;
  }
  s->out_start = s->out_end = 0;
  return true;
}

/* An idle client needs no memory for what it is not being sent. */
static void
release_out (struct tls_session *s)
{
  if (unsent (s))
    return;
  free (s->out);
  s->out = NULL;
  s->out_start = s->out_end = s->out_size = 0;
}

/* ---- errors ---------------------------------------------------------------------------------- */

static const char *
name (const struct tls_session *s)
{
  return s->peer ? s->peer : "a client";
}

/* It is over, as the client may be told by ALERT.  Returns -1, errno set. */
static int
end (struct tls_session *s, gnutls_alert_description_t alert)
{
  if (!s->failed && gnutls_alert_send (s->session, GNUTLS_AL_FATAL, alert) == 0)
    flush (s);
  s->failed = true;
  errno = EPROTO;
  return -1;
}

static int
fail (struct tls_session *s, const char *doing, int r)
{
  int level, alert = gnutls_error_to_alert (r, &level);
  gnutls_datum_t why = { NULL, 0 };

  if (r == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR)
    gnutls_certificate_verification_status_print (
        gnutls_session_get_verify_cert_status (s->session), GNUTLS_CRT_X509, &why, 0);
  if (r == GNUTLS_E_FATAL_ALERT_RECEIVED)
    log_info ("%s: TLS: %s: the client says: %s", name (s), doing,
              gnutls_alert_get_name (gnutls_alert_get (s->session)));
  else
    log_info ("%s: TLS: %s: %s", name (s), doing,
              why.data ? (char *)why.data : gnutls_strerror (r));
  gnutls_free (why.data);
  return end (s, alert >= 0 ? (gnutls_alert_description_t)alert : GNUTLS_A_INTERNAL_ERROR);
}

/* ---- the handshake --------------------------------------------------------------------------- */

/* Whether the client that has come through the handshake may stay. */
static bool
admit (struct tls_session *s)
{
  s->identity = tls_creds_identity (s->creds, s->session);
  if (log_is_verbose ()) {
    char *how = gnutls_session_get_desc (s->session);
    log_info ("%s: TLS begun: %s%s%s", name (s), how ? how : "", s->identity ? ", identity " : "",
              s->identity ? s->identity : "");
    gnutls_free (how);
  }
  if (!s->tls->authz || (s->identity && authz_allows (s->tls->authz, s->identity)))
    return true;
  log_warning ("%s: TLS: refused: %s is not authorised by --tls-authz=%s", name (s),
               s->identity ? s->identity : "a client without a name", s->tls->options.authz);
  return false;
}

static int
shake_hands (struct tls_session *s)
{
  int r = gnutls_handshake (s->session);

  if (r < 0 && gnutls_error_is_fatal (r))
    return fail (s, "the handshake failed", r);
  if (!flush (s))
    return -1;
  if (r < 0) {
    errno = EAGAIN;
    return -1;
  }
  if (!admit (s))
    return end (s, GNUTLS_A_ACCESS_DENIED);
  s->ready = true;
  return 0;
}

/* ---- the transport --------------------------------------------------------------------------- */

/* Fills LEN bytes at P from what is there.  Returns bytes; *END says why it is fewer: a GnuTLS
 * error, or 0 for the client's end. */
static size_t
receive_into (struct tls_session *s, uint8_t *p, size_t len, int *end_of_it)
{
  size_t got = 0;
  unsigned empty = 0;

  *end_of_it = 1;
  while (got < len) {
    ssize_t n = gnutls_record_recv (s->session, p + got, len - got);
    if (n > 0) {
      got += (size_t)n;
      continue;
    }
    /* A record that was about TLS itself; the next one may be for us. */
    if ((n == GNUTLS_E_AGAIN && !s->stalled && ++empty < MAX_EMPTY) || n == GNUTLS_E_INTERRUPTED)
      continue;
    *end_of_it = n == GNUTLS_E_PREMATURE_TERMINATION ? 0 : (int)n;
    break;
  }
  return got;
}

static ssize_t
receive_vector (struct tls_session *s, const struct iovec *iov, int count)
{
  size_t total = 0;
  int r = 1;

  for (int i = 0; i < count && r > 0 && total < MAX_RECEIVE; i++) {
    size_t len = iov[i].iov_len;
    if (len > MAX_RECEIVE - total)
      len = MAX_RECEIVE - total;
    total += receive_into (s, iov[i].iov_base, len, &r);
    if (len < iov[i].iov_len)
      break;
  }
  if (r == GNUTLS_E_REHANDSHAKE) {
    log_info ("%s: TLS: it wants to negotiate again, which is refused", name (s));
    end (s, GNUTLS_A_NO_RENEGOTIATION);
  } else if (r < 0 && r != GNUTLS_E_AGAIN)
    fail (s, "receiving failed", r);
  /* A failure after some bytes is the next call's. */
  if (total > 0 || r == 0)
    return (ssize_t)total;
  errno = r == GNUTLS_E_AGAIN ? EAGAIN : EPROTO;
  return -1;
}

static ssize_t
tls_receive (struct transport *t, struct iovec *iov, int count)
{
  struct tls_session *s = t->wrapper;
  ssize_t n = -1;

  s->drained = s->stalled = false;
  if (s->failed) {
    errno = EPROTO;
    return -1;
  }
  if (flush (s) && (s->ready || shake_hands (s) == 0))
    n = receive_vector (s, iov, count);
  /* TLS's own messages are nobody else's to send. */
  t->want_write = !s->failed && unsent (s) && s->encrypted == 0;
  if (!unsent (s)) {
    int keep = errno;
    release_out (s);
    errno = keep;
  }
  return n;
}

/* Encrypts what comes after the first SKIP bytes of IOV, as much as makes a batch.  Returns plain
 * bytes or -1. */
static ssize_t
encrypt (struct tls_session *s, const struct iovec *iov, int count, size_t skip)
{
  size_t done = 0;

  if (!make_room (s, BATCH)) {
    errno = ENOMEM;
    return -1;
  }
  for (int i = 0; i < count; i++) {
    size_t at = skip < iov[i].iov_len ? skip : iov[i].iov_len;
    skip -= at;
    while (at < iov[i].iov_len) {
      size_t n = iov[i].iov_len - at < RECORD ? iov[i].iov_len - at : RECORD;
      if (s->out_size - s->out_end < MAX_RECORD)
        return (ssize_t)done;
      ssize_t r = gnutls_record_send (s->session, (uint8_t *)iov[i].iov_base + at, n);
      if (r <= 0)
        return fail (s, "sending failed", r < 0 ? (int)r : GNUTLS_E_PUSH_ERROR);
      at += (size_t)r;
      done += (size_t)r;
    }
  }
  return (ssize_t)done;
}

/* What has been encrypted counts as sent once all of it has left, so the caller offers it again
 * until then. */
static ssize_t
tls_send (struct transport *t, struct iovec *iov, int count)
{
  struct tls_session *s = t->wrapper;
  size_t sent = 0;

  if (s->failed || !s->ready) {
    errno = s->failed ? EPROTO : EAGAIN;
    return -1;
  }
  for (;;) {
    if (!flush (s))
      return -1;
    if (unsent (s))
      break;
    sent += s->encrypted;
    s->encrypted = 0;
    ssize_t n = encrypt (s, iov, count, sent);
    if (n < 0)
      return -1;
    if (n == 0)
      break;
    s->encrypted = (size_t)n;
  }
  release_out (s);
  if (sent > 0)
    return (ssize_t)sent;
  errno = EAGAIN;
  return -1;
}

static bool
tls_pending (const struct transport *t)
{
  const struct tls_session *s = t->wrapper;

  return s->failed ||
         (!s->stalled && (s->in_start < s->in_end || gnutls_record_check_pending (s->session) > 0));
}

static void
session_free (struct tls_session *s)
{
  if (s->session)
    gnutls_deinit (s->session);
  tls_creds_unref (s->creds);
  gnutls_free (s->identity);
  free (s->out);
  free (s);
}

static void
tls_close (struct transport *t)
{
  struct tls_session *s = t->wrapper;

  /* A client that does not take it at once does without. */
  if (s->ready && !s->failed && gnutls_bye (s->session, GNUTLS_SHUT_WR) == 0)
    flush (s);
  session_free (s);
  t->wrapper = NULL;
  t->ops = NULL;
}

static const struct transport_ops ops = {
  .receive = tls_receive,
  .send = tls_send,
  .pending = tls_pending,
  .close = tls_close,
};

struct tls_session *
tls_start (struct tls *tls, struct transport *t, const char *peer)
{
  struct tls_session *s = calloc (1, sizeof *s);

  if (!s)
    return NULL;
  s->tls = tls;
  s->peer = peer;
  s->fd = t->fd;
  pthread_mutex_lock (&tls->lock);
  s->creds = tls_creds_ref (tls->creds);
  pthread_mutex_unlock (&tls->lock);
  /* Without tickets: a session that is resumed would outlive what its client was let in by. */
  if (gnutls_init (&s->session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS) < 0) {
    s->session = NULL;
    session_free (s);
    return NULL;
  }
  int r = tls_creds_set (s->creds, s->session);
  if (r < 0) {
    log_error ("%s: TLS cannot begin: %s", name (s), gnutls_strerror (r));
    session_free (s);
    return NULL;
  }
  gnutls_transport_set_ptr (s->session, s);
  gnutls_transport_set_pull_function (s->session, pull);
  gnutls_transport_set_push_function (s->session, push);
  t->ops = &ops;
  t->wrapper = s;
  return s;
}

const char *
tls_identity (const struct tls_session *s)
{
  return s->identity;
}

/* ---- the server ------------------------------------------------------------------------------ */

static const struct object *
creds_object (const struct tls *tls)
{
  struct q_error ignored = { "" };
  return objects_find_tls (tls->options.objects, tls->options.creds, &ignored);
}

/* Names can be authorised where clients prove theirs. */
static bool
proves_names (const struct object *o)
{
  return o->type == OBJECT_TLS_PSK || (o->type == OBJECT_TLS_X509 && o->tls.verify_peer);
}

static struct authz *
find_authz (struct tls *tls, const char *id, struct q_error *err)
{
  const struct object *o = objects_find_authz (tls->options.objects, id, err);

  if (!o)
    return NULL;
  if (!proves_names (creds_object (tls))) {
    snprintf (
        err->text, sizeof err->text,
        "--tls-authz=%s: --tls-creds=%s does not ask clients who they are: tls-creds-x509 with "
        "verify-peer=yes, or tls-creds-psk, is wanted",
        id, tls->options.creds);
    return NULL;
  }
  for (unsigned i = 0; i < tls->n_known; i++)
    if (authz_object (tls->known[i]) == o)
      return tls->known[i];

  struct authz **known = reallocarray (tls->known, tls->n_known + 1, sizeof *known);
  if (!known) {
    snprintf (err->text, sizeof err->text, "--tls-authz=%s: out of memory", id);
    return NULL;
  }
  tls->known = known;
  struct authz *a = authz_open (o, err);
  if (a)
    tls->known[tls->n_known++] = a;
  return a;
}

struct authz *
tls_authz (struct tls *tls, const char *id, struct q_error *err)
{
  pthread_mutex_lock (&tls->manage);
  struct authz *a = find_authz (tls, id, err);
  pthread_mutex_unlock (&tls->manage);
  return a;
}

struct tls *
tls_open (const struct tls_options *options, struct q_error *err)
{
  const struct object *o = objects_find_tls (options->objects, options->creds, err);
  struct tls *tls = o ? calloc (1, sizeof *tls) : NULL;

  if (!o)
    return NULL;
  if (!tls) {
    snprintf (err->text, sizeof err->text, "--tls-creds=%s: out of memory", options->creds);
    return NULL;
  }
  tls->options = *options;
  pthread_mutex_init (&tls->lock, NULL);
  pthread_mutex_init (&tls->manage, NULL);
  if (!o->tls.server)
    snprintf (err->text, sizeof err->text,
              "--tls-creds=%s: these credentials are a client's: endpoint=server is wanted",
              options->creds);
  else
    tls->creds = tls_creds_load (o, options->objects, err);
  if (tls->creds && options->authz)
    tls->authz = tls_authz (tls, options->authz, err);
  if (!tls->creds || (options->authz && !tls->authz)) {
    tls_free (tls);
    return NULL;
  }
  return tls;
}

bool
tls_required (const struct tls *tls)
{
  return !tls->options.optional;
}

void
tls_reload (struct tls *tls)
{
  struct q_error err = { "" };
  struct tls_creds *fresh = tls_creds_load (creds_object (tls), tls->options.objects, &err);

  if (fresh) {
    pthread_mutex_lock (&tls->lock);
    struct tls_creds *old = tls->creds;
    tls->creds = fresh;
    pthread_mutex_unlock (&tls->lock);
    tls_creds_unref (old);
    log_info ("--tls-creds=%s: read again", tls->options.creds);
  } else
    log_error ("%s; the credentials in use stay", err.text);
  pthread_mutex_lock (&tls->manage);
  for (unsigned i = 0; i < tls->n_known; i++)
    if (authz_reload (tls->known[i], &err) < 0)
      log_error ("%s; the rules in use stay", err.text);
  pthread_mutex_unlock (&tls->manage);
}

void
tls_watch (struct tls *tls, struct ev_loop *ev)
{
  for (unsigned i = 0; i < tls->n_known; i++)
    authz_watch (tls->known[i], ev);
}

void
tls_free (struct tls *tls)
{
  if (!tls)
    return;
  for (unsigned i = 0; i < tls->n_known; i++)
    authz_free (tls->known[i]);
  free (tls->known);
  tls_creds_unref (tls->creds);
  pthread_mutex_destroy (&tls->lock);
  pthread_mutex_destroy (&tls->manage);
  free (tls);
}
