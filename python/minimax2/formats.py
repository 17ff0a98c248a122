"""The formats that `synth` writes: of single tensors, mixes of them, and layouts in safetensors.

What the library does not know is left out, so that everything here can be opened again. Sizes of
blocks are the library's own; what is said here is how other programs number and name the types, and
what random codes of each look like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from minimax2 import _native


E2M1 = 2.926  # root mean square of the values of random 4-bit floats


class Format(NamedTuple):
    """A dtype on disk."""

    dtype: str
    """Its name in the library, which knows its sizes."""
    safetensors: str | None
    """Its name there; None: not in safetensors."""
    ggml: int | None
    """Its number in GGUF; None: not in GGUF."""
    scale_at: int = 0
    """Offset of the half-float scale d in a block, for formats that have one."""
    unit: float = 1.0
    """Root mean square of the values of random codes with a scale of 1."""
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
_FORMATS = {
    "f32": Format("f32", "F32", 0),
    "f16": Format("f16", "F16", 1),
    "bf16": Format("bf16", "BF16", 30),
    "q8_0": Format("q8_0", None, 8, 0, 73.9),
    "q4_0": Format("q4_0", None, 2, 0, 4.637),
    "q4_1": Format("q4_1", None, 3, 0, 4.61, 2, -7.5),
    "q5_0": Format("q5_0", None, 6, 0, 9.247),
    "q5_1": Format("q5_1", None, 7, 0, 9.233, 2, -15.5),
    "q2_k": Format("q2_k", None, 10, 80, 8.803 * 1.118, 82, 1.5),
    "q3_k": Format("q3_k", None, 11, 108, 18.48 * 2.345),
    "q4_k": Format("q4_k", None, 12, 0, 36.52 * 4.61, 2, 7.5),
    "q5_k": Format("q5_k", None, 13, 0, 36.52 * 9.233, 2, 15.5),
    "q6_k": Format("q6_k", None, 14, 208, 73.9 * 18.48),
    "iq4_nl": Format("iq4_nl", None, 20, 0, 67.44),
    "iq4_xs": Format("iq4_xs", None, 23, 0, 18.48 * 67.44),
    "iq1_s": Format("iq1_s", None, 19, 0, 7.197),
    "iq1_m": Format("iq1_m", None, 29, 0, 7.208),
    "iq2_xxs": Format("iq2_xxs", None, 16, 0, 53.45),
    "iq2_xs": Format("iq2_xs", None, 17, 0, 55.9),
    "iq2_s": Format("iq2_s", None, 22, 0, 56.35),
    "iq3_xxs": Format("iq3_xxs", None, 18, 0, 142.6),
    "iq3_s": Format("iq3_s", None, 21, 0, 140.2),
    "tq1_0": Format("tq1_0", None, 34, 52, 0.8172),
    "tq2_0": Format("tq2_0", None, 35, 64, 0.7071),
    "q1_0": Format("q1_0", None, 41, 0, 1.0),
    "mxfp4": Format("mxfp4", None, 39, 0, E2M1),
    "nvfp4": Format("nvfp4", None, 40, 0, E2M1),
}
# By number in GGUF, with those that occur in files but hold no weights.
GGML = {kind.ggml: kind.dtype for kind in _FORMATS.values() if kind.ggml is not None} | {
    9: "q8_1", 15: "q8_k", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64"}
FORMATS = {name: kind for name, kind in _FORMATS.items() if kind.dtype in _native.DTYPES}


# ---- Mixes of GGUF types ----

Layers = Callable[[int, int], bool]
"""Is this layer, of so many, one of those that a rule of a mix is for?"""


def _first(layer: int, layers: int) -> bool:
    return layer < layers // 8


def _middle(layer: int, layers: int) -> bool:
    return layers // 8 <= layer < 7 * layers // 8


def _more(layer: int, layers: int) -> bool:
    """llama.cpp's rule for the layers that get more bits."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


class Mix(NamedTuple):
    """Which tensor of a GGUF file has which format."""

    base: str
    """Of the matrices that no rule names."""
    rules: Mapping[str, str | tuple[Layers, str]]
    """By the names of tensors without "blk.N." and ".weight": a format, or one for some layers."""

    def of(self, part: str, layer: int, layers: int) -> str:
        """The format of a tensor."""
        rule = self.rules.get(part, self.base)
        if isinstance(rule, str):
            return rule
        return rule[1] if rule[0](layer, layers) else self.base

    @property
    def formats(self) -> set[str]:
        """All that can occur."""
        return {self.base} | {rule if isinstance(rule, str) else rule[1]
                              for rule in self.rules.values()}


GATE_UP = ("ffn_gate_exps", "ffn_up_exps")


def _low(base: str, embedding: str, down: str, **more: str) -> Mix:
    """llama.cpp's presets of one to two bits."""
    return Mix(base, {"token_embd": embedding, "output": "q5_k", "attn_v": "q4_k",
                      "ffn_down_exps": (_first, down), **more})


