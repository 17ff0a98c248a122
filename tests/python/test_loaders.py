"""Checkpoints of both containers open, say the right facts, and hold the right tensors."""

import json
import os
import re
import resource
import shutil
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy

import minimax2 as mm
from containers import (Gguf, Info, change_json, f32, read_safetensors, split_gguf, string,
                        write_safetensors)
from minimax2 import synth as synth_module
from minimax2.synth import NAMES, FORMATS, synth

ROOT = Path(__file__).resolve().parents[2]
VENDOR = Path(os.environ.get("MINIMAX2_VENDOR_DATA", ROOT.parent / "shared/data/minimax-m2"))
PROMPT = [101, 32, 99, 97, 116, 257]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function of a format (and container): the path of a small checkpoint, made once."""
    folder = tmp_path_factory.mktemp("made")

    def make(format, container=None):
        path = folder / f"{format}-{container}"
        if container == "gguf":
            path = path.with_suffix(".gguf")
        if not path.exists():
            synth(path, like="tiny", format=format, container=container)
        return path

    return make


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the FP8 checkpoint that a test may change."""
    return Path(shutil.copytree(made("fp8"), tmp_path / "copy"))


def raw(tensor):
    return bytes(memoryview(tensor).cast("B"))


def logits(path, **options):
    with mm.load(path, threads=1, **options) as model:
        return raw(model(PROMPT))


# ---- Both containers ----

@pytest.mark.parametrize("format", [f for f in NAMES if f in FORMATS and FORMATS[f].safetensors])
def test_safetensors(made, format):
    path = made(format, "safetensors")
    with mm.load(path) as model:
        header, data = read_safetensors(path / "model.safetensors")
        del header["__metadata__"]
        assert list(model) == list(header)
        for name, facts in header.items():
            assert model[name].shape == tuple(facts["shape"])
            assert raw(model[name]) == data[slice(*facts["data_offsets"])]
            assert model[name].readonly
        scales = [name for name in header if name.endswith("_scale_inv")]
        assert (len(scales) > 0) == (format == "fp8")
        assert model.parameters == sum(np.prod(facts["shape"]) for name, facts in header.items()
                                       if name not in scales)
        assert model.nbytes == len(data)
        assert model.info("format") == "safetensors"
        assert model.info("architecture") == "minimax_m2"
        assert model.info("quantization").startswith("f8_e4m3" if format == "fp8" else format)
        assert model.info("name") == path.name
        assert model.info("license") is None
        assert model.info("no such fact") is None
        assert model.tokenizer_or_none is None


@pytest.mark.parametrize("format", [f for f in NAMES if f != "fp8"])
def test_gguf(made, format):
    path = made(format, "gguf")
    reader = gguf.GGUFReader(path)
    with mm.load(path) as model:
        assert list(model) == [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            assert model[tensor.name].shape == tuple(int(n) for n in tensor.shape[::-1])
            assert model[tensor.name].dtype == tensor.tensor_type.name.lower()
            assert raw(model[tensor.name]) == tensor.data.tobytes()
        assert model.parameters == sum(int(t.n_elements) for t in reader.tensors)
        assert model.nbytes == sum(int(t.n_bytes) for t in reader.tensors)
        assert model.info("format") == "gguf"
        assert model.info("architecture") == "minimax-m2"
        assert model.info("quantization").startswith(format.removesuffix("_m"))
        assert model.info("name") == "random weights, 2 layers"
        assert len(model.tokenizer) == 512
        assert model.tokenizer.decode(model.tokenizer.encode("the  cat")) == "the  cat"


def test_the_configuration(made):
    want = dict(num_hidden_layers=2, hidden_size=256, num_attention_heads=8,
                num_key_value_heads=2, head_dim=32, rotary_dim=16, num_local_experts=8,
                num_experts_per_tok=2, intermediate_size=256, vocab_size=512,
                max_position_embeddings=196608, use_qk_norm=True, use_routing_bias=True,
                rope_theta=5e6, rms_norm_eps=float(np.float32(1e-6)), routed_scaling_factor=1.0)
    for path in made("f32", "safetensors"), made("f32", "gguf"):
        with mm.load(path) as model:
            assert model.config._asdict() == want


def test_same_weights_in_both_containers_give_the_same_logits(made, tmp_path):
    """The GGUF of f32 values, with the tensors of the safetensors file put in."""
    source = safetensors.numpy.load_file(made("f32", "safetensors") / "model.safetensors")
    whole = Gguf.parse(made("f32", "gguf").read_bytes())
    layer = {"attn_norm.weight": "input_layernorm.weight", "ffn_norm.weight":
             "post_attention_layernorm.weight", "attn_q.weight": "self_attn.q_proj.weight",
             "attn_k.weight": "self_attn.k_proj.weight", "attn_v.weight":
             "self_attn.v_proj.weight", "attn_output.weight": "self_attn.o_proj.weight",
             "attn_q_norm.weight": "self_attn.q_norm.weight", "attn_k_norm.weight":
             "self_attn.k_norm.weight", "ffn_gate_inp.weight": "block_sparse_moe.gate.weight",
             "exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias"}
    experts = {"ffn_gate_exps.weight": "w1", "ffn_down_exps.weight": "w2",
               "ffn_up_exps.weight": "w3"}
    ends = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight",
            "output_norm.weight": "model.norm.weight"}
    data = bytearray(whole.data)
    for info in whole.infos:
        name = info.name.decode()
        _, number, rest = name.split(".", 2) if name.startswith("blk.") else ("", "", name)
        at = f"model.layers.{number}."
        if rest in experts:
            values = np.stack([source[f"{at}block_sparse_moe.experts.{e}.{experts[rest]}.weight"]
                               for e in range(8)])
        else:
            values = source[ends.get(rest) or at + layer[rest]]
        data[info.offset:info.offset + values.nbytes] = values.tobytes()
    whole.data = bytes(data)
    path = tmp_path / "same.gguf"
    path.write_bytes(whole.build())
    assert logits(path) == logits(made("f32", "safetensors"))
    assert logits(path) != logits(made("f32", "gguf"))


