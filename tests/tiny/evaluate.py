"""Measures the exported m2-tiny and writes the numbers of the model card.

    python evaluate.py --work DIR --model python/minimax2/m2-tiny

Reads the FP8 files back into transformers' class (dequantised) and measures: bits per byte on
held-out source files, exact answers to held-out sums, questions and tool calls (greedy), and the
load of each expert. Writes `card.json`, `curve.png`, `heldout.jsonl` and the table in
`README.md`, all beside itself.
"""

import argparse
import json
import math
import os
import pathlib
import random
import re

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer
from tqdm.auto import tqdm

import data
import dialogues
import model as tiny
import train

HERE = pathlib.Path(__file__).parent
EXAM_SEED = 7
EXAM_ITEMS = 200  # of each kind
PUBLISHED = 100  # of each kind, in heldout.jsonl
WINDOW = 1024
LOAD_ROWS = 96
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 40}  # as shipped
CODE_PROMPTS = ("def fibonacci(n):\n", "class Stack:\n", "import os\n\n\ndef")


def questions_exam(seed, count):
    """Held-out items of the other kinds: sorting, dates, units, repeating."""
    rng = random.Random(seed)
    makers = (dialogues.sorting, dialogues.dates, dialogues.units, dialogues.echo)
    items = []
    for _ in range(count):
        turns = dialogues.question_turns(rng, makers, True)
        system = {"role": "system", "content": dialogues.IDENTITY}
        items.append(([system, turns[0]], None, dialogues.render_answer(turns[1])))
    return items


def exams():
    return {
        "arithmetic": dialogues.held_out_arithmetic(EXAM_SEED, EXAM_ITEMS),
        "tool_calls": dialogues.held_out_tool_calls(EXAM_SEED, EXAM_ITEMS),
        "questions": questions_exam(EXAM_SEED, EXAM_ITEMS),
    }


@torch.no_grad()
def complete(net, tokenizer, prompts, limit, batch=50, **sampling):
    """Continues each prompt until the end token or the limit; special tokens stay in the text."""
    pad, end = tokenizer.token_to_id(data.PAD), tokenizer.token_to_id(data.EOS)
    ids = [tokenizer.encode(p, add_special_tokens=False).ids for p in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # rows of a batch nearly alike
    texts = [""] * len(ids)
    for start in tqdm(range(0, len(order), batch), desc="generate", disable=None):
        chosen = order[start : start + batch]
        width = max(len(ids[i]) for i in chosen)
        rows = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in chosen])
        mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in chosen])
        out = net.generate(
            rows,
            attention_mask=mask,
            max_new_tokens=limit,
            pad_token_id=pad,
            eos_token_id=end,
            **(sampling or {"do_sample": False}),
        )
        for i, row in zip(chosen, out[:, width:].tolist()):
            row = row[: row.index(end)] if end in row else row
            texts[i] = tokenizer.decode(row, skip_special_tokens=False)
    return texts


def examine(net, tokenizer, items):
    """(share of exact answers, failures as (question, expected, got))."""
    prompts = [dialogues.render(messages, tools, True) for messages, tools, _ in items]
    failures = []
    for (messages, _, expected), text in zip(items, complete(net, tokenizer, prompts, 200)):
        answer = text.partition("</think>\n\n")[2]
        if answer != expected:
            failures.append((messages[-1]["content"], expected, text))
    return 1 - len(failures) / len(items), failures


@torch.no_grad()
def bits_per_byte(net, tokenizer, texts):
    """Windows without overlap: a token sees at most WINDOW - 1 tokens of its own file before it."""
    bits, size, tokens = 0.0, 0, 0
    for text in tqdm(texts, desc="code", disable=None):
        ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
        for start in range(0, len(ids), WINDOW):
            # The end token stands before a file in training, so it predicts the first token here.
            before = ids[start - 1] if start else torch.tensor(tokenizer.token_to_id(data.EOS))
            window = torch.cat([before[None], ids[start : start + WINDOW]])
            logits = net(input_ids=window[None, :-1], use_cache=False).logits[0]
            bits += F.cross_entropy(logits, window[1:], reduction="sum").item() / math.log(2)
        size += len(text.encode())
        tokens += len(ids)
    return {
        "bits_per_byte": bits / size,
        "bytes": size,
        "tokens": tokens,
        "bits_per_token": bits / tokens,
    }


@torch.no_grad()
def expert_load(net, work, pad):
    """Load per layer and expert on rows drawn as in training, as a multiple of the mean."""
    routers = train.Routers(net)
    _, tokens = train.Rows(work, pad).batch(
        10**9, 0, train.MIXES[-1][1], LOAD_ROWS, train.ROW_TOKENS
    )
    for part in tqdm(tokens.split(8), desc="load", disable=None):
        net(input_ids=part[:, :-1], use_cache=False)
    load = routers.load / routers.load.mean(1, keepdim=True)
    for block in routers.blocks:
        del block.gate.forward  # back to the class's own
    return load


