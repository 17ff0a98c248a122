/* What a vector level can read and multiply at most, in terms of the primitives of its lanes_*.h.
 * Included after body_float.h, for a few helpers. model/limits.c measures with these.
 *
 * Reading: the loads of four lines at a time go into four sums. Multiplying: a tile of accumulators
 * that fills the registers, as the matrix products have it, over operands that stay in the
 * first-level cache. The sums are returned, and run through all rounds, so that the compiler can
 * neither drop a load or a product nor do it once for all rounds. */

enum {
    LINE = 64,             /* bytes of a cache line */
    PEAK_CODES = ROWS / 4, /* code registers of an integer tile */
    PEAK_STEPS = 16,       /* of a round, each with its own codes and activations */
    PEAK_SPAN = 128        /* of a round of floats: elements of k */
};

_Static_assert((PANEL_ROWS + TILE_ACTS) * PEAK_SPAN * 4 <= MM2_PEAK_BYTES, "peak_f32");
_Static_assert(PEAK_STEPS *PEAK_CODES * sizeof(words) <= MM2_PEAK_BYTES / 2, "peak_int8");

INLINE uint64_t words_sum(const words *w, int n)
{
    uint32_t lanes[PEAK_CODES * DOT_ACTS * ROWS];
    uint64_t sum = 0;
    memcpy(lanes, w, (size_t)n * sizeof *w);
    for (int i = 0; i < n * ROWS; i++)
        sum += lanes[i];
    return sum;
}

INLINE uint64_t read_lines(int first, int second, const uint8_t *p, int64_t n, int32_t ahead1,
                           int32_t ahead2)
{
    words sum[4];
    for (int i = 0; i < 4; i++)
        sum[i] = words_set1(0);
    for (int64_t at = 0; at < n; at += MM2_READ_STEP) {
#pragma GCC unroll 4
        for (int i = 0; i < MM2_READ_STEP / LINE; i++) {
            const uint8_t *line = p + at + i * LINE;
            if (first)
                _mm_prefetch((const char *)line + ahead1, _MM_HINT_T0);
            if (second)
                _mm_prefetch((const char *)line + ahead2, _MM_HINT_T1);
#pragma GCC unroll 2
            for (int b = 0; b < LINE; b += (int)sizeof(words))
                sum[i] = words_sub(sum[i], words_load((const int32_t *)(line + b)));
        }
    }
    return words_sum(sum, 4);
}

static uint64_t read_bytes(const uint8_t *p, int64_t n, int32_t ahead1, int32_t ahead2)
{
    if (ahead1 && ahead2)
        return read_lines(1, 1, p, n, ahead1, ahead2);
    if (ahead1)
        return read_lines(1, 0, p, n, ahead1, 0);
    if (ahead2)
        return read_lines(0, 1, p, n, 0, ahead2);
    return read_lines(0, 0, p, n, 0, 0);
}

static uint64_t peak_int8(const void *data, int32_t rounds, int64_t *ops)
{
    const words *panel = data;
    const int8_t *acts = (const int8_t *)data + MM2_PEAK_BYTES / 2;
    const words scale = scale_form(words_set1(1));
    words sum[PEAK_CODES * DOT_ACTS];
    for (int i = 0; i < PEAK_CODES * DOT_ACTS; i++)
        sum[i] = words_set1(0);
    for (int32_t r = 0; r < rounds; r++)
        for (int s = 0; s < PEAK_STEPS; s++) {
            codes c[PEAK_CODES];
#pragma GCC unroll 4
            for (int i = 0; i < PEAK_CODES; i++)
                c[i] = codes_load(1, panel + s * PEAK_CODES + i);
#pragma GCC unroll 4
            for (int m = 0; m < DOT_ACTS; m++)
#pragma GCC unroll 4
                for (int i = 0; i < PEAK_CODES; i++)
                    sum[m * PEAK_CODES + i] = dot(0, 1, sum[m * PEAK_CODES + i], c[i],
                                                  acts + (m * PEAK_STEPS + s) * 4, scale);
        }
    *ops = 2LL * 4 * ROWS * PEAK_CODES * DOT_ACTS * PEAK_STEPS * rounds;
    return words_sum(sum, PEAK_CODES * DOT_ACTS);
}

static uint64_t peak_f32(const void *data, int32_t rounds, int64_t *ops)
{
    float(*panel)[PANEL_ROWS][16] = (float(*)[PANEL_ROWS][16])(uintptr_t)data; /* read only */
    const float *x[TILE_ACTS];
    v16 t[TILE_ROWS][TILE_ACTS];
    for (int m = 0; m < TILE_ACTS; m++) {
        x[m] = (const float *)data + PANEL_ROWS * PEAK_SPAN + m * PEAK_SPAN;
        for (int i = 0; i < TILE_ROWS; i++)
            t[i][m] = v16_zero();
    }
    for (int32_t r = 0; r < rounds; r++)
        for (int32_t k = 0; k < PEAK_SPAN; k += 16)
            tile_step(TILE_ACTS, t, panel, 0, x, k, 16);
    uint64_t check = 0;
    for (int i = 0; i < TILE_ROWS; i++)
        for (int m = 0; m < TILE_ACTS; m++)
            check += mm2_f32_bits(v16_tree(t[i][m]));
    *ops = 2LL * TILE_ROWS * TILE_ACTS * PEAK_SPAN * rounds;
    return check;
}
