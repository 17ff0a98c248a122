/* The sparse mixture of experts:
 *
 *     h = rms(x)   s = sigmoid(Wr h)   T = the top k of s + bias
 *     p_e = scale * s_e / sum over T of s
 *     x += sum over e in T, ascending, of p_e * down_e(silu(gate_e h) * (up_e h))
 *
 * The bias takes part in the selection only; ties go to the lower expert. The selection is offered
 * to taps before the weights are computed from it, so a script may reroute. Rows are grouped by
 * expert into slots (row * k + rank); gate and up are one unit of work; down runs in rounds of
 * experts, each unit owning a tile of output features, so that every row's sum is in ascending
 * expert order whatever the threads do. */
#include "base/status.h"
#include "model/experts.h"
#include "run/forward.h"
#include "tensor/quant.h"

#include <string.h>

enum { ROUND_FLOPS = 32 << 20 }; /* of one unit of the down projection */

static void norm_row(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    int32_t n = mm2_forward_config(f)->hidden_size;
    int64_t at = (int64_t)unit * n;
    mm2_forward_norm(f, thread, &mm2_forward_layer(f)->mlp_norm, f->h + at, f->x + at, n);
}

/* ---- Router ---- */

/* The kinds of activation that weights of these types (a bit for each) ask for. */
static uint32_t input_kinds(const mm2_forward *f, uint64_t dtypes)
{
    uint32_t kinds = 0;
    for (int32_t dtype = 1; dtype < MM2_DTYPE_COUNT; dtype++) {
        const mm2_weight w = {.dtype = dtype};
        if (dtypes >> dtype & 1)
            kinds |= mm2_input_kind(f, &w);
    }
    return kinds;
}

/* One input serves the router and the experts: both read h. */
static mm2_status begin_input(mm2_forward *f, int32_t round, int32_t *units)
{
    const mm2_layer *layer = mm2_forward_layer(f);
    *units = -1;
    if (!round)
        mm2_forward_input(f, f->h, mm2_forward_config(f)->hidden_size, f->rows,
                          mm2_input_kind(f, &layer->router) | input_kinds(f, layer->gate_up_dtypes),
                          0, units);
    return MM2_OK;
}

static mm2_status begin_router(mm2_forward *f, int32_t round, int32_t *units)
{
    const mm2_weight *w = &mm2_forward_layer(f)->router;
    int32_t tile = mm2_forward_tile(f, w->n_out, w->n_in, f->rows);
    *units = round ? -1 : (w->n_out + tile - 1) / tile;
    return MM2_OK;
}

static void router_tile(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    const mm2_weight *w = &mm2_forward_layer(f)->router;
    int32_t tile = mm2_forward_tile(f, w->n_out, w->n_in, f->rows), first = unit * tile;
    mm2_forward_product(f, thread, w, f->router, w->n_out, first,
                        w->n_out - first < tile ? w->n_out - first : tile);
}

