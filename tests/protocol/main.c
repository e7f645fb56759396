/* SPDX-License-Identifier: BSD-3-Clause */

/* The runner: finds out what the server can do, runs each case in each of its modes, and prints a
 * line for each. Exits 0 if nothing failed, 1 if something did, 2 on bad usage, 77 if the server
 * cannot be reached.
 */

#include <fnmatch.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client.h"

static const char usage[] =
    "usage: protocol --server KIND (--socket PATH | --connect HOST:PORT) [options]\n"
    "  --server KIND        nbdcow, plugin, qemu-nbd or nbdkit: what to expect of it\n"
    "  --socket PATH        connect to a unix socket\n"
    "  --connect HOST:PORT  connect over TCP\n"
    "  --export NAME        the export to test (default: the empty name)\n"
    "  --other NAME         a second export of the server\n"
    "  --description TEXT   the export's description\n"
    "  --size BYTES         its size\n"
    "  --read-only          it cannot be written\n"
    "  --pattern            it was prepared by an earlier run's --prepare\n"
    "  --prepare            prepare it (a writable image, never written), then stop\n"
    "  --tls                the server requires TLS: run the cases for that\n"
    "  --pid PID            the server's process, to watch its descriptors and memory\n"
    "  --only PATTERN       cases whose name matches, as in extended filename patterns\n"
    "  --mode MODE          only simple, structured or extended; leaves out cases of no mode\n"
    "  --shutdown           only the cases that end the server, one run for each mode\n"
    "  --timeout SECONDS    for one answer (default: 10)\n"
    "  --list               print the cases' names, then stop\n";

static const struct tcase *const groups[] = {
  handshake_cases, list_cases,    go_cases,     context_cases,  read_cases,
  write_cases,     flag_cases,    stream_cases, chunk_cases,    status_cases,
  extended_cases,  hostile_cases, tls_cases,    shutdown_cases,
};
#define N_GROUPS (sizeof groups / sizeof groups[0])

static const char *const mode_names[] = { "simple", "structured", "extended" };
static const char *const verdict_names[] = { "PASS", "FAIL", "DIFF", "SKIP" };

/* What belongs to a case */

struct memory {
  struct memory *next, *prev;
  max_align_t start[];
};

static void *
link_memory (struct test *t, struct memory *m)
{
  if (m == NULL) {
    fprintf (stderr, "protocol: out of memory\n");
    exit (EXIT_FAILURE);
  }
  m->prev = NULL;
  m->next = t->memory;
  if (m->next)
    m->next->prev = m;
  t->memory = m;
  return m->start;
}

void *
test_alloc (struct test *t, size_t size)
{
  return link_memory (t, calloc (1, sizeof (struct memory) + size));
}

void *
test_realloc (struct test *t, void *p, size_t size)
{
  struct memory *m;

  if (p == NULL)
    return test_alloc (t, size);
  m = (struct memory *)((char *)p - offsetof (struct memory, start));
  if (m->prev)
    m->prev->next = m->next;
  else
    t->memory = m->next;
  if (m->next)
    m->next->prev = m->prev;
  return link_memory (t, realloc (m, sizeof *m + size));
}

static void
release (struct test *t)
{
  for (struct conn *c = t->conns; c; c = c->next)
    conn_close (c);
  t->conns = NULL;
  while (t->memory) {
    struct memory *m = t->memory;

    t->memory = m->next;
    free (m);
  }
}

void
fail (struct test *t, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  vsnprintf (t->why, sizeof t->why, fmt, args);
  va_end (args);
  t->verdict = FAIL;
  longjmp (t->leave, 1);
}

void
skip (struct test *t, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  vsnprintf (t->why, sizeof t->why, fmt, args);
  va_end (args);
  t->verdict = SKIP;
  longjmp (t->leave, 1);
}

bool
has_flag (const struct test *t, unsigned nbd_flag)
{
  return t->target->flags[t->mode] & nbd_flag;
}

