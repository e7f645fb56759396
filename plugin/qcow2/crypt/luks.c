/* SPDX-License-Identifier: BSD-3-Clause
 *
 * LUKS headers: parsing with every field checked, and putting them together.
 */

#include <ctype.h>
#include <errno.h>
#include <stdio.h>

#include "image.h"
#include "luks.h"

#define ull(v) ((unsigned long long)(v))

static const char magic[6] = { 'L', 'U', 'K', 'S', '\xba', '\xbe' };

uint64_t
q_luks_material_bytes (const struct q_luks *l, uint32_t stripes)
{
  return q_round_up ((uint64_t)l->spec.key_bytes * stripes, Q_SECTOR);
}

/* A name in a field of SIZE bytes, which has a NUL byte in it. */
static int
take_name (char *to, const char *from, size_t size, const char *what, const char *name,
           struct q_error *err)
{
  size_t n = strnlen (from, size);

  if (n == size)
    return q_fail (err, -EINVAL, "%s: encryption header: the %s is not terminated", name, what);
  for (size_t i = 0; i < n; ++i)
    if (!isgraph ((unsigned char)from[i]))
      return q_fail (err, -EINVAL, "%s: encryption header: the %s has byte 0x%02x in it", name,
                     what, (unsigned char)from[i]);
  if (n == 0)
    return q_fail (err, -EINVAL, "%s: encryption header: the %s is empty", name, what);
  memset (to, 0, size);
  memcpy (to, from, n);
  return 0;
}

static int
check_iterations (uint32_t n, const char *what, const char *name, struct q_error *err)
{
  if (n > 0 && n <= Q_LUKS_MAX_ITERATIONS)
    return 0;
  return q_fail (err, n ? -EFBIG : -EINVAL,
                 "%s: encryption header: %s: %u iterations, should be 1 to %u", name, what, n,
                 Q_LUKS_MAX_ITERATIONS);
}

/* An unused slot may say anything: nothing of it is looked at until it is filled. */
static int
take_slot (struct q_luks *l, unsigned n, const struct luks_slot *from, uint64_t area,
           const char *name, struct q_error *err)
{
  struct q_luks_slot *s = &l->slot[n];
  uint32_t state = get32 (from->state);
  char what[32];

  snprintf (what, sizeof what, "key slot %u", n);
  if (state != Q_LUKS_ACTIVE && state != Q_LUKS_INACTIVE)
    return q_fail (err, -EINVAL,
                   "%s: encryption header: %s: its state is 0x%08x, should be 0x%08x (in use) or "
                   "0x%08x",
                   name, what, state, Q_LUKS_ACTIVE, Q_LUKS_INACTIVE);
  s->active = state == Q_LUKS_ACTIVE;
  s->iterations = get32 (from->iterations);
  s->stripes = get32 (from->stripes);
  s->material = (uint64_t)get32 (from->material_sector) * Q_SECTOR;
  memcpy (s->salt, from->salt, sizeof s->salt);
  if (!s->active)
    return 0;
  if (s->stripes == 0 || s->stripes > Q_LUKS_STRIPES)
    return q_fail (err, -EINVAL, "%s: encryption header: %s: %u stripes, should be 1 to %u", name,
                   what, s->stripes, Q_LUKS_STRIPES);
  if (s->material < sizeof (struct luks_header) || s->material > area ||
      q_luks_material_bytes (l, s->stripes) > area - s->material)
    return q_fail (err, -EINVAL,
                   "%s: encryption header: %s: key material of %llu bytes at byte %llu is not "
                   "between the header and its end at byte %llu",
                   name, what, ull (q_luks_material_bytes (l, s->stripes)), ull (s->material),
                   ull (area));
  return check_iterations (s->iterations, what, name, err);
}

static int
check_overlap (const struct q_luks *l, const char *name, struct q_error *err)
{
  for (unsigned i = 0; i < Q_LUKS_SLOTS; ++i)
    for (unsigned k = 0; k < i; ++k) {
      const struct q_luks_slot *a = &l->slot[i], *b = &l->slot[k];

      if (a->active && b->active &&
          a->material < b->material + q_luks_material_bytes (l, b->stripes) &&
          b->material < a->material + q_luks_material_bytes (l, a->stripes))
        return q_fail (err, -EINVAL,
                       "%s: encryption header: key slots %u and %u have their key material in the "
                       "same place",
                       name, k, i);
    }
  return 0;
}

