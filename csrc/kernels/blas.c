/* The blas level: matrix products by OpenBLAS on decoded float32 panels; all other slots are those
 * of the best native level. No bit promise: OpenBLAS adds in the order it likes.
 *
 * The library is loaded when the level is first asked for and stays loaded; nothing links to it.
 * Candidates: the path in the environment variable MINIMAX2_OPENBLAS alone if it is set; else the
 * path MM2_OPENBLAS given at build time, "libopenblas.so.0", "libopenblas.so". The symbol is
 * cblas_sgemm, or scipy_cblas_sgemm as the scipy-openblas32 wheel has it.
 *
 * Kernels allocate nothing, so panels live on the stack: 32 weight rows and 32 activation rows of
 * 256 elements each. A product of that size is below the threshold at which OpenBLAS starts its own
 * threads, so it keeps to the thread that calls it and its thread count is never touched. Every
 * panel of weights is decoded once for 32 activation rows. */
#include "kernels/kernels.h"

#include "base/status.h"
#include "tensor/quant.h"

#include <dlfcn.h>
#include <stdlib.h>

enum { ROWS = 32, SPAN = 256 };

typedef void (*sgemm_function)(int order, int transpose_a, int transpose_b, int m, int n, int k,
                               float alpha, const float *a, int lda, const float *b, int ldb,
                               float beta, float *c, int ldc);
enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112 };

/* Written once, under the lock of dispatch.c, before the table that uses it is handed out. */
static sgemm_function sgemm;

static int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* Elements [begin, begin + n) of one row of activations. */
static void decode_act(float *out, int32_t act, const void *row, int32_t n_in, int32_t begin,
                       int32_t n)
{
    if (act == MM2_ACT_F32) {
        memcpy(out, (const float *)row + begin, (size_t)n * sizeof *out);
        return;
    }
    if (act == MM2_ACT_BF16) {
        mm2_dequantize_row(MM2_BF16, (const uint16_t *)row + begin, out, n);
        return;
    }
    const int8_t *q = row;
    const float *d = (const float *)(q + n_in);
    int32_t block = act == MM2_ACT_Q8_32 ? 32 : MM2_SUPER;
    for (int32_t k = begin; k < begin + n; k++)
        out[k - begin] = d[k / block] * q[k];
}

static void product(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                    int32_t act, const void *const *acts, int32_t rows)
{
    _Alignas(64) float a[ROWS * SPAN], b[ROWS * SPAN], c[ROWS * ROWS];
    for (int32_t m0 = 0; m0 < rows; m0 += ROWS)
        for (int32_t i0 = 0; i0 < count; i0 += ROWS) {
            int32_t m_count = smaller(ROWS, rows - m0), i_count = smaller(ROWS, count - i0);
            for (int32_t begin = 0; begin < w->n_in; begin += SPAN) {
                int32_t n = smaller(SPAN, w->n_in - begin);
                for (int32_t m = 0; m < m_count; m++)
                    decode_act(a + m * SPAN, act, acts[m0 + m], w->n_in, begin, n);
                for (int32_t i = 0; i < i_count; i++)
                    mm2_weight_values(w, first + i0 + i, begin, n, b + i * SPAN);
                sgemm(ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, m_count, i_count, n, 1, a, SPAN, b, SPAN,
                      begin ? 1 : 0, c, ROWS);
            }
            for (int32_t m = 0; m < m_count; m++)
                memcpy(out[m0 + m] + i0, c + m * ROWS, (size_t)i_count * sizeof *c);
        }
}

static void matmul(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                   const void *const *acts, int32_t rows)
{
    product(out, w, first, count, mm2_act_of(w->dtype), acts, rows);
}

static void exact(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                  const void *const *acts, int32_t rows)
{
    product(out, w, first, count, MM2_ACT_F32, acts, rows);
}

static sgemm_function load_sgemm(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return NULL;
    void *symbol = dlsym(library, "cblas_sgemm");
    if (!symbol)
        symbol = dlsym(library, "scipy_cblas_sgemm");
    if (!symbol) {
        dlclose(library);
        return NULL;
    }
    sgemm_function function;
    memcpy(&function, &symbol, sizeof function);
    return function;
}

int mm2_kernels_blas(mm2_kernels *t)
{
    static const char *const candidates[] = {
#ifdef MM2_OPENBLAS
        MM2_OPENBLAS,
#endif
        "libopenblas.so.0", "libopenblas.so"};
    const char *chosen = getenv("MINIMAX2_OPENBLAS");
    if (chosen && *chosen) {
        sgemm = load_sgemm(chosen);
        if (!sgemm) {
            mm2_fail(MM2_E_UNSUPPORTED,
                     "the environment variable MINIMAX2_OPENBLAS names \"%s\", which cannot be "
                     "loaded or has no cblas_sgemm; name an OpenBLAS shared library",
                     chosen);
            return -1;
        }
    }
    for (size_t i = 0; !sgemm && i < sizeof candidates / sizeof *candidates; i++)
        sgemm = load_sgemm(candidates[i]);
    if (!sgemm) {
        mm2_fail(MM2_E_UNSUPPORTED,
                 "the blas kernels need OpenBLAS, and no libopenblas.so.0 was found; install "
                 "the package libopenblas0 of your system or `pip install scipy-openblas32`, or "
                 "set MINIMAX2_OPENBLAS to the path of the library");
        return -1;
    }
    for (int32_t dtype = 0; dtype < MM2_DTYPE_COUNT; dtype++) {
        if (t->matmul[dtype]) {
            t->matmul[dtype] = matmul;
            t->exact[dtype] = exact;
        }
        t->matmul_packed[dtype] = NULL;
    }
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++)
        t->pack[kind] = NULL;
    return 0;
}
