/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "request.h"
#include "status.h"

/* What precedes the descriptors of a context, at most. */
#define HEADER_SIZE (sizeof (struct nbd_extended_reply) + 2 * sizeof (uint32_t))

/* Descriptors of one context in one reply: as many as go into 64 KiB, of which a loop keeps many
 * buffers.  The spec's bound is far above that.  A client asks on from where the reply ends. */
#define MAX_DESCRIPTORS ((64u * 1024 - HEADER_SIZE) / sizeof (struct status_extent))
/* So many contexts may have as many each; more of them share those. */
#define MAX_ALIKE 4

static_assert (sizeof (struct nbd_block_descriptor) <= sizeof (struct status_extent) &&
                   sizeof (struct nbd_block_descriptor_ext) <= sizeof (struct status_extent),
               "a reply is no longer than its lists");
static_assert (LOW_PIECE / MAX_META_CONTEXTS >= HEADER_SIZE + sizeof (struct status_extent),
               "each context has one descriptor, however short memory is");

#define MAP_EXTENTS 64
/* Maps between two looks at the time. */
#define MAPS_AT_A_TIME 4

/* ---- the contexts ---------------------------------------------------------------------------- */

/* The flags that a context has for an extent. */
typedef uint64_t (*flags_fn) (const struct q_extent *e, unsigned layers);

static int
describe_map (const struct export *x, uint64_t offset, uint64_t len, flags_fn flags,
              struct status_list *list)
{
  struct q_extent extents[MAP_EXTENTS];
  uint64_t end = offset + len;
  unsigned layers = 0;

  for (struct q_image *img = x->img; img; img = q_backing_image (img))
    layers++;
  /* Descriptors are few where much is alike, and yet all of it has to be looked at. */
  for (unsigned maps = 1; offset < end && !list->full; maps++) {
    q_pin_t pin = q_pin ();
    int n = q_map (x->img, offset, end - offset, extents, MAP_EXTENTS, Q_MAP_MERGE);
    q_unpin (pin);
    if (n < 0)
      return list->n > 0 ? 0 : n;
    for (int i = 0; i < n; i++) {
      if (!status_add (list, extents[i].len, flags (&extents[i], layers)))
        break;
      offset += extents[i].len;
    }
    if (maps % MAPS_AT_A_TIME == 0 && quantum_over (&list->quantum))
      break;
  }
  return 0;
}

static uint64_t
allocation_flags (const struct q_extent *e, unsigned layers)
{
  (void)layers;
  if (e->kind != Q_ZERO)
    return 0;
  return NBD_STATE_ZERO | (e->flags & Q_HOLE ? NBD_STATE_HOLE : 0);
}

static int
describe_allocation (const struct export *x, const struct meta_context *context, uint64_t offset,
                     uint64_t len, struct status_list *list)
{
  (void)context;
  return describe_map (x, offset, len, allocation_flags, list);
}

/* 0: in no layer; 1: in the top one; 2: in the one below it, and so on. */
static uint64_t
depth_flags (const struct q_extent *e, unsigned layers)
{
  return e->depth < layers ? e->depth + 1u : 0;
}

static int
describe_depth (const struct export *x, const struct meta_context *context, uint64_t offset,
                uint64_t len, struct status_list *list)
{
  (void)context;
  return describe_map (x, offset, len, depth_flags, list);
}

static int
describe_bitmap (const struct export *x, const struct meta_context *context, uint64_t offset,
                 uint64_t len, struct status_list *list)
{
  uint64_t end = offset + len, run_end;
  bool going = true, dirty;

  (void)x;
  while (offset < end && going) {
    q_bitmap_next (context->bitmap, offset, end, &dirty, &run_end);
    going = status_add (list, run_end - offset, dirty ? QEMU_STATE_DIRTY : 0);
    offset = run_end;
  }
  return 0;
}

/* The bitmap of that name in X's image, or in the nearest image below it that has one.  A view has
 * those of its base: they are no part of a snapshot. */
static int
hold_bitmap (struct export *x, const char *name, struct meta_context *c, struct q_error *err)
{
  struct q_image *const top = x->base ? x->base->img : x->img, *img = top;
  struct q_error below;
  int r = q_bitmap_hold (img, name, &c->bitmap, err);

  while (r == -ENOENT && (img = q_backing_image (img)) != NULL)
    r = q_bitmap_hold (img, name, &c->bitmap, &below);
  if (r < 0 && r != -ENOENT && img != top)
    *err = below;
  return r;
}

int
status_open (struct export *x, const struct export_options *opts, struct q_error *err)
{
  unsigned max = 2 + opts->n_bitmaps;
  int r = 0;

  assert (max <= MAX_META_CONTEXTS);
  x->contexts = calloc (max, sizeof *x->contexts);
  if (!x->contexts)
    goto no_memory;
  x->contexts[x->n_contexts++] =
      (struct meta_context){ .name = strdup ("base:allocation"), .describe = describe_allocation };
  if (opts->allocation_depth)
    x->contexts[x->n_contexts++] = (struct meta_context){ .name = strdup ("qemu:allocation-depth"),
                                                          .describe = describe_depth };
  for (unsigned i = 0; i < opts->n_bitmaps; i++) {
    struct meta_context *c = &x->contexts[x->n_contexts++];
    *c = (struct meta_context){ .describe = describe_bitmap };
    if (asprintf (&c->name, "qemu:dirty-bitmap:%s", opts->bitmaps[i]) < 0)
      c->name = NULL;
    r = hold_bitmap (x, opts->bitmaps[i], c, err);
    if (r < 0)
      return r;
  }
  for (unsigned i = 0; i < x->n_contexts; i++)
    if (!x->contexts[i].name)
      goto no_memory;
  return 0;

no_memory:
  snprintf (err->text, sizeof err->text, "export \"%s\": out of memory", x->name);
  return -ENOMEM;
}

