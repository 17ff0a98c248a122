"""What speculation gives, by kind of text.

    python tests/bench/speculation.py [-m model] [--tokens 160] [--rounds 5] [--kinds edit,...]
                                      [--markdown]

A model of random weights copies nothing, and a small one little, so the model is made to say a
given text: a mask leaves one token at each place. Everything else is as ever: prompt, runs,
sampler, what the lookup finds and what the gate expects.

edit    a source file, then the same with names changed
json    a list of records, then the same with a field changed
quote   a page of prose, then a paragraph of it, an own sentence, another paragraph
prose   a page of prose, then the next one
random  random tokens, then more of them
own     nothing is forced: what the model writes itself, sampled, behind the prompt of edit

Generations with and without go in turns; given are the medians and their ratio, the ratio of the
fastest ones, and how many tokens were proposed and came true. First what a run of several rows
costs, a run of one row being 1.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import minimax2 as mm

ROOT = Path(__file__).resolve().parents[2]


def texts(kind):
    """A prompt, and what comes behind it."""
    if kind in ("edit", "own"):
        source = (ROOT / "python" / "minimax2" / "handle.py").read_text()
        prompt = f"{source}\n# The same, with other names:\n\n"
        return prompt, source.replace("owned", "handle").replace("closed", "ended")
    if kind == "json":
        rows = [{"id": 100 + 7 * i, "name": f"item {i * i % 53}", "price": i * 37 % 900 / 100,
                 "tags": ["new", "large"] if i % 3 else ["small"], "stock": i * 5 % 17}
                for i in range(40)]
        changed = [{**row, "price": row["price"] + 1} for row in rows]
        return json.dumps(rows) + "\nNow each costs 1 more:\n", json.dumps(changed)
    prose = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "csrc" / "README.md").read_text()
    pages = prose.replace("|", " ").split("\n\n")
    if kind == "quote":
        page = "\n\n".join(pages[:12])
        return page, f"{pages[2]}\n\nThat is what it says. And then:\n\n{pages[4]}\n{pages[9]}"
    half = len(pages) // 2
    return "\n\n".join(pages[:half])[-4000:], "\n\n".join(pages[half:])


def ids_of(model, kind, count):
    if kind == "random":
        draw = random.Random(3)
        ids = [draw.randrange(model.config.vocab_size) for _ in range(1000 + count)]
        return ids[:1000], ids[1000:]
    prompt, text = (model.tokenizer.encode(part) for part in texts(kind))
    return prompt, None if kind == "own" else (text * (count // len(text) + 1))[:count]


def masks_of(model, ids):
    words = (model.config.vocab_size + 31) // 32
    made = []
    for token in ids:
        mask = bytearray(4 * words)
        mask[token // 8] = 1 << token % 8
        made.append(memoryview(mask).cast("I"))
    return made


def costs(model, rounds):
    prompt, text = ids_of(model, "prose", 400)
    session = model.session(context=len(prompt) + 420)
    session.feed(prompt).run()
    times = {}
    for _ in range(rounds + 1):
        for rows in (1, 2, 3, 4, 6, 8, 12, 16):
            session.rewind(len(prompt))
            session.feed(text[:1])
            session.draft(text[1:rows])
            start = time.perf_counter()
            session.run()
            times.setdefault(rows, []).append(time.perf_counter() - start)
    one = statistics.median(times[1][1:])
    print(f"a run of one row: {one * 1e3:.2f} ms; of " + ", ".join(
        f"{rows}: {statistics.median(taken[1:]) / one:.2f}" for rows, taken in times.items()
        if rows > 1), flush=True)


def measure(model, kind, count, rounds):
    prompt, text = ids_of(model, kind, count)
    masks = None if text is None else masks_of(model, text)
    speeds = {False: [], True: []}
    for turn in range(rounds + 1):  # the first one warms up
        for speculate in (False, True) if turn % 2 else (True, False):
            made = model.generate(
                prompt, max_new_tokens=count, seed=turn, speculate=speculate, temperature=1.0,
                mask=None if masks is None else lambda tokens: masks[len(tokens)],
                bias={token: float("-inf") for token in model.end_tokens} if text is None else None)
            speeds[speculate].append(made.timing.speed)
            if speculate:
                timing = made.timing
    plain, fast = (speeds[which][1:] for which in (False, True))
    return (kind, statistics.median(plain), statistics.median(fast),
            statistics.median(fast) / statistics.median(plain), max(fast) / max(plain),
            timing.proposed, timing.accepted, timing.speculating)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model")
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default="edit,json,quote,prose,random,own")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    model = mm.load(given.model) if given.model else mm.load()
    costs(model, 2 * given.rounds)
    for kind in given.kinds.split(","):
        kind, plain, fast, ratio, best, proposed, accepted, on = measure(
            model, kind, given.tokens, given.rounds)
        if given.markdown:
            print(f"| {kind} | {plain:.1f} | {fast:.1f} | {ratio:.2f} | {best:.2f} | {proposed} "
                  f"| {accepted} | {'on' if on else 'off'} |", flush=True)
        else:
            print(f"{kind:7s} {plain:7.1f} -> {fast:7.1f} tokens/s, x {ratio:.2f} (fastest: "
                  f"{best:.2f}), proposed {proposed}, came {accepted}{'' if on else ', off'}",
                  flush=True)


if __name__ == "__main__":
    main()
