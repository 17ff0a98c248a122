"""Quantised safetensors, in every form that published checkpoints have: what their tensors mean.

The checkpoints are drawn by golden/safetensors_file.py, which computes their values in numpy. Same
bits across levels and threads: test_same_bits.py.
"""

import dataclasses
import json
import math
import pathlib
import sys

import gguf
import minimax2 as mm
import numpy as np
import pytest

from containers import change_json, read_safetensors, write_safetensors

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
import checkpoints  # noqa: E402
import gguf_file  # noqa: E402
import safetensors_file as forms  # noqa: E402
from make_hashes import CASE  # noqa: E402

IDS = checkpoints.prompt(CASE, 70)
ODD = dataclasses.replace(CASE, name="odd", vocab_size=131, num_local_experts=3, seed=77)
Q, W1 = "model.layers.0.self_attn.q_proj", "model.layers.1.block_sparse_moe.experts.2.w1"
TOLERANCE = 1e-4  # of the largest logit, for products whose sums have another order


def dtype_of(form):
    kind, what, *_ = form.split()
    return {"fp8": "f8_e4m3", "nvfp4": "f4_16", "mxfp4": "f4_32", "int4": "i4", "int8": "i8"}[kind]


def everything(form):
    """Embedding, head and router, too."""
    return lambda weight: form if len(weight.shape) == 2 else None


def write(directory, case, entries, quantised=True):
    """A checkpoint of these entries. Its configuration names a method, and lists nothing."""
    path = checkpoints.write_checkpoint(case, directory, entries=entries)
    if quantised:
        change_json(path / "config.json", quantization_config={
            "quant_method": "compressed-tensors", "ignore": ["re:.*"], "config_groups": {}})
    return path


def logits(path, **options):
    """float32 [n, vocab_size] with keys and values in float32."""
    with mm.load(path, threads=2, **options) as model:
        return all_logits(model)


def all_logits(model):
    with model.session(context=len(IDS), chunk=64, kv_dtype="f32") as session:
        ids = IDS % model.config.vocab_size
        taps = session.trace(ids, points=["logits"])
        return np.concatenate([np.array(tap.tensor.numpy()) for tap in taps])


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


def same(ours, theirs):
    """The same bits, but for the sign of a zero."""
    return np.array_equal(bits(ours + np.float32(0)), bits(theirs + np.float32(0)))


@pytest.mark.parametrize("form", forms.FORMS)
def test_values(tmp_path, form):
    """Every weight of the model, under the names of its tensors."""
    choose = forms.everywhere(form)
    entries = list(forms.entries(CASE, choose))
    path = write(tmp_path / "model", CASE, entries)
    sizes = {name: data().nbytes for name, _, _, data in entries}
    with mm.load(path) as model:
        assert {info.dtype for name in model if not (info := model.weight_info(name)).is_part} \
            == {"f32", "bf16", dtype_of(form)}
        for weight, parts, values in forms.draw(CASE, choose):
            if parts is None:
                assert same(model.weight(weight.name).numpy().reshape(values.shape), values)
                continue
            module = weight.name.removesuffix(".weight")
            codes = next(module + e for e in (".weight_packed", ".weight") if e in parts)
            for name in {codes, weight.name}:
                assert same(model.weight(name).numpy(), values)
                info = model.weight_info(name)
                assert info.shape == weight.shape and info.dtype == dtype_of(form)
                assert not info.is_part
                ignored = sum(sizes[module + e] for e in parts if "input" in e or "shape" in e)
                assert info.nbytes == sum(sizes[module + e] for e in parts) - ignored
            assert same(model.weight(codes, 3, 2).numpy(), values[3:5])
            for ending in parts.keys() - {codes.removeprefix(module), ".weight_shape"}:
                assert model.weight_info(module + ending).is_part
                model.weight(module + ending)
        assert model.nbytes == sum(sizes[name] for name in model)
        assert sizes.keys() - set(model) == {name for name in sizes if name.endswith("_shape")}
        assert model.parameters == sum(math.prod(w.shape) for w in checkpoints.weights(CASE))
        assert model.info("quantization") == ", ".join(
            sorted([dtype_of(form), "bf16", "f32"], key=lambda dtype: -sum(
                model[n].nbytes for n in model
                if not (i := model.weight_info(n)).is_part and i.dtype == dtype)))
        with pytest.raises(KeyError, match="no tensor"):
            model.weight(Q + ".weight_pocked")
        with pytest.raises(KeyError, match="no tensor"):
            model.weight_info("x" * 1000)


