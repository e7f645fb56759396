/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Three processes take part.  The server sends a message to the starter, which forks a watcher for
 * it; that one forks the shell, waits, and sends its status straight to the server.  Messages are
 * packets, so several may send on one socket.
 *
 * The starter is outside of the sandbox, so it believes nothing of what the server says: a command
 * is one that it finds in its own table, which it has filled from the command line and the
 * configuration by itself, and a fact cannot be a variable that means something to the shell, the
 * linker or a program.
 */

#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hooks.h"
#include "log.h"

/* Of a message: what it asks for, the command and the facts, each with a zero at its end. */
#define MAX_MESSAGE ((size_t)64 * 1024)

struct request {
  uint32_t id;
};

/* Of a command that the starter does not know. */
#define UNKNOWN_STATUS (126 << 8)

struct report {
  uint32_t id;
  int status;
};

static int fd = -1; /* the server's end */
static ev_io reader;
static struct ev_loop *loop;
static hooks_ended_fn on_ended;
static uint32_t last_id;

/* The table: the server's, in which a reload looks as well, and the starter's own. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char **commands;
static size_t n_commands;

/* The starter's. */
static void (*list_again) (void *opaque);
static void *list_opaque;

/* ---- the table ------------------------------------------------------------------------------- */

/* NULL: it is not in there.  What is, stays. */
static const char *
find (const char *command)
{
  const char *found = NULL;

  pthread_mutex_lock (&lock);
  for (size_t i = 0; i < n_commands && !found; i++)
    if (strcmp (commands[i], command) == 0)
      found = commands[i];
  pthread_mutex_unlock (&lock);
  return found;
}

static bool
add (const char *command)
{
  char *copy = strdup (command);

  pthread_mutex_lock (&lock);
  char **more = copy ? reallocarray (commands, n_commands + 1, sizeof *commands) : NULL;
  if (more) {
    commands = more;
    commands[n_commands++] = copy;
  } else
    free (copy);
  pthread_mutex_unlock (&lock);
  return more != NULL;
}

int
hooks_allow (const char *command, struct q_error *err)
{
  if (find (command) || add (command))
    return 0;
  snprintf (err->text, sizeof err->text, "out of memory");
  return -ENOMEM;
}

int
hooks_check (const char *command, struct q_error *err)
{
  if (find (command))
    return 0;
  snprintf (err->text, sizeof err->text,
            "the command '%.200s' cannot be run: neither the command line nor the configuration "
            "has it: add it there, and reload",
            command);
  return -EPERM;
}

/* ---- the other processes --------------------------------------------------------------------- */

static void __attribute__ ((noreturn)) be_shell (const char *command, char *facts, const char *end)
{
  int null = open ("/dev/null", O_RDONLY);
  sigset_t none;

  if (null >= 0)
    dup2 (null, STDIN_FILENO);
  for (char *p = facts; p < end; p += strlen (p) + 1)
    putenv (p);
  for (int i = 1; i < NSIG; i++)
    signal (i, SIG_DFL);
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
  execl ("/bin/sh", "sh", "-c", command, (char *)NULL);
  _exit (127);
}

static void __attribute__ ((noreturn))
be_watcher (int to, const struct request *request, const char *command, char *facts,
            const char *end)
{
  struct report r = { request->id, 127 << 8 };

  signal (SIGCHLD, SIG_DFL);
  pid_t pid = fork ();
  if (pid == 0)
    be_shell (command, facts, end);
  while (pid > 0 && waitpid (pid, &r.status, 0) < 0 && errno == EINTR)
    ;
  send (to, &r, sizeof r, MSG_NOSIGNAL);
  _exit (0);
}

/* Whether these are N bytes, with a zero after them, that a server sends: *REQUEST, the command at
 * *COMMAND, and facts from *FACTS on. */
static bool
acceptable (char *message, size_t n, struct request *request, char **command, char **facts)
{
  static const char prefix[] = HOOKS_FACT_PREFIX;

  if (n < sizeof *request + 1)
    return false;
  memcpy (request, message, sizeof *request);
  *command = message + sizeof *request;
  *facts = *command + strlen (*command) + 1;
  for (const char *p = *facts; p < message + n; p += strlen (p) + 1)
    if (strncmp (p, prefix, sizeof prefix - 1) != 0 || !strchr (p, '='))
      return false;
  return true;
}

/* What is not in the table may have been added to the configuration since. */
static const char *
find_again (const char *command)
{
  const char *found = find (command);

  if (!found && list_again) {
    list_again (list_opaque);
    found = find (command);
  }
  return found;
}

