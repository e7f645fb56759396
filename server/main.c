/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow: from the command line to a running server, and back.
 */

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "attach.h"
#include "confine.h"
#include "control.h"
#include "daemon.h"
#include "device.h"
#include "hooks.h"
#include "keyval.h"
#include "list.h"
#include "log.h"
#include "metrics.h"
#include "options.h"
#include "privileges.h"
#include "reload.h"
#include "run.h"
#include "sandbox.h"
#include "secret.h"
#include "serve.h"
#include "server.h"
#include "service.h"
#include "signals.h"
#include "stdfds.h"
#include "takeover.h"
#include "tls.h"

/* Where qemu-nbd listens beside serving a device of the kernel. */
#define DEVICE_SOCKET "/var/lock/qemu-nbd-%s"

struct program {
  int argc;
  char **argv;
  int parent; /* process that started us */
  struct options opts;
  struct q_secret *key; /* of --key-file and --key-fd */
  struct tls *tls;      /* NULL: none */
  struct exports exports;
  struct metrics *metrics; /* NULL: none */
  struct clients clients;
  struct reload *reload; /* NULL: there is no configuration file */
  struct listeners listeners;
  struct takeover *takeover; /* NULL: there is no server to be taken over */
  struct control *control;   /* NULL: none */
  struct sandbox sandbox;
  struct identity identity;
  struct run run;       /* --run */
  char *private_socket; /* of --run */
  char *device_socket;  /* of --connect */
  struct attach attach; /* connects the kernel's device ... */
  int kernel;           /* ... to this socket of ours, or -1 */
  char *uri;            /* of the first export at the first socket; may be NULL */
};

static bool
complain (int r, const struct q_error *err)
{
  if (r < 0)
    log_error ("%s", err->text);
  return r >= 0;
}

/* The same of what has to do with the running server. */
static bool
complain_takeover (const struct program *p, int r, const struct q_error *err)
{
  if (r < 0)
    log_error ("--takeover=%s: %s", p->opts.takeover, err->text);
  return r >= 0;
}

/* Whoever ends the server while it starts does not wait for all of that. */
static bool
interrupted (const struct program *p)
{
  int signum = signals_noted ();

  /* With something that is read again when it comes, SIGHUP asks for what is being done. */
  if (signum == 0 || (signum == SIGHUP && (p->tls || p->opts.has_config)))
    return false;
  log_error ("%s: the server ends before it is running", strsignal (signum));
  return true;
}

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

/* ---- sockets --------------------------------------------------------------------------------- */

/* Sockets that were passed in stand in for those of the command line.  They are meant for one
 * process number, so this comes before daemon_fork. */
static bool
take_inherited (struct program *p)
{
  const struct options *opts = &p->opts;
  struct q_error err = { "" };
  int n = listen_inherited (&p->listeners, &err);

  if (n > 0 && (opts->socket || opts->bind_given || opts->port_given || opts->vsock ||
                opts->selinux_label)) {
    log_error ("--socket, --bind, --port, --vsock and --selinux-label cannot be used with sockets "
               "that were passed in by LISTEN_FDS");
    return false;
  }
  return complain (n, &err);
}

/* Which unix socket to listen on, if any. */
static bool
choose_socket (struct program *p, const char **path)
{
  const struct options *opts = &p->opts;
  bool tcp = opts->bind_given || opts->port_given;
  struct q_error err = { "" };

  *path = opts->socket;
  if (*path || tcp || opts->vsock)
    return true;
  if (opts->device) {
    const char *base = strrchr (opts->device, '/');
    if (asprintf (&p->device_socket, DEVICE_SOCKET, base ? base + 1 : opts->device) < 0)
      p->device_socket = NULL;
    *path = p->device_socket;
    return *path != NULL;
  }
  if (opts->run) {
    p->private_socket = run_private_socket (&err);
    *path = p->private_socket;
    return complain (*path ? 0 : -1, &err);
  }
  return true;
}

