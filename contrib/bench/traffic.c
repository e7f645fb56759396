/* SPDX-License-Identifier: BSD-3-Clause */

#include "traffic.h"
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* A receive buffer that stays in the second-level cache is cheaper than one that holds more. */
enum { RECV_SIZE = 256 << 10, SECTOR = 512, MAX_IOV = 1024 };

/* The longest block status request: what fits into 32 bits, in whole 64 KiB. */
#define STATUS_LENGTH UINT64_C (0xffff0000)

enum phase { WARM, MEASURE, STOP };

/* One request in flight.  Its index is the cookie. */
struct slot {
  uint8_t header[REQUEST_SIZE];
  uint16_t type;
  uint32_t length;
  uint64_t offset;
  uint64_t sent;     /* when */
  uint8_t *data;     /* this slot's own block, only if stamps are written or looked for */
  uint32_t filled;   /* bytes of the reply that came */
  uint64_t from, to; /* block status: the part of the range that this slot walks */
};

struct conn {
  int fd;
  struct worker *worker;
  struct slot *slots;
  unsigned in_flight;
  uint64_t left;           /* requests that may still be sent, when counting */
  uint64_t first, nblocks; /* this connection's blocks (all of them, for random) */
  uint64_t next;           /* block number for the ordered patterns */
  unsigned unflushed;

  /* what is to be sent: at most a header and a block for each slot */
  struct iovec *out;
  unsigned out_head, out_count;
  bool want_out; /* epoll watches for room */

  /* what was received and not yet looked at */
  uint8_t *in;
  size_t in_len;
  /* where in a reply we are: the payload that is still to come, and what it is for */
  enum { SKIP, DESCRIPTORS } payload;
  uint32_t payload_left;
  struct slot *current;
  bool completes;    /* the reply of current ends with this payload */
  bool skip_context; /* block status: the context id comes first */
};

struct worker {
  pthread_t thread;
  const struct traffic *t;
  struct run *run;
  struct conn *conns;
  unsigned nconns;
  uint64_t rng;
  uint64_t last; /* when the last reply came */
  /* Written by the worker alone, read by the main thread at both ends of the measurement. */
  _Atomic uint64_t requests, bytes, flushes, extents, passes;
  struct hist latency;
};

struct run {
  _Atomic int phase;
  const uint8_t *block; /* what is written */
};

static inline void
bump (_Atomic uint64_t *counter, uint64_t by)
{
  uint64_t v = atomic_load_explicit (counter, memory_order_relaxed);

  atomic_store_explicit (counter, v + by, memory_order_relaxed);
}

/* ---- stamps: each sector begins with a word made from its guest offset --------------- */

static uint64_t
stamp_of (uint64_t offset)
{
  return (offset + 1) * UINT64_C (0x9e3779b97f4a7c15);
}

static void
stamp_write (struct slot *s)
{
  uint64_t v;
  uint32_t i;

  for (i = 0; i + SECTOR <= s->length; i += SECTOR) {
    v = stamp_of (s->offset + i);
    memcpy (s->data + i, &v, sizeof v);
  }
}

static void
stamp_check (const struct slot *s)
{
  uint64_t v;
  uint32_t i;

  for (i = 0; i + SECTOR <= s->length; i += SECTOR) {
    memcpy (&v, s->data + i, sizeof v);
    if (v != stamp_of (s->offset + i))
      fatal ("--stamp: the sector at %ju does not carry its stamp: found 0x%016jx, wanted 0x%016jx",
             (uintmax_t)(s->offset + i), (uintmax_t)v, (uintmax_t)stamp_of (s->offset + i));
  }
}

/* ---- sending ------------------------------------------------------------------------------- */

static void
queue (struct conn *c, void *base, size_t len)
{
  struct iovec *v;

  /* Cannot be with a server that waits for a request before it answers it. */
  if (c->out_count == 2 * c->worker->t->depth)
    fatal ("the server answered a request that it has not received");
  v = &c->out[c->out_count++];
  v->iov_base = base;
  v->iov_len = len;
}

