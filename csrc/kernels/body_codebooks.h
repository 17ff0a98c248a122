/* Products of codebook and ternary weights, the section CODEBOOKS of formats.h, in terms of the
 * primitives of a codebooks_*.h.
 *
 * A super-block is opened to signed codes in the order of the file, with 16 scales and d: the rest
 * is what other super-blocks have, with codes of 7 bits and a sign. Panels, tiles and exact
 * products share among their activation rows what it costs to open it.
 *
 * One to DIRECT_ACTS activation rows are multiplied by codes in the order in which a grid's
 * look-ups leave them, look_unit() super-blocks at a time. The walk over the blocks of a call is
 * that of body_int_direct.h. */

/* ---- Opened super-blocks ---- */

/* What d is multiplied with, so that scales and codes are integers. */
INLINE float codebook_factor(int32_t dtype)
{
    return dtype == MM2_IQ3_S || dtype == MM2_TQ1_0 || dtype == MM2_TQ2_0 ? 1
           : dtype == MM2_IQ3_XXS                                         ? 0.25f
                                                                          : 0.125f;
}

/* Where a block has its half float d; -1: in pieces. */
INLINE int codebook_d_at(int32_t dtype)
{
    return dtype == MM2_IQ1_M   ? -1
           : dtype == MM2_TQ1_0 ? (int)offsetof(mm2_block_tq1_0, d)
           : dtype == MM2_TQ2_0 ? (int)offsetof(mm2_block_tq2_0, d)
                                : 0;
}

INLINE float codebook_d(int32_t dtype, const uint8_t *p)
{
    uint16_t d = 0;
    if (codebook_d_at(dtype) >= 0)
        memcpy(&d, p + codebook_d_at(dtype), 2);
    else
        for (int i = 0; i < 4; i++) /* upper nibbles of four words */
            d |= (uint16_t)(p[offsetof(mm2_block_iq1_m, scales) + i * 2 + 1] >> 4 << i * 4);
    return codebook_factor(dtype) * _cvtsh_ss(d);
}

/* What is staged is in memory: gcc would keep it in registers and put bytes together there. */
#define STAGED_NOW(s) __asm__("" : "+m"(s))

INLINE void staged_open(int32_t dtype, mm2_codes *c, const staged *s, const uint8_t *p)
{
    memcpy(c->scale, s->scale, 16);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        bytes_store(c->code + j * 64, bytes_lowered(staged_codes(dtype, s, p, j)));
}

/* n super-blocks, an even number, `stride` bytes apart. */
INLINE void codebook_open(int32_t dtype, mm2_codes *c, int n, const uint8_t *p, int64_t stride)
{
    staged s[ROWS];
    for (int i = 0; i < n && !has_look(dtype); i++)
        stage(dtype, s + i, p + i * stride);
    STAGED_NOW(s);
    for (int i = 0; i < n; i++) {
        if (!has_look(dtype))
            staged_open(dtype, c + i, s + i, p + i * stride);
        else if (i % 2 == 0)
            look_open(dtype, c + i, c + i + 1, p + i * stride, p + (i + 1) * stride);
        c[i].d = codebook_d(dtype, p + i * stride);
    }
}

INLINE void unpack_one_codebook(int32_t dtype, super_panel *s, const uint8_t *p, int64_t stride)
{
    mm2_codes c[ROWS];
    float d[ROWS];
    words x[4];
    codebook_open(dtype, c, ROWS, p, stride);
    for (int r = 0; r < ROWS; r++)
        d[r] = c[r].d;
    s->d = reals_load(d);
    for (int i = 0; i < 16; i++)
        transpose4(s->code + i * 4, (const uint8_t *)c->code + i * 16, sizeof *c);
    transpose4(x, c->scale, sizeof *c);
    for (int i = 0; i < 4; i++)
        put_scales(s->scale, i * 4, 1, x[i], 0);
}

/* Panels and exact products of codebook formats are compiled once for all with a scale for 16 or
 * for 32 codes, as for one of these; w->dtype says whose blocks are to be opened. */
enum { ANY_16 = MM2_IQ2_S, ANY_32 = MM2_IQ3_S };

