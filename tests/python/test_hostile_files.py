"""Damaged and malicious checkpoints end in an error with a sentence: no crash, no hang, no repair.

Every case takes a small valid checkpoint, breaks one thing, and names the exception and words that
the sentence must have. The sweeps at the end break a header at every byte and every bit.
"""

import json
import math
import os
import resource
import shutil
import struct
import time

import pytest

import minimax2 as mm
from containers import (ARRAY, STRING, Gguf, Info, change_json, f32, read_safetensors, split_gguf,
                        string, u32, write_safetensors)
from minimax2.synth import synth

SIZES = dict(like="tiny", layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, experts=2,
             experts_per_token=1, expert_size=32, vocab=272)
ARCH = "minimax-m2."
BAD, OTHER, GONE = mm.FormatError, mm.UnsupportedError, mm.FileError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with the valid checkpoints: f32.gguf, q8_0.gguf, fp8/, shards/."""
    folder = tmp_path_factory.mktemp("hostile")
    synth(folder / "f32.gguf", format="f32", **SIZES)
    synth(folder / "q8_0.gguf", format="q8_0", **SIZES)
    synth(folder / "fp8", **SIZES)
    synth(folder / "shards", shard=20_000, **SIZES)
    for path in folder.iterdir():
        mm.load(path).close()
    return folder


def refused(path, error, words):
    """The error with these words; quick, and small in memory."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(mm.Error) as caught:
        mm.load(path).close()
    assert time.process_time() - started < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 64 << 10  # KiB
    assert isinstance(caught.value, error), caught.value
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert words in sentence
    assert len(sentence) > 20 and "\n" not in sentence


# ---- GGUF ----

def set_pair(key, type, payload):
    return lambda g: g.set(key, type, payload)


def size(key, value):
    return set_pair(ARCH + key, 4, u32(value))


def drop(key):
    return lambda g: g.drop(key)


def both(*changes):
    def apply(g):
        for change in changes:
            change(g)
    return apply


def change(tensor, /, **fields):
    """Fields of a tensor's info."""
    def apply(g):
        info = g.info(tensor)
        for field, value in fields.items():
            setattr(info, field, value)
    return apply


def header(**fields):
    def apply(g):
        for field, value in fields.items():
            setattr(g, field, value)
    return apply


def without(name):
    return lambda g: g.infos.remove(g.info(name))


def raw_key(length, key=b"a"):
    """A first pair whose key claims a length."""
    def apply(g):
        whole = g.build()
        return whole[:24] + struct.pack("<Q", length) + key + u32(4) + u32(0) + whole[24:]
    return apply


def raw_dims(count):
    """A first tensor that claims a number of dimensions."""
    def apply(g):
        info = g.infos[0]
        head = string(info.name)
        return g.build().replace(head + u32(len(info.dims)), head + u32(count), 1)
    return apply


def cut(count):
    return lambda g: g.build()[:-count]


def overlap(g):
    g.info("blk.0.attn_q.weight").offset = g.info("blk.0.attn_k.weight").offset


def array(item, count, payload=b""):
    return u32(item) + struct.pack("<Q", count) + payload


