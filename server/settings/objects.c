/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyval.h"
#include "objects.h"
#include "path.h"
#include "secret.h"

#define MAX_RULES 1024

static const char *const type_names[] = {
  [OBJECT_SECRET] = "secret",
  [OBJECT_TLS_X509] = "tls-creds-x509",
  [OBJECT_TLS_PSK] = "tls-creds-psk",
  [OBJECT_TLS_ANON] = "tls-creds-anon",
  [OBJECT_AUTHZ_SIMPLE] = "authz-simple",
  [OBJECT_AUTHZ_LIST] = "authz-list",
  [OBJECT_AUTHZ_LIST_FILE] = "authz-list-file",
};
#define N_TYPES (sizeof type_names / sizeof type_names[0])

/* ---- the types ------------------------------------------------------------------------------- */

static void
take_secret (struct object *o, struct members *m)
{
  static const char *const formats[] = { "raw", "base64" };
  unsigned format = 0;

  members_string (m, "data", &o->secret.data);
  members_string (m, "file", &o->secret.file);
  members_choice (m, "format", formats, 2, &format);
  members_string (m, "keyid", &o->secret.keyid);
  members_string (m, "iv", &o->secret.iv);
  o->secret.base64 = format == 1;
  if (!o->secret.data == !o->secret.file)
    members_fail (m, "exactly one of 'data' and 'file' is wanted");
  else if (!o->secret.keyid != !o->secret.iv)
    members_fail (m, "'keyid' and 'iv' are wanted together or not at all");
}

static void
take_tls (struct object *o, struct members *m)
{
  static const char *const endpoints[] = { "client", "server" };
  unsigned endpoint = 0;

  o->tls.verify_peer = o->tls.sanity_check = true;
  members_string (m, "dir", &o->tls.dir);
  members_string (m, "priority", &o->tls.priority);
  members_choice (m, "endpoint", endpoints, 2, &endpoint);
  members_bool (m, "verify-peer", &o->tls.verify_peer);
  if (o->type == OBJECT_TLS_X509) {
    members_bool (m, "sanity-check", &o->tls.sanity_check);
    members_string (m, "passwordid", &o->tls.passwordid);
  }
  if (o->type == OBJECT_TLS_PSK)
    members_string (m, "username", &o->tls.username);
  o->tls.server = endpoint == 1;
  if (o->type != OBJECT_TLS_ANON && !o->tls.dir)
    members_fail (m, "the setting 'dir' is missing");
}

static void
take_rule (struct authz_rule *rule, json_t *value, struct members *list, struct q_error *err)
{
  static const char *const policies[] = { "deny", "allow" }, *const formats[] = { "exact", "glob" };
  struct members m;
  unsigned policy = 0, format = 0;

  members_init (&m, value, "--object authz-list: rules", err);
  if (!json_is_object (value))
    members_fail (&m, "objects are wanted: {\"match\": ..., \"policy\": ...}");
  members_string (&m, "match", &rule->match);
  members_choice (&m, "policy", policies, 2, &policy);
  members_choice (&m, "format", formats, 2, &format);
  rule->allow = policy == 1;
  rule->glob = format == 1;
  if (!rule->match)
    members_fail (&m, "the setting 'match' is missing");
  if (members_end (&m) < 0)
    list->failed = true;
}

/* Rules come as an array in JSON, and as rules.0.match=... on a command line. */
static void
take_list (struct object *o, struct members *m, struct q_error *err)
{
  static const char *const policies[] = { "deny", "allow" };
  unsigned policy = 0;

  members_choice (m, "policy", policies, 2, &policy);
  o->authz.allow = policy == 1;
  json_t *rules = members_get (m, "rules");
  size_t n = json_is_array (rules) ? json_array_size (rules) : json_object_size (rules);
  if (!rules || m->failed)
    return;
  if (n > MAX_RULES) {
    members_fail (m, "%zu rules: the most is %d", n, MAX_RULES);
    return;
  }
  o->authz.rules = calloc (n + 1, sizeof *o->authz.rules);
  if (!o->authz.rules) {
    members_fail (m, "out of memory");
    return;
  }
  for (size_t i = 0; i < n && !m->failed; i++) {
    char index[24];
    snprintf (index, sizeof index, "%zu", i);
    json_t *rule =
        json_is_array (rules) ? json_array_get (rules, i) : json_object_get (rules, index);
    if (rule)
      take_rule (&o->authz.rules[o->authz.n_rules++], rule, m, err);
    else
      members_fail (m, "rules: there is no rule number %zu of %zu", i, n);
  }
}