int
q_luks_parse (struct q_luks *l, const struct luks_header *h, uint64_t area, const char *name,
              struct q_error *err)
{
  int r;

  memset (l, 0, sizeof *l);
  if (area < sizeof *h || area > Q_LUKS_MAX_AREA)
    return q_fail (err, -EINVAL, "%s: encryption header: length %llu, should be %zu to %u", name,
                   ull (area), sizeof *h, Q_LUKS_MAX_AREA);
  if (memcmp (h->magic, magic, sizeof magic) != 0)
    return q_fail (err, -EINVAL, "%s: encryption header: does not begin as a LUKS header does",
                   name);
  if (get16 (h->version) != 1)
    return q_fail (err, -ENOTSUP, "%s: encryption header: LUKS version %u is not supported (1 is)",
                   name, get16 (h->version));
  l->spec.key_bytes = get32 (h->key_bytes);
  if (l->spec.key_bytes == 0 || l->spec.key_bytes > Q_MAX_KEY)
    return q_fail (err, -EINVAL, "%s: encryption header: %u bytes of key, should be 1 to %u", name,
                   l->spec.key_bytes, Q_MAX_KEY);
  r = take_name (l->spec.cipher, h->cipher, sizeof h->cipher, "cipher's name", name, err);
  if (r == 0)
    r = take_name (l->spec.mode, h->mode, sizeof h->mode, "cipher's mode", name, err);
  if (r == 0)
    r = take_name (l->hash, h->hash, sizeof h->hash, "hash's name", name, err);
  if (r == 0) {
    l->iterations = get32 (h->iterations);
    r = check_iterations (l->iterations, "master key digest", name, err);
  }
  l->payload = (uint64_t)get32 (h->payload_sector) * Q_SECTOR;
  memcpy (l->digest, h->digest, sizeof l->digest);
  memcpy (l->salt, h->salt, sizeof l->salt);
  for (size_t i = 0; i < sizeof h->uuid && h->uuid[i]; ++i)
    l->uuid[i] = isgraph ((unsigned char)h->uuid[i]) ? h->uuid[i] : '?';
  for (unsigned i = 0; r == 0 && i < Q_LUKS_SLOTS; ++i)
    r = take_slot (l, i, &h->slot[i], area, name, err);
  return r == 0 ? check_overlap (l, name, err) : r;
}

void
q_luks_put (const struct q_luks *l, struct luks_header *h)
{
  *h = (struct luks_header){
    .version = put16 (1),
    .payload_sector = put32 ((uint32_t)(l->payload / Q_SECTOR)),
    .key_bytes = put32 (l->spec.key_bytes),
    .iterations = put32 (l->iterations),
  };
  memcpy (h->magic, magic, sizeof magic);
  memcpy (h->cipher, l->spec.cipher, sizeof h->cipher);
  memcpy (h->mode, l->spec.mode, sizeof h->mode);
  memcpy (h->hash, l->hash, sizeof h->hash);
  memcpy (h->digest, l->digest, sizeof h->digest);
  memcpy (h->salt, l->salt, sizeof h->salt);
  memcpy (h->uuid, l->uuid, strnlen (l->uuid, sizeof h->uuid));
  for (unsigned i = 0; i < Q_LUKS_SLOTS; ++i)
    q_luks_put_slot (&l->slot[i], &h->slot[i]);
}

void
q_luks_put_slot (const struct q_luks_slot *s, struct luks_slot *buf)
{
  *buf = (struct luks_slot){
    .state = put32 (s->active ? Q_LUKS_ACTIVE : Q_LUKS_INACTIVE),
    .iterations = put32 (s->iterations),
    .material_sector = put32 ((uint32_t)(s->material / Q_SECTOR)),
    .stripes = put32 (s->stripes),
  };
  memcpy (buf->salt, s->salt, sizeof s->salt);
}
