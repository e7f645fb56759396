/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-bench-bareloop: the least that an NBD server can do.
 *
 * One thread, one epoll, one file that is mapped into memory, no format.  A wake-up receives all
 * that has come, and answers it with one send whose vectors point into the mapping.  It shows what
 * the machine and the socket allow, and so what a real server's format, threads and safety cost.
 *
 * It is no server to use: a file that is cut short kills it, requests for anything but read, write
 * and flush fail, and one client can keep it busy.
 *
 *     nbdcow-bench-bareloop [--spin] --unix SOCKET FILE
 *     nbdcow-bench-bareloop [--spin] --tcp PORT FILE          (on 127.0.0.1)
 *
 * With --spin it never sleeps: what is left of the latency then is the socket's and the client's.
 */

#include "util.h"
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

/* Replies of one batch: as many as their vectors fit one send. */
enum { BATCH = 512, RECV_SIZE = 256 << 10, MAX_OPTION = 65536 };

static struct {
  int fd;
  uint8_t *map;
  uint64_t size;
} disk;

struct conn {
  int fd;
  bool negotiated, flags_seen, no_zeroes, closing, want_out;
  uint8_t *in;
  size_t in_len;
  uint8_t *write_to; /* a write whose data is on its way: where it goes, */
  uint32_t write_left;
  uint64_t cookie; /* and what is answered then */
  unsigned n;      /* replies in the batch */
  struct iovec iov[2 * BATCH];
  unsigned iov_head, iov_count;
  uint8_t header[BATCH][SIMPLE_REPLY_SIZE];
};

/* ---- sending ------------------------------------------------------------------------------- */

/* Sends what has gathered.  False if some of it is left. */
static bool
flush_out (struct conn *c)
{
  struct msghdr msg = { 0 };
  struct iovec *v;
  ssize_t n;

  while (c->iov_head < c->iov_count) {
    msg.msg_iov = c->iov + c->iov_head;
    msg.msg_iovlen = c->iov_count - c->iov_head;
    n = sendmsg (c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0 && errno == EAGAIN)
      return false;
    if (n < 0) {
      c->closing = true;
      break;
    }
    while (n > 0) {
      v = &c->iov[c->iov_head];
      if ((size_t)n < v->iov_len) {
        v->iov_base = (uint8_t *)v->iov_base + n;
        v->iov_len -= (size_t)n;
        break;
      }
      n -= (ssize_t)v->iov_len;
      c->iov_head++;
    }
  }
  c->n = c->iov_head = c->iov_count = 0;
  return true;
}

static void
reply (struct conn *c, uint64_t cookie, uint32_t error, const uint8_t *data, uint32_t len)
{
  uint8_t *h = c->header[c->n++];

  put32 (h, NBD_SIMPLE_REPLY);
  put32 (h + 4, error);
  put64 (h + 8, cookie);
  c->iov[c->iov_count++] = (struct iovec){ h, SIMPLE_REPLY_SIZE };
  if (len)
    c->iov[c->iov_count++] = (struct iovec){ (void *)(uintptr_t)data, len };
}

/* ---- negotiation: small, so sent at once --------------------------------------------------- */

static void
send_now (struct conn *c, const void *buf, size_t len)
{
  if (send (c->fd, buf, len, MSG_NOSIGNAL) != (ssize_t)len)
    c->closing = true;
}

static void
option_reply (struct conn *c, uint32_t option, uint32_t type, const uint8_t *data, uint32_t len)
{
  uint8_t buf[OPTION_REPLY_SIZE + 32];

  put64 (buf, NBD_REP_MAGIC);
  put32 (buf + 8, option);
  put32 (buf + 12, type);
  put32 (buf + 16, len);
  if (len)
    memcpy (buf + OPTION_REPLY_SIZE, data, len);
  send_now (c, buf, OPTION_REPLY_SIZE + len);
}

static void
option (struct conn *c, uint32_t opt)
{
  const uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_MULTI_CONN;
  uint8_t info[134] = { 0 };

  switch (opt) {
  case NBD_OPT_EXPORT_NAME:
    put64 (info, disk.size);
    put16 (info + 8, flags);
    send_now (c, info, c->no_zeroes ? 10 : sizeof info);
    c->negotiated = true;
    break;
  case NBD_OPT_GO:
    put16 (info, NBD_INFO_EXPORT);
    put64 (info + 2, disk.size);
    put16 (info + 10, flags);
    option_reply (c, opt, NBD_REP_INFO, info, 12);
    option_reply (c, opt, NBD_REP_ACK, NULL, 0);
    c->negotiated = true;
    break;
  case NBD_OPT_ABORT:
    option_reply (c, opt, NBD_REP_ACK, NULL, 0);
    c->closing = true;
    break;
  default:
    option_reply (c, opt, NBD_REP_ERR_UNSUP, NULL, 0);
  }
}

