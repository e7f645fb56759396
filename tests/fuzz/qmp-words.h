/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands for the control socket, made from an input: those that there are, with arguments that
 * are often what they should be, and now and then of another type, missing, or too many.
 */

#ifndef FUZZ_QMP_WORDS_H
#define FUZZ_QMP_WORDS_H

#include <jansson.h>

#include "fuzz.h"

/* A number of its own for each command, in an order that stays (seeds name them by it). */
enum qmp_word {
  QMP_CAPABILITIES,
  QMP_STATUS,
  QMP_COMMANDS,
  QMP_VERSION,
  QMP_LOG_LEVEL,
  QMP_SET_LOG_LEVEL,
  QMP_QUIT,
  QMP_RELOAD,
  QMP_EXPORTS,
  QMP_EXPORT_ADD,
  QMP_EXPORT_DEL,
  QMP_CLIENTS,
  QMP_DISCONNECT,
  QMP_NODES,
  QMP_STATS,
  QMP_RESIZE,
  QMP_THRESHOLD,
  QMP_SNAPSHOT,
  QMP_SNAPSHOT_DELETE,
  QMP_BITMAP_ADD,
  QMP_BITMAP_REMOVE,
  QMP_BITMAP_CLEAR,
  QMP_BITMAP_ENABLE,
  QMP_BITMAP_DISABLE,
  QMP_BITMAP_MERGE,
  QMP_TRANSACTION,
  QMP_UNKNOWN,
  QMP_CHECK,
  QMP_TAKEOVER,
  QMP_WORDS,
};

const char *qmp_command_name (enum qmp_word word);

/* {"execute": ..., "arguments": ...}, from the next bytes of IN: one with a bit for each argument
 * that is left out, one with the bits below, and then what the arguments want. */
enum { QMP_WITHOUT_ARGUMENTS = 1, QMP_ANOTHER_ARGUMENT = 2 };
json_t *qmp_command (struct input *in, enum qmp_word word);

/* A configuration file of the server: exports, and what else may stand there. */
json_t *qmp_config (struct input *in);

/* Any JSON value. */
json_t *qmp_anything (struct input *in, unsigned depth);

#endif /* FUZZ_QMP_WORDS_H */
