/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an L2 entry means (specification: "Cluster mapping", "Extended L2 Entries").
 *
 * With extended L2 entries a cluster has 32 subclusters, each of which is data in the host cluster,
 * zeros, or unallocated.  Without them a cluster is one subcluster, so that whoever changes a
 * mapping has one way for both: a mask has one bit for each subcluster, the lowest for the first.
 *
 *     q_decode_entry (img, gc, q_l2_entry_get (t, index), &c);
 *     ... change c ...
 *     q_l2_entry_set (t, index, q_encode_entry (img, &c));
 */

#ifndef Q_CLUSTER_H
#define Q_CLUSTER_H

#include "entry.h"

struct q_cluster {
  bool compressed; /* all of it; there are no subclusters */
  bool own;        /* no snapshot shares the host cluster: it may be written to */
  uint64_t host;   /* of the host cluster, which may hold no data yet; 0: there is none.  Or of the
                    * compressed data.  In an external data file every guest cluster has one that
                    * is its own, where its offset is; host says whether the entry names that */
  uint32_t csize;  /* of the compressed data, at most */
  uint32_t data;   /* subclusters whose bytes are in the host cluster */
  uint32_t zero;   /* subclusters that read as zeros.  Neither: what is below is seen */
};

enum q_cluster_kind {
  Q_CLUSTER_UNALLOCATED,
  Q_CLUSTER_ZERO_PLAIN,
  Q_CLUSTER_ZERO_ALLOC,
  Q_CLUSTER_DATA,
  Q_CLUSTER_COMPRESSED,
};

static inline unsigned
q_subclusters (const struct q_image *img)
{
  return 1u << (img->cluster_bits - img->subcluster_bits);
}

static inline uint64_t
q_subcluster_bytes (const struct q_image *img)
{
  return 1ull << img->subcluster_bits;
}

/* The mask of subclusters FROM to TO, both included. */
static inline uint32_t
q_subcluster_mask (unsigned from, unsigned to)
{
  return (uint32_t)((2ull << to) - (1ull << from));
}

static inline uint32_t
q_all_subclusters (const struct q_image *img)
{
  return q_subcluster_mask (0, q_subclusters (img) - 1);
}

/* Which subcluster of its cluster OFFSET lies in. */
static inline unsigned
q_subcluster_at (const struct q_image *img, uint64_t offset)
{
  return (unsigned)((offset & (q_cluster_bytes (img) - 1)) >> img->subcluster_bits);
}

static inline enum q_cluster_kind
q_subcluster_kind (const struct q_cluster *c, unsigned sub)
{
  if (c->compressed)
    return Q_CLUSTER_COMPRESSED;
  if (c->data >> sub & 1)
    return Q_CLUSTER_DATA;
  if (c->zero >> sub & 1)
    return c->host ? Q_CLUSTER_ZERO_ALLOC : Q_CLUSTER_ZERO_PLAIN;
  return Q_CLUSTER_UNALLOCATED;
}

/* How many subclusters from SUB on are of its kind, up to the end of the cluster. */
static inline unsigned
q_subcluster_run (const struct q_image *img, const struct q_cluster *c, unsigned sub)
{
  unsigned left = q_subclusters (img) - sub, run;
  uint32_t alike;

  if (c->compressed || left == 1)
    return left;
  alike = c->data >> sub & 1 ? c->data : c->zero >> sub & 1 ? c->zero : ~(c->data | c->zero);
  alike >>= sub;
  run = alike == UINT32_MAX ? 32 : (unsigned)__builtin_ctz (~alike);
  return run < left ? run : left;
}

/* NULL, or what is wrong with the entry. */
const char *q_entry_wrong (const struct q_image *img, uint64_t guest_cluster, struct q_l2_entry e,
                           struct q_cluster *c);
int q_decode_any_entry (struct q_image *img, uint64_t guest_cluster, struct q_l2_entry e,
                        struct q_cluster *c);

/* The same for what must be right: -EIO, after logging, if it cannot be valid. */
static inline int
q_decode_entry (struct q_image *img, uint64_t guest_cluster, struct q_l2_entry e,
                struct q_cluster *c)
{
  const uint64_t host = e.descriptor & Q_OFFSET_MASK;

  /* What nearly all of them are: a data cluster without subclusters. */
  if (!(img->incompatible & (Q_INCOMPAT_EXTL2 | Q_INCOMPAT_DATA_FILE)) && host != 0 &&
      (e.descriptor & ~(Q_OFFSET_MASK | Q_COPIED)) == 0 &&
      (host & (q_cluster_bytes (img) - 1)) == 0) {
    *c = (struct q_cluster){ .own = e.descriptor & Q_COPIED, .host = host, .data = 1 };
    return 0;
  }
  return q_decode_any_entry (img, guest_cluster, e, c);
}
/* Not for compressed clusters. */
struct q_l2_entry q_encode_entry (const struct q_image *img, const struct q_cluster *c);

/* The references that an L2 entry holds, as up to one run of host clusters; count 0 if none. */
void q_entry_references (const struct q_image *img, struct q_l2_entry entry, uint64_t *cluster,
                         uint64_t *count);

#endif /* Q_CLUSTER_H */
