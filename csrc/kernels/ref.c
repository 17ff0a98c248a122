/* The reference kernels: portable C, and the specification of every bit that the library computes.
 *
 * All other levels are tested against this file and must agree with it exactly (blas excepted; the
 * sign and payload of a NaN excepted too). It is written to be read: one output element at a time,
 * sums in the written order of kernels.h, every fused multiply-add spelled fmaf, everything else
 * one operation with one rounding.
 *
 * It assumes what the pool sets up: round to nearest, subnormal inputs and results taken as zero. A
 * machine without that mode agrees wherever no subnormal occurs.
 *
 * Nothing here allocates, keeps state or checks arguments. */
#include "kernels/kernels.h"

#include "tensor/quant.h"

#include <math.h>
#include <stddef.h>

enum { LANES = 16, STEP_PAIRS = 16, BLOCK = 32, SCALE_BLOCK = 128 };

/* ---- Activations ---- */

int32_t mm2_act_of(int32_t dtype)
{
    switch (dtype) {
#define ACTIVATIONS(ID, name, ELEMENTS, BYTES, GGUF, SAFETENSORS, ACT, ...)                        \
    case MM2_##ID:                                                                                 \
        return MM2_ACT_##ACT;
        MM2_FORMATS(ACTIVATIONS)
#undef ACTIVATIONS
    }
    return MM2_ACT_NONE;
}

int64_t mm2_act_bytes(int32_t act, int64_t n)
{
    int64_t bytes = 4 * n;
    if (act == MM2_ACT_BF16)
        bytes = (n + SCALE_BLOCK - 1) / SCALE_BLOCK * SCALE_BLOCK * 2;
    else if (act == MM2_ACT_Q8_32)
        bytes = n + n / BLOCK * 4;
    else if (act == MM2_ACT_Q8_256)
        bytes = n + n / MM2_SUPER * 4 + n / LANES * 2;
    return (bytes + 63) / 64 * 64;
}

int64_t mm2_panel_bytes(int32_t act, int32_t rows, int64_t n)
{
    int64_t group = 0; /* the codes of 16 rows, then what belongs to each block */
    if (act == MM2_ACT_BF16)
        group = 16 * mm2_act_bytes(act, n);
    else if (act == MM2_ACT_Q8_32)
        group = 16 * (n + n / BLOCK * 4);
    else if (act == MM2_ACT_Q8_256)
        group = 16 * (n + n / MM2_SUPER * 4 + n / LANES * 2 + n / BLOCK * 2);
    return ((int64_t)rows + 15) / 16 * group;
}

static void quantize_bf16(void *act, const float *x, int32_t n)
{
    uint16_t *out = act;
    for (int32_t i = 0; i < n; i++)
        out[i] = mm2_f32_bf16(x[i]);
    for (int32_t i = n; i % SCALE_BLOCK; i++)
        out[i] = 0;
}

/* One block of codes and its scale d: q = rint(x * (127 / amax)), d = amax / 127. */
static float quantize_block(int8_t *q, const float *x, int32_t n)
{
    uint32_t largest = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t magnitude = mm2_f32_bits(x[i]) & 0x7fffffff;
        if (magnitude > largest)
            largest = magnitude;
    }
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

static void quantize_q8_32(void *act, const float *x, int32_t n)
{
    int8_t *q = act;
    float *d = (float *)(q + n);
    for (int32_t b = 0; b < n / BLOCK; b++)
        d[b] = quantize_block(q + b * BLOCK, x + b * BLOCK, BLOCK);
}

static void quantize_q8_256(void *act, const float *x, int32_t n)
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

/* ---- Sums in lanes ---- */

