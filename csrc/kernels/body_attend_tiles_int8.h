/* Attention of many query rows to an INT8 cache on tiles. Included after body_attend_tiles.h and
 * wide_avx512.h.
 *
 * A factor of a query or of a probability is two signed bytes, 256 * high + low. A tile of operand A
 * holds both of 8 queries, so that one product serves both and a sum is 256 times that of a row plus
 * that of the row 8 further down. BYTE_QUERIES, two tiles, are gone through together, as in
 * body_attend_tiles.h. Codes of positions that a query does not see are multiplied by 0, and integers
 * show nothing of that. */

enum {
    BYTE_QUERIES = 16,
    BYTE_STRIDE = MM2_CHUNK + 64 /* of rows of factors: no multiple of a page's lines */
};

typedef struct tile_bytes {                                   /* [row of A]: see row_of */
    _Alignas(64) int8_t q[2 * BYTE_QUERIES * TILE_DIM_LIMIT]; /* [2 * BYTE_QUERIES][head_dim] */
    _Alignas(64) int8_t p[2 * BYTE_QUERIES][BYTE_STRIDE];
    _Alignas(64) int32_t sums[2 * BYTE_QUERIES][MM2_CHUNK]; /* of scores, then of values */
    _Alignas(64) float t[MM2_CHUNK];                        /* scores and weights of one query */
    float f[BYTE_QUERIES], c[BYTE_QUERIES], l[BYTE_QUERIES], top[BYTE_QUERIES];
    int32_t n[BYTE_QUERIES]; /* positions that a query sees */
} tile_bytes;
_Static_assert((int)TILE_DIM_LIMIT <= (int)MM2_CHUNK, "sums of values have room");

/* Of the high bytes of query u; the low ones are 8 rows further down. */
static inline int32_t row_of(int32_t u)
{
    return u / 8 * 16 + u % 8;
}

/* n floats as factors in the rows `high` and `low`; their scale before it is divided by
 * MM2_WIDE_TOP, NaN for floats that are not finite. */
INLINE float widen_bytes(int8_t *high, int8_t *low, const float *x, int32_t n)
{
    uint32_t bits = largest_bits(x, n);
    float top = bits < 0x7f800000 ? mm2_bits_f32(bits) : NAN;
    if (!(top >= 1e-30f)) {
        memset(high, 0, (size_t)n);
        memset(low, 0, (size_t)n);
        return top;
    }
    v16 inverse = v16_set1(MM2_WIDE_TOP / top);
    for (int32_t i = 0; i < n; i += 16)
        wide_split(v16_mul(v16_load(x + i), inverse), (__m128i *)(high + i), (__m128i *)(low + i));
    return top;
}

INLINE v16 joined(const int32_t *high, const int32_t *low)
{
    v16i sum = _mm512_slli_epi32(_mm512_load_si512(high), 8);
    return wide_floats(wide_add(sum, _mm512_load_si512(low)));
}

/* Factors of the probabilities of query u, zeros up to position `end`. */
static void softmax_bytes(tile_bytes *t, int32_t u, int32_t end, const uint8_t *k, const uint8_t *v,
                          int32_t head_dim)
{
    const int32_t *high = t->sums[row_of(u)], *low = t->sums[row_of(u) + 8];
    int32_t n = t->n[u], whole = (n + 15) / 16 * 16;
    v16 largest = v16_set1(-INFINITY), sum = v16_zero(), f = v16_set1(t->f[u]);
    for (int32_t j = 0; j < n; j += 16) {
        v16 scale = v16_load((const float *)(k + mm2_key_scale_at(head_dim, j)));
        v16 score = v16_mul(v16_mul(joined(high + j, low + j), scale), f);
        if (n - j < 16)
            score = v16_keep_n(score, v16_set1(-INFINITY), n - j);
        v16_store(t->t + j, score);
        largest = v16_larger(score, largest);
    }
    t->c[u] = v16_largest(largest) + 0.0f;
    for (int32_t j = 0; j < n; j += 16) {
        v16 e = exp16_finite(v16_sub(v16_load(t->t + j), v16_set1(t->c[u])));
        v16 weight = v16_mul(e, v16_load((const float *)(v + mm2_value_scale_at(head_dim, j))));
        sum = v16_add(sum, e);
        v16_store(t->t + j, n - j < 16 ? v16_keep_n(weight, v16_zero(), n - j) : weight);
    }
    t->l[u] = v16_tree(sum);
    int8_t *p = t->p[row_of(u)], *p_low = t->p[row_of(u) + 8];
    t->top[u] = widen_bytes(p, p_low, t->t, whole) / MM2_WIDE_TOP;
    memset(p + whole, 0, (size_t)(end - whole));
    memset(p_low + whole, 0, (size_t)(end - whole));
}

