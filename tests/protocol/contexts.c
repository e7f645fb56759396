/* SPDX-License-Identifier: BSD-3-Clause */

/* LIST_META_CONTEXT and SET_META_CONTEXT, and what they leave for BLOCK_STATUS. */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client.h"

#define ALLOCATION "base:allocation"

static const uint32_t both[] = { NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT };

static struct conn *
open_mode (struct test *t)
{
  struct conn *c = open_haggling (t);

  negotiate_mode (c, t->mode);
  return c;
}

static const struct answer *
meta (struct conn *c, uint32_t option, const char *const *queries)
{
  return opt_ask (c, option, meta_data (c->t, c->t->target->export, queries));
}

/* Asks, expects success, and returns how many contexts came. */
static size_t
contexts (struct conn *c, uint32_t option, const char *const *queries, struct context **list)
{
  const struct answer *a = meta (c, option, queries);

  expect_answer (c, a, "a context option", REP_ACK);
  return contexts_parse (c, a, list);
}

static bool
includes (const struct context *list, size_t n, const char *name)
{
  for (size_t i = 0; i < n; i++)
    if (strcmp (list[i].name, name) == 0)
      return true;
  return false;
}

static void
list_all (struct test *t)
{
  struct conn *c = open_mode (t);
  struct context *list;
  size_t n = contexts (c, NBD_OPT_LIST_META_CONTEXT, NO_QUERIES, &list);

  CHECK (t, includes (list, n, ALLOCATION), "base:allocation is not listed");
  for (size_t i = 0; i < n; i++)
    CHECK (t, list[i].id == 0, "listed context %s has id %" PRIu32 ", not 0", list[i].name,
           list[i].id);
  expect_haggling (c);
}

static void
list_wildcard (struct test *t)
{
  struct conn *c = open_mode (t);
  struct context *list;
  size_t n = contexts (c, NBD_OPT_LIST_META_CONTEXT, QUERIES ("base:"), &list);

  CHECK (t, n == 1 && includes (list, n, ALLOCATION), "base: matched %zu contexts", n);
}

static void
list_one (struct test *t)
{
  struct conn *c = open_mode (t);
  struct context *list;
  size_t n = contexts (c, NBD_OPT_LIST_META_CONTEXT, QUERIES (ALLOCATION), &list);

  CHECK (t, n == 1 && includes (list, n, ALLOCATION), "base:allocation matched %zu contexts", n);
}

/* Everything that can be listed by its own name can be selected. */
static void
list_then_select (struct test *t)
{
  struct conn *c = open_mode (t);
  struct context *list;
  size_t n = contexts (c, NBD_OPT_LIST_META_CONTEXT, NO_QUERIES, &list);

  for (size_t i = 0; i < n; i++)
    if (list[i].name[strlen (list[i].name) - 1] != ':') {
      set_contexts (c, QUERIES (list[i].name));
      CHECK (t, c->n_contexts == 1 && strcmp (c->contexts[0].name, list[i].name) == 0,
             "%s is listed but cannot be selected", list[i].name);
    }
}

static void
list_selects_nothing (struct test *t)
{
  struct conn *c = open_mode (t);

  meta (c, NBD_OPT_LIST_META_CONTEXT, QUERIES (ALLOCATION));
  go (c);
  expect_error (c, do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), "status after LIST only",
                ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

/* LIST between SET and GO leaves what is set. */
static void
list_keeps_selection (struct test *t)
{
  struct conn *c = open_mode (t);

  set_contexts (c, QUERIES (ALLOCATION));
  meta (c, NBD_OPT_LIST_META_CONTEXT, NO_QUERIES);
  go (c);
  expect_error (c, do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), "status", SUCCESS);
}

static void
expect_none (struct test *t, const char *const *queries)
{
  struct conn *c = open_mode (t);
  struct context *list;

  for (size_t i = 0; i < 2; i++) {
    size_t n = contexts (c, both[i], queries, &list);

    CHECK (t, n == 0, "%s matched %s", queries[0], list[0].name);
  }
  expect_haggling (c);
}

static void
unknown_namespace (struct test *t)
{
  expect_none (t, QUERIES ("x-nosuch:", "x-nosuch:thing", "no-such:base:allocation"));
}

static void
unknown_leaf (struct test *t)
{
  expect_none (t, QUERIES ("base:nosuch", "base:allocation2", "base:alloc"));
}

