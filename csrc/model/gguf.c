/* A GGUF checkpoint: one file, or the parts of a split set, to entries and configuration.
 *
 * Any part opens the set: its name gives the number of parts and the others' names, and the split.*
 * keys of every part must agree with them. Metadata is that of the first part.
 *
 * The configuration comes from the minimax-m2.* keys under the names that llama.cpp gives them. Two
 * facts have no key and are read off the tensors: whether queries and keys are normalised and
 * whether the router has a bias; a third, the vocabulary's size, is the height of the embedding.
 *
 * Extents are checked per file: every tensor ends within it, and none overlap. */
#include "model/gguf.h"

#include "base/json.h"
#include "base/status.h"
#include "model/checkpoint.h"
#include "tensor/dtype.h"

#include <stdlib.h>
#include <string.h>

#define ARCHITECTURE "minimax-m2"

int32_t mm2_gguf_split_name(const char *name, int32_t *part, int32_t *count)
{
    static const char form[] = "-#####-of-#####.gguf"; /* # is a digit */
    size_t length = strlen(name), tail = sizeof form - 1;
    if (length <= tail)
        return 0;
    const char *at = name + length - tail;
    int32_t numbers[2] = {0, 0};
    for (size_t i = 0; i < tail; i++) {
        int is_digit = at[i] >= '0' && at[i] <= '9';
        if (form[i] == '#' ? !is_digit : at[i] != form[i])
            return 0;
        if (is_digit)
            numbers[i > 6] = numbers[i > 6] * 10 + (at[i] - '0');
    }
    if (numbers[0] < 1 || numbers[0] > numbers[1])
        return 0;
    *part = numbers[0];
    *count = numbers[1];
    return (int32_t)(length - tail);
}

/* ---- Parts ---- */

/* split.count of a file, 1 if it is no part; its number among them, from 0; and the tensors of all
 * parts together (-1: not said). */
typedef struct split_facts {
    int64_t count, number, tensors;
} split_facts;

static mm2_status read_split(const mm2_gguf *g, split_facts *s)
{
    *s = (split_facts){.count = 1, .number = 0, .tensors = -1};
    int32_t found = mm2_gguf_integer(g, "split.count", &s->count);
    if (found > 0)
        found = mm2_gguf_integer(g, "split.no", &s->number);
    if (found > 0)
        found = mm2_gguf_integer(g, "split.tensors.count", &s->tensors);
    if (found < 0)
        return found;
    if (s->count == 0) /* some writers say 0 for a file that is whole */
        s->count = 1;
    if (s->count < 1 || s->count > MM2_MAX_SHARDS || s->number < 0 || s->number >= s->count)
        return mm2_fail(MM2_E_FORMAT, "%s: split.no is %lld of split.count %lld, expected 0 to %d",
                        g->file->path, (long long)s->number, (long long)s->count,
                        MM2_MAX_SHARDS - 1);
    return MM2_OK;
}

/* The path of part `number` (from 1) beside `path`, which ends with a split name of this stem. */
static mm2_status part_path(char **out, const char *path, int32_t stem, int32_t number,
                            int32_t count)
{
    char tail[64];
    char digits[2][6];
    int32_t values[2] = {number, count};
    for (int k = 0; k < 2; k++) {
        for (int i = 4; i >= 0; i--, values[k] /= 10)
            digits[k][i] = (char)('0' + values[k] % 10);
        digits[k][5] = 0;
    }
    int length = mm2_format(tail, sizeof tail, "-%s-of-%s.gguf", digits[0], digits[1]);
    *out = malloc((size_t)stem + (size_t)length + 1);
    if (!*out)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    memcpy(*out, path, (size_t)stem);
    memcpy(*out + stem, tail, (size_t)length + 1);
    return MM2_OK;
}

typedef struct reader {
    mm2_checkpoint *c;
    mm2_gguf *parts; /* one per file of the checkpoint */
    uint32_t flags;
} reader;

