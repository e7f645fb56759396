/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyval.h"
#include "log.h"
#include "nbd.h"
#include "options.h"
#include "server.h"

#define MAX_WORKERS 1024

/* Configuration files that name configuration files. */
#define MAX_CONFIG_DEPTH 8

/* Long options without a short form. */
enum {
  OPT_FORK = 256,
  OPT_PID_FILE,
  OPT_CACHE,
  OPT_AIO,
  OPT_DISCARD,
  OPT_DETECT_ZEROES,
  OPT_COMPRESS,
  OPT_BACKING,
  OPT_DATA_FILE,
  OPT_DATA_FILE_POLICY,
  OPT_UNTRUSTED,
  OPT_LOCK,
  OPT_IMAGE_OPTS,
  OPT_OBJECT,
  OPT_KEY_FILE,
  OPT_KEY_FD,
  OPT_TLS,
  OPT_TLS_CREDS,
  OPT_TLS_AUTHZ,
  OPT_TLS_HOSTNAME,
  OPT_SELINUX_LABEL,
  OPT_HANDSHAKE_LIMIT,
  OPT_POLL,
  OPT_IDLE_LIMIT,
  OPT_MEMORY,
  OPT_THREADS,
  OPT_WORKERS,
  OPT_STATE_DIR,
  OPT_EXPORT,
  OPT_EXPORT_DIR,
  OPT_CONFIG,
  OPT_VSOCK,
  OPT_LOG,
  OPT_LOG_LEVEL,
  OPT_USER,
  OPT_GROUP,
  OPT_RUN,
  OPT_EXIT_WITH_PARENT,
  OPT_PRINT_URI,
};

static const char short_options[] = ":hVp:b:k:e:tvx:D:o:AB:LT:c:drsl:f:n";

static const struct option long_options[] = {
  { "help", no_argument, NULL, 'h' },
  { "version", no_argument, NULL, 'V' },
  { "port", required_argument, NULL, 'p' },
  { "bind", required_argument, NULL, 'b' },
  { "socket", required_argument, NULL, 'k' },
  { "shared", required_argument, NULL, 'e' },
  { "persistent", no_argument, NULL, 't' },
  { "verbose", no_argument, NULL, 'v' },
  { "export-name", required_argument, NULL, 'x' },
  { "description", required_argument, NULL, 'D' },
  { "offset", required_argument, NULL, 'o' },
  { "allocation-depth", no_argument, NULL, 'A' },
  { "bitmap", required_argument, NULL, 'B' },
  { "list", no_argument, NULL, 'L' },
  { "trace", required_argument, NULL, 'T' },
  { "connect", required_argument, NULL, 'c' },
  { "disconnect", no_argument, NULL, 'd' },
  { "read-only", no_argument, NULL, 'r' },
  { "snapshot", no_argument, NULL, 's' },
  { "load-snapshot", required_argument, NULL, 'l' },
  { "format", required_argument, NULL, 'f' },
  { "nocache", no_argument, NULL, 'n' },
  { "cache", required_argument, NULL, OPT_CACHE },
  { "aio", required_argument, NULL, OPT_AIO },
  { "discard", required_argument, NULL, OPT_DISCARD },
  { "detect-zeroes", required_argument, NULL, OPT_DETECT_ZEROES },
  { "backing", required_argument, NULL, OPT_BACKING },
  { "data-file", required_argument, NULL, OPT_DATA_FILE },
  { "data-file-policy", required_argument, NULL, OPT_DATA_FILE_POLICY },
  { "untrusted", no_argument, NULL, OPT_UNTRUSTED },
  { "lock", required_argument, NULL, OPT_LOCK },
  { "compress", optional_argument, NULL, OPT_COMPRESS },
  { "image-opts", no_argument, NULL, OPT_IMAGE_OPTS },
  { "object", required_argument, NULL, OPT_OBJECT },
  { "key-file", required_argument, NULL, OPT_KEY_FILE },
  { "key-fd", required_argument, NULL, OPT_KEY_FD },
  { "tls", required_argument, NULL, OPT_TLS },
  { "tls-creds", required_argument, NULL, OPT_TLS_CREDS },
  { "tls-authz", required_argument, NULL, OPT_TLS_AUTHZ },
  { "tls-hostname", required_argument, NULL, OPT_TLS_HOSTNAME },
  { "selinux-label", required_argument, NULL, OPT_SELINUX_LABEL },
  { "fork", no_argument, NULL, OPT_FORK },
  { "pid-file", required_argument, NULL, OPT_PID_FILE },
  { "handshake-limit", required_argument, NULL, OPT_HANDSHAKE_LIMIT },
  { "idle-limit", required_argument, NULL, OPT_IDLE_LIMIT },
  { "memory", required_argument, NULL, OPT_MEMORY },
  { "threads", required_argument, NULL, OPT_THREADS },
  { "poll", required_argument, NULL, OPT_POLL },
  { "workers", required_argument, NULL, OPT_WORKERS },
  { "state-dir", required_argument, NULL, OPT_STATE_DIR },
  { "export", required_argument, NULL, OPT_EXPORT },
  { "export-dir", required_argument, NULL, OPT_EXPORT_DIR },
  { "config", required_argument, NULL, OPT_CONFIG },
  { "vsock", required_argument, NULL, OPT_VSOCK },
  { "log", required_argument, NULL, OPT_LOG },
  { "log-level", required_argument, NULL, OPT_LOG_LEVEL },
  { "user", required_argument, NULL, OPT_USER },
  { "group", required_argument, NULL, OPT_GROUP },
  { "run", required_argument, NULL, OPT_RUN },
  { "exit-with-parent", no_argument, NULL, OPT_EXIT_WITH_PARENT },
  { "print-uri", no_argument, NULL, OPT_PRINT_URI },
  { NULL, 0, NULL, 0 },
};