static void
take_properties (struct object *o, struct members *m, struct q_error *err)
{
  switch (o->type) {
  case OBJECT_SECRET:
    take_secret (o, m);
    break;
  case OBJECT_TLS_X509:
  case OBJECT_TLS_PSK:
  case OBJECT_TLS_ANON:
    take_tls (o, m);
    break;
  case OBJECT_AUTHZ_SIMPLE:
    members_string (m, "identity", &o->authz.identity);
    if (!o->authz.identity)
      members_fail (m, "the setting 'identity' is missing");
    break;
  case OBJECT_AUTHZ_LIST:
    take_list (o, m, err);
    break;
  case OBJECT_AUTHZ_LIST_FILE:
    o->authz.refresh = true;
    members_string (m, "filename", &o->authz.filename);
    members_bool (m, "refresh", &o->authz.refresh);
    if (!o->authz.filename)
      members_fail (m, "the setting 'filename' is missing");
    break;
  }
}

/* ---- the set --------------------------------------------------------------------------------- */

static void
object_free (struct object *o)
{
  if (!o)
    return;
  if (o->type == OBJECT_AUTHZ_LIST)
    free (o->authz.rules);
  if (o->type == OBJECT_SECRET)
    secret_free (o->secret.value);
  json_decref (o->settings);
  free (o);
}

/* The settings in TEXT.  What is wrong with those of a secret is told without showing any. */
static json_t *
parse_settings (const char *text, struct q_error *err)
{
  if (*text == '{')
    return keyval_parse_json (text, "--object", err);
  json_t *settings = keyval_parse (text, "qom-type", err);
  if (!settings && (strncmp (text, "secret,", 7) == 0 || strstr (text, "qom-type=secret")))
    snprintf (err->text, sizeof err->text,
              "--object secret: NAME=VALUE,... is wanted, each NAME once (they are not shown, for "
              "they may be pieces of the secret: a comma in one is written twice)");
  return settings;
}

int
objects_add (struct objects *set, const char *text, struct q_error *err)
{
  json_t *settings = parse_settings (text, err);
  struct object *o = settings ? calloc (1, sizeof *o) : NULL;
  struct members m;
  unsigned type = N_TYPES;

  if (!o) {
    json_decref (settings);
    return -EINVAL;
  }
  o->settings = settings;
  members_init (&m, settings, "--object", err);
  members_choice (&m, "qom-type", type_names, N_TYPES, &type);
  members_string (&m, "id", &o->id);
  if (type == N_TYPES)
    members_fail (&m, "the type is missing: type,id=ID,... is wanted");
  else if (!o->id || !*o->id)
    members_fail (&m, "the setting 'id' is missing");
  else if (objects_find (set, o->id))
    members_fail (&m, "id=%.100s is used twice", o->id);
  else {
    o->type = (enum object_type)type;
    m.secret = o->type == OBJECT_SECRET;
    take_properties (o, &m, err);
  }
  if (members_end (&m) < 0) {
    object_free (o);
    return -EINVAL;
  }
  o->next = set->first;
  set->first = o;
  return 0;
}

const struct object *
objects_find (const struct objects *set, const char *id)
{
  const struct object *o = set ? set->first : NULL;

  while (o && strcmp (o->id, id) != 0)
    o = o->next;
  return o;
}

static const struct object *
find (const struct objects *set, const char *option, const char *id, enum object_type first,
      enum object_type last, struct q_error *err)
{
  const struct object *o = objects_find (set, id);

  if (o && o->type >= first && o->type <= last)
    return o;
  if (o)
    snprintf (err->text, sizeof err->text, "%s=%s: that object is a %s; a %s or the like is wanted",
              option, id, type_names[o->type], type_names[first]);
  else
    snprintf (err->text, sizeof err->text, "%s=%s: no --object has that id", option, id);
  return NULL;
}

const struct object *
objects_find_tls (const struct objects *set, const char *id, struct q_error *err)
{
  return find (set, "--tls-creds", id, OBJECT_TLS_X509, OBJECT_TLS_ANON, err);
}

const struct object *
objects_find_authz (const struct objects *set, const char *id, struct q_error *err)
{
  return find (set, "--tls-authz", id, OBJECT_AUTHZ_SIMPLE, OBJECT_AUTHZ_LIST_FILE, err);
}