static mm2_status open_part(reader *r, const char *path, int32_t number, split_facts *split)
{
    mm2_status status = mm2_file_open(&r->c->files[number], path, (r->flags & MM2_WRITABLE) != 0);
    if (status)
        return status;
    r->c->file_count = number + 1;
    status = mm2_gguf_parse(&r->parts[number], &r->c->files[number]);
    return status ? status : read_split(&r->parts[number], split);
}

static mm2_status open_set(reader *r, const char *path, int64_t count)
{
    int32_t part, named_count;
    int32_t stem = mm2_gguf_split_name(path, &part, &named_count);
    if (!stem || named_count != count)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: is one of %lld parts, but its name does not end in "
                        "-NNNNN-of-NNNNN.gguf with that count: give the parts their names back",
                        path, (long long)count);
    int64_t expected = -1, found = 0;
    for (int32_t i = 0; i < count; i++) {
        char *name;
        split_facts split;
        mm2_status status = part_path(&name, path, stem, i + 1, (int32_t)count);
        if (!status)
            status = open_part(r, name, i, &split);
        if (!status && (split.count != count || split.number != i))
            status = mm2_fail(MM2_E_FORMAT,
                              "%s: says it is part %lld of %lld, expected %d of %lld: it belongs "
                              "elsewhere",
                              name, (long long)split.number + 1, (long long)split.count, i + 1,
                              (long long)count);
        free(name);
        if (status)
            return status;
        expected = split.tensors >= 0 ? split.tensors : expected;
        found += r->parts[i].info_count;
    }
    if (expected >= 0 && expected != found)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: the parts hold %lld tensors together, split.tensors.count says %lld",
                        path, (long long)found, (long long)expected);
    return MM2_OK;
}

static mm2_status open_files(reader *r, const char *path)
{
    mm2_file file;
    mm2_gguf header;
    split_facts split;
    mm2_status status = mm2_file_open(&file, path, 0);
    if (status)
        return status;
    status = mm2_gguf_parse(&header, &file);
    if (!status)
        status = read_split(&header, &split);
    mm2_gguf_free(&header);
    mm2_file_close(&file);
    if (status)
        return status;
    r->c->files = calloc((size_t)split.count, sizeof *r->c->files);
    r->parts = calloc((size_t)split.count, sizeof *r->parts);
    if (!r->c->files || !r->parts)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    return split.count == 1 ? open_part(r, path, 0, &split) : open_set(r, path, split.count);
}

/* ---- Tensors ---- */

static int by_offset(const void *a, const void *b)
{
    const mm2_entry *x = *(const mm2_entry *const *)a, *y = *(const mm2_entry *const *)b;
    return x->view.data < y->view.data ? -1 : x->view.data > y->view.data;
}

/* Entries [first, end) are those of one file. */
static mm2_status check_overlap(const mm2_checkpoint *c, int32_t first)
{
    int32_t count = c->entry_count - first;
    const mm2_entry **sorted = malloc(((size_t)count + 1) * sizeof *sorted);
    if (!sorted)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for %d tensors", c->path, count);
    for (int32_t i = 0; i < count; i++)
        sorted[i] = &c->entries[first + i];
    qsort(sorted, (size_t)count, sizeof *sorted, by_offset);
    mm2_status status = MM2_OK;
    for (int32_t i = 1; !status && i < count; i++) {
        const mm2_entry *a = sorted[i - 1], *b = sorted[i];
        if ((const uint8_t *)b->view.data - (const uint8_t *)a->view.data < a->view.nbytes)
            status = mm2_fail(MM2_E_FORMAT, "%s: tensors \"%s\" and \"%s\" overlap", a->file,
                              a->name, b->name);
    }
    free(sorted);
    return status;
}

