/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img: makes, inspects and mends disk images.
 */

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "img.h"
#include "stdfds.h"

/* clang-format off */
static const struct img_command *const commands[] = {
  &img_amend_command,
  &img_bench_command,
  &img_bitmap_command,
  &img_check_command,
  &img_commit_command,
  &img_compact_command,
  &img_compare_command,
  &img_convert_command,
  &img_create_command,
  &img_dd_command,
  &img_diff_command,
  &img_info_command,
  &img_map_command,
  &img_measure_command,
  &img_rebase_command,
  &img_recompress_command,
  &img_resize_command,
  &img_snapshot_command,
};
/* clang-format on */
#define N_COMMANDS (sizeof commands / sizeof commands[0])

static void
print_help (void)
{
  printf ("Usage: nbdcow-img COMMAND [OPTION...] FILE...\n"
          "Makes, inspects and mends qcow2 and raw disk images.\n\nCommands:\n");
  for (size_t i = 0; i < N_COMMANDS; i++)
    printf ("  %-10s %s\n", commands[i]->name, commands[i]->summary);
  printf (
      "\n'nbdcow-img COMMAND --help' lists the options of a command; nbdcow-img(1) says it all.\n"
      "Sizes may end in k, M, G, T, P or E: powers of 1024.\n");
}

/* A command that was interrupted has cleaned up; whoever waits for it is to see why it ended. */
static int
end (int status)
{
  int sig = img_interrupted ();

  if (sig) {
    signal (sig, SIG_DFL);
    raise (sig);
  }
  return status;
}

int
main (int argc, char **argv)
{
  stdfds_open ();
  /* A reader that went away is an error that img_finish_output reports. */
  signal (SIGPIPE, SIG_IGN);

  if (argc < 2)
    return img_error ("no command; 'nbdcow-img --help' lists them");
  if (strcmp (argv[1], "--help") == 0 || strcmp (argv[1], "-h") == 0 ||
      strcmp (argv[1], "help") == 0) {
    print_help ();
    return img_finish_output (0);
  }
  if (strcmp (argv[1], "--version") == 0 || strcmp (argv[1], "-V") == 0) {
    printf ("nbdcow-img %s\n", NBDCOW_VERSION);
    return img_finish_output (0);
  }
  for (size_t i = 0; i < N_COMMANDS; i++)
    if (strcmp (argv[1], commands[i]->name) == 0) {
      int status = commands[i]->run (argc - 1, argv + 1);

      img_forget_secrets ();
      return end (img_finish_output (status));
    }
  return img_error ("no command '%s'; 'nbdcow-img --help' lists them", argv[1]);
}