GGUF_CASES = [
    ("empty file", lambda g: b"", BAD, "the file is empty"),
    ("three bytes", lambda g: b"GGU", BAD, 'begin with "GGUF"'),
    ("magic alone", lambda g: b"GGUF", BAD, "cut short"),
    ("magic", lambda g: b"GGML" + g.build()[4:], BAD, 'begin with "GGUF"'),
    ("zeros", lambda g: bytes(4096), BAD, 'begin with "GGUF"'),
    ("version 0", header(version=0), OTHER, "GGUF version 0, expected 3"),
    ("version 1", header(version=1), OTHER, "GGUF version 1, expected 3"),
    ("version 4", header(version=4), OTHER, "GGUF version 4, expected 3"),
    ("big-endian", header(version=0x03000000), OTHER, "(big-endian), expected 3"),
    ("2^64-1 pairs", header(n_pairs=2**64 - 1), BAD, "the number of metadata pairs is 1844674"),
    ("2^63 pairs", header(n_pairs=2**63), BAD, "the number of metadata pairs is 9223372"),
    ("5000 pairs", header(n_pairs=5000), BAD, "the number of metadata pairs is 5000"),
    ("a pair too many", lambda g: header(n_pairs=len(g.pairs) + 1)(g), BAD, ""),
    ("a pair too few", lambda g: header(n_pairs=len(g.pairs) - 1)(g), BAD, ""),
    ("2^64-1 tensors", header(n_tensors=2**64 - 1), BAD, "the number of tensors is 1844674"),
    ("2^63 tensors", header(n_tensors=2**63), BAD, "the number of tensors is 9223372"),
    ("200000 tensors", header(n_tensors=200000), BAD, "the number of tensors is 200000"),
    ("no tensors", header(n_tensors=0), BAD, "holds no tensors"),
    ("a tensor too few", lambda g: header(n_tensors=len(g.infos) - 1)(g), BAD, "is missing"),
    ("key of 2^64-1 bytes", raw_key(2**64 - 1), BAD, "a metadata key 18446744073709551615"),
    ("key of 1 GiB", raw_key(1 << 30), BAD, "a metadata key 1073741824"),
    ("key of 0 bytes", raw_key(0, b""), BAD, "a metadata key is empty"),
    ("key with NUL", lambda g: g.set("a\0b", 4, u32(0)), BAD, "printable ASCII"),
    ("key not UTF-8", lambda g: g.pairs.append([b"\xff\xfe", 4, u32(0)]), BAD, "printable ASCII"),
    ("key twice", lambda g: g.pairs.append(g.pairs[1]), BAD, "key general.name appears twice"),
    ("value type 13", set_pair("x", 13, u32(0)), BAD, "x has value type 13"),
    ("value type -1", set_pair("x", 2**32 - 1, u32(0)), BAD, "x has value type 4294967295"),
    ("flag of 2", set_pair("x", 7, b"\2"), BAD, "x is a flag of value 2"),
    ("array of arrays", set_pair("x", ARRAY, array(ARRAY, 1, array(4, 0))), BAD,
     "arrays of arrays"),
    ("array of type 99", set_pair("x", ARRAY, array(99, 1, u32(0))), BAD, "x has value type 99"),
    ("array of 2^61 items", set_pair("x", ARRAY, array(10, 2**61)), BAD, "item count is 23058430"),
    ("array of 2^64-1 items", set_pair("x", ARRAY, array(0, 2**64 - 1)), BAD, "item count is 1844"),
    ("array of 2^24 items", set_pair("x", ARRAY, array(4, 2**24)), BAD, "ends within an array"),
    ("array of strings of 2^63", set_pair("x", ARRAY, array(STRING, 2, struct.pack("<Q", 2**63))),
     BAD, "a string of an array 9223372036854775808"),
    ("array of 2^24 strings", set_pair("x", ARRAY, array(STRING, 2**24)), BAD,
     "a string of an array"),
    ("string of 1 GiB", set_pair("x", STRING, struct.pack("<Q", 1 << 30)), BAD,
     "a string 1073741824"),
    ("string of 2^64-1", set_pair("x", STRING, struct.pack("<Q", 2**64 - 1)), BAD, "a string 1844"),
    ("string beyond the end", set_pair("x", STRING, struct.pack("<Q", 16 << 20)), BAD,
     "ends within a string"),
    *[(f"alignment {n}", set_pair("general.alignment", 4, u32(n)), BAD, f"alignment is {n}, exp")
      for n in (0, 1, 3, 4, 48, 1 << 17, 1 << 30, 1 << 31)],
    ("alignment as a string", set_pair("general.alignment", STRING, string("32")), BAD,
     "general.alignment has value type 8"),
    ("alignment of 64", set_pair("general.alignment", 4, u32(64)), BAD, ""),
    ("tensor without a name", change("output.weight", name=b""), BAD, '"output.weight" is missing'),
    ("tensor name of 64 KiB", change("output.weight", name=b"x" * 65536), BAD,
     "a tensor's name 65536, expected at most 65535"),
    ("tensor name with NUL", change("output.weight", name=b"a\0b"), BAD,
     '"output.weight" is missing'),
    ("tensor name not UTF-8", change("output.weight", name=b"a\xff"), BAD,
     '"output.weight" is missing'),
    ("tensor twice", lambda g: g.infos.append(Info(**vars(g.infos[0]))), BAD,
     'tensor "token_embd.weight" appears twice'),
    ("0 dimensions", raw_dims(0), BAD, "a tensor's name"),
    ("5 dimensions", raw_dims(5), BAD, ""),
    ("5 true dimensions", change("output.weight", dims=[32, 272, 1, 1, 1]), OTHER,
     "has 5 dimensions; this build reads f32"),
    ("65 dimensions", raw_dims(65), BAD, "has 65 dimensions, expected at most 64"),
    ("2^32-1 dimensions", raw_dims(2**32 - 1), BAD, "has 4294967295 dimensions"),
    *[(f"dimensions {dims}", change("output.weight", dims=list(dims)), BAD, words)
      for dims, words in {
          (32, 0): "has shape [0, 32], expected", (0, 0): "has shape [0, 0], expected",
          (32, 2**63): "a dimension is 9223372036854775808",
          (2**64 - 1, 1): "a dimension is 18446744073709551615",
          (32, 2**40 + 1): "a dimension is 1099511627777",
          (2**32, 2**32): "too large", (2**40, 2**40): "too large", (2**40, 2**40, 2**40): "too",
          (2**40, 2**24): "too large", (2**40, 2**22): "too large", (2**40, 2**21): "too large",
          (2**31, 2**31 - 2): "too large",
          (2**32, 2**29 - 1): "needs 9223372019674906624 bytes", (33, 272): "",
          (32, 272, 1): "has shape [1, 272, 32], expected [272, 32]",
          (32,): "has shape [32]"}.items()],
    *[(f"type {n}", change("output.weight", type=n), OTHER, f"has type {n} ({name})")
      for n, name in {9: "Q8_1", 15: "Q8_K", 24: "I8",
                      **dict.fromkeys((4, 5, 31, 33, 36, 38), "gone from ggml: take a newer file"),
                      **dict.fromkeys((97, 137, 399), "this file needs ik_llama.cpp"),
                      **dict.fromkeys((42, 47, 96, 400, 2**31, 2**32 - 1),
                                      "unknown to this build")}.items()],
    *[(f"type {n}, smaller", change("output.weight", type=n), BAD, "multiple of 256, the block of")
      for n in (16, 17, 18, 19, 21, 22, 29, 34, 35)],
    ("rows of no whole blocks", change("output.weight", type=12), BAD,
     "rows of 32 elements, expected a multiple of 256, the block of q4_k"),
    ("offset unaligned", change("output.weight", offset=8), BAD, "no multiple of the alignment 32"),
    ("offset past the end", change("output.weight", offset=1 << 30), BAD, "beyond the file"),
    ("offset 2^63-32", change("output.weight", offset=2**63 - 32), BAD, "beyond the file"),
    ("offset 2^64-32", change("output.weight", offset=2**64 - 32), BAD, "lies beyond the file"),
    ("tensors overlap", overlap, BAD, "overlap"),
    ("one byte short", cut(1), BAD, "cut short"),
    ("a page short", cut(4096), BAD, "cut short"),
    ("no data", lambda g: g.header(), BAD, "cut short"),
    ("60000 pairs", lambda g: g.pairs.extend([f"k{i}".encode(), 4, u32(0)] for i in range(60000)),
     BAD, "expected at most 4096"),
    ("no architecture", drop("general.architecture"), BAD, "general.architecture is missing"),
    ("another architecture", set_pair("general.architecture", 8, string("llama")), OTHER,
     "general.architecture is llama; this build supports minimax-m2"),
    ("architecture of control characters", set_pair("general.architecture", 8, string("a\n\x1b[")),
     OTHER, "general.architecture is a\\x0a\\x1b["),
    ("architecture as a number", set_pair("general.architecture", 4, u32(0)), BAD,
     "must be a string, found uint32"),
    *[(f"no {key}", drop(ARCH + key), BAD, f"{key} is missing")
      for key in ("block_count", "embedding_length", "attention.head_count", "context_length",
                  "attention.head_count_kv", "attention.key_length", "expert_count",
                  "expert_used_count", "rope.freq_base", "attention.layer_norm_rms_epsilon")],
    ("no width", both(drop(ARCH + "expert_feed_forward_length"),
     drop(ARCH + "feed_forward_length")), BAD,
     "feed_forward_length is missing"),
    ("block_count 0", size("block_count", 0), BAD, "num_hidden_layers is 0, expected 1 to 1024"),
    ("block_count 2^31", size("block_count", 2**31), BAD, "block_count is 2147483648: out of"),
    ("block_count 1024", size("block_count", 1024), BAD, '"blk.1.attn_norm.weight" is missing'),
    ("block_count -1", set_pair(ARCH + "block_count", 5, struct.pack("<i", -1)), BAD, "is -1: out"),
    ("block_count 2^64-1", set_pair(ARCH + "block_count", 10, struct.pack("<Q", 2**64 - 1)), BAD,
     "out of range"),
    ("block_count as a float", set_pair(ARCH + "block_count", 6, f32(1)), BAD,
     "must be a whole number, found float32"),
    ("block_count as an array", set_pair(ARCH + "block_count", ARRAY, array(4, 1, u32(1))), BAD,
     "must be a whole number, found an array"),
    ("head_count 0", size("attention.head_count", 0), BAD, "num_attention_heads is 0"),
    ("head_count_kv 0", size("attention.head_count_kv", 0), BAD, "num_key_value_heads is 0"),
    ("head_count_kv 3", size("attention.head_count_kv", 3), BAD, "a multiple of the 3"),
    ("embedding_length 64", size("embedding_length", 64), BAD, "expected [272, 64]"),
    ("key_length 0", size("attention.key_length", 0), OTHER, "value_length is 16; this"),
    ("key_length 8", both(size("attention.key_length", 8), size("attention.value_length", 8)),
     OTHER, "head_dim is 8; this build needs a multiple of 16"),
    ("value_length 32", size("attention.value_length", 32), OTHER,
     "value_length is 32; this build"),
    ("expert_count 4096", size("expert_count", 4096), BAD, "expected [4096, 32]"),
    ("expert_count 4097", size("expert_count", 4097), BAD, "num_local_experts is 4097"),
    ("1024 layers of 4096 experts", both(size("block_count", 1024), size("expert_count", 4096)),
     BAD, "expected [4096, 32]"),
    ("expert_used_count 3", size("expert_used_count", 3), BAD, "at most num_local_experts (2)"),
    ("rope.dimension_count 7", size("rope.dimension_count", 7), BAD, "rotary_dim is 7, expected"),
    ("rope.dimension_count 18", size("rope.dimension_count", 18), BAD, "rotary_dim is 18"),
    ("epsilon 0", set_pair(ARCH + "attention.layer_norm_rms_epsilon", 6, f32(0)), BAD,
     "rms_norm_eps is 0, expected a finite number above 0"),
    ("epsilon NaN", set_pair(ARCH + "attention.layer_norm_rms_epsilon", 6, f32(float("nan"))), BAD,
     "layer_norm_rms_epsilon is nan"),
    ("epsilon -1", set_pair(ARCH + "attention.layer_norm_rms_epsilon", 6, f32(-1)), BAD, "is -1"),
    ("theta infinite", set_pair(ARCH + "rope.freq_base", 6, f32(float("inf"))), BAD, "is inf"),
    ("theta as a string", set_pair(ARCH + "rope.freq_base", 8, string("5")), BAD, "found a string"),
    ("context_length 0", size("context_length", 0), BAD, "max_position_embeddings is 0"),
    ("context_length 2^31", size("context_length", 2**31), BAD, "is 2147483648: out of range"),
    ("vocab_size 273", size("vocab_size", 273), BAD,
     "273 but tensor \"token_embd.weight\" has 272"),
    ("softmax router", size("expert_gating_func", 1), OTHER, "expert_gating_func is 1; this build"),
    ("a shared expert", size("expert_shared_count", 1), OTHER, "expert_shared_count is 1"),
    ("dense layers", size("leading_dense_block_count", 1), OTHER, "leading_dense_block_count is 1"),
    ("unnormalised experts", set_pair(ARCH + "expert_weights_norm", 7, b"\0"), OTHER, "is false"),
    ("rope scaling", set_pair(ARCH + "rope.scaling.type", 8, string("yarn")), OTHER, "yarn"),
    ("embedding of three dimensions", change("token_embd.weight", dims=[32, 16, 17]), BAD,
     '"token_embd.weight" has another shape'),
    ("half of the q norm", without("blk.0.attn_k_norm.weight"), BAD,
     "attn_k_norm.weight\" is miss"),
    ("norm in blocks", change("output_norm.weight", type=8), BAD, "has dtype q8_0, expected f32"),
    ("experts transposed", change("blk.0.ffn_down_exps.weight", dims=[32, 2, 32]), BAD,
     "has shape [32, 2, 32], expected [2, 32, 32]"),
    ("tokens as numbers", set_pair("tokenizer.ggml.tokens", ARRAY, array(4, 1, u32(1))), BAD,
     "tokenizer.ggml.tokens must be an array of strings"),
    ("types too few", set_pair("tokenizer.ggml.token_type", ARRAY, array(5, 1, u32(1))), BAD,
     "an array of 272 int32"),
]
TENSORS = ["token_embd.weight", "output.weight", "output_norm.weight"] + [
    f"blk.0.{name}" for name in (
        "attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_norm.weight",
        "attn_output.weight", "ffn_gate_inp.weight", "ffn_gate_exps.weight",
        "ffn_up_exps.weight", "ffn_down_exps.weight")]
