/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an NBD client sends: see nbd-client.h.
 */

#include <endian.h>

#include "nbd-client.h"
#include "nbd.h"

static void
add16 (struct bytes *b, uint16_t v)
{
  v = htobe16 (v);
  bytes_add (b, &v, sizeof v);
}

static void
add32 (struct bytes *b, uint32_t v)
{
  v = htobe32 (v);
  bytes_add (b, &v, sizeof v);
}

static void
add64 (struct bytes *b, uint64_t v)
{
  v = htobe64 (v);
  bytes_add (b, &v, sizeof v);
}

static void
add_option (struct bytes *b, uint32_t option, const struct bytes *data)
{
  add64 (b, NBD_OPTION_MAGIC);
  add32 (b, option);
  add32 (b, (uint32_t)data->n);
  bytes_add (b, data->data, data->n);
}

static void
add_string (struct bytes *b, const char *s)
{
  add32 (b, (uint32_t)strlen (s));
  bytes_add (b, s, strlen (s));
}

/* GO or INFO; LIST_ or SET_META_CONTEXT. */
static void
add_named (struct bytes *b, uint32_t option, uint8_t how)
{
  static const char *const names[] = { "x", "", "y", "x\1" };
  static const char *const queries[] = { "base:allocation",      "qemu:", "qemu:allocation-depth",
                                         "qemu:dirty-bitmap:b1", "base:", "?",
                                         "qemu:dirty-bitmap:",   "" };
  struct bytes data = { 0 };

  add_string (&data, how & 0x80 ? names[how / 16 % 4] : "x");
  if (option == NBD_OPT_GO || option == NBD_OPT_INFO) {
    add16 (&data, how & 3);
    for (unsigned i = 0; i < (how & 3u); ++i)
      add16 (&data, (uint16_t)(how & 4 ? i + 1 : NBD_INFO_BLOCK_SIZE));
  } else {
    add32 (&data, how & 7);
    for (unsigned i = 0; i < (how & 7u); ++i)
      add_string (&data, queries[(how / 8 + i) % 8]);
  }
  add_option (b, option, &data);
  bytes_free (&data);
}

static void
add_start (struct bytes *b, enum start start)
{
  struct bytes none = { 0 }, name = { 0 };

  if (start == RAW)
    return;
  add32 (b, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  if (start == EXPORT_NAME) {
    bytes_add (&name, "x", 1);
    add_option (b, NBD_OPT_EXPORT_NAME, &name);
    bytes_free (&name);
    return;
  }
  add_option (b, start == EXTENDED ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY, &none);
  add_named (b, NBD_OPT_SET_META_CONTEXT, 4);
  add_named (b, NBD_OPT_GO, 1);
}

/* A number that is interesting on a disk. */
static uint64_t
number (struct input *in, uint64_t size)
{
  uint8_t how = take8 (in), v = take8 (in);

  switch (how & 7) {
  case 0:
    return (uint64_t)v << 9;
  case 1:
    return v;
  case 2:
    return size - v;
  case 3:
    return (uint64_t)v << (how >> 3);
  case 4:
    return UINT64_MAX - v;
  case 5:
    return UINT64_C (1) << (v & 63);
  case 6:
    return take32 (in);
  default:
    return size / 256 * v;
  }
}

static void
add_request (struct bytes *b, struct input *in, bool extended, uint64_t size, uint64_t cookie)
{
  uint8_t what = take8 (in), how = take8 (in), fill = take8 (in);
  uint16_t type = what % 10, flags = how & 0x1f;
  uint64_t offset = number (in, size), len = number (in, size), payload = 0;
  uint8_t buf[4096];

  if (extended && (type == NBD_CMD_WRITE) != !!(how & 0x80))
    flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
  if (what & 0x80)
    len %= 65536; /* most writes are short */
  if (type == NBD_CMD_FLUSH && !(how & 0x40))
    offset = len = 0;
  if (extended ? flags & NBD_CMD_FLAG_PAYLOAD_LEN : type == NBD_CMD_WRITE)
    payload = extended ? len : (uint32_t)len;
  add32 (b, extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
  add16 (b, flags);
  add16 (b, type);
  add64 (b, cookie);
  add64 (b, offset);
  if (extended)
    add64 (b, len);
  else
    add32 (b, (uint32_t)len);
  if (type == NBD_CMD_BLOCK_STATUS && payload > 0 && payload < 64) {
    add64 (b, number (in, size));
    for (uint64_t i = 8; i + 4 <= payload; i += 4)
      add32 (b, take8 (in) % 5);
    return;
  }
  memset (buf, fill, sizeof buf);
  for (uint64_t n; payload > 0 && b->n < CLIENT_MAX; payload -= n) {
    n = payload < sizeof buf ? payload : sizeof buf;
    bytes_add (b, buf, n);
  }
}

static void
add_literal (struct bytes *b, struct input *in)
{
  size_t n = take8 (in);

  n = n < in->left ? n : in->left;
  bytes_add (b, in->at, n);
  in->at += n;
  in->left -= n;
}

void
client_assemble (struct bytes *b, struct input *in, enum start start, uint64_t size)
{
  static const uint32_t named[] = { NBD_OPT_GO, NBD_OPT_INFO, NBD_OPT_LIST_META_CONTEXT,
                                    NBD_OPT_SET_META_CONTEXT };
  uint64_t cookie = 0x1000;

  add_start (b, start);
  while (in->left > 0 && b->n < CLIENT_MAX) {
    uint8_t record = take8 (in);
    struct bytes data = { 0 };

    switch (record & 15) {
    case 0:
      add_literal (b, in);
      break;
    case 1:
      add_literal (&data, in);
      add_option (b, record >> 4, &data);
      break;
    case 2:
      add_option (b, record >> 4, &data);
      break;
    case 3:
      add_named (b, named[record / 16 % 4], take8 (in));
      break;
    case 4:
      add32 (b, record >> 4); /* client flags */
      break;
    case 5:
      add_request (b, in, start != EXTENDED, size, ++cookie); /* of the other kind */
      break;
    default:
      add_request (b, in, start == EXTENDED, size, ++cookie);
      break;
    }
    bytes_free (&data);
  }
}
