"""The golden hashes: SHA-256 of the logits of one small checkpoint in every weight format, and in
some with precision "exact", or with an int8 cache.

    python tests/golden/make_hashes.py      # writes hashes.json

They say which bits the library computes, at every instruction-set level but BLAS. They change only
together with MM2_NUMERICS in csrc/minimax2.h.
"""

import dataclasses
import hashlib
import json
import pathlib
import tempfile

import gguf
import minimax2 as mm
import numpy as np

import checkpoints
import gguf_file
import safetensors_file

HASHES = pathlib.Path(__file__).resolve().with_name("hashes.json")
CASE = checkpoints.Case(
    "bits", hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
    rotary_dim=32, num_local_experts=6, num_experts_per_tok=2, intermediate_size=256,
    num_hidden_layers=2, vocab_size=144, rope_theta=5e6, rms_norm_eps=1e-6, seed=301)
PLAIN = ("F32", "BF16", "FP8")  # as safetensors
QUANTISED = ("F16", *gguf_file.SCALES)  # as GGUF
FORMS = ("fp8 rows bf16", "nvfp4 modelopt", "nvfp4 compressed", "mxfp4 quark", "int4 32 zeros",
         "int4 rows", "int8 128", "int8 32 zeros")  # of safetensors_file.py
EXACT = tuple(f"{kind} exact" for kind in ("BF16", "FP8", "Q8_0", "Q3_K", "Q4_K", "IQ4_XS", "Q4_1",
                                           "NVFP4", "nvfp4 compressed", "int4 32 zeros",
                                           "int8 32 zeros"))
INT8_CACHE = tuple(f"{kind} int8 cache" for kind in ("F32", "FP8", "Q4_K"))
KINDS = (*PLAIN, *QUANTISED, *FORMS, *EXACT, *INT8_CACHE)
IDS = checkpoints.prompt(CASE, 270)  # crosses the 256-position chunk of attention


def write(kind, directory):
    """The checkpoint with matrices of a kind of KINDS; returns its path."""
    directory = pathlib.Path(directory)
    kind = kind.removesuffix(" exact").removesuffix(" int8 cache")
    if kind in PLAIN:
        case = dataclasses.replace(CASE, storage=kind)
        return checkpoints.write_checkpoint(case, directory / kind)
    if kind in FORMS:
        entries = safetensors_file.entries(CASE, safetensors_file.everywhere(kind))
        return checkpoints.write_checkpoint(CASE, directory / kind, entries=entries)
    number = gguf.GGMLQuantizationType[kind]
    if kind == "F16":
        tensors = {w.name: checkpoints.values(CASE, w) for w in checkpoints.weights(CASE)}
        entries = gguf_file.quantised(CASE.config(), tensors, number)
    else:
        entries = gguf_file.drawn(CASE, number)
    return gguf_file.write(directory / f"{kind}.gguf", CASE.config(), entries)


def load(kind, path, **options):
    """A checkpoint of a kind, opened with the precision that belongs to it."""
    return mm.load(path, precision="exact" if kind in EXACT else "fast", **options)


def kv_dtype(kind):
    """Keys and values are BF16 in the hashes of precision "exact" too."""
    return "int8" if kind in INT8_CACHE else "bf16"


def all_logits(model, ids, chunk, kind):
    """float32 [n, vocab_size]; the prompt goes through the layers `chunk` tokens at a time."""
    with model.session(context=len(ids), chunk=chunk, kv_dtype=kv_dtype(kind)) as session:
        taps = session.trace(ids, points=["logits"])
        return np.concatenate([np.array(tap.tensor.numpy()) for tap in taps])


def digest(logits):
    assert np.isfinite(logits).all()
    return hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest()


def main():
    hashes = {}
    with tempfile.TemporaryDirectory() as directory:
        for kind in KINDS:
            with load(kind, write(kind, directory), isa="ref", threads=2) as model:
                hashes[kind] = digest(all_logits(model, IDS, 64, kind))
    HASHES.write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    main()
