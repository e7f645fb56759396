/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "path.h"

#define THEIRS  ", and others than root can write to its directory"
#define IS_LINK "it is a link" THEIRS

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

/* Whether what is in the directory DIR, open, may have been put there by somebody that we are not.
 */
static bool
is_others (int dir)
{
  struct stat st;

  return geteuid () == 0 &&
         (fstat (dir, &st) < 0 || st.st_uid != 0 || (st.st_mode & (S_IWGRP | S_IWOTH)));
}

static const char *
wrong_with (int fd)
{
  struct stat st;

  return fstat (fd, &st) < 0     ? strerror (errno)
         : !S_ISREG (st.st_mode) ? "it is no regular file" THEIRS
         : st.st_nlink > 1       ? IS_LINK
                                 : NULL;
}

int
path_create (const char *name, int flags, mode_t mode, const char **why)
{
  const char *slash = strrchr (name, '/');
  char *parent = slash ? strndup (name, (size_t)(slash + 1 - name)) : strdup (".");
  int dir = parent ? open (parent, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
  int fd = -1, r = dir < 0 ? -errno : 0;
  const bool others = r == 0 && is_others (dir);

  free (parent);
  if (r == 0) {
    /* A pipe of theirs would have us wait for a reader. */
    fd = openat (dir, slash ? slash + 1 : name,
                 flags | O_CREAT | O_CLOEXEC | (others ? O_NOFOLLOW | O_NONBLOCK : 0), mode);
    r = fd < 0 ? -errno : 0;
    close (dir);
  }
  if (r < 0) {
    *why = r == -ELOOP && others ? IS_LINK : strerror (-r);
    return r;
  }
  *why = others ? wrong_with (fd) : NULL;
  if (!*why)
    return fd;
  close (fd);
  return -EPERM;
}
