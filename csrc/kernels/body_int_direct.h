/* Matrix products of one to DIRECT_ACTS activation rows with integer weights, in terms of the primitives
 * of a codes_*.h; those with blocks and planes are in body_pieces.h. One row is what decode does, and
 * there memory is to be the limit. With several, codes, scales and minima are unpacked once; `acts`,
 * how many, is a literal everywhere.
 *
 * The rows of a call lie one after the other, so their blocks are walked as one sequence, ROWS
 * blocks at a time, and memory sees a single ascending stream. Codes are multiplied where they
 * stand, 64 at a time and without being moved across lanes; a transposing sum turns the partial
 * sums of ROWS blocks into one register with a lane for each, and from there scales and minima are
 * handled for ROWS blocks at once. What is left for each row is the chain of fused multiply-adds
 * over its blocks that kernels.h prescribes: its factors are kept for CHAIN_ROWS rows, whose chains
 * run side by side.
 *
 * The activations are put into the order in which the codes come, once a call. A group of blocks
 * may begin anywhere in a row and end in the next one; all that belongs to an activation block is
 * therefore repeated behind the last block, ROWS times. */

enum {
    DIRECT_LIMIT = 8192, /* longest row; longer ones take the panels of body_int_panels.h */
    CHAIN_ROWS = 16,     /* whose chains run side by side, in one or two registers */
    CHAIN_LINES = 3,     /* prefetched with four blocks of them */
    DIRECT_PIECES = DIRECT_LIMIT / 32 + ROWS,
    DIRECT_SUPERS = DIRECT_LIMIT / 256 + ROWS,
    /* As many as CHAIN_ROWS rows have pieces of 32 codes, and a group more; where pieces have two spans,
     * the second ones of half as many rows begin in the middle. */
    DIRECT_TERMS = CHAIN_ROWS * DIRECT_LIMIT / 32 + 2 * ROWS,
    DIRECT_SECOND = DIRECT_TERMS / 2,
    DIRECT_SUPER_TERMS = CHAIN_ROWS * DIRECT_LIMIT / 256 + ROWS
};

/* What kernels.h calls d_w, m_w or dmin_w, isum and msum of every span of CHAIN_ROWS rows (and of the
 * last group, which may reach beyond them), the latter two for each activation row. BLOCKS have their
 * first words instead of d_w and m_w. */
typedef struct direct_terms {
    union {
        _Alignas(64) float d[DIRECT_TERMS];
        int32_t head[DIRECT_TERMS];
    };
    float sum[DIRECT_ACTS][DIRECT_TERMS], min[DIRECT_TERMS];
    float least[DIRECT_ACTS][DIRECT_SUPER_TERMS];
} direct_terms;

/* d_w of both spans and m_w of four blocks or pieces of ROWS rows, from block or piece b of row `row`
 * on: lanes are rows. */
typedef struct direct_scales4 {
    reals d[4][2], min[4];
} direct_scales4;

INLINE direct_scales4 direct_scales_of(int32_t dtype, const direct_terms *t, int32_t row, int32_t b,
                                       int32_t blocks, const mm2_weight *w)
{
    direct_scales4 s;
    words x[4];
    const int32_t at = row * blocks + b;
    if (mm2_is_block(dtype)) {
        const int each = pieces_of(dtype);
        transpose4(x, (const uint8_t *)(t->head + at / each), blocks / each * 4);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            head_piece(dtype, s.d[j], s.min + j, x[j / each], j % each);
#pragma GCC unroll 2
            for (int i = 0; i < 2 && dtype == MM2_NVFP4; i++)
                s.d[j][i] = reals_times(s.d[j][i], w->global);
        }
        return s;
    }
    const int spans = mm2_is_super(dtype) ? 1 : spans_of(dtype);
#pragma GCC unroll 2
    for (int i = 0; i < spans; i++) {
        transpose4(x, (const uint8_t *)(t->d + i * DIRECT_SECOND + at), blocks * 4);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            s.d[j][i] = reals_of(x[j]);
    }
    if (has_minima(dtype)) {
        transpose4(x, (const uint8_t *)(t->min + at), blocks * 4);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            s.min[j] = reals_of(x[j]);
    }
    return s;
}

/* Adds up the terms of `vectors` * ROWS rows, `blocks` blocks or pieces each: lanes are rows. d: scales
 * of the activations; asum: sums of their pieces, for m_w. What the last step takes beyond a row is not
 * used. Nothing is read from memory meanwhile; CHAIN_LINES lines from `next` on are prefetched with four
 * blocks. */
