/* Grouped-query attention with a partial rotation and a norm over whole q and k rows (facts: one
 * RMS over all heads).
 *
 *     h = rms(x)   q, k, v = W h   q, k = rms(q), rms(k)   rotate q, k
 *     z = softmax(q k^T / sqrt(head_dim)) v   x += Wo z
 *
 * Rows of all spans go through together; only the cache belongs to a session. Sums over positions
 * run page by page in absolute positions, the same for one row as for a prompt, so a row's result
 * does not depend on who rides along. A long context is walked in rounds of PAGES_A_ROUND pages
 * with the running maximum, sum and value kept between rounds, so that no unit grows with the
 * context. */
#include "base/status.h"
#include "run/forward.h"
#include "run/session.h"

#include <math.h>
#include <string.h>

enum { PAGES_A_ROUND = 8, ROWS_A_UNIT = 16 };

static mm2_status begin_enter(mm2_forward *f, int32_t round, int32_t *units)
{
    *units = round ? -1 : 0;
    return MM2_OK;
}

static void norm_row(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    int32_t n = mm2_forward_config(f)->hidden_size;
    int64_t at = (int64_t)unit * n;
    mm2_forward_norm(f, thread, &mm2_forward_layer(f)->attn_norm, f->h + at, f->x + at, n);
}

static mm2_status begin_input(mm2_forward *f, int32_t round, int32_t *units)
{
    const mm2_layer *layer = mm2_forward_layer(f);
    *units = -1;
    if (!round)
        mm2_forward_input(f, f->h, mm2_forward_config(f)->hidden_size, f->rows,
                          mm2_input_kind(f, &layer->q) | mm2_input_kind(f, &layer->k) |
                              mm2_input_kind(f, &layer->v),
                          1, units);
    return MM2_OK;
}

/* Units of the three projections, one after the other: all of q, then k, then v. */
static int32_t tiles(const mm2_forward *f, const mm2_weight *w, int32_t *tile)
{
    *tile = mm2_forward_tile(f, w->n_out, w->n_in, f->rows);
    return (w->n_out + *tile - 1) / *tile;
}

static mm2_status begin_qkv(mm2_forward *f, int32_t round, int32_t *units)
{
    const mm2_layer *layer = mm2_forward_layer(f);
    int32_t tile;
    *units = round ? -1
                   : tiles(f, &layer->q, &tile) + tiles(f, &layer->k, &tile) +
                         tiles(f, &layer->v, &tile);
    return MM2_OK;
}

static void qkv_tile(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    const mm2_layer *layer = mm2_forward_layer(f);
    const mm2_weight *weights[] = {&layer->q, &layer->k, &layer->v};
    float *outs[] = {f->q, f->k, f->v};
    for (int32_t i = 0; i < 3; i++) {
        const mm2_weight *w = weights[i];
        int32_t tile, count = tiles(f, w, &tile);
        if (unit < count) {
            int32_t first = unit * tile;
            mm2_forward_product(f, thread, w, outs[i], w->n_out, first,
                                w->n_out - first < tile ? w->n_out - first : tile);
            return;
        }
        unit -= count;
    }
}

static void qk_norm_row(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    const mm2_layer *layer = mm2_forward_layer(f);
    if (!layer->q_norm.data)
        return;
    float *q = f->q + (int64_t)unit * layer->q.n_out, *k = f->k + (int64_t)unit * layer->k.n_out;
    mm2_forward_norm(f, thread, &layer->q_norm, q, q, layer->q.n_out);
    mm2_forward_norm(f, thread, &layer->k_norm, k, k, layer->k.n_out);
}

static void rotate_row(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    const mm2_config *g = mm2_forward_config(f);
    int32_t half = g->rotary_dim / 2, position = f->row_position[unit], n = g->head_dim;
    const float *cosine = f->cosine + (int64_t)unit * half, *sine = f->sine + (int64_t)unit * half;
    float *q = f->q + (int64_t)unit * g->num_attention_heads * n;
    float *k = f->k + (int64_t)unit * g->num_key_value_heads * n;
    float *v = f->v + (int64_t)unit * g->num_key_value_heads * n;
    mm2_kv *kv = &f->spans[f->row_span[unit]].session->kv;
    for (int32_t head = 0; head < g->num_attention_heads; head++)
        f->model->kernels->rope(q + head * n, cosine, sine, half);
    for (int32_t head = 0; head < g->num_key_value_heads; head++) {
        f->model->kernels->rope(k + head * n, cosine, sine, half);
        mm2_kv_write(kv, f->layer, head, position, k + head * n, v + head * n);
    }
}

