"""GPTQ, AutoRound and AWQ become pack-quantized: the same values, bit by bit, or a sentence."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import minimax2 as mm
from containers import read_safetensors, write_safetensors
from layouts import integers, tensors_of
from minimax2 import cli, convert as convert_module
from minimax2.convert import convert
from minimax2.synth import synth

SIZES = dict(like="tiny", layers=1, experts=2, hidden=256, expert_size=128, vocab=300)
AWQ_NIBBLE = [0, 4, 1, 5, 2, 6, 3, 7]  # of the logical column, as autoawq has it
Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.0.block_sparse_moe.experts.1.w2"

GPTQ = dict(quant_method="gptq", bits=4, group_size=128, desc_act=False, sym=False)
ROUND = dict(quant_method="auto-round", bits=4, group_size=128, sym=False)
AWQ = dict(quant_method="awq", bits=4, group_size=128, version="gemm", zero_point=True)
LAYOUTS = {  # (config, what is added to stored zeros)
    "gptq": (GPTQ, 1),
    "gptq-v1": (GPTQ | {"checkpoint_format": "gptq"}, 1),
    "gptq-v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, 0),
    "round-gptq": (ROUND | {"packing_format": "auto_round:auto_gptq"}, 1),
    "round": (ROUND | {"packing_format": "auto_round"}, 0),
    "round-model": (ROUND | {"packing_format": "auto_round:gptqmodel"}, 0),
    "round-awq": (ROUND | {"packing_format": "auto_round:auto_awq"}, 0),
    "awq": (AWQ, 0),
}


def along(fields, bits, axis, order=None):
    """Words of the fields that follow each other along an axis, field i at bits * order[i]."""
    fields = np.moveaxis(fields, axis, -1)
    count = 32 // bits
    words = np.zeros((*fields.shape[:-1], fields.shape[-1] // count), np.uint32)
    for i in range(count):
        words |= fields[..., i::count].astype(np.uint32) << np.uint32(
            bits * (order[i] if order else i))
    return np.moveaxis(words, -1, axis)


class Matrix:
    """Random codes, zero points and scales of a matrix: its values, its tensors in the layouts."""

    def __init__(self, seed, rows, columns, group=128, bits=4, symmetric=False, high=None):
        random = np.random.default_rng(seed)
        self.bits, self.group = bits, group or columns
        self.codes = random.integers(0, 1 << bits, (rows, columns))
        self.zeros = random.integers(1, high or 1 << bits, (rows, columns // self.group))
        if symmetric:
            self.zeros[:] = 1 << bits - 1
        self.scales = random.uniform(1e-4, 0.1, self.zeros.shape).astype(np.float16)

    def values(self):
        """float32 [rows, columns], by the formula of the layouts."""
        zeros, scales = (np.repeat(a, self.group, axis=1) for a in (self.zeros, self.scales))
        return (self.codes - zeros).astype(np.float32) * scales.astype(np.float32)

    def tensors(self, name, offset, awq):
        """{name: array} of qweight, qzeros, scales."""
        order = AWQ_NIBBLE if awq else None
        return {
            f"{name}.qweight": along(self.codes.T, self.bits, 1 if awq else 0, order),
            f"{name}.qzeros": along(self.zeros.T - offset, self.bits, 1, order),
            f"{name}.scales": np.ascontiguousarray(self.scales.T)}


def write(path, tensors):
    """A file of arrays, or of (dtype, shape, bytes)."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            kind = {"uint32": "I32", "int32": "I32", "float16": "F16", "float32": "F32"}
            tensor = kind[tensor.dtype.name], tensor.shape, np.ascontiguousarray(tensor).tobytes()
        header[name] = {"dtype": tensor[0], "shape": list(tensor[1]),
                        "data_offsets": [len(data), len(data) + len(tensor[2])]}
        data += tensor[2]
    write_safetensors(path, header, data)


