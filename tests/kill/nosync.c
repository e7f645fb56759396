/* SPDX-License-Identifier: BSD-3-Clause
 *
 * To be preloaded: fdatasync fails while the file that NOSYNC names is there.
 */

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

int fdatasync (int fd) __attribute__ ((visibility ("default")));
int
fdatasync (int fd)
{
  const char *name = getenv ("NOSYNC");

  if (name && access (name, F_OK) == 0) {
    errno = EIO;
    return -1;
  }
  return fsync (fd);
}
