/* The bookkeeping of a sequence. Nothing here evaluates anything: feeding appends, rewinding cuts
 * and lets go of rows in flight, forking raises counts. */
#include "run/timeline.h"

#include "base/status.h"
#include "run/ahead.h"
#include "run/block.h"
#include "run/prefix.h"

#include <stdlib.h>
#include <string.h>

/* ---- Counted buffers ---- */

static mm2_shared *new_shared(size_t bytes)
{
    mm2_shared *s = malloc(sizeof *s);
    if (s && posix_memalign(&s->data, 64, (bytes + 63) / 64 * 64)) {
        free(s);
        return NULL;
    }
    if (s)
        atomic_init(&s->references, 1);
    return s;
}

static void release_shared(mm2_shared *s)
{
    if (s && atomic_fetch_sub(&s->references, 1) == 1) {
        free(s->data);
        free(s);
    }
}

static mm2_shared *retain_shared(mm2_shared *s)
{
    if (s)
        atomic_fetch_add(&s->references, 1);
    return s;
}

/* Makes *s its owner's alone, with the first `used` of its bytes. */
static mm2_status own_shared(mm2_shared **s, size_t bytes, size_t used)
{
    if (*s && atomic_load(&(*s)->references) == 1)
        return MM2_OK;
    mm2_shared *own = new_shared(bytes);
    if (!own)
        return mm2_fail(MM2_E_NOMEM, "out of memory: a session needs another %lld bytes",
                        (long long)bytes);
    if (used)
        memcpy(own->data, (*s)->data, used);
    release_shared(*s);
    *s = own;
    return MM2_OK;
}

static size_t logits_bytes(const mm2_timeline *t)
{
    return (size_t)t->model->checkpoint.config.vocab_size * sizeof(float);
}

static mm2_status own_tokens(mm2_timeline *t)
{
    return own_shared(&t->tokens, (size_t)t->context * sizeof(int32_t),
                      (size_t)t->length * sizeof(int32_t));
}

mm2_status mm2_timeline_see_tokens(mm2_timeline *t)
{
    mm2_status status = own_tokens(t);
    t->tokens_seen |= !status;
    return status;
}

mm2_status mm2_timeline_see_logits(mm2_timeline *t)
{
    mm2_status status = own_shared(&t->logits, logits_bytes(t), logits_bytes(t));
    t->logits_seen |= !status;
    return status;
}

mm2_status mm2_timeline_renew_logits(mm2_timeline *t)
{
    return own_shared(&t->logits, logits_bytes(t), 0);
}

/* ---- Life ---- */

static mm2_layout *new_layout(const mm2_model *m, int32_t kv_dtype)
{
    const mm2_config *g = &m->checkpoint.config;
    mm2_layout *l = calloc(1, sizeof *l + (size_t)g->num_hidden_layers * sizeof *l->cells);
    if (!l)
        return NULL;
    atomic_init(&l->references, 1);
    l->layers = g->num_hidden_layers;
    for (int32_t i = 0; i < l->layers; i++) {
        const mm2_layer *layer = &m->weights.layers[i];
        const mm2_block *blocks[] = {mm2_block_attention(layer), mm2_block_feed_forward(layer)};
        mm2_cell *cell = &l->cells[i];
        for (int32_t j = 0; j < 2; j++)
            if (blocks[j]->planes)
                cell->count += blocks[j]->planes(g, kv_dtype, cell->planes + cell->count);
    }
    mm2_layout_finish(l);
    return l;
}

int64_t mm2_timeline_bytes(const mm2_model *m, int32_t kv_dtype, int32_t context)
{
    int64_t bytes = -1;
    mm2_layout *l = new_layout(m, kv_dtype);
    if (l && (l->page_bytes < 0 ||
              __builtin_mul_overflow(l->page_bytes, mm2_pages_for(context), &bytes)))
        bytes = -1;
    mm2_layout_release(l);
    return bytes;
}

/* What a new timeline and a fork have in common; the pages are there. */
static mm2_status complete(mm2_timeline *t)
{
    t->taps = calloc((size_t)MM2_POINT_COUNT, (size_t)t->pages.layout->layers);
    if (t->tokens && t->taps) {
        mm2_model_retain(t->model);
        return MM2_OK;
    }
    free(t->taps);
    mm2_edits_release(t->edits);
    release_shared(t->tokens);
    release_shared(t->logits);
    mm2_pages_free(&t->pages);
    return mm2_fail(MM2_E_NOMEM, "out of memory for a session");
}