/* One step of the negotiation.  Returns the bytes used, 0 if more must come. */
static size_t
negotiate (struct conn *c, const uint8_t *p, size_t n)
{
  uint32_t len;

  if (!c->flags_seen) {
    if (n < 4)
      return 0;
    c->flags_seen = true;
    c->no_zeroes = get32 (p) & NBD_NO_ZEROES;
    return 4;
  }
  if (n < 16)
    return 0;
  len = get32 (p + 12);
  if (get64 (p) != NBD_IHAVEOPT || len > MAX_OPTION) {
    c->closing = true;
    return 0;
  }
  if (n - 16 < len)
    return 0;
  option (c, get32 (p + 8));
  return 16 + len;
}

/* ---- requests ------------------------------------------------------------------------------ */

/* Takes what is there of a write's data. */
static size_t
write_data (struct conn *c, const uint8_t *p, size_t n)
{
  if (n > c->write_left)
    n = c->write_left;
  memcpy (c->write_to, p, n);
  c->write_to += n;
  c->write_left -= (uint32_t)n;
  if (!c->write_left)
    reply (c, c->cookie, 0, NULL, 0);
  return n;
}

static size_t
request (struct conn *c, const uint8_t *p, size_t n)
{
  uint64_t cookie, offset;
  uint32_t len;
  bool inside;

  if (n < REQUEST_SIZE)
    return 0;
  cookie = get64 (p + 8);
  offset = get64 (p + 16);
  len = get32 (p + 24);
  inside = offset <= disk.size && len <= disk.size - offset && len;
  if (get32 (p) != NBD_REQUEST) {
    c->closing = true;
    return 0;
  }
  switch (get16 (p + 6)) {
  case NBD_CMD_READ:
    reply (c, cookie, inside ? 0 : NBD_EINVAL, disk.map + offset, inside ? len : 0);
    break;
  case NBD_CMD_WRITE:
    if (inside) {
      c->write_to = disk.map + offset;
      c->write_left = len;
      c->cookie = cookie;
    } else
      c->closing = true; /* its data cannot be told from requests */
    break;
  case NBD_CMD_FLUSH:
    reply (c, cookie, fdatasync (disk.fd) ? NBD_EIO : 0, NULL, 0);
    break;
  case NBD_CMD_DISC:
    c->closing = true;
    break;
  default:
    reply (c, cookie, NBD_EINVAL, NULL, 0);
  }
  return REQUEST_SIZE;
}

/* Serves what was received, until it is used up or the socket is full. */
static void
serve (struct conn *c)
{
  const uint8_t *p = c->in;
  size_t left = c->in_len, used;

  while (!c->closing) {
    if (c->n == BATCH && !flush_out (c))
      break;
    if (!c->negotiated)
      used = negotiate (c, p, left);
    else if (c->write_left)
      used = write_data (c, p, left);
    else
      used = request (c, p, left);
    if (!used)
      break;
    p += used;
    left -= used;
  }
  memmove (c->in, p, left);
  c->in_len = left;
  flush_out (c);
}

/* Receives once: into the mapping itself if the data of a write is due, and then into the buffer.
 */
static void
receive (struct conn *c)
{
  struct iovec v[2] = { { c->write_to, c->write_left },
                        { c->in + c->in_len, RECV_SIZE - c->in_len } };
  unsigned direct = c->write_left && !c->in_len;
  struct msghdr msg = { .msg_iov = v + !direct, .msg_iovlen = 1 + direct };
  ssize_t n;

  n = recvmsg (c->fd, &msg, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR))
    return;
  if (n <= 0) {
    c->closing = true;
    return;
  }
  if (direct) {
    uint32_t part = (size_t)n < c->write_left ? (uint32_t)n : c->write_left;

    c->write_to += part;
    c->write_left -= part;
    n -= part;
    if (!c->write_left)
      reply (c, c->cookie, 0, NULL, 0);
  }
  c->in_len += (size_t)n;
}

/* ---- the loop ------------------------------------------------------------------------------ */

