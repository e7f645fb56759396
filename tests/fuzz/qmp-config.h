/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The configuration that a server was started with, and what becomes of it: the file "config", the
 * only one that there is, in memory.
 *
 *     reload = config_begin (set);      it asks for the export "x" of the file "image"
 *     config_serve (&err);              which is there, then
 *     config_change (json);             the file is another one now
 *     config_judge ();                  after a reload that has succeeded
 *     config_end ();
 *
 * What must hold: what was reloaded is as it was when it is reloaded again, and the exports of the
 * configuration are those that are there.
 */

#ifndef FUZZ_QMP_CONFIG_H
#define FUZZ_QMP_CONFIG_H

#include "export.h"
#include "reload.h"

struct reload *config_begin (struct exports *set);
int config_serve (struct q_error *err);
/* Takes CONFIG over. */
void config_change (json_t *config);
void config_judge (void);
void config_end (void);

#endif /* FUZZ_QMP_CONFIG_H */
