/* Attention of a vector level, in terms of the primitives of its lanes_*.h. Included after
 * body_exp.h and body_float.h.
 *
 * Heads of a group run together, so that keys and values are loaded once for them. Scores: lanes
 * are the 16 positions of a tile. Values: lanes are dimensions, and the probability of a position is
 * spread over them. A cache in MM2_F32 has one chain for each sum; in MM2_BF16 a step has two, of the
 * even and of the odd index, which lie side by side in the cache. In MM2_INT8 there are no chains:
 * body_attend_int8.h. */

#include "kernels/fetch.h"

enum { GROUP_HEADS = 6, VALUES_AHEAD = 16, STEP_SPAN = 32 };
_Static_assert((int)GROUP_HEADS == (int)WIDE_HEADS, "heads that run together");

/* ---- Scores ---- */

typedef v16 head_sums[GROUP_HEADS][4];

INLINE void no_sums(int heads, int count, head_sums sums)
{
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
            sums[h][i] = v16_zero();
}

/* sums[h][i] += a[h * stride] * b[i] */
INLINE void add_head_products(int heads, int count, head_sums sums, const float *a, int32_t stride,
                              const v16 b[4])
{
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++) {
        v16 x = v16_set1(a[h * stride]);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
            sums[h][i] = v16_fma(x, b[i], sums[h][i]);
    }
}

INLINE void add_head_steps(int heads, int count, head_sums sums, head_sums chain[2])
{
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
            sums[h][i] = v16_add(sums[h][i], v16_add(chain[0][h][i], chain[1][h][i]));
}

/* s = sum over d of q[d] * k[d], for `tiles` tiles from k on. */
INLINE void score_f32(int heads, int tiles, head_sums s, const float *q, const float *k,
                      int64_t ahead, int32_t head_dim)
{
    no_sums(heads, tiles, s);
    for (int32_t d = 0; d < head_dim; d++) {
        v16 key[4];
#pragma GCC unroll 4
        for (int t = 0; t < tiles; t++)
            key[t] = v16_load(k + ((int64_t)t * head_dim + d) * 16);
#pragma GCC unroll 4
        for (int t = 0; t < tiles; t++) { /* the same place of the next tiles */
            fetch_near(k + ((int64_t)(tiles + t) * head_dim + d) * 16);
            fetch_other(k + ((int64_t)t * head_dim + d) * 16, ahead);
        }
        add_head_products(heads, tiles, s, q + d, head_dim, key);
    }
}

/* The same of pairs, chain by chain, q being bf16 values. */
INLINE void score_bf16(int heads, int tiles, head_sums s, const float *q, const uint16_t *k,
                       int64_t ahead, int32_t head_dim)
{
    no_sums(heads, tiles, s);
    for (int32_t begin = 0; begin < head_dim; begin += STEP_SPAN) {
        head_sums chain[2];
        int32_t end = smaller(begin + STEP_SPAN, head_dim);
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
            no_sums(heads, tiles, chain[odd]);
            for (int32_t d = begin; d < end; d += 2) {
                v16 key[4];
#pragma GCC unroll 4
                for (int t = 0; t < tiles; t++) {
                    const uint16_t *p = k + ((int64_t)t * head_dim + d) * 16;
                    key[t] = odd ? v16_odd(p) : v16_even(p);
                    if (odd)
                        fetch_other(p, ahead);
                    else
                        fetch_near(p + (int64_t)tiles * head_dim * 16);
                }
                add_head_products(heads, tiles, chain[odd], q + d + odd, head_dim, key);
            }
        }
        add_head_steps(heads, tiles, s, chain);
    }
}

/* Scores of `tiles` tiles of 16 positions from j on; c: the largest ones, lane by lane. */
INLINE void attend_tiles(int heads, int tiles, int32_t dtype, float p[][MM2_CHUNK], v16 *c,
                         const float *q, const void *k, int64_t ahead, int32_t j, int32_t n,
                         int32_t head_dim, float scale)
{
    head_sums s;
    int64_t at = (int64_t)j * head_dim;
    if (dtype == MM2_F32)
        score_f32(heads, tiles, s, q, (const float *)k + at, ahead, head_dim);
    else
        score_bf16(heads, tiles, s, q, (const uint16_t *)k + at, ahead, head_dim);
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int t = 0; t < tiles; t++) { /* beyond n: -inf, which becomes a probability of 0 */
            v16 score = v16_mul(v16_set1(scale), s[h][t]);
            if (n - j - t * 16 < 16)
                score = v16_keep_n(score, v16_set1(-INFINITY), n - j - t * 16);
            v16_store(p[h] + j + t * 16, score);
            c[h] = v16_larger(score, c[h]);
        }
}

