"""Random tensors in every format: codes drawn evenly, under scales of the wanted size.

Nothing is quantised: a block is random bytes with its scale put into place, so gigabytes take
seconds. The name of a tensor is part of the seed; the same arguments give the same bytes.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from minimax2.formats import FORMATS

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

CHUNK = 1 << 22  # elements drawn at once


class Spec(NamedTuple):
    """One tensor to draw."""

    name: str
    shape: tuple[int, ...]
    format: str
    """Of FORMATS, or of PLANES."""
    std: float = 0.0
    """Standard deviation of its values."""
    mean: float = 0.0
    values: tuple[int, ...] = ()
    """Instead of random ones."""

    @property
    def block(self) -> int:
        """Columns must be a multiple of it."""
        return FORMATS[self.format].block if self.format in FORMATS else 1

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        count = math.prod(self.shape)
        if self.format in PLANES:
            return count * PLANES[self.format].nbytes
        return count // self.block * FORMATS[self.format].nbytes


class Plane(NamedTuple):
    """A tensor of safetensors that alone is no matrix: codes, or scales."""

    safetensors: str
    """Its dtype."""
    nbytes: int
    """Of an element."""
    table: Callable[[float, float], Array] | None
    """uint8 [256] by standard deviation and mean: what to draw from; None: any bytes."""


# ---- Values to draw from ----

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
def _e4m3() -> Array:
    """float64 [127]: the values of the codes of E4M3 without a sign, ascending."""
    import numpy

    codes = numpy.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    values: Array = numpy.where(exponent, (8 + mantissa) * 2.0 ** (exponent - 10),
                                mantissa * 2.0 ** -9)
    return values


def _nearest_e4m3(wanted: Array) -> Array:
    """uint8: the codes of the values nearest to these."""
    import numpy

    nearest = numpy.abs(_e4m3() - numpy.abs(wanted)[:, None]).argmin(axis=1)
    codes: Array = (nearest | numpy.where(wanted < 0, 128, 0)).astype(numpy.uint8)
    return codes


def _e4m3_codes(std: float, mean: float) -> Array:
    """Of values that are normal around zero."""
    return _nearest_e4m3(_normal(256) * std)


def _e4m3_scales(std: float, mean: float) -> Array:
    """Of values spread evenly from 3/4 to 5/4 of the mean."""
    import numpy

    return _nearest_e4m3(mean * numpy.linspace(0.75, 1.25, 256))


def _e8m0_scales(std: float, mean: float) -> Array:
    """Of the powers of two beside the mean, so often that it is their root mean square."""
    import numpy

    low = math.floor(math.log2(mean))
    share = ((mean / 2.0 ** low) ** 2 - 1) / 3  # of the higher one
    codes: Array = numpy.full(256, low + 127, numpy.uint8)
    codes[:round(256 * share)] += 1
    return codes


def _zero_nibbles(std: float, mean: float) -> Array:
    """Two zero points each from 6 to 9."""
    import numpy

    codes: Array = (numpy.arange(256) & 0x33).astype(numpy.uint8) + 0x66
    return codes


def _zero_bytes(std: float, mean: float) -> Array:
    """Zero points from 96 to 159."""
    import numpy

    codes: Array = (numpy.arange(256) & 0x3f).astype(numpy.uint8) + 0x60
    return codes


PLANES = {
    "fp8": Plane("F8_E4M3", 1, _e4m3_codes),
    "e4m3_scale": Plane("F8_E4M3", 1, _e4m3_scales),
    "e8m0_scale": Plane("U8", 1, _e8m0_scales),
    "bytes": Plane("U8", 1, None),
    "words": Plane("I32", 4, None),
    "zero_nibbles": Plane("I32", 4, _zero_nibbles),
    "zero_bytes": Plane("I32", 4, _zero_bytes),
    "shape": Plane("I64", 8, None),
}


@cache
def e4m3_rms() -> float:
    """Root mean square of the plane "fp8" that is drawn with a deviation of 120."""
    import numpy

    codes = _e4m3_codes(120.0, 0.0)
    return float(numpy.sqrt((_e4m3()[codes & 127] ** 2).mean()))


@cache
def _pairs(table_of: Callable[[float, float], Array], std: float, mean: float) -> Array:
    """uint16 [65536]: every two entries of a table of bytes, to draw two at once."""
    import numpy

    table = table_of(std, mean)
    both: Array = numpy.empty((256, 256, 2), numpy.uint8)
    both[..., 0], both[..., 1] = table, table[:, None]
    return both.view(numpy.uint16).ravel()


@cache
def _halves(size: float, signs: bool) -> Array:
    """uint16 [256]: half floats from 3/4 to 5/4 of a size; every second one negative, if wanted."""
    import numpy

    values = size * numpy.linspace(0.75, 1.25, 256)
    if signs:
        values[1::2] *= -1
    bits: Array = values.astype("<f2").view("<u2")
    return bits


# ---- Drawing ----

def _random_bytes(random: np.random.Generator, count: int) -> Array:
    """uint8 [count]; by far the fastest way that numpy has."""
    import numpy

    words: Array = random.integers(0, 1 << 64, -(-count // 8), numpy.uint64)
    return words.view(numpy.uint8)[:count]


def _draw_plane(random: np.random.Generator, spec: Spec, count: int) -> Array:
    import numpy

    plane = PLANES[spec.format]
    nbytes = count * plane.nbytes
    if plane.table is None:
        return _random_bytes(random, nbytes)
    indices = _random_bytes(random, nbytes + nbytes % 2).view(numpy.uint16)
    drawn: Array = _pairs(plane.table, spec.std, spec.mean)[indices]
    return drawn.view(numpy.uint8)[:nbytes]


def _draw_plain(random: np.random.Generator, spec: Spec, count: int) -> Array:
    import numpy

    values: Array = spec.mean + spec.std * _normal(65536)
    if spec.format == "bf16":
        bits: Array = values.astype(numpy.float32).view(numpy.uint32)
        table: Array = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype("<u2")
    else:
        table = values.astype({"f32": "<f4", "f16": "<f2"}[spec.format])
    drawn: Array = table[_random_bytes(random, 2 * count).view(numpy.uint16)]
    return drawn


def _draw_blocks(random: np.random.Generator, spec: Spec, count: int) -> Array:
    """uint8 [blocks, bytes]: random codes under scales of the wanted size."""
    import numpy

    kind = FORMATS[spec.format]
    number = count // kind.block
    blocks: Array = _random_bytes(random, number * kind.nbytes).reshape(number, kind.nbytes)
    size = spec.std / kind.unit
    if spec.format == "mxfp4":
        blocks[:, 0] = _e8m0_scales(0.0, size)[blocks[:, 0]]
        return blocks
    if spec.format == "nvfp4":
        blocks[:, :4] = _e4m3_scales(0.0, size)[blocks[:, :4]]
        return blocks
    if spec.format == "q2_k":  # 4-bit scale and minimum alike
        blocks[:, :16] = (blocks[:, :16] & 15) * 17
    elif spec.format in ("q4_k", "q5_k"):  # 6-bit scales and minima alike, packed in 12 bytes
        blocks[:, 8:12] = blocks[:, 4:8]
        blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17
    elif spec.format == "tq2_0":  # nobody writes the fourth code
        codes = blocks[:, :64]
        codes &= ~((codes & codes << 1) & 0xaa)
    # Codes reach one further down than up: signs even that out where there are no minima.
    scales = _halves(size, kind.minimum_at is None)
    indices = _random_bytes(random, number)
    if kind.minimum_at is not None:
        _put(blocks, kind.minimum_at, _halves(size * kind.centre, False)[indices])
    if spec.format == "iq1_m":  # the half is spread over the highest bits of four words
        words: Array = blocks[:, 48:56].copy().view("<u2")
        parts = scales[indices][:, None] >> numpy.array([0, 4, 8, 12], "<u2")
        blocks[:, 48:56] = (words & 0xfff | (parts & 15) << 12).view(numpy.uint8)
    else:
        _put(blocks, kind.scale_at, scales[indices])
    return blocks


def _put(blocks: Array, at: int, halves: Array) -> None:
    import numpy

    blocks[:, at:at + 2] = halves.view(numpy.uint8).reshape(-1, 2)


def draw(spec: Spec, seed: int) -> Iterator[Array]:
    """The tensor's bytes, as arrays, chunk by chunk."""
    import numpy

    if spec.values:
        yield numpy.array(spec.values, "<i8")
        return
    random = numpy.random.Generator(numpy.random.SFC64([seed, zlib.crc32(spec.name.encode())]))
    rows, columns = math.prod(spec.shape[:-1]), math.prod(spec.shape[-1:])
    step = max(1, CHUNK // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first) * columns
        if spec.format in PLANES:
            yield _draw_plane(random, spec, count)
        elif spec.block == 1:
            yield _draw_plain(random, spec, count)
        else:
            yield _draw_blocks(random, spec, count)