static mm2_status add_tensors(reader *r, const mm2_gguf *g, char **names)
{
    mm2_checkpoint *c = r->c;
    int32_t first = c->entry_count;
    for (int32_t i = 0; i < g->info_count; i++) {
        const mm2_gguf_info *t = &g->infos[i];
        memcpy(*names, t->name, t->name_length);
        (*names)[t->name_length] = 0;
        mm2_entry *e;
        mm2_status status = mm2_checkpoint_add(c, *names, g->file->path, &e);
        if (!status)
            status = mm2_entry_shape(e, t->dtype, t->ndim, t->shape);
        if (status)
            return status;
        if (e->view.nbytes > g->file->size - t->offset)
            return mm2_fail(MM2_E_FORMAT,
                            "%s: tensor \"%s\" needs %lld bytes at byte %lld, the file has %lld: "
                            "is it cut short?",
                            g->file->path, e->name, (long long)e->view.nbytes, (long long)t->offset,
                            (long long)g->file->size);
        e->view.data = g->file->data + t->offset;
        e->view.flags = r->flags & MM2_WRITABLE ? 0 : MM2_READ_ONLY;
        *names += t->name_length + 1;
    }
    return check_overlap(c, first);
}

static mm2_status add_all_tensors(reader *r)
{
    mm2_checkpoint *c = r->c;
    size_t bytes = 1;
    uint32_t count = 0;
    for (int32_t i = 0; i < c->file_count; i++) {
        count += (uint32_t)r->parts[i].info_count;
        for (int32_t k = 0; k < r->parts[i].info_count; k++)
            bytes += r->parts[i].infos[k].name_length + 1;
    }
    char *names = c->names = malloc(bytes);
    if (!names || mm2_strmap_init(&c->by_name, count < MM2_MAX_TENSORS ? count : MM2_MAX_TENSORS))
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for its tensors' names", c->path);
    mm2_status status = MM2_OK;
    for (int32_t i = 0; !status && i < c->file_count; i++)
        status = add_tensors(r, &r->parts[i], &names);
    return status;
}

/* ---- Configuration ---- */

/* An integer key that must be there and fit. */
static mm2_status need_int(const mm2_gguf *g, const char *key, int32_t *out)
{
    int64_t value;
    int32_t found = mm2_gguf_integer(g, key, &value);
    if (found < 0)
        return found;
    if (!found)
        return mm2_fail(MM2_E_FORMAT, "%s: metadata key %s is missing", g->file->path, key);
    if (value < 0 || value > INT32_MAX)
        return mm2_fail(MM2_E_FORMAT, "%s: %s is %lld: out of range", g->file->path, key,
                        (long long)value);
    *out = (int32_t)value;
    return MM2_OK;
}

static mm2_status need_float(const mm2_gguf *g, const char *key, float *out)
{
    double value;
    int32_t found = mm2_gguf_number(g, key, &value);
    if (!found)
        return mm2_fail(MM2_E_FORMAT, "%s: metadata key %s is missing", g->file->path, key);
    if (found > 0)
        *out = (float)value;
    return found < 0 ? found : MM2_OK;
}

/* An integer key that, if it is there, must be this value: another is a model of another kind. */
static mm2_status expect_int(const mm2_gguf *g, const char *key, int64_t expected)
{
    int64_t value = expected;
    int32_t found = mm2_gguf_integer(g, key, &value);
    if (found > 0 && value != expected)
        return mm2_fail(MM2_E_UNSUPPORTED, "%s: %s is %lld; this build supports %lld",
                        g->file->path, key, (long long)value, (long long)expected);
    return found < 0 ? found : MM2_OK;
}

