/* The two ends of the network, as blocks: the embedding before the layers; the final norm and the
 * head behind them.
 *
 * Only rows that somebody wants have logits: the last one fed of each timeline and those ahead of it,
 * or all of its rows under a tap. They are gathered in `out` before the head, so that nobody pays for the others: a
 * head of M2 has 200,064 rows. */
#include "run/ahead.h"
#include "run/block.h"
#include "run/points.h"
#include "run/product.h"

#include <string.h>

static void embed_row(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    const mm2_weight *w = &p->model->weights.embed;
    const mm2_timeline *t = mm2_pass_timeline(p, unit);
    int32_t n = mm2_pass_config(p)->hidden_size;
    float *x = p->x + (int64_t)unit * n;
    const mm2_span *span = &p->spans[p->row_span[unit]];
    int32_t draft = unit - (span->row + span->rows - span->drafts);
    if (t)
        mm2_weight_values(
            w, draft < 0 ? mm2_timeline_tokens(t)[p->row_position[unit]] : mm2_ahead_id(t, draft),
            0, n, x);
    else
        memset(x, 0, (size_t)n * sizeof *x);
}

static void final_norm_row(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    int32_t n = mm2_pass_config(p)->hidden_size;
    int64_t at = (int64_t)unit * n;
    mm2_pass_norm(p, thread, &p->model->weights.final_norm, p->h + at, p->x + at, n);
}

static int32_t wanted_rows(const mm2_pass *p, const mm2_span *span)
{
    const mm2_timeline *t = span->timeline;
    if (!t)
        return 0;
    if (mm2_points_tapped(t, MM2_POINT_LOGITS, p->layer))
        return span->rows;
    if (span->drafts)
        return span->drafts + 1;
    return span->first + span->rows == t->length;
}

static mm2_status begin_head_input(mm2_pass *p, int32_t round, int32_t *units)
{
    *units = -1;
    if (round)
        return MM2_OK;
    int32_t n = mm2_pass_config(p)->hidden_size;
    p->logits_rows = 0;
    for (int32_t i = 0; i < p->span_count; i++) {
        mm2_span *span = &p->spans[i];
        span->logits_row = p->logits_rows;
        span->logits_rows = wanted_rows(p, span);
        memcpy(p->out + (int64_t)p->logits_rows * n,
               p->h + (int64_t)(span->row + span->rows - span->logits_rows) * n,
               (size_t)span->logits_rows * (size_t)n * sizeof *p->h);
        p->logits_rows += span->logits_rows;
    }
    uint32_t kind = mm2_product_kind(p, &p->model->weights.head);
    mm2_product_input(p, p->out, n, p->logits_rows, kind, kind, units);
    return MM2_OK;
}

static mm2_status begin_head(mm2_pass *p, int32_t round, int32_t *units)
{
    *units = round ? -1 : mm2_product_units(p, &p->model->weights.head);
    return MM2_OK;
}

static void head_unit(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    mm2_product_unit(p, &p->model->weights.head, p->logits, unit, thread);
}

static const mm2_step embed_steps[] = {{mm2_pass_rows, embed_row, {MM2_POINT_EMBED + 1}}};
static const mm2_step head_steps[] = {
    {mm2_pass_rows, final_norm_row, {MM2_POINT_FINAL_NORM + 1}},
    {begin_head_input, mm2_product_quantize, {0}},
    {begin_head, head_unit, {MM2_POINT_LOGITS + 1}},
};

const mm2_block mm2_block_embed = {.steps = embed_steps, .count = 1};
const mm2_block mm2_block_head = {.steps = head_steps, .count = 3};
