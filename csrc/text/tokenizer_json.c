/* A tokenizer from the text of tokenizer.json, the format of Hugging Face's tokenizers. Its
 * components are named, not programmed: this family's are NFC, a Split by a pattern followed by
 * ByteLevel, BPE and a ByteLevel decoder. Whatever would give other ids than the ones we would
 * compute is refused by name, never ignored. Not looked at because ids do not depend on them:
 * truncation, padding, the post-processor (it adds tokens of its own; here the caller does that).
 *
 * 99 % of the document are two lists, 200,000 words with their ids and as many merges. The document
 * is read over once: the places of these and of the added tokens are kept and read by the pull
 * reader then; the few small members that matter become trees, gone when the function returns; all
 * others cost nothing, however large they are. */
#include "base/json_tree.h"
#include "base/status.h"
#include "text/parts.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_JSON = 64 << 20, /* bytes of a tokenizer.json */
    MAX_STRING = 2048    /* bytes of a spelled word, or of a merge */
};

typedef struct span { /* of a member, brackets included; begin NULL: not found */
    const char *begin, *end;
    int64_t count; /* of elements */
} span;

/* The members that become trees. */
static const struct small_member {
    const char *key;
    int in_model;
} small[] = {{"normalizer", 0},
             {"pre_tokenizer", 0},
             {"decoder", 0},
             {"type", 1},
             {"dropout", 1},
             {"continuing_subword_prefix", 1},
             {"end_of_word_suffix", 1},
             {"ignore_merges", 1}};
enum { NORMALIZER, PRE_TOKENIZER, DECODER, TYPE, DROPOUT, PREFIX, SUFFIX, IGNORE_MERGES, SMALL };

typedef struct reader {
    mm2_tokenizer *t;
    const char *json;
    span vocab, merges, added;
    mm2_json_tree small[SMALL];
    int has_model;
    uint8_t *normalized; /* [MM2_MAX_VOCABULARY]: an added token to be found after normalisation */
} reader;

/* NULL where the member is absent or null. */
static const mm2_value *member(const reader *r, int which)
{
    const mm2_value *value = r->small[which].values;
    return mm2_value_is(value, MM2_VALUE_NULL) ? NULL : value;
}

static const char *type_of(const mm2_value *object)
{
    const char *type = mm2_value_text(mm2_value_field(object, "type"));
    return type ? type : "without a type";
}

static int has_type(const mm2_value *object, const char *type)
{
    return mm2_value_says(mm2_value_field(object, "type"), type);
}

static mm2_status unsupported(const char *what, const char *found, const char *want)
{
    return mm2_fail(MM2_E_UNSUPPORTED, "%s is %s, this tokenizer takes over %s", what, found, want);
}

/* object[key], 0 or 1; `absent` if there is none. */
static mm2_status get_flag(const mm2_value *object, const char *key, int absent, int *value)
{
    const mm2_value *found = mm2_value_field(object, key);
    *value = absent;
    if (found && !mm2_value_flag(found, value))
        return mm2_fail(MM2_E_FORMAT, "\"%s\" is not true or false", key);
    return MM2_OK;
}

/* object[key] must be this flag. */
static mm2_status require_flag(const mm2_value *object, const char *key, int absent, int want)
{
    int value;
    mm2_status status = get_flag(object, key, absent, &value);
    if (!status && value != want)
        status = unsupported(key, value ? "true" : "false", want ? "true" : "false");
    return status;
}

static mm2_status read_normalizer(reader *r)
{
    const mm2_value *normalizer = member(r, NORMALIZER), *list;
    if (!normalizer)
        return MM2_OK;
    list = has_type(normalizer, "Sequence") ? mm2_value_field(normalizer, "normalizers") : NULL;
    if (mm2_value_is(list, MM2_VALUE_ARRAY) && !mm2_value_count(list))
        return MM2_OK;
    if (mm2_value_count(list) == 1)
        normalizer = mm2_value_item(list, 0);
    if (!has_type(normalizer, "NFC"))
        return unsupported("the normalizer", type_of(normalizer), "NFC or none");
    r->t->nfc = 1;
    return MM2_OK;
}

static mm2_status read_split(reader *r, const mm2_value *split)
{
    const mm2_value *pattern = mm2_value_field(mm2_value_field(split, "pattern"), "Regex");
    const char *behavior = mm2_value_text(mm2_value_field(split, "behavior"));
    int invert, isolated = behavior && !strcmp(behavior, "Isolated");
    mm2_status status = get_flag(split, "invert", 0, &invert);
    if (status)
        return status;
    if (!mm2_value_is(pattern, MM2_VALUE_STRING))
        return unsupported("the Split pattern", "no regular expression", "\"Regex\"");
    /* With `invert` the gaps count as matches, so that Removed drops the gaps. */
    if (!isolated && !(behavior && !strcmp(behavior, "Removed") && invert))
        return unsupported("the behavior of Split", behavior ? behavior : "absent",
                           "Isolated, or Removed with invert");
    return mm2_split_new(&r->t->split, pattern->text, pattern->size, isolated);
}