/* j with j + 8, then + 4, + 2, + 1. */
static float tree(float lane[LANES])
{
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

/* ---- Matrix products with float weights ---- */

static float value_f32(const uint8_t *row, int32_t k)
{
    float value;
    memcpy(&value, row + 4 * (int64_t)k, 4);
    return value;
}

static float value_f16(const uint8_t *row, int32_t k)
{
    uint16_t half;
    memcpy(&half, row + 2 * (int64_t)k, 2);
    return mm2_f16_f32(half);
}

static float value_bf16(const uint8_t *row, int32_t k)
{
    uint16_t half;
    memcpy(&half, row + 2 * (int64_t)k, 2);
    return mm2_bf16_f32(half);
}

static float value_f8_e4m3(const uint8_t *row, int32_t k)
{
    return mm2_e4m3_values[row[k]];
}

static float weight_value(int32_t dtype, const uint8_t *row, int32_t k)
{
    switch (dtype) {
#define VALUE(ID, name, ...)                                                                       \
    case MM2_##ID:                                                                                 \
        return value_##name(row, k);
        MM2_FLOATS(VALUE)
        MM2_PAIRS(VALUE)
#undef VALUE
    }
    return 0;
}

/* lane[j] gains weight * x for k = begin + j, begin + j + 16, ... below end; zeros beyond. */
static void add_products(float lane[LANES], const mm2_weight *w, const uint8_t *row, const float *x,
                         int32_t begin, int32_t end)
{
    for (int32_t k = begin; k < end; k += LANES)
        for (int32_t j = 0; j < LANES; j++) {
            int inside = j < end - k;
            float a = inside ? weight_value(w->dtype, row, k + j) : 0;
            float b = inside ? x[k + j] : 0;
            lane[j] = fmaf(a, b, lane[j]);
        }
}

/* FP8: what the codes of row i around element k are multiplied with. */
static float block_scale(const mm2_weight *w, int32_t i, int32_t k)
{
    int64_t blocks = w->n_in / SCALE_BLOCK + (w->n_in % SCALE_BLOCK != 0);
    int64_t row = ((int64_t)i + w->scale_row) / SCALE_BLOCK;
    return w->scale ? w->scale[row * blocks + k / SCALE_BLOCK] : 1;
}

static void matmul_float(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                         const void *const *acts, int32_t rows)
{
    for (int32_t i = 0; i < count; i++) {
        const uint8_t *row = (const uint8_t *)w->data + (first + i) * w->row_bytes;
        for (int32_t m = 0; m < rows; m++) {
            float lane[LANES] = {0};
            add_products(lane, w, row, acts[m], 0, w->n_in);
            out[m][i] = tree(lane);
        }
    }
}

static void exact_bf16(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                       const void *const *acts, int32_t rows)
{
    matmul_float(out, w, first, count, acts, rows);
}

/* FP8: the sums of 128 products each are scaled before they are added up. */
static void exact_f8_e4m3(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                          const void *const *acts, int32_t rows)
{
    for (int32_t i = 0; i < count; i++) {
        const uint8_t *row = (const uint8_t *)w->data + (first + i) * w->row_bytes;
        for (int32_t m = 0; m < rows; m++) {
            float total[LANES] = {0};
            for (int32_t k = 0; k < w->n_in; k += SCALE_BLOCK) {
                float t[LANES] = {0};
                add_products(t, w, row, acts[m], k,
                             w->n_in - k < SCALE_BLOCK ? w->n_in : k + SCALE_BLOCK);
                for (int32_t j = 0; j < LANES; j++)
                    total[j] = fmaf(t[j], block_scale(w, first + i, k), total[j]);
            }
            out[m][i] = tree(total);
        }
    }
}

/* Blocks of integer codes as floats. */
static void matmul_decoded(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                           const void *const *acts, int32_t rows)
{
    int32_t block = mm2_dtype_block(w->dtype), bytes = mm2_dtype_bytes(w->dtype);
    for (int32_t i = 0; i < count; i++)
        for (int32_t m = 0; m < rows; m++) {
            const uint8_t *p = (const uint8_t *)w->data + (first + i) * w->row_bytes;
            const float *x = acts[m];
            float lane[LANES] = {0}, value[MM2_SUPER];
            for (int32_t k = 0; k < w->n_in; k += block, p += bytes) {
                mm2_dequantize_row(w->dtype, p, value, block);
                for (int32_t j = 0; j < block; j++)
                    lane[j % LANES] = fmaf(value[j], x[k + j], lane[j % LANES]);
            }
            out[m][i] = tree(lane);
        }
}

/* ---- Matrix products with bf16 activations ---- */

/* Elements [begin, begin + STEP_PAIRS * stride) of a row of n_in weights times the same
 * activations, two of every `stride`: the even plus the odd chain. */
static float tile_step(const mm2_weight *w, const uint8_t *row, const uint16_t *x, int32_t begin,
                       int32_t stride)
{
    float chain[2] = {0, 0};
    for (int32_t p = 0; p < STEP_PAIRS; p++)
        for (int32_t odd = 0; odd < 2; odd++) {
            int32_t k = begin + p * stride + odd;
            float a = k < w->n_in ? weight_value(w->dtype, row, k) : 0;
            float b = k < w->n_in ? mm2_bf16_f32(x[k]) : 0;
            chain[odd] = fmaf(a, b, chain[odd]);
        }
    return chain[0] + chain[1];
}

static void matmul_bf16(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                        const void *const *acts, int32_t rows)
{
    for (int32_t i = 0; i < count; i++) {
        const uint8_t *row = (const uint8_t *)w->data + (first + i) * w->row_bytes;
        for (int32_t m = 0; m < rows; m++) {
            float y = 0;
            for (int32_t k = 0; k < w->n_in; k += STEP_PAIRS * 2)
                y += tile_step(w, row, acts[m], k, 2);
            out[m][i] = y;
        }
    }
}

/* A step takes two codes of each of the block's 16 qwords. */
static void matmul_f8_e4m3(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                           const void *const *acts, int32_t rows)
{
    for (int32_t i = 0; i < count; i++) {
        const uint8_t *row = (const uint8_t *)w->data + (first + i) * w->row_bytes;
        for (int32_t m = 0; m < rows; m++) {
            float y = 0;
            for (int32_t k = 0; k < w->n_in; k += SCALE_BLOCK) {
                float c = 0;
                for (int32_t s = 0; s < 4; s++)
                    c += tile_step(w, row, acts[m], k + 2 * s, 8);
                y = fmaf(block_scale(w, first + i, k), c, y);
            }
            out[m][i] = y;
        }
    }
}

/* ---- Matrix products with blocks of 32 integer codes ---- */

/* Unpackers write the codes of one block and return its scale. Nibble formats keep element j in the
 * low and j + 16 in the high half of byte j. */

static float unpack_q8_0(int8_t q[BLOCK], const void *block)
{
    mm2_block_q8_0 b;
    memcpy(&b, block, sizeof b);
    memcpy(q, b.q, BLOCK);
    return mm2_f16_f32(b.d);
}

static float unpack_q4_0(int8_t q[BLOCK], const void *block)
{
    mm2_block_q4_0 b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++)
        q[j] = (int8_t)((j < 16 ? b.q[j] & 15 : b.q[j - 16] >> 4) - 8);
    return mm2_f16_f32(b.d);
}

