/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Ciphers by libgcrypt.
 *
 * A handle of libgcrypt carries the vector of the sector that it is at, so it is one thread's while
 * it works.  Handles are made as threads come to need them and kept for the next one: there are
 * never more than there were threads at once.
 */

#include <errno.h>
#include <gcrypt.h>
#include <stdlib.h>

#include "cipher.h"
#include "image.h"

#ifdef NBDCOW_ASAN
/* What libgcrypt adds to its locked memory it never gives back, and a checker takes that for a
 * leak. */
const char *__lsan_default_suppressions (void) __attribute__ ((visibility ("default")));
const char *
__lsan_default_suppressions (void)
{
  return "leak:libgcrypt";
}
#endif

/* What libgcrypt locks for the key schedules of its handles: some hundred of them.  It could get
 * more when that is used up, but would never give it back; further handles are in other memory. */
#define SECURE_BYTES (512u << 10)

enum ivgen { IV_NONE, IV_PLAIN, IV_PLAIN64, IV_ESSIV };

/* A specification, understood. */
struct algorithm {
  int cipher, mode;
  unsigned block; /* bytes; also those of the vector */
  enum ivgen ivgen;
  int essiv_cipher;
  const char *essiv_hash; /* in the specification */
};

struct handle {
  struct handle *next;
  gcry_cipher_hd_t data, essiv; /* essiv: NULL unless vectors are made by it */
};

struct q_cipher {
  struct algorithm alg;
  uint32_t key_bytes;
  uint8_t *key; /* Q_MAX_KEY bytes of locked memory, then those of the vectors' key */
  unsigned essiv_bytes;
  pthread_mutex_t lock;
  struct handle *idle;
};

#define KEY_MEMORY (Q_MAX_KEY + Q_MAX_HASH)

static void
init (void)
{
  /* A program that uses libgcrypt itself has done this already, in its own way. */
  if (gcry_control (GCRYCTL_INITIALIZATION_FINISHED_P))
    return;
  gcry_check_version (NULL);
  gcry_control (GCRYCTL_DISABLE_SECMEM_WARN);
  gcry_control (GCRYCTL_INIT_SECMEM, SECURE_BYTES, 0);
  gcry_control (GCRYCTL_INITIALIZATION_FINISHED, 0);
}

static void
init_once (void)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;

  pthread_once (&once, init);
}

/* ---- names ---------------------------------------------------------------------------------- */

/* The cipher of that name and key length; 0 if there is none. */
static int
find_cipher (const char *name, unsigned key_bytes)
{
  static const struct {
    const char *name;
    unsigned key_bytes;
    int id;
  } ciphers[] = {
    { "aes", 16, GCRY_CIPHER_AES128 },
    { "aes", 24, GCRY_CIPHER_AES192 },
    { "aes", 32, GCRY_CIPHER_AES256 },
    { "serpent", 16, GCRY_CIPHER_SERPENT128 },
    { "serpent", 24, GCRY_CIPHER_SERPENT192 },
    { "serpent", 32, GCRY_CIPHER_SERPENT256 },
    { "twofish", 16, GCRY_CIPHER_TWOFISH128 },
    { "twofish", 32, GCRY_CIPHER_TWOFISH },
    { "camellia", 16, GCRY_CIPHER_CAMELLIA128 },
    { "camellia", 24, GCRY_CIPHER_CAMELLIA192 },
    { "camellia", 32, GCRY_CIPHER_CAMELLIA256 },
    { "cast5", 16, GCRY_CIPHER_CAST5 },
    { "sm4", 16, GCRY_CIPHER_SM4 },
  };

  for (size_t i = 0; i < sizeof ciphers / sizeof ciphers[0]; ++i)
    if (strcmp (name, ciphers[i].name) == 0 && key_bytes == ciphers[i].key_bytes)
      return gcry_cipher_test_algo (ciphers[i].id) == 0 ? ciphers[i].id : 0;
  return 0;
}

