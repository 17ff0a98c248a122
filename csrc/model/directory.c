/* The small documents beside safetensors: config.json, generation_config.json and the front matter
 * of README.md.
 *
 * config.json: which keys count and what they must say is the family's (model/family.h). What is
 * read here has rules of its own, those of transformers. The rotation: a value inside rope_scaling,
 * or else inside rope_parameters, goes before the one beside the other fields; rotary_dim, the
 * vendor's spelling, must agree with partial_rotary_factor. Quantisation: the tensors say what they
 * are (model/quantised.c); here only those methods are refused that could change what a tensor
 * means without showing in it.
 *
 * generation_config.json holds hints and ids. A hint out of range, or of another kind, is left out;
 * an end token that is no id is none. Its end tokens go before those of config.json. */
#include "model/directory.h"

#include "base/status.h"
#include "model/config.h"
#include "model/document.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- A document as a source of facts ---- */

/* The value at a path of keys, joined by dots. */
static const mm2_value *find(const mm2_value *root, const char *path)
{
    char key[64];
    const mm2_value *v = root;
    while (v && *path) {
        size_t length = strcspn(path, ".");
        mm2_format(key, sizeof key, "%.*s", (int)length, path);
        v = mm2_value_field(v, key);
        path += length + (path[length] == '.');
    }
    return v;
}

static void get(const mm2_source *s, const char *key, int32_t item, mm2_given *out)
{
    const mm2_document *d = s->data;
    const mm2_value *v = find(d->root, key);
    if (v && item >= 0)
        v = mm2_value_item(v, (uint32_t)item);
    int32_t flag;
    *out = (mm2_given){.what = mm2_value_kind(v)};
    mm2_format(out->text, sizeof out->text, "%s", out->what);
    if (!v || mm2_value_is(v, MM2_VALUE_NULL))
        return;
    out->kind = MM2_GIVEN_OTHER;
    if (v->text)
        mm2_format(out->text, sizeof out->text, "%.*s",
                   (int)(v->size < INT32_MAX ? v->size : INT32_MAX), v->text);
    if (mm2_value_is(v, MM2_VALUE_NUMBER)) {
        out->kind = MM2_GIVEN_NUMBER;
        out->is_whole = mm2_value_is_whole(v);
        out->number = *v->text == '-' ? -INFINITY : INFINITY; /* unless it fits */
        out->whole = *v->text == '-' ? INT64_MIN : INT64_MAX;
        mm2_value_number(v, &out->number);
        mm2_value_integer(v, &out->whole);
    } else if (mm2_value_flag(v, &flag)) {
        out->kind = MM2_GIVEN_FLAG;
        out->number = flag;
    } else if (mm2_value_is(v, MM2_VALUE_STRING)) {
        out->kind = MM2_GIVEN_TEXT;
    } else if (mm2_value_is(v, MM2_VALUE_ARRAY)) {
        out->kind = MM2_GIVEN_LIST;
        out->count = mm2_value_count(v);
    }
}

static mm2_source source_of(const mm2_document *d)
{
    return (mm2_source){.where = d->path, .prefix = "", .data = d, .get = get};
}

/* ---- config.json ---- */

/* Leaves *out alone if there is no such key. */
static mm2_status read_number(const mm2_source *s, const char *key, double *out)
{
    mm2_given g;
    get(s, key, -1, &g);
    if (g.kind == MM2_GIVEN_NOTHING)
        return MM2_OK;
    if (g.kind != MM2_GIVEN_NUMBER)
        return mm2_given_wrong(s, key, "a number", &g);
    if (!isfinite(g.number))
        return mm2_fail(MM2_E_FORMAT, "%s: %s is %s: out of range", s->where, key, g.text);
    *out = g.number;
    return MM2_OK;
}

/* The number of `key` inside the object `inner` (may be NULL), or else beside it. */
static mm2_status read_rotary(const mm2_source *s, const char *inner, const char *key, double *out)
{
    char path[64];
    mm2_status status = MM2_OK;
    if (inner) {
        mm2_format(path, sizeof path, "%s.%s", inner, key);
        status = read_number(s, path, out);
    }
    return status || !isnan(*out) ? status : read_number(s, key, out);
}

/* Sets *inner to the object that counts: the first that is not empty; NULL if there is none. */
static mm2_status check_rotation(const mm2_source *s, const char **inner)
{
    static const char *const names[] = {"rope_scaling", "rope_parameters"};
    *inner = NULL;
    for (int i = 0; i < 2; i++) {
        const mm2_value *v = find(((const mm2_document *)s->data)->root, names[i]);
        char path[64];
        mm2_given g;
        get(s, names[i], -1, &g);
        if (v && !mm2_value_is(v, MM2_VALUE_OBJECT))
            return mm2_given_wrong(s, names[i], "an object", &g);
        if (v && v->size && !*inner)
            *inner = names[i];
        mm2_format(path, sizeof path, "%s.%s", names[i],
                   mm2_value_field(v, "rope_type") ? "rope_type" : "type");
        get(s, path, -1, &g);
        if (g.kind != MM2_GIVEN_NOTHING && strcmp(g.text, "default"))
            return mm2_given_unsupported(s, path, &g, "default");
        mm2_format(path, sizeof path, "%s.full_attention", names[i]);
        get(s, path, -1, &g);
        if (g.kind != MM2_GIVEN_NOTHING)
            return mm2_given_unsupported(s, path, &g, "one rotation for all layers");
    }
    return MM2_OK;
}

