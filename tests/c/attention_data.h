/* Chunks of keys and values, and rows of a prompt that attend to one: what the tests of attention
 * share. */
#ifndef ATTENTION_DATA_H
#define ATTENTION_DATA_H

#include "kernel_data.h"

#include <stdio.h>

typedef struct kv_chunk {
    void *k, *v;
    size_t bytes; /* of each */
    int32_t n;
} kv_chunk;

static const int32_t kv_dtypes[MM2_KV_KINDS] = {MM2_F32, MM2_BF16, MM2_INT8};

static inline void put_kv(int32_t slot, void *p, int64_t i, float x)
{
    if (slot == MM2_KV_F32)
        ((float *)p)[i] = x;
    else if (slot == MM2_KV_BF16)
        ((uint16_t *)p)[i] = mm2_f32_bf16(x);
    else
        ((int8_t *)p)[i] = (int8_t)x;
}

static inline float get_kv(int32_t slot, const void *p, int64_t i)
{
    return slot == MM2_KV_F32    ? ((const float *)p)[i]
           : slot == MM2_KV_BF16 ? mm2_bf16_f32(((const uint16_t *)p)[i])
                                 : ((const int8_t *)p)[i];
}

static inline float *scale_of(void *p, int64_t bytes)
{
    return (float *)((uint8_t *)p + bytes);
}

/* One position of an INT8 cache, of a vector of this kind. EXTREME: codes of 127 and -128. */
static inline void put_int8(kv_chunk *c, int32_t j, int32_t dim, int kind)
{
    float key[MM2_INT8_DIM_LIMIT], value[MM2_INT8_DIM_LIMIT];
    int8_t both[2][MM2_INT8_DIM_LIMIT];
    for (int32_t d = 0; d < dim; d++)
        key[d] = next_float(kind), value[d] = next_float(kind);
    *scale_of(c->k, mm2_key_scale_at(dim, j)) = mm2_kernels_ref.quantize_head(both[0], key, dim);
    *scale_of(c->v, mm2_value_scale_at(dim, j)) =
        mm2_kernels_ref.quantize_head(both[1], value, dim);
    for (int32_t d = 0; d < dim; d++) {
        int8_t k = both[0][d], v = both[1][d];
        put_kv(MM2_KV_INT8, c->k, mm2_key_at(MM2_INT8, dim, j, d), k < -126 ? -128 : k);
        put_kv(MM2_KV_INT8, c->v, mm2_value_at(MM2_INT8, dim, j, d), v < -126 ? -128 : v);
    }
}

/* Positions from n on hold NaN, and codes that are no one's: they must not count. */
static inline kv_chunk kv_new(int32_t slot, int32_t n, int32_t dim, int kind)
{
    kv_chunk c;
    int32_t dtype = kv_dtypes[slot];
    c.n = n;
    c.bytes = (size_t)mm2_kv_bytes(dtype, dim);
    c.k = guarded(c.bytes);
    c.v = guarded(c.bytes);
    memset(c.k, 0x7f, c.bytes);
    memset(c.v, 0x80, c.bytes);
    for (int32_t j = 0; j < MM2_CHUNK; j++) {
        if (slot == MM2_KV_INT8 && j < n)
            put_int8(&c, j, dim, kind);
        else if (slot == MM2_KV_INT8)
            *scale_of(c.k, mm2_key_scale_at(dim, j)) = *scale_of(c.v, mm2_value_scale_at(dim, j)) =
                NAN;
        for (int32_t d = 0; d < dim && slot != MM2_KV_INT8; d++) {
            put_kv(slot, c.k, mm2_key_at(dtype, dim, j, d), j < n ? next_float(kind) : NAN);
            put_kv(slot, c.v, mm2_value_at(dtype, dim, j, d), j < n ? next_float(kind) : NAN);
        }
    }
    return c;
}

static inline void kv_free(kv_chunk *c)
{
    guarded_free(c->k, c->bytes);
    guarded_free(c->v, c->bytes);
}

/* q as attention to a BF16 cache takes it. */
static inline float rounded(float x)
{
    return mm2_bf16_f32(mm2_f32_bf16(x));
}

/* Rows at once against each row alone in ref.c, to bits. Values that only later rows see may be
 * infinite. */
