/* Attention of many query rows to a BF16 cache on tiles, after the order of kernels.h.
 *
 * A query is one head of one row. QUERIES of them, two tiles, are gone through together: scores of
 * the chunk's positions, 2 x 2 tiles at a time, queries being operand A and keys B; then softmax row
 * by row, which leaves probabilities as the next operand A; then values. Both lie in the cache as
 * operand B wants them.
 *
 * Tiles multiply all positions up to the last one that any of the queries sees. A query that sees
 * fewer has probabilities of 0 there, and 0 times a finite value changes no sum. Where a sum comes out
 * as NaN or infinite, a value may not have been: then the query is done by the kernel for few rows,
 * which stops where it must. */

#include "kernels/fetch.h"

enum {
    QUERIES = 32,
    TILE_DIM_LIMIT = 256,           /* longer heads are left to the kernel for few rows */
    TILE_QUERIES = 6,               /* and so are fewer queries */
    WEIGHTS_STRIDE = MM2_CHUNK + 32 /* of rows of probabilities: no multiple of a page's lines */
};

typedef void attend_kernel(float *m, float *l, float *o, const float *q, int32_t stride,
                           int32_t rows, int32_t heads, const void *k, const void *v, int32_t n,
                           int32_t head_dim, float scale);
static attend_kernel *attend_few; /* of the level below; set once, when the table is built */

typedef struct tile_queries {
    _Alignas(64) uint16_t q[QUERIES * TILE_DIM_LIMIT]; /* [QUERIES][head_dim] */
    _Alignas(64) uint16_t p[QUERIES][WEIGHTS_STRIDE];
    union {
        _Alignas(64) float s[QUERIES][MM2_CHUNK];      /* scores */
        _Alignas(64) float o[QUERIES][TILE_DIM_LIMIT]; /* sums of values */
    };
    float c[QUERIES], sum[QUERIES]; /* largest score, sum of probabilities */
    int32_t n[QUERIES];             /* positions that a query sees */
} tile_queries;

/* The lines of the other plane that are `ahead` bytes from those of a tile; 0: none. */
INLINE void fetch_tile(const void *tile, int64_t ahead)
{
    for (int i = 0; i < 16 && ahead; i++)
        fetch_other((const char *)tile + i * 64, ahead);
}

/* Two tiles of A, at a and 16 rows of `stride` bytes behind it, times those of B at b and b2, `steps` of
 * 64 bytes of A, which are `b_step` bytes apart in B; of bf16 to sums in float, or of bytes to
 * int32. `two`: is there a second tile of A? To c, whose rows are c_stride sums long, and 16 columns
 * behind it. */
INLINE void attend_product(int is_bf16, int two, void *c, int64_t c_stride, const void *a,
                           int64_t stride, const void *b, const void *b2, int64_t b_step,
                           int64_t ahead, int32_t steps)
{
#define DOT(sum, x, y)                                                                             \
    do {                                                                                           \
        if (is_bf16)                                                                               \
            tile_dot_bf16(sum, x, y);                                                              \
        else                                                                                       \
            tile_dot_signed(sum, x, y);                                                            \
    } while (0)
    const uint8_t *rows = a, *left = b, *right = b2;
    uint32_t *sums = c;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (int32_t i = 0; i < steps; i++, rows += 64, left += b_step, right += b_step) {
        tile_load(4, rows, stride);
        tile_load(6, left, 64);
        DOT(0, 4, 6);
        fetch_tile(left, ahead);
        tile_load(7, right, 64);
        DOT(1, 4, 7);
        fetch_tile(right, ahead);
        if (!two)
            continue;
        tile_load(5, rows + stride * TILE, stride);
        DOT(2, 5, 6);
        DOT(3, 5, 7);
    }
    tile_store(0, sums, c_stride * 4);
    tile_store(1, sums + TILE, c_stride * 4);
    if (!two)
        return;
    tile_store(2, sums + TILE * c_stride, c_stride * 4);
    tile_store(3, sums + TILE * c_stride + TILE, c_stride * 4);
#undef DOT
}

