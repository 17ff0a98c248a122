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
#include "run/block.h"
#include "run/edits.h"
#include "run/product.h"
#include "tensor/quant.h"

#include <string.h>

enum { ROUND_FLOPS = 32 << 20 }; /* of one unit of the down projection */

typedef struct moe {
    float *router, *scores; /* [capacity][num_local_experts] */
    int32_t *indices;       /* [capacity][num_experts_per_tok] */
    float *expert_weights;  /* likewise */
    float *hidden;          /* [capacity * num_experts_per_tok][intermediate_size] */
    int32_t *group_begin;   /* [num_local_experts + 1] */
    int32_t *slots;         /* row * top_k + rank, ordered by expert */
    int32_t *unit_expert;   /* [num_local_experts]: experts that have rows */
    int32_t *expert_panel;  /* [num_local_experts]: first group of 16 in a panel */
    int32_t active, round_first, round_last; /* of unit_expert */
    int32_t held;                            /* of the active ones, from the first on */
    int32_t tile;                            /* output features of a unit of the step at hand */
} moe;

static moe *own(const mm2_pass *p)
{
    return p->own[MM2_BLOCK_MOE];
}

static void carve(mm2_pass *p, mm2_carver *c)
{
    const mm2_config *g = mm2_pass_config(p);
    int64_t rows = p->capacity, experts = g->num_local_experts;
    int64_t slots = rows * g->num_experts_per_tok;
    moe *to = mm2_carve(c, 1, sizeof *to);
    moe b = {.router = mm2_carve(c, rows * experts, 4),
             .scores = mm2_carve(c, rows * experts, 4),
             .indices = mm2_carve(c, slots, 4),
             .expert_weights = mm2_carve(c, slots, 4),
             .hidden = mm2_carve(c, slots * g->intermediate_size, 4),
             .group_begin = mm2_carve(c, experts + 1, 4),
             .slots = mm2_carve(c, slots, 4),
             .unit_expert = mm2_carve(c, experts, 4),
             .expert_panel = mm2_carve(c, experts, 4)};
    mm2_product_need(p, rows, g->hidden_size);
    mm2_product_need(p, slots, g->intermediate_size);
    /* The rows of each expert begin a group. */
    mm2_product_need_groups(p, slots / 16 + experts, g->hidden_size);
    mm2_product_need_groups(p, slots / 16 + experts, g->intermediate_size);
    mm2_product_need_scratch(p, experts); /* scores with the bias */
    if (!to)
        return;
    *to = b;
    p->own[MM2_BLOCK_MOE] = to;
    p->point_data[MM2_POINT_ROUTER_LOGITS] = b.router;
    p->point_data[MM2_POINT_EXPERT_INDICES] = b.indices;
    p->point_data[MM2_POINT_EXPERT_WEIGHTS] = b.expert_weights;
}

static void norm_row(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    int32_t n = mm2_pass_config(p)->hidden_size;
    int64_t at = (int64_t)unit * n;
    mm2_pass_norm(p, thread, &mm2_pass_layer(p)->mlp_norm, p->h + at, p->x + at, n);
}

/* ---- Router ---- */

/* The kinds of activation that weights of these types (a bit for each) ask for. */
static uint32_t input_kinds(const mm2_pass *p, uint64_t dtypes)
{
    uint32_t kinds = 0;
    for (int32_t dtype = 1; dtype < MM2_DTYPE_COUNT; dtype++)
        if (dtypes >> dtype & 1)
            kinds |= 1u << mm2_product_act(p, dtype);
    return kinds;
}

/* One input serves the router, which takes all rows together, and the experts: both read h. */
static mm2_status begin_input(mm2_pass *p, int32_t round, int32_t *units)
{
    const mm2_layer *layer = mm2_pass_layer(p);
    uint32_t router = mm2_product_kind(p, &layer->router);
    *units = -1;
    if (!round)
        mm2_product_input(p, p->h, mm2_pass_config(p)->hidden_size, p->rows,
                          router | input_kinds(p, layer->gate_up_dtypes), router, units);
    return MM2_OK;
}

static mm2_status begin_router(mm2_pass *p, int32_t round, int32_t *units)
{
    *units = round ? -1 : mm2_product_units(p, &mm2_pass_layer(p)->router);
    return MM2_OK;
}

