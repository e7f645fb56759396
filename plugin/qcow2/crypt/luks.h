/* SPDX-License-Identifier: BSD-3-Clause
 *
 * LUKS version 1 headers (cryptsetup's docs/on-disk-format.pdf), as they stand in the clusters that
 * the full disk encryption header extension points to.
 *
 * Such a header says how sectors are encrypted, and has eight slots.  A slot that is in use holds
 * the master key, blown up to some thousand stripes, all of which are needed to get it back ("anti-
 * forensic"), and encrypted with a key that is derived from a password by PBKDF2.  A digest of the
 * master key tells whether a password was right.
 *
 *     q_luks_parse (&l, bytes, area, name, &err);      luks.c: no cryptography
 *     q_luks_unlock (&l, read, opaque, password, key, &slot, name, &err);      luks-key.c, for
 *     q_luks_new, q_luks_fill_slot, q_luks_put         making headers and slots
 *
 * Units: bytes; offsets are from the start of the header.  Errors: negative errno and a line in the
 * q_error that begins with NAME, the image's.
 *
 * Bounds, so that opening a hostile image ends: at most Q_LUKS_MAX_ITERATIONS for each derivation,
 * Q_LUKS_STRIPES stripes, Q_MAX_KEY bytes of key, Q_LUKS_SLOTS slots, Q_LUKS_MAX_AREA bytes in all.
 */

#ifndef Q_LUKS_H
#define Q_LUKS_H

#include "cipher.h"
#include "format.h"

#define Q_LUKS_SLOTS    8u
#define Q_LUKS_STRIPES  4000u /* the most, and what everybody uses */
#define Q_LUKS_DIGEST   20u
#define Q_LUKS_SALT     32u
#define Q_LUKS_MAX_AREA (64u << 20)
/* A password takes 2 seconds of one processor by default, and slow ones may be wanted: this is half
 * a minute or so on today's, for each slot. */
#define Q_LUKS_MAX_ITERATIONS (1u << 26)
#define Q_LUKS_MIN_ITERATIONS 1000u

/* ---- on disk -------------------------------------------------------------------------------- */

#define Q_LUKS_ACTIVE   0x00ac71f3u
#define Q_LUKS_INACTIVE 0x0000deadu

struct luks_slot {
  be32 state;
  be32 iterations;
  uint8_t salt[Q_LUKS_SALT];
  be32 material_sector;
  be32 stripes;
} __attribute__ ((packed));
static_assert (sizeof (struct luks_slot) == 48, "LUKS key slot");

struct luks_header {
  char magic[6];
  be16 version;
  char cipher[32];
  char mode[32];
  char hash[32];
  be32 payload_sector;
  be32 key_bytes;
  uint8_t digest[Q_LUKS_DIGEST];
  uint8_t salt[Q_LUKS_SALT];
  be32 iterations;
  char uuid[40];
  struct luks_slot slot[Q_LUKS_SLOTS];
} __attribute__ ((packed));
static_assert (offsetof (struct luks_header, slot) == 208, "LUKS header");
static_assert (sizeof (struct luks_header) == 592, "LUKS header");

/* ---- in memory ------------------------------------------------------------------------------ */

struct q_luks_slot {
  bool active;
  uint32_t iterations, stripes;
  uint64_t material; /* offset */
  uint8_t salt[Q_LUKS_SALT];
};

struct q_luks {
  struct q_cipher_spec spec;
  char hash[32];
  uint64_t payload; /* offset: means nothing in a qcow2 image */
  uint32_t iterations;
  uint8_t digest[Q_LUKS_DIGEST], salt[Q_LUKS_SALT];
  char uuid[41];
  struct q_luks_slot slot[Q_LUKS_SLOTS];
};

/* Takes the header at BUF apart, which stands at the start of AREA bytes. */
int q_luks_parse (struct q_luks *l, const struct luks_header *buf, uint64_t area, const char *name,
                  struct q_error *err);
/* The other way: all of it, or one slot. */
void q_luks_put (const struct q_luks *l, struct luks_header *buf);
void q_luks_put_slot (const struct q_luks_slot *s, struct luks_slot *buf);
/* Bytes that the material of a slot takes: whole sectors. */
uint64_t q_luks_material_bytes (const struct q_luks *l, uint32_t stripes);

/* ---- keys (luks-key.c) ---------------------------------------------------------------------- */

/* Reads LEN bytes at OFFSET. */
typedef int (*q_luks_read_fn) (void *opaque, void *buf, size_t len, uint64_t offset);

/* Looks for a slot that the password opens: its number in *SLOT, the master key in KEY, which is
 * locked memory.  MASK says which slots to try.  -EKEYREJECTED if it opens none. */
int q_luks_unlock (const struct q_luks *l, q_luks_read_fn read, void *opaque, unsigned mask,
                   const struct q_secret *password, uint8_t key[Q_MAX_KEY], unsigned *slot,
                   const char *name, struct q_error *err);

/* Fills in L, in which spec and hash are set, for a new header with no slot in use; KEY gets a new
 * master key.  ITER_MS is the time that a password is to take. */
int q_luks_new (struct q_luks *l, unsigned iter_ms, uint8_t key[Q_MAX_KEY], const char *name,
                struct q_error *err);
/* Makes slot N hold KEY under PASSWORD.  *MATERIAL, to be freed, is what goes to slot[n].material;
 * it is MATERIAL_BYTES long. */
int q_luks_fill_slot (struct q_luks *l, unsigned n, unsigned iter_ms, const uint8_t *key,
                      const struct q_secret *password, uint8_t **material, size_t *material_bytes,
                      const char *name, struct q_error *err);

/* Makes the whole header of a new image (luks-create.c): *BYTES at *AREA, to be freed. */
int q_luks_create (const struct q_encrypt_options *opts, const struct q_secret *secret,
                   uint8_t **area, size_t *bytes, const char *name, struct q_error *err);

/* Splits KEY into STRIPES, each as long as KEY, and back. */
int q_af_split (const char *hash, const uint8_t *key, size_t len, uint32_t stripes, uint8_t *out);
int q_af_merge (const char *hash, const uint8_t *in, size_t len, uint32_t stripes, uint8_t *key);

#endif /* Q_LUKS_H */
