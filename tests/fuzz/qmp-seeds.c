/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What fuzzing the control socket (fuzz-qmp.c) begins with.
 */

#include <stdio.h>

#include "fuzz.h"
#include "qmp-choice.h"
#include "qmp-words.h"
#include "qmp-world.h"

/* What is left out of a command's arguments: those that are in the way of others. */
static uint8_t
without (enum qmp_word word)
{
  switch (word) {
  case QMP_EXPORT_ADD:
    return 0x60;
  case QMP_RESIZE:
  case QMP_SNAPSHOT_DELETE:
  case QMP_BITMAP_ADD:
    return 0x04;
  default:
    return 0;
  }
}

static void
emit_records (fuzz_emit emit, void *opaque, const char *name, const struct choice *c,
              const uint8_t *records, size_t n)
{
  uint8_t input[512];

  memcpy (input, c, sizeof *c);
  memcpy (input + sizeof *c, records, n);
  emit (opaque, name, input, sizeof *c + n);
}

static void
seed_records (fuzz_emit emit, void *opaque)
{
  /* Each command, between writes, with two values of its second argument; and what is there then.
   */
  for (unsigned i = 0; i < WORLD_IMAGES; ++i)
    for (unsigned k = 0; k < 2 * QMP_WORDS; ++k) {
      enum qmp_word word = (enum qmp_word) (k / 2);
      bool add = word == QMP_EXPORT_ADD;
      const uint8_t records[] = { /* a write */
                                  5, 4, 90,
                                  /* the command, its arguments, their values */
                                  0x1a, (uint8_t)word, without (word), 0, 0,
                                  add     ? 1
                                  : k % 2 ? 0
                                          : 8,
                                  0, 0, 0,
                                  /* another write, a look at all, and the metrics */
                                  8, 5, 100, 90, 0x1a, QMP_NODES, 0, 0, 1, 8, 7, 0x2a, QMP_EXPORTS,
                                  0, 1
      };
      struct choice c = { .image = (uint8_t)i,
                          .bits = (uint8_t)(AT_ONCE | (i == 1 ? SMALL_QUEUE : 0)),
                          .seed = (uint8_t)i,
                          .in = (uint8_t)(3 * i + 4),
                          .out = (uint8_t)(16 - 2 * i) };
      char name[96];

      snprintf (name, sizeof name, "%s-%s-%u", qmp_command_name (word), world_images[i], k % 2);
      emit_records (emit, opaque, name, &c, records, sizeof records);
    }
}

/* A bitmap and a snapshot at one instant, and the same, but nothing is done after all. */
static void
seed_transactions (fuzz_emit emit, void *opaque)
{
  const uint8_t add = QMP_BITMAP_ADD - QMP_SNAPSHOT, none = QMP_UNKNOWN - QMP_SNAPSHOT;
  const uint8_t records[] = { 0x1a, QMP_TRANSACTION,
                              2,    0,
                              2,    add,
                              4,    0,
                              2,    0,
                              0,    0,
                              0,    0,
                              2,    8,
                              0x1a, QMP_TRANSACTION,
                              2,    0,
                              3,    add,
                              4,    0,
                              4,    0,
                              0,    0,
                              0,    0,
                              3,    none,
                              1,    8 };

  for (unsigned i = 0; i < WORLD_IMAGES; ++i) {
    struct choice c = { .image = (uint8_t)i, .bits = AT_ONCE, .in = 17, .out = 17 };
    char name[64];

    snprintf (name, sizeof name, "transactions-%s", world_images[i]);
    emit_records (emit, opaque, name, &c, records, sizeof records);
  }
}

static void
seed_events (fuzz_emit emit, void *opaque)
{
  /* A second client that does not read, many events, a third that leaves with a command under
   * way. */
  static const uint8_t records[] = {
    4,    1,    0x1a, QMP_CAPABILITIES,
    1,    1,    4,    0x81,
    3,    200, /* deaf */
    4,    2,    0x1a, QMP_CAPABILITIES,
    1,    1,    0x1a, QMP_NODES,
    1,    1, /* leaves */
    4,    0,    4,    0x42,
    3,    100,  8,    4,
    0xc1, /* reads */
    2,    0x94, 0x1a, QMP_STATUS,
    0,    1,    2,    0x90,
    2,    0x0e, 0,    2,
    0x0d, 1, /* much */
    0,    3,    '{',  0xff,
    '"',  1,    7,    QMP_RESIZE,
    2,    '{',  '}' /* bytes */
  };
  struct choice c = { .bits = SMALL_QUEUE, .in = 9, .out = 12 };

  emit_records (emit, opaque, "events", &c, records, sizeof records);
}

