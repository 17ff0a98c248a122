/* tensor/: facts of dtypes, conversions of single values, decoding of blocks, and the checks around
 * them. Bit equality of random blocks with the reference is tests/python/test_dequantize.py's; here
 * are blocks small enough to be worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tensor/codebooks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HALF_ONE = 0x3c00, HALF_TWO = 0x4000, HALF_QUARTER = 0x3400 }; /* 1.0, 2.0, 0.25 */

/* ---- facts ---- */

static void every_dtype_has_its_facts(void **state)
{
    static const struct {
        int32_t dtype, block, bytes, ggml;
        const char *name, *safetensors;
    } want[] = {
        {MM2_F32, 1, 4, 0, "f32", "F32"},
        {MM2_F16, 1, 2, 1, "f16", "F16"},
        {MM2_BF16, 1, 2, 30, "bf16", "BF16"},
        {MM2_F8_E4M3, 1, 1, -1, "f8_e4m3", "F8_E4M3"},
        {MM2_I32, 1, 4, 26, "i32", "I32"},
        {MM2_Q8_0, 32, 34, 8, "q8_0", NULL},
        {MM2_Q4_0, 32, 18, 2, "q4_0", NULL},
        {MM2_Q5_0, 32, 22, 6, "q5_0", NULL},
        {MM2_Q2_K, 256, 84, 10, "q2_k", NULL},
        {MM2_Q3_K, 256, 110, 11, "q3_k", NULL},
        {MM2_Q4_K, 256, 144, 12, "q4_k", NULL},
        {MM2_Q5_K, 256, 176, 13, "q5_k", NULL},
        {MM2_Q6_K, 256, 210, 14, "q6_k", NULL},
        {MM2_IQ4_NL, 32, 18, 20, "iq4_nl", NULL},
        {MM2_IQ4_XS, 256, 136, 23, "iq4_xs", NULL},
        {MM2_Q4_1, 32, 20, 3, "q4_1", NULL},
        {MM2_Q5_1, 32, 24, 7, "q5_1", NULL},
        {MM2_Q1_0, 128, 18, 41, "q1_0", NULL},
        {MM2_MXFP4, 32, 17, 39, "mxfp4", NULL},
        {MM2_NVFP4, 64, 36, 40, "nvfp4", NULL},
        {MM2_IQ2_XXS, 256, 66, 16, "iq2_xxs", NULL},
        {MM2_IQ2_XS, 256, 74, 17, "iq2_xs", NULL},
        {MM2_IQ2_S, 256, 82, 22, "iq2_s", NULL},
        {MM2_IQ3_XXS, 256, 98, 18, "iq3_xxs", NULL},
        {MM2_IQ3_S, 256, 110, 21, "iq3_s", NULL},
        {MM2_IQ1_S, 256, 50, 19, "iq1_s", NULL},
        {MM2_IQ1_M, 256, 56, 29, "iq1_m", NULL},
        {MM2_TQ1_0, 256, 54, 34, "tq1_0", NULL},
        {MM2_TQ2_0, 256, 66, 35, "tq2_0", NULL},
        {MM2_U8, 1, 1, -1, "u8", "U8"},
        {MM2_F4_16, 32, 16, -1, "f4_16", NULL},
        {MM2_F4_32, 32, 16, -1, "f4_32", NULL},
        {MM2_I4, 32, 16, -1, "i4", NULL},
        {MM2_I8, 32, 32, -1, "i8", NULL},
        {MM2_INT8, 1, 1, -1, "int8", NULL},
    };
    int32_t count = sizeof want / sizeof *want;
    assert_int_equal(MM2_DTYPE_COUNT - 1, count);
    for (int32_t i = 0; i < count; i++) {
        int32_t d = want[i].dtype;
        assert_string_equal(want[i].name, mm2_dtype_name(d));
        assert_int_equal(want[i].block, mm2_dtype_block(d));
        assert_int_equal(want[i].bytes, mm2_dtype_bytes(d));
        assert_int_equal(want[i].bytes * 3, mm2_dtype_row_bytes(d, want[i].block * 3));
        if (want[i].block > 1)
            assert_int_equal(-1, mm2_dtype_row_bytes(d, want[i].block * 3 + 1));
        if (want[i].ggml >= 0)
            assert_int_equal(d, mm2_dtype_from_ggml((uint32_t)want[i].ggml));
        if (want[i].safetensors)
            assert_int_equal(d, mm2_dtype_from_safetensors(want[i].safetensors));
    }
    static const int32_t unknown[] = {INT32_MIN, -1, 0, MM2_DTYPE_COUNT, INT32_MAX};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        assert_null(mm2_dtype_name(unknown[i]));
        assert_int_equal(0, mm2_dtype_block(unknown[i]));
        assert_int_equal(0, mm2_dtype_bytes(unknown[i]));
    }
    assert_int_equal(0, mm2_dtype_from_ggml(0xffffffff));
    assert_int_equal(0, mm2_dtype_from_safetensors("f32"));
    assert_int_equal(0, mm2_dtype_from_safetensors(""));
    assert_int_equal(-1, mm2_dtype_row_bytes(MM2_F32, INT64_MAX));
    assert_int_equal(-1, mm2_dtype_row_bytes(MM2_F32, -1));
    assert_int_equal(-1, mm2_dtype_row_bytes(0, 1));
}

