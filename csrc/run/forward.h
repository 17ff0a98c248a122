/* The forward pass: a resumable state machine that takes a chunk of token rows, from one session or
 * many, through the layers.
 *
 * A pass is a walk over steps. A step has rounds (one after the other) of units (in parallel, in
 * any order, each writing its own outputs), so a pass can pause between any two units. After a step
 * come its points: places where a tap can stop the run. Layers are described by tags
 * (model/weights.h); attention.c and moe.c each export the steps of their block. */
#ifndef MM2_FORWARD_H
#define MM2_FORWARD_H

#include "base/pool.h"
#include "model/model.h"

struct mm2_session;
typedef struct mm2_forward mm2_forward;

typedef struct mm2_step {
    /* Says how many units round `round` (0, 1, ...) has, -1 when there are no more rounds; may do
     * serial work. Where they are the tiles of several matrices alike, sets progress.period. */
    mm2_status (*begin)(mm2_forward *f, int32_t round, int32_t *units);
    mm2_work work;    /* context: the mm2_forward */
    int8_t points[3]; /* MM2_POINT_* + 1, offered in this order when the step is done; 0: none */
} mm2_step;

typedef struct mm2_block { /* the steps of one kind of attention or feed-forward */
    const mm2_step *steps;
    int32_t count;
} mm2_block;

extern const mm2_block mm2_block_gqa, mm2_block_moe;

/* Rows [row, row + rows) of the chunk are positions [first, first + rows) of a session. */
typedef struct mm2_span {
    struct mm2_session *session;
    int32_t first, rows, row;
    /* The last logits_rows of them have logits, from row logits_row of `logits` on. */
    int32_t logits_row, logits_rows;
} mm2_span;

/* Rows that enter matrix products, in every kind of activation that the weights ask for; where the
 * kernels pack, also in panels of groups of 16 rows that are multiplied together. */
typedef struct mm2_input {
    const float *rows;
    int32_t n, count;
    uint32_t kinds;    /* bit MM2_ACT_* */
    int32_t unit_rows; /* of one unit of mm2_forward_quantize */
    char *data[MM2_ACT_KINDS];
    const void **pointers[MM2_ACT_KINDS]; /* [count] */
    char *panel[MM2_ACT_KINDS];           /* NULL: the kernels do not pack */
} mm2_input;

typedef struct mm2_thread_scratch {
    void **out;       /* [capacity] */
    const void **act; /* [capacity] */
    float *a, *b;     /* [capacity * MM2_TILE] */
} mm2_thread_scratch;

enum {
    MM2_TILE = 256,         /* output features of one unit, at most */
    MM2_PARTS_A_THREAD = 16 /* parts of attention that are merged together */
};

struct mm2_forward {
    mm2_model *model;
    struct mm2_forward *outgrown; /* of a batch: the smaller pass before it, kept because tap views
                                     may still look at its memory; freed with this one */
    int32_t capacity;             /* rows */

    /* The chunk in flight; rows is 0 if there is none. */
    int32_t rows, span_count;
    mm2_span *spans; /* [span_limit] */
    int32_t span_limit;
    int32_t *row_span, *row_position; /* [capacity] */

    /* Where the walk stands. */
    int32_t section, layer, step, round, units;
    mm2_progress progress; /* of the round's units */
    int32_t point, span;   /* next tap to offer behind a finished step */
    int32_t begun, finished;

    /* Buffers of the chunk, 64-byte aligned, one mapping. */
    char *memory;
    int64_t memory_bytes;
    float *x, *h, *out;     /* [capacity][hidden_size]: stream, normed, block output */
    float *q, *k, *v, *z;   /* [capacity][heads * head_dim] */
    float *m, *l;           /* [capacity][heads] */
    float *parts;           /* attention.c: [threads * MM2_PARTS_A_THREAD] */
    int32_t part_pages;     /* pages that a round attends to in parts; 0: in no parts */
    float *cosine, *sine;   /* [capacity][rotary_dim / 2] */
    float *router, *scores; /* [capacity][num_local_experts] */
    int32_t *indices;       /* [capacity][num_experts_per_tok] */
    float *expert_weights;  /* likewise */
    float *hidden;          /* [capacity * num_experts_per_tok][intermediate_size] */
    float *logits;          /* [capacity][vocab_size] */
    float *frequency;       /* [rotary_dim / 2] */
    mm2_input input;
    mm2_thread_scratch *threads;
    int32_t logits_rows;

