/* SPDX-License-Identifier: BSD-3-Clause */

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "stdfds.h"

void
stdfds_open (void)
{
  /* The lowest number that is free is what open gives. */
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
    if (fcntl (fd, F_GETFD) < 0 &&
        open ("/dev/null", fd == STDIN_FILENO ? O_RDONLY : O_WRONLY) != fd)
      abort ();
}
