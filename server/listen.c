/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "listen.h"

#define BACKLOG 1024

/* The first descriptor that LISTEN_FDS counts. */
#define FIRST_INHERITED 3

static int
add (struct listeners *ls, int fd, const char *unix_path, struct q_error *err)
{
  char *path = NULL;

  if (ls->n == MAX_LISTENERS) {
    snprintf (err->text, sizeof err->text, "too many listening sockets: the most is %d",
              MAX_LISTENERS);
    return -E2BIG;
  }
  if (unix_path && !(path = strdup (unix_path))) {
    snprintf (err->text, sizeof err->text, "out of memory");
    return -ENOMEM;
  }
  ls->l[ls->n++] = (struct listener){ fd, path };
  return 0;
}

static int
listen_address (const struct addrinfo *a, bool only)
{
  int on = 1, v6only = !only;
  int fd = socket (a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);

  if (fd < 0)
    return -errno;
  setsockopt (fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  /* Beside an IPv4 socket of its own, an IPv6 socket must not take IPv4's port too. */
  if (a->ai_family == AF_INET6)
    setsockopt (fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof v6only);
  if (bind (fd, a->ai_addr, a->ai_addrlen) < 0 || listen (fd, BACKLOG) < 0) {
    int r = -errno;
    close (fd);
    return r;
  }
  return fd;
}

int
listen_tcp (struct listeners *ls, const char *host, const char *port, struct q_error *err)
{
  struct addrinfo hints = { .ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM };
  struct addrinfo *list;
  bool any = false;

  int r = getaddrinfo (*host ? host : NULL, port, &hints, &list);
  if (r != 0) {
    snprintf (err->text, sizeof err->text, "cannot resolve address %s, port %s: %s", host, port,
              r == EAI_SYSTEM ? strerror (errno) : gai_strerror (r));
    return -EINVAL;
  }
  r = 0;
  for (const struct addrinfo *a = list; a; a = a->ai_next) {
    int fd = listen_address (a, list->ai_next == NULL);
    if (fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL)
      continue; /* a family or an address that this host does not have */
    r = fd < 0 ? fd : add (ls, fd, NULL, err);
    if (r < 0) {
      if (fd >= 0)
        close (fd);
      else
        snprintf (err->text, sizeof err->text, "cannot listen on address %s, port %s: %s", host,
                  port, strerror (-fd));
      break;
    }
    any = true;
  }
  freeaddrinfo (list);
  if (r == 0 && !any) {
    snprintf (err->text, sizeof err->text,
              "cannot listen on address %s, port %s: this host does not have that address", host,
              port);
    return -EADDRNOTAVAIL;
  }
  return r;
}

int
listen_unix (struct listeners *ls, const char *path, struct q_error *err)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct stat st;

  if (strlen (path) >= sizeof addr.sun_path) {
    snprintf (err->text, sizeof err->text, "socket path '%s' has %zu bytes: the most is %zu", path,
              strlen (path), sizeof addr.sun_path - 1);
    return -ENAMETOOLONG;
  }
  memcpy (addr.sun_path, path, strlen (path));
  if (lstat (path, &st) == 0) {
    if (!S_ISSOCK (st.st_mode)) {
      snprintf (err->text, sizeof err->text,
                "socket path '%s' exists and is not a socket: remove it or use another path", path);
      return -EEXIST;
    }
    if (unlink (path) < 0) {
      int r = -errno;
      snprintf (err->text, sizeof err->text, "cannot remove the old socket '%s': %s", path,
                strerror (-r));
      return r;
    }
  }

  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int r = fd < 0 ? -errno : 0;
  if (r == 0 && (bind (fd, (struct sockaddr *)&addr, sizeof addr) < 0 || listen (fd, BACKLOG) < 0))
    r = -errno;
  if (r < 0)
    snprintf (err->text, sizeof err->text, "cannot listen on unix socket '%s': %s", path,
              strerror (-r));
  else
    r = add (ls, fd, path, err);
  if (r < 0 && fd >= 0)
    close (fd);
  return r;
}

int
listen_inherited (struct listeners *ls, struct q_error *err)
{
  const char *pid = getenv ("LISTEN_PID"), *fds = getenv ("LISTEN_FDS");
  char *end;

  if (!pid || !fds || strtol (pid, &end, 10) != getpid () || *end)
    return 0;
  long n = strtol (fds, &end, 10);
  if (end == fds || *end || n < 0 || n > MAX_LISTENERS) {
    snprintf (err->text, sizeof err->text, "LISTEN_FDS=%s is not a number from 0 to %d", fds,
              MAX_LISTENERS);
    return -EINVAL;
  }
  unsetenv ("LISTEN_PID");
  unsetenv ("LISTEN_FDS");
  for (long i = 0; i < n; i++) {
    int fd = FIRST_INHERITED + (int)i;
    int listening = 0;
    socklen_t len = sizeof listening;
    if (getsockopt (fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0 || !listening) {
      snprintf (err->text, sizeof err->text,
                "LISTEN_FDS=%ld, but descriptor %d is not a listening socket", n, fd);
      return -EINVAL;
    }
    fcntl (fd, F_SETFD, FD_CLOEXEC);
    fcntl (fd, F_SETFL, fcntl (fd, F_GETFL) | O_NONBLOCK);
    int r = add (ls, fd, NULL, err);
    if (r < 0)
      return r;
  }
  return (int)n;
}

void
listen_close (struct listeners *ls)
{
  for (unsigned i = 0; i < ls->n; i++) {
    close (ls->l[i].fd);
    if (ls->l[i].unix_path)
      unlink (ls->l[i].unix_path);
    free (ls->l[i].unix_path);
  }
  ls->n = 0;
}

char *
peer_name (int fd)
{
  union {
    struct sockaddr any;
    struct sockaddr_storage storage;
  } addr = { .storage = { 0 } };
  socklen_t len = sizeof addr;
  char host[NI_MAXHOST], port[NI_MAXSERV];
  char *name = NULL;

  if (getpeername (fd, &addr.any, &len) < 0)
    return strdup ("unknown client");
  if (addr.any.sa_family == AF_UNIX) {
    struct ucred cred = { 0 };
    len = sizeof cred;
    if (getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 &&
        asprintf (&name, "client (unix, pid %d, uid %u, fd %d)", (int)cred.pid, cred.uid, fd) < 0)
      name = NULL;
    return name;
  }
  if (getnameinfo (&addr.any, len, host, sizeof host, port, sizeof port,
                   NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return strdup ("unknown client");
  if (asprintf (&name, "client %s port %s", host, port) < 0)
    name = NULL;
  return name;
}
