/* The public functions of a session: argument checks and the busy flag around its timeline.
 *
 * Every public call on a session takes its busy flag for the time of the call, so that a second
 * thread meets BUSY instead of a race, and a reference, so that a handle that is freed meanwhile
 * takes the session with it only when the call is over. A batch takes its own flag and those of all
 * members. A session keeps its model. */
#include "run/session.h"

#include "base/cpu.h"
#include "base/status.h"
#include "run/ahead.h"
#include "run/points.h"
#include "run/sampler.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_CONTEXT = 8192, DEFAULT_CHUNK = 1024, MAX_CHUNK = 4096 };

/* ---- Life ---- */

void mm2_session_options_init(mm2_session_options *o)
{
    mm2_session_options defaults = {.size = sizeof defaults, .kv_dtype = MM2_BF16};
    mm2_struct_init(o, &defaults);
}

mm2_status mm2_session_enter(mm2_session *s)
{
    int torn;
    mm2_status status = mm2_busy_enter(&s->busy, "session", &torn);
    if (status)
        return status;
    atomic_fetch_add(&s->references, 1);
    if (torn) {
        mm2_pass_drop(s->timeline.pass, &s->timeline);
        mm2_schedule_tidy(&s->schedule);
        mm2_ahead_cut(&s->timeline);
        s->timeline.logits_of = -1;
    }
    return MM2_OK;
}

void mm2_session_leave(mm2_session *s)
{
    mm2_busy_leave(&s->busy);
    mm2_session_release(s);
}

void mm2_session_release(mm2_session *s)
{
    if (atomic_fetch_sub(&s->references, 1) != 1)
        return;
    mm2_schedule_drop(&s->schedule);
    mm2_timeline_free(&s->timeline);
    free(s);
}

mm2_status mm2_session_settle(mm2_session_options *o, const mm2_config *g)
{
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
    if (mm2_kv_of(o->kv_dtype) < 0) {
        const char *name = mm2_dtype_name(o->kv_dtype);
        return mm2_fail(MM2_E_ARG, "kv_dtype must be bf16, f32 or int8, got %s",
                        name ? name : "an unknown number");
    }
    if (o->kv_dtype == MM2_INT8 && g->head_dim > MM2_INT8_DIM_LIMIT)
        return mm2_fail(MM2_E_ARG,
                        "kv_dtype int8 takes a head_dim of at most %d, and the model's is %d; take "
                        "bf16",
                        MM2_INT8_DIM_LIMIT, g->head_dim);
    return MM2_OK;
}

/* The cache of the whole context, and the buffers of one chunk. */
static mm2_status check_memory(mm2_model *m, const mm2_session_options *o)
{
    int32_t chunk = o->chunk < o->context ? o->chunk : o->context;
    int64_t cache = mm2_timeline_bytes(m, o->kv_dtype, o->context);
    int64_t buffers = mm2_pass_bytes(m, chunk), available = mm2_memory_available();
    if (cache >= 0 && cache <= available && buffers <= available - cache)
        return MM2_OK;
    int64_t page = mm2_timeline_bytes(m, o->kv_dtype, 1), left = available - buffers;
    return mm2_fail(MM2_E_NOMEM,
                    "a context of %d positions needs %lld MiB of KV cache in %s, and a chunk of %d "
                    "tokens %lld MiB; %lld MiB are available; a context of %lld would fit%s",
                    o->context, (long long)(cache >> 20), mm2_dtype_name(o->kv_dtype), chunk,
                    (long long)(buffers >> 20), (long long)(available >> 20),
                    page > 0 && left > 0 ? (long long)(left / page * MM2_PAGE) : 0,
                    o->kv_dtype == MM2_F32    ? ", and bf16 takes half"
                    : o->kv_dtype == MM2_BF16 ? ", and int8 takes half"
                                              : "");
}

static mm2_session *allocate(void)
{
    mm2_session *s = calloc(1, sizeof *s);
    if (s)
        atomic_init(&s->references, 1);
    else
        mm2_fail(MM2_E_NOMEM, "out of memory for a session");
    return s;
}

mm2_status mm2_session_new(mm2_session **out, mm2_model *m, const mm2_session_options *options)
{
    MM2_NEED(out, "out");
    *out = NULL;
    MM2_NEED(m, "model");
    mm2_session_options o = {.size = sizeof o};
    mm2_session_options_init(&o);
    mm2_status status = options ? mm2_struct_read(&o, options, "session options") : MM2_OK;
    if (!status)
        status = mm2_session_settle(&o, &m->checkpoint.config);
    if (!status)
        status = check_memory(m, &o);
    if (status)
        return status;
    mm2_session *s = allocate();
    if (!s)
        return MM2_E_NOMEM;
    status = mm2_timeline_init(&s->timeline, m, &o);
    if (status) {
        free(s);
        return status;
    }
    *out = s;
    return MM2_OK;
}

