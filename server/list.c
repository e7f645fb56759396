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

#include <inttypes.h>
#include <libnbd.h>

#include "nbd.h"

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
  static const struct {
    int (*has) (struct nbd_handle *);
    unsigned flag;
    const char *name;
  } known[] = {
    { nbd_is_read_only, NBD_FLAG_READ_ONLY, "readonly" },
    { nbd_can_flush, NBD_FLAG_SEND_FLUSH, "flush" },
    { nbd_can_fua, NBD_FLAG_SEND_FUA, "fua" },
    { nbd_is_rotational, NBD_FLAG_ROTATIONAL, "rotational" },
    { nbd_can_trim, NBD_FLAG_SEND_TRIM, "trim" },
    { nbd_can_zero, NBD_FLAG_SEND_WRITE_ZEROES, "zeroes" },
    { nbd_can_df, NBD_FLAG_SEND_DF, "df" },
    { nbd_can_multi_conn, NBD_FLAG_CAN_MULTI_CONN, "multi" },
    { nbd_can_cache, NBD_FLAG_SEND_CACHE, "cache" },
    { nbd_can_fast_zero, NBD_FLAG_SEND_FAST_ZERO, "fast-zero" },
#ifdef LIBNBD_HAVE_NBD_CAN_BLOCK_STATUS_PAYLOAD
    { nbd_can_block_status_payload, NBD_FLAG_BLOCK_STATUS_PAYLOAD, "block-status-payload" },
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
    int64_t v = nbd_get_block_size (nbd, sizes[i].which);
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
  if (nbd_set_export_name (nbd, x->name) < 0)
    return -1;
  if (nbd_opt_info (nbd) == 0) {
    printf ("  size:  %" PRIi64 "\n", nbd_get_size (nbd));
    print_flags (nbd);
    print_block_sizes (nbd);
#ifdef LIBNBD_HAVE_NBD_GET_EXTENDED_HEADERS_NEGOTIATED
    printf ("  transaction size: %s-bit\n",
            nbd_get_extended_headers_negotiated (nbd) > 0 ? "64" : "32");
#endif
  } else
    printf ("  %s\n", nbd_get_error ());
  if (nbd_opt_list_meta_context (nbd, (nbd_context_callback){ on_context, &contexts, NULL }) >= 0 &&
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
  int r = nbd_set_tls (nbd, LIBNBD_TLS_REQUIRE);

  if (creds->type == OBJECT_TLS_X509) {
    if (r == 0)
      r = nbd_set_tls_certificates (nbd, creds->tls.dir);
    if (r == 0)
      r = nbd_set_tls_verify_peer (nbd, creds->tls.verify_peer);
#ifdef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
    if (r == 0 && o->tls_hostname)
      r = nbd_set_tls_hostname (nbd, o->tls_hostname);
#endif
  } else if (creds->type == OBJECT_TLS_PSK) {
    char *file = NULL;
    if (asprintf (&file, "%s/keys.psk", creds->tls.dir) < 0)
      return -1;
    if (r == 0)
      r = nbd_set_tls_psk_file (nbd, file);
    /* The default is QEMU's. */
    if (r == 0)
      r = nbd_set_tls_username (nbd, creds->tls.username ? creds->tls.username : "qemu");
    free (file);
  }
  return r;
}

static int
list (struct nbd_handle *nbd, const struct list_options *o)
{
  struct names exports = { 0 };

  if (nbd_set_opt_mode (nbd, true) < 0 || nbd_set_full_info (nbd, true) < 0)
    return -1;
  if (o->tls && set_tls (nbd, o) < 0)
    return -1;
  if ((o->socket ? nbd_connect_unix (nbd, o->socket) : nbd_connect_tcp (nbd, o->host, o->port)) < 0)
    return -1;
  int r = nbd_opt_list (nbd, (nbd_list_callback){ on_export, &exports, NULL });
  if (r >= 0) {
    printf ("exports available: %u\n", exports.n);
    for (unsigned i = 0; i < exports.n && r >= 0; i++)
      r = print_export (nbd, &exports.list[i]);
    nbd_opt_abort (nbd);
  }
  free_names (&exports);
  return r;
}

int
list_exports (const struct list_options *o, struct q_error *err)
{
  struct nbd_handle *nbd;
  int r = 0;

#ifndef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
  if (o->tls_hostname && (o->socket || strcmp (o->tls_hostname, o->host) != 0)) {
    snprintf (err->text, sizeof err->text,
              "--tls-hostname=%s: this libnbd checks a certificate for no other name than that of "
              "--bind",
              o->tls_hostname);
    return -ENOTSUP;
  }
#endif
  nbd = nbd_create ();
  if (!nbd || list (nbd, o) < 0) {
    r = nbd_get_errno () ? -nbd_get_errno () : -EIO;
    snprintf (err->text, sizeof err->text, "--list: %s%s%s%s: %s", o->socket ? o->socket : o->host,
              o->socket ? "" : " port ", o->socket ? "" : o->port, nbd ? "" : "no connection",
              nbd_get_error ());
  }
  nbd_close (nbd);
  return r;
}

#endif
