/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img snapshot: lists, makes, goes back to and deletes internal snapshots.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "img.h"

struct snapshotting {
  struct img_spec spec;
  int action; /* 'l', 'c', 'a', 'd'; 0: not said */
  const char *name;
};

static int
list (struct q_image *img)
{
  struct q_snapshot_info *all;
  int n = q_get_snapshots (img, &all);

  if (n < 0)
    return img_error ("%s: %s", q_filename (img), strerror (-n));
  for (int i = 0; i < n; i++) {
    const struct q_snapshot_info s = all[i];
    uint64_t seconds = s.vm_clock_nsec / 1000000000;
    char date[32] = "", size[32], clock[48], icount[32] = "";
    time_t when = s.date_sec;
    struct tm tm;

    if (i == 0)
      printf ("Snapshot list:\n%-7s %-16s %8s %19s %15s %10s\n", "ID", "TAG", "VM_SIZE", "DATE",
              "VM_CLOCK", "ICOUNT");
    if (localtime_r (&when, &tm))
      strftime (date, sizeof date, "%Y-%m-%d %H:%M:%S", &tm);
    snprintf (clock, sizeof clock, "%04llu:%02u:%02u.%03u", (unsigned long long)(seconds / 3600),
              (unsigned)(seconds / 60 % 60), (unsigned)(seconds % 60),
              (unsigned)(s.vm_clock_nsec / 1000000 % 1000));
    if (s.icount != -1)
      snprintf (icount, sizeof icount, "%lld", (long long)s.icount);
    printf ("%-7s %-16s %8s %19s %15s %10s\n", img_plain (s.id), img_plain (s.name),
            img_size_text (s.vm_state_size, size), date, clock, icount);
  }
  free (all);
  return 0;
}

static int
act (struct snapshotting *s, struct q_image *img)
{
  static const char hint[] = ": nbdcow-img snapshot -l lists them";
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_error err;
  int r;

  switch (s->action) {
  case 'c':
    r = q_snapshot_create (img, s->name, id, &err);
    return r < 0 ? img_error ("Could not create snapshot '%s': %s", s->name, err.text) : 0;
  case 'a':
    r = q_snapshot_apply (img, s->name, &err);
    return r < 0 ? img_error ("Could not apply snapshot '%s': %s%s", s->name, err.text,
                              r == -ENOENT ? hint : "")
                 : 0;
  case 'd':
    r = q_snapshot_delete (img, s->name, &err);
    return r == -ENOENT ? img_error ("Could not delete snapshot '%s': snapshot not found: %s%s",
                                     s->name, err.text, hint)
           : r < 0      ? img_error ("Could not delete snapshot '%s': %s", s->name, err.text)
                        : 0;
  default:
    return list (img);
  }
}

static int
snapshot (struct snapshotting *s)
{
  struct q_image *img;
  int status;

  s->spec.writable = s->action != 'l';
  s->spec.discard = true; /* what nobody refers to any more is given back to the file system */
  s->spec.metadata_only = !s->spec.writable;
  img = img_open_spec (&s->spec);
  if (!img)
    return 1;
  status = act (s, img);
  return img_close (&img) ? status : 1;
}

static int
run (int argc, char **argv)
{
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "list", no_argument, NULL, 'l' },
                                           { "create", required_argument, NULL, 'c' },
                                           { "apply", required_argument, NULL, 'a' },
                                           { "delete", required_argument, NULL, 'd' },
                                           { "quiet", no_argument, NULL, 'q' },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct snapshotting s = { 0 };
  int letter, status = 0;

  while ((letter = img_getopt (&img_snapshot_command, argc, argv, ":f:lc:a:d:qUh", options,
                               &status)) != -1)
    switch (letter) {
    case 'f':
      s.spec.format = optarg;
      break;
    case 'l':
    case 'c':
    case 'a':
    case 'd':
      if (s.action)
        return img_error ("snapshot: only one of -l, -c, -a and -d is possible at a time");
      s.action = letter;
      s.name = optarg;
      break;
    case 'q':
      break; /* nothing is said but what is wrong */
    default:
      if (!img_image_option (&s.spec, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1)
    return img_error ("snapshot: one file name is needed, %d were given", argc - optind);
  if (!s.action)
    s.action = 'l';
  s.spec.name = argv[optind];
  return snapshot (&s);
}

const struct img_command img_snapshot_command = {
  .name = "snapshot",
  .run = run,
  .summary = "List, make, go back to and delete internal snapshots",
  .synopsis = "[-f FORMAT] [-l | -c NAME | -a SNAPSHOT | -d SNAPSHOT] [-q] [-U] FILE",
  .help = "  -f, --format=FORMAT     qcow2 (default: what the file begins with)\n"
          "  -l, --list              list them (default)\n"
          "  -c, --create=NAME       keep the disk as it is now\n"
          "  -a, --apply=SNAPSHOT    make the disk what it was then (an id, or a name)\n"
          "  -d, --delete=SNAPSHOT   delete it (a name, or an id)\n"
          "  -q, --quiet             for qemu-img's sake: nothing is said but what is wrong\n"
          "  -U, --force-share       also list those of an image that is being written\n",
};
