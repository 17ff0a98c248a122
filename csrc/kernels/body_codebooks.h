/* Products of codebook and ternary weights: the section CODEBOOKS of formats.h.
 *
 * A super-block is opened to signed codes in their order, with 16 scales of 8 bits and d: the rest is
 * what other super-blocks have, with codes of 7 bits and a sign. Panels, tiles and exact products
 * share what it costs to open it among their activation rows. */

INLINE void codebook_open(int32_t dtype, mm2_codes *c, const uint8_t *p)
{
    mm2_codebook_unpack(dtype, c, p);
}

INLINE void unpack_codebook(int32_t dtype, super_panel *s, const uint8_t *p, int64_t stride)
{
    mm2_codes c[ROWS];
    float d[ROWS];
    words x[4];
    for (int r = 0; r < ROWS; r++) {
        codebook_open(dtype, c + r, p + r * stride);
        d[r] = c[r].d;
    }
    s->d = reals_load(d);
    for (int i = 0; i < 16; i++)
        transpose4(s->code + i * 4, (const uint8_t *)c->code + i * 16, sizeof *c);
    transpose4(x, c->scale, sizeof *c);
    for (int i = 0; i < 4; i++)
        put_scales(s->scale, i * 4, 1, x[i], 0);
}

/* ---- Few activation rows ---- */

typedef struct codebook_act {
    _Alignas(64) int8_t code[DIRECT_LIMIT / MM2_SUPER][MM2_SUPER];
    int16_t sums[DIRECT_LIMIT / MM2_SUPER][16]; /* of 16 codes each, times -MM2_CODE_LIMIT / 4 */
} codebook_act;

static void codebook_prepare(codebook_act *x, const int8_t *act, int32_t n)
{
    const int16_t *sums = (const int16_t *)(act + n + n / MM2_SUPER * 4);
    memcpy(x->code, act, (size_t)n);
    for (int32_t i = 0; i < n / 16; i++)
        x->sums[i / 16][i % 16] = (int16_t)(sums[i] * (-MM2_CODE_LIMIT / 4));
}

/* Partial sums over one super-block, with block b of each activation row. */
INLINE void codebook_sum(int acts, words *sum, const mm2_codes *c, const codebook_act *x, int32_t b)
{
    bytes64 s = bytes_repeat16(c->scale);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        bytes64 code = bytes_raised(bytes_load((const uint8_t *)c->code + j * 64));
        bytes64 scale = bytes_spread(0, s, spread_plain[j]);
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m] = direct_dot(sum[m], code, x[m].code[b] + j * 64, scale);
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
        sum[m] = direct_offset(sum[m], c->scale, x[m].sums[b], 2);
}

/* ROWS blocks from p on; the first is block b of a row. */
INLINE void codebook_terms(int32_t dtype, int acts, direct_terms *t, int32_t at, const uint8_t *p,
                           const codebook_act *x, int32_t b, int32_t blocks)
{
    words sum[DIRECT_ACTS][ROWS];
    int32_t bytes = block_bytes(dtype);
#pragma GCC unroll 1
    for (int l = 0; l < ROWS; l++, p += bytes) {
        mm2_codes c;
        words some[DIRECT_ACTS];
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            some[m] = words_set1(0);
        prefetch_lines(p, 0, bytes);
        codebook_open(dtype, &c, p);
        codebook_sum(acts, some, &c, x, b);
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m][l] = some[m];
        t->d[at + l] = c.d;
        b = b + 1 < blocks ? b + 1 : 0;
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
        reals_store(t->sum[m] + at, reals_from_words(words_sums(sum[m])));
}

INLINE void matmul_codebook_direct(int32_t dtype, int acts, float *const *out, const mm2_weight *w,
                                   int32_t first, int32_t count, const int8_t *const *act)
{
    _Alignas(64) uint8_t copy[ROWS * sizeof(mm2_block_q6_k)];
    codebook_act x[DIRECT_ACTS];
    const float *d[DIRECT_ACTS];
    direct_terms t;
    int32_t blocks = w->n_in / MM2_SUPER, bytes = block_bytes(dtype);
    for (int m = 0; m < acts; m++) {
        codebook_prepare(x + m, act[m], w->n_in);
        d[m] = (const float *)(act[m] + w->n_in);
    }
    const uint8_t *p = (const uint8_t *)w->data + first * w->row_bytes;
    for (int32_t i = 0; i < count; i += CHAIN_ROWS, p += CHAIN_ROWS * w->row_bytes) {
        int32_t rows = smaller(CHAIN_ROWS, count - i), total = rows * blocks;
        for (int32_t at = 0; at < total; at += ROWS)
            codebook_terms(dtype, acts, &t, at, direct_group(p, at, total, bytes, copy), x,
                           at % blocks, blocks);
        direct_chain(0, acts, out, i, &t, d, rows, blocks);
    }
}
