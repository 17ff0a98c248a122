/* The cache of prefixes: pages that sessions have evaluated, for others that begin with the same
 * tokens. It belongs to the model, and is there if the model was opened with prefix_cache; without,
 * nothing here does anything. */
#ifndef MM2_PREFIX_H
#define MM2_PREFIX_H

#include "run/timeline.h"

/* Takes what is known of the tokens that are pending. Call it when no rows of the timeline are in
 * flight. 1: pages are on their way from the folder, call again before rows are planned. */
int mm2_prefix_take(mm2_timeline *t);
/* Puts in the pages that became full as the position moved from `before`. */
void mm2_prefix_put(mm2_timeline *t, int32_t before);
/* Waits no longer for pages from the folder. */
void mm2_prefix_leave(mm2_timeline *t);
/* Keeps the limit, after pages have lost a holder. */
void mm2_prefix_trim(mm2_model *m);

#endif
