/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "listen.h"
#include "log.h"
#include "metrics.h"
#include "openmetrics.h"

#ifdef HAVE_MICROHTTPD

#include <microhttpd.h>

/* For each socket: enough for a few that scrape, and somebody who looks. */
#define MAX_CONNECTIONS 16
/* Seconds without progress. */
#define MAX_SILENCE 10u
/* Bytes for a request's line and headers. */
#define MAX_REQUEST ((size_t)16 * 1024)

#define ROOT_TEXT "nbdcow " NBDCOW_VERSION "\nMetrics: GET /metrics\n"

struct metrics {
  struct listeners listeners;
  struct MHD_Daemon *daemon[MAX_LISTENERS];
  struct exports *exports;
};

/* ---- the address ----------------------------------------------------------------------------- */

struct place {
  char *text;       /* a copy of the address, in which the others point */
  const char *path; /* of a unix socket; NULL: it is TCP */
  const char *host, *port;
};

/* Splits ADDRESS at its last colon; an IPv6 address stands in brackets.  PLACE->text is to be freed
 * in any case. */
static int
find_place (struct place *place, const char *address, struct q_error *err)
{
  char *text = strdup (address), *colon = text ? strrchr (text, ':') : NULL, *host = text;

  *place = (struct place){ .text = text };
  if (!text) {
    snprintf (err->text, sizeof err->text, "--metrics: out of memory");
    return -ENOMEM;
  }
  if (strncmp (text, "unix:", 5) == 0 && text[5]) {
    place->path = text + 5;
    return 0;
  }
  place->host = colon ? text : "localhost";
  place->port = colon ? colon + 1 : text;
  if (colon)
    *colon = '\0';
  size_t len = strlen (host);
  if (colon && host[0] == '[' && host[len - 1] == ']') {
    host[len - 1] = '\0';
    place->host = host + 1;
  } else if (strchr (place->host, ':'))
    place->port = ""; /* which of the colons was meant? */
  if (*place->port)
    return 0;
  snprintf (err->text, sizeof err->text,
            "--metrics=%s: PORT, HOST:PORT, [IPV6]:PORT or unix:PATH is wanted", address);
  return -EINVAL;
}

struct metrics *
metrics_open (const char *address, struct q_error *err)
{
  struct listeners ls = { .n = 0 };
  struct metrics *m = NULL;
  struct place at;
  int r = find_place (&at, address, err);

  if (r == 0)
    r = at.path ? listen_unix (&ls, at.path, err) : listen_tcp (&ls, at.host, at.port, err);
  if (r == 0)
    m = metrics_adopt (&ls, err);
  listen_close (&ls);
  free (at.text);
  return m;
}

bool
metrics_is_at (const struct listeners *ls, const char *address)
{
  struct q_error ignored;
  struct place at;
  bool found = find_place (&at, address, &ignored) == 0 &&
               (at.path ? listen_has_unix (ls, at.path) : listen_has_tcp (ls, at.host, at.port));

  free (at.text);
  return found;
}

void
metrics_give (struct metrics *m, uid_t uid, gid_t gid)
{
  for (unsigned i = 0; m && i < m->listeners.n; i++) {
    const char *path = m->listeners.l[i].unix_path;
    if (path && lchown (path, uid, gid) < 0)
      log_warning ("cannot give socket '%s' to user %u: %m", path, uid);
  }
}

/* ---- answering ------------------------------------------------------------------------------- */

