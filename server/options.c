/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "nbd.h"
#include "options.h"
#include "server.h"

#define MAX_WORKERS 1024

/* Long options without a short form. */
enum {
  OPT_FORK = 256,
  OPT_PID_FILE,
  OPT_CACHE,
  OPT_AIO,
  OPT_DISCARD,
  OPT_HANDSHAKE_LIMIT,
  OPT_THREADS,
  OPT_WORKERS,
};

static const char short_options[] = "hVp:b:k:e:tvx:D:rf:n";

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
  { "read-only", no_argument, NULL, 'r' },
  { "format", required_argument, NULL, 'f' },
  { "nocache", no_argument, NULL, 'n' },
  { "cache", required_argument, NULL, OPT_CACHE },
  { "aio", required_argument, NULL, OPT_AIO },
  { "discard", required_argument, NULL, OPT_DISCARD },
  { "fork", no_argument, NULL, OPT_FORK },
  { "pid-file", required_argument, NULL, OPT_PID_FILE },
  { "handshake-limit", required_argument, NULL, OPT_HANDSHAKE_LIMIT },
  { "threads", required_argument, NULL, OPT_THREADS },
  { "workers", required_argument, NULL, OPT_WORKERS },
  { NULL, 0, NULL, 0 },
};

static void
help (void)
{
  printf (
      "Usage: nbdcow [OPTION]... FILE\n"
      "Serves a qcow2 or raw disk image over NBD.  The options of qemu-nbd mean the same here.\n"
      "\n"
      "Where to listen:\n"
      "  -k, --socket=PATH         a unix socket\n"
      "  -b, --bind=ADDRESS        an address or host name (0.0.0.0)\n"
      "  -p, --port=PORT           a TCP port (10809)\n"
      "\n"
      "What to serve:\n"
      "  -f, --format=FORMAT       qcow2 or raw; without it, FILE must be qcow2\n"
      "  -r, --read-only           let nobody write\n"
      "  -x, --export-name=NAME    the export's name (the empty one)\n"
      "  -D, --description=TEXT    a description of it for people\n"
      "\n"
      "How long, and for whom:\n"
      "  -e, --shared=NUM          serve up to NUM clients at once (1); 0: any number\n"
      "  -t, --persistent          go on when the last client has disconnected\n"
      "      --handshake-limit=N   drop a client that takes more than N seconds to choose an\n"
      "                            export (10); 0: no limit\n"
      "\n"
      "How the image is accessed:\n"
      "      --cache=MODE          none, writeback (default), writethrough, directsync or unsafe\n"
      "  -n, --nocache             the same as --cache=none\n"
      "      --discard=MODE        ignore (default) or unmap: give freed space back to the host\n"
      "      --aio=MODE            threads, native or io_uring; accepted, nbdcow chooses itself\n"
      "      --threads=NUM         threads that serve clients (one for each processor)\n"
      "      --workers=NUM         threads, at most, for what has to wait (16)\n"
      "\n"
      "How to run:\n"
      "      --fork                go to the background once the server is running\n"
      "      --pid-file=PATH       write the process number there\n"
      "  -v, --verbose             say what happens\n"
      "  -h, --help                this help\n"
      "  -V, --version             the version\n"
      "\n"
      "The manual, nbdcow(1), has the details.\n");
}

static void __attribute__ ((noreturn)) usage_error (void)
{
  fprintf (stderr, "Try 'nbdcow --help' for more information.\n");
  exit (EXIT_FAILURE);
}

static unsigned
parse_number (const char *option, const char *arg, unsigned min, unsigned max)
{
  char *end;

  errno = 0;
  long v = strtol (arg, &end, 0);
  if (errno != 0 || end == arg || *end || v < (long)min || v > (long)max) {
    log_error ("%s=%s: a number from %u to %u is wanted", option, arg, min, max);
    exit (EXIT_FAILURE);
  }
  return (unsigned)v;
}

/* A string that goes over the wire. */
static const char *
parse_string (const char *option, const char *arg)
{
  if (strlen (arg) > NBD_MAX_STRING) {
    log_error ("%s has %zu bytes: NBD allows %d", option, strlen (arg), NBD_MAX_STRING);
    exit (EXIT_FAILURE);
  }
  return arg;
}

static void
parse_port (struct options *opts, const char *arg)
{
  char *end;
  long v = strtol (arg, &end, 10);

  if (!*arg || (!*end && (v < 0 || v > 65535))) {
    log_error ("--port=%s: a number from 0 to 65535 or the name of a service is wanted", arg);
    exit (EXIT_FAILURE);
  }
  opts->port = arg;
}

static void
parse_cache (struct options *opts, const char *arg)
{
  static const struct {
    const char *name;
    bool direct, write_through, ignore_flush;
  } modes[] = {
    { "none", true, false, false },       { "off", true, false, false },
    { "writeback", false, false, false }, { "writethrough", false, true, false },
    { "directsync", true, true, false },  { "unsafe", false, false, true },
  };

  for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
    if (strcmp (arg, modes[i].name) == 0) {
      opts->direct = modes[i].direct;
      opts->write_through = modes[i].write_through;
      opts->ignore_flush = modes[i].ignore_flush;
      return;
    }
  }
  log_error ("--cache=%s: one of none, writeback, writethrough, directsync and unsafe is wanted",
             arg);
  exit (EXIT_FAILURE);
}

