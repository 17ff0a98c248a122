"""Checkpoints whose packed integers lie transposed, to a layout that the library multiplies.

GPTQ, AutoRound and AWQ keep the codes of a matrix column by column. They become the layout
"pack-quantized" of compressed-tensors, row by row, which is mapped and multiplied as it lies. No
value changes: codes and zero points are moved, scales keep their bits. One tensor at a time is in
memory. Everything else is copied.

    GPTQ, AutoRound  qweight [K / 8, N]: field i of a word is input row 8r + i; the zero points that
                     are stored are one less than those that count, unless the configuration names a
                     later version of the format
    AWQ              qweight [K, N / 8]: the fields of a word are output columns, in an order of
                     their own; the zero points are what they say
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minimax2.containers import Container, Entry
from minimax2.errors import ArgumentError, FormatError, UnsupportedError
from minimax2.formats import integers, packed
from minimax2.survey import grouped
from minimax2.writing import (SHARD, Piece, Progress, Report, claimed, progress_bar, size_of,
                              write_json, write_safetensors)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

CHUNK = 1 << 24  # bytes copied at once
WEIGHTS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5",
           ".msgpack", ".bak", ".partial")
CONFIGS = ("config.json", "quantize_config.json", "quantization_config.json", "quant_config.json")
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # of a word's fields, the lowest bits first
GROUPS = (32, 64, 128)  # columns with a scale in common that the library multiplies
DTYPES = {"i32": 4, "f16": 2, "bf16": 2, "f32": 4}

# What the zero points of a file are short of, by quantization_config.
GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}
AUTOROUND_FORMATS = {"auto_round:auto_gptq": 1, "auto_round": 0, "auto_round:gptqmodel": 0}
AUTOROUND_AWQ = "auto_round:auto_awq"


class Scheme(NamedTuple):
    """How the codes of a checkpoint are to be read."""

    awq: bool
    offset: int
    """What is to be added to stored zero points."""
    symmetric: bool
    """Does the configuration say that all zero points are the middle of the codes?"""
    reordered: bool
    """GPTQ's desc_act: groups may hold any columns."""


class Packed(NamedTuple):
    """A matrix of `rows` outputs and `columns` inputs, as it lies in the file."""

    name: str
    parts: Mapping[str, Entry]
    bits: int
    rows: int
    columns: int
    groups: int
    symmetric: bool
    """All zero points are the middle of the codes: they need not be written."""


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], *, shard: int = SHARD,
            progress: Progress | None = None) -> int:
    """Write a checkpoint that opens from one whose codes lie transposed; returns its size in bytes.

    source: a directory of safetensors in the layout of GPTQ, AutoRound or AWQ. target: a directory
    to be made; what exists is refused unless it is empty, and nothing is left behind on failure.
    shard: bytes of one safetensors file. progress: called with (bytes written, bytes in all).

    Every weight keeps its value. Raises ArgumentError, FileError, FormatError, OSError, and
    UnsupportedError for what would lose something, or would not open: columns in another order
    (desc_act), zero points that the other layout cannot hold, codes of 2, 3 or 5 to 7 bits, groups
    of other sizes than 32, 64, 128 or whole rows.
    """
    source, target = Path(source), Path(target)
    if isinstance(shard, bool) or not isinstance(shard, int) or shard < 1:
        raise ArgumentError(f"shard is {shard!r}, expected a number of bytes above 0")
    with Container(source) as container:
        if container.format != "safetensors":
            raise UnsupportedError(f"{source}: is a GGUF checkpoint: its layout is never "
                                   "transposed, and nothing is to be converted")
        scheme = _scheme(container)
        groups = grouped(container.entries)
        matrices = {name: _matrix(container, name, parts, scheme)
                    for name, parts in groups.items() if "qweight" in parts}
        if not matrices:
            raise UnsupportedError(f"{source}: holds no tensor \"....qweight\": its weights do not "
                                   "lie transposed, and nothing is to be converted; open it as it "
                                   "is")
        pieces: list[Piece] = []
        for name, parts in groups.items():
            if name in matrices:
                pieces += _pieces(container, matrices[name], scheme)
            else:
                pieces += [_copied(container, entry) for entry in parts.values()]
        config = _config(container, matrices, groups)
        total = sum(piece.nbytes for piece in pieces)
        with claimed(target, total, True) as part:
            write_safetensors(part, pieces, shard, Report(progress, total))
            _copy_others(source, part)
            write_json(part / "config.json", config)
            return size_of(part)


