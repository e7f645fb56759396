/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#include <gnutls/x509.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tls-creds.h"

/* What a file of credentials may have at most: bytes, certificates, users. */
#define MAX_FILE  (1024 * 1024)
#define MAX_CERTS 64
#define MAX_USERS 10000
/* Certificates beside server-cert.pem: as many as QEMU takes. */

/* TLS 1.2 and later.  A priority= of the user's replaces all of it. */
#define PRIORITY "NORMAL:-VERS-TLS1.0:-VERS-TLS1.1"

struct user {
  char *name;
  gnutls_datum_t key;
};

struct tls_creds {
  atomic_uint refs;
  enum object_type type;
  bool verify_peer;
  gnutls_priority_t priority;
  gnutls_dh_params_t dh;
  gnutls_certificate_credentials_t x509;
  gnutls_psk_server_credentials_t psk;
  gnutls_anon_server_credentials_t anon;
  struct user *users;
  unsigned n_users;
};

/* What is being loaded, for all the steps of it. */
struct loading {
  struct tls_creds *creds;
  const struct object *object;
  const struct objects *secrets;
  struct q_error *err;
};

static int __attribute__ ((format (printf, 3, 4)))
fail (struct loading *l, int code, const char *fmt, ...)
{
  char text[800];
  va_list args;

  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  snprintf (l->err->text, sizeof l->err->text, "--object id=%.100s: %s", l->object->id, text);
  return code;
}

static int
fail_gnutls (struct loading *l, const char *what, int r)
{
  return fail (l, r == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL, "%s: %s", what,
               gnutls_strerror (r));
}

/* ---- files ----------------------------------------------------------------------------------- */

/* Without a buffer of stdio's, which would keep a copy. */
static int
read_whole (int fd, gnutls_datum_t *data)
{
  struct stat st;
  size_t n = 0;
  ssize_t got = 1;

  if (fstat (fd, &st) < 0)
    return -errno;
  if (!S_ISREG (st.st_mode))
    return -EINVAL;
  if (st.st_size > MAX_FILE)
    return -EFBIG;
  data->data = gnutls_malloc ((size_t)st.st_size + 1);
  if (!data->data)
    return -ENOMEM;
  while (n < (size_t)st.st_size && got != 0) {
    got = read (fd, data->data + n, (size_t)st.st_size - n);
    if (got > 0)
      n += (size_t)got;
    else if (got < 0 && errno != EINTR)
      break;
  }
  data->data[n] = '\0';
  data->size = (unsigned)n;
  return got < 0 ? -errno : 0;
}

/* Keys have been in it. */
static void
forget (gnutls_datum_t *data)
{
  if (data->data)
    gnutls_memset (data->data, 0, data->size);
  gnutls_free (data->data);
  *data = (gnutls_datum_t){ NULL, 0 };
}

/* The contents of DIR/NAME, and its PATH for messages, which is good until the next call.  Returns
 * 1, 0 if it is not there and need not be, or -errno. */
static int
read_file (struct loading *l, const char *name, bool required, gnutls_datum_t *data, char *path,
           size_t path_size)
{
  int r;

  *data = (gnutls_datum_t){ NULL, 0 };
  if ((size_t)snprintf (path, path_size, "%s/%s", l->object->tls.dir, name) >= path_size)
    return fail (l, -ENAMETOOLONG, "dir: the name of the directory is too long");
  int fd = open (path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0 && errno == ENOENT && !required)
    return 0;
  if (fd < 0)
    r = -errno;
  else {
    r = read_whole (fd, data);
    close (fd);
  }
  if (r == 0)
    return 1;
  forget (data);
  return fail (l, r, "%s: %s", path, strerror (-r));
}

/* The password that the private keys are encrypted with; NULL without one. */
static int
find_password (struct loading *l, const char **password)
{
  const char *id = l->object->tls.passwordid;
  struct q_error why = { "" };

  *password = NULL;
  if (!id)
    return 0;
  const struct q_secret *s = objects_find_secret (l->secrets, "passwordid", id, &why);
  if (!s)
    return fail (l, -EINVAL, "%s", *why.text ? why.text : "passwordid: that secret is not loaded");
  if (strlen (s->data) != s->len)
    return fail (l, -EINVAL, "passwordid=%.100s: a password has no null character in it", id);
  *password = s->data;
  return 0;
}

/* ---- X.509: sanity --------------------------------------------------------------------------- */

