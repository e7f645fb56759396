/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyval.h"
#include "log.h"
#include "option.h"
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
  OPT_CONTROL,
  OPT_METRICS,
  OPT_WATERMARK,
  OPT_WATERMARK_REPEAT,
  OPT_WATERMARK_EXEC,
  OPT_ON_ENOSPC,
  OPT_TAKEOVER,
  OPT_LOG,
  OPT_LOG_LEVEL,
  OPT_USER,
  OPT_GROUP,
  OPT_RUN,
  OPT_EXIT_WITH_PARENT,
  OPT_SANDBOX,
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
  { "control", required_argument, NULL, OPT_CONTROL },
  { "metrics", required_argument, NULL, OPT_METRICS },
  { "watermark", required_argument, NULL, OPT_WATERMARK },
  { "watermark-repeat", required_argument, NULL, OPT_WATERMARK_REPEAT },
  { "watermark-exec", required_argument, NULL, OPT_WATERMARK_EXEC },
  { "on-enospc", required_argument, NULL, OPT_ON_ENOSPC },
  { "takeover", required_argument, NULL, OPT_TAKEOVER },
  { "vsock", required_argument, NULL, OPT_VSOCK },
  { "log", required_argument, NULL, OPT_LOG },
  { "log-level", required_argument, NULL, OPT_LOG_LEVEL },
  { "user", required_argument, NULL, OPT_USER },
  { "group", required_argument, NULL, OPT_GROUP },
  { "run", required_argument, NULL, OPT_RUN },
  { "exit-with-parent", no_argument, NULL, OPT_EXIT_WITH_PARENT },
  { "sandbox", required_argument, NULL, OPT_SANDBOX },
  { "print-uri", no_argument, NULL, OPT_PRINT_URI },
  { NULL, 0, NULL, 0 },
};

/* getopt_long has returned WHAT, '?' or ':'. */
static void __attribute__ ((noreturn)) fail_option (int what, char **argv)
{
  const char *option = argv[optind - 1];
  char letter[] = { '-', (char)optopt, '\0' };

  if (strncmp (option, "--", 2) != 0)
    option = letter;
  if (what == ':')
    option_fail ("option '%s' needs a value", option);
  if (option != letter && optopt != 0)
    option_fail ("option '%s' takes no value", option);
  option_fail ("option '%s' is not known, or short for several: 'nbdcow --help' lists them all",
               option);
}

/* ---- options --------------------------------------------------------------------------------- */

static void apply_config (struct options *opts, struct said *said, const char *filename);

