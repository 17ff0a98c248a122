/* Prefetches of attention. A decoded token's keys and values come from memory: while the keys of a chunk
 * are multiplied its values are fetched, line by line, one for each of the keys. */
#ifndef MM2_FETCH_H
#define MM2_FETCH_H

#include "kernels/inline.h"

#include <immintrin.h>
#include <stdint.h>

/* What comes soon, into the first-level cache. */
INLINE void fetch_near(const void *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* The line of the other plane, `ahead` bytes from p, into the second-level one. */
INLINE void fetch_other(const void *p, int64_t ahead)
{
    _mm_prefetch((const char *)((uintptr_t)p + (uint64_t)ahead), _MM_HINT_T1);
}

/* From one plane to the other. */
static inline int64_t distance(const void *from, const void *to)
{
    return (int64_t)((uintptr_t)to - (uintptr_t)from);
}

#endif