/* Runs one function to its verdict. */
static enum verdict
run (struct test *t, const struct target *target, enum mode mode, void (*function) (struct test *))
{
  memset (t, 0, sizeof *t);
  t->target = target;
  t->mode = mode;
  if (setjmp (t->leave) == 0)
    function (t);
  release (t);
  return t->verdict;
}

/* Probing */

static struct target target = {
  .export = "",
  .timeout_ms = 10000,
  .min_block = 1,
};

/* Can the mode be negotiated, and what does the export say of itself in it? */
static void
probe_mode (struct test *t)
{
  static const uint32_t option[] = {
    [STRUCTURED] = NBD_OPT_STRUCTURED_REPLY, [EXTENDED] = NBD_OPT_EXTENDED_HEADERS
  };
  const uint16_t infos[] = { NBD_INFO_BLOCK_SIZE };
  struct conn *c = open_haggling (t);
  const struct export_info *e;

  if (t->mode != SIMPLE && opt_ask (c, option[t->mode], NULL)->final != NBD_REP_ACK)
    skip (t, "not supported");
  c->mode = t->mode;
  if (t->mode != SIMPLE) {
    target.has |= t->mode == EXTENDED ? HEADERS : CHUNKS;
    if (opt_ask (c, NBD_OPT_SET_META_CONTEXT,
                 meta_data (t, target.export, QUERIES ("base:allocation")))
            ->n)
      target.has |= STATUS;
    if (opt_ask (c, NBD_OPT_SET_META_CONTEXT,
                 meta_data (t, target.export, QUERIES ("qemu:allocation-depth")))
            ->n)
      target.has |= DEPTH;
    opt_ask (c, NBD_OPT_SET_META_CONTEXT,
             meta_data (t, target.export, QUERIES ("base:allocation")));
  }
  e = info_parse (c, opt_ask (c, NBD_OPT_INFO, go_data (t, target.export, 1, infos)));
  CHECK (t, e->n_export == 1, "the export \"%s\" is not there", target.export);
  if (target.size == 0)
    target.size = e->size;
  target.flags[t->mode] = e->flags;
  if (e->has_block_size) {
    target.min_block = e->min_block;
    target.preferred = e->preferred;
    target.max_payload = e->max_payload;
  }
}

static void
note_flags (uint16_t flags)
{
  static const struct {
    uint16_t flag;
    unsigned need;
  } map[] = {
    { NBD_FLAG_READ_ONLY, READ_ONLY },
    { NBD_FLAG_SEND_FLUSH, FLUSH },
    { NBD_FLAG_SEND_FUA, FUA },
    { NBD_FLAG_SEND_TRIM, TRIM },
    { NBD_FLAG_SEND_WRITE_ZEROES, ZEROES },
    { NBD_FLAG_SEND_FAST_ZERO, FAST_ZERO },
    { NBD_FLAG_SEND_CACHE, CACHE },
    { NBD_FLAG_CAN_MULTI_CONN, MULTI_CONN },
    { NBD_FLAG_SEND_DF, DF },
    { NBD_FLAG_BLOCK_STATUS_PAYLOAD, FILTER },
  };

  for (size_t i = 0; i < sizeof map / sizeof map[0]; i++)
    if (flags & map[i].flag)
      target.has |= map[i].need;
}

