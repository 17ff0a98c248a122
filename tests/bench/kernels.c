/* Throughput of the kernels on one pinned thread, per level and weight format:
 *   1 row    decode: GB of weights per second, read from a pool larger than the caches, in calls of
 *            64 rows of 3072 elements; beside it what a plain read of the same memory reaches
 *   64 rows  prefill: GFLOP (2 per weight and row) per second on one 1536 x 3072 matrix
 * then attention (6 heads of 128, 4096 positions) and the row kernels on 3072 elements.
 *
 *   make -C csrc && gcc -O2 -Icsrc tests/bench/kernels.c build/release/kernels/[a-z]*.o \
 *       build/release/tensor/[a-z]*.o build/release/base/[a-z]*.o -lm -lpthread -ldl \
 *       -o build/bench_kernels
 *   build/bench_kernels [level [format]]
 *
 * Every call is timed by the wall clock and the median call is shown: on a busy machine the calls
 * that were interrupted are outliers. (The processor time of a thread is no help: in virtual
 * machines single readings come out far too short, and a best-of-n picks those.) Others still take
 * caches and bandwidth. */
#define _GNU_SOURCE

#include "base/pool.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "tensor/quant.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { WIDTH = 3072, CALL = 64, ROWS = 64, POOL = 128 << 20, RUNS = 5 };

static uint8_t *pool; /* POOL random bytes */
static float *rows[ROWS], *outs[ROWS];
static void *acts[ROWS];
static volatile uint64_t sink;

enum { MAX_CALLS = 1 << 16 };
static int64_t times[MAX_CALLS]; /* nanoseconds of each call */
static int calls;

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void record(int64_t start)
{
    if (calls < MAX_CALLS)
        times[calls++] = mm2_now() - start;
}

/* Seconds of the median call since the last time. */
static double median(void)
{
    qsort(times, (size_t)calls, sizeof *times, by_size);
    double t = (double)times[calls / 2] * 1e-9;
    calls = 0;
    return t;
}

static double plain_read(void)
{
    enum { PIECE = 192 << 10 }; /* as many bytes as a call reads */
    for (int run = 0; run < RUNS; run++)
        for (size_t begin = 0; begin + PIECE <= POOL; begin += PIECE) {
            const uint64_t *p = (const uint64_t *)(pool + begin);
            uint64_t a = 0, b = 0, c = 0, d = 0;
            int64_t start = mm2_now();
            for (size_t i = 0; i < PIECE / 8; i += 8) {
                a += p[i] + p[i + 1];
                b += p[i + 2] + p[i + 3];
                c += p[i + 4] + p[i + 5];
                d += p[i + 6] + p[i + 7];
            }
            sink = a + b + c + d;
            record(start);
        }
    return PIECE / median() * 1e-9;
}

/* Seconds of one call. */
static double run(const mm2_kernels *k, const mm2_weight *w, int32_t n)
{
    for (int r = 0; r < (k->isa == MM2_ISA_REF ? 1 : RUNS); r++)
        for (int32_t first = 0; first + CALL <= w->n_out; first += CALL) {
            int64_t start = mm2_now();
            k->matmul[w->dtype](outs, w, first, CALL, (const void *const *)acts, n);
            record(start);
        }
    return median();
}

static void bench_matmul(const mm2_kernels *k, int32_t dtype)
{
    static const float scales[16384]; /* zeros: what they are costs nothing */
    mm2_weight w = {pool, NULL, mm2_dtype_row_bytes(dtype, WIDTH), 0, WIDTH, dtype, 0};
    int32_t act = mm2_act_of(dtype);
    for (int32_t m = 0; m < ROWS; m++) {
        if (act == MM2_ACT_F32)
            memcpy(acts[m], rows[m], WIDTH * sizeof(float));
        else
            k->quantize[act](acts[m], rows[m], WIDTH);
    }
    int32_t n_out = (int32_t)(POOL / w.row_bytes) / CALL * CALL;
    if (dtype == MM2_F8_E4M3)
        w.scale = scales;
    w.n_out = k->isa == MM2_ISA_REF ? 256 : n_out;
    double t1 = run(k, &w, 1);
    double rate = CALL * (double)w.row_bytes / t1 * 1e-9;
    w.n_out = k->isa == MM2_ISA_REF ? 64 : 1536;
    double t64 = run(k, &w, ROWS);
    printf("%-7s %-8s %7.2f GB/s %8.1f GFLOP/s\n", k->name, mm2_dtype_name(dtype), rate,
           2.0 * CALL * WIDTH * ROWS / t64 * 1e-9);
    fflush(stdout);
}

