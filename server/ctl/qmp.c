/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "ctl.h"

static json_t *
receive (struct ctl *c)
{
  json_error_t why;
  json_t *value = json_loadf (c->socket, JSON_DISABLE_EOF_CHECK, &why);

  if (!value && !feof (c->socket))
    ctl_error ("%s: what the server says is not understood: %s", c->path, why.text);
  else if (!value)
    ctl_error ("%s: the server has closed the connection", c->path);
  return value;
}

static bool
transmit (struct ctl *c, const json_t *request)
{
  char *text = json_dumps (request, JSON_COMPACT);
  size_t n = text ? strlen (text) : 0;
  bool sent = text;

  for (size_t at = 0; sent && at < n;) {
    ssize_t w = send (fileno (c->socket), text + at, n - at, MSG_NOSIGNAL);
    sent = w > 0 || errno == EINTR;
    at += w > 0 ? (size_t)w : 0;
  }
  if (!sent)
    ctl_error ("%s: %s", c->path, text ? strerror (errno) : "out of memory");
  free (text);
  return sent;
}

json_t *
ctl_execute (struct ctl *c, const char *name, json_t *arguments)
{
  json_t *request = json_pack ("{s:s, s:o*}", "execute", name, "arguments", arguments);
  json_t *result = NULL, *answer = NULL;
  bool sent = request && transmit (c, request);

  json_decref (request);
  while (sent && !result && (answer = receive (c)) != NULL) {
    json_t *error = json_object_get (answer, "error");
    result = json_incref (json_object_get (answer, "return"));
    if (error) {
      ctl_error ("%s", text_of (error, "desc"));
      json_decref (answer);
      return NULL;
    }
    json_decref (answer);
  }
  return result;
}

int
ctl_do (struct ctl *c, const char *name, json_t *arguments)
{
  json_t *result = ctl_execute (c, name, arguments);

  if (!result)
    return EXIT_FAILURE;
  if (c->json)
    return ctl_print_json (result);
  json_decref (result);
  return EXIT_SUCCESS;
}

json_t *
ctl_event (struct ctl *c)
{
  json_t *value = receive (c);

  while (value && !json_object_get (value, "event")) {
    json_decref (value);
    value = receive (c);
  }
  return value;
}

int
ctl_print_json (json_t *value)
{
  int r = json_dumpf (value, stdout, JSON_INDENT (4) | JSON_ENCODE_ANY | JSON_ENSURE_ASCII);

  putchar ('\n');
  json_decref (value);
  return r == 0 ? EXIT_SUCCESS : ctl_error ("cannot print the answer");
}

bool
ctl_connect (struct ctl *c)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  if (strlen (c->path) >= sizeof addr.sun_path) {
    ctl_error ("%s: the name of a socket has at most %zu bytes", c->path, sizeof addr.sun_path - 1);
    return false;
  }
  memcpy (addr.sun_path, c->path, strlen (c->path));
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect (fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
    ctl_error ("%s: %s: --control=PATH says where the server's control socket is", c->path,
               strerror (errno));
    if (fd >= 0)
      close (fd);
    return false;
  }
  c->socket = fdopen (fd, "r");
  if (!c->socket) {
    ctl_error ("out of memory");
    close (fd);
    return false;
  }
  json_t *greeting = receive (c);
  bool fine = json_object_get (greeting, "QMP") != NULL;
  if (greeting && !fine)
    ctl_error ("%s: this is no control socket of nbdcow", c->path);
  json_decref (greeting);
  if (fine) {
    json_t *done = ctl_execute (c, "qmp_capabilities", NULL);
    fine = done != NULL;
    json_decref (done);
  }
  return fine;
}

void
ctl_disconnect (struct ctl *c)
{
  if (c->socket)
    fclose (c->socket);
  c->socket = NULL;
}

/* ---- members --------------------------------------------------------------------------------- */

const char *
text_of (const json_t *object, const char *name)
{
  const char *text = json_string_value (json_object_get (object, name));
  return text ? text : "";
}

double
number_of (const json_t *object, const char *name)
{
  return json_number_value (json_object_get (object, name));
}

bool
is_true (const json_t *object, const char *name)
{
  return json_is_true (json_object_get (object, name));
}