static int
check_times (struct loading *l, const char *path, gnutls_x509_crt_t crt)
{
  time_t now = time (NULL);

  if (gnutls_x509_crt_get_expiration_time (crt) < now)
    return fail (l, -EINVAL, "%s: the certificate has expired", path);
  if (gnutls_x509_crt_get_activation_time (crt) > now)
    return fail (l, -EINVAL, "%s: the certificate is not valid yet", path);
  return 0;
}

static int
check_ca (struct loading *l, const char *path, gnutls_x509_crt_t crt)
{
  unsigned usage, critical;

  if (gnutls_x509_crt_get_basic_constraints (crt, NULL, NULL, NULL) <= 0)
    return fail (l, -EINVAL, "%s: this is no certificate of a certification authority", path);
  if (gnutls_x509_crt_get_key_usage (crt, &usage, &critical) == 0 &&
      !(usage & GNUTLS_KEY_KEY_CERT_SIGN))
    return fail (l, -EINVAL, "%s: key usage: the authority's key is not for signing certificates",
                 path);
  return check_times (l, path, crt);
}

static int
check_server (struct loading *l, const char *path, gnutls_x509_crt_t crt)
{
  unsigned usage, critical;

  if (gnutls_x509_crt_get_basic_constraints (crt, NULL, NULL, NULL) > 0)
    return fail (l, -EINVAL, "%s: a server's certificate is wanted, not an authority's", path);
  if (gnutls_x509_crt_get_key_usage (crt, &usage, &critical) == 0 &&
      !(usage & (GNUTLS_KEY_DIGITAL_SIGNATURE | GNUTLS_KEY_KEY_ENCIPHERMENT)))
    return fail (l, -EINVAL, "%s: key usage: the key is for neither signatures nor encipherment",
                 path);
  if (!gnutls_x509_crt_check_key_purpose (crt, GNUTLS_KP_TLS_WWW_SERVER, 0))
    return fail (l, -EINVAL, "%s: key purpose: the certificate is not for TLS servers", path);
  return check_times (l, path, crt);
}

struct certs {
  gnutls_x509_crt_t *list;
  unsigned n;
};

static int
import_certs (struct loading *l, const char *path, const gnutls_datum_t *pem, struct certs *certs)
{
  int r = gnutls_x509_crt_list_import2 (&certs->list, &certs->n, pem, GNUTLS_X509_FMT_PEM, 0);
  if (r < 0)
    return fail_gnutls (l, path, r);
  if (certs->n > MAX_CERTS)
    return fail (l, -E2BIG, "%s: %u certificates: the most is %d", path, certs->n, MAX_CERTS);
  return 0;
}

static void
free_certs (struct certs *certs)
{
  for (unsigned i = 0; i < certs->n; i++)
    gnutls_x509_crt_deinit (certs->list[i]);
  gnutls_free (certs->list);
}

/* What would otherwise be found out by the first client, and not be told here. */
static int
check_chain (struct loading *l, const char *path, const struct certs *own, const struct certs *cas)
{
  unsigned status = 0;
  int r = check_server (l, path, own->list[0]);

  if (r < 0 || cas->n == 0)
    return r;
  r = gnutls_x509_crt_list_verify (own->list, own->n, cas->list, cas->n, NULL, 0, 0, &status);
  if (r < 0)
    return fail_gnutls (l, path, r);
  if (status != 0) {
    gnutls_datum_t why = { NULL, 0 };
    gnutls_certificate_verification_status_print (status, GNUTLS_CRT_X509, &why, 0);
    r = fail (l, -EINVAL, "%s does not agree with ca-cert.pem: %s", path,
              why.data ? (char *)why.data : "unknown reason");
    gnutls_free (why.data);
  }
  return r;
}

/* ---- X.509 ----------------------------------------------------------------------------------- */

static int
load_authority (struct loading *l, struct certs *cas)
{
  struct tls_creds *c = l->creds;
  gnutls_datum_t pem;
  char path[4096];

  int r = read_file (l, "ca-cert.pem", c->verify_peer, &pem, path, sizeof path);
  if (r <= 0)
    return r;
  r = import_certs (l, path, &pem, cas);
  for (unsigned i = 0; r == 0 && l->object->tls.sanity_check && i < cas->n; i++)
    r = check_ca (l, path, cas->list[i]);
  if (r == 0) {
    int e = gnutls_certificate_set_x509_trust_mem (c->x509, &pem, GNUTLS_X509_FMT_PEM);
    if (e < 0)
      r = fail_gnutls (l, path, e);
  }
  forget (&pem);
  if (r < 0)
    return r;

  r = read_file (l, "ca-crl.pem", false, &pem, path, sizeof path);
  if (r > 0) {
    int e = gnutls_certificate_set_x509_crl_mem (c->x509, &pem, GNUTLS_X509_FMT_PEM);
    r = e < 0 ? fail_gnutls (l, path, e) : 0;
  }
  forget (&pem);
  return r;
}