static void sections_agree_with_sizes(void **state)
{
    for (int32_t d = 1; d < MM2_DTYPE_COUNT; d++) {
        const mm2_format_facts f = mm2_format_of(d);
        assert_int_equal(mm2_dtype_block(d), f.elements);
        assert_int_equal(mm2_dtype_bytes(d), f.bytes);
        assert_int_equal(f.elements > 1, mm2_is_block(d) + mm2_is_plane(d) + mm2_is_super(d));
        assert_int_equal(f.elements == MM2_SUPER, mm2_is_super(d));
        assert_int_equal(f.elements > 1, f.bits > 0);
        assert_true(f.elements % f.span == 0 && f.offset < 1 << f.bits);
    }
    assert_int_equal(0, mm2_format_of(MM2_DTYPE_COUNT).elements);
    assert_false(mm2_is_integer(0) || mm2_is_block(-1) || mm2_is_plane(-1) ||
                 mm2_is_super(MM2_DTYPE_COUNT));
}

/* ---- single values ---- */

/* By definition: sign, exponent, mantissa as a double. */
static double half_value(uint16_t x)
{
    int exponent = x >> 10 & 31, mantissa = x & 0x3ff;
    double value = exponent == 31 ? (mantissa ? NAN : INFINITY)
                   : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                                  : ldexp(mantissa, -24);
    return x & 0x8000 ? -value : value;
}

static void every_half_float_is_exact(void **state)
{
    for (uint32_t x = 0; x < 65536; x++) {
        float got = mm2_f16_f32((uint16_t)x), want = (float)half_value((uint16_t)x);
        if (want != want)
            assert_true(got != got);
        else
            assert_int_equal(mm2_f32_bits(want), mm2_f32_bits(got));
    }
}

static void every_e4m3_value_is_exact(void **state)
{
    for (int x = 0; x < 256; x++) {
        int exponent = x >> 3 & 15, mantissa = x & 7;
        float want = (float)(exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9));
        want = x & 128 ? -want : want;
        if ((x & 127) == 127)
            assert_true(mm2_e4m3_values[x] != mm2_e4m3_values[x]);
        else
            assert_int_equal(mm2_f32_bits(want), mm2_f32_bits(mm2_e4m3_values[x]));
    }
}

static void bf16_rounds_to_nearest_even(void **state)
{
    for (uint32_t x = 0; x < 65536; x++) {
        float value = mm2_bf16_f32((uint16_t)x);
        if (value == value)
            assert_int_equal(x, mm2_f32_bf16(value));
        else
            assert_true(mm2_bf16_f32(mm2_f32_bf16(value)) != value);
    }
    assert_int_equal(0x3f80, mm2_f32_bf16(mm2_bits_f32(0x3f808000))); /* a tie, to even */
    assert_int_equal(0x3f82, mm2_f32_bf16(mm2_bits_f32(0x3f818000)));
    assert_int_equal(0x3f81, mm2_f32_bf16(mm2_bits_f32(0x3f808001)));
    assert_int_equal(0x7f80, mm2_f32_bf16(mm2_bits_f32(0x7f7fffff))); /* overflows to infinity */
    assert_int_equal(0x7fc0, mm2_f32_bf16(mm2_bits_f32(0x7f800001))); /* NaN, not infinity */
}

/* ---- blocks ---- */

