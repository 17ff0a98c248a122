/* What the tests of the kernels share: random data of several kinds, memory that ends at a page that
 * cannot be touched, matrices in every format, activations. */
#ifndef KERNEL_DATA_H
#define KERNEL_DATA_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernels/kernels.h"
#include "tensor/quant.h"

#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_ROWS = 80, MAX_OUT = 64, MARK = 4 };
static const float mark = -12345.5f;

/* ---- Random data ---- */

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static inline uint32_t next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static inline int32_t pick(const int32_t *list, int32_t n)
{
    return list[next() % (uint32_t)n];
}

/* Roughly normal. */
static inline float next_normal(void)
{
    float sum = -6;
    for (int i = 0; i < 12; i++)
        sum += (float)(next() >> 8) * 0x1p-24f;
    return sum;
}

/* TAME: normal numbers. WILD: sizes from 1e-5 to 1e5, zeros of both signs, subnormals. BROKEN: NaN
 * and infinities among them. EXTREME: the largest codes of the integer formats. */
enum { TAME, WILD, BROKEN, EXTREME, KINDS };

static inline float next_float(int kind)
{
    float x = next_normal();
    uint32_t dice = next() % 64;
    if (kind == EXTREME)
        return next() & 1 ? 1e5f : -1e5f;
    if (kind == TAME)
        return x;
    if (kind == BROKEN && dice == 0)
        return NAN;
    if (kind == BROKEN && dice == 1)
        return next() & 1 ? INFINITY : -INFINITY;
    if (dice < 8)
        return next() & 1 ? 0.0f : -0.0f;
    if (dice < 12)
        return mm2_bits_f32(next() & 0x807fffff); /* subnormal */
    if (dice < 20)
        return x * 1e-20f;
    return x * powf(10, (float)(next() % 11) - 5);
}

/* ---- Guarded memory ---- */

static inline size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* `bytes` bytes that end at an untouchable page. Released by guarded_free. */
static inline void *guarded(size_t bytes)
{
    size_t page = page_size(), size = (bytes + page - 1) / page * page + page;
    uint8_t *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(base != MAP_FAILED);
    assert_int_equal(mprotect(base + size - page, page, PROT_NONE), 0);
    return base + size - page - bytes;
}

static inline void guarded_free(void *p, size_t bytes)
{
    size_t page = page_size(), size = (bytes + page - 1) / page * page + page;
    assert_int_equal(munmap((uint8_t *)p + bytes + page - size, size), 0);
}

/* ---- Comparison ---- */

static inline int same_bits(float a, float b)
{
    return mm2_f32_bits(a) == mm2_f32_bits(b) || (a != a && b != b);
}

static inline void assert_same(const float *a, const float *b, int32_t n, const char *what)
{
    for (int32_t i = 0; i < n; i++)
        if (!same_bits(a[i], b[i]))
            fail_msg("%s: element %d is %.9g (0x%08x), expected %.9g (0x%08x)", what, i, a[i],
                     mm2_f32_bits(a[i]), b[i], mm2_f32_bits(b[i]));
}

/* ---- Weights ---- */

#define DTYPE(ID, ...) MM2_##ID,
static const int32_t matmul_dtypes[] = {MM2_PRODUCT_FORMATS(DTYPE)};
#undef DTYPE
enum { MATMUL_DTYPES = sizeof matmul_dtypes / sizeof *matmul_dtypes };

typedef struct matrix {
    mm2_weight w;
    uint8_t *data;
    size_t bytes, scale_bytes, span_bytes, zero_bytes;
    float *scale;
    uint8_t *spans, *zeros;
} matrix;

static inline void set_half(uint8_t *p, int kind)
{
    uint16_t x = (uint16_t)next();
    if (kind == TAME || kind == EXTREME)
        x = (uint16_t)((x & 0x83ff) | 0x2000); /* 2^-7 to 2^-6, either sign */
    else if (kind == WILD && (x & 0x7c00) == 0x7c00)
        x = 0; /* else anything that is finite, subnormals too */
    memcpy(p, &x, 2);
}

/* A scale of a plane, or one of 8 bits of a block. */
static inline void set_span(int32_t dtype, uint8_t *p, int kind)
{
    float s = next_float(kind == EXTREME ? TAME : kind);
    uint16_t half = mm2_f32_bf16(s);
    if (dtype == MM2_F32)
        memcpy(p, &s, 4);
    else if (dtype == MM2_F16)
        set_half(p, kind);
    else if (dtype == MM2_BF16)
        memcpy(p, &half, 2);
    else if (dtype == MM2_U8) /* E8M0 */
        *p = (uint8_t)(kind == WILD ? next() % 200 : kind == BROKEN ? next() : 118 + next() % 8);
    else
        *p = (uint8_t)(kind == BROKEN ? next() : next() % 2 * 128 + next() % 127);
}

