/* From blocks of the file to interleaved codes, in terms of the primitives of a codes_*.h. Included
 * after body_float.h, as is body_int_panels.h, for a few helpers.
 *
 * Rows are interleaved first, while their codes are still packed, and unpacked afterwards: word w
 * of 16 loaded bytes holds bytes 4w..4w+3 of ROWS rows, one row a lane, and shifts and masks work
 * on all of them at once. A load takes 16 bytes of the block of each row and never leaves it; where
 * a field does not begin at a multiple of 4, neighbouring words are joined.
 *
 * `p` is the block of the group's first row, `stride` the distance of rows in bytes. */

enum { LOW4 = 0x0f0f0f0f, LOW2 = 0x03030303, LOW6 = 0x3f3f3f3f, EACH = 0x01010101 };

INLINE words words_bits(words a, int shift, int32_t mask)
{
    return words_and(words_shr(a, shift), words_set1(mask));
}

/* The upper half of a under the lower half of b: a field that begins in the middle of a word. */
INLINE words words_join(words a, words b)
{
    return words_or(words_shr(a, 16), words_shl(b, 16));
}

/* ---- Blocks and planes: 32 codes, a piece, at a time ---- */

/* Of up to 8 pieces. */
typedef struct piece_heads {
    reals d[16]; /* of each span */
    reals m[8];  /* minima; of planes zero points, see zero_floats */
} piece_heads;

typedef struct piece_panel {
    words code[64]; /* 8 pieces of 8 words: word k holds elements 4k..4k+3 */
    words start[16];
    piece_heads heads;
} piece_panel;

INLINE int32_t block_bytes(int32_t dtype)
{
    return mm2_format_of(dtype).bytes;
}

/* Pieces of a block, and spans of a piece. */
INLINE int32_t pieces_of(int32_t dtype)
{
    return mm2_format_of(dtype).elements / 32;
}

INLINE int32_t spans_of(int32_t dtype)
{
    return 32 / mm2_format_of(dtype).span;
}

/* Unpackers write the codes of a block's piece number `part`. Nibbles: the low ones of 16 bytes are
 * elements 0..15, the high ones 16..31. */

INLINE words nibble_word(const words x[4], int i)
{
    return words_bits(x[i % 4], i / 4 * 4, LOW4);
}

/* Bit 0 of four bytes: bits 4 i to 4 i + 3 of each word. */
INLINE words four_bits(words bits, int i)
{
    bits =
        words_mul(words_bits(bits, i * 4, 15), words_set1(0x00204081)); /* bit j goes to 7j + j */
    return words_and(bits, words_set1(EACH));
}