@pytest.fixture
def make(tmp_path):
    """A function that writes a checkpoint: (its path, {name of a matrix: Matrix})."""

    def made(config, offset, awq=False, change=None, quantised=lambda name: True, **options):
        path = tmp_path / "source"
        synth(path, **SIZES, format="bf16")
        header, data = read_safetensors(path / "model.safetensors")
        del header["__metadata__"]
        tensors, matrices = {}, {}
        for number, (name, facts) in enumerate(header.items()):
            base = name.removesuffix(".weight")
            if ("proj" in base or ".experts." in base) and quantised(base):
                matrices[base] = Matrix(number, *facts["shape"], **options)
                tensors |= matrices[base].tensors(base, offset, awq)
            else:
                tensors[name] = facts["dtype"], facts["shape"], data[slice(*facts["data_offsets"])]
        if change:
            change(tensors, matrices)
        write(path / "model.safetensors", tensors)
        document = json.loads((path / "config.json").read_text())
        document["quantization_config"] = config
        (path / "config.json").write_text(json.dumps(document))
        return path, matrices

    return made


def check(source, target, matrices):
    """The target holds the matrices' values, and everything else as it was."""
    made, before = tensors_of(target), tensors_of(source)
    for name, matrix in matrices.items():
        assert integers(made, name).tobytes() == matrix.values().tobytes(), name
    names = {name for name in before if not name.endswith((".qweight", ".qzeros", ".scales"))}
    for name in names:
        assert made[name].tobytes() == before[name].tobytes()
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_keeps_its_values(make, tmp_path, layout):
    config, offset = LAYOUTS[layout]
    source, matrices = make(config, offset, awq="awq" in layout)
    (source / "tokenizer.json").write_text("{}")
    (source / "quantize_config.json").write_text("{}")
    (source / "stray.safetensors").write_text("never read")
    seen = []
    size = convert(source, tmp_path / "made", progress=lambda *counts: seen.append(counts))
    assert seen[-1][0] == seen[-1][1] and len(seen) > 20
    target = tmp_path / "made"
    assert sorted(file.name for file in target.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert size == sum(file.stat().st_size for file in target.iterdir())
    check(source, target, matrices)
    document = json.loads((target / "config.json").read_text())
    before = json.loads((source / "config.json").read_text())
    quantization = document.pop("quantization_config")
    del before["quantization_config"]
    assert document == before
    assert (quantization["quant_method"], quantization["format"]) == (
        "compressed-tensors", "pack-quantized")
    group, = quantization["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert {key: group["weights"][key] for key in (
        "num_bits", "type", "symmetric", "strategy", "group_size")} == dict(
            num_bits=4, type="int", symmetric=False, strategy="group", group_size=128)
    assert set(quantization["ignore"]) == {"lm_head", "model.layers.0.block_sparse_moe.gate"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_refused_opens(make, tmp_path, layout):
    config, offset = LAYOUTS[layout]
    source, matrices = make(config, offset, awq="awq" in layout)
    with pytest.raises(mm.UnsupportedError, match='run "minimax2 convert IN OUT"'):
        mm.load(source)
    convert(source, tmp_path / "made")
    with mm.load(tmp_path / "made") as model:
        for name, matrix in matrices.items():
            made = model.weight(name + ".weight_packed").numpy()
            assert made.tobytes() == matrix.values().tobytes()
        assert np.isfinite(model([5, 6, 7]).numpy()).all()


def test_symmetric_matrices_need_no_zero_points(make, tmp_path):
    source, matrices = make(GPTQ | {"sym": True}, 1, symmetric=True)
    convert(source, tmp_path / "made")
    assert not any("zero_point" in name for name in check(source, tmp_path / "made", matrices))
    config = json.loads((tmp_path / "made/config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["symmetric"] is True


@pytest.mark.parametrize("options", [dict(group=32), dict(group=64), dict(group=None),
                                     dict(bits=8, symmetric=True),
                                     dict(bits=8, group=None, symmetric=True), dict(bits=8)])
def test_groups_and_bits(make, tmp_path, options):
    size = -1 if options.get("group", 128) is None else 128
    source, matrices = make(GPTQ | {"group_size": size}, 1, **options)
    convert(source, tmp_path / "made")
    check(source, tmp_path / "made", matrices)
    config = json.loads((tmp_path / "made/config.json").read_text())["quantization_config"]
    group, = config["config_groups"].values()
    assert group["weights"]["strategy"] == ("channel" if size == -1 else "group")
    assert group["weights"]["group_size"] == options.get("group", 128)
    assert group["weights"]["num_bits"] == options.get("bits", 4)
    with mm.load(tmp_path / "made") as model:
        assert model.weight(Q + ".weight").numpy().tobytes() == matrices[Q].values().tobytes()


def test_modules_of_more_bits_have_a_group_of_their_own(make, tmp_path):
    def more(tensors, matrices):
        matrices[Q] = Matrix(99, 256, 256, bits=8, symmetric=True)
        tensors |= matrices[Q].tensors(Q, 0, False)

    source, matrices = make(ROUND | {"packing_format": "auto_round", "extra_config": {
        Q: {"bits": 8}}}, 0, change=more, quantised=lambda name: "k_proj" not in name)
    convert(source, tmp_path / "made")
    check(source, tmp_path / "made", matrices)
    config = json.loads((tmp_path / "made/config.json").read_text())["quantization_config"]
    first, second = config["config_groups"].values()
    assert first["weights"]["num_bits"] == 4 and first["targets"] == ["Linear"]
    assert second["weights"]["num_bits"] == 8 and second["targets"] == [Q]
    assert (first["weights"]["symmetric"], second["weights"]["symmetric"]) == (False, True)
    assert "model.layers.0.self_attn.k_proj" in config["ignore"]


def test_a_quantised_router_and_a_trivial_order(make, tmp_path):
    router = "model.layers.0.block_sparse_moe.gate"

    def add(tensors, matrices):
        matrices[router] = Matrix(5, 8, 256)
        del tensors[router + ".weight"]
        tensors |= matrices[router].tensors(router, 1, False)
        tensors[Q + ".g_idx"] = np.arange(256, dtype=np.int32) // 128

    source, matrices = make(GPTQ | {"desc_act": False}, 1, change=add)
    convert(source, tmp_path / "made")
    made = tensors_of(tmp_path / "made")
    assert Q + ".g_idx" not in made
    assert integers(made, router).tobytes() == matrices[router].values().tobytes()


def test_shards(make, tmp_path):
    source, matrices = make(AWQ, 0, awq=True)
    convert(source, tmp_path / "made", shard=100_000)
    index = json.loads((tmp_path / "made/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    check(source, tmp_path / "made", matrices)
    convert_module.convert(source, tmp_path / "again")
    assert set(index["weight_map"]) == set(tensors_of(tmp_path / "again"))


def test_the_name_of_another_family_is_mended(make, tmp_path):
    source, _ = make(AWQ, 0, awq=True)
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "made")
    made = json.loads((tmp_path / "made/config.json").read_text())
    assert made["model_type"] == "minimax_m2"
    assert made["architectures"] == ["MiniMaxM2ForCausalLM"]


def order(tensors, matrices):
    tensors[DOWN + ".g_idx"] = np.arange(128, dtype=np.int32)[::-1] // 64


def too_high(tensors, matrices):
    matrices[Q].zeros[3, 1] = 16
    tensors |= matrices[Q].tensors(Q, 1, False)


def too_high_in_bytes(tensors, matrices):
    matrices[Q] = Matrix(99, 256, 256, bits=8)
    matrices[Q].zeros[3, 1] = 256
    tensors |= matrices[Q].tensors(Q, 1, False)


def small_groups(tensors, matrices):
    matrices[Q] = Matrix(99, 256, 256, group=16)
    tensors |= matrices[Q].tensors(Q, 1, False)


def three_bits(tensors, matrices):
    tensors[Q + ".qzeros"] = np.zeros((2, 24), np.uint32)


def torn(tensors, matrices):
    tensors[Q + ".qweight"] = np.zeros((31, 256), np.uint32)


def no_scales(tensors, matrices):
    del tensors[Q + ".scales"]


def odd_scales(tensors, matrices):
    tensors[Q + ".scales"] = np.zeros((2, 256), np.uint32)


@pytest.mark.parametrize("config, change, error, words", [
    (GPTQ, order, mm.UnsupportedError, "w2.g_idx' puts columns into groups in another order"),
    (GPTQ | {"desc_act": True}, None, mm.UnsupportedError, "says desc_act, but \"model.*g_idx"),
    (GPTQ, too_high, mm.UnsupportedError, "q_proj.qzeros' has zero .* to 16; 4 bits hold 15"),
    (GPTQ, too_high_in_bytes, mm.UnsupportedError, "has zero .* to 256; 8 bits hold 255 at most"),
    (GPTQ, small_groups, mm.UnsupportedError, "q_proj.scales\" has a scale for 16 of 256 columns"),
    (GPTQ | {"sym": True}, None, mm.FormatError, "zero points from 1 to 1[0-9], but .* symmetric"),
    (GPTQ, three_bits, mm.UnsupportedError, "q_proj.qweight\" has codes of 3 bits; .* 4 or 8"),
    (GPTQ, torn, mm.FormatError, r"q_proj.qweight\" has shape \[31, 256\], expected \[K / 8, N\]"),
    (GPTQ, no_scales, mm.FormatError, "q_proj.scales\" is missing"),
    (GPTQ, odd_scales, mm.FormatError, "q_proj.scales' is i32 of shape .* f16 or bf16 or f32"),
    (GPTQ | {"checkpoint_format": "marlin"}, None, mm.UnsupportedError,
     "checkpoint_format is marlin; known are gptq, gptq_v2"),
    (ROUND, None, mm.UnsupportedError, "packing_format is none; known are auto_round:auto_gptq"),
    (AWQ, None, mm.FormatError, r"expected \[K, N / 8\] of AWQ"),
    (AWQ | {"version": "gemv"}, None, mm.UnsupportedError, "version is gemv, expected gemm"),
    (dict(quant_method="exl3"), None, mm.UnsupportedError, "quant_method is exl3; what can be"),
    (None, None, mm.UnsupportedError, "has no quantization_config"),
])
def test_what_would_lose_something_is_refused(make, tmp_path, config, change, error, words):
    source, _ = make(config, 1, change=change)
    with pytest.raises(error, match=words):
        convert(source, tmp_path / "made")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_what_needs_no_conversion_says_so(tmp_path):
    synth(tmp_path / "m", **SIZES)
    with pytest.raises(mm.UnsupportedError, match="quant_method is fp8"):
        convert(tmp_path / "m", tmp_path / "made")
    synth(tmp_path / "m.gguf", **SIZES | {"expert_size": 256}, format="q4_k")
    with pytest.raises(mm.UnsupportedError, match="is a GGUF checkpoint"):
        convert(tmp_path / "m.gguf", tmp_path / "made")
    with pytest.raises(mm.ArgumentError, match="shard is 0"):
        convert(tmp_path / "m", tmp_path / "made", shard=0)


def test_what_exists_stays(make, tmp_path):
    source, _ = make(GPTQ, 1)
    (tmp_path / "made").mkdir()
    (tmp_path / "made/precious").write_text("x")
    for target in tmp_path / "made", source:
        with pytest.raises(mm.FileError, match="exists"):
            convert(source, target)
    assert (tmp_path / "made/precious").read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_stop_leaves_nothing(make, tmp_path, error):
    def stop(done, total):
        if done > total // 2:
            raise error

    source, _ = make(GPTQ, 1)
    with pytest.raises(error):
        convert(source, tmp_path / "made", progress=stop)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_is_full_is_a_sentence(make, tmp_path):
    source, _ = make(GPTQ, 1)
    code = ("import resource, sys; from minimax2.cli import main; "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000)); sys.exit(main())")
    done = subprocess.run([sys.executable, "-c", code, "convert", source, tmp_path / "made"],
                          capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"minimax2: error: {tmp_path / 'made'}: File too large")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_memory_is_bounded_by_a_tensor(make, tmp_path):
    """A plain tensor of a gigabyte, a hole in the file, is copied in pieces."""
    source, _ = make(GPTQ, 1)
    file = source / "model.safetensors"
    header, data = read_safetensors(file)
    del header["lm_head.weight"]
    data = data[:-300 * 256 * 2]  # it was the last one
    last = len(data)
    header["lm_head.weight"] = {"dtype": "BF16", "shape": [1 << 18, 1 << 11],
                                "data_offsets": [last, last + (1 << 30)]}
    write_safetensors(file, header, data)
    with open(file, "r+b") as opened:
        opened.truncate(file.stat().st_size + (1 << 30))
    code = ("import re, sys; from minimax2.convert import convert; convert(*sys.argv[1:]); "
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])")
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "made"],
                          capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300_000  # KiB
    shutil.rmtree(tmp_path / "made")


def test_the_command(make, tmp_path, capsys):
    source, matrices = make(GPTQ, 1)
    assert cli.main(["convert", str(source), str(tmp_path / "made"), "--shard", "0.0001"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'made'}: 0.00 GB\n"
    check(source, tmp_path / "made", matrices)
    assert cli.main(["convert", str(source), str(tmp_path / "made")]) == 1
    assert "exists" in capsys.readouterr().err
