/* Grouped-query attention with a partial rotation and a norm over whole q and k rows (facts: one
 * RMS over all heads).
 *
 *     h = rms(x)   q, k, v = W h   q, k = rms(q), rms(k)   rotate q, k
 *     z = softmax(q k^T / sqrt(head_dim)) v   x += Wo z
 *
 * Rows of all spans go through together; only the cache belongs to a timeline. Sums over positions
 * run page by page in absolute positions, the same for one row as for a prompt, so a row's result
 * does not depend on who rides along. A long context is walked in rounds of PAGES_A_ROUND pages
 * with the running maximum, sum and value kept between rounds, so that no unit grows with the
 * context.
 *
 * In a cell, keys are a plane and values another: for each KV head a run, as the kernels want a
 * chunk of them (mm2_key_at, mm2_value_at).
 *
 * With an INT8 cache, H being the Hadamard matrix of a head, which is its own inverse but for a power of
 * two: q, k and v are replaced by H q, H k, H v after the rotation, so products of q and k and sums of
 * v have that factor too, which is taken away exactly; z is H times what attention leaves. */
#include "base/status.h"
#include "run/block.h"
#include "run/product.h"
#include "run/rope.h"
#include "run/timeline.h"
#include "tensor/dtype.h"

#include <math.h>
#include <string.h>

enum {
    PAGES_A_ROUND = 8,
    ROWS_A_UNIT = 16,
    PARTS_A_THREAD = 16 /* parts of attention that are merged together */
};
enum { KEYS, VALUES }; /* planes */

typedef struct gqa {
    float *q, *k, *v, *z; /* [capacity][heads][head_dim] */
    float *m, *l;         /* [capacity][num_attention_heads] */
    float *parts;         /* [threads * PARTS_A_THREAD][group][head_dim + 2] */
    float *cosine, *sine; /* [capacity][rotary_dim / 2] */
    float *frequency;     /* [rotary_dim / 2] */
    int32_t part_pages;   /* pages that a round attends to in parts; 0: in no parts */
} gqa;

static gqa *own(const mm2_pass *p)
{
    return p->own[MM2_BLOCK_GQA];
}

static int32_t group_of(const mm2_config *g)
{
    return g->num_attention_heads / g->num_key_value_heads;
}

/* ---- Buffers and cache ---- */

static void carve(mm2_pass *p, mm2_carver *c)
{
    const mm2_config *g = mm2_pass_config(p);
    int64_t rows = p->capacity, threads = mm2_pool_threads(p->model->pool);
    int32_t q_width = g->num_attention_heads * g->head_dim, half = g->rotary_dim / 2;
    int32_t kv_width = g->num_key_value_heads * g->head_dim;
    gqa *to = mm2_carve(c, 1, sizeof *to);
    gqa b = {.q = mm2_carve(c, rows * q_width, 4),
             .k = mm2_carve(c, rows * kv_width, 4),
             .v = mm2_carve(c, rows * kv_width, 4),
             .z = mm2_carve(c, rows * q_width, 4),
             .m = mm2_carve(c, rows * g->num_attention_heads, 4),
             .l = mm2_carve(c, rows * g->num_attention_heads, 4),
             .parts = mm2_carve(c, threads * PARTS_A_THREAD * group_of(g), (g->head_dim + 2) * 4),
             .cosine = mm2_carve(c, rows * half, 4),
             .sine = mm2_carve(c, rows * half, 4),
             .frequency = mm2_carve(c, half, 4)};
    mm2_product_need(p, rows, g->hidden_size);
    mm2_product_need(p, rows, q_width);
    mm2_product_need_groups(p, (rows + 15) / 16, g->hidden_size);
    mm2_product_need_groups(p, (rows + 15) / 16, q_width);
    mm2_product_need_scratch(p, q_width); /* the weight of a norm */
    if (!to)
        return;
    mm2_rope_frequencies(b.frequency, g->rope_theta, half);
    *to = b;
    p->own[MM2_BLOCK_GQA] = to;
    p->point_data[MM2_POINT_Q] = b.q;
    p->point_data[MM2_POINT_K] = b.k;
    p->point_data[MM2_POINT_V] = b.v;
    p->point_data[MM2_POINT_Z] = b.z;
}

