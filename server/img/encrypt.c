/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "encrypt.h"
#include "objects.h"

#define PREFIX "encrypt."

/* Longer than anybody waits. */
#define MAX_ITER_TIME 3600000u

const char img_encrypt_help[] =
    "  encrypt.format=luks      encrypt what the guest writes\n"
    "  encrypt.key-secret=ID    with what --object secret,id=ID,... gives\n"
    "  encrypt.cipher-alg=NAME  aes-256 (default), aes-128, serpent-256, twofish-256, ...\n"
    "  encrypt.cipher-mode=MODE xts (default), cbc, ctr or ecb\n"
    "  encrypt.ivgen-alg=NAME   plain64 (default), plain or essiv\n"
    "  encrypt.ivgen-hash-alg=NAME  of essiv (default sha256)\n"
    "  encrypt.hash-alg=NAME    for the password: sha256 (default), sha512, sha1, ...\n"
    "  encrypt.iter-time=MS     how long trying a password is to take (default 2000)\n";

bool
img_encrypt_is_key (const char *key)
{
  return strncmp (key, PREFIX, strlen (PREFIX)) == 0 || strcmp (key, "encryption") == 0;
}

/* The secret called ID, loaded; reports what is wrong. */
static const struct q_secret *
find_secret (const char *option, const char *id)
{
  struct q_error err = { "" };
  const struct q_secret *s = NULL;

  if (img_load_secrets ()) {
    s = objects_find_secret (&img_objects, option, id, &err);
    if (!s)
      img_error ("%s", err.text);
  }
  return s;
}

/* ---- making images --------------------------------------------------------------------------- */

static bool
is_one_of (const char *key, const char *value, const char *const *known)
{
  for (; *known; known++)
    if (strcmp (value, *known) == 0)
      return true;
  img_error ("%s '%s' is not known; '-o help' says what there is", key, value);
  return false;
}

bool
img_encrypt_set (struct img_creation *c, const struct img_pair *p)
{
  static const char *const modes[] = { "xts", "cbc", "ctr", "ecb", NULL };
  static const char *const ivgens[] = { "plain64", "plain", "essiv", NULL };
  struct img_encryption *e = &c->encryption;
  const char *key = p->key + strlen (PREFIX);
  uint64_t ms;
  bool on;

  if (strcmp (p->key, "encryption") == 0) {
    if (!img_parse_bool (p->key, p->value, &on))
      return false;
    if (on)
      img_error ("encryption=on is the legacy AES method, which is only read: use "
                 "encrypt.format=luks");
    return !on;
  }
  e->given = true;
  if (strcmp (key, "format") == 0) {
    e->format = p->value;
    if (strcmp (p->value, "luks") == 0)
      return true;
    img_error ("encrypt.format '%s': luks is what images are encrypted with (the legacy AES method "
               "is only read)",
               p->value);
    return false;
  }
  if (strcmp (key, "key-secret") == 0)
    e->key_secret = p->value;
  else if (strcmp (key, "cipher-alg") == 0)
    e->cipher_alg = c->opts.encrypt.cipher_alg = p->value;
  else if (strcmp (key, "cipher-mode") == 0) {
    e->cipher_mode = c->opts.encrypt.cipher_mode = p->value;
    return is_one_of (p->key, p->value, modes);
  } else if (strcmp (key, "ivgen-alg") == 0) {
    e->ivgen_alg = c->opts.encrypt.ivgen_alg = p->value;
    return is_one_of (p->key, p->value, ivgens);
  } else if (strcmp (key, "ivgen-hash-alg") == 0)
    e->ivgen_hash_alg = c->opts.encrypt.ivgen_hash_alg = p->value;
  else if (strcmp (key, "hash-alg") == 0)
    e->hash_alg = c->opts.encrypt.hash_alg = p->value;
  else if (strcmp (key, "iter-time") == 0) {
    e->iter_time = p->value;
    if (!img_parse_number (p->key, p->value, 1, MAX_ITER_TIME, &ms))
      return false;
    c->opts.encrypt.iter_time_ms = (unsigned)ms;
  } else {
    img_error ("option '%s' is not known; '-o help' lists the options", p->key);
    return false;
  }
  return true;
}

