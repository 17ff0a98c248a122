/* Matrix products of one to DIRECT_ACTS activation rows with blocks and planes, 32 codes, a piece, at a
 * time. Included after body_int_direct.h, which says how they work.
 *
 * A group are ROWS pieces. Nibbles without more bits elsewhere come a register at a time, 16 bytes of
 * ROWS / 4 pieces, of which low and high halves are multiplied; other codes two pieces at a time, with
 * the piece four further on. Where 16 codes have a scale, the transposing sum leaves the two halves of a
 * piece apart, and its second terms have a place of their own. */

typedef struct direct_act {
    _Alignas(64) int8_t code[DIRECT_PIECES][ACT_PAIR];      /* of piece b and of piece b + 4 */
    int8_t low[DIRECT_PIECES][16], high[DIRECT_PIECES][16]; /* instead of them, if in_nibbles */
    int32_t bias[2][DIRECT_PIECES]; /* sum of a span's codes times direct_bias */
    int32_t sums[DIRECT_PIECES];    /* of a piece's codes */
} direct_act;

/* Of 16 int8; AVX2 does at every level. */
static inline int32_t sum16(const int8_t *p)
{
    __m128i a = _mm_xor_si128(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8((char)0x80));
    a = _mm_sad_epu8(a, _mm_setzero_si128());
    return _mm_cvtsi128_si32(_mm_add_epi64(a, _mm_unpackhi_epi64(a, a))) - 16 * 128;
}

/* Are codes nibbles and nothing else, to be multiplied a register at a time? */
INLINE int in_nibbles(int32_t dtype)
{
    return in_pairs(dtype) || dtype == MM2_Q4_0 || dtype == MM2_Q4_1 || dtype == MM2_MXFP4 ||
           dtype == MM2_NVFP4;
}

/* 32 activations of a piece: those of the low nibbles of its bytes, and of the high ones. AVX2 does at
 * every level. */
INLINE void acts_of_nibbles(int32_t dtype, int8_t low[16], int8_t high[16], const int8_t *act)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)act);
    if (in_pairs(dtype))
        a = _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                       0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)));
    if (in_pairs(dtype) || dtype == MM2_NVFP4)
        a = _mm256_permute4x64_epi64(a, 0xd8);
    _mm_storeu_si128((__m128i *)low, _mm256_castsi256_si128(a));
    _mm_storeu_si128((__m128i *)high, _mm256_extracti128_si256(a, 1));
}

