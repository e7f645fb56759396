/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The control socket: its clients, and what they say to each other with us.
 *
 * 1. A client has at most one command that is being run; while it has, or while its queue is full,
 *    nothing more is taken in from it.  So replies come in the order of the commands.
 * 2. A queue is full at MAX_REPLIES bytes, and one more reply may begin below it; an event has to
 *    fit into MAX_EVENTS.
 * 3. All of this is touched by the thread of the event loop alone; the others come through
 *    control-queue.h and control-run.h.
 */

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control.h"
#include "describe.h"
#include "control-queue.h"
#include "control-run.h"
#include "control-stream.h"
#include "listen.h"
#include "log.h"

/* Clients at once; the others wait in the backlog. */
#define MAX_CLIENTS 32

/* Bytes queued for a client. */
#define MAX_REPLIES ((size_t)64 * 1024)
#define MAX_EVENTS  ((size_t)256 * 1024)

/* Bytes taken in from a client before others have a turn. */
#define RX_SIZE 8192

/* Seconds until a connection is tried again that there was no descriptor for. */
#define ACCEPT_PAUSE 0.5

/* A line that waits to be sent. */
struct line {
  struct line *next;
  size_t n, sent;
  char *text;
};

struct control_client {
  struct control_client *next;
  struct control *control;
  ev_io reader, writer;
  pid_t pid;
  bool negotiated;
  bool eof;      /* has said all that it will */
  bool broken;   /* nothing can be sent any more */
  uint64_t lost; /* events that it has not been told of */
  struct stream stream;
  char rx[RX_SIZE];
  const char *rx_next, *rx_end;
  struct line *out, **out_tail;
  size_t out_bytes;
  struct call *running; /* the runner's */
};

struct control {
  struct listeners listeners;
  struct ev_loop *ev; /* NULL: not started */
  struct control_context context;
  ev_io acceptor;
  ev_timer pause;
  ev_async news;
  struct runner runner;
  struct control_client *clients;
  unsigned n_clients, n_negotiated;
};

/* ---- sending --------------------------------------------------------------------------------- */

/* Takes TEXT over; NULL is a want of memory, after which replies would be missing. */
static void
queue_line (struct control_client *c, char *text)
{
  struct line *l = text && !c->broken ? calloc (1, sizeof *l) : NULL;

  if (!l) {
    c->broken = true;
    free (text);
    return;
  }
  *l = (struct line){ .text = text, .n = strlen (text) };
  *c->out_tail = l;
  c->out_tail = &l->next;
  c->out_bytes += l->n;
}

/* Takes OBJECT over. */
static void
queue_object (struct control_client *c, json_t *object)
{
  queue_line (c, object ? control_line (object) : NULL);
  json_decref (object);
}

static void
send_queued (struct control_client *c)
{
  while (c->out && !c->broken) {
    struct line *l = c->out;
    ssize_t n = send (c->reader.fd, l->text + l->sent, l->n - l->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0) {
      c->broken = errno != EAGAIN;
      return;
    }
    l->sent += (size_t)n;
    c->out_bytes -= (size_t)n;
    if (l->sent < l->n)
      continue;
    c->out = l->next;
    if (!c->out)
      c->out_tail = &c->out;
    free (l->text);
    free (l);
  }
}

static void
drop_queued (struct control_client *c)
{
  while (c->out) {
    struct line *l = c->out;
    c->out = l->next;
    free (l->text);
    free (l);
  }
  c->out_tail = &c->out;
  c->out_bytes = 0;
}

/* Tells C what it has missed, once there is room. */
static void
tell_lost (struct control_client *c)
{
  if (c->lost == 0 || c->out_bytes >= MAX_REPLIES)
    return;
  queue_object (
      c, event_object ("NBDCOW_EVENTS_LOST", json_pack ("{s:I}", "count", (json_int_t)c->lost)));
  c->lost = 0;
}

static const char *const classes[] = {
  [CONTROL_GENERIC] = "GenericError",
  [CONTROL_NO_COMMAND] = "CommandNotFound",
  [CONTROL_NO_DEVICE] = "DeviceNotFound",
};

static void
reply (struct control_client *c, int result, json_t *ret, const struct control_error *err,
       const json_t *id)
{
  json_t *object;

  if (result < 0) {
    /* One line, whatever a name in it has. */
    struct q_error why = err->q;
    q_make_printable (why.text);
    object = json_pack ("{s:{s:s, s:o}}", "error", "class", classes[err->class], "desc",
                        describe_text (*why.text ? why.text : strerror (-result)));
  } else
    object = json_pack ("{s:o}", "return", ret ? json_incref (ret) : json_object ());
  if (object && id && json_object_set (object, "id", (json_t *)id) < 0) {
    json_decref (object);
    object = NULL;
  }
  queue_object (c, object);
}

