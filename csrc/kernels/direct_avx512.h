/* The primitives of the avx512 level on codes that stand in the order of the file: see direct_avx2.h
 * for what each one means. */
#ifndef MM2_DIRECT_AVX512_H
#define MM2_DIRECT_AVX512_H

/* ---- 64 codes where they stand ---- */

typedef __m512i bytes64;
typedef __m512i pairs;

static inline void acts_pair(int8_t out[ACT_PAIR], const int8_t *a, const int8_t *b)
{
    memcpy(out, a, 32);
    memcpy(out + 32, b, 32);
}

static inline bytes64 bytes_load(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}

static inline bytes64 bytes_joined(const uint8_t *p, const uint8_t *q)
{
    __m512i a = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_inserti64x4(a, _mm256_loadu_si256((const __m256i *)q), 1);
}

/* 16 bytes of each of four, 32 of each of two blocks. */
static inline words words_of_16(const uint8_t *p, int64_t stride)
{
    __m512i a = _mm512_castsi128_si512(load_row(p));
    a = _mm512_mask_broadcast_i32x4(a, 0x00f0, load_row(p + stride));
    a = _mm512_mask_broadcast_i32x4(a, 0x0f00, load_row(p + 2 * stride));
    return _mm512_mask_broadcast_i32x4(a, 0xf000, load_row(p + 3 * stride));
}

static inline words words_of_32(const uint8_t *p, int64_t stride)
{
    return bytes_joined(p, p + stride);
}

static inline bytes64 bytes_repeat32(const uint8_t *p)
{
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p));
}

static inline bytes64 bytes_repeat16(const uint8_t *p)
{
    return _mm512_broadcast_i32x4(load_row(p));
}

static inline bytes64 bytes_nibbles(const uint8_t *p, const uint8_t *q)
{
    const __m512i shift = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
    __m512i a = _mm512_mask_broadcast_i32x4(bytes_repeat16(p), 0xff00, load_row(q));
    return _mm512_and_si512(_mm512_srlv_epi64(a, shift), _mm512_set1_epi8(15));
}

/* Bytes to words, whose upper bytes take the high nibbles. */
static inline bytes64 bytes_nibble_pairs(const uint8_t *p, const uint8_t *q)
{
    __m512i a = _mm512_cvtepu8_epi16(
        _mm256_inserti128_si256(_mm256_castsi128_si256(load_row(p)), load_row(q), 1));
    return _mm512_and_si512(_mm512_or_si512(a, _mm512_slli_epi16(a, 4)), _mm512_set1_epi8(15));
}

static inline bytes64 bytes_values(const int8_t values[16], bytes64 a)
{
    return words_values(values, a);
}

static inline bytes64 bytes_xor(bytes64 a, int mask)
{
    return _mm512_xor_si512(a, _mm512_set1_epi8((char)mask));
}

static inline bytes64 bytes_and(bytes64 a, int mask)
{
    return _mm512_and_si512(a, _mm512_set1_epi8((char)mask));
}

static inline bytes64 bytes_or_and(bytes64 a, bytes64 b, int mask)
{
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8((char)mask), 0xf8); /* a|(b&c) */
}

static inline bytes64 bytes_shr(bytes64 a, int n)
{
    return _mm512_srli_epi16(a, (unsigned)n);
}

static inline bytes64 bytes_shl(bytes64 a, int n)
{
    return _mm512_slli_epi16(a, (unsigned)n);
}

static inline bytes64 bytes_shr_halves(bytes64 a, int n, int m)
{
    return _mm512_srlv_epi64(a, _mm512_setr_epi64(n, n, n, n, m, m, m, m));
}

static inline bytes64 bytes_shl_halves(bytes64 a, int n, int m)
{
    return _mm512_sllv_epi64(a, _mm512_setr_epi64(n, n, n, n, m, m, m, m));
}

static inline __mmask64 bits_of(const uint8_t *p, const uint8_t *q)
{
    uint32_t low, high;
    memcpy(&low, p, 4);
    memcpy(&high, q, 4);
    return _cvtu64_mask64(low | (uint64_t)high << 32);
}

static inline bytes64 bytes_set_bit4(bytes64 a, const uint8_t *p, const uint8_t *q)
{
    return _mm512_mask_add_epi8(a, bits_of(p, q), a, _mm512_set1_epi8(16));
}

static inline bytes64 bytes_twos(const uint8_t *p, const uint8_t *q)
{
    return _mm512_maskz_mov_epi8(bits_of(p, q), _mm512_set1_epi8(2));
}

static inline bytes64 bytes_signed(bytes64 c)
{
    return _mm512_xor_si512(c, _mm512_set1_epi8((char)SIGNED_BIAS));
}

