/* Finding a tokenizer: tokenizer.json with the files beside it, or the metadata of a GGUF.
 *
 * Beside tokenizer.json, tokenizer_config.json names the special tokens and may hold the chat
 * template, chat_template.jinja holds it in newer checkpoints, and generation_config.json names ids.
 * Which wins: the beginning of a text is the tokenizer's business, so tokenizer_config.json's
 * bos_token comes first (one release's generation_config.json names another token); the end of a
 * generation is generation_config.json's. What neither names stays as the tokenizer found it.
 *
 * Nothing of the files is kept: maps and copies end with the call. */
#include "base/guard.h"
#include "base/json.h"
#include "base/status.h"
#include "model/container.h"
#include "model/directory.h"
#include "model/document.h"
#include "model/gguf.h"
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

enum { TEMPLATE_BYTES = 1 << 20, PRE = 64 };

/* ---- tokenizer.json ---- */

/* The id of a token that tokenizer_config.json names as text, or as an object with the text in it;
 * -1 if it does not. */
static int32_t named_id(const mm2_tokenizer *t, const mm2_value *config, const char *key)
{
    const mm2_value *value = mm2_value_field(config, key);
    if (mm2_value_is(value, MM2_VALUE_OBJECT))
        value = mm2_value_field(value, "content");
    const char *text = mm2_value_text(value);
    return text ? mm2_tokenizer_id(t, text, (int32_t)value->size) : -1;
}

/* chat_template: a string, or a list of named ones of which "default" counts. */
static const mm2_value *named_template(const mm2_value *config)
{
    const mm2_value *value = mm2_value_field(config, "chat_template");
    for (const mm2_value *item = NULL; (item = mm2_value_next(value, item));)
        if (mm2_value_says(mm2_value_field(item, "name"), "default"))
            return mm2_value_field(item, "template");
    return value;
}

static mm2_status set_template(mm2_tokenizer *t, const char *directory, const mm2_value *config)
{
    char *path;
    mm2_status status = mm2_file_join(&path, directory, "chat_template.jinja", "file");
    if (status)
        return status;
    int32_t exists = mm2_file_exists(path);
    if (exists > 0) {
        mm2_file f;
        status = mm2_file_open(&f, path, 0);
        if (!status && f.size > TEMPLATE_BYTES)
            status = mm2_fail(MM2_E_FORMAT, "%s: has %lld bytes, expected at most %d", path,
                              (long long)f.size, TEMPLATE_BYTES);
        if (!status && f.size)
            status = mm2_tokenizer_set_template(t, (const char *)f.data, f.size, path);
        mm2_file_close(&f);
    } else if (exists < 0) {
        status = exists;
    } else {
        const mm2_value *text = named_template(config);
        if (mm2_value_is(text, MM2_VALUE_STRING))
            status = mm2_tokenizer_set_template(t, text->text, text->size, directory);
    }
    free(path);
    return status;
}

/* bos, eos: what generation_config.json says, or -1. */
static mm2_status complete(mm2_tokenizer *t, const char *directory, int32_t bos, int32_t eos)
{
    mm2_document d;
    mm2_status status = mm2_document_open(&d, directory, "tokenizer_config.json");
    if (!status) {
        int32_t first = named_id(t, d.root, "bos_token"), last = named_id(t, d.root, "eos_token");
        mm2_tokenizer_set_ids(t, first >= 0 ? first : bos, eos >= 0 ? eos : last,
                              named_id(t, d.root, "unk_token"), named_id(t, d.root, "pad_token"));
    }
    if (!status)
        status = set_template(t, directory, d.root);
    mm2_document_close(&d);
    return status;
}

static mm2_status open_json(mm2_tokenizer **out, const char *path, const char *directory,
                            int32_t bos, int32_t eos)
{
    mm2_file f;
    mm2_status status = mm2_file_open(&f, path, 0);
    if (status)
        return status;
    status = f.size ? mm2_tokenizer_from_json(out, (const char *)f.data, f.size, path)
                    : mm2_fail(MM2_E_FORMAT, "%s: the file is empty", path);
    mm2_file_close(&f);
    if (!status)
        status = complete(*out, directory, bos, eos);
    if (status) {
        mm2_tokenizer_release(*out);
        *out = NULL;
    }
    return status;
}

/* ---- GGUF ---- */

typedef struct strings { /* an array of strings, unpacked */
    const char **text;
    uint32_t *length;
    int32_t count;
} strings;