static void
apply (struct options *opts, struct said *said, int c, const char *arg)
{
  struct source *source = &opts->export.source;

  switch (c) {
  case 'h':
  case 'V':
    if (option_is_again ())
      option_fail ("help and version are for the command line");
    if (c == 'h')
      usage_print ();
    else
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
    option_port (opts, arg);
    break;
  case OPT_VSOCK:
    option_number ("--vsock", arg, 0, INT32_MAX);
    opts->vsock = arg;
    break;
  case OPT_CONTROL:
    opts->control = arg;
    break;
  case OPT_METRICS:
    opts->metrics = arg;
    break;
  case OPT_TAKEOVER:
    opts->takeover = arg;
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
    opts->export.name = option_string ("--export-name", arg);
    said->name = true;
    break;
  case 'D':
    opts->export.description = option_string ("--description", arg);
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
    option_offset (opts, arg);
    break;
  case 'A':
    opts->export.allocation_depth = true;
    break;
  case 'B':
    option_bitmap (opts, arg);
    break;
  case 'f':
    if (!source_set_format (source, arg))
      option_fail ("--format=%s: nbdcow serves the formats qcow2 and raw", arg);
    said->format = true;
    break;
  case OPT_IMAGE_OPTS:
    opts->image_opts = true;
    break;
  case 'n':
    arg = "none";
    /* fall through */
  case OPT_CACHE:
    option_once (&said->cache, "--cache or --nocache");
    if (!source_set_cache (source, arg))
      option_fail (
          "--cache=%s: one of none, writeback, writethrough, directsync and unsafe is wanted", arg);
    break;
  case OPT_AIO:
    option_aio (said, arg);
    break;
  case OPT_DISCARD:
    option_once (&said->discard, "--discard");
    if (!source_set_discard (source, arg))
      option_fail ("--discard=%s: ignore (or off) or unmap (or on) is wanted", arg);
    break;
  case OPT_DETECT_ZEROES:
    option_once (&said->detect_zeroes, "--detect-zeroes");
    if (!source_set_detect_zeroes (source, arg))
      option_fail ("--detect-zeroes=%s: one of off, on and unmap is wanted", arg);
    break;
  case OPT_BACKING:
    if (!source_set_backing (source, arg))
      option_fail ("--backing=%s: one of recorded, same-dir, any, probe and none is wanted", arg);
    said->backing = true;
    break;
  case OPT_DATA_FILE:
    if (!source_set_data_file (source, arg))
      option_fail ("--data-file: out of memory");
    break;
  case OPT_DATA_FILE_POLICY:
    if (!source_set_data_file_policy (source, arg))
      option_fail ("--data-file-policy=%s: one of same-dir, any and none is wanted", arg);
    said->data_file_policy = true;
    break;
  case OPT_UNTRUSTED:
    said->untrusted = true;
    break;
  case OPT_COMPRESS:
    if (!source_set_compress (source, arg))
      option_fail ("--compress=%s: a level is wanted, or nothing, or off", arg);
    break;
  case OPT_LOCK:
    if (!source_set_lock (source, arg))
      option_fail ("--lock=%s: on or off is wanted", arg);
    break;
  case OPT_WATERMARK:
    option_watermark ("--watermark", arg, &opts->export.watermark.at);
    break;
  case OPT_WATERMARK_REPEAT:
    option_watermark ("--watermark-repeat", arg, &opts->export.watermark.repeat);
    break;
  case OPT_WATERMARK_EXEC:
    opts->export.watermark.exec = arg;
    break;
  case OPT_ON_ENOSPC:
    if (!room_parse (arg, &opts->export.on_enospc))
      option_fail ("--on-enospc=%s: report, wait or wait:SECONDS is wanted", arg);
    break;
  case OPT_STATE_DIR:
    option_state_dir (opts, arg);
    break;
  case OPT_EXPORT:
    option_export (opts, arg);
    break;
  case OPT_EXPORT_DIR:
    option_export_dir (opts, arg);
    break;
  case OPT_CONFIG:
    apply_config (opts, said, arg);
    break;

  case 'e':
    opts->shared = option_number ("--shared", arg, 0, 1000000);
    said->shared = true;
    break;
  case 't':
    opts->persistent = true;
    break;
  case OPT_HANDSHAKE_LIMIT:
    opts->handshake_limit = option_number ("--handshake-limit", arg, 0, 1000000);
    break;
  case OPT_POLL:
    opts->poll_us = option_number ("--poll", arg, 0, 1000);
    break;
  case OPT_IDLE_LIMIT:
    opts->idle_limit = option_number ("--idle-limit", arg, 0, 100000000);
    break;
  case OPT_MEMORY:
    option_memory (opts, arg);
    break;
  case OPT_THREADS:
    opts->threads = option_number ("--threads", arg, 1, SERVER_MAX_LOOPS);
    break;
  case OPT_WORKERS:
    opts->workers = option_number ("--workers", arg, 1, MAX_WORKERS);
    break;

  case OPT_KEY_FILE:
    opts->key_file = arg;
    break;
  case OPT_KEY_FD:
    opts->key_fd = (int)option_number ("--key-fd", arg, 0, INT32_MAX);
    break;
  case OPT_OBJECT:
    option_object (opts, arg);
    break;
  case OPT_TLS:
    option_tls (opts, arg);
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
    option_trace (opts, said, arg);
    break;
  case OPT_LOG:
    opts->log = arg;
    break;
  case OPT_LOG_LEVEL:
    if (!log_set_level (arg))
      option_fail ("--log-level=%s: one of error, warning, info and debug is wanted", arg);
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
  case OPT_SANDBOX:
    if (!sandbox_parse (arg, &opts->sandbox))
      option_fail ("--sandbox=%s: auto, on or off is wanted", arg);
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
    option_fail ("%s: '%s' is not the name of an option without its dashes ('file' is the image)",
                 filename, name);
  if (json_is_array (value)) {
    size_t i;
    json_t *element;
    json_array_foreach (value, i, element) apply_setting (opts, said, filename, name, element);
  } else if (json_is_object (value) && o->val == OPT_EXPORT) {
    struct q_error err = { "" };
    option_tree (opts->exports, keyval_nest (value, filename, &err), filename, &err);
  } else if (o->has_arg != required_argument && json_is_boolean (value)) {
    if (json_is_true (value))
      apply (opts, said, o->val, NULL);
  } else if (o->has_arg == no_argument) {
    option_fail ("%s: \"%s\": true or false is wanted", filename, name);
  } else if (json_is_string (value))
    apply (opts, said, o->val, json_string_value (value));
  else if (json_is_integer (value)) {
    snprintf (number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value (value));
    json_t *kept = json_string (number);
    if (!kept || json_array_append_new (opts->configs, kept) < 0)
      option_fail ("%s: out of memory", filename);
    apply (opts, said, o->val, json_string_value (kept));
  } else
    option_fail ("%s: \"%s\": a string or a number is wanted", filename, name);
}

static void
apply_config (struct options *opts, struct said *said, const char *filename)
{
  json_error_t e;
  json_t *root = json_load_file (filename, JSON_REJECT_DUPLICATES, &e), *value;
  const char *name;

  if (!root && e.line > 0)
    option_fail ("--config=%s: line %d: %s", filename, e.line, keyval_json_error (&e));
  if (!root)
    option_fail ("--config=%s: %s", filename, e.text);
  if (json_array_append_new (opts->configs, root) < 0)
    option_fail ("--config=%s: out of memory", filename);
  if (!json_is_object (root))
    option_fail ("--config=%s: an object is wanted: {\"option\": value, ...}", filename);
  opts->has_config = true;
  if (++said->config_depth > MAX_CONFIG_DEPTH)
    option_fail ("--config=%s: more than %d configuration files in each other", filename,
                 MAX_CONFIG_DEPTH);
  json_object_foreach (root, name, value) apply_setting (opts, said, filename, name, value);
  said->config_depth--;
}

/* ---- the whole ------------------------------------------------------------------------------- */

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
    option_fail ("out of memory");
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
      option_fail ("--disconnect: the name of one device is wanted");
    if (optind < argc)
      opts->device = argv[optind];
    return;
  }
  if (optind < argc - 1)
    option_fail ("one image file is wanted, %d are given: '%s', '%s'%s", argc - optind,
                 argv[optind], argv[optind + 1], argc - optind > 2 ? ", ..." : "");
  if (optind < argc)
    opts->filename = argv[optind];
  if (opts->mode == MODE_LIST)
    options_check_list (opts, &said);
  else
    options_check_serve (opts, &said);
  options_check_tls (opts);
  if (!opts->bind)
    opts->bind = opts->mode == MODE_LIST ? "localhost" : "0.0.0.0";
  opts->export.source.open.state_dir = opts->state_dir;
  opts->export.source.objects = &opts->objects;
  opts->export.multi_conn = opts->shared != 1;
}

int
options_parse_again (struct options *opts, int argc, char **argv, struct q_error *err)
{
  const char *level = log_level_name ();
  jmp_buf env;

  optind = 0; /* getopt_long begins anew */
  if (setjmp (env) == 0) {
    option_failures_go (&env, err);
    options_parse (opts, argc, argv);
    option_failures_go (NULL, NULL);
    return 0;
  }
  option_failures_go (NULL, NULL);
  log_set_level (level);
  options_free (opts);
  return -EINVAL;
}

void
options_free (struct options *opts)
{
  source_free (&opts->export.source);
  objects_free (&opts->objects);
  json_decref (opts->exports);
  json_decref (opts->directories);
  json_decref (opts->configs);
}
