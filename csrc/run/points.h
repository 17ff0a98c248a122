/* The points: places where a run can be stopped, looked at and changed. One table says what each is;
 * its owner, a block or the pass, says where its rows lie (pass->point_data). */
#ifndef MM2_POINTS_H
#define MM2_POINTS_H

#include "run/timeline.h"

/* Switches a tap of a timeline; layer -1: at all layers where the point exists. ARG. */
mm2_status mm2_points_tap(mm2_timeline *t, int32_t point, int32_t layer, int on);
/* Does the point exist at this layer of so many? */
int mm2_points_exist(int32_t point, int32_t layer, int32_t layers);
/* Elements of a row. */
int32_t mm2_points_width(const mm2_config *g, int32_t point);
/* Does the timeline stop here? */
static inline int mm2_points_tapped(const mm2_timeline *t, int32_t point, int32_t layer)
{
    return t->taps[point * t->pages.layout->layers + layer];
}
/* The next tap behind the step at hand, described in *event: 1; or 0 if there is none. The span that
 * it is of is left in pass->span, counted from 1. `points`: those of the step. */
int mm2_points_offer(mm2_pass *p, const int8_t *points, mm2_event *event);

#endif