static float unpack_q5_0(int8_t q[BLOCK], const void *block)
{
    mm2_block_q5_0 b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++) {
        int low = j < 16 ? b.q[j] & 15 : b.q[j - 16] >> 4;
        int high = b.high[j / 8] >> j % 8 & 1;
        q[j] = (int8_t)((low | high << 4) - 16);
    }
    return mm2_f16_f32(b.d);
}

static float unpack_iq4_nl(int8_t q[BLOCK], const void *block)
{
    mm2_block_iq4_nl b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++)
        q[j] = mm2_iq4_values[j < 16 ? b.q[j] & 15 : b.q[j - 16] >> 4];
    return mm2_f16_f32(b.d);
}

static float unpack_block(int32_t dtype, int8_t q[BLOCK], const void *block)
{
    switch (dtype) {
#define UNPACK(ID, name, ...)                                                                      \
    case MM2_##ID:                                                                                 \
        return unpack_##name(q, block);
        MM2_BLOCKS(UNPACK)
#undef UNPACK
    }
    return 0;
}

static void matmul_block(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                         const void *const *acts, int32_t rows)
{
    int32_t blocks = w->n_in / BLOCK;
    int64_t bytes = w->row_bytes / (blocks ? blocks : 1);
    for (int32_t i = 0; i < count; i++) {
        const uint8_t *row = (const uint8_t *)w->data + (first + i) * w->row_bytes;
        for (int32_t m = 0; m < rows; m++) {
            const int8_t *a = acts[m];
            const float *d_a = (const float *)(a + w->n_in);
            float y = 0;
            for (int32_t b = 0; b < blocks; b++) {
                int8_t q[BLOCK];
                float d_w = unpack_block(w->dtype, q, row + b * bytes);
                int32_t isum = 0;
                for (int32_t j = 0; j < BLOCK; j++)
                    isum += q[j] * a[b * BLOCK + j];
                y = fmaf(d_w * d_a[b], (float)isum, y);
            }
            out[m][i] = y;
        }
    }
}

/* ---- Matrix products with super-blocks of 256 integer codes ---- */

/* A super-block, unpacked: 16 sub-blocks of 16 codes with an integer scale and minimum each. An
 * element is d * scale * q - dmin * min. */
