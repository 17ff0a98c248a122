/* Weights as they lie in the file to tiles: what the products of body_packed.h multiply.
 *
 * A chunk is 32 weight rows, two tiles, by 256 bytes of k: 256 integer codes or, of FP8, 128 as
 * bf16. It is filled row by row with the row's codes in the order of k, so nothing is transposed.
 *
 * The integer scale of a sub-block is folded into its codes, so that the tiles add up a whole
 * super-block without a stop. The products need more than a byte; they are split into two planes
 * whose sums are joined afterwards, isum = high << shift + low, exactly:
 *   Q2_K         code * scale <= 45: one plane.
 *   Q3_K         (4 - code) * scale is in -128..124, the negative of what is wanted: one plane, and
 *                isum = -low. Computed modulo 256.
 *   Q4_K, Q5_K   code * (scale >> 3) and code * (scale & 7) <= 217: unsigned bytes, shift 3.
 *   Q6_K, IQ4_XS the product has 13 bits and a sign; its upper and its lower 7 bits, shift 7.
 *   IQ1, IQ2, IQ3  the same, with at most 11 bits; TQ1_0 and TQ2_0 are their codes.
 *
 * A last chunk with fewer than 32 rows, or FP8 codes, is filled from a copy that zeros complete. */

enum {
    TILE = 16,           /* rows of a tile */
    PAIR = 32,           /* weight rows of a chunk */
    CHUNK_PIECES = 8,    /* pieces of 32 in a chunk */
    PREFETCH_CHUNKS = 1, /* ahead in the same rows, into the first-level cache */
    PREFETCH_PAIRS = 1,  /* ahead in the order of the file, into the second */
    FILL_BYTES = PAIR * CHUNK_PIECES * (int)sizeof(mm2_block_q8_0) /* the largest chunk of a file */
};

typedef struct chunk {
    _Alignas(64) uint8_t a[2][2][4][TILE][64]; /* [plane, low first][tile][step][row] */
    /* By row: d and m (or zero point) of each piece; of a super-block d, then dmin; of FP8 the scale. */
    float d[CHUNK_PIECES][PAIR], m[CHUNK_PIECES][PAIR];
    int32_t min[8][PAIR]; /* minima, pairs of int16; where sub-blocks have 32 codes, four */
} chunk;

/* The chunk in the making. */
typedef struct filling {
    const mm2_weight *w;
    int32_t first, count; /* of the call */
    int32_t row, k;       /* where the chunk begins: row from `first` on, element */
    int32_t done;         /* rows that are filled */
    const uint8_t *p;     /* row 0 of the chunk, and the distance of rows */
    int64_t stride;
    float scale;         /* FP8: of the row before */
    const uint8_t *line; /* the stream that is prefetched, up to here */
    chunk *to;           /* NULL: there is none left */
    direct_heads heads;  /* of the tile in hand: super-blocks */
    _Alignas(64) uint8_t copy[FILL_BYTES];
} filling;

/* What the planes of a format of super-blocks are: how many, how far the upper one is up, and whether
 * their sum is the negative of what is wanted. */
typedef struct fill_facts {
    int planes, shift, negative;
} fill_facts;

#define FILL_FACTS_q2_k                                                                            \
    {                                                                                              \
        1, 0, 0                                                                                    \
    }
#define FILL_FACTS_q3_k                                                                            \
    {                                                                                              \
        1, 0, 1                                                                                    \
    }
#define FILL_FACTS_q4_k                                                                            \
    {                                                                                              \
        2, 3, 0                                                                                    \
    }
#define FILL_FACTS_q5_k                                                                            \
    {                                                                                              \
        2, 3, 0                                                                                    \
    }
#define FILL_FACTS_q6_k                                                                            \
    {                                                                                              \
        2, 7, 0                                                                                    \
    }
#define FILL_FACTS_iq4_xs                                                                          \
    {                                                                                              \
        2, 7, 0                                                                                    \
    }