static int
use_pair (struct loading *l, const struct certs *cas, const char *path, const gnutls_datum_t *cert,
          const char *key_path, const gnutls_datum_t *key)
{
  struct certs own = { NULL, 0 };
  const char *password;

  int r = find_password (l, &password);
  if (r == 0)
    r = import_certs (l, path, cert, &own);
  if (r == 0 && l->object->tls.sanity_check)
    r = check_chain (l, path, &own, cas);
  if (r == 0) {
    int e = gnutls_certificate_set_x509_key_mem2 (l->creds->x509, cert, key, GNUTLS_X509_FMT_PEM,
                                                  password, 0);
    if (e < 0)
      r = fail (l, -EINVAL, "%s and %s: %s", path, key_path, gnutls_strerror (e));
  }
  free_certs (&own);
  return r;
}

/* A certificate and its key, from two files.  Returns 1, 0 if neither is there, or -errno. */
static int
load_pair (struct loading *l, const struct certs *cas, const char *cert_name, const char *key_name)
{
  gnutls_datum_t cert = { NULL, 0 }, key = { NULL, 0 };
  char path[4096], key_path[4096];

  int has_cert = read_file (l, cert_name, false, &cert, path, sizeof path);
  int has_key = has_cert < 0 ? 0 : read_file (l, key_name, false, &key, key_path, sizeof key_path);
  int r = has_cert < 0 ? has_cert : has_key;
  if (r >= 0 && has_cert != has_key)
    r = fail (l, -ENOENT, "%s: %s, whose %s it is, is missing", has_cert ? path : key_path,
              has_cert ? key_name : cert_name, has_cert ? "certificate" : "key");
  else if (r > 0)
    r = use_pair (l, cas, path, &cert, key_path, &key);
  if (r == 0 && has_key > 0)
    r = 1;
  forget (&key);
  forget (&cert);
  return r;
}

/* The server's certificates, of which each client gets one that it understands: server-cert.pem and
 * then server-cert-0.pem and so on, up to the first that is not there. */
static int
load_own (struct loading *l, const struct certs *cas)
{
  int r = load_pair (l, cas, "server-cert.pem", "server-key.pem");
  int n = r;

  for (int i = 0; r >= 0 && i < TLS_CREDS_MORE_PAIRS; i++) {
    char cert_name[32], key_name[32];
    snprintf (cert_name, sizeof cert_name, "server-cert-%d.pem", i);
    snprintf (key_name, sizeof key_name, "server-key-%d.pem", i);
    r = load_pair (l, cas, cert_name, key_name);
    if (r == 0)
      break;
    n += r;
  }
  if (r >= 0 && n == 0)
    r = fail (l, -ENOENT, "%s/server-cert.pem: %s", l->object->tls.dir, strerror (ENOENT));
  return r < 0 ? r : 0;
}

static int
load_x509 (struct loading *l)
{
  struct tls_creds *c = l->creds;
  struct certs cas = { NULL, 0 };
  int e = gnutls_certificate_allocate_credentials (&c->x509);

  if (e < 0)
    return fail_gnutls (l, "X.509", e);
  int r = load_authority (l, &cas);
  if (r == 0)
    r = load_own (l, &cas);
  free_certs (&cas);
  if (r == 0 && c->dh)
    gnutls_certificate_set_dh_params (c->x509, c->dh);
  return r;
}

/* ---- pre-shared keys ------------------------------------------------------------------------- */

static int
by_name (const void *a, const void *b)
{
  return strcmp (((const struct user *)a)->name, ((const struct user *)b)->name);
}

/* Called in handshakes.  A user who is not there gets a key that no client has, so that whether
 * a name exists cannot be found out. */
static int
find_key (gnutls_session_t session, const gnutls_datum_t *name, gnutls_datum_t *key)
{
  const struct tls_creds *c = gnutls_session_get_ptr (session);
  struct user wanted = { .name = gnutls_calloc (1, name->size + 1u) };

  if (!wanted.name)
    return -1;
  if (name->size > 0)
    memcpy (wanted.name, name->data, name->size);
  const struct user *u = strlen (wanted.name) == name->size
                             ? bsearch (&wanted, c->users, c->n_users, sizeof *u, by_name)
                             : NULL;
  gnutls_free (wanted.name);
  if (!u)
    return 1;
  key->data = gnutls_malloc (u->key.size);
  if (!key->data)
    return -1;
  memcpy (key->data, u->key.data, u->key.size);
  key->size = u->key.size;
  return 0;
}

