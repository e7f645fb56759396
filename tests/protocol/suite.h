/* SPDX-License-Identifier: BSD-3-Clause */

/* A case of the suite, and how it tells its verdict.
 *
 * A case is a function that returns when the server did right. It leaves early through CHECK,
 * fail or skip, from any depth of calls. Whatever it opened and allocated belongs to the case and
 * is released by the runner, so that no case needs an exit path of its own.
 */

#ifndef SUITE_H
#define SUITE_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How requests and replies look once negotiated. */
enum mode { SIMPLE, STRUCTURED, EXTENDED, MODES };

/* Masks of modes a case runs in. ONCE is for a case that negotiates by itself. */
#define IN_SIMPLE     (1u << SIMPLE)
#define IN_STRUCTURED (1u << STRUCTURED)
#define IN_EXTENDED   (1u << EXTENDED)
#define IN_CHUNKS     (IN_STRUCTURED | IN_EXTENDED)
#define IN_ALL        (IN_SIMPLE | IN_CHUNKS)
#define ONCE          0u

/* What a case needs from the server or from the image; without it the case is skipped. */
#define WRITABLE    (1u << 0) /* the export can be written */
#define READ_ONLY   (1u << 1) /* the export cannot be written */
#define FLUSH       (1u << 2) /* the transmission flags of the same names */
#define FUA         (1u << 3)
#define TRIM        (1u << 4)
#define ZEROES      (1u << 5)
#define FAST_ZERO   (1u << 6)
#define CACHE       (1u << 7)
#define MULTI_CONN  (1u << 8)
#define DF          (1u << 9)
#define CHUNKS      (1u << 10) /* structured replies can be negotiated */
#define HEADERS     (1u << 11) /* extended headers can be negotiated */
#define NO_HEADERS  (1u << 12) /* they cannot */
#define STATUS      (1u << 13) /* base:allocation can be selected */
#define DEPTH       (1u << 14) /* qemu:allocation-depth can be selected */
#define FILTER      (1u << 15) /* block status with a payload */
#define PATTERN     (1u << 16) /* the image has the layout below */
#define BYTES       (1u << 17) /* the minimum block size is 1 */
#define BLOCKS      (1u << 18) /* it is larger */
#define HUGE        (1u << 19) /* the image is larger than 5 GiB */
#define PLAIN       (1u << 20) /* the server was started without TLS */
#define TLS         (1u << 21) /* the server was started with TLS required */
#define PID         (1u << 22) /* the server's process id is known, on this machine */
#define TWO_EXPORTS (1u << 23) /* a second export's name is known */
#define ERROR_TEXT  (1u << 24) /* the server promises a text with every error */
#define HOLE_CHUNKS (1u << 25) /* the server promises hole chunks for reads of holes */
#define EXACT_MAP   (1u << 26) /* the server promises to tell data, zeroes and holes apart */
#define DESCRIPTION (1u << 27) /* the export has a known description */
#define LARGE_READS                                                                                \
  (1u << 28)                /* the server promises reads beyond the maximum payload, in chunks     \
                             */
#define DRAINS   (1u << 29) /* the server promises to answer what is in flight when told to end */
#define SHUTDOWN (1u << 30) /* the case may end the server */

/* The layout of a prepared image. In the data area the eight bytes at each offset divisible by
 * eight hold that offset, big-endian, plus one; so no byte range of eight or more is all zeroes.
 * The zero area was zeroed explicitly; the hole was never written. Cases write in the scratch
 * area only, in HUGE images also from BIG_START on, and assume nothing of what they find there.
 */
#define KiB         (UINT64_C (1) << 10)
#define MiB         (UINT64_C (1) << 20)
#define GiB         (UINT64_C (1) << 30)
#define DATA_START  UINT64_C (0)
#define DATA_END    (40 * MiB)
#define ZERO_END    (48 * MiB)
#define HOLE_END    (64 * MiB)
#define SCRATCH     HOLE_END
#define SCRATCH_END (128 * MiB)
#define BIG_START   (1 * GiB)
#define IMAGE_SIZE  (6 * GiB + 512) /* no multiple of 4096 */

/* The server under test, as the command line describes it. */
struct target {
  const char *socket;      /* a unix socket, or NULL: */
  const char *host, *port; /* a TCP address */
  const char *export;      /* the export's name; "" is the default export */
  const char *other;       /* a second export, or NULL */
  const char *description; /* what the export is described as, or NULL */
  const struct server *server;
  uint64_t size;  /* of the export, bytes */
  unsigned has;   /* mask of the needs above */
  long pid;       /* 0: unknown */
  int timeout_ms; /* for one wait */
  /* Found by probing */
  uint16_t flags[MODES];                      /* transmission flags */
  uint32_t min_block, preferred, max_payload; /* size constraints, the defaults if not told */
};

enum verdict { PASS, FAIL, DIFF, SKIP, VERDICTS };

struct test {
  const struct target *target;
  enum mode mode;
  enum verdict verdict;
  char why[600];
  jmp_buf leave;
  struct conn *conns;
  struct memory *memory;
};

struct tcase {
  const char *name;
  unsigned modes, needs;
  void (*run) (struct test *);
  const char *rule; /* what the specification asks, in a few words; printed on failure */
};

_Noreturn void fail (struct test *t, const char *fmt, ...) __attribute__ ((format (printf, 2, 3)));
_Noreturn void skip (struct test *t, const char *fmt, ...) __attribute__ ((format (printf, 2, 3)));

#define CHECK(t, cond, ...)                                                                        \
  do {                                                                                             \
    if (!(cond))                                                                                   \
      fail ((t), __VA_ARGS__);                                                                     \
  } while (0)

/* Zeroed memory that lives until the case ends. */
void *test_alloc (struct test *t, size_t size);

/* Grows memory got from test_alloc. */
void *test_realloc (struct test *t, void *p, size_t size);

/* Does the export have this transmission flag in the case's mode? */
bool has_flag (const struct test *t, unsigned nbd_flag);

/* The server kinds and their known differences, known.c */
struct server {
  const char *name;
  unsigned must_have; /* needs it would be a failure to find missing */
  unsigned promises;  /* needs that no probe can find out */
};

const struct server *server_find (const char *name);

/* Why this failure is a known difference of that server, or NULL. Without a failure (why is NULL):
 * why the case must not even be tried, or NULL. */
const char *known_difference (const struct server *server, const char *name, enum mode mode,
                              const char *why);

/* The cases, each table ended by an entry without a name. */
extern const struct tcase handshake_cases[], list_cases[], go_cases[], context_cases[],
    read_cases[], write_cases[], flag_cases[], stream_cases[], chunk_cases[], status_cases[],
    extended_cases[], hostile_cases[], tls_cases[], shutdown_cases[];

#endif