static void
unknown_qemu (struct test *t)
{
  expect_none (t, QUERIES ("qemu:nosuch", "qemu:dirty-bitmap:no such bitmap"));
}

static void
name_is_exact (struct test *t)
{
  expect_none (t, QUERIES ("Base:Allocation", "base:allocation ", " base:allocation"));
}

/* A query without a namespace may be refused or match nothing. */
static void
no_namespace (struct test *t)
{
  static const char *const queries[] = { "", ":", "allocation", ":allocation", "base" };
  struct conn *c = open_mode (t);

  for (size_t q = 0; q < sizeof queries / sizeof queries[0]; q++)
    for (size_t i = 0; i < 2; i++) {
      const struct answer *a = meta (c, both[i], QUERIES (queries[q]));

      expect_answer (c, a, "a query without a namespace", REPS (NBD_REP_ACK, NBD_REP_ERR_INVALID));
      CHECK (t, a->n == 0, "the query \"%s\" matched a context", queries[q]);
    }
  expect_haggling (c);
}

static void
unknown_export (struct test *t)
{
  struct conn *c = open_mode (t);

  for (size_t i = 0; i < 2; i++)
    expect_answer (c, opt_ask (c, both[i], meta_data (t, "no such export", QUERIES (ALLOCATION))),
                   "contexts of an unknown export", REPS (NBD_REP_ERR_UNKNOWN));
  expect_haggling (c);
}

static void
before_structured (struct test *t)
{
  struct conn *c = open_haggling (t);

  expect_answer (c, meta (c, NBD_OPT_SET_META_CONTEXT, QUERIES (ALLOCATION)),
                 "SET_META_CONTEXT in simple mode",
                 REPS (NBD_REP_ERR_INVALID, NBD_REP_ERR_EXT_HEADER_REQD));
  expect_answer (c, meta (c, NBD_OPT_LIST_META_CONTEXT, QUERIES (ALLOCATION)),
                 "LIST_META_CONTEXT in simple mode",
                 REPS (NBD_REP_ACK, NBD_REP_ERR_INVALID, NBD_REP_ERR_EXT_HEADER_REQD));
  go (c);
  expect_error (c, do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), "status in simple mode",
                ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

/* Selecting */

static void
set_one (struct test *t)
{
  struct conn *c = open_mode (t);

  set_contexts (c, QUERIES (ALLOCATION));
  CHECK (t, c->n_contexts == 1 && includes (c->contexts, 1, ALLOCATION),
         "%zu contexts were selected", c->n_contexts);
  go (c);
  expect_error (c, do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), "status", SUCCESS);
}

static void
set_wildcard (struct test *t)
{
  struct conn *c = open_mode (t);

  set_contexts (c, QUERIES ("base:"));
  CHECK (t, c->n_contexts == 0, "\"base:\" selected %s", c->contexts[0].name);
}

static void
set_repeated_query (struct test *t)
{
  struct conn *c = open_mode (t);

  set_contexts (c, QUERIES (ALLOCATION, "x-no:such", ALLOCATION, ALLOCATION));
  CHECK (t, c->n_contexts == 1, "%zu contexts were selected by one name", c->n_contexts);
  go (c);
  expect_error (c, do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), "status", SUCCESS);
}

static void
set_two (struct test *t)
{
  struct conn *c = open_mode (t);

  set_contexts (c, QUERIES ("qemu:allocation-depth", ALLOCATION));
  CHECK (t, c->n_contexts == 2, "%zu contexts were selected", c->n_contexts);
  go (c);
  expect_error (c, do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), "status", SUCCESS);
  CHECK (t, c->n_contexts == 2, "%zu contexts", c->n_contexts);
}

/* The last SET counts, and that one selected nothing. */
static void
expect_none_left (struct conn *c)
{
  go (c);
  expect_error (c, do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), "status without a context",
                ERRS (NBD_EINVAL));
  expect_in_sync (c);
}

static void
set_then_none (struct test *t)
{
  struct conn *c = open_mode (t);

  set_contexts (c, QUERIES (ALLOCATION));
  set_contexts (c, NO_QUERIES);
  CHECK (t, c->n_contexts == 0, "no queries selected %zu contexts", c->n_contexts);
  expect_none_left (c);
}

static void
set_then_unknown (struct test *t)
{
  struct conn *c = open_mode (t);

  set_contexts (c, QUERIES (ALLOCATION));
  set_contexts (c, QUERIES ("x-nosuch:thing"));
  expect_none_left (c);
}

