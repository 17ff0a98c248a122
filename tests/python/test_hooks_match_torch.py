"""Writing into a tap is what a forward hook of PyTorch does.

The golden logits come from transformers with a hook that adds a vector to what a decoder layer
returns (tests/golden/make_golden.py); here the same vector is added at the point resid_post.
"""

import pathlib
import sys

import minimax2 as mm
import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import checkpoints  # noqa: E402
from checkpoints import CASES, HOOK_LAYER, HOOKED, PROMPTS  # noqa: E402

TOLERANCE = 1e-5  # of the largest logit
TINY = pathlib.Path(mm.__file__).parent / "m2-tiny"


def hooked_logits(model, ids, vector, chunk):
    """float32 [n, vocab_size] with `vector` added to the stream after layer HOOK_LAYER."""
    rows = []
    with model.session(context=len(ids), chunk=chunk, kv_dtype="f32") as session:
        for tap in session.trace(ids, points=["resid_post", "logits"]):
            if tap.point == "logits":
                rows.append(np.array(tap.tensor.numpy()))
            elif tap.layer == HOOK_LAYER:
                stream = tap.tensor.numpy()
                stream += vector
    return np.concatenate(rows)


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_added_vector(tmp_path, chunk):
    case, n = CASES[HOOKED], PROMPTS[0]
    ids = checkpoints.prompt(case, n)
    with np.load(GOLDEN / f"{HOOKED}.npz") as golden:
        plain, theirs = golden[f"logits_{n}"], golden[f"hooked_{n}"]
    assert np.abs(theirs - plain).max() > 0.1 * np.abs(plain).max(), "the hook changes little"
    with mm.load(checkpoints.write_checkpoint(case, tmp_path), threads=2,
                 precision="exact") as model:
        assert_close(hooked_logits(model, ids, checkpoints.hook_vector(case), chunk), theirs)
        assert_close(hooked_logits(model, ids, np.float32(0), chunk), plain)


def test_added_vector_in_m2_tiny():
    with np.load(GOLDEN / "m2-tiny.npz") as golden, mm.load(
            TINY, threads=2, precision="exact") as model:
        step = model.config.vocab_size // golden["hooked_0"].shape[1]
        ours = hooked_logits(model, golden["prompt_0"], golden["vector"], 64)
        assert_close(ours[:, ::step], golden["hooked_0"])
        assert np.abs(golden["hooked_0"] - golden["columns_0"]).max() > 0.1
