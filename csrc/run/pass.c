/* Passes and their leases.
 *
 * All buffers of a pass are carved from one mapping sized for `capacity` rows; the system commits
 * what its rows really touch. The model keeps two lists: of every pass that was made, to free them
 * with it, and of those that nobody has. The lists are held for moments; their flag knows its
 * process, so that a child whose parent was inside does not wait for ever (its list of free passes
 * may then have lost one, which only costs memory). */
#include "run/pass.h"

#include "base/status.h"
#include "run/block.h"
#include "run/product.h"
#include "run/timeline.h"
#include "tensor/quant.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- Memory ---- */

void *mm2_carve(mm2_carver *c, int64_t count, int64_t bytes)
{
    void *at = c->base ? c->base + c->used : NULL;
    c->used += (count * bytes + 63) / 64 * 64;
    return at;
}

/* Called twice: to measure, and to hand out. Sizes cannot overflow: capacity <= 4096 and the
 * config's fields are bounded. */
static void carve_buffers(mm2_pass *p, mm2_carver *c)
{
    const mm2_config *g = mm2_pass_config(p);
    int64_t rows = p->capacity;
    p->x = mm2_carve(c, rows * g->hidden_size, 4);
    p->h = mm2_carve(c, rows * g->hidden_size, 4);
    p->out = mm2_carve(c, rows * g->hidden_size, 4);
    p->spans = mm2_carve(c, rows, sizeof(mm2_span));
    p->row_span = mm2_carve(c, rows, 4);
    p->row_position = mm2_carve(c, rows, 4);
    float *stream[] = {
        [MM2_POINT_EMBED] = p->x,      [MM2_POINT_RESID_PRE] = p->x,  [MM2_POINT_RESID_MID] = p->x,
        [MM2_POINT_RESID_POST] = p->x, [MM2_POINT_ATTN_NORM] = p->h,  [MM2_POINT_MLP_NORM] = p->h,
        [MM2_POINT_FINAL_NORM] = p->h, [MM2_POINT_ATTN_OUT] = p->out, [MM2_POINT_MLP_OUT] = p->out};
    for (size_t i = 0; i < sizeof stream / sizeof *stream; i++)
        if (stream[i])
            p->point_data[i] = stream[i];
    for (int32_t i = 0; i < MM2_BLOCK_COUNT; i++)
        mm2_blocks[i]->carve(p, c);
    mm2_product_need(p, rows, g->hidden_size); /* of the head */
    mm2_product_need_groups(p, (rows + 15) / 16, g->hidden_size);
    mm2_product_need_scratch(p, rows * MM2_TILE);
    mm2_product_need_scratch(p, g->hidden_size); /* the weight of a norm */
    mm2_product_carve(p, c);
    p->logits = mm2_carve(c, rows * g->vocab_size, 4); /* last: of most rows they are not touched */
    p->point_data[MM2_POINT_LOGITS] = p->logits;
}

int64_t mm2_pass_bytes(mm2_model *m, int32_t rows)
{
    mm2_pass measured = {.model = m, .capacity = rows};
    mm2_carver c = {0};
    carve_buffers(&measured, &c);
    return c.used - ((int64_t)rows - 1) * m->checkpoint.config.vocab_size * 4;
}

static mm2_status new_pass(mm2_pass **out, mm2_model *m, int32_t capacity)
{
    mm2_pass *p = calloc(1, sizeof *p);
    if (!p)
        return mm2_fail(MM2_E_NOMEM, "out of memory for a forward pass");
    p->model = m;
    p->capacity = capacity;
    mm2_carver measure = {0};
    carve_buffers(p, &measure);
    p->memory_bytes = measure.used;
    p->memory = mmap(NULL, (size_t)measure.used, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->memory == MAP_FAILED) {
        free(p);
        return mm2_fail(MM2_E_NOMEM,
                        "out of memory: the buffers of a pass of %d tokens need %lld bytes of "
                        "address space; ask for a smaller chunk",
                        capacity, (long long)measure.used);
    }
    mm2_carver hand_out = {.base = p->memory};
    carve_buffers(p, &hand_out);
    *out = p;
    return MM2_OK;
}

/* ---- Leases ---- */

static void lock(mm2_passes *passes)
{
    int mine = (int)getpid(), found = 0;
    while (!atomic_compare_exchange_weak(&passes->busy, &found, mine)) {
        if (found != mine) /* free by now, or held in the parent when this process was forked */
            continue;
        sched_yield();
        found = 0;
    }
}

static void unlock(mm2_passes *passes)
{
    atomic_store(&passes->busy, 0);
}

static void free_passes(mm2_passes *passes)
{
    for (mm2_pass *p = passes->all, *next; p; p = next) {
        next = p->all;
        munmap(p->memory, (size_t)p->memory_bytes);
        free(p);
    }
}

mm2_status mm2_pass_lease(mm2_pass **out, mm2_model *m, int32_t capacity)
{
    mm2_passes *passes = &m->passes;
    lock(passes);
    mm2_pass **at = &passes->idle, *p;
    while (*at && (*at)->capacity < capacity)
        at = &(*at)->next;
    p = *at;
    if (p)
        *at = p->next;
    unlock(passes);
    if (!p) {
        mm2_status status = new_pass(&p, m, capacity);
        if (status)
            return status;
        lock(passes);
        p->all = passes->all;
        passes->all = p;
        passes->free = free_passes;
        unlock(passes);
    }
    p->next = NULL;
    atomic_store(&p->stop, 0);
    *out = p;
    return MM2_OK;
}

void mm2_pass_return(mm2_pass *p)
{
    mm2_passes *passes = &p->model->passes;
    for (int32_t i = 0; p->rows && i < MM2_BLOCK_COUNT; i++)
        if (mm2_blocks[i]->drop)
            mm2_blocks[i]->drop(p);
    for (int32_t i = 0; i < p->span_count; i++)
        if (p->spans[i].timeline)
            p->spans[i].timeline->pass = NULL;
    p->rows = p->span_count = 0;
    lock(passes);
    p->next = passes->idle;
    passes->idle = p;
    unlock(passes);
}

void mm2_pass_drop(mm2_pass *p, const mm2_timeline *t)
{
    for (int32_t i = 0; p && i < p->span_count; i++)
        if (p->spans[i].timeline == t) {
            p->spans[i].timeline->pass = NULL;
            p->spans[i].timeline = NULL;
            return; /* another thread may give the pass back now */
        }
}

int mm2_pass_wanted(const mm2_pass *p)
{
    for (int32_t i = 0; i < p->span_count; i++)
        if (p->spans[i].timeline)
            return 1;
    return 0;
}

/* ---- What blocks use ---- */

mm2_status mm2_pass_rows(mm2_pass *p, int32_t round, int32_t *units)
{
    *units = round ? -1 : p->rows;
    return MM2_OK;
}

void mm2_pass_add(void *pass, int32_t unit, int32_t thread)
{
    mm2_pass *p = pass;
    int32_t n = mm2_pass_config(p)->hidden_size;
    int64_t at = (int64_t)unit * n;
    p->model->kernels->axpy(p->x + at, 1, p->out + at, n);
}

void mm2_pass_norm(const mm2_pass *p, int32_t thread, const mm2_weight *w, float *out,
                   const float *x, int32_t n)
{
    float *weight = p->threads[thread].a;
    mm2_dequantize_row(w->dtype, w->data, weight, n);
    p->model->kernels->rms_norm(out, x, weight, n, mm2_pass_config(p)->rms_norm_eps);
}
