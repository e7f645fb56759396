/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A main for fuzz targets without a fuzzer: runs the inputs that it is given.
 *
 *     replay-NAME FILE...            files as a fuzzer writes them; NAME.hex in hexadecimal
 *     replay-NAME --seeds DIRECTORY  writes the inputs that the target makes by itself
 *     replay-NAME --self             runs these
 *     replay-NAME --hex FILE         prints FILE as text, for tests/fuzz/regress
 *     replay-NAME --bytes NAME.hex   the other way
 *
 * Ends with 0 when all of them came through: whatever goes wrong ends the process.
 */

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "fuzz.h"
#include "mem.h"

#define MAX_INPUT (16u << 20)

struct bytes {
  uint8_t *data;
  size_t n;
};

static struct bytes
read_file (const char *path)
{
  struct bytes b = { .data = xalloc (MAX_INPUT) };
  FILE *f = fopen (path, "rb");

  if (!f)
    die ("%s: %s", path, strerror (errno));
  b.n = fread (b.data, 1, MAX_INPUT, f);
  if (ferror (f) || !feof (f))
    die ("%s: cannot be read, or has more than %u bytes", path, MAX_INPUT);
  fclose (f);
  return b;
}

static int
digit (int c)
{
  return isdigit (c) ? c - '0' : isxdigit (c) ? tolower (c) - 'a' + 10 : -1;
}

/* In place: pairs of digits; '#' begins a comment that goes to the end of the line. */
static void
decode (const char *path, struct bytes *b)
{
  size_t out = 0;
  int high = -1;

  for (size_t i = 0; i < b->n; ++i) {
    int d = digit (b->data[i]);

    if (b->data[i] == '#')
      while (i < b->n && b->data[i] != '\n')
        ++i;
    else if (d >= 0 && high >= 0) {
      b->data[out++] = (uint8_t)(high << 4 | d);
      high = -1;
    } else if (d >= 0)
      high = d;
    else if (!isspace (b->data[i]))
      die ("%s: byte %zu, 0x%02x, is not hexadecimal", path, i, b->data[i]);
  }
  if (high >= 0)
    die ("%s: an odd number of digits", path);
  b->n = out;
}

static void
run (const char *path)
{
  struct bytes b = read_file (path);
  size_t len = strlen (path);
  uint8_t *exact;

  if (len > 4 && strcmp (path + len - 4, ".hex") == 0)
    decode (path, &b);
  /* As long as it is, so that a sanitizer sees who reads past its end. */
  exact = xalloc (b.n);
  memcpy (exact, b.data, b.n);
  free (b.data);
  printf ("%s: %zu bytes\n", path, b.n);
  fflush (stdout);
  LLVMFuzzerTestOneInput (exact, b.n);
  free (exact);
}

static void
print_hex (const char *path)
{
  struct bytes b = read_file (path);

  for (size_t i = 0; i < b.n; ++i)
    printf ("%02x%s", b.data[i], i + 1 == b.n || i % 40 == 39 ? "\n" : "");
  free (b.data);
}

static void
print_bytes (const char *path)
{
  struct bytes b = read_file (path);

  decode (path, &b);
  if (fwrite (b.data, 1, b.n, stdout) != b.n || fflush (stdout) != 0)
    die ("cannot write");
  free (b.data);
}

static void
write_seed (void *opaque, const char *name, const uint8_t *data, size_t size)
{
  char path[4096];
  FILE *f;

  snprintf (path, sizeof path, "%s/%s", (const char *)opaque, name);
  f = fopen (path, "wb");
  if (!f || fwrite (data, 1, size, f) != size || fclose (f) != 0)
    die ("%s: %s", path, strerror (errno));
}

static void
run_seed (void *opaque, const char *name, const uint8_t *data, size_t size)
{
  (void)opaque;
  printf ("%s: %zu bytes\n", name, size);
  fflush (stdout);
  LLVMFuzzerTestOneInput (data, size);
}

int
main (int argc, char **argv)
{
  if (argc == 3 && strcmp (argv[1], "--seeds") == 0)
    fuzz_seeds (write_seed, argv[2]);
  else if (argc == 3 && strcmp (argv[1], "--hex") == 0)
    print_hex (argv[2]);
  else if (argc == 3 && strcmp (argv[1], "--bytes") == 0)
    print_bytes (argv[2]);
  else if (argc == 2 && strcmp (argv[1], "--self") == 0)
    fuzz_seeds (run_seed, NULL);
  else if (argc < 2 || argv[1][0] == '-')
    die ("usage: %s FILE... | --seeds DIRECTORY | --self | --hex FILE | --bytes FILE", argv[0]);
  else
    for (int i = 1; i < argc; ++i)
      run (argv[i]);
  return 0;
}
