/* The primitives of the avx2 level for attention to an INT8 cache. Its codes are multiplied by
 * factors, integers of at most MM2_WIDE_TOP for queries and probabilities. v16i is 16 int32: sums of
 * positions (of products with keys) or of elements (with values). Both kinds lie in the cache as lines
 * of 64 bytes: the codes of 16 sums for four steps k. */
#ifndef MM2_WIDE_AVX2_H
#define MM2_WIDE_AVX2_H

#include "kernels/fetch.h"

typedef struct v16i {
    __m256i low, high;
} v16i;

enum {
    WIDE_HEADS = 6, /* heads and */
    WIDE_BLOCKS = 1 /* blocks of 16 sums that run together */
};

static inline v16i wide_zero(void)
{
    v16i a = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    return a;
}

static inline v16i wide_add(v16i a, v16i b)
{
    v16i sum = {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
    return sum;
}

static inline v16 wide_floats(v16i a)
{
    return v16_of(_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high));
}

/* rint(x) to `to`, 32 bytes, aligned, as wide_dot takes them; returns what wide_start adds up. */
static inline v16i wide_codes16(uint8_t *to, v16 x)
{
    __m256i factors = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
    _mm256_store_si256((__m256i *)to, _mm256_permute4x64_epi64(factors, 0xd8));
    return wide_zero();
}

/* What sums start from, for factors of this total. */
static inline v16i wide_start(v16i total)
{
    return total;
}

/* sums[h][i] += sum over k of factors[h][k] * cache[i][k], exact: for `heads` heads, whose factors lie
 * `stride` bytes apart, and `blocks` blocks, `block` bytes apart. A block has lines for 4 * steps k:
 * `group` lines one after the other, then `gap` bytes of something else, and so on. The same lines
 * of the next blocks are prefetched, and those `ahead` bytes away into the second-level cache. */
INLINE void wide_dot(int heads, int blocks, v16i sums[WIDE_HEADS][WIDE_BLOCKS], const uint8_t *p,
                     int64_t block, int32_t steps, int32_t group, int64_t gap,
                     const uint8_t *factors, int32_t stride, int64_t ahead)
{
    (void)blocks;
    for (int half = 0; half < 2; half++) {
        __m256i sum[WIDE_HEADS][2]; /* of two k each, side by side: 4 lines' sums, and 4 more */
        const uint8_t *line = p + half * 32, *code = factors;
#pragma GCC unroll 6
        for (int h = 0; h < heads; h++)
            sum[h][0] = sum[h][1] = _mm256_setzero_si256();
        for (int32_t rest = steps; rest > 0; rest -= group, line += gap)
            for (int32_t s = rest < group ? rest : group; s > 0; s--, line += 64, code += 8) {
                __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)line));
                __m256i y = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(line + 16)));
                if (half)
                    fetch_other(line, ahead);
                else
                    fetch_near(line + block);
#pragma GCC unroll 6
                for (int h = 0; h < heads; h++) {
                    long long four;
                    memcpy(&four, code + h * stride, 8);
                    __m256i q = _mm256_set1_epi64x(four);
                    sum[h][0] = _mm256_add_epi32(sum[h][0], _mm256_madd_epi16(x, q));
                    ADD_NOW(sum[h][0]);
                    sum[h][1] = _mm256_add_epi32(sum[h][1], _mm256_madd_epi16(y, q));
                    ADD_NOW(sum[h][1]);
                }
            }
#pragma GCC unroll 6
        for (int h = 0; h < heads; h++) {
            __m256i joined =
                _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[h][0], sum[h][1]), 0xd8);
            if (half)
                sums[h][0].high = _mm256_add_epi32(sums[h][0].high, joined);
            else
                sums[h][0].low = _mm256_add_epi32(sums[h][0].low, joined);
        }
    }
}

#endif