static void router_unit(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    mm2_product_unit(p, &mm2_pass_layer(p)->router, own(p)->router, unit, thread);
}

static void select_row(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    moe *b = own(p);
    const mm2_weight *bias = &mm2_pass_layer(p)->routing_bias;
    int32_t experts = mm2_pass_config(p)->num_local_experts,
            k = mm2_pass_config(p)->num_experts_per_tok;
    float *scores = b->scores + (int64_t)unit * experts, *choice = p->threads[thread].a;
    int32_t *chosen = b->indices + (int64_t)unit * k;
    p->model->kernels->sigmoid(scores, b->router + (int64_t)unit * experts, experts);
    if (bias->data) {
        mm2_dequantize_row(bias->dtype, bias->data, choice, experts);
        p->model->kernels->axpy(choice, 1, scores, experts);
    } else {
        memcpy(choice, scores, (size_t)experts * 4);
    }
    mm2_edits_choose(p, unit, choice);
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

static void weigh_row(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    moe *b = own(p);
    int32_t experts = mm2_pass_config(p)->num_local_experts,
            k = mm2_pass_config(p)->num_experts_per_tok;
    const float *scores = b->scores + (int64_t)unit * experts;
    const int32_t *chosen = b->indices + (int64_t)unit * k;
    float *weights = b->expert_weights + (int64_t)unit * k, sum = 0;
    for (int32_t i = 0; i < k; i++)
        sum += scores[chosen[i]];
    for (int32_t i = 0; i < k; i++)
        weights[i] = scores[chosen[i]] / sum * mm2_pass_config(p)->routed_scaling_factor;
}

/* A tap may have changed the selection. */
static mm2_status begin_weigh(mm2_pass *p, int32_t round, int32_t *units)
{
    moe *b = own(p);
    int32_t experts = mm2_pass_config(p)->num_local_experts,
            k = mm2_pass_config(p)->num_experts_per_tok;
    *units = round ? -1 : p->rows;
    for (int64_t i = 0; !round && i < (int64_t)p->rows * k; i++) {
        int32_t e = b->indices[i];
        if (e < 0 || e >= experts || (i % k && b->indices[i - 1] >= e))
            return mm2_fail(
                MM2_E_ARG,
                "layer %d, token %d: the expert indices left by a tap must be ascending, distinct "
                "and in 0..%d, found %d at rank %d; write valid ones and run again",
                p->layer, p->row_position[i / k], experts - 1, e, (int32_t)(i % k));
    }
    return MM2_OK;
}

/* ---- Experts ---- */

/* Counting sort of the slots by expert; within an expert they stay in row order. */
static void group_slots(mm2_pass *p)
{
    moe *b = own(p);
    int32_t experts = mm2_pass_config(p)->num_local_experts;
    int32_t total = p->rows * mm2_pass_config(p)->num_experts_per_tok;
    int32_t *begin = b->group_begin;
    memset(begin, 0, (size_t)(experts + 1) * 4);
    for (int32_t i = 0; i < total; i++)
        begin[b->indices[i] + 1]++;
    b->active = 0;
    for (int32_t e = 0, panel = 0; e < experts; e++) {
        b->expert_panel[e] = panel;
        panel += (begin[e + 1] + 15) / 16;
        if (begin[e + 1])
            b->unit_expert[b->active++] = e;
        begin[e + 1] += begin[e];
    }
    for (int32_t i = 0; i < total; i++)
        b->slots[begin[b->indices[i]]++] = i;
    memmove(begin + 1, begin,
            (size_t)experts * 4); /* the loop above moved every begin to its end */
    begin[0] = 0;
}

/* Packs the rows of expert e, whose slots share an input row by `share`. */
static void pack_expert(mm2_pass *p, int32_t e, int32_t share, int32_t thread)
{
    moe *b = own(p);
    const int32_t *slots = b->slots + b->group_begin[e];
    int32_t rows = b->group_begin[e + 1] - b->group_begin[e];
    const void **acts = p->threads[thread].act;
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++) {
        if (!(p->input.kinds >> kind & 1) || !mm2_product_packs(p, kind, rows))
            continue;
        for (int32_t r = 0; r < rows; r++)
            acts[r] = p->input.pointers[kind][slots[r] / share];
        mm2_product_pack(p, kind, b->expert_panel[e], acts, rows);
    }
}

