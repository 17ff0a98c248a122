"""The golden checkpoints: small models whose weights come from a counter-based hash.

Numpy alone regenerates every checkpoint bit for bit, so no weights are stored beside the golden
logits and the tests need no torch. Value i of a tensor is a function of (seed, tensor name, i).

Every weight is drawn so that all storages hold it exactly: matrices have 8 significant bits (a
BF16), FP8 weights are a 4-bit code times an 8-bit block scale, the router and its bias are full
24-bit float32 as in the vendor's files. So one case can be written as F32, BF16 or FP8 files, or
with fused experts, and stays the same model.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import struct

import numpy as np

BLOCK = 128  # rows and columns of one FP8 scale
PROMPTS = (40, 300)  # tokens; the second one crosses the 256-position chunk of attention
HOOK_LAYER = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """One random configuration. Names of sizes as in the family's config.json."""

    name: str
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float
    seed: int
    storage: str = "F32"  # what the test's files hold: "F32", "BF16" or "FP8" matrices
    twins: bool = False  # experts 2 i and 2 i + 1 have the same score: every choice is a tie

    def config(self):
        """config.json in the vendor's form."""
        keys = dataclasses.asdict(self)
        for ours in ("name", "seed", "storage", "twins"):
            del keys[ours]
        return keys | {
            "architectures": ["MiniMaxM2ForCausalLM"],
            "model_type": "minimax_m2",
            "hidden_act": "silu",
            "scoring_func": "sigmoid",
            "use_qk_norm": True,
            "use_routing_bias": True,
            "tie_word_embeddings": False,
            "max_position_embeddings": 4096,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }


# Group sizes 3, 1, 3, 6, 8, 7, 4, 2, 6; rotated share 1, 1/2, 1/4 and 3/4; all experts chosen (of
# 4), one chosen (of 16); widths that are no multiples of 128, 32 or 16; an eps that shows.
# fmt: off
CASES = {case.name: case for case in (
    #    name          hidden  q kv head rot experts top width layers vocab theta eps   seed
    Case("half",           96, 3, 1,  32, 16,  5, 2,   48, 3, 131, 1e4,   1e-5, 101),
    Case("mha",            72, 5, 5,  16, 16, 16, 4,   56, 2,  97, 5e6,   1e-6, 102),
    Case("quarter",       200, 6, 2,  64, 16, 33, 7,   72, 3, 301, 1e5,   1e-6, 103),
    Case("family",        320, 12, 2, 64, 32, 32, 8,   96, 4, 200, 5e6,   1e-6, 204),
    Case("one-kv",        144, 8, 1, 128, 64, 16, 1,  100, 3, 160, 5e6,   0.1,  205),
    Case("all-experts",   280, 7, 1,  48, 24,  4, 4,  136, 2, 110, 500.0, 1e-6, 106),
    Case("fp8",           320, 8, 2,  64, 48,  9, 3,  192, 2, 170, 5e6,   1e-6, 107, "FP8"),
    Case("twins",         112, 4, 2,  16,  8, 12, 3,   40, 2,  90, 1e4,   1e-6, 109, twins=True),
    Case("full-width",   3072, 48, 8, 128, 64, 5, 2, 1536, 1, 256, 5e6,   1e-6, 108, "BF16"),
)}
# fmt: on
HOOKED = "quarter"  # the case that also has logits with a vector added to the residual stream


# ---- numbers -------------------------------------------------------------------------------------


def hash_words(case, name, count):
    """uint64 [count]: SplitMix64 of a counter that starts at a hash of the seed and the name."""
    start = hashlib.sha256(f"{case.seed}/{name}".encode()).digest()[:8]
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += np.frombuffer(start, "<u8")[0]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    return x ^ x >> np.uint64(31)