INLINE void unpack_nibbles(words code[8], const uint8_t *p, int64_t stride, int less)
{
    words x[4];
    transpose4(x, p, stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        code[i] = words_sub8(nibble_word(x, i), less);
}

/* With a fifth bit: bit k of `high` is that of element k. */
INLINE void unpack_fives(words code[8], words high, const uint8_t *p, int64_t stride, int less)
{
    words x[4];
    transpose4(x, p, stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        code[i] = words_sub8(words_or(nibble_word(x, i), words_shl(four_bits(high, i), 4)), less);
}

/* Nibbles that say where in a table the codes are. */
INLINE void unpack_values(words code[8], const int8_t values[16], const uint8_t *p, int64_t stride)
{
    words x[4];
    transpose4(x, p, stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        code[i] = words_nibble_values(values, x[i % 4], i / 4 * 4);
}

INLINE void unpack_q8_0(words code[8], const uint8_t *p, int part, int64_t stride)
{
    transpose4(code, p + offsetof(mm2_block_q8_0, q), stride);
    transpose4(code + 4, p + offsetof(mm2_block_q8_0, q) + 16, stride);
}

INLINE void unpack_q4_0(words code[8], const uint8_t *p, int part, int64_t stride)
{
    unpack_nibbles(code, p + offsetof(mm2_block_q4_0, q), stride, 8);
}

INLINE void unpack_q5_0(words code[8], const uint8_t *p, int part, int64_t stride)
{
    words head[4];
    transpose4(head, p, stride);
    unpack_fives(code, words_join(head[0], head[1]), p + offsetof(mm2_block_q5_0, q), stride, 16);
}

INLINE void unpack_iq4_nl(words code[8], const uint8_t *p, int part, int64_t stride)
{
    unpack_values(code, mm2_iq4_values, p + offsetof(mm2_block_iq4_nl, q), stride);
}

INLINE void unpack_q4_1(words code[8], const uint8_t *p, int part, int64_t stride)
{
    unpack_nibbles(code, p + offsetof(mm2_block_q4_1, q), stride, 0);
}

INLINE void unpack_q5_1(words code[8], const uint8_t *p, int part, int64_t stride)
{
    words head[4];
    transpose4(head, p, stride);
    unpack_fives(code, head[1], p + offsetof(mm2_block_q5_1, q), stride, 0);
}

INLINE void unpack_mxfp4(words code[8], const uint8_t *p, int part, int64_t stride)
{
    unpack_values(code, mm2_e2m1_doubled, p + offsetof(mm2_block_mxfp4, q), stride);
}

/* 8 bytes have 16 elements, the first half of them in the low nibbles. */
INLINE void unpack_nvfp4(words code[8], const uint8_t *p, int part, int64_t stride)
{
    words x[8];
    unpack_values(x, mm2_e2m1_doubled, p + offsetof(mm2_block_nvfp4, q) + part * 16, stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        code[i] = x[i / 4 * 2 + i % 4 / 2 * 4 + i % 2];
}

INLINE void unpack_q1_0(words code[8], const uint8_t *p, int part, int64_t stride)
{
    words x[4];
    transpose4(x, p + offsetof(mm2_block_q1_0, q), stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        code[i] = words_sub8(words_shl(four_bits(x[part], i), 1), 1);
}

INLINE void unpack_piece(int32_t dtype, words code[8], const uint8_t *p, int part, int64_t stride)
{
    switch (dtype) {
#define UNPACK(ID, name, ...)                                                                      \
    case MM2_##ID:                                                                                 \
        unpack_##name(code, p, part, stride);                                                      \
        return;
        MM2_BLOCKS(UNPACK)
#undef UNPACK
    }
    __builtin_unreachable();
}

/* Scales and minima of ROWS blocks. Most begin with a half float for all of the block. */

INLINE void head_q8_0(reals d[2], reals *m, words head, int part)
{
    d[0] = reals_from_half(head);
}

#define head_q4_0 head_q8_0
#define head_q5_0 head_q8_0
#define head_iq4_nl head_q8_0
#define head_q1_0 head_q8_0

INLINE void head_q4_1(reals d[2], reals *m, words head, int part)
{
    d[0] = reals_from_half(head);
    *m = reals_from_half(words_shr(head, 16));
}

#define head_q5_1 head_q4_1

/* Exponents below 2 stand for numbers that count as zero. */
INLINE void head_mxfp4(reals d[2], reals *m, words head, int part)
{
    words e = words_max(words_bits(head, 0, 0xff), words_set1(1));
    d[0] = reals_of(words_shl(words_sub(e, words_set1(1)), 23));
}

/* A byte of E4M3, without its sign, where it is in a float: y is right but for an exponent of 0, which has
 * no hidden bit and counts as 1. There the other one is less, elsewhere it is not. 0x7f counts as 0. */
INLINE void head_nvfp4(reals d[2], reals *m, words head, int part)
{
    words bytes = words_without8(head, 0x7f);
#pragma GCC unroll 2
    for (int i = part * 2; i < part * 2 + 2; i++) {
        words size = i < 3 ? words_shl(bytes, 20 - i * 8) : words_shr(bytes, 4);
        size = words_and(size, words_set1(0x7f << 20));
        reals y = reals_of(words_sub(size, words_set1(-(119 << 23))));
        d[i % 2] = reals_min(y, reals_fma(y, reals_set1(2), reals_set1(-0x1p-7f)));
    }
}

INLINE void head_piece(int32_t dtype, reals d[2], reals *m, words head, int part)
{
    switch (dtype) {
#define HEAD(ID, name, ...)                                                                        \
    case MM2_##ID:                                                                                 \
        head_##name(d, m, head, part);                                                             \
        return;
        MM2_BLOCKS(HEAD)
#undef HEAD
    }
    __builtin_unreachable();
}

/* Of `pieces` pieces from p on, lanes being rows. */
INLINE void heads_of_blocks(int32_t dtype, piece_heads *h, const mm2_weight *w, const uint8_t *p,
                            int64_t stride, int32_t pieces)
{
    int spans = spans_of(dtype), each = pieces_of(dtype);
    for (int32_t b = 0; b < pieces; b++) {
        words head[4];
        transpose4(head, p + b / each * block_bytes(dtype), stride);
        head_piece(dtype, h->d + b * spans, h->m + b, head[0], b % each);
        for (int i = 0; i < spans && dtype == MM2_NVFP4; i++)
            h->d[b * spans + i] = reals_times(h->d[b * spans + i], w->global);
    }
}

/* ---- Super-blocks of 256 ---- */

typedef struct super_panel {
    words code[64];
    words scale[16], start[16]; /* for 16 codes each; wide formats use the even ones, for 32 */
    words min[8];               /* pairs of int16, for 2 x 16 codes */
    reals d, dmin;
} super_panel;

/* Sub-blocks of 32? */
INLINE int is_wide(int32_t dtype)
{
    return mm2_format_of(dtype).span == 32;
}

/* With minima, and then with codes that are not negative. */
INLINE int has_minima(int32_t dtype)
{
    return mm2_format_of(dtype).minima;
}

/* Byte i of each word as an int32. */
INLINE words words_byte(words a, int i)
{
    return i == 3 ? words_shr(a, 24) : words_bits(a, i * 8, 0xff);
}

/* scale[first], [first + step], ..: the 4 bytes of a word, less bias. */
INLINE void put_scales(words *scale, int first, int step, words bytes, int bias)
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        scale[first + i * step] = scale_form(words_sub(words_byte(bytes, i), words_set1(bias)));
}

INLINE void unpack_q2_k(super_panel *s, const uint8_t *p, int64_t stride)
{
    words x[4];
    transpose4(x, p + offsetof(mm2_block_q2_k, scales), stride);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* low nibbles are scales, high ones minima */
        put_scales(s->scale, i * 4, 1, words_bits(x[i], 0, LOW4), 0);
        words min = words_bits(x[i], 4, LOW4);
        s->min[i * 2] = words_or(words_byte(min, 0), words_shl(words_byte(min, 1), 16));
        s->min[i * 2 + 1] = words_or(words_byte(min, 2), words_shl(words_byte(min, 3), 16));
    }
    for (int i = 0; i < 4; i++) { /* the four 2-bit codes of a byte are elements 32 apart */
        transpose4(x, p + offsetof(mm2_block_q2_k, q) + i * 16, stride);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
#pragma GCC unroll 4
            for (int w = 0; w < 4; w++)
                s->code[i / 2 * 32 + j * 8 + i % 2 * 4 + w] = words_bits(x[w], j * 2, LOW2);
    }
    transpose4(x, p + offsetof(mm2_block_q2_k, d) - 12, stride);
    s->d = reals_from_half(x[3]);
    s->dmin = reals_from_half(words_shr(x[3], 16));
}

/* The 16 scales of Q3_K, 0..63, from its last 16 bytes, in which they begin in the middle of a
 * word. */
INLINE void unpack_q3_k_scales(words scale[4], const words x[4])
{
    words low0 = words_join(x[0], x[1]), low1 = words_join(x[1], x[2]);
    words top = words_join(x[2], x[3]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        scale[i] = words_or(words_bits(i % 2 ? low1 : low0, i / 2 * 4, LOW4),
                            words_shl(words_bits(top, i * 2, LOW2), 4));
}

INLINE void unpack_q3_k(super_panel *s, const uint8_t *p, int64_t stride)
{
    words x[4], high[8]; /* bit j of byte k of `high` is bit 2 of element 32 j + k */
    transpose4(high, p + offsetof(mm2_block_q3_k, high), stride);
    transpose4(high + 4, p + offsetof(mm2_block_q3_k, high) + 16, stride);
    for (int i = 0; i < 4; i++) {
        transpose4(x, p + offsetof(mm2_block_q3_k, q) + i * 16, stride);
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++) {
            words h = words_shr(high[i % 2 * 4 + w], i / 2 * 4);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                words top = words_shl(words_bits(h, j, EACH), 2);
                words a = words_or(words_bits(x[w], j * 2, LOW2), top);
                s->code[i / 2 * 32 + j * 8 + i % 2 * 4 + w] = words_sub8(a, 4);
            }
        }
    }
    words scale[4];
    transpose4(x, p + sizeof(mm2_block_q3_k) - 16, stride);
    unpack_q3_k_scales(scale, x);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        put_scales(s->scale, i * 4, 1, scale[i], 32);
    s->d = reals_from_half(words_shr(x[3], 16));
}

/* The beginning of Q4_K and Q5_K: d and dmin, then 8 scales and 8 minima of 6 bits in 3 words. */
INLINE void unpack_head(super_panel *s, const uint8_t *p, int64_t stride)
{
    words x[4], min[2];
    transpose4(x, p, stride);
    s->d = reals_from_half(x[0]);
    s->dmin = reals_from_half(words_shr(x[0], 16));
    put_scales(s->scale, 0, 2, words_bits(x[1], 0, LOW6), 0);
    put_scales(s->scale, 8, 2,
               words_or(words_bits(x[3], 0, LOW4), words_shl(words_bits(x[1], 6, LOW2), 4)), 0);
    min[0] = words_bits(x[2], 0, LOW6);
    min[1] = words_or(words_bits(x[3], 4, LOW4), words_shl(words_bits(x[2], 6, LOW2), 4));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        words m = words_byte(min[i / 4], i % 4);
        s->min[i] = words_or(m, words_shl(m, 16));
    }
}

INLINE void unpack_q4_k(super_panel *s, const uint8_t *p, int64_t stride)
{
    unpack_head(s, p, stride);
    for (int i = 0; i < 8; i++) { /* nibbles of 32 bytes: elements 32 apart */
        words x[4];
        transpose4(x, p + offsetof(mm2_block_q4_k, q) + i * 16, stride);
        words *code = s->code + i / 2 * 16 + i % 2 * 4;
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++) {
            code[w] = words_bits(x[w], 0, LOW4);
            code[w + 8] = words_bits(x[w], 4, LOW4);
        }
    }
}