/* One plane for blocks, planes of the file, FP8 and ternary codes, whose scales are 1. */
INLINE fill_facts fill_facts_of(int32_t dtype)
{
    switch (dtype) {
#define FACTS(ID, name, ...)                                                                       \
    case MM2_##ID:                                                                                 \
        return (fill_facts)FILL_FACTS_##name;
        MM2_SUPERS(FACTS)
#undef FACTS
    }
    if (mm2_is_codebook(dtype) && dtype != MM2_TQ1_0 && dtype != MM2_TQ2_0)
        return (fill_facts){2, 7, 0};
    return (fill_facts){1, 0, 0};
}

/* Are products made on tiles? A scale for 16 codes of a piece leaves three quarters of a tile idle, and
 * every sum to be scaled: panels are faster. */
INLINE int has_tiles(int32_t dtype)
{
    return !is_piecewise(dtype) || spans_of(dtype) == 1;
}

INLINE int has_two_planes(int32_t dtype)
{
    return fill_facts_of(dtype).planes == 2;
}

/* Elements of k in a chunk, and bytes of a row of it in the file. */
INLINE int32_t chunk_span(int32_t dtype)
{
    return dtype == MM2_F8_E4M3 ? SCALE_SPAN : MM2_SUPER;
}

INLINE int32_t chunk_bytes(int32_t dtype)
{
    return chunk_span(dtype) / mm2_format_of(dtype).elements * mm2_format_of(dtype).bytes;
}

/* ---- Rows ---- */

/* Codes 64 t to 64 t + 63 of a super-block, as the file has them: without their offset; values of
 * IQ4_XS plus 128. */

/* Two bits of each code. */
INLINE bytes64 quarter_codes(const uint8_t *q, int t)
{
    return bytes_and(bytes_shr_halves(bytes_repeat32(q + t / 2 * 32), t % 2 * 4, t % 2 * 4 + 2), 3);
}

INLINE bytes64 nibble_codes(const uint8_t *q, int t)
{
    return bytes_and(bytes_shr_halves(bytes_repeat32(q + t * 32), 0, 4), 15);
}

INLINE bytes64 fill_codes_q2_k(const uint8_t *p, int t)
{
    return quarter_codes(p + offsetof(mm2_block_q2_k, q), t);
}

INLINE bytes64 fill_codes_q3_k(const uint8_t *p, int t)
{
    bytes64 high = bytes_repeat32(p + offsetof(mm2_block_q3_k, high));
    high = t == 0 ? bytes_shl_halves(high, 2, 1)
                  : bytes_shr_halves(high, t * 2 - 2, t * 2 - 1); /* bits 2t, 2t + 1 to 2 */
    return bytes_or_and(quarter_codes(p + offsetof(mm2_block_q3_k, q), t), high, 4);
}

INLINE bytes64 fill_codes_q4_k(const uint8_t *p, int t)
{
    return nibble_codes(p + offsetof(mm2_block_q4_k, q), t);
}

INLINE bytes64 fill_codes_q5_k(const uint8_t *p, int t)
{
    bytes64 high = bytes_repeat32(p + offsetof(mm2_block_q5_k, high));
    high = t < 2 ? bytes_shl_halves(high, 4 - t * 2, 3 - t * 2)
                 : bytes_shr_halves(high, t * 2 - 4, t * 2 - 3); /* bits 2t, 2t + 1 to 4 */
    return bytes_or_and(nibble_codes(p + offsetof(mm2_block_q5_k, q), t), high, 16);
}

INLINE bytes64 fill_codes_q6_k(const uint8_t *p, int t)
{
    bytes64 c = bytes_load(p + t / 2 * 64);
    bytes64 high = bytes_repeat32(p + offsetof(mm2_block_q6_k, high) + t / 2 * 32);
    high = t % 2 ? bytes_shr_halves(high, 0, 2) : bytes_shl_halves(high, 4, 2);
    return bytes_or_and(bytes_and(t % 2 ? bytes_shr(c, 4) : c, 15), high, 0x30);
}

