/* What the written order of sums costs at decode: the avx512 kernels for one activation row of Q8_0 and
 * Q4_K beside the same ones without it, in which 16 lanes add up a row's blocks as they come. With
 * many rows the question does not arise: there the written order, block after block, is the natural
 * one.
 *
 *   make -C csrc bench-free_order
 *
 * Prints the medians of interleaved runs over matrices at random places of a large pool, GB of
 * weights a second, and the share of the ordered kernel; then the same from the caches. */
#define _GNU_SOURCE

#include "base/cpu.h"
#include "base/pool.h"
#include "base/status.h"
#include "kernels/kernels.h"

#include "kernels/lanes_avx512.h"
#include "kernels/codes_avx512.h"
#include "kernels/direct_avx512.h"

#include "kernels/body_float.h"
#include "kernels/body_unpack.h"
#include "kernels/body_int_direct.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { N_IN = 3072, N_OUT = 1536, TILE = 192, MATRICES = 48, RUNS = 16 };
static const size_t POOL = (size_t)2 << 30;

static uint8_t *pool;
static _Alignas(64) uint8_t act[N_IN * 4];
static float out[N_OUT];

/* y = sum over the row of d_w * d_a * isum - dmin_w * d_a * msum, in 16 lanes, whatever comes. */
INLINE void free_sum(int minima, float *y, const direct_terms *t, const float *d, int32_t rows,
                     int32_t blocks)
{
    for (int32_t r = 0; r < rows; r++) {
        v16 sum = v16_zero();
        for (int32_t b = 0, at = r * blocks; b < blocks; b += 16, at += 16) {
            int32_t n = blocks - b;
            v16 scale = v16_load_n(d + b, n);
            sum = v16_fma(v16_mul(scale, v16_load_n(t->d + at, n)), v16_load_n(t->sum[0] + at, n),
                          sum);
            if (minima)
                sum = v16_fma(v16_negate(v16_mul(scale, v16_load_n(t->dmin + at, n))),
                              v16_load_n(t->least[0] + at, n), sum);
        }
        y[r] = v16_tree(sum);
    }
}

/* matmul_block_direct and matmul_super_direct with free_sum for direct_chain. */
INLINE void matmul_free(int32_t dtype, float *y, const uint8_t *p, int32_t count, int32_t bytes,
                        int32_t span)
{
    static _Thread_local direct_block_act block;
    static _Thread_local direct_super_act super;
    direct_terms t;
    int32_t blocks = N_IN / span;
    const int8_t *a = (const int8_t *)act;
    if (is_super(dtype))
        direct_super_prepare(dtype, &super, a, N_IN);
    else
        direct_block_prepare(&block, a, N_IN, direct_bias(dtype));
    for (int32_t i = 0; i < count; i += CHAIN_ROWS, p += CHAIN_ROWS * blocks * bytes) {
        for (int32_t at = 0, b = 0; at < CHAIN_ROWS * blocks; at += ROWS) {
            if (is_super(dtype))
                direct_super_terms(dtype, 1, &t, at, p + at * bytes, &super, b);
            else
                direct_block_terms(dtype, 1, &t, at, p + at * bytes, &block, b);
            for (b += ROWS; b >= blocks;)
                b -= blocks;
        }
        free_sum(has_minima(dtype), y + i, &t, (const float *)(act + N_IN), CHAIN_ROWS, blocks);
    }
}

typedef struct job {
    const mm2_kernels *kernels; /* NULL: free order */
    int32_t dtype;
    int64_t row_bytes;
    int cached; /* the same rows again and again */
    size_t at[MATRICES];
} job;

