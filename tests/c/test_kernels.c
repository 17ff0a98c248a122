/* The kernels. Two questions, asked of every slot: does ref.c compute what the mathematics says
 * (against double precision, within a derived bound), and does every other level give the bits of
 * ref.c, whatever the sizes, the data and the other rows of the call?
 *
 * Buffers end at a page that cannot be touched, so that reading or writing one byte too far is a
 * crash; outputs are followed by a mark. NaN equals NaN here: its sign and payload are not
 * promised. The floating-point mode is that of the pool: FTZ and DAZ. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/cpu.h"
#include "base/pool.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "tensor/quant.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_ROWS = 80, MAX_OUT = 64, MARK = 4 };
static const float mark = -12345.5f;

/* ---- Random data ---- */

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint32_t next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static int32_t pick(const int32_t *list, int32_t n)
{
    return list[next() % (uint32_t)n];
}

/* Roughly normal. */
static float next_normal(void)
{
    float sum = -6;
    for (int i = 0; i < 12; i++)
        sum += (float)(next() >> 8) * 0x1p-24f;
    return sum;
}

/* TAME: normal numbers. WILD: sizes from 1e-5 to 1e5, zeros of both signs, subnormals. BROKEN: NaN
 * and infinities among them. EXTREME: the largest codes of the integer formats. */
enum { TAME, WILD, BROKEN, EXTREME, KINDS };

static float next_float(int kind)
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

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* `bytes` bytes that end at an untouchable page. Released by guarded_free. */
static void *guarded(size_t bytes)
{
    size_t page = page_size(), size = (bytes + page - 1) / page * page + page;
    uint8_t *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(base != MAP_FAILED);
    assert_int_equal(mprotect(base + size - page, page, PROT_NONE), 0);
    return base + size - page - bytes;
}

static void guarded_free(void *p, size_t bytes)
{
    size_t page = page_size(), size = (bytes + page - 1) / page * page + page;
    assert_int_equal(munmap((uint8_t *)p + bytes + page - size, size), 0);
}

/* ---- Comparison ---- */

static int same_bits(float a, float b)
{
    return mm2_f32_bits(a) == mm2_f32_bits(b) || (a != a && b != b);
}

static void assert_same(const float *a, const float *b, int32_t n, const char *what)
{
    for (int32_t i = 0; i < n; i++)
        if (!same_bits(a[i], b[i]))
            fail_msg("%s: element %d is %.9g (0x%08x), expected %.9g (0x%08x)", what, i, a[i],
                     mm2_f32_bits(a[i]), b[i], mm2_f32_bits(b[i]));
}

static const mm2_kernels *levels[3];
static int level_count;

static int find_levels(void **state)
{
    (void)state;
    mm2_float_mode_enter();
    unsetenv("MM2_ISA");
    for (int32_t isa = MM2_ISA_AVX2; isa <= MM2_ISA_AVX512; isa++) {
        const mm2_kernels *k = mm2_kernels_find(isa);
        if (k)
            levels[level_count++] = k;
    }
    return 0;
}

/* ---- Weights ---- */

static const int32_t matmul_dtypes[] = {MM2_F32,  MM2_F16,  MM2_BF16,   MM2_F8_E4M3, MM2_Q8_0,
                                        MM2_Q4_0, MM2_Q5_0, MM2_IQ4_NL, MM2_Q2_K,    MM2_Q3_K,
                                        MM2_Q4_K, MM2_Q5_K, MM2_Q6_K,   MM2_IQ4_XS};
enum { MATMUL_DTYPES = sizeof matmul_dtypes / sizeof *matmul_dtypes };

typedef struct matrix {
    mm2_weight w;
    uint8_t *data;
    size_t bytes, scale_bytes;
    float *scale;
} matrix;

static void set_half(uint8_t *p, int kind)
{
    uint16_t x = (uint16_t)next();
    if (kind == TAME || kind == EXTREME)
        x = (uint16_t)((x & 0x83ff) | 0x2000); /* 2^-7 to 2^-6, either sign */
    else if (kind == WILD && (x & 0x7c00) == 0x7c00)
        x = 0; /* else anything that is finite, subnormals too */
    memcpy(p, &x, 2);
}

/* The half floats of a block. */
static void set_scales(int32_t dtype, uint8_t *block, int kind)
{
    switch (dtype) {
    case MM2_Q2_K:
        set_half(block + offsetof(mm2_block_q2_k, d), kind);
        set_half(block + offsetof(mm2_block_q2_k, dmin), kind);
        return;
    case MM2_Q3_K:
        set_half(block + offsetof(mm2_block_q3_k, d), kind);
        return;
    case MM2_Q4_K:
    case MM2_Q5_K:
        set_half(block, kind);
        set_half(block + 2, kind);
        return;
    case MM2_Q6_K:
        set_half(block + offsetof(mm2_block_q6_k, d), kind);
        return;
    default:
        set_half(block, kind);
    }
}

