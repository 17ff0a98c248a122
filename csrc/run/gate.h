/* How many proposed tokens are worth their rows, by what was measured. */
#ifndef MM2_GATE_H
#define MM2_GATE_H

#include "minimax2.h"

/* Rows of a run, at most; lengths of matches that are told apart. */
enum { MM2_GATE_ROWS = MM2_DRAFT_MOST + 1, MM2_GATE_CLASSES = 8 };

typedef struct mm2_gate {               /* costs in runs of one row */
    double expected[MM2_GATE_ROWS + 1]; /* of so many rows, to begin with */
    double cost[MM2_GATE_ROWS + 1];     /* as measured; 0: not yet */
    double one;                         /* nanoseconds of a run of one row */
    int32_t ones;                       /* of them that were measured, 3 at most */
    double hits[MM2_GATE_CLASSES], tests[MM2_GATE_CLASSES];
    double spent;   /* of all runs */
    double balance; /* saved by proposals, less their cost */
} mm2_gate;

/* Nothing was measured. expected[rows], 1 .. MM2_GATE_ROWS: see above. */
void mm2_gate_init(mm2_gate *g, const double *expected);
/* A run of so many rows took this long; all but the first were proposals. */
void mm2_gate_ran(mm2_gate *g, int32_t rows, int64_t nanoseconds);
/* So many proposed tokens came, each of which needs no run any more. */
void mm2_gate_saved(mm2_gate *g, int32_t tokens);
/* What followed a match of this length was what the lookup had said (1), or not (0). */
void mm2_gate_judged(mm2_gate *g, int32_t matched, int32_t hit);
/* How many tokens to propose behind a match of this length, `most` at most; 0: none. */
int32_t mm2_gate_choose(const mm2_gate *g, int32_t matched, int32_t most);
/* Is nothing proposed at present, however long the match? */
int32_t mm2_gate_closed(const mm2_gate *g, int32_t most);

#endif
