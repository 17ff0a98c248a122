/* The primitives of the avx2 level on codes that stand in the order of the file, and on bf16 in pairs:
 * what products with few activation rows take. Included after codes_avx2.h.
 *
 * bytes64 are 64 codes in the order of the file; pairs their products with two blocks' activations. */
#ifndef MM2_DIRECT_AVX2_H
#define MM2_DIRECT_AVX2_H

/* ---- 64 codes where they stand ---- */

typedef struct bytes64 {
    __m256i low, high;
} bytes64;

/* Of two blocks of 32 codes, a lane of 128 bits each, in int16 or int32. `low` of their bytes64 has
 * the first 16 codes of both, `high` the last. */
typedef __m256i pairs;

static inline bytes64 bytes_of(__m256i low, __m256i high)
{
    bytes64 b = {low, high};
    return b;
}

static inline __m256i join16(const uint8_t *p, const uint8_t *q)
{
    __m256i a = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)p));
    return _mm256_inserti128_si256(a, _mm_loadu_si128((const __m128i *)q), 1);
}

static inline bytes64 bytes_joined(const uint8_t *p, const uint8_t *q) /* 32 bytes of each */
{
    return bytes_of(join16(p, q), join16(p + 16, q + 16));
}

/* The activations of two pieces and, for IQ4, their absolute values. */
static inline void acts_pair(int8_t out[ACT_PAIR], const int8_t *a, const int8_t *b)
{
    __m256i x = _mm256_loadu_si256((const __m256i *)a);
    __m256i y = _mm256_loadu_si256((const __m256i *)b);
    __m256i low = _mm256_permute2x128_si256(x, y, 0x20);
    __m256i high = _mm256_permute2x128_si256(x, y, 0x31);
    _mm256_store_si256((__m256i *)out, low);
    _mm256_store_si256((__m256i *)(out + 32), high);
    _mm256_store_si256((__m256i *)(out + 64), _mm256_abs_epi8(low));
    _mm256_store_si256((__m256i *)(out + 96), _mm256_abs_epi8(high));
}

/* 16 bytes of each of ROWS / 4 blocks that lie `stride` bytes apart, 32 bytes of each of ROWS / 8. */
static inline words words_of_16(const uint8_t *p, int64_t stride)
{
    return join16(p, p + stride);
}

static inline words words_of_32(const uint8_t *p, int64_t stride)
{
    (void)stride;
    return _mm256_loadu_si256((const __m256i *)p);
}

static inline bytes64 bytes_load(const uint8_t *p)
{
    return bytes_of(_mm256_loadu_si256((const __m256i *)p),
                    _mm256_loadu_si256((const __m256i *)(p + 32)));
}

static inline bytes64 bytes_repeat32(const uint8_t *p)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)p);
    return bytes_of(a, a);
}

static inline __m256i repeat16(const uint8_t *p)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
}

static inline __m256i table16(int a0, int a1, int a2, int a3, int a4, int a5, int a6, int a7,
                              int a8, int a9, int a10, int a11, int a12, int a13, int a14, int a15)
{
    return _mm256_broadcastsi128_si256(_mm_setr_epi8(
        (char)a0, (char)a1, (char)a2, (char)a3, (char)a4, (char)a5, (char)a6, (char)a7, (char)a8,
        (char)a9, (char)a10, (char)a11, (char)a12, (char)a13, (char)a14, (char)a15));
}

static inline bytes64 bytes_repeat16(const uint8_t *p)
{
    return bytes_of(repeat16(p), repeat16(p));
}

static inline bytes64 nibbles(__m256i a)
{
    const __m256i mask = _mm256_set1_epi8(15);
    return bytes_of(_mm256_and_si256(a, mask), _mm256_and_si256(_mm256_srli_epi16(a, 4), mask));
}

/* The low, then the high nibbles of 16 bytes at p and of those at q. */
static inline bytes64 bytes_nibbles(const uint8_t *p, const uint8_t *q)
{
    return nibbles(join16(p, q));
}

static inline bytes64 bytes_values(const int8_t values[16], bytes64 a)
{
    return bytes_of(words_values(values, a.low), words_values(values, a.high));
}

