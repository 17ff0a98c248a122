/* A set of edits is one block of memory: the edits in the order in which they were given, a table of the
 * points and layers that have any, and the values. Spaces to project out are made orthonormal once, when
 * the set is made.
 *
 * Behind a finished step the pass's rows are units of work, so that a run may pause between any two of
 * them. A row takes the edits of its timeline one after the other; each is arithmetic on the row alone,
 * in plain C, the same bits at every level. A step none of whose rows is edited costs a look at the
 * table. Where keys and values may become others than those that follow from the tokens, the timeline
 * says so to the cache of prefixes. */
#include "run/edits.h"

#include "base/guard.h"
#include "base/status.h"
#include "run/points.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct edit { /* as mm2_edit, all defaults filled in */
    int32_t kind, point, first_layer, end_layer, first, end, at, n, rows;
    float factor, low, high;
    const float *values; /* NULL: none */
} edit;

struct mm2_edits {
    atomic_int references;
    int32_t count, layers;
    int32_t first;    /* position, of those before the final norm */
    uint8_t *present; /* [MM2_POINT_COUNT][layers] */
    edit edits[];
};

static int applies(const edit *e, int32_t point, int32_t layer, int32_t position)
{
    return e->point == point && e->first_layer <= layer && layer < e->end_layer &&
           e->first <= position && position < e->end;
}

/* ---- Sets ---- */

static const char *const names[MM2_EDIT_COUNT] = {"add",     "set",  "scale", "clamp", "cap",
                                                  "project", "keep", "weigh", "choose"};

/* Floats that stand behind `values`. */
static int64_t value_count(const mm2_config *g, const edit *e)
{
    switch (e->kind) {
    case MM2_EDIT_CLAMP:
    case MM2_EDIT_CAP:
    case MM2_EDIT_KEEP:
        return 0;
    case MM2_EDIT_PROJECT:
        return (int64_t)e->rows * e->n;
    case MM2_EDIT_WEIGH:
    case MM2_EDIT_CHOOSE:
        return g->num_local_experts;
    default:
        return e->n;
    }
}

static mm2_status check_values(const mm2_config *g, const mm2_edit *from, const edit *e, int32_t i)
{
    int64_t count = value_count(g, e), masked = 0;
    int may_lack = e->kind == MM2_EDIT_SET || e->kind == MM2_EDIT_SCALE;
    if ((from->values || !may_lack) && (from->count != count || (count && !from->values)))
        return mm2_fail(MM2_E_ARG, "edit %d (%s) takes %lld values, there are %lld", i,
                        names[e->kind], (long long)count,
                        (long long)(from->values ? from->count : 0));
    if (!isfinite(e->factor))
        return mm2_fail(MM2_E_ARG, "edit %d (%s): the factor is not finite", i, names[e->kind]);
    for (int64_t v = 0; from->values && v < count; v++) {
        float x = from->values[v];
        masked += x == -INFINITY;
        if (e->kind == MM2_EDIT_CHOOSE ? isnan(x) : !isfinite(x))
            return mm2_fail(MM2_E_ARG, "edit %d (%s): value %lld is not finite", i, names[e->kind],
                            (long long)v);
    }
    if (masked > g->num_local_experts - g->num_experts_per_tok)
        return mm2_fail(MM2_E_ARG,
                        "edit %d (choose): %lld of %d experts are masked, and %d are chosen", i,
                        (long long)masked, g->num_local_experts, g->num_experts_per_tok);
    return MM2_OK;
}

