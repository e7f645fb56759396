/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "run.h"

extern char **environ;

/* Variables that the command finds beside those that we have; a change of our own environment would
 * be one under the feet of other threads. */
struct variable {
  const char *name, *value; /* NULL: it is not to be there */
};

static void
environment_free (char **env)
{
  for (size_t i = 0; env && env[i]; i++)
    free (env[i]);
  free (env);
}

static bool
is_one_of (const char *entry, const struct variable *v, size_t n)
{
  for (size_t i = 0; i < n; i++) {
    size_t len = strlen (v[i].name);
    if (strncmp (entry, v[i].name, len) == 0 && entry[len] == '=')
      return true;
  }
  return false;
}

/* NULL without memory. */
static char **
environment_with (const struct variable *v, size_t n)
{
  size_t count = 0, at = 0;
  bool complete = true;

  while (environ && environ[count])
    count++;
  char **env = calloc (count + n + 1, sizeof *env);
  for (size_t i = 0; env && complete && i < count; i++)
    if (!is_one_of (environ[i], v, n))
      complete = (env[at++] = strdup (environ[i])) != NULL;
  for (size_t i = 0; env && complete && i < n; i++)
    if (v[i].value)
      complete = asprintf (&env[at++], "%s=%s", v[i].name, v[i].value) >= 0;
  if (complete)
    return env;
  if (at > 0)
    env[at - 1] = NULL;
  environment_free (env);
  return NULL;
}

int
run_command (const char *command, const char *uri, const char *export_name, const char *unix_socket,
             struct q_error *err)
{
  char *argv[] = { (char *)"sh", (char *)"-c", (char *)command, NULL };
  posix_spawnattr_t attr;
  sigset_t none, all;
  pid_t pid;

  const struct variable variables[] = {
    { "uri", uri },
    { "exportname", export_name },
    { "unixsocket", unix_socket },
  };
  char **env = environment_with (variables, sizeof variables / sizeof variables[0]);

  if (!env) {
    snprintf (err->text, sizeof err->text, "--run: out of memory");
    return -ENOMEM;
  }
  /* Signals are to mean to it what they meant to us in the beginning. */
  sigemptyset (&none);
  sigfillset (&all);
  posix_spawnattr_init (&attr);
  posix_spawnattr_setsigmask (&attr, &none);
  posix_spawnattr_setsigdefault (&attr, &all);
  posix_spawnattr_setflags (&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  int r = posix_spawn (&pid, "/bin/sh", NULL, &attr, argv, env);
  posix_spawnattr_destroy (&attr);
  environment_free (env);
  if (r != 0) {
    snprintf (err->text, sizeof err->text, "--run: cannot start /bin/sh: %s", strerror (r));
    return -r;
  }
  return pid;
}

char *
run_private_socket (struct q_error *err)
{
  const char *tmp = getenv ("TMPDIR");
  char *path = NULL;

  if (asprintf (&path, "%s/nbdcow-run-XXXXXX/sock", tmp && *tmp ? tmp : "/tmp") < 0) {
    snprintf (err->text, sizeof err->text, "--run: out of memory");
    return NULL;
  }
  char *slash = strrchr (path, '/');
  *slash = '\0';
  if (!mkdtemp (path)) {
    snprintf (err->text, sizeof err->text, "--run: cannot make a directory '%s': %s", path,
              strerror (errno));
    free (path);
    return NULL;
  }
  *slash = '/';
  return path;
}

void
run_remove_private_socket (char *path)
{
  if (!path)
    return;
  unlink (path);
  *strrchr (path, '/') = '\0';
  rmdir (path);
  free (path);
}

int
run_exit_with_parent (struct q_error *err)
{
  pid_t parent = getppid ();

  if (prctl (PR_SET_PDEATHSIG, SIGTERM) < 0) {
    int r = -errno;
    snprintf (err->text, sizeof err->text, "--exit-with-parent: %s", strerror (-r));
    return r;
  }
  /* It may have ended already. */
  if (getppid () != parent)
    raise (SIGTERM);
  return 0;
}
