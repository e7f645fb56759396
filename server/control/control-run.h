/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The thread that runs the control socket's commands that may block, one after the other.
 *
 *     runner_start (&r, wake, opaque);
 *     runner_submit (&r, call);
 *     call = runner_take (&r);     all that have been run; after wake was called, on any thread
 *     runner_stop (&r);            what is being run is unwanted; the others do not begin
 */

#ifndef CONTROL_RUN_H
#define CONTROL_RUN_H

#include <pthread.h>

#include "control.h"

struct control_client;

/* A command on its way from a client and back. */
struct call {
  struct call *next;
  struct control_client *client; /* NULL: it has gone */
  const struct control_command *command;
  struct control_call public;
  json_t *args, *id; /* id may be NULL */
  /* What it has come to. */
  int result;
  json_t *ret;
  struct control_error err;
};

struct runner {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  struct call *running;
  struct call *first, *last; /* to be run */
  struct call *done;
  bool stop, started;
  void (*wake) (void *opaque);
  void *opaque;
};

/* Returns 0 or a negative errno. */
int runner_start (struct runner *r, void (*wake) (void *opaque), void *opaque);
void runner_submit (struct runner *r, struct call *call);
struct call *runner_take (struct runner *r);
/* All calls that are left, linked by next; those that have not been run fail with -ESHUTDOWN. */
struct call *runner_stop (struct runner *r);

#endif /* CONTROL_RUN_H */
