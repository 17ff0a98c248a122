"""Writes cases as quantised safetensors, in the forms that published checkpoints have.

Codes and scales are drawn at random, never made from weights, so that every code appears; what
they mean is computed here in numpy, by the formulas of the packages that write such files
(modelopt, compressed-tensors, Quark). A form is a function of a module that returns its tensors
and its values.
"""

import math

import numpy as np

import checkpoints

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
SPREAD = {"e2m1": 2.9, "i4": 4.6, "i8": 74.0, "e4m3": 128.0}  # standard deviation of the codes


def bf16(x):
    """(uint16 codes, float32 values) of positive float32 values, cut to BF16."""
    codes = (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return codes, checkpoints.from_bf16(codes)


def stored(x, dtype):
    """(array for write_safetensors, the float32 values that it holds) of positive values."""
    if dtype == "BF16":
        return bf16(x)
    array = x.astype(checkpoints.DTYPES[dtype])
    return array, array.astype(np.float32)


def nibbles(codes):
    """uint8 [rows, columns / 2] of codes below 16: the even column in the low nibble."""
    return (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)


def words(codes, bits):
    """int32 [rows, columns * bits / 32] of unsigned codes: column c from bit c * bits on."""
    each = 32 // bits
    fields = codes.astype(np.uint32).reshape(codes.shape[0], -1, each)
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    return np.bitwise_or.reduce(fields << shifts, axis=2).astype(np.uint32).view(np.int32)


def uneven(case, name, shape, size):
    """float32 [shape] around `size`: 24 random bits, the largest twice the smallest."""
    return ((checkpoints.hash_unit(case, name, shape) + np.float32(3)) / np.float32(3)
            * np.float32(size)).astype(np.float32)


# ---- Forms: (case, module, shape, spread) -> ({ending: (dtype, array)}, float32 values) ----


def fp8(sizes, dtype="F32", ending=".weight_scale", spell=lambda scale: scale):
    """FP8 with scales for `sizes` (rows, columns) of codes; 0: for all. `spell`: another shape."""
    def draw(case, module, shape, spread):
        codes = checkpoints.hash_bytes(case, module, shape)
        codes = np.where(codes & 0x7F == 0x7F, codes ^ 1, codes)
        rows, columns = (n if size == 0 else size for n, size in zip(shape, sizes, strict=True))
        blocks = -(-shape[0] // rows), -(-shape[1] // columns)
        drawn = uneven(case, module + " scale", blocks, spread / SPREAD["e4m3"])
        array, scale = stored(drawn, dtype)
        wide = scale.repeat(rows, 0)[:shape[0]].repeat(columns, 1)[:, :shape[1]]
        return ({".weight": ("F8_E4M3", codes), ending: (dtype, spell(array))},
                checkpoints.e4m3_values()[codes] * wide)
    return draw


def e4m3_scales(case, module, shape):
    """(uint8 codes, values): E4M3 from 0.5 to 3.75."""
    codes = (0x30 + checkpoints.hash_bytes(case, module + " scale", shape) % 24).astype(np.uint8)
    return codes, checkpoints.e4m3_values()[codes]


def nvfp4_modelopt(case, module, shape, spread):
    codes = checkpoints.hash_bytes(case, module, shape) & 15
    scale, value = e4m3_scales(case, module, (shape[0], shape[1] // 16))
    factor = uneven(case, module + " global", (), spread / SPREAD["e2m1"] / 2)
    parts = {".weight": ("U8", nibbles(codes)), ".weight_scale": ("F8_E4M3", scale),
             ".weight_scale_2": ("F32", factor), ".input_scale": ("F32", np.float32(0.01))}
    return parts, E2M1[codes] * (value * factor).repeat(16, 1)


def nvfp4_compressed(case, module, shape, spread):
    codes = checkpoints.hash_bytes(case, module, shape) & 15
    scale, value = e4m3_scales(case, module, (shape[0], shape[1] // 16))
    divisor = uneven(case, module + " global", (1,), SPREAD["e2m1"] * 2 / spread)
    parts = {".weight_packed": ("U8", nibbles(codes)), ".weight_scale": ("F8_E4M3", scale),
             ".weight_global_scale": ("F32", divisor),
             ".input_global_scale": ("F32", np.zeros(1, np.float32))}
    return parts, E2M1[codes] * (value / divisor).repeat(16, 1)


def mxfp4(ending, dtype="U8"):
    def draw(case, module, shape, spread):
        codes = checkpoints.hash_bytes(case, module, shape) & 15
        drawn = checkpoints.hash_bytes(case, module + " scale", (shape[0], shape[1] // 32))
        middle = 127 + round(math.log2(spread / SPREAD["e2m1"]))
        scale = (middle - 1 + drawn % 3).astype(np.uint8)
        value = np.ldexp(np.float32(1), scale.astype(np.int32) - 127).astype(np.float32)
        return ({ending: ("U8", nibbles(codes)), ".weight_scale": (dtype, scale)},
                E2M1[codes] * value.repeat(32, 1))
    return draw


def packed(bits, group, dtype="BF16", zeros=False, order=False):
    """pack-quantized. group 0: the row. `order`: with the g_idx of older files, in order."""
    def draw(case, module, shape, spread):
        rows, columns = shape
        each = group or columns
        codes = checkpoints.hash_bytes(case, module, shape) & (2**bits - 1)
        size = spread / SPREAD[f"i{bits}"]
        array, scale = stored(uneven(case, module + " scale", (rows, columns // each), size), dtype)
        parts = {".weight_packed": ("I32", words(codes, bits)), ".weight_scale": (dtype, array),
                 ".weight_shape": ("I64", np.array(shape, np.int64))}
        zero = np.full(scale.shape, 2 ** (bits - 1), np.uint8)
        if zeros:
            drawn = checkpoints.hash_bytes(case, module + " zero", scale.shape)
            zero = 2 ** (bits - 2) + drawn % 2 ** (bits - 1)
            padded = np.pad(zero, ((0, -rows % (32 // bits)), (0, 0)))
            parts[".weight_zero_point"] = "I32", np.ascontiguousarray(words(padded.T, bits).T)
        if order:
            parts[".weight_g_idx"] = "I32", (np.arange(columns) // each).astype(np.int32)
        signed = codes.astype(np.int32) - zero.astype(np.int32).repeat(each, 1)
        return parts, signed.astype(np.float32) * scale.repeat(each, 1)
    return draw


FORMS = {
    "fp8 blocks": fp8((128, 128), ending=".weight_scale_inv"),
    "fp8 blocks bf16": fp8((128, 128), "BF16"),
    "fp8 blocks f16": fp8((128, 128), "F16", ".scale"),
    "fp8 blocks 4-D": fp8((128, 128), spell=lambda x: x[:, None, :, None]),
    "fp8 rows": fp8((1, 0)),
    "fp8 rows bf16": fp8((1, 0), "BF16"),
    "fp8 rows flat": fp8((1, 0), spell=lambda x: x[:, 0]),
    "fp8 tensor": fp8((0, 0), spell=lambda x: x[0, 0]),
    "fp8 tensor bf16": fp8((0, 0), "BF16", ".qscale_weight", lambda x: x[0]),
    "nvfp4 modelopt": nvfp4_modelopt,
    "nvfp4 compressed": nvfp4_compressed,
    "mxfp4 quark": mxfp4(".weight"),
    "mxfp4 compressed": mxfp4(".weight_packed"),
    "mxfp4 e8m0": mxfp4(".weight_packed", "F8_E8M0"),
    "int4 32": packed(4, 32),
    "int4 64 f16": packed(4, 64, "F16", order=True),
    "int4 128 f32": packed(4, 128, "F32"),
    "int4 rows": packed(4, 0),
    "int4 32 zeros": packed(4, 32, zeros=True),
    "int4 128 zeros f16": packed(4, 128, "F16", zeros=True),
    "int4 rows zeros": packed(4, 0, "F32", zeros=True),
    "int8 32": packed(8, 32, "F16"),
    "int8 128": packed(8, 128),
    "int8 rows f32": packed(8, 0, "F32"),
    "int8 32 zeros": packed(8, 32, zeros=True),
    "int8 rows zeros f16": packed(8, 0, "F16", zeros=True),
}


# ---- Checkpoints ----


def everywhere(form):
    """For `choose`: this form for attention and experts; embedding, head and router stay as they
    are."""
    return lambda weight: form if weight.kind == "matrix" else None


def draw(case, choose):
    """(weight, parts or None, values) of every tensor. `choose`: a function of a checkpoints.Weight
    that returns a name of FORMS, or None for one that stays as it is."""
    for weight in checkpoints.weights(case):
        form = choose(weight)
        if form is None:
            yield weight, None, checkpoints.values(case, weight)
        else:
            module = weight.name.removesuffix(".weight")
            yield (weight, *FORMS[form](case, module, weight.shape, weight.spread))


def values(case, choose):
    """{vendor's name: float32 array}: what the codes mean."""
    return {weight.name: array for weight, _, array in draw(case, choose)}


def entries(case, choose, rename=lambda name: name):
    """Entries for checkpoints.write_safetensors. `rename`: of every tensor."""
    for weight, parts, array in draw(case, choose):
        if parts is None and weight.kind in ("f32", "norm"):
            tensors = {weight.name: ("F32", array)}
        elif parts is None:
            tensors = {weight.name: ("BF16", checkpoints.to_bf16(array))}
        else:
            module = weight.name.removesuffix(".weight")
            tensors = {module + ending: part for ending, part in parts.items()}
        for name, (dtype, data) in tensors.items():
            yield rename(name), dtype, data.shape, lambda data=data: data


def plain(case, choose):
    """Entries of F32: the same model, decoded."""
    for weight, _, array in draw(case, choose):
        yield weight.name, "F32", weight.shape, lambda array=array: array
