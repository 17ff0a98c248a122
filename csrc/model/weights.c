/* Binding: from names in a file to places in the model.
 *
 * Every place has names in each container, which the family lists. Which tensors make the weight of
 * that name is found out by model/quantised.c; its shape and dtype are compared with what the
 * configuration demands; the first that is not as it should be ends the open with a sentence.
 * Matrices may have any dtype that a kernel multiplies, norms and the routing bias any plain one.
 *
 * A bound weight points into the map (but for FP8 scales that need a copy: mm2_weights.floats); an
 * expert of a stacked tensor is a slice of it.
 *
 * Tensors that the model does not ask for are left alone, unless they say that it is another model:
 * a bias or a scale that nobody applies beside a bound weight, and what the family lists as
 * foreign, are refused by name. So is a tensor that stands under two spellings. */
#include "model/weights.h"

#include "base/status.h"
#include "tensor/dtype.h"

#include <stdlib.h>
#include <string.h>

enum { NAME = MM2_MAX_NAME + 1 };

typedef struct binder {
    const mm2_checkpoint *c;
    const mm2_config *k;
    int is_gguf;
    mm2_floats *floats;
} binder;

/* ---- Finding and checking one tensor ---- */

/* A place of a layer, and of an expert; 0 where there is none. */
typedef struct place {
    int32_t index; /* MM2_PLACE_* */
    int32_t layer, expert;
} place;

static const char *const *spellings(const binder *b, int32_t index)
{
    const mm2_names *names = &b->c->family->names[index];
    return b->is_gguf ? names->gguf : names->safetensors;
}

/* The name under which the checkpoint has a tensor for this place, or the usual one if it has none.
 * Returns whether it has one; FORMAT if there are two. */
static int32_t choose_name(const binder *b, place p, char *out)
{
    const char *const *patterns = spellings(b, p.index);
    int32_t found = 0;
    *out = 0;
    for (int i = 0; i < MM2_SPELLINGS && patterns[i]; i++) {
        char name[NAME];
        mm2_format(name, NAME, patterns[i], p.layer, p.expert);
        int is_there = mm2_stack_exists(b->c, name);
        if (is_there && found++)
            return mm2_fail(MM2_E_FORMAT,
                            "%s: tensors \"%s\" and \"%s\" are two for one place: which one counts "
                            "is not known",
                            b->c->path, out, name);
        if (is_there || !*out)
            memcpy(out, name, NAME);
    }
    return found;
}

/* A bias is part of what a module computes, and nothing here adds it. */
static mm2_status check_bias(const binder *b, const char *name)
{
    static const char ending[] = ".weight";
    size_t length = strlen(name), stem = length - (sizeof ending - 1);
    char other[NAME + 16];
    if (length < sizeof ending || strcmp(name + stem, ending))
        return MM2_OK;
    mm2_format(other, sizeof other, "%.*s.bias", (int)stem, name);
    return mm2_checkpoint_has(b->c, other)
               ? mm2_fail(MM2_E_UNSUPPORTED,
                          "%s: tensor \"%s\" belongs to \"%s\"; this build adds no biases",
                          b->c->path, other, name)
               : MM2_OK;
}

static mm2_status wrong_dtype(const mm2_stack *s, const char *expected)
{
    return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" has dtype %s, expected %s", s->codes->file,
                    s->codes->name, mm2_dtype_name(s->first.dtype), expected);
}

/* Matrices [count][rows][n_in] of a dtype that kernels multiply; count 0: a plain matrix. */
static mm2_status find_matrices(const binder *b, place p, int64_t count, int64_t rows, int64_t n_in,
                                mm2_stack *out)
{
    char name[NAME];
    int64_t shape[] = {count, rows, n_in};
    mm2_status status = choose_name(b, p, name);
    if (status < 0)
        return status;
    status = mm2_stack_find(b->c, name, count ? 3 : 2, count ? shape : shape + 1, b->floats, out);
    if (!status && mm2_act_of(out->first.dtype) == MM2_ACT_NONE)
        status = wrong_dtype(out, "a floating-point or block format");
    return status ? status : check_bias(b, name);
}