/* ---- commands -------------------------------------------------------------------------------- */

/* The one command before all others. */
static int
negotiate (struct control_client *c, json_t *args, struct control_error *err)
{
  struct members m;

  members_init (&m, args, "qmp_capabilities", &err->q);
  json_t *enable = members_get (&m, "enable"), *element;
  size_t i;
  if (enable && !json_is_array (enable))
    members_fail (&m, "enable: an array is wanted");
  json_array_foreach (enable, i, element)
  {
    const char *name = json_string_value (element);
    members_fail (&m, "enable: the greeting offers no capability '%.100s'", name ? name : "?");
  }
  int r = members_end (&m);
  if (r == 0) {
    c->negotiated = true;
    events_wanted (++c->control->n_negotiated > 0);
  }
  return r;
}

/* What is said of REQUEST before its command is looked for: its members. */
static int
check_request (json_t *request, const char **name, json_t **args, struct control_error *err)
{
  const char *key;
  json_t *value;

  *name = NULL;
  *args = NULL;
  if (!json_is_object (request))
    return control_fail (err, -EINVAL, "a command is an object: {\"execute\": \"NAME\", ...}");
  json_object_foreach (request, key, value)
  {
    if (strcmp (key, "execute") == 0) {
      *name = json_string_value (value);
      if (!*name)
        return control_fail (err, -EINVAL, "the member 'execute' is no string");
    } else if (strcmp (key, "arguments") == 0) {
      *args = value;
      if (!json_is_object (value))
        return control_fail (err, -EINVAL, "the member 'arguments' is no object");
    } else if (strcmp (key, "exec-oob") == 0)
      return control_fail (err, -EINVAL,
                           "'exec-oob' is not possible: the capability oob is not offered");
    else if (strcmp (key, "id") != 0)
      return control_fail (err, -EINVAL,
                           "unknown member '%.100s'; there are execute, arguments and id", key);
  }
  return *name ? 0 : control_fail (err, -EINVAL, "the member 'execute' is missing");
}

static void
call_free (struct call *call)
{
  if (!call)
    return;
  json_decref (call->args);
  json_decref (call->id);
  json_decref (call->ret);
  free (call);
}

static void
run_command (struct control_client *c, const struct control_command *command, json_t *args,
             json_t *id)
{
  struct call *call = calloc (1, sizeof *call);

  if (!call) {
    c->broken = true;
    return;
  }
  call->client = c;
  call->command = command;
  call->public.context = &c->control->context;
  call->public.name = command->name;
  call->args = args ? json_incref (args) : json_object ();
  call->id = json_incref (id);
  if (command->pace != CONTROL_AT_ONCE) {
    c->running = call;
    runner_submit (&c->control->runner, call);
    return;
  }
  call->result = command->run (&call->public, call->args, &call->ret, &call->err);
  reply (c, call->result, call->ret, &call->err, call->id);
  call_free (call);
}

static void
take_request (struct control_client *c, json_t *request)
{
  struct control_error err = { CONTROL_GENERIC, { "" } };
  json_t *id = json_object_get (request, "id"), *args;
  const struct control_command *command = NULL;
  const char *name;
  int r = check_request (request, &name, &args, &err);

  if (r == 0) {
    assert (name);
    bool negotiation = strcmp (name, "qmp_capabilities") == 0;
    command = control_find_command (name);
    if (negotiation && !c->negotiated)
      r = negotiate (c, args, &err);
    else if (negotiation)
      r = control_no_command (&err, "qmp_capabilities: that is done already");
    else if (!c->negotiated)
      r = control_no_command (&err, "%.100s: the first command has to be qmp_capabilities", name);
    else if (!command)
      r = control_no_command (&err, "there is no command '%.100s'; query-commands lists them all",
                              name);
    if (r == 0 && c->negotiated && command) {
      log_debug ("control client %d: %s", (int)c->pid, name);
      run_command (c, command, args, id);
      return;
    }
  }
  reply (c, r, NULL, &err, id);
}

/* ---- clients --------------------------------------------------------------------------------- */

static void update_acceptor (struct control *k);

