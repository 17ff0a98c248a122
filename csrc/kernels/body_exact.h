/* Matrix products of weights of any dtype, as float32, with float32 activations: what F32 and F16 take
 * always and every dtype with precision "exact". Included after body_float.h and body_int_panels.h.
 *
 * PANEL_ROWS rows x 256 elements become a panel of float32 that stays in the first-level cache, and
 * the tiles of body_float.h run over it; between panels the accumulators wait in memory. Blocks of
 * integer codes are unpacked as for integer products, then put back into rows and multiplied by
 * their scales in the order of tensor/quant.c, so that a panel holds its bits. One activation row
 * needs no panel: it takes the weights as they come. */

INLINE void widen_panel(int32_t dtype, float_panel panel, const mm2_weight *w, int32_t first,
                        int32_t count, int32_t i, int32_t begin, int32_t n)
{
    int32_t size = size_of(dtype);
    for (int r = 0; r < PANEL_ROWS; r++) {
        const uint8_t *p = weight_row(w, first, count, i + r) + (int64_t)begin * size;
        v16 b[4];
        int32_t k = 0;
        for (; k + 64 <= n; k += 64, p += 64 * size) {
            prefetch(p + PANEL_ROWS * w->row_bytes, 64 * size);
            widen64(dtype, p, b);
            for (int j = 0; j < 4; j++)
                v16_store(panel[k / 16 + j][r], b[j]);
        }
        if (k == n)
            continue;
        widen_rest(dtype, p, n - k, b);
        for (int j = 0; j < 4; j++)
            v16_store(panel[k / 16 + j][r], b[j]);
    }
}

/* Where decoded weights go: into a panel or, for one activation row, into the sums of their products
 * with it. */
typedef struct decoded {
    float (*panel)[PANEL_ROWS][16];
    const float *x;
    v16 sum[PANEL_ROWS];
} decoded;

/* Elements [16 i, 16 i + 16) of every row: scale * (code - zero) - min; without the latter where they
 * are NULL. paired: in_pairs. */
INLINE void decode_step(int one, int paired, decoded *out, int i, const words code[4], reals scale,
                        const reals *zero, const reals *min)
{
    _Alignas(64) uint8_t rows[PANEL_ROWS][16];
    float factor[PANEL_ROWS], middle[PANEL_ROWS], less[PANEL_ROWS];
    v16 x = one ? v16_load(out->x + i * 16) : v16_zero();
    untranspose4(rows, code);
    reals_store(factor, scale);
    if (zero)
        reals_store(middle, *zero);
    if (min)
        reals_store(less, *min);
#pragma GCC unroll 16
    for (int r = 0; r < PANEL_ROWS; r++) {
        const uint8_t *q = rows[r % 4 * (ROWS / 4) + r / 4]; /* as untranspose4 leaves them */
        v16 w = v16_codes(paired, (const int8_t *)q);
        w = zero ? v16_sub(w, v16_set1(middle[r])) : w;
        w = v16_mul(v16_set1(factor[r]), w);
        w = min ? v16_sub(w, v16_set1(less[r])) : w;
        if (one)
            out->sum[r] = v16_fma(w, x, out->sum[r]);
        else
            v16_store(out->panel[i][r], w);
    }
}

INLINE void decode_super(int32_t dtype, const mm2_weight *w, int one, decoded *out,
                         const uint8_t *p, int64_t stride)
{
    super_panel s;
    unpack_weight(dtype, w, &s, p, stride);
    for (int i = 0; i < 16; i++) {
        words scale = s.scale[is_wide(dtype) ? i / 2 * 2 : i]; /* may be there twice: scale_form */
        reals factor = reals_from_words(words_sar(words_shl(scale, 16), 16)), less;
        if (has_minima(dtype)) {
            words min = words_and(words_shr(s.min[i / 2], i % 2 * 16), words_set1(0xffff));
            less = reals_mul(s.dmin, reals_from_words(min));
        }
        decode_step(one, 0, out, i, s.code + i * 4, reals_mul(s.d, factor), NULL,
                    has_minima(dtype) ? &less : NULL);
    }
}

/* `pieces` pieces, from element `begin` of the rows from i on. */
INLINE void decode_pieces(int32_t dtype, int one, decoded *out, const mm2_weight *w, int32_t first,
                          int32_t count, int32_t i, int32_t begin, int32_t pieces, group g)
{
    piece_heads h;
    heads_of_pieces(dtype, &h, w, first, count, i, begin, pieces, g.p, g.stride);
    for (int32_t b = 0; b < pieces; b++) {
        words code[8];
        reals less = reals_zero();
        const reals *d = h.d + b * spans_of(dtype);
        codes_of_piece(dtype, code, b, g.p, g.stride);
        if (has_minima(dtype))
            less = reals_times(h.m[b], -1);
        for (int half = 0; half < 2; half++)
            decode_step(one, in_pairs(dtype), out, b * 2 + half, code + half * 4,
                        d[spans_of(dtype) == 2 ? half : 0], has_zeros(dtype, w) ? h.m + b : NULL,
                        has_minima(dtype) ? &less : NULL);
    }
}