static mm2_status check_kind(const mm2_config *g, const edit *e, int32_t i)
{
    int32_t only = e->kind == MM2_EDIT_CHOOSE ? MM2_POINT_EXPERT_INDICES
                   : e->kind == MM2_EDIT_KEEP || e->kind == MM2_EDIT_WEIGH
                       ? MM2_POINT_EXPERT_WEIGHTS
                       : -1;
    if (only < 0 && e->point == MM2_POINT_EXPERT_INDICES)
        return mm2_fail(MM2_E_ARG,
                        "edit %d: at expert_indices experts can be chosen (kind %d), "
                        "not %s",
                        i, MM2_EDIT_CHOOSE, names[e->kind]);
    if (only >= 0 && e->point != only)
        return mm2_fail(MM2_E_ARG, "edit %d: %s is for the point %s, not for %s", i, names[e->kind],
                        mm2_point_name(only), mm2_point_name(e->point));
    if (e->kind == MM2_EDIT_CLAMP && !(e->low <= e->high))
        return mm2_fail(MM2_E_ARG, "edit %d (clamp): low must be at most high, got %g and %g", i,
                        (double)e->low, (double)e->high);
    if (e->kind == MM2_EDIT_CAP && !(e->factor > 0))
        return mm2_fail(MM2_E_ARG, "edit %d (cap): the factor must be above 0, got %g", i,
                        (double)e->factor);
    int32_t most = e->kind == MM2_EDIT_KEEP      ? g->num_experts_per_tok
                   : e->kind == MM2_EDIT_PROJECT ? e->n
                                                 : 0;
    if (most && (e->rows < 1 || e->rows > most))
        return mm2_fail(MM2_E_ARG, "edit %d (%s): rows must be 1..%d, got %d", i, names[e->kind],
                        most, e->rows);
    return MM2_OK;
}

/* `given`, or for 0 the end of all; 0 if [first, given) is not within 0..end. */
static int32_t range_end(int32_t first, int32_t given, int32_t end)
{
    given = given ? given : end;
    return first < 0 || first >= given || given > end ? 0 : given;
}

static mm2_status settle(edit *to, const mm2_config *g, const mm2_edit *from, int32_t i)
{
    if (from->kind < 0 || from->kind >= MM2_EDIT_COUNT)
        return mm2_fail(MM2_E_ARG, "edit %d: the kind must be 0..%d, got %d", i, MM2_EDIT_COUNT - 1,
                        from->kind);
    if (!mm2_point_name(from->point))
        return mm2_fail(MM2_E_ARG, "edit %d: the point must be 0..%d, got %d", i,
                        MM2_POINT_COUNT - 1, from->point);
    int32_t width = mm2_points_width(g, from->point), layers = g->num_hidden_layers;
    *to = (edit){.kind = from->kind,
                 .point = from->point,
                 .first_layer = from->first_layer,
                 .end_layer = range_end(from->first_layer, from->end_layer, layers),
                 .first = from->first,
                 .end = range_end(from->first, from->end, INT32_MAX),
                 .at = from->at,
                 .rows = from->rows,
                 .factor = from->factor,
                 .low = from->low,
                 .high = from->high};
    if (!to->end_layer)
        return mm2_fail(MM2_E_ARG, "edit %d: layers %d to %d are not within the model's 0 to %d", i,
                        from->first_layer, from->end_layer, layers);
    if (!to->end)
        return mm2_fail(MM2_E_ARG, "edit %d: there are no positions from %d to %d", i, from->first,
                        from->end);
    if (from->n < 0 || from->at < 0 || from->at >= width || from->n > width - from->at)
        return mm2_fail(MM2_E_ARG, "edit %d: %d elements from %d on are not within the %d of %s", i,
                        from->n, from->at, width, mm2_point_name(from->point));
    to->n = from->n ? from->n : width - from->at;
    int has_layer = 0;
    for (int32_t l = to->first_layer; l < to->end_layer; l++)
        has_layer |= mm2_points_exist(from->point, l, layers);
    if (!has_layer)
        return mm2_fail(MM2_E_ARG, "edit %d: the point %s does not exist at layers %d to %d", i,
                        mm2_point_name(from->point), to->first_layer, to->end_layer);
    mm2_status status = check_kind(g, to, i);
    return status ? status : check_values(g, from, to, i);
}

