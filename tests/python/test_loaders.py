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
from minimax2 import writing
from minimax2.formats import FORMATS, LAYOUTS, MIXES, NAMES
from minimax2.synth import synth

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

@pytest.mark.parametrize("format", ["fp8", *(f for f in FORMATS if FORMATS[f].safetensors)])
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


@pytest.mark.parametrize("format", [f for f in NAMES if f not in LAYOUTS])
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
        assert model.info("quantization").startswith(format) or format in MIXES
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


def test_without_qk_norm_and_bias(copy, made):
    change_json(copy / "config.json", use_qk_norm=False, use_routing_bias=False)
    with mm.load(copy) as model:
        assert (model.config.use_qk_norm, model.config.use_routing_bias) == (False, False)
    assert logits(copy) != logits(made("fp8"))


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


# ---- What nobody needs does not matter; what changes the result does ----

def with_tensors(path, target, extra):
    """A copy of a single-file directory with more tensors: {name: (dtype, shape, bytes)}."""
    shutil.copytree(path, target)
    header, data = read_safetensors(target / "model.safetensors")
    for name, (dtype, shape, content) in extra.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    write_safetensors(target / "model.safetensors", header, data)
    return target


@pytest.mark.parametrize("name, dtype, shape, nbytes, is_listed", [
    ("model.layers.0.n", "I64", [1], 8, False), ("x.s", "U8", [4], 4, True),
    ("inv_freq", "F64", [4], 32, False), ("b", "BOOL", [3], 3, False),
    ("later", "F4_E2M1", [3, 2], 3, False), ("x.conv", "F32", [1] * 5, 4, False),
    ("x.é", "F32", [1], 4, False), ("a b", "F32", [1], 4, False), ("", "F32", [1], 4, False),
    ("x" * 300, "F32", [1], 4, False), ("nothing", "F32", [0], 0, True),
    ("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", [8], 32, True),
    ("model.layers.62.weight", "BF16", [2, 2], 8, True)])
def test_unneeded_safetensors_are_left_alone(made, tmp_path, name, dtype, shape, nbytes, is_listed):
    path = with_tensors(made("fp8"), tmp_path / "more", {name: (dtype, shape, bytes(nbytes))})
    with mm.load(path) as model, mm.load(made("fp8")) as plain:
        assert list(model) == list(plain) + ([name] if is_listed else [])
        assert model.nbytes == plain.nbytes + (nbytes if is_listed else 0)
        assert (name in model) == is_listed
    assert logits(path) == logits(made("fp8"))


@pytest.mark.parametrize("name, type, dims, is_listed", [
    ("x", 27, [4], False), ("x", 28, [4], False), ("x", 24, [4], False), ("x", 42, [32], False),
    ("x", 999, [4], False), ("x", 0, [1] * 5, False), ("é", 0, [1], False), ("", 0, [1], False),
    ("x" * 300, 0, [1], False), ("x", 0, [0], True), ("x", 0, [4, 0], True), ("x", 30, [4], True)])
@pytest.mark.parametrize("first", [False, True])
def test_unneeded_gguf_tensors_are_left_alone(made, tmp_path, name, type, dims, is_listed, first):
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    info = Info(name.encode(), dims, type, len(whole.data))
    whole.infos.insert(0 if first else len(whole.infos), info)
    whole.data += bytes(64)
    (tmp_path / "more.gguf").write_bytes(whole.build())
    with mm.load(tmp_path / "more.gguf") as model, mm.load(made("q8_0", "gguf")) as plain:
        assert set(model) == set(plain) | ({name} if is_listed else set())
        assert [other for other in model if other != name] == list(plain)
    assert logits(tmp_path / "more.gguf") == logits(made("q8_0", "gguf"))


def test_a_needed_tensor_of_another_type_is_named(made, tmp_path):
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    whole.info("blk.1.attn_q.weight").type = 42
    (tmp_path / "bad.gguf").write_bytes(whole.build())
    with pytest.raises(mm.UnsupportedError, match=r'"blk.1.attn_q.weight" has type 42 '
                       r"\(unknown to this build\); this build reads f32, f16, bf16.*iq4_xs"):
        mm.load(tmp_path / "bad.gguf")


@pytest.fixture
def shards(tmp_path):
    synth(tmp_path / "shards", like="tiny", shard=300_000)
    return tmp_path / "shards"


