/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the plugin has done: how many requests, of how many bytes, how many failed.
 */

#ifndef COUNTS_H
#define COUNTS_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

enum count { COUNT_READ, COUNT_WRITE, COUNT_FLUSH, COUNT_TRIM, COUNT_ZERO, COUNT_CACHE, COUNTS };

/* Any thread. */
void count_request (enum count what, uint64_t bytes, bool failed);
/* One line, for people: what was counted, and what IMG's engine says of itself. */
#define COUNTS_LINE 512
void counts_line (struct q_image *img, char line[COUNTS_LINE]);

#endif /* COUNTS_H */
