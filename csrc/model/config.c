/* The small documents beside safetensors: config.json, generation_config.json and the front matter
 * of README.md.
 *
 * Reject rather than guess: a field that shapes the computation must be there, in range, and say
 * what this engine computes. A field that the family's files leave out (attention kinds, routing
 * bias) has the family's value. Both spellings of the rotary embedding are read: rotary_dim and
 * rope_theta beside the other fields (the vendor's files), and partial_rotary_factor and rope_theta
 * inside rope_parameters (transformers 5). `auto_map` names code and is ignored, like every field
 * not named here.
 *
 * The table of sizes serves config.json by name and, after either reader, mm2_config_check. */
#include "model/checkpoint.h"

#include "base/json.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "model/document.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { TILE = 16 }; /* positions and head dimensions that attention takes at once */

static const struct size_field {
    const char *name;
    size_t offset;
    int32_t low, high;
} sizes[] = {
    {"num_hidden_layers", offsetof(mm2_config, num_hidden_layers), 1, 1024},
    {"hidden_size", offsetof(mm2_config, hidden_size), 1, 1 << 20},
    {"num_attention_heads", offsetof(mm2_config, num_attention_heads), 1, 4096},
    {"num_key_value_heads", offsetof(mm2_config, num_key_value_heads), 1, 4096},
    {"head_dim", offsetof(mm2_config, head_dim), 1, MM2_HEAD_DIM_LIMIT},
    {"num_local_experts", offsetof(mm2_config, num_local_experts), 1, 4096},
    {"num_experts_per_tok", offsetof(mm2_config, num_experts_per_tok), 1, 4096},
    {"intermediate_size", offsetof(mm2_config, intermediate_size), 1, 1 << 20},
    {"vocab_size", offsetof(mm2_config, vocab_size), 1, 1 << 20},
    {"max_position_embeddings", offsetof(mm2_config, max_position_embeddings), 1, 1 << 24},
};
enum { SIZES = sizeof sizes / sizeof *sizes };

static int32_t *size_of(mm2_config *c, const struct size_field *f)
{
    return (int32_t *)((char *)c + f->offset);
}

static mm2_status check_positive(float value, const char *name, const char *where)
{
    if (value > 0 && value <= 3.402823466e38f)
        return MM2_OK;
    return mm2_fail(MM2_E_FORMAT, "%s: %s is %g, expected a finite number above 0", where, name,
                    (double)value);
}

mm2_status mm2_config_check(const mm2_config *config, const char *where)
{
    mm2_config c = *config;
    for (int i = 0; i < SIZES; i++) {
        int32_t value = *size_of(&c, &sizes[i]);
        if (value < sizes[i].low || value > sizes[i].high)
            return mm2_fail(MM2_E_FORMAT, "%s: %s is %d, expected %d to %d", where, sizes[i].name,
                            value, sizes[i].low, sizes[i].high);
    }
    if (c.num_attention_heads % c.num_key_value_heads)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: num_attention_heads is %d, expected a multiple of the %d "
                        "num_key_value_heads",
                        where, c.num_attention_heads, c.num_key_value_heads);
    if (c.head_dim % TILE)
        return mm2_fail(MM2_E_UNSUPPORTED, "%s: head_dim is %d; this build needs a multiple of %d",
                        where, c.head_dim, TILE);
    if (c.rotary_dim < 2 || c.rotary_dim > c.head_dim || c.rotary_dim % 2)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: rotary_dim is %d, expected an even number from 2 to head_dim (%d)",
                        where, c.rotary_dim, c.head_dim);
    if (c.num_experts_per_tok > c.num_local_experts)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: num_experts_per_tok is %d, expected at most num_local_experts (%d)",
                        where, c.num_experts_per_tok, c.num_local_experts);
    mm2_status status = check_positive(c.rope_theta, "rope_theta", where);
    if (!status)
        status = check_positive(c.rms_norm_eps, "rms_norm_eps", where);
    if (!status)
        status = check_positive(c.routed_scaling_factor, "routed_scaling_factor", where);
    return status;
}

/* ---- Fields ---- */

static mm2_status wrong_kind(const mm2_document *d, const char *name, const char *expected,
                             const mm2_value *found)
{
    return mm2_fail(MM2_E_FORMAT, "%s: %s must be %s, found %s", d->path, name, expected,
                    mm2_value_kind(found));
}

/* A value that this engine does not compute with. */
static mm2_status unsupported(const mm2_document *d, const char *name, const mm2_value *found,
                              const char *expected)
{
    char text[64];
    if (found->text)
        mm2_text_clean(text, sizeof text, found->text, found->size);
    else
        mm2_format(text, sizeof text, "%s", mm2_value_kind(found));
    return mm2_fail(MM2_E_UNSUPPORTED, "%s: %s is %s; this build supports %s", d->path, name, text,
                    expected);
}

