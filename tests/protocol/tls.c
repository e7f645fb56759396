/* SPDX-License-Identifier: BSD-3-Clause */

/* What a server that requires TLS says to a client that has not started it. No case gets as far
 * as a handshake: these are the rules of the plain text before it.
 */

#include <inttypes.h>
#include <string.h>

#include "client.h"

static void
everything_refused (struct test *t)
{
  const uint16_t infos[] = { NBD_INFO_BLOCK_SIZE };
  struct conn *c = open_haggling (t);

  for (uint32_t option = NBD_OPT_LIST; option <= NBD_OPT_EXTENDED_HEADERS + 1; option++) {
    const struct answer *a;

    if (option == NBD_OPT_STARTTLS)
      continue;
    a = opt_ask (c, option,
                 option == NBD_OPT_INFO || option == NBD_OPT_GO
                     ? go_data (t, t->target->export, 1, infos)
                     : NULL);
    expect_answer (c, a, "an option before STARTTLS", REPS (NBD_REP_ERR_TLS_REQD));
    CHECK (t, a->n == 0, "option %" PRIu32 " told something before the error", option);
  }
}

static void
data_drained (struct test *t)
{
  struct conn *c = open_haggling (t);

  for (size_t len = 1; len <= 4096; len *= 8)
    expect_answer (c, opt_ask (c, 0x4242, put_fill (bytes_new (t), 'j', len)),
                   "an option before STARTTLS", REPS (NBD_REP_ERR_TLS_REQD));
  expect_answer (c, opt_ask (c, NBD_OPT_ABORT, NULL), "ABORT", REP_ACK);
}

static void
export_name (struct test *t)
{
  struct conn *c = open_haggling (t);

  opt_send (c, NBD_OPT_EXPORT_NAME, put_string (bytes_new (t), t->target->export));
  expect_eof (c, "on EXPORT_NAME before STARTTLS");
}

static void
starttls (struct test *t)
{
  struct conn *c = open_haggling (t);

  expect_answer (c, opt_ask (c, NBD_OPT_STARTTLS, NULL), "STARTTLS", REP_ACK);
}

static void
starttls_with_data (struct test *t)
{
  struct conn *c = open_haggling (t);

  expect_answer (c, opt_ask (c, NBD_OPT_STARTTLS, put_fill (bytes_new (t), 'j', 4)),
                 "STARTTLS with data", REPS (NBD_REP_ERR_INVALID));
  expect_answer (c, opt_ask (c, NBD_OPT_STARTTLS, NULL), "STARTTLS", REP_ACK);
}

/* A client whose TLS handshake is no such thing is dropped, and told nothing in plain text. */
static void
no_handshake (struct test *t)
{
  struct conn *c = open_haggling (t);
  static const uint8_t alert = 21, handshake = 22;

  expect_answer (c, opt_ask (c, NBD_OPT_STARTTLS, NULL), "STARTTLS", REP_ACK);
  conn_send_bytes (c, put_fill (opt_header (bytes_new (t), NBD_OPT_LIST, 0), 0, 64));
  while (!conn_at_eof (c)) {
    uint8_t h[5];

    conn_recv (c, h, sizeof h, "a TLS record");
    CHECK (t, (h[0] == alert || h[0] == handshake) && h[1] == 3, "%02x %02x is no TLS record", h[0],
           h[1]);
    conn_skip (c, get_u16 (h + 3), "a TLS record");
  }
}

/* Plain text sent along with STARTTLS, where a man in the middle could put it, has no effect:
 * it is dropped with the connection, or taken for the handshake that it is not. */
static void
injection (struct test *t)
{
  struct conn *c = open_haggling (t);
  struct bytes *b = opt_header (bytes_new (t), NBD_OPT_STARTTLS, 0);

  opt_header (opt_header (b, NBD_OPT_STRUCTURED_REPLY, 0), NBD_OPT_LIST, 0);
  conn_send_bytes (c, b);
  conn_half_close (c);
  if (conn_at_eof (c))
    return;
  expect_answer (c, opt_answer (c, NBD_OPT_STARTTLS), "STARTTLS", REP_ACK);
  while (!conn_at_eof (c)) {
    uint8_t h[5];

    conn_recv (c, h, sizeof h, "a TLS record");
    CHECK (t, h[0] == 21 && h[1] == 3, "%02x %02x came, which is no TLS alert", h[0], h[1]);
    conn_skip (c, get_u16 (h + 3), "a TLS record");
  }
}

/* A handshake that is begun and not finished does not keep others from theirs. */
static void
unfinished (struct test *t)
{
  for (int i = 0; i < 20; i++) {
    struct conn *c = open_haggling (t);

    expect_answer (c, opt_ask (c, NBD_OPT_STARTTLS, NULL), "STARTTLS", REP_ACK);
    conn_send (c, "\x16\x03\x01\x02", 4);
  }
  starttls (t);
}

#define FORCED "all but STARTTLS and ABORT MUST be answered with TLS_REQD"

const struct tcase tls_cases[] = {
  { "tls.everything-refused", ONCE, TLS, everything_refused, FORCED },
  { "tls.data-drained", ONCE, TLS, data_drained, FORCED },
  { "tls.export-name", ONCE, TLS, export_name,
    "EXPORT_NAME cannot be refused, so the session MUST end" },
  { "tls.starttls", ONCE, TLS, starttls, "STARTTLS MUST be acknowledged" },
  { "tls.starttls-with-data", ONCE, TLS, starttls_with_data,
    "STARTTLS with data is INVALID, and haggling goes on" },
  { "tls.no-handshake", ONCE, TLS, no_handshake, "when the handshake fails the session MUST end" },
  { "tls.injection", ONCE, TLS, injection,
    "after the ACK all data MUST be sent and received over TLS" },
  { "tls.unfinished", ONCE, TLS, unfinished, "a slow handshake holds up nobody" },
  { NULL, 0, 0, NULL, NULL },
};
