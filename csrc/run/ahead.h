/* Tokens that a timeline may have next, evaluated before they are known to come.
 *
 * They are no part of the timeline: nobody sees them, and what is fed does not depend on them. */
#ifndef MM2_AHEAD_H
#define MM2_AHEAD_H

#include "run/gate.h"
#include "run/lookup.h"
#include "run/timeline.h"

struct mm2_ahead {
    int32_t ids[MM2_DRAFT_MOST];
    int32_t first, count; /* they stand at positions [first, first + count); 0: there are none */
    int32_t used;         /* of those evaluated: came, and were taken over */
    int evaluated;        /* keys, values and logits are there */
    float *logits;        /* [room][vocab_size] */
    int32_t room;
    int32_t most; /* of what is proposed; 0: nothing is */
    int started;  /* the gate has its costs */
    mm2_lookup lookup;
    mm2_gate gate;
    int64_t proposed, accepted, runs;
};

/* As mm2_session_draft, mm2_session_speculate and mm2_session_speculation. */
mm2_status mm2_ahead_draft(mm2_timeline *t, const int32_t *ids, int32_t n);
mm2_status mm2_ahead_speculate(mm2_timeline *t, int32_t most);
void mm2_ahead_tell(const mm2_timeline *t, mm2_speculation *out);

/* Forgets them. Rows in flight go on, and nobody looks at them. */
void mm2_ahead_drop(mm2_timeline *t);
/* The timeline was cut: forgets what was known of it as well. */
void mm2_ahead_cut(mm2_timeline *t);
void mm2_ahead_free(mm2_timeline *t);

/* Before rows are planned: goes over what was fed and is evaluated already. */
void mm2_ahead_take(mm2_timeline *t);
/* How many go with the rows that are pending, `room` at most. No rows of it are in flight. */
int32_t mm2_ahead_plan(mm2_timeline *t, int32_t room);
/* The id of one of those that are in flight. */
int32_t mm2_ahead_id(const mm2_timeline *t, int32_t index);
/* `count` of them were evaluated behind what was pending: their logits. */
void mm2_ahead_commit(mm2_timeline *t, int32_t count, const float *logits);
/* A run of one pending row and `count` of them took this long. */
void mm2_ahead_ran(mm2_timeline *t, int32_t count, int64_t nanoseconds);

#endif
