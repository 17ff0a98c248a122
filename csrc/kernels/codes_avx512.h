/* The primitives of the avx512 level on panels of integer codes: see codes_avx2.h for what each one means. */
#ifndef MM2_CODES_AVX512_H
#define MM2_CODES_AVX512_H

typedef __m512i words;
typedef __m512 reals;
typedef __m512i codes;

static inline words words_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}

static inline words words_and(words a, words b)
{
    return _mm512_and_si512(a, b);
}

static inline words words_or(words a, words b)
{
    return _mm512_or_si512(a, b);
}

static inline words words_shl(words a, int n)
{
    return _mm512_slli_epi32(a, (unsigned)n);
}

static inline words words_shr(words a, int n)
{
    return _mm512_srli_epi32(a, (unsigned)n);
}

static inline words words_sar(words a, int n)
{
    return _mm512_srai_epi32(a, (unsigned)n);
}

static inline words words_sub(words a, words b)
{
    return _mm512_sub_epi32(a, b);
}

static inline words words_mul(words a, words b)
{
    return _mm512_mullo_epi32(a, b);
}

static inline words words_sub8(words a, int b)
{
    return _mm512_sub_epi8(a, _mm512_set1_epi8((char)b));
}

static inline words words_max(words a, words b)
{
    return _mm512_max_epi32(a, b);
}

static inline words words_without8(words a, int x)
{
    return _mm512_maskz_mov_epi8(_mm512_cmpneq_epi8_mask(a, _mm512_set1_epi8((char)x)), a);
}

static inline words words_values(const int8_t values[16], words a)
{
    __m128i table = _mm_loadu_si128((const __m128i *)values);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), a);
}

static inline words words_nibble_values(const int8_t values[16], words a, int shift)
{
    __m128i table = _mm_loadu_si128((const __m128i *)values);
    a = shift ? _mm512_srli_epi16(a, (unsigned)shift) : a;
    return _mm512_permutexvar_epi8(a, _mm512_broadcast_i32x4(table)); /* the same four times */
}

static inline words words_iq4(words a)
{
    return words_values(mm2_iq4_values, a);
}

static inline __m128i load_row(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

/* Rows 0, 4, 8 and 12 from p on. Masked broadcasts leave the shuffle port alone, which inserts
 * would fill. */
static inline __m512i four_rows(const uint8_t *p, int64_t stride)
{
    __m512i a = _mm512_castsi128_si512(load_row(p));
    a = _mm512_mask_broadcast_i32x4(a, 0x00f0, load_row(p + 4 * stride));
    a = _mm512_mask_broadcast_i32x4(a, 0x0f00, load_row(p + 8 * stride));
    return _mm512_mask_broadcast_i32x4(a, 0xf000, load_row(p + 12 * stride));
}

INLINE void transpose4(words out[4], const uint8_t *p, int64_t stride)
{
    __m512i a = four_rows(p, stride), b = four_rows(p + stride, stride);
    __m512i c = four_rows(p + 2 * stride, stride), d = four_rows(p + 3 * stride, stride);
    __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(ab, cd);
    out[1] = _mm512_unpackhi_epi64(ab, cd);
    ab = _mm512_unpackhi_epi32(a, b);
    cd = _mm512_unpackhi_epi32(c, d);
    out[2] = _mm512_unpacklo_epi64(ab, cd);
    out[3] = _mm512_unpackhi_epi64(ab, cd);
}

static inline words scale_form(words scale)
{
    return scale;
}

/* vpdpbusd takes unsigned times signed bytes. Positive codes are the unsigned ones; otherwise the
 * activations are raised by 128, and a sum starts from -128 times the sum of the codes. */
static inline words dot_start(int positive, const words *panel, int n)
{
    __m512i sum = _mm512_setzero_si512();
    if (positive)
        return sum;
    for (int i = 0; i < n; i++)
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8((char)0x80), panel[i]);
    return _mm512_sub_epi32(_mm512_setzero_si512(), sum);
}

static inline __m512i evens_first(__m512i a)
{
    return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8,
                                                                       10, 12, 14, 9, 11, 13, 15)));
}

static inline const int8_t *dot_acts(int positive, int pairs, int8_t *buffer, const int8_t *acts,
                                     int32_t n)
{
    if (positive)
        return acts;
    for (int32_t i = 0; i < n; i += 64) {
        __mmask64 mask = n - i >= 64 ? ~(__mmask64)0 : 0xffffffff;
        __m512i a = _mm512_maskz_loadu_epi8(mask, acts + i);
        a = _mm512_xor_si512(a, _mm512_set1_epi8((char)0x80));
        _mm512_store_si512(buffer + i, pairs ? evens_first(a) : a);
    }
    return buffer;
}

static inline codes codes_load(int positive, const words *panel)
{
    (void)positive;
    return *panel;
}

static inline words dot(int small, int positive, words sum, codes c, const int8_t *acts,
                        words scale)
{
    (void)small, (void)scale;
    int32_t four;
    memcpy(&four, acts, 4);
    __m512i a = _mm512_set1_epi32(four);
    return positive ? _mm512_dpbusd_epi32(sum, c, a) : _mm512_dpbusd_epi32(sum, a, c);
}

static inline words dot_end(int small, words total, words sum, words scale)
{
    (void)small;
    return _mm512_add_epi32(total, _mm512_mullo_epi32(sum, scale));
}

static inline words dot_pair(words sum, words pairs, const int16_t *same)
{
    int32_t two;
    memcpy(&two, same, 4);
    return _mm512_dpwssd_epi32(sum, pairs, _mm512_set1_epi32(two));
}

static inline reals reals_zero(void)
{
    return _mm512_setzero_ps();
}

static inline reals reals_from_half(words a)
{
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a));
}

INLINE reals reals_halves(const uint8_t *p, int64_t stride)
{
    words head[4];
    transpose4(head, p, stride);
    return reals_from_half(head[0]);
}

static inline reals reals_from_words(words a)
{
    return _mm512_cvtepi32_ps(a);
}

static inline reals reals_times(reals a, float b)
{
    return _mm512_mul_ps(a, _mm512_set1_ps(b));
}

static inline reals reals_set1(float x)
{
    return _mm512_set1_ps(x);
}

static inline reals reals_fma(reals a, reals b, reals c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline reals reals_fnma(reals a, reals b, reals c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

static inline void reals_store_n(float *p, reals a, int32_t n)
{
    _mm512_mask_storeu_ps(p, mask_of(n), a);
}

#endif