static __attribute__((noinline)) void unpack_codebook(int32_t dtype, super_panel *s,
                                                      const uint8_t *p, int64_t stride)
{
    switch (dtype) {
#define UNPACK(ID, ...)                                                                            \
    case MM2_##ID:                                                                                 \
        unpack_one_codebook(MM2_##ID, s, p, stride);                                               \
        return;
        MM2_CODEBOOKS(UNPACK)
#undef UNPACK
    }
}

/* Of a dtype that may stand for others. */
INLINE int32_t weight_block_bytes(int32_t dtype, const mm2_weight *w)
{
    return mm2_is_codebook(dtype) ? mm2_dtype_bytes(w->dtype) : block_bytes(dtype);
}

INLINE void unpack_weight(int32_t dtype, const mm2_weight *w, super_panel *s, const uint8_t *p,
                          int64_t stride)
{
    if (mm2_is_codebook(dtype))
        unpack_codebook(w->dtype, s, p, stride);
    else
        unpack_super(dtype, s, p, stride);
}

/* ---- Few activation rows ---- */

enum { LOOK_BLOCKS = DIRECT_LIMIT / MM2_SUPER };

/* Activations by units: one of two super-blocks may begin at any one if their number is odd, else
 * at the even ones, which follow one another. */
typedef struct codebook_act {
    _Alignas(64) int8_t code[LOOK_BLOCKS * 2][MM2_SUPER];
    _Alignas(64) int32_t start[LOOK_BLOCKS][16]; /* what makes up for codes that are raised */
} codebook_act;

/* Where the unit that begins with super-block b is. */
INLINE int32_t look_slot(int32_t dtype, int32_t b, int32_t blocks)
{
    return look_unit(dtype) == 2 && blocks % 2 == 0 ? b / 2 : b;
}

INLINE void codebook_prepare(int32_t dtype, codebook_act *x, const int8_t *act, int32_t n)
{
    int32_t blocks = n / MM2_SUPER, unit = look_unit(dtype);
    const int16_t *sums = (const int16_t *)(act + n + blocks * 4);
    for (int32_t b = 0; b < blocks; b += blocks % 2 ? 1 : unit) {
        int32_t slot = look_slot(dtype, b, blocks);
        int8_t *code = x->code[slot * unit];
        int16_t *start = (int16_t *)x->start[slot];
        if (has_look(dtype)) {
            int32_t c = (b + 1) % blocks;
            look_arrange(dtype, code, start, act + b * MM2_SUPER, act + c * MM2_SUPER,
                         sums + b * 16, sums + c * 16);
            continue;
        }
        memcpy(code, act + b * MM2_SUPER, MM2_SUPER);
        for (int i = 0; i < 16; i++)
            start[i] = (int16_t)(sums[b * 16 + i] * (-MM2_CODE_LIMIT / 4));
    }
}

/* Partial sums over one super-block that is staged. */
INLINE void staged_sum(int32_t dtype, int acts, words *sum, const staged *c, const uint8_t *p,
                       const int8_t *const *act, const void *const *start)
{
    bytes64 s = bytes_repeat16(c->scale);
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
        sum[m] = direct_offset(words_set1(0), c->scale, start[m], 2);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        bytes64 code = staged_codes(dtype, c, p, j);
        bytes64 scale = bytes_spread(0, s, spread_plain[j]);
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m] = direct_dot(sum[m], code, act[m] + j * 64, scale);
    }
}

/* ROWS super-blocks from p on; the first is number b of a row. */
INLINE void codebook_terms(int32_t dtype, int acts, direct_terms *t, int32_t at, const uint8_t *p,
                           const codebook_act *x, int32_t b, int32_t blocks)
{
    words sum[DIRECT_ACTS][ROWS];
    staged rows[ROWS];
    int32_t bytes = block_bytes(dtype), unit = look_unit(dtype);
    if (!codebook_d_at(dtype))
        reals_store(t->d + at, reals_times(reals_halves(p, bytes), codebook_factor(dtype)));
    if (!has_look(dtype)) {
#pragma GCC unroll 1
        for (int l = 0; l < ROWS; l++) {
            prefetch_lines(p + l * bytes, 0, bytes, 0);
            stage(dtype, rows + l, p + l * bytes);
        }
    }
    STAGED_NOW(rows);
#pragma GCC unroll 1
    for (int l = 0; l < ROWS; l += unit, p += unit * bytes) {
        const int8_t *code[DIRECT_ACTS];
        const void *start[DIRECT_ACTS];
        words some[DIRECT_ACTS];
        int32_t slot = look_slot(dtype, b, blocks);
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++) {
            code[m] = x[m].code[slot * unit];
            start[m] = x[m].start[slot];
        }
        if (has_look(dtype)) {
            prefetch_lines(p, 0, unit * bytes, 0);
            look_sum(dtype, acts, some, p, p + bytes, code, start);
        } else {
            staged_sum(dtype, acts, some, rows + l, p, code, start);
        }
#pragma GCC unroll 4
        for (int m = 0; m < acts; m++)
            sum[m][l / unit] = some[m];
        if (codebook_d_at(dtype))
            t->d[at + l] = codebook_d(dtype, p);
        for (b += unit; b >= blocks;)
            b -= blocks;
    }
#pragma GCC unroll 4
    for (int m = 0; m < acts; m++)
        reals_store(t->sum[m] + at, reals_from_words(look_sums(dtype, sum[m])));
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
        codebook_prepare(dtype, x + m, act[m], w->n_in);
        d[m] = (const float *)(act[m] + w->n_in);
    }
    const uint8_t *p = (const uint8_t *)w->data + first * w->row_bytes;
    for (int32_t i = 0; i < count; i += CHAIN_ROWS, p += CHAIN_ROWS * w->row_bytes) {
        int32_t rows = smaller(CHAIN_ROWS, count - i), total = rows * blocks;
        for (int32_t at = 0; at < total; at += ROWS)
            codebook_terms(dtype, acts, &t, at, direct_group(p, at, total, bytes, copy), x,
                           at % blocks, blocks);
        direct_chain(dtype, acts, out, i, &t, d, NULL, rows, blocks, w,
                     p + rows * w->row_bytes + stream_far);
    }
}