static mm2_status out_of_range(const mm2_document *d, const char *name, const mm2_value *number)
{
    return mm2_fail(MM2_E_FORMAT, "%s: %s is %.*s: out of range", d->path, name, 40, number->text);
}

static mm2_status need_int(const mm2_document *d, const char *name, int32_t *out)
{
    const mm2_value *value = mm2_value_field(d->root, name);
    if (!value)
        return mm2_fail(MM2_E_FORMAT, "%s: %s is missing", d->path, name);
    int64_t number;
    if (!mm2_value_is_whole(value))
        return wrong_kind(d, name, "a whole number", value);
    if (!mm2_value_integer(value, &number) || number < INT32_MIN || number > INT32_MAX)
        return out_of_range(d, name, value);
    *out = (int32_t)number;
    return MM2_OK;
}

/* Leaves *out alone if the field is absent. `name` is what the sentence says. */
static mm2_status read_number(const mm2_document *d, const mm2_value *object, const char *key,
                              const char *name, double *out)
{
    const mm2_value *value = mm2_value_field(object, key);
    if (value && !mm2_value_is(value, MM2_VALUE_NUMBER))
        return wrong_kind(d, name, "a number", value);
    return value && !mm2_value_number(value, out) ? out_of_range(d, name, value) : MM2_OK;
}

static mm2_status read_flag(const mm2_document *d, const char *name, int32_t *out)
{
    const mm2_value *value = mm2_value_field(d->root, name);
    return value && !mm2_value_flag(value, out) ? wrong_kind(d, name, "true or false", value)
                                                : MM2_OK;
}

/* A field that, if it is there, must be this string. */
static mm2_status expect_string(const mm2_document *d, const char *name, const char *expected)
{
    const mm2_value *value = mm2_value_field(d->root, name);
    return !value || mm2_value_says(value, expected) ? MM2_OK
                                                     : unsupported(d, name, value, expected);
}

/* ---- config.json ---- */

static mm2_status read_rope(const mm2_document *d, mm2_config *c)
{
    const mm2_value *rope = mm2_value_field(d->root, "rope_parameters");
    const mm2_value *scaling = mm2_value_field(d->root, "rope_scaling");
    const mm2_value *both[] = {rope, scaling};
    for (int i = 0; i < 2; i++) {
        const char *name = i ? "rope_scaling" : "rope_parameters";
        if (both[i] && !mm2_value_is(both[i], MM2_VALUE_OBJECT))
            return wrong_kind(d, name, "an object", both[i]);
        const mm2_value *type = mm2_value_field(both[i], "rope_type");
        if (!type)
            type = mm2_value_field(both[i], "type");
        if (type && !mm2_value_says(type, "default"))
            return unsupported(d, i ? "rope_scaling.rope_type" : "rope_parameters.rope_type", type,
                               "default");
    }
    double theta = NAN, factor = NAN;
    mm2_status status = read_number(d, rope, "rope_theta", "rope_parameters.rope_theta", &theta);
    if (!status)
        status = read_number(d, d->root, "rope_theta", "rope_theta", &theta);
    if (!status && isnan(theta))
        status = mm2_fail(MM2_E_FORMAT, "%s: rope_theta is missing", d->path);
    if (!status)
        status = read_number(d, rope, "partial_rotary_factor",
                             "rope_parameters.partial_rotary_factor", &factor);
    if (!status)
        status = read_number(d, d->root, "partial_rotary_factor", "partial_rotary_factor", &factor);
    if (status)
        return status;
    if (!isnan(factor) && !(factor > 0 && factor <= 1))
        return mm2_fail(MM2_E_FORMAT, "%s: partial_rotary_factor is %g, expected above 0, up to 1",
                        d->path, factor);
    c->rope_theta = (float)theta;
    /* transformers truncates too; without either field it rotates the whole head. */
    int32_t rotary = isnan(factor) ? c->head_dim : (int32_t)(c->head_dim * factor);
    c->rotary_dim = rotary;
    if (!mm2_value_field(d->root, "rotary_dim"))
        return MM2_OK;
    status = need_int(d, "rotary_dim", &c->rotary_dim);
    if (!status && !isnan(factor) && c->rotary_dim != rotary)
        status = mm2_fail(MM2_E_FORMAT,
                          "%s: rotary_dim is %d but partial_rotary_factor %g of head_dim %d is %d",
                          d->path, c->rotary_dim, factor, c->head_dim, rotary);
    return status;
}

