/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Claims on ranges of guest clusters.
 *
 * Invariant 4. Whoever changes a guest cluster's mapping holds the claim on its range.  A second
 * allocating writer to one cluster waits, maps again, and writes in place.
 *
 * There are never more claims than requests that allocate at one moment, a few dozen: a list.
 */

#include <errno.h>

#include "image.h"

/* claim_lock held. */
static bool
conflicts (const struct q_image *img, uint64_t first, uint64_t last)
{
  for (const struct q_plan_claim *c = img->claims; c; c = c->next)
    if (first <= c->last && c->first <= last)
      return true;
  return false;
}

int
q_claim_take (struct q_image *img, struct q_plan_claim *c, uint64_t first, uint64_t last,
              unsigned flags)
{
  int r = 0;

  assert (first <= last);
  pthread_mutex_lock (&img->claim_lock);
  while (conflicts (img, first, last)) {
    if (flags & Q_NOWAIT) {
      r = -EAGAIN;
      break;
    }
    pthread_cond_wait (&img->claim_released, &img->claim_lock);
  }
  if (r == 0) {
    *c = (struct q_plan_claim){ .first = first, .last = last, .next = img->claims };
    if (img->claims)
      img->claims->prev = c;
    img->claims = c;
  }
  pthread_mutex_unlock (&img->claim_lock);
  Q_PROBE ("claim taken");
  return r;
}

void
q_claim_release (struct q_image *img, struct q_plan_claim *c)
{
  struct q_plan_claim *prev, *next;

  pthread_mutex_lock (&img->claim_lock);
  prev = c->prev;
  next = c->next;
  if (prev)
    prev->next = next;
  else
    img->claims = next;
  if (next)
    next->prev = prev;
  pthread_cond_broadcast (&img->claim_released);
  pthread_mutex_unlock (&img->claim_lock);
}