static void fill_weights(int32_t dtype, uint8_t *p, size_t bytes, int kind)
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
        else
            set_scales(dtype, p + i, kind);
    }
}

static matrix matrix_new(int32_t dtype, int32_t n_out, int32_t n_in, int kind)
{
    matrix x = {{0}, NULL, 0, 0, NULL};
    x.w.dtype = dtype;
    x.w.n_out = n_out;
    x.w.n_in = n_in;
    x.w.row_bytes = mm2_dtype_row_bytes(dtype, n_in);
    x.bytes = (size_t)(n_out * x.w.row_bytes);
    x.data = guarded(x.bytes);
    x.w.data = x.data;
    fill_weights(dtype, x.data, x.bytes, kind);
    if (dtype == MM2_F8_E4M3 && next() % 4) {
        x.w.scale_row = next() % 2 ? (int32_t)(next() % 128) : 124; /* a block ends soon */
        int32_t n = (n_out + x.w.scale_row + 127) / 128 * ((n_in + 127) / 128);
        x.scale_bytes = (size_t)n * 4;
        x.scale = guarded(x.scale_bytes);
        for (int32_t i = 0; i < n; i++)
            x.scale[i] = next_float(kind == EXTREME ? TAME : kind);
        x.w.scale = x.scale;
    }
    return x;
}

static void matrix_free(matrix *x)
{
    guarded_free(x->data, x->bytes);
    if (x->scale)
        guarded_free(x->scale, x->scale_bytes);
}

/* ---- Activations ---- */

static size_t act_size(int32_t act, int32_t n)
{
    return (size_t)n * (act == MM2_ACT_F32 ? 4 : 1) +
           (act == MM2_ACT_Q8_32    ? (size_t)n / 32 * 4
            : act == MM2_ACT_Q8_256 ? (size_t)n / 256 * 4 + (size_t)n / 16 * 2
                                    : 0);
}

/* Shorter than mm2_act_bytes promises: the rounding is not to be relied on. */
static void *act_new(int32_t act, int32_t n, int kind)
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

/* ---- Matrix products ---- */

static int32_t pick_width(int32_t dtype)
{
    static const int32_t any[] = {1,   3,   15,  16,  17,  63,  64,  65,  127,
                                  128, 129, 200, 255, 256, 257, 300, 512, 777};
    static const int32_t blocks[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 24};
    static const int32_t supers[] = {1, 2, 3, 5};
    int32_t block = mm2_dtype_block(dtype);
    return block == 1    ? pick(any, sizeof any / 4)
           : block == 32 ? 32 * pick(blocks, sizeof blocks / 4)
                         : 256 * pick(supers, sizeof supers / 4);
}

typedef struct product { /* one call and its results, marks behind them */
    float data[MAX_ROWS][MAX_OUT + MARK];
    float *rows[MAX_ROWS];
} product;

static void multiply(const mm2_kernels *k, product *p, const mm2_weight *w, int32_t first,
                     int32_t count, void *const *acts, int32_t rows)
{
    for (int32_t m = 0; m < rows; m++) {
        p->rows[m] = p->data[m];
        for (int32_t i = 0; i < MAX_OUT + MARK; i++)
            p->data[m][i] = mark;
    }
    k->matmul[w->dtype](p->rows, w, first, count, (const void *const *)acts, rows);
    for (int32_t m = 0; m < rows; m++)
        for (int32_t i = count; i < MAX_OUT + MARK; i++)
            assert_true(p->data[m][i] == mark);
}

static product expected, result; /* large for the stack */

static void test_matmul_bits(void **state)
{
    (void)state;
    static const int32_t counts[] = {1, 2, 7, 8, 9, 15, 16, 17, 33, 40};
    static const int32_t row_counts[] = {1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33, 70};
    for (int32_t t = 0; t < MATMUL_DTYPES; t++)
        for (int trial = 0; trial < 60; trial++) {
            int32_t dtype = matmul_dtypes[t], n_in = pick_width(dtype), act = mm2_act_of(dtype);
            int32_t count = pick(counts, 10), rows = pick(row_counts, 13);
            int32_t first = (int32_t)(next() % 5), kind = trial % KINDS;
            matrix x = matrix_new(dtype, first + count, n_in, kind);
            void *acts[MAX_ROWS];
            for (int32_t m = 0; m < rows; m++)
                acts[m] = act_new(act, n_in, kind);
            multiply(&mm2_kernels_ref, &expected, &x.w, first, count, acts, rows);
            for (int l = 0; l < level_count; l++) {
                char what[160];
                multiply(levels[l], &result, &x.w, first, count, acts, rows);
                for (int32_t m = 0; m < rows; m++) {
                    snprintf(what, sizeof what, "%s %s n_in %d first %d count %d row %d of %d",
                             levels[l]->name, mm2_dtype_name(dtype), n_in, first, count, m, rows);
                    assert_same(result.data[m], expected.data[m], count, what);
                }
            }
            for (int32_t m = 0; m < rows; m++)
                guarded_free(acts[m], act_size(act, n_in));
            matrix_free(&x);
        }
}