def test_an_index_may_name_what_nobody_needs(shards, made):
    """Tensors that no shard holds, a shard that is not there, a name that is no tensor's."""
    file = shards / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    names = set(index["weight_map"])
    index["weight_map"].update({"mtp.fc.weight": sorted(index["weight_map"].values())[0],
                                "mtp.norm": "model-mtp.safetensors", "é": "model-mtp.safetensors",
                                "x" * 300: "model-mtp.safetensors"})
    file.write_text(json.dumps(index))
    for link in False, True:
        with mm.load(shards) as model:
            assert set(model) == names
        assert logits(shards) == logits(made("fp8"))
        if not link:
            (shards / "model-mtp.safetensors").symlink_to("not downloaded yet")
    with mm.load(shards) as model, pytest.raises(KeyError, match="mtp.norm"):
        model.weight("mtp.norm")


def test_a_shard_may_hold_what_the_index_leaves_out(shards, made):
    file = sorted(shards.glob("*.safetensors"))[1]
    header, data = read_safetensors(file)
    other = next(name for name in json.loads((shards / "model.safetensors.index.json").read_text())[
        "weight_map"] if name not in header)
    for name in "mtp.fc.weight", other:
        header[name] = {"dtype": "F32", "shape": [2],
                        "data_offsets": [len(data), len(data) + 8]}
        data += bytes(8)
    write_safetensors(file, header, data)
    with mm.load(shards) as model:
        assert "mtp.fc.weight" not in model
    assert logits(shards) == logits(made("fp8"))


def test_ids_without_a_token_are_left_out(made, tmp_path, copy):
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    for key in "padding", "bos", "eos", "unknown":
        whole.set(f"tokenizer.ggml.{key}_token_id", 4, struct.pack("<I", 200004))
    whole.set("tokenizer.ggml.eot_token_id", 4, struct.pack("<I", 2**32 - 1))
    whole.set("tokenizer.ggml.eom_token_id", 8, string("none"))
    (tmp_path / "ids.gguf").write_bytes(whole.build())
    with mm.load(tmp_path / "ids.gguf") as model, mm.load(made("q8_0", "gguf")) as plain:
        for name in "pad", "bos", "eos", "unk":
            assert getattr(model.tokenizer, name) == getattr(plain.tokenizer, name)
        assert model.end_tokens == plain.end_tokens
    change_json(copy / "generation_config.json", eos_token_id=[-1, 512, 2**40, "x", 1.5, 511],
                bos_token_id="x")
    with mm.load(copy) as model:
        assert model.end_tokens == [511]


@pytest.mark.parametrize("changes", [
    dict(temperature=-1, top_p=1.5, top_k=-1), dict(temperature="1", top_p=[], top_k=2**40),
    dict(temperature=True, top_p=None, top_k=10**30), dict(temperature=1e300, top_p=-0.1)])
def test_sampling_hints_that_cannot_be_meant_are_left_out(copy, changes):
    change_json(copy / "generation_config.json", **changes)
    with mm.load(copy) as model:
        options = mm.Sampler(model).options
        assert (options["temperature"], options["top_k"]) == (1.0, 40)
        assert options["top_p"] == pytest.approx(0.95)


def test_gguf_hints_that_cannot_be_meant_are_left_out(made, tmp_path):
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    whole.set("general.sampling.temp", 6, f32(float("nan")))
    whole.set("general.sampling.top_p", 6, f32(2))
    whole.set("general.sampling.top_k", 5, struct.pack("<i", 9))
    whole.set("general.license", 4, struct.pack("<I", 1))
    (tmp_path / "hints.gguf").write_bytes(whole.build())
    with mm.load(tmp_path / "hints.gguf") as model:
        options = mm.Sampler(model).options
        assert (options["temperature"], options["top_k"]) == (1.0, 9)
        assert options["top_p"] == pytest.approx(0.95)


# ---- The end of a generation ----

def test_end_tokens(tmp_path):
    """generation_config.json goes before config.json; the end of a turn is always among them."""
    source = ROOT / "python/minimax2/m2-tiny/tokenizer.json"
    path = tmp_path / "with"
    synth(path, like="tiny", layers=1, vocab=4096, tokenizer=source)
    with mm.load(path) as model:
        turn = model.tokenizer.id("[e~[")
    assert turn is not None
    for generation, config, expected in [
            (..., ..., []), ([77, 5, 77], [9], [5, 77]), (..., [9, 4095, 4096], [9, 4095]),
            (8, ..., [8]), (turn, 9, []), (None, 9, [9]), ([], 9, [9])]:
        change_json(path / "generation_config.json", eos_token_id=generation)
        change_json(path / "config.json", eos_token_id=config)
        with mm.load(path) as model:
            assert model.end_tokens == sorted({*expected, turn}), (generation, config)
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "b"}))
    change_json(path / "generation_config.json", eos_token_id=...)
    change_json(path / "config.json", eos_token_id=...)
    with mm.load(path) as model:
        assert model.end_tokens == sorted({model.tokenizer.id("b"), turn})
    whole = tmp_path / "with.gguf"
    synth(whole, like="tiny", layers=1, vocab=4096, tokenizer=source.parent, format="q8_0")
    parsed = Gguf.parse(whole.read_bytes())
    for key, id in ("eos", 300), ("eot", 20), ("eom", 7):
        parsed.set(f"tokenizer.ggml.{key}_token_id", 4, struct.pack("<I", id))
    whole.write_bytes(parsed.build())
    with mm.load(whole) as model:
        assert model.end_tokens == sorted({7, 20, 300, model.tokenizer.id("[e~[")})