static bool
listen_all (struct program *p)
{
  const struct options *opts = &p->opts;
  struct listeners *ls = &p->listeners;
  struct q_error err = { "" };
  const char *path;
  int r = 0;

  if (ls->n > 0)
    return true;
  if (p->takeover)
    return complain_takeover (p, takeover_listeners (p->takeover, ls, opts->socket, &err), &err);
  if (!choose_socket (p, &path))
    return false;
  if (opts->selinux_label)
    r = listen_set_label (opts->selinux_label, &err);
  if (r == 0 && opts->vsock)
    r = listen_vsock (ls, opts->vsock, &err);
  if (r == 0 && path)
    r = listen_unix (ls, path, &err);
  else if (r == 0 && (!opts->vsock || opts->bind_given || opts->port_given))
    r = listen_tcp (ls, opts->bind, opts->port, &err);
  if (r == 0 && opts->selinux_label)
    r = listen_set_label (NULL, &err);
  return complain (r, &err);
}

static bool
open_control (struct program *p)
{
  struct q_error err = { "" };

  if (!p->opts.control)
    return true;
  p->exports.keep_recipes = true;
  if (p->takeover)
    p->control = takeover_control (p->takeover, p->opts.control, &err);
  if (!p->control && !*err.text)
    p->control = control_open (p->opts.control, &err);
  return complain (p->control ? 0 : -1, &err);
}

static bool
open_metrics (struct program *p)
{
  struct q_error err = { "" };

  if (!p->opts.metrics)
    return true;
  if (p->takeover)
    p->metrics = takeover_metrics (p->takeover, p->opts.metrics, &err);
  if (!p->metrics && !*err.text)
    p->metrics = metrics_open (p->opts.metrics, &err);
  return complain (p->metrics ? 0 : -1, &err);
}

/* ---- secrets --------------------------------------------------------------------------------- */

/* Files with keys are often for root alone, so this comes before privileges are dropped; and what
 * is locked in memory does not stay so in a child, so it comes after the last fork. */
static bool
load_secrets (struct program *p)
{
  struct options *opts = &p->opts;
  struct q_error err = { "" };
  const char *visible = NULL;

  if (!complain (objects_load_secrets (&opts->objects, &visible, &err), &err))
    return false;
  if (visible)
    log_warning ("--object secret,id=%s: everybody on this machine can see what follows data=: "
                 "file=PATH keeps a secret",
                 visible);
  if (opts->key_file)
    p->key = secret_from_key_file (opts->key_file, "--key-file", &err);
  else if (opts->key_fd >= 0)
    p->key = secret_from_fd (opts->key_fd, "--key-fd", &err);
  else
    return true;
  opts->export.source.open.secret = p->key;
  return complain (p->key ? 0 : -1, &err);
}

/* Everything that they open is open. */
static void
forget_key (struct program *p)
{
  secret_free (p->key);
  p->key = NULL;
  p->opts.export.source.open.secret = NULL;
}

/* ---- TLS ------------------------------------------------------------------------------------- */

/* A private key is often for root alone, so this comes before privileges are dropped. */
static bool
open_tls (struct program *p)
{
  const struct options *opts = &p->opts;
  struct tls_options to = {
    .objects = &opts->objects,
    .creds = opts->tls_creds,
    .authz = opts->tls_authz,
    .optional = opts->tls_optional,
  };
  struct q_error err = { "" };

  if (!opts->tls_creds)
    return true;
  p->tls = tls_open (&to, &err);
  return complain (p->tls ? 0 : -1, &err);
}

/* ---- exports --------------------------------------------------------------------------------- */

/* An image may take its time to be opened; whoever has no use for the server any more need not wait
 * for the others. */
static int
add_export (void *opaque, const struct export_options *opts, struct q_error *err)
{
  struct program *p = opaque;

  if (interrupted (p))
    return -EINTR;
  return exports_add (&p->exports, opts, err);
}

