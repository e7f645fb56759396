/* SPDX-License-Identifier: BSD-3-Clause
 *
 * --object: what QEMU's tools define by "type,id=ID,..." or JSON and use by its id later: secrets,
 * TLS credentials, and who is authorised.
 */

#ifndef OBJECTS_H
#define OBJECTS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

/* How many server-cert-N.pem are looked for in an x509 object's dir, from 0. */
#define TLS_CREDS_MORE_PAIRS 4

enum object_type {
  OBJECT_SECRET,
  OBJECT_TLS_X509,
  OBJECT_TLS_PSK,
  OBJECT_TLS_ANON,
  OBJECT_AUTHZ_SIMPLE,
  OBJECT_AUTHZ_LIST,
  OBJECT_AUTHZ_LIST_FILE,
};

struct authz_rule {
  const char *match;
  bool allow;
  bool glob; /* a pattern, not the exact name */
};

/* Strings that were not given are NULL. */
struct object {
  struct object *next;
  enum object_type type;
  const char *id;
  union {
    struct {
      const char *data, *file; /* exactly one of them is given */
      bool base64;
      const char *keyid, *iv; /* the secret that it is encrypted with */
      struct q_secret *value; /* NULL until objects_load_secrets */
      bool loading;
    } secret;
    struct {
      const char *dir, *priority;
      bool server; /* endpoint */
      bool verify_peer, sanity_check;
      const char *passwordid; /* of the private key */
      const char *username;   /* PSK */
    } tls;
    struct {
      const char *identity; /* simple */
      bool allow;           /* list: what holds if no rule matches */
      struct authz_rule *rules;
      unsigned n_rules;
      const char *filename; /* list-file */
      bool refresh;
    } authz;
  };
  json_t *settings; /* what the strings point into */
};

struct objects {
  struct object *first;
};

/* TEXT is the value of --object.  Returns 0 or -errno. */
int objects_add (struct objects *set, const char *text, struct q_error *err);
/* SET may be NULL. */
const struct object *objects_find (const struct objects *set, const char *id);
/* For SET, read from a configuration that is to take the place of the one that OLD, loaded, is
 * from: gives secrets of the same settings their values.  Everything else than secrets has to be
 * the same in both: -ENOTSUP if not. */
int objects_carry_over (struct objects *set, const struct objects *old, struct q_error *err);
/* Reads all secrets that have no value yet: before privileges are dropped, and after the last fork,
 * which unlocks memory. *VISIBLE (may be NULL) is set to the id of one that is on the command line
 * for all to see, if there is one. */
int objects_load_secrets (struct objects *set, const char **visible, struct q_error *err);
/* The secret with that id, loaded; OPTION names it. */
const struct q_secret *objects_find_secret (const struct objects *set, const char *option,
                                            const char *id, struct q_error *err);
/* The credentials of --tls-creds: of one of the TLS types. */
const struct object *objects_find_tls (const struct objects *set, const char *id,
                                       struct q_error *err);
/* The list of --tls-authz: of one of the authz types. */
const struct object *objects_find_authz (const struct objects *set, const char *id,
                                         struct q_error *err);
/* The files that they name are looked for again when they are read anew: from here on, also under
 * another working directory. */
int objects_make_absolute (struct objects *set, struct q_error *err);
void objects_free (struct objects *set);

#endif /* OBJECTS_H */
