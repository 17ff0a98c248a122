"""Computes the golden values with transformers' MiniMaxM2ForCausalLM, in float32, on the CPU.

    python tests/golden/make_golden.py               # writes CASE.npz, m2-tiny.npz, golden.json
    python tests/golden/make_golden.py --check       # computes them again, compares with the files

Needs torch and transformers >= 5.17. Both engines read the very same directory: the case is written
in the vendor's tensor names and given to from_pretrained. (FP8 cases are given as their exact F32
values: transformers' FP8 layers quantise activations, so their logits would not be comparable.)

Stored for a case and each prompt length N of checkpoints.PROMPTS:
    logits_N   float32 [N, vocab_size]
    experts_N  uint8 [layers, N, num_experts_per_tok], ascending
    stream_N   float32 [layers, hidden_size]: the residual stream after each layer, last position
and for one case hooked_N: the logits when a vector is added to the residual stream after layer
HOOK_LAYER at every position. For m2-tiny, of its vocabulary of thousands, by prompt number i:
    prompt_i   int32 [n] token ids            columns_i  every TINY_COLUMNS-th column of the logits
    sums_i     float32 [n] of whole rows      best_i     int32 [n] the best token of each row
    experts_i, hooked_0 (columns), vector     as above
"""

import argparse
import contextlib
import datetime
import json
import pathlib
import platform
import sys
import tempfile

import numpy as np
import torch
import transformers
from transformers import MiniMaxM2ForCausalLM

import checkpoints

HERE = pathlib.Path(__file__).resolve().parent
TINY = HERE.parents[1] / "python" / "minimax2" / "m2-tiny"
TINY_COLUMNS = 16  # every 16th column of the logits is stored
TINY_TEXTS = (
    'def mean(values):\n    """Arithmetic mean of a sequence."""\n'
    "    return sum(values) / len(values)\n\n\n"
    "def variance(values):\n    center = mean(values)\n"
    "    return mean([(v - center) ** 2 for v in values])\n",
    "The model reads one token after another. Each token selects a few experts, and",
    "import os\nimport sys\n\n"
    "for name in sorted(os.listdir(sys.argv[1])):\n    path = os.path.join(\n" * 12,
)
TWIN_SHIFT = 4e-5  # torch.topk does not say which of two equal scores it takes: here, the first
LEAST_MARGIN = 1e-5  # between the last chosen and the first rejected expert, in biased score
NOISE = 1e-5  # of the largest logit: what float32 itself may cost the reference


def check_rotary(model, config):
    """Releases 5.0 to 5.16 rotated all of head_dim for rotary_dim < head_dim."""
    rotary_dim, theta = config["rotary_dim"], config["rope_theta"]
    position = 3
    cos, sin = model.model.rotary_emb(torch.zeros(1, 1, 1), torch.tensor([[position]]))
    angle = position * theta ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angle = angle.repeat(2)
    right = cos.shape[-1] == rotary_dim and all(
        torch.allclose(ours, theirs[0, 0].double(), atol=1e-6)
        for ours, theirs in ((angle.cos(), cos), (angle.sin(), sin))
    )
    if not right:
        sys.exit(
            f"transformers {transformers.__version__} rotates {cos.shape[-1]} of"
            f" {config['head_dim']} dimensions of a head, or by other angles; the model's files say"
            f" rotary_dim {rotary_dim}, rope_theta {theta:g}. Install transformers >= 5.17."
        )


def load(directory):
    """The reference model, in float32, after checking that it took every tensor."""
    model, report = MiniMaxM2ForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {kind: names for kind, names in report.items() if names}
    if problems:
        sys.exit(f"{directory}: transformers did not take the tensors as they are: {problems}")
    model.set_experts_implementation("eager")
    check_rotary(model, json.loads((pathlib.Path(directory) / "config.json").read_text()))
    return model.eval()


