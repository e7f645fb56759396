/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#include "ctl.h"
#include "qcow2.h"

/* Between columns. */
#define GAP 2

static void
put (struct table *t, char *cell)
{
  if (t->n == t->room) {
    t->room = t->room ? 2 * t->room : 64;
    t->cells = realloc (t->cells, t->room * sizeof *t->cells);
  }
  if (!t->cells || !cell) {
    ctl_error ("out of memory");
    exit (EXIT_FAILURE);
  }
  t->cells[t->n++] = cell;
}

/* A name must not do things to the terminal. */
void
table_text (struct table *t, const char *text)
{
  char *copy = strdup (text);

  if (copy)
    q_make_printable (copy);
  put (t, copy);
}

void
table_format (struct table *t, const char *fmt, ...)
{
  char *cell = NULL;
  va_list args;

  va_start (args, fmt);
  if (vasprintf (&cell, fmt, args) < 0)
    cell = NULL;
  va_end (args);
  put (t, cell);
}

void
table_size (struct table *t, double bytes)
{
  static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
  unsigned unit = 0;

  while (bytes >= 1000 && unit + 1 < sizeof units / sizeof units[0]) {
    bytes /= 1024;
    unit++;
  }
  table_format (t, "%.3g %s", bytes, units[unit]);
}

void
table_begin (struct table *t, const char *right, const char *const *head)
{
  *t = (struct table){ .columns = (unsigned)strlen (right), .right = right };
  for (unsigned i = 0; i < t->columns; i++)
    table_text (t, head[i]);
}

/* Columns of a terminal that TEXT takes. */
static size_t
width (const char *text)
{
  size_t n = mbstowcs (NULL, text, 0);
  wchar_t *wide = n == (size_t)-1 ? NULL : calloc (n + 1, sizeof *wide);
  int w = -1;

  if (wide) {
    mbstowcs (wide, text, n + 1);
    w = wcswidth (wide, n);
  }
  free (wide);
  return w < 0 ? strlen (text) : (size_t)w;
}

void
table_end (struct table *t)
{
  size_t *widest = calloc (t->columns, sizeof *widest);

  if (!widest) {
    ctl_error ("out of memory");
    exit (EXIT_FAILURE);
  }
  for (size_t i = 0; i < t->n; i++) {
    size_t w = width (t->cells[i]);
    if (w > widest[i % t->columns])
      widest[i % t->columns] = w;
  }
  for (size_t i = 0; i < t->n; i++) {
    unsigned column = (unsigned)(i % t->columns);
    bool last = column + 1 == t->columns;
    int fill = (int)(widest[column] - width (t->cells[i]));
    if (t->right[column] == 'r')
      printf ("%*s%s", fill, "", t->cells[i]);
    else
      printf ("%s%*s", t->cells[i], last ? 0 : fill, "");
    printf ("%*s", last ? 0 : GAP, "");
    if (last)
      putchar ('\n');
    free (t->cells[i]);
  }
  free (widest);
  free (t->cells);
  *t = (struct table){ 0 };
}
