/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Copying the contents of images: what convert.c decides, and convert-copy.c does.
 */

#ifndef CONVERT_H
#define CONVERT_H

#include <pthread.h>

#include "img.h"

struct conversion {
  /* where from: one after the other */
  struct q_image **source;
  struct img_layers *layers; /* of each */
  uint64_t *start;           /* where each begins on the target's disk; one more: where all end */
  unsigned n_sources;

  /* where to */
  struct q_image *target;
  bool reads_zero; /* what is not written reads as zeros */
  bool shares;     /* the target has a backing file that stands for the source's: only what is in
                    * the source's top layer is copied */
  bool compress;
  uint64_t sparse; /* zeros in runs of at least so many bytes are not written as data; 0: all are
                    * allocated */
  bool salvage;    /* what cannot be read becomes zeros */
  pthread_mutex_t *turn; /* held while plain data is written; NULL: all write at once */
  unsigned threads;
};

/* Copies everything, in parallel.  Reports what is wrong.  0, 1 after an error, or -EINTR: what has
 * not been copied then is as it was. */
int img_convert_copy (struct conversion *c);

/* --bitmaps.  Whether the source's can be copied, before the target is made; and after all else,
 * does it.  Report what is wrong; false then. */
bool img_convert_check_bitmaps (const struct conversion *c, bool skip_broken);
bool img_convert_bitmaps (const struct conversion *c);

#endif /* CONVERT_H */