/* Rows [first, first + count) of a weight of expert e times the rows of its slots, to out[r *
 * count], ... */
static void multiply_expert(mm2_pass *p, const mm2_weight *w, int32_t e, int32_t share, float *out,
                            int32_t first, int32_t count, int32_t thread)
{
    moe *b = own(p);
    const int32_t *slots = b->slots + b->group_begin[e];
    int32_t rows = b->group_begin[e + 1] - b->group_begin[e];
    mm2_scratch *s = &p->threads[thread];
    const void **inputs = p->input.pointers[mm2_product_act(p, w->dtype)];
    for (int32_t r = 0; r < rows; r++) {
        s->act[r] = inputs[slots[r] / share];
        s->out[r] = out + (int64_t)r * count;
    }
    mm2_product_multiply(p, w, (float *const *)s->out, first, count, s->act, b->expert_panel[e],
                         rows);
}

enum { EXPECTED = 8 }; /* experts whose weights are being read from the file before they are used */

static void prefetch(const mm2_pass *p, int32_t i)
{
    moe *b = own(p);
    if (i < b->active)
        mm2_experts_prefetch(&p->model->weights, p->layer, b->unit_expert[i]);
}

/* One unit packs the rows of one expert: nothing where the kernels do not pack. */
static mm2_status begin_pack(mm2_pass *p, int32_t round, int32_t *units)
{
    moe *b = own(p);
    *units = -1;
    if (round)
        return MM2_OK;
    if (!b->held) {
        group_slots(p);
        for (int32_t i = 0; i < EXPECTED; i++)
            prefetch(p, i);
    }
    for (; b->held < b->active; b->held++)
        if (!mm2_experts_hold(&p->model->weights, p->layer, b->unit_expert[b->held]))
            return MM2_WAITING;
    *units = 0;
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++)
        if (p->input.kinds >> kind & 1 && p->input.panel[kind])
            *units = b->active;
    return MM2_OK;
}

static void pack_unit(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    moe *b = own(p);
    pack_expert(p, b->unit_expert[unit], mm2_pass_config(p)->num_experts_per_tok, thread);
}

/* Rows of the busiest expert: they decide the tiles, so that every unit is bounded. */
static int32_t most_rows(const mm2_pass *p)
{
    moe *b = own(p);
    int32_t most = 1;
    for (int32_t i = 0; i < b->active; i++) {
        int32_t e = b->unit_expert[i], rows = b->group_begin[e + 1] - b->group_begin[e];
        most = rows > most ? rows : most;
    }
    return most;
}

static mm2_status begin_gate_up(mm2_pass *p, int32_t round, int32_t *units)
{
    moe *b = own(p);
    *units = -1;
    if (round)
        return MM2_OK;
    int32_t width = mm2_pass_config(p)->intermediate_size;
    b->tile = mm2_product_tile(p, width, 2 * mm2_pass_config(p)->hidden_size, most_rows(p));
    p->progress.period = (width + b->tile - 1) / b->tile;
    *units = b->active * p->progress.period;
    return MM2_OK;
}

static void gate_up_tile(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    moe *b = own(p);
    mm2_scratch *s = &p->threads[thread];
    int32_t width = mm2_pass_config(p)->intermediate_size,
            k = mm2_pass_config(p)->num_experts_per_tok;
    int32_t per_expert = (width + b->tile - 1) / b->tile;
    int32_t e = b->unit_expert[unit / per_expert], first = unit % per_expert * b->tile;
    int32_t count = width - first < b->tile ? width - first : b->tile;
    int32_t rows = b->group_begin[e + 1] - b->group_begin[e];
    const int32_t *slots = b->slots + b->group_begin[e];
    if (!first)
        prefetch(p, unit / per_expert + EXPECTED);
    const mm2_expert *expert = mm2_experts_get(&p->model->weights, p->layer, e);
    multiply_expert(p, &expert->gate, e, k, s->a, first, count, thread);
    multiply_expert(p, &expert->up, e, k, s->b, first, count, thread);
    for (int32_t r = 0; r < rows; r++)
        p->model->kernels->swiglu(b->hidden + (int64_t)slots[r] * width + first,
                                  s->a + (int64_t)r * count, s->b + (int64_t)r * count, count);
}

