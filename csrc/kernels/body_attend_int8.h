/* Attention of a vector level to an INT8 cache, in terms of the primitives of its wide_*.h. Included
 * before body_attend.h, which cuts a group of heads into pieces. The cache's codes are loaded once
 * for the heads of a piece; sums are exact, so nothing here has an order but the softmax. */

/* x as factors and their scale before it is divided by MM2_WIDE_TOP, NaN for an x that is not finite;
 * returns what the sums with them start from. */
INLINE v16i widen(uint8_t *factors, const float *x, int32_t n, float *top)
{
    uint32_t bits = largest_bits(x, n);
    *top = bits < 0x7f800000 ? mm2_bits_f32(bits) : NAN;
    if (!(*top >= 1e-30f)) {
        memset(factors, 0, (size_t)n * 2);
        return wide_zero();
    }
    v16 inverse = v16_set1(MM2_WIDE_TOP / *top);
    v16i total = wide_zero();
    for (int32_t i = 0; i < n; i += 16)
        total = wide_add(total, wide_codes16(factors + i * 2, v16_mul(v16_load(x + i), inverse)));
    return wide_start(total);
}

/* Scores of `blocks` tiles of 16 positions from j on; c: the largest ones, lane by lane. */
INLINE void attend_tiles_int8(int heads, int blocks, float p[][MM2_CHUNK], v16 *c,
                              const uint8_t *factors, const v16i *from, const float *f,
                              const uint8_t *k, int64_t ahead, int32_t j, int32_t n,
                              int32_t head_dim)
{
    v16i s[WIDE_HEADS][WIDE_BLOCKS];
    int64_t tile = 16 * head_dim + 64;
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 2
        for (int i = 0; i < blocks; i++)
            s[h][i] = from[h];
    wide_dot(heads, blocks, s, k + j / 16 * tile, tile, head_dim / 4, head_dim / 4, 0, factors,
             2 * head_dim, ahead);
#pragma GCC unroll 2
    for (int i = 0; i < blocks; i++) {
        v16 scale = v16_load((const float *)(k + mm2_key_scale_at(head_dim, j + i * 16)));
#pragma GCC unroll 6
        for (int h = 0; h < heads; h++) { /* beyond n: -inf, which becomes a probability of 0 */
            v16 score = v16_mul(v16_mul(wide_floats(s[h][i]), scale), v16_set1(f[h]));
            if (n - j - i * 16 < 16)
                score = v16_keep_n(score, v16_set1(-INFINITY), n - j - i * 16);
            v16_store(p[h] + j + i * 16, score);
            c[h] = v16_larger(score, c[h]);
        }
    }
}

/* o = fma(sum of P v as a float * top, b, o * a), for `blocks` groups of 16 dimensions from `first`
 * on. */
INLINE void attend_values_int8(int heads, int blocks, float *o, const uint8_t *factors,
                               const v16i *from, const float *top, const float *a, const float *b,
                               const uint8_t *v, int32_t n, int32_t head_dim, int32_t first)
{
    v16i sums[WIDE_HEADS][WIDE_BLOCKS];
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 2
        for (int i = 0; i < blocks; i++)
            sums[h][i] = from[h];
    wide_dot(heads, blocks, sums, v + first * 64, 1024, (n + 3) / 4, 16, 64 * head_dim + 256 - 1024,
             factors, 2 * MM2_CHUNK, 0);
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 2
        for (int i = 0; i < blocks; i++) {
            float *to = o + h * head_dim + first + i * 16;
            v16 sum = v16_mul(wide_floats(sums[h][i]), v16_set1(top[h]));
            v16 old = v16_mul(v16_load(to), v16_set1(a[h]));
            v16_store(to, v16_fma(sum, v16_set1(b[h]), old));
        }
}

INLINE void attend_heads_int8(int heads, float *m, float *l, float *o, const float *q,
                              const uint8_t *k, const uint8_t *v, int64_t ahead, int32_t n,
                              int32_t head_dim, float scale)
{
    _Alignas(64) float p[WIDE_HEADS][MM2_CHUNK];
    _Alignas(64) uint8_t factors[WIDE_HEADS * 2 * MM2_INT8_DIM_LIMIT]; /* of q, then of p */
    v16 c[WIDE_HEADS];
    v16i from[WIDE_HEADS];
    float f[WIDE_HEADS], a[WIDE_HEADS], b[WIDE_HEADS], top[WIDE_HEADS];
    int32_t j = 0, first = 0;
    for (int h = 0; h < heads; h++) {
        from[h] = widen(factors + h * 2 * head_dim, q + h * head_dim, head_dim, &top[h]);
        f[h] = top[h] < 1e-30f ? 0 : top[h] / MM2_WIDE_TOP * scale;
        c[h] = v16_set1(-INFINITY);
    }
    for (; n - j > (WIDE_BLOCKS - 1) * 16; j += WIDE_BLOCKS * 16)
        attend_tiles_int8(heads, WIDE_BLOCKS, p, c, factors, from, f, k, ahead, j, n, head_dim);
    for (; j < n; j += 16)
        attend_tiles_int8(heads, 1, p, c, factors, from, f, k, ahead, j, n, head_dim);
    for (int h = 0; h < heads; h++) {
        float largest = v16_largest(c[h]) + 0.0f;
        v16 sum = v16_zero();
        for (j = 0; j < n; j += 16) {
            v16 e = exp16_finite(v16_sub(v16_load(p[h] + j), v16_set1(largest)));
            v16 t = v16_mul(e, v16_load((const float *)(v + mm2_value_scale_at(head_dim, j))));
            sum = v16_add(sum, e);
            v16_store(p[h] + j, n - j < 16 ? v16_keep_n(t, v16_zero(), n - j) : t);
        }
        from[h] = widen(factors + h * 2 * MM2_CHUNK, p[h], j, &top[h]);
        top[h] /= MM2_WIDE_TOP;
        attend_weights(m + h, largest, a + h, b + h);
        l[h] = fmaf(v16_tree(sum), b[h], l[h] * a[h]);
    }
    for (; first + WIDE_BLOCKS * 16 <= head_dim; first += WIDE_BLOCKS * 16)
        attend_values_int8(heads, WIDE_BLOCKS, o, factors, from, top, a, b, v, n, head_dim, first);
    for (; first < head_dim; first += 16)
        attend_values_int8(heads, 1, o, factors, from, top, a, b, v, n, head_dim, first);
}