static int64_t head_bytes(const mm2_config *g, int32_t dtype)
{
    return mm2_kv_bytes(dtype, g->head_dim);
}

/* Tiles of 16 keys; values position by position, in BF16 pairs of them for 16 elements, in INT8 64 of
 * them. */
static int32_t planes(const mm2_config *g, int32_t dtype, mm2_plane *out)
{
    int32_t heads = g->num_key_value_heads;
    int64_t bytes = head_bytes(g, dtype);
    out[KEYS] = (mm2_plane){.runs = heads, .group = 16, .group_bytes = bytes / (MM2_PAGE / 16)};
    if (dtype == MM2_BF16)
        out[VALUES] = (mm2_plane){.runs = heads * g->head_dim / 16, .group = 2, .group_bytes = 64};
    else
        out[VALUES] = (mm2_plane){.runs = heads,
                                  .group = dtype == MM2_F32 ? 1 : 64,
                                  .group_bytes = bytes / (dtype == MM2_F32 ? MM2_PAGE : 4)};
    return 2;
}

static const void *keys(const mm2_timeline *t, int32_t layer, int32_t head, int32_t page)
{
    const mm2_config *g = &t->model->checkpoint.config;
    return mm2_pages_cell(&t->pages, page, layer) + head * head_bytes(g, t->kv_dtype);
}

static const void *values(const mm2_timeline *t, int32_t layer, int32_t head, int32_t page)
{
    const mm2_config *g = &t->model->checkpoint.config;
    return mm2_pages_cell(&t->pages, page, layer) +
           t->pages.layout->cells[layer].planes[VALUES].at + head * head_bytes(g, t->kv_dtype);
}

/* The same as `store` for an INT8 cache; key and value are overwritten. */
static void store_int8(const mm2_kernels *kernels, char *to_keys, char *to_values, int32_t slot,
                       int32_t n, float *key, float *value)
{
    int8_t k[MM2_INT8_DIM_LIMIT], v[MM2_INT8_DIM_LIMIT];
    kernels->hadamard(key, n);
    kernels->hadamard(value, n);
    float key_scale = kernels->quantize_head(k, key, n);
    float value_scale = kernels->quantize_head(v, value, n);
    for (int32_t d = 0; d < n; d += 4)
        memcpy(to_keys + mm2_key_at(MM2_INT8, n, slot, d), k + d, 4);
    for (int32_t d = 0; d < n; d++)
        to_values[mm2_value_at(MM2_INT8, n, slot, d)] = v[d];
    memcpy(to_keys + mm2_key_scale_at(n, slot), &key_scale, 4);
    memcpy(to_values + mm2_value_scale_at(n, slot), &value_scale, 4);
}

/* Stores key and value (float [head_dim] each) of one position; its cell is the timeline's own. */
static void store(const mm2_timeline *t, int32_t layer, int32_t head, int32_t position, float *key,
                  float *value)
{
    const mm2_config *g = &t->model->checkpoint.config;
    char *cell = mm2_pages_own_cell(&t->pages, position / MM2_PAGE, layer);
    char *to_keys = cell + head * head_bytes(g, t->kv_dtype);
    char *to_values = to_keys + t->pages.layout->cells[layer].planes[VALUES].at;
    int32_t slot = position % MM2_PAGE, n = g->head_dim;
    if (t->kv_dtype == MM2_INT8) {
        store_int8(t->model->kernels, to_keys, to_values, slot, n, key, value);
    } else if (t->kv_dtype == MM2_F32) {
        float *k = (float *)to_keys, *v = (float *)to_values;
        for (int32_t d = 0; d < n; d++) {
            k[mm2_key_at(MM2_F32, n, slot, d)] = key[d];
            v[mm2_value_at(MM2_F32, n, slot, d)] = value[d];
        }
    } else {
        uint16_t *k = (uint16_t *)to_keys, *v = (uint16_t *)to_values;
        for (int32_t d = 0; d < n; d++) {
            k[mm2_key_at(MM2_BF16, n, slot, d)] = mm2_f32_bf16(key[d]);
            v[mm2_value_at(MM2_BF16, n, slot, d)] = mm2_f32_bf16(value[d]);
        }
    }
}

