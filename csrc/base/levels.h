/* The levels of kernels, lowest first: MM2_ISA_ID of minimax2.h, its name, and of those that need
 * certain processors what they need. The members of mm2_cpu_facts have these names too. */
#ifndef MM2_LEVELS_H
#define MM2_LEVELS_H

// clang-format off
#define MM2_VECTOR_LEVELS(X)                                                                       \
    X(AVX2, avx2, "a processor with AVX2, FMA and F16C")                                           \
    X(AVX512, avx512, "a processor with AVX-512 F, BW, VL, DQ, VNNI and VBMI")                     \
    X(AMX, amx, "a processor with AMX (tiles, int8 and bf16), the avx512 kernels, and the "        \
                "system's permission to use tiles, which it refuses to processes with small "      \
                "signal stacks")
#define MM2_LEVELS(X) X(REF, ref, "") MM2_VECTOR_LEVELS(X) X(BLAS, blas, "")
// clang-format on

#endif
