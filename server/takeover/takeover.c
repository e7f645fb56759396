/* SPDX-License-Identifier: BSD-3-Clause */

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "control-stream.h"
#include "daemon.h"
#include "lock.h"
#include "log.h"
#include "path.h"
#include "service.h"
#include "session-state.h"
#include "takeover-wire.h"
#include "takeover.h"

/* How long each message of the other may take: it waits for requests under way, and flushes. */
#define MESSAGE_LIMIT_MS 60000
/* From the end of its connection to its own, when it dies; less than it waits for us to go. */
#define DYING_LIMIT_MS 2000

struct takeover {
  int control; /* connection */
  struct stream stream;
  char *path; /* of the socket that the other connects to; NULL: there is none any more */
  int listener;
  struct wire wire;
  struct wire_message offer;
  int other;     /* pidfd of the running server; -1: it cannot be watched */
  unsigned took; /* enum takeover_part */
  bool done;
};

/* A client of the other's, until it is ours. */
struct taken {
  struct taken *next;
  int fd;
  char *peer;
  struct saved_session *saved;
};

static int
fail (struct q_error *err, int r, const char *what)
{
  snprintf (err->text, sizeof err->text, "%s", what);
  return r;
}

static const char *
string (const json_t *o, const char *key)
{
  return json_string_value (json_object_get (o, key));
}

static uint64_t
integer (const json_t *o, const char *key)
{
  return (uint64_t)json_integer_value (json_object_get (o, key));
}

/* ---- the control socket ---------------------------------------------------------------------- */

static int
connect_control (struct takeover *t, const char *path, struct q_error *err)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  if (strlen (path) >= sizeof addr.sun_path)
    return fail (err, -ENAMETOOLONG, "the name of the control socket is too long");
  memcpy (addr.sun_path, path, strlen (path));
  t->control = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (t->control >= 0 && connect (t->control, (struct sockaddr *)&addr, sizeof addr) == 0)
    return 0;
  int r = -errno;
  snprintf (err->text, sizeof err->text, "%s", strerror (-r));
  return r;
}

/* Whether nobody listens on the socket PATH.  A server's control socket may end in a number, too.
 */
static bool
is_left (const char *path)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  if (strlen (path) >= sizeof addr.sun_path)
    return false;
  memcpy (addr.sun_path, path, strlen (path));
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  bool left =
      fd >= 0 && connect (fd, (struct sockaddr *)&addr, sizeof addr) < 0 && errno == ECONNREFUSED;
  if (fd >= 0)
    close (fd);
  return left;
}

/* Removes what those left there that were killed before the running server had found them: sockets
 * of processes that there are no more. */
static void
clear_away (const char *control_path)
{
  const char *slash = strrchr (control_path, '/');
  const char *base = slash ? slash + 1 : control_path;
  char *dir = slash ? strndup (control_path, (size_t)(slash + 1 - control_path)) : NULL;
  DIR *d = dir ? opendir (dir) : NULL;
  const struct dirent *e;

  while (d && (e = readdir (d))) {
    size_t n = strlen (base);
    char *end, *path;
    if (strncmp (e->d_name, base, n) != 0 || e->d_name[n] != '.' || e->d_type != DT_SOCK)
      continue;
    long pid = strtol (e->d_name + n + 1, &end, 10);
    if (pid <= 0 || pid > INT_MAX || *end || kill ((pid_t)pid, 0) == 0 || errno != ESRCH ||
        asprintf (&path, "%s%s", dir, e->d_name) < 0)
      continue;
    if (is_left (path))
      unlinkat (dirfd (d), e->d_name, 0);
    free (path);
  }
  if (d)
    closedir (d);
  free (dir);
}

/* A socket of our own beside the control socket, for the other to connect to; both belong to the
 * same user: who has made the control socket may have become another one since, and has given it
 * to that one. */
static int
listen_beside (struct takeover *t, const char *control_path, struct q_error *err)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct stat theirs;
  char *absolute = path_absolute (control_path);

  if (absolute)
    clear_away (absolute);
  if (!absolute || asprintf (&t->path, "%s.%d", absolute, (int)getpid ()) < 0)
    t->path = NULL;
  free (absolute);
  if (!t->path)
    return fail (err, -ENOMEM, "out of memory");
  if (strlen (t->path) >= sizeof addr.sun_path)
    return fail (err, -ENAMETOOLONG, "the name of the control socket is too long");
  memcpy (addr.sun_path, t->path, strlen (t->path));
  t->listener = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  mode_t before = umask (0177);
  int r = t->listener < 0 || bind (t->listener, (struct sockaddr *)&addr, sizeof addr) < 0 ||
                  listen (t->listener, 1) < 0
              ? -errno
              : 0;
  umask (before);
  if (r < 0) {
    snprintf (err->text, sizeof err->text, "cannot listen on '%s': %s", t->path, strerror (-r));
    return r;
  }
  if (geteuid () == 0 && stat (control_path, &theirs) == 0 && theirs.st_uid != 0 &&
      lchown (t->path, theirs.st_uid, theirs.st_gid) < 0)
    return fail (err, -errno, "the running server cannot be let in");
  return 0;
}

