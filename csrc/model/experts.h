/* Where an expert's weights are in memory. Today: in the map, for as long as the model lives. The
 * feed-forward block asks here and nowhere else, so that a budgeted cache can fetch and evict
 * behind this door. */
#ifndef MM2_EXPERTS_H
#define MM2_EXPERTS_H

#include "model/weights.h"

/* 1: what is got between hold and release stays where it is until the release. 0: the expert is on
 * its way and not held; ask again. Holds may nest, and any thread may hold. In the map every expert
 * is there, and nothing is ever evicted, so there is nothing to count. */
int mm2_experts_hold(const mm2_weights *w, int32_t layer, int32_t expert);
void mm2_experts_release(const mm2_weights *w, int32_t layer, int32_t expert);

/* Call it between hold and release. */
static inline const mm2_expert *mm2_experts_get(const mm2_weights *w, int32_t layer, int32_t expert)
{
    return &w->layers[layer].experts[expert];
}

/* Says that the expert will be asked for soon. The first time, the system is told to read its
 * weights from the file: whole matrices at once, where page faults would read a little of them and
 * much of their neighbours. Any thread. */
void mm2_experts_prefetch(const mm2_weights *w, int32_t layer, int32_t expert);

#endif