def draw_curve(history, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), height_ratios=(3, 1), sharex=True)
    for kind in train.KINDS:
        points = [(h["tokens"] / 1e6, h[kind]) for h in history if kind in h]
        x, y = np.array(points).T
        width = max(1, len(y) // 60)
        smooth = np.convolve(y, np.ones(width) / width, "valid")
        above.plot(x[width - 1 :], smooth / math.log(2), label=kind)
    above.set(ylabel="training loss, bits per token", ylim=(0, 8))
    above.grid(alpha=0.3)
    above.legend()
    x = [h["tokens"] / 1e6 for h in history]
    worst = [h["worst"] for h in history]
    width = max(1, len(worst) // 60)
    below.plot(
        x[width - 1 :], np.convolve(worst, np.ones(width) / width, "valid"), color="tab:gray"
    )
    below.set(xlabel="million tokens", ylabel="least load\n/ mean, of a step", ylim=(0, 1))
    below.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def publish_exam(items_by_kind, path):
    """Items for other engines: messages, tools, and the text expected after the think block."""
    with path.open("w", encoding="utf-8") as file:
        for kind in ("tool_calls", "arithmetic"):
            for messages, tools, expected in items_by_kind[kind][:PUBLISHED]:
                item = {"kind": kind, "messages": messages, "tools": tools, "expected": expected}
                file.write(json.dumps(item, ensure_ascii=False) + "\n")


def table(card):
    load, run, code = card["expert_load"], card["training"], card["code"]
    rows = [
        ("held-out code, bits per byte", f"{code['bits_per_byte']:.3f}"),
        ("held-out arithmetic, exact", f"{card['exact']['arithmetic']:.1%} of {card['items']}"),
        ("held-out tool calls, exact", f"{card['exact']['tool_calls']:.1%} of {card['items']}"),
        (
            "held-out sorting, dates, units, repeating, exact",
            f"{card['exact']['questions']:.1%} of {card['items']}",
        ),
        ("load per expert, least / mean", f"{min(load['min']):.2f}"),
        ("load per expert, greatest / mean", f"{max(load['max']):.2f}"),
        ("parameters", f"{run['parameters'] / 1e6:.2f} million"),
        (
            "training",
            (
                f"{run['tokens'] / 1e6:.2f} million tokens, {run['steps']} steps,"
                f" {run['minutes']:.0f} minutes"
            ),
        ),
        ("size on disk", f"{card['bytes'] / 1e6:.1f} MB"),
    ]
    lines = ["| measured | |", "|---|---|"] + [f"| {a} | {b} |" for a, b in rows]
    lines += [
        "",
        "Load per expert as a multiple of the mean, by layer:",
        "",
        "| layer | least | greatest | correction bias |",
        "|---|---|---|---|",
    ]
    for i, (low, high, bias) in enumerate(zip(load["min"], load["max"], card["correction_bias"])):
        lines.append(f"| {i} | {low:.2f} | {high:.2f} | {bias[0]:+.3f} to {bias[1]:+.3f} |")
    lines += [
        "",
        "Three prompts continued with the shipped sampling settings, first draw:",
        "",
    ]
    for sample in card["samples"]:
        lines += ["```python", sample.rstrip(), "```", ""]
    return "\n".join(lines)


def fill_card(path, card):
    text = path.read_text("utf-8")
    begin, end = "<!-- measured -->\n", "<!-- end of measured -->"
    fresh = re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda _: begin + table(card) + end,
        text,
        flags=re.DOTALL,
    )
    path.write_text(fresh, "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder used by train.py")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="the exported model")
    parser.add_argument("--failures", action="store_true", help="print what was answered wrongly")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    net = tiny.load_exported(arguments.model)
    items = exams()
    publish_exam(items, HERE / "heldout.jsonl")
    exact = {}
    for kind, exam in items.items():
        exact[kind], failures = examine(net, tokenizer, exam)
        print(f"{kind}: {exact[kind]:.1%} exact")
        if arguments.failures:
            for question, expected, got in failures[:12]:
                print(f"--- {question}\nexpected {expected!r}\ngot      {got!r}")
    log = json.loads((arguments.work / "train.json").read_text())
    held_out = json.loads((arguments.work / "code_held_out.json").read_text())
    load = expert_load(net, arguments.work, tokenizer.token_to_id(data.PAD))
    biases = [layer.mlp.e_score_correction_bias for layer in net.model.layers]
    torch.manual_seed(EXAM_SEED)
    texts = complete(net, tokenizer, CODE_PROMPTS, 120, **SAMPLING)
    samples = [p + t for p, t in zip(CODE_PROMPTS, texts)]
    card = {
        "exact": exact,
        "items": EXAM_ITEMS,
        "code": bits_per_byte(net, tokenizer, held_out.values()),
        "expert_load": {
            "min": [round(v.min().item(), 3) for v in load],
            "max": [round(v.max().item(), 3) for v in load],
            "all": [[round(x, 3) for x in v.tolist()] for v in load],
        },
        "correction_bias": [[round(b.min().item(), 4), round(b.max().item(), 4)] for b in biases],
        "training": log["run"],
        "data": json.loads((arguments.work / "data.json").read_text()),
        "bytes": sum(f.stat().st_size for f in arguments.model.iterdir()),
        "transformers": transformers.__version__,
        "samples": samples,
    }
    (HERE / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", "utf-8")
    draw_curve(log["history"], HERE / "curve.png")
    fill_card(HERE / "README.md", card)


if __name__ == "__main__":
    main()
