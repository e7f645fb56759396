/* SPDX-License-Identifier: BSD-3-Clause */

#include <endian.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "request.h"

/* The errors that the protocol knows; all else is an I/O error to the client. */
static uint32_t
wire_error (int error)
{
  switch (error < 0 ? -error : error) {
  case EPERM:
  case EROFS:
  case EACCES:
    return NBD_EPERM;
  case ENOMEM:
    return NBD_ENOMEM;
  case EINVAL:
    return NBD_EINVAL;
  case ENOSPC:
  case EDQUOT:
  case EFBIG:
    return NBD_ENOSPC;
  case EOVERFLOW:
    return NBD_EOVERFLOW;
  case ENOTSUP:
    return NBD_ENOTSUP;
  case ESHUTDOWN:
    return NBD_ESHUTDOWN;
  default:
    return NBD_EIO;
  }
}

size_t
chunk_header_size (enum reply_mode mode)
{
  switch (mode) {
  case MODE_SIMPLE:
    return sizeof (struct nbd_simple_reply);
  case MODE_STRUCTURED:
    return sizeof (struct nbd_structured_reply);
  case MODE_EXTENDED:
    break;
  }
  return sizeof (struct nbd_extended_reply);
}

void
chunk_header (uint8_t *at, const struct request *rq, enum nbd_reply_type type, uint64_t payload,
              bool done)
{
  uint16_t flags = htobe16 (done ? NBD_REPLY_FLAG_DONE : 0);

  switch (rq->mode) {
  case MODE_SIMPLE: {
    struct nbd_simple_reply *h = (struct nbd_simple_reply *)at;
    h->magic = htobe32 (NBD_SIMPLE_REPLY_MAGIC);
    h->error = 0;
    h->cookie = rq->cookie;
    break;
  }
  case MODE_STRUCTURED: {
    struct nbd_structured_reply *h = (struct nbd_structured_reply *)at;
    h->magic = htobe32 (NBD_STRUCTURED_REPLY_MAGIC);
    h->flags = flags;
    h->type = htobe16 ((uint16_t)type);
    h->cookie = rq->cookie;
    h->length = htobe32 ((uint32_t)payload);
    break;
  }
  case MODE_EXTENDED: {
    struct nbd_extended_reply *h = (struct nbd_extended_reply *)at;
    h->magic = htobe32 (NBD_EXTENDED_REPLY_MAGIC);
    h->flags = flags;
    h->type = htobe16 ((uint16_t)type);
    h->cookie = rq->cookie;
    h->offset = htobe64 (rq->offset);
    h->length = htobe64 (payload);
    break;
  }
  }
}

void
reply_ok (struct session *s, const struct request *rq)
{
  uint8_t header[sizeof (struct nbd_extended_reply)];

  chunk_header (header, rq, NBD_REPLY_TYPE_NONE, 0, true);
  session_send (s, header, chunk_header_size (rq->mode));
}

/* An error of either kind: with *OFFSET, or without one. */
static void
send_error (struct session *s, const struct request *rq, int error, const char *text,
            const uint64_t *offset)
{
  uint8_t reply[sizeof (struct nbd_extended_reply) + sizeof (struct nbd_chunk_error) + 256 + 8];

  if (rq->mode == MODE_SIMPLE) {
    chunk_header (reply, rq, NBD_REPLY_TYPE_NONE, 0, true);
    ((struct nbd_simple_reply *)reply)->error = htobe32 (wire_error (error));
    session_send (s, reply, sizeof (struct nbd_simple_reply));
    return;
  }

  size_t text_len = strnlen (text, 256);
  size_t header = chunk_header_size (rq->mode);
  size_t payload = sizeof (struct nbd_chunk_error) + text_len;
  struct nbd_chunk_error *e = (struct nbd_chunk_error *)(reply + header);
  e->error = htobe32 (wire_error (error));
  e->message_length = htobe16 ((uint16_t)text_len);
  memcpy (reply + header + sizeof *e, text, text_len);
  if (offset) {
    uint64_t be = htobe64 (*offset);
    memcpy (reply + header + payload, &be, sizeof be);
    payload += sizeof be;
  }
  chunk_header (reply, rq, offset ? NBD_REPLY_TYPE_ERROR_OFFSET : NBD_REPLY_TYPE_ERROR, payload,
                true);
  session_send (s, reply, header + payload);
}

void
reply_error (struct session *s, const struct request *rq, int error, const char *fmt, ...)
{
  char text[256];
  va_list args;

  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  send_error (s, rq, error, text, NULL);
}

void
reply_read_error (struct session *s, const struct request *rq, int error, uint64_t offset)
{
  const char *text = strerrordesc_np (error < 0 ? -error : error);

  send_error (s, rq, error, text ? text : "unknown error", &offset);
}
