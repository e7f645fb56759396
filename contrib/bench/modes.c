/* SPDX-License-Identifier: BSD-3-Clause */

#include "modes.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_LIMIT_NS UINT64_C (60000000000)

/* ---- connecting ---------------------------------------------------------------------------- */

struct connector {
  pthread_t thread;
  const struct target *target;
  _Atomic int *stop;
  uint64_t connects;
  struct hist latency;
};

static void *
connector_main (void *arg)
{
  struct connector *c = arg;
  struct export e;
  uint64_t begin;
  int fd;

  while (!atomic_load_explicit (c->stop, memory_order_relaxed)) {
    begin = now_ns ();
    fd = client_connect_patiently (c->target);
    client_handshake (fd, c->target, &e);
    hist_add (&c->latency, now_ns () - begin);
    client_close (fd);
    c->connects++;
  }
  return NULL;
}

void
connect_run (const struct target *t, unsigned threads, uint64_t run_ns, pid_t pid,
             struct connect_result *r)
{
  struct connector *c = xcalloc (threads, sizeof *c);
  uint64_t begin = now_ns (), own = own_cpu_ns (), cpu = pid ? process_cpu_ns (pid) : 0;
  _Atomic int stop = 0;
  unsigned i;
  int err;

  memset (r, 0, sizeof *r);
  for (i = 0; i < threads; i++) {
    c[i].target = t;
    c[i].stop = &stop;
    err = pthread_create (&c[i].thread, NULL, connector_main, &c[i]);
    if (err)
      fatal ("pthread_create: %s", strerror (err));
  }
  sleep_ns (run_ns);
  stop = 1;
  for (i = 0; i < threads; i++) {
    pthread_join (c[i].thread, NULL);
    r->connects += c[i].connects;
    hist_merge (&r->latency, &c[i].latency);
  }
  r->elapsed_ns = now_ns () - begin;
  r->own_cpu_ns = own_cpu_ns () - own;
  r->server_cpu_ns = pid ? process_cpu_ns (pid) - cpu : 0;
  free (c);
}

/* ---- idling -------------------------------------------------------------------------------- */

void
idle_run (const struct target *t, unsigned n, uint32_t block, pid_t pid, struct idle_result *r)
{
  int *fd = xcalloc (n, sizeof *fd);
  struct export e;
  unsigned i;

  /* Once there has been a client, the server has started. */
  fd[0] = client_connect_patiently (t);
  client_handshake (fd[0], t, &e);
  if (block)
    client_read (fd[0], 0, block, NULL);
  client_close (fd[0]);
  process_memory (pid, &r->before);
  for (i = 0; i < n; i++) {
    fd[i] = client_connect_patiently (t);
    client_handshake (fd[i], t, &e);
    if (block)
      client_read (fd[i], 0, block, NULL);
  }
  sleep_ns (500000000); /* what the server does behind the last reply */
  process_memory (pid, &r->after);
  for (i = 0; i < n; i++)
    client_close (fd[i]);
  free (fd);
}

/* ---- starting up --------------------------------------------------------------------------- */

static pid_t
spawn (char *const command[])
{
  pid_t pid = fork ();

  if (pid < 0)
    fatal ("fork: %s", strerror (errno));
  if (pid == 0) {
    prctl (PR_SET_PDEATHSIG, SIGKILL);
    execvp (command[0], command);
    fatal ("%s: %s", command[0], strerror (errno));
  }
  return pid;
}

static void
end (pid_t pid)
{
  int status;

  kill (pid, SIGTERM);
  while (waitpid (pid, &status, 0) < 0 && errno == EINTR)
    ;
}

void
open_run (const struct target *t, unsigned n, char *const command[], struct hist *h)
{
  struct export e;
  uint64_t begin;
  pid_t pid;
  int fd, status;

  for (; n; n--) {
    if (t->unix_path)
      unlink (t->unix_path);
    begin = now_ns ();
    pid = spawn (command);
    while ((fd = client_connect (t)) < 0) {
      if (waitpid (pid, &status, WNOHANG) == pid)
        fatal ("%s ended before it could be connected to", command[0]);
      if (now_ns () - begin > START_LIMIT_NS)
        fatal ("%s: nobody to connect to within a minute", command[0]);
      sleep_ns (20000);
    }
    client_handshake (fd, t, &e);
    client_read (fd, 0, 4096, NULL);
    hist_add (h, now_ns () - begin);
    client_close (fd);
    end (pid);
  }
}
