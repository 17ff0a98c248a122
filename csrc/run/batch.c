/* A batch: a list of sessions of one model and the schedule that takes rows from all of them.
 *
 * A member is kept by the batch and may not run alone. Its busy flag is held while the batch changes
 * anything about it. A batch is kept by its handle and by a call that works on it; the last one lets
 * the members go. */
#include "base/status.h"
#include "run/session.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_ROWS = 256, MAX_ROWS = 4096, MAX_MEMBERS = 4096 };

struct mm2_batch {
    atomic_int references;
    mm2_busy busy;
    mm2_model *model;
    mm2_schedule schedule;
    int32_t rows; /* of a pass */
    mm2_session **members;
    mm2_timeline **timelines; /* the members', in the same order */
    int32_t count, limit;
};

void mm2_batch_options_init(mm2_batch_options *o)
{
    mm2_batch_options defaults = {.size = sizeof defaults, .rows = DEFAULT_ROWS};
    mm2_struct_init(o, &defaults);
}

mm2_status mm2_batch_new(mm2_batch **out, mm2_model *m, const mm2_batch_options *options)
{
    MM2_NEED(out, "out");
    *out = NULL;
    MM2_NEED(m, "model");
    mm2_batch_options o = {.size = sizeof o};
    mm2_batch_options_init(&o);
    mm2_status status = options ? mm2_struct_read(&o, options, "batch options") : MM2_OK;
    if (status)
        return status;
    if (!o.rows)
        o.rows = DEFAULT_ROWS;
    if (o.rows < 1 || o.rows > MAX_ROWS)
        return mm2_fail(MM2_E_ARG, "rows of a batch must be 1..%d tokens, got %d", MAX_ROWS,
                        o.rows);
    mm2_batch *b = calloc(1, sizeof *b);
    if (!b)
        return mm2_fail(MM2_E_NOMEM, "out of memory for a batch");
    atomic_init(&b->references, 1);
    mm2_model_retain(m);
    b->model = m;
    b->rows = o.rows;
    *out = b;
    return MM2_OK;
}

/* ---- Members ---- */

/* Takes the busy flag of every member, or of none. */
static mm2_status enter_members(mm2_batch *b)
{
    for (int32_t i = 0; i < b->count; i++) {
        if (!mm2_session_enter(b->members[i]))
            continue;
        while (i--)
            mm2_session_leave(b->members[i]);
        return mm2_fail(MM2_E_BUSY, "a session of the batch is in use by another thread");
    }
    return MM2_OK;
}

static void leave_members(mm2_batch *b)
{
    for (int32_t i = 0; i < b->count; i++)
        mm2_session_leave(b->members[i]);
}

/* The member at `index` goes its own way; its busy flag is held, and the batch's reference becomes
 * the caller's. */
static void let_go(mm2_batch *b, int32_t index)
{
    mm2_session *s = b->members[index];
    size_t behind = (size_t)(--b->count - index);
    mm2_pass_drop(s->timeline.pass, &s->timeline);
    s->timeline.ready = 0;
    s->batch = NULL;
    memmove(b->members + index, b->members + index + 1, behind * sizeof *b->members);
    memmove(b->timelines + index, b->timelines + index + 1, behind * sizeof *b->timelines);
    mm2_schedule_tidy(&b->schedule);
}

static void release(mm2_batch *b)
{
    if (atomic_fetch_sub(&b->references, 1) != 1)
        return;
    while (b->count) {
        mm2_session *s = b->members[b->count - 1];
        while (mm2_session_enter(s)) /* another thread feeds or samples it: moments */
            sched_yield();
        let_go(b, b->count - 1);
        mm2_session_leave(s);
        mm2_session_release(s);
    }
    mm2_schedule_drop(&b->schedule);
    mm2_model_release(b->model);
    free(b->members);
    free(b->timelines);
    free(b);
}

static mm2_status enter(mm2_batch *b)
{
    int torn;
    mm2_status status = mm2_busy_enter(&b->busy, "batch", &torn);
    if (status)
        return status;
    atomic_fetch_add(&b->references, 1);
    if (torn)
        mm2_schedule_drop(&b->schedule);
    return MM2_OK;
}

static void leave(mm2_batch *b)
{
    mm2_busy_leave(&b->busy);
    release(b);
}

void mm2_batch_free(mm2_batch *b)
{
    if (b)
        release(b);
}

static mm2_status make_room(mm2_batch *b)
{
    int32_t limit = b->limit ? b->limit * 2 : 8;
    if (b->count < b->limit)
        return MM2_OK;
    mm2_session **members = realloc(b->members, (size_t)limit * sizeof *members);
    if (members)
        b->members = members;
    mm2_timeline **timelines = realloc(b->timelines, (size_t)limit * sizeof *timelines);
    if (timelines)
        b->timelines = timelines;
    if (!members || !timelines)
        return mm2_fail(MM2_E_NOMEM, "out of memory for a batch of %d sessions", limit);
    b->limit = limit;
    return MM2_OK;
}

static mm2_status add(mm2_batch *b, mm2_session *s)
{
    if (s->timeline.model != b->model)
        return mm2_fail(MM2_E_ARG, "the session belongs to another model than the batch");
    if (s->batch)
        return mm2_fail(MM2_E_ARG, "the session is already a member of %s batch",
                        s->batch == b ? "this" : "another");
    if (b->count == MAX_MEMBERS)
        return mm2_fail(MM2_E_FULL, "a batch holds at most %d sessions", MAX_MEMBERS);
    mm2_status status = make_room(b);
    if (status)
        return status;
    mm2_schedule_drop(&s->schedule);
    atomic_fetch_add(&s->references, 1);
    s->batch = b;
    b->timelines[b->count] = &s->timeline;
    b->members[b->count++] = s;
    return MM2_OK;
}

mm2_status mm2_batch_add(mm2_batch *b, mm2_session *s)
{
    MM2_NEED(b, "batch");
    MM2_NEED(s, "session");
    mm2_status status = enter(b);
    if (status)
        return status;
    status = mm2_session_enter(s);
    if (!status) {
        status = add(b, s);
        mm2_session_leave(s);
    }
    leave(b);
    return status;
}

static mm2_status remove_member(mm2_batch *b, mm2_session *s)
{
    int32_t index = 0;
    while (index < b->count && b->members[index] != s)
        index++;
    if (index == b->count)
        return mm2_fail(MM2_E_ARG, "the session is not a member of this batch");
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    let_go(b, index);
    mm2_session_leave(s);
    mm2_session_release(s);
    return MM2_OK;
}

mm2_status mm2_batch_remove(mm2_batch *b, mm2_session *s)
{
    MM2_NEED(b, "batch");
    MM2_NEED(s, "session");
    mm2_status status = enter(b);
    if (status)
        return status;
    status = remove_member(b, s);
    leave(b);
    return status;
}

mm2_status mm2_batch_run(mm2_batch *b, int32_t budget_us, mm2_event *event)
{
    MM2_NEED(b, "batch");
    if (budget_us < 0)
        return mm2_fail(MM2_E_ARG, "budget_us must not be negative, got %d", budget_us);
    mm2_event e = {.size = sizeof e, .point = -1, .layer = -1};
    mm2_status status = event ? mm2_struct_write(event, &e, "event") : MM2_OK;
    if (!status)
        status = enter(b);
    if (status)
        return status;
    status = enter_members(b);
    if (!status) {
        status = mm2_schedule_run(&b->schedule, b->timelines, b->count, b->rows, 1, budget_us, &e);
        leave_members(b);
    }
    leave(b);
    if (event)
        mm2_struct_write(event, &e, "event");
    return status;
}
