/* Speculation: rows of tokens that probably come go through the layers with the last one that was
 * fed, and their logits are kept. When the next token is fed and is the one that was foretold, the run
 * has nothing to do but to move the position and hand out those logits; when it is another one, they
 * are forgotten, and their keys and values lie beyond the position, where the next rows are written.
 *
 * So the timeline never has a token that nobody fed, and whoever chooses tokens does it one by one, as
 * ever: masks, penalties, draws by position and limits need not know of any of this. The logits are
 * those of plain runs, because a row's bits do not depend on what rows went with it.
 *
 * A tap that is switched on drops all of it: who looks at rows, or edits them, wants to see each. The
 * ids of rows in flight do not change before those are committed. */
#include "run/ahead.h"

#include "base/status.h"
#include "run/prefix.h"

#include <stdlib.h>
#include <string.h>

static mm2_status make(mm2_timeline *t)
{
    if (!t->ahead)
        t->ahead = calloc(1, sizeof *t->ahead);
    return t->ahead ? MM2_OK : mm2_fail(MM2_E_NOMEM, "out of memory for proposed tokens");
}

void mm2_ahead_drop(mm2_timeline *t)
{
    if (t->ahead)
        t->ahead->count = t->ahead->evaluated = 0;
}

void mm2_ahead_cut(mm2_timeline *t)
{
    mm2_ahead_drop(t);
    if (t->ahead)
        t->ahead->lookup = (mm2_lookup){0};
}

void mm2_ahead_free(mm2_timeline *t)
{
    if (t->ahead)
        free(t->ahead->logits);
    free(t->ahead);
    t->ahead = NULL;
}

/* How many of them were fed in their places. */
static int32_t agreed(const mm2_timeline *t)
{
    const mm2_ahead *a = t->ahead;
    int32_t fed = t->length - a->first, i = a->used;
    while (i < fed && i < a->count && a->ids[i] == mm2_timeline_tokens(t)[a->first + i])
        i++;
    return i;
}

mm2_status mm2_ahead_draft(mm2_timeline *t, const int32_t *ids, int32_t n)
{
    mm2_status status = mm2_timeline_check_ids(t, ids, n);
    if (!status)
        status = make(t);
    if (status || t->pass)
        return status;
    mm2_ahead *a = t->ahead;
    if (a->evaluated && agreed(t) == t->length - a->first)
        return MM2_OK; /* what is known already is not thrown away */
    a->evaluated = 0;
    a->first = t->length;
    a->used = 0;
    a->count = n < MM2_DRAFT_MOST ? n : MM2_DRAFT_MOST;
    if (a->count)
        memcpy(a->ids, ids, (size_t)a->count * sizeof *ids);
    return MM2_OK;
}

/* What the model must read for so many rows, one row being 1. */
static mm2_status expected_costs(const mm2_timeline *t, double *expected)
{
    const mm2_model *m = t->model;
    int32_t positions = m->checkpoint.config.max_position_embeddings;
    for (int32_t rows = 1; rows <= MM2_GATE_ROWS; rows++) {
        mm2_cost layers = {.size = sizeof layers}, rest = {.size = sizeof rest};
        int32_t n = rows < positions ? rows : positions;
        int32_t depth = t->length < positions - n ? t->length : positions - n;
        mm2_status status = mm2_model_cost(m, n, depth, t->kv_dtype, &layers, &rest);
        if (status)
            return status;
        expected[rows] = layers.weight_bytes + layers.kv_bytes + rest.weight_bytes;
    }
    for (int32_t rows = MM2_GATE_ROWS; rows; rows--)
        expected[rows] /= expected[1];
    return MM2_OK;
}

mm2_status mm2_ahead_speculate(mm2_timeline *t, int32_t most)
{
    double expected[MM2_GATE_ROWS + 1] = {0};
    if (most < 0 || most > MM2_DRAFT_MOST)
        return mm2_fail(MM2_E_ARG, "at most %d tokens can be proposed, got %d", MM2_DRAFT_MOST,
                        most);
    if (!most && !t->ahead)
        return MM2_OK;
    mm2_status status = make(t);
    if (!status && most && !t->ahead->started)
        status = expected_costs(t, expected);
    if (status)
        return status;
    mm2_ahead *a = t->ahead;
    if (most && !a->started)
        mm2_gate_init(&a->gate, expected);
    a->started |= most > 0;
    a->most = most;
    a->proposed = a->accepted = a->runs = 0;
    return MM2_OK;
}

