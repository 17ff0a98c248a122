/* The walk: sections embed -> (attention, feed-forward) for each layer -> head. State is (section,
 * layer, step, round, progress) and, behind a finished step, (point, span); everything a run needs
 * to go on lives in mm2_forward, so a run may return between any two units.
 *
 * A chunk is committed when its last step is done: only then do the sessions' positions move.
 * Before that the KV positions being written lie beyond every session's position, so dropping a
 * chunk needs no repair.
 *
 * All buffers are carved from one mapping sized for `capacity` rows; the system commits what a
 * chunk really touches. */
#include "run/forward.h"

#include "base/status.h"
#include "run/rope.h"
#include "run/session.h"
#include "tensor/quant.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SECTION_EMBED, SECTION_ATTENTION, SECTION_FEED_FORWARD, SECTION_HEAD };
/* Of one unit: at most about a millisecond of one core, at least what a hand-over is worth. Output
 * features come in multiples of what the widest kernels take together. */
enum { UNIT_FLOPS = 64 << 20, LEAST_FLOPS = 64 << 10, TILE_STEP = 32 };

/* ---- Memory ---- */

typedef struct carver {
    char *base; /* NULL: only measure */
    int64_t used;
} carver;

static void *carve(carver *c, int64_t count, int64_t bytes)
{
    void *p = c->base ? c->base + c->used : NULL;
    c->used += (count * bytes + 63) / 64 * 64;
    return p;
}

/* Room for all rows of the widest input, or for the rows of all experts, each beginning a group. */
static void *carve_panel(carver *c, const mm2_forward *f, int32_t kind)
{
    const mm2_config *g = mm2_forward_config(f);
    int32_t q_width = g->num_attention_heads * g->head_dim;
    int32_t widest = q_width > g->hidden_size ? q_width : g->hidden_size;
    int32_t inner = g->hidden_size > g->intermediate_size ? g->hidden_size : g->intermediate_size;
    int64_t experts = (int64_t)f->capacity * g->num_experts_per_tok / 16 + g->num_local_experts;
    int64_t bytes = mm2_panel_bytes(kind, f->capacity, widest);
    int64_t other = experts * mm2_panel_bytes(kind, 16, inner);
    return carve(c, bytes > other ? bytes : other, 1);
}

/* Called twice: to measure, and to hand out. Sizes cannot overflow: capacity <= 4096 and the
 * config's fields are bounded. */
static void carve_buffers(mm2_forward *f, carver *c)
{
    const mm2_config *g = mm2_forward_config(f);
    int64_t rows = f->capacity, slots = rows * g->num_experts_per_tok;
    int64_t q_width = (int64_t)g->num_attention_heads * g->head_dim;
    int64_t kv_width = (int64_t)g->num_key_value_heads * g->head_dim;
    f->x = carve(c, rows * g->hidden_size, 4);
    f->h = carve(c, rows * g->hidden_size, 4);
    f->out = carve(c, rows * g->hidden_size, 4);
    f->q = carve(c, rows * q_width, 4);
    f->z = carve(c, rows * q_width, 4);
    f->k = carve(c, rows * kv_width, 4);
    f->v = carve(c, rows * kv_width, 4);
    f->m = carve(c, rows * g->num_attention_heads, 4);
    f->l = carve(c, rows * g->num_attention_heads, 4);
    f->cosine = carve(c, rows * g->rotary_dim / 2, 4);
    f->sine = carve(c, rows * g->rotary_dim / 2, 4);
    f->frequency = carve(c, g->rotary_dim / 2, 4);
    f->router = carve(c, rows * g->num_local_experts, 4);
    f->scores = carve(c, rows * g->num_local_experts, 4);
    f->indices = carve(c, slots, 4);
    f->expert_weights = carve(c, slots, 4);
    f->hidden = carve(c, slots * g->intermediate_size, 4);
    f->group_begin = carve(c, g->num_local_experts + 1, 4);
    f->unit_expert = carve(c, g->num_local_experts + 1, 4);
    f->expert_panel = carve(c, g->num_local_experts, 4);
    f->slots = carve(c, slots, 4);
    f->row_span = carve(c, rows, 4);
    f->row_position = carve(c, rows, 4);
    f->spans = carve(c, f->span_limit, sizeof(mm2_span));
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++) {
        int64_t bytes = rows * mm2_act_bytes(kind, g->hidden_size);
        int64_t other = rows * mm2_act_bytes(kind, q_width);
        bytes = other > bytes ? other : bytes;
        other = slots * mm2_act_bytes(kind, g->intermediate_size);
        bytes = other > bytes ? other : bytes;
        f->input.data[kind] = kind == MM2_ACT_F32 ? NULL : carve(c, bytes, 1);
        f->input.pointers[kind] = carve(c, slots > rows ? slots : rows, sizeof(void *));
        f->input.panel[kind] = f->model->kernels->pack[kind] ? carve_panel(c, f, kind) : NULL;
    }
    int32_t threads = mm2_pool_threads(f->model->pool);
    int32_t group = g->num_attention_heads / g->num_key_value_heads;
    f->parts = carve(c, (int64_t)threads * MM2_PARTS_A_THREAD * group, (g->head_dim + 2) * 4);
    int64_t tile = rows * MM2_TILE;
    int64_t vectors[] = {g->hidden_size, q_width, kv_width, g->num_local_experts}; /* norms, bias */
    for (int32_t i = 0; i < 4; i++)
        tile = vectors[i] > tile ? vectors[i] : tile;
    mm2_thread_scratch *scratch = carve(c, threads, sizeof *scratch);
    for (int32_t i = 0; i < threads; i++) {
        mm2_thread_scratch s = {.out = carve(c, rows, sizeof(void *)),
                                .act = carve(c, rows, sizeof(void *)),
                                .a = carve(c, tile, 4),
                                .b = carve(c, tile, 4)};
        if (c->base)
            scratch[i] = s;
    }
    f->threads = scratch;
    f->logits = carve(c, rows * g->vocab_size, 4);
}