static void simple_blocks_decode_as_by_hand(void **state)
{
    float out[32];
    mm2_block_q8_0 q8 = {.d = HALF_QUARTER, .q = {-128, 127, 4}};
    mm2_dequantize_row(MM2_Q8_0, &q8, out, 32);
    assert_true(out[0] == -32 && out[1] == 31.75f && out[2] == 1 && out[31] == 0);

    mm2_block_q4_0 q4 = {.d = HALF_TWO, .q = {0xf0, 0x08}};
    mm2_dequantize_row(MM2_Q4_0, &q4, out, 32);
    assert_true(out[0] == -16 && out[16] == 14 && out[1] == 0 && out[17] == -16);

    mm2_block_q5_0 q5 = {.d = HALF_ONE, .high = {1, 0, 0, 128}, .q = {0x2f}};
    q5.q[15] = 0x10;
    mm2_dequantize_row(MM2_Q5_0, &q5, out, 32);
    assert_true(out[0] == 15 && out[16] == -14 && out[15] == -16 && out[31] == 1);

    mm2_block_iq4_nl iq4 = {.d = HALF_TWO, .q = {0xf0}};
    mm2_dequantize_row(MM2_IQ4_NL, &iq4, out, 32);
    assert_true(out[0] == -254 && out[16] == 226);
}

static void minima_are_added(void **state)
{
    float out[32];
    mm2_block_q4_1 four = {.d = HALF_TWO, .m = HALF_QUARTER, .q = {0xf0, 0x08}};
    mm2_dequantize_row(MM2_Q4_1, &four, out, 32);
    assert_true(out[0] == 0.25f && out[16] == 30.25f && out[1] == 16.25f && out[31] == 0.25f);

    mm2_block_q5_1 five = {.d = HALF_ONE, .m = HALF_ONE, .high = {1, 0, 0, 128}, .q = {0x2f}};
    mm2_dequantize_row(MM2_Q5_1, &five, out, 32);
    assert_true(out[0] == 32 && out[16] == 3 && out[1] == 1 && out[31] == 17);
}

/* The scales of 8 bits, at their ends. */
static void float_blocks_decode_as_by_hand(void **state)
{
    static const struct {
        uint8_t e;
        float value;
    } mxfp4[] = {{0, 0x1p-128f}, {1, 0x1p-127f},  {2, 0x1p-126f},
                 {128, 1},       {254, 0x1p126f}, {255, 0x1p127f}};
    float out[64];
    for (size_t i = 0; i < sizeof mxfp4 / sizeof *mxfp4; i++) {
        mm2_block_mxfp4 b = {.d = mxfp4[i].e, .q = {0xf1, 0x98}};
        mm2_dequantize_row(MM2_MXFP4, &b, out, 32);
        assert_true(out[0] == mxfp4[i].value && out[17] == -mxfp4[i].value);
        assert_true(out[16] == -12 * mxfp4[i].value);
        assert_int_equal(0, mm2_f32_bits(out[1])); /* -0 is +0 */
    }
    static const struct {
        uint8_t d;
        float value;
    } nvfp4[] = {{0, 0},      {1, 0x1p-10f}, {7, 0x7p-10f}, {8, 0x1p-7f}, {0x38, 0.5f},
                 {0x7e, 224}, {0x7f, 0},     {0x80, 0},     {0xb8, 0.5f}, {0xff, 240}};
    for (size_t i = 0; i < sizeof nvfp4 / sizeof *nvfp4; i++) {
        mm2_block_nvfp4 b = {.d = {nvfp4[i].d, 0x38, 0, 0x40}, .q = {0x21}};
        memset(b.q + 8, 0x72, 24);
        mm2_dequantize_row(MM2_NVFP4, &b, out, 64);
        assert_true(out[0] == nvfp4[i].value && out[8] == 2 * nvfp4[i].value && out[1] == 0);
        assert_true(out[16] == 1 && out[31] == 6 && out[40] == 0 && out[48] == 2 && out[63] == 12);
    }

    mm2_block_q1_0 one = {.d = HALF_TWO, .q = {0x01}};
    float bits[128];
    one.q[15] = 0x80;
    mm2_dequantize_row(MM2_Q1_0, &one, bits, 128);
    assert_true(bits[0] == 2 && bits[1] == -2 && bits[126] == -2 && bits[127] == 2);
}

