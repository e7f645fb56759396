/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A process that hands its clients over, and lies: what it says of a session (session-state.h) is
 * changed on its way, as JSON, as bytes, or as a message (takeover-wire.h).
 *
 * The input is that of fuzz-protocol.c, but for the lies, which stand before the records: their
 * length in bytes, and the lies.  Each time that the session is handed over, some of them are told.
 *
 * The oracle: what is changed is refused, with a message, or the session goes on and ends as any
 * does (nbd-connection.h): nothing is said of what the client then hears.  What is not changed is
 * taken.  No descriptor is left open.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz.h"
#include "mem.h"
#include "nbd-client.h"
#include "nbd-connection.h"
#include "takeover-wire.h"

#define MAX_PLACES 256u
/* What a socket takes without a reader. */
#define MAX_MESSAGE (64u << 10)
#define MAX_FDS     3u
/* Never waited for: the other end is closed. */
#define TIMEOUT_MS 60000

/* ---- lies about the state -------------------------------------------------------------------- */

/* A value and what it is in: an object, by KEY, or an array, by INDEX. */
struct place {
  json_t *in, *value;
  const char *key;
  size_t index;
};

static unsigned
find_places (json_t *in, struct place *list, unsigned n)
{
  const char *key;
  json_t *value;
  size_t i;

  json_object_foreach (in, key, value)
  {
    if (n < MAX_PLACES)
      list[n++] = (struct place){ in, value, key, 0 };
    n = find_places (value, list, n);
  }
  json_array_foreach (in, i, value)
  {
    if (n < MAX_PLACES)
      list[n++] = (struct place){ in, value, NULL, i };
    n = find_places (value, list, n);
  }
  return n;
}

/* Takes VALUE over. */
static void
put (const struct place *p, json_t *value)
{
  if (p->key)
    json_object_set_new (p->in, p->key, value);
  else
    json_array_set_new (p->in, p->index, value);
}

static void
drop (const struct place *p)
{
  if (p->key)
    json_object_del (p->in, p->key);
  else
    json_array_remove (p->in, p->index);
}

static json_int_t
some_number (uint8_t how, uint8_t v)
{
  switch (how & 7) {
  case 0:
    return v;
  case 1:
    return -(json_int_t)v;
  case 2:
    return (json_int_t)(UINT64_C (1) << (v & 63));
  case 3:
    return INT64_MAX - v;
  case 4:
    return INT64_MIN + v;
  case 5:
    return (json_int_t)UINT32_MAX - 128 + v;
  case 6:
    return (json_int_t)v << 9;
  default:
    return (json_int_t)v << 20;
  }
}

static json_t *
some_value (uint8_t v)
{
  static const char *const words[] = { "greeting", "options",         "transmission",
                                       "simple",   "structured",      "extended",
                                       "x",        "base:allocation", "" };

  switch (v & 7) {
  case 0:
    return json_null ();
  case 1:
    return json_true ();
  case 2:
    return json_false ();
  case 3:
    return json_array ();
  case 4:
    return json_object ();
  case 5:
    return json_real (v);
  default:
    return json_string (words[v / 8 % (sizeof words / sizeof words[0])]);
  }
}

/* One that could be under way. */
static json_t *
some_request (struct input *lies, int type)
{
  uint8_t how = take8 (lies);
  json_int_t offset = some_number (how, take8 (lies)), len = some_number (how >> 3, take8 (lies));

  return json_pack ("{s:i,s:i,s:i,s:I,s:I,s:I,s:i}", "type", type, "flags", take8 (lies) & 0x1f,
                    "cookie", 7, "offset", offset, "length", len, "done",
                    some_number (how >> 6, take8 (lies)), "error", -(how & 1));
}

/* How many of the SIZE bytes are not read yet. */
static void
divide (json_t *state, size_t unread, size_t size)
{
  json_object_set_new (state, "unread", json_integer ((json_int_t)unread));
  json_object_set_new (state, "unsent", json_integer ((json_int_t)(size - unread)));
}

static void
lie_about_bytes (struct cargo *c, uint8_t how, size_t v)
{
  json_int_t unread = json_integer_value (json_object_get (c->state, "unread"));
  uint8_t *bytes;

  switch (how & 3) {
  case 0:
    divide (c->state, v % (c->size + 1), c->size);
    break;
  case 1:
    if (c->size > 0)
      c->bytes[v % c->size] ^= (uint8_t)(1 + how / 4);
    break;
  default: /* some more, before what is there */
    v++;
    bytes = xalloc (c->size + v);
    memset (bytes, how, v);
    memcpy (bytes + v, c->bytes, c->size);
    free (c->bytes);
    c->bytes = bytes;
    c->size += v;
    divide (c->state, ((size_t)unread + ((how & 1) ? 0 : v)) % (c->size + 1), c->size);
    break;
  }
}