mm2_status mm2_forward_new(mm2_forward **out, mm2_model *m, int32_t capacity, int32_t span_limit)
{
    mm2_forward *f = calloc(1, sizeof *f);
    if (!f)
        return mm2_fail(MM2_E_NOMEM, "out of memory for a forward pass");
    f->model = m;
    f->capacity = capacity;
    f->span_limit = span_limit;
    carver measure = {0};
    carve_buffers(f, &measure);
    f->memory_bytes = measure.used;
    void *memory = mmap(NULL, (size_t)measure.used, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        free(f);
        return mm2_fail(
            MM2_E_NOMEM,
            "out of memory: the buffers of a chunk of %d tokens need %lld bytes of address "
            "space; ask for a smaller chunk",
            capacity, (long long)measure.used);
    }
    f->memory = memory;
    carver hand_out = {.base = memory};
    carve_buffers(f, &hand_out);
    const mm2_config *g = mm2_forward_config(f);
    mm2_rope_frequencies(f->frequency, g->rope_theta, g->rotary_dim / 2);
    *out = f;
    return MM2_OK;
}

void mm2_forward_free(mm2_forward *f)
{
    while (f) {
        mm2_forward *outgrown = f->outgrown;
        mm2_forward_abort(f);
        munmap(f->memory, (size_t)f->memory_bytes);
        free(f);
        f = outgrown;
    }
}

void mm2_forward_abort(mm2_forward *f)
{
    for (int32_t i = 0; i < f->span_count; i++)
        f->spans[i].session->flight = NULL;
    f->rows = f->span_count = 0;
}

/* ---- Helpers of the blocks ---- */

void mm2_forward_input(mm2_forward *f, const float *rows, int32_t n, int32_t count, uint32_t kinds,
                       int whole, int32_t *units)
{
    mm2_input *in = &f->input;
    in->rows = rows;
    in->n = n;
    in->count = count;
    in->kinds = kinds;
    in->unit_rows = 1;
    for (int32_t kind = 0; kind < MM2_ACT_KINDS; kind++) {
        if (!(kinds >> kind & 1))
            continue;
        const char *base = kind == MM2_ACT_F32 ? (const char *)rows : in->data[kind];
        int64_t stride = kind == MM2_ACT_F32 ? (int64_t)n * 4 : mm2_act_bytes(kind, n);
        for (int32_t r = 0; r < count; r++)
            in->pointers[kind][r] = base + r * stride;
        if (whole && mm2_forward_packs(f, kind, count))
            in->unit_rows = 16;
    }
    *units = kinds & ~(1u << MM2_ACT_F32) ? (count + in->unit_rows - 1) / in->unit_rows : 0;
}

