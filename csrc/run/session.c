/* Sessions and batches: argument checks, the busy flag, and the timeline's bookkeeping around the
 * forward pass.
 *
 * Every public call on a session takes its busy flag for the time of the call, so that a second
 * thread meets BUSY instead of a race. A batch takes its own flag and those of all members.
 * References: a session is kept by its handle and by the batch it is in; it keeps the model. */
#include "run/session.h"

#include "base/cpu.h"
#include "base/status.h"
#include "run/sampler.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_CONTEXT = 8192, DEFAULT_CHUNK = 1024, MAX_CHUNK = 4096 };

static mm2_status enter(atomic_int *busy, const char *what)
{
    if (atomic_exchange(busy, 1))
        return mm2_fail(MM2_E_BUSY,
                        "the %s is in use by another thread; use one thread at a time, or one %s "
                        "for each thread",
                        what, what);
    return MM2_OK;
}

static void leave(atomic_int *busy)
{
    atomic_store(busy, 0);
}

static mm2_status null_argument(const char *function, const char *argument)
{
    return mm2_fail(MM2_E_ARG, "%s: %s must not be NULL", function, argument);
}

/* ---- Life ---- */

void mm2_session_options_init(mm2_session_options *o)
{
    if (o)
        *o = (mm2_session_options){.size = sizeof *o, .kv_dtype = MM2_BF16};
}

static void session_destroy(mm2_session *s)
{
    mm2_forward_free(s->own);
    mm2_kv_free(&s->kv);
    free(s->tokens);
    free(s->logits);
    free(s->taps);
    mm2_model_release(s->model);
    free(s);
}

void mm2_session_release(mm2_session *s)
{
    if (atomic_fetch_sub(&s->references, 1) == 1)
        session_destroy(s);
}

/* Fills in defaults and checks ranges. */
static mm2_status settle_options(mm2_session_options *o, const mm2_config *g)
{
    if (o->size != sizeof *o)
        return mm2_fail(
            MM2_E_ARG,
            "session options: size is %u, expected %u; call mm2_session_options_init first",
            o->size, (unsigned)sizeof *o);
    if (!o->context)
        o->context = g->max_position_embeddings < DEFAULT_CONTEXT ? g->max_position_embeddings
                                                                  : DEFAULT_CONTEXT;
    if (!o->chunk)
        o->chunk = DEFAULT_CHUNK;
    if (o->context < 1 || o->context > g->max_position_embeddings)
        return mm2_fail(
            MM2_E_ARG,
            "context must be 1..%d positions (the model's max_position_embeddings), got %d",
            g->max_position_embeddings, o->context);
    if (o->chunk < 1 || o->chunk > MAX_CHUNK)
        return mm2_fail(MM2_E_ARG, "chunk must be 1..%d tokens, got %d", MAX_CHUNK, o->chunk);
    if (o->kv_dtype != MM2_BF16 && o->kv_dtype != MM2_F32) {
        const char *name = mm2_dtype_name(o->kv_dtype);
        return mm2_fail(MM2_E_ARG, "kv_dtype must be bf16 or f32, got %s",
                        name ? name : "an unknown number");
    }
    return MM2_OK;
}

static mm2_status check_memory(const mm2_config *g, const mm2_session_options *o)
{
    int64_t bytes = mm2_kv_bytes(g, o->kv_dtype, o->context), available = mm2_memory_available();
    if (bytes >= 0 && bytes <= available)
        return MM2_OK;
    int64_t one_page = mm2_kv_bytes(g, o->kv_dtype, 1);
    int64_t fits = one_page > 0 ? available / one_page * MM2_PAGE : 0;
    return mm2_fail(
        MM2_E_NOMEM,
        "a context of %d positions needs %lld MiB of KV cache in %s, %lld MiB are available; "
        "a context of %lld would fit%s",
        o->context, (long long)(bytes >> 20), mm2_dtype_name(o->kv_dtype),
        (long long)(available >> 20), (long long)fits,
        o->kv_dtype == MM2_F32 ? ", and bf16 takes half" : "");
}

mm2_status mm2_session_new(mm2_session **out, mm2_model *m, const mm2_session_options *options)
{
    if (!out || !m)
        return null_argument("mm2_session_new", out ? "model" : "out");
    *out = NULL;
    const mm2_config *g = &m->checkpoint.config;
    mm2_session_options o;
    mm2_session_options_init(&o);
    if (options)
        o = *options;
    mm2_status status = settle_options(&o, g);
    if (!status)
        status = check_memory(g, &o);
    if (status)
        return status;
    mm2_session *s = calloc(1, sizeof *s);
    if (!s)
        return mm2_fail(MM2_E_NOMEM, "out of memory for a session");
    atomic_init(&s->references, 1);
    mm2_model_retain(m);
    s->model = m;
    s->context = o.context;
    s->logits_of = -1;
    s->tokens = calloc((size_t)o.context, sizeof *s->tokens);
    s->taps = calloc((size_t)MM2_POINT_COUNT, (size_t)g->num_hidden_layers);
    if (posix_memalign((void **)&s->logits, 64, ((size_t)g->vocab_size * 4 + 63) / 64 * 64))
        s->logits = NULL;
    status = s->tokens && s->taps && s->logits
                 ? mm2_kv_init(&s->kv, g, o.kv_dtype, o.context)
                 : mm2_fail(MM2_E_NOMEM, "out of memory for a session");
    if (!status)
        status = mm2_forward_new(&s->own, m, o.chunk, 1);
    if (status) {
        session_destroy(s);
        return status;
    }
    *out = s;
    return MM2_OK;
}

