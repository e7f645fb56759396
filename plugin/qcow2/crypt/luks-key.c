/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The keys in LUKS headers: getting the master key out of a slot and putting it into one.
 *
 * Whatever a key could be made from again is in locked memory, which is wiped when it is freed.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#include "image.h"
#include "luks.h"

/* Slots begin at multiples of this, as cryptsetup and QEMU have them. */
#define SLOT_ALIGN 4096u

/* What a derivation of a key is measured by: that many nanoseconds at most, and a twentieth of what
 * it is to take. */
#define MEASURE_NS 100000000ull

static int
no_memory (const char *name, struct q_error *err)
{
  return q_fail (err, -ENOMEM, "%s: out of memory", name);
}

/* ---- the anti-forensic splitter ------------------------------------------------------------- */

/* Block = (Block xor STRIPE), then each piece of a digest's length replaced by the digest of its
 * number and itself. */
static int
diffuse (const char *hash, uint8_t *block, const uint8_t *stripe, size_t len)
{
  size_t digest = q_hash_bytes (hash), n;
  uint8_t out[Q_MAX_HASH];
  int r = digest ? 0 : -ENOTSUP;

  for (size_t i = 0; i < len; ++i)
    block[i] ^= stripe[i];
  for (size_t at = 0, i = 0; r == 0 && at < len; at += n, ++i) {
    be32 number = put32 ((uint32_t)i);

    n = q_min (digest, len - at);
    r = q_hash (hash, &number, sizeof number, block + at, n, out);
    memcpy (block + at, out, n);
  }
  explicit_bzero (out, sizeof out);
  return r;
}

/* What all stripes but the last add up to. */
static int
sum_stripes (const char *hash, const uint8_t *stripes, size_t len, uint32_t n,
             uint8_t block[Q_MAX_KEY])
{
  int r = 0;

  assert (len <= Q_MAX_KEY);
  memset (block, 0, Q_MAX_KEY);
  for (uint32_t i = 0; r == 0 && i + 1 < n; ++i)
    r = diffuse (hash, block, stripes + i * len, len);
  return r;
}

int
q_af_merge (const char *hash, const uint8_t *in, size_t len, uint32_t stripes, uint8_t *key)
{
  uint8_t block[Q_MAX_KEY];
  int r = sum_stripes (hash, in, len, stripes, block);

  for (size_t i = 0; i < len; ++i)
    key[i] = block[i] ^ in[(stripes - 1) * len + i];
  explicit_bzero (block, sizeof block);
  return r;
}

int
q_af_split (const char *hash, const uint8_t *key, size_t len, uint32_t stripes, uint8_t *out)
{
  uint8_t block[Q_MAX_KEY];
  int r = q_random (out, (stripes - 1) * len, false);

  if (r == 0)
    r = sum_stripes (hash, out, len, stripes, block);
  for (size_t i = 0; r == 0 && i < len; ++i)
    out[(stripes - 1) * len + i] = block[i] ^ key[i];
  explicit_bzero (block, sizeof block);
  return r;
}

/* ---- from slot to key ----------------------------------------------------------------------- */

/* What one attempt works with: locked memory, wiped with the rest. */
struct workspace {
  uint8_t password_key[Q_MAX_KEY];
  uint8_t key[Q_MAX_KEY];
  uint8_t digest[Q_LUKS_DIGEST];
  uint8_t material[];
};

static int
derive (const struct q_luks *l, const struct q_luks_slot *s, const struct q_secret *password,
        uint8_t *key)
{
  return q_pbkdf2 (l->hash, password->data, password->len, s->salt, sizeof s->salt, s->iterations,
                   key, l->spec.key_bytes);
}

static int
digest_key (const struct q_luks *l, const uint8_t *key, uint8_t digest[Q_LUKS_DIGEST])
{
  return q_pbkdf2 (l->hash, key, l->spec.key_bytes, l->salt, sizeof l->salt, l->iterations, digest,
                   Q_LUKS_DIGEST);
}