mm2_status mm2_session_fork(mm2_session **out, mm2_session *s)
{
    MM2_NEED(out, "out");
    *out = NULL;
    MM2_NEED(s, "session");
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    mm2_session *fork = allocate();
    status = fork ? mm2_timeline_fork(&fork->timeline, &s->timeline) : MM2_E_NOMEM;
    mm2_session_leave(s);
    if (status) {
        free(fork);
        return status;
    }
    *out = fork;
    return MM2_OK;
}

void mm2_session_free(mm2_session *s)
{
    if (s)
        mm2_session_release(s);
}

/* ---- The timeline ---- */

mm2_status mm2_session_feed(mm2_session *s, const int32_t *ids, int32_t n)
{
    MM2_NEED(s, "session");
    MM2_NEED(ids, "ids");
    if (n < 1)
        return mm2_fail(MM2_E_ARG, "nothing to feed: %d tokens; a prompt needs at least one", n);
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    status = mm2_timeline_feed(&s->timeline, ids, n);
    mm2_session_leave(s);
    return status;
}

mm2_status mm2_session_run(mm2_session *s, int32_t budget_us, mm2_event *event)
{
    MM2_NEED(s, "session");
    if (budget_us < 0)
        return mm2_fail(MM2_E_ARG, "budget_us must not be negative, got %d", budget_us);
    mm2_event e = {.size = sizeof e, .point = -1, .layer = -1};
    mm2_status status = event ? mm2_struct_write(event, &e, "event") : MM2_OK;
    if (!status)
        status = mm2_session_enter(s);
    if (status)
        return status;
    mm2_timeline *t = &s->timeline;
    if (s->batch)
        status = mm2_fail(
            MM2_E_BUSY,
            "the session is a member of a batch; run the batch, or remove the session from it");
    else
        status = mm2_schedule_run(&s->schedule, &t, 1, t->chunk, 0, budget_us, &e);
    mm2_session_leave(s);
    if (event)
        mm2_struct_write(event, &e, "event");
    return status;
}

void mm2_session_interrupt(mm2_session *s)
{
    if (s)
        mm2_timeline_interrupt(&s->timeline);
}

int32_t mm2_session_context(const mm2_session *s)
{
    return s ? s->timeline.context : 0;
}

int32_t mm2_session_position(const mm2_session *s)
{
    return s ? s->timeline.position : 0;
}

int32_t mm2_session_length(const mm2_session *s)
{
    return s ? s->timeline.length : 0;
}

int32_t mm2_session_kv_dtype(const mm2_session *s)
{
    return s ? s->timeline.kv_dtype : 0;
}

int32_t mm2_session_reused(const mm2_session *s)
{
    return s ? s->timeline.reused : 0;
}

static mm2_tensor vector_view(void *data, int64_t n, int32_t dtype)
{
    return (mm2_tensor){
        .data = data, .shape = {n}, .strides = {1}, .nbytes = n * 4, .ndim = 1, .dtype = dtype};
}

mm2_status mm2_session_tokens(mm2_session *s, mm2_tensor *out)
{
    MM2_NEED(s, "session");
    MM2_NEED(out, "out");
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    status = mm2_timeline_see_tokens(&s->timeline);
    if (!status) {
        *out = vector_view(s->timeline.tokens->data, s->timeline.length, MM2_I32);
        out->flags = MM2_READ_ONLY;
    }
    mm2_session_leave(s);
    return status;
}

mm2_status mm2_session_rewind(mm2_session *s, int32_t length)
{
    MM2_NEED(s, "session");
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    status = mm2_timeline_rewind(&s->timeline, length);
    mm2_schedule_tidy(&s->schedule);
    mm2_session_leave(s);
    return status;
}

mm2_status mm2_session_tap(mm2_session *s, int32_t point, int32_t layer, int32_t on)
{
    MM2_NEED(s, "session");
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    status = mm2_points_tap(&s->timeline, point, layer, on);
    mm2_session_leave(s);
    return status;
}

mm2_status mm2_session_set_edits(mm2_session *s, const mm2_edit *edits, int32_t n)
{
    mm2_edits *made = NULL;
    MM2_NEED(s, "session");
    if (n < 0 || (n && !edits))
        return mm2_fail(MM2_E_ARG, "there are %d edits at %s", n, edits ? "an address" : "NULL");
    mm2_status status =
        n ? mm2_edits_new(&made, &s->timeline.model->checkpoint.config, edits, n) : MM2_OK;
    if (!status && (status = mm2_session_enter(s)))
        mm2_edits_release(made);
    if (status)
        return status;
    mm2_edits_release(s->timeline.edits);
    s->timeline.edits = made;
    mm2_ahead_drop(&s->timeline); /* it was evaluated with the earlier ones */
    mm2_session_leave(s);
    return MM2_OK;
}