static bool
open_exports (struct program *p)
{
  struct q_error err = { "" };

  int r = serve_all (&p->opts, p->tls, add_export, p, &err);
  if ((r == -EINTR && !*err.text) || !complain (r, &err))
    return false;
  if (!p->exports.first) {
    log_error ("there is nothing to serve: no directory has an image");
    return false;
  }
  return true;
}

/* ---- the kernel's device --------------------------------------------------------------------- */

static bool
prepare_device (struct program *p)
{
  struct q_error err = { "" };
  int index, pair[2];

  if (!p->opts.device)
    return true;
  if (!complain (device_index (p->opts.device, &index, &err), &err))
    return false;
  if (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
    log_error ("cannot make a pair of sockets for %s: %m", p->opts.device);
    return false;
  }
  p->kernel = pair[0];
  return complain (attach_start (&p->attach, p->opts.device, index, pair[1], pair[0], &err), &err);
}

static bool
connect_device (struct program *p)
{
  struct q_error err = { "" };

  if (!p->opts.device)
    return true;
  int r = attach_connect (&p->attach, p->exports.first->name, &err);
  attach_end (&p->attach);
  return complain (r, &err);
}

/* ---- the background -------------------------------------------------------------------------- */

static bool
in_background (const struct options *opts)
{
  /* As qemu-nbd does: a device is served in the background. */
  return opts->fork || (opts->device && !opts->verbose);
}

/* Whether stderr stays when the server is in the background. */
static bool
keeps_stderr (const struct program *p)
{
  return p->opts.verbose && log_is_stderr ();
}

static bool
go_to_background (struct program *p)
{
  pid_t before = getpid ();
  struct q_error err = { "" };

  if (!in_background (&p->opts))
    return true;
  daemon_fork ();
  service_forked (before);
  /* What is read again later is found under another directory, too. */
  return complain (objects_make_absolute (&p->opts.objects, &err), &err);
}

/* Lets go of the file system that the server was started in.  What is read again later may name
 * files relative to where it was. */
static void
leave_directory (const struct options *opts)
{
  if (in_background (opts) && json_array_size (opts->configs) == 0 && !opts->control &&
      chdir ("/") < 0)
    log_warning ("cannot change to the root directory: %m");
}

/* ---- running --------------------------------------------------------------------------------- */

static bool
open_pid_file (struct program *p)
{
  const char *path = p->opts.pid_file;
  struct q_error err = { "" };
  int r = 0;

  if (path && p->takeover)
    r = takeover_pid_file (p->takeover, path, &err);
  if (path && r == 0)
    r = pid_file_open (path, &err);
  return complain (r, &err);
}

/* Whoever waits for the number to be there finds a server that has been started. */
static bool
write_pid_file (void)
{
  struct q_error err = { "" };
  return complain (pid_file_write (&err), &err);
}

/* Whether the sockets' files are to be given to --user.  What a server hands over that is not
 * root's is that user's already, and where it lies that server has said, which may be anybody's by
 * now. */
static bool
is_ours_to_give (const struct program *p, bool taken)
{
  return !p->takeover || !taken || takeover_is_from_root (p->takeover);
}

static void
give_sockets (struct program *p)
{
  const uid_t uid = p->identity.uid;
  const gid_t gid = p->identity.gid;
  const char *user = p->opts.user;
  const bool took_control = p->takeover && takeover_took (p->takeover, TAKEOVER_CONTROL);
  const bool took_metrics = p->takeover && takeover_took (p->takeover, TAKEOVER_METRICS);

  for (unsigned i = 0; i < p->listeners.n && is_ours_to_give (p, true); i++) {
    const char *path = p->listeners.l[i].unix_path;
    /* Whom the server belongs to, its socket belongs to. */
    if (path && lchown (path, uid, gid) < 0)
      log_warning ("cannot give socket '%s' to user %s: %m", path, user);
  }
  if (p->control && is_ours_to_give (p, took_control) && control_give (p->control, uid, gid) < 0)
    log_warning ("cannot give socket '%s' to user %s: %m", p->opts.control, user);
  if (is_ours_to_give (p, took_metrics))
    metrics_give (p->metrics, uid, gid);
}