/* Everything that must be as this engine computes it. */
static mm2_status check_family(const mm2_document *d)
{
    const mm2_value *type = mm2_value_field(d->root, "model_type");
    if (!type)
        return mm2_fail(MM2_E_FORMAT, "%s: model_type is missing", d->path);
    mm2_status status = expect_string(d, "model_type", "minimax_m2");
    if (!status)
        status = expect_string(d, "hidden_act", "silu");
    if (!status)
        status = expect_string(d, "scoring_func", "sigmoid");
    if (!status)
        status = expect_string(d, "qk_norm_type", "per_layer");
    if (status)
        return status;

    int64_t number;
    const mm2_value *kinds = mm2_value_field(d->root, "attn_type_list");
    if (kinds && !mm2_value_is(kinds, MM2_VALUE_ARRAY))
        return wrong_kind(d, "attn_type_list", "an array", kinds);
    for (const mm2_value *kind = NULL; (kind = mm2_value_next(kinds, kind));)
        if (!mm2_value_integer(kind, &number) || number != 1)
            return unsupported(d, "an item of attn_type_list", kind, "1 (full attention)");
    const mm2_value *shared = mm2_value_field(d->root, "shared_intermediate_size");
    if (shared && (!mm2_value_integer(shared, &number) || number))
        return unsupported(d, "shared_intermediate_size", shared, "0 (no shared expert)");
    int32_t tied = 0;
    status = read_flag(d, "tie_word_embeddings", &tied);
    if (!status && tied)
        status = unsupported(d, "tie_word_embeddings",
                             mm2_value_field(d->root, "tie_word_embeddings"), "false");
    return status;
}

static mm2_status check_quantization(const mm2_document *d)
{
    const mm2_value *q = mm2_value_field(d->root, "quantization_config");
    if (!q)
        return MM2_OK;
    if (!mm2_value_is(q, MM2_VALUE_OBJECT))
        return wrong_kind(d, "quantization_config", "an object", q);
    const mm2_value *method = mm2_value_field(q, "quant_method"),
                    *block = mm2_value_field(q, "weight_block_size");
    if (!method)
        return mm2_fail(MM2_E_FORMAT, "%s: quantization_config.quant_method is missing", d->path);
    if (!mm2_value_says(method, "fp8"))
        return unsupported(d, "quantization_config.quant_method", method,
                           "fp8 here; other quantisations come as GGUF");
    int64_t rows, columns;
    if (mm2_value_count(block) != 2 || !mm2_value_integer(mm2_value_item(block, 0), &rows) ||
        !mm2_value_integer(mm2_value_item(block, 1), &columns) || rows != 128 || columns != 128)
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: quantization_config.weight_block_size is not [128, 128], the only one "
                        "this build supports",
                        d->path);
    return MM2_OK;
}

static mm2_status read_config(mm2_checkpoint *c, const mm2_document *d)
{
    mm2_config *k = &c->config;
    *k = (mm2_config){.use_qk_norm = 1, .use_routing_bias = 1};
    mm2_status status = check_family(d);
    for (int i = 0; !status && i < SIZES; i++)
        status = need_int(d, sizes[i].name, size_of(k, &sizes[i]));
    if (!status)
        status = read_rope(d, k);
    double eps = NAN, scaling = 1.0;
    if (!status)
        status = read_number(d, d->root, "rms_norm_eps", "rms_norm_eps", &eps);
    if (!status && isnan(eps))
        status = mm2_fail(MM2_E_FORMAT, "%s: rms_norm_eps is missing", d->path);
    if (!status)
        status =
            read_number(d, d->root, "routed_scaling_factor", "routed_scaling_factor", &scaling);
    if (!status)
        status = read_flag(d, "use_qk_norm", &k->use_qk_norm);
    if (!status)
        status = read_flag(d, "use_routing_bias", &k->use_routing_bias);
    if (status)
        return status;
    k->rms_norm_eps = (float)eps;
    k->routed_scaling_factor = (float)scaling;
    status = mm2_config_check(k, d->path);
    const mm2_value *kinds = mm2_value_field(d->root, "attn_type_list");
    if (!status && kinds && mm2_value_count(kinds) != (uint32_t)k->num_hidden_layers)
        status = mm2_fail(MM2_E_FORMAT,
                          "%s: attn_type_list has %u items, expected num_hidden_layers (%d)",
                          d->path, mm2_value_count(kinds), k->num_hidden_layers);
    if (!status)
        status = check_quantization(d);
    if (!status)
        mm2_format(c->architecture, sizeof c->architecture, "%s",
                   mm2_value_text(mm2_value_field(d->root, "model_type")));
    return status;
}

/* ---- generation_config.json ---- */