/* The sums of query u into its running results. */
static void merge_bytes(const tile_bytes *t, int32_t u, float *m, float *l, float *o,
                        int32_t head_dim)
{
    const int32_t *high = t->sums[row_of(u)], *low = t->sums[row_of(u) + 8];
    float a, b;
    attend_weights(m, t->c[u], &a, &b);
    *l = fmaf(t->l[u], b, *l * a);
    for (int32_t d = 0; d < head_dim; d += 16) {
        v16 sum = v16_mul(joined(high + d, low + d), v16_set1(t->top[u]));
        v16_store(o + d, v16_fma(sum, v16_set1(b), v16_mul(v16_load(o + d), v16_set1(a))));
    }
}

static attend_kernel *attend_few_int8; /* as attend_few */

static void attend_int8_tiles(float *m, float *l, float *o, const float *q, int32_t stride,
                              int32_t rows, int32_t heads, const void *k, const void *v, int32_t n,
                              int32_t head_dim, float scale)
{
    if (rows * heads < TILE_QUERIES || head_dim % 64 || head_dim > TILE_DIM_LIMIT) {
        attend_few_int8(m, l, o, q, stride, rows, heads, k, v, n, head_dim, scale);
        return;
    }
    tile_bytes t; /* rows behind the last query hold anything, and are not used */
    int64_t key_tile = 16 * head_dim + 64, value_group = 64 * head_dim + 256;
    int64_t to_values = distance(k, v);
    tiles_begin(64);
    for (int32_t first = 0; first < rows * heads; first += BYTE_QUERIES, to_values = 0) {
        int32_t count = smaller(BYTE_QUERIES, rows * heads - first), two = count > 8;
        for (int32_t u = 0; u < count; u++) {
            int32_t row = (first + u) / heads, head = row * stride + (first + u) % heads;
            int8_t *to = t.q + row_of(u) * head_dim;
            float top = widen_bytes(to, to + 8 * head_dim, q + (int64_t)head * head_dim, head_dim);
            t.f[u] = top < 1e-30f ? 0 : top / MM2_WIDE_TOP * scale;
            t.n[u] = smaller(n + row, MM2_CHUNK);
        }
        int32_t end = (t.n[count - 1] + 63) / 64 * 64;
        for (int32_t j = 0; j < t.n[count - 1]; j += 32) {
            const uint8_t *key = (const uint8_t *)k + j / 16 * key_tile;
            attend_product(0, two, &t.sums[0][j], MM2_CHUNK, t.q, head_dim, key, key + key_tile,
                           1024, to_values, head_dim / 64);
        }
        for (int32_t u = 0; u < count; u++)
            softmax_bytes(&t, u, end, k, v, head_dim);
        for (int32_t d = 0; d < head_dim; d += 32) {
            const uint8_t *value = (const uint8_t *)v + d * 64;
            attend_product(0, two, &t.sums[0][d], MM2_CHUNK, t.p[0], BYTE_STRIDE, value,
                           value + 1024, value_group, 0, end / 64);
        }
        for (int32_t u = 0; u < count; u++) {
            int32_t head = (first + u) / heads * stride + (first + u) % heads;
            merge_bytes(&t, u, m + head, l + head, o + (int64_t)head * head_dim, head_dim);
        }
    }
    tiles_end();
}
