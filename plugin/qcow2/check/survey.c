/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a whole host file is like, read from the file and not from the engine's caches.
 */

#include <errno.h>
#include <stdlib.h>

#include "check.h"

/* Adds to *COUNT the clusters of the block at HOST that are in use, up to LIMIT. */
static int
count_block (struct q_image *img, uint64_t host, uint8_t *block, uint64_t limit, uint64_t *count)
{
  int r = q_file_pread (img->file, block, q_cluster_bytes (img), host);

  for (uint64_t i = 0; r == 0 && i < q_refblock_entries (img) && *count < limit; i++)
    *count += q_refblock_read (block, img->refcount_order, i) != 0;
  return r;
}

/* Counts the clusters in use, up to LIMIT. */
static int
count_clusters (struct q_image *img, uint64_t limit, uint64_t *count)
{
  const uint64_t bytes = (uint64_t)img->reftable_clusters << img->cluster_bits;
  uint8_t *block = NULL;
  be64 *table = NULL;
  uint64_t size;
  int r = q_file_size (img->file, &size);

  *count = 0;
  if (r == 0)
    r = q_header_check_reftable (img, size, NULL);
  if (r == 0) {
    block = malloc (q_cluster_bytes (img));
    table = malloc (bytes);
    r = table && block ? 0 : -ENOMEM;
  }
  if (r == 0)
    r = q_file_pread (img->file, table, bytes, img->reftable_offset);
  if (r == 0) {
    /* As many blocks as the file can have use for, whatever the table says. */
    uint64_t n =
        q_min (bytes / 8, q_div_up (size >> img->cluster_bits, q_refblock_entries (img)) + 1);

    for (uint64_t i = 0; r == 0 && i < n && *count < limit; i++) {
      uint64_t host = get64 (table[i]) & Q_REFTABLE_MASK;

      if (host)
        r = count_block (img, host, block, limit, count);
    }
  }
  free (table);
  free (block);
  return r;
}

bool
q_is_sparse (struct q_image *img)
{
  uint64_t usage, limit, count;

  if (img->format != Q_FORMAT_QCOW2 || q_file_usage (img->file, &usage) < 0)
    return false;
  limit = usage >> img->cluster_bits;
  limit = limit * 10 / 9 > limit + 2 ? limit * 10 / 9 : limit + 2;
  return count_clusters (img, limit, &count) == 0 && count >= limit;
}

/* ---- what each cluster is used for ----------------------------------------------------------- */

static enum q_use
use_of (const struct q_check *c, uint64_t cluster, bool recorded)
{
  if (q_refmap_l2 (&c->refs, cluster))
    return Q_USE_TABLE;
  if (q_refmap_has_mark (&c->refs, cluster, Q_REFMAP_REFCOUNTS))
    return Q_USE_REFCOUNTS;
  if (q_refmap_has_mark (&c->refs, cluster, Q_REFMAP_EXCLUSIVE))
    return Q_USE_TABLE;
  if (q_refmap_has_mark (&c->refs, cluster, Q_REFMAP_COMPRESSED))
    return Q_USE_COMPRESSED;
  if (q_refmap_get (&c->refs, cluster))
    return Q_USE_DATA;
  return recorded ? Q_USE_LEAKED : Q_USE_FREE;
}

int
q_survey (struct q_image *img,
          void (*fn) (void *opaque, uint64_t offset, uint64_t len, enum q_use use), void *opaque,
          struct q_error *err)
{
  struct q_check_result result = { 0 };
  struct q_check c = { .img = img, .res = &result, .err = err, .survey = true };
  const unsigned bits = img->cluster_bits;
  const uint64_t per_block = q_refblock_entries (img);
  uint64_t start = 0;
  enum q_use use = Q_USE_FREE;
  int r;

  if (err)
    err->text[0] = '\0';
  if (img->format != Q_FORMAT_QCOW2)
    return q_fail (err, -ENOTSUP, "%s: a raw image has no clusters", img->filename);
  r = q_check_look (&c);
  for (uint64_t i = 0; r == 0 && i < c.clusters; i++) {
    int have = i % per_block == 0 ? q_check_read_refblock (&c, i / per_block) : 1;

    if (have <= 0)
      memset (c.table, 0, q_cluster_bytes (img)); /* what cannot be read counts as nothing */

    bool recorded = q_refblock_read (c.table, img->refcount_order, i % per_block) != 0;
    enum q_use now = use_of (&c, i, recorded);

    if (now != use && i > start) {
      fn (opaque, start << bits, (i - start) << bits, use);
      start = i;
    }
    use = now;
  }
  if (r == 0 && c.clusters > start)
    fn (opaque, start << bits, (c.clusters - start) << bits, use);
  q_check_close (&c);
  return r;
}