static uint64_t
pick_block (struct conn *c)
{
  const struct traffic *t = c->worker->t;
  uint64_t b;

  if (t->pattern == PATTERN_RANDOM)
    return (uint64_t)(((unsigned __int128)rng_next (&c->worker->rng) * c->nblocks) >> 64);
  b = c->next++;
  if (c->next == c->nblocks)
    c->next = 0;
  if (t->pattern == PATTERN_PERMUTE)
    b = permute (b, c->nblocks, t->seed);
  return c->first + b;
}

/* Sends the next request of slot S, unless the run is over for it. */
static void
issue (struct conn *c, struct slot *s, uint64_t now)
{
  struct worker *w = c->worker;
  const struct traffic *t = w->t;
  unsigned weights = t->read_weight + t->write_weight;

  if (t->count) {
    if (!c->left)
      return;
    c->left--;
  } else if (atomic_load_explicit (&w->run->phase, memory_order_relaxed) == STOP)
    return;

  if (t->status) {
    s->type = NBD_CMD_BLOCK_STATUS;
    s->length = (uint32_t)(s->to - s->offset < STATUS_LENGTH ? s->to - s->offset : STATUS_LENGTH);
  } else if (t->flush_every && c->unflushed == t->flush_every) {
    c->unflushed = 0;
    s->type = NBD_CMD_FLUSH;
    s->offset = s->length = 0;
  } else {
    s->type = NBD_CMD_READ;
    if (!t->read_weight || (t->write_weight && rng_next (&w->rng) % weights >= t->read_weight)) {
      s->type = NBD_CMD_WRITE;
      c->unflushed++;
    }
    s->offset = t->start + pick_block (c) * t->stride;
    s->length = t->block;
  }

  s->filled = 0;
  s->sent = now;
  put16 (s->header + 6, s->type);
  put64 (s->header + 16, s->offset);
  put32 (s->header + 24, s->length);
  queue (c, s->header, REQUEST_SIZE);
  if (s->type == NBD_CMD_WRITE) {
    if (t->stamp)
      stamp_write (s);
    queue (c, t->stamp ? s->data : (uint8_t *)w->run->block, s->length);
  }
  c->in_flight++;
}

/* Sends what is queued, as far as there is room. */
static void
flush_out (struct conn *c)
{
  struct msghdr msg = { 0 };
  struct iovec *v;
  ssize_t n;

  while (c->out_head < c->out_count) {
    msg.msg_iov = c->out + c->out_head;
    msg.msg_iovlen = c->out_count - c->out_head;
    if (msg.msg_iovlen > MAX_IOV)
      msg.msg_iovlen = MAX_IOV;
    n = sendmsg (c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0 && errno == EAGAIN)
      break;
    if (n < 0)
      fatal ("sending to the server: %s", strerror (errno));
    while (n > 0) {
      v = &c->out[c->out_head];
      if ((size_t)n < v->iov_len) {
        v->iov_base = (uint8_t *)v->iov_base + n;
        v->iov_len -= (size_t)n;
        break;
      }
      n -= (ssize_t)v->iov_len;
      c->out_head++;
    }
  }
  /* A slot's next request is queued only when its last was answered, so what was sent is done
   * with, and the live tail fits into the front. */
  c->out_count -= c->out_head;
  memmove (c->out, c->out + c->out_head, c->out_count * sizeof *c->out);
  c->out_head = 0;
}

/* ---- receiving ----------------------------------------------------------------------------- */

