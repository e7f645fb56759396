/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A program of requests to an open image: see requests.h.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "requests.h"
#include "skeleton.h"

#define MAX_LEN (128u << 10)

struct request {
  uint8_t what, a, b, c;
  uint64_t offset, len; /* inside of the disk */
  uint8_t *buf;         /* MAX_LEN bytes */
};

struct machine {
  struct model *m;
  struct q_image *img;
  const struct q_open_options *o;
  struct request rq;
};

/* A request that has failed may have been done in part. */
static void
failed (struct machine *k, int r)
{
  if (r < 0 && r != -EROFS && r != -EINVAL)
    k->m->known = false;
}

/* Where and how much: mostly around the edges of clusters, near the start, the end, or anywhere. */
static void
place (struct machine *k)
{
  static const uint32_t lens[] = { 1, 511, 512, 513, 4096, 16384, 65536, MAX_LEN };
  struct request *rq = &k->rq;
  uint64_t size = q_size (k->img), cluster = q_cluster_size (k->img);
  uint64_t at = rq->a & 0x80 ? size / 128 * (rq->a & 0x7f) : (rq->a & 0x3f) * cluster;

  at += rq->b & 0x80 ? rq->b & 0x7f : (rq->b & 0x7f) * (cluster / 64);
  if (rq->a == 0xff)
    at = size - (size < rq->b ? size : rq->b);
  rq->offset = at < size ? at : size;
  rq->len = rq->c & 0x80 ? (rq->c & 0xf) * cluster : lens[rq->c & 7];
  if (rq->len > MAX_LEN)
    rq->len = MAX_LEN;
  if (rq->len > size - rq->offset)
    rq->len = size - rq->offset;
}

static void
fill (struct request *rq)
{
  for (uint64_t i = 0; i < rq->len; ++i)
    rq->buf[i] = (uint8_t)(rq->a * 7 + rq->b + (i >> 7) + 1);
  if ((rq->c & 0x30) == 0x30)
    memset (rq->buf, 0, rq->len);
}

/* ---- the disk -------------------------------------------------------------------------------- */

static void
do_read (struct machine *k)
{
  struct request *rq = &k->rq;
  int r = q_pread (k->img, rq->buf, rq->offset, rq->len);

  if (r == 0)
    model_expect (k->m, rq->buf, rq->offset, rq->len, "read");
  else
    failed (k, r);
}

static void
do_write (struct machine *k)
{
  struct request *rq = &k->rq;
  int r;

  fill (rq);
  r = q_pwrite (k->img, rq->buf, rq->offset, rq->len);
  if (r == 0)
    model_write (k->m, rq->buf, rq->offset, rq->len);
  else
    failed (k, r);
}

static void
do_compressed (struct machine *k)
{
  struct request *rq = &k->rq;
  int r;

  fill (rq);
  r = q_write_compressed (k->img, rq->buf, rq->offset, rq->len);
  if (r == 0)
    model_write (k->m, rq->buf, rq->offset, rq->len);
  else if (r != -ENOTSUP)
    failed (k, r);
}

/* Writing what is in the buffer was given up.  What was overwritten in place is not taken back. */
static void
aborted (struct machine *k, uint64_t offset, uint64_t len)
{
  uint8_t *now = xalloc (len);
  int r = q_pread (k->img, now, offset, len);

  if (r == 0)
    model_either (k->m, now, k->rq.buf, offset, len, "aborted");
  else
    failed (k, r);
  free (now);
}

static void
do_plan (struct machine *k)
{
  struct request *rq = &k->rq;
  struct q_write_plan plan;
  bool given_up = false;
  q_pin_t pin = q_pin ();
  int r = q_write_begin (k->img, rq->offset, rq->len, rq->c & 8 ? Q_NOWAIT : 0, &plan);

  if (r == 0) {
    fill (rq);
    r = q_write_data (&plan, rq->buf);
    given_up = r < 0 || (rq->c & 0x40);
    if (given_up)
      q_write_abort (&plan);
    else {
      model_write (k->m, rq->buf, plan.offset, plan.len);
      q_write_commit (&plan);
    }
  } else if (r != -EAGAIN)
    failed (k, r);
  q_unpin (pin);
  if (given_up)
    aborted (k, plan.offset, plan.len);
}

