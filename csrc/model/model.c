/* Opening a model and asking it questions.
 *
 * Opening maps the files, checks everything that their headers say, and binds the weights; no
 * weight is read (unless MM2_IN_MEMORY asks for copies), so it costs milliseconds whatever the
 * size. What can fail comes first; the pool starts no thread before the first run.
 *
 * A model is immutable once open, so the questions need no lock. It lives until its last holder
 * (the opener, sessions, batches, samplers, scripts) releases it. */
#include "model/model.h"

#include "base/cpu.h"
#include "base/file.h"
#include "base/guard.h"
#include "base/status.h"
#include "model/container.h"
#include "tensor/dtype.h"

#include <stdlib.h>
#include <string.h>

void mm2_model_options_init(mm2_model_options *o)
{
    mm2_model_options defaults = {.size = sizeof defaults};
    mm2_struct_init(o, &defaults);
}

/* The weight that has a tensor of this name, or, packed, this name; part of one, it counts alone.
 * ARG if there is none. Copies of scales go into `floats`, see mm2_stack_find. */
static mm2_status find_weight(const mm2_checkpoint *c, const char *name, mm2_floats *floats,
                              mm2_stack *out, int *is_part)
{
    const mm2_entry *e = mm2_checkpoint_find(c, name);
    char whole[MM2_MAX_NAME + 16];
    *is_part = 0;
    if (!e) {
        mm2_format(whole, sizeof whole, "%s_packed", name);
        e = mm2_checkpoint_find(c, whole);
    }
    if (!e)
        return mm2_fail(MM2_E_ARG, "%s: there is no tensor \"%.*s\"", c->path, MM2_MAX_NAME, name);
    if (mm2_is_part(c, e)) {
        *is_part = 1;
        mm2_stack_alone(e, out);
        return MM2_OK;
    }
    mm2_stack_name(e, whole);
    return mm2_stack_find(c, whole, 0, NULL, floats, out);
}

/* Elements of the weight whose codes a tensor holds, and their dtype; 0 if it is part of one. */
static int64_t count_elements(const mm2_checkpoint *c, const mm2_entry *e, int32_t *dtype)
{
    mm2_stack s;
    int is_packed = e->view.dtype == MM2_U8 || e->view.dtype == MM2_I32;
    *dtype = e->view.dtype;
    if (mm2_is_part(c, e))
        return 0;
    if (is_packed) {
        char name[MM2_MAX_NAME + 1];
        mm2_stack_name(e, name);
        if (!mm2_stack_find(c, name, 0, NULL, NULL, &s))
            *dtype = s.first.dtype;
    }
    const mm2_dtype_facts *facts = mm2_dtype_find(*dtype);
    return e->view.nbytes / facts->bytes * facts->block;
}

/* Bytes, parameters, and the dtypes in the order of their bytes. */
static void count_weights(mm2_model *m)
{
    int64_t by_dtype[MM2_DTYPE_COUNT] = {0};
    for (int32_t i = 0; i < m->checkpoint.listed; i++) {
        const mm2_entry *e = &m->checkpoint.entries[i];
        int32_t dtype;
        int64_t elements = count_elements(&m->checkpoint, e, &dtype);
        m->bytes += e->view.nbytes;
        m->parameters += elements;
        by_dtype[dtype] += elements ? e->view.nbytes : 0;
    }
    int used = 0, cap = sizeof m->quantization;
    for (;;) {
        int32_t most = 0;
        for (int32_t i = 1; i < MM2_DTYPE_COUNT; i++)
            most = by_dtype[i] > by_dtype[most] ? i : most;
        if (!most || used >= cap)
            return;
        by_dtype[most] = 0;
        used += mm2_format(m->quantization + used, cap - used, used ? ", %s" : "%s",
                           mm2_dtype_name(most));
    }
}

static mm2_status check_vocabulary(const mm2_model *m)
{
    mm2_tokenizer_info facts = {.size = sizeof facts};
    if (!m->tokenizer)
        return MM2_OK;
    mm2_status status = mm2_tokenizer_describe(m->tokenizer, &facts);
    if (status)
        return status;
    if (facts.vocab_size <= m->checkpoint.config.vocab_size)
        return MM2_OK;
    return mm2_fail(MM2_E_FORMAT,
                    "%s: the tokenizer has %d ids but the embedding only %d rows: it belongs to "
                    "another model",
                    m->checkpoint.path, facts.vocab_size, m->checkpoint.config.vocab_size);
}

