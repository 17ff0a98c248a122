/* The reference kernels that multiply no weights: quantisation, elementwise functions, attention, and
 * the machine's limits. What the head of ref.c says holds here too. */
#include "kernels/ref.h"

#include "tensor/quant.h"

#include <math.h>

/* ---- Quantisation ---- */

void mm2_ref_quantize_bf16(void *act, const float *x, int32_t n)
{
    uint16_t *out = act;
    for (int32_t i = 0; i < n; i++)
        out[i] = mm2_f32_bf16(x[i]);
    for (int32_t i = n; i % SCALE_BLOCK; i++)
        out[i] = 0;
}

/* The largest of the absolute bit patterns. */
static uint32_t largest_bits(const float *x, int32_t n)
{
    uint32_t largest = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t magnitude = mm2_f32_bits(x[i]) & 0x7fffffff;
        if (magnitude > largest)
            largest = magnitude;
    }
    return largest;
}

/* One block of codes and its scale d: q = rint(x * (127 / amax)), d = amax / 127. */
static float quantize_block(int8_t *q, const float *x, int32_t n)
{
    uint32_t largest = largest_bits(x, n);
    float amax = mm2_bits_f32(largest);
    if (largest >= 0x7f800000 || amax < 1e-30f) {
        memset(q, 0, (size_t)n);
        return largest >= 0x7f800000 ? NAN : 0;
    }
    float inverse = 127 / amax;
    for (int32_t i = 0; i < n; i++)
        q[i] = (int8_t)rintf(x[i] * inverse);
    return amax / 127;
}

float mm2_ref_quantize_head(int8_t *q, const float *x, int32_t n)
{
    return quantize_block(q, x, n);
}

void mm2_ref_quantize_q8_32(void *act, const float *x, int32_t n)
{
    int8_t *q = act;
    float *d = (float *)(q + n);
    for (int32_t b = 0; b < n / BLOCK; b++)
        d[b] = quantize_block(q + b * BLOCK, x + b * BLOCK, BLOCK);
}

void mm2_ref_quantize_q8_256(void *act, const float *x, int32_t n)
{
    int8_t *q = act;
    float *d = (float *)(q + n);
    int16_t *sums = (int16_t *)(d + n / MM2_SUPER);
    for (int32_t b = 0; b < n / MM2_SUPER; b++)
        d[b] = quantize_block(q + b * MM2_SUPER, x + b * MM2_SUPER, MM2_SUPER);
    for (int32_t i = 0; i < n / LANES; i++) {
        int32_t sum = 0;
        for (int32_t j = 0; j < LANES; j++)
            sum += q[i * LANES + j];
        sums[i] = (int16_t)sum;
    }
}

/* ---- Elementwise ---- */

/* x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r), q the minimax polynomial (relative
 * error 3.1e-9). Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. 2^n is
 * multiplied in two halves: at the upper end it is no float itself. */
float mm2_exp(float x)
{
    const float magic = 12582912;
    float t = fmaf(x, 0x1.715476p+0f, magic);
    float n = t - magic;
    float r = fmaf(n, -0x1.62e4p-1f, x); /* ln 2 in two parts, the first short */
    r = fmaf(n, -0x1.7f7d1cp-20f, r);
    float q = 0x1.6a241p-10f;
    q = fmaf(q, r, 0x1.1239f8p-7f);
    q = fmaf(q, r, 0x1.5558f2p-5f);
    q = fmaf(q, r, 0x1.555492p-3f);
    q = fmaf(q, r, 0x1.fffffcp-2f);
    q = fmaf(q, r, 1);
    q = fmaf(q, r, 1);
    uint32_t power = mm2_f32_bits(t) - mm2_f32_bits(magic); /* two's complement */
    uint32_t half = (power >> 1) + ((power & 0x80000000) ? 0x80000000 : 0);
    float y = q * mm2_bits_f32((half + 127) << 23) * mm2_bits_f32((power - half + 127) << 23);
    if (x < -87.3f)
        return 0;
    if (x > 88.7f)
        return INFINITY;
    return x != x ? x : y;
}

void mm2_ref_rms_norm(float *out, const float *x, const float *w, int32_t n, float eps)
{
    float lane[LANES] = {0};
    for (int32_t k = 0; k < n; k += LANES)
        for (int32_t j = 0; j < LANES; j++) {
            float v = j < n - k ? x[k + j] : 0;
            lane[j] = fmaf(v, v, lane[j]);
        }
    float r = 1 / sqrtf(tree(lane) / (float)n + eps);
    for (int32_t i = 0; i < n; i++)
        out[i] = x[i] * r * w[i];
}

void mm2_ref_rope(float *x, const float *cosine, const float *sine, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = fmaf(a, cosine[i], -(b * sine[i]));
        x[i + half] = fmaf(a, sine[i], b * cosine[i]);
    }
}