static mm2_status unpack(strings *s, const mm2_gguf *g, const char *key)
{
    const mm2_gguf_pair *p = mm2_gguf_find(g, key);
    if (!p)
        return MM2_OK;
    if (p->type != MM2_GGUF_ARRAY || p->item != MM2_GGUF_STRING)
        return mm2_fail(MM2_E_FORMAT, "%s: %s must be an array of strings", g->file->path, key);
    s->text = malloc(((size_t)p->count + 1) * sizeof *s->text);
    s->length = malloc(((size_t)p->count + 1) * sizeof *s->length);
    if (!s->text || !s->length)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for %lld strings of %s", g->file->path,
                        (long long)p->count, key);
    const uint8_t *at = p->data; /* the header's reader has walked it: all lengths fit */
    for (int64_t i = 0; i < p->count; i++) {
        uint64_t length;
        memcpy(&length, at, 8);
        s->text[i] = (const char *)at + 8;
        s->length[i] = (uint32_t)length;
        at += 8 + length;
    }
    s->count = (int32_t)p->count;
    return MM2_OK;
}

static mm2_status unpack_types(int32_t **out, const mm2_gguf *g, int32_t count)
{
    const mm2_gguf_pair *p = mm2_gguf_find(g, "tokenizer.ggml.token_type");
    if (!p)
        return MM2_OK;
    if (p->type != MM2_GGUF_ARRAY || (p->item != MM2_GGUF_INT32 && p->item != MM2_GGUF_UINT32) ||
        p->count != count)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: tokenizer.ggml.token_type must be an array of %d int32, one a token",
                        g->file->path, count);
    *out = malloc(((size_t)count + 1) * sizeof **out);
    if (!*out)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for %d token types", g->file->path, count);
    memcpy(*out, p->data, (size_t)count * sizeof **out);
    return MM2_OK;
}

/* -1 where the file names none, or something else than an id: nothing depends on it. */
static int32_t read_id(const mm2_gguf *g, const char *key)
{
    int64_t id = -1;
    int32_t found = mm2_gguf_integer(g, key, &id);
    return found > 0 && id >= 0 && id < MM2_MAX_IDS ? (int32_t)id : -1;
}

static mm2_status check_model(const mm2_gguf *g)
{
    const char *text = "";
    int64_t length = 0;
    char clean[PRE];
    int32_t found = mm2_gguf_string(g, "tokenizer.ggml.model", &text, &length);
    if (found < 0)
        return found;
    mm2_text_clean(clean, sizeof clean, text, length);
    return strcmp(clean, "gpt2") ? mm2_fail(MM2_E_UNSUPPORTED,
                                            "%s: tokenizer.ggml.model is \"%s\"; this build "
                                            "supports gpt2 (byte-level BPE)",
                                            g->file->path, clean)
                                 : MM2_OK;
}

static mm2_status from_arrays(mm2_tokenizer **out, const mm2_gguf *g, const strings *tokens,
                              const strings *merges, const int32_t *types)
{
    char pre[PRE];
    const char *text;
    int64_t length;
    mm2_vocabulary v = {.count = tokens->count,
                        .tokens = tokens->text,
                        .token_lengths = tokens->length,
                        .types = types,
                        .merge_count = merges->count,
                        .merges = merges->text,
                        .merge_lengths = merges->length};
    int32_t found = mm2_gguf_string(g, "tokenizer.ggml.pre", &text, &length);
    if (found > 0) {
        mm2_text_clean(pre, sizeof pre, text, length);
        v.pre = pre;
    }
    v.bos = read_id(g, "tokenizer.ggml.bos_token_id");
    v.eos = read_id(g, "tokenizer.ggml.eos_token_id");
    v.unk = read_id(g, "tokenizer.ggml.unknown_token_id");
    v.pad = read_id(g, "tokenizer.ggml.padding_token_id");
    mm2_status status = found < 0 ? found : MM2_OK;
    if (!status)
        status = mm2_tokenizer_from_vocabulary(out, &v, g->file->path);
    if (status)
        return status;
    found = mm2_gguf_string(g, "tokenizer.chat_template", &text, &length);
    status = found > 0 ? mm2_tokenizer_set_template(*out, text, length, g->file->path) : found;
    if (status) {
        mm2_tokenizer_release(*out);
        *out = NULL;
    }
    return status;
}

