/* SPDX-License-Identifier: BSD-3-Clause */

/* The server is told to end while it has clients. The runner does this when asked to, since there
 * is nothing left to test afterwards.
 */

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>

#include "client.h"

/* Enough to be busy with, and more than the socket holds. */
enum { IN_FLIGHT = 48 };
#define PIECE (256 * KiB)

static void
in_flight (struct test *t)
{
  struct conn *busy = open_transmission (t), *idle = open_transmission (t);
  struct conn *haggling = open_haggling (t);
  struct bytes *b = bytes_new (t);
  uint64_t answered = 0;

  for (uint64_t i = 0; i < IN_FLIGHT; i++)
    put_request (b, busy,
                 &(struct request){
                     .type = NBD_CMD_READ, .cookie = i + 1, .offset = i * PIECE, .length = PIECE });
  conn_send_bytes (busy, b);
  CHECK (t, !conn_at_eof (busy), "the server hung up on requests"); /* it is at work on them */
  CHECK (t, kill ((pid_t)t->target->pid, SIGTERM) == 0, "kill: %s", strerror (errno));

  /* What was accepted is answered, in full or by ESHUTDOWN; nothing ends amid a reply. */
  for (; answered < IN_FLIGHT; answered++) {
    const uint64_t i = answered;
    const struct reply *r;

    if (!reply_came (busy, i + 1) && conn_at_eof (busy))
      break;
    r = recv_reply (busy, i + 1);
    expect_error (busy, r->error, "a request in flight", ERRS (NBD_OK, NBD_ESHUTDOWN));
    if (r->error == 0)
      expect_pattern (busy, r->data, i * PIECE, PIECE);
  }
  if (t->target->has & DRAINS)
    CHECK (t, answered == IN_FLIGHT, "only %" PRIu64 " of %d requests in flight were answered",
           answered, IN_FLIGHT);

  send_request (idle, (struct request){ .type = NBD_CMD_READ, .cookie = 1, .length = 4096 });
  if (!conn_at_eof (idle))
    expect_error (idle, recv_reply (idle, 1)->error, "a request during shutdown",
                  ERRS (NBD_OK, NBD_ESHUTDOWN));
  opt_send (haggling, NBD_OPT_LIST, NULL);
  if (!conn_at_eof (haggling))
    expect_answer (haggling, opt_answer (haggling, NBD_OPT_LIST), "an option during shutdown",
                   REPS (NBD_REP_ACK, NBD_REP_ERR_SHUTDOWN));
  conn_close (busy);
  conn_close (idle);
  conn_close (haggling);
}

const struct tcase shutdown_cases[] = {
  { "shutdown.in-flight", IN_ALL, PLAIN | PATTERN | PID | SHUTDOWN, in_flight,
    "requests in flight SHOULD be answered, by ESHUTDOWN if not otherwise, before the hang-up" },
  { NULL, 0, 0, NULL, NULL },
};
