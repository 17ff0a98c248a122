"""Checkpoints of random weights in the real formats and, if asked, at the real widths.

A machine that holds two layers of MiniMax-M2 can measure what a layer costs, and a test can have a
checkpoint of any size and format without a download. Values are drawn so that activations stay
sane: matrices have a standard deviation of about 1 / sqrt(columns), norms are near one.

Nothing is quantised. Block formats are written as random codes under scales that give the wanted
deviation, so gigabytes take seconds, and memory stays bounded: one chunk of rows at a time. The
same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import statistics
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from minimax2 import _native
from minimax2.errors import ArgumentError, FileError

if TYPE_CHECKING:
    import os

    import numpy as np

    Array = np.ndarray[Any, Any]

CHUNK = 1 << 22  # elements drawn at once
SHARD = 5_000_000_000  # bytes of one safetensors file
ALIGNMENT = 32  # of tensors in a GGUF file
HALF_FIELD = struct.Struct("<e").size

LIKE = {
    "m2": dict(hidden=3072, heads=48, kv_heads=8, head_dim=128, experts=256, experts_per_token=8,
               expert_size=1536, vocab=200064),
    "tiny": dict(hidden=256, heads=8, kv_heads=2, head_dim=32, experts=8, experts_per_token=2,
                 expert_size=256, vocab=512),
}
CONTEXT = 196608  # positions, as in M2
THETA = 5e6
EPSILON = 1e-6


class Format(NamedTuple):
    """A dtype on disk."""

    dtype: str
    """Its name in the library, which knows its sizes."""
    safetensors: str | None
    """Its name there; None: not in safetensors."""
    ggml: int | None
    """Its number in GGUF; None: not in GGUF."""
    scale_at: int = 0
    """Offset of the half-float scale d in a block."""
    unit: float = 1.0
    """Root mean square of the values of random codes with d = 1."""
    minimum_at: int | None = None
    """Offset of the scale of the minima, for formats that have them."""
    centre: float = 0.0
    """What the minima must be, in units of the scales, so that the mean is zero."""

    @property
    def block(self) -> int:
        """Elements in a block."""
        return _native.dtype_block(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of a block."""
        return _native.dtype_bytes(self.dtype)


# The units follow from the formats: random 8-bit codes have 73.9, 6-bit codes 18.48, the sixteen
# values of IQ4 67.44, and so on; scales within super-blocks are drawn evenly, too.
FORMATS = {
    "f32": Format("f32", "F32", 0),
    "f16": Format("f16", "F16", 1),
    "bf16": Format("bf16", "BF16", 30),
    "fp8": Format("f8_e4m3", "F8_E4M3", None),
    "q8_0": Format("q8_0", None, 8, 0, 73.9),
    "q4_0": Format("q4_0", None, 2, 0, 4.637),
    "q5_0": Format("q5_0", None, 6, 0, 9.247),
    "q2_k": Format("q2_k", None, 10, 80, 8.803 * 1.118, 82, 1.5),
    "q3_k": Format("q3_k", None, 11, 108, 18.48 * 2.345),
    "q4_k": Format("q4_k", None, 12, 0, 36.52 * 4.61, 2, 7.5),
    "q5_k": Format("q5_k", None, 13, 0, 36.52 * 9.233, 2, 15.5),
    "q6_k": Format("q6_k", None, 14, 208, 73.9 * 18.48),
    "iq4_nl": Format("iq4_nl", None, 20, 0, 67.44),
    "iq4_xs": Format("iq4_xs", None, 23, 0, 18.48 * 67.44),
}
MIXES = {"q4_k_m": ("q4_k", "q6_k")}  # most matrices, and those that suffer most
NAMES = (*FORMATS, *MIXES)


class Spec(NamedTuple):
    """One tensor to write."""

    name: str
    shape: tuple[int, ...]
    format: str
    std: float
    mean: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        kind = FORMATS[self.format]
        return math.prod(self.shape) // kind.block * kind.nbytes