/* ---- secrets --------------------------------------------------------------------------------- */

static struct object *
find_secret (const struct objects *set, const char *id)
{
  struct object *o = set->first;

  while (o && (o->type != OBJECT_SECRET || strcmp (o->id, id) != 0))
    o = o->next;
  return o;
}

/* Reads O, and before it the one that it is encrypted with. */
static int
load_secret (struct objects *set, struct object *o, struct q_error *err)
{
  struct object *key = NULL;
  char what[128];
  int r = 0;

  if (o->secret.value)
    return 0;
  snprintf (what, sizeof what, "--object secret,id=%.100s", o->id);
  if (o->secret.loading) {
    snprintf (err->text, sizeof err->text, "%s: is encrypted with itself, by its keyid", what);
    return -ELOOP;
  }
  if (o->secret.keyid) {
    key = find_secret (set, o->secret.keyid);
    if (!key) {
      snprintf (err->text, sizeof err->text, "%s: keyid=%.100s: no --object secret has that id",
                what, o->secret.keyid);
      return -ENOENT;
    }
    o->secret.loading = true;
    r = load_secret (set, key, err);
    o->secret.loading = false;
    if (r < 0)
      return r;
  }
  o->secret.value = o->secret.file ? secret_from_file (o->secret.file, what, err)
                                   : secret_from_text (o->secret.data, what, err);
  if (!o->secret.value)
    return -EINVAL;
  /* From here on it is in locked memory alone. */
  if (o->secret.data)
    explicit_bzero ((char *)o->secret.data, strlen (o->secret.data));
  if (o->secret.base64)
    r = secret_decode_base64 (o->secret.value, what, err);
  if (r == 0 && key)
    r = secret_decrypt (o->secret.value, key->secret.value, o->secret.iv, what, err);
  if (r < 0) {
    secret_free (o->secret.value);
    o->secret.value = NULL;
  }
  return r;
}

int
objects_load_secrets (struct objects *set, const char **visible, struct q_error *err)
{
  int r = 0;

  for (struct object *o = set->first; r == 0 && o; o = o->next)
    if (o->type == OBJECT_SECRET) {
      r = load_secret (set, o, err);
      if (visible && o->secret.data && !o->secret.keyid)
        *visible = o->id;
    }
  return r;
}

int
objects_carry_over (struct objects *set, const struct objects *old, struct q_error *err)
{
  for (struct object *o = set->first; o; o = o->next) {
    const struct object *before = objects_find (old, o->id);
    bool same = before && json_equal (o->settings, before->settings);

    if (o->type != OBJECT_SECRET && !same) {
      snprintf (err->text, sizeof err->text,
                "--object %s,id=%.100s: only secrets can be added and changed while the server "
                "runs",
                type_names[o->type], o->id);
      return -ENOTSUP;
    }
    if (o->type != OBJECT_SECRET || !same || !before->secret.value)
      continue;
    o->secret.value = secret_copy (before->secret.value, "--object secret", err);
    if (!o->secret.value)
      return -ENOMEM;
  }
  return 0;
}

const struct q_secret *
objects_find_secret (const struct objects *set, const char *option, const char *id,
                     struct q_error *err)
{
  const struct object *o = find (set, option, id, OBJECT_SECRET, OBJECT_SECRET, err);

  return o ? o->secret.value : NULL;
}

int
objects_make_absolute (struct objects *set, struct q_error *err)
{
  for (struct object *o = set->first; o; o = o->next) {
    bool tls = o->type >= OBJECT_TLS_X509 && o->type <= OBJECT_TLS_ANON;
    const char *member = tls ? "dir" : "filename";
    const char **name = tls                                 ? &o->tls.dir
                        : o->type == OBJECT_AUTHZ_LIST_FILE ? &o->authz.filename
                                                            : NULL;
    if (!name || !*name)
      continue;
    char *path = path_absolute (*name);
    json_t *value = path ? json_string (path) : NULL;
    free (path);
    if (!value || json_object_set_new (o->settings, member, value) < 0) {
      snprintf (err->text, sizeof err->text, "--object id=%.100s: %s=%.200s: out of memory", o->id,
                member, *name);
      return -ENOMEM;
    }
    *name = json_string_value (value);
  }
  return 0;
}

void
objects_free (struct objects *set)
{
  while (set->first) {
    struct object *o = set->first;
    set->first = o->next;
    object_free (o);
  }
}
