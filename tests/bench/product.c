/* One matrix product of the kernels, for compare_products.py, which compiles this file together
 * with the library's objects (the library itself shows its public functions only) and calls it
 * through ctypes. Weights are random, as a file has them; activations are prepared beforehand;
 * a call is cut into tiles of output rows as the forward pass cuts it. One thread, the caller's. */
#include "base/pool.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "tensor/dtype.h"

#include <stdlib.h>
#include <string.h>

enum { TILE = 128, FP8_BLOCK = 128 };

typedef struct product {
    const mm2_kernels *kernels;
    mm2_weight weight;
    int32_t rows;
    uint8_t *codes; /* the weights */
    float *scale, *x, *out;
    char *acts;        /* x as the format wants it */
    const void **act;  /* [rows] into acts */
    float **out_tiles; /* [rows] into out */
} product;

const char *product_error(void);
void product_free(product *p);
product *product_new(int32_t isa, int32_t dtype, int32_t rows, int32_t n_out, int32_t n_in);
double product_run(product *p);

const char *product_error(void)
{
    return mm2_status_text();
}

void product_free(product *p)
{
    if (!p)
        return;
    free(p->codes);
    free(p->scale);
    free(p->x);
    free(p->out);
    free(p->acts);
    free(p->act);
    free(p->out_tiles);
    free(p);
}

static void *aligned(int64_t bytes)
{
    return aligned_alloc(64, (size_t)(bytes + 63) / 64 * 64);
}

static int allocate(product *p, int64_t act_bytes)
{
    int64_t rows = p->rows, n_out = p->weight.n_out, n_in = p->weight.n_in;
    int64_t blocks = (n_out / FP8_BLOCK + 1) * (n_in / FP8_BLOCK + 1);
    p->codes = aligned(n_out * p->weight.row_bytes + 8);
    p->scale = aligned(blocks * 4);
    p->x = aligned(n_in * 4);
    p->out = aligned(rows * TILE * 4);
    p->acts = aligned(rows * act_bytes);
    p->act = aligned(rows * (int64_t)sizeof *p->act);
    p->out_tiles = aligned(rows * (int64_t)sizeof *p->out_tiles);
    for (int64_t i = 0; p->scale && i < blocks; i++)
        p->scale[i] = 1.0f;
    return p->codes && p->scale && p->x && p->out && p->acts && p->act && p->out_tiles;
}

/* Random bits that are finite as f32, f16 and bf16. */
static uint64_t draw(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    *state = x;
    return x & 0xbfffbfffbfffbfffu;
}

/* NULL, with a sentence in product_error(), if there is no such level, product or memory. */
product *product_new(int32_t isa, int32_t dtype, int32_t rows, int32_t n_out, int32_t n_in)
{
    const mm2_kernels *kernels = mm2_kernels_find(isa);
    int32_t kind = mm2_act_of(dtype);
    if (!kernels)
        return NULL;
    if (kind < 0 || rows < 1 || mm2_dtype_row_bytes(dtype, n_in) < 0) {
        mm2_fail(MM2_E_ARG, "no product of dtype %d, %d rows and %d columns", dtype, rows, n_in);
        return NULL;
    }
    int64_t act_bytes = mm2_act_bytes(kind, n_in);
    product *p = calloc(1, sizeof *p);
    if (p) {
        p->kernels = kernels;
        p->rows = rows;
        p->weight = (mm2_weight){.row_bytes = mm2_dtype_row_bytes(dtype, n_in),
                                 .n_out = n_out,
                                 .n_in = n_in,
                                 .dtype = dtype,
                                 .global = 1};
    }
    if (!p || !allocate(p, act_bytes)) {
        product_free(p);
        mm2_fail(MM2_E_NOMEM, "out of memory");
        return NULL;
    }
    p->weight.data = p->codes;
    p->weight.scale = dtype == MM2_F8_E4M3 ? p->scale : NULL;
    uint64_t state = 88172645463325252u;
    for (int64_t i = 0; i < n_out * p->weight.row_bytes; i += 8) {
        uint64_t bits = draw(&state);
        memcpy(p->codes + i, &bits, 8);
    }
    for (int32_t r = 0; r < rows; r++) {
        char *act = p->acts + r * act_bytes;
        for (int32_t i = 0; i < n_in; i++)
            p->x[i] = (float)(int8_t)draw(&state) / 50;
        if (kernels->quantize[kind])
            kernels->quantize[kind](act, p->x, n_in);
        else
            memcpy(act, p->x, (size_t)n_in * sizeof *p->x);
        p->act[r] = act;
        p->out_tiles[r] = p->out + (int64_t)r * TILE;
    }
    return p;
}

/* Seconds of one product. */
double product_run(product *p)
{
    uint32_t mode = mm2_float_mode_enter();
    int64_t start = mm2_now();
    for (int32_t first = 0; first < p->weight.n_out; first += TILE) {
        int32_t count = p->weight.n_out - first < TILE ? p->weight.n_out - first : TILE;
        p->kernels->matmul[p->weight.dtype](p->out_tiles, &p->weight, first, count, p->act,
                                            p->rows);
    }
    double seconds = (double)(mm2_now() - start) * 1e-9;
    mm2_float_mode_leave(mode);
    return seconds;
}
