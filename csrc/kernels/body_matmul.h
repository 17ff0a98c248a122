/* Matrix products of a vector level, in terms of the primitives of its lanes_*.h.
 *
 * Float weights. One activation row: ONE_ROWS weight rows run together, widened in registers.
 * Several: 8 rows x 256 elements are widened into a panel that stays in the first-level cache, and
 * tiles of TILE_ROWS x TILE_ACTS accumulators run over it; between panels the accumulators wait in
 * memory.
 *
 * Integer weights. ROWS weight rows x 256 codes are unpacked and transposed into a panel whose
 * registers hold 4 successive codes of every row, so that lanes are rows: no sum crosses lanes and
 * the scales of a block multiply a whole register. The panel serves all activation rows.
 *
 * The row groups of a call follow one another in memory; while one is read, the same place of the
 * next one is prefetched. Rows beyond the last are repeats of it whose results are dropped. */

enum {
    PANEL_SPAN = 256, /* elements of k in a panel */
    PANEL_ROWS = 8,   /* of a float panel */
    PANEL_ACTS = 32,  /* activation rows that use a float panel before it is made again */
    SCALE_SPAN = 128, /* FP8: elements with one scale */
    SUM_ACTS = 64     /* activation rows that use an integer panel */
};

#define INLINE static inline __attribute__((always_inline))

static inline int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline const uint8_t *weight_row(const mm2_weight *w, int32_t first, int32_t count,
                                        int32_t i)
{
    return (const uint8_t *)w->data + (first + smaller(i, count - 1)) * w->row_bytes;
}

static inline void prefetch(const uint8_t *p, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + i, _MM_HINT_T1);
}

/* ---- Float weights ---- */

INLINE int32_t size_of(int32_t dtype)
{
    return dtype == MM2_F32 ? 4 : dtype == MM2_F8_E4M3 ? 1 : 2;
}

/* FP8: the scales along row i, and the step between them; without scales, ones. */
static inline const float *scale_row(const mm2_weight *w, int32_t first, int32_t count, int32_t i,
                                     int32_t *step)
{
    static const float one = 1;
    *step = w->scale != NULL;
    if (!w->scale)
        return &one;
    int64_t blocks = w->n_in / SCALE_SPAN + (w->n_in % SCALE_SPAN != 0);
    int64_t row = (int64_t)first + smaller(i, count - 1) + w->scale_row;
    return w->scale + row / SCALE_SPAN * blocks;
}

/* The last n < 64 elements of a row, padded with zeros. */
INLINE void widen_rest(int32_t dtype, const uint8_t *p, int32_t n, v16 out[4])
{
    _Alignas(64) uint8_t rest[256] = {0};
    memcpy(rest, p, (size_t)(n * size_of(dtype)));
    widen64(dtype, rest, out);
}