static mm2_status read_pre_tokenizer(reader *r)
{
    const mm2_value *pre = member(r, PRE_TOKENIZER);
    const mm2_value *list = mm2_value_field(pre, "pretokenizers");
    const mm2_value *split = mm2_value_item(list, 0), *bytes = mm2_value_item(list, 1);
    if (!has_type(pre, "Sequence") || mm2_value_count(list) != 2 || !has_type(split, "Split") ||
        !has_type(bytes, "ByteLevel"))
        return unsupported("the pre_tokenizer", type_of(pre), "a Sequence of Split and ByteLevel");
    mm2_status status = require_flag(bytes, "add_prefix_space", 1, 0);
    if (!status)
        status = require_flag(bytes, "use_regex", 1, 0);
    return status ? status : read_split(r, split);
}

static mm2_status read_settings(reader *r)
{
    const mm2_value *type = member(r, TYPE), *decoder = member(r, DECODER);
    int32_t ignore_merges = 0;
    if (!mm2_value_says(type, "BPE"))
        return unsupported("the model", mm2_value_text(type) ? type->text : "without a type",
                           "BPE");
    if (!has_type(decoder, "ByteLevel"))
        return unsupported("the decoder", type_of(decoder), "ByteLevel");
    for (int i = DROPOUT; i <= SUFFIX; i++)
        if (member(r, i) && !mm2_value_says(member(r, i), ""))
            return unsupported(small[i].key, "set", "null");
    if (member(r, IGNORE_MERGES) && !mm2_value_flag(member(r, IGNORE_MERGES), &ignore_merges))
        return mm2_fail(MM2_E_FORMAT, "\"ignore_merges\" is not true or false");
    return ignore_merges ? unsupported("ignore_merges", "true", "false") : MM2_OK;
}

static mm2_status read_added_token(reader *r, const mm2_value *token)
{
    static const char *const off[] = {"single_word", "lstrip", "rstrip"};
    const mm2_value *id = mm2_value_field(token, "id"),
                    *content = mm2_value_field(token, "content");
    const char *text = mm2_value_text(content);
    int64_t number;
    int special, normalized;
    mm2_status status = MM2_OK;
    if (!mm2_value_integer(id, &number) || !text)
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
        status = mm2_bpe_add_raw(&r->t->bpe, number, text, content->size,
                                 MM2_TOKEN_ADDED | (special ? MM2_TOKEN_SPECIAL : 0));
    if (!status)
        r->normalized[number] = (uint8_t)normalized;
    return status;
}

static mm2_status read_added_tokens(reader *r)
{
    mm2_json j;
    mm2_status status;
    int64_t i = 0;
    if (!r->added.begin)
        return MM2_OK;
    mm2_json_begin(&j, "added_tokens", r->added.begin, r->added.end - r->added.begin);
    for (int begun = 0; (status = mm2_json_next(&j, '[', &begun)) > 0; i++) {
        mm2_json_tree token;
        if ((status = mm2_json_tree_read(&token, &j)))
            return status;
        status = read_added_token(r, token.values);
        mm2_json_tree_free(&token);
        if (status)
            return mm2_fail(status, "added_tokens[%lld]: %s", (long long)i, mm2_status_text());
    }
    return status;
}

static mm2_status read_vocab(reader *r)
{
    mm2_json j;
    mm2_json_begin(&j, "model.vocab", r->vocab.begin, r->vocab.end - r->vocab.begin);
    char word[MAX_STRING + 1];
    int64_t id;
    mm2_status status;
    for (int begun = 0; (status = mm2_json_next(&j, '{', &begun)) > 0;)
        if ((status = mm2_json_key(&j, word, sizeof word)) ||
            (status = mm2_json_integer(&j, &id)) ||
            (status = mm2_bpe_add_spelled(&r->t->bpe, id, word, (int64_t)strlen(word))))
            return status;
    return status;
}

