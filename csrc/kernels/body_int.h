/* Matrix products with integer weights of a vector level, in terms of the primitives of its
 * lanes_*.h and of body_unpack.h.
 *
 * ROWS weight rows x 256 codes are unpacked into a panel whose registers hold 4 successive codes of
 * every row, so that lanes are rows: no sum crosses lanes, and the scales of a block multiply a
 * whole register. The panel serves all activation rows. Integer sums are exact in any order; the
 * float operations are those of ref.c, block by block.
 *
 * The row groups of a call follow one another in memory; while one is read, the same place of the
 * next one is prefetched. The blocks of a last, smaller group are copied, followed by zeros. */

enum { SUM_ACTS = 64 /* activation rows that use a panel before it is made again */ };

/* The group of rows from i on at byte `offset`: where its blocks are and how far apart. */
typedef struct group {
    const uint8_t *p;
    int64_t stride;
} group;

INLINE group group_at(const mm2_weight *w, int32_t first, int32_t count, int32_t i, int64_t offset,
                      int32_t bytes, uint8_t *copy)
{
    group g = {(const uint8_t *)w->data + (first + i) * w->row_bytes + offset, w->row_bytes};
    for (int32_t r = 0; r < ROWS; r++) /* the next group */
        prefetch(g.p + (ROWS + r) * g.stride, bytes);
    if (count - i >= ROWS)
        return g;
    memset(copy, 0, (size_t)(ROWS * bytes));
    for (int32_t r = 0; r < count - i; r++)
        memcpy(copy + r * bytes, g.p + r * g.stride, (size_t)bytes);
    g.p = copy;
    g.stride = bytes;
    return g;
}

/* ---- Blocks of 32 ---- */

INLINE void block_tile(int acts, reals *y, const block_panel *p, const int8_t *const *a,
                       const float *const *d, int32_t blocks)
{
    _Alignas(64) int8_t buffer[DOT_ACTS][256];
    const int8_t *ready[DOT_ACTS];
    for (int m = 0; m < acts; m++)
        ready[m] = dot_acts(0, buffer[m], a[m], blocks * 32);
    for (int32_t b = 0; b < blocks; b++) {
        words sum[DOT_ACTS];
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m] = p->start[b];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            codes c = codes_load(0, p->code + b * 8 + i);
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++)
                sum[m] = dot(0, sum[m], c, ready[m] + b * 32 + i * 4, scale_form(words_set1(1)));
        }
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            y[m] = reals_fma(reals_times(p->d[b], d[m][b]), reals_from_words(sum[m]), y[m]);
    }
}

static void block_panel_dot(reals *y, const block_panel *p, const void *const *acts, int32_t rows,
                            int32_t n_in, int32_t begin, int32_t blocks)
{
    for (int32_t m = 0; m < rows;) {
        const int8_t *a[DOT_ACTS];
        const float *d[DOT_ACTS];
        int together = rows - m >= DOT_ACTS ? DOT_ACTS : 1;
        for (int t = 0; t < together; t++) {
            const int8_t *act = acts[m + t];
            a[t] = act + begin;
            d[t] = (const float *)(act + n_in) + begin / 32;
        }
        if (together == DOT_ACTS)
            block_tile(DOT_ACTS, y + m, p, a, d, blocks);
        else
            block_tile(1, y + m, p, a, d, blocks);
        m += together;
    }
}

/* Up to SUM_ACTS rows. */
INLINE void matmul_block_some(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                              int32_t count, const void *const *acts, int32_t rows)
{
    _Alignas(64) uint8_t copy[ROWS * 8 * sizeof(mm2_block_q8_0)]; /* the largest block */
    for (int32_t i = 0; i < count; i += ROWS) {
        reals y[SUM_ACTS];
        for (int32_t m = 0; m < rows; m++)
            y[m] = reals_zero();
        for (int32_t begin = 0; begin < w->n_in; begin += 256) {
            block_panel panel;
            int32_t blocks = smaller(256, w->n_in - begin) / 32;
            group g = group_at(w, first, count, i, (int64_t)begin / 32 * block_bytes(dtype),
                               blocks * block_bytes(dtype), copy);
            for (int32_t b = 0; b < blocks; b++) {
                words *code = panel.code + b * 8;
                panel.d[b] = unpack_block(dtype, code, g.p + b * block_bytes(dtype), g.stride);
                panel.start[b] = dot_start(0, code, 8);
            }
            block_panel_dot(y, &panel, acts, rows, w->n_in, begin, blocks);
        }
        for (int32_t m = 0; m < rows; m++)
            reals_store_n(out[m] + i, y[m], count - i);
    }
}