static void
watch (int ep, int op, struct conn *c)
{
  /* While replies are waiting for room, nothing more is read. */
  struct epoll_event ev = { .events = c->want_out ? EPOLLOUT : EPOLLIN, .data.ptr = c };

  if (epoll_ctl (ep, op, c->fd, &ev) < 0)
    fatal ("epoll_ctl: %s", strerror (errno));
}

static void
accept_one (int ep, int listener)
{
  uint8_t greeting[18];
  struct conn *c;
  int fd, size = 4 << 20, on = 1;

  fd = accept4 (listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd < 0)
    return;
  setsockopt (fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
  setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* fails on a unix socket */
  c = xcalloc (1, sizeof *c);
  c->fd = fd;
  c->in = xcalloc (1, RECV_SIZE);
  put64 (greeting, NBD_MAGIC);
  put64 (greeting + 8, NBD_IHAVEOPT);
  put16 (greeting + 16, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
  send_now (c, greeting, sizeof greeting);
  watch (ep, EPOLL_CTL_ADD, c);
}

static void
wake (int ep, struct conn *c)
{
  if (!c->want_out)
    receive (c);
  if (!c->want_out || flush_out (c))
    serve (c);
  if (c->closing) {
    close (c->fd);
    free (c->in);
    free (c);
    return;
  }
  if (c->want_out != (c->iov_count > 0)) {
    c->want_out = !c->want_out;
    watch (ep, EPOLL_CTL_MOD, c);
  }
}

static void
loop (int listener, bool spin)
{
  struct epoll_event ev = { .events = EPOLLIN }, events[64];
  int ep, n, i;

  ep = epoll_create1 (EPOLL_CLOEXEC);
  if (ep < 0 || epoll_ctl (ep, EPOLL_CTL_ADD, listener, &ev) < 0)
    fatal ("epoll: %s", strerror (errno));
  for (;;) {
    n = epoll_wait (ep, events, 64, spin ? 0 : -1);
    for (i = 0; i < n; i++)
      if (events[i].data.ptr)
        wake (ep, events[i].data.ptr);
      else
        accept_one (ep, listener);
  }
}

/* ---- start --------------------------------------------------------------------------------- */

static int
listen_unix (const char *path)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (strlen (path) >= sizeof addr.sun_path)
    fatal ("--unix: '%s' is longer than the %zu bytes of a socket name", path,
           sizeof addr.sun_path - 1);
  strcpy (addr.sun_path, path);
  unlink (path);
  if (fd < 0 || bind (fd, (struct sockaddr *)&addr, sizeof addr) < 0 || listen (fd, 1024) < 0)
    fatal ("--unix: %s: %s", path, strerror (errno));
  return fd;
}

static int
listen_tcp (const char *port)
{
  struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl (INADDR_LOOPBACK) };
  int fd = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

  addr.sin_port = htons ((uint16_t)parse_number ("--tcp", port, 1, 65535));
  setsockopt (fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (fd < 0 || bind (fd, (struct sockaddr *)&addr, sizeof addr) < 0 || listen (fd, 1024) < 0)
    fatal ("--tcp: port %s: %s", port, strerror (errno));
  return fd;
}

static void
map_disk (const char *name)
{
  struct stat st;

  disk.fd = open (name, O_RDWR | O_CLOEXEC);
  if (disk.fd < 0 || fstat (disk.fd, &st) < 0)
    fatal ("%s: %s", name, strerror (errno));
  disk.size = (uint64_t)st.st_size;
  disk.map = mmap (NULL, disk.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, disk.fd, 0);
  if (disk.map == MAP_FAILED)
    fatal ("%s: cannot be mapped: %s", name, strerror (errno));
}

int
main (int argc, char *argv[])
{
  static const struct option longopts[] = {
    { "unix", required_argument, NULL, 'u' },
    { "tcp", required_argument, NULL, 'T' },
    { "spin", no_argument, NULL, 's' },
    { NULL, 0, NULL, 0 },
  };
  bool spin = false;
  int c, listener = -1;

  while ((c = getopt_long (argc, argv, "u:T:s", longopts, NULL)) != -1)
    switch (c) {
    case 'u':
      listener = listen_unix (optarg);
      break;
    case 'T':
      listener = listen_tcp (optarg);
      break;
    case 's':
      spin = true;
      break;
    default:
      return EXIT_FAILURE;
    }
  if (listener < 0 || optind + 1 != argc)
    fatal ("usage: [--spin] --unix SOCKET | --tcp PORT, and the file to serve");
  map_disk (argv[optind]);
  signal (SIGPIPE, SIG_IGN);
  loop (listener, spin);
}