void mm2_forward_quantize_row(mm2_forward *f, int32_t row)
{
    const mm2_input *in = &f->input;
    for (int32_t kind = MM2_ACT_F32 + 1; kind < MM2_ACT_KINDS; kind++)
        if (in->kinds >> kind & 1)
            f->model->kernels->quantize[kind]((void *)in->pointers[kind][row],
                                              in->rows + (int64_t)row * in->n, in->n);
}

void mm2_forward_pack(mm2_forward *f, int32_t kind, int32_t group, const void *const *acts,
                      int32_t rows)
{
    const mm2_input *in = &f->input;
    f->model->kernels->pack[kind](in->panel[kind] + group * mm2_panel_bytes(kind, 16, in->n), acts,
                                  rows, in->n);
}

void mm2_forward_quantize(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    const mm2_input *in = &f->input;
    int32_t first = unit * in->unit_rows, rows = in->count - first;
    rows = rows < in->unit_rows ? rows : in->unit_rows;
    for (int32_t row = first; row < first + rows; row++)
        mm2_forward_quantize_row(f, row);
    for (int32_t kind = 0; in->unit_rows > 1 && kind < MM2_ACT_KINDS; kind++)
        if (in->kinds >> kind & 1 && mm2_forward_packs(f, kind, in->count))
            mm2_forward_pack(f, kind, unit, in->pointers[kind] + first, rows);
}

void mm2_forward_multiply(const mm2_forward *f, const mm2_weight *w, float *const *out,
                          int32_t first, int32_t count, const void *const *acts, int32_t group,
                          int32_t rows)
{
    const mm2_kernels *kernels = f->model->kernels;
    int32_t kind = mm2_input_act(f, w);
    if (mm2_forward_packs(f, kind, rows))
        kernels->matmul_packed[w->dtype](
            out, w, first, count,
            f->input.panel[kind] + group * mm2_panel_bytes(kind, 16, f->input.n), rows);
    else if (f->model->precision == MM2_PRECISION_EXACT)
        kernels->exact[w->dtype](out, w, first, count, acts, rows);
    else
        kernels->matmul[w->dtype](out, w, first, count, acts, rows);
}

int32_t mm2_forward_tile(const mm2_forward *f, int32_t n_out, int32_t n_in, int32_t rows)
{
    int64_t each = (int64_t)2 * n_in * (rows ? rows : 1);
    int64_t most = UNIT_FLOPS / each, least = LEAST_FLOPS / each;
    int64_t tile = n_out / (4 * mm2_pool_threads(f->model->pool));
    tile = tile < least ? least : tile;
    tile = (tile < most ? tile : most) / TILE_STEP * TILE_STEP;
    return tile < TILE_STEP ? TILE_STEP : tile > MM2_TILE ? MM2_TILE : (int32_t)tile;
}

void mm2_forward_product(mm2_forward *f, int32_t thread, const mm2_weight *w, float *out,
                         int64_t stride, int32_t first, int32_t count)
{
    float **rows = (float **)f->threads[thread].out;
    for (int32_t r = 0; r < f->input.count; r++)
        rows[r] = out + r * stride + first;
    mm2_forward_multiply(f, w, rows, first, count, f->input.pointers[mm2_input_act(f, w)], 0,
                         f->input.count);
}

void mm2_forward_norm(const mm2_forward *f, int32_t thread, const mm2_weight *w, float *out,
                      const float *x, int32_t n)
{
    float *weight = f->threads[thread].a;
    mm2_dequantize_row(w->dtype, w->data, weight, n);
    f->model->kernels->rms_norm(out, x, weight, n, mm2_forward_config(f)->rms_norm_eps);
}

mm2_status mm2_forward_rows(mm2_forward *f, int32_t round, int32_t *units)
{
    *units = round ? -1 : f->rows;
    return MM2_OK;
}

void mm2_forward_add(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    int32_t n = mm2_forward_config(f)->hidden_size;
    int64_t at = (int64_t)unit * n;
    f->model->kernels->axpy(f->x + at, 1, f->out + at, n);
}

/* ---- The steps outside the layers ---- */

static void embed_row(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    const mm2_config *g = mm2_forward_config(f);
    const mm2_weight *w = &f->model->weights.embed;
    const mm2_span *span = &f->spans[f->row_span[unit]];
    int32_t id = span->session->tokens[f->row_position[unit]], half = g->rotary_dim / 2;
    mm2_dequantize_row(w->dtype, (const char *)w->data + id * w->row_bytes,
                       f->x + (int64_t)unit * g->hidden_size, g->hidden_size);
    mm2_rope_angles(f->cosine + (int64_t)unit * half, f->sine + (int64_t)unit * half, f->frequency,
                    half, f->row_position[unit]);
}