/* Scores of all positions and the largest of each head, +0 for -0. */
INLINE void attend_scores(int heads, int32_t dtype, float p[][MM2_CHUNK], float *largest,
                          const float *q, const void *k, int64_t ahead, int32_t n, int32_t head_dim,
                          float scale)
{
    v16 c[GROUP_HEADS];
    int32_t j = 0;
    for (int h = 0; h < heads; h++)
        c[h] = v16_set1(-INFINITY);
    for (; n - j > (KEY_TILES - 1) * 16; j += KEY_TILES * 16)
        attend_tiles(heads, KEY_TILES, dtype, p, c, q, k, ahead, j, n, head_dim, scale);
    for (; j < n; j += 16)
        attend_tiles(heads, 1, dtype, p, c, q, k, ahead, j, n, head_dim, scale);
    for (int h = 0; h < heads; h++)
        largest[h] = v16_largest(c[h]) + 0.0f;
}

/* ---- Values ---- */

/* sum = sum over j of p[j] * v[j], for `lanes` groups of 16 dimensions from v on. */
INLINE void weigh_f32(int heads, int lanes, head_sums sum, float p[][MM2_CHUNK], const float *v,
                      int32_t n, int32_t head_dim)
{
    no_sums(heads, lanes, sum);
    for (int32_t j = 0; j < n; j++, v += head_dim) {
        v16 value[4];
#pragma GCC unroll 4
        for (int i = 0; i < lanes; i++) {
            value[i] = v16_load(v + i * 16);
            fetch_near(v + VALUES_AHEAD * head_dim + i * 16);
        }
        add_head_products(heads, lanes, sum, p[0] + j, MM2_CHUNK, value);
    }
}

/* The same of pairs, chain by chain, p being bf16 values. */
INLINE void weigh_bf16(int heads, int lanes, head_sums sum, float p[][MM2_CHUNK], const uint16_t *v,
                       int32_t n)
{
    no_sums(heads, lanes, sum);
    for (int32_t begin = 0; begin < n; begin += STEP_SPAN) {
        head_sums chain[2];
        int32_t end = smaller(begin + STEP_SPAN, n);
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
            no_sums(heads, lanes, chain[odd]);
            for (int32_t j = begin; j + odd < end; j += 2) {
                v16 value[4];
#pragma GCC unroll 4
                for (int i = 0; i < lanes; i++) {
                    const uint16_t *at = v + (i * MM2_CHUNK + j) * 16;
                    value[i] = odd ? v16_odd(at) : v16_even(at);
                    if (!odd)
                        fetch_near(at + VALUES_AHEAD * 32);
                }
                add_head_products(heads, lanes, chain[odd], p[0] + j + odd, MM2_CHUNK, value);
            }
        }
        add_head_steps(heads, lanes, sum, chain);
    }
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int i = 0; i < lanes; i++)
            sum[h][i] = v16_add(sum[h][i], v16_zero()); /* +0 for -0 */
}

/* o = fma(sum of p v, b, o * a) for `lanes` groups of 16 dimensions from `first` on. */
INLINE void attend_values(int heads, int lanes, int32_t dtype, float *o, float p[][MM2_CHUNK],
                          const float *a, const float *b, const void *v, int32_t n,
                          int32_t head_dim, int32_t first)
{
    head_sums sum;
    if (dtype == MM2_F32)
        weigh_f32(heads, lanes, sum, p, (const float *)v + first, n, head_dim);
    else
        weigh_bf16(heads, lanes, sum, p, (const uint16_t *)v + first * MM2_CHUNK, n);
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int i = 0; i < lanes; i++) {
            float *to = o + h * head_dim + first + i * 16;
            v16 old = v16_mul(v16_load(to), v16_set1(a[h]));
            v16_store(to, v16_fma(sum[h][i], v16_set1(b[h]), old));
        }
}

/* ---- Heads ---- */

