/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How a connection's bytes travel: over a plain socket, or through whatever wraps one.
 *
 *     transport_init (&t, fd);                   a plain socket, nonblocking in effect
 *     n = transport_receive (&t, iov, count);    > 0 bytes; 0: the peer has closed its side
 *     n = transport_send (&t, iov, count);       > 0 bytes
 *     transport_close (&t);                      and the socket with it
 *
 * Both return -1 with errno set: EAGAIN when the socket has to become ready first, EFAULT (sending
 * only) when memory of the vector could not be read, or another error, after which nothing but
 * transport_close makes sense.  An operation that waits for the opposite direction (a TLS record
 * that has to be sent before one can be received) sets want_write after a receive, or want_read
 * after a send; the owner then watches that as well, and tries again.
 *
 * A plain socket has no ops and costs no call through a pointer.  Something that wraps it puts its
 * own ops in, at a moment when nothing received is left over with the owner.
 */

#ifndef TRANSPORT_H
#define TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

struct transport;

struct transport_ops {
  ssize_t (*receive) (struct transport *t, struct iovec *iov, int count);
  ssize_t (*send) (struct transport *t, struct iovec *iov, int count);
  /* Received already, so that the socket will not become readable for it. */
  bool (*pending) (const struct transport *t);
  void (*close) (struct transport *t); /* not the socket */
};

struct transport {
  const struct transport_ops *ops; /* NULL: a plain socket */
  void *wrapper;                   /* what the ops work on */
  int fd;                          /* -1: closed */
  bool want_read, want_write;      /* the opposite of what was asked for */
};

static inline void
transport_init (struct transport *t, int fd)
{
  *t = (struct transport){ .fd = fd };
}

static inline ssize_t
transport_receive (struct transport *t, struct iovec *iov, int count)
{
  if (t->ops)
    return t->ops->receive (t, iov, count);
  struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t)count };
  return recvmsg (t->fd, &msg, MSG_DONTWAIT);
}

static inline ssize_t
transport_send (struct transport *t, struct iovec *iov, int count)
{
  if (t->ops)
    return t->ops->send (t, iov, count);
  struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t)count };
  return sendmsg (t->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* True if transport_receive may have something without the socket becoming readable. */
static inline bool
transport_pending (const struct transport *t)
{
  return t->ops && t->ops->pending (t);
}

/* Whether what is sent may lie in memory that must be touched by the kernel alone, since it can
 * vanish (a mapped file). */
static inline bool
transport_takes_foreign (const struct transport *t)
{
  return !t->ops;
}

void transport_close (struct transport *t);

#endif /* TRANSPORT_H */
