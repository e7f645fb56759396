/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Ciphers for sectors, hashes and key derivation, by the names that LUKS headers have for them.
 * Every computation is libgcrypt's; without it (cipher-none.c) each call that could fail says so.
 *
 *     q_cipher_check (&spec, name, &err);               is there such a thing?
 *     q_cipher_new (&c, &spec, key, name, &err);        KEY is spec.key_bytes long, and copied
 *     q_cipher_encrypt / q_cipher_decrypt (c, ...)      any thread, any number at once
 *     q_cipher_free (c);                                wipes the key
 *
 * Units: a sector is 512 bytes, and sector numbers are what the initialization vector is made of.
 * Errors: negative errno; those that take a q_error also fill it, beginning with NAME, the image's.
 */

#ifndef Q_CIPHER_H
#define Q_CIPHER_H

#include "qcow2.h"

#define Q_SECTOR       512u
#define Q_MAX_KEY      64u /* bytes: two 256-bit keys for XTS */
#define Q_MAX_IV       16u
#define Q_MAX_HASH     64u
#define Q_MAX_HASHNAME 32u

/* How sectors are encrypted.  NUL-terminated. */
struct q_cipher_spec {
  char cipher[32]; /* "aes", "serpent", ... */
  char mode[32];   /* "xts-plain64", "cbc-essiv:sha256", "ecb": MODE[-IVGEN[:HASH]] */
  uint32_t key_bytes;
};

struct q_cipher;

/* -ENOTSUP if there is no such cipher, mode, key length, generator of vectors, or library. */
int q_cipher_check (const struct q_cipher_spec *spec, const char *name, struct q_error *err);
int q_cipher_new (struct q_cipher **c, const struct q_cipher_spec *spec, const void *key,
                  const char *name, struct q_error *err);
void q_cipher_free (struct q_cipher *c);
/* LEN bytes, a multiple of 512, that begin at sector SECTOR; IN may be OUT. */
int q_cipher_encrypt (struct q_cipher *c, uint64_t sector, void *out, const void *in, size_t len);
int q_cipher_decrypt (struct q_cipher *c, uint64_t sector, void *out, const void *in, size_t len);

/* Bytes of the digest of the hash called NAME; 0 if there is no such hash. */
unsigned q_hash_bytes (const char *name);
/* The digest of A followed by B. */
int q_hash (const char *name, const void *a, size_t a_len, const void *b, size_t b_len, void *out);
/* PBKDF2 with HMAC-HASH. */
int q_pbkdf2 (const char *hash, const void *password, size_t password_len, const void *salt,
              size_t salt_len, uint32_t iterations, void *out, size_t len);
/* Unpredictable bytes.  For a KEY that is to last, from a source that takes its time: some thousand
 * times as much as for others. */
int q_random (void *buf, size_t len, bool key);

#endif /* Q_CIPHER_H */