/* An id, or the first of a list of ids. Leaves *out alone if the field is absent. */
static mm2_status read_id(const mm2_document *d, const char *name, int32_t *out)
{
    const mm2_value *value = mm2_value_field(d->root, name);
    if (mm2_value_is(value, MM2_VALUE_ARRAY))
        value = mm2_value_item(value, 0);
    if (!value)
        return MM2_OK;
    int64_t id;
    if (!mm2_value_integer(value, &id) || id < 0 || id >= 1 << 20)
        return mm2_fail(MM2_E_FORMAT, "%s: %s must be a token id or a list of them", d->path, name);
    *out = (int32_t)id;
    return MM2_OK;
}

static mm2_status read_generation(mm2_checkpoint *c, const mm2_document *d)
{
    double temperature = c->hints.temperature, top_p = c->hints.top_p, top_k = c->hints.top_k;
    mm2_status status = read_number(d, d->root, "temperature", "temperature", &temperature);
    if (!status)
        status = read_number(d, d->root, "top_p", "top_p", &top_p);
    if (!status)
        status = read_number(d, d->root, "top_k", "top_k", &top_k);
    if (!status && !(temperature >= 0 && temperature <= 1e6))
        status = mm2_fail(MM2_E_FORMAT, "%s: temperature is %g, expected 0 or more", d->path,
                          temperature);
    if (!status && !(top_p >= 0 && top_p <= 1))
        status = mm2_fail(MM2_E_FORMAT, "%s: top_p is %g, expected 0 to 1", d->path, top_p);
    if (!status && !(top_k >= 0 && top_k <= 1 << 20))
        status =
            mm2_fail(MM2_E_FORMAT, "%s: top_k is %g, expected 0 to %d", d->path, top_k, 1 << 20);
    if (!status)
        status = read_id(d, "bos_token_id", &c->bos);
    if (!status)
        status = read_id(d, "eos_token_id", &c->eos);
    if (!status)
        c->hints = (mm2_sampling_hints){(float)temperature, (float)top_p, (int32_t)top_k};
    return status;
}

mm2_status mm2_generation_read(mm2_checkpoint *c, const char *directory)
{
    mm2_document d;
    mm2_status status = mm2_document_open(&d, directory, "generation_config.json");
    if (!status && d.root)
        status = read_generation(c, &d);
    mm2_document_close(&d);
    return status;
}

/* ---- README.md ---- */

/* The value of "key: value" at a line's beginning within the front matter, cleaned into out. */
static void front_matter(char *out, int32_t cap, const char *text, const char *end, const char *key)
{
    size_t length = strlen(key);
    out[0] = 0;
    for (int line = 0; text < end; line++) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        stop = stop ? stop : end;
        int is_fence = stop - text >= 3 && !memcmp(text, "---", 3);
        if (is_fence != (line == 0))
            return; /* no front matter, or its end */
        if ((size_t)(stop - text) > length && !memcmp(text, key, length) && text[length] == ':') {
            text += length + 1;
            while (text < stop && (*text == ' ' || *text == '"' || *text == '\''))
                text++;
            while (text < stop &&
                   (stop[-1] == ' ' || stop[-1] == '\r' || stop[-1] == '"' || stop[-1] == '\''))
                stop--;
            mm2_text_clean(out, cap, text, stop - text);
            return;
        }
        text = stop + 1;
    }
}

/* The model card says the licence; a missing or unreadable card says nothing, because nothing depends
 * on it. */
static mm2_status read_license(mm2_checkpoint *c, const char *directory)
{
    char *path;
    mm2_file f;
    mm2_status status = mm2_file_join(&path, directory, "README.md", "file");
    if (status)
        return status;
    int32_t exists = mm2_file_exists(path);
    status = exists > 0 ? mm2_file_open(&f, path, 0) : exists;
    if (exists > 0 && !status) {
        const char *text = (const char *)f.data, *end = text + (f.size < 65536 ? f.size : 65536);
        front_matter(c->license, sizeof c->license, text, end, "license");
        if (!c->license[0] || !strcmp(c->license, "other")) {
            char name[sizeof c->license];
            front_matter(name, sizeof name, text, end, "license_name");
            if (name[0])
                memcpy(c->license, name, sizeof name);
        }
        mm2_file_close(&f);
    }
    free(path);
    return status == MM2_E_NOMEM ? status : MM2_OK;
}

mm2_status mm2_config_read(mm2_checkpoint *c, const char *directory)
{
    mm2_document d;
    mm2_status status = mm2_document_open(&d, directory, "config.json");
    if (!status && !d.root)
        status = mm2_fail(MM2_E_IO, "%s: no such file", d.path);
    if (!status)
        status = read_config(c, &d);
    mm2_document_close(&d);
    if (status)
        return status;
    status = mm2_generation_read(c, directory);
    return status ? status : read_license(c, directory);
}
