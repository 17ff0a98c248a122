/* The primitives of the avx512 level on floats: see lanes_avx2.h for what each one means. */
#ifndef MM2_LANES_AVX512_H
#define MM2_LANES_AVX512_H

#include "kernels/inline.h"
#include "tensor/codebooks.h"

#include <immintrin.h>
#include <stddef.h>

enum {
    ROWS = 16,         /* weight rows of a panel: int32 lanes of a register */
    DOT_ACTS = 4,      /* activation rows and */
    DOT_PANELS = 2,    /* panels of one integer tile */
    DIRECT_ACTS = 4,   /* up to so many activation rows are multiplied by codes where they stand */
    SIGNED_BIAS = 128, /* what pairs_dot adds to signed codes */
    ACT_PAIR = 64,     /* bytes of the activations of two blocks */
    Q3_K_SHIFT = 0,    /* direct_dot_q3_k adds the products themselves */
    ONE_ROWS = 8,      /* weight rows that run together with one float activation row */
    TILE_ROWS = 8,     /* weight rows and */
    TILE_ACTS = 3,     /* activation rows of one float tile: 24 accumulators of 32 registers */
    KEY_TILES = 2,     /* tiles of 16 keys that attention scores at a time */
    PAIR_ROWS = 4,     /* weight rows and 16 x */
    PAIR_VECTORS = 3,  /* activation rows of one bf16 tile: twice as many accumulators */
    VALUE_LANES = 4    /* groups of 16 value dimensions that attention sums at a time */
};

/* ---- 16 floats ---- */

typedef __m512 v16;

static inline __mmask16 mask_of(int32_t n)
{
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

static inline v16 v16_zero(void)
{
    return _mm512_setzero_ps();
}

static inline v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}

static inline v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void v16_store(float *p, v16 a)
{
    _mm512_storeu_ps(p, a);
}

static inline v16 v16_load_n(const float *p, int32_t n)
{
    return _mm512_maskz_loadu_ps(mask_of(n), p);
}

static inline void v16_store_n(float *p, v16 a, int32_t n)
{
    _mm512_mask_storeu_ps(p, mask_of(n), a);
}

static inline v16 v16_keep_n(v16 a, v16 rest, int32_t n)
{
    return _mm512_mask_mov_ps(rest, mask_of(n), a);
}

static inline v16 v16_load_bf16(const uint16_t *p)
{
    __m256i x = _mm256_loadu_si256((const __m256i *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

static inline v16 v16_even(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}

static inline v16 v16_odd(const uint16_t *p)
{
    __m512i upper = _mm512_set1_epi32((int32_t)0xffff0000);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), upper));
}

static inline v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}

static inline v16 v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}

static inline v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}

static inline v16 v16_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}

static inline v16 v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline v16 v16_negate(v16 a)
{
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}

static inline v16 v16_larger(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}

static inline float v16_tree(v16 a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

static inline float v16_largest(v16 a)
{
    __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

static inline v16 v16_swapped8(v16 a)
{
    return _mm512_shuffle_f32x4(a, a, 0x4e);
}

static inline v16 v16_swapped4(v16 a)
{
    return _mm512_shuffle_f32x4(a, a, 0xb1);
}

static inline v16 v16_swapped2(v16 a)
{
    return _mm512_permute_ps(a, 0x4e);
}

static inline v16 v16_swapped1(v16 a)
{
    return _mm512_permute_ps(a, 0xb1);
}

static inline v16 v16_times_power(v16 a, v16 t, v16 magic)
{
    return _mm512_scalef_ps(a, _mm512_sub_ps(t, magic));
}

static inline v16 v16_where_less(v16 a, v16 b, v16 yes, v16 no)
{
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
}

/* ---- Quantisation ---- */

static inline uint32_t largest_bits(const float *x, int32_t n)
{
    __m512i largest = _mm512_setzero_si512(), mask = _mm512_set1_epi32(0x7fffffff);
    for (int32_t i = 0; i < n; i += 16)
        largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_loadu_si512(x + i), mask));
    return (uint32_t)_mm512_reduce_max_epi32(largest);
}

static inline int32_t quantize16(int8_t *q, const float *x, float inverse)
{
    __m512i codes = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse)));
    _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(codes));
    return _mm512_reduce_add_epi32(codes);
}

/* ---- Float weights ---- */

