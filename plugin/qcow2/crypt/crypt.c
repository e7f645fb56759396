/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Encrypted images (specification: "Data encryption"): see crypt.h.
 *
 * Sectors of 512 bytes are encrypted as wholes, and requests may begin and end anywhere.  So
 * whoever writes a part of a sector reads, changes and rewrites all of it, and nobody may write, or
 * read another part of it, meanwhile: partial writes hold the lock alone; whole writes and partial
 * reads share it; a whole read overlaps every write that it might meet, and what that gives is
 * undefined anyway.  Two writers never meet in a new cluster: the claim keeps them apart, and the
 * whole cluster is written.
 *
 * The legacy method makes its vectors from guest offsets, which a file does not know: q_crypt_read
 * is told, and there is no writing.
 */

#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "crypt.h"
#include "image.h"
#include "luks.h"

/* What is read, or written, before it is decrypted, or after it was encrypted: small enough to
 * stay in a processor's cache. */
#define CHUNK (128u << 10)

struct q_crypt {
  struct q_file base;
  struct q_file *below;
  struct q_cipher *cipher; /* NULL: no key was given */
  bool legacy;
  struct q_luks luks; /* unless legacy */
  unsigned slot;      /* that the key opened */
  pthread_rwlock_t partial;
};

static struct q_crypt *
crypt_of (struct q_file *f)
{
  return (struct q_crypt *)f;
}

/* ---- reading -------------------------------------------------------------------------------- */

/* Whole sectors; TWEAK is the offset that vectors are made from. */
static int
read_sectors (struct q_crypt *c, uint8_t *buf, uint64_t len, uint64_t host, uint64_t tweak)
{
  int r = 0;

  while (r == 0 && len > 0) {
    uint64_t n = q_min (len, CHUNK);

    r = q_file_pread (c->below, buf, n, host);
    if (r == 0)
      r = q_cipher_decrypt (c->cipher, tweak / Q_SECTOR, buf, buf, n);
    buf += n;
    host += n;
    tweak += n;
    len -= n;
  }
  return r;
}

/* LEN bytes that lie in one sector. */
static int
read_part (struct q_crypt *c, uint8_t *buf, uint64_t len, uint64_t host, uint64_t tweak)
{
  uint64_t in = host % Q_SECTOR;
  uint8_t sector[Q_SECTOR];
  int r;

  pthread_rwlock_rdlock (&c->partial);
  r = read_sectors (c, sector, Q_SECTOR, host - in, tweak - in);
  pthread_rwlock_unlock (&c->partial);
  if (r == 0)
    memcpy (buf, sector + in, len);
  return r;
}

static int
read_any (struct q_crypt *c, uint8_t *buf, uint64_t len, uint64_t host, uint64_t tweak)
{
  uint64_t n;
  int r = c->cipher ? 0 : -ENOKEY;

  assert (host % Q_SECTOR == tweak % Q_SECTOR);
  for (; r == 0 && len > 0; buf += n, host += n, tweak += n, len -= n)
    if (host % Q_SECTOR || len < Q_SECTOR) {
      n = q_min (len, Q_SECTOR - host % Q_SECTOR);
      r = read_part (c, buf, n, host, tweak);
    } else {
      n = len - len % Q_SECTOR;
      r = read_sectors (c, buf, n, host, tweak);
    }
  return r;
}

int
q_crypt_read (struct q_crypt *c, void *buf, uint64_t len, uint64_t host, uint64_t guest)
{
  return read_any (c, buf, len, host, c->legacy ? guest : host);
}

static int
crypt_pread (struct q_file *f, void *buf, size_t len, uint64_t offset)
{
  return crypt_of (f)->legacy ? -ENOTSUP : read_any (crypt_of (f), buf, len, offset, offset);
}

/* ---- writing -------------------------------------------------------------------------------- */

/* Where one is in a vector. */
struct cursor {
  const struct iovec *iov;
  size_t in; /* bytes of it that are done with */
};

static void
advance (struct cursor *at, size_t n)
{
  at->in += n;
  if (at->in == at->iov->iov_len) {
    ++at->iov;
    at->in = 0;
  }
}

/* Encrypts the next LEN bytes, whole sectors, into OUT. */
static int
encrypt_next (struct q_crypt *c, struct cursor *at, uint8_t *out, size_t len, uint64_t host)
{
  size_t n;
  int r = 0;

  for (; r == 0 && len > 0; out += n, host += n, len -= n) {
    size_t there;

    while (at->iov->iov_len == at->in)
      advance (at, 0);
    there = at->iov->iov_len - at->in;
    n = q_min (there, len) / Q_SECTOR * Q_SECTOR;
    if (n > 0) {
      r = q_cipher_encrypt (c->cipher, host / Q_SECTOR, out,
                            (const uint8_t *)at->iov->iov_base + at->in, n);
      advance (at, n);
      continue;
    }
    /* A sector that is in pieces. */
    for (n = 0; n < Q_SECTOR; n += there) {
      there = q_min (at->iov->iov_len - at->in, Q_SECTOR - n);
      memcpy (out + n, (const uint8_t *)at->iov->iov_base + at->in, there);
      advance (at, there);
    }
    r = q_cipher_encrypt (c->cipher, host / Q_SECTOR, out, out, Q_SECTOR);
  }
  return r;
}

