/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control.h"
#include "log.h"
#include "loop.h"
#include "metrics.h"
#include "reload.h"
#include "server.h"
#include "room.h"
#include "service.h"
#include "stats.h"
#include "watermark.h"

/* Seconds to wait when there is no descriptor or memory for another connection. */
#define ACCEPT_PAUSE 0.5

/* Seconds between two complaints about that. */
#define COMPLAINT_INTERVAL 60.0

/* Connections taken in at one go, before signals and other listeners are looked at. */
#define ACCEPT_BATCH 64

/* When so many clients have left, and then so many seconds have passed, ... */
#define CROWD      64
#define TRIM_DELAY 1.0

struct server {
  struct server_options options;
  struct listeners *listeners;
  struct ev_loop *ev;
  struct loop *loops[SERVER_MAX_LOOPS];
  unsigned n_loops, next_loop;
  struct pool *pool;

  ev_io acceptor[MAX_LISTENERS];
  ev_timer pause;
  bool pausing, holding, ending;
  ev_tstamp next_complaint;
  ev_signal sigterm, sigint, sighup;
  ev_timer watchdog;
  ev_child child;
  int status; /* what server_run returns */
  bool left;  /* another process is the server now */

  unsigned clients; /* connected; the main thread's */
  unsigned crowd;   /* how many there were at most since ... */
  ev_timer trim;    /* ... the heaps' free memory was given back */
  ev_async news;    /* connections have ended: */
  pthread_mutex_t lock;
  unsigned closed, closed_negotiated;
  struct server_call *calls;
  bool deaf; /* calls are not run any more */
  pthread_cond_t called;
};

/* ---- taking connections in ------------------------------------------------------------------- */

static void
update_acceptors (struct server *sv)
{
  unsigned max = sv->options.max_clients;
  bool on = !sv->ending && !sv->pausing && !sv->holding && (max == 0 || sv->clients < max);

  for (unsigned i = 0; i < sv->listeners->n; i++) {
    if (on)
      ev_io_start (sv->ev, &sv->acceptor[i]);
    else
      ev_io_stop (sv->ev, &sv->acceptor[i]);
  }
}

static void
on_pause_over (struct ev_loop *ev, ev_timer *w, int revents)
{
  struct server *sv = w->data;

  (void)ev;
  (void)revents;
  sv->pausing = false;
  update_acceptors (sv);
}

static void
pause_accepting (struct server *sv, const char *why)
{
  atomic_fetch_add (&stats_server.connections_failed, 1);
  if (ev_now (sv->ev) >= sv->next_complaint) {
    log_warning ("cannot take another client in at present (%u are connected): %s", sv->clients,
                 why);
    sv->next_complaint = ev_now (sv->ev) + COMPLAINT_INTERVAL;
  }
  sv->pausing = true;
  ev_timer_set (&sv->pause, ACCEPT_PAUSE, 0.);
  ev_timer_start (sv->ev, &sv->pause);
}

/* ... it is given back.  By itself a heap does that with what lies at its end, of which there may
 * be nothing: one small piece that is still used is enough.  It can take milliseconds, so it is for
 * this thread. */
static void
on_trim (struct ev_loop *ev, ev_timer *w, int revents)
{
  struct server *sv = w->data;

  (void)ev;
  (void)revents;
  malloc_trim (0);
  sv->crowd = sv->clients;
}

static void
trim_later (struct server *sv)
{
  if (sv->crowd - sv->clients < CROWD || ev_is_active (&sv->trim))
    return;
  ev_timer_set (&sv->trim, TRIM_DELAY, 0.);
  ev_timer_start (sv->ev, &sv->trim);
}

/* The loop whose turn it was has one more client. */
static void
count_in (struct server *sv)
{
  sv->next_loop = (sv->next_loop + 1) % sv->n_loops;
  sv->clients++;
  if (sv->clients > sv->crowd)
    sv->crowd = sv->clients;
}

