/* The kernels. Two questions, asked of every slot: does ref.c compute what the mathematics says
 * (against double precision, within a derived bound), and does every other level give the bits of
 * ref.c, whatever the sizes, the data and the other rows of the call?
 *
 * Buffers end at a page that cannot be touched, so that reading or writing one byte too far is a
 * crash; outputs are followed by a mark. NaN equals NaN here: its sign and payload are not
 * promised. The floating-point mode is that of the pool: FTZ and DAZ. */
#include "attention_data.h"
#include "kernel_data.h"

#include "base/cpu.h"
#include "base/levels.h"
#include "base/pool.h"
#include "base/status.h"

#include <pthread.h>
#include <stdio.h>

static const mm2_kernels *levels[4];
static int level_count;

static int find_levels(void **state)
{
    (void)state;
    mm2_float_mode_enter();
    unsetenv("MM2_ISA");
#define ISA(ID, name, needs) MM2_ISA_##ID,
    static const int32_t vector_levels[] = {MM2_VECTOR_LEVELS(ISA)};
#undef ISA
    for (size_t i = 0; i < sizeof vector_levels / sizeof *vector_levels; i++) {
        const mm2_kernels *k = mm2_kernels_find(vector_levels[i]);
        if (k)
            levels[level_count++] = k;
    }
    return 0;
}

/* ---- Slots ---- */

static void check_slots(const mm2_kernels *k)
{
    int has[MM2_DTYPE_COUNT] = {0};
    for (int32_t t = 0; t < MATMUL_DTYPES; t++)
        has[matmul_dtypes[t]] = 1;
    for (int32_t dtype = 0; dtype < MM2_DTYPE_COUNT; dtype++) {
        assert_int_equal(k->matmul[dtype] != NULL, has[dtype]);
        assert_int_equal(k->exact[dtype] != NULL, has[dtype]);
        assert_int_equal(mm2_act_of(dtype) != MM2_ACT_NONE, has[dtype]);
    }
}

static void test_every_format_has_slots(void **state)
{
    (void)state;
    check_slots(&mm2_kernels_ref);
    for (int l = 0; l < level_count; l++)
        check_slots(levels[l]);
}

/* ---- Matrix products ---- */

typedef struct product { /* one call and its results, marks behind them */
    float data[MAX_ROWS][MAX_OUT + MARK];
    float *rows[MAX_ROWS];
} product;

/* Products come twice: the fast slots, and exact[]. */
static int32_t act_of(int exact, int32_t dtype)
{
    return exact ? MM2_ACT_F32 : mm2_act_of(dtype);
}

static void multiply(const mm2_kernels *k, int exact, product *p, const mm2_weight *w,
                     int32_t first, int32_t count, void *const *acts, int32_t rows)
{
    mm2_matmul *matmul = exact ? k->exact[w->dtype] : k->matmul[w->dtype];
    for (int32_t m = 0; m < rows; m++) {
        p->rows[m] = p->data[m];
        for (int32_t i = 0; i < MAX_OUT + MARK; i++)
            p->data[m][i] = mark;
    }
    matmul(p->rows, w, first, count, (const void *const *)acts, rows);
    for (int32_t m = 0; m < rows; m++)
        for (int32_t i = count; i < MAX_OUT + MARK; i++)
            assert_true(p->data[m][i] == mark);
}

static product expected, result; /* large for the stack */