INLINE bytes64 fill_codes_iq4_xs(const uint8_t *p, int t)
{
    p += offsetof(mm2_block_iq4_xs, q) + t * 32;
    return bytes_iq4(bytes_nibbles(p, p + 16));
}

/* The even bytes of a, the odd ones of b. */
INLINE bytes64 bytes_of_words(bytes64 a, bytes64 b)
{
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi16(0xff), 0xe4);
}

/* Bytes times the words of s, modulo 256. */
INLINE bytes64 bytes_times(bytes64 a, bytes64 s)
{
    bytes64 odd = _mm512_mullo_epi16(_mm512_and_si512(a, _mm512_set1_epi16((short)0xff00)), s);
    return bytes_of_words(_mm512_mullo_epi16(a, s), odd);
}

/* Unsigned bytes times the words of s, all products below 256. */
INLINE bytes64 bytes_times_small(bytes64 a, bytes64 s)
{
    return _mm512_mullo_epi16(a, s);
}

/* (byte - 2^offset) * s in two planes: the lower 7 bits, and what is above. */
INLINE void bytes_times_wide(bytes64 a, bytes64 s, int offset, uint8_t *low, uint8_t *high)
{
    bytes64 less = _mm512_slli_epi16(s, (unsigned)offset);
    bytes64 even = _mm512_and_si512(a, _mm512_set1_epi16(0xff)), odd = _mm512_srli_epi16(a, 8);
    even = _mm512_sub_epi16(_mm512_mullo_epi16(even, s), less);
    odd = _mm512_sub_epi16(_mm512_mullo_epi16(odd, s), less);
    _mm512_store_si512(low, bytes_and(bytes_of_words(even, bytes_shl(odd, 8)), 0x7f));
    _mm512_store_si512(high, bytes_of_words(bytes_shr(even, 7), bytes_shl(odd, 1)));
}

/* Controls that spread four of 16 scales over the words of 64 codes: into the lower halves of words,
 * or into the upper ones, to be sign-extended. They are in memory because a compiler that builds
 * them anew for every row spends more on them than on the codes. */
// clang-format off
#define FOUR(...) __VA_ARGS__, __VA_ARGS__, __VA_ARGS__, __VA_ARGS__
#define LOWER(i) FOUR(i, 0x80, i, 0x80)
#define UPPER(i) FOUR(0x80, i, 0x80, i)
#define SPREAD(half, a, b, c, d) {half(a), half(b), half(c), half(d)}
static const _Alignas(64) uint8_t lower_16[4][64] = { /* a scale for 16 codes */
    SPREAD(LOWER, 0, 1, 2, 3), SPREAD(LOWER, 4, 5, 6, 7),
    SPREAD(LOWER, 8, 9, 10, 11), SPREAD(LOWER, 12, 13, 14, 15)};
static const _Alignas(64) uint8_t lower_32[4][64] = { /* for 32 */
    SPREAD(LOWER, 0, 0, 1, 1), SPREAD(LOWER, 2, 2, 3, 3),
    SPREAD(LOWER, 4, 4, 5, 5), SPREAD(LOWER, 6, 6, 7, 7)};
static const _Alignas(64) uint8_t upper_16[4][64] = {
    SPREAD(UPPER, 0, 1, 2, 3), SPREAD(UPPER, 4, 5, 6, 7),
    SPREAD(UPPER, 8, 9, 10, 11), SPREAD(UPPER, 12, 13, 14, 15)};
static const _Alignas(64) uint8_t upper_iq4[4][64] = { /* for 32; the even scales, then the odd ones */
    SPREAD(UPPER, 0, 0, 4, 4), SPREAD(UPPER, 1, 1, 5, 5),
    SPREAD(UPPER, 2, 2, 6, 6), SPREAD(UPPER, 3, 3, 7, 7)};
