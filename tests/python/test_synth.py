"""Random checkpoints: the right shapes and deviations, repeatable, and nothing left on failure."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

import minimax2 as mm
from layouts import decoded, tensors_of
from minimax2 import cli, drawing, writing
from minimax2.formats import FORMATS, LAYOUTS, MIXES, NAMES
from minimax2.synth import synth

SMALL = dict(like="tiny", layers=1)
PROMPT = [257, 101, 32, 99, 97, 116, 32, 32, 115, 97, 116]


@pytest.mark.parametrize("format", ["fp8", *FORMATS, *MIXES])
def test_weights_have_the_wanted_deviation(tmp_path, format):
    path = tmp_path / ("m" if format == "fp8" else "m.gguf")
    seen = []
    size = synth(path, like="tiny", layers=8 if format in MIXES else 2, format=format,
                 progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and sorted(seen) == seen
    assert size == sum(f.stat().st_size for f in ([path] if path.is_file() else path.iterdir()))
    with mm.load(path) as model:
        assert model.nbytes == seen[-1][1]
        for name in model:
            shape = model[name].shape
            values = model.weight(name).numpy()
            assert np.isfinite(values).all()
            if "norm" in name:
                assert abs(values.mean() - 1) < 0.05 and values.std() < 0.2
            elif len(shape) > 1 and "scale_inv" not in name:
                want = 1.0 if "emb" in name else 1 / math.sqrt(shape[-1])
                tolerance = 0.2 if format == "fp8" else 0.1  # FP8: few scales, drawn themselves
                assert abs(values.std() / want - 1) < tolerance, name
                assert abs(values.mean()) < 0.1 * want, name
        logits = model(PROMPT).numpy()
        assert np.isfinite(logits).all() and 0.5 < logits.std() < 2


RULES = {  # of eight layers: {part: {format: layers}}; what is not named is of the first format
    "q4_k_m": ("q4_k", {"output": "q6_k", "attn_v": {"q6_k": {0, 3, 6, 7}},
                        "ffn_down_exps": {"q6_k": {0, 3, 6, 7}}}),
    "q4_0_imatrix": ("q4_0", {"output": "q6_k", "ffn_down_exps": {"q4_1": {0}}}),
    "mxfp4_moe": ("q8_0", {"ffn_gate_exps": "mxfp4", "ffn_up_exps": "mxfp4",
                           "ffn_down_exps": "mxfp4"}),
    "iq1_m_mix": ("iq1_m", {"output": "q5_k", "token_embd": "q2_k", "attn_v": "q4_k",
                            "attn_output": "iq2_xxs", "ffn_down_exps": {"q2_k": {0}}}),
    "iq2_m": ("iq2_s", {"output": "q5_k", "token_embd": "iq3_s", "attn_v": "q4_k",
                        "attn_output": "iq3_s", "ffn_down_exps": {"iq3_s": {0}}}),
    "iq3_xs": ("iq3_s", {"output": "q6_k", "attn_v": "q4_k",
                         "ffn_gate_exps": {"iq3_xxs": {1, 2, 3, 4, 5, 6}},
                         "ffn_up_exps": {"iq3_xxs": {1, 2, 3, 4, 5, 6}}}),
    "ud-iq3_s": ("q6_k", {"ffn_gate_exps": "iq2_s", "ffn_up_exps": "iq2_s",
                          "ffn_down_exps": "iq3_s"}),
}


@pytest.mark.parametrize("format", [name for name in RULES if name in MIXES])
def test_a_mix_is_that_of_the_downloads(tmp_path, format):
    base, rules = RULES[format]
    path = tmp_path / "m.gguf"
    synth(path, like="tiny", layers=8, format=format)
    with mm.load(path) as model:
        for name in model:
            match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(?:weight|bias)", name)
            rule = rules.get(match[2], base)
            if isinstance(rule, dict):
                rule = next((kind for kind, layers in rule.items() if int(match[1]) in layers),
                            base)
            if "norm" in name or match[2] in ("ffn_gate_inp", "exp_probs_b"):
                rule = "f32"
            assert model[name].dtype == rule, name


# ---- Layouts of safetensors ----

@pytest.mark.parametrize("format", [name for name in LAYOUTS if name != "fp8"])
def test_layouts_hold_the_wanted_values(tmp_path, format):
    path = tmp_path / "m"
    synth(path, **SMALL, format=format)
    tensors = tensors_of(path)
    bases = {name.rpartition(".weight_scale")[0] for name in tensors if "weight_scale" in name}
    experts = {base for base in bases if ".experts." in base}
    attention = {base for base in bases if ".self_attn." in base}
    assert len(experts) == 24 and bases == experts | attention
    assert len(attention) == (0 if format in ("nvfp4-modelopt", "mxfp4-quark") else 4)
    for base in bases:
        values = decoded(format, tensors, base)
        assert abs(values.std() * math.sqrt(values.shape[1]) - 1) < 0.05, base
        assert abs(values.mean() / values.std()) < 0.13, base
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    left = {name.removesuffix(".weight") for name in tensors if name.endswith((
        "gate.weight", "lm_head.weight", "q_proj.weight"))} - bases
    assert left <= set(config.get("ignore", config.get("exclude")))


@pytest.mark.parametrize("format", [name for name in LAYOUTS if name != "fp8"])
def test_layouts_open(tmp_path, format):
    """The library decodes what the formulas say; a negative zero counts as zero."""
    path = tmp_path / "m"
    synth(path, **SMALL, format=format)
    tensors = tensors_of(path)
    with mm.load(path) as model:
        for part in "block_sparse_moe.experts.1.w2", "self_attn.k_proj":
            base = "model.layers.0." + part
            ends = (base + ".weight_packed", base + ".weight")
            name = next(end for end in ends if end in tensors)
            if base + ".weight_scale" in tensors:
                made = model.weight(name).numpy()
                assert (made == decoded(format, tensors, base)).all()
        logits = model(PROMPT).numpy()
        assert np.isfinite(logits).all() and 0.5 < logits.std() < 2


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    def content(path):
        return {f.name: f.read_bytes() for f in path.iterdir()}

    synth(tmp_path / "a", **SMALL)
    synth(tmp_path / "b", **SMALL)
    synth(tmp_path / "c", **SMALL, seed=1)
    synth(tmp_path / "d", **SMALL, shard=100_000)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")
    with mm.load(tmp_path / "a") as whole, mm.load(tmp_path / "d") as sharded:
        assert {n: bytes(memoryview(whole[n]).cast("B")) for n in whole} == {
            n: bytes(memoryview(sharded[n]).cast("B")) for n in sharded}


def test_chunks_do_not_change_the_shape(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "CHUNK", 4096)
    synth(tmp_path / "m.gguf", **SMALL, format="q5_k")
    with mm.load(tmp_path / "m.gguf") as model:
        assert np.isfinite(model(PROMPT).numpy()).all()


def test_real_widths(tmp_path):
    """The shapes of MiniMax-M2, but for the number of layers, experts and words."""
    synth(tmp_path / "m2", layers=1, experts=2, experts_per_token=1, vocab=300)
    with mm.load(tmp_path / "m2") as model:
        config = model.config
        assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
                config.head_dim, config.rotary_dim, config.intermediate_size,
                config.max_position_embeddings) == (3072, 48, 8, 128, 64, 1536, 196608)
        name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
        assert model[name].shape == (3072, 1536)
        assert model[name + "_scale_inv"].shape == (24, 12)


@pytest.mark.parametrize("change, words", [
    (dict(like="m3"), "like is 'm3'"),
    (dict(format="q4_2"), "format is 'q4_2', expected one of f32, f16, .*nvfp4-modelopt"),
    (dict(layers=0), "layers is 0"), (dict(hidden=-1), "hidden is -1"),
    (dict(hidden=2.5), "hidden is 2.5"), (dict(experts=True), "experts is True"),
    (dict(heads=3, kv_heads=2), "3 heads"), (dict(head_dim=24), "head_dim is 24"),
    (dict(experts_per_token=9), "9 experts per token of 8"),
    (dict(container="zip"), "container is 'zip'"),
    (dict(container="gguf", format="f32"), "must end in .gguf"),
    (dict(container="safetensors", format="q8_0"), "safetensors has no format q8_0"),
    (dict(format="q8_0"), "must end in .gguf"),
])
def test_wrong_arguments(tmp_path, change, words):
    with pytest.raises(mm.ArgumentError, match=words):
        synth(tmp_path / "m", **{**SMALL, **change})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change, words", [
    (dict(format="fp8"), "gguf has no format fp8"), (dict(vocab=100), "vocab is 100"),
    (dict(hidden=288, format="q4_k"), "288 columns: q4_k needs a multiple of 256"),
    (dict(format="w4a16"), "gguf has no format w4a16"),
])
def test_wrong_arguments_for_gguf(tmp_path, change, words):
    with pytest.raises(mm.ArgumentError, match=words):
        synth(tmp_path / "m.gguf", **{**SMALL, "format": "q8_0", **change})
    assert list(tmp_path.iterdir()) == []


def test_what_exists_stays(tmp_path):
    full, file, empty = tmp_path / "full", tmp_path / "file.gguf", tmp_path / "empty"
    full.mkdir()
    (full / "precious").write_text("x")
    file.write_text("precious")
    empty.mkdir()
    (tmp_path / "empty.gguf").touch()
    for path in full, file:
        with pytest.raises(mm.FileError, match="exists"):
            synth(path, **SMALL, format="bf16")
    with pytest.raises(mm.FileError, match="no such directory"):
        synth(tmp_path / "no/where", **SMALL)
    assert (full / "precious").read_text() == "x" and file.read_text() == "precious"
    synth(empty, **SMALL)
    synth(tmp_path / "empty.gguf", **SMALL, format="bf16")
    mm.load(empty).close()
    mm.load(tmp_path / "empty.gguf").close()


@pytest.mark.parametrize("name", ["m", "m.gguf"])
def test_a_failure_leaves_nothing(tmp_path, name):
    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synth(tmp_path / name, **SMALL, format="bf16", progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m", "m.gguf"])
def test_a_disk_that_is_full_is_a_sentence(tmp_path, name):
    """A limit on the size of files fails a write as a full disk does."""
    code = ("import resource, sys; from minimax2.cli import main; "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); sys.exit(main())")
    done = subprocess.run(
        [sys.executable, "-c", code, "synth", tmp_path / name, "--like", "tiny", "--format",
         "bf16"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == (
        f"minimax2: error: {tmp_path / name}: File too large, of 0.0 GB; nothing is left of it\n")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_named(tmp_path):
    (tmp_path / "m.partial").mkdir()
    with pytest.raises(mm.FileError, match="m.partial: exists: another run writes it, or one was"):
        synth(tmp_path / "m", **SMALL)
    assert (tmp_path / "m.partial").is_dir()


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(writing.shutil, "disk_usage",
                        lambda path: type("", (), {"free": 10}))
    with pytest.raises(mm.FileError, match="0.0 GB are free"):
        synth(tmp_path / "m", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [
    "{}", "[]", "not JSON", '{"model": {"vocab": [], "merges": []}}',
    '{"model": {"vocab": {"a": "0"}, "merges": []}}', '{"model": {"vocab": {}, "merges": []}}',
])
def test_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(mm.ArgumentError, match="tokenizer.json"):
        synth(tmp_path / "m", **SMALL, tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(
        {"model": {"vocab": {"a": 512}, "merges": []}}))
    with pytest.raises(mm.ArgumentError, match="token ids reach 512"):
        synth(tmp_path / "m", **SMALL, tokenizer=tmp_path)


def test_the_command(tmp_path, capsys):
    path = tmp_path / "m.gguf"
    assert cli.main(["synth", str(path), "--like", "tiny", "--layers", "1", "--format", "q8_0",
                     "--experts-per-token", "1"]) == 0
    assert str(path) in capsys.readouterr().out
    with mm.load(path) as model:
        assert model.config.num_experts_per_tok == 1
    assert cli.main(["synth", str(path), "--like", "tiny", "--format", "q8_0"]) == 1
    assert "exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["synth", "--help"])
    listing = capsys.readouterr().out.replace(",", " ").split()
    assert set(NAMES) <= set(listing)


@pytest.mark.parametrize("format", [*FORMATS, *MIXES])
def test_llama_cpp_agrees(tmp_path, format):
    """llama.cpp opens the file, splits text alike, and computes much the same logits."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = tmp_path / "m.gguf"
    synth(path, like="tiny", layers=2, format=format)
    other = llama_cpp.Llama(model_path=str(path), n_ctx=64, n_threads=1, logits_all=True,
                            type_k=0, type_v=0, verbose=False)
    with mm.load(path) as model:
        text = "the  cat sat"
        ids = model.tokenizer.encode(text)
        assert ids == other.tokenize(text.encode(), add_bos=False, special=False)
        other.eval(ids)
        theirs = np.array(other.scores[:len(ids)])
        ours = np.array([model(ids[:n + 1]).numpy() for n in range(len(ids))])
    other.close()
    assert np.isfinite(theirs).all()
    # Rounding differs, and now and then it tips the choice of an expert: the median counts.
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs)]
    assert np.median(alike) > 0.999
