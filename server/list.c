/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "list.h"

#ifndef HAVE_LIBNBD

int
list_exports (const struct list_options *options, struct q_error *err)
{
  (void)options;
  snprintf (err->text, sizeof err->text,
            "--list: this nbdcow was built without libnbd; nbdinfo --list does the same");
  return -ENOTSUP;
}

#else

#include <dlfcn.h>
#include <inttypes.h>
#include <libnbd.h>

#include "nbd.h"

/* ---- the library ----------------------------------------------------------------------------- */

#define LIBRARY "libnbd.so.0"

#ifdef LIBNBD_HAVE_NBD_CAN_BLOCK_STATUS_PAYLOAD
#define NEWER_FLAGS(X) X (nbd_can_block_status_payload)
#else
#define NEWER_FLAGS(X)
#endif
#ifdef LIBNBD_HAVE_NBD_GET_EXTENDED_HEADERS_NEGOTIATED
#define EXTENDED_HEADERS(X) X (nbd_get_extended_headers_negotiated)
#else
#define EXTENDED_HEADERS(X)
#endif
#ifdef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
#define TLS_HOSTNAME(X) X (nbd_set_tls_hostname)
#else
#define TLS_HOSTNAME(X)
#endif

#define FUNCTIONS(X)                                                                               \
  X (nbd_create)                                                                                   \
  X (nbd_close)                                                                                    \
  X (nbd_get_error)                                                                                \
  X (nbd_get_errno)                                                                                \
  X (nbd_set_opt_mode)                                                                             \
  X (nbd_set_full_info)                                                                            \
  X (nbd_set_export_name)                                                                          \
  X (nbd_set_tls)                                                                                  \
  X (nbd_set_tls_certificates)                                                                     \
  X (nbd_set_tls_verify_peer)                                                                      \
  X (nbd_set_tls_psk_file)                                                                         \
  X (nbd_set_tls_username)                                                                         \
  X (nbd_connect_unix)                                                                             \
  X (nbd_connect_tcp)                                                                              \
  X (nbd_opt_list)                                                                                 \
  X (nbd_opt_info)                                                                                 \
  X (nbd_opt_list_meta_context)                                                                    \
  X (nbd_opt_abort)                                                                                \
  X (nbd_get_size)                                                                                 \
  X (nbd_get_block_size)                                                                           \
  X (nbd_is_read_only)                                                                             \
  X (nbd_can_flush)                                                                                \
  X (nbd_can_fua)                                                                                  \
  X (nbd_is_rotational)                                                                            \
  X (nbd_can_trim)                                                                                 \
  X (nbd_can_zero)                                                                                 \
  X (nbd_can_df)                                                                                   \
  X (nbd_can_multi_conn)                                                                           \
  X (nbd_can_cache)                                                                                \
  X (nbd_can_fast_zero)                                                                            \
  NEWER_FLAGS (X)                                                                                  \
  EXTENDED_HEADERS (X)                                                                             \
  TLS_HOSTNAME (X)

/* libnbd is loaded by --list alone: if it were linked, every server would load it when it starts,
 * with all that it needs itself, and that takes longer than opening an image.  The functions go by
 * their own names. */
static struct {
#define MEMBER(name) __typeof__ (name) *(name);
  FUNCTIONS (MEMBER)
#undef MEMBER
} lib;