static void final_norm_row(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    int32_t n = mm2_forward_config(f)->hidden_size;
    int64_t at = (int64_t)unit * n;
    mm2_forward_norm(f, thread, &f->model->weights.final_norm, f->h + at, f->x + at, n);
}

/* Only rows that somebody asked for have logits: the last one fed, or all under a tap. They are
 * gathered in `out`. */
static mm2_status begin_head_input(mm2_forward *f, int32_t round, int32_t *units)
{
    if (round) {
        *units = -1;
        return MM2_OK;
    }
    int32_t n = mm2_forward_config(f)->hidden_size;
    int32_t last = mm2_forward_config(f)->num_hidden_layers - 1;
    f->logits_rows = 0;
    for (int32_t i = 0; i < f->span_count; i++) {
        mm2_span *span = &f->spans[i];
        int all = mm2_session_tapped(span->session, MM2_POINT_LOGITS, last);
        span->logits_row = f->logits_rows;
        span->logits_rows = all ? span->rows : span->first + span->rows == span->session->length;
        memcpy(f->out + (int64_t)f->logits_rows * n,
               f->h + (int64_t)(span->row + span->rows - span->logits_rows) * n,
               (size_t)span->logits_rows * (size_t)n * 4);
        f->logits_rows += span->logits_rows;
    }
    mm2_forward_input(f, f->out, n, f->logits_rows, mm2_input_kind(f, &f->model->weights.head), 1,
                      units);
    return MM2_OK;
}

static mm2_status begin_head(mm2_forward *f, int32_t round, int32_t *units)
{
    const mm2_weight *w = &f->model->weights.head;
    int32_t tile = mm2_forward_tile(f, w->n_out, w->n_in, f->logits_rows);
    *units = round ? -1 : f->logits_rows ? (w->n_out + tile - 1) / tile : 0;
    return MM2_OK;
}

static void head_tile(void *forward, int32_t unit, int32_t thread)
{
    mm2_forward *f = forward;
    const mm2_weight *w = &f->model->weights.head;
    int32_t tile = mm2_forward_tile(f, w->n_out, w->n_in, f->logits_rows), first = unit * tile;
    int32_t count = w->n_out - first < tile ? w->n_out - first : tile;
    mm2_forward_product(f, thread, w, f->logits, w->n_out, first, count);
}

static const mm2_step embed_steps[] = {{mm2_forward_rows, embed_row, {MM2_POINT_EMBED + 1}}};
static const mm2_step head_steps[] = {
    {mm2_forward_rows, final_norm_row, {MM2_POINT_FINAL_NORM + 1}},
    {begin_head_input, mm2_forward_quantize, {0}},
    {begin_head, head_tile, {MM2_POINT_LOGITS + 1}},
};
static const mm2_block embed_block = {embed_steps, 1};
static const mm2_block head_block = {head_steps, 3};

/* ---- The walk ---- */

static const mm2_block *block_at(const mm2_forward *f)
{
    static const mm2_block *const attentions[] = {[MM2_ATTENTION_GQA] = &mm2_block_gqa};
    static const mm2_block *const feed_forwards[] = {[MM2_FEED_FORWARD_MOE] = &mm2_block_moe};
    switch (f->section) {
    case SECTION_EMBED:
        return &embed_block;
    case SECTION_ATTENTION:
        return attentions[mm2_forward_layer(f)->attention];
    case SECTION_FEED_FORWARD:
        return feed_forwards[mm2_forward_layer(f)->feed_forward];
    default:
        return &head_block;
    }
}

/* Moves to the next step; 0 when the pass is over. */
static int advance(mm2_forward *f)
{
    f->begun = f->finished = f->round = f->point = f->span = 0;
    if (++f->step < block_at(f)->count)
        return 1;
    f->step = 0;
    int32_t layers = mm2_forward_config(f)->num_hidden_layers;
    switch (f->section) {
    case SECTION_EMBED:
        f->section = SECTION_ATTENTION;
        return 1;
    case SECTION_ATTENTION:
        f->section = SECTION_FEED_FORWARD;
        return 1;
    case SECTION_FEED_FORWARD:
        if (f->layer + 1 < layers) {
            f->layer++;
            f->section = SECTION_ATTENTION;
        } else {
            f->section = SECTION_HEAD;
        }
        return 1;
    default:
        return 0;
    }
}

