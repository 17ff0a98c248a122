"""minimax2 bench, and what it stands on: limits, costs, predictions."""

import json
import math
import shutil

import minimax2 as mm
import pytest
from minimax2 import bench
from minimax2.synth import synth
from test_cli import good, run

HIDDEN, HEADS, KV_HEADS, DIM, EXPERTS, ACTIVE, WIDTH, VOCAB = 256, 8, 2, 32, 8, 2, 256, 512


# ---- Costs ----

def by_hand(model, tokens, depth, kv_bytes=2):
    """(weight bytes, KV bytes, operations) of the layers, and of the rest, from the tensors."""
    layers = rest = ops = head_ops = 0
    share = 1 - (1 - ACTIVE / EXPERTS) ** tokens
    for name, tensor in model.items():
        weights = math.prod(tensor.shape)
        is_scale = name.endswith("_scale_inv")
        if ".layers." in name or name.startswith("blk."):
            expert = ".experts." in name or "_exps." in name
            layers += tensor.nbytes * (share if expert else 1)
            if len(tensor.shape) > 1 and not is_scale:
                ops += 2 * weights * tokens * (ACTIVE / EXPERTS if expert else 1)
        elif name in ("model.embed_tokens.weight", "token_embd.weight"):
            rest += tensor.nbytes // tensor.shape[0] * tokens
        else:
            rest += tensor.nbytes
            head_ops += 2 * weights if len(tensor.shape) > 1 and not is_scale else 0
    count = model.config.num_hidden_layers
    positions = sum(depth + i + 1 for i in range(tokens))
    ops += count * 4 * HEADS * DIM * positions
    return layers, count * depth * 2 * KV_HEADS * DIM * kv_bytes, ops, rest, head_ops


@pytest.fixture(scope="module", params=["fp8", "q8_0", "q4_k_m", "bf16", "f32"])
def some(request, tmp_path_factory):
    """Random checkpoints, two layers."""
    path = tmp_path_factory.mktemp("bench") / f"{request.param}.gguf"
    if request.param == "fp8":
        path = path.with_suffix("")
    synth(path, like="tiny", layers=2, format=request.param)
    with mm.load(path, threads=1) as model:
        yield model


@pytest.mark.parametrize("tokens, depth", [(1, 0), (1, 1000), (2, 0), (300, 20)])
def test_costs_are_those_of_the_tensors(some, tokens, depth):
    layers, rest = some.cost(tokens, depth)
    weights, kv, ops, other, head_ops = by_hand(some, tokens, depth)
    assert layers.weight_bytes == pytest.approx(weights, rel=1e-12)
    assert (layers.kv_bytes, rest.kv_bytes, rest.weight_bytes) == (kv, 0, other)
    assert layers.ops == pytest.approx(ops, rel=1e-12)
    assert rest.ops == head_ops
    assert layers.bytes == layers.weight_bytes + kv
    assert some.cost(tokens, depth, "f32")[0].kv_bytes == 2 * kv
    codes = kv / 2 + some.config.num_hidden_layers * depth * 2 * KV_HEADS * 4  # and scales
    assert some.cost(tokens, depth, "int8")[0].kv_bytes == codes


def test_operations_count_by_what_multiplies(some):
    layers, rest = some.cost()
    attention = 2 * 4 * HEADS * DIM
    router = 2 * 2 * EXPERTS * HIDDEN
    kind = some.info("quantization").split(",")[0]
    if kind in ("q8_0", "q4_k"):
        assert (layers.bf16_ops, layers.f32_ops) == (attention, router)
        assert rest.int8_ops == 2 * VOCAB * HIDDEN
    elif kind == "f32":
        assert (layers.int8_ops, layers.bf16_ops) == (0, attention)
        assert some.cost(1, 0, "f32")[0].bf16_ops == 0
        assert some.cost(1, 0, "int8")[0][2:4] == (attention, 0)
    else:
        assert layers.int8_ops == rest.int8_ops == 0
        assert rest.bf16_ops == 2 * VOCAB * HIDDEN


