/* The formats of tensors, a row each. Everything that must know a format is made from these rows:
 * names, sizes, numbers in files, the slots of the kernel tables, the switches between decoders and
 * unpackers, and the facts below. A row without its decoder or one of its kernels does not compile.
 *
 * A row stands in the section of the kernels that multiply its weights:
 *   FLOATS   values, as float32, with float32 activations
 *   PAIRS    values, as bf16, with bf16 activations
 *   BLOCKS   blocks of 32 codes or a few times as many, each with scales d; with minima, m is added
 *   SUPERS   super-blocks of 256 codes: d times the integer scale of a sub-block; with minima, dmin
 *            times the sub-block's integer minimum is subtracted
 *   CODEBOOKS  as SUPERS, with codes that are looked up in a grid or written in base 3
 *   PLANES   codes without gaps; their scales lie elsewhere (mm2_weight)
 *   OTHERS   values that no matrix product takes: ids, codes of a cache
 *
 * A section is expanded with a macro X, which is called for each of its rows:
 *   X(ID, name, ELEMENTS, BYTES, GGUF, SAFETENSORS, ACT, SPAN, MINIMA, BITS, OFFSET)
 * ID, name     MM2_ID is the dtype; `name` is its public name and the ending of its functions
 * ELEMENTS     of a block; 1: plain values
 * BYTES        of a block
 * GGUF         type number in GGUF; -1: none
 * SAFETENSORS  dtype in safetensors; NULL: none
 * ACT          MM2_ACT_ACT are the activations that its products take; NONE
 * SPAN         codes whose products are one integer sum: those with a scale in common, the integer one
 *              in super-blocks, but 32 at most
 * MINIMA       has it minima?
 * BITS         of a code as it is multiplied: 8 with a sign, fewer without
 * OFFSET       what is to be subtracted from the codes of fewer bits */
#ifndef MM2_FORMATS_H
#define MM2_FORMATS_H

#include "minimax2.h"

// clang-format off
/*    ID       name      ELEMENTS BYTES GGUF SAFETENSORS ACT     SPAN MINIMA BITS OFFSET */
#define MM2_FLOATS(X) \
    X(F32,     f32,             1,    4,   0, "F32",     F32,       1, 0,    0,   0) \
    X(F16,     f16,             1,    2,   1, "F16",     F32,       1, 0,    0,   0)
#define MM2_PAIRS(X) \
    X(BF16,    bf16,            1,    2,  30, "BF16",    BF16,      1, 0,    0,   0) \
    X(F8_E4M3, f8_e4m3,         1,    1,  -1, "F8_E4M3", BF16,      1, 0,    0,   0)
#define MM2_BLOCKS(X) \
    X(Q8_0,    q8_0,           32,   34,   8, NULL,      Q8_32,    32, 0,    8,   0) \
    X(Q4_0,    q4_0,           32,   18,   2, NULL,      Q8_32,    32, 0,    4,   8) \
    X(Q5_0,    q5_0,           32,   22,   6, NULL,      Q8_32,    32, 0,    5,  16) \
    X(IQ4_NL,  iq4_nl,         32,   18,  20, NULL,      Q8_32,    32, 0,    8,   0) \
    X(Q4_1,    q4_1,           32,   20,   3, NULL,      Q8_32,    32, 1,    4,   0) \
    X(Q5_1,    q5_1,           32,   24,   7, NULL,      Q8_32,    32, 1,    5,   0) \
    X(MXFP4,   mxfp4,          32,   17,  39, NULL,      Q8_32,    32, 0,    5,  12) \
    X(NVFP4,   nvfp4,          64,   36,  40, NULL,      Q8_32,    16, 0,    5,  12) \
    X(Q1_0,    q1_0,          128,   18,  41, NULL,      Q8_32,    32, 0,    2,   1)
#define MM2_SUPERS(X) \
    X(Q2_K,    q2_k,          256,   84,  10, NULL,      Q8_256,   16, 1,    2,   0) \
    X(Q3_K,    q3_k,          256,  110,  11, NULL,      Q8_256,   16, 0,    3,   4) \
    X(Q4_K,    q4_k,          256,  144,  12, NULL,      Q8_256,   32, 1,    4,   0) \
    X(Q5_K,    q5_k,          256,  176,  13, NULL,      Q8_256,   32, 1,    5,   0) \
    X(Q6_K,    q6_k,          256,  210,  14, NULL,      Q8_256,   16, 0,    6,  32) \
    X(IQ4_XS,  iq4_xs,        256,  136,  23, NULL,      Q8_256,   32, 0,    8,   0)
#define MM2_CODEBOOKS(X) \
    X(IQ2_XXS, iq2_xxs,       256,   66,  16, NULL,      Q8_256,   32, 0,    8,   0) \
    X(IQ2_XS,  iq2_xs,        256,   74,  17, NULL,      Q8_256,   16, 0,    8,   0) \
    X(IQ2_S,   iq2_s,         256,   82,  22, NULL,      Q8_256,   16, 0,    8,   0) \
    X(IQ3_XXS, iq3_xxs,       256,   98,  18, NULL,      Q8_256,   32, 0,    8,   0) \
    X(IQ3_S,   iq3_s,         256,  110,  21, NULL,      Q8_256,   32, 0,    8,   0) \
    X(IQ1_S,   iq1_s,         256,   50,  19, NULL,      Q8_256,   32, 0,    8,   0) \
    X(IQ1_M,   iq1_m,         256,   56,  29, NULL,      Q8_256,   16, 0,    8,   0) \
    X(TQ1_0,   tq1_0,         256,   54,  34, NULL,      Q8_256,   32, 0,    8,   0) \
    X(TQ2_0,   tq2_0,         256,   66,  35, NULL,      Q8_256,   32, 0,    8,   0)
