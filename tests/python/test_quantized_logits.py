"""What fast products and a BF16 or an INT8 cache cost, against exact products and an F32 cache.

m2-tiny, a trained model, is read in its FP8 files (float32 activations when exact, bf16 when fast)
and as GGUF files made of its dequantised weights (8-bit activations). The text is Python
source that came with the interpreter. The figures are the mean KL divergence from the exact model's
next-token distribution, in nats, and the share of positions with the same likeliest token.
"""

import asyncio
import inspect
import json
import pathlib
import sys
import tokenize

import gguf
import minimax2 as mm
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
import checkpoints  # noqa: E402
import codebook_encoder  # noqa: E402
import gguf_file  # noqa: E402

TINY = pathlib.Path(mm.__file__).parent / "m2-tiny"
WINDOW = 512  # tokens that are read as one text
WINDOWS = 20  # 10,240 positions
Kind = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def float_model():
    with mm.load(TINY, threads=2, precision="exact") as model:
        yield model


@pytest.fixture(scope="module")
def texts(float_model):
    """int32 [WINDOWS, WINDOW]"""
    modules = (tokenize, inspect, json.decoder, pathlib, asyncio.base_events)
    ids = float_model.tokenizer.encode("\n".join(inspect.getsource(m) for m in modules))
    assert len(ids) >= WINDOWS * WINDOW
    return np.array(ids[: WINDOWS * WINDOW], np.int32).reshape(WINDOWS, WINDOW)


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.fixture(scope="module")
def expected(float_model, texts):
    """Logits of the float model, WINDOWS times float32 [WINDOW, vocab_size]."""
    return [all_logits(float_model, ids) for ids in texts]


@pytest.fixture(scope="module")
def weights():
    return json.loads((TINY / "config.json").read_text()), checkpoints.decoded(TINY)


def all_logits(model, ids, kv_dtype="f32"):
    with model.session(context=WINDOW, chunk=WINDOW, kv_dtype=kv_dtype) as session:
        (tap,) = session.trace(ids, points=["logits"])
        return np.array(tap.tensor.numpy())


def compare(model, texts, expected, kv_dtype="f32"):
    """(mean KL divergence, share of positions with the same best token)"""
    divergence, same = [], []
    for ids, logits in zip(texts, expected, strict=True):
        p, q = log_softmax(logits), log_softmax(all_logits(model, ids, kv_dtype))
        divergence.append((np.exp(p) * (p - q)).sum(1))
        same.append(p.argmax(1) == q.argmax(1))
    return float(np.mean(divergence)), float(np.mean(same))


def test_bf16_cache(float_model, texts, expected):
    """Keys, values, queries and the weights of attention, rounded."""
    divergence, same = compare(float_model, texts, expected, "bf16")
    print(f"BF16 cache: mean KL {divergence:.2e} nats, same top {same:.2%} of {texts.size}")
    assert 1e-6 < divergence <= 5e-4 and same >= 0.99


def test_int8_cache(float_model, texts, expected):
    """Codes with a scale for each head and position; queries and weights of 15 bits."""
    divergence, same = compare(float_model, texts, expected, "int8")
    print(f"INT8 cache: mean KL {divergence:.2e} nats, same top {same:.2%} of {texts.size}")
    assert 1e-5 < divergence <= 5e-4 and same >= 0.99


def test_bf16_activations(texts, expected):
    with mm.load(TINY, threads=2) as model:
        divergence, same = compare(model, texts, expected)
    print(f"FP8, fast: mean KL {divergence:.2e} nats, same top {same:.2%} of {texts.size}")
    assert 1e-5 < divergence <= 5e-4 and same >= 0.99


# F32 differs from FP8 in the order of its sums. The gates of the smaller formats are loose: they
# catch broken kernels, not lost quality.
@pytest.mark.parametrize(
    "kind, most_divergence, least_same",
    [(Kind.F32, 1e-9, 0.999), (Kind.Q8_0, 1e-3, 0.985), (Kind.Q5_0, 1e-2, 0.9),
     (Kind.Q4_0, 3e-2, 0.8)],
    ids=lambda value: value.name if isinstance(value, Kind) else None,
)
def test_divergence(tmp_path, weights, texts, expected, kind, most_divergence, least_same):
    config, tensors = weights
    entries = gguf_file.quantised(config, tensors, kind)
    path = gguf_file.write(tmp_path / "m2-tiny.gguf", config, entries)
    with mm.load(path, threads=2) as model:
        divergence, same = compare(model, texts, expected)
    print(f"{kind.name}: mean KL {divergence:.2e} nats, same top {same:.2%} of {texts.size}")
    assert divergence <= most_divergence and same >= least_same


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S",
                                  "IQ1_M", "TQ1_0", "TQ2_0", "Q4_1", "Q5_1", "MXFP4", "NVFP4",
                                  "Q1_0"])
def test_integer_path(tmp_path, weights, texts, name):
    """The integer path of a quantised model against its own weights, decoded, with float32
    activations. Quantised are the matrices with rows of whole blocks, in ternary types, which would
    leave nothing of so small a model, only the gates of the experts; the others are F32."""
    config, tensors = weights
    encode = codebook_encoder.encode if name.startswith("IQ") else gguf_file.encode
    block = gguf.GGML_QUANT_SIZES[Kind[name]][0]
    part = "ffn_gate_exps" if name[:3] in ("IQ1", "TQ1", "TQ2") else ""
    entries = [(new, encode(array, Kind[name]), Kind[name])
               if matrix and array.shape[-1] % block == 0 and part in new
               else (new, array, Kind.F32)
               for new, array, matrix in gguf_file.renamed(config, tensors)]
    assert sum(kind == Kind[name] for _, _, kind in entries) >= (5 if part else 27)
    path = gguf_file.write(tmp_path / "m2-tiny.gguf", config, entries)
    with mm.load(path, threads=2, precision="exact") as model:
        expected = [all_logits(model, ids) for ids in texts]
    with mm.load(path, threads=2) as model:
        divergence, same = compare(model, texts, expected)
    print(f"{name}, fast: mean KL {divergence:.2e} nats, same top {same:.2%} of {texts.size}")
    most, least = (5e-3, 0.96) if name == "Q1_0" else (1e-3, 0.985)  # little is left
    assert 1e-9 < divergence <= most and same >= least
