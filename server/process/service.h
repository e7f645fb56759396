/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The service manager: sd_notify(3).  Without one (or without libsystemd) all of this does nothing.
 */

#ifndef SERVICE_H
#define SERVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* The process BEFORE, which the manager started, has forked this one, which serves in its place.
 * Before there are threads. */
void service_forked (pid_t before);
/* Loads what the rest needs: when there is a sandbox, it is too late. */
void service_prepare (void);
/* Clients can connect.  STATUS is a line for people. */
void service_ready (const char *status);
void service_stopping (void);
/* The server's process is another one from now on. */
void service_main_process (pid_t pid);
/* The configuration is being read again, and has been. */
void service_reloading (void);
void service_reloaded (void);
/* Seconds between two calls of service_alive that the manager is to see; 0: it does not watch. */
double service_watchdog (void);
void service_alive (void);
/* For takeovers: the manager tells the process that it starts how long it is patient, and nobody
 * else.  Microseconds (0: it does not watch), and for the other process to know it, before it has
 * threads; what that one was told itself goes before. */
uint64_t service_patience (void);
void service_inherit (uint64_t patience);

#endif /* SERVICE_H */
