/* The thread pool: units of work, handed out in ascending order, until they are finished, a
 * deadline passes or a flag is raised. What was started is finished, so the units done are always a
 * prefix and the next call goes on behind it. */
#ifndef MM2_POOL_H
#define MM2_POOL_H

#include "minimax2.h"

#include <stdatomic.h>

typedef struct mm2_pool mm2_pool;

/* `threads` counts the caller: 1 starts none. Threads are started by the first run that needs them.
 * Owned. */
mm2_status mm2_pool_new(mm2_pool **out, int32_t threads);
void mm2_pool_free(mm2_pool *p);
int32_t mm2_pool_threads(const mm2_pool *p);
/* Call once before a series of runs: after fork() it makes the pool the child's own. */
void mm2_pool_prepare(mm2_pool *p);

typedef void (*mm2_work)(void *context, int32_t unit, int32_t thread); /* thread in [0, threads) */

typedef struct mm2_limit {
    int64_t deadline;       /* CLOCK_MONOTONIC nanoseconds; INT64_MAX: none */
    const atomic_int *stop; /* non-zero stops; NULL: none */
} mm2_limit;

/* Runs units [*next, count) on the caller and the workers; *next becomes the first unit not run. At
 * least one unit is run if there is one. One caller has the workers at a time; a second one works
 * alone meanwhile, with thread = 0 (its context is its own). */
void mm2_pool_run(mm2_pool *p, mm2_work work, void *context, int32_t *next, int32_t count,
                  const mm2_limit *limit);

int64_t mm2_now(void); /* CLOCK_MONOTONIC, nanoseconds */

/* Floating-point mode of the kernels: round to nearest, FTZ, DAZ, exceptions masked. Returns the
 * caller's, to be restored. */
uint32_t mm2_float_mode_enter(void);
void mm2_float_mode_leave(uint32_t saved);

#endif
