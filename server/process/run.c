/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "log.h"
#include "run.h"

extern char **environ;

/* Variables that the command finds beside those that we have. */
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

/* The command's process: it waits for the word, and is gone if there is none. */
static void __attribute__ ((noreturn)) wait_and_run (int word, const char *command, char **env)
{
  char *argv[] = { (char *)"sh", (char *)"-c", (char *)command, NULL };
  sigset_t none;
  ssize_t n;
  char byte;

  /* Signals are to mean to it what they meant to us in the beginning. */
  for (int i = 1; i < NSIG; i++)
    signal (i, SIG_DFL);
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
  do
    n = read (word, &byte, 1);
  while (n < 0 && errno == EINTR);
  if (n == 1) {
    execve ("/bin/sh", argv, env);
    log_error ("--run: cannot start /bin/sh: %s", strerror (errno));
  }
  _exit (127);
}

int
run_prepare (struct run *run, const char *command, const char *uri, const char *export_name,
             const char *unix_socket, struct q_error *err)
{
  const struct variable variables[] = {
    { "uri", uri },
    { "exportname", export_name },
    { "unixsocket", unix_socket },
  };
  char **env = environment_with (variables, sizeof variables / sizeof variables[0]);
  int word[2], r = env ? 0 : -ENOMEM;

  if (r == 0 && pipe2 (word, O_CLOEXEC) < 0)
    r = -errno;
  else if (r == 0) {
    run->pid = fork ();
    if (run->pid == 0) {
      close (word[1]);
      wait_and_run (word[0], command, env);
    }
    r = run->pid < 0 ? -errno : 0;
    close (word[0]);
    if (r == 0)
      run->word = word[1];
    else
      close (word[1]);
  }
  environment_free (env);
  if (r < 0)
    snprintf (err->text, sizeof err->text, "--run: %s", strerror (-r));
  return r;
}

int
run_begin (struct run *run)
{
  ssize_t n = write (run->word, "", 1);
  (void)n; /* a process that has died is noticed as one that has ended */
  run_cancel (run);
  return run->pid;
}

void
run_cancel (struct run *run)
{
  if (run->word >= 0)
    close (run->word);
  run->word = -1;
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
run_exit_with_parent (int parent, struct q_error *err)
{
  if (prctl (PR_SET_PDEATHSIG, SIGTERM) < 0) {
    int r = -errno;
    snprintf (err->text, sizeof err->text, "--exit-with-parent: %s", strerror (-r));
    return r;
  }
  /* It may have ended before there was a signal for that. */
  if (getppid () != parent)
    raise (SIGTERM);
  return 0;
}
