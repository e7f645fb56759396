/* SPDX-License-Identifier: BSD-3-Clause */

#ifndef MAP_SVG_H
#define MAP_SVG_H

#include "img.h"

/* Prints a picture of the file of IMG, a qcow2 image, as SVG.  Reports what is wrong; false then.
 */
bool img_map_svg (struct q_image *img);

#endif /* MAP_SVG_H */