#define MM2_PLANES(X) \
    X(F4_16,   f4_16,          32,   16,  -1, NULL,      Q8_32,    16, 0,    5,  12) \
    X(F4_32,   f4_32,          32,   16,  -1, NULL,      Q8_32,    32, 0,    5,  12) \
    X(I4,      i4,             32,   16,  -1, NULL,      Q8_32,    32, 0,    4,   8) \
    X(I8,      i8,             32,   32,  -1, NULL,      Q8_32,    32, 0,    8,   0)
#define MM2_OTHERS(X) \
    X(I32,     i32,             1,    4,  26, "I32",     NONE,      1, 0,    0,   0) \
    X(U8,      u8,              1,    1,  -1, "U8",      NONE,      1, 0,    0,   0) \
    X(INT8,    int8,            1,    1,  -1, NULL,      NONE,      1, 0,    0,   0)
// clang-format on

#define MM2_PLAIN_FORMATS(X) MM2_FLOATS(X) MM2_PAIRS(X) MM2_OTHERS(X)
#define MM2_SUPER_FORMATS(X) MM2_SUPERS(X) MM2_CODEBOOKS(X)
#define MM2_INTEGER_FORMATS(X) MM2_BLOCKS(X) MM2_PLANES(X) MM2_SUPER_FORMATS(X)
#define MM2_PRODUCT_FORMATS(X) MM2_FLOATS(X) MM2_PAIRS(X) MM2_INTEGER_FORMATS(X)
#define MM2_FORMATS(X) MM2_PRODUCT_FORMATS(X) MM2_OTHERS(X)

/* What the kernels of a section take for granted; their copies have room for a Q8_0 or a Q6_K. */
#define MM2_CHECK_BLOCK(ID, name, ELEMENTS, BYTES, GGUF, SAFETENSORS, ACT, SPAN, MINIMA, BITS,     \
                        OFFSET)                                                                    \
    _Static_assert((ELEMENTS == 32 || ELEMENTS == 64 || ELEMENTS == 128) &&                        \
                       BYTES <= 34 * (ELEMENTS / 32) && (BITS == 8 || BITS <= 5) &&                \
                       (SPAN == 32 || (SPAN == 16 && !MINIMA && BITS < 8)) &&                      \
                       !(MINIMA && (OFFSET || BITS == 8)),                                         \
                   #name);
#define MM2_CHECK_SUPER(ID, name, ELEMENTS, BYTES, GGUF, SAFETENSORS, ACT, SPAN, MINIMA, BITS,     \
                        OFFSET)                                                                    \
    _Static_assert(ELEMENTS == 256 && BYTES <= 210 && (SPAN == 16 || SPAN == 32) &&                \
                       (BITS == 8 || BITS <= 6) && !(MINIMA && (OFFSET || BITS == 8)),             \
                   #name);
#define MM2_CHECK_PLANE(ID, name, ELEMENTS, BYTES, GGUF, SAFETENSORS, ACT, SPAN, MINIMA, BITS,     \
                        OFFSET)                                                                    \
    _Static_assert(ELEMENTS == 32 && BYTES == (BITS == 8 ? 32 : 16) && !MINIMA &&                  \
                       (SPAN == 32 ? BITS == 8 || BITS <= 5 : SPAN == 16 && BITS <= 5),            \
                   #name);
MM2_BLOCKS(MM2_CHECK_BLOCK)
MM2_PLANES(MM2_CHECK_PLANE)
MM2_SUPER_FORMATS(MM2_CHECK_SUPER)

typedef struct mm2_format_facts {
    int32_t elements, bytes, span, minima, bits, offset;
} mm2_format_facts;

/* The row of a dtype, zeros for an unknown number; folded where the dtype is a literal. */
static inline __attribute__((always_inline)) mm2_format_facts mm2_format_of(int32_t dtype)
{
    switch (dtype) {
#define ROW(ID, name, ELEMENTS, BYTES, GGUF, SAFETENSORS, ACT, SPAN, MINIMA, BITS, OFFSET)         \
    case MM2_##ID:                                                                                 \
        return (mm2_format_facts){ELEMENTS, BYTES, SPAN, MINIMA, BITS, OFFSET};
        MM2_FORMATS(ROW)
#undef ROW
    }
    return (mm2_format_facts){0};
}

/* Is the dtype of this section? */
#define MM2_CASE(ID, ...) case MM2_##ID:
#define MM2_SECTION_TEST(function, SECTION)                                                        \
    static inline __attribute__((always_inline)) int function(int32_t dtype)                       \
    {                                                                                              \
        switch (dtype) {                                                                           \
            SECTION(MM2_CASE)                                                                      \
            return 1;                                                                              \
        }                                                                                          \
        return 0;                                                                                  \
    }
MM2_SECTION_TEST(mm2_is_block, MM2_BLOCKS)
MM2_SECTION_TEST(mm2_is_plane, MM2_PLANES)
MM2_SECTION_TEST(mm2_is_super, MM2_SUPER_FORMATS)
MM2_SECTION_TEST(mm2_is_codebook, MM2_CODEBOOKS)
MM2_SECTION_TEST(mm2_is_integer, MM2_INTEGER_FORMATS)

#endif
