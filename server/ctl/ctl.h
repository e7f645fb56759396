/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-ctl: watches and steers a running nbdcow by its control socket (nbdcow-control(7)).
 *
 * A sub-command is called with its own name as argv[0], its options taken out; it talks to the
 * server by ctl_execute, prints what has come of it, and returns the exit status.
 */

#ifndef CTL_H
#define CTL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct ctl {
  const char *path; /* of the socket */
  bool json;        /* print what the server says, as it is */
  bool hard;        /* --hard */
  bool by_id;       /* --id */
  bool snapshot;    /* --snapshot */
  double interval;  /* of top; seconds */
  unsigned count;   /* of top; 0: until it is interrupted */
  FILE *socket;
};

struct ctl_command {
  const char *name;      /* one or two words */
  int min, max;          /* arguments after it; MAX -1: any number */
  const char *arguments; /* for --help */
  const char *summary;
  int (*run) (struct ctl *c, int argc, char **argv);
};

/* Tables that end with a command without a name. */
extern const struct ctl_command ctl_server_commands[];
extern const struct ctl_command ctl_export_commands[];
extern const struct ctl_command ctl_image_commands[];
extern const struct ctl_command ctl_top_commands[];

/* One line on stderr after the program's name; returns 1. */
int ctl_error (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));

/* ---- the server (qmp.c) ---------------------------------------------------------------------- */

/* Connects and negotiates; the reason is printed if it returns false. */
bool ctl_connect (struct ctl *c);
void ctl_disconnect (struct ctl *c);
/* Runs a command; ARGUMENTS, which may be NULL, is taken over.  What it returns is the caller's;
 * NULL: it failed, and the reason is printed. */
json_t *ctl_execute (struct ctl *c, const char *name, json_t *arguments);
/* The same for a command whose answer is only for --json; returns the exit status. */
int ctl_do (struct ctl *c, const char *name, json_t *arguments);
/* The next event; NULL when the server has gone. */
json_t *ctl_event (struct ctl *c);
/* Prints VALUE, which is taken over, as JSON, and returns the exit status. */
int ctl_print_json (json_t *value);

/* ---- tables (table.c) ------------------------------------------------------------------------ */

/* Rows of text in columns as wide as they have to be. */
struct table {
  unsigned columns;
  const char *right; /* for each column: 'r' to the right, 'l' to the left */
  char **cells;
  size_t n, room; /* cells */
};

/* HEAD has as many strings as RIGHT has letters. */
void table_begin (struct table *t, const char *right, const char *const *head);
/* The next cell, row by row. */
void table_text (struct table *t, const char *text);
void table_format (struct table *t, const char *fmt, ...) __attribute__ ((format (printf, 2, 3)));
/* Bytes, in the largest unit that leaves three digits. */
void table_size (struct table *t, double bytes);
/* Prints it, and forgets it. */
void table_end (struct table *t);

/* ---- members of objects ---------------------------------------------------------------------- */

/* What OBJECT has under NAME; "", 0 and false if it is not there or something else. */
const char *text_of (const json_t *object, const char *name);
double number_of (const json_t *object, const char *name);
bool is_true (const json_t *object, const char *name);

#endif /* CTL_H */
