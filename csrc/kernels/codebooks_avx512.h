/* Grid look-ups of the avx512 level: IQ2_* and IQ3_*, 64 rows of a grid at a time.
 *
 * A grid stands packed in two planes, a byte a row (tensor/codebooks.h). 64 rows of a plane are a
 * look-up in a register, which ignores the upper bits of its index; those of more rows follow each
 * other, and masks by the upper bits say what each of them may replace. Another look-up takes one
 * code out of the byte: its index has the bits of the code, and the sign among the other ones. So
 * register j has code j of 64 rows, of two super-blocks of IQ2, of one of IQ3, with its sign and
 * raised by MM2_CODE_LIMIT, to be unsigned.
 *
 * For few activation rows these are put into the same order (look_arrange), and nothing is
 * transposed. For panels and tiles the codes are: `natural` says that indices and signs are taken
 * in such an order that bytes, interleaved two or three times, come out in file order. */
#ifndef MM2_CODEBOOKS_AVX512_H
#define MM2_CODEBOOKS_AVX512_H

#include "kernels/codebooks_rows.h"

/* 64 bytes f(0) .. f(63), computed by the compiler. */
#define BYTES_4(f, i) f(i), f((i) + 1), f((i) + 2), f((i) + 3)
#define BYTES_16(f, i) BYTES_4(f, i), BYTES_4(f, (i) + 4), BYTES_4(f, (i) + 8), BYTES_4(f, (i) + 12)
#define BYTES_64(f)                                                                                \
    {                                                                                              \
        BYTES_16(f, 0), BYTES_16(f, 16), BYTES_16(f, 32), BYTES_16(f, 48)                          \
    }
#define TABLE(name, f) static const _Alignas(64) uint8_t name[64] = BYTES_64(f)

/* Raised codes by some bits of a byte, negative where another bit is set; bits beyond the sixth do
 * not matter. The four of a plane of IQ2 (mm2_planes_iq2_s) with their signs in bits 0 to 3, ... */
#define CODE(value, i, sign) (MM2_CODE_LIMIT + ((i) >> (sign)&1 ? -(value) : (value)))
#define IQ2_CODE_0(i) CODE(MM2_IQ2_VALUE((i) >> 2 & 3), i, 0)
#define IQ2_CODE_1(i) CODE(MM2_IQ2_VALUE((i) >> 4), i, 1)
#define IQ2_CODE_2(i) CODE(MM2_IQ2_VALUE((i)&3), i, 2)
#define IQ2_CODE_3(i) CODE(MM2_IQ2_VALUE((i) >> 4), i, 3)
static const _Alignas(64) uint8_t iq2_codes[4][64] = {BYTES_64(IQ2_CODE_0), BYTES_64(IQ2_CODE_1),
                                                      BYTES_64(IQ2_CODE_2), BYTES_64(IQ2_CODE_3)};

/* ... and those of both planes of IQ3 (mm2_planes_iq3_s), the signs in bits 1 to 4. */
#define IQ3_CODES(VALUE)                                                                           \
    {                                                                                              \
        BYTES_64(VALUE##_0), BYTES_64(VALUE##_1), BYTES_64(VALUE##_2), BYTES_64(VALUE##_3)         \
    }
#define IQ3_XXS_0(i) CODE(MM2_IQ3_XXS_VALUE((i) >> 3), i, 1)
#define IQ3_XXS_1(i) CODE(MM2_IQ3_XXS_VALUE((i) >> 3), i, 2)
#define IQ3_XXS_2(i) CODE(MM2_IQ3_XXS_VALUE((i)&7), i, 3)
#define IQ3_XXS_3(i) CODE(MM2_IQ3_XXS_VALUE((i)&7), i, 4)
#define IQ3_S_0(i) CODE(MM2_IQ3_S_VALUE((i) >> 3), i, 1)
#define IQ3_S_1(i) CODE(MM2_IQ3_S_VALUE((i) >> 3), i, 2)
#define IQ3_S_2(i) CODE(MM2_IQ3_S_VALUE((i)&7), i, 3)
#define IQ3_S_3(i) CODE(MM2_IQ3_S_VALUE((i)&7), i, 4)
static const _Alignas(64) uint8_t iq3_xxs_codes[4][64] = IQ3_CODES(IQ3_XXS);
static const _Alignas(64) uint8_t iq3_s_codes[4][64] = IQ3_CODES(IQ3_S);

/* In the upper bit, the parity of the lower six. */
#define PARITY_6(i) (((i) ^ (i) >> 1 ^ (i) >> 2 ^ (i) >> 3 ^ (i) >> 4 ^ (i) >> 5) << 7 & 0x80)
TABLE(parity_6, PARITY_6);

INLINE __m512i table_load(const uint8_t *p)
{
    return _mm512_load_si512(p);
}

INLINE __m512i two_halves(const uint8_t *p, const uint8_t *q)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p)),
                              _mm256_loadu_si256((const __m256i *)q), 1);
}

