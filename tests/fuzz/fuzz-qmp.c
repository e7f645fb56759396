/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The control socket: up to three clients that send whatever they like to the real thing
 * (server/control/control.c) on an event loop of this thread, about exports of images in memory.
 *
 * The input begins with 8 bytes that choose the image, how bytes are cut, and whether what follows
 * is what a client sends as it is (PLAIN), or records: commands (qmp-words.h), bytes as they are,
 * events, writes to the disk, lies in the image's file, another configuration, clients that come,
 * go, or do not read; and when a command is run that the server leaves to another thread.
 *
 * Instead of that thread (control-run.h) commands are run where a record says so, one at a time.
 * Files are those in memory, with locks between them as there are between processes; connections
 * are pairs of sockets.  Of the clock there is what events have of it; to measure time with, it is
 * one that each look at it moves.
 *
 * The oracle: each client is answered as QMP wants it (qmp-judge.h), and told of all events or how
 * many it has lost; a command that fails has changed nothing; the disk holds what was written to
 * it; a check finds what there is (qmp-check.h); what was reloaded is what is served
 * (qmp-config.h); the images are sound at the end; memory is bounded; and the metrics are text that
 * can be read (metrics-judge.h) whatever exports are called.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control-run.h"
#include "control-stream.h"
#include "control.h"
#include "fuzz.h"
#include "handover.h"
#include "listen.h"
#include "mem.h"
#include "qmp-choice.h"
#include "qmp-config.h"
#include "qmp-judge.h"
#include "qmp-words.h"
#include "qmp-world.h"

#define MAX_CLIENTS 3u
#define MAX_TURNS   4000u
#define MAX_RECORDS 200u
/* Beside what images take: for each client a value and what it was parsed to, and its queue. */
#define MAX_MEMORY (48u << 20)

/* ---- the server ------------------------------------------------------------------------------ */

static struct {
  struct ev_loop *ev;
  struct control *control;
  struct runner *runner;
  int door[2], visitor;    /* where the next client knocks, and its connection */
  uint64_t events;         /* that were told to anybody */
  size_t memory;           /* that was there before the first client */
  const struct call *call; /* that is being run */
  char server;             /* nobody looks into it */
} sv;

int __wrap_listen_private (struct listeners *ls, const char *path, struct q_error *err);
int __wrap_accept4 (int fd, struct sockaddr *address, socklen_t *len, int flags);
int __wrap_runner_start (struct runner *r, void (*wake) (void *opaque), void *opaque);
int __wrap_handover (const struct handover_context *context, const char *path, struct q_error *err);
void __real_control_event (const char *name, json_t *data);
void __wrap_control_event (const char *name, json_t *data);

int
__wrap_listen_private (struct listeners *ls, const char *path, struct q_error *err)
{
  (void)path;
  (void)err;
  *ls = (struct listeners){ .n = 1, .l = { { .fd = sv.door[0] } } };
  return 0;
}

int
__wrap_accept4 (int fd, struct sockaddr *address, socklen_t *len, int flags)
{
  char knock;

  (void)address;
  (void)len;
  (void)flags;
  if (recv (fd, &knock, 1, MSG_DONTWAIT) != 1)
    return -1;
  return sv.visitor;
}

int
__wrap_runner_start (struct runner *r, void (*wake) (void *opaque), void *opaque)
{
  *r = (struct runner){ .wake = wake, .opaque = opaque };
  pthread_mutex_init (&r->lock, NULL);
  pthread_cond_init (&r->changed, NULL);
  sv.runner = r;
  return 0;
}

/* There is nobody to hand anything over to: what is to be, is as the client wants it. */
int
__wrap_handover (const struct handover_context *context, const char *path, struct q_error *err)
{
  const char *named = json_string_value (json_object_get (sv.call->args, "socket"));

  if (context->server != (struct server *)&sv.server || context->exports != &world.exports ||
      context->reload != world.reload || context->control != sv.control)
    broken ("takeover: it is not all of the server that is handed over");
  if (!named || strcmp (path, named) != 0)
    broken ("takeover: to '%s', which nobody has named", path);
  snprintf (err->text, sizeof err->text, "%.200s: nobody is there", path);
  return *path == 'y' ? 0 : -ECONNREFUSED;
}

void
__wrap_control_event (const char *name, json_t *data)
{
  ++sv.events;
  __real_control_event (name, data);
}

static unsigned
count_clients (void *opaque)
{
  (void)opaque;
  return 1;
}

static void
quit (void *opaque)
{
  (void)opaque;
}

/* The first command that waits for a thread. */
static bool
run_command (void)
{
  struct runner *r = sv.runner;
  struct call *call = r->first;

  if (!call)
    return false;
  r->first = call->next;
  if (!r->first)
    r->last = NULL;
  sv.call = call;
  world_run (call);
  call->next = r->done;
  r->done = call;
  r->wake (r->opaque);
  return true;
}

