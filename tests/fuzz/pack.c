/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pack SEED IMAGE >INPUT: makes an input for fuzz-image of an image file (packed.h), with options
 * and requests that follow from SEED.
 */

#include <stdio.h>
#include <stdlib.h>

#include "packed.h"

int
main (int argc, char **argv)
{
  struct mem_file f = { .name = argc == 3 ? argv[2] : NULL };
  uint8_t *out = xalloc (2 * PACKED_MAX);
  uint64_t random;
  size_t n;

  if (argc != 3)
    die ("usage: %s SEED IMAGE >INPUT", argv[0]);
  random = random_seed (strtoull (argv[1], NULL, 0));
  mem_load (&f, argv[2]);
  if (f.size > PACKED_MAX)
    die ("%s: %llu bytes, at most %u are wanted", argv[2], (unsigned long long)f.size, PACKED_MAX);
  /* The first bytes are options, and 0 is the plain one of each. */
  for (unsigned i = 8; i < PACKED_HEAD; ++i)
    out[i] = (uint8_t)random_next (&random);
  n = packed_take (f.data, f.size, out + PACKED_HEAD, 2 * PACKED_MAX - PACKED_HEAD);
  if (fwrite (out, 1, PACKED_HEAD + n, stdout) != PACKED_HEAD + n || fflush (stdout) != 0)
    die ("cannot write");
  free (out);
  free (f.data);
  return 0;
}
