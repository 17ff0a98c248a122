/* Element types: the rows of formats.h as a table, and the conversions of single values that are too
 * long for a header.
 *
 * The table is indexed by the public dtype number. GGUF and safetensors each name a subset: a type
 * that has no number or name there cannot appear in such a file.
 *
 * All conversions are exact, so their results do not depend on the floating-point mode. */
#include "tensor/dtype.h"

#include "tensor/formats.h"

#include <math.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are mapped, and little-endian");

static const mm2_dtype_facts facts[MM2_DTYPE_COUNT] = {
#define FACTS(ID, name, ELEMENTS, BYTES, GGUF, SAFETENSORS, ...)                                   \
    [MM2_##ID] = {#name, ELEMENTS, BYTES, GGUF, SAFETENSORS},
    MM2_FORMATS(FACTS)
#undef FACTS
};

#define ONE(...) +1
_Static_assert(MM2_FORMATS(ONE) == MM2_DTYPE_COUNT - 1, "a row for every dtype of the header");
#undef ONE

// clang-format off
/* Eight mantissas of one exponent: `first` .. `first` + 7 units. */
#define ROW(sign, first, unit)                                                                     \
    sign((first) * (unit)), sign((first + 1) * (unit)), sign((first + 2) * (unit)),                \
    sign((first + 3) * (unit)), sign((first + 4) * (unit)), sign((first + 5) * (unit)),            \
    sign((first + 6) * (unit)), sign((first + 7) * (unit))
#define HALF(sign)                                                                                 \
    ROW(sign, 0, 0x1p-9f), ROW(sign, 8, 0x1p-9f), ROW(sign, 8, 0x1p-8f), ROW(sign, 8, 0x1p-7f),    \
    ROW(sign, 8, 0x1p-6f), ROW(sign, 8, 0x1p-5f), ROW(sign, 8, 0x1p-4f), ROW(sign, 8, 0x1p-3f),    \
    ROW(sign, 8, 0x1p-2f), ROW(sign, 8, 0x1p-1f), ROW(sign, 8, 0x1p0f), ROW(sign, 8, 0x1p1f),      \
    ROW(sign, 8, 0x1p2f), ROW(sign, 8, 0x1p3f), ROW(sign, 8, 0x1p4f),                              \
    sign(8 * 0x1p5f), sign(9 * 0x1p5f), sign(10 * 0x1p5f), sign(11 * 0x1p5f),                      \
    sign(12 * 0x1p5f), sign(13 * 0x1p5f), sign(14 * 0x1p5f), sign(NAN)

const float mm2_e4m3_values[256] = {HALF(+), HALF(-)};
// clang-format on

const mm2_dtype_facts *mm2_dtype_find(int32_t dtype)
{
    return dtype > 0 && dtype < MM2_DTYPE_COUNT ? &facts[dtype] : NULL;
}

int32_t mm2_dtype_from_ggml(uint32_t type)
{
    for (int32_t i = 1; i < MM2_DTYPE_COUNT; i++)
        if (facts[i].ggml >= 0 && (uint32_t)facts[i].ggml == type)
            return i;
    return 0;
}

int32_t mm2_dtype_from_safetensors(const char *name)
{
    for (int32_t i = 1; i < MM2_DTYPE_COUNT; i++)
        if (facts[i].safetensors && !strcmp(facts[i].safetensors, name))
            return i;
    return 0;
}

int64_t mm2_dtype_row_bytes(int32_t dtype, int64_t n)
{
    const mm2_dtype_facts *f = mm2_dtype_find(dtype);
    int64_t bytes;
    if (!f || n < 0 || n % f->block || __builtin_mul_overflow(n / f->block, f->bytes, &bytes))
        return -1;
    return bytes;
}

float mm2_f16_f32(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000) << 16;
    uint32_t exponent = x >> 10 & 31, mantissa = x & 0x3ff;
    if (exponent == 31) /* NaN becomes quiet, as in hardware */
        return mm2_bits_f32(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
    if (exponent)
        return mm2_bits_f32(sign | (exponent + 112) << 23 | mantissa << 13);
    if (!mantissa)
        return mm2_bits_f32(sign);
    uint32_t shift = (uint32_t)__builtin_clz(mantissa) - 21; /* moves the leading one to bit 10 */
    return mm2_bits_f32(sign | (113 - shift) << 23 | (mantissa << shift & 0x3ff) << 13);
}

const char *mm2_dtype_name(int32_t dtype)
{
    const mm2_dtype_facts *f = mm2_dtype_find(dtype);
    return f ? f->name : NULL;
}

int32_t mm2_dtype_block(int32_t dtype)
{
    const mm2_dtype_facts *f = mm2_dtype_find(dtype);
    return f ? f->block : 0;
}

int32_t mm2_dtype_bytes(int32_t dtype)
{
    const mm2_dtype_facts *f = mm2_dtype_find(dtype);
    return f ? f->bytes : 0;
}
