/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyval.h"
#include "log.h"
#include "nbd.h"
#include "option.h"
#include "server.h"

/* While options are parsed again: where a failure goes. */
static struct {
  jmp_buf *env;
  struct q_error *err;
} again;

void
option_failures_go (jmp_buf *env, struct q_error *err)
{
  again.env = env;
  again.err = err;
}

bool
option_is_again (void)
{
  return again.env != NULL;
}

void
option_fail (const char *fmt, ...)
{
  char text[1024];
  va_list args;

  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  if (again.env) {
    snprintf (again.err->text, sizeof again.err->text, "%s", text);
    longjmp (*again.env, 1);
  }
  log_error ("%s", text);
  exit (EXIT_FAILURE);
}

unsigned
option_number (const char *option, const char *arg, unsigned min, unsigned max)
{
  char *end;

  errno = 0;
  long v = strtol (arg, &end, 0);
  if (errno != 0 || end == arg || *end || v < (long)min || v > (long)max)
    option_fail ("%s=%s: a number from %u to %u is wanted", option, arg, min, max);
  return (unsigned)v;
}

const char *
option_string (const char *option, const char *arg)
{
  if (strlen (arg) > NBD_MAX_STRING)
    option_fail ("%s has %zu bytes: NBD allows %d", option, strlen (arg), NBD_MAX_STRING);
  return arg;
}

void
option_port (struct options *opts, const char *arg)
{
  char *end;
  long v = strtol (arg, &end, 10);

  if (!*arg || (!*end && (v < 0 || v > 65535)))
    option_fail ("--port=%s: a number from 0 to 65535 or the name of a service is wanted", arg);
  opts->port = arg;
  opts->port_given = true;
}

void
option_once (bool *given, const char *option)
{
  if (*given)
    option_fail ("%s can be given only once", option);
  *given = true;
}

void
option_aio (struct said *said, const char *arg)
{
  option_once (&said->aio, "--aio");
  said->aio_native = strcmp (arg, "native") == 0;
  if (!said->aio_native && strcmp (arg, "threads") != 0 && strcmp (arg, "io_uring") != 0)
    option_fail ("--aio=%s: one of threads, native and io_uring is wanted", arg);
}

void
option_bitmap (struct options *opts, const char *arg)
{
  if (opts->export.n_bitmaps == MAX_BITMAPS)
    option_fail ("--bitmap=%s: the most bitmaps are %d", arg, MAX_BITMAPS);
  if (strlen (arg) > NBD_MAX_STRING - strlen ("qemu:dirty-bitmap:"))
    option_fail ("--bitmap: the name has %zu bytes: the most is %zu", strlen (arg),
                 NBD_MAX_STRING - strlen ("qemu:dirty-bitmap:"));
  opts->bitmaps[opts->export.n_bitmaps++] = arg;
  opts->export.bitmaps = opts->bitmaps;
}

void
option_offset (struct options *opts, const char *arg)
{
  if (!parse_size (arg, &opts->export.source.offset) || opts->export.source.offset > INT64_MAX)
    option_fail ("--offset=%s: a number of bytes is wanted (suffixes: k, M, G, T)", arg);
}

void
option_watermark (const char *option, const char *arg, struct q_amount *amount)
{
  if (!watermark_parse (arg, amount))
    option_fail ("%s=%s: a size, or a percentage up to 100%%, is wanted", option, arg);
}

void
option_memory (struct options *opts, const char *arg)
{
  if (!parse_size (arg, &opts->memory) || opts->memory < SERVER_MIN_MEMORY ||
      opts->memory > UINT64_C (1) << 48)
    option_fail ("--memory=%s: a number of bytes is wanted, at least %u MiB (suffixes: k, M, G, T)",
                 arg, SERVER_MIN_MEMORY >> 20);
}

void
option_object (struct options *opts, const char *arg)
{
  struct q_error err = { "" };
  if (objects_add (&opts->objects, arg, &err) < 0)
    option_fail ("%s", err.text);
}

/* Its patterns are names of places in QEMU's own code; what is left of their meaning is that more
 * is to be said, and where. */
void
option_trace (struct options *opts, struct said *said, const char *arg)
{
  struct q_error err = { "" };
  json_t *settings = keyval_parse (arg, "enable", &err);
  const char *ignored = NULL;
  struct members m;

  if (!settings || json_array_append_new (opts->configs, settings) < 0)
    option_fail ("--trace: %s", err.text);
  members_init (&m, settings, "--trace", &err);
  members_string (&m, "enable", &ignored);
  members_string (&m, "events", &ignored);
  members_string (&m, "file", &opts->log);
  if (members_end (&m) < 0)
    option_fail ("%s", err.text);
  log_set_level ("debug");
  said->level = true;
}

void
option_tree (json_t *list, json_t *tree, const char *option, const struct q_error *err)
{
  if (!tree)
    option_fail ("%s: %s", option, err->text);
  if (json_array_append_new (list, tree) < 0)
    option_fail ("%s: out of memory", option);
}

void
option_export (struct options *opts, const char *arg)
{
  struct q_error err = { "" };
  json_t *tree =
      *arg == '{' ? keyval_parse_json (arg, "--export", &err) : keyval_parse (arg, NULL, &err);
  option_tree (opts->exports, tree, "--export", &err);
}

void
option_export_dir (struct options *opts, const char *arg)
{
  struct q_error err = { "" };
  option_tree (opts->directories, keyval_parse (arg, "dir", &err), "--export-dir", &err);
}

void
option_tls (struct options *opts, const char *arg)
{
  opts->tls_optional = strcmp (arg, "optional") == 0;
  if (!opts->tls_optional && strcmp (arg, "required") != 0)
    option_fail ("--tls=%s: required or optional is wanted", arg);
}

void
option_state_dir (struct options *opts, const char *arg)
{
  if (strcmp (arg, "off") == 0)
    opts->state_dir = NULL;
  else if (*arg == '/')
    opts->state_dir = arg;
  else
    option_fail ("--state-dir=%s: the absolute name of a directory or 'off' is wanted", arg);
}
