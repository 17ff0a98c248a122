/* Codebook and ternary super-blocks: 256 codes that are looked up in a grid, eight or four at a
 * time, or written in base 3.
 *
 * A code of the file is an index into a grid of rows and, beside it, the signs of the row's
 * elements, one bit each. Where there is room for 7 of 8 sign bits only, the number of minus signs
 * is even. The values of a grid and the factors around them (1/8, 1/4) make every weight a product
 * of d with two small integers, the sub-block's scale and a code of at most 6 bits and a sign;
 * this product is exact in float32, so decoders and kernels share these integers.
 *
 * The grids are stored packed, in grids.h, and expanded by the compiler. All data here are
 * constant. */
#include "tensor/codebooks.h"

#include "tensor/grids.h"

#define IQ1_VALUE(c) (8 * (int)(c)-8)

#define EIGHT(VALUE, row)                                                                          \
    {                                                                                              \
        VALUE((row)&3), VALUE((row) >> 2 & 3), VALUE((row) >> 4 & 3), VALUE((row) >> 6 & 3),       \
            VALUE((row) >> 8 & 3), VALUE((row) >> 10 & 3), VALUE((row) >> 12 & 3),                 \
            VALUE((row) >> 14 & 3)                                                                 \
    }
#define FOUR(VALUE, row)                                                                           \
    {                                                                                              \
        VALUE((row)&7), VALUE((row) >> 4 & 7), VALUE((row) >> 8 & 7), VALUE((row) >> 12 & 7)       \
    }
#define ROWS(ROW, VALUE, rows)                                                                     \
    ROW(VALUE, (rows)), ROW(VALUE, (rows) >> 16), ROW(VALUE, (rows) >> 32),                        \
        ROW(VALUE, (rows) >> 48),

#define IQ2_ROWS(rows) ROWS(EIGHT, MM2_IQ2_VALUE, rows)
#define IQ1_ROWS(rows) ROWS(EIGHT, IQ1_VALUE, rows)
#define IQ3_XXS_ROWS(rows) ROWS(FOUR, MM2_IQ3_XXS_VALUE, rows)
#define IQ3_S_ROWS(rows) ROWS(FOUR, MM2_IQ3_S_VALUE, rows)

const int8_t mm2_grid_iq2_xxs[256][8] = {MM2_GRID_IQ2_XXS(IQ2_ROWS)};
const int8_t mm2_grid_iq2_xs[512][8] = {MM2_GRID_IQ2_XS(IQ2_ROWS)};
const int8_t mm2_grid_iq2_s[1024][8] = {MM2_GRID_IQ2_S(IQ2_ROWS)};
const int8_t mm2_grid_iq3_xxs[256 + 3][4] = {MM2_GRID_IQ3_XXS(IQ3_XXS_ROWS)};
const int8_t mm2_grid_iq3_s[512 + 3][4] = {MM2_GRID_IQ3_S(IQ3_S_ROWS)};
const int8_t mm2_grid_iq1_s[2048][8] = {MM2_GRID_IQ1_S(IQ1_ROWS)};