static inline bytes64 bytes_xor(bytes64 a, int mask)
{
    __m256i m = _mm256_set1_epi8((char)mask);
    return bytes_of(_mm256_xor_si256(a.low, m), _mm256_xor_si256(a.high, m));
}

/* Each byte with the mask. */
static inline bytes64 bytes_and(bytes64 a, int mask)
{
    __m256i m = _mm256_set1_epi8((char)mask);
    return bytes_of(_mm256_and_si256(a.low, m), _mm256_and_si256(a.high, m));
}

/* a | (b & mask) */
static inline bytes64 bytes_or_and(bytes64 a, bytes64 b, int mask)
{
    __m256i m = _mm256_set1_epi8((char)mask);
    return bytes_of(_mm256_or_si256(a.low, _mm256_and_si256(b.low, m)),
                    _mm256_or_si256(a.high, _mm256_and_si256(b.high, m)));
}

/* Shifts do not stop at the borders of bytes: mask afterwards. */
static inline bytes64 bytes_shr(bytes64 a, int n)
{
    return bytes_of(_mm256_srli_epi16(a.low, n), _mm256_srli_epi16(a.high, n));
}

static inline bytes64 bytes_shl(bytes64 a, int n)
{
    return bytes_of(_mm256_slli_epi16(a.low, n), _mm256_slli_epi16(a.high, n));
}

/* The first 32 bytes by n, the others by m bits. */
static inline bytes64 bytes_shr_halves(bytes64 a, int n, int m)
{
    return bytes_of(_mm256_srli_epi16(a.low, n), _mm256_srli_epi16(a.high, m));
}

static inline bytes64 bytes_shl_halves(bytes64 a, int n, int m)
{
    return bytes_of(_mm256_slli_epi16(a.low, n), _mm256_slli_epi16(a.high, m));
}

/* `value` in every byte whose bit is set: byte i of a lane has bit i of its bytes from `first` on. */
static inline __m256i bits_to(int value, __m256i bits, int first)
{
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    long long from = 0x0101010101010101 * first;
    __m256i a = _mm256_shuffle_epi8(
        bits, _mm256_setr_epi64x(from, from + 0x0101010101010101, from, from + 0x0101010101010101));
    a = _mm256_cmpeq_epi8(_mm256_and_si256(a, bit), bit);
    return _mm256_and_si256(a, _mm256_set1_epi8((char)value));
}

/* The 32 bits at p, and at q in the upper lane. */
static inline __m256i two_times_32(const uint8_t *p, const uint8_t *q)
{
    int32_t low, high;
    memcpy(&low, p, 4);
    memcpy(&high, q, 4);
    return _mm256_blend_epi32(_mm256_set1_epi32(low), _mm256_set1_epi32(high), 0xf0);
}

/* Bit 4 of each byte from the 32 bits at p and the 32 at q. */
static inline bytes64 bytes_set_bit4(bytes64 a, const uint8_t *p, const uint8_t *q)
{
    __m256i bits = two_times_32(p, q);
    return bytes_of(_mm256_or_si256(a.low, bits_to(16, bits, 0)),
                    _mm256_or_si256(a.high, bits_to(16, bits, 2)));
}

/* 2 or 0 for each of these bits. */
static inline bytes64 bytes_twos(const uint8_t *p, const uint8_t *q)
{
    __m256i bits = two_times_32(p, q);
    return bytes_of(bits_to(2, bits, 0), bits_to(2, bits, 2));
}

/* Signed codes as pairs_dot wants them: raised by SIGNED_BIAS. */
static inline bytes64 bytes_signed(bytes64 c)
{
    return c;
}

/* Signed codes of at most 7 bits as unsigned ones, and back. */
static inline bytes64 bytes_raised(bytes64 c)
{
    return bytes_of(_mm256_add_epi8(c.low, _mm256_set1_epi8(MM2_CODE_LIMIT)),
                    _mm256_add_epi8(c.high, _mm256_set1_epi8(MM2_CODE_LIMIT)));
}

