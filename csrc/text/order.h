/* The tokens that a text is made of, in the order of their bytes: what a trie of them would say. */
#ifndef MM2_ORDER_H
#define MM2_ORDER_H

#include "text/tokenizer.h"

typedef struct mm2_order {
    int32_t count;
    int32_t *ids;
    uint16_t *common; /* bytes at its beginning that the one before it has too */
} mm2_order;

/* Made by the first call, from any thread, and kept while the tokenizer lives. Added tokens, such as
 * tags, are not among them. NULL: memory is short, with a sentence. */
const mm2_order *mm2_tokenizer_order(const mm2_tokenizer *t);
void mm2_order_free(mm2_order *o); /* NULL is allowed */

#endif
