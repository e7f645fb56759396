/* SPDX-License-Identifier: BSD-3-Clause */

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>
#ifdef HAVE_SELINUX
#include <selinux/selinux.h>
#endif

#include "listen.h"
#include "path.h"

#define BACKLOG 1024

/* The first descriptor that LISTEN_FDS counts. */
#define FIRST_INHERITED 3

static int
add (struct listeners *ls, int fd, const char *unix_path, struct q_error *err)
{
  char *path = NULL;
  struct stat st;

  if (ls->n == MAX_LISTENERS) {
    snprintf (err->text, sizeof err->text, "too many listening sockets: the most is %d",
              MAX_LISTENERS);
    return -E2BIG;
  }
  if (unix_path && !(path = path_absolute (unix_path))) {
    snprintf (err->text, sizeof err->text, "out of memory");
    return -ENOMEM;
  }
  ls->l[ls->n] = (struct listener){ .fd = fd, .unix_path = path };
  if (path && lstat (path, &st) == 0) {
    ls->l[ls->n].dev = st.st_dev;
    ls->l[ls->n].ino = st.st_ino;
  }
  ls->n++;
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

/* As getaddrinfo. */
static int
resolve (const char *host, const char *port, struct addrinfo **list)
{
  const struct addrinfo hints = { .ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM };

  return getaddrinfo (*host ? host : NULL, port, &hints, list);
}

int
listen_tcp (struct listeners *ls, const char *host, const char *port, struct q_error *err)
{
  struct addrinfo *list;
  bool any = false;

  int r = resolve (host, port, &list);
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

/* Whether a server is at the other end of ADDR. */
static bool
is_served (const struct sockaddr_un *addr)
{
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  /* With a full backlog it is EAGAIN. */
  bool served = fd >= 0 && (connect (fd, (const struct sockaddr *)addr, sizeof *addr) == 0 ||
                            errno == EAGAIN || errno == EACCES);

  if (fd >= 0)
    close (fd);
  return served;
}

/* Makes way for a socket at ADDR. */
static int
remove_old (const struct sockaddr_un *addr, bool private, struct q_error *err)
{
  const char *path = addr->sun_path;
  struct stat st;

  if (lstat (path, &st) < 0)
    return 0; /* bind will say what is wrong, if anything is */
  if (!S_ISSOCK (st.st_mode)) {
    snprintf (err->text, sizeof err->text,
              "socket path '%s' exists and is not a socket: remove it or use another path", path);
    return -EEXIST;
  }
  if (private && is_served (addr)) {
    snprintf (err->text, sizeof err->text,
              "socket path '%s' is in use by another server: use another path", path);
    return -EADDRINUSE;
  }
  if (unlink (path) < 0) {
    int r = -errno;
    snprintf (err->text, sizeof err->text, "cannot remove the old socket '%s': %s", path,
              strerror (-r));
    return r;
  }
  return 0;
}

static int
listen_at (struct listeners *ls, const char *path, bool private, struct q_error *err)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  if (strlen (path) >= sizeof addr.sun_path) {
    snprintf (err->text, sizeof err->text, "socket path '%s' has %zu bytes: the most is %zu", path,
              strlen (path), sizeof addr.sun_path - 1);
    return -ENAMETOOLONG;
  }
  memcpy (addr.sun_path, path, strlen (path));
  int r = remove_old (&addr, private, err);
  if (r < 0)
    return r;

  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  r = fd < 0 ? -errno : 0;
  /* bind gives the file the mode that the socket has (less the umask): it is never another one. */
  if (r == 0 && private && fchmod (fd, 0600) < 0)
    r = -errno;
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
listen_unix (struct listeners *ls, const char *path, struct q_error *err)
{
  return listen_at (ls, path, false, err);
}

int
listen_private (struct listeners *ls, const char *path, struct q_error *err)
{
  return listen_at (ls, path, true, err);
}

int
listen_vsock (struct listeners *ls, const char *port, struct q_error *err)
{
  struct sockaddr_vm addr = {
    .svm_family = AF_VSOCK,
    .svm_cid = VMADDR_CID_ANY,
    .svm_port = (unsigned)strtoul (port, NULL, 0),
  };
  int fd = socket (AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int r = fd < 0 ? -errno : 0;

  if (r == 0 && (bind (fd, (struct sockaddr *)&addr, sizeof addr) < 0 || listen (fd, BACKLOG) < 0))
    r = -errno;
  if (r < 0)
    snprintf (err->text, sizeof err->text, "cannot listen on vsock port %s: %s", port,
              r == -EAFNOSUPPORT || r == -ENODEV ? "this kernel has no vsock driver"
                                                 : strerror (-r));
  else
    r = add (ls, fd, NULL, err);
  if (r < 0 && fd >= 0)
    close (fd);
  return r;
}

int
listen_set_label (const char *label, struct q_error *err)
{
#ifdef HAVE_SELINUX
  if (label && !is_selinux_enabled ()) {
    snprintf (err->text, sizeof err->text,
              "--selinux-label=%s: SELinux is not enabled on this host: leave the option out",
              label);
    return -ENOTSUP;
  }
  if (setsockcreatecon_raw (label) < 0) {
    int r = -errno;
    snprintf (err->text, sizeof err->text, "--selinux-label=%s: %s", label ? label : "",
              strerror (-r));
    return r;
  }
  return 0;
#else
  if (!label)
    return 0;
  snprintf (err->text, sizeof err->text,
            "--selinux-label=%s: this nbdcow was built without libselinux", label);
  return -ENOTSUP;
#endif
}

/* The names, divided by colons, that go with the inherited sockets. */
static void
name_inherited (struct listeners *ls)
{
  const char *names = getenv ("LISTEN_FDNAMES");

  for (unsigned i = 0; names && i < ls->n; i++) {
    size_t len = strcspn (names, ":");
    ls->l[i].name = strndup (names, len);
    names = names[len] ? names + len + 1 : NULL;
  }
  unsetenv ("LISTEN_FDNAMES");
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
  name_inherited (ls);
  return (int)n;
}

void
listen_close (struct listeners *ls)
{
  for (unsigned i = 0; i < ls->n; i++) {
    const struct listener *l = &ls->l[i];
    struct stat st;

    close (l->fd);
    if (l->unix_path && lstat (l->unix_path, &st) == 0 && st.st_dev == l->dev &&
        st.st_ino == l->ino)
      unlink (l->unix_path);
    free (ls->l[i].unix_path);
    free (ls->l[i].name);
  }
  ls->n = 0;
}

void
listen_leave (struct listeners *ls)
{
  for (unsigned i = 0; i < ls->n; i++) {
    free (ls->l[i].unix_path);
    ls->l[i].unix_path = NULL;
  }
}

bool
listen_has_unix (const struct listeners *ls, const char *path)
{
  struct stat st;
  bool there = lstat (path, &st) == 0, found = false;

  for (unsigned i = 0; there && !found && i < ls->n; i++)
    found = ls->l[i].unix_path && ls->l[i].dev == st.st_dev && ls->l[i].ino == st.st_ino;
  return found;
}

static bool
is_at (const struct listener *l, const struct addrinfo *a)
{
  struct sockaddr_storage at = { 0 };
  socklen_t len = sizeof at;

  return getsockname (l->fd, (struct sockaddr *)&at, &len) == 0 && len == a->ai_addrlen &&
         memcmp (&at, a->ai_addr, len) == 0;
}

bool
listen_has_tcp (const struct listeners *ls, const char *host, const char *port)
{
  struct addrinfo *list;
  bool found = false;

  if (resolve (host, port, &list) != 0)
    return false;
  for (const struct addrinfo *a = list; a; a = a->ai_next)
    for (unsigned i = 0; i < ls->n; i++)
      found = found || is_at (&ls->l[i], a);
  freeaddrinfo (list);
  return found;
}

int
listen_adopt (struct listeners *ls, int fd, const char *unix_path, uint64_t dev, uint64_t ino,
              const char *name, struct q_error *err)
{
  int listening = 0, r = 0;
  socklen_t len = sizeof listening;

  if (getsockopt (fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0 || !listening) {
    snprintf (err->text, sizeof err->text, "what was handed over is no listening socket");
    r = -EPROTO;
  }
  if (r == 0)
    r = add (ls, fd, NULL, err);
  if (r < 0) {
    close (fd);
    return r;
  }
  struct listener *l = &ls->l[ls->n - 1];
  l->unix_path = unix_path ? strdup (unix_path) : NULL;
  l->name = name ? strdup (name) : NULL;
  l->dev = dev;
  l->ino = ino;
  if ((unix_path && !l->unix_path) || (name && !l->name)) {
    snprintf (err->text, sizeof err->text, "out of memory");
    return -ENOMEM;
  }
  return 0;
}

/* ---- names ----------------------------------------------------------------------------------- */

union address {
  struct sockaddr any;
  struct sockaddr_un un;
  struct sockaddr_vm vm;
  struct sockaddr_in in;
  struct sockaddr_in6 in6;
  struct sockaddr_storage storage;
};

/* TEXT as a part of a URI; KEEP are characters that need no escape there.  To be freed. */
static char *
escape (const char *text, const char *keep)
{
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
  char *out = malloc (3 * strlen (text) + 1), *p = out;

  if (!out)
    return NULL;
  for (; *text; text++) {
    if (strchr (plain, *text) || strchr (keep, *text))
      *p++ = *text;
    else
      p += sprintf (p, "%%%02X", (unsigned char)*text);
  }
  *p = '\0';
  return out;
}

static char *
tcp_uri (union address *addr, socklen_t len, const char *scheme, const char *name)
{
  char host[NI_MAXHOST], port[NI_MAXSERV];
  char *uri = NULL;
  bool v6 = addr->any.sa_family == AF_INET6;

  /* All addresses: for a client on this host. */
  if (v6 && IN6_IS_ADDR_UNSPECIFIED (&addr->in6.sin6_addr))
    addr->in6.sin6_addr = in6addr_loopback;
  else if (addr->any.sa_family == AF_INET && addr->in.sin_addr.s_addr == htonl (INADDR_ANY))
    addr->in.sin_addr.s_addr = htonl (INADDR_LOOPBACK);
  if (getnameinfo (&addr->any, len, host, sizeof host, port, sizeof port,
                   NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return NULL;
  bool usual = strcmp (port, "10809") == 0;
  if (asprintf (&uri, "%s://%s%s%s%s%s/%s", scheme, v6 ? "[" : "", host, v6 ? "]" : "",
                usual ? "" : ":", usual ? "" : port, name) < 0)
    return NULL;
  return uri;
}

char *
listener_uri (const struct listener *l, const char *export_name, bool tls)
{
  const char *scheme = tls ? "nbds" : "nbd";
  union address addr = { .storage = { 0 } };
  socklen_t len = sizeof addr;
  char *name = escape (export_name, "/@:");
  char *uri = NULL;

  if (!name || getsockname (l->fd, &addr.any, &len) < 0) {
    free (name);
    return NULL;
  }
  if (addr.any.sa_family == AF_UNIX) {
    char path[PATH_MAX] = "";
    if (l->unix_path)
      snprintf (path, sizeof path, "%s", l->unix_path);
    else
      memcpy (path, addr.un.sun_path, sizeof addr.un.sun_path);
    char *absolute = realpath (path, NULL);
    char *socket = escape (absolute ? absolute : path, "/:@");
    if (!socket || asprintf (&uri, "%s+unix:///%s?socket=%s", scheme, name, socket) < 0)
      uri = NULL;
    free (absolute);
    free (socket);
  } else if (addr.any.sa_family == AF_VSOCK) {
    if (asprintf (&uri, "%s+vsock://%u:%u/%s", scheme, VMADDR_CID_HOST, addr.vm.svm_port, name) < 0)
      uri = NULL;
  } else
    uri = tcp_uri (&addr, len, scheme, name);
  free (name);
  return uri;
}

uint64_t
peer_identity (int fd)
{
  enum { PROCESS = 1, MACHINE, IPV4, LINK = 0xfe }; /* no other IPv6 network begins like this */
  union address addr = { .storage = { 0 } };
  socklen_t len = sizeof addr;
  struct ucred cred = { 0 };
  const uint32_t *v6 = addr.in6.sin6_addr.s6_addr32;

  if (getpeername (fd, &addr.any, &len) < 0)
    return 0;
  switch (addr.any.sa_family) {
  case AF_UNIX:
    len = sizeof cred;
    if (getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || cred.pid <= 0)
      return 0; /* none, or in another container: there may be many */
    return (uint64_t)PROCESS << 56 | (uint64_t)cred.pid;
  case AF_VSOCK:
    return (uint64_t)MACHINE << 56 | addr.vm.svm_cid;
  case AF_INET:
    return (uint64_t)IPV4 << 56 | addr.in.sin_addr.s_addr;
  case AF_INET6:
    if (IN6_IS_ADDR_V4MAPPED (&addr.in6.sin6_addr))
      return (uint64_t)IPV4 << 56 | v6[3];
    /* On a link, and on this host, it is the other half that tells them apart. */
    if (IN6_IS_ADDR_LINKLOCAL (&addr.in6.sin6_addr) || IN6_IS_ADDR_LOOPBACK (&addr.in6.sin6_addr))
      return (uint64_t)LINK << 56 | (uint64_t)(be32toh (v6[2]) & 0xffffff) << 32 | be32toh (v6[3]);
    return (uint64_t)be32toh (v6[0]) << 32 | be32toh (v6[1]);
  default:
    return 0;
  }
}

char *
peer_name (int fd)
{
  union address addr = { .storage = { 0 } };
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
  if (addr.any.sa_family == AF_VSOCK) {
    if (asprintf (&name, "client (vsock, cid %u, port %u)", addr.vm.svm_cid, addr.vm.svm_port) < 0)
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
