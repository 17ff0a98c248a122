/* What a block is: one kind of attention or feed-forward, with its steps, its buffers, what it keeps
 * in the cache, and its points.
 *
 * A pass walks over steps. A step has rounds (one after the other) of units (in parallel, in any
 * order, each writing its own outputs), so a pass can pause between any two units. Behind a step
 * come its points: places where a tap can stop the run. Layers say by tags which blocks they are
 * made of (model/weights.h). A new kind of block is a file here, a number, and its name in
 * mm2_block_attention or mm2_block_feed_forward (walk.c). */
#ifndef MM2_BLOCK_H
#define MM2_BLOCK_H

#include "run/pages.h"
#include "run/pass.h"

/* What begin answers, beside MM2_OK and errors: what the step needs is not there yet (an expert from
 * the disk, rows from a peer). It is asked again, without units, until it is or time is up. */
enum { MM2_WAITING = 100 };

typedef struct mm2_step {
    /* Says how many units round `round` (0, 1, ...) has, -1 when there are no more rounds; may do
     * serial work. Where they are the tiles of several matrices alike, sets progress.period. */
    mm2_status (*begin)(mm2_pass *p, int32_t round, int32_t *units);
    mm2_work work;                  /* context: the mm2_pass */
    int8_t points[MM2_STEP_POINTS]; /* MM2_POINT_* + 1, offered in this order when the step is done;
                                       0: none */
} mm2_step;

typedef struct mm2_block {
    const mm2_step *steps;
    int32_t count;
    /* Takes its buffers, leaves them in pass->own[its number] and its points' in pass->point_data,
     * and says what its products need. Called twice: to measure (nothing is handed out) and to
     * have. NULL: it has none. */
    void (*carve)(mm2_pass *p, mm2_carver *c);
    /* The planes of a layer's cell, for keys and values of `dtype`; returns their number. NULL: it
     * keeps nothing. */
    int32_t (*planes)(const mm2_config *config, int32_t dtype, mm2_plane *planes);
    /* The rows are dropped in the middle of the block: lets go of what it holds. NULL: nothing. */
    void (*drop)(mm2_pass *p);
} mm2_block;

enum { MM2_BLOCK_GQA = 0, MM2_BLOCK_MOE = 1, MM2_BLOCK_COUNT = 2 }; /* of pass->own */
_Static_assert((int)MM2_BLOCK_COUNT <= (int)MM2_BLOCKS, "room in pass->own");

extern const mm2_block mm2_block_gqa, mm2_block_moe;       /* gqa.c, moe.c */
extern const mm2_block mm2_block_embed, mm2_block_head;    /* ends.c */
extern const mm2_block *const mm2_blocks[MM2_BLOCK_COUNT]; /* by number */

/* The two blocks of a layer. */
const mm2_block *mm2_block_attention(const mm2_layer *layer);
const mm2_block *mm2_block_feed_forward(const mm2_layer *layer);

#endif
