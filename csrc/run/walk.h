/* The resumable walk of a pass over embedding, layers and head. */
#ifndef MM2_WALK_H
#define MM2_WALK_H

#include "run/pass.h"

/* To the beginning: p->first_layer and p->end_layer say which layers are walked; the embedding
 * belongs to layer 0, the head to the last. */
void mm2_walk_start(mm2_pass *p);
/* Goes on until the end (OK), the limit (MORE; between steps only the deadline and the stop flag
 * count), or a tap (TAP: *event says which; event->session is left alone and p->span - 1 is the
 * span). Errors: of a step. */
mm2_status mm2_walk_on(mm2_pass *p, const mm2_limit *limit, mm2_event *event);
/* Layers that are behind the rows in flight. */
int32_t mm2_walk_layers_done(const mm2_pass *p);
/* The cell of the layer that the walk is in may be written by units to come: pages that have become
 * shared since it stopped are parted here. NOMEM. */
mm2_status mm2_walk_resume(mm2_pass *p);

#endif
