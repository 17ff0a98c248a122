/* What the written order of sums costs at decode: the avx512 kernels for one activation row beside
 * the fastest that we could write without any order, for Q8_0 and Q4_K. These keep 16 float sums a
 * row, add to them whatever comes, and add them up once a row ends. With many rows the question does
 * not arise: there the written order, block after block, is the natural one.
 *
 *   make -C csrc bench-free_order
 *
 * Prints the medians of interleaved runs over matrices at random places of a large pool, GB of
 * weights a second, and the share of the ordered kernel. */
#define _GNU_SOURCE

#include "base/cpu.h"
#include "base/pool.h"
#include "base/status.h"
#include "kernels/kernels.h"

#include "kernels/lanes_avx512.h"

#include "kernels/body_float.h"
#include "kernels/body_unpack.h"
#include "kernels/body_one.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { N_IN = 3072, N_OUT = 1536, TILE = 192, MATRICES = 48, RUNS = 15 };
static const size_t POOL = (size_t)2 << 30;

static uint8_t *pool;
static _Alignas(64) uint8_t act[N_IN * 4];
static float out[N_OUT];

static void free_q8_0(float *y, const uint8_t *p, int32_t rows)
{
    _Alignas(64) int32_t bias[N_IN / 32][8] = {{0}};
    _Alignas(64) float d_a[N_IN / 32][8];
    const float *d = (const float *)(act + N_IN);
    for (int32_t b = 0; b < N_IN / 32; b++) {
        bias[b][0] = -128 * sum32((const int8_t *)act + b * 32);
        for (int i = 0; i < 8; i++)
            d_a[b][i] = d[b];
    }
    for (int32_t r = 0; r < rows; r++) {
        v16 sum[2] = {v16_zero(), v16_zero()};
        for (int32_t b = 0; b < N_IN / 32; b += 4) {
            prefetch_stream(p, 136);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++, p += 68) {
                __m512i c = bytes_signed(bytes_joined(p + 2, p + 36));
                int32_t at = b + i * 2;
                c = _mm512_dpbusd_epi32(_mm512_load_si512(bias[at]), c,
                                        _mm512_load_si512(act + at * 32));
                int16_t d0, d1;
                memcpy(&d0, p, 2);
                memcpy(&d1, p + 34, 2);
                __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_set1_epi16(d0)),
                                                       _mm_set1_epi16(d1), 1);
                v16 scale = v16_mul(_mm512_cvtph_ps(both), v16_load(d_a[at]));
                sum[i] = v16_fma(_mm512_cvtepi32_ps(c), scale, sum[i]);
            }
        }
        y[r] = _mm512_reduce_add_ps(v16_add(sum[0], sum[1]));
    }
}

