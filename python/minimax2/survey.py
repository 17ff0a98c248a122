"""What a checkpoint is made of: types and their places, bits a weight, memory, known trouble."""

from __future__ import annotations

import math
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from minimax2 import _native, show
from minimax2.containers import Container, Entry
from minimax2.errors import FormatError, UnsupportedError
from minimax2.model import EMBEDDED, Isa, Precision, load
from minimax2.options import AnyPath

# Where a tensor stands, by its name in either container; the first that matches counts.
PLACES = {
    "embedding": r"model\.embed_tokens\b|token_embd\b",
    "head": r"lm_head\b|output\.",
    "norms": r"(model|blk)\..*norm\b|output_norm\b|model\.norm\b",
    "down": r".*(experts\.(\d+\.)?(w2|down_proj)|switch_mlp\.down_proj|ffn_down_exps)\b",
    "gate/up": r".*(experts\.(\d+\.)?(w1|w3|gate_proj|up_proj|gate_up_proj)|"
               r"switch_mlp\.(gate|up)_proj|ffn_(gate|up|gate_up)_exps)\b",
    "router": r".*(block_sparse_moe|mlp)\.(gate|e_score_correction_bias)\b|"
              r".*(ffn_gate_inp|exp_probs_b)\b",
    "attention": r".*(self_attn\.|attn_)",
}
OTHER = "other"
EXPERTS = ("gate/up", "down")
LAYER = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")

# Endings of the tensors that make a matrix together.
PARTS = ("weight", "weight_packed", "weight_scale", "weight_scale_inv", "weight_scale_2",
         "weight_global_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale",
         "input_global_scale", "qweight", "qzeros", "scales", "g_idx", "biases", "scale")
CODES = ("weight", "weight_packed", "qweight")

KEYS = {  # of the sizes: in config.json, and in GGUF behind the architecture
    "layers": ("num_hidden_layers", "block_count"),
    "hidden_size": ("hidden_size", "embedding_length"),
    "experts": ("num_local_experts", "expert_count"),
    "experts_per_token": ("num_experts_per_tok", "expert_used_count"),
    "kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "head_dim": ("head_dim", "attention.key_length"),
    "positions": ("max_position_embeddings", "context_length"),
}
CONTEXT = 8192  # positions to count memory for
TRAINED = 196608  # positions that the family is known to work at
COHERENT = 3.0  # bits a weight of down projections below which answers are known to fall apart
FAITHFUL = 3.0  # of experts, below which every fifth token or so is another one


Rows = list[tuple[str, Any]]


class Info(dict[str, Any]):
    """What info() found, as a dict that JSON can hold; print() shows it as text.

        path, format      the latter "gguf" or "safetensors"
        files, bytes      how many, and of all tensors
        opens, refusal    can this build run it? Else the sentence that says why not, or null
        architecture, name, license, chat_template, isa, threads
                          as the model has them, null where files do not tell or it does not open
        layers, hidden_size, experts, experts_per_token, kv_heads, head_dim, positions
                          as the configuration has them, or null
        experts_found     [fewest, most] experts of a layer among the tensors, or null
        parameters        elements of the tensors that a model needs, as far as types are known
        bits              bits a weight over all of these, scales included, or null
        expert_bits       the same of the experts
        types             list of {type, tensors, bytes, share, bits, places}, most bytes first;
                          places: {place: tensors}
        places            list of {place, tensors, bytes, share, bits, types}, types: {type:
                          tensors}; the places are attention, gate/up, down, router, embedding,
                          head, norms, and other for tensors that no model needs
        memory            bytes: weights that a model needs, kv of `context` positions in BF16,
                          needed (both), present (of the machine, or limit if that is less), limit
                          (of the control group, or null)
        warnings          list of sentences: what is known to hurt

    A matrix with its scales, zero points and the like counts as one tensor, and its type is named
    by what it holds: "nvfp4", "mxfp4", "i4", "i8", or the codes' own type. share: of `bytes`.
    """

    def __init__(self, facts: Mapping[str, Any], rows: Rows) -> None:
        super().__init__(facts)
        self.rows = rows
        """(name, value) of what there is to say in a line."""

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        lines = [f"{name:>{width}}  {value}" for name, value in self.rows if value is not None]
        for table in self._tables():
            lines += ["", *_aligned(table)]
        return "\n".join(lines + [f"\nwarning: {warning}" for warning in self["warnings"]])

    def _repr_html_(self) -> str:
        parts = [show.table(self.rows)]
        parts += [show.grid(table) for table in self._tables()]
        parts += [f"<p>{escape(warning)}</p>" for warning in self["warnings"]]
        return "".join(parts)

    def _tables(self) -> Iterator[list[list[str]]]:
        """Rows of cells, the first of them headings."""
        for kind, others, group in (("type", "places", "types"), ("place", "types", "places")):
            yield [[kind, "bytes", "share", "bits a weight", "tensors"]] + [
                [row[kind], show.size(row["bytes"]), f"{row['share']:.1%}",
                 "" if row["bits"] is None else f"{row['bits']:.2f}",
                 ", ".join(f"{name} {count}" for name, count in row[others].items())]
                for row in self[group]]


