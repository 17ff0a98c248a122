/* The tokens are sorted, so those that share a prefix are neighbours. Matching at one place keeps
 * the range of tokens that agree with the text so far and narrows it by one byte a step; a token as
 * long as the step is a match, and a later one is longer. Most places end at the first byte. Tokens
 * that begin like the text at every place but end otherwise would cost their length times the
 * text's, so steps are counted.
 *
 * Immutable after mm2_added_init. */
#include "text/added.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>

typedef struct mm2_added_token {
    const char *bytes;
    int32_t length, id;
} mm2_added_token;

static int compare(const void *x, const void *y)
{
    const mm2_added_token *a = x, *b = y;
    int shorter = a->length < b->length ? a->length : b->length;
    int order = memcmp(a->bytes, b->bytes, (size_t)shorter);
    return order ? order : a->length - b->length;
}

mm2_status mm2_added_init(mm2_added *a, const mm2_bpe *b, const int32_t *ids, int32_t n)
{
    memset(a, 0, sizeof *a);
    if (n < 1)
        return MM2_OK;
    a->tokens = malloc((size_t)n * sizeof *a->tokens);
    if (!a->tokens)
        return mm2_fail(MM2_E_NOMEM, "no memory for %d added tokens", n);
    a->count = n;
    for (int32_t i = 0; i < n; i++)
        a->tokens[i] = (mm2_added_token){b->bytes + b->start[ids[i]], b->length[ids[i]], ids[i]};
    qsort(a->tokens, (size_t)n, sizeof *a->tokens, compare);
    for (int32_t i = 1; i < n; i++)
        if (!compare(&a->tokens[i - 1], &a->tokens[i]))
            return mm2_fail(MM2_E_FORMAT, "added tokens %d and %d are the same, \"%.*s\"",
                            a->tokens[i - 1].id, a->tokens[i].id, (int)a->tokens[i].length,
                            a->tokens[i].bytes);
    for (int32_t i = 0; i < n; i++)
        a->first[(uint8_t)a->tokens[i].bytes[0] + 1]++;
    for (int c = 0; c < 256; c++)
        a->first[c + 1] += a->first[c];
    return MM2_OK;
}

void mm2_added_free(mm2_added *a)
{
    free(a->tokens);
    memset(a, 0, sizeof *a);
}

/* The first token in [low, high) whose byte at `depth` is at least `byte`; all are longer. */
static int32_t lower_bound(const mm2_added *a, int32_t low, int32_t high, int64_t depth, int byte)
{
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if ((uint8_t)a->tokens[middle].bytes[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token at the beginning of the text, or NULL; or NULL because no steps are left. */
static const mm2_added_token *match(const mm2_added *a, const char *text, int64_t length,
                                    int64_t *steps)
{
    const mm2_added_token *best = NULL;
    int32_t low = a->first[(uint8_t)text[0]], high = a->first[(uint8_t)text[0] + 1];
    for (int64_t depth = 1; low < high; depth++) {
        *steps -= 1 + 32 - __builtin_clz((unsigned)(high - low)); /* of halving */
        if (*steps < 0)
            return NULL;
        if (a->tokens[low].length == depth)
            best = &a->tokens[low++];
        if (depth == length)
            break;
        int byte = (uint8_t)text[depth];
        low = lower_bound(a, low, high, depth, byte);
        high = lower_bound(a, low, high, depth, byte + 1);
    }
    return best;
}

mm2_status mm2_added_find(const mm2_added *a, const char *text, int64_t length, int64_t from,
                          int64_t *steps, mm2_added_place *out)
{
    *out = (mm2_added_place){-1, length, 0};
    for (int64_t i = from; a->count && i < length; i++) {
        const mm2_added_token *token = match(a, text + i, length - i, steps);
        if (*steps < 0)
            return mm2_fail(MM2_E_UNSUPPORTED,
                            "the tokenizer's added tokens are too costly to find in this text at "
                            "byte %lld; encode it in smaller parts",
                            (long long)i);
        if (token) {
            *out = (mm2_added_place){token->id, i, token->length};
            break;
        }
    }
    return MM2_OK;
}

int32_t mm2_added_id(const mm2_added *a, const char *bytes, int64_t length)
{
    int64_t steps = INT64_MAX;
    const mm2_added_token *token = a->count && length > 0 ? match(a, bytes, length, &steps) : NULL;
    return token && token->length == length ? token->id : -1;
}