static void describe_point(const mm2_forward *f, int32_t point, const mm2_span *span,
                           mm2_event *event)
{
    const mm2_config *g = mm2_forward_config(f);
    int32_t width = g->hidden_size, heads = 0, dtype = MM2_F32, rows = span->rows, row = span->row;
    char *data;
    switch (point) {
    case MM2_POINT_EMBED:
    case MM2_POINT_RESID_PRE:
    case MM2_POINT_RESID_MID:
    case MM2_POINT_RESID_POST:
        data = (char *)f->x;
        break;
    case MM2_POINT_ATTN_OUT:
    case MM2_POINT_MLP_OUT:
        data = (char *)f->out;
        break;
    case MM2_POINT_Q:
    case MM2_POINT_Z:
        data = (char *)(point == MM2_POINT_Q ? f->q : f->z);
        heads = g->num_attention_heads;
        break;
    case MM2_POINT_K:
    case MM2_POINT_V:
        data = (char *)(point == MM2_POINT_K ? f->k : f->v);
        heads = g->num_key_value_heads;
        break;
    case MM2_POINT_ROUTER_LOGITS:
        data = (char *)f->router;
        width = g->num_local_experts;
        break;
    case MM2_POINT_EXPERT_INDICES:
        data = (char *)f->indices;
        width = g->num_experts_per_tok;
        dtype = MM2_I32;
        break;
    case MM2_POINT_EXPERT_WEIGHTS:
        data = (char *)f->expert_weights;
        width = g->num_experts_per_tok;
        break;
    case MM2_POINT_LOGITS:
        data = (char *)f->logits;
        width = g->vocab_size;
        rows = span->logits_rows;
        row = span->logits_row;
        break;
    default: /* ATTN_NORM, MLP_NORM, FINAL_NORM */
        data = (char *)f->h;
    }
    if (heads)
        width = heads * g->head_dim;
    mm2_tensor *t = &event->tensor;
    *t = (mm2_tensor){.data = data + (int64_t)row * width * 4,
                      .shape = {rows, heads ? heads : width, heads ? g->head_dim : 0},
                      .strides = {width, heads ? g->head_dim : 1, heads ? 1 : 0},
                      .nbytes = (int64_t)rows * width * 4,
                      .ndim = heads ? 3 : 2,
                      .dtype = dtype};
    event->point = point;
    event->layer = f->layer;
    event->first = span->first + span->rows - rows;
    event->count = rows;
}

/* The next tap behind the finished step, if there is one. */
static int offer_taps(mm2_forward *f, struct mm2_session *const *sessions, int32_t count,
                      mm2_event *event)
{
    const int8_t *points = block_at(f)->steps[f->step].points;
    for (; f->point < 3 && points[f->point]; f->point++, f->span = 0) {
        int32_t point = points[f->point] - 1;
        while (f->span < f->span_count) {
            const mm2_span *span = &f->spans[f->span++];
            if (!mm2_session_tapped(span->session, point, f->layer) ||
                (point == MM2_POINT_LOGITS && !span->logits_rows))
                continue;
            describe_point(f, point, span, event);
            for (int32_t i = 0; i < count; i++)
                if (sessions[i] == span->session)
                    event->session = i;
            return 1;
        }
    }
    return 0;
}

/* Takes rows from the sessions that have tokens pending, in their order; a row is kept for each of
 * the later ones, for capacity >= sessions (the batch sees to it). */
static mm2_status plan(mm2_forward *f, struct mm2_session *const *sessions, int32_t count)
{
    int32_t waiting = 0, room = f->capacity;
    for (int32_t i = 0; i < count; i++)
        waiting += sessions[i]->position < sessions[i]->length;
    for (int32_t i = 0; i < count && waiting; i++) {
        struct mm2_session *s = sessions[i];
        int32_t rows = s->length - s->position;
        if (!rows)
            continue;
        waiting--;
        rows = rows < room - waiting ? rows : room - waiting;
        mm2_status status = mm2_kv_reserve(&s->kv, s->position + rows);
        if (status) {
            mm2_forward_abort(f);
            return status;
        }
        f->spans[f->span_count] =
            (mm2_span){.session = s, .first = s->position, .rows = rows, .row = f->rows};
        for (int32_t r = 0; r < rows; r++) {
            f->row_span[f->rows + r] = f->span_count;
            f->row_position[f->rows + r] = s->position + r;
        }
        s->flight = f;
        s->logits_of = -1;
        f->span_count++;
        f->rows += rows;
        room -= rows;
    }
    f->section = SECTION_EMBED;
    f->layer = f->step = 0;
    f->begun = f->finished = f->round = f->point = f->span = 0;
    return MM2_OK;
}