static int
ask (struct takeover *t, struct q_error *err)
{
  json_t *request =
      json_pack ("{s:s,s:{s:s}}", "execute", "takeover", "arguments", "socket", t->path);
  char *text = request ? json_dumps (request, JSON_COMPACT) : NULL;
  int r = 0;

  json_decref (request);
  if (!text)
    return fail (err, -EINVAL, "the control socket's name is not UTF-8");
  if (dprintf (t->control, "{\"execute\":\"qmp_capabilities\"}\n%s\n", text) < 0)
    r = fail (err, -errno, strerror (errno));
  free (text);
  return r;
}

/* What the control socket says, that may be an error.  1: it has said no. */
static int
hear_control (struct takeover *t, struct q_error *err)
{
  char buf[4096];
  ssize_t n = recv (t->control, buf, sizeof buf, MSG_DONTWAIT);
  const char *p = buf;
  enum stream_result what;
  json_t *value;

  if (n < 0 && (errno == EAGAIN || errno == EINTR))
    return 0;
  if (n <= 0)
    return fail (err, -EPIPE, "the running server has closed its control socket");
  while ((what = stream_next (&t->stream, &p, buf + n, &value, err)) != STREAM_MORE) {
    if (what == STREAM_ERROR)
      return fail (err, -EPROTO, "the control socket says what is no JSON");
    const char *why =
        json_string_value (json_object_get (json_object_get (value, "error"), "desc"));
    if (why)
      snprintf (err->text, sizeof err->text, "the running server says: %s", why);
    json_decref (value);
    if (why)
      return -ECANCELED;
  }
  return 0;
}

/* The running server connects to us, or says why it does not. */
static int
wait_for_it (struct takeover *t, struct q_error *err)
{
  for (;;) {
    struct pollfd p[2] = { { .fd = t->listener, .events = POLLIN },
                           { .fd = t->control, .events = POLLIN } };
    int n = poll (p, 2, MESSAGE_LIMIT_MS);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return fail (err, -ETIMEDOUT, "the running server does not answer");
    if (p[0].revents) {
      t->wire.fd = accept4 (t->listener, NULL, NULL, SOCK_CLOEXEC);
      return t->wire.fd < 0 ? fail (err, -errno, strerror (errno)) : 0;
    }
    int r = hear_control (t, err);
    if (r < 0)
      return r;
  }
}

static void
close_fd (int *fd)
{
  if (*fd >= 0)
    close (*fd);
  *fd = -1;
}

struct takeover *
takeover_begin (const char *control_path, uid_t user, struct q_error *err)
{
  struct takeover *t = calloc (1, sizeof *t);
  pid_t pid;

  if (!t) {
    fail (err, -ENOMEM, "out of memory");
    return NULL;
  }
  *t = (struct takeover){ .control = -1, .listener = -1, .other = -1 };
  t->wire = (struct wire){ .fd = -1, .timeout_ms = MESSAGE_LIMIT_MS };
  int r = connect_control (t, control_path, err);
  if (r == 0)
    r = wire_check_peer (t->control, user, &pid, err);
  if (r == 0)
    r = listen_beside (t, control_path, err);
  if (r == 0)
    r = ask (t, err);
  if (r == 0)
    r = wait_for_it (t, err);
  if (r == 0)
    r = wire_check_peer (t->wire.fd, user, &pid, err);
  if (r == 0)
    t->other = (int)syscall (SYS_pidfd_open, pid, 0); /* without it, is_dead knows nothing */
  if (r == 0)
    r = wire_receive (&t->wire, "offer", &t->offer, err);
  if (r == 0)
    service_inherit (integer (t->offer.body, "watchdog"));
  close_fd (&t->listener);
  if (t->path)
    unlink (t->path);
  if (r == 0)
    return t;
  takeover_end (t);
  return NULL;
}

/* ---- what is offered ------------------------------------------------------------------------- */

