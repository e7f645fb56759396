/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A session whose shard has little memory, and whose client asks for long answers and takes them
 * slowly: it stays within the bound that session.h gives, and answers all the same.
 */

#include <endian.h>
#include <sys/uio.h>

#include "request.h"
#include "session.h"
#include "unit.h"

#define DISK        (4u << 20)
#define CLUSTER     512u
#define EXPORTS     40u
#define DESCRIPTION 4000u
#define LIMIT       (70u * 1024) /* one long answer, and not two */
/* What the client takes at a time. */
#define SIP 5000u

struct bytes {
  uint8_t data[4u << 20];
  size_t n;
};

struct scene {
  struct fixture f;
  struct exports exports;
  struct shard shard;
  struct session s;
  struct bytes client, server; /* what it has said, and what it was told */
  size_t taken_in;
};

static void
wake (struct mailbox *m)
{
  (void)m;
}

static void
notify (struct session *s)
{
  (void)s;
}

static void
add (struct bytes *b, const void *p, size_t n)
{
  assert_true (n <= sizeof b->data - b->n);
  memcpy (b->data + b->n, p, n);
  b->n += n;
}

/* ---- the scene ------------------------------------------------------------------------------- */

static void
add_export (struct scene *c, unsigned i)
{
  char name[8], description[DESCRIPTION + 1];
  struct export_options o = { .name = name,
                              .description = description,
                              .source = { .filename = (char *)"disk", .size = SOURCE_TO_END } };

  snprintf (name, sizeof name, "x%02u", i);
  memset (description, 'd', DESCRIPTION);
  description[DESCRIPTION] = '\0';
  q_open_options_init (&o.source.open);
  o.source.open.opener = &c->f.store.opener;
  o.source.open.lock = Q_LOCK_OFF;
  o.source.open.read_only = true;
  assert_int_equal (exports_add (&c->exports, &o, &c->f.err), 0);
}

/* Every other cluster of the disk is allocated. */
static struct scene *
begin (void)
{
  struct scene *c = calloc (1, sizeof *c);

  assert_non_null (c);
  unit_init (&c->f);
  unit_create_clusters (&c->f, "disk", DISK, 9);
  struct q_image *img = unit_open (&c->f, "disk");
  for (uint64_t at = 0; at < DISK; at += 2 * CLUSTER)
    unit_writes (img, at, CLUSTER, 1);
  unit_close (img);
  exports_init (&c->exports);
  for (unsigned i = 0; i < EXPORTS; i++)
    add_export (c, i);
  shard_init (&c->shard, &c->exports, pool_new (0), LIMIT, wake);
  session_init (&c->s, &c->shard, notify);
  add (&c->client, &(uint32_t){ htobe32 (3) }, sizeof (uint32_t)); /* newstyle, no zeroes */
  return c;
}

static void
end (struct scene *c)
{
  session_destroy (&c->s);
  assert_int_equal (c->shard.cache.outstanding, 0);
  shard_destroy (&c->shard);
  pool_free (c->shard.pool);
  exports_close (&c->exports);
  unit_done (&c->f);
  free (c);
}

static void
option (struct scene *c, uint32_t number, const void *data, uint32_t n)
{
  struct nbd_option h = { .magic = htobe64 (NBD_OPTION_MAGIC),
                          .option = htobe32 (number),
                          .length = htobe32 (n) };
  add (&c->client, &h, sizeof h);
  if (n > 0)
    add (&c->client, data, n);
}

/* ---- going on -------------------------------------------------------------------------------- */

static void
assert_bounded (const struct scene *c)
{
  if (c->shard.cache.outstanding > LIMIT + SESSION_LOW)
    fail_msg ("%zu bytes of memory for one client", c->shard.cache.outstanding);
}

static void
sip (struct scene *c)
{
  struct iovec iov[8];
  int n = outq_iov (&c->s.out, iov, 8);
  size_t taken = 0;

  for (int i = 0; i < n && taken < SIP; i++) {
    size_t k = iov[i].iov_len < SIP - taken ? iov[i].iov_len : SIP - taken;
    add (&c->server, iov[i].iov_base, k);
    taken += k;
  }
  outq_sent (&c->s.out, &c->shard.cache, taken);
}

/* One turn, and what the client takes after it. */
static void
turn (struct scene *c)
{
  enum session_state state = session_state (&c->s);

  assert_true (state == SESSION_READ || state == SESSION_READY || state == SESSION_WAIT);
  c->s.budget = 1 << 20;
  session_begin_turn (&c->s, false);
  if (state != SESSION_WAIT)
    do
      c->taken_in += session_input (&c->s, c->client.data + c->taken_in, c->client.n - c->taken_in);
    while (session_next_slice (&c->s));
  session_end_turn (&c->s);
  assert_bounded (c);
  shard_submit (&c->shard);
  shard_complete (&c->shard);
  assert_bounded (c);
  sip (c);
  session_resume (&c->s);
  shard_submit (&c->shard);
  assert_bounded (c);
}

static void
go_on (struct scene *c)
{
  unsigned turns = 0;

  do {
    assert_true (turns++ < 10000);
    turn (c);
  } while (c->taken_in < c->client.n || c->s.out.bytes > 0 || c->s.inflight > 0);
}

/* ---- lists ----------------------------------------------------------------------------------- */

/* Takes apart the answer to a LIST at *AT: the exports but for those in WITHOUT, a string of two
 * digits for each. */
