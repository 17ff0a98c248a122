/* From a block of the file to signed int8 codes, with AVX2: for the avx2 level and all above it.
 *
 * A block of 32 gives 32 codes and a half float. A super-block gives 256 codes, 16 integer scales
 * and 16 minima (one each for 16 codes; formats with sub-blocks of 32 give each twice) and two half
 * floats. Blocks have any alignment, so they are addressed as bytes; loads stay inside the block. */
#ifndef MM2_UNPACK_AVX2_H
#define MM2_UNPACK_AVX2_H

#include "tensor/quant.h"

#include <immintrin.h>
#include <stddef.h>

static inline uint16_t load_u16(const uint8_t *p)
{
    uint16_t x;
    memcpy(&x, p, 2);
    return x;
}

static inline uint32_t load_u32(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, 4);
    return x;
}

static inline __m256i load32(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

static inline void store32(int8_t *q, __m256i codes)
{
    _mm256_storeu_si256((__m256i *)q, codes);
}

/* (x >> shift) & mask in every byte; the mask drops what crosses a byte. */
static inline __m256i bits32(__m256i x, int shift, int mask)
{
    return _mm256_and_si256(_mm256_srli_epi16(x, shift), _mm256_set1_epi8((char)mask));
}

/* 16 bytes to 32 nibbles: the low ones, then the high ones. */
static inline __m256i nibbles(const uint8_t *p)
{
    __m128i x = _mm_loadu_si128((const __m128i *)p);
    __m256i both = _mm256_set_m128i(_mm_srli_epi16(x, 4), x);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

static inline __m256i iq4_values(__m256i code)
{
    __m128i table = _mm_loadu_si128((const __m128i *)mm2_iq4_values);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), code);
}