def synth(path: str | os.PathLike[str], *, like: str = "m2", layers: int = 2, format: str = "fp8",
          container: str | None = None, hidden: int | None = None, experts: int | None = None,
          experts_per_token: int | None = None, expert_size: int | None = None,
          heads: int | None = None, kv_heads: int | None = None, head_dim: int | None = None,
          vocab: int | None = None, seed: int = 0,
          tokenizer: str | os.PathLike[str] | None = None, shard: int = SHARD,
          progress: Callable[[int, int], None] | None = None) -> int:
    """Write a checkpoint of random weights; returns its size in bytes.

    path: a directory (safetensors) or a .gguf file, to be made. What exists is refused unless it
    is empty, and nothing is left behind on failure.
    like: "m2", the real widths, or "tiny"; each width can be given apart. Zero is no width.
    format: of the matrices: "fp8", "bf16", "f16", "f32" in safetensors; all but "fp8", and "q8_0",
    "q4_0", "q5_0", "q2_k" to "q6_k", "iq4_nl", "iq4_xs", and the mix "q4_k_m" in GGUF.
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
    specs = list(_plan_gguf(sizes, format) if container == "gguf" else _plan_hf(sizes, format))
    for spec in specs:
        if spec.shape[-1] % FORMATS[spec.format].block:
            raise ArgumentError(f"{spec.name} has {spec.shape[-1]} columns: {spec.format} needs a "
                                f"multiple of {FORMATS[spec.format].block}")
    words = _read_tokenizer(tokenizer, sizes["vocab"]) if tokenizer else None
    total = sum(spec.nbytes for spec in specs)
    with _claimed(path, total, container == "safetensors") as part:
        report = _Report(progress, total)
        if container == "gguf":
            words = words or _byte_vocabulary(sizes["vocab"])
            _write_gguf(part, sizes, specs, words, seed, report)
        else:
            _write_hf(part, sizes, specs, format, tokenizer, seed, shard, report)
        size = sum(f.stat().st_size for f in part.iterdir()) if part.is_dir() else (
            part.stat().st_size)
    return size


# ---- What to write ----

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
    kinds = [FORMATS[name] for name in MIXES.get(format, (format,))]
    if container is None:
        in_gguf = path.suffix == ".gguf" or any(kind.safetensors is None for kind in kinds)
        container = "gguf" if in_gguf else "safetensors"
    if container not in ("gguf", "safetensors"):
        raise ArgumentError(f"container is {container!r}, expected gguf or safetensors")
    field = {"gguf": "ggml", "safetensors": "safetensors"}[container]
    if any(getattr(kind, field) is None for kind in kinds):
        raise ArgumentError(f"{container} has no format {format}")
    if container == "gguf" and path.suffix != ".gguf":
        raise ArgumentError(f"{path}: the name of a GGUF file must end in .gguf")
    return container


def _plan_hf(sizes: Mapping[str, int], format: str) -> Iterator[Spec]:
    """Specs under the vendor's names, in their order."""
    hidden, width = sizes["hidden"], sizes["expert_size"]
    q, kv = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    wide = "bf16" if format == "fp8" else format  # what stays out of FP8

    def matrix(name: str, rows: int, columns: int) -> Iterator[Spec]:
        std = 1 / math.sqrt(columns)
        if format != "fp8":
            yield Spec(name, (rows, columns), format, std)
            return
        yield Spec(name, (rows, columns), "fp8", 1.0)
        # The codes have a deviation of their own; the scales bring it to `std`.
        scale = std / _fp8_codes()[1]
        yield Spec(name + "_scale_inv", (-(-rows // 128), -(-columns // 128)), "f32", scale / 20,
                   scale)

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
    most, best = MIXES.get(format, (format, format))
    layers = sizes["layers"]

    def matrix(name: str, *shape: int, kind: str = most) -> Spec:
        return Spec(name, shape, kind, 1 / math.sqrt(shape[-1]))

    def norm(name: str, n: int) -> Spec:
        return Spec(name, (n,), "f32", 0.1, 1.0)

    yield Spec("token_embd.weight", (sizes["vocab"], hidden), most, 1.0)
    for layer in range(layers):
        # llama.cpp's rule for the layers that get more bits
        eighth = layers // 8
        more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
        kind = best if more else most
        at = f"blk.{layer}."
        yield norm(at + "attn_norm.weight", hidden)
        yield matrix(at + "attn_q.weight", q, hidden)
        yield matrix(at + "attn_k.weight", kv, hidden)
        yield matrix(at + "attn_v.weight", kv, hidden, kind=kind)
        yield matrix(at + "attn_output.weight", hidden, q)
        yield norm(at + "attn_q_norm.weight", q)
        yield norm(at + "attn_k_norm.weight", kv)
        yield norm(at + "ffn_norm.weight", hidden)
        yield matrix(at + "ffn_gate_inp.weight", experts, hidden, kind="f32")
        yield Spec(at + "exp_probs_b.bias", (experts,), "f32", 0.05)
        yield matrix(at + "ffn_gate_exps.weight", experts, width, hidden)
        yield matrix(at + "ffn_up_exps.weight", experts, width, hidden)
        yield matrix(at + "ffn_down_exps.weight", experts, hidden, width, kind=kind)
    yield norm("output_norm.weight", hidden)
    yield matrix("output.weight", sizes["vocab"], hidden, kind=best)


# ---- Random tensors ----

@cache
def _normal(count: int) -> Array:
    """float32 [count]: evenly spaced quantiles of the normal distribution, of deviation 1."""
    import numpy

    inverse = statistics.NormalDist().inv_cdf
    half = numpy.array([inverse((i + 0.5) / count) for i in range(count // 2)])
    values = numpy.concatenate([half, -half[::-1]])
    spread: Array = values / values.std()
    return spread.astype(numpy.float32)


@cache
def _fp8_codes() -> tuple[Array, float]:
    """uint8 [256]: e4m3 codes of normal quantiles, and the deviation of their values."""
    import numpy

    codes = numpy.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    values = numpy.where(exponent, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0 ** -9)
    wanted = _normal(256) * 120.0
    nearest = numpy.abs(values - numpy.abs(wanted)[:, None]).argmin(axis=1)
    table = (nearest | numpy.where(wanted < 0, 128, 0)).astype(numpy.uint8)
    return table, float(numpy.sqrt((values[nearest] ** 2).mean()))


def _draw_plain(random: np.random.Generator, spec: Spec, count: int) -> Array:
    import numpy

    values: Array = spec.mean + spec.std * _normal(65536)
    if spec.format == "bf16":
        bits: Array = values.astype(numpy.float32).view(numpy.uint32)
        table: Array = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype("<u2")
    else:
        table = values.astype({"f32": "<f4", "f16": "<f2"}[spec.format])
    drawn: Array = table[random.integers(0, 65536, count, numpy.uint16)]
    return drawn


def _draw_blocks(random: np.random.Generator, spec: Spec, count: int) -> Array:
    """uint8 [blocks, bytes]: random codes under scales of the wanted size."""
    import numpy

    kind = FORMATS[spec.format]
    blocks: Array = random.integers(0, 256, (count // kind.block, kind.nbytes), numpy.uint8)
    if spec.format == "q2_k":  # 4-bit scale and minimum alike
        blocks[:, :16] = (blocks[:, :16] & 15) * 17
    elif spec.format in ("q4_k", "q5_k"):  # 6-bit scales and minima alike, packed in 12 bytes
        blocks[:, 8:12] = blocks[:, 4:8]
        blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17
    scale: Array = spec.std / kind.unit * random.uniform(0.75, 1.25, len(blocks))
    if kind.minimum_at is None:  # codes reach one further down than up: signs even that out
        scale *= 1 - 2 * random.integers(0, 2, len(blocks))
    else:
        _put_half(blocks, kind.minimum_at, scale * kind.centre)
    _put_half(blocks, kind.scale_at, scale)
    return blocks


def _put_half(blocks: Array, at: int, values: Array) -> None:
    import numpy

    halves = values.astype("<f2").view(numpy.uint8).reshape(-1, HALF_FIELD)
    blocks[:, at:at + HALF_FIELD] = halves


def _draw(spec: Spec, seed: int) -> Iterator[Array]:
    """The tensor's bytes, as arrays, chunk by chunk. Its name is part of the seed."""
    import numpy

    random = numpy.random.Generator(numpy.random.SFC64([seed, zlib.crc32(spec.name.encode())]))
    rows, columns = math.prod(spec.shape[:-1]), spec.shape[-1]
    step = max(1, CHUNK // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first) * columns
        if spec.format == "fp8":
            yield _fp8_codes()[0][random.integers(0, 256, count, numpy.uint8)]
        elif FORMATS[spec.format].block == 1:
            yield _draw_plain(random, spec, count)
        else:
            yield _draw_blocks(random, spec, count)


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

class _Report:
    """Counts bytes and tells whoever wants to know."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, nbytes: int) -> None:
        self.done += nbytes
        if self.progress:
            self.progress(self.done, self.total)


@contextlib.contextmanager
def _claimed(path: Path, total: int, is_directory: bool) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed at the end, removed on failure."""
    if path.is_dir() and (any(path.iterdir()) or not is_directory):
        raise FileError(f"{path}: exists; only an empty directory is replaced, by a directory")
    if path.is_file() and (path.stat().st_size or is_directory):
        raise FileError(f"{path}: exists; only an empty file is replaced, by a file")
    parent = path.resolve().parent
    if not parent.is_dir():
        raise FileError(f"{parent}: no such directory")
    free = shutil.disk_usage(parent).free
    if total > free:
        raise FileError(f"{path}: needs {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    part = parent / (path.name + ".partial")
    if is_directory:
        part.mkdir()
    else:
        part.touch(exist_ok=False)
    try:
        yield part
        part.replace(path)
    except BaseException:
        if is_directory:
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        raise


def _write_tensor(file: BinaryIO, spec: Spec, seed: int, report: _Report) -> None:
    for chunk in _draw(spec, seed):
        file.write(chunk.data.cast("B"))
        report(chunk.nbytes)


def _write_hf(part: Path, sizes: Mapping[str, int], specs: Sequence[Spec], format: str,
              tokenizer: str | os.PathLike[str] | None, seed: int, shard: int,
              report: _Report) -> None:
    shards: list[list[Spec]] = []
    room = 0
    for spec in specs:
        if not shards or spec.nbytes > room:
            shards.append([])
            room = shard
        shards[-1].append(spec)
        room -= spec.nbytes
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, members in zip(names, shards):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for spec in members:
            header[spec.name] = {"dtype": FORMATS[spec.format].safetensors, "shape": spec.shape,
                                 "data_offsets": [at, at + spec.nbytes]}
            at += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(part / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for spec in members:
                _write_tensor(file, spec, seed, report)
    if len(shards) > 1:
        _write_json(part / "model.safetensors.index.json", {
            "metadata": {"total_size": report.total},
            "weight_map": {spec.name: name for name, members in zip(names, shards)
                           for spec in members}})
    _write_json(part / "config.json", _config(sizes, format))
    _write_json(part / "generation_config.json",
                {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 40})
    if tokenizer:
        source = _tokenizer_file(tokenizer)
        shutil.copyfile(source, part / "tokenizer.json")
        for name in ("tokenizer_config.json", "chat_template.jinja"):
            if (source.parent / name).is_file():
                shutil.copyfile(source.parent / name, part / name)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _config(sizes: Mapping[str, int], format: str) -> dict[str, Any]:
    config: dict[str, Any] = {
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
    if format == "fp8":
        config["quantization_config"] = {
            "quant_method": "fp8", "fmt": "float8_e4m3fn", "activation_scheme": "dynamic",
            "weight_block_size": [128, 128]}
    return config


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, value: Any) -> bytes:
    """One metadata pair. int: uint32; float: float32; bool; str; lists of str or int."""
    head = _string(key)
    if isinstance(value, bool):
        return head + struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return head + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return head + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return head + struct.pack("<I", 8) + _string(value)
    if value and isinstance(value[0], int):
        return head + struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return head + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))


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


def _write_gguf(part: Path, sizes: Mapping[str, int], specs: Sequence[Spec], words: _Words,
                seed: int, report: _Report) -> None:
    pairs = _metadata(sizes, words)
    header = [b"GGUF", struct.pack("<IQQ", 3, len(specs), len(pairs))]
    header += [_pair(key, value) for key, value in pairs.items()]
    offset = 0
    for spec in specs:
        shape = spec.shape[::-1]
        header.append(_string(spec.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape,
                                                       FORMATS[spec.format].ggml, offset))
        offset += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
    with open(part, "wb") as file:
        file.write(b"".join(header))
        for spec in specs:
            file.write(bytes(-file.tell() % ALIGNMENT))
            _write_tensor(file, spec, seed, report)


# ---- The command ----

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `minimax2 synth`, onto an argparse parser."""
    parser.add_argument("path", help="a directory, or a file that ends in .gguf, to be made")
    parser.add_argument("--like", choices=LIKE, default="m2", help="the widths to start from (m2)")
    parser.add_argument("--layers", type=int, default=2, metavar="N", help="(2)")
    parser.add_argument("--format", choices=NAMES, default="fp8", help="of the matrices (fp8)")
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
    with _progress_bar() as progress:
        size = synth(path, progress=progress, **given)
    print(f"{path}: {size / 1e9:.2f} GB")


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None] | None]:
    """What synth() calls where somebody looks; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(unit="B", unit_scale=True, leave=False) as bar:
        def progress(done: int, total: int) -> None:
            if bar.total is None:
                bar.reset(total)  # draws; update() draws only now and then
            bar.update(done - bar.n)

        yield progress
