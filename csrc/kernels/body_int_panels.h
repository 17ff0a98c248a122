/* Matrix products of several activation rows with integer weights, in terms of the primitives of a
 * codes_*.h and of body_unpack.h.
 *
 * ROWS weight rows x 256 codes are unpacked into a panel whose registers hold 4 successive codes of
 * every row, so that lanes are rows: no sum crosses lanes, and the scales of a block multiply a
 * whole register. DOT_PANELS panels times DOT_ACTS activation rows are one tile of accumulators.
 * Integer sums are exact in any order; the float operations are those of ref.c, block by block.
 *
 * The row groups of a call follow one another in memory. While a group is multiplied, the next one is
 * prefetched as one ascending stream, a few lines with each step: all at once they would fill the
 * line buffers, and nothing would be multiplied meanwhile. The blocks of a last, smaller group are
 * copied, followed by zeros. */

enum { SUM_ACTS = 128 /* activation rows that use a panel before it is made again */ };

/* ROWS rows at one place of their blocks: where they are and how far apart. */
typedef struct group {
    const uint8_t *p;
    int64_t stride;
} group;

/* The group of rows from i on at byte `offset`. */
INLINE group group_at(const mm2_weight *w, int32_t first, int32_t count, int32_t i, int64_t offset,
                      int32_t bytes, uint8_t *copy)
{
    group g = {(const uint8_t *)w->data + (first + i) * w->row_bytes + offset, w->row_bytes};
    if (count - i >= ROWS)
        return g;
    memset(copy, 0, (size_t)(ROWS * bytes));
    for (int32_t r = 0; r < count - i; r++)
        memcpy(copy + r * bytes, g.p + r * g.stride, (size_t)bytes);
    g.p = copy;
    g.stride = bytes;
    return g;
}

/* What is to be prefetched while a panel is multiplied: a part of the next groups of rows, which
 * lie in one piece, a share with each step. */
typedef struct ahead {
    const uint8_t *p;
    int32_t bytes, share;
} ahead;

/* While `bytes` at `offset` of each row of `panels` groups are multiplied with `rows` activation
 * rows, in `steps` steps a tile. What these weight rows have next was fetched while the groups
 * before were multiplied, or is fetched now; it comes closer. */
INLINE ahead ahead_of(int panels, const mm2_weight *w, int32_t first, int32_t i, int64_t offset,
                      int32_t bytes, int32_t rows, int32_t steps)
{
    const uint8_t *p = (const uint8_t *)w->data + (first + i) * w->row_bytes;
    ahead a = {p + panels * ROWS * (w->row_bytes + offset), panels * ROWS * bytes, 0};
    a.share = (a.bytes / ((rows + DOT_ACTS - 1) / DOT_ACTS * steps) + 63) / 64 * 64;
    for (int32_t r = 0; r < panels * ROWS; r++)
        prefetch(p + r * w->row_bytes + offset + bytes, bytes);
    return a;
}

INLINE void ahead_go(ahead *a)
{
    int32_t share = smaller(a->share, a->bytes);
    prefetch(a->p, share);
    a->p += share;
    a->bytes -= share;
}

/* Are codes so small that dot() may add them up in int16 before they are scaled? The sums of a piece of
 * 32 (not of Q5_1), of a sub-block or, for Q5_K, of half a sub-block then stay below 2^15. */
INLINE int is_small(int32_t dtype)
{
    return mm2_format_of(dtype).bits < 8 && dtype != MM2_Q5_1;
}

/* Groups of 16 codes that dot() adds up before dot_end() scales them: what has one scale, but only
 * half of it where codes of 5 or more bits are added up in int16. */
INLINE int dot_step(int32_t dtype)
{
    int halved = is_small(dtype) && mm2_format_of(dtype).bits > 4;
    return is_wide(dtype) && !halved ? 2 : 1;
}

/* Activation rows of the next tile, of `left`. */
INLINE int tile_acts(int32_t left)
{
    return left >= DOT_ACTS ? DOT_ACTS : left >= 2 ? 2 : 1;
}

