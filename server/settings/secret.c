/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#ifdef HAVE_GCRYPT
#include <gcrypt.h>
#include <gpg-error.h>
#endif
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "secret.h"

#define KEY_BYTES 32 /* of a secret that others are encrypted with */
#define IV_BYTES  16

/* Every secret has room for SECRET_MAX bytes and a null character, so that it can be worked on
 * where it is. */
#define ROOM (SECRET_MAX + 1)

static int __attribute__ ((format (printf, 3, 4)))
fail (struct q_error *err, int r, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  vsnprintf (err->text, sizeof err->text, fmt, args);
  va_end (args);
  return r;
}

static struct q_secret *
secret_new (const char *what, struct q_error *err)
{
  struct q_secret *s = calloc (1, sizeof *s);

  if (s)
    s->data = q_secret_alloc (ROOM);
  if (s && s->data)
    return s;
  free (s);
  fail (err, -ENOMEM, "%s: out of memory", what);
  return NULL;
}

static uint8_t *
bytes (const struct q_secret *s)
{
  return (uint8_t *)s->data;
}

struct q_secret *
secret_copy (const struct q_secret *s, const char *what, struct q_error *err)
{
  struct q_secret *copy = secret_new (what, err);

  if (copy) {
    memcpy (bytes (copy), bytes (s), s->len);
    copy->len = s->len;
  }
  return copy;
}

void
secret_free (struct q_secret *s)
{
  if (!s)
    return;
  q_secret_free (bytes (s), ROOM);
  free (s);
}

/* ---- reading --------------------------------------------------------------------------------- */

static struct q_secret *
read_all (int fd, const char *what, struct q_error *err)
{
  struct q_secret *s = secret_new (what, err);
  ssize_t n = 1;

  if (!s)
    return NULL;
  while (n != 0 && s->len < ROOM) {
    n = read (fd, bytes (s) + s->len, ROOM - s->len);
    if (n > 0)
      s->len += (size_t)n;
    else if (n < 0 && errno != EINTR)
      break;
  }
  if (n < 0)
    fail (err, -errno, "%s: %s", what, strerror (errno));
  else if (s->len > SECRET_MAX)
    fail (err, -EFBIG, "%s: longer than %u bytes, the most that a secret may have", what,
          SECRET_MAX);
  else
    return s;
  secret_free (s);
  return NULL;
}

struct q_secret *
secret_from_file (const char *path, const char *what, struct q_error *err)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
  struct q_secret *s = NULL;

  if (fd < 0)
    fail (err, -errno, "%s: %s: %s", what, path, strerror (errno));
  else {
    s = read_all (fd, what, err);
    close (fd);
  }
  return s;
}

struct q_secret *
secret_from_text (const char *text, const char *what, struct q_error *err)
{
  size_t len = strlen (text);
  struct q_secret *s;

  if (len > SECRET_MAX) {
    fail (err, -EFBIG, "%s: longer than %u bytes, the most that a secret may have", what,
          SECRET_MAX);
    return NULL;
  }
  s = secret_new (what, err);
  if (s) {
    memcpy (bytes (s), text, len);
    s->len = len;
  }
  return s;
}

static void
strip_newline (struct q_secret *s)
{
  if (s && s->len > 0 && bytes (s)[s->len - 1] == '\n')
    bytes (s)[--s->len] = 0;
}

struct q_secret *
secret_from_key_file (const char *path, const char *what, struct q_error *err)
{
  struct q_secret *s = secret_from_file (path, what, err);

  strip_newline (s);
  return s;
}

struct q_secret *
secret_from_fd (int fd, const char *what, struct q_error *err)
{
  struct q_secret *s = read_all (fd, what, err);

  close (fd);
  strip_newline (s);
  return s;
}

