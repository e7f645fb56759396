/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "takeover-wire.h"

#define MAGIC UINT64_C (0x6e6264636f77746f) /* "nbdcowto" */

/* Before each message, in the host's byte order: both sides are on one machine. */
struct header {
  uint64_t magic;
  uint32_t version;
  uint32_t json_size;
  uint64_t blob_size;
  uint32_t n_fds;
  uint32_t reserved;
};

static int
fail (struct q_error *err, int r, const char *what)
{
  snprintf (err->text, sizeof err->text, "%s", what);
  return r;
}

int
wire_check_peer (int fd, uid_t also, pid_t *pid, struct q_error *err)
{
  struct ucred cred;
  socklen_t len = sizeof cred;

  if (getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
    int r = -errno;
    return fail (err, r, "it cannot be found out who is at the other end");
  }
  if (cred.uid != 0 && cred.uid != geteuid () && cred.uid != also) {
    snprintf (err->text, sizeof err->text,
              "the other process (%d) belongs to user %u, which is neither root nor the "
              "server's",
              (int)cred.pid, cred.uid);
    return -EPERM;
  }
  *pid = cred.pid;
  return 0;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static int64_t
now_ms (void)
{
  struct timespec ts;
  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int
wait_for (int fd, short events, int64_t deadline, struct q_error *err)
{
  struct pollfd p = { .fd = fd, .events = events };

  for (;;) {
    int64_t left = deadline - now_ms ();
    int n = left > 0 ? poll (&p, 1, (int)left) : 0;
    if (n > 0)
      return 0;
    if (n == 0)
      return fail (err, -ETIMEDOUT, "the other side does not answer");
    if (errno != EINTR)
      return fail (err, -errno, strerror (errno));
  }
}

/* All of the N bytes at P; CONTROL (may be NULL) goes with the first of them. */
static int
send_all (int fd, const void *data, size_t n, void *control, size_t control_size, int64_t deadline,
          struct q_error *err)
{
  const uint8_t *p = data;

  while (n > 0) {
    struct iovec iov = { (void *)p, n };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    msg.msg_control = control;
    msg.msg_controllen = control_size;
    int r = wait_for (fd, POLLOUT, deadline, err);
    if (r < 0)
      return r;
    ssize_t sent = sendmsg (fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EINTR || errno == EAGAIN))
      continue;
    if (sent < 0)
      return fail (err, errno == ECONNRESET ? -EPIPE : -errno, strerror (errno));
    control = NULL;
    control_size = 0;
    p += sent;
    n -= (size_t)sent;
  }
  return 0;
}

/* Takes the descriptors of MSG into M. */
static int
take_fds (struct msghdr *msg, struct wire_message *m, struct q_error *err)
{
  for (struct cmsghdr *c = CMSG_FIRSTHDR (msg); c; c = CMSG_NXTHDR (msg, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
      continue;
    size_t n = (c->cmsg_len - CMSG_LEN (0)) / sizeof (int);
    const int *fds = (const int *)(const void *)CMSG_DATA (c);
    for (size_t i = 0; i < n; i++) {
      if (m->n_fds < WIRE_MAX_FDS)
        m->fds[m->n_fds++] = fds[i];
      else
        close (fds[i]);
    }
  }
  return msg->msg_flags & MSG_CTRUNC
             ? fail (err, -EPROTO, "descriptors were lost: is there a limit on open files?")
             : 0;
}

static int
receive_all (int fd, void *data, size_t n, struct wire_message *m, int64_t deadline,
             struct q_error *err)
{
  union {
    char space[CMSG_SPACE (WIRE_MAX_FDS * sizeof (int))];
    struct cmsghdr align;
  } control;
  uint8_t *p = data;

  while (n > 0) {
    struct iovec iov = { p, n };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    msg.msg_control = control.space;
    msg.msg_controllen = sizeof control.space;
    int r = wait_for (fd, POLLIN, deadline, err);
    if (r < 0)
      return r;
    ssize_t got = recvmsg (fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
      continue;
    if (got == 0 || (got < 0 && errno == ECONNRESET))
      return fail (err, -EPIPE, "the other side has gone");
    if (got < 0)
      return fail (err, -errno, strerror (errno));
    r = take_fds (&msg, m, err);
    if (r < 0)
      return r;
    p += got;
    n -= (size_t)got;
  }
  return 0;
}

/* ---- messages -------------------------------------------------------------------------------- */

int
wire_send (const struct wire *w, json_t *body, const int *fds, unsigned n_fds, const void *blob,
           size_t blob_size, struct q_error *err)
{
  union {
    char space[CMSG_SPACE (WIRE_MAX_FDS * sizeof (int))];
    struct cmsghdr align;
  } control;
  char *text = body ? json_dumps (body, JSON_COMPACT) : NULL;
  struct header h = { .magic = MAGIC, .version = TAKEOVER_VERSION, .n_fds = n_fds };
  int64_t deadline = now_ms () + w->timeout_ms;
  size_t control_size = 0;
  int r = 0;

  json_decref (body);
  if (!text)
    return fail (err, -ENOMEM, "out of memory");
  if (strlen (text) > WIRE_MAX_JSON || blob_size > WIRE_MAX_BLOB || n_fds > WIRE_MAX_FDS)
    r = fail (err, -E2BIG, "there is more to hand over than one message can take");
  h.json_size = (uint32_t)strlen (text);
  h.blob_size = blob_size;
  if (r == 0 && n_fds > 0) {
    memset (&control, 0, sizeof control);
    control.align.cmsg_level = SOL_SOCKET;
    control.align.cmsg_type = SCM_RIGHTS;
    control.align.cmsg_len = CMSG_LEN (n_fds * sizeof (int));
    memcpy (CMSG_DATA (&control.align), fds, n_fds * sizeof (int));
    control_size = CMSG_SPACE (n_fds * sizeof (int));
  }
  if (r == 0)
    r = send_all (w->fd, &h, sizeof h, control_size ? control.space : NULL, control_size, deadline,
                  err);
  if (r == 0)
    r = send_all (w->fd, text, h.json_size, NULL, 0, deadline, err);
  if (r == 0)
    r = send_all (w->fd, blob, blob_size, NULL, 0, deadline, err);
  free (text);
  return r;
}

static int
parse (char *text, size_t size, const char *type, struct wire_message *m, struct q_error *err)
{
  json_error_t e;

  m->body = json_loadb (text, size, JSON_REJECT_DUPLICATES, &e);
  m->type = json_string_value (json_object_get (m->body, "type"));
  if (!m->type)
    return fail (err, -EPROTO, "a message that is no JSON object with a type");
  if (strcmp (m->type, "failed") == 0) {
    const char *why = json_string_value (json_object_get (m->body, "error"));
    snprintf (err->text, sizeof err->text, "%s", why ? why : "the other side does not say why");
    return -ECANCELED;
  }
  if (type && strcmp (m->type, type) != 0) {
    snprintf (err->text, sizeof err->text, "a message '%.50s', where '%s' is wanted", m->type,
              type);
    return -EPROTO;
  }
  return 0;
}

int
wire_receive (const struct wire *w, const char *type, struct wire_message *m, struct q_error *err)
{
  int64_t deadline = now_ms () + w->timeout_ms;
  char *text = NULL;
  struct header h;

  *m = (struct wire_message){ .body = NULL };
  int r = receive_all (w->fd, &h, sizeof h, m, deadline, err);
  if (r == 0 && h.magic != MAGIC)
    r = fail (err, -EPROTO, "the other side is no nbdcow");
  if (r == 0 && h.version != TAKEOVER_VERSION) {
    snprintf (err->text, sizeof err->text,
              "the other side speaks version %u of the protocol, this one %u", h.version,
              TAKEOVER_VERSION);
    r = -EPROTO;
  }
  if (r == 0 && (h.json_size > WIRE_MAX_JSON || h.blob_size > WIRE_MAX_BLOB))
    r = fail (err, -E2BIG, "a message that is too long");
  if (r == 0 && (!(text = malloc (h.json_size + 1)) || !(m->blob = malloc (h.blob_size + 1))))
    r = fail (err, -ENOMEM, "out of memory");
  m->blob_size = r == 0 ? h.blob_size : 0;
  if (r == 0)
    r = receive_all (w->fd, text, h.json_size, m, deadline, err);
  if (r == 0)
    r = receive_all (w->fd, m->blob, h.blob_size, m, deadline, err);
  if (r == 0 && m->n_fds != h.n_fds)
    r = fail (err, -EPROTO, "descriptors were lost");
  if (r == 0)
    r = parse (text, h.json_size, type, m, err);
  free (text);
  if (r < 0)
    wire_free (m);
  return r;
}

void
wire_free (struct wire_message *m)
{
  for (unsigned i = 0; i < m->n_fds; i++)
    if (m->fds[i] >= 0)
      close (m->fds[i]);
  json_decref (m->body);
  free (m->blob);
  *m = (struct wire_message){ .body = NULL };
}
