/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the options for watermarks and full disks may say.
 */

#include "room.h"
#include "unit.h"
#include "watermark.h"

static void
test_amounts (void **state)
{
  static const struct {
    const char *text;
    bool valid;
    uint64_t bytes;
    unsigned percent;
  } cases[] = {
    { "80%", true, 0, 80 },
    { "1%", true, 0, 1 },
    { "100%", true, 0, 100 },
    { "8G", true, 8ull << 30, 0 },
    { "512", true, 512, 0 },
    { "0", false, 0, 0 },
    { "0%", false, 0, 0 },
    { "101%", false, 0, 0 },
    { "4294967297%", false, 0, 0 },
    { "99999999999999999999%", false, 0, 0 },
    { "%", false, 0, 0 },
    { "5%%", false, 0, 0 },
    { "5 %", false, 0, 0 },
    { "-5%", false, 0, 0 },
    { "+5%", false, 0, 0 },
    { "5.5%", false, 0, 0 },
    { "5%x", false, 0, 0 },
    { "-1", false, 0, 0 },
    { "x", false, 0, 0 },
    { "", false, 0, 0 },
    { "99999999999999999999", false, 0, 0 },
  };

  (void)state;
  for (size_t i = 0; i < lengthof (cases); i++) {
    struct q_amount a;
    bool valid = watermark_parse (cases[i].text, &a);
    if (valid != cases[i].valid)
      fail_msg ("'%s' is %s", cases[i].text, valid ? "taken" : "refused");
    if (!valid)
      continue;
    assert_int_equal (a.bytes, cases[i].bytes);
    assert_int_equal (a.percent, cases[i].percent);
  }
}

static void
test_on_enospc (void **state)
{
  static const struct {
    const char *text;
    bool valid, wait;
    unsigned seconds;
  } cases[] = {
    { "report", true, false, 0 },    { "wait", true, true, 0 },
    { "wait:1", true, true, 1 },     { "wait:3600", true, true, 3600 },
    { "wait:0", false, false, 0 },   { "wait:", false, false, 0 },
    { "wait:-1", false, false, 0 },  { "wait:1k", false, false, 0 },
    { "wait:x", false, false, 0 },   { "wait:4294967297", false, false, 0 },
    { "waits", false, false, 0 },    { "wait1", false, false, 0 },
    { "", false, false, 0 },         { "report:1", false, false, 0 },
    { "wait: 1", false, false, 0 },  { "Wait", false, false, 0 },
    { "wait:1.5", false, false, 0 }, { "wait:1:1", false, false, 0 },
  };

  (void)state;
  for (size_t i = 0; i < lengthof (cases); i++) {
    struct room_options o;
    bool valid = room_parse (cases[i].text, &o);
    if (valid != cases[i].valid)
      fail_msg ("'%s' is %s", cases[i].text, valid ? "taken" : "refused");
    if (!valid)
      continue;
    assert_int_equal (o.wait, cases[i].wait);
    assert_int_equal (o.seconds, cases[i].seconds);
  }
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_amounts),
    cmocka_unit_test (test_on_enospc),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