@pytest.mark.parametrize("form", forms.FORMS)
def test_products(tmp_path, form):
    """Precision "exact" multiplies the values of the decoded model, "fast" nearly them."""
    choose = everything(form)
    path = write(tmp_path / "model", ODD, forms.entries(ODD, choose))
    truth = logits(write(tmp_path / "f32", ODD, forms.plain(ODD, choose), False))
    exact, fast = logits(path, precision="exact"), logits(path)
    largest = np.abs(truth).max()
    if form.startswith("fp8"):  # scales apply to sums
        assert np.abs(exact - truth).max() <= TOLERANCE * largest
    else:
        assert same(exact, truth)
    assert not same(fast, truth)
    assert np.median(np.abs(fast - truth)) < 0.02 * largest  # an expert may be chosen by a hair


@pytest.mark.parametrize("group", [
    ("mxfp4 quark", "mxfp4 compressed", "mxfp4 e8m0"),
    ("fp8 blocks", "fp8 blocks 4-D"), ("fp8 rows", "fp8 rows flat")], ids=lambda g: g[0])
def test_forms_of_one_format(tmp_path, group):
    results = [logits(write(tmp_path / form, CASE, forms.entries(CASE, forms.everywhere(form))))
               for form in group]
    for result in results[1:]:
        assert same(result, results[0])


MATRICES = [weight.name for weight in checkpoints.weights(CASE) if len(weight.shape) == 2]


def mixed(weight):
    """Another form for every module, some plain; the matrices of an expert differ, too."""
    if len(weight.shape) < 2:
        return None
    names = [*forms.FORMS, None]
    return names[MATRICES.index(weight.name) * 7 % len(names)]


def new_names(name):
    """As transformers 5 spells them."""
    for old, new in ((".block_sparse_moe.", ".mlp."), (".w1.", ".gate_proj."),
                     (".w2.", ".down_proj."), (".w3.", ".up_proj.")):
        name = name.replace(old, new)
    return name


def test_every_module_its_own_form(tmp_path):
    used = {mixed(weight) for weight in checkpoints.weights(CASE)}
    assert used == {*forms.FORMS, None}
    truth = logits(write(tmp_path / "f32", CASE, forms.plain(CASE, mixed), False))
    path = write(tmp_path / "model", CASE, forms.entries(CASE, mixed))
    ours = logits(path)
    assert np.median(np.abs(ours - truth)) < 0.02 * np.abs(truth).max()
    assert np.abs(logits(path, precision="exact") - truth).max() < 1e-3 * np.abs(truth).max()
    renamed = write(tmp_path / "new", CASE, forms.entries(CASE, mixed, new_names))
    assert same(logits(renamed), ours)
    assert same(logits(path, mapped=False), ours)
    assert same(logits(path, writable=True), ours)


@pytest.mark.parametrize("form", ["fp8 blocks", "fp8 tensor", "fp8 rows bf16", "nvfp4 modelopt",
                                  "nvfp4 compressed", "mxfp4 quark", "int4 32 zeros",
                                  "int4 64 f16", "int4 128 f32", "int8 rows f32",
                                  "int8 rows zeros f16"])
def test_any_alignment(tmp_path, form):
    """The data of a file may begin at an odd address."""
    path = write(tmp_path / "model", CASE, forms.entries(CASE, everything(form)))
    truth = logits(path)
    header, data = read_safetensors(path / "model.safetensors")
    for more in 1, 2:
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8 + more)
        write_safetensors(path / "model.safetensors", text, data)
        assert same(logits(path), truth)