# ---- Names ----

def fuse(header, data, experts=8):
    """The vendor's tensors under the names of transformers 5: experts stacked, gate above up."""
    def part(name):
        return data[slice(*header[name]["data_offsets"])]

    fused, out = {}, b""

    def put(name, like, shape, content):
        nonlocal out
        fused[name] = {"dtype": header[like]["dtype"], "shape": shape,
                       "data_offsets": [len(out), len(out) + len(content)]}
        out += content

    for name, facts in header.items():
        if name == "__metadata__" or ".experts." in name:
            continue
        put(name.replace("block_sparse_moe", "mlp"), name, facts["shape"], part(name))
    for layer in range(2):
        at = f"model.layers.{layer}.block_sparse_moe.experts."
        to = f"model.layers.{layer}.mlp.experts."
        for suffix in "", "_scale_inv":
            if at + "0.w1.weight" + suffix not in header:
                continue
            shapes = {w: header[f"{at}0.{w}.weight{suffix}"]["shape"] for w in ("w1", "w2")}
            put(to + "gate_up_proj" + suffix, at + "0.w1.weight" + suffix,
                [experts, 2 * shapes["w1"][0], shapes["w1"][1]],
                b"".join(part(f"{at}{e}.{w}.weight{suffix}")
                         for e in range(experts) for w in ("w1", "w3")))
            put(to + "down_proj" + suffix, at + "0.w2.weight" + suffix,
                [experts, *shapes["w2"]],
                b"".join(part(f"{at}{e}.w2.weight{suffix}") for e in range(experts)))
    return fused, out


@pytest.mark.parametrize("format", ["fp8", "bf16"])
def test_fused_experts_are_the_same_model(made, tmp_path, format):
    path = made(format)
    shutil.copy(path / "config.json", tmp_path)
    write_safetensors(tmp_path / "model.safetensors",
                      *fuse(*read_safetensors(path / "model.safetensors")))
    with mm.load(tmp_path) as model, mm.load(path) as vendors:
        assert "model.layers.1.mlp.experts.gate_up_proj" in model
        assert model.parameters == vendors.parameters
        rows = model.weight("model.layers.1.mlp.experts.gate_up_proj", 5 * 512 + 256, 256)
        expert = vendors.weight("model.layers.1.block_sparse_moe.experts.5.w3.weight")
        assert raw(rows) == raw(expert)
    assert logits(tmp_path) == logits(path)


