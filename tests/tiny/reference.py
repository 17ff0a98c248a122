"""A second opinion on the exported files: MiniMax-M2's forward pass in NumPy, from the bytes.

It shares no code with transformers, safetensors or the rest of this folder, so that an error in
the export (a swapped gate, a transposed scale) cannot cancel out. Slow, float64 throughout."""

import json
import pathlib
import struct
from functools import partial

import numpy as np


def e4m3_table():
    """Value of each of the 256 codes: 1 sign, 4 exponent (bias 7), 3 mantissa bits, no infinity."""
    values = np.empty(256)
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        size = (
            mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        )
        values[code] = np.nan if code & 127 == 127 else size
        values[code] *= -1 if code & 128 else 1
    return values


E4M3 = e4m3_table()


def decode(raw, kind):
    if kind == "F8_E4M3":
        return E4M3[np.frombuffer(raw, np.uint8)]
    if kind == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(float)
    if kind == "F32":
        return np.frombuffer(raw, "<f4").astype(float)
    raise ValueError(f"unexpected dtype {kind}")


def read_shard(path):
    blob = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", blob)
    header = json.loads(blob[8 : 8 + length])
    header.pop("__metadata__", None)
    body = blob[8 + length :]
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        yield name, decode(body[begin:end], entry["dtype"]).reshape(entry["shape"])


def read_weights(folder, block):
    folder = pathlib.Path(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    weights = {}
    for shard in set(index["weight_map"].values()):
        weights.update(read_shard(folder / shard))
    if set(weights) != set(index["weight_map"]):
        raise ValueError("index and shards name different tensors")
    for name in [n for n in weights if n.endswith("_scale_inv")]:
        scale = weights.pop(name)
        weights[name.removesuffix("_scale_inv")] *= np.kron(scale, np.ones((block, block)))
    return weights


def rms(x, weight, eps):
    return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def silu(x):
    return x / (1 + np.exp(-x))


def rotate(x, positions, dims, theta):
    """Rotates the first `dims` of each head, pairing i with i + dims / 2."""
    half = dims // 2
    angle = positions[:, None, None] * theta ** (-np.arange(half) / half)
    a, b, rest = x[..., :half], x[..., half:dims], x[..., dims:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def attention(h, get, config):
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width, eps, length = config["head_dim"], config["rms_norm_eps"], len(h)
    positions = np.arange(length)
    q = rms(h @ get("q_proj").T, get("q_norm"), eps).reshape(length, heads, width)
    k = rms(h @ get("k_proj").T, get("k_norm"), eps).reshape(length, groups, width)
    v = (h @ get("v_proj").T).reshape(length, groups, width)
    q = rotate(q, positions, config["rotary_dim"], config["rope_theta"])
    k = rotate(k, positions, config["rotary_dim"], config["rope_theta"])
    out = np.empty_like(q)
    for head in range(heads):
        group = head * groups // heads
        scores = q[:, head] @ k[:, group].T / np.sqrt(width)
        scores[positions[:, None] < positions] = -np.inf
        scores = np.exp(scores - scores.max(1, keepdims=True))
        out[:, head] = scores / scores.sum(1, keepdims=True) @ v[:, group]
    return out.reshape(length, -1) @ get("o_proj").T


def experts(h, get, config):
    scores = 1 / (1 + np.exp(-(h @ get("gate.weight").T)))
    chosen = np.argsort(-(scores + get("e_score_correction_bias")), 1, kind="stable")
    chosen = chosen[:, : config["num_experts_per_tok"]]
    out = np.zeros_like(h)
    for t, picks in enumerate(chosen):
        for e in picks:
            w1, w2, w3 = (get(f"experts.{e}.{w}.weight") for w in ("w1", "w2", "w3"))
            share = scores[t, e] / scores[t, picks].sum()
            out[t] += share * (w2 @ (silu(w1 @ h[t]) * (w3 @ h[t])))
    return out


def part(weights, pattern, name):
    return weights[pattern.format(name)]


def forward(folder, ids):
    """Logits [len(ids), vocabulary] of the model in the folder."""
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    weights = read_weights(folder, config["quantization_config"]["weight_block_size"][0])
    eps = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][np.asarray(ids)]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        h = rms(x, weights[layer + "input_layernorm.weight"], eps)
        x = x + attention(h, partial(part, weights, layer + "self_attn.{}.weight"), config)
        h = rms(x, weights[layer + "post_attention_layernorm.weight"], eps)
        x = x + experts(h, partial(part, weights, layer + "block_sparse_moe.{}"), config)
    return rms(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T
