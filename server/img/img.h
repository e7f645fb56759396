/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img: what the sub-commands share.  One file a sub-command; main.c dispatches.
 *
 * A sub-command is called with its own name as argv[0], and returns the exit status.  What it says
 * is compatible with qemu-img: option names, JSON keys, exit statuses.
 */

#ifndef NBDCOW_IMG_H
#define NBDCOW_IMG_H

#include <getopt.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

struct img_command {
  const char *name;
  int (*run) (int argc, char **argv);
  const char *summary;  /* one line, for the list of commands */
  const char *synopsis; /* what follows "nbdcow-img NAME" */
  const char *help;     /* its options, for NAME --help */
};

extern const struct img_command img_check_command;
extern const struct img_command img_create_command;
extern const struct img_command img_info_command;

/* ---- messages (cmdline.c) -------------------------------------------------------------------- */

/* One line on stderr after the program's name.  img_error returns 1, the exit status for it. */
int img_error (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));
void img_warning (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));

/* ---- command line (cmdline.c) ---------------------------------------------------------------- */

/* What every sub-command understands. */
#define IMG_COMMON_OPTIONS                                                                         \
  { "help", no_argument, NULL, 'h' },                                                              \
  {                                                                                                \
    NULL, 0, NULL, 0                                                                               \
  }

/* Values of long options without a letter start here. */
enum { IMG_OPT_LONG = 256 };

/* getopt_long, with these differences: an option that is unknown or lacks its argument is reported
 * and comes back as '?', and --help is printed and comes back as 'h': in both cases the
 * sub-command returns what *STATUS says. */
int img_getopt (const struct img_command *cmd, int argc, char **argv, const char *letters,
                const struct option *options, int *status);

/* "1.5G" and the like, as qemu-img has it: a number, in hexadecimal after 0x, then b, k, M, G, T, P
 * or E.  Reports what is wrong, naming WHAT; false then. */
bool img_parse_size (const char *what, const char *text, uint64_t *bytes);
/* A decimal number from MIN to MAX. */
bool img_parse_number (const char *what, const char *text, uint64_t min, uint64_t max,
                       uint64_t *number);
/* "on" or "off", and what else qemu-img takes for them. */
bool img_parse_bool (const char *what, const char *text, bool *value);
/* qcow2, raw; reports anything else. */
bool img_parse_format (const char *text, enum q_format *format);
/* human, json. */
bool img_parse_output (const char *text, bool *json);

/* -o key=value,key=value: a comma in a value is doubled; a key alone stands for key=on. */
struct img_pair {
  char *key, *value;
};
struct img_pairs {
  struct img_pair *pair;
  size_t n;
};
/* Adds the pairs in TEXT; keys may repeat.  Ends the program when memory runs out. */
void img_pairs_add (struct img_pairs *pairs, const char *text);
/* The last value for KEY, or NULL. */
const char *img_pairs_get (const struct img_pairs *pairs, const char *key);
void img_pairs_free (struct img_pairs *pairs);

/* ---- images (image.c) ------------------------------------------------------------------------ */

/* What a file is when nobody has said: qcow2 if it begins with its magic, else raw. */
bool img_probe (const char *filename, enum q_format *format);
const char *img_format_name (enum q_format format);
/* Opens an image; AUTO is probed.  Reports what is wrong; NULL then. */
struct q_image *img_open (const char *filename, const struct q_open_options *opts);
/* Closes it; false, and reported, if what was written may be lost. */
bool img_close (struct q_image **img);
/* NAME as OVERLAY would find it: relative to the overlay's directory.  NULL, and reported, if it
 * is not a local file.  The caller frees. */
char *img_backing_path (const char *overlay, const char *name);

/* ---- output (output.c) ----------------------------------------------------------------------- */

/* "976 KiB": three digits of the largest unit.  TEXT has at least 32 bytes. */
const char *img_size_text (uint64_t bytes, char text[32]);
/* Prints JSON the way qemu-img does and frees it; false if stdout could not be written. */
bool img_print_json (json_t *json);
/* Ends output: a full disk or closed pipe is an error like any other.  Returns STATUS or 1. */
int img_finish_output (int status);

#endif /* NBDCOW_IMG_H */
