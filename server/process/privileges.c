/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "privileges.h"

/* TEXT as a number that can stand for a user or a group. */
static bool
parse_id (const char *text, unsigned *id)
{
  char *end;

  errno = 0;
  unsigned long v = strtoul (text, &end, 10);
  *id = (unsigned)v;
  return errno == 0 && *text >= '0' && *text <= '9' && !*end && v < UINT32_MAX;
}

int
identity_find (struct identity *id, const char *user, const char *group, struct q_error *err)
{
  unsigned number;
  const struct passwd *pw = getpwnam (user);

  if (!pw && parse_id (user, &number)) {
    pw = getpwuid (number);
    if (!pw && !group) {
      snprintf (err->text, sizeof err->text,
                "--user=%s: that user is not known here: --group is wanted as well", user);
      return -EINVAL;
    }
    id->uid = number;
  } else if (!pw) {
    snprintf (err->text, sizeof err->text,
              "--user=%s: there is no such user; a name or a number is wanted", user);
    return -EINVAL;
  }
  if (pw) {
    id->uid = pw->pw_uid;
    id->gid = pw->pw_gid;
    id->name = strdup (pw->pw_name);
  }
  if (group) {
    const struct group *gr = getgrnam (group);
    if (gr)
      id->gid = gr->gr_gid;
    else if (parse_id (group, &number))
      id->gid = number;
    else {
      snprintf (err->text, sizeof err->text,
                "--group=%s: there is no such group; a name or a number is wanted", group);
      return -EINVAL;
    }
  }
  return 0;
}

int
identity_assume (const struct identity *id, struct q_error *err)
{
  int r = id->name ? initgroups (id->name, id->gid) : setgroups (1, &id->gid);

  if (r < 0 || setresgid (id->gid, id->gid, id->gid) < 0 ||
      setresuid (id->uid, id->uid, id->uid) < 0) {
    r = -errno;
    snprintf (err->text, sizeof err->text, "cannot become user %u, group %u: %s", (unsigned)id->uid,
              (unsigned)id->gid, r == -EPERM ? "only root can" : strerror (-r));
    return r;
  }
  return 0;
}

void
identity_free (struct identity *id)
{
  free (id->name);
  id->name = NULL;
}
