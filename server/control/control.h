/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The control socket: JSON in the shape of QMP (docs/interop/qmp-spec.rst in QEMU's sources), so
 * that its clients can watch and steer the server while it serves.
 *
 *     c = control_open ("/run/nbdcow/control", &err);   makes the socket
 *     control_start (c, ev, &context);                  takes clients in, on EV's thread
 *     control_event ("SOMETHING", data);                any thread
 *     control_stop (c);                  the thread of EV, which does not run any more
 *     control_close (c);                                removes the socket
 *
 * Who may connect: root, and the user that the server runs as.  The socket is made with mode 0600,
 * and the kernel says who is at the other end (SO_PEERCRED).
 *
 * Commands stand in tables, one for each topic (control-*.c).  They are run one after the other for
 * each client, which gets its replies in that order.  Those that may block are run on a thread that
 * the socket has for them, one at a time for all clients; the others at once, in the event loop.
 * Nothing here is waited for by those who serve data.
 *
 * Each client has a bounded queue of replies, and is not read from while it is full; of events, as
 * many as still have room, and it is told how many it has lost (NBDCOW_EVENTS_LOST).
 */

#ifndef CONTROL_H
#define CONTROL_H

#include <ev.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "export.h"
#include "keyval.h"
#include "qcow2.h"

struct control;

/* What the commands are about.  COUNT_CLIENTS and QUIT are called on the thread of the event loop.
 */
struct control_context {
  struct exports *exports;
  const struct export_options *defaults; /* of an export that is added */
  struct clients *clients;
  unsigned (*count_clients) (void *opaque);
  struct timespec started; /* CLOCK_MONOTONIC; control_start says */
  struct control *control;
  struct server *server;       /* NULL: it cannot be taken over */
  struct reload *reload;       /* reload.h; NULL: there is no configuration file */
  void (*quit) (void *opaque); /* returns, and then it ends */
  void *opaque;
};

/* QMP's classes of errors (qapi/error.json). */
enum control_class { CONTROL_GENERIC, CONTROL_NO_COMMAND, CONTROL_NO_DEVICE };

struct control_error {
  enum control_class class;
  struct q_error q; /* "": what errno says */
};

/* A command that is being run. */
struct control_call {
  const struct control_context *context;
  const char *name;
  atomic_bool unwanted; /* who asked for it has gone, or the server is about to: what takes long
                         * and changes nothing ends soon, with -EINTR */
};

enum control_pace {
  CONTROL_AT_ONCE,
  CONTROL_BLOCKS,
  CONTROL_URGENT, /* blocks, and what is run or waits before it is unwanted from then on */
};

struct control_command {
  const char *name;
  /* ARGS is an object.  Returns 0 and perhaps a *RET (else the reply is {}), or a negative errno
   * and what ERR says. */
  int (*run) (struct control_call *call, json_t *args, json_t **ret, struct control_error *err);
  enum control_pace pace;
};

/* A table that ends with a command without a name. */
extern const struct control_command control_server_commands[];
extern const struct control_command control_export_commands[];
extern const struct control_command control_client_commands[];
extern const struct control_command control_node_commands[];
extern const struct control_command control_reload_commands[];
extern const struct control_command control_change_commands[];
extern const struct control_command control_check_commands[];
extern const struct control_command control_stats_commands[];
extern const struct control_command control_takeover_commands[];

/* A socket at PATH, of which nobody else may be at the other end.  NULL on error. */
struct control *control_open (const char *path, struct q_error *err);
/* The socket's file is to belong to that user, who the server is about to become. */
int control_give (struct control *c, uid_t uid, gid_t gid);
/* False without memory or threads; the reason is logged. */
bool control_start (struct control *c, struct ev_loop *ev, const struct control_context *context);
/* Waits for the command that is being run, which is unwanted, and disconnects everybody.  C may be
 * NULL here, or not have been started. */
void control_stop (struct control *c);
void control_close (struct control *c);
/* For takeovers: the listening socket, and its absolute name; -1 if C is NULL. */
int control_socket (const struct control *c, const char **path);
/* The socket is another process's to remove.  C may be NULL. */
void control_leave (struct control *c);
/* In place of control_open, with the listening socket (which is taken over) of another process. */
struct control *control_adopt (int fd, const char *path, uint64_t dev, uint64_t ino,
                               struct q_error *err);

/* Tells every client that has negotiated.  DATA, an object, is taken over; NULL: the event has
 * none.  Any thread; nothing happens without a control socket. */
void control_event (const char *name, json_t *data);

/* ---- for commands ---------------------------------------------------------------------------- */

/* Begins to take ARGS apart (keyval.h), as strictly as QMP does. */
void control_arguments (struct members *m, const struct control_call *call, json_t *args,
                        struct control_error *err);
/* Returns R. */
int control_fail (struct control_error *err, int r, const char *fmt, ...)
    __attribute__ ((format (printf, 3, 4)));
/* The same for something that is not there. */
int control_no_device (struct control_error *err, const char *fmt, ...)
    __attribute__ ((format (printf, 2, 3)));
/* A reference to the export of that name; NULL: there is none, and ERR says so. */
struct export *control_find_export (const struct control_call *call, const char *name,
                                    struct control_error *err);
/* The same for what is about its image: a view has none of its own. */
struct export *control_find_node (const struct control_call *call, const char *name,
                                  struct control_error *err);
/* *RET is VALUE, which is taken over; -ENOMEM if it is NULL. */
int control_return (json_t **ret, json_t *value);
/* The same for a command. */
int control_no_command (struct control_error *err, const char *fmt, ...)
    __attribute__ ((format (printf, 2, 3)));
/* NULL: there is none of that name. */
const struct control_command *control_find_command (const char *name);
/* [{"name": NAME}, ...], of all commands. */
json_t *control_command_names (void);
/* control-server.c: what query-version returns, and the greeting has. */
json_t *control_version (void);

#endif /* CONTROL_H */
