/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writes that were received together and lie side by side in the file become one.
 *
 *     merge_add (shard, rq, payload, &plan)    true: taken over, to be answered by merge_flush
 *     merge_flush (shard);                     writes what was taken over
 *
 * Only overwrites in place are taken: for them nothing is left to go wrong but the write itself.
 * What has been taken over refers to the receive buffer, and to plans under the pin of the turn, so
 * it is written when session_input returns at the latest.
 */

#ifndef MERGE_H
#define MERGE_H

#include "request.h"

/* RQ is on the stack, nothing of it is done yet, and its PAYLOAD is in the receive buffer. */
bool merge_add (struct shard *shard, const struct request *rq, const uint8_t *payload,
                struct q_write_plan *plan);
void merge_flush (struct shard *shard);
void merge_destroy (struct shard *shard);

#endif /* MERGE_H */
