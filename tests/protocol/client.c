/* SPDX-License-Identifier: BSD-3-Clause */

/* The byte stream: building messages, sending and receiving them with a deadline. */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

#define IN_SIZE 65536

/* Building */

struct bytes *
bytes_new (struct test *t)
{
  struct bytes *b = test_alloc (t, sizeof *b);

  b->t = t;
  return b;
}

static uint8_t *
extend (struct bytes *b, size_t len)
{
  if (b->room - b->len < len) {
    b->room = (b->len + len) * 2;
    b->data = test_realloc (b->t, b->data, b->room);
  }
  b->len += len;
  return b->data + b->len - len;
}

struct bytes *
put (struct bytes *b, const void *data, size_t len)
{
  if (len > 0)
    memcpy (extend (b, len), data, len);
  return b;
}

static struct bytes *
put_be (struct bytes *b, uint64_t v, size_t len)
{
  uint8_t *p = extend (b, len);

  while (len > 0) {
    p[--len] = (uint8_t)v;
    v >>= 8;
  }
  return b;
}

struct bytes *
put_u16 (struct bytes *b, uint16_t v)
{
  return put_be (b, v, 2);
}

struct bytes *
put_u32 (struct bytes *b, uint32_t v)
{
  return put_be (b, v, 4);
}

struct bytes *
put_u64 (struct bytes *b, uint64_t v)
{
  return put_be (b, v, 8);
}

struct bytes *
put_string (struct bytes *b, const char *s)
{
  return put (b, s, strlen (s));
}

struct bytes *
put_fill (struct bytes *b, int c, size_t len)
{
  if (len > 0)
    memset (extend (b, len), c, len);
  return b;
}

static uint64_t
get_be (const uint8_t *p, size_t len)
{
  uint64_t v = 0;

  while (len-- > 0)
    v = v << 8 | *p++;
  return v;
}

uint16_t
get_u16 (const void *p)
{
  return (uint16_t)get_be (p, 2);
}

uint32_t
get_u32 (const void *p)
{
  return (uint32_t)get_be (p, 4);
}

uint64_t
get_u64 (const void *p)
{
  return get_be (p, 8);
}

bool
is_nbd_string (const uint8_t *s, size_t len)
{
  if (len > NBD_MAX_STRING)
    return false;
  for (size_t i = 0; i < len;) {
    uint32_t code = s[i], least;
    size_t more;

    if (code < 0x80)
      more = 0, least = 1; /* 1: no NUL */
    else if ((code & 0xe0) == 0xc0)
      more = 1, least = 0x80, code &= 0x1f;
    else if ((code & 0xf0) == 0xe0)
      more = 2, least = 0x800, code &= 0x0f;
    else if ((code & 0xf8) == 0xf0)
      more = 3, least = 0x10000, code &= 0x07;
    else
      return false;
    if (more >= len - i)
      return false;
    for (i++; more > 0; more--, i++) {
      if ((s[i] & 0xc0) != 0x80)
        return false;
      code = code << 6 | (s[i] & 0x3f);
    }
    if (code < least || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
      return false;
  }
  return true;
}

/* Connecting */

static int
connect_unix (struct test *t)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd;

  CHECK (t, strlen (t->target->socket) < sizeof addr.sun_path, "socket path too long: %s",
         t->target->socket);
  memcpy (addr.sun_path, t->target->socket, strlen (t->target->socket) + 1);
  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK (t, fd >= 0, "socket: %s", strerror (errno));
  if (connect (fd, (struct sockaddr *)&addr, sizeof addr) == -1) {
    int err = errno;

    close (fd);
    fail (t, "cannot connect to %s: %s", t->target->socket, strerror (err));
  }
  return fd;
}