static void
lie (struct cargo *c, struct input *lies)
{
  struct place list[MAX_PLACES];
  uint8_t what = take8 (lies), how = take8 (lies), v = take8 (lies);
  unsigned n = find_places (c->state, list, 0);
  const struct place *p = n ? &list[how % n] : NULL;

  c->honest = false;
  if (!p)
    return;
  switch (what % 9) {
  case 0:
    put (p, json_integer (some_number (what / 9, v)));
    break;
  case 1:
    put (p, json_integer (
                (json_int_t)((uint64_t)json_integer_value (p->value) + (uint64_t)(int8_t)v)));
    break;
  case 2:
    put (p, some_value (v));
    break;
  case 3:
    put (p, json_deep_copy (list[v % n].value));
    break;
  case 4:
    drop (p);
    break;
  case 5:
    json_array_append_new (json_object_get (c->state, "parked"), some_request (lies, 0));
    break;
  case 6:
    json_object_set_new (c->state, "long-write", some_request (lies, 1));
    break;
  case 7:
    lie_about_bytes (c, how, v);
    break;
  default:
    json_array_append_new (json_object_get (json_object_get (c->state, "export"), "contexts"),
                           json_pack ("[I,s]", some_number (how, v), "base:allocation"));
    break;
  }
}

/* ---- the message ----------------------------------------------------------------------------- */

static void
must (bool is)
{
  if (!is)
    die ("sockets: %s", strerror (errno));
}

/* The bytes of a message with N_FDS descriptors. */
static struct bytes
frame (struct cargo *c, unsigned n_fds)
{
  json_t *body = json_pack ("{s:s,s:O?}", "type", "session", "state", c->state);
  struct bytes b = { 0 };
  struct q_error err = { "" };
  uint8_t buf[4096];
  int s[2];

  must (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s) == 0);
  struct wire w = { .fd = s[0], .timeout_ms = TIMEOUT_MS };
  const int fds[MAX_FDS] = { s[0], s[0], s[0] };
  if (wire_send (&w, body, fds, n_fds, c->bytes, c->size, &err) < 0)
    broken ("what was saved cannot be sent: %s", err.text);
  must (shutdown (s[0], SHUT_WR) == 0);
  for (ssize_t n; (n = read (s[1], buf, sizeof buf)) > 0;)
    bytes_add (&b, buf, (size_t)n);
  close (s[0]);
  close (s[1]);
  return b;
}

static void
lie_about_message (struct bytes *b, struct input *lies, struct cargo *c)
{
  uint8_t what = take8 (lies), more[32] = { 0 };
  size_t at = (what & 1) ? take8 (lies) % 48u : take16 (lies) % (b->n + 1);

  c->honest = false;
  if ((what & 6) == 0)
    b->n = at < b->n ? at : b->n; /* the end is missing */
  else if ((what & 6) == 2)
    bytes_add (b, more, at % sizeof more); /* there is more */
  else if (at < b->n)
    b->data[at] = (uint8_t)((what & 8) ? take8 (lies) : b->data[at] ^ 1u << what / 16 % 8);
}

/* Sends B, and N descriptors with its first byte. */
static void
send_raw (int fd, const struct bytes *b, unsigned n)
{
  union {
    char space[CMSG_SPACE (MAX_FDS * sizeof (int))];
    struct cmsghdr align;
  } control = { .space = { 0 } };
  int fds[MAX_FDS] = { fd, fd, fd };
  struct iovec iov = { b->data, b->n };
  struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

  if (b->n == 0)
    return;
  if (n > 0) {
    control.align.cmsg_level = SOL_SOCKET;
    control.align.cmsg_type = SCM_RIGHTS;
    control.align.cmsg_len = CMSG_LEN (n * sizeof (int));
    memcpy (CMSG_DATA (&control.align), fds, n * sizeof (int));
    msg.msg_control = control.space;
    msg.msg_controllen = CMSG_SPACE (n * sizeof (int));
  }
  must (sendmsg (fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)b->n);
}

/* M has come with N descriptors, which nobody else is to inherit. */
static void
check_fds (const struct wire_message *m, unsigned n)
{
  if (m->n_fds != n)
    broken ("%u descriptors came of %u", m->n_fds, n);
  for (unsigned i = 0; i < n; ++i)
    if (!(fcntl (m->fds[i], F_GETFD) & FD_CLOEXEC))
      broken ("descriptor %u is for others as well", i);
}

/* Who is at the other end of FD is this process. */
static void
check_peer (int fd)
{
  struct q_error err = { "" };
  pid_t pid = 0;

  if (wire_check_peer (fd, 0, &pid, &err) < 0 || pid != getpid ())
    broken ("process %d is at the other end: %s", (int)pid, err.text);
}

