/* The tokenizer's public verbs. Encoding is a row of cuts: the text, made valid UTF-8; the added
 * tokens in it, if asked for; between them normalised stretches; in these the pattern's words; and
 * their bytes, merged. An mm2_encoding stands in the middle of all of them, so that it may stop
 * behind any word, and in one, and go on later. Ids go straight to the caller's array; nothing is
 * kept but the copy that repair or normalisation had to make.
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

typedef struct cut { /* a text that is handed out in stretches without added tokens */
    const mm2_added *added;
    const char *text;
    int64_t length, from; /* everything before it has been handed out */
    int32_t token;        /* behind the last stretch; -1: none */
} cut;

struct mm2_encoding {
    const mm2_tokenizer *t;
    mm2_busy busy;
    mm2_status failed;
    int special;
    int64_t steps;             /* left */
    char *repaired, *composed; /* owned, or NULL: the text itself */
    cut raw, normalized;       /* the text; its stretch at hand, normalised */
    int splitting, merging;    /* whether these are in their middle: */
    mm2_pieces words;          /* of the stretch at hand that holds no added token any more */
    mm2_bpe_work work;         /* the word at hand */
};

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
    mm2_order_free(atomic_load(&t->order));
    free(t->unknown_text);
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

static mm2_status start(mm2_encoding *e, const mm2_tokenizer *t, const char *text, int64_t length,
                        int special)
{
    *e = (mm2_encoding){.t = t, .special = special};
    e->normalized.token = -1;
    if (length > MAX_TEXT)
        return mm2_fail(MM2_E_ARG, "a text of %lld bytes, at most %d can be encoded at once",
                        (long long)length, (int)MAX_TEXT);
    mm2_status status = mm2_utf8_repair(&e->repaired, &length, text, length);
    e->raw = (cut){&t->raw, e->repaired ? e->repaired : text, length, 0, -1};
    e->steps = length * STEPS_PER_BYTE + BASE_STEPS;
    return status;
}

static void finish(mm2_encoding *e)
{
    if (e->splitting)
        mm2_pieces_end(&e->words);
    mm2_bpe_work_free(&e->work);
    free(e->composed);
    free(e->repaired);
}

/* 1 and the next stretch, or in its place an empty one if the token that follows the last one has
 * been written; 0 at the end; or a negative status. */
static int next_stretch(mm2_encoding *e, cut *c, mm2_ids *out, const char **text, int64_t *length)
{
    *text = c->text;
    *length = 0;
    if (c->token >= 0) {
        out->ids[out->count++] = c->token;
        c->token = -1;
        return 1;
    }
    if (c->from == c->length)
        return 0;
    mm2_added_place found = {-1, c->length, 0};
    mm2_status status = MM2_OK;
    if (e->special)
        status = mm2_added_find(c->added, c->text, c->length, c->from, &e->steps, &found);
    if (status)
        return status;
    *text = c->text + c->from;
    *length = found.at - c->from;
    c->from = found.at + found.length;
    c->token = found.id;
    return 1;
}

/* The next word, or a step towards it in which one id may be written: 1; 0 at the end; or a
 * negative status. */
static int advance(mm2_encoding *e, mm2_ids *out)
{
    const mm2_tokenizer *t = e->t;
    const char *text;
    int64_t length;
    mm2_status status = MM2_OK;
    if (e->splitting) {
        int found = mm2_pieces_next(&e->words, &text, &length);
        if (found < 0)
            return found;
        if (found) {
            status = mm2_bpe_begin(&e->work, text, length);
            e->merging = !status;
        } else {
            mm2_pieces_end(&e->words);
            e->splitting = 0;
        }
        return status ? status : 1;
    }
    int found = next_stretch(e, &e->normalized, out, &text, &length);
    if (found > 0 && length) {
        e->splitting = 1;
        status = mm2_pieces_begin(&e->words, t->split, text, length, &e->steps);
    }
    if (found)
        return status ? status : found;
    found = next_stretch(e, &e->raw, out, &text, &length);
    if (found > 0 && length) {
        free(e->composed);
        e->composed = NULL;
        status = t->nfc ? mm2_nfc(&e->composed, &length, text, length) : MM2_OK;
        e->normalized = (cut){&t->normalized, e->composed ? e->composed : text, length, 0, -1};
    }
    return status ? status : found;
}

static mm2_status run(mm2_encoding *e, mm2_ids *out, mm2_pace *pace)
{
    int found = 1;
    while (found) {
        mm2_status status = e->merging ? mm2_bpe_run(&e->t->bpe, &e->work, out, pace) : MM2_OK;
        if (status)
            return status;
        e->merging = 0;
        if (out->count == out->cap || mm2_pace_over(pace))
            return MM2_MORE;
        found = advance(e, out);
        if (found < 0)
            return found;
    }
    return MM2_OK;
}

mm2_status mm2_tokenizer_append(const mm2_tokenizer *t, const char *text, int64_t length,
                                int special, mm2_ids *out)
{
    mm2_encoding e;
    int32_t beyond[256]; /* ids for which there is no room */
    mm2_pace pace = {INT64_MAX, 0};
    mm2_status status = start(&e, t, text, length, special);
    for (status = status ? status : MM2_MORE; status == MM2_MORE;) {
        mm2_ids part = {beyond, sizeof beyond / sizeof *beyond, 0};
        if (out->count < out->cap)
            part = (mm2_ids){out->ids + out->count, out->cap - (int32_t)out->count, 0};
        status = run(&e, &part, &pace);
        out->count += part.count;
    }
    finish(&e);
    return status;
}