/* A row alone, and an output alone, are what they are among others: for ref as well. */
static void test_rows_are_independent(void **state)
{
    (void)state;
    enum { ROWS = 13, COUNT = 21 };
    for (int32_t t = 0; t < MATMUL_DTYPES; t++) {
        int32_t dtype = matmul_dtypes[t], act = mm2_act_of(dtype);
        int32_t n_in = mm2_dtype_block(dtype) == 1 ? 333 : 768;
        matrix x = matrix_new(dtype, COUNT, n_in, TAME);
        void *acts[ROWS];
        for (int32_t m = 0; m < ROWS; m++)
            acts[m] = act_new(act, n_in, TAME);
        for (int l = -1; l < level_count; l++) {
            const mm2_kernels *k = l < 0 ? &mm2_kernels_ref : levels[l];
            multiply(k, &expected, &x.w, 0, COUNT, acts, ROWS);
            for (int32_t m = 0; m < ROWS; m++) {
                multiply(k, &result, &x.w, 0, COUNT, acts + m, 1);
                assert_same(result.data[0], expected.data[m], COUNT, k->name);
            }
            for (int32_t i = 0; i < COUNT; i++) {
                multiply(k, &result, &x.w, i, 1, acts, ROWS);
                for (int32_t m = 0; m < ROWS; m++)
                    assert_same(result.data[m], &expected.data[m][i], 1, k->name);
            }
        }
        for (int32_t m = 0; m < ROWS; m++)
            guarded_free(acts[m], act_size(act, n_in));
        matrix_free(&x);
    }
}

static double act_value(int32_t act, const void *row, int32_t n, int32_t k)
{
    const int8_t *q = row;
    const float *d = (const float *)(q + n);
    if (act == MM2_ACT_F32)
        return ((const float *)row)[k];
    return (double)d[k / (act == MM2_ACT_Q8_32 ? 32 : 256)] * q[k];
}

/* Against sums in double precision of the decoded factors. The error of a sum of n terms with one
 * rounding each is at most n 2^-24 times the sum of their sizes; a decoded weight has some
 * roundings of its own, and the two terms of the formats with minima may each be a few times
 * larger. */
static void check_products(const mm2_kernels *k, double slack)
{
    enum { ROWS = 3, COUNT = 18 };
    for (int32_t t = 0; t < 4 * MATMUL_DTYPES; t++) {
        int32_t dtype = matmul_dtypes[t / 4], act = mm2_act_of(dtype);
        int32_t n_in = mm2_dtype_block(dtype) == 1 ? 1003 : 1024;
        matrix x = matrix_new(dtype, COUNT + 2, n_in, TAME);
        void *acts[ROWS];
        float *decoded = malloc((size_t)n_in * 4);
        assert_non_null(decoded);
        for (int32_t m = 0; m < ROWS; m++)
            acts[m] = act_new(act, n_in, TAME);
        multiply(k, &result, &x.w, 2, COUNT, acts, ROWS);
        for (int32_t i = 0; i < COUNT; i++) {
            float largest = 0;
            mm2_dequantize_row(dtype, x.data + (i + 2) * x.w.row_bytes, decoded, n_in);
            for (int32_t j = 0; j < n_in; j++) {
                if (x.scale)
                    decoded[j] *=
                        x.scale[(i + 2 + x.w.scale_row) / 128 * ((n_in + 127) / 128) + j / 128];
                largest = fmaxf(largest, fabsf(decoded[j]));
            }
            for (int32_t m = 0; m < ROWS; m++) {
                double sum = 0, size = 0;
                for (int32_t j = 0; j < n_in; j++) {
                    double a = act_value(act, acts[m], n_in, j);
                    sum += decoded[j] * a;
                    size += fabs(a) * 4 * largest;
                }
                double bound = slack * 0x1p-24 * size;
                if (!(fabs(result.data[m][i] - sum) <= bound))
                    fail_msg("%s %s: %.9g, expected %.9g within %g", k->name, mm2_dtype_name(dtype),
                             result.data[m][i], sum, bound);
            }
        }
        free(decoded);
        for (int32_t m = 0; m < ROWS; m++)
            guarded_free(acts[m], act_size(act, n_in));
        matrix_free(&x);
    }
}

/* 63 additions in a lane, 4 in the tree, 3 for scales. */
static void test_ref_is_right(void **state)
{
    (void)state;
    check_products(&mm2_kernels_ref, 70);
}

