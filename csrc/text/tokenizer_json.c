/* A tokenizer from the text of tokenizer.json, the format of Hugging Face's tokenizers. Its
 * components are named, not programmed: this family's are NFC, a Split by a pattern followed by
 * ByteLevel, BPE and a ByteLevel decoder. Whatever would give other ids than the ones we would
 * compute is refused by name, never ignored. Not looked at because ids do not depend on them:
 * truncation, padding, the post-processor (it adds tokens of its own; here the caller does that).
 *
 * The words and merges are read from the text by json_scan, everything else from jansson's tree,
 * which is gone when the function returns. jansson bounds its own depth (2048) and refuses
 * duplicate keys, NUL characters and invalid UTF-8. */
#include "base/status.h"
#include "text/json_scan.h"
#include "text/parts.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_JSON = 64 << 20 }; /* bytes of a tokenizer.json */

typedef struct reader {
    mm2_tokenizer *t;
    const char *json;
    json_t *root, *model;
    mm2_json_span vocab, merges;
    uint8_t *normalized; /* [MM2_MAX_VOCABULARY]: an added token to be found after normalisation */
} reader;

static int is_null(const json_t *value)
{
    return !value || json_is_null(value);
}

static const char *type_of(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "without a type";
}

static int has_type(const json_t *object, const char *type)
{
    return json_is_object(object) && !strcmp(type_of(object), type);
}

static mm2_status unsupported(const char *what, const char *found, const char *want)
{
    return mm2_fail(MM2_E_UNSUPPORTED, "%s is %s, this tokenizer takes over %s", what, found, want);
}

/* object[key], 0 or 1; `absent` if there is none. */
static mm2_status get_flag(const json_t *object, const char *key, int absent, int *value)
{
    const json_t *found = json_object_get(object, key);
    *value = found ? json_is_true(found) : absent;
    if (found && !json_is_boolean(found))
        return mm2_fail(MM2_E_FORMAT, "\"%s\" is not true or false", key);
    return MM2_OK;
}

/* object[key] must be this flag. */
static mm2_status require_flag(const json_t *object, const char *key, int absent, int want)
{
    int value;
    mm2_status status = get_flag(object, key, absent, &value);
    if (!status && value != want)
        status = unsupported(key, value ? "true" : "false", want ? "true" : "false");
    return status;
}

static mm2_status read_normalizer(reader *r)
{
    const json_t *normalizer = json_object_get(r->root, "normalizer"), *list;
    if (is_null(normalizer))
        return MM2_OK;
    list = has_type(normalizer, "Sequence") ? json_object_get(normalizer, "normalizers") : NULL;
    if (list && json_is_array(list) && json_array_size(list) == 0)
        return MM2_OK;
    if (list && json_array_size(list) == 1)
        normalizer = json_array_get(list, 0);
    if (!has_type(normalizer, "NFC"))
        return unsupported("the normalizer", type_of(normalizer), "NFC or none");
    r->t->nfc = 1;
    return MM2_OK;
}

static mm2_status read_split(reader *r, const json_t *split)
{
    const json_t *pattern = json_object_get(json_object_get(split, "pattern"), "Regex");
    const char *behavior = json_string_value(json_object_get(split, "behavior"));
    int invert, isolated = behavior && !strcmp(behavior, "Isolated");
    mm2_status status = get_flag(split, "invert", 0, &invert);
    if (status)
        return status;
    if (!json_is_string(pattern))
        return unsupported("the Split pattern", "no regular expression", "\"Regex\"");
    /* With `invert` the gaps count as matches, so that Removed drops the gaps. */
    if (!isolated && !(behavior && !strcmp(behavior, "Removed") && invert))
        return unsupported("the behavior of Split", behavior ? behavior : "absent",
                           "Isolated, or Removed with invert");
    return mm2_split_new(&r->t->split, json_string_value(pattern),
                         (int64_t)json_string_length(pattern), isolated);
}

static mm2_status read_pre_tokenizer(reader *r)
{
    const json_t *pre = json_object_get(r->root, "pre_tokenizer");
    const json_t *list = json_object_get(pre, "pretokenizers");
    const json_t *split = json_array_get(list, 0), *bytes = json_array_get(list, 1);
    if (!has_type(pre, "Sequence") || json_array_size(list) != 2 || !has_type(split, "Split") ||
        !has_type(bytes, "ByteLevel"))
        return unsupported("the pre_tokenizer", type_of(pre), "a Sequence of Split and ByteLevel");
    mm2_status status = require_flag(bytes, "add_prefix_space", 1, 0);
    if (!status)
        status = require_flag(bytes, "use_regex", 1, 0);
    return status ? status : read_split(r, split);
}

