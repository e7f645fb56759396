/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an image has where: the fields of its structures, and the offsets that mean something.  For
 * those who want to change them.
 */

#ifndef FUZZ_SURVEY_H
#define FUZZ_SURVEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SURVEY_FIELDS 4096u
#define SURVEY_PLACES 512u

enum field_kind {
  FIELD_NUMBER,
  FIELD_OFFSET, /* of a structure, without flags */
  FIELD_L1,     /* an entry of a table: an offset with flags */
  FIELD_L2,
  FIELD_BITMAP,
  FIELD_SUBCLUSTERS, /* of an extended entry */
  FIELD_FEATURES,
};

struct field {
  uint32_t at;
  uint8_t bytes; /* 1, 2, 4 or 8, big-endian */
  uint8_t kind;
};

struct survey {
  uint8_t *image;
  size_t size;
  unsigned version, cluster_bits;
  bool extended;
  struct field field[SURVEY_FIELDS];
  unsigned n_fields;
  uint64_t place[SURVEY_PLACES];
  unsigned n_places;
};

/* False if there is no header to begin with. */
bool survey_image (struct survey *s, uint8_t *image, size_t size);

bool survey_inside (const struct survey *s, uint64_t at, uint64_t bytes);
/* 0 for what is not inside. */
uint64_t survey_get (const struct survey *s, uint64_t at, unsigned bytes);
/* It is inside. */
void survey_set (struct survey *s, uint64_t at, unsigned bytes, uint64_t v);

#endif /* FUZZ_SURVEY_H */
