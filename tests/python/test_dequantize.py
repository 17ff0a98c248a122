"""Decoding equals the `gguf` package's, bit for bit, on random bytes and on special values."""

import pathlib
import sys

import gguf
import ml_dtypes
import numpy as np
import pytest

import minimax2 as mm
from minimax2.synth import synth

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
import checkpoints  # noqa: E402
import gguf_file  # noqa: E402

NAME = "output.weight"  # [512, 256] in the synthetic checkpoint and in CASE
BLOCKS = [name.lower() for name in gguf_file.SCALES]
CASE = checkpoints.Case(
    "dequantize", hidden_size=256, num_attention_heads=2, num_key_value_heads=1, head_dim=128,
    rotary_dim=64, num_local_experts=2, num_experts_per_tok=1, intermediate_size=256,
    num_hidden_layers=1, vocab_size=512, rope_theta=5e6, rms_norm_eps=1e-6, seed=302)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function of a GGUF format: the path of a small checkpoint in it."""
    folder = tmp_path_factory.mktemp("dequantize")

    def make(name):
        path = folder / f"{name}.gguf"
        if name in BLOCKS:
            blocks = gguf_file.drawn(CASE, gguf.GGMLQuantizationType[name.upper()])
            gguf_file.write(path, CASE.config(), blocks)
        elif not path.exists():
            synth(path, like="tiny", layers=1, format=name)
        return path

    return make


def raw_bytes(tensor):
    return np.frombuffer(memoryview(tensor).cast("B"), np.uint8)


def decode(path, data):
    """The tensor NAME with its bytes replaced: float32 by Tensor.float() and by Model.weight()."""
    with mm.load(path, writable=True) as model:
        tensor = model[NAME]
        memoryview(tensor).cast("B")[:] = data.tobytes()
        assert (raw_bytes(tensor) == data.ravel()).all()
        return tensor.float().numpy().copy(), model.weight(NAME).numpy().copy()


def same_bits(a, b):
    """Equal bits; any NaN equals any NaN."""
    a, b = np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32)
    nan = (a & 0x7fffffff) > 0x7f800000
    return bool((nan == ((b & 0x7fffffff) > 0x7f800000)).all() and (a == b)[~nan].all())


def random_blocks(name, seed, halves):
    """Random bytes [512 rows, bytes] with the half floats drawn by `halves(random, count)`."""
    random = np.random.default_rng(seed)
    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    blocks = random.integers(0, 256, (512 * 256 // size, nbytes), np.uint8)
    for at in gguf_file.SCALES[name.upper()]:
        gguf_file.set_halves(name.upper(), blocks, at, halves(random, len(blocks)))
    return blocks.reshape(512, -1)


def finite(random, count):
    bits = random.integers(0, 65536, count, np.uint16)
    bits[(bits & 0x7c00) == 0x7c00] ^= 0x4000
    return bits.view(np.float16)


def special(random, count):
    """Zeros of both signs, the smallest and largest numbers, infinities and NaN."""
    bits = np.array([0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00],
                    np.uint16)
    return random.choice(bits, count).view(np.float16)


@pytest.mark.parametrize("halves", [finite, special])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(checkpoint, name, halves):
    data = random_blocks(name, 1, halves)
    kind = gguf.GGMLQuantizationType[name.upper()]
    with np.errstate(all="ignore"):
        want = gguf_file.dequantize(data, kind)
    got, weight = decode(checkpoint(name), data)
    assert want.shape == got.shape == weight.shape == (512, 256)
    assert same_bits(got, want)
    assert same_bits(weight, want)
    if halves is finite:
        assert np.isfinite(want).all()
        assert len(np.unique(want)) > (100 if name in ("mxfp4", "nvfp4") else 1000)


@pytest.mark.parametrize("name, scales", [("mxfp4", 1), ("nvfp4", 4)])
def test_every_scale_of_8_bits(checkpoint, name, scales):
    """With every code: subnormal numbers, overflow, the codes of NaN, the sign that is ignored."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(5).integers(0, 256, (512 * 256 // size, nbytes), np.uint8)
    blocks[:, :scales] = np.arange(len(blocks) * scales).reshape(-1, scales) % 256
    with np.errstate(all="ignore"):
        want = gguf.dequantize(blocks.reshape(512, -1), kind)
    for got in decode(checkpoint(name), blocks):
        assert same_bits(got, want)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name[:3] in ("iq1", "iq2", "iq3")])
def test_every_row_of_a_grid(checkpoint, name):
    """65,536 random rows of at most 2,048: none of them is missing."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    path = checkpoint(name)
    for seed in range(4):
        data = random_blocks(name, 3 + seed, lambda random, count: np.ones(count))
        assert same_bits(decode(path, data)[0], gguf.dequantize(data, kind))


@pytest.mark.parametrize("name, dtype", [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_every_half(checkpoint, name, dtype):
    codes = np.tile(np.arange(65536, dtype=np.uint16), 2).reshape(512, 256)
    with np.errstate(all="ignore"):
        want = codes.view(dtype).astype(np.float32)
    for got in decode(checkpoint(name), codes.view(np.uint8)):
        assert same_bits(got, want)


def test_f32_as_it_is(checkpoint):
    bits = np.random.default_rng(2).integers(0, 2**32, (512, 256), np.uint32)
    for got in decode(checkpoint("f32"), bits.view(np.uint8)):
        assert (np.ascontiguousarray(got).view(np.uint32) == bits).all()


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    path = tmp_path_factory.mktemp("dequantize") / "fp8"
    synth(path, like="tiny", layers=1, hidden=208, expert_size=336)  # ragged: no multiples of 128
    return path


def test_every_fp8_code(fp8):
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    with mm.load(fp8, writable=True) as model:
        tensor = model[name]
        codes = np.resize(np.arange(256, dtype=np.uint8), tensor.shape)
        memoryview(tensor).cast("B")[:] = codes.tobytes()
        want = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        assert same_bits(tensor.float().numpy(), want)
        assert np.isnan(want).sum() == 2 * (codes == 127).sum()


def test_fp8_scales(fp8):
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    with mm.load(fp8) as model:
        codes = raw_bytes(model[name]).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        scale = np.asarray(memoryview(model[name + "_scale_inv"]))
        rows, columns = model[name].shape
        assert scale.shape == (3, 2) and (rows, columns) == (336, 208)
        wide = scale.repeat(128, 0)[:rows].repeat(128, 1)[:, :columns]
        want = codes.reshape(rows, columns) * wide
        assert same_bits(model.weight(name).numpy(), want)
        assert same_bits(model.weight(name, 120, 20).numpy(), want[120:140])
        for first, count in [(-1, 1), (rows, 1), (0, rows + 1), (0, -1), (2**62, 2**62)]:
            with pytest.raises(mm.ArgumentError):
                model.weight(name, first, count)