/* Bytes with 7 sign bits; the eighth becomes their parity. */
INLINE __m512i even_signs(__m512i a)
{
    __m512i b = _mm512_permutexvar_epi8(a, table_load(parity_6));
    b = _mm512_xor_si512(b, _mm512_add_epi8(a, a));
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)0x80), b, a, 0xca); /* b or a */
}

/* A plane at 64 indices, of which 8 bits are in i, the upper two of these in masks, and so the rest. */

typedef struct look_masks {
    __mmask64 bit6, bit7, both;
} look_masks;

INLINE look_masks masks_of(__m512i i)
{
    __mmask64 bit6 = _mm512_movepi8_mask(_mm512_add_epi8(i, i)), bit7 = _mm512_movepi8_mask(i);
    return (look_masks){bit6, bit7, _kand_mask64(bit6, bit7)};
}

INLINE __m512i look_256(const uint8_t *plane, __m512i i, look_masks m)
{
    __m512i a = _mm512_permutexvar_epi8(i, table_load(plane));
    a = _mm512_mask_permutexvar_epi8(a, m.bit6, i, table_load(plane + 64));
    a = _mm512_mask_permutexvar_epi8(a, m.bit7, i, table_load(plane + 128));
    return _mm512_mask_permutexvar_epi8(a, m.both, i, table_load(plane + 192));
}

INLINE __m512i look_512(const uint8_t *plane, __m512i i, look_masks m, __mmask64 bit8)
{
    return _mm512_mask_mov_epi8(look_256(plane, i, m), bit8, look_256(plane + 256, i, m));
}

INLINE __m512i look_1024(const uint8_t *plane, __m512i i, look_masks m, __mmask64 bit8,
                         __mmask64 bit9)
{
    return _mm512_mask_mov_epi8(look_512(plane, i, m, bit8), bit9,
                                look_512(plane + 512, i, m, bit8));
}

/* The code that `table` has for each byte, where it has the bits `keep`, joined with its signs. */
INLINE __m512i look_code(__m512i byte, int keep, __m512i signs, const uint8_t *table)
{
    __m512i i = _mm512_ternarylogic_epi32(byte, signs, _mm512_set1_epi8((char)keep), 0xe4);
    return _mm512_permutexvar_epi8(i, table_load(table));
}

INLINE void look_codes_iq2(__m512i code[8], __m512i low, __m512i high, __m512i signs)
{
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++, signs = _mm512_srli_epi16(signs, 4)) {
        __m512i byte = half ? high : low, *c = code + half * 4;
        c[0] = look_code(byte, 0x0c, signs, iq2_codes[0]);
        c[1] = look_code(_mm512_srli_epi16(byte, 2), 0x30, signs, iq2_codes[1]);
        c[2] = look_code(byte, 0x03, signs, iq2_codes[2]);
        c[3] = look_code(byte, 0x30, signs, iq2_codes[3]);
    }
}

INLINE void look_codes_iq3(__m512i code[4], __m512i even, __m512i odd, __m512i signs,
                           const uint8_t table[4][64])
{
    code[0] = look_code(even, 0x38, signs, table[0]);
    code[1] = look_code(odd, 0x38, signs, table[1]);
    code[2] = look_code(even, 0x07, signs, table[2]);
    code[3] = look_code(odd, 0x07, signs, table[3]);
}

/* The order of `natural`: of pairs of groups in IQ2, 32 of them; of fours in IQ3, 16. */
#define IQ2_ORDER(i) ((i) / 2 % 8 * 8 + (i) / 16 * 2 + (i) % 2)
#define IQ3_ORDER(i) ((i) / 4 % 4 * 16 + (i) / 16 * 4 + (i) % 4)
#define IQ2_QUARTER(i) (IQ2_ORDER(i) / 4)
#define IQ3_EIGHTH(i) (IQ3_ORDER(i) / 8)
#define QUARTER_OF(i) ((i) / 4)
TABLE(iq2_order, IQ2_ORDER);
TABLE(iq3_order, IQ3_ORDER);
TABLE(iq2_quarter, IQ2_QUARTER);
TABLE(iq3_eighth, IQ3_EIGHTH);
TABLE(quarter_of, QUARTER_OF);

