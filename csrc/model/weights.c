/* Binding: from names in a file to places in the model.
 *
 * Every tensor is looked up under its name in the container at hand, and its shape and dtype are
 * compared with what the configuration demands; the first that is not as it should be ends the open
 * with a sentence. Matrices may have any dtype that a kernel multiplies, norms and the routing bias
 * any plain one. FP8 needs its block scales: without them the codes mean nothing.
 *
 * Nothing is copied. A bound weight points into the map; an expert of a fused tensor is a slice of
 * it, whose FP8 scales may begin within a block (mm2_weight.scale_row).
 *
 * Tensors that the model does not ask for are listed by the checkpoint and left alone. */
#include "model/weights.h"

#include "base/status.h"
#include "tensor/dtype.h"
#include "tensor/quant.h"

#include <stdlib.h>
#include <string.h>

enum { NAME = MM2_MAX_NAME + 1 };

typedef struct binder {
    const mm2_checkpoint *c;
    const mm2_config *k;
    int is_gguf;
} binder;

/* ---- Finding and checking one tensor ---- */

/* layer -1: a name outside the layers. */
static void make_name(const binder *b, char *out, int32_t layer, const char *hf, const char *gguf)
{
    const char *name = b->is_gguf ? gguf : hf;
    if (layer < 0)
        mm2_format(out, NAME, "%s", name);
    else
        mm2_format(out, NAME, b->is_gguf ? "blk.%d.%s" : "model.layers.%d.%s", layer, name);
}

/* "[256, 3072]" */
static void write_shape(char *out, int cap, int32_t ndim, const int64_t *shape)
{
    int used = mm2_format(out, cap, "[");
    for (int32_t i = 0; i < ndim && used < cap; i++)
        used += mm2_format(out + used, cap - used, i ? ", %lld" : "%lld", (long long)shape[i]);
    if (used < cap)
        mm2_format(out + used, cap - used, "]");
}

static mm2_status find(const binder *b, const char *name, int32_t ndim, const int64_t *shape,
                       const mm2_entry **out)
{
    char expected[96], found[96];
    *out = mm2_checkpoint_find(b->c, name);
    write_shape(expected, sizeof expected, ndim, shape);
    if (!*out)
        return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" is missing, expected of shape %s",
                        b->c->path, name, expected);
    const mm2_tensor *v = &(*out)->view;
    int same = v->ndim == ndim;
    for (int32_t i = 0; same && i < ndim; i++)
        same = v->shape[i] == shape[i];
    if (same)
        return MM2_OK;
    write_shape(found, sizeof found, v->ndim, v->shape);
    return mm2_fail(MM2_E_FORMAT,
                    "%s: tensor \"%s\" has shape %s, expected %s by the configuration",
                    (*out)->file, name, found, expected);
}

static mm2_status wrong_dtype(const mm2_entry *e, const char *expected)
{
    return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" has dtype %s, expected %s", e->file, e->name,
                    mm2_dtype_name(e->view.dtype), expected);
}

static int64_t blocks(int64_t n)
{
    return (n + MM2_SCALE_BLOCK - 1) / MM2_SCALE_BLOCK;
}

mm2_status mm2_weights_scale(const mm2_checkpoint *c, const mm2_entry *e, const mm2_entry **out)
{
    const mm2_tensor *v = &e->view;
    char name[NAME + 16];
    *out = NULL;
    if (v->dtype != MM2_F8_E4M3)
        return MM2_OK;
    if (v->ndim < 2)
        return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" is FP8 but no matrix, so it has no scales",
                        e->file, e->name);
    mm2_format(name, sizeof name, "%s_scale_inv", e->name);
    const mm2_entry *scale = mm2_checkpoint_find(c, name);
    if (!scale)
        return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" is FP8 but its scales \"%s\" are missing",
                        e->file, e->name, name);
    int64_t shape[MM2_MAX_DIMS];
    memcpy(shape, v->shape, sizeof shape);
    shape[v->ndim - 2] = blocks(shape[v->ndim - 2]);
    shape[v->ndim - 1] = blocks(shape[v->ndim - 1]);
    if (scale->view.ndim != v->ndim ||
        memcmp(scale->view.shape, shape, sizeof *shape * (size_t)v->ndim)) {
        char expected[96], found[96];
        write_shape(expected, sizeof expected, v->ndim, shape);
        write_shape(found, sizeof found, scale->view.ndim, scale->view.shape);
        return mm2_fail(MM2_E_FORMAT,
                        "%s: tensor \"%s\" has shape %s, expected %s: one scale for %d x %d codes",
                        scale->file, name, found, expected, MM2_SCALE_BLOCK, MM2_SCALE_BLOCK);
    }
    if (scale->view.dtype != MM2_F32)
        return wrong_dtype(scale, "f32");
    if ((uintptr_t)scale->view.data % sizeof(float))
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: tensor \"%s\" is not aligned to 4 bytes; write the file anew with the "
                        "safetensors library",
                        scale->file, name);
    *out = scale;
    return MM2_OK;
}