    /* Feed-forward: slots (row * top_k + rank) ordered by expert. */
    int32_t *group_begin;                    /* [num_local_experts + 1] */
    int32_t *slots;                          /* [capacity * num_experts_per_tok] */
    int32_t *unit_expert;                    /* [num_local_experts + 1]: experts that have rows */
    int32_t *expert_panel;                   /* [num_local_experts]: first group of 16 in a panel */
    int32_t active, round_first, round_last; /* of unit_expert */
    int32_t tile;                            /* output features of a unit of the step at hand */
};

/* A pass for up to `capacity` rows from up to `span_limit` sessions. NOMEM. */
mm2_status mm2_forward_new(mm2_forward **out, mm2_model *m, int32_t capacity, int32_t span_limit);
void mm2_forward_free(mm2_forward *f);
/* Drops the chunk in flight; its sessions are as before it. */
void mm2_forward_abort(mm2_forward *f);

/* Advances the given sessions by the shared rules of mm2_session_run. */
mm2_status mm2_forward_run(mm2_forward *f, struct mm2_session *const *sessions, int32_t count,
                           int32_t budget_us, mm2_event *event);

/* ---- What blocks use ---- */

static inline const mm2_config *mm2_forward_config(const mm2_forward *f)
{
    return &f->model->checkpoint.config;
}

static inline const mm2_layer *mm2_forward_layer(const mm2_forward *f)
{
    return &f->model->weights.layers[f->layer];
}

/* Makes `rows` (float [count][n]) the input of products with weights of these kinds; *units: what
 * mm2_forward_quantize must do first. `whole`: the products take all rows together. */
void mm2_forward_input(mm2_forward *f, const float *rows, int32_t n, int32_t count, uint32_t kinds,
                       int whole, int32_t *units);
/* Work function behind it: quantises the rows of a unit and, for whole inputs, packs them. */
void mm2_forward_quantize(void *forward, int32_t unit, int32_t thread);
/* Quantises input row `row`. */
void mm2_forward_quantize_row(mm2_forward *f, int32_t row);
/* Packs `rows` rows of activations of a kind into the panel, from its group `group` on. */
void mm2_forward_pack(mm2_forward *f, int32_t kind, int32_t group, const void *const *acts,
                      int32_t rows);
/* Are products of so many rows made from a panel? */
static inline int mm2_forward_packs(const mm2_forward *f, int32_t kind, int32_t rows)
{
    return f->input.panel[kind] && rows >= f->model->kernels->packed_rows[kind];
}
/* The activations that products with these weights take: MM2_ACT_*. */
static inline int32_t mm2_input_act(const mm2_forward *f, const mm2_weight *w)
{
    return f->model->precision == MM2_PRECISION_EXACT ? MM2_ACT_F32 : mm2_act_of(w->dtype);
}
static inline uint32_t mm2_input_kind(const mm2_forward *f, const mm2_weight *w)
{
    return 1u << mm2_input_act(f, w);
}

/* Output features of one unit of a product of `rows` rows: small enough to end within a few
 * milliseconds. */
int32_t mm2_forward_tile(const mm2_forward *f, int32_t n_out, int32_t n_in, int32_t rows);
/* Rows [first, first + count) of w times `rows` activations: those of the panel from group `group`
 * on where such products are made from a panel, else acts. */
void mm2_forward_multiply(const mm2_forward *f, const mm2_weight *w, float *const *out,
                          int32_t first, int32_t count, const void *const *acts, int32_t group,
                          int32_t rows);
/* out[r * stride + i] for i in [first, first + count): weight row i times input row r, for all rows
 * of the input. */
void mm2_forward_product(mm2_forward *f, int32_t thread, const mm2_weight *w, float *out,
                         int64_t stride, int32_t first, int32_t count);
/* A step of one round with a unit for each row. */
mm2_status mm2_forward_rows(mm2_forward *f, int32_t round, int32_t *units);
/* Work functions: x += out, unit = row. */
void mm2_forward_add(void *forward, int32_t unit, int32_t thread);
/* RMS norm of one row with a norm weight of any plain dtype. */
void mm2_forward_norm(const mm2_forward *f, int32_t thread, const mm2_weight *w, float *out,
                      const float *x, int32_t n);

#endif