/* What was said, beyond what it means: for the rules between options. */
struct said {
  bool cache, aio, aio_native, discard, detect_zeroes, format, name, shared, level;
  bool backing, data_file_policy, untrusted;
  unsigned config_depth;
};

static void __attribute__ ((noreturn, format (printf, 1, 2))) fail (const char *fmt, ...)
{
  char text[1024];
  va_list args;

  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  log_error ("%s", text);
  exit (EXIT_FAILURE);
}

/* getopt_long has returned WHAT, '?' or ':'. */
static void __attribute__ ((noreturn)) fail_option (int what, char **argv)
{
  const char *option = argv[optind - 1];
  char letter[] = { '-', (char)optopt, '\0' };

  if (strncmp (option, "--", 2) != 0)
    option = letter;
  if (what == ':')
    fail ("option '%s' needs a value", option);
  if (option != letter && optopt != 0)
    fail ("option '%s' takes no value", option);
  fail ("option '%s' is not known, or short for several: 'nbdcow --help' lists them all", option);
}

/* ---- arguments ------------------------------------------------------------------------------- */

static unsigned
parse_number (const char *option, const char *arg, unsigned min, unsigned max)
{
  char *end;

  errno = 0;
  long v = strtol (arg, &end, 0);
  if (errno != 0 || end == arg || *end || v < (long)min || v > (long)max)
    fail ("%s=%s: a number from %u to %u is wanted", option, arg, min, max);
  return (unsigned)v;
}

/* A string that goes over the wire. */
static const char *
parse_string (const char *option, const char *arg)
{
  if (strlen (arg) > NBD_MAX_STRING)
    fail ("%s has %zu bytes: NBD allows %d", option, strlen (arg), NBD_MAX_STRING);
  return arg;
}

static void
parse_port (struct options *opts, const char *arg)
{
  char *end;
  long v = strtol (arg, &end, 10);

  if (!*arg || (!*end && (v < 0 || v > 65535)))
    fail ("--port=%s: a number from 0 to 65535 or the name of a service is wanted", arg);
  opts->port = arg;
  opts->port_given = true;
}