static int
load_library (struct q_error *err)
{
  void *handle = dlopen (LIBRARY, RTLD_NOW | RTLD_LOCAL);

  if (!handle) {
    snprintf (err->text, sizeof err->text, "--list needs libnbd: %s (nbdinfo --list needs it, too)",
              dlerror ());
    return -ENOTSUP;
  }
#define LOAD(name)                                                                                 \
  if (!(lib.name = (__typeof__ (name) *)dlsym (handle, #name))) {                                  \
    snprintf (err->text, sizeof err->text,                                                         \
              "--list: " LIBRARY " has no " #name ": it is older than the one that this nbdcow "   \
              "was built with");                                                                   \
    return -ENOTSUP;                                                                               \
  }
  FUNCTIONS (LOAD)
#undef LOAD
  return 0;
}

/* ---- what is listed -------------------------------------------------------------------------- */

/* Exports and contexts that are listed at most: the other side says how many there are. */
#define MAX_LISTED 10000

struct names {
  unsigned n, allocated;
  struct name {
    char *name, *description;
  } * list;
};

static int
add_name (struct names *names, const char *name, const char *description)
{
  if (names->n == MAX_LISTED)
    return 0;
  if (names->n == names->allocated) {
    unsigned more = names->allocated ? names->allocated * 2 : 16;
    struct name *p = reallocarray (names->list, more, sizeof *p);
    if (!p)
      return -1;
    names->list = p;
    names->allocated = more;
  }
  struct name *entry = &names->list[names->n];
  entry->name = strdup (name);
  entry->description = strdup (description);
  if (!entry->name || !entry->description) {
    free (entry->name);
    free (entry->description);
    return -1;
  }
  names->n++;
  return 0;
}

static void
free_names (struct names *names)
{
  for (unsigned i = 0; i < names->n; i++) {
    free (names->list[i].name);
    free (names->list[i].description);
  }
  free (names->list);
}

static int
on_export (void *opaque, const char *name, const char *description)
{
  return add_name (opaque, name, description);
}

static int
on_context (void *opaque, const char *name)
{
  return add_name (opaque, name, "");
}

/* Text of the other side's choice, fit for a terminal. */
static void
print_text (const char *text)
{
  for (; *text; text++)
    putchar ((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text);
}

static void
print_flags (struct nbd_handle *nbd)
{
  const struct {
    int (*has) (struct nbd_handle *);
    unsigned flag;
    const char *name;
  } known[] = {
    { lib.nbd_is_read_only, NBD_FLAG_READ_ONLY, "readonly" },
    { lib.nbd_can_flush, NBD_FLAG_SEND_FLUSH, "flush" },
    { lib.nbd_can_fua, NBD_FLAG_SEND_FUA, "fua" },
    { lib.nbd_is_rotational, NBD_FLAG_ROTATIONAL, "rotational" },
    { lib.nbd_can_trim, NBD_FLAG_SEND_TRIM, "trim" },
    { lib.nbd_can_zero, NBD_FLAG_SEND_WRITE_ZEROES, "zeroes" },
    { lib.nbd_can_df, NBD_FLAG_SEND_DF, "df" },
    { lib.nbd_can_multi_conn, NBD_FLAG_CAN_MULTI_CONN, "multi" },
    { lib.nbd_can_cache, NBD_FLAG_SEND_CACHE, "cache" },
    { lib.nbd_can_fast_zero, NBD_FLAG_SEND_FAST_ZERO, "fast-zero" },
#ifdef LIBNBD_HAVE_NBD_CAN_BLOCK_STATUS_PAYLOAD
    { lib.nbd_can_block_status_payload, NBD_FLAG_BLOCK_STATUS_PAYLOAD, "block-status-payload" },
#endif
  };
  unsigned flags = NBD_FLAG_HAS_FLAGS;
  bool set[sizeof known / sizeof known[0]];

  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    set[i] = known[i].has (nbd) > 0;
    if (set[i])
      flags |= known[i].flag;
  }
  printf ("  flags: 0x%x (", flags);
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    if (set[i])
      printf (" %s", known[i].name);
  printf (" )\n");
}

static void
print_block_sizes (struct nbd_handle *nbd)
{
  static const struct {
    int which;
    const char *name;
  } sizes[] = {
    { LIBNBD_SIZE_MINIMUM, "min" },
    { LIBNBD_SIZE_PREFERRED, "opt" },
    { LIBNBD_SIZE_MAXIMUM, "max" },
  };

  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    int64_t v = lib.nbd_get_block_size (nbd, sizes[i].which);
    if (v > 0)
      printf ("  %s block: %" PRIi64 "\n", sizes[i].name, v);
  }
}

static int
print_export (struct nbd_handle *nbd, const struct name *x)
{
  struct names contexts = { 0 };

  printf (" export: '");
  print_text (x->name);
  printf ("'\n");
  if (*x->description) {
    printf ("  description: ");
    print_text (x->description);
    putchar ('\n');
  }
  if (lib.nbd_set_export_name (nbd, x->name) < 0)
    return -1;
  if (lib.nbd_opt_info (nbd) == 0) {
    printf ("  size:  %" PRIi64 "\n", lib.nbd_get_size (nbd));
    print_flags (nbd);
    print_block_sizes (nbd);
#ifdef LIBNBD_HAVE_NBD_GET_EXTENDED_HEADERS_NEGOTIATED
    printf ("  transaction size: %s-bit\n",
            lib.nbd_get_extended_headers_negotiated (nbd) > 0 ? "64" : "32");
#endif
  } else
    printf ("  %s\n", lib.nbd_get_error ());
  if (lib.nbd_opt_list_meta_context (nbd, (nbd_context_callback){ on_context, &contexts, NULL }) >=
          0 &&
      contexts.n > 0) {
    printf ("  available meta contexts: %u\n", contexts.n);
    for (unsigned i = 0; i < contexts.n; i++) {
      printf ("   ");
      print_text (contexts.list[i].name);
      putchar ('\n');
    }
  }
  free_names (&contexts);
  return 0;
}

/* libnbd looks for the same files in a directory as QEMU. */
static int
set_tls (struct nbd_handle *nbd, const struct list_options *o)
{
  const struct object *creds = o->tls;
  int r = lib.nbd_set_tls (nbd, LIBNBD_TLS_REQUIRE);

  if (creds->type == OBJECT_TLS_X509) {
    if (r == 0)
      r = lib.nbd_set_tls_certificates (nbd, creds->tls.dir);
    if (r == 0)
      r = lib.nbd_set_tls_verify_peer (nbd, creds->tls.verify_peer);
#ifdef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
    if (r == 0 && o->tls_hostname)
      r = lib.nbd_set_tls_hostname (nbd, o->tls_hostname);
#endif
  } else if (creds->type == OBJECT_TLS_PSK) {
    char *file = NULL;
    if (asprintf (&file, "%s/keys.psk", creds->tls.dir) < 0)
      return -1;
    if (r == 0)
      r = lib.nbd_set_tls_psk_file (nbd, file);
    /* The default is QEMU's. */
    if (r == 0)
      r = lib.nbd_set_tls_username (nbd, creds->tls.username ? creds->tls.username : "qemu");
    free (file);
  }
  return r;
}

static int
list (struct nbd_handle *nbd, const struct list_options *o)
{
  struct names exports = { 0 };

  if (lib.nbd_set_opt_mode (nbd, true) < 0 || lib.nbd_set_full_info (nbd, true) < 0)
    return -1;
  if (o->tls && set_tls (nbd, o) < 0)
    return -1;
  if ((o->socket ? lib.nbd_connect_unix (nbd, o->socket)
                 : lib.nbd_connect_tcp (nbd, o->host, o->port)) < 0)
    return -1;
  int r = lib.nbd_opt_list (nbd, (nbd_list_callback){ on_export, &exports, NULL });
  if (r >= 0) {
    printf ("exports available: %u\n", exports.n);
    for (unsigned i = 0; i < exports.n && r >= 0; i++)
      r = print_export (nbd, &exports.list[i]);
    lib.nbd_opt_abort (nbd);
  }
  free_names (&exports);
  return r;
}

int
list_exports (const struct list_options *o, struct q_error *err)
{
  struct nbd_handle *nbd;
  int r = load_library (err);

  if (r < 0)
    return r;
#ifndef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
  if (o->tls_hostname && (o->socket || strcmp (o->tls_hostname, o->host) != 0)) {
    snprintf (err->text, sizeof err->text,
              "--tls-hostname=%s: this libnbd checks a certificate for no other name than that of "
              "--bind",
              o->tls_hostname);
    return -ENOTSUP;
  }
#endif
  nbd = lib.nbd_create ();
  if (!nbd || list (nbd, o) < 0) {
    r = lib.nbd_get_errno () ? -lib.nbd_get_errno () : -EIO;
    snprintf (err->text, sizeof err->text, "--list: %s%s%s%s: %s", o->socket ? o->socket : o->host,
              o->socket ? "" : " port ", o->socket ? "" : o->port, nbd ? "" : "no connection",
              lib.nbd_get_error ());
  }
  lib.nbd_close (nbd);
  return r;
}

#endif