/* OpenBLAS may add all 1003 terms in one chain, but should not do worse. */
static void test_blas_is_right(void **state)
{
    (void)state;
    const mm2_kernels *k = mm2_kernels_find(MM2_ISA_BLAS);
    if (!k) {
        print_message("skipped: %s\n", mm2_status_text());
        skip();
    }
    assert_string_equal(k->name, "blas");
    check_products(k, 1100);
    assert_ptr_equal(mm2_kernels_find(MM2_ISA_BLAS), k);
}

/* ---- Quantisation ---- */

static void test_quantize(void **state)
{
    (void)state;
    static const int32_t sizes[] = {32, 64, 256, 288, 512, 1024};
    for (int trial = 0; trial < 300; trial++) {
        int32_t act = trial % 2 ? MM2_ACT_Q8_32 : MM2_ACT_Q8_256;
        int32_t block = act == MM2_ACT_Q8_32 ? 32 : 256;
        int32_t n = pick(sizes, 6) / block * block;
        if (n == 0)
            continue;
        size_t bytes = act_size(act, n);
        float *x = guarded((size_t)n * 4);
        for (int32_t i = 0; i < n; i++)
            x[i] = next_float(trial / 2 % KINDS);
        if (trial % 5 == 0)
            for (int32_t i = 0; i < block; i++)
                x[i] *= 1e-32f; /* a block that counts as zero */
        uint8_t *a = guarded(bytes), *b = guarded(bytes);
        mm2_kernels_ref.quantize[act](a, x, n);
        const float *d = (const float *)(a + n);
        const int16_t *sums = (const int16_t *)(d + n / 256);
        for (int32_t i = 0; i < n; i++) {
            double amax = 0, scale = d[i / block];
            int finite = 1;
            for (int32_t j = i / block * block; j < i / block * block + block; j++) {
                amax = fmax(amax, fabs(x[j]));
                finite = finite && isfinite(x[j]);
            }
            int8_t q = (int8_t)a[i];
            if (!finite) {
                assert_true(scale != scale && q == 0);
            } else if (amax < 1e-30) {
                assert_true(scale == 0 && q == 0);
            } else {
                assert_true(fabs(scale - amax / 127) <= amax * 1e-9);
                assert_true(abs(q) <= 127);
                assert_true(fabs(x[i] / scale - q) <= 0.5 + 1e-4);
            }
            if (act == MM2_ACT_Q8_256 && i % 16 == 15) {
                int32_t sum = 0;
                for (int32_t j = i - 15; j <= i; j++)
                    sum += (int8_t)a[j];
                assert_int_equal(sum, sums[i / 16]);
            }
        }
        for (int l = 0; l < level_count; l++) {
            memset(b, 0x55, bytes);
            levels[l]->quantize[act](b, x, n);
            assert_memory_equal(a, b, n);
            assert_same((float *)(b + n), d, n / block, "scales");
            if (act == MM2_ACT_Q8_256)
                assert_memory_equal(sums, b + n + n / 256 * 4, n / 16 * 2);
        }
        guarded_free(a, bytes);
        guarded_free(b, bytes);
        guarded_free(x, (size_t)n * 4);
    }
    for (int l = 0; l < level_count; l++)
        assert_null(levels[l]->quantize[MM2_ACT_F32]);
}

static void test_act_sizes(void **state)
{
    (void)state;
    assert_int_equal(mm2_act_bytes(MM2_ACT_F32, 3), 64);
    assert_int_equal(mm2_act_bytes(MM2_ACT_F32, 3072), 12288);
    assert_int_equal(mm2_act_bytes(MM2_ACT_Q8_32, 3072), 3072 + 96 * 4);
    assert_int_equal(mm2_act_bytes(MM2_ACT_Q8_256, 3072), 3072 + 12 * 4 + 192 * 2 + 16);
    assert_int_equal(mm2_act_of(MM2_F8_E4M3), MM2_ACT_F32);
    assert_int_equal(mm2_act_of(MM2_Q8_0), MM2_ACT_Q8_32);
    assert_int_equal(mm2_act_of(MM2_Q6_K), MM2_ACT_Q8_256);
    assert_int_equal(mm2_act_of(MM2_I32), -1);
}

/* ---- Elementwise ---- */