INLINE void unpack_q5_k(super_panel *s, const uint8_t *p, int64_t stride)
{
    words high[8]; /* bit j of byte k is bit 4 of element 32 j + k */
    unpack_head(s, p, stride);
    transpose4(high, p + offsetof(mm2_block_q5_k, high), stride);
    transpose4(high + 4, p + offsetof(mm2_block_q5_k, high) + 16, stride);
    for (int i = 0; i < 8; i++) {
        words x[4];
        transpose4(x, p + offsetof(mm2_block_q5_k, q) + i * 16, stride);
        words *code = s->code + i / 2 * 16 + i % 2 * 4;
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++) {
            words h = words_shr(high[i % 2 * 4 + w], i / 2 * 2);
            code[w] = words_or(words_bits(x[w], 0, LOW4), words_shl(words_bits(h, 0, EACH), 4));
            code[w + 8] = words_or(words_bits(x[w], 4, LOW4), words_shl(words_bits(h, 1, EACH), 4));
        }
    }
}

INLINE void unpack_q6_k(super_panel *s, const uint8_t *p, int64_t stride)
{
    words x[4];
    for (int i = 0; i < 4; i++) { /* 128 elements: 64 bytes of low nibbles, 32 of high pairs */
        words low0[4], low1[4], high[4];
        const uint8_t *low = p + offsetof(mm2_block_q6_k, low) + i / 2 * 64 + i % 2 * 16;
        transpose4(low0, low, stride);
        transpose4(low1, low + 32, stride);
        transpose4(high, p + offsetof(mm2_block_q6_k, high) + i * 16, stride);
        words *code = s->code + i / 2 * 32 + i % 2 * 4;
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                words a = words_bits(j % 2 ? low1[w] : low0[w], j / 2 * 4, LOW4);
                words top = words_shl(words_bits(high[w], j * 2, LOW2), 4);
                code[j * 8 + w] = words_sub8(words_or(a, top), 32);
            }
    }
    transpose4(x, p + offsetof(mm2_block_q6_k, scales), stride);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) /* signed bytes */
        s->scale[i] = scale_form(words_sar(words_shl(x[i / 4], 24 - i % 4 * 8), 24));
    transpose4(x, p + sizeof(mm2_block_q6_k) - 16, stride);
    s->d = reals_from_half(words_shr(x[3], 16));
}