@pytest.mark.parametrize("format", ["q8_0", "q4_k"])
def test_fused_gguf_experts_are_the_same_model(made, tmp_path, format):
    whole = Gguf.parse(made(format, "gguf").read_bytes())
    sizes = whole.sizes()
    for layer in range(2):
        gate, up = (whole.info(f"blk.{layer}.ffn_{part}_exps.weight") for part in ("gate", "up"))
        size = sizes[gate.name] // 8
        both = b"".join(whole.data[info.offset + e * size:info.offset + (e + 1) * size]
                        for e in range(8) for info in (gate, up))
        whole.infos.remove(gate)
        whole.infos.remove(up)
        whole.infos.append(Info(f"blk.{layer}.ffn_gate_up_exps.weight".encode(), [256, 512, 8],
                                gate.type, len(whole.data)))
        whole.data += both
    path = tmp_path / "fused.gguf"
    path.write_bytes(whole.build())
    assert logits(path) == logits(made(format, "gguf"))


def to_bf16(values):
    """(bytes of the rounded values, the rounded values as float32)"""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    codes = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return codes.tobytes(), (codes.astype(np.uint32) << 16).view(np.float32)


def close(a, b):
    """Equal but for the rounding of activations."""
    a, b = np.frombuffer(a, np.float32), np.frombuffer(b, np.float32)
    return np.abs(a - b).max() < 0.02 * np.abs(b).max()


@pytest.mark.parametrize("where", ["0.w1", "0.w2", "3.w3", "7.w2", "all w2", "odd"])
def test_experts_of_a_layer_may_differ_in_type(made, tmp_path, where):
    """Safetensors: some experts in BF16 among others in F32."""
    source = safetensors.numpy.load_file(made("f32", "safetensors") / "model.safetensors")
    chosen = {"all w2": r"\.w2\.", "odd": r"experts\.[1357]\."}.get(
        where, r"experts\." + re.escape(where))
    files = {name: ({}, b"") for name in ("mixed", "decoded")}
    for name, values in source.items():
        is_bf16 = ".experts." in name and re.search(chosen, name)
        codes, rounded = to_bf16(values)
        plain = ("F32", (rounded if is_bf16 else values).tobytes())
        for file, (dtype, content) in {"mixed": ("BF16", codes) if is_bf16 else plain,
                                       "decoded": plain}.items():
            header, data = files[file]
            header[name] = {"dtype": dtype, "shape": list(values.shape),
                            "data_offsets": [len(data), len(data) + len(content)]}
            files[file] = header, data + content
    for file, (header, data) in files.items():
        (tmp_path / file).mkdir()
        shutil.copy(made("f32", "safetensors") / "config.json", tmp_path / file)
        write_safetensors(tmp_path / file / "model.safetensors", header, data)
    exact = logits(tmp_path / "decoded", precision="exact")
    assert logits(tmp_path / "mixed", precision="exact") == exact
    assert close(logits(tmp_path / "mixed"), exact)


@pytest.mark.parametrize("types", [("q4_k", "q6_k", "q8_0"), ("f32", "q4_0", "bf16"),
                                   ("q8_0", "f16", "q5_k"), ("bf16", "q8_0", "f32")])
def test_matrices_of_experts_may_differ_in_type(made, tmp_path, types):
    """GGUF: gate, up and down of a layer in three types."""
    whole = Gguf.parse(made("f32", "gguf").read_bytes())
    decoded = Gguf.parse(made("f32", "gguf").read_bytes())
    data = bytearray(decoded.data)
    for part, type in zip(("gate", "up", "down"), types):
        name = f"blk.0.ffn_{part}_exps.weight"
        other = Gguf.parse(made(type, "gguf").read_bytes())
        info, target = other.info(name), whole.info(name)
        with mm.load(made(type, "gguf")) as model:
            values = raw(model.weight(name))
        target.type, target.offset = info.type, len(whole.data)
        whole.data += other.data[info.offset:info.offset + other.sizes()[info.name]]
        at = decoded.info(name).offset
        data[at:at + len(values)] = values
    decoded.data = bytes(data)
    (tmp_path / "mixed.gguf").write_bytes(whole.build())
    (tmp_path / "decoded.gguf").write_bytes(decoded.build())
    exact = logits(tmp_path / "decoded.gguf", precision="exact")
    assert logits(tmp_path / "mixed.gguf", precision="exact") == exact
    assert close(logits(tmp_path / "mixed.gguf"), exact)


def test_without_qk_norm_and_bias(copy, made, tmp_path):
    change_json(copy / "config.json", use_qk_norm=False, use_routing_bias=False)
    with mm.load(copy) as model:
        assert (model.config.use_qk_norm, model.config.use_routing_bias) == (False, False)
    assert logits(copy) != logits(made("fp8"))
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    whole.infos = [info for info in whole.infos
                   if not info.name.endswith((b"_q_norm.weight", b"_k_norm.weight", b"_b.bias"))]
    path = tmp_path / "plain.gguf"
    path.write_bytes(whole.build())
    with mm.load(path) as model:
        assert (model.config.use_qk_norm, model.config.use_routing_bias) == (False, False)


