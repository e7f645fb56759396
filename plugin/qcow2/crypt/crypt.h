/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Encrypted images: a q_file of its own on top of the one that the clusters are in.  What is read
 * through it is decrypted, what is written is encrypted; metadata go past it.
 *
 * It has no descriptor, no windows and no holes that are zeros, so that no fast path can take
 * ciphertext for data, or leave out what surrounds a write in a new cluster.  Zeros can only be
 * written: clusters are punched, when they are free, in the file below.
 */

#ifndef Q_CRYPT_H
#define Q_CRYPT_H

#include "qcow2.h"

struct q_crypt;
struct q_luks;

/* Sets img->crypt and img->guest for an encrypted layer.  With METADATA_ONLY no key is needed, or
 * used, and reading data answers -ENOKEY. */
int q_crypt_open (struct q_image *img, const struct q_secret *secret, bool metadata_only,
                  struct q_error *err);
void q_crypt_close (struct q_image *img);
/* Reads LEN bytes of an extent of kind Q_DATA. */
int q_crypt_read (struct q_crypt *c, void *buf, uint64_t len, uint64_t host, uint64_t guest);

/* The LUKS header of an encrypted layer, checked; and LEN bytes at OFFSET of it and what follows
 * it; OPAQUE is the image. */
int q_crypt_read_header (struct q_image *img, struct q_luks *l, struct q_error *err);
int q_crypt_read_area (void *opaque, void *buf, size_t len, uint64_t offset);

#endif /* Q_CRYPT_H */