INLINE void direct_prepare(int32_t dtype, direct_act *x, const int8_t *act, int32_t n, int32_t bias)
{
    int32_t pieces = n / 32;
    for (int32_t b = 0, from = 0; b < pieces + ROWS; b++, from = from + 1 < pieces ? from + 1 : 0) {
        const int8_t *a = act + from * 32;
        if (in_nibbles(dtype))
            acts_of_nibbles(dtype, x->low[b], x->high[b], a);
        else
            acts_pair(x->code[b], a, act + (from + 4) % pieces * 32);
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
    return block_at(dtype, p, k) + k % pieces_of(dtype) * 4;
}

/* Codes of two pieces, as their product below wants them. p and q are what piece_at says. */

INLINE bytes64 direct_codes_q8_0(const uint8_t *p, const uint8_t *q)
{
    return bytes_signed(
        bytes_joined(p + offsetof(mm2_block_q8_0, q), q + offsetof(mm2_block_q8_0, q)));
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

INLINE bytes64 direct_codes_q5_1(const uint8_t *p, const uint8_t *q)
{
    bytes64 low = bytes_nibbles(p + offsetof(mm2_block_q5_1, q), q + offsetof(mm2_block_q5_1, q));
    return bytes_set_bit4(low, p + offsetof(mm2_block_q5_1, high),
                          q + offsetof(mm2_block_q5_1, high));
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
#define direct_pairs_q5_0 pairs_dot_unsigned
#define direct_pairs_q5_1 pairs_dot_unsigned
#define direct_pairs_q1_0 pairs_dot_unsigned
#define direct_pairs_i8 pairs_dot_signed

INLINE bytes64 direct_codes(int32_t dtype, const uint8_t *p, const uint8_t *q)
{
    switch (dtype) {
#define CODES(ID, name, ...)                                                                       \
    case MM2_##ID:                                                                                 \
        return direct_codes_##name(p, q);
        CODES(Q8_0, q8_0)
        CODES(Q5_0, q5_0)
        CODES(Q5_1, q5_1)
        CODES(IQ4_NL, iq4_nl)
        CODES(Q1_0, q1_0)
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
        PAIRS(Q8_0, q8_0)
        PAIRS(Q5_0, q5_0)
        PAIRS(Q5_1, q5_1)
        PAIRS(IQ4_NL, iq4_nl)
        PAIRS(Q1_0, q1_0)
        PAIRS(I8, i8)
#undef PAIRS
    }
    __builtin_unreachable();
}

/* The first words of the blocks of a group: scales and minima. They go through integer registers, which
 * have nothing else to do: gcc would join them in vectors. */
INLINE void direct_heads_of_blocks(int32_t dtype, int32_t *head, const uint8_t *p)
{
#pragma GCC unroll 16
    for (int k = 0; k < ROWS / pieces_of(dtype); k++) {
        int32_t word;
        memcpy(&word, p + k * block_bytes(dtype), 4);
        __asm__("" : "+r"(word));
        head[k] = word;
    }
}

/* Scales of planes for 16 or 32 codes, of ROWS pieces; `span` is the number of the first one, and there
 * are `left`. */
INLINE void direct_heads_of_spans(int32_t dtype, direct_terms *t, int32_t at, const mm2_weight *w,
                                  int64_t span, int32_t left)
{
    v16 d = span_floats(dtype, w, span), odd;
    if (dtype == MM2_F4_16) {
        d = v16_unzip(d, ROWS > 8 && left > 16 ? span_floats(dtype, w, span + 16) : d, &odd);
        v16_store(t->d + DIRECT_SECOND + at, odd);
    }
    v16_store(t->d + at, d);
}

/* n numbers, each of them for `same` pieces: stores of four, whose surplus the next one replaces. */
static inline void repeat_floats(float *out, const float *x, int32_t n, int32_t same)
{
    for (int32_t j = 0; j < n; j++, out += same)
        for (int32_t k = 0; k < same; k += 4)
            _mm_storeu_ps(out + k, _mm_set1_ps(x[j]));
}

/* Scales for whole pieces, of all those of `rows` rows; zero points in the place of minima. */
INLINE void direct_heads_of_groups(int32_t dtype, direct_terms *t, const mm2_weight *w, int64_t row,
                                   int32_t rows)
{
    int32_t each = spans_of_row(w), all = rows * each, same = w->group / mm2_format_of(dtype).span;
    for (int32_t s = 0; s < all; s += 16) {
        float some[16];
        v16_store(some, span_floats(dtype, w, row * each + s));
        repeat_floats(t->d + s * same, some, smaller(16, all - s), same);
    }
    for (int32_t r = 0; r < rows && has_zeros(dtype, w); r++)
        for (int32_t s = 0; s < each; s += 8) {
            float some[8];
            zero_floats(dtype, some, w, row + r, s);
            repeat_floats(t->min + (r * each + s) * same, some, smaller(8, each - s), same);
        }
}

/* Where a block has its nibbles: in the end. */
INLINE int32_t nibbles_from(int32_t dtype)
{
    return block_bytes(dtype) - 16 * pieces_of(dtype);
}

/* Register k of four that have the nibbles of ROWS pieces. */
INLINE words nibbles_at(int32_t dtype, const uint8_t *p, int k)
{
    const int32_t each = pieces_of(dtype), bytes = block_bytes(dtype);
    if (mm2_is_plane(dtype))
        return words_load((const int32_t *)(p + k * ROWS * 4));
    p += k * ROWS / 4 / each * bytes + nibbles_from(dtype);
    return each == 2 ? words_of_32(p, bytes) : words_of_16(p, bytes);
}

INLINE void direct_nibble_sums(int32_t dtype, int acts, words isum[DIRECT_ACTS][2],
                               const uint8_t *p, const direct_act *x, int32_t b, int32_t lead)
{
    const int32_t bytes = (int32_t)begin_bytes(dtype, 32 * ROWS) / 4;
    const int values = mm2_format_of(dtype).bits == 5; /* of E2M1 */
    pairs sum[DIRECT_ACTS][4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        words a = nibbles_at(dtype, p, k);
        words low = values ? words_nibble_values(e2m1_raised, a, 0) : words_bits(a, 0, LOW4);
        words high = values ? words_nibble_values(e2m1_raised, a, 4) : words_bits(a, 4, LOW4);
        prefetch_lines(p, k * bytes, (k + 1) * bytes, lead);
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m][k] = pairs_dot_nibbles(low, x[m].low[b + k * ROWS / 4], high,
                                          x[m].high[b + k * ROWS / 4]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++) {
        if (spans_of(dtype) == 2)
            nibbles_halves(isum[m], sum[m]);
        else
            isum[m][0] = nibbles_sums(sum[m]);
    }
}

/* zeros: are there zero points, in the place of minima? */
INLINE void direct_piece_terms(int32_t dtype, int acts, direct_terms *t, int32_t at,
                               const uint8_t *p, const direct_act *x, int32_t b, int32_t lead,
                               int zeros)
{
    const int32_t bytes = (int32_t)begin_bytes(dtype, 32 * ROWS) / (ROWS / 2);
    words isum[DIRECT_ACTS][2];
    if (in_nibbles(dtype)) {
        direct_nibble_sums(dtype, acts, isum, p, x, b, lead);
    } else {
        pairs sum[DIRECT_ACTS][ROWS / 2];
#pragma GCC unroll 8
        for (int k = 0; k < ROWS / 2; k++) {
            int first = k + k / 4 * 4; /* with the piece four further on */
            prefetch_lines(p, k * bytes, (k + 1) * bytes, lead);
            bytes64 c =
                direct_codes(dtype, piece_at(dtype, p, first), piece_at(dtype, p, first + 4));
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++)
                sum[m][k] = direct_pairs(dtype, c, x[m].code[b + first]);
        }
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            isum[m][0] = pairs_sums(is_signed(dtype), sum[m]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
        for (int s = 0; s < spans_of(dtype); s++) {
            reals sums = reals_from_words(words_sub(isum[m][s], words_load(x[m].bias[s] + b)));
            if (zeros)
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
    int32_t lead = (pieces + 3) / 4 * CHAIN_LINES * 64;
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
        if (dtype == MM2_I4 || dtype == MM2_I8)
            direct_heads_of_groups(dtype, &t, w, (int64_t)first + i, rows);
        for (int32_t at = 0, b = 0; at < total; at += ROWS) {
            const uint8_t *q =
                direct_blocks(ROWS / each, p, at / each, total / each, block_bytes(dtype), copy);
            if (!mm2_is_plane(dtype))
                direct_heads_of_blocks(dtype, t.head + at / each, q);
            if ((dtype == MM2_F4_16 || dtype == MM2_F4_32) && at * spans_of(dtype) % 16 == 0)
                direct_heads_of_spans(dtype, &t, at, w,
                                      ((int64_t)(first + i) * pieces + at) * spans_of(dtype),
                                      (total - at) * spans_of(dtype));
            if (mm2_is_plane(dtype)) /* scales of the rows that come next: at most a line */
                prefetch((const uint8_t *)w->spans + (first + i + most) * w->span_bytes +
                             at * w->span_bytes / pieces,
                         64);
            direct_piece_terms(dtype, acts, &t, at, q, x, b, lead - lead / total * at,
                               has_zeros(dtype, w));
            for (b += ROWS; b >= pieces;)
                b -= pieces;
        }
        direct_chain(dtype, acts, out, i, &t, d, asum, rows, pieces, w,
                     p + rows * w->row_bytes + stream_far);
    }
}