static inline bytes64 bytes_raised(bytes64 c)
{
    return _mm512_add_epi8(c, _mm512_set1_epi8(MM2_CODE_LIMIT));
}

static inline bytes64 bytes_lowered(bytes64 c)
{
    return _mm512_sub_epi8(c, _mm512_set1_epi8(MM2_CODE_LIMIT));
}

static inline bytes64 bytes_iq4(bytes64 nibbles)
{
    __m128i table = _mm_loadu_si128((const __m128i *)mm2_iq4_values);
    table = _mm_xor_si128(table, _mm_set1_epi8((char)SIGNED_BIAS));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), nibbles);
}

/* Byte `from` in every word: in its upper half if it is to be sign-extended, else in its lower. */
static inline __m128i spread_control(int negative, int from)
{
    return _mm_set1_epi16((short)(negative ? from << 8 | 0x80 : 0x8000 | from));
}

static inline bytes64 bytes_spread(int negative, bytes64 scales, const uint8_t from[4])
{
    __m512i control = _mm512_inserti32x4(
        _mm512_inserti32x4(
            _mm512_inserti32x4(_mm512_castsi128_si512(spread_control(negative, from[0])),
                               spread_control(negative, from[1]), 1),
            spread_control(negative, from[2]), 2),
        spread_control(negative, from[3]), 3);
    __m512i a = _mm512_shuffle_epi8(scales, control);
    return negative ? _mm512_srai_epi16(a, 8) : a;
}

static inline words direct_dot(words sum, bytes64 c, const int8_t *acts, bytes64 scales)
{
    return _mm512_dpwssd_epi32(sum, _mm512_maddubs_epi16(c, _mm512_load_si512(acts)), scales);
}

/* Of four blocks the first 16 each, then the last. */
static inline void acts_iq4_xs(int8_t out[4 * ACT_PAIR], const int8_t *a)
{
    for (int i = 0; i < 16; i++)
        memcpy(out + i * 16, a + i / 8 * 128 + i % 4 * 32 + i / 4 % 2 * 16, 16);
}

/* A lane of 128 bits is a block, whose four sums have one scale. */
static inline words direct_dot_iq4_xs(words sum, const uint8_t *q, const uint8_t scales[8],
                                      const int8_t *acts)
{
    bytes64 s = bytes_repeat16(scales);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m512i control = _mm512_maskz_set1_epi32(0xf0f0, 4 << 24); /* to the top of every word */
        control = _mm512_mask_add_epi32(control, 0xff00, control, _mm512_set1_epi32(1 << 24));
        control = _mm512_add_epi32(control, _mm512_set1_epi32(i << 25 | 0x808080));
        bytes64 c = bytes_load(q + i * 64);
        words dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), bytes_iq4(bytes_and(c, 15)),
                                        _mm512_load_si512(acts + i * 128));
        dot = _mm512_dpbusd_epi32(dot, bytes_iq4(bytes_and(bytes_shr(c, 4), 15)),
                                  _mm512_load_si512(acts + i * 128 + 64));
        words scale = _mm512_srai_epi32(_mm512_shuffle_epi8(s, control), 24);
        sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(dot, scale));
    }
    return sum;
}

static inline words direct_offset(words sum, const uint8_t scales[16], const int16_t sums[16],
                                  int shift)
{
    __m256i s = _mm256_slli_epi16(_mm256_cvtepi8_epi16(load_row(scales)), shift);
    __m256i a = _mm256_loadu_si256((const __m256i *)sums);
    return _mm512_dpwssd_epi32(sum, _mm512_zextsi256_si512(s), _mm512_zextsi256_si512(a));
}

static inline words direct_dot_q3_k(words sum, const uint8_t *q, const uint8_t *high,
                                    const uint8_t scales[16], const int8_t *acts)
{
    const uint8_t from[4][4] = {{0, 1, 8, 9}, {2, 3, 10, 11}, {4, 5, 12, 13}, {6, 7, 14, 15}};
    bytes64 s = bytes_repeat16(scales), low = bytes_load(q);
    /* Bits of the second half are 4 further up; the one at hand comes to 2. */
    bytes64 bit = bytes_shr_halves(bytes_repeat32(high), 0, 4);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        bytes64 c = bytes_and(j ? bytes_shr(low, j * 2) : low, 3);
        c = bytes_or_and(c, j < 2 ? bytes_shl(bit, 2 - j) : j > 2 ? bytes_shr(bit, 1) : bit, 4);
        sum = direct_dot(sum, c, acts + j * 64, bytes_spread(1, s, from[j]));
    }
    return sum;
}

static inline pairs pairs_dot_unsigned(bytes64 c, const int8_t *acts)
{
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), c, _mm512_load_si512(acts));
}

