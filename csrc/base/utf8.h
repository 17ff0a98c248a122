/* UTF-8: what is a character, what is not, and text that holds only characters. */
#ifndef MM2_UTF8_H
#define MM2_UTF8_H

#include "minimax2.h"

/* Looks at the character that begins at p, of which n > 0 bytes are there. > 0: its length. < 0: it
 * is ill-formed, and minus this many bytes (the maximal subpart of Unicode, chapter 3.9) stand for
 * one U+FFFD. 0: all n bytes begin a character that further bytes may complete. */
int mm2_utf8_length(const uint8_t *p, int64_t n);

/* How many bytes at the end of the text begin a character that does not end within it. */
int mm2_utf8_cut(const uint8_t *text, int64_t length);

/* The code point of a valid character, whose length the caller knows. */
int32_t mm2_utf8_code(const uint8_t *p, int length);
/* Writes a code point; returns 1..4. */
int mm2_utf8_put(uint8_t *out, int32_t code);

/* Length of the valid text at the beginning. */
int64_t mm2_utf8_valid(const char *text, int64_t length);
/* *out = the text with every ill-formed subpart replaced by U+FFFD, an owned buffer of *out_length
 * bytes; or NULL if the text is valid as it is. */
mm2_status mm2_utf8_repair(char **out, int64_t *out_length, const char *text, int64_t length);

#endif
