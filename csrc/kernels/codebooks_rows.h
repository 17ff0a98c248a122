/* Super-blocks of codebook and ternary formats by loads of rows of a grid: what avx2 has, and
 * avx512 for the formats without a look-up of its own. The instructions are those of avx2.
 *
 * Staging takes a block apart: indices of more than 8 bits to words, signs to a bit each, scales
 * to bytes. From there 32 codes at a time are put together by loads, in the order of the file. All
 * super-blocks of a group are staged before the first of them is multiplied. */
#ifndef MM2_CODEBOOKS_ROWS_H
#define MM2_CODEBOOKS_ROWS_H

typedef struct staged {
    union {
        _Alignas(64) uint16_t index[64]; /* of rows; none where the file has bytes */
        uint8_t code[MM2_SUPER];         /* TQ1_0: plus 1 */
    };
    _Alignas(32) uint8_t signs[32]; /* bit j of byte i: of code 8 i + j */
    _Alignas(16) uint8_t scale[16];
} staged;

/* What a bit of `signs` says: the code is negative, or 1 is to be taken off and not added. */
enum { NEGATIVE, MINUS_ONE, NO_SIGNS };

INLINE int signs_of(int32_t dtype)
{
    return dtype == MM2_TQ1_0 || dtype == MM2_TQ2_0   ? NO_SIGNS
           : dtype == MM2_IQ1_S || dtype == MM2_IQ1_M ? MINUS_ONE
                                                      : NEGATIVE;
}

INLINE __m256i load_32(const void *p)
{
    return _mm256_loadu_si256(p);
}

INLINE void store_32(void *p, __m256i a)
{
    _mm256_storeu_si256(p, a);
}

INLINE __m128i load_16(const void *p)
{
    return _mm_loadu_si128(p);
}

INLINE __m256i twice_16(const void *p)
{
    return _mm256_broadcastsi128_si256(load_16(p));
}

/* 16 words, of each four the same four; bytes likewise, of each lane. */
INLINE __m256i words_4(int a, int b, int c, int d)
{
    return _mm256_set1_epi64x(
        (int64_t)((uint64_t)d << 48 | (uint64_t)c << 32 | (uint64_t)b << 16 | (uint64_t)a));
}

/* ---- Signs ---- */

/* Bytes with 7 sign bits; the eighth becomes their parity. */
INLINE __m256i even_bytes(__m256i a)
{
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i parity = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    __m256i b = _mm256_shuffle_epi8(parity, _mm256_and_si256(a, low));
    __m256i c = _mm256_and_si256(_mm256_srli_epi16(a, 4), low);
    return _mm256_or_si256(a, _mm256_xor_si256(b, _mm256_shuffle_epi8(parity, c)));
}

/* IQ2_XXS and IQ3_XXS have four times 7 signs and a scale in a dword for 32 codes. */
INLINE void stage_more(staged *s, __m256i more)
{
    __m256i a = _mm256_and_si256(more, _mm256_set1_epi32(0x3fff));
    __m256i b = _mm256_and_si256(_mm256_slli_epi32(more, 2), _mm256_set1_epi32(0x3fff0000));
    a = _mm256_or_si256(a, b); /* 14 bits a word */
    b = _mm256_and_si256(_mm256_slli_epi16(a, 1), _mm256_set1_epi16(0x7f00));
    a = _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi16(0x7f)), b);
    store_32(s->signs, even_bytes(a));
    a = _mm256_or_si256(_mm256_srli_epi32(more, 27), _mm256_set1_epi32(1));
    a = _mm256_or_si256(a, _mm256_slli_epi32(a, 8));
    a = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, a), 0x08);
    _mm_store_si128((__m128i *)s->scale, _mm256_castsi256_si128(a));
}

/* ---- Scales ---- */

INLINE __m128i twice_plus_1(__m128i a)
{
    return _mm_or_si128(_mm_add_epi8(a, a), _mm_set1_epi8(1));
}

