/* Norm, rotation, activation functions and quantisation of a vector level, in terms of the
 * primitives of its lanes_*.h, which is included before this. The operations and their order are
 * those of ref.c; what is vectorised are elements that do not meet, and the 16 lanes of sums. Rests
 * below 16 elements go through v16_load_n and v16_store_n, which touch nothing beyond. Included after
 * body_exp.h. */

/* 1 + exp(-x) */
static inline v16 one_plus_exp16(v16 x)
{
    return v16_add(v16_set1(1), exp16(v16_negate(x)));
}

static void rms_norm(float *out, const float *x, const float *w, int32_t n, float eps)
{
    v16 sum = v16_zero();
    for (int32_t i = 0; i < n; i += 16) {
        v16 a = v16_load_n(x + i, n - i);
        sum = v16_fma(a, a, sum);
    }
    v16 r = v16_set1(1 / sqrtf(v16_tree(sum) / (float)n + eps));
    for (int32_t i = 0; i < n; i += 16) {
        v16 a = v16_mul(v16_load_n(x + i, n - i), r);
        v16_store_n(out + i, v16_mul(a, v16_load_n(w + i, n - i)), n - i);
    }
}

static void rope(float *x, const float *cosine, const float *sine, int32_t half)
{
    for (int32_t i = 0; i < half; i += 16) {
        int32_t n = half - i;
        v16 a = v16_load_n(x + i, n), b = v16_load_n(x + half + i, n);
        v16 c = v16_load_n(cosine + i, n), s = v16_load_n(sine + i, n);
        v16_store_n(x + i, v16_fma(a, c, v16_negate(v16_mul(b, s))), n);
        v16_store_n(x + half + i, v16_fma(a, s, v16_mul(b, c)), n);
    }
}

static void swiglu(float *out, const float *gate, const float *up, int32_t n)
{
    for (int32_t i = 0; i < n; i += 16) {
        v16 g = v16_load_n(gate + i, n - i), u = v16_load_n(up + i, n - i);
        v16_store_n(out + i, v16_mul(v16_div(g, one_plus_exp16(g)), u), n - i);
    }
}

static void sigmoid(float *out, const float *x, int32_t n)
{
    for (int32_t i = 0; i < n; i += 16) {
        v16 a = v16_load_n(x + i, n - i);
        v16_store_n(out + i, v16_div(v16_set1(1), one_plus_exp16(a)), n - i);
    }
}

static void axpy(float *y, float a, const float *x, int32_t n)
{
    for (int32_t i = 0; i < n; i += 16) {
        v16 b = v16_fma(v16_set1(a), v16_load_n(x + i, n - i), v16_load_n(y + i, n - i));
        v16_store_n(y + i, b, n - i);
    }
}

/* x + y and x - y of elements that are 16 or more apart, then of those within a register. */
static void hadamard(float *x, int32_t n)
{
    // clang-format off
    static const float signs[4][16] = {
        {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
        {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
        {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
        {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1},
    };
    // clang-format on
    for (int32_t half = (n & -n) / 2; half >= 16; half /= 2)
        for (int32_t i = 0; i < n; i += (i + 16) & half ? 16 + half : 16) {
            v16 a = v16_load(x + i), b = v16_load(x + i + half);
            v16_store(x + i, v16_add(a, b));
            v16_store(x + i + half, v16_sub(a, b));
        }
    for (int32_t i = 0; i < n; i += 16) {
        v16 a = v16_load(x + i);
        a = v16_fma(a, v16_load(signs[3]), v16_swapped8(a));
        a = v16_fma(a, v16_load(signs[2]), v16_swapped4(a));
        a = v16_fma(a, v16_load(signs[1]), v16_swapped2(a));
        v16_store(x + i, v16_fma(a, v16_load(signs[0]), v16_swapped1(a)));
    }
}

/* The codes of one block, their scale and, with `sums`, the sums of 16 codes each. */
static inline float quantize_block(int8_t *q, int16_t *sums, const float *x, int32_t n)
{
    uint32_t bits = largest_bits(x, n);
    float amax = mm2_bits_f32(bits);
    if (bits >= 0x7f800000 || amax < 1e-30f) {
        memset(q, 0, (size_t)n);
        if (sums)
            memset(sums, 0, (size_t)n / 16 * sizeof *sums);
        return bits >= 0x7f800000 ? NAN : 0;
    }
    float inverse = 127 / amax;
    for (int32_t i = 0; i < n / 16; i++) {
        int32_t sum = quantize16(q + i * 16, x + i * 16, inverse);
        if (sums)
            sums[i] = (int16_t)sum;
    }
    return amax / 127;
}

static float quantize_head(int8_t *q, const float *x, int32_t n)
{
    return quantize_block(q, NULL, x, n);
}

static void quantize_q8_32(void *act, const float *x, int32_t n)
{
    int8_t *q = act;
    float *d = (float *)(q + n);
    for (int32_t b = 0; b < n / 32; b++)
        d[b] = quantize_block(q + b * 32, NULL, x + b * 32, 32);
}

static void quantize_q8_256(void *act, const float *x, int32_t n)
{
    int8_t *q = act;
    float *d = (float *)(q + n);
    int16_t *sums = (int16_t *)(d + n / MM2_SUPER);
    for (int32_t b = 0; b < n / MM2_SUPER; b++)
        d[b] = quantize_block(q + b * MM2_SUPER, sums + b * 16, x + b * MM2_SUPER, MM2_SUPER);
}

static void quantize_bf16(void *act, const float *x, int32_t n)
{
    uint16_t *out = act;
    int32_t padded = (n + 127) / 128 * 128;
    for (int32_t i = 0; i < padded; i += 16)
        narrow16(out + i, i < n ? v16_load_n(x + i, n - i) : v16_zero());
}
