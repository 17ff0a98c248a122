"""minimax2.info(): types, places, bits, memory and warnings, of files that open and of others."""

import json

import numpy as np
import pytest

import minimax2 as mm
from containers import Gguf, change_json, f32, read_safetensors, split_gguf, u32, write_safetensors
from minimax2 import cli, survey
from minimax2.formats import FORMATS, LAYOUTS, MIXES
from minimax2.synth import synth

SMALL = dict(like="tiny", layers=2)
PLACES = ["attention", "gate/up", "down", "router", "embedding", "head", "norms"]


@pytest.fixture
def made(tmp_path):
    """A function that writes random weights of a format: their path."""
    def make(format, **options):
        path = tmp_path / ("m" if format in LAYOUTS else "m.gguf")
        synth(path, **{**SMALL, **options}, format=format)
        return path
    return make


def by(rows, key):
    """{value of the key: row}."""
    return {row[key]: row for row in rows}


def test_the_embedded_model(tiny):
    found = mm.info()
    assert (found["opens"], found["refusal"], found["format"]) == (True, None, "safetensors")
    assert found["bytes"] == tiny.nbytes and found["parameters"] == tiny.parameters
    assert found["license"] == "mit" and found["name"] == "m2-tiny"
    assert found["threads"] == tiny.threads and found["isa"] == tiny.info("isa")
    for key, value in dict(layers=5, hidden_size=256, experts=16, experts_per_token=4,
                           experts_found=[16, 16], positions=4096).items():
        assert found[key] == value
    for rows, key in ((found["types"], "type"), (found["places"], "place")):
        assert sum(row["bytes"] for row in rows) == tiny.nbytes
        assert abs(sum(row["share"] for row in rows) - 1) < 1e-9
        assert [row["bytes"] for row in rows] == sorted((row["bytes"] for row in rows),
                                                        reverse=True)
        assert {row[key] for row in rows} >= {"f8_e4m3"} or key == "place"
    assert set(by(found["places"], "place")) == set(PLACES)
    assert found["memory"]["kv"] == tiny.cost(1, 4095)[0].kv_bytes * 4096 // 4095
    assert found["memory"]["weights"] == tiny.nbytes
    assert found["warnings"] == []
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("format", [*FORMATS, *LAYOUTS, *MIXES])
def test_every_format(made, format):
    path = made(format)
    found = mm.info(path)
    types, places = by(found["types"], "type"), by(found["places"], "place")
    assert set(places) == set(PLACES) and found["experts_found"] == [8, 8]
    assert places["gate/up"]["tensors"] == 2 * places["down"]["tensors"]
    with mm.load(made("f32", container="gguf") if path.is_dir() else path) as model:
        assert found["parameters"] == model.parameters
    if format in FORMATS:
        kind = FORMATS[format]
        assert found["expert_bits"] == 8 * kind.nbytes / kind.block
        assert set(types) == {format, "f32"}
    if format in LAYOUTS:
        kind, bits = {"fp8": ("f8_e4m3", 8.002), "fp8-channel": ("f8_e4m3", 8.0625),
                      "w8a16": ("i8", 8.127), "w4a16": ("i4", 4.127),
                      "w4a16-asym": ("i4", 4.158), "w8a16-asym": ("i8", 8.19)}.get(
                          format, (format.partition("-")[0], 4.5 if "nv" in format else 4.25))
        assert abs(found["expert_bits"] - bits) < 0.003 and kind in types
        attention = kind if LAYOUTS[format].attention else "bf16"
        assert places["attention"]["types"] == {attention: 8}
    assert ("down" in str(found["warnings"])) == (
        places["down"]["bits"] < 3)  # in these files all layers have the same


def test_a_type_that_nobody_knows(made):
    """Its bytes are those up to the next tensor."""
    path = made("q8_0")
    whole = Gguf.parse(path.read_bytes())
    for info in whole.infos:
        if b"ffn_down_exps" in info.name:
            info.type = 137
    path.write_bytes(whole.build())
    found = mm.info(path)
    assert not found["opens"] and "type 137" in found["refusal"]
    row = by(found["types"], "type")["type 137"]
    assert row["bytes"] == 2 * whole.sizes()[b"blk.0.ffn_down_exps.weight"]
    assert row["bits"] == 8.5 and row["places"] == {"down": 2}
    assert by(found["places"], "place")["down"]["types"] == {"type 137": 2}
    assert f"runs  no: {path}" in str(found)