/* ---- Steps ---- */

static mm2_status begin_enter(mm2_pass *p, int32_t round, int32_t *units)
{
    *units = round ? -1 : 0;
    return MM2_OK;
}

static void norm_row(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    int32_t n = mm2_pass_config(p)->hidden_size;
    int64_t at = (int64_t)unit * n;
    mm2_pass_norm(p, thread, &mm2_pass_layer(p)->attn_norm, p->h + at, p->x + at, n);
    if (p->layer == p->first_layer) { /* angles are the same in all layers */
        const gqa *b = own(p);
        int32_t half = mm2_pass_config(p)->rotary_dim / 2;
        mm2_rope_angles(b->cosine + (int64_t)unit * half, b->sine + (int64_t)unit * half,
                        b->frequency, half, p->row_position[unit]);
    }
}

static mm2_status begin_input(mm2_pass *p, int32_t round, int32_t *units)
{
    const mm2_layer *layer = mm2_pass_layer(p);
    *units = -1;
    uint32_t kinds = mm2_product_kind(p, &layer->q) | mm2_product_kind(p, &layer->k) |
                     mm2_product_kind(p, &layer->v);
    if (!round)
        mm2_product_input(p, p->h, mm2_pass_config(p)->hidden_size, p->rows, kinds, kinds, units);
    return MM2_OK;
}

/* Units of the three projections, one after the other: all of q, then k, then v. */
static mm2_status begin_qkv(mm2_pass *p, int32_t round, int32_t *units)
{
    const mm2_layer *layer = mm2_pass_layer(p);
    *units = round ? -1
                   : mm2_product_units(p, &layer->q) + mm2_product_units(p, &layer->k) +
                         mm2_product_units(p, &layer->v);
    return MM2_OK;
}

static void qkv_unit(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    const mm2_layer *layer = mm2_pass_layer(p);
    const mm2_weight *weights[] = {&layer->q, &layer->k, &layer->v};
    float *outs[] = {own(p)->q, own(p)->k, own(p)->v};
    int32_t i = 0;
    for (int32_t count; unit >= (count = mm2_product_units(p, weights[i])); i++)
        unit -= count;
    mm2_product_unit(p, weights[i], outs[i], unit, thread);
}

static void qk_norm_row(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    const mm2_layer *layer = mm2_pass_layer(p);
    if (!layer->q_norm.data)
        return;
    float *q = own(p)->q + (int64_t)unit * layer->q.n_out;
    float *k = own(p)->k + (int64_t)unit * layer->k.n_out;
    mm2_pass_norm(p, thread, &layer->q_norm, q, q, layer->q.n_out);
    mm2_pass_norm(p, thread, &layer->k_norm, k, k, layer->k.n_out);
}

/* Before rows are written, cells that a fork has left with its other branch are copied: a unit for
 * each span. Only the page of its first row can be shared. */
static mm2_status begin_store(mm2_pass *p, int32_t round, int32_t *units)
{
    int copy = 0;
    for (int32_t i = 0; i < p->span_count && !round; i++) {
        const mm2_span *span = &p->spans[i];
        copy |= span->timeline &&
                mm2_pages_missing(&span->timeline->pages, span->first / MM2_PAGE, p->layer);
    }
    *units = round > 1 ? -1 : round ? p->rows : copy ? p->span_count : 0;
    return MM2_OK;
}

