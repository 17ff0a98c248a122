/* A model of hundreds of gigabytes cannot be read to know it again. What is computed with is looked
 * at instead, not the files: the same weights in another container, or in other shards, are the same
 * model.
 *
 * The weights that every token reads are sampled, which costs a cold file no more than its first
 * token would; and of each layer one expert, because quantisations often differ in the experts
 * alone. */
#include "model/fingerprint.h"

#include "base/checksum.h"
#include "base/status.h"
#include "model/experts.h"

#include <sched.h>
#include <stddef.h>
#include <string.h>

enum { SAMPLE = 256 };

/* Adds to a sum, order included. */
static void add(uint64_t *sum, const void *data, int64_t bytes)
{
    uint64_t both[2] = {*sum, mm2_checksum(data, bytes)};
    *sum = mm2_checksum(both, sizeof both);
}

static void add_sample(uint64_t *sum, const void *data, int64_t bytes)
{
    int64_t some = bytes < SAMPLE ? bytes : SAMPLE;
    add(sum, (const char *)data + (bytes - some) / 2, some);
}

static void add_weight(mm2_fingerprint *f, const mm2_weight *w)
{
    int32_t facts[] = {w->dtype, w->scale != NULL, w->scale_rows, w->span_dtype, w->group};
    add(&f->types, facts, w->data ? (int64_t)sizeof facts : 0);
    if (!w->data)
        return;
    add_sample(&f->samples, w->data, w->row_bytes * w->n_out);
    if (w->scale)
        add(&f->samples, w->scale, sizeof *w->scale);
    if (w->spans)
        add_sample(&f->samples, w->spans, w->span_bytes * w->n_out);
}

static void add_expert(mm2_fingerprint *f, const mm2_weights *w, int32_t layer, int32_t index)
{
    while (!mm2_experts_hold(w, layer, index))
        sched_yield();
    const mm2_expert *expert = mm2_experts_get(w, layer, index);
    add_weight(f, &expert->gate);
    add_weight(f, &expert->up);
    add_weight(f, &expert->down);
    mm2_experts_release(w, layer, index);
}

static void add_layer(mm2_fingerprint *f, const mm2_model *m, int32_t index)
{
    const mm2_layer *layer = &m->weights.layers[index];
    const mm2_weight *weights[] = {
        &layer->attn_norm, &layer->q,      &layer->k,        &layer->v,      &layer->o,
        &layer->q_norm,    &layer->k_norm, &layer->mlp_norm, &layer->router, &layer->routing_bias};
    uint64_t experts[] = {layer->gate_up_dtypes, layer->down_dtypes};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        add_weight(f, weights[i]);
    add(&f->types, experts, sizeof experts);
    add_expert(f, &m->weights, index, index % m->checkpoint.config.num_local_experts);
}

void mm2_fingerprint_of(const mm2_model *m, mm2_fingerprint *out)
{
    memset(out, 0, sizeof *out); /* what lies between fields is saved too */
    mm2_format(out->family, sizeof out->family, "%s", m->checkpoint.family->model_type);
    mm2_format(out->weights, sizeof out->weights, "%s", m->quantization);
    out->config = m->checkpoint.config;
    out->config.size = sizeof out->config;
    out->precision = m->precision;
    out->blas = !strcmp(m->kernels->name, "blas");
    add_weight(out, &m->weights.embed);
    add_weight(out, &m->weights.final_norm);
    add_weight(out, &m->weights.head);
    for (int32_t i = 0; i < m->checkpoint.config.num_hidden_layers; i++)
        add_layer(out, m, i);
}

/* The first number of the configuration that differs. */
static mm2_status compare_configs(const mm2_config *theirs, const mm2_config *ours,
                                  const mm2_family *family, const char *where)
{
    for (int32_t i = 0; i < family->fact_count; i++) {
        const mm2_fact *fact = &family->facts[i];
        const char *a = (const char *)theirs + fact->field, *b = (const char *)ours + fact->field;
        const char *name = fact->json ? fact->json : fact->gguf;
        float x, y;
        if (fact->kind > MM2_FACT_FLAG || !memcmp(a, b, 4) ||
            fact->field == offsetof(mm2_config, max_position_embeddings))
            continue;
        if (fact->kind == MM2_FACT_NUMBER || fact->kind == MM2_FACT_NUMBER_OR ||
            fact->kind == MM2_FACT_SCALE) {
            memcpy(&x, a, 4);
            memcpy(&y, b, 4);
            return mm2_fail(MM2_E_ARG, "%s: belongs to another model: %s is %g there, %g here",
                            where, name, (double)x, (double)y);
        }
        return mm2_fail(MM2_E_ARG, "%s: belongs to another model: %s is %d there, %d here", where,
                        name, *(const int32_t *)a, *(const int32_t *)b);
    }
    return MM2_OK;
}

mm2_status mm2_fingerprint_compare(const mm2_fingerprint *theirs, const mm2_fingerprint *ours,
                                   const mm2_model *m, const char *where)
{
    static const char *const precisions[] = {"fast", "exact"};
    if (memcmp(theirs->family, ours->family, sizeof ours->family))
        return mm2_fail(MM2_E_ARG, "%s: belongs to a model of the family %.*s, this one is %s",
                        where, (int)sizeof theirs->family, theirs->family, ours->family);
    mm2_status status =
        compare_configs(&theirs->config, &ours->config, m->checkpoint.family, where);
    if (status)
        return status;
    if (theirs->precision != ours->precision)
        return mm2_fail(MM2_E_ARG,
                        "%s: was computed with precision \"%s\", this model is open with \"%s\"",
                        where, precisions[theirs->precision == MM2_PRECISION_EXACT],
                        precisions[ours->precision]);
    if (theirs->blas != ours->blas)
        return mm2_fail(MM2_E_ARG,
                        "%s: was computed %s the blas kernels, which have bits of their own; this "
                        "model runs %s",
                        where, theirs->blas ? "by" : "without", m->kernels->name);
    if (theirs->types != ours->types)
        return mm2_fail(MM2_E_ARG,
                        "%s: belongs to a model with weights of other types: %.*s there, %s here",
                        where, (int)sizeof theirs->weights, theirs->weights, ours->weights);
    if (theirs->samples != ours->samples)
        return mm2_fail(MM2_E_ARG,
                        "%s: belongs to a model of this shape, but with other weights: another "
                        "version, training or quantisation",
                        where);
    return MM2_OK;
}
