/* A pass takes first a row of every member that has one token pending: those decode, and never wait
 * for a prompt longer than one pass. What room is left goes to prompts, in turns from pass to pass.
 *
 * Rows are committed when the walk is over: only then do positions move. Before that the positions
 * being written lie beyond those of their timelines, so dropping rows needs no repair. A pass is
 * leased when rows are planned and given back when they are committed or dropped.
 *
 * A timeline that runs alone may have rows ahead of what was fed (run/ahead.c).
 *
 * Before rows are planned, members take what others have evaluated already (run/prefix.c). One that
 * waits for pages from a disk is left out meanwhile; if there is nobody else, the run sleeps. */
#include "run/schedule.h"

#include "base/status.h"
#include "run/ahead.h"
#include "run/prefix.h"
#include "run/walk.h"

#include <string.h>
#include <time.h>

enum { NAP_NS = 50000 }; /* between two looks at what is on its way */

void mm2_schedule_drop(mm2_schedule *s)
{
    if (s->pass)
        mm2_pass_return(s->pass);
    s->pass = NULL;
}

void mm2_schedule_tidy(mm2_schedule *s)
{
    if (s->pass && !mm2_pass_wanted(s->pass))
        mm2_schedule_drop(s);
}

/* ---- Planning ---- */

static mm2_status take_rows(mm2_pass *p, mm2_timeline *t, int32_t rows, int32_t drafts)
{
    rows += drafts;
    mm2_status status = mm2_pages_reserve(&t->pages, t->position, t->position + rows);
    if (!status)
        status = mm2_timeline_renew_logits(t);
    if (status)
        return status;
    p->spans[p->span_count] = (mm2_span){
        .timeline = t, .first = t->position, .rows = rows, .row = p->rows, .drafts = drafts};
    for (int32_t r = 0; r < rows; r++) {
        p->row_span[p->rows + r] = p->span_count;
        p->row_position[p->rows + r] = t->position + r;
    }
    atomic_store(&t->pass, p);
    t->logits_of = -1;
    p->span_count++;
    p->rows += rows;
    return MM2_OK;
}

static mm2_status plan(mm2_schedule *s, mm2_timeline *const *members, int32_t count, int32_t rows)
{
    mm2_model *m = members[0]->model;
    mm2_status status = mm2_pass_lease(&s->pass, m, rows);
    if (status)
        return status;
    mm2_pass *p = s->pass;
    s->spent = 0;
    int32_t start = s->turn < count ? s->turn : 0;
    for (int32_t prompts = 0; prompts < 2 && !status; prompts++)
        for (int32_t i = 0; i < count && p->rows < rows && !status; i++) {
            int32_t index = start + i < count ? start + i : start + i - count;
            int32_t pending = mm2_timeline_pending(members[index]), room = rows - p->rows;
            if (!pending || (pending > 1) != prompts || members[index]->arrival)
                continue;
            /* Many that go together fill the rows that reading the weights pays for. */
            int32_t drafts =
                count == 1 && pending < room ? mm2_ahead_plan(members[index], room - pending) : 0;
            status = take_rows(p, members[index], pending < room ? pending : room, drafts);
            s->turn = index + 1;
        }
    if (status) {
        mm2_schedule_drop(s);
        return status;
    }
    p->first_layer = 0;
    p->end_layer = m->checkpoint.config.num_hidden_layers;
    mm2_walk_start(p);
    return MM2_OK;
}

static void commit(mm2_schedule *s, int32_t count)
{
    mm2_pass *p = s->pass;
    int64_t vocab = mm2_pass_config(p)->vocab_size;
    for (int32_t i = 0; i < p->span_count; i++) {
        const mm2_span *span = &p->spans[i];
        mm2_timeline *t = span->timeline;
        if (!t)
            continue;
        int32_t rows = span->rows - span->drafts;
        if (count == 1 && rows == 1)
            mm2_ahead_ran(t, span->drafts, s->spent);
        t->position = span->first + rows;
        mm2_prefix_put(t, span->first);
        if (!span->logits_rows)
            continue;
        const float *logits =
            p->logits + (span->logits_row + span->logits_rows - span->drafts) * vocab;
        memcpy(mm2_timeline_logits(t), logits - vocab, (size_t)vocab * sizeof(float));
        mm2_ahead_commit(t, span->drafts, logits);
        t->logits_of = t->position - 1;
        t->ready = t->position == t->length;
    }
    p->rows = 0; /* nothing is in flight: blocks hold nothing */
    mm2_schedule_drop(s);
}

/* ---- Running ---- */

static int work_is_left(mm2_timeline *const *members, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        if (mm2_timeline_pending(members[i]))
            return 1;
    return 0;
}

/* Members take what is known; 1: all that have work to do wait for a disk. */
static int take_prefixes(mm2_timeline *const *members, int32_t count)
{
    int ready = 0;
    for (int32_t i = 0; i < count; i++)
        if (mm2_timeline_pending(members[i]) && !mm2_prefix_take(members[i]))
            ready = 1;
    return !ready;
}

