/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the sub-commands print.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

const char *
img_size_text (uint64_t bytes, char text[32])
{
  static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
  double value = (double)bytes;
  unsigned unit = 0;

  /* Four digits are one too many: 1000 KiB is 0.977 MiB. */
  while (value >= 1000 && unit + 1 < sizeof units / sizeof units[0]) {
    value /= 1024;
    unit++;
  }
  snprintf (text, 32, "%.3g %s", value, units[unit]);
  return text;
}

const char *
img_plain (const char *name)
{
  static struct plain {
    struct plain *next;
    char text[];
  } * all;
  size_t i = 0, len = strlen (name);
  struct plain *p;

  while (i < len && !q_drives_terminal (name, i))
    i++;
  if (i == len)
    return name;
  p = malloc (sizeof *p + len + 1);
  if (!p)
    return "?";
  memcpy (p->text, name, len + 1);
  q_make_printable (p->text);
  p->next = all;
  all = p;
  return p->text;
}

json_t *
img_json_name (const char *name)
{
  json_t *j = json_string (name);
  size_t len = strlen (name), used = 0;
  char *text = j ? NULL : malloc (3 * len + 1);

  /* Four bytes at a time, or as many of these as are UTF-8, or a replacement for one. */
  while (text && len > 0) {
    size_t n = len < 4 ? len : 4;
    json_t *one = NULL;

    for (; n > 0 && !one; n -= !one)
      one = json_stringn (name, n);
    const char *from = one ? name : "\xef\xbf\xbd";
    for (size_t i = 0; i < (one ? n : 3); i++)
      text[used++] = from[i];
    json_decref (one);
    len -= n ? n : 1;
    name += n ? n : 1;
  }
  if (text)
    j = json_stringn (text, used);
  free (text);
  return j;
}

bool
img_print_json (json_t *json)
{
  int r = json ? json_dumpf (json, stdout, JSON_INDENT (4)) : -1;

  json_decref (json);
  if (r == 0)
    putchar ('\n');
  else
    img_error ("cannot print the JSON: out of memory, or stdout cannot be written");
  return r == 0;
}

int
img_finish_output (int status)
{
  if (fflush (stdout) == 0 && !ferror (stdout))
    return status;
  img_error ("cannot write to stdout: %s", strerror (errno));
  return status ? status : 1;
}