/* The descriptor that KEY of O counts; -1 if there is none.  It is the caller's. */
static int
take_fd (struct takeover *t, const json_t *o, const char *key)
{
  const json_t *v = json_object_get (o, key);
  json_int_t i = json_integer_value (v);

  if (!json_is_integer (v) || i < 0 || i >= (json_int_t)t->offer.n_fds)
    return -1;
  int fd = t->offer.fds[i];
  t->offer.fds[i] = -1;
  return fd;
}

/* Adopts the listening sockets that KEY lists. */
static int
adopt_listeners (struct takeover *t, const char *key, struct listeners *ls, struct q_error *err)
{
  const json_t *list = json_object_get (t->offer.body, key), *l;
  size_t i;

  json_array_foreach ((json_t *)list, i, l)
  {
    int fd = take_fd (t, l, "fd");
    if (fd < 0)
      return fail (err, -EPROTO, "a listening socket that was not handed over");
    int r = listen_adopt (ls, fd, string (l, "path"), integer (l, "dev"), integer (l, "ino"),
                          string (l, "name"), err);
    if (r < 0)
      return r;
  }
  return 0;
}

int
takeover_listeners (struct takeover *t, struct listeners *ls, const char *unix_path,
                    struct q_error *err)
{
  int r = adopt_listeners (t, "listeners", ls, err);

  if (r == 0 && ls->n == 0)
    r = fail (err, -EPROTO, "the running server has no listening sockets");
  if (r == 0 && unix_path && !listen_has_unix (ls, unix_path)) {
    snprintf (err->text, sizeof err->text,
              "--socket=%s: the running server does not listen on that socket, and its sockets are "
              "what is taken over",
              unix_path);
    r = -ENOENT;
  }
  return r;
}

struct metrics *
takeover_metrics (struct takeover *t, const char *address, struct q_error *err)
{
  struct listeners theirs = { .n = 0 };
  struct metrics *m = NULL;

  err->text[0] = '\0';
  if (adopt_listeners (t, "metrics", &theirs, err) == 0 && metrics_is_at (&theirs, address)) {
    t->took |= TAKEOVER_METRICS;
    m = metrics_adopt (&theirs, err);
  }
  listen_leave (&theirs);
  listen_close (&theirs);
  return m;
}

struct control *
takeover_control (struct takeover *t, const char *path, struct q_error *err)
{
  int fd = take_fd (t, t->offer.body, "control");
  const char *theirs = string (t->offer.body, "control-path");
  struct stat a, b;

  err->text[0] = '\0';
  if (fd >= 0 && theirs && lstat (theirs, &a) == 0 && lstat (path, &b) == 0 &&
      a.st_dev == b.st_dev && a.st_ino == b.st_ino) {
    t->took |= TAKEOVER_CONTROL;
    return control_adopt (fd, theirs, a.st_dev, a.st_ino, err);
  }
  close_fd (&fd);
  return NULL;
}

int
takeover_pid_file (struct takeover *t, const char *path, struct q_error *err)
{
  int fd = take_fd (t, t->offer.body, "pid-file");
  struct stat a, b;

  if (fd >= 0 && fstat (fd, &a) == 0 && stat (path, &b) == 0 && a.st_dev == b.st_dev &&
      a.st_ino == b.st_ino) {
    int r = pid_file_adopt (path, fd, err);
    if (r == 0)
      t->took |= TAKEOVER_PID_FILE;
    return r < 0 ? r : 1;
  }
  close_fd (&fd);
  return 0;
}

/* ---- images ---------------------------------------------------------------------------------- */

static int
say (struct takeover *t, const char *type, struct q_error *err)
{
  return wire_send (&t->wire, json_pack ("{s:s}", "type", type), NULL, 0, NULL, 0, err);
}

bool
takeover_took (const struct takeover *t, enum takeover_part part)
{
  return t->took & part;
}

