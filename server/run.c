/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "run.h"

extern char **environ;

int
run_command (const char *command, const char *uri, const char *export_name, const char *unix_socket,
             struct q_error *err)
{
  char *argv[] = { (char *)"sh", (char *)"-c", (char *)command, NULL };
  posix_spawnattr_t attr;
  sigset_t none, all;
  pid_t pid;

  setenv ("uri", uri, 1);
  setenv ("exportname", export_name, 1);
  if (unix_socket)
    setenv ("unixsocket", unix_socket, 1);
  else
    unsetenv ("unixsocket");

  /* Signals are to mean to it what they meant to us in the beginning. */
  sigemptyset (&none);
  sigfillset (&all);
  posix_spawnattr_init (&attr);
  posix_spawnattr_setsigmask (&attr, &none);
  posix_spawnattr_setsigdefault (&attr, &all);
  posix_spawnattr_setflags (&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  int r = posix_spawn (&pid, "/bin/sh", NULL, &attr, argv, environ);
  posix_spawnattr_destroy (&attr);
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