INLINE __m512i in_order(int natural, __m512i a, const uint8_t *order)
{
    return natural ? _mm512_permutexvar_epi8(table_load(order), a) : a;
}

/* Two super-blocks of IQ2: codes, and scales of the 16 blocks of 32 as int32 or of the 32 of 16 as
 * int16. */

INLINE __m512i look_iq2_xxs(int natural, __m512i code[8], const uint8_t *p, const uint8_t *q)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i x = _mm512_loadu_si512(p + offsetof(mm2_block_iq2_xxs, q));
    __m512i y = _mm512_loadu_si512(q + offsetof(mm2_block_iq2_xxs, q));
    __m512i i = _mm512_permutex2var_epi32(x, even, y);
    __m512i more = _mm512_permutex2var_epi32(x, _mm512_add_epi32(even, _mm512_set1_epi32(1)), y);
    __m512i signs = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x352e2720150e0700), more);
    signs = even_signs(in_order(natural, signs, iq2_order));
    i = in_order(natural, i, iq2_order);
    look_masks m = masks_of(i);
    look_codes_iq2(code, look_256(mm2_planes_iq2_xxs[0], i, m),
                   look_256(mm2_planes_iq2_xxs[1], i, m), signs);
    return _mm512_or_si512(_mm512_srli_epi32(more, 27), _mm512_set1_epi32(1));
}

INLINE __m128i two_quarters(const uint8_t *p, const uint8_t *q)
{
    __m128i a = _mm_loadl_epi64((const __m128i *)p);
    return _mm_unpacklo_epi64(a, _mm_loadl_epi64((const __m128i *)q));
}

/* Of 8 bytes in p and in q: the low nibbles into the lower, the high ones into the upper halves of
 * words, times 2, plus 1. */
INLINE __m512i scales_iq2(const uint8_t *p, const uint8_t *q)
{
    __m512i a = _mm512_cvtepu8_epi32(two_quarters(p, q));
    a = _mm512_or_si512(_mm512_slli_epi32(a, 1), _mm512_slli_epi32(a, 13));
    return _mm512_ternarylogic_epi32(a, _mm512_set1_epi16(0x1e), _mm512_set1_epi16(1), 0xea);
}

/* 32 bytes of x, then of y, at the same places. */
INLINE __m512i bytes_of_two(__m512i x, __m512i y, __m512i from)
{
    __m512i a = _mm512_permutexvar_epi8(from, x);
    return _mm512_mask_permutexvar_epi8(a, (__mmask64)0xffffffff << 32, from, y);
}

INLINE __m512i look_iq2_xs(int natural, __m512i code[8], const uint8_t *p, const uint8_t *q)
{
#define EVEN(i) ((i)*2)
    static const _Alignas(64) uint8_t even_bytes[64] = BYTES_64(EVEN);
#undef EVEN
    __m512i x = _mm512_loadu_si512(p + offsetof(mm2_block_iq2_xs, q));
    __m512i y = _mm512_loadu_si512(q + offsetof(mm2_block_iq2_xs, q));
    __m512i even = table_load(even_bytes), odd = _mm512_add_epi8(even, _mm512_set1_epi8(1));
    __m512i i = in_order(natural, bytes_of_two(x, y, even), iq2_order);
    __m512i more = in_order(natural, bytes_of_two(x, y, odd), iq2_order);
    look_masks m = masks_of(i);
    __mmask64 bit8 = _mm512_test_epi8_mask(more, _mm512_set1_epi8(1));
    look_codes_iq2(code, look_512(mm2_planes_iq2_xs[0], i, m, bit8),
                   look_512(mm2_planes_iq2_xs[1], i, m, bit8),
                   even_signs(_mm512_srli_epi16(more, 1)));
    return scales_iq2(p + offsetof(mm2_block_iq2_xs, scales),
                      q + offsetof(mm2_block_iq2_xs, scales));
}

