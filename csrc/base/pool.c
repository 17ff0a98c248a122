/* A run is published in one atomic word: generation, an open bit and the number of workers inside.
 * Workers join an open run by raising that number, take units from their node's counter, then from
 * the other nodes' counters, and leave; the caller takes units too, closes the run when none are
 * left and waits for those inside. A worker that is still asleep by then is not waited for.
 *
 * The deadline and the stop flag are looked at before a unit is taken, never after, so that a
 * node's units done form a prefix.
 *
 * Waiting workers spin for SPIN_NS (a step of a token usually follows the last one within that),
 * giving the core away now and then in case it is oversubscribed, and then sleep on a futex. After
 * fork() the child has no workers: mm2_pool_prepare notices by the process id and starts afresh. One
 * thread does so; others that come meanwhile wait for it.
 * Signals stay with the host's threads. */
#define _GNU_SOURCE
#include "base/pool.h"

#include "base/status.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SPIN_NS = 50000, SPINS_PER_LOOK = 64, LINE = 64 };

static const uint64_t OPEN = 1ULL << 31;

typedef struct worker {
    mm2_pool *pool;
    pthread_t id;
    int32_t index;
} worker;

/* The units of one node: `width` from `first` on, in every period. */
typedef struct share {
    int32_t first, width, period, units;
} share;

typedef struct lane {
    share share;
    atomic_int next;
    char apart[LINE]; /* from the next node's counter */
} lane;

struct mm2_pool {
    int32_t threads, started; /* started: workers that run, without the caller */
    int32_t nodes;
    atomic_int process;         /* whose the workers are; its negative while it takes them over */
    pthread_mutex_t owner;      /* held by the caller that has the workers */
    atomic_uint_fast64_t state; /* generation << 32 | OPEN | workers inside */
    atomic_uint bell;           /* futex: counts generations */
    atomic_int sleepers, quit;
    mm2_work work;
    void *context;
    const mm2_limit *limit;
    lane lanes[MM2_NODES];
    worker workers[];
};

int64_t mm2_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#if defined(__x86_64__)
uint32_t mm2_float_mode_enter(void)
{
    uint32_t saved = _mm_getcsr();
    _mm_setcsr(0x9fc0); /* FTZ, DAZ, all exceptions masked, round to nearest */
    return saved;
}

void mm2_float_mode_leave(uint32_t saved)
{
    _mm_setcsr(saved);
}

static void spin(void)
{
    _mm_pause();
}
#else
uint32_t mm2_float_mode_enter(void)
{
    return 0;
}

void mm2_float_mode_leave(uint32_t saved)
{
    (void)saved;
}

static void spin(void)
{
}
#endif

static int past(const mm2_limit *limit)
{
    return (limit->stop && atomic_load_explicit(limit->stop, memory_order_relaxed)) ||
           (limit->deadline != INT64_MAX && mm2_now() >= limit->deadline);
}

static share share_of(const mm2_pool *p, int32_t node, int32_t period, int32_t count)
{
    share s = {.period = period ? period : count};
    s.first = (int32_t)((int64_t)s.period * node / p->nodes);
    s.width = (int32_t)((int64_t)s.period * (node + 1) / p->nodes) - s.first;
    int32_t rest = count % s.period - s.first; /* in a last period that is cut short */
    rest = rest < 0 ? 0 : rest < s.width ? rest : s.width;
    s.units = count / s.period * s.width + rest;
    return s;
}

static int32_t unit_at(const share *s, int32_t i)
{
    return i / s->width * s->period + s->first + i % s->width;
}

static int32_t node_of(const mm2_pool *p, int32_t thread)
{
    return (int32_t)((int64_t)thread * p->nodes / p->threads);
}

static void take_units(mm2_pool *p, int32_t thread)
{
    int32_t node = node_of(p, thread);
    for (int32_t i = 0; i < p->nodes; i++, node = node + 1 < p->nodes ? node + 1 : 0) {
        lane *l = &p->lanes[node];
        for (;;) {
            if (past(p->limit))
                return;
            int32_t at = atomic_fetch_add_explicit(&l->next, 1, memory_order_relaxed);
            if (at >= l->share.units)
                break;
            p->work(p->context, unit_at(&l->share, at), thread);
        }
    }
}

static void wait_for_bell(mm2_pool *p, uint32_t heard)
{
    int64_t until = mm2_now() + SPIN_NS;
    for (int looks = 0; atomic_load_explicit(&p->bell, memory_order_acquire) == heard; looks++) {
        for (int i = 0; i < SPINS_PER_LOOK; i++)
            spin();
        if (looks % 8 == 7)
            sched_yield();
        if (mm2_now() >= until) {
            atomic_fetch_add(&p->sleepers, 1);
            syscall(SYS_futex, &p->bell, FUTEX_WAIT_PRIVATE, heard, NULL, NULL, 0);
            atomic_fetch_sub(&p->sleepers, 1);
        }
    }
}

static void *worker_main(void *argument)
{
    worker *w = argument;
    mm2_pool *p = w->pool;
    mm2_float_mode_enter();
    if (p->nodes > 1)
        mm2_numa_bind(node_of(p, w->index));
    for (uint32_t heard = 0;;) {
        wait_for_bell(p, heard);
        heard = atomic_load_explicit(&p->bell, memory_order_acquire);
        if (atomic_load(&p->quit))
            return NULL;
        uint64_t state = atomic_load(&p->state);
        while (state & OPEN && !atomic_compare_exchange_weak(&p->state, &state, state + 1))
            ;
        if (!(state & OPEN))
            continue;
        take_units(p, w->index);
        atomic_fetch_sub(&p->state, 1);
    }
}

