/* A tokenizer from the arrays of a GGUF file. Such a file spells words and merges as tokenizer.json
 * does, keeps added tokens in the same list, told apart by their type, and only names the pattern.
 * It does not mention normalisation: the family's is NFC. */
#include "base/status.h"
#include "text/parts.h"

#include <stdlib.h>
#include <string.h>

enum { /* tokenizer.ggml.token_type */
       GGUF_NORMAL = 1,
       GGUF_UNKNOWN = 2,
       GGUF_CONTROL = 3,
       GGUF_USER_DEFINED = 4,
       GGUF_UNUSED = 5
};

static mm2_status add_token(mm2_bpe *b, int32_t id, const char *text, int64_t length, int32_t type)
{
    switch (type) {
    case GGUF_NORMAL:
        return mm2_bpe_add_spelled(b, id, text, length);
    case GGUF_UNKNOWN:
    case GGUF_CONTROL:
        return mm2_bpe_add_raw(b, id, text, length, MM2_TOKEN_ADDED | MM2_TOKEN_SPECIAL);
    case GGUF_USER_DEFINED:
        return mm2_bpe_add_raw(b, id, text, length, MM2_TOKEN_ADDED);
    case GGUF_UNUSED: /* padding of the embedding */
        return MM2_OK;
    default:
        return mm2_fail(MM2_E_UNSUPPORTED, "token %d has type %d, expected 1..5", id, type);
    }
}

static mm2_status add_merge(mm2_bpe *b, const char *text, int64_t length)
{
    const char *space = memchr(text, ' ', (size_t)length);
    int64_t left = space ? space - text : 0;
    return mm2_bpe_add_merge(b, text, left, text + left + 1, space ? length - left - 1 : 0);
}

static mm2_status build(mm2_tokenizer *t, const mm2_vocabulary *v)
{
    mm2_bpe *b = &t->bpe;
    int64_t bytes = 0;
    if (!v->pre || strcmp(v->pre, "minimax-m2"))
        return mm2_fail(MM2_E_UNSUPPORTED, "tokenizer.ggml.pre is \"%s\", expected \"minimax-m2\"",
                        v->pre ? v->pre : "absent");
    if (v->count < 1 || v->count > MM2_MAX_VOCABULARY)
        return mm2_fail(MM2_E_FORMAT, "tokenizer.ggml.tokens has %d entries, expected 1..%d",
                        v->count, (int)MM2_MAX_VOCABULARY);
    for (int32_t id = 0; id < v->count; id++)
        bytes += v->token_lengths[id];
    mm2_status status = mm2_bpe_init(b, bytes);
    for (int32_t id = 0; id < v->count && !status; id++)
        status = add_token(b, id, v->tokens[id], v->token_lengths[id],
                           v->types ? v->types[id] : GGUF_NORMAL);
    if (!status)
        b->size = v->count; /* unused ids at the end count, too */
    if (!status)
        status = mm2_bpe_index(b, v->merge_count);
    for (int32_t i = 0; i < v->merge_count && !status; i++)
        status = add_merge(b, v->merges[i], v->merge_lengths[i]);
    if (!status)
        status = mm2_split_new(&t->split, mm2_split_family, (int64_t)strlen(mm2_split_family), 1);
    if (status)
        return status;
    t->nfc = 1;
    status = mm2_tokenizer_finish(t, NULL);
    if (!status)
        mm2_tokenizer_set_ids(t, v->bos, v->eos, v->unk, v->pad);
    return status;
}

mm2_status mm2_tokenizer_from_vocabulary(mm2_tokenizer **out, const mm2_vocabulary *v,
                                         const char *where)
{
    mm2_tokenizer *t = calloc(1, sizeof *t);
    *out = NULL;
    if (!t)
        return mm2_fail(MM2_E_NOMEM, "no memory for a tokenizer");
    mm2_status status = build(t, v);
    if (!status)
        status = mm2_tokenizer_set_template(t, NULL, 0, NULL);
    if (status) {
        mm2_tokenizer_release(t);
        return mm2_fail_in(status, where);
    }
    *out = t;
    return MM2_OK;
}
