"""precision="exact": float32 products by the weights' own values, whatever their format.

A checkpoint in every format, and the same values as plain float32, decoded by the `gguf` package or
by numpy. Both are run by the library; the F32 kernels are held to transformers by test_golden.py.
"""

import pathlib
import sys

import gguf
import minimax2 as mm
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
import checkpoints  # noqa: E402
import gguf_file  # noqa: E402
from make_hashes import CASE, IDS, PLAIN, QUANTISED, write  # noqa: E402

TOLERANCE = 1e-4  # of the largest logit


def as_f32(kind, path, directory):
    """The checkpoint at `path` with decoded weights, as a GGUF file of F32; returns its path."""
    if kind in PLAIN:
        tensors = checkpoints.decoded(path)
        entries = gguf_file.quantised(CASE.config(), tensors, gguf_file.F32)
    else:
        number = gguf.GGMLQuantizationType[kind]
        entries = ((name, gguf_file.dequantize(data, chosen), gguf_file.F32)
                   for name, data, chosen in gguf_file.drawn(CASE, number))
    return gguf_file.write(directory / "f32.gguf", CASE.config(), entries)


def all_logits(model):
    """float32 [n, vocab_size]; keys and values in float32, too."""
    with model.session(context=len(IDS), chunk=64, kv_dtype="f32") as session:
        taps = session.trace(IDS, points=["logits"])
        return np.concatenate([np.array(tap.tensor.numpy()) for tap in taps])


def excess(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("kind", [k for k in (*PLAIN, *QUANTISED) if k not in ("F32", "F16")])
def test_equals_the_decoded_model(tmp_path, kind):
    path = write(kind, tmp_path)
    with mm.load(as_f32(kind, path, tmp_path), threads=2) as model:
        theirs = all_logits(model)
    with mm.load(path, threads=2, precision="exact") as model:
        assert model.info("precision") == "exact"
        exact = all_logits(model)
    with mm.load(path, threads=2) as model:
        assert model.info("precision") == "fast"
        fast = all_logits(model)
    print(f"exact {excess(exact, theirs):.1e}, fast {excess(fast, theirs):.1e}")
    assert excess(exact, theirs) <= TOLERANCE < excess(fast, theirs)


def test_blas_is_exact_too(tmp_path):
    try:
        opened = mm.load(write("Q4_K", tmp_path), isa="blas", precision="exact")
    except mm.UnsupportedError as error:
        pytest.skip(str(error))
    with opened as model, mm.load(opened.path, isa="ref", precision="exact") as ref:
        assert excess(all_logits(model), all_logits(ref)) <= TOLERANCE