def test_facts_by_their_keys(tiny):
    facts = tiny.info()
    assert list(facts) == ["path", "format", "architecture", "name", "license", "quantization",
                           "isa", "precision", "chat_template"]
    assert all(tiny.info(key) == value for key, value in facts.items())


# ---- Configurations ----

def test_the_inner_rotation_goes_before_the_outer_one(copy, made):
    """As in transformers: rope_scaling, else rope_parameters, else beside the other fields."""
    def theta(**changes):
        change_json(copy / "config.json", **changes)
        with mm.load(copy) as model:
            return model.config.rope_theta

    assert theta(rope_theta=1e4) == 1e4
    assert theta(rope_parameters={"rope_theta": 2e4}) == 2e4
    assert theta(rope_scaling={"rope_theta": 3e4, "rope_type": "default"}) == 3e4
    assert theta(rope_scaling={"type": "default"}) == 1e4  # rope_parameters is then not looked at
    assert theta(rope_scaling={}) == 2e4
    assert theta(rope_scaling=None) == 2e4
    change_json(copy / "config.json", rotary_dim=..., partial_rotary_factor=1.0,
                rope_parameters={"partial_rotary_factor": 0.5})
    with mm.load(copy) as model:
        assert (model.config.rotary_dim, model.config.rope_theta) == (16, 1e4)


def table_of_facts():
    """[(key of config.json, key of GGUF, the rest of the row)] of the family's table."""
    text = (ROOT / "csrc/model/minimax_m2.c").read_text()
    text = re.sub(r"/\*.*?\*/", "", text[:text.index("mm2_names names")])
    rows = re.findall(r'\{(NULL|"[^"]+"), (NULL|"[^"]+"),\s+([^{}]*)\},', text)
    return [(*(None if key == "NULL" else key.strip('"') for key in row[:2]), row[2])
            for row in rows]


def shown(json_key, gguf_key, rest):
    """A row as MODELS.md has it."""
    rest = " ".join(rest.split())
    kind = re.match(r"(?:\.kind = )?(\w+)", rest)[1]
    field, other = (re.search(form, rest) for form in (r"FIELD\((\w+)\)", r'gguf_else = "(\w+)"'))
    says = {"MM2_FACT_SIZE": "read; must be there", "MM2_FACT_SIZE_OR": "read",
            "MM2_FACT_NUMBER": "read; must be there", "MM2_FACT_NUMBER_OR": "read",
            "MM2_FACT_SCALE": "read; 0 is none", "MM2_FACT_FLAG": "read",
            "UNUSED": "changes nothing"}.get(kind)
    if kind == "MM2_FACT_SAME":
        says = f"must agree with {field[1]}"
    elif kind in ("IS", "MM2_FACT_EACH_IS"):
        values = re.findall(r"-?\d+", rest.removeprefix(kind))
        says = ("each item " if "EACH" in kind else "") + "must be " + " or ".join(
            dict.fromkeys(values))
    elif kind in ("SAYS", "MM2_FACT_SAYS", "MM2_FACT_EACH_SAYS"):
        says = ("each item " if "EACH" in kind else "") + "must be " + " or ".join(
            re.findall(r'"(\w+)"', rest))
    keys = [f"`{key}`" if key else "" for key in (json_key, gguf_key)]
    return f"| {keys[0]} | {keys[1]}{f' or else `{other[1]}`' if other else ''} | {says} |"


def test_every_fact_is_in_the_table_of_the_models_page():
    facts, page = table_of_facts(), (ROOT / "MODELS.md").read_text().splitlines()
    assert len(facts) > 100
    assert [row for row in map(shown, *zip(*facts)) if row not in page] == []