bool
img_encrypt_finish (struct img_creation *c)
{
  const struct img_encryption *e = &c->encryption;

  if (!e->given)
    return true;
  if (!e->format) {
    img_error ("encrypt.* is given without encrypt.format=luks");
    return false;
  }
  if (!e->key_secret) {
    img_error ("encrypt.format=luks needs encrypt.key-secret=ID, and --object secret,id=ID,...");
    return false;
  }
  c->opts.secret = find_secret ("encrypt.key-secret", e->key_secret);
  return c->opts.secret != NULL;
}

void
img_encrypt_report (const struct img_creation *c,
                    void (*print) (const char *key, const char *value))
{
  const struct img_encryption *e = &c->encryption;
  const struct {
    const char *key, *value;
  } said[] = {
    { "format", e->format },         { "key-secret", e->key_secret },
    { "cipher-alg", e->cipher_alg }, { "cipher-mode", e->cipher_mode },
    { "ivgen-alg", e->ivgen_alg },   { "ivgen-hash-alg", e->ivgen_hash_alg },
    { "hash-alg", e->hash_alg },     { "iter-time", e->iter_time },
  };
  char key[40];

  for (size_t i = 0; i < sizeof said / sizeof said[0]; i++)
    if (said[i].value) {
      snprintf (key, sizeof key, PREFIX "%s", said[i].key);
      print (key, said[i].value);
    }
}

/* ---- changing keys --------------------------------------------------------------------------- */

/* What PAIRS say, in *CHANGE. */
static bool
parse_change (const struct img_pairs *pairs, struct q_key_change *change)
{
  const char *state = img_pairs_get (pairs, PREFIX "state"), *text;
  uint64_t n;

  *change = (struct q_key_change){ .slot = -1, .iter_time_ms = 2000 };
  for (size_t i = 0; i < pairs->n; i++) {
    static const char *const known[] = { "state",   "new-secret", "old-secret",
                                         "keyslot", "iter-time",  "format" };
    const char *key = pairs->pair[i].key;
    bool found = !img_encrypt_is_key (key);

    for (size_t k = 0; !found && k < sizeof known / sizeof known[0]; k++)
      found = strncmp (key, PREFIX, strlen (PREFIX)) == 0 &&
              strcmp (key + strlen (PREFIX), known[k]) == 0;
    if (!found) {
      img_error ("option '%s' cannot be amended: of encryption only the keys can, by "
                 "encrypt.state, new-secret, old-secret, keyslot and iter-time",
                 key);
      return false;
    }
  }
  if (!state || (strcmp (state, "active") != 0 && strcmp (state, "inactive") != 0)) {
    img_error ("encrypt.state%s%s: active (a key slot is to be filled) or inactive (erased) is "
               "wanted",
               state ? "=" : "", state ? state : "");
    return false;
  }
  change->erase = strcmp (state, "inactive") == 0;
  if ((text = img_pairs_get (pairs, PREFIX "keyslot")) != NULL) {
    if (!img_parse_number (PREFIX "keyslot", text, 0, Q_KEY_SLOTS - 1, &n))
      return false;
    change->slot = (int)n;
  }
  if ((text = img_pairs_get (pairs, PREFIX "iter-time")) != NULL) {
    if (change->erase) {
      img_error (PREFIX "iter-time is for filling a key slot, not for erasing one");
      return false;
    }
    if (!img_parse_number (PREFIX "iter-time", text, 1, MAX_ITER_TIME, &n))
      return false;
    change->iter_time_ms = (unsigned)n;
  }
  if ((text = img_pairs_get (pairs, PREFIX "new-secret")) != NULL &&
      !(change->new_secret = find_secret (PREFIX "new-secret", text)))
    return false;
  if ((text = img_pairs_get (pairs, PREFIX "old-secret")) != NULL &&
      !(change->old_secret = find_secret (PREFIX "old-secret", text)))
    return false;
  return true;
}