/* Sends what there is as a message, and takes what has come of it. */
static void
by_wire (struct cargo *c, struct input *lies)
{
  struct wire_message m = { .body = NULL };
  struct q_error err = { "" };
  uint8_t how = take8 (lies);
  /* Of those that come, the message may know nothing. */
  unsigned n_fds = how / 4 % (MAX_FDS + 1), known = how & 0x80 ? n_fds : 0;
  struct bytes b = frame (c, known);
  int s[2];

  for (unsigned i = how % 4; i > 0; --i)
    lie_about_message (&b, lies, c);
  c->honest = c->honest && n_fds == known;
  must (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s) == 0);
  check_peer (s[1]);
  send_raw (s[0], &b, n_fds);
  must (shutdown (s[0], SHUT_WR) == 0);
  bytes_free (&b);
  json_decref (c->state);
  free (c->bytes);
  c->state = NULL;
  c->bytes = NULL;
  c->size = 0;
  struct wire w = { .fd = s[1], .timeout_ms = TIMEOUT_MS };
  int r = wire_receive (&w, (how & 0x40) ? "session" : NULL, &m, &err);
  if (r < 0 && c->honest)
    broken ("a message is not taken: %s", err.text);
  if (r < 0 && err.text[0] == '\0')
    broken ("a message is not taken, and nothing is said");
  if (r == 0) {
    check_fds (&m, n_fds);
    c->state = json_incref (json_object_get (m.body, "state"));
    c->bytes = m.blob;
    c->size = m.blob_size;
    m.blob = NULL;
    wire_free (&m);
  }
  close (s[0]);
  close (s[1]);
}

/* ---- both ------------------------------------------------------------------------------------ */

/* The lowest descriptor that is free. */
static int
lowest_fd (void)
{
  int fd = dup (STDERR_FILENO);

  must (fd >= 0);
  close (fd);
  return fd;
}

static void
carry (struct connection *w, const char *state, const uint8_t *bytes, size_t size,
       struct cargo *cargo)
{
  struct input *lies = w->opaque;
  uint8_t how = take8 (lies);
  int fd = lowest_fd ();

  cargo->state = json_loads (state, 0, NULL);
  cargo->bytes = xalloc (size + 1);
  memcpy (cargo->bytes, bytes, size);
  cargo->size = size;
  for (unsigned i = how % 4; i > 0; --i)
    lie (cargo, lies);
  if ((how & 4) && strlen (state) + cargo->size < MAX_MESSAGE)
    by_wire (cargo, lies);
  if (lowest_fd () != fd)
    broken ("a descriptor is left open");
}

int
LLVMFuzzerTestOneInput (const uint8_t *bytes, size_t size)
{
  struct input in = { bytes, size }, lies;
  struct connection w;
  struct choice c;

  fuzz_begin ();
  take (&in, &c, sizeof c);
  size_t n = take8 (&in);
  n = n < in.left ? n : in.left;
  lies = (struct input){ in.at, n };
  in.at += n;
  in.left -= n;

  connection_begin (&w, &c);
  w.carry = carry;
  w.opaque = &lies;
  client_assemble (&w.client, &in, (enum start) (c.start % STARTS), w.exports.first->size);
  connection_run (&w);
  connection_end (&w);
  return 0;
}

/* ---- inputs ---------------------------------------------------------------------------------- */

void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  /* Told the second time that there is something to be told. */
  static const uint8_t told[][12] = {
    { 0, 0 },                                  /* nothing */
    { 4, 0, 4, 0 },                            /* messages as they are */
    { 0, 4, 1, 0 },                            /* a message that ends early */
    { 0, 4, 0x41, 3, 20, 0 },                  /* its header */
    { 4, 0, 4, 4, 4, 8 },                      /* with descriptors */
    { 4, 0x88, 4, 0x8c, 4, 0x84 },             /* that are its own */
    { 0, 1, 5, 0, 0, 6, 0, 0, 0, 0 },          /* a read */
    { 0, 1, 6, 0, 0, 0x36, 0, 3, 0, 0 },       /* a write */
    { 0, 1, 0, 11, 3, 0, 1, 0, 12, 3 },        /* numbers */
    { 0, 1, 7, 0, 3, 0, 1, 7, 1, 7 },          /* bytes */
    { 0, 2, 2, 0, 8, 2, 1, 0x28, 0, 1, 4, 9 }, /* words */
    { 0, 1, 8, 2, 5, 0, 1, 3, 8, 2 },          /* contexts */
    { 5, 7, 2, 1, 4, 3, 7, 6, 7, 1, 3, 2 },    /* all of it */
  };
  /* Two reads, long ones; a write of 6 MiB; block status. */
  static const uint8_t records[] = { 6, 0, 0, 0, 0, 1, 159, 6, 6, 0, 0, 0, 0, 0, 1, 9,
                                     6, 1, 0, 7, 0, 1, 163, 6, 6, 7, 0, 0, 0, 0, 7, 255 };
  uint8_t input[128];
  char name[64];

  for (unsigned i = 0; i < sizeof told / sizeof told[0]; ++i)
    for (unsigned start = 0; start < STARTS; ++start) {
      struct choice c = { .start = (uint8_t)start,
                          .image = (uint8_t)(i % 2 ? 5 : 1),
                          .seed = (uint8_t)(i + start),
                          .in = 14,
                          .out = 12,
                          .handover = (uint8_t)(1 + i % 3 % 2) };
      memcpy (input, &c, sizeof c);
      input[sizeof c] = sizeof told[i];
      memcpy (input + sizeof c + 1, told[i], sizeof told[i]);
      memcpy (input + sizeof c + 1 + sizeof told[i], records, sizeof records);
      snprintf (name, sizeof name, "start%u-told%u", start, i);
      emit (opaque, name, input, sizeof c + 1 + sizeof told[i] + sizeof records);
    }
}
