/* Matrix products of BF16 and FP8 weights with bf16 activations in the order of the matrix units
 * (kernels.h), in terms of the primitives of a codes_*.h. Included after body_float.h.
 *
 * A step has two chains, of the even and of the odd k, over its 16 pairs; what is independent are
 * steps, weight rows and activation rows.
 *
 * One to FEW_ACTS activation rows: lanes are ROWS steps of one weight row. Pairs are dwords, so 16
 * bytes of each step, transposed in registers, give four pairs of all of them; FP8 needs no
 * transposition, because the four steps of a block lie side by side in every qword. Weight rows are
 * read one after the other, as one ascending stream. The sums of steps (FP8: blocks) are kept for
 * FEW_ROWS weight rows, whose ordered additions then run side by side.
 *
 * More: lanes are 16 activation rows. 128 k of the weights are widened and as much of the
 * activations transposed, so that both stay in near caches, and tiles of PAIR_ROWS weight rows x
 * PAIR_VECTORS x 16 activation rows run over them. */

enum {
    STEP = 32,           /* elements of a step */
    GROUP = STEP * ROWS, /* elements whose steps (or blocks of four steps) share a register */
    FEW_ROWS = 8,
    FEW_ACTS = 4,
    FEW_FLOATS = 8192, /* of activations that are prepared together */
    FEW_SUMS = FEW_FLOATS / STEP,
    FEW_LIMIT = 10, /* this many activation rows are many */
    FEW_T0 = 1024,  /* bytes that the stream is prefetched ahead, into the first */
    FEW_T1 = 4096,  /* and the second level */
    MANY_ACTS = 96, /* activation rows of a pass, a multiple of 16 */
    MANY_ROWS = 16 * PAIR_ROWS,
    MANY_AHEAD = 2 /* pieces of 128 k that weights are prefetched ahead */
};

#define ONE(...) +1
_Static_assert(MM2_PAIRS(ONE) == 2, "the tests for MM2_BF16 below mean: BF16, or FP8");
#undef ONE

/* ---- Few activation rows ---- */

/* The two floats of ROWS pairs. */
INLINE reals pair_even(words pair)
{
    return reals_of(words_shl(pair, 16));
}

INLINE reals pair_odd(words pair)
{
    return reals_of(words_and(pair, words_set1((int32_t)0xffff0000)));
}

/* Pair p of every step in a group: even ones in [p][0], odd ones in [p][1]. */
typedef float group_acts[16][2][ROWS];

/* `elements` bf16 activations, of which the last group may lack some. */
INLINE void few_prepare(int32_t dtype, group_acts *out, const uint16_t *act, int32_t elements)
{
    for (int32_t k = 0; k < elements; k += GROUP, out++) {
        _Alignas(64) uint8_t rest[GROUP * 2];
        const uint8_t *p = (const uint8_t *)(act + k);
        if (elements - k < GROUP) {
            memset(rest, 0, sizeof rest);
            memcpy(rest, p, (size_t)(elements - k) * 2);
            p = rest;
        }
        for (int i = 0; i < 16; i += 4) {
            words pair[4];
            if (dtype == MM2_BF16)
                transpose4(pair, p + i * 4, STEP * 2);
            for (int j = 0; j < 4; j++) {
                if (dtype == MM2_F8_E4M3)
                    pair[j] = words_quads(p + (i + j) * 16, SCALE_SPAN * 2);
                reals_store((*out)[i + j][0], pair_even(pair[j]));
                reals_store((*out)[i + j][1], pair_odd(pair[j]));
            }
        }
    }
}

/* The sums of ROWS steps: even plus odd chain. */
INLINE void few_group(int32_t dtype, int acts, reals sum[FEW_ACTS], const uint8_t *p,
                      const group_acts *const x[FEW_ACTS])
{
    reals even[FEW_ACTS], odd[FEW_ACTS];
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
        even[m] = odd[m] = reals_zero();
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        words pair[4];
        if (dtype == MM2_BF16) {
            transpose4(pair, p + i * 4, STEP * 2);
        } else {
            pairs_f8(words_quads(p + i * 8, SCALE_SPAN), pair);
            pairs_f8(words_quads(p + i * 8 + 16, SCALE_SPAN), pair + 2);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
#pragma GCC unroll 4
            for (int m = 0; m < acts; m++) {
                even[m] = reals_fma(pair_even(pair[j]), reals_load((*x[m])[i + j][0]), even[m]);
                odd[m] = reals_fma(pair_odd(pair[j]), reals_load((*x[m])[i + j][1]), odd[m]);
            }
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++) {
        sum[m] = reals_add(even[m], odd[m]);
        if (dtype == MM2_F8_E4M3)
            sum[m] = reals_quads(sum[m]);
    }
}