static void add_end(mm2_model *m, int32_t id)
{
    int32_t at = m->end_count;
    if (id < 0 || id >= m->checkpoint.config.vocab_size)
        return;
    while (at > 0 && m->ends[at - 1] >= id)
        at--;
    if (at < m->end_count && m->ends[at] == id)
        return;
    memmove(m->ends + at + 1, m->ends + at, (size_t)(m->end_count - at) * sizeof *m->ends);
    m->ends[at] = id;
    m->end_count++;
}

/* What the files name, what the tokenizer took for the end, and the format's own tag. */
static void collect_ends(mm2_model *m)
{
    const mm2_checkpoint *c = &m->checkpoint;
    for (int32_t i = 0; i < c->end_count; i++)
        add_end(m, c->ends[i]);
    if (!m->tokenizer)
        return;
    mm2_tokenizer_info facts = {.size = sizeof facts};
    if (!mm2_tokenizer_describe(m->tokenizer, &facts))
        add_end(m, facts.eos);
    const char *tag = c->family->end_tag;
    add_end(m, mm2_tokenizer_id(m->tokenizer, tag, (int32_t)strlen(tag)));
}

static mm2_status check_prefix_options(const mm2_model_options *o)
{
    if (o->prefix_cache < 0 || o->prefix_disk < 0)
        return mm2_fail(MM2_E_ARG, "mm2_model_open: options.%s is %lld, expected bytes, 0 or more",
                        o->prefix_cache < 0 ? "prefix_cache" : "prefix_disk",
                        (long long)(o->prefix_cache < 0 ? o->prefix_cache : o->prefix_disk));
    if (o->prefix_cache && o->flags & MM2_WRITABLE)
        return mm2_fail(MM2_E_ARG,
                        "mm2_model_open: a model whose weights may be written to can have no cache "
                        "of prefixes: its pages would belong to the weights of before");
    if (o->prefix_folder && !o->prefix_cache)
        return mm2_fail(MM2_E_ARG, "mm2_model_open: prefix_folder needs prefix_cache, the bytes of "
                                   "memory that go with it");
    if (o->prefix_disk && !o->prefix_folder)
        return mm2_fail(MM2_E_ARG, "mm2_model_open: prefix_disk needs prefix_folder");
    return MM2_OK;
}

static mm2_status settle_prefixes(mm2_prefixes *p, const mm2_model_options *o)
{
    p->limit = o->prefix_cache;
    p->disk = o->prefix_disk;
    if (!p->disk && __builtin_mul_overflow(p->limit, 10, &p->disk))
        p->disk = INT64_MAX;
    if (!o->prefix_folder)
        return MM2_OK;
    p->folder = realpath(o->prefix_folder, NULL);
    if (!p->folder)
        return mm2_file_fail(o->prefix_folder, "use it as the folder of prefixes");
    if (!mm2_file_is_directory(p->folder))
        return mm2_fail(MM2_E_IO, "%s: is no directory: the folder of prefixes must be one",
                        p->folder);
    return MM2_OK;
}

static mm2_status fill(mm2_model *m, const char *path, const mm2_model_options *o)
{
    mm2_status status = settle_prefixes(&m->prefixes, o);
    if (!status)
        status = mm2_container_open(&m->checkpoint, path, o->flags);
    if (!status)
        status = mm2_weights_bind(&m->weights, &m->checkpoint);
    if (!status)
        status = mm2_tokenizer_beside(&m->tokenizer, &m->checkpoint);
    if (!status && !m->tokenizer && !(m->no_tokenizer = strdup(mm2_status_text())))
        status = mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    if (!status)
        status = check_vocabulary(m);
    if (!status && !(m->kernels = mm2_kernels_find(o->isa)))
        status = MM2_E_UNSUPPORTED;
    m->precision = o->precision;
    if (!status)
        status = mm2_pool_new(&m->pool, o->threads ? o->threads : mm2_cpu_cores());
    if (!status) {
        count_weights(m);
        collect_ends(m);
    }
    return status;
}

static void destroy(mm2_model *m)
{
    if (m->prefixes.free)
        m->prefixes.free(&m->prefixes);
    free(m->prefixes.folder);
    if (m->passes.free)
        m->passes.free(&m->passes);
    mm2_pool_free(m->pool);
    mm2_tokenizer_release(m->tokenizer);
    free(m->no_tokenizer);
    mm2_weights_free(&m->weights);
    mm2_container_close(&m->checkpoint);
    free(m);
}

