/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img check: is the metadata of an image right, and can it be made so.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "img.h"

/* qemu-img's. */
enum {
  EXIT_SOUND = 0,
  EXIT_NOT_CHECKED = 1,
  EXIT_CORRUPT = 2,
  EXIT_LEAKS = 3,
  EXIT_NO_CHECK_FOR_FORMAT = 63,
};

struct checking {
  struct img_spec spec;
  const char *state_dir; /* of q_open_options */
  bool json, quiet;
  unsigned repair;
};

/* Findings go to stderr, also with -q: like qemu-img's. */
static void
report (void *opaque, const char *line)
{
  (void)opaque;
  fprintf (stderr, "%s\n", line);
}

/* qemu-img leaves out what is 0, but for the check errors. */
static void
set_nonzero (json_t *j, const char *key, uint64_t value)
{
  if (value)
    json_object_set_new (j, key, json_integer ((json_int_t)value));
}

static bool
print_json (const struct checking *c, const struct q_check_result *r)
{
  json_t *j = json_object ();

  json_object_set_new (j, "filename", json_string (c->spec.name));
  json_object_set_new (j, "format", json_string ("qcow2"));
  json_object_set_new (j, "check-errors", json_integer ((json_int_t)r->check_errors));
  set_nonzero (j, "image-end-offset", r->image_end_offset);
  set_nonzero (j, "corruptions", r->corruptions);
  set_nonzero (j, "leaks", r->leaks);
  set_nonzero (j, "corruptions-fixed", r->corruptions_fixed);
  set_nonzero (j, "leaks-fixed", r->leaks_fixed);
  set_nonzero (j, "total-clusters", r->total_clusters);
  set_nonzero (j, "allocated-clusters", r->allocated_clusters);
  set_nonzero (j, "fragmented-clusters", r->fragmented_clusters);
  set_nonzero (j, "compressed-clusters", r->compressed_clusters);
  return img_print_json (j);
}

static double
percent (uint64_t part, uint64_t whole)
{
  return 100.0 * (double)part / (double)whole;
}

static void
print_text (const struct q_check_result *r)
{
  if (r->leaks_fixed || r->corruptions_fixed)
    printf ("Repaired:\n\n    %llu leaked clusters\n    %llu corruptions\n\n"
            "The repaired image was checked again:\n",
            (unsigned long long)r->leaks_fixed, (unsigned long long)r->corruptions_fixed);
  if (!r->corruptions && !r->leaks && !r->check_errors)
    printf ("No errors were found on the image.\n");
  if (r->corruptions)
    printf ("\n%llu errors were found on the image: data may be damaged, and writing to the image "
            "may damage more.\n",
            (unsigned long long)r->corruptions);
  if (r->leaks)
    printf ("\n%llu leaked clusters were found on the image: they waste space and do no other "
            "harm.\n",
            (unsigned long long)r->leaks);
  if (r->check_errors)
    printf ("\n%llu parts of the image could not be read and were not checked.\n",
            (unsigned long long)r->check_errors);
  if (r->total_clusters && r->allocated_clusters)
    printf ("%llu/%llu = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters\n",
            (unsigned long long)r->allocated_clusters, (unsigned long long)r->total_clusters,
            percent (r->allocated_clusters, r->total_clusters),
            percent (r->fragmented_clusters, r->allocated_clusters),
            percent (r->compressed_clusters, r->allocated_clusters));
  if (r->image_end_offset)
    printf ("Image end offset: %llu\n", (unsigned long long)r->image_end_offset);
}

static int
exit_status (const struct q_check_result *r)
{
  if (r->check_errors)
    return EXIT_NOT_CHECKED;
  if (r->corruptions)
    return EXIT_CORRUPT;
  return r->leaks ? EXIT_LEAKS : EXIT_SOUND;
}

/* Autoclear feature bit 63: a session of nbdcow's that was not closed, perhaps one that was killed.
 * What that had acknowledged is still in its state directory, and would be lost by a repair; an
 * ordinary open brings it into the image, and mends the refcounts on the way. */
#define SESSION_BIT (1ull << 63)

