/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading the command line, and saying what is wrong with it.
 */

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

static void vmessage (const char *prefix, const char *fmt, va_list ap)
    __attribute__ ((format (printf, 2, 0)));

static void
vmessage (const char *prefix, const char *fmt, va_list ap)
{
  char *text;

  fflush (stdout);
  if (vasprintf (&text, fmt, ap) == -1)
    text = NULL;
  if (text)
    q_make_printable (text);
  fprintf (stderr, "nbdcow-img: %s%s\n", prefix, text ? text : "out of memory");
  free (text);
}

int
img_error (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  vmessage ("", fmt, ap);
  va_end (ap);
  return 1;
}

void
img_warning (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  vmessage ("warning: ", fmt, ap);
  va_end (ap);
}

/* ---- options --------------------------------------------------------------------------------- */

int
img_getopt (const struct img_command *cmd, int argc, char **argv, const char *letters,
            const struct option *options, int *status)
{
  opterr = 0;

  int c = getopt_long (argc, argv, letters, options, NULL);

  switch (c) {
  case 'h':
    printf ("Usage: nbdcow-img %s %s\n%s.\n\n%s", cmd->name, cmd->synopsis, cmd->summary,
            cmd->help);
    *status = 0;
    break;
  case ':':
    *status = img_error ("%s: option '%s' needs an argument", cmd->name, argv[optind - 1]);
    return '?';
  case '?':
    if (optopt && optopt < IMG_OPT_OPTS)
      *status = img_error ("%s: unknown option '-%c'; 'nbdcow-img %s --help' lists them", cmd->name,
                           optopt, cmd->name);
    else
      *status = img_error ("%s: unknown option '%s'; 'nbdcow-img %s --help' lists them", cmd->name,
                           argv[optind - 1], cmd->name);
    break;
  default:
    break;
  }
  return c;
}

/* ---- values ---------------------------------------------------------------------------------- */

static bool
bad_size (const char *what, const char *text)
{
  img_error ("%s '%s' is not a size: a number of bytes, or one that ends in k, M, G, T, P or E",
             what, text);
  return false;
}

static bool
too_large (const char *what, const char *text)
{
  img_error ("%s '%s' is too large: sizes are less than 8 EiB", what, text);
  return false;
}

/* The power of two that a unit stands for, or -1. */
static int
unit_bits (const char *unit)
{
  static const char units[] = "bkmgtpe";
  const char *at;

  if (*unit == '\0')
    return 0;
  at = strchr (units, tolower ((unsigned char)*unit));
  return at && unit[1] == '\0' ? (int)(at - units) * 10 : -1;
}

bool
img_parse_size (const char *what, const char *text, uint64_t *bytes)
{
  char *end;

  if (!isdigit ((unsigned char)*text))
    return bad_size (what, text);

  errno = 0;
  if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
    *bytes = strtoull (text, &end, 16);
    if (end == text + 2 || *end)
      return bad_size (what, text);
    return (errno == 0 && *bytes <= INT64_MAX) || too_large (what, text);
  }

  uint64_t whole = strtoull (text, &end, 10);
  double fraction = 0;

  if (errno == ERANGE)
    return too_large (what, text);
  if (*end == '.') {
    const char *digits = end;

    if (!isdigit ((unsigned char)end[1]))
      return bad_size (what, text);
    fraction = strtod (digits, &end);
    /* strtod also takes an exponent, which has no place here. */
    if (strspn (digits + 1, "0123456789") != (size_t)(end - digits - 1))
      return bad_size (what, text);
  }

  int bits = unit_bits (end);

  if (bits < 0 || (fraction != 0 && bits == 0))
    return bad_size (what, text);
  if (whole > (uint64_t)INT64_MAX >> bits)
    return too_large (what, text);
  *bytes = (whole << bits) + (uint64_t)(fraction * (double)(1ull << bits) + 0.5);
  return *bytes <= INT64_MAX || too_large (what, text);
}

bool
img_parse_number (const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *number)
{
  char *end;

  errno = 0;
  *number = strtoull (text, &end, 10);
  if (isdigit ((unsigned char)*text) && *end == '\0' && errno == 0 && *number >= min &&
      *number <= max)
    return true;
  img_error ("%s '%s' is not a number from %llu to %llu", what, text, (unsigned long long)min,
             (unsigned long long)max);
  return false;
}

bool
img_parse_bool (const char *what, const char *text, bool *value)
{
  static const char *const yes[] = { "on", "yes", "true", "y" };
  static const char *const no[] = { "off", "no", "false", "n" };

  for (size_t i = 0; i < sizeof yes / sizeof yes[0]; i++)
    if (strcmp (text, yes[i]) == 0 || strcmp (text, no[i]) == 0) {
      *value = strcmp (text, yes[i]) == 0;
      return true;
    }
  img_error ("%s '%s' is neither on nor off", what, text);
  return false;
}

