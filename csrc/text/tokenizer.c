/* The tokenizer's public verbs. Encoding is a row of cuts: the text, made valid UTF-8; the added
 * tokens in it, if asked for; between them normalised stretches; in these the pattern's words; and
 * their bytes, merged. Every step hands pieces to the next and ids go straight to the caller's
 * array, so nothing is kept but the copy that repair or normalisation had to make.
 *
 * A tokenizer is written by its reader (tokenizer_json.c, tokenizer_gguf.c) and by the two setters
 * before anybody else sees it; then it is only read, by any number of threads. */
#include "base/guard.h"
#include "base/status.h"
#include "base/utf8.h"
#include "text/nfc.h"
#include "text/parts.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_TEXT = 1 << 26,   /* bytes that one call encodes: bounds what a word may cost */
    STEPS_PER_BYTE = 32,  /* of matching the pattern and added tokens, for the whole text */
    BASE_STEPS = 1000000, /* and beside them */
};

typedef struct job { /* of one call */
    const mm2_tokenizer *t;
    mm2_bpe_work work;
    int64_t steps; /* left */
    int special;
    mm2_ids *out;
} job;

const char *const mm2_tag_text[MM2_TAG_COUNT] = {
    "]~!b[", "]~b]", "[e~[", "<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"};

mm2_status mm2_tokenizer_finish(mm2_tokenizer *t, const uint8_t *normalized)
{
    const mm2_bpe *b = &t->bpe;
    int32_t *ids = malloc(((size_t)b->size + 1) * sizeof *ids);
    mm2_status status = MM2_OK;
    if (!ids)
        return mm2_fail(MM2_E_NOMEM, "no memory for the added tokens of %d ids", b->size);
    for (int pass = 0; pass < 2 && !status; pass++) {
        int32_t n = 0;
        for (int32_t id = 0; id < b->size; id++)
            if ((b->kind[id] & MM2_TOKEN_ADDED) && (normalized && normalized[id]) == pass)
                ids[n++] = id;
        status = mm2_added_init(pass ? &t->normalized : &t->raw, b, ids, n);
    }
    free(ids);
    for (int i = 0; i < MM2_TAG_COUNT; i++)
        t->tags[i] = mm2_tokenizer_id(t, mm2_tag_text[i], (int32_t)strlen(mm2_tag_text[i]));
    t->facts.size = sizeof t->facts;
    t->facts.vocab_size = b->size;
    t->facts.bos = t->tags[MM2_TAG_BEGIN];
    t->facts.eos = t->tags[MM2_TAG_END];
    t->facts.unk = mm2_tokenizer_id(t, "]!d~[", 5);
    t->facts.pad = mm2_tokenizer_id(t, "]!p~[", 5);
    t->facts.think_open = t->tags[MM2_TAG_THINK_OPEN];
    t->facts.think_close = t->tags[MM2_TAG_THINK_CLOSE];
    return status;
}

void mm2_tokenizer_release(mm2_tokenizer *t)
{
    if (!t)
        return;
    mm2_bpe_free(&t->bpe);
    mm2_split_free(t->split);
    mm2_added_free(&t->raw);
    mm2_added_free(&t->normalized);
    free(t->system);
    free(t->unknown_template);
    free(t);
}

void mm2_tokenizer_set_ids(mm2_tokenizer *t, int32_t bos, int32_t eos, int32_t unk, int32_t pad)
{
    int32_t *fields[] = {&t->facts.bos, &t->facts.eos, &t->facts.unk, &t->facts.pad};
    int32_t ids[] = {bos, eos, unk, pad};
    for (int i = 0; i < 4; i++)
        if (ids[i] >= 0 && ids[i] < t->facts.vocab_size)
            *fields[i] = ids[i];
}

mm2_status mm2_tokenizer_describe(const mm2_tokenizer *t, mm2_tokenizer_info *out)
{
    MM2_NEED(t, "the tokenizer");
    MM2_NEED(out, "the place for the result");
    return mm2_struct_write(out, &t->facts, "tokenizer info");
}

/* Splits and merges a stretch that holds no added token any more. */
static mm2_status append_words(job *j, const char *text, int64_t length)
{
    mm2_pieces walk;
    const char *piece;
    int64_t n;
    if (!length)
        return MM2_OK;
    int status = mm2_pieces_begin(&walk, j->t->split, text, length, &j->steps);
    while (!status && (status = mm2_pieces_next(&walk, &piece, &n)) > 0)
        status = mm2_bpe_encode(&j->t->bpe, &j->work, piece, n, j->out);
    mm2_pieces_end(&walk);
    return status;
}

/* Cuts the tokens of `added` out of a text; what is between them goes through `between`. */
static mm2_status cut(job *j, const mm2_added *added,
                      mm2_status (*between)(job *j, const char *text, int64_t length),
                      const char *text, int64_t length)
{
    mm2_status status = MM2_OK;
    for (int64_t from = 0; !status && from < length;) {
        mm2_added_place found = {-1, length, 0};
        if (j->special)
            status = mm2_added_find(added, text, length, from, &j->steps, &found);
        if (!status)
            status = between(j, text + from, found.at - from);
        if (!status && found.id >= 0)
            mm2_ids_push(j->out, found.id);
        from = found.at + found.length;
    }
    return status;
}

