/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The head of an input for the control socket (fuzz-qmp.c).
 */

#ifndef FUZZ_QMP_CHOICE_H
#define FUZZ_QMP_CHOICE_H

#include <stdint.h>

struct choice {
  uint8_t image;
  uint8_t bits;
  uint8_t seed;    /* of the cuts */
  uint8_t in, out; /* the longest piece: 1 << these */
  uint8_t more;    /* bits */
  uint8_t tick;    /* fuzz_tick_ns */
  uint8_t spare;
};

enum choice_bits {
  PLAIN = 1,
  AT_ONCE = 2,     /* commands are run as soon as they are there */
  SMALL_QUEUE = 4, /* of the kernel, towards the client */
  BUSY = 8,        /* the export has a client */
  NOT_GREEDY = 16, /* the first client does not begin with qmp_capabilities */
};

enum choice_more {
  CONFIGURED = 1, /* the export comes from the configuration */
  BOUND = 2,      /* the server cannot be taken over */
};

#endif /* FUZZ_QMP_CHOICE_H */
