/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img check: is the metadata of an image right, and can it be made so.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "describe.h"
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
  const char *state_dir; /* of img_finish_session */
  bool json, quiet, progress, dry_run;
  unsigned repair;
  const char *journal_name;
  FILE *journal;
  json_t *lines;  /* findings of this pass, as the keys of an object; see confirm */
  uint64_t shown; /* of the progress */
};

/* ---- findings -------------------------------------------------------------------------------- */

/* More lines than this are not kept to be confirmed. */
#define MAX_KEPT 100000u

/* Findings go to stderr, also with -q: like qemu-img's. */
static void
report (void *opaque, const char *line)
{
  struct checking *c = opaque;

  if (!c->lines)
    fprintf (stderr, "%s\n", line);
  else if (json_object_size (c->lines) < MAX_KEPT)
    json_object_set_new (c->lines, line, json_true ());
}

static void
show_progress (void *opaque, uint64_t done, uint64_t total)
{
  struct checking *c = opaque;

  if (done < c->shown) { /* another L1 table */
    img_progress_more (total);
    c->shown = 0;
  }
  img_progress_add (done - c->shown);
  c->shown = done;
}

/* ---- the journal ----------------------------------------------------------------------------- */

static void
print_hex (FILE *f, const unsigned char *bytes, uint64_t len)
{
  for (uint64_t i = 0; i < len; i++)
    fprintf (f, "%02x", bytes[i]);
}

/* One line for each run of bytes that changes, on the disk before that does. */
static int
note_change (void *opaque, uint64_t offset, const void *before, const void *after, uint64_t len)
{
  FILE *f = ((struct checking *)opaque)->journal;

  if (len == 0)
    return fflush (f) == EOF || (fdatasync (fileno (f)) == -1 && errno != EINVAL) ? -errno : 0;
  fprintf (f, "{\"offset\": %llu, \"before\": \"", (unsigned long long)offset);
  print_hex (f, before, len);
  fprintf (f, "\", \"after\": \"");
  print_hex (f, after, len);
  return fprintf (f, "\"}\n") < 0 ? -EIO : 0;
}

static bool
open_journal (struct checking *c)
{
  if (!c->journal_name)
    return true;
  c->journal = fopen (c->journal_name, "wxe");
  if (!c->journal)
    img_error ("journal %s: %s", c->journal_name,
               errno == EEXIST ? "it is there already, and is not overwritten" : strerror (errno));
  return c->journal;
}

static bool
close_journal (struct checking *c)
{
  FILE *f = c->journal;

  c->journal = NULL;
  if (!f || fclose (f) == 0)
    return true;
  img_error ("journal %s: %s", c->journal_name, strerror (errno));
  return false;
}

/* ---- the result ------------------------------------------------------------------------------ */

static bool
print_json (const struct checking *c, const struct q_check_result *r)
{
  json_t *j = json_pack ("{s:o, s:s}", "filename", img_json_name (c->spec.name), "format", "qcow2");
  json_t *found = describe_check (r);

  if (j && found)
    json_object_update (j, found);
  json_decref (found);
  return img_print_json (j);
}

static double
percent (uint64_t part, uint64_t whole)
{
  return 100.0 * (double)part / (double)whole;
}

