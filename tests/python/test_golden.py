"""Logits, routing and residual streams against transformers' MiniMaxM2ForCausalLM.

tests/golden/make_golden.py computed the values (float32, eager); here every checkpoint is written
again from its seed and run by the library. KV cache in float32 and precision "exact": the default
BF16 cache and bf16 activations are choices of storage, not of mathematics. What the latter cost is
measured by the tests of the fast precision.
"""

import json
import pathlib
import sys

import minimax2 as mm
import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import checkpoints  # noqa: E402
import gguf_file  # noqa: E402
from checkpoints import CASES, PROMPTS  # noqa: E402

TOLERANCE = 1e-5  # of the largest logit; what float32 costs is about 1e-6
FAST = 1e-2  # the same for bf16 activations, whose 8 bits cost about 2e-3
SHORT, LONG = PROMPTS
LEVELS = ("ref", "avx2", "avx512", "amx")
LEVELS = LEVELS[: LEVELS.index(mm.cpu().split()[0]) + 1]
BOOK = json.loads((GOLDEN / "golden.json").read_text())
SMALL = [name for name in CASES if name != "full-width"]
TINY = pathlib.Path(mm.__file__).parent / "m2-tiny"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Case name -> its checkpoint on disk, written at first use."""
    written = {}

    def get(name):
        if name not in written:
            written[name] = checkpoints.write_checkpoint(CASES[name], tmp_path_factory.mktemp(name))
        return written[name]

    return get


@pytest.fixture(scope="module")
def model(directory):
    """(case name, level) -> an open model."""
    opened = {}

    def get(name, isa):
        if (name, isa) not in opened:
            opened[name, isa] = mm.load(directory(name), isa=isa, threads=2, precision="exact")
        return opened[name, isa]

    yield get
    for each in opened.values():
        each.close()


def golden(name):
    return np.load(GOLDEN / f"{name}.npz")


def all_logits(model, ids, chunk):
    """float32 [n, vocab_size] of a prompt that goes through the layers `chunk` tokens at a time."""
    with model.session(context=len(ids), chunk=chunk, kv_dtype="f32") as session:
        taps = session.trace(ids, points=["logits"])
        return np.concatenate([np.array(tap.tensor.numpy()) for tap in taps])


def decoded_logits(model, ids):
    """The same, one token at a time, as generation does it."""
    with model.session(context=len(ids), kv_dtype="f32") as session:
        rows = []
        for token in ids:
            session.feed([int(token)]).run()
            rows.append(np.array(session.logits.numpy()))
        return np.stack(rows)


def assert_same_logits(ours, theirs):
    """Within the tolerance at every position, and the same best token wherever the two best differ
    by more than the tolerance."""
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    allowed = TOLERANCE * np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= allowed
    second, best = np.sort(theirs, 1)[:, -2:].T
    clear = best - second > 2 * allowed
    assert (ours.argmax(1) == theirs.argmax(1))[clear].all()


def lengths(name, isa):
    """Prompt lengths that are worth the time: the reference level is slow, and test_same_bits.py
    holds the others to its bits."""
    return PROMPTS if isa != "ref" or name in ("half", "mha", "twins") else PROMPTS[:1]


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("name", SMALL)
def test_prefill_at_once(model, name, isa):
    for n in lengths(name, isa):
        ours = all_logits(model(name, isa), checkpoints.prompt(CASES[name], n), chunk=LONG)
        assert_same_logits(ours, golden(name)[f"logits_{n}"])


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("name", SMALL)
def test_prefill_in_chunks_of_seven(model, name, isa):
    n = lengths(name, isa)[-1]
    ours = all_logits(model(name, isa), checkpoints.prompt(CASES[name], n), chunk=7)
    assert_same_logits(ours, golden(name)[f"logits_{n}"])


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("name", SMALL)
def test_decode_token_by_token(model, name, isa):
    n = lengths(name, isa)[-1]
    ours = decoded_logits(model(name, isa), checkpoints.prompt(CASES[name], n))
    assert_same_logits(ours, golden(name)[f"logits_{n}"])


@pytest.mark.parametrize("isa", LEVELS)
def test_full_width(model, isa):
    """The family's own widths, one layer; the slow reference level sees three positions."""
    case, m = CASES["full-width"], model("full-width", isa)
    n = 3 if isa == "ref" else SHORT
    ids = checkpoints.prompt(case, SHORT)[:n]
    theirs = golden("full-width")[f"logits_{SHORT}"][:n]
    assert_same_logits(all_logits(m, ids, chunk=n), theirs)
    assert_same_logits(decoded_logits(m, ids), theirs)
    if isa != "ref":
        ids = checkpoints.prompt(case, LONG)
        assert_same_logits(all_logits(m, ids, chunk=256), golden("full-width")[f"logits_{LONG}"])


@pytest.mark.parametrize("name", CASES)
def test_experts_and_streams_of_every_layer(model, name):
    """The same experts at every position of every layer, and the same residual stream behind it."""
    case, m = CASES[name], model(name, LEVELS[-1])
    with golden(name) as theirs, m.session(chunk=64, kv_dtype="f32") as session:
        chosen = [[] for _ in range(case.num_hidden_layers)]
        streams = np.empty((case.num_hidden_layers, case.hidden_size), np.float32)
        ids = checkpoints.prompt(case, LONG)
        for tap in session.trace(ids, points=["expert_indices", "resid_post"]):
            if tap.point == "expert_indices":
                chosen[tap.layer].append(np.array(tap.tensor.numpy()))
            else:
                streams[tap.layer] = tap.tensor.numpy()[-1]
        chosen = np.array([np.concatenate(parts) for parts in chosen])
        np.testing.assert_array_equal(chosen, theirs[f"experts_{LONG}"])
        for ours, other in zip(streams, theirs[f"stream_{LONG}"], strict=True):
            assert np.abs(ours - other).max() <= TOLERANCE * np.abs(other).max()