/* The low and the high nibble of the 8 lower bytes. */
INLINE __m128i nibbles_16(__m128i a)
{
    const __m128i low = _mm_set1_epi8(15);
    return _mm_unpacklo_epi8(_mm_and_si128(a, low), _mm_and_si128(_mm_srli_epi16(a, 4), low));
}

INLINE void stage_scales_iq2(staged *s, const uint8_t *p)
{
    __m128i a = _mm_loadl_epi64((const __m128i *)p);
    _mm_store_si128((__m128i *)s->scale, twice_plus_1(nibbles_16(a)));
}

/* ---- Indices of more than 8 bits ---- */

/* 16 of them: the bytes at q and, above, those bits of `more` that a power of two brings to bit 8
 * and up and `mask` keeps. */
INLINE void put_indices(uint16_t out[16], const uint8_t *q, __m256i more, __m256i power, int mask)
{
    __m256i a = _mm256_and_si256(_mm256_mullo_epi16(more, power), _mm256_set1_epi16((short)mask));
    store_32(out, _mm256_or_si256(a, _mm256_cvtepu8_epi16(load_16(q))));
}

/* Bytes n, n + 1, .. of the lanes of a as words, `same` words of each. */
INLINE __m256i words_of(__m256i a, int n, int same)
{
    __m256i i = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    i = _mm256_srli_epi16(i, same == 8 ? 3 : same == 4 ? 2 : 1);
    return _mm256_shuffle_epi8(a, _mm256_add_epi16(i, _mm256_set1_epi16((short)(0x8000 + n))));
}

/* ---- Formats ---- */

INLINE void stage_iq2_xxs(staged *s, const uint8_t *p)
{
    p += offsetof(mm2_block_iq2_xxs, q);
    __m256 a = _mm256_loadu_ps((const float *)p), b = _mm256_loadu_ps((const float *)(p + 32));
    __m256i more = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
    stage_more(s, _mm256_permute4x64_epi64(more, 0xd8));
}

INLINE void stage_iq2_xs(staged *s, const uint8_t *p)
{
    __m256i a = load_32(p + offsetof(mm2_block_iq2_xs, q));
    __m256i b = load_32(p + offsetof(mm2_block_iq2_xs, q) + 32);
    const __m256i mask = _mm256_set1_epi16(511);
    store_32(s->index, _mm256_and_si256(a, mask));
    store_32(s->index + 16, _mm256_and_si256(b, mask));
    a = _mm256_packus_epi16(_mm256_srli_epi16(a, 9), _mm256_srli_epi16(b, 9));
    store_32(s->signs, even_bytes(_mm256_permute4x64_epi64(a, 0xd8)));
    stage_scales_iq2(s, p + offsetof(mm2_block_iq2_xs, scales));
}

INLINE void stage_iq2_s(staged *s, const uint8_t *p)
{
    const uint8_t *q = p + offsetof(mm2_block_iq2_s, q);
    __m256i high = _mm256_broadcastsi128_si256(
        _mm_loadl_epi64((const __m128i *)(p + offsetof(mm2_block_iq2_s, high))));
    const __m256i power = words_4(256, 64, 16, 4);
    put_indices(s->index, q, words_of(high, 0, 4), power, 0x300);
    put_indices(s->index + 16, q + 16, words_of(high, 4, 4), power, 0x300);
    store_32(s->signs, load_32(p + offsetof(mm2_block_iq2_s, signs)));
    stage_scales_iq2(s, p + offsetof(mm2_block_iq2_s, scales));
}

INLINE void stage_iq3_xxs(staged *s, const uint8_t *p)
{
    stage_more(s, load_32(p + offsetof(mm2_block_iq3_xxs, more)));
}

