/* Matrix products with packed activations on tiles.
 *
 * Weights are the A operand, 32 rows at a time (body_fill_tiles.h), activations the B operand, so lanes
 * of C are activation rows. For every chunk of 32 weight rows all groups of 16 activation rows are
 * gone through, one or two together ("a set"): the chunk is made once and stays in the first-level
 * cache, the activations stream from the second. C is stored after every set and turned into floats,
 * y += d_w * d_a * C, as kernels.h prescribes, y waiting in memory.
 *
 * Tiles and vectors are different units, and the reorder buffer holds too little to keep both busy,
 * so their work is woven by hand: between the tile products of a set the vectors settle the sums of
 * the set before and fill rows of the next chunk. `work` does the next pieces of both.
 *
 * BF16 needs none of this: its tiles are loaded from the file, and C is y. */

enum {
    SETS_ROWS = 256, /* activation rows that use a chunk before it is made again */
    SETTLE_ROWS = 4, /* weight rows of one piece of work */
    PAIR_PIECES = PAIR / SETTLE_ROWS
};

/* ---- Panels: what pack makes. Of each group of 16 rows, [16] being the rows:
 *   MM2_ACT_Q8_32    int8 q[n / 4][16][4], float d[n / 32][16], float sums[n / 32][16] of 32 codes each
 *   MM2_ACT_Q8_256   int8 q[n / 4][16][4], float d[n / 256][16], int16 sums[n / 32][16][2] of 16
 *                    codes each, int16 wide[n / 64][16][2] of 32 codes each
 *   MM2_ACT_BF16     uint16 x[n / 2][16][2], n rounded up to a multiple of 128 ---- */