def test_enough_tokens_need_every_expert(some):
    layers, _ = some.cost(1000)
    outside = ("embed", "embd", "lm_head", "output.weight", "model.norm", "output_norm")
    assert layers.weight_bytes == pytest.approx(sum(
        tensor.nbytes for name, tensor in some.items() if name.startswith("blk.")
        or ".layers." in name and not name.startswith(outside)), rel=1e-12)


@pytest.mark.parametrize("arguments, sentence", [
    ((0,), "0 tokens behind 0"), ((1, -1), "1 tokens behind -1"), ((4097,), "4096 positions"),
    ((1, 4096), "4096 positions"), ((2**31 - 1, 2**31 - 1), "4096 positions"),
    ((1, 0, "q8"), "kv_dtype is 'q8'"), ((2**31,), "tokens is 2147483648")])
def test_costs_refuse(tiny, arguments, sentence):
    with pytest.raises(mm.ArgumentError, match=sentence):
        tiny.cost(*arguments)


# ---- Limits ----

@pytest.mark.parametrize("isa", ["ref", None])
def test_limits(isa):
    with mm.load(threads=2, isa=isa) as model:
        limits = model.limits()
    assert limits.threads == 2
    assert 1e8 < limits.plain_read <= limits.best_read < 1e13
    assert all(1e8 < value < 1e16 for value in limits[3:])


def test_limits_of_mapped_weights(tmp_path):
    """A model above 512 MB is read itself, not other memory."""
    synth(tmp_path / "large", layers=1, hidden=512, experts=256, expert_size=768, format="bf16",
          vocab=512)
    with mm.load(tmp_path / "large", threads=2) as model:
        assert model.nbytes > 512 << 20
        limits = model.limits()
        assert 1e8 < limits.plain_read <= limits.best_read < 1e13
    shutil.rmtree(tmp_path / "large")


# ---- Arithmetic ----

HERE = bench.Machine("here", read=10.0, int8=100.0, bf16=50.0, f32=25.0, memory=1000.0)
DECODE, PREFILL = bench.Run("decode", 5, 32), bench.Run("prefill", 0, 4)


def cost(weights=0.0, kv=0.0, int8=0.0, bf16=0.0, f32=0.0):
    return mm.Cost(weights, kv, int8, bf16, f32)


def test_the_roof():
    both = cost(15, 5, int8=100, bf16=25, f32=5)
    assert bench.compute_seconds(both, HERE) == pytest.approx(1.7)
    assert bench.bound_seconds(both, HERE) == pytest.approx(2.0)
    assert bench.bound_seconds(both._replace(f32_ops=105.0), HERE) == pytest.approx(5.7)
    assert bench.whole(cost(2, 3), cost(1, int8=7), 62) == cost(125, 186, int8=7)


def test_summaries_hold_each_repeat_against_its_own_limits():
    limits = [mm.Limits(1, 8.0, 10.0, 100.0, 50.0, 25.0), mm.Limits(1, 16.0, 20.0, 200.0, 100.0,
                                                                    50.0),
              mm.Limits(1, 80.0, 100.0, 1000.0, 500.0, 250.0)]
    made = bench.summarize(DECODE, cost(20, int8=50), [4.0, 2.0, 1.0], limits)
    assert made["tokens_per_second"] == 0.5 and made["bytes_per_token"] == 20
    assert made["share_of_best_read"] == pytest.approx(0.5)
    assert made["share_of_plain_read"] == pytest.approx(0.625)
    assert made["share_of_peak"] == pytest.approx(0.125)
    assert made["share_of_roofline"] == pytest.approx(0.5)
    assert made["tera_ops"] == pytest.approx(25e-12)
    made = bench.summarize(PREFILL, cost(20, int8=1000), [20.0] * 3, limits[:1] * 3)
    assert made["tokens_per_second"] == 0.2 and made["bytes_per_token"] == 5
    assert made["share_of_roofline"] == made["share_of_peak"] == pytest.approx(0.5)


