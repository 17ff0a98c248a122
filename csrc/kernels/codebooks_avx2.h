/* Codes of codebook formats at the avx2 level: staged, all of them. The names are those of
 * codebooks_avx512.h. */
#ifndef MM2_CODEBOOKS_AVX2_H
#define MM2_CODEBOOKS_AVX2_H

#include "kernels/codebooks_rows.h"

/* No look-ups. */
#define has_look(dtype) 0
#define look_unit(dtype) 1
#define look_arrange(dtype, code, start, a, b, a_sums, b_sums) ((void)(b), (void)(b_sums))
#define look_open(...) ((void)0)
#define look_sum(...) ((void)0)
#define look_sums(dtype, v) words_sums(v)

/* Codes 32 i to 32 i + 31, raised. */
INLINE __m256i staged_32(int32_t dtype, const staged *s, const uint8_t *p, int i)
{
    __m256i c = staged_rows(dtype, s, p, i);
    if (signs_of(dtype) == NO_SIGNS)
        return _mm256_add_epi8(c, _mm256_set1_epi8(MM2_CODE_LIMIT - 1));
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i spread =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    int32_t four;
    memcpy(&four, s->signs + i * 4, 4);
    __m256i m = _mm256_shuffle_epi8(_mm256_set1_epi32(four), spread);
    m = _mm256_cmpeq_epi8(_mm256_and_si256(m, bit), bit); /* 0 or -1 */
    const __m256i raise = _mm256_set1_epi8(MM2_CODE_LIMIT);
    if (signs_of(dtype) == NEGATIVE)
        return _mm256_sub_epi8(_mm256_xor_si256(c, m), _mm256_sub_epi8(m, raise));
    c = _mm256_add_epi8(c, _mm256_set1_epi8(MM2_CODE_LIMIT + 1));
    return _mm256_add_epi8(c, _mm256_add_epi8(m, m));
}

INLINE bytes64 staged_codes(int32_t dtype, const staged *s, const uint8_t *p, int j)
{
    return bytes_of(staged_32(dtype, s, p, j * 2), staged_32(dtype, s, p, j * 2 + 1));
}

INLINE void bytes_store(int8_t *p, bytes64 a)
{
    _mm256_storeu_si256((__m256i *)p, a.low);
    _mm256_storeu_si256((__m256i *)(p + 32), a.high);
}

#endif
