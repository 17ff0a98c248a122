/* The primitives of the avx512 level for attention to an INT8 cache: see wide_avx2.h for what each one
 * means.
 *
 * VPDPBUSD multiplies unsigned by signed bytes. The cache's codes are raised by 128, and sums start
 * from what that adds; a factor is two signed bytes, 256 * high + low, which have sums of their
 * own. */
#ifndef MM2_WIDE_AVX512_H
#define MM2_WIDE_AVX512_H

#include "kernels/fetch.h"

typedef __m512i v16i;

enum { WIDE_HEADS = 6, WIDE_BLOCKS = 2 };

static inline v16i wide_zero(void)
{
    return _mm512_setzero_si512();
}

static inline v16i wide_add(v16i a, v16i b)
{
    return _mm512_add_epi32(a, b);
}

static inline v16 wide_floats(v16i a)
{
    return _mm512_cvtepi32_ps(a);
}

/* The two bytes of rint(x), and the whole. */
static inline v16i wide_split(v16 x, __m128i *high, __m128i *low)
{
    __m512i factors = _mm512_cvtps_epi32(x);
    *low = _mm512_cvtepi32_epi8(factors);
    /* + 128: the upper byte of what is left when the low one, with its sign, is taken away */
    *high = _mm512_cvtepi32_epi8(
        _mm512_srai_epi32(_mm512_add_epi32(factors, _mm512_set1_epi32(128)), 8));
    return factors;
}

/* Of each four: the high bytes, then the low ones. */
static inline v16i wide_codes16(uint8_t *to, v16 x)
{
    __m128i high, low;
    v16i factors = wide_split(x, &high, &low);
    _mm_store_si128((__m128i *)to, _mm_unpacklo_epi32(high, low));
    _mm_store_si128((__m128i *)(to + 16), _mm_unpackhi_epi32(high, low));
    return factors;
}

static inline v16i wide_start(v16i total)
{
    return _mm512_set1_epi32(-128 * _mm512_reduce_add_epi32(total));
}

INLINE void wide_dot(int heads, int blocks, v16i sums[WIDE_HEADS][WIDE_BLOCKS], const uint8_t *p,
                     int64_t block, int32_t steps, int32_t group, int64_t gap,
                     const uint8_t *factors, int32_t stride, int64_t ahead)
{
    v16i high[WIDE_HEADS][WIDE_BLOCKS], low[WIDE_HEADS][WIDE_BLOCKS];
    const __m512i raise = _mm512_set1_epi8((char)0x80);
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 2
        for (int i = 0; i < blocks; i++) {
            high[h][i] = wide_zero();
            low[h][i] = sums[h][i];
        }
    for (; steps > 0; steps -= group, p += gap)
        for (int32_t s = steps < group ? steps : group; s > 0; s--, p += 64, factors += 8) {
            __m512i x[WIDE_BLOCKS];
#pragma GCC unroll 2
            for (int i = 0; i < blocks; i++) {
                x[i] = _mm512_xor_si512(_mm512_loadu_si512(p + i * block), raise);
                fetch_near(p + (blocks + i) * block);
                fetch_other(p + i * block, ahead);
            }
#pragma GCC unroll 6
            for (int h = 0; h < heads; h++) {
                int32_t bytes[2];
                memcpy(bytes, factors + h * stride, 8);
#pragma GCC unroll 2
                for (int i = 0; i < blocks; i++) {
                    high[h][i] = _mm512_dpbusd_epi32(high[h][i], x[i], _mm512_set1_epi32(bytes[0]));
                    low[h][i] = _mm512_dpbusd_epi32(low[h][i], x[i], _mm512_set1_epi32(bytes[1]));
                }
            }
        }
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 2
        for (int i = 0; i < blocks; i++)
            sums[h][i] = _mm512_add_epi32(_mm512_slli_epi32(high[h][i], 8), low[h][i]);
}

#endif
