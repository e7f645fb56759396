/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Settings as people write them on a command line, and as JSON: both end up as a JSON object that
 * one piece of code takes apart.
 *
 *     keyval_parse ("file=a.raw,cache.direct=on", NULL, &err)
 *         -> {"file": "a.raw", "cache": {"direct": "on"}}
 *
 *     struct members m;
 *     members_init (&m, object, "--export", &err);
 *     members_string (&m, "name", &name);
 *     members_bool (&m, "read-only", &read_only);
 *     if (members_end (&m) < 0) ...             err says what is wrong
 *
 * A member that is absent leaves the variable as it is.  Numbers and booleans may also come as
 * strings, as they do from a command line.  The first error stays; the calls after it do nothing.
 */

#ifndef KEYVAL_H
#define KEYVAL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

/* KEY=VALUE,...  A dot in a key descends into an object, two commas in a value are one, a key
 * without a value is "on".  IMPLIED (may be NULL) is the key of a first value that has none.  NULL
 * on error, with one line in ERR. */
json_t *keyval_parse (const char *text, const char *implied, struct q_error *err);
/* The same from JSON text, whose members' names may have dots too. */
json_t *keyval_parse_json (const char *text, const char *what, struct q_error *err);
/* What is wrong with a text that is no JSON, without the piece of it that jansson shows. */
const char *keyval_json_error (json_error_t *e);
/* Turns {"a.b": 1} into {"a": {"b": 1}}, all the way down.  OBJECT is left alone. */
json_t *keyval_nest (json_t *object, const char *what, struct q_error *err);

/* The most members of one kind of object. */
#define MEMBERS_MAX 48

struct members {
  json_t *object;
  const char *what; /* what the object is, for messages */
  struct q_error *err;
  bool failed;
  bool strict; /* to be set after members_init: a member is of its type, or it is an error */
  bool secret; /* set it after members_init: messages show neither values nor unknown names */
  unsigned n_known;
  const char *known[MEMBERS_MAX]; /* names asked for */
};

void members_init (struct members *m, json_t *object, const char *what, struct q_error *err);
/* NULL if it is absent (or null). */
json_t *members_get (struct members *m, const char *name);
/* True if it is there and null. */
bool members_is_null (struct members *m, const char *name);
/* *VALUE belongs to the object. */
void members_string (struct members *m, const char *name, const char **value);
void members_bool (struct members *m, const char *name, bool *value);
void members_number (struct members *m, const char *name, uint64_t min, uint64_t max,
                     uint64_t *value);
/* A number of bytes, with an optional suffix: k, M, G, T. */
void members_size (struct members *m, const char *name, uint64_t *value);
/* One of the N strings of CHOICES; *VALUE is its index. */
void members_choice (struct members *m, const char *name, const char *const *choices, unsigned n,
                     unsigned *value);
/* It has to be there. */
void members_require (struct members *m, const char *name);
/* Says that something is wrong. */
void members_fail (struct members *m, const char *fmt, ...) __attribute__ ((format (printf, 2, 3)));
/* An unknown member is an error as well.  Returns 0 or -EINVAL. */
int members_end (struct members *m);

/* A number of bytes with an optional suffix; false if TEXT is none. */
bool parse_size (const char *text, uint64_t *value);
/* on, off, yes, no, true, false. */
bool parse_bool (const char *text, bool *value);

#endif /* KEYVAL_H */