bool
img_parse_format (const char *text, enum q_format *format)
{
  if (strcmp (text, "qcow2") == 0)
    *format = Q_FORMAT_QCOW2;
  else if (strcmp (text, "raw") == 0)
    *format = Q_FORMAT_RAW;
  else {
    img_error ("format '%s' is not known: it is qcow2 or raw", text);
    return false;
  }
  return true;
}

bool
img_parse_output (const char *text, bool *json)
{
  *json = strcmp (text, "json") == 0;
  if (*json || strcmp (text, "human") == 0)
    return true;
  img_error ("--output '%s' is not known: it is human or json", text);
  return false;
}

bool
img_parse_compat (const char *text, unsigned *version)
{
  if (strcmp (text, "0.10") == 0 || strcmp (text, "v2") == 0)
    *version = 2;
  else if (strcmp (text, "1.1") == 0 || strcmp (text, "v3") == 0)
    *version = 3;
  else {
    img_error ("compat '%s' is not known: it is v2 (0.10) or v3 (1.1)", text);
    return false;
  }
  return true;
}

bool
img_parse_refcount_bits (const char *text, unsigned *bits)
{
  uint64_t number;

  if (!img_parse_number ("refcount_bits", text, 1, 64, &number))
    return false;
  if ((number & (number - 1)) != 0) {
    img_error ("refcount_bits '%s' is not a power of two from 1 to 64", text);
    return false;
  }
  *bits = (unsigned)number;
  return true;
}

bool
img_parse_compression (const char *what, const char *text, bool *zstd)
{
  *zstd = strcmp (text, "zstd") == 0;
  if (*zstd || strcmp (text, "zlib") == 0)
    return true;
  img_error ("%s '%s' is not known: it is zlib or zstd", what, text);
  return false;
}

bool
img_parse_state_dir (const char *text, const char **dir)
{
  *dir = text[0] == '/' ? text : NULL;
  if (*dir || strcmp (text, "off") == 0)
    return true;
  img_error ("--state-dir '%s' is neither an absolute name nor off", text);
  return false;
}

const char *
img_snapshot_name (const char *text)
{
  static const char *const keys[] = { "snapshot.id=", "snapshot.name=" };

  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
    if (strncmp (text, keys[i], strlen (keys[i])) == 0)
      return text + strlen (keys[i]);
  return text;
}

/* ---- -o key=value,... ------------------------------------------------------------------------ */

static void *
must (void *ptr)
{
  if (!ptr) {
    img_error ("out of memory");
    exit (1);
  }
  return ptr;
}

/* Takes one value from *TEXT, up to a comma that is not doubled, and moves *TEXT past it. */
static char *
take_value (const char **text)
{
  const char *p = *text;
  char *value = must (malloc (strlen (p) + 1)), *q = value;

  for (; *p; p++) {
    if (*p == ',' && *++p != ',')
      break;
    *q++ = *p;
  }
  *q = '\0';
  *text = p;
  return value;
}

void
img_pairs_add (struct img_pairs *pairs, const char *text)
{
  while (*text) {
    size_t key = strcspn (text, "=,");
    struct img_pair pair = { .key = must (strndup (text, key)) };

    text += key;
    if (*text == '=') {
      text++;
      pair.value = take_value (&text);
    } else {
      pair.value = must (strdup ("on"));
      if (*text)
        text++;
    }
    pairs->pair = must (realloc (pairs->pair, (pairs->n + 1) * sizeof pair));
    pairs->pair[pairs->n++] = pair;
  }
}

const char *
img_pairs_get (const struct img_pairs *pairs, const char *key)
{
  for (size_t i = pairs->n; i-- > 0;)
    if (strcmp (pairs->pair[i].key, key) == 0)
      return pairs->pair[i].value;
  return NULL;
}

void
img_pairs_free (struct img_pairs *pairs)
{
  for (size_t i = 0; i < pairs->n; i++) {
    free (pairs->pair[i].key);
    free (pairs->pair[i].value);
  }
  free (pairs->pair);
  *pairs = (struct img_pairs){ 0 };
}

bool
img_work_option (struct img_work *work, struct img_spec *spec, int letter, int *status)
{
  switch (letter) {
  case 'r':
    if (!img_parse_size ("--rate-limit", optarg, &work->rate))
      *status = 1;
    return true;
  case 'p':
    return work->progress = true;
  case 'q':
    return work->quiet = true;
  default:
    return img_image_option (spec, letter, status);
  }
}
