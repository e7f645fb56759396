/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <linux/capability.h>
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

/* ---- the table ------------------------------------------------------------------------------- */

/* What each want adds.  Every server may read and write what it has open, take connections in, use
 * memory, threads, clocks and random numbers, and look at names and sizes of files. */
static const struct {
  unsigned access; /* enum sandbox_files */
  bool parent;     /* in the directory that the path lies in */
  bool images;     /* anywhere */
  unsigned calls;
} table[] = {
  [SANDBOX_REMOVE] = { SANDBOX_FILES_REMOVE, true, false, 0 },
  [SANDBOX_REMOVE_DIR] = { SANDBOX_FILES_REMOVE_DIR, true, false, 0 },
  [SANDBOX_STATE] = { SANDBOX_FILES_REMOVE, false, false, 0 },
  [SANDBOX_READ] = { SANDBOX_FILES_READ, false, false, SANDBOX_CALLS_READ },
  [SANDBOX_TELL] = { 0, false, false, SANDBOX_CALLS_TELL },
  [SANDBOX_IMAGES] = { 0, false, true,
                       SANDBOX_CALLS_READ | SANDBOX_CALLS_WRITE | SANDBOX_CALLS_SOCKETS },
  [SANDBOX_HANDOVER] = { 0, false, false, SANDBOX_CALLS_SOCKETS | SANDBOX_CALLS_KILL },
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
add_rule (struct sandbox *sb, const char *path, bool parent, unsigned access)
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
  sb->images = sb->images || table[want].images;
  if (table[want].access != 0 && path) {
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
    r = sandbox_restrict_files (sb, err);
  return missing (sb, r, err);
}

int
sandbox_filter (const struct sandbox *sb, struct q_error *err)
{
  if (sb->mode == SANDBOX_OFF || (SANITIZED && sb->mode == SANDBOX_AUTO))
    return 0;
  return missing (sb, sandbox_load_filter (sb->calls, err), err);
}