// clang-format on

INLINE bytes64 spread(bytes64 scales, const uint8_t control[64])
{
    return _mm512_shuffle_epi8(scales, _mm512_load_si512(control));
}

INLINE bytes64 spread_signed(bytes64 scales, const uint8_t control[64])
{
    return _mm512_srai_epi16(spread(scales, control), 8);
}

/* Codes 64 t to 64 t + 63 times their scales s, to the planes. */

INLINE void fill_planes_q2_k(bytes64 q, bytes64 s, int t, uint8_t *low, uint8_t *high)
{
    _mm512_store_si512(low, bytes_times_small(q, spread(s, lower_16[t])));
}

INLINE void fill_planes_q3_k(bytes64 q, bytes64 s, int t, uint8_t *low, uint8_t *high)
{
    q = _mm512_sub_epi8(_mm512_set1_epi8(4), q);
    _mm512_store_si512(low, bytes_times(q, spread(s, lower_16[t])));
}

INLINE void fill_planes_q4_k(bytes64 q, bytes64 s, int t, uint8_t *low, uint8_t *high)
{
    bytes64 lower = spread(bytes_and(s, 7), lower_32[t]);
    bytes64 upper = spread(bytes_and(bytes_shr(s, 3), 7), lower_32[t]);
    _mm512_store_si512(low, bytes_times_small(q, lower));
    _mm512_store_si512(high, bytes_times_small(q, upper));
}

#define fill_planes_q5_k fill_planes_q4_k

INLINE void fill_planes_q6_k(bytes64 q, bytes64 s, int t, uint8_t *low, uint8_t *high)
{
    bytes_times_wide(q, spread_signed(s, upper_16[t]), 5, low, high);
}

INLINE void fill_planes_iq4_xs(bytes64 q, bytes64 s, int t, uint8_t *low, uint8_t *high)
{
    bytes_times_wide(q, spread_signed(s, upper_iq4[t]), 7, low, high);
}

/* Row r of a chunk: a super-block and its 16 scales as direct_heads_fill leaves them. */
INLINE void fill_super(int32_t dtype, chunk *c, uint32_t r, const uint8_t *p, const uint8_t *scales)
{
    bytes64 s = bytes_repeat16(scales);
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
        uint8_t *low = c->a[0][r / TILE][t][r % TILE], *high = c->a[1][r / TILE][t][r % TILE];
        switch (dtype) {
#define FILL(ID, name, ...)                                                                        \
    case MM2_##ID:                                                                                 \
        fill_planes_##name(fill_codes_##name(p, t), s, t, low, high);                              \
        break;
            MM2_SUPERS(FILL)
#undef FILL
        }
    }
}

/* Rows r and r + 1 of a chunk: codebook super-blocks at p and `stride` bytes on. */
INLINE void fill_codebooks(int32_t dtype, chunk *c, uint32_t r, const uint8_t *p, int64_t stride)
{
    mm2_codes from[2];
    codebook_open(dtype, from, 2, p, stride);
#pragma GCC unroll 2
    for (uint32_t i = 0; i < 2; i++, r++) {
        bytes64 s = bytes_repeat16(from[i].scale);
        c->d[0][r] = from[i].d;
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) {
            uint8_t *low = c->a[0][r / TILE][t][r % TILE], *high = c->a[1][r / TILE][t][r % TILE];
            bytes64 a = bytes_load((const uint8_t *)from[i].code + t * 64);
            if (has_two_planes(dtype))
                bytes_times_wide(bytes_raised(a), spread(s, lower_16[t]), 6, low, high);
            else
                _mm512_store_si512(low, a);
        }
    }
}

/* 64 codes of two pieces, nibbles too, in order. p and q are what piece_at says. */
INLINE bytes64 piece_codes(int32_t dtype, const uint8_t *p, const uint8_t *q)
{
    if (!in_nibbles(dtype))
        return direct_codes(dtype, p, q);
    p += nibbles_from(dtype), q += nibbles_from(dtype);
    bytes64 a = in_pairs(dtype) ? bytes_nibble_pairs(p, q) : bytes_nibbles(p, q);
    return mm2_format_of(dtype).bits == 5 ? bytes_values(e2m1_raised, a) : a;
}

