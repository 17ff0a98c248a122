/* What this machine gives the model: the pace at which its threads read memory, and at which they
 * multiply.
 *
 * Reading takes the weights themselves, because page size and placement matter: pieces of 2 MB at
 * random places of the mapped files, up to 4 GB in all, more than caches hold. They are touched
 * before the clock runs. A model of less than ENOUGH bytes, or one that the disk has yet to deliver,
 * is replaced by anonymous memory. Pieces are units of the pool under a deadline, so what is measured
 * is bytes done in a fixed time, and the ways of reading take turns: what the machine does
 * meanwhile hits them alike.
 *
 * Products run on random data, because the power that a processor may draw, and with it the clock,
 * depends on the bits that flip.
 *
 * Attention runs the level's own kernel on random chunks of one KV head: for one token each chunk is
 * read once, from memory; for a prompt ROWS rows meet NEAR chunks that stay in the cache. */
#include "model/model.h"

#include "base/cpu.h"
#include "base/guard.h"
#include "base/rng.h"
#include "base/status.h"
#include "tensor/dtype.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    PIECE = 2 << 20,
    PIECES = 2048, /* at most */
    ENOUGH = 256,  /* pieces that no cache is expected to hold */
    PAGE = 4096,
    ROUNDS = 1024, /* of a peak kernel in one unit: 20 us to 3 ms */
    TOUCH_MS = 100,
    TURN_MS = 12,
    TURNS = 2,
    PEAK_MS = 20, /* what adds up to the half second */
    ROWS = 16,    /* of a prompt, in a unit of attention */
    NEAR = 8,     /* chunks that they attend to in turn */
    ATTEND_MS = 40
};

/* Bytes that are prefetched ahead, into the first-level cache and the second; the first way: no
 * prefetch. */
static const int32_t ways[][2] = {{0, 0},       {512, 2048}, {1024, 3072},
                                  {2048, 4096}, {2048, 0},   {0, 4096}};
enum { WAYS = sizeof ways / sizeof *ways };

typedef struct reading {
    const mm2_kernels *kernels;
    const int32_t *ahead;
    uint8_t *pieces[PIECES];
    int32_t count;
    int writes; /* touching: fresh memory must be written to exist */
    uint8_t touched[PIECES];
    atomic_uint_fast64_t sum;
} reading;

typedef struct multiplying {
    uint64_t (*peak)(const void *data, int32_t rounds, int64_t *ops);
    const void *data;
    int64_t ops; /* of a unit, the same for each: written by unit 0, which the caller runs */
    atomic_uint_fast64_t sum;
} multiplying;

/* Units done per second. */
static double pace(mm2_pool *pool, mm2_work work, void *context, int ms)
{
    mm2_progress progress = {0};
    int64_t start = mm2_now();
    mm2_limit limit = {.deadline = start + ms * 1000000LL};
    mm2_pool_run(pool, work, context, &progress, INT32_MAX, &limit);
    double seconds = (double)(mm2_now() - start) * 1e-9, done = 0;
    for (int32_t node = 0; node < MM2_NODES; node++)
        done += progress.next[node];
    return done / seconds;
}

/* ---- Reading ---- */

/* Pieces of the mapped files: one at a random place of each of `count` equal stretches, so that none
 * overlap, in random order. */
static void choose_pieces(reading *r, const mm2_checkpoint *c)
{
    int64_t total = 0, before = 0;
    uint64_t seed = mm2_mix64((uint64_t)mm2_now()), draws = 0;
    for (int32_t i = 0; i < c->file_count; i++)
        total += c->files[i].size / PIECE;
    int64_t wanted = total < PIECES ? total : PIECES;
    const mm2_file *file = c->files;
    for (int64_t i = 0; i < wanted; i++) {
        int64_t first = total * i / wanted, end = total * (i + 1) / wanted;
        int64_t at = first + (int64_t)(mm2_uniform(seed, draws++) * (double)(end - first));
        for (; at - before >= file->size / PIECE; file++)
            before += file->size / PIECE;
        r->pieces[r->count++] = file->data + (at - before) * PIECE;
    }
    for (int32_t i = r->count - 1; i > 0; i--) {
        int32_t j = (int32_t)(mm2_uniform(seed, draws++) * (i + 1));
        uint8_t *p = r->pieces[i];
        r->pieces[i] = r->pieces[j];
        r->pieces[j] = p;
    }
}