static bool
probe (bool read_only, bool tls)
{
  struct test t;

  target.has |= target.server->promises | (tls ? TLS : PLAIN);
  if (target.pid)
    target.has |= PID;
  if (target.other)
    target.has |= TWO_EXPORTS;
  if (target.description)
    target.has |= DESCRIPTION;
  if (tls)
    return true;
  for (enum mode mode = SIMPLE; mode < MODES; mode++) {
    if (run (&t, &target, mode, probe_mode) == FAIL) {
      fprintf (stderr, "protocol: probing %s mode: %s\n", mode_names[mode], t.why);
      return false;
    }
    note_flags (target.flags[mode]);
  }
  target.has |= target.has & HEADERS ? 0 : NO_HEADERS;
  target.has |= target.has & READ_ONLY ? 0 : WRITABLE;
  target.has |= target.min_block == 1 ? BYTES : BLOCKS;
  target.has |= target.size > 5 * GiB ? HUGE : 0;
  if (target.size < SCRATCH_END) {
    fprintf (stderr,
             "protocol: the export has %" PRIu64 " bytes, the cases need at least %" PRIu64 "\n",
             target.size, SCRATCH_END);
    return false;
  }
  if (read_only != !!(target.has & READ_ONLY)) {
    fprintf (stderr, "protocol: the export is %s, which was not expected\n",
             read_only ? "writable" : "read-only");
    return false;
  }
  return true;
}

/* What the profile demands and probing did not find. */
static void
check_expectations (struct test *t)
{
  static const struct {
    unsigned need;
    const char *name;
  } names[] = {
    { FLUSH, "SEND_FLUSH" },
    { FUA, "SEND_FUA" },
    { TRIM, "SEND_TRIM" },
    { ZEROES, "SEND_WRITE_ZEROES" },
    { CACHE, "SEND_CACHE" },
    { FAST_ZERO, "SEND_FAST_ZERO" },
    { DF, "SEND_DF" },
    { MULTI_CONN, "CAN_MULTI_CONN" },
    { CHUNKS, "structured" },
    { HEADERS, "extended headers" },
    { STATUS, "base:allocation" },
    { DEPTH, "qemu:allocation-depth" },
    { FILTER, "BLOCK_STATUS_PAYLOAD" },
  };
  /* what a read-only export may leave out */
  unsigned optional = t->target->has & READ_ONLY ? FUA | TRIM | ZEROES | FAST_ZERO : 0;
  unsigned missing = t->target->server->must_have & ~t->target->has & ~optional;

  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    CHECK (t, !(missing & names[i].need), "the server lacks %s", names[i].name);
}

/* Writes the layout of suite.h to an image never written. */
static void
prepare (struct test *t)
{
  const size_t step = 1 * MiB;
  struct conn *c = open_transmission (t);
  uint8_t *p = test_alloc (t, step);

  for (uint64_t at = DATA_START; at < DATA_END; at += step) {
    fill_pattern (p, at, step);
    expect_error (c, do_write (c, 0, at, p, step), "writing the data area", SUCCESS);
  }
  memset (p, 0, step);
  for (uint64_t at = DATA_END; at < ZERO_END; at += step)
    expect_error (c,
                  has_flag (t, NBD_FLAG_SEND_WRITE_ZEROES)
                      ? do_cmd (c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, at, step)
                      : do_write (c, 0, at, p, step),
                  "zeroing the zero area", SUCCESS);
  if (has_flag (t, NBD_FLAG_SEND_FLUSH))
    expect_error (c, do_cmd (c, NBD_CMD_FLUSH, 0, 0, 0), "flush", SUCCESS);
}

/* Running */

static unsigned long counts[VERDICTS];
static const char *only;    /* a pattern of names, or NULL */
static unsigned only_modes; /* a mask, 0: all */

static void
report (const struct tcase *tc, enum mode mode, struct test *t)
{
  const char *known = known_difference (target.server, tc->name, mode, NULL);

  if (known == NULL)
    known = known_difference (target.server, tc->name, mode, t->why);
  if (t->verdict == FAIL && known) {
    t->verdict = DIFF;
    printf ("DIFF  %s", tc->name);
    if (tc->modes)
      printf (" [%s]", mode_names[mode]);
    printf (": %s\n      %s: %s\n", t->why, target.server->name, known);
  } else {
    printf ("%s  %s", verdict_names[t->verdict], tc->name);
    if (tc->modes)
      printf (" [%s]", mode_names[mode]);
    printf ("%s%s\n", t->why[0] ? ": " : "", t->why);
    if (t->verdict == FAIL)
      printf ("      rule: %s\n", tc->rule);
  }
  fflush (stdout);
  counts[t->verdict]++;
}

