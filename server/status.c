/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "request.h"
#include "status.h"

/* Descriptors of one context in one reply: 1 MiB of them, in compact form.  The spec's bound is
 * eight times that.  A client asks on from where the reply ends. */
#define MAX_DESCRIPTORS (128u * 1024)

#define MAP_EXTENTS 64

/* ---- the contexts ---------------------------------------------------------------------------- */

static int
describe_allocation (const struct export *x, const struct meta_context *context, uint64_t offset,
                     uint64_t len, struct status_list *list)
{
  struct q_extent extents[MAP_EXTENTS];
  uint64_t end = offset + len;

  (void)context;
  while (offset < end && !list->full) {
    q_pin_t pin = q_pin ();
    int n = q_map (x->img, offset, end - offset, extents, MAP_EXTENTS, Q_MAP_MERGE);
    q_unpin (pin);
    if (n < 0)
      return list->n > 0 ? 0 : n;
    for (int i = 0; i < n; i++) {
      uint64_t flags = 0;
      if (extents[i].kind == Q_ZERO)
        flags = NBD_STATE_ZERO | (extents[i].flags & Q_HOLE ? NBD_STATE_HOLE : 0);
      if (!status_add (list, extents[i].len, flags))
        break;
      offset += extents[i].len;
    }
  }
  return list->error;
}

const struct meta_context status_contexts[] = {
  { "base:allocation", describe_allocation },
};
const unsigned status_n_contexts = sizeof status_contexts / sizeof status_contexts[0];
static_assert (sizeof status_contexts / sizeof status_contexts[0] <= MAX_META_CONTEXTS, "bits");

/* ---- lists ----------------------------------------------------------------------------------- */

bool
status_add (struct status_list *list, uint64_t len, uint64_t flags)
{
  if (list->n > 0 && list->extents[list->n - 1].flags == flags) {
    list->extents[list->n - 1].len += len;
    return true;
  }
  if (list->n == list->max) {
    list->full = true;
    return false;
  }
  if (list->n == list->allocated) {
    unsigned more = list->allocated ? list->allocated * 2 : 64;
    struct status_extent *p = reallocarray (list->extents, more, sizeof *p);
    if (!p) {
      /* What we have is an answer, if not the whole one. */
      list->full = true;
      list->error = list->n > 0 ? 0 : -ENOMEM;
      return false;
    }
    list->extents = p;
    list->allocated = more;
  }
  list->extents[list->n++] = (struct status_extent){ len, flags };
  return true;
}

/* ---- replies --------------------------------------------------------------------------------- */

static size_t
encoded_size (const struct request *rq, const struct status_list *list)
{
  return chunk_header_size (rq->mode) +
         (rq->mode == MODE_EXTENDED
              ? 2 * sizeof (uint32_t) + list->n * sizeof (struct nbd_block_descriptor_ext)
              : sizeof (uint32_t) + list->n * sizeof (struct nbd_block_descriptor));
}

static uint8_t *
encode (const struct request *rq, const struct status_list *list, uint32_t id, bool done,
        uint8_t *at)
{
  size_t header = chunk_header_size (rq->mode);
  size_t payload = encoded_size (rq, list) - header;
  uint32_t be_id = htobe32 (id);

  if (rq->mode == MODE_EXTENDED) {
    uint32_t be_count = htobe32 (list->n);
    chunk_header (at, rq, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, payload, done);
    memcpy (at + header, &be_id, sizeof be_id);
    memcpy (at + header + sizeof be_id, &be_count, sizeof be_count);
    struct nbd_block_descriptor_ext *d =
        (struct nbd_block_descriptor_ext *)(at + header + sizeof be_id + sizeof be_count);
    for (unsigned i = 0; i < list->n; i++) {
      d[i].length = htobe64 (list->extents[i].len);
      d[i].flags = htobe64 (list->extents[i].flags);
    }
  } else {
    chunk_header (at, rq, NBD_REPLY_TYPE_BLOCK_STATUS, payload, done);
    memcpy (at + header, &be_id, sizeof be_id);
    struct nbd_block_descriptor *d = (struct nbd_block_descriptor *)(at + header + sizeof be_id);
    for (unsigned i = 0; i < list->n; i++) {
      /* No longer than the request, whose length has 32 bits in this mode. */
      d[i].length = htobe32 ((uint32_t)list->extents[i].len);
      d[i].flags = htobe32 ((uint32_t)list->extents[i].flags);
    }
  }
  return at + header + payload;
}

int
status_answer (struct request *rq)
{
  struct status_list lists[MAX_META_CONTEXTS];
  uint32_t id[MAX_META_CONTEXTS];
  unsigned n = 0;
  size_t size = 0;
  int r = 0;

  for (unsigned i = 0; i < rq->export->n_contexts && r == 0; i++) {
    if (!(rq->contexts & (UINT64_C (1) << i)))
      continue;
    const struct meta_context *c = &rq->export->contexts[i];
    lists[n] =
        (struct status_list){ .max = rq->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : MAX_DESCRIPTORS };
    id[n] = i;
    r = c->describe (rq->export, c, rq->offset, rq->len, &lists[n]);
    size += encoded_size (rq, &lists[n]);
    n++;
  }
  if (r == 0) {
    rq->out = buf_alloc (NULL, size);
    if (!rq->out)
      r = -ENOMEM;
  }
  if (r == 0) {
    for (unsigned i = 0; i < n; i++)
      rq->out->end = encode (rq, &lists[i], id[i], i == n - 1, rq->out->end);
  }
  for (unsigned i = 0; i < n; i++)
    free (lists[i].extents);
  return r;
}