int
img_encrypt_amend (const struct img_spec *spec, const struct img_pairs *pairs, bool force)
{
  struct img_spec s = *spec;
  struct q_key_change change;
  struct q_error err = { "" };
  struct q_image *img;
  int r;

  if (!parse_change (pairs, &change))
    return 1;
  s.writable = true;
  s.metadata_only = true;
  img = img_open_spec (&s);
  if (!img)
    return 1;
  change.secret = img_secret_of (img);
  change.force = force;
  r = q_change_keys (img, &change, &err);
  if (r < 0)
    img_error ("%s", err.text);
  return img_close (&img) && r == 0 ? 0 : 1;
}

/* ---- info ------------------------------------------------------------------------------------ */

static bool
look (struct q_image *img, struct q_encryption_info *info)
{
  struct q_error err = { "" };
  int r = q_get_encryption (img, info, &err);

  if (r < 0 && r != -ENOENT)
    img_warning ("%s", err.text);
  return r == 0;
}

static json_t *
slots_json (const struct q_encryption_info *info)
{
  json_t *list = json_array ();

  for (unsigned i = 0; i < Q_KEY_SLOTS; i++) {
    json_t *slot = json_pack ("{s:b, s:I}", "active", info->slot[i].active, "key-offset",
                              (json_int_t)info->slot[i].material_offset);

    if (info->slot[i].active) {
      json_object_set_new (slot, "iters", json_integer (info->slot[i].iterations));
      json_object_set_new (slot, "stripes", json_integer (info->slot[i].stripes));
    }
    json_array_append_new (list, slot);
  }
  return list;
}

json_t *
img_encrypt_json (struct q_image *img)
{
  struct q_encryption_info info;
  json_t *j;

  if (!look (img, &info))
    return NULL;
  if (!info.luks)
    return json_pack ("{s:s}", "format", "aes");
  j = json_pack ("{s:s, s:b, s:s, s:s, s:s, s:s, s:s, s:o, s:I, s:I}", "ivgen-alg", info.ivgen_alg,
                 "detached-header", 0, "hash-alg", info.hash_alg, "cipher-alg", info.cipher_alg,
                 "uuid", info.uuid, "format", "luks", "cipher-mode", info.cipher_mode, "slots",
                 slots_json (&info), "payload-offset", (json_int_t)info.payload_offset,
                 "master-key-iters", (json_int_t)info.master_key_iterations);
  if (j && info.ivgen_hash_alg[0])
    json_object_set_new (j, "ivgen-hash-alg", json_string (info.ivgen_hash_alg));
  return j;
}

void
img_encrypt_text (struct q_image *img)
{
  struct q_encryption_info info;

  if (!look (img, &info))
    return;
  printf ("    encrypt:\n");
  if (!info.luks) {
    printf ("        format: aes\n");
    return;
  }
  printf ("        ivgen alg: %s\n        detached header: false\n        hash alg: %s\n"
          "        cipher alg: %s\n        uuid: %s\n",
          info.ivgen_alg, info.hash_alg, info.cipher_alg, info.uuid);
  if (info.ivgen_hash_alg[0])
    printf ("        ivgen hash alg: %s\n", info.ivgen_hash_alg);
  printf ("        format: luks\n        cipher mode: %s\n        slots:\n", info.cipher_mode);
  for (unsigned i = 0; i < Q_KEY_SLOTS; i++) {
    printf ("            [%u]:\n                active: %s\n", i,
            info.slot[i].active ? "true" : "false");
    if (info.slot[i].active)
      printf ("                iters: %u\n", info.slot[i].iterations);
    printf ("                key offset: %llu\n", (unsigned long long)info.slot[i].material_offset);
    if (info.slot[i].active)
      printf ("                stripes: %u\n", info.slot[i].stripes);
  }
  printf ("        payload offset: %llu\n        master key iters: %u\n",
          (unsigned long long)info.payload_offset, info.master_key_iterations);
}
