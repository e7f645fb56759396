/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The command line: qemu-nbd's, and what nbdcow adds to it.
 */

#ifndef OPTIONS_H
#define OPTIONS_H

#include <jansson.h>
#include <stdbool.h>

#include "export.h"
#include "objects.h"
#include "sandbox.h"

enum mode {
  MODE_SERVE,
  MODE_LIST,       /* --list */
  MODE_DISCONNECT, /* --disconnect */
};

struct options {
  enum mode mode;

  /* What is served: FILE, under the settings of EXPORT, which are also the defaults of the others:
   * trees (keyval.h) of --export and --export-dir, in their order. */
  const char *filename; /* NULL if there is none */
  bool image_opts;
  struct export_options export;
  const char *bitmaps[MAX_BITMAPS];
  json_t *exports, *directories; /* arrays */
  const char *state_dir;

  /* Where to listen: the unix socket, else TCP; vsock beside either. */
  const char *socket, *bind, *port;
  bool bind_given, port_given;
  const char *vsock;    /* port; NULL if not wanted */
  const char *control;  /* path of the control socket; NULL: none */
  const char *metrics;  /* address to answer Prometheus at; NULL: none */
  const char *takeover; /* the control socket of the server that is to be taken over; or NULL */
  const char *selinux_label;
  const char *device; /* of --connect and --disconnect */

  unsigned shared; /* clients at once; 0 for any number */
  bool persistent;
  unsigned handshake_limit, idle_limit; /* seconds; 0 for none */
  uint64_t memory;                      /* bytes for all clients; 0 for the default */

  struct objects objects;
  const char *key_file; /* opens encrypted images that have no other key */
  int key_fd;           /* the same; -1 if not given */
  const char *tls_creds, *tls_authz, *tls_hostname;
  bool tls_optional; /* clients may go without it */

  enum sandbox_mode sandbox;
  bool verbose, fork, print_uri, exit_with_parent;
  const char *pid_file, *log, *user, *group, *run;
  unsigned threads, workers;
  unsigned poll_us; /* the longest that a loop polls before it sleeps */

  bool has_config; /* of --config */
  json_t *configs; /* what strings of configuration files point into */
};

/* Fills OPTS from the command line.  Prints help and version and ends the process (status 0) if
 * asked to; on an error says what is wrong and ends it with status 1. */
void options_parse (struct options *opts, int argc, char **argv);
/* The same while the server runs: on an error, it is in ERR, and OPTS are empty.  The log's level
 * is what they say afterwards, or stays what it was.  One thread at a time. */
int options_parse_again (struct options *opts, int argc, char **argv, struct q_error *err);
void options_free (struct options *opts);

/* usage.c */
void usage_print (void);

#endif /* OPTIONS_H */
