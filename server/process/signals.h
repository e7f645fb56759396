/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Signals before there is a loop that looks for them.
 *
 *     signals_note ();         before anything is made that has to be removed again
 *     signals_noted ()         now and then while things are made and opened
 *     ev_signal_start (...)    libev takes them over; after that once more:
 *     signals_noted ()
 *
 * So a server that is told to end while it starts removes what it has made: the pid file, its
 * sockets, temporary files.  A second SIGTERM or SIGINT ends it all the same, wherever it hangs;
 * SIGHUP, which may be a wish for a reload, neither does that nor makes up for one of these.
 */

#ifndef SIGNALS_H
#define SIGNALS_H

#include <stdbool.h>
#include <sys/types.h>

/* From here on the first SIGTERM, SIGINT or SIGHUP does not end the process. */
void signals_note (void);
/* Which of them came, or 0. */
int signals_noted (void);

/* While a process forks: neither side ends before it knows what the other one means to it. */
void signals_block (bool block);
/* Passes those signals on to the process CHILD: for one that only waits for it. */
void signals_pass_to (pid_t child);

#endif /* SIGNALS_H */