GGUF_CASES += [(f"no {name}", without(name), BAD, f'"{name}" is missing') for name in TENSORS]
GGUF_CASES += [(f"{name} as i32", change(name, type=26), BAD, "has dtype i32, expected")
               for name in TENSORS]


@pytest.mark.parametrize("apply, error, words", [case[1:] for case in GGUF_CASES],
                         ids=[case[0] for case in GGUF_CASES])
def test_gguf(base, tmp_path, apply, error, words):
    whole = Gguf.parse((base / "f32.gguf").read_bytes())
    content = apply(whole)
    path = tmp_path / "bad.gguf"
    path.write_bytes(content if isinstance(content, bytes) else whole.build())
    refused(path, error, words)


def test_no_useful_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "loop").symlink_to("loop")
    with open(tmp_path / "sparse.gguf", "wb") as file:
        file.truncate(1 << 40)
    refused(tmp_path / "missing", GONE, "cannot open it: No such file or directory")
    refused(tmp_path / "fifo", GONE, "expected a regular file")
    refused("/dev/zero", GONE, "expected a regular file")
    refused(tmp_path / "loop", GONE, "cannot open it")
    refused(tmp_path / "config.json", BAD, "the directory of a Hugging Face checkpoint")
    refused(tmp_path / "empty", BAD, "holds no checkpoint")
    refused(tmp_path / "sparse.gguf", BAD, 'does not begin with "GGUF"')
    refused(tmp_path / ("x" * 500), GONE, "cannot open it: File name too long")
    (tmp_path / "empty/config.json").write_text("{}")
    refused(tmp_path / "empty", BAD, "is the download complete?")