static void
only_once (bool *given, const char *option)
{
  if (*given)
    fail ("%s can be given only once", option);
  *given = true;
}

static void
parse_aio (struct said *said, const char *arg)
{
  only_once (&said->aio, "--aio");
  said->aio_native = strcmp (arg, "native") == 0;
  if (!said->aio_native && strcmp (arg, "threads") != 0 && strcmp (arg, "io_uring") != 0)
    fail ("--aio=%s: one of threads, native and io_uring is wanted", arg);
}

static void
parse_bitmap (struct options *opts, const char *arg)
{
  if (opts->export.n_bitmaps == MAX_BITMAPS)
    fail ("--bitmap=%s: the most bitmaps are %d", arg, MAX_BITMAPS);
  if (strlen (arg) > NBD_MAX_STRING - strlen ("qemu:dirty-bitmap:"))
    fail ("--bitmap: the name has %zu bytes: the most is %zu", strlen (arg),
          NBD_MAX_STRING - strlen ("qemu:dirty-bitmap:"));
  opts->bitmaps[opts->export.n_bitmaps++] = arg;
  opts->export.bitmaps = opts->bitmaps;
}

static void
parse_offset (struct options *opts, const char *arg)
{
  if (!parse_size (arg, &opts->export.source.offset) || opts->export.source.offset > INT64_MAX)
    fail ("--offset=%s: a number of bytes is wanted (suffixes: k, M, G, T)", arg);
}

static void
parse_memory (struct options *opts, const char *arg)
{
  if (!parse_size (arg, &opts->memory) || opts->memory < SERVER_MIN_MEMORY ||
      opts->memory > UINT64_C (1) << 48)
    fail ("--memory=%s: a number of bytes is wanted, at least %u MiB (suffixes: k, M, G, T)", arg,
          SERVER_MIN_MEMORY >> 20);
}

static void
parse_object (struct options *opts, const char *arg)
{
  struct q_error err = { "" };
  if (objects_add (&opts->objects, arg, &err) < 0)
    fail ("%s", err.text);
}

/* Its patterns are names of places in QEMU's own code; what is left of their meaning is that more
 * is to be said, and where. */
static void
parse_trace (struct options *opts, struct said *said, const char *arg)
{
  struct q_error err = { "" };
  json_t *settings = keyval_parse (arg, "enable", &err);
  const char *ignored = NULL;
  struct members m;

  if (!settings || json_array_append_new (opts->configs, settings) < 0)
    fail ("--trace: %s", err.text);
  members_init (&m, settings, "--trace", &err);
  members_string (&m, "enable", &ignored);
  members_string (&m, "events", &ignored);
  members_string (&m, "file", &opts->log);
  if (members_end (&m) < 0)
    fail ("%s", err.text);
  log_set_level ("debug");
  said->level = true;
}

static void
add_tree (json_t *list, json_t *tree, const char *option, const struct q_error *err)
{
  if (!tree)
    fail ("%s: %s", option, err->text);
  if (json_array_append_new (list, tree) < 0)
    fail ("%s: out of memory", option);
}

static void
parse_export (struct options *opts, const char *arg)
{
  struct q_error err = { "" };
  json_t *tree =
      *arg == '{' ? keyval_parse_json (arg, "--export", &err) : keyval_parse (arg, NULL, &err);
  add_tree (opts->exports, tree, "--export", &err);
}

static void
parse_export_dir (struct options *opts, const char *arg)
{
  struct q_error err = { "" };
  add_tree (opts->directories, keyval_parse (arg, "dir", &err), "--export-dir", &err);
}

static void
parse_tls (struct options *opts, const char *arg)
{
  opts->tls_optional = strcmp (arg, "optional") == 0;
  if (!opts->tls_optional && strcmp (arg, "required") != 0)
    fail ("--tls=%s: required or optional is wanted", arg);
}

