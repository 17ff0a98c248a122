/* What tokens take: the bytes that must be read and the products that must be computed, counted from
 * the bound weights. It is a lower bound for any way of evaluating them, each weight and each cached
 * position read once, so that measured times can be held against it.
 *
 * Left out, because they are thousands of times smaller: activations, the products of norms, and
 * keys and values of the tokens themselves, which no memory need ever see. */
#include "model/experts.h"
#include "model/model.h"

#include "base/guard.h"
#include "base/status.h"

#include <math.h>
#include <stddef.h>

/* Where operations with weights or a cache of this dtype count. */
static double *ops_of(mm2_cost *cost, int32_t dtype)
{
    int32_t act = mm2_act_of(dtype);
    return act == MM2_ACT_F32    ? &cost->f32_ops
           : act == MM2_ACT_BF16 ? &cost->bf16_ops
                                 : &cost->int8_ops;
}

/* A matrix of which `share` is read, for `rows` rows of activations. */
static void add_matrix(mm2_cost *cost, const mm2_model *m, const mm2_weight *w, double share,
                       double rows)
{
    cost->weight_bytes += share * (double)mm2_weight_bytes(w);
    int exact = m->precision == MM2_PRECISION_EXACT;
    *ops_of(cost, exact ? MM2_F32 : w->dtype) += 2.0 * w->n_out * w->n_in * rows;
}

static void add_layer(mm2_cost *cost, const mm2_model *m, int32_t index, int32_t tokens)
{
    const mm2_config *c = &m->checkpoint.config;
    const mm2_layer *layer = &m->weights.layers[index];
    const mm2_weight *vectors[] = {&layer->attn_norm, &layer->q_norm, &layer->k_norm,
                                   &layer->mlp_norm, &layer->routing_bias};
    const mm2_weight *matrices[] = {&layer->q, &layer->k, &layer->v, &layer->o, &layer->router};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        cost->weight_bytes += (double)mm2_weight_bytes(vectors[i]);
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        add_matrix(cost, m, matrices[i], 1, tokens);
    double active = (double)c->num_experts_per_tok / c->num_local_experts;
    double hit = tokens == 1 ? active : 1 - pow(1 - active, tokens);
    for (int32_t e = 0; e < c->num_local_experts; e++) {
        const mm2_expert *expert = mm2_experts_get(&m->weights, index, e);
        add_matrix(cost, m, &expert->gate, hit, active * tokens);
        add_matrix(cost, m, &expert->up, hit, active * tokens);
        add_matrix(cost, m, &expert->down, hit, active * tokens);
    }
}

/* Keys and values of the cache, and for each token a score and a sum over the positions before it
 * and its own. */
static void add_attention(mm2_cost *cost, const mm2_config *c, int32_t tokens, int32_t depth,
                          int32_t kv_dtype)
{
    double width =
        2.0 * c->num_key_value_heads * (double)mm2_kv_bytes(kv_dtype, c->head_dim) / MM2_CHUNK;
    double pairs = (double)tokens * depth + 0.5 * tokens * (tokens + 1.0);
    cost->kv_bytes += width * depth * c->num_hidden_layers;
    *ops_of(cost, kv_dtype) +=
        4.0 * c->num_attention_heads * c->head_dim * pairs * c->num_hidden_layers;
}

int64_t mm2_model_needed(const mm2_model *m)
{
    const mm2_config *c = &m->checkpoint.config;
    const mm2_weights *w = &m->weights;
    mm2_cost all = {0};
    for (int32_t i = 0; i < c->num_hidden_layers; i++)
        add_layer(&all, m, i, INT32_MAX); /* so many tokens need every expert */
    int64_t bytes =
        (int64_t)all.weight_bytes + mm2_weight_bytes(&w->embed) + mm2_weight_bytes(&w->final_norm);
    return bytes + (w->head.data == w->embed.data ? 0 : mm2_weight_bytes(&w->head));
}

mm2_status mm2_model_cost(const mm2_model *m, int32_t tokens, int32_t depth, int32_t kv_dtype,
                          mm2_cost *of_layers, mm2_cost *of_rest)
{
    MM2_NEED(m, "model");
    MM2_NEED(of_layers, "layers");
    MM2_NEED(of_rest, "rest");
    const mm2_config *c = &m->checkpoint.config;
    const mm2_weights *w = &m->weights;
    if (tokens < 1 || depth < 0 || tokens > c->max_position_embeddings ||
        depth > c->max_position_embeddings - tokens)
        return mm2_fail(MM2_E_ARG,
                        "mm2_model_cost: %d tokens behind %d are not within the model's %d "
                        "positions",
                        tokens, depth, c->max_position_embeddings);
    if (mm2_kv_of(kv_dtype) < 0)
        return mm2_fail(MM2_E_ARG,
                        "mm2_model_cost: kv_dtype is %d, expected MM2_BF16, MM2_F32 or MM2_INT8",
                        kv_dtype);
    mm2_cost layers = {.size = sizeof layers}, rest = {.size = sizeof rest};
    for (int32_t i = 0; i < c->num_hidden_layers; i++)
        add_layer(&layers, m, i, tokens);
    add_attention(&layers, c, tokens, depth, kv_dtype);
    double row = (double)mm2_weight_bytes(&w->embed) / w->embed.n_out;
    rest.weight_bytes = row * tokens + (double)mm2_weight_bytes(&w->final_norm);
    add_matrix(&rest, m, &w->head, 1, 1);
    mm2_status status = mm2_struct_write(of_layers, &layers, "mm2_cost of layers");
    return status ? status : mm2_struct_write(of_rest, &rest, "mm2_cost of the rest");
}