static void select_row(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    const mm2_weight *bias = &mm2_forward_layer(f)->routing_bias;
    int32_t experts = mm2_forward_config(f)->num_local_experts,
            k = mm2_forward_config(f)->num_experts_per_tok;
    float *scores = f->scores + (int64_t)unit * experts, *choice = f->threads[thread].a;
    int32_t *chosen = f->indices + (int64_t)unit * k;
    f->model->kernels->sigmoid(scores, f->router + (int64_t)unit * experts, experts);
    if (bias->data) {
        mm2_dequantize_row(bias->dtype, bias->data, choice, experts);
        f->model->kernels->axpy(choice, 1, scores, experts);
    } else {
        memcpy(choice, scores, (size_t)experts * 4);
    }
    /* Insertion into a list that is sorted best first; an equal score goes behind, so ties fall to
     * the lower id. A NaN never beats anything: if all are NaN the first k experts are taken and
     * the NaN travels on in the weights. */
    int32_t count = 0;
    for (int32_t e = 0; e < experts; e++) {
        int32_t at = count;
        while (at > 0 && choice[e] > choice[chosen[at - 1]])
            at--;
        if (at == k)
            continue;
        count += count < k;
        memmove(chosen + at + 1, chosen + at, (size_t)(count - 1 - at) * 4);
        chosen[at] = e;
    }
    for (int32_t i = 1; i < k; i++) { /* ascending ids */
        int32_t e = chosen[i], at = i;
        for (; at > 0 && chosen[at - 1] > e; at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = e;
    }
}

static void weigh_row(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    int32_t experts = mm2_forward_config(f)->num_local_experts,
            k = mm2_forward_config(f)->num_experts_per_tok;
    const float *scores = f->scores + (int64_t)unit * experts;
    const int32_t *chosen = f->indices + (int64_t)unit * k;
    float *weights = f->expert_weights + (int64_t)unit * k, sum = 0;
    for (int32_t i = 0; i < k; i++)
        sum += scores[chosen[i]];
    for (int32_t i = 0; i < k; i++)
        weights[i] = scores[chosen[i]] / sum * mm2_forward_config(f)->routed_scaling_factor;
}

/* A tap may have changed the selection. */
static mm2_status begin_weigh(mm2_forward *f, int32_t round, int32_t *units)
{
    int32_t experts = mm2_forward_config(f)->num_local_experts,
            k = mm2_forward_config(f)->num_experts_per_tok;
    *units = round ? -1 : f->rows;
    for (int64_t i = 0; !round && i < (int64_t)f->rows * k; i++) {
        int32_t e = f->indices[i];
        if (e < 0 || e >= experts || (i % k && f->indices[i - 1] >= e))
            return mm2_fail(
                MM2_E_ARG,
                "layer %d, token %d: the expert indices left by a tap must be ascending, distinct "
                "and in 0..%d, found %d at rank %d; write valid ones and run again",
                f->layer, f->row_position[i / k], experts - 1, e, (int32_t)(i % k));
    }
    return MM2_OK;
}

/* ---- Experts ---- */

/* Counting sort of the slots by expert; within an expert they stay in row order. */
static void group_slots(mm2_forward *f)
{
    int32_t experts = mm2_forward_config(f)->num_local_experts;
    int32_t total = f->rows * mm2_forward_config(f)->num_experts_per_tok;
    int32_t *begin = f->group_begin;
    memset(begin, 0, (size_t)(experts + 1) * 4);
    for (int32_t i = 0; i < total; i++)
        begin[f->indices[i] + 1]++;
    f->active = 0;
    for (int32_t e = 0, panel = 0; e < experts; e++) {
        f->expert_panel[e] = panel;
        panel += (begin[e + 1] + 15) / 16;
        if (begin[e + 1])
            f->unit_expert[f->active++] = e;
        begin[e + 1] += begin[e];
    }
    for (int32_t i = 0; i < total; i++)
        f->slots[begin[f->indices[i]]++] = i;
    memmove(begin + 1, begin,
            (size_t)experts * 4); /* the loop above moved every begin to its end */
    begin[0] = 0;
}

/* Packs the rows of expert e, whose slots share an input row by `share`. */
static void pack_expert(mm2_forward *f, int32_t e, int32_t share, int32_t thread)
{
    const int32_t *slots = f->slots + f->group_begin[e];
    int32_t rows = f->group_begin[e + 1] - f->group_begin[e];
    const void **acts = f->threads[thread].act;
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++) {
        if (!(f->input.kinds >> kind & 1) || !mm2_forward_packs(f, kind, rows))
            continue;
        for (int32_t r = 0; r < rows; r++)
            acts[r] = f->input.pointers[kind][slots[r] / share];
        mm2_forward_pack(f, kind, f->expert_panel[e], acts, rows);
    }
}

/* Rows [first, first + count) of a weight of expert e times the rows of its slots, to out[r *
 * count], ... */
static void multiply_expert(mm2_forward *f, const mm2_weight *w, int32_t e, int32_t share,
                            float *out, int32_t first, int32_t count, int32_t thread)
{
    const int32_t *slots = f->slots + f->group_begin[e];
    int32_t rows = f->group_begin[e + 1] - f->group_begin[e];
    mm2_thread_scratch *s = &f->threads[thread];
    const void **inputs = f->input.pointers[mm2_input_act(f, w)];
    for (int32_t r = 0; r < rows; r++) {
        s->act[r] = inputs[slots[r] / share];
        s->out[r] = out + (int64_t)r * count;
    }
    mm2_forward_multiply(f, w, (float *const *)s->out, first, count, s->act, f->expert_panel[e],
                         rows);
}

enum { EXPECTED = 8 }; /* experts whose weights are being read from the file before they are used */

static void expect(const mm2_forward *f, int32_t i)
{
    if (i < f->active)
        mm2_experts_expect(&f->model->weights, f->layer, f->unit_expert[i]);
}

/* One unit packs the rows of one expert: nothing where the kernels do not pack. */
static mm2_status begin_pack(mm2_forward *f, int32_t round, int32_t *units)
{
    *units = -1;
    if (round)
        return MM2_OK;
    group_slots(f);
    for (int32_t i = 0; i < EXPECTED; i++)
        expect(f, i);
    *units = 0;
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++)
        if (f->input.kinds >> kind & 1 && f->input.panel[kind])
            *units = f->active;
    return MM2_OK;
}

static void pack_unit(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    pack_expert(f, f->unit_expert[unit], mm2_forward_config(f)->num_experts_per_tok, thread);
}

/* Rows of the busiest expert: they decide the tiles, so that every unit is bounded. */
static int32_t most_rows(const mm2_forward *f)
{
    int32_t most = 1;
    for (int32_t i = 0; i < f->active; i++) {
        int32_t e = f->unit_expert[i], rows = f->group_begin[e + 1] - f->group_begin[e];
        most = rows > most ? rows : most;
    }
    return most;
}

static mm2_status begin_gate_up(mm2_forward *f, int32_t round, int32_t *units)
{
    *units = -1;
    if (round)
        return MM2_OK;
    int32_t width = mm2_forward_config(f)->intermediate_size;
    f->tile = mm2_forward_tile(f, width, 2 * mm2_forward_config(f)->hidden_size, most_rows(f));
    f->progress.period = (width + f->tile - 1) / f->tile;
    *units = f->active * f->progress.period;
    return MM2_OK;
}

