/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the server can still do when it serves: as little as it needs, so that a client or an image
 * that takes it over gets no further.
 *
 *     sandbox_init (&sb, mode);
 *     sandbox_want (&sb, SANDBOX_REMOVE, path);   for each thing that it will do while it runs
 *     sandbox_enter (&sb, &err);    everything is open, privileges are dropped, there are no
 *                                   threads: capabilities, no-new-privileges, Landlock
 *     sandbox_filter (&sb, &err);   the loops have their threads and rings: system calls
 *     sandbox_free (&sb);
 *
 * There is no way back.  What wants to start programs forks what starts them before sandbox_enter.
 * sandbox.c has the table of what each want adds; the manual repeats it.
 */

#ifndef SANDBOX_H
#define SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

enum sandbox_mode {
  SANDBOX_AUTO, /* what the kernel and the build have */
  SANDBOX_ON,   /* all of it, or an error */
  SANDBOX_OFF,
};

enum sandbox_want {
  SANDBOX_REMOVE,     /* remove that file at the end */
  SANDBOX_REMOVE_DIR, /* ... that directory */
  SANDBOX_STATE,      /* files below that directory */
  SANDBOX_READ,       /* read below that directory, or beside that file */
  SANDBOX_TELL,       /* talk to the service manager, the system's log or journal */
  SANDBOX_IMAGES,     /* open images and sockets that are not known yet */
  SANDBOX_HANDOVER,   /* connect to the process that takes over, and end it if it fails */
};

/* What the filter lets through beside what every server needs. */
enum sandbox_calls {
  SANDBOX_CALLS_READ = 1,    /* open files for reading */
  SANDBOX_CALLS_WRITE = 2,   /* ... for writing, make, rename and remove them */
  SANDBOX_CALLS_TELL = 4,    /* unix datagram sockets */
  SANDBOX_CALLS_SOCKETS = 8, /* unix and network sockets of any kind */
  SANDBOX_CALLS_KILL = 16,   /* watch another process, and end it */
};

/* What may be done with files below a directory. */
enum sandbox_files {
  SANDBOX_FILES_READ = 1,
  SANDBOX_FILES_WRITE = 2, /* making, renaming and removing them included */
  SANDBOX_FILES_REMOVE = 4,
  SANDBOX_FILES_REMOVE_DIR = 8,
};

#define SANDBOX_MAX_RULES 64

struct sandbox {
  enum sandbox_mode mode;
  unsigned calls; /* enum sandbox_calls */
  unsigned n_rules;
  struct sandbox_rule {
    char *path;      /* a directory */
    unsigned access; /* enum sandbox_files */
  } rules[SANDBOX_MAX_RULES];
  bool images;   /* reads and writes files wherever images may be */
  bool abstract; /* talks to an abstract unix socket */
  bool secret;   /* there are keys in memory */
  bool failed;   /* a want could not be kept in mind */
};

bool sandbox_parse (const char *text, enum sandbox_mode *mode);
void sandbox_init (struct sandbox *sb, enum sandbox_mode mode);
/* PATH may be NULL where none is said. */
void sandbox_want (struct sandbox *sb, enum sandbox_want want, const char *path);
int sandbox_enter (const struct sandbox *sb, struct q_error *err);
/* For all threads of the process. */
int sandbox_filter (const struct sandbox *sb, struct q_error *err);
void sandbox_free (struct sandbox *sb);

/* sandbox-files.c: 0, -ENOTSUP if this build or kernel has no Landlock, or another -errno. */
int sandbox_restrict_files (const struct sandbox *sb, struct q_error *err);
/* sandbox-calls.c: 0, -ENOTSUP if this build or kernel has no filters, or another -errno. */
int sandbox_load_filter (unsigned calls, struct q_error *err);

#endif /* SANDBOX_H */