static void
do_zero (struct machine *k)
{
  struct request *rq = &k->rq;
  static const unsigned flags[] = { 0, Q_ZERO_UNMAP, Q_ZERO_FAST, Q_ZERO_PROVISION,
                                    Q_ZERO_UNMAP | Q_ZERO_FAST };
  int r = q_zero (k->img, rq->offset, rq->len, flags[(rq->c >> 3) % 5]);

  if (r == 0)
    model_write (k->m, NULL, rq->offset, rq->len);
  else if (r != -ENOTSUP)
    failed (k, r);
}

static void
do_discard (struct machine *k)
{
  struct request *rq = &k->rq;
  int r = q_discard (k->img, rq->offset, rq->len);

  if (r == 0)
    r = q_pread (k->img, rq->buf, rq->offset, rq->len);
  if (r == 0)
    model_either (k->m, rq->buf, NULL, rq->offset, rq->len, "discarded");
  else
    failed (k, r);
}

static void
do_map (struct machine *k)
{
  static const unsigned flags[] = { 0,         Q_NOWAIT,   Q_MAP_MERGE,
                                    Q_MAP_TOP, Q_MAP_HOST, Q_MAP_MERGE | Q_MAP_TOP };
  unsigned f = flags[(k->rq.c >> 3) % 6];
  struct request *rq = &k->rq;
  struct q_extent e[8];
  q_pin_t pin = q_pin ();
  uint64_t at = rq->offset;
  int n = rq->len ? q_map (k->img, rq->offset, rq->len, e, 8, f) : 0;

  for (int i = 0; i < n; ++i) {
    if (e[i].guest != at || e[i].len == 0 || e[i].len > rq->offset + rq->len - at)
      broken ("map: extent %d is %" PRIu64 " bytes at %" PRIu64 ", should begin at %" PRIu64, i,
              e[i].len, e[i].guest, at);
    if (!(f & (Q_MAP_MERGE | Q_MAP_TOP)) && e[i].len <= MAX_LEN &&
        q_read_extent (&e[i], 0, e[i].len, rq->buf) == 0)
      model_expect (k->m, rq->buf, at, e[i].len, "map");
    at += e[i].len;
  }
  q_unpin (pin);
}

static void
do_flush (struct machine *k)
{
  q_prefetch (k->img, k->rq.offset, k->rq.len);
  failed (k, q_flush (k->img));
}

static void
do_size (struct machine *k)
{
  static const uint64_t sizes[] = { 512, 4096, 65536, 1u << 20, 1ull << 33, 1ull << 50 };
  uint64_t size = q_size (k->img),
           by = k->rq.a & 0x80 ? sizes[k->rq.a % 6] : (k->rq.a & 0x7f) * 512u;
  struct q_error err = { "" };
  uint64_t to = k->rq.b & 1 ? (size > by ? size - by : 0) : (size + by) & ~511ull;
  int r;

  r = to >= size ? q_resize (k->img, to, &err) : q_shrink (k->img, to, &err);
  if (r == 0)
    model_resize (k->m, to);
  else
    failed (k, r == -ENOTSUP || r == -EFBIG ? -EINVAL : r);
}

static void
do_preallocate (struct machine *k)
{
  /* For what was never written: a part that was just added. */
  uint64_t size = (q_size (k->img) + 511) & ~511ull, len = 512u * (1 + (k->rq.b & 0x3f));
  struct q_error err = { "" };
  int r = q_resize (k->img, size + len, &err);

  if (r < 0) {
    failed (k, r == -ENOTSUP || r == -EFBIG ? -EINVAL : r);
    return;
  }
  model_resize (k->m, size + len);
  r = q_preallocate (k->img, size, len, (enum q_preallocation) (k->rq.a % 4));
  failed (k, r == -ENOTSUP ? -EINVAL : r);
}

static void
do_empty (struct machine *k)
{
  int r = q_empty (k->img);

  failed (k, r == -ENOTSUP ? -EINVAL : r);
  if (r == 0)
    model_read (k->m, k->img);
}

/* ---- snapshots ------------------------------------------------------------------------------- */