NEUTRAL = {(json_key, gguf_key): re.match(r"IS\((-?\d+), (-?\d+)\)", rest)
           for json_key, gguf_key, rest in table_of_facts() if rest.startswith("IS(")}


@pytest.mark.parametrize("key", [key[0] for key in NEUTRAL if key[0]])
def test_a_key_of_config_that_changes_the_result_is_refused(copy, key):
    match = next(m for (json_key, _), m in NEUTRAL.items() if json_key == key)
    for value in {int(match[1]), int(match[2])}:
        change_json(copy / "config.json", **{key: value})
        mm.load(copy).close()
    for value in 3, 2.5, "odd", [3], {"a": 1}:
        change_json(copy / "config.json", **{key: value})
        with pytest.raises(mm.UnsupportedError, match=f"config.json: {key} is "):
            mm.load(copy)


@pytest.mark.parametrize("key", [key[1] for key in NEUTRAL if key[1]])
def test_a_key_of_gguf_that_changes_the_result_is_refused(made, tmp_path, key):
    match = next(m for (_, gguf_key), m in NEUTRAL.items() if gguf_key == key)
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    path, name = tmp_path / "key.gguf", "minimax-m2." + key
    for value in {int(match[1]), int(match[2])}:
        for type, payload in (5, struct.pack("<i", value)), (6, f32(value)):
            whole.set(name, type, payload)
            path.write_bytes(whole.build())
            mm.load(path).close()
    for type, payload in (5, struct.pack("<i", 3)), (6, f32(2.5)), (8, string("odd")):
        whole.set(name, type, payload)
        path.write_bytes(whole.build())
        with pytest.raises(mm.UnsupportedError, match=f"gguf: {re.escape(name)} is "):
            mm.load(path)


def array(form, values):
    return struct.pack("<IQ", {"i": 5, "f": 6}[form], len(values)) + struct.pack(
        f"<{len(values)}{form}", *values)


def test_sizes_as_lists_with_an_item_for_each_layer(made, tmp_path):
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    path, key = tmp_path / "lists.gguf", "minimax-m2.attention.head_count_kv"
    whole.set(key, 9, array("i", [2, 2]))
    whole.set("minimax-m2.swiglu_clamp_exp", 9, array("f", [0, 0]))
    path.write_bytes(whole.build())
    assert logits(path) == logits(made("q8_0", "gguf"))
    for values in [2, 1], [2], [2, 2, 2], []:
        whole.set(key, 9, array("i", values))
        path.write_bytes(whole.build())
        with pytest.raises(mm.FormatError, match="head_count_kv must be a whole number, found an"):
            mm.load(path)


@pytest.mark.parametrize("changes, words", [
    (dict(quantization={"group_size": 64, "bits": 4}, quantization_config=...),
     "an MLX checkpoint.*GGUF"),
    (dict(quantization_config={"group_size": 64, "bits": 4}), "an MLX checkpoint.*FP8, NVFP4"),
    (dict(quantization_config={"quant_method": "exl3", "bits": 4}), "is exl3, which this build"),
    (dict(rope_parameters={"full_attention": {"rope_theta": 1}}), "full_attention is an object"),
    (dict(layer_types=["full_attention", "sliding_attention"]),
     r"layer_types\[1\] is sliding_attention; this build supports full_attention"),
    (dict(num_experts=4), "num_experts is 4; this build supports 8")])
def test_another_kind_of_model_is_named(copy, changes, words):
    change_json(copy / "config.json", **changes)
    with pytest.raises(mm.UnsupportedError, match=words):
        mm.load(copy)


# ---- The routing bias and the norms of queries and keys ----

def renamed(whole, change):
    for info in whole.infos:
        info.name = change(info.name)
    whole.infos = [info for info in whole.infos if info.name]
    return whole.build()


def test_the_routing_bias_under_its_other_names(made, tmp_path):
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    path = tmp_path / "bias.gguf"
    path.write_bytes(renamed(whole, lambda name: name.replace(b"exp_probs_b.bias", b"exp_probs_b")))
    assert logits(path) == logits(made("q8_0", "gguf"))
    whole.infos.append(Info(b"blk.1.exp_probs_b.bias", [8], 0, len(whole.data)))
    whole.data += bytes(32)
    path.write_bytes(whole.build())
    with pytest.raises(mm.FormatError, match='"blk.1.exp_probs_b.bias" and "blk.1.exp_probs_b" are '
                       "two for one place"):
        mm.load(path)
    header, data = read_safetensors(made("fp8") / "model.safetensors")
    for other in "mlp.", "block_sparse_moe.gate.", "mlp.gate.":
        target = tmp_path / other
        shutil.copytree(made("fp8"), target)
        write_safetensors(target / "model.safetensors", {
            name.replace("block_sparse_moe.e_score", other + "e_score"): facts
            for name, facts in header.items()}, data)
        assert logits(target) == logits(made("fp8"))


