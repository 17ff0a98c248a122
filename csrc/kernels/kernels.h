/* The kernels: one table of function pointers per instruction-set level, every slot with its
 * contract.
 *
 * Kernels are pure functions on pointers: they allocate nothing, start no threads, keep no state,
 * and trust their arguments (checked at load and by the public functions). They run with MXCSR at
 * round-to-nearest, FTZ and DAZ, which the pool and the pass see to.
 *
 * Bits. ref.c is the specification. All levels but blas give the same bits as ref.c, and no slot's
 * result for one row depends on the other rows of the call: every sum has one written order.
 *   lanes   sums of float products over an index k run in 16 lanes: lane j takes k = j, j + 16, ...
 *           ascending, one fused multiply-add each, starting from +0; k is padded with zeros up to
 *           a multiple of 16. The lanes are then added as a tree: j with j + 8, then + 4, + 2, + 1.
 *   tile    sums over k of products with bf16 activations run in steps of 32 k, in the order of the
 *           instruction TDPBF16PS: two chains, of the even and of the odd k of the step ascending,
 *           one fused multiply-add each, starting from +0; then t = even + odd. k is padded with
 *           zeros up to a multiple of 32.
 *   blocks  sums of integer products are exact in int32 within a block; blocks are added in
 *           ascending order with one fused multiply-add each into one float, starting from +0.
 * Error. Against the exact sum of w * a, decoded weights times the activations that are given: at
 * most r * 2^-24 * sum |w * a| (1 + tiny), r the most roundings that a product passes: lanes
 * ceil(n / 16) + 4, one more for a scale; tile 17 + ceil(n / 32), FP8 21 + ceil(n / 128); blocks 3
 * each, and there the sizes of both terms count for a weight that is their difference. And 2^-126
 * for each operation whose factor or result is flushed.
 * FMA is a single rounding everywhere (fmaf in ref.c). Sources are built with -ffp-contract=off.
 * The sign and payload of a NaN are not part of the promise; that there is one is. */
#ifndef MM2_KERNELS_H
#define MM2_KERNELS_H

#include "minimax2.h"

/* ---- Activations: what a matrix product takes on its input side. The weights' dtype decides which
 * one (mm2_act_of). ---- */
enum {
    MM2_ACT_F32 = 0,    /* float x[n]: F32 and F16 weights, and every dtype in exact[] */
    MM2_ACT_BF16 = 1,   /* uint16 x[n], then zeros up to a multiple of 128: BF16 and FP8 weights */
    MM2_ACT_Q8_32 = 2,  /* int8 per 32: BLOCKS and PLANES. int8 q[n], then float d[n / 32] */
    MM2_ACT_Q8_256 = 3, /* int8 per 256: K-quants, IQ4_XS. int8 q[n], float d[n / 256], int16 sums[n
                           / 16] of 16 codes each */
    MM2_ACT_KINDS = 4,
    MM2_ACT_NONE = -1 /* no matrix product takes such weights */
};

/* The kind that matmul[dtype] takes; MM2_ACT_NONE, -1, for I32 and unknown numbers. exact[dtype] takes
 * MM2_ACT_F32. */
int32_t mm2_act_of(int32_t dtype);
/* Bytes of one row of n activations, rounded up to 64. Rows begin 64-byte aligned. */
int64_t mm2_act_bytes(int32_t act, int64_t n);

/* Bytes of a panel of `rows` packed activations of n elements: those of its groups of 16 rows, each
 * a multiple of 64. 0 for MM2_ACT_F32, which nobody packs. */
int64_t mm2_panel_bytes(int32_t act, int32_t rows, int64_t n);