# llama.cpp's presets, as its rules give them for this architecture, and downloads whose tensors'
# types are known. A preset with the name of a type ends in _mix.
_MIXES = {
    "q4_k_m": Mix("q4_k", {"output": "q6_k", "attn_v": (_more, "q6_k"),
                           "ffn_down_exps": (_more, "q6_k")}),
    "q4_0_imatrix": Mix("q4_0", {"output": "q6_k", "ffn_down_exps": (_first, "q4_1")}),
    "q5_0_imatrix": Mix("q5_0", {"output": "q6_k", "ffn_down_exps": (_first, "q5_1")}),
    "mxfp4_moe": Mix("q8_0", dict.fromkeys((*GATE_UP, "ffn_down_exps"), "mxfp4")),
    "iq1_s_mix": _low("iq1_s", "q2_k", "q2_k", attn_output="iq2_xxs"),
    "iq1_m_mix": _low("iq1_m", "q2_k", "q2_k", attn_output="iq2_xxs"),
    "iq2_xxs_mix": _low("iq2_xxs", "q2_k", "q2_k"),
    "iq2_xs_mix": _low("iq2_xs", "q2_k", "q2_k"),
    "iq2_s_mix": _low("iq2_xs", "iq3_s", "iq3_s", attn_output="iq3_s"),
    "iq2_m": _low("iq2_s", "iq3_s", "iq3_s", attn_output="iq3_s"),
    "iq3_xxs_mix": Mix("iq3_xxs", {"token_embd": "iq3_s", "output": "q5_k", "attn_q": "iq2_s",
                                   "attn_k": "iq2_s", "attn_v": "q4_k", "attn_output": "iq3_s"}),
    "iq3_xs": Mix("iq3_s", {"output": "q6_k", "attn_v": "q4_k",
                            **dict.fromkeys(GATE_UP, (_middle, "iq3_xxs"))}),
    "iq3_m": Mix("iq3_s", {"output": "q6_k", "attn_v": "q4_k", "attn_output": "q4_k",
                           "ffn_down_exps": (_first, "q4_k")}),
    "tq1_0_mix": Mix("tq1_0", {"token_embd": "q4_k", "output": "q6_k"}),
    "ud-iq2_xxs": Mix("q5_k", {**dict.fromkeys(GATE_UP, "iq2_xxs"), "ffn_down_exps": "iq2_s"}),
    "ud-iq3_s": Mix("q6_k", {**dict.fromkeys(GATE_UP, "iq2_s"), "ffn_down_exps": "iq3_s"}),
}
MIXES = {name: mix for name, mix in _MIXES.items() if mix.formats <= FORMATS.keys()}


# ---- Layouts of safetensors ----

class Layout(NamedTuple):
    """Matrices in several tensors each, as some program writes them."""

    group: int
    """Columns with a scale in common; 0: all of a row."""
    attention: bool
    """Are the matrices of attention written so too? Else in BF16."""
    config: dict[str, object]
    """quantization_config of config.json, but for the list of what is left out."""
    leaves: str | None
    """The name of that list; None: there is none."""


def _compressed(format: str, weights: Mapping[str, object]) -> dict[str, object]:
    group = {"targets": ["Linear"], "input_activations": None, "output_activations": None,
             "weights": {"dynamic": False, "actorder": None, **weights}}
    return {"quant_method": "compressed-tensors", "format": format,
            "quantization_status": "compressed", "kv_cache_scheme": None,
            "config_groups": {"group_0": group}}


def integers(bits: int, group: int, symmetric: bool) -> dict[str, object]:
    """The weights of a config group of compressed-tensors; group 0: a scale a row."""
    return {"num_bits": bits, "type": "int", "symmetric": symmetric,
            "strategy": "group" if group else "channel", "group_size": group or None}


def packed(bits: int, group: int, symmetric: bool) -> dict[str, object]:
    """quantization_config of pack-quantized checkpoints."""
    return _compressed("pack-quantized", integers(bits, group, symmetric))


_FP4 = {"num_bits": 4, "type": "float", "symmetric": True}
LAYOUTS = {
    "fp8": Layout(128, True, {"quant_method": "fp8", "fmt": "float8_e4m3fn",
                              "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
                  None),
    "fp8-channel": Layout(0, True, _compressed("float-quantized", {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}), "ignore"),
    "nvfp4-modelopt": Layout(16, False, {
        "quant_method": "modelopt", "quant_algo": "NVFP4", "producer": {"name": "modelopt"},
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}}}}, "ignore"),
    "nvfp4-ct": Layout(16, True, _compressed("nvfp4-pack-quantized", {
        **_FP4, "strategy": "tensor_group", "group_size": 16}), "ignore"),
    "mxfp4-quark": Layout(32, False, {
        "quant_method": "quark", "export": {"pack_method": "reorder"}, "global_quant_config": {
            "weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "ch_axis": -1,
                       "scale_format": "e8m0", "is_dynamic": False}}}, "exclude"),
    "mxfp4-ct": Layout(32, True, _compressed("mxfp4-pack-quantized", {
        **_FP4, "strategy": "group", "group_size": 32}), "ignore"),
    "w4a16": Layout(128, True, packed(4, 128, True), "ignore"),
    "w4a16-asym": Layout(128, True, packed(4, 128, False), "ignore"),
    "w8a16": Layout(128, True, packed(8, 128, True), "ignore"),
    "w8a16-asym": Layout(128, True, packed(8, 128, False), "ignore"),
}

NAMES = (*FORMATS, *LAYOUTS, *MIXES)
