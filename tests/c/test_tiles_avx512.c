/* The amx level: do its packed products give the bits of ref.c's matmul, whatever the sizes, the data
 * and the slice of the matrix, and its attention those of ref.c?
 *
 * The level is compiled a second time here, on emulated tiles, so that it is tested on any
 * processor with AVX-512; where there are tiles, the real one is tested as well. Buffers end at a
 * page that cannot be touched. */
#include "tiles_emulated.h"

#define mm2_kernels_amx emulated_amx
#include "../../csrc/kernels/level_amx.c"
#undef mm2_kernels_amx

#include "attention_data.h"
#include "kernel_data.h"

#include "base/cpu.h"
#include "base/pool.h"
#include "base/status.h"
#include "model/model.h"

enum { LEVELS = 2, WIDEST = 300 };

static mm2_kernels emulated;
static const mm2_kernels *levels[LEVELS];
static int level_count;

static int find_levels(void **state)
{
    (void)state;
    mm2_float_mode_enter();
    emulated = mm2_kernels_ref;
    emulated.name = "emulated";
    emulated_amx(&emulated);
    levels[level_count++] = &emulated;
    const mm2_kernels *real = mm2_kernels_find(MM2_ISA_AMX);
    if (real)
        levels[level_count++] = real;
    else
        print_message("only emulated: %s\n", mm2_status_text());
    return 0;
}

/* ---- One product ---- */

typedef struct problem {
    matrix x;
    int32_t first, count, rows, act;
    void *acts[WIDEST];
    float *expected; /* [rows][count] */
} problem;

static problem problem_new(int32_t dtype, int32_t n_in, int32_t first, int32_t count, int32_t rows,
                           int kind)
{
    problem p = {
        matrix_new(dtype, first + count, n_in, kind), first, count, rows, mm2_act_of(dtype), {NULL},
        malloc((size_t)(rows * count) * 4 + 1)};
    assert_non_null(p.expected);
    assert_true(rows <= WIDEST);
    for (int32_t m = 0; m < rows; m++)
        p.acts[m] = act_new(p.act, n_in, kind);
    return p;
}

/* Fills `expected`: after the test has changed the data. */
static void solve(problem *p)
{
    float *out[WIDEST];
    for (int32_t m = 0; m < p->rows; m++)
        out[m] = p->expected + m * p->count;
    mm2_kernels_ref.matmul[p->x.w.dtype](out, &p->x.w, p->first, p->count,
                                         (const void *const *)p->acts, p->rows);
}

static void check(const problem *p)
{
    const mm2_weight *w = &p->x.w;
    float *out[WIDEST];
    size_t bytes = (size_t)p->count * 4;
    size_t panel_bytes = (size_t)mm2_panel_bytes(p->act, p->rows, w->n_in);
    assert_int_equal(panel_bytes % 64, 0);
    for (int l = 0; l < level_count; l++) {
        uint8_t *panel = guarded(panel_bytes);
        memset(panel, 0xa5, panel_bytes);
        levels[l]->pack[p->act](panel, (const void *const *)p->acts, p->rows, w->n_in);
        for (int32_t m = 0; m < p->rows; m++)
            out[m] = guarded(bytes);
        levels[l]->matmul_packed[w->dtype](out, w, p->first, p->count, panel, p->rows);
        assert_false(tiles.configured);
        for (int32_t m = 0; m < p->rows; m++) {
            char what[160];
            snprintf(what, sizeof what, "%s %s n_in %d first %d count %d row %d of %d",
                     levels[l]->name, mm2_dtype_name(w->dtype), w->n_in, p->first, p->count, m,
                     p->rows);
            assert_same(out[m], p->expected + m * p->count, p->count, what);
            guarded_free(out[m], bytes);
        }
        guarded_free(panel, panel_bytes);
    }
}

static void problem_free(problem *p)
{
    for (int32_t m = 0; m < p->rows; m++)
        guarded_free(p->acts[m], act_size(p->act, p->x.w.n_in));
    matrix_free(&p->x);
    free(p->expected);
}

/* ---- Tests ---- */

