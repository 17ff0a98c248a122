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
#include "kernels/ref.h"

#include "tensor/codebooks.h"

#include <math.h>
#include <stddef.h>

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
        group = 16 * (n + n / BLOCK * 8);
    else if (act == MM2_ACT_Q8_256)
        group = 16 * (n + n / MM2_SUPER * 4 + n / LANES * 2 + n / BLOCK * 2);
    return ((int64_t)rows + 15) / 16 * group;
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
                    total[j] = fmaf(t[j], mm2_weight_scale(w, first + i, k), total[j]);
            }
            out[m][i] = tree(total);
        }
    }
}

/* Integer codes as floats. */
static void matmul_decoded(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                           const void *const *acts, int32_t rows)
{
    int32_t block = mm2_dtype_block(w->dtype);
    for (int32_t i = 0; i < count; i++)
        for (int32_t m = 0; m < rows; m++) {
            const float *x = acts[m];
            float lane[LANES] = {0}, value[MM2_SUPER];
            for (int32_t k = 0; k < w->n_in; k += block) {
                mm2_weight_values(w, first + i, k, block, value);
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
                y = fmaf(mm2_weight_scale(w, first + i, k), c, y);
            }
            out[m][i] = y;
        }
    }
}

/* ---- Matrix products with 32 integer codes at a time: blocks and planes ---- */

/* 32 codes of a row. An element is d * q, or d * q + m. */
typedef struct piece {
    int16_t q[BLOCK]; /* of I8, less a zero point: 9 bits */
    float d[2];       /* of 16 codes each */
    float m;          /* of formats with minima */
} piece;

/* Unpackers of blocks write the codes of number `part` of a block's pieces, and set their scale. Nibble
 * formats keep element j in the low and j + 16 in the high half of byte j. */

static void set_scale(piece *x, float d)
{
    x->d[0] = x->d[1] = d;
}

static void unpack_q8_0(piece *x, const void *block, int part)
{
    mm2_block_q8_0 b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++)
        x->q[j] = b.q[j];
    set_scale(x, mm2_f16_f32(b.d));
}

static void unpack_q4_0(piece *x, const void *block, int part)
{
    mm2_block_q4_0 b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++)
        x->q[j] = (int16_t)((j < 16 ? b.q[j] & 15 : b.q[j - 16] >> 4) - 8);
    set_scale(x, mm2_f16_f32(b.d));
}

static void unpack_q5_0(piece *x, const void *block, int part)
{
    mm2_block_q5_0 b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++) {
        int low = j < 16 ? b.q[j] & 15 : b.q[j - 16] >> 4;
        int high = b.high[j / 8] >> j % 8 & 1;
        x->q[j] = (int16_t)((low | high << 4) - 16);
    }
    set_scale(x, mm2_f16_f32(b.d));
}

static void unpack_iq4_nl(piece *x, const void *block, int part)
{
    mm2_block_iq4_nl b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++)
        x->q[j] = mm2_iq4_values[j < 16 ? b.q[j] & 15 : b.q[j - 16] >> 4];
    set_scale(x, mm2_f16_f32(b.d));
}

static void unpack_q4_1(piece *x, const void *block, int part)
{
    mm2_block_q4_1 b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++)
        x->q[j] = j < 16 ? b.q[j] & 15 : b.q[j - 16] >> 4;
    set_scale(x, mm2_f16_f32(b.d));
    x->m = mm2_f16_f32(b.m);
}

static void unpack_q5_1(piece *x, const void *block, int part)
{
    mm2_block_q5_1 b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++) {
        int low = j < 16 ? b.q[j] & 15 : b.q[j - 16] >> 4;
        int high = b.high[j / 8] >> j % 8 & 1;
        x->q[j] = (int16_t)(low | high << 4);
    }
    set_scale(x, mm2_f16_f32(b.d));
    x->m = mm2_f16_f32(b.m);
}

static void unpack_mxfp4(piece *x, const void *block, int part)
{
    mm2_block_mxfp4 b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++)
        x->q[j] = mm2_e2m1_doubled[j < 16 ? b.q[j] & 15 : b.q[j - 16] >> 4];
    set_scale(x, mm2_mxfp4_scale(b.d));
}

/* 8 bytes hold 16 elements: element j in the low, j + 8 in the high half of byte j. Scales are set by
 * unpack_piece. */
static void unpack_nvfp4(piece *x, const void *block, int part)
{
    const uint8_t *q = ((const mm2_block_nvfp4 *)block)->q + part * 16;
    for (int j = 0; j < BLOCK; j++)
        x->q[j] = mm2_e2m1_doubled[q[j / 16 * 8 + j % 8] >> j % 16 / 8 * 4 & 15];
}

static void unpack_q1_0(piece *x, const void *block, int part)
{
    mm2_block_q1_0 b;
    memcpy(&b, block, sizeof b);
    for (int j = 0; j < BLOCK; j++)
        x->q[j] = b.q[part * 4 + j / 8] >> j % 8 & 1 ? 1 : -1;
    set_scale(x, mm2_f16_f32(b.d));
}

/* Unpackers of planes: codes only. Nibbles: even elements in the low ones. */

static void unpack_f4(piece *x, const uint8_t *p, int zero)
{
    for (int j = 0; j < BLOCK; j++)
        x->q[j] = mm2_e2m1_doubled[p[j / 2] >> j % 2 * 4 & 15];
}

