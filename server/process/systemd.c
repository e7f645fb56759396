/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdio.h>

#include "systemd.h"

#ifdef HAVE_SYSTEMD

#include <dlfcn.h>
#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-daemon.h>
#include <systemd/sd-journal.h>

#define LIBRARY "libsystemd.so.0"

const struct systemd *
systemd_load (struct q_error *err)
{
  static struct systemd lib;
  void *handle;

  if (lib.notify)
    return &lib;
  handle = dlopen (LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    snprintf (err->text, sizeof err->text, "libsystemd cannot be loaded: %s", dlerror ());
    return NULL;
  }
  lib.notify = (__typeof__ (sd_notify) *)dlsym (handle, "sd_notify");
  lib.watchdog_enabled = (__typeof__ (sd_watchdog_enabled) *)dlsym (handle, "sd_watchdog_enabled");
  lib.journal_send = (__typeof__ (sd_journal_send) *)dlsym (handle, "sd_journal_send");
  if (lib.notify && lib.watchdog_enabled && lib.journal_send)
    return &lib;
  snprintf (err->text, sizeof err->text, LIBRARY " is not what nbdcow was built with");
  lib.notify = NULL;
  dlclose (handle);
  return NULL;
}

#else

const struct systemd *
systemd_load (struct q_error *err)
{
  snprintf (err->text, sizeof err->text, "this nbdcow was built without libsystemd");
  return NULL;
}

#endif