mm2_weight mm2_weights_slice(const mm2_entry *e, const mm2_entry *scale, int64_t index,
                             int64_t first, int64_t n_out)
{
    const mm2_tensor *v = &e->view;
    int64_t rows = v->shape[v->ndim - 2], n_in = v->shape[v->ndim - 1];
    int64_t row_bytes = mm2_dtype_row_bytes(v->dtype, n_in);
    mm2_weight w = {.data = (const char *)v->data + (index * rows + first) * row_bytes,
                    .row_bytes = row_bytes,
                    .n_out = (int32_t)n_out,
                    .n_in = (int32_t)n_in,
                    .dtype = v->dtype};
    if (scale) {
        w.scale = (const float *)scale->view.data +
                  (index * blocks(rows) + first / MM2_SCALE_BLOCK) * blocks(n_in);
        w.scale_row = (int32_t)(first % MM2_SCALE_BLOCK);
    }
    return w;
}

void mm2_weight_row(const mm2_weight *w, int64_t row, float *out)
{
    mm2_dequantize_row(w->dtype, (const char *)w->data + row * w->row_bytes, out, w->n_in);
    if (!w->scale)
        return;
    const float *scale = w->scale + (w->scale_row + row) / MM2_SCALE_BLOCK * blocks(w->n_in);
    for (int32_t i = 0; i < w->n_in; i++)
        out[i] *= scale[i / MM2_SCALE_BLOCK];
}

/* A tensor [count][rows][n_in] of a dtype that kernels multiply (count 0: a plain matrix), and its
 * scales. */
static mm2_status find_matrices(const binder *b, const char *name, int64_t count, int64_t rows,
                                int64_t n_in, const mm2_entry **e, const mm2_entry **scale)
{
    int64_t shape[] = {count, rows, n_in};
    mm2_status status = count ? find(b, name, 3, shape, e) : find(b, name, 2, shape + 1, e);
    if (!status && (*e)->view.dtype == MM2_I32)
        status = wrong_dtype(*e, "a floating-point or block format");
    return status ? status : mm2_weights_scale(b->c, *e, scale);
}

static mm2_status bind_matrix(const binder *b, mm2_weight *w, const char *name, int32_t n_out,
                              int32_t n_in)
{
    const mm2_entry *e, *scale;
    mm2_status status = find_matrices(b, name, 0, n_out, n_in, &e, &scale);
    if (!status)
        *w = mm2_weights_slice(e, scale, 0, 0, n_out);
    return status;
}

static mm2_status bind_vector(const binder *b, mm2_weight *w, const char *name, int32_t n)
{
    int64_t shape[] = {n};
    const mm2_entry *e;
    mm2_status status = find(b, name, 1, shape, &e);
    if (status)
        return status;
    if (e->view.dtype != MM2_F32 && e->view.dtype != MM2_F16 && e->view.dtype != MM2_BF16)
        return wrong_dtype(e, "f32, f16 or bf16");
    *w = (mm2_weight){.data = e->view.data,
                      .row_bytes = e->view.nbytes,
                      .n_out = 1,
                      .n_in = n,
                      .dtype = e->view.dtype};
    return MM2_OK;
}

/* ---- A layer ---- */