void
status_close (struct export *x)
{
  for (unsigned i = 0; i < x->n_contexts; i++) {
    q_bitmap_release (x->contexts[i].bitmap);
    free (x->contexts[i].name);
  }
  free (x->contexts);
  x->contexts = NULL;
  x->n_contexts = 0;
}

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
  list->extents[list->n++] = (struct status_extent){ len, flags };
  return true;
}

/* ---- replies ---------------------------------------------------------------------------------
 *
 * Lists are made where their reply is to be, in a buffer of the shard's: the list of context K
 * begins where its descriptors would, if all contexts before it had the most that they may.  From
 * there it is encoded, downwards or in place.  So workers allocate nothing, which would have the
 * loops wait for them: address space has one lock, whoever holds it need not be running, and they
 * do not know each other's caches. */

static size_t
stride (size_t descriptors)
{
  return HEADER_SIZE + descriptors * sizeof (struct status_extent);
}

/* One is read before it is overwritten. */
static uint8_t *
put_extended (const struct status_extent *e, uint8_t *p)
{
  struct nbd_block_descriptor_ext d = { .length = htobe64 (e->len), .flags = htobe64 (e->flags) };

  memcpy (p, &d, sizeof d);
  return p + sizeof d;
}

/* A length is no more than the request's, which has 32 bits in this mode. */
static uint8_t *
put_compact (const struct status_extent *e, uint8_t *p)
{
  struct nbd_block_descriptor d = { .length = htobe32 ((uint32_t)e->len),
                                    .flags = htobe32 ((uint32_t)e->flags) };

  memcpy (p, &d, sizeof d);
  return p + sizeof d;
}

static uint8_t *
encode (const struct request *rq, const struct status_list *list, uint32_t id, bool done,
        uint8_t *at)
{
  size_t header = chunk_header_size (rq->mode);
  uint32_t be_id = htobe32 (id), be_count = htobe32 (list->n);
  uint8_t *p = at + header + sizeof be_id;

  if (rq->mode == MODE_EXTENDED)
    p += sizeof be_count;
  assert (p <= (uint8_t *)list->extents);
  for (unsigned i = 0; i < list->n; i++)
    p = rq->mode == MODE_EXTENDED ? put_extended (list->extents + i, p)
                                  : put_compact (list->extents + i, p);
  memcpy (at + header, &be_id, sizeof be_id);
  if (rq->mode == MODE_EXTENDED)
    memcpy (at + header + sizeof be_id, &be_count, sizeof be_count);
  chunk_header (at, rq,
                rq->mode == MODE_EXTENDED ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT
                                          : NBD_REPLY_TYPE_BLOCK_STATUS,
                (uint64_t)(p - at) - header, done);
  return p;
}

size_t
status_bound (struct request *rq, size_t low)
{
  /* No descriptor is of less than a sector, but for the last two. */
  uint64_t n = rq->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : rq->len / 512 + 2;
  unsigned contexts = (unsigned)__builtin_popcountll (rq->contexts);

  uint64_t least = (low / contexts - HEADER_SIZE) / sizeof (struct status_extent);
  uint64_t most = MAX_DESCRIPTORS * (contexts < MAX_ALIKE ? 1 : MAX_ALIKE) /
                  (contexts < MAX_ALIKE ? 1 : contexts);

  if (n > most)
    n = most;
  while (n > least && !buf_fits (&rq->session->shard->cache, contexts * stride (n)))
    n = n / 2 > least ? n / 2 : least;
  rq->piece = n;
  return contexts * stride (n);
}

int
status_answer (struct request *rq)
{
  const struct export *x = rq->export;
  struct status_list lists[MAX_META_CONTEXTS];
  struct quantum quantum = quantum_begin ();
  uint32_t id[MAX_META_CONTEXTS];
  unsigned n = 0;
  int r = 0;

  for (unsigned i = 0; i < x->n_contexts && r == 0; i++) {
    if (!(rq->contexts & (UINT64_C (1) << i)))
      continue;
    const struct meta_context *c = &x->contexts[i];
    lists[n] = (struct status_list){
      .extents = (struct status_extent *)(rq->out->data + n * stride (rq->piece) + HEADER_SIZE),
      .max = (unsigned)rq->piece,
      .quantum = quantum,
    };
    assert ((uint8_t *)(lists[n].extents + lists[n].max) <= rq->out->data + rq->out->cap);
    id[n] = i;
    r = c->describe (x, c, x->offset + rq->offset, rq->len, &lists[n]);
    n++;
  }
  for (unsigned i = 0; i < n && r == 0; i++)
    rq->out->end = encode (rq, &lists[i], id[i], i == n - 1, rq->out->end);
  return r;
}
