/* Decoding of every dtype to float32: the specification of what the codes mean.
 *
 * Each value is one product of float32 numbers, or one product less another, in the order in which
 * the formats are defined: d * scale first, then times the code, then less dmin * minimum. With this
 * order the results equal those of the `gguf` Python package bit for bit. Kernels do not decode;
 * they multiply the codes as integers (see kernels/kernels.h).
 *
 * Blocks are copied before they are read: a caller's view may have any alignment. */
#include "tensor/quant.h"

#include "base/status.h"
#include "tensor/codebooks.h"

const int8_t mm2_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

const int8_t mm2_e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* Plain values: n of them. */

static void decode_f32(const uint8_t *in, float *out, int64_t n)
{
    memcpy(out, in, (size_t)n * 4);
}

static void decode_f16(const uint8_t *in, float *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t x;
        memcpy(&x, in + 2 * i, 2);
        out[i] = mm2_f16_f32(x);
    }
}

static void decode_bf16(const uint8_t *in, float *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t x;
        memcpy(&x, in + 2 * i, 2);
        out[i] = mm2_bf16_f32(x);
    }
}

static void decode_f8_e4m3(const uint8_t *in, float *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = mm2_e4m3_values[in[i]];
}

static void decode_i32(const uint8_t *in, float *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t x;
        memcpy(&x, in + 4 * i, 4);
        out[i] = (float)x;
    }
}

static void decode_u8(const uint8_t *in, float *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = in[i];
}

static void decode_int8(const uint8_t *in, float *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (int8_t)in[i];
}

/* Blocks: one. */

static void decode_q8_0(const uint8_t *in, float *out)
{
    mm2_block_q8_0 b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d);
    for (int i = 0; i < 32; i++)
        out[i] = d * b.q[i];
}

static void decode_q4_0(const uint8_t *in, float *out)
{
    mm2_block_q4_0 b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d);
    for (int i = 0; i < 32; i++)
        out[i] = d * ((b.q[i % 16] >> (i / 16 * 4) & 15) - 8);
}

static void decode_q5_0(const uint8_t *in, float *out)
{
    mm2_block_q5_0 b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d);
    for (int i = 0; i < 32; i++) {
        int high = b.high[i / 8] >> (i % 8) & 1;
        out[i] = d * ((b.q[i % 16] >> (i / 16 * 4) & 15) + high * 16 - 16);
    }
}

static void decode_iq4_nl(const uint8_t *in, float *out)
{
    mm2_block_iq4_nl b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d);
    for (int i = 0; i < 32; i++)
        out[i] = d * mm2_iq4_values[b.q[i % 16] >> (i / 16 * 4) & 15];
}

static void decode_q4_1(const uint8_t *in, float *out)
{
    mm2_block_q4_1 b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d), m = mm2_f16_f32(b.m);
    for (int i = 0; i < 32; i++)
        out[i] = d * (b.q[i % 16] >> (i / 16 * 4) & 15) + m;
}

static void decode_q5_1(const uint8_t *in, float *out)
{
    mm2_block_q5_1 b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d), m = mm2_f16_f32(b.m);
    for (int i = 0; i < 32; i++) {
        int high = b.high[i / 8] >> (i % 8) & 1;
        out[i] = d * ((b.q[i % 16] >> (i / 16 * 4) & 15) + high * 16) + m;
    }
}