/* Every 64th float, and all of them near the limits. */
static void test_exp(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t bits = 0; bits < 0x42b20000; bits += 64)
        for (int sign = 0; sign < 2; sign++) {
            float x = mm2_bits_f32(bits | (uint32_t)sign << 31);
            if (x < -87.3f || x > 88.7f)
                continue;
            double y = exp((double)x);
            double error = fabs(mm2_exp(x) - y) / ldexp(1, ilogb(y) - 23);
            worst = error > worst ? error : worst;
        }
    if (worst > 2)
        fail_msg("mm2_exp is off by %g ulp", worst);
    print_message("mm2_exp: at most %.3f ulp\n", worst);
    assert_true(mm2_exp(0) == 1 && mm2_exp(-0.0f) == 1);
    assert_true(mm2_exp(nextafterf(-87.3f, -100)) == 0 && mm2_exp(-87.3f) > 0);
    assert_true(isinf(mm2_exp(nextafterf(88.7f, 100))) && isfinite(mm2_exp(88.7f)));
    assert_true(mm2_exp(-INFINITY) == 0 && isinf(mm2_exp(INFINITY)) && isnan(mm2_exp(NAN)));
}

static void test_elementwise(void **state)
{
    (void)state;
    for (int trial = 0; trial < 400; trial++) {
        int32_t n = 1 + (int32_t)(next() % 100), kind = trial % KINDS;
        size_t bytes = (size_t)n * 4;
        float *x = guarded(bytes), *y = guarded(bytes), *z = guarded(bytes);
        float *a = guarded(bytes), *b = guarded(bytes);
        for (int32_t i = 0; i < n; i++) {
            x[i] = next_float(kind);
            y[i] = next_float(kind);
            z[i] = trial % 3 ? next_float(TAME) * 40 : x[i];
        }
        for (int l = 0; l < level_count; l++) {
            const mm2_kernels *ref = &mm2_kernels_ref, *k = levels[l];
            ref->rms_norm(a, x, y, n, 1e-6f);
            k->rms_norm(b, x, y, n, 1e-6f);
            assert_same(b, a, n, "rms_norm");
            memcpy(b, x, bytes);
            k->rms_norm(b, b, y, n, 1e-6f);
            assert_same(b, a, n, "rms_norm in place");

            ref->swiglu(a, z, y, n);
            k->swiglu(b, z, y, n);
            assert_same(b, a, n, "swiglu");
            memcpy(b, z, bytes);
            k->swiglu(b, b, y, n);
            assert_same(b, a, n, "swiglu in place");

            ref->sigmoid(a, z, n);
            k->sigmoid(b, z, n);
            assert_same(b, a, n, "sigmoid");

            memcpy(a, y, bytes);
            memcpy(b, y, bytes);
            ref->axpy(a, x[0], z, n);
            k->axpy(b, x[0], z, n);
            assert_same(b, a, n, "axpy");

            memcpy(a, x, bytes);
            memcpy(b, x, bytes);
            ref->rope(a, y, z, n / 2);
            k->rope(b, y, z, n / 2);
            assert_same(b, a, n, "rope");
        }
        if (kind == TAME) { /* ref against the formulas */
            double sum = 0;
            for (int32_t i = 0; i < n; i++)
                sum += (double)x[i] * x[i];
            mm2_kernels_ref.rms_norm(a, x, y, n, 1e-6f);
            mm2_kernels_ref.swiglu(b, z, y, n);
            for (int32_t i = 0; i < n; i++) {
                double norm = x[i] / sqrt(sum / n + 1e-6) * y[i];
                double swish = z[i] / (1 + exp(-(double)z[i])) * y[i];
                assert_true(fabs(a[i] - norm) <= 2e-6 * fabs(norm));
                assert_true(fabs(b[i] - swish) <= 1e-6 * fabs(swish) + 1e-35);
            }
            mm2_kernels_ref.sigmoid(a, z, n);
            for (int32_t i = 0; i < n; i++) {
                double sigmoid = 1 / (1 + exp(-(double)z[i]));
                assert_true(fabs(a[i] - sigmoid) <= 1e-6 * sigmoid + 1e-35);
            }
            memcpy(a, x, bytes);
            mm2_kernels_ref.rope(a, y, z, n / 2);
            for (int32_t i = 0; i < n / 2; i++) {
                double p = x[i], q = x[i + n / 2], c = y[i], s = z[i];
                double size = 1e-6 * (fabs(p) + fabs(q)) * (fabs(c) + fabs(s));
                assert_true(fabs(a[i] - (p * c - q * s)) <= size);
                assert_true(fabs(a[i + n / 2] - (p * s + q * c)) <= size);
            }
            memcpy(a, y, bytes);
            mm2_kernels_ref.axpy(a, x[0], z, n);
            for (int32_t i = 0; i < n; i++)
                assert_true(fabs(a[i] - (y[i] + (double)x[0] * z[i])) <=
                            1e-6 * (fabs(y[i]) + fabs((double)x[0] * z[i])));
        }
        guarded_free(x, bytes);
        guarded_free(y, bytes);
        guarded_free(z, bytes);
        guarded_free(a, bytes);
        guarded_free(b, bytes);
    }
}

/* ---- Attention ---- */