static mm2_status bind_matrix(const binder *b, mm2_weight *w, place p, int32_t n_out, int32_t n_in)
{
    mm2_stack s;
    mm2_status status = find_matrices(b, p, 0, n_out, n_in, &s);
    if (!status)
        *w = mm2_stack_slice(&s, 0, 0, n_out);
    return status;
}

static mm2_status bind_vector(const binder *b, mm2_weight *w, place p, int32_t n)
{
    char name[NAME];
    int64_t shape[] = {n};
    mm2_stack s;
    mm2_status status = choose_name(b, p, name);
    status = status < 0 ? status : mm2_stack_find(b->c, name, 1, shape, b->floats, &s);
    if (status)
        return status;
    int32_t dtype = s.first.dtype;
    if (dtype != MM2_F32 && dtype != MM2_F16 && dtype != MM2_BF16)
        return wrong_dtype(&s, "f32, f16 or bf16");
    *w = mm2_stack_slice(&s, 0, 0, 1);
    return check_bias(b, name);
}

/* ---- A layer ---- */

static mm2_status bind_gqa(const binder *b, mm2_layer *layer, int32_t l)
{
    const mm2_config *k = b->k;
    int32_t q = k->num_attention_heads * k->head_dim, kv = k->num_key_value_heads * k->head_dim;
    const struct {
        mm2_weight *w;
        int32_t index, n_out, n_in; /* n_out 0: a vector */
        int wanted;
    } parts[] = {
        {&layer->attn_norm, MM2_PLACE_ATTN_NORM, 0, k->hidden_size, 1},
        {&layer->q, MM2_PLACE_Q, q, k->hidden_size, 1},
        {&layer->k, MM2_PLACE_K, kv, k->hidden_size, 1},
        {&layer->v, MM2_PLACE_V, kv, k->hidden_size, 1},
        {&layer->o, MM2_PLACE_O, k->hidden_size, q, 1},
        {&layer->q_norm, MM2_PLACE_Q_NORM, 0, q, k->use_qk_norm},
        {&layer->k_norm, MM2_PLACE_K_NORM, 0, kv, k->use_qk_norm},
    };
    mm2_status status = MM2_OK;
    for (size_t i = 0; !status && i < sizeof parts / sizeof *parts; i++) {
        place p = {parts[i].index, l, 0};
        if (parts[i].wanted)
            status = parts[i].n_out ? bind_matrix(b, parts[i].w, p, parts[i].n_out, parts[i].n_in)
                                    : bind_vector(b, parts[i].w, p, parts[i].n_in);
    }
    return status;
}

/* Experts that are tensors of their own. */
static mm2_status bind_single_experts(const binder *b, mm2_layer *layer, int32_t l)
{
    const mm2_config *k = b->k;
    mm2_status status = MM2_OK;
    for (int32_t e = 0; !status && e < k->num_local_experts; e++) {
        mm2_expert *x = &layer->experts[e];
        status = bind_matrix(b, &x->gate, (place){MM2_PLACE_GATE, l, e}, k->intermediate_size,
                             k->hidden_size);
        if (!status)
            status = bind_matrix(b, &x->down, (place){MM2_PLACE_DOWN, l, e}, k->hidden_size,
                                 k->intermediate_size);
        if (!status)
            status = bind_matrix(b, &x->up, (place){MM2_PLACE_UP, l, e}, k->intermediate_size,
                                 k->hidden_size);
    }
    return status;
}

/* Experts that are slices; `is_fused`: one tensor holds gate and up, gate first. */
static mm2_status bind_stacked_experts(const binder *b, mm2_layer *layer, int32_t l, int is_fused)
{
    const mm2_config *k = b->k;
    int64_t n = k->num_local_experts, width = k->intermediate_size;
    mm2_stack gate, up, down;
    place gates = {is_fused ? MM2_PLACE_GATES_UPS : MM2_PLACE_GATES, l, 0};
    mm2_status status =
        find_matrices(b, gates, n, is_fused ? 2 * width : width, k->hidden_size, &gate);
    up = gate;
    if (!status && !is_fused)
        status = find_matrices(b, (place){MM2_PLACE_UPS, l, 0}, n, width, k->hidden_size, &up);
    if (!status)
        status = find_matrices(b, (place){MM2_PLACE_DOWNS, l, 0}, n, k->hidden_size, width, &down);
    for (int32_t e = 0; !status && e < n; e++) {
        mm2_expert *x = &layer->experts[e];
        x->gate = mm2_stack_slice(&gate, e, 0, width);
        x->up = mm2_stack_slice(&up, e, is_fused ? width : 0, width);
        x->down = mm2_stack_slice(&down, e, 0, k->hidden_size);
    }
    return status;
}