INLINE void stage_iq3_s(staged *s, const uint8_t *p)
{
    const uint8_t *q = p + offsetof(mm2_block_iq3_s, q);
    __m256i high = _mm256_broadcastsi128_si256(
        _mm_loadl_epi64((const __m128i *)(p + offsetof(mm2_block_iq3_s, high))));
    const __m256i power =
        _mm256_broadcastsi128_si256(_mm_setr_epi16(256, 128, 64, 32, 16, 8, 4, 2));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        put_indices(s->index + i * 16, q + i * 16, words_of(high, i * 2, 8), power, 0x100);
    store_32(s->signs, load_32(p + offsetof(mm2_block_iq3_s, signs)));
    int32_t scales;
    memcpy(&scales, p + offsetof(mm2_block_iq3_s, scales), 4);
    __m128i a = twice_plus_1(nibbles_16(_mm_cvtsi32_si128(scales)));
    _mm_store_si128((__m128i *)s->scale, _mm_unpacklo_epi8(a, a));
}

INLINE void stage_iq1_s(staged *s, const uint8_t *p)
{
    const uint8_t *q = p + offsetof(mm2_block_iq1_s, q);
    __m128i high = load_16(p + offsetof(mm2_block_iq1_s, high));
    /* A word for each of 4 rows; the fourth has its bits one further up. */
    const __m256i four = _mm256_setr_epi64x(0x0100010001000100, 0x0302030203020302,
                                            0x0504050405040504, 0x0706070607060706);
    const __m256i eight = _mm256_set1_epi16(0x0808);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256i more = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(high),
                                           i ? _mm256_add_epi8(four, eight) : four);
        more = _mm256_blend_epi16(more, _mm256_srli_epi16(more, 1), 0x88);
        put_indices(s->index + i * 16, q + i * 16, more, words_4(256, 32, 4, 1), 0x700);
    }
    __m256i minus = _mm256_broadcastsi128_si256(_mm_srai_epi16(high, 15));
    store_32(s->signs, _mm256_shuffle_epi8(
                           minus, _mm256_setr_epi64x(0x0202020200000000, 0x0606060604040404,
                                                     0x0a0a0a0a08080808, 0x0e0e0e0e0c0c0c0c)));
    high = _mm_and_si128(_mm_srli_epi16(high, 12), _mm_set1_epi16(7));
    _mm_store_si128((__m128i *)s->scale, twice_plus_1(_mm_or_si128(high, _mm_slli_epi16(high, 8))));
}

INLINE void stage_iq1_m(staged *s, const uint8_t *p)
{
    const uint8_t *q = p + offsetof(mm2_block_iq1_m, q);
    __m256i high = twice_16(p + offsetof(mm2_block_iq1_m, high));
    const __m256i power = words_4(256, 16, 256, 16);
    put_indices(s->index, q, words_of(high, 0, 2), power, 0x700);
    put_indices(s->index + 16, q + 16, words_of(high, 8, 2), power, 0x700);
    /* Of each byte bit 3, for an even row, and bit 7. */
    const __m256i bit = _mm256_set1_epi16((short)0x8008);
    __m256i a = _mm256_permute4x64_epi64(high, 0x50);
    a = _mm256_and_si256(_mm256_unpacklo_epi8(a, a), bit);
    store_32(s->signs, _mm256_cmpeq_epi8(a, bit));
    /* Four times 3 bits of each word. */
    a = _mm256_broadcastsi128_si256(
        _mm_loadl_epi64((const __m128i *)(p + offsetof(mm2_block_iq1_m, scales))));
    a = _mm256_shuffle_epi8(a, _mm256_setr_epi64x(0x0100010001000100, 0x0302030203020302,
                                                  0x0504050405040504, 0x0706070607060706));
    a = _mm256_srli_epi16(_mm256_mullo_epi16(a, words_4(8192, 1024, 128, 16)), 13);
    a = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, a), 0x08);
    _mm_store_si128((__m128i *)s->scale, twice_plus_1(_mm256_castsi256_si128(a)));
}

/* Digits of 16 bytes: each is the upper part of what the one before leaves, times 3. */
INLINE void stage_digits(uint8_t *out, int digits, int stride, const uint8_t *p)
{
    __m256i a = _mm256_cvtepu8_epi16(load_16(p));
#pragma GCC unroll 5
    for (int i = 0; i < digits; i++, out += stride) {
        a = _mm256_add_epi16(a, _mm256_add_epi16(a, a));
        __m256i b = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), a);
        b = _mm256_permute4x64_epi64(b, 0x08);
        _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(b));
        a = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
    }
}