enum { MAX_HEADS = 13, MAX_DIM = 128, MAX_CHUNKS = 3 };

typedef struct attention {
    float m[MAX_HEADS], l[MAX_HEADS], o[MAX_HEADS * MAX_DIM + MARK];
} attention;

typedef struct chunk { /* keys in tiles, values in rows, both of one type */
    void *k, *v;
    size_t k_bytes, v_bytes;
    int32_t n;
} chunk;

static void put_kv(int32_t slot, void *p, int64_t i, float x)
{
    if (slot == 0)
        ((float *)p)[i] = x;
    else
        ((uint16_t *)p)[i] = mm2_f32_bf16(x);
}

static float get_kv(int32_t slot, const void *p, int64_t i)
{
    return slot == 0 ? ((const float *)p)[i] : mm2_bf16_f32(((const uint16_t *)p)[i]);
}

static chunk chunk_new(int32_t slot, int32_t n, int32_t dim, int kind)
{
    chunk c;
    size_t size = slot == 0 ? 4 : 2;
    int32_t tiles = (n + 15) / 16;
    c.n = n;
    c.k_bytes = (size_t)(tiles * 16 * dim) * size;
    c.v_bytes = (size_t)(n * dim) * size;
    c.k = guarded(c.k_bytes);
    c.v = guarded(c.v_bytes);
    for (int32_t j = 0; j < tiles * 16; j++)
        for (int32_t d = 0; d < dim; d++) {
            float x = j < n ? next_float(kind) : NAN; /* beyond n: must not count */
            put_kv(slot, c.k, (int64_t)j / 16 * dim * 16 + d * 16 + j % 16, x);
            if (j < n)
                put_kv(slot, c.v, (int64_t)j * dim + d, next_float(kind));
        }
    return c;
}

static void attend(const mm2_kernels *k, attention *a, int32_t slot, const float *q, int32_t heads,
                   const chunk *chunks, int32_t n, int32_t dim, float scale)
{
    for (int32_t h = 0; h < MAX_HEADS; h++) {
        a->m[h] = -INFINITY;
        a->l[h] = 0;
    }
    for (int32_t i = 0; i < MAX_HEADS * MAX_DIM + MARK; i++)
        a->o[i] = i < heads * dim ? 0 : mark;
    for (int32_t c = 0; c < n; c++)
        k->attend[slot](a->m, a->l, a->o, q, heads, chunks[c].k, chunks[c].v, chunks[c].n, dim,
                        scale);
    for (int32_t i = heads * dim; i < MAX_HEADS * MAX_DIM + MARK; i++)
        assert_true(a->o[i] == mark);
}

static void check_attention(const attention *a, int32_t slot, const float *q, int32_t heads,
                            const chunk *chunks, int32_t n, int32_t dim, float scale)
{
    for (int32_t h = 0; h < heads; h++)
        for (int32_t e = 0; e < dim; e++) {
            double largest = -INFINITY, sum = 0, out = 0, size = 0;
            for (int pass = 0; pass < 2; pass++)
                for (int32_t c = 0; c < n; c++)
                    for (int32_t j = 0; j < chunks[c].n; j++) {
                        double s = 0;
                        for (int32_t d = 0; d < dim; d++)
                            s += (double)q[h * dim + d] *
                                 get_kv(slot, chunks[c].k, j / 16 * dim * 16 + d * 16 + j % 16);
                        s *= scale;
                        if (pass == 0) {
                            largest = fmax(largest, s);
                            continue;
                        }
                        double v = get_kv(slot, chunks[c].v, j * dim + e);
                        sum += exp(s - largest);
                        out += exp(s - largest) * v;
                        size += exp(s - largest) * fabs(v);
                    }
            assert_true(fabs(a->o[h * dim + e] / a->l[h] - out / sum) <= 1e-5 * size / sum);
        }
}

