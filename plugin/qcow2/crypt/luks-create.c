/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The encryption header of a new image: LUKS, with one key slot in use.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "image.h"
#include "luks.h"

void
q_encrypt_options_init (struct q_encrypt_options *opts)
{
  *opts = (struct q_encrypt_options){
    .cipher_alg = "aes-256",
    .cipher_mode = "xts",
    .ivgen_alg = "plain64",
    .hash_alg = "sha256",
    .iter_time_ms = 2000,
  };
}

/* FROM into a field of SIZE bytes, terminated. */
static bool
put_name (char *to, size_t size, const char *from)
{
  return (size_t)snprintf (to, size, "%s", from) < size;
}

/* "aes-256" and the rest, as a LUKS header has them. */
static int
make_spec (struct q_luks *l, const struct q_encrypt_options *opts, const char *name,
           struct q_error *err)
{
  struct q_cipher_spec *s = &l->spec;
  const char *dash = strrchr (opts->cipher_alg, '-');
  const char *ivhash = opts->ivgen_hash_alg;
  unsigned long bits = dash ? strtoul (dash + 1, NULL, 10) : 0;
  int n;

  if (bits == 0 || bits > 256 || bits % 8 || (size_t)(dash - opts->cipher_alg) >= sizeof s->cipher)
    return q_fail (err, -EINVAL,
                   "%s: cipher '%.64s' is not one: NAME-BITS is wanted, such as aes-256", name,
                   opts->cipher_alg);
  memcpy (s->cipher, opts->cipher_alg, (size_t)(dash - opts->cipher_alg));
  s->key_bytes = (uint32_t)bits / 8 * (strcmp (opts->cipher_mode, "xts") == 0 ? 2 : 1);
  if (!ivhash && strcmp (opts->ivgen_alg, "essiv") == 0)
    ivhash = "sha256";
  n = snprintf (s->mode, sizeof s->mode, "%s-%s%s%s", opts->cipher_mode, opts->ivgen_alg,
                ivhash ? ":" : "", ivhash ? ivhash : "");
  if (n < 0 || (size_t)n >= sizeof s->mode || !put_name (l->hash, sizeof l->hash, opts->hash_alg))
    return q_fail (err, -EINVAL,
                   "%s: a LUKS header has no room for a name as long as '%.64s-%.64s' or '%.64s'",
                   name, opts->cipher_mode, opts->ivgen_alg, opts->hash_alg);
  return 0;
}

int
q_luks_create (const struct q_encrypt_options *opts, const struct q_secret *secret, uint8_t **area,
               size_t *bytes, const char *name, struct q_error *err)
{
  struct q_luks l = { .iterations = 0 };
  uint8_t *key = q_secret_alloc (Q_MAX_KEY), *material = NULL;
  struct luks_header h;
  size_t material_bytes;
  int r = key ? make_spec (&l, opts, name, err) : q_fail (err, -ENOMEM, "%s: out of memory", name);

  *area = NULL;
  if (r == 0)
    r = q_luks_new (&l, opts->iter_time_ms, key, name, err);
  if (r == 0)
    r = q_luks_fill_slot (&l, 0, opts->iter_time_ms, key, secret, &material, &material_bytes, name,
                          err);
  q_secret_free (key, Q_MAX_KEY);
  if (r == 0 && !(*area = calloc (1, l.payload)))
    r = q_fail (err, -ENOMEM, "%s: out of memory", name);
  if (r == 0 && *area) {
    *bytes = l.payload;
    q_luks_put (&l, &h);
    memcpy (*area, &h, sizeof h);
    memcpy (*area + l.slot[0].material, material, material_bytes);
  }
  free (material);
  return r;
}
