/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The parts of the command line's reader: options.c has the tables and goes through what was said,
 * option-values.c understands single values, and option-rules.c knows what does not go together.
 *
 * Whatever is wrong is logged in one line, and ends the process with status 1.
 */

#ifndef OPTION_H
#define OPTION_H

#include <setjmp.h>

#include "options.h"

/* What was said, beyond what it means: for the rules between options. */
struct said {
  bool cache, aio, aio_native, discard, detect_zeroes, format, name, shared, level;
  bool backing, data_file_policy, untrusted;
  unsigned config_depth;
};

void option_fail (const char *fmt, ...) __attribute__ ((noreturn, format (printf, 1, 2)));
/* Until ENV is NULL again, failures end with longjmp, with their line in ERR: there is a server to
 * go on with (options_parse_again). */
void option_failures_go (jmp_buf *env, struct q_error *err);
bool option_is_again (void);

/* ---- option-values.c: what ARG means, for the option that the function is named after ---------
 */

unsigned option_number (const char *option, const char *arg, unsigned min, unsigned max);
/* A string that goes over the wire. */
const char *option_string (const char *option, const char *arg);
/* Fails if *GIVEN, and sets it. */
void option_once (bool *given, const char *option);
/* Adds TREE, which it takes over, to LIST; NULL is a failure, for the reason in ERR. */
void option_tree (json_t *list, json_t *tree, const char *option, const struct q_error *err);

void option_aio (struct said *said, const char *arg);
void option_bitmap (struct options *opts, const char *arg);
void option_export (struct options *opts, const char *arg);
void option_export_dir (struct options *opts, const char *arg);
void option_memory (struct options *opts, const char *arg);
void option_watermark (const char *option, const char *arg, struct q_amount *amount);
void option_object (struct options *opts, const char *arg);
void option_offset (struct options *opts, const char *arg);
void option_port (struct options *opts, const char *arg);
void option_state_dir (struct options *opts, const char *arg);
void option_tls (struct options *opts, const char *arg);
void option_trace (struct options *opts, struct said *said, const char *arg);

/* ---- option-rules.c: what was said as a whole ------------------------------------------------ */

void options_check_list (const struct options *opts, const struct said *said);
/* Also settles what depends on several options. */
void options_check_serve (struct options *opts, const struct said *said);
void options_check_tls (const struct options *opts);

#endif /* OPTION_H */