/* The sums of a weight row over n elements: of each step, or of each block in every fourth place;
 * those of activation row m from m * stride on. */
INLINE void few_row(int32_t dtype, int acts, float *sums, int32_t stride, const uint8_t *row,
                    const group_acts *const x[FEW_ACTS], int32_t n, int64_t ahead)
{
    int32_t size = size_of(dtype);
    for (int32_t k = 0, g = 0; k < n; k += GROUP, g++) {
        _Alignas(64) uint8_t rest[GROUP * 2];
        const uint8_t *p = row + (int64_t)k * size;
        const group_acts *at[FEW_ACTS];
        reals sum[FEW_ACTS];
        for (int i = 0; i < GROUP * size; i += 64) {
            _mm_prefetch((const char *)p + i + FEW_T0, _MM_HINT_T0);
            _mm_prefetch((const char *)p + i + ahead, _MM_HINT_T1);
        }
        if (n - k < GROUP) {
            memset(rest, 0, sizeof rest);
            memcpy(rest, p, (size_t)((n - k) * size));
            p = rest;
        }
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            at[m] = x[m] + g;
        few_group(dtype, acts, sum, p, at);
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            reals_store(sums + m * stride + g * ROWS, sum[m]);
    }
}

/* y[r] = the ordered sum of what few_row left: plain for steps, scaled for blocks. */
INLINE void few_chains(int32_t dtype, int rows, float *y, const float *sums,
                       const float *const *scale, int32_t scale_step, int32_t terms)
{
    float total[FEW_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        total[r] = y[r];
    for (int32_t i = 0; i < terms; i++)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            total[r] = dtype == MM2_BF16
                           ? total[r] + sums[r * FEW_SUMS + i]
                           : fmaf(scale[r][i * scale_step], sums[r * FEW_SUMS + i * 4], total[r]);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        y[r] = total[r];
}

INLINE void matmul_few(int32_t dtype, int acts, float *const *out, const mm2_weight *w,
                       int32_t first, int32_t count, const void *const *act)
{
    enum { GROUPS = FEW_FLOATS / GROUP };
    _Alignas(64) group_acts prepared[GROUPS];
    _Alignas(64) float sums[FEW_ROWS][FEW_SUMS];
    int32_t groups = GROUPS / acts, size = size_of(dtype);
    for (int m = 0; m < acts; m++)
        memset(out[m], 0, (size_t)count * sizeof(float));
    for (int32_t begin = 0; begin < w->n_in; begin += groups * GROUP) {
        int32_t n = smaller(groups * GROUP, w->n_in - begin), piece = acts == 1 ? n : GROUP;
        int32_t span = dtype == MM2_BF16 ? STEP : SCALE_SPAN, terms = (n + span - 1) / span;
        for (int m = 0; m < acts; m++)
            few_prepare(dtype, prepared + m * groups, (const uint16_t *)act[m] + begin, n);
        for (int32_t i = 0; i < count; i += FEW_ROWS) {
            const uint8_t *row[FEW_ROWS];
            const float *scale[FEW_ROWS];
            int32_t rows = smaller(FEW_ROWS, count - i), step = 0;
            for (int32_t r = 0; r < FEW_ROWS; r++) {
                row[r] = weight_row(w, first, count, i + r) + (int64_t)begin * size;
                scale[r] = scale_row(w, first, count, i + r, &step) + begin / SCALE_SPAN * step;
            }
            for (int32_t k = 0; k < n; k += piece) {
                const group_acts *x[FEW_ACTS];
                for (int m = 0; m < acts; m++)
                    x[m] = prepared + m * groups + k / GROUP;
                for (int32_t r = 0; r < rows; r++)
                    few_row(dtype, acts, sums[r] + k / STEP, groups * ROWS,
                            row[r] + (int64_t)k * size, x, smaller(piece, n - k),
                            acts == 1 ? FEW_T1 : FEW_ROWS * w->row_bytes);
            }
            for (int m = 0; m < acts; m++) {
                const float *s = sums[0] + m * groups * ROWS;
                if (rows == FEW_ROWS)
                    few_chains(dtype, FEW_ROWS, out[m] + i, s, scale, step, terms);
                for (int r = 0; r < rows && rows < FEW_ROWS; r++)
                    few_chains(dtype, 1, out[m] + i + r, s + r * FEW_SUMS, scale + r, step, terms);
            }
        }
    }
}

/* ---- Many ---- */

typedef struct many {
    _Alignas(64) float weight[MANY_ROWS][SCALE_SPAN];
    float act[PAIR_VECTORS][SCALE_SPAN][16];
    float sum[MANY_ROWS][MANY_ACTS];
} many;

/* Weights [begin, begin + n) of `count` rows, n <= 128, padded with zeros. */
INLINE void many_weights(int32_t dtype, many *t, const mm2_weight *w, int32_t first, int32_t count,
                         int32_t begin, int32_t n)
{
    for (int32_t r = 0; r < count; r++) {
        const uint8_t *p =
            (const uint8_t *)w->data + (first + r) * w->row_bytes + (int64_t)begin * size_of(dtype);
        prefetch(p + MANY_AHEAD * SCALE_SPAN * size_of(dtype), SCALE_SPAN * size_of(dtype));
        for (int32_t k = 0; k < SCALE_SPAN; k += 64) {
            v16 b[4];
            if (k + 64 <= n)
                widen64(dtype, p + k * size_of(dtype), b);
            else
                widen_rest(dtype, p + k * size_of(dtype), n > k ? n - k : 0, b);
            for (int i = 0; i < 4; i++)
                v16_store(t->weight[r] + k + i * 16, b[i]);
        }
    }
}

/* 128 activations of 16 rows from k = begin on; the first `rows` of them exist, others are zero. */
INLINE void many_acts(float out[SCALE_SPAN][16], const void *const *acts, int32_t rows,
                      int32_t begin)
{
    _Alignas(64) uint8_t joined[16][SCALE_SPAN * 2];
    for (int32_t m = 0; m < 16; m++) {
        if (m < rows)
            memcpy(joined[m], (const uint16_t *)acts[m] + begin, sizeof joined[m]);
        else
            memset(joined[m], 0, sizeof joined[m]);
    }
    for (int32_t m = 0; m < 16; m += ROWS)
        for (int32_t k = 0; k < SCALE_SPAN; k += 8) {
            words pair[4];
            transpose4(pair, joined[m] + k * 2, sizeof joined[0]);
            for (int j = 0; j < 4; j++) {
                reals_store(out[k + j * 2] + m, pair_even(pair[j]));
                reals_store(out[k + j * 2 + 1] + m, pair_odd(pair[j]));
            }
        }
}

/* One step of PAIR_ROWS weight rows from row `first` on: t = even + odd chain. Pairs are `stride`
 * apart. */
INLINE void tile_pairs(int vectors, v16 t[PAIR_ROWS][PAIR_VECTORS], const many *x, int32_t first,
                       int32_t k, int32_t stride)
{
    v16 even[PAIR_ROWS][PAIR_VECTORS], odd[PAIR_ROWS][PAIR_VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < PAIR_ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            even[r][v] = odd[r][v] = v16_zero();
    const float *w = x->weight[first] + k, *a = x->act[0][k];
    for (int p = 0; p < 16; p++, w += stride, a += stride * 16) {
        v16 b[PAIR_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            b[v] = v16_load(a + v * SCALE_SPAN * 16);
#pragma GCC unroll 4
        for (int r = 0; r < PAIR_ROWS; r++) {
            v16 c = v16_set1(w[r * SCALE_SPAN]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                even[r][v] = v16_fma(c, b[v], even[r][v]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            b[v] = v16_load(a + v * SCALE_SPAN * 16 + 16);
#pragma GCC unroll 4
        for (int r = 0; r < PAIR_ROWS; r++) {
            v16 c = v16_set1(w[r * SCALE_SPAN + 1]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                odd[r][v] = v16_fma(c, b[v], odd[r][v]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < PAIR_ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            t[r][v] = v16_add(even[r][v], odd[r][v]);
}

/* The tile's part of `steps` steps. scale: of PAIR_ROWS rows (FP8). */
INLINE void many_tile(int32_t dtype, int vectors, many *x, int32_t first, int32_t act,
                      const float *scale, int32_t steps)
{
    v16 t[PAIR_ROWS][PAIR_VECTORS], c[PAIR_ROWS][PAIR_VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < PAIR_ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            c[r][v] = v16_zero();
    for (int32_t s = 0; s < steps; s++) {
        tile_pairs(vectors, t, x, first, dtype == MM2_BF16 ? s * STEP : s * 2,
                   dtype == MM2_BF16 ? 2 : 8);
#pragma GCC unroll 4
        for (int r = 0; r < PAIR_ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                float *sum = x->sum[first + r] + act + v * 16;
                if (dtype == MM2_BF16)
                    v16_store(sum, v16_add(v16_load(sum), t[r][v]));
                else
                    c[r][v] = v16_add(c[r][v], t[r][v]);
            }
    }
    if (dtype == MM2_BF16)
        return;
#pragma GCC unroll 4
    for (int r = 0; r < PAIR_ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            float *sum = x->sum[first + r] + act + v * 16;
            v16_store(sum, v16_fma(v16_set1(scale[r]), c[r][v], v16_load(sum)));
        }
}

INLINE void many_tiles(int32_t dtype, int vectors, many *x, int32_t count, int32_t act,
                       const float *scale, int32_t steps)
{
    for (int32_t r = 0; r < count; r += PAIR_ROWS)
        many_tile(dtype, vectors, x, r, act, scale + r, steps);
}

/* At most MANY_ROWS weight rows and MANY_ACTS activation rows. */
INLINE void matmul_many(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                        int32_t count, const void *const *acts, int32_t rows)
{
    many x;
    memset(x.sum, 0, sizeof x.sum);
    for (int32_t begin = 0; begin < w->n_in; begin += SCALE_SPAN) {
        int32_t n = smaller(SCALE_SPAN, w->n_in - begin);
        int32_t steps = dtype == MM2_BF16 ? (n + STEP - 1) / STEP : SCALE_SPAN / STEP;
        float scale[MANY_ROWS];
        for (int32_t r = 0; r < MANY_ROWS && dtype == MM2_F8_E4M3; r++) {
            int32_t step;
            const float *s = scale_row(w, first, count, r, &step);
            scale[r] = s[begin / SCALE_SPAN * step];
        }
        many_weights(dtype, &x, w, first, count, begin, n);
        for (int32_t m = 0, vectors; m < rows; m += vectors * 16) {
            int32_t left = (rows - m + 15) / 16;
            vectors = left == PAIR_VECTORS + 1 ? (left + 1) / 2 : smaller(left, PAIR_VECTORS);
            for (int32_t v = 0; v < vectors; v++)
                many_acts(x.act[v], acts + m + v * 16, rows - m - v * 16, begin);
            if (vectors == PAIR_VECTORS)
                many_tiles(dtype, PAIR_VECTORS, &x, count, m, scale, steps);
            else if (vectors == 2)
                many_tiles(dtype, PAIR_VECTORS < 2 ? 1 : 2, &x, count, m, scale, steps);
            else
                many_tiles(dtype, 1, &x, count, m, scale, steps);
        }
    }
    for (int32_t m = 0; m < rows; m++)
        for (int32_t r = 0; r < count; r++)
            out[m][r] = x.sum[r][m];
}

/* ---- Both ---- */

INLINE void matmul_bf16_acts(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                             int32_t count, const void *const *acts, int32_t rows)
{
    if (rows >= FEW_LIMIT) {
        for (int32_t i = 0; i < count; i += MANY_ROWS)
            for (int32_t m = 0; m < rows; m += MANY_ACTS) {
                float *at[MANY_ACTS];
                int32_t some = smaller(MANY_ACTS, rows - m);
                for (int32_t k = 0; k < some; k++)
                    at[k] = out[m + k] + i;
                matmul_many(dtype, at, w, first + i, smaller(MANY_ROWS, count - i), acts + m, some);
            }
        return;
    }
    for (int32_t m = 0; m < rows; m += FEW_ACTS) {
        switch (smaller(FEW_ACTS, rows - m)) {
        case 4:
            matmul_few(dtype, 4, out + m, w, first, count, acts + m);
            break;
        case 3:
            matmul_few(dtype, 3, out + m, w, first, count, acts + m);
            break;
        case 2:
            matmul_few(dtype, 2, out + m, w, first, count, acts + m);
            break;
        default:
            matmul_few(dtype, 1, out + m, w, first, count, acts + m);
        }
    }
}
