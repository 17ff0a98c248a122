/* A session: the tokens of one timeline, how far they are evaluated, and the cache that evaluation
 * left. */
#ifndef MM2_SESSION_H
#define MM2_SESSION_H

#include "run/forward.h"
#include "run/kv.h"

struct mm2_session {
    atomic_int references; /* the user's handle and a batch */
    atomic_int busy;       /* 1 while a call works on it */
    mm2_model *model;
    mm2_kv kv;
    int32_t context;
    int32_t *tokens;       /* [context] */
    int32_t length;        /* tokens fed */
    int32_t position;      /* tokens evaluated; everything in the cache below it is valid */
    int64_t progress_base; /* position when everything before the last feed was evaluated */
    int32_t logits_of;     /* position whose logits are at hand, -1 if none */
    float *logits;         /* [vocab_size] */
    uint8_t *taps;         /* [MM2_POINT_COUNT][layers] */
    mm2_forward *own;      /* the pass of a session that runs alone */
    mm2_forward *flight;   /* the pass that holds rows of it, NULL between chunks */
    mm2_batch *batch;      /* NULL if it is no member */
    atomic_int stop;       /* raised by mm2_session_interrupt */
};

struct mm2_batch {
    atomic_int busy;
    mm2_model *model;
    mm2_forward *forward; /* made by the first run, again when members outgrow it */
    struct mm2_session **members;
    int32_t count, limit;
};

/* Gives up one reference; the last one frees. */
void mm2_session_release(struct mm2_session *s);

static inline int mm2_session_tapped(const struct mm2_session *s, int32_t point, int32_t layer)
{
    return s->taps[point * s->kv.layers + layer];
}

#endif
