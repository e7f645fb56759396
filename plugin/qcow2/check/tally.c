/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What has been done, and what is held: for people and their instruments.
 *
 * Nothing here is exact about an instant: counters are read one by one while others go on.  Each is
 * true by itself.
 */

#include "image.h"

static uint64_t
cache_bytes (struct q_table_cache *c)
{
  uint64_t bytes;

  pthread_mutex_lock (&c->lock);
  bytes = c->bytes;
  pthread_mutex_unlock (&c->lock);
  return bytes;
}

uint64_t
q_device_size (const struct q_image *img)
{
  uint64_t size;

  return img->file->is_device && q_file_size (img->file, &size) == 0 ? size : 0;
}

static void
add_layer (const struct q_image *img, struct q_stats *stats)
{
  for (unsigned i = 0; i < Q_GATE_COUNTERS; ++i)
    stats->l2_hits += atomic_load_explicit (&img->tally.slot[i].own, memory_order_relaxed) +
                      atomic_load_explicit (&img->tally.slot[i].others, memory_order_relaxed);
  stats->l2_misses += atomic_load_explicit (&img->l2_misses, memory_order_relaxed);
}

void
q_get_stats (struct q_image *img, struct q_stats *stats)
{
  *stats = (struct q_stats){
    .l2_cache_max = img->l2_cache_own.max_bytes,
    .refcount_cache_max = img->refblock_cache.max_bytes,
    .dirty_tables = atomic_load (&img->dirty_tables),
    .limbo_bytes = (atomic_load (&img->limbo.clusters) + atomic_load (&img->dropped.clusters))
                   << img->cluster_bits,
    .device_size = q_device_size (img),
    .l2_cache_bytes = cache_bytes (&img->l2_cache_own),
  };
  for (const struct q_image *layer = img; layer; layer = layer->backing)
    add_layer (layer, stats);
  q_alloc_lock (img);
  stats->refcount_hits = img->refblock_hits;
  stats->refcount_misses = img->refblock_misses;
  stats->refcount_cache_bytes = img->refblock_cache.bytes;
  q_alloc_unlock (img);
  pthread_mutex_lock (&img->flush_lock);
  stats->flush_requests = img->flush_requested;
  stats->flush_rounds = atomic_load (&img->flush_rounds);
  stats->metadata_rounds = atomic_load (&img->metadata_rounds);
  pthread_mutex_unlock (&img->flush_lock);
}
