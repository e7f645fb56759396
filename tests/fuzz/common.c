/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What all fuzz targets are made of: see fuzz.h.
 *
 * Linked with --wrap for two of the engine's functions and three of the system's: deriving a key
 * takes no time here, however many rounds a header asks for (the bound on these is tested by
 * test-luks), and what is unpredictable elsewhere (also UUIDs, the times of snapshots, and how fast
 * this processor is) is the same in each run.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>

#include "cipher.h"
#include "fuzz.h"
#include "mem.h"

#define ROUNDS 2u

static uint64_t random_state;
uint64_t fuzz_tick_ns;

int __wrap_q_random (void *buf, size_t len, bool key);
ssize_t __wrap_getrandom (void *buf, size_t len, unsigned flags);
int __wrap_gettimeofday (struct timeval *now, void *zone);
int __real_clock_gettime (clockid_t clock, struct timespec *now);
int __wrap_clock_gettime (clockid_t clock, struct timespec *now);
int __real_q_pbkdf2 (const char *hash, const void *password, size_t password_len, const void *salt,
                     size_t salt_len, uint32_t iterations, void *out, size_t len);
int __wrap_q_pbkdf2 (const char *hash, const void *password, size_t password_len, const void *salt,
                     size_t salt_len, uint32_t iterations, void *out, size_t len);

int
__wrap_q_random (void *buf, size_t len, bool key)
{
  (void)key;
  for (size_t i = 0; i < len; ++i)
    ((uint8_t *)buf)[i] = (uint8_t)random_next (&random_state);
  return 0;
}

ssize_t
__wrap_getrandom (void *buf, size_t len, unsigned flags)
{
  (void)flags;
  __wrap_q_random (buf, len, false);
  return (ssize_t)len;
}

int
__wrap_gettimeofday (struct timeval *now, void *zone)
{
  (void)zone;
  *now = (struct timeval){ .tv_sec = 1000000000 };
  return 0;
}

/* No thread ever takes time.  The other clocks are for waiting, but for those who say otherwise. */
int
__wrap_clock_gettime (clockid_t clock, struct timespec *now)
{
  static uint64_t ticks; /* only differences count */

  if (clock == CLOCK_MONOTONIC && fuzz_tick_ns > 0) {
    uint64_t ns = __atomic_add_fetch (&ticks, fuzz_tick_ns, __ATOMIC_RELAXED);

    *now = (struct timespec){ (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
    return 0;
  }
  if (clock != CLOCK_THREAD_CPUTIME_ID)
    return __real_clock_gettime (clock, now);
  *now = (struct timespec){ 0 };
  return 0;
}

int
__wrap_q_pbkdf2 (const char *hash, const void *password, size_t password_len, const void *salt,
                 size_t salt_len, uint32_t iterations, void *out, size_t len)
{
  return __real_q_pbkdf2 (hash, password, password_len, salt, salt_len,
                          iterations < ROUNDS ? iterations : ROUNDS, out, len);
}

static void
ignore (void *opaque, enum q_log_level level, const char *text)
{
  (void)opaque;
  if (getenv ("FUZZ_LOG"))
    fprintf (stderr, "log %d: %s\n", (int)level, text);
}

void
fuzz_begin (void)
{
  static bool begun;

  if (!begun)
    q_set_log (ignore, NULL);
  begun = true;
  random_state = random_seed (1);
}

void
broken (const char *fmt, ...)
{
  va_list ap;

  fflush (stdout);
  fputs ("oracle: ", stderr);
  va_start (ap, fmt);
  vfprintf (stderr, fmt, ap);
  va_end (ap);
  fputc ('\n', stderr);
  abort ();
}
