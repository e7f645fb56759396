/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img: what sub-commands have to do with encryption, in qemu-img's words: encrypt.* of -o
 * for making images and for changing keys, and what info shows.
 */

#ifndef ENCRYPT_H
#define ENCRYPT_H

#include "create.h"

/* Whether KEY of -o is about encryption. */
bool img_encrypt_is_key (const char *key);

/* ---- making images -------------------------------------------------------------------------- */

/* Takes one such option.  Reports what is wrong; false then. */
bool img_encrypt_set (struct img_creation *c, const struct img_pair *pair);
/* When all have been taken: finds the secret. */
bool img_encrypt_finish (struct img_creation *c);
/* The part of the report on what is made. */
void img_encrypt_report (const struct img_creation *c,
                         void (*print) (const char *key, const char *value));
/* Lines for -o help. */
extern const char img_encrypt_help[];

/* ---- changing keys -------------------------------------------------------------------------- */

/* amend: does what the options about encryption in PAIRS say, with the image of SPEC, which is
 * opened for it.  FORCE: even if nobody can open the image afterwards.  Returns the exit status. */
int img_encrypt_amend (const struct img_spec *spec, const struct img_pairs *pairs, bool force);

/* ---- info ----------------------------------------------------------------------------------- */

/* NULL if IMG is not encrypted, or its header is damaged, which is reported. */
json_t *img_encrypt_json (struct q_image *img);
void img_encrypt_text (struct q_image *img);

#endif /* ENCRYPT_H */
