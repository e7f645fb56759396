/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "image.h"
#include "lock.h"

/* QEMU's permission numbers. */
enum { PERM_READ = 0, PERM_WRITE = 1, PERM_RESIZE = 3 };

#define USES_BASE    100
#define REFUSES_BASE 200

static int
lock_byte (int fd, int cmd, short type, off_t byte, struct flock *fl)
{
  *fl = (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
  return fcntl (fd, cmd, fl) == -1 ? -errno : 0;
}

static int
take (int fd, off_t byte)
{
  struct flock fl;

  return lock_byte (fd, F_OFD_SETLK, F_RDLCK, byte, &fl);
}

/* 1 if somebody else holds BYTE. */
static int
held (int fd, off_t byte)
{
  struct flock fl;
  int r = lock_byte (fd, F_OFD_GETLK, F_WRLCK, byte, &fl);

  return r < 0 ? r : fl.l_type != F_UNLCK;
}

int
q_lock_take (int fd, bool write, const char *name, struct q_error *err)
{
  static const int readers[] = { PERM_READ };
  static const int writers[] = { PERM_READ, PERM_WRITE, PERM_RESIZE };
  static const int refused[] = { PERM_WRITE, PERM_RESIZE }; /* by readers and writers alike */
  const int *uses = write ? writers : readers;
  size_t n_uses = write ? 3 : 1, i;
  int r = 0;

  for (i = 0; r == 0 && i < n_uses; ++i)
    r = take (fd, USES_BASE + uses[i]);
  for (i = 0; r == 0 && i < 2; ++i)
    r = take (fd, REFUSES_BASE + refused[i]);
  if (r == -EINVAL || r == -ENOLCK || r == -EOPNOTSUPP || r == -ENOSYS) {
    q_log (Q_LOG_WARNING, "%s: the file system has no locks: nothing keeps another writer out",
           name);
    return 0;
  }
  if (r < 0 && r != -EAGAIN && r != -EACCES)
    return q_fail (err, r, "%s: cannot lock the image: %s", name, strerror (-r));

  for (i = 0; r == 0 && i < n_uses; ++i)
    r = held (fd, REFUSES_BASE + uses[i]);
  for (i = 0; r == 0 && i < 2; ++i)
    r = held (fd, USES_BASE + refused[i]);
  if (r == 0)
    return 0;
  return q_fail (err, -EAGAIN,
                 "%s: the image is in use by another process%s: 'lsof %s' says which; %s", name,
                 write ? "" : " that writes it", name,
                 write ? "a read-only open shares it with readers"
                       : "to look at it all the same, switch locking off (its contents may change "
                         "under you)");
}