static mm2_status read_settings(reader *r)
{
    static const char *const empty[] = {"dropout", "continuing_subword_prefix",
                                        "end_of_word_suffix"};
    const json_t *decoder = json_object_get(r->root, "decoder");
    r->model = json_object_get(r->root, "model");
    if (!has_type(r->model, "BPE"))
        return unsupported("the model", type_of(r->model), "BPE");
    if (!has_type(decoder, "ByteLevel"))
        return unsupported("the decoder", type_of(decoder), "ByteLevel");
    for (int i = 0; i < 3; i++) {
        const json_t *value = json_object_get(r->model, empty[i]);
        const char *text = json_string_value(value);
        if (!is_null(value) && !(text && !*text))
            return unsupported(empty[i], "set", "null");
    }
    return require_flag(r->model, "ignore_merges", 0, 0);
}

static mm2_status read_added_token(reader *r, const json_t *token)
{
    static const char *const off[] = {"single_word", "lstrip", "rstrip"};
    const json_t *id = json_object_get(token, "id"), *content = json_object_get(token, "content");
    const char *text = json_string_value(content);
    int special, normalized;
    mm2_status status = MM2_OK;
    if (!json_is_integer(id) || !text)
        return mm2_fail(MM2_E_FORMAT, "it has no integer id and no content");
    for (int i = 0; i < 3 && !status; i++)
        status = require_flag(token, off[i], 0, 0);
    if (!status)
        status = get_flag(token, "special", 0, &special);
    if (!status)
        status = get_flag(token, "normalized", !special, &normalized);
    for (const char *p = text; !status && normalized && *p; p++)
        if ((unsigned char)*p >= 0x80)
            status = unsupported("its content", "normalized and not ASCII", "ASCII");
    if (!status)
        status = mm2_bpe_add_raw(&r->t->bpe, json_integer_value(id), text,
                                 (int64_t)json_string_length(content),
                                 MM2_TOKEN_ADDED | (special ? MM2_TOKEN_SPECIAL : 0));
    if (!status)
        r->normalized[json_integer_value(id)] = (uint8_t)normalized;
    return status;
}

static mm2_status read_added_tokens(reader *r)
{
    const json_t *list = json_object_get(r->root, "added_tokens");
    int64_t capacity = r->vocab.end - r->vocab.begin, count = (int64_t)json_array_size(list);
    if (!is_null(list) && !json_is_array(list))
        return mm2_fail(MM2_E_FORMAT, "\"added_tokens\" is not a list");
    for (int64_t i = 0; i < count; i++)
        capacity += (int64_t)json_string_length(
            json_object_get(json_array_get(list, (size_t)i), "content"));
    mm2_status status = mm2_bpe_init(&r->t->bpe, capacity);
    for (int64_t i = 0; i < count && !status; i++) {
        status = read_added_token(r, json_array_get(list, (size_t)i));
        if (status)
            return mm2_fail(status, "added_tokens[%lld]: %s", (long long)i, mm2_status_text());
    }
    return status;
}

static mm2_status read_vocab(reader *r)
{
    mm2_json_scan scan;
    mm2_json_scan_begin(&scan, r->json, &r->vocab);
    mm2_status status = mm2_json_scan_expect(&scan, '{');
    if (status || mm2_json_scan_take(&scan, '}'))
        return status ? status : mm2_json_scan_finish(&scan);
    do {
        const char *text;
        int64_t length, id;
        if ((status = mm2_json_scan_string(&scan, &text, &length)) ||
            (status = mm2_json_scan_expect(&scan, ':')) ||
            (status = mm2_json_scan_integer(&scan, &id)) ||
            (status = mm2_bpe_add_spelled(&r->t->bpe, id, text, length)))
            return status;
    } while (mm2_json_scan_take(&scan, ','));
    status = mm2_json_scan_expect(&scan, '}');
    return status ? status : mm2_json_scan_finish(&scan);
}

