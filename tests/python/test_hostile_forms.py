"""Quantised safetensors that are not as they should be end in an error with a sentence.

Every case takes a small valid checkpoint in one form, breaks one thing of one module, and names the
exception and words that the sentence must have. Damaged containers: test_hostile_files.py.
"""

import pathlib
import shutil
import sys

import minimax2 as mm
import numpy as np
import pytest

from containers import change_json, read_safetensors, write_safetensors
from test_hostile_files import BAD, OTHER, extra, missing, refused, reshape

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
import checkpoints  # noqa: E402
import safetensors_file as forms  # noqa: E402

CASE = checkpoints.Case(
    "hostile", hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    rotary_dim=16, num_local_experts=2, num_experts_per_tok=1, intermediate_size=128,
    num_hidden_layers=1, vocab_size=72, rope_theta=1e4, rms_norm_eps=1e-6, seed=5)
EXPERT = "model.layers.0.block_sparse_moe.experts.1.w2"  # [64, 128]
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with a valid checkpoint of each form in use, in a folder of its name."""
    folder = tmp_path_factory.mktemp("forms")
    for form in MODELOPT, COMPRESSED, MX, MXC, INT4, ZEROS, INT8, BLOCKS, ROWS:
        entries = forms.entries(CASE, forms.everywhere(form))
        mm.load(checkpoints.write_checkpoint(CASE, folder / form, entries=entries)).close()
    return folder


def without(ending):
    return missing(EXPERT + ending)


def beside(ending, dtype, shape, nbytes):
    return extra(EXPERT + ending, dtype, shape, nbytes)


def shaped(ending, shape, dtype):
    return reshape(EXPERT + ending, shape, dtype)


def filled(ending, values):
    """Other values, from the beginning on."""
    def apply(header, data):
        begin, end = header[EXPERT + ending]["data_offsets"]
        new = np.ascontiguousarray(values).tobytes()
        assert len(new) <= end - begin
        return header, data[:begin] + new + data[begin + len(new):]
    return apply


def called(old, new):
    """A tensor of the expert under another name."""
    def apply(header, data):
        return {name.replace(EXPERT + old, EXPERT + new) if name == EXPERT + old else name: facts
                for name, facts in header.items()}, data
    return apply


def both(*changes):
    def apply(header, data):
        for change in changes:
            header, data = change(header, data)
        return header, data
    return apply


def f32(value):
    return np.float32(value)


MODELOPT, COMPRESSED, MX, MXC = ("nvfp4 modelopt", "nvfp4 compressed", "mxfp4 quark",
                                 "mxfp4 compressed")
INT4, ZEROS, INT8 = "int4 32", "int4 32 zeros", "int8 32"
BLOCKS, ROWS = "fp8 blocks", "fp8 rows"
CASES = [
    # FP8
    ("no scales", ROWS, without(".weight_scale"), BAD, 'scales "' + EXPERT + ".weight_scale_inv"),
    ("scales for 64 x 64", BLOCKS, shaped(".weight_scale_inv", [1, 2], "F32"), BAD,
     "[1, 2], expected [1, 1]: one scale for 128 x 128 codes; or one for each of 64 rows"),
    ("scales for columns", ROWS, shaped(".weight_scale", [1, 128], "F32"), BAD, "[1, 128], expec"),
    ("a row short", ROWS, shaped(".weight_scale", [63, 1], "F32"), BAD, "[63, 1], expected [1, 1]"),
    ("scales of no elements", ROWS, shaped(".weight_scale", [0], "F32"), BAD, "has shape [0], exp"),
    ("two kinds of scales", ROWS, beside(".weight_scale_inv", "F32", [1, 1], 4), BAD,
     "both scale"),
    ("integer scales", ROWS, shaped(".weight_scale", [64, 1], "I32"), BAD,
     "has dtype i32, expected f32, f16, bf16 or u8"),
    ("scales of F64", ROWS, lambda h, d: ({**h, EXPERT + ".weight_scale": {
        **h[EXPERT + ".weight_scale"], "dtype": "F64", "shape": [32]}}, d), OTHER,
     "has dtype F64; this build reads"),
    ("MXFP8", ROWS, shaped(".weight_scale", [64, 4], "U8"), OTHER, "is MXFP8"),
    ("FP8 with a zero point", ROWS, beside(".weight_zero_point", "F32", [64, 1], 256), OTHER,
     "stands beside"),
    ("FP8 smoothed", ROWS, beside(".pre_quant_scale", "BF16", [128], 256), OTHER, "stands beside"),
    ("values with scales", ROWS, shaped(".weight", [64, 128], "BF16"), OTHER, "stands beside"),
    # NVFP4
    ("no scales", MODELOPT, without(".weight_scale"), BAD,
     'packed codes but its scales "' + EXPERT + '.weight_scale" are missing'),
    ("no factor", MODELOPT, without(".weight_scale_2"), BAD, 'weight_scale_2" are missing'),
    ("no divisor", COMPRESSED, without(".weight_global_scale"), BAD, 'global_scale" are missing'),
    ("scales for 8 codes", MODELOPT, shaped(".weight_scale", [64, 16], "F8_E4M3"), BAD,
     "has shape [64, 16], expected [64, 8]: one scale for 16 codes of a row, NVFP4"),
    ("scales flat", MODELOPT, shaped(".weight_scale", [512], "F8_E4M3"), BAD, "[512], expected"),
    ("scales transposed", COMPRESSED, shaped(".weight_scale", [8, 64], "F8_E4M3"), BAD,
     "expected [64, 8]"),
    ("scales of another expert", MODELOPT, shaped(".weight_scale", [128, 4], "F8_E4M3"), BAD,
     f'"{EXPERT}.weight_scale" has shape [128, 4], expected [64, 8]'),
    ("scales of W4A16_AWQ", MODELOPT, shaped(".weight_scale", [64, 1], "BF16"), BAD,
     "has dtype bf16, expected f8_e4m3 (NVFP4) or u8 (MXFP4)"),
    ("codes of W4A16_AWQ", MODELOPT, shaped(".weight", [32, 128], "U8"), BAD,
     "has shape [32, 128], [32, 256] decoded, expected [64, 128] by the configuration"),
    ("codes a column short", COMPRESSED, shaped(".weight_packed", [64, 63], "U8"), BAD,
     "has shape [64, 63], [64, 126] decoded, expected [64, 128]"),
    ("codes of BF16", COMPRESSED, shaped(".weight_packed", [64, 128], "BF16"), BAD,
     "has dtype bf16, expected i32 (codes of 4 or 8 bits) or u8 (NVFP4, MXFP4)"),
    ("a factor of BF16", MODELOPT, shaped(".weight_scale_2", [], "BF16"), BAD, "expected f32"),
    ("two factors", MODELOPT, shaped(".weight_scale_2", [2], "F32"), BAD, "[2], expected [1]"),
    ("no factors", MODELOPT, shaped(".weight_scale_2", [0], "F32"), BAD, "[0], expected [1]"),
    *[(f"a factor of {value}", MODELOPT, filled(".weight_scale_2", f32(value)), BAD,
       f"is {str(value)}, expected a finite number")
      for value in ("nan", "inf", "-1")],
    *[(f"a divisor of {value}", COMPRESSED, filled(".weight_global_scale", f32(value)), BAD,
       f"is {str(value)}, expected a finite number above 0: scales are divided by it")
      for value in ("nan", "inf", "0", "-1")],
    ("factor and divisor", MODELOPT, beside(".weight_global_scale", "F32", [1], 4), BAD,
     "both scale"),
    ("codes twice", COMPRESSED, beside(".weight", "BF16", [64, 128], 16384), BAD,
     "are two for one place"),
    ("smoothed", MODELOPT, beside(".pre_quant_scale", "BF16", [128], 256), OTHER,
     f'pre_quant_scale" stands beside "{EXPERT}.weight", of dtype u8'),
    ("a zero point", COMPRESSED, beside(".weight_zero_point", "U8", [64, 8], 512), OTHER,
     "stands beside"),
    ("a bias", MODELOPT, beside(".bias", "BF16", [64], 128), OTHER, "adds no biases"),
    ("a norm of U8", MODELOPT, reshape(NORM, [64], "U8"), BAD,
     "has dtype u8, expected f32, f16 or bf16"),
    # MXFP4
    ("no scales", MX, without(".weight_scale"), BAD, "are missing"),
    ("scales among the codes", MX, both(
        without(".weight_scale"), shaped(".weight", [64, 68], "U8")), BAD,
     "[64, 136] decoded, expected [64, 128]"),
    ("scales for 16 codes", MXC, shaped(".weight_scale", [64, 8], "U8"), BAD,
     "expected [64, 4]: one scale for 32 codes of a row, MXFP4"),
    ("a factor", MX, beside(".weight_scale_2", "F32", [], 4), OTHER, "stands beside"),
    ("a divisor", MXC, beside(".weight_global_scale", "F32", [1], 4), OTHER, "stands beside"),
    # Packed integers
    ("no scales", INT4, without(".weight_scale"), BAD, "are missing"),
    ("no shape", INT4, without(".weight_shape"), BAD, 'dimensions "' + EXPERT + ".weight_shape"),
    ("a shape of three", INT4, shaped(".weight_shape", [3], "I64"), BAD,
     "has 24 bytes of I64, expected 2 integers"),
    ("a shape of F32", INT4, shaped(".weight_shape", [2], "F32"), BAD, "8 bytes of f32"),
    ("a shape of U16", INT4, lambda h, d: ({**h, EXPERT + ".weight_shape": {
        **h[EXPERT + ".weight_shape"], "dtype": "U16", "shape": [8]}}, d), OTHER, "dtype U16"),
    *[(f"a shape of {shape}", INT4, filled(".weight_shape", np.int64(shape)), error, words)
      for shape, error, words in (
          ((0, 0), BAD, "says [0, 0]: no shape of a matrix"), ((-64, 128), BAD, "says [-64, 128]"),
          ((64, 2**62), BAD, "no shape"), ((128, 64), BAD, "has 64 rows, but"),
          ((63, 128), BAD, "says [63, 128]"), ((64, 1), OTHER, "512 bits a code"),
          ((64, 127), BAD, "has shape [64, 16], [64, 127] decoded, expected [64, 128]"))],
    *[(f"{n} bits", INT4, shaped(".weight_packed", [64, 128 * n // 32], "I32"), OTHER,
       f"about {n} bits a code; this build reads 4 and 8") for n in (1, 2, 3, 5, 6, 7, 16)],
    ("codes of three dimensions", INT4, shaped(".weight_packed", [64, 16, 1], "I32"), OTHER,
     "has 3 dimensions, expected a matrix of packed codes"),
    ("groups that do not divide", INT4, shaped(".weight_scale", [64, 3], "BF16"), BAD,
     "has shape [64, 3], expected [64, groups of the 128 columns]"),
    ("groups of 16", INT4, shaped(".weight_scale", [64, 8], "BF16"), OTHER,
     "has groups of 16 of 128 columns; this build reads groups of 32, 64, 128 and whole rows"),
    ("no groups", INT4, shaped(".weight_scale", [64, 0], "BF16"), BAD, "groups of the 128"),
    ("scales transposed", INT4, shaped(".weight_scale", [4, 64], "BF16"), BAD, "groups of the 128"),
    ("scales flat", INT4, shaped(".weight_scale", [256], "BF16"), BAD, "groups of the 128"),
    ("scales of U8", INT4, shaped(".weight_scale", [64, 4], "U8"), BAD, "expected f32, f16 or bf"),
    ("zero points along columns", ZEROS, shaped(".weight_zero_point", [64, 1], "I32"), BAD,
     "expected [8, 4]: zero points of 8 rows in a word"),
    ("zero points as bytes", ZEROS, shaped(".weight_zero_point", [64, 4], "U8"), BAD,
     "expected i32: zero points are packed"),
    ("zero points of int8 as of int4", INT8, beside(".weight_zero_point", "I32", [8, 4], 128),
     BAD, "has shape [8, 4], expected [16, 4]: zero points of 4 rows in a word"),
    ("zero points of int8 for rows", INT8, beside(".weight_zero_point", "I32", [16, 1], 64), BAD,
     "has shape [16, 1], expected [16, 4]"),
    ("zero points of int8 as bytes", INT8, beside(".weight_zero_point", "U8", [64, 4], 256), BAD,
     "expected i32: zero points are packed"),
    ("zero points of int8 that are not packed", INT8,
     beside(".weight_zero_point", "I8", [64, 4], 256), OTHER, "has dtype I8"),
    ("another order", INT4, both(beside(".weight_g_idx", "I32", [128], 512), filled(
        ".weight_g_idx", (np.arange(128) // 32)[::-1].astype(np.int32))), OTHER,
     "places column 0 in group 3, not 0: this build reads groups of neighbours only"),
    ("an order of 64 columns", INT4, beside(".weight_g_idx", "I32", [64], 256), BAD,
     "has shape [64], expected [128]"),
    ("an order of BF16", INT4, beside(".weight_g_idx", "BF16", [128], 256), BAD, "expected i32"),
    ("a factor", INT4, beside(".weight_scale_2", "F32", [], 4), OTHER, "stands beside"),
    ("int4 smoothed", INT4, beside(".pre_quant_scale", "BF16", [128], 256), OTHER, "stands beside"),
    ("codes under a plain name", INT4, called(".weight_packed", ".weight"), BAD,
     "expected [64, 128]"),
    # Others
    ("GPTQ", INT4, called(".weight_packed", ".qweight"), OTHER,
     'run "minimax2 convert IN OUT" once'),
    ("EXL2", INT4, called(".weight_packed", ".q_weight"), OTHER, "an EXL2 checkpoint"),
    ("EXL3", INT4, called(".weight_packed", ".trellis"), OTHER, "an EXL3 checkpoint"),
    ("MLX", INT4, both(
        called(".weight_packed", ".weight"), called(".weight_scale", ".scales"),
        lambda h, d: ({**h, EXPERT + ".weight": {**h[EXPERT + ".weight"], "dtype": "U32"}}, d)),
     OTHER, "an MLX checkpoint"),
    ("W8A8", ROWS, shaped(".weight", [64, 128], "I8"), OTHER, "integer activations (W8A8)"),
]


@pytest.mark.parametrize("form, apply, error, words", [case[1:] for case in CASES],
                         ids=[f"{case[1]}: {case[0]}" for case in CASES])
def test_forms(base, tmp_path, form, apply, error, words):
    path = shutil.copytree(base / form, tmp_path / "bad")
    file = path / "model.safetensors"
    write_safetensors(file, *apply(*read_safetensors(file)))
    refused(path, error, words)


@pytest.mark.parametrize("form, apply", [
    (ROWS, shaped(".weight_scale", [1], "F32")), (ROWS, shaped(".weight_scale", [1, 1], "F32")),
    (BLOCKS, shaped(".weight_scale_inv", [], "BF16")),
    (INT4, both(beside(".weight_g_idx", "I32", [128], 512),
                filled(".weight_g_idx", np.full(128, -1, np.int32)))),
    (INT4, called(".weight_shape", ".weight_shape")),
    (MODELOPT, filled(".weight_scale_2", f32(0))),
    (MODELOPT, shaped(".weight_scale_2", [1, 1], "F32")),
    (MODELOPT, without(".input_scale")),
    (MODELOPT, both(without(".input_scale"), beside(".input_scale", "F64", [3], 24))),
    (MODELOPT, beside(".k_scale", "F32", [], 4)),
], ids=range(10))
def test_what_is_taken(base, tmp_path, form, apply):
    path = shutil.copytree(base / form, tmp_path / "good")
    file = path / "model.safetensors"
    write_safetensors(file, *apply(*read_safetensors(file)))
    with mm.load(path) as model:
        assert np.isfinite(model.weight(EXPERT + ".weight").numpy()).all()


def test_a_factor_of_zero_makes_zeros(base, tmp_path):
    path = shutil.copytree(base / MODELOPT, tmp_path / "good")
    file = path / "model.safetensors"
    write_safetensors(file, *filled(".weight_scale_2", f32(0))(*read_safetensors(file)))
    with mm.load(path) as model:
        assert not model.weight(EXPERT + ".weight").numpy().any()


# ---- config.json ----

@pytest.mark.parametrize("changes, error, words", [
    ({"quant_method": "exl3"}, OTHER, "quant_method is exl3, which this build does not read"),
    ({"quant_method": "exl2"}, OTHER, "quant_method is exl2"),
    ({"quant_method": "bitsandbytes"}, OTHER, "quant_method is bitsandbytes"),
    ({"group_size": 64, "bits": 4}, OTHER, "an MLX checkpoint"),
    ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}},
     OTHER, "transform_config rotates weights"),
    ({"quant_method": "fp8", "weight_block_size": [64, 64]}, OTHER, "not [128, 128]"),
    ({"quant_method": "compressed-tensors", "transform_config": {}}, None, ""),
    *[({"quant_method": method}, None, "") for method in (
        "fp8", "modelopt", "modelopt_fp4", "quark", "gptq", "awq", "auto-round", "mxfp4")]])
def test_methods(base, tmp_path, changes, error, words):
    path = shutil.copytree(base / INT4, tmp_path / "model")
    change_json(path / "config.json", quantization_config=changes)
    if error:
        refused(path, error, words)
    else:
        mm.load(path).close()


def test_other_labels(base, tmp_path):
    path = shutil.copytree(base / INT4, tmp_path / "model")
    change_json(path / "config.json", model_type="mixtral")
    refused(path, OTHER, 'run "minimax2 convert IN OUT" once, which corrects the label')
    change_json(path / "config.json", architectures=["MixtralForCausalLM"], scoring_func=...)
    refused(path, OTHER, "model_type is mixtral; this build supports minimax_m2")
    change_json(path / "config.json", model_type="minimax_m2", scoring_func="sigmoid")
    (path / "jang_config.json").write_text("{}")
    refused(path, OTHER, "jang_config.json: this is a JANG checkpoint")