/* One weight matrix [n_out][n_in] as it lies in the file. */
typedef struct mm2_weight {
    const void *data;    /* row i begins at data + i * row_bytes; any alignment */
    const float *scale;  /* FP8: multiply the codes; NULL otherwise (FP8 too: 1.0) */
    int64_t row_bytes;   /* of a row's blocks: rows lie one after the other, without gaps */
    int32_t n_out, n_in; /* n_in a multiple of the dtype's block */
    int32_t dtype;
    int32_t scale_row; /* FP8: row of this matrix's row 0 within its first scale block (a slice of a
                          fused tensor), else 0 */
    /* FP8: rows with one scale. 128, or 0: a scale for 128 columns too, [ceil(n_out / 128)][ceil(n_in /
     * 128)]. Any other number: for whole rows, [ceil(n_out / scale_rows)]; INT32_MAX: one for all. */
    int32_t scale_rows;
    /* PLANES: the scales, n_in / group a row; row i's begin at spans + i * span_bytes, without gaps,
     * at any alignment. */
    const void *spans;
    int64_t span_bytes;
    int32_t span_dtype; /* F4_16: MM2_F8_E4M3; F4_32: MM2_U8, E8M0; I4, I8: MM2_F32, F16 or BF16 */
    int32_t group;      /* codes with one scale; F4_16: 16; F4_32: 32; I4, I8: a multiple of 32 */
    /* I4, I8: zero points, unsigned, as compressed-tensors packs them: int32 [..][n_in / group]. A word
     * has those of 8 (I8: 4) rows, the first one in its lowest bits. NULL: 8 (128). */
    const void *zeros;
    int32_t
        zeros_first; /* the row of its first word, below 8 (4), in which this matrix's row 0 is */
    float global;    /* F4_16, NVFP4: multiplies all scales; 1 where there is none */
    int32_t global_divides; /* F4_16: or does it divide them? */
} mm2_weight;

/* What the codes from k on of a row are multiplied with: of FP8 the scale, of PLANES and NVFP4 d_w
 * (below). */
float mm2_weight_scale(const mm2_weight *w, int64_t row, int32_t k);
/* I4, I8: what is to be subtracted from the unsigned codes there. */
int32_t mm2_weight_zero(const mm2_weight *w, int64_t row, int32_t k);
/* Elements [begin, begin + n) of a row as float32, all scales included; both multiples of the dtype's
 * block. */
void mm2_weight_values(const mm2_weight *w, int64_t row, int32_t begin, int32_t n, float *out);

typedef void mm2_matmul(float *const *out, const mm2_weight *w, int32_t first, int32_t count,
                        const void *const *acts, int32_t rows);

/* ---- Keys and values: chunks of MM2_CHUNK positions of one head ---- */
enum { MM2_CHUNK = 256, MM2_HEAD_DIM_LIMIT = 1024 };

/* What a cache may be made of; the slots of attention. -1: nothing else. */
enum { MM2_KV_F32 = 0, MM2_KV_BF16 = 1, MM2_KV_INT8 = 2, MM2_KV_KINDS = 3 };
static inline int32_t mm2_kv_of(int32_t dtype)
{
    return dtype == MM2_F32    ? MM2_KV_F32
           : dtype == MM2_BF16 ? MM2_KV_BF16
           : dtype == MM2_INT8 ? MM2_KV_INT8
                               : -1;
}
/* Bytes of a chunk's keys, and of its values: as many. */
static inline int64_t mm2_kv_bytes(int32_t dtype, int32_t head_dim)
{
    int32_t width = dtype == MM2_F32 ? 4 : dtype == MM2_BF16 ? 2 : 1;
    return (int64_t)MM2_CHUNK * (head_dim * width + (dtype == MM2_INT8 ? 4 : 0));
}

/* Where in a chunk element d of position j lies. Keys have tiles of 16 positions:
 *   F32    [16 tiles][head_dim][16]
 *   BF16   [16 tiles][head_dim / 2][16][2]
 *   INT8   [16 tiles], each of codes [head_dim / 4][16][4], then the positions' float scales [16]
 */
static inline int64_t mm2_key_at(int32_t dtype, int32_t head_dim, int32_t j, int32_t d)
{
    int64_t tile = (int64_t)(j / 16) * 16 * head_dim;
    return dtype == MM2_F32    ? tile + d * 16 + j % 16
           : dtype == MM2_BF16 ? tile + d / 2 * 32 + j % 16 * 2 + d % 2
                               : tile + j / 16 * 64 + d / 4 * 64 + j % 16 * 4 + d % 4;
}

