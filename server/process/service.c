/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "service.h"
#include "systemd.h"

/* NULL without a manager that wants to hear something. */
static const struct systemd *
manager (void)
{
  static bool warned;
  struct q_error err = { "" };
  const struct systemd *s;

  if (!getenv ("NOTIFY_SOCKET"))
    return NULL;
  s = systemd_load (&err);
  if (!s && !warned) {
    warned = true;
    log_warning ("the service manager is not told that the server runs: %s", err.text);
  }
  return s;
}

static void
notify (const char *state)
{
  const struct systemd *s = manager ();

  if (s)
    s->notify (0, state);
}

void
service_forked (pid_t before)
{
  const char *watched = getenv ("WATCHDOG_PID");
  char pid[24], self[24];

  snprintf (pid, sizeof pid, "%d", (int)before);
  snprintf (self, sizeof self, "%d", (int)getpid ());
  if (watched && strcmp (watched, pid) == 0)
    setenv ("WATCHDOG_PID", self, 1);
}

void
service_prepare (void)
{
  manager ();
}

void
service_ready (const char *status)
{
  char state[512];

  /* The process that the manager started may have forked this one. */
  snprintf (state, sizeof state, "READY=1\nMAINPID=%d\nSTATUS=%s", (int)getpid (), status);
  notify (state);
}

void
service_stopping (void)
{
  notify ("STOPPING=1");
}

void
service_main_process (pid_t pid)
{
  char state[64];

  snprintf (state, sizeof state, "MAINPID=%d", (int)pid);
  notify (state);
}

void
service_reloading (void)
{
  struct timespec now;
  char state[128];

  /* The manager compares the time with that of the signal that it sent. */
  clock_gettime (CLOCK_MONOTONIC, &now);
  snprintf (state, sizeof state, "RELOADING=1\nMONOTONIC_USEC=%lld",
            (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000);
  notify (state);
}

void
service_reloaded (void)
{
  notify ("READY=1");
}

uint64_t
service_patience (void)
{
  const struct systemd *s = getenv ("WATCHDOG_USEC") ? manager () : NULL;
  uint64_t us = 0;

  return s && s->watchdog_enabled (0, &us) > 0 ? us : 0;
}

void
service_inherit (uint64_t patience)
{
  char us[24];

  snprintf (us, sizeof us, "%llu", (unsigned long long)patience);
  if (patience > 0 && !getenv ("WATCHDOG_USEC"))
    setenv ("WATCHDOG_USEC", us, 1);
}

double
service_watchdog (void)
{
  return (double)service_patience () / 2e6;
}

void
service_alive (void)
{
  notify ("WATCHDOG=1");
}