static void copy_cell(const mm2_pass *p, const mm2_span *span)
{
    int32_t page = span->first / MM2_PAGE;
    if (span->timeline && mm2_pages_missing(&span->timeline->pages, page, p->layer))
        mm2_pages_copy(&span->timeline->pages, page, p->layer, span->first % MM2_PAGE);
}

static void store_row(const mm2_pass *p, int32_t row)
{
    const mm2_config *g = mm2_pass_config(p);
    const mm2_timeline *t = mm2_pass_timeline(p, row);
    int32_t half = g->rotary_dim / 2, n = g->head_dim;
    const float *cosine = own(p)->cosine + (int64_t)row * half;
    const float *sine = own(p)->sine + (int64_t)row * half;
    float *q = own(p)->q + (int64_t)row * g->num_attention_heads * n;
    float *k = own(p)->k + (int64_t)row * g->num_key_value_heads * n;
    float *v = own(p)->v + (int64_t)row * g->num_key_value_heads * n;
    if (!t)
        return;
    for (int32_t head = 0; head < g->num_attention_heads; head++) {
        p->model->kernels->rope(q + head * n, cosine, sine, half);
        if (t->kv_dtype == MM2_INT8)
            p->model->kernels->hadamard(q + head * n, n);
    }
    for (int32_t head = 0; head < g->num_key_value_heads; head++) {
        p->model->kernels->rope(k + head * n, cosine, sine, half);
        store(t, p->layer, head, p->row_position[row], k + head * n, v + head * n);
    }
}

static void store_unit(void *pass, int32_t unit, int32_t thread)
{
    const mm2_pass *p = pass;
    if (!p->round)
        copy_cell(p, &p->spans[unit]);
    else
        store_row(p, unit);
}

/* Units of attention. Where rows and KV heads are many, a unit is some rows and one KV head with its
 * group of query heads: several rows meet a page while it is in the cache; heads vary slowest, so
 * neighbours share pages too. Where they are too few for the threads, as when one token is decoded
 * behind a long context, pages are units too: each leaves what its page alone gives in `parts`, and a
 * round of its own merges them in order, by the operations with which a page is added to a running
 * result. So it is the same result. */
static int32_t rows_a_unit(const mm2_pass *p)
{
    int32_t share =
        p->rows * mm2_pass_config(p)->num_key_value_heads / (8 * mm2_pool_threads(p->model->pool));
    return share < 1 ? 1 : share < ROWS_A_UNIT ? share : ROWS_A_UNIT;
}

static int32_t pages_of(const mm2_pass *p, int32_t row)
{
    return p->row_position[row] / MM2_PAGE + 1;
}

static mm2_status begin_attend(mm2_pass *p, int32_t round, int32_t *units)
{
    int32_t heads = p->rows * mm2_pass_config(p)->num_key_value_heads, pages = 0;
    int32_t threads = mm2_pool_threads(p->model->pool), some = rows_a_unit(p);
    for (int32_t r = 0; r < p->rows; r++)
        pages = pages_of(p, r) > pages ? pages_of(p, r) : pages;
    own(p)->part_pages = heads < 2 * threads && pages > 1 ? PARTS_A_THREAD * threads / heads : 0;
    if (own(p)->part_pages)
        *units = round / 2 * own(p)->part_pages >= pages ? -1
                 : round % 2                             ? heads
                                                         : heads * own(p)->part_pages;
    else
        *units = round * PAGES_A_ROUND < pages
                     ? (p->rows + some - 1) / some * mm2_pass_config(p)->num_key_value_heads
                     : -1;
    return MM2_OK;
}

/* Query heads of a KV head: the running results of a row, or of one page in `parts`. */
typedef struct results {
    float *m, *l, *o; /* [group], [group], [group][head_dim] */
} results;

static results running(const mm2_pass *p, int32_t row, int32_t head)
{
    const mm2_config *g = mm2_pass_config(p);
    int64_t at = (int64_t)row * g->num_attention_heads + head * group_of(g);
    return (results){own(p)->m + at, own(p)->l + at, own(p)->z + at * g->head_dim};
}

