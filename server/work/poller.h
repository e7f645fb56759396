/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bounded, adaptive polling: a loop that expects its next event within microseconds looks for it
 * again and again for a while before it sleeps, because waking a sleeping processor (a virtual one
 * above all) takes longer than most requests do.
 *
 *     poller_start (&p, ev, max_us);     0: never polls, and costs nothing
 *     poller_stop (&p);
 *
 * How long it polls follows what polling would have been good for: the window doubles after each
 * wait that ended within max_us, and halves after each that took longer, down to none.  So a loop
 * without clients, or with slow ones, sleeps.
 *
 * When processors are short it gets out of the way: there are never more loops polling than there
 * are processors, less one for the clients; and a loop that finds that it was taken off its
 * processor while polling does not poll for the next POLLER_BACKOFF_MS.
 */

#ifndef POLLER_H
#define POLLER_H

#include <ev.h>
#include <stdbool.h>
#include <stdint.h>

#define POLLER_BACKOFF_MS 100

struct poller {
  struct ev_loop *ev;
  ev_prepare before; /* each time before libev waits */
  ev_check after;    /* and after */
  ev_idle spin;      /* while active libev does not sleep; called if nothing happened */
  uint64_t max_ns, window_ns;
  uint64_t last_event;    /* when something happened last */
  uint64_t last_look;     /* when we polled last */
  uint64_t backoff_until; /* no polling before */
  bool spinning, sleeping, found_nothing;
};

void poller_start (struct poller *p, struct ev_loop *ev, unsigned max_us);
void poller_stop (struct poller *p);

#endif /* POLLER_H */