@contextlib.contextmanager
def hooks(handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def separate_twins(model):
    """Makes the second of two experts with the same score a little worse, and stops if that changes
    more than the choice between the two."""

    def on_router(router, arguments, result):
        logits, _, chosen = result
        score = logits.double().sigmoid() + arguments[1]
        score[:, 1::2] = score[:, ::2]
        order = torch.sort(score, dim=-1, descending=True, stable=True).indices
        right = order[:, :chosen.shape[-1]]
        if not torch.equal(right.sort().values, chosen.sort().values):
            sys.exit("the shift of the twins changed other choices; change the seed")

    for layer in model.model.layers:
        layer.mlp.e_score_correction_bias[1::2] -= TWIN_SHIFT
        layer.mlp.gate.register_forward_hook(on_router)


@torch.no_grad()
def run(model, ids, added=None):
    """Logits float32 [n, vocab], experts uint8 [layers, n, k], margins [layers, n] to the first
    rejected expert (inf if none is), share of rows where the bias changed the choice, streams
    [layers, n, hidden]. `added`: float32 [hidden], added to the stream after layer HOOK_LAYER."""
    routed, streams = [], []

    def on_router(router, arguments, result):
        logits, _, chosen = result
        bias = arguments[1]
        score = logits.double().sigmoid()
        biased = (score + bias).sort(-1, descending=True).values
        k = chosen.shape[-1]
        margin = biased[:, k - 1] - biased[:, k] if k < biased.shape[-1] else torch.tensor(np.inf)
        without = score.topk(k).indices.sort().values
        chosen = chosen.sort().values
        moved = (without != chosen).any(-1)
        routed.append((chosen, margin.expand(len(chosen)), moved))

    def on_layer(layer, arguments, result):
        streams.append(result[0])

    handles = []
    if added is not None:
        layer, vector = model.model.layers[checkpoints.HOOK_LAYER], torch.from_numpy(added)
        handles.append(layer.register_forward_hook(lambda _layer, _in, result: result + vector))
    for layer in model.model.layers:
        handles.append(layer.mlp.gate.register_forward_hook(on_router))
        handles.append(layer.register_forward_hook(on_layer))
    with hooks(handles):
        ids = torch.from_numpy(ids.astype(np.int64))
        logits = model(input_ids=ids[None], use_cache=False).logits
    chosen, margins, moved = (torch.stack(parts).numpy() for parts in zip(*routed))
    return {
        "logits": logits[0].numpy(),
        "experts": chosen.astype(np.uint8),
        "margins": margins,
        "moved": float(moved.mean()),
        "streams": torch.stack(streams).numpy(),
    }


def well_posed(model, ids, additions):
    """The prompt up to the first position where some router hesitates: a trained model has no seed
    that could be changed."""
    for added in additions:
        unclear = run(model, ids, added)["margins"].min(0) < LEAST_MARGIN
        if unclear.any():
            ids = ids[:unclear.argmax()]
    if len(ids) < 16:
        sys.exit("m2-tiny: routing is unclear within the first 16 tokens; change the text")
    return ids


def noise(model, ids, logits):
    """Largest difference between float32 and float64 arithmetic of the reference, as a share of the
    largest logit. (Its norms and angles stay float32.)"""
    exact = run(model.double(), ids)["logits"]
    model.float()
    return float(np.abs(exact - logits).max() / np.abs(exact).max())


def facts(results, case_noise):
    """What golden.json tells about a case; stops if the comparison would not be well-posed."""
    margin = min(float(r["margins"].min()) for r in results)
    moved = float(np.mean([r["moved"] for r in results]))
    experts = np.concatenate([r["experts"].reshape(len(r["experts"]), -1) for r in results], 1)
    told = {
        "largest logit": round(max(float(np.abs(r["logits"]).max()) for r in results), 3),
        "least routing margin": margin if np.isfinite(margin) else None,
        "rows whose experts the bias changed": round(moved, 3),
        "experts used, fewest of a layer": min(len(np.unique(layer)) for layer in experts),
        "float32 against float64": case_noise,
    }
    if margin < LEAST_MARGIN or case_noise > NOISE:
        sys.exit(f"not well-posed, change the seed: {told}")
    return told


def make_case(case, scratch):
    directory = checkpoints.write_checkpoint(case, scratch / case.name, storage="F32")
    model = load(directory)
    if case.twins:
        separate_twins(model)
    arrays, results = {}, []
    for n in checkpoints.PROMPTS:
        ids = checkpoints.prompt(case, n)
        result = run(model, ids)
        results.append(result)
        arrays[f"logits_{n}"] = result["logits"]
        arrays[f"experts_{n}"] = result["experts"]
        arrays[f"stream_{n}"] = result["streams"][:, -1]
    if case.name == checkpoints.HOOKED:
        n = checkpoints.PROMPTS[0]
        result = run(model, checkpoints.prompt(case, n), checkpoints.hook_vector(case))
        results.append(result)
        arrays[f"hooked_{n}"] = result["logits"]
    n = checkpoints.PROMPTS[0]
    told = facts(results, noise(model, checkpoints.prompt(case, n), arrays[f"logits_{n}"]))
    return arrays, told | {"config": case.config(), "seed": case.seed}


def make_tiny(directory, scratch):
    """m2-tiny: its FP8 weights dequantised to float32, three fixed texts."""
    from tokenizers import Tokenizer

    config = json.loads((directory / "config.json").read_text())
    config.pop("quantization_config", None)
    config |= {"bos_token_id": None, "eos_token_id": None}  # transformers' defaults are too large
    plain = scratch / "m2-tiny"
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(config))
    tensors = checkpoints.decoded(directory)
    checkpoints.write_safetensors(
        plain / "model.safetensors",
        ((name, "F32", array.shape, lambda array=array: array) for name, array in tensors.items()),
    )
    model = load(plain)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    case = checkpoints.CASES[checkpoints.HOOKED]  # lends its seed
    vector = checkpoints.hash_unit(case, "m2-tiny", (config["hidden_size"],))
    arrays, results = {"vector": vector}, []
    for i, text in enumerate(TINY_TEXTS):
        ids = np.array(tokenizer.encode(text).ids, np.int32)
        ids = well_posed(model, ids, [None] if i else [None, vector])
        result = run(model, ids)
        results.append(result)
        logits = result["logits"]
        arrays |= {
            f"prompt_{i}": ids,
            f"columns_{i}": logits[:, ::TINY_COLUMNS],
            f"sums_{i}": logits.sum(1, dtype=np.float64).astype(np.float32),
            f"best_{i}": logits.argmax(1).astype(np.int32),
            f"experts_{i}": result["experts"],
        }
    results.append(run(model, arrays["prompt_0"], vector))
    arrays["hooked_0"] = results[-1]["logits"][:, ::TINY_COLUMNS]
    told = facts(results, noise(model, arrays["prompt_0"], results[0]["logits"]))
    return arrays, told | {"weights": checkpoints.fingerprint(directory)}


