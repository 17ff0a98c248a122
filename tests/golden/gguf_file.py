"""Writes checkpoints as GGUF files, with the `gguf` package.

Norms, router and routing bias stay F32, as in every published file; matrices take the asked type.
`quantised` encodes given weights; `drawn` makes blocks of random codes, for the types that the
package can only decode.
"""

import re

import gguf
import ml_dtypes
import numpy as np

import checkpoints

F32 = gguf.GGMLQuantizationType.F32
E4M3 = ml_dtypes.float8_e4m3fn
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "block_sparse_moe.gate.weight": "ffn_gate_inp.weight",
    "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias",
}
EXPERTS = {"w1": "ffn_gate_exps.weight", "w2": "ffn_down_exps.weight", "w3": "ffn_up_exps.weight"}


def renamed(config, tensors):
    """(GGUF name, float32 array, whether it may be quantised); the experts of a layer stacked."""
    for name, array in tensors.items():
        if ".experts." in name:
            continue
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        new = f"blk.{match[1]}.{NAMES[match[2]]}" if match else NAMES[name]
        yield new, array, array.ndim == 2 and "gate_inp" not in new
    for layer in range(config["num_hidden_layers"]):
        for part, new in EXPERTS.items():
            names = (f"model.layers.{layer}.block_sparse_moe.experts.{e}.{part}.weight"
                     for e in range(config["num_local_experts"]))
            yield f"blk.{layer}.{new}", np.stack([tensors[name] for name in names]), True


def quantised(config, tensors, kind):
    """Entries for write(). `tensors`: {vendor's name: float32 array}; `kind`: a type that
    gguf.quantize knows."""
    for name, array, matrix in renamed(config, tensors):
        chosen = kind if matrix else F32
        yield name, gguf.quantize(array, chosen), chosen


# Where a block keeps its scales, mostly half floats, and those of its minima.
SCALES = {"Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,), "IQ4_NL": (0,), "Q2_K": (80, 82),
          "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,),
          "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
          "IQ1_S": (0,), "IQ1_M": (48,), "TQ1_0": (52,), "TQ2_0": (64,), "Q4_1": (0, 2),
          "Q5_1": (0, 2), "Q1_0": (0,), "MXFP4": (0,), "NVFP4": (0, 1, 2, 3)}


def set_halves(name, blocks, at, halves):
    """Puts one half float into each block, uint8 [blocks, bytes], of the type `name`, at byte
    `at`. IQ1_M has it in the upper nibbles of four words; of MXFP4 it is the exponent only, for
    doubled codes, and of NVFP4 an E4M3 number, likewise."""
    halves = np.ascontiguousarray(halves, "<f2")
    if name == "MXFP4":
        bits = (halves.astype(np.float32) * 2).view(np.uint32)
        blocks[:, at] = bits >> 23 & 255
    elif name == "NVFP4":
        with np.errstate(all="ignore"):
            blocks[:, at] = (halves.astype(np.float32) * 2).astype(E4M3).view(np.uint8)
    elif name == "IQ1_M":
        bits = halves.view("<u2")
        for i in range(4):
            upper = (bits >> 4 * i & 15).astype(np.uint8) << 4
            blocks[:, at + 2 * i + 1] = blocks[:, at + 2 * i + 1] & 15 | upper
    else:
        blocks[:, at:at + 2] = halves.view(np.uint8).reshape(-1, 2)


def dequantize(data, kind):
    """float32 [..., n]: gguf.dequantize, and what that leaves out."""
    if kind.name != "Q1_0":
        return gguf.dequantize(data, kind)
    blocks = data.reshape(-1, 18)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    signs = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(bool)
    return np.where(signs, scale, -scale).reshape(*data.shape[:-1], -1)


def encode(array, kind):
    """uint8 blocks of float32 [..., n]: gguf.quantize, and what that leaves out."""
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    values = array.reshape(-1, size).astype(np.float32)
    if kind.name == "Q1_0":
        blocks = np.empty((len(values), nbytes), np.uint8)
        set_halves("Q1_0", blocks, 0, np.abs(values).mean(1))
        blocks[:, 2:] = np.packbits(values > 0, axis=1, bitorder="little")
    elif kind.name == "NVFP4":
        values = values.reshape(-1, 4, 16)
        scale = (np.abs(values).max(2) / 6).astype(E4M3)
        blocks = np.zeros((len(values), nbytes), np.uint8)
        blocks[:, :4] = scale.view(np.uint8)
        scaled = values / np.maximum(scale.astype(np.float32), 1e-9)[..., None]
        codes = np.abs(np.abs(scaled)[..., None] - E2M1).argmin(-1) + 8 * (scaled < 0)
        packed = codes[..., :8] | codes[..., 8:] << 4
        blocks[:, 4:] = packed.reshape(-1, 32)
    else:
        return gguf.quantize(array, kind)
    return blocks.reshape(*array.shape[:-1], -1)


def random_blocks(case, name, shape, kind, spread):
    """uint8 blocks of a matrix whose values have about the standard deviation `spread`. All bits
    are random but those of the scales, which differ by up to a factor of 2."""
    size, bytes_a_block = gguf.GGML_QUANT_SIZES[kind]
    rows = (*shape[:-1], shape[-1] // size * bytes_a_block)
    data = checkpoints.hash_bytes(case, name, rows).copy()
    blocks = data.reshape(-1, bytes_a_block)

    def set_scales(factor):
        for at in SCALES[kind.name]:
            drawn = checkpoints.hash_bytes(case, f"{name} scale {at}", (len(blocks),))
            scale = ((128 + (drawn >> 1)) / 128 * factor).astype("<f2")
            set_halves(kind.name, blocks, at, scale)

    set_scales(1.0)
    set_scales(checkpoints.power_of_two(spread / dequantize(blocks[:64], kind).std()))
    return data


def drawn(case, kind):
    """Entries for write(): a case whose matrices are random blocks."""
    tensors = {w.name: checkpoints.values(case, w) for w in checkpoints.weights(case)}
    for name, array, matrix in renamed(case.config(), tensors):
        if matrix:
            yield name, random_blocks(case, name, array.shape, kind, array.std()), kind
        else:
            yield name, array, F32


def write(path, config, entries):
    """`config`: keys of config.json. `entries`: (GGUF name, array of values or of blocks as bytes,
    gguf.GGMLQuantizationType). Returns the path."""
    writer = gguf.GGUFWriter(path, "minimax-m2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["rotary_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    for name, array, kind in entries:
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