/* ahead: from the place of a key to that of a value, which is fetched there. */
INLINE void attend_heads(int heads, int32_t dtype, float *m, float *l, float *o, const float *q,
                         const void *k, const void *v, int64_t ahead, int32_t n, int32_t head_dim,
                         float scale)
{
    _Alignas(64) float p[GROUP_HEADS][MM2_CHUNK], rounded[GROUP_HEADS * MM2_HEAD_DIM_LIMIT];
    float c[GROUP_HEADS], a[GROUP_HEADS], b[GROUP_HEADS];
    if (dtype == MM2_INT8) {
        attend_heads_int8(heads, m, l, o, q, k, v, ahead, n, head_dim, scale);
        return;
    }
    if (dtype == MM2_BF16) {
        for (int32_t i = 0; i < heads * head_dim; i += 16)
            v16_store(rounded + i, v16_bf16(v16_load(q + i)));
        q = rounded;
    }
    attend_scores(heads, dtype, p, c, q, k, ahead, n, head_dim, scale);
    for (int h = 0; h < heads; h++) {
        v16 sum = v16_zero();
        for (int32_t j = 0; j < n; j += 16) {
            v16 e = exp16_finite(v16_sub(v16_load(p[h] + j), v16_set1(c[h])));
            sum = v16_add(sum, e);
            v16_store(p[h] + j, dtype == MM2_BF16 ? v16_bf16(e) : e);
        }
        attend_weights(m + h, c[h], a + h, b + h);
        l[h] = fmaf(v16_tree(sum), b[h], l[h] * a[h]);
    }
    int32_t first = 0;
    for (; first + VALUE_LANES * 16 <= head_dim; first += VALUE_LANES * 16)
        attend_values(heads, VALUE_LANES, dtype, o, p, a, b, v, n, head_dim, first);
    for (; first < head_dim; first += 16)
        attend_values(heads, 1, dtype, o, p, a, b, v, n, head_dim, first);
}

/* The heads of one row. */
INLINE void attend_row(int32_t dtype, float *m, float *l, float *o, const float *q, int32_t heads,
                       const void *k, const void *v, int64_t ahead, int32_t n, int32_t head_dim,
                       float scale)
{
    while (heads > 0) {
        int together;
        if (heads >= 6) {
            attend_heads(6, dtype, m, l, o, q, k, v, ahead, n, head_dim, scale);
            together = 6;
        } else if (heads >= 4) {
            attend_heads(4, dtype, m, l, o, q, k, v, ahead, n, head_dim, scale);
            together = 4;
        } else if (heads >= 2) {
            attend_heads(2, dtype, m, l, o, q, k, v, ahead, n, head_dim, scale);
            together = 2;
        } else {
            attend_heads(1, dtype, m, l, o, q, k, v, ahead, n, head_dim, scale);
            together = 1;
        }
        heads -= together;
        m += together;
        l += together;
        o += together * head_dim;
        q += together * head_dim;
    }
}

INLINE void attend(int32_t dtype, float *m, float *l, float *o, const float *q, int32_t stride,
                   int32_t rows, int32_t heads, const void *k, const void *v, int32_t n,
                   int32_t head_dim, float scale)
{
    int64_t ahead = distance(k, v);
    for (int32_t r = 0; r < rows; r++, m += stride, l += stride) {
        attend_row(dtype, m, l, o, q, heads, k, v, ahead, smaller(n + r, MM2_CHUNK), head_dim,
                   scale);
        ahead = 0; /* it is in the cache */
        o += (int64_t)stride * head_dim;
        q += (int64_t)stride * head_dim;
    }
}

static void attend_f32(float *m, float *l, float *o, const float *q, int32_t stride, int32_t rows,
                       int32_t heads, const void *k, const void *v, int32_t n, int32_t head_dim,
                       float scale)
{
    attend(MM2_F32, m, l, o, q, stride, rows, heads, k, v, n, head_dim, scale);
}

static void attend_bf16(float *m, float *l, float *o, const float *q, int32_t stride, int32_t rows,
                        int32_t heads, const void *k, const void *v, int32_t n, int32_t head_dim,
                        float scale)
{
    attend(MM2_BF16, m, l, o, q, stride, rows, heads, k, v, n, head_dim, scale);
}

static void attend_int8(float *m, float *l, float *o, const float *q, int32_t stride, int32_t rows,
                        int32_t heads, const void *k, const void *v, int32_t n, int32_t head_dim,
                        float scale)
{
    attend(MM2_INT8, m, l, o, q, stride, rows, heads, k, v, n, head_dim, scale);
}