/* Units of attention. Where rows and KV heads are many, a unit is some rows and one KV head with its
 * group of query heads: several rows meet a page while it is in the cache; heads vary slowest, so
 * neighbours share pages too. Where they are too few for the threads, as when one token is decoded
 * behind a long context, pages are units too: each leaves what its page alone gives in `parts`, and a
 * round of its own merges them in order, by the operations with which a page is added to a running
 * result. So it is the same result. */
static int32_t rows_a_unit(const mm2_forward *f)
{
    int32_t share = f->rows * mm2_forward_config(f)->num_key_value_heads /
                    (8 * mm2_pool_threads(f->model->pool));
    return share < 1 ? 1 : share < ROWS_A_UNIT ? share : ROWS_A_UNIT;
}

static int32_t pages_of(const mm2_forward *f, int32_t row)
{
    return f->row_position[row] / MM2_PAGE + 1;
}

static mm2_status begin_attend(mm2_forward *f, int32_t round, int32_t *units)
{
    int32_t heads = f->rows * mm2_forward_config(f)->num_key_value_heads, pages = 0;
    int32_t threads = mm2_pool_threads(f->model->pool), some = rows_a_unit(f);
    for (int32_t r = 0; r < f->rows; r++)
        pages = pages_of(f, r) > pages ? pages_of(f, r) : pages;
    f->part_pages = heads < 2 * threads && pages > 1 ? MM2_PARTS_A_THREAD * threads / heads : 0;
    if (f->part_pages)
        *units = round / 2 * f->part_pages >= pages ? -1
                 : round % 2                        ? heads
                                                    : heads * f->part_pages;
    else
        *units = round * PAGES_A_ROUND < pages
                     ? (f->rows + some - 1) / some * mm2_forward_config(f)->num_key_value_heads
                     : -1;
    return MM2_OK;
}

/* Query heads of a KV head: the running results of a row, or of one page in `parts`. */
typedef struct results {
    float *m, *l, *o; /* [group], [group], [group][head_dim] */
} results;

static int32_t group_of(const mm2_config *g)
{
    return g->num_attention_heads / g->num_key_value_heads;
}

static results running(const mm2_forward *f, int32_t row, int32_t head)
{
    const mm2_config *g = mm2_forward_config(f);
    int64_t at = (int64_t)row * g->num_attention_heads + head * group_of(g);
    return (results){f->m + at, f->l + at, f->z + at * g->head_dim};
}