void mm2_ref_swiglu(float *out, const float *gate, const float *up, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = gate[i] / (1 + mm2_exp(-gate[i])) * up[i];
}

void mm2_ref_sigmoid(float *out, const float *x, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = 1 / (1 + mm2_exp(-x[i]));
}

void mm2_ref_axpy(float *y, float a, const float *x, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        y[i] = fmaf(a, x[i], y[i]);
}

/* ---- Attention ---- */

static float kv_value(int32_t dtype, const void *p, int64_t i)
{
    return dtype == MM2_F32 ? ((const float *)p)[i] : mm2_bf16_f32(((const uint16_t *)p)[i]);
}

static float round_bf16(float x)
{
    return mm2_bf16_f32(mm2_f32_bf16(x));
}

/* The sum over i < n of a[i] times, of a cache in F32, b[i]: one chain; in BF16: in tile's order. */
static float attend_sum(int32_t dtype, const float *a, const float *b, int32_t n)
{
    float sum = 0;
    if (dtype == MM2_F32) {
        for (int32_t i = 0; i < n; i++)
            sum = fmaf(a[i], b[i], sum);
        return sum;
    }
    for (int32_t begin = 0; begin < n; begin += STEP_PAIRS * 2) {
        float chain[2] = {0, 0};
        for (int32_t i = begin; i < n && i < begin + STEP_PAIRS * 2; i++)
            chain[i % 2] = fmaf(round_bf16(a[i]), b[i], chain[i % 2]);
        sum += chain[0] + chain[1];
    }
    return sum + 0.0f; /* for a tile, which adds +0 for what a row does not see */
}

/* One head. A NaN score is passed over by the maximum and reaches l through its probability. */
static void attend_head(int32_t dtype, float *m, float *l, float *o, const float *q, const void *k,
                        const void *v, int32_t n, int32_t head_dim, float scale)
{
    float p[MM2_CHUNK], other[MM2_HEAD_DIM_LIMIT];
    float c = -INFINITY;
    for (int32_t j = 0; j < n; j++) {
        for (int32_t d = 0; d < head_dim; d++)
            other[d] = kv_value(dtype, k, mm2_key_at(dtype, head_dim, j, d));
        p[j] = scale * attend_sum(dtype, q, other, head_dim);
        c = p[j] > c ? p[j] : c;
    }
    c += 0.0f; /* -0 and +0 are equal, and which one came first must not show */
    float lane[LANES] = {0};
    for (int32_t j = 0; j < n; j++) {
        p[j] = mm2_exp(p[j] - c);
        lane[j % LANES] += p[j];
    }
    float lc = tree(lane);
    float largest = *m > c ? *m : c;
    float a = mm2_exp(*m - largest), b = mm2_exp(c - largest);
    *m = largest;
    *l = fmaf(lc, b, *l * a);
    for (int32_t d = 0; d < head_dim; d++) {
        for (int32_t j = 0; j < n; j++)
            other[j] = kv_value(dtype, v, mm2_value_at(dtype, head_dim, j, d));
        o[d] = fmaf(attend_sum(dtype, p, other, n), b, o[d] * a);
    }
}