# ---- Many files ----

def test_shards(made, tmp_path):
    path = tmp_path / "sharded"
    synth(path, like="tiny", shard=300_000)
    assert len(list(path.glob("*.safetensors"))) > 3
    with mm.load(path) as model, mm.load(made("fp8")) as whole:
        assert set(model) == set(whole)
        assert all(raw(model[name]) == raw(whole[name]) for name in whole)
    assert logits(path) == logits(made("fp8"))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_split_gguf(made, tmp_path, count):
    whole = Gguf.parse(made("q4_k", "gguf").read_bytes())
    for name, content in split_gguf(whole, count, "m2").items():
        (tmp_path / name).write_bytes(content)
    for path in [*tmp_path.iterdir(), tmp_path]:
        with mm.load(path) as model, mm.load(made("q4_k", "gguf")) as single:
            assert list(model) == list(single)
            assert all(raw(model[name]) == raw(single[name]) for name in single)
            assert len(model.tokenizer) == 512
    assert logits(tmp_path) == logits(made("q4_k", "gguf"))


def test_a_directory_with_one_gguf(made, tmp_path):
    shutil.copy(made("q8_0", "gguf"), tmp_path / "one.gguf")
    (tmp_path / "notes.txt").write_text("other files are of no interest")
    assert logits(tmp_path) == logits(made("q8_0", "gguf"))


def test_tensors_in_any_order(made, tmp_path):
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    whole.infos.reverse()
    (tmp_path / "reversed.gguf").write_bytes(whole.build() + b"bytes behind the last tensor")
    assert logits(tmp_path / "reversed.gguf") == logits(made("q8_0", "gguf"))


def test_a_safetensors_header_in_any_order(made, copy):
    header, data = read_safetensors(copy / "model.safetensors")
    write_safetensors(copy / "model.safetensors", dict(reversed(header.items())), data)
    assert logits(copy) == logits(made("fp8"))


def test_an_odd_data_start(made, tmp_path):
    """A header whose length is no multiple of 4: float32 tensors lie at odd addresses."""
    shutil.copytree(made("f32", "safetensors"), tmp_path / "odd")
    file = tmp_path / "odd/model.safetensors"
    header, data = read_safetensors(file)
    text = json.dumps(header).encode()
    write_safetensors(file, text + b" " * (1 + -len(text) % 4), data)
    assert logits(tmp_path / "odd") == logits(made("f32", "safetensors"))


# ---- Configuration and facts ----

def test_rotary_spellings(copy, made):
    """rotary_dim, partial_rotary_factor, and transformers 5's rope_parameters mean the same."""
    change_json(copy / "config.json", rotary_dim=..., partial_rotary_factor=0.5)
    assert logits(copy) == logits(made("fp8"))
    change_json(copy / "config.json", partial_rotary_factor=..., rope_theta=...,
                rope_parameters={"rope_type": "default", "rope_theta": 5000000,
                                 "partial_rotary_factor": 0.5})
    assert logits(copy) == logits(made("fp8"))
    change_json(copy / "config.json", rotary_dim=16)
    assert logits(copy) == logits(made("fp8"))
    change_json(copy / "config.json", rotary_dim=..., rope_parameters={"rope_theta": 5e6})
    with mm.load(copy) as model:
        assert model.config.rotary_dim == 32  # as transformers has it: the whole head


def test_the_vendors_configuration(copy, made):
    if not (VENDOR / "config.json").exists():
        pytest.skip(f"no vendor data in {VENDOR}")
    sizes = json.loads((copy / "config.json").read_text())
    vendors = json.loads((VENDOR / "config.json").read_text())
    shapes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
              "head_dim", "rotary_dim", "num_local_experts", "num_experts_per_tok",
              "intermediate_size", "vocab_size", "attn_type_list")
    vendors.update({name: sizes[name] for name in shapes})
    (copy / "config.json").write_text(json.dumps(vendors))
    assert logits(copy) == logits(made("fp8"))


def test_generation_config(copy):
    change_json(copy / "generation_config.json", temperature=0.5, top_p=0.75, top_k=7,
                eos_token_id=[3, 4], bos_token_id=5)
    with mm.load(copy) as model:
        options = mm.Sampler(model).options
        assert (options["temperature"], options["top_p"], options["top_k"]) == (0.5, 0.75, 7)
    (copy / "generation_config.json").unlink()
    with mm.load(copy) as model:
        options = mm.Sampler(model).options
        assert (options["temperature"], options["top_k"]) == (1.0, 40)
        assert options["top_p"] == pytest.approx(0.95)


