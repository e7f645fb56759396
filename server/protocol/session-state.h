/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a session has come to, in a form that another process can go on from (takeover.h).
 *
 * A session is saved outside of its turn, when nothing of it is at the pool or in the ring.  What
 * it has received but not carried out, be it a part of a request, is saved as the bytes that the
 * client sent; what it has not sent yet as the bytes that the client is going to get.  Only a long
 * WRITE and a long READ may be under way: the parts that are done are not done again.
 *
 * Sessions that have begun TLS cannot be saved.
 */

#ifndef SESSION_STATE_H
#define SESSION_STATE_H

#include <jansson.h>

#include "session.h"

struct saved_session {
  json_t *state;
  uint8_t *bytes; /* UNREAD that the session has yet to take in, then UNSENT */
  size_t unread, unsent;
};

/* While the exports are suspended.  HELD (of N bytes) is what has been received and the session has
 * not seen.  -ENOMEM; -ENOTSUP for what cannot be saved. */
int session_save (const struct session *s, const uint8_t *held, size_t n,
                  struct saved_session *saved, struct q_error *err);
void saved_session_free (struct saved_session *saved);

/* STATE and SIZE bytes are from somebody else.  Fills SAVED (which takes BYTES over, and a
 * reference to STATE) after looking at all of it: whether its fields make sense, and whether its
 * export is in SET and the same for the client: size, flags, block sizes, metadata contexts.
 * -EPROTO, -ENOENT, -ENOTSUP; then BYTES stay the caller's. */
int saved_session_check (struct exports *set, json_t *state, uint8_t *bytes, size_t size,
                         struct saved_session *saved, struct q_error *err);

/* In place of session_init: S, of PEER (session.h), goes on from SAVED, which was checked.  Its
 * unread bytes are still to be given to session_input.  -ENOMEM, or the export cannot be entered
 * any more: S is then to be dropped. */
int session_restore (struct session *s, struct shard *shard, void (*notify) (struct session *),
                     uint64_t peer, const struct saved_session *saved);

#endif /* SESSION_STATE_H */