static void
set_none_then_one (struct test *t)
{
  struct conn *c = open_mode (t);

  set_contexts (c, NO_QUERIES);
  set_contexts (c, QUERIES (ALLOCATION));
  go (c);
  expect_error (c, do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), "status", SUCCESS);
}

static void
set_then_fail (struct test *t)
{
  struct conn *c = open_mode (t);
  const struct bytes *broken = put_u32 (bytes_new (t), 1000);

  set_contexts (c, QUERIES (ALLOCATION));
  expect_answer (c, opt_ask (c, NBD_OPT_SET_META_CONTEXT, broken), "a broken SET_META_CONTEXT",
                 REPS (NBD_REP_ERR_INVALID));
  expect_none_left (c);
}

static void
set_then_fail_unknown_export (struct test *t)
{
  struct conn *c = open_mode (t);

  set_contexts (c, QUERIES (ALLOCATION));
  expect_answer (
      c,
      opt_ask (c, NBD_OPT_SET_META_CONTEXT, meta_data (t, "no such export", QUERIES (ALLOCATION))),
      "an unknown export", REPS (NBD_REP_ERR_UNKNOWN));
  expect_none_left (c);
}

static void
set_other_export (struct test *t)
{
  struct conn *c = open_mode (t);

  expect_answer (
      c,
      opt_ask (c, NBD_OPT_SET_META_CONTEXT, meta_data (t, t->target->other, QUERIES (ALLOCATION))),
      "the second export", REP_ACK);
  expect_none_left (c);
}

/* EXPORT_NAME ends haggling as GO does. Structured mode: extended headers forbid it. */
static void
set_then_export_name (struct test *t)
{
  struct conn *c = open_mode (t);
  uint8_t b[10];

  set_contexts (c, QUERIES (ALLOCATION));
  opt_send (c, NBD_OPT_EXPORT_NAME, put_string (bytes_new (t), t->target->export));
  conn_recv (c, b, sizeof b, "the export's size and flags");
  c->size = get_u64 (b);
  expect_error (c, do_cmd (c, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), "status", SUCCESS);
  expect_in_sync (c);
}

/* Syntax */

static void
cut_short (struct test *t)
{
  const struct bytes *whole = meta_data (t, t->target->export, QUERIES (ALLOCATION, "x-a:b"));

  for (size_t len = 0; len < whole->len; len++) {
    struct conn *c = open_mode (t);

    for (size_t i = 0; i < 2; i++)
      expect_answer (c, opt_ask (c, both[i], put (bytes_new (t), whole->data, len)),
                     "a context option cut short", REPS (NBD_REP_ERR_INVALID));
    expect_none_left (c);
    conn_close (c);
  }
}

static void
expect_syntax_error (struct test *t, const struct bytes *data, const char *what)
{
  struct conn *c = open_mode (t);

  for (size_t i = 0; i < 2; i++)
    expect_answer (c, opt_ask (c, both[i], data), what, REPS (NBD_REP_ERR_INVALID));
  expect_haggling (c);
}

static struct bytes *
export_and_count (struct test *t, uint32_t count)
{
  const char *export = t->target->export;

  return put_u32 (put_string (put_u32 (bytes_new (t), (uint32_t)strlen (export)), export), count);
}

static void
lengths_past_end (struct test *t)
{
  const uint32_t lengths[] = { 16, 100, 0x7fffffff, 0xfffffff8, 0xfffffffc, UINT32_MAX };

  for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
    struct bytes *b = put_u32 (bytes_new (t), lengths[i]);

    expect_syntax_error (t, put_fill (b, 'x', 12), "a name past the end");
    b = put_u32 (export_and_count (t, 1), lengths[i]);
    expect_syntax_error (t, put_fill (b, 'x', 12), "a query past the end");
  }
}

/* Both are true of a count that no option could hold: not enough data, and too many queries. */
static void
count_past_end (struct test *t)
{
  const uint32_t counts[] = { 2, 100, 0x40000000, UINT32_MAX };

  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
    struct conn *c = open_mode (t);
    struct bytes *b = put_u32 (export_and_count (t, counts[i]), (uint32_t)strlen (ALLOCATION));

    put_string (b, ALLOCATION);
    for (size_t j = 0; j < 2; j++)
      expect_answer (c, opt_ask (c, both[j], b), "fewer queries than counted",
                     counts[i] <= 100 ? REPS (NBD_REP_ERR_INVALID)
                                      : REPS (NBD_REP_ERR_INVALID, NBD_REP_ERR_TOO_BIG));
    expect_haggling (c);
  }
}