@pytest.mark.parametrize("name", ["exp_probs_b.bias", "attn_q_norm.weight", "attn_k_norm.weight"])
def test_what_the_family_always_has_must_be_there(made, tmp_path, name):
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    path = tmp_path / "without.gguf"
    path.write_bytes(renamed(whole, lambda n: b"" if n.endswith(name.encode()) else n))
    with pytest.raises(mm.FormatError, match=f'"blk.0.{re.escape(name)}" is missing'):
        mm.load(path)


def test_experts_under_the_names_of_transformers_5(made, tmp_path):
    header, data = read_safetensors(made("fp8") / "model.safetensors")
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    shutil.copytree(made("fp8"), tmp_path / "new")
    write_safetensors(tmp_path / "new/model.safetensors", {
        re.sub(r"\.(w[123])\.", lambda m: f".{names[m[1]]}.",
               name.replace("block_sparse_moe", "mlp")): facts
        for name, facts in header.items()}, data)
    assert logits(tmp_path / "new") == logits(made("fp8"))


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.ffn_gate_exps.scale", "output.bias",
                                  "blk.1.ffn_gate_shexp.weight", "rope_freqs.weight",
                                  "blk.0.attn_sinks.weight"])
def test_gguf_tensors_of_another_model_are_refused(made, tmp_path, name):
    whole = Gguf.parse(made("q8_0", "gguf").read_bytes())
    whole.infos.append(Info(name.encode(), [4], 0, len(whole.data)))
    whole.data += bytes(32)
    (tmp_path / "more.gguf").write_bytes(whole.build())
    with pytest.raises(mm.UnsupportedError, match=f'tensor "{re.escape(name)}" '):
        mm.load(tmp_path / "more.gguf")


# ---- Copies in memory ----

@pytest.mark.parametrize("format, container", [("fp8", "safetensors"), ("q4_k", "gguf")])
def test_unmapped_models_are_the_same(made, format, container):
    path = made(format, container)
    with mm.load(path, mapped=False, threads=1) as model, mm.load(path) as mapped:
        assert list(model) == list(mapped)
        assert all(raw(model[name]) == raw(mapped[name]) for name in mapped)
        assert all(model[name].readonly for name in mapped)
        assert raw(model(PROMPT)) == logits(path)


def test_an_unmapped_model_outlives_its_files(shards, made):
    with mm.load(shards, mapped=False, threads=1) as model:
        for file in shards.glob("*.safetensors"):
            os.truncate(file, 4096)
        assert raw(model(PROMPT)) == logits(made("fp8"))


def test_a_split_set_in_memory(made, tmp_path):
    whole = Gguf.parse(made("q4_k", "gguf").read_bytes())
    for name, content in split_gguf(whole, 3, "m2").items():
        (tmp_path / name).write_bytes(content)
    assert logits(tmp_path, mapped=False) == logits(made("q4_k", "gguf"))


def test_an_unmapped_model_may_be_writable(made):
    with mm.load(made("f32", "safetensors"), mapped=False, writable=True) as model:
        model["model.norm.weight"][0] = 7
        assert model["model.norm.weight"][0] == 7
    with mm.load(made("f32", "safetensors")) as model:
        assert model["model.norm.weight"][0] != 7


def test_memory_that_will_not_do_is_refused_before_anything_is_read(tmp_path):
    """A terabyte of weights, all of them a hole in the file."""
    path = tmp_path / "large.gguf"
    synth(path, like="tiny", format="q8_0")
    os.truncate(path, 1 << 40)
    started = time.process_time()
    with pytest.raises(mm.OutOfMemory, match="needs 1099511627776 bytes, [0-9]+ are available"):
        mm.load(path, mapped=False)
    assert time.process_time() - started < 1.0
    mm.load(path).close()


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
    monkeypatch.setattr(writing.shutil, "disk_usage",
                        lambda path: type("", (), {"free": 1 << 60}))
    monkeypatch.setattr(writing, "_write_piece", lambda file, piece, report:
                        file.truncate(file.seek(piece.nbytes, 1)))
    assert synth(path, layers=2, format="q8_0") > 8e9
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with mm.load(path) as model:
        assert model.config.hidden_size == 3072 and model.config.num_local_experts == 256
        assert time.process_time() - started < 1.0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 64 << 10  # KiB
