/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What people and programs write to say what they want: KEY=VALUE,..., JSON, image names, objects,
 * rules of who is let in, sizes.  The first byte says which; the rest is the text.
 *
 * The oracle: a tree of settings that was parsed is JSON that parses to the same; an error has a
 * message; what is let in does not depend on what was asked before.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "authz.h"
#include "fuzz.h"
#include "keyval.h"
#include "mem.h"
#include "source.h"

static void
check_error (const struct q_error *err, const char *what)
{
  if (!err->text[0])
    broken ("%s: an error without a message", what);
}

/* ---- trees ----------------------------------------------------------------------------------- */

static void
keyval (const char *text, const char *implied)
{
  struct q_error err = { "" };
  json_t *tree = keyval_parse (text, implied, &err), *again, *nested;
  char *dump;

  if (!tree) {
    check_error (&err, "keyval_parse");
    return;
  }
  dump = json_dumps (tree, JSON_COMPACT);
  if (!dump) {
    /* It has a string that is not UTF-8, which JSON cannot say. */
    json_decref (tree);
    return;
  }
  again = keyval_parse_json (dump, "again", &err);
  if (!again || !json_equal (tree, again))
    broken ("'%s' becomes %s, which does not parse to the same: %s", text, dump, err.text);
  nested = keyval_nest (tree, "nested", &err);
  json_decref (nested);
  json_decref (again);
  json_decref (tree);
  free (dump);
}

static void
json (const char *text)
{
  struct q_error err = { "" };
  json_t *tree = keyval_parse_json (text, "text", &err);

  if (!tree)
    check_error (&err, "keyval_parse_json");
  json_decref (tree);
}

/* Every kind of member that there is. */
static void
take_members (const char *text)
{
  static const char *const choices[] = { "on", "off", "unmap" };
  struct q_error err = { "" };
  json_t *tree = keyval_parse (text, "name", &err);
  const char *string = NULL;
  uint64_t number = 7, size = 0;
  struct members m;
  unsigned choice = 0;
  bool yes = false;

  if (!tree)
    return;
  members_init (&m, tree, "--export", &err);
  members_string (&m, "name", &string);
  members_bool (&m, "b", &yes);
  members_number (&m, "n", 5, 1u << 20, &number);
  members_size (&m, "s", &size);
  members_choice (&m, "c", choices, 3, &choice);
  if (members_end (&m) < 0)
    check_error (&err, "members_end");
  else if (number < 5 || number > 1u << 20 || choice > 2)
    broken ("'%s': number %" PRIu64 ", choice %u", text, number, choice);
  json_decref (tree);
}

/* ---- images ---------------------------------------------------------------------------------- */

static void
check_source (struct source *s, int r, const struct q_error *err)
{
  if (r < 0)
    check_error (err, "source");
  else if (!s->filename)
    broken ("a source without a file name");
  source_free (s);
}

static void
name (const char *text)
{
  struct source s = { .size = SOURCE_TO_END };
  struct q_error err = { "" };

  q_open_options_init (&s.open);
  check_source (&s, source_from_name (&s, text, &err), &err);
}

static void
image_opts (const char *text)
{
  struct source s = { .size = SOURCE_TO_END }, copy;
  struct q_error err = { "" };
  json_t *tree = keyval_parse (text, NULL, &err);
  int r;

  if (!tree)
    return;
  q_open_options_init (&s.open);
  r = source_from_tree (&s, tree, "--image-opts", &err);
  if (r == 0 && source_copy (&copy, &s) == 0) {
    if (strcmp (copy.filename, s.filename) != 0 || copy.offset != s.offset || copy.size != s.size)
      broken ("'%s': a copy of the source differs", text);
    source_free (&copy);
  }
  check_source (&s, r, &err);
  json_decref (tree);
}

/* ---- objects --------------------------------------------------------------------------------- */

static void
ask (const struct object *o)
{
  static const char *const who[] = { "", "CN=laptop,O=Example", "fred", "*", "CN=laptop" };
  struct q_error err = { "" };
  struct authz *a;
  bool first[5];

  if (o->type != OBJECT_AUTHZ_SIMPLE && o->type != OBJECT_AUTHZ_LIST)
    return;
  a = authz_open (o, &err);
  if (!a) {
    check_error (&err, "authz_open");
    return;
  }
  for (unsigned i = 0; i < 5; ++i)
    first[i] = authz_allows (a, who[i]);
  for (unsigned i = 5; i-- > 0;)
    if (authz_allows (a, who[i]) != first[i])
      broken ("whether '%s' is let in depends on who was before", who[i]);
  authz_free (a);
}

