/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the disk in an image must show: a copy of it in memory, kept as long as it is known.
 *
 * It is not known if the image was not sound, is too large, could not be read at first (say because
 * compressed data is damaged), or once a request has failed half done.
 */

#ifndef FUZZ_MODEL_H
#define FUZZ_MODEL_H

#include "mem.h"

#define MODEL_MAX   (2u << 20)
#define MODEL_SNAPS 8u

struct model {
  bool known;
  bool tidy; /* nothing was asked for that may leak clusters */
  uint64_t size;
  uint8_t *data;
  unsigned n_snaps;
  struct model_snap {
    bool there;
    char id[Q_SNAPSHOT_ID_SIZE];
    uint64_t size;
    uint8_t *data;
  } snap[MODEL_SNAPS];
};

void model_init (struct model *m, bool wanted);
void model_free (struct model *m);
/* Takes over what IMG shows. */
void model_read (struct model *m, struct q_image *img);
/* Ends the run if IMG shows anything else. */
void model_compare (struct model *m, struct q_image *img);
/* The same for a part that was read into BUF. */
void model_expect (const struct model *m, const uint8_t *buf, uint64_t offset, uint64_t len,
                   const char *what);
/* BUF was written; NULL: zeros. */
void model_write (struct model *m, const uint8_t *buf, uint64_t offset, uint64_t len);
/* Each byte of the part in BUF is what it was, or what OTHER (NULL: zeros) has.  Takes it over. */
void model_either (struct model *m, const uint8_t *buf, const uint8_t *other, uint64_t offset,
                   uint64_t len, const char *what);
void model_resize (struct model *m, uint64_t size);

/* A snapshot was made, deleted (by name or id), gone back to. */
void model_snapshot_made (struct model *m, const char *id);
void model_snapshot_gone (struct model *m, const char *id);
bool model_snapshot_applied (struct model *m, const char *id);
/* Whether snapshot I is there. */
bool model_snapshot (const struct model *m, unsigned i);
void model_compare_snapshot (struct model *m, unsigned i, struct q_image *img);

#endif /* FUZZ_MODEL_H */