# ---- What the configuration says ----

def _scheme(container: Container) -> Scheme:
    where = container.path / "config.json"
    config = container.facts.get("quantization_config")
    if not isinstance(config, dict):
        raise UnsupportedError(f"{where}: has no quantization_config: nothing is to be converted")
    method = str(config.get("quant_method")).replace("_", "-").lower()
    reordered = bool(config.get("desc_act"))
    symmetric = config.get("sym") is True
    if method == "awq":
        version = str(config.get("version", "gemm")).lower()
        if version != "gemm":
            raise UnsupportedError(f"{where}: quantization_config.version is {version}, expected "
                                   "gemm: the others have layouts of their own")
        return Scheme(True, 0, config.get("zero_point") is False, False)
    if method == "gptq":
        form = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
        return Scheme(False, _offset(where, "checkpoint_format", form, GPTQ_FORMATS), symmetric,
                      reordered)
    if method in ("auto-round", "intel/auto-round"):
        form = str(config.get("packing_format")).lower()
        if form == AUTOROUND_AWQ:
            return Scheme(True, 0, symmetric, False)
        return Scheme(False, _offset(where, "packing_format", form, AUTOROUND_FORMATS), symmetric,
                      reordered)
    raise UnsupportedError(f"{where}: quantization_config.quant_method is {method}; what can be "
                           "converted is gptq, auto-round and awq")


def _offset(where: Path, key: str, form: str, known: Mapping[str, int]) -> int:
    if form not in known:
        raise UnsupportedError(f"{where}: quantization_config.{key} is {form}; known are "
                               f"{', '.join(known)}: what its zero points mean is not known")
    return known[form]


# ---- Matrices ----