static mm2_status bind_experts(const binder *b, mm2_layer *layer, int32_t l)
{
    char name[NAME];
    int32_t is_fused = choose_name(b, (place){MM2_PLACE_GATES_UPS, l, 0}, name);
    if (is_fused < 0)
        return is_fused;
    return is_fused || !spellings(b, MM2_PLACE_GATE)[0]
               ? bind_stacked_experts(b, layer, l, is_fused)
               : bind_single_experts(b, layer, l);
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

static mm2_status bind_moe(const binder *b, mm2_layer *layer, int32_t l)
{
    const mm2_config *k = b->k;
    mm2_status status =
        bind_vector(b, &layer->mlp_norm, (place){MM2_PLACE_MLP_NORM, l, 0}, k->hidden_size);
    if (!status)
        status = bind_matrix(b, &layer->router, (place){MM2_PLACE_ROUTER, l, 0},
                             k->num_local_experts, k->hidden_size);
    if (!status && k->use_routing_bias)
        status = bind_vector(b, &layer->routing_bias, (place){MM2_PLACE_ROUTING_BIAS, l, 0},
                             k->num_local_experts);
    if (!status)
        status = bind_experts(b, layer, l);
    if (!status)
        sum_up_experts(b, layer);
    return status;
}

/* Tensors that say that the layer is of another kind. */
static mm2_status check_foreign(const binder *b, int32_t l)
{
    const mm2_family *family = b->c->family;
    for (int32_t i = 0; i < family->foreign_count; i++) {
        const mm2_foreign *x = &family->foreign[i];
        const char *pattern = b->is_gguf ? x->gguf : x->safetensors;
        char name[NAME];
        if (!pattern)
            continue;
        mm2_format(name, sizeof name, pattern, l);
        if (mm2_checkpoint_has(b->c, name))
            return mm2_fail(MM2_E_UNSUPPORTED, "%s: tensor \"%s\" %s", b->c->path, name, x->what);
    }
    return MM2_OK;
}

/* ---- The model ---- */

static mm2_status bind_ends(const binder *b, mm2_weights *w)
{
    const mm2_config *k = b->k;
    mm2_status status =
        bind_matrix(b, &w->embed, (place){MM2_PLACE_EMBED, 0, 0}, k->vocab_size, k->hidden_size);
    if (!status)
        status =
            bind_vector(b, &w->final_norm, (place){MM2_PLACE_FINAL_NORM, 0, 0}, k->hidden_size);
    return status ? status
                  : bind_matrix(b, &w->head, (place){MM2_PLACE_HEAD, 0, 0}, k->vocab_size,
                                k->hidden_size);
}

static mm2_status bind_layer(const binder *b, mm2_layer *layer, int32_t l)
{
    mm2_layer_kind kind;
    b->c->family->layer(b->k, l, &kind);
    layer->attention = kind.attention;
    layer->feed_forward = kind.feed_forward;
    mm2_status status = check_foreign(b, l);
    if (!status) /* the only kinds that there are */
        status = bind_gqa(b, layer, l);
    return status ? status : bind_moe(b, layer, l);
}

mm2_status mm2_weights_bind(mm2_weights *w, const mm2_checkpoint *c)
{
    const mm2_config *k = &c->config;
    binder b = {.c = c, .k = k, .is_gguf = !strcmp(c->format, "gguf"), .floats = &w->floats};
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
        w->layers[l].experts = w->experts + (size_t)l * experts;
        status = bind_layer(&b, &w->layers[l], l);
    }
    if (status)
        mm2_weights_free(w);
    return status;
}

void mm2_weights_free(mm2_weights *w)
{
    mm2_floats_free(&w->floats);
    free(w->layers);
    free(w->experts);
    free(w->expected);
    *w = (mm2_weights){0};
}