def test_what_the_index_names(tmp_path):
    """In two shards, with strays beside them; a bias in BF16; input scales partly missing."""
    def to_bf16(entry):
        name, dtype, shape, data = entry
        if "e_score_correction_bias" not in name:
            return entry
        return name, "BF16", shape, lambda: (data().view(np.uint32) >> 16).astype(np.uint16)

    choose = forms.everywhere("nvfp4 modelopt")
    entries = [to_bf16(entry) for entry in forms.entries(CASE, choose)]
    truth = logits(write(tmp_path / "whole", CASE, entries))
    path = write(tmp_path / "parts", CASE, entries)
    (path / "model.safetensors").unlink()
    drop = {name for name, *_ in entries if name.endswith("input_scale")}
    drop = set(sorted(drop)[::3])
    kept = [entry for entry in entries if entry[0] not in drop]
    where = {}
    for number, part in enumerate((kept[::2], kept[1::2])):
        shard = f"model-{number}.safetensors"
        checkpoints.write_safetensors(path / shard, part)
        where |= {name: shard for name, *_ in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (path / "amax-0.safetensors").write_bytes(b"never opened")
    extra = [(Q + ".k_scale", "F32", (), lambda: np.float32(1))]
    checkpoints.write_safetensors(path / "model-inputscales.safetensors", extra)
    (path / "hf_quant_config.json").write_text("{")
    assert same(logits(path), truth)


def stack(form, name, shape, each):
    """A stack of matrices in a form: {name: (dtype, array)} and its values. `each`: with a scale of
    its own for every matrix where the form has one for all."""
    count, rows, columns = shape
    parts, values = forms.FORMS[form](CASE, name, (count * rows, columns), columns**-0.5)
    values = values.reshape(shape)
    tensors = {}
    for ending, (dtype, array) in parts.items():
        if array.ndim > 1:
            array = array.reshape(count, -1, array.shape[-1])
        elif each and ending in (".weight_scale", ".weight_scale_2"):
            factors = np.float32(2) ** np.arange(count, dtype=np.float32)
            array, values = array * factors, values * factors[:, None, None]
        if ending.startswith(".weight"):
            tensors[name + ending.removeprefix(".weight")] = dtype, array
    return tensors, values


@pytest.mark.parametrize("form, each", [
    ("fp8 blocks", False), ("fp8 rows", False), ("fp8 tensor", False), ("fp8 tensor", True),
    ("nvfp4 modelopt", False), ("nvfp4 modelopt", True), ("mxfp4 quark", False)])
def test_fused_experts(tmp_path, form, each):
    """Gate above up in one stack; up begins within a block of FP8 scales."""
    case = dataclasses.replace(CASE, num_hidden_layers=1, intermediate_size=192)
    packed, plain = {}, {}
    for name, _, shape, data in checkpoints.fused(case):
        if name.endswith("_proj"):
            tensors, values = stack(form, name, shape, each)
            packed |= tensors
            plain[name] = "F32", values
        else:
            packed[name] = plain[name] = "F32", data()

    def entries(tensors):
        return [(name, dtype, array.shape, lambda array=array: array)
                for name, (dtype, array) in tensors.items()]

    path = write(tmp_path / "model", case, entries(packed))
    truth = logits(write(tmp_path / "f32", case, entries(plain), False))
    with mm.load(path) as model:
        for name, (_, values) in plain.items():
            assert same(model.weight(name).numpy().reshape(values.shape), values)
            assert model.weight_info(name).shape == values.shape
    exact = logits(path, precision="exact")
    assert np.abs(exact - truth).max() <= TOLERANCE * np.abs(truth).max()


def test_edits(tmp_path):
    """Codes and scales that are used where they lie may be written to."""
    path = write(tmp_path / "model", CASE, forms.entries(CASE, forms.everywhere("int4 32 zeros")))
    with mm.load(path, writable=True) as model:
        before = all_logits(model)
        for ending in "_packed", "_scale", "_zero_point":
            name = W1 + ".weight" + ending
            values = model.weight(W1 + ".weight").numpy().copy()
            np.asarray(memoryview(model[name]))[0] ^= 0x1100
            assert not same(model.weight(W1 + ".weight").numpy(), values)
            after = all_logits(model)
            assert not same(after, before)
            before = after


def test_cost_counts_scales_and_zero_points(tmp_path):
    for form in "fp8 rows bf16", "nvfp4 compressed", "int4 32 zeros", "int8 32 zeros":
        entries = list(forms.entries(CASE, everything(form)))
        path = write(tmp_path / form, CASE, entries)
        sizes = {name: data().nbytes for name, _, _, data in entries
                 if not name.endswith(("_shape", "global_scale", "embed_tokens.weight"))
                 and "embed_tokens" not in name}
        if form == "fp8 rows bf16":  # held as float32
            sizes = {n: size * (2 if n.endswith("_scale") else 1) for n, size in sizes.items()}
        with mm.load(path) as model:
            layers, rest = model.cost(1 << 12)
            embedding = rest.weight_bytes - sum(
                size for n, size in sizes.items() if "layers" not in n)
            assert embedding > 0
            assert layers.weight_bytes == sum(size for n, size in sizes.items() if "layers" in n)


# ---- GGUF: NVFP4 blocks whose tensor has a scale of its own ----


def nvfp4_blocks(name, shape, spread):
    """(uint8 blocks of GGUF's NVFP4, the codes' values, the scales of 16 codes)."""
    count = math.prod(shape) // 64
    data = checkpoints.hash_bytes(CASE, name, (count, 36)).copy()
    data[:, :4] = 0x30 + data[:, :4] % 24
    low, high = data[:, 4:] & 15, data[:, 4:] >> 4
    codes = np.concatenate([low.reshape(-1, 4, 8), high.reshape(-1, 4, 8)], 2).reshape(shape)
    scales = checkpoints.e4m3_values()[data[:, :4]].reshape(*shape[:-1], -1)
    return data.reshape(*shape[:-1], -1), forms.E2M1[codes] + np.float32(0), scales


def write_nvfp4(directory, spell):
    """GGUF files of NVFP4 and of their values in F32. `spell`: (name of a weight, its scales) to
    tensors beside it."""
    packed, plain = [], []
    tensors = {w.name: checkpoints.values(CASE, w) for w in checkpoints.weights(CASE)}
    for name, array, is_matrix in gguf_file.renamed(CASE.config(), tensors):
        if not is_matrix:
            packed.append((name, array, gguf_file.F32))
            plain.append(packed[-1])
            continue
        data, values, scales = nvfp4_blocks(name, array.shape, array.std())
        count = array.shape[0] if array.ndim == 3 else 1
        globals_ = forms.uneven(CASE, name, (count,), array.std() / forms.SPREAD["e2m1"] / 2)
        wide = globals_.reshape(-1, *[1] * (array.ndim - 1))
        plain.append((name, values * (scales * wide).repeat(16, -1), gguf_file.F32))
        packed.append((name, data, gguf.GGMLQuantizationType.NVFP4))
        packed += [(beside, x, gguf_file.F32) for beside, x in spell(name, globals_)]
    return (gguf_file.write(directory / "nvfp4.gguf", CASE.config(), packed),
            gguf_file.write(directory / "f32.gguf", CASE.config(), plain))


def test_scales_beside_blocks(tmp_path):
    def spell(name, scales):
        stem = name.removesuffix("weight")
        variant = "weight.scale" if "attn_k" in name else "scale"
        return [(stem + variant, scales), (stem + "input_scale", scales * 0)]

    path, plain = write_nvfp4(tmp_path, spell)
    with mm.load(plain) as model:
        truth = all_logits(model)
        values = {name: model.weight(name).numpy() for name in model}
    with mm.load(path, precision="exact") as model:
        assert same(all_logits(model), truth)
        for name, array in values.items():
            assert same(model.weight(name).numpy(), array)
        assert model.weight_info("blk.0.attn_k.weight.scale").is_part
        assert model.weight_info("blk.0.ffn_up_exps.input_scale").is_part
        assert not model.weight_info("blk.0.attn_q.weight").is_part
        assert model.parameters == sum(array.size for array in values.values())
    assert np.median(np.abs(logits(path) - truth)) < 0.02 * np.abs(truth).max()


@pytest.mark.parametrize("scales, words", [
    (np.float32([0]), "is 0, expected a finite number above 0"),
    (np.float32([np.nan]), "is nan, expected"),
    (np.float32([1, 1]), r"has shape \[2\], expected \[1\]"),
    (np.float32([-1]), "is -1, expected")])
def test_a_scale_that_makes_no_sense(tmp_path, scales, words):
    def spell(name, good):
        return [(name.removesuffix("weight") + "scale", scales if "attn_v" in name else good)]

    with pytest.raises(mm.FormatError, match=words):
        mm.load(write_nvfp4(tmp_path, spell)[0])


# ---- Sizes ----


@pytest.mark.parametrize("experts, top", [(1, 1), (154, 8), (180, 32), (192, 8), (512, 32)])
def test_any_number_of_experts(tmp_path, experts, top):
    """As pruned models have them, in a form whose experts are tensors of their own: each token goes
    to the best by score and bias, at every level."""
    case = dataclasses.replace(CASE, name="many", num_local_experts=experts, hidden_size=64,
                               num_experts_per_tok=top, intermediate_size=32, num_hidden_layers=1)
    path = write(tmp_path / "model", case, forms.entries(case, forms.everywhere("int4 rows")))
    results = []
    for isa in ("ref", None):
        with mm.load(path, isa=isa, threads=2) as model:
            bias = model["model.layers.0.block_sparse_moe.e_score_correction_bias"].numpy()
            points = ["router_logits", "expert_indices", "expert_weights"]
            with model.session(context=len(IDS), chunk=64) as session:
                taps = {name: [] for name in points}
                for tap in session.trace(IDS, points=points):
                    taps[tap.point].append(np.array(tap.tensor.numpy()))
                results.append(session.logits.numpy().copy())
            router, chosen, share = (np.concatenate(taps[name]) for name in points)
            assert router.shape == (len(IDS), experts) and chosen.shape == (len(IDS), top)
            score = 1 / (1 + np.exp(-router.astype(np.float64)))
            best = np.sort(np.argsort(-(score + bias), 1, kind="stable")[:, :top], 1)
            assert (np.sort(chosen, 1) == best).mean() > 0.999
            taken = np.take_along_axis(score, chosen.astype(np.int64), 1)
            assert np.allclose(share, taken / taken.sum(1, keepdims=True), rtol=1e-5)
    assert same(*results)