static double dot(const float *a, const float *b, int32_t n)
{
    double sums[4] = {0};
    for (int32_t i = 0; i < n; i++)
        sums[i % 4] += (double)a[i] * (double)b[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* Gram-Schmidt, twice over, which is enough (Giraud et al. 2005). */
static mm2_status make_orthonormal(float *rows, int32_t count, int32_t n, int32_t number)
{
    for (int32_t r = 0; r < count; r++) {
        float *x = rows + (int64_t)r * n;
        double before = sqrt(dot(x, x, n));
        for (int32_t i = 0; i < 2 * r; i++) {
            const float *y = rows + (int64_t)(i % r) * n;
            double share = dot(x, y, n);
            for (int32_t j = 0; j < n; j++)
                x[j] = (float)(x[j] - share * y[j]);
        }
        double length = sqrt(dot(x, x, n));
        if (!(length > 1e-5 * before))
            return mm2_fail(
                MM2_E_ARG, "edit %d (project): row %d is 0 or lies in the space of those before it",
                number, r);
        for (int32_t j = 0; j < n; j++)
            x[j] = (float)(x[j] / length);
    }
    return MM2_OK;
}

/* Bytes, beside the struct and its edits: the table, to a whole number of floats. */
static size_t table_bytes(const mm2_config *g)
{
    return ((size_t)MM2_POINT_COUNT * (size_t)g->num_hidden_layers + 3) / 4 * 4;
}

/* Are experts left to choose where edit i begins? Those that other edits mask there are not. */
static mm2_status check_masks(const mm2_edits *e, const mm2_config *g, int32_t i)
{
    const edit *from = &e->edits[i];
    for (int32_t layer = from->first_layer; layer < from->end_layer; layer++) {
        int32_t masked = 0;
        for (int32_t x = 0; x < g->num_local_experts; x++) {
            int is_masked = 0;
            for (int32_t j = 0; j < e->count && !is_masked; j++)
                is_masked = applies(&e->edits[j], MM2_POINT_EXPERT_INDICES, layer, from->first) &&
                            e->edits[j].values[x] == -INFINITY;
            masked += is_masked;
        }
        if (masked > g->num_local_experts - g->num_experts_per_tok)
            return mm2_fail(
                MM2_E_ARG,
                "edit %d (choose): with the others' %d of %d experts are masked at layer "
                "%d, and %d are chosen",
                i, masked, g->num_local_experts, layer, g->num_experts_per_tok);
    }
    return MM2_OK;
}

static mm2_status fill(mm2_edits *e, const mm2_config *g, const mm2_edit *from, float *values)
{
    for (int32_t i = 0; i < e->count; i++) {
        edit *to = &e->edits[i];
        int64_t count = from[i].values ? value_count(g, to) : 0;
        if (count) {
            memcpy(values, from[i].values, (size_t)count * sizeof *values);
            mm2_status status = to->kind == MM2_EDIT_PROJECT
                                    ? make_orthonormal(values, to->rows, to->n, i)
                                    : MM2_OK;
            if (status)
                return status;
            to->values = values;
            values += count;
        }
        for (int32_t l = to->first_layer; l < to->end_layer; l++)
            e->present[to->point * e->layers + l] = 1;
        if (to->point < MM2_POINT_FINAL_NORM && to->first < e->first)
            e->first = to->first;
    }
    mm2_status status = MM2_OK;
    for (int32_t i = 0; i < e->count && !status; i++)
        if (e->edits[i].kind == MM2_EDIT_CHOOSE)
            status = check_masks(e, g, i);
    return status;
}

mm2_status mm2_edits_new(mm2_edits **out, const mm2_config *g, const mm2_edit *edits, int32_t n)
{
    size_t bytes = sizeof **out + (size_t)n * sizeof(edit) + table_bytes(g);
    mm2_edits *e = calloc(1, bytes);
    mm2_edit *given = calloc((size_t)n, sizeof *given);
    int64_t count = 0;
    mm2_status status =
        e && given ? MM2_OK : mm2_fail(MM2_E_NOMEM, "out of memory for %d edits", n);
    const char *at = (const char *)edits;
    for (int32_t i = 0; i < n && !status; i++, at += edits->size) {
        given[i].size = sizeof given[i];
        status = mm2_struct_read(&given[i], at, "edit");
        if (!status)
            status = settle(&e->edits[i], g, &given[i], i);
        if (!status)
            count += given[i].values ? value_count(g, &e->edits[i]) : 0;
    }
    mm2_edits *whole = status ? NULL : realloc(e, bytes + (size_t)count * sizeof(float));
    if (!status && !whole)
        status =
            mm2_fail(MM2_E_NOMEM, "out of memory for the %lld values of edits", (long long)count);
    e = whole ? whole : e;
    if (!status) {
        atomic_init(&e->references, 1);
        e->count = n;
        e->layers = g->num_hidden_layers;
        e->first = INT32_MAX;
        e->present = (uint8_t *)&e->edits[n];
        status = fill(e, g, given, (float *)(e->present + table_bytes(g)));
    }
    free(given);
    if (status)
        free(e);
    else
        *out = e;
    return status;
}

mm2_edits *mm2_edits_retain(mm2_edits *e)
{
    if (e)
        atomic_fetch_add(&e->references, 1);
    return e;
}

void mm2_edits_release(mm2_edits *e)
{
    if (e && atomic_fetch_sub(&e->references, 1) == 1)
        free(e);
}

int32_t mm2_edits_first(const mm2_edits *e)
{
    return e ? e->first : INT32_MAX;
}

/* ---- Rows ---- */

/* Does x[i] come before x[j]? The larger one does, or the first of equals. */
static int comes_first(const float *x, int32_t i, int32_t j)
{
    return x[i] > x[j] || (x[i] == x[j] && i < j);
}

/* All but the `kept` largest become 0, and the sum stays. */
static void keep(float *x, int32_t n, int32_t kept)
{
    float all = 0, rest = 0;
    int32_t last = 0; /* that is kept */
    for (int32_t i = 0; i < n; i++) {
        int32_t before = 0;
        for (int32_t j = 0; j < n; j++)
            before += comes_first(x, j, i);
        last = before == kept - 1 ? i : last;
    }
    for (int32_t i = 0; i < n; i++) {
        all += x[i];
        rest += comes_first(x, last, i) ? 0 : x[i];
    }
    float level = x[last];
    for (int32_t i = 0; i < n; i++)
        x[i] = level > x[i] || (level == x[i] && last < i) ? 0 : x[i] * (all / rest);
}

static void project_out(float *x, const edit *e)
{
    for (int32_t r = 0; r < e->rows; r++) {
        const float *u = e->values + (int64_t)r * e->n;
        float share = (float)dot(x, u, e->n) * e->factor;
        for (int32_t i = 0; i < e->n; i++)
            x[i] -= share * u[i];
    }
}

/* factor * tanh(x / factor), by the sigmoid that all levels have alike; 16 at a time. */
static void cap(const mm2_pass *p, float *x, const edit *e)
{
    float t[16], s[16];
    for (int32_t i = 0; i < e->n; i += 16) {
        int32_t n = e->n - i < 16 ? e->n - i : 16;
        for (int32_t j = 0; j < n; j++)
            t[j] = 2 * (x[i + j] / e->factor);
        p->model->kernels->sigmoid(s, t, n);
        for (int32_t j = 0; j < n; j++)
            x[i + j] = e->factor * (2 * s[j] - 1);
    }
}

/* An edit of the row of its point. `chosen`: the experts of the row. */
static void edit_values(const mm2_pass *p, const edit *e, float *row, const int32_t *chosen)
{
    float *x = row + e->at;
    const float *v = e->values;
    switch (e->kind) {
    case MM2_EDIT_ADD:
        for (int32_t i = 0; i < e->n; i++)
            x[i] += e->factor * v[i];
        break;
    case MM2_EDIT_SET:
        for (int32_t i = 0; i < e->n; i++)
            x[i] = v ? v[i] : e->factor;
        break;
    case MM2_EDIT_SCALE:
        for (int32_t i = 0; i < e->n; i++)
            x[i] *= v ? v[i] : e->factor;
        break;
    case MM2_EDIT_CLAMP:
        for (int32_t i = 0; i < e->n; i++)
            x[i] = x[i] < e->low ? e->low : x[i] > e->high ? e->high : x[i];
        break;
    case MM2_EDIT_CAP:
        cap(p, x, e);
        break;
    case MM2_EDIT_PROJECT:
        project_out(x, e);
        break;
    case MM2_EDIT_KEEP:
        keep(x, e->n, e->rows);
        break;
    case MM2_EDIT_WEIGH:
        for (int32_t i = 0; i < e->n; i++)
            x[i] *= v[chosen[e->at + i]];
        break;
    }
}

/* Where the row of a point is; NULL: it is not computed. */
static float *row_of(const mm2_pass *p, const mm2_span *span, int32_t point, int32_t row)
{
    int32_t at = row;
    if (point == MM2_POINT_LOGITS) {
        at = row - (span->row + span->rows - span->logits_rows);
        if (at < 0)
            return NULL;
        at += span->logits_row;
    }
    return (float *)p->point_data[point] +
           (int64_t)at * mm2_points_width(mm2_pass_config(p), point);
}

/* Work function, unit = row. */
static void edit_row(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    const mm2_span *span = &p->spans[p->row_span[unit]];
    const mm2_edits *e = span->timeline ? span->timeline->edits : NULL;
    const int32_t *chosen = (const int32_t *)p->point_data[MM2_POINT_EXPERT_INDICES] +
                            (int64_t)unit * mm2_pass_config(p)->num_experts_per_tok;
    for (int32_t at = 0; e && at < MM2_STEP_POINTS && p->edited_points[at]; at++) {
        int32_t point = p->edited_points[at] - 1;
        float *row = e->present[point * e->layers + p->layer] ? row_of(p, span, point, unit) : NULL;
        for (int32_t i = 0; row && i < e->count; i++)
            if (applies(&e->edits[i], point, p->layer, p->row_position[unit]))
                edit_values(p, &e->edits[i], row, chosen);
    }
}

/* Are rows of the pass edited at this point? Says so to their timelines. */
static int is_edited(mm2_pass *p, int32_t point)
{
    int found = 0;
    for (int32_t i = 0; i < p->span_count; i++) {
        mm2_timeline *t = p->spans[i].timeline;
        const mm2_edits *e = t ? t->edits : NULL;
        if (!e || !e->present[point * e->layers + p->layer])
            continue;
        found = 1;
        int32_t from = p->spans[i].first > e->first ? p->spans[i].first : e->first;
        if (point < MM2_POINT_FINAL_NORM && t->edited > from)
            t->edited = from;
    }
    return found;
}

int mm2_edits_apply(mm2_pass *p, const int8_t *points, const mm2_limit *limit)
{
    if (!p->edited_points) {
        int found = 0;
        for (int32_t i = 0; i < MM2_STEP_POINTS && points[i]; i++)
            found |= is_edited(p, points[i] - 1);
        p->edited_points = points;
        p->progress = (mm2_progress){0};
        p->units = found ? p->rows : 0;
    }
    return !p->units || mm2_pool_run(p->model->pool, edit_row, p, &p->progress, p->units, limit);
}

void mm2_edits_choose(const mm2_pass *p, int32_t row, float *scores)
{
    const mm2_timeline *t = mm2_pass_timeline(p, row);
    const mm2_edits *e = t ? t->edits : NULL;
    if (!e || !e->present[MM2_POINT_EXPERT_INDICES * e->layers + p->layer])
        return;
    for (int32_t i = 0; i < e->count; i++)
        for (int32_t x = 0;
             applies(&e->edits[i], MM2_POINT_EXPERT_INDICES, p->layer, p->row_position[row]) &&
             x < mm2_pass_config(p)->num_local_experts;
             x++)
            scores[x] += e->edits[i].values[x];
}