/* 1 if the password opens slot N, 0 if not. */
static int
try_slot (const struct q_luks *l, unsigned n, q_luks_read_fn read, void *opaque,
          const struct q_secret *password, struct workspace *w, const char *name,
          struct q_error *err)
{
  const struct q_luks_slot *s = &l->slot[n];
  uint64_t bytes = q_luks_material_bytes (l, s->stripes);
  struct q_cipher *c = NULL;
  int r = read (opaque, w->material, bytes, s->material);

  if (r < 0)
    return q_fail (err, r, "%s: cannot read key slot %u: %s", name, n, strerror (-r));
  r = derive (l, s, password, w->password_key);
  if (r == 0)
    r = q_cipher_new (&c, &l->spec, w->password_key, name, err);
  if (r == 0)
    r = q_cipher_decrypt (c, 0, w->material, w->material, bytes);
  if (r == 0)
    r = q_af_merge (l->hash, w->material, l->spec.key_bytes, s->stripes, w->key);
  if (r == 0)
    r = digest_key (l, w->key, w->digest);
  q_cipher_free (c);
  if (r < 0)
    return q_fail (err, r, "%s: key slot %u: %s", name, n, strerror (-r));
  return memcmp (w->digest, l->digest, sizeof w->digest) == 0;
}

/* The cipher and the hash exist. */
static int
check_names (const struct q_luks *l, const char *name, struct q_error *err)
{
  int r = q_cipher_check (&l->spec, name, err);

  if (r == 0 && q_hash_bytes (l->hash) == 0)
    r = q_fail (err, -ENOTSUP,
                "%s: encryption header: the hash '%s' is not supported (sha256, sha512, sha1 and "
                "others are)",
                name, l->hash);
  return r;
}

int
q_luks_unlock (const struct q_luks *l, q_luks_read_fn read, void *opaque, unsigned mask,
               const struct q_secret *password, uint8_t key[Q_MAX_KEY], unsigned *slot,
               const char *name, struct q_error *err)
{
  size_t bytes = sizeof (struct workspace) + q_luks_material_bytes (l, Q_LUKS_STRIPES);
  struct workspace *w;
  unsigned tried = 0;
  int r = check_names (l, name, err);

  if (r < 0)
    return r;
  w = q_secret_alloc (bytes);
  if (!w)
    return no_memory (name, err);
  for (unsigned i = 0; r == 0 && i < Q_LUKS_SLOTS; ++i) {
    if (!l->slot[i].active || !(mask & 1u << i))
      continue;
    ++tried;
    *slot = i;
    r = try_slot (l, i, read, opaque, password, w, name, err);
  }
  if (r == 1) {
    memcpy (key, w->key, l->spec.key_bytes);
    r = 0;
  } else if (r == 0)
    r = q_fail (err, -EKEYREJECTED,
                "%s: the key is not right: it opens none of the %u key slots in use", name, tried);
  q_secret_free (w, bytes);
  return r;
}

/* ---- from key to slot ----------------------------------------------------------------------- */

static int64_t
thread_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* How many iterations this processor does in MS milliseconds for LEN bytes of key. */
static int
measure (const char *hash, size_t len, unsigned ms, uint64_t *iterations)
{
  uint8_t out[Q_MAX_KEY], salt[Q_LUKS_SALT] = { 0 };
  int64_t took = 0;
  uint32_t n;
  int r = 0;

  for (n = 1u << 14; r == 0 && n < Q_LUKS_MAX_ITERATIONS; n *= 2) {
    int64_t start = thread_ns ();

    r = q_pbkdf2 (hash, "measured", 8, salt, sizeof salt, n, out, len);
    took = thread_ns () - start;
    if (took >= (int64_t)q_min (MEASURE_NS, ms * 50000ull))
      break;
  }
  *iterations = (uint64_t)((double)n * 1000000.0 / (double)(took > 0 ? took : 1) * ms);
  return r;
}

