/* One row a point. Shapes are made of the configuration's fields, which the table names by their
 * place in mm2_config. Offering walks over the points of a finished step and the spans of the pass;
 * where it stands is kept in the pass, so that the run can leave at a tap and come back. */
#include "run/points.h"

#include "base/status.h"
#include "run/ahead.h"

#include <stddef.h>

enum { EVERY_LAYER, FIRST_LAYER, LAST_LAYER };

#define FIELD(name) ((int32_t)offsetof(mm2_config, name))

typedef struct point {
    const char *name;
    int32_t where;     /* which layers have it */
    int32_t dtype;     /* of 4 bytes */
    int32_t fields[2]; /* of mm2_config: what a row is shaped like; 0: one dimension less */
} point;

// clang-format off
static const point points[MM2_POINT_COUNT] = {
    [MM2_POINT_EMBED]          = {"embed",          FIRST_LAYER, MM2_F32, {FIELD(hidden_size)}},
    [MM2_POINT_RESID_PRE]      = {"resid_pre",      EVERY_LAYER, MM2_F32, {FIELD(hidden_size)}},
    [MM2_POINT_ATTN_NORM]      = {"attn_norm",      EVERY_LAYER, MM2_F32, {FIELD(hidden_size)}},
    [MM2_POINT_Q]              = {"q",              EVERY_LAYER, MM2_F32, {FIELD(num_attention_heads), FIELD(head_dim)}},
    [MM2_POINT_K]              = {"k",              EVERY_LAYER, MM2_F32, {FIELD(num_key_value_heads), FIELD(head_dim)}},
    [MM2_POINT_V]              = {"v",              EVERY_LAYER, MM2_F32, {FIELD(num_key_value_heads), FIELD(head_dim)}},
    [MM2_POINT_Z]              = {"z",              EVERY_LAYER, MM2_F32, {FIELD(num_attention_heads), FIELD(head_dim)}},
    [MM2_POINT_ATTN_OUT]       = {"attn_out",       EVERY_LAYER, MM2_F32, {FIELD(hidden_size)}},
    [MM2_POINT_RESID_MID]      = {"resid_mid",      EVERY_LAYER, MM2_F32, {FIELD(hidden_size)}},
    [MM2_POINT_MLP_NORM]       = {"mlp_norm",       EVERY_LAYER, MM2_F32, {FIELD(hidden_size)}},
    [MM2_POINT_ROUTER_LOGITS]  = {"router_logits",  EVERY_LAYER, MM2_F32, {FIELD(num_local_experts)}},
    [MM2_POINT_EXPERT_INDICES] = {"expert_indices", EVERY_LAYER, MM2_I32, {FIELD(num_experts_per_tok)}},
    [MM2_POINT_EXPERT_WEIGHTS] = {"expert_weights", EVERY_LAYER, MM2_F32, {FIELD(num_experts_per_tok)}},
    [MM2_POINT_MLP_OUT]        = {"mlp_out",        EVERY_LAYER, MM2_F32, {FIELD(hidden_size)}},
    [MM2_POINT_RESID_POST]     = {"resid_post",     EVERY_LAYER, MM2_F32, {FIELD(hidden_size)}},
    [MM2_POINT_FINAL_NORM]     = {"final_norm",     LAST_LAYER,  MM2_F32, {FIELD(hidden_size)}},
    [MM2_POINT_LOGITS]         = {"logits",         LAST_LAYER,  MM2_F32, {FIELD(vocab_size)}},
};
// clang-format on

const char *mm2_point_name(int32_t number)
{
    return number < 0 || number >= MM2_POINT_COUNT ? NULL : points[number].name;
}

int mm2_points_exist(int32_t number, int32_t layer, int32_t layers)
{
    const point *at = &points[number];
    return at->where == EVERY_LAYER || layer == (at->where == FIRST_LAYER ? 0 : layers - 1);
}

mm2_status mm2_points_tap(mm2_timeline *t, int32_t number, int32_t layer, int on)
{
    int32_t layers = t->pages.layout->layers;
    if (number < 0 || number >= MM2_POINT_COUNT)
        return mm2_fail(MM2_E_ARG, "tap point must be 0..%d, got %d", MM2_POINT_COUNT - 1, number);
    if (layer < -1 || layer >= layers)
        return mm2_fail(MM2_E_ARG, "tap layer must be 0..%d, or -1 for all, got %d", layers - 1,
                        layer);
    const point *at = &points[number];
    if (layer >= 0 && !mm2_points_exist(number, layer, layers))
        return mm2_fail(MM2_E_ARG, "the point %s exists at layer %d only, got layer %d", at->name,
                        at->where == FIRST_LAYER ? 0 : layers - 1, layer);
    if (on)
        mm2_ahead_drop(t);
    for (int32_t l = 0; l < layers; l++)
        if ((layer < 0 || l == layer) && mm2_points_exist(number, l, layers))
            t->taps[number * layers + l] = on != 0;
    return MM2_OK;
}

/* 1 for a dimension that there is not. */
static int32_t field(const mm2_config *g, int32_t offset)
{
    return offset ? *(const int32_t *)((const char *)g + offset) : 1;
}

int32_t mm2_points_width(const mm2_config *g, int32_t number)
{
    return field(g, points[number].fields[0]) * field(g, points[number].fields[1]);
}

static void describe(const mm2_pass *p, int32_t number, const mm2_span *span, mm2_event *event)
{
    const point *at = &points[number];
    const mm2_config *g = mm2_pass_config(p);
    int32_t outer = field(g, at->fields[0]), inner = at->fields[1] ? field(g, at->fields[1]) : 0;
    int32_t width = mm2_points_width(g, number);
    int only_wanted = number == MM2_POINT_LOGITS; /* other points have all rows of the span */
    int32_t rows = (only_wanted ? span->logits_rows : span->rows) - span->drafts;
    int32_t row = only_wanted ? span->logits_row : span->row;
    event->tensor = (mm2_tensor){.data = (char *)p->point_data[number] + (int64_t)row * width * 4,
                                 .shape = {rows, outer, inner},
                                 .strides = {width, inner ? inner : 1, inner ? 1 : 0},
                                 .nbytes = (int64_t)rows * width * 4,
                                 .ndim = inner ? 3 : 2,
                                 .dtype = at->dtype};
    event->point = number;
    event->layer = p->layer;
    event->first = span->first + span->rows - span->drafts - rows;
    event->count = rows;
}

int mm2_points_offer(mm2_pass *p, const int8_t *offered, mm2_event *event)
{
    for (; p->point < MM2_STEP_POINTS && offered[p->point]; p->point++, p->span = 0) {
        int32_t number = offered[p->point] - 1;
        while (p->span < p->span_count) {
            const mm2_span *span = &p->spans[p->span++];
            if (!span->timeline || !mm2_points_tapped(span->timeline, number, p->layer) ||
                (number == MM2_POINT_LOGITS && !span->logits_rows))
                continue;
            describe(p, number, span, event);
            return 1;
        }
    }
    return 0;
}