/* ---- Blocks and planes ---- */

/* asum of kernels.h of each of up to 8 pieces; of those that there are not, that of the last one. All
 * at once, by AVX2 at every level: it is done again for every few weight rows. */
INLINE void sums_of_acts(float sums[8], const int8_t *a, int32_t pieces)
{
    __m256i x[8];
#pragma GCC unroll 8
    for (int b = 0; b < 8; b++) {
        x[b] = _mm256_loadu_si256((const __m256i *)(a + smaller(b, pieces - 1) * 32));
        x[b] = _mm256_maddubs_epi16(_mm256_set1_epi8(1), x[b]);
        x[b] = _mm256_madd_epi16(x[b], _mm256_set1_epi16(1));
    }
#pragma GCC unroll 2
    for (int b = 0; b < 8; b += 4)
        x[b] = _mm256_hadd_epi32(_mm256_hadd_epi32(x[b], x[b + 1]),
                                 _mm256_hadd_epi32(x[b + 2], x[b + 3]));
    x[0] = _mm256_add_epi32(_mm256_permute2x128_si256(x[0], x[4], 0x20),
                            _mm256_permute2x128_si256(x[0], x[4], 0x31));
    _mm256_storeu_ps(sums, _mm256_cvtepi32_ps(x[0]));
}

INLINE void piece_tile(int panels, int32_t dtype, int acts, reals (*y)[DOT_PANELS],
                       const piece_panel *p, const int8_t *const *a, const float *const *d,
                       int32_t pieces, int zeros, ahead *next)
{
    _Alignas(64) int8_t buffer[DOT_ACTS][256];
    const int8_t *ready[DOT_ACTS];
    const words one = scale_form(words_set1(1));
    const int spans = spans_of(dtype), steps = 8 / spans;
    reals total[DOT_ACTS][DOT_PANELS];
    float sums[DOT_ACTS][8];
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++) {
        ready[m] = dot_acts(0, in_pairs(dtype), buffer[m], a[m], pieces * 32);
        if (has_minima(dtype) || zeros)
            sums_of_acts(sums[m], a[m], pieces);
#pragma GCC unroll 2
        for (int n = 0; n < panels; n++)
            total[m][n] = y[m][n];
    }
    for (int32_t s = 0; s < pieces * spans; s++) {
        words sum[DOT_ACTS][DOT_PANELS];
        reals isum[DOT_ACTS][DOT_PANELS];
        int32_t b = s / spans;
        if (s % spans == 0)
            ahead_go(next);
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
            for (int n = 0; n < panels; n++)
                sum[m][n] = p[n].start[s];
#pragma GCC unroll 8
        for (int i = 0; i < steps; i++) {
            codes c[DOT_PANELS];
#pragma GCC unroll 2
            for (int n = 0; n < panels; n++)
                c[n] = codes_load(0, p[n].code + s * steps + i);
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
                for (int n = 0; n < panels; n++)
                    sum[m][n] = dot(is_small(dtype), 0, sum[m][n], c[n],
                                    ready[m] + (s * steps + i) * 4, one);
        }
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
            for (int n = 0; n < panels; n++)
                isum[m][n] =
                    reals_from_words(dot_end(is_small(dtype), words_set1(0), sum[m][n], one));
        if (zeros)
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
                for (int n = 0; n < panels; n++)
                    isum[m][n] = reals_fnma(p[n].heads.m[b], reals_set1(sums[m][b]), isum[m][n]);
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
            for (int n = 0; n < panels; n++) {
                total[m][n] =
                    reals_fma(reals_times(p[n].heads.d[s], d[m][b]), isum[m][n], total[m][n]);
                if (has_minima(dtype))
                    total[m][n] = reals_fma(reals_times(p[n].heads.m[b], d[m][b]),
                                            reals_set1(sums[m][b]), total[m][n]);
            }
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
        for (int n = 0; n < panels; n++)
            y[m][n] = total[m][n];
}