/* False if the server is gone and there is no point in going on. */
static bool
run_case (const struct tcase *tc)
{
  struct test t;

  for (enum mode mode = SIMPLE; mode < MODES; mode++) {
    const unsigned mode_needs[] = { 0, CHUNKS, HEADERS };

    if (tc->modes ? !(tc->modes & 1u << mode) : mode != SIMPLE)
      continue;
    if (only_modes && !(tc->modes & only_modes & 1u << mode))
      continue;
    if ((tc->needs | (tc->modes ? mode_needs[mode] : 0)) & ~target.has) {
      memset (&t, 0, sizeof t);
      t.verdict = SKIP;
    } else if (known_difference (target.server, tc->name, mode, NULL)) {
      memset (&t, 0, sizeof t);
      t.verdict = FAIL; /* which report () turns into the difference it is */
      strcpy (t.why, "not tried");
    } else
      run (&t, &target, mode, tc->run);
    report (tc, mode, &t);
    if (t.verdict == FAIL && !(target.has & (TLS | SHUTDOWN)) &&
        run (&t, &target, SIMPLE, expect_alive) == FAIL) {
      printf ("FAIL  the server does not serve a new client any more: %s\n", t.why);
      counts[FAIL]++;
      return false;
    }
  }
  return true;
}

static bool
run_all (void)
{
  for (size_t g = 0; g < N_GROUPS; g++)
    for (const struct tcase *tc = groups[g]; tc->name; tc++) {
      if (only && fnmatch (only, tc->name, FNM_EXTMATCH) != 0)
        continue;
      if ((tc->needs & (TLS | SHUTDOWN)) != (target.has & (TLS | SHUTDOWN)))
        continue;
      if (!run_case (tc))
        return false;
    }
  return true;
}

static void
list_cases_and_exit (void)
{
  for (size_t g = 0; g < N_GROUPS; g++)
    for (const struct tcase *tc = groups[g]; tc->name; tc++)
      printf ("%s%s%s%s\n", tc->name, tc->modes & IN_SIMPLE ? " simple" : "",
              tc->modes & IN_STRUCTURED ? " structured" : "",
              tc->modes & IN_EXTENDED ? " extended" : "");
  exit (EXIT_SUCCESS);
}

_Noreturn static void
bad_usage (const char *what, const char *value)
{
  fprintf (stderr, "protocol: %s: %s\n%s", what, value, usage);
  exit (2);
}

static uint64_t
number (const char *option, const char *s, uint64_t max)
{
  char *end;
  unsigned long long v = strtoull (s, &end, 10);

  if (*s < '0' || *s > '9' || *end || v > max)
    bad_usage (option, s);
  return v;
}

