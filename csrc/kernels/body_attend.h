/* Attention of a vector level, in terms of the primitives of its lanes_*.h. Included after
 * body_elementwise.h, whose exp16 it uses.
 *
 * Heads of a group run together, so that keys and values are loaded once for them. Scores: lanes
 * are the 16 positions of a tile, one accumulator a head. Values: lanes are dimensions, positions
 * ascend, and the probability of a position is spread over the lanes. */

enum { CHUNK = 256, GROUP_HEADS = 6, VALUES_AHEAD = 16 };

static inline v16 load_kv(int32_t dtype, const void *p, int64_t i)
{
    return dtype == MM2_F32 ? v16_load((const float *)p + i)
                            : v16_load_bf16((const uint16_t *)p + i);
}

/* Keys and values of a decoded token come from memory, several streams of them. */
static inline __attribute__((always_inline)) void fetch_kv(int32_t dtype, const void *p, int64_t i)
{
    _mm_prefetch((const char *)p + i * (dtype == MM2_F32 ? 4 : 2), _MM_HINT_T0);
}

/* Scores of `tiles` tiles of 16 positions from j on; c: the largest ones, lane by lane. */
static inline __attribute__((always_inline)) void
attend_tiles(int heads, int tiles, int32_t dtype, float p[][CHUNK], v16 *c, const float *q,
             const void *k, int32_t j, int32_t n, int32_t head_dim, float scale)
{
    v16 s[GROUP_HEADS][KEY_TILES];
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int t = 0; t < tiles; t++)
            s[h][t] = v16_zero();
    for (int32_t d = 0; d < head_dim; d++) {
        v16 key[KEY_TILES];
#pragma GCC unroll 4
        for (int t = 0; t < tiles; t++)
            key[t] = load_kv(dtype, k, (int64_t)(j + t * 16) * head_dim + d * 16);
#pragma GCC unroll 4
        for (int t = 0; t < tiles; t++) /* the same place of the next tiles */
            fetch_kv(dtype, k, (int64_t)(j + (tiles + t) * 16) * head_dim + d * 16);
#pragma GCC unroll 6
        for (int h = 0; h < heads; h++) {
            v16 query = v16_set1(q[h * head_dim + d]);
#pragma GCC unroll 4
            for (int t = 0; t < tiles; t++)
                s[h][t] = v16_fma(query, key[t], s[h][t]);
        }
    }
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
static inline __attribute__((always_inline)) void
attend_scores(int heads, int32_t dtype, float p[][CHUNK], float *largest, const float *q,
              const void *k, int32_t n, int32_t head_dim, float scale)
{
    v16 c[GROUP_HEADS];
    int32_t j = 0;
    for (int h = 0; h < heads; h++)
        c[h] = v16_set1(-INFINITY);
    for (; n - j > (KEY_TILES - 1) * 16; j += KEY_TILES * 16)
        attend_tiles(heads, KEY_TILES, dtype, p, c, q, k, j, n, head_dim, scale);
    for (; j < n; j += 16)
        attend_tiles(heads, 1, dtype, p, c, q, k, j, n, head_dim, scale);
    for (int h = 0; h < heads; h++)
        largest[h] = v16_largest(c[h]) + 0.0f;
}

/* o = fma(sum of p v, b, o * a) for `lanes` groups of 16 dimensions from `first` on. */
static inline __attribute__((always_inline)) void
attend_values(int heads, int lanes, int32_t dtype, float *o, float p[][CHUNK], const float *a,
              const float *b, const void *v, int32_t n, int32_t head_dim, int32_t first)
{
    v16 sum[GROUP_HEADS][VALUE_LANES];
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int i = 0; i < lanes; i++)
            sum[h][i] = v16_zero();
    for (int32_t j = 0; j < n; j++) {
        v16 value[VALUE_LANES];
#pragma GCC unroll 4
        for (int i = 0; i < lanes; i++)
            value[i] = load_kv(dtype, v, (int64_t)j * head_dim + first + i * 16);
#pragma GCC unroll 4
        for (int i = 0; i < lanes; i += 2)
            fetch_kv(dtype, v, (int64_t)(j + VALUES_AHEAD) * head_dim + first + i * 16);
#pragma GCC unroll 6
        for (int h = 0; h < heads; h++) {
            v16 weight = v16_set1(p[h][j]);
#pragma GCC unroll 4
            for (int i = 0; i < lanes; i++)
                sum[h][i] = v16_fma(weight, value[i], sum[h][i]);
        }
    }