/* ["left", "right"], or "left right" as older versions wrote it. */
static mm2_status read_merge(reader *r, mm2_json *j)
{
    char left[MAX_STRING + 1], right[MAX_STRING + 1] = "";
    char *parts[] = {left, right};
    mm2_status status;
    if (mm2_json_peek(j) == '[') {
        int n = 0;
        for (int begun = 0; (status = mm2_json_next(j, '[', &begun)) > 0; n++)
            if (n == 2 || (status = mm2_json_string(j, parts[n], MAX_STRING + 1)))
                break;
        if (status < 0)
            return status;
        if (status > 0 || n < 2)
            return mm2_fail(MM2_E_FORMAT, "a merge is a list of %s strings, expected two",
                            n < 2 ? "fewer" : "more");
        return mm2_bpe_add_merge(&r->t->bpe, left, (int64_t)strlen(left), right,
                                 (int64_t)strlen(right));
    }
    if ((status = mm2_json_string(j, left, sizeof left)))
        return status;
    char *space = strchr(left, ' ');
    const char *second = space ? space + 1 : right;
    return mm2_bpe_add_merge(&r->t->bpe, left, space ? space - left : 0, second,
                             (int64_t)strlen(second));
}

static mm2_status read_merges(reader *r)
{
    mm2_json j;
    mm2_json_begin(&j, "model.merges", r->merges.begin, r->merges.end - r->merges.begin);
    mm2_status status;
    for (int begun = 0; (status = mm2_json_next(&j, '[', &begun)) > 0;)
        if ((status = read_merge(r, &j)))
            return status;
    return status;
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

/* Steps over a container and says where it was. */
static mm2_status measure(mm2_json *j, span *out)
{
    char open = mm2_json_peek(j);
    mm2_status status;
    *out = (span){.begin = j->at};
    for (int begun = 0; (status = mm2_json_next(j, open, &begun)) > 0; out->count++)
        if ((open == '{' && (status = mm2_json_key(j, NULL, 0))) || (status = mm2_json_skip(j)))
            return status;
    out->end = j->at;
    return status;
}

/* What becomes of a member: its place is kept, or its value as a tree, or nothing. */
static mm2_status take_member(reader *r, mm2_json *j, const char *key, int in_model)
{
    span *place = in_model && !strcmp(key, "vocab")           ? &r->vocab
                  : in_model && !strcmp(key, "merges")        ? &r->merges
                  : !in_model && !strcmp(key, "added_tokens") ? &r->added
                                                              : NULL;
    char open = mm2_json_peek(j);
    int twice = place && place->begin;
    mm2_json_tree *tree = NULL;
    for (int i = 0; i < SMALL; i++)
        if (small[i].in_model == in_model && !strcmp(key, small[i].key)) {
            tree = &r->small[i];
            twice = tree->values != NULL;
        }
    if (twice)
        return mm2_fail(MM2_E_FORMAT, "\"%s\" appears twice", key);
    if (place == &r->added && open != '[' && open != 'n') /* null */
        return mm2_fail(MM2_E_FORMAT, "\"added_tokens\" is not a list");
    if (place && (open == '{' || open == '['))
        return measure(j, place);
    return tree ? mm2_json_tree_read(tree, j) : mm2_json_skip(j);
}

static mm2_status parse_model(reader *r, mm2_json *j)
{
    char key[MAX_STRING + 1];
    mm2_status status;
    for (int begun = 0; (status = mm2_json_next(j, '{', &begun)) > 0;)
        if ((status = mm2_json_key(j, key, sizeof key)) || (status = take_member(r, j, key, 1)))
            return status;
    return status;
}

static mm2_status parse(reader *r, int64_t length)
{
    mm2_json j;
    char key[MAX_STRING + 1];
    mm2_status status;
    mm2_json_begin(&j, "the document", r->json, length);
    for (int begun = 0; (status = mm2_json_next(&j, '{', &begun)) > 0;) {
        if ((status = mm2_json_key(&j, key, sizeof key)))
            return status;
        int is_model = !strcmp(key, "model") && mm2_json_peek(&j) == '{';
        if (is_model && r->has_model++)
            return mm2_fail(MM2_E_FORMAT, "\"model\" appears twice");
        if ((status = is_model ? parse_model(r, &j) : take_member(r, &j, key, 0)))
            return status;
    }
    return status ? status : mm2_json_end(&j);
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
    if (!status) /* a token is never longer than its JSON */
        status = mm2_bpe_init(&r->t->bpe,
                              (r->vocab.end - r->vocab.begin) + (r->added.end - r->added.begin));
    if (!status)
        status = read_added_tokens(r);
    if (!status)
        status = read_vocab(r);
    if (!status)
        status = mm2_bpe_index(&r->t->bpe, r->merges.count);
    if (!status)
        status = read_merges(r);
    if (!status)
        status = check_added(&r->t->bpe);
    if (!status)
        status = mm2_tokenizer_finish(r->t, r->normalized);
    return status ? status : mm2_tokenizer_set_template(r->t, NULL, 0, NULL);
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
    for (int i = 0; i < SMALL; i++)
        mm2_json_tree_free(&r.small[i]);
    free(r.normalized);
    if (status) {
        mm2_tokenizer_release(r.t);
        return mm2_fail_in(status, where);
    }
    *out = r.t;
    return MM2_OK;
}
