/* SPDX-License-Identifier: BSD-3-Clause */

/* What is expected of each kind of server, and where other servers differ from the letter of the
 * specification on purpose or by age. An entry turns one particular failure of one case into a
 * difference, so the suite can be run against them to check the suite itself. There is no entry
 * for nbdcow, and there never should be.
 */

#include <fnmatch.h>
#include <string.h>

#include "suite.h"

#define COMMON (FLUSH | FUA | TRIM | ZEROES | FAST_ZERO | CACHE | DF | CHUNKS | STATUS)

static const struct server servers[] = {
  { "nbdcow", COMMON | MULTI_CONN | HEADERS | FILTER | DEPTH,
    ERROR_TEXT | DRAINS | HOLE_CHUNKS | EXACT_MAP },
  { "plugin", COMMON | MULTI_CONN, EXACT_MAP },
  { "qemu-nbd", COMMON, 0 },
  { "nbdkit", DF | CHUNKS, 0 },
};

struct difference {
  const char *server; /* both as in filename patterns */
  const char *name;
  unsigned modes;  /* 0: any */
  const char *why; /* how the failure's message goes, as in filename patterns; NULL: not tried */
  const char *because;
};

#define NBDKIT "@(nbdkit|plugin)" /* the differences of nbdkit are our plugin's, too */
#define BY_AGE "fixed in later versions"

static const struct difference differences[] = {
  /* QEMU 7.2 and 11.1 */
  { "qemu-nbd", "export-name.with-nul", 0, "the server sent*",
    "it takes a name to end at the first NUL" },
  { "qemu-nbd", "go.twice", 0, "the server sent*", "it answers a wrong magic with EINVAL" },
  { "qemu-nbd", "go.name-not-utf8", 0, "the text of ERR_UNKNOWN is no valid string",
    "it repeats the name it was given in its error text" },
  { "qemu-nbd", "meta.trailing-data", 0, "*: ACK, not ERR_INVALID",
    "it ignores what follows the last query" },
  { "qemu-nbd", "cache.length-zero", 0, NULL, "it dies of an assertion" },
  { "qemu-nbd", "filter.without-contexts", 0, NULL, "it dies of an assertion" },
  { "qemu-nbd", "hostile.noise-behind-magic", IN_EXTENDED, NULL, "it dies of an assertion" },
  { "qemu-nbd", "write.past-end", 0, "*: EINVAL*, not ENOSPC",
    "it answers EINVAL to all it finds wrong in a request" },
  { "qemu-nbd", "zeroes.past-end", 0, "*: EINVAL*, not ENOSPC",
    "it answers EINVAL to all it finds wrong in a request" },
  { "qemu-nbd", "length.past-end", 0, "*: EINVAL*, not ENOSPC",
    "it answers EINVAL to all it finds wrong in a request" },
  { "qemu-nbd", "magic.wrong*", 0, "*", "it answers a wrong magic with EINVAL" },
  { "qemu-nbd", "disc.in-flight", 0, "the server hung up instead of sending *",
    "its replies are cut off by DISC" },
  { "qemu-nbd", "disc.after-writes", 0, "the server hung up instead of sending *",
    "its replies are cut off by DISC" },
  { "qemu-nbd", "status.follows-no-hole", 0, "* has flags 0x1, not 0",
    "it makes zero clusters without space of their own" },

  { "qemu-nbd", "*.not-aligned", 0, "*: success, not EINVAL",
    "it serves what is not aligned, at some expense" },
  { "qemu-nbd", "read-only.*", 0, "*: EINVAL*, not EPERM",
    "it answers EINVAL to all it finds wrong in a request" },
  { "qemu-nbd", "hostile.held-writes", 0, "the server grew by *",
    "it holds the whole of a write in memory" },
  { "qemu-nbd", "tls.data-drained", 0, "ABORT: ERR_TLS_REQD*", "it refuses ABORT as well" },
  { "qemu-nbd", "tls.starttls-with-data", 0, "the server hung up on option 5",
    "it ends the session" },

  /* nbdkit 1.32 and 1.48 */
  { NBDKIT, "export-name.unknown", 0, "the server sent *", "the plugin takes any export name" },
  { NBDKIT, "export-name.longest", 0, "the server sent *", "the plugin takes any export name" },
  { NBDKIT, "go.unknown-export", 0, "*: ACK, not *", "the plugin takes any export name" },
  { NBDKIT, "go.name-*", 0, "*: ACK, not *", "the plugin takes any export name" },
  { NBDKIT, "meta.unknown-export", 0, "*: ACK, not *", "the plugin takes any export name" },
  { NBDKIT, "set-meta.then-unknown-export", 0, "*: ACK, not *",
    "the plugin takes any export name" },
  { NBDKIT, "list.twice", 0, "the second list is not as long as the first", BY_AGE },
  { NBDKIT, "option.many", 0, "LIST: ERR_INVALID, not ACK", BY_AGE },
  { NBDKIT, "info.each-request", 0, "no block sizes were told", BY_AGE },
  { NBDKIT, "info.duplicate-requests", 0, "information type * came twice",
    "it answers each request, even a repeated one" },
  { NBDKIT, "set-meta.repeated-query", 0, "context * came twice",
    "it answers each query, even a repeated one" },
  { NBDKIT, "set-meta.then-failure", 0, "status without a context: success, not EINVAL",
    "an option that fails leaves what was set" },
  { NBDKIT, "meta.cut-short", 0, "a status chunk for context id *, which was not selected",
    "it selects contexts before it finds the syntax wrong" },
  { NBDKIT, "meta.trailing-data", 0, "*: ACK, not ERR_INVALID",
    "it ignores what follows the last query" },
  { NBDKIT, "disc.*", 0, "no answer in *",
    "a worker may be waiting for the next request, until the client closes" },
  { NBDKIT, "zeroes.fast-not-offered", 0, NULL, "version 1.32 dies of an assertion" },
  { NBDKIT, "hostile.held-writes", 0, "the server grew by *",
    "it holds the whole of a write in memory" },
  { NBDKIT, "hostile.held-options", 0, "the server grew by *",
    "it holds the whole of an option in memory" },
  { "nbdkit", "status.follows-no-hole", 0, "* has flags 0x1, not 0",
    "its memory plugin trims when asked not to" },
  { NULL, NULL, 0, NULL, NULL },
};

const struct server *
server_find (const char *name)
{
  for (size_t i = 0; i < sizeof servers / sizeof servers[0]; i++)
    if (strcmp (servers[i].name, name) == 0)
      return &servers[i];
  return NULL;
}

const char *
known_difference (const struct server *server, const char *name, enum mode mode, const char *why)
{
  for (const struct difference *d = differences; d->server; d++)
    if (fnmatch (d->server, server->name, FNM_EXTMATCH) == 0 && fnmatch (d->name, name, 0) == 0 &&
        (d->modes == 0 || (d->modes & 1u << mode)) && (d->why == NULL) == (why == NULL) &&
        (why == NULL || fnmatch (d->why, why, 0) == 0))
      return d->because;
  return NULL;
}