static inline void attend_rows(const mm2_kernels *const *levels, int level_count, int trial)
{
    enum { ROWS_LIMIT = 40, HEADS_LIMIT = 8, FLOATS = ROWS_LIMIT * (HEADS_LIMIT + 1) * 128 };
    static const int32_t sizes[] = {1, 2, 15, 16, 31, 32, 33, 100, 225, 240, 255, 256};
    static const int32_t dims[] = {16, 32, 48, 64, 96, 128};
    static float q[FLOATS], expected[3][FLOATS], found[3][FLOATS]; /* m, l, o */
    int32_t slot = trial % MM2_KV_KINDS, heads = 1 + (int32_t)(next() % HEADS_LIMIT),
            dim = pick(dims, 6);
    int32_t rows = 1 + (int32_t)(next() % ROWS_LIMIT), n = pick(sizes, 12),
            kind = trial / MM2_KV_KINDS % KINDS;
    int32_t stride = heads + (int32_t)(next() % 2);
    kv_chunk c = kv_new(slot, n + rows - 1 < MM2_CHUNK ? n + rows - 1 : MM2_CHUNK, dim, kind);
    if (kind == TAME && trial / (MM2_KV_KINDS * KINDS) % 2) {
        if (slot == MM2_KV_INT8)
            *scale_of(c.v, mm2_value_scale_at(dim, c.n - 1)) = INFINITY;
        else
            put_kv(slot, c.v, mm2_value_at(kv_dtypes[slot], dim, c.n - 1, dim / 2), INFINITY);
    }
    for (int32_t i = 0; i < FLOATS; i++) {
        q[i] = next_float(kind == BROKEN ? WILD : kind);
        for (int which = 0; which < 3; which++) /* not the first chunk of these rows */
            expected[which][i] = found[which][i] = which == 1 ? 1 : next_normal();
    }
    for (int32_t r = 0; r < rows; r++) {
        int32_t at = r * stride, seen = n + r < MM2_CHUNK ? n + r : MM2_CHUNK;
        mm2_kernels_ref.attend[slot](expected[0] + at, expected[1] + at, expected[2] + at * dim,
                                     q + at * dim, stride, 1, heads, c.k, c.v, seen, dim, 0.2f);
    }
    for (int l = 0; l < level_count; l++) {
        static float copy[3][FLOATS];
        char what[128];
        memcpy(copy, found, sizeof copy);
        levels[l]->attend[slot](copy[0], copy[1], copy[2], q, stride, rows, heads, c.k, c.v, n, dim,
                                0.2f);
        snprintf(what, sizeof what, "%s: %d rows of %d heads, n %d, head_dim %d, trial %d",
                 levels[l]->name, rows, heads, n, dim, trial);
        for (int which = 0; which < 3; which++)
            assert_same(copy[which], expected[which], FLOATS, what);
    }
    kv_free(&c);
}

/* Sums of values that vanish below zero: whether tiles add nothing to them for what only other rows see
 * must not show in their sign. */
static inline void attend_vanishing(const mm2_kernels *const *levels, int level_count)
{
    enum { HEADS = 2, PROMPT = 40, N = 33, DIM = 32, FLOATS = HEADS * PROMPT * DIM };
    kv_chunk c = kv_new(1, N + PROMPT, DIM, TAME);
    for (int32_t j = 0; j < N + PROMPT; j++)
        for (int32_t d = 0; d < DIM; d++)
            put_kv(1, c.v, mm2_value_at(MM2_BF16, DIM, j, d),
                   j == 0    ? -1.5e-38f
                   : j == 32 ? 1.4e-38f
                             : 0);
    for (int l = -1; l < level_count; l++) {
        const mm2_kernels *k = l < 0 ? &mm2_kernels_ref : levels[l];
        static float q[FLOATS], m[HEADS * PROMPT], sum[HEADS * PROMPT], o[FLOATS];
        for (int32_t i = 0; i < HEADS * PROMPT; i++)
            m[i] = -INFINITY, sum[i] = 0;
        for (int32_t i = 0; i < FLOATS; i++)
            o[i] = -0.0f;
        k->attend[1](m, sum, o, q, HEADS, PROMPT, HEADS, c.k, c.v, N, DIM, 1);
        for (int32_t i = 0; i < FLOATS; i++)
            assert_int_equal(mm2_f32_bits(o[i]), 0);
    }
    kv_free(&c);
}

#endif
