/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Finding JSON values in a stream (server/control/control-stream.h): whatever the pieces it comes
 * in, what is found is the same; what is broken is said once, and what follows is understood.
 */

#include "unit.h"

#include <stdio.h>
#include <time.h>

#include "control-stream.h"

static unsigned seed;

static unsigned
below (unsigned n)
{
  return (unsigned)rand_r (&seed) % n;
}

/* Feeds N bytes in pieces of at most PIECE bytes (0: of any size).  What comes out is an array:
 * values as they are, errors as null. */
static json_t *
feed (struct stream *s, const char *text, size_t n, unsigned piece)
{
  json_t *found = json_array ();

  while (n > 0) {
    size_t take = piece ? piece : 1 + below (40);
    const char *p = text, *end = text + (take < n ? take : n);
    n -= (size_t)(end - p);
    text = end;
    while (p < end) {
      struct q_error err = { "" };
      const char *before = p;
      json_t *value = NULL;
      switch (stream_next (s, &p, end, &value, &err)) {
      case STREAM_VALUE:
        assert_non_null (value);
        json_array_append_new (found, value);
        break;
      case STREAM_ERROR:
        assert_true (*err.text);
        assert_null (strchr (err.text, '\n'));
        json_array_append_new (found, json_null ());
        break;
      case STREAM_MORE:
        assert_ptr_equal (p, end);
        break;
      }
      /* A word ends before what follows it: at most one call in two stays where it is. */
      if (p == before)
        assert_int_equal (s->state, STREAM_START);
      assert_true (s->n <= STREAM_MAX_SIZE);
    }
  }
  return found;
}

static void
expect (const char *text, size_t n, const char *wanted)
{
  json_t *want = json_loads (wanted, 0, NULL);

  assert_non_null (want);
  for (unsigned piece = 0; piece < 4; piece++) {
    struct stream s = { 0 };
    json_t *found = feed (&s, text, n, piece == 3 ? 100000 : piece);
    if (!json_equal (found, want)) {
      char *is = json_dumps (found, JSON_COMPACT);
      fail_msg ("%s: found %s instead of %s, in pieces of %u", text, is, wanted, piece);
    }
    json_decref (found);
    stream_destroy (&s);
  }
  json_decref (want);
}

#define EXPECT(text, wanted) expect (text, sizeof text - 1, wanted)

static void
test_values (void **state)
{
  (void)state;
  EXPECT ("{}", "[{}]");
  EXPECT ("{\"a\": 1}{\"b\": [2, {}]} [3]\r\n\t{}", "[{\"a\": 1}, {\"b\": [2, {}]}, [3], {}]");
  EXPECT ("{\n \"a\":\r\n   [\n 1,\n 2\n ]\n}\n", "[{\"a\": [1, 2]}]");
  EXPECT ("1 true \"x\" null\n", "[1, true, \"x\", null]");
  EXPECT ("12[3]", "[12, [3]]");
  EXPECT ("{\"}\": \"{[\\\"\\\\\"}", "[{\"}\": \"{[\\\"\\\\\"}]");
  EXPECT ("{\"\xc3\xa4\": \"\\u00e4\"}", "[{\"\xc3\xa4\": \"\xc3\xa4\"}]");
  EXPECT ("{\"a\": \"half", "[]");
  EXPECT ("{\"a\": 12", "[]");
}

static void
test_single_quotes (void **state)
{
  (void)state;
  EXPECT ("{'a': 'b'}", "[{\"a\": \"b\"}]");
  EXPECT ("{'a': 'say \"b\"'}", "[{\"a\": \"say \\\"b\\\"\"}]");
  EXPECT ("{'it\\'s': \"it\\'s 'so'\"}", "[{\"it's\": \"it's 'so'\"}]");
  EXPECT ("{'a\\\\': '\\u0041\\n'}", "[{\"a\\\\\": \"A\\n\"}]");
}

static void
test_broken (void **state)
{
  (void)state;
  EXPECT ("{\"a\": }{}", "[null, {}]");
  EXPECT ("{\"a\" 1} {}", "[null, {}]");
  EXPECT ("{\"a\": 1 2}{}", "[null, {}]");
  EXPECT ("}{}", "[null, {}]");
  EXPECT ("]{}", "[null, {}]");
  EXPECT ("{]{}", "[null, {}]");
  EXPECT (", {}", "[null, {}]");
  EXPECT ("{\"a\": 1, \"a\": 2}{}", "[null, {}]");
  EXPECT ("{\"a\": \"\xc3\x28\"}{}", "[null, {}]");
  EXPECT ("{\"a\": \"\\u0000\"}{}", "[null, {}]");
  EXPECT ("{\"a\": \"\\q\"}{}", "[null, {}]");
  EXPECT ("{\"a\": 99999999999999999999}{}", "[null, {}]");
  EXPECT ("hello {}", "[null, {}]");
  EXPECT ("{\"a\": @}{}", "[null, {}]");
}

/* Whatever is left over from before, these bytes end it. */
static void
test_resynchronisation (void **state)
{
  (void)state;
  EXPECT ("{\"a\": [1, \xff{}", "[null, {}]");
  EXPECT ("\xff{}", "[null, {}]");
  EXPECT ("{\"a\": \"b\x01{}", "[null, {}]");
  EXPECT ("{\"a\": \"b\\\x01{}", "[null, {}]");
  EXPECT ("{\"a\": \"b\n{}", "[null, {}]");
  EXPECT ("{\"a\": \0{}", "[null, {}]");
  EXPECT ("tru\xfe{}", "[null, {}]");
}

