/* Failing with a sentence: a negative mm2_status and a thread-local text behind mm2_error(). */
#ifndef MM2_STATUS_H
#define MM2_STATUS_H

#include "minimax2.h"

/* Sets the calling thread's sentence and returns `code`, so that `return mm2_fail(MM2_E_IO, "...")`
 * reads naturally. Knows %s (NULL prints "(null)"), %.*s, %d, %u, %lld, %llu, %g (6 digits) and %%:
 * the C library's own formatter depends on the locale. What %s inserts may come from a file: bytes
 * that are no printable character of UTF-8 become \xNN, and a text of more than 480 bytes loses its
 * middle. Sentences are cut at 1023 bytes. */
mm2_status mm2_fail(mm2_status code, const char *format, ...)
    __attribute__((format(printf, 2, 3), cold));
const char *mm2_status_text(void);

/* Puts context in front of the sentence at hand: "file: sentence". Returns `code`. */
mm2_status mm2_fail_in(mm2_status code, const char *where) __attribute__((cold));

/* The same formatter into a buffer of `cap` bytes; always terminated. Returns the full length. */
int mm2_format(char *out, int cap, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