/* ---- clients --------------------------------------------------------------------------------- */

static struct talker {
  int fd;    /* -1: it is not connected */
  bool deaf; /* does not read */
  char *out; /* that is to be sent, from sent to n */
  size_t n, sent, room;
  struct qmp_witness witness;
  uint64_t events_before; /* when it had negotiated; UINT64_MAX: not yet */
} talkers[MAX_CLIENTS];

static uint64_t cuts; /* random */
static unsigned n_commands;

static void
say (struct talker *t, const void *p, size_t n)
{
  if (n == 0)
    return;
  if (t->n + n > t->room) {
    t->room = 2 * (t->n + n) + 256;
    t->out = realloc (t->out, t->room);
    if (!t->out)
      die ("out of memory");
  }
  memcpy (t->out + t->n, p, n);
  t->n += n;
}

static void
send_piece (struct talker *t, size_t most)
{
  ssize_t n = (ssize_t)(t->n - t->sent < most ? t->n - t->sent : most);

  if (t->fd < 0 || n == 0)
    return;
  n = send (t->fd, t->out + t->sent, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0 && errno != EAGAIN)
    broken ("a client was disconnected: %s", strerror (errno));
  t->sent += n > 0 ? (size_t)n : 0;
}

/* False: there was nothing. */
static bool
hear_piece (struct talker *t, size_t most)
{
  static char buf[65536];
  ssize_t n;

  if (t->fd < 0)
    return false;
  n = recv (t->fd, buf, most < sizeof buf ? most : sizeof buf, MSG_DONTWAIT);
  if (n == 0)
    broken ("a client was disconnected");
  if (n < 0)
    return false;
  qmp_hear (&t->witness, buf, (size_t)n);
  return true;
}