/* HEAD, TEXT as often as TIMES says, TAIL. */
static void
expect_long (const char *head, const char *text, size_t times, const char *tail, const char *wanted)
{
  size_t len = strlen (text), n = strlen (head);
  char *all = malloc (n + len * times + strlen (tail) + 1);

  assert_non_null (all);
  memcpy (all, head, n);
  for (size_t i = 0; i < times; i++, n += len)
    memcpy (all + n, text, len);
  strcpy (all + n, tail);
  expect (all, strlen (all), wanted);
  free (all);
}

static void
test_bounds (void **state)
{
  char deepest[2 * STREAM_MAX_DEPTH + 3] = "[";

  (void)state;
  for (unsigned i = 1; i <= STREAM_MAX_DEPTH; i++) {
    deepest[i] = '[';
    deepest[STREAM_MAX_DEPTH + i] = ']';
  }
  expect (deepest + 1, 2 * STREAM_MAX_DEPTH, strcat (deepest, "]"));
  expect (deepest, 2 * STREAM_MAX_DEPTH + 2, "[null]");
  /* One error for all of the line. */
  expect_long ("", "[", 100000, "\n{}", "[null, {}]");
  expect_long ("", "{\"a\":", 1000, "{\"execute\": \"quit\"} \n{}", "[null, {}]");
  expect_long ("{\"a\": \"", "x", 2 * STREAM_MAX_SIZE, "\"}, {}\n{}", "[null, {}]");
  expect_long ("", "x", 2 * STREAM_MAX_SIZE, "\n{}", "[null, {}]");
  expect_long ("[1,", "2,", STREAM_MAX_SIZE, "3]\n{}", "[null, {}]");
  /* White space is nothing. */
  expect_long ("", " \n", 2 * STREAM_MAX_SIZE, "{}", "[{}]");
  expect_long ("[1,", " \n", 2 * STREAM_MAX_SIZE, "3]", "[[1, 3]]");
}

/* ---- at random ------------------------------------------------------------------------------- */

static json_t *
random_value (unsigned depth)
{
  static const char *const strings[] = { "", "execute", "{[\"'\\", "\xc3\xa4\xe2\x82\xac",
                                         "a\n\tb" };
  json_t *v;

  switch (below (depth > 0 ? 6 : 4)) {
  case 0:
    return json_integer ((json_int_t)below (1000000) - 500000);
  case 1:
    return json_string (strings[below (5)]);
  case 2:
    return json_boolean (below (2));
  case 3:
    return json_null ();
  case 4:
    v = json_array ();
    for (unsigned n = below (5); n > 0; n--)
      json_array_append_new (v, random_value (depth - 1));
    return v;
  default:
    v = json_object ();
    for (unsigned n = below (5); n > 0; n--)
      json_object_set_new (v, strings[below (5)], random_value (depth - 1));
    return v;
  }
}

static void
test_random_values (void **state)
{
  static const char *const between[] = { "", " ", "\n", "\r\n", "\t \n" };

  (void)state;
  for (unsigned round = 0; round < 300; round++) {
    json_t *wanted = json_array ();
    struct stream s = { 0 };
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream (&text, &n);
    for (unsigned i = below (8); i > 0; i--) {
      json_t *v = json_pack ("{s:o}", "x", random_value (6));
      json_dumpf (v, f, below (2) ? JSON_INDENT (below (5)) : below (2) ? JSON_ENSURE_ASCII : 0);
      fputs (between[below (5)], f);
      json_array_append_new (wanted, v);
      if (below (6) == 0) {
        /* A value that does not come to its end. */
        fputs ("{\"a\": [\"", f);
        fputc (below (2) ? 0xff : 0x01, f);
        json_array_append_new (wanted, json_null ());
      }
    }
    fclose (f);
    json_t *found = feed (&s, text, n, 0);
    if (!json_equal (found, wanted))
      fail_msg ("found something else in: %s", text);
    json_decref (found);
    json_decref (wanted);
    stream_destroy (&s);
    free (text);
  }
}

/* Bytes that mean something, in any order; after what forces it, the next value is understood. */
static void
test_random_bytes (void **state)
{
  static const char bytes[] =
      "{}[]{}[]::,,\"\"''\\\\  \n\r\tun0123-.eE+truefalsnl\x01\x7f\x80\xc3\xe2\xf5\xff";
  struct stream s = { 0 };

  (void)state;
  for (unsigned round = 0; round < 2000; round++) {
    char text[400];
    unsigned n = below (sizeof text - 10);
    for (unsigned i = 0; i < n; i++)
      text[i] = below (20) ? bytes[below (sizeof bytes - 1)] : (char)below (256);
    n += (unsigned)sprintf (text + n, "\xff{\"a\":%u}", round % 100);
    json_t *found = feed (&s, text, n, 0);
    size_t last = json_array_size (found);
    assert_true (last >= 2);
    assert_int_equal (json_integer_value (json_object_get (json_array_get (found, last - 1), "a")),
                      round % 100);
    assert_int_equal (s.state, STREAM_START);
    json_decref (found);
  }
  stream_destroy (&s);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_values),       cmocka_unit_test (test_single_quotes),
    cmocka_unit_test (test_broken),       cmocka_unit_test (test_resynchronisation),
    cmocka_unit_test (test_bounds),       cmocka_unit_test (test_random_values),
    cmocka_unit_test (test_random_bytes),
  };
  const char *given = getenv ("SEED");

  seed = given ? (unsigned)strtoul (given, NULL, 10) : (unsigned)time (NULL);
  printf ("SEED=%u\n", seed);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