static void
client_free (struct control_client *c)
{
  struct control *k = c->control;
  struct control_client **p = &k->clients;

  while (*p != c)
    p = &(*p)->next;
  *p = c->next;
  k->n_clients--;
  if (c->negotiated)
    events_wanted (--k->n_negotiated > 0);
  if (c->running) {
    c->running->client = NULL;
    atomic_store (&c->running->public.unwanted, true);
  }
  log_info ("control client %d: disconnected", (int)c->pid);
  ev_io_stop (k->ev, &c->reader);
  ev_io_stop (k->ev, &c->writer);
  close (c->reader.fd);
  drop_queued (c);
  stream_destroy (&c->stream);
  free (c);
  update_acceptor (k);
}

/* Takes in what there is from C as far as it may go. */
static void
take_input (struct control_client *c)
{
  while (c->rx_next < c->rx_end && !c->running && !c->broken && c->out_bytes < MAX_REPLIES) {
    struct control_error err = { CONTROL_GENERIC, { "" } };
    json_t *value = NULL;
    switch (stream_next (&c->stream, &c->rx_next, c->rx_end, &value, &err.q)) {
    case STREAM_VALUE:
      take_request (c, value);
      json_decref (value);
      break;
    case STREAM_ERROR:
      reply (c, -EINVAL, NULL, &err, NULL);
      break;
    case STREAM_MORE:
      break;
    }
  }
}

/* Goes on with C, which may be gone afterwards. */
static void
client_go (struct control_client *c)
{
  struct ev_loop *ev = c->control->ev;

  do {
    take_input (c);
    send_queued (c);
    tell_lost (c);
  } while (c->rx_next < c->rx_end && !c->running && !c->broken && c->out_bytes < MAX_REPLIES);
  send_queued (c);

  bool idle = c->rx_next == c->rx_end && !c->running;
  if (c->broken || (c->eof && idle && !c->out)) {
    client_free (c);
    return;
  }
  if (idle && !c->eof && c->out_bytes < MAX_REPLIES)
    ev_io_start (ev, &c->reader);
  else
    ev_io_stop (ev, &c->reader);
  if (c->out)
    ev_io_start (ev, &c->writer);
  else
    ev_io_stop (ev, &c->writer);
}

static void
on_readable (struct ev_loop *ev, ev_io *w, int revents)
{
  struct control_client *c = w->data;

  (void)ev;
  (void)revents;
  assert (c->rx_next == c->rx_end);
  ssize_t n = recv (w->fd, c->rx, sizeof c->rx, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR))
    return;
  c->broken = n < 0;
  c->eof = n == 0;
  c->rx_next = c->rx;
  c->rx_end = c->rx + (n < 0 ? 0 : n);
  client_go (c);
}

static void
on_writable (struct ev_loop *ev, ev_io *w, int revents)
{
  (void)ev;
  (void)revents;
  client_go (w->data);
}

static json_t *
greeting (void)
{
  return json_pack ("{s:{s:o, s:[]}}", "QMP", "version", control_version (), "capabilities");
}

static void
take_in (struct control *k, int fd, const struct ucred *peer)
{
  struct control_client *c = calloc (1, sizeof *c);

  if (!c) {
    close (fd);
    return;
  }
  c->control = k;
  c->pid = peer->pid;
  c->rx_next = c->rx_end = c->rx;
  c->out_tail = &c->out;
  ev_io_init (&c->reader, on_readable, fd, EV_READ);
  ev_io_init (&c->writer, on_writable, fd, EV_WRITE);
  c->reader.data = c->writer.data = c;
  c->next = k->clients;
  k->clients = c;
  k->n_clients++;
  log_info ("control client %d (user %u): connected", (int)peer->pid, (unsigned)peer->uid);
  queue_object (c, greeting ());
  client_go (c);
}

static void
on_connection (struct ev_loop *ev, ev_io *w, int revents)
{
  struct control *k = w->data;
  struct ucred peer;
  socklen_t len = sizeof peer;

  (void)revents;
  int fd = accept4 (w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)) {
    ev_io_stop (ev, w);
    ev_timer_set (&k->pause, ACCEPT_PAUSE, 0.);
    ev_timer_start (ev, &k->pause);
  }
  if (fd < 0)
    return;
  if (getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 ||
      (peer.uid != 0 && peer.uid != geteuid ())) {
    log_warning ("control socket: process %d of user %u is turned away: it is for root and user %u",
                 (int)peer.pid, (unsigned)peer.uid, (unsigned)geteuid ());
    close (fd);
    return;
  }
  take_in (k, fd, &peer);
  update_acceptor (k);
}

static void
update_acceptor (struct control *k)
{
  if (k->n_clients < MAX_CLIENTS && !ev_is_active (&k->pause))
    ev_io_start (k->ev, &k->acceptor);
  else
    ev_io_stop (k->ev, &k->acceptor);
}

