/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which files can be opened, changed and removed: Landlock.  It knows what is let through, and no
 * exceptions from that.  So where images may come from anywhere, "anywhere" is put together from
 * the directories that there are: all but those that show the kernel and its processes instead of
 * files, from which a way out is not far.
 */

#include "sandbox.h"

#ifdef HAVE_LANDLOCK

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <mntent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"

/* What headers of older kernels lack. */
#ifndef LANDLOCK_ACCESS_FS_REFER
#define LANDLOCK_ACCESS_FS_REFER (UINT64_C (1) << 13)
#endif
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (UINT64_C (1) << 14)
#endif
#ifndef LANDLOCK_ACCESS_FS_IOCTL_DEV
#define LANDLOCK_ACCESS_FS_IOCTL_DEV (UINT64_C (1) << 15)
#endif
#define NET_BIND_TCP    (UINT64_C (1) << 0)
#define NET_CONNECT_TCP (UINT64_C (1) << 1)
#define SCOPE_ABSTRACT  (UINT64_C (1) << 0)
#define SCOPE_SIGNAL    (UINT64_C (1) << 1)

/* struct landlock_ruleset_attr as it is in newer kernels; older ones take it, if what they do not
 * know is 0. */
struct ruleset {
  uint64_t fs, net, scoped;
};

#define FS_READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define FS_WRITE                                                                                   \
  (LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_TRUNCATE | LANDLOCK_ACCESS_FS_REMOVE_FILE |  \
   LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |     \
   LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_REFER | LANDLOCK_ACCESS_FS_IOCTL_DEV)
/* What can be granted of a file that is no directory. */
#define FS_OF_FILE                                                                                 \
  (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_TRUNCATE |    \
   LANDLOCK_ACCESS_FS_IOCTL_DEV)

/* Everything that a kernel of each ABI version can forbid in file systems.  What is forbidden in
 * all of them and granted to nobody: running programs, making devices, pipes and links. */
static const uint64_t fs_of_abi[] = {
  [1] = (UINT64_C (1) << 13) - 1, [2] = (UINT64_C (1) << 14) - 1, [3] = (UINT64_C (1) << 15) - 1,
  [4] = (UINT64_C (1) << 15) - 1, [5] = (UINT64_C (1) << 16) - 1,
};
#define LAST_ABI (sizeof fs_of_abi / sizeof fs_of_abi[0] - 1)

struct grants {
  int ruleset;
  uint64_t handled;
  char **hidden; /* directories that are not granted */
  size_t n_hidden;
};

/* ---- one rule -------------------------------------------------------------------------------- */

static uint64_t
rights (unsigned access)
{
  return (access & SANDBOX_FILES_READ ? FS_READ : 0) |
         (access & SANDBOX_FILES_WRITE ? FS_WRITE : 0) |
         (access & SANDBOX_FILES_REMOVE ? LANDLOCK_ACCESS_FS_REMOVE_FILE : 0) |
         (access & SANDBOX_FILES_REMOVE_DIR ? LANDLOCK_ACCESS_FS_REMOVE_DIR : 0);
}

/* FLAGS: more of those of open(2).  -errno of opening it: there is nothing to be done. */
static int
grant (const struct grants *g, const char *path, int flags, uint64_t wanted)
{
  struct landlock_path_beneath_attr beneath = { .allowed_access = wanted & g->handled };
  int r = 0;

  beneath.parent_fd = open (path, O_PATH | O_CLOEXEC | flags);
  if (beneath.parent_fd < 0)
    return -errno;
  if (syscall (SYS_landlock_add_rule, g->ruleset, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) < 0)
    r = -errno;
  close (beneath.parent_fd);
  return r;
}

/* What is not there, or out of reach for the user that we have become, needs no rule: nothing can
 * be done there with one either. */
static int
add_rule (const struct grants *g, const struct sandbox_rule *rule)
{
  int r = grant (g, rule->path, O_DIRECTORY, rights (rule->access));

  if (r == -EACCES)
    log_warning ("'%s' is out of reach for the user that this server runs as: nothing there can "
                 "be removed or read again",
                 rule->path);
  return r == -EACCES || r == -ENOENT ? 0 : r;
}

/* ---- anywhere -------------------------------------------------------------------------------- */

static bool
hide (struct grants *g, const char *path)
{
  char **more = reallocarray (g->hidden, g->n_hidden + 1, sizeof *more);

  if (!more)
    return false;
  g->hidden = more;
  g->hidden[g->n_hidden] = strdup (path);
  return g->hidden[g->n_hidden] && ++g->n_hidden;
}

/* File systems whose files are the kernel's doors and not files. */
static bool
is_door (const char *type)
{
  static const char *const types[] = {
    "proc",     "sysfs",    "cgroup",      "cgroup2",   "debugfs",    "tracefs", "securityfs",
    "configfs", "efivarfs", "binfmt_misc", "selinuxfs", "smackfs",    "bpf",     "pstore",
    "fusectl",  "nsfs",     "resctrl",     "nfsd",      "rpc_pipefs",
  };

  for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
    if (strcmp (type, types[i]) == 0)
      return true;
  return false;
}