void mm2_ref_hadamard(float *x, int32_t n)
{
    int32_t block = n & -n; /* the largest power of two that divides n */
    for (int32_t half = block / 2; half; half /= 2)
        for (int32_t i = 0; i < n; i++)
            if (!(i & half)) {
                float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
}

/* Integers of at most MM2_WIDE_TOP for n floats; returns the largest magnitude, NaN for one that is
 * not finite. */
static float widen(int32_t *codes, const float *x, int32_t n)
{
    uint32_t largest = largest_bits(x, n);
    float top = largest < 0x7f800000 ? mm2_bits_f32(largest) : NAN;
    float inverse = top >= 1e-30f ? MM2_WIDE_TOP / top : 0;
    for (int32_t i = 0; i < n; i++)
        codes[i] = inverse > 0 ? (int32_t)rintf(x[i] * inverse) : 0;
    return top;
}

static float scale_at(const void *p, int64_t bytes)
{
    float scale;
    memcpy(&scale, (const char *)p + bytes, 4);
    return scale;
}

/* One head and an INT8 cache. */
static void attend_head_int8(float *m, float *l, float *o, const float *q, const void *k,
                             const void *v, int32_t n, int32_t head_dim, float scale)
{
    float p[MM2_CHUNK];
    int32_t wide[MM2_INT8_DIM_LIMIT];
    const int8_t *keys = k, *values = v;
    float c = -INFINITY, top = widen(wide, q, head_dim);
    float f = top < 1e-30f ? 0 : top / MM2_WIDE_TOP * scale;
    for (int32_t j = 0; j < n; j++) {
        int32_t sum = 0;
        for (int32_t d = 0; d < head_dim; d++)
            sum += wide[d] * keys[mm2_key_at(MM2_INT8, head_dim, j, d)];
        p[j] = (float)sum * scale_at(k, mm2_key_scale_at(head_dim, j)) * f;
        c = p[j] > c ? p[j] : c;
    }
    c += 0.0f;
    float lane[LANES] = {0};
    for (int32_t j = 0; j < n; j++) {
        p[j] = mm2_exp(p[j] - c);
        lane[j % LANES] += p[j];
        p[j] *= scale_at(v, mm2_value_scale_at(head_dim, j));
    }
    float lc = tree(lane);
    float largest = *m > c ? *m : c;
    float a = mm2_exp(*m - largest), b = mm2_exp(c - largest);
    *m = largest;
    *l = fmaf(lc, b, *l * a);
    top = widen(wide, p, n) / MM2_WIDE_TOP;
    for (int32_t d = 0; d < head_dim; d++) {
        int32_t sum = 0;
        for (int32_t j = 0; j < n; j++)
            sum += wide[j] * values[mm2_value_at(MM2_INT8, head_dim, j, d)];
        o[d] = fmaf((float)sum * top, b, o[d] * a);
    }
}

static void attend(int32_t dtype, float *m, float *l, float *o, const float *q, int32_t stride,
                   int32_t rows, int32_t heads, const void *k, const void *v, int32_t n,
                   int32_t head_dim, float scale)
{
    for (int32_t r = 0; r < rows; r++)
        for (int32_t h = r * stride; h < r * stride + heads; h++) {
            int32_t seen = n + r < MM2_CHUNK ? n + r : MM2_CHUNK;
            int64_t at = (int64_t)h * head_dim;
            if (dtype == MM2_INT8)
                attend_head_int8(m + h, l + h, o + at, q + at, k, v, seen, head_dim, scale);
            else
                attend_head(dtype, m + h, l + h, o + at, q + at, k, v, seen, head_dim, scale);
        }
}

void mm2_ref_attend_f32(float *m, float *l, float *o, const float *q, int32_t stride, int32_t rows,
                        int32_t heads, const void *k, const void *v, int32_t n, int32_t head_dim,
                        float scale)
{
    attend(MM2_F32, m, l, o, q, stride, rows, heads, k, v, n, head_dim, scale);
}

void mm2_ref_attend_bf16(float *m, float *l, float *o, const float *q, int32_t stride, int32_t rows,
                         int32_t heads, const void *k, const void *v, int32_t n, int32_t head_dim,
                         float scale)
{
    attend(MM2_BF16, m, l, o, q, stride, rows, heads, k, v, n, head_dim, scale);
}

void mm2_ref_attend_int8(float *m, float *l, float *o, const float *q, int32_t stride, int32_t rows,
                         int32_t heads, const void *k, const void *v, int32_t n, int32_t head_dim,
                         float scale)
{
    attend(MM2_INT8, m, l, o, q, stride, rows, heads, k, v, n, head_dim, scale);
}

/* ---- The machine's limits ---- */

uint64_t mm2_ref_read_bytes(const uint8_t *p, int64_t n, int32_t ahead1, int32_t ahead2)
{
    uint64_t sum[4] = {0};
    for (int64_t i = 0; i < n; i += 64) {
        uint64_t line[8];
        memcpy(line, p + i, sizeof line);
#if defined(__GNUC__)
        if (ahead1)
            __builtin_prefetch(p + i + ahead1, 0, 3);
        if (ahead2)
            __builtin_prefetch(p + i + ahead2, 0, 2);
#endif
        for (int j = 0; j < 4; j++)
            sum[j] += line[j] + line[j + 4];
    }
    return sum[0] + sum[1] + sum[2] + sum[3];
}

uint64_t mm2_ref_peak_int8(const void *data, int32_t rounds, int64_t *ops)
{
    const int8_t *a = data, *b = a + MM2_PEAK_BYTES / 2;
    uint32_t sum[LANES] = {0};
    for (int32_t r = 0; r < rounds; r++)
        for (int32_t k = 0; k < SCALE_BLOCK; k++)
            for (int32_t j = 0; j < LANES; j++)
                sum[j] += (uint32_t)(a[k * LANES + j] * b[k]);
    uint64_t check = 0;
    for (int32_t j = 0; j < LANES; j++)
        check += sum[j];
    *ops = 2LL * LANES * SCALE_BLOCK * rounds;
    return check;
}

uint64_t mm2_ref_peak_f32(const void *data, int32_t rounds, int64_t *ops)
{
    const float *a = data, *b = a + MM2_PEAK_BYTES / 8;
    float sum[LANES] = {0};
    for (int32_t r = 0; r < rounds; r++)
        for (int32_t k = 0; k < BLOCK; k++)
            for (int32_t j = 0; j < LANES; j++)
                sum[j] = fmaf(a[k * LANES + j], b[k], sum[j]);
    *ops = 2LL * LANES * BLOCK * rounds;
    return mm2_f32_bits(tree(sum));
}