/* One unit quantises the rows of one expert, and packs them. */
static mm2_status begin_hidden_input(mm2_pass *p, int32_t round, int32_t *units)
{
    moe *b = own(p);
    *units = -1;
    if (round)
        return MM2_OK;
    mm2_product_input(p, b->hidden, mm2_pass_config(p)->intermediate_size,
                      p->rows * mm2_pass_config(p)->num_experts_per_tok,
                      input_kinds(p, mm2_pass_layer(p)->down_dtypes), 0, units);
    *units = *units ? b->active : 0;
    return MM2_OK;
}

static void hidden_unit(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    moe *b = own(p);
    int32_t e = b->unit_expert[unit];
    for (int32_t i = b->group_begin[e]; i < b->group_begin[e + 1]; i++)
        mm2_product_quantize_row(p, b->slots[i]);
    pack_expert(p, e, 1, thread);
}

static void let_go(mm2_pass *p)
{
    moe *b = own(p);
    while (b->held)
        mm2_experts_release(&p->model->weights, p->layer, b->unit_expert[--b->held]);
}

/* A round takes experts, in ascending order, until a unit has enough to do. */
static mm2_status begin_down(mm2_pass *p, int32_t round, int32_t *units)
{
    moe *b = own(p);
    const mm2_config *g = mm2_pass_config(p);
    b->round_first = round ? b->round_last : 0;
    b->round_last = b->round_first;
    *units = -1;
    if (b->round_first == b->active) {
        let_go(p);
        return MM2_OK;
    }
    int32_t rows = most_rows(p), least = g->num_experts_per_tok;
    b->tile =
        mm2_product_tile(p, g->hidden_size, g->intermediate_size, rows > least ? rows : least);
    int64_t room = ROUND_FLOPS / ((int64_t)2 * g->intermediate_size * b->tile);
    do {
        int32_t e = b->unit_expert[b->round_last++];
        room -= b->group_begin[e + 1] - b->group_begin[e];
    } while (room > 0 && b->round_last < b->active);
    *units = (g->hidden_size + b->tile - 1) / b->tile;
    return MM2_OK;
}

static void down_tile(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    moe *b = own(p);
    mm2_scratch *s = &p->threads[thread];
    int32_t width = mm2_pass_config(p)->hidden_size, k = mm2_pass_config(p)->num_experts_per_tok;
    int32_t first = unit * b->tile, count = width - first < b->tile ? width - first : b->tile;
    if (!p->round)
        for (int32_t r = 0; r < p->rows; r++)
            memset(p->out + (int64_t)r * width + first, 0, (size_t)count * 4);
    for (int32_t i = b->round_first; i < b->round_last; i++) {
        int32_t e = b->unit_expert[i], rows = b->group_begin[e + 1] - b->group_begin[e];
        const int32_t *slots = b->slots + b->group_begin[e];
        multiply_expert(p, &mm2_experts_get(&p->model->weights, p->layer, e)->down, e, 1, s->a,
                        first, count, thread);
        for (int32_t r = 0; r < rows; r++)
            p->model->kernels->axpy(p->out + (int64_t)(slots[r] / k) * width + first,
                                    b->expert_weights[slots[r]], s->a + (int64_t)r * count, count);
    }
}

static const mm2_step steps[] = {
    {mm2_pass_rows, norm_row, {MM2_POINT_MLP_NORM + 1}},
    {begin_input, mm2_product_quantize, {0}},
    {begin_router, router_unit, {MM2_POINT_ROUTER_LOGITS + 1}},
    {mm2_pass_rows, select_row, {MM2_POINT_EXPERT_INDICES + 1}},
    {begin_weigh, weigh_row, {MM2_POINT_EXPERT_WEIGHTS + 1}},
    {begin_pack, pack_unit, {0}},
    {begin_gate_up, gate_up_tile, {0}},
    {begin_hidden_input, hidden_unit, {0}},
    {begin_down, down_tile, {MM2_POINT_MLP_OUT + 1}},
    {mm2_pass_rows, mm2_pass_add, {MM2_POINT_RESID_POST + 1}},
};

const mm2_block mm2_block_moe = {
    .steps = steps, .count = sizeof steps / sizeof *steps, .carve = carve, .drop = let_go};
