/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Probes: places where the order of threads matters, for tests that want to choose that order.
 *
 * In a build without NBDCOW_PROBES they are nothing at all.  With it, a program that defines
 * q_probe_hook is called at each, on the thread that gets there, and may make it wait; one that
 * does not define it pays a test of a constant.  The hook must not call the engine.  Some probes
 * are reached with engine locks held: the hook may wait for time to pass, not for another thread.
 */

#ifndef Q_PROBE_H
#define Q_PROBE_H

#ifdef NBDCOW_PROBES
void q_probe_hook (const char *place) __attribute__ ((weak, visibility ("default")));
#define Q_PROBE(place) (q_probe_hook ? q_probe_hook (place) : (void)0)
#else
#define Q_PROBE(place) ((void)0)
#endif

#endif /* Q_PROBE_H */