static void bench_rest(const mm2_kernels *k)
{
    enum { HEADS = 6, DIM = 128, LENGTH = 4096 };
    float m[HEADS] = {0}, l[HEADS] = {0};
    for (int slot = 0; slot < 2; slot++) {
        size_t size = slot ? 2 : 4;
        for (int r = 0; r < RUNS; r++)
            for (int32_t j = 0; j < LENGTH; j += 256) {
                int64_t start = mm2_now();
                k->attend[slot](m, l, outs[0], rows[0], HEADS, pool + (size_t)j * DIM * size,
                                pool + (size_t)(LENGTH + j) * DIM * size, 256, DIM, 0.001f);
                record(start);
            }
        double t = median() * (LENGTH / 256);
        printf("%-7s attend %s %7.1f us for 4096 positions, %.1f GFLOP/s\n", k->name,
               slot ? "bf16" : "f32 ", t * 1e6, 4.0 * HEADS * DIM * LENGTH / t * 1e-9);
    }
    double t[3];
    for (int what = 0; what < 3; what++) {
        for (int r = 0; r < 100; r++) {
            int64_t start = mm2_now();
            for (int i = 0; i < 20; i++) {
                if (what == 0)
                    k->rms_norm(outs[0], rows[0], rows[1], WIDTH, 1e-6f);
                else if (what == 1)
                    k->swiglu(outs[0], rows[0], rows[1], WIDTH);
                else
                    k->quantize[MM2_ACT_Q8_256](acts[0], rows[0], WIDTH);
            }
            record(start);
        }
        t[what] = median() * 1e6 / 20;
    }
    printf("%-7s rms_norm %.2f us, swiglu %.2f us, quantize %.2f us\n", k->name, t[0], t[1], t[2]);
}

int main(int argc, char **argv)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(sched_getcpu(), &set);
    sched_setaffinity(0, sizeof set, &set);
    mm2_float_mode_enter();
    pool = mmap(NULL, POOL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pool == MAP_FAILED)
        return 1;
    uint64_t x = 88172645463325252u;
    for (size_t i = 0; i < POOL; i += 8) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        uint64_t y = x & 0xbfffbfffbfffbfffu; /* finite as f32, f16 and bf16 */
        memcpy(pool + i, &y, 8);
    }
    for (int32_t m = 0; m < ROWS; m++) {
        rows[m] = aligned_alloc(64, WIDTH * sizeof(float));
        outs[m] = aligned_alloc(64, WIDTH * sizeof(float));
        acts[m] = aligned_alloc(64, WIDTH * sizeof(float));
        if (!rows[m] || !outs[m] || !acts[m])
            return 1;
        for (int32_t i = 0; i < WIDTH; i++)
            rows[m][i] = (float)(int8_t)pool[m * WIDTH + i] / 50;
    }
    printf("%s\nplain read of %d MB: %.2f GB/s\n", mm2_cpu(), POOL >> 20, plain_read());
    static const char *const names[] = {"auto", "ref", "avx2", "avx512", "blas"};
    for (int32_t isa = MM2_ISA_REF; isa <= MM2_ISA_BLAS; isa++) {
        if (argc > 1 && strcmp(argv[1], names[isa]) != 0)
            continue;
        const mm2_kernels *k = mm2_kernels_find(isa);
        if (!k) {
            printf("%s: %s\n", names[isa], mm2_status_text());
            continue;
        }
        for (int32_t dtype = 0; dtype < MM2_DTYPE_COUNT; dtype++)
            if (k->matmul[dtype] && (argc < 3 || strcmp(argv[2], mm2_dtype_name(dtype)) == 0))
                bench_matmul(k, dtype);
        if (argc < 3)
            bench_rest(k);
    }
    return 0;
}
