/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands that are run while the server serves.
 *
 *     hooks_allow (command, &err);           each command that may be run later
 *     hooks_prepare (leave, list, opaque, &err);   forks a process that will start them
 *     hooks_start (ev, ended);               the main loop, where ENDED is told how they end
 *     id = hooks_run (command, facts, &err); its thread; does not wait
 *     hooks_stop ();                         its thread; what is being run goes on without us
 *
 * They are started by a process of their own, forked before the server has threads, opens images
 * and gives up what it could do: it has neither descriptors nor memory of what comes later, and is
 * not in the sandbox.  So that it is no way out of that, it runs commands that it has read itself,
 * on the command line and in the configuration (which it reads again when it is to run one that it
 * does not know), and takes from the server which one to run and facts for it, nothing else.
 * Without a configuration, and where nobody asked for commands, there is no such process.  It ends
 * when the server does, in whatever way.
 */

#ifndef HOOKS_H
#define HOOKS_H

#include <stdint.h>

#include "qcow2.h"

struct ev_loop;

/* The command ID has ended with that status, as waitpid has it; ID 0: how those that were being run
 * end will not be known. */
typedef void (*hooks_ended_fn) (uint32_t id, int status);

/* Facts are variables with names that begin so. */
#define HOOKS_FACT_PREFIX "NBDCOW_"

/* COMMAND is in the command line or the configuration.  Any thread. */
int hooks_allow (const char *command, struct q_error *err);
/* Whether hooks_allow was called for COMMAND: 0 or -EPERM.  Any thread. */
int hooks_check (const char *command, struct q_error *err);
/* LEAVE is called in the other process: it frees and closes what is nobody's business there.  LIST
 * is called there later: it reads the configuration, and calls hooks_allow for what that has; NULL
 * if there is none. */
int hooks_prepare (void (*leave) (void *opaque), void (*list) (void *opaque), void *opaque,
                   struct q_error *err);
void hooks_start (struct ev_loop *ev, hooks_ended_fn ended);
/* Runs /bin/sh -c COMMAND with nothing to read and with FACTS ("NAME=VALUE", up to a
 * NULL) in its environment.  Returns a number above 0, or -errno. */
int64_t hooks_run (const char *command, const char *const *facts, struct q_error *err);
void hooks_stop (void);
/* Closes what hooks_prepare made, and forgets the commands. */
void hooks_free (void);

#endif /* HOOKS_H */