mm2_status mm2_model_open(mm2_model **out, const char *path, const mm2_model_options *options)
{
    mm2_model_options own = {.size = sizeof own};
    const mm2_model_options *o = &own;
    if (out)
        *out = NULL;
    if (!out || !path || !*path)
        return mm2_fail(MM2_E_ARG, "mm2_model_open: %s",
                        out ? "the path is empty" : "no place for the result");
    mm2_status status = options ? mm2_struct_read(&own, options, "mm2_model_options") : MM2_OK;
    if (status)
        return status;
    if (o->flags & ~(uint32_t)(MM2_WRITABLE | MM2_IN_MEMORY))
        return mm2_fail(MM2_E_ARG, "mm2_model_open: options.flags %u has unknown bits", o->flags);
    if (o->threads < 0 || o->threads > 1024)
        return mm2_fail(MM2_E_ARG, "mm2_model_open: options.threads is %d, expected 0 to 1024",
                        o->threads);
    if (o->isa < MM2_ISA_AUTO || o->isa > MM2_ISA_BLAS)
        return mm2_fail(MM2_E_ARG, "mm2_model_open: options.isa is %d, expected %d to %d", o->isa,
                        MM2_ISA_AUTO, MM2_ISA_BLAS);
    if (o->precision != MM2_PRECISION_FAST && o->precision != MM2_PRECISION_EXACT)
        return mm2_fail(MM2_E_ARG, "mm2_model_open: options.precision is %d, expected %d or %d",
                        o->precision, MM2_PRECISION_FAST, MM2_PRECISION_EXACT);
    status = check_prefix_options(o);
    if (status)
        return status;
    mm2_model *m = calloc(1, sizeof *m);
    if (!m)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    atomic_init(&m->references, 1);
    status = fill(m, path, o);
    if (status)
        destroy(m);
    else
        *out = m;
    return status;
}

void mm2_model_retain(mm2_model *m)
{
    if (m)
        atomic_fetch_add_explicit(&m->references, 1, memory_order_relaxed);
}

void mm2_model_release(mm2_model *m)
{
    if (m && atomic_fetch_sub_explicit(&m->references, 1, memory_order_acq_rel) == 1)
        destroy(m);
}

mm2_status mm2_model_config(const mm2_model *m, mm2_config *out)
{
    MM2_NEED(m, "model");
    MM2_NEED(out, "out");
    mm2_config config = m->checkpoint.config;
    config.size = sizeof config;
    return mm2_struct_write(out, &config, "mm2_config");
}

enum { MODEL_FACTS = 9 };

/* The facts in the order of their keys' indices; m may be NULL for the keys alone. */
static const char *fact(const mm2_model *m, int32_t index, const char **value)
{
    static const char *const keys[MODEL_FACTS] = {"path", "format",    "architecture",
                                                  "name", "license",   "quantization",
                                                  "isa",  "precision", "chat_template"};
    if (m) {
        const mm2_checkpoint *c = &m->checkpoint;
        const char *values[MODEL_FACTS] = {
            c->path,
            c->format,
            c->architecture,
            c->model_name,
            c->license,
            m->quantization,
            m->kernels->name,
            m->precision == MM2_PRECISION_EXACT ? "exact" : "fast",
            m->tokenizer ? mm2_tokenizer_template(m->tokenizer) : NULL,
        };
        *value = values[index];
    }
    return keys[index];
}

const char *mm2_model_info(const mm2_model *m, const char *key)
{
    const char *value;
    for (int32_t i = 0; m && key && i < MODEL_FACTS; i++)
        if (!strcmp(fact(m, i, &value), key))
            return value && *value ? value : NULL;
    return NULL;
}

const char *mm2_model_info_key(int32_t index)
{
    return index >= 0 && index < MODEL_FACTS ? fact(NULL, index, NULL) : NULL;
}

int32_t mm2_model_threads(const mm2_model *m)
{
    return m ? mm2_pool_threads(m->pool) : 0;
}

int64_t mm2_model_bytes(const mm2_model *m)
{
    return m ? m->bytes : 0;
}

int64_t mm2_model_parameters(const mm2_model *m)
{
    return m ? m->parameters : 0;
}

int32_t mm2_model_tensor_count(const mm2_model *m)
{
    return m ? m->checkpoint.listed : 0;
}

const char *mm2_model_tensor_name(const mm2_model *m, int32_t index)
{
    return m && index >= 0 && index < m->checkpoint.listed ? m->checkpoint.entries[index].name
                                                           : NULL;
}

static mm2_status find_entry(const mm2_model *m, const char *name, const mm2_entry **out)
{
    if (!m || !name)
        return mm2_fail(MM2_E_ARG, "a model and the name of a tensor are needed");
    *out = mm2_checkpoint_find(&m->checkpoint, name);
    return *out ? MM2_OK
                : mm2_fail(MM2_E_ARG, "%s: there is no tensor \"%.*s\"", m->checkpoint.path,
                           MM2_MAX_NAME, name);
}