static mm2_status check_family(const mm2_gguf *g)
{
    const char *text;
    int64_t length;
    char clean[64];
    int32_t found = mm2_gguf_string(g, "general.architecture", &text, &length);
    if (found < 0)
        return found;
    if (!found)
        return mm2_fail(MM2_E_FORMAT, "%s: metadata key general.architecture is missing",
                        g->file->path);
    mm2_text_clean(clean, sizeof clean, text, length);
    if (strcmp(clean, ARCHITECTURE))
        return mm2_fail(MM2_E_UNSUPPORTED, "%s: general.architecture is %s; this build supports %s",
                        g->file->path, clean, ARCHITECTURE);
    found = mm2_gguf_string(g, ARCHITECTURE ".rope.scaling.type", &text, &length);
    if (found < 0)
        return found;
    if (found && (length != 4 || memcmp(text, "none", 4))) {
        mm2_text_clean(clean, sizeof clean, text, length);
        return mm2_fail(MM2_E_UNSUPPORTED, "%s: %s is %s; this build supports none", g->file->path,
                        ARCHITECTURE ".rope.scaling.type", clean);
    }
    int32_t normalised = 1;
    found = mm2_gguf_flag(g, ARCHITECTURE ".expert_weights_norm", &normalised);
    if (found < 0)
        return found;
    if (!normalised)
        return mm2_fail(MM2_E_UNSUPPORTED, "%s: %s is false; this build supports true",
                        g->file->path, ARCHITECTURE ".expert_weights_norm");
    mm2_status status = expect_int(g, ARCHITECTURE ".expert_gating_func", 2); /* sigmoid */
    if (!status)
        status = expect_int(g, ARCHITECTURE ".expert_shared_count", 0);
    if (!status)
        status = expect_int(g, ARCHITECTURE ".leading_dense_block_count", 0);
    return status;
}

static mm2_status read_sizes(const mm2_gguf *g, mm2_config *k)
{
    const struct {
        const char *key;
        int32_t *out;
    } sizes[] = {
        {ARCHITECTURE ".block_count", &k->num_hidden_layers},
        {ARCHITECTURE ".embedding_length", &k->hidden_size},
        {ARCHITECTURE ".attention.head_count", &k->num_attention_heads},
        {ARCHITECTURE ".attention.head_count_kv", &k->num_key_value_heads},
        {ARCHITECTURE ".attention.key_length", &k->head_dim},
        {ARCHITECTURE ".expert_count", &k->num_local_experts},
        {ARCHITECTURE ".expert_used_count", &k->num_experts_per_tok},
        {ARCHITECTURE ".context_length", &k->max_position_embeddings},
    };
    mm2_status status = MM2_OK;
    for (size_t i = 0; !status && i < sizeof sizes / sizeof *sizes; i++)
        status = need_int(g, sizes[i].key, sizes[i].out);
    if (!status)
        status = need_int(g,
                          mm2_gguf_find(g, ARCHITECTURE ".expert_feed_forward_length")
                              ? ARCHITECTURE ".expert_feed_forward_length"
                              : ARCHITECTURE ".feed_forward_length",
                          &k->intermediate_size);
    if (!status)
        status = expect_int(g, ARCHITECTURE ".attention.value_length", k->head_dim);
    k->rotary_dim = k->head_dim;
    if (!status && mm2_gguf_find(g, ARCHITECTURE ".rope.dimension_count"))
        status = need_int(g, ARCHITECTURE ".rope.dimension_count", &k->rotary_dim);
    return status;
}

/* What no key says. */
static mm2_status read_off_tensors(mm2_checkpoint *c, const mm2_gguf *g)
{
    mm2_config *k = &c->config;
    const mm2_entry *embed = mm2_checkpoint_find(c, "token_embd.weight");
    if (!embed || embed->view.ndim != 2 || embed->view.shape[0] > 1 << 20)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: tensor \"token_embd.weight\" %s: expected a matrix of at most 2^20 "
                        "rows",
                        g->file->path, embed ? "has another shape" : "is missing");
    k->vocab_size = (int32_t)embed->view.shape[0];
    mm2_status status = MM2_OK;
    if (mm2_gguf_find(g, ARCHITECTURE ".vocab_size")) {
        int32_t said = 0;
        status = need_int(g, ARCHITECTURE ".vocab_size", &said);
        if (!status && said != k->vocab_size)
            status =
                mm2_fail(MM2_E_FORMAT, "%s: %s is %d but tensor \"token_embd.weight\" has %d rows",
                         g->file->path, ARCHITECTURE ".vocab_size", said, k->vocab_size);
    }
    k->use_qk_norm = mm2_checkpoint_find(c, "blk.0.attn_q_norm.weight") != NULL;
    k->use_routing_bias = mm2_checkpoint_find(c, "blk.0.exp_probs_b.bias") != NULL;
    return status;
}

