/* A batch: a list of sessions of one model and the pass that takes rows from all of them. Its pass
 * is made anew when members outgrow it; that drops only a chunk in flight, which is evaluated again
 * to the same bits. */
#include "base/status.h"
#include "run/session.h"

#include <stdlib.h>
#include <string.h>

enum { BATCH_ROWS = 1024, MAX_MEMBERS = 4096 };

static mm2_status enter(mm2_batch *b)
{
    if (atomic_exchange(&b->busy, 1))
        return mm2_fail(MM2_E_BUSY,
                        "the batch is in use by another thread; use one thread at a time");
    return MM2_OK;
}

mm2_status mm2_batch_new(mm2_batch **out, mm2_model *m)
{
    if (!out || !m)
        return mm2_fail(MM2_E_ARG, "mm2_batch_new: %s must not be NULL", out ? "model" : "out");
    *out = calloc(1, sizeof **out);
    if (!*out)
        return mm2_fail(MM2_E_NOMEM, "out of memory for a batch");
    mm2_model_retain(m);
    (*out)->model = m;
    return MM2_OK;
}

/* Takes the busy flag of every member, or of none. */
static mm2_status enter_members(mm2_batch *b)
{
    for (int32_t i = 0; i < b->count; i++) {
        if (!atomic_exchange(&b->members[i]->busy, 1))
            continue;
        for (int32_t j = 0; j < i; j++)
            atomic_store(&b->members[j]->busy, 0);
        return mm2_fail(MM2_E_BUSY, "session %d of the batch is in use by another thread", i);
    }
    return MM2_OK;
}

static void leave_members(mm2_batch *b)
{
    for (int32_t i = 0; i < b->count; i++)
        atomic_store(&b->members[i]->busy, 0);
}

/* The member at `index` goes its own way; its busy flag is held. */
static void let_go(mm2_batch *b, int32_t index)
{
    mm2_session *s = b->members[index];
    if (s->flight)
        mm2_forward_abort(s->flight);
    s->batch = NULL;
    memmove(b->members + index, b->members + index + 1,
            (size_t)(--b->count - index) * sizeof *b->members);
    mm2_session_release(s);
}

mm2_status mm2_batch_free(mm2_batch *b)
{
    if (!b)
        return MM2_OK;
    mm2_status status = enter(b);
    if (status)
        return status;
    status = enter_members(b);
    if (status) {
        atomic_store(&b->busy, 0);
        return status;
    }
    leave_members(b);
    mm2_forward_free(b->forward);
    b->forward = NULL;
    while (b->count)
        let_go(b, b->count - 1);
    mm2_model_release(b->model);
    free(b->members);
    free(b);
    return MM2_OK;
}

static mm2_status add(mm2_batch *b, mm2_session *s)
{
    if (s->model != b->model)
        return mm2_fail(MM2_E_ARG, "the session belongs to another model than the batch");
    if (s->batch)
        return mm2_fail(MM2_E_ARG, "the session is already a member of %s batch",
                        s->batch == b ? "this" : "another");
    if (b->count == MAX_MEMBERS)
        return mm2_fail(MM2_E_FULL, "a batch holds at most %d sessions", MAX_MEMBERS);
    if (b->count == b->limit) {
        int32_t limit = b->limit ? b->limit * 2 : 8;
        mm2_session **members = realloc(b->members, (size_t)limit * sizeof *members);
        if (!members)
            return mm2_fail(MM2_E_NOMEM, "out of memory for a batch of %d sessions", limit);
        b->members = members;
        b->limit = limit;
    }
    if (s->flight)
        mm2_forward_abort(s->flight);
    atomic_fetch_add(&s->references, 1);
    s->batch = b;
    b->members[b->count++] = s;
    return MM2_OK;
}

mm2_status mm2_batch_add(mm2_batch *b, mm2_session *s)
{
    if (!b || !s)
        return mm2_fail(MM2_E_ARG, "mm2_batch_add: %s must not be NULL", b ? "session" : "batch");
    mm2_status status = enter(b);
    if (status)
        return status;
    if (atomic_exchange(&s->busy, 1)) {
        status = mm2_fail(MM2_E_BUSY, "the session is in use by another thread");
    } else {
        status = add(b, s);
        atomic_store(&s->busy, 0);
    }
    atomic_store(&b->busy, 0);
    return status;
}

mm2_status mm2_batch_remove(mm2_batch *b, mm2_session *s)
{
    if (!b || !s)
        return mm2_fail(MM2_E_ARG, "mm2_batch_remove: %s must not be NULL",
                        b ? "session" : "batch");
    mm2_status status = enter(b);
    if (status)
        return status;
    int32_t index = 0;
    while (index < b->count && b->members[index] != s)
        index++;
    if (index == b->count)
        status = mm2_fail(MM2_E_ARG, "the session is not a member of this batch");
    else if (atomic_exchange(&s->busy, 1))
        status = mm2_fail(MM2_E_BUSY, "the session is in use by another thread");
    else {
        atomic_store(&s->busy, 0); /* before the last reference may go */
        let_go(b, index);
    }
    atomic_store(&b->busy, 0);
    return status;
}

static mm2_status ensure_pass(mm2_batch *b)
{
    if (b->forward && b->forward->span_limit >= b->count)
        return MM2_OK;
    int32_t spans = b->limit, rows = spans > BATCH_ROWS ? spans : BATCH_ROWS;
    mm2_forward *f;
    mm2_status status = mm2_forward_new(&f, b->model, rows, spans);
    if (status)
        return status;
    if (b->forward)
        mm2_forward_abort(b->forward);
    f->outgrown = b->forward;
    b->forward = f;
    return MM2_OK;
}

mm2_status mm2_batch_run(mm2_batch *b, int32_t budget_us, mm2_event *event)
{
    if (!b)
        return mm2_fail(MM2_E_ARG, "mm2_batch_run: batch must not be NULL");
    if (budget_us < 0)
        return mm2_fail(MM2_E_ARG, "budget_us must not be negative, got %d", budget_us);
    mm2_status status = enter(b);
    if (status)
        return status;
    status = enter_members(b);
    if (!status) {
        status = ensure_pass(b);
        if (!status)
            status = mm2_forward_run(b->forward, b->members, b->count, budget_us, event);
        leave_members(b);
    }
    atomic_store(&b->busy, 0);
    return status;
}
