/* An expert is announced once in a model's life. The system looks at every page when it is asked,
 * 38 us for a matrix of M2 in Q4_K that is in memory already: cheap once, not for every token.
 * Pages that it evicted since are read by faults, as all others are. */
#include "model/experts.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

int mm2_experts_hold(const mm2_weights *w, int32_t layer, int32_t expert)
{
    return 1;
}

void mm2_experts_release(const mm2_weights *w, int32_t layer, int32_t expert)
{
}

static void announce_bytes(const void *data, int64_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)data / page * page;
    uintptr_t end = (uintptr_t)data + (uintptr_t)bytes;
    if (bytes)
        madvise((void *)first, end - first, MADV_WILLNEED); /* a hint: it may fail */
}

static void announce(const mm2_weight *w)
{
    mm2_extent parts[MM2_WEIGHT_PARTS];
    int32_t count = mm2_weight_parts(w, parts);
    for (int32_t i = 0; i < count; i++)
        announce_bytes(parts[i].data, parts[i].bytes);
}

void mm2_experts_prefetch(const mm2_weights *w, int32_t layer, int32_t expert)
{
    const mm2_expert *e = mm2_experts_get(w, layer, expert);
    atomic_uchar *expected = &w->expected[e - w->experts];
    if (atomic_load_explicit(expected, memory_order_relaxed) || atomic_exchange(expected, 1))
        return;
    announce(&e->gate);
    announce(&e->up);
    announce(&e->down);
}