static mm2_status read_config(mm2_checkpoint *c, const mm2_gguf *g)
{
    mm2_config *k = &c->config;
    mm2_status status = check_family(g);
    if (!status)
        status = read_sizes(g, k);
    if (!status)
        status = need_float(g, ARCHITECTURE ".rope.freq_base", &k->rope_theta);
    if (!status)
        status = need_float(g, ARCHITECTURE ".attention.layer_norm_rms_epsilon", &k->rms_norm_eps);
    k->routed_scaling_factor = 1;
    if (!status && mm2_gguf_find(g, ARCHITECTURE ".expert_weights_scale"))
        status = need_float(g, ARCHITECTURE ".expert_weights_scale", &k->routed_scaling_factor);
    if (!status)
        status = read_off_tensors(c, g);
    return status ? status : mm2_config_check(k, g->file->path);
}

/* ---- Facts beside the configuration ---- */

static mm2_status read_text(const mm2_gguf *g, const char *key, char *out, int32_t cap)
{
    const char *text;
    int64_t length;
    int32_t found = mm2_gguf_string(g, key, &text, &length);
    if (found > 0)
        mm2_text_clean(out, cap, text, length);
    return found < 0 ? found : MM2_OK;
}

static mm2_status read_hints(mm2_checkpoint *c, const mm2_gguf *g)
{
    double temperature = c->hints.temperature, top_p = c->hints.top_p, top_k = c->hints.top_k;
    int32_t found = mm2_gguf_number(g, "general.sampling.temp", &temperature);
    if (found >= 0)
        found = mm2_gguf_number(g, "general.sampling.top_p", &top_p);
    if (found >= 0)
        found = mm2_gguf_number(g, "general.sampling.top_k", &top_k);
    if (found < 0)
        return found;
    if (!(temperature >= 0 && temperature <= 1e6) || !(top_p >= 0 && top_p <= 1) ||
        !(top_k >= 0 && top_k <= 1 << 20))
        return mm2_fail(MM2_E_FORMAT,
                        "%s: general.sampling: temp %g, top_p %g or top_k %g is out of range",
                        g->file->path, temperature, top_p, top_k);
    c->hints = (mm2_sampling_hints){(float)temperature, (float)top_p, (int32_t)top_k};
    return MM2_OK;
}

/* The file's name without ".gguf", for models that do not say theirs. */
static void file_name(char *out, int32_t cap, const char *path)
{
    const char *last = strrchr(path, '/');
    last = last ? last + 1 : path;
    size_t length = strlen(last);
    if (length > 5 && !strcmp(last + length - 5, ".gguf"))
        length -= 5;
    mm2_text_clean(out, cap, last, (int64_t)length);
}

static mm2_status read_facts(mm2_checkpoint *c, const mm2_gguf *g)
{
    file_name(c->model_name, sizeof c->model_name, c->path);
    mm2_status status = read_text(g, "general.name", c->model_name, sizeof c->model_name);
    if (!status)
        status = read_text(g, "general.license", c->license, sizeof c->license);
    if (!status)
        status = read_text(g, "general.architecture", c->architecture, sizeof c->architecture);
    return status ? status : read_hints(c, g);
}

mm2_status mm2_gguf_open(mm2_checkpoint *c, const char *path, uint32_t flags)
{
    reader r = {.c = c, .flags = flags};
    mm2_status status = open_files(&r, path);
    if (!status)
        status = add_all_tensors(&r);
    if (!status)
        status = read_config(c, &r.parts[0]);
    if (!status)
        status = read_facts(c, &r.parts[0]);
    if (!status && !(c->gguf = malloc(sizeof *c->gguf)))
        status = mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    if (!status) { /* the first part's metadata moves over; its infos have become entries */
        *c->gguf = r.parts[0];
        r.parts[0] = (mm2_gguf){0};
        free(c->gguf->infos);
        c->gguf->infos = NULL;
        c->gguf->info_count = 0;
    }
    for (int32_t i = 0; r.parts && i < c->file_count; i++)
        mm2_gguf_free(&r.parts[i]);
    free(r.parts);
    return status;
}