static inline bytes64 bytes_lowered(bytes64 c)
{
    return bytes_of(_mm256_sub_epi8(c.low, _mm256_set1_epi8(MM2_CODE_LIMIT)),
                    _mm256_sub_epi8(c.high, _mm256_set1_epi8(MM2_CODE_LIMIT)));
}

/* The values of IQ4 codes, likewise. */
static inline bytes64 bytes_iq4(bytes64 nibbles)
{
    return bytes_of(words_iq4(nibbles.low), words_iq4(nibbles.high));
}

/* Byte `from` in every word: in its upper half if it is to be sign-extended, else in its lower. */
static inline __m128i spread_control(int negative, int from)
{
    return _mm_set1_epi16((short)(negative ? from << 8 | 0x80 : 0x8000 | from));
}

static inline __m256i spread32(int negative, __m256i scales, int first, int second)
{
    __m256i control =
        _mm256_inserti128_si256(_mm256_castsi128_si256(spread_control(negative, first)),
                                spread_control(negative, second), 1);
    __m256i a = _mm256_shuffle_epi8(scales, control);
    return negative ? _mm256_srai_epi16(a, 8) : a;
}

/* For each of the four groups of 16 bytes, byte from[i] of the (repeated) 16, as int16 in every
 * word; `negative` says that it may be. */
static inline bytes64 bytes_spread(int negative, bytes64 scales, const uint8_t from[4])
{
    return bytes_of(spread32(negative, scales.low, from[0], from[1]),
                    spread32(negative, scales.high, from[2], from[3]));
}

static inline words dot32(words sum, __m256i c, __m256i a, __m256i scales)
{
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(c, a), scales));
    ADD_NOW(sum);
    return sum;
}

static inline __m256i acts_load(const int8_t *p)
{
    return _mm256_load_si256((const __m256i *)p);
}

/* sum + scales * codes (0..63) * activations, spread over the lanes in any way. */
static inline words direct_dot(words sum, bytes64 c, const int8_t *acts, bytes64 scales)
{
    sum = dot32(sum, c.low, acts_load(acts), scales.low);
    return dot32(sum, c.high, acts_load(acts + 32), scales.high);
}

static inline words dot32_signed(words sum, __m256i c, __m256i a, __m256i scales)
{
    return dot32(sum, _mm256_abs_epi8(c), _mm256_sign_epi8(a, c), scales);
}

/* Of values of IQ4 codes: those of negative activations are negated, and are not -128. */
static inline __m256i products_iq4(__m256i c, const int8_t *acts)
{
    return _mm256_maddubs_epi16(acts_load(acts + 64), _mm256_sign_epi8(c, acts_load(acts)));
}

/* 8 signed scales in words, the even blocks' first; ... */
static inline __m256i pair_scales(const uint8_t scales[8])
{
    __m256i control = _mm256_setr_epi64x(0x0380028001800080, -1, 0x0780068005800480, -1);
    return _mm256_srai_epi16(_mm256_shuffle_epi8(repeat16(scales), control), 8);
}

/* ... and those of block 2 i and 2 i + 1 in all words of a lane each. */
static inline __m256i pair_scale(__m256i scales, int i)
{
    return _mm256_shuffle_epi8(scales, _mm256_set1_epi16((short)((i * 2 + 1) << 8 | i * 2)));
}

/* The activations of a super-block in the order of direct_dot_iq4_xs. */
static inline void acts_iq4_xs(int8_t out[4 * ACT_PAIR], const int8_t *a)
{
    for (int j = 0; j < 4; j++)
        acts_pair(out + j * ACT_PAIR, a + j * 64, a + j * 64 + 32);
}

/* sum + scales * (values of the codes of IQ4_XS at q + SIGNED_BIAS) * activations. Scales are those of
 * the four even blocks, then of the odd ones. */
static inline words direct_dot_iq4_xs(words sum, const uint8_t *q, const uint8_t scales[8],
                                      const int8_t *acts)
{
    __m256i s = pair_scales(scales);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++, acts += ACT_PAIR) {
        bytes64 c = bytes_iq4(nibbles(_mm256_loadu_si256((const __m256i *)(q + j * 32))));
        __m256i scale = pair_scale(s, j);
        __m256i a = _mm256_madd_epi16(products_iq4(c.low, acts), scale);
        __m256i b = _mm256_madd_epi16(products_iq4(c.high, acts + 32), scale);
        sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
    }
    return sum;
}