static void test_attention(void **state)
{
    (void)state;
    static const int32_t sizes[] = {1, 2, 15, 16, 17, 33, 100, 240, 255, 256};
    static const int32_t dims[] = {16, 32, 48, 64, 80, 128};
    static attention a, b;
    for (int trial = 0; trial < 120; trial++) {
        int32_t slot = trial % 2, heads = 1 + (int32_t)(next() % MAX_HEADS), dim = pick(dims, 6);
        int32_t n = 1 + (int32_t)(next() % MAX_CHUNKS), kind = trial / 2 % KINDS;
        if (kind == TAME) { /* checked in double precision: keep it small */
            heads = 2;
            dim = 16 << next() % 2;
        }
        float scale = 1 / sqrtf((float)dim);
        size_t bytes = (size_t)(heads * dim) * 4;
        float *q = guarded(bytes);
        chunk chunks[MAX_CHUNKS];
        for (int32_t i = 0; i < heads * dim; i++)
            q[i] = next_float(kind == BROKEN ? WILD : kind);
        for (int32_t c = 0; c < n; c++)
            chunks[c] = chunk_new(slot, pick(sizes, 10), dim, kind);
        attend(&mm2_kernels_ref, &a, slot, q, heads, chunks, n, dim, scale);
        if (kind == TAME)
            check_attention(&a, slot, q, heads, chunks, n, dim, scale);
        for (int l = 0; l < level_count; l++) {
            attend(levels[l], &b, slot, q, heads, chunks, n, dim, scale);
            assert_same(b.m, a.m, heads, "attention: m");
            assert_same(b.l, a.l, heads, "attention: l");
            assert_same(b.o, a.o, heads * dim, "attention: o");
        }
        for (int32_t c = 0; c < n; c++) {
            guarded_free(chunks[c].k, chunks[c].k_bytes);
            guarded_free(chunks[c].v, chunks[c].v_bytes);
        }
        guarded_free(q, bytes);
    }
}

/* A NaN anywhere in a chunk's scores is seen by the caller, at every level. */
static void test_attention_reports_nan(void **state)
{
    (void)state;
    static attention a;
    float q[16];
    for (int32_t i = 0; i < 16; i++)
        q[i] = 1;
    for (int32_t j = 0; j < 40; j += 13)
        for (int l = -1; l < level_count; l++) {
            chunk c = chunk_new(0, 40, 16, TAME);
            ((float *)c.k)[j / 16 * 256 + j % 16] = NAN;
            attend(l < 0 ? &mm2_kernels_ref : levels[l], &a, 0, q, 1, &c, 1, 16, 1);
            assert_true(isnan(a.l[0]));
            guarded_free(c.k, c.k_bytes);
            guarded_free(c.v, c.v_bytes);
        }
}

/* Scores around -87.3 below the largest, where exp ends (seen through huge values); and scores that
 * are -0, which leave +0 in m whichever comes first. */
static void test_attention_edges(void **state)
{
    (void)state;
    static attention a, b;
    float q[16] = {1}, tiny[16];
    chunk c = chunk_new(0, 64, 16, TAME);
    for (int32_t j = 0; j < 64; j++) {
        ((float *)c.k)[j / 16 * 256 + j % 16] = j ? -(87 + (float)j / 80) : 0;
        for (int32_t d = 0; d < 16; d++)
            ((float *)c.v)[j * 16 + d] = j ? 1e36f : 0;
    }
    attend(&mm2_kernels_ref, &a, 0, q, 1, &c, 1, 16, 1);
    assert_true(a.o[0] > 0.32f && a.o[0] < 0.36f); /* 24 of 63 positions have a probability */
    for (int l = 0; l < level_count; l++) {
        attend(levels[l], &b, 0, q, 1, &c, 1, 16, 1);
        assert_same(b.o, a.o, 16, "exp at its lower edge");
    }
    for (int32_t d = 0; d < 16; d++)
        tiny[d] = 1e-30f; /* products underflow, to zeros of either sign */
    for (int trial = 0; trial < 32; trial++)
        for (int l = -1; l < level_count; l++) {
            for (int32_t j = 0; j < 64; j++)
                for (int32_t d = 0; d < 16; d++)
                    ((float *)c.k)[j / 16 * 256 + d * 16 + j % 16] = next() & 1 ? 1e-30f : -1e-30f;
            attend(l < 0 ? &mm2_kernels_ref : levels[l], &a, 0, tiny, 1, &c, 1, 16, 1);
            assert_int_equal(mm2_f32_bits(a.m[0]), 0);
        }
    guarded_free(c.k, c.k_bytes);
    guarded_free(c.v, c.v_bytes);
}

/* ---- The machine's limits ---- */

/* Every byte is read, with any prefetch, and none beyond: each one shows in the checksum. */
static void test_read_reads_all(void **state)
{
    (void)state;
    enum { BYTES = 4096 };
    static const int32_t ahead[][2] = {{0, 0}, {512, 0}, {0, 4096}, {2048, 1 << 20}};
    uint8_t *p = guarded(BYTES);
    for (int32_t i = 0; i < BYTES; i++)
        p[i] = (uint8_t)next();
    for (int l = -1; l < level_count; l++) {
        const mm2_kernels *k = l < 0 ? &mm2_kernels_ref : levels[l];
        uint64_t sum = k->read(p, BYTES, 0, 0);
        for (int way = 0; way < 4; way++) {
            assert_true(k->read(p, BYTES, ahead[way][0], ahead[way][1]) == sum);
            for (int32_t i = 0; i < BYTES; i++) {
                p[i]++;
                assert_true(k->read(p, BYTES, ahead[way][0], ahead[way][1]) != sum);
                p[i]--;
            }
        }
    }
    guarded_free(p, BYTES);
}