def test_gguf_sets(base, tmp_path):
    whole = Gguf.parse((base / "f32.gguf").read_bytes())
    parts = split_gguf(whole, 3, "m2")
    names = list(parts)

    def write(**changes):
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        (tmp_path / "set").mkdir()
        for name, content in {**parts, **changes}.items():
            if content is not None:
                (tmp_path / "set" / name).write_bytes(content)
        return tmp_path / "set"

    mm.load(write()).close()
    refused(write(**{names[1]: None}), GONE, names[1] + ": cannot open it")
    refused(write(**{names[1]: parts[names[0]]}), BAD, "says it is part 1 of 3, expected 2 of 3")
    refused(write(**{names[2]: b""}), BAD, names[2])
    refused(write(**{names[2]: parts[names[2]][:-1]}), BAD, "cut short")
    refused(write(**{names[2]: split_gguf(whole, 4, "m2")["m2-00003-of-00004.gguf"]}), BAD,
            "says it is part 3 of 4, expected 3 of 3")
    refused(write(**{names[1]: split_gguf(Gguf([], whole.infos[:1], whole.data), 3, "x")[
        "x-00002-of-00003.gguf"]}), BAD, "together, split.tensors.count says")
    twice = Gguf.parse(parts[names[0]])
    twice.set("split.no", 2, struct.pack("<H", 1))
    refused(write(**{names[1]: twice.build()}), BAD, "")
    refused(write(**{"other.gguf": parts[names[0]]}), BAD, "more than one GGUF checkpoint")
    alone = tmp_path / "renamed.gguf"
    alone.write_bytes(parts[names[1]])
    refused(alone, BAD, "give the parts their names back")
    for key, type, payload, words in [
            ("split.count", 2, struct.pack("<H", 0xffff), "of split.count 65535"),
            ("split.count", 5, struct.pack("<i", -1), "of split.count -1"),
            ("split.count", 8, string("3"), "must be a whole number"),
            ("split.no", 2, struct.pack("<H", 3), "split.no is 3"),
            ("split.no", 5, struct.pack("<i", -1), "split.no is -1")]:
        part = Gguf.parse(parts[names[0]])
        part.set(key, type, payload)
        refused(write(**{names[0]: part.build()}) / names[0], BAD, words)


# ---- safetensors ----

NORM = "model.norm.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.1.w2.weight"


def text_header(text):
    return lambda header, data: (text if isinstance(text, bytes) else text.encode(), data)


def tensor(name, **fields):
    """Change fields of a tensor; `...` removes one."""
    def apply(header, data):
        header[name] = {k: v for k, v in {**header[name], **fields}.items() if v is not ...}
        return header, data
    return apply


def extra(name, dtype, shape, nbytes):
    """One more tensor behind the others."""
    def apply(header, data):
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + nbytes]}
        return header, data + bytes(nbytes)
    return apply


def missing(name):
    """Without a tensor, and without its bytes, so that the rest is sound."""
    def apply(header, data):
        begin, end = header.pop(name)["data_offsets"]
        for key, facts in header.items():
            if key != "__metadata__" and facts["data_offsets"][0] >= end:
                facts["data_offsets"] = [at - (end - begin) for at in facts["data_offsets"]]
        return header, data[:begin] + data[end:]
    return apply


def edit(*replacements):
    """Replace parts of the header's text."""
    def apply(header, data):
        text = json.dumps(header)
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new, 1)
        return text.encode(), data
    return apply


def shifted(header, data):
    """All offsets one further: a hole at the beginning."""
    for key, facts in header.items():
        if key != "__metadata__":
            facts["data_offsets"] = [at + 1 for at in facts["data_offsets"]]
    return header, data + b"\0"


def swap(header, data):
    begin, end = header[NORM]["data_offsets"]
    header[NORM]["data_offsets"] = [end, begin]
    return header, data


def reshape(name, shape, dtype):
    """Another shape and dtype, in place of the tensor, with the bytes that they need."""
    def apply(header, data):
        header, data = missing(name)(header, data)
        begin = max(facts["data_offsets"][1] for key, facts in header.items()
                    if key != "__metadata__")
        nbytes = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1, "I32": 4,
                  "I64": 8}[dtype]
        for n in shape:
            nbytes *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + nbytes]}
        return header, data[:begin] + bytes(nbytes)
    return apply


