/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The server's command line, and its configuration file: arguments that end with NUL each; what
 * follows an empty one is the file "config", the only one that there is.
 *
 * options_parse ends the process when something is wrong, with a message.  Linked with --wrap, it
 * comes back here instead; what it had allocated is lost, so this runs without a leak detector.
 */

#include <getopt.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include "fuzz.h"
#include "log.h"
#include "mem.h"
#include "options.h"

#define MAX_ARGS 64

static jmp_buf back;
static bool inside;
static const char *config;
static size_t config_len;

void __wrap_exit (int status) __attribute__ ((noreturn));
void __real_exit (int status) __attribute__ ((noreturn));
json_t *__wrap_json_load_file (const char *path, size_t flags, json_error_t *error);

void
__wrap_exit (int status)
{
  if (inside)
    longjmp (back, 1 + status);
  __real_exit (status);
}

json_t *
__wrap_json_load_file (const char *path, size_t flags, json_error_t *error)
{
  if (strcmp (path, "config") == 0)
    return json_loadb (config, config_len, flags, error);
  *error = (json_error_t){ .line = -1 };
  snprintf (error->text, sizeof error->text, "no such file");
  return NULL;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  static struct options opts;
  char *text = xalloc (size + 1), *argv[MAX_ARGS + 2] = { (char *)"nbdcow" }, *p = text;
  int argc = 1;

  fuzz_begin ();
  memcpy (text, data, size);
  config = "{}";
  config_len = 2;
  while (p < text + size && argc <= MAX_ARGS) {
    if (!*p) {
      config = p + 1;
      config_len = (size_t)(text + size - config);
      break;
    }
    argv[argc++] = p;
    p += strlen (p) + 1;
  }
  opts = (struct options){ 0 };
  optind = 0;
  inside = true;
  if (setjmp (back) == 0) {
    options_parse (&opts, argc, argv);
    if (opts.mode == MODE_SERVE && !opts.filename && json_array_size (opts.exports) == 0 &&
        json_array_size (opts.directories) == 0)
      broken ("a server with nothing to serve");
  }
  inside = false;
  options_free (&opts);
  free (text);
  return 0;
}

/* With each '|' a NUL. */
void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  static const char *const lines[] = {
    "-p|10810|-k|/tmp/s|-t|-e|5|-f|qcow2|disk.qcow2",
    "--shared=3|--persistent|--cache=none|--aio=native|--discard=unmap|--detect-zeroes=unmap|x",
    "--export=name=a,file.filename=b,file.driver=file,driver=qcow2|--export-dir=/srv,read-only=on",
    "--image-opts|driver=qcow2,file.filename=x|--read-only|--offset=512|--bitmap=b0|-A",
    "--object=secret,id=k,data=x|--tls-creds=t|--object=tls-creds-psk,id=t,dir=/,endpoint=server",
    "-L|-b|host|-p|10809",
    "-d|/dev/nbd0",
    "-c|/dev/nbd0|x",
    ("--config=config||{\"file\": \"x\", \"port\": 10811, \"persistent\": true, \"export\": "
     "[{\"name\": \"a\", \"driver\": \"qcow2\", \"file.filename\": \"b\"}]}"),
    "--config=config||{\"config\": \"config\"}",
    "-l|snapshot.id=1|--backing=none|--threads=2|--workers=3|--memory=64M|--state-dir=off|x",
    "-x|name|-D|desc|--fork|--pid-file=p|--log=stderr|--user=nobody|--max-clients=1|y",
    "--help",
  };

  for (unsigned i = 0; i < sizeof lines / sizeof lines[0]; ++i) {
    uint8_t input[512];
    size_t n = strlen (lines[i]);
    char label[16];

    for (size_t k = 0; k < n; ++k)
      input[k] = lines[i][k] == '|' ? 0 : (uint8_t)lines[i][k];
    snprintf (label, sizeof label, "line%u", i);
    emit (opaque, label, input, n);
  }
}