/* The scales of a block: d and, behind it, dmin or m. */
static inline void set_scales(int32_t dtype, uint8_t *block, int kind)
{
    if (dtype == MM2_IQ1_M) { /* in the upper nibbles of four words */
        uint8_t d[2], *p = block + offsetof(mm2_block_iq1_m, scales) + 1;
        set_half(d, kind);
        for (int i = 0; i < 4; i++)
            p[i * 2] = (uint8_t)((p[i * 2] & 15) | (d[i / 2] >> i % 2 * 4 & 15) << 4);
        return;
    }
    switch (dtype) {
#define SCALE(ID, name, ...)                                                                       \
    case MM2_##ID:                                                                                 \
        block += offsetof(mm2_block_##name, d);                                                    \
        break;
        MM2_BLOCKS(SCALE)
        MM2_SUPERS(SCALE)
        SCALE(TQ1_0, tq1_0)
        SCALE(TQ2_0, tq2_0)
#undef SCALE
    }
    if (dtype == MM2_MXFP4 || dtype == MM2_NVFP4) {
        for (int i = 0; i < (dtype == MM2_NVFP4 ? 4 : 1); i++)
            set_span(dtype == MM2_NVFP4 ? MM2_F8_E4M3 : MM2_U8, block + i, kind);
        return;
    }
    set_half(block, kind);
    if (mm2_format_of(dtype).minima)
        set_half(block + 2, kind);
}

static inline void fill_weights(int32_t dtype, uint8_t *p, size_t bytes, int kind)
{
    size_t block = (size_t)mm2_dtype_bytes(dtype);
    uint8_t extreme = next() & 1 ? 0x80 : 0xff;
    for (size_t i = 0; i < bytes; i++)
        p[i] = kind == EXTREME ? extreme : (uint8_t)next();
    for (size_t i = 0; i + block <= bytes; i += block) {
        float x = next_float(kind);
        uint16_t bf16 = mm2_f32_bf16(x);
        if (dtype == MM2_F32)
            memcpy(p + i, &x, 4);
        else if (dtype == MM2_BF16)
            memcpy(p + i, &bf16, 2);
        else if (dtype == MM2_F16)
            set_half(p + i, kind);
        else if (dtype == MM2_F8_E4M3)
            p[i] &= kind != BROKEN && (p[i] & 0x7f) == 0x7f ? 0xfe : 0xff;
        else if (!mm2_is_plane(dtype))
            set_scales(dtype, p + i, kind);
    }
}

/* FP8: without scales, or with some for 128 x 128 codes, for rows, or one for all. */
static inline void set_f8_scales(matrix *x, int kind)
{
    static const int32_t rows_of[] = {0, 128, 1, 3, INT32_MAX};
    mm2_weight *w = &x->w;
    if (next() % 4 == 0)
        return;
    w->scale_rows = pick(rows_of, 5);
    int64_t rows = w->scale_rows ? w->scale_rows : 128;
    w->scale_row = next() % 2 ? (int32_t)(next() % 128) : 124; /* a block ends soon */
    w->scale_row %= (int32_t)rows;
    int64_t n = (w->n_out + w->scale_row + rows - 1) / rows;
    n *= rows == 128 ? (w->n_in + 127) / 128 : 1;
    x->scale_bytes = (size_t)n * 4;
    x->scale = guarded(x->scale_bytes);
    for (int64_t i = 0; i < n; i++)
        x->scale[i] = next_float(kind == EXTREME ? TAME : kind);
    w->scale = x->scale;
}

static inline void set_spans(matrix *x, int kind)
{
    static const int32_t groups[] = {32, 64, 96, 128, 256, INT32_MAX},
                         floats[] = {MM2_F32, MM2_F16, MM2_BF16};
    mm2_weight *w = &x->w;
    w->group = 16;
    w->span_dtype = MM2_F8_E4M3;
    if (w->dtype == MM2_F4_16 && next() % 4) {
        w->global_divides = next() % 2;
        w->global = next_float(TAME);
    }
    if (w->dtype == MM2_F4_32) {
        w->group = 32;
        w->span_dtype = MM2_U8;
    } else if (w->dtype != MM2_F4_16) {
        do {
            w->group = pick(groups, 6);
            w->group = w->group > w->n_in ? w->n_in : w->group;
        } while (w->n_in % w->group);
        w->span_dtype = pick(floats, 3);
    }
    w->span_bytes = (int64_t)(w->n_in / w->group) * mm2_dtype_bytes(w->span_dtype);
    x->span_bytes = (size_t)(w->n_out * w->span_bytes);
    x->spans = guarded(x->span_bytes);
    w->spans = x->spans;
    for (size_t i = 0; i < x->span_bytes; i++)
        x->spans[i] = (uint8_t)next();
    for (size_t i = 0; i < x->span_bytes; i += (size_t)mm2_dtype_bytes(w->span_dtype))
        set_span(w->span_dtype, x->spans + i, kind);
    if ((w->dtype != MM2_I4 && w->dtype != MM2_I8) || next() % 2)
        return;
    int32_t fields = 32 / mm2_format_of(w->dtype).bits;
    w->zeros_first = (int32_t)next() & (fields - 1);
    x->zero_bytes = (size_t)((w->zeros_first + w->n_out + fields - 1) / fields) * 4;
    x->zero_bytes *= (size_t)(w->n_in / w->group);
    x->zeros = guarded(x->zero_bytes);
    w->zeros = x->zeros;
    for (size_t i = 0; i < x->zero_bytes; i++)
        x->zeros[i] = (uint8_t)(kind == EXTREME ? 255u - x->data[0] : next());
}

static inline matrix matrix_new(int32_t dtype, int32_t n_out, int32_t n_in, int kind)
{
    matrix x = {.data = NULL};
    x.w.global = 1;
    x.w.dtype = dtype;
    x.w.n_out = n_out;
    x.w.n_in = n_in;
    x.w.row_bytes = mm2_dtype_row_bytes(dtype, n_in);
    x.bytes = (size_t)(n_out * x.w.row_bytes);
    x.data = guarded(x.bytes);
    x.w.data = x.data;
    fill_weights(dtype, x.data, x.bytes, kind);
    if (dtype == MM2_F8_E4M3)
        set_f8_scales(&x, kind);
    if (mm2_is_plane(dtype))
        set_spans(&x, kind);
    if (dtype == MM2_NVFP4 && next() % 2)
        x.w.global = next_float(kind == EXTREME ? TAME : kind);
    return x;
}

static inline void matrix_free(matrix *x)
{
    guarded_free(x->data, x->bytes);
    if (x->scale)
        guarded_free(x->scale, x->scale_bytes);
    if (x->spans)
        guarded_free(x->spans, x->span_bytes);
    if (x->zeros)
        guarded_free(x->zeros, x->zero_bytes);
}

/* ---- Activations ---- */

static inline size_t act_size(int32_t act, int32_t n)
{
    if (act == MM2_ACT_BF16)
        return (size_t)(n + 127) / 128 * 256;
    return (size_t)n * (act == MM2_ACT_F32 ? 4 : 1) +
           (act == MM2_ACT_Q8_32    ? (size_t)n / 32 * 4
            : act == MM2_ACT_Q8_256 ? (size_t)n / 256 * 4 + (size_t)n / 16 * 2
                                    : 0);
}

/* Shorter than mm2_act_bytes promises: the rounding is not to be relied on. */
static inline void *act_new(int32_t act, int32_t n, int kind)
{
    uint8_t *p = guarded(act_size(act, n));
    float *x = malloc((size_t)n * 4);
    assert_non_null(x);
    for (int32_t i = 0; i < n; i++)
        x[i] = next_float(kind);
    if (act == MM2_ACT_F32)
        memcpy(p, x, (size_t)n * 4);
    else
        mm2_kernels_ref.quantize[act](p, x, n);
    free(x);
    return p;
}

/* FP8, 256 wide, less than 128 rows: sums whose terms vanish. What is left is the sign of a zero. The first block leaves -0 in y, the
 * second adds a sum of negative numbers that underflow one by one. */
static inline void set_vanishing(matrix *x, uint16_t *const *acts, int32_t rows)
{
    for (size_t i = 0; i < x->bytes; i++)
        x->data[i] = i % 256 < 128 ? 0x38 : 1; /* 1, and the smallest code */
    for (int32_t m = 0; m < rows; m++)
        for (int32_t k = 0; k < 256; k++)
            acts[m][k] = mm2_f32_bf16(k < 128 ? -1e-20f : -1e-37f);
    static const float scale[2] = {1e-30f, 1};
    x->w.scale = scale;
    x->w.scale_row = x->w.scale_rows = 0;
}

static inline int32_t pick_width(int32_t dtype)
{
    static const int32_t any[] = {1,   3,   15,  16,  17,  63,  64,  65,  127,
                                  128, 129, 200, 255, 256, 257, 300, 512, 777};
    static const int32_t blocks[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 24};
    static const int32_t supers[] = {1, 2, 3, 5};
    int32_t block = mm2_dtype_block(dtype);
    return block == 1    ? pick(any, sizeof any / 4)
           : block < 256 ? block * pick(blocks, sizeof blocks / 4 - (block == 128 ? 2 : 0))
                         : 256 * pick(supers, sizeof supers / 4);
}

#endif