/* ---- What may come next ---- */

mm2_status mm2_session_speculate(mm2_session *s, int32_t most)
{
    MM2_NEED(s, "session");
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    status = mm2_ahead_speculate(&s->timeline, most);
    mm2_session_leave(s);
    return status;
}

mm2_status mm2_session_draft(mm2_session *s, const int32_t *ids, int32_t n)
{
    MM2_NEED(s, "session");
    if (n < 0 || (n && !ids))
        return mm2_fail(MM2_E_ARG, "a draft of %d tokens%s", n,
                        n < 0 ? ", expected 0 or more" : " without a list of ids");
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    status = mm2_ahead_draft(&s->timeline, ids, n);
    mm2_session_leave(s);
    return status;
}

mm2_status mm2_session_speculation(mm2_session *s, mm2_speculation *out)
{
    MM2_NEED(s, "session");
    MM2_NEED(out, "out");
    mm2_speculation own = {.size = sizeof own};
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    mm2_ahead_tell(&s->timeline, &own);
    mm2_session_leave(s);
    return mm2_struct_write(out, &own, "mm2_speculation");
}

/* ---- Logits ---- */

static mm2_status need_logits(const mm2_timeline *t)
{
    if (t->position < t->length)
        return mm2_fail(MM2_E_ARG,
                        "no logits yet: %d of %d tokens are evaluated; run the session first",
                        t->position, t->length);
    if (t->logits_of < 0)
        return mm2_fail(
            MM2_E_ARG,
            t->length ? "no logits: the timeline was cut back; feed a token and run the session"
                      : "no logits: nothing was fed; feed a prompt and run the session");
    return MM2_OK;
}

/* The busy flag taken, logits at hand; or an error, and the flag is free. */
static mm2_status enter_with_logits(mm2_session *s)
{
    mm2_status status = mm2_session_enter(s);
    if (status)
        return status;
    status = need_logits(&s->timeline);
    if (status)
        mm2_session_leave(s);
    return status;
}

static int32_t vocab_of(const mm2_session *s)
{
    return s->timeline.model->checkpoint.config.vocab_size;
}

mm2_status mm2_session_logits(mm2_session *s, mm2_tensor *out)
{
    MM2_NEED(s, "session");
    MM2_NEED(out, "out");
    mm2_status status = enter_with_logits(s);
    if (status)
        return status;
    status = mm2_timeline_see_logits(&s->timeline);
    if (!status)
        *out = vector_view(mm2_timeline_logits(&s->timeline), vocab_of(s), MM2_F32);
    mm2_session_leave(s);
    return status;
}

mm2_status mm2_session_logprobs(mm2_session *s, const int32_t *ids, int32_t n, float *out)
{
    MM2_NEED(s, "session");
    MM2_NEED(ids, "ids");
    MM2_NEED(out, "out");
    mm2_status status = enter_with_logits(s);
    if (status)
        return status;
    status = mm2_logprobs_of(mm2_timeline_logits(&s->timeline), vocab_of(s), ids, n, out);
    mm2_session_leave(s);
    return status;
}

mm2_status mm2_session_top(mm2_session *s, int32_t n, int32_t *ids, float *logprobs)
{
    MM2_NEED(s, "session");
    MM2_NEED(ids, "ids");
    MM2_NEED(logprobs, "logprobs");
    mm2_status status = enter_with_logits(s);
    if (status)
        return status;
    status = mm2_logprobs_top(mm2_timeline_logits(&s->timeline), vocab_of(s), n, ids, logprobs);
    mm2_session_leave(s);
    return status;
}

int32_t mm2_sampler_next(mm2_sampler *p, mm2_session *s, const uint32_t *mask)
{
    MM2_NEED(p, "sampler");
    MM2_NEED(s, "session");
    mm2_status status = enter_with_logits(s);
    if (status)
        return status;
    const mm2_timeline *t = &s->timeline;
    if (mm2_sampler_vocab(p) != vocab_of(s))
        status = mm2_fail(
            MM2_E_ARG, "the sampler was made for a vocabulary of %d tokens, the session's has %d",
            mm2_sampler_vocab(p), vocab_of(s));
    else
        status = mm2_sampler_choose(p, mm2_timeline_logits(t), mm2_timeline_tokens(t), t->length,
                                    t->length, mask);
    mm2_session_leave(s);
    return status;
}
