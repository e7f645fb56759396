/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writes the contents of an image, as the engine reads them, to a raw file.
 *
 *     contents IMAGE FILE [PASSWORD]
 */

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qcow2.h"

#define PIECE (1u << 20)

int
main (int argc, char **argv)
{
  struct q_open_options opts;
  struct q_secret secret;
  struct q_image *img;
  struct q_error err;
  static uint8_t buf[PIECE];
  FILE *out;
  int r = 0;

  if (argc != 3 && argc != 4)
    return 2;
  q_open_options_init (&opts);
  if (argc == 4) {
    secret = (struct q_secret){ argv[3], strlen (argv[3]) };
    opts.secret = &secret;
  }
  opts.read_only = true;
  if (q_open (&img, argv[1], &opts, &err) < 0) {
    fprintf (stderr, "contents: %s\n", err.text);
    return 1;
  }
  out = fopen (argv[2], "w");
  if (!out) {
    perror (argv[2]);
    return 1;
  }
  for (uint64_t pos = 0; r == 0 && pos < q_size (img); pos += PIECE) {
    uint64_t len = q_size (img) - pos < PIECE ? q_size (img) - pos : PIECE;

    r = q_pread (img, buf, pos, len);
    if (r < 0)
      fprintf (stderr, "contents: %s: read at %llu: %s\n", argv[1], (unsigned long long)pos,
               strerror (-r));
    else if (fwrite (buf, 1, len, out) != len) {
      perror (argv[2]);
      r = -1;
    }
  }
  if (fclose (out) != 0) {
    perror (argv[2]);
    r = -1;
  }
  q_close (&img, NULL);
  return r < 0;
}