static void
print_text (const struct q_check_result *r, bool dry_run)
{
  if (r->leaks_fixed || r->corruptions_fixed)
    printf ("%s:\n\n    %llu leaked clusters\n    %llu corruptions\n\n%s:\n",
            dry_run ? "Would be repaired" : "Repaired", (unsigned long long)r->leaks_fixed,
            (unsigned long long)r->corruptions_fixed,
            dry_run ? "That would leave" : "The repaired image was checked again");
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

/* ---- checking -------------------------------------------------------------------------------- */

/* One check.  A status, or -1 if *RESULT has one to be told. */
static int
check_once (struct checking *c, struct q_check_result *result)
{
  const struct q_check_options o = { .repair = c->repair,
                                     .dry_run = c->dry_run,
                                     .in_use = c->lines != NULL,
                                     .report = report,
                                     .progress = show_progress,
                                     .journal = c->journal ? note_change : NULL,
                                     .opaque = c };
  struct q_error err = { "" };
  struct q_image *img = img_open_spec (&c->spec);
  int r;

  if (!img)
    return EXIT_NOT_CHECKED;
  if (q_image_format (img) != Q_FORMAT_QCOW2) {
    img_error ("%s: a raw image has nothing that could be checked", c->spec.name);
    img_close (&img);
    return EXIT_NO_CHECK_FOR_FORMAT;
  }
  c->shown = 0;
  img_progress_begin (c->progress, c->quiet || c->json,
                      q_size (img) / q_cluster_size (img) * 8); /* about that many bytes of L2 */
  r = q_check_image (img, &o, result, &err);
  img_progress_end ();
  if (r < 0)
    img_error ("%s", err.text);
  return img_close (&img) && r == 0 ? -1 : EXIT_NOT_CHECKED;
}

/* What persists of the findings in BEFORE, in the counts too. */
static void
confirm (struct checking *c, json_t *before, struct q_check_result *result)
{
  const char *line;
  json_t *value;
  void *next;

  json_object_foreach_safe (c->lines, next, line, value) if (!json_object_get (before, line))
      json_object_del (c->lines, line);
  result->corruptions = result->leaks = 0;
  json_object_foreach (c->lines, line, value) if (strncmp (line, "Leaked", 6) == 0) result->leaks++;
  else result->corruptions++;
  if (json_object_size (c->lines) == 0)
    result->check_errors = 0;
}

/* While somebody writes to the image, parts of it are read at different moments, and what fits
 * together does not seem to.  What is really wrong stays so: only findings that several checks,
 * ever longer moments apart, have in common count.  One is usually enough: nothing is found. */
static int
check_in_use (struct checking *c, struct q_check_result *result)
{
  enum { PASSES = 7 };
  long pause = 50000000; /* nanoseconds */
  int status = -1;

  c->lines = json_object ();
  for (unsigned pass = 0; status == -1 && pass < PASSES; pass++) {
    json_t *before = pass ? c->lines : NULL;

    if (before) {
      c->lines = json_object ();
      nanosleep (&(struct timespec){ pause / 1000000000, pause % 1000000000 }, NULL);
      pause *= 2;
    }
    status = c->lines ? check_once (c, result) : img_error ("out of memory");
    if (before && status == -1)
      confirm (c, before, result);
    json_decref (before);
    if (json_object_size (c->lines) == 0)
      break;
  }

  json_t *lines = c->lines;
  const char *line;
  json_t *value;

  c->lines = NULL;
  json_object_foreach (lines, line, value) report (c, line);
  json_decref (lines);
  return status;
}

/* Snapshots whose entries lack what version 3 wants get it from who makes and deletes snapshots,
 * once nothing else is wrong.  A status, or -1 if *RESULT has one to be told. */
static int
complete_snapshots (struct checking *c, struct q_check_result *result)
{
  const struct q_check_result before = *result;
  struct img_spec spec = c->spec;
  struct q_error err = { "" };
  struct q_image *img;
  int r;

  if (!(c->repair & Q_REPAIR_ERRORS) || before.unsized_snapshots == 0 ||
      before.corruptions != before.unsized_snapshots || before.check_errors)
    return -1;
  if (c->journal_name) {
    img_error ("%s: the snapshot table is only completed without --journal", spec.name);
    return -1;
  }
  if (c->dry_run)
    result->corruptions = 0;
  else {
    spec.repair = false;
    img = img_open_spec (&spec);
    r = img ? q_snapshot_complete (img, &err) : -EIO;
    if (img && r < 0)
      img_error ("%s", err.text);
    if (!(img && img_close (&img)) || r < 0)
      return EXIT_NOT_CHECKED;
    c->repair = 0;
    c->spec.writable = false;
    r = check_once (c, result);
    if (r != -1)
      return r;
    result->leaks_fixed = before.leaks_fixed;
  }
  result->corruptions_fixed = before.corruptions_fixed + before.unsized_snapshots;
  return -1;
}

static int
check (struct checking *c)
{
  struct q_check_result result = { 0 };
  int status;

  if (c->repair && !c->dry_run && c->state_dir && !img_finish_session (&c->spec, c->state_dir))
    return EXIT_NOT_CHECKED;
  if (!open_journal (c))
    return EXIT_NOT_CHECKED;
  status = c->spec.force_share && !c->repair ? check_in_use (c, &result) : check_once (c, &result);
  if (!close_journal (c))
    return EXIT_NOT_CHECKED;
  if (status == -1)
    status = complete_snapshots (c, &result);
  if (status != -1)
    return status;
  if (c->json && !print_json (c, &result))
    return EXIT_NOT_CHECKED;
  if (!c->json && !c->quiet)
    print_text (&result, c->dry_run);
  return exit_status (&result);
}

/* ---- the command line ------------------------------------------------------------------------ */

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
  enum { OUTPUT = IMG_OPT_LONG, STATE_DIR, DRY_RUN, JOURNAL };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "cache", required_argument, NULL, 'T' },
                                           { "repair", required_argument, NULL, 'r' },
                                           { "output", required_argument, NULL, OUTPUT },
                                           { "dry-run", no_argument, NULL, DRY_RUN },
                                           { "journal", required_argument, NULL, JOURNAL },
                                           { "progress", no_argument, NULL, 'p' },
                                           { "quiet", no_argument, NULL, 'q' },
                                           { "state-dir", required_argument, NULL, STATE_DIR },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct checking c = { .state_dir = "" };
  int status = 0, letter;

  while ((letter = img_getopt (&img_check_command, argc, argv, ":f:T:r:pqUh", options, &status)) !=
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
    case 'p':
      c.progress = true;
      break;
    case 'q':
      c.quiet = true;
      break;
    case DRY_RUN:
      c.dry_run = true;
      break;
    case JOURNAL:
      c.journal_name = optarg;
      break;
    case STATE_DIR:
      if (!img_parse_state_dir (optarg, &c.state_dir))
        return 1;
      break;
    default:
      if (!img_image_option (&c.spec, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1)
    return img_error ("check: one file name is needed, %d were given", argc - optind);
  if (c.repair && !c.dry_run && c.spec.force_share)
    return img_error ("check: -U cannot be used with -r: nobody else may write what is repaired");
  if (!c.repair && (c.dry_run || c.journal_name))
    return img_error ("check: --dry-run and --journal are about a repair: give -r leaks or -r all");
  c.spec.name = argv[optind];
  c.spec.writable = c.repair && !c.dry_run;
  c.spec.metadata_only = true;
  c.spec.repair = true; /* also what is damaged is to be opened, and nothing mended on the way */
  return check (&c);
}

const struct img_command img_check_command = {
  .name = "check",
  .run = run,
  .summary = "Check an image, and mend it",
  .synopsis = "[-f FORMAT] [-r leaks|all] [--output=human|json] [-T CACHE] [-p] [-q] [-U] "
              "[--dry-run]\n                         [--journal=JOURNAL] [--state-dir=DIR] FILE",
  .help =
      "  -f, --format=FORMAT   qcow2 (default: what the file begins with)\n"
      "  -r, --repair=WHAT     leaks: give back what nothing refers to; all: also correct errors\n"
      "      --dry-run         with -r: only say what would be repaired\n"
      "      --journal=JOURNAL with -r: write what is changed to this new file, as JSON lines\n"
      "      --output=FORMAT   human (default) or json\n"
      "  -T, --cache=MODE      none and directsync read past the page cache\n"
      "  -p, --progress        show how far it is\n"
      "  -q, --quiet           only the exit status and what is wrong\n"
      "  -U, --force-share     also check an image that is being written\n"
      "Exit status: 0 sound, 1 could not be checked, 2 corrupt, 3 leaks, 63 nothing to check.\n",
};
