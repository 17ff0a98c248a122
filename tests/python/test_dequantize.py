"""Decoding equals the `gguf` package's, bit for bit, on random bytes and on special values."""

import gguf
import ml_dtypes
import numpy as np
import pytest

import minimax2 as mm
from minimax2.synth import FORMATS, synth

NAME = "output.weight"  # [512, 256] in the synthetic checkpoint
BLOCKS = [name for name, kind in FORMATS.items() if kind.block > 1]
# Where a block keeps its half floats, by the layouts of the GGUF specification.
HALVES = {"q8_0": (0,), "q4_0": (0,), "q5_0": (0,), "q2_k": (80, 82), "q3_k": (108,),
          "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "iq4_nl": (0,), "iq4_xs": (0,)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function of a GGUF format: the path of a small checkpoint in it."""
    folder = tmp_path_factory.mktemp("dequantize")

    def make(name):
        path = folder / f"{name}.gguf"
        if not path.exists():
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
    kind = FORMATS[name]
    blocks = random.integers(0, 256, (512 * 256 // kind.block, kind.nbytes), np.uint8)
    for at in HALVES[name]:
        values = halves(random, len(blocks)).astype("<f2")
        blocks[:, at:at + 2] = values.view(np.uint8).reshape(-1, 2)
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
        want = gguf.dequantize(data, kind)
    got, weight = decode(checkpoint(name), data)
    assert want.shape == got.shape == weight.shape == (512, 256)
    assert same_bits(got, want)
    assert same_bits(weight, want)
    if halves is finite:
        assert np.isfinite(want).all() and len(np.unique(want)) > 1000


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