INLINE __m512i look_iq2_s(int natural, __m512i code[8], const uint8_t *p, const uint8_t *q)
{
    enum { Q = offsetof(mm2_block_iq2_s, q), HIGH = offsetof(mm2_block_iq2_s, high) };
    enum { SIGNS = offsetof(mm2_block_iq2_s, signs), SCALES = offsetof(mm2_block_iq2_s, scales) };
    __m512i i = in_order(natural, two_halves(p + Q, q + Q), iq2_order);
    __m512i signs = in_order(natural, two_halves(p + SIGNS, q + SIGNS), iq2_order);
    __m512i more = _mm512_castsi128_si512(two_quarters(p + HIGH, q + HIGH));
    more = in_order(1, more, natural ? iq2_quarter : quarter_of);
    /* Two bits of a byte each; in natural order a lane has the even or the odd pairs of rows. */
    __m512i low = _mm512_set1_epi32(0x40100401);
    if (natural)
        low = _mm512_mask_set1_epi32(_mm512_set1_epi32(0x04010401), 0xf0f0, 0x40104010);
    look_masks m = masks_of(i);
    __mmask64 bit8 = _mm512_test_epi8_mask(more, low);
    __mmask64 bit9 = _mm512_test_epi8_mask(more, _mm512_add_epi8(low, low));
    look_codes_iq2(code, look_1024(mm2_planes_iq2_s[0], i, m, bit8, bit9),
                   look_1024(mm2_planes_iq2_s[1], i, m, bit8, bit9), signs);
    return scales_iq2(p + SCALES, q + SCALES);
}

/* A super-block of IQ3: codes, and scales of the blocks of 32 as int32, each twice. */

INLINE __m512i look_iq3_xxs(int natural, __m512i code[4], const uint8_t *p)
{
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    __m512i i = _mm512_loadu_si512(p + offsetof(mm2_block_iq3_xxs, q));
    __m256i half = _mm256_loadu_si256((const __m256i *)(p + offsetof(mm2_block_iq3_xxs, more)));
    __m512i more = _mm512_permutexvar_epi32(twice, _mm512_castsi256_si512(half));
    /* Eight signs for two rows, twice; then the first four of them, and the last, from bit 1 on. */
    __m512i signs = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x15150e0e07070000), more);
    signs = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x3b2f2b1f1b0f0b3f), even_signs(signs));
    signs = in_order(natural, signs, iq3_order);
    i = in_order(natural, i, iq3_order);
    look_masks m = masks_of(i);
    look_codes_iq3(code, look_256(mm2_planes_iq3_xxs[0], i, m),
                   look_256(mm2_planes_iq3_xxs[1], i, m), signs, iq3_xxs_codes);
    return _mm512_or_si512(_mm512_srli_epi32(more, 27), _mm512_set1_epi32(1));
}

INLINE __m512i look_iq3_s(int natural, __m512i code[4], const uint8_t *p)
{
    /* Scale i, 4 bits, to bits 1 to 4. */
    const __m512i turn =
        _mm512_setr_epi32(-1, -1, 3, 3, 7, 7, 11, 11, 15, 15, 19, 19, 23, 23, 27, 27);
    __m512i i = _mm512_loadu_si512(p + offsetof(mm2_block_iq3_s, q));
    __m512i signs = _mm512_cvtepu32_epi64(
        _mm256_loadu_si256((const __m256i *)(p + offsetof(mm2_block_iq3_s, signs))));
    /* Those of a row, 4 bits, to bits 1 to 4 of its byte. */
    signs = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x1b17130f0b07033f), signs);
    signs = in_order(natural, signs, iq3_order);
    uint64_t high;
    int32_t scales;
    memcpy(&high, p + offsetof(mm2_block_iq3_s, high), 8);
    memcpy(&scales, p + offsetof(mm2_block_iq3_s, scales), 4);
    __mmask64 bit8 = _cvtu64_mask64(high);
    if (natural) { /* a lane has the first or the last four of eight rows */
        __m512i more = in_order(1, _mm512_set1_epi64((int64_t)high), iq3_eighth);
        __m512i bit =
            _mm512_mask_set1_epi32(_mm512_set1_epi32(0x08040201), 0xf0f0, (int32_t)0x80402010);
        bit8 = _mm512_test_epi8_mask(more, bit);
    }
    i = in_order(natural, i, iq3_order);
    look_masks m = masks_of(i);
    look_codes_iq3(code, look_512(mm2_planes_iq3_s[0], i, m, bit8),
                   look_512(mm2_planes_iq3_s[1], i, m, bit8), signs, iq3_s_codes);
    __m512i a = _mm512_rorv_epi32(_mm512_set1_epi32(scales), turn);
    return _mm512_ternarylogic_epi32(a, _mm512_set1_epi32(0x1e), _mm512_set1_epi32(1), 0xea);
}