static void
complete (struct conn *c, struct slot *s, uint64_t now)
{
  struct worker *w = c->worker;

  c->in_flight--;
  if (atomic_load_explicit (&w->run->phase, memory_order_relaxed) == MEASURE) {
    hist_add (&w->latency, now - s->sent);
    bump (&w->requests, 1);
    if (s->type == NBD_CMD_FLUSH)
      bump (&w->flushes, 1);
    else if (s->type != NBD_CMD_BLOCK_STATUS)
      bump (&w->bytes, s->length);
  }
  if (s->type == NBD_CMD_READ && w->t->stamp)
    stamp_check (s);
  if (s->type == NBD_CMD_BLOCK_STATUS) {
    if (!s->filled)
      fatal ("block status at %ju: a reply without an extent", (uintmax_t)s->offset);
    s->offset += s->filled;
    if (s->offset < s->to && w->t->count)
      c->left++; /* counted are walks over the slot's part */
    if (s->offset >= s->to) {
      s->offset = s->from;
      bump (&w->passes, 1);
    }
  }
  issue (c, s, now);
}

static struct slot *
slot_of (struct conn *c, uint64_t cookie)
{
  if (cookie >= c->worker->t->depth)
    fatal ("a reply with the cookie %ju, which was never sent", (uintmax_t)cookie);
  return &c->slots[cookie];
}

/* Looks at the header of a reply at P, of which N bytes are there.  Returns how long it is, or 0
 * if more must come first. */
static size_t
reply_header (struct conn *c, const uint8_t *p, size_t n)
{
  uint16_t type;
  uint32_t magic, error;
  uint64_t at;

  if (n < SIMPLE_REPLY_SIZE)
    return 0;
  magic = get32 (p);
  c->current = slot_of (c, get64 (p + 8));
  c->payload = SKIP;
  if (magic == NBD_SIMPLE_REPLY) {
    error = get32 (p + 4);
    if (error)
      fatal ("command %u at %ju: the server's error is %u", c->current->type,
             (uintmax_t)c->current->offset, error);
    c->completes = true;
    c->payload_left = c->current->type == NBD_CMD_READ ? c->current->length : 0;
    return SIMPLE_REPLY_SIZE;
  }
  if (magic != NBD_CHUNK)
    fatal ("a reply with the magic 0x%x, which is neither simple nor structured", magic);
  if (n < CHUNK_SIZE)
    return 0;
  type = get16 (p + 6);
  c->payload_left = get32 (p + 16);
  c->completes = get16 (p + 4) & NBD_CHUNK_DONE;
  if (type & NBD_CHUNK_ERROR_BIT)
    fatal ("command %u at %ju: the server's error chunk is 0x%x", c->current->type,
           (uintmax_t)c->current->offset, type);
  if (type == NBD_CHUNK_OFFSET_DATA) {
    if (n < CHUNK_SIZE + 8)
      return 0;
    at = get64 (p + CHUNK_SIZE) - c->current->offset;
    if (c->payload_left < 8 || at > c->current->length ||
        c->payload_left - 8 > c->current->length - at)
      fatal ("a data chunk of %u bytes that is not inside of the %u that were asked for",
             c->payload_left, c->current->length);
    c->current->filled = (uint32_t)at;
    c->payload_left -= 8;
    return CHUNK_SIZE + 8;
  }
  if (type == NBD_CHUNK_BLOCK_STATUS) {
    if (c->current->type != NBD_CMD_BLOCK_STATUS || c->payload_left % 8 != 4)
      fatal ("a block status chunk of %u bytes in reply to command %u", c->payload_left,
             c->current->type);
    c->payload = DESCRIPTORS;
    c->skip_context = true;
  }
  return CHUNK_SIZE;
}

/* Consumes payload at P.  Returns how much of it; 0 if more must come first. */
static size_t
reply_payload (struct conn *c, const uint8_t *p, size_t n)
{
  struct slot *s = c->current;

  if (c->payload == DESCRIPTORS) {
    if (c->skip_context) {
      if (n < 4)
        return 0;
      c->skip_context = false;
      return 4;
    }
    if (n < 8)
      return 0;
    s->filled += get32 (p);
    bump (&c->worker->extents, 1);
    return 8;
  }
  if (n > c->payload_left)
    n = c->payload_left;
  if (s->data && s->type == NBD_CMD_READ) {
    memcpy (s->data + s->filled, p, n);
    s->filled += (uint32_t)n;
  }
  return n;
}

