/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the benchmark tools share: giving up, clocks, a latency histogram, a random number
 * generator, sizes on the command line, and what the kernel says about a process.
 *
 * Units: times are nanoseconds, sizes bytes.  Nothing here locks; a histogram belongs to one
 * thread.
 */

#ifndef BENCH_UTIL_H
#define BENCH_UTIL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Prints "PROGRAM: message" and exits with status 1.  A benchmark that went wrong has no result. */
void fatal (const char *fmt, ...) __attribute__ ((noreturn, format (printf, 1, 2)));

void *xcalloc (size_t n, size_t size); /* zeroed, or fatal */

uint64_t now_ns (void);      /* CLOCK_MONOTONIC */
uint64_t own_cpu_ns (void);  /* user and system time of all our threads */
void sleep_ns (uint64_t ns); /* returns early when a signal arrives */

/* "4k", "1M", "2G", "1T" or plain bytes; fatal, naming WHAT, if it is anything else. */
uint64_t parse_size (const char *what, const char *text);
/* A plain decimal number in [min, max]; fatal otherwise. */
uint64_t parse_number (const char *what, const char *text, uint64_t min, uint64_t max);
/* Seconds, with a fraction, as nanoseconds. */
uint64_t parse_seconds (const char *what, const char *text);

/* ---- other processes ----------------------------------------------------------------------- */

/* CPU time used by PID, all its threads, ended ones included.  The process CPU clock is used and
 * not /proc/PID/stat: it is the same sum, in nanoseconds in place of 10 ms ticks. */
uint64_t process_cpu_ns (pid_t pid);

struct process_memory {
  uint64_t rss;  /* bytes resident, shared files included */
  uint64_t anon; /* the part of it that is private */
  unsigned threads;
};
void process_memory (pid_t pid, struct process_memory *mem);

/* ---- random numbers (splitmix64: one word of state, good enough to pick offsets) ------------ */

uint64_t rng_next (uint64_t *state);
/* A random permutation of [0, n): where does the I-th go?  SEED picks the permutation. */
uint64_t permute (uint64_t i, uint64_t n, uint64_t seed);

/* ---- latency histogram ----------------------------------------------------------------------
 * Log-linear: 64 buckets in every power of two, so a value is known to 1.6 %. */

enum { HIST_SUB_BITS = 6, HIST_BUCKETS = (64 - HIST_SUB_BITS + 1) << HIST_SUB_BITS };

struct hist {
  uint64_t count, min;
  uint64_t bucket[HIST_BUCKETS];
};

void hist_add (struct hist *h, uint64_t ns);
void hist_merge (struct hist *into, const struct hist *from);
/* The value that PERCENT of all values do not exceed; 0 if there are none. */
uint64_t hist_percentile (const struct hist *h, double percent);

#endif /* BENCH_UTIL_H */