static int
connect_tcp (struct test *t)
{
  const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
  struct addrinfo *list, *a;
  int r = getaddrinfo (t->target->host, t->target->port, &hints, &list), fd = -1, one = 1;

  CHECK (t, r == 0, "%s:%s: %s", t->target->host, t->target->port, gai_strerror (r));
  for (a = list; a && fd == -1; a = a->ai_next) {
    fd = socket (a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd >= 0 && connect (fd, a->ai_addr, a->ai_addrlen) == -1) {
      r = errno;
      close (fd);
      fd = -1;
    }
  }
  freeaddrinfo (list);
  CHECK (t, fd >= 0, "cannot connect to %s:%s: %s", t->target->host, t->target->port, strerror (r));
  setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

struct conn *
conn_open (struct test *t)
{
  struct conn *c = test_alloc (t, sizeof *c);

  c->t = t;
  c->message = "";
  c->in = test_alloc (t, IN_SIZE);
  c->next_cookie = UINT64_C (0x6e62646300000001);
  c->fd = t->target->socket ? connect_unix (t) : connect_tcp (t);
  c->next = t->conns;
  t->conns = c;
  CHECK (t, fcntl (c->fd, F_SETFL, O_NONBLOCK) == 0, "fcntl: %s", strerror (errno));
  return c;
}

void
conn_close (struct conn *c)
{
  if (c->fd >= 0)
    close (c->fd);
  c->fd = -1;
}

void
conn_reset (struct conn *c)
{
  const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };

  setsockopt (c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  conn_close (c);
}

void
conn_half_close (struct conn *c)
{
  shutdown (c->fd, SHUT_WR);
}

/* Waiting */

static int64_t
now_ms (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Waits until the socket is ready or the time has come; false then. */
static bool
wait_until (struct conn *c, short events, int64_t deadline)
{
  for (;;) {
    struct pollfd p = { .fd = c->fd, .events = events };
    int64_t left = deadline - now_ms ();
    int r = poll (&p, 1, left > 0 ? (int)left : 0);

    if (r > 0)
      return true;
    if (r == 0)
      return false;
    CHECK (c->t, errno == EINTR, "poll: %s", strerror (errno));
  }
}

/* Sending */

size_t
conn_send_some (struct conn *c, const void *data, size_t len, int wait_ms)
{
  const uint8_t *p = data;
  size_t done = 0;

  while (done < len) {
    ssize_t r = send (c->fd, p + done, len - done, MSG_NOSIGNAL);

    if (r >= 0)
      done += (size_t)r;
    else if (errno == EAGAIN) {
      if (!wait_until (c, POLLOUT, now_ms () + wait_ms))
        break;
    } else if (errno == EPIPE || errno == ECONNRESET)
      break;
    else
      CHECK (c->t, errno == EINTR, "send: %s", strerror (errno));
  }
  return done;
}

void
conn_send (struct conn *c, const void *data, size_t len)
{
  size_t done = conn_send_some (c, data, len, c->t->target->timeout_ms);

  if (done < len) {
    struct pollfd p = { .fd = c->fd, .events = POLLOUT };

    /* a hang-up leaves the socket ready, a server that does not read leaves it full */
    CHECK (c->t, poll (&p, 1, 0) > 0, "the server stopped reading: %zu of %zu bytes were sent",
           done, len);
  }
}

void
conn_send_bytes (struct conn *c, const struct bytes *b)
{
  conn_send (c, b->data, b->len);
}

void
conn_send_slowly (struct conn *c, const struct bytes *b)
{
  const struct timespec pause = { .tv_nsec = 300000 };

  for (size_t i = 0; i < b->len; i++) {
    conn_send (c, b->data + i, 1);
    nanosleep (&pause, NULL);
  }
}

/* Receiving */

/* Receives at least a byte into p, at most len; 0 at the end of the stream. A reset counts as
 * the end: it is how a hang-up looks that leaves our bytes unread. */
static size_t
recv_some (struct conn *c, uint8_t *p, size_t len, const char *what)
{
  int64_t deadline = now_ms () + c->t->target->timeout_ms;

  for (;;) {
    ssize_t r = recv (c->fd, p, len, 0);

    if (r >= 0)
      return (size_t)r;
    if (errno == ECONNRESET || errno == EPIPE)
      return 0;
    if (errno == EAGAIN)
      CHECK (c->t, wait_until (c, POLLIN, deadline), "no answer in %d s: waiting for %s",
             c->t->target->timeout_ms / 1000, what);
    else
      CHECK (c->t, errno == EINTR, "recv: %s", strerror (errno));
  }
}

void
conn_recv (struct conn *c, void *data, size_t len, const char *what)
{
  uint8_t *p = data;

  while (len > 0) {
    size_t n = c->tail - c->head;

    if (n > 0) {
      n = n < len ? n : len;
      memcpy (p, c->in + c->head, n);
      c->head += n;
    } else if (len >= IN_SIZE) {
      n = recv_some (c, p, len, what);
      CHECK (c->t, n > 0, "the server hung up instead of sending %s", what);
    } else {
      c->head = 0;
      c->tail = recv_some (c, c->in, IN_SIZE, what);
      CHECK (c->t, c->tail > 0, "the server hung up instead of sending %s", what);
      n = 0;
    }
    p += n;
    len -= n;
  }
}

void
conn_skip (struct conn *c, uint64_t len, const char *what)
{
  uint8_t waste[4096];

  while (len > 0) {
    size_t n = len < sizeof waste ? len : sizeof waste;

    conn_recv (c, waste, n, what);
    len -= n;
  }
}

bool
conn_at_eof (struct conn *c)
{
  if (c->head == c->tail) {
    c->head = 0;
    c->tail = recv_some (c, c->in, IN_SIZE, "a byte or the end of the connection");
  }
  return c->tail == 0;
}

void
expect_eof (struct conn *c, const char *what)
{
  if (!conn_at_eof (c)) {
    char hex[3 * 24 + 1] = "";
    size_t n = c->tail - c->head;

    for (size_t i = 0; i < n && i < 24; i++)
      sprintf (hex + 3 * i, " %02x", c->in[c->head + i]);
    fail (c->t, "the server sent%s instead of closing the connection %s", hex, what);
  }
}