/* Takes RESPONSE over. */
static enum MHD_Result
answer (struct MHD_Connection *c, unsigned status, const char *type, struct MHD_Response *response)
{
  if (!response)
    return MHD_NO; /* closes the connection */
  MHD_add_response_header (response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
  if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
    MHD_add_response_header (response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
  enum MHD_Result r = MHD_queue_response (c, status, response);
  MHD_destroy_response (response);
  return r;
}

static enum MHD_Result
answer_text (struct MHD_Connection *c, unsigned status, const char *text)
{
  return answer (
      c, status, "text/plain; charset=utf-8",
      MHD_create_response_from_buffer (strlen (text), (void *)text, MHD_RESPMEM_PERSISTENT));
}

static enum MHD_Result
answer_metrics (struct MHD_Connection *c, struct metrics *m)
{
  const char *accept = MHD_lookup_connection_value (c, MHD_HEADER_KIND, MHD_HTTP_HEADER_ACCEPT);
  /* Whoever knows the newer format asks for it by name, and takes it. */
  bool openmetrics = accept && strcasestr (accept, "application/openmetrics-text");
  char *text = NULL;
  size_t len = 0;
  FILE *f = open_memstream (&text, &len);

  if (!f)
    return MHD_NO;
  int r = metrics_write (f, m->exports, openmetrics);
  if (fclose (f) != 0 || r < 0) {
    free (text);
    return answer_text (c, MHD_HTTP_SERVICE_UNAVAILABLE, "out of memory\n");
  }
  struct MHD_Response *response =
      MHD_create_response_from_buffer (len, text, MHD_RESPMEM_MUST_FREE);
  if (!response)
    free (text);
  return answer (c, MHD_HTTP_OK, openmetrics_content_type (openmetrics), response);
}

static enum MHD_Result
on_request (void *opaque, struct MHD_Connection *c, const char *url, const char *method,
            const char *version, const char *data, size_t *size, void **state)
{
  (void)version;
  (void)data;
  if (!*state || *size > 0) {
    /* All of it has to come before it can be answered; a body is of no interest. */
    *state = c;
    *size = 0;
    return MHD_YES;
  }
  if (strcmp (method, MHD_HTTP_METHOD_GET) != 0 && strcmp (method, MHD_HTTP_METHOD_HEAD) != 0)
    return answer_text (c, MHD_HTTP_METHOD_NOT_ALLOWED, "Only GET is known here.\n");
  if (strcmp (url, "/metrics") == 0)
    return answer_metrics (c, opaque);
  if (strcmp (url, "/") == 0)
    return answer_text (c, MHD_HTTP_OK, ROOT_TEXT);
  return answer_text (c, MHD_HTTP_NOT_FOUND, "There is only /metrics here.\n");
}

/* ---- life ------------------------------------------------------------------------------------ */

static void on_complaint (void *opaque, const char *fmt, va_list args)
    __attribute__ ((format (printf, 2, 0)));
static void
on_complaint (void *opaque, const char *fmt, va_list args)
{
  char text[256];

  (void)opaque;
  vsnprintf (text, sizeof text, fmt, args);
  text[strcspn (text, "\n")] = '\0';
  log_debug ("metrics: %s", text);
}

int
metrics_start (struct metrics *m, struct exports *exports, struct q_error *err)
{
  const unsigned flags =
      MHD_USE_AUTO | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_ERROR_LOG | MHD_USE_ITC;
  sigset_t all, before;
  int r = 0;

  m->exports = exports;
  /* Signals are the main loop's. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  for (unsigned i = 0; r == 0 && i < m->listeners.n; i++) {
    struct listener *l = &m->listeners.l[i];
    m->daemon[i] = MHD_start_daemon (
        flags, 0, NULL, NULL, on_request, m, MHD_OPTION_EXTERNAL_LOGGER, on_complaint, NULL,
        MHD_OPTION_LISTEN_SOCKET, l->fd, MHD_OPTION_CONNECTION_LIMIT, MAX_CONNECTIONS,
        MHD_OPTION_CONNECTION_TIMEOUT, MAX_SILENCE, MHD_OPTION_CONNECTION_MEMORY_LIMIT, MAX_REQUEST,
        MHD_OPTION_END);
    if (!m->daemon[i]) {
      snprintf (err->text, sizeof err->text, "--metrics: cannot start an HTTP server: %s",
                strerror (errno));
      r = -EIO;
    }
  }
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  return r;
}

void
metrics_stop (struct metrics *m)
{
  for (unsigned i = 0; m && i < m->listeners.n; i++) {
    if (!m->daemon[i])
      continue;
    MHD_quiesce_daemon (m->daemon[i]); /* the socket stays ours to close */
    MHD_stop_daemon (m->daemon[i]);
    m->daemon[i] = NULL;
  }
}

struct metrics *
metrics_adopt (struct listeners *ls, struct q_error *err)
{
  struct metrics *m = calloc (1, sizeof *m);

  if (!m) {
    snprintf (err->text, sizeof err->text, "--metrics: out of memory");
    return NULL;
  }
  m->listeners = *ls;
  ls->n = 0;
  return m;
}

struct listeners *
metrics_listeners (struct metrics *m)
{
  return m ? &m->listeners : NULL;
}

void
metrics_close (struct metrics *m)
{
  if (!m)
    return;
  metrics_stop (m);
  listen_close (&m->listeners);
  free (m);
}

#else /* without libmicrohttpd */

struct metrics *
metrics_open (const char *address, struct q_error *err)
{
  (void)address;
  snprintf (err->text, sizeof err->text,
            "--metrics: this nbdcow was built without libmicrohttpd, which it takes");
  return NULL;
}

void
metrics_give (struct metrics *m, uid_t uid, gid_t gid)
{
  (void)m;
  (void)uid;
  (void)gid;
}

int
metrics_start (struct metrics *m, struct exports *exports, struct q_error *err)
{
  (void)m;
  (void)exports;
  snprintf (err->text, sizeof err->text, "--metrics: not built");
  return -ENOTSUP;
}

void
metrics_stop (struct metrics *m)
{
  (void)m;
}

struct metrics *
metrics_adopt (struct listeners *ls, struct q_error *err)
{
  (void)ls;
  return metrics_open ("", err);
}

bool
metrics_is_at (const struct listeners *ls, const char *address)
{
  (void)ls;
  (void)address;
  return false;
}

struct listeners *
metrics_listeners (struct metrics *m)
{
  (void)m;
  return NULL;
}

void
metrics_close (struct metrics *m)
{
  (void)m;
}

#endif
