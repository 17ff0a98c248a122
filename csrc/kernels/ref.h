/* The two files of the reference kernels, ref.c and ref_vectors.c: what the latter has for the table, and
 * what both use. */
#ifndef MM2_REF_H
#define MM2_REF_H

#include "kernels/kernels.h"

enum { LANES = 16, STEP_PAIRS = 16, BLOCK = 32, SCALE_BLOCK = 128 };

/* Sums in lanes: j with j + 8, then + 4, + 2, + 1. */
static inline float tree(float lane[LANES])
{
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

void mm2_ref_quantize_bf16(void *act, const float *x, int32_t n);
void mm2_ref_quantize_q8_32(void *act, const float *x, int32_t n);
void mm2_ref_quantize_q8_256(void *act, const float *x, int32_t n);
void mm2_ref_rms_norm(float *out, const float *x, const float *w, int32_t n, float eps);
void mm2_ref_rope(float *x, const float *cosine, const float *sine, int32_t half);
void mm2_ref_swiglu(float *out, const float *gate, const float *up, int32_t n);
void mm2_ref_sigmoid(float *out, const float *x, int32_t n);
void mm2_ref_axpy(float *y, float a, const float *x, int32_t n);
void mm2_ref_attend_f32(float *m, float *l, float *o, const float *q, int32_t stride, int32_t rows,
                        int32_t heads, const void *k, const void *v, int32_t n, int32_t head_dim,
                        float scale);
void mm2_ref_attend_bf16(float *m, float *l, float *o, const float *q, int32_t stride, int32_t rows,
                         int32_t heads, const void *k, const void *v, int32_t n, int32_t head_dim,
                         float scale);
void mm2_ref_attend_int8(float *m, float *l, float *o, const float *q, int32_t stride, int32_t rows,
                         int32_t heads, const void *k, const void *v, int32_t n, int32_t head_dim,
                         float scale);
void mm2_ref_hadamard(float *x, int32_t n);
float mm2_ref_quantize_head(int8_t *q, const float *x, int32_t n);
uint64_t mm2_ref_read_bytes(const uint8_t *p, int64_t n, int32_t ahead1, int32_t ahead2);
uint64_t mm2_ref_peak_int8(const void *data, int32_t rounds, int64_t *ops);
uint64_t mm2_ref_peak_f32(const void *data, int32_t rounds, int64_t *ops);

#endif