/* LEN bytes of the vector, whole sectors. */
static int
write_sectors (struct q_crypt *c, const struct iovec *iov, uint64_t len, uint64_t host)
{
  struct cursor at = { .iov = iov };
  uint64_t n = q_min (len, CHUNK);
  void *out;
  int r = 0;

  if (posix_memalign (&out, 4096, q_round_up (n, 4096)) != 0)
    return -ENOMEM;
  for (; r == 0 && len > 0; host += n, len -= n) {
    n = q_min (len, CHUNK);
    r = encrypt_next (c, &at, out, n, host);
    if (r == 0)
      r = q_file_pwrite (c->below, out, n, host);
  }
  free (out);
  return r;
}

/* The same with what is missing from the first and the last sector.  The lock is held alone. */
static int
write_partial (struct q_crypt *c, const struct iovec *iov, int iovcnt, uint64_t len, uint64_t host)
{
  uint64_t head = host % Q_SECTOR, end = host + len, tail = -end % Q_SECTOR;
  uint8_t first[Q_SECTOR], last[Q_SECTOR];
  struct iovec *whole = malloc (((size_t)iovcnt + 2) * sizeof *whole);
  int n = 0, r = 0;

  if (!whole)
    return -ENOMEM;
  if (head > 0) {
    r = read_sectors (c, first, Q_SECTOR, host - head, host - head);
    whole[n++] = (struct iovec){ first, head };
  }
  memcpy (whole + n, iov, (size_t)iovcnt * sizeof *whole);
  n += iovcnt;
  if (tail > 0) {
    uint64_t sector = end + tail - Q_SECTOR;

    if (r == 0)
      r = read_sectors (c, last, Q_SECTOR, sector, sector);
    whole[n++] = (struct iovec){ last + Q_SECTOR - tail, tail };
  }
  if (r == 0)
    r = write_sectors (c, whole, head + len + tail, host - head);
  free (whole);
  return r;
}

static int
crypt_pwritev (struct q_file *f, const struct iovec *iov, int iovcnt, uint64_t offset)
{
  struct q_crypt *c = crypt_of (f);
  uint64_t len = 0;
  int r;

  if (!c->cipher || c->legacy)
    return c->cipher ? -EROFS : -ENOKEY;
  for (int i = 0; i < iovcnt; ++i)
    len += iov[i].iov_len;
  if (offset % Q_SECTOR || len % Q_SECTOR) {
    pthread_rwlock_wrlock (&c->partial);
    r = write_partial (c, iov, iovcnt, len, offset);
  } else {
    pthread_rwlock_rdlock (&c->partial);
    r = write_sectors (c, iov, len, offset);
  }
  pthread_rwlock_unlock (&c->partial);
  return r;
}

/* ---- the rest of a file --------------------------------------------------------------------- */

static int
crypt_sync (struct q_file *f)
{
  return q_file_sync (crypt_of (f)->below);
}

/* A hole is not zeros here. */
static int
crypt_zero (struct q_file *f, uint64_t offset, uint64_t len, bool unmap)
{
  (void)f;
  (void)offset;
  (void)len;
  (void)unmap;
  return -ENOTSUP;
}

static int
crypt_truncate (struct q_file *f, uint64_t size)
{
  return q_file_truncate (crypt_of (f)->below, size);
}

static int
crypt_allocate (struct q_file *f, uint64_t offset, uint64_t len)
{
  return q_file_allocate (crypt_of (f)->below, offset, len);
}

static int
crypt_size (struct q_file *f, uint64_t *size)
{
  return q_file_size (crypt_of (f)->below, size);
}

static int
crypt_usage (struct q_file *f, uint64_t *bytes)
{
  return q_file_usage (crypt_of (f)->below, bytes);
}

static int
crypt_extent (struct q_file *f, uint64_t offset, uint64_t *end, bool *is_hole)
{
  (void)f;
  (void)offset;
  (void)end;
  (void)is_hole;
  return -ENOTSUP;
}

static int
crypt_prefetch (struct q_file *f, uint64_t offset, uint64_t len)
{
  struct q_file *below = crypt_of (f)->below;

  /* A data file may not have been opened. */
  return below ? q_file_prefetch (below, offset, len) : -ENXIO;
}

static void
crypt_close (struct q_file *f)
{
  struct q_crypt *c = crypt_of (f);

  q_cipher_free (c->cipher);
  pthread_rwlock_destroy (&c->partial);
  free (c);
}

