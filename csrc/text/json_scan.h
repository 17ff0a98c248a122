/* Reading the two large members of a tokenizer.json, its words and its merges, without a tree. */
#ifndef MM2_JSON_SCAN_H
#define MM2_JSON_SCAN_H

#include "minimax2.h"

typedef struct mm2_json_span { /* of a container value, brackets included */
    const char *begin, *end;   /* NULL: not found */
    int64_t commas;            /* between its elements */
} mm2_json_span;

/* Finds root.model.vocab and root.model.merges where they are containers, and makes *rest, an owned
 * copy of the document in which each is the number 0: small enough for a parser that builds trees,
 * which has to judge it. */
mm2_status mm2_json_cut(const char *json, int64_t length, mm2_json_span *vocab,
                        mm2_json_span *merges, char **rest, int64_t *rest_length);

enum { MM2_JSON_STRING = 2048 }; /* bytes of the longest string that is read */

typedef struct mm2_json_scan {
    const char *document, *p, *end;
    char scratch[MM2_JSON_STRING + 4]; /* the last string that had escapes */
} mm2_json_scan;

void mm2_json_scan_begin(mm2_json_scan *s, const char *document, const mm2_json_span *span);
/* Skips white space; 1 and past it if this character follows, else 0. */
int mm2_json_scan_take(mm2_json_scan *s, char c);
/* FORMAT, with the place in the document, if something else follows. The string is borrowed until
 * the next one. */
mm2_status mm2_json_scan_expect(mm2_json_scan *s, char c);
mm2_status mm2_json_scan_string(mm2_json_scan *s, const char **text, int64_t *length);
mm2_status mm2_json_scan_integer(mm2_json_scan *s, int64_t *value);
mm2_status mm2_json_scan_finish(mm2_json_scan *s);

#endif