/* The rest of a tree over 16 lanes, and of their largest. */
static inline float tree8(__m256 a)
{
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

static inline float largest8(__m256 a)
{
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

/* ---- Blocks of 32 ---- */

static inline uint16_t unpack_block(int32_t dtype, int8_t *q, const uint8_t *b)
{
    switch (dtype) {
    case MM2_Q8_0:
        store32(q, load32(b + offsetof(mm2_block_q8_0, q)));
        return load_u16(b + offsetof(mm2_block_q8_0, d));
    case MM2_Q4_0:
        store32(q, _mm256_sub_epi8(nibbles(b + offsetof(mm2_block_q4_0, q)), _mm256_set1_epi8(8)));
        return load_u16(b + offsetof(mm2_block_q4_0, d));
    case MM2_Q5_0: {
        /* Byte i of the register gets the byte with bit i, then that bit alone. A set bit stands for
         * 16 and a clear one for 0, less 16: so clear ones become -16. */
        const __m256i bytes =
            _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
        const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
        __m256i high = _mm256_set1_epi32((int)load_u32(b + offsetof(mm2_block_q5_0, high)));
        high = _mm256_and_si256(_mm256_shuffle_epi8(high, bytes), bit);
        __m256i clear = _mm256_cmpeq_epi8(high, _mm256_setzero_si256());
        __m256i minus16 = _mm256_and_si256(clear, _mm256_set1_epi8(-16));
        store32(q, _mm256_or_si256(nibbles(b + offsetof(mm2_block_q5_0, q)), minus16));
        return load_u16(b + offsetof(mm2_block_q5_0, d));
    }
    default:
        store32(q, iq4_values(nibbles(b + offsetof(mm2_block_iq4_nl, q))));
        return load_u16(b + offsetof(mm2_block_iq4_nl, d));
    }
}

/* ---- Super-blocks ---- */

typedef struct factors { /* 64 bytes: one row of a transposition */
    int16_t scale[16], min[16];
} factors;

static inline void store_factors(int16_t out[16], __m256i x)
{
    _mm256_storeu_si256((__m256i *)out, x);
}

/* Four 2-bit codes of each byte are elements 32 apart. */
static inline void unpack_q2_k(int8_t *q, factors *f, const uint8_t *b)
{
    for (int half = 0; half < 2; half++) {
        __m256i x = load32(b + offsetof(mm2_block_q2_k, q) + half * 32);
        store32(q + half * 128, bits32(x, 0, 3));
        store32(q + half * 128 + 32, bits32(x, 2, 3));
        store32(q + half * 128 + 64, bits32(x, 4, 3));
        store32(q + half * 128 + 96, bits32(x, 6, 3));
    }
    __m128i both = _mm_loadu_si128((const __m128i *)(b + offsetof(mm2_block_q2_k, scales)));
    __m256i wide = _mm256_cvtepu8_epi16(both);
    store_factors(f->scale, _mm256_and_si256(wide, _mm256_set1_epi16(15)));
    store_factors(f->min, _mm256_srli_epi16(wide, 4));
}

/* As Q2_K; a clear bit of `high` means -4. */
static inline __m256i code_q3_k(__m256i low, __m256i high, int bit)
{
    __m256i mask = _mm256_set1_epi8((char)(1 << bit));
    __m256i clear = _mm256_cmpeq_epi8(_mm256_and_si256(high, mask), _mm256_setzero_si256());
    return _mm256_or_si256(low, _mm256_and_si256(clear, _mm256_set1_epi8(-4)));
}

static inline void unpack_q3_k(int8_t *q, factors *f, const uint8_t *b)
{
    __m256i high = load32(b + offsetof(mm2_block_q3_k, high));
    for (int half = 0; half < 2; half++) {
        __m256i x = load32(b + offsetof(mm2_block_q3_k, q) + half * 32);
        store32(q + half * 128, code_q3_k(bits32(x, 0, 3), high, half * 4));
        store32(q + half * 128 + 32, code_q3_k(bits32(x, 2, 3), high, half * 4 + 1));
        store32(q + half * 128 + 64, code_q3_k(bits32(x, 4, 3), high, half * 4 + 2));
        store32(q + half * 128 + 96, code_q3_k(bits32(x, 6, 3), high, half * 4 + 3));
    }
    const uint8_t *s = b + offsetof(mm2_block_q3_k, scales);
    uint32_t low0 = load_u32(s), low1 = load_u32(s + 4), top = load_u32(s + 8);
    const uint32_t m4 = 0x0f0f0f0f, m2 = 0x03030303;
    __m128i bytes = _mm_setr_epi32((int)((low0 & m4) | (top & m2) << 4),
                                   (int)((low1 & m4) | (top >> 2 & m2) << 4),
                                   (int)((low0 >> 4 & m4) | (top >> 4 & m2) << 4),
                                   (int)((low1 >> 4 & m4) | (top >> 6 & m2) << 4));
    store_factors(f->scale, _mm256_sub_epi16(_mm256_cvtepu8_epi16(bytes), _mm256_set1_epi16(32)));
    store_factors(f->min, _mm256_setzero_si256());
}

/* The 6-bit scales and minima of Q4_K and Q5_K, each for 32 elements. */
static inline void unpack_scales(factors *f, const uint8_t *s)
{
    uint32_t p0 = load_u32(s), p1 = load_u32(s + 4), p2 = load_u32(s + 8);
    const uint32_t m6 = 0x3f3f3f3f, m4 = 0x0f0f0f0f, m2 = 0x03030303;
    __m128i bytes =
        _mm_setr_epi32((int)(p0 & m6), (int)((p2 & m4) | (p0 >> 6 & m2) << 4),       /* 8 scales */
                       (int)(p1 & m6), (int)((p2 >> 4 & m4) | (p1 >> 6 & m2) << 4)); /* 8 minima */
    store_factors(f->scale, _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(bytes, bytes)));
    store_factors(f->min, _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(bytes, bytes)));
}

static inline void unpack_q4_k(int8_t *q, factors *f, const uint8_t *b)
{
    for (int i = 0; i < 4; i++) {
        __m256i x = load32(b + offsetof(mm2_block_q4_k, q) + i * 32);
        store32(q + i * 64, bits32(x, 0, 15));
        store32(q + i * 64 + 32, bits32(x, 4, 15));
    }
    unpack_scales(f, b + offsetof(mm2_block_q4_k, scales));
}

static inline void unpack_q5_k(int8_t *q, factors *f, const uint8_t *b)
{
    __m256i high = load32(b + offsetof(mm2_block_q5_k, high));
    for (int i = 0; i < 4; i++) { /* two bits of `high` at a time become bit 4 of the codes */
        __m256i x = load32(b + offsetof(mm2_block_q5_k, q) + i * 32);
        __m256i bit0 = _mm256_and_si256(_mm256_slli_epi16(high, 4), _mm256_set1_epi8(16));
        __m256i bit1 = _mm256_and_si256(_mm256_slli_epi16(high, 3), _mm256_set1_epi8(16));
        store32(q + i * 64, _mm256_or_si256(bits32(x, 0, 15), bit0));
        store32(q + i * 64 + 32, _mm256_or_si256(bits32(x, 4, 15), bit1));
        high = _mm256_srli_epi16(high, 2);
    }
    unpack_scales(f, b + offsetof(mm2_block_q5_k, scales));
}