/* r[j] lane m becomes r[m] lane j. */
INLINE void transpose16(__m512i r[16])
{
    __m512i t[16];
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) { /* 4 x 4 dwords within lanes */
        __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]),
                b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]);
        __m512i d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) { /* then 4 x 4 lanes */
        __m512i a = _mm512_shuffle_i32x4(t[j], t[j + 4], 0x88);
        __m512i b = _mm512_shuffle_i32x4(t[j + 8], t[j + 12], 0x88);
        __m512i c = _mm512_shuffle_i32x4(t[j], t[j + 4], 0xdd);
        __m512i d = _mm512_shuffle_i32x4(t[j + 8], t[j + 12], 0xdd);
        r[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        r[j + 4] = _mm512_shuffle_i32x4(c, d, 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
        r[j + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}

/* out[j][m] = dword j of `bytes` bytes at `offset` of activation row m; zeros for rows that there
 * are not. Returns what is behind out. */
static uint8_t *pack_dwords(uint8_t *out, const void *const *acts, int32_t rows, int64_t offset,
                            int64_t bytes)
{
    for (int64_t begin = 0; begin < bytes; begin += 64) {
        int64_t left = bytes - begin;
        __mmask64 mask = left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
        __m512i r[TILE];
        for (int32_t m = 0; m < TILE; m++)
            r[m] = m < rows
                       ? _mm512_maskz_loadu_epi8(mask, (const uint8_t *)acts[m] + offset + begin)
                       : _mm512_setzero_si512();
        transpose16(r);
        for (int64_t j = 0; j < TILE && j * 4 < left; j++, out += 64)
            _mm512_store_si512(out, r[j]);
    }
    return out;
}

static void pack_q8_32(void *panel, const void *const *acts, int32_t rows, int32_t n)
{
    uint8_t *out = panel;
    for (int32_t m = 0; m < rows; m += TILE) {
        const uint8_t *packed = out;
        out = pack_dwords(out, acts + m, smaller(TILE, rows - m), 0, n);
        out = pack_dwords(out, acts + m, smaller(TILE, rows - m), n, (int64_t)n / 32 * 4);
        for (int32_t b = 0; b < n / 32; b++, out += 64) {
            words sum = words_set1(0);
            for (int j = 0; j < 8; j++, packed += 64)
                sum = _mm512_dpbusd_epi32(sum, words_set1(EACH), _mm512_load_si512(packed));
            reals_store((float *)out, reals_from_words(sum));
        }
    }
}

static void pack_q8_256(void *panel, const void *const *acts, int32_t rows, int32_t n)
{
    uint8_t *out = panel;
    int64_t d = n, sums = d + n / MM2_SUPER * 4;
    for (int32_t m = 0; m < rows; m += TILE) {
        int32_t together = smaller(TILE, rows - m);
        out = pack_dwords(out, acts + m, together, 0, n);
        out = pack_dwords(out, acts + m, together, d, n / MM2_SUPER * 4);
        const uint8_t *narrow = out;
        out = pack_dwords(out, acts + m, together, sums, n / 16 * 2);
        for (int32_t i = 0; i < n / 64; i++, narrow += 128, out += 64) {
            const __m512i ones = _mm512_set1_epi16(1);
            __m512i a = _mm512_madd_epi16(_mm512_load_si512(narrow), ones);
            __m512i b = _mm512_madd_epi16(_mm512_load_si512(narrow + 64), ones);
            _mm512_store_si512(out, _mm512_mask_blend_epi16(0xaaaaaaaa, a, words_shl(b, 16)));
        }
    }
}

static void pack_bf16(void *panel, const void *const *acts, int32_t rows, int32_t n)
{
    uint8_t *out = panel;
    for (int32_t m = 0; m < rows; m += TILE)
        out = pack_dwords(out, acts + m, smaller(TILE, rows - m), 0,
                          ((int64_t)n + SCALE_SPAN - 1) / SCALE_SPAN * SCALE_SPAN * 2);
}

/* ---- Sets ---- */

typedef float pair_sums[PAIR][TILE]; /* y of 32 weight rows and one group */

typedef struct flow {
    filling in;
    chunk ring[2];
    /* Sums as the tiles leave them. Pieces: [set odd or even][piece], one tile. Others:
     * [plane, low first][tile * 2 + group]. */
    _Alignas(64) int32_t c[2][CHUNK_PIECES][TILE * TILE];
    /* The set that is to be settled; pointers are to what belongs to its first group. */
    const chunk *from;
    pair_sums *y;
    const uint8_t *d;    /* [16] of the panel, for each block of the chunk */
    const uint8_t *sums; /* formats with minima: [4 or 8][16] pairs; of pieces [16] floats each */
    int64_t group_bytes; /* from one group to the next */
    int32_t pieces_in;   /* pieces of 32: how many, and of which tile */
    int32_t tile;
    uint32_t piece, pieces; /* done, and all of them */
    int32_t goal;           /* rows of the next chunk that this set is to fill */
} flow;

/* SETTLE_ROWS rows of a tile of pieces. */
INLINE void settle_pieces(int32_t dtype, flow *f)
{
    uint32_t at = f->piece * SETTLE_ROWS, row = (uint32_t)f->tile * TILE + at;
    const chunk *from = f->from;
    float(*sum)[TILE] = *f->y + row;
    reals y[SETTLE_ROWS];
#pragma GCC unroll 4
    for (int j = 0; j < SETTLE_ROWS; j++)
        y[j] = reals_load(sum[j]);
    for (int32_t b = 0; b < f->pieces_in; b++) {
        reals d = reals_load((const float *)f->d + b * TILE), isum[SETTLE_ROWS];
        const float *sums = (const float *)f->sums + b * TILE;
        const int32_t *c = f->c[f->tile][b] + at * TILE;
#pragma GCC unroll 4
        for (int j = 0; j < SETTLE_ROWS; j++)
            isum[j] = reals_from_words(words_load(c + j * TILE));
        if (has_zeros(dtype, f->in.w))
#pragma GCC unroll 4
            for (int j = 0; j < SETTLE_ROWS; j++)
                isum[j] = reals_fnma(v16_set1(from->m[b][row + j]), reals_load(sums), isum[j]);
#pragma GCC unroll 4
        for (int j = 0; j < SETTLE_ROWS; j++)
            y[j] = reals_fma(reals_times(d, from->d[b][row + j]), isum[j], y[j]);
        if (!has_minima(dtype))
            continue;
#pragma GCC unroll 4
        for (int j = 0; j < SETTLE_ROWS; j++)
            y[j] = reals_fma(reals_times(d, from->m[b][row + j]), reals_load(sums), y[j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < SETTLE_ROWS; j++)
        reals_store(sum[j], y[j]);
}

INLINE words joined_planes(int32_t dtype, words low, words high)
{
    const fill_facts facts = fill_facts_of(dtype);
    if (facts.planes == 2)
        low = _mm512_add_epi32(words_shl(high, facts.shift), low);
    return facts.negative ? words_sub(words_set1(0), low) : low;
}

/* SETTLE_ROWS rows of super-blocks or FP8, and one group. */
INLINE void settle_chunk(int32_t dtype, flow *f)
{
    uint32_t group = f->piece / PAIR_PIECES, row = f->piece % PAIR_PIECES * SETTLE_ROWS;
    uint32_t tile = row / TILE * 2 + group, at = row % TILE * TILE;
    const chunk *from = f->from;
    const int32_t *low = f->c[0][tile] + at, *high = f->c[1][tile] + at;
    const float *d_a = (const float *)(f->d + group * f->group_bytes);
    const uint8_t *sums = f->sums + group * f->group_bytes;
    float(*sum)[TILE] = f->y[group] + row;
    reals y[SETTLE_ROWS];
#pragma GCC unroll 4
    for (int j = 0; j < SETTLE_ROWS; j++) {
        words c = words_load(low + j * TILE);
        y[j] = reals_load(sum[j]);
        if (dtype == MM2_F8_E4M3)
            y[j] = reals_fma(v16_set1(from->d[0][row + j]), reals_of(c), y[j]);
        else
            y[j] = reals_fma(reals_times(reals_load(d_a), from->d[0][row + j]),
                             reals_from_words(joined_planes(dtype, c, words_load(high + j * TILE))),
                             y[j]);
    }
    if (has_minima(dtype)) {
        words msum[SETTLE_ROWS];
        int pairs_of_sums = is_wide(dtype) ? 4 : 8;
#pragma GCC unroll 8
        for (int i = 0; i < pairs_of_sums; i++) {
            words a = words_load((const int32_t *)sums + i * TILE);
#pragma GCC unroll 4
            for (int j = 0; j < SETTLE_ROWS; j++)
                msum[j] =
                    words_dot16(i ? msum[j] : words_set1(0), a, words_set1(from->min[i][row + j]));
        }
#pragma GCC unroll 4
        for (int j = 0; j < SETTLE_ROWS; j++)
            y[j] = reals_fnma(reals_times(reals_load(d_a), from->d[1][row + j]),
                              reals_from_words(msum[j]), y[j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < SETTLE_ROWS; j++)
        reals_store(sum[j], y[j]);
}

INLINE void settle(int32_t dtype, flow *f)
{
    if (is_piecewise(dtype))
        settle_pieces(dtype, f);
    else
        settle_chunk(dtype, f);
    f->piece++;
}

/* The next `most` pieces: what is still to be settled comes first, for the next set writes there.
 * Each format has a function of its own that does this, not inlined where it is called from, between
 * the products: the places are many. */
INLINE void work(int32_t dtype, flow *f, int32_t most)
{
    for (; most > 0 && f->piece < f->pieces; most--)
        settle(dtype, f);
    for (; most > 0 && f->in.done < f->goal; most--)
        filling_row(dtype, &f->in);
}

typedef void (*work_function)(flow *f, int32_t most);

/* All that is left to be settled. */
INLINE void settle_rest(work_function work_on, flow *f)
{
    work_on(f, (int32_t)(f->pieces - f->piece));
}

#define TILE_DOT(dtype, c, a, b)                                                                   \
    do {                                                                                           \
        if (dtype == MM2_F8_E4M3)                                                                  \
            tile_dot_bf16(c, a, b);                                                                \
        else if (has_minima(dtype))                                                                \
            tile_dot_unsigned(c, a, b);                                                            \
        else                                                                                       \
            tile_dot_signed(c, a, b);                                                              \
    } while (0)

/* B of step t: 64 codes; or FP8's pairs 4 p + t of 64. */
INLINE const uint8_t *step_at(int32_t dtype, const uint8_t *b, int t)
{
    return b + t * (dtype == MM2_F8_E4M3 ? 64 : 1024);
}

INLINE int64_t step_stride(int32_t dtype)
{
    return dtype == MM2_F8_E4M3 ? 256 : 64;
}

/* A chunk times two groups: plane by plane, as C has four tiles. Calls work 8 times a plane. */
INLINE void multiply_two(int32_t dtype, work_function work_on, flow *f, const chunk *now,
                         const uint8_t *b, int32_t most)
{
    const uint8_t *b2 = b + f->group_bytes;
    const int64_t stride = step_stride(dtype);
    for (int plane = has_two_planes(dtype); plane >= 0; plane--) {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
        for (int t = 0; t < 4; t++) {
            tile_load(4, now->a[plane][0][t], 64);
            tile_load(6, step_at(dtype, b, t), stride);
            TILE_DOT(dtype, 0, 4, 6);
            tile_load(5, now->a[plane][1][t], 64);
            TILE_DOT(dtype, 2, 5, 6);
            work_on(f, most);
            tile_load(7, step_at(dtype, b2, t), stride);
            TILE_DOT(dtype, 1, 4, 7);
            TILE_DOT(dtype, 3, 5, 7);
            work_on(f, most);
        }
        settle_rest(work_on, f);
        tile_store(0, f->c[plane][0], 64);
        tile_store(1, f->c[plane][1], 64);
        tile_store(2, f->c[plane][2], 64);
        tile_store(3, f->c[plane][3], 64);
    }
}

/* A chunk times one group, both planes together. Calls work 4 times a plane. */
INLINE void multiply_one(int32_t dtype, work_function work_on, flow *f, const chunk *now,
                         const uint8_t *b, int32_t most)
{
    const int64_t stride = step_stride(dtype);
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (int t = 0; t < 4; t++) {
        tile_load(6, step_at(dtype, b, t), stride);
        tile_load(4, now->a[0][0][t], 64);
        TILE_DOT(dtype, 0, 4, 6);
        tile_load(5, now->a[0][1][t], 64);
        TILE_DOT(dtype, 1, 5, 6);
        work_on(f, most);
        if (!has_two_planes(dtype))
            continue;
        tile_load(4, now->a[1][0][t], 64);
        TILE_DOT(dtype, 2, 4, 6);
        tile_load(5, now->a[1][1][t], 64);
        TILE_DOT(dtype, 3, 5, 6);
        work_on(f, most);
    }
    settle_rest(work_on, f);
    tile_store(0, f->c[0][0], 64);
    tile_store(1, f->c[0][2], 64);
    if (has_two_planes(dtype)) {
        tile_store(2, f->c[1][0], 64);
        tile_store(3, f->c[1][2], 64);
    }
}

#define PIECE_DOT(c_tile, a_tile, b_tile, i)                                                       \
    do {                                                                                           \
        tile_zero(c_tile);                                                                         \
        tile_load(a_tile, now->a[0][tile][(i) / 2][0] + (i) % 2 * 32, 64);                         \
        tile_load(b_tile, b + (i)*32 * TILE, 64);                                                  \
        tile_dot_signed(c_tile, a_tile, b_tile);                                                   \
        tile_store(c_tile, f->c[tile][i], 64);                                                     \
    } while (0)

/* Half a chunk of pieces times one group, piece by piece. Calls work for every two. */
INLINE void multiply_pieces(int32_t dtype, work_function work_on, flow *f, const chunk *now,
                            int32_t tile, const uint8_t *b, int32_t pieces, int32_t most)
{
    for (int32_t i = 0; i < pieces; i += 4) {
        PIECE_DOT(0, 4, 6, i);
        if (i + 1 < pieces)
            PIECE_DOT(1, 5, 7, i + 1);
        work_on(f, most);
        if (i + 2 >= pieces)
            break;
        PIECE_DOT(2, 4, 6, i + 2);
        if (i + 3 < pieces)
            PIECE_DOT(3, 5, 7, i + 3);
        work_on(f, most);
    }
    settle_rest(work_on, f);
}

/* ---- Products ---- */

/* Rows [0, rows) of y, lanes, to out[m][i], .., of the call's `count`. */
static void put_sums(float *const *out, const pair_sums *y, int32_t i, int32_t count, int32_t rows)
{
    for (int32_t m = 0; m < rows; m += TILE)
        for (int32_t tile = 0; tile < PAIR && i + tile < count; tile += TILE) {
            __m512i r[TILE];
            for (int32_t j = 0; j < TILE; j++)
                r[j] = _mm512_loadu_si512(y[m / TILE][tile + j]);
            transpose16(r);
            for (int32_t j = 0; j < smaller(TILE, rows - m); j++)
                reals_store_n(out[m + j] + i + tile, reals_of(r[j]), count - i - tile);
        }
}

/* Set number `set` of a chunk, and what f needs to settle it afterwards. */
INLINE void multiply_set(int32_t dtype, work_function work_on, flow *f, const chunk *now, int32_t k,
                         int32_t set, int32_t sets, int32_t groups, const uint8_t *panel,
                         pair_sums *y)
{
    int32_t n = f->in.w->n_in, pieces_in = smaller(CHUNK_PIECES, (n - k) / 32);
    int32_t piecewise = is_piecewise(dtype);
    int32_t group = piecewise ? set / 2 : set * 2, two = !piecewise && groups - group > 1;
    int32_t calls = piecewise ? (pieces_in + 1) / 2 : (two + 1) * 4 * (has_two_planes(dtype) + 1);
    panel += group * f->group_bytes;
    const uint8_t *b = panel + (int64_t)k * (dtype == MM2_F8_E4M3 ? TILE * 2 : TILE);
    f->goal = f->in.to ? PAIR * (set + 1) / sets : 0;
    int32_t pieces = (int32_t)(f->pieces - f->piece) + f->goal - smaller(f->goal, f->in.done);
    int32_t most = (pieces + calls - 1) / calls;
    if (piecewise)
        multiply_pieces(dtype, work_on, f, now, set % 2, b, pieces_in, most);
    else if (two)
        multiply_two(dtype, work_on, f, now, b, most);
    else
        multiply_one(dtype, work_on, f, now, b, most);
    work_on(f, PAIR); /* rows of the next chunk that `calls` did not get to */
    f->from = now;
    f->y = y + group;
    f->d = panel + (int64_t)n * TILE + (int64_t)k / (piecewise ? 32 : MM2_SUPER) * 64;
    if (piecewise) {
        f->sums = f->d + n / 32 * 64;
    } else {
        f->sums = panel + (int64_t)n * TILE + n / MM2_SUPER * 64;
        f->sums += is_wide(dtype) ? n / 32 * 64 + k / MM2_SUPER * 256 : k / MM2_SUPER * 512;
    }
    f->pieces_in = pieces_in;
    f->tile = set % 2;
    f->piece = 0;
    f->pieces = (uint32_t)(piecewise ? TILE : PAIR * (two + 1)) / SETTLE_ROWS;
}

/* Up to SETS_ROWS rows. */
INLINE void multiply_some(int32_t dtype, work_function work_on, float *const *out,
                          const mm2_weight *w, int32_t first, int32_t count, const uint8_t *panel,
                          int32_t rows)
{
    flow f;
    _Alignas(64) pair_sums y[SETS_ROWS / TILE];
    int32_t groups = (rows + TILE - 1) / TILE, slot = 0;
    int32_t sets = is_piecewise(dtype) ? groups * 2 : (groups + 1) / 2;
    f.group_bytes = mm2_panel_bytes(mm2_act_of(dtype), TILE, w->n_in);
    f.piece = f.pieces = 0;
    f.goal = PAIR;
    filling_begin(dtype, &f.in, w, first, count, &f.ring[slot]);
    work_on(&f, PAIR);
    for (int32_t i = 0; i < count; i += PAIR) {
        memset(y, 0, (size_t)groups * sizeof *y);
        for (int32_t k = 0; k < w->n_in; k += chunk_span(dtype), slot = !slot) {
            filling_next(dtype, &f.in, &f.ring[!slot]);
            for (int32_t set = 0; set < sets; set++)
                multiply_set(dtype, work_on, &f, &f.ring[slot], k, set, sets, groups, panel, y);
        }
        settle_rest(work_on, &f);
        put_sums(out, (const pair_sums *)y, i, count, rows);
    }
}

INLINE void multiply_packed(int32_t dtype, work_function work_on, float *const *out,
                            const mm2_weight *w, int32_t first, int32_t count, const void *panel,
                            int32_t rows)
{
    int64_t some_bytes = mm2_panel_bytes(mm2_act_of(dtype), SETS_ROWS, w->n_in);
    tiles_begin(is_piecewise(dtype) ? 32 : 64);
    for (int32_t m = 0; m < rows; m += SETS_ROWS)
        multiply_some(dtype, work_on, out + m, w, first, count,
                      (const uint8_t *)panel + m / SETS_ROWS * some_bytes,
                      smaller(SETS_ROWS, rows - m));
    tiles_end();
}

/* ---- BF16 ---- */

enum { BF16_SPAN = 128, BF16_T0 = 512 }; /* elements between two looks; bytes prefetched ahead */

/* Elements [k, k + BF16_SPAN) of PAIR rows from `row` on: where they are, or in a copy that zeros
 * complete. */
INLINE const uint8_t *bf16_rows(const mm2_weight *w, int32_t row, int32_t rows, int32_t k,
                                uint8_t copy[PAIR][BF16_SPAN * 2], int64_t *stride)
{
    const uint8_t *p = (const uint8_t *)w->data + row * w->row_bytes + (int64_t)k * 2;
    *stride = w->row_bytes;
    if (rows >= PAIR && w->n_in - k >= BF16_SPAN)
        return p;
    memset(copy, 0, PAIR * BF16_SPAN * 2);
    for (int32_t r = 0; r < smaller(PAIR, rows); r++)
        memcpy(copy[r], p + r * w->row_bytes, (size_t)smaller(BF16_SPAN, w->n_in - k) * 2);
    *stride = BF16_SPAN * 2;
    return copy[0];
}

/* 32 weight rows from `row` on times one group or two. */
INLINE void multiply_bf16(int two, pair_sums y[2], const mm2_weight *w, int32_t row, int32_t rows,
                          const uint8_t *b, int64_t group_bytes, int ahead)
{
    _Alignas(64) uint8_t copy[PAIR][BF16_SPAN * 2];
    const uint8_t *line = (const uint8_t *)w->data + (row + PREFETCH_PAIRS * PAIR) * w->row_bytes;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (int32_t k = 0; k < w->n_in; k += BF16_SPAN) {
        int64_t stride;
        const uint8_t *a = bf16_rows(w, row, rows, k, copy, &stride);
        for (int32_t r = 0; ahead && r < PAIR; r++)
            for (int32_t i = 0; i < BF16_SPAN * 2; i += 64, line += 64) {
                _mm_prefetch((const char *)a + r * stride + BF16_T0 + i, _MM_HINT_T0);
                _mm_prefetch((const char *)line, _MM_HINT_T1);
            }
        for (int32_t j = k; j < smaller(k + BF16_SPAN, w->n_in); j += 32, a += 64) {
            const uint8_t *p = b + (int64_t)j * 32;
            tile_load(4, a, stride);
            tile_load(6, p, 64);
            tile_dot_bf16(0, 4, 6);
            tile_load(5, a + TILE * stride, stride);
            tile_dot_bf16(2, 5, 6);
            if (!two)
                continue;
            tile_load(7, p + group_bytes, 64);
            tile_dot_bf16(1, 4, 7);
            tile_dot_bf16(3, 5, 7);
        }
    }
    tile_store(0, y[0][0], 64);
    tile_store(2, y[0][TILE], 64);
    if (two) {
        tile_store(1, y[1][0], 64);
        tile_store(3, y[1][TILE], 64);
    }
}

static void matmul_packed_bf16(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                               const void *panel, int32_t rows)
{
    _Alignas(64) pair_sums y[2];
    int64_t group_bytes = mm2_panel_bytes(MM2_ACT_BF16, TILE, w->n_in);
    tiles_begin(64);
    for (int32_t i = 0; i < count; i += PAIR)
        for (int32_t m = 0; m < rows; m += 2 * TILE) {
            const uint8_t *b = (const uint8_t *)panel + m / TILE * group_bytes;
            if (rows - m > TILE)
                multiply_bf16(1, y, w, first + i, count - i, b, group_bytes, m == 0);
            else
                multiply_bf16(0, y, w, first + i, count - i, b, group_bytes, m == 0);
            put_sums(out + m, (const pair_sums *)y, i, count, smaller(2 * TILE, rows - m));
        }
    tiles_end();
}