static int
add_user (struct loading *l, const char *path, unsigned line, char *text)
{
  struct tls_creds *c = l->creds;
  char *colon = strchr (text, ':');

  if (!colon || colon == text || !colon[1])
    return fail (l, -EINVAL, "%s: line %u: USER:HEXADECIMAL-KEY is wanted", path, line);
  if (c->n_users == MAX_USERS)
    return fail (l, -E2BIG, "%s: more than %d users", path, MAX_USERS);
  *colon = '\0';
  struct user *u = &c->users[c->n_users];
  gnutls_datum_t hex = { (unsigned char *)colon + 1, (unsigned)strlen (colon + 1) };
  int e = gnutls_hex_decode2 (&hex, &u->key);
  if (e < 0)
    return fail (l, -EINVAL, "%s: line %u: the key of user %.100s is not hexadecimal", path, line,
                 text);
  u->name = gnutls_strdup (text);
  if (!u->name) {
    forget (&u->key);
    return fail (l, -ENOMEM, "out of memory");
  }
  c->n_users++;
  return 0;
}

static int
load_psk (struct loading *l)
{
  struct tls_creds *c = l->creds;
  gnutls_datum_t file;
  char path[4096], *rest, *text;
  unsigned line = 0;

  int e = gnutls_psk_allocate_server_credentials (&c->psk);
  if (e < 0)
    return fail_gnutls (l, "PSK", e);
  int r = read_file (l, "keys.psk", true, &file, path, sizeof path);
  if (r < 0)
    return r;
  c->users = calloc (MAX_USERS, sizeof *c->users);
  r = c->users ? 0 : fail (l, -ENOMEM, "out of memory");
  rest = (char *)file.data;
  while (r == 0 && (text = strsep (&rest, "\n")) != NULL) {
    line++;
    text[strcspn (text, "\r")] = '\0';
    if (*text)
      r = add_user (l, path, line, text);
  }
  forget (&file);
  if (r < 0)
    return r;
  if (!c->users || c->n_users == 0)
    return fail (l, -EINVAL, "%s: there is no user in it", path);
  qsort (c->users, c->n_users, sizeof *c->users, by_name);
  gnutls_psk_set_server_credentials_function2 (c->psk, find_key);
  if (c->dh)
    gnutls_psk_set_server_dh_params (c->psk, c->dh);
  return 0;
}

/* ---- all of them ----------------------------------------------------------------------------- */

static int
load_anon (struct loading *l)
{
  struct tls_creds *c = l->creds;
  int e = gnutls_anon_allocate_server_credentials (&c->anon);

  if (e == 0)
    e = gnutls_anon_set_server_known_dh_params (c->anon, GNUTLS_SEC_PARAM_MEDIUM);
  if (e < 0)
    return fail_gnutls (l, "anonymous credentials", e);
  if (c->dh)
    gnutls_anon_set_server_dh_params (c->anon, c->dh);
  return 0;
}

/* Groups for key exchange that clients do not negotiate by themselves. */
static int
load_dh (struct loading *l)
{
  gnutls_datum_t pem;
  char path[4096];

  if (!l->object->tls.dir)
    return 0;
  int r = read_file (l, "dh-params.pem", false, &pem, path, sizeof path);
  if (r <= 0)
    return r;
  int e = gnutls_dh_params_init (&l->creds->dh);
  if (e == 0)
    e = gnutls_dh_params_import_pkcs3 (l->creds->dh, &pem, GNUTLS_X509_FMT_PEM);
  forget (&pem);
  return e < 0 ? fail_gnutls (l, path, e) : 0;
}

static int
load_priority (struct loading *l)
{
  static const char *const suffix[] = {
    [OBJECT_TLS_X509] = "",
    [OBJECT_TLS_PSK] = ":+ECDHE-PSK:+DHE-PSK:+PSK",
    [OBJECT_TLS_ANON] = ":+ANON-ECDH:+ANON-DH",
  };
  const char *base = l->object->tls.priority ? l->object->tls.priority : PRIORITY, *where = NULL;
  char *text = NULL;

  if (asprintf (&text, "%s%s", base, suffix[l->object->type]) < 0)
    return fail (l, -ENOMEM, "out of memory");
  int e = gnutls_priority_init (&l->creds->priority, text, &where);
  int r = e < 0 ? fail (l, -EINVAL, "priority=%.200s: %s, at \"%.100s\"", base, gnutls_strerror (e),
                        where ? where : "")
                : 0;
  free (text);
  return r;
}

