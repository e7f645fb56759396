/* SPDX-License-Identifier: BSD-3-Clause
 *
 * --run and --exit-with-parent.
 */

#ifndef RUN_H
#define RUN_H

#include "qcow2.h"

/* Starts COMMAND by /bin/sh, with the environment variables uri, exportname and (for a unix socket)
 * unixsocket set.  Returns its process number or -errno. */
int run_command (const char *command, const char *uri, const char *export_name,
                 const char *unix_socket, struct q_error *err);

/* A name for a socket in a directory of its own, for run_command.  To be given back. */
char *run_private_socket (struct q_error *err);
void run_remove_private_socket (char *path);

/* SIGTERM comes when the parent process ends. */
int run_exit_with_parent (struct q_error *err);

#endif /* RUN_H */