static void
parse_state_dir (struct options *opts, const char *arg)
{
  if (strcmp (arg, "off") == 0)
    opts->state_dir = NULL;
  else if (*arg == '/')
    opts->state_dir = arg;
  else
    fail ("--state-dir=%s: the absolute name of a directory or 'off' is wanted", arg);
}

/* ---- options --------------------------------------------------------------------------------- */

static void apply_config (struct options *opts, struct said *said, const char *filename);

static void
apply (struct options *opts, struct said *said, int c, const char *arg)
{
  struct source *source = &opts->export.source;

  switch (c) {
  case 'h':
    usage_print ();
    exit (EXIT_SUCCESS);
  case 'V':
    printf ("nbdcow %s\n", NBDCOW_VERSION);
    exit (EXIT_SUCCESS);

  case 'k':
    opts->socket = arg;
    break;
  case 'b':
    opts->bind = arg;
    opts->bind_given = true;
    break;
  case 'p':
    parse_port (opts, arg);
    break;
  case OPT_VSOCK:
    parse_number ("--vsock", arg, 0, INT32_MAX);
    opts->vsock = arg;
    break;
  case OPT_SELINUX_LABEL:
    opts->selinux_label = arg;
    break;
  case 'c':
    opts->device = arg;
    break;
  case 'd':
    opts->mode = MODE_DISCONNECT;
    break;
  case 'L':
    opts->mode = MODE_LIST;
    break;

  case 'x':
    opts->export.name = parse_string ("--export-name", arg);
    said->name = true;
    break;
  case 'D':
    opts->export.description = parse_string ("--description", arg);
    break;
  case 'r':
    source->open.read_only = true;
    break;
  case 's':
    opts->export.throw_away = true;
    break;
  case 'l':
    opts->export.snapshot = arg;
    break;
  case 'o':
    parse_offset (opts, arg);
    break;
  case 'A':
    opts->export.allocation_depth = true;
    break;
  case 'B':
    parse_bitmap (opts, arg);
    break;
  case 'f':
    if (!source_set_format (source, arg))
      fail ("--format=%s: nbdcow serves the formats qcow2 and raw", arg);
    said->format = true;
    break;
  case OPT_IMAGE_OPTS:
    opts->image_opts = true;
    break;
  case 'n':
    arg = "none";
    /* fall through */
  case OPT_CACHE:
    only_once (&said->cache, "--cache or --nocache");
    if (!source_set_cache (source, arg))
      fail ("--cache=%s: one of none, writeback, writethrough, directsync and unsafe is wanted",
            arg);
    break;
  case OPT_AIO:
    parse_aio (said, arg);
    break;
  case OPT_DISCARD:
    only_once (&said->discard, "--discard");
    if (!source_set_discard (source, arg))
      fail ("--discard=%s: ignore (or off) or unmap (or on) is wanted", arg);
    break;
  case OPT_DETECT_ZEROES:
    only_once (&said->detect_zeroes, "--detect-zeroes");
    if (!source_set_detect_zeroes (source, arg))
      fail ("--detect-zeroes=%s: one of off, on and unmap is wanted", arg);
    break;
  case OPT_BACKING:
    if (!source_set_backing (source, arg))
      fail ("--backing=%s: one of recorded, same-dir, any, probe and none is wanted", arg);
    said->backing = true;
    break;
  case OPT_DATA_FILE:
    if (!source_set_data_file (source, arg))
      fail ("--data-file: out of memory");
    break;
  case OPT_DATA_FILE_POLICY:
    if (!source_set_data_file_policy (source, arg))
      fail ("--data-file-policy=%s: one of same-dir, any and none is wanted", arg);
    said->data_file_policy = true;
    break;
  case OPT_UNTRUSTED:
    said->untrusted = true;
    break;
  case OPT_COMPRESS:
    if (!source_set_compress (source, arg))
      fail ("--compress=%s: a level is wanted, or nothing, or off", arg);
    break;
  case OPT_LOCK:
    if (!source_set_lock (source, arg))
      fail ("--lock=%s: on or off is wanted", arg);
    break;
  case OPT_STATE_DIR:
    parse_state_dir (opts, arg);
    break;
  case OPT_EXPORT:
    parse_export (opts, arg);
    break;
  case OPT_EXPORT_DIR:
    parse_export_dir (opts, arg);
    break;
  case OPT_CONFIG:
    apply_config (opts, said, arg);
    break;

  case 'e':
    opts->shared = parse_number ("--shared", arg, 0, 1000000);
    said->shared = true;
    break;
  case 't':
    opts->persistent = true;
    break;
  case OPT_HANDSHAKE_LIMIT:
    opts->handshake_limit = parse_number ("--handshake-limit", arg, 0, 1000000);
    break;
  case OPT_POLL:
    opts->poll_us = parse_number ("--poll", arg, 0, 1000);
    break;
  case OPT_IDLE_LIMIT:
    opts->idle_limit = parse_number ("--idle-limit", arg, 0, 100000000);
    break;
  case OPT_MEMORY:
    parse_memory (opts, arg);
    break;
  case OPT_THREADS:
    opts->threads = parse_number ("--threads", arg, 1, SERVER_MAX_LOOPS);
    break;
  case OPT_WORKERS:
    opts->workers = parse_number ("--workers", arg, 1, MAX_WORKERS);
    break;

  case OPT_KEY_FILE:
    opts->key_file = arg;
    break;
  case OPT_KEY_FD:
    opts->key_fd = (int)parse_number ("--key-fd", arg, 0, INT32_MAX);
    break;
  case OPT_OBJECT:
    parse_object (opts, arg);
    break;
  case OPT_TLS:
    parse_tls (opts, arg);
    break;
  case OPT_TLS_CREDS:
    opts->tls_creds = arg;
    break;
  case OPT_TLS_AUTHZ:
    opts->tls_authz = arg;
    break;
  case OPT_TLS_HOSTNAME:
    opts->tls_hostname = arg;
    break;

  case 'v':
    opts->verbose = true;
    if (!said->level)
      log_set_level ("debug");
    break;
  case 'T':
    parse_trace (opts, said, arg);
    break;
  case OPT_LOG:
    opts->log = arg;
    break;
  case OPT_LOG_LEVEL:
    if (!log_set_level (arg))
      fail ("--log-level=%s: one of error, warning, info and debug is wanted", arg);
    said->level = true;
    break;
  case OPT_FORK:
    opts->fork = true;
    break;
  case OPT_PID_FILE:
    opts->pid_file = arg;
    break;
  case OPT_USER:
    opts->user = arg;
    break;
  case OPT_GROUP:
    opts->group = arg;
    break;
  case OPT_RUN:
    opts->run = arg;
    break;
  case OPT_EXIT_WITH_PARENT:
    opts->exit_with_parent = true;
    break;
  case OPT_PRINT_URI:
    opts->print_uri = true;
    break;
  }
}

