/* Throughput of the matrix kernels, per level and weight format, through the thread pool:
 *   1 row    what decode does: matrices of 1536 x 3072 at random places of a pool far larger than
 *            the caches. GB of weights per second, and as shares of the two reads below
 *   cached   the same product over one matrix again and again: what the instructions allow
 *   2..8     what an expert does in a short prompt or a small batch: as 1 row, and in GB too, so
 *            that the price of a further row shows
 *   16..1024 what prefill does, in 10^9 operations (2 per weight and row) per second; "packed":
 *            the same from a panel, the packing included, where the level has that
 * Plain read: the same bytes, 512-bit (256-bit) loads and nothing else. Best read: the same with
 * the prefetch distances that were fastest. All are interleaved, and medians of RUNS are shown.
 * "+z" behind a format: with zero points.
 *
 *   make -C csrc bench-kernels [ARGS="level [formats [threads]]"]      formats: q4_0,iq2_s
 *
 * Best under real-time priority (chrt -f 10) on an otherwise idle machine. */
#define _GNU_SOURCE

#include "base/cpu.h"
#include "base/pool.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "tensor/formats.h"
#include "tensor/quant.h"

#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { N_IN = 3072, N_OUT = 1536, TILE = 64, MATRICES = 48, MOST_ROWS = 1024, RUNS = 9 };
static const int32_t few[] = {1, 2, 3, 4, 6, 8}, many[] = {16, 64, 256, 1024};
enum { FEW = sizeof few / sizeof *few, MANY = sizeof many / sizeof *many };
static const size_t POOL = (size_t)2 << 30;

static uint8_t *pool; /* POOL random bytes */
static uint8_t *panel;
static mm2_pool *threads;
static void *acts[MOST_ROWS];
static float *outs[MOST_ROWS];
static volatile uint64_t sink;
static uint64_t state = 88172645463325252u;

static uint64_t draw(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *times)
{
    qsort(times, RUNS, sizeof *times, by_size);
    return times[RUNS / 2];
}

/* One job: units are tiles of `matrices` matrices. */
typedef struct job {
    const mm2_kernels *kernels;
    mm2_weight w;
    size_t at[MATRICES];
    int32_t matrices, rows;
    int32_t t0, t1; /* reads: prefetch distances, 0: none */
} job;

/* Bytes of a row: codes, scales and zero points, each of which may lie behind all of the others. */
static size_t row_bytes(const mm2_weight *w)
{
    int64_t zeros = w->zeros ? N_IN / w->group * mm2_format_of(w->dtype).bits / 8 : 0;
    return (size_t)(w->row_bytes + w->span_bytes + zeros);
}

/* The matrix of a unit. */
static void place(const job *j, mm2_weight *w, int32_t unit)
{
    w->data = pool + j->at[unit / (N_OUT / TILE)];
    w->spans = (const uint8_t *)w->data + w->row_bytes * N_OUT;
    if (w->zeros)
        w->zeros = (const uint8_t *)w->spans + w->span_bytes * N_OUT;
}

static void product(void *context, int32_t unit, int32_t thread)
{
    const job *j = context;
    mm2_weight w = j->w;
    float *out[MOST_ROWS];
    int32_t first = unit % (N_OUT / TILE) * TILE;
    for (int32_t m = 0; m < j->rows; m++)
        out[m] = outs[m] + first;
    place(j, &w, unit);
    j->kernels->matmul[w.dtype](out, &w, first, TILE, (const void *const *)acts, j->rows);
}

static void packed_product(void *context, int32_t unit, int32_t thread)
{
    const job *j = context;
    mm2_weight w = j->w;
    float *out[MOST_ROWS];
    int32_t first = unit % (N_OUT / TILE) * TILE;
    for (int32_t m = 0; m < j->rows; m++)
        out[m] = outs[m] + first;
    place(j, &w, unit);
    j->kernels->matmul_packed[w.dtype](out, &w, first, TILE, panel, j->rows);
}

static void packing(void *context, int32_t unit, int32_t thread)
{
    const job *j = context;
    int32_t act = mm2_act_of(j->w.dtype), first = unit * 16, left = j->rows - first;
    j->kernels->pack[act](panel + mm2_panel_bytes(act, 16, N_IN) * unit,
                          (const void *const *)acts + first, left < 16 ? left : 16, N_IN);
}