mm2_status mm2_model_tensor(const mm2_model *m, const char *name, mm2_tensor *out)
{
    const mm2_entry *e;
    if (!out)
        return mm2_fail(MM2_E_ARG, "mm2_model_tensor: no place for the result");
    mm2_status status = find_entry(m, name, &e);
    if (!status)
        *out = e->view;
    return status;
}

int32_t mm2_model_end_tokens(const mm2_model *m, int32_t *ids, int32_t cap)
{
    if (!m || cap < 0 || (cap && !ids))
        return mm2_fail(MM2_E_ARG, "mm2_model_end_tokens: %s",
                        m ? "no place for the result" : "no model");
    for (int32_t i = 0; i < m->end_count && i < cap; i++)
        ids[i] = m->ends[i];
    return m->end_count;
}

static int64_t columns_of(const mm2_stack *s)
{
    return s->ndim ? s->shape[s->ndim - 1] : 1;
}

mm2_status mm2_model_weight_info(const mm2_model *m, const char *name, mm2_tensor *out)
{
    mm2_stack s;
    int is_part;
    if (!m || !name || !out)
        return mm2_fail(MM2_E_ARG, "mm2_model_weight_info: %s",
                        out ? "a model and the name of a tensor are needed"
                            : "no place for the result");
    mm2_status status = find_weight(&m->checkpoint, name, NULL, &s, &is_part);
    if (status)
        return status;
    *out = (mm2_tensor){.nbytes = s.nbytes,
                        .ndim = s.ndim,
                        .dtype = s.first.dtype,
                        .flags = MM2_READ_ONLY | (is_part ? MM2_PART : 0)};
    memcpy(out->shape, s.shape, sizeof out->shape);
    int64_t stride = 1;
    for (int32_t i = s.ndim - 1; i >= 0; stride *= s.shape[i--])
        out->strides[i] = stride;
    return MM2_OK;
}

/* Rows as they are counted through all leading dimensions; a vector is one row. */
static mm2_status decode_rows(const mm2_stack *s, int64_t first, int64_t count, float *out)
{
    int64_t width = columns_of(s), height = s->ndim > 1 ? s->shape[s->ndim - 2] : 1;
    if (width > INT32_MAX)
        return mm2_fail(MM2_E_UNSUPPORTED, "mm2_model_weight: rows of tensor \"%s\" are too long",
                        s->codes->name);
    for (int64_t row = first; row < first + count; row++, out += width) {
        mm2_weight w = mm2_stack_slice(s, row / height, row % height, 1);
        mm2_weight_values(&w, 0, 0, (int32_t)width, out);
    }
    return MM2_OK;
}

/* Checks the arguments against the weight, and decodes. */
static mm2_status decode_checked(const mm2_stack *s, int64_t first, int64_t count, float *out,
                                 int64_t n)
{
    int64_t width = columns_of(s), rows = 1, needed;
    for (int32_t i = 0; i < s->ndim - 1; i++)
        if (__builtin_mul_overflow(rows, s->shape[i], &rows))
            rows = 0; /* only where some other dimension is 0 */
    if (first < 0 || count < 0 || first > rows || count > rows - first)
        return mm2_fail(MM2_E_ARG,
                        "mm2_model_weight: tensor \"%s\" has %lld rows; %lld from row %lld are not "
                        "among them",
                        s->codes->name, (long long)rows, (long long)count, (long long)first);
    if (__builtin_mul_overflow(count, width, &needed) || needed > n || (needed && !out))
        return mm2_fail(MM2_E_ARG,
                        "mm2_model_weight: %lld rows of %lld elements do not fit into %lld floats",
                        (long long)count, (long long)width, (long long)(out ? n : 0));
    return needed ? decode_rows(s, first, count, out) : MM2_OK;
}

mm2_status mm2_model_weight(const mm2_model *m, const char *name, int64_t first, int64_t count,
                            float *out, int64_t n)
{
    mm2_floats floats = {0};
    mm2_stack s;
    int is_part;
    if (!m || !name)
        return mm2_fail(MM2_E_ARG, "a model and the name of a tensor are needed");
    mm2_status status = find_weight(&m->checkpoint, name, &floats, &s, &is_part);
    if (!status)
        status = decode_checked(&s, first, count, out, n);
    mm2_floats_free(&floats);
    return status;
}

const mm2_tokenizer *mm2_model_tokenizer(const mm2_model *m)
{
    if (!m)
        mm2_fail(MM2_E_ARG, "mm2_model_tokenizer: no model");
    else if (!m->tokenizer)
        mm2_fail(MM2_E_UNSUPPORTED, "%s", m->no_tokenizer);
    return m ? m->tokenizer : NULL;
}
