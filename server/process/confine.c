/* SPDX-License-Identifier: BSD-3-Clause */

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "confine.h"
#include "export.h"
#include "listen.h"
#include "log.h"
#include "options.h"
#include "sandbox.h"

/* What the file NAME in DIR, or DIR itself if that is NULL, is a symbolic link to. */
static void
want_target (struct sandbox *sb, const char *dir, const char *name)
{
  char path[PATH_MAX];
  int n = snprintf (path, sizeof path, "%s%s%s", dir, name ? "/" : "", name ? name : "");
  char *target = n > 0 && (size_t)n < sizeof path ? realpath (path, NULL) : NULL;

  if (target)
    sandbox_want (sb, SANDBOX_READ, target);
  free (target);
}

/* Credentials and lists of clients, which are read again.  Files are often links to another
 * directory, where the program that renews them keeps them all. */
static void
want_credentials (struct sandbox *sb, const struct object *o)
{
  static const char *const names[] = {
    "ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem", "dh-params.pem", "keys.psk",
  };

  if (o->type >= OBJECT_TLS_X509 && o->type <= OBJECT_TLS_ANON && o->tls.dir) {
    sandbox_want (sb, SANDBOX_READ, o->tls.dir);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
      want_target (sb, o->tls.dir, names[i]);
    for (int i = 0; i < TLS_CREDS_MORE_PAIRS; i++) {
      char cert[32], key[32];
      snprintf (cert, sizeof cert, "server-cert-%d.pem", i);
      snprintf (key, sizeof key, "server-key-%d.pem", i);
      want_target (sb, o->tls.dir, cert);
      want_target (sb, o->tls.dir, key);
    }
  } else if (o->type == OBJECT_AUTHZ_LIST_FILE) {
    sandbox_want (sb, SANDBOX_READ, o->authz.filename);
    want_target (sb, o->authz.filename, NULL);
  }
}

void
confine_list (const struct confine_context *c, struct sandbox *sb)
{
  const struct options *opts = c->options;
  const char *notify = getenv ("NOTIFY_SOCKET");
  const char *state_dir = opts->state_dir;
  char path[PATH_MAX];
  bool images = opts->control || json_array_size (opts->configs) > 0;
  bool writable = images;

  for (unsigned i = 0; i < c->listeners->n; i++)
    if (c->listeners->l[i].unix_path)
      sandbox_want (sb, SANDBOX_REMOVE, c->listeners->l[i].unix_path);
  if (opts->control)
    sandbox_want (sb, SANDBOX_REMOVE, opts->control);
  if (opts->metrics && strncmp (opts->metrics, "unix:", 5) == 0)
    sandbox_want (sb, SANDBOX_REMOVE, opts->metrics + 5);
  if (opts->pid_file)
    sandbox_want (sb, SANDBOX_REMOVE, opts->pid_file);
  if (c->private_socket) {
    snprintf (path, sizeof path, "%s", c->private_socket);
    *strrchr (path, '/') = '\0';
    sandbox_want (sb, SANDBOX_REMOVE_DIR, path);
  }
  for (const struct export *x = c->exports->first; x; x = x->next)
    writable = writable || !x->read_only;
  /* Made now if it is not there: what is made beside it later may be out of reach. */
  if (state_dir && writable &&
      q_state_directory (*state_dir ? state_dir : NULL, path, sizeof path) == 0)
    sandbox_want (sb, SANDBOX_STATE, path);
  if (notify || log_is_remote ())
    sandbox_want (sb, SANDBOX_TELL, notify);
  for (const struct object *o = c->tls ? opts->objects.first : NULL; o; o = o->next)
    want_credentials (sb, o);
  if (images)
    sandbox_want (sb, SANDBOX_IMAGES, NULL);
  if (opts->control && !opts->device && !opts->run)
    sandbox_want (sb, SANDBOX_HANDOVER, NULL);
  for (const struct object *o = opts->objects.first; o; o = o->next)
    sb->secret = sb->secret || o->type == OBJECT_SECRET;
  sb->secret = sb->secret || c->tls || opts->key_file || opts->key_fd >= 0;
}
