/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The command line: qemu-nbd's, and what nbdcow adds to it.
 */

#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>

#include "qcow2.h"

struct options {
  const char *filename;
  enum q_format format;

  /* Where to listen: the unix socket, else TCP. */
  const char *socket, *bind, *port;
  bool address_given; /* any of the three */

  const char *name, *description;
  bool read_only;
  unsigned shared; /* clients at once; 0 for any number */
  bool persistent;
  unsigned handshake_limit; /* seconds; 0 for none */

  /* --cache, taken apart. */
  bool direct, write_through, ignore_flush;
  bool discard;

  bool verbose, fork;
  const char *pid_file;
  unsigned threads, workers;
};

/* Fills OPTS from the command line.  Prints help and version and ends the process (status 0) if
 * asked to; on an error says what is wrong and ends it with status 1. */
void options_parse (struct options *opts, int argc, char **argv);

#endif /* OPTIONS_H */