static void commit(mm2_forward *f)
{
    int32_t vocab = mm2_forward_config(f)->vocab_size;
    for (int32_t i = 0; i < f->span_count; i++) {
        mm2_span *span = &f->spans[i];
        struct mm2_session *s = span->session;
        s->position = span->first + span->rows;
        if (span->logits_rows) {
            memcpy(s->logits,
                   f->logits + (int64_t)(span->logits_row + span->logits_rows - 1) * vocab,
                   (size_t)vocab * 4);
            s->logits_of = s->position - 1;
        }
    }
    mm2_forward_abort(f);
}

/* Runs the step at hand to its end: OK, MORE if a limit stopped it, or an error. */
static mm2_status run_step(mm2_forward *f, const mm2_limit *limit)
{
    const mm2_step *step = &block_at(f)->steps[f->step];
    for (;;) {
        if (!f->begun) {
            f->progress = (mm2_progress){0};
            mm2_status status = step->begin(f, f->round, &f->units);
            if (status)
                return status;
            f->begun = 1;
        }
        if (f->units < 0)
            break;
        if (!mm2_pool_run(f->model->pool, step->work, f, &f->progress, f->units, limit))
            return MM2_MORE;
        f->begun = 0;
        f->round++;
    }
    f->finished = 1;
    return MM2_OK;
}

static void report_progress(const mm2_forward *f, struct mm2_session *const *sessions,
                            int32_t count, mm2_event *event)
{
    int64_t layers = mm2_forward_config(f)->num_hidden_layers;
    event->done = event->total = 0;
    for (int32_t i = 0; i < count; i++) {
        const struct mm2_session *s = sessions[i];
        event->done += (s->position - s->progress_base) * layers;
        event->total += (s->length - s->progress_base) * layers;
    }
    event->done += (int64_t)f->rows * (f->section == SECTION_HEAD ? layers : f->layer);
}

static int work_is_left(struct mm2_session *const *sessions, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        if (sessions[i]->position < sessions[i]->length)
            return 1;
    return 0;
}

static int interrupted(struct mm2_session *const *sessions, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        if (atomic_load_explicit(&sessions[i]->stop, memory_order_relaxed))
            return 1;
    return 0;
}

static mm2_status walk(mm2_forward *f, struct mm2_session *const *sessions, int32_t count,
                       const mm2_limit *limit, mm2_event *event)
{
    while (f->rows || work_is_left(sessions, count)) {
        if (!f->rows) {
            mm2_status status = plan(f, sessions, count);
            if (status)
                return status;
        }
        if (!f->finished) {
            mm2_status status = run_step(f, limit);
            if (status)
                return status;
        }
        if (offer_taps(f, sessions, count, event))
            return MM2_TAP;
        if (!advance(f))
            commit(f);
        if (work_is_left(sessions, count) &&
            (interrupted(sessions, count) || mm2_now() >= limit->deadline))
            return MM2_MORE;
    }
    return MM2_OK;
}

mm2_status mm2_forward_run(mm2_forward *f, struct mm2_session *const *sessions, int32_t count,
                           int32_t budget_us, mm2_event *event)
{
    mm2_event own;
    event = event ? event : &own;
    *event = (mm2_event){.point = -1, .layer = -1};
    mm2_limit limit = {.deadline = budget_us ? mm2_now() + (int64_t)budget_us * 1000 : INT64_MAX,
                       .stop = count == 1 ? &sessions[0]->stop : NULL};
    for (int32_t i = 0; i < count; i++)
        atomic_store(&sessions[i]->stop, 0);
    mm2_pool_prepare(f->model->pool);
    uint32_t mode = mm2_float_mode_enter();
    mm2_status status = walk(f, sessions, count, &limit, event);
    mm2_float_mode_leave(mode);
    report_progress(f, sessions, count, event);
    return status;
}
