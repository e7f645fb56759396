/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon.h"
#include "log.h"
#include "path.h"
#include "signals.h"

static int ready_fd = -1;
static int null_fd = -1; /* opened while that can be done */
static int pid_fd = -1;
static char *pid_path; /* absolute; NULL without memory */

static void
redirect (int fd)
{
  if (null_fd >= 0)
    dup2 (null_fd, fd);
}

void
daemon_fork (void)
{
  int pipe_fd[2];
  char byte;

  if (pipe2 (pipe_fd, O_CLOEXEC) < 0) {
    log_error ("cannot create a pipe: %s", strerror (errno));
    exit (EXIT_FAILURE);
  }
  signals_block (true);
  pid_t pid = fork ();
  if (pid < 0) {
    log_error ("cannot fork: %s", strerror (errno));
    exit (EXIT_FAILURE);
  }
  if (pid == 0) {
    close (pipe_fd[0]);
    ready_fd = pipe_fd[1];
    signals_block (false);
    setsid ();
    null_fd = open ("/dev/null", O_RDWR | O_CLOEXEC);
    redirect (STDIN_FILENO);
    return;
  }

  close (pipe_fd[1]);
  /* Whoever ends this process means the server. */
  signals_pass_to (pid);
  signals_block (false);
  ssize_t n;
  while ((n = read (pipe_fd[0], &byte, 1)) < 0 && errno == EINTR)
    ;
  if (n == 1)
    _exit (EXIT_SUCCESS);
  while (waitpid (pid, NULL, 0) < 0 && errno == EINTR)
    ;
  _exit (EXIT_FAILURE);
}

void
daemon_detach (bool keep_stderr)
{
  if (ready_fd < 0)
    return;
  redirect (STDOUT_FILENO);
  if (!keep_stderr)
    redirect (STDERR_FILENO);
}

void
daemon_ready (bool keep_stderr)
{
  if (ready_fd < 0)
    return;
  daemon_detach (keep_stderr);
  ssize_t n = write (ready_fd, "", 1);
  (void)n; /* the parent has been killed: that is no reason not to serve */
  close (ready_fd);
  if (null_fd >= 0)
    close (null_fd);
  ready_fd = null_fd = -1;
}

/* Whether the open file is the one that PATH names. */
static bool
is_named (int fd, const char *path)
{
  struct stat ours, there;

  return fstat (fd, &ours) == 0 && stat (path, &there) == 0 && ours.st_dev == there.st_dev &&
         ours.st_ino == there.st_ino;
}

/* A descriptor of the file PATH, locked and empty. */
static int
lock_file (const char *path, const char **why)
{
  int fd = path_create (path, O_WRONLY, 0600, why);

  if (fd < 0)
    return fd;
  int r = flock (fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
  if (r == 0 && !is_named (fd, path))
    r = -ESTALE; /* a server that ended has removed it before we had the lock */
  if (r == 0 && ftruncate (fd, 0) < 0)
    r = -errno;
  if (r == 0)
    return fd;
  close (fd);
  *why = strerror (-r);
  return r;
}

int
pid_file_open (const char *path, struct q_error *err)
{
  const char *why;
  int fd = lock_file (path, &why);

  for (unsigned tries = 0; fd == -ESTALE && tries < 100; tries++)
    fd = lock_file (path, &why);
  if (fd == -EWOULDBLOCK)
    snprintf (err->text, sizeof err->text,
              "pid file '%s' belongs to a running server: stop it or use another file", path);
  else if (fd < 0)
    snprintf (err->text, sizeof err->text, "cannot write pid file '%s': %s", path, why);
  if (fd < 0)
    return fd;
  pid_fd = fd;
  pid_path = path_absolute (path);
  return 0;
}

int
pid_file_write (struct q_error *err)
{
  if (pid_fd < 0)
    return 0;
  /* Where it is another process's that was taken over, that one's number is in it. */
  if (ftruncate (pid_fd, 0) == 0 && lseek (pid_fd, 0, SEEK_SET) == 0 &&
      dprintf (pid_fd, "%d\n", (int)getpid ()) >= 0)
    return 0;
  int r = -errno;
  snprintf (err->text, sizeof err->text, "cannot write the pid file: %s", strerror (-r));
  return r;
}

int
pid_file_descriptor (void)
{
  return pid_fd;
}

const char *
pid_file_path (void)
{
  return pid_fd >= 0 ? pid_path : NULL;
}

void
pid_file_leave (void)
{
  if (pid_fd >= 0)
    close (pid_fd);
  pid_fd = -1;
  free (pid_path);
  pid_path = NULL;
}

int
pid_file_adopt (const char *path, int fd, struct q_error *err)
{
  struct stat theirs, there;

  if (fstat (fd, &theirs) < 0 || stat (path, &there) < 0 || theirs.st_dev != there.st_dev ||
      theirs.st_ino != there.st_ino) {
    snprintf (err->text, sizeof err->text,
              "pid file '%s' is not that of the server to be taken over", path);
    close (fd);
    return -EXDEV;
  }
  pid_fd = fd;
  pid_path = path_absolute (path);
  return 0;
}

void
pid_file_remove (void)
{
  /* Where it cannot be removed, it names nobody any more; and another server's stays.  The lock is
   * held until it is gone: nobody else has taken it for theirs meanwhile. */
  if (pid_fd >= 0 && pid_path && is_named (pid_fd, pid_path) && unlink (pid_path) < 0 &&
      ftruncate (pid_fd, 0) < 0)
    log_warning ("cannot remove pid file '%s': %s", pid_path, strerror (errno));
  if (pid_fd >= 0)
    close (pid_fd);
  pid_fd = -1;
  free (pid_path);
  pid_path = NULL;
}
