/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Looking at the encryption of an image, and changing who can open it.
 *
 * Order on disk: a slot is marked as in use after what is in it is durable, and before that is
 * overwritten it is durably marked as unused.  So a crash at any point leaves a header in which
 * every slot in use opens the image; at worst an erased slot has still to be overwritten, which
 * erasing it again does.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "crypt.h"
#include "image.h"
#include "luks.h"

/* Times that an erased slot is overwritten. */
#define ERASE_PASSES 3

/* ---- what there is -------------------------------------------------------------------------- */

int
q_get_encryption (struct q_image *img, struct q_encryption_info *info, struct q_error *err)
{
  struct q_luks l;
  const char *dash, *colon;
  bool xts;
  int r;

  memset (info, 0, sizeof *info);
  if (!img->crypt)
    return -ENOENT;
  if (img->crypt_method != Q_CRYPT_LUKS)
    return 0;
  r = q_crypt_read_header (img, &l, err);
  if (r < 0)
    return r;
  info->luks = true;
  dash = strchrnul (l.spec.mode, '-');
  colon = strchrnul (dash, ':');
  xts = strncmp (l.spec.mode, "xts", 3) == 0;
  snprintf (info->cipher_alg, sizeof info->cipher_alg, "%s-%u", l.spec.cipher,
            l.spec.key_bytes * 8 / (xts ? 2 : 1));
  snprintf (info->cipher_mode, sizeof info->cipher_mode, "%.*s", (int)(dash - l.spec.mode),
            l.spec.mode);
  if (*dash)
    snprintf (info->ivgen_alg, sizeof info->ivgen_alg, "%.*s", (int)(colon - dash) - 1, dash + 1);
  if (*colon && strcmp (info->ivgen_alg, "essiv") == 0)
    snprintf (info->ivgen_hash_alg, sizeof info->ivgen_hash_alg, "%s", colon + 1);
  snprintf (info->hash_alg, sizeof info->hash_alg, "%s", l.hash);
  snprintf (info->uuid, sizeof info->uuid, "%s", l.uuid);
  info->payload_offset = l.payload;
  info->master_key_iterations = l.iterations;
  for (unsigned i = 0; i < Q_LUKS_SLOTS; ++i) {
    info->slot[i].active = l.slot[i].active;
    info->slot[i].iterations = l.slot[i].iterations;
    info->slot[i].stripes = l.slot[i].stripes;
    info->slot[i].material_offset = l.slot[i].material;
  }
  return 0;
}

/* ---- writing slots -------------------------------------------------------------------------- */

static int
write_area (struct q_image *img, const void *buf, size_t len, uint64_t offset)
{
  return q_file_pwrite (img->file, buf, len, img->crypto_offset + offset);
}

/* All of slot N.  It may tear, since it can span two sectors, and so it is not in use. */
static int
write_slot (struct q_image *img, const struct q_luks *l, unsigned n)
{
  struct luks_slot s;

  assert (!l->slot[n].active);
  q_luks_put_slot (&l->slot[n], &s);
  return write_area (img, &s, sizeof s, offsetof (struct luks_header, slot) + n * sizeof s);
}

/* Makes what was written so far durable, then the word that says whether slot N is in use. */
static int
switch_slot (struct q_image *img, struct q_luks *l, unsigned n, bool active)
{
  be32 state = put32 (active ? Q_LUKS_ACTIVE : Q_LUKS_INACTIVE);
  int r = q_file_sync (img->file);

  if (r == 0)
    r = write_area (img, &state, sizeof state,
                    offsetof (struct luks_header, slot) + n * sizeof (struct luks_slot));
  if (r == 0)
    r = q_file_sync (img->file);
  l->slot[n].active = active;
  return r;
}

/* ---- adding --------------------------------------------------------------------------------- */

