/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Going along a disk piece by piece, with what is past its end reading as zeros; two of these side
 * by side compare two disks.
 *
 *     struct img_cursor c = { .img = img, .at = offset, .end = offset + len };
 *     while (c.at < c.end) {
 *       img_cursor_look (&c, &e, &len);          what is there, and how far that goes
 *       img_cursor_read (&c, e, n, buf);         n at most len
 *       img_cursor_advance (&c, n);
 *     }
 *
 * Hold a pin all the while, and let nobody change what is below.
 */

#ifndef CURSOR_H
#define CURSOR_H

#include "img.h"

#define IMG_CURSOR_EXTENTS 64

struct img_cursor {
  struct q_image *img; /* NULL: nothing but zeros */
  uint64_t at, end;
  struct q_extent extent[IMG_CURSOR_EXTENTS];
  int n, next;
  uint64_t skip; /* of extent[next] */
};

/* The extent at the cursor, of which *LEN bytes, at most up to the end, are left.  0 or a negative
 * errno. */
int img_cursor_look (struct img_cursor *c, const struct q_extent **e, uint64_t *len);
int img_cursor_read (const struct img_cursor *c, const struct q_extent *e, uint64_t len, void *buf);
void img_cursor_advance (struct img_cursor *c, uint64_t len);
/* The same for any length, without looking at what is passed. */
void img_cursor_jump (struct img_cursor *c, uint64_t len);

/* Whether A at X and B at Y are the same for certain: both zeros, or the same bytes of the same
 * file, which nobody changes. */
bool img_cursor_same (const struct img_cursor *a, const struct q_extent *x,
                      const struct img_cursor *b, const struct q_extent *y);

#endif /* CURSOR_H */