INLINE void direct_sums(int32_t dtype, int acts, int vectors,
                        reals y[DIRECT_ACTS][CHAIN_ROWS / ROWS], const direct_terms *t,
                        const float *const *d, const int32_t *const *asum, int32_t blocks,
                        const mm2_weight *w, const uint8_t *next)
{
    const int spans = mm2_is_super(dtype) ? 1 : spans_of(dtype);
    const int least = has_minima(dtype) && mm2_is_super(dtype), minima = has_minima(dtype);
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            y[m][v] = reals_zero();
    for (int32_t b = 0; b < blocks; b += 4, next += CHAIN_LINES * 64) {
        prefetch(next, CHAIN_LINES * 64);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            direct_scales4 scales = direct_scales_of(dtype, t, v * ROWS, b, blocks, w);
            int32_t at = v * ROWS * blocks + b;
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++) {
                words sum[2][4], msum[4];
#pragma GCC unroll 2
                for (int s = 0; s < spans; s++)
                    transpose4(sum[s], (const uint8_t *)(t->sum[m] + s * DIRECT_SECOND + at),
                               blocks * 4);
                if (least)
                    transpose4(msum, (const uint8_t *)(t->least[m] + at), blocks * 4);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    if (b + j == blocks)
                        break;
                    float a = d[m][b + j];
#pragma GCC unroll 2
                    for (int s = 0; s < spans; s++)
                        y[m][v] =
                            reals_fma(reals_times(scales.d[j][s], a), reals_of(sum[s][j]), y[m][v]);
                    if (least)
                        y[m][v] =
                            reals_fnma(reals_times(scales.min[j], a), reals_of(msum[j]), y[m][v]);
                    else if (minima)
                        y[m][v] = reals_fma(reals_times(scales.min[j], a),
                                            reals_from_words(words_set1(asum[m][b + j])), y[m][v]);
                }
            }
        }
    }
}

/* The sums of `rows` rows, from i on. */
INLINE void direct_chain(int32_t dtype, int acts, float *const *out, int32_t i,
                         const direct_terms *t, const float *const *d, const int32_t *const *asum,
                         int32_t rows, int32_t blocks, const mm2_weight *w, const uint8_t *next)
{
    reals y[DIRECT_ACTS][CHAIN_ROWS / ROWS];
    int vectors = rows > ROWS ? CHAIN_ROWS / ROWS : 1;
    if (vectors > 1)
        direct_sums(dtype, acts, CHAIN_ROWS / ROWS, y, t, d, asum, blocks, w, next);
    else
        direct_sums(dtype, acts, 1, y, t, d, asum, blocks, w, next);
    for (int m = 0; m < acts; m++)
        for (int v = 0; v < vectors; v++)
            reals_store_n(out[m] + i + v * ROWS, y[m][v], rows - v * ROWS);
}

/* Blocks [at, at + n) of `total`, where they are or, if there are not so many, in a copy that ends with
 * zeros. */
INLINE const uint8_t *direct_blocks(int32_t n, const uint8_t *p, int32_t at, int32_t total,
                                    int32_t bytes, uint8_t *copy)
{
    p += (int64_t)at * bytes;
    if (total - at >= n)
        return p;
    memset(copy, 0, (size_t)(n * bytes));
    memcpy(copy, p, (size_t)((total - at) * bytes));
    return copy;
}

INLINE const uint8_t *direct_group(const uint8_t *p, int32_t at, int32_t total, int32_t bytes,
                                   uint8_t *copy)
{
    return direct_blocks(ROWS, p, at, total, bytes, copy);
}

/* What lies 64 bytes apart in [from, to): parts of a group prefetch no line twice. `lead`: the lines
 * that a chain has prefetched are that much more into the second-level cache than usual. */
INLINE void prefetch_lines(const uint8_t *group, int32_t from, int32_t to, int32_t lead)
{
#pragma GCC unroll 8
    for (int32_t i = (from + 63) / 64 * 64; i < to; i += 64)
        prefetch_stream(group + i, lead);
}

/* ---- Super-blocks of 256 ---- */

typedef struct direct_super_act {
    _Alignas(64) int8_t code[DIRECT_SUPERS][4 * ACT_PAIR]; /* in the order of direct_super_sum */
    int16_t sums[DIRECT_SUPERS][16]; /* of 16 codes each, times direct_factor */
    int32_t pairs[8][DIRECT_SUPERS]; /* of 16 codes, for Q4_K and Q5_K of 32, two by two */
} direct_super_act;