/* Values:
 *   F32    [256][head_dim]
 *   BF16   [head_dim / 16][128 pairs of positions][16][2]
 *   INT8   [4 groups of 64 positions], each of codes [head_dim / 16][16 quads of positions][16][4],
 *          then the positions' float scales [64] */
static inline int64_t mm2_value_at(int32_t dtype, int32_t head_dim, int32_t j, int32_t d)
{
    return dtype == MM2_F32    ? (int64_t)j * head_dim + d
           : dtype == MM2_BF16 ? d / 16 * 16 * MM2_CHUNK + j / 2 * 32 + d % 16 * 2 + j % 2
                               : (int64_t)(j / 64) * (64 * head_dim + 256) + d / 16 * 1024 +
                                     j % 64 / 4 * 64 + d % 16 * 4 + j % 4;
}

/* INT8: bytes in front of the scale of position j. */
static inline int64_t mm2_key_scale_at(int32_t head_dim, int32_t j)
{
    return (int64_t)(j / 16) * (16 * head_dim + 64) + 16 * head_dim + j % 16 * 4;
}

static inline int64_t mm2_value_scale_at(int32_t head_dim, int32_t j)
{
    return (int64_t)(j / 64) * (64 * head_dim + 256) + 64 * head_dim + j % 64 * 4;
}

/* INT8: codes of queries and of probabilities are at most 127 * 256, so that two signed bytes make one:
 * 256 * high + low. With it a sum over MM2_INT8_DIM_LIMIT elements of 127 or -128 fits into int32. */
enum { MM2_WIDE_TOP = 32512, MM2_INT8_DIM_LIMIT = 512 };

/* What multiplies: the data of a peak measurement. */
enum { MM2_PEAK_INT8 = 0, MM2_PEAK_BF16 = 1, MM2_PEAK_F32 = 2, MM2_PEAK_KINDS = 3 };
enum { MM2_PEAK_BYTES = 16384, MM2_READ_STEP = 256 };