mm2_status mm2_session_free(mm2_session *s)
{
    if (!s)
        return MM2_OK;
    mm2_status status = enter(&s->busy, "session");
    if (status)
        return status;
    leave(&s->busy); /* a batch may go on with it */
    mm2_session_release(s);
    return MM2_OK;
}

/* ---- The timeline ---- */

static mm2_status check_ids(const mm2_session *s, const int32_t *ids, int32_t n)
{
    int32_t vocab = s->model->checkpoint.config.vocab_size;
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return mm2_fail(MM2_E_ARG, "token id %d at index %d is outside the vocabulary 0..%d",
                            ids[i], i, vocab - 1);
    return MM2_OK;
}

static mm2_status feed(mm2_session *s, const int32_t *ids, int32_t n)
{
    if (n > s->context - s->length)
        return mm2_fail(MM2_E_FULL,
                        "%d tokens do not fit: the context has %d positions and %d are taken; make "
                        "the session with "
                        "a larger context, or rewind it",
                        n, s->context, s->length);
    mm2_status status = check_ids(s, ids, n);
    if (status)
        return status;
    if (s->position == s->length)
        s->progress_base = s->position;
    memcpy(s->tokens + s->length, ids, (size_t)n * sizeof *ids);
    s->length += n;
    return MM2_OK;
}

mm2_status mm2_session_feed(mm2_session *s, const int32_t *ids, int32_t n)
{
    if (!s || !ids)
        return null_argument("mm2_session_feed", s ? "ids" : "session");
    if (n < 1)
        return mm2_fail(MM2_E_ARG, "nothing to feed: %d tokens; a prompt needs at least one", n);
    mm2_status status = enter(&s->busy, "session");
    if (status)
        return status;
    status = feed(s, ids, n);
    leave(&s->busy);
    return status;
}

mm2_status mm2_session_run(mm2_session *s, int32_t budget_us, mm2_event *event)
{
    if (!s)
        return null_argument("mm2_session_run", "session");
    if (budget_us < 0)
        return mm2_fail(MM2_E_ARG, "budget_us must not be negative, got %d", budget_us);
    mm2_status status = enter(&s->busy, "session");
    if (status)
        return status;
    if (s->batch)
        status = mm2_fail(
            MM2_E_BUSY,
            "the session is a member of a batch; run the batch, or remove the session from it");
    else
        status = mm2_forward_run(s->own, &s, 1, budget_us, event);
    leave(&s->busy);
    return status;
}

void mm2_session_interrupt(mm2_session *s)
{
    if (s)
        atomic_store(&s->stop, 1);
}

int32_t mm2_session_context(const mm2_session *s)
{
    return s ? s->context : 0;
}

int32_t mm2_session_position(const mm2_session *s)
{
    return s ? s->position : 0;
}

int32_t mm2_session_length(const mm2_session *s)
{
    return s ? s->length : 0;
}

mm2_status mm2_session_tokens(const mm2_session *s, mm2_tensor *out)
{
    if (!s || !out)
        return null_argument("mm2_session_tokens", s ? "out" : "session");
    *out = (mm2_tensor){.data = s->tokens,
                        .shape = {s->length},
                        .strides = {1},
                        .nbytes = (int64_t)s->length * 4,
                        .ndim = 1,
                        .dtype = MM2_I32,
                        .flags = MM2_READ_ONLY};
    return MM2_OK;
}

static mm2_status rewind_to(mm2_session *s, int32_t length)
{
    if (length < 0 || length > s->length)
        return mm2_fail(MM2_E_ARG, "cannot rewind to %d tokens: the timeline has %d", length,
                        s->length);
    if (length == s->length)
        return MM2_OK;
    if (s->flight)
        mm2_forward_abort(
            s->flight); /* the other rows of a batch are evaluated again, to the same bits */
    s->length = length;
    if (s->position > length)
        s->position = length;
    s->progress_base = s->position;
    s->logits_of = -1;
    mm2_kv_truncate(&s->kv, s->position);
    return MM2_OK;
}

mm2_status mm2_session_rewind(mm2_session *s, int32_t length)
{
    if (!s)
        return null_argument("mm2_session_rewind", "session");
    mm2_status status = enter(&s->busy, "session");
    if (status)
        return status;
    status = rewind_to(s, length);
    leave(&s->busy);
    return status;
}

/* ---- Taps ---- */

static const char *const point_names[MM2_POINT_COUNT] = {"embed",
                                                         "resid_pre",
                                                         "attn_norm",
                                                         "q",
                                                         "k",
                                                         "v",
                                                         "z",
                                                         "attn_out",
                                                         "resid_mid",
                                                         "mlp_norm",
                                                         "router_logits",
                                                         "expert_indices",
                                                         "expert_weights",
                                                         "mlp_out",
                                                         "resid_post",
                                                         "final_norm",
                                                         "logits"};