/* What the formats differ in, but for their codes. */
typedef struct direct_super_facts {
    int order; /* in which codes come, and therefore activations are put */
    int scales; /* where a block has its 16 scales as bytes; -1: they are unpacked into direct_heads */
    int factor; /* of the sums that make up for codes without their offset; 0: nothing does */
    int shift;  /* bits that the sum of products is too far up */
} direct_super_facts;

enum { PLAIN, NIBBLES, QUARTERS, LANES }; /* NIBBLES: 32 bytes a pair; QUARTERS: 32 bytes a half */

#define DIRECT_FACTS_q2_k                                                                          \
    {                                                                                              \
        QUARTERS, -1, 0, 0                                                                         \
    }
#define DIRECT_FACTS_q3_k                                                                          \
    {                                                                                              \
        QUARTERS, -1, -4, Q3_K_SHIFT                                                               \
    }
#define DIRECT_FACTS_q4_k                                                                          \
    {                                                                                              \
        NIBBLES, -1, 0, 0                                                                          \
    }
#define DIRECT_FACTS_q5_k                                                                          \
    {                                                                                              \
        NIBBLES, -1, 0, 0                                                                          \
    }
#define DIRECT_FACTS_q6_k                                                                          \
    {                                                                                              \
        PLAIN, offsetof(mm2_block_q6_k, scales), -16, 0                                            \
    }
#define DIRECT_FACTS_iq4_xs                                                                        \
    {                                                                                              \
        LANES, -1, -16, 0                                                                          \
    }

INLINE direct_super_facts direct_facts_of(int32_t dtype)
{
    switch (dtype) {
#define FACTS(ID, name, ...)                                                                       \
    case MM2_##ID:                                                                                 \
        return (direct_super_facts)DIRECT_FACTS_##name;
        MM2_SUPERS(FACTS)
#undef FACTS
    }
    __builtin_unreachable();
}

/* Pieces of 32 activations in the order of the codes; those of LANES as acts_iq4_xs has them. */
INLINE void direct_super_prepare(int32_t dtype, direct_super_act *x, const int8_t *act, int32_t n)
{
    static const uint8_t orders[][8] = {[PLAIN] = {0, 1, 2, 3, 4, 5, 6, 7},
                                        [NIBBLES] = {0, 2, 1, 3, 4, 6, 5, 7},
                                        [QUARTERS] = {0, 4, 1, 5, 2, 6, 3, 7},
                                        [LANES] = {0}};
    const direct_super_facts facts = direct_facts_of(dtype);
    const uint8_t *order = orders[facts.order];
    int32_t blocks = n / MM2_SUPER;
    const int16_t *sums = (const int16_t *)(act + n + blocks * 4);
    for (int32_t b = 0, from = 0; b < blocks + ROWS; b++, from = from + 1 < blocks ? from + 1 : 0) {
        if (facts.order == LANES)
            acts_iq4_xs(x->code[b], act + from * MM2_SUPER);
        for (int i = 0; i < 8; i++) {
            const int16_t *s = sums + from * 16 + i * 2;
            int16_t wide[2] = {s[0], s[1]};
            if (facts.order != LANES)
                memcpy(x->code[b] + i * 32, act + from * MM2_SUPER + order[i] * 32, 32);
            if (!has_minima(dtype) || (is_wide(dtype) && i >= 4))
                continue;
            s = sums + from * 16 + i * 4;
            if (is_wide(dtype))
                wide[0] = (int16_t)(s[0] + s[1]), wide[1] = (int16_t)(s[2] + s[3]);
            memcpy(&x->pairs[i][b], wide, 4);
        }
        for (int i = 0; i < 16 && facts.factor; i++) {
            int at = facts.order == LANES ? i % 4 * 4 + i / 4 % 2 * 2 + i / 8 : i;
            x->sums[b][i] = (int16_t)(sums[from * 16 + at] * facts.factor);
        }
    }
}

/* What ROWS blocks have beside their codes: 16 bytes of scales a block in the order of the spread
 * tables below (Q6_K has them so in the file), minima as pairs of int16, d and dmin. */
typedef struct direct_heads {
    _Alignas(64) uint8_t scales[ROWS][16];
    words min[8]; /* Q4_K and Q5_K, with their 32 codes a minimum: 4 */
    reals d, dmin;
} direct_heads;