typedef struct mm2_kernels {
    const char *name; /* "ref", "avx2", "avx512", "amx", "blas" */
    int32_t isa;      /* MM2_ISA_* */

    /* out[m][i] = sum over k of weight[first + i][k] * act[m][k], i in [0, count), m in [0, rows).
     * acts: `rows` pointers to activations of the kind mm2_act_of(w->dtype); out: `rows` pointers
     * to `count` floats each.
     *   F32, F16         lanes over all of k.
     *   BF16             tile: y = y + t for every step, ascending, from +0.
     *   FP8              tile, by blocks of 128 k that share a scale. Step s = 0..3 of a block takes
     *                    k = 8 p + 2 s and 8 p + 2 s + 1 for p = 0..15: the s-th word of each of its
     *                    qwords. c = c + t from +0, s ascending; y = fma(scale, c, y) from +0,
     *                    blocks ascending. The last block is padded with zeros.
     *   BLOCKS, PLANES   per span of 32 codes, or of the 16 that have a scale: isum = sum of q * a;
     *                    y = fma(d_w * d_a, (float)isum, y); formats with minima also have asum = sum
     *                    of a; then y = fma(m_w * d_a, (float)asum, y).
     *   K-quants, IQ4_XS per super-block of 256: isum = sum over sub-blocks of scale * sum of q * a
     *                    (int32); y = fma(d_w * d_a, (float)isum, y); formats with minima also have
     *                    msum = sum of min * sums; then y = fma(-(dmin_w * d_a), (float)msum, y).
     * q is the signed code: Q4_0 nibble - 8; Q5_0 - 16; Q3_K - 4; Q6_K - 32; Q2_K, Q4_K, Q5_K,
     * Q4_1, Q5_1 unsigned; Q1_0 -1 or 1; I4, I8 less the zero point; E2M1 (MXFP4, NVFP4,
     * F4_16, F4_32) twice its value. d_w, dmin_w, m_w: the half floats as float32; FP8 without scale:
     * scale = 1. MXFP4 mm2_mxfp4_scale; F4_32 the same, but infinity for e = 255; NVFP4
     * mm2_nvfp4_scale * global; F4_16 s * (global / 2), or s / (2 * global); I4, I8 the scale. */
    mm2_matmul *matmul[MM2_DTYPE_COUNT];

    /* The same product, as exactly as float32 sums have it: every weight as mm2_weight_values gives it
     * (BLOCKS and PLANES: q * d_w + m_w), acts of MM2_ACT_F32.
     *   FP8              for each 128 k: lanes without the tree give t[16], from +0;
     *                    total[j] = fma(t[j], scale, total[j]), blocks ascending; one tree at
     *                    the end.
     *   all others       lanes over all of k. F32 and F16: the slot of `matmul`. */
    mm2_matmul *exact[MM2_DTYPE_COUNT];

    /* Products of many activation rows take these from a panel: the kernel's own arrangement of
     * whole groups of 16 rows, zeros beyond the last row. pack makes it from `rows` activations of n
     * elements, as quantize leaves them; panel is 64-byte aligned, mm2_panel_bytes long. The panel
     * of the rows from 16 g on begins mm2_panel_bytes(act, 16, n) * g behind it. matmul_packed gives
     * the bits of matmul. pack is NULL where a level has none, matmul_packed where it is not faster
     * than matmul; worth it from packed_rows[kind] rows on. */
    void (*pack[MM2_ACT_KINDS])(void *panel, const void *const *acts, int32_t rows, int32_t n);
    void (*matmul_packed[MM2_DTYPE_COUNT])(float *const *out, const mm2_weight *w, int32_t first,
                                           int32_t count, const void *panel, int32_t rows);
    int32_t packed_rows[MM2_ACT_KINDS];

    /* Float rows to quantised activations. Per block: amax = the float whose bits are the largest
     * of the absolute bit patterns. amax not finite: d = NaN, q = 0. amax < 1e-30: d = 0, q = 0.
     * Else d = amax / 127, q = rint(x * (127 / amax)). Slot MM2_ACT_F32 is NULL: pass the
     * floats. */
    void (*quantize[MM2_ACT_KINDS])(void *act, const float *x, int32_t n);

    /* out = (x * r) * w, r = 1 / sqrt(sum(x^2) / n + eps), the sum in lanes. out may be x. */
    void (*rms_norm)(float *out, const float *x, const float *w, int32_t n, float eps);
    /* In place on one head, for i < half: x[i], x[i + half] become
     * fma(x[i], c, -(x[i + half] * s)), fma(x[i], s, x[i + half] * c). */
    void (*rope)(float *x, const float *cosine, const float *sine, int32_t half);
    /* out[i] = silu(gate[i]) * up[i], silu(x) = x / (1 + exp(-x)), exp as in mm2_exp (ref.c). out
     * may be gate. */
    void (*swiglu)(float *out, const float *gate, const float *up, int32_t n);
    /* out[i] = 1 / (1 + exp(-x[i])). */
    void (*sigmoid)(float *out, const float *x, int32_t n);
    /* y[i] = fma(a, x[i], y[i]). */
    void (*axpy)(float *y, float a, const float *x, int32_t n);

    /* In place on one head: each block of 2^b elements, the largest that n is a multiple of, times the
     * Hadamard matrix of that size, which is its own inverse but for a factor of 2^b. For distances
     * of half a block, then half of that, ..., 1: elements x and y at that distance become x + y
     * and x - y. n is a multiple of 16, at most MM2_HEAD_DIM_LIMIT. */
    void (*hadamard)(float *x, int32_t n);
    /* One block of n elements, as `quantize` makes its blocks: codes to q; returns d. n is a
     * multiple of 16. */
    float (*quantize_head)(int8_t *q, const float *x, int32_t n);

    /* Attention of query rows at consecutive positions, `heads` heads of each that share one KV head,
     * to one chunk of 256 cached positions, merged into running results. Row r sees the first
     * min(n + r, 256) positions of the chunk, n >= 1; its q [heads][head_dim], m, l and o begin r *
     * stride heads further on than row 0's. head_dim is a multiple of 16. State per head: m (largest
     * score, -INFINITY at first), l (sum, 0), o [head_dim] (0). Keys and values are of the slot's kind
     * and lie as mm2_key_at and mm2_value_at say. For each head, n being what its row sees:
     *   s[j] = scale * sum over d of q[d] * k[d][j]
     *   c = max s, NaN left out, +0 for -0;  p[j] = exp(s[j] - c)
     *   lc = sum of p in lanes (plain adds) and tree
     *   oc[d] = sum over j of p[j] * v[j][d]
     *   M = max(m, c);  a = exp(m - M);  b = exp(c - M);  m = M
     *   l = fma(lc, b, l * a);  o[d] = fma(oc[d], b, o[d] * a)
     * The two sums of products, over an ascending index:
     *   MM2_F32    one chain of fused multiply-adds, from +0
     *   MM2_BF16   q and the p of the second sum are rounded to bf16; tile, its last step as long as
     *              head_dim or n leaves it; and a sum of -0 is +0.
     *   MM2_INT8   exact in int32, of codes: head_dim is at most MM2_INT8_DIM_LIMIT, k and v are
     *              codes, ks and vs their scales, never negative.
     *              A = the float whose bits are the largest of the absolute bit patterns of q;
     *              Q[d] = rint(q[d] * (MM2_WIDE_TOP / A)), f = (A / MM2_WIDE_TOP) * scale
     *              s[j] = ((float)(sum over d of Q[d] * k[d][j]) * ks[j]) * f
     *              t[j] = p[j] * vs[j];  T = the t with the largest absolute bit pattern, without
     *              its sign;  P[j] = rint(t[j] * (MM2_WIDE_TOP / T))
     *              oc[d] = (float)(sum over j of P[j] * v[j][d]) * (T / MM2_WIDE_TOP)
     *              Where A or T is below 1e-30, the codes are 0, and so is f; where it is not finite
     *              they are 0 too, and f, or oc, NaN.
     * Positions that a row does not see may hold anything, NaN included, and do not count. A NaN
     * score makes l NaN; in MM2_INT8 a NaN scale of a value makes all of o NaN. */
    void (*attend[MM2_KV_KINDS])(float *m, float *l, float *o, const float *q, int32_t stride,
                                 int32_t rows, int32_t heads, const void *k, const void *v,
                                 int32_t n, int32_t head_dim, float scale);

    /* The machine's limits, for model/limits.c. Both return a checksum, so that no compiler can
     * leave work out.
     * read: the n bytes at p, 64-byte aligned, n a multiple of MM2_READ_STEP, by the widest loads;
     * with each line, the one `ahead1` bytes further is prefetched into the first-level cache and
     * the one `ahead2` bytes further into the second-level one (0: not), beyond the end too. */
    uint64_t (*read)(const uint8_t *p, int64_t n, int32_t ahead1, int32_t ahead2);
    /* peak: `rounds` passes of multiply-adds over MM2_PEAK_BYTES at `data`, 64-byte aligned, int8,
     * bf16 or float32 by the slot; *ops: how many operations that was, 2 a multiply-add. NULL: the
     * level multiplies such data as float32. */
    uint64_t (*peak[MM2_PEAK_KINDS])(const void *data, int32_t rounds, int64_t *ops);
} mm2_kernels;

/* The table for MM2_ISA_*; AUTO reads the MM2_ISA environment variable (the name of a table, or
 * "auto"), then takes the best. NULL, with a sentence, if the processor or the build has no such
 * level or the variable holds an unknown name. Immutable, never freed; thread-safe. */
const mm2_kernels *mm2_kernels_find(int32_t isa);

extern const mm2_kernels mm2_kernels_ref;
/* Each fills the slots it has over a copy of a lower table; dispatch.c calls them. */
void mm2_kernels_avx2(mm2_kernels *t);
void mm2_kernels_avx512(mm2_kernels *t);
void mm2_kernels_amx(mm2_kernels *t);
int mm2_kernels_blas(mm2_kernels *t); /* -1, with a sentence, if no OpenBLAS can be loaded */

/* exp(x) with at most 2 ulp error: fmaf polynomial, 0 below -87.3, inf above 88.7, NaN kept. The
 * scalar twin of the vector code. */
float mm2_exp(float x);

#endif
