/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-bench-load: a load generator for NBD servers.  See README.md, or --help.
 *
 * The result is one line of "name=value" words on stdout, for people and for scripts.
 */

#include "modes.h"
#include "traffic.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum mode { MODE_TRAFFIC, MODE_CONNECT, MODE_IDLE, MODE_OPEN };

struct options {
  enum mode mode;
  unsigned n; /* idle connections, starts */
  struct traffic t;
};

static const char help[] =
    "Usage: nbdcow-bench-load [OPTIONS]\n"
    "       nbdcow-bench-load --open N [OPTIONS] -- SERVER ARG...\n"
    "Puts load on an NBD server and prints what came of it, as name=value words.\n"
    "\n"
    "Where:\n"
    "  -u, --unix PATH        the server's unix socket, or\n"
    "  -T, --tcp HOST:PORT    its address\n"
    "  -e, --export NAME      the export (default: the empty name)\n"
    "  -s, --structured       negotiate structured replies\n"
    "  -P, --pid PID          the server's process: reports its CPU time and memory\n"
    "What:\n"
    "  -o, --op OP            read (default), write, mix:R:W (R reads for W writes), or status:\n"
    "                         walk the allocation of the whole range\n"
    "  -p, --pattern P        rand (default), seq, or perm: each block once, in random order\n"
    "  -b, --block SIZE       bytes a request (default 4k)\n"
    "  -c, --connections N    (default 1)\n"
    "  -d, --depth N          requests in flight on each connection (default 1)\n"
    "  -t, --threads N        client threads (default 1)\n"
    "  -F, --flush-every N    a flush behind every N writes of a connection\n"
    "      --start OFFSET     where blocks begin (default 0)\n"
    "      --end OFFSET       where they end (default: the end of the export)\n"
    "      --stride SIZE      from block to block (default: the block size)\n"
    "      --data KIND        what is written: random (default) or text (can be deflated)\n"
    "      --stamp            mark each sector written, and fail if one read is not marked\n"
    "How long:\n"
    "  -S, --seconds S        (default 2)\n"
    "  -n, --count N          this many requests (status: walks) in place of a time\n"
    "  -w, --warm S           first, without measuring (default 0)\n"
    "      --seed N           picks the random numbers (default 1)\n"
    "      --spin             poll for replies in place of sleeping\n"
    "Other measurements:\n"
    "      --connect          connect, negotiate, close; --threads of them at a time\n"
    "      --idle N           open N connections, read a block on each; the memory they cost\n"
    "      --open N           start SERVER N times: the time until a first byte can be read\n"
    "  -h, --help             this text\n";

enum {
  OPT_START = 256,
  OPT_END,
  OPT_STRIDE,
  OPT_DATA,
  OPT_STAMP,
  OPT_SEED,
  OPT_SPIN,
  OPT_CONNECT,
  OPT_IDLE,
  OPT_OPEN,
};

static const struct option longopts[] = {
  { "unix", required_argument, NULL, 'u' },
  { "tcp", required_argument, NULL, 'T' },
  { "export", required_argument, NULL, 'e' },
  { "structured", no_argument, NULL, 's' },
  { "pid", required_argument, NULL, 'P' },
  { "op", required_argument, NULL, 'o' },
  { "pattern", required_argument, NULL, 'p' },
  { "block", required_argument, NULL, 'b' },
  { "connections", required_argument, NULL, 'c' },
  { "depth", required_argument, NULL, 'd' },
  { "threads", required_argument, NULL, 't' },
  { "flush-every", required_argument, NULL, 'F' },
  { "start", required_argument, NULL, OPT_START },
  { "end", required_argument, NULL, OPT_END },
  { "stride", required_argument, NULL, OPT_STRIDE },
  { "data", required_argument, NULL, OPT_DATA },
  { "stamp", no_argument, NULL, OPT_STAMP },
  { "seconds", required_argument, NULL, 'S' },
  { "count", required_argument, NULL, 'n' },
  { "warm", required_argument, NULL, 'w' },
  { "seed", required_argument, NULL, OPT_SEED },
  { "spin", no_argument, NULL, OPT_SPIN },
  { "connect", no_argument, NULL, OPT_CONNECT },
  { "idle", required_argument, NULL, OPT_IDLE },
  { "open", required_argument, NULL, OPT_OPEN },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 },
};

static void
parse_op (struct traffic *t, const char *text)
{
  char extra;

  t->read_weight = t->write_weight = 0;
  t->status = false;
  if (!strcmp (text, "read"))
    t->read_weight = 1;
  else if (!strcmp (text, "write"))
    t->write_weight = 1;
  else if (!strcmp (text, "status"))
    t->status = true;
  else if (sscanf (text, "mix:%4u:%4u%c", &t->read_weight, &t->write_weight, &extra) != 2 ||
           !t->read_weight || !t->write_weight)
    fatal ("--op: '%s' is none of read, write, status, mix:READS:WRITES", text);
}