/* n elements of integer formats: a super-block or up to 8 pieces. */
INLINE void decode_group(int32_t dtype, int one, decoded *out, const mm2_weight *w, int32_t first,
                         int32_t count, int32_t i, int32_t begin, int32_t n)
{
    uint8_t copy[PANEL_ROWS * 8 * sizeof(mm2_block_q8_0)];
    const int32_t block = mm2_format_of(dtype).elements, each = weight_block_bytes(dtype, w);
    int64_t offset = (int64_t)(begin / block) * each;
    int32_t bytes = n / block * each;
    group g = group_at(w, first, count, i, offset, bytes, copy);
    /* The next group, as one stream: its share of this piece of k, in the order of the file. */
    const uint8_t *here = (const uint8_t *)w->data + (first + i) * w->row_bytes;
    if (!i && !begin)
        prefetch(here, PANEL_ROWS * w->row_bytes);
    prefetch(here + PANEL_ROWS * (w->row_bytes + offset), (int64_t)PANEL_ROWS * bytes);
    if (mm2_is_super(dtype))
        decode_super(dtype, w, one, out, g.p, g.stride);
    else
        decode_pieces(dtype, one, out, w, first, count, i, begin, n / 32, g);
}

INLINE void matmul_decoded_one(int32_t dtype, float *out, const mm2_weight *w, int32_t first,
                               int32_t count, const float *x)
{
    for (int32_t i = 0; i < count; i += PANEL_ROWS) {
        decoded t = {NULL, x, {v16_zero()}};
        for (int32_t begin = 0; begin < w->n_in; begin += PANEL_SPAN, t.x += PANEL_SPAN)
            decode_group(dtype, 1, &t, w, first, count, i, begin,
                         smaller(PANEL_SPAN, w->n_in - begin));
        for (int32_t r = 0; r < smaller(PANEL_ROWS, count - i); r++)
            out[i + r] = v16_tree(t.sum[r]);
    }
}

INLINE void matmul_panels(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                          int32_t count, const void *const *acts, int32_t rows)
{
    _Alignas(64) float_panel panel;
    v16 sums[PANEL_ACTS][PANEL_ROWS];
    for (int32_t i = 0; i < count; i += PANEL_ROWS) {
        memset(sums, 0, (size_t)rows * sizeof sums[0]);
        for (int32_t begin = 0; begin < w->n_in; begin += PANEL_SPAN) {
            const float *scale[PANEL_ROWS];
            int32_t step = 0, n = smaller(PANEL_SPAN, w->n_in - begin), m = 0;
            for (int r = 0; r < PANEL_ROWS; r++)
                scale[r] = scale_row(w, first, count, i + r, &step) + begin / SCALE_SPAN * step;
            decoded target = {panel, NULL, {v16_zero()}};
            if (mm2_is_integer(dtype))
                decode_group(dtype, 0, &target, w, first, count, i, begin, n);
            else
                widen_panel(dtype, panel, w, first, count, i, begin, n);
            for (; m < rows; m += TILE_ACTS) {
                const float *x[TILE_ACTS];
                int together = smaller(TILE_ACTS, rows - m);
                for (int t = 0; t < together; t++)
                    x[t] = (const float *)acts[m + t] + begin;
                for (int32_t r = 0; r < PANEL_ROWS; r += TILE_ROWS) {
                    if (together == TILE_ACTS)
                        float_tile(dtype, TILE_ACTS, sums + m, panel, scale, step, r, x, n);
                    else if (together == 2)
                        float_tile(dtype, 2, sums + m, panel, scale, step, r, x, n);
                    else
                        float_tile(dtype, 1, sums + m, panel, scale, step, r, x, n);
                }
            }
        }
        for (int32_t m = 0; m < rows; m++)
            for (int32_t r = 0; r < smaller(PANEL_ROWS, count - i); r++)
                out[m][i + r] = v16_tree(sums[m][r]);
    }
}

INLINE void matmul_exact(int32_t dtype, float *const *out, const mm2_weight *w, int32_t first,
                         int32_t count, const void *const *acts, int32_t rows)
{
    if (rows == 1) {
        if (mm2_is_integer(dtype))
            matmul_decoded_one(dtype, out[0], w, first, count, acts[0]);
        else
            matmul_one(dtype, out[0], w, first, count, acts[0]);
        return;
    }
    for (int32_t m = 0; m < rows; m += PANEL_ACTS)
        matmul_panels(dtype, out + m, w, first, count, acts + m, smaller(PANEL_ACTS, rows - m));
}