def test_types_that_others_know(made):
    path = made("q8_0")
    whole = Gguf.parse(path.read_bytes())
    whole.info("blk.0.attn_q.weight").type = 9
    path.write_bytes(whole.build())
    assert "q8_1" in by(mm.info(path)["types"], "type")


def test_a_split_set_by_any_part(made, tmp_path):
    path = made("q8_0")
    whole = mm.info(path)
    parts = split_gguf(Gguf.parse(path.read_bytes()), 3, "part")
    (tmp_path / "set").mkdir()
    for name, data in parts.items():
        (tmp_path / "set" / name).write_bytes(data)
    for where in [*(tmp_path / "set" / name for name in parts), tmp_path / "set"]:
        found = mm.info(where)
        assert found["files"] == 3
        for key in "bytes", "types", "places", "layers", "experts_found", "memory":
            assert found[key] == whole[key]


def test_only_what_the_index_names_is_read(tmp_path):
    synth(tmp_path / "m", **SMALL, format="bf16", shard=300_000)
    before = mm.info(tmp_path / "m")
    (tmp_path / "m/stray.safetensors").write_text("no safetensors")
    after = mm.info(tmp_path / "m")
    assert before == after and before["files"] > 3
    index = tmp_path / "m/model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    del places["model.layers.1.self_attn.q_proj.weight"]
    change_json(index, weight_map=places)
    found = mm.info(tmp_path / "m")
    assert by(found["places"], "place")["attention"]["tensors"] == 7


def entry(dtype, *shape):
    width = {"I32": 4, "U32": 4, "F16": 2, "BF16": 2, "F32": 4}[dtype]
    return dtype, list(shape), int(np.prod(shape)) * width


@pytest.mark.parametrize("parts, kind, bits", [
    (dict(qweight=entry("I32", 32, 64), qzeros=entry("I32", 2, 8), scales=entry("F16", 2, 64)),
     "int4 transposed", 4.15625),
    (dict(qweight=entry("I32", 64, 64), qzeros=entry("I32", 2, 16), scales=entry("F16", 2, 64)),
     "int8 transposed", 8.1875),
    (dict(weight=entry("U32", 64, 32), scales=entry("BF16", 64, 4), biases=entry("BF16", 64, 4)),
     "mlx", 4.5),
])
def test_layouts_that_do_not_open(tmp_path, parts, kind, bits):
    path = tmp_path / "m"
    synth(path, **SMALL)
    header, data = read_safetensors(path / "model.safetensors")
    base = "model.layers.0.block_sparse_moe.experts.0.w2."
    header = {name: facts for name, facts in header.items() if not name.startswith(base)}
    data = b""
    for facts in header.values():
        if "data_offsets" in facts:
            length = facts["data_offsets"][1] - facts["data_offsets"][0]
            facts["data_offsets"] = [len(data), len(data) + length]
            data += bytes(length)
    for name, (dtype, shape, nbytes) in parts.items():
        header[base + name] = {"dtype": dtype, "shape": shape,
                               "data_offsets": [len(data), len(data) + nbytes]}
        data += bytes(nbytes)
    write_safetensors(path / "model.safetensors", header, data)
    change_json(path / "config.json", quantization={"group_size": 64, "bits": 4})
    found = mm.info(path)
    assert not found["opens"] and found["experts_found"] == [8, 8]
    row = by(found["types"], "type")[kind]
    assert row["tensors"] == 1 and row["bits"] == bits and row["places"] == {"down": 1}


def test_pruned_experts_are_counted(made):
    path = made("q8_0")
    whole = Gguf.parse(path.read_bytes())
    whole.info("blk.1.ffn_down_exps.weight").dims[2] = 5
    path.write_bytes(whole.build())
    assert mm.info(path)["experts_found"] == [5, 8]
    assert "5-8 a layer, 2 active" in str(mm.info(path))


# ---- Warnings ----

def test_what_hurts_is_said(made, tmp_path):
    path = made("q2_k")
    loops, tokens = mm.info(path)["warnings"]
    assert "the down projections of 2 of 2 layers have fewer than 3 bits a weight (q2_k)" in loops
    assert "the experts have 2.62 bits a weight" in tokens
    synth(tmp_path / "better.gguf", **SMALL, format="q3_k")
    assert mm.info(tmp_path / "better.gguf")["warnings"] == []