static void
parse_format (struct options *opts, const char *arg)
{
  if (strcmp (arg, "qcow2") == 0)
    opts->format = Q_FORMAT_QCOW2;
  else if (strcmp (arg, "raw") == 0)
    opts->format = Q_FORMAT_RAW;
  else {
    log_error ("--format=%s: nbdcow serves the formats qcow2 and raw", arg);
    exit (EXIT_FAILURE);
  }
}

static void
parse_discard (struct options *opts, const char *arg)
{
  if (strcmp (arg, "unmap") == 0 || strcmp (arg, "on") == 0)
    opts->discard = true;
  else if (strcmp (arg, "ignore") == 0 || strcmp (arg, "off") == 0)
    opts->discard = false;
  else {
    log_error ("--discard=%s: ignore (or off) or unmap (or on) is wanted", arg);
    exit (EXIT_FAILURE);
  }
}

static void
only_once (bool *given, const char *option)
{
  if (*given) {
    log_error ("%s can be given only once", option);
    exit (EXIT_FAILURE);
  }
  *given = true;
}

static unsigned
processors (void)
{
  cpu_set_t set;
  int n = sched_getaffinity (0, sizeof set, &set) == 0 ? CPU_COUNT (&set) : 1;
  return n > SERVER_MAX_LOOPS ? SERVER_MAX_LOOPS : (unsigned)n;
}

void
options_parse (struct options *opts, int argc, char **argv)
{
  bool cache_given = false, aio_given = false, discard_given = false, aio_native = false;
  int c;

  *opts = (struct options){
    .format = Q_FORMAT_AUTO,
    .bind = "0.0.0.0",
    .port = "10809",
    .name = "",
    .shared = 1,
    .handshake_limit = 10,
    .threads = processors (),
    .workers = 16,
  };

  while ((c = getopt_long (argc, argv, short_options, long_options, NULL)) != -1) {
    switch (c) {
    case 'h':
      help ();
      exit (EXIT_SUCCESS);
    case 'V':
      printf ("nbdcow %s\n", NBDCOW_VERSION);
      exit (EXIT_SUCCESS);
    case 'p':
      parse_port (opts, optarg);
      opts->address_given = true;
      break;
    case 'b':
      opts->bind = optarg;
      opts->address_given = true;
      break;
    case 'k':
      opts->socket = optarg;
      opts->address_given = true;
      break;
    case 'e':
      opts->shared = parse_number ("--shared", optarg, 0, 1000000);
      break;
    case 't':
      opts->persistent = true;
      break;
    case 'v':
      opts->verbose = true;
      break;
    case 'x':
      opts->name = parse_string ("--export-name", optarg);
      break;
    case 'D':
      opts->description = parse_string ("--description", optarg);
      break;
    case 'r':
      opts->read_only = true;
      break;
    case 'f':
      parse_format (opts, optarg);
      break;
    case 'n':
      optarg = (char *)"none";
      /* fall through */
    case OPT_CACHE:
      only_once (&cache_given, "--cache or --nocache");
      parse_cache (opts, optarg);
      break;
    case OPT_AIO:
      only_once (&aio_given, "--aio");
      aio_native = strcmp (optarg, "native") == 0;
      if (!aio_native && strcmp (optarg, "threads") != 0 && strcmp (optarg, "io_uring") != 0) {
        log_error ("--aio=%s: one of threads, native and io_uring is wanted", optarg);
        exit (EXIT_FAILURE);
      }
      break;
    case OPT_DISCARD:
      only_once (&discard_given, "--discard");
      parse_discard (opts, optarg);
      break;
    case OPT_FORK:
      opts->fork = true;
      break;
    case OPT_PID_FILE:
      opts->pid_file = optarg;
      break;
    case OPT_HANDSHAKE_LIMIT:
      opts->handshake_limit = parse_number ("--handshake-limit", optarg, 0, 1000000);
      break;
    case OPT_THREADS:
      opts->threads = parse_number ("--threads", optarg, 1, SERVER_MAX_LOOPS);
      break;
    case OPT_WORKERS:
      opts->workers = parse_number ("--workers", optarg, 1, MAX_WORKERS);
      break;
    default: /* getopt_long has said what is wrong */
      usage_error ();
    }
  }

  if (optind != argc - 1) {
    if (optind == argc)
      log_error ("the name of the image file is missing");
    else
      log_error ("one image file is wanted, %d are given: '%s', '%s'%s", argc - optind,
                 argv[optind], argv[optind + 1], argc - optind > 2 ? ", ..." : "");
    usage_error ();
  }
  opts->filename = argv[optind];
  if (aio_native && !opts->direct) {
    log_error ("--aio=native needs --cache=none or --cache=directsync");
    exit (EXIT_FAILURE);
  }
}