/* 8 scales and 8 minima of 6 bits, as Q4_K and Q5_K have them. */
INLINE void direct_heads_6bit(direct_heads *h, const uint8_t *p, int64_t stride)
{
    words x[4], scale[4], min[2];
    transpose4(x, p, stride);
    h->d = reals_from_half(x[0]);
    h->dmin = reals_from_half(words_shr(x[0], 16));
    scale[0] = words_bits(x[1], 0, LOW6);
    scale[1] = words_or(words_bits(x[3], 0, LOW4), words_shl(words_bits(x[1], 6, LOW2), 4));
    scale[2] = scale[3] = words_set1(0);
    min[0] = words_bits(x[2], 0, LOW6);
    min[1] = words_or(words_bits(x[3], 4, LOW4), words_shl(words_bits(x[2], 6, LOW2), 4));
    untranspose4(h->scales, scale);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        h->min[i] = words_widen(min[i / 2], i % 2);
}

INLINE void direct_heads_q4_k(direct_heads *h, const uint8_t *p, int64_t stride)
{
    direct_heads_6bit(h, p, stride);
}

INLINE void direct_heads_q5_k(direct_heads *h, const uint8_t *p, int64_t stride)
{
    direct_heads_6bit(h, p, stride);
}

INLINE void direct_heads_q2_k(direct_heads *h, const uint8_t *p, int64_t stride)
{
    words x[4], scale[4];
    transpose4(x, p + offsetof(mm2_block_q2_k, scales), stride);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* low nibbles are scales, high ones minima */
        words min = words_bits(x[i], 4, LOW4);
        scale[i] = words_bits(x[i], 0, LOW4);
        h->min[i * 2] = words_widen(min, 0);
        h->min[i * 2 + 1] = words_widen(min, 1);
    }
    untranspose4(h->scales, scale);
    transpose4(x, p + offsetof(mm2_block_q2_k, d) - 12, stride);
    h->d = reals_from_half(x[3]);
    h->dmin = reals_from_half(words_shr(x[3], 16));
}

INLINE void direct_heads_q3_k(direct_heads *h, const uint8_t *p, int64_t stride)
{
    words x[4], scale[4];
    transpose4(x, p + sizeof(mm2_block_q3_k) - 16, stride);
    h->d = reals_from_half(words_shr(x[3], 16));
    unpack_q3_k_scales(scale, x);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        scale[i] = words_sub8(scale[i], 32);
    untranspose4(h->scales, scale);
}

INLINE void direct_heads_q6_k(direct_heads *h, const uint8_t *p, int64_t stride)
{
    words x[4];
    transpose4(x, p + sizeof(mm2_block_q6_k) - 16, stride);
    h->d = reals_from_half(words_shr(x[3], 16));
}

/* Byte j of the second word holds the low nibbles of scales 2j and 2j + 1, nibble j above d their
 * high bits. */
INLINE void direct_heads_iq4_xs(direct_heads *h, const uint8_t *p, int64_t stride)
{
    words x[4], scale[4];
    transpose4(x, p, stride);
    h->d = reals_from_half(x[0]);
    words top = words_or(words_bits(x[0], 16, 0xff),
                         words_shl(words_bits(x[0], 24, 0xff), 16)); /* nibbles to bytes */
    top = words_and(words_or(top, words_shl(top, 4)), words_set1(LOW4));
    words even = words_or(words_bits(x[1], 0, LOW4), words_shl(words_bits(top, 0, LOW2), 4));
    words odd = words_or(words_bits(x[1], 4, LOW4), words_shl(words_bits(top, 2, LOW2), 4));
    scale[0] = scale[2] = words_sub8(even, 32);
    scale[1] = scale[3] = words_sub8(odd, 32);
    untranspose4(h->scales, scale);
}

INLINE void direct_heads_fill(int32_t dtype, direct_heads *h, const uint8_t *p, int64_t stride)
{
    switch (dtype) {
#define HEADS(ID, name, ...)                                                                       \
    case MM2_##ID:                                                                                 \
        direct_heads_##name(h, p, stride);                                                         \
        return;
        MM2_SUPERS(HEADS)
#undef HEADS
    }
    __builtin_unreachable();
}

/* For each of the four groups of 16 codes among 64: the byte of the 16 that is its scale. */
// clang-format off
static const uint8_t spread_nibbles[4][4] = {{0, 0, 2, 2}, {1, 1, 3, 3}, {4, 4, 6, 6}, {5, 5, 7, 7}};
static const uint8_t spread_quarters[4][4] = {{0, 1, 8, 9}, {2, 3, 10, 11}, {4, 5, 12, 13}, {6, 7, 14, 15}};
static const uint8_t spread_plain[4][4] = {{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}};
// clang-format on

