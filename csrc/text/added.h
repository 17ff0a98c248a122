/* Added tokens: strings that are cut out of a text before it is split into words. */
#ifndef MM2_ADDED_H
#define MM2_ADDED_H

#include "text/bpe.h"

typedef struct mm2_added {
    struct mm2_added_token *tokens; /* in order of their bytes */
    int32_t count;
    int32_t first[257]; /* tokens first[c] .. first[c + 1] - 1 begin with byte c */
} mm2_added;

/* Collects the n ids given. The bytes are borrowed from b. FORMAT if two tokens are the same. */
mm2_status mm2_added_init(mm2_added *a, const mm2_bpe *b, const int32_t *ids, int32_t n);
void mm2_added_free(mm2_added *a);

typedef struct mm2_added_place {
    int32_t id; /* -1: none */
    int64_t at, length;
} mm2_added_place;

/* The longest token at the leftmost place at or behind `from`; behind the text if there is none.
 * Takes what it costs from *steps; UNSUPPORTED if that is not enough. */
mm2_status mm2_added_find(const mm2_added *a, const char *text, int64_t length, int64_t from,
                          int64_t *steps, mm2_added_place *out);
/* The id of the token that is exactly these bytes, or -1. */
int32_t mm2_added_id(const mm2_added *a, const char *bytes, int64_t length);

#endif
