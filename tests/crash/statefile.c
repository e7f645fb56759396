/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Copies of the state file: see statefile.h.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "images.h"
#include "statefile.h"

struct state_piece {
  struct state_piece *next;
  off_t offset;
  size_t len;
  uint8_t data[];
};

static void
state_path (char path[128], unsigned i)
{
  snprintf (path, 128, "%s/0-0.state%s", images_state_directory (), i ? ".bitmaps" : "");
}

static void
save_file (struct state_file_copy *c, unsigned i)
{
  char path[128];
  struct stat st;
  int fd;

  *c = (struct state_file_copy){ 0 };
  state_path (path, i);
  fd = open (path, O_RDONLY);
  if (fd == -1)
    return;
  if (fstat (fd, &st) == -1)
    die ("%s: %s", path, strerror (errno));
  c->exists = true;
  c->size = st.st_size;
  for (off_t at = 0; at < c->size;) {
    off_t data = lseek (fd, at, SEEK_DATA), hole;
    struct state_piece *p;

    if (data == -1)
      break; /* holes to the end */
    hole = lseek (fd, data, SEEK_HOLE);
    p = xalloc (sizeof *p + (size_t)(hole - data));
    *p = (struct state_piece){ .next = c->pieces, .offset = data, .len = (size_t)(hole - data) };
    c->pieces = p;
    if (pread (fd, p->data, p->len, data) != (ssize_t)p->len)
      die ("%s: cannot read", path);
    at = hole;
  }
  close (fd);
}

void
state_save (struct state_copy *c)
{
  for (unsigned i = 0; i < 2; ++i)
    save_file (&c->file[i], i);
}

static void
restore_file (const struct state_file_copy *c, unsigned i)
{
  char path[128];
  int fd;

  if (!c->exists)
    return;
  state_path (path, i);
  fd = open (path, O_RDWR | O_CREAT, 0600);
  if (fd == -1 || ftruncate (fd, c->size) == -1)
    die ("%s: %s", path, strerror (errno));
  for (const struct state_piece *p = c->pieces; p; p = p->next)
    if (pwrite (fd, p->data, p->len, p->offset) != (ssize_t)p->len)
      die ("%s: cannot write", path);
  close (fd);
}

void
state_restore (const struct state_copy *c)
{
  images_lose_state ();
  for (unsigned i = 0; i < 2; ++i)
    restore_file (&c->file[i], i);
}

void
state_free (struct state_copy *c)
{
  struct state_piece *p;

  for (unsigned i = 0; i < 2; ++i)
    while ((p = c->file[i].pieces) != NULL) {
      c->file[i].pieces = p->next;
      free (p);
    }
}