static void
on_pause_over (struct ev_loop *ev, ev_timer *w, int revents)
{
  (void)ev;
  (void)revents;
  update_acceptor (w->data);
}

/* ---- from other threads ---------------------------------------------------------------------- */

static void
take_events (struct control *k)
{
  uint64_t lost;
  struct control_queued_event *e = events_take (&lost);

  while (e) {
    struct control_queued_event *next = e->next;
    for (struct control_client *c = k->clients; c; c = c->next) {
      if (!c->negotiated)
        continue;
      tell_lost (c);
      if (c->lost > 0 || c->out_bytes + strlen (e->text) > MAX_EVENTS)
        c->lost++;
      else
        queue_line (c, strdup (e->text));
    }
    event_free (e);
    e = next;
  }
  for (struct control_client *c = k->clients; c; c = c->next)
    if (c->negotiated)
      c->lost += lost;
}

static void
take_done (struct call *call)
{
  while (call) {
    struct call *next = call->next;
    struct control_client *c = call->client;
    if (c) {
      c->running = NULL;
      reply (c, call->result, call->ret, &call->err, call->id);
    }
    call_free (call);
    call = next;
  }
}

static void
on_news (struct ev_loop *ev, ev_async *w, int revents)
{
  struct control *k = w->data;

  (void)ev;
  (void)revents;
  take_done (runner_take (&k->runner));
  take_events (k);
  for (struct control_client *c = k->clients, *next; c; c = next) {
    next = c->next;
    client_go (c);
  }
}

/* Any thread. */
static void
wake (void *opaque)
{
  struct control *k = opaque;
  ev_async_send (k->ev, &k->news);
}

/* ---- life ------------------------------------------------------------------------------------ */

struct control *
control_open (const char *path, struct q_error *err)
{
  struct control *k = calloc (1, sizeof *k);

  if (!k) {
    snprintf (err->text, sizeof err->text, "out of memory");
    return NULL;
  }
  if (listen_private (&k->listeners, path, err) < 0) {
    control_close (k);
    return NULL;
  }
  return k;
}

int
control_give (struct control *k, uid_t uid, gid_t gid)
{
  return lchown (k->listeners.l[0].unix_path, uid, gid) < 0 ? -errno : 0;
}

bool
control_start (struct control *k, struct ev_loop *ev, const struct control_context *context)
{
  k->ev = ev;
  k->context = *context;
  clock_gettime (CLOCK_MONOTONIC, &k->context.started);
  ev_async_init (&k->news, on_news);
  ev_init (&k->pause, on_pause_over);
  ev_io_init (&k->acceptor, on_connection, k->listeners.l[0].fd, EV_READ);
  k->news.data = k->pause.data = k->acceptor.data = k;
  int r = runner_start (&k->runner, wake, k);
  if (r < 0) {
    log_error ("cannot create a thread for the control socket's commands: %s", strerror (-r));
    k->ev = NULL;
    return false;
  }
  ev_async_start (ev, &k->news);
  events_open (wake, k);
  update_acceptor (k);
  return true;
}

void
control_stop (struct control *k)
{
  if (!k || !k->ev)
    return;
  ev_io_stop (k->ev, &k->acceptor);
  ev_timer_stop (k->ev, &k->pause);
  take_done (runner_stop (&k->runner));
  take_events (k);
  for (struct control_client *c = k->clients, *next; c; c = next) {
    next = c->next;
    send_queued (c);
    client_free (c);
  }
  ev_io_stop (k->ev, &k->acceptor);
  events_close ();
  ev_async_stop (k->ev, &k->news);
  k->ev = NULL;
}

int
control_socket (const struct control *k, const char **path)
{
  if (!k)
    return -1;
  *path = k->listeners.l[0].unix_path;
  return k->listeners.l[0].fd;
}

void
control_leave (struct control *k)
{
  if (k)
    listen_leave (&k->listeners);
}

struct control *
control_adopt (int fd, const char *path, uint64_t dev, uint64_t ino, struct q_error *err)
{
  struct control *k = calloc (1, sizeof *k);

  if (!k) {
    close (fd);
    snprintf (err->text, sizeof err->text, "out of memory");
    return NULL;
  }
  if (listen_adopt (&k->listeners, fd, path, dev, ino, NULL, err) < 0) {
    control_leave (k);
    control_close (k);
    return NULL;
  }
  return k;
}

void
control_close (struct control *k)
{
  if (!k)
    return;
  listen_close (&k->listeners);
  free (k);
}
