/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A client's bytes, from the first one on, given to a session (session.h) in pieces, on one thread,
 * with an image in memory.
 *
 * The input begins with 16 bytes that choose the export, how the bytes are cut, both coming and
 * going, and how often another process goes on with the session (nbd-connection.h).  Then come
 * records, from which the client's bytes are put together (nbd-client.h).
 *
 * The oracle: what comes back is an answer (judge.h); the session always goes on or ends; and no
 * memory is left when it has ended.
 */

#include <stdio.h>

#include "fuzz.h"
#include "judge.h"
#include "nbd-client.h"
#include "nbd-connection.h"

int
LLVMFuzzerTestOneInput (const uint8_t *bytes, size_t size)
{
  struct input in = { bytes, size };
  struct connection w;
  struct choice c;

  fuzz_begin ();
  take (&in, &c, sizeof c);
  connection_begin (&w, &c);
  client_assemble (&w.client, &in, (enum start) (c.start % STARTS), w.exports.first->size);
  connection_run (&w);

  const struct bytes *disk = connection_disk (&w);
  judge (&(struct trial){ .client = &w.client,
                          .server = &w.server,
                          .cut = w.cut || (c.bits & STOPPING),
                          .disk = disk->data,
                          .size = disk->n });
  connection_end (&w);
  return 0;
}

/* ---- inputs ---------------------------------------------------------------------------------- */

void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  /* Some of each: read, write, zeroes, discard, flush, block status, cache, resize. */
  static const uint8_t plain[] = { 6, 0,    0, 1, 0, 0, 0, 8,   6, 0x81, 0, 7, 0, 3, 0, 9,
                                   6, 6,    0, 0, 0, 4, 0, 8,   6, 4,    0, 0, 0, 0, 0, 64,
                                   6, 7,    0, 0, 0, 0, 7, 255, 6, 3,    0, 0, 0, 0, 0, 0,
                                   6, 0,    4, 0, 0, 0, 7, 9,   6, 5,    0, 0, 0, 0, 0, 8,
                                   6, 0x88, 0, 0, 2, 0, 0, 0,   6, 0,    0, 0, 0, 1, 7, 200 };
  static const uint8_t talk[] = { 0x34, 0x82, 0x33, 2, 0x32, 0xb2, 0x23, 0x40, 0x33, 0x0c,
                                  0x13, 0x83, 0x03, 1, 6,    0,    0,    1,    0,    0,
                                  0,    8,    6,    2, 0,    0,    0,    0,    0,    0 };
  /* What is read once is known the next time; a write in between. */
  static const uint8_t reads[] = { 6, 0, 0, 0, 0, 0, 0, 8,  6, 0, 0, 0, 0, 0,  0, 8,
                                   6, 0, 0, 0, 0, 3, 0, 16, 6, 0, 0, 0, 1, 7,  1, 200,
                                   6, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 0, 0, 96, 0, 200,
                                   6, 1, 0, 7, 0, 9, 0, 1,  6, 0, 0, 0, 0, 8,  0, 8,
                                   6, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 0, 0, 64, 0, 192 };
  uint8_t input[256];
  char name[64];

  for (unsigned start = 0; start < STARTS; ++start)
    for (unsigned k = 0; k < 2 * CONNECTION_IMAGES; ++k) {
      unsigned i = k % CONNECTION_IMAGES;
      struct choice c = { .start = (uint8_t)start,
                          .image = (uint8_t)i,
                          .handover = (uint8_t)(k / CONNECTION_IMAGES),
                          .bits = (uint8_t)(i == 0   ? RESIZABLE
                                            : i == 2 ? COMPRESS
                                                     : 0),
                          .in = (uint8_t)(i * 3 + 1),
                          .out = (uint8_t)(18 - i * 3),
                          .detect = (uint8_t)i };
      const uint8_t *p = start == RAW ? talk : plain;
      size_t n = start == RAW ? sizeof talk : sizeof plain;

      memcpy (input, &c, sizeof c);
      memcpy (input + sizeof c, p, n);
      snprintf (name, sizeof name, "start%u-%s%s", start, connection_image[i],
                c.handover ? "-handed" : "");
      emit (opaque, name, input, sizeof c + n);
    }
  /* From a file with a descriptor, by each of the ways that reads may go. */
  for (unsigned start = 1; start < STARTS; ++start)
    for (unsigned more = 0; more < 8; ++more) {
      struct choice c = { .start = (uint8_t)start,
                          .image = (uint8_t)((start + more) % CONNECTION_IMAGES),
                          .bits = REAL_FILE,
                          .more = (uint8_t)more,
                          .seed = (uint8_t)more,
                          .handover = (uint8_t)(more == 7 ? 3 : 0),
                          .in = 5, /* each in a turn of its own */
                          .out = (uint8_t)(10 + more) };

      memcpy (input, &c, sizeof c);
      memcpy (input + sizeof c, reads, sizeof reads);
      memcpy (input + sizeof c + sizeof reads, plain, sizeof plain);
      snprintf (name, sizeof name, "real%u-%u", start, more);
      emit (opaque, name, input, sizeof c + sizeof reads + sizeof plain);
    }
  /* A write of 6 MiB, which is taken in in pieces, and one that is compressed. */
  for (unsigned k = 0; k < 8; ++k) {
    unsigned i = k % 4;
    static const uint8_t writes[] = { 6, 1, 0, 7, 0, 1, 163, 6, 6, 0, 0, 0, 0, 1, 0, 8 };
    struct choice c = { .start = (uint8_t)(EXPORT_NAME + i % 3),
                        .image = i < 3 ? 5 : 2,
                        .bits = i < 3 ? 0 : COMPRESS,
                        .in = 17,
                        .out = 17,
                        .handover = (uint8_t)(k / 4) };

    memcpy (input, &c, sizeof c);
    memcpy (input + sizeof c, writes, sizeof writes);
    if (i == 3)
      input[sizeof c + 6] = 3 | 15 << 3, input[sizeof c + 7] = 1; /* 32 KiB */
    snprintf (name, sizeof name, "long%u%s", i, c.handover ? "-handed" : "");
    emit (opaque, name, input, sizeof c + sizeof writes);
  }
}
