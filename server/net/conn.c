/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "conn.h"
#include "listen.h"
#include "log.h"
#include "room.h"

/* What one turn may cost, in the units of session.budget: some hundred microseconds. */
#define TURN_BUDGET (2 * 1024 * 1024)

/* While a payload longer than this is received straight into its own buffer, little is read beyond
 * its end, lest most of the next one take the detour through the loop's receive buffer. */
#define LONG_PAYLOAD (64 * 1024)
#define AFTER_LONG   4096

#define SEND_IOV 128

/* Seconds between two looks whether a client that is not read from has gone. */
#define HANGUP_LOOK 1.0

/* What a client on this machine finds in its socket before it has to wait for us. */
#define SNDBUF (4 * 1024 * 1024)

/* Seconds that a client may take to receive its last replies when the connection is to end. */
#define LINGER 5.0

#define conn_of_session(s) ((struct conn *)((char *)(s)-offsetof (struct conn, session)))

/* ---- life ------------------------------------------------------------------------------------ */

static void hold (struct conn *c, const uint8_t *p, size_t n);
static void on_readable (struct ev_loop *ev, ev_io *w, int revents);
static void on_writable (struct ev_loop *ev, ev_io *w, int revents);
static void on_limit (struct ev_loop *ev, ev_timer *w, int revents);
static void on_pause_over (struct ev_loop *ev, ev_timer *w, int revents);
static void on_idle (struct ev_loop *ev, ev_timer *w, int revents);
static void on_hangup_look (struct ev_loop *ev, ev_timer *w, int revents);

struct conn *
conn_new (struct loop *l, int fd, char *peer)
{
  struct conn *c = calloc (1, sizeof *c);
  if (!c)
    return NULL;
  c->loop = l;
  transport_init (&c->transport, fd);
  c->peer = peer;
  ev_io_init (&c->reader, on_readable, fd, EV_READ);
  ev_io_init (&c->writer, on_writable, fd, EV_WRITE);
  ev_init (&c->limit, on_limit);
  ev_init (&c->pause, on_pause_over);
  ev_init (&c->idle, on_idle);
  ev_init (&c->hangup, on_hangup_look);
  return c;
}

static void
notify (struct session *s)
{
  struct conn *c = conn_of_session (s);
  if (c->is_dirty)
    return;
  c->is_dirty = true;
  c->next_dirty = c->loop->dirty;
  c->loop->dirty = c;
}

static void
set_limit (struct conn *c, double seconds)
{
  ev_timer_stop (c->loop->ev, &c->limit);
  c->limited = seconds > 0;
  if (c->limited) {
    ev_timer_set (&c->limit, seconds, 0.);
    ev_timer_start (c->loop->ev, &c->limit);
  }
}