/* sum + (16 signed scales << shift) * sums */
static inline words direct_offset(words sum, const uint8_t scales[16], const int16_t sums[16],
                                  int shift)
{
    __m256i s = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)scales));
    __m256i a = _mm256_loadu_si256((const __m256i *)sums);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_slli_epi16(s, shift), a));
}

/* sum + 2^Q3_K_SHIFT * scales * codes (0..7) * activations of a super-block of Q3_K. Bits 2 j of the
 * 64 bytes at q are code j of 4, bit j of the nibbles at `high` goes above them; activations are in
 * this order, j after j. Two codes and their bits are joined in a byte, and both are multiplied where
 * they are, the upper one 16 times too large, by scales that make up for it. */
static inline words direct_dot_q3_k(words sum, const uint8_t *q, const uint8_t *high,
                                    const uint8_t scales[16], const int8_t *acts)
{
    const __m256i even = table16(0x00, 0x04, 0x00, 0x04, 0x40, 0x44, 0x40, 0x44, 0x00, 0x04, 0x00,
                                 0x04, 0x40, 0x44, 0x40, 0x44); /* bits 0 and 2 to 2 and 6 */
    const __m256i odd = table16(0x00, 0x00, 0x04, 0x04, 0x00, 0x00, 0x04, 0x04, 0x40, 0x40, 0x44,
                                0x44, 0x40, 0x40, 0x44, 0x44); /* bits 1 and 3 */
    const __m256i two = _mm256_set1_epi8(0x33);
    const __m256i lower = _mm256_set1_epi8(0x07), upper = _mm256_set1_epi8(0x70);
    /* Scale 2 i + lane to the upper byte of word i, and from there down: times 16, 16, 1, 1. */
    const __m256i spread = _mm256_setr_epi64x(0x0680048002800080, 0x0e800c800a800880,
                                              0x0780058003800180, 0x0f800d800b800980);
    const __m256i factor = _mm256_set1_epi64x(0x0100010010001000);
    __m256i s = _mm256_mulhi_epi16(_mm256_shuffle_epi8(repeat16(scales), spread), factor);
    bytes64 x = bytes_load(q), bits = nibbles(_mm256_loadu_si256((const __m256i *)high));
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        __m256i a = half ? x.high : x.low, bit = half ? bits.high : bits.low, c[4];
        __m256i b = _mm256_and_si256(_mm256_srli_epi16(a, 2), two);
        a = _mm256_or_si256(_mm256_and_si256(a, two), _mm256_shuffle_epi8(even, bit));
        b = _mm256_or_si256(b, _mm256_shuffle_epi8(odd, bit));
        c[0] = _mm256_and_si256(a, lower);
        c[1] = _mm256_and_si256(b, lower);
        c[2] = _mm256_and_si256(a, upper);
        c[3] = _mm256_and_si256(b, upper);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            int at = half * 8 + j * 2;
            __m256i scale = _mm256_shuffle_epi8(s, _mm256_set1_epi16((short)((at + 1) << 8 | at)));
            sum = dot32(sum, c[j], acts_load(acts + j * 64 + half * 32), scale);
        }
    }
    return sum;
}

/* Partial sums of codes * activations from acts_pair for each of two blocks. */
static inline pairs pairs_dot_signed(bytes64 c, const int8_t *acts)
{
    const __m256i zero = _mm256_setzero_si256(), one = _mm256_set1_epi16(1);
    __m256i sum = dot32_signed(zero, c.low, acts_load(acts), one);
    return dot32_signed(sum, c.high, acts_load(acts + 32), one);
}

/* The same of the values that bytes_iq4 leaves. */
static inline pairs pairs_dot_iq4(bytes64 c, const int8_t *acts)
{
    const __m256i one = _mm256_set1_epi16(1);
    return _mm256_add_epi32(_mm256_madd_epi16(products_iq4(c.low, acts), one),
                            _mm256_madd_epi16(products_iq4(c.high, acts + 32), one));
}

