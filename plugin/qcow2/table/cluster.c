/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an L2 entry means.  Every entry comes from an image, which may say anything.
 */

#include "cluster.h"

#define ull(v) ((unsigned long long)(v))

static const char *
decode_compressed (const struct q_image *img, uint64_t descriptor, struct q_cluster *c)
{
  /* An extended entry's bitmap is not used. */
  c->compressed = true;
  q_compressed_decode (descriptor & ~(Q_COPIED | Q_L2_COMPRESSED), img->cluster_bits, &c->host,
                       &c->csize);
  return c->host < q_cluster_bytes (img) || c->host >= Q_MAX_HOST_OFFSET
             ? "its compressed data is at an impossible offset"
             : NULL;
}

static const char *
decode_extended (struct q_l2_entry e, bool named, struct q_cluster *c)
{
  c->data = (uint32_t)(e.bitmap & Q_L2_BITMAP_ALLOCATED);
  c->zero = (uint32_t)((e.bitmap & Q_L2_BITMAP_ZERO) >> 32);
  if (e.descriptor & Q_L2_ZERO)
    return "the zero flag is set, which extended entries do not have";
  if (c->data & c->zero)
    return "subclusters are both allocated and zeros";
  if (c->data && !named)
    return "subclusters are allocated without a host cluster";
  return NULL;
}

/* Data in a file of its own, where a cluster's host offset is its guest offset: 0 is one too, if
 * COPIED is set. */
static const char *
decode_external (const struct q_image *img, uint64_t guest_cluster, struct q_l2_entry e,
                 struct q_cluster *c)
{
  uint64_t d = e.descriptor;
  const char *wrong = NULL;
  bool named;

  c->own = true; /* whatever COPIED says */
  if (d & Q_L2_COMPRESSED)
    return "an image with an external data file has no compressed clusters";
  if (d & Q_L2_RESERVED)
    return "reserved bits are set";
  c->host = d & Q_OFFSET_MASK;
  named = c->host != 0 || (d & Q_COPIED);
  if (!(img->incompatible & Q_INCOMPAT_EXTL2)) {
    c->zero = d & Q_L2_ZERO ? 1 : 0;
    c->data = named && !c->zero;
  } else
    wrong = decode_extended (e, named, c);
  if (!wrong && (c->host || c->data) && c->host != guest_cluster << img->cluster_bits)
    wrong = "its host offset is not its guest offset, as in an external data file";
  return wrong;
}

const char *
q_entry_wrong (const struct q_image *img, uint64_t guest_cluster, struct q_l2_entry e,
               struct q_cluster *c)
{
  uint64_t d = e.descriptor;

  *c = (struct q_cluster){ 0 };
  if (q_has_data_file (img))
    return decode_external (img, guest_cluster, e, c);
  if ((d | e.bitmap) == 0)
    return NULL;
  if (d & Q_L2_COMPRESSED)
    return decode_compressed (img, d, c);
  c->host = d & Q_OFFSET_MASK;
  c->own = d & Q_COPIED;
  if (d & Q_L2_RESERVED)
    return "reserved bits are set";
  if (c->host & (q_cluster_bytes (img) - 1))
    return "its host offset is not aligned to a cluster";
  if (c->host == 0 && c->own)
    return "it claims the header's cluster";
  if (img->incompatible & Q_INCOMPAT_EXTL2)
    return decode_extended (e, c->host, c);
  if (!(d & Q_L2_ZERO)) {
    c->data = 1;
    return NULL;
  }
  c->zero = 1;
  return img->version < 3 ? "version 2 has no zero flag" : NULL;
}

int
q_decode_any_entry (struct q_image *img, uint64_t guest_cluster, struct q_l2_entry e,
                    struct q_cluster *c)
{
  const char *wrong = q_entry_wrong (img, guest_cluster, e, c);

  if (!wrong)
    return 0;
  if (img->incompatible & Q_INCOMPAT_EXTL2)
    return q_corrupt (img, "guest cluster %llu: L2 entry %#llx, bitmap %#llx: %s",
                      ull (guest_cluster), ull (e.descriptor), ull (e.bitmap), wrong);
  return q_corrupt (img, "guest cluster %llu: L2 entry %#llx: %s", ull (guest_cluster),
                    ull (e.descriptor), wrong);
}

struct q_l2_entry
q_encode_entry (const struct q_image *img, const struct q_cluster *c)
{
  struct q_l2_entry e = { .descriptor = c->host | (c->own ? Q_COPIED : 0) };

  assert (!c->compressed && !(c->data & c->zero));
  assert (c->host || q_has_data_file (img) || !(c->data || c->own));
  /* Every place there is its cluster's own: only what has something to say names it. */
  if (q_has_data_file (img) && !c->data && !(c->zero && c->host))
    e.descriptor = 0;
  if (img->incompatible & Q_INCOMPAT_EXTL2)
    e.bitmap = (uint64_t)c->zero << 32 | c->data;
  else if (c->zero)
    e.descriptor |= Q_L2_ZERO;
  return e;
}

void
q_entry_references (const struct q_image *img, struct q_l2_entry entry, uint64_t *cluster,
                    uint64_t *count)
{
  uint64_t d = entry.descriptor;

  *count = 0;
  if (q_has_data_file (img))
    return; /* nothing is counted there */
  if (d & Q_L2_COMPRESSED) {
    uint64_t host;
    uint32_t csize;

    q_compressed_decode (d & ~(Q_COPIED | Q_L2_COMPRESSED), img->cluster_bits, &host, &csize);
    *cluster = host >> img->cluster_bits;
    *count = ((host + csize - 1) >> img->cluster_bits) - *cluster + 1;
  } else if (d & Q_OFFSET_MASK) {
    *cluster = (d & Q_OFFSET_MASK) >> img->cluster_bits;
    *count = 1;
  }
}