struct q_secret *
secret_random (size_t len, const char *what, struct q_error *err)
{
  struct q_secret *s = secret_new (what, err);

  while (s && s->len < len) {
    ssize_t n = getrandom (bytes (s) + s->len, len - s->len, 0);

    if (n > 0)
      s->len += (size_t)n;
    else if (errno != EINTR) {
      fail (err, -errno, "%s: no random bytes: %s", what, strerror (errno));
      secret_free (s);
      return NULL;
    }
  }
  return s;
}

/* ---- decoding -------------------------------------------------------------------------------- */

#ifdef HAVE_GCRYPT

int
secret_decode_base64 (struct q_secret *s, const char *what, struct q_error *err)
{
  gpgrt_b64state_t state = gpgrt_b64dec_start (NULL);
  size_t n = 0;
  gpg_error_t e = state ? gpgrt_b64dec_proc (state, bytes (s), s->len, &n) : GPG_ERR_ENOMEM;
  gpg_error_t end = state ? gpgrt_b64dec_finish (state) : 0;

  if (gpg_err_code (e) != GPG_ERR_NO_ERROR && gpg_err_code (e) != GPG_ERR_EOF)
    return fail (err, -EINVAL, "%s: is not base64", what);
  if (end)
    return fail (err, -EINVAL, "%s: is not base64: it ends too early", what);
  explicit_bzero (bytes (s) + n, ROOM - n);
  s->len = n;
  return 0;
}

static gcry_error_t
decrypt (struct q_secret *s, const struct q_secret *key, const struct q_secret *iv)
{
  gcry_cipher_hd_t h;
  gcry_error_t e = gcry_cipher_open (&h, GCRY_CIPHER_AES256, GCRY_CIPHER_MODE_CBC, 0);

  if (e)
    return e;
  e = gcry_cipher_setkey (h, key->data, key->len);
  if (!e)
    e = gcry_cipher_setiv (h, iv->data, iv->len);
  if (!e)
    e = gcry_cipher_decrypt (h, bytes (s), s->len, NULL, 0);
  gcry_cipher_close (h);
  return e;
}

int
secret_decrypt (struct q_secret *s, const struct q_secret *key, const char *iv_text,
                const char *what, struct q_error *err)
{
  struct q_secret *iv;
  uint8_t pad;
  int r;

  if (key->len != KEY_BYTES)
    return fail (err, -EINVAL, "%s: keyid: that secret has %zu bytes, should have %d", what,
                 key->len, KEY_BYTES);
  iv = secret_from_text (iv_text, what, err);
  r = iv ? secret_decode_base64 (iv, what, err) : -EINVAL;
  if (r == 0 && iv->len != IV_BYTES)
    r = fail (err, -EINVAL, "%s: iv: %zu bytes, should be %d", what, iv->len, IV_BYTES);
  if (r == 0 && (s->len == 0 || s->len % IV_BYTES))
    r = fail (err, -EINVAL, "%s: %zu bytes, an encrypted secret has a multiple of %d", what, s->len,
              IV_BYTES);
  if (r == 0 && decrypt (s, key, iv))
    r = fail (err, -EINVAL, "%s: cannot be decrypted", what);
  if (r == 0) {
    pad = bytes (s)[s->len - 1];
    if (pad == 0 || pad > IV_BYTES)
      r = fail (err, -EINVAL, "%s: decrypting it gives no secret: is the key or iv another's?",
                what);
    else {
      s->len -= pad;
      explicit_bzero (bytes (s) + s->len, pad);
    }
  }
  secret_free (iv);
  return r;
}

#else

int
secret_decode_base64 (struct q_secret *s, const char *what, struct q_error *err)
{
  (void)s;
  return fail (err, -ENOTSUP, "%s: base64 needs libgcrypt, which this program was built without",
               what);
}

int
secret_decrypt (struct q_secret *s, const struct q_secret *key, const char *iv, const char *what,
                struct q_error *err)
{
  (void)s;
  (void)key;
  (void)iv;
  return fail (err, -ENOTSUP,
               "%s: an encrypted secret needs libgcrypt, which this program was built without",
               what);
}

#endif