mm2_status mm2_timeline_init(mm2_timeline *t, mm2_model *m, const mm2_session_options *o)
{
    *t = (mm2_timeline){.model = m,
                        .context = o->context,
                        .chunk = o->chunk,
                        .kv_dtype = o->kv_dtype,
                        .logits_of = -1,
                        .edited = INT32_MAX};
    mm2_layout *layout = new_layout(m, o->kv_dtype);
    if (!layout)
        return mm2_fail(MM2_E_NOMEM, "out of memory for a session");
    mm2_status status = mm2_pages_init(&t->pages, layout, o->context);
    mm2_layout_release(layout); /* the pages keep it */
    if (status)
        return status;
    t->tokens = new_shared((size_t)o->context * sizeof(int32_t));
    return complete(t);
}

mm2_status mm2_timeline_fork(mm2_timeline *out, mm2_timeline *t)
{
    *out = *t;
    out->tokens_seen = out->logits_seen = out->ready = out->asked = 0;
    out->arrival = NULL;
    out->ahead = NULL;
    atomic_init(&out->pass, NULL);
    atomic_init(&out->stop, 0);
    out->logits = NULL;
    mm2_status status = mm2_pages_fork(&out->pages, &t->pages, t->position);
    if (status)
        return status;
    out->tokens = retain_shared(t->tokens);
    mm2_edits_retain(out->edits);
    if (t->logits_of >= 0)
        out->logits = retain_shared(t->logits);
    /* What a script looks at is not shared. */
    if (t->tokens_seen && (status = own_tokens(out)))
        goto failed;
    if (t->logits_seen && out->logits &&
        (status = own_shared(&out->logits, logits_bytes(t), logits_bytes(t))))
        goto failed;
    return complete(out);
failed:
    mm2_edits_release(out->edits);
    release_shared(out->tokens);
    release_shared(out->logits);
    mm2_pages_free(&out->pages);
    return status;
}

void mm2_timeline_free(mm2_timeline *t)
{
    mm2_ahead_free(t);
    mm2_prefix_leave(t);
    mm2_pages_free(&t->pages);
    mm2_prefix_trim(t->model);
    release_shared(t->tokens);
    release_shared(t->logits);
    free(t->taps);
    mm2_edits_release(t->edits);
    mm2_model_release(t->model);
}

/* ---- Growing and cutting ---- */

mm2_status mm2_timeline_check_ids(const mm2_timeline *t, const int32_t *ids, int32_t n)
{
    int32_t vocab = t->model->checkpoint.config.vocab_size;
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return mm2_fail(MM2_E_ARG, "token id %d at index %d is outside the vocabulary 0..%d",
                            ids[i], i, vocab - 1);
    return MM2_OK;
}

mm2_status mm2_timeline_feed(mm2_timeline *t, const int32_t *ids, int32_t n)
{
    if (n > t->context - t->length)
        return mm2_fail(MM2_E_FULL,
                        "%d tokens do not fit: the context has %d positions and %d are taken; make "
                        "the session with a larger context, or rewind it",
                        n, t->context, t->length);
    mm2_status status = mm2_timeline_check_ids(t, ids, n);
    if (!status)
        status = own_tokens(t);
    if (status)
        return status;
    if (t->position == t->length)
        t->progress_base = t->position;
    memcpy((int32_t *)t->tokens->data + t->length, ids, (size_t)n * sizeof *ids);
    t->length += n;
    t->ready = t->asked = 0;
    return MM2_OK;
}

mm2_status mm2_timeline_rewind(mm2_timeline *t, int32_t length)
{
    if (length < 0 || length > t->length)
        return mm2_fail(MM2_E_ARG, "cannot rewind to %d tokens: the timeline has %d", length,
                        t->length);
    if (length == t->length)
        return MM2_OK;
    mm2_pass_drop(t->pass, t);
    mm2_ahead_cut(t);
    t->length = length;
    if (t->position > length)
        t->position = length;
    t->progress_base = t->position;
    t->logits_of = -1;
    t->ready = 0;
    mm2_prefix_leave(t);
    if (t->edited >= length)
        t->edited = INT32_MAX;
    if (t->reused > length)
        t->reused = length;
    mm2_pages_truncate(&t->pages, t->position);
    mm2_prefix_trim(t->model);
    return MM2_OK;
}

/* The flag for a run that has no pass at the moment, the pass's for one that has: a run looks at the
 * flag after it has made its pass known. A pass lives as long as the model. */
void mm2_timeline_interrupt(mm2_timeline *t)
{
    atomic_store(&t->stop, 1);
    mm2_pass *p = atomic_load(&t->pass);
    if (p)
        atomic_store(&p->stop, 1);
}