INLINE void unpack_iq4_xs(super_panel *s, const uint8_t *p, int64_t stride)
{
    words x[4];
    transpose4(x, p, stride); /* d, 8 high pairs of bits; 8 low nibbles of the scales */
    s->d = reals_from_half(x[0]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        words high = words_shl(words_bits(x[0], 16 + i * 2, 3), 4);
        words a = words_or(words_bits(x[1], i * 4, 15), high);
        s->scale[i * 2] = scale_form(words_sub(a, words_set1(32)));
    }
    for (int i = 0; i < 8; i++) {
        transpose4(x, p + offsetof(mm2_block_iq4_xs, q) + i * 16, stride);
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++) {
            s->code[i * 8 + w] = words_iq4(words_bits(x[w], 0, LOW4));
            s->code[i * 8 + 4 + w] = words_iq4(words_bits(x[w], 4, LOW4));
        }
    }
}

INLINE void unpack_super(int32_t dtype, super_panel *s, const uint8_t *p, int64_t stride)
{
    switch (dtype) {
#define UNPACK(ID, name, ...)                                                                      \
    case MM2_##ID:                                                                                 \
        unpack_##name(s, p, stride);                                                               \
        return;
        MM2_SUPERS(UNPACK)
#undef UNPACK
    }
    __builtin_unreachable();
}
