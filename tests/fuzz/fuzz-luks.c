/* SPDX-License-Identifier: BSD-3-Clause
 *
 * LUKS headers and key slots by themselves: the input is what the encryption header extension
 * points to.
 *
 * The oracle: a header that was parsed and written again parses to the same; a slot that opens is
 * one that is active, and what it gives opens the image.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "fuzz.h"
#include "luks.h"
#include "skeleton.h"

#define MAX_AREA (64u << 10)

struct area {
  const uint8_t *data;
  size_t n;
};

static int
read_area (void *opaque, void *buf, size_t len, uint64_t offset)
{
  const struct area *a = opaque;

  if (offset > a->n || len > a->n - offset)
    broken ("%zu bytes at %llu of a header of %zu bytes are read", len, (unsigned long long)offset,
            a->n);
  memcpy (buf, a->data + offset, len);
  return 0;
}

static void
unlock (const struct q_luks *l, struct area *a)
{
  uint8_t *key = q_secret_alloc (Q_MAX_KEY);
  struct q_error err = { "" };
  struct q_cipher *c;
  unsigned slot;

  if (!key)
    die ("out of memory");
  if (q_luks_unlock (l, read_area, a, 0xff, &skeleton_secret, key, &slot, "luks", &err) == 0) {
    if (slot >= Q_LUKS_SLOTS || !l->slot[slot].active)
      broken ("slot %u, which is not in use, opens", slot);
    if (q_cipher_new (&c, &l->spec, key, "luks", &err) == 0) {
      uint8_t plain[2 * Q_SECTOR] = { 1, 2, 3 }, sector[2 * Q_SECTOR];

      if (q_cipher_encrypt (c, 77, sector, plain, sizeof plain) < 0 ||
          q_cipher_decrypt (c, 77, sector, sector, sizeof plain) < 0 ||
          memcmp (sector, plain, sizeof plain) != 0)
        broken ("%s %s does not decrypt what it encrypts", l->spec.cipher, l->spec.mode);
      q_cipher_free (c);
    }
  } else if (!err.text[0])
    broken ("no message says why no slot opens");
  q_secret_free (key, Q_MAX_KEY);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct area a = { data, size };
  struct luks_header h = { 0 }, again;
  struct q_luks l, m;
  struct q_error err = { "" };

  fuzz_begin ();
  if (size > MAX_AREA)
    return 0;
  memcpy (&h, data, size < sizeof h ? size : sizeof h);
  if (q_luks_parse (&l, &h, size, "luks", &err) < 0) {
    if (!err.text[0])
      broken ("no message says what is wrong with the header");
    return 0;
  }
  q_luks_put (&l, &again);
  if (q_luks_parse (&m, &again, size, "luks", &err) < 0)
    broken ("a header that was written again does not parse: %s", err.text);
  if (memcmp (&l, &m, sizeof l) != 0)
    broken ("a header that was written again says something else");
  unlock (&l, &a);
  return 0;
}

void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  struct mem_store store;

  fuzz_begin ();
  mem_store_init (&store);
  skeleton_surroundings (&store);
  for (unsigned i = 0; i < n_skeletons; ++i)
    if (skeletons[i].encrypted && skeleton_possible (&skeletons[i])) {
      const struct mem_file *f;
      uint64_t at = 0;

      skeleton_make (&skeletons[i], &store);
      f = mem_find (&store, "image");
      while (memcmp (f->data + at, "LUKS\xba\xbe", 6) != 0)
        at += 512;
      emit (opaque, skeletons[i].name, f->data + at, 4096 + 512);
    }
  mem_store_free (&store);
}