static inline void unpack_q6_k(int8_t *q, factors *f, const uint8_t *b)
{
    const __m256i m = _mm256_set1_epi8(0x30), bias = _mm256_set1_epi8(32);
    for (int half = 0; half < 2; half++) {
        __m256i low0 = load32(b + offsetof(mm2_block_q6_k, low) + half * 64);
        __m256i low1 = load32(b + offsetof(mm2_block_q6_k, low) + half * 64 + 32);
        __m256i high = load32(b + offsetof(mm2_block_q6_k, high) + half * 32);
        __m256i h0 = _mm256_and_si256(_mm256_slli_epi16(high, 4), m);
        __m256i h1 = _mm256_and_si256(_mm256_slli_epi16(high, 2), m);
        __m256i h2 = _mm256_and_si256(high, m);
        __m256i h3 = _mm256_and_si256(_mm256_srli_epi16(high, 2), m);
        int8_t *out = q + half * 128;
        store32(out, _mm256_sub_epi8(_mm256_or_si256(bits32(low0, 0, 15), h0), bias));
        store32(out + 32, _mm256_sub_epi8(_mm256_or_si256(bits32(low1, 0, 15), h1), bias));
        store32(out + 64, _mm256_sub_epi8(_mm256_or_si256(bits32(low0, 4, 15), h2), bias));
        store32(out + 96, _mm256_sub_epi8(_mm256_or_si256(bits32(low1, 4, 15), h3), bias));
    }
    __m128i scales = _mm_loadu_si128((const __m128i *)(b + offsetof(mm2_block_q6_k, scales)));
    store_factors(f->scale, _mm256_cvtepi8_epi16(scales));
    store_factors(f->min, _mm256_setzero_si256());
}

static inline void unpack_iq4_xs(int8_t *q, factors *f, const uint8_t *b)
{
    for (int i = 0; i < 8; i++)
        store32(q + i * 32, iq4_values(nibbles(b + offsetof(mm2_block_iq4_xs, q) + i * 16)));
    /* Low nibbles in 4 bytes; high pairs of bits in a 16-bit word, moved to its top for each of 8
     * lanes by a multiplication. */
    uint32_t low = load_u32(b + offsetof(mm2_block_iq4_xs, scales_low));
    __m128i even = _mm_cvtsi32_si128((int)(low & 0x0f0f0f0f));
    __m128i odd = _mm_cvtsi32_si128((int)(low >> 4 & 0x0f0f0f0f));
    __m128i scale = _mm_cvtepu8_epi16(_mm_unpacklo_epi8(even, odd));
    __m128i high = _mm_set1_epi16((short)load_u16(b + offsetof(mm2_block_iq4_xs, scales_high)));
    high = _mm_mullo_epi16(
        high, _mm_setr_epi16(1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 6, 1 << 4, 1 << 2, 1));
    scale = _mm_or_si128(scale, _mm_slli_epi16(_mm_srli_epi16(high, 14), 4));
    scale = _mm_sub_epi16(scale, _mm_set1_epi16(32));
    store_factors(f->scale, _mm256_set_m128i(_mm_unpackhi_epi16(scale, scale),
                                             _mm_unpacklo_epi16(scale, scale)));
    store_factors(f->min, _mm256_setzero_si256());
}

/* *dmin is 0 for the formats without minima. */
static inline void unpack_super(int32_t dtype, int8_t *q, factors *f, uint16_t *d, uint16_t *dmin,
                                const uint8_t *b)
{
    *dmin = 0;
    switch (dtype) {
    case MM2_Q2_K:
        unpack_q2_k(q, f, b);
        *d = load_u16(b + offsetof(mm2_block_q2_k, d));
        *dmin = load_u16(b + offsetof(mm2_block_q2_k, dmin));
        return;
    case MM2_Q3_K:
        unpack_q3_k(q, f, b);
        *d = load_u16(b + offsetof(mm2_block_q3_k, d));
        return;
    case MM2_Q4_K:
        unpack_q4_k(q, f, b);
        *d = load_u16(b + offsetof(mm2_block_q4_k, d));
        *dmin = load_u16(b + offsetof(mm2_block_q4_k, dmin));
        return;
    case MM2_Q5_K:
        unpack_q5_k(q, f, b);
        *d = load_u16(b + offsetof(mm2_block_q5_k, d));
        *dmin = load_u16(b + offsetof(mm2_block_q5_k, dmin));
        return;
    case MM2_Q6_K:
        unpack_q6_k(q, f, b);
        *d = load_u16(b + offsetof(mm2_block_q6_k, d));
        return;
    default:
        unpack_iq4_xs(q, f, b);
        *d = load_u16(b + offsetof(mm2_block_iq4_xs, d));
    }
}

#endif
