/* The thread pool: units of work, handed out until they are finished, a deadline passes or a flag is
 * raised. What was started is finished, so a run can go on where the last one ended.
 *
 * On a machine with several memory nodes every node has units of its own, always the same for the
 * same weights, so that a weight is read by the CPUs beside the memory that holds it: a file's pages
 * lie where they were first touched. The workers are bound to their nodes; the caller, whose thread
 * is the host's, counts as one of node 0. A thread whose node has no units left helps the others. */
#ifndef MM2_POOL_H
#define MM2_POOL_H

#include "base/numa.h"
#include "minimax2.h"

#include <stdatomic.h>

typedef struct mm2_pool mm2_pool;

/* `threads` counts the caller: 1 starts none. Threads are started by the first run that needs them.
 * Owned. */
mm2_status mm2_pool_new(mm2_pool **out, int32_t threads);
void mm2_pool_free(mm2_pool *p);
int32_t mm2_pool_threads(const mm2_pool *p);
/* Call once before a series of runs: after fork() it makes the pool the child's own. Any thread. */
void mm2_pool_prepare(mm2_pool *p);

typedef void (*mm2_work)(void *context, int32_t unit, int32_t thread); /* thread in [0, threads) */

typedef struct mm2_limit {
    int64_t deadline;       /* CLOCK_MONOTONIC nanoseconds; INT64_MAX: none */
    const atomic_int *stop; /* non-zero stops; NULL: none */
} mm2_limit;

/* How far the units [0, count) are; all zero at first. Node i of n owns the i-th n-th of each
 * `period` units, and those of its units that are done are a prefix. With one node that is: units
 * are taken in ascending order, and those done are [0, next[0]). */
typedef struct mm2_progress {
    int32_t period; /* e.g. the units of one matrix, where there are several; 0: count */
    int32_t next[MM2_NODES];
} mm2_progress;

/* Runs the units that are left on the caller and the workers; returns whether all are done. At
 * least one is run if there is one. One caller has the workers at a time; a second one works alone
 * meanwhile, with thread = 0 (its context is its own). */
int mm2_pool_run(mm2_pool *p, mm2_work work, void *context, mm2_progress *progress, int32_t count,
                 const mm2_limit *limit);

int64_t mm2_now(void); /* CLOCK_MONOTONIC, nanoseconds */

/* Floating-point mode of the kernels: round to nearest, FTZ, DAZ, exceptions masked. Returns the
 * caller's, to be restored. */
uint32_t mm2_float_mode_enter(void);
void mm2_float_mode_leave(uint32_t saved);

#endif
