/* SPDX-License-Identifier: BSD-3-Clause */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <stdlib.h>
#include <string.h>

#include "passphrase.h"

#define MAX_LAYERS 32

static struct q_secret secret[MAX_LAYERS];
static struct q_layer by_layer[MAX_LAYERS];
static unsigned n_secrets;

/* Moves LEN bytes at DATA to memory of their own. */
static int
keep (struct q_secret *s, const void *data, size_t len)
{
  void *copy = q_secret_alloc (len);

  if (!copy) {
    nbdkit_error ("passphrase: out of memory");
    return -1;
  }
  memcpy (copy, data, len);
  *s = (struct q_secret){ copy, len };
  return 0;
}

int
passphrase_take (const char *value)
{
  char *text = NULL;
  int r;

  /* nbdkit would also take the passphrase itself. */
  if (*value != '-' && *value != '+') {
    nbdkit_error ("passphrase: +FILE, -FD or - is wanted: what is on a command line can be seen by "
                  "everybody on this machine");
    return -1;
  }
  if (n_secrets == MAX_LAYERS) {
    nbdkit_error ("passphrase: more than %d", MAX_LAYERS);
    return -1;
  }
  if (nbdkit_read_password (value, &text) == -1)
    return -1;
  r = keep (&secret[n_secrets], text, strlen (text));
  if (r == 0) {
    by_layer[n_secrets].secret = &secret[n_secrets];
    n_secrets++;
  }
  explicit_bzero (text, strlen (text));
  free (text);
  return r;
}

void
passphrase_apply (struct q_open_options *options)
{
  options->secret = n_secrets == 1 ? &secret[0] : NULL;
  options->layers = by_layer;
  options->n_layers = n_secrets > 1 ? n_secrets : 0;
}

int
passphrase_relock (void)
{
  for (unsigned i = 0; i < n_secrets; i++) {
    struct q_secret old = secret[i];

    if (keep (&secret[i], old.data, old.len) < 0)
      return -1;
    q_secret_free ((void *)old.data, old.len);
  }
  return 0;
}

void
passphrase_forget (void)
{
  for (unsigned i = 0; i < n_secrets; i++)
    q_secret_free ((void *)secret[i].data, secret[i].len);
  n_secrets = 0;
}