static enum pattern
parse_pattern (const char *text)
{
  if (!strcmp (text, "rand"))
    return PATTERN_RANDOM;
  if (!strcmp (text, "seq"))
    return PATTERN_SEQ;
  if (!strcmp (text, "perm"))
    return PATTERN_PERMUTE;
  fatal ("--pattern: '%s' is none of rand, seq, perm", text);
}

static void
parse_tcp (struct target *t, char *text)
{
  char *colon = strrchr (text, ':');

  if (!colon || colon == text || !colon[1])
    fatal ("--tcp: '%s' is not HOST:PORT", text);
  *colon = '\0';
  t->host = text;
  t->port = colon + 1;
}

static bool
parse_data (const char *text)
{
  if (strcmp (text, "random") && strcmp (text, "text"))
    fatal ("--data: '%s' is neither random nor text", text);
  return !strcmp (text, "text");
}

static void
defaults (struct options *o)
{
  memset (o, 0, sizeof *o);
  o->t.target.export_name = "";
  o->t.connections = o->t.depth = o->t.threads = 1;
  o->t.block = 4096;
  o->t.read_weight = 1;
  o->t.run_ns = UINT64_C (2000000000);
  o->t.seed = 1;
}

static void
parse_option (struct options *o, int c)
{
  struct traffic *t = &o->t;

  switch (c) {
  case 'u':
    t->target.unix_path = optarg;
    break;
  case 'T':
    parse_tcp (&t->target, optarg);
    break;
  case 'e':
    t->target.export_name = optarg;
    break;
  case 's':
    t->target.structured = true;
    break;
  case 'P':
    t->pid = (pid_t)parse_number ("--pid", optarg, 1, 1 << 22);
    break;
  case 'o':
    parse_op (t, optarg);
    break;
  case 'p':
    t->pattern = parse_pattern (optarg);
    break;
  case 'b':
    t->block = (uint32_t)parse_size ("--block", optarg);
    if (t->block < 512 || t->block > 32 << 20 || parse_size ("--block", optarg) != t->block)
      fatal ("--block: '%s' is not between 512 and 32M", optarg);
    break;
  case 'c':
    t->connections = (unsigned)parse_number ("--connections", optarg, 1, 65536);
    break;
  case 'd':
    t->depth = (unsigned)parse_number ("--depth", optarg, 1, 4096);
    break;
  case 't':
    t->threads = (unsigned)parse_number ("--threads", optarg, 1, 1024);
    break;
  case 'F':
    t->flush_every = (unsigned)parse_number ("--flush-every", optarg, 1, 1000000);
    break;
  case OPT_START:
    t->start = parse_size ("--start", optarg);
    break;
  case OPT_END:
    t->end = parse_size ("--end", optarg);
    break;
  case OPT_STRIDE:
    t->stride = parse_size ("--stride", optarg);
    break;
  case OPT_DATA:
    t->compressible = parse_data (optarg);
    break;
  case OPT_STAMP:
    t->stamp = true;
    break;
  case 'S':
    t->run_ns = parse_seconds ("--seconds", optarg);
    break;
  case 'n':
    t->count = parse_number ("--count", optarg, 1, UINT64_MAX >> 16);
    break;
  case 'w':
    t->warm_ns = parse_seconds ("--warm", optarg);
    break;
  case OPT_SEED:
    t->seed = parse_number ("--seed", optarg, 0, UINT32_MAX);
    break;
  case OPT_SPIN:
    t->spin = true;
    break;
  case OPT_CONNECT:
    o->mode = MODE_CONNECT;
    break;
  case OPT_IDLE:
    o->mode = MODE_IDLE;
    o->n = (unsigned)parse_number ("--idle", optarg, 1, 1000000);
    break;
  case OPT_OPEN:
    o->mode = MODE_OPEN;
    o->n = (unsigned)parse_number ("--open", optarg, 1, 100000);
    break;
  case 'h':
    fputs (help, stdout);
    exit (EXIT_SUCCESS);
  default:
    exit (EXIT_FAILURE); /* getopt has said what */
  }
}

static void
check_options (struct options *o, int nargs)
{
  struct traffic *t = &o->t;

  if (!t->target.unix_path == !t->target.host)
    fatal ("give one of --unix and --tcp");
  if ((o->mode == MODE_OPEN) != (nargs > 0))
    fatal ("--open, and nothing else, takes a command to start behind its options");
  if (o->mode == MODE_IDLE && !t->pid)
    fatal ("--idle needs --pid");
  if (t->count && t->warm_ns)
    fatal ("--warm does not go with --count: what is counted is measured from the first request");
  if (t->status && t->flush_every)
    fatal ("--flush-every needs --op write");
  if (!t->stride)
    t->stride = t->block;
  if (t->stride < t->block)
    fatal ("--stride: %ju is smaller than a block of %u", (uintmax_t)t->stride, t->block);
  t->target.allocation = t->status;
}

