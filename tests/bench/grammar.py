"""What a form costs: the mask of a token, and decoding with it beside decoding without.

    python tests/bench/grammar.py MODEL [--threads N] [--tokens N] [--rounds N]

MODEL: a checkpoint with the family's tokenizer. One layer of random weights at full width will do,
and is a hard case, since the real models' tokens take 62 times as long:
    minimax2 synth m.gguf --layers 1 --format q4_k_m --tokenizer PATH

Masks: medians in microseconds, of all that a step of a stream does for one; of llguidance's schemas
also what is left without llguidance's own time. Decoding: rounds without, with the mask made in
between, and with the mask made by another thread meanwhile; interleaved, medians of the rounds.
"""

import argparse
import concurrent.futures
import json
import statistics
import time

import minimax2 as mm
import numpy as np
from minimax2 import _native_text, grammar

SCHEMA = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 60},
    "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "tags": {"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 9},
    "kind": {"enum": ["cat", "dog", "horse"]}, "note": {"type": "string"}},
    "required": ["name", "age", "tags", "kind", "note"]}
BEYOND = {**SCHEMA, "maxProperties": 5}  # what only llguidance knows
REGEX = r"(\w+ ){20,400}\d{4}-\d\d-\d\d"


def sampled(state, words, seed, most):
    """Tokens of a random text of the form, and microseconds for each mask, one by one."""
    random, tokens, took = np.random.default_rng(seed), [], []
    while len(tokens) < most:
        start = time.perf_counter()
        mask = state.mask(0, tokens)
        took.append((time.perf_counter() - start) * 1e6)
        allowed = np.flatnonzero(np.unpackbits(mask[:words].view(np.uint8), bitorder="little"))
        tokens.append(int(random.choice(allowed)))
        if tokens[-1] in state.ends:
            break
    return tokens, took


def show_masks(model, tokens):
    """Of each form: the first text, whose masks are new, and a later one."""
    kept = grammar.Grammars(model)
    for name, kind, text in (("schema", "json_schema", json.dumps(SCHEMA)),
                             ("schema, llguidance", "json_schema", json.dumps(BEYOND)),
                             ("regex", "regex", REGEX),
                             ("choices", "choices", json.dumps([str(i) for i in range(999)]))):
        line, words = [], (model.config.vocab_size + 31) // 32
        for seed in range(4):
            state = kept.constraint(grammar.Form(kind, text, None), _native_text.START_ANSWER,
                                    False)._state
            state.ends = model.end_tokens
            ids, took = sampled(state, words, seed, tokens)
            line.append(f"{statistics.median(took):.0f} (most {max(took):.0f})")
            if isinstance(state, grammar._Guided) and seed:
                matcher, own = state._matcher.deep_copy(), []
                matcher.reset()
                for token in ids:
                    start = time.perf_counter()
                    matcher.unsafe_compute_mask_ptr(*state._place)
                    matcher.consume_token(token)
                    own.append((time.perf_counter() - start) * 1e6)
                ours = statistics.median(a - b for a, b in zip(took, own))
                line[-1] += f", {ours:.1f} of it ours"
        print(f"{name:20} {'; '.join(line)}", flush=True)


def decode(model, form, tokens, pool):
    """Seconds for a run of decoding; every mask allows all: the same tokens each time."""
    with model.session(context=tokens + 8) as session:
        session.feed([100, 200]).run()
        sampler = mm.Sampler(model, temperature=0, bias={})
        state = None if form is None else model._grammars.constraint(
            form, _native_text.START_ANSWER, False)._state
        ids, start, coming = [], time.perf_counter(), None
        while len(ids) < tokens:
            mask = None
            if state is not None:
                mask = coming.result() if coming else state.mask(0, ids)
            ids.append(sampler.next(session, mask))
            session.feed(ids[-1:])
            if pool is not None and state is not None:
                coming = pool.submit(state.mask, 0, list(ids))
            session.run()
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    model = mm.load(given.model, threads=given.threads)
    show_masks(model, given.tokens)
    text = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    forms = {"none": (None, False)}
    for name, schema in (("library", text), ("llguidance", {**text, "maxProperties": 1})):
        form = grammar.Form("json_schema", json.dumps(schema), None)
        forms |= {name: (form, False), f"{name}, other thread": (form, True)}
    took = {name: [] for name in forms}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(given.rounds + 1):  # the first one warms up
            for name, (form, other) in forms.items():
                took[name].append(decode(model, form, given.tokens, pool if other else None))
    base = statistics.median(took["none"][1:])
    for name, seconds in took.items():
        middle = statistics.median(seconds[1:])
        each = middle / given.tokens * 1e3
        print(f"{name:26} {each:.3f} ms a token, {middle / base:.4f} of none")


if __name__ == "__main__":
    main()
