/* Sums in lanes of a vector level, in terms of the primitives of its lanes_*.h: the pieces of which
 * body_exact.h makes its matrix products, and what all products need.
 *
 * One activation row: ONE_ROWS rows of float weights run together, widened in registers. Several:
 * tiles of TILE_ROWS x TILE_ACTS accumulators run over a panel of float32 weights.
 *
 * The row groups of a call follow one another in memory; while one is read, the same place of the
 * next one is prefetched. Rows beyond the last are repeats of it whose results are dropped. */

enum {
    PANEL_SPAN = 256,  /* elements of k in a panel */
    PANEL_ROWS = ROWS, /* of a float panel */
    PANEL_ACTS = 32,   /* activation rows that use a float panel before it is made again */
    SCALE_SPAN = 128   /* FP8: elements with one scale */
};

static inline int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline const uint8_t *weight_row(const mm2_weight *w, int32_t first, int32_t count,
                                        int32_t i)
{
    return (const uint8_t *)w->data + (first + smaller(i, count - 1)) * w->row_bytes;
}

/* Not left to the compiler to inline: gcc 12 finds that the function computes nothing and drops
 * calls of it. */
INLINE void prefetch(const uint8_t *p, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + i, _MM_HINT_T1);
}

/* How far ahead the one stream of a product of one row is prefetched, in bytes, into the first and
 * the second level. Processors differ by a tenth of the speed (README); set with the table, before
 * anybody multiplies. */
static int32_t stream_near = 2048, stream_far = 6144;

static inline void stream_tune(const mm2_cpu_facts *cpu)
{
    if (cpu->amd)
        stream_near = 4096, stream_far = 8192;
}

/* A line; the second level `lead` bytes further ahead. */
INLINE void prefetch_stream(const uint8_t *p, int32_t lead)
{
    _mm_prefetch((const char *)p + stream_near, _MM_HINT_T0);
    _mm_prefetch((const char *)p + stream_far + lead, _MM_HINT_T1);
}

INLINE int32_t size_of(int32_t dtype)
{
    return mm2_format_of(dtype).bytes;
}

/* FP8: the scales along row i, and the step from one block of SCALE_SPAN columns to the next; without
 * scales, ones. */
static inline const float *scale_row(const mm2_weight *w, int32_t first, int32_t count, int32_t i,
                                     int32_t *step)
{
    static const float one = 1;
    int64_t row = (int64_t)first + smaller(i, count - 1) + w->scale_row;
    *step = 0;
    if (!w->scale)
        return &one;
    if (w->scale_rows && w->scale_rows != SCALE_SPAN)
        return w->scale + row / w->scale_rows;
    *step = 1;
    return w->scale + row / SCALE_SPAN * (w->n_in / SCALE_SPAN + (w->n_in % SCALE_SPAN != 0));
}

/* 64 elements to float32, in order. Those of FP8 are the instruction set's own. */
#define WIDEN64(name, bytes)                                                                       \
    INLINE void widen64_##name(const uint8_t *p, v16 out[4])                                       \
    {                                                                                              \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) out[i] = widen_##name(p + bytes * i);  \
    }
WIDEN64(f32, 64)
WIDEN64(f16, 32)
WIDEN64(bf16, 32)

INLINE void widen64(int32_t dtype, const uint8_t *p, v16 out[4])
{
    switch (dtype) {
#define WIDEN(ID, name, ...)                                                                       \
    case MM2_##ID:                                                                                 \
        widen64_##name(p, out);                                                                    \
        return;
        MM2_FLOATS(WIDEN)
        MM2_PAIRS(WIDEN)
#undef WIDEN
    }
    __builtin_unreachable();
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

/* By lane steps: 16 elements of every row, then the next 16. */
typedef float float_panel[PANEL_SPAN / 16][PANEL_ROWS][16];

/* One lane step: elements [k, k + n), n <= 16. */
INLINE void tile_step(int acts, v16 t[TILE_ROWS][TILE_ACTS], float_panel panel, int32_t first,
                      const float *const *x, int32_t k, int32_t n)
{
    v16 a[TILE_ACTS];
#pragma GCC unroll 3
    for (int m = 0; m < acts; m++)
        a[m] = n == 16 ? v16_load(x[m] + k) : v16_load_n(x[m] + k, n);
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++) {
        v16 b = v16_load(panel[k / 16][first + r]);
#pragma GCC unroll 3
        for (int m = 0; m < acts; m++)
            t[r][m] = v16_fma(b, a[m], t[r][m]);
    }
}

/* TILE_ROWS rows of the panel with `acts` activation rows over n elements, a scale
 * at a time. */
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
        int32_t k = begin;
        for (; k + 16 <= end; k += 16)
            tile_step(acts, t, panel, first, x, k, 16);
        if (k < end)
            tile_step(acts, t, panel, first, x, k, end - k);
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
