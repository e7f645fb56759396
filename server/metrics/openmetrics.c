/* SPDX-License-Identifier: BSD-3-Clause */

#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <string.h>

#include "openmetrics.h"

const char *
openmetrics_content_type (bool openmetrics)
{
  return openmetrics ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                     : "text/plain; version=0.0.4; charset=utf-8";
}

void
openmetrics_init (struct openmetrics *m, FILE *f, bool openmetrics)
{
  *m = (struct openmetrics){ .f = f, .openmetrics = openmetrics };
}

/* What follows a family's name in the names of its samples. */
static const char *
suffix (const struct openmetrics *m)
{
  switch (m->type) {
  case OM_COUNTER:
    return "_total";
  case OM_INFO:
    return "_info";
  default:
    return "";
  }
}

void
openmetrics_family (struct openmetrics *m, enum openmetrics_type type, const char *name,
                    const char *unit, const char *help)
{
  static const char *const words[] = { "gauge", "counter", "histogram", "info" };
  static const char *const old_words[] = { "gauge", "counter", "histogram", "gauge" };

  m->type = type;
  m->name = name;
  /* The older format knows samples alone, and describes those. */
  const char *end = m->openmetrics ? "" : suffix (m);
  fprintf (m->f, "# HELP %s%s %s\n", name, end, help);
  fprintf (m->f, "# TYPE %s%s %s\n", name, end, (m->openmetrics ? words : old_words)[type]);
  if (unit && m->openmetrics)
    fprintf (m->f, "# UNIT %s %s\n", name, unit);
}

/* ---- samples --------------------------------------------------------------------------------- */

static bool
is_utf8 (const char *s)
{
  json_t *j = json_string (s); /* which looks */

  json_decref (j);
  return j != NULL;
}

static void
put_text (FILE *f, const char *s)
{
  bool utf8 = is_utf8 (s);

  for (; *s; s++) {
    if (*s == '\n')
      fputs ("\\n", f);
    else if (*s == '\\' || *s == '"')
      fprintf (f, "\\%c", *s);
    else
      fputc (utf8 || (unsigned char)*s < 0x80 ? *s : '?', f);
  }
}

/* "name_suffix{label="value",...}" and a space.  LE may be NULL. */
static void
put_series (struct openmetrics *m, const char *end, va_list labels, const char *le)
{
  const char *label, *separator = "{";

  fprintf (m->f, "%s%s", m->name, end);
  while ((label = va_arg (labels, const char *)) != NULL) {
    fprintf (m->f, "%s%s=\"", separator, label);
    put_text (m->f, va_arg (labels, const char *));
    fputc ('"', m->f);
    separator = ",";
  }
  if (le)
    fprintf (m->f, "%sle=\"%s\"", separator, le);
  fputs (le || *separator == ',' ? "} " : " ", m->f);
}

void
openmetrics_value (struct openmetrics *m, uint64_t value, ...)
{
  va_list labels;

  va_start (labels, value);
  put_series (m, suffix (m), labels, NULL);
  va_end (labels);
  fprintf (m->f, "%" PRIu64 "\n", value);
}

void
openmetrics_histogram (struct openmetrics *m, const struct openmetrics_bucket *buckets, unsigned n,
                       double sum, ...)
{
  uint64_t count = 0;
  va_list labels, again;

  va_start (labels, sum);
  for (unsigned i = 0; i < n; i++) {
    char le[32] = "+Inf";
    if (i + 1 < n) {
      int len = snprintf (le, sizeof le, "%.10g", buckets[i].end);
      /* As a floating-point number, always: it is part of the series' name. */
      if (!strpbrk (le, ".e"))
        snprintf (le + len, sizeof le - (size_t)len, ".0");
    }
    count += buckets[i].count;
    va_copy (again, labels);
    put_series (m, "_bucket", again, le);
    va_end (again);
    fprintf (m->f, "%" PRIu64 "\n", count);
  }
  va_copy (again, labels);
  put_series (m, "_count", again, NULL);
  va_end (again);
  fprintf (m->f, "%" PRIu64 "\n", count);
  put_series (m, "_sum", labels, NULL);
  va_end (labels);
  fprintf (m->f, "%.9f\n", sum);
}

void
openmetrics_end (struct openmetrics *m)
{
  if (m->openmetrics)
    fputs ("# EOF\n", m->f);
}