static void test_matmul_bits(void **state)
{
    (void)state;
    static const int32_t counts[] = {1, 2, 7, 8, 9, 15, 16, 17, 33, 40};
    static const int32_t row_counts[] = {1, 10, 12, 17, 33, 70};
    for (int32_t t = 0; t < MATMUL_DTYPES; t++)
        for (int trial = 0; trial < 120; trial++) {
            int exact = trial >= 60;
            int32_t dtype = matmul_dtypes[t], n_in = pick_width(dtype), act = act_of(exact, dtype);
            int32_t count = pick(counts, 10), first = (int32_t)(next() % 5), kind = trial % KINDS;
            /* each of 1 to 9 rows with data of each kind, then others */
            int32_t rows = trial % 60 < 9 * KINDS ? 1 + trial % 9 : pick(row_counts, 6);
            matrix x = matrix_new(dtype, first + count, n_in, kind);
            void *acts[MAX_ROWS];
            for (int32_t m = 0; m < rows; m++)
                acts[m] = act_new(act, n_in, kind);
            multiply(&mm2_kernels_ref, exact, &expected, &x.w, first, count, acts, rows);
            for (int l = 0; l < level_count; l++) {
                char what[160];
                multiply(levels[l], exact, &result, &x.w, first, count, acts, rows);
                for (int32_t m = 0; m < rows; m++) {
                    snprintf(what, sizeof what, "%s %s%s n_in %d first %d count %d row %d of %d",
                             levels[l]->name, exact ? "exact " : "", mm2_dtype_name(dtype), n_in,
                             first, count, m, rows);
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
    for (int32_t t = 0; t < 2 * MATMUL_DTYPES; t++) {
        int exact = t % 2;
        int32_t dtype = matmul_dtypes[t / 2], act = act_of(exact, dtype);
        int32_t n_in = mm2_dtype_block(dtype) == 1 ? 333 : 768;
        matrix x = matrix_new(dtype, COUNT, n_in, TAME);
        void *acts[ROWS];
        for (int32_t m = 0; m < ROWS; m++)
            acts[m] = act_new(act, n_in, TAME);
        for (int l = -1; l < level_count; l++) {
            const mm2_kernels *k = l < 0 ? &mm2_kernels_ref : levels[l];
            multiply(k, exact, &expected, &x.w, 0, COUNT, acts, ROWS);
            for (int32_t m = 0; m < ROWS; m++) {
                multiply(k, exact, &result, &x.w, 0, COUNT, acts + m, 1);
                assert_same(result.data[0], expected.data[m], COUNT, k->name);
            }
            for (int32_t i = 0; i < COUNT; i++) {
                multiply(k, exact, &result, &x.w, i, 1, acts, ROWS);
                for (int32_t m = 0; m < ROWS; m++)
                    assert_same(result.data[m], &expected.data[m][i], 1, k->name);
            }
        }
        for (int32_t m = 0; m < ROWS; m++)
            guarded_free(acts[m], act_size(act, n_in));
        matrix_free(&x);
    }
}

static void test_sign_of_zero(void **state)
{
    (void)state;
    enum { ROWS = 9, COUNT = 20 };
    matrix x = matrix_new(MM2_F8_E4M3, COUNT, 256, TAME);
    void *acts[ROWS];
    for (int32_t m = 0; m < ROWS; m++)
        acts[m] = act_new(MM2_ACT_BF16, 256, TAME);
    set_vanishing(&x, (uint16_t *const *)acts, ROWS);
    for (int32_t rows = 1; rows <= ROWS; rows += ROWS - 1)
        for (int l = -1; l < level_count; l++) {
            multiply(l < 0 ? &mm2_kernels_ref : levels[l], 0, &result, &x.w, 0, COUNT, acts, rows);
            for (int32_t m = 0; m < rows; m++)
                for (int32_t i = 0; i < COUNT; i++)
                    assert_int_equal(mm2_f32_bits(result.data[m][i]), 0);
        }
    for (int32_t m = 0; m < ROWS; m++)
        guarded_free(acts[m], act_size(MM2_ACT_BF16, 256));
    matrix_free(&x);
}

static double act_value(int32_t act, const void *row, int32_t n, int32_t k)
{
    const int8_t *q = row;
    const float *d = (const float *)(q + n);
    if (act == MM2_ACT_F32)
        return ((const float *)row)[k];
    if (act == MM2_ACT_BF16)
        return mm2_bf16_f32(((const uint16_t *)row)[k]);
    return (double)d[k / (act == MM2_ACT_Q8_32 ? 32 : 256)] * q[k];
}

/* Against sums in double precision of the decoded factors: |error| <= slack * 2^-24 * sum of
 * |weight * activation|, plus FLUSHED for every product that may have been flushed to zero. */
static const double FLUSHED = 0x1p-125;

static double largest_value(const matrix *x, int32_t i, float *decoded)
{
    double largest = 0;
    mm2_weight_values(&x->w, i, 0, x->w.n_in, decoded);
    for (int32_t j = 0; j < x->w.n_in; j++)
        largest = fmax(largest, fabs(decoded[j]));
    return largest;
}

static void check_products(const mm2_kernels *k, int exact, int kind, double slack)
{
    enum { ROWS = 3, COUNT = 18 };
    for (int32_t t = 0; t < 4 * MATMUL_DTYPES; t++) {
        int32_t dtype = matmul_dtypes[t / 4], act = act_of(exact, dtype);
        int32_t n_in = mm2_dtype_block(dtype) == 1 ? 1003 : 1024;
        int plain = exact || act == MM2_ACT_F32 || act == MM2_ACT_BF16;
        matrix x = matrix_new(dtype, COUNT + 2, n_in, kind);
        void *acts[ROWS];
        float *decoded = malloc((size_t)n_in * 4);
        assert_non_null(decoded);
        for (int32_t m = 0; m < ROWS; m++)
            acts[m] = act_new(act, n_in, kind);
        multiply(k, exact, &result, &x.w, 2, COUNT, acts, ROWS);
        for (int32_t i = 0; i < COUNT; i++) {
            double largest = largest_value(&x, i + 2, decoded);
            for (int32_t m = 0; m < ROWS; m++) {
                double sum = 0, size = 0, flushed = 0;
                for (int32_t j = 0; j < n_in; j++) {
                    double a = act_value(act, acts[m], n_in, j);
                    sum += decoded[j] * a;
                    /* of a decoded block the two terms may be larger than their difference */
                    size += fabs(a) * (plain ? fabs(decoded[j]) : 4 * largest);
                    flushed += FLUSHED * fmax(1, largest) * fmax(1, fabs(a));
                }
                double bound = slack * 0x1p-24 * size + flushed;
                if (!(fabs(result.data[m][i] - sum) <= bound))
                    fail_msg("%s %s%s: %.9g, expected %.9g within %g", k->name,
                             exact ? "exact " : "", mm2_dtype_name(dtype), result.data[m][i], sum,
                             bound);
            }
        }
        free(decoded);
        for (int32_t m = 0; m < ROWS; m++)
            guarded_free(acts[m], act_size(act, n_in));
        matrix_free(&x);
    }
}

/* Roundings that a product of 1003 elements goes through at most: in lanes 63, 4 in the tree, 3 for
 * scales; in the tile order of BF16 16, the sum of two chains, 32 steps; FP8: 16, 1, 4, 8 blocks. */
static void test_ref_is_right(void **state)
{
    (void)state;
    for (int trial = 0; trial < 4; trial++)
        for (int kind = TAME; kind <= WILD; kind++)
            for (int exact = 0; exact < 2; exact++)
                check_products(&mm2_kernels_ref, exact, kind, 70);
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
    for (int32_t t = 0; t < MM2_DTYPE_COUNT; t++)
        assert_null(k->matmul_packed[t]); /* of another level, whose bits they are */
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++)
        assert_null(k->pack[kind]);
    for (int exact = 0; exact < 2; exact++)
        check_products(k, exact, TAME, 1100);
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

/* The 16 upper bits of the nearest float that has no others; ties to even; zeros behind the row. */
static void test_quantize_bf16(void **state)
{
    (void)state;
    for (int trial = 0; trial < 300; trial++) {
        int32_t n = 1 + (int32_t)(next() % 300);
        size_t bytes = act_size(MM2_ACT_BF16, n);
        float *x = guarded((size_t)n * 4);
        uint16_t *a = guarded(bytes), *b = guarded(bytes);
        for (int32_t i = 0; i < n; i++)
            x[i] = trial % 3 ? next_float(trial % KINDS) : mm2_bits_f32(next());
        x[0] = mm2_bits_f32(0x3f808000 | (next() & 0x10000)); /* half way */
        mm2_kernels_ref.quantize[MM2_ACT_BF16](a, x, n);
        for (int32_t i = 0; i < (int32_t)bytes / 2; i++) {
            double y = mm2_bf16_f32(a[i]), up = mm2_bf16_f32(a[i] + 1),
                   down = mm2_bf16_f32(a[i] - 1);
            if (i >= n)
                assert_int_equal(a[i], 0);
            else if (x[i] != x[i])
                assert_true(y != y);
            else if (fabsf(x[i]) > 1e-37f && fabsf(x[i]) < 3e38f)
                assert_true(fabs(y - x[i]) <= fabs(up - x[i]) &&
                            fabs(y - x[i]) <= fabs(down - x[i]));
        }
        assert_int_equal(a[0] & 1, 0);
        for (int l = 0; l < level_count; l++) {
            memset(b, 0x55, bytes);
            levels[l]->quantize[MM2_ACT_BF16](b, x, n);
            for (int32_t i = 0; i < (int32_t)bytes / 2; i++)
                assert_true(same_bits(mm2_bf16_f32(a[i]), mm2_bf16_f32(b[i])));
        }
        guarded_free(a, bytes);
        guarded_free(b, bytes);
        guarded_free(x, (size_t)n * 4);
    }
}

static void test_act_sizes(void **state)
{
    (void)state;
    assert_int_equal(mm2_act_bytes(MM2_ACT_F32, 3), 64);
    assert_int_equal(mm2_act_bytes(MM2_ACT_F32, 3072), 12288);
    assert_int_equal(mm2_act_bytes(MM2_ACT_BF16, 1), 256);
    assert_int_equal(mm2_act_bytes(MM2_ACT_BF16, 3072), 6144);
    assert_int_equal(mm2_act_bytes(MM2_ACT_BF16, 3073), 6144 + 256);
    assert_int_equal(mm2_act_bytes(MM2_ACT_Q8_32, 3072), 3072 + 96 * 4);
    assert_int_equal(mm2_act_bytes(MM2_ACT_Q8_256, 3072), 3072 + 12 * 4 + 192 * 2 + 16);
    assert_int_equal(mm2_act_of(MM2_F16), MM2_ACT_F32);
    assert_int_equal(mm2_act_of(MM2_BF16), MM2_ACT_BF16);
    assert_int_equal(mm2_act_of(MM2_F8_E4M3), MM2_ACT_BF16);
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

/* One row. */
static void attend(const mm2_kernels *k, attention *a, int32_t slot, const float *q, int32_t heads,
                   const kv_chunk *chunks, int32_t n, int32_t dim, float scale)
{
    for (int32_t h = 0; h < MAX_HEADS; h++) {
        a->m[h] = -INFINITY;
        a->l[h] = 0;
    }
    for (int32_t i = 0; i < MAX_HEADS * MAX_DIM + MARK; i++)
        a->o[i] = i < heads * dim ? 0 : mark;
    for (int32_t c = 0; c < n; c++)
        k->attend[slot](a->m, a->l, a->o, q, heads, 1, heads, chunks[c].k, chunks[c].v, chunks[c].n,
                        dim, scale);
    for (int32_t i = heads * dim; i < MAX_HEADS * MAX_DIM + MARK; i++)
        assert_true(a->o[i] == mark);
}

/* A key or value as attention reads it. */
static double key_of(int32_t slot, const kv_chunk *c, int32_t dim, int32_t j, int32_t d)
{
    double x = get_kv(slot, c->k, mm2_key_at(kv_dtypes[slot], dim, j, d));
    return slot == MM2_KV_INT8 ? x * *scale_of(c->k, mm2_key_scale_at(dim, j)) : x;
}

static double value_of(int32_t slot, const kv_chunk *c, int32_t dim, int32_t j, int32_t d)
{
    double x = get_kv(slot, c->v, mm2_value_at(kv_dtypes[slot], dim, j, d));
    return slot == MM2_KV_INT8 ? x * *scale_of(c->v, mm2_value_scale_at(dim, j)) : x;
}

/* Against double precision, by the cached keys and values: what is left are the roundings of float32,
 * of a BF16 cache also those of q (which are done here too) and p to bf16. Of an INT8 cache q and p * vs
 * are off by half a step of their integers: a score by at most e = sum |k| * max |q| * scale / 2 /
 * MM2_WIDE_TOP, so all probabilities by factors between exp(-2 e) and exp(2 e); and each weight by
 * max(p vs) / 2 / MM2_WIDE_TOP, times codes of at most 128. */
static void check_attention(const attention *a, int32_t slot, const float *q, int32_t heads,
                            const kv_chunk *chunks, int32_t n, int32_t dim, float scale)
{
    double bound = slot == MM2_KV_BF16 ? 0x1p-8 : 1e-5;
    for (int32_t h = 0; h < heads; h++)
        for (int32_t e = 0; e < dim; e++) {
            double largest = -INFINITY, sum = 0, out = 0, size = 0, amax = 0, off = 0, rest = 0;
            for (int32_t d = 0; d < dim; d++)
                amax = fmax(amax, fabs((double)q[h * dim + d]));
            for (int pass = 0; pass < 2; pass++)
                for (int32_t c = 0; c < n; c++) {
                    double top = 0;
                    for (int32_t j = 0; j < chunks[c].n; j++) {
                        double s = 0, keys = 0;
                        for (int32_t d = 0; d < dim; d++) {
                            float x = q[h * dim + d];
                            double key = key_of(slot, &chunks[c], dim, j, d);
                            s += (double)(slot == MM2_KV_BF16 ? rounded(x) : x) * key;
                            keys += fabs(key);
                        }
                        s *= scale;
                        if (pass == 0) {
                            largest = fmax(largest, s);
                            off = fmax(off, keys * amax * scale / 2 / MM2_WIDE_TOP);
                            continue;
                        }
                        double v = value_of(slot, &chunks[c], dim, j, e);
                        sum += exp(s - largest);
                        out += exp(s - largest) * v;
                        size += exp(s - largest) * fabs(v);
                        if (slot == MM2_KV_INT8)
                            top = fmax(top, exp(s - largest) *
                                                *scale_of(chunks[c].v, mm2_value_scale_at(dim, j)));
                    }
                    rest += 128 * chunks[c].n * top / 2 / MM2_WIDE_TOP;
                }
            if (slot == MM2_KV_INT8)
                bound = 1e-5 + expm1(2 * off);
            assert_true(fabs(a->o[h * dim + e] / a->l[h] - out / sum) <=
                        (bound * size + rest * exp(2 * off)) / sum);
        }
}

static void test_attention(void **state)
{
    (void)state;
    static const int32_t sizes[] = {1, 2, 15, 16, 17, 33, 100, 240, 255, 256};
    static const int32_t dims[] = {16, 32, 48, 64, 80, 128};
    static attention a, b;
    for (int trial = 0; trial < 180; trial++) {
        int32_t slot = trial % MM2_KV_KINDS, heads = 1 + (int32_t)(next() % MAX_HEADS);
        int32_t n = 1 + (int32_t)(next() % MAX_CHUNKS), kind = trial / MM2_KV_KINDS % KINDS;
        int32_t dim = pick(dims, 6);
        if (kind == TAME) { /* checked in double precision: keep it small */
            heads = 2;
            dim = 16 << next() % 2;
        }
        float scale = 1 / sqrtf((float)dim);
        size_t bytes = (size_t)(heads * dim) * 4;
        float *q = guarded(bytes);
        kv_chunk chunks[MAX_CHUNKS];
        for (int32_t i = 0; i < heads * dim; i++)
            q[i] = next_float(kind == BROKEN ? WILD : kind);
        for (int32_t c = 0; c < n; c++)
            chunks[c] = kv_new(slot, pick(sizes, 10), dim, kind);
        attend(&mm2_kernels_ref, &a, slot, q, heads, chunks, n, dim, scale);
        if (kind == TAME)
            check_attention(&a, slot, q, heads, chunks, n, dim, scale);
        for (int l = 0; l < level_count; l++) {
            attend(levels[l], &b, slot, q, heads, chunks, n, dim, scale);
            assert_same(b.m, a.m, heads, "attention: m");
            assert_same(b.l, a.l, heads, "attention: l");
            assert_same(b.o, a.o, heads * dim, "attention: o");
        }
        for (int32_t c = 0; c < n; c++)
            kv_free(&chunks[c]);
        guarded_free(q, bytes);
    }
}

static void test_attention_of_rows(void **state)
{
    (void)state;
    for (int trial = 0; trial < 120; trial++)
        attend_rows(levels, level_count, trial);
    attend_vanishing(levels, level_count);
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
            kv_chunk c = kv_new(0, 40, 16, TAME);
            ((float *)c.k)[j / 16 * 256 + j % 16] = NAN;
            attend(l < 0 ? &mm2_kernels_ref : levels[l], &a, 0, q, 1, &c, 1, 16, 1);
            assert_true(isnan(a.l[0]));
            kv_free(&c);
        }
}

/* What is not finite leaves a scale of NaN in an INT8 cache, where codes cannot show it, and in the
 * factors of a query. It is seen in l, or, of a value, in all of o, even where its probability is 0. A
 * value that the row does not see is not. */
static void test_int8_attention_reports_nan(void **state)
{
    (void)state;
    enum { DIM = 32, N = 40 };
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static attention a;
    for (int trial = 0; trial < 60; trial++)
        for (int l = -1; l < level_count; l++) {
            const mm2_kernels *k = l < 0 ? &mm2_kernels_ref : levels[l];
            float q[DIM], x[DIM];
            int8_t codes[DIM];
            int32_t j = trial * 7 % (N + 8), what = trial % 3;
            kv_chunk c = kv_new(MM2_KV_INT8, N, DIM, TAME);
            for (int32_t d = 0; d < DIM; d++)
                q[d] = x[d] = next_float(TAME);
            x[trial % DIM] = bad[next() % 3];
            float d = k->quantize_head(codes, x, DIM);
            assert_true(isnan(d));
            if (what == 0)
                *scale_of(c.k, mm2_key_scale_at(DIM, j)) = d;
            else if (what == 1)
                *scale_of(c.v, mm2_value_scale_at(DIM, j)) = d;
            else
                q[trial % DIM] = bad[next() % 3];
            if (what == 1 && trial % 2) /* out of sight of the softmax */
                *scale_of(c.k, mm2_key_scale_at(DIM, j)) *= -1e6f;
            attend(k, &a, MM2_KV_INT8, q, 1, &c, 1, DIM, 1);
            for (int32_t i = 0; i < DIM; i++)
                assert_true(isnan(a.o[i] / a.l[0]) == (what == 2 || j < N));
            kv_free(&c);
        }
}

static void test_hadamard(void **state)
{
    (void)state;
    for (int32_t n = 16; n <= MM2_HEAD_DIM_LIMIT; n += 16)
        for (int kind = 0; kind < KINDS; kind++) {
            size_t bytes = (size_t)n * 4;
            float *x = guarded(bytes), *a = guarded(bytes), *b = guarded(bytes);
            int32_t block = n & -n;
            for (int32_t i = 0; i < n; i++)
                a[i] = x[i] = next_float(kind);
            mm2_kernels_ref.hadamard(a, n);
            for (int32_t i = 0; i < n && kind == TAME; i++) { /* ref against the matrix */
                double sum = 0, size = 0;
                for (int32_t j = i / block * block; j < (i / block + 1) * block; j++) {
                    sum += __builtin_parity((unsigned)(i & j & (block - 1))) ? -x[j] : x[j];
                    size += fabs((double)x[j]);
                }
                assert_true(fabs(a[i] - sum) <= 10 * 0x1p-24 * size);
            }
            for (int l = 0; l < level_count; l++) {
                memcpy(b, x, bytes);
                levels[l]->hadamard(b, n);
                assert_same(b, a, n, "hadamard");
            }
            guarded_free(x, bytes);
            guarded_free(a, bytes);
            guarded_free(b, bytes);
        }
}

static void test_quantize_head(void **state)
{
    (void)state;
    for (int trial = 0; trial < 400; trial++) {
        int32_t n = 16 * (1 + (int32_t)(next() % 32)), kind = trial % KINDS;
        size_t bytes = (size_t)n * 4;
        float *x = guarded(bytes), wanted, found;
        int8_t *a = guarded((size_t)n), *b = guarded((size_t)n);
        for (int32_t i = 0; i < n; i++)
            x[i] = trial % 7 ? next_float(kind) : 1e-33f;
        wanted = mm2_kernels_ref.quantize_head(a, x, n);
        for (int l = 0; l < level_count; l++) {
            found = levels[l]->quantize_head(b, x, n);
            assert_true(same_bits(found, wanted));
            assert_memory_equal(b, a, (size_t)n);
        }
        for (int32_t i = 0; i < n && kind == TAME; i++)
            assert_true(fabsf(a[i] * wanted - x[i]) <= 0.5001f * wanted || wanted == 0);
        guarded_free(x, bytes);
        guarded_free(a, (size_t)n);
        guarded_free(b, (size_t)n);
    }
}

/* The largest sums that there are fit into int32: codes of one sign, the widest head, all positions. */
static void test_int8_attention_at_its_limits(void **state)
{
    (void)state;
    enum { DIM = MM2_INT8_DIM_LIMIT };
    for (int turn = 0; turn < 4; turn++) {
        kv_chunk c = kv_new(MM2_KV_INT8, MM2_CHUNK, DIM, TAME);
        float q[DIM], wanted[2 + DIM], found[2 + DIM];
        for (int32_t j = 0; j < MM2_CHUNK; j++) {
            *scale_of(c.k, mm2_key_scale_at(DIM, j)) = 1e-6f;
            *scale_of(c.v, mm2_value_scale_at(DIM, j)) = 1;
            for (int32_t d = 0; d < DIM; d++) {
                q[d] = turn % 2 ? -3.0f : 3.0f;
                put_kv(MM2_KV_INT8, c.k, mm2_key_at(MM2_INT8, DIM, j, d), turn < 2 ? -128 : 127);
                put_kv(MM2_KV_INT8, c.v, mm2_value_at(MM2_INT8, DIM, j, d), turn < 2 ? 127 : -128);
            }
        }
        for (int l = -1; l < level_count; l++) {
            const mm2_kernels *k = l < 0 ? &mm2_kernels_ref : levels[l];
            float *to = l < 0 ? wanted : found;
            memset(to, 0, sizeof found);
            to[0] = -INFINITY;
            k->attend[MM2_KV_INT8](to, to + 1, to + 2, q, 1, 1, 1, c.k, c.v, MM2_CHUNK, DIM, 1);
            assert_same(to, wanted, 2 + DIM, k->name);
        }
        double s = (turn < 2 ? -128.0 : 127.0) * (turn % 2 ? -3 : 3) * DIM * 1e-6;
        assert_true(fabs(wanted[0] - s) < 1e-4 * fabs(s));
        assert_true(fabs(wanted[2] / wanted[1] - (turn < 2 ? 127 : -128)) < 1e-3);
        kv_free(&c);
    }
}

/* Scores around -87.3 below the largest, where exp ends (seen through huge values); and scores that
 * are -0, which leave +0 in m whichever comes first. */
static void test_attention_edges(void **state)
{
    (void)state;
    static attention a, b;
    float q[16] = {1}, tiny[16];
    kv_chunk c = kv_new(0, 64, 16, TAME);
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
    kv_free(&c);
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
            for (int32_t i = 0; i < MM2_PEAK_BYTES / 2; i++) /* tame as bf16 and as float alike */
                ((uint16_t *)data)[i] = mm2_f32_bf16(next_float(TAME));
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
    assert_string_equal(best->name, cpu->amx      ? "amx"
                                    : cpu->avx512 ? "avx512"
                                    : cpu->avx2   ? "avx2"
                                                  : "ref");
    assert_ptr_equal(mm2_kernels_find(MM2_ISA_REF), &mm2_kernels_ref);
    assert_true((mm2_kernels_find(MM2_ISA_AVX2) != NULL) == (cpu->avx2 != 0));
    assert_true((mm2_kernels_find(MM2_ISA_AVX512) != NULL) == (cpu->avx512 != 0));
    assert_true((mm2_kernels_find(MM2_ISA_AMX) != NULL) == (cpu->amx != 0));

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

    assert_null(mm2_kernels_find(6));
    assert_non_null(strstr(mm2_status_text(), "isa is 6"));
    for (int l = 0; l < level_count; l++) {
        assert_int_equal(levels[l]->isa, mm2_kernels_find(levels[l]->isa)->isa);
        for (int32_t t = 0; t < MM2_DTYPE_COUNT; t++) {
            assert_true((levels[l]->matmul[t] != NULL) == (mm2_act_of(t) >= 0));
            assert_true((levels[l]->exact[t] != NULL) == (mm2_act_of(t) >= 0));
        }
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
        cmocka_unit_test(test_every_format_has_slots),
        cmocka_unit_test(test_act_sizes),
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_ref_is_right),
        cmocka_unit_test(test_rows_are_independent),
        cmocka_unit_test(test_matmul_bits),
        cmocka_unit_test(test_sign_of_zero),
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_quantize_bf16),
        cmocka_unit_test(test_elementwise),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_of_rows),
        cmocka_unit_test(test_attention_reports_nan),
        cmocka_unit_test(test_int8_attention_reports_nan),
        cmocka_unit_test(test_int8_attention_at_its_limits),
        cmocka_unit_test(test_hadamard),
        cmocka_unit_test(test_quantize_head),
        cmocka_unit_test(test_attention_edges),
        cmocka_unit_test(test_read_reads_all),
        cmocka_unit_test(test_peak_multiplies),
        cmocka_unit_test(test_blas_is_right),
    };
    return cmocka_run_group_tests(tests, find_levels, NULL);
}
