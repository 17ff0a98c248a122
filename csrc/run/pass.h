/* A pass: token rows of one or many timelines on their way through the layers, and the memory for
 * it.
 *
 * A pass knows the stream, the spans of rows and the input of products. What a block needs beside
 * them it carves itself (run/block.h). Passes belong to the model: who has rows to evaluate leases
 * one and gives it back when none are in flight. The memory of a pass stays mapped until the model
 * goes, so a view that a tap has given out is always valid memory. */
#ifndef MM2_PASS_H
#define MM2_PASS_H

#include "base/pool.h"
#include "model/model.h"

typedef struct mm2_timeline mm2_timeline;
typedef struct mm2_pass mm2_pass;

/* Rows [row, row + rows) of the pass are positions [first, first + rows) of a timeline. */
typedef struct mm2_span {
    _Atomic(mm2_timeline *) timeline; /* NULL: dropped; its rows go on, nobody looks at them */
    int32_t first, rows, row;
    int32_t drafts; /* the last ones of them are not of the timeline yet, see run/ahead.c */
    /* The last logits_rows of them have logits, from row logits_row of `logits` on. */
    int32_t logits_row, logits_rows;
} mm2_span;

/* Rows that enter matrix products, in every kind of activation that the weights ask for; where the
 * kernels pack, also in panels of groups of 16 rows that are multiplied together. */
typedef struct mm2_input {
    const float *rows;
    int32_t n, count;
    uint32_t kinds;    /* bit MM2_ACT_* */
    uint32_t whole;    /* those of them that are packed all together */
    int32_t unit_rows; /* of one unit of mm2_product_quantize */
    char *data[MM2_ACT_KINDS];
    const void **pointers[MM2_ACT_KINDS]; /* [count] */
    char *panel[MM2_ACT_KINDS];           /* NULL: the kernels do not pack */
} mm2_input;

typedef struct mm2_scratch { /* of one thread */
    void **out;              /* [capacity] */
    const void **act;        /* [capacity] */
    float *a, *b;            /* [capacity * MM2_TILE] at least */
} mm2_scratch;

enum {
    MM2_TILE = 256, /* output features of one unit, at most */
    MM2_BLOCKS = 8, /* kinds of blocks, at most */
    MM2_STEP_POINTS = 3
};

/* Room that products of this pass take, the most that anybody asked for. */
typedef struct mm2_need {
    int64_t count, bytes[MM2_ACT_KINDS], panel[MM2_ACT_KINDS], scratch;
} mm2_need;

struct mm2_pass {
    mm2_model *model;
    mm2_pass *next;   /* in the model's lists */
    mm2_pass *all;    /* likewise: every pass that was ever made */
    int32_t capacity; /* rows */

    /* The rows in flight; `rows` is 0 if there are none. */
    int32_t rows, span_count;
    mm2_span *spans;                  /* [capacity] */
    int32_t *row_span, *row_position; /* [capacity] */
    int32_t logits_rows;

    /* Where the walk stands (run/walk.c): among layers [first_layer, end_layer). */
    int32_t first_layer, end_layer;
    int32_t section, layer, step, round, units;
    mm2_progress progress;       /* of the round's units */
    const int8_t *edited_points; /* of the finished step, whose rows are being edited; else NULL */
    int32_t point, span;         /* next tap to offer behind it */
    int32_t begun, finished;
    atomic_int stop; /* raised by mm2_session_interrupt, from any thread */

    /* Buffers, 64-byte aligned, one mapping. */
    char *memory;
    int64_t memory_bytes;
    float *x, *h, *out; /* [capacity][hidden_size]: stream, normed, block output */
    float *logits;      /* [capacity][vocab_size] */
    mm2_input input;
    mm2_scratch *threads;
    mm2_need need;
    void *own[MM2_BLOCKS];             /* what blocks carved, by their number */
    void *point_data[MM2_POINT_COUNT]; /* where the rows of a point lie, filled in by its owner */
};

/* ---- Memory ---- */

typedef struct mm2_carver {
    char *base; /* NULL: only measure; then carved pointers are NULL too */
    int64_t used;
} mm2_carver;

/* `count` elements of `bytes` bytes, 64-byte aligned. */
void *mm2_carve(mm2_carver *c, int64_t count, int64_t bytes);
/* Bytes that a pass of `rows` rows touches, when logits are wanted of one of them only. */
int64_t mm2_pass_bytes(mm2_model *m, int32_t rows);

/* A pass without rows for `capacity` rows at least; nobody else has it. NOMEM. */
mm2_status mm2_pass_lease(mm2_pass **out, mm2_model *m, int32_t capacity);
/* Drops the rows in flight, if any, and gives the pass back. */
void mm2_pass_return(mm2_pass *p);
/* The rows of a timeline are not wanted any more: it stays at its position. Other spans go on. NULL:
 * it has none. */
void mm2_pass_drop(mm2_pass *p, const mm2_timeline *t);
/* Is any span still wanted? */
int mm2_pass_wanted(const mm2_pass *p);

/* ---- What blocks use ---- */

static inline const mm2_config *mm2_pass_config(const mm2_pass *p)
{
    return &p->model->checkpoint.config;
}

static inline const mm2_layer *mm2_pass_layer(const mm2_pass *p)
{
    return &p->model->weights.layers[p->layer];
}

/* The timeline of a row; NULL: dropped. */
static inline mm2_timeline *mm2_pass_timeline(const mm2_pass *p, int32_t row)
{
    return p->spans[p->row_span[row]].timeline;
}

/* A step of one round with a unit for each row. */
mm2_status mm2_pass_rows(mm2_pass *p, int32_t round, int32_t *units);
/* Work function: x += out, unit = row. */
void mm2_pass_add(void *pass, int32_t unit, int32_t thread);
/* RMS norm of one row with a norm weight of any plain dtype. out may be x. */
void mm2_pass_norm(const mm2_pass *p, int32_t thread, const mm2_weight *w, float *out,
                   const float *x, int32_t n);

#endif
