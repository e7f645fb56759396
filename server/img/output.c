/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the sub-commands print.
 */

#include <errno.h>
#include <stdio.h>
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