static double
micros (uint64_t ns)
{
  return (double)ns / 1e3;
}

static double
per (double v, double n)
{
  return n > 0 ? v / n : 0;
}

static void
print_latency (const struct hist *h)
{
  printf (" lat_min_us=%.2f lat_p50_us=%.2f lat_p99_us=%.2f", micros (h->min),
          micros (hist_percentile (h, 50)), micros (hist_percentile (h, 99)));
}

static void
run_traffic (const struct traffic *t)
{
  struct traffic_result r;
  struct process_memory mem;
  double seconds, n;

  traffic_run (t, &r);
  seconds = (double)r.elapsed_ns / 1e9;
  n = (double)r.requests;
  if (!r.requests)
    fatal ("not one request was answered in %.3f seconds", seconds);
  printf ("seconds=%.6f requests=%ju requests_s=%.1f mb_s=%.2f flushes_s=%.1f", seconds,
          (uintmax_t)r.requests, n / seconds, (double)r.bytes / seconds / 1e6,
          (double)r.flushes / seconds);
  print_latency (&r.latency);
  if (t->status)
    printf (" extents=%ju walk_s=%.6f", (uintmax_t)r.extents, per (seconds, r.walks));
  printf (" own_us=%.3f own_busy=%.3f", micros (r.own_cpu_ns) / n,
          (double)r.own_cpu_ns / (double)r.elapsed_ns);
  if (t->pid) {
    process_memory (t->pid, &mem);
    printf (" server_us=%.3f server_busy=%.3f rss_kib=%ju anon_kib=%ju",
            micros (r.server_cpu_ns) / n, (double)r.server_cpu_ns / (double)r.elapsed_ns,
            (uintmax_t)mem.rss >> 10, (uintmax_t)mem.anon >> 10);
  }
  putchar ('\n');
}

static void
run_connect (const struct traffic *t)
{
  struct connect_result r;
  double n;

  connect_run (&t->target, t->threads, t->run_ns, t->pid, &r);
  n = (double)r.connects;
  printf ("seconds=%.6f connects_s=%.1f", (double)r.elapsed_ns / 1e9,
          n / ((double)r.elapsed_ns / 1e9));
  print_latency (&r.latency);
  printf (" own_us=%.3f", per (micros (r.own_cpu_ns), n));
  if (t->pid)
    printf (" server_us=%.3f", per (micros (r.server_cpu_ns), n));
  putchar ('\n');
}

static void
run_idle (const struct traffic *t, unsigned n)
{
  struct idle_result r;

  idle_run (&t->target, n, t->block, t->pid, &r);
  printf ("connections=%u before_kib=%ju after_kib=%ju each_kib=%.2f threads=%u\n", n,
          (uintmax_t)r.before.rss >> 10, (uintmax_t)r.after.rss >> 10,
          ((double)r.after.rss - (double)r.before.rss) / 1024 / n, r.after.threads);
}

static void
run_open (const struct traffic *t, unsigned n, char *const command[])
{
  struct hist *h = xcalloc (1, sizeof *h);

  open_run (&t->target, n, command, h);
  printf ("starts=%u", n);
  print_latency (h);
  putchar ('\n');
  free (h);
}

/* A thousand connections need a thousand descriptors. */
static void
raise_descriptor_limit (void)
{
  struct rlimit rl;

  if (getrlimit (RLIMIT_NOFILE, &rl) == 0) {
    rl.rlim_cur = rl.rlim_max;
    setrlimit (RLIMIT_NOFILE, &rl);
  }
}

int
main (int argc, char *argv[])
{
  struct options o;
  int c;

  defaults (&o);
  while ((c = getopt_long (argc, argv, "u:T:e:sP:o:p:b:c:d:t:F:S:n:w:h", longopts, NULL)) != -1)
    parse_option (&o, c);
  check_options (&o, argc - optind);
  signal (SIGPIPE, SIG_IGN);
  raise_descriptor_limit ();
  switch (o.mode) {
  case MODE_TRAFFIC:
    run_traffic (&o.t);
    break;
  case MODE_CONNECT:
    run_connect (&o.t);
    break;
  case MODE_IDLE:
    run_idle (&o.t, o.n);
    break;
  case MODE_OPEN:
    run_open (&o.t, o.n, argv + optind);
    break;
  }
  return EXIT_SUCCESS;
}