INLINE void stage_tq1_0(staged *s, const uint8_t *p)
{
    stage_digits(s->code, 5, 32, p);
    stage_digits(s->code + 16, 5, 32, p + 16);
    stage_digits(s->code + 160, 5, 16, p + 32);
    uint8_t last[4][16], four[16] = {0};
    memcpy(four, p + offsetof(mm2_block_tq1_0, high), 4);
    stage_digits(last[0], 4, 16, four);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        memcpy(s->code + 240 + i * 4, last[i], 4);
    _mm_store_si128((__m128i *)s->scale, _mm_set1_epi8(1));
}

INLINE void stage_tq2_0(staged *s, const uint8_t *p)
{
    _mm_store_si128((__m128i *)s->scale, _mm_set1_epi8(1));
}

INLINE void stage(int32_t dtype, staged *s, const uint8_t *p)
{
    switch (dtype) {
#define ONE(ID, name, ...)                                                                         \
    case MM2_##ID:                                                                                 \
        stage_##name(s, p);                                                                        \
        return;
        MM2_CODEBOOKS(ONE)
#undef ONE
    }
}

/* ---- Codes, 32 at a time ---- */

INLINE __m256i rows_of_8(const int8_t grid[][8], int a, int b, int c, int d)
{
    const double *t = (const double *)grid;
    __m128d low = _mm_loadh_pd(_mm_load_sd(t + a), t + b);
    __m128d high = _mm_loadh_pd(_mm_load_sd(t + c), t + d);
    return _mm256_castpd_si256(_mm256_insertf128_pd(_mm256_castpd128_pd256(low), high, 1));
}

/* The 16 bytes at a row and behind it are loaded; the grids end with rows that are not used. */
INLINE __m128i rows_of_4(const int8_t grid[][4], int a, int b, int c, int d)
{
    __m128i low = _mm_unpacklo_epi32(_mm_loadu_si32(grid[a]), load_16(grid[b]));
    __m128i high = _mm_unpacklo_epi32(_mm_loadu_si32(grid[c]), load_16(grid[d]));
    return _mm_unpacklo_epi64(low, high);
}

INLINE __m256i join_16(__m128i low, __m128i high)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

/* Codes 32 i to 32 i + 31 of the block p, as the grid has them; of ternary formats, plus 1. */
INLINE __m256i staged_rows(int32_t dtype, const staged *s, const uint8_t *p, int i)
{
    const uint16_t *x = s->index + i * (dtype == MM2_IQ3_S ? 8 : 4);
    const uint8_t *q = p + 2 + i * 8; /* in IQ2_XXS and IQ3_XXS */
    switch (dtype) {
    case MM2_IQ2_XXS:
        return rows_of_8(mm2_grid_iq2_xxs, q[0], q[1], q[2], q[3]);
    case MM2_IQ2_XS:
        return rows_of_8(mm2_grid_iq2_xs, x[0], x[1], x[2], x[3]);
    case MM2_IQ2_S:
        return rows_of_8(mm2_grid_iq2_s, x[0], x[1], x[2], x[3]);
    case MM2_IQ3_XXS:
        return join_16(rows_of_4(mm2_grid_iq3_xxs, q[0], q[1], q[2], q[3]),
                       rows_of_4(mm2_grid_iq3_xxs, q[4], q[5], q[6], q[7]));
    case MM2_IQ3_S:
        return join_16(rows_of_4(mm2_grid_iq3_s, x[0], x[1], x[2], x[3]),
                       rows_of_4(mm2_grid_iq3_s, x[4], x[5], x[6], x[7]));
    case MM2_TQ1_0:
        return load_32(s->code + i * 32);
    case MM2_TQ2_0: {
        __m256i a = _mm256_srli_epi16(load_32(p + i / 4 * 32), i % 4 * 2);
        return _mm256_and_si256(a, _mm256_set1_epi8(3));
    }
    default:
        return rows_of_8(mm2_grid_iq1_s, x[0], x[1], x[2], x[3]);
    }
}

#endif
