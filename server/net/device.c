/* SPDX-License-Identifier: BSD-3-Clause */

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "device.h"
#include "nbd.h"

/* The kernel's major number of nbd devices (Documentation/admin-guide/devices.txt). */
#define NBD_MAJOR 43

int
device_index (const char *name, int *index, struct q_error *err)
{
  const char *base = strrchr (name, '/');
  struct stat st;
  char *end;

  base = base ? base + 1 : name;
  long n = strncmp (base, "nbd", 3) == 0 && base[3] ? strtol (base + 3, &end, 10) : -1;
  if (n < 0 || n > 65535 || *end) {
    snprintf (err->text, sizeof err->text,
              "device '%s': the name of an nbd device is wanted: /dev/nbd0", name);
    return -EINVAL;
  }
  if (stat (name, &st) < 0) {
    int r = -errno;
    snprintf (err->text, sizeof err->text, "device '%s': %s%s", name, strerror (-r),
              r == -ENOENT ? " (is the kernel's nbd driver loaded? 'modprobe nbd')" : "");
    return r;
  }
  if (!S_ISBLK (st.st_mode) || major (st.st_rdev) != NBD_MAJOR) {
    snprintf (err->text, sizeof err->text, "device '%s' is not an nbd device", name);
    return -ENOTBLK;
  }
  *index = (int)n;
  return 0;
}

#ifndef HAVE_LIBNL

static int
unsupported (struct q_error *err)
{
  snprintf (err->text, sizeof err->text,
            "--connect and --disconnect: this nbdcow was built without libnl-genl-3; nbd-client "
            "can connect a device to its socket");
  return -ENOTSUP;
}

int
device_connect (int index, int fd, const char *export_name, struct q_error *err)
{
  (void)index;
  (void)fd;
  (void)export_name;
  return unsupported (err);
}

int
device_disconnect (int index, struct q_error *err)
{
  (void)index;
  return unsupported (err);
}

#else

#include <linux/nbd-netlink.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>

/* The device's sectors, in which partition tables count. */
#define SECTOR            512

/* Seconds that the handshake with our own server may take. */
#define HANDSHAKE_TIMEOUT 30

/* ---- our side of the handshake --------------------------------------------------------------- */

struct choice {
  uint64_t size;
  uint16_t flags;
};

static int
receive (int fd, void *buf, size_t len)
{
  ssize_t n = recv (fd, buf, len, MSG_WAITALL);
  return n == (ssize_t)len ? 0 : n < 0 ? -errno : -ECONNRESET;
}

static int
transmit (int fd, const void *buf, size_t len)
{
  ssize_t n = send (fd, buf, len, MSG_NOSIGNAL);
  return n == (ssize_t)len ? 0 : n < 0 ? -errno : -EPIPE;
}

/* NBD_OPT_EXPORT_NAME says all that the kernel wants to know, and leaves the simple replies that
 * the kernel understands. */
