/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img commit: writes what an overlay, and the layers between, have into a layer below.
 *
 * Each layer is opened by itself.  The ones above the base answer, from the top down, what they
 * have; what none of them has is in the base already.  A layer that is shorter than those above it
 * reads as zeros past its end, and hides what the base has there.
 *
 * Invariant: the overlay is emptied after the base is on stable storage.  A crash at any point
 * leaves an overlay that shows what it showed before, over a base that may have some or all of it.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

#define PIECE  (8u << 20)
#define BUFFER (1u << 20)

struct commit {
  struct img_spec spec;
  const char *base_name; /* -b; NULL: the layer below the top */
  struct img_work work;
  bool drop;
  struct q_image *layer[Q_MAX_CHAIN]; /* those above the base, the top first */
  unsigned n;
  char *base_path; /* of the base */
  const char *base_format;
  unsigned base_recorded; /* see img_spec */
  struct q_image *base;
  uint64_t base_size; /* before it was made longer */
};

/* ---- the chain ------------------------------------------------------------------------------- */

/* Whether the layer that OVER has below it is the one that was asked for. */
static bool
is_base (const struct commit *c, const struct q_image_info *over, const char *path)
{
  return !c->base_name || strcmp (c->base_name, over->backing_file) == 0 ||
         strcmp (c->base_name, path) == 0 || img_same_file (c->base_name, path);
}

/* Opens the layers from the top to the one above the base, and finds that. */
static bool
open_layers (struct commit *c)
{
  struct img_spec spec = c->spec;
  struct q_image_info info;
  char *path = NULL;

  spec.metadata_only = true;
  spec.writable = true;
  spec.discard = true;
  for (;;) {
    struct q_image *img = img_open_spec (&spec);
    int r;

    free (path);
    path = NULL;
    if (!img)
      return false;
    if (c->n == Q_MAX_CHAIN) {
      img_error ("%s: the chain of backing files is a loop, or has more than %u layers",
                 c->spec.name, Q_MAX_CHAIN);
      img_close (&img);
      return false;
    }
    c->layer[c->n++] = img;
    if (!img_chain_is_recorded (img))
      return false;
    q_get_info (img, &info);
    if (!info.backing_file) {
      if (c->base_name && c->n > 1)
        img_error ("%s: '%s' is not in the chain of its backing files", c->spec.name, c->base_name);
      else
        img_error ("%s: has no backing file to commit to", c->spec.name);
      return false;
    }
    r = img_follow (img, &c->spec, &spec, &path);
    if (r == -ENOENT)
      img_error (
          "%s: backing=none does without the backing file '%s': there is nothing to commit to",
          q_filename (img), info.backing_file);
    if (r < 0)
      return false;
    if (is_base (c, &info, path)) {
      c->base_path = path;
      c->base_format = info.backing_format;
      c->base_recorded = spec.recorded;
      return true;
    }
    spec.cache = c->spec.cache;
    spec.metadata_only = true;
  }
}

static bool
open_base (struct commit *c)
{
  struct img_spec spec = { .name = c->base_path,
                           .named_by = q_filename (c->layer[c->n - 1]),
                           .recorded = c->base_recorded,
                           .format = c->base_format,
                           .cache = c->spec.cache,
                           .backing_mode = c->spec.backing_mode,
                           .data_file_policy = c->spec.data_file_policy,
                           .untrusted = c->spec.untrusted,
                           .writable = true,
                           .discard = true };
  struct q_error err = { "" };

  c->base = img_open_spec (&spec);
  if (!c->base)
    return false;
  c->base_size = q_size (c->base);
  if (c->base_size >= q_size (c->layer[0]) || q_resize (c->base, q_size (c->layer[0]), &err) == 0)
    return true;
  img_error ("%s", err.text);
  return false;
}

/* ---- moving data ----------------------------------------------------------------------------- */

static int
write_data (struct commit *c, const struct q_extent *e, uint64_t offset, char *buf)
{
  int r = 0;

  for (uint64_t done = 0; r == 0 && done < e->len;) {
    uint64_t n = e->len - done < BUFFER ? e->len - done : BUFFER;

    img_rate_pay (n);
    /* Nobody changes what is above the base, so that extents stay true; writing takes no pin. */
    q_pin_t pin = q_pin ();
    r = img_interrupted () ? -EINTR : q_read_extent (e, done, n, buf);
    q_unpin (pin);
    if (r == 0)
      r = q_pwrite (c->base, buf, offset + done, n);
    done += n;
  }
  return r;
}

static int commit_range (struct commit *c, unsigned layer, uint64_t offset, uint64_t len,
                         char *buf);

/* What layer number LAYER does not have. */
static int
commit_below (struct commit *c, unsigned layer, uint64_t offset, uint64_t len, char *buf)
{
  const uint64_t size = layer + 1 < c->n ? q_size (c->layer[layer + 1]) : c->base_size;
  const uint64_t inside = offset >= size ? 0 : size - offset < len ? size - offset : len;
  int r = 0;

  if (layer + 1 == c->n)
    return 0; /* the base has it, or was made longer and reads as zeros there */
  if (inside)
    r = commit_range (c, layer + 1, offset, inside, buf);
  if (r == 0 && inside < len)
    r = q_zero (c->base, offset + inside, len - inside, Q_ZERO_UNMAP);
  return r;
}