static const struct q_file_ops crypt_ops = {
  .pread = crypt_pread,
  .pwritev = crypt_pwritev,
  .sync = crypt_sync,
  .zero = crypt_zero,
  .truncate = crypt_truncate,
  .allocate = crypt_allocate,
  .size = crypt_size,
  .usage = crypt_usage,
  .extent = crypt_extent,
  .prefetch = crypt_prefetch,
  .close = crypt_close,
};

/* ---- the header ----------------------------------------------------------------------------- */

int
q_crypt_read_area (void *opaque, void *buf, size_t len, uint64_t offset)
{
  struct q_image *img = opaque;

  return q_file_pread (img->file, buf, len, img->crypto_offset + offset);
}

int
q_crypt_read_header (struct q_image *img, struct q_luks *l, struct q_error *err)
{
  struct luks_header h;
  int r = q_file_contains (img->file, img->crypto_offset, img->crypto_length);

  if (r == 0)
    return q_fail (err, -EINVAL,
                   "%s: truncated: the encryption header of %llu bytes at byte %llu does not end "
                   "inside the file",
                   img->filename, (unsigned long long)img->crypto_length,
                   (unsigned long long)img->crypto_offset);
  if (r > 0)
    r = q_crypt_read_area (img, &h, sizeof h, 0);
  if (r < 0)
    return q_fail (err, r, "%s: cannot read the encryption header: %s", img->filename,
                   strerror (-r));
  return q_luks_parse (l, &h, img->crypto_length, img->filename, err);
}

static int
unlock_luks (struct q_image *img, struct q_crypt *c, const struct q_secret *secret,
             struct q_error *err)
{
  uint8_t *key = q_secret_alloc (Q_MAX_KEY);
  int r;

  if (!key)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  r = q_luks_unlock (&c->luks, q_crypt_read_area, img, ~0u, secret, key, &c->slot, img->filename,
                     err);
  if (r == 0)
    r = q_cipher_new (&c->cipher, &c->luks.spec, key, img->filename, err);
  q_secret_free (key, Q_MAX_KEY);
  return r;
}

/* The password is the key. */
static int
unlock_legacy (struct q_image *img, struct q_crypt *c, const struct q_secret *secret,
               struct q_error *err)
{
  static const struct q_cipher_spec spec = { "aes", "cbc-plain64", 16 };
  uint8_t *key = q_secret_alloc (Q_MAX_KEY);
  int r;

  if (!key)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  memcpy (key, secret->data, q_min (secret->len, spec.key_bytes));
  r = q_cipher_new (&c->cipher, &spec, key, img->filename, err);
  q_secret_free (key, Q_MAX_KEY);
  if (r == 0)
    q_log (Q_LOG_WARNING,
           "%s: is encrypted with the legacy AES method, which protects little and is only read; "
           "convert the image to LUKS",
           img->filename);
  return r;
}

/* ---- open and close ------------------------------------------------------------------------- */

static struct q_crypt *
new_crypt (struct q_image *img)
{
  struct q_crypt *c = calloc (1, sizeof *c);
  pthread_rwlockattr_t attr;

  if (!c)
    return NULL;
  c->base.ops = &crypt_ops;
  c->base.name = img->filename;
  c->base.fd = c->base.direct_fd = -1;
  c->base.is_device = img->data && img->data->is_device;
  c->below = img->data;
  c->legacy = img->crypt_method == Q_CRYPT_AES;
  pthread_rwlockattr_init (&attr);
  /* A stream of whole writes must not keep a partial one waiting for ever. */
  pthread_rwlockattr_setkind_np (&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init (&c->partial, &attr);
  pthread_rwlockattr_destroy (&attr);
  return c;
}

int
q_crypt_open (struct q_image *img, const struct q_secret *secret, bool metadata_only,
              struct q_error *err)
{
  struct q_crypt *c;
  int r;

  if (img->crypt_method == Q_CRYPT_NONE)
    return 0;
  if (!metadata_only && !secret)
    return q_fail (err, -ENOKEY,
                   "%s: the image is encrypted (%s): a key is needed (encrypt.key-secret, or a key "
                   "file)",
                   img->filename, img->crypt_method == Q_CRYPT_AES ? "legacy AES" : "LUKS");
  c = new_crypt (img);
  if (!c)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  img->crypt = c;
  img->guest = &c->base;
  if (metadata_only) /* also of one whose header is damaged */
    return 0;
  if (c->legacy && !img->read_only)
    return q_fail (err, -ENOTSUP,
                   "%s: the image is encrypted with the legacy AES method, which is not supported "
                   "for writing: open it read-only, and convert it to LUKS",
                   img->filename);
  if (c->legacy)
    return unlock_legacy (img, c, secret, err);
  r = q_crypt_read_header (img, &c->luks, err);
  return r == 0 ? unlock_luks (img, c, secret, err) : r;
}

void
q_crypt_close (struct q_image *img)
{
  struct q_file *f = img->crypt ? &img->crypt->base : NULL;

  q_file_close (&f);
  img->crypt = NULL;
}