def _aligned(table: list[list[str]]) -> Iterator[str]:
    """Lines of text: the first and the last column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table)]
    for first, *middle, last in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(middle, widths[1:])]
        yield "  ".join([f"{first:<{widths[0]}}", *cells, last]).rstrip()


def info(path: AnyPath | None = None, *, threads: int | None = None, isa: Isa | None = None,
         precision: Precision = "fast") -> Info:
    """What a checkpoint is made of, an Info, whether this build runs it or not.

    Types by their share of the bytes and where they stand, bits a weight, the memory it needs
    beside what there is, and what is known to hurt. path and the others as in load(). Raises
    FileError, FormatError.
    """
    facts: dict[str, Any] = dict.fromkeys((
        "architecture", "name", "license", "chat_template", "isa", "threads", "refusal"))
    rows: Rows = []
    where = EMBEDDED if path is None else Path(os.fsdecode(path))
    try:
        with load(path, threads=threads, isa=isa, precision=precision) as model:
            facts |= {key: model.info(key) for key in facts if key not in ("threads", "refusal")}
            facts["threads"] = model.threads
            rows = show.facts(model)
            where = model.path
    except (FormatError, UnsupportedError) as error:
        facts["refusal"] = str(error)
    try:
        with Container(where) as container:
            return _survey(container, facts, rows)
    except FormatError as error:
        raise FormatError(facts["refusal"] or str(error)) from None


# ---- Matrices ----

class Matrix(NamedTuple):
    """A tensor, or those that make one together."""

    name: str
    type: str
    place: str
    nbytes: int
    weights: int | None
    """Elements; None: not known."""
    experts: int
    """That it holds: of stacked ones several."""


def _place(name: str) -> str:
    return next((place for place, form in PLACES.items() if re.match(form, name)), OTHER)


def grouped(entries: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """Tensors by the matrix that they belong to: {name: {ending: Entry}}.

    A tensor that belongs to none stands alone, under its whole name and the ending "".
    """
    found: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        base, dot, part = name.rpartition(".")
        fused = name.removesuffix("_scale_inv")
        if fused != name and fused in entries and not name.endswith(".weight_scale_inv"):
            base, part = fused, "weight_scale_inv"
        elif part not in PARTS:
            base, part = name, ""
        found.setdefault(base, {})[part] = entry
    for base in [base for base, parts in found.items() if not {*CODES, ""} & parts.keys()]:
        found |= {entry.name: {"": entry} for entry in found.pop(base).values()}
    return found


Shapes = dict[tuple[str, tuple[int, ...]], bytes]


def _type_of(container: Container, parts: Mapping[str, Entry], place: str,
             shapes: Shapes) -> tuple[str, int | None]:
    """(type, elements) of a matrix. shapes: weight_shape by place and packed shape, read once."""
    codes = next(parts[part] for part in (*CODES, "") if part in parts)
    count, scale = math.prod(codes.shape), parts.get("weight_scale")
    if "qweight" in parts:
        bits = packed_bits(parts)
        return f"int{bits or ''} transposed", count * 32 // bits if bits else None
    if codes.dtype == "u32" and "biases" in parts:
        group = container.facts.get("quantization", {}).get("group_size")
        known = isinstance(group, int) and "scales" in parts
        return "mlx", group * math.prod(parts["scales"].shape) if known else None
    if codes.dtype == "i32" and "weight_shape" in parts:
        key = place, codes.shape
        if key not in shapes:
            shapes[key] = container.read(parts["weight_shape"])
        shape = shapes[key]
        rows, columns = struct.unpack("<2q", shape) if len(shape) == 16 else (0, 0)
        if rows <= 0 or columns <= 0:
            return "i32", None
        return f"i{32 * codes.shape[-1] // columns}", rows * columns
    if codes.dtype == "u8" and scale is not None:
        return "nvfp4" if scale.dtype == "f8_e4m3" else "mxfp4", 2 * count
    return codes.dtype, count


def packed_bits(parts: Mapping[str, Entry]) -> int:
    """Bits of a code of GPTQ's, AutoRound's or AWQ's layout; 0 if the shapes do not tell."""
    if not {"scales", "qzeros"} <= parts.keys():
        return 0
    columns, words = (parts[part].shape[-1:] for part in ("scales", "qzeros"))
    return 32 * words[0] // columns[0] if columns and words and columns[0] else 0


