/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an image is, in the words that QEMU has for it (qapi/block-core.json, ImageInfo and its
 * parts), and with the highest allocated offset beside them.
 *
 * All results are the caller's; NULL without memory.  Names that are not UTF-8 have '?' for what
 * is not.
 */

#ifndef DESCRIBE_H
#define DESCRIBE_H

#include <jansson.h>

#include "qcow2.h"

/* ImageInfo, without the images below; ENCRYPT, of its encryption, is taken over and may be NULL.
 */
json_t *describe_image (struct q_image *img, json_t *encrypt);
/* The same with all that are open below it, each as the "backing-image" of the one above. */
json_t *describe_chain (struct q_image *img);
/* SnapshotInfo. */
json_t *describe_snapshot (const struct q_snapshot_info *s);
/* [BlockDirtyInfo, ...].  May have to read bitmaps to count what they have. */
json_t *describe_dirty (struct q_image *img);
/* ImageCheck (qapi/block-core.json), without its file: as qemu-img, what is 0 is left out, but for
 * the check errors. */
json_t *describe_check (const struct q_check_result *r);

/* TEXT as a JSON string, whatever bytes it has. */
json_t *describe_text (const char *text);
const char *describe_format (enum q_format format);

#endif /* DESCRIBE_H */
