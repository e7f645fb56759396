/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The nbd devices of the kernel, by its netlink interface: --connect and --disconnect.
 *
 *     device_index ("/dev/nbd0", &index, &err);      with -1 for no device in particular
 *     socketpair (...);   one end to the server
 *     device_connect (&d, fd, "name", &err);         the other to the kernel
 *     device_disconnect (index, &err);
 */

#ifndef DEVICE_H
#define DEVICE_H

#include "qcow2.h"

/* The number of the device NAME. */
int device_index (const char *name, int *index, struct q_error *err);

/* Talks to the server at the other end of FD until the export EXPORT_NAME is chosen, and hands FD
 * to the kernel as device INDEX.  Blocking; the server must be running.  FD stays the caller's. */
int device_connect (int index, int fd, const char *export_name, struct q_error *err);
/* The device lets go of its socket. */
int device_disconnect (int index, struct q_error *err);

#endif /* DEVICE_H */