SAFETENSORS_CASES = [
    ("JSON array", text_header("[1]"), BAD, "expected an object, found ["),
    ("no JSON", text_header("tensor"), BAD, "expected an object, found t"),
    ("empty header", text_header(""), BAD, "expected an object, found the end"),
    ("only spaces", text_header(" " * 64), BAD, "expected an object, found the end"),
    ("no tensors", text_header("{}"), BAD, "bytes follow the last tensor"),
    ("not UTF-8", text_header(b'{"\xff": 1}'), BAD, "valid UTF-8"),
    ("trailing JSON", lambda h, d: (json.dumps(h).encode() + b"{}", d), BAD,
     "expected nothing more"),
    ("trailing NUL", lambda h, d: (json.dumps(h).encode() + b"\0", d), BAD,
     "expected nothing more"),
    ("unclosed", lambda h, d: (json.dumps(h).encode()[:-1], d), BAD, "a comma or }, found the end"),
    ("deep nesting", text_header('{"a":' * 100_000), BAD, "field of the header is unknown"),
    ("deep arrays", text_header('{"a":{"shape":' + "[" * 100_000), BAD, "JSON byte"),
    ("tensor twice", edit(('"model.norm.weight"', f'"{EXPERT}"')), BAD, "appears twice"),
    ("tensor twice by an escape", edit(('"model.norm.weight"', '"lm_head\\u002eweight"')), BAD,
     "appears twice"),
    ("dtype twice", edit(('"dtype": "BF16"', '"dtype": "BF16", "dtype": "BF16"')), BAD,
     "field dtype is given twice"),
    ("escapes for a terminal in a name",
     text_header(r'{"\u001b[2J\u001b]0;owned\u0007":{"dtype":"F32","shape":[1],"x":1}}'), BAD,
     'tensor "(a name that nobody can ask for)": field of the header is unknown'),
    ("control characters in a dtype", tensor(NORM, dtype="F\x1b[31m\x9b"), OTHER,
     r"has dtype F\x1b[31m\xc2\x9b; this build reads"),
    ("a field more", tensor(NORM, strides=[1]), BAD, "field of the header is unknown"),
    ("dtype missing", tensor(NORM, dtype=...), BAD, "dtype is missing"),
    ("shape missing", tensor(NORM, shape=...), BAD, "shape is missing"),
    ("offsets missing", tensor(NORM, data_offsets=...), BAD, "data_offsets is missing"),
    ("tensor is a number", lambda h, d: ({**h, NORM: 1}, d), BAD, "expected an object"),
    ("tensor is null", lambda h, d: ({**h, NORM: None}, d), BAD, "expected an object"),
    *[(f"dtype {name}", tensor(NORM, dtype=name), OTHER, f"has dtype {shown}; this build reads")
      for name, shown in {"F8_E5M2": "F8_E5M2", "I64": "I64", "bf16": "bf16",
                          "": "", "F\n16": r"F\x0a16"}.items()],
    ("dtype a number", tensor(NORM, dtype=16), BAD, "expected a string, found 1"),
    ("dtype of 1 MB", tensor(NORM, dtype="F" * 1_000_000), BAD, "longer than 31 bytes"),
    *[(f"shape {shape}", tensor(NORM, shape=shape), BAD, words)
      for shape, words in [([-32], "0 or more, found -"), ([32.0], "end of a whole number"),
                           (["32"], "a whole number"), (None, "an array"), (32, "an array"),
                           ([31], "has 64 bytes, expected 62"), ([], "has 64 bytes, expected 2"),
                           ([0], "has 64 bytes, expected 0"), ([2**64], "a number below 2^63"),
                           ([2**63 - 1], "too large"), ([2**40 + 1], "too large"),
                           ([2**40, 2**40], "too large"), ([2**40, 2**22, 2], "too large"),
                           ([[32]], "a whole number")]],
    ("shape 1e30", edit(('"shape": [32]', '"shape": [1e30]')), BAD, "end of a whole number"),
    ("shape of 65 dimensions", tensor(NORM, shape=[1] * 65), OTHER, "has 65 dimensions"),
    ("offsets reversed", swap, BAD, "claims bytes"),
    ("offsets of one", tensor(NORM, data_offsets=[0]), BAD, "has 1 items, expected 2"),
    ("offsets of none", tensor(NORM, data_offsets=[]), BAD, "has 0 items, expected 2"),
    ("offsets of three", tensor(NORM, data_offsets=[0, 64, 64]), BAD, "more than 2 items"),
    ("offsets negative", tensor(NORM, data_offsets=[-64, 0]), BAD, "0 or more"),
    ("offsets beyond", tensor(NORM, data_offsets=[2**40, 2**40 + 64]), BAD, "cut short"),
    ("offsets that wrap", tensor(NORM, data_offsets=[2**63 - 64, 2**63 - 1]), BAD, "cut short"),
    ("offsets overlap", tensor(NORM, data_offsets=[0, 64]), BAD, "without overlap"),
    ("a hole", shifted, BAD, "without holes"),
    ("bytes behind", lambda h, d: (h, d + b"\0"), BAD, "1 bytes follow the last tensor"),
    ("a byte short", lambda h, d: (h, d[:-1]), BAD, "cut short"),
    ("half the data", lambda h, d: (h, d[:len(d) // 2]), BAD, "cut short"),
    ("no data", lambda h, d: (h, b""), BAD, "cut short"),
    ("metadata not strings", lambda h, d: ({**h, "__metadata__": {"a": 1}}, d), BAD, "a string"),
    ("metadata a list", lambda h, d: ({**h, "__metadata__": []}, d), BAD, "an object"),
    ("metadata twice", lambda h, d: (json.dumps(h).replace(
        '"__metadata__"', '"__metadata__": {}, "__metadata__"').encode(), d), BAD, "twice"),
    ("name with NUL", edit((NORM, "model\\u0000norm")), BAD, "other than NUL"),
    ("name with a lone surrogate", edit((NORM, "model\\ud800norm")), BAD, "valid UTF-8"),
    ("name with a line break", edit((NORM, "model\\nnorm")), BAD, f'"{NORM}" is missing'),
    ("name empty", edit((NORM, "")), BAD, f'"{NORM}" is missing'),
    ("name of 64 KiB", edit((NORM, "x" * 65536)), BAD, f'"{NORM}" is missing'),
    ("no norm", missing(NORM), BAD, f'"{NORM}" is missing'),
    ("no expert", missing(EXPERT), BAD, f'"{EXPERT}" is missing'),
    ("no scales", missing(EXPERT + "_scale_inv"), BAD, f'scales "{EXPERT}_scale_inv" are missing'),
    ("scales too many", reshape(EXPERT + "_scale_inv", [2, 1], "F32"), BAD,
     "has shape [2, 1], expected [1, 1]: one scale for 128 x 128 codes"),
    ("scales of I32", reshape(EXPERT + "_scale_inv", [1, 1], "I32"), BAD,
     "dtype i32, expected f32, f16, bf16 or u8"),
    ("expert transposed", reshape(EXPERT, [64, 16], "F8_E4M3"), BAD, "expected [32, 32]"),
    ("expert i32", reshape(EXPERT, [32, 32], "I32"), BAD, "has dtype i32, expected a floating"),
    ("norm FP8", reshape(NORM, [32], "F8_E4M3"), BAD, "dtype f8_e4m3, expected f32, f16 or bf16"),
    ("embedding FP8 alone", reshape("model.embed_tokens.weight", [272, 32], "F8_E4M3"), BAD,
     'scales "model.embed_tokens.weight_scale_inv" are missing'),
    ("vocabulary smaller", reshape("lm_head.weight", [271, 32], "BF16"), BAD, "expected [272, 32]"),
]


@pytest.mark.parametrize("apply, error, words", [case[1:] for case in SAFETENSORS_CASES],
                         ids=[case[0] for case in SAFETENSORS_CASES])
def test_safetensors(base, tmp_path, apply, error, words):
    path = shutil.copytree(base / "fp8", tmp_path / "bad")
    file = path / "model.safetensors"
    write_safetensors(file, *apply(*read_safetensors(file)))
    refused(path, error, words)


@pytest.mark.parametrize("content, words", [
    (b"", "expected a safetensors file"), (b"1234567", "expected a safetensors file"),
    (struct.pack("<Q", 0), "expected an object"),
    (struct.pack("<Q", 100) + b"{}", "header claims 100 bytes of 2"),
    (struct.pack("<Q", 10**8 + 1) + b"{}", "header claims 100000001"),
    (struct.pack("<Q", 2**64 - 1) + b"{}", "header claims 18446744073709551615"),
    (struct.pack("<Q", 2**63) + b"{}", "header claims 9223372036854775808"),
    (b"\x80\x04\x95" + bytes(64), "header claims"), (b"PK\3\4" + bytes(64), "header claims"),
])
def test_safetensors_beginning(base, tmp_path, content, words):
    path = shutil.copytree(base / "fp8", tmp_path / "bad")
    (path / "model.safetensors").write_bytes(content)
    refused(path, BAD, words)


def test_good_oddities(base, tmp_path):
    """Valid, if unusual: tensors of no elements and no dimensions, extra tensors,
    large metadata."""
    path = shutil.copytree(base / "fp8", tmp_path / "odd")
    file = path / "model.safetensors"
    header, data = read_safetensors(file)
    header, data = extra("scalar", "F32", [], 4)(header, data)
    header, data = extra("nothing", "BF16", [4, 0], 0)(header, data)
    header["__metadata__"] = {"text": "\u20ac" * 1_000_000, "\ud83d\ude00": ""}
    write_safetensors(file, header, data)
    with mm.load(path) as model:
        assert model["scalar"].shape == () and model["scalar"].float().tolist() == 0
        assert model["nothing"].shape == (4, 0) and model["nothing"].nbytes == 0
        assert model.weight("scalar").shape == (1, 1)


def test_large_headers_are_refused_or_read_quickly(base, tmp_path):
    path = shutil.copytree(base / "fp8", tmp_path / "bad")
    file = path / "model.safetensors"
    header, data = read_safetensors(file)
    text = json.dumps(header).encode()
    write_safetensors(file, text + b" " * (8_000_000 - len(text)), data)
    mm.load(path).close()
    many = ",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
                    for i in range(300_000))
    write_safetensors(file, b"{" + many.encode() + b"}", b"")
    with pytest.raises(BAD, match="more than 262144 tensors"):
        mm.load(path)


# ---- The index ----

def index_case(**changes):
    return lambda index: {**index, "weight_map": {**index["weight_map"], **changes}}


INDEX_CASES = [
    *[(f"shard {name[:20]!r}", index_case(**{NORM: name}), BAD, "must be the plain name")
      for name in ("../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "")],
    ("shard name of 64 KiB", index_case(**{NORM: "x" * 65536}), BAD, "longer than 255 bytes"),
    ("shard with NUL", index_case(**{NORM: "a\0b"}), BAD, "other than NUL"),
    ("missing shard", index_case(**{NORM: "gone.safetensors"}), GONE, "gone.safetensors: cannot"),
    ("a directory for a shard", index_case(**{NORM: "folder"}), GONE, "found a directory"),
    ("tensor in another shard", lambda index: index_case(**{NORM: sorted(set(
        index["weight_map"].values()))[0]})(index), BAD,
     f'tensor "{NORM}" is missing: the index places it here'),
    ("tensor not in the index", lambda index: {"weight_map": {
        k: v for k, v in index["weight_map"].items() if k != NORM}}, BAD,
     f'tensor "{NORM}" is missing, expected of shape [32]'),
    ("shard is a number", index_case(**{NORM: 1}), BAD, "expected a string"),
    ("no weight_map", lambda index: {"metadata": {}}, BAD, "weight_map is missing or empty"),
    ("empty weight_map", lambda index: {"weight_map": {}}, BAD, "weight_map is missing or empty"),
    ("weight_map a list", lambda index: {"weight_map": []}, BAD, "expected an object, found ["),
    ("array", lambda index: [], BAD, "expected an object, found ["),
    ("deep metadata", lambda index: '{"metadata":' + "[" * 100_000, BAD, "64 levels"),
    ("weight_map twice", lambda index: json.dumps(index)[:-1] + ', "weight_map": {}}', BAD,
     "twice"),
    ("name twice", lambda index: json.dumps(index).replace(
        f'"{NORM}"', '"lm_head.weight"', 1), BAD, 'tensor "lm_head.weight" appears twice'),
    ("empty", lambda index: "", BAD, "expected an object"),
    ("too many shards", lambda index: {"weight_map": {f"t{i}": f"s{i}" for i in range(1025)}}, BAD,
     "more than 1024 shards"),
]


@pytest.mark.parametrize("apply, error, words", [case[1:] for case in INDEX_CASES],
                         ids=[case[0] for case in INDEX_CASES])
def test_index(base, tmp_path, apply, error, words):
    path = shutil.copytree(base / "shards", tmp_path / "bad")
    (path / "folder").mkdir()
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    count = len(set(index["weight_map"].values()))
    result = apply(index)
    text = result if isinstance(result, str) else json.dumps(result)
    file.write_text(text.replace("-of-NN.", f"-of-{count:05d}."))
    refused(path, error, words)


def test_damaged_shards(base, tmp_path):
    shards = sorted(path.name for path in (base / "shards").glob("*.safetensors"))
    assert len(shards) >= 3
    for name in shards[0], shards[len(shards) // 2], shards[-1]:
        for damage in (lambda d: d[:-1], lambda d: d[:100], lambda d: b"", lambda d: d + b"\0"):
            path = shutil.copytree(base / "shards", tmp_path / "bad")
            content = (path / name).read_bytes()
            (path / name).write_bytes(damage(content))
            refused(path, BAD, name)
            shutil.rmtree(path)
    path = shutil.copytree(base / "shards", tmp_path / "bad")
    shutil.copy(path / shards[0], path / shards[1])
    refused(path, BAD, "is missing: the index places it here")
    shutil.copy(base / "shards" / shards[1], path)
    change_json(path / "model.safetensors.index.json", metadata={"total_size": 1})
    (path / "stray.safetensors").write_bytes(b"never opened")
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04never opened")
    mm.load(path).close()


# ---- config.json ----

def config(**changes):
    return lambda path: change_json(path / "config.json", **changes)


def write(name, content):
    return lambda path: (path / name).write_bytes(
        content if isinstance(content, bytes) else content.encode())


INTEGERS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
            "head_dim", "num_local_experts", "num_experts_per_tok", "intermediate_size",
            "vocab_size", "max_position_embeddings")
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
CONFIG_CASES = [
    ("empty", write("config.json", ""), BAD, "config.json: the file is empty"),
    ("BOM", lambda path: write("config.json", b"\xef\xbb\xbf" + (
        path / "config.json").read_bytes())(path), BAD, "byte 0: expected a value"),
    ("comments", write("config.json", "{} // no"), BAD, "expected nothing more, found /"),
    ("NaN", config(rope_theta=math.nan), BAD, "rope_theta is NaN: out of range"),
    ("Infinity", config(rope_theta=math.inf), BAD, "rope_theta is Infinity: out of range"),
    ("array", write("config.json", "[]"), BAD, "expected an object, found an array"),
    ("keys twice", write("config.json", '{"a": 1, "a": 1}'), BAD, '"a" appears twice'),
    ("2 MB", write("config.json", " " * 2_000_000 + "{}"), BAD, "expected at most 1048576"),
    ("deep", write("config.json", '{"a":' + "[" * 100_000), BAD, "at most 64 levels"),
    ("not UTF-8", write("config.json", b'{"a": "\xff"}'), BAD,
     "line 1, JSON byte 7: expected a character"),
    ("line 3", write("config.json", '{\n"a": 1,\n"b" 2}'), BAD,
     "line 3, JSON byte 14: expected a colon"),
    ("1e400", lambda path: write("config.json", (path / "config.json").read_text().replace(
        '"rope_theta": ', '"rope_theta": 1e400, "x": '))(path), BAD,
     "rope_theta is 1e400: out of range"),
    ("model_type missing", config(model_type=...), BAD, "model_type is missing"),
    ("model_type llama", config(model_type="llama"), OTHER, "model_type is llama; this build"),
    ("model_type with an escape", config(model_type="\x1b[2Jx\ny"), OTHER,
     r"model_type is \x1b[2Jx\x0ay; this build"),
    ("model_type a number", config(model_type=2), OTHER, "model_type is 2; this build supports"),
    *[(f"{name} {shown}", config(**{name: value}), BAD, words)
      for name in INTEGERS
      for shown, value, words in [
          ("missing", ..., f"{name} is missing"), ("null", None, f"{name} is missing"),
          ("a string", "8", "must be a whole number, found a string"),
          ("a fraction", 8.5, "must be a whole number, found a decimal number"),
          ("true", True, "must be a whole number, found true"),
          ("-1", -1, "-1"), ("0", 0, "0"), ("2^31", 2**31, f"{name} is 2147483648: out of range"),
          ("2^31-1", 2**31 - 1, "2147483647")]],
    *[(f"{name} {value!r}", config(**{name: value}), BAD, words)
      for name in ("rope_theta", "rms_norm_eps")
      for value, words in [(..., "is missing"), (None, "is missing"), ("1", "must be a number"),
                           (0, "is 0, expected a finite"), (-1.5, "is -1.5"), (1e300, "is inf")]],
    ("routed_scaling_factor 0", config(routed_scaling_factor=0), BAD, "routed_scaling_factor is 0"),
    ("too many experts a token", config(num_experts_per_tok=3), BAD,
     "at most num_local_experts (2)"),
    ("heads do not divide", config(num_attention_heads=3, num_key_value_heads=2), BAD,
     "a multiple"),
    ("head_dim 24", config(head_dim=24), OTHER, "needs a multiple of 16"),
    ("head_dim 32", config(head_dim=32), BAD, "has shape [32, 32], expected [64, 32]"),
    ("rotary_dim 0", config(rotary_dim=0), BAD, "rotary_dim is 0"),
    ("rotary_dim 5", config(rotary_dim=5), BAD, "rotary_dim is 5, expected an even number"),
    ("rotary_dim 18", config(rotary_dim=18), BAD, "rotary_dim is 18"),
    ("rotary_dim and another factor", config(partial_rotary_factor=1.0), BAD,
     "rotary_dim is 8 but partial_rotary_factor 1 of head_dim 16 is 16"),
    ("partial_rotary_factor 2", config(partial_rotary_factor=2), BAD, "partial_rotary_factor is 2"),
    ("partial_rotary_factor 0", config(partial_rotary_factor=0), BAD, "partial_rotary_factor is 0"),
    ("rope_parameters a list", config(rope_parameters=[]), BAD,
     "rope_parameters must be an object"),
    ("yarn", config(rope_parameters={"rope_type": "yarn"}), OTHER, "rope_type is yarn"),
    ("rope_scaling", config(rope_scaling={"type": "linear"}), OTHER, "rope_scaling.type is linear"),
    ("hidden_act", config(hidden_act="gelu"), OTHER,
     "hidden_act is gelu; this build supports silu"),
    ("scoring_func", config(scoring_func="softmax"), OTHER, "scoring_func is softmax"),
    ("qk_norm_type", config(qk_norm_type="per_head"), OTHER, "qk_norm_type is per_head"),
    ("use_qk_norm 1", config(use_qk_norm=1), BAD, "use_qk_norm must be true or false"),
    ("lightning attention", config(attn_type_list=[0]), OTHER, "attn_type_list[0] is 0"),
    ("attn_type_list too long", config(attn_type_list=[1, 1]), BAD, "has 2 items, expected"),
    ("attn_type_list a number", config(attn_type_list=1), BAD, "must be an array"),
    ("shared expert", config(shared_intermediate_size=8), OTHER, "shared_intermediate_size is 8"),
    ("tied embeddings", config(tie_word_embeddings=True), OTHER, "tie_word_embeddings is true"),
    ("quantised by nobody", config(quantization_config={}), BAD, "quant_method is missing"),
    ("quantization_config a string", config(quantization_config="fp8"), BAD, "must be an object"),
    *[(f"weight_block_size {size}", config(quantization_config={**FP8, "weight_block_size": size}),
       OTHER, "weight_block_size is not [128, 128]")
      for size in ([128], [0, 128], [64, 128], "128", [128, 128, 128], ["128", "128"])],
    ("vocab_size 271", config(vocab_size=271), BAD, "has shape [272, 32], expected [271, 32]"),
    ("two layers", config(num_hidden_layers=2, attn_type_list=...), BAD,
     '"model.layers.1.input_layernorm.weight" is missing'),
    ("generation: empty", write("generation_config.json", ""), BAD, "generation_config.json"),
    ("tokenizer.json empty", write("tokenizer.json", ""), BAD, "tokenizer.json: the file is empty"),
    ("tokenizer.json no JSON", write("tokenizer.json", "{"), BAD, "tokenizer.json"),
]


@pytest.mark.parametrize("apply, error, words", [case[1:] for case in CONFIG_CASES],
                         ids=[case[0] for case in CONFIG_CASES])
def test_config(base, tmp_path, apply, error, words):
    path = shutil.copytree(base / "fp8", tmp_path / "bad")
    apply(path)
    refused(path, error, words)


def test_any_number_may_stand_in_a_field_that_nobody_reads(tmp_path):
    path = shutil.copytree(os.path.dirname(mm.__file__) + "/m2-tiny", tmp_path / "odd")
    plain = mm.Tokenizer(path)
    for name in "config.json", "generation_config.json", "tokenizer.json":
        change_json(path / name, some_limit=10**30, other=[-10**400, {"x": math.nan}])
    (path / "tokenizer_config.json").write_text(
        '{"eos_token": "[e~[", "model_max_length": 1000000000000000019884624838656, "x": 1e999}')
    with mm.load(path) as model:
        assert model.tokenizer.encode("Hello") == mm.Tokenizer(path).encode("Hello") \
            == plain.encode("Hello")


HOW = {
    "a link to nothing": (lambda file: file.symlink_to("../blobs/gone"), "link to a file that"),
    "a folder": (lambda file: file.mkdir(), "expected a regular file, found a directory"),
    "a link to itself": (lambda file: file.symlink_to(file.name), "Too many levels of symbolic"),
    "a link to a folder": (lambda file: file.symlink_to("."), "expected a regular file, found a"),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "model.safetensors.index.json"])
def test_a_file_that_is_there_and_cannot_be_read_is_not_absent(tmp_path, name, how):
    path = shutil.copytree(os.path.dirname(mm.__file__) + "/m2-tiny", tmp_path / "odd")
    make, words = HOW[how]
    (path / name).unlink(missing_ok=True)
    make(path / name)
    refused(path, mm.FileError, words)
    if "model" not in name and name != "config.json":
        with pytest.raises(mm.FileError, match=name):
            mm.Tokenizer(path)


def test_code_is_never_run(base, tmp_path):
    path = shutil.copytree(base / "fp8", tmp_path / "odd")
    config(auto_map={"AutoConfig": "evil.Config"}, trust_remote_code=True)(path)
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    mm.load(path).close()
    assert not (tmp_path / "ran").exists()


# ---- Sweeps ----

def opens_or_refuses(path):
    """1 if it opens. Anything but an error with a sentence ends the test."""
    try:
        with mm.load(path, threads=1) as model:
            assert len(list(model)) > 0
            return 1
    except mm.Error as error:
        assert len(str(error)) > 20 and str(error).isprintable()
        return 0


@pytest.fixture
def header_alone(base, tmp_path):
    """A GGUF file without a tokenizer, and where its header ends."""
    whole = Gguf.parse((base / "q8_0.gguf").read_bytes())
    whole.pairs = [pair for pair in whole.pairs if not pair[0].startswith(b"tokenizer")]
    path = tmp_path / "sweep.gguf"
    path.write_bytes(whole.build())
    return path, len(whole.header())


def sweep_bits(path, first, last, step=1, opens=None):
    """Flip every step-th bit of bytes [first, last) of a file; how often `opens` still opened."""
    content, opened = path.read_bytes(), 0
    with open(path, "r+b", buffering=0) as file:
        for bit in range(first * 8, last * 8, step):
            at = bit // 8
            os.pwrite(file.fileno(), bytes([content[at] ^ 1 << bit % 8]), at)
            opened += opens_or_refuses(opens or path)
            os.pwrite(file.fileno(), content[at:at + 1], at)
    assert path.read_bytes() == content
    return opened


def test_a_gguf_header_cut_at_every_byte(header_alone):
    path, length = header_alone
    content = path.read_bytes()
    for size in range(length, 0, -1):
        os.truncate(path, size)
        assert not opens_or_refuses(path)
    path.write_bytes(content)
    assert opens_or_refuses(path)


def test_every_bit_of_a_gguf_header(header_alone):
    path, length = header_alone
    opened = sweep_bits(path, 0, length)
    assert 0 < opened < length * 8 // 2  # names and hints may change; structure may not


def test_bits_of_a_gguf_vocabulary(base, tmp_path):
    path = shutil.copy(base / "q8_0.gguf", tmp_path / "sweep.gguf")
    length = len(Gguf.parse(path.read_bytes()).header())
    sweep_bits(path, 0, length, step=23)


def test_a_safetensors_file_cut_at_every_byte(base, tmp_path):
    path = shutil.copytree(base / "fp8", tmp_path / "sweep")
    file = path / "model.safetensors"
    length = 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]
    for size in range(length, -1, -1):
        os.truncate(file, size)
        assert not opens_or_refuses(path)


def test_bits_of_a_safetensors_header(base, tmp_path):
    path = shutil.copytree(base / "fp8", tmp_path / "sweep")
    length = 8 + struct.unpack("<Q", (path / "model.safetensors").read_bytes()[:8])[0]
    sweep_bits(path / "model.safetensors", 0, length, step=3, opens=path)
    assert opens_or_refuses(path)


def test_a_config_cut_at_every_byte(base, tmp_path):
    path = shutil.copytree(base / "fp8", tmp_path / "sweep")
    text = (path / "config.json").read_text().rstrip()
    for size in range(len(text) - 1, -1, -1):
        (path / "config.json").write_text(text[:size])
        assert not opens_or_refuses(path)
