/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"
#include "path.h"
#include "sandbox.h"

/* What headers of older kernels lack. */
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

/* Everything that a kernel of each ABI version can forbid in file systems.  What is forbidden in
 * all of them and granted to nobody: running programs, making devices, pipes and links. */
static const uint64_t fs_of_abi[] = {
  [1] = (UINT64_C (1) << 13) - 1, [2] = (UINT64_C (1) << 14) - 1, [3] = (UINT64_C (1) << 15) - 1,
  [4] = (UINT64_C (1) << 15) - 1, [5] = (UINT64_C (1) << 16) - 1,
};
#define LAST_ABI (sizeof fs_of_abi / sizeof fs_of_abi[0] - 1)

/* ---- the table ------------------------------------------------------------------------------- */

/* What each want adds.  Every server may read and write what it has open, take connections in, use
 * memory, threads, clocks and random numbers, and look at names and sizes of files. */
static const struct {
  uint64_t access;
  bool parent; /* in the directory that the path lies in */
  bool root;   /* everywhere */
  unsigned calls;
} table[] = {
  [SANDBOX_REMOVE] = { LANDLOCK_ACCESS_FS_REMOVE_FILE, true, false, 0 },
  [SANDBOX_REMOVE_DIR] = { LANDLOCK_ACCESS_FS_REMOVE_DIR, true, false, 0 },
  [SANDBOX_STATE] = { LANDLOCK_ACCESS_FS_REMOVE_FILE, false, false, 0 },
  [SANDBOX_READ] = { FS_READ, false, false, SANDBOX_CALLS_READ },
  [SANDBOX_TELL] = { 0, false, false, SANDBOX_CALLS_TELL },
  [SANDBOX_IMAGES] = { FS_READ | FS_WRITE, false, true,
                       SANDBOX_CALLS_READ | SANDBOX_CALLS_WRITE | SANDBOX_CALLS_SOCKETS },
};

/* Capabilities that stay, where there are any: to work on files of other users, which the image may
 * be, and to keep keys out of the swap.  The others are for images and sockets that come later. */
#define CAP(name)   (UINT64_C (1) << CAP_##name)
#define KEPT        (CAP (DAC_OVERRIDE) | CAP (FOWNER) | CAP (IPC_LOCK) | CAP (SYS_RESOURCE))
#define KEPT_IMAGES (KEPT | CAP (DAC_READ_SEARCH) | CAP (CHOWN) | CAP (NET_BIND_SERVICE))

/* ---- wants ----------------------------------------------------------------------------------- */

bool
sandbox_parse (const char *text, enum sandbox_mode *mode)
{
  static const char *const names[] = { "auto", "on", "off" };

  for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
    if (strcmp (text, names[i]) == 0) {
      *mode = (enum sandbox_mode)i;
      return true;
    }
  }
  return false;
}

void
sandbox_init (struct sandbox *sb, enum sandbox_mode mode)
{
  *sb = (struct sandbox){ .mode = mode };
}

static void
add_rule (struct sandbox *sb, const char *path, bool parent, uint64_t access)
{
  char *dir = path_absolute (path);
  char *slash = dir && parent ? strrchr (dir, '/') : NULL;

  if (slash)
    slash[slash == dir] = '\0'; /* "/" is its own parent's */
  for (unsigned i = 0; dir && i < sb->n_rules; i++) {
    if (strcmp (sb->rules[i].path, dir) == 0) {
      sb->rules[i].access |= access;
      free (dir);
      return;
    }
  }
  if (!dir || sb->n_rules == SANDBOX_MAX_RULES) {
    sb->failed = true;
    free (dir);
    return;
  }
  sb->rules[sb->n_rules++] = (struct sandbox_rule){ dir, access };
}

void
sandbox_want (struct sandbox *sb, enum sandbox_want want, const char *path)
{
  struct stat st;

  sb->calls |= table[want].calls;
  if (table[want].root)
    add_rule (sb, "/", false, table[want].access);
  else if (table[want].access != 0 && path) {
    bool parent = table[want].parent ||
                  (want == SANDBOX_READ && stat (path, &st) == 0 && !S_ISDIR (st.st_mode));
    add_rule (sb, path, parent, table[want].access);
  }
  if (want == SANDBOX_TELL && path && *path == '@')
    sb->abstract = true;
}

void
sandbox_free (struct sandbox *sb)
{
  for (unsigned i = 0; i < sb->n_rules; i++)
    free (sb->rules[i].path);
  sb->n_rules = 0;
}

/* ---- Landlock: which files ------------------------------------------------------------------- */

