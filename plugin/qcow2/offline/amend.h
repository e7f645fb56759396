/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changing what kind of image an image is: the parts behind q_amend (amend.c).
 *
 * The image is open for writing, without a state file, and nobody uses it; all functions are called
 * with everything flushed, and leave it so.
 */

#ifndef Q_AMEND_H
#define Q_AMEND_H

#include "image.h"

/* How far the present step is. */
struct q_amend_progress {
  void (*fn) (void *opaque, double done); /* NULL: nobody wants to know */
  void *opaque;
  double from, to; /* what this step is of the whole */
};

static inline void
q_amend_report (const struct q_amend_progress *p, double part)
{
  if (p->fn)
    p->fn (p->opaque, p->from + (p->to - p->from) * part);
}

/* width.c: refcounts of 1 << ORDER bits. */
int q_refcount_change_width (struct q_image *img, unsigned order,
                             const struct q_amend_progress *progress, struct q_error *err);
/* expand.c: no L2 entry, of a snapshot either, has the zero flag afterwards. */
int q_expand_zeroes (struct q_image *img, const struct q_amend_progress *progress,
                     struct q_error *err);

#endif /* Q_AMEND_H */
