/* Matrix products of one to DIRECT_ACTS activation rows with blocks and planes, 32 codes, a piece, at a
 * time. Included after body_int_direct.h, which says how they work.
 *
 * A group are ROWS pieces. Codes of blocks are multiplied two pieces at a time, with the piece four
 * further on; planes of nibbles have no gaps, and come a register at a time. Where 16 codes have a scale,
 * the transposing sum leaves the two halves of a piece apart, and its second terms have a place of their own. */

typedef struct direct_act {
    _Alignas(64) int8_t code[DIRECT_PIECES][ACT_PAIR];      /* of piece b and of piece b + 4 */
    int8_t even[DIRECT_PIECES][16], odd[DIRECT_PIECES][16]; /* instead of them, if in_pairs */
    int32_t bias[2][DIRECT_PIECES]; /* sum of a span's codes times direct_bias */
    int32_t sums[DIRECT_PIECES];    /* of a piece's codes */
} direct_act;

/* Of 16 int8, and of 32; AVX2 does at every level. */
static inline int32_t sum16(const int8_t *p)
{
    __m128i a = _mm_xor_si128(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8((char)0x80));
    a = _mm_sad_epu8(a, _mm_setzero_si128());
    return _mm_cvtsi128_si32(_mm_add_epi64(a, _mm_unpackhi_epi64(a, a))) - 16 * 128;
}

static inline int32_t sum32(const int8_t *p)
{
    return sum16(p) + sum16(p + 16);
}

/* How acts_pair puts activations where their codes are. */
INLINE int act_order(int32_t dtype)
{
    return dtype == MM2_NVFP4 ? ORDER_EIGHTS : ORDER_PLAIN;
}

/* 32 activations of a piece, the even ones and the others; AVX2 does at every level. */
static inline void acts_of_pairs(int8_t even[16], int8_t odd[16], const int8_t *act)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)act);
    a = _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                   0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)));
    a = _mm256_permute4x64_epi64(a, 0xd8);
    _mm_storeu_si128((__m128i *)even, _mm256_castsi256_si128(a));
    _mm_storeu_si128((__m128i *)odd, _mm256_extracti128_si256(a, 1));
}

INLINE void direct_prepare(int32_t dtype, direct_act *x, const int8_t *act, int32_t n, int32_t bias)
{
    int32_t pieces = n / 32;
    for (int32_t b = 0, from = 0; b < pieces + ROWS; b++, from = from + 1 < pieces ? from + 1 : 0) {
        const int8_t *a = act + from * 32;
        if (in_pairs(dtype))
            acts_of_pairs(x->even[b], x->odd[b], a);
        else
            acts_pair(act_order(dtype), x->code[b], a, act + (from + 4) % pieces * 32);
        if (b < pieces) {
            int32_t half[2] = {sum16(a), sum16(a + 16)};
            x->sums[b] = half[0] + half[1];
            x->bias[0][b] = bias * (spans_of(dtype) == 2 ? half[0] : x->sums[b]);
            x->bias[1][b] = bias * half[1];
        } else {
            x->sums[b] = x->sums[from];
            x->bias[0][b] = x->bias[0][from];
            x->bias[1][b] = x->bias[1][from];
        }
    }
}

/* Are codes multiplied with a sign? */
INLINE int is_signed(int32_t dtype)
{
    return mm2_format_of(dtype).bits == 8;
}

/* How far the codes of direct_codes lie above the true ones when they are multiplied. */
INLINE int32_t direct_bias(int32_t dtype)
{
    return is_signed(dtype) ? SIGNED_BIAS : mm2_format_of(dtype).offset;
}

