/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include "log.h"
#include "path.h"
#include "systemd.h"

enum destination { TO_FD, TO_SYSLOG, TO_JOURNAL };

/* Written before the first thread is started, read afterwards. */
static const char *program_name = "nbdcow";
static _Atomic enum q_log_level log_level = Q_LOG_WARNING; /* may change at any time */
static enum destination destination = TO_FD;
static int log_fd = STDERR_FILENO;
static const struct systemd *journal;
static atomic_bool started;

static const struct {
  const char *name, *prefix;
  int priority;
} levels[] = {
  [Q_LOG_ERROR] = { "error", "", LOG_ERR },
  [Q_LOG_WARNING] = { "warning", "warning: ", LOG_WARNING },
  [Q_LOG_INFO] = { "info", "", LOG_INFO },
  [Q_LOG_DEBUG] = { "debug", "", LOG_DEBUG },
};

/* Lines go out one at a time: with room for one looked for before, it does not block. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned lost; /* lines for which there was no room; under the lock */

/* Whether a line can be written at once.  Clients are not to wait for a reader of messages that has
 * gone to sleep; before there are any, nothing is lost. */
static bool
has_room (int fd)
{
  struct pollfd p = { .fd = fd, .events = POLLOUT };

  return !started || poll (&p, 1, 0) != 0;
}

static void
put_bytes (int fd, const char *p, size_t n)
{
  /* There is nobody to tell if this fails. */
  ssize_t written = write (fd, p, n);
  (void)written;
}

static void
put_to_fd (int fd, const char *p, size_t n)
{
  char note[80];

  pthread_mutex_lock (&lock);
  if (lost > 0 && has_room (fd)) {
    int len = snprintf (note, sizeof note, "%s: warning: %u messages were lost here\n",
                        program_name, lost);
    put_bytes (fd, note, (size_t)len);
    lost = 0;
  }
  if (has_room (fd))
    put_bytes (fd, p, n);
  else
    lost++;
  pthread_mutex_unlock (&lock);
}

/* One write a line, so that the lines of several threads (or of several servers that share a
 * terminal) do not mix. */
static void __attribute__ ((format (printf, 2, 0)))
put_line (enum q_log_level level, const char *fmt, va_list args)
{
  char line[1400];

  if (level > log_level)
    return;
  int prefix = snprintf (line, sizeof line, "%s: %s", program_name, levels[level].prefix);
  int n = vsnprintf (line + prefix, sizeof line - 1 - (size_t)prefix, fmt, args);
  size_t len = (size_t)prefix + (n < 0 ? 0 : (size_t)n);
  if (len > sizeof line - 2)
    len = sizeof line - 2;
  line[len] = '\0';
  q_make_printable (line); /* names are what clients ask for, too */
  line[len++] = '\n';
  if (level == Q_LOG_ERROR && !started && !log_is_stderr ())
    put_to_fd (STDERR_FILENO, line, len);

  const char *text = line + prefix;
  int text_len = (int)len - prefix - 1;
  switch (destination) {
  case TO_FD:
    put_to_fd (log_fd, line, len);
    break;
  case TO_SYSLOG:
    syslog (levels[level].priority, "%.*s", text_len, text);
    break;
  case TO_JOURNAL:
    journal->journal_send ("MESSAGE=%.*s", text_len, text, "PRIORITY=%d", levels[level].priority,
                           "SYSLOG_IDENTIFIER=%s", program_name, NULL);
    break;
  }
}

#define LOG_FUNCTION(name, level)                                                                  \
  void log_##name (const char *fmt, ...)                                                           \
  {                                                                                                \
    va_list args;                                                                                  \
    va_start (args, fmt);                                                                          \
    put_line (level, fmt, args);                                                                   \
    va_end (args);                                                                                 \
  }

LOG_FUNCTION (error, Q_LOG_ERROR)
LOG_FUNCTION (warning, Q_LOG_WARNING)
LOG_FUNCTION (info, Q_LOG_INFO)
LOG_FUNCTION (debug, Q_LOG_DEBUG)

static void __attribute__ ((format (printf, 2, 3)))
put (enum q_log_level level, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  put_line (level, fmt, args);
  va_end (args);
}

static void
engine_log (void *opaque, enum q_log_level level, const char *text)
{
  (void)opaque;
  put (level, "%s", text);
}

void
log_init (const char *program)
{
  program_name = program;
  q_set_log (engine_log, NULL);
}

int
log_open (const char *where, struct q_error *err)
{
  if (strcmp (where, "stderr") == 0)
    return 0;
  if (strcmp (where, "syslog") == 0) {
    openlog (program_name, LOG_PID | LOG_NDELAY, LOG_DAEMON);
    destination = TO_SYSLOG;
    return 0;
  }
  if (strcmp (where, "journal") == 0) {
    struct q_error why = { "" };

    journal = systemd_load (&why);
    if (journal) {
      destination = TO_JOURNAL;
      return 0;
    }
    snprintf (err->text, sizeof err->text,
              "--log=journal: %.500s: use stderr, which systemd puts into the journal, or syslog",
              why.text);
    return -ENOTSUP;
  }
  if (*where != '/') {
    snprintf (err->text, sizeof err->text,
              "--log=%s: stderr, syslog, journal or the absolute name of a file is wanted", where);
    return -EINVAL;
  }
  const char *why;
  int fd = path_create (where, O_WRONLY | O_APPEND, 0640, &why);
  if (fd < 0) {
    snprintf (err->text, sizeof err->text, "--log=%s: %s", where, why);
    return fd;
  }
  log_fd = fd;
  return 0;
}

void
log_started (void)
{
  started = true;
}

bool
log_set_level (const char *level)
{
  for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++) {
    if (strcmp (level, levels[i].name) == 0) {
      log_level = (enum q_log_level)i;
      return true;
    }
  }
  return false;
}

const char *
log_level_name (void)
{
  return levels[log_level].name;
}

bool
log_is_verbose (void)
{
  return log_level >= Q_LOG_INFO;
}

bool
log_is_remote (void)
{
  return destination != TO_FD;
}

bool
log_is_stderr (void)
{
  return destination == TO_FD && log_fd == STDERR_FILENO;
}
