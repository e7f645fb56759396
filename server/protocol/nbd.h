/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The NBD protocol on the wire: magic numbers, codes and message layouts, as doc/proto.md of the
 * NBD project names them (master, with its branch extension-ext-header).
 *
 * The structs are packed, so a pointer into a receive buffer may be cast to them at any alignment.
 * All fields are big-endian: read them with be16toh and friends.
 */

#ifndef NBD_H
#define NBD_H

#include <assert.h>
#include <stdint.h>

/* ---- limits ---------------------------------------------------------------------------------- */

#define NBD_MAX_STRING  4096                  /* bytes of a name, a description or a message */
#define NBD_MAX_PAYLOAD (32u * 1024u * 1024u) /* what we advertise, and the spec's default */

/* ---- handshake ------------------------------------------------------------------------------- */

#define NBD_MAGIC              UINT64_C (0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC       UINT64_C (0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC UINT64_C (0x0003e889045565a9)

enum nbd_handshake_flags {
  NBD_FLAG_FIXED_NEWSTYLE = 1 << 0, /* the client's flags have the same values */
  NBD_FLAG_NO_ZEROES = 1 << 1,
};

enum nbd_option_type {
  NBD_OPT_EXPORT_NAME = 1,
  NBD_OPT_ABORT = 2,
  NBD_OPT_LIST = 3,
  NBD_OPT_STARTTLS = 5,
  NBD_OPT_INFO = 6,
  NBD_OPT_GO = 7,
  NBD_OPT_STRUCTURED_REPLY = 8,
  NBD_OPT_LIST_META_CONTEXT = 9,
  NBD_OPT_SET_META_CONTEXT = 10,
  NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ERROR_BIT           UINT32_C (0x80000000)
#define NBD_REP_ACK                 UINT32_C (1)
#define NBD_REP_SERVER              UINT32_C (2)
#define NBD_REP_INFO                UINT32_C (3)
#define NBD_REP_META_CONTEXT        UINT32_C (4)
#define NBD_REP_ERR_UNSUP           (NBD_REP_ERROR_BIT | 1)
#define NBD_REP_ERR_POLICY          (NBD_REP_ERROR_BIT | 2)
#define NBD_REP_ERR_INVALID         (NBD_REP_ERROR_BIT | 3)
#define NBD_REP_ERR_PLATFORM        (NBD_REP_ERROR_BIT | 4)
#define NBD_REP_ERR_TLS_REQD        (NBD_REP_ERROR_BIT | 5)
#define NBD_REP_ERR_UNKNOWN         (NBD_REP_ERROR_BIT | 6)
#define NBD_REP_ERR_SHUTDOWN        (NBD_REP_ERROR_BIT | 7)
#define NBD_REP_ERR_BLOCK_SIZE_REQD (NBD_REP_ERROR_BIT | 8)
#define NBD_REP_ERR_TOO_BIG         (NBD_REP_ERROR_BIT | 9)
#define NBD_REP_ERR_EXT_HEADER_REQD (NBD_REP_ERROR_BIT | 10)

enum nbd_info_type {
  NBD_INFO_EXPORT = 0,
  NBD_INFO_NAME = 1,
  NBD_INFO_DESCRIPTION = 2,
  NBD_INFO_BLOCK_SIZE = 3,
};

struct nbd_hello {
  uint64_t magic, option_magic;
  uint16_t flags;
} __attribute__ ((packed));

struct nbd_option {
  uint64_t magic;
  uint32_t option, length;
} __attribute__ ((packed));

struct nbd_option_reply {
  uint64_t magic;
  uint32_t option, type, length;
} __attribute__ ((packed));

/* The answer to NBD_OPT_EXPORT_NAME; zeroes are left out if NBD_FLAG_NO_ZEROES was agreed on. */
struct nbd_export_name_reply {
  uint64_t size;
  uint16_t flags;
  uint8_t zeroes[124];
} __attribute__ ((packed));

struct nbd_info_export {
  uint16_t type;
  uint64_t size;
  uint16_t flags;
} __attribute__ ((packed));

struct nbd_info_block_size {
  uint16_t type;
  uint32_t minimum, preferred, maximum;
} __attribute__ ((packed));

static_assert (sizeof (struct nbd_hello) == 18, "nbd_hello");
static_assert (sizeof (struct nbd_option) == 16, "nbd_option");
static_assert (sizeof (struct nbd_option_reply) == 20, "nbd_option_reply");
static_assert (sizeof (struct nbd_export_name_reply) == 134, "nbd_export_name_reply");
static_assert (sizeof (struct nbd_info_export) == 12, "nbd_info_export");
static_assert (sizeof (struct nbd_info_block_size) == 14, "nbd_info_block_size");

/* ---- transmission ---------------------------------------------------------------------------- */

enum nbd_transmission_flags {
  NBD_FLAG_HAS_FLAGS = 1 << 0,
  NBD_FLAG_READ_ONLY = 1 << 1,
  NBD_FLAG_SEND_FLUSH = 1 << 2,
  NBD_FLAG_SEND_FUA = 1 << 3,
  NBD_FLAG_ROTATIONAL = 1 << 4,
  NBD_FLAG_SEND_TRIM = 1 << 5,
  NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
  NBD_FLAG_SEND_DF = 1 << 7,
  NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
  NBD_FLAG_SEND_RESIZE = 1 << 9, /* branch extension-resize */
  NBD_FLAG_SEND_CACHE = 1 << 10,
  NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
  NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12,
};

enum nbd_command {
  NBD_CMD_READ = 0,
  NBD_CMD_WRITE = 1,
  NBD_CMD_DISC = 2,
  NBD_CMD_FLUSH = 3,
  NBD_CMD_TRIM = 4,
  NBD_CMD_CACHE = 5,
  NBD_CMD_WRITE_ZEROES = 6,
  NBD_CMD_BLOCK_STATUS = 7,
  NBD_CMD_RESIZE = 8, /* branch extension-resize: to "offset" bytes */
};

enum nbd_command_flags {
  NBD_CMD_FLAG_FUA = 1 << 0,
  NBD_CMD_FLAG_NO_HOLE = 1 << 1,
  NBD_CMD_FLAG_DF = 1 << 2,
  NBD_CMD_FLAG_REQ_ONE = 1 << 3,
  NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
  NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5,
};

#define NBD_REQUEST_MAGIC          UINT32_C (0x25609513)
#define NBD_EXTENDED_REQUEST_MAGIC UINT32_C (0x21e41c71)
#define NBD_SIMPLE_REPLY_MAGIC     UINT32_C (0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C (0x668e33ef)
#define NBD_EXTENDED_REPLY_MAGIC   UINT32_C (0x6e8a278c)

#define NBD_REPLY_FLAG_DONE 1

enum nbd_reply_type {
  NBD_REPLY_TYPE_NONE = 0,
  NBD_REPLY_TYPE_OFFSET_DATA = 1,
  NBD_REPLY_TYPE_OFFSET_HOLE = 2,
  NBD_REPLY_TYPE_BLOCK_STATUS = 5,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6,
  NBD_REPLY_TYPE_ERROR = 0x8001,
  NBD_REPLY_TYPE_ERROR_OFFSET = 0x8002,
};

enum nbd_error {
  NBD_SUCCESS = 0,
  NBD_EPERM = 1,
  NBD_EIO = 5,
  NBD_ENOMEM = 12,
  NBD_EINVAL = 22,
  NBD_ENOSPC = 28,
  NBD_EOVERFLOW = 75,
  NBD_ENOTSUP = 95,
  NBD_ESHUTDOWN = 108,
};

/* Flags in the descriptors of the metadata context base:allocation. */
#define NBD_STATE_HOLE 1
#define NBD_STATE_ZERO 2

/* The same of qemu:dirty-bitmap:NAME, as QEMU's docs/interop/nbd.rst has it. */
#define QEMU_STATE_DIRTY 1

struct nbd_request {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie, offset;
  uint32_t length;
} __attribute__ ((packed));

struct nbd_extended_request {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie, offset, length;
} __attribute__ ((packed));

struct nbd_simple_reply {
  uint32_t magic, error;
  uint64_t cookie;
} __attribute__ ((packed));

struct nbd_structured_reply {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie;
  uint32_t length;
} __attribute__ ((packed));

struct nbd_extended_reply {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie, offset, length;
} __attribute__ ((packed));

/* Payloads of chunks. */
struct nbd_chunk_hole {
  uint64_t offset;
  uint32_t length;
} __attribute__ ((packed));

struct nbd_chunk_error {
  uint32_t error;
  uint16_t message_length;
} __attribute__ ((packed));

struct nbd_block_descriptor {
  uint32_t length, flags;
} __attribute__ ((packed));

struct nbd_block_descriptor_ext {
  uint64_t length, flags;
} __attribute__ ((packed));

static_assert (sizeof (struct nbd_request) == 28, "nbd_request");
static_assert (sizeof (struct nbd_extended_request) == 32, "nbd_extended_request");
static_assert (sizeof (struct nbd_simple_reply) == 16, "nbd_simple_reply");
static_assert (sizeof (struct nbd_structured_reply) == 20, "nbd_structured_reply");
static_assert (sizeof (struct nbd_extended_reply) == 32, "nbd_extended_reply");
static_assert (sizeof (struct nbd_chunk_hole) == 12, "nbd_chunk_hole");
static_assert (sizeof (struct nbd_chunk_error) == 6, "nbd_chunk_error");

#endif /* NBD_H */