static int
find_hash (const char *name)
{
  static const struct {
    const char *name;
    int id;
  } hashes[] = {
    { "md5", GCRY_MD_MD5 },       { "sha1", GCRY_MD_SHA1 },
    { "sha224", GCRY_MD_SHA224 }, { "sha256", GCRY_MD_SHA256 },
    { "sha384", GCRY_MD_SHA384 }, { "sha512", GCRY_MD_SHA512 },
    { "sm3", GCRY_MD_SM3 },       { "ripemd160", GCRY_MD_RMD160 },
    { "rmd160", GCRY_MD_RMD160 }, { "whirlpool", GCRY_MD_WHIRLPOOL },
  };

  init_once ();
  for (size_t i = 0; i < sizeof hashes / sizeof hashes[0]; ++i)
    if (strcmp (name, hashes[i].name) == 0)
      return gcry_md_test_algo (hashes[i].id) == 0 ? hashes[i].id : 0;
  return 0;
}

/* True if TEXT begins with WORD and it ends there or with END; *REST is what follows. */
static bool
take_word (const char *text, const char *word, char end, const char **rest)
{
  size_t n = strlen (word);

  if (strncmp (text, word, n) != 0 || (text[n] != '\0' && text[n] != end))
    return false;
  *rest = text[n] ? text + n + 1 : NULL;
  return true;
}

/* The generator of vectors in TEXT; the hash of "plain:sha256", which dm-crypt does not look at, is
 * not looked at here. */
static int
parse_ivgen (const struct q_cipher_spec *spec, const char *text, struct algorithm *alg,
             const char *name, struct q_error *err)
{
  const char *hash;

  if (text && take_word (text, "plain", ':', &hash))
    alg->ivgen = IV_PLAIN;
  else if (text && take_word (text, "plain64", ':', &hash))
    alg->ivgen = IV_PLAIN64;
  else if (text && take_word (text, "essiv", ':', &hash)) {
    unsigned bytes = hash ? q_hash_bytes (hash) : 0;

    alg->ivgen = IV_ESSIV;
    alg->essiv_hash = hash;
    /* The digest is the key of the cipher that makes the vectors, whatever the data's key length.
     */
    alg->essiv_cipher = find_cipher (spec->cipher, bytes);
    if (bytes == 0 || alg->essiv_cipher == 0)
      return q_fail (err, -ENOTSUP,
                     "%s: encrypted as '%s-%s': essiv needs a hash whose digest is a key for %s "
                     "(sha256 for aes)",
                     name, spec->cipher, spec->mode, spec->cipher);
  } else
    return q_fail (err, -ENOTSUP,
                   "%s: encrypted as '%s-%s': its generator of initialization vectors is not "
                   "supported (plain, plain64 and essiv:HASH are)",
                   name, spec->cipher, spec->mode);
  return 0;
}

static int
parse (const struct q_cipher_spec *spec, struct algorithm *alg, const char *name,
       struct q_error *err)
{
  const char *ivgen;
  unsigned key = spec->key_bytes;

  init_once ();
  *alg = (struct algorithm){ .ivgen = IV_NONE };
  if (take_word (spec->mode, "xts", '-', &ivgen)) {
    alg->mode = GCRY_CIPHER_MODE_XTS;
    key = key % 2 == 0 ? key / 2 : 0; /* two keys of that length */
  } else if (take_word (spec->mode, "cbc", '-', &ivgen))
    alg->mode = GCRY_CIPHER_MODE_CBC;
  else if (take_word (spec->mode, "ctr", '-', &ivgen))
    alg->mode = GCRY_CIPHER_MODE_CTR;
  else if (take_word (spec->mode, "ecb", '-', &ivgen))
    alg->mode = GCRY_CIPHER_MODE_ECB;
  else
    return q_fail (err, -ENOTSUP,
                   "%s: encrypted as '%s-%s': that mode is not supported (xts, cbc, ctr and ecb "
                   "are)",
                   name, spec->cipher, spec->mode);
  alg->cipher = find_cipher (spec->cipher, key);
  if (alg->cipher == 0)
    return q_fail (err, -ENOTSUP,
                   "%s: encrypted as '%s-%s' with %u bytes of key: there is no such cipher here "
                   "(aes, serpent, twofish, camellia, cast5 and sm4 are known)",
                   name, spec->cipher, spec->mode, spec->key_bytes);
  alg->block = (unsigned)gcry_cipher_get_algo_blklen (alg->cipher);
  if (alg->mode == GCRY_CIPHER_MODE_XTS && alg->block != 16)
    return q_fail (err, -ENOTSUP,
                   "%s: encrypted as '%s-%s': xts needs a cipher with blocks of 16 bytes, not %u",
                   name, spec->cipher, spec->mode, alg->block);
  if (alg->mode == GCRY_CIPHER_MODE_ECB)
    return 0;
  return parse_ivgen (spec, ivgen, alg, name, err);
}