static void
connect_client (struct talker *t, const struct choice *c)
{
  int pair[2], size = 1;

  if (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0 ||
      send (sv.door[1], "k", 1, MSG_DONTWAIT) != 1)
    die ("socketpair: %s", strerror (errno));
  if (c->bits & SMALL_QUEUE)
    setsockopt (pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
  sv.visitor = pair[1];
  ev_run (sv.ev, EVRUN_NOWAIT);
  *t = (struct talker){ .fd = pair[0], .events_before = UINT64_MAX };
}

static void
hang_up (struct talker *t)
{
  close (t->fd);
  free (t->out);
  qmp_free (&t->witness);
  *t = (struct talker){ .fd = -1 };
}

/* ---- records --------------------------------------------------------------------------------- */

/* Something that may be no command, or several; then a fresh start. */
static void
say_anything (struct talker *t, const char *p, size_t n)
{
  if (n >= sizeof QMP_ID_PREFIX - 1 && memmem (p, n, QMP_ID_PREFIX, sizeof QMP_ID_PREFIX - 1))
    return;
  t->witness.may_negotiate = true;
  qmp_tolerate (&t->witness, n + 2);
  say (t, p, n);
  say (t, "\xff", 1);
}

static void
say_command (struct talker *t, json_t *command, unsigned style)
{
  static const char *const between[] = { "", "\r\n", " ", "\n\t " };
  char id[QMP_ID_SIZE], *text;

  if (!qmp_expect (&t->witness, n_commands)) {
    json_decref (command);
    return;
  }
  qmp_id (id, n_commands++);
  json_object_set_new (command, "id", json_string (id));
  text = json_dumps (command, (style & 1 ? JSON_COMPACT : JSON_INDENT (style & 2)) |
                                  (style & 4 ? JSON_ENSURE_ASCII : 0));
  if (!text)
    die ("a command is no JSON");
  if (getenv ("FUZZ_LOG"))
    fprintf (stderr, "client %d: %s\n", (int)(t - talkers), text);
  say (t, text, strlen (text));
  say (t, between[style & 3], strlen (between[style & 3]));
  free (text);
  json_decref (command);
}

static void
say_literal (struct talker *t, struct input *in)
{
  size_t n = take8 (in);

  n = n < in->left ? n : in->left;
  say_anything (t, (const char *)in->at, n);
  in->at += n;
  in->left -= n;
}

/* A command with arguments that are text: perhaps no JSON. */
static void
say_raw (struct talker *t, struct input *in)
{
  const char *name = qmp_command_name ((enum qmp_word) (take8 (in) % QMP_WORDS));
  size_t n = take8 (in);
  char text[512];
  int head = snprintf (text, sizeof text, "{'execute': '%s', 'arguments': ", name);

  take (in, text + head, n);
  text[head + (int)n] = '}';
  say_anything (t, text, (size_t)head + n + 1);
}

/* A command as long as N bytes make it. */
static void
say_long (struct talker *t, size_t n)
{
  char *name = xalloc (n + 1), *text;
  json_t *command;

  memset (name, 'a', n);
  command = json_pack ("{s:s, s:{s:s}}", "execute", "set-log-level", "arguments", "level", name);
  free (name);
  if (n <= STREAM_MAX_SIZE / 2) {
    say_command (t, command, 1);
    return;
  }
  text = json_dumps (command, 0);
  say_anything (t, text, strlen (text));
  free (text);
  json_decref (command);
}

/* Deep, or never ending. */
static void
say_unit (struct talker *t, const char *unit, size_t n)
{
  size_t len = strlen (unit), at;
  char *text = xalloc (n + len);

  for (at = 0; at < n; at += len)
    memcpy (text + at, unit, len);
  say_anything (t, text, at);
  free (text);
}

static void
say_much (struct talker *t, struct input *in)
{
  static const char *const units[] = { "[", "{\"a\":", "[0,", " ", "\"", "\\u00e9", "1 " };
  uint8_t how = take8 (in);

  if (how & 0x80)
    say_long (t, (size_t)1 << how % 21);
  else /* each may have a reply */
    say_unit (t, units[take8 (in) % (sizeof units / sizeof units[0])], (size_t)1 << how % 15);
}

static struct talker *
choose_client (struct talker *t, struct input *in, const struct choice *c)
{
  uint8_t what = take8 (in);
  struct talker *chosen = &talkers[what % MAX_CLIENTS];

  switch (what >> 6) {
  case 0:
    if (chosen->fd < 0)
      connect_client (chosen, c);
    return chosen;
  case 1:
    if (chosen->fd >= 0 && chosen != t)
      hang_up (chosen);
    return t;
  default:
    chosen->deaf = what >> 6 == 2;
    return t;
  }
}

static void
tell_events (unsigned n)
{
  for (unsigned i = 0; i < n; ++i)
    control_event ("FUZZ", json_pack ("{s:i, s:s}", "n", (int)i, "text", "\n\"\xc3\xa9\""));
}

static struct talker *
take_record (struct talker *t, struct input *in, const struct choice *c)
{
  enum qmp_word word;
  uint8_t record = take8 (in);
  uint16_t field;
  uint64_t offset;
  json_t *command;

  switch (record % 16) {
  case 0:
    say_literal (t, in);
    break;
  case 1:
    say_raw (t, in);
    break;
  case 2:
    say_much (t, in);
    break;
  case 3:
    tell_events (take8 (in) * 8u);
    break;
  case 4:
    return choose_client (t, in, c);
  case 5:
  case 6:
    if (record == 0x86) {
      field = take16 (in);
      world_lie (field, take8 (in));
      break;
    }
    offset = take8 (in) * 512u;
    world_write (offset, 1 + take8 (in) * 32u);
    break;
  case 7:
    if (record & 0x40)
      config_change (qmp_config (in));
    else
      world_check_metrics (record & 0x80);
    break;
  case 8:
  case 9:
    run_command ();
    break;
  default:
    word = (enum qmp_word) (take8 (in) % QMP_WORDS);
    command = qmp_command (in, word);
    t->witness.may_negotiate |= word == QMP_CAPABILITIES;
    say_command (t, command, record >> 4);
    break;
  }
  return t;
}

/* ---- the talk -------------------------------------------------------------------------------- */

static size_t
piece (uint8_t most, size_t n)
{
  return 1 + n / 4096 + (size_t)random_below (&cuts, UINT64_C (1) << most % 18);
}

size_t __sanitizer_get_current_allocated_bytes (void) __attribute__ ((weak));

static void
check_memory (void)
{
  size_t now;

  if (!__sanitizer_get_current_allocated_bytes)
    return;
  now = __sanitizer_get_current_allocated_bytes ();
  for (unsigned i = 0; i < MAX_CLIENTS; ++i)
    now -= talkers[i].room + talkers[i].witness.room < now
               ? talkers[i].room + talkers[i].witness.room
               : now;
  if (now > sv.memory + MAX_MEMORY)
    broken ("%zu bytes of memory for %u clients", now - sv.memory, MAX_CLIENTS);
}

/* A little of everything.  False: nothing has moved. */
static bool
turn (const struct choice *c)
{
  bool moved = false;

  for (unsigned i = 0; i < MAX_CLIENTS; ++i) {
    struct talker *t = &talkers[i];
    size_t sent = t->sent;

    send_piece (t, piece (c->in, t->n - t->sent));
    moved |= t->sent != sent;
  }
  ev_run (sv.ev, EVRUN_NOWAIT);
  for (unsigned i = 0; i < MAX_CLIENTS; ++i)
    if (!talkers[i].deaf)
      moved |= hear_piece (&talkers[i], piece (c->out, 16384));
  if (c->bits & AT_ONCE)
    moved |= run_command ();
  check_memory ();
  return moved;
}

/* Until everything has been said and answered. */
static void
finish (const struct choice *c)
{
  struct choice fast = *c;

  fast.bits |= AT_ONCE;
  fast.in = fast.out = 17;
  for (unsigned i = 0; i < MAX_CLIENTS; ++i)
    talkers[i].deaf = false;
  /* A byte or two may bring an answer of a hundred, of which a small queue lets half a kilobyte
   * leave in a turn. */
  size_t most = MAX_TURNS;
  for (unsigned i = 0; i < MAX_CLIENTS; ++i)
    most += talkers[i].n / 4;
  /* What the kernel holds is taken in in many turns, in which nothing else can be seen to move. */
  for (unsigned idle = 0, turns = 0; idle < 64; ++turns) {
    idle = turn (&fast) ? 0 : idle + 1;
    if (turns > most)
      broken ("the talk does not end");
  }
  for (unsigned i = 0; i < MAX_CLIENTS; ++i) {
    struct talker *t = &talkers[i];

    if (t->fd < 0)
      continue;
    if (t->sent < t->n)
      broken ("client %u is not listened to", i);
    qmp_finish (&t->witness);
    if (t->events_before != UINT64_MAX &&
        t->witness.events + t->witness.lost < sv.events - t->events_before)
      broken ("client %u was told of %" PRIu64 " events and %" PRIu64 " lost ones, of %" PRIu64, i,
              t->witness.events, t->witness.lost, sv.events - t->events_before);
    if (t->witness.events + t->witness.lost > sv.events)
      broken ("client %u was told of more events than there were", i);
    /* It has said all that it will: then so has the server. */
    shutdown (t->fd, SHUT_WR);
    for (unsigned k = 0; k < 4; ++k)
      ev_run (sv.ev, EVRUN_NOWAIT);
    char byte;
    if (recv (t->fd, &byte, 1, MSG_DONTWAIT) != 0)
      broken ("client %u is still connected at its end", i);
    hang_up (t);
  }
}

static void
negotiate (struct talker *t, const struct choice *c)
{
  t->witness.may_negotiate = true;
  say_command (t, json_pack ("{s:s}", "execute", "qmp_capabilities"), 1);
  for (unsigned turns = 0; t->witness.first < t->witness.end && turns < MAX_TURNS; ++turns)
    turn (c);
  t->events_before = sv.events;
}

static void
talk (const struct choice *c, struct input *in)
{
  struct talker *t = &talkers[0];

  connect_client (t, c);
  if (!(c->bits & NOT_GREEDY))
    negotiate (t, c);
  if (c->bits & PLAIN)
    say_anything (t, (const char *)in->at, in->left);
  else
    for (unsigned i = 0; i < MAX_RECORDS && in->left > 0; ++i) {
      t = take_record (t, in, c);
      turn (c);
    }
  finish (c);
}

/* ---- one talk -------------------------------------------------------------------------------- */

static void
open_door (const struct choice *c)
{
  struct control_context context = { .exports = &world.exports,
                                     .defaults = &world.defaults,
                                     .clients = &world.clients,
                                     .server = c->more & BOUND ? NULL : (struct server *)&sv.server,
                                     .reload = world.reload,
                                     .count_clients = count_clients,
                                     .quit = quit };
  struct q_error err;

  if (!sv.ev)
    sv.ev = ev_loop_new (EVBACKEND_POLL | EVFLAG_NOENV);
  if (!sv.ev || socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv.door) < 0)
    die ("no event loop, or no sockets: %s", strerror (errno));
  sv.events = 0;
  sv.control = context.control = control_open ("control", &err);
  watermarks_start (sv.ev);
  if (!sv.control || !control_start (sv.control, sv.ev, &context))
    die ("no control socket");
  if (__sanitizer_get_current_allocated_bytes)
    sv.memory = __sanitizer_get_current_allocated_bytes ();
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct input in = { data, size };
  struct choice c;

  fuzz_begin ();
  take (&in, &c, sizeof c);
  cuts = random_seed (c.seed);
  n_commands = 0;
  for (unsigned i = 0; i < MAX_CLIENTS; ++i)
    talkers[i] = (struct talker){ .fd = -1 };
  fuzz_tick_ns = 1 + (uint64_t)c.tick * 65536;
  world_begin (&(struct world_choice){
      .image = c.image, .busy = c.bits & BUSY, .configured = c.more & CONFIGURED });
  open_door (&c);
  talk (&c, &in);
  world_check_metrics (true);
  world_check_disk ();
  control_stop (sv.control);
  watermarks_stop ();
  control_close (sv.control);
  close (sv.door[1]);
  world_end ();
  fuzz_tick_ns = 0;
  return 0;
}