/* The values of the e4m3 codes 0..127 as bf16, by bytes. */
// clang-format off
static const uint8_t e4m3_high[128] = {
    0x00, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c,
    0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d, 0x3d,
    0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e,
    0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f,
    0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40,
    0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x43, 0x7f,
};
static const uint8_t e4m3_low[128] = {
    0x00, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0,
    0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xc0,
};
// clang-format on

/* As floats of 16 bits, code by code. */
static inline void bf16_of_f8(__m512i code, __m512i *low, __m512i *high)
{
    *high = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_high), code,
                                     _mm512_loadu_si512(e4m3_high + 64));
    *low = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_low), code,
                                    _mm512_loadu_si512(e4m3_low + 64));
    *high = _mm512_ternarylogic_epi64(*high, code, _mm512_set1_epi8((char)0x80), 0xf8);
}

/* 64 codes through a table look-up to bf16. Interleaving bytes to words works within 128-bit lanes
 * and a word is the lower or the upper half of a dword; the codes are put in the order in which
 * that leaves every lane its own: byte 16 L + 2 t of the register, for instance, is code
 * 4 L + t. */
static inline void widen64_f8_e4m3(const uint8_t *p, v16 out[4])
{
    // clang-format off
    static const uint8_t order[64] = {
         0, 16,  1, 17,  2, 18,  3, 19, 32, 48, 33, 49, 34, 50, 35, 51,
         4, 20,  5, 21,  6, 22,  7, 23, 36, 52, 37, 53, 38, 54, 39, 55,
         8, 24,  9, 25, 10, 26, 11, 27, 40, 56, 41, 57, 42, 58, 43, 59,
        12, 28, 13, 29, 14, 30, 15, 31, 44, 60, 45, 61, 46, 62, 47, 63,
    };
    // clang-format on
    __m512i codes = _mm512_permutexvar_epi8(_mm512_loadu_si512(order), _mm512_loadu_si512(p));
    __m512i low, high;
    bf16_of_f8(codes, &low, &high);
    __m512i even = _mm512_unpacklo_epi8(low, high), odd = _mm512_unpackhi_epi8(low, high);
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(even, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(even, upper));
    out[2] = _mm512_castsi512_ps(_mm512_slli_epi32(odd, 16));
    out[3] = _mm512_castsi512_ps(_mm512_and_si512(odd, upper));
}

static inline v16 widen_f16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

static inline v16 widen_bf16(const uint8_t *p)
{
    return v16_load_bf16((const uint16_t *)p);
}

static inline v16 widen_f32(const uint8_t *p)
{
    return v16_load((const float *)p);
}

static inline v16 widen_f8(const uint8_t *p)
{
    __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    __m256i size = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
    __mmask16 nan = _mm256_cmpeq_epi16_mask(size, _mm256_set1_epi16(0x7f));
    x = _mm256_or_si256(_mm256_slli_epi16(_mm256_sub_epi16(x, size), 8),
                        _mm256_slli_epi16(size, 7));
    x = _mm256_mask_set1_epi16(x, nan, 0x7fff);
    return _mm512_mul_ps(_mm512_cvtph_ps(x), _mm512_set1_ps(256));
}

static inline v16 widen_e8m0(const uint8_t *p)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(e, 23)), _mm512_set1_ps(0.5f));
}

static inline v16 v16_unzip(v16 a, v16 b, v16 *odd)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
    return _mm512_permutex2var_ps(a, even, b);
}

static inline __m128i bytes_in_order(__m128i a)
{
    return _mm_shuffle_epi8(a, _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
}

static inline v16 v16_codes(int pairs, const int8_t *p)
{
    __m128i c = _mm_loadu_si128((const __m128i *)p);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(pairs ? bytes_in_order(c) : c));
}

/* ---- bf16 ---- */

static inline __m512i narrowed(v16 x)
{
    const __m512i one = _mm512_set1_epi32(1);
    __m512i bits = _mm512_castps_si512(x), upper = _mm512_srli_epi32(bits, 16);
    __m512i round = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(upper, one));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, round), 16);
    return _mm512_mask_or_epi32(bits, nan, upper, _mm512_set1_epi32(0x40));
}

static inline void narrow16(uint16_t *out, v16 x)
{
    _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi32_epi16(narrowed(x)));
}

static inline v16 v16_bf16(v16 x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(narrowed(x), 16));
}

#endif