int
main (int argc, char **argv)
{
  enum {
    SERVER = 1,
    SOCKET,
    CONNECT,
    EXPORT,
    OTHER,
    DESCRIBED,
    SIZE,
    RO,
    HAS_PATTERN,
    PREPARE,
    WITH_TLS,
    PROCESS,
    ONLY,
    MODE,
    STOP,
    TIMEOUT,
    LIST,
    HELP
  };
  static const struct option options[] = {
    { "server", required_argument, NULL, SERVER },
    { "socket", required_argument, NULL, SOCKET },
    { "connect", required_argument, NULL, CONNECT },
    { "export", required_argument, NULL, EXPORT },
    { "other", required_argument, NULL, OTHER },
    { "description", required_argument, NULL, DESCRIBED },
    { "size", required_argument, NULL, SIZE },
    { "read-only", no_argument, NULL, RO },
    { "pattern", no_argument, NULL, HAS_PATTERN },
    { "prepare", no_argument, NULL, PREPARE },
    { "tls", no_argument, NULL, WITH_TLS },
    { "pid", required_argument, NULL, PROCESS },
    { "only", required_argument, NULL, ONLY },
    { "timeout", required_argument, NULL, TIMEOUT },
    { "mode", required_argument, NULL, MODE },
    { "shutdown", no_argument, NULL, STOP },
    { "list", no_argument, NULL, LIST },
    { "help", no_argument, NULL, HELP },
    { NULL, 0, NULL, 0 },
  };
  bool read_only = false, preparing = false, tls = false;
  struct timespec start, end;
  struct test t;
  char *colon;
  int c;

  while ((c = getopt_long (argc, argv, "", options, NULL)) != -1) {
    switch (c) {
    case SERVER:
      if ((target.server = server_find (optarg)) == NULL)
        bad_usage ("--server", optarg);
      break;
    case SOCKET:
      target.socket = optarg;
      break;
    case CONNECT:
      if ((colon = strrchr (optarg, ':')) == NULL)
        bad_usage ("--connect wants HOST:PORT", optarg);
      *colon = '\0';
      target.host = optarg;
      target.port = colon + 1;
      break;
    case EXPORT:
      target.export = optarg;
      break;
    case OTHER:
      target.other = optarg;
      break;
    case DESCRIBED:
      target.description = optarg;
      break;
    case SIZE:
      target.size = number ("--size", optarg, INT64_MAX);
      break;
    case RO:
      read_only = true;
      break;
    case HAS_PATTERN:
      target.has |= PATTERN;
      break;
    case PREPARE:
      preparing = true;
      break;
    case WITH_TLS:
      tls = true;
      break;
    case PROCESS:
      target.pid = (long)number ("--pid", optarg, INT32_MAX);
      break;
    case ONLY:
      only = optarg;
      break;
    case MODE:
      for (only_modes = 0, c = SIMPLE; c < MODES; c++)
        if (strcmp (optarg, mode_names[c]) == 0)
          only_modes = 1u << c;
      if (only_modes == 0)
        bad_usage ("--mode", optarg);
      break;
    case STOP:
      target.has |= SHUTDOWN;
      break;
    case TIMEOUT:
      target.timeout_ms = 1000 * (int)number ("--timeout", optarg, 600);
      break;
    case LIST:
      list_cases_and_exit ();
      break;
    case HELP:
      fputs (usage, stdout);
      return EXIT_SUCCESS;
    default:
      fputs (usage, stderr);
      return 2;
    }
  }
  if (optind < argc)
    bad_usage ("not an option", argv[optind]);
  if (target.server == NULL || (target.socket == NULL) == (target.host == NULL))
    bad_usage ("wanted", "--server and one of --socket and --connect");

  signal (SIGPIPE, SIG_IGN);
  clock_gettime (CLOCK_MONOTONIC, &start);
  if (!probe (read_only, tls))
    return 77;
  if (preparing) {
    if (run (&t, &target, SIMPLE, prepare) != PASS) {
      fprintf (stderr, "protocol: preparing: %s\n", t.why);
      return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
  }
  if (!tls && !only && !only_modes && !(target.has & SHUTDOWN)) {
    static const struct tcase expectations = { "server.has-what-it-promises", ONCE, 0,
                                               check_expectations, "the suite's own table" };

    run (&t, &target, SIMPLE, check_expectations);
    report (&expectations, SIMPLE, &t);
  }
  run_all ();
  clock_gettime (CLOCK_MONOTONIC, &end);
  printf ("%s%s%s: %lu cases: %lu passed, %lu failed, %lu known differences, %lu skipped; %.1f s\n",
          target.server->name, read_only ? " (read-only)" : "", tls ? " (TLS)" : "",
          counts[PASS] + counts[FAIL] + counts[DIFF] + counts[SKIP], counts[PASS], counts[FAIL],
          counts[DIFF], counts[SKIP],
          (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9);
  return counts[FAIL] ? EXIT_FAILURE : EXIT_SUCCESS;
}