/* The codes alone, without their scales. */
static void planes_decode_as_by_hand(void **state)
{
    static const float e2m1[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    uint8_t in[32];
    float out[32];
    for (int i = 0; i < 32; i++)
        in[i] = (uint8_t)(2 * i % 16 | (2 * i + 1) % 16 << 4); /* element i is code i % 16 */
    mm2_dequantize_row(MM2_F4_16, in, out, 32);
    for (int i = 0; i < 32; i++)
        assert_int_equal(mm2_f32_bits(out[i]),
                         mm2_f32_bits(i % 16 > 8 ? -e2m1[i % 8] : e2m1[i % 8]));
    mm2_dequantize_row(MM2_I4, in, out, 32);
    for (int i = 0; i < 32; i++)
        assert_true(out[i] == (float)(i % 16 - 8));
    for (int i = 0; i < 32; i++)
        in[i] = (uint8_t)(i * 8 + i / 31 * 7);
    mm2_dequantize_row(MM2_I8, in, out, 32);
    assert_true(out[0] == -128 && out[1] == -120 && out[31] == 127);
    mm2_dequantize_row(MM2_U8, in, out, 32);
    assert_true(out[0] == 0 && out[31] == 255);
}

/* Eight different scales and minima through the 6-bit packing of Q4_K and Q5_K. */
static void packed_scales_are_unpacked(void **state)
{
    static const int scale[8] = {1, 22, 43, 63, 33, 50, 17, 62};
    static const int minimum[8] = {5, 60, 31, 12, 48, 7, 63, 16};
    mm2_block_q4_k four = {.d = HALF_ONE, .dmin = HALF_TWO};
    for (int i = 0; i < 4; i++) {
        four.scales[i] = (uint8_t)(scale[i] | scale[i + 4] >> 4 << 6);
        four.scales[i + 4] = (uint8_t)(minimum[i] | minimum[i + 4] >> 4 << 6);
        four.scales[i + 8] = (uint8_t)((scale[i + 4] & 15) | (minimum[i + 4] & 15) << 4);
    }
    memset(four.q, 0x31, sizeof four.q); /* even groups have code 1, odd ones 3 */
    mm2_block_q5_k five = {.d = HALF_ONE, .dmin = HALF_TWO};
    memcpy(five.scales, four.scales, sizeof five.scales);
    memcpy(five.q, four.q, sizeof five.q);
    memset(five.high, 0x84, sizeof five.high); /* groups 2 and 7 have 16 more */
    float a[256], b[256];
    mm2_dequantize_row(MM2_Q4_K, &four, a, 256);
    mm2_dequantize_row(MM2_Q5_K, &five, b, 256);
    for (int i = 0; i < 256; i++) {
        int group = i / 32, code = group % 2 ? 3 : 1, high = group == 2 || group == 7 ? 16 : 0;
        assert_true(a[i] == (float)(scale[group] * code - 2 * minimum[group]));
        assert_true(b[i] == (float)(scale[group] * (code + high) - 2 * minimum[group]));
    }
}

static void super_blocks_decode_as_by_hand(void **state)
{
    float out[256];
    mm2_block_q2_k q2 = {.d = HALF_TWO, .dmin = HALF_ONE};
    memset(q2.q, 0xe4, sizeof q2.q); /* codes 0, 1, 2, 3 for successive groups of 32 */
    for (int i = 0; i < 16; i++)
        q2.scales[i] = (uint8_t)(i | (15 - i) << 4);
    mm2_dequantize_row(MM2_Q2_K, &q2, out, 256);
    for (int i = 0; i < 256; i++)
        assert_true(out[i] == (float)(2 * (i / 16) * (i / 32 % 4) - (15 - i / 16)));

    mm2_block_q3_k q3 = {.d = HALF_ONE};
    memset(q3.q, 0xe4, sizeof q3.q);
    memset(q3.high, 0x0f, sizeof q3.high); /* groups 0 to 3 without the offset of -4 */
    memset(q3.scales, 0x21, 8);            /* low nibbles: 1 for groups 0 to 7, 2 for 8 to 15 */
    memset(q3.scales + 8, 0xe4, 4);        /* high bits: 0, 1, 2, 3 for groups of four */
    mm2_dequantize_row(MM2_Q3_K, &q3, out, 256);
    for (int i = 0; i < 256; i++) {
        int scale = (i / 16 < 8 ? 1 : 2) + 16 * (i / 64) - 32;
        assert_true(out[i] == (float)(scale * (i / 32 % 4 - (i < 128 ? 0 : 4))));
    }

    mm2_block_q6_k q6 = {.d = HALF_ONE};
    memset(q6.low, 0x31, sizeof q6.low);
    memset(q6.high, 0xe4, sizeof q6.high);
    for (int i = 0; i < 16; i++)
        q6.scales[i] = (int8_t)(i * 16 - 128);
    mm2_dequantize_row(MM2_Q6_K, &q6, out, 256);
    for (int i = 0; i < 256; i++) {
        int code = (i / 64 % 2 ? 3 : 1) + 16 * (i / 32 % 4) - 32;
        assert_true(out[i] == (float)((i / 16 * 16 - 128) * code));
    }

    mm2_block_iq4_xs xs = {.d = HALF_ONE, .scales_high = 0xe4e4};
    memset(xs.scales_low, 0x21, sizeof xs.scales_low);
    memset(xs.q, 0xf0, sizeof xs.q);
    mm2_dequantize_row(MM2_IQ4_XS, &xs, out, 256);
    for (int i = 0; i < 256; i++) {
        int group = i / 32, scale = (group % 2 ? 2 : 1) + 16 * (group % 4) - 32;
        assert_true(out[i] == (float)(scale * (i % 32 < 16 ? -127 : 113)));
    }
}

/* Signs, scales and the high bits of indices, each where one bit of the block has them. Rows 0 of
 * the grids of IQ2 and IQ3 have the smallest value everywhere. */
static void codebook_blocks_decode_as_by_hand(void **state)
{
    float out[256];
    mm2_block_iq2_xxs xxs = {.d = HALF_ONE};
    memset(xxs.q + 4, 0xff, 4); /* 7 signs each, which is odd: an eighth; the largest scale */
    mm2_dequantize_row(MM2_IQ2_XXS, &xxs, out, 256);
    for (int i = 0; i < 256; i++)
        assert_true(out[i] == (i < 32 ? -31.0f : 1.0f));

    mm2_block_iq2_s s2 = {.d = HALF_TWO, .q = {0xff}, .signs = {[31] = 0x81}};
    s2.high[0] = 3;      /* the last row, 43 everywhere */
    s2.scales[7] = 0xf0; /* of the last 16 */
    mm2_dequantize_row(MM2_IQ2_S, &s2, out, 256);
    for (int i = 0; i < 256; i++) {
        float value = i < 8 ? 10.75f : i < 240 ? 2 : 62;
        assert_true(out[i] == (i == 248 || i == 255 ? -value : value));
    }

    mm2_block_iq3_s s3 = {.d = HALF_ONE, .q = {[63] = 0xff}, .high = {[7] = 0x80}};
    s3.signs[31] = 0x80;
    s3.scales[3] = 0x10; /* of the last 32 */
    mm2_dequantize_row(MM2_IQ3_S, &s3, out, 256);
    for (int i = 0; i < 252; i++)
        assert_true(out[i] == (i < 224 ? 1 : 3));
    assert_true(out[252] == 3 && out[253] == 3 && out[254] == 45 && out[255] == -45);

    mm2_block_iq1_s s1 = {.d = HALF_ONE, .high = {[1] = 0xf000}}; /* row 0: -1 everywhere */
    mm2_dequantize_row(MM2_IQ1_S, &s1, out, 256);
    for (int i = 0; i < 256; i++)
        assert_true(out[i] == (i / 32 == 1 ? -15 * 1.125f : -0.875f));

    mm2_block_iq1_m m1 = {.q = {[31] = 0xff}, .high = {[15] = 0xf0}};
    m1.scales[3] = HALF_ONE & 0xf000; /* the highest nibble of d */
    m1.scales[2] = (HALF_ONE & 0x0f00) << 4;
    m1.scales[3] |= 7 << 9;                       /* of the last 16 */
    mm2_dequantize_row(MM2_IQ1_M, &m1, out, 256); /* the last row: 1 everywhere */
    for (int i = 0; i < 256; i++)
        assert_true(out[i] == (i < 240 ? -0.875f : i < 248 ? -15 * 0.875f : 15 * 0.875f));

    mm2_block_tq1_0 t1 = {.d = HALF_TWO, .q = {0xff, [32] = 0x80}, .high = {[3] = 0xff}};
    mm2_dequantize_row(MM2_TQ1_0, &t1, out, 256);
    for (int i = 0; i < 256; i++) { /* 0x80, a half, is 1 1 1 .. in base 3 */
        int two = (i < 160 && i % 32 == 0) || (i >= 240 && i % 4 == 3);
        int one = i >= 160 && i < 240 && i % 16 == 0;
        assert_true(out[i] == (two ? 2 : one ? 0 : -2));
    }

    mm2_block_tq2_0 t2 = {.d = HALF_ONE};
    memset(t2.q, 0xe4, sizeof t2.q);
    mm2_dequantize_row(MM2_TQ2_0, &t2, out, 256);
    for (int i = 0; i < 256; i++)
        assert_true(out[i] == (float)(i / 32 % 4 - 1));
}

/* ---- mm2_tensor_decode ---- */

static mm2_tensor matrix(void *data, int32_t dtype, int64_t rows, int64_t columns)
{
    return (mm2_tensor){.data = data,
                        .shape = {rows, columns},
                        .strides = {columns, 1},
                        .nbytes = mm2_dtype_row_bytes(dtype, rows * columns),
                        .ndim = 2,
                        .dtype = dtype};
}

static void whole_tensors_are_decoded(void **state)
{
    int32_t whole[] = {-5, 0, 7, INT32_MAX};
    float out[64];
    mm2_tensor t = matrix(whole, MM2_I32, 2, 2);
    assert_int_equal(MM2_OK, mm2_tensor_decode(&t, out, 4));
    assert_true(out[0] == -5 && out[2] == 7 && out[3] == 2147483648.0f);

    uint8_t blocks[1 + 2 * sizeof(mm2_block_q8_0)]; /* at an odd address */
    mm2_block_q8_0 b[2] = {{.d = HALF_ONE, .q = {1}}, {.d = HALF_TWO, .q = {3}}};
    memcpy(blocks + 1, b, sizeof b);
    t = matrix(blocks + 1, MM2_Q8_0, 2, 32);
    assert_int_equal(MM2_OK, mm2_tensor_decode(&t, out, 64));
    assert_true(out[0] == 1 && out[32] == 6);

    t = (mm2_tensor){.data = whole, .nbytes = 4, .ndim = 0, .dtype = MM2_I32};
    assert_int_equal(MM2_OK, mm2_tensor_decode(&t, out, 1)); /* a scalar */
    assert_true(out[0] == -5);
    t = matrix(NULL, MM2_F32, 0, 8);
    assert_int_equal(MM2_OK, mm2_tensor_decode(&t, NULL, 0)); /* nothing */
}

static void what_is_no_contiguous_tensor_is_refused(void **state)
{
    float in[64] = {0}, out[64];
    const mm2_tensor good = matrix(in, MM2_F32, 4, 16);
    mm2_tensor t = good;
    assert_int_equal(MM2_OK, mm2_tensor_decode(&t, out, 64));
    assert_int_equal(MM2_E_ARG, mm2_tensor_decode(NULL, out, 64));
    assert_int_equal(MM2_E_ARG, mm2_tensor_decode(&t, NULL, 64));
    assert_int_equal(MM2_E_ARG, mm2_tensor_decode(&t, out, 63));
    assert_int_equal(MM2_E_ARG, mm2_tensor_decode(&t, out, -1));
#define REFUSED(change)                                                                            \
    t = good;                                                                                      \
    change;                                                                                        \
    assert_int_equal(MM2_E_ARG, mm2_tensor_decode(&t, out, 64))
    REFUSED(t.dtype = 0);
    REFUSED(t.dtype = MM2_DTYPE_COUNT);
    REFUSED(t.ndim = 5);
    REFUSED(t.ndim = -1);
    REFUSED(t.strides[0] = 15);
    REFUSED(t.strides[1] = 2);
    REFUSED(t.shape[1] = -16);
    REFUSED(t.shape[0] = INT64_MAX);
    REFUSED(t.nbytes -= 1);
    REFUSED(t.data = NULL);
    REFUSED(t.dtype = MM2_Q8_0);
#undef REFUSED
    mm2_block_q8_0 block = {0}; /* 32 elements, but not in whole rows */
    t = matrix(&block, MM2_Q8_0, 2, 16);
    assert_int_equal(MM2_E_ARG, mm2_tensor_decode(&t, out, 64));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_dtype_has_its_facts),
        cmocka_unit_test(sections_agree_with_sizes),
        cmocka_unit_test(every_half_float_is_exact),
        cmocka_unit_test(every_e4m3_value_is_exact),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(simple_blocks_decode_as_by_hand),
        cmocka_unit_test(minima_are_added),
        cmocka_unit_test(float_blocks_decode_as_by_hand),
        cmocka_unit_test(planes_decode_as_by_hand),
        cmocka_unit_test(packed_scales_are_unpacked),
        cmocka_unit_test(super_blocks_decode_as_by_hand),
        cmocka_unit_test(codebook_blocks_decode_as_by_hand),
        cmocka_unit_test(whole_tensors_are_decoded),
        cmocka_unit_test(what_is_no_contiguous_tensor_is_refused),
    };
    return cmocka_run_group_tests_name("quant", tests, NULL, NULL);
}