static void
snapshot_id (struct machine *k, char id[Q_SNAPSHOT_ID_SIZE])
{
  struct q_snapshot_info *list = NULL;
  int n = q_get_snapshots (k->img, &list);

  snprintf (id, Q_SNAPSHOT_ID_SIZE, "%s", k->rq.a % 4 < n ? list[k->rq.a % 4].id : "");
  free (list);
}

/* Ids of a hostile image need not be unique, and one may be the name of another. */
static bool
is_unique (struct machine *k, const char *id)
{
  struct q_snapshot_info *list = NULL;
  int n = q_get_snapshots (k->img, &list), same = 0;

  for (int i = 0; i < n; ++i)
    same += (strcmp (list[i].id, id) == 0) + (strcmp (list[i].name, id) == 0);
  free (list);
  return same == 1;
}

static void
do_snapshot (struct machine *k)
{
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_error err = { "" };
  bool unique;
  int r;

  switch (k->rq.b % 3) {
  case 0:
    r = q_snapshot_create (k->img, k->rq.a & 1 ? "new" : "first", id, &err);
    if (r == 0 && is_unique (k, id))
      model_snapshot_made (k->m, id);
    break;
  case 1:
    snapshot_id (k, id);
    unique = is_unique (k, id);
    r = q_snapshot_delete (k->img, id, &err);
    if (r == 0 && unique)
      model_snapshot_gone (k->m, id);
    else if (r == 0)
      for (unsigned i = 0; i < k->m->n_snaps; ++i)
        k->m->snap[i].there = false;
    break;
  default:
    snapshot_id (k, id);
    r = q_snapshot_apply (k->img, id, &err);
    if (r == 0 && !(is_unique (k, id) && model_snapshot_applied (k->m, id)))
      model_read (k->m, k->img);
    break;
  }
  /* "Whatever fails leaves the disk as it was." */
}

/* ---- bitmaps --------------------------------------------------------------------------------- */

static void
do_bitmap (struct machine *k)
{
  static const char *const names[] = { "b0", "b1", "new", "b\xff" };
  const uint8_t a = k->rq.a, b = k->rq.b;
  struct q_bitmap_action action[2];
  struct q_error err = { "" };

  for (unsigned i = 0; i < 2; ++i)
    action[i] = (struct q_bitmap_action){ .op = (enum q_bitmap_op) ((i ? b : a) % 6),
                                          .name = names[(i ? b : a) / 8 % 4],
                                          .granularity = a & 0x80 ? 512ull << b % 24 : 0,
                                          .disabled = b & 0x40,
                                          .source = names[b / 16 % 4] };
  q_bitmap_change (k->img, action, 1 + (k->rq.c & 1), &err);
}

static void
do_hold (struct machine *k)
{
  struct q_bitmap_info *list = NULL;
  struct q_error err = { "" };
  struct q_bitmap *b;
  uint64_t size = q_size (k->img), end;
  int n_list = q_get_bitmaps (k->img, &list, &err);
  bool dirty;

  for (int i = 0; i < 4 && i < n_list; ++i) {
    if (q_bitmap_hold (k->img, list[i].name, &b, &err) < 0)
      continue;
    for (uint64_t at = 0, n = 0; at < size && n < 64; at = end, ++n) {
      q_bitmap_next (b, at, size, &dirty, &end);
      if (end <= at || end > size)
        broken ("bitmap %s: a run from %" PRIu64 " to %" PRIu64, list[i].name, at, end);
    }
    q_bitmap_count (b);
    q_bitmap_release (b);
  }
  free (list);
}

/* ---- the image ------------------------------------------------------------------------------- */

static void
count_use (void *opaque, uint64_t offset, uint64_t len, enum q_use use)
{
  (void)offset;
  (void)use;
  *(uint64_t *)opaque += len;
}

static void
do_look (struct machine *k)
{
  struct q_stats stats;
  struct q_encryption_info encryption;
  struct q_check_options co = { .threads = 1 };
  struct q_check_result result;
  struct q_image_info info;
  struct q_error err = { "" };
  unsigned recorded;
  uint64_t n = 0;
  char *path;

  q_get_info (k->img, &info);
  q_get_stats (k->img, &stats);
  q_get_encryption (k->img, &encryption, &err);
  q_is_sparse (k->img);
  q_survey (k->img, count_use, &n, &err);
  if (q_backing_allowed (k->img, Q_BACKING_SAME_DIR, &path, &recorded, &err) == 0)
    free (path);
  q_highest_offset (k->img);
  if (k->rq.b & 1)
    q_check_image (k->img, &co, &result, &err);
}