/* There is room for a slot's material where the header has it, and nobody else's is there. */
static bool
has_room (const struct q_image *img, const struct q_luks *l, unsigned n)
{
  uint64_t from = l->slot[n].material, bytes = q_luks_material_bytes (l, Q_LUKS_STRIPES);

  if (from < sizeof (struct luks_header) || from > img->crypto_length ||
      bytes > img->crypto_length - from)
    return false;
  for (unsigned i = 0; i < Q_LUKS_SLOTS; ++i) {
    const struct q_luks_slot *s = &l->slot[i];

    if (i != n && s->active && from < s->material + q_luks_material_bytes (l, s->stripes) &&
        s->material < from + bytes)
      return false;
  }
  return true;
}

static int
choose_slot (const struct q_image *img, const struct q_luks *l, int wanted, unsigned *n,
             struct q_error *err)
{
  if (wanted >= 0) {
    *n = (unsigned)wanted;
    if (l->slot[*n].active)
      return q_fail (err, -EEXIST,
                     "%s: key slot %u is in use: erase it first, or leave the choice of a slot out",
                     img->filename, *n);
  } else {
    for (*n = 0; *n < Q_LUKS_SLOTS && l->slot[*n].active; ++*n)
      ;
    if (*n == Q_LUKS_SLOTS)
      return q_fail (err, -ENOSPC, "%s: all %u key slots are in use: erase one first",
                     img->filename, Q_LUKS_SLOTS);
  }
  if (!has_room (img, l, *n))
    return q_fail (err, -EINVAL,
                   "%s: encryption header: there is no room for key material of slot %u where the "
                   "header has it",
                   img->filename, *n);
  return 0;
}

static int
add_key (struct q_image *img, struct q_luks *l, const struct q_key_change *change,
         struct q_error *err)
{
  uint8_t *key = q_secret_alloc (Q_MAX_KEY), *material = NULL;
  struct q_luks filled = *l;
  size_t bytes;
  unsigned n = 0, opened;
  int r = key ? choose_slot (img, l, change->slot, &n, err)
              : q_fail (err, -ENOMEM, "%s: out of memory", img->filename);

  if (r == 0)
    r = q_luks_unlock (l, q_crypt_read_area, img, ~0u, change->secret, key, &opened, img->filename,
                       err);
  if (r == 0)
    r = q_luks_fill_slot (&filled, n, change->iter_time_ms, key, change->new_secret, &material,
                          &bytes, img->filename, err);
  q_secret_free (key, Q_MAX_KEY);
  if (r < 0)
    return r;
  filled.slot[n].active = false;
  r = write_area (img, material, bytes, filled.slot[n].material);
  if (r == 0)
    r = write_slot (img, &filled, n);
  if (r == 0)
    r = switch_slot (img, &filled, n, true);
  free (material);
  return r < 0
             ? q_fail (err, r, "%s: cannot write key slot %u: %s", img->filename, n, strerror (-r))
             : 0;
}

/* ---- erasing -------------------------------------------------------------------------------- */

/* Which slots are meant. */
static int
find_erased (struct q_image *img, const struct q_luks *l, const struct q_key_change *change,
             unsigned *mask, struct q_error *err)
{
  unsigned candidates = change->slot >= 0 ? 1u << change->slot : ~0u, n = 0;
  uint8_t *key;
  int r = 0;

  *mask = 0;
  if (!change->old_secret) {
    *mask = candidates;
    return 0;
  }
  key = q_secret_alloc (Q_MAX_KEY);
  if (!key)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  while (r == 0) {
    r = q_luks_unlock (l, q_crypt_read_area, img, candidates, change->old_secret, key, &n,
                       img->filename, *mask ? NULL : err);
    if (r == 0) {
      *mask |= 1u << n;
      candidates &= ~(1u << n);
    }
  }
  q_secret_free (key, Q_MAX_KEY);
  return r == -EKEYREJECTED && *mask ? 0 : r;
}