static results part(const mm2_forward *f, int32_t unit)
{
    const mm2_config *g = mm2_forward_config(f);
    int32_t group = group_of(g);
    float *m = f->parts + (int64_t)unit * group * (g->head_dim + 2);
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

static void finish(const mm2_config *g, results to)
{
    for (int32_t i = 0; i < group_of(g) * g->head_dim; i += 16) /* a number of times to vectorise */
        for (int32_t d = 0; d < 16; d++)
            to.o[i + d] /= to.l[i / g->head_dim];
}

/* What `rows` rows of one span, from `row` on, have of page `page` is added to `to`, those of the
 * first row. */
static void add_page(const mm2_forward *f, results to, int32_t row, int32_t rows, int32_t head,
                     int32_t page)
{
    const mm2_config *g = mm2_forward_config(f);
    const mm2_kv *kv = &f->spans[f->row_span[row]].session->kv;
    int32_t here = f->row_position[row] + 1 - page * MM2_PAGE, group = group_of(g);
    const float *q = f->q + ((int64_t)row * g->num_attention_heads + head * group) * g->head_dim;
    f->model->kernels->attend[kv->dtype == MM2_BF16](
        to.m, to.l, to.o, q, g->num_attention_heads, rows, group,
        mm2_kv_keys(kv, f->layer, head, page), mm2_kv_values(kv, f->layer, head, page),
        here < MM2_PAGE ? here : MM2_PAGE, g->head_dim, 1 / sqrtf((float)g->head_dim));
}

/* Rows [row, end) of one span and a page. */
static void attend_page(const mm2_forward *f, int32_t row, int32_t end, int32_t head, int32_t page)
{
    const mm2_config *g = mm2_forward_config(f);
    while (row < end && page >= pages_of(f, row)) /* rows ascend */
        row++;
    if (row == end)
        return;
    for (int32_t r = row; r < end && !page; r++)
        start(g, running(f, r, head), 0);
    add_page(f, running(f, row, head), row, end - row, head, page);
    for (int32_t r = row; r < end && page == pages_of(f, r) - 1; r++)
        finish(g, running(f, r, head));
}

static void attend_rows(const mm2_forward *f, int32_t unit)
{
    int32_t some = rows_a_unit(f), blocks = (f->rows + some - 1) / some;
    int32_t first = unit % blocks * some, end = first + some < f->rows ? first + some : f->rows;
    for (int32_t i = 0; i < PAGES_A_ROUND; i++)
        for (int32_t row = first, next; row < end; row = next) {
            for (next = row + 1; next < end && f->row_span[next] == f->row_span[row];)
                next++;
            attend_page(f, row, next, unit / blocks, f->round * PAGES_A_ROUND + i);
        }
}

static void attend_part(const mm2_forward *f, int32_t unit)
{
    const mm2_config *g = mm2_forward_config(f);
    int32_t page = f->round / 2 * f->part_pages + unit % f->part_pages;
    int32_t head = unit / f->part_pages % g->num_key_value_heads;
    int32_t row = unit / f->part_pages / g->num_key_value_heads;
    results to = part(f, unit);
    if (page >= pages_of(f, row))
        return;
    start(g, to, -0.0f);
    add_page(f, to, row, 1, head, page);
}

/* The operations of kernels.h, attend: merging is what it does with a page's own sums. */
static void merge_parts(const mm2_forward *f, int32_t unit)
{
    const mm2_config *g = mm2_forward_config(f);
    int32_t head = unit % g->num_key_value_heads, row = unit / g->num_key_value_heads;
    int32_t first = f->round / 2 * f->part_pages, end = first + f->part_pages, n = g->head_dim;
    results to = running(f, row, head);
    if (!first)
        start(g, to, 0);
    for (int32_t page = first; page < end && page < pages_of(f, row); page++) {
        results from = part(f, unit * f->part_pages + page - first);
        for (int32_t i = 0; i < group_of(g); i++) {
            float largest = to.m[i] > from.m[i] ? to.m[i] : from.m[i];
            float a = mm2_exp(to.m[i] - largest), b = mm2_exp(from.m[i] - largest);
            to.m[i] = largest;
            to.l[i] = fmaf(from.l[i], b, to.l[i] * a);
            for (int32_t d = 0; d < n; d++)
                to.o[i * n + d] *= a;
            f->model->kernels->axpy(to.o + i * n, b, from.o + i * n, n);
        }
    }
    if (first < pages_of(f, row) && pages_of(f, row) <= end)
        finish(g, to);
}

static void attend_unit(void *forward, int32_t unit, int32_t thread)
{
    const mm2_forward *f = forward;
    if (!f->part_pages)
        attend_rows(f, unit);
    else if (f->round % 2)
        merge_parts(f, unit);
    else
        attend_part(f, unit);
}

static mm2_status begin_z_input(mm2_forward *f, int32_t round, int32_t *units)
{
    const mm2_weight *w = &mm2_forward_layer(f)->o;
    *units = -1;
    if (!round)
        mm2_forward_input(f, f->z, w->n_in, f->rows, mm2_input_kind(f, w), 1, units);
    return MM2_OK;
}

static mm2_status begin_o(mm2_forward *f, int32_t round, int32_t *units)
{
    int32_t tile;
    *units = round ? -1 : tiles(f, &mm2_forward_layer(f)->o, &tile);
    return MM2_OK;
}

static void o_tile(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    const mm2_weight *w = &mm2_forward_layer(f)->o;
    int32_t tile;
    tiles(f, w, &tile);
    int32_t first = unit * tile;
    mm2_forward_product(f, thread, w, f->out, w->n_out, first,
                        w->n_out - first < tile ? w->n_out - first : tile);
}

static const mm2_step steps[] = {
    {begin_enter, NULL, {MM2_POINT_RESID_PRE + 1}},
    {mm2_forward_rows, norm_row, {MM2_POINT_ATTN_NORM + 1}},
    {begin_input, mm2_forward_quantize, {0}},
    {begin_qkv, qkv_tile, {0}},
    {mm2_forward_rows, qk_norm_row, {MM2_POINT_Q + 1, MM2_POINT_K + 1, MM2_POINT_V + 1}},
    {mm2_forward_rows, rotate_row, {0}},
    {begin_attend, attend_unit, {MM2_POINT_Z + 1}},
    {begin_z_input, mm2_forward_quantize, {0}},
    {begin_o, o_tile, {MM2_POINT_ATTN_OUT + 1}},
    {mm2_forward_rows, mm2_forward_add, {MM2_POINT_RESID_MID + 1}},
};

const mm2_block mm2_block_gqa = {steps, sizeof steps / sizeof *steps};