/* ---- configuration files --------------------------------------------------------------------- */

/* NAME: VALUE in FILENAME is the option --NAME=VALUE. */
static void
apply_setting (struct options *opts, struct said *said, const char *filename, const char *name,
               json_t *value)
{
  const struct option *o = long_options;
  char number[32];

  if (strcmp (name, "file") == 0 && json_is_string (value)) {
    opts->filename = json_string_value (value);
    return;
  }
  while (o->name && strcmp (o->name, name) != 0)
    o++;
  if (!o->name)
    fail ("%s: '%s' is not the name of an option without its dashes ('file' is the image)",
          filename, name);
  if (json_is_array (value)) {
    size_t i;
    json_t *element;
    json_array_foreach (value, i, element) apply_setting (opts, said, filename, name, element);
  } else if (json_is_object (value) && o->val == OPT_EXPORT) {
    struct q_error err = { "" };
    add_tree (opts->exports, keyval_nest (value, filename, &err), filename, &err);
  } else if (o->has_arg != required_argument && json_is_boolean (value)) {
    if (json_is_true (value))
      apply (opts, said, o->val, NULL);
  } else if (o->has_arg == no_argument) {
    fail ("%s: \"%s\": true or false is wanted", filename, name);
  } else if (json_is_string (value))
    apply (opts, said, o->val, json_string_value (value));
  else if (json_is_integer (value)) {
    snprintf (number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value (value));
    json_t *kept = json_string (number);
    if (!kept || json_array_append_new (opts->configs, kept) < 0)
      fail ("%s: out of memory", filename);
    apply (opts, said, o->val, json_string_value (kept));
  } else
    fail ("%s: \"%s\": a string or a number is wanted", filename, name);
}