static void ring(mm2_pool *p)
{
    atomic_fetch_add(&p->bell, 1);
    if (atomic_load(&p->sleepers))
        syscall(SYS_futex, &p->bell, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void reset(mm2_pool *p)
{
    pthread_mutex_init(&p->owner, NULL);
    atomic_store(&p->state, 0);
    atomic_store(&p->bell, 0);
    atomic_store(&p->sleepers, 0);
    atomic_store(&p->quit, 0);
    p->started = 0;
    atomic_store(&p->process, (int)getpid());
}

mm2_status mm2_pool_new(mm2_pool **out, int32_t threads)
{
    if (threads < 1 || threads > 1024)
        return mm2_fail(MM2_E_ARG, "threads must be 1..1024, got %d", threads);
    mm2_pool *p = calloc(1, sizeof *p + (size_t)threads * sizeof(worker));
    if (!p)
        return mm2_fail(MM2_E_NOMEM, "out of memory for a pool of %d threads", threads);
    p->threads = threads;
    int32_t nodes = threads > 1 ? mm2_numa_nodes() : 1;
    p->nodes = nodes < threads ? nodes : threads;
    reset(p);
    *out = p;
    return MM2_OK;
}

void mm2_pool_free(mm2_pool *p)
{
    if (!p)
        return;
    if (atomic_load(&p->process) == (int)getpid()) {
        atomic_store(&p->quit, 1);
        ring(p);
        for (int32_t i = 0; i < p->started; i++)
            pthread_join(p->workers[i].id, NULL);
        pthread_mutex_destroy(&p->owner);
    }
    free(p);
}

int32_t mm2_pool_threads(const mm2_pool *p)
{
    return p->threads;
}

/* Starts the workers that are missing; fewer than asked for is not an error, only slower. */
static void start_workers(mm2_pool *p)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (p->started < p->threads - 1) {
        worker *w = &p->workers[p->started];
        *w = (worker){.pool = p, .index = p->started + 1};
        if (pthread_create(&w->id, NULL, worker_main, w))
            break;
        p->started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void mm2_pool_prepare(mm2_pool *p)
{
    int mine = (int)getpid(), found = atomic_load(&p->process);
    while (found != mine) {
        if (found == -mine)
            sched_yield();
        else if (atomic_compare_exchange_strong(&p->process, &found, -mine))
            reset(p);
        found = atomic_load(&p->process);
    }
}

static void run_alone(const mm2_pool *p, mm2_work work, void *context, mm2_progress *progress,
                      int32_t count, const mm2_limit *limit)
{
    for (int32_t node = 0; node < p->nodes; node++) {
        share s = share_of(p, node, progress->period, count);
        while (progress->next[node] < s.units) {
            work(context, unit_at(&s, progress->next[node]++), 0);
            if (past(limit))
                return;
        }
    }
}

/* Units not done. */
static int32_t units_left(const mm2_pool *p, const mm2_progress *progress, int32_t count)
{
    int32_t left = count;
    for (int32_t node = 0; node < p->nodes; node++)
        left -= progress->next[node];
    return left;
}

/* Makes what is left of every node's share the lanes' and takes one unit out: the caller's own, so
 * that there is progress even when the deadline is past. */
static int32_t fill_lanes(mm2_pool *p, const mm2_progress *progress, int32_t count)
{
    int32_t own = -1;
    for (int32_t node = 0; node < p->nodes; node++) {
        lane *l = &p->lanes[node];
        int32_t next = progress->next[node];
        l->share = share_of(p, node, progress->period, count);
        if (own < 0 && next < l->share.units)
            own = unit_at(&l->share, next++);
        atomic_store_explicit(&l->next, next, memory_order_relaxed);
    }
    return own;
}

int mm2_pool_run(mm2_pool *p, mm2_work work, void *context, mm2_progress *progress, int32_t count,
                 const mm2_limit *limit)
{
    int32_t left = units_left(p, progress, count);
    if (!left)
        return 1;
    if (left == 1 || p->threads == 1 || pthread_mutex_trylock(&p->owner)) {
        run_alone(p, work, context, progress, count, limit);
        return !units_left(p, progress, count);
    }
    if (p->started < p->threads - 1)
        start_workers(p);
    p->work = work;
    p->context = context;
    p->limit = limit;
    int32_t own = fill_lanes(p, progress, count);
    uint64_t generation = atomic_load(&p->state) >> 32;
    atomic_store(&p->state, (generation + 1) << 32 | OPEN);
    ring(p);
    work(context, own, 0);
    take_units(p, 0);
    atomic_fetch_and(&p->state, ~OPEN);
    for (int looks = 0; atomic_load_explicit(&p->state, memory_order_acquire) & (OPEN - 1);
         looks++) {
        spin();
        if (looks % 1024 == 1023)
            sched_yield();
    }
    for (int32_t node = 0; node < p->nodes; node++) {
        const lane *l = &p->lanes[node];
        int32_t reached = atomic_load_explicit(&l->next, memory_order_relaxed);
        progress->next[node] = reached < l->share.units ? reached : l->share.units;
    }
    pthread_mutex_unlock(&p->owner);
    return !units_left(p, progress, count);
}
