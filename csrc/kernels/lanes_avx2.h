/* The primitives of the avx2 level on floats: v16 is 16 of them, the lanes of kernels.h. Each
 * instruction set has a file like this one and one like codes_avx2.h, with the same names; the
 * body_*.h files are written in terms of them and are compiled once per level. */
#ifndef MM2_LANES_AVX2_H
#define MM2_LANES_AVX2_H

#include "kernels/inline.h"
#include "tensor/codebooks.h"

#include <immintrin.h>
#include <stddef.h>

enum {
    ROWS = 8,         /* weight rows of a panel: int32 lanes of a register */
    DOT_ACTS = 4,     /* activation rows and */
    DOT_PANELS = 1,   /* panels of one integer tile */
    DIRECT_ACTS = 3,  /* up to so many activation rows are multiplied by codes where they stand */
    SIGNED_BIAS = 0,  /* what pairs_dot adds to signed codes */
    ACT_PAIR = 128,   /* bytes of the activations of two blocks */
    Q3_K_SHIFT = 4,   /* direct_dot_q3_k adds 2^4 times the products */
    ONE_ROWS = 4,     /* weight rows that run together with one float activation row */
    TILE_ROWS = 2,    /* weight rows and */
    TILE_ACTS = 3,    /* activation rows of one float tile: 12 accumulators of 16 registers */
    KEY_TILES = 1,    /* tiles of 16 keys that attention scores at a time */
    PAIR_ROWS = 3,    /* weight rows and 16 x */
    PAIR_VECTORS = 1, /* activation rows of one bf16 tile: twice as many accumulators */
    VALUE_LANES = 1   /* groups of 16 value dimensions that attention sums at a time */
};

/* ---- 16 floats ---- */

typedef struct v16 {
    __m256 low, high;
} v16;

static inline v16 v16_of(__m256 low, __m256 high)
{
    v16 v = {low, high};
    return v;
}

static inline v16 v16_zero(void)
{
    return v16_of(_mm256_setzero_ps(), _mm256_setzero_ps());
}

static inline v16 v16_set1(float x)
{
    return v16_of(_mm256_set1_ps(x), _mm256_set1_ps(x));
}

static inline v16 v16_load(const float *p)
{
    return v16_of(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}

static inline void v16_store(float *p, v16 a)
{
    _mm256_storeu_ps(p, a.low);
    _mm256_storeu_ps(p + 8, a.high);
}

/* All ones in the first n of 8 lanes. */
static inline __m256i mask_of(int32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* The first n floats (all 16 if n is larger) and zeros; touches no others. */
static inline v16 v16_load_n(const float *p, int32_t n)
{
    if (n >= 16)
        return v16_load(p);
    __m256 low = _mm256_maskload_ps(p, mask_of(n));
    return v16_of(low, n > 8 ? _mm256_maskload_ps(p + 8, mask_of(n - 8)) : _mm256_setzero_ps());
}

static inline void v16_store_n(float *p, v16 a, int32_t n)
{
    if (n >= 16) {
        v16_store(p, a);
        return;
    }
    _mm256_maskstore_ps(p, mask_of(n), a.low);
    if (n > 8)
        _mm256_maskstore_ps(p + 8, mask_of(n - 8), a.high);
}

/* Lanes below n from a, the others from rest. */
static inline v16 v16_keep_n(v16 a, v16 rest, int32_t n)
{
    return v16_of(_mm256_blendv_ps(rest.low, a.low, _mm256_castsi256_ps(mask_of(n))),
                  _mm256_blendv_ps(rest.high, a.high, _mm256_castsi256_ps(mask_of(n - 8))));
}

static inline __m256 widen8_bf16(const uint16_t *p)
{
    __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}

static inline v16 v16_load_bf16(const uint16_t *p)
{
    return v16_of(widen8_bf16(p), widen8_bf16(p + 8));
}

static inline __m256 pairs_even(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p), 16));
}

static inline __m256 pairs_odd(const uint16_t *p)
{
    __m256 upper = _mm256_castsi256_ps(_mm256_set1_epi32((int32_t)0xffff0000));
    return _mm256_and_ps(_mm256_loadu_ps((const float *)p), upper);
}

