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

enum { PAGES_A_ROUND = 8, ROWS_A_UNIT = 8 };

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

/* One unit: some rows and one KV head with its group of query heads. Several rows meet a page while
 * it is in the cache; heads vary slowest, so neighbours share pages too. */
static int32_t rows_a_unit(const mm2_forward *f)
{
    int32_t share = f->rows * mm2_forward_config(f)->num_key_value_heads /
                    (8 * mm2_pool_threads(f->model->pool));
    return share < 1 ? 1 : share < ROWS_A_UNIT ? share : ROWS_A_UNIT;
}

static mm2_status begin_attend(mm2_forward *f, int32_t round, int32_t *units)
{
    int32_t pages = 0, some = rows_a_unit(f);
    for (int32_t r = 0; r < f->rows; r++) {
        int32_t needed = f->row_position[r] / MM2_PAGE + 1;
        pages = needed > pages ? needed : pages;
    }
    *units = round * PAGES_A_ROUND < pages
                 ? (f->rows + some - 1) / some * mm2_forward_config(f)->num_key_value_heads
                 : -1;
    return MM2_OK;
}

/* What row `row` and head `head` have of page `page`, added to its running results. */
static void attend_page(mm2_forward *f, int32_t row, int32_t head, int32_t page)
{
    const mm2_config *g = mm2_forward_config(f);
    int32_t group = g->num_attention_heads / g->num_key_value_heads, n = g->head_dim;
    const mm2_kv *kv = &f->spans[f->row_span[row]].session->kv;
    int32_t here = f->row_position[row] + 1 - page * MM2_PAGE;
    int64_t at = (int64_t)row * g->num_attention_heads + head * group;
    float *m = f->m + at, *l = f->l + at, *o = f->z + at * n;
    if (here <= 0)
        return;
    if (!page) {
        for (int32_t i = 0; i < group; i++)
            m[i] = -INFINITY, l[i] = 0;
        memset(o, 0, (size_t)group * (size_t)n * 4);
    }
    f->model->kernels->attend[kv->dtype == MM2_BF16](
        m, l, o, f->q + at * n, group, mm2_kv_keys(kv, f->layer, head, page),
        mm2_kv_values(kv, f->layer, head, page), here < MM2_PAGE ? here : MM2_PAGE, n,
        1 / sqrtf((float)n));
    if (here <= MM2_PAGE)
        for (int32_t i = 0; i < group; i++)
            for (int32_t d = 0; d < n; d++)
                o[i * n + d] /= l[i];
}

static void attend_unit(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    int32_t some = rows_a_unit(f), blocks = (f->rows + some - 1) / some;
    int32_t first = unit % blocks * some, end = first + some < f->rows ? first + some : f->rows;
    for (int32_t i = 0; i < PAGES_A_ROUND; i++)
        for (int32_t row = first; row < end; row++)
            attend_page(f, row, unit / blocks, f->round * PAGES_A_ROUND + i);
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
