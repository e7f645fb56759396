/* SPDX-License-Identifier: BSD-3-Clause
 *
 * JSON values out of a stream of bytes, as QMP wants them: docs/interop/qmp-spec.rst in QEMU's
 * sources, "General Definitions" and "Forcing the JSON parser into known-good state".
 *
 *     while (p < end)
 *       switch (stream_next (&s, &p, end, &value, &err)) { ... }
 *     stream_destroy (&s);
 *
 * Values may be spread over lines, follow each other on one, and come in any pieces.  Strings may
 * be 'single-quoted' too, and know the escape \'.  Looking for the end of a value takes each byte
 * once, however small the pieces are; what is kept of a value that has not ended is bounded.
 *
 * A control character that is not white space, or a byte that is not in any UTF-8 text (0xFF), ends
 * what has come so far as an error, and what follows it is looked at afresh.  A newline does the
 * same inside a string.  A value that is too long or too deep is one error, and everything up to
 * the end of the line belongs to it.
 */

#ifndef CONTROL_STREAM_H
#define CONTROL_STREAM_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "qcow2.h"

/* Bytes of one value, and objects and arrays in each other. */
#define STREAM_MAX_SIZE  (1024 * 1024)
#define STREAM_MAX_DEPTH 128

struct stream {
  enum { STREAM_START, STREAM_WORD, STREAM_BODY, STREAM_STRING, STREAM_ESCAPE, STREAM_SKIP } state;
  unsigned depth;
  char quote; /* that began the string */
  char *text; /* of the value so far */
  size_t n, room;
};

enum stream_result {
  STREAM_MORE,  /* *P is END */
  STREAM_VALUE, /* *VALUE is the caller's */
  STREAM_ERROR, /* ERR says what; go on all the same */
};

/* All zeros is a stream of which nothing has come yet.  Takes in bytes from *P on, up to the end of
 * the first value or error. */
enum stream_result stream_next (struct stream *s, const char **p, const char *end, json_t **value,
                                struct q_error *err);
void stream_destroy (struct stream *s);

#endif /* CONTROL_STREAM_H */