static results part(const mm2_pass *p, int32_t unit)
{
    const mm2_config *g = mm2_pass_config(p);
    int32_t group = group_of(g);
    float *m = own(p)->parts + (int64_t)unit * group * (g->head_dim + 2);
    return (results){m, m + group, m + 2 * group};
}

/* `zero`: of values: +0, or -0 if it must not show in a sum. */
static void start(const mm2_config *g, results to, float zero)
{
    for (int32_t i = 0; i < group_of(g); i++)
        to.m[i] = -INFINITY, to.l[i] = 0;
    for (int32_t i = 0; i < group_of(g) * g->head_dim; i++)
        to.o[i] = zero;
}

/* The largest power of two that divides head_dim: H times itself is that many times the identity. */
static float hadamard_square(const mm2_config *g)
{
    return (float)(g->head_dim & -g->head_dim);
}

static void finish(const mm2_pass *p, results to, int32_t row)
{
    const mm2_config *g = mm2_pass_config(p);
    const mm2_timeline *t = mm2_pass_timeline(p, row); /* NULL: it is gone, nobody looks */
    int32_t n = group_of(g) * g->head_dim;
    for (int32_t i = 0; i < n; i += 16) /* a number of times to vectorise */
        for (int32_t d = 0; d < 16; d++)
            to.o[i + d] /= to.l[i / g->head_dim];
    if (!t || t->kv_dtype != MM2_INT8)
        return;
    for (int32_t i = 0; i < n; i += g->head_dim)
        p->model->kernels->hadamard(to.o + i, g->head_dim);
    for (int32_t i = 0; i < n; i++)
        to.o[i] *= 1 / hadamard_square(g);
}

/* What `rows` rows of one span, from `row` on, have of page `page` is added to `to`, those of the
 * first row. */
static void add_page(const mm2_pass *p, results to, int32_t row, int32_t rows, int32_t head,
                     int32_t page)
{
    const mm2_config *g = mm2_pass_config(p);
    const mm2_timeline *t = mm2_pass_timeline(p, row);
    int32_t here = p->row_position[row] + 1 - page * MM2_PAGE, group = group_of(g);
    int64_t at = ((int64_t)row * g->num_attention_heads + head * group) * g->head_dim;
    float scale = 1 / sqrtf((float)g->head_dim);
    if (t->kv_dtype == MM2_INT8)
        scale /= hadamard_square(g);
    p->model->kernels->attend[mm2_kv_of(t->kv_dtype)](
        to.m, to.l, to.o, own(p)->q + at, g->num_attention_heads, rows, group,
        keys(t, p->layer, head, page), values(t, p->layer, head, page),
        here < MM2_PAGE ? here : MM2_PAGE, g->head_dim, scale);
}

/* Rows [row, end) of one span and a page. */
static void attend_page(const mm2_pass *p, int32_t row, int32_t end, int32_t head, int32_t page)
{
    const mm2_config *g = mm2_pass_config(p);
    while (row < end && page >= pages_of(p, row)) /* rows ascend */
        row++;
    if (row == end)
        return;
    for (int32_t r = row; r < end && !page; r++)
        start(g, running(p, r, head), 0);
    add_page(p, running(p, row, head), row, end - row, head, page);
    for (int32_t r = row; r < end && page == pages_of(p, r) - 1; r++)
        finish(p, running(p, r, head), r);
}

static void attend_rows(const mm2_pass *p, int32_t unit)
{
    int32_t some = rows_a_unit(p), blocks = (p->rows + some - 1) / some;
    int32_t first = unit % blocks * some, end = first + some < p->rows ? first + some : p->rows;
    for (int32_t i = 0; i < PAGES_A_ROUND; i++)
        for (int32_t row = first, next; row < end; row = next) {
            for (next = row + 1; next < end && p->row_span[next] == p->row_span[row];)
                next++;
            if (mm2_pass_timeline(p, row))
                attend_page(p, row, next, unit / blocks, p->round * PAGES_A_ROUND + i);
        }
}

