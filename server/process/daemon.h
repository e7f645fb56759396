/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Going to the background, and pid files.
 */

#ifndef DAEMON_H
#define DAEMON_H

#include <stdbool.h>

#include "qcow2.h"

/* Forks.  Returns in the child alone; the parent stays until the child calls daemon_ready (then it
 * exits with status 0) or ends without (status 1, after the child's messages on stderr).  Signals
 * that would end the parent go to the child.  Call it before there are threads and open images. */
void daemon_fork (void);
/* For a process that the server forks before it is ready and that stays: lets stdout and (unless
 * KEEP_STDERR) stderr go, for whoever reads what the server says waits until nobody can say more.
 * Without daemon_fork, does nothing. */
void daemon_detach (bool keep_stderr);
/* Lets the parent go, and stdout and (unless KEEP_STDERR) stderr with it.  Without daemon_fork,
 * does nothing. */
void daemon_ready (bool keep_stderr);

/* Makes and locks the pid file, which stays until pid_file_remove; empty until pid_file_write. */
int pid_file_open (const char *path, struct q_error *err);
/* Without pid_file_open, does nothing. */
int pid_file_write (struct q_error *err);
/* Only the one that this process has opened; under whatever directory it works now. */
void pid_file_remove (void);

/* For a takeover: the open pid file, which carries its lock (-1: there is none), and its absolute
 * name. */
int pid_file_descriptor (void);
const char *pid_file_path (void);
/* It is another process's from now on. */
void pid_file_leave (void);
/* In place of pid_file_open: FD, which is taken over, is a descriptor of another process's pid
 * file. -EXDEV if PATH is another file. */
int pid_file_adopt (const char *path, int fd, struct q_error *err);

#endif /* DAEMON_H */
