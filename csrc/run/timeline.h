/* A timeline: one sequence of tokens, how far it is evaluated, the pages that evaluation left, and
 * what its owner wants to see. It has no buffers for evaluation: those are a pass's.
 *
 * Tokens and logits lie in counted buffers, so that a fork shares them. A buffer that a script has
 * seen is never shared, and a shared one is never written: its writer takes a copy first. So a view
 * never moves, and what is written through it stays with its session. */
#ifndef MM2_TIMELINE_H
#define MM2_TIMELINE_H

#include "run/edits.h"
#include "run/pages.h"
#include "run/pass.h"

typedef struct mm2_arrival mm2_arrival; /* see run/prefix.c */
typedef struct mm2_ahead mm2_ahead;     /* see run/ahead.c */

typedef struct mm2_shared { /* memory with a count */
    atomic_int references;
    void *data; /* 64-byte aligned */
} mm2_shared;

struct mm2_timeline {
    mm2_model *model; /* retained */
    mm2_pages pages;
    int32_t context;       /* positions there is room for */
    int32_t chunk;         /* rows of it that go through the layers together, when it is alone */
    int32_t kv_dtype;      /* MM2_F32, MM2_BF16 or MM2_INT8 */
    int32_t length;        /* tokens fed */
    int32_t position;      /* tokens evaluated; everything in the pages below it is valid */
    int32_t progress_base; /* position when everything before the last feed was evaluated */
    mm2_shared *tokens;    /* int32_t [context] */
    mm2_shared *logits;    /* float [vocab_size]; NULL before the first */
    int tokens_seen, logits_seen; /* a script has a view */
    int32_t logits_of;            /* position whose logits are at hand, -1 if none */
    int ready;                    /* a batch has not yet reported them */
    uint8_t *taps;                /* [MM2_POINT_COUNT][layers] */
    mm2_edits *edits;             /* one count is ours; NULL: none */
    _Atomic(mm2_pass *) pass;     /* that holds rows of it, NULL between them */
    atomic_int stop;              /* raised by mm2_timeline_interrupt */
    /* What it has of the cache of prefixes (run/prefix.c). */
    int32_t edited;       /* first position that may not follow from the tokens; INT32_MAX: none */
    int32_t reused;       /* positions that were taken */
    int asked;            /* the folder, for what was fed last */
    mm2_arrival *arrival; /* pages on their way from the folder; NULL: none */
    mm2_ahead *ahead;     /* what may come next; NULL: nobody has asked for it */
};

/* Options must be settled: no zeros. NOMEM; then nothing is left to free. */
mm2_status mm2_timeline_init(mm2_timeline *t, mm2_model *m, const mm2_session_options *o);
/* Shares all pages of another timeline, which goes on. Edits too; rows in flight and taps stay with that one.
 * NOMEM. */
mm2_status mm2_timeline_fork(mm2_timeline *out, mm2_timeline *t);
void mm2_timeline_free(mm2_timeline *t);
/* Bytes of the cache of a whole context, -1 if they have no size. */
int64_t mm2_timeline_bytes(const mm2_model *m, int32_t kv_dtype, int32_t context);

/* As the public functions. */
mm2_status mm2_timeline_feed(mm2_timeline *t, const int32_t *ids, int32_t n);
/* ARG, if one of the ids is outside the vocabulary. */
mm2_status mm2_timeline_check_ids(const mm2_timeline *t, const int32_t *ids, int32_t n);
mm2_status mm2_timeline_rewind(mm2_timeline *t, int32_t length);
/* From any thread: a run in progress returns at its next unit of work. */
void mm2_timeline_interrupt(mm2_timeline *t);
/* Makes the tokens, or the logits, the timeline's own, to be seen for as long as it lives. NOMEM. */
mm2_status mm2_timeline_see_tokens(mm2_timeline *t);
mm2_status mm2_timeline_see_logits(mm2_timeline *t);
/* Room for new logits, the old ones' or another. NOMEM. */
mm2_status mm2_timeline_renew_logits(mm2_timeline *t);

static inline const int32_t *mm2_timeline_tokens(const mm2_timeline *t)
{
    return t->tokens->data;
}

static inline float *mm2_timeline_logits(const mm2_timeline *t)
{
    return t->logits->data;
}

static inline int32_t mm2_timeline_pending(const mm2_timeline *t)
{
    return t->length - t->position;
}

#endif