void mm2_ahead_tell(const mm2_timeline *t, mm2_speculation *out)
{
    const mm2_ahead *a = t->ahead;
    if (!a)
        return;
    out->most = a->most;
    out->closed = a->most && mm2_gate_closed(&a->gate, a->most);
    out->proposed = a->proposed;
    out->accepted = a->accepted;
    out->runs = a->runs;
}

/* Logits of the last one that came. */
static mm2_status move_over(mm2_timeline *t, int32_t until)
{
    mm2_ahead *a = t->ahead;
    int64_t vocab = t->model->checkpoint.config.vocab_size;
    int32_t before = t->position;
    mm2_status status = mm2_timeline_renew_logits(t);
    if (status)
        return status;
    memcpy(mm2_timeline_logits(t), a->logits + (until - 1) * vocab, (size_t)vocab * sizeof(float));
    t->position = a->first + until;
    t->logits_of = t->position - 1;
    t->ready = t->position == t->length;
    a->accepted += until - a->used;
    if (a->most)
        mm2_gate_saved(&a->gate, until - a->used);
    a->used = until;
    mm2_prefix_put(t, before);
    return MM2_OK;
}

void mm2_ahead_take(mm2_timeline *t)
{
    mm2_ahead *a = t->ahead;
    if (!a || !mm2_timeline_pending(t))
        return;
    if (a->most) {
        int32_t matched = a->lookup.matched;
        int32_t judged = mm2_lookup_follow(&a->lookup, mm2_timeline_tokens(t), t->length);
        if (judged >= 0)
            mm2_gate_judged(&a->gate, matched, judged);
    }
    if (!a->evaluated)
        return;
    int32_t until = agreed(t);
    if ((until > a->used && move_over(t, until)) || /* without memory they are evaluated again */
        until == a->count || mm2_timeline_pending(t))
        mm2_ahead_drop(t);
}

/* Room for their logits, or fewer of them. */
static int32_t make_room(mm2_timeline *t, int32_t count)
{
    mm2_ahead *a = t->ahead;
    size_t bytes = (size_t)t->model->checkpoint.config.vocab_size * sizeof *a->logits;
    if (count <= a->room)
        return count;
    float *logits = realloc(a->logits, (size_t)count * bytes);
    if (!logits)
        return a->room;
    a->logits = logits;
    a->room = count;
    return count;
}

int32_t mm2_ahead_plan(mm2_timeline *t, int32_t room)
{
    mm2_ahead *a = t->ahead;
    size_t taps = (size_t)MM2_POINT_COUNT * (size_t)t->pages.layout->layers;
    if (!a || memchr(t->taps, 1, taps)) {
        mm2_ahead_drop(t);
        return 0;
    }
    if (room > t->context - t->length)
        room = t->context - t->length;
    int32_t fed = t->length - a->first;
    if (a->count && (fed < 0 || fed >= a->count || agreed(t) < fed))
        mm2_ahead_drop(t);
    if (a->count) { /* some may have been fed since they were named */
        a->count -= fed;
        a->first += fed;
        memmove(a->ids, a->ids + fed, (size_t)a->count * sizeof *a->ids);
    }
    if (!a->count && a->most && mm2_timeline_pending(t) == 1) {
        a->count = mm2_gate_choose(&a->gate, a->lookup.matched, a->most < room ? a->most : room);
        a->first = t->length;
        a->used = 0;
        mm2_lookup_read(&a->lookup, mm2_timeline_tokens(t), a->count, a->ids);
    }
    a->count = make_room(t, a->count < room ? a->count : room);
    return a->count;
}

int32_t mm2_ahead_id(const mm2_timeline *t, int32_t index)
{
    return t->ahead->ids[index];
}

void mm2_ahead_commit(mm2_timeline *t, int32_t count, const float *logits)
{
    mm2_ahead *a = t->ahead;
    int64_t vocab = t->model->checkpoint.config.vocab_size;
    if (!a || !count || a->count != count) /* dropped meanwhile */
        return;
    memcpy(a->logits, logits, (size_t)(count * vocab) * sizeof *logits);
    a->evaluated = 1;
    a->proposed += count;
    a->runs++;
}

void mm2_ahead_ran(mm2_timeline *t, int32_t count, int64_t nanoseconds)
{
    if (t->ahead && t->ahead->most)
        mm2_gate_ran(&t->ahead->gate, count + 1, nanoseconds);
}