static bool
find_doors (struct grants *g)
{
  FILE *mounts = setmntent ("/proc/self/mounts", "re");
  const struct mntent *m;
  bool ok = hide (g, "/proc") && hide (g, "/sys");

  while (ok && mounts && (m = getmntent (mounts)) != NULL)
    if (is_door (m->mnt_type) && strcmp (m->mnt_dir, "/") != 0)
      ok = hide (g, m->mnt_dir);
  if (mounts)
    endmntent (mounts);
  return ok;
}

static bool
is_hidden (const struct grants *g, const char *path)
{
  for (size_t i = 0; i < g->n_hidden; i++)
    if (strcmp (g->hidden[i], path) == 0)
      return true;
  return false;
}

/* LEN: of PATH, without a slash at its end. */
static bool
has_hidden_below (const struct grants *g, const char *path, size_t len)
{
  for (size_t i = 0; i < g->n_hidden; i++)
    if (strncmp (g->hidden[i], path, len) == 0 && g->hidden[i][len] == '/')
      return true;
  return false;
}

static int grant_below (const struct grants *g, const char *path, size_t len, uint64_t wanted);

/* WANTED in PATH, a directory or a file, and below it but for what is hidden. */
static int
grant_tree (const struct grants *g, const char *path, size_t len, uint64_t wanted)
{
  struct stat st;
  int r = 0;

  if (is_hidden (g, path) || lstat (path, &st) < 0 || S_ISLNK (st.st_mode))
    return 0;
  if (!S_ISDIR (st.st_mode))
    r = grant (g, path, O_NOFOLLOW, wanted & FS_OF_FILE);
  else if (!has_hidden_below (g, path, len))
    r = grant (g, path, O_NOFOLLOW | O_DIRECTORY, wanted);
  else
    return grant_below (g, path, len, wanted);
  /* It may have gone meanwhile, or be nobody's to open. */
  return r == -ENOENT || r == -EACCES || r == -ELOOP || r == -ENOTDIR || r == -ESTALE ? 0 : r;
}

static int
grant_below (const struct grants *g, const char *path, size_t len, uint64_t wanted)
{
  DIR *dir = opendir (path);
  const struct dirent *d;
  int r = 0;

  while (dir && r == 0 && (d = readdir (dir)) != NULL) {
    char *child;
    if (strcmp (d->d_name, ".") == 0 || strcmp (d->d_name, "..") == 0)
      continue;
    int n = asprintf (&child, "%.*s/%s", (int)len, path, d->d_name);
    if (n < 0)
      r = -ENOMEM;
    else {
      r = grant_tree (g, child, (size_t)n, wanted);
      free (child);
    }
  }
  if (dir)
    closedir (dir);
  return r;
}

/* Files for images anywhere, and what opening one looks up. */
static int
grant_images (struct grants *g)
{
  static const char *const looked_up[] = { "/proc/sys/kernel/random/boot_id", "/sys/devices" };
  int r = find_doors (g) ? grant_tree (g, "/", 0, FS_READ | FS_WRITE) : -ENOMEM;

  for (size_t i = 0; r == 0 && i < sizeof looked_up / sizeof looked_up[0]; i++) {
    r = grant (g, looked_up[i], 0, LANDLOCK_ACCESS_FS_READ_FILE);
    r = r == -ENOENT || r == -EACCES ? 0 : r;
  }
  for (size_t i = 0; i < g->n_hidden; i++)
    free (g->hidden[i]);
  free (g->hidden);
  g->hidden = NULL;
  return r;
}

/* ---- all of it ------------------------------------------------------------------------------- */

int
sandbox_restrict_files (const struct sandbox *sb, struct q_error *err)
{
  long abi = syscall (SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
  struct ruleset attr = { 0 };
  int r = 0;

  if (abi < 1) {
    snprintf (err->text, sizeof err->text, "this kernel has no Landlock (%s)", strerror (errno));
    return -ENOTSUP;
  }
  attr.fs = fs_of_abi[abi < (long)LAST_ABI ? abi : (long)LAST_ABI];
  if (abi >= 4 && !(sb->calls & SANDBOX_CALLS_SOCKETS))
    attr.net = NET_BIND_TCP | NET_CONNECT_TCP;
  if (abi >= 6)
    attr.scoped =
        (sb->calls & SANDBOX_CALLS_KILL ? 0 : SCOPE_SIGNAL) | (sb->abstract ? 0 : SCOPE_ABSTRACT);
  struct grants g = { .handled = attr.fs };
  g.ruleset = (int)syscall (SYS_landlock_create_ruleset, &attr, sizeof attr, 0);
  if (g.ruleset < 0)
    r = -errno;
  if (r == 0 && sb->images)
    r = grant_images (&g);
  for (unsigned i = 0; r == 0 && i < sb->n_rules; i++)
    r = add_rule (&g, &sb->rules[i]);
  if (r == 0 && syscall (SYS_landlock_restrict_self, g.ruleset, 0) < 0)
    r = -errno;
  if (g.ruleset >= 0)
    close (g.ruleset);
  if (r < 0)
    snprintf (err->text, sizeof err->text, "Landlock: %s", strerror (-r));
  return r;
}

#else

#include <errno.h>
#include <stdio.h>

int
sandbox_restrict_files (const struct sandbox *sb, struct q_error *err)
{
  (void)sb;
  snprintf (err->text, sizeof err->text,
            "files cannot be put out of reach: this nbdcow was built without Landlock");
  return -ENOTSUP;
}

#endif