#define BYTE(PLANE, row) PLANE(row)
#define IQ2_0(row) ((row) >> 4 & 3) | ((row)&3) << 2 | ((row) >> 6 & 3) << 4 | ((row) >> 2 & 3) << 6
#define IQ2_1(row) IQ2_0((row) >> 8)
#define IQ3_0(row) ((row) >> 8 & 7) | ((row)&7) << 3
#define IQ3_1(row) IQ3_0((row) >> 4)
#define IQ2_PLANE_0(rows) ROWS(BYTE, IQ2_0, rows)
#define IQ2_PLANE_1(rows) ROWS(BYTE, IQ2_1, rows)
#define IQ3_PLANE_0(rows) ROWS(BYTE, IQ3_0, rows)
#define IQ3_PLANE_1(rows) ROWS(BYTE, IQ3_1, rows)
#define PLANES(GRID, BITS)                                                                         \
    {                                                                                              \
        {GRID(BITS##_PLANE_0)},                                                                    \
        {                                                                                          \
            GRID(BITS##_PLANE_1)                                                                   \
        }                                                                                          \
    }

_Alignas(64) const uint8_t mm2_planes_iq2_xxs[2][256] = PLANES(MM2_GRID_IQ2_XXS, IQ2);
_Alignas(64) const uint8_t mm2_planes_iq2_xs[2][512] = PLANES(MM2_GRID_IQ2_XS, IQ2);
_Alignas(64) const uint8_t mm2_planes_iq2_s[2][1024] = PLANES(MM2_GRID_IQ2_S, IQ2);
_Alignas(64) const uint8_t mm2_planes_iq3_xxs[2][256] = PLANES(MM2_GRID_IQ3_XXS, IQ3);
_Alignas(64) const uint8_t mm2_planes_iq3_s[2][512] = PLANES(MM2_GRID_IQ3_S, IQ3);

static uint32_t load_u32(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, 4);
    return x;
}

/* Seven sign bits, and the eighth that makes their number even. */
static unsigned even_signs(uint32_t bits)
{
    bits &= 127;
    return bits | (unsigned)__builtin_parity(bits) << 7;
}

/* Bit j of `signs`: element j is negative. */
static void put_signed(int8_t *out, const int8_t *row, int n, unsigned signs)
{
    for (int j = 0; j < n; j++)
        out[j] = (int8_t)(signs >> j & 1 ? -row[j] : row[j]);
}

/* Unpackers: i is a group of 8 codes, i / 4 one of 32. */

static void unpack_iq2_xxs(mm2_codes *out, const mm2_block_iq2_xxs *b)
{
    for (int i = 0; i < 32; i++) {
        const uint8_t *p = b->q + i / 4 * 8;
        uint32_t more = load_u32(p + 4); /* four times 7 signs, the scale */
        put_signed(out->code + i * 8, mm2_grid_iq2_xxs[p[i % 4]], 8, even_signs(more >> i % 4 * 7));
        out->scale[i / 2] = (uint8_t)(2 * (more >> 28) + 1);
    }
    out->d = mm2_f16_f32(b->d) * 0.125f;
}

/* Two scales of 4 bits for each 32 codes, for 16 codes each. */
static uint8_t scale_4bit(const uint8_t scales[8], int i)
{
    return (uint8_t)(2 * (scales[i / 4] >> i % 4 / 2 * 4 & 15) + 1);
}

static void unpack_iq2_xs(mm2_codes *out, const mm2_block_iq2_xs *b)
{
    for (int i = 0; i < 32; i++) {
        put_signed(out->code + i * 8, mm2_grid_iq2_xs[b->q[i] & 511], 8, even_signs(b->q[i] >> 9));
        out->scale[i / 2] = scale_4bit(b->scales, i);
    }
    out->d = mm2_f16_f32(b->d) * 0.125f;
}

static void unpack_iq2_s(mm2_codes *out, const mm2_block_iq2_s *b)
{
    for (int i = 0; i < 32; i++) {
        int high = b->high[i / 4] >> i % 4 * 2 & 3;
        put_signed(out->code + i * 8, mm2_grid_iq2_s[b->q[i] | high << 8], 8, b->signs[i]);
        out->scale[i / 2] = scale_4bit(b->scales, i);
    }
    out->d = mm2_f16_f32(b->d) * 0.125f;
}

static void unpack_iq3_xxs(mm2_codes *out, const mm2_block_iq3_xxs *b)
{
    for (int i = 0; i < 32; i++) {
        uint32_t more = load_u32(b->more + i / 4 * 4); /* as in IQ2_XXS */
        unsigned signs = even_signs(more >> i % 4 * 7);
        put_signed(out->code + i * 8, mm2_grid_iq3_xxs[b->q[i * 2]], 4, signs);
        put_signed(out->code + i * 8 + 4, mm2_grid_iq3_xxs[b->q[i * 2 + 1]], 4, signs >> 4);
        out->scale[i / 2] = (uint8_t)(2 * (more >> 28) + 1);
    }
    out->d = mm2_f16_f32(b->d) * 0.25f;
}

static void unpack_iq3_s(mm2_codes *out, const mm2_block_iq3_s *b)
{
    for (int i = 0; i < 64; i++) { /* groups of 4 */
        int high = b->high[i / 8] >> i % 8 & 1;
        put_signed(out->code + i * 4, mm2_grid_iq3_s[b->q[i] | high << 8], 4,
                   b->signs[i / 2] >> i % 2 * 4);
        out->scale[i / 4] = (uint8_t)(2 * (b->scales[i / 16] >> i / 8 % 2 * 4 & 15) + 1);
    }
    out->d = mm2_f16_f32(b->d);
}

/* 8 codes of IQ1: the grid's, times 8, and 1 more or less. */
static void put_ternary(int8_t *out, int row, int minus)
{
    for (int j = 0; j < 8; j++)
        out[j] = (int8_t)(mm2_grid_iq1_s[row][j] + (minus ? -1 : 1));
}

static void unpack_iq1_s(mm2_codes *out, const mm2_block_iq1_s *b)
{
    for (int i = 0; i < 32; i++) {
        int more = b->high[i / 4]; /* four times 3 bits of an index, the scale, a sign */
        put_ternary(out->code + i * 8, b->q[i] | (more >> i % 4 * 3 & 7) << 8, more >> 15);
        out->scale[i / 2] = (uint8_t)(2 * (more >> 12 & 7) + 1);
    }
    out->d = mm2_f16_f32(b->d) * 0.125f;
}

static void unpack_iq1_m(mm2_codes *out, const mm2_block_iq1_m *b)
{
    unsigned d = 0; /* of the upper nibbles of four words, whose lower bits are the scales */
    for (int i = 0; i < 4; i++)
        d |= (unsigned)(b->scales[i] >> 12) << i * 4;
    for (int i = 0; i < 32; i++) {
        int more = b->high[i / 2] >> i % 2 * 4 & 15; /* 3 bits of an index, a sign */
        put_ternary(out->code + i * 8, b->q[i] | (more & 7) << 8, more >> 3);
        out->scale[i / 2] = (uint8_t)(2 * (b->scales[i / 8] >> i / 2 % 4 * 3 & 7) + 1);
    }
    out->d = mm2_f16_f32((uint16_t)d) * 0.125f;
}

/* Digit n, the first being 0, of the five in base 3 that a byte holds as a fraction. */
static int8_t digit_3(uint8_t byte, int n)
{
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    return (int8_t)(((uint8_t)(byte * power[n]) * 3 >> 8) - 1);
}

static void unpack_tq1_0(mm2_codes *out, const mm2_block_tq1_0 *b)
{
    for (int i = 0; i < MM2_SUPER; i++)
        out->code[i] = i < 160   ? digit_3(b->q[i % 32], i / 32)
                       : i < 240 ? digit_3(b->q[32 + i % 16], (i - 160) / 16)
                                 : digit_3(b->high[i % 4], (i - 240) / 4);
    memset(out->scale, 1, sizeof out->scale);
    out->d = mm2_f16_f32(b->d);
}

static void unpack_tq2_0(mm2_codes *out, const mm2_block_tq2_0 *b)
{
    for (int i = 0; i < MM2_SUPER; i++) /* 32 bytes hold 4 x 32 codes */
        out->code[i] = (int8_t)((b->q[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - 1);
    memset(out->scale, 1, sizeof out->scale);
    out->d = mm2_f16_f32(b->d);
}

void mm2_codebook_unpack(int32_t dtype, mm2_codes *out, const void *block)
{
    switch (dtype) {
#define UNPACK(ID, name, ...)                                                                      \
    case MM2_##ID: {                                                                               \
        mm2_block_##name b;                                                                        \
        memcpy(&b, block, sizeof b);                                                               \
        unpack_##name(out, &b);                                                                    \
        return;                                                                                    \
    }
        MM2_CODEBOOKS(UNPACK)
#undef UNPACK
    }
}