/* ["left", "right"], or "left right" as older versions wrote it. */
static mm2_status read_merge(reader *r, mm2_json_scan *scan)
{
    char left[MM2_JSON_STRING];
    const char *text, *space;
    int64_t left_length, length;
    mm2_status status;
    if (mm2_json_scan_take(scan, '[')) {
        if ((status = mm2_json_scan_string(scan, &text, &left_length)))
            return status;
        memcpy(left, text, (size_t)left_length);
        if ((status = mm2_json_scan_expect(scan, ',')) ||
            (status = mm2_json_scan_string(scan, &text, &length)) ||
            (status = mm2_json_scan_expect(scan, ']')))
            return status;
        return mm2_bpe_add_merge(&r->t->bpe, left, left_length, text, length);
    }
    if ((status = mm2_json_scan_string(scan, &text, &length)))
        return status;
    space = memchr(text, ' ', (size_t)length);
    left_length = space ? space - text : 0;
    return mm2_bpe_add_merge(&r->t->bpe, text, left_length, text + left_length + 1,
                             space ? length - left_length - 1 : 0);
}

static mm2_status read_merges(reader *r)
{
    mm2_json_scan scan;
    mm2_json_scan_begin(&scan, r->json, &r->merges);
    mm2_status status = mm2_json_scan_expect(&scan, '[');
    if (status || mm2_json_scan_take(&scan, ']'))
        return status ? status : mm2_json_scan_finish(&scan);
    do
        if ((status = read_merge(r, &scan)))
            return status;
    while (mm2_json_scan_take(&scan, ','));
    status = mm2_json_scan_expect(&scan, ']');
    return status ? status : mm2_json_scan_finish(&scan);
}

/* An added token that is also a word must have the word's id. */
static mm2_status check_added(const mm2_bpe *b)
{
    for (int32_t id = 0; id < b->size; id++) {
        const char *bytes = b->bytes + b->start[id];
        int32_t word = b->kind[id] & MM2_TOKEN_ADDED ? mm2_bpe_word(b, bytes, b->length[id]) : -1;
        if (word >= 0 && word != id)
            return mm2_fail(MM2_E_FORMAT,
                            "\"%.*s\" has id %d among the added tokens and %d among the words",
                            (int)b->length[id], bytes, id, word);
    }
    return MM2_OK;
}

static mm2_status parse(reader *r, int64_t length)
{
    char *rest;
    int64_t rest_length;
    json_error_t error;
    mm2_status status = mm2_json_cut(r->json, length, &r->vocab, &r->merges, &rest, &rest_length);
    if (status)
        return status;
    r->root = json_loadb(rest, (size_t)rest_length, JSON_REJECT_DUPLICATES, &error);
    free(rest);
    if (!r->root && json_error_code(&error) == json_error_out_of_memory)
        return mm2_fail(MM2_E_NOMEM, "no memory for a JSON tree of %lld bytes",
                        (long long)rest_length);
    if (!r->root)
        return mm2_fail(MM2_E_FORMAT, "damaged JSON: %s", error.text);
    if (!json_is_object(r->root))
        return mm2_fail(MM2_E_FORMAT, "the document is not an object");
    return MM2_OK;
}

static mm2_status build(reader *r, int64_t length)
{
    mm2_status status = parse(r, length);
    if (!status)
        status = read_settings(r);
    if (!status && (!r->vocab.begin || !r->merges.begin))
        status = mm2_fail(MM2_E_FORMAT, "model.%s is missing or of the wrong type",
                          r->vocab.begin ? "merges" : "vocab");
    if (!status)
        status = read_normalizer(r);
    if (!status)
        status = read_pre_tokenizer(r);
    if (!status)
        status = read_added_tokens(r);
    if (!status)
        status = read_vocab(r);
    if (!status)
        status = mm2_bpe_index(&r->t->bpe, r->merges.commas + 1);
    if (!status)
        status = read_merges(r);
    if (!status)
        status = check_added(&r->t->bpe);
    if (!status)
        status = mm2_tokenizer_finish(r->t, r->normalized);
    return status ? status : mm2_tokenizer_set_template(r->t, NULL, 0);
}

mm2_status mm2_tokenizer_from_json(mm2_tokenizer **out, const char *json, int64_t length,
                                   const char *where)
{
    *out = NULL;
    if (length < 0 || length > MAX_JSON)
        return mm2_fail(MM2_E_FORMAT, "%s: %lld bytes, expected at most %d", where,
                        (long long)length, (int)MAX_JSON);
    reader r = {.t = calloc(1, sizeof *r.t), .json = json};
    r.normalized = calloc(MM2_MAX_VOCABULARY, 1);
    mm2_status status = r.t && r.normalized ? build(&r, length)
                                            : mm2_fail(MM2_E_NOMEM, "no memory for a tokenizer");
    json_decref(r.root);
    free(r.normalized);
    if (status) {
        mm2_tokenizer_release(r.t);
        return mm2_fail_in(status, where);
    }
    *out = r.t;
    return MM2_OK;
}
