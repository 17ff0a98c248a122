/* Products of the rows in flight. The kinds of activations that the weights of a step ask for are
 * made once for all of them: quantised row by row, and packed in groups of 16 rows where the level
 * has kernels for that. Buffers are those of the pass, sized by what its blocks said they need. */
#include "run/product.h"

#include <stddef.h>

/* Of one unit: at most about a millisecond of one core, at least what a hand-over is worth. Output
 * features come in multiples of what the widest kernels take together. */
enum { UNIT_FLOPS = 64 << 20, LEAST_FLOPS = 64 << 10, TILE_STEP = 32 };

/* ---- Memory ---- */

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

void mm2_product_need(mm2_pass *p, int64_t count, int32_t n)
{
    mm2_need *need = &p->need;
    need->count = most(need->count, count);
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++)
        need->bytes[kind] = most(need->bytes[kind], count * mm2_act_bytes(kind, n));
}

void mm2_product_need_groups(mm2_pass *p, int64_t groups, int32_t n)
{
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++)
        p->need.panel[kind] = most(p->need.panel[kind], groups * mm2_panel_bytes(kind, 16, n));
}

void mm2_product_need_scratch(mm2_pass *p, int64_t n)
{
    p->need.scratch = most(p->need.scratch, n);
}

void mm2_product_carve(mm2_pass *p, mm2_carver *c)
{
    const mm2_need *need = &p->need;
    mm2_input *in = &p->input;
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++) {
        in->data[kind] = kind == MM2_ACT_F32 ? NULL : mm2_carve(c, need->bytes[kind], 1);
        in->pointers[kind] = mm2_carve(c, need->count, sizeof(void *));
        in->panel[kind] = p->model->kernels->pack[kind] ? mm2_carve(c, need->panel[kind], 1) : NULL;
    }
    int32_t threads = mm2_pool_threads(p->model->pool);
    mm2_scratch *scratch = mm2_carve(c, threads, sizeof *scratch);
    for (int32_t i = 0; i < threads; i++) {
        mm2_scratch s = {.out = mm2_carve(c, p->capacity, sizeof(void *)),
                         .act = mm2_carve(c, p->capacity, sizeof(void *)),
                         .a = mm2_carve(c, need->scratch, 4),
                         .b = mm2_carve(c, need->scratch, 4)};
        if (scratch)
            scratch[i] = s;
    }
    p->threads = scratch;
}

/* ---- Input ---- */

void mm2_product_input(mm2_pass *p, const float *rows, int32_t n, int32_t count, uint32_t kinds,
                       uint32_t whole, int32_t *units)
{
    mm2_input *in = &p->input;
    in->rows = rows;
    in->n = n;
    in->count = count;
    in->kinds = kinds;
    in->whole = whole;
    in->unit_rows = 1;
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++) {
        if (!(kinds >> kind & 1))
            continue;
        const char *base = kind == MM2_ACT_F32 ? (const char *)rows : in->data[kind];
        int64_t stride = kind == MM2_ACT_F32 ? (int64_t)n * 4 : mm2_act_bytes(kind, n);
        for (int32_t r = 0; r < count; r++)
            in->pointers[kind][r] = base + r * stride;
        if (whole >> kind & 1 && mm2_product_packs(p, kind, count))
            in->unit_rows = 16;
    }
    *units = kinds & ~(1u << MM2_ACT_F32) ? (count + in->unit_rows - 1) / in->unit_rows : 0;
}

void mm2_product_quantize_row(mm2_pass *p, int32_t row)
{
    const mm2_input *in = &p->input;
    for (int32_t kind = MM2_ACT_F32 + 1; kind < MM2_ACT_KINDS; kind++)
        if (in->kinds >> kind & 1)
            p->model->kernels->quantize[kind]((void *)in->pointers[kind][row],
                                              in->rows + (int64_t)row * in->n, in->n);
}

void mm2_product_pack(mm2_pass *p, int32_t kind, int32_t group, const void *const *acts,
                      int32_t rows)
{
    const mm2_input *in = &p->input;
    p->model->kernels->pack[kind](in->panel[kind] + group * mm2_panel_bytes(kind, 16, in->n), acts,
                                  rows, in->n);
}

void mm2_product_quantize(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    const mm2_input *in = &p->input;
    int32_t first = unit * in->unit_rows, rows = in->count - first;
    rows = rows < in->unit_rows ? rows : in->unit_rows;
    for (int32_t row = first; row < first + rows; row++)
        mm2_product_quantize_row(p, row);
    for (int32_t kind = 0; in->unit_rows > 1 && kind < MM2_ACT_KINDS; kind++)
        if (in->whole >> kind & 1 && mm2_product_packs(p, kind, in->count))
            mm2_product_pack(p, kind, unit, in->pointers[kind] + first, rows);
}

/* ---- Multiplying ---- */

void mm2_product_multiply(const mm2_pass *p, const mm2_weight *w, float *const *out, int32_t first,
                          int32_t count, const void *const *acts, int32_t group, int32_t rows)
{
    const mm2_kernels *kernels = p->model->kernels;
    int32_t kind = mm2_product_act(p, w->dtype);
    if (mm2_product_packs(p, kind, rows) && kernels->matmul_packed[w->dtype])
        kernels->matmul_packed[w->dtype](
            out, w, first, count,
            p->input.panel[kind] + group * mm2_panel_bytes(kind, 16, p->input.n), rows);
    else if (p->model->precision == MM2_PRECISION_EXACT)
        kernels->exact[w->dtype](out, w, first, count, acts, rows);
    else
        kernels->matmul[w->dtype](out, w, first, count, acts, rows);
}

int32_t mm2_product_tile(const mm2_pass *p, int32_t n_out, int32_t n_in, int32_t rows)
{
    int64_t each = (int64_t)2 * n_in * (rows ? rows : 1);
    int64_t largest = UNIT_FLOPS / each, least = LEAST_FLOPS / each;
    int64_t tile = n_out / (4 * mm2_pool_threads(p->model->pool));
    tile = tile < least ? least : tile;
    tile = (tile < largest ? tile : largest) / TILE_STEP * TILE_STEP;
    return tile < TILE_STEP ? TILE_STEP : tile > MM2_TILE ? MM2_TILE : (int32_t)tile;
}

int32_t mm2_product_units(const mm2_pass *p, const mm2_weight *w)
{
    int32_t tile = mm2_product_tile(p, w->n_out, w->n_in, p->input.count);
    return p->input.count ? (w->n_out + tile - 1) / tile : 0;
}

void mm2_product_unit(const mm2_pass *p, const mm2_weight *w, float *out, int32_t unit,
                      int32_t thread)
{
    int32_t rows = p->input.count, tile = mm2_product_tile(p, w->n_out, w->n_in, rows);
    int32_t first = unit * tile, count = w->n_out - first < tile ? w->n_out - first : tile;
    float **to = (float **)p->threads[thread].out;
    for (int32_t r = 0; r < rows; r++)
        to[r] = out + (int64_t)r * w->n_out + first;
    mm2_product_multiply(p, w, to, first, count, p->input.pointers[mm2_product_act(p, w->dtype)], 0,
                         rows);
}