static void __attribute__ ((noreturn)) be_starter (int from)
{
  static char message[MAX_MESSAGE + 1];
  static const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT };
  ssize_t n;

  /* It ends with the server, which may take its time over a signal to all of us. */
  for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++)
    signal (ignored[i], SIG_IGN);
  signal (SIGCHLD, SIG_IGN); /* nobody asks for the watchers' status */
  if (from != 3) {
    dup2 (from, 3);
    from = 3;
  }
  close_range (4, ~0u, 0);
  fcntl (from, F_SETFD, FD_CLOEXEC);
  while ((n = recv (from, message, MAX_MESSAGE, 0)) != 0) {
    struct request request;
    char *command, *facts;
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      break;
    message[n] = '\0';
    if (!acceptable (message, (size_t)n, &request, &command, &facts))
      break;
    const char *known = find_again (command);
    pid_t pid = known ? fork () : -1;
    if (pid == 0)
      be_watcher (from, &request, known, facts, message + n);
    if (pid < 0) {
      struct report r = { request.id, known ? 127 << 8 : UNKNOWN_STATUS };
      send (from, &r, sizeof r, MSG_NOSIGNAL);
    }
  }
  _exit (0);
}

/* ---- the server ------------------------------------------------------------------------------ */

int
hooks_prepare (void (*leave) (void *opaque), void (*list) (void *opaque), void *opaque,
               struct q_error *err)
{
  int pair[2];

  if (n_commands == 0 && !list)
    return 0;
  int r = socketpair (AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 ? -errno : 0;
  pid_t pid = r == 0 ? fork () : -1;

  if (pid == 0) {
    close (pair[0]);
    leave (opaque);
    list_again = list;
    list_opaque = opaque;
    be_starter (pair[1]);
  }
  if (pid < 0) {
    r = r < 0 ? r : -errno;
    snprintf (err->text, sizeof err->text, "cannot make a process that runs commands: %s",
              strerror (-r));
    return r;
  }
  close (pair[1]);
  fd = pair[0];
  fcntl (fd, F_SETFL, O_NONBLOCK);
  return 0;
}

/* Closes what hooks_prepare made. */
static void
let_go (void)
{
  if (fd >= 0)
    close (fd);
  fd = -1;
}

static void
on_readable (struct ev_loop *ev, ev_io *w, int revents)
{
  struct report r;

  (void)revents;
  ssize_t n = recv (fd, &r, sizeof r, 0);
  if (n == sizeof r) {
    on_ended (r.id, r.status);
    return;
  }
  if (n < 0 && (errno == EAGAIN || errno == EINTR))
    return;
  log_error ("the process that runs commands has gone: none can be run any more");
  ev_io_stop (ev, w);
  let_go ();
  on_ended (0, 0);
}

void
hooks_start (struct ev_loop *ev, hooks_ended_fn ended)
{
  loop = ev;
  on_ended = ended;
  if (fd < 0)
    return;
  ev_io_init (&reader, on_readable, fd, EV_READ);
  ev_io_start (ev, &reader);
}

/* Puts TEXT, with its zero, at *N of the message. */
static bool
put (char *message, size_t *n, const char *text)
{
  size_t len = strlen (text) + 1;

  if (len > MAX_MESSAGE - *n)
    return false;
  memcpy (message + *n, text, len);
  *n += len;
  return true;
}

int64_t
hooks_run (const char *command, const char *const *facts, struct q_error *err)
{
  char message[MAX_MESSAGE];
  struct request request = { 0 };
  size_t n = sizeof request;

  if (fd < 0) {
    snprintf (err->text, sizeof err->text, "the process that runs commands has gone");
    return -ENOTCONN;
  }
  if (++last_id == 0)
    last_id = 1;
  request.id = last_id;
  memcpy (message, &request, sizeof request);
  bool fits = put (message, &n, command);
  for (; fits && *facts; facts++)
    fits = put (message, &n, *facts);
  if (!fits) {
    snprintf (err->text, sizeof err->text, "it has too much to know");
    return -E2BIG;
  }
  if (send (fd, message, n, MSG_NOSIGNAL) < 0) {
    int r = -errno;
    snprintf (err->text, sizeof err->text, "%s", strerror (-r));
    return r;
  }
  return last_id;
}

void
hooks_stop (void)
{
  if (loop && fd >= 0)
    ev_io_stop (loop, &reader);
  loop = NULL;
}

void
hooks_free (void)
{
  let_go ();
  for (size_t i = 0; i < n_commands; i++)
    free (commands[i]);
  free (commands);
  commands = NULL;
  n_commands = 0;
}
