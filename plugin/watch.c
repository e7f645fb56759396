/* SPDX-License-Identifier: BSD-3-Clause */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "watch.h"

extern char **environ;

/* Milliseconds between two looks: whether the command has ended, and how large the device is. */
#define LOOK_AT_COMMAND 50
#define LOOK_AT_DEVICE  2000

static struct {
  struct q_image *img;
  const char *filename;
  struct watermark watermark;
  pthread_t thread;
  bool running;
  atomic_bool stop;
  sem_t news; /* it has been passed, or the thread is to end */
  /* The thread's: */
  uint64_t mark, device, reported, last_mark;
  pid_t command; /* 0: none is being run */
  bool again;
} w;

/* Called with the allocator's lock held. */
static void
passed (void *opaque)
{
  (void)opaque;
  sem_post (&w.news);
}

static void
rearm (void)
{
  w.device = q_device_size (w.img);
  w.mark = q_next_mark (q_amount_bytes (w.img, &w.watermark.at),
                        q_amount_bytes (w.img, &w.watermark.repeat), w.reported);
  q_watch_highest (w.img, w.mark, w.mark == UINT64_MAX ? NULL : passed, NULL);
}

/* ---- the command ----------------------------------------------------------------------------- */

#define N_FACTS 6

/* Our environment, with FACTS in the place of whatever it has of that kind. */
static char **
environment_with (char *facts[N_FACTS])
{
  size_t n = 0, at = N_FACTS;

  while (environ[n])
    n++;
  char **env = calloc (N_FACTS + n + 1, sizeof *env);
  if (!env)
    return NULL;
  memcpy (env, facts, N_FACTS * sizeof *env);
  for (size_t i = 0; i < n; i++)
    if (strncmp (environ[i], "NBDCOW_", strlen ("NBDCOW_")) != 0)
      env[at++] = environ[i];
  return env;
}

static int
spawn (char **env, pid_t *pid)
{
  char *argv[] = { (char *)"sh", (char *)"-c", (char *)w.watermark.exec, NULL };
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attr;
  sigset_t none, all;

  sigemptyset (&none);
  sigfillset (&all);
  posix_spawn_file_actions_init (&files);
  posix_spawnattr_init (&attr);
  posix_spawnattr_setsigmask (&attr, &none);
  posix_spawnattr_setsigdefault (&attr, &all);
  posix_spawnattr_setflags (&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  int r = posix_spawn_file_actions_addopen (&files, 0, "/dev/null", O_RDONLY, 0);
  if (r == 0)
    r = posix_spawn (pid, "/bin/sh", &files, &attr, argv, env);
  posix_spawnattr_destroy (&attr);
  posix_spawn_file_actions_destroy (&files);
  return r;
}

static void
run_command (void)
{
  char *facts[N_FACTS] = { NULL };
  char **env = NULL;
  int r = ENOMEM;

  w.again = false;
  if (asprintf (&facts[0], "NBDCOW_EXPORT=") >= 0 &&
      asprintf (&facts[1], "NBDCOW_FILE=%s", w.filename) >= 0 &&
      asprintf (&facts[2], "NBDCOW_HIGHEST=%" PRIu64, q_highest_offset (w.img)) >= 0 &&
      asprintf (&facts[3], "NBDCOW_THRESHOLD=%" PRIu64, w.last_mark) >= 0 &&
      asprintf (&facts[4], "NBDCOW_DEVICE_SIZE=%" PRIu64, q_device_size (w.img)) >= 0 &&
      asprintf (&facts[5], "NBDCOW_SIZE=%" PRIu64, q_size (w.img)) >= 0 &&
      (env = environment_with (facts)) != NULL)
    r = spawn (env, &w.command);
  if (r != 0) {
    w.command = 0;
    nbdkit_error ("%s: cannot run the watermark's command: %s", w.filename, strerror (r));
  }
  free (env);
  for (int i = 0; i < N_FACTS; i++)
    free (facts[i]);
}

/* Whether it has ended, and how. */
static void
look_at_command (void)
{
  int status;
  pid_t pid = waitpid (w.command, &status, WNOHANG);

  if (pid == 0)
    return;
  w.command = 0;
  if (pid < 0)
    nbdkit_error ("%s: how the watermark's command has ended is not known: %m", w.filename);
  else if (WIFSIGNALED (status))
    nbdkit_error ("%s: the watermark's command was ended by signal %d", w.filename,
                  WTERMSIG (status));
  else if (WEXITSTATUS (status) != 0)
    nbdkit_error ("%s: the watermark's command ended with status %d", w.filename,
                  WEXITSTATUS (status));
  else
    nbdkit_debug ("%s: the watermark's command has ended", w.filename);
  rearm (); /* it will have grown the device */
  if (w.again)
    run_command ();
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void
tell (uint64_t highest)
{
  char of[64] = "";

  if (w.device > 0)
    snprintf (of, sizeof of, ", of a device of %" PRIu64, w.device);
  nbdkit_error ("warning: %s is allocated up to byte %" PRIu64 ", past the watermark of %" PRIu64
                "%s",
                w.filename, highest, w.mark, of);
  w.last_mark = w.mark;
  w.reported = highest;
  if (w.watermark.exec && w.command)
    w.again = true;
  else if (w.watermark.exec)
    run_command ();
}

static void
look (void)
{
  uint64_t highest = q_highest_offset (w.img);
  bool told = w.mark != UINT64_MAX && highest > w.mark;

  if (told)
    tell (highest);
  if (told || q_device_size (w.img) != w.device)
    rearm ();
}

/* Until there is news, or it is time for a look. */
static void
wait_for_news (void)
{
  struct timespec until;
  long ms = w.command ? LOOK_AT_COMMAND : LOOK_AT_DEVICE;

  if (!w.command && w.device == 0) {
    while (sem_wait (&w.news) < 0 && errno == EINTR)
      ;
    return;
  }
  clock_gettime (CLOCK_REALTIME, &until);
  until.tv_nsec += ms % 1000 * 1000000;
  until.tv_sec += ms / 1000 + until.tv_nsec / 1000000000;
  until.tv_nsec %= 1000000000;
  while (sem_timedwait (&w.news, &until) < 0 && errno == EINTR)
    ;
}

static void *
run (void *arg)
{
  (void)arg;
  rearm ();
  do {
    wait_for_news ();
    look ();
    if (w.command)
      look_at_command ();
  } while (!atomic_load (&w.stop));
  return NULL; /* a command that is being run goes on without us */
}

int
watch_start (struct q_image *img, const char *filename, const struct watermark *watermark)
{
  sigset_t all, before;

  if (watermark->at.bytes + watermark->at.percent == 0)
    return 0;
  if (q_image_format (img) != Q_FORMAT_QCOW2) {
    nbdkit_error ("warning: %s: a raw image has no watermark: none of it is allocated later",
                  filename);
    return 0;
  }
  w.img = img;
  w.filename = filename;
  w.watermark = *watermark;
  if (sem_init (&w.news, 0, 0) < 0)
    return -errno;
  /* Signals are nbdkit's. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  int r = pthread_create (&w.thread, NULL, run, NULL);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (r != 0) {
    sem_destroy (&w.news);
    return -r;
  }
  w.running = true;
  return 0;
}

void
watch_stop (void)
{
  if (!w.running)
    return;
  q_watch_highest (w.img, 0, NULL, NULL);
  atomic_store (&w.stop, true);
  sem_post (&w.news);
  pthread_join (w.thread, NULL);
  /* The thread may have set it again. */
  q_watch_highest (w.img, 0, NULL, NULL);
  sem_destroy (&w.news);
  w.running = false;
}
