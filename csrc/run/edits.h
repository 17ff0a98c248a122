/* Edits: what is changed of a timeline's activations, as data (mm2_edit), applied behind the step that
 * computes them, before taps see them. A set of them never changes; forks share it. */
#ifndef MM2_EDITS_H
#define MM2_EDITS_H

#include "base/pool.h"
#include "run/pass.h"

typedef struct mm2_edits mm2_edits;

/* Checked copies of n edits, one count. ARG with a sentence, NOMEM. */
mm2_status mm2_edits_new(mm2_edits **out, const mm2_config *g, const mm2_edit *edits, int32_t n);
mm2_edits *mm2_edits_retain(mm2_edits *e); /* NULL is allowed, here and below */
void mm2_edits_release(mm2_edits *e);
/* The first position whose keys and values they may change; INT32_MAX: none. */
int32_t mm2_edits_first(const mm2_edits *e);

/* Edits the rows of the points of the step that is finished: 1 when that is done, 0 if the limit came
 * first; ask again then. */
int mm2_edits_apply(mm2_pass *p, const int8_t *points, const mm2_limit *limit);
/* Adds to the scores by which the experts of a row are chosen, [num_local_experts]. */
void mm2_edits_choose(const mm2_pass *p, int32_t row, float *scores);

#endif