/* From here on, nothing that clients or images can do happens with more rights than wanted. */
static bool
drop_privileges (struct program *p)
{
  const struct options *opts = &p->opts;
  struct q_error err = { "" };
  int r = 0;

  if (opts->user) {
    if (!p->takeover) /* else it has been found */
      r = identity_find (&p->identity, opts->user, opts->group, &err);
    if (r == 0 && p->private_socket) {
      char *dir = strndup (p->private_socket,
                           (size_t)(strrchr (p->private_socket, '/') - p->private_socket));
      if (!dir || lchown (dir, p->identity.uid, p->identity.gid) < 0)
        log_warning ("cannot give '%s' to user %s: %m", dir ? dir : "", opts->user);
      free (dir);
    }
    if (r == 0)
      give_sockets (p);
    if (r == 0)
      r = identity_assume (&p->identity, &err);
  }
  /* A change of user takes this back, so it comes after it. */
  if (r == 0 && opts->exit_with_parent)
    r = run_exit_with_parent (p->parent, &err);
  return complain (r, &err);
}

static void
announce (struct program *p)
{
  for (const struct export *x = p->exports.first; x; x = x->next) {
    for (unsigned i = 0; i < p->listeners.n; i++) {
      char *uri = listener_uri (&p->listeners.l[i], x->name,
                                p->tls && (x->tls_only || tls_required (p->tls)));
      if (!uri)
        continue;
      log_info ("serving %s: %s", uri, q_filename (x->img));
      if (p->opts.print_uri)
        printf ("%s\n", uri);
      if (!p->uri)
        p->uri = uri;
      else
        free (uri);
    }
  }
  fflush (stdout);
}

/* ---- the sandbox ----------------------------------------------------------------------------- */

/* Everything is open, and there are no threads. */
static bool
enter_sandbox (struct program *p)
{
  const struct options *opts = &p->opts;
  const struct confine_context wants = {
    .options = opts,
    .listeners = &p->listeners,
    .exports = &p->exports,
    .tls = p->tls,
    .private_socket = p->private_socket,
  };
  struct q_error err = { "" };

  if (opts->run &&
      !complain (run_prepare (&p->run, opts->run, p->uri ? p->uri : "", p->exports.first->name,
                              p->listeners.l[0].unix_path, &err),
                 &err))
    return false;
  service_prepare ();
  tzset (); /* for the system's log */
  sandbox_init (&p->sandbox, opts->sandbox);
  confine_list (&wants, &p->sandbox);
  return complain (sandbox_enter (&p->sandbox, &err), &err);
}

static bool
on_confine (void *opaque)
{
  struct program *p = opaque;
  struct q_error err = { "" };

  return complain (sandbox_filter (&p->sandbox, &err), &err);
}

static int
on_ready (void *opaque)
{
  struct program *p = opaque;
  struct q_error err = { "" };
  int child = 0;

  if (interrupted (p) || !connect_device (p))
    return -1;
  /* Clients that have been taken over are not given up for want of metrics. */
  if (p->metrics && !complain (metrics_start (p->metrics, &p->exports, &err), &err) && !p->takeover)
    return -1;
  if (p->opts.run)
    child = run_begin (&p->run);
  leave_directory (&p->opts);
  service_ready (p->uri ? p->uri : "serving");
  log_started ();
  daemon_ready (keeps_stderr (p));
  return child;
}

static bool
prepare_reload (struct program *p)
{
  struct reload_context context = {
    .argc = p->argc,
    .argv = p->argv,
    .options = &p->opts,
    .exports = &p->exports,
    .tls = p->tls,
  };

  if (!p->opts.has_config)
    return true;
  p->reload = reload_new (&context);
  if (!p->reload)
    log_error ("out of memory");
  return p->reload;
}