/* Looks at all that was received. */
static void
parse (struct conn *c, uint64_t now)
{
  const uint8_t *p = c->in;
  size_t left = c->in_len, used;

  for (;;) {
    if (!c->current) {
      used = reply_header (c, p, left);
      if (!used) {
        c->current = NULL;
        break;
      }
    } else {
      used = reply_payload (c, p, left);
      if (!used && c->payload_left)
        break;
      c->payload_left -= (uint32_t)used;
    }
    p += used;
    left -= used;
    if (!c->payload_left) {
      if (c->completes)
        complete (c, c->current, now);
      c->current = NULL;
    }
  }
  memmove (c->in, p, left);
  c->in_len = left;
}

/* Receives once and handles what came.  False if nothing was there. */
static bool
receive (struct conn *c, int flags)
{
  ssize_t n;

  n = recv (c->fd, c->in + c->in_len, RECV_SIZE - c->in_len, flags);
  if (n < 0 && (errno == EINTR || (errno == EAGAIN && (flags & MSG_DONTWAIT))))
    return false;
  if (n < 0)
    fatal ("receiving from the server: %s",
           errno == EAGAIN ? "no reply within a minute" : strerror (errno));
  if (n == 0)
    fatal ("the server closed the connection");
  c->in_len += (size_t)n;
  c->worker->last = now_ns ();
  parse (c, c->worker->last);
  return true;
}

/* ---- one thread ---------------------------------------------------------------------------- */

static void
start_slots (struct conn *c)
{
  unsigned i;

  for (i = 0; i < c->worker->t->depth; i++)
    issue (c, &c->slots[i], now_ns ());
}

/* One connection: no epoll, just a receive that sleeps. */
static void
drive_one (struct conn *c)
{
  bool spin = c->worker->t->spin;
  struct pollfd p = { .fd = c->fd, .events = POLLIN | POLLOUT };

  start_slots (c);
  flush_out (c);
  while (c->in_flight) {
    if (c->out_count && !spin)
      poll (&p, 1, -1);
    receive (c, c->out_count || spin ? MSG_DONTWAIT : 0);
    if (c->out_count)
      flush_out (c);
  }
}

static void
watch (int ep, int op, struct conn *c)
{
  struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };

  c->want_out = c->out_count;
  if (c->want_out)
    ev.events |= EPOLLOUT;
  if (epoll_ctl (ep, op, c->fd, &ev) < 0)
    fatal ("epoll_ctl: %s", strerror (errno));
}

