/* Element types: names, sizes, and the conversions of single values. */
#ifndef MM2_DTYPE_H
#define MM2_DTYPE_H

#include "minimax2.h"

#include <string.h>

typedef struct mm2_dtype_facts {
    const char *name;
    int32_t block;           /* elements in a block; 1 for plain types */
    int32_t bytes;           /* of a block */
    int32_t ggml;            /* type number in GGUF; -1 if it has none */
    const char *safetensors; /* dtype string in safetensors; NULL if it has none */
} mm2_dtype_facts;

/* NULL for an unknown number. */
const mm2_dtype_facts *mm2_dtype_find(int32_t dtype);
/* 0 if no dtype has this GGUF number / safetensors name. */
int32_t mm2_dtype_from_ggml(uint32_t type);
int32_t mm2_dtype_from_safetensors(const char *name);
/* Bytes of one row of `n` elements, or -1 if n is no multiple of the block or overflows. */
int64_t mm2_dtype_row_bytes(int32_t dtype, int64_t n);

static inline float mm2_bits_f32(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t mm2_f32_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static inline float mm2_bf16_f32(uint16_t x)
{
    return mm2_bits_f32((uint32_t)x << 16);
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t mm2_f32_bf16(float f)
{
    uint32_t bits = mm2_f32_bits(f);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Exact, subnormals included, whatever the floating-point mode (integer arithmetic only). */
float mm2_f16_f32(uint16_t x);

/* The 256 values of e4m3fn. Exact. */
extern const float mm2_e4m3_values[256];

#endif