def test_gguf_facts(made, tmp_path):
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    whole.set("general.sampling.temp", 6, f32(0.25))
    whole.set("general.sampling.top_k", 5, struct.pack("<i", 9))
    whole.set("general.license", 8, string("mit"))
    whole.drop("general.name")
    path = tmp_path / "a name.gguf"
    path.write_bytes(whole.build())
    with mm.load(path) as model:
        options = mm.Sampler(model).options
        assert (options["temperature"], options["top_k"]) == (0.25, 9)
        assert (model.info("license"), model.info("name")) == ("mit", "a name")


@pytest.mark.parametrize("card, license", [
    ("---\nlicense: mit\n---\ntext", "mit"),
    ("---\npipeline_tag: x\nlicense: other\nlicense_name: \"minimax\"\n---\n", "minimax"),
    ("---\r\nlicense: other\r\n---\r\n", "other"),
    ("license: mit", None),
    ("---\ntags: x\n---\nlicense: mit", None),
    ("", None),
])
def test_the_license(copy, card, license):
    (copy / "README.md").write_bytes(card.encode())
    with mm.load(copy) as model:
        assert model.info("license") == license


def test_the_tokenizer_beside_the_weights(tmp_path):
    source = ROOT / "python/minimax2/m2-tiny/tokenizer.json"
    path = tmp_path / "with"
    synth(path, like="tiny", layers=1, vocab=4096, tokenizer=source)
    gguf_path = tmp_path / "with.gguf"
    synth(gguf_path, like="tiny", layers=1, vocab=4096, tokenizer=source.parent, format="q8_0")
    text = "The quick brown fox, 1234 times; naïve café ☃"
    with mm.load(path) as model, mm.load(gguf_path) as other:
        ids = model.tokenizer.encode(text)
        assert ids == mm.Tokenizer(source).encode(text) == other.tokenizer.encode(text)
        assert ids == mm.Tokenizer(path).encode(text) == mm.Tokenizer(gguf_path).encode(text)
        assert model.tokenizer.decode(ids) == text
        assert model.tokenizer.eos == other.tokenizer.eos == mm.Tokenizer(source).eos
    change_json(path / "generation_config.json", eos_token_id=[77, 78])
    (path / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": {"content": "a"}, "eos_token": "b", "pad_token": "c"}))
    for tokenizer in mm.load(path).tokenizer, mm.Tokenizer(path):
        assert tokenizer.eos == 77
        assert tokenizer.bos == tokenizer.id("a") != 77
        assert tokenizer.pad == tokenizer.id("c")
    (path / "tokenizer.json").unlink()
    with mm.load(path) as model:
        with pytest.raises(mm.UnsupportedError, match="tokenizer.json: no such file"):
            model.tokenizer


def test_another_models_tokenizer_is_refused(copy):
    shutil.copy(ROOT / "python/minimax2/m2-tiny/tokenizer.json", copy)
    with pytest.raises(mm.FormatError, match="belongs to another model"):
        mm.load(copy)


# ---- The map ----

def test_writable_changes_stay_in_the_process(made):
    path = made("f32", "safetensors")
    before = (path / "model.safetensors").read_bytes()
    with mm.load(path) as model:
        with pytest.raises((TypeError, ValueError)):
            model["model.norm.weight"][0] = 7
    with mm.load(path, writable=True) as model, mm.load(path) as other:
        assert not model["model.norm.weight"].readonly
        model["model.norm.weight"][0] = 7
        assert model["model.norm.weight"][0] == 7 != other["model.norm.weight"][0]
    assert (path / "model.safetensors").read_bytes() == before


def test_opening_reads_no_weights(tmp_path, monkeypatch):
    """Ten gigabytes of weights, all of them a hole in the file."""
    path = tmp_path / "m2.gguf"
    monkeypatch.setattr(synth_module.shutil, "disk_usage",
                        lambda path: type("", (), {"free": 1 << 60}))
    monkeypatch.setattr(synth_module, "_write_tensor", lambda file, spec, seed, report:
                        file.truncate(file.seek(spec.nbytes, 1)))
    assert synth(path, layers=2, format="q8_0") > 8e9
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with mm.load(path) as model:
        assert model.config.hidden_size == 3072 and model.config.num_local_experts == 256
        assert time.process_time() - started < 1.0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 64 << 10  # KiB
