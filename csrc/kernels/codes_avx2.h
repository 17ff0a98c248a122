/* The primitives of the avx2 level on panels of integer codes. Included after lanes_avx2.h.
 *
 * `words` is one int32 for each of the ROWS weight rows of a panel (a panel interleaves rows: word k
 * holds codes 4k..4k+3 of each row), or for each of ROWS blocks or steps; `reals` the floats that go
 * with them. */
#ifndef MM2_CODES_AVX2_H
#define MM2_CODES_AVX2_H

/* gcc 12 puts additions off until all products are made, and spills those: half of the time. */
#define ADD_NOW(sum) __asm__("" : "+x"(sum))

typedef __m256i words;
typedef __m256 reals;

typedef struct codes { /* one word a row, with what dot() needs of it for any activation */
    __m256i value, magnitude;
} codes;

static inline words words_set1(int32_t x)
{
    return _mm256_set1_epi32(x);
}

static inline words words_and(words a, words b)
{
    return _mm256_and_si256(a, b);
}

static inline words words_or(words a, words b)
{
    return _mm256_or_si256(a, b);
}

static inline words words_shl(words a, int n)
{
    return _mm256_slli_epi32(a, n);
}

static inline words words_shr(words a, int n)
{
    return _mm256_srli_epi32(a, n);
}

static inline words words_sar(words a, int n)
{
    return _mm256_srai_epi32(a, n);
}

static inline words words_sub(words a, words b)
{
    return _mm256_sub_epi32(a, b);
}

static inline words words_mul(words a, words b)
{
    return _mm256_mullo_epi32(a, b);
}

/* Less b in each of the four bytes. */
static inline words words_sub8(words a, int b)
{
    return _mm256_sub_epi8(a, _mm256_set1_epi8((char)b));
}

static inline words words_max(words a, words b)
{
    return _mm256_max_epi32(a, b);
}

/* a, but 0 for every byte x. */
static inline words words_without8(words a, int x)
{
    return _mm256_andnot_si256(_mm256_cmpeq_epi8(a, _mm256_set1_epi8((char)x)), a);
}

/* Each byte 0..15 replaced by its entry of a table; the low nibble of each byte, after a shift. */
static inline words words_values(const int8_t values[16], words a)
{
    __m128i table = _mm_loadu_si128((const __m128i *)values);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), a);
}

static inline words words_nibble_values(const int8_t values[16], words a, int shift)
{
    a = shift ? _mm256_srli_epi16(a, shift) : a;
    return words_values(values, _mm256_and_si256(a, _mm256_set1_epi8(15)));
}

static inline words words_iq4(words a)
{
    return words_values(mm2_iq4_values, a);
}

static inline __m256i two_rows(const uint8_t *p, int64_t stride)
{
    __m128i low = _mm_loadu_si128((const __m128i *)p);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                   _mm_loadu_si128((const __m128i *)(p + 4 * stride)), 1);
}

/* out[i] = word i of the 16 bytes at p of ROWS rows, `stride` bytes apart. */
INLINE void transpose4(words out[4], const uint8_t *p, int64_t stride)
{
    __m256i a = two_rows(p, stride), b = two_rows(p + stride, stride);
    __m256i c = two_rows(p + 2 * stride, stride), d = two_rows(p + 3 * stride, stride);
    __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    out[0] = _mm256_unpacklo_epi64(ab, cd);
    out[1] = _mm256_unpackhi_epi64(ab, cd);
    ab = _mm256_unpackhi_epi32(a, b);
    cd = _mm256_unpackhi_epi32(c, d);
    out[2] = _mm256_unpacklo_epi64(ab, cd);
    out[3] = _mm256_unpackhi_epi64(ab, cd);
}

/* dot() multiplies int16 pairs, so it wants a scale twice in its word. */
static inline words scale_form(words scale)
{
    return _mm256_blend_epi16(scale, _mm256_slli_epi32(scale, 16), 0xaa);
}

/* Of each 8 bytes the even ones, then the odd ones. */
static inline __m256i evens_first(__m256i a)
{
    return _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                      0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)));
}