float mm2_mxfp4_scale(uint8_t e)
{
    return mm2_bits_f32(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

static void decode_mxfp4(const uint8_t *in, float *out)
{
    mm2_block_mxfp4 b;
    memcpy(&b, in, sizeof b);
    float d = mm2_mxfp4_scale(b.d);
    for (int i = 0; i < 32; i++)
        out[i] = d * mm2_e2m1_doubled[b.q[i % 16] >> (i / 16 * 4) & 15];
}

float mm2_nvfp4_scale(uint8_t d)
{
    int exponent = d >> 3 & 15, mantissa = d & 7;
    if (d == 0x7f)
        return 0;
    return exponent ? (float)(8 + mantissa) * mm2_bits_f32((uint32_t)(exponent + 116) << 23)
                    : (float)mantissa * 0x1p-10f;
}

/* Each 16 elements have a scale and 8 bytes. */
static void decode_nvfp4(const uint8_t *in, float *out)
{
    mm2_block_nvfp4 b;
    memcpy(&b, in, sizeof b);
    for (int i = 0; i < 64; i++)
        out[i] = mm2_nvfp4_scale(b.d[i / 16]) *
                 mm2_e2m1_doubled[b.q[i / 16 * 8 + i % 8] >> (i % 16 / 8 * 4) & 15];
}

static void decode_q1_0(const uint8_t *in, float *out)
{
    mm2_block_q1_0 b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d);
    for (int i = 0; i < 128; i++)
        out[i] = b.q[i / 8] >> (i % 8) & 1 ? d : -d;
}

/* K-quants: element i of a super-block lies in half i / 128; within it, groups of 32 (Q6_K's low
 * nibbles: 64) share their bytes and take successive bits. */

static void decode_q2_k(const uint8_t *in, float *out)
{
    mm2_block_q2_k b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d), dmin = mm2_f16_f32(b.dmin);
    for (int i = 0; i < MM2_SUPER; i++) {
        int code = b.q[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        float scale = d * (b.scales[i / 16] & 15), minimum = dmin * (b.scales[i / 16] >> 4);
        out[i] = scale * code - minimum;
    }
}

static void decode_q3_k(const uint8_t *in, float *out)
{
    mm2_block_q3_k b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d);
    for (int i = 0; i < MM2_SUPER; i++) {
        int group = i / 16;
        int low = b.scales[group % 8] >> (group / 8 * 4) & 15;
        int high = b.scales[8 + group % 4] >> (group / 4 * 2) & 3;
        int code = b.q[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        if (!(b.high[i % 32] >> (i / 32) & 1))
            code -= 4;
        out[i] = d * ((low | high << 4) - 32) * code;
    }
}

/* The eight 6-bit scales and minima of Q4_K and Q5_K: those of groups 4 to 7 keep their upper two
 * bits on top of groups 0 to 3. */
static int scale_6bit(const uint8_t *s, int group)
{
    return group < 4 ? s[group] & 63 : (s[group + 4] & 15) | (s[group - 4] >> 6) << 4;
}

static int minimum_6bit(const uint8_t *s, int group)
{
    return group < 4 ? s[group + 4] & 63 : s[group + 4] >> 4 | (s[group] >> 6) << 4;
}

static void decode_q4_k(const uint8_t *in, float *out)
{
    mm2_block_q4_k b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d), dmin = mm2_f16_f32(b.dmin);
    for (int i = 0; i < MM2_SUPER; i++) {
        int group = i / 32;
        int code = b.q[i / 64 * 32 + i % 32] >> (group % 2 * 4) & 15;
        out[i] = d * scale_6bit(b.scales, group) * code - dmin * minimum_6bit(b.scales, group);
    }
}

static void decode_q5_k(const uint8_t *in, float *out)
{
    mm2_block_q5_k b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d), dmin = mm2_f16_f32(b.dmin);
    for (int i = 0; i < MM2_SUPER; i++) {
        int group = i / 32;
        int code = b.q[i / 64 * 32 + i % 32] >> (group % 2 * 4) & 15;
        code |= (b.high[i % 32] >> group & 1) << 4;
        out[i] = d * scale_6bit(b.scales, group) * code - dmin * minimum_6bit(b.scales, group);
    }
}

