/* SPDX-License-Identifier: BSD-3-Clause */

#include "service.h"

#ifdef HAVE_SYSTEMD

#include <stdint.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

void
service_ready (const char *status)
{
  /* The process that the manager started may have forked this one. */
  sd_notifyf (0, "READY=1\nSTATUS=%s\nMAINPID=%d", status, (int)getpid ());
}

void
service_stopping (void)
{
  sd_notify (0, "STOPPING=1");
}

double
service_watchdog (void)
{
  uint64_t us = 0;
  return sd_watchdog_enabled (0, &us) > 0 ? (double)us / 2e6 : 0;
}

void
service_alive (void)
{
  sd_notify (0, "WATCHDOG=1");
}

#else

void
service_ready (const char *status)
{
  (void)status;
}

void
service_stopping (void)
{
}

double
service_watchdog (void)
{
  return 0;
}

void
service_alive (void)
{
}

#endif