/* And of unsigned codes of up to 5 bits, in int16: at most 31 * 127 * 4. */
static inline pairs pairs_dot_unsigned(bytes64 c, const int8_t *acts)
{
    return _mm256_add_epi16(_mm256_maddubs_epi16(c.low, acts_load(acts)),
                            _mm256_maddubs_epi16(c.high, acts_load(acts + 32)));
}

/* In every group of 4 lanes: the sums of the groups of a, b, c and d. */
static inline words sums_of_4(words a, words b, words c, words d)
{
    __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
}

/* Lane i: the sum of the lanes of v[i]. */
static inline words words_sums(const words v[ROWS])
{
    __m256i a = sums_of_4(v[0], v[1], v[2], v[3]), b = sums_of_4(v[4], v[5], v[6], v[7]);
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                            _mm256_permute2x128_si256(a, b, 0x31));
}

/* Lane i of each group of 8, i < 4: the sum of the first block of v[4 * group + i], lane i + 4:
 * of its second. Pairs of `negative` codes are int32. */
static inline words pairs_sums(int negative, const pairs v[ROWS / 2])
{
    if (negative)
        return sums_of_4(v[0], v[1], v[2], v[3]);
    const __m256i one = _mm256_set1_epi16(1);
    __m256i ab =
        _mm256_add_epi16(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
    __m256i cd =
        _mm256_add_epi16(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
    ab = _mm256_madd_epi16(ab, one); /* 31 * 127 * 8 was within int16 */
    cd = _mm256_madd_epi16(cd, one);
    return _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
}

/* Within lanes of 128 bits: word i of a's and of b's halves added, in int16, then two by two. */
static inline __m256i sums_of_2(__m256i a, __m256i b)
{
    __m256i sum = _mm256_add_epi16(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); /* 24 * 127 * 8 was within int16 */
}

/* Of ROWS / 4 pieces of 16 bytes: the codes of their low nibbles, without a sign and of up to 5 bits,
 * times activations plus those of the high ones likewise. A piece has a lane of 128 bits, and the first
 * half of its codes the first half of the lane. */
static inline pairs pairs_dot_nibbles(words low, const int8_t *acts, words high, const int8_t *more)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)acts);
    __m256i b = _mm256_loadu_si256((const __m256i *)more);
    return _mm256_add_epi16(_mm256_maddubs_epi16(low, a), _mm256_maddubs_epi16(high, b));
}

/* Lane i of all: piece i of four such. */
static inline words nibbles_in_order(words a)
{
    return _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Of ROWS pieces; and of both halves of each. */
static inline words nibbles_sums(const pairs v[4])
{
    return nibbles_in_order(pairs_sums(0, v));
}

static inline void nibbles_halves(words half[2], const pairs v[4])
{
    half[0] = nibbles_in_order(
        sums_of_2(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpacklo_epi32(v[2], v[3])));
    half[1] = nibbles_in_order(
        sums_of_2(_mm256_unpackhi_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[2], v[3])));
}

