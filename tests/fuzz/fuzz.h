/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What all fuzz targets are made of.
 *
 * A target is one source file that defines LLVMFuzzerTestOneInput and fuzz_seeds.  Linked with
 * libFuzzer it is fuzz-NAME; linked with replay.c, a plain main, it is replay-NAME, which runs the
 * files that it is given, in any build and with any compiler.
 *
 * Everything that a run does follows from the bytes of its input: no clock, no other randomness, no
 * state that is left from the run before.  What must hold is said by an oracle that calls broken.
 */

#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* Calls EMIT for each input that the target can make by itself, to begin a corpus with. */
typedef void (*fuzz_emit) (void *opaque, const char *name, const uint8_t *data, size_t size);
void fuzz_seeds (fuzz_emit emit, void *opaque);

/* Something that must hold does not: says what, and aborts. */
void broken (const char *fmt, ...) __attribute__ ((noreturn, format (printf, 1, 2)));

/* Sets up what is the same for each run; to be called first in each.  No log, and random numbers
 * of the engine that begin anew. */
void fuzz_begin (void);

/* So much later is each look at CLOCK_MONOTONIC.  0: time passes as it does. */
extern uint64_t fuzz_tick_ns;

/* ---- taking an input apart: zeros past its end ----------------------------------------------- */

struct input {
  const uint8_t *at;
  size_t left;
};

static inline void
take (struct input *in, void *to, size_t n)
{
  size_t have = n < in->left ? n : in->left;

  if (have > 0)
    memcpy (to, in->at, have);
  memset ((uint8_t *)to + have, 0, n - have);
  in->at += have;
  in->left -= have;
}

static inline uint8_t
take8 (struct input *in)
{
  uint8_t v;

  take (in, &v, sizeof v);
  return v;
}

static inline uint16_t
take16 (struct input *in)
{
  uint16_t v;

  take (in, &v, sizeof v);
  return v;
}

static inline uint32_t
take32 (struct input *in)
{
  uint32_t v;

  take (in, &v, sizeof v);
  return v;
}

static inline uint64_t
take64 (struct input *in)
{
  uint64_t v;

  take (in, &v, sizeof v);
  return v;
}

#endif /* FUZZ_H */
