/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "secret.h"
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
  bool keyed = s->open.secret;

  for (unsigned i = 0; i < s->open.n_layers; i++)
    keyed = keyed || s->layers[i].secret;
  if (!keyed)
    return 0;
  s->overlay_key = secret_random (32, "the key of a temporary overlay", err);
  if (!s->overlay_key)
    return -ENOMEM;
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
  free (base);
  if (r == 0 && (r = source_push (s, path, format)) < 0)
    snprintf (err->text, sizeof err->text, "%s: the chain of backing files has more than %d layers",
              s->filename, SOURCE_LAYERS - 1);
  if (r < 0) {
    unlink (path);
    free (path);
    return r;
  }
  s->layers[0].secret = s->overlay_key;
  s->open.cache = Q_CACHE_BUFFERED;
  s->open.state_dir = NULL;
  s->write_through = false;
  s->ignore_flush = true;
  return 0;
}