/* direct_dot of every activation row: codes with those from `at` on of block b. */
INLINE void direct_dots(int acts, words *sum, bytes64 c, const direct_super_act *x, int32_t b,
                        int32_t at, bytes64 scales)
{
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
        sum[m] = direct_dot(sum[m], c, x[m].code[b] + at, scales);
}

/* direct_offset likewise. */
INLINE void direct_offsets(int acts, words *sum, const uint8_t scales[16],
                           const direct_super_act *x, int32_t b, int shift)
{
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
        sum[m] = direct_offset(sum[m], scales, x[m].sums[b], shift);
}

/* Partial sums over one super-block, with block b of each activation row, of scale * (code *
 * activation); where codes are taken without their offset, sums * scale makes up for it. */

INLINE void direct_sum_q2_k(int acts, words *sum, const uint8_t *p, const uint8_t scales[16],
                            const direct_super_act *x, int32_t b)
{
    bytes64 s = bytes_repeat16(scales), q = bytes_load(p + offsetof(mm2_block_q2_k, q));
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        direct_dots(acts, sum, bytes_and(j ? bytes_shr(q, j * 2) : q, 3), x, b, j * 64,
                    bytes_spread(0, s, spread_quarters[j]));
}

INLINE void direct_sum_q3_k(int acts, words *sum, const uint8_t *p, const uint8_t scales[16],
                            const direct_super_act *x, int32_t b)
{
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
        sum[m] = direct_dot_q3_k(sum[m], p + offsetof(mm2_block_q3_k, q),
                                 p + offsetof(mm2_block_q3_k, high), scales, x[m].code[b]);
    direct_offsets(acts, sum, scales, x, b, Q3_K_SHIFT);
}

/* Q4_K and, with the fifth bits at `fifth`, Q5_K. */
INLINE void direct_sum_nibbles(int acts, words *sum, const uint8_t *q, const uint8_t *fifth,
                               const uint8_t scales[16], const direct_super_act *x, int32_t b)
{
    bytes64 s = bytes_repeat16(scales), high = s;
    if (fifth) /* bit b of the first, bit b + 2 of the second half come to 4; b = 0, 1, 4, 5 */
        high = bytes_shr_halves(bytes_repeat32(fifth), 0, 2);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        bytes64 c = bytes_load(q + j / 2 * 64);
        c = bytes_and(j % 2 ? bytes_shr(c, 4) : c, 15);
        if (fifth)
            c = bytes_or_and(c,
                             j < 2   ? bytes_shl(high, 4 - j)
                             : j > 2 ? bytes_shr(high, 1)
                                     : high,
                             16);
        direct_dots(acts, sum, c, x, b, j * 64, bytes_spread(0, s, spread_nibbles[j]));
    }
}

INLINE void direct_sum_q4_k(int acts, words *sum, const uint8_t *p, const uint8_t scales[16],
                            const direct_super_act *x, int32_t b)
{
    direct_sum_nibbles(acts, sum, p + offsetof(mm2_block_q4_k, q), NULL, scales, x, b);
}

INLINE void direct_sum_q5_k(int acts, words *sum, const uint8_t *p, const uint8_t scales[16],
                            const direct_super_act *x, int32_t b)
{
    direct_sum_nibbles(acts, sum, p + offsetof(mm2_block_q5_k, q),
                       p + offsetof(mm2_block_q5_k, high), scales, x, b);
}

INLINE void direct_sum_q6_k(int acts, words *sum, const uint8_t *p, const uint8_t scales[16],
                            const direct_super_act *x, int32_t b)
{
    bytes64 s = bytes_repeat16(scales);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        bytes64 low = bytes_load(p + half * 64);
        bytes64 high = bytes_repeat32(p + offsetof(mm2_block_q6_k, high) + half * 32);
        bytes64 c = bytes_or_and(bytes_and(low, 15), bytes_shl_halves(high, 4, 2), 0x30);
        direct_dots(acts, sum, c, x, b, half * 128, bytes_spread(1, s, spread_plain[half * 2]));
        c = bytes_or_and(bytes_and(bytes_shr(low, 4), 15), bytes_shr_halves(high, 0, 2), 0x30);
        direct_dots(acts, sum, c, x, b, half * 128 + 64,
                    bytes_spread(1, s, spread_plain[half * 2 + 1]));
    }
    direct_offsets(acts, sum, scales, x, b, 1);
}