static inline words words_load(const int32_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

/* sum + (two int16 of each lane times two int16 of each lane). */
static inline words words_dot16(words sum, words a, words b)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

/* The 16 bytes of lane l, 4 of each word, to out[l % 4 * (ROWS / 4) + l / 4]. */
static inline void untranspose4(uint8_t out[ROWS][16], const words in[4])
{
    __m256i ab = _mm256_unpacklo_epi32(in[0], in[1]), cd = _mm256_unpacklo_epi32(in[2], in[3]);
    _mm256_store_si256((__m256i *)out, _mm256_unpacklo_epi64(ab, cd));
    _mm256_store_si256((__m256i *)(out + 2), _mm256_unpackhi_epi64(ab, cd));
    ab = _mm256_unpackhi_epi32(in[0], in[1]);
    cd = _mm256_unpackhi_epi32(in[2], in[3]);
    _mm256_store_si256((__m256i *)(out + 4), _mm256_unpacklo_epi64(ab, cd));
    _mm256_store_si256((__m256i *)(out + 6), _mm256_unpackhi_epi64(ab, cd));
}

/* Bytes 0 and 1 of every word (`half` 1: 2 and 3) as two int16. */
static inline words words_widen(words a, int half)
{
    int n = half * 2;
    return _mm256_shuffle_epi8(
        a, _mm256_broadcastsi128_si256(_mm_setr_epi8(
               (char)n, -1, (char)(n + 1), -1, (char)(n + 4), -1, (char)(n + 5), -1, (char)(n + 8),
               -1, (char)(n + 9), -1, (char)(n + 12), -1, (char)(n + 13), -1)));
}

static inline reals reals_of(words bits)
{
    return _mm256_castsi256_ps(bits);
}

static inline reals reals_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline void reals_store(float *p, reals a)
{
    _mm256_storeu_ps(p, a);
}

static inline reals reals_mul(reals a, reals b)
{
    return _mm256_mul_ps(a, b);
}

static inline reals reals_min(reals a, reals b)
{
    return _mm256_min_ps(a, b);
}

/* ---- bf16 activations ---- */

/* e4m3 codes as bf16, by bytes, from tables of 16: the upper byte is the sign and the upper three
 * exponent bits, whose bias grows by 120, the lower one what is left. Subnormals, in their place
 * exponent 0, differ by what other tables hold; all other codes have bit 7 set there, which gives
 * 0. NaN gets all bits. */
static inline void bf16_of_f8(__m256i code, __m256i *low, __m256i *high)
{
    const __m256i upper = table16(0x3c, 0x3d, 0x3e, 0x3f, 0x40, 0x41, 0x42, 0x43, 0xbc, 0xbd, 0xbe,
                                  0xbf, 0xc0, 0xc1, 0xc2, 0xc3);
    const __m256i lower = table16(0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xa0,
                                  0xb0, 0xc0, 0xd0, 0xe0, 0xf0);
    const __m256i upper_mend =
        table16(0, 0, 0, 0, 0, 0, 0, 0, 0x3c, 0x07, 0x07, 0x07, 0x00, 0x00, 0x00, 0x00);
    const __m256i lower_mend =
        table16(0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x10, 0xa0, 0xf0, 0x40, 0x70, 0x20, 0x10);
    __m256i size = _mm256_and_si256(code, _mm256_set1_epi8(0x7f));
    __m256i mend = _mm256_add_epi8(size, _mm256_set1_epi8(0x78));
    __m256i top = _mm256_and_si256(_mm256_srli_epi16(code, 4), _mm256_set1_epi8(15));
    __m256i nan = _mm256_cmpeq_epi8(size, _mm256_set1_epi8(0x7f));
    top = _mm256_xor_si256(_mm256_shuffle_epi8(upper, top), _mm256_shuffle_epi8(upper_mend, mend));
    *high = _mm256_or_si256(top, nan);
    *low =
        _mm256_xor_si256(_mm256_shuffle_epi8(lower, size), _mm256_shuffle_epi8(lower_mend, mend));
}

/* 16 bytes each of ROWS / 4 places, `stride` bytes apart. */
static inline words words_quads(const uint8_t *p, int64_t stride)
{
    return two_rows(p, stride / 4);
}

/* ROWS / 4 times 16 codes to bf16: word 4 b + s of out[i] is the pair 8 i + 2 s of group b. */
static inline void pairs_f8(words code, words out[2])
{
    __m256i low, high;
    bf16_of_f8(code, &low, &high);
    out[0] = _mm256_unpacklo_epi8(low, high);
    out[1] = _mm256_unpackhi_epi8(low, high);
}

static inline reals reals_add(reals a, reals b)
{
    return _mm256_add_ps(a, b);
}

/* Lane 4 b: a[4 b] to a[4 b + 3] added up in this order, from +0; the others anything. */
static inline reals reals_quads(reals a)
{
    reals sum = _mm256_add_ps(_mm256_setzero_ps(), a);
    sum = _mm256_add_ps(sum, _mm256_permute_ps(a, 0x55));
    sum = _mm256_add_ps(sum, _mm256_permute_ps(a, 0xaa));
    return _mm256_add_ps(sum, _mm256_permute_ps(a, 0xff));
}

#endif