@pytest.mark.parametrize("name", ["half", "quarter"])
def test_fused_experts(tmp_path, model, name):
    """The layout that transformers has in memory: the same model, hence the same bits."""
    case = CASES[name]
    checkpoints.write_checkpoint(case, tmp_path, entries=checkpoints.fused(case))
    names = checkpoints.read_safetensors(tmp_path / "model.safetensors").keys()
    inside = BOOK["transformers' save_pretrained"]["names inside the model"]
    assert inside == sorted(n for n in names if ".layers.0.mlp" in n)
    ids = checkpoints.prompt(case, SHORT)
    with mm.load(tmp_path, isa=LEVELS[-1], threads=2, precision="exact") as fused:
        ours = all_logits(fused, ids, chunk=64)
    assert_same_logits(ours, golden(name)[f"logits_{SHORT}"])
    np.testing.assert_array_equal(ours, all_logits(model(name, LEVELS[-1]), ids, chunk=64))


@pytest.mark.parametrize("name", ["half", "quarter"])
def test_gguf(tmp_path, model, name):
    """The same values in a GGUF file: the same model, hence the same bits."""
    case = CASES[name]
    tensors = checkpoints.decoded(model(name, LEVELS[-1]).path)
    entries = gguf_file.quantised(case.config(), tensors, gguf_file.F32)
    path = gguf_file.write(tmp_path / "model.gguf", case.config(), entries)
    ids = checkpoints.prompt(case, SHORT)
    with mm.load(path, isa=LEVELS[-1], threads=2) as m:
        ours = all_logits(m, ids, chunk=64)
    assert_same_logits(ours, golden(name)[f"logits_{SHORT}"])
    np.testing.assert_array_equal(ours, all_logits(model(name, LEVELS[-1]), ids, chunk=64))


def test_configuration_as_transformers_saves_it(tmp_path):
    """save_pretrained of transformers 5 writes rope_parameters instead of rope_theta, and the
    vendor's tensor names."""
    case, saved = CASES["half"], BOOK["transformers' save_pretrained"]
    checkpoints.write_checkpoint(case, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(saved["config"]))
    names = checkpoints.read_safetensors(tmp_path / "model.safetensors").keys()
    assert saved["tensors of layer 0"] == sorted(n for n in names if ".layers.0." in n)
    with mm.load(tmp_path, isa=LEVELS[-1], threads=2) as m:
        assert m.config.rope_theta == case.rope_theta and m.config.rotary_dim == case.rotary_dim
        ours = all_logits(m, checkpoints.prompt(case, SHORT), chunk=64)
    assert_same_logits(ours, golden("half")[f"logits_{SHORT}"])


@pytest.mark.parametrize("isa", LEVELS)
def test_m2_tiny(isa):
    """A trained model: FP8 files here, their dequantised float32 values in transformers."""
    theirs = golden("m2-tiny")
    told = BOOK["cases"]["m2-tiny"]
    assert checkpoints.fingerprint(TINY) == told["weights"], "m2-tiny changed: run `make golden`"
    with mm.load(TINY, isa=isa, threads=2, precision="exact") as m:
        step = m.config.vocab_size // theirs["columns_0"].shape[1]
        for i in range(3):
            n = 20 if isa == "ref" else None
            ours = all_logits(m, theirs[f"prompt_{i}"][:n], chunk=64)
            allowed = TOLERANCE * told["largest logit"]
            assert np.abs(ours[:, ::step] - theirs[f"columns_{i}"][:n]).max() <= allowed
            sums, width = ours.sum(1, dtype=np.float64), m.config.vocab_size
            assert np.abs(sums - theirs[f"sums_{i}"][:n]).max() <= allowed * width**0.5
            second, best = np.sort(ours, 1)[:, -2:].T
            clear = best - second > 2 * allowed
            assert (ours.argmax(1) == theirs[f"best_{i}"][:n])[clear].all()


@pytest.mark.parametrize("name", ["fp8", "full-width"])
def test_fast_precision(directory, name):
    """FP8 and BF16 weights with bf16 activations. That rounding may choose another expert where two
    are close, in one position of a hundred at most."""
    theirs = golden(name)[f"logits_{LONG}"]
    with mm.load(directory(name), threads=2) as m:
        ours = all_logits(m, checkpoints.prompt(CASES[name], LONG), chunk=64)
    off = np.abs(ours - theirs).max(1) / np.abs(theirs).max()
    print(f"median {np.median(off):.1e}, largest {off.max():.1e}")
    assert TOLERANCE < np.median(off) <= FAST / 2
    assert (off > FAST).mean() <= 0.01


def test_fast_precision_of_m2_tiny():
    theirs = golden("m2-tiny")
    with mm.load(TINY, threads=2) as m:
        for i in range(3):
            ours = all_logits(m, theirs[f"prompt_{i}"], chunk=64)
            assert (ours.argmax(1) == theirs[f"best_{i}"]).mean() >= 0.99