static int
handshake (int fd, const char *name, struct choice *choice)
{
  struct timeval limit = { .tv_sec = HANDSHAKE_TIMEOUT };
  uint32_t flags = htobe32 (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  struct nbd_option option = {
    .magic = htobe64 (NBD_OPTION_MAGIC),
    .option = htobe32 (NBD_OPT_EXPORT_NAME),
    .length = htobe32 ((uint32_t)strlen (name)),
  };
  struct nbd_export_name_reply reply;
  struct nbd_hello hello;

  setsockopt (fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  int r = receive (fd, &hello, sizeof hello);
  if (r == 0)
    r = transmit (fd, &flags, sizeof flags);
  if (r == 0)
    r = transmit (fd, &option, sizeof option);
  if (r == 0 && *name)
    r = transmit (fd, name, strlen (name));
  if (r == 0)
    r = receive (fd, &reply, sizeof reply - sizeof reply.zeroes);
  limit.tv_sec = 0;
  setsockopt (fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (r < 0)
    return r;
  choice->size = be64toh (reply.size);
  choice->flags = be16toh (reply.flags);
  return 0;
}

/* ---- netlink --------------------------------------------------------------------------------- */

struct netlink {
  struct nl_sock *socket;
  int family;
};

static int
open_netlink (struct netlink *nl, struct q_error *err)
{
  nl->socket = nl_socket_alloc ();
  int r = nl->socket ? genl_connect (nl->socket) : -NLE_NOMEM;

  nl->family = r == 0 ? genl_ctrl_resolve (nl->socket, NBD_GENL_FAMILY_NAME) : r;
  if (nl->family >= 0)
    return 0;
  if (r == 0)
    snprintf (err->text, sizeof err->text,
              "this kernel has no nbd driver with a netlink interface (%s): 'modprobe nbd', or a "
              "kernel of version 4.10 or later",
              nl_geterror (nl->family));
  else
    snprintf (err->text, sizeof err->text, "cannot talk to the kernel by netlink: %s",
              nl_geterror (r));
  nl_socket_free (nl->socket);
  return -ENOTSUP;
}

/* Sends MSG and waits for what the kernel says to it. */
static int
carry_out (struct netlink *nl, struct nl_msg *msg, const char *what, struct q_error *err)
{
  int r = nl_send_sync (nl->socket, msg); /* frees MSG */

  if (r < 0)
    snprintf (err->text, sizeof err->text, "cannot %s the nbd device: %s", what,
              r == -NLE_BUSY   ? "it is in use"
              : r == -NLE_PERM ? "only root can"
                               : nl_geterror (r));
  return r < 0 ? -EIO : 0;
}

static struct nl_msg *
new_message (struct netlink *nl, uint8_t command)
{
  struct nl_msg *msg = nlmsg_alloc ();

  if (msg && !genlmsg_put (msg, NL_AUTO_PORT, NL_AUTO_SEQ, nl->family, 0, 0, command, 0)) {
    nlmsg_free (msg);
    msg = NULL;
  }
  return msg;
}

/* Where an attribute does not fit, these leave through put_failed: libnl's own way. */
static int
put_connection (struct nl_msg *msg, int index, int fd, const struct choice *choice)
{
  NLA_PUT_U32 (msg, NBD_ATTR_INDEX, (uint32_t)index);
  NLA_PUT_U64 (msg, NBD_ATTR_SIZE_BYTES, choice->size);
  /* A disk whose size is no multiple of that loses its last bytes. */
  NLA_PUT_U64 (msg, NBD_ATTR_BLOCK_SIZE_BYTES, SECTOR);
  NLA_PUT_U64 (msg, NBD_ATTR_SERVER_FLAGS, choice->flags);
  NLA_PUT_U64 (msg, NBD_ATTR_CLIENT_FLAGS, 0);
  struct nlattr *sockets = nla_nest_start (msg, NBD_ATTR_SOCKETS);
  struct nlattr *item = sockets ? nla_nest_start (msg, NBD_SOCK_ITEM) : NULL;
  if (!item)
    goto nla_put_failure;
  NLA_PUT_U32 (msg, NBD_SOCK_FD, (uint32_t)fd);
  nla_nest_end (msg, item);
  nla_nest_end (msg, sockets);
  return 0;

nla_put_failure:
  return -EMSGSIZE;
}

static int
put_index (struct nl_msg *msg, int index)
{
  NLA_PUT_U32 (msg, NBD_ATTR_INDEX, (uint32_t)index);
  return 0;

nla_put_failure:
  return -EMSGSIZE;
}

int
device_connect (int index, int fd, const char *export_name, struct q_error *err)
{
  struct choice choice = { 0 };
  struct netlink nl;
  int r = open_netlink (&nl, err);

  if (r < 0)
    return r;
  r = handshake (fd, export_name, &choice);
  if (r < 0)
    snprintf (err->text, sizeof err->text, "the handshake for the nbd device failed: %s",
              strerror (-r));
  else {
    struct nl_msg *msg = new_message (&nl, NBD_CMD_CONNECT);
    if (msg && put_connection (msg, index, fd, &choice) == 0)
      r = carry_out (&nl, msg, "connect", err);
    else {
      nlmsg_free (msg);
      snprintf (err->text, sizeof err->text, "cannot connect the nbd device: out of memory");
      r = -ENOMEM;
    }
  }
  nl_socket_free (nl.socket);
  return r;
}

int
device_disconnect (int index, struct q_error *err)
{
  struct netlink nl;
  int r = open_netlink (&nl, err);

  if (r < 0)
    return r;
  struct nl_msg *msg = new_message (&nl, NBD_CMD_DISCONNECT);
  if (msg && put_index (msg, index) == 0)
    r = carry_out (&nl, msg, "disconnect", err);
  else {
    nlmsg_free (msg);
    snprintf (err->text, sizeof err->text, "cannot disconnect the nbd device: out of memory");
    r = -ENOMEM;
  }
  nl_socket_free (nl.socket);
  return r;
}

#endif
