/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening images, for all sub-commands.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "img.h"

bool
img_probe (const char *filename, enum q_format *format)
{
  char magic[4];
  int fd = open (filename, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

  if (fd == -1) {
    img_error ("%s: cannot open: %s", filename, strerror (errno));
    return false;
  }

  ssize_t n = pread (fd, magic, sizeof magic, 0);
  int saved = errno;

  close (fd);
  if (n == -1) {
    img_error ("%s: cannot read: %s", filename, strerror (saved));
    return false;
  }
  *format = n == sizeof magic && memcmp (magic, "QFI\xfb", sizeof magic) == 0 ? Q_FORMAT_QCOW2
                                                                              : Q_FORMAT_RAW;
  return true;
}

const char *
img_format_name (enum q_format format)
{
  return format == Q_FORMAT_RAW ? "raw" : "qcow2";
}

struct q_image *
img_open (const char *filename, const struct q_open_options *opts)
{
  struct q_open_options o = *opts;
  struct q_image *img;
  struct q_error err = { "" };

  if (o.format == Q_FORMAT_AUTO && !img_probe (filename, &o.format))
    return NULL;
  if (q_open (&img, filename, &o, &err) < 0) {
    img_error ("%s", err.text);
    return NULL;
  }
  return img;
}

bool
img_close (struct q_image **img)
{
  struct q_error err = { "" };

  if (!*img || q_close (img, &err) == 0)
    return true;
  img_error ("%s", err.text);
  return false;
}

char *
img_backing_path (const char *overlay, const char *name)
{
  const char *slash = strrchr (overlay, '/');
  const char *scheme;
  char *path;
  int n;

  if (strncmp (name, "file:", 5) == 0)
    name += 5;
  else {
    scheme = strchr (name, ':');
    if (scheme && memchr (name, '/', (size_t)(scheme - name)) == NULL) {
      img_error ("backing file '%s' is not a local file", name);
      return NULL;
    }
  }
  if (*name == '/' || !slash)
    n = asprintf (&path, "%s", name);
  else
    n = asprintf (&path, "%.*s/%s", (int)(slash - overlay), overlay, name);
  if (n == -1) {
    img_error ("out of memory");
    return NULL;
  }
  return path;
}