/* ---- What body_codebooks.h asks for ---- */

/* Is the dtype looked up here? */
INLINE int has_look(int32_t dtype)
{
    return dtype == MM2_IQ2_XXS || dtype == MM2_IQ2_XS || dtype == MM2_IQ2_S ||
           dtype == MM2_IQ3_XXS || dtype == MM2_IQ3_S;
}

INLINE int is_iq3(int32_t dtype)
{
    return dtype == MM2_IQ3_XXS || dtype == MM2_IQ3_S;
}

/* A scale for 32 codes? */
INLINE int has_32(int32_t dtype)
{
    return mm2_format_of(dtype).span == 32;
}

/* Super-blocks that are looked up together: q is the second. */
INLINE int look_unit(int32_t dtype)
{
    return has_look(dtype) && !is_iq3(dtype) ? 2 : 1;
}

INLINE __m512i look(int32_t dtype, int natural, __m512i code[8], const uint8_t *p, const uint8_t *q)
{
    return dtype == MM2_IQ2_XXS   ? look_iq2_xxs(natural, code, p, q)
           : dtype == MM2_IQ2_XS  ? look_iq2_xs(natural, code, p, q)
           : dtype == MM2_IQ2_S   ? look_iq2_s(natural, code, p, q)
           : dtype == MM2_IQ3_XXS ? look_iq3_xxs(natural, code, p)
                                  : look_iq3_s(natural, code, p);
}

/* The activations of a unit, 512 or 256 from a and b on, in the order of the codes, and what makes
 * up for codes that are raised; sums: of 16 activations each. */
static void look_arrange(int32_t dtype, int8_t *code, void *start, const int8_t *a, const int8_t *b,
                         const int16_t *a_sums, const int16_t *b_sums)
{
#define IQ2_TURN(i) ((i) % 8 * 8 + (i) / 8)
#define IQ3_TURN(i) ((i) % 16 * 4 + (i) / 16)
    static const _Alignas(64) uint8_t iq2_turn[64] = BYTES_64(IQ2_TURN);
    static const _Alignas(64) uint8_t iq3_turn[64] = BYTES_64(IQ3_TURN);
    __m512i order = table_load(is_iq3(dtype) ? iq3_turn : iq2_turn);
    int rows = is_iq3(dtype) ? 16 : 8; /* of a grid, in 64 bytes */
    for (int i = 0; i < 4 * look_unit(dtype); i++) {
        int8_t turned[64];
        __m512i x = _mm512_loadu_si512((i < 4 ? a : b) + i % 4 * 64);
        _mm512_storeu_si512(turned, _mm512_permutexvar_epi8(order, x));
        for (int j = 0; j < 64 / rows; j++)
            memcpy(code + j * 64 + i * rows, turned + j * rows, (size_t)rows);
    }
    __m512i sums = two_halves((const uint8_t *)a_sums, (const uint8_t *)b_sums);
    __m512i factor = _mm512_set1_epi16(-MM2_CODE_LIMIT);
    if (is_iq3(dtype))
        sums = _mm512_mullo_epi32(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(sums)),
                                  _mm512_set1_epi32(-MM2_CODE_LIMIT));
    else if (has_32(dtype))
        sums = _mm512_madd_epi16(sums, factor);
    else
        sums = _mm512_mullo_epi16(sums, _mm512_srai_epi16(factor, 2)); /* 2 bits less: int16 */
    _mm512_storeu_si512(start, sums);
}

/* Partial sums over a unit, with each row of activations. */
INLINE void look_sum(int32_t dtype, int acts, words *sum, const uint8_t *p, const uint8_t *q,
                     const int8_t *const *act, const void *const *start)
{
    __m512i code[8], scale = look(dtype, 0, code, p, q);
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++) {
        __m512i a = _mm512_loadu_si512(start[m]), b = _mm512_setzero_si512();
        if (!has_32(dtype))
            a = _mm512_dpwssd_epi32(b, a, _mm512_slli_epi16(scale, 2));
#pragma GCC unroll 4
        for (int j = 0; j < 8; j += 2) {
            if (is_iq3(dtype) && j >= 4)
                break;
            __m512i x = _mm512_load_si512(act[m] + j * 64);
            __m512i y = _mm512_load_si512(act[m] + j * 64 + 64);
            if (has_32(dtype)) {
                a = _mm512_dpbusd_epi32(a, code[j], x);
                b = _mm512_dpbusd_epi32(b, code[j + 1], y);
            } else {
                a = _mm512_dpwssd_epi32(a, _mm512_maddubs_epi16(code[j], x), scale);
                b = _mm512_dpwssd_epi32(b, _mm512_maddubs_epi16(code[j + 1], y), scale);
            }
        }
        a = _mm512_add_epi32(a, b);
        sum[m] = has_32(dtype) ? _mm512_mullo_epi32(a, scale) : a;
    }
}