/* In a process that is there for commands alone. */
static void
leave_server (void *opaque)
{
  struct program *p = opaque;

  daemon_detach (keeps_stderr (p));
  forget_key (p);
  tls_free (p->tls);
  objects_free (&p->opts.objects);
}

/* There: what the configuration has now.  One that cannot be read has nothing new. */
static void
list_hooks_again (void *opaque)
{
  const struct program *p = opaque;
  struct options again = { .mode = MODE_SERVE };
  struct q_error ignored;

  if (options_parse_again (&again, p->argc, p->argv, &ignored) == 0) {
    serve_hooks (&again, &ignored);
    options_free (&again);
  }
}

/* As the user that we run as, and before images are open. */
static bool
prepare_hooks (struct program *p)
{
  struct q_error err = { "" };

  int r = serve_hooks (&p->opts, &err);
  if (r == 0)
    r = hooks_prepare (leave_server, p->opts.has_config ? list_hooks_again : NULL, p, &err);
  return complain (r, &err);
}

/* ---- takeover -------------------------------------------------------------------------------- */

static bool
begin_takeover (struct program *p)
{
  const struct options *opts = &p->opts;
  struct q_error err = { "" };
  int r = 0;

  if (!opts->takeover)
    return true;
  if (opts->user)
    r = identity_find (&p->identity, opts->user, opts->group, &err);
  if (r == 0) {
    p->takeover = takeover_begin (opts->takeover, opts->user ? p->identity.uid : geteuid (), &err);
    r = p->takeover ? 0 : -1;
  }
  return complain_takeover (p, r, &err);
}

/* From here on the other server's clients wait. */
static bool
stop_the_other (struct program *p)
{
  struct q_error err = { "" };
  return !p->takeover || complain_takeover (p, takeover_ready (p->takeover, &err), &err);
}

/* What is still the other server's stays where it is; what this one has made itself goes. */
static void
give_back (struct program *p)
{
  if (!p->takeover || takeover_is_done (p->takeover))
    return;
  listen_leave (&p->listeners);
  if (p->metrics && takeover_took (p->takeover, TAKEOVER_METRICS))
    listen_leave (metrics_listeners (p->metrics));
  if (takeover_took (p->takeover, TAKEOVER_CONTROL))
    control_leave (p->control);
  if (takeover_took (p->takeover, TAKEOVER_PID_FILE))
    pid_file_leave ();
}

static bool
on_adopt (void *opaque, struct server *sv)
{
  struct program *p = opaque;
  struct q_error err = { "" };
  bool ok = complain_takeover (p, takeover_sessions (p->takeover, sv, &p->exports, &err), &err);

  give_back (p);
  if (ok)
    (void)write_pid_file (); /* that it cannot be written is no reason not to go on */
  return ok;
}

/* Everything that there is to have before clients are let in. */
static bool
prepare (struct program *p)
{
  if (!prepare_device (p) || !load_secrets (p) || !open_tls (p))
    return false;
  /* From here on there is something to remove again.  The pid file first: where it is another
   * server's, that one's socket stays. */
  signals_note ();
  return begin_takeover (p) && open_pid_file (p) && listen_all (p) && open_control (p) &&
         open_metrics (p) && drop_privileges (p) && prepare_hooks (p) && stop_the_other (p) &&
         open_exports (p) && prepare_reload (p) && !interrupted (p) &&
         (p->takeover || write_pid_file ());
}

static size_t
memory (const struct options *opts)
{
  size_t loops = opts->threads * SERVER_LOOP_MEMORY;

  return opts->memory ? opts->memory : loops > SERVER_MEMORY ? loops : SERVER_MEMORY;
}