static int interrupted(mm2_timeline *const *members, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        if (atomic_load(&members[i]->stop))
            return 1;
    return 0;
}

/* A member whose logits nobody has been told of. */
static int announce_ready(mm2_timeline *const *members, int32_t count, mm2_event *event)
{
    for (int32_t i = 0; i < count; i++)
        if (members[i]->ready) {
            members[i]->ready = 0;
            event->session = i;
            return 1;
        }
    return 0;
}

/* What was restored from a file is checked before anybody reads it: OK, MORE, or an error that is
 * about member event->session. */
static mm2_status check_restored(mm2_timeline *const *members, int32_t count,
                                 const mm2_limit *limit, mm2_event *event)
{
    for (int32_t i = 0; i < count; i++) {
        mm2_limit own = {.deadline = limit->deadline, .stop = &members[i]->stop};
        mm2_status status = MM2_OK;
        if (mm2_timeline_pending(members[i]))
            status = mm2_pages_check(&members[i]->pages, members[i]->position,
                                     members[i]->model->pool, &own);
        if (status < 0)
            event->session = i;
        if (status)
            return status;
    }
    return MM2_OK;
}

static mm2_status run(mm2_schedule *s, mm2_timeline *const *members, int32_t count, int32_t rows,
                      int announce, mm2_limit *limit, mm2_event *event)
{
    for (int32_t i = 0; i < count; i++)
        atomic_store(&members[i]->stop, 0);
    mm2_schedule_tidy(s);
    if (s->pass) {
        atomic_store(&s->pass->stop, 0);
        mm2_status status = mm2_walk_resume(s->pass);
        if (status)
            return status;
    }
    for (int first = 1;; first = 0) {
        if (!s->pass) {
            for (int32_t i = 0; i < count; i++)
                mm2_ahead_take(members[i]);
            if (announce && announce_ready(members, count, event))
                return MM2_READY;
            if (!work_is_left(members, count))
                return MM2_OK;
            if (!first && mm2_now() >= limit->deadline)
                return MM2_MORE;
            mm2_status status = check_restored(members, count, limit, event);
            if (status)
                return status;
            if (take_prefixes(members, count)) {
                if (interrupted(members, count) || mm2_now() >= limit->deadline)
                    return MM2_MORE;
                nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
                continue;
            }
            status = plan(s, members, count, rows);
            if (status)
                return status;
        }
        if (interrupted(members, count)) /* before it could be seen in the pass */
            return MM2_MORE;
        limit->stop = &s->pass->stop;
        int64_t begin = mm2_now();
        mm2_status status = mm2_walk_on(s->pass, limit, event);
        s->spent += mm2_now() - begin;
        if (status == MM2_TAP) {
            const mm2_span *span = &s->pass->spans[s->pass->span - 1];
            mm2_timeline *t = span->timeline;
            if (t->edited > span->first) /* whoever looks may write */
                t->edited = span->first;
            for (int32_t i = 0; i < count; i++)
                if (members[i] == t)
                    event->session = i;
        }
        if (status)
            return status;
        commit(s, count);
    }
}

static void report_progress(const mm2_schedule *s, mm2_timeline *const *members, int32_t count,
                            mm2_event *event)
{
    int64_t layers = members[0]->pages.layout->layers;
    event->done = event->total = 0;
    for (int32_t i = 0; i < count; i++) {
        event->done += (members[i]->position - members[i]->progress_base) * layers;
        event->total += (members[i]->length - members[i]->progress_base) * layers;
    }
    for (int32_t i = 0; s->pass && i < s->pass->span_count; i++)
        if (s->pass->spans[i].timeline)
            event->done += (int64_t)(s->pass->spans[i].rows - s->pass->spans[i].drafts) *
                           mm2_walk_layers_done(s->pass);
}

mm2_status mm2_schedule_run(mm2_schedule *s, mm2_timeline *const *members, int32_t count,
                            int32_t rows, int announce, int32_t budget_us, mm2_event *event)
{
    if (!count)
        return MM2_OK;
    mm2_model *m = members[0]->model;
    mm2_limit limit = {.deadline = budget_us ? mm2_now() + (int64_t)budget_us * 1000 : INT64_MAX};
    mm2_status status = mm2_checkpoint_check(&m->checkpoint);
    for (int32_t i = 0; i < count && !status; i++)
        if ((status = mm2_pages_intact(&members[i]->pages)))
            event->session = i;
    if (status)
        return status;
    mm2_pool_prepare(m->pool);
    uint32_t mode = mm2_float_mode_enter();
    status = run(s, members, count, rows, announce, &limit, event);
    mm2_float_mode_leave(mode);
    report_progress(s, members, count, event);
    return status;
}