static void free_q4_k(float *y, const uint8_t *p, int32_t rows)
{
    _Alignas(64) int8_t code[N_IN];
    _Alignas(16) int16_t sums[N_IN / 32];
    const float *d_a = (const float *)(act + N_IN);
    const int16_t *half = (const int16_t *)(d_a + N_IN / MM2_SUPER);
    static const uint8_t order[8] = {0, 2, 1, 3, 4, 6, 5, 7};
    static const uint8_t spread[4][4] = {{0, 0, 2, 2}, {1, 1, 3, 3}, {4, 4, 6, 6}, {5, 5, 7, 7}};
    for (int32_t i = 0; i < N_IN / 32; i++) {
        memcpy(code + i * 32, act + i / 8 * MM2_SUPER + order[i % 8] * 32, 32);
        sums[i] = (int16_t)(half[2 * i] + half[2 * i + 1]);
    }
    for (int32_t r = 0; r < rows; r++) {
        v16 sum = v16_zero();
        __m128 least = _mm_setzero_ps();
        for (int32_t b = 0; b < N_IN / MM2_SUPER; b++, p += sizeof(mm2_block_q4_k)) {
            uint32_t u[3];
            uint16_t d[2];
            prefetch_stream(p, sizeof(mm2_block_q4_k));
            memcpy(d, p, 4);
            memcpy(u, p + 4, 12);
            uint32_t top_scale = (u[2] & LOW4) | (u[0] >> 6 & LOW2) << 4;
            uint32_t top_min = (u[2] >> 4 & LOW4) | (u[1] >> 6 & LOW2) << 4;
            uint64_t scales = (u[0] & LOW6) | (uint64_t)top_scale << 32;
            uint64_t minima = (u[1] & LOW6) | (uint64_t)top_min << 32;
            bytes64 s = _mm512_set1_epi64((long long)scales);
            words total = words_set1(0);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                bytes64 c = bytes_load(p + offsetof(mm2_block_q4_k, q) + j / 2 * 64);
                c = bytes_and(j % 2 ? bytes_shr(c, 4) : c, 15);
                total =
                    one_dot(total, c, code + b * MM2_SUPER + j * 64, bytes_spread(0, s, spread[j]));
            }
            sum = v16_fma(_mm512_cvtepi32_ps(total), v16_set1(_cvtsh_ss(d[0]) * d_a[b]), sum);
            __m128i m = _mm_cvtepu8_epi16(_mm_cvtsi64_si128((long long)minima));
            m = _mm_madd_epi16(m, _mm_load_si128((const __m128i *)(sums + b * 8)));
            least = _mm_fmadd_ps(_mm_cvtepi32_ps(m), _mm_set1_ps(_cvtsh_ss(d[1]) * d_a[b]), least);
        }
        least = _mm_add_ps(least, _mm_movehl_ps(least, least));
        least = _mm_add_ss(least, _mm_movehdup_ps(least));
        y[r] = _mm512_reduce_add_ps(sum) - _mm_cvtss_f32(least);
    }
}

typedef struct job {
    const mm2_kernels *kernels; /* NULL: free order */
    int32_t dtype;
    int64_t row_bytes;
    size_t at[MATRICES];
} job;

static void product(void *context, int32_t unit, int32_t thread)
{
    const job *j = context;
    int32_t first = unit % (N_OUT / TILE) * TILE;
    const uint8_t *data = pool + j->at[unit / (N_OUT / TILE)];
    if (j->kernels) {
        mm2_weight w = {.data = data,
                        .row_bytes = j->row_bytes,
                        .n_out = N_OUT,
                        .n_in = N_IN,
                        .dtype = j->dtype};
        float *y = out + first;
        const void *x = act;
        j->kernels->matmul[j->dtype](&y, &w, first, TILE, &x, 1);
    } else if (j->dtype == MM2_Q8_0) {
        free_q8_0(out + first, data + first * j->row_bytes, TILE);
    } else {
        free_q4_k(out + first, data + first * j->row_bytes, TILE);
    }
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void compare(mm2_pool *threads, const mm2_kernels *k, int32_t dtype, uint64_t *state)
{
    static const mm2_limit limit = {.deadline = INT64_MAX};
    double seconds[2][RUNS], bytes;
    float x[N_IN], result[2];
    job j = {.dtype = dtype, .row_bytes = mm2_dtype_row_bytes(dtype, N_IN)};
    bytes = (double)j.row_bytes * N_OUT * MATRICES;
    for (int32_t i = 0; i < N_IN; i++)
        x[i] = (float)(i * 37 % 101 - 50) / 50;
    k->quantize[mm2_act_of(dtype)](act, x, N_IN);
    for (int r = 0; r < RUNS; r++) {
        for (int32_t i = 0; i < MATRICES; i++) {
            *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
            j.at[i] = *state % (POOL - (size_t)(j.row_bytes * N_OUT) - 8192) / 64 * 64;
        }
        for (int ordered = 0; ordered < 2; ordered++) {
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
    printf("%-5s free %5.1f GB/s, ordered %5.1f GB/s: %.1f %% of it (the same within %.0e)\n",
           mm2_dtype_name(dtype), bytes / seconds[0][RUNS / 2] * 1e-9,
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
    for (int turn = 0; turn < 2; turn++) {
        compare(threads, k, MM2_Q8_0, &state);
        compare(threads, k, MM2_Q4_K, &state);
    }
    mm2_pool_free(threads);
    return 0;
}