INLINE void piece_panel_dot(int panels, int32_t dtype, reals (*y)[DOT_PANELS], const piece_panel *p,
                            const mm2_weight *w, const void *const *acts, int32_t rows,
                            int32_t begin, int32_t pieces, ahead next)
{
    const int zeros = has_zeros(dtype, w);
    for (int32_t m = 0; m < rows;) {
        const int8_t *a[DOT_ACTS];
        const float *d[DOT_ACTS];
        int together = tile_acts(rows - m);
        for (int t = 0; t < together; t++) {
            const int8_t *act = acts[m + t];
            a[t] = act + begin;
            d[t] = (const float *)(act + w->n_in) + begin / 32;
        }
        if (together == DOT_ACTS)
            piece_tile(panels, dtype, DOT_ACTS, y + m, p, a, d, pieces, zeros, &next);
        else if (together == 2)
            piece_tile(panels, dtype, 2, y + m, p, a, d, pieces, zeros, &next);
        else
            piece_tile(panels, dtype, 1, y + m, p, a, d, pieces, zeros, &next);
        m += together;
    }
}

/* Rows from i on, `pieces` pieces from element `begin` on. */
INLINE void piece_panel_fill(int32_t dtype, piece_panel *p, const mm2_weight *w, int32_t first,
                             int32_t count, int32_t i, int32_t begin, int32_t pieces, uint8_t *copy)
{
    const int spans = spans_of(dtype);
    group g = group_at(w, first, count, i, begin_bytes(dtype, begin),
                       begin_bytes(dtype, pieces * 32), copy);
    heads_of_pieces(dtype, &p->heads, w, first, count, i, begin, pieces, g.p, g.stride);
    for (int32_t b = 0; b < pieces; b++) {
        words *code = p->code + b * 8;
        codes_of_piece(dtype, code, b, g.p, g.stride);
        for (int s = 0; s < spans; s++)
            p->start[b * spans + s] = dot_start(0, code + s * (8 / spans), 8 / spans);
    }
}

/* One group of up to panels * ROWS weight rows with up to SUM_ACTS activation rows. */
INLINE void matmul_piece_group(int panels, int32_t dtype, float *const *out, const mm2_weight *w,
                               int32_t first, int32_t count, int32_t i, const void *const *acts,
                               int32_t rows)
{
    _Alignas(64) uint8_t copy[ROWS * 8 * sizeof(mm2_block_q8_0)]; /* the largest block */
    piece_panel panel[DOT_PANELS];
    reals y[SUM_ACTS][DOT_PANELS];
    for (int32_t m = 0; m < rows; m++)
        for (int n = 0; n < panels; n++)
            y[m][n] = reals_zero();
    for (int32_t begin = 0; begin < w->n_in; begin += 256) {
        int32_t pieces = smaller(256, w->n_in - begin) / 32;
        for (int n = 0; n < panels; n++)
            piece_panel_fill(dtype, panel + n, w, first, count, i + n * ROWS, begin, pieces, copy);
        piece_panel_dot(panels, dtype, y, panel, w, acts, rows, begin, pieces,
                        ahead_of(panels, w, first, i, begin_bytes(dtype, begin),
                                 begin_bytes(dtype, pieces * 32), rows, pieces));
    }
    for (int32_t m = 0; m < rows; m++)
        for (int n = 0; n < panels; n++)
            reals_store_n(out[m] + i + n * ROWS, y[m][n], count - i - n * ROWS);
}

/* ---- Super-blocks of 256 ---- */

INLINE void super_panel_fill(int32_t dtype, const mm2_weight *w, super_panel *p, group g)
{
    int step = dot_step(dtype);
    unpack_weight(dtype, w, p, g.p, g.stride);
    for (int i = 0; i < 16; i += step)
        p->start[i] = dot_start(has_minima(dtype), p->code + i * 4, step * 4);
}