/* Operations are counted by rounds, and the checksum is made of the data. */
static void test_peak_multiplies(void **state)
{
    (void)state;
    static _Alignas(64) uint8_t zeros[MM2_PEAK_BYTES], data[MM2_PEAK_BYTES];
    for (int l = -1; l < level_count; l++)
        for (int kind = 0; kind < MM2_PEAK_KINDS; kind++) {
            const mm2_kernels *k = l < 0 ? &mm2_kernels_ref : levels[l];
            int64_t one, five;
            if (!k->peak[kind])
                continue;
            for (int32_t i = 0; i < MM2_PEAK_BYTES / 4; i++)
                ((float *)data)[i] = next_float(TAME);
            assert_true(k->peak[kind](zeros, 1, &one) == 0 && one > 0);
            assert_true(k->peak[kind](data, 5, &five) != 0 && five == 5 * one);
            assert_true(k->peak[kind](data, 1, &one) != k->peak[kind](data, 5, &five));
        }
    assert_non_null(mm2_kernels_ref.peak[MM2_PEAK_INT8]);
    assert_non_null(mm2_kernels_ref.peak[MM2_PEAK_F32]);
}

/* ---- Choosing a level ---- */

static void test_isa_names(void **state)
{
    (void)state;
    const mm2_cpu_facts *cpu = mm2_cpu_find();
    const mm2_kernels *best = mm2_kernels_find(MM2_ISA_AUTO);
    assert_string_equal(best->name, cpu->avx512 ? "avx512" : cpu->avx2 ? "avx2" : "ref");
    assert_ptr_equal(mm2_kernels_find(MM2_ISA_REF), &mm2_kernels_ref);
    assert_true((mm2_kernels_find(MM2_ISA_AVX2) != NULL) == (cpu->avx2 != 0));
    assert_true((mm2_kernels_find(MM2_ISA_AVX512) != NULL) == (cpu->avx512 != 0));

    setenv("MM2_ISA", "ref", 1);
    assert_ptr_equal(mm2_kernels_find(MM2_ISA_AUTO), &mm2_kernels_ref);
    setenv("MM2_ISA", "", 1);
    assert_ptr_equal(mm2_kernels_find(MM2_ISA_AUTO), best);
    setenv("MM2_ISA", "auto", 1);
    assert_ptr_equal(mm2_kernels_find(MM2_ISA_AUTO), best);
    setenv("MM2_ISA", "AVX9000", 1);
    assert_null(mm2_kernels_find(MM2_ISA_AUTO));
    assert_non_null(strstr(mm2_status_text(), "\"AVX9000\""));
    assert_ptr_equal(mm2_kernels_find(MM2_ISA_REF), &mm2_kernels_ref); /* asked for: not read */
    unsetenv("MM2_ISA");

    assert_null(mm2_kernels_find(5));
    assert_non_null(strstr(mm2_status_text(), "isa is 5"));
    for (int l = 0; l < level_count; l++) {
        assert_int_equal(levels[l]->isa, mm2_kernels_find(levels[l]->isa)->isa);
        for (int32_t t = 0; t < MM2_DTYPE_COUNT; t++)
            assert_true((levels[l]->matmul[t] != NULL) == (mm2_act_of(t) >= 0));
    }
}

static void *find_blas(void *arg)
{
    (void)arg;
    return (void *)(uintptr_t)mm2_kernels_find(MM2_ISA_BLAS);
}

/* Before the first success: a library that does not exist is refused with a sentence, and a later
 * request may succeed; threads that ask at the same time get the same table. */
static void test_blas_library(void **state)
{
    (void)state;
    setenv("MINIMAX2_OPENBLAS", "/nonexistent/libopenblas.so", 1);
    assert_null(mm2_kernels_find(MM2_ISA_BLAS));
    assert_non_null(strstr(mm2_status_text(), "/nonexistent/libopenblas.so"));
    unsetenv("MINIMAX2_OPENBLAS");
    pthread_t threads[4];
    void *found[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, find_blas, NULL), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_join(threads[i], &found[i]), 0);
    for (int i = 1; i < 4; i++)
        assert_ptr_equal(found[i], found[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_isa_names),
        cmocka_unit_test(test_blas_library), /* before the other user of blas */
        cmocka_unit_test(test_act_sizes),
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_ref_is_right),
        cmocka_unit_test(test_rows_are_independent),
        cmocka_unit_test(test_matmul_bits),
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_elementwise),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_reports_nan),
        cmocka_unit_test(test_attention_edges),
        cmocka_unit_test(test_read_reads_all),
        cmocka_unit_test(test_peak_multiplies),
        cmocka_unit_test(test_blas_is_right),
    };
    return cmocka_run_group_tests(tests, find_levels, NULL);
}
