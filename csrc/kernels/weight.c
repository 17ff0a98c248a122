/* What the elements of a weight are: scales that lie in a tensor of their own, and whole rows. The
 * reference kernels and all that decodes weights ask here; the other levels read the same scales many
 * at a time. */
#include "kernels/kernels.h"

#include "tensor/quant.h"

#include <math.h>

enum { SCALE_BLOCK = 128 };

/* Blocks of SCALE_BLOCK columns, or one scale for a row: see mm2_weight.scale_rows. */
static float scale_f8(const mm2_weight *w, int64_t row, int32_t k)
{
    if (!w->scale)
        return 1;
    if (w->scale_rows && w->scale_rows != SCALE_BLOCK)
        return w->scale[(w->scale_row + row) / w->scale_rows];
    int64_t blocks = w->n_in / SCALE_BLOCK + (w->n_in % SCALE_BLOCK != 0);
    return w->scale[(w->scale_row + row) / SCALE_BLOCK * blocks + k / SCALE_BLOCK];
}

/* Bytes only, at any address. */
static const mm2_block_nvfp4 *nvfp4_blocks(const mm2_weight *w, int64_t row)
{
    return (const mm2_block_nvfp4 *)((const uint8_t *)w->data + row * w->row_bytes);
}

float mm2_weight_scale(const mm2_weight *w, int64_t row, int32_t k)
{
    if (w->dtype == MM2_F8_E4M3)
        return scale_f8(w, row, k);
    if (w->dtype == MM2_NVFP4)
        return mm2_nvfp4_scale(nvfp4_blocks(w, row)[k / 64].d[k % 64 / 16]) * w->global;
    const uint8_t *p = (const uint8_t *)w->spans + row * w->span_bytes +
                       (int64_t)(k / w->group) * mm2_dtype_bytes(w->span_dtype);
    if (w->dtype == MM2_F4_32)
        return *p == 255 ? INFINITY : mm2_mxfp4_scale(*p);
    float s;
    mm2_dequantize_row(w->span_dtype, p, &s, 1);
    if (w->dtype != MM2_F4_16)
        return s;
    return w->global_divides ? s / (2 * w->global) : s * (w->global / 2);
}

/* With its sign, doubled. */
static int8_t nvfp4_code(const mm2_weight *w, int64_t row, int32_t k)
{
    uint8_t two = nvfp4_blocks(w, row)[k / 64].q[k % 64 / 16 * 8 + k % 8];
    return mm2_e2m1_doubled[two >> k % 16 / 8 * 4 & 15];
}

int32_t mm2_weight_zero(const mm2_weight *w, int64_t row, int32_t k)
{
    const int32_t bits = mm2_format_of(w->dtype).bits, each = 32 / bits;
    uint32_t word;
    if (!w->zeros)
        return 1 << (bits - 1);
    row += w->zeros_first;
    memcpy(&word,
           (const uint8_t *)w->zeros + (row / each * (w->n_in / w->group) + k / w->group) * 4, 4);
    return word >> row % each * bits & ((1u << bits) - 1);
}

void mm2_weight_values(const mm2_weight *w, int64_t row, int32_t begin, int32_t n, float *out)
{
    int64_t at = (int64_t)(begin / mm2_dtype_block(w->dtype)) * mm2_dtype_bytes(w->dtype);
    mm2_dequantize_row(w->dtype, (const uint8_t *)w->data + row * w->row_bytes + at, out, n);
    if (w->dtype == MM2_F8_E4M3)
        for (int32_t k = 0; k < n; k++)
            out[k] *= scale_f8(w, row, begin + k);
    if (w->dtype == MM2_NVFP4)
        for (int32_t k = 0; k < n; k++)
            out[k] = mm2_weight_scale(w, row, begin + k) * nvfp4_code(w, row, begin + k);
    if (!mm2_is_plane(w->dtype))
        return;
    int is_float = w->dtype == MM2_F4_16 || w->dtype == MM2_F4_32;
    int32_t middle = 1 << (mm2_format_of(w->dtype).bits - 1);
    for (int32_t k = 0; k < n; k += 16) {
        float d = mm2_weight_scale(w, row, begin + k);
        float less = w->zeros ? (float)(mm2_weight_zero(w, row, begin + k) - middle) : 0;
        for (int32_t j = k; j < k + 16; j++)
            out[j] = (is_float ? 2 * out[j] : out[j] - less) * d;
    }
}
