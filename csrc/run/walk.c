/* The walk: sections embed -> (attention, feed-forward) for each layer -> head. State is (section,
 * layer, step, round, progress) and, behind a finished step, rows edited and (point, span); everything
 * a run needs to go on lives in the pass, so a run may return between any two units.
 *
 * A step may answer that it waits. Then the run sleeps for moments, until the step has what it
 * needs or the limit is reached. */
#include "run/walk.h"

#include "run/block.h"
#include "run/edits.h"
#include "run/points.h"

#include <time.h>

enum { EMBED, ATTENTION, FEED_FORWARD, HEAD };
enum { NAP_NS = 50000 }; /* between two looks at what a step waits for */

const mm2_block *const mm2_blocks[MM2_BLOCK_COUNT] = {
    [MM2_BLOCK_GQA] = &mm2_block_gqa, [MM2_BLOCK_MOE] = &mm2_block_moe};

const mm2_block *mm2_block_attention(const mm2_layer *layer)
{
    static const mm2_block *const blocks[] = {[MM2_ATTENTION_GQA] = &mm2_block_gqa};
    return blocks[layer->attention];
}

const mm2_block *mm2_block_feed_forward(const mm2_layer *layer)
{
    static const mm2_block *const blocks[] = {[MM2_FEED_FORWARD_MOE] = &mm2_block_moe};
    return blocks[layer->feed_forward];
}

static const mm2_block *block_at(const mm2_pass *p)
{
    switch (p->section) {
    case EMBED:
        return &mm2_block_embed;
    case ATTENTION:
        return mm2_block_attention(mm2_pass_layer(p));
    case FEED_FORWARD:
        return mm2_block_feed_forward(mm2_pass_layer(p));
    default:
        return &mm2_block_head;
    }
}

static void enter_step(mm2_pass *p, int32_t step)
{
    p->step = step;
    p->begun = p->finished = p->round = p->point = p->span = 0;
    p->edited_points = NULL;
}

void mm2_walk_start(mm2_pass *p)
{
    p->layer = p->first_layer;
    p->section = p->first_layer ? ATTENTION : EMBED;
    enter_step(p, 0);
}

/* Moves to the next step; 0 when the walk is over. */
static int advance(mm2_pass *p)
{
    if (p->step + 1 < block_at(p)->count) {
        enter_step(p, p->step + 1);
        return 1;
    }
    if (p->section == HEAD)
        return 0;
    if (p->section == FEED_FORWARD) {
        if (p->layer + 1 < p->end_layer) {
            p->layer++;
            p->section = ATTENTION;
        } else if (p->end_layer == mm2_pass_config(p)->num_hidden_layers) {
            p->section = HEAD;
        } else {
            return 0;
        }
    } else {
        p->section++;
    }
    enter_step(p, 0);
    return 1;
}

static int over(const mm2_limit *limit)
{
    return atomic_load_explicit(limit->stop, memory_order_relaxed) || mm2_now() >= limit->deadline;
}

/* Runs the step at hand to its end: OK, MORE if the limit stopped it, or an error. */
static mm2_status run_step(mm2_pass *p, const mm2_limit *limit)
{
    const mm2_step *step = &block_at(p)->steps[p->step];
    for (;;) {
        if (!p->begun) {
            p->progress = (mm2_progress){0};
            mm2_status status = step->begin(p, p->round, &p->units);
            if (status == MM2_WAITING) {
                if (over(limit))
                    return MM2_MORE;
                nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
                continue;
            }
            if (status)
                return status;
            p->begun = 1;
        }
        if (p->units < 0)
            break;
        if (!mm2_pool_run(p->model->pool, step->work, p, &p->progress, p->units, limit))
            return MM2_MORE;
        p->begun = 0;
        p->round++;
    }
    p->finished = 1;
    return MM2_OK;
}

mm2_status mm2_walk_on(mm2_pass *p, const mm2_limit *limit, mm2_event *event)
{
    do {
        mm2_status status = p->finished ? MM2_OK : run_step(p, limit);
        if (status)
            return status;
        const int8_t *points = block_at(p)->steps[p->step].points;
        if (!mm2_edits_apply(p, points, limit))
            return MM2_MORE;
        if (mm2_points_offer(p, points, event))
            return MM2_TAP;
        if (!advance(p))
            return MM2_OK;
    } while (!over(limit));
    return MM2_MORE;
}

int32_t mm2_walk_layers_done(const mm2_pass *p)
{
    return p->section == HEAD ? p->end_layer : p->layer;
}

mm2_status mm2_walk_resume(mm2_pass *p)
{
    for (int32_t i = 0; i < p->span_count; i++) {
        const mm2_span *span = &p->spans[i];
        int32_t page = span->first / MM2_PAGE, end = span->first + span->rows;
        if (!span->timeline)
            continue;
        mm2_pages *pages = &span->timeline->pages;
        mm2_status status = mm2_pages_reserve(pages, span->first, end);
        if (status)
            return status;
        /* Rows of this layer may be there already, and more to come. */
        if (p->section == ATTENTION && mm2_pages_missing(pages, page, p->layer) &&
            (p->step || p->begun))
            mm2_pages_copy(pages, page, p->layer,
                           end - page * MM2_PAGE < MM2_PAGE ? end - page * MM2_PAGE : MM2_PAGE);
    }
    return MM2_OK;
}