static void
seed_plain (fuzz_emit emit, void *opaque)
{
  static const char *const texts[] = {
    "{\"execute\": \"query-status\", \"id\": 1}{'execute': 'query-commands', 'id': {'a': [1]}}\n",
    ("{\"execute\": \"transaction\", \"arguments\": {\"actions\": [{\"type\": "
     "\"block-dirty-bitmap-add\", \"data\": {\"node\": \"x\", \"name\": \"n\"}}, {\"type\": "
     "\"blockdev-snapshot-internal-sync\", \"data\": {\"device\": \"x\", \"name\": \"s\"}}, "
     "{\"type\": \"abort\", \"data\": {}}]}}"),
    ("{\"execute\": \"block-export-add\", \"arguments\": {\"type\": \"nbd\", \"id\": \"y\", "
     "\"file\": \"other\", \"writable\": true, \"snapshots\": true}}{\"execute\": "
     "\"block-export-del\", \"arguments\": {\"id\": \"y\", \"mode\": \"hard\"}}"),
    ("{\"execute\": \"block-dirty-bitmap-merge\", \"arguments\": {\"node\": \"x\", \"target\": "
     "\"b0\", \"bitmaps\": [\"b1\", {\"node\": \"x\", \"name\": \"b1\"}]}}"),
    "{\"execute\": 7} [1, 2] \"\\ud800\" nul {\"execute\": \"x\", \"exec-oob\": 1} \x01 {\"a\"",
    "{'execute': 'block_resize', 'arguments': {'device': 'x', 'size': '1M'}}",
  };

  for (unsigned i = 0; i < sizeof texts / sizeof texts[0]; ++i) {
    struct choice c = { .image = (uint8_t)i, .bits = PLAIN, .in = 14, .out = 14 };
    char name[32];

    snprintf (name, sizeof name, "plain%u", i);
    emit_records (emit, opaque, name, &c, (const uint8_t *)texts[i], strlen (texts[i]));
  }
}

/* Checks of a sound image, of several with a lie in them, and of one for which there is no time. */
static void
seed_checks (fuzz_emit emit, void *opaque)
{
  for (unsigned i = 0; i < WORLD_IMAGES; ++i) {
    uint8_t records[256], n = 0;
    struct choice c = { .image = (uint8_t)i,
                        .bits = AT_ONCE,
                        .in = 17,
                        .out = 17,
                        .more = i & 1 ? CONFIGURED : 0,
                        .tick = 60 };
    const uint8_t check[] = { 0x1a, QMP_CHECK, 2, 0, 0, 8 },
                  slow[] = { 0x1a, QMP_CHECK, 0, 0, 0, 3 },
                  write[] = { 5, 4, 90, 5, (uint8_t)(100 + i), 7 };
    char name[64];

    memcpy (records, write, sizeof write);
    n = sizeof write;
    for (unsigned k = 0; k < 12; ++k) {
      /* Of the header, and of the tables behind it. */
      const uint8_t lie[] = { 0x86, (uint8_t)(k * 7 + i), (uint8_t)(k & 1), (uint8_t)k };

      memcpy (records + n, lie, sizeof lie);
      memcpy (records + n + sizeof lie, check, sizeof check);
      n = (uint8_t)(n + sizeof lie + sizeof check);
    }
    memcpy (records + n, slow, sizeof slow);
    snprintf (name, sizeof name, "checks-%s", world_images[i]);
    emit_records (emit, opaque, name, &c, records, n + sizeof slow);
  }
}

/* An export more, the same again, a description, one that is another, none, one that cannot be. */
static void
seed_reloads (fuzz_emit emit, void *opaque)
{
  static const uint8_t records[] = { 0x1a, QMP_RELOAD,
                                     0,    1,
                                     8, /* as it is */
                                     0x47, 2,
                                     0,    0,
                                     3,    0,
                                     1,    0, /* x, y */
                                     0x1a, QMP_RELOAD,
                                     0,    1,
                                     8, /**/
                                     0x47, 2,
                                     4,    0,
                                     3,    0,
                                     0,    1,
                                     0, /* x described */
                                     0x1a, QMP_RELOAD,
                                     0,    1,
                                     8, /**/
                                     0x47, 2,
                                     4,    0,
                                     3,    9,
                                     4,    1,
                                     0,    17, /* x compresses */
                                     0x1a, QMP_RELOAD,
                                     0,    1,
                                     8, /**/
                                     0x47, 0x84,
                                     0,    0,
                                     3,    0,
                                     1,    0,
                                     2,    8, /* a secret */
                                     0x1a, QMP_RELOAD,
                                     0,    1,
                                     8, /**/
                                     0x47, 0x44,
                                     0,    0,
                                     3,    0,
                                     1,    0,
                                     0,    3,
                                     4,    13, /* nowhere, help */
                                     0x1a, QMP_RELOAD,
                                     0,    1,
                                     8, /**/
                                     0x47, 2,
                                     0,    3,
                                     0,    0,
                                     1,    3, /* two for one file */
                                     0x1a, QMP_RELOAD,
                                     0,    1,
                                     8, /**/
                                     0x47, 1,
                                     0,    1,
                                     0, /* y alone */
                                     0x1a, QMP_RELOAD,
                                     0,    1,
                                     8, /**/
                                     0x1a, QMP_TAKEOVER,
                                     0,    0,
                                     0,    8, /* to x */
                                     0x1a, QMP_TAKEOVER,
                                     0,    0,
                                     1,    8 }; /* to y */

  for (unsigned i = 0; i < 4; ++i) {
    struct choice c = { .image = (uint8_t)(1 + i),
                        .bits = (uint8_t)(AT_ONCE | (i == 3 ? BUSY : 0)),
                        .in = 17,
                        .out = 17,
                        .more = (uint8_t)(i == 0 ? BOUND : CONFIGURED) };
    char name[32];

    snprintf (name, sizeof name, "reloads%u", i);
    emit_records (emit, opaque, name, &c, records, sizeof records);
  }
}

void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  seed_records (emit, opaque);
  seed_checks (emit, opaque);
  seed_reloads (emit, opaque);
  seed_transactions (emit, opaque);
  seed_events (emit, opaque);
  seed_plain (emit, opaque);
}