static mm2_status read_rope(const mm2_source *s, mm2_config *c)
{
    double theta = NAN, factor = NAN, rotary = NAN;
    const char *inner;
    mm2_status status = check_rotation(s, &inner);
    if (!status)
        status = read_rotary(s, inner, "rope_theta", &theta);
    if (!status && isnan(theta))
        status = mm2_fail(MM2_E_FORMAT, "%s: rope_theta is missing", s->where);
    if (!status)
        status = read_rotary(s, inner, "partial_rotary_factor", &factor);
    if (!status)
        status = read_number(s, "rotary_dim", &rotary);
    if (status)
        return status;
    if (!isnan(factor) && !(factor > 0 && factor <= 1))
        return mm2_fail(MM2_E_FORMAT, "%s: partial_rotary_factor is %g, expected above 0, up to 1",
                        s->where, factor);
    c->rope_theta = (float)theta;
    /* transformers truncates too; without any of these fields it rotates the whole head. */
    int32_t rotated = isnan(factor) ? c->head_dim : (int32_t)(c->head_dim * factor);
    c->rotary_dim = rotated;
    if (isnan(rotary))
        return MM2_OK;
    if (!(rotary >= 0 && rotary <= c->head_dim) || rotary != (int32_t)rotary)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: rotary_dim is %g, expected an even number from 2 to head_dim (%d)",
                        s->where, rotary, c->head_dim);
    c->rotary_dim = (int32_t)rotary;
    return isnan(factor) || c->rotary_dim == rotated
               ? MM2_OK
               : mm2_fail(MM2_E_FORMAT,
                          "%s: rotary_dim is %d but partial_rotary_factor %g of head_dim %d is %d",
                          s->where, c->rotary_dim, factor, c->head_dim, rotated);
}

#define INSTEAD "download an FP8, NVFP4 or compressed-tensors release or a GGUF file instead"

/* Methods whose tensors say all there is to know, or are refused by their own names. */
static const char *const methods[] = {"fp8",      "fbgemm_fp8", "compressed-tensors",
                                      "modelopt", "quark",      "gptq",
                                      "awq",      "auto-round", "mxfp4"};

static int is_known(const char *method)
{
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (!strcmp(method, methods[i]))
            return 1;
    return !strncmp(method, "modelopt", 8); /* modelopt_fp4, ... */
}

/* The rows and columns of one FP8 scale, if they are given, must be those that the shapes of scales
 * are read by. */
static mm2_status check_blocks(const mm2_source *s)
{
    mm2_given g, rows, columns;
    get(s, "quantization_config.weight_block_size", -1, &g);
    get(s, "quantization_config.weight_block_size", 0, &rows);
    get(s, "quantization_config.weight_block_size", 1, &columns);
    if (g.kind != MM2_GIVEN_NOTHING &&
        (g.kind != MM2_GIVEN_LIST || g.count != 2 || rows.number != 128 || columns.number != 128))
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: quantization_config.weight_block_size is not [128, 128], the only one "
                        "this build supports",
                        s->where);
    return MM2_OK;
}

static mm2_status check_quantization(const mm2_source *s)
{
    static const char *const names[] = {"quantization_config", "quantization"};
    const mm2_value *root = ((const mm2_document *)s->data)->root;
    const mm2_value *q = find(root, names[0]), *mlx = q ? q : find(root, names[1]);
    mm2_given g;
    get(s, "quantization_config.quant_method", -1, &g);
    if (g.kind == MM2_GIVEN_NOTHING && mm2_value_field(mlx, "group_size"))
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: %s has a group_size but no quant_method: this is an MLX checkpoint, "
                        "packed for Apple's framework; " INSTEAD,
                        s->where, q ? names[0] : names[1]);
    if (!q)
        return MM2_OK;
    if (!mm2_value_is(q, MM2_VALUE_OBJECT)) {
        get(s, names[0], -1, &g);
        return mm2_given_wrong(s, names[0], "an object", &g);
    }
    if (g.kind == MM2_GIVEN_NOTHING)
        return mm2_fail(MM2_E_FORMAT, "%s: quantization_config.quant_method is missing", s->where);
    if (!is_known(g.text))
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: quantization_config.quant_method is %s, which this build does not "
                        "read; " INSTEAD,
                        s->where, g.text);
    const mm2_value *transforms = find(root, "quantization_config.transform_config.config_groups");
    if (transforms && transforms->size)
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: quantization_config.transform_config rotates weights; this build "
                        "multiplies them as they are: " INSTEAD,
                        s->where);
    return check_blocks(s);
}