def _measure(name: str, parts: Mapping[str, Entry], scheme: Scheme) -> Packed:
    """The sizes of a matrix by the shapes of its tensors, all of them checked."""
    for part, kinds in (("qweight", ("i32",)), ("scales", ("f16", "bf16", "f32")),
                        ("qzeros", ("i32",))):
        if part not in parts:
            raise FormatError(f"{parts['qweight'].file}: tensor \"{name}.{part}\" is missing")
        entry = parts[part]
        if entry.dtype not in kinds or len(entry.shape) != 2 or 0 in entry.shape:
            raise FormatError(f"{entry.file}: tensor {entry.name!r} is {entry.dtype} of shape "
                              f"{list(entry.shape)}, expected a matrix of {' or '.join(kinds)}")
        if entry.nbytes != entry.shape[0] * entry.shape[1] * DTYPES[entry.dtype]:
            raise FormatError(f"{entry.file}: tensor {entry.name!r} has {entry.nbytes} bytes, "
                              "which is not what its shape asks for")
    (high, wide), (groups, rows) = parts["qweight"].shape, parts["scales"].shape
    zeros = parts["qzeros"].shape
    bits = 32 * zeros[1] // rows
    if zeros[0] != groups or bits * rows != 32 * zeros[1]:
        raise FormatError(f"{parts['qzeros'].file}: tensor \"{name}.qzeros\" has shape "
                          f"{list(zeros)}, which does not fit scales of {list((groups, rows))}")
    if bits not in ((4,) if scheme.awq else (4, 8)):
        raise UnsupportedError(f"{parts['qweight'].file}: tensor \"{name}.qweight\" has codes of "
                               f"{bits} bits; what can be converted without loss has 4"
                               + ("" if scheme.awq else " or 8"))
    fields = 32 // bits
    columns = high if scheme.awq else high * fields
    if (wide * fields if scheme.awq else wide) != rows or columns % groups or columns % fields or (
            groups > 1 and columns // groups % fields):
        layout = "[K, N / 8] of AWQ" if scheme.awq else f"[K / {fields}, N] of GPTQ"
        raise FormatError(f"{parts['qweight'].file}: tensor \"{name}.qweight\" has shape "
                          f"{[high, wide]}, expected {layout} for scales of "
                          f"{[groups, rows]}")
    group = columns // groups
    if columns % 32 or group not in GROUPS and groups > 1:
        raise UnsupportedError(f"{parts['scales'].file}: tensor \"{name}.scales\" has a scale for "
                               f"{group} of {columns} columns; what opens has one for "
                               f"{', '.join(map(str, GROUPS))} or all, of a multiple of 32 columns")
    return Packed(name, parts, bits, rows, columns, groups, False)


def _matrix(container: Container, name: str, parts: Mapping[str, Entry],
            scheme: Scheme) -> Packed:
    """A matrix, after everything that the other layout cannot hold has been refused."""
    import numpy

    matrix = _measure(name, parts, scheme)
    order = parts.get("g_idx")
    if order is not None:
        groups = numpy.frombuffer(container.read(order), "<i4")
        step = matrix.columns // matrix.groups
        if not numpy.array_equal(groups, numpy.arange(matrix.columns) // step):
            raise UnsupportedError(
                f"{order.file}: tensor {order.name!r} puts columns into groups in another order "
                "(desc_act, activation order): pack-quantized has no such order; take a checkpoint "
                "without it, or GGUF")
    elif scheme.reordered:
        raise UnsupportedError(
            f"{parts['qweight'].file}: quantization_config says desc_act, but \"{name}.g_idx\" is "
            "missing: the groups of its columns are not known")
    zeros, entry = _zeros(container, matrix, scheme), parts["qzeros"]
    middle = 1 << matrix.bits - 1
    symmetric = bool((zeros == middle).all())
    found = f"{entry.file}: tensor {entry.name!r} has zero points from {zeros.min()} to " \
            f"{zeros.max()}"
    if scheme.symmetric and not symmetric:
        raise FormatError(f"{found}, but quantization_config says that it is symmetric (all "
                          f"{middle}): one of the two is wrong")
    if zeros.max() >= 2 * middle:
        raise UnsupportedError(f"{found}; {matrix.bits} bits hold {2 * middle - 1} at most, and no "
                               "other layout of them would keep the values")
    return matrix._replace(symmetric=symmetric)


def _words(container: Container, entry: Entry) -> Array:
    """A matrix of 32-bit words, as it lies."""
    import numpy

    words: Array = numpy.frombuffer(container.read(entry), "<u4").reshape(entry.shape)
    return words


def _zeros(container: Container, matrix: Packed, scheme: Scheme) -> Array:
    """uint16 [groups, rows]: the zero points that count."""
    import numpy

    words = _words(container, matrix.parts["qzeros"])
    fields = numpy.arange(32 // matrix.bits, dtype=numpy.uint32)
    stored = words[..., None] >> fields * matrix.bits & (1 << matrix.bits) - 1
    if scheme.awq:
        stored = stored[..., numpy.argsort(AWQ_COLUMNS)]
    zeros: Array = stored.reshape(matrix.groups, matrix.rows).astype(numpy.uint16)
    return zeros + scheme.offset


def _codes(container: Container, matrix: Packed, scheme: Scheme) -> Array:
    """The codes row by row: uint32 [rows, words], or their bytes."""
    import numpy

    words = _words(container, matrix.parts["qweight"])
    if not scheme.awq:
        return numpy.ascontiguousarray(words.T)
    # Every byte holds the codes of two outputs: those of two inputs are put together.
    pairs = words.view(numpy.uint8).reshape(matrix.columns // 2, 2, matrix.rows // 8, 4)
    even, odd = pairs[:, 0], pairs[:, 1]
    codes: Array = numpy.empty((matrix.rows // 8, 8, matrix.columns // 2), numpy.uint8)
    low, high = even & 15 | odd << 4, even >> 4 | odd & 0xf0
    for byte in range(4):
        codes[:, AWQ_COLUMNS[2 * byte]] = low[:, :, byte].T
        codes[:, AWQ_COLUMNS[2 * byte + 1]] = high[:, :, byte].T
    return codes


def _packed_zeros(container: Container, matrix: Packed, scheme: Scheme) -> Array:
    """uint32 [rows / fields, groups]: field i of a word is row fields * r + i."""
    import numpy

    fields = 32 // matrix.bits
    zeros = _zeros(container, matrix, scheme).T.astype(numpy.uint32)
    padded = numpy.zeros((-(-matrix.rows // fields) * fields, matrix.groups), numpy.uint32)
    padded[:matrix.rows] = zeros
    shifts = numpy.arange(fields, dtype=numpy.uint32)[:, None] * matrix.bits
    together: Array = numpy.bitwise_or.reduce(
        padded.reshape(-1, fields, matrix.groups) << shifts, axis=1)
    return together


def _scales(container: Container, matrix: Packed) -> Array:
    """[rows, groups], in the bits that they have."""
    import numpy

    entry = matrix.parts["scales"]
    scales = numpy.frombuffer(container.read(entry), f"<u{DTYPES[entry.dtype]}")
    return numpy.ascontiguousarray(scales.reshape(entry.shape).T)


def _pieces(container: Container, matrix: Packed, scheme: Scheme) -> Iterator[Piece]:
    """What a matrix becomes, made when it is written."""
    import numpy

    def piece(part: str, dtype: str, shape: tuple[int, ...], nbytes: int, make: Any) -> Piece:
        return Piece(f"{matrix.name}.{part}", dtype, shape, nbytes, lambda: [make()])

    rows, columns, groups = matrix.rows, matrix.columns, matrix.groups
    fields = 32 // matrix.bits
    scales = matrix.parts["scales"].dtype
    yield piece("weight_packed", "I32", (rows, columns // fields), rows * columns // fields * 4,
                functools.partial(_codes, container, matrix, scheme))
    yield piece("weight_scale", scales.upper(), (rows, groups), rows * groups * DTYPES[scales],
                functools.partial(_scales, container, matrix))
    if not matrix.symmetric:
        high = -(-rows // fields)
        yield piece("weight_zero_point", "I32", (high, groups), high * groups * 4,
                    functools.partial(_packed_zeros, container, matrix, scheme))
    yield piece("weight_shape", "I64", (2,), 16, lambda: numpy.array([rows, columns], "<i8"))
    for part, entry in matrix.parts.items():
        if part not in ("qweight", "qzeros", "scales", "g_idx"):
            yield _copied(container, entry)


def _copied(container: Container, entry: Entry) -> Piece:
    def chunks() -> Iterator[bytes]:
        for first in range(0, entry.nbytes, CHUNK):
            yield container.read(entry, first, min(CHUNK, entry.nbytes - first))

    return Piece(entry.name, entry.dtype.upper(), entry.shape, entry.nbytes, chunks)


# ---- Documents ----

def _config(container: Container, matrices: Mapping[str, Packed],
            groups: Mapping[str, Mapping[str, Entry]]) -> dict[str, Any]:
    """config.json for the new layout; what is not of the most common kind is named."""
    config = {**container.facts}
    by_row = config["quantization_config"].get("group_size") == -1
    kinds: dict[tuple[int, int, bool], list[str]] = {}
    for name, matrix in matrices.items():
        group = 0 if by_row and matrix.groups == 1 else matrix.columns // matrix.groups
        kinds.setdefault((matrix.bits, group, matrix.symmetric), []).append(name)
    first, *others = sorted(kinds, key=lambda kind: -len(kinds[kind]))
    made = packed(*first)
    schemes: Any = made["config_groups"]
    for number, kind in enumerate(others, 1):
        schemes[f"group_{number}"] = {
            **schemes["group_0"], "targets": kinds[kind],
            "weights": {"dynamic": False, "actorder": None, **integers(*kind)}}
    made["ignore"] = [name for name, parts in groups.items()
                      if name not in matrices and "weight" in parts
                      and len(parts["weight"].shape) == 2 and "embed" not in name]
    config["quantization_config"] = made
    config.pop("compression_config", None)
    # The tensors of M2 and the name of another family, as some of its re-exports have.
    if config.get("model_type") == "mixtral" and {
            "model.layers.0.self_attn.q_norm", "model.layers.0.block_sparse_moe.e_score_"
            "correction_bias"} <= groups.keys():
        config["model_type"] = "minimax_m2"
        config["architectures"] = ["MiniMaxM2ForCausalLM"]
    return config


def _copy_others(source: Path, part: Path) -> None:
    """The tokenizer and all other files beside the weights."""
    for file in sorted(source.iterdir()):
        if (file.is_file() and not file.name.startswith(".") and file.name not in CONFIGS
                and not file.name.endswith(WEIGHTS)):
            shutil.copyfile(file, part / file.name)


# ---- The command ----

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `minimax2 convert`, onto an argparse parser."""
    parser.add_argument("source", help="a directory in the layout of GPTQ, AutoRound or AWQ")
    parser.add_argument("target", help="a directory, to be made")
    parser.add_argument("--shard", type=float, default=SHARD / 1e9, metavar="GB",
                        help="size of one safetensors file (%(default)g)")


def run(arguments: argparse.Namespace) -> None:
    """The command `minimax2 convert`."""
    with progress_bar() as progress:
        size = convert(arguments.source, arguments.target, shard=int(arguments.shard * 1e9),
                       progress=progress)
    print(f"{arguments.target}: {size / 1e9:.2f} GB")
