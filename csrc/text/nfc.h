/* Unicode normalisation form C. */
#ifndef MM2_NFC_H
#define MM2_NFC_H

#include "minimax2.h"

/* *out = the NFC of valid UTF-8, an owned buffer of *out_length bytes; or NULL if the text is left
 * as it is because every character is below U+0300. Linear in the length, whatever the text. */
mm2_status mm2_nfc(char **out, int64_t *out_length, const char *text, int64_t length);

#endif