static void decode_q6_k(const uint8_t *in, float *out)
{
    mm2_block_q6_k b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d);
    for (int i = 0; i < MM2_SUPER; i++) {
        int low = b.low[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
        int high = b.high[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        out[i] = d * b.scales[i / 16] * ((low | high << 4) - 32);
    }
}

static void decode_iq4_xs(const uint8_t *in, float *out)
{
    mm2_block_iq4_xs b;
    memcpy(&b, in, sizeof b);
    float d = mm2_f16_f32(b.d);
    for (int i = 0; i < MM2_SUPER; i++) {
        int group = i / 32;
        int low = b.scales_low[group / 2] >> (group % 2 * 4) & 15;
        int high = b.scales_high >> (group * 2) & 3;
        int code = b.q[group * 16 + i % 16] >> (i % 32 / 16 * 4) & 15;
        out[i] = d * ((low | high << 4) - 32) * mm2_iq4_values[code];
    }
}

/* PLANES: 32 codes, without their scales. Nibbles: even elements in the low ones. */

static void decode_f4(const uint8_t *in, float *out)
{
    for (int i = 0; i < 32; i++)
        out[i] = 0.5f * mm2_e2m1_doubled[in[i / 2] >> (i % 2 * 4) & 15];
}

#define decode_f4_16 decode_f4
#define decode_f4_32 decode_f4

static void decode_i4(const uint8_t *in, float *out)
{
    for (int i = 0; i < 32; i++)
        out[i] = (float)((in[i / 2] >> (i % 2 * 4) & 15) - 8);
}

static void decode_i8(const uint8_t *in, float *out)
{
    for (int i = 0; i < 32; i++)
        out[i] = (float)(in[i] - 128);
}

/* The gguf package has d times one factor after the other; all of these products are exact. */
static void decode_codebook(int32_t dtype, const uint8_t *in, float *out)
{
    mm2_codes c;
    mm2_codebook_unpack(dtype, &c, in);
    for (int i = 0; i < MM2_SUPER; i++)
        out[i] = c.d * c.scale[i / 16] * c.code[i];
}

void mm2_dequantize_row(int32_t dtype, const void *data, float *out, int64_t n)
{
    const uint8_t *in = data;
    switch (dtype) {
#define VALUES(ID, name, ...)                                                                      \
    case MM2_##ID:                                                                                 \
        decode_##name(in, out, n);                                                                 \
        return;
#define BLOCKS(ID, name, ELEMENTS, BYTES, ...)                                                     \
    case MM2_##ID:                                                                                 \
        for (; n > 0; n -= ELEMENTS, out += ELEMENTS, in += BYTES)                                 \
            decode_##name(in, out);                                                                \
        return;
#define CODEBOOKS(ID, name, ELEMENTS, BYTES, ...)                                                  \
    case MM2_##ID:                                                                                 \
        for (; n > 0; n -= ELEMENTS, out += ELEMENTS, in += BYTES)                                 \
            decode_codebook(dtype, in, out);                                                       \
        return;
        MM2_PLAIN_FORMATS(VALUES)
        MM2_BLOCKS(BLOCKS)
        MM2_PLANES(BLOCKS)
        MM2_SUPERS(BLOCKS)
        MM2_CODEBOOKS(CODEBOOKS)
#undef VALUES
#undef BLOCKS
#undef CODEBOOKS
    }
}

mm2_status mm2_tensor_decode(const mm2_tensor *t, float *out, int64_t n)
{
    if (!t || n < 0 || (n && !out))
        return mm2_fail(MM2_E_ARG, "a tensor and room for %lld floats are needed", (long long)n);
    const mm2_dtype_facts *facts = mm2_dtype_find(t->dtype);
    if (!facts || t->ndim < 0 || t->ndim > MM2_MAX_DIMS)
        return mm2_fail(MM2_E_ARG, "dtype %d with %d dimensions is no tensor", t->dtype, t->ndim);
    int64_t elements = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->strides[i] != elements)
            return mm2_fail(MM2_E_ARG,
                            "dimension %d has stride %lld, expected %lld: the "
                            "tensor must be contiguous",
                            i, (long long)t->strides[i], (long long)elements);
        if (t->shape[i] < 0 || __builtin_mul_overflow(elements, t->shape[i], &elements))
            return mm2_fail(MM2_E_ARG, "dimension %d has size %lld", i, (long long)t->shape[i]);
    }
    if (t->ndim && t->shape[t->ndim - 1] % facts->block)
        return mm2_fail(MM2_E_ARG, "rows of %lld elements are no blocks of %d",
                        (long long)t->shape[t->ndim - 1], facts->block);
    int64_t bytes = mm2_dtype_row_bytes(t->dtype, elements);
    if (bytes < 0 || bytes != t->nbytes || (bytes && !t->data))
        return mm2_fail(MM2_E_ARG, "%lld elements of %s do not fill %lld bytes",
                        (long long)elements, facts->name, (long long)t->nbytes);
    if (elements > n)
        return mm2_fail(MM2_E_ARG, "%lld elements do not fit into %lld floats", (long long)elements,
                        (long long)n);
    if (elements)
        mm2_dequantize_row(t->dtype, t->data, out, elements);
    return MM2_OK;
}