static void
trailing (struct test *t)
{
  struct bytes *b = meta_data (t, t->target->export, QUERIES (ALLOCATION));

  expect_syntax_error (t, put_fill (b, 0, 1), "a byte too many");
  b = meta_data (t, t->target->export, NO_QUERIES);
  expect_syntax_error (t, put_fill (b, 0, 4), "a query not counted");
}

static void
query_too_long (struct test *t)
{
  struct conn *c = open_mode (t);
  struct bytes *b = put_u32 (export_and_count (t, 1), NBD_MAX_STRING + 1);

  put_fill (put_string (b, "x-a:"), 'x', NBD_MAX_STRING - 3);
  for (size_t i = 0; i < 2; i++) {
    const struct answer *a = opt_ask (c, both[i], b);

    expect_answer (c, a, "a query of 4097 bytes",
                   REPS (NBD_REP_ACK, NBD_REP_ERR_INVALID, NBD_REP_ERR_TOO_BIG));
    CHECK (t, a->n == 0, "it matched a context");
  }
  expect_haggling (c);
}

static void
name_too_long (struct test *t)
{
  struct conn *c = open_mode (t);
  char *name = test_alloc (t, NBD_MAX_STRING + 2);

  memset (name, 'x', NBD_MAX_STRING + 1);
  for (size_t i = 0; i < 2; i++)
    expect_answer (c, opt_ask (c, both[i], meta_data (t, name, QUERIES (ALLOCATION))),
                   "a name of 4097 bytes",
                   REPS (NBD_REP_ERR_INVALID, NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_UNKNOWN));
  expect_haggling (c);
}

static void
many_queries (struct test *t)
{
  enum { N = 1000 };
  struct conn *c = open_mode (t);
  const char **queries = test_alloc (t, (N + 2) * sizeof *queries);

  for (int i = 0; i < N; i++) {
    char *q = test_alloc (t, 24);

    snprintf (q, 24, "x-many:%d", i);
    queries[i] = q;
  }
  queries[N] = ALLOCATION;
  for (size_t i = 0; i < 2; i++) {
    const struct answer *a = meta (c, both[i], queries);

    expect_answer (c, a, "1001 queries", REPS (NBD_REP_ACK, NBD_REP_ERR_TOO_BIG));
    CHECK (t, a->n == (a->final == NBD_REP_ACK), "%zu contexts came", a->n);
  }
  expect_haggling (c);
}

/* qemu: namespace, whose queries QEMU's docs/interop/nbd.txt defines */

static void
qemu_wildcards (struct test *t)
{
  struct conn *c = open_mode (t);
  struct context *list;
  size_t n = contexts (c, NBD_OPT_LIST_META_CONTEXT, QUERIES ("qemu:"), &list);

  CHECK (t, includes (list, n, "qemu:allocation-depth"), "qemu: does not list allocation-depth");
  for (size_t i = 0; i < n; i++)
    CHECK (t, strncmp (list[i].name, "qemu:", 5) == 0, "qemu: lists %s", list[i].name);
  n = contexts (c, NBD_OPT_LIST_META_CONTEXT, QUERIES ("qemu:dirty-bitmap:"), &list);
  for (size_t i = 0; i < n; i++)
    CHECK (t, strncmp (list[i].name, "qemu:dirty-bitmap:", 18) == 0, "qemu:dirty-bitmap: lists %s",
           list[i].name);
  set_contexts (c, QUERIES ("qemu:", "qemu:dirty-bitmap:"));
  CHECK (t, c->n_contexts == 0, "a wildcard selected %s", c->contexts[0].name);
}

#define LAST   "each SET_META_CONTEXT replaces what was set before, even when it fails"
#define SYNTAX "lengths that go past the data are INVALID; the session goes on"

