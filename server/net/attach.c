/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "attach.h"
#include "device.h"
#include "nbd.h"

/* What the process is told ... */
struct order {
  char name[NBD_MAX_STRING + 1]; /* of the export */
};

/* ... and what comes back. */
struct outcome {
  int r;
  struct q_error err;
};

/* Opening a device makes the kernel read its partition table. */
static void
scan_partitions (const char *device)
{
  int fd = open (device, O_RDWR | O_CLOEXEC);

  if (fd >= 0)
    close (fd);
}

static void
work (int control, const char *device, int index, int kernel)
{
  struct order order;
  struct outcome o = { 0 };

  if (recv (control, &order, sizeof order, 0) != sizeof order)
    return; /* the server has gone */
  o.r = device_connect (index, kernel, order.name, &o.err);
  close (kernel); /* the kernel has its own reference */
  if (send (control, &o, sizeof o, MSG_NOSIGNAL) == sizeof o && o.r == 0)
    scan_partitions (device);
}

int
attach_start (struct attach *a, const char *device, int index, int kernel, int server,
              struct q_error *err)
{
  int pair[2];
  pid_t pid = -1;

  if (socketpair (AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0) {
    pid = fork ();
    if (pid == 0) {
      close (pair[0]);
      close (server);
      work (pair[1], device, index, kernel);
      _exit (EXIT_SUCCESS);
    }
    close (pair[1]);
    if (pid < 0)
      close (pair[0]);
  }
  close (kernel);
  if (pid < 0) {
    int r = -errno;
    snprintf (err->text, sizeof err->text, "cannot start what connects %s: %s", device,
              strerror (-r));
    return r;
  }
  a->control = pair[0];
  return 0;
}

int
attach_connect (struct attach *a, const char *export_name, struct q_error *err)
{
  struct order order = { "" };
  struct outcome o;

  snprintf (order.name, sizeof order.name, "%s", export_name);
  if (send (a->control, &order, sizeof order, MSG_NOSIGNAL) != sizeof order ||
      recv (a->control, &o, sizeof o, 0) != sizeof o) {
    snprintf (err->text, sizeof err->text, "the process that connects the nbd device has died");
    return -EPIPE;
  }
  if (o.r < 0)
    *err = o.err;
  return o.r;
}

void
attach_end (struct attach *a)
{
  if (a->control >= 0)
    close (a->control);
  a->control = -1;
}