def hash_bytes(case, name, shape):
    """uint8 [shape]"""
    count = math.prod(shape)
    words = hash_words(case, name, (count + 7) // 8)
    return words.astype("<u8").view(np.uint8)[:count].reshape(shape)


def hash_unit(case, name, shape):
    """float32 in [-1, 1): 24 random bits, exact."""
    words = hash_words(case, name, math.prod(shape)).reshape(shape)
    return (words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def power_of_two(x):
    return 2.0 ** round(math.log2(x))


@functools.cache
def e4m3_values():
    """float32 [256]: the values of e4m3fn codes."""
    code = np.arange(256)
    sign, exponent, mantissa = np.where(code < 128, 1.0, -1.0), code >> 3 & 15, code & 7
    normal = (8 + mantissa) * 2.0 ** (exponent - 10)
    value = sign * np.where(exponent > 0, normal, mantissa * 2.0**-9)
    value[[0x7F, 0xFF]] = np.nan
    return value.astype(np.float32)


def to_bf16(x):
    """uint16 codes of float32 values that BF16 holds exactly."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any(), "not a BF16 value"
    return (bits >> 16).astype(np.uint16)


def from_bf16(codes):
    return (codes.astype(np.uint32) << 16).view(np.float32)


def from_fp8(codes, scale):
    """float32 [rows, cols] of e4m3 codes and their float32 scales [rows / 128, cols / 128]."""
    spread = scale.repeat(BLOCK, 0)[: codes.shape[0]].repeat(BLOCK, 1)[:, : codes.shape[1]]
    return e4m3_values()[codes] * spread


# ---- tensors -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Weight:
    """How one tensor is drawn. kind: "matrix" (may be FP8), "table", "norm", "f32"."""

    name: str
    shape: tuple
    kind: str
    spread: float  # standard deviation of a matrix, gain of a norm, largest value of an "f32"


def weights(case):
    """Every tensor under the vendor's name. The spreads make logits up to about 10, attention that
    looks at few positions, and routers whose bias changes choices."""
    hidden, wide, experts = case.hidden_size, case.intermediate_size, case.num_local_experts
    q_width = case.num_attention_heads * case.head_dim
    kv_width = case.num_key_value_heads * case.head_dim

    def matrix(name, rows, cols, gain):
        return Weight(name + ".weight", (rows, cols), "matrix", gain / math.sqrt(cols))

    def norm(name, n, gain):
        return Weight(name + ".weight", (n,), "norm", gain)

    yield Weight("model.embed_tokens.weight", (case.vocab_size, hidden), "table", 1.0)
    for layer in range(case.num_hidden_layers):
        at = f"model.layers.{layer}."
        yield norm(at + "input_layernorm", hidden, 1.0)
        yield matrix(at + "self_attn.q_proj", q_width, hidden, 1.0)
        yield matrix(at + "self_attn.k_proj", kv_width, hidden, 1.0)
        yield matrix(at + "self_attn.v_proj", kv_width, hidden, 1.0)
        yield matrix(at + "self_attn.o_proj", hidden, q_width, 1.5)
        yield norm(at + "self_attn.q_norm", q_width, 2.0)
        yield norm(at + "self_attn.k_norm", kv_width, 1.0)
        yield norm(at + "post_attention_layernorm", hidden, 1.0)
        moe = at + "block_sparse_moe."
        yield Weight(moe + "gate.weight", (experts, hidden), "f32", 2.0 / math.sqrt(hidden))
        yield Weight(moe + "e_score_correction_bias", (experts,), "f32", 0.25)
        for expert in range(experts):
            yield matrix(f"{moe}experts.{expert}.w1", wide, hidden, 1.0)
            yield matrix(f"{moe}experts.{expert}.w2", hidden, wide, 1.5)
            yield matrix(f"{moe}experts.{expert}.w3", wide, hidden, 1.0)
    yield norm("model.norm", hidden, 1.0)
    yield Weight("lm_head.weight", (case.vocab_size, hidden), "table", 2.0 / math.sqrt(hidden))


def fp8_parts(case, weight):
    """(uint8 codes without NaN, float32 block scales), drawn so that scales of neighbouring blocks
    differ by up to a factor of 16."""
    codes = hash_bytes(case, weight.name, weight.shape)
    codes = np.where(codes & 0x7F == 0x7F, codes ^ 1, codes)
    blocks = tuple(-(-n // BLOCK) for n in weight.shape)
    drawn = hash_bytes(case, weight.name + "_scale_inv", blocks)
    shrink = 2.0 ** -(drawn >> 6).astype(np.float64)
    scale = (128 + (drawn & 63) * 2) / 128 * shrink * power_of_two(weight.spread / 128)
    return codes, scale.astype(np.float32)


def values(case, weight):
    """float32 values of a tensor of the case, the same in all storages."""
    if weight.kind == "f32":
        drawn = hash_unit(case, weight.name, weight.shape) * np.float32(power_of_two(weight.spread))
        if case.twins:
            drawn[1::2] = drawn[::2]
        return drawn
    if weight.kind == "matrix" and case.storage == "FP8":
        return from_fp8(*fp8_parts(case, weight))
    drawn = hash_bytes(case, weight.name, weight.shape)
    if weight.kind == "norm":  # 0.5 to 1.5 times the gain
        return ((64 + (drawn >> 1)) / 128 * weight.spread).astype(np.float32)
    odd = np.arange(-255, 256, 2) * power_of_two(weight.spread / 148)  # 148: their deviation
    return odd.astype(np.float32)[drawn]


def prompt(case, n):
    """int32 [n] token ids."""
    return (hash_words(case, f"prompt {n}", n) % np.uint64(case.vocab_size)).astype(np.int32)


def hook_vector(case):
    """float32 [hidden_size]: what the hook adds to the residual stream after layer HOOK_LAYER."""
    return hash_unit(case, "hook", (case.hidden_size,)) * np.float32(2)


# ---- files ---------------------------------------------------------------------------------------

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F8_E4M3": np.uint8,
          "F8_E8M0": np.uint8, "U8": np.uint8, "I8": np.int8, "I32": np.int32,
          "I64": np.int64}  # codes as integers


def write_safetensors(path, entries):
    """`entries`: (name, dtype of DTYPES, shape, function that returns the array). One at a time is
    in memory."""
    entries = list(entries)
    header, end = {}, 0
    for name, dtype, shape, _ in entries:
        begin, end = end, end + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape, make in entries:
            array = np.asarray(make(), order="C")  # ascontiguousarray makes scalars vectors
            assert array.dtype == DTYPES[dtype] and array.shape == tuple(shape), name
            file.write(array)


def read_safetensors(path):
    """{name: (dtype, array on the mapped file)}; BF16 and FP8 as integer codes."""
    data = np.memmap(path, np.uint8, "r")
    size = int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:8 + size]))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        array = data[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = entry["dtype"], array
    return tensors


def stored(case, storage):
    """Entries for write_safetensors under the vendor's names."""
    for weight in weights(case):
        if weight.kind == "f32" or storage == "F32":
            yield weight.name, "F32", weight.shape, functools.partial(values, case, weight)
        elif weight.kind == "matrix" and storage == "FP8":
            codes, scale = fp8_parts(case, weight)
            yield weight.name, "F8_E4M3", codes.shape, lambda codes=codes: codes
            yield weight.name + "_scale_inv", "F32", scale.shape, lambda scale=scale: scale
        else:
            yield (weight.name, "BF16", weight.shape,
                   lambda weight=weight: to_bf16(values(case, weight)))


def fused(case):
    """F32 entries with the experts of a layer in two tensors, as transformers names them inside."""
    drawn = {weight.name: weight for weight in weights(case)}

    def stack(moe, parts):
        def make():
            names = [[f"{moe}.experts.{e}.{part}.weight" for part in parts]
                     for e in range(case.num_local_experts)]
            return np.stack([np.concatenate([values(case, drawn[n]) for n in of]) for of in names])
        return make

    experts, hidden, wide = case.num_local_experts, case.hidden_size, case.intermediate_size
    for name, weight in drawn.items():
        if ".experts." not in name:
            renamed = name.replace("block_sparse_moe", "mlp")
            yield renamed, "F32", weight.shape, functools.partial(values, case, weight)
    for layer in range(case.num_hidden_layers):
        at = f"model.layers.{layer}."
        moe, to = at + "block_sparse_moe", at + "mlp.experts."
        yield to + "gate_up_proj", "F32", (experts, 2 * wide, hidden), stack(moe, ("w1", "w3"))
        yield to + "down_proj", "F32", (experts, hidden, wide), stack(moe, ("w2",))


def write_checkpoint(case, directory, storage=None, entries=None):
    """A Hugging Face directory of the case. `storage`: other than the case's own; `entries`: other
    tensors, such as fused(case). Returns the directory."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    storage = storage or case.storage
    config = case.config() | {"dtype": "float32" if storage == "F32" else "bfloat16"}
    if storage == "FP8":
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "float8_e4m3fn",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    write_safetensors(directory / "model.safetensors", entries or stored(case, storage))
    return directory


def checkpoint_files(directory):
    """The safetensors files of a directory, in order."""
    index = pathlib.Path(directory) / "model.safetensors.index.json"
    if not index.exists():
        return [index.with_name("model.safetensors")]
    names = set(json.loads(index.read_text())["weight_map"].values())
    return [index.with_name(name) for name in sorted(names)]


def decoded(directory):
    """{name: float32 array} of a checkpoint in the vendor's names: BF16 widened, FP8 scaled."""
    raw = {}
    for path in checkpoint_files(directory):
        raw |= read_safetensors(path)
    decode = {"F32": np.array, "BF16": from_bf16}
    out = {}
    for name, (dtype, array) in raw.items():
        if dtype == "F8_E4M3":
            out[name] = from_fp8(array, raw[name + "_scale_inv"][1])
        elif not name.endswith("_scale_inv"):
            out[name] = decode[dtype](array)
    return out


def fingerprint(directory):
    """SHA-256 of a checkpoint's tensors and configuration: whose values are the golden ones?"""
    digest = hashlib.sha256()
    for path in [pathlib.Path(directory) / "config.json", *checkpoint_files(directory)]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