static void
assert_list (const struct scene *c, size_t *at, const char *without)
{
  for (unsigned i = 0; i <= EXPORTS; i++) {
    struct nbd_option_reply h;
    char name[8];
    snprintf (name, sizeof name, "x%02u", i);
    if (i < EXPORTS && strstr (without, name + 1))
      continue;
    assert_true (c->server.n - *at >= sizeof h);
    memcpy (&h, c->server.data + *at, sizeof h);
    *at += sizeof h;
    assert_true (be64toh (h.magic) == NBD_OPTION_REPLY_MAGIC);
    assert_int_equal (be32toh (h.option), NBD_OPT_LIST);
    assert_int_equal (be32toh (h.type), i < EXPORTS ? NBD_REP_SERVER : NBD_REP_ACK);
    assert_int_equal (be32toh (h.length), i < EXPORTS ? 4 + 3 + DESCRIPTION : 0);
    if (i < EXPORTS)
      assert_memory_equal (c->server.data + *at + 4, name, 3);
    *at += be32toh (h.length);
  }
}

/* One after the other, each from the first export to the last. */
static void
lists (void **state)
{
  struct scene *c = begin ();
  size_t at = sizeof (struct nbd_hello);

  (void)state;
  for (int i = 0; i < 3; i++)
    option (c, NBD_OPT_LIST, NULL, 0);
  go_on (c);
  for (int i = 0; i < 3; i++)
    assert_list (c, &at, "");
  assert_int_equal (at, c->server.n);
  end (c);
}

/* Exports go while they are listed, told of or not: nobody waits for the client. */
static void
lists_fewer (void **state)
{
  struct scene *c = begin ();
  size_t at = sizeof (struct nbd_hello);

  (void)state;
  option (c, NBD_OPT_LIST, NULL, 0);
  turn (c);
  assert_true (c->s.listing);
  unsigned told = (unsigned)c->s.listed;
  assert_true (told > 0 && told < EXPORTS - 5);
  char last[8], removed[16] = "30 ";
  snprintf (last, sizeof last, "x%02u", told - 1); /* ids begin with 1 */
  assert_int_equal (exports_remove (&c->exports, last, false, &c->f.err), 0);
  assert_int_equal (exports_remove (&c->exports, "x30", false, &c->f.err), 0);
  go_on (c);
  assert_list (c, &at, removed);
  assert_int_equal (at, c->server.n);
  end (c);
}

/* Before it is saved, it has said all of it. */
static void
concludes (void **state)
{
  struct scene *c = begin ();
  size_t at = sizeof (struct nbd_hello);

  (void)state;
  option (c, NBD_OPT_LIST, NULL, 0);
  turn (c);
  assert_true (c->s.listing);
  session_conclude (&c->s);
  assert_false (c->s.listing);
  while (c->s.out.bytes > 0)
    sip (c);
  assert_list (c, &at, "");
  assert_int_equal (at, c->server.n);
  end (c);
}

/* ---- block status ---------------------------------------------------------------------------- */

#define ASKED 64u

static void
begin_transmission (struct scene *c, uint32_t mode)
{
  static const char meta[] = "\0\0\0\3x00\0\0\0\1\0\0\0\17base:allocation", go[] = "\0\0\0\3x00\0";

  option (c, mode, NULL, 0);
  option (c, NBD_OPT_SET_META_CONTEXT, meta, sizeof meta - 1);
  option (c, NBD_OPT_GO, go, sizeof go);
  go_on (c);
  assert_true (c->s.transmission);
  c->server.n = 0;
}

static void
ask (struct scene *c)
{
  struct nbd_request compact = { .magic = htobe32 (NBD_REQUEST_MAGIC),
                                 .type = htobe16 (NBD_CMD_BLOCK_STATUS),
                                 .length = htobe32 (DISK) };
  struct nbd_extended_request extended = { .magic = htobe32 (NBD_EXTENDED_REQUEST_MAGIC),
                                           .type = htobe16 (NBD_CMD_BLOCK_STATUS),
                                           .length = htobe64 (DISK) };
  if (c->s.mode == MODE_EXTENDED)
    add (&c->client, &extended, sizeof extended);
  else
    add (&c->client, &compact, sizeof compact);
}

static uint64_t
payload_at (const struct scene *c, size_t at)
{
  struct nbd_structured_reply s;
  struct nbd_extended_reply e;

  assert_true (c->server.n - at >= sizeof e);
  memcpy (&s, c->server.data + at, sizeof s);
  memcpy (&e, c->server.data + at, sizeof e);
  if (c->s.mode == MODE_EXTENDED) {
    assert_int_equal (be16toh (e.type), NBD_REPLY_TYPE_BLOCK_STATUS_EXT);
    return be64toh (e.length);
  }
  assert_int_equal (be16toh (s.type), NBD_REPLY_TYPE_BLOCK_STATUS);
  return be32toh (s.length);
}

static void
tells_of_blocks (uint32_t mode)
{
  struct scene *c = begin ();
  size_t at = 0;

  begin_transmission (c, mode);
  for (unsigned i = 0; i < ASKED; i++)
    ask (c);
  go_on (c);
  for (unsigned i = 0; i < ASKED; i++) {
    uint64_t n = payload_at (c, at);
    assert_true (n > 1000); /* not all of it; but hundreds of clusters */
    at += chunk_header_size (c->s.mode) + n;
  }
  assert_int_equal (at, c->server.n);
  end (c);
}

static void
block_status (void **state)
{
  (void)state;
  tells_of_blocks (NBD_OPT_STRUCTURED_REPLY);
}

static void
block_status_extended (void **state)
{
  (void)state;
  tells_of_blocks (NBD_OPT_EXTENDED_HEADERS);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (lists),
    cmocka_unit_test (lists_fewer),
    cmocka_unit_test (concludes),
    cmocka_unit_test (block_status),
    cmocka_unit_test (block_status_extended),
  };
  return cmocka_run_group_tests (tests, NULL, NULL);
}