#pragma GCC unroll 6
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int i = 0; i < lanes; i++) {
            float *to = o + h * head_dim + first + i * 16;
            v16 old = v16_mul(v16_load(to), v16_set1(a[h]));
            v16_store(to, v16_fma(sum[h][i], v16_set1(b[h]), old));
        }
}

static inline __attribute__((always_inline)) void
attend_heads(int heads, int32_t dtype, float *m, float *l, float *o, const float *q, const void *k,
             const void *v, int32_t n, int32_t head_dim, float scale)
{
    _Alignas(64) float p[GROUP_HEADS][CHUNK];
    float c[GROUP_HEADS], a[GROUP_HEADS], b[GROUP_HEADS];
    attend_scores(heads, dtype, p, c, q, k, n, head_dim, scale);
    for (int h = 0; h < heads; h++) {
        v16 sum = v16_zero();
        for (int32_t j = 0; j < n; j += 16) {
            v16 e = exp16(v16_sub(v16_load(p[h] + j), v16_set1(c[h])));
            v16_store(p[h] + j, e);
            sum = v16_add(sum, e);
        }
        float largest = m[h] > c[h] ? m[h] : c[h];
        a[h] = mm2_exp(m[h] - largest);
        b[h] = mm2_exp(c[h] - largest);
        m[h] = largest;
        l[h] = fmaf(v16_tree(sum), b[h], l[h] * a[h]);
    }
    int32_t first = 0;
    for (; first + VALUE_LANES * 16 <= head_dim; first += VALUE_LANES * 16)
        attend_values(heads, VALUE_LANES, dtype, o, p, a, b, v, n, head_dim, first);
    for (; first < head_dim; first += 16)
        attend_values(heads, 1, dtype, o, p, a, b, v, n, head_dim, first);
}

static inline __attribute__((always_inline)) void attend(int32_t dtype, float *m, float *l,
                                                         float *o, const float *q, int32_t heads,
                                                         const void *k, const void *v, int32_t n,
                                                         int32_t head_dim, float scale)
{
    while (heads > 0) {
        int together;
        if (heads >= 6) {
            attend_heads(6, dtype, m, l, o, q, k, v, n, head_dim, scale);
            together = 6;
        } else if (heads >= 4) {
            attend_heads(4, dtype, m, l, o, q, k, v, n, head_dim, scale);
            together = 4;
        } else if (heads >= 2) {
            attend_heads(2, dtype, m, l, o, q, k, v, n, head_dim, scale);
            together = 2;
        } else {
            attend_heads(1, dtype, m, l, o, q, k, v, n, head_dim, scale);
            together = 1;
        }
        heads -= together;
        m += together;
        l += together;
        o += together * head_dim;
        q += together * head_dim;
    }
}

static void attend_f32(float *m, float *l, float *o, const float *q, int32_t heads, const void *k,
                       const void *v, int32_t n, int32_t head_dim, float scale)
{
    attend(MM2_F32, m, l, o, q, heads, k, v, n, head_dim, scale);
}

static void attend_bf16(float *m, float *l, float *o, const float *q, int32_t heads, const void *k,
                        const void *v, int32_t n, int32_t head_dim, float scale)
{
    attend(MM2_BF16, m, l, o, q, heads, k, v, n, head_dim, scale);
}