mm2_status mm2_gguf_tokenizer(mm2_tokenizer **out, const mm2_gguf *g)
{
    strings tokens = {0}, merges = {0};
    int32_t *types = NULL;
    *out = NULL;
    if (!mm2_gguf_find(g, "tokenizer.ggml.tokens"))
        return MM2_OK;
    mm2_status status = check_model(g);
    if (!status)
        status = unpack(&tokens, g, "tokenizer.ggml.tokens");
    if (!status)
        status = unpack(&merges, g, "tokenizer.ggml.merges");
    if (!status)
        status = unpack_types(&types, g, tokens.count);
    if (!status)
        status = from_arrays(out, g, &tokens, &merges, types);
    free(tokens.text);
    free(tokens.length);
    free(merges.text);
    free(merges.length);
    free(types);
    return status;
}

/* ---- Both ---- */

mm2_status mm2_tokenizer_beside(mm2_tokenizer **out, const mm2_checkpoint *c)
{
    mm2_status status;
    *out = NULL;
    if (c->gguf) {
        status = mm2_gguf_tokenizer(out, c->gguf);
        if (!status && !*out)
            mm2_fail(MM2_E_UNSUPPORTED, "%s: the file has no tokenizer (tokenizer.ggml.tokens)",
                     c->path);
    } else {
        char *path;
        status = mm2_file_join(&path, c->path, "tokenizer.json", "file");
        if (status)
            return status;
        int32_t exists = mm2_file_exists(path);
        if (exists)
            status = exists < 0 ? exists : open_json(out, path, c->path, c->bos, c->eos);
        else
            mm2_fail(MM2_E_UNSUPPORTED, "%s: no such file, so this model has no tokenizer", path);
        free(path);
    }
    return status == MM2_E_UNSUPPORTED ? MM2_OK : status;
}

static mm2_status open_gguf(mm2_tokenizer **out, const char *path)
{
    mm2_file f;
    mm2_gguf g;
    mm2_status status = mm2_file_open(&f, path, 0);
    if (status)
        return status;
    status = mm2_gguf_parse(&g, &f);
    if (!status)
        status = mm2_gguf_tokenizer(out, &g);
    if (!status && !*out)
        status =
            mm2_fail(MM2_E_FORMAT, "%s: the file has no tokenizer (tokenizer.ggml.tokens)", path);
    mm2_gguf_free(&g);
    mm2_file_close(&f);
    return status;
}

/* The ids of a generation_config.json beside tokenizer.json come with a model; a tokenizer alone
 * reads them here. */
static mm2_status open_in_directory(mm2_tokenizer **out, const char *path, const char *directory)
{
    mm2_checkpoint facts;
    mm2_checkpoint_init(&facts);
    mm2_status status = mm2_directory_generation(&facts, directory);
    return status ? status : open_json(out, path, directory, facts.bos, facts.eos);
}

static mm2_status open_directory(mm2_tokenizer **out, const char *directory)
{
    char *path;
    const char *format;
    mm2_status status = mm2_file_join(&path, directory, "tokenizer.json", "file");
    if (status)
        return status;
    int32_t exists = mm2_file_exists(path);
    if (exists > 0)
        status = open_in_directory(out, path, directory);
    free(path);
    if (exists)
        return exists < 0 ? exists : status;
    status = mm2_container_locate(&path, &format, directory);
    if (status == MM2_E_FORMAT || (!status && strcmp(format, "gguf")))
        status = mm2_fail(MM2_E_FORMAT, "%s: holds neither tokenizer.json nor one GGUF checkpoint",
                          directory);
    else if (!status)
        status = open_gguf(out, path);
    free(path);
    return status;
}

static mm2_status open_file(mm2_tokenizer **out, const char *path)
{
    mm2_file f;
    mm2_status status = mm2_file_open(&f, path, 0);
    if (status)
        return status;
    int is_gguf = f.size >= 4 && !memcmp(f.data, "GGUF", 4);
    mm2_file_close(&f);
    if (is_gguf)
        return open_gguf(out, path);
    const char *last = strrchr(path, '/');
    char *directory = last ? strndup(path, last == path ? 1 : (size_t)(last - path)) : strdup(".");
    if (!directory)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    status = open_in_directory(out, path, directory);
    free(directory);
    return status;
}

mm2_status mm2_tokenizer_open(mm2_tokenizer **out, const char *path)
{
    MM2_NEED(out, "out");
    *out = NULL;
    if (!path || !*path)
        return mm2_fail(MM2_E_ARG, "the path is empty");
    return mm2_file_is_directory(path) ? open_directory(out, path) : open_file(out, path);
}
