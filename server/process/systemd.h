/* SPDX-License-Identifier: BSD-3-Clause
 *
 * libsystemd, loaded when it is needed: linked, it would take every server two milliseconds to
 * start with it and all that it needs itself.
 */

#ifndef SYSTEMD_H
#define SYSTEMD_H

#include <stdint.h>

#include "qcow2.h"

/* The functions go by their own names, without sd_. */
struct systemd {
  int (*notify) (int unset_environment, const char *state);
  int (*watchdog_enabled) (int unset_environment, uint64_t *usec);
  int (*journal_send) (const char *format, ...) __attribute__ ((format (printf, 1, 0)));
};

/* NULL, with the reason in ERR, if it is not there.  On the main thread. */
const struct systemd *systemd_load (struct q_error *err);

#endif /* SYSTEMD_H */
