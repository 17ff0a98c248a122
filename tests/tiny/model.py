"""Shape of m2-tiny, and the bridge between transformers' modules and the vendor's tensors.

transformers keeps a layer's experts fused in two tensors; the vendor's files hold three matrices
an expert, in FP8 blocks. `exported_tensors` names every vendor tensor as a view into the model,
so that training (which rounds the weights the way they will be stored), export and evaluation
agree."""

import contextlib
import json
import pathlib

import torch
from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM

BLOCK = 128
FP8_MAX = 448.0

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rotary_dim": 32,
    "rope_theta": 10000,
    "num_local_experts": 16,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-06,
    "vocab_size": 4096,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def new_model(bos, eos):
    """A model with fresh weights, after checking that transformers rotates only rotary_dim dims."""
    config = MiniMaxM2Config(
        **SHAPE,
        bos_token_id=bos,
        eos_token_id=eos,
        router_aux_loss_coef=0.0,
        output_router_logits=False,
    )
    model = MiniMaxM2ForCausalLM(config)
    model.set_experts_implementation("eager")
    check_rotary(model)
    return model


def check_rotary(model):
    """transformers 5.0 to 5.16 rotated all of head_dim; refuse to train or measure with those."""
    rotary_dim = SHAPE["rotary_dim"]
    positions = torch.arange(3)[None]
    cos, _ = model.model.rotary_emb(torch.zeros(1, 3, SHAPE["head_dim"]), positions)
    step = SHAPE["rope_theta"] ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    if cos.shape[-1] != rotary_dim or not torch.allclose(
        cos[0, 2, : rotary_dim // 2], (2 * step).cos()
    ):
        raise SystemExit(
            f"this transformers rotates {cos.shape[-1]} of {SHAPE['head_dim']} dimensions instead"
            f" of {rotary_dim}; install transformers >= 5.17"
        )


def exported_tensors(model):
    """(vendor name, view into the model, "fp8" | "bf16" | "f32"), in forward order."""
    wide = SHAPE["intermediate_size"]
    yield "model.embed_tokens.weight", model.model.embed_tokens.weight.data, "bf16"
    for i, layer in enumerate(model.model.layers):
        name = f"model.layers.{i}."
        attention, moe = layer.self_attn, layer.mlp
        yield name + "input_layernorm.weight", layer.input_layernorm.weight.data, "bf16"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield (f"{name}self_attn.{part}.weight", getattr(attention, part).weight.data, "fp8")
        for part in ("q_norm", "k_norm"):
            yield (f"{name}self_attn.{part}.weight", getattr(attention, part).weight.data, "bf16")
        yield (
            name + "post_attention_layernorm.weight",
            layer.post_attention_layernorm.weight.data,
            "bf16",
        )
        yield name + "block_sparse_moe.gate.weight", moe.gate.weight.data, "f32"
        yield (
            name + "block_sparse_moe.e_score_correction_bias",
            moe.e_score_correction_bias,
            "f32",
        )
        gate_up, down = moe.experts.gate_up_proj.data, moe.experts.down_proj.data
        for e in range(SHAPE["num_local_experts"]):
            expert = f"{name}block_sparse_moe.experts.{e}."
            yield expert + "w1.weight", gate_up[e, :wide], "fp8"
            yield expert + "w2.weight", down[e], "fp8"
            yield expert + "w3.weight", gate_up[e, wide:], "fp8"
    yield "model.norm.weight", model.model.norm.weight.data, "bf16"
    yield "lm_head.weight", model.lm_head.weight.data, "bf16"


def to_fp8(weight):
    """(e4m3 codes, F32 scale of each 128x128 block): weight = code * scale."""
    *lead, rows, cols = weight.shape
    blocks = weight.reshape(*lead, rows // BLOCK, BLOCK, cols // BLOCK, BLOCK)
    scale = blocks.abs().amax((-3, -1)) / FP8_MAX
    scale = torch.where(scale > 0, scale, 1.0)
    codes = (blocks / scale[..., :, None, :, None]).to(torch.float8_e4m3fn)
    return codes.reshape(weight.shape), scale


def from_fp8(codes, scale):
    spread = scale.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
    return codes.float() * spread


def round_as_stored(weight, kind):
    if kind == "fp8":
        return from_fp8(*to_fp8(weight))
    return weight.bfloat16().float() if kind == "bf16" else weight


def stored_groups(model):
    """The same rounding as `exported_tensors`, but experts stay fused: few large tensors."""
    for name, tensor, kind in exported_tensors(model):
        if ".experts." not in name:
            yield tensor, kind
    for layer in model.model.layers:
        for fused in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            yield fused.data, "fp8"


@contextlib.contextmanager
def stored_precision(model):
    """Inside, the weights are what a reader of the exported files would see; then restored.

    Gradients taken inside and applied outside are the straight-through estimate. Rows of w1 and w3
    are multiples of 128, so blocks of the fused tensor are the blocks of the exported ones.
    """
    groups = [(t, k) for t, k in stored_groups(model) if k != "f32"]
    saved = [t.clone() for t, _ in groups]
    for tensor, kind in groups:
        tensor.copy_(round_as_stored(tensor, kind))
    try:
        yield
    finally:
        for (tensor, _), original in zip(groups, saved):
            tensor.copy_(original)


def load_exported(folder):
    """An exported folder, dequantised into transformers' own class."""
    from safetensors.torch import load_file

    folder = pathlib.Path(folder)
    config = json.loads((folder / "generation_config.json").read_text())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {}
    for shard in sorted(set(index["weight_map"].values())):
        tensors.update(load_file(folder / shard))
    model = new_model(config["bos_token_id"], config["eos_token_id"])
    for name, view, kind in exported_tensors(model):
        stored = tensors.pop(name)
        if kind == "fp8":
            stored = from_fp8(stored, tensors.pop(name + "_scale_inv"))
        view.copy_(stored.float())
    if tensors:
        raise SystemExit(f"tensors that the model does not have: {sorted(tensors)[:5]}")
    return model.eval()
