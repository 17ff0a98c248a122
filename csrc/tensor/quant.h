/* The block formats of GGUF as they lie on disk, and their decoding. The layouts are those of the
 * GGUF specification, and their sizes must be those of formats.h. Values are little-endian; `d`, `dmin` and
 * `m` are IEEE half floats, or of 8 bits: see the functions below. */
#ifndef MM2_QUANT_H
#define MM2_QUANT_H

#include "tensor/dtype.h"
#include "tensor/formats.h"

enum { MM2_SUPER = 256 }; /* elements of a super-block: K-quants and IQ4_XS */

// clang-format off
typedef struct mm2_block_q8_0 { uint16_t d; int8_t q[32]; } mm2_block_q8_0;
typedef struct mm2_block_q4_0 { uint16_t d; uint8_t q[16]; } mm2_block_q4_0;
typedef struct mm2_block_q5_0 { uint16_t d; uint8_t high[4]; uint8_t q[16]; } mm2_block_q5_0;
typedef struct mm2_block_iq4_nl { uint16_t d; uint8_t q[16]; } mm2_block_iq4_nl;
typedef struct mm2_block_q4_1 { uint16_t d, m; uint8_t q[16]; } mm2_block_q4_1;
typedef struct mm2_block_q5_1 { uint16_t d, m; uint8_t high[4]; uint8_t q[16]; } mm2_block_q5_1;
typedef struct mm2_block_mxfp4 { uint8_t d; uint8_t q[16]; } mm2_block_mxfp4;
typedef struct mm2_block_nvfp4 { uint8_t d[4]; uint8_t q[32]; } mm2_block_nvfp4;
typedef struct mm2_block_q1_0 { uint16_t d; uint8_t q[16]; } mm2_block_q1_0;
typedef struct mm2_block_q2_k { uint8_t scales[16]; uint8_t q[64]; uint16_t d, dmin; } mm2_block_q2_k;
typedef struct mm2_block_q3_k { uint8_t high[32]; uint8_t q[64]; uint8_t scales[12]; uint16_t d; } mm2_block_q3_k;
typedef struct mm2_block_q4_k { uint16_t d, dmin; uint8_t scales[12]; uint8_t q[128]; } mm2_block_q4_k;
typedef struct mm2_block_q5_k { uint16_t d, dmin; uint8_t scales[12]; uint8_t high[32]; uint8_t q[128]; } mm2_block_q5_k;
typedef struct mm2_block_q6_k { uint8_t low[128]; uint8_t high[64]; int8_t scales[16]; uint16_t d; } mm2_block_q6_k;
typedef struct mm2_block_iq4_xs { uint16_t d, scales_high; uint8_t scales_low[4]; uint8_t q[128]; } mm2_block_iq4_xs;
typedef struct mm2_block_iq2_xxs { uint16_t d; uint8_t q[64]; } mm2_block_iq2_xxs;
typedef struct mm2_block_iq2_xs { uint16_t d; uint16_t q[32]; uint8_t scales[8]; } mm2_block_iq2_xs;
typedef struct mm2_block_iq2_s { uint16_t d; uint8_t q[32], signs[32], high[8], scales[8]; } mm2_block_iq2_s;
typedef struct mm2_block_iq3_xxs { uint16_t d; uint8_t q[64], more[32]; } mm2_block_iq3_xxs;
typedef struct mm2_block_iq3_s { uint16_t d; uint8_t q[64], high[8], signs[32], scales[4]; } mm2_block_iq3_s;
typedef struct mm2_block_iq1_s { uint16_t d; uint8_t q[32]; uint16_t high[8]; } mm2_block_iq1_s;
typedef struct mm2_block_iq1_m { uint8_t q[32], high[16]; uint16_t scales[4]; } mm2_block_iq1_m;
typedef struct mm2_block_tq1_0 { uint8_t q[48], high[4]; uint16_t d; } mm2_block_tq1_0;
typedef struct mm2_block_tq2_0 { uint8_t q[64]; uint16_t d; } mm2_block_tq2_0;
// clang-format on

#define SIZE(ID, name, ELEMENTS, BYTES, ...)                                                       \
    _Static_assert(sizeof(mm2_block_##name) == BYTES, #name);
MM2_BLOCKS(SIZE)
MM2_SUPER_FORMATS(SIZE)
#undef SIZE

/* The 16 values of IQ4_NL and IQ4_XS codes. */
extern const int8_t mm2_iq4_values[16];
/* Twice the values of the E2M1 codes of the 4-bit floats, and therefore half of what their scales say:
 * of MXFP4 2^(e - 128), also for e = 255, ... */
extern const int8_t mm2_e2m1_doubled[16];
float mm2_mxfp4_scale(uint8_t e);
/* ... of NVFP4 E4M3 without its sign bit, with 480 in the place of NaN; but 0x7f is 0. */
float mm2_nvfp4_scale(uint8_t d);

/* Decode n elements of one row (n a multiple of the block) of any weight dtype to float32.
 * Bit-equal to the gguf package. FP8 and PLANES give the bare codes: see mm2_weight_values. */
void mm2_dequantize_row(int32_t dtype, const void *data, float *out, int64_t n);

#endif