INLINE void super_tile(int panels, int32_t dtype, int acts, reals (*y)[DOT_PANELS],
                       const super_panel *p, const int8_t *const *a, const float *d,
                       const int16_t *const *sums, ahead *next)
{
    _Alignas(64) int8_t buffer[DOT_ACTS][256];
    const int8_t *ready[DOT_ACTS];
    words total[DOT_ACTS][DOT_PANELS];
    int small = is_small(dtype), minima = has_minima(dtype), step = dot_step(dtype);
    int same = is_wide(dtype) ? 2 : 1; /* groups of 16 codes with one scale */
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++) {
        ready[m] = dot_acts(minima, 0, buffer[m], a[m], 256);
#pragma GCC unroll 2
        for (int n = 0; n < panels; n++)
            total[m][n] = words_set1(0);
    }
    for (int s = 0; s < 16; s += step) {
        words sum[DOT_ACTS][DOT_PANELS];
        ahead_go(next);
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
            for (int n = 0; n < panels; n++)
                sum[m][n] = p[n].start[s];
#pragma GCC unroll 8
        for (int i = 0; i < step * 4; i++) {
            codes c[DOT_PANELS];
#pragma GCC unroll 2
            for (int n = 0; n < panels; n++)
                c[n] = codes_load(minima, p[n].code + s * 4 + i);
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
                for (int n = 0; n < panels; n++)
                    sum[m][n] = dot(small, minima, sum[m][n], c[n], ready[m] + s * 16 + i * 4,
                                    p[n].scale[s / same * same]);
        }
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
            for (int n = 0; n < panels; n++)
                total[m][n] = dot_end(small, total[m][n], sum[m][n], p[n].scale[s / same * same]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
#pragma GCC unroll 2
        for (int n = 0; n < panels; n++) {
            y[m][n] = reals_fma(reals_times(p[n].d, d[m]), reals_from_words(total[m][n]), y[m][n]);
            if (!minima)
                continue;
            words least = words_set1(0);
            for (int i = 0; i < 8; i++)
                least = dot_pair(least, p[n].min[i], sums[m] + i * 2);
            y[m][n] = reals_fnma(reals_times(p[n].dmin, d[m]), reals_from_words(least), y[m][n]);
        }
}

INLINE void super_panel_dot(int panels, int32_t dtype, reals (*y)[DOT_PANELS], const super_panel *p,
                            const void *const *acts, int32_t rows, int32_t n_in, int32_t block,
                            ahead next)
{
    for (int32_t m = 0; m < rows;) {
        const int8_t *a[DOT_ACTS];
        const int16_t *sums[DOT_ACTS];
        float d[DOT_ACTS];
        int together = tile_acts(rows - m);
        for (int t = 0; t < together; t++) {
            const int8_t *act = acts[m + t];
            const float *scales = (const float *)(act + n_in);
            a[t] = act + block * MM2_SUPER;
            d[t] = scales[block];
            sums[t] = (const int16_t *)(scales + n_in / MM2_SUPER) + block * 16;
        }
        if (together == DOT_ACTS)
            super_tile(panels, dtype, DOT_ACTS, y + m, p, a, d, sums, &next);
        else if (together == 2)
            super_tile(panels, dtype, 2, y + m, p, a, d, sums, &next);
        else
            super_tile(panels, dtype, 1, y + m, p, a, d, sums, &next);
        m += together;
    }
}

INLINE void matmul_super_group(int panels, int32_t dtype, float *const *out, const mm2_weight *w,
                               int32_t first, int32_t count, int32_t i, const void *const *acts,
                               int32_t rows)
{
    _Alignas(64) uint8_t copy[ROWS * sizeof(mm2_block_q6_k)]; /* the largest block */
    super_panel panel[DOT_PANELS];
    reals y[SUM_ACTS][DOT_PANELS];
    int32_t bytes = weight_block_bytes(dtype, w);
    for (int32_t m = 0; m < rows; m++)
        for (int n = 0; n < panels; n++)
            y[m][n] = reals_zero();
    for (int32_t block = 0; block < w->n_in / MM2_SUPER; block++) {
        for (int n = 0; n < panels; n++)
            super_panel_fill(
                dtype, w, panel + n,
                group_at(w, first, count, i + n * ROWS, (int64_t)block * bytes, bytes, copy));
        super_panel_dot(panels, dtype, y, panel, acts, rows, w->n_in, block,
                        ahead_of(panels, w, first, i, (int64_t)block * bytes, bytes, rows,
                                 16 / dot_step(dtype)));
    }
    for (int32_t m = 0; m < rows; m++)
        for (int n = 0; n < panels; n++)
            reals_store_n(out[m] + i + n * ROWS, y[m][n], count - i - n * ROWS);
}

/* ---- All integer formats ---- */

INLINE void matmul_direct(int32_t dtype, int acts, float *const *out, const mm2_weight *w,
                          int32_t first, int32_t count, const void *const *act)
{
    const int8_t *a[DIRECT_ACTS];
    for (int m = 0; m < acts; m++)
        a[m] = act[m];
    if (mm2_is_codebook(dtype))
        matmul_codebook_direct(dtype, acts, out, w, first, count, a);
    else if (mm2_is_super(dtype))
        matmul_super_direct(dtype, acts, out, w, first, count, a);
    else
        matmul_pieces_direct(dtype, acts, out, w, first, count, a);
}

INLINE void matmul_integer_direct(int32_t dtype, float *const *out, const mm2_weight *w,
                                  int32_t first, int32_t count, const void *const *acts,
                                  int32_t rows)
{
    if (rows == 1)
        matmul_direct(dtype, 1, out, w, first, count, acts);
    else if (rows == 2)
        matmul_direct(dtype, 2, out, w, first, count, acts);
    else if (rows == 3)
        matmul_direct(dtype, 3, out, w, first, count, acts);
    else if (DIRECT_ACTS == 4)
        matmul_direct(dtype, 4, out, w, first, count, acts);
}

INLINE void matmul_integer_panels(int32_t dtype, float *const *out, const mm2_weight *w,
                                  int32_t first, int32_t count, const void *const *acts,
                                  int32_t rows)
{
    int super = mm2_is_super(dtype);
    for (int32_t m = 0; m < rows; m += SUM_ACTS) {
        int32_t some = smaller(SUM_ACTS, rows - m);
        for (int32_t i = 0; i < count; i += ROWS * DOT_PANELS) {
            int wide = count - i > ROWS * (DOT_PANELS - 1);
            if (super && wide)
                matmul_super_group(DOT_PANELS, dtype, out + m, w, first, count, i, acts + m, some);
            else if (super)
                matmul_super_group(1, dtype, out + m, w, first, count, i, acts + m, some);
            else if (wide)
                matmul_piece_group(DOT_PANELS, dtype, out + m, w, first, count, i, acts + m, some);
            else
                matmul_piece_group(1, dtype, out + m, w, first, count, i, acts + m, some);
        }
    }
}

static void matmul_any_16(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                          const void *const *acts, int32_t rows)
{
    matmul_integer_panels(ANY_16, out, w, first, count, acts, rows);
}

static void matmul_any_32(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                          const void *const *acts, int32_t rows)
{
    matmul_integer_panels(ANY_32, out, w, first, count, acts, rows);
}

INLINE void matmul_integer(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                           int32_t count, const void *const *acts, int32_t rows)
{
    if (rows <= DIRECT_ACTS && w->n_in <= DIRECT_LIMIT)
        matmul_integer_direct(dtype, out, w, first, count, acts, rows);
    else if (!mm2_is_codebook(dtype))
        matmul_integer_panels(dtype, out, w, first, count, acts, rows);
    else if (is_wide(dtype))
        matmul_any_32(out, w, first, count, acts, rows);
    else
        matmul_any_16(out, w, first, count, acts, rows);
}