static void touch_piece(void *context, int32_t unit, int32_t thread)
{
    reading *r = context;
    volatile uint8_t *p = r->pieces[unit];
    for (int32_t i = 0; i < PIECE; i += PAGE) {
        if (r->writes)
            p[i] = 1;
        else
            (void)p[i];
    }
    r->touched[unit] = 1;
}

/* Touches the pieces until a deadline; those that were not reached are left out. */
static void touch_pieces(reading *r, mm2_pool *pool, int64_t deadline)
{
    mm2_limit limit = {.deadline = deadline};
    mm2_progress progress = {0};
    int32_t kept = 0;
    mm2_pool_run(pool, touch_piece, r, &progress, r->count, &limit);
    for (int32_t i = 0; i < r->count; i++)
        if (r->touched[i])
            r->pieces[kept++] = r->pieces[i];
    r->count = kept;
}

static void read_piece(void *context, int32_t unit, int32_t thread)
{
    reading *r = context;
    uint64_t sum = r->kernels->read(r->pieces[unit % r->count], PIECE, r->ahead[0], r->ahead[1]);
    atomic_fetch_add_explicit(&r->sum, sum, memory_order_relaxed);
}

static void measure_reading(reading *r, mm2_pool *pool, mm2_limits *out)
{
    double rates[WAYS] = {0};
    for (int turn = 0; turn < TURNS; turn++)
        for (int way = 0; way < (int)WAYS; way++) {
            r->ahead = ways[way];
            rates[way] += pace(pool, read_piece, r, TURN_MS) * PIECE / TURNS;
        }
    out->plain_read = rates[0];
    for (int way = 0; way < (int)WAYS; way++)
        out->best_read = rates[way] > out->best_read ? rates[way] : out->best_read;
}

/* ENOUGH pieces of memory that holds nothing yet, to be unmapped. */
static mm2_status other_memory(uint8_t **out, const char *function)
{
    const int64_t bytes = (int64_t)ENOUGH * PIECE;
    void *memory = MAP_FAILED;
    if (mm2_memory_available() > bytes)
        memory =
            mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return mm2_fail(MM2_E_NOMEM,
                        "%s: %lld MB of memory are needed to measure how fast it is read", function,
                        (long long)(bytes >> 20));
    *out = memory;
    return MM2_OK;
}

static mm2_status measure_other_memory(reading *r, mm2_pool *pool, mm2_limits *out)
{
    uint8_t *memory;
    mm2_status status = other_memory(&memory, "mm2_model_limits");
    if (status)
        return status;
    for (r->count = 0; r->count < ENOUGH; r->count++)
        r->pieces[r->count] = memory + (int64_t)r->count * PIECE;
    r->writes = 1;
    touch_pieces(r, pool, INT64_MAX);
    measure_reading(r, pool, out);
    munmap(memory, (size_t)ENOUGH * PIECE);
    return MM2_OK;
}

static mm2_status limits_of_memory(mm2_model *m, mm2_limits *out)
{
    reading *r = calloc(1, sizeof *r);
    if (!r)
        return mm2_fail(MM2_E_NOMEM, "mm2_model_limits: out of memory");
    mm2_status status = MM2_OK;
    r->kernels = m->kernels;
    choose_pieces(r, &m->checkpoint);
    if (r->count >= ENOUGH)
        touch_pieces(r, m->pool, mm2_now() + TOUCH_MS * 1000000LL);
    if (r->count >= ENOUGH)
        measure_reading(r, m->pool, out);
    else
        status = measure_other_memory(r, m->pool, out);
    free(r);
    return status;
}

/* ---- Multiplying ---- */

