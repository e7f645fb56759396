/* SPDX-License-Identifier: BSD-3-Clause */

#include "option.h"

void
options_check_list (const struct options *opts, const struct said *said)
{
  const struct export_options *xo = &opts->export;

  if (opts->filename)
    option_fail ("--list: no image file is wanted, '%s' is given", opts->filename);
  if (said->name || xo->description || xo->source.offset || opts->device || said->format ||
      xo->snapshot || xo->throw_away || xo->n_bitmaps || xo->allocation_depth || said->aio ||
      said->discard || said->cache || said->detect_zeroes || json_array_size (opts->exports) ||
      json_array_size (opts->directories))
    option_fail ("--list: options about an export or an image make no sense with it");
  if (opts->fork)
    option_fail ("--list cannot be used with --fork");
}

void
options_check_serve (struct options *opts, const struct said *said)
{
  bool several = json_array_size (opts->exports) > 0 || json_array_size (opts->directories) > 0;
  struct export_options *xo = &opts->export;

  if (!opts->filename && !several)
    option_fail ("the name of the image file is missing ('nbdcow --help' says what else there is)");
  if (!opts->filename && (said->name || xo->description || xo->source.offset || xo->n_bitmaps ||
                          xo->snapshot || said->format || xo->source.data_file))
    option_fail ("--export-name, --description, --offset, --bitmap, --load-snapshot, --format and "
                 "--data-file are about FILE: put name=, description=, ... into --export");
  if (opts->image_opts && said->format)
    option_fail ("--image-opts and --format cannot be used together: driver=... is the format");
  if (said->aio_native && xo->source.open.cache != Q_CACHE_DIRECT)
    option_fail ("--aio=native needs --cache=none or --cache=directsync");
  if (xo->source.detect_zeroes == DETECT_ZEROES_UNMAP && !xo->source.open.discard)
    option_fail ("--detect-zeroes=unmap needs --discard=unmap");
  if (opts->run && opts->fork)
    option_fail ("--run cannot be used with --fork");
  if (opts->exit_with_parent && opts->fork)
    option_fail ("--exit-with-parent cannot be used with --fork, which makes the parent exit");
  if (opts->device && (!opts->filename || several))
    option_fail ("--connect=%s: one device has one image: FILE is wanted, and no --export",
                 opts->device);
  if (opts->key_file && opts->key_fd >= 0)
    option_fail ("--key-file and --key-fd cannot be used together");
  if (opts->takeover && (opts->device || opts->run))
    option_fail ("--takeover cannot be used with --connect or --run");
  if (opts->group && !opts->user)
    option_fail ("--group=%s needs --user", opts->group);
  if (said->untrusted && !said->backing)
    xo->source.open.backing = Q_BACKING_REFUSE;
  if (said->untrusted && !said->data_file_policy)
    xo->source.open.data_file_policy = Q_DATA_FILE_NONE;
  /* The default of 1 is qemu-nbd's, for its one export. */
  if (several && !said->shared)
    opts->shared = 0;
}

void
options_check_tls (const struct options *opts)
{
  struct q_error err = { "" };

  if (opts->tls_optional && !opts->tls_creds)
    option_fail ("--tls=optional needs --tls-creds");
  if (opts->tls_optional && opts->tls_authz)
    option_fail (
        "--tls-authz=%s has no effect on clients without TLS: leave --tls=optional out, or put "
        "tls-authz=%s into the --export that is for certain clients",
        opts->tls_authz, opts->tls_authz);
  if (opts->tls_creds && opts->device)
    option_fail (
        "--connect=%s: the kernel's nbd driver has no TLS: --tls-creds cannot be used with it",
        opts->device);
  if (opts->tls_authz && !opts->tls_creds)
    option_fail ("--tls-authz=%s needs --tls-creds", opts->tls_authz);
  if (opts->tls_hostname && opts->mode != MODE_LIST)
    option_fail ("--tls-hostname=%s is about the server that a client connects to: it needs --list",
                 opts->tls_hostname);
  if (opts->tls_creds && !objects_find_tls (&opts->objects, opts->tls_creds, &err))
    option_fail ("%s", err.text);
  if (opts->tls_authz && !objects_find_authz (&opts->objects, opts->tls_authz, &err))
    option_fail ("%s", err.text);
}