static void
finish_killed_session (const struct checking *c)
{
  struct q_open_options o;
  struct q_image_info info = { 0 };
  struct q_image *img;
  struct q_error err;

  /* Servers keep state for files that are opened by name. */
  if (c->spec.image_opts || !c->state_dir)
    return;
  q_open_options_init (&o);
  o.metadata_only = true;
  o.read_only = true;
  o.lock = Q_LOCK_OFF;
  if (q_open (&img, c->spec.name, &o, &err) < 0)
    return; /* the caller's open says why */
  q_get_info (img, &info);
  q_close (&img, &err);
  if (!(info.autoclear & SESSION_BIT) || info.dirty || info.corrupt)
    return;

  o.read_only = false;
  o.lock = Q_LOCK_ON;
  o.state_dir = c->state_dir;
  if (q_open (&img, c->spec.name, &o, &err) == 0)
    q_close (&img, &err);
}

static int
check (const struct checking *c)
{
  struct q_check_result result;
  struct q_error err = { "" };
  struct q_image *img;

  if (c->repair)
    finish_killed_session (c);
  img = img_open_spec (&c->spec);
  if (!img)
    return EXIT_NOT_CHECKED;
  if (q_image_format (img) != Q_FORMAT_QCOW2) {
    img_error ("%s: a raw image has nothing that could be checked", c->spec.name);
    img_close (&img);
    return EXIT_NO_CHECK_FOR_FORMAT;
  }
  if (q_check (img, c->repair, &result, report, NULL, &err) < 0) {
    img_error ("%s", err.text);
    img_close (&img);
    return EXIT_NOT_CHECKED;
  }
  if (!img_close (&img))
    return EXIT_NOT_CHECKED;
  if (c->json && !print_json (c, &result))
    return EXIT_NOT_CHECKED;
  if (!c->json && !c->quiet)
    print_text (&result);
  return exit_status (&result);
}

static bool
parse_repair (const char *text, unsigned *repair)
{
  if (strcmp (text, "leaks") == 0)
    *repair = Q_REPAIR_LEAKS;
  else if (strcmp (text, "all") == 0)
    *repair = Q_REPAIR_LEAKS | Q_REPAIR_ERRORS;
  else {
    img_error ("-r '%s' is not known: it is leaks or all", text);
    return false;
  }
  return true;
}

static int
run (int argc, char **argv)
{
  enum { OUTPUT = IMG_OPT_LONG, STATE_DIR };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "cache", required_argument, NULL, 'T' },
                                           { "repair", required_argument, NULL, 'r' },
                                           { "output", required_argument, NULL, OUTPUT },
                                           { "quiet", no_argument, NULL, 'q' },
                                           { "state-dir", required_argument, NULL, STATE_DIR },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct checking c = { .state_dir = "" };
  int status = 0, letter;

  while ((letter = img_getopt (&img_check_command, argc, argv, ":f:T:r:qUh", options, &status)) !=
         -1)
    switch (letter) {
    case 'f':
      c.spec.format = optarg;
      break;
    case 'T':
      c.spec.cache = optarg;
      break;
    case 'r':
      if (!parse_repair (optarg, &c.repair))
        return 1;
      break;
    case OUTPUT:
      if (!img_parse_output (optarg, &c.json))
        return 1;
      break;
    case 'q':
      c.quiet = true;
      break;
    case STATE_DIR:
      if (optarg[0] != '/' && strcmp (optarg, "off") != 0)
        return img_error ("check: --state-dir '%s' is neither an absolute name nor off", optarg);
      c.state_dir = optarg[0] == '/' ? optarg : NULL;
      break;
    default:
      if (!img_image_option (&c.spec, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1)
    return img_error ("check: one file name is needed, %d were given", argc - optind);
  if (c.repair && c.spec.force_share)
    return img_error ("check: -U cannot be used with -r: nobody else may write what is repaired");
  c.spec.name = argv[optind];
  c.spec.writable = c.repair;
  c.spec.metadata_only = true;
  c.spec.repair = true; /* also what is damaged is to be opened, and nothing mended on the way */
  return check (&c);
}

const struct img_command img_check_command = {
  .name = "check",
  .run = run,
  .summary = "Check an image, and mend it",
  .synopsis = "[-f FORMAT] [-r leaks|all] [--output=human|json] [-T CACHE] [-q] [-U] "
              "[--state-dir=DIR] FILE",
  .help =
      "  -f, --format=FORMAT   qcow2 (default: what the file begins with)\n"
      "  -r, --repair=WHAT     leaks: give back what nothing refers to; all: also correct errors\n"
      "      --output=FORMAT   human (default) or json\n"
      "  -T, --cache=MODE      none and directsync read past the page cache\n"
      "  -q, --quiet           only the exit status and what is wrong\n"
      "  -U, --force-share     also check an image that is being written\n"
      "Exit status: 0 sound, 1 could not be checked, 2 corrupt, 3 leaks, 63 nothing to check.\n",
};
