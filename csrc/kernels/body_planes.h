/* What PLANES have instead of blocks: codes of a row in one place, scales and zero points in others.
 * Included after body_unpack.h.
 *
 * Scales are read along a row, 16 at a time, and become floats, d_w of kernels.h; where lanes are rows
 * they are transposed afterwards. Rows of scales have no gaps: only the last ones of a matrix need
 * care not to be read beyond.
 *
 * Codes are multiplied less the middle of their range. What a zero point z is off from there is made
 * up for in the sum of a piece, isum - z * asum: all of it is below 2^24, so floats have it exactly. */

/* Are codes nibbles, the even ones in the low halves of bytes? */
INLINE int in_pairs(int32_t dtype)
{
    return mm2_is_plane(dtype) && mm2_format_of(dtype).bits < 8;
}

/* Zero points? They may be there in these formats, and are if mm2_weight.zeros is. */
INLINE int has_zeros(int32_t dtype, const mm2_weight *w)
{
    return (dtype == MM2_I4 || dtype == MM2_I8) && w->zeros;
}

/* Scales of a row. */
static inline int32_t spans_of_row(const mm2_weight *w)
{
    return w->n_in / w->group;
}

/* d_w of 16 successive scales, from number `at` of the matrix on. Those that there are not are
 * anything. */
INLINE v16 span_floats(int32_t dtype, const mm2_weight *w, int64_t at)
{
    _Alignas(64) uint8_t rest[64];
    int32_t size = mm2_format_of(w->span_dtype).bytes;
    int64_t left = w->n_out * w->span_bytes - at * size;
    const uint8_t *p = (const uint8_t *)w->spans + at * size;
    if (left < 16 * size) {
        memset(rest, 0, sizeof rest);
        memcpy(rest, p, (size_t)left);
        p = rest;
    }
    if (dtype == MM2_F4_32)
        return widen_e8m0(p);
    if (dtype == MM2_F4_16)
        return w->global_divides ? v16_div(widen_f8(p), v16_set1(2 * w->global))
                                 : v16_mul(widen_f8(p), v16_set1(w->global / 2));
    return w->span_dtype == MM2_F32   ? widen_f32(p)
           : w->span_dtype == MM2_F16 ? widen_f16(p)
                                      : widen_bf16(p);
}

/* Zero points of 8 groups of a row, from number `from` on, less the middle of the codes. Those that
 * there are not are anything. AVX2 does at every level. */
INLINE void zero_floats(int32_t dtype, float out[8], const mm2_weight *w, int64_t row, int32_t from)
{
    const int32_t bits = mm2_format_of(dtype).bits, fields = 32 / bits, each = spans_of_row(w);
    row += w->zeros_first;
    const uint8_t *p = (const uint8_t *)w->zeros + (row / fields * each + from) * 4;
    __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(each - from),
                                       _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i a = _mm256_maskload_epi32((const int *)p, there);
    a = _mm256_srl_epi32(a, _mm_cvtsi32_si128((int)(row % fields) * bits));
    a = _mm256_and_si256(a, _mm256_set1_epi32((1 << bits) - 1));
    a = _mm256_sub_epi32(a, _mm256_set1_epi32(1 << (bits - 1)));
    _mm256_storeu_ps(out, _mm256_cvtepi32_ps(a));
}

/* Of `pieces` pieces of ROWS rows from i on. */
INLINE void heads_of_planes(int32_t dtype, piece_heads *h, const mm2_weight *w, int32_t first,
                            int32_t count, int32_t i, int32_t begin, int32_t pieces)
{
    _Alignas(64) float d[ROWS][16], zero[ROWS][8];
    int32_t from = begin / w->group, each = spans_of_row(w), place[8];
    for (int32_t b = 0; b < 8; b++)
        place[b] = (begin + b * 32) / w->group - from;
    for (int32_t r = 0; r < ROWS; r++) {
        int64_t row = (int64_t)first + smaller(i + r, count - 1);
        v16 s = span_floats(dtype, w, row * each + from);
        v16_store(d[r], s);
        if (w->group > 32) {
            float some[16];
            v16_store(some, s);
            for (int32_t b = 0; b < 8; b++)
                d[r][b] = some[place[b]];
        }
        if (has_zeros(dtype, w)) {
            float some[8];
            zero_floats(dtype, some, w, row, from);
            for (int32_t b = 0; b < 8; b++)
                zero[r][b] = some[place[b]];
        }
    }
    for (int32_t s = 0; s < pieces * spans_of(dtype); s += 4) {
        words four[4];
        transpose4(four, (const uint8_t *)(d[0] + s), sizeof d[0]);
        for (int j = 0; j < 4; j++)
            h->d[s + j] = reals_of(four[j]);
    }
    for (int32_t b = 0; b < pieces && has_zeros(dtype, w); b += 4) {
        words four[4];
        transpose4(four, (const uint8_t *)(zero[0] + b), sizeof zero[0]);
        for (int j = 0; j < 4; j++)
            h->m[b + j] = reals_of(four[j]);
    }
}

/* Unpackers write the codes of 32 elements; nibbles in their order, see in_pairs. */

INLINE void unpack_i4(words code[8], const uint8_t *p, int64_t stride)
{
    words x[4];
    transpose4(x, p, stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        code[i] = words_sub8(words_bits(x[i / 2], i % 2 * 4, LOW4), 8);
}

INLINE void unpack_f4_32(words code[8], const uint8_t *p, int64_t stride)
{
    words x[4];
    transpose4(x, p, stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        code[i] = words_nibble_values(mm2_e2m1_doubled, x[i / 2], i % 2 * 4);
}

#define unpack_f4_16 unpack_f4_32

INLINE void unpack_i8(words code[8], const uint8_t *p, int64_t stride)
{
    transpose4(code, p, stride);
    transpose4(code + 4, p + 16, stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        code[i] = words_sub8(code[i], 128);
}

INLINE void unpack_plane(int32_t dtype, words code[8], const uint8_t *p, int64_t stride)
{
    switch (dtype) {
#define UNPACK(ID, name, ...)                                                                      \
    case MM2_##ID:                                                                                 \
        unpack_##name(code, p, stride);                                                            \
        return;
        MM2_PLANES(UNPACK)
#undef UNPACK
    }
}

/* ---- Blocks and planes alike ---- */

INLINE int is_piecewise(int32_t dtype)
{
    return mm2_is_block(dtype) || mm2_is_plane(dtype);
}

/* Bytes of the first k elements of a row. */
INLINE int64_t begin_bytes(int32_t dtype, int32_t k)
{
    return (int64_t)(k / mm2_format_of(dtype).elements) * block_bytes(dtype);
}

/* Of `pieces` pieces of ROWS rows from i on, which begin with element `begin`, at p. */
INLINE void heads_of_pieces(int32_t dtype, piece_heads *h, const mm2_weight *w, int32_t first,
                            int32_t count, int32_t i, int32_t begin, int32_t pieces,
                            const uint8_t *p, int64_t stride)
{
    if (mm2_is_plane(dtype))
        heads_of_planes(dtype, h, w, first, count, i, begin, pieces);
    else
        heads_of_blocks(dtype, h, w, p, stride, pieces);
}

/* The codes of piece b among them. */
INLINE void codes_of_piece(int32_t dtype, words code[8], int32_t b, const uint8_t *p,
                           int64_t stride)
{
    p += b / pieces_of(dtype) * block_bytes(dtype);
    if (mm2_is_plane(dtype))
        unpack_plane(dtype, code, p, stride);
    else
        unpack_piece(dtype, code, p, b % pieces_of(dtype), stride);
}