const char *mm2_point_name(int32_t point)
{
    return point < 0 || point >= MM2_POINT_COUNT ? NULL : point_names[point];
}

/* The only layer at which a point exists, or -1 for all. */
static int32_t layer_of_point(const mm2_session *s, int32_t point)
{
    return point == MM2_POINT_EMBED                                     ? 0
           : point == MM2_POINT_FINAL_NORM || point == MM2_POINT_LOGITS ? s->kv.layers - 1
                                                                        : -1;
}

static mm2_status set_tap(mm2_session *s, int32_t point, int32_t layer, int32_t on)
{
    int32_t layers = s->kv.layers, only = layer_of_point(s, point);
    if (point < 0 || point >= MM2_POINT_COUNT)
        return mm2_fail(MM2_E_ARG, "tap point must be 0..%d, got %d", MM2_POINT_COUNT - 1, point);
    if (layer < -1 || layer >= layers)
        return mm2_fail(MM2_E_ARG, "tap layer must be 0..%d, or -1 for all, got %d", layers - 1,
                        layer);
    if (only >= 0 && layer >= 0 && layer != only)
        return mm2_fail(MM2_E_ARG, "the point %s exists at layer %d only, got layer %d",
                        point_names[point], only, layer);
    for (int32_t l = 0; l < layers; l++)
        if ((layer < 0 || l == layer) && (only < 0 || l == only))
            s->taps[point * layers + l] = on != 0;
    return MM2_OK;
}

mm2_status mm2_session_tap(mm2_session *s, int32_t point, int32_t layer, int32_t on)
{
    if (!s)
        return null_argument("mm2_session_tap", "session");
    mm2_status status = enter(&s->busy, "session");
    if (status)
        return status;
    status = set_tap(s, point, layer, on);
    leave(&s->busy);
    return status;
}

/* ---- Logits ---- */

static mm2_status need_logits(const mm2_session *s)
{
    if (s->position < s->length)
        return mm2_fail(MM2_E_ARG,
                        "no logits yet: %d of %d tokens are evaluated; run the session first",
                        s->position, s->length);
    if (s->logits_of < 0)
        return mm2_fail(
            MM2_E_ARG,
            s->length ? "no logits: the timeline was cut back; feed a token and run the session"
                      : "no logits: nothing was fed; feed a prompt and run the session");
    return MM2_OK;
}

mm2_status mm2_session_logits(mm2_session *s, mm2_tensor *out)
{
    if (!s || !out)
        return null_argument("mm2_session_logits", s ? "out" : "session");
    mm2_status status = enter(&s->busy, "session");
    if (status)
        return status;
    status = need_logits(s);
    if (!status) {
        int64_t vocab = s->model->checkpoint.config.vocab_size;
        *out = (mm2_tensor){.data = s->logits,
                            .shape = {vocab},
                            .strides = {1},
                            .nbytes = vocab * 4,
                            .ndim = 1,
                            .dtype = MM2_F32};
    }
    leave(&s->busy);
    return status;
}

mm2_status mm2_session_logprobs(mm2_session *s, const int32_t *ids, int32_t n, float *out)
{
    if (!s || !ids || !out)
        return null_argument("mm2_session_logprobs", !s ? "session" : !ids ? "ids" : "out");
    mm2_status status = enter(&s->busy, "session");
    if (status)
        return status;
    status = need_logits(s);
    if (!status)
        status = mm2_logprobs_of(s->logits, s->model->checkpoint.config.vocab_size, ids, n, out);
    leave(&s->busy);
    return status;
}

mm2_status mm2_session_top(mm2_session *s, int32_t n, int32_t *ids, float *logprobs)
{
    if (!s || !ids || !logprobs)
        return null_argument("mm2_session_top", !s ? "session" : !ids ? "ids" : "logprobs");
    mm2_status status = enter(&s->busy, "session");
    if (status)
        return status;
    status = need_logits(s);
    if (!status)
        status =
            mm2_logprobs_top(s->logits, s->model->checkpoint.config.vocab_size, n, ids, logprobs);
    leave(&s->busy);
    return status;
}

int32_t mm2_sampler_next(mm2_sampler *p, mm2_session *s, const uint32_t *mask)
{
    if (!p || !s)
        return null_argument("mm2_sampler_next", p ? "session" : "sampler");
    mm2_status status = enter(&s->busy, "session");
    if (status)
        return status;
    int32_t vocab = s->model->checkpoint.config.vocab_size;
    status = need_logits(s);
    if (!status && mm2_sampler_vocab(p) != vocab)
        status = mm2_fail(
            MM2_E_ARG, "the sampler was made for a vocabulary of %d tokens, the session's has %d",
            mm2_sampler_vocab(p), vocab);
    if (!status)
        status = mm2_sampler_choose(p, s->logits, s->tokens, s->length, s->length, mask);
    leave(&s->busy);
    return status;
}
