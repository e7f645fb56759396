/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow: from the command line to a running server, and back.
 */

#include <stdlib.h>
#include <sys/resource.h>

#include "daemon.h"
#include "log.h"
#include "options.h"
#include "server.h"

/* A connection is a descriptor, and the soft limit is made for programs that use select. */
static void
raise_descriptor_limit (void)
{
  struct rlimit limit;
  if (getrlimit (RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit (RLIMIT_NOFILE, &limit);
  }
}

static bool
open_export (const struct options *opts, struct exports *exports)
{
  struct q_error err = { "" };
  struct export_options xo = {
    .name = opts->name,
    .description = opts->description,
    .filename = opts->filename,
    .multi_conn = opts->shared != 1,
    .write_through = opts->write_through,
    .ignore_flush = opts->ignore_flush,
  };

  q_open_options_init (&xo.open);
  xo.open.format = opts->format;
  xo.open.cache = opts->direct ? Q_CACHE_DIRECT : Q_CACHE_BUFFERED;
  xo.open.read_only = opts->read_only;
  xo.open.discard = opts->discard;
  if (exports_add (exports, &xo, &err) < 0) {
    log_error ("%s", err.text);
    return false;
  }
  return true;
}

/* Sockets that were passed in stand in for those of the command line.  They are meant for one
 * process number, so this comes before daemon_fork. */
static bool
take_inherited (const struct options *opts, struct listeners *ls)
{
  struct q_error err = { "" };
  int n = listen_inherited (ls, &err);

  if (n < 0)
    log_error ("%s", err.text);
  if (n > 0 && opts->address_given) {
    log_error ("--socket, --bind and --port cannot be used with sockets that were passed in by "
               "LISTEN_FDS");
    return false;
  }
  return n >= 0;
}

static bool
listen_all (const struct options *opts, struct listeners *ls)
{
  struct q_error err = { "" };
  int r = 0;

  if (ls->n == 0)
    r = opts->socket ? listen_unix (ls, opts->socket, &err)
                     : listen_tcp (ls, opts->bind, opts->port, &err);
  if (r < 0)
    log_error ("%s", err.text);
  return r >= 0;
}

static bool
write_pid_file (const struct options *opts)
{
  struct q_error err = { "" };

  if (opts->pid_file && pid_file_write (opts->pid_file, &err) < 0) {
    log_error ("%s", err.text);
    return false;
  }
  return true;
}

static void
on_ready (void *opaque)
{
  const struct options *opts = opaque;
  daemon_ready (opts->verbose);
}

int
main (int argc, char **argv)
{
  struct options opts;
  struct exports exports = { 0 };
  struct listeners listeners = { 0 };

  log_init ("nbdcow");
  options_parse (&opts, argc, argv);
  log_set_verbose (opts.verbose);
  raise_descriptor_limit ();
  if (!take_inherited (&opts, &listeners))
    return EXIT_FAILURE;
  if (opts.fork)
    daemon_fork ();

  bool ok =
      open_export (&opts, &exports) && listen_all (&opts, &listeners) && write_pid_file (&opts);
  if (ok) {
    struct server_options so = {
      .loops = opts.threads,
      .workers = opts.workers,
      .max_clients = opts.shared,
      .persistent = opts.persistent,
      .handshake_limit = opts.handshake_limit,
      .ready = on_ready,
      .opaque = &opts,
    };
    ok = server_run (&so, &listeners, &exports);
  }
  listen_close (&listeners);
  if (exports_close (&exports) < 0)
    ok = false;
  if (opts.pid_file)
    pid_file_remove (opts.pid_file);
  return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