static void
drive_many (struct worker *w)
{
  struct epoll_event events[64];
  struct conn *c;
  unsigned i, live = w->nconns;
  int ep, n, k;

  ep = epoll_create1 (EPOLL_CLOEXEC);
  if (ep < 0)
    fatal ("epoll_create1: %s", strerror (errno));
  for (i = 0; i < w->nconns; i++) {
    start_slots (&w->conns[i]);
    flush_out (&w->conns[i]);
    watch (ep, EPOLL_CTL_ADD, &w->conns[i]);
    if (!w->conns[i].in_flight)
      live--;
  }
  while (live) {
    n = epoll_wait (ep, events, 64, w->t->spin ? 0 : 60000);
    if (n == 0 && !w->t->spin)
      fatal ("receiving from the server: no reply within a minute");
    for (k = 0; k < n; k++) {
      c = events[k].data.ptr;
      if (events[k].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        receive (c, MSG_DONTWAIT);
      if (c->out_count)
        flush_out (c);
      if (c->want_out != (c->out_count > 0))
        watch (ep, EPOLL_CTL_MOD, c);
      if (!c->in_flight) {
        epoll_ctl (ep, EPOLL_CTL_DEL, c->fd, NULL);
        live--;
      }
    }
  }
  close (ep);
}

static void *
worker_main (void *arg)
{
  struct worker *w = arg;

  if (w->nconns == 1)
    drive_one (w->conns);
  else
    drive_many (w);
  return NULL;
}

/* ---- a run --------------------------------------------------------------------------------- */

static void
prepare_slots (struct conn *c, const struct traffic *t, unsigned conn_index, uint64_t end)
{
  uint64_t total = t->connections * (uint64_t)t->depth, part;
  struct slot *s;
  unsigned i;

  /* A part of the range for each walker, in whole MiB but for the last. */
  part = (((end - t->start) / total) >> 20) << 20;
  c->slots = xcalloc (t->depth, sizeof *c->slots);
  for (i = 0; i < t->depth; i++) {
    s = &c->slots[i];
    put32 (s->header, NBD_REQUEST);
    put64 (s->header + 8, i);
    if (t->stamp) {
      s->data = xcalloc (1, t->block);
      memcpy (s->data, c->worker->run->block, t->block);
    }
    if (t->status) {
      uint64_t k = conn_index * (uint64_t)t->depth + i;

      s->from = s->offset = t->start + k * part;
      s->to = k + 1 == total ? end : s->from + part;
      if (s->from >= s->to)
        fatal ("--op status: %ju walkers are too many for this range", (uintmax_t)total);
    }
  }
}

static void
prepare_conn (struct conn *c, const struct traffic *t, unsigned index)
{
  struct export e;
  uint64_t end, nblocks, share;

  c->fd = client_connect_patiently (&t->target);
  client_handshake (c->fd, &t->target, &e);
  end = t->end && t->end < e.size ? t->end : e.size;
  if (t->start >= end || end - t->start < t->block)
    fatal ("the export of %ju bytes has no block of %u bytes from %ju on", (uintmax_t)e.size,
           t->block, (uintmax_t)t->start);
  nblocks = (end - t->start - t->block) / t->stride + 1;
  if (t->pattern == PATTERN_RANDOM)
    c->nblocks = nblocks;
  else {
    share = nblocks / t->connections;
    if (!share)
      fatal ("%ju blocks are not enough for %u connections", (uintmax_t)nblocks, t->connections);
    c->first = index * share;
    c->nblocks = share;
  }
  c->out = xcalloc (2 * (size_t)t->depth, sizeof *c->out);
  c->in = xcalloc (1, RECV_SIZE);
  prepare_slots (c, t, index, end);
  if (t->count)
    c->left = t->status ? t->count * t->depth
                        : t->count / t->connections + (index < t->count % t->connections);
}

/* Bytes that do not deflate; or, in every other sector, letters of a small alphabet (four bits of
 * information a byte), and between them repetitions of the sector before: about a third remains,
 * and inflating has both of its kinds of work to do. */
static uint8_t *
make_block (const struct traffic *t)
{
  uint64_t rng = t->seed ^ 0xb10c, v;
  uint8_t *p = xcalloc (1, t->block);
  uint32_t i;

  for (i = 0; i + 8 <= t->block; i += 8) {
    v = rng_next (&rng);
    if (t->compressible)
      v = (v & UINT64_C (0x0f0f0f0f0f0f0f0f)) | UINT64_C (0x6060606060606060);
    if (t->compressible && (i / SECTOR) % 2 && i % 64)
      memcpy (&v, p + i - SECTOR, sizeof v);
    memcpy (p + i, &v, sizeof v);
  }
  return p;
}

/* What the workers counted so far, without their latencies. */
static void
sum (const struct worker *w, unsigned n, const struct traffic *t, struct traffic_result *r)
{
  uint64_t passes = 0;
  unsigned i;

  r->requests = r->bytes = r->flushes = r->extents = 0;
  for (i = 0; i < n; i++) {
    r->requests += w[i].requests;
    r->bytes += w[i].bytes;
    r->flushes += w[i].flushes;
    r->extents += w[i].extents;
    passes += w[i].passes;
  }
  r->walks = (double)passes / ((double)t->connections * t->depth);
}

static void
measure (struct worker *w, unsigned nworkers, const struct traffic *t, struct run *run,
         struct traffic_result *r)
{
  uint64_t begin, server_cpu = 0, own_cpu;
  struct traffic_result before;
  unsigned i;
  int err;

  run->phase = t->warm_ns ? WARM : MEASURE;
  begin = now_ns ();
  own_cpu = own_cpu_ns ();
  if (t->pid)
    server_cpu = process_cpu_ns (t->pid);
  for (i = 0; i < nworkers; i++) {
    err = pthread_create (&w[i].thread, NULL, worker_main, &w[i]);
    if (err)
      fatal ("pthread_create: %s", strerror (err));
  }
  memset (&before, 0, sizeof before);
  if (t->warm_ns) {
    sleep_ns (t->warm_ns);
    begin = now_ns ();
    own_cpu = own_cpu_ns ();
    if (t->pid)
      server_cpu = process_cpu_ns (t->pid);
    sum (w, nworkers, t, &before);
    run->phase = MEASURE;
  }
  if (!t->count) {
    sleep_ns (t->run_ns);
    /* Counters first: what the workers finish from here on belongs to no measurement. */
    sum (w, nworkers, t, r);
    r->elapsed_ns = now_ns () - begin;
    r->own_cpu_ns = own_cpu_ns () - own_cpu;
    if (t->pid)
      r->server_cpu_ns = process_cpu_ns (t->pid) - server_cpu;
    run->phase = STOP;
  }
  for (i = 0; i < nworkers; i++)
    pthread_join (w[i].thread, NULL);
  if (t->count) {
    sum (w, nworkers, t, r);
    r->elapsed_ns = 0;
    for (i = 0; i < nworkers; i++)
      if (w[i].last - begin > r->elapsed_ns)
        r->elapsed_ns = w[i].last - begin;
    r->own_cpu_ns = own_cpu_ns () - own_cpu;
    if (t->pid)
      r->server_cpu_ns = process_cpu_ns (t->pid) - server_cpu;
  }
  r->extents -= before.extents;
  r->walks -= before.walks;
  memset (&r->latency, 0, sizeof r->latency);
  for (i = 0; i < nworkers; i++)
    hist_merge (&r->latency, &w[i].latency);
}

void
traffic_run (const struct traffic *t, struct traffic_result *r)
{
  unsigned nworkers = t->threads < t->connections ? t->threads : t->connections, i, k, at = 0;
  struct run run = { .phase = WARM };
  struct worker *workers = xcalloc (nworkers, sizeof *workers);
  struct conn *conns = xcalloc (t->connections, sizeof *conns);
  uint8_t *block = make_block (t);

  run.block = block;
  for (i = 0; i < nworkers; i++) {
    struct worker *w = &workers[i];

    w->t = t;
    w->run = &run;
    w->rng = t->seed * 1000003 + i;
    w->conns = conns + at;
    w->nconns = t->connections / nworkers + (i < t->connections % nworkers);
    at += w->nconns;
    for (k = 0; k < w->nconns; k++) {
      w->conns[k].worker = w;
      prepare_conn (&w->conns[k], t, (unsigned)(w->conns + k - conns));
    }
  }
  measure (workers, nworkers, t, &run, r);

  for (i = 0; i < t->connections; i++) {
    client_close (conns[i].fd);
    for (k = 0; k < t->depth; k++)
      free (conns[i].slots[k].data);
    free (conns[i].slots);
    free (conns[i].out);
    free (conns[i].in);
  }
  free (conns);
  free (workers);
  free (block);
}