/* Values around one, of either sign, that keep their sums small: what activations are like. */
static void fill_random(void *data, int kind)
{
    for (int32_t i = 0; i < MM2_PEAK_BYTES; i++)
        ((uint8_t *)data)[i] = (uint8_t)(mm2_splitmix64(kind, i / 8) >> i % 8 * 8);
    for (int32_t i = 0; kind == MM2_PEAK_F32 && i < MM2_PEAK_BYTES / 4; i++)
        ((float *)data)[i] = (float)(2 * mm2_uniform(kind, i) - 1);
    for (int32_t i = 0; kind == MM2_PEAK_BF16 && i < MM2_PEAK_BYTES / 2; i++)
        ((uint16_t *)data)[i] = mm2_f32_bf16((float)(2 * mm2_uniform(kind, i) - 1));
}

static void multiply(void *context, int32_t unit, int32_t thread)
{
    multiplying *m = context;
    int64_t ops;
    uint64_t sum = m->peak(m->data, ROUNDS, &ops);
    if (unit == 0)
        m->ops = ops;
    atomic_fetch_add_explicit(&m->sum, sum, memory_order_relaxed);
}

static double peak_of(const mm2_model *m, int kind)
{
    _Alignas(64) uint8_t data[MM2_PEAK_BYTES];
    if (!m->kernels->peak[kind])
        kind = MM2_PEAK_F32;
    fill_random(data, kind);
    multiplying work = {.peak = m->kernels->peak[kind], .data = data};
    double units = pace(m->pool, multiply, &work, PEAK_MS);
    return units * (double)work.ops;
}

mm2_status mm2_model_limits(mm2_model *m, mm2_limits *out)
{
    MM2_NEED(m, "model");
    MM2_NEED(out, "out");
    mm2_limits found = {.size = sizeof found, .threads = mm2_pool_threads(m->pool)};
    uint32_t mode = mm2_float_mode_enter();
    mm2_pool_prepare(m->pool);
    mm2_status status = limits_of_memory(m, &found);
    if (!status) {
        found.int8_ops = peak_of(m, MM2_PEAK_INT8);
        found.bf16_ops = peak_of(m, MM2_PEAK_BF16);
        found.f32_ops = peak_of(m, MM2_PEAK_F32);
        status = mm2_struct_write(out, &found, "mm2_limits");
    }
    mm2_float_mode_leave(mode);
    return status;
}

/* ---- Attention ---- */

typedef struct attending {
    const mm2_model *model;
    int32_t kv_dtype, kv, rows, near; /* kv: the kernels' number of the dtype */
    int64_t bytes, chunks;            /* of a chunk, keys and values; how many there are */
    uint8_t *memory;
    float *states; /* of each thread: m, l, o and q of ROWS rows */
} attending;

static int64_t state_floats(const mm2_config *g)
{
    int64_t group = g->num_attention_heads / g->num_key_value_heads;
    return ROWS * group * (2 + 2 * (int64_t)g->head_dim);
}

/* Keys or values of a chunk: around one, of either sign; codes with a scale that makes them so. */
static void fill_half(char *p, int32_t dtype, int32_t head_dim, int keys)
{
    const float scale = 1.0f / 127;
    uint64_t draws = 0;
    for (int32_t j = 0; j < MM2_CHUNK; j++) {
        for (int32_t d = 0; d < head_dim; d++) {
            float x = (float)(2 * mm2_uniform((uint64_t)keys, draws++) - 1);
            int64_t at =
                keys ? mm2_key_at(dtype, head_dim, j, d) : mm2_value_at(dtype, head_dim, j, d);
            if (dtype == MM2_F32)
                ((float *)p)[at] = x;
            else if (dtype == MM2_BF16)
                ((uint16_t *)p)[at] = mm2_f32_bf16(x);
            else
                p[at] = (char)(int)(127 * x);
        }
        if (dtype == MM2_INT8)
            memcpy(p + (keys ? mm2_key_scale_at(head_dim, j) : mm2_value_scale_at(head_dim, j)),
                   &scale, sizeof scale);
    }
}

static void copy_chunk(void *context, int32_t unit, int32_t thread)
{
    attending *a = context;
    if (unit) /* the first is what is copied */
        memcpy(a->memory + unit * a->bytes, a->memory, (size_t)a->bytes);
}