static void
apply_config (struct options *opts, struct said *said, const char *filename)
{
  json_error_t e;
  json_t *root = json_load_file (filename, JSON_REJECT_DUPLICATES, &e), *value;
  const char *name;

  if (!root && e.line > 0)
    fail ("--config=%s: line %d: %s", filename, e.line, e.text);
  if (!root)
    fail ("--config=%s: %s", filename, e.text);
  if (!json_is_object (root))
    fail ("--config=%s: an object is wanted: {\"option\": value, ...}", filename);
  if (json_array_append_new (opts->configs, root) < 0)
    fail ("--config=%s: out of memory", filename);
  if (++said->config_depth > MAX_CONFIG_DEPTH)
    fail ("--config=%s: more than %d configuration files in each other", filename,
          MAX_CONFIG_DEPTH);
  json_object_foreach (root, name, value) apply_setting (opts, said, filename, name, value);
  said->config_depth--;
}

/* ---- rules between options ------------------------------------------------------------------- */

static void
check_list (const struct options *opts, const struct said *said)
{
  const struct export_options *xo = &opts->export;

  if (opts->filename)
    fail ("--list: no image file is wanted, '%s' is given", opts->filename);
  if (said->name || xo->description || xo->source.offset || opts->device || said->format ||
      xo->snapshot || xo->throw_away || xo->n_bitmaps || xo->allocation_depth || said->aio ||
      said->discard || said->cache || said->detect_zeroes || json_array_size (opts->exports) ||
      json_array_size (opts->directories))
    fail ("--list: options about an export or an image make no sense with it");
  if (opts->fork)
    fail ("--list cannot be used with --fork");
}

static void
check_serve (struct options *opts, const struct said *said)
{
  bool several = json_array_size (opts->exports) > 0 || json_array_size (opts->directories) > 0;
  struct export_options *xo = &opts->export;

  if (!opts->filename && !several)
    fail ("the name of the image file is missing ('nbdcow --help' says what else there is)");
  if (!opts->filename && (said->name || xo->description || xo->source.offset || xo->n_bitmaps ||
                          xo->snapshot || said->format || xo->source.data_file))
    fail ("--export-name, --description, --offset, --bitmap, --load-snapshot, --format and "
          "--data-file are about FILE: put name=, description=, ... into --export");
  if (opts->image_opts && said->format)
    fail ("--image-opts and --format cannot be used together: driver=... is the format");
  if (said->aio_native && xo->source.open.cache != Q_CACHE_DIRECT)
    fail ("--aio=native needs --cache=none or --cache=directsync");
  if (xo->source.detect_zeroes == DETECT_ZEROES_UNMAP && !xo->source.open.discard)
    fail ("--detect-zeroes=unmap needs --discard=unmap");
  if (opts->run && opts->fork)
    fail ("--run cannot be used with --fork");
  if (opts->exit_with_parent && opts->fork)
    fail ("--exit-with-parent cannot be used with --fork, which makes the parent exit");
  if (opts->device && (!opts->filename || several))
    fail ("--connect=%s: one device has one image: FILE is wanted, and no --export", opts->device);
  if (opts->key_file && opts->key_fd >= 0)
    fail ("--key-file and --key-fd cannot be used together");
  if (opts->group && !opts->user)
    fail ("--group=%s needs --user", opts->group);
  if (said->untrusted && !said->backing)
    xo->source.open.backing = Q_BACKING_REFUSE;
  if (said->untrusted && !said->data_file_policy)
    xo->source.open.data_file_policy = Q_DATA_FILE_NONE;
  /* The default of 1 is qemu-nbd's, for its one export. */
  if (several && !said->shared)
    opts->shared = 0;
}