static int
serve (struct program *p)
{
  const struct options *opts = &p->opts;
  struct server_options so = {
    .loops = opts->threads,
    .workers = opts->workers,
    .poll_us = opts->poll_us,
    .max_clients = opts->shared,
    .persistent = opts->persistent && !opts->device, /* as qemu-nbd: -d ends it */
    .handshake_limit = opts->handshake_limit,
    .idle_limit = opts->idle_limit,
    .memory = memory (opts),
    .clients = &p->clients,
    .tied = opts->device || opts->run,
    .confine = on_confine,
    .ready = on_ready,
    .opaque = p,
  };
  struct q_error err = { "" };

  exports_init (&p->exports);
  clients_init (&p->clients);
  signal (SIGPIPE, SIG_IGN);
  raise_descriptor_limit ();
  if (!take_inherited (p) || !go_to_background (p))
    return EXIT_FAILURE;
  if (opts->log && !complain (log_open (opts->log, &err), &err))
    return EXIT_FAILURE;

  int status = -1;
  struct export_options defaults;
  if (prepare (p)) {
    so.attached = p->kernel;
    so.tls = p->tls;
    so.metrics = p->metrics;
    so.adopt = p->takeover ? on_adopt : NULL;
    so.reload = p->reload;
    so.control = p->control;
    forget_key (p);
    serve_defaults (opts, p->tls, &defaults);
    so.defaults = &defaults;
    announce (p);
    if (enter_sandbox (p)) {
      status = server_run (&so, &p->listeners, &p->exports);
      p->kernel = -1;
    }
  }
  give_back (p);
  attach_end (&p->attach);
  run_cancel (&p->run);
  listen_close (&p->listeners);
  control_close (p->control);
  metrics_close (p->metrics);
  hooks_free ();
  reload_free (p->reload);
  if (exports_close (&p->exports) < 0 && status == 0)
    status = EXIT_FAILURE;
  clients_destroy (&p->clients);
  tls_free (p->tls);
  forget_key (p);
  pid_file_remove ();
  /* By now the images are closed: the other server may open them again. */
  takeover_end (p->takeover);
  if (p->kernel >= 0)
    close (p->kernel);
  return status < 0 ? EXIT_FAILURE : status;
}

static int
disconnect (const struct options *opts)
{
  struct q_error err = { "" };
  int index;
  int r = device_index (opts->device, &index, &err);

  if (r == 0)
    r = device_disconnect (index, &err);
  if (!complain (r, &err))
    return EXIT_FAILURE;
  printf ("%s disconnected\n", opts->device);
  return EXIT_SUCCESS;
}

static int
list (const struct options *opts)
{
  struct q_error err = { "" };
  struct list_options lo = {
    .socket = opts->socket,
    .host = opts->bind,
    .port = opts->port,
    .tls = opts->tls_creds ? objects_find_tls (&opts->objects, opts->tls_creds, &err) : NULL,
    .tls_hostname = opts->tls_hostname,
  };

  if (lo.tls && lo.tls->tls.server) {
    log_error ("--tls-creds=%s: these credentials are a server's: --list wants endpoint=client",
               opts->tls_creds);
    return EXIT_FAILURE;
  }
  int r = list_exports (&lo, &err);
  return complain (r, &err) ? EXIT_SUCCESS : EXIT_FAILURE;
}

int
main (int argc, char **argv)
{
  struct program p = { .argc = argc,
                       .argv = argv,
                       .parent = getppid (),
                       .run = { .word = -1 },
                       .attach = { .control = -1 },
                       .kernel = -1 };
  int status = EXIT_FAILURE;

  stdfds_open ();
  log_init ("nbdcow");
  options_parse (&p.opts, argc, argv);
  switch (p.opts.mode) {
  case MODE_SERVE:
    status = serve (&p);
    break;
  case MODE_LIST:
    status = list (&p.opts);
    break;
  case MODE_DISCONNECT:
    status = disconnect (&p.opts);
    break;
  }
  run_remove_private_socket (p.private_socket);
  free (p.device_socket);
  free (p.uri);
  sandbox_free (&p.sandbox);
  identity_free (&p.identity);
  options_free (&p.opts);
  return status;
}
