/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Whether what the control socket sends is what QMP lets it send (docs/interop/qmp-spec.rst in
 * QEMU's sources): from the outside, for one client, knowing nothing of how the server does it.
 *
 *     qmp_expect (&w, 7);              the client sends a command with the id that qmp_id (7) is
 *     qmp_tolerate (&w, 40);           ... something that may have up to 40 replies of any kind
 *     qmp_hear (&w, p, n);             what comes back, in any pieces
 *     qmp_finish (&w);                 nothing more will come: all that was expected has
 *
 * What must hold: one line for each object, in ASCII; the greeting first, and once; exactly one
 * reply to each command, in their order, with the id; replies are `return' or `error', and errors
 * have a class that is known and one line for people; events are events, and not before the client
 * has negotiated.
 */

#ifndef FUZZ_QMP_JUDGE_H
#define FUZZ_QMP_JUDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QMP_MAX_COMMANDS 1024u
#define QMP_ID_PREFIX    "fuzz-"
#define QMP_ID_SIZE      24u

struct qmp_witness {
  char *text; /* of the line so far */
  size_t n, room;
  bool greeted;
  bool may_negotiate; /* the client has sent something that could be qmp_capabilities */
  unsigned expected[QMP_MAX_COMMANDS], first, end; /* numbers of commands without a reply */
  size_t tolerated;                                /* replies to whatever else was sent */
  uint64_t events;                                 /* that have come ... */
  uint64_t lost;                                   /* ... or of which it was told */
};

/* The id of command NUMBER: a string. */
void qmp_id (char id[QMP_ID_SIZE], unsigned number);

/* False: there is no room for another. */
bool qmp_expect (struct qmp_witness *w, unsigned number);
void qmp_tolerate (struct qmp_witness *w, size_t replies);
void qmp_hear (struct qmp_witness *w, const char *p, size_t n);
void qmp_finish (const struct qmp_witness *w);
void qmp_free (struct qmp_witness *w);

#endif /* FUZZ_QMP_JUDGE_H */
