/* exp of 16 floats in terms of the primitives of a lanes_*.h: the twin of mm2_exp. NaN passes
 * through: t, r and q are NaN, and neither comparison is true. */

/* Of floats that are at most 88.7, or NaN. */
static inline v16 exp16_finite(v16 x)
{
    v16 magic = v16_set1(12582912), one = v16_set1(1);
    v16 t = v16_fma(x, v16_set1(0x1.715476p+0f), magic);
    v16 n = v16_sub(t, magic);
    v16 r = v16_fma(n, v16_set1(-0x1.62e4p-1f), x);
    r = v16_fma(n, v16_set1(-0x1.7f7d1cp-20f), r);
    v16 q = v16_fma(v16_set1(0x1.6a241p-10f), r, v16_set1(0x1.1239f8p-7f));
    q = v16_fma(q, r, v16_set1(0x1.5558f2p-5f));
    q = v16_fma(q, r, v16_set1(0x1.555492p-3f));
    q = v16_fma(q, r, v16_set1(0x1.fffffcp-2f));
    q = v16_fma(q, r, one);
    q = v16_fma(q, r, one);
    return v16_where_less(x, v16_set1(-87.3f), v16_zero(), v16_times_power(q, t, magic));
}

static inline v16 exp16(v16 x)
{
    return v16_where_less(v16_set1(88.7f), x, v16_set1(INFINITY), exp16_finite(x));
}

/* Attention: m becomes the larger of a running maximum m and a new one, c; a and b are what sums
 * of the one and of the other are to be multiplied with. */
static inline void attend_weights(float *m, float c, float *a, float *b)
{
    float largest = *m > c ? *m : c, weights[16] = {*m - largest, c - largest};
    v16_store(weights, exp16(v16_load(weights)));
    *m = largest;
    *a = weights[0];
    *b = weights[1];
}
