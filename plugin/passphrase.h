/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The parameter passphrase=: what opens encrypted images.  Given once, it is for every encrypted
 * layer of the chain; given several times, the first is for the top layer, and so on.
 *
 *     passphrase_take (value)        .config
 *     passphrase_apply (&options)    when the options are put together
 *     passphrase_relock ()           .after_fork: memory that was locked is not, in a child
 *     passphrase_forget ()           when the image is open, and in .unload
 */

#ifndef PASSPHRASE_H
#define PASSPHRASE_H

#include "qcow2.h"

int passphrase_take (const char *value);
void passphrase_apply (struct q_open_options *options);
int passphrase_relock (void);
void passphrase_forget (void);

#endif /* PASSPHRASE_H */