int
q_cipher_check (const struct q_cipher_spec *spec, const char *name, struct q_error *err)
{
  struct algorithm alg;

  return parse (spec, &alg, name, err);
}

/* ---- handles -------------------------------------------------------------------------------- */

static void
close_handle (struct handle *h)
{
  gcry_cipher_close (h->data);
  gcry_cipher_close (h->essiv);
  free (h);
}

/* In locked memory if there is some left. */
static gcry_error_t
open_one (gcry_cipher_hd_t *hd, int cipher, int mode, const void *key, size_t len)
{
  gcry_error_t e = gcry_cipher_open (hd, cipher, mode, GCRY_CIPHER_SECURE);

  if (e)
    e = gcry_cipher_open (hd, cipher, mode, 0);
  return e ? e : gcry_cipher_setkey (*hd, key, len);
}

static struct handle *
open_handle (const struct q_cipher *c)
{
  struct handle *h = calloc (1, sizeof *h);
  gcry_error_t e;

  if (!h)
    return NULL;
  e = open_one (&h->data, c->alg.cipher, c->alg.mode, c->key, c->key_bytes);
  if (!e && c->alg.ivgen == IV_ESSIV)
    e = open_one (&h->essiv, c->alg.essiv_cipher, GCRY_CIPHER_MODE_ECB, c->key + Q_MAX_KEY,
                  c->essiv_bytes);
  if (e) {
    close_handle (h);
    return NULL;
  }
  return h;
}

static struct handle *
take_handle (struct q_cipher *c)
{
  struct handle *h;

  pthread_mutex_lock (&c->lock);
  h = c->idle;
  if (h)
    c->idle = h->next;
  pthread_mutex_unlock (&c->lock);
  return h ? h : open_handle (c);
}

static void
return_handle (struct q_cipher *c, struct handle *h)
{
  pthread_mutex_lock (&c->lock);
  h->next = c->idle;
  c->idle = h;
  pthread_mutex_unlock (&c->lock);
}

void
q_cipher_free (struct q_cipher *c)
{
  struct handle *h;

  if (!c)
    return;
  while ((h = c->idle) != NULL) {
    c->idle = h->next;
    close_handle (h);
  }
  q_secret_free (c->key, KEY_MEMORY);
  pthread_mutex_destroy (&c->lock);
  free (c);
}

int
q_cipher_new (struct q_cipher **cipher, const struct q_cipher_spec *spec, const void *key,
              const char *name, struct q_error *err)
{
  struct q_cipher *c = calloc (1, sizeof *c);
  struct handle *h = NULL;
  int r;

  *cipher = NULL;
  if (!c)
    return q_fail (err, -ENOMEM, "%s: out of memory", name);
  pthread_mutex_init (&c->lock, NULL);
  r = parse (spec, &c->alg, name, err);
  if (r < 0)
    goto fail;
  c->key_bytes = spec->key_bytes;
  c->key = q_secret_alloc (KEY_MEMORY);
  if (!c->key) {
    r = q_fail (err, -ENOMEM, "%s: out of memory", name);
    goto fail;
  }
  memcpy (c->key, key, spec->key_bytes);
  if (c->alg.ivgen == IV_ESSIV) {
    c->essiv_bytes = q_hash_bytes (c->alg.essiv_hash);
    r = q_hash (c->alg.essiv_hash, key, spec->key_bytes, NULL, 0, c->key + Q_MAX_KEY);
    c->alg.essiv_hash = NULL; /* it points into what is the caller's */
  }
  /* A key that libgcrypt does not take is found out here and not by the first reader. */
  if (r == 0 && (h = open_handle (c)) != NULL)
    return_handle (c, h);
  else {
    r = q_fail (err, r ? r : -ENOTSUP, "%s: libgcrypt does not take the key for '%s-%s'", name,
                spec->cipher, spec->mode);
    goto fail;
  }
  *cipher = c;
  return 0;

fail:
  q_cipher_free (c);
  return r;
}

