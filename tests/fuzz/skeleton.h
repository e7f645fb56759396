/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Valid images, small ones of each feature of the format, made by the engine in memory.
 */

#ifndef FUZZ_SKELETON_H
#define FUZZ_SKELETON_H

#include "mem.h"

struct skeleton {
  const char *name;
  unsigned version, cluster_bits, refcount_bits;
  uint64_t size; /* of the disk; 0: the default */
  bool lazy, extended_l2, zstd, compressed, data_file, raw, encrypted, snapshots, bitmaps;
  bool holes; /* free clusters before others that are not */
  const char *backing, *backing_format;
};

extern const struct skeleton skeletons[];
extern const unsigned n_skeletons;

/* What opens encrypted images. */
extern const struct q_secret skeleton_secret;

/* The files that an image may name: "base", which is raw, "base.qcow2", "middle.qcow2" over that,
 * "top.qcow2" over both, and "data". */
void skeleton_surroundings (struct mem_store *store);
/* False if this build lacks what K needs: libgcrypt. */
bool skeleton_possible (const struct skeleton *k);
/* Makes the store's file "image". */
void skeleton_make (const struct skeleton *k, struct mem_store *store);

#endif /* FUZZ_SKELETON_H */
