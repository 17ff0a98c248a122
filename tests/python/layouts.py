"""Quantised matrices in safetensors, decoded in numpy by the formulas of those who write them."""

import ml_dtypes
import numpy as np

from containers import read_safetensors

E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def tensors_of(path):
    """{name: array} of all shards: bf16 as float32, FP8 by value, everything else as it lies."""
    made = {}
    for file in sorted(path.glob("model*.safetensors")):
        header, data = read_safetensors(file)
        for name, facts in header.items():
            if name == "__metadata__":
                continue
            raw = np.frombuffer(data[slice(*facts["data_offsets"])], np.uint8)
            kind = facts["dtype"]
            if kind == "BF16":
                raw = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
            elif kind == "F8_E4M3":
                raw = raw.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
            elif kind != "U8":
                raw = raw.view({"F16": "<f2", "F32": "<f4", "I32": "<u4", "I64": "<i8"}[kind])
            made[name] = raw.reshape(facts["shape"])
    return made


def nibbles(words, bits=4):
    """The fields of words or bytes along the last dimension, the lowest bits first."""
    fields = np.arange(0, words.itemsize * 8, bits, dtype=words.dtype)
    return (words[..., None] >> fields & (1 << bits) - 1).reshape(*words.shape[:-1], -1)


def spread(scales, columns):
    return np.repeat(scales, columns // scales.shape[1], axis=1)


def decoded(format, t, base):
    """The values of one matrix, float32."""
    scale = t[base + ".weight_scale"].astype(np.float32)
    if "mxfp4" in format:
        scale = np.exp2(scale - 127)
    if format == "nvfp4-modelopt":
        codes, scale = t[base + ".weight"], scale * t[base + ".weight_scale_2"]
    elif format == "mxfp4-quark":
        codes = t[base + ".weight"]
    elif format == "fp8-channel":
        return t[base + ".weight"] * scale
    else:
        codes = t[base + ".weight_packed"]
    if format == "nvfp4-ct":
        scale = scale / t[base + ".weight_global_scale"]
    if codes.dtype == np.uint8:
        values = E2M1[nibbles(codes)]
        return values * spread(scale, values.shape[1])
    return integers(t, base)


def integers(t, base):
    """The values of a matrix in the layout pack-quantized, float32."""
    codes, scale = t[base + ".weight_packed"], t[base + ".weight_scale"].astype(np.float32)
    rows, columns = (int(n) for n in t[base + ".weight_shape"])
    bits = 32 * codes.shape[1] // columns
    values = nibbles(codes, bits).astype(np.float32)
    assert values.shape == (rows, columns)
    zeros = 2.0 ** (bits - 1)
    if base + ".weight_zero_point" in t:
        packed = t[base + ".weight_zero_point"]
        zeros = spread(nibbles(packed.T.copy(), bits).T[:rows], columns)
    return (values - zeros).astype(np.float32) * spread(scale, columns)