const struct tcase context_cases[] = {
  { "list-meta.no-queries", IN_CHUNKS, PLAIN | STATUS, list_all,
    "no queries: all contexts, with id 0" },
  { "list-meta.wildcard", IN_CHUNKS, PLAIN | STATUS, list_wildcard,
    "\"base:\" MUST list all of its namespace" },
  { "list-meta.one", IN_CHUNKS, PLAIN | STATUS, list_one, "a name lists itself" },
  { "list-meta.then-select", IN_CHUNKS, PLAIN | STATUS, list_then_select,
    "what is listed by name is available to select" },
  { "list-meta.selects-nothing", IN_CHUNKS, PLAIN | STATUS, list_selects_nothing,
    "BLOCK_STATUS without a selected context SHOULD fail with EINVAL" },
  { "list-meta.keeps-selection", IN_CHUNKS, PLAIN | STATUS, list_keeps_selection,
    "only SET_META_CONTEXT changes what is set" },
  { "meta.unknown-namespace", IN_CHUNKS, PLAIN | STATUS, unknown_namespace,
    "queries of unknown namespaces MUST be ignored" },
  { "meta.unknown-leaf", IN_CHUNKS, PLAIN | STATUS, unknown_leaf,
    "leaf names of base: not recognised MUST be ignored" },
  { "meta.unknown-qemu", IN_CHUNKS, PLAIN | STATUS, unknown_qemu,
    "a bitmap or leaf that is not there matches nothing" },
  { "meta.name-is-exact", IN_CHUNKS, PLAIN | STATUS, name_is_exact, "names are compared as bytes" },
  { "meta.no-namespace", IN_CHUNKS, PLAIN | STATUS, no_namespace,
    "a query without a colon may be INVALID, and matches nothing" },
  { "meta.unknown-export", IN_CHUNKS, PLAIN | STATUS, unknown_export,
    "ERR_UNKNOWN for an export that is not there" },
  { "meta.before-structured", ONCE, PLAIN | CHUNKS, before_structured,
    "SET_META_CONTEXT in simple mode SHOULD fail with INVALID" },
  { "set-meta.one", IN_CHUNKS, PLAIN | STATUS, set_one,
    "a META_CONTEXT reply for each context selected, then ACK" },
  { "set-meta.wildcard", IN_CHUNKS, PLAIN | STATUS, set_wildcard,
    "\"base:\" MUST be ignored when selecting" },
  { "set-meta.repeated-query", IN_CHUNKS, PLAIN | STATUS, set_repeated_query,
    "one reply for each context, however often it was asked for" },
  { "set-meta.two", IN_CHUNKS, PLAIN | STATUS | DEPTH, set_two,
    "each context has an id of its own, and a status chunk of its own" },
  { "set-meta.then-none", IN_CHUNKS, PLAIN | STATUS, set_then_none, LAST },
  { "set-meta.then-unknown", IN_CHUNKS, PLAIN | STATUS, set_then_unknown, LAST },
  { "set-meta.none-then-one", IN_CHUNKS, PLAIN | STATUS, set_none_then_one, LAST },
  { "set-meta.then-failure", IN_CHUNKS, PLAIN | STATUS, set_then_fail, LAST },
  { "set-meta.then-unknown-export", IN_CHUNKS, PLAIN | STATUS, set_then_fail_unknown_export, LAST },
  { "set-meta.other-export", IN_CHUNKS, PLAIN | STATUS | TWO_EXPORTS, set_other_export,
    "contexts selected for another export do not count" },
  { "set-meta.then-export-name", IN_STRUCTURED, PLAIN | STATUS, set_then_export_name,
    "what was selected holds after EXPORT_NAME, too" },
  { "meta.cut-short", IN_CHUNKS, PLAIN | STATUS, cut_short, SYNTAX },
  { "meta.lengths-past-end", IN_CHUNKS, PLAIN | STATUS, lengths_past_end, SYNTAX },
  { "meta.count-past-end", IN_CHUNKS, PLAIN | STATUS, count_past_end, SYNTAX },
  { "meta.trailing-data", IN_CHUNKS, PLAIN | STATUS, trailing, SYNTAX },
  { "meta.query-too-long", IN_CHUNKS, PLAIN | STATUS, query_too_long,
    "a string has at most 4096 bytes" },
  { "meta.name-too-long", IN_CHUNKS, PLAIN | STATUS, name_too_long,
    "a string has at most 4096 bytes" },
  { "meta.many-queries", IN_CHUNKS, PLAIN | STATUS, many_queries, "all are answered, or TOO_BIG" },
  { "meta.qemu-wildcards", IN_CHUNKS, PLAIN | STATUS | DEPTH, qemu_wildcards,
    "a namespace with an empty leaf lists, and selects nothing" },
  { NULL, 0, 0, NULL, NULL },
};
