/* MiniMax-M2 (M2, M2.1, M2.5, M2.7): names of its tensors, keys of its configuration, its layers.
 *
 * Every key that transformers, vLLM and SGLang read from config.json, and llama.cpp from GGUF, for
 * this architecture has a row, so that each is decided: it sets a size or a number of the model, or
 * it must say what this engine computes, or it changes nothing here. MODELS.md shows the same list,
 * and a test compares the two. rope_theta, partial_rotary_factor and rotary_dim of config.json are
 * read by model/directory.c, under transformers' rules of precedence.
 *
 * The vendor's code and llama.cpp know no M2 without norms of queries and keys or without a routing
 * bias: only use_qk_norm and use_routing_bias of a config.json can switch them off. */
#include "model/family.h"

#include <stddef.h>

#define FIELD(name) .field = offsetof(mm2_config, name)
#define IS(value, or_value) .kind = MM2_FACT_IS, .is = (value), .or_is = (or_value)
#define SAYS(text) .kind = MM2_FACT_SAYS, .says = (text)
#define UNUSED .kind = MM2_FACT_UNUSED

// clang-format off
static const mm2_fact facts[] = {
    /* Sizes */
    {"num_hidden_layers", "block_count", MM2_FACT_SIZE, FIELD(num_hidden_layers)},
    {"hidden_size", "embedding_length", MM2_FACT_SIZE, FIELD(hidden_size)},
    {"num_attention_heads", "attention.head_count", MM2_FACT_SIZE, FIELD(num_attention_heads)},
    {"num_key_value_heads", "attention.head_count_kv", MM2_FACT_SIZE, FIELD(num_key_value_heads)},
    {"head_dim", "attention.key_length", MM2_FACT_SIZE, FIELD(head_dim)},
    {NULL, "attention.value_length", MM2_FACT_SAME, FIELD(head_dim)},
    {NULL, "rope.dimension_count", MM2_FACT_SIZE_OR, FIELD(rotary_dim)},
    {"num_local_experts", "expert_count", MM2_FACT_SIZE, FIELD(num_local_experts)},
    {"num_experts", NULL, MM2_FACT_SAME, FIELD(num_local_experts)},
    {"num_experts_per_tok", "expert_used_count", MM2_FACT_SIZE, FIELD(num_experts_per_tok)},
    {"intermediate_size", "expert_feed_forward_length", MM2_FACT_SIZE, FIELD(intermediate_size),
     .gguf_else = "feed_forward_length"},
    {"vocab_size", NULL, MM2_FACT_SIZE, FIELD(vocab_size)}, /* GGUF: the rows of the embedding */
    {"max_position_embeddings", "context_length", MM2_FACT_SIZE, FIELD(max_position_embeddings)},
    {NULL, "embedding_length_out", MM2_FACT_SAME, FIELD(hidden_size)},

    /* Numbers and switches */
    {NULL, "rope.freq_base", MM2_FACT_NUMBER, FIELD(rope_theta)},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon", MM2_FACT_NUMBER, FIELD(rms_norm_eps)},
    {"routed_scaling_factor", NULL, MM2_FACT_NUMBER_OR, FIELD(routed_scaling_factor)},
    {NULL, "expert_weights_scale", MM2_FACT_SCALE, FIELD(routed_scaling_factor)},
    {"use_qk_norm", NULL, MM2_FACT_FLAG, FIELD(use_qk_norm)},
    {"use_routing_bias", NULL, MM2_FACT_FLAG, FIELD(use_routing_bias)},

    /* Attention: full, causal, grouped, scaled by 1 / sqrt(head_dim), without biases */
    {"attn_type_list", NULL, MM2_FACT_EACH_IS, .is = 1, .or_is = 1},
    {"layer_types", NULL, MM2_FACT_EACH_SAYS, .says = "full_attention"},
    {"qk_norm_type", NULL, SAYS("per_layer")},
    {"attention_bias", NULL, IS(0, 0)},
    {"qkv_bias", NULL, IS(0, 0)},
    {"sliding_window", "attention.sliding_window", IS(0, -1)},
    {"attn_window_size", NULL, IS(0, -1)},
    {"query_pre_attn_scalar", "attention.scale", IS(0, 0)},
    {"attention_multiplier", NULL, IS(0, 0)},
    {"attn_logit_softcapping", "attn_logit_softcapping", IS(0, 0)},
    {"attention_chunk_size", NULL, IS(0, 0)},
    {"attn_output_gate", NULL, IS(0, 0)},
    {NULL, "attention.causal", IS(1, 1)},
    {NULL, "attention.clamp_kqv", IS(0, 0)},
    {NULL, "attention.max_alibi_bias", IS(0, 0)},
    {NULL, "attention.output_scale", IS(1, 0)},
    {NULL, "attention.temperature_length", IS(0, 0)},
    {NULL, "attention.temperature_scale", IS(0, 0)},
    {NULL, "attention.q_lora_rank", IS(0, 0)},
    {NULL, "attention.kv_lora_rank", IS(0, 0)},
    {NULL, "attention.key_length_mla", IS(0, 0)},
    {NULL, "attention.value_length_mla", IS(0, 0)},
    {NULL, "attention.shared_kv_layers", IS(0, 0)},
    {NULL, "attention.indexer.head_count", IS(0, 0)},
    {NULL, "attention.indexer.key_length", IS(0, 0)},
    {NULL, "attention.indexer.top_k", IS(0, 0)},

    /* Rotation: the two halves of the first dimensions, not scaled */
    {"rope_interleave", NULL, IS(0, 0)},
    {NULL, "rope.scaling.type", .kind = MM2_FACT_SAYS, .says = "none", .or_says = "linear"},
    {NULL, "rope.scaling.factor", IS(1, 0)},
    {NULL, "rope.scale_linear", IS(1, 0)},
    {NULL, "rope.scaling.attn_factor", IS(1, 1)},
    {NULL, "rope.scaling.yarn_attn_factor", IS(1, 1)},
    {NULL, "rope.scaling.yarn_ext_factor", IS(0, -1)},
    {NULL, "rope.scaling.alpha", IS(0, 0)},
    {NULL, "rope.dimension_sections", IS(0, 0)},

    /* Experts: a sigmoid router with a bias for the choice only, weights that sum to one, SwiGLU */
    {"hidden_act", NULL, SAYS("silu")},
    {"scoring_func", NULL, SAYS("sigmoid")},
    {NULL, "expert_gating_func", IS(2, 2)}, /* sigmoid */
    {"norm_topk_prob", "expert_weights_norm", IS(1, 1)},
    {"topk_method", NULL, SAYS("noaux_tc")},
    {"n_group", "expert_group_count", IS(1, 0)},
    {"num_expert_group", NULL, IS(1, 0)},
    {"topk_group", "expert_group_used_count", IS(1, 0)},
    {NULL, "expert_group_scale", IS(1, 0)},
    {NULL, "experts_per_group", IS(0, 0)},
    {"shared_intermediate_size", "expert_shared_feed_forward_length", IS(0, 0)},
    {"num_shared_experts", "expert_shared_count", IS(0, 0)},
    {"n_shared_experts", NULL, IS(0, 0)},
    {"first_k_dense_replace", "leading_dense_block_count", IS(0, 0)},
    {"moe_layer_freq", "moe_every_n_layers", IS(1, 0)},
    {"decoder_sparse_step", "interleave_moe_layer_step", IS(1, 0)},
    {"mlp_bias", NULL, IS(0, 0)},
    {"swiglu_limit", "swiglu_clamp_exp", IS(0, 0)},
    {NULL, "router_logit_softcapping", IS(0, 0)},

    /* The stream and its ends */
    {"tie_word_embeddings", NULL, IS(0, 0)},
    {"use_gemma_norm", NULL, IS(0, 0)},
    {"postnorm", NULL, IS(0, 0)},
    {"layernorm_full_attention_alpha", NULL, IS(1, 1)},
    {"layernorm_full_attention_beta", NULL, IS(1, 1)},
    {"layernorm_linear_attention_alpha", NULL, UNUSED}, /* no such layers */
    {"layernorm_linear_attention_beta", NULL, UNUSED},
    {"layernorm_mlp_alpha", NULL, IS(1, 1)},
    {"layernorm_mlp_beta", NULL, IS(1, 1)},
    {"embedding_multiplier", "embedding_scale", IS(1, 0)},
    {"residual_multiplier", "residual_scale", IS(1, 0)},
    {"logits_scaling", "logit_scale", IS(1, 0)},
    {"final_logit_softcapping", "final_logit_softcapping", IS(0, 0)},
    {NULL, "use_parallel_residual", IS(0, 0)},
    {NULL, "nextn_predict_layers", IS(0, 0)}, /* they count among block_count */

    /* Multi-token prediction: its weights were never released; the main layers do without */
    {"use_mtp", NULL, UNUSED},
    {"num_mtp_modules", NULL, UNUSED},
    {"mtp_transformer_layers", NULL, UNUSED},
    {"num_nextn_predict_layers", NULL, UNUSED},

    /* Training, and how other engines run it */
    {"attention_dropout", NULL, UNUSED},
    {"router_jitter_noise", NULL, UNUSED},
    {"router_aux_loss_coef", NULL, UNUSED},
    {"output_router_logits", NULL, UNUSED},
    {"initializer_range", NULL, UNUSED},
    {"use_cache", NULL, UNUSED},
    {"max_model_len", NULL, UNUSED},
    {"swa_rope_theta", "rope.freq_base_swa", UNUSED}, /* of layers with a window */
    {NULL, "rope.dimension_count_swa", UNUSED},
    {NULL, "attention.key_length_swa", UNUSED},
    {NULL, "attention.value_length_swa", UNUSED},
    {NULL, "attention.sliding_window_pattern", UNUSED},
    {NULL, "rope.scaling.original_context_length", UNUSED}, /* of a scaling: there is none */
    {NULL, "rope.scaling.finetuned", UNUSED},
    {NULL, "rope.scaling.yarn_log_multiplier", UNUSED},
    {NULL, "rope.scaling.yarn_beta_fast", UNUSED},
    {NULL, "rope.scaling.yarn_beta_slow", UNUSED},
    {NULL, "attention.layer_norm_epsilon", UNUSED},
    {NULL, "pooling_type", UNUSED},
    {NULL, "tensor_data_layout", UNUSED},
    {"dtype", NULL, UNUSED}, /* every tensor says its own */
    {"torch_dtype", NULL, UNUSED},
    {"auto_map", NULL, UNUSED}, /* names code, which is never run */
    {"architectures", NULL, UNUSED},
    {"transformers_version", NULL, UNUSED},
    {"pad_token_id", NULL, UNUSED}, /* the tokenizer's files say it */
    {"bos_token_id", NULL, UNUSED},
};

