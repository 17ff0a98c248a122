/* Which call each result answers. The format has no ids: results belong to the calls of the
 * assistant's message by their order. Others' interfaces have ids, and their lists may hold the
 * results in the order in which the tools were done. So where all calls of a message have ids, and
 * all neighbouring results, these are put into the calls' order; and what no order can say, a result
 * of another call, a second one, one in front of which another is missing, is refused.
 *
 * Where a call has no id, or two have the same, the ids say nothing, and the order is the caller's.
 * Ids are sorted once for each message that calls, so that no list takes quadratic time. */
#include "base/status.h"
#include "text/messages.h"

#include <stdlib.h>
#include <string.h>

typedef struct entry { /* a call, or a result */
    mm2_view id;
    int32_t index; /* of the call, from 0 */
    mm2_turn turn; /* a result's */
} entry;

static int by_id(const void *x, const void *y)
{
    const mm2_view *a = &((const entry *)x)->id, *b = &((const entry *)y)->id;
    int order = memcmp(a->begin, b->begin, (size_t)(a->length < b->length ? a->length : b->length));
    return order ? order : (a->length > b->length) - (a->length < b->length);
}

static int by_call(const void *x, const void *y)
{
    const entry *a = x, *b = y;
    int order = (a->index > b->index) - (a->index < b->index);
    return order ? order
                 : (a->turn.message > b->turn.message) - (a->turn.message < b->turn.message);
}

static mm2_status refuse(const entry *result, const char *why)
{
    return mm2_fail(MM2_E_ARG, "message %d has the result of the call \"%.*s\", %s",
                    result->turn.message, result->id.length > 40 ? 40 : (int)result->id.length,
                    result->id.begin, why);
}

/* Results that are neighbours. *answered: how many of the calls have a result before them, or -1 if
 * that is not known. */
static mm2_status order_results(mm2_turn *turns, int32_t n, const entry *calls, int32_t count,
                                int32_t *answered)
{
    mm2_status status = MM2_OK;
    int sorts = *answered >= 0;
    entry *results = calloc((size_t)n, sizeof *results);
    if (!results)
        return mm2_fail(MM2_E_NOMEM, "no memory for %d results of tools", n);
    for (int32_t i = 0; i < n && !status; i++) {
        results[i] = (entry){.id = turns[i].id, .turn = turns[i]};
        const entry *call = turns[i].id.length
                                ? bsearch(&results[i], calls, (size_t)count, sizeof *calls, by_id)
                                : NULL;
        if (call)
            results[i].index = call->index;
        else if (turns[i].id.length)
            status = refuse(&results[i], "which the assistant's message before it does not have");
        sorts &= call != NULL;
    }
    if (!sorts)
        *answered = -1;
    else if (!status)
        qsort(results, (size_t)n, sizeof *results, by_call);
    for (int32_t i = 0; i < n && sorts && !status; i++) {
        if (results[i].index < *answered)
            status = refuse(&results[i], "which has one already");
        else if (results[i].index > *answered)
            status = refuse(&results[i], "but a call before that one has none; the format has no "
                                         "ids, results belong to calls by their order");
        turns[i] = results[i].turn;
        ++*answered;
    }
    free(results);
    return status;
}

/* What follows the calls of an assistant, up to the next message of one. */
static mm2_status order_answers(const mm2_turns *t, const mm2_turn *assistant, mm2_turn *end)
{
    const mm2_turn_call *given = (const mm2_turn_call *)t->calls.items + assistant->first;
    int32_t count = assistant->count, answered = 0;
    mm2_status status = MM2_OK;
    entry *calls = calloc((size_t)count, sizeof *calls);
    if (!calls)
        return mm2_fail(MM2_E_NOMEM, "no memory for %d calls", count);
    int distinct = 1;
    for (int32_t i = 0; i < count; i++) {
        calls[i] = (entry){.id = given[i].id, .index = i};
        distinct &= given[i].id.length > 0;
    }
    if (distinct)
        qsort(calls, (size_t)count, sizeof *calls, by_id);
    for (int32_t i = 1; distinct && i < count; i++)
        distinct = by_id(&calls[i - 1], &calls[i]) != 0;
    for (mm2_turn *turn = (mm2_turn *)assistant + 1; distinct && !status && turn < end;) {
        int32_t n = 0;
        while (turn + n < end && turn[n].role == MM2_ROLE_TOOL)
            n++;
        if (n)
            status = order_results(turn, n, calls, count, &answered);
        turn += n ? n : 1;
    }
    free(calls);
    return status;
}

mm2_status mm2_turns_order(mm2_turns *t)
{
    mm2_turn *turns = t->turns.items;
    mm2_status status = MM2_OK;
    for (int32_t i = 0, end; i < t->turns.count && !status; i = end) {
        for (end = i + 1; end < t->turns.count && turns[end].role != MM2_ROLE_ASSISTANT;)
            end++;
        if (turns[i].role == MM2_ROLE_ASSISTANT && turns[i].count && end > i + 1)
            status = order_answers(t, &turns[i], turns + end);
    }
    return status;
}