static void attend_chunks(void *context, int32_t unit, int32_t thread)
{
    const attending *a = context;
    const mm2_config *g = &a->model->checkpoint.config;
    int32_t group = g->num_attention_heads / g->num_key_value_heads, heads = a->rows * group;
    float *m = a->states + thread * state_floats(g), *l = m + ROWS * group, *o = l + ROWS * group;
    float *q = o + (int64_t)ROWS * group * g->head_dim;
    for (int32_t i = 0; i < heads; i++)
        m[i] = -INFINITY, l[i] = 0;
    memset(o, 0, sizeof *o * (size_t)heads * (size_t)g->head_dim);
    for (int32_t i = 0; i < a->near; i++) {
        /* Units of a prompt share their chunks: other rows meet the same ones. */
        int64_t chunk = a->near == 1 ? unit % a->chunks : thread * a->near + i;
        const uint8_t *keys = a->memory + chunk % a->chunks * a->bytes;
        a->model->kernels->attend[a->kv](m, l, o, q, group, a->rows, group, keys,
                                         keys + a->bytes / 2, MM2_CHUNK, g->head_dim,
                                         1 / sqrtf((float)g->head_dim));
    }
}

static mm2_status measure_attention(attending *a, mm2_attention *out)
{
    const mm2_config *g = &a->model->checkpoint.config;
    mm2_pool *pool = a->model->pool;
    const mm2_limit whole = {.deadline = INT64_MAX};
    mm2_progress progress = {0};
    mm2_status status = other_memory(&a->memory, "mm2_model_attention");
    if (status)
        return status;
    fill_half((char *)a->memory, a->kv_dtype, g->head_dim, 1);
    fill_half((char *)a->memory + a->bytes / 2, a->kv_dtype, g->head_dim, 0);
    mm2_pool_run(pool, copy_chunk, a, &progress, (int32_t)a->chunks, &whole);
    a->rows = a->near = 1;
    out->read = pace(pool, attend_chunks, a, ATTEND_MS) * (double)a->bytes;
    a->rows = ROWS;
    a->near = NEAR;
    out->ops = pace(pool, attend_chunks, a, ATTEND_MS) * NEAR * ROWS * MM2_CHUNK * 4.0 *
               g->head_dim * g->num_attention_heads / g->num_key_value_heads;
    munmap(a->memory, (size_t)ENOUGH * PIECE);
    return MM2_OK;
}

mm2_status mm2_model_attention(mm2_model *m, int32_t kv_dtype, mm2_attention *out)
{
    MM2_NEED(m, "model");
    MM2_NEED(out, "out");
    const mm2_config *g = &m->checkpoint.config;
    mm2_attention found = {.size = sizeof found, .threads = mm2_pool_threads(m->pool)};
    attending a = {.model = m, .kv_dtype = kv_dtype, .kv = mm2_kv_of(kv_dtype)};
    if (a.kv < 0 || (kv_dtype == MM2_INT8 && g->head_dim > MM2_INT8_DIM_LIMIT))
        return mm2_fail(
            MM2_E_ARG,
            "mm2_model_attention: kv_dtype is %d, expected MM2_BF16, MM2_F32 or, up to a "
            "head_dim of %d, MM2_INT8",
            kv_dtype, MM2_INT8_DIM_LIMIT);
    a.bytes = 2 * mm2_kv_bytes(kv_dtype, g->head_dim);
    a.chunks = (int64_t)ENOUGH * PIECE / a.bytes;
    int64_t floats = found.threads * state_floats(g);
    a.states = aligned_alloc(64, (size_t)(floats * 4 + 63) / 64 * 64);
    if (!a.states)
        return mm2_fail(MM2_E_NOMEM, "mm2_model_attention: out of memory");
    for (int64_t i = 0; i < floats; i++)
        a.states[i] = (float)(2 * mm2_uniform(2, (uint64_t)i) - 1);
    uint32_t mode = mm2_float_mode_enter();
    mm2_pool_prepare(m->pool);
    mm2_status status = measure_attention(&a, &found);
    mm2_float_mode_leave(mode);
    free(a.states);
    return status ? status : mm2_struct_write(out, &found, "mm2_attention");
}