#define LAYER "model.layers.%d."
#define BLK "blk.%d."

static const mm2_names names[MM2_PLACE_COUNT] = {
    [MM2_PLACE_EMBED] = {{"model.embed_tokens.weight"}, {"token_embd.weight"}},
    [MM2_PLACE_FINAL_NORM] = {{"model.norm.weight"}, {"output_norm.weight"}},
    [MM2_PLACE_HEAD] = {{"lm_head.weight"}, {"output.weight"}},
    [MM2_PLACE_ATTN_NORM] = {{LAYER "input_layernorm.weight"}, {BLK "attn_norm.weight"}},
    [MM2_PLACE_Q] = {{LAYER "self_attn.q_proj.weight"}, {BLK "attn_q.weight"}},
    [MM2_PLACE_K] = {{LAYER "self_attn.k_proj.weight"}, {BLK "attn_k.weight"}},
    [MM2_PLACE_V] = {{LAYER "self_attn.v_proj.weight"}, {BLK "attn_v.weight"}},
    [MM2_PLACE_O] = {{LAYER "self_attn.o_proj.weight"}, {BLK "attn_output.weight"}},
    [MM2_PLACE_Q_NORM] = {{LAYER "self_attn.q_norm.weight"}, {BLK "attn_q_norm.weight"}},
    [MM2_PLACE_K_NORM] = {{LAYER "self_attn.k_norm.weight"}, {BLK "attn_k_norm.weight"}},
    [MM2_PLACE_MLP_NORM] = {{LAYER "post_attention_layernorm.weight"}, {BLK "ffn_norm.weight"}},
    [MM2_PLACE_ROUTER] = {{LAYER "block_sparse_moe.gate.weight", LAYER "mlp.gate.weight"},
                          {BLK "ffn_gate_inp.weight"}},
    [MM2_PLACE_ROUTING_BIAS] = {{LAYER "block_sparse_moe.e_score_correction_bias",
                                 LAYER "mlp.e_score_correction_bias",
                                 LAYER "block_sparse_moe.gate.e_score_correction_bias",
                                 LAYER "mlp.gate.e_score_correction_bias"},
                                {BLK "exp_probs_b.bias", BLK "exp_probs_b"}},
    [MM2_PLACE_GATE] = {{LAYER "block_sparse_moe.experts.%d.w1.weight",
                         LAYER "mlp.experts.%d.gate_proj.weight"}, {NULL}},
    [MM2_PLACE_UP] = {{LAYER "block_sparse_moe.experts.%d.w3.weight",
                       LAYER "mlp.experts.%d.up_proj.weight"}, {NULL}},
    [MM2_PLACE_DOWN] = {{LAYER "block_sparse_moe.experts.%d.w2.weight",
                         LAYER "mlp.experts.%d.down_proj.weight"}, {NULL}},
    [MM2_PLACE_GATES] = {{NULL}, {BLK "ffn_gate_exps.weight"}},
    [MM2_PLACE_UPS] = {{NULL}, {BLK "ffn_up_exps.weight"}},
    [MM2_PLACE_DOWNS] = {{LAYER "mlp.experts.down_proj"}, {BLK "ffn_down_exps.weight"}},
    [MM2_PLACE_GATES_UPS] = {{LAYER "mlp.experts.gate_up_proj"}, {BLK "ffn_gate_up_exps.weight"}},
};

