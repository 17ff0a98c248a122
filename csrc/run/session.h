/* Sessions and batches: what the public functions hold. */
#ifndef MM2_SESSION_H
#define MM2_SESSION_H

#include "base/guard.h"
#include "run/schedule.h"

struct mm2_session {
    atomic_int references; /* the user's handle, a batch, and a call that works on it */
    mm2_busy busy;
    mm2_batch *batch;      /* NULL if it is no member */
    mm2_schedule schedule; /* of a session that runs alone */
    mm2_timeline timeline;
};

/* Fills in defaults and checks ranges: ARG. */
mm2_status mm2_session_settle(mm2_session_options *o, const mm2_config *g);
/* Takes the busy flag and a reference, or fails with BUSY. What a thread of the parent process was
 * evaluating when this one was forked is dropped. */
mm2_status mm2_session_enter(struct mm2_session *s);
void mm2_session_leave(struct mm2_session *s);
/* Gives up one reference; the last one frees. */
void mm2_session_release(struct mm2_session *s);

#endif
