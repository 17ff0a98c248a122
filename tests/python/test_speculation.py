"""Tokens evaluated before they are chosen: the same results, whatever was foretold.

Every case is generated plainly, then with proposals of the library's, then with drafts that are the
plain result, some of them spoiled at some place. MINIMAX2_SPECULATIONS: how many cases.
"""

import asyncio
import hashlib
import os
import pathlib
import random

import minimax2 as mm
import numpy as np
import pytest

CASES = int(os.environ.get("MINIMAX2_SPECULATIONS", "20"))
SOURCE = (pathlib.Path(__file__).parents[2] / "python/minimax2/handle.py").read_text()
RECORDS = "\n".join(f'{{"id": {i}, "name": "item {i % 3}", "tags": ["new"]}},' for i in range(12))
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}}}]


def prompt_of(draw):
    """Texts that repeat themselves, and messages."""
    if draw.random() < 0.3:
        question = draw.choice([f"What is {draw.randrange(90)} + {draw.randrange(90)}?",
                                f"Repeat this:\n{RECORDS[:draw.randrange(200)]}", "Hello"])
        return [{"role": "user", "content": question}]
    source = draw.choice([SOURCE, RECORDS, "import os\nimport sys\n", "a b c d e f g h\n" * 3])
    start = draw.randrange(max(1, len(source) // 2))
    part = source[start:start + draw.randrange(20, 400)]
    return part + draw.choice(["", "\n" + part, "\n\n# And again:\n" + part[:len(part) // 2]])


def damp(ids, logits):
    """A logits_processor that looks at all that it is given."""
    logits[ids[-1]] -= 1
    logits[len(ids) % 100] += 2


def options_of(draw, messages, vocabulary):
    options = {"seed": draw.randrange(1000), "max_new_tokens": draw.randrange(1, 70),
               "temperature": draw.choice([0, 0, 0.4, 1, 1.5])}
    words = np.random.default_rng(options["seed"]).integers(2**32, size=(vocabulary + 31) // 32,
                                                            dtype=np.uint32)
    more = [{"top_logprobs": 2}, {"stop": [draw.choice(["\n\n", "e", "import", "1"])]},
            {"logits_processor": damp}, {"mask": words}, {"repetition_penalty": 1.2},
            {"dry_multiplier": 0.8, "breakers": [10]}, {"presence_penalty": 0.5},
            {"bias": {10: 2.5}}, {}, {}]
    for one in draw.sample(more, draw.randrange(3)):
        options |= one
    if messages:
        options |= draw.choice([{}, {"thinking": False}, {"thinking": draw.randrange(1, 30)},
                                {"tools": TOOLS, "tool_choice": "required", "thinking": 5}])
    return options


def foretell(session, known, draw, mask):
    """A mask that drafts, at some tokens, what comes next, rightly or not."""
    def look(tokens):
        if draw.random() < 0.4:
            draft = known[len(tokens):len(tokens) + draw.randrange(1, 12)]
            if draft and draw.random() < 0.5:
                draft[draw.randrange(len(draft))] = draw.randrange(session.model.config.vocab_size)
            session.draft(draft)
        return mask
    return look


def what(made):
    """All of a generation but its times."""
    return {name: value for name, value in vars(made).items() if name != "timing"}


def case(model, number):
    draw = random.Random(number)
    prompt = prompt_of(draw)
    options = options_of(draw, not isinstance(prompt, str), model.config.vocab_size)
    ids = model.ids(prompt) if isinstance(prompt, str) else None
    context = len(ids) + draw.randrange(1, 40) if ids and draw.random() < 0.2 else 1024
    return draw, prompt, options, context


def fresh(model, context):
    return model.session(context=context)


def test_the_same_results(tiny):
    came = 0
    for number in range(CASES):
        draw, prompt, options, context = case(tiny, number)
        with fresh(tiny, context) as session:
            plain = session.generate(prompt, speculate=False, **options)
            tokens, logits = session.tokens, None
            if session.run():
                logits = session.logits.numpy().copy()
        assert plain.timing.proposed == plain.timing.accepted == 0
        assert not plain.timing.speculating
        with fresh(tiny, context) as session:
            made = session.generate(prompt, speculate=draw.choice([True, 1, 4]), **options)
            assert what(made) == what(plain), (number, prompt, options)
            assert session.tokens == tokens
        with fresh(tiny, context) as session:
            mask = foretell(session, plain.tokens, draw, options.get("mask"))
            made = session.generate(prompt, speculate=draw.random() < 0.5,
                                    **{**options, "mask": mask})
            assert what(made) == what(plain), (number, prompt, options)
            assert session.run() and session.tokens == tokens
            assert session.logits.numpy().tobytes() == logits.tobytes()
            assert made.timing.accepted <= made.timing.proposed
            came += made.timing.accepted
    assert came > CASES


def test_pulled_in_slices(tiny):
    """Budgets end and calls interrupt while several rows are in flight; then it is cancelled, cut,
    forked, and goes on."""
    for number in range(200, 200 + CASES // 3):
        draw, prompt, options, _ = case(tiny, number)
        options |= {"max_new_tokens": 40}
        options.pop("thinking", None)  # it begins anew with what goes on
        options.pop("tools", None), options.pop("tool_choice", None), options.pop("stop", None)
        options["bias"] = {token: float("-inf") for token in tiny.end_tokens}
        prompt = tiny.ids(prompt)
        plain = tiny.generate(prompt, speculate=False, **options)
        with fresh(tiny, 1024) as session:
            mask = foretell(session, plain.tokens, draw, options.get("mask"))
            stream = session.generate(prompt, stream=True, **{**options, "mask": mask})
            end = draw.randrange(5, 45)
            while not stream.done and len(stream.tokens) < end:
                session.interrupt()
                stream.poll(draw.choice([0, 0.0001, 0.001]))
                assert session.tokens == prompt + stream.tokens
            stream.cancel()
            everything, length = prompt + plain.tokens, session.length
            assert session.tokens == everything[:length]
            with session.fork() as fork:
                session.feed([1])  # while a draft is in flight, or at hand
                session.rewind(length - draw.randrange(len(stream.tokens) + 1))
                for one in (session, fork):
                    length = one.length
                    one.rewind(length - 1)
                    one.feed(everything[length - 1:length])
                    made = one.generate(**{**options, "max_new_tokens": len(everything) - length})
                    assert one.tokens == everything and made.tokens == everything[length:]


def test_hooks_see_each_token_in_its_turn(tiny):
    seen = {}

    def look(speculate):
        def hook(tensor, tap):
            digest = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
            seen.setdefault(speculate, []).append((tap.point, tap.layer, tap.first, digest))
            tensor.numpy()[-1] *= 1.01
        return hook

    made = {}
    for speculate in (False, True):
        with fresh(tiny, 512) as session:
            mask = foretell(session, made[False].tokens if speculate else [], random.Random(1),
                            None)
            made[speculate] = session.generate(
                SOURCE[:200] * 2, max_new_tokens=20, seed=3, mask=mask, speculate=speculate,
                hooks=[("resid_mid", look(speculate)), (("logits", -1), look(speculate))])
    assert what(made[True]) == what(made[False])
    assert seen[True] == seen[False]
    assert made[True].timing.proposed == 0


def test_in_batches_engines_and_chats(tiny):
    prompts = [SOURCE[:150] * 2, RECORDS[:200], "import os\nimport sys\nimport os\n"]
    options = {"max_new_tokens": 30, "seed": 4, "temperature": 0.5}
    plain = [what(tiny.generate(prompt, speculate=False, **options)) for prompt in prompts]
    assert [what(made) for made in tiny.generate(prompts, speculate=True, **options)] == plain
    for answer in tiny.generate(prompts[0], n=2, speculate=True, **options):
        assert answer.tokens == tiny.generate(prompts[0], speculate=False,
                                              **{**options, "seed": answer.seed}).tokens

    async def alone_and_together():
        with tiny.engine() as engine:
            first = await engine.agenerate(prompts[0], speculate=True, **options)
            rest = await asyncio.gather(*(engine.agenerate(prompt, speculate=8, **options)
                                          for prompt in prompts))
            return [what(made) for made in (first, *rest)]

    assert asyncio.run(alone_and_together()) == [plain[0], *plain]
    said = []
    for speculate in (False, 15):
        with tiny.chat(context=1024) as chat:
            said.append([what(chat.send(text, max_new_tokens=40, seed=2, speculate=speculate))
                         for text in ("What is 3 + 4?", "What is 3 + 4?", "What is 4 + 4?")])
    assert said[0] == said[1]


def test_what_repeats_itself_is_proposed(tiny):
    ids = tiny.ids("alpha beta gamma delta epsilon zeta eta theta\n") * 8
    half = len(ids) // 2

    def say(tokens):
        mask = np.zeros((tiny.config.vocab_size + 31) // 32, np.uint32)
        token = ids[half + len(tokens)]
        mask[token // 32] = 1 << token % 32
        return mask

    options = {"max_new_tokens": half, "mask": say, "seed": 1}
    made = tiny.generate(ids[:half], speculate=True, **options)
    assert made.tokens == ids[half:]
    assert 0 < made.timing.accepted <= made.timing.proposed
    assert tiny.generate(ids[:half], **options).timing.proposed == 0


def test_drafts_by_hand(tiny):
    ids = tiny.ids(SOURCE)[:60]
    with fresh(tiny, 128) as plain, fresh(tiny, 128) as session:
        plain.feed(ids).run()
        session.feed(ids[:50]).run()
        session.feed(ids[50:51])
        session.draft(np.array(ids[51:]))
        assert (session.length, session.tokens) == (51, ids[:51])
        session.run()
        assert session.pos == session.length == 51
        session.feed(ids[51:]).run()
        assert session.logits.numpy().tobytes() == plain.logits.numpy().tobytes()
        session.draft([])
        for wrong, error in ((["x"], TypeError), ("x", TypeError), ([-1], mm.ArgumentError),
                             ([10**6], mm.ArgumentError)):
            with pytest.raises(error):
                session.draft(wrong)


@pytest.mark.parametrize("value, error", [(-1, mm.ArgumentError), (16, mm.ArgumentError),
                                          (None, TypeError), ("no", TypeError), (2.0, TypeError)])
def test_refused(tiny, value, error):
    with fresh(tiny, 64) as session:
        with pytest.raises(error, match="speculate"):
            session.generate("x", speculate=value)
        assert session.length == 0