struct tls_creds *
tls_creds_load (const struct object *o, const struct objects *secrets, struct q_error *err)
{
  struct loading l = { .object = o, .secrets = secrets, .err = err };

  l.creds = calloc (1, sizeof *l.creds);
  if (!l.creds) {
    fail (&l, -ENOMEM, "out of memory");
    return NULL;
  }
  atomic_init (&l.creds->refs, 1);
  l.creds->type = o->type;
  l.creds->verify_peer = o->tls.verify_peer;
  int r = load_priority (&l);
  if (r == 0)
    r = load_dh (&l);
  if (r == 0)
    r = o->type == OBJECT_TLS_X509  ? load_x509 (&l)
        : o->type == OBJECT_TLS_PSK ? load_psk (&l)
                                    : load_anon (&l);
  if (r < 0) {
    tls_creds_unref (l.creds);
    return NULL;
  }
  return l.creds;
}

struct tls_creds *
tls_creds_ref (struct tls_creds *c)
{
  atomic_fetch_add (&c->refs, 1);
  return c;
}

void
tls_creds_unref (struct tls_creds *c)
{
  if (!c || atomic_fetch_sub (&c->refs, 1) > 1)
    return;
  if (c->x509)
    gnutls_certificate_free_credentials (c->x509);
  if (c->psk)
    gnutls_psk_free_server_credentials (c->psk);
  if (c->anon)
    gnutls_anon_free_server_credentials (c->anon);
  if (c->priority)
    gnutls_priority_deinit (c->priority);
  if (c->dh)
    gnutls_dh_params_deinit (c->dh);
  for (unsigned i = 0; i < c->n_users; i++) {
    gnutls_free (c->users[i].name);
    forget (&c->users[i].key);
  }
  free (c->users);
  free (c);
}

/* ---- use ------------------------------------------------------------------------------------- */

/* Sessions keep pointing to it. */
static gnutls_typed_vdata_st client_purpose = {
  .type = GNUTLS_DT_KEY_PURPOSE_OID,
  .data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT,
};

int
tls_creds_set (const struct tls_creds *c, gnutls_session_t session)
{
  int r = gnutls_priority_set (session, c->priority);

  if (r < 0)
    return r;
  gnutls_session_set_ptr (session, (void *)c);
  switch (c->type) {
  case OBJECT_TLS_PSK:
    return gnutls_credentials_set (session, GNUTLS_CRD_PSK, c->psk);
  case OBJECT_TLS_ANON:
    return gnutls_credentials_set (session, GNUTLS_CRD_ANON, c->anon);
  default:
    break;
  }
  r = gnutls_credentials_set (session, GNUTLS_CRD_CERTIFICATE, c->x509);
  if (r < 0 || !c->verify_peer)
    return r;
  gnutls_certificate_server_set_request (session, GNUTLS_CERT_REQUIRE);
  /* The handshake fails unless the client's certificate is one for TLS clients, and by the
   * authority. */
  gnutls_session_set_verify_cert2 (session, &client_purpose, 1, 0);
  return 0;
}

static char *
certificate_name (gnutls_session_t session)
{
  unsigned n = 0;
  const gnutls_datum_t *der = gnutls_certificate_get_peers (session, &n);
  gnutls_datum_t name = { NULL, 0 };
  gnutls_x509_crt_t crt;

  if (!der || n == 0 || gnutls_x509_crt_init (&crt) < 0)
    return NULL;
  if (gnutls_x509_crt_import (crt, &der[0], GNUTLS_X509_FMT_DER) < 0 ||
      gnutls_x509_crt_get_dn2 (crt, &name) < 0)
    name.data = NULL;
  gnutls_x509_crt_deinit (crt);
  return (char *)name.data;
}

char *
tls_creds_identity (const struct tls_creds *c, gnutls_session_t session)
{
  if (c->type == OBJECT_TLS_PSK) {
    const char *user = gnutls_psk_server_get_username (session);
    return user ? gnutls_strdup (user) : NULL;
  }
  return c->type == OBJECT_TLS_X509 && c->verify_peer ? certificate_name (session) : NULL;
}