/* Probabilities of query u, as bf16 up to position `end`. */
static void attend_softmax(tile_queries *t, int32_t u, int32_t end, float scale)
{
    float *s = t->s[u];
    int32_t n = t->n[u];
    v16 largest = v16_set1(-INFINITY), sum = v16_zero();
    for (int32_t j = 0; j < n; j += 16) {
        v16 score = v16_mul(v16_set1(scale), v16_load(s + j));
        if (n - j < 16)
            score = v16_keep_n(score, v16_set1(-INFINITY), n - j);
        v16_store(s + j, score);
        largest = v16_larger(score, largest);
    }
    t->c[u] = v16_largest(largest) + 0.0f;
    for (int32_t j = 0; j < end; j += 16) {
        v16 e = v16_zero();
        if (j < n) {
            e = exp16_finite(v16_sub(v16_load(s + j), v16_set1(t->c[u])));
            sum = v16_add(sum, e);
        }
        narrow16(t->p[u] + j, e);
    }
    t->sum[u] = v16_tree(sum);
}

/* The sums of query u into its running results; 0, and nothing, if they are not finite. */
static int attend_merge(const tile_queries *t, int32_t u, float *m, float *l, float *o,
                        int32_t head_dim)
{
    float a, b;
    v16 none = v16_zero(); /* 0 times a sum is NaN where the sum is not finite */
    for (int32_t d = 0; d < head_dim; d += 16)
        none = v16_fma(v16_load(t->o[u] + d), v16_zero(), none);
    if (!(v16_tree(none) == 0))
        return 0;
    attend_weights(m, t->c[u], &a, &b);
    *l = fmaf(t->sum[u], b, *l * a);
    for (int32_t d = 0; d < head_dim; d += 16) {
        v16 sum = v16_add(v16_load(t->o[u] + d), v16_zero()); /* +0 for -0 */
        v16_store(o + d, v16_fma(sum, v16_set1(b), v16_mul(v16_load(o + d), v16_set1(a))));
    }
    return 1;
}

static void attend_bf16_tiles(float *m, float *l, float *o, const float *q, int32_t stride,
                              int32_t rows, int32_t heads, const void *k, const void *v, int32_t n,
                              int32_t head_dim, float scale)
{
    if (rows * heads < TILE_QUERIES || head_dim % 32 || head_dim > TILE_DIM_LIMIT) {
        attend_few(m, l, o, q, stride, rows, heads, k, v, n, head_dim, scale);
        return;
    }
    tile_queries t; /* rows behind the last query hold anything, and are not used */
    int64_t to_values = distance(k, v);
    tiles_begin(64);
    for (int32_t first = 0; first < rows * heads; first += QUERIES, to_values = 0) {
        int32_t count = smaller(QUERIES, rows * heads - first), two = count > TILE;
        for (int32_t u = 0; u < count; u++) {
            int32_t row = (first + u) / heads, head = row * stride + (first + u) % heads;
            t.n[u] = smaller(n + row, MM2_CHUNK);
            for (int32_t d = 0; d < head_dim; d += 16)
                narrow16(t.q + u * head_dim + d, v16_load(q + (int64_t)head * head_dim + d));
        }
        int32_t end = (t.n[count - 1] + 31) / 32 * 32;
        for (int32_t j = 0; j < end; j += 32) {
            const uint16_t *key = (const uint16_t *)k + (int64_t)j * head_dim;
            attend_product(1, two, &t.s[0][j], MM2_CHUNK, t.q, head_dim * 2, key,
                           key + TILE * head_dim, 1024, to_values, head_dim / 32);
        }
        for (int32_t u = 0; u < count; u++)
            attend_softmax(&t, u, end, scale);
        for (int32_t d = 0; d < head_dim; d += 32) {
            const uint16_t *value = (const uint16_t *)v + (int64_t)d * MM2_CHUNK;
            attend_product(1, two, &t.o[0][d], TILE_DIM_LIMIT, t.p[0], WEIGHTS_STRIDE * 2, value,
                           value + TILE * MM2_CHUNK, 1024, 0, end / 32);
        }
        for (int32_t u = 0; u < count; u++) {
            int32_t head = (first + u) / heads * stride + (first + u) % heads;
            int64_t at = (int64_t)head * head_dim;
            if (!attend_merge(&t, u, m + head, l + head, o + at, head_dim))
                attend_few(m + head, l + head, o + at, q + at, stride, 1, 1, k, v, t.n[u], head_dim,
                           scale);
        }
    }
    tiles_end();
}
