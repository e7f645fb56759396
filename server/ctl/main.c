/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-ctl: its command line.
 */

#include <getopt.h>
#include <locale.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "qcow2.h"
#include "stdfds.h"

/* Where the socket is if nobody says. */
#define DEFAULT_SOCKET "/run/nbdcow/control"

static const struct ctl_command *const tables[] = {
  ctl_server_commands,
  ctl_export_commands,
  ctl_image_commands,
  ctl_top_commands,
};
#define N_TABLES (sizeof tables / sizeof tables[0])

int
ctl_error (const char *fmt, ...)
{
  char *text = NULL;
  va_list args;

  va_start (args, fmt);
  if (vasprintf (&text, fmt, args) < 0)
    text = NULL;
  va_end (args);
  /* It may quote what an image or a client says. */
  if (text)
    q_make_printable (text);
  fprintf (stderr, "nbdcow-ctl: %s\n", text ? text : "out of memory");
  free (text);
  return EXIT_FAILURE;
}

static void
print_help (void)
{
  printf ("Usage: nbdcow-ctl [OPTION...] COMMAND [ARGUMENT...]\n"
          "Watches and steers a running nbdcow by its control socket (nbdcow --control=PATH).\n"
          "\n"
          "Options:\n"
          "  -c, --control=PATH    the socket ($NBDCOW_CONTROL, else " DEFAULT_SOCKET ")\n"
          "  -j, --json            print what the server answers, as JSON\n"
          "      --hard            export del: disconnect the clients of the export\n"
          "      --id              snapshot delete: by its id, not by its name\n"
          "      --snapshot        checkpoint: and a snapshot called NEW\n"
          "      --interval=SEC    top: seconds between two looks (2)\n"
          "      --count=NUM       top: that many looks, then end\n"
          "  -h, --help            this help\n"
          "  -V, --version         the version\n"
          "\n"
          "Commands:\n");
  for (size_t i = 0; i < N_TABLES; i++)
    for (const struct ctl_command *k = tables[i]; k->name; k++) {
      int n = printf ("  %s %s", k->name, k->arguments);
      printf ("%*s%s\n", n < 42 ? 42 - n : 2, "", k->summary);
    }
  printf (
      "\nThe empty name, '', is that of the export without one.  Sizes may end in k, M, G or T: "
      "powers of 1024.\n");
}

/* The command that the words begin with; *WORDS of them are its name. */
static const struct ctl_command *
find_command (int argc, char **argv, int *words)
{
  for (size_t i = 0; i < N_TABLES; i++)
    for (const struct ctl_command *k = tables[i]; k->name; k++) {
      const char *second = strchr (k->name, ' ');
      size_t first = second ? (size_t)(second - k->name) : strlen (k->name);
      *words = second ? 2 : 1;
      if (argc >= *words && strlen (argv[0]) == first && memcmp (argv[0], k->name, first) == 0 &&
          (!second || strcmp (argv[1], second + 1) == 0))
        return k;
    }
  return NULL;
}

static bool
parse_options (struct ctl *c, int argc, char **argv)
{
  enum { HARD = 256, BY_ID, SNAPSHOT, INTERVAL, COUNT };
  static const struct option options[] = {
    { "control", required_argument, NULL, 'c' }, { "json", no_argument, NULL, 'j' },
    { "hard", no_argument, NULL, HARD },         { "id", no_argument, NULL, BY_ID },
    { "snapshot", no_argument, NULL, SNAPSHOT }, { "interval", required_argument, NULL, INTERVAL },
    { "count", required_argument, NULL, COUNT }, { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },       { NULL, 0, NULL, 0 },
  };
  char *end = NULL;
  int o;

  while ((o = getopt_long (argc, argv, "c:jhV", options, NULL)) != -1) {
    switch (o) {
    case 'c':
      c->path = optarg;
      break;
    case 'j':
      c->json = true;
      break;
    case HARD:
      c->hard = true;
      break;
    case BY_ID:
      c->by_id = true;
      break;
    case SNAPSHOT:
      c->snapshot = true;
      break;
    case INTERVAL:
      c->interval = strtod (optarg, &end);
      if (*end || !(c->interval >= 0.1 && c->interval <= 3600)) {
        ctl_error ("--interval=%s: seconds, from 0.1 to 3600, are wanted", optarg);
        return false;
      }
      break;
    case COUNT:
      c->count = (unsigned)strtoul (optarg, &end, 10);
      if (*end || c->count == 0 || *optarg == '-') {
        ctl_error ("--count=%s: a number from 1 on is wanted", optarg);
        return false;
      }
      break;
    case 'h':
      print_help ();
      exit (EXIT_SUCCESS);
    case 'V':
      printf ("nbdcow-ctl %s\n", NBDCOW_VERSION);
      exit (EXIT_SUCCESS);
    default:
      return false; /* getopt has said why */
    }
  }
  return true;
}

static int
run (struct ctl *c, int argc, char **argv)
{
  int words = 0;

  if (argc == 0)
    return ctl_error ("no command; 'nbdcow-ctl --help' lists them");
  const struct ctl_command *k = find_command (argc, argv, &words);
  if (!k)
    return ctl_error ("no command '%s%s%s'; 'nbdcow-ctl --help' lists them", argv[0],
                      argc > 1 ? " " : "", argc > 1 ? argv[1] : "");
  argc -= words;
  argv += words;
  if (argc < k->min || (k->max >= 0 && argc > k->max))
    return ctl_error ("wanted is: %s %s", k->name, k->arguments);
  if (!ctl_connect (c))
    return EXIT_FAILURE;
  return k->run (c, argc, argv);
}

int
main (int argc, char **argv)
{
  const char *path = getenv ("NBDCOW_CONTROL");
  struct ctl c = { .path = path && *path ? path : DEFAULT_SOCKET, .interval = 2 };

  stdfds_open ();
  setlocale (LC_CTYPE, "");
  int status =
      parse_options (&c, argc, argv) ? run (&c, argc - optind, argv + optind) : EXIT_FAILURE;
  ctl_disconnect (&c);
  if (fflush (stdout) != 0 || ferror (stdout))
    status = ctl_error ("cannot write to stdout");
  return status;
}