INLINE void direct_sum_iq4_xs(int acts, words *sum, const uint8_t *p, const uint8_t scales[16],
                              const direct_super_act *x, int32_t b)
{
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
        sum[m] = direct_dot_iq4_xs(sum[m], p + offsetof(mm2_block_iq4_xs, q), scales, x[m].code[b]);
    if (SIGNED_BIAS)
        direct_offsets(acts, sum, scales, x, b, 3);
}

INLINE void direct_super_sum(int32_t dtype, int acts, words *sum, const uint8_t *p,
                             const uint8_t scales[16], const direct_super_act *x, int32_t b)
{
    switch (dtype) {
#define SUM(ID, name, ...)                                                                         \
    case MM2_##ID:                                                                                 \
        direct_sum_##name(acts, sum, p, scales, x, b);                                             \
        return;
        MM2_SUPERS(SUM)
#undef SUM
    }
    __builtin_unreachable();
}

INLINE const uint8_t *direct_scales(int32_t dtype, const direct_heads *h, const uint8_t *p, int l)
{
    int at = direct_facts_of(dtype).scales;
    return at >= 0 ? p + l * block_bytes(dtype) + at
                   : h->scales[l % 4 * (ROWS / 4) + l / 4]; /* as untranspose4 leaves them */
}

INLINE void direct_super_terms(int32_t dtype, int acts, direct_terms *t, int32_t at,
                               const uint8_t *p, const direct_super_act *x, int32_t b)
{
    words sum[DIRECT_ACTS][ROWS];
    direct_heads h;
    int minima = !has_minima(dtype) ? 0 : is_wide(dtype) ? 4 : 8; /* words of them */
    direct_heads_fill(dtype, &h, p, block_bytes(dtype));
    reals_store(t->d + at, h.d);
    if (minima)
        reals_store(t->min + at, h.dmin);
#pragma GCC unroll 4
    for (int m = 0; m < acts && minima; m++) { /* before the codes, which need the registers */
        words least = words_set1(0);
#pragma GCC unroll 8
        for (int i = 0; i < minima; i++)
            least = words_dot16(least, h.min[i], words_load(x[m].pairs[i] + b));
        reals_store(t->least[m] + at, reals_from_words(least));
    }
    /* Unrolled, gcc 12 spills most of what it computes. */
#pragma GCC unroll 1
    for (int l = 0; l < ROWS; l++) { /* all prefetches at once would fill the line buffers */
        words some[DIRECT_ACTS];
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            some[m] = words_set1(0);
        prefetch_lines(p + l * block_bytes(dtype), 0, block_bytes(dtype), 0);
        direct_super_sum(dtype, acts, some, p + l * block_bytes(dtype),
                         direct_scales(dtype, &h, p, l), x, b + l);
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m][l] = some[m];
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++) {
        words isum = words_sums(sum[m]);
        if (direct_facts_of(dtype).shift)
            isum = words_sar(isum, direct_facts_of(dtype).shift);
        reals_store(t->sum[m] + at, reals_from_words(isum));
    }
}

INLINE void matmul_super_direct(int32_t dtype, int acts, float *const *out, const mm2_weight *w,
                                int32_t first, int32_t count, const int8_t *const *act)
{
    _Alignas(64) uint8_t copy[ROWS * sizeof(mm2_block_q6_k)];
    direct_super_act x[DIRECT_ACTS];
    const float *d[DIRECT_ACTS];
    direct_terms t;
    int32_t blocks = w->n_in / MM2_SUPER, bytes = block_bytes(dtype);
    for (int m = 0; m < acts; m++) {
        direct_super_prepare(dtype, x + m, act[m], w->n_in);
        d[m] = (const float *)(act[m] + w->n_in);
    }
    const uint8_t *p = (const uint8_t *)w->data + first * w->row_bytes;
    for (int32_t i = 0; i < count; i += CHAIN_ROWS, p += CHAIN_ROWS * w->row_bytes) {
        int32_t rows = smaller(CHAIN_ROWS, count - i), total = rows * blocks;
        for (int32_t at = 0, b = 0; at < total; at += ROWS) {
            direct_super_terms(dtype, acts, &t, at, direct_group(p, at, total, bytes, copy), x, b);
            for (b += ROWS; b >= blocks;)
                b -= blocks;
        }
        direct_chain(dtype, acts, out, i, &t, d, NULL, rows, blocks, w,
                     p + rows * w->row_bytes + stream_far);
    }
}
