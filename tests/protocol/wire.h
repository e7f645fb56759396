/* SPDX-License-Identifier: BSD-3-Clause */

/* The numbers of the NBD protocol, as its specification (doc/proto.md and the extended-header
 * branch) gives them. The suite keeps its own copy: sharing a header with the server under test
 * would hide a wrong number from both.
 *
 * All integers on the wire are big-endian.
 */

#ifndef WIRE_H
#define WIRE_H

/* Handshake */
#define NBD_MAGIC_INIT   UINT64_C (0x4e42444d41474943)
#define NBD_MAGIC_OPTION UINT64_C (0x49484156454f5054)
#define NBD_MAGIC_REPLY  UINT64_C (0x0003e889045565a9)

#define NBD_FLAG_FIXED_NEWSTYLE   (1 << 0)
#define NBD_FLAG_NO_ZEROES        (1 << 1)
#define NBD_FLAG_C_FIXED_NEWSTYLE (1 << 0)
#define NBD_FLAG_C_NO_ZEROES      (1 << 1)

enum {
  NBD_OPT_EXPORT_NAME = 1,
  NBD_OPT_ABORT = 2,
  NBD_OPT_LIST = 3,
  NBD_OPT_PEEK_EXPORT = 4, /* withdrawn */
  NBD_OPT_STARTTLS = 5,
  NBD_OPT_INFO = 6,
  NBD_OPT_GO = 7,
  NBD_OPT_STRUCTURED_REPLY = 8,
  NBD_OPT_LIST_META_CONTEXT = 9,
  NBD_OPT_SET_META_CONTEXT = 10,
  NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ACK                 UINT32_C (1)
#define NBD_REP_SERVER              UINT32_C (2)
#define NBD_REP_INFO                UINT32_C (3)
#define NBD_REP_META_CONTEXT        UINT32_C (4)
#define NBD_REP_ERR                 UINT32_C (0x80000000)
#define NBD_REP_ERR_UNSUP           (NBD_REP_ERR + 1)
#define NBD_REP_ERR_POLICY          (NBD_REP_ERR + 2)
#define NBD_REP_ERR_INVALID         (NBD_REP_ERR + 3)
#define NBD_REP_ERR_PLATFORM        (NBD_REP_ERR + 4)
#define NBD_REP_ERR_TLS_REQD        (NBD_REP_ERR + 5)
#define NBD_REP_ERR_UNKNOWN         (NBD_REP_ERR + 6)
#define NBD_REP_ERR_SHUTDOWN        (NBD_REP_ERR + 7)
#define NBD_REP_ERR_BLOCK_SIZE_REQD (NBD_REP_ERR + 8)
#define NBD_REP_ERR_TOO_BIG         (NBD_REP_ERR + 9)
#define NBD_REP_ERR_EXT_HEADER_REQD (NBD_REP_ERR + 10)

enum {
  NBD_INFO_EXPORT = 0,
  NBD_INFO_NAME = 1,
  NBD_INFO_DESCRIPTION = 2,
  NBD_INFO_BLOCK_SIZE = 3,
};

/* Transmission flags */
#define NBD_FLAG_HAS_FLAGS            (1 << 0)
#define NBD_FLAG_READ_ONLY            (1 << 1)
#define NBD_FLAG_SEND_FLUSH           (1 << 2)
#define NBD_FLAG_SEND_FUA             (1 << 3)
#define NBD_FLAG_ROTATIONAL           (1 << 4)
#define NBD_FLAG_SEND_TRIM            (1 << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES    (1 << 6)
#define NBD_FLAG_SEND_DF              (1 << 7)
#define NBD_FLAG_CAN_MULTI_CONN       (1 << 8)
#define NBD_FLAG_SEND_RESIZE          (1 << 9)
#define NBD_FLAG_SEND_CACHE           (1 << 10)
#define NBD_FLAG_SEND_FAST_ZERO       (1 << 11)
#define NBD_FLAG_BLOCK_STATUS_PAYLOAD (1 << 12)

/* Transmission */
#define NBD_MAGIC_REQUEST          UINT32_C (0x25609513)
#define NBD_MAGIC_EXTENDED_REQUEST UINT32_C (0x21e41c71)
#define NBD_MAGIC_SIMPLE_REPLY     UINT32_C (0x67446698)
#define NBD_MAGIC_STRUCTURED_REPLY UINT32_C (0x668e33ef)
#define NBD_MAGIC_EXTENDED_REPLY   UINT32_C (0x6e8a278c)

enum {
  NBD_CMD_READ = 0,
  NBD_CMD_WRITE = 1,
  NBD_CMD_DISC = 2,
  NBD_CMD_FLUSH = 3,
  NBD_CMD_TRIM = 4,
  NBD_CMD_CACHE = 5,
  NBD_CMD_WRITE_ZEROES = 6,
  NBD_CMD_BLOCK_STATUS = 7,
  NBD_CMD_RESIZE = 8,
};

#define NBD_CMD_FLAG_FUA         (1 << 0)
#define NBD_CMD_FLAG_NO_HOLE     (1 << 1)
#define NBD_CMD_FLAG_DF          (1 << 2)
#define NBD_CMD_FLAG_REQ_ONE     (1 << 3)
#define NBD_CMD_FLAG_FAST_ZERO   (1 << 4)
#define NBD_CMD_FLAG_PAYLOAD_LEN (1 << 5)
#define NBD_CMD_FLAG_UNKNOWN     (1 << 6) /* the first bit that means nothing */

#define NBD_REPLY_FLAG_DONE (1 << 0)

#define NBD_REPLY_TYPE_NONE             0
#define NBD_REPLY_TYPE_OFFSET_DATA      1
#define NBD_REPLY_TYPE_OFFSET_HOLE      2
#define NBD_REPLY_TYPE_BLOCK_STATUS     5
#define NBD_REPLY_TYPE_BLOCK_STATUS_EXT 6
#define NBD_REPLY_TYPE_ERROR            0x8001
#define NBD_REPLY_TYPE_ERROR_OFFSET     0x8002

#define NBD_STATE_HOLE 1
#define NBD_STATE_ZERO 2

enum {
  NBD_OK = 0, /* no error; not a value of the specification's list */
  NBD_EPERM = 1,
  NBD_EIO = 5,
  NBD_ENOMEM = 12,
  NBD_EINVAL = 22,
  NBD_ENOSPC = 28,
  NBD_EOVERFLOW = 75,
  NBD_ENOTSUP = 95,
  NBD_ESHUTDOWN = 108,
};

/* Limits */
#define NBD_MAX_STRING  4096
#define NBD_MAX_EXTENTS (UINT32_C (1) << 20)
#define NBD_ANY_PAYLOAD                                                                            \
  (UINT32_C (1) << 25) /* served unless the server advertises another limit                        \
                        */
#define NBD_MAX_MIN_BLOCK 65536

#endif