/* Two pieces a step. A piece that there is not is a repeat, and not used. */
INLINE void fill_pieces(int32_t dtype, filling *f, uint32_t r, const uint8_t *p, int32_t pieces)
{
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
        if (t * 2 >= pieces)
            break;
        bytes64 a = piece_codes(dtype, piece_at(dtype, p, t * 2),
                                piece_at(dtype, p, t * 2 + (t * 2 + 1 < pieces)));
        a = is_signed(dtype) ? bytes_signed(a) : words_sub8(a, direct_bias(dtype));
        _mm512_store_si512(f->to->a[0][r / TILE][t][r % TILE], a);
    }
}

/* 128 codes of FP8. Step s takes the s-th word of each of the 16 qwords: words are brought together
 * within lanes, dwords across them, and a look-up and an interleaving of its bytes make bf16. */
INLINE void fill_f8(chunk *c, uint32_t r, const uint8_t *p)
{
    // clang-format off
    const __m512i words_of_lane = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    const __m512i two_steps = _mm512_setr_epi32(
        0, 4, 1, 5, 8, 12, 9, 13, 16, 20, 17, 21, 24, 28, 25, 29);
    // clang-format on
    __m512i a = _mm512_shuffle_epi8(bytes_load(p), words_of_lane);
    __m512i b = _mm512_shuffle_epi8(bytes_load(p + 64), words_of_lane);
#pragma GCC unroll 2
    for (int s = 0; s < 4; s += 2) {
        __m512i order = _mm512_add_epi32(two_steps, _mm512_set1_epi32(s)), low, high;
        bf16_of_f8(_mm512_permutex2var_epi32(a, order, b), &low, &high);
        _mm512_store_si512(c->a[0][r / TILE][s][r % TILE], _mm512_unpacklo_epi8(low, high));
        _mm512_store_si512(c->a[0][r / TILE][s + 1][r % TILE], _mm512_unpackhi_epi8(low, high));
    }
}

/* ---- What belongs to 16 rows ---- */

/* Before the rows of a tile of super-blocks. */
INLINE void fill_heads(int32_t dtype, filling *f)
{
    const direct_heads *h = &f->heads;
    int32_t r = f->done;
    direct_heads_fill(dtype, &f->heads, f->p + r * f->stride, f->stride);
    reals_store(f->to->d[0] + r, h->d);
    if (!has_minima(dtype))
        return;
    reals_store(f->to->d[1] + r, h->dmin);
    int minima = is_wide(dtype) ? 4 : 8; /* words of them */
#pragma GCC unroll 8
    for (int i = 0; i < minima; i++)
        _mm512_storeu_si512(f->to->min[i] + r, h->min[i]);
}

/* After the rows of a tile of pieces: scales and minima of TILE rows, from `begin` on. */
INLINE void fill_scales(int32_t dtype, filling *f, int32_t begin, int32_t pieces)
{
    piece_heads h;
    heads_of_pieces(dtype, &h, f->w, f->first, f->count, f->row + begin, f->k, pieces,
                    f->p + begin * f->stride, f->stride);
    for (int32_t b = 0; b < pieces; b++) {
        reals_store(f->to->d[b] + begin, h.d[b]);
        if (has_minima(dtype) || has_zeros(dtype, f->w))
            reals_store(f->to->m[b] + begin, h.m[b]);
    }
}

/* FP8: the scale of row r, looked up where it changes. */
INLINE float f8_scale(filling *f, int32_t r)
{
    int32_t step, rows = f->w->scale_rows ? f->w->scale_rows : SCALE_SPAN;
    if (r == 0 || ((int64_t)f->first + f->row + r + f->w->scale_row) % rows == 0) {
        const float *scale = scale_row(f->w, f->first, f->count, f->row + r, &step);
        f->scale = scale[f->k / SCALE_SPAN * step];
    }
    return f->scale;
}

