/* SPDX-License-Identifier: BSD-3-Clause */

#include "client.h"
#include "util.h"
#include "wire.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_REPLY = 65536, TIMEOUT_SECONDS = 60 };

#define PATIENCE_NS UINT64_C (10000000000)

static int
connect_unix (const char *path)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd;

  if (strlen (path) >= sizeof addr.sun_path)
    fatal ("--unix: '%s' is longer than the %zu bytes of a socket name", path,
           sizeof addr.sun_path - 1);
  strcpy (addr.sun_path, path);
  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    fatal ("socket: %s", strerror (errno));
  if (connect (fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
    int saved = errno;

    close (fd);
    errno = saved;
    return -1;
  }
  return fd;
}

static int
connect_tcp (const char *host, const char *port)
{
  struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *list, *a;
  int fd = -1, err, saved = 0, on = 1;

  err = getaddrinfo (host, port, &hints, &list);
  if (err)
    fatal ("--tcp: %s:%s: %s", host, port, gai_strerror (err));
  for (a = list; a && fd < 0; a = a->ai_next) {
    fd = socket (a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd >= 0 && connect (fd, a->ai_addr, a->ai_addrlen) < 0) {
      saved = errno;
      close (fd);
      fd = -1;
    }
  }
  freeaddrinfo (list);
  if (fd >= 0)
    setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  errno = saved;
  return fd;
}