def _matrices(container: Container) -> Iterator[Matrix]:
    shapes: Shapes = {}
    for name, parts in grouped(container.entries).items():
        first = next(iter(parts.values()))
        place = _place(first.name)
        kind, count = _type_of(container, parts, place, shapes)
        experts = first.shape[0] if len(first.shape) == 3 else 1
        yield Matrix(name, kind, place, sum(entry.nbytes for entry in parts.values()), count,
                     experts if place in EXPERTS else 0)


def _bits(matrices: Iterable[Matrix]) -> float | None:
    """Bits a weight, scales included; None if there is no weight of a known size."""
    known = [matrix for matrix in matrices if matrix.weights]
    count = sum(matrix.weights or 0 for matrix in known)
    return 8 * sum(matrix.nbytes for matrix in known) / count if count else None


def _by(matrices: list[Matrix], key: str, other: str, total: int) -> list[dict[str, Any]]:
    """Sums by "type" or "place", most bytes first."""
    groups: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        groups.setdefault(getattr(matrix, key), []).append(matrix)
    rows = [{key: name, "tensors": len(group), "bytes": sum(m.nbytes for m in group),
             "share": sum(m.nbytes for m in group) / max(total, 1), "bits": _bits(group),
             other + "s": dict(Counter(getattr(m, other) for m in group).most_common())}
            for name, group in groups.items()]
    return sorted(rows, key=lambda row: -row["bytes"])


# ---- The survey ----

def _survey(container: Container, facts: Mapping[str, Any], rows: Rows) -> Info:
    matrices = list(_matrices(container))
    needed = [matrix for matrix in matrices if matrix.place != OTHER]
    total = sum(entry.nbytes for entry in container.entries.values())
    experts = [matrix for matrix in needed if matrix.place in EXPERTS]
    made = {"path": str(container.path), "format": container.format,
            "files": len(container.files), "bytes": total, "opens": facts["refusal"] is None,
            **facts, **_sizes(container), "experts_found": _experts(experts),
            "parameters": sum(matrix.weights or 0 for matrix in needed), "bits": _bits(needed),
            "expert_bits": _bits(experts), "types": _by(matrices, "type", "place", total),
            "places": _by(matrices, "place", "type", total)}
    made["memory"] = _memory(made, sum(matrix.nbytes for matrix in needed))
    made["warnings"] = list(_warnings(made, needed))
    return Info(made, _rows(made, rows))


def _sizes(container: Container) -> dict[str, int | None]:
    facts = container.facts
    arch = facts.get("general.architecture")
    made: dict[str, int | None] = {}
    for key, (plain, gguf) in KEYS.items():
        value = facts.get(plain if container.format == "safetensors" else f"{arch}.{gguf}")
        if isinstance(value, list) and len(set(map(str, value))) == 1:
            value = value[0]  # the same for each layer
        made[key] = value if isinstance(value, int) and value > 0 else None
    return made