def test_predictions():
    full = cost(100, 20, int8=300)
    made = bench.predict(DECODE, full, 0.8, HERE, needs=999.0)
    assert made["tokens_per_second"] == pytest.approx(0.8 / 12)  # bytes / (share x read)
    assert (made["bytes_per_token"], made["fits"], made["layers"]) == (120, True, 62)
    made = bench.predict(PREFILL, full._replace(int8_ops=2000.0), 0.5, HERE, needs=1001.0)
    assert made["tokens_per_second"] == pytest.approx(4 * 0.5 / 20) and made["fits"] is False
    assert bench.predict(DECODE, full, 1, HERE._replace(memory=None), 1)["fits"] is None


def test_memory_of_the_whole_model(some):
    needs = bench.memory_needed(some, bench.Run("decode", 90, 10))
    layers = some.cost(1000)[0].weight_bytes
    kv = 62 * 100 * 2 * KV_HEADS * DIM * 2
    assert needs == pytest.approx(31 * layers + some.nbytes - layers + kv, rel=1e-9)


# ---- The command ----

QUICK = ("--depth", "0,20", "--prompt", "16,40", "--decode", 4, "--repeat", 2, "--threads", 2)


def test_json_and_plot(blank_path, tmp_path):
    picture = tmp_path / "roof.png"
    made = json.loads(good("bench", "-m", blank_path, *QUICK, "--json", "--plot", picture,
                           "--machine", "name=small cores=1 read=1 ram=1e-9"))
    text = bench.__doc__
    for part in (made, made["limits"], *made["runs"], *made["predictions"]):
        assert all(name in text for name in part)
    assert [(entry["kind"], entry["depth"], entry["tokens"]) for entry in made["runs"]] == [
        ("decode", 0, 4), ("decode", 20, 4), ("prefill", 0, 16), ("prefill", 0, 40)]
    assert 0.9 * made["limits"]["plain_read"] <= made["limits"]["best_read"]
    for entry in made["runs"]:
        assert all(value > 0 for name, value in entry.items() if name not in ("kind", "depth"))
        assert entry["share_of_best_read"] <= entry["share_of_plain_read"]
        assert entry["share_of_roofline"] >= entry["share_of_peak"]
        assert entry["tera_ops"] == pytest.approx(
            entry["ops_per_token"] * entry["tokens_per_second"] / 1e12)
    with mm.load(blank_path) as model:
        assert made["runs"][1]["bytes_per_token"] == sum(c.bytes for c in model.cost(1, 22))
    assert [(entry["machine"], entry["fits"]) for entry in made["predictions"]] == [
        ("this machine", True), ("small", False)] * 4
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_table(blank_path):
    output = good("bench", "-m", blank_path, *QUICK,
                  "--machine", "name=small cores=1 read=1 ram=1e-9")
    for part in ("GB/s at best", "TOP/s int8", "decode at 20", "prefill 40", "of roof",
                 "lies in the caches", "Prediction for 62 layers of these widths", "this machine",
                 "small", "does not fit: needs"):
        assert part in output
    assert max(map(len, output.splitlines())) < 132


def test_what_does_not_fit_is_left_out_or_refused(tiny):
    assert bench._fitting("depth", None, bench.DEPTHS, 4064) == [0]
    assert bench._fitting("prompt", None, bench.PROMPTS, 100) == [100]
    assert bench._fitting("prompt", [3, 2, 3], bench.PROMPTS, 100) == [3, 2]
    for arguments, sentence in (
            (("--depth", 4096), "--depth is 4096"), (("--prompt", "1,5000"), "--prompt is 5000"),
            (("--depth", "-1"), "--depth is -1"), (("--chunk", 0), "chunk is 0"),
            (("--decode", 5000), "--decode is 5000"),
            (("--plot", "x.exe"), "must end in one of ."),
            (("--plot", "/does/not/exist.png"), "no such directory")):
        code, output, errors = run("bench", "--repeat", 1, *arguments)
        assert (code, output) == (1, "") and sentence in errors, (arguments, errors)
        assert errors.startswith("minimax2: error: ") and errors.count("\n") == 1


def test_steps_are_counted(blank):
    seen = []
    bench.measure(blank, [0], [4, 8], decode=2, repeat=2, watch=seen.append)
    assert len(seen) == bench.steps([0], [4, 8], 2)
    assert seen.count("limits") == 2 and seen.count("prefill 8") == 2