int
client_connect (const struct target *t)
{
  /* A server that stops answering must not hang the benchmark. */
  struct timeval timeout = { .tv_sec = TIMEOUT_SECONDS };
  int size = 4 << 20, fd;

  fd = t->unix_path ? connect_unix (t->unix_path) : connect_tcp (t->host, t->port);
  if (fd < 0)
    return -1;
  setsockopt (fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  setsockopt (fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
  /* The kernel cuts this down to its own limit, which is what is wanted: the largest. */
  if (t->unix_path)
    setsockopt (fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
  return fd;
}

int
client_connect_patiently (const struct target *t)
{
  uint64_t limit = now_ns () + PATIENCE_NS;
  int fd;

  while ((fd = client_connect (t)) < 0) {
    if ((errno != EAGAIN && errno != ENOENT && errno != ECONNREFUSED) || now_ns () > limit)
      fatal ("cannot connect to the server: %s", strerror (errno));
    sleep_ns (100000);
  }
  return fd;
}

void
send_full (int fd, const void *buf, size_t len)
{
  const uint8_t *p = buf;
  ssize_t n;

  while (len) {
    n = send (fd, p, len, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      fatal ("sending to the server: %s", strerror (errno));
    p += n;
    len -= (size_t)n;
  }
}

void
recv_full (int fd, void *buf, size_t len)
{
  uint8_t *p = buf;
  ssize_t n;

  while (len) {
    n = recv (fd, p, len, MSG_WAITALL);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      fatal ("receiving from the server: %s", strerror (errno));
    if (n == 0)
      fatal ("the server closed the connection");
    p += n;
    len -= (size_t)n;
  }
}

static void
send_option (int fd, uint32_t option, const void *data, uint32_t len)
{
  uint8_t buf[16 + 8192];

  if (len > sizeof buf - 16)
    fatal ("--export: the name is too long");
  put64 (buf, NBD_IHAVEOPT);
  put32 (buf + 8, option);
  put32 (buf + 12, len);
  if (len)
    memcpy (buf + 16, data, len);
  send_full (fd, buf, 16 + len);
}

/* Receives one reply to OPTION into BUF and returns its type; *LEN is the length of its data. */
static uint32_t
recv_option_reply (int fd, uint32_t option, uint8_t *buf, uint32_t *len)
{
  uint8_t header[OPTION_REPLY_SIZE];

  recv_full (fd, header, sizeof header);
  if (get64 (header) != NBD_REP_MAGIC || get32 (header + 8) != option)
    fatal ("option %u: this is not a reply to it", option);
  *len = get32 (header + 16);
  if (*len > MAX_REPLY)
    fatal ("option %u: the server's reply has %u bytes, more than %d", option, *len, MAX_REPLY);
  recv_full (fd, buf, *len);
  return get32 (header + 12);
}

static void
refused (const char *what, uint32_t type, const uint8_t *text, uint32_t len)
{
  fatal ("the server refused %s: error 0x%x %.*s", what, type, (int)len, (const char *)text);
}

static void
option_structured (int fd, uint8_t *reply)
{
  uint32_t type, len;

  send_option (fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
  type = recv_option_reply (fd, NBD_OPT_STRUCTURED_REPLY, reply, &len);
  if (type != NBD_REP_ACK)
    refused ("structured replies", type, reply, len);
}

/* A name, preceded by its length in 32 bits, as most options carry it. */
static uint32_t
put_string (uint8_t *p, const char *s, size_t room)
{
  size_t len = strlen (s);

  if (len > 4096 || len + 4 > room)
    fatal ("--export: '%.32s...' is longer than the 4096 bytes that the protocol allows", s);
  put32 (p, (uint32_t)len);
  memcpy (p + 4, s, len);
  return (uint32_t)len + 4;
}

static void
option_allocation (int fd, const char *export_name, uint8_t *reply)
{
  uint8_t data[8192];
  uint32_t n, type, len;
  bool found = false;

  n = put_string (data, export_name, sizeof data);
  put32 (data + n, 1);
  n += 4;
  n += put_string (data + n, "base:allocation", sizeof data - n);
  send_option (fd, NBD_OPT_SET_META_CONTEXT, data, n);
  while ((type = recv_option_reply (fd, NBD_OPT_SET_META_CONTEXT, reply, &len)) != NBD_REP_ACK) {
    if (type != NBD_REP_META_CONTEXT)
      refused ("base:allocation", type, reply, len);
    found = true;
  }
  if (!found)
    fatal ("the server has no base:allocation context for this export");
}

static void
option_go (int fd, const char *export_name, struct export *e, uint8_t *reply)
{
  uint8_t data[8192];
  uint32_t n, type, len;
  bool found = false;

  n = put_string (data, export_name, sizeof data);
  put16 (data + n, 0);
  n += 2;
  send_option (fd, NBD_OPT_GO, data, n);
  while ((type = recv_option_reply (fd, NBD_OPT_GO, reply, &len)) != NBD_REP_ACK) {
    if (type != NBD_REP_INFO)
      refused ("the export", type, reply, len);
    if (len >= 12 && get16 (reply) == NBD_INFO_EXPORT) {
      e->size = get64 (reply + 2);
      e->flags = get16 (reply + 10);
      found = true;
    }
  }
  if (!found)
    fatal ("the server did not say how large the export is");
}

void
client_handshake (int fd, const struct target *t, struct export *e)
{
  uint8_t buf[18], *reply;

  recv_full (fd, buf, 18);
  if (get64 (buf) != NBD_MAGIC || get64 (buf + 8) != NBD_IHAVEOPT ||
      !(get16 (buf + 16) & NBD_FIXED_NEWSTYLE))
    fatal ("what listens there is not a fixed newstyle NBD server");
  put32 (buf, get16 (buf + 16) & (NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES));
  send_full (fd, buf, 4);

  reply = xcalloc (1, MAX_REPLY);
  if (t->structured || t->allocation)
    option_structured (fd, reply);
  if (t->allocation)
    option_allocation (fd, t->export_name, reply);
  option_go (fd, t->export_name, e, reply);
  free (reply);
}

static void
send_request (int fd, uint16_t type, uint64_t offset, uint32_t len)
{
  uint8_t buf[REQUEST_SIZE] = { 0 };

  put32 (buf, NBD_REQUEST);
  put16 (buf + 6, type);
  put64 (buf + 16, offset);
  put32 (buf + 24, len);
  send_full (fd, buf, sizeof buf);
}

/* Receives N bytes that nobody wants. */
static void
drain (int fd, uint32_t n)
{
  uint8_t buf[4096];
  uint32_t part;

  for (; n; n -= part) {
    part = n < sizeof buf ? n : sizeof buf;
    recv_full (fd, buf, part);
  }
}

void
client_read (int fd, uint64_t offset, uint32_t len, void *buf)
{
  uint8_t header[CHUNK_SIZE];
  uint16_t flags, type;
  uint32_t n, at;

  send_request (fd, NBD_CMD_READ, offset, len);
  recv_full (fd, header, SIMPLE_REPLY_SIZE);
  if (get32 (header) == NBD_SIMPLE_REPLY) {
    if (get32 (header + 4))
      fatal ("reading %u bytes at %ju: error %u", len, (uintmax_t)offset, get32 (header + 4));
    if (buf)
      recv_full (fd, buf, len);
    else
      drain (fd, len);
    return;
  }
  for (;;) {
    if (get32 (header) != NBD_CHUNK)
      fatal ("a reply with the magic 0x%x, which is neither simple nor structured", get32 (header));
    recv_full (fd, header + SIMPLE_REPLY_SIZE, CHUNK_SIZE - SIMPLE_REPLY_SIZE);
    flags = get16 (header + 4);
    type = get16 (header + 6);
    n = get32 (header + 16);
    if (type & NBD_CHUNK_ERROR_BIT)
      fatal ("reading %u bytes at %ju: error chunk 0x%x", len, (uintmax_t)offset, type);
    if (buf && type == NBD_CHUNK_OFFSET_DATA && n >= 8) {
      uint8_t where[8];

      recv_full (fd, where, 8);
      n -= 8;
      at = (uint32_t)(get64 (where) - offset);
      if (at > len || n > len - at)
        fatal ("a chunk outside of the %u bytes that were asked for", len);
      recv_full (fd, (uint8_t *)buf + at, n);
    } else
      drain (fd, n);
    if (flags & NBD_CHUNK_DONE)
      return;
    recv_full (fd, header, SIMPLE_REPLY_SIZE);
  }
}

void
client_close (int fd)
{
  send_request (fd, NBD_CMD_DISC, 0, 0);
  close (fd);
}