/* The first elements of 16 pairs of bf16, ... */
static inline v16 v16_even(const uint16_t *p)
{
    return v16_of(pairs_even(p), pairs_even(p + 16));
}

/* ... and the second ones. */
static inline v16 v16_odd(const uint16_t *p)
{
    return v16_of(pairs_odd(p), pairs_odd(p + 16));
}

static inline v16 v16_add(v16 a, v16 b)
{
    return v16_of(_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high));
}

static inline v16 v16_sub(v16 a, v16 b)
{
    return v16_of(_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high));
}

static inline v16 v16_mul(v16 a, v16 b)
{
    return v16_of(_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high));
}

static inline v16 v16_div(v16 a, v16 b)
{
    return v16_of(_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high));
}

/* a * b + c, one rounding. */
static inline v16 v16_fma(v16 a, v16 b, v16 c)
{
    return v16_of(_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high));
}

static inline v16 v16_negate(v16 a)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return v16_of(_mm256_xor_ps(a.low, sign), _mm256_xor_ps(a.high, sign));
}

/* The larger one; b where either is NaN. */
static inline v16 v16_larger(v16 a, v16 b)
{
    return v16_of(_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high));
}

/* j with j + 8, then + 4, + 2, + 1. */
static inline float v16_tree(v16 a)
{
    __m256 b = _mm256_add_ps(a.low, a.high);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

/* Of lanes without NaN. */
static inline float v16_largest(v16 a)
{
    __m256 b = _mm256_max_ps(a.low, a.high);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

/* Lane j of the result is lane j ^ 8 (4, 2, 1). */
static inline v16 v16_swapped8(v16 a)
{
    return v16_of(a.high, a.low);
}

static inline v16 v16_swapped4(v16 a)
{
    return v16_of(_mm256_permute2f128_ps(a.low, a.low, 1),
                  _mm256_permute2f128_ps(a.high, a.high, 1));
}

static inline v16 v16_swapped2(v16 a)
{
    return v16_of(_mm256_permute_ps(a.low, 0x4e), _mm256_permute_ps(a.high, 0x4e));
}

static inline v16 v16_swapped1(v16 a)
{
    return v16_of(_mm256_permute_ps(a.low, 0xb1), _mm256_permute_ps(a.high, 0xb1));
}

/* a * 2^n, n being the integer that t = n + magic carries in its low bits (mm2_exp): in two halves,
 * because 2^n may be no float. */
static inline __m256 times_power8(__m256 a, __m256 t, __m256 magic)
{
    __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(magic));
    __m256i half = _mm256_srai_epi32(n, 1), bias = _mm256_set1_epi32(127);
    __m256i other = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
    half = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(half)), _mm256_castsi256_ps(other));
}

static inline v16 v16_times_power(v16 a, v16 t, v16 magic)
{
    return v16_of(times_power8(a.low, t.low, magic.low), times_power8(a.high, t.high, magic.high));
}

/* yes where a < b, else no. */
static inline v16 v16_where_less(v16 a, v16 b, v16 yes, v16 no)
{
    return v16_of(_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
                  _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ)));
}

/* ---- Quantisation ---- */

/* The largest absolute bit pattern of n floats, n a multiple of 16. */
static inline uint32_t largest_bits(const float *x, int32_t n)
{
    __m256i largest = _mm256_setzero_si256(), mask = _mm256_set1_epi32(0x7fffffff);
    for (int32_t i = 0; i < n; i += 8) {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(x + i));
        largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, mask));
    }
    __m128i a =
        _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    a = _mm_max_epi32(a, _mm_shuffle_epi32(a, 0x4e));
    a = _mm_max_epi32(a, _mm_shuffle_epi32(a, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(a);
}

/* 16 codes rint(x * inverse); returns their sum. */
static inline int32_t quantize16(int8_t *q, const float *x, float inverse)
{
    __m256 factor = _mm256_set1_ps(inverse);
    __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor));
    __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), factor));
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    __m128i first = _mm256_castsi256_si128(words), last = _mm256_extracti128_si256(words, 1);
    _mm_storeu_si128((__m128i *)q, _mm_packs_epi16(first, last));
    __m128i sum = _mm_madd_epi16(_mm_add_epi16(first, last), _mm_set1_epi16(1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(sum);
}

/* ---- Float weights: 64 elements to float32, in order ---- */

/* As half floats the codes are 1/256 of their value, subnormals included; NaN needs a mend. */
static inline v16 widen_f8(const uint8_t *p)
{
    __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    x = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 1); /* sign twice, exponent and mantissa */
    x = _mm256_and_si256(x, _mm256_set1_epi16((short)0xbfff));
    __m256i magnitude = _mm256_and_si256(x, _mm256_set1_epi16(0x7fff));
    x = _mm256_or_si256(x, _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f << 7)));
    __m256 factor = _mm256_set1_ps(256);
    return v16_of(_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), factor),
                  _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)), factor));
}