__attribute__((target("avx2"))) static uint64_t read_bytes(const uint8_t *p, size_t n, int32_t t0,
                                                           int32_t t1)
{
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                      _mm256_setzero_si256()};
    for (size_t i = 0; i + 256 <= n; i += 256) {
        for (int k = 0; k < 4 && t0; k++)
            _mm_prefetch((const char *)p + i + k * 64 + t0, _MM_HINT_T0);
        for (int k = 0; k < 4 && t1; k++)
            _mm_prefetch((const char *)p + i + k * 64 + t1, _MM_HINT_T1);
        for (int k = 0; k < 8; k++)
            sum[k % 4] =
                _mm256_xor_si256(sum[k % 4], _mm256_loadu_si256((const __m256i *)(p + i + k * 32)));
    }
    sum[0] = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
    return (uint64_t)_mm256_extract_epi64(sum[0], 0) ^ (uint64_t)_mm256_extract_epi64(sum[0], 3);
}

static void reading(void *context, int32_t unit, int32_t thread)
{
    const job *j = context;
    size_t bytes = row_bytes(&j->w) * TILE;
    sink +=
        read_bytes(pool + j->at[unit / (N_OUT / TILE)] + (size_t)(unit % (N_OUT / TILE)) * bytes,
                   bytes, j->t0, j->t1);
}

static void work_on(job *j, mm2_work work, int32_t units)
{
    const mm2_limit limit = {.deadline = INT64_MAX};
    mm2_progress progress = {0};
    mm2_pool_run(threads, work, j, &progress, units, &limit);
}

static double seconds(job *j, mm2_work work)
{
    int64_t start = mm2_now();
    if (work == packed_product) /* each matrix has its own input */
        for (int32_t i = 0; i < j->matrices; i++)
            work_on(j, packing, (j->rows + 15) / 16);
    work_on(j, work, j->matrices * (N_OUT / TILE));
    return (double)(mm2_now() - start) * 1e-9;
}

static void scatter(job *j)
{
    size_t room = POOL - row_bytes(&j->w) * N_OUT - 8192;
    for (int32_t i = 0; i < j->matrices; i++)
        j->at[i] = draw() % room / 64 * 64;
}

/* Products of 8 or, of 64 rows and more, 2 matrices. */
static int32_t matrices_of(int32_t rows)
{
    return rows < 64 ? 8 : 2;
}

static void print_many(const char *title, double times[MANY][RUNS])
{
    printf("%s", title);
    for (int i = 0; i < MANY; i++)
        printf(" %d: %.0f", many[i],
               2.0 * N_IN * N_OUT * matrices_of(many[i]) * many[i] / median(times[i]) * 1e-9);
}