/* Directories that look like safetensors checkpoints, and say in another file what they are. */
static mm2_status check_others(const char *directory)
{
    char *path;
    mm2_status status = mm2_file_join(&path, directory, "jang_config.json", "file");
    if (status)
        return status;
    if (mm2_file_exists(path) > 0)
        status = mm2_fail(MM2_E_UNSUPPORTED,
                          "%s: this is a JANG checkpoint, packed for Apple's "
                          "framework; " INSTEAD,
                          path);
    free(path);
    return status;
}

/* The family by model_type. Some copies of this one quantised by AWQ call themselves mixtral. */
static mm2_status find_family(mm2_checkpoint *c, const mm2_source *s)
{
    mm2_given type, class, scoring;
    get(s, "model_type", -1, &type);
    get(s, "architectures", 0, &class);
    get(s, "scoring_func", -1, &scoring);
    if (type.kind == MM2_GIVEN_NOTHING)
        return mm2_fail(MM2_E_FORMAT, "%s: model_type is missing", s->where);
    if (!strcmp(type.text, "mixtral") &&
        (!strncmp(class.text, "MiniMaxM2", 9) || !strcmp(scoring.text, "sigmoid")))
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: model_type is mixtral, but the rest is of MiniMax-M2: a copy that was "
                        "labelled so for AWQ; run \"minimax2 convert IN OUT\" once, which corrects "
                        "the label and the layout",
                        s->where);
    c->family = mm2_family_of_model_type(type.text, s->where);
    return c->family ? MM2_OK : MM2_E_UNSUPPORTED;
}

static mm2_status read_config(mm2_checkpoint *c, const mm2_source *s)
{
    mm2_status status = find_family(c, s);
    if (!status)
        status = mm2_config_read(&c->config, c->family, s);
    if (!status)
        status = read_rope(s, &c->config);
    if (!status)
        status = mm2_config_check(&c->config, s->where);
    if (!status)
        status = check_quantization(s);
    if (!status)
        mm2_format(c->architecture, sizeof c->architecture, "%s", c->family->model_type);
    return status;
}

/* ---- Ids and hints ---- */

/* eos_token_id: an id, or a list of them. */
static mm2_status read_ends(mm2_checkpoint *c, const mm2_source *s)
{
    mm2_given g;
    get(s, "eos_token_id", -1, &g);
    if (g.kind != MM2_GIVEN_LIST)
        return g.is_whole ? mm2_checkpoint_end(c, g.whole, s->where) : MM2_OK;
    mm2_status status = MM2_OK;
    for (int32_t i = 0; !status && i < g.count && i <= MM2_MAX_ENDS; i++) {
        mm2_given id;
        get(s, "eos_token_id", i, &id);
        status = id.is_whole ? mm2_checkpoint_end(c, id.whole, s->where) : MM2_OK;
    }
    return status;
}

static mm2_status read_generation(mm2_checkpoint *c, const mm2_source *s)
{
    float top_k = (float)c->hints.top_k;
    mm2_given_hint(s, "temperature", 0, 1e6, &c->hints.temperature);
    mm2_given_hint(s, "top_p", 0, 1, &c->hints.top_p);
    mm2_given_hint(s, "top_k", 0, 1 << 20, &top_k);
    c->hints.top_k = (int32_t)top_k;
    mm2_given bos;
    get(s, "bos_token_id", -1, &bos);
    if (bos.is_whole && bos.whole >= 0 && bos.whole < MM2_MAX_IDS)
        c->bos = (int32_t)bos.whole;
    return read_ends(c, s);
}

mm2_status mm2_directory_generation(mm2_checkpoint *c, const char *directory)
{
    mm2_document d;
    mm2_status status = mm2_document_open(&d, directory, "generation_config.json");
    if (!status && d.root) {
        mm2_source s = source_of(&d);
        status = read_generation(c, &s);
    }
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

/* The model card says the licence; a missing or unreadable card says nothing, because nothing
 * depends on it. */
static mm2_status read_license(mm2_checkpoint *c, const char *directory)
{
    char *path;
    mm2_file f;
    mm2_status status = mm2_file_join(&path, directory, "README.md", "file");
    if (status)
        return status;
    if (mm2_file_exists(path) > 0 && !(status = mm2_file_open(&f, path, 0))) {
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

mm2_status mm2_directory_read(mm2_checkpoint *c, const char *directory)
{
    mm2_document d;
    mm2_status status = mm2_document_open(&d, directory, "config.json");
    if (!status && !d.root)
        status = mm2_fail(MM2_E_IO, "%s: no such file", d.path);
    if (!status)
        status = check_others(directory);
    mm2_source s = source_of(&d);
    if (!status)
        status = read_config(c, &s);
    if (!status)
        status = mm2_directory_generation(c, directory);
    if (!status && !c->end_count)
        status = read_ends(c, &s);
    mm2_document_close(&d);
    return status ? status : read_license(c, directory);
}