static mm2_status bind_attention(const binder *b, mm2_layer *layer, int32_t l)
{
    const mm2_config *k = b->k;
    int32_t q = k->num_attention_heads * k->head_dim, kv = k->num_key_value_heads * k->head_dim;
    const struct {
        mm2_weight *w;
        const char *hf, *gguf;
        int32_t n_out, n_in; /* n_out 0: a vector */
        int wanted;
    } parts[] = {
        {&layer->attn_norm, "input_layernorm.weight", "attn_norm.weight", 0, k->hidden_size, 1},
        {&layer->q, "self_attn.q_proj.weight", "attn_q.weight", q, k->hidden_size, 1},
        {&layer->k, "self_attn.k_proj.weight", "attn_k.weight", kv, k->hidden_size, 1},
        {&layer->v, "self_attn.v_proj.weight", "attn_v.weight", kv, k->hidden_size, 1},
        {&layer->o, "self_attn.o_proj.weight", "attn_output.weight", k->hidden_size, q, 1},
        {&layer->q_norm, "self_attn.q_norm.weight", "attn_q_norm.weight", 0, q, k->use_qk_norm},
        {&layer->k_norm, "self_attn.k_norm.weight", "attn_k_norm.weight", 0, kv, k->use_qk_norm},
        {&layer->mlp_norm, "post_attention_layernorm.weight", "ffn_norm.weight", 0, k->hidden_size,
         1},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char name[NAME];
        make_name(b, name, l, parts[i].hf, parts[i].gguf);
        mm2_status status = MM2_OK;
        if (parts[i].wanted)
            status = parts[i].n_out
                         ? bind_matrix(b, parts[i].w, name, parts[i].n_out, parts[i].n_in)
                         : bind_vector(b, parts[i].w, name, parts[i].n_in);
        if (status)
            return status;
    }
    return MM2_OK;
}

/* Experts that are tensors of their own. */
static mm2_status bind_single_experts(const binder *b, mm2_layer *layer, int32_t l)
{
    const mm2_config *k = b->k;
    for (int32_t e = 0; e < k->num_local_experts; e++) {
        mm2_expert *x = &layer->experts[e];
        mm2_weight *weights[] = {&x->gate, &x->down, &x->up}; /* w1, w2, w3 */
        for (int32_t i = 0; i < 3; i++) {
            char name[NAME];
            mm2_format(name, sizeof name, "model.layers.%d.block_sparse_moe.experts.%d.w%d.weight",
                       l, e, i + 1);
            mm2_status status =
                i == 1 ? bind_matrix(b, weights[i], name, k->hidden_size, k->intermediate_size)
                       : bind_matrix(b, weights[i], name, k->intermediate_size, k->hidden_size);
            if (status)
                return status;
        }
    }
    return MM2_OK;
}

/* Experts that are slices: `up` NULL if `gate` holds both, gate first. */
static mm2_status bind_stacked_experts(const binder *b, mm2_layer *layer, const char *gate,
                                       const char *up, const char *down)
{
    const mm2_config *k = b->k;
    int64_t n = k->num_local_experts, width = k->intermediate_size;
    const mm2_entry *g, *gs, *u = NULL, *us = NULL, *d, *ds;
    mm2_status status = find_matrices(b, gate, n, up ? width : 2 * width, k->hidden_size, &g, &gs);
    if (!status && up)
        status = find_matrices(b, up, n, width, k->hidden_size, &u, &us);
    if (!status)
        status = find_matrices(b, down, n, k->hidden_size, width, &d, &ds);
    for (int32_t e = 0; !status && e < n; e++) {
        mm2_expert *x = &layer->experts[e];
        x->gate = mm2_weights_slice(g, gs, e, 0, width);
        x->up =
            up ? mm2_weights_slice(u, us, e, 0, width) : mm2_weights_slice(g, gs, e, width, width);
        x->down = mm2_weights_slice(d, ds, e, 0, k->hidden_size);
    }
    return status;
}

/* What is asked of all experts together. */
static void sum_up_experts(const binder *b, mm2_layer *layer)
{
    for (int32_t e = 0; e < b->k->num_local_experts; e++) {
        const mm2_expert *x = &layer->experts[e];
        layer->gate_up_dtypes |= UINT64_C(1) << x->gate.dtype | UINT64_C(1) << x->up.dtype;
        layer->down_dtypes |= UINT64_C(1) << x->down.dtype;
    }
}