static void product(void *context, int32_t unit, int32_t thread)
{
    const job *j = context;
    int32_t first = j->cached ? 0 : unit % (N_OUT / TILE) * TILE;
    const uint8_t *data = pool + (j->cached ? 0 : j->at[unit / (N_OUT / TILE)]);
    if (j->kernels) {
        mm2_weight w = {.data = data,
                        .row_bytes = j->row_bytes,
                        .n_out = N_OUT,
                        .n_in = N_IN,
                        .dtype = j->dtype,
                        .global = 1};
        float *y = out + first;
        const void *x = act;
        j->kernels->matmul[j->dtype](&y, &w, first, TILE, &x, 1);
    } else if (j->dtype == MM2_Q8_0) {
        matmul_free(MM2_Q8_0, out + first, data + first * j->row_bytes, TILE,
                    sizeof(mm2_block_q8_0), 32);
    } else {
        matmul_free(MM2_Q4_K, out + first, data + first * j->row_bytes, TILE,
                    sizeof(mm2_block_q4_k), MM2_SUPER);
    }
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void compare(mm2_pool *threads, const mm2_kernels *k, int32_t dtype, int cached,
                    uint64_t *state)
{
    static const mm2_limit limit = {.deadline = INT64_MAX};
    double seconds[2][RUNS], bytes;
    float x[N_IN], result[2];
    job j = {.dtype = dtype, .cached = cached, .row_bytes = mm2_dtype_row_bytes(dtype, N_IN)};
    bytes = (double)j.row_bytes * N_OUT * MATRICES;
    for (int32_t i = 0; i < N_IN; i++)
        x[i] = (float)(i * 37 % 101 - 50) / 50;
    k->quantize[mm2_act_of(dtype)](act, x, N_IN);
    for (int r = 0; r < RUNS; r++) {
        for (int32_t i = 0; i < MATRICES; i++) {
            *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
            j.at[i] = *state % (POOL - (size_t)(j.row_bytes * N_OUT) - 8192) / 64 * 64;
        }
        for (int turn = 0; turn < 2; turn++) {
            int ordered = (r + turn) % 2; /* neither always finds what the other has left */
            mm2_progress progress = {0};
            j.kernels = ordered ? k : NULL;
            int64_t start = mm2_now();
            mm2_pool_run(threads, product, &j, &progress, MATRICES * (N_OUT / TILE), &limit);
            seconds[ordered][r] = (double)(mm2_now() - start) * 1e-9;
            result[ordered] = out[0];
        }
    }
    for (int i = 0; i < 2; i++)
        qsort(seconds[i], RUNS, sizeof(double), by_size);
    printf("%-5s %s free %5.1f GB/s, ordered %5.1f GB/s: %.1f %% of it (the same within %.0e)\n",
           mm2_dtype_name(dtype),
           cached ? "from the caches:" : "from memory:    ", bytes / seconds[0][RUNS / 2] * 1e-9,
           bytes / seconds[1][RUNS / 2] * 1e-9, 100 * seconds[0][RUNS / 2] / seconds[1][RUNS / 2],
           fabs((result[0] - result[1]) / result[1]));
}

int main(void)
{
    const mm2_kernels *k = mm2_kernels_find(MM2_ISA_AVX512);
    mm2_pool *threads;
    uint64_t state = 88172645463325252u;
    if (!k) {
        printf("%s\n", mm2_status_text());
        return 1;
    }
    pool = mmap(NULL, POOL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pool == MAP_FAILED || mm2_pool_new(&threads, 2))
        return 1;
    madvise(pool, POOL, MADV_HUGEPAGE);
    for (size_t i = 0; i < POOL; i += 8) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        uint64_t bits = state & 0xbfffbfffbfffbfffu; /* finite as f16 */
        memcpy(pool + i, &bits, 8);
    }
    stream_tune(mm2_cpu_find());
    mm2_float_mode_enter();
    for (int cached = 0; cached < 2; cached++)
        for (int turn = 0; turn < 2; turn++) {
            compare(threads, k, MM2_Q8_0, cached, &state);
            compare(threads, k, MM2_Q4_K, cached, &state);
        }
    mm2_pool_free(threads);
    return 0;
}