static void gate_up_tile(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    mm2_thread_scratch *s = &f->threads[thread];
    int32_t width = mm2_forward_config(f)->intermediate_size,
            k = mm2_forward_config(f)->num_experts_per_tok;
    int32_t per_expert = (width + f->tile - 1) / f->tile;
    int32_t e = f->unit_expert[unit / per_expert], first = unit % per_expert * f->tile;
    int32_t count = width - first < f->tile ? width - first : f->tile;
    int32_t rows = f->group_begin[e + 1] - f->group_begin[e];
    const int32_t *slots = f->slots + f->group_begin[e];
    if (!first)
        expect(f, unit / per_expert + EXPECTED);
    const mm2_expert *expert = mm2_experts_get(&f->model->weights, f->layer, e);
    multiply_expert(f, &expert->gate, e, k, s->a, first, count, thread);
    multiply_expert(f, &expert->up, e, k, s->b, first, count, thread);
    for (int32_t r = 0; r < rows; r++)
        f->model->kernels->swiglu(f->hidden + (int64_t)slots[r] * width + first,
                                  s->a + (int64_t)r * count, s->b + (int64_t)r * count, count);
}

/* One unit quantises the rows of one expert, and packs them. */
static mm2_status begin_hidden_input(mm2_forward *f, int32_t round, int32_t *units)
{
    *units = -1;
    if (round)
        return MM2_OK;
    mm2_forward_input(f, f->hidden, mm2_forward_config(f)->intermediate_size,
                      f->rows * mm2_forward_config(f)->num_experts_per_tok,
                      input_kinds(f, mm2_forward_layer(f)->down_dtypes), 0, units);
    *units = *units ? f->active : 0;
    return MM2_OK;
}

static void hidden_unit(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    int32_t e = f->unit_expert[unit];
    for (int32_t i = f->group_begin[e]; i < f->group_begin[e + 1]; i++)
        mm2_forward_quantize_row(f, f->slots[i]);
    pack_expert(f, e, 1, thread);
}

/* A round takes experts, in ascending order, until a unit has enough to do. */
static mm2_status begin_down(mm2_forward *f, int32_t round, int32_t *units)
{
    const mm2_config *g = mm2_forward_config(f);
    f->round_first = round ? f->round_last : 0;
    f->round_last = f->round_first;
    *units = -1;
    if (f->round_first == f->active)
        return MM2_OK;
    int32_t rows = most_rows(f), least = g->num_experts_per_tok;
    f->tile =
        mm2_forward_tile(f, g->hidden_size, g->intermediate_size, rows > least ? rows : least);
    int64_t room = ROUND_FLOPS / ((int64_t)2 * g->intermediate_size * f->tile);
    do {
        int32_t e = f->unit_expert[f->round_last++];
        room -= f->group_begin[e + 1] - f->group_begin[e];
    } while (room > 0 && f->round_last < f->active);
    *units = (g->hidden_size + f->tile - 1) / f->tile;
    return MM2_OK;
}

static void down_tile(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    mm2_thread_scratch *s = &f->threads[thread];
    int32_t width = mm2_forward_config(f)->hidden_size,
            k = mm2_forward_config(f)->num_experts_per_tok;
    int32_t first = unit * f->tile, count = width - first < f->tile ? width - first : f->tile;
    if (!f->round)
        for (int32_t r = 0; r < f->rows; r++)
            memset(f->out + (int64_t)r * width + first, 0, (size_t)count * 4);
    for (int32_t i = f->round_first; i < f->round_last; i++) {
        int32_t e = f->unit_expert[i], rows = f->group_begin[e + 1] - f->group_begin[e];
        const int32_t *slots = f->slots + f->group_begin[e];
        multiply_expert(f, &mm2_experts_get(&f->model->weights, f->layer, e)->down, e, 1, s->a,
                        first, count, thread);
        for (int32_t r = 0; r < rows; r++)
            f->model->kernels->axpy(f->out + (int64_t)(slots[r] / k) * width + first,
                                    f->expert_weights[slots[r]], s->a + (int64_t)r * count, count);
    }
}

static const mm2_step steps[] = {
    {mm2_forward_rows, norm_row, {MM2_POINT_MLP_NORM + 1}},
    {begin_input, mm2_forward_quantize, {0}},
    {begin_router, router_tile, {MM2_POINT_ROUTER_LOGITS + 1}},
    {mm2_forward_rows, select_row, {MM2_POINT_EXPERT_INDICES + 1}},
    {begin_weigh, weigh_row, {MM2_POINT_EXPERT_WEIGHTS + 1}},
    {begin_pack, pack_unit, {0}},
    {begin_gate_up, gate_up_tile, {0}},
    {begin_hidden_input, hidden_unit, {0}},
    {begin_down, down_tile, {MM2_POINT_MLP_OUT + 1}},
    {mm2_forward_rows, mm2_forward_add, {MM2_POINT_RESID_POST + 1}},
};

const mm2_block mm2_block_moe = {steps, sizeof steps / sizeof *steps};
