/* The matrix products of a vector level as slots of the table. */

#define SLOT(name, shape, dtype)                                                                   \
    static void name(float *const *out, const mm2_weight *w, int32_t first, int32_t count,         \
                     const void *const *acts, int32_t rows)                                        \
    {                                                                                              \
        shape(dtype, out, w, first, count, acts, rows);                                            \
    }
#define MATMUL_FLOAT(ID, name, ...) SLOT(matmul_##name, matmul_exact, MM2_##ID)
#define MATMUL_PAIR(ID, name, ...) SLOT(matmul_##name, matmul_bf16_acts, MM2_##ID)
#define MATMUL_INTEGER(ID, name, ...) SLOT(matmul_##name, matmul_integer, MM2_##ID)
#define EXACT(ID, name, ...) SLOT(exact_##name, matmul_exact, MM2_##ID)
MM2_FLOATS(MATMUL_FLOAT)
MM2_PAIRS(MATMUL_PAIR)
MM2_INTEGER_FORMATS(MATMUL_INTEGER)
MM2_PAIRS(EXACT)
MM2_BLOCKS(EXACT)
MM2_PLANES(EXACT)
MM2_SUPERS(EXACT)
SLOT(exact_codebook, matmul_exact, ANY_16)

static void fill_matmul(mm2_kernels *t)
{
#define FILL(ID, name, ...) t->matmul[MM2_##ID] = matmul_##name;
#define FILL_FLOAT(ID, name, ...) t->exact[MM2_##ID] = matmul_##name;
#define FILL_EXACT(ID, name, ...) t->exact[MM2_##ID] = exact_##name;
#define FILL_CODEBOOK(ID, ...) t->exact[MM2_##ID] = exact_codebook;
    MM2_PRODUCT_FORMATS(FILL)
    MM2_FLOATS(FILL_FLOAT)
    MM2_PAIRS(FILL_EXACT)
    MM2_BLOCKS(FILL_EXACT)
    MM2_PLANES(FILL_EXACT)
    MM2_SUPERS(FILL_EXACT)
    MM2_CODEBOOKS(FILL_CODEBOOK)
}