INLINE void matmul_block(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                         int32_t count, const void *const *acts, int32_t rows)
{
    if (rows < ONE_ACTS && w->n_in <= ONE_LIMIT) {
        for (int32_t m = 0; m < rows; m++)
            matmul_block_one(dtype, out[m], w, first, count, acts[m]);
        return;
    }
    for (int32_t m = 0; m < rows; m += SUM_ACTS)
        matmul_block_some(dtype, out + m, w, first, count, acts + m, smaller(SUM_ACTS, rows - m));
}

/* ---- Super-blocks of 256 ---- */

INLINE void super_panel_fill(int32_t dtype, super_panel *p, group g)
{
    int step = is_wide(dtype) ? 2 : 1;
    unpack_super(dtype, p, g.p, g.stride);
    for (int i = 0; i < 16; i += step)
        p->start[i] = dot_start(has_minima(dtype), p->code + i * 4, step * 4);
}

INLINE void super_tile(int wide, int minima, int acts, reals *y, const super_panel *p,
                       const int8_t *const *a, const float *d, const int16_t *const *sums)
{
    _Alignas(64) int8_t buffer[DOT_ACTS][256];
    const int8_t *ready[DOT_ACTS];
    words total[DOT_ACTS];
    int step = wide ? 2 : 1;
    for (int m = 0; m < acts; m++) {
        ready[m] = dot_acts(minima, buffer[m], a[m], 256);
        total[m] = words_set1(0);
    }
    for (int s = 0; s < 16; s += step) {
        words sum[DOT_ACTS];
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m] = p->start[s];
#pragma GCC unroll 8
        for (int i = 0; i < step * 4; i++) {
            codes c = codes_load(minima, p->code + s * 4 + i);
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++)
                sum[m] = dot(minima, sum[m], c, ready[m] + s * 16 + i * 4, p->scale[s]);
        }
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            total[m] = dot_end(total[m], sum[m], p->scale[s]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++) {
        y[m] = reals_fma(reals_times(p->d, d[m]), reals_from_words(total[m]), y[m]);
        if (!minima)
            continue;
        words least = words_set1(0);
        for (int i = 0; i < 8; i++)
            least = dot_pair(least, p->min[i], sums[m] + i * 2);
        y[m] = reals_fnma(reals_times(p->dmin, d[m]), reals_from_words(least), y[m]);
    }
}

INLINE void super_panel_dot(int wide, int minima, reals *y, const super_panel *p,
                            const void *const *acts, int32_t rows, int32_t n_in, int32_t block)
{
    for (int32_t m = 0; m < rows;) {
        const int8_t *a[DOT_ACTS];
        const int16_t *sums[DOT_ACTS];
        float d[DOT_ACTS];
        int together = rows - m >= DOT_ACTS ? DOT_ACTS : 1;
        for (int t = 0; t < together; t++) {
            const int8_t *act = acts[m + t];
            const float *scales = (const float *)(act + n_in);
            a[t] = act + block * MM2_SUPER;
            d[t] = scales[block];
            sums[t] = (const int16_t *)(scales + n_in / MM2_SUPER) + block * 16;
        }
        if (together == DOT_ACTS)
            super_tile(wide, minima, DOT_ACTS, y + m, p, a, d, sums);
        else
            super_tile(wide, minima, 1, y + m, p, a, d, sums);
        m += together;
    }
}

INLINE void matmul_super_some(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                              int32_t count, const void *const *acts, int32_t rows)
{
    _Alignas(64) uint8_t copy[ROWS * sizeof(mm2_block_q6_k)]; /* the largest block */
    for (int32_t i = 0; i < count; i += ROWS) {
        reals y[SUM_ACTS];
        for (int32_t m = 0; m < rows; m++)
            y[m] = reals_zero();
        for (int32_t block = 0; block < w->n_in / MM2_SUPER; block++) {
            super_panel panel;
            group g = group_at(w, first, count, i, (int64_t)block * super_bytes(dtype),
                               super_bytes(dtype), copy);
            super_panel_fill(dtype, &panel, g);
            super_panel_dot(is_wide(dtype), has_minima(dtype), y, &panel, acts, rows, w->n_in,
                            block);
        }
        for (int32_t m = 0; m < rows; m++)
            reals_store_n(out[m] + i, y[m], count - i);
    }
}

INLINE void matmul_super(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                         int32_t count, const void *const *acts, int32_t rows)
{
    if (rows < ONE_ACTS && w->n_in <= ONE_LIMIT) {
        for (int32_t m = 0; m < rows; m++)
            matmul_super_one(dtype, out[m], w, first, count, acts[m]);
        return;
    }
    for (int32_t m = 0; m < rows; m += SUM_ACTS)
        matmul_super_some(dtype, out + m, w, first, count, acts + m, smaller(SUM_ACTS, rows - m));
}