/* TCP sizes its buffers itself, and better; other sockets stay as small as they were made. */
static void
enlarge_send_buffer (int fd)
{
  int domain = AF_UNSPEC, size = SNDBUF;
  socklen_t len = sizeof domain;

  if (getsockopt (fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX)
    setsockopt (fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

static void
begin_session (struct conn *c)
{
  struct saved_session *saved = c->saved;
  uint64_t peer = peer_identity (c->transport.fd);

  if (!saved) {
    session_init (&c->session, &c->loop->shard, notify);
    c->session.peer = peer;
    return;
  }
  if (session_restore (&c->session, &c->loop->shard, notify, peer, saved) < 0)
    session_drop (&c->session);
  else if (saved->unread > 0)
    hold (c, saved->bytes, saved->unread);
  c->saved = NULL;
  saved_session_free (saved);
  free (saved);
}

void
conn_start (struct conn *c)
{
  struct loop *l = c->loop;

  c->next = l->conns;
  c->prev = &l->conns;
  if (c->next)
    c->next->prev = &c->next;
  l->conns = c;
  enlarge_send_buffer (c->transport.fd);
  begin_session (c);
  c->client = (struct client){ .fd = c->transport.fd, .loop = l, .session = &c->session };
  clients_add (l->options.clients, &c->client);
  set_limit (c, l->options.handshake_limit);
  c->started = c->active = ev_now (l->ev);
  if (l->options.idle_limit > 0) {
    ev_timer_set (&c->idle, l->options.idle_limit, 0.);
    ev_timer_start (l->ev, &c->idle);
  }
  conn_step (c);
}

/* Frees C if it is closed and nothing refers to it any more: not before that is it gone for those
 * who count clients, for its requests are still at work on the image. */
static void
free_if_done (struct conn *c)
{
  struct loop *l = c->loop;

  if (c->transport.fd >= 0 || c->session.inflight > 0 || c->is_dirty || c->is_runnable)
    return;
  bool negotiated = c->session.transmission;
  /* It is no client of its export any more by the time that nobody sees it in the list. */
  struct export *x = c->session.export ? export_ref (c->session.export) : NULL;
  session_destroy (&c->session);
  clients_remove (l->options.clients, &c->client);
  if (x)
    export_put (x);
  *c->prev = c->next;
  if (c->next)
    c->next->prev = c->prev;
  free (c->peer);
  free (c);
  l->options.closed (l->options.opaque, negotiated);
  loop_conn_gone (l);
}

/* Who, which export, how much, how long. */
static void
log_summary (const struct conn *c)
{
  const struct session *s = &c->session;
  double seconds = ev_now (c->loop->ev) - c->started;

  if (s->transmission)
    log_info ("%s: disconnected: export \"%s\", %" PRIu64 " bytes read, %" PRIu64
              " bytes written, %" PRIu64 " requests, %.3f seconds",
              c->peer, s->export->name, s->bytes_read, s->bytes_written, s->n_requests, seconds);
  else
    log_info ("%s: disconnected: no export chosen, %.3f seconds", c->peer, seconds);
}

static void
close_conn (struct conn *c)
{
  struct ev_loop *ev = c->loop->ev;

  if (c->transport.fd >= 0) {
    ev_io_stop (ev, &c->reader);
    ev_io_stop (ev, &c->writer);
    ev_timer_stop (ev, &c->limit);
    ev_timer_stop (ev, &c->pause);
    ev_timer_stop (ev, &c->idle);
    ev_timer_stop (ev, &c->hangup);
    clients_closed (c->loop->options.clients, &c->client);
    transport_close (&c->transport);
    if (c->session.dropped && !c->session.transmission)
      atomic_fetch_add (&stats_server.handshake_errors, 1);
    session_drop (&c->session);
    buf_free (&c->loop->shard.cache, c->held);
    c->held = NULL;
    if (c->peer && !c->handed)
      log_summary (c);
  }
  free_if_done (c);
}

static void
on_limit (struct ev_loop *ev, ev_timer *w, int revents)
{
  struct conn *c = (struct conn *)((char *)w - offsetof (struct conn, limit));

  (void)ev;
  (void)revents;
  if (c->handed || c->session.inflight > c->session.parked.count) {
    /* The server's own slowness: it ends by itself, and then the client has its time. */
    set_limit (c, LINGER);
    return;
  }
  if (!c->session.transmission)
    atomic_fetch_add (&stats_server.handshake_timeouts, 1);
  if (c->peer)
    log_info ("%s: %s took too long", c->peer,
              c->session.transmission ? "receiving the last replies" : "the handshake");
  close_conn (c);
}

static void
on_idle (struct ev_loop *ev, ev_timer *w, int revents)
{
  struct conn *c = (struct conn *)((char *)w - offsetof (struct conn, idle));
  double limit = c->loop->options.idle_limit;
  double rest = c->active + limit - ev_now (ev);

  (void)revents;
  if (rest <= 0 && c->session.inflight == 0 && !c->handed) {
    if (c->peer)
      log_info ("%s: nothing was asked for in %.0f seconds", c->peer, limit);
    close_conn (c);
    return;
  }
  ev_timer_set (w, rest > 0 ? rest : limit, 0.);
  ev_timer_start (ev, w);
}

/* Requests may take long, or wait for space on the disk for long, and while there are many nothing
 * is read: so it is looked whether the client is still there. */
static void
look_for_hangup (struct conn *c)
{
  const struct session *s = &c->session;

  if (!s->export || s->ending || ev_is_active (&c->hangup))
    return;
  ev_timer_set (&c->hangup, HANGUP_LOOK, 0.);
  ev_timer_start (c->loop->ev, &c->hangup);
}

static void
on_hangup_look (struct ev_loop *ev, ev_timer *w, int revents)
{
  struct conn *c = (struct conn *)((char *)w - offsetof (struct conn, hangup));
  struct pollfd p = { .fd = c->transport.fd, .events = POLLRDHUP };

  (void)ev;
  (void)revents;
  if (c->frozen || session_state (&c->session) != SESSION_WAIT)
    return;
  if (poll (&p, 1, 0) > 0) {
    session_hang_up (&c->session);
    if (c->session.export->room && room_waiting (c->session.export->room) > 0)
      session_eof (&c->session);
  }
  conn_step (c);
}

static void
on_pause_over (struct ev_loop *ev, ev_timer *w, int revents)
{
  (void)ev;
  (void)revents;
  conn_run ((struct conn *)((char *)w - offsetof (struct conn, pause)));
}

/* C has input left over that it can go on with: in its next turn, or when the export's rate allows.
 */
static void
go_on_later (struct conn *c)
{
  double wait = session_throttle (&c->session);

  if (wait <= 0)
    loop_run_later (c->loop, c);
  else if (!ev_is_active (&c->pause)) {
    ev_timer_set (&c->pause, wait, 0.);
    ev_timer_start (c->loop->ev, &c->pause);
  }
}

/* STARTTLS has been acknowledged.  Plain text beyond it is not the client's, or not of one that
 * keeps to the protocol: it must not pass for what the client says under TLS. */
static void
start_tls (struct conn *c)
{
  /* Refusals and failures are told with a name, also where connections are not. */
  if (!c->peer)
    c->peer = peer_name (c->transport.fd);
  struct tls_session *tls = c->held ? NULL : tls_start (c->loop->shard.tls, &c->transport, c->peer);

  if (tls) {
    session_secured (&c->session, tls);
    return;
  }
  if (c->held)
    log_warning ("%s: more plain text came after NBD_OPT_STARTTLS, so it is disconnected",
                 c->peer ? c->peer : "a client");
  session_drop (&c->session);
}

/* ---- output ---------------------------------------------------------------------------------- */

static void
send_queued (struct conn *c)
{
  struct outq *q = &c->session.out;

  c->transport.want_read = false;
  while (q->bytes > 0) {
    struct iovec iov[SEND_IOV];
    ssize_t n = transport_send (&c->transport, iov, outq_iov (q, iov, SEND_IOV));
    if (n < 0) {
      if (errno == EINTR)
        continue;
      if (errno == EFAULT && q->loans->end > 0) {
        /* Borrowed memory has vanished: the file was cut, or its disk has failed. */
        session_settle (&c->session);
        continue;
      }
      if (errno != EAGAIN)
        session_drop (&c->session);
      return;
    }
    outq_sent (q, &c->loop->shard.cache, (size_t)n);
  }
}

static void
watch (struct ev_loop *ev, ev_io *w, bool on)
{
  if (on && !ev_is_active (w))
    ev_io_start (ev, w);
  else if (!on && ev_is_active (w))
    ev_io_stop (ev, w);
}

void
conn_step (struct conn *c)
{
  struct session *s = &c->session;
  struct loop *l = c->loop;

  if (c->transport.fd < 0) {
    free_if_done (c);
    return;
  }
  if (c->handed)
    return;
  send_queued (c);
  session_end_turn (s);
  if (!c->frozen)
    session_resume (s);
  shard_submit (&l->shard);

  enum session_state state = session_state (s);
  if (state == SESSION_TLS && !c->frozen && (c->held || s->out.bytes == 0)) {
    start_tls (c);
    state = session_state (s);
  }
  if (c->draining && !c->frozen && s->inflight == 0 && state == SESSION_READ) {
    session_eof (s);
    state = session_state (s);
  }
  if (state == SESSION_DROP || (state == SESSION_END && s->out.bytes == 0)) {
    close_conn (c);
    return;
  }
  if (s->transmission && !c->client.export)
    clients_chose (l->options.clients, &c->client, s->export, s->tls != NULL);
  if (state == SESSION_END && !c->limited)
    set_limit (c, LINGER);
  else if (c->limited && s->transmission && !s->ending && !c->draining)
    set_limit (c, 0);
  if (c->frozen) {
    watch (l->ev, &c->reader, false);
    watch (l->ev, &c->writer, s->out.bytes > 0);
    return;
  }
  if (state == SESSION_READY)
    go_on_later (c);
  else if (state == SESSION_READ && transport_pending (&c->transport))
    loop_run_later (l, c);
  else if (state == SESSION_WAIT)
    look_for_hangup (c);
  watch (l->ev, &c->reader, state == SESSION_READ || c->transport.want_read);
  watch (l->ev, &c->writer, s->out.bytes > 0 || c->transport.want_write);
}

static void receive (struct conn *c);

static void
on_writable (struct ev_loop *ev, ev_io *w, int revents)
{
  struct conn *c = (struct conn *)((char *)w - offsetof (struct conn, writer));

  (void)ev;
  (void)revents;
  if (!c->frozen && c->transport.want_write && session_state (&c->session) == SESSION_READ)
    receive (c); /* it was waiting for that */
  else
    conn_step (c);
}

/* ---- input ----------------------------------------------------------------------------------- */

/* Keeps the N bytes at P, which the session has not taken in. */
static void
hold (struct conn *c, const uint8_t *p, size_t n)
{
  c->held = buf_alloc (&c->loop->shard.cache, n);
  if (!c->held) {
    session_drop (&c->session);
    return;
  }
  memcpy (c->held->end, p, n);
  c->held->end += n;
}

static void
begin_turn (struct conn *c)
{
  c->session.budget = TURN_BUDGET;
  session_begin_turn (&c->session, transport_takes_foreign (&c->transport));
}

/* Takes in what it can of the N bytes at P.  What is answered meanwhile is sent in slices. */
static size_t
take_in (struct conn *c, const uint8_t *p, size_t n)
{
  size_t used = session_input (&c->session, p, n);

  while (session_next_slice (&c->session)) {
    send_queued (c);
    used += session_input (&c->session, p + used, n - used);
  }
  return used;
}

void
conn_run (struct conn *c)
{
  struct buf *b = c->held;

  if (c->transport.fd < 0) {
    free_if_done (c);
    return;
  }
  if (c->frozen)
    return;
  if (session_state (&c->session) == SESSION_READ) {
    receive (c); /* the transport has something pending */
    return;
  }
  begin_turn (c);
  if (b) {
    b->start += take_in (c, b->start, (size_t)(b->end - b->start));
    /* That may have dropped the session, but c->held is ours. */
    if (b->start == b->end) {
      c->held = NULL;
      buf_free (&c->loop->shard.cache, b);
    }
  } else
    take_in (c, NULL, 0);
  conn_step (c);
}

/* Receives once, and takes it in. */
static void
receive (struct conn *c)
{
  struct session *s = &c->session;
  struct loop *l = c->loop;
  struct iovec iov[2];
  int n_iov = 0;
  uint8_t *payload;
  size_t direct = session_payload (s, &payload);
  size_t held = 0;
  /* What is not taken in at once has to be kept. */
  size_t rx_size = buf_fits (&l->shard.cache, LOOP_RX_SIZE) ? LOOP_RX_SIZE : LOW_INPUT;

  if (c->held) {
    /* The beginning of a header: the reader runs only when no more than that is left. */
    held = (size_t)(c->held->end - c->held->start);
    assert (held < LOW_INPUT / 2);
    memcpy (l->rx, c->held->start, held);
    rx_size -= held;
  }
  if (direct > 0) {
    iov[n_iov++] = (struct iovec){ payload, direct };
    if (s->payload->cap > LONG_PAYLOAD && rx_size > AFTER_LONG)
      rx_size = AFTER_LONG;
  }
  iov[n_iov++] = (struct iovec){ l->rx + held, rx_size };

  c->transport.want_write = false;
  ssize_t n = transport_receive (&c->transport, iov, n_iov);
  if (n < 0) {
    if (errno != EAGAIN && errno != EINTR)
      session_drop (s);
    conn_step (c);
    return;
  }
  buf_free (&l->shard.cache, c->held);
  c->held = NULL;
  c->active = ev_now (l->ev);
  begin_turn (c);
  if (n == 0) {
    session_hang_up (s);
    session_eof (s);
  } else {
    size_t got = (size_t)n;
    if (got < direct)
      direct = got;
    if (direct > 0)
      session_payload_received (s, direct);
    size_t total = held + got - direct;
    size_t used = take_in (c, l->rx, total);
    if (used < total)
      hold (c, l->rx + used, total - used);
  }
  conn_step (c);
}

static void
on_readable (struct ev_loop *ev, ev_io *w, int revents)
{
  struct conn *c = (struct conn *)((char *)w - offsetof (struct conn, reader));

  (void)ev;
  (void)revents;
  if (!c->frozen && session_state (&c->session) == SESSION_READ)
    receive (c);
  else
    conn_step (c); /* a send was waiting for it */
}

/* ---- takeover -------------------------------------------------------------------------------- */

void
conn_freeze (struct conn *c)
{
  c->frozen = true;
  session_conclude (&c->session);
  conn_step (c);
}

void
conn_thaw (struct conn *c)
{
  c->frozen = c->handed = false;
  if (c->session.export && !c->session.export->img)
    session_drop (&c->session); /* it could not be opened again */
  if (!c->draining && conn_is_to_leave (c))
    conn_drain (c); /* that was put off */
  else
    conn_step (c);
}

bool
conn_is_still (const struct conn *c)
{
  const struct session *s = &c->session;

  assert (c->frozen);
  return !c->is_dirty && !s->in_turn && s->inflight == s->parked.count;
}

int
conn_save (struct conn *c, struct saved_session *saved, struct q_error *err)
{
  const struct buf *b = c->held;

  assert (conn_is_still (c) && c->transport.fd >= 0);
  if (c->draining) {
    snprintf (err->text, sizeof err->text, "a connection is being ended");
    return -ENOTSUP;
  }
  int r = session_save (&c->session, b ? b->start : NULL, b ? (size_t)(b->end - b->start) : 0,
                        saved, err);
  if (r == 0) {
    c->handed = true;
    watch (c->loop->ev, &c->reader, false);
    watch (c->loop->ev, &c->writer, false);
  }
  return r;
}

void
conn_release (struct conn *c)
{
  if (c->handed) {
    close_conn (c);
    return;
  }
  /* What has been answered is sent, and what has not been is for the client to ask again, once it
   * has connected again: an error would be the guest's.  A long read that is under way has no image
   * any more. */
  c->frozen = false;
  if (c->session.parked.count > 0)
    session_drop (&c->session);
  else
    session_eof (&c->session);
  conn_step (c);
}

bool
conn_is_to_leave (const struct conn *c)
{
  return atomic_load (&c->client.leave) ||
         (c->session.export && atomic_load (&c->session.export->leaving));
}

void
conn_drain (struct conn *c)
{
  if (c->handed)
    return; /* conn_thaw looks again */
  c->draining = true;
  if (c->transport.fd < 0)
    return; /* it has gone, and is freed when its requests are done: no timer is to outlive it */
  session_stop (&c->session);
  set_limit (c, LINGER);
  /* Requests that are already here get an answer, if only that we are leaving. */
  if (ev_is_active (&c->reader))
    on_readable (c->loop->ev, &c->reader, EV_READ);
  else
    conn_step (c);
}
