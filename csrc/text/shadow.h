/* Letters, marks and numbers that the regular expression engine may be too old to know. */
#ifndef MM2_SHADOW_H
#define MM2_SHADOW_H

#include "minimax2.h"

/* *out = a copy of valid UTF-8 in which every character that Unicode 15 or 16 added has given way to
 * an older one of the same general category and length, so that a pattern cuts both alike; or NULL
 * if there is none. Owned. */
mm2_status mm2_shadow(char **out, const char *text, int64_t length);

#endif