/* What a sum over the n words at `panel` starts from. Here and below, `positive` says that no code
 * is negative. */
static inline words dot_start(int positive, const words *panel, int n)
{
    (void)positive;
    (void)panel;
    (void)n;
    return _mm256_setzero_si256();
}

/* Activations in the form of dot(): these, or made of them in `buffer`. `pairs`: of each 8 the even
 * ones come first. n is a multiple of 32. */
static inline const int8_t *dot_acts(int positive, int pairs, int8_t *buffer, const int8_t *acts,
                                     int32_t n)
{
    (void)positive;
    if (!pairs)
        return acts;
    for (int32_t i = 0; i < n; i += 32) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(acts + i));
        _mm256_store_si256((__m256i *)(buffer + i), evens_first(a));
    }
    return buffer;
}

static inline codes codes_load(int positive, const words *panel)
{
    codes c = {*panel, positive ? *panel : _mm256_abs_epi8(*panel)};
    return c;
}

/* sum + scale * (4 codes times 4 activations). vpmaddubsw takes unsigned times signed bytes, so the
 * sign of a code goes to its activation. |code| <= 128 and |activation| <= 127: sums of two
 * products stay within int16. Small codes are left in int16, to be scaled by dot_end(). */
static inline words dot(int small, int positive, words sum, codes c, const int8_t *acts,
                        words scale)
{
    int32_t four;
    memcpy(&four, acts, 4);
    __m256i a = _mm256_set1_epi32(four);
    a = positive ? a : _mm256_sign_epi8(a, c.value);
    a = _mm256_maddubs_epi16(c.magnitude, a);
    sum = small ? _mm256_add_epi16(sum, a) : _mm256_add_epi32(sum, _mm256_madd_epi16(a, scale));
    ADD_NOW(sum);
    return sum;
}

/* total + scale * sum; the scale is in the sum already where dot() multiplies by it. */
static inline words dot_end(int small, words total, words sum, words scale)
{
    return _mm256_add_epi32(total, small ? _mm256_madd_epi16(sum, scale) : sum);
}

/* sum + (two int16 of each row times the same two). */
static inline words dot_pair(words sum, words pairs, const int16_t *same)
{
    int32_t two;
    memcpy(&two, same, 4);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi32(two)));
}

static inline reals reals_zero(void)
{
    return _mm256_setzero_ps();
}

/* The lower half of each word as a half float. */
static inline reals reals_from_half(words a)
{
    a = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
    a = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, a), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(a));
}

/* The half floats at p of ROWS blocks, each `stride` >= 16 bytes after the one before. Number i is
 * blended in from 16 bytes that have it in their place; they begin in the block before. */
INLINE reals reals_halves(const uint8_t *p, int64_t stride)
{
    __m128i a = _mm_loadu_si128((const __m128i *)p);
#define BLEND(i)                                                                                   \
    _mm_blend_epi16(a, _mm_loadu_si128((const __m128i *)(p + i * (stride - 2))), 1 << i)
    a = BLEND(1);
    a = BLEND(2);
    a = BLEND(3);
    a = BLEND(4);
    a = BLEND(5);
    a = BLEND(6);
    a = BLEND(7);
#undef BLEND
    return _mm256_cvtph_ps(a);
}

static inline reals reals_from_words(words a)
{
    return _mm256_cvtepi32_ps(a);
}

static inline reals reals_times(reals a, float b)
{
    return _mm256_mul_ps(a, _mm256_set1_ps(b));
}

static inline reals reals_set1(float x)
{
    return _mm256_set1_ps(x);
}

static inline reals reals_fma(reals a, reals b, reals c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline reals reals_fnma(reals a, reals b, reals c) /* -(a * b) + c */
{
    return _mm256_fnmadd_ps(a, b, c);
}

static inline void reals_store_n(float *p, reals a, int32_t n)
{
    if (n >= 8)
        _mm256_storeu_ps(p, a);
    else
        _mm256_maskstore_ps(p, mask_of(n), a);
}

#endif