static int
overwrite (struct q_image *img, const struct q_luks *l, unsigned n)
{
  uint64_t bytes = q_luks_material_bytes (l, Q_LUKS_STRIPES);
  uint8_t *noise;
  int r = 0;

  if (!has_room (img, l, n))
    return 0; /* what is there is not the slot's */
  noise = malloc (bytes);
  if (!noise)
    return -ENOMEM;
  for (unsigned pass = 0; r == 0 && pass < ERASE_PASSES; ++pass) {
    r = q_random (noise, bytes, false);
    if (r == 0)
      r = write_area (img, noise, bytes, l->slot[n].material);
    if (r == 0)
      r = q_file_sync (img->file);
  }
  free (noise);
  return r;
}

static int
erase_slot (struct q_image *img, struct q_luks *l, unsigned n)
{
  int r = switch_slot (img, l, n, false);

  l->slot[n].iterations = 0;
  memset (l->slot[n].salt, 0, sizeof l->slot[n].salt);
  if (r == 0)
    r = write_slot (img, l, n);
  return r == 0 ? overwrite (img, l, n) : r;
}

static int
erase_keys (struct q_image *img, struct q_luks *l, const struct q_key_change *change,
            struct q_error *err)
{
  unsigned mask, left = 0;
  int r = find_erased (img, l, change, &mask, err);

  if (r < 0)
    return r;
  for (unsigned i = 0; i < Q_LUKS_SLOTS; ++i)
    left += l->slot[i].active && !(mask & 1u << i);
  if (left == 0 && !change->force)
    return q_fail (err, -EPERM,
                   "%s: no key slot would be left, and nobody could ever read the image again: "
                   "refused without force",
                   img->filename);
  for (unsigned i = 0; r == 0 && i < Q_LUKS_SLOTS; ++i)
    if (mask & 1u << i)
      r = erase_slot (img, l, i);
  return r < 0 ? q_fail (err, r, "%s: cannot erase key slots: %s", img->filename, strerror (-r))
               : 0;
}

/* ---- the call ------------------------------------------------------------------------------- */

static int
check_change (const struct q_image *img, const struct q_key_change *c, struct q_error *err)
{
  int r = q_writable ((struct q_image *)img);

  if (img->crypt_method != Q_CRYPT_LUKS)
    return q_fail (err, -EINVAL, "%s: has no key slots: it is not encrypted with LUKS",
                   img->filename);
  if (r < 0)
    return q_fail (err, r, "%s: cannot be written: %s", img->filename, strerror (-r));
  if (c->slot < -1 || c->slot >= (int)Q_LUKS_SLOTS)
    return q_fail (err, -EINVAL, "%s: key slot %d does not exist: they are 0 to %u", img->filename,
                   c->slot, Q_LUKS_SLOTS - 1);
  if (!c->erase && !c->new_secret)
    return q_fail (err, -EINVAL, "%s: a new key slot needs a new secret", img->filename);
  if (!c->erase && !c->secret)
    return q_fail (err, -ENOKEY, "%s: adding a key needs one that opens the image", img->filename);
  if (!c->erase && c->old_secret)
    return q_fail (err, -EINVAL,
                   "%s: the old secret is for erasing a key slot, not for filling one",
                   img->filename);
  if (c->erase && c->new_secret)
    return q_fail (err, -EINVAL,
                   "%s: the new secret is for filling a key slot, not for erasing one",
                   img->filename);
  if (c->erase && !c->old_secret && c->slot < 0)
    return q_fail (err, -EINVAL,
                   "%s: which key slot is to be erased? Its number or the secret that opens it is "
                   "wanted",
                   img->filename);
  return 0;
}

int
q_change_keys (struct q_image *img, const struct q_key_change *change, struct q_error *err)
{
  struct q_luks l;
  int r = check_change (img, change, err);

  if (r < 0)
    return r;
  pthread_mutex_lock (&img->layout_lock);
  r = q_crypt_read_header (img, &l, err);
  if (r == 0)
    r = change->erase ? erase_keys (img, &l, change, err) : add_key (img, &l, change, err);
  pthread_mutex_unlock (&img->layout_lock);
  return r;
}