def _experts(matrices: Iterable[Matrix]) -> list[int] | None:
    """[fewest, most] in a layer, of down projections."""
    layers: Counter[int] = Counter()
    for matrix in matrices:
        match = LAYER.match(matrix.name)
        if match and matrix.place == "down":
            layers[int(match[1])] += matrix.experts
    return [min(layers.values()), max(layers.values())] if layers else None


def _memory(made: Mapping[str, Any], weights: int) -> dict[str, int | None]:
    layers, heads, width = (made[key] or 0 for key in ("layers", "kv_heads", "head_dim"))
    context = min(CONTEXT, made["positions"] or CONTEXT)
    kv = 4 * layers * heads * width * context  # keys and values, two bytes each
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    present = _native.memory()[0]
    return {"weights": weights, "kv": kv, "context": context, "needed": weights + kv,
            "present": present, "limit": present if present < machine else None}


def _warnings(made: Mapping[str, Any], matrices: Iterable[Matrix]) -> Iterator[str]:
    low: dict[int, set[str]] = {}
    layers: dict[int, list[Matrix]] = {}
    for matrix in matrices:
        match = LAYER.match(matrix.name)
        if match and matrix.place == "down":
            layers.setdefault(int(match[1]), []).append(matrix)
        if matrix.place == "router" and matrix.type not in ("f32", "f16", "bf16"):
            yield (f"{matrix.name} is a router in {matrix.type}: the vendor never quantises "
                   "routers, and tokens will be sent to other experts than in the original")
    for layer, group in layers.items():
        if (_bits(group) or COHERENT) < COHERENT:
            low[layer] = {matrix.type for matrix in group}
    if low:
        yield (f"the down projections of {len(low)} of {len(layers)} layers have fewer than "
               f"{COHERENT:.0f} bits a weight ({', '.join(sorted(set().union(*low.values())))}): "
               "this family has no shared expert that would even their errors out, and with 2-bit "
               "down projections it is known to fall into loops; files with 3 bits or more there "
               "stay coherent, even if gate and up have 2")
    if (made["expert_bits"] or FAITHFUL) < FAITHFUL:
        yield (f"the experts have {made['expert_bits']:.2f} bits a weight: with fewer than "
               f"{FAITHFUL:.0f}, about every fifth token is another one than the unquantised "
               'model\'s ("What quantisation costs" in MODELS.md)')
    if made["positions"] and made["positions"] > TRAINED:
        yield (f"the configuration says {made['positions']:,} positions; the family is known to "
               f"work at up to {TRAINED:,}")
    memory = made["memory"]
    if memory["needed"] > memory["present"]:
        yield (f"it needs {show.size(memory['needed'])} of memory, {show.size(memory['present'])} "
               "are there: experts will be read from the disk for nearly every token")


def _rows(made: Mapping[str, Any], rows: Rows) -> Rows:
    """What to say in a line each, of models that open and of others."""
    memory, found = made["memory"], made["experts_found"]
    if not rows:
        experts = "-".join(map(str, dict.fromkeys(found or [made["experts"]])))
        rows = [
            ("path", made["path"]),
            ("format", made["format"]),
            ("runs", f"no: {made['refusal']}"),
            ("parameters", f"{show.si(made['parameters'])} ({show.size(made['bytes'])})"),
            ("layers", made["layers"]),
            ("hidden size", made["hidden_size"]),
            ("experts", f"{experts} a layer, {made['experts_per_token']} active"),
            ("positions", made["positions"])]
    bits = ", ".join(f"{value:.2f} {of}" for value, of in (
        (made["bits"], "over all"), (made["expert_bits"], "of the experts")) if value)
    limit = " (the limit of the control group)" if memory["present"] == memory["limit"] else ""
    return rows + [
        ("bits a weight", bits or None),
        ("memory", f"needs {show.size(memory['needed'])}: {show.size(memory['weights'])} of "
                   f"weights, {show.size(memory['kv'])} of keys and values at "
                   f"{memory['context']:,} positions; {show.size(memory['present'])} are there"
                   f"{limit}")]