static uint32_t
bounded (uint64_t iterations)
{
  return iterations < Q_LUKS_MIN_ITERATIONS   ? Q_LUKS_MIN_ITERATIONS
         : iterations > Q_LUKS_MAX_ITERATIONS ? Q_LUKS_MAX_ITERATIONS
                                              : (uint32_t)iterations;
}

static void
make_uuid (char uuid[41])
{
  uint8_t b[16] = { 0 };

  if (getrandom (b, sizeof b, 0) != (ssize_t)sizeof b)
    return;                               /* without one: it identifies nothing here */
  b[6] = (uint8_t)((b[6] & 0x0f) | 0x40); /* RFC 4122: version 4 ... */
  b[8] = (uint8_t)((b[8] & 0x3f) | 0x80); /* ... variant 1 */
  snprintf (uuid, 41, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
            b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
            b[15]);
}

int
q_luks_new (struct q_luks *l, unsigned iter_ms, uint8_t key[Q_MAX_KEY], const char *name,
            struct q_error *err)
{
  uint64_t iterations, each = q_round_up (q_luks_material_bytes (l, Q_LUKS_STRIPES), SLOT_ALIGN);
  int r = check_names (l, name, err);

  if (r < 0)
    return r;
  r = measure (l->hash, Q_LUKS_DIGEST, iter_ms, &iterations);
  if (r == 0)
    r = q_random (key, l->spec.key_bytes, true);
  if (r == 0)
    r = q_random (l->salt, sizeof l->salt, false);
  /* An eighth of the time of a password, as others have it: this is done once for every slot that
   * is tried. */
  l->iterations = bounded (iterations / 8);
  if (r == 0)
    r = digest_key (l, key, l->digest);
  make_uuid (l->uuid);
  for (unsigned i = 0; i < Q_LUKS_SLOTS; ++i)
    l->slot[i] =
        (struct q_luks_slot){ .stripes = Q_LUKS_STRIPES, .material = SLOT_ALIGN + i * each };
  l->payload = SLOT_ALIGN + Q_LUKS_SLOTS * each;
  return r < 0 ? q_fail (err, r, "%s: cannot make keys: %s", name, strerror (-r)) : 0;
}

int
q_luks_fill_slot (struct q_luks *l, unsigned n, unsigned iter_ms, const uint8_t *key,
                  const struct q_secret *password, uint8_t **material, size_t *material_bytes,
                  const char *name, struct q_error *err)
{
  struct q_luks_slot *s = &l->slot[n];
  uint64_t bytes = q_luks_material_bytes (l, Q_LUKS_STRIPES), iterations;
  struct workspace *w = q_secret_alloc (sizeof *w + bytes);
  struct q_cipher *c = NULL;
  int r;

  *material = malloc (bytes);
  *material_bytes = bytes;
  if (!w || !*material) {
    r = no_memory (name, err);
    goto out;
  }
  r = measure (l->hash, l->spec.key_bytes, iter_ms, &iterations);
  if (r == 0)
    r = q_random (s->salt, sizeof s->salt, false);
  if (r < 0)
    goto out;
  s->iterations = bounded (iterations);
  s->stripes = Q_LUKS_STRIPES;
  r = derive (l, s, password, w->password_key);
  if (r == 0)
    r = q_cipher_new (&c, &l->spec, w->password_key, name, err);
  if (r == 0)
    r = q_af_split (l->hash, key, l->spec.key_bytes, s->stripes, w->material);
  if (r == 0)
    r = q_cipher_encrypt (c, 0, *material, w->material, bytes);
  s->active = r == 0;
out:
  q_cipher_free (c);
  q_secret_free (w, sizeof *w + bytes);
  if (r < 0) {
    free (*material);
    *material = NULL;
    return q_fail (err, r, "%s: cannot fill key slot %u: %s", name, n, strerror (-r));
  }
  return 0;
}
