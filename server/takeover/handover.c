/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "conn.h"
#include "control.h"
#include "daemon.h"
#include "handover.h"
#include "log.h"
#include "reload.h"
#include "room.h"
#include "server.h"
#include "service.h"
#include "takeover-wire.h"

/* Seconds that requests under way may take to come to their end, clients waiting. */
#define STILL_LIMIT 10.0
/* The same for each message of the new process. */
#define MESSAGE_LIMIT_MS 30000
/* How long it may take to go by itself when it is over. */
#define GOING_LIMIT_MS 5000
/* How long it may take to make room for the news that it is over. */
#define FAREWELL_LIMIT_MS 1000

/* Files of images, those of backing files included. */
#define MAX_GUARDS 16384

/* The file of a socket that was offered, as it was then. */
struct offered {
  const char *path;
  struct stat st;
};

struct handover {
  const struct handover_context *context;
  struct wire wire;
  pid_t pid;
  int pidfd; /* -1 before the new one is there */
  bool holds_reload, held, frozen, suspended, guards_sent;
  bool takes_control, takes_metrics, takes_pid_file; /* what it does not take, we remove */
  struct offered offered[2 * MAX_LISTENERS + 1];
  unsigned n_offered;
  int guards[MAX_GUARDS];
  unsigned n_guards;
  double frozen_at;
  unsigned n_sessions;
};

static atomic_bool under_way; /* commands that may block are run one at a time */