static bool
is_without_files (const struct objects *set)
{
  for (const struct object *o = set->first; o; o = o->next)
    if (o->type == OBJECT_SECRET && o->secret.file)
      return false;
  return true;
}

/* Several, one a line. */
static void
objects (const char *text)
{
  struct objects set = { 0 };
  struct q_error err = { "" };
  char *copy = strdup (text), *rest = copy;
  const char *line;

  while (copy && (line = strsep (&rest, "\n")) != NULL) {
    err.text[0] = '\0';
    if (objects_add (&set, line, &err) < 0)
      check_error (&err, "objects_add");
  }
  for (const struct object *o = set.first; o; o = o->next) {
    if (objects_find (&set, o->id) == NULL)
      broken ("object '%s' cannot be found", o->id);
    ask (o);
  }
  err.text[0] = '\0';
  if (is_without_files (&set) && objects_load_secrets (&set, NULL, &err) < 0)
    check_error (&err, "objects_load_secrets");
  objects_free (&set);
  free (copy);
}

/* ---- words ----------------------------------------------------------------------------------- */

static void
words (const char *text)
{
  struct source s = { .size = SOURCE_TO_END };
  char buf[32];
  uint64_t size, same;
  bool yes;

  if (parse_size (text, &size)) {
    snprintf (buf, sizeof buf, "%" PRIu64, size);
    if (!parse_size (buf, &same) || same != size)
      broken ("size '%s' is %" PRIu64 ", which is %" PRIu64, text, size, same);
  }
  parse_bool (text, &yes);
  q_open_options_init (&s.open);
  source_set_cache (&s, text);
  source_set_discard (&s, text);
  source_set_format (&s, text);
  source_set_detect_zeroes (&s, text);
  source_set_backing (&s, text);
  source_set_data_file_policy (&s, text);
  source_set_lock (&s, text);
  source_set_compress (&s, text);
  source_set_data_file (&s, text);
  source_free (&s);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  char *text;

  fuzz_begin ();
  if (size == 0 || size > 65536)
    return 0;
  text = xalloc (size);
  memcpy (text, data + 1, size - 1); /* ends with a NUL: there is one byte more */
  switch (data[0] % 8) {
  case 0:
    keyval (text, NULL);
    break;
  case 1:
    keyval (text, "file");
    break;
  case 2:
    json (text);
    break;
  case 3:
    take_members (text);
    break;
  case 4:
    name (text);
    break;
  case 5:
    image_opts (text);
    break;
  case 6:
    objects (text);
    break;
  default:
    words (text);
    break;
  }
  free (text);
  return 0;
}

void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  static const char *const texts[] = {
    "0file=a.raw,cache.direct=on,x.0=1,x.1=2,name=a,,b",
    "1disk.qcow2,backing.driver=qcow2,backing.file.filename=b",
    "2{\"driver\": \"qcow2\", \"file.filename\": \"x\", \"a\": [1, 2.5e3, null, true]}",
    "3me,b=on,n=77,s=64k,c=unmap",
    "4json:{\"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": \"x\"}}",
    "4json:{\"driver\": \"raw\", \"offset\": 512, \"size\": \"1M\", \"file\": \"x\"}",
    "4file:disk.qcow2",
    "5driver=qcow2,file.driver=file,file.filename=a,encrypt.key-secret=k,discard=unmap",
    "5driver=raw,offset=1M,size=2M,file.driver=host_device,file.filename=/dev/x",
    "5driver=compress,compress=3,file.driver=qcow2,file.file.filename=a,cache.no-flush=on",
    "6secret,id=k,data=letmein\nsecret,id=l,data=bGV0,format=base64",
    "6secret,id=a,data=AAAA,format=base64,keyid=k,iv=AAAAAAAAAAAAAAAAAAAAAA==\n"
    "secret,id=k,data=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=,format=base64",
    "6authz-simple,id=a,identity=fred",
    "6authz-list,id=a,policy=deny,rules.0.match=fred,rules.0.policy=allow,rules.1.match=CN=*,"
    "rules.1.policy=allow,rules.1.format=glob",
    "6{\"qom-type\": \"tls-creds-x509\", \"id\": \"t\", \"dir\": \"/tmp\", \"endpoint\": "
    "\"server\"}",
    "764k",
    "7writethrough",
    "70x10",
    "718446744073709551615",
    "716E",
  };
  char label[16];

  for (unsigned i = 0; i < sizeof texts / sizeof texts[0]; ++i) {
    uint8_t input[512];
    size_t n = strlen (texts[i]);

    memcpy (input, texts[i], n);
    snprintf (label, sizeof label, "text%u", i);
    emit (opaque, label, input, n);
  }
}
