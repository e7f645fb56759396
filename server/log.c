/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "qcow2.h"

/* Written before the first thread is started, read afterwards. */
static const char *program_name = "nbdcow";
static bool verbose_on;

/* One write a line, so that the lines of several threads (or of several servers that share a
 * terminal) do not mix. */
static void __attribute__ ((format (printf, 2, 0)))
put_line (const char *severity, const char *fmt, va_list args)
{
  char line[1400];
  int n = snprintf (line, sizeof line - 1, "%s: %s", program_name, severity);
  int m = vsnprintf (line + n, sizeof line - 1 - (size_t)n, fmt, args);
  size_t len = m < 0 ? (size_t)n : (size_t)n + (size_t)m;

  if (len > sizeof line - 2)
    len = sizeof line - 2;
  line[len++] = '\n';
  /* There is nobody to tell if this fails. */
  ssize_t written = write (STDERR_FILENO, line, len);
  (void)written;
}

void
log_error (const char *fmt, ...)
{
  va_list args;
  va_start (args, fmt);
  put_line ("", fmt, args);
  va_end (args);
}

void
log_warning (const char *fmt, ...)
{
  va_list args;
  va_start (args, fmt);
  put_line ("warning: ", fmt, args);
  va_end (args);
}

void
log_info (const char *fmt, ...)
{
  va_list args;
  if (!verbose_on)
    return;
  va_start (args, fmt);
  put_line ("", fmt, args);
  va_end (args);
}

static void
engine_log (void *opaque, enum q_log_level level, const char *text)
{
  (void)opaque;
  switch (level) {
  case Q_LOG_ERROR:
    log_error ("%s", text);
    break;
  case Q_LOG_WARNING:
    log_warning ("%s", text);
    break;
  case Q_LOG_INFO:
  case Q_LOG_DEBUG:
    log_info ("%s", text);
    break;
  }
}

void
log_init (const char *program)
{
  program_name = program;
  q_set_log (engine_log, NULL);
}

void
log_set_verbose (bool verbose)
{
  verbose_on = verbose;
}

bool
log_is_verbose (void)
{
  return verbose_on;
}
