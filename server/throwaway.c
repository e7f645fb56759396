/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "secret.h"
#include "slice.h"
#include "throwaway.h"

/* The size and format of the image that is to be the backing file. */
static int
look_at (const struct source *s, uint64_t *size, enum q_format *format, struct q_error *err)
{
  struct q_open_options opts = s->open;
  struct q_image *img;

  opts.read_only = true;
  opts.metadata_only = true;
  opts.data_file = NULL;
  opts.state_dir = NULL;
  int r = q_open (&img, s->filename, &opts, err);
  if (r < 0)
    return r;
  *size = q_size (img);
  *format = q_image_format (img);
  return q_close (&img, err);
}

/* What is decrypted must not lie about in the clear: the overlay of an image with a key gets one of
 * its own, which is known to nobody and gone when the overlay is. */
static int
choose_key (struct source *s, struct q_create_options *opts, struct q_error *err)
{
  if (!s->open.secret && s->open.n_layer_secrets == 0)
    return 0;
  s->overlay_key = secret_random (32, "the key of a temporary overlay", err);
  if (!s->overlay_key)
    return -ENOMEM;
  memmove (s->layer_secrets + 1, s->layer_secrets,
           (SOURCE_LAYERS - 1) * sizeof s->layer_secrets[0]);
  s->layer_secrets[0] = s->overlay_key;
  s->open.layer_secrets = s->layer_secrets;
  if (s->open.n_layer_secrets < SOURCE_LAYERS)
    s->open.n_layer_secrets++;
  opts->secret = s->overlay_key;
  opts->encrypt.iter_time_ms = 1; /* it cannot be guessed, however fast that is tried */
  return 0;
}

int
throwaway_overlay (struct source *s, struct q_error *err)
{
  const char *dir = getenv ("TMPDIR");
  struct q_create_options opts;
  enum q_format format;
  char *path = NULL;
  uint64_t size;

  if (s->open.backing == Q_BACKING_NONE) {
    snprintf (
        err->text, sizeof err->text,
        "%s: a temporary overlay has a backing file: it cannot be used with \"backing\": null",
        s->filename);
    return -EINVAL;
  }
  int r = look_at (s, &size, &format, err);
  if (r < 0)
    return r;

  char *base = realpath (s->filename, NULL);
  r = base ? 0 : -errno;
  if (r == 0 && asprintf (&path, "%s/nbdcow-overlay-XXXXXX", dir && *dir ? dir : "/var/tmp") < 0) {
    path = NULL;
    r = -ENOMEM;
  }
  int fd = r == 0 ? mkstemp (path) : -1;
  if (r == 0 && fd < 0)
    r = -errno;
  if (r < 0) {
    snprintf (err->text, sizeof err->text, "%s: cannot make a temporary overlay '%s': %s",
              s->filename, path ? path : "", strerror (-r));
    free (base);
    free (path);
    return r;
  }
  close (fd);
  assert (path); /* mkstemp has filled it in */

  q_create_options_init (&opts);
  opts.backing_file = base;
  opts.backing_format = format == Q_FORMAT_RAW ? "raw" : "qcow2";
  r = choose_key (s, &opts, err);
  if (r == 0)
    r = q_create (path, size, &opts, err);
  if (r < 0) {
    unlink (path);
    free (base);
    free (path);
    return r;
  }
  if (s->slice) {
    /* The part is now one of the backing file, under its whole name. */
    free (s->slice->filename);
    s->slice->filename = base;
  } else
    free (base);
  free (s->filename);
  s->filename = path;
  s->open.format = Q_FORMAT_QCOW2;
  s->open.backing_named = true;
  s->open.cache = Q_CACHE_BUFFERED;
  s->open.state_dir = NULL;
  s->write_through = false;
  s->ignore_flush = true;
  return 0;
}