/* VIA is the name of the listening socket, or NULL. */
static void
take_in (struct server *sv, int fd, const char *via)
{
  int on = 1;
  char *peer = NULL;

  /* Fails for what is not TCP, which has no such delay. */
  setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt (fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  if (log_is_verbose ()) {
    peer = peer_name (fd);
    if (peer)
      log_info ("%s: connected%s%s", peer, via ? " by socket " : "", via ? via : "");
  }
  if (!loop_add (sv->loops[sv->next_loop], fd, peer)) {
    pause_accepting (sv, "out of memory");
    return;
  }
  count_in (sv);
  atomic_store (&stats_server.clients, sv->clients);
  atomic_fetch_add (&stats_server.connections, 1);
}

static void
on_connection (struct ev_loop *ev, ev_io *w, int revents)
{
  struct server *sv = w->data;

  (void)ev;
  (void)revents;
  for (int i = 0; i < ACCEPT_BATCH && ev_is_active (w); i++) {
    int fd = accept4 (w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      /* That client has gone again, or its network has. */
      if (errno == ECONNABORTED || errno == EINTR || errno == EPROTO || errno == ENETUNREACH ||
          errno == EHOSTUNREACH || errno == EPERM)
        continue;
      /* Out of descriptors or memory: the client stays in the backlog, and asking again at once
       * would only burn a processor. */
      if (errno != EAGAIN)
        pause_accepting (sv, strerror (errno));
      break;
    }
    take_in (sv, fd, sv->listeners->l[w - sv->acceptor].name);
    update_acceptors (sv);
  }
  update_acceptors (sv);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void
end (struct server *sv, const char *why)
{
  if (sv->ending)
    return;
  log_info ("shutting down: %s", why);
  sv->ending = true;
  if (!sv->left)
    service_stopping ();
  update_acceptors (sv);
  ev_break (sv->ev, EVBREAK_ALL);
}

static void
on_signal (struct ev_loop *ev, ev_signal *w, int revents)
{
  (void)ev;
  (void)revents;
  end (w->data, strsignal (w->signum));
}

static void
on_sighup (struct ev_loop *ev, ev_signal *w, int revents)
{
  struct server *sv = w->data;

  if (sv->options.tls)
    tls_reload (sv->options.tls);
  if (sv->options.reload)
    reload_begin (sv->options.reload);
  if (!sv->options.tls && !sv->options.reload)
    on_signal (ev, w, revents);
}

static void
on_child (struct ev_loop *ev, ev_child *w, int revents)
{
  struct server *sv = w->data;

  (void)revents;
  ev_child_stop (ev, w);
  sv->status = WIFSIGNALED (w->rstatus) ? 128 + WTERMSIG (w->rstatus) : WEXITSTATUS (w->rstatus);
  end (sv, "the command has ended");
}

/* The manager hears that we are alive only while every loop is. */
static void
on_watchdog (struct ev_loop *ev, ev_timer *w, int revents)
{
  struct server *sv = w->data;
  bool alive = true;

  (void)ev;
  (void)revents;
  for (unsigned i = 0; i < sv->n_loops; i++)
    if (!loop_ping (sv->loops[i]))
      alive = false;
  if (alive)
    service_alive ();
}

/* Called on the loops' threads. */
static void
on_closed (void *opaque, bool negotiated)
{
  struct server *sv = opaque;

  pthread_mutex_lock (&sv->lock);
  sv->closed++;
  sv->closed_negotiated += negotiated;
  pthread_mutex_unlock (&sv->lock);
  ev_async_send (sv->ev, &sv->news);
}

/* ---- takeovers ------------------------------------------------------------------------------- */

struct server_call {
  struct server_call *next;
  void (*fn) (struct server *sv, void *opaque);
  void *opaque;
  enum { CALL_WAITS, CALL_RUNS, CALL_DONE } state; /* under the lock */
};

bool
server_call (struct server *sv, void (*fn) (struct server *sv, void *opaque), void *opaque)
{
  struct server_call call = { .fn = fn, .opaque = opaque };

  pthread_mutex_lock (&sv->lock);
  call.next = sv->calls;
  sv->calls = &call;
  ev_async_send (sv->ev, &sv->news);
  while (call.state != CALL_DONE && !(call.state == CALL_WAITS && sv->deaf))
    pthread_cond_wait (&sv->called, &sv->lock);
  for (struct server_call **p = &sv->calls; *p; p = &(*p)->next)
    if (*p == &call) {
      *p = call.next;
      break;
    }
  pthread_mutex_unlock (&sv->lock);
  return call.state == CALL_DONE;
}

/* Under the lock, which is given up meanwhile. */
static void
run_calls (struct server *sv)
{
  while (sv->calls) {
    struct server_call *call = sv->calls;
    sv->calls = call->next;
    call->state = CALL_RUNS;
    pthread_mutex_unlock (&sv->lock);
    call->fn (sv, call->opaque);
    pthread_mutex_lock (&sv->lock);
    call->state = CALL_DONE;
    pthread_cond_broadcast (&sv->called);
  }
}

/* The main loop has ended: whoever calls is told so. */
static void
be_deaf (struct server *sv)
{
  pthread_mutex_lock (&sv->lock);
  sv->deaf = true;
  pthread_cond_broadcast (&sv->called);
  pthread_mutex_unlock (&sv->lock);
}

unsigned
server_loops (struct server *sv, struct loop ***loops)
{
  *loops = sv->loops;
  return sv->n_loops;
}

const struct listeners *
server_listeners (const struct server *sv)
{
  return sv->listeners;
}

struct listeners *
server_metrics (const struct server *sv)
{
  return metrics_listeners (sv->options.metrics);
}

void
server_hold (struct server *sv, bool on)
{
  sv->holding = on;
  update_acceptors (sv);
}

void
server_leave (struct server *sv)
{
  listen_leave (sv->listeners);
  sv->left = true;
  end (sv, "another process goes on");
}

void
server_adopt (struct server *sv, int fd, char *peer, struct saved_session *saved)
{
  if (!loop_add_saved (sv->loops[sv->next_loop], fd, peer, saved)) {
    log_error ("a connection that was taken over is lost: out of memory");
    return;
  }
  count_in (sv);
}

static void
on_news (struct ev_loop *ev, ev_async *w, int revents)
{
  struct server *sv = w->data;

  (void)ev;
  (void)revents;
  pthread_mutex_lock (&sv->lock);
  run_calls (sv);
  unsigned closed = sv->closed, negotiated = sv->closed_negotiated;
  sv->closed = sv->closed_negotiated = 0;
  pthread_mutex_unlock (&sv->lock);

  sv->clients -= closed;
  trim_later (sv);
  atomic_store (&stats_server.clients, sv->clients);
  /* A client that only looked around (a port scan, a list of exports) does not count as the one
   * that this server was started for. */
  if (negotiated > 0 && sv->clients == 0 && !sv->options.persistent && !sv->child.pid)
    end (sv, "the last client has disconnected");
  else
    update_acceptors (sv);
}

/* ---- life ------------------------------------------------------------------------------------ */

static bool
start_threads (struct server *sv, struct exports *exports)
{
  struct loop_options lo = {
    .exports = exports,
    .clients = sv->options.clients,
    .tls = sv->options.tls,
    .max_memory = sv->options.memory / sv->options.loops,
    .handshake_limit = sv->options.handshake_limit,
    .idle_limit = sv->options.idle_limit,
    .poll_us = sv->options.poll_us,
    .closed = on_closed,
    .opaque = sv,
  };

  sv->pool = pool_new (sv->options.workers);
  if (!sv->pool) {
    log_error ("out of memory");
    return false;
  }
  lo.pool = sv->pool;
  while (sv->n_loops < sv->options.loops) {
    sv->loops[sv->n_loops] = loop_start (&lo);
    if (!sv->loops[sv->n_loops])
      return false;
    sv->n_loops++;
  }
  return true;
}

/* Any thread. */
static void
sweep (void *opaque)
{
  struct server *sv = opaque;

  for (unsigned i = 0; i < sv->n_loops; i++)
    loop_sweep (sv->loops[i]);
}

static void
stop_threads (struct server *sv)
{
  for (unsigned i = 0; i < sv->n_loops; i++)
    loop_drain (sv->loops[i]);
  for (unsigned i = 0; i < sv->n_loops; i++)
    loop_join (sv->loops[i]);
  pool_free (sv->pool);
  for (unsigned i = 0; i < sv->n_loops; i++)
    loop_free (sv->loops[i]);
}

static void
watch_signal (struct server *sv, ev_signal *w, int signum)
{
  ev_signal_init (w, signum == SIGHUP ? on_sighup : on_signal, signum);
  w->data = sv;
  ev_signal_start (sv->ev, w);
}

static void
start_watchdog (struct server *sv)
{
  double interval = service_watchdog ();

  ev_init (&sv->watchdog, on_watchdog);
  sv->watchdog.data = sv;
  if (interval > 0) {
    /* At once: it is not known when a server that was taken over has said so last. */
    ev_timer_set (&sv->watchdog, 0., interval);
    ev_timer_start (sv->ev, &sv->watchdog);
  }
}

static unsigned
count_clients (void *opaque)
{
  const struct server *sv = opaque;
  return sv->clients;
}

static void
on_quit (void *opaque)
{
  end (opaque, "the command quit");
}

static bool
start_control (struct server *sv, struct exports *exports)
{
  struct control_context context = {
    .exports = exports,
    .defaults = sv->options.defaults,
    .clients = sv->options.clients,
    .count_clients = count_clients,
    .reload = sv->options.reload,
    .control = sv->options.control,
    .server = sv->options.tied ? NULL : sv,
    .quit = on_quit,
    .opaque = sv,
  };

  return !sv->options.control || control_start (sv->options.control, sv->ev, &context);
}

/* Clients of another server's become ours, so all that may fail has been done.  Whatever they write
 * may meet a full disk at once. */
static bool
adopt (struct server *sv)
{
  rooms_start (sv->ev, sv->pool);
  return !sv->options.adopt || sv->options.adopt (sv->options.opaque, sv);
}

/* Returns when it is over. */
static void
serve (struct server *sv)
{
  if (sv->options.attached >= 0)
    take_in (sv, sv->options.attached, NULL);
  update_acceptors (sv);
  int child = sv->options.ready (sv->options.opaque);
  if (child < 0) {
    sv->status = -1;
    return;
  }
  if (child > 0) {
    ev_child_init (&sv->child, on_child, child, 0);
    sv->child.data = sv;
    ev_child_start (sv->ev, &sv->child);
  }
  start_watchdog (sv);
  watermarks_start (sv->ev);
  ev_run (sv->ev, 0);
}

int
server_run (const struct server_options *options, struct listeners *ls, struct exports *exports)
{
  struct server sv = { .options = *options, .listeners = ls };

  sv.ev = ev_default_loop (EVFLAG_AUTO | EVFLAG_NOENV);
  if (!sv.ev) {
    log_error ("cannot create an event loop");
    return -1;
  }
  pthread_mutex_init (&sv.lock, NULL);
  pthread_cond_init (&sv.called, NULL);
  signal (SIGPIPE, SIG_IGN);
  watch_signal (&sv, &sv.sigterm, SIGTERM);
  watch_signal (&sv, &sv.sigint, SIGINT);
  watch_signal (&sv, &sv.sighup, SIGHUP);
  if (options->tls)
    tls_watch (options->tls, sv.ev);
  ev_async_init (&sv.news, on_news);
  sv.news.data = &sv;
  ev_async_start (sv.ev, &sv.news);
  ev_init (&sv.pause, on_pause_over);
  ev_init (&sv.trim, on_trim);
  sv.pause.data = sv.trim.data = &sv;
  for (unsigned i = 0; i < ls->n; i++) {
    ev_io_init (&sv.acceptor[i], on_connection, ls->l[i].fd, EV_READ);
    sv.acceptor[i].data = &sv;
  }

  exports_set_sweep (exports, sweep, &sv);
  if (start_threads (&sv, exports) && options->confine (options->opaque) &&
      start_control (&sv, exports) && adopt (&sv))
    serve (&sv);
  else
    sv.status = -1;
  sv.ending = true;
  /* A command, or a reload, may be waiting for the loops, or for us. */
  be_deaf (&sv);
  control_stop (options->control);
  reload_end (options->reload);
  exports_set_sweep (exports, NULL, NULL);
  /* Whoever connects from now on is told at once that there is nobody here. */
  listen_close (ls);
  rooms_stop ();
  stop_threads (&sv);
  watermarks_stop ();
  ev_loop_destroy (sv.ev);
  pthread_cond_destroy (&sv.called);
  pthread_mutex_destroy (&sv.lock);
  return sv.status;
}