static inline v16 widen_f16(const uint8_t *p)
{
    return v16_of(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                  _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16))));
}

static inline v16 widen_bf16(const uint8_t *p)
{
    return v16_load_bf16((const uint16_t *)p);
}

static inline v16 widen_f32(const uint8_t *p)
{
    return v16_load((const float *)p);
}

static inline void widen64_f8_e4m3(const uint8_t *p, v16 out[4])
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        out[i] = widen_f8(p + 16 * i);
}

/* 2^(e - 128) of 16 bytes e; below 2^-126 it counts as zero, and for e = 255 it is infinity. */
static inline v16 widen_e8m0(const uint8_t *p)
{
    const __m256 half = _mm256_set1_ps(0.5f);
    __m256i low = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    __m256i high = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8)));
    return v16_of(_mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(low, 23)), half),
                  _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(high, 23)), half));
}

/* The even ones of a's and b's lanes; *odd: the others. */
static inline v16 v16_unzip(v16 a, v16 b, v16 *odd)
{
    __m256 even[2], odds[2];
    const v16 x[2] = {a, b};
    for (int i = 0; i < 2; i++) { /* within lanes of 128 bits, then across */
        __m256d e = _mm256_castps_pd(_mm256_shuffle_ps(x[i].low, x[i].high, 0x88));
        __m256d o = _mm256_castps_pd(_mm256_shuffle_ps(x[i].low, x[i].high, 0xdd));
        even[i] = _mm256_castpd_ps(_mm256_permute4x64_pd(e, 0xd8));
        odds[i] = _mm256_castpd_ps(_mm256_permute4x64_pd(o, 0xd8));
    }
    *odd = v16_of(odds[0], odds[1]);
    return v16_of(even[0], even[1]);
}

/* 16 bytes of which each 8 have the even elements first, in order. */
static inline __m128i bytes_in_order(__m128i a)
{
    return _mm_shuffle_epi8(a, _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
}

/* 16 signed codes as floats; `pairs`: to be put in order. */
static inline v16 v16_codes(int pairs, const int8_t *p)
{
    __m128i low = _mm_loadu_si128((const __m128i *)p);
    low = pairs ? bytes_in_order(low) : low;
    __m128i high = _mm_unpackhi_epi64(low, low);
    return v16_of(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)),
                  _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)));
}

/* ---- bf16 ---- */

static inline __m256i narrow8(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x), upper = _mm256_srli_epi32(bits, 16);
    __m256i round = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    round = _mm256_add_epi32(round, _mm256_set1_epi32(0x7fff));
    __m256i nan = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    bits = _mm256_srli_epi32(_mm256_add_epi32(bits, round), 16);
    return _mm256_blendv_epi8(bits, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}

/* 16 floats as bf16, as mm2_f32_bf16 rounds. */
static inline void narrow16(uint16_t *out, v16 x)
{
    __m256i joined = _mm256_packus_epi32(narrow8(x.low), narrow8(x.high));
    _mm256_storeu_si256((__m256i *)out, _mm256_permute4x64_epi64(joined, 0xd8));
}

/* The same, as floats. */
static inline v16 v16_bf16(v16 x)
{
    return v16_of(_mm256_castsi256_ps(_mm256_slli_epi32(narrow8(x.low), 16)),
                  _mm256_castsi256_ps(_mm256_slli_epi32(narrow8(x.high), 16)));
}

#endif