static double
now (void)
{
  struct timespec ts;
  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int
fail (struct q_error *err, int r, const char *what)
{
  snprintf (err->text, sizeof err->text, "%s", what);
  return r;
}

/* ---- the other process ----------------------------------------------------------------------- */

/* PATH has done its duty; who made it may be killed before it comes to remove it.  Whatever has not
 * the name that such a process gives it (NAME.PID) is somebody else's. */
static void
remove_socket (const char *path, pid_t pid)
{
  const char *dot = strrchr (path, '.');
  char number[24];
  struct stat st;

  snprintf (number, sizeof number, ".%d", (int)pid);
  if (dot && strcmp (dot, number) == 0 && lstat (path, &st) == 0 && S_ISSOCK (st.st_mode))
    unlink (path);
}

static int
connect_to (struct handover *h, const char *path, struct q_error *err)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  if (strlen (path) >= sizeof addr.sun_path)
    return fail (err, -ENAMETOOLONG, "the name of the socket is too long");
  memcpy (addr.sun_path, path, strlen (path));
  h->wire.fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (h->wire.fd < 0 || connect (h->wire.fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
    int r = -errno;
    snprintf (err->text, sizeof err->text, "cannot connect to '%s': %s", path, strerror (-r));
    return r;
  }
  int r = wire_check_peer (h->wire.fd, geteuid (), &h->pid, err);
  if (r < 0)
    return r;
  remove_socket (path, h->pid);
  h->pidfd = (int)syscall (SYS_pidfd_open, h->pid, 0);
  return h->pidfd < 0 ? fail (err, -errno, "the new process cannot be watched") : 0;
}

static bool
is_gone (const struct handover *h, int timeout_ms)
{
  struct pollfd p = { .fd = h->pidfd, .events = POLLIN };
  return poll (&p, 1, timeout_ms) > 0;
}

static void
end_it (const struct handover *h)
{
  log_warning ("takeover: process %d does not go: it is killed", (int)h->pid);
  syscall (SYS_pidfd_send_signal, h->pidfd, SIGKILL, NULL, 0);
  while (!is_gone (h, 10000))
    log_warning ("takeover: process %d does not die: its images cannot be opened before that",
                 (int)h->pid);
}

/* The new process may have images open: nobody else does before it is gone.  That it is told so is
 * how it knows that we are not dead, whose clients would be its own. */
static void
see_off (struct handover *h, const char *why)
{
  struct q_error ignored;

  if (h->wire.fd >= 0) {
    h->wire.timeout_ms = FAREWELL_LIMIT_MS;
    (void)wire_send (&h->wire, json_pack ("{s:s,s:s}", "type", "failed", "error", why), NULL, 0,
                     NULL, 0, &ignored);
    close (h->wire.fd);
  }
  h->wire.fd = -1;
  if (h->guards_sent && !is_gone (h, GOING_LIMIT_MS))
    end_it (h);
}

/* ---- preparing ------------------------------------------------------------------------------- */

/* Adds FD to the list, and says where in it. */
static json_t *
add_fd (int *fds, unsigned *n, int fd)
{
  if (fd < 0 || *n == WIRE_MAX_FDS)
    return json_null ();
  fds[*n] = fd;
  return json_integer ((*n)++);
}

static void
note_owner (struct handover *h, const char *path)
{
  struct offered *o = &h->offered[h->n_offered];

  o->path = path;
  if (path && lstat (path, &o->st) == 0)
    h->n_offered++;
}

/* A new process of root's gives what it is offered to the user that it is to become, before it is
 * certain that it goes on. */
static void
take_back (const struct handover *h)
{
  for (const struct offered *o = h->offered; o < h->offered + h->n_offered; o++) {
    struct stat now;
    if (lstat (o->path, &now) == 0 && now.st_dev == o->st.st_dev && now.st_ino == o->st.st_ino &&
        (now.st_uid != o->st.st_uid || now.st_gid != o->st.st_gid) &&
        lchown (o->path, o->st.st_uid, o->st.st_gid) < 0)
      log_warning ("takeover: socket '%s' stays user %u's: %m", o->path, now.st_uid);
  }
}

static json_t *
add_listeners (struct handover *h, int *fds, unsigned *n, const struct listeners *ls)
{
  json_t *list = json_array ();

  for (unsigned i = 0; ls && i < ls->n; i++) {
    const struct listener *l = &ls->l[i];
    note_owner (h, l->unix_path);
    json_array_append_new (list, json_pack ("{s:o,s:s?,s:I,s:I,s:s?}", "fd", add_fd (fds, n, l->fd),
                                            "path", l->unix_path, "dev", (json_int_t)l->dev, "ino",
                                            (json_int_t)l->ino, "name", l->name));
  }
  return list;
}

static int
offer (struct handover *h, struct q_error *err)
{
  int fds[WIRE_MAX_FDS];
  unsigned n = 0;
  const char *control_path = NULL;
  int control_fd = control_socket (h->context->control, &control_path);

  note_owner (h, control_path);
  json_t *listeners = add_listeners (h, fds, &n, server_listeners (h->context->server));
  json_t *metrics = add_listeners (h, fds, &n, server_metrics (h->context->server));
  json_t *control = add_fd (fds, &n, control_fd), *pid = add_fd (fds, &n, pid_file_descriptor ());
  json_t *all =
      json_pack ("{s:s,s:o,s:o,s:o,s:s?,s:o,s:s?,s:I}", "type", "offer", "listeners", listeners,
                 "metrics", metrics, "control", control, "control-path", control_path, "pid-file",
                 pid, "pid-path", pid_file_path (), "watchdog", (json_int_t)service_patience ());
  return wire_send (&h->wire, all, fds, n, NULL, 0, err);
}

static int
expect (struct handover *h, const char *type, struct q_error *err)
{
  struct wire_message m;
  int r = wire_receive (&h->wire, type, &m, err);

  if (r == 0)
    wire_free (&m);
  return r;
}

/* It has all that it needs but the images and the clients. */
static int
expect_ready (struct handover *h, struct q_error *err)
{
  struct wire_message m;
  int r = wire_receive (&h->wire, "ready", &m, err);

  if (r < 0)
    return r;
  /* One that does not say takes all of it. */
  const json_t *took = json_object_get (m.body, "took");
  h->takes_control = !took || json_is_true (json_object_get (took, "control"));
  h->takes_metrics = !took || json_is_true (json_object_get (took, "metrics"));
  h->takes_pid_file = !took || json_is_true (json_object_get (took, "pid-file"));
  wire_free (&m);
  return 0;
}

/* So that little is left to be flushed while clients wait. */
static void
flush_early (struct handover *h)
{
  for (struct export *x = exports_next (h->context->exports, NULL); x;
       x = exports_next (h->context->exports, x))
    if (!x->read_only)
      (void)q_flush (x->img); /* what fails now fails again */
}

/* Who waits for space on the disk may do so for long, and is this server's to answer. */
static int
check_rooms (const struct handover *h, struct q_error *err)
{
  struct exports *set = h->context->exports;

  for (struct export *x = exports_next (set, NULL); x; x = exports_next (set, x))
    if (x->room && room_waiting (x->room) > 0) {
      snprintf (err->text, sizeof err->text,
                "export \"%.200s\": writes wait for space on a full disk, and cannot be "
                "handed over: it needs room first",
                x->name);
      export_put (x);
      return -ENOSPC;
    }
  return 0;
}

/* ---- freezing -------------------------------------------------------------------------------- */

static void
hold (struct server *sv, void *opaque)
{
  server_hold (sv, *(bool *)opaque);
}

static void
freeze (struct loop *l, void *opaque)
{
  bool on = *(bool *)opaque;

  l->frozen = on;
  for (struct conn *c = l->conns, *next; c; c = next) {
    next = c->next;
    if (on)
      conn_freeze (c);
    else
      conn_thaw (c);
  }
}

static void
look (struct loop *l, void *opaque)
{
  bool *still = opaque;

  for (struct conn *c = l->conns; c && *still; c = c->next)
    *still = conn_is_still (c);
}

static void
on_all_loops (struct handover *h, void (*fn) (struct loop *l, void *opaque), void *opaque)
{
  struct loop **loops;
  unsigned n = server_loops (h->context->server, &loops);

  for (unsigned i = 0; i < n; i++)
    loop_call (loops[i], fn, opaque);
}

static int
stand_still (struct handover *h, struct q_error *err)
{
  const struct timespec moment = { .tv_nsec = 200000 };
  bool on = true, still = false;

  if (!server_call (h->context->server, hold, &on))
    return fail (err, -ESHUTDOWN, "the server is shutting down");
  h->held = true;
  h->frozen_at = now ();
  h->frozen = true;
  on_all_loops (h, freeze, &on);
  while (!still) {
    int r = check_rooms (h, err);
    if (r < 0)
      return r;
    still = true;
    on_all_loops (h, look, &still);
    if (!still && now () - h->frozen_at > STILL_LIMIT)
      return fail (err, -EBUSY, "requests under way do not come to their end");
    if (!still)
      nanosleep (&moment, NULL);
  }
  return 0;
}

/* ---- images ---------------------------------------------------------------------------------- */

static int
hand_images_over (struct handover *h, struct q_error *err)
{
  int r = exports_suspend (h->context->exports, h->guards, MAX_GUARDS, err);

  if (r < 0)
    return r;
  h->suspended = true;
  h->n_guards = (unsigned)r;
  h->guards_sent = true;
  unsigned sent = 0;
  do {
    unsigned n = h->n_guards - sent < WIRE_MAX_FDS ? h->n_guards - sent : WIRE_MAX_FDS;
    r = wire_send (&h->wire,
                   json_pack ("{s:s,s:b}", "type", "guards", "more", sent + n < h->n_guards),
                   h->guards + sent, n, NULL, 0, err);
    sent += n;
  } while (r == 0 && sent < h->n_guards);
  return r == 0 ? expect (h, "opened", err) : r;
}

/* ---- sessions -------------------------------------------------------------------------------- */

struct sending {
  struct handover *handover;
  int r;
  struct q_error *err;
};

static void
send_sessions (struct loop *l, void *opaque)
{
  struct sending *s = opaque;

  for (struct conn *c = l->conns; c && s->r == 0; c = c->next) {
    struct saved_session saved;
    if (c->transport.fd < 0 || c->session.dropped)
      continue; /* gone already */
    s->r = conn_save (c, &saved, s->err);
    if (s->r == -ENOTSUP) {
      s->r = 0; /* it is disconnected, and connects anew */
      continue;
    }
    if (s->r < 0)
      break;
    s->r = wire_send (
        &s->handover->wire,
        json_pack ("{s:s,s:O,s:s?}", "type", "session", "state", saved.state, "peer", c->peer),
        &c->transport.fd, 1, saved.bytes, saved.unread + saved.unsent, s->err);
    s->handover->n_sessions++;
    saved_session_free (&saved);
  }
}

static int
hand_sessions_over (struct handover *h, struct q_error *err)
{
  struct sending sending = { .handover = h, .err = err };

  on_all_loops (h, send_sessions, &sending);
  int r = sending.r;
  if (r == 0)
    r = wire_send (&h->wire, json_pack ("{s:s,s:i}", "type", "end", "sessions", (int)h->n_sessions),
                   NULL, 0, NULL, 0, err);
  if (r == 0)
    r = expect (h, "taken", err);
  if (r == 0)
    r = wire_send (&h->wire, json_pack ("{s:s}", "type", "go"), NULL, 0, NULL, 0, err);
  if (r < 0)
    return r;
  r = expect (h, "serving", err);
  if (r == -ETIMEDOUT) {
    /* Whether it has begun to serve is certain only when it cannot begin any more. */
    end_it (h);
    r = expect (h, "serving", err);
  }
  return r;
}

/* ---- the end --------------------------------------------------------------------------------- */

static void
release (struct loop *l, void *opaque)
{
  (void)opaque;
  for (struct conn *c = l->conns, *next; c; c = next) {
    next = c->next;
    conn_release (c);
  }
}

static void
leave (struct server *sv, void *opaque)
{
  const struct handover *h = opaque;

  if (h->takes_control)
    control_leave (h->context->control);
  if (h->takes_metrics && server_metrics (sv))
    listen_leave (server_metrics (sv));
  if (h->takes_pid_file)
    pid_file_leave ();
  server_leave (sv);
}

static void
finish (struct handover *h)
{
  log_info (
      "takeover: process %d serves from now on: %u connections went over to it, after a pause "
      "of %.1f ms",
      (int)h->pid, h->n_sessions, (now () - h->frozen_at) * 1000);
  service_main_process (h->pid);
  exports_leave (h->context->exports);
  /* If it is ending for another reason, it must not remove what is not its own any more either.
   * Before the connections go: a server that ends with its last client would tell the service
   * manager that the service ends. */
  if (!server_call (h->context->server, leave, h))
    leave (h->context->server, h);
  on_all_loops (h, release, NULL);
  for (unsigned i = 0; i < h->n_guards; i++)
    close (h->guards[i]);
}

/* Everything as it was. */
static void
undo (struct handover *h, const char *why)
{
  bool off = false;

  see_off (h, why);
  if (h->suspended)
    exports_resume (h->context->exports, h->guards, h->n_guards);
  if (h->frozen)
    on_all_loops (h, freeze, &off);
  if (h->held)
    (void)server_call (h->context->server, hold, &off);
  if (h->frozen)
    log_info ("takeover: this server goes on, after a pause of %.1f ms",
              (now () - h->frozen_at) * 1000);
  /* Nobody waits for this any more, and the new process may be about to give them away. */
  if (h->n_offered > 0 && h->pidfd >= 0)
    (void)is_gone (h, GOING_LIMIT_MS);
  take_back (h);
}

bool
handover_is_under_way (void)
{
  return atomic_load (&under_way);
}

int
handover (const struct handover_context *context, const char *path, struct q_error *err)
{
  struct handover *h = calloc (1, sizeof *h);

  if (!h)
    return fail (err, -ENOMEM, "out of memory");
  atomic_store (&under_way, true);
  *h = (struct handover){ .context = context, .pidfd = -1 };
  h->wire = (struct wire){ .fd = -1, .timeout_ms = MESSAGE_LIMIT_MS };
  int r = reload_hold (context->reload);
  h->holds_reload = r == 0;
  if (r < 0)
    fail (err, r, "the configuration is being read again");
  if (r == 0)
    r = exports_check_suspend (context->exports, err);
  if (r == 0)
    r = connect_to (h, path, err);
  if (r == 0)
    r = offer (h, err);
  if (r == 0)
    r = expect_ready (h, err);
  if (r == 0)
    r = check_rooms (h, err);
  if (r == 0) {
    flush_early (h);
    r = stand_still (h, err);
  }
  if (r == 0)
    r = hand_images_over (h, err);
  if (r == 0)
    r = hand_sessions_over (h, err);
  if (r == 0)
    finish (h);
  else {
    undo (h, err->text);
    log_error ("takeover: %s; this server goes on", err->text);
  }
  if (h->wire.fd >= 0)
    close (h->wire.fd);
  if (h->pidfd >= 0)
    close (h->pidfd);
  if (h->holds_reload)
    reload_release (context->reload);
  free (h);
  atomic_store (&under_way, false);
  return r;
}
