"""Checkpoints of random weights in the real formats and, if asked, at the real widths.

A machine that holds two layers of MiniMax-M2 can measure what a layer costs, and a test can have a
checkpoint of any size and format without a download. Values are drawn so that activations stay
sane: matrices have a standard deviation of about 1 / sqrt(columns), norms are near one. The same
arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from minimax2.drawing import PLANES, Spec, draw, e4m3_rms
from minimax2.errors import ArgumentError
from minimax2.formats import E2M1, FORMATS, LAYOUTS, MIXES, NAMES, Mix
from minimax2.writing import (ALIGNMENT, SHARD, Piece, Progress, Report, claimed, progress_bar,
                              size_of, write_gguf, write_json, write_safetensors)

LIKE = {
    "m2": dict(hidden=3072, heads=48, kv_heads=8, head_dim=128, experts=256, experts_per_token=8,
               expert_size=1536, vocab=200064),
    "tiny": dict(hidden=256, heads=8, kv_heads=2, head_dim=32, experts=8, experts_per_token=2,
                 expert_size=256, vocab=512),
}
CONTEXT = 196608  # positions, as in M2
THETA = 5e6
EPSILON = 1e-6


def synth(path: str | os.PathLike[str], *, like: str = "m2", layers: int = 2, format: str = "fp8",
          container: str | None = None, hidden: int | None = None, experts: int | None = None,
          experts_per_token: int | None = None, expert_size: int | None = None,
          heads: int | None = None, kv_heads: int | None = None, head_dim: int | None = None,
          vocab: int | None = None, seed: int = 0,
          tokenizer: str | os.PathLike[str] | None = None, shard: int = SHARD,
          progress: Progress | None = None) -> int:
    """Write a checkpoint of random weights; returns its size in bytes.

    path: a directory (safetensors) or a .gguf file, to be made. What exists is refused unless it
    is empty, and nothing is left behind on failure.
    like: "m2", the real widths, or "tiny"; each width can be given apart. Zero is no width.
    format: of the matrices, one of NAMES: a type such as "q8_0" (GGUF), "bf16", "f16" or "f32"
    (both), a mix of types as downloads have them, such as "q4_k_m" or "ud-iq3_s" (GGUF), or a
    layout of quantised safetensors, such as "fp8" (the vendor's) or "nvfp4-modelopt". Rules of
    mixes that are for the first eighth of the layers need 8 layers to show.
    container: "safetensors" or "gguf"; None: what the path's ending and the format ask for.
    tokenizer: a tokenizer.json, or a directory that holds one, to put into the checkpoint. A GGUF
    file without one gets a vocabulary of single bytes.
    shard: bytes of one safetensors file. progress: called with (bytes written, bytes in all).

    Raises ArgumentError, FileError, OSError.
    """
    path = Path(path)
    sizes = _sizes(like, layers=layers, hidden=hidden, experts=experts, heads=heads, vocab=vocab,
                   experts_per_token=experts_per_token, expert_size=expert_size,
                   kv_heads=kv_heads, head_dim=head_dim)
    container = _container(path, format, container)
    specs = _plan(sizes, format, container)
    for spec in specs:
        if spec.shape and spec.shape[-1] % spec.block:
            raise _ragged(spec.name, spec.shape[-1], spec.format, spec.block)
    words = _read_tokenizer(tokenizer, sizes["vocab"]) if tokenizer else None
    total = sum(spec.nbytes for spec in specs)
    pieces = [_piece(spec, container, seed) for spec in specs]
    with claimed(path, total, container == "safetensors") as part:
        report = Report(progress, total)
        if container == "gguf":
            words = words or _byte_vocabulary(sizes["vocab"])
            write_gguf(part, _metadata(sizes, words), pieces, report)
        else:
            write_safetensors(part, pieces, shard, report)
            _write_documents(part, sizes, format, specs, tokenizer)
        return size_of(part)


# ---- What to write ----

def plan(format: str, like: str = "m2", **widths: int) -> list[Spec]:
    """The tensors that synth() would write, without writing any; widths as there."""
    container = "safetensors" if format in LAYOUTS else "gguf"
    return _plan(_sizes(like, **widths), format, _container(Path("x.gguf"), format, container))


def _plan(sizes: Mapping[str, int], format: str, container: str) -> list[Spec]:
    return list(_plan_gguf(sizes, format) if container == "gguf" else _plan_hf(sizes, format))


def _sizes(like: str, **given: int | None) -> dict[str, int]:
    if like not in LIKE:
        raise ArgumentError(f"like is {like!r}, expected one of {', '.join(LIKE)}")
    sizes = {**LIKE[like], **{name: value for name, value in given.items() if value is not None}}
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name} is {value!r}, expected a whole number above 0")
    if sizes["heads"] % sizes["kv_heads"]:
        raise ArgumentError(f"{sizes['heads']} heads are no multiple of {sizes['kv_heads']} "
                            "KV heads")
    if sizes["head_dim"] % 16:
        raise ArgumentError(f"head_dim is {sizes['head_dim']}, expected a multiple of 16")
    if sizes["experts_per_token"] > sizes["experts"]:
        raise ArgumentError(f"{sizes['experts_per_token']} experts per token of "
                            f"{sizes['experts']} experts")
    return sizes


def _container(path: Path, format: str, container: str | None) -> str:
    if format not in NAMES:
        raise ArgumentError(f"format is {format!r}, expected one of {', '.join(NAMES)}")
    holds = {"gguf": format not in LAYOUTS,
             "safetensors": format in LAYOUTS or format in FORMATS and (
                 FORMATS[format].safetensors is not None)}
    if container is None:
        in_gguf = path.suffix == ".gguf" or not holds["safetensors"]
        container = "gguf" if in_gguf else "safetensors"
    if container not in holds:
        raise ArgumentError(f"container is {container!r}, expected gguf or safetensors")
    if not holds[container]:
        raise ArgumentError(f"{container} has no format {format}")
    if container == "gguf" and path.suffix != ".gguf":
        raise ArgumentError(f"{path}: the name of a GGUF file must end in .gguf")
    return container


def _ragged(name: str, columns: int, format: str, block: int) -> ArgumentError:
    return ArgumentError(f"{name} has {columns} columns: {format} needs a multiple of {block}")


def _layout(format: str, name: str, rows: int, columns: int) -> Iterator[Spec]:
    """The tensors that make a matrix [rows, columns] of deviation 1 / sqrt(columns)."""
    std = 1 / math.sqrt(columns)
    group = LAYOUTS[format].group or columns
    groups = columns // group
    base = name.removesuffix("weight")
    if columns % group and format != "fp8":
        raise _ragged(name, columns, format, group)

    def scales(kind: str, unit: float) -> Spec:
        """A scale a group, spread by a quarter, that gives the values their deviation."""
        mean = std / unit
        return Spec(base + "weight_scale", (rows, groups), kind, mean / 10, mean)

    def scalar(name: str, value: float) -> Spec:
        return Spec(base + name, () if "modelopt" in format else (1,), "f32", 0.0, value)

    if format in ("fp8", "fp8-channel"):
        # The codes have a deviation of their own; the scales bring it to `std`.
        yield Spec(name, (rows, columns), "fp8", 120.0)
        if format == "fp8":
            mean = std / e4m3_rms()
            yield Spec(name + "_scale_inv", (-(-rows // 128), -(-columns // 128)), "f32",
                       mean / 20, mean)
        else:
            yield scales("bf16", e4m3_rms())
    elif format.startswith("nvfp4"):
        shift = 128.0  # scales of eight bits are large, and one of the whole tensor is small
        whole = std / E2M1 / shift
        is_modelopt = format == "nvfp4-modelopt"
        yield Spec(base + ("weight" if is_modelopt else "weight_packed"), (rows, columns // 2),
                   "bytes")
        yield Spec(base + "weight_scale", (rows, groups), "e4m3_scale", mean=shift)
        if is_modelopt:
            yield scalar("weight_scale_2", whole)
            yield scalar("input_scale", 1.0)
        else:
            yield scalar("weight_global_scale", 1 / whole)
            yield scalar("input_global_scale", 1.0)
    elif format.startswith("mxfp4"):
        yield Spec(base + ("weight" if format == "mxfp4-quark" else "weight_packed"),
                   (rows, columns // 2), "bytes")
        yield scales("e8m0_scale", E2M1)
    else:
        bits = 8 if format.startswith("w8") else 4
        yield Spec(base + "weight_packed", (rows, columns * bits // 32), "words")
        yield scales("bf16", {"w4a16": 4.637, "w4a16-asym": 4.743, "w8a16": 73.9,
                              "w8a16-asym": 76.17}[format])
        if format.endswith("asym"):
            yield Spec(base + "weight_zero_point", (-(-rows * bits // 32), groups),
                       "zero_nibbles" if bits == 4 else "zero_bytes")
        yield Spec(base + "weight_shape", (2,), "shape", values=(rows, columns))


def _plan_hf(sizes: Mapping[str, int], format: str) -> Iterator[Spec]:
    """Specs under the vendor's names, in their order."""
    hidden, width = sizes["hidden"], sizes["expert_size"]
    q, kv = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    layout = LAYOUTS.get(format)
    wide = "bf16" if layout else format  # what stays as it is

    def matrix(name: str, rows: int, columns: int) -> Iterator[Spec]:
        if layout and (layout.attention or "self_attn" not in name):
            yield from _layout(format, name, rows, columns)
        else:
            yield Spec(name, (rows, columns), wide, 1 / math.sqrt(columns))

    def norm(name: str, n: int) -> Spec:
        return Spec(name, (n,), wide, 0.1, 1.0)

    yield Spec("model.embed_tokens.weight", (sizes["vocab"], hidden), wide, 1.0)
    for layer in range(sizes["layers"]):
        at = f"model.layers.{layer}."
        yield norm(at + "input_layernorm.weight", hidden)
        yield from matrix(at + "self_attn.q_proj.weight", q, hidden)
        yield from matrix(at + "self_attn.k_proj.weight", kv, hidden)
        yield from matrix(at + "self_attn.v_proj.weight", kv, hidden)
        yield from matrix(at + "self_attn.o_proj.weight", hidden, q)
        yield norm(at + "self_attn.q_norm.weight", q)
        yield norm(at + "self_attn.k_norm.weight", kv)
        yield norm(at + "post_attention_layernorm.weight", hidden)
        at += "block_sparse_moe."
        yield Spec(at + "gate.weight", (sizes["experts"], hidden), "f32", 1 / math.sqrt(hidden))
        yield Spec(at + "e_score_correction_bias", (sizes["experts"],), "f32", 0.05)
        for expert in range(sizes["experts"]):
            yield from matrix(f"{at}experts.{expert}.w1.weight", width, hidden)
            yield from matrix(f"{at}experts.{expert}.w2.weight", hidden, width)
            yield from matrix(f"{at}experts.{expert}.w3.weight", width, hidden)
    yield norm("model.norm.weight", hidden)
    yield Spec("lm_head.weight", (sizes["vocab"], hidden), wide, 1 / math.sqrt(hidden))


def _plan_gguf(sizes: Mapping[str, int], format: str) -> Iterator[Spec]:
    """Specs under llama.cpp's names; shapes outermost first."""
    hidden, width, experts = sizes["hidden"], sizes["expert_size"], sizes["experts"]
    q, kv = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    mix = MIXES.get(format, Mix(format, {}))
    layers = sizes["layers"]

    def matrix(layer: int, part: str, *shape: int, std: float | None = None) -> Spec:
        at = f"blk.{layer}." if layer >= 0 else ""
        return Spec(f"{at}{part}.weight", shape, mix.of(part, layer, layers),
                    std or 1 / math.sqrt(shape[-1]))

    def norm(name: str, n: int) -> Spec:
        return Spec(name, (n,), "f32", 0.1, 1.0)

    yield matrix(-1, "token_embd", sizes["vocab"], hidden, std=1.0)
    for layer in range(layers):
        at = f"blk.{layer}."
        yield norm(at + "attn_norm.weight", hidden)
        yield matrix(layer, "attn_q", q, hidden)
        yield matrix(layer, "attn_k", kv, hidden)
        yield matrix(layer, "attn_v", kv, hidden)
        yield matrix(layer, "attn_output", hidden, q)
        yield norm(at + "attn_q_norm.weight", q)
        yield norm(at + "attn_k_norm.weight", kv)
        yield norm(at + "ffn_norm.weight", hidden)
        yield Spec(at + "ffn_gate_inp.weight", (experts, hidden), "f32", 1 / math.sqrt(hidden))
        yield Spec(at + "exp_probs_b.bias", (experts,), "f32", 0.05)
        yield matrix(layer, "ffn_gate_exps", experts, width, hidden)
        yield matrix(layer, "ffn_up_exps", experts, width, hidden)
        yield matrix(layer, "ffn_down_exps", experts, hidden, width)
    yield norm("output_norm.weight", hidden)
    yield matrix(-1, "output", sizes["vocab"], hidden)


# ---- Tokenizers ----

@cache
def _spellings() -> list[str]:
    """How byte-level vocabularies spell the 256 bytes as printable characters."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


class _Words(NamedTuple):
    """A vocabulary as GGUF holds it; types: 1 normal, 3 control, 4 user defined, 5 unused."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int
    eos: int


def _padded(tokens: Mapping[int, tuple[str, int]], vocab: int) -> tuple[list[str], list[int]]:
    """({id: (text, type)}, vocab) to full lists; ids without a token are unused."""
    found = [tokens.get(i, (f"[PAD{i}]", 5)) for i in range(vocab)]
    return [text for text, _ in found], [kind for _, kind in found]


def _byte_vocabulary(vocab: int) -> _Words:
    """All single bytes, two merges, the chat format's tokens, and padding."""
    control = ["]~!b[", "]~b]", "[e~[", "]!d~[", "]!p~["]
    words = [*_spellings(), "\u0120\u0120", "th"]
    if vocab < len(words) + len(control) + 2:
        raise ArgumentError(f"vocab is {vocab}, expected at least {len(words) + len(control) + 2}: "
                            "a GGUF file holds a tokenizer")
    entries = [(text, 1) for text in words] + [(text, 3) for text in control]
    entries += [("<think>", 4), ("</think>", 4)]
    texts, types = _padded(dict(enumerate(entries)), vocab)
    return _Words(texts, types, ["\u0120 \u0120", "t h"], len(words), len(words) + 2)


def _tokenizer_file(tokenizer: str | os.PathLike[str]) -> Path:
    path = Path(tokenizer)
    return path / "tokenizer.json" if path.is_dir() else path


def _read_tokenizer(tokenizer: str | os.PathLike[str], vocab: int) -> _Words:
    path = _tokenizer_file(tokenizer)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model = document["model"]
        tokens = {index: (text, 1) for text, index in model["vocab"].items()}
        for token in document.get("added_tokens", ()):
            tokens[token["id"]] = (token["content"], 3 if token.get("special") else 4)
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        highest = max(tokens)
        if highest >= vocab:
            raise ArgumentError(f"{path}: token ids reach {highest}, vocab is {vocab}")
    except ArgumentError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(f"{path}: not a BPE tokenizer.json ({error!r})") from None
    ids = {text: index for index, (text, _) in tokens.items()}
    texts, types = _padded(tokens, vocab)
    return _Words(texts, types, merges, ids.get("]~!b[", 0), ids.get("[e~[", 0))


# ---- Files ----

def _piece(spec: Spec, container: str, seed: int) -> Piece:
    if container == "gguf":
        type: Any = FORMATS[spec.format].ggml
    elif spec.format in PLANES:
        type = PLANES[spec.format].safetensors
    else:
        type = FORMATS[spec.format].safetensors
    return Piece(spec.name, type, spec.shape, spec.nbytes, functools.partial(draw, spec, seed))


def _write_documents(part: Path, sizes: Mapping[str, int], format: str, specs: Sequence[Spec],
                     tokenizer: str | os.PathLike[str] | None) -> None:
    config = _config(sizes, format)
    if format in LAYOUTS:
        layout = LAYOUTS[format]
        config["quantization_config"] = quantization = {**layout.config}
        if layout.leaves:
            quantization[layout.leaves] = [
                spec.name.removesuffix(".weight") for spec in specs
                if spec.format in FORMATS and spec.name.endswith(".weight")
                and len(spec.shape) == 2 and "embed" not in spec.name]
    write_json(part / "config.json", config)
    write_json(part / "generation_config.json",
               {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 40})
    if tokenizer:
        source = _tokenizer_file(tokenizer)
        shutil.copyfile(source, part / "tokenizer.json")
        for name in ("tokenizer_config.json", "chat_template.jinja"):
            if (source.parent / name).is_file():
                shutil.copyfile(source.parent / name, part / name)


def _config(sizes: Mapping[str, int], format: str) -> dict[str, Any]:
    return {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "model_type": "minimax_m2",
        "num_hidden_layers": sizes["layers"],
        "hidden_size": sizes["hidden"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "head_dim": sizes["head_dim"],
        "rotary_dim": sizes["head_dim"] // 2,
        "num_local_experts": sizes["experts"],
        "num_experts_per_tok": sizes["experts_per_token"],
        "intermediate_size": sizes["expert_size"],
        "vocab_size": sizes["vocab"],
        "max_position_embeddings": CONTEXT,
        "rope_theta": THETA,
        "rms_norm_eps": EPSILON,
        "hidden_act": "silu",
        "scoring_func": "sigmoid",
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
        "use_routing_bias": True,
        "tie_word_embeddings": False,
        "attn_type_list": [1] * sizes["layers"],
        "dtype": {"f32": "float32", "f16": "float16"}.get(format, "bfloat16"),
    }


def _metadata(sizes: Mapping[str, int], words: _Words) -> dict[str, Any]:
    arch = "minimax-m2."
    return {
        "general.architecture": "minimax-m2",
        "general.name": f"random weights, {sizes['layers']} layers",
        "general.alignment": ALIGNMENT,
        "general.quantization_version": 2,
        "general.sampling.temp": 1.0,
        "general.sampling.top_p": 0.95,
        "general.sampling.top_k": 40,
        arch + "block_count": sizes["layers"],
        arch + "context_length": CONTEXT,
        arch + "embedding_length": sizes["hidden"],
        arch + "feed_forward_length": sizes["expert_size"],
        arch + "expert_feed_forward_length": sizes["expert_size"],
        arch + "attention.head_count": sizes["heads"],
        arch + "attention.head_count_kv": sizes["kv_heads"],
        arch + "attention.key_length": sizes["head_dim"],
        arch + "attention.value_length": sizes["head_dim"],
        arch + "attention.layer_norm_rms_epsilon": EPSILON,
        arch + "rope.freq_base": THETA,
        arch + "rope.dimension_count": sizes["head_dim"] // 2,
        arch + "expert_count": sizes["experts"],
        arch + "expert_used_count": sizes["experts_per_token"],
        arch + "expert_gating_func": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "minimax-m2",
        "tokenizer.ggml.tokens": words.tokens,
        "tokenizer.ggml.token_type": words.types,
        "tokenizer.ggml.merges": words.merges,
        "tokenizer.ggml.bos_token_id": words.bos,
        "tokenizer.ggml.eos_token_id": words.eos,
        "tokenizer.ggml.add_bos_token": False,
    }


# ---- The command ----

def _listing() -> str:
    """The formats, for --help."""
    parts = [("types", [name for name in FORMATS]), ("mixes, GGUF", MIXES),
             ("layouts of safetensors", LAYOUTS)]
    return "\n".join(textwrap.fill(f"{what}: {', '.join(names)}", 90, subsequent_indent="  ",
                                   break_on_hyphens=False)
                     for what, names in parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `minimax2 synth`, onto an argparse parser."""
    parser.epilog = "Formats:\n" + _listing()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", help="a directory, or a file that ends in .gguf, to be made")
    parser.add_argument("--like", choices=LIKE, default="m2", help="the widths to start from (m2)")
    parser.add_argument("--layers", type=int, default=2, metavar="N", help="(2)")
    parser.add_argument("--format", default="fp8", metavar="NAME",
                        help="of the matrices (fp8); see below")
    parser.add_argument("--container", choices=("safetensors", "gguf"))
    for name in ("hidden", "experts", "experts-per-token", "expert-size", "heads", "kv-heads",
                 "head-dim", "vocab"):
        parser.add_argument(f"--{name}", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--tokenizer", metavar="PATH",
                        help="tokenizer.json, or a directory that holds one, to include")


def run(arguments: argparse.Namespace) -> None:
    """The command `minimax2 synth`."""
    given = dict(vars(arguments))
    del given["run"]
    path = given.pop("path")
    with progress_bar() as progress:
        size = synth(path, progress=progress, **given)
    print(f"{path}: {size / 1e9:.2f} GB")