/* Sanitizers look for what is read and written, which a part of the values shows: emulated tiles are
 * slow under them. */
#ifdef __SANITIZE_ADDRESS__
enum { THIN = 5 };
#else
enum { THIN = 1 };
#endif

static int is_packed(int32_t dtype)
{
    return emulated.matmul_packed[dtype] != NULL;
}

static void test_slots(void **state)
{
    (void)state;
    for (int32_t dtype = 0; dtype < MM2_DTYPE_COUNT; dtype++) {
        int32_t act = mm2_act_of(dtype);
        int packed = act >= 0 && act != MM2_ACT_F32;
        int pays = packed && (act != MM2_ACT_Q8_32 || mm2_format_of(dtype).span == 32);
        assert_int_equal(emulated.matmul_packed[dtype] != NULL, pays);
        if (act < 0)
            continue;
        assert_int_equal(emulated.packed_rows[act] > 0, packed);
        assert_int_equal(emulated.pack[act] != NULL, packed);
    }
    assert_int_equal(mm2_panel_bytes(MM2_ACT_F32, 16, 256), 0);
    assert_int_equal(mm2_panel_bytes(MM2_ACT_BF16, 17, 129), 2 * 16 * 512);
}

static void test_bits(void **state)
{
    (void)state;
    static const int32_t counts[] = {1, 2, 15, 16, 17, 31, 32, 33, 40, 64, 65, 100};
    static const int32_t row_counts[] = {1, 2, 5, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 70};
    for (int32_t t = 0; t < MATMUL_DTYPES; t++)
        for (int trial = 0; trial < 48 / THIN && is_packed(matmul_dtypes[t]); trial++) {
            problem p =
                problem_new(matmul_dtypes[t], pick_width(matmul_dtypes[t]), (int32_t)(next() % 40),
                            pick(counts, 12), pick(row_counts, 14), trial % KINDS);
            solve(&p);
            check(&p);
            problem_free(&p);
        }
}

/* More rows than share a chunk. */
static void test_many_rows(void **state)
{
    (void)state;
    static const int32_t row_counts[] = {256, 257, 272, 273, 300};
    for (int32_t t = 0; t < MATMUL_DTYPES; t++)
        for (int i = 0; i < 5 / THIN && is_packed(matmul_dtypes[t]); i++) {
            int32_t n_in = mm2_dtype_block(matmul_dtypes[t]) == 1 ? 200 : 512;
            problem p = problem_new(matmul_dtypes[t], n_in, 1, 35, row_counts[i], TAME);
            solve(&p);
            check(&p);
            problem_free(&p);
        }
}

/* Activations of the size that makes integer sums largest, all of one sign or of the weights'. */
static void set_acts(problem *p, int pattern)
{
    int32_t n = p->x.w.n_in;
    for (int32_t m = 0; m < p->rows; m++) {
        int8_t *q = p->acts[m];
        for (int32_t k = 0; k < n; k++)
            q[k] = (int8_t)(pattern == 0   ? 127
                            : pattern == 1 ? -127
                            : pattern == 2 ? (k % 2 ? 127 : -127)
                                           : (int32_t)(next() % 255) - 127);
        if (p->act != MM2_ACT_Q8_256)
            continue;
        int16_t *sums = (int16_t *)((float *)(q + n) + n / 256);
        for (int32_t i = 0; i < n / 16; i++) {
            int32_t sum = 0;
            for (int32_t k = 0; k < 16; k++)
                sum += q[i * 16 + k];
            sums[i] = (int16_t)sum;
        }
    }
}

/* Every byte value through every field of the integer formats: blocks of one byte repeated, and of
 * two in turns. */
