/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "export.h"
#include "log.h"
#include "nbd.h"
#include "status.h"

static void
export_free (struct export *x)
{
  if (!x)
    return;
  free (x->name);
  free (x->description);
  pthread_mutex_destroy (&x->flush_lock);
  free (x);
}

int
exports_add (struct exports *set, const struct export_options *opts, struct q_error *err)
{
  if (exports_find (set, opts->name, strlen (opts->name))) {
    snprintf (err->text, sizeof err->text, "export name \"%s\" is used twice", opts->name);
    return -EEXIST;
  }

  struct export *x = calloc (1, sizeof *x);
  if (x) {
    pthread_mutex_init (&x->flush_lock, NULL);
    x->name = strdup (opts->name);
    x->description = opts->description ? strdup (opts->description) : NULL;
  }
  if (!x || !x->name || (opts->description && !x->description)) {
    export_free (x);
    snprintf (err->text, sizeof err->text, "%s: out of memory", opts->filename);
    return -ENOMEM;
  }
  int r = q_open (&x->img, opts->filename, &opts->open, err);
  if (r < 0) {
    export_free (x);
    return r;
  }

  x->size = q_size (x->img);
  x->read_only = opts->open.read_only;
  x->multi_conn = opts->multi_conn;
  x->write_through = opts->write_through;
  x->ignore_flush = opts->ignore_flush;
  /* A cluster is what is allocated and copied as a whole. */
  x->preferred_block = q_cluster_size (x->img);
  if (x->preferred_block < 4096)
    x->preferred_block = 4096;
  x->contexts = status_contexts;
  x->n_contexts = status_n_contexts;

  if (set->last)
    set->last->next = x;
  else
    set->first = x;
  set->last = x;
  return 0;
}

struct export *
exports_find (const struct exports *set, const void *name, size_t len)
{
  for (struct export *x = set->first; x; x = x->next)
    if (strlen (x->name) == len && (len == 0 || memcmp (x->name, name, len) == 0))
      return x;
  return NULL;
}

int
exports_close (struct exports *set)
{
  int first_error = 0;

  while (set->first) {
    struct export *x = set->first;
    struct q_error err = { "" };
    set->first = x->next;
    int r = q_close (&x->img, &err);
    if (r < 0) {
      log_error ("%s", err.text);
      if (first_error == 0)
        first_error = r;
    }
    export_free (x);
  }
  set->last = NULL;
  return first_error;
}

uint16_t
export_flags (const struct export *x)
{
  unsigned flags =
      NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

  if (x->read_only)
    flags |= NBD_FLAG_READ_ONLY;
  else
    flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
  if (x->multi_conn)
    flags |= NBD_FLAG_CAN_MULTI_CONN;
  return (uint16_t)flags;
}
