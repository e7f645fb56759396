/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Whether metrics are text that a scraper can read: see metrics-judge.h.
 */

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "mem.h"
#include "metrics-judge.h"

static const char *
skip_name (const char *p)
{
  const char *begin = p;

  while (isalpha ((unsigned char)*p) || *p == '_' || (p > begin && isdigit ((unsigned char)*p)))
    ++p;
  return p > begin ? p : NULL;
}

/* NAME="VALUE",...}: what comes after it, or NULL. */
static const char *
skip_labels (const char *p)
{
  for (;;) {
    p = skip_name (p);
    if (!p || p[0] != '=' || p[1] != '"')
      return NULL;
    for (p += 2; *p && *p != '"'; ++p)
      if (*p == '\\' && !strchr ("\\\"n", *++p))
        return NULL;
    if (*p++ != '"')
      return NULL;
    if (*p == '}')
      return p + 1;
    if (*p++ != ',')
      return NULL;
  }
}

/* The name and labels of a sample of FAMILY, cut off from its value. */
static void
judge_sample (char *line, const char *family)
{
  const char *p = skip_name (line);
  char *end;

  if (p && *p == '{')
    p = skip_labels (p + 1);
  if (!p || *p != ' ')
    broken ("metrics: no sample: %s", line);
  if (strncmp (line, family, strlen (family)) != 0)
    broken ("metrics: a sample that is not of the family %s: %s", family, line);
  strtod (p + 1, &end);
  if (end == p + 1 || *end)
    broken ("metrics: no number: %s", line);
  line[p - line] = '\0';
}

static int
compare (const void *a, const void *b)
{
  return strcmp (*(const char *const *)a, *(const char *const *)b);
}

static void
judge_repetition (char **samples, size_t n)
{
  qsort (samples, n, sizeof *samples, compare);
  for (size_t i = 1; i < n; ++i)
    if (strcmp (samples[i - 1], samples[i]) == 0)
      broken ("metrics: twice: %s", samples[i]);
}

void
judge_metrics (const char *text, size_t len, bool openmetrics)
{
  char *copy = xalloc (len + 1), *rest = copy, *line, family[256] = "";
  char **samples = xalloc ((len / 4 + 1) * sizeof *samples);
  bool ended = false;
  size_t n = 0;

  memcpy (copy, text, len);
  if (strlen (copy) != len || len == 0 || copy[len - 1] != '\n')
    broken ("metrics: a byte of zeros, or no end of the last line");
  copy[len - 1] = '\0';
  while ((line = strsep (&rest, "\n")) != NULL) {
    if (ended)
      broken ("metrics: after the end: %s", line);
    if (strcmp (line, "# EOF") == 0)
      ended = true;
    else if (sscanf (line, "# TYPE %255s", family) == 1)
      continue;
    else if (*line != '#') {
      judge_sample (line, family);
      samples[n++] = line;
    }
  }
  if (openmetrics != ended)
    broken ("metrics: an end, or none, where it should be otherwise");
  judge_repetition (samples, n);
  free (samples);
  free (copy);
}