static int
commit_range (struct commit *c, unsigned layer, uint64_t offset, uint64_t len, char *buf)
{
  struct q_image *img = c->layer[layer];
  const uint64_t end = offset + len;
  int r = 0;

  while (r == 0 && offset < end) {
    q_pin_t pin = q_pin ();
    struct q_extent e;
    int n = q_map (img, offset, end - offset, &e, 1, Q_MAP_TOP | Q_MAP_HOST);

    q_unpin (pin);
    if (n < 0)
      r = n;
    else if (e.kind != Q_ZERO)
      r = write_data (c, &e, offset, buf);
    else if (img_extent_is_absent (img, &e))
      r = commit_below (c, layer, offset, e.len, buf);
    else
      r = q_zero (c->base, offset, e.len, Q_ZERO_UNMAP);
    offset += n > 0 ? e.len : 0;
  }
  return r;
}

static int
commit_piece (void *opaque, uint64_t offset, uint64_t len)
{
  struct commit *c = opaque;
  char *buf = malloc (BUFFER);
  int r = buf ? commit_range (c, 0, offset, len, buf) : -ENOMEM;

  free (buf);
  img_progress_add (len);
  return r;
}

/* ---- all ------------------------------------------------------------------------------------- */

static bool
failed (const struct commit *c, int r)
{
  if (r == -EINTR)
    img_error (
        "%s: interrupted: it is as it was, and its backing file '%s' has a part of it: commit "
        "again to finish",
        c->spec.name, c->base_path);
  else if (r < 0)
    img_error ("%s: committing to '%s': %s", c->spec.name, c->base_path, strerror (-r));
  return r < 0;
}

static bool
run_commit (struct commit *c)
{
  int r;

  img_work_begin (&c->work, q_size (c->layer[0]));
  r = img_for_pieces (q_size (c->layer[0]), PIECE, 0, commit_piece, c);
  if (r == 0)
    r = q_flush (c->base);
  img_progress_end ();
  if (failed (c, r) || !img_close (&c->base))
    return false;
  if (!c->drop) {
    r = q_empty (c->layer[0]);
    if (r == 0)
      r = q_flush (c->layer[0]);
    if (r < 0)
      img_error ("%s: was committed, but could not be emptied: %s", c->spec.name, strerror (-r));
  }
  return r == 0;
}

static int
commit (struct commit *c)
{
  bool ok = open_layers (c) && open_base (c) && run_commit (c);

  ok = img_close (&c->base) && ok;
  for (unsigned i = 0; i < c->n; i++)
    ok = img_close (&c->layer[i]) && ok;
  free (c->base_path);
  if (ok && !c->work.quiet)
    printf ("Image committed.\n");
  return ok ? 0 : 1;
}

/* ---- the command line ------------------------------------------------------------------------ */

static int
run (int argc, char **argv)
{
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "cache", required_argument, NULL, 't' },
                                           { "base", required_argument, NULL, 'b' },
                                           { "drop", no_argument, NULL, 'd' },
                                           { "rate", required_argument, NULL, 'r' },
                                           IMG_WORK_OPTIONS,
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct commit c = { .n = 0 };
  int status = 0, letter;

  while ((letter = img_getopt (&img_commit_command, argc, argv, ":f:t:b:dr:pqh", options,
                               &status)) != -1)
    switch (letter) {
    case 'f':
      c.spec.format = optarg;
      break;
    case 't':
      c.spec.cache = optarg;
      break;
    case 'b':
      c.base_name = optarg;
      c.drop = true; /* what is between still needs the overlay as it is, qemu-img says */
      break;
    case 'd':
      c.drop = true;
      break;
    default:
      if (!img_work_option (&c.work, &c.spec, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1)
    return img_error ("commit: one file name is needed, %d were given", argc - optind);
  if (c.spec.force_share)
    return img_error ("commit: -U is not possible: the images are written");
  c.spec.name = argv[optind];
  return commit (&c);
}

const struct img_command img_commit_command = {
  .name = "commit",
  .run = run,
  .summary = "Write what an overlay has into its backing file",
  .synopsis = "[-f FORMAT] [-t CACHE] [-b BASE] [-d] [-r RATE] [-p] [-q] FILE",
  .help = "  -f, --format=FORMAT     qcow2 (default: what the file begins with)\n"
          "  -t, --cache=MODE        writeback (default), writethrough, none, directsync, unsafe\n"
          "  -b, --base=FILE         the layer to write to (default: the one below); implies -d\n"
          "  -d, --drop              do not empty FILE afterwards\n"
          "  -r, --rate-limit=RATE   at most so many bytes a second\n"
          "  -p, --progress          show how far it is\n"
          "  -q, --quiet             print nothing\n",
};
