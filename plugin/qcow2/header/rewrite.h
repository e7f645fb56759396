/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Rewriting the header as a whole (specification: "Header" to "Feature name table").
 *
 *     q_draft_init (&d, img);
 *     d.version = 3; q_draft_set (&d, Q_EXT_..., ...);      whatever is to change
 *     r = q_header_rewrite (img, &d, err);
 *     q_draft_free (&d);
 *
 * Everything that the draft does not mention is kept: extensions in their order, unknown ones too,
 * additional header fields that we know nothing of, and the length of the header.
 *
 * Hold the flush (q_flush_hold), or be alone with the image.  A crash at any point leaves the old
 * header or the new one.
 */

#ifndef Q_REWRITE_H
#define Q_REWRITE_H

#include "image.h"

struct q_draft {
  unsigned version, refcount_order;
  uint64_t incompatible, compatible, autoclear;
  uint8_t compression_type;
  uint64_t reftable_offset;
  uint32_t reftable_clusters;
  const char *backing_file; /* the caller's; NULL: none */
  struct q_extension *extensions;
};

/* The header as it is.  -ENOMEM. */
int q_draft_init (struct q_draft *d, const struct q_image *img);
void q_draft_free (struct q_draft *d);
/* Gives extension TYPE these contents, where it stands or, if it is new, at the end; DATA NULL
 * takes it out.  -ENOMEM. */
int q_draft_set (struct q_draft *d, uint32_t type, const void *data, uint32_t length);
/* Sees to it that the feature name table names every feature that is set; version 2 has none. */
int q_draft_name_features (struct q_draft *d);

/* Writes it, durably, and makes IMG agree.  -E2BIG if the first cluster has no room; after any
 * other failure it is not known which of the two headers is on disk, and the image is read-only. */
int q_header_rewrite (struct q_image *img, const struct q_draft *d, struct q_error *err);

#endif /* Q_REWRITE_H */