def test_a_quantised_router_is_named(made):
    path = made("q8_0")
    whole = Gguf.parse(path.read_bytes())
    for info in whole.infos:
        info.name = {b"blk.1.attn_q.weight": b"blk.1.ffn_gate_inp.weight",
                     b"blk.1.ffn_gate_inp.weight": b"blk.1.attn_q.weight"}.get(info.name, info.name)
    path.write_bytes(whole.build())
    warning, = mm.info(path)["warnings"]
    assert warning.startswith("blk.1.ffn_gate_inp is a router in q8_0")


def test_positions_beyond_those_that_work(made):
    path = made("fp8")
    change_json(path / "config.json", max_position_embeddings=204800)
    warning, = mm.info(path)["warnings"]
    assert "204,800 positions; the family is known to work at up to 196,608" in warning


def test_memory_that_will_not_do(made, monkeypatch):
    path = made("q8_0")
    monkeypatch.setattr(survey._native, "memory", lambda: (1 << 20, 0))
    found = mm.info(path)
    assert found["memory"]["present"] == found["memory"]["limit"] == 1 << 20
    assert "of memory, 1.05 MB are there" in found["warnings"][-1]
    assert "1.05 MB are there (the limit of the control group)" in str(found)
    monkeypatch.setattr(survey._native, "memory", lambda: (1 << 62, 0))
    found = mm.info(path)
    assert found["warnings"] == [] and found["memory"]["limit"] is None


# ---- Files that nobody can read, and the command ----

def damaged(change):
    def make(tmp_path):
        path = tmp_path / "m.gguf"
        synth(path, **SMALL, format="q8_0")
        data = change(path.read_bytes())
        path.write_bytes(data)
        return path
    return make


def deep(data):
    """Arrays in arrays, more than any parser can recurse into."""
    whole = Gguf.parse(data)
    payload = b""
    for _ in range(100_000):
        payload = payload + u32(9) + (1).to_bytes(8, "little")
    whole.set("deep", 9, payload + u32(4) + (0).to_bytes(8, "little"))
    return whole.build()


@pytest.mark.parametrize("change", [
    lambda data: b"", lambda data: b"GGUF", lambda data: data[:300], lambda data: data[:5000],
    lambda data: data[:-100_000], lambda data: b"junk" * 100, deep,
    lambda data: data[:8] + b"\xff" * 8 + data[16:],
    lambda data: data[:24] + b"\xff" * 8 + data[32:]])
def test_damaged_files(tmp_path, change):
    with pytest.raises(mm.FormatError, match="m.gguf"):
        mm.info(damaged(change)(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 3}', '{"a": {"dtype": "F32"}}',
                                  '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99]}}'])
def test_damaged_headers_of_safetensors(tmp_path, text):
    synth(tmp_path / "m", **SMALL)
    write_safetensors(tmp_path / "m/model.safetensors", text.encode(), b"1234")
    with pytest.raises(mm.FormatError, match="safetensors"):
        mm.info(tmp_path / "m")


def test_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        mm.info(tmp_path / "absent")
    with pytest.raises(mm.FormatError, match="holds no checkpoint"):
        mm.info(tmp_path)
    synth(tmp_path / "m", **SMALL, shard=300_000)
    sorted((tmp_path / "m").glob("model-*"))[1].unlink()
    with pytest.raises(FileNotFoundError):
        mm.info(tmp_path / "m")


def test_the_command(made, capsys):
    path = made("q2_k")
    assert cli.main(["info", str(path), "--json", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == mm.info(path, threads=1)
    assert cli.main(["info", "-m", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "\nplace " in shown and "\nwarning: the down projections" in shown
    assert "2.62 of the experts" in shown
    assert "q2_k" in mm.info(path)._repr_html_()
    whole = Gguf.parse(path.read_bytes())
    whole.set("minimax-m2.rope.scaling.factor", 6, f32(4.0))
    path.write_bytes(whole.build())
    assert cli.main(["info", str(path)]) == 0  # read, even though no model opens
    assert "runs  no: " in capsys.readouterr().out


def test_a_path_is_one_path(capsys):
    """An empty one, which a script's unset variable gives, is not the embedded model."""
    assert cli.main(["info", ""]) == 1 and "empty" in capsys.readouterr().err
    assert cli.main(["info", "-m", "a", "b"]) == 1 and "two models" in capsys.readouterr().err
