/* Which rows of which timelines go through the layers next. A lone session is a batch of one. */
#ifndef MM2_SCHEDULE_H
#define MM2_SCHEDULE_H

#include "run/timeline.h"

typedef struct mm2_schedule {
    mm2_pass *pass; /* leased while rows are in flight, else NULL */
    int32_t turn;   /* the member that is served first in the next pass */
    int64_t spent;  /* nanoseconds on the rows in flight, by earlier runs */
} mm2_schedule;

/* Evaluates what is pending, `rows` rows of all members together at most. Returns as mm2_session_run;
 * with `announce`, READY as mm2_batch_run. event->session is the index of the member; may not be
 * NULL. */
mm2_status mm2_schedule_run(mm2_schedule *s, mm2_timeline *const *members, int32_t count,
                            int32_t rows, int announce, int32_t budget_us, mm2_event *event);
/* Gives the pass back if nobody wants any of its rows. Call it when a member has been cut or has
 * gone. */
void mm2_schedule_tidy(mm2_schedule *s);
/* Drops all rows in flight. */
void mm2_schedule_drop(mm2_schedule *s);

#endif