def names_written(case, scratch):
    """What transformers' own save_pretrained writes: tensor names (of layer 0) and config.json."""
    model = load(scratch / case.name)
    model.save_pretrained(scratch / "saved")
    tensors = checkpoints.read_safetensors(scratch / "saved" / "model.safetensors")
    config = json.loads((scratch / "saved" / "config.json").read_text())
    return {
        "tensors of layer 0": sorted(name for name in tensors if ".layers.0." in name),
        "other tensors": sorted(name for name in tensors if ".layers." not in name),
        "config": config,
        "names inside the model": sorted(n for n in model.state_dict() if ".layers.0.mlp" in n),
    }


def difference(new, old):
    """Largest difference of two golden files as a share of the largest stored value of each array;
    infinite if their arrays or whole numbers differ."""
    if new.keys() != set(old.files):
        return np.inf
    worst = 0.0
    for key, array in new.items():
        if array.shape != old[key].shape:
            return np.inf
        if array.dtype.kind != "f":
            worst = max(worst, 0.0 if np.array_equal(array, old[key]) else np.inf)
        else:
            worst = max(worst, float(np.abs(array - old[key]).max() / np.abs(old[key]).max()))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files, write none")
    parser.add_argument("--only", nargs="*", help="cases by name; m2-tiny is one")
    parser.add_argument("--tiny", type=pathlib.Path, default=TINY, help="folder of m2-tiny")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    wanted = arguments.only or [*checkpoints.CASES, "m2-tiny"]
    book_path = HERE / "golden.json"
    book = json.loads(book_path.read_text()) if book_path.exists() else {"cases": {}}
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for name in wanted:
            if name == "m2-tiny":
                arrays, told = make_tiny(arguments.tiny, scratch)
            else:
                arrays, told = make_case(checkpoints.CASES[name], scratch)
            path = HERE / f"{name}.npz"
            if arguments.check:
                with np.load(path) as old:
                    change = difference(arrays, old)
                worst = max(worst, change)
                print(f"{name}: max |difference| {change:.2e} of the largest value")
                continue
            np.savez_compressed(path, **arrays)
            book["cases"][name] = told
            told_shortly = {k: v for k, v in told.items() if k != "config"}
            print(f"{name}: {path.stat().st_size >> 10} KB, {told_shortly}")
            if name == "half":
                names = names_written(checkpoints.CASES[name], scratch)
                book["transformers' save_pretrained"] = names
    if arguments.check:
        sys.exit(f"the golden files are not reproduced: {worst:.2e}" if worst > 1e-5 else 0)
    book["made with"] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "arithmetic": "float32, attn_implementation eager, experts eager",
    }
    book_path.write_text(json.dumps(book, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
