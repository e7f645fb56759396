/* SPDX-License-Identifier: BSD-3-Clause */

#include <unistd.h>

#include "transport.h"

void
transport_close (struct transport *t)
{
  if (t->fd < 0)
    return;
  if (t->ops)
    t->ops->close (t);
  close (t->fd);
  t->fd = -1;
}
