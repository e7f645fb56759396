/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "path.h"

char *
path_absolute (const char *name)
{
  char *path = NULL;

  if (*name == '/')
    return strdup (name);
  char *here = getcwd (NULL, 0);
  if (here && asprintf (&path, "%s/%s", strcmp (here, "/") == 0 ? "" : here, name) < 0)
    path = NULL;
  free (here);
  return path;
}