static void test_extreme_integers(void **state)
{
    (void)state;
    for (int32_t t = 0; t < MATMUL_DTYPES; t++) {
        int32_t dtype = matmul_dtypes[t], block = mm2_dtype_block(dtype);
        for (int byte = 0; byte < 256 && block > 1 && is_packed(dtype); byte += THIN) {
            problem p = problem_new(dtype, 256 + (block < 256 ? block : 0), 0, 18, 17, TAME);
            for (size_t i = 0; i < p.x.bytes; i++)
                p.x.data[i] = (uint8_t)(i / (size_t)p.x.w.row_bytes % 2 && i % 2 ? ~byte : byte);
            for (size_t i = 0; i < p.x.bytes && !mm2_is_plane(dtype);
                 i += (size_t)mm2_dtype_bytes(dtype))
                set_scales(dtype, p.x.data + i, TAME);
            set_acts(&p, byte % 4);
            solve(&p);
            check(&p);
            problem_free(&p);
        }
    }
}

static void test_attention(void **state)
{
    (void)state;
    for (int trial = 0; trial < 300 / THIN; trial++)
        if (trial % MM2_KV_KINDS != MM2_KV_F32) /* not one of tiles */
            attend_rows(levels, level_count, trial);
    attend_vanishing(levels, level_count);
}

static void test_sign_of_zero(void **state)
{
    (void)state;
    problem p = problem_new(MM2_F8_E4M3, 256, 0, 20, 5, TAME);
    set_vanishing(&p.x, (uint16_t *const *)p.acts, p.rows);
    solve(&p);
    check(&p);
    problem_free(&p);
}

/* Matrices of one format whose rows lie at distances and addresses that are no multiples of
 * anything: tiles are loaded from the file only where all of it is the matrix's. */
static void test_alignment(void **state)
{
    (void)state;
    for (int32_t t = 0; t < MATMUL_DTYPES; t++)
        for (int shift = 1; shift < 64 && is_packed(matmul_dtypes[t]); shift += 13) {
            int32_t n_in = mm2_dtype_block(matmul_dtypes[t]) == 1 ? 256 : 512;
            problem p = problem_new(matmul_dtypes[t], n_in, 2, 40, 33, TAME);
            solve(&p);
            size_t bytes = p.x.bytes + (size_t)shift;
            uint8_t *moved = guarded(bytes);
            memcpy(moved, p.x.data, p.x.bytes);
            p.x.w.data = moved;
            check(&p);
            guarded_free(moved, bytes);
            problem_free(&p);
        }
}

/* The pass packs what it multiplies: the logits of a prompt, whose experts get few rows and many,
 * with the emulated kernels and without. */
static void test_pass(void **state)
{
    (void)state;
    enum { PROMPT = 75 };
    mm2_model_options options = {.size = sizeof options};
    mm2_model *m;
    int32_t ids[PROMPT];
    float *expected = NULL;
    mm2_model_options_init(&options);
    options.threads = 2;
    options.isa = MM2_ISA_REF;
    assert_int_equal(mm2_model_open(&m, "../python/minimax2/m2-tiny", &options), MM2_OK);
    for (int32_t i = 0; i < PROMPT; i++)
        ids[i] = 17 * i % 4000;
    for (int turn = 0; turn < 2; turn++) {
        mm2_session *s;
        mm2_tensor logits;
        m->kernels = turn ? &emulated : m->kernels;
        assert_int_equal(mm2_session_new(&s, m, NULL), MM2_OK);
        assert_int_equal(mm2_session_feed(s, ids, PROMPT), MM2_OK);
        assert_int_equal(mm2_session_run(s, 0, NULL), MM2_OK);
        assert_int_equal(mm2_session_logits(s, &logits), MM2_OK);
        if (turn)
            assert_memory_equal(expected, logits.data, (size_t)logits.nbytes);
        else
            expected = malloc((size_t)logits.nbytes);
        assert_non_null(expected);
        memcpy(expected, logits.data, (size_t)logits.nbytes);
        mm2_session_free(s);
    }
    free(expected);
    mm2_model_release(m);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots),        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_many_rows),    cmocka_unit_test(test_extreme_integers),
        cmocka_unit_test(test_sign_of_zero), cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_attention),    cmocka_unit_test(test_pass),
    };
    if (!mm2_cpu_find()->avx512) {
        print_message("skipped: the emulation of tiles needs AVX-512; this is %s\n", mm2_cpu());
        return 0;
    }
    return cmocka_run_group_tests(tests, find_levels, NULL);
}
