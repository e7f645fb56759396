/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "file.h"
#include "merge.h"

#define MAX_MERGED 32

struct merge {
  unsigned n;
  uint64_t end;             /* host offset behind the last one */
  struct q_write_plan plan; /* of the first one */
  struct request rq[MAX_MERGED];
  const uint8_t *payload[MAX_MERGED];
};

bool
merge_add (struct shard *shard, const struct request *rq, const uint8_t *payload,
           struct q_write_plan *plan)
{
  struct merge *m = shard->merge;

  assert (rq->session->in_turn && !rq->heap && rq->done == 0);
  if (plan->allocates || plan->n_runs != 1 || plan->len != rq->len)
    return false;
  if (!m && !(m = shard->merge = calloc (1, sizeof *m)))
    return false;
  if (m->n == MAX_MERGED || (m->n > 0 && (m->plan.img != plan->img || m->end != plan->run[0].host)))
    merge_flush (shard);
  if (m->n == 0)
    m->plan = *plan;
  else
    q_write_commit (plan); /* it is in place; the first one keeps the mapping as it is for all */
  m->end = plan->run[0].host + rq->len;
  m->rq[m->n] = *rq;
  m->payload[m->n++] = payload;
  return true;
}

void
merge_flush (struct shard *shard)
{
  struct merge *m = shard->merge;
  struct iovec iov[MAX_MERGED];

  if (!m || m->n == 0)
    return;
  unsigned n = m->n;
  m->n = 0;
  stats_merged (m->rq[0].session->stats, n);
  for (unsigned i = 0; i < n; i++)
    iov[i] = (struct iovec){ (void *)m->payload[i], m->rq[i].len };
  int r = q_file_pwritev (m->plan.file, iov, (int)n, m->plan.run[0].host);
  m->rq[0].session->slice--;
  /* In place, so there is nothing to publish; but even half a write is something to flush. */
  q_write_commit (&m->plan);
  for (unsigned i = 0; i < n; i++)
    exec_merged (&m->rq[i], m->payload[i], r);
}

void
merge_destroy (struct shard *shard)
{
  assert (!shard->merge || shard->merge->n == 0);
  free (shard->merge);
  shard->merge = NULL;
}