/* Signed codes have been raised by SIGNED_BIAS. */
#define pairs_dot_signed pairs_dot_unsigned
#define pairs_dot_iq4 pairs_dot_unsigned

/* In every group of 4 lanes: the sums of the groups of a, b, c and d. */
static inline words sums_of_4(words a, words b, words c, words d)
{
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/* Groups 0 and 1, then 2 and 3 of a, then of b, added. */
static inline words sums_of_groups(words a, words b)
{
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

static inline words pairs_sums(int negative, const pairs v[ROWS / 2])
{
    (void)negative;
    return sums_of_groups(sums_of_4(v[0], v[1], v[2], v[3]), sums_of_4(v[4], v[5], v[6], v[7]));
}

static inline pairs pairs_dot_nibbles(words low, const int8_t *acts, words high, const int8_t *more)
{
    words sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(acts));
    return _mm512_dpbusd_epi32(sum, high, _mm512_loadu_si512(more));
}

static inline words nibbles_in_order(words a)
{
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), a);
}

static inline words nibbles_sums(const pairs v[4])
{
    return nibbles_in_order(sums_of_4(v[0], v[1], v[2], v[3]));
}

static inline words sums_of_2(words a, words b)
{
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

static inline void nibbles_halves(words half[2], const pairs v[4])
{
    half[0] = nibbles_in_order(
        sums_of_2(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpacklo_epi32(v[2], v[3])));
    half[1] = nibbles_in_order(
        sums_of_2(_mm512_unpackhi_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[2], v[3])));
}

static inline words words_sums(const words v[ROWS])
{
    words a = sums_of_4(v[0], v[1], v[2], v[3]), b = sums_of_4(v[4], v[5], v[6], v[7]);
    words c = sums_of_4(v[8], v[9], v[10], v[11]), d = sums_of_4(v[12], v[13], v[14], v[15]);
    return sums_of_groups(sums_of_groups(a, b), sums_of_groups(c, d));
}

static inline words words_load(const int32_t *p)
{
    return _mm512_loadu_si512(p);
}

static inline words words_dot16(words sum, words a, words b)
{
    return _mm512_dpwssd_epi32(sum, a, b);
}

static inline void untranspose4(uint8_t out[ROWS][16], const words in[4])
{
    __m512i ab = _mm512_unpacklo_epi32(in[0], in[1]), cd = _mm512_unpacklo_epi32(in[2], in[3]);
    _mm512_store_si512(out, _mm512_unpacklo_epi64(ab, cd));
    _mm512_store_si512(out + 4, _mm512_unpackhi_epi64(ab, cd));
    ab = _mm512_unpackhi_epi32(in[0], in[1]);
    cd = _mm512_unpackhi_epi32(in[2], in[3]);
    _mm512_store_si512(out + 8, _mm512_unpacklo_epi64(ab, cd));
    _mm512_store_si512(out + 12, _mm512_unpackhi_epi64(ab, cd));
}

static inline words words_widen(words a, int half)
{
    int n = half * 2;
    return _mm512_shuffle_epi8(
        a, _mm512_broadcast_i32x4(_mm_setr_epi8((char)n, -1, (char)(n + 1), -1, (char)(n + 4), -1,
                                                (char)(n + 5), -1, (char)(n + 8), -1, (char)(n + 9),
                                                -1, (char)(n + 12), -1, (char)(n + 13), -1)));
}

static inline reals reals_of(words bits)
{
    return _mm512_castsi512_ps(bits);
}

static inline reals reals_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void reals_store(float *p, reals a)
{
    _mm512_storeu_ps(p, a);
}

static inline reals reals_mul(reals a, reals b)
{
    return _mm512_mul_ps(a, b);
}

static inline reals reals_min(reals a, reals b)
{
    return _mm512_min_ps(a, b);
}

/* ---- bf16 activations ---- */

static inline words words_quads(const uint8_t *p, int64_t stride)
{
    return four_rows(p, stride / 4);
}

static inline void pairs_f8(words code, words out[2])
{
    __m512i low, high;
    bf16_of_f8(code, &low, &high);
    out[0] = _mm512_unpacklo_epi8(low, high);
    out[1] = _mm512_unpackhi_epi8(low, high);
}

static inline reals reals_add(reals a, reals b)
{
    return _mm512_add_ps(a, b);
}

static inline reals reals_quads(reals a)
{
    reals sum = _mm512_add_ps(_mm512_setzero_ps(), a);
    sum = _mm512_add_ps(sum, _mm512_permute_ps(a, 0x55));
    sum = _mm512_add_ps(sum, _mm512_permute_ps(a, 0xaa));
    return _mm512_add_ps(sum, _mm512_permute_ps(a, 0xff));
}

#endif
