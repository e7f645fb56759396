/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Standard input, output and error are there.
 *
 * A program that is started without one of them would give its number to the next file that it
 * opens, an image for instance, and then write its messages into that.  First thing in main.
 */

#ifndef STDFDS_H
#define STDFDS_H

void stdfds_open (void);

#endif /* STDFDS_H */