/* ---- Chunks ---- */

/* Looks at the chunk that begins at (row, k). */
INLINE void filling_open(int32_t dtype, filling *f, chunk *to)
{
    const mm2_weight *w = f->w;
    f->to = f->row < f->count ? to : NULL;
    f->done = f->to ? 0 : PAIR;
    if (!f->to)
        return;
    int32_t rows = smaller(PAIR, f->count - f->row),
            span = smaller(chunk_span(dtype), w->n_in - f->k);
    int64_t at = (int64_t)f->k / mm2_format_of(dtype).elements * block_bytes(dtype);
    f->p = (const uint8_t *)w->data + ((int64_t)f->first + f->row) * w->row_bytes + at;
    f->stride = w->row_bytes;
    if (f->k == 0)
        f->line = f->p + PREFETCH_PAIRS * PAIR * w->row_bytes;
    if (rows == PAIR && (dtype != MM2_F8_E4M3 || span == SCALE_SPAN))
        return;
    int32_t bytes = span / mm2_format_of(dtype).elements * block_bytes(dtype);
    memset(f->copy, 0, (size_t)(PAIR * chunk_bytes(dtype)));
    for (int32_t r = 0; r < rows; r++)
        memcpy(f->copy + r * chunk_bytes(dtype), f->p + r * w->row_bytes, (size_t)bytes);
    f->p = f->copy;
    f->stride = chunk_bytes(dtype);
}

INLINE void filling_begin(int32_t dtype, filling *f, const mm2_weight *w, int32_t first,
                          int32_t count, chunk *to)
{
    f->w = w;
    f->first = first;
    f->count = count;
    f->row = f->k = 0;
    filling_open(dtype, f, to);
}

/* On to the chunk behind. */
INLINE void filling_next(int32_t dtype, filling *f, chunk *to)
{
    f->k += chunk_span(dtype);
    if (f->k >= f->w->n_in) {
        f->k = 0;
        f->row += PAIR;
    }
    filling_open(dtype, f, to);
}

/* The next row. */
INLINE void filling_row(int32_t dtype, filling *f)
{
    int32_t r = f->done, pieces = smaller(CHUNK_PIECES, (f->w->n_in - f->k) / 32);
    const uint8_t *p = f->p + r * f->stride;
    for (int32_t i = 0; i < chunk_bytes(dtype); i += 64)
        _mm_prefetch((const char *)p + PREFETCH_CHUNKS * chunk_bytes(dtype) + i, _MM_HINT_T0);
    for (int32_t i = 0; i < chunk_bytes(dtype); i += 64)
        _mm_prefetch((const char *)f->line + i, _MM_HINT_T1);
    f->line += chunk_bytes(dtype);
    uint32_t l = (uint32_t)r % TILE;
    if (dtype == MM2_F8_E4M3) {
        fill_f8(f->to, (uint32_t)r, p);
        f->to->d[0][r] = f8_scale(f, r);
    } else if (is_piecewise(dtype)) {
        fill_pieces(dtype, f, (uint32_t)r, p, pieces);
        if (l == TILE - 1)
            fill_scales(dtype, f, r - TILE + 1, pieces);
    } else if (mm2_is_codebook(dtype)) {
        if (r % 2 == 0)
            fill_codebooks(dtype, f->to, (uint32_t)r, p, f->stride);
    } else {
        if (l == 0)
            fill_heads(dtype, f);
        /* Scales lie in the block, or as untranspose4 leaves them. */
        int at = direct_facts_of(dtype).scales;
        fill_super(dtype, f->to, (uint32_t)r, p,
                   at >= 0 ? p + at : f->heads.scales[l % 4 * 4 + l / 4]);
    }
    f->done++;
}