/* sum[r] += products of ONE_ROWS rows with x over [begin, end), a lane step at a time. */
INLINE void add_products(int32_t dtype, v16 sum[ONE_ROWS], const uint8_t *const row[ONE_ROWS],
                         const float *x, int32_t begin, int32_t end, int64_t ahead)
{
    int32_t k = begin;
    for (; k + 64 <= end; k += 64) {
        v16 a[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            a[i] = v16_load(x + k + i * 16);
#pragma GCC unroll 8
        for (int r = 0; r < ONE_ROWS; r++) {
            v16 b[4];
            const uint8_t *p = row[r] + (int64_t)k * size_of(dtype);
            prefetch(p + ahead, 64 * size_of(dtype));
            widen64(dtype, p, b);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                sum[r] = v16_fma(b[i], a[i], sum[r]);
        }
    }
    if (k == end)
        return;
    for (int r = 0; r < ONE_ROWS; r++) {
        v16 b[4];
        widen_rest(dtype, row[r] + (int64_t)k * size_of(dtype), end - k, b);
        for (int i = 0; k + i * 16 < end; i++)
            sum[r] = v16_fma(b[i], v16_load_n(x + k + i * 16, end - k - i * 16), sum[r]);
    }
}

INLINE void matmul_one(int32_t dtype, float *out, const mm2_weight *w, int32_t first, int32_t count,
                       const float *x)
{
    int32_t span = dtype == MM2_F8_E4M3 ? SCALE_SPAN : w->n_in;
    for (int32_t i = 0; i < count; i += ONE_ROWS) {
        const uint8_t *row[ONE_ROWS];
        const float *scale[ONE_ROWS];
        int32_t step = 0;
        v16 total[ONE_ROWS];
        for (int r = 0; r < ONE_ROWS; r++) {
            row[r] = weight_row(w, first, count, i + r);
            scale[r] = scale_row(w, first, count, i + r, &step);
            total[r] = v16_zero();
        }
        for (int32_t begin = 0; begin < w->n_in; begin += span) {
            v16 sum[ONE_ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < ONE_ROWS; r++)
                sum[r] = v16_zero();
            add_products(dtype, sum, row, x, begin, smaller(w->n_in, begin + span),
                         ONE_ROWS * w->row_bytes);
#pragma GCC unroll 8
            for (int r = 0; r < ONE_ROWS; r++) {
                total[r] =
                    dtype == MM2_F8_E4M3 ? v16_fma(sum[r], v16_set1(*scale[r]), total[r]) : sum[r];
                scale[r] += step;
            }
        }
        for (int32_t r = 0; r < smaller(ONE_ROWS, count - i); r++)
            out[i + r] = v16_tree(total[r]);
    }
}

typedef float float_panel[PANEL_ROWS][PANEL_SPAN];

/* TILE_ROWS rows of the panel with `acts` activation rows over n elements, in spans of one scale. */
INLINE void float_tile(int32_t dtype, int acts, v16 (*sums)[PANEL_ROWS], float_panel panel,
                       const float *const *scale, int32_t step, int32_t first,
                       const float *const *x, int32_t n)
{
    int32_t span = dtype == MM2_F8_E4M3 ? SCALE_SPAN : PANEL_SPAN;
    for (int32_t begin = 0; begin < n; begin += span) {
        v16 t[TILE_ROWS][TILE_ACTS];
        int32_t end = smaller(n, begin + span);
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 3
            for (int m = 0; m < acts; m++)
                t[r][m] = dtype == MM2_F8_E4M3 ? v16_zero() : sums[m][first + r];
        for (int32_t k = begin; k < end; k += 16) {
            v16 a[TILE_ACTS];
#pragma GCC unroll 3
            for (int m = 0; m < acts; m++)
                a[m] = v16_load_n(x[m] + k, end - k);
#pragma GCC unroll 8
            for (int r = 0; r < TILE_ROWS; r++) {
                v16 b = v16_load(panel[first + r] + k);
#pragma GCC unroll 3
                for (int m = 0; m < acts; m++)
                    t[r][m] = v16_fma(b, a[m], t[r][m]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; r++) {
            v16 s = v16_set1(scale[first + r][begin / SCALE_SPAN * step]);
#pragma GCC unroll 3
            for (int m = 0; m < acts; m++)
                sums[m][first + r] =
                    dtype == MM2_F8_E4M3 ? v16_fma(t[r][m], s, sums[m][first + r]) : t[r][m];
        }
    }
}

INLINE void widen_panel(int32_t dtype, float_panel panel, const uint8_t *const row[PANEL_ROWS],
                        int32_t n, int64_t ahead)
{
    for (int r = 0; r < PANEL_ROWS; r++) {
        v16 b[4];
        int32_t k = 0;
        for (; k + 64 <= n; k += 64) {
            const uint8_t *p = row[r] + (int64_t)k * size_of(dtype);
            prefetch(p + ahead, 64 * size_of(dtype));
            widen64(dtype, p, b);
            for (int i = 0; i < 4; i++)
                v16_store(panel[r] + k + i * 16, b[i]);
        }
        if (k == n)
            continue;
        widen_rest(dtype, row[r] + (int64_t)k * size_of(dtype), n - k, b);
        for (int i = 0; i < 4; i++)
            v16_store(panel[r] + k + i * 16, b[i]);
    }
}

INLINE void matmul_panels(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                          int32_t count, const void *const *acts, int32_t rows)
{
    _Alignas(64) float_panel panel;
    v16 sums[PANEL_ACTS][PANEL_ROWS];
    for (int32_t i = 0; i < count; i += PANEL_ROWS) {
        memset(sums, 0, (size_t)rows * sizeof sums[0]);
        for (int32_t begin = 0; begin < w->n_in; begin += PANEL_SPAN) {
            const uint8_t *row[PANEL_ROWS];
            const float *scale[PANEL_ROWS];
            int32_t step = 0, n = smaller(PANEL_SPAN, w->n_in - begin), m = 0;
            for (int r = 0; r < PANEL_ROWS; r++) {
                row[r] = weight_row(w, first, count, i + r) + (int64_t)begin * size_of(dtype);
                scale[r] = scale_row(w, first, count, i + r, &step);
                scale[r] += begin / SCALE_SPAN * step;
            }
            widen_panel(dtype, panel, row, n, PANEL_ROWS * w->row_bytes);
            for (; m < rows; m += TILE_ACTS) {
                const float *x[TILE_ACTS];
                int together = smaller(TILE_ACTS, rows - m);
                for (int t = 0; t < together; t++)
                    x[t] = (const float *)acts[m + t] + begin;
                for (int32_t r = 0; r < PANEL_ROWS; r += TILE_ROWS) {
                    if (together == TILE_ACTS)
                        float_tile(dtype, TILE_ACTS, sums + m, panel, scale, step, r, x, n);
                    else if (together == 2)
                        float_tile(dtype, 2, sums + m, panel, scale, step, r, x, n);
                    else
                        float_tile(dtype, 1, sums + m, panel, scale, step, r, x, n);
                }
            }
        }
        for (int32_t m = 0; m < rows; m++)
            for (int32_t r = 0; r < smaller(PANEL_ROWS, count - i); r++)
                out[m][i + r] = v16_tree(sums[m][r]);
    }
}

INLINE void matmul_float(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                         int32_t count, const void *const *acts, int32_t rows)
{
    if (rows == 1) {
        matmul_one(dtype, out[0], w, first, count, acts[0]);
        return;
    }
    for (int32_t m = 0; m < rows; m += PANEL_ACTS)
        matmul_panels(dtype, out + m, w, first, count, acts + m, smaller(PANEL_ACTS, rows - m));
}

/* ---- Blocks of 32 ---- */

typedef struct block_panel {
    words code[64]; /* 8 blocks of 8 words */
    words start[8];
    reals d[8];
} block_panel;

INLINE void block_panel_fill(int32_t dtype, block_panel *p, const uint8_t *const row[ROWS],
                             int32_t blocks, int32_t bytes, int64_t ahead)
{
    _Alignas(64) int8_t code[ROWS][256];
    _Alignas(64) uint16_t d[8][ROWS];
    for (int r = 0; r < ROWS; r++) {
        prefetch(row[r] + ahead, blocks * bytes);
        for (int32_t b = 0; b < blocks; b++)
            d[b][r] = unpack_block(dtype, code[r] + b * 32, row[r] + b * bytes);
        memset(code[r] + blocks * 32, 0, (size_t)(256 - blocks * 32));
    }
    for (int i = 0; i < 64; i += ROWS)
        transpose(p->code + i, (const int8_t *)code + i * 4, sizeof code[0]);
    for (int32_t b = 0; b < blocks; b++) {
        p->start[b] = dot_start(p->code + b * 8, 8);
        p->d[b] = reals_from_half(d[b]);
    }
}

INLINE void block_tile(int acts, reals *y, const block_panel *p, const int8_t *const *a,
                       const float *const *d, int32_t blocks)
{
    _Alignas(64) int8_t buffer[DOT_ACTS][256];
    const int8_t *ready[DOT_ACTS];
    for (int m = 0; m < acts; m++)
        ready[m] = dot_acts(buffer[m], a[m], blocks * 32);
    for (int32_t b = 0; b < blocks; b++) {
        words sum[DOT_ACTS];
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m] = p->start[b];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            codes c = codes_load(p->code + b * 8 + i);
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++)
                sum[m] = dot(sum[m], c, ready[m] + b * 32 + i * 4, unit_scale());
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

INLINE void matmul_block(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                         int32_t count, const void *const *acts, int32_t rows)
{
    int32_t bytes = dtype == MM2_Q8_0   ? (int32_t)sizeof(mm2_block_q8_0)
                    : dtype == MM2_Q5_0 ? (int32_t)sizeof(mm2_block_q5_0)
                                        : (int32_t)sizeof(mm2_block_q4_0);
    for (int32_t m0 = 0; m0 < rows; m0 += SUM_ACTS) {
        int32_t some = smaller(SUM_ACTS, rows - m0);
        for (int32_t i = 0; i < count; i += ROWS) {
            reals y[SUM_ACTS];
            for (int32_t m = 0; m < some; m++)
                y[m] = reals_zero();
            for (int32_t begin = 0; begin < w->n_in; begin += 256) {
                block_panel panel;
                const uint8_t *row[ROWS];
                int32_t blocks = smaller(256, w->n_in - begin) / 32;
                for (int r = 0; r < ROWS; r++)
                    row[r] = weight_row(w, first, count, i + r) + (int64_t)begin / 32 * bytes;
                block_panel_fill(dtype, &panel, row, blocks, bytes, ROWS * w->row_bytes);
                block_panel_dot(y, &panel, acts + m0, some, w->n_in, begin, blocks);
            }
            for (int32_t m = 0; m < some; m++)
                reals_store_n(out[m0 + m] + i, y[m], count - i);
        }
    }
}

/* ---- Super-blocks of 256 ---- */

typedef struct super_panel {
    words code[64];
    words scale[16], start[16]; /* for 16 codes each; with wide sub-blocks the even ones, for 32 */
    words min[8];               /* pairs */
    reals d, dmin;
} super_panel;

INLINE int32_t super_bytes(int32_t dtype)
{
    return dtype == MM2_Q2_K   ? (int32_t)sizeof(mm2_block_q2_k)
           : dtype == MM2_Q3_K ? (int32_t)sizeof(mm2_block_q3_k)
           : dtype == MM2_Q4_K ? (int32_t)sizeof(mm2_block_q4_k)
           : dtype == MM2_Q5_K ? (int32_t)sizeof(mm2_block_q5_k)
           : dtype == MM2_Q6_K ? (int32_t)sizeof(mm2_block_q6_k)
                               : (int32_t)sizeof(mm2_block_iq4_xs);
}

/* Sub-blocks of 32? */
INLINE int is_wide(int32_t dtype)
{
    return dtype == MM2_Q4_K || dtype == MM2_Q5_K || dtype == MM2_IQ4_XS;
}

INLINE int has_minima(int32_t dtype)
{
    return dtype == MM2_Q2_K || dtype == MM2_Q4_K || dtype == MM2_Q5_K;
}

INLINE void super_panel_fill(int32_t dtype, super_panel *p, const uint8_t *const row[ROWS],
                             int64_t ahead)
{
    _Alignas(64) int8_t code[ROWS][256];
    _Alignas(64) factors factor[ROWS];
    _Alignas(64) uint16_t d[ROWS], dmin[ROWS];
    for (int r = 0; r < ROWS; r++) {
        prefetch(row[r] + ahead, super_bytes(dtype));
        unpack_super(dtype, code[r], &factor[r], &d[r], &dmin[r], row[r]);
    }
    for (int i = 0; i < 64; i += ROWS)
        transpose(p->code + i, (const int8_t *)code + i * 4, sizeof code[0]);
    words pairs[16]; /* 8 of scales, 8 of minima */
    for (int i = 0; i < 16; i += ROWS)
        transpose(pairs + i, (const int16_t *)factor + i * 2, sizeof factor[0]);
    split_scales(p->scale, pairs);
    memcpy(p->min, pairs + 8, sizeof p->min);
    int step = is_wide(dtype) ? 2 : 1;
    for (int i = 0; i < 16; i += step)
        p->start[i] = dot_start(p->code + i * 4, step * 4);
    p->d = reals_from_half(d);
    p->dmin = reals_from_half(dmin);
}

INLINE void super_tile(int wide, int minima, int acts, reals *y, const super_panel *p,
                       const int8_t *const *a, const float *d, const int16_t *const *sums)
{
    _Alignas(64) int8_t buffer[DOT_ACTS][256];
    const int8_t *ready[DOT_ACTS];
    words total[DOT_ACTS];
    int step = wide ? 2 : 1;
    for (int m = 0; m < acts; m++) {
        ready[m] = dot_acts(buffer[m], a[m], 256);
        total[m] = words_zero();
    }
    for (int s = 0; s < 16; s += step) {
        words sum[DOT_ACTS];
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m] = p->start[s];
#pragma GCC unroll 8
        for (int i = 0; i < step * 4; i++) {
            codes c = codes_load(p->code + s * 4 + i);
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++)
                sum[m] = dot(sum[m], c, ready[m] + s * 16 + i * 4, p->scale[s]);
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
        words least = words_zero();
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

INLINE void matmul_super(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                         int32_t count, const void *const *acts, int32_t rows)
{
    for (int32_t m0 = 0; m0 < rows; m0 += SUM_ACTS) {
        int32_t some = smaller(SUM_ACTS, rows - m0);
        for (int32_t i = 0; i < count; i += ROWS) {
            reals y[SUM_ACTS];
            for (int32_t m = 0; m < some; m++)
                y[m] = reals_zero();
            for (int32_t block = 0; block < w->n_in / MM2_SUPER; block++) {
                super_panel panel;
                const uint8_t *row[ROWS];
                for (int r = 0; r < ROWS; r++)
                    row[r] = weight_row(w, first, count, i + r) + block * super_bytes(dtype);
                super_panel_fill(dtype, &panel, row, ROWS * w->row_bytes);
                super_panel_dot(is_wide(dtype), has_minima(dtype), y, &panel, acts + m0, some,
                                w->n_in, block);
            }
            for (int32_t m = 0; m < some; m++)
                reals_store_n(out[m0 + m] + i, y[m], count - i);
        }
    }
}

/* ---- The slots ---- */

#define SLOT(name, shape, dtype)                                                                   \
    static void name(float *const *out, const mm2_weight *w, int32_t first, int32_t count,         \
                     const void *const *acts, int32_t rows)                                        \
    {                                                                                              \
        shape(dtype, out, w, first, count, acts, rows);                                            \
    }

SLOT(matmul_f32, matmul_float, MM2_F32)
SLOT(matmul_f16, matmul_float, MM2_F16)
SLOT(matmul_bf16, matmul_float, MM2_BF16)
SLOT(matmul_f8_e4m3, matmul_float, MM2_F8_E4M3)
SLOT(matmul_q8_0, matmul_block, MM2_Q8_0)
SLOT(matmul_q4_0, matmul_block, MM2_Q4_0)
SLOT(matmul_q5_0, matmul_block, MM2_Q5_0)
SLOT(matmul_iq4_nl, matmul_block, MM2_IQ4_NL)
SLOT(matmul_q2_k, matmul_super, MM2_Q2_K)
SLOT(matmul_q3_k, matmul_super, MM2_Q3_K)
SLOT(matmul_q4_k, matmul_super, MM2_Q4_K)
SLOT(matmul_q5_k, matmul_super, MM2_Q5_K)
SLOT(matmul_q6_k, matmul_super, MM2_Q6_K)
SLOT(matmul_iq4_xs, matmul_super, MM2_IQ4_XS)

static void fill_matmul(mm2_kernels *t)
{
    t->matmul[MM2_F32] = matmul_f32;
    t->matmul[MM2_F16] = matmul_f16;
    t->matmul[MM2_BF16] = matmul_bf16;
    t->matmul[MM2_F8_E4M3] = matmul_f8_e4m3;
    t->matmul[MM2_Q8_0] = matmul_q8_0;
    t->matmul[MM2_Q4_0] = matmul_q4_0;
    t->matmul[MM2_Q5_0] = matmul_q5_0;
    t->matmul[MM2_IQ4_NL] = matmul_iq4_nl;
    t->matmul[MM2_Q2_K] = matmul_q2_k;
    t->matmul[MM2_Q3_K] = matmul_q3_k;
    t->matmul[MM2_Q4_K] = matmul_q4_k;
    t->matmul[MM2_Q5_K] = matmul_q5_k;
    t->matmul[MM2_Q6_K] = matmul_q6_k;
    t->matmul[MM2_IQ4_XS] = matmul_iq4_xs;
}