/* Twice the values of E2M1, plus 12. */
static const int8_t e2m1_raised[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

/* The block of piece k from p on. */
INLINE const uint8_t *block_at(int32_t dtype, const uint8_t *p, int32_t k)
{
    return p + (int64_t)(k / pieces_of(dtype)) * block_bytes(dtype);
}

/* The same, further on by what the pieces before it have of the codes in its block. */
INLINE const uint8_t *piece_at(int32_t dtype, const uint8_t *p, int32_t k)
{
    return block_at(dtype, p, k) + k % pieces_of(dtype) * (dtype == MM2_NVFP4 ? 16 : 4);
}

/* Codes of two pieces, as their product below wants them. p and q are what piece_at says. */

INLINE bytes64 direct_codes_q8_0(const uint8_t *p, const uint8_t *q)
{
    return bytes_signed(
        bytes_joined(p + offsetof(mm2_block_q8_0, q), q + offsetof(mm2_block_q8_0, q)));
}

INLINE bytes64 direct_codes_q4_0(const uint8_t *p, const uint8_t *q)
{
    return bytes_nibbles(p + offsetof(mm2_block_q4_0, q), q + offsetof(mm2_block_q4_0, q));
}

INLINE bytes64 direct_codes_q5_0(const uint8_t *p, const uint8_t *q)
{
    bytes64 low = bytes_nibbles(p + offsetof(mm2_block_q5_0, q), q + offsetof(mm2_block_q5_0, q));
    return bytes_set_bit4(low, p + offsetof(mm2_block_q5_0, high),
                          q + offsetof(mm2_block_q5_0, high));
}

INLINE bytes64 direct_codes_iq4_nl(const uint8_t *p, const uint8_t *q)
{
    return bytes_iq4(
        bytes_nibbles(p + offsetof(mm2_block_iq4_nl, q), q + offsetof(mm2_block_iq4_nl, q)));
}

INLINE bytes64 direct_codes_q4_1(const uint8_t *p, const uint8_t *q)
{
    return bytes_nibbles(p + offsetof(mm2_block_q4_1, q), q + offsetof(mm2_block_q4_1, q));
}

INLINE bytes64 direct_codes_q5_1(const uint8_t *p, const uint8_t *q)
{
    bytes64 low = bytes_nibbles(p + offsetof(mm2_block_q5_1, q), q + offsetof(mm2_block_q5_1, q));
    return bytes_set_bit4(low, p + offsetof(mm2_block_q5_1, high),
                          q + offsetof(mm2_block_q5_1, high));
}

INLINE bytes64 direct_codes_mxfp4(const uint8_t *p, const uint8_t *q)
{
    return bytes_values(e2m1_raised, bytes_nibbles(p + offsetof(mm2_block_mxfp4, q),
                                                   q + offsetof(mm2_block_mxfp4, q)));
}

INLINE bytes64 direct_codes_nvfp4(const uint8_t *p, const uint8_t *q)
{
    return bytes_values(e2m1_raised, bytes_nibbles_of_8(p + offsetof(mm2_block_nvfp4, q),
                                                        q + offsetof(mm2_block_nvfp4, q)));
}

INLINE bytes64 direct_codes_q1_0(const uint8_t *p, const uint8_t *q)
{
    return bytes_twos(p + offsetof(mm2_block_q1_0, q), q + offsetof(mm2_block_q1_0, q));
}

INLINE bytes64 direct_codes_i8(const uint8_t *p, const uint8_t *q)
{
    return bytes_signed(bytes_xor(bytes_joined(p, q), 0x80));
}

/* Products: of signed codes, of values of IQ4, of codes without a sign. */
#define direct_pairs_q8_0 pairs_dot_signed
#define direct_pairs_iq4_nl pairs_dot_iq4
#define direct_pairs_q4_0 pairs_dot_unsigned
#define direct_pairs_q5_0 pairs_dot_unsigned
#define direct_pairs_q4_1 pairs_dot_unsigned
#define direct_pairs_q5_1 pairs_dot_unsigned
#define direct_pairs_mxfp4 pairs_dot_unsigned
#define direct_pairs_nvfp4 pairs_dot_unsigned
#define direct_pairs_q1_0 pairs_dot_unsigned
#define direct_pairs_i8 pairs_dot_signed

INLINE bytes64 direct_codes(int32_t dtype, const uint8_t *p, const uint8_t *q)
{
    switch (dtype) {
#define CODES(ID, name, ...)                                                                       \
    case MM2_##ID:                                                                                 \
        return direct_codes_##name(p, q);
        MM2_BLOCKS(CODES)
        CODES(I8, i8)
#undef CODES
    }
    __builtin_unreachable();
}

INLINE pairs direct_pairs(int32_t dtype, bytes64 c, const int8_t *acts)
{
    switch (dtype) {
#define PAIRS(ID, name, ...)                                                                       \
    case MM2_##ID:                                                                                 \
        return direct_pairs_##name(c, acts);
        MM2_BLOCKS(PAIRS)
        PAIRS(I8, i8)
#undef PAIRS
    }
    __builtin_unreachable();
}

/* The first or second ones of the pairs of scales of 8 pieces, as head_nvfp4 has them; AVX2 does at every
 * level. */
static inline __m256 nvfp4_scales(__m128i pairs_of_8, int second, float global)
{
    const __m128i size = _mm_set1_epi16(0x7f);
    __m128i a =
        second ? _mm_srli_epi16(pairs_of_8, 8) : _mm_and_si128(pairs_of_8, _mm_set1_epi16(0xff));
    a = _mm_and_si128(_mm_andnot_si128(_mm_cmpeq_epi16(a, size), a), size);
    __m256 d = _mm256_mul_ps(_mm256_cvtph_ps(_mm_slli_epi16(a, 7)), _mm256_set1_ps(128));
    return _mm256_mul_ps(d, _mm256_set1_ps(global));
}

/* Scales and minima of ROWS pieces: of their blocks, ... */
INLINE void direct_heads_of_blocks(int32_t dtype, direct_terms *t, int32_t at, const uint8_t *p,
                                   float global)
{
    if (dtype == MM2_NVFP4) {
        for (int i = 0; i < ROWS; i += 8) { /* 8 pieces are 4 blocks, whose scales are words */
            int32_t head[4];
            for (int k = 0; k < 4; k++)
                memcpy(head + k, block_at(dtype, p, i + k * 2), 4);
            __m128i a = _mm_setr_epi32(head[0], head[1], head[2], head[3]);
            for (int s = 0; s < 2; s++)
                _mm256_storeu_ps(t->d + s * DIRECT_SECOND + at + i, nvfp4_scales(a, s, global));
        }
    } else if (dtype == MM2_Q1_0) {
        for (int i = 0; i < ROWS; i += 4) {
            int16_t half;
            memcpy(&half, block_at(dtype, p, i), 2);
            _mm_storeu_ps(t->d + at + i, _mm_cvtph_ps(_mm_set1_epi16(half)));
        }
    } else if (has_minima(dtype) || dtype == MM2_MXFP4) {
        words head[4];
        reals d[2], m;
        transpose4(head, p, block_bytes(dtype));
        head_piece(dtype, d, &m, head[0], 0);
        reals_store(t->d + at, d[0]);
        if (has_minima(dtype))
            reals_store(t->min + at, m);
    } else {
        reals_store(t->d + at, reals_halves(p, block_bytes(dtype)));
    }
}

/* ... and of all pieces of `rows` rows of a plane; in the place of minima zero points of I4, less the
 * usual 8. */

/* n numbers, each of them for `same` pieces: stores of four, whose surplus the next one replaces. */
static inline void repeat_floats(float *out, const float *x, int32_t n, int32_t same)
{
    for (int32_t j = 0; j < n; j++, out += same)
        for (int32_t k = 0; k < same; k += 4)
            _mm_storeu_ps(out + k, _mm_set1_ps(x[j]));
}

/* 8 zero points of a row, from a word on that exists; AVX2 does at every level. */
static inline void zeros_of_8(float out[8], const uint8_t *p, int32_t words_left, int32_t row)
{
    uint32_t rest[8] = {0};
    memcpy(rest, p, (size_t)smaller(8, words_left) * 4);
    __m256i a = _mm256_loadu_si256((const __m256i *)rest);
    a = _mm256_srl_epi32(a, _mm_cvtsi32_si128(row % 8 * 4));
    a = _mm256_sub_epi32(_mm256_and_si256(a, _mm256_set1_epi32(15)), _mm256_set1_epi32(8));
    _mm256_storeu_ps(out, _mm256_cvtepi32_ps(a));
}

INLINE void direct_heads_of_planes(int32_t dtype, direct_terms *t, const mm2_weight *w, int64_t row,
                                   int32_t rows)
{
    int32_t each = spans_of_row(w), all = rows * each, same = w->group / mm2_format_of(dtype).span;
    for (int32_t s = 0; s < all; s += 16 * spans_of(dtype)) {
        v16 d = span_floats(dtype, w, row * each + s);
        float some[16];
        if (dtype == MM2_F4_16) {
            v16 odd;
            d = v16_unzip(d, s + 16 < all ? span_floats(dtype, w, row * each + s + 16) : d, &odd);
            v16_store(t->d + s / 2, d);
            v16_store(t->d + DIRECT_SECOND + s / 2, odd);
        } else if (dtype == MM2_F4_32) {
            v16_store(t->d + s, d);
        } else {
            v16_store(some, d);
            repeat_floats(t->d + s * same, some, smaller(16, all - s), same);
        }
    }
    for (int32_t r = 0; r < rows && dtype == MM2_I4 && w->zeros; r++) {
        int64_t in_words = row + r + w->zeros_first;
        const uint8_t *p = (const uint8_t *)w->zeros + in_words / 8 * each * 4;
        for (int32_t s = 0; s < each; s += 8) {
            float some[8];
            zeros_of_8(some, p + s * 4, each - s, (int32_t)(in_words % 8));
            repeat_floats(t->min + (r * each + s) * same, some, smaller(8, each - s), same);
        }
    }
}

/* ROWS pieces of nibbles, which have no gaps: four registers of them, the even codes and the odd ones.
 * `values`: they are E2M1. */
INLINE void direct_nibble_sums(int values, int spans, int acts, words isum[DIRECT_ACTS][2],
                               const uint8_t *p, const direct_act *x, int32_t b)
{
    pairs sum[DIRECT_ACTS][4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        words a = words_load((const int32_t *)(p + k * ROWS * 4));
        words even = words_bits(a, 0, LOW4), odd = words_bits(a, 4, LOW4);
        prefetch_lines(p, k * ROWS * 4, (k + 1) * ROWS * 4);
        even = values ? words_values(e2m1_raised, even) : even;
        odd = values ? words_values(e2m1_raised, odd) : odd;
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m][k] = pairs_dot_nibbles(even, x[m].even[b + k * ROWS / 4], odd,
                                          x[m].odd[b + k * ROWS / 4]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++) {
        if (spans == 2)
            nibbles_halves(isum[m], sum[m]);
        else
            isum[m][0] = nibbles_sums(sum[m]);
    }
}

/* zeros: are there zero points in the place of minima? What is computed of them is exact. */
INLINE void direct_piece_terms(int32_t dtype, int acts, direct_terms *t, int32_t at,
                               const uint8_t *p, const direct_act *x, int32_t b, int zeros)
{
    const int32_t bytes = (int32_t)begin_bytes(dtype, 32 * ROWS) / (ROWS / 2);
    words isum[DIRECT_ACTS][2];
    if (in_pairs(dtype)) {
        direct_nibble_sums(dtype != MM2_I4, spans_of(dtype), acts, isum, p, x, b);
    } else {
        pairs sum[DIRECT_ACTS][ROWS / 2];
#pragma GCC unroll 8
        for (int k = 0; k < ROWS / 2; k++) {
            int first = k + k / 4 * 4; /* with the piece four further on */
            prefetch_lines(p, k * bytes, (k + 1) * bytes);
            bytes64 c =
                direct_codes(dtype, piece_at(dtype, p, first), piece_at(dtype, p, first + 4));
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++)
                sum[m][k] = direct_pairs(dtype, c, x[m].code[b + first]);
        }
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++) {
            if (spans_of(dtype) == 2)
                pairs_halves(isum[m], sum[m]);
            else
                isum[m][0] = pairs_sums(is_signed(dtype), sum[m]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
        for (int s = 0; s < spans_of(dtype); s++) {
            reals sums = reals_from_words(words_sub(isum[m][s], words_load(x[m].bias[s] + b)));
            if (dtype == MM2_I4 && zeros)
                sums = reals_fnma(reals_load(t->min + at),
                                  reals_from_words(words_load(x[m].sums + b)), sums);
            reals_store(t->sum[m] + s * DIRECT_SECOND + at, sums);
        }
}

INLINE void matmul_pieces_direct(int32_t dtype, int acts, float *const *out, const mm2_weight *w,
                                 int32_t first, int32_t count, const int8_t *const *act)
{
    _Alignas(64) uint8_t copy[ROWS * sizeof(mm2_block_q8_0)];
    direct_act x[DIRECT_ACTS];
    const float *d[DIRECT_ACTS];
    const int32_t *asum[DIRECT_ACTS];
    direct_terms t;
    int32_t pieces = w->n_in / 32, each = pieces_of(dtype), most = CHAIN_ROWS;
    for (int m = 0; m < acts; m++) {
        direct_prepare(dtype, x + m, act[m], w->n_in, direct_bias(dtype));
        d[m] = (const float *)(act[m] + w->n_in);
        asum[m] = x[m].sums;
    }
    if (spans_of(dtype) == 2)
        most = smaller(CHAIN_ROWS, DIRECT_LIMIT / 4 / pieces);
    const uint8_t *p = (const uint8_t *)w->data + first * w->row_bytes;
    for (int32_t i = 0; i < count; i += most, p += most * w->row_bytes) {
        int32_t rows = smaller(most, count - i), total = rows * pieces;
        if (mm2_is_plane(dtype))
            direct_heads_of_planes(dtype, &t, w, (int64_t)first + i, rows);
        for (int32_t at = 0, b = 0; at < total; at += ROWS) {
            const uint8_t *q =
                direct_blocks(ROWS / each, p, at / each, total / each, block_bytes(dtype), copy);
            if (!mm2_is_plane(dtype))
                direct_heads_of_blocks(dtype, &t, at, q, w->global);
            else /* scales of the rows that come next: at most a line for ROWS pieces */
                prefetch((const uint8_t *)w->spans + (first + i + most) * w->span_bytes +
                             at * w->span_bytes / pieces,
                         64);
            direct_piece_terms(dtype, acts, &t, at, q, x, b, w->zeros != NULL);
            for (b += ROWS; b >= pieces;)
                b -= pieces;
        }
        direct_chain(dtype, acts, out, i, &t, d, asum, rows, pieces);
    }
}