static int
add_path (int ruleset, const struct sandbox_rule *rule, uint64_t handled)
{
  struct landlock_path_beneath_attr beneath = { .allowed_access = rule->access & handled };
  int r = 0;

  beneath.parent_fd = open (rule->path, O_PATH | O_CLOEXEC | O_DIRECTORY);
  /* What is not there, or out of reach for the user that we have become, needs no rule: nothing
   * can be done there with one either. */
  if (beneath.parent_fd < 0) {
    r = errno == ENOENT || errno == EACCES ? 0 : -errno;
    if (errno == EACCES)
      log_warning ("'%s' is out of reach for the user that this server runs as: nothing there can "
                   "be removed or read again",
                   rule->path);
    return r;
  }
  if (syscall (SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) < 0)
    r = -errno;
  close (beneath.parent_fd);
  return r;
}

static int
enter_landlock (const struct sandbox *sb, struct q_error *err)
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
    attr.scoped = SCOPE_SIGNAL | (sb->abstract ? 0 : SCOPE_ABSTRACT);
  int fd = (int)syscall (SYS_landlock_create_ruleset, &attr, sizeof attr, 0);
  if (fd < 0)
    r = -errno;
  for (unsigned i = 0; r == 0 && i < sb->n_rules; i++)
    r = add_path (fd, &sb->rules[i], attr.fs);
  if (r == 0 && syscall (SYS_landlock_restrict_self, fd, 0) < 0)
    r = -errno;
  if (fd >= 0)
    close (fd);
  if (r < 0)
    snprintf (err->text, sizeof err->text, "Landlock: %s", strerror (-r));
  return r;
}

/* ---- privileges ------------------------------------------------------------------------------ */

static int
drop_capabilities (uint64_t kept, struct q_error *err)
{
  struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
  bool surplus = false;

  if (syscall (SYS_capget, &header, data) < 0)
    goto failed;
  for (unsigned i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
    uint32_t keep = (uint32_t)(kept >> (32 * i));
    surplus = surplus || (data[i].permitted & ~keep) || data[i].inheritable;
    data[i].permitted &= keep;
    data[i].effective &= keep;
    data[i].inheritable = 0;
  }
  /* The bounding set needs a capability itself, so it goes first, as far as it does. */
  for (int cap = 0; prctl (PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
    if (!(kept & (UINT64_C (1) << cap)))
      prctl (PR_CAPBSET_DROP, cap, 0, 0, 0);
  prctl (PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  /* Where somebody has done it before, capset may be out of reach as well. */
  if (surplus && syscall (SYS_capset, &header, data) < 0)
    goto failed;
  return 0;

failed:
  snprintf (err->text, sizeof err->text, "cannot drop capabilities: %s", strerror (errno));
  return -EPERM;
}

/* ---- all of it ------------------------------------------------------------------------------- */

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SANITIZED true
#elif defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
    __has_feature(memory_sanitizer)
#define SANITIZED true
#else
#define SANITIZED false
#endif
#else
#define SANITIZED false
#endif

/* A step that could not be taken: with --sandbox=on that is the end. */
static int
missing (const struct sandbox *sb, int r, struct q_error *err)
{
  struct q_error why = *err;

  if (r == 0 || (r == -ENOTSUP && sb->mode == SANDBOX_AUTO)) {
    if (r < 0)
      log_info ("sandbox: %s: going on without", err->text);
    return 0;
  }
  snprintf (err->text, sizeof err->text, "sandbox: %.800s (--sandbox=off does without it)",
            why.text);
  return r;
}

int
sandbox_enter (const struct sandbox *sb, struct q_error *err)
{
  int r = 0;

  if (sb->mode == SANDBOX_OFF)
    return 0;
  if (SANITIZED && sb->mode == SANDBOX_AUTO) {
    log_info ("sandbox: this is a build with a sanitizer, which needs more than it allows: off");
    return 0;
  }
  if (sb->failed)
    r = -ENOMEM;
  if (r == 0 && sb->secret && prctl (PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
    r = -errno;
  if (r == 0 && prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
    r = -errno;
  if (r < 0)
    snprintf (err->text, sizeof err->text, "%s", strerror (-r));
  if (r == 0)
    r = drop_capabilities (sb->calls & SANDBOX_CALLS_WRITE ? KEPT_IMAGES : KEPT, err);
  if (r == 0)
    r = enter_landlock (sb, err);
  return missing (sb, r, err);
}

int
sandbox_filter (const struct sandbox *sb, struct q_error *err)
{
  if (sb->mode == SANDBOX_OFF || (SANITIZED && sb->mode == SANDBOX_AUTO))
    return 0;
  return missing (sb, sandbox_load_filter (sb->calls, err), err);
}