static mm2_status append_normalized(job *j, const char *text, int64_t length)
{
    char *composed = NULL;
    mm2_status status = j->t->nfc ? mm2_nfc(&composed, &length, text, length) : MM2_OK;
    if (!status)
        status = cut(j, &j->t->normalized, append_words, composed ? composed : text, length);
    free(composed);
    return status;
}

mm2_status mm2_tokenizer_append(const mm2_tokenizer *t, const char *text, int64_t length,
                                int special, mm2_ids *out)
{
    job j = {.t = t, .special = special, .out = out};
    char *repaired;
    if (length > MAX_TEXT)
        return mm2_fail(MM2_E_ARG, "a text of %lld bytes, at most %d can be encoded at once",
                        (long long)length, (int)MAX_TEXT);
    mm2_status status = mm2_utf8_repair(&repaired, &length, text, length);
    j.steps = length * STEPS_PER_BYTE + BASE_STEPS;
    if (!status)
        status = cut(&j, &t->raw, append_normalized, repaired ? repaired : text, length);
    free(repaired);
    mm2_bpe_work_free(&j.work);
    return status;
}

int32_t mm2_tokenizer_encode(const mm2_tokenizer *t, const char *text, int32_t len, int32_t flags,
                             int32_t *ids, int32_t cap)
{
    if (!t || (!text && len) || len < 0 || (!ids && cap) || cap < 0)
        return mm2_fail(MM2_E_ARG,
                        "tokenizer_encode: needs a tokenizer, a text of at least 0 bytes (given "
                        "%d) and room for at least 0 ids (given %d)",
                        len, cap);
    if (flags & ~MM2_SPECIAL)
        return mm2_fail(MM2_E_ARG, "tokenizer_encode: unknown flags %d, expected 0 or MM2_SPECIAL",
                        flags);
    mm2_ids out = {ids, cap, 0};
    mm2_status status = mm2_tokenizer_append(t, text, len, flags & MM2_SPECIAL, &out);
    return status ? status : (int32_t)out.count; /* at most 3 ids a byte of MAX_TEXT */
}

int32_t mm2_tokenizer_decode(const mm2_tokenizer *t, const int32_t *ids, int32_t n, int32_t flags,
                             char *out, int32_t cap)
{
    if (!t || (!ids && n) || n < 0 || (!out && cap) || cap < 0)
        return mm2_fail(MM2_E_ARG,
                        "tokenizer_decode: needs a tokenizer, at least 0 ids (given %d) and room "
                        "for at least 0 bytes (given %d)",
                        n, cap);
    if (flags & ~MM2_SPECIAL)
        return mm2_fail(MM2_E_ARG, "tokenizer_decode: unknown flags %d, expected 0 or MM2_SPECIAL",
                        flags);
    const mm2_bpe *b = &t->bpe;
    int64_t total = 0;
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= b->size)
            return mm2_fail(MM2_E_ARG, "tokenizer_decode: id %d at index %d, expected 0..%d",
                            ids[i], i, b->size - 1);
    for (int32_t i = 0; i < n; i++) {
        if ((b->kind[ids[i]] & MM2_TOKEN_SPECIAL) && !(flags & MM2_SPECIAL))
            continue;
        int64_t length = b->length[ids[i]], room = cap - total;
        if (room > 0)
            memcpy(out + total, b->bytes + b->start[ids[i]],
                   (size_t)(length < room ? length : room));
        total += length;
    }
    if (total > INT32_MAX)
        return mm2_fail(MM2_E_ARG,
                        "tokenizer_decode: %d ids make %lld bytes, at most %d can be "
                        "counted; decode fewer at once",
                        n, (long long)total, INT32_MAX);
    return (int32_t)total;
}

const char *mm2_tokenizer_token(const mm2_tokenizer *t, int32_t id, int32_t *len)
{
    if (len)
        *len = 0;
    if (!t || !len || id < 0 || id >= t->bpe.size) {
        mm2_fail(MM2_E_ARG,
                 "tokenizer_token: needs a tokenizer, a length and an id in 0..%d, "
                 "given %d",
                 t ? t->bpe.size - 1 : 0, id);
        return NULL;
    }
    *len = t->bpe.length[id];
    return *len ? t->bpe.bytes + t->bpe.start[id] : "";
}

int32_t mm2_tokenizer_id(const mm2_tokenizer *t, const char *bytes, int32_t len)
{
    if (!t || !bytes || len < 1)
        return -1;
    int32_t id = mm2_added_id(&t->raw, bytes, len);
    if (id < 0)
        id = mm2_added_id(&t->normalized, bytes, len);
    return id < 0 ? mm2_bpe_word(&t->bpe, bytes, len) : id;
}
