/* SPDX-License-Identifier: BSD-3-Clause
 *
 * In place of cipher.c where libgcrypt was not found: encrypted images are refused, by name.
 */

#include <errno.h>

#include "cipher.h"
#include "image.h"

int
q_cipher_check (const struct q_cipher_spec *spec, const char *name, struct q_error *err)
{
  (void)spec;
  return q_fail (err, -ENOTSUP,
                 "%s: the image is encrypted, and this program was built without libgcrypt", name);
}

int
q_cipher_new (struct q_cipher **c, const struct q_cipher_spec *spec, const void *key,
              const char *name, struct q_error *err)
{
  (void)key;
  *c = NULL;
  return q_cipher_check (spec, name, err);
}

void
q_cipher_free (struct q_cipher *c)
{
  (void)c;
}

int
q_cipher_encrypt (struct q_cipher *c, uint64_t sector, void *out, const void *in, size_t len)
{
  (void)c;
  (void)sector;
  (void)out;
  (void)in;
  (void)len;
  return -ENOTSUP;
}

int
q_cipher_decrypt (struct q_cipher *c, uint64_t sector, void *out, const void *in, size_t len)
{
  return q_cipher_encrypt (c, sector, out, in, len);
}

unsigned
q_hash_bytes (const char *name)
{
  (void)name;
  return 0;
}

int
q_hash (const char *name, const void *a, size_t a_len, const void *b, size_t b_len, void *out)
{
  (void)name;
  (void)a;
  (void)a_len;
  (void)b;
  (void)b_len;
  (void)out;
  return -ENOTSUP;
}

int
q_pbkdf2 (const char *hash, const void *password, size_t password_len, const void *salt,
          size_t salt_len, uint32_t iterations, void *out, size_t len)
{
  (void)iterations;
  (void)len;
  return q_hash (hash, password, password_len, salt, salt_len, out);
}

int
q_random (void *buf, size_t len, bool key)
{
  (void)key;
  (void)buf;
  (void)len;
  return -ENOTSUP;
}