static void
do_amend (struct machine *k)
{
  struct q_amend_options o;
  struct q_error err = { "" };
  const uint8_t a = k->rq.a, b = k->rq.b;
  int r;

  q_amend_options_init (&o);
  o.version = a % 4 < 2 ? 0 : a % 4;
  o.refcount_bits = b & 0x80 ? 1u << b % 8 : 0;
  o.lazy_refcounts = (a >> 2) % 3 - 1;
  o.data_file_raw = a & 0x40 ? 0 : -1;
  o.data_file = a & 0x80 ? "data" : NULL;
  r = q_amend (k->img, &o, &err);
  failed (k, r == -ENOTSUP ? -EINVAL : r);
}

static void
do_backing (struct machine *k)
{
  struct q_error err = { "" };
  const uint8_t a = k->rq.a;

  if (q_set_backing (k->img,
                     a & 1   ? "base"
                     : a & 2 ? "base.qcow2"
                             : NULL,
                     a & 4   ? "raw"
                     : a & 8 ? "qcow2"
                             : NULL,
                     &err) == 0)
    k->m->known = false;
}

static void
do_keys (struct machine *k)
{
  static const struct q_secret other = { "other", 5 };
  const struct q_secret *which = k->rq.a & 2 ? &other : &skeleton_secret;
  struct q_key_change c = { .erase = k->rq.a & 1,
                            .slot = (int)(k->rq.b % 10) - 1,
                            .secret = k->o->secret,
                            .iter_time_ms = 1,
                            .force = k->rq.a & 4 };
  struct q_error err = { "" };

  /* This writes more than 100 KB of random stripes: once in a while. */
  if (k->rq.c & 3)
    return;
  if (!c.erase)
    c.new_secret = which;
  else if (k->rq.a & 8)
    c.old_secret = which;
  if (q_change_keys (k->img, &c, &err) == 0 && c.erase)
    k->m->known = false; /* it may not open any more */
}

static void
do_again (struct machine *k)
{
  struct q_error err = { "" };
  int r = q_close (&k->img, &err);

  failed (k, r);
  if (q_open (&k->img, "image", k->o, &err) < 0)
    k->img = NULL;
}

/* ---- all ------------------------------------------------------------------------------------- */

typedef void (*action_fn) (struct machine *k);
static const struct {
  const char *name;
  action_fn run;
} actions[] = {
  { "read", do_read },       { "write", do_write },       { "zero", do_zero },
  { "discard", do_discard }, { "flush", do_flush },       { "compressed", do_compressed },
  { "map", do_map },         { "snapshot", do_snapshot }, { "bitmap", do_bitmap },
  { "hold", do_hold },       { "size", do_size },         { "plan", do_plan },
  { "look", do_look },       { "amend", do_amend },       { "write", do_write },
  { "again", do_again },     { "backing", do_backing },   { "keys", do_keys },
  { "empty", do_empty },     { "snapshot", do_snapshot }, { "bitmap", do_bitmap },
  { "write", do_write },     { "discard", do_discard },   { "preallocate", do_preallocate },
};

void
requests_run (struct model *m, struct q_image **img, const struct q_open_options *o,
              struct input *program)
{
  struct machine k = { .m = m, .img = *img, .o = o };

  k.rq.buf = xalloc (MAX_LEN);
  while (program->left >= 4 && k.img) {
    k.rq.what = take8 (program) % (sizeof actions / sizeof actions[0]);
    k.rq.a = take8 (program);
    k.rq.b = take8 (program);
    k.rq.c = take8 (program);
    place (&k);
    if (getenv ("FUZZ_LOG"))
      fprintf (stderr, "request: %s %02x %02x %02x: %" PRIu64 " bytes at %" PRIu64 "\n",
               actions[k.rq.what].name, k.rq.a, k.rq.b, k.rq.c, k.rq.len, k.rq.offset);
    actions[k.rq.what].run (&k);
  }
  free (k.rq.buf);
  *img = k.img;
}