static mm2_status bind_experts(const binder *b, mm2_layer *layer, int32_t l)
{
    char gate[NAME], up[NAME], down[NAME], fused[NAME];
    make_name(b, gate, l, "mlp.experts.gate_up_proj", "ffn_gate_exps.weight");
    make_name(b, fused, l, "mlp.experts.gate_up_proj", "ffn_gate_up_exps.weight");
    make_name(b, up, l, "", "ffn_up_exps.weight");
    make_name(b, down, l, "mlp.experts.down_proj", "ffn_down_exps.weight");
    if (mm2_checkpoint_find(b->c, fused))
        return bind_stacked_experts(b, layer, fused, NULL, down);
    return b->is_gguf ? bind_stacked_experts(b, layer, gate, up, down)
                      : bind_single_experts(b, layer, l);
}

static mm2_status bind_router(const binder *b, mm2_layer *layer, int32_t l)
{
    const mm2_config *k = b->k;
    char name[NAME];
    make_name(b, name, l, "mlp.gate.weight", "ffn_gate_inp.weight");
    int is_fused = !b->is_gguf && mm2_checkpoint_find(b->c, name);
    if (!b->is_gguf && !is_fused)
        make_name(b, name, l, "block_sparse_moe.gate.weight", NULL);
    mm2_status status = bind_matrix(b, &layer->router, name, k->num_local_experts, k->hidden_size);
    if (status || !k->use_routing_bias)
        return status;
    make_name(b, name, l,
              is_fused ? "mlp.e_score_correction_bias" : "block_sparse_moe.e_score_correction_bias",
              "exp_probs_b.bias");
    return bind_vector(b, &layer->routing_bias, name, k->num_local_experts);
}

/* ---- The model ---- */

static mm2_status bind_ends(const binder *b, mm2_weights *w)
{
    const mm2_config *k = b->k;
    char name[NAME];
    make_name(b, name, -1, "model.embed_tokens.weight", "token_embd.weight");
    mm2_status status = bind_matrix(b, &w->embed, name, k->vocab_size, k->hidden_size);
    if (!status && w->embed.dtype == MM2_F8_E4M3)
        status = mm2_fail(MM2_E_UNSUPPORTED,
                          "%s: tensor \"%s\" is FP8; this build reads an embedding of any other "
                          "dtype",
                          b->c->path, name);
    if (status)
        return status;
    make_name(b, name, -1, "model.norm.weight", "output_norm.weight");
    status = bind_vector(b, &w->final_norm, name, k->hidden_size);
    if (status)
        return status;
    make_name(b, name, -1, "lm_head.weight", "output.weight");
    return bind_matrix(b, &w->head, name, k->vocab_size, k->hidden_size);
}

mm2_status mm2_weights_bind(mm2_weights *w, const mm2_checkpoint *c)
{
    const mm2_config *k = &c->config;
    binder b = {.c = c, .k = k, .is_gguf = c->gguf != NULL};
    *w = (mm2_weights){0};
    size_t layers = (size_t)k->num_hidden_layers, experts = (size_t)k->num_local_experts;
    w->layers = calloc(layers, sizeof *w->layers);
    w->experts = calloc(layers * experts, sizeof *w->experts); /* both are checked to be small */
    w->expected = calloc(layers * experts, sizeof *w->expected);
    mm2_status status = MM2_OK;
    if (!w->layers || !w->experts || !w->expected)
        status = mm2_fail(MM2_E_NOMEM, "%s: out of memory for the table of %d x %d experts",
                          c->path, k->num_hidden_layers, k->num_local_experts);
    if (!status)
        status = bind_ends(&b, w);
    for (int32_t l = 0; !status && l < k->num_hidden_layers; l++) {
        mm2_layer *layer = &w->layers[l];
        layer->attention = MM2_ATTENTION_GQA;
        layer->feed_forward = MM2_FEED_FORWARD_MOE;
        layer->experts = w->experts + (size_t)l * experts;
        status = bind_attention(&b, layer, l);
        if (!status)
            status = bind_router(&b, layer, l);
        if (!status)
            status = bind_experts(&b, layer, l);
        if (!status)
            sum_up_experts(&b, layer);
    }
    if (status)
        mm2_weights_free(w);
    return status;
}

void mm2_weights_free(mm2_weights *w)
{
    free(w->layers);
    free(w->experts);
    free(w->expected);
    *w = (mm2_weights){0};
}