#define MLX "is an MLX checkpoint's, packed for Apple's framework; download the vendor's FP8 release " \
            "or a GGUF file"
#define SHARED "is a shared expert's; this build computes models without one"
#define BIAS "is a bias of experts; this build adds none"
#define POST "is a second norm of a block; this build computes models without one"

static const mm2_foreign foreign[] = {
    {LAYER "block_sparse_moe.switch_mlp.gate_proj.weight", NULL, MLX},
    {LAYER "mlp.switch_mlp.gate_proj.weight", NULL, MLX},
    {LAYER "block_sparse_moe.shared_experts.gate_proj.weight", BLK "ffn_gate_shexp.weight", SHARED},
    {LAYER "mlp.shared_experts.gate_proj.weight", BLK "ffn_up_shexp.weight", SHARED},
    {LAYER "shared_mlp.gate_proj.weight", BLK "ffn_down_shexp.weight", SHARED},
    {LAYER "mlp.experts.gate_up_proj_bias", NULL, BIAS},
    {LAYER "mlp.experts.down_proj_bias", NULL, BIAS},
    {LAYER "pre_feedforward_layernorm.weight", BLK "post_attention_norm.weight", POST},
    {LAYER "post_feedforward_layernorm.weight", BLK "post_ffw_norm.weight", POST},
    {LAYER "self_attn.sinks", BLK "attn_sinks.weight",
     "holds attention sinks; this build computes models without them"},
    {NULL, "rope_freqs.weight", "scales the rotation's frequencies; this build supports none"},
};
// clang-format on

static void describe_layer(const mm2_config *c, int32_t layer, mm2_layer_kind *out)
{
    *out = (mm2_layer_kind){MM2_ATTENTION_GQA, MM2_FEED_FORWARD_MOE}; /* all of them */
}

const mm2_family mm2_minimax_m2 = {
    .model_type = "minimax_m2",
    .architecture = "minimax-m2",
    .end_tag = "[e~[",
    .defaults = {.rotary_dim = -1,
                 .use_qk_norm = 1,
                 .use_routing_bias = 1,
                 .routed_scaling_factor = 1},
    .facts = facts,
    .fact_count = sizeof facts / sizeof *facts,
    .foreign_count = sizeof foreign / sizeof *foreign,
    .names = names,
    .foreign = foreign,
    .layer = describe_layer,
};
