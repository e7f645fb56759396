/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The parts of the NBD protocol that the benchmark tools speak, and big-endian access to it.
 *
 * Kept apart from the server's own definitions on purpose: a load generator that shared them would
 * agree with the server about a mistake.  Names follow the protocol document
 * (NetworkBlockDevice/nbd doc/proto.md).
 */

#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define NBD_MAGIC        UINT64_C (0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_IHAVEOPT     UINT64_C (0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_REP_MAGIC    UINT64_C (0x3e889045565a9)
#define NBD_REQUEST      UINT32_C (0x25609513)
#define NBD_SIMPLE_REPLY UINT32_C (0x67446698)
#define NBD_CHUNK        UINT32_C (0x668e33ef)

enum { NBD_FIXED_NEWSTYLE = 1, NBD_NO_ZEROES = 2 };

enum {
  NBD_OPT_EXPORT_NAME = 1,
  NBD_OPT_ABORT = 2,
  NBD_OPT_GO = 7,
  NBD_OPT_STRUCTURED_REPLY = 8,
  NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ACK          UINT32_C (1)
#define NBD_REP_INFO         UINT32_C (3)
#define NBD_REP_META_CONTEXT UINT32_C (4)
#define NBD_REP_ERROR        UINT32_C (0x80000000) /* set in every error reply */
#define NBD_REP_ERR_UNSUP    UINT32_C (0x80000001)

enum { NBD_INFO_EXPORT = 0 };

enum { NBD_FLAG_HAS_FLAGS = 1, NBD_FLAG_SEND_FLUSH = 4, NBD_FLAG_MULTI_CONN = 256 };

enum {
  NBD_CMD_READ = 0,
  NBD_CMD_WRITE = 1,
  NBD_CMD_DISC = 2,
  NBD_CMD_FLUSH = 3,
  NBD_CMD_BLOCK_STATUS = 7,
};

enum { NBD_CHUNK_DONE = 1 }; /* flag */

enum {
  NBD_CHUNK_OFFSET_DATA = 1,
  NBD_CHUNK_BLOCK_STATUS = 5,
  NBD_CHUNK_ERROR_BIT = 1 << 15, /* set in every error chunk's type */
};

enum { NBD_EIO = 5, NBD_EINVAL = 22 };

enum { REQUEST_SIZE = 28, SIMPLE_REPLY_SIZE = 16, CHUNK_SIZE = 20, OPTION_REPLY_SIZE = 20 };

static inline uint16_t
get16 (const uint8_t *p)
{
  uint16_t v;

  memcpy (&v, p, sizeof v);
  return be16toh (v);
}

static inline uint32_t
get32 (const uint8_t *p)
{
  uint32_t v;

  memcpy (&v, p, sizeof v);
  return be32toh (v);
}

static inline uint64_t
get64 (const uint8_t *p)
{
  uint64_t v;

  memcpy (&v, p, sizeof v);
  return be64toh (v);
}

static inline void
put16 (uint8_t *p, uint16_t v)
{
  v = htobe16 (v);
  memcpy (p, &v, sizeof v);
}

static inline void
put32 (uint8_t *p, uint32_t v)
{
  v = htobe32 (v);
  memcpy (p, &v, sizeof v);
}

static inline void
put64 (uint8_t *p, uint64_t v)
{
  v = htobe64 (v);
  memcpy (p, &v, sizeof v);
}

#endif /* BENCH_WIRE_H */