/* Lane i: the sum of super-block i. */
INLINE words look_sums(int32_t dtype, const words v[ROWS])
{
    if (look_unit(dtype) == 1)
        return words_sums(v);
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return _mm512_permutexvar_epi32(order, pairs_sums(0, v));
}

/* Codes of two super-blocks in the order of the file, and their scales. */
INLINE void look_open(int32_t dtype, mm2_codes *c, mm2_codes *d, const uint8_t *p, const uint8_t *q)
{
    __m512i code[8], scale, t[8];
    const __m512i raise = _mm512_set1_epi8(MM2_CODE_LIMIT);
    if (is_iq3(dtype)) {
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            mm2_codes *to = i ? d : c;
            scale = look(dtype, 1, code, i ? q : p, NULL);
            _mm_store_si128((__m128i *)to->scale, _mm512_cvtepi32_epi8(scale));
#pragma GCC unroll 2
            for (int j = 0; j < 4; j += 2) {
                t[j] = _mm512_unpacklo_epi8(code[j], code[j + 1]);
                t[j + 1] = _mm512_unpackhi_epi8(code[j], code[j + 1]);
            }
            code[0] = _mm512_unpacklo_epi16(t[0], t[2]);
            code[1] = _mm512_unpackhi_epi16(t[0], t[2]);
            code[2] = _mm512_unpacklo_epi16(t[1], t[3]);
            code[3] = _mm512_unpackhi_epi16(t[1], t[3]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                _mm512_store_si512(to->code + j * 64, _mm512_sub_epi8(code[j], raise));
        }
        return;
    }
    scale = look(dtype, 1, code, p, q);
    if (has_32(dtype))
        scale = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
    __m256i narrow = _mm512_cvtepi16_epi8(scale);
    _mm_store_si128((__m128i *)c->scale, _mm256_castsi256_si128(narrow));
    _mm_store_si128((__m128i *)d->scale, _mm256_extracti128_si256(narrow, 1));
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
        t[j] = _mm512_unpacklo_epi8(code[j], code[j + 1]);
        t[j + 1] = _mm512_unpackhi_epi8(code[j], code[j + 1]);
    }
#pragma GCC unroll 2
    for (int j = 0; j < 8; j += 4) {
        code[j] = _mm512_unpacklo_epi16(t[j], t[j + 2]);
        code[j + 1] = _mm512_unpackhi_epi16(t[j], t[j + 2]);
        code[j + 2] = _mm512_unpacklo_epi16(t[j + 1], t[j + 3]);
        code[j + 3] = _mm512_unpackhi_epi16(t[j + 1], t[j + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        t[j * 2] = _mm512_unpacklo_epi32(code[j], code[j + 4]);
        t[j * 2 + 1] = _mm512_unpackhi_epi32(code[j], code[j + 4]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
        _mm512_store_si512((j < 4 ? c : d)->code + j % 4 * 64, _mm512_sub_epi8(t[j], raise));
}

/* ---- Formats without ---- */

/* Codes 64 j to 64 j + 63 of a super-block, raised. */
INLINE bytes64 staged_codes(int32_t dtype, const staged *s, const uint8_t *p, int j)
{
    __m512i c = _mm512_castsi256_si512(staged_rows(dtype, s, p, j * 2));
    c = _mm512_inserti64x4(c, staged_rows(dtype, s, p, j * 2 + 1), 1);
    uint64_t signs;
    memcpy(&signs, s->signs + j * 8, 8);
    if (signs_of(dtype) == NO_SIGNS)
        return _mm512_add_epi8(c, _mm512_set1_epi8(MM2_CODE_LIMIT - 1));
    c = _mm512_add_epi8(c, _mm512_set1_epi8(MM2_CODE_LIMIT + 1)); /* IQ1 */
    return _mm512_mask_sub_epi8(c, _cvtu64_mask64(signs), c, _mm512_set1_epi8(2));
}

INLINE void bytes_store(int8_t *p, bytes64 a)
{
    _mm512_storeu_si512(p, a);
}

#endif