typedef struct super {
    int8_t q[MM2_SUPER];
    int16_t scale[16], min[16];
    float d, dmin; /* dmin 0 for the formats without minima */
} super;

static void unpack_q2_k(super *s, const void *block)
{
    mm2_block_q2_k b;
    memcpy(&b, block, sizeof b);
    for (int i = 0; i < MM2_SUPER; i++) /* 32 bytes hold 4 x 32 elements, 2 bits each */
        s->q[i] = b.q[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
    for (int i = 0; i < 16; i++) {
        s->scale[i] = b.scales[i] & 15;
        s->min[i] = b.scales[i] >> 4;
    }
    s->d = mm2_f16_f32(b.d);
    s->dmin = mm2_f16_f32(b.dmin);
}

static void unpack_q3_k(super *s, const void *block)
{
    mm2_block_q3_k b;
    memcpy(&b, block, sizeof b);
    for (int i = 0; i < MM2_SUPER; i++) {
        int low = b.q[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
        int high = b.high[i % 32] >> i / 32 & 1;
        s->q[i] = (int8_t)((low | high << 2) - 4);
    }
    for (int i = 0; i < 16; i++) {
        int low = i < 8 ? b.scales[i] & 15 : b.scales[i - 8] >> 4;
        int high = b.scales[8 + i % 4] >> i / 4 * 2 & 3;
        s->scale[i] = (int16_t)((low | high << 4) - 32);
    }
    s->d = mm2_f16_f32(b.d);
}

/* The 6-bit scales and minima of Q4_K and Q5_K, one pair for 32 elements, here twice for 2 x 16. */
static void unpack_scales(super *s, const uint8_t p[12])
{
    for (int i = 0; i < 16; i++) {
        int j = i / 2;
        int scale = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
        int min = j < 4 ? p[j + 4] & 63 : p[j + 4] >> 4 | p[j] >> 6 << 4;
        s->scale[i] = (int16_t)scale;
        s->min[i] = (int16_t)min;
    }
}

static void unpack_q4_k(super *s, const void *block)
{
    mm2_block_q4_k b;
    memcpy(&b, block, sizeof b);
    for (int i = 0; i < MM2_SUPER; i++) /* 32 bytes hold 2 x 32 elements */
        s->q[i] = b.q[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
    unpack_scales(s, b.scales);
    s->d = mm2_f16_f32(b.d);
    s->dmin = mm2_f16_f32(b.dmin);
}

static void unpack_q5_k(super *s, const void *block)
{
    mm2_block_q5_k b;
    memcpy(&b, block, sizeof b);
    for (int i = 0; i < MM2_SUPER; i++) {
        int low = b.q[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
        int high = b.high[i % 32] >> i / 32 & 1;
        s->q[i] = (int8_t)(low | high << 4);
    }
    unpack_scales(s, b.scales);
    s->d = mm2_f16_f32(b.d);
    s->dmin = mm2_f16_f32(b.dmin);
}

static void unpack_q6_k(super *s, const void *block)
{
    mm2_block_q6_k b;
    memcpy(&b, block, sizeof b);
    for (int i = 0; i < MM2_SUPER; i++) {
        int half = i / 128, part = i % 128 / 32, l = i % 32; /* 128 elements: 64 + 32 bytes */
        int low = b.low[half * 64 + part % 2 * 32 + l] >> part / 2 * 4 & 15;
        int high = b.high[half * 32 + l] >> part * 2 & 3;
        s->q[i] = (int8_t)((low | high << 4) - 32);
    }
    for (int i = 0; i < 16; i++)
        s->scale[i] = b.scales[i];
    s->d = mm2_f16_f32(b.d);
}

static void unpack_iq4_xs(super *s, const void *block)
{
    mm2_block_iq4_xs b;
    memcpy(&b, block, sizeof b);
    for (int i = 0; i < MM2_SUPER; i++) {
        int code = b.q[i / 32 * 16 + i % 16] >> i % 32 / 16 * 4 & 15;
        s->q[i] = mm2_iq4_values[code];
    }
    for (int i = 0; i < 16; i++) {
        int j = i / 2;
        int low = b.scales_low[j / 2] >> j % 2 * 4 & 15;
        int high = b.scales_high >> j * 2 & 3;
        s->scale[i] = (int16_t)((low | high << 4) - 32);
    }
    s->d = mm2_f16_f32(b.d);
}

static void unpack_super(int32_t dtype, super *s, const void *block)
{
    memset(s, 0, sizeof *s);
    switch (dtype) {
#define UNPACK(ID, name, ...)                                                                      \
    case MM2_##ID:                                                                                 \
        unpack_##name(s, block);                                                                   \
        return;
        MM2_SUPERS(UNPACK)
#undef UNPACK
    }
}

static void matmul_super(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                         const void *const *acts, int32_t rows)
{
    int32_t blocks = w->n_in / MM2_SUPER;
    int64_t bytes = w->row_bytes / (blocks ? blocks : 1);
    int minima = mm2_format_of(w->dtype).minima;
    for (int32_t i = 0; i < count; i++) {
        const uint8_t *row = (const uint8_t *)w->data + (first + i) * w->row_bytes;
        for (int32_t m = 0; m < rows; m++) {
            const int8_t *a = acts[m];
            const float *d_a = (const float *)(a + w->n_in);
            const int16_t *sums = (const int16_t *)(d_a + blocks);
            float y = 0;
            for (int32_t b = 0; b < blocks; b++) {
                super s;
                unpack_super(w->dtype, &s, row + b * bytes);
                int32_t isum = 0, msum = 0;
                for (int32_t i16 = 0; i16 < 16; i16++) {
                    int32_t sum = 0;
                    for (int32_t j = 0; j < 16; j++)
                        sum += s.q[i16 * 16 + j] * a[b * MM2_SUPER + i16 * 16 + j];
                    isum += s.scale[i16] * sum;
                    msum += s.min[i16] * sums[b * 16 + i16];
                }
                y = fmaf(s.d * d_a[b], (float)isum, y);
                if (minima)
                    y = fmaf(-(s.dmin * d_a[b]), (float)msum, y);
            }
            out[m][i] = y;
        }
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

static void rms_norm(float *out, const float *x, const float *w, int32_t n, float eps)
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

static void rope(float *x, const float *cosine, const float *sine, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = fmaf(a, cosine[i], -(b * sine[i]));
        x[i + half] = fmaf(a, sine[i], b * cosine[i]);
    }
}

static void swiglu(float *out, const float *gate, const float *up, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = gate[i] / (1 + mm2_exp(-gate[i])) * up[i];
}

static void sigmoid(float *out, const float *x, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = 1 / (1 + mm2_exp(-x[i]));
}

static void axpy(float *y, float a, const float *x, int32_t n)
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

static void hadamard(float *x, int32_t n)
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
    uint32_t largest = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t magnitude = mm2_f32_bits(x[i]) & 0x7fffffff;
        if (magnitude > largest)
            largest = magnitude;
    }
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

/* ---- The machine's limits ---- */

static uint64_t read_bytes(const uint8_t *p, int64_t n, int32_t ahead1, int32_t ahead2)
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

static uint64_t peak_int8(const void *data, int32_t rounds, int64_t *ops)
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

static uint64_t peak_f32(const void *data, int32_t rounds, int64_t *ops)
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

#define FLOATS(ID, ...) [MM2_##ID] = matmul_float,
#define MATMUL(ID, name, ...) [MM2_##ID] = matmul_##name,
#define EXACT(ID, name, ...) [MM2_##ID] = exact_##name,
#define BLOCKS(ID, ...) [MM2_##ID] = matmul_block,
#define SUPERS(ID, ...) [MM2_##ID] = matmul_super,
#define DECODED(ID, ...) [MM2_##ID] = matmul_decoded,

const mm2_kernels mm2_kernels_ref = {
    .name = "ref",
    .isa = MM2_ISA_REF,
    .matmul = {MM2_FLOATS(FLOATS) MM2_PAIRS(MATMUL) MM2_BLOCKS(BLOCKS) MM2_SUPERS(SUPERS)},
    .exact = {MM2_FLOATS(FLOATS) MM2_PAIRS(EXACT) MM2_INTEGER_FORMATS(DECODED)},
    .quantize = {[MM2_ACT_BF16] = quantize_bf16,
                 [MM2_ACT_Q8_32] = quantize_q8_32,
                 [MM2_ACT_Q8_256] = quantize_q8_256},
    .rms_norm = rms_norm,
    .rope = rope,
    .swiglu = swiglu,
    .sigmoid = sigmoid,
    .axpy = axpy,
    .hadamard = hadamard,
    .quantize_head = quantize_block,
    .attend = {attend_f32, attend_bf16, attend_int8},
    .read = read_bytes,
    .peak = {[MM2_PEAK_INT8] = peak_int8, [MM2_PEAK_F32] = peak_f32},
};
