/* SPDX-License-Identifier: BSD-3-Clause
 *
 * --run and --exit-with-parent.
 */

#ifndef RUN_H
#define RUN_H

#include "qcow2.h"

/* --run: the process is made while the server can still make one, and has none of its restrictions;
 * it becomes the command when that is to begin. */
struct run {
  int pid;
  int word; /* -1: none is to be given */
};

/* COMMAND is for /bin/sh, with the environment variables uri, exportname and (for a unix socket)
 * unixsocket set.  Before there are threads. */
int run_prepare (struct run *run, const char *command, const char *uri, const char *export_name,
                 const char *unix_socket, struct q_error *err);
/* Returns its process number. */
int run_begin (struct run *run);
/* It is not to begin after all.  Nothing if it has begun, or was never prepared. */
void run_cancel (struct run *run);

/* A name for a socket in a directory of its own, for run_command.  To be given back. */
char *run_private_socket (struct q_error *err);
void run_remove_private_socket (char *path);

/* SIGTERM comes when the parent process ends, or at once if that is not PARENT any more: what
 * getppid said when this process began. */
int run_exit_with_parent (int parent, struct q_error *err);

#endif /* RUN_H */