static void attend_part(const mm2_pass *p, int32_t unit)
{
    const mm2_config *g = mm2_pass_config(p);
    int32_t page = p->round / 2 * own(p)->part_pages + unit % own(p)->part_pages;
    int32_t head = unit / own(p)->part_pages % g->num_key_value_heads;
    int32_t row = unit / own(p)->part_pages / g->num_key_value_heads;
    results to = part(p, unit);
    if (page >= pages_of(p, row) || !mm2_pass_timeline(p, row))
        return;
    start(g, to, -0.0f);
    add_page(p, to, row, 1, head, page);
}

/* The operations of kernels.h, attend: merging is what it does with a page's own sums. */
static void merge_parts(const mm2_pass *p, int32_t unit)
{
    const mm2_config *g = mm2_pass_config(p);
    int32_t head = unit % g->num_key_value_heads, row = unit / g->num_key_value_heads;
    int32_t some = own(p)->part_pages, first = p->round / 2 * some, end = first + some;
    int32_t n = g->head_dim;
    results to = running(p, row, head);
    if (!first)
        start(g, to, 0);
    for (int32_t page = first; page < end && page < pages_of(p, row); page++) {
        results from = part(p, unit * some + page - first);
        for (int32_t i = 0; i < group_of(g); i++) {
            float largest = to.m[i] > from.m[i] ? to.m[i] : from.m[i];
            float a = mm2_exp(to.m[i] - largest), b = mm2_exp(from.m[i] - largest);
            to.m[i] = largest;
            to.l[i] = fmaf(from.l[i], b, to.l[i] * a);
            for (int32_t d = 0; d < n; d++)
                to.o[i * n + d] *= a;
            p->model->kernels->axpy(to.o + i * n, b, from.o + i * n, n);
        }
    }
    if (first < pages_of(p, row) && pages_of(p, row) <= end)
        finish(p, to, row);
}

static void attend_unit(void *pass, int32_t unit, int32_t thread)
{
    const mm2_pass *p = pass;
    if (!own(p)->part_pages)
        attend_rows(p, unit);
    else if (p->round % 2)
        merge_parts(p, unit);
    else
        attend_part(p, unit);
}

static mm2_status begin_z_input(mm2_pass *p, int32_t round, int32_t *units)
{
    const mm2_weight *w = &mm2_pass_layer(p)->o;
    *units = -1;
    uint32_t kind = mm2_product_kind(p, w);
    if (!round)
        mm2_product_input(p, own(p)->z, w->n_in, p->rows, kind, kind, units);
    return MM2_OK;
}

static mm2_status begin_o(mm2_pass *p, int32_t round, int32_t *units)
{
    *units = round ? -1 : mm2_product_units(p, &mm2_pass_layer(p)->o);
    return MM2_OK;
}

static void o_unit(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    mm2_product_unit(p, &mm2_pass_layer(p)->o, p->out, unit, thread);
}

static const mm2_step steps[] = {
    {begin_enter, NULL, {MM2_POINT_RESID_PRE + 1}},
    {mm2_pass_rows, norm_row, {MM2_POINT_ATTN_NORM + 1}},
    {begin_input, mm2_product_quantize, {0}},
    {begin_qkv, qkv_unit, {0}},
    {mm2_pass_rows, qk_norm_row, {MM2_POINT_Q + 1, MM2_POINT_K + 1, MM2_POINT_V + 1}},
    {begin_store, store_unit, {0}},
    {begin_attend, attend_unit, {MM2_POINT_Z + 1}},
    {begin_z_input, mm2_product_quantize, {0}},
    {begin_o, o_unit, {MM2_POINT_ATTN_OUT + 1}},
    {mm2_pass_rows, mm2_pass_add, {MM2_POINT_RESID_MID + 1}},
};

const mm2_block mm2_block_gqa = {
    .steps = steps, .count = sizeof steps / sizeof *steps, .carve = carve, .planes = planes};