static mm2_status check_encode(const mm2_tokenizer *t, const char *text, int32_t len, int32_t flags)
{
    if (!t || (!text && len) || len < 0)
        return mm2_fail(MM2_E_ARG,
                        "a tokenizer and a text of at least 0 bytes are needed, given %d", len);
    if (flags & ~MM2_SPECIAL)
        return mm2_fail(MM2_E_ARG, "unknown flags %d, expected 0 or MM2_SPECIAL", flags);
    return MM2_OK;
}

static mm2_status check_room(const int32_t *ids, int32_t cap)
{
    if ((!ids && cap) || cap < 0)
        return mm2_fail(MM2_E_ARG, "room for at least 0 ids is needed, given %d", cap);
    return MM2_OK;
}

int32_t mm2_tokenizer_encode(const mm2_tokenizer *t, const char *text, int32_t len, int32_t flags,
                             int32_t *ids, int32_t cap)
{
    mm2_ids out = {ids, cap, 0};
    mm2_status status = check_encode(t, text, len, flags);
    if (!status)
        status = check_room(ids, cap);
    if (!status)
        status = mm2_tokenizer_append(t, text, len, flags & MM2_SPECIAL, &out);
    return status ? status : (int32_t)out.count; /* at most 3 ids a byte of MAX_TEXT */
}

mm2_status mm2_encoding_new(mm2_encoding **out, const mm2_tokenizer *t, const char *text,
                            int32_t len, int32_t flags)
{
    MM2_NEED(out, "the place for the encoding");
    *out = NULL;
    mm2_status status = check_encode(t, text, len, flags);
    if (status)
        return status;
    mm2_encoding *e = malloc(sizeof *e);
    if (!e)
        return mm2_fail(MM2_E_NOMEM, "no memory for an encoding");
    status = start(e, t, text, len, flags & MM2_SPECIAL);
    if (status)
        mm2_encoding_free(e);
    else
        *out = e;
    return status;
}

void mm2_encoding_free(mm2_encoding *e)
{
    if (!e)
        return;
    finish(e);
    free(e);
}

mm2_status mm2_encoding_run(mm2_encoding *e, int32_t budget_us, int32_t *ids, int32_t cap,
                            int32_t *count)
{
    MM2_NEED(e, "the encoding");
    MM2_NEED(count, "the place for the count");
    if (budget_us < 0)
        return mm2_fail(MM2_E_ARG, "budget_us must not be negative, got %d", budget_us);
    mm2_pace pace = {budget_us ? mm2_now() + budget_us * 1000LL : INT64_MAX, 0};
    mm2_ids out = {ids, cap, 0};
    int torn;
    mm2_status status = check_room(ids, cap);
    if (!status)
        status = mm2_busy_enter(&e->busy, "encoding", &torn);
    if (status)
        return status;
    if (torn)
        e->failed = MM2_E_ARG;
    if (e->failed)
        status = mm2_fail(e->failed, "this encoding failed before, or this process was "
                                     "forked while another thread ran it; make a new one");
    else
        status = run(e, &out, &pace);
    if (status < 0)
        e->failed = status;
    *count = status < 0 ? 0 : (int32_t)out.count;
    mm2_busy_leave(&e->busy);
    return status;
}

int32_t mm2_tokenizer_decode(const mm2_tokenizer *t, const int32_t *ids, int32_t n, int32_t flags,
                             char *out, int32_t cap)
{
    if (!t || (!ids && n) || n < 0 || (!out && cap) || cap < 0)
        return mm2_fail(
            MM2_E_ARG,
            "a tokenizer, at least 0 ids (given %d) and room for at least 0 bytes (given "
            "%d) are needed",
            n, cap);
    if (flags & ~MM2_SPECIAL)
        return mm2_fail(MM2_E_ARG, "unknown flags %d, expected 0 or MM2_SPECIAL", flags);
    const mm2_bpe *b = &t->bpe;
    int64_t total = 0;
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= b->size)
            return mm2_fail(MM2_E_ARG, "id %d at index %d, expected 0..%d", ids[i], i, b->size - 1);
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
                        "%d ids make %lld bytes, at most %d can be "
                        "counted; decode fewer at once",
                        n, (long long)total, INT32_MAX);
    return (int32_t)total;
}

const char *mm2_tokenizer_token(const mm2_tokenizer *t, int32_t id, int32_t *len)
{
    if (len)
        *len = 0;
    if (!t || !len || id < 0 || id >= t->bpe.size) {
        if (t && len)
            mm2_fail(MM2_E_ARG, "id %d, expected 0..%d", id, t->bpe.size - 1);
        else
            mm2_null_argument(__func__, t ? "the place for the length" : "the tokenizer");
        return NULL;
    }
    *len = t->bpe.length[id];
    return *len ? t->bpe.bytes + t->bpe.start[id] : "";
}

int32_t mm2_tokenizer_added(const mm2_tokenizer *t, int32_t *ids, int32_t cap)
{
    int32_t count = 0;
    if (!t || cap < 0 || (cap && !ids))
        return mm2_fail(MM2_E_ARG, "%s", t ? "no place for the result" : "no tokenizer");
    for (int32_t id = 0; id < t->bpe.size; id++) {
        if (!(t->bpe.kind[id] & (MM2_TOKEN_ADDED | MM2_TOKEN_SPECIAL)))
            continue;
        if (count < cap)
            ids[count] = id;
        count++;
    }
    return count;
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