bool
takeover_is_from_root (const struct takeover *t)
{
  struct ucred cred;
  socklen_t len = sizeof cred;

  /* Who connected to us is meant, not who once made the socket that we connected to. */
  return getsockopt (t->wire.fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.uid == 0;
}

int
takeover_ready (struct takeover *t, struct q_error *err)
{
  bool more = true;
  int r = wire_send (&t->wire,
                     json_pack ("{s:s,s:{s:b,s:b,s:b}}", "type", "ready", "took", "control",
                                takeover_took (t, TAKEOVER_CONTROL), "metrics",
                                takeover_took (t, TAKEOVER_METRICS), "pid-file",
                                takeover_took (t, TAKEOVER_PID_FILE)),
                     NULL, 0, NULL, 0, err);

  while (r == 0 && more) {
    struct wire_message m;
    r = wire_receive (&t->wire, "guards", &m, err);
    if (r < 0)
      break;
    more = json_is_true (json_object_get (m.body, "more"));
    for (unsigned i = 0; i < m.n_fds && r == 0; i++) {
      r = q_lock_adopt (m.fds[i]);
      m.fds[i] = -1;
    }
    if (r < 0)
      fail (err, r, "out of memory");
    wire_free (&m);
  }
  return r;
}

/* ---- sessions -------------------------------------------------------------------------------- */

static void
free_taken (struct taken *list)
{
  while (list) {
    struct taken *c = list;
    list = c->next;
    close_fd (&c->fd);
    free (c->peer);
    if (c->saved)
      saved_session_free (c->saved);
    free (c->saved);
    free (c);
  }
}

static int
take_session (struct wire_message *m, struct exports *exports, struct taken **list,
              struct q_error *err)
{
  const char *peer = string (m->body, "peer");
  struct taken *c = calloc (1, sizeof *c);

  if (!c)
    return fail (err, -ENOMEM, "out of memory");
  c->fd = -1;
  c->next = *list;
  *list = c;
  c->saved = calloc (1, sizeof *c->saved);
  c->peer = peer ? strdup (peer) : NULL;
  if (!c->saved || (peer && !c->peer))
    return fail (err, -ENOMEM, "out of memory");
  if (m->n_fds != 1)
    return fail (err, -EPROTO, "a connection without its socket");
  int r = saved_session_check (exports, json_object_get (m->body, "state"), m->blob, m->blob_size,
                               c->saved, err);
  if (r < 0)
    return r;
  m->blob = NULL;
  c->fd = m->fds[0];
  m->fds[0] = -1;
  return 0;
}

static int
take_sessions (struct takeover *t, struct exports *exports, struct taken **list,
               struct q_error *err)
{
  json_int_t n = 0;

  for (;;) {
    struct wire_message m;
    int r = wire_receive (&t->wire, NULL, &m, err);
    if (r < 0)
      return r;
    bool is_session = strcmp (m.type, "session") == 0, is_end = strcmp (m.type, "end") == 0;
    if (is_session)
      r = take_session (&m, exports, list, err);
    else if (!is_end || json_integer_value (json_object_get (m.body, "sessions")) != n)
      r = fail (err, -EPROTO, "the running server lost count of its connections");
    n += is_session;
    wire_free (&m);
    if (r < 0 || is_end)
      return r;
  }
}

/* Of the other process, and of what it offered and nobody wanted: a socket that is listened on but
 * never accepted from would keep its clients waiting. */
static void
let_go (struct takeover *t)
{
  wire_free (&t->offer);
  close_fd (&t->wire.fd);
  close_fd (&t->control);
  close_fd (&t->other);
}

/* A connection that was closed is no proof: the other may have let go of us for want of memory. */
static bool
is_dead (const struct takeover *t)
{
  struct pollfd p = { .fd = t->other, .events = POLLIN };
  return t->other >= 0 && poll (&p, 1, DYING_LIMIT_MS) > 0;
}

int
takeover_sessions (struct takeover *t, struct server *sv, struct exports *exports,
                   struct q_error *err)
{
  struct taken *list = NULL;
  struct wire_message m = { .body = NULL };
  struct q_error ignored;
  int r;

  q_lock_disown (); /* the images' own locks are taken */
  r = say (t, "opened", err);
  if (r == 0)
    r = take_sessions (t, exports, &list, err);
  if (r == 0)
    r = say (t, "taken", err);
  if (r == 0) {
    r = wire_receive (&t->wire, "go", &m, err);
    /* If it is dead, nobody else serves what has been handed over. */
    if (r == -EPIPE && is_dead (t))
      r = 0;
  }
  wire_free (&m);
  if (r < 0) {
    free_taken (list);
    return r;
  }
  say (t, "serving", &ignored); /* if nobody hears it any more, that is as well */
  t->done = true;
  let_go (t);
  for (struct taken *c = list; c; c = c->next) {
    server_adopt (sv, c->fd, c->peer, c->saved);
    c->fd = -1;
    c->peer = NULL;
    c->saved = NULL;
  }
  free_taken (list);
  return 0;
}

bool
takeover_is_done (const struct takeover *t)
{
  return t->done;
}

void
takeover_end (struct takeover *t)
{
  if (!t)
    return;
  if (!t->done)
    q_lock_disown ();
  let_go (t);
  close_fd (&t->listener);
  stream_destroy (&t->stream);
  free (t->path);
  free (t);
}