static void
check_tls (const struct options *opts)
{
  struct q_error err = { "" };

  if (opts->tls_optional && !opts->tls_creds)
    fail ("--tls=optional needs --tls-creds");
  if (opts->tls_optional && opts->tls_authz)
    fail ("--tls-authz=%s has no effect on clients without TLS: leave --tls=optional out, or put "
          "tls-authz=%s into the --export that is for certain clients",
          opts->tls_authz, opts->tls_authz);
  if (opts->tls_creds && opts->device)
    fail ("--connect=%s: the kernel's nbd driver has no TLS: --tls-creds cannot be used with it",
          opts->device);
  if (opts->tls_authz && !opts->tls_creds)
    fail ("--tls-authz=%s needs --tls-creds", opts->tls_authz);
  if (opts->tls_hostname && opts->mode != MODE_LIST)
    fail ("--tls-hostname=%s is about the server that a client connects to: it needs --list",
          opts->tls_hostname);
  if (opts->tls_creds && !objects_find_tls (&opts->objects, opts->tls_creds, &err))
    fail ("%s", err.text);
  if (opts->tls_authz && !objects_find_authz (&opts->objects, opts->tls_authz, &err))
    fail ("%s", err.text);
}

static unsigned
processors (void)
{
  cpu_set_t set;
  int n = sched_getaffinity (0, sizeof set, &set) == 0 ? CPU_COUNT (&set) : 1;
  return n > SERVER_MAX_LOOPS ? SERVER_MAX_LOOPS : (unsigned)n;
}

static void
set_defaults (struct options *opts)
{
  *opts = (struct options){
    .export = { .name = "", .source = { .size = SOURCE_TO_END } },
    .exports = json_array (),
    .directories = json_array (),
    .configs = json_array (),
    .state_dir = "",
    .key_fd = -1,
    .port = "10809",
    .shared = 1,
    .handshake_limit = 10,
    .poll_us = 64,
    .threads = processors (),
    .workers = 16,
  };
  if (!opts->exports || !opts->directories || !opts->configs)
    fail ("out of memory");
  q_open_options_init (&opts->export.source.open);
}

void
options_parse (struct options *opts, int argc, char **argv)
{
  struct said said = { 0 };
  int c;

  set_defaults (opts);
  opterr = 0;
  while ((c = getopt_long (argc, argv, short_options, long_options, NULL)) != -1) {
    if (c == '?' || c == ':')
      fail_option (c, argv);
    apply (opts, &said, c, optarg);
  }

  /* qemu-nbd -d DEVICE */
  if (opts->mode == MODE_DISCONNECT) {
    if (optind != argc - 1 && !(optind == argc && opts->device))
      fail ("--disconnect: the name of one device is wanted");
    if (optind < argc)
      opts->device = argv[optind];
    return;
  }
  if (optind < argc - 1)
    fail ("one image file is wanted, %d are given: '%s', '%s'%s", argc - optind, argv[optind],
          argv[optind + 1], argc - optind > 2 ? ", ..." : "");
  if (optind < argc)
    opts->filename = argv[optind];
  if (opts->mode == MODE_LIST)
    check_list (opts, &said);
  else
    check_serve (opts, &said);
  check_tls (opts);
  if (!opts->bind)
    opts->bind = opts->mode == MODE_LIST ? "localhost" : "0.0.0.0";
  opts->export.source.open.state_dir = opts->state_dir;
  opts->export.source.objects = &opts->objects;
  opts->export.multi_conn = opts->shared != 1;
}

void
options_free (struct options *opts)
{
  objects_free (&opts->objects);
  json_decref (opts->exports);
  json_decref (opts->directories);
  json_decref (opts->configs);
}
