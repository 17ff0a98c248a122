/* The codebook and ternary formats of GGUF (section CODEBOOKS of formats.h): their grids, and the
 * one unpacker of a super-block to plain integers. */
#ifndef MM2_CODEBOOKS_H
#define MM2_CODEBOOKS_H

#include "tensor/quant.h"

/* The values that the 2 or 3 bits of a packed code stand for. */
#define MM2_IQ2_VALUE(c) (8 + 17 * (c) + ((c) == 2))
#define MM2_IQ3_XXS_VALUE(c) (4 + 8 * (c) + 2 * ((c) == 7))
#define MM2_IQ3_S_VALUE(c) (1 + 2 * (c))

/* The grids: rows of 8 or 4 codes without their signs. IQ1: -8, 0 or 8, to which +-1 comes. */
extern const int8_t mm2_grid_iq2_xxs[256][8], mm2_grid_iq2_xs[512][8], mm2_grid_iq2_s[1024][8];
extern const int8_t mm2_grid_iq1_s[2048][8];
extern const int8_t mm2_grid_iq3_xxs[256 + 3][4],
    mm2_grid_iq3_s[512 + 3][4]; /* whose ends are not used */

/* The same, packed in two planes of a byte a row, so that every code finds room for its sign beside it
 * (codebooks_avx512.h). Of 8 codes the first and the last four, a, b, c, d, as indices to 8, 25, 43
 * of 2 bits, c lowest, then a, d, b. Of 4 codes a and c, b and d, of 3 bits, the later one lowest. */
extern const uint8_t mm2_planes_iq2_xxs[2][256], mm2_planes_iq2_xs[2][512];
extern const uint8_t mm2_planes_iq2_s[2][1024];
extern const uint8_t mm2_planes_iq3_xxs[2][256], mm2_planes_iq3_s[2][512];

/* |code| is smaller: codes raised by it are unsigned, and their products with int8 fit into int16,
 * two by two. */
enum { MM2_CODE_LIMIT = 64 };

/* A super-block as integers: element i is d * scale[i / 16] * code[i], exactly in float32. Factors
 * of the format that are powers of two are in d. */
typedef struct mm2_codes {
    _Alignas(64) int8_t code[MM2_SUPER];
    uint8_t scale[16];
    float d;
} mm2_codes;

/* Of one block of a dtype of CODEBOOKS, at any address. */
void mm2_codebook_unpack(int32_t dtype, mm2_codes *out, const void *block);

#endif