#define unpack_f4_16 unpack_f4
#define unpack_f4_32 unpack_f4

static void unpack_i4(piece *x, const uint8_t *p, int zero)
{
    for (int j = 0; j < BLOCK; j++)
        x->q[j] = (int16_t)((p[j / 2] >> j % 2 * 4 & 15) - zero);
}

static void unpack_i8(piece *x, const uint8_t *p, int zero)
{
    for (int j = 0; j < BLOCK; j++)
        x->q[j] = (int16_t)(p[j] - zero);
}

/* Piece b of row i. */
static void unpack_piece(piece *x, const mm2_weight *w, int32_t i, int32_t b)
{
    int32_t parts = mm2_dtype_block(w->dtype) / BLOCK, bytes = mm2_dtype_bytes(w->dtype);
    const uint8_t *p = (const uint8_t *)w->data + i * w->row_bytes + (int64_t)(b / parts) * bytes;
    int is_elsewhere = mm2_is_plane(w->dtype) || w->dtype == MM2_NVFP4;
    x->m = 0;
    for (int half = 0; half < 2 && is_elsewhere; half++)
        x->d[half] = mm2_weight_scale(w, i, b * BLOCK + half * 16);
    switch (w->dtype) {
#define UNPACK(ID, name, ...)                                                                      \
    case MM2_##ID:                                                                                 \
        unpack_##name(x, p, b % parts);                                                            \
        break;
        MM2_BLOCKS(UNPACK)
#undef UNPACK
#define UNPACK(ID, name, ...)                                                                      \
    case MM2_##ID:                                                                                 \
        unpack_##name(x, p, mm2_weight_zero(w, i, b *BLOCK));                                      \
        break;
        MM2_PLANES(UNPACK)
#undef UNPACK
    }
}

static void matmul_pieces(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                          const void *const *acts, int32_t rows)
{
    const mm2_format_facts facts = mm2_format_of(w->dtype);
    for (int32_t i = 0; i < count; i++)
        for (int32_t m = 0; m < rows; m++) {
            const int8_t *a = acts[m];
            const float *d_a = (const float *)(a + w->n_in);
            float y = 0;
            for (int32_t b = 0; b < w->n_in / BLOCK; b++, a += BLOCK) {
                piece x;
                unpack_piece(&x, w, first + i, b);
                for (int32_t k = 0; k < BLOCK; k += facts.span) {
                    int32_t isum = 0, asum = 0;
                    for (int32_t j = k; j < k + facts.span; j++) {
                        isum += x.q[j] * a[j];
                        asum += a[j];
                    }
                    y = fmaf(x.d[k / 16] * d_a[b], (float)isum, y);
                    if (facts.minima)
                        y = fmaf(x.m * d_a[b], (float)asum, y);
                }
            }
            out[m][i] = y;
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

static void unpack_codebook(int32_t dtype, super *s, const void *block)
{
    mm2_codes c;
    mm2_codebook_unpack(dtype, &c, block);
    memcpy(s->q, c.code, sizeof s->q);
    for (int i = 0; i < 16; i++)
        s->scale[i] = c.scale[i];
    s->d = c.d;
}

static void unpack_super(int32_t dtype, super *s, const void *block)
{
    memset(s, 0, sizeof *s);
    if (mm2_is_codebook(dtype))
        unpack_codebook(dtype, s, block);
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

/* ---- The table ---- */

#define FLOATS(ID, ...) [MM2_##ID] = matmul_float,
#define MATMUL(ID, name, ...) [MM2_##ID] = matmul_##name,
#define EXACT(ID, name, ...) [MM2_##ID] = exact_##name,
#define PIECES(ID, ...) [MM2_##ID] = matmul_pieces,
#define SUPERS(ID, ...) [MM2_##ID] = matmul_super,
#define DECODED(ID, ...) [MM2_##ID] = matmul_decoded,

const mm2_kernels mm2_kernels_ref = {
    .name = "ref",
    .isa = MM2_ISA_REF,
    .matmul = {MM2_FLOATS(FLOATS) MM2_PAIRS(MATMUL) MM2_BLOCKS(PIECES) MM2_PLANES(PIECES)
                   MM2_SUPER_FORMATS(SUPERS)},
    .exact = {MM2_FLOATS(FLOATS) MM2_PAIRS(EXACT) MM2_INTEGER_FORMATS(DECODED)},
    .quantize = {[MM2_ACT_BF16] = mm2_ref_quantize_bf16,
                 [MM2_ACT_Q8_32] = mm2_ref_quantize_q8_32,
                 [MM2_ACT_Q8_256] = mm2_ref_quantize_q8_256},
    .rms_norm = mm2_ref_rms_norm,
    .rope = mm2_ref_rope,
    .swiglu = mm2_ref_swiglu,
    .sigmoid = mm2_ref_sigmoid,
    .axpy = mm2_ref_axpy,
    .hadamard = mm2_ref_hadamard,
    .quantize_head = mm2_ref_quantize_head,
    .attend = {mm2_ref_attend_f32, mm2_ref_attend_bf16, mm2_ref_attend_int8},
    .read = mm2_ref_read_bytes,
    .peak = {[MM2_PEAK_INT8] = mm2_ref_peak_int8, [MM2_PEAK_F32] = mm2_ref_peak_f32},
};