/* ---- sectors -------------------------------------------------------------------------------- */

static gcry_error_t
set_vector (const struct algorithm *alg, const struct handle *h, uint64_t sector)
{
  uint8_t iv[Q_MAX_IV] = { 0 };
  uint64_t le = htole64 (alg->ivgen == IV_PLAIN ? (uint32_t)sector : sector);
  gcry_error_t e = 0;

  memcpy (iv, &le, sizeof le);
  if (h->essiv)
    e = gcry_cipher_encrypt (h->essiv, iv, alg->block, NULL, 0);
  if (e)
    return e;
  return alg->mode == GCRY_CIPHER_MODE_CTR ? gcry_cipher_setctr (h->data, iv, alg->block)
                                           : gcry_cipher_setiv (h->data, iv, alg->block);
}

typedef gcry_error_t (*crypt_fn) (gcry_cipher_hd_t h, void *out, size_t out_size, const void *in,
                                  size_t in_len);

static int
crypt_sectors (struct q_cipher *c, crypt_fn fn, uint64_t sector, uint8_t *out, const uint8_t *in,
               size_t len)
{
  struct handle *h = take_handle (c);
  gcry_error_t e = 0;

  assert (len % Q_SECTOR == 0);
  if (!h)
    return -ENOMEM;
  for (; !e && len > 0; len -= Q_SECTOR, in += Q_SECTOR, out += Q_SECTOR) {
    if (c->alg.ivgen != IV_NONE)
      e = set_vector (&c->alg, h, sector++);
    if (!e)
      e = in == out ? fn (h->data, out, Q_SECTOR, NULL, 0)
                    : fn (h->data, out, Q_SECTOR, in, Q_SECTOR);
  }
  return_handle (c, h);
  return e ? -EIO : 0;
}

int
q_cipher_encrypt (struct q_cipher *c, uint64_t sector, void *out, const void *in, size_t len)
{
  return crypt_sectors (c, gcry_cipher_encrypt, sector, out, in, len);
}

int
q_cipher_decrypt (struct q_cipher *c, uint64_t sector, void *out, const void *in, size_t len)
{
  return crypt_sectors (c, gcry_cipher_decrypt, sector, out, in, len);
}

/* ---- hashes and keys ------------------------------------------------------------------------ */

unsigned
q_hash_bytes (const char *name)
{
  int id = find_hash (name);

  return id ? gcry_md_get_algo_dlen (id) : 0;
}

int
q_hash (const char *name, const void *a, size_t a_len, const void *b, size_t b_len, void *out)
{
  int id = find_hash (name);
  gcry_buffer_t iov[2] = { { .data = (void *)a, .len = a_len },
                           { .data = (void *)b, .len = b_len } };

  return id && gcry_md_hash_buffers (id, 0, out, iov, b_len ? 2 : 1) == 0 ? 0 : -ENOTSUP;
}

int
q_pbkdf2 (const char *hash, const void *password, size_t password_len, const void *salt,
          size_t salt_len, uint32_t iterations, void *out, size_t len)
{
  int id = find_hash (hash);

  if (!id)
    return -ENOTSUP;
  return gcry_kdf_derive (password, password_len, GCRY_KDF_PBKDF2, id, salt, salt_len, iterations,
                          len, out) == 0
             ? 0
             : -ENOTSUP;
}

int
q_random (void *buf, size_t len, bool key)
{
  init_once ();
  gcry_randomize (buf, len, key ? GCRY_VERY_STRONG_RANDOM : GCRY_STRONG_RANDOM);
  return 0;
}