/* zeros: with zero points? */
static void bench(const mm2_kernels *k, int32_t dtype, int zeros)
{
    static float scales[(N_OUT / 128) * (N_IN / 128)];
    static const int32_t distances[][2] = {{0, 0}, {512, 2048}, {2048, 4096}, {1024, 0}, {4096, 0}};
    enum { READS = sizeof distances / sizeof *distances };
    double read[READS][RUNS], product_few[FEW][RUNS], cached[RUNS];
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        scales[i] = 0.01f;
    job j = {.kernels = k, .rows = 1, .matrices = MATRICES};
    j.w = (mm2_weight){.scale = dtype == MM2_F8_E4M3 ? scales : NULL,
                       .row_bytes = mm2_dtype_row_bytes(dtype, N_IN),
                       .n_out = N_OUT,
                       .n_in = N_IN,
                       .dtype = dtype,
                       .zeros = zeros ? pool : NULL, /* anywhere; see place */
                       .global = 1};
    if (mm2_is_plane(dtype)) { /* integers as they are usual: a scale for 128 codes */
        j.w.group = dtype == MM2_F4_16 ? 16 : dtype == MM2_F4_32 ? 32 : 128;
        j.w.span_dtype = dtype == MM2_F4_16 ? MM2_F8_E4M3 : dtype == MM2_F4_32 ? MM2_U8 : MM2_BF16;
        j.w.span_bytes = N_IN / j.w.group * mm2_dtype_bytes(j.w.span_dtype);
    }
    int32_t act = mm2_act_of(dtype);
    for (int32_t m = 0; m < MOST_ROWS; m++) {
        float x[N_IN];
        for (int32_t i = 0; i < N_IN; i++)
            x[i] = (float)(int8_t)draw() / 50;
        if (act == MM2_ACT_F32)
            memcpy(acts[m], x, sizeof x);
        else
            k->quantize[act](acts[m], x, N_IN);
    }
    for (int r = 0; r < RUNS; r++) {
        for (int i = 0; i < READS; i++) {
            scatter(&j);
            j.t0 = distances[i][0], j.t1 = distances[i][1];
            read[i][r] = seconds(&j, reading);
        }
        for (int i = 0; i < FEW; i++) {
            scatter(&j);
            j.rows = few[i];
            product_few[i][r] = seconds(&j, product);
        }
    }
    j.rows = 1;
    for (int32_t i = 0; i < MATRICES; i++)
        j.at[i] = 0;
    for (int r = 0; r < RUNS; r++)
        cached[r] = seconds(&j, product);
    double bytes = (double)row_bytes(&j.w) * N_OUT * MATRICES, best = 0;
    for (int i = 0; i < READS; i++) {
        double rate = bytes / median(read[i]);
        best = rate > best ? rate : best;
    }
    double plain = bytes / median(read[0]), rate = bytes / median(product_few[0]);
    printf("%-7s %s%-*s %6.1f GB/s %4.0f %% of best %4.0f %% of plain, cached %6.1f;", k->name,
           mm2_dtype_name(dtype), 8 - (int)strlen(mm2_dtype_name(dtype)), zeros ? "+z" : "",
           rate * 1e-9, 100 * rate / best, 100 * rate / plain, bytes / median(cached) * 1e-9);
    for (int i = 1; i < FEW; i++)
        printf(" %d: %.1f", few[i], bytes / median(product_few[i]) * 1e-9);
    printf(" GB/s;");
    double product_many[MANY][RUNS], packed[MANY][RUNS];
    for (int i = 0; i < MANY; i++) {
        j.rows = many[i];
        j.matrices = matrices_of(j.rows);
        for (int r = 0; r < RUNS; r++) {
            scatter(&j);
            product_many[i][r] = seconds(&j, product);
            scatter(&j);
            packed[i][r] = k->matmul_packed[dtype] ? seconds(&j, packed_product) : 0;
        }
    }
    print_many("", product_many);
    if (k->matmul_packed[dtype])
        print_many("; packed", packed);
    printf("\n");
    fflush(stdout);
}

/* Is it among names with commas between them? */
static int is_listed(const char *names, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = names; (p = strstr(p, name)); p += n)
        if ((p == names || p[-1] == ',') && (!p[n] || p[n] == ','))
            return 1;
    return 0;
}

int main(int argc, char **argv)
{
    mm2_float_mode_enter();
    pool = mmap(NULL, POOL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pool == MAP_FAILED)
        return 1;
    madvise(pool, POOL, MADV_HUGEPAGE);
    for (size_t i = 0; i < POOL; i += 8) {
        uint64_t y = draw() & 0xbfffbfffbfffbfffu; /* finite as f32, f16 and bf16 */
        memcpy(pool + i, &y, 8);
    }
    panel = aligned_alloc(64, (size_t)mm2_panel_bytes(MM2_ACT_BF16, MOST_ROWS, N_IN));
    if (!panel)
        return 1;
    for (int32_t m = 0; m < MOST_ROWS; m++) {
        outs[m] = aligned_alloc(64, N_OUT * sizeof(float));
        acts[m] = aligned_alloc(64, N_IN * sizeof(float));
        if (!outs[m] || !acts[m])
            return 1;
    }
    if (mm2_pool_new(&threads, argc > 3 ? atoi(argv[3]) : mm2_cpu_cores()))
        return 1;
    printf("%s, %d threads\n", mm2_cpu(), mm2_pool_threads(threads));
    for (int32_t isa = MM2_ISA_AVX2; isa <= MM2_ISA_BLAS; isa++) {
        const mm2_kernels *k = mm2_kernels_find(isa);
        if (!k || (argc > 1 && strcmp(argv[1], k->name) != 0))
            continue;
        for (int32_t dtype = 0; dtype < MM2_DTYPE_COUNT; dtype++)
            if (k->matmul[dtype] && (argc < 3 || is_listed(argv[2], mm2_dtype_name(dtype)))) {
                bench(k, dtype, 0);
                if (dtype == MM2_I4 || dtype == MM2_I8)
                    bench(k, dtype, 1);
            }
    }
    mm2_pool_free(threads);
    return 0;
}
