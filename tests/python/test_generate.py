"""generate, Stream, Chat, Sampler: the same text however it is pulled, and where it ends."""

import asyncio
import json
import math
import shutil

import minimax2 as mm
import numpy as np
import pytest
from minimax2.model import EMBEDDED

PROMPT = "def fibonacci(n):"
QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]


@pytest.fixture(scope="module")
def made(tiny):
    return tiny.generate(PROMPT, max_new_tokens=60, seed=5)


def only(*tokens):
    """A mask that allows these ids of the embedded model."""
    mask = np.zeros(128, np.uint32)
    for token in tokens:
        mask[token // 32] |= np.uint32(1 << token % 32)
    return mask


def forced(tiny, text, **options):
    """A generation that is made to say `text`, whatever the model thinks."""
    ids = tiny.tokenizer.encode(text, special=True)
    options = {"max_new_tokens": len(ids), "seed": 1, **options}
    return tiny.generate(PROMPT, mask=lambda tokens: only(ids[len(tokens)]), **options)


def test_a_generation(made, tiny):
    assert str(made) == made.text == tiny.tokenizer.decode(made.tokens)
    assert made.seed == 5 and made.thinking is None and made.logprobs is None
    assert made.finish_reason in ("length", "stop")
    assert len(made.tokens) == 60 or made.tokens[-1] == tiny.tokenizer.eos
    assert made.timing.prompt_tokens == len(tiny.tokenizer.encode(PROMPT))
    assert made.timing.tokens == len(made.tokens) and made.timing.speed > 0
    assert "\n" not in repr(made) and "seed" in made._repr_html_()


def test_same_seed_same_text(made, tiny):
    assert tiny.generate(PROMPT, max_new_tokens=60, seed=5).tokens == made.tokens
    assert tiny.generate(PROMPT, max_new_tokens=60, seed=6).tokens != made.tokens
    fresh = tiny.generate(PROMPT, max_new_tokens=20)
    assert tiny.generate(PROMPT, max_new_tokens=20, seed=fresh.seed).tokens == fresh.tokens
    assert tiny.generate(PROMPT, max_new_tokens=1).seed != fresh.seed


def test_greedy_is_the_best_token_each_time(tiny):
    made = tiny.generate(PROMPT, max_new_tokens=10, temperature=0)
    with tiny.session(context=64) as session:
        session.feed(PROMPT).run()
        for token in made.tokens:
            assert token == session.top(1)[0][0]
            session.feed([token]).run()


def test_a_stream_is_the_same_in_pieces(made, tiny):
    stream = tiny.generate(PROMPT, max_new_tokens=60, seed=5, stream=True)
    assert not stream.done and stream.text == "" and stream.tokens == []
    pieces = []
    for piece in stream:
        pieces.append(piece)
        assert piece and stream.text == "".join(pieces)
    assert len(pieces) > 10 and "".join(pieces) == made.text
    assert stream.done and stream.tokens == made.tokens and stream.seed == 5
    assert stream.finish_reason == made.finish_reason
    assert list(stream) == [] and stream.poll(1) == "" and stream.result().text == made.text


def test_polling_gives_the_same(made, tiny):
    stream = tiny.generate(PROMPT, max_new_tokens=60, seed=5, stream=True)
    text, polls = "", 0
    while not stream.done:
        text += stream.poll(0.0)
        polls += 1
    assert text == made.text and polls >= len(made.tokens)


def test_async_iteration_gives_the_same(made, tiny):
    async def collect():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        stream = tiny.generate(PROMPT, max_new_tokens=60, seed=5, stream=True)
        text = "".join([piece async for piece in stream])
        ticker.cancel()
        return text, ticks

    text, ticks = asyncio.run(collect())
    assert text == made.text and ticks > 3  # the loop was not blocked


def test_a_cancelled_task_cancels_the_stream(tiny):
    async def collect():
        stream = tiny.generate(PROMPT, max_new_tokens=4000, seed=5, stream=True, stop=["\0"])

        async def read():
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream

    stream = asyncio.run(collect())
    stream.poll(0)
    assert stream.finish_reason in ("cancelled", "stop")


def test_cancel(tiny, made):
    stream = tiny.generate(PROMPT, max_new_tokens=60, seed=5, stream=True)
    first = next(stream)
    stream.cancel()
    rest = "".join(stream)
    assert stream.finish_reason == "cancelled" and made.text.startswith(first + rest)
    assert stream.result().finish_reason == "cancelled"


@pytest.mark.parametrize("stop", [
    "cd", ["cd"], ("zzz", "cd"), ["cde", "cd"], ["cdefg", "cd"], ["bcd", "c"], ["abcdex", "c"]])
def test_stop_strings_across_tokens(tiny, stop):
    tokens = [tiny.tokenizer.id(letter) for letter in "abcdef"]
    options = dict(seed=1, stop=stop, max_new_tokens=6,
                   mask=lambda done: only(tokens[len(done)]))
    made = tiny.generate(PROMPT, **options)
    pieces = list(tiny.generate(PROMPT, stream=True, **options))
    assert (made.text, made.finish_reason) == ("".join(pieces), "stop")
    assert made.text == "ab"  # "c" is complete before "bcd" is


def test_what_only_looked_like_a_stop_string_is_shown(tiny):
    made = forced(tiny, "ababab", stop=["ababx", "bb"])
    assert (made.text, made.finish_reason) == ("ababab", "length")


def test_pieces_are_whole_characters(tiny):
    text = "é日\U0001f600x"
    ids = [tiny.tokenizer.id(bytes([byte])) for byte in text.encode()]
    pieces = list(tiny.generate(PROMPT, stream=True, seed=1, max_new_tokens=len(ids),
                                mask=lambda done: only(ids[len(done)])))
    assert pieces == list(text)
    cut = list(tiny.generate(PROMPT, stream=True, seed=1, max_new_tokens=len(ids) - 2,
                             mask=lambda done: only(ids[len(done)])))
    assert cut == ["é", "日", "\ufffd"]


def test_the_end_token_ends(tiny):
    made = forced(tiny, "ab[e~[cd")
    assert (made.text, made.finish_reason) == ("ab", "stop")
    assert made.tokens[-1] == tiny.tokenizer.eos


def test_each_of_several_end_tokens_ends(tmp_path):
    copied = shutil.copytree(EMBEDDED, tmp_path / "ends")
    facts = json.loads((copied / "generation_config.json").read_text())
    (copied / "generation_config.json").write_text(json.dumps({**facts, "eos_token_id": [65, 70]}))
    with mm.load(copied, threads=1) as model:
        tag = model.tokenizer.id("[e~[")
        assert set(model.end_tokens) >= {65, 70, tag}
        for end in (65, 70, tag):
            script = [80, 81, end, 82]
            made = model.generate(PROMPT, seed=1, mask=lambda tokens: only(script[len(tokens)]))
            assert (made.tokens, made.finish_reason) == (script[:3], "stop")
            assert made.text == model.tokenizer.decode([80, 81])


def test_a_row_of_the_head_without_a_token_writes_nothing(tiny):
    rows, tokens = tiny.config.vocab_size, tiny.tokenizer.vocab_size
    assert tokens <= rows
    without = [i for i in range(rows) if i >= tokens or not tiny.tokenizer.token(i)]
    script = [80, *without[:1], 81]
    made = tiny.generate(PROMPT, seed=1, max_new_tokens=len(script),
                         mask=lambda done: only(script[len(done)]))
    assert made.tokens == script and made.text == tiny.tokenizer.decode([80, 81])


def test_length_and_context(tiny):
    made = tiny.generate(PROMPT, max_new_tokens=0)
    assert (made.tokens, made.text, made.finish_reason) == ([], "", "length")
    allowed = only(*range(256))
    with tiny.session(context=20) as session:
        made = session.generate(PROMPT, seed=1, mask=allowed)
        assert made.finish_reason == "context" and session.length == 20
        assert session.tokens[-len(made.tokens):] == made.tokens
        assert session.generate(seed=1).finish_reason == "context"


def test_a_session_goes_on(tiny, made):
    with tiny.session(context=128) as session:
        first = session.generate(PROMPT, max_new_tokens=20, seed=5)
        second = session.generate(max_new_tokens=40, seed=5)
        assert first.tokens + second.tokens == made.tokens
        assert session.tokens == tiny.tokenizer.encode(PROMPT) + made.tokens


def test_logits_processor(tiny):
    seen = []

    def only_a(ids, logits):
        seen.append(list(ids))
        assert isinstance(logits, np.ndarray) and logits.shape == (4096,)
        logits[:] = -np.inf
        logits[tiny.tokenizer.id("a")] = 0

    made = tiny.generate(PROMPT, max_new_tokens=3, seed=1, logits_processor=only_a)
    prompt = tiny.tokenizer.encode(PROMPT)
    assert made.text == "aaa"
    assert seen == [prompt + made.tokens[:n] for n in range(3)]
    with pytest.raises(TypeError, match="in place"):
        tiny.generate(PROMPT, max_new_tokens=3, logits_processor=lambda ids, logits: logits + 1)


def test_logprobs_are_the_models_own(tiny):
    def only_a(ids, logits):
        logits[:] = -np.inf
        logits[tiny.tokenizer.id("a")] = 0

    made = tiny.generate(PROMPT, max_new_tokens=5, seed=1, top_logprobs=3, logits_processor=only_a)
    assert made.text == "aaaaa" and len(made.logprobs) == 5
    with tiny.session(context=64) as session:
        session.feed(PROMPT).run()
        for entry in made.logprobs:
            assert entry.top == session.top(3) and len(entry.top) == 3
            assert entry.logprob == session.logprobs([entry.id])[0] < -0.01
            session.feed([entry.id]).run()


def test_a_mask_that_forbids_all(tiny):
    with pytest.raises(mm.NumericError) as caught:
        tiny.generate(PROMPT, mask=only())
    assert isinstance(caught.value, ArithmeticError)


def test_bias_and_breakers(tiny):
    token = tiny.tokenizer.id("a")
    made = tiny.generate(PROMPT, max_new_tokens=4, seed=1, bias={token: 1e9})
    assert made.text == "aaaa"
    made = tiny.generate(PROMPT, max_new_tokens=20, temperature=0, bias={token: math.inf * -1},
                         dry_multiplier=0.8, breakers=[token])
    assert token not in made.tokens


# ---- Chat format ----


def test_messages_are_answered_in_the_chat_format(tiny):
    close = tiny.tokenizer.think_close
    script = tiny.tokenizer.encode("hm\n</think>\n\n7.[e~[", special=True)
    made = tiny.generate(QUESTION, seed=1, max_new_tokens=50,
                         mask=lambda tokens: only(script[len(tokens)]))
    assert close in made.tokens and made.tokens == script
    assert (made.thinking, made.text, made.finish_reason) == ("hm", "7.", "stop")
    stream = tiny.generate(QUESTION, seed=1, stream=True, stop="7",
                           mask=lambda tokens: only(script[len(tokens)]))
    assert "".join(stream) == "" and stream.thinking == "hm" and stream.finish_reason == "stop"


def test_a_session_answers_messages_too(tiny):
    with tiny.session(context=128) as session:
        made = session.generate(QUESTION, seed=1, max_new_tokens=20)
        assert (made.text, made.thinking) == (lambda other: (other.text, other.thinking))(
            tiny.generate(QUESTION, seed=1, max_new_tokens=20))


def test_a_chat_keeps_what_was_sampled(tiny):
    tokenizer = tiny.tokenizer
    script = tokenizer.encode("hm\n</think>\n\n7.[e~[", special=True)
    with tiny.chat("Be brief.") as chat:
        def say(text):
            return chat.send(text, seed=1, mask=lambda tokens: only(script[len(tokens)]))

        assert say("What is 3 + 4?").text == "7."
        assert say("And now?").text == "7."
        first = [{"role": "system", "content": "Be brief."},
                 {"role": "user", "content": "What is 3 + 4?"}]
        expected = (tokenizer.apply_chat_template(first) + script
                    + tokenizer.encode("\n]~b]user\nAnd now?[e~[\n]~b]ai\n<think>\n", special=True)
                    + script)
        assert tokenizer.decode(chat.session.tokens, True) == tokenizer.decode(expected, True)
        assert chat.session.tokens == expected
        answer = {"role": "assistant", "content": "7.", "thinking": "hm"}
        assert chat.messages == [*first, answer, {"role": "user", "content": "And now?"}, answer]


def test_a_turn_cut_short_is_closed(tiny):
    tokenizer = tiny.tokenizer
    with tiny.chat() as chat:
        first = chat.send("What is 3 + 4?", seed=1, max_new_tokens=2, mask=only(65, 66))
        chat.send("And now?", seed=1, max_new_tokens=2)
        text = tokenizer.decode(chat.session.tokens, special=True)
        cut = tokenizer.decode(first.tokens)
        assert (f"<think>\n{cut}\n</think>\n\n[e~[\n]~b]user\nAnd now?[e~[\n]~b]ai\n<think>\n"
                in text)


def test_a_streamed_chat(tiny):
    with tiny.chat(max_new_tokens=30, seed=4) as chat:
        stream = chat.send("What is 3 + 4?", stream=True)
        text = "".join(stream)
        assert chat.messages[-1]["content"] == text and len(chat.messages) == 2
        assert len(stream.tokens) <= 30


def test_a_full_chat_says_so(tiny):
    with tiny.chat(context=40) as chat, pytest.raises(mm.ContextFull):
        chat.send("word " * 100)


# ---- Sampler ----


def test_sampler_defaults_are_the_checkpoints(tiny):
    options = mm.Sampler(tiny).options
    assert (options["temperature"], options["top_k"]) == (1.0, 40)
    assert options["top_p"] == pytest.approx(0.95)
    assert options["min_p"] == 0 and options["repetition_penalty"] == 1
    assert "temperature=1" in repr(mm.Sampler(tiny, seed=1)) and "seed=1" in repr(
        mm.Sampler(tiny, seed=1))


def test_pick_takes_any_float32_buffer(tiny):
    sampler = mm.Sampler(tiny, temperature=0)
    logits = np.zeros(4096, np.float32)
    logits[17] = 1
    assert sampler.pick(logits) == sampler.pick(memoryview(logits), [1, 2]) == 17
    assert sampler.pick(logits, mask=only(18)) == 18
    assert not np.delete(logits, 17).any() and logits[17] == 1


@pytest.mark.parametrize("logits", [
    np.zeros(4095, np.float32), np.zeros(4097, np.float32), np.zeros(4096, np.float64),
    np.zeros((1, 4096), np.float32), np.zeros(8192, np.float32)[::2], np.zeros(4096, ">f4"),
    b"x" * 4096, [0.0] * 4096, None])
def test_pick_refuses(tiny, logits):
    with pytest.raises((mm.ArgumentError, TypeError)):
        mm.Sampler(tiny).pick(logits)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers(tiny, value):
    logits = np.zeros(4096, np.float32)
    logits[5] = value
    sampler = mm.Sampler(tiny, seed=1)
    if np.isnan(value):
        with pytest.raises(mm.NumericError):
            sampler.pick(logits)
    else:
        assert sampler.pick(logits) == 5
    with pytest.raises(mm.NumericError):
        sampler.pick(np.full(4096, -np.inf, np.float32))


# ---- Hooks ----


def test_hooks_change_the_text_and_nothing_stays(tiny):
    plain = tiny.generate(PROMPT, max_new_tokens=12, temperature=0)
    seen = []

    def leave(tensor, tap):
        seen.append((tap.first, tap.count))

    def push(tensor, tap):
        tensor[:] += 3.0

    watched = tiny.generate(PROMPT, max_new_tokens=12, temperature=0, hooks=[("resid_mid", leave)])
    assert watched.tokens == plain.tokens
    layers, prompt = tiny.config.num_hidden_layers, plain.timing.prompt_tokens
    # The last token is chosen and never evaluated.
    assert seen == [(0, prompt)] * layers + [
        (prompt + i, 1) for i in range(11) for _ in range(layers)]
    hooks = [(("resid_post", 1), push)]
    pushed = tiny.generate(PROMPT, max_new_tokens=12, temperature=0, hooks=hooks)
    assert pushed.tokens != plain.tokens
    logits = tiny.run_with_hooks(PROMPT, hooks)
    assert pushed.tokens[0] == int(np.argmax(logits.numpy()))
    stream = tiny.session(context=64).feed(PROMPT).generate(
        stream=True, max_new_tokens=3, temperature=0, hooks=[("mlp_out", leave)])
    while not stream.done:
        stream.poll(0)  # budgets end between taps, and the hooks go on
    assert stream.tokens == plain.tokens[:3]


def raising_once(calls, then):
    def hook(tensor, tap):
        calls.append((tap.point, tap.layer))
        if len(calls) == 1:
            raise RuntimeError("not now")
        then(tensor)
    return hook


def test_a_hook_that_raised_is_called_again(tiny):
    def push(tensor):
        tensor[:] += 3.0

    def count_and_push(tensor, tap):
        first.append(1)
        push(tensor)

    first, second = [], []
    before = tiny.generate(PROMPT, max_new_tokens=4, temperature=0, hooks=[
        (("resid_post", 1), lambda tensor, tap: push(tensor)),
        (("resid_post", 1), lambda tensor, tap: push(tensor))])
    hooks = [(("resid_post", 1), count_and_push),
             (("resid_post", 1), raising_once(second, push))]
    stream = tiny.generate(PROMPT, max_new_tokens=4, temperature=0, hooks=hooks, stream=True)
    with pytest.raises(RuntimeError, match="not now"):
        stream.result()
    assert stream.result().tokens == before.tokens
    assert len(second) == len(first) + 1  # what had returned before it is not called again


def test_a_hook_that_raised_is_not_called_at_another_place(tiny):
    calls = []
    session = tiny.session(context=64).feed(PROMPT)
    stream = session.generate(stream=True, max_new_tokens=2, temperature=0,
                              hooks=[(("q", 0), raising_once(calls, bytes))])
    with pytest.raises(RuntimeError, match="not now"):
        stream.result()
    assert session.run() and len(calls) == 1  # that went past it
    stream.result()
    assert len(calls) == 2  # of the one generated token that was evaluated


def test_a_hook_of_a_batch_that_raised_is_called_again(tiny):
    calls = []
    session = tiny.session(context=64).feed(PROMPT)
    batch = tiny.batch()
    batch.add(session, hooks=[(("q", 0), raising_once(calls, bytes))])
    with pytest.raises(RuntimeError, match="not now"):
        batch.run()
    assert batch.run() and len(calls) == 2


def test_a_stream_that_was_overtaken_says_so(tiny):
    def generate(session):
        return session.generate(stream=True, max_new_tokens=6, temperature=0)

    for overtake in (lambda session: session.feed([5]),
                     lambda session: session.rewind(session.length - 1),
                     lambda session: (session.rewind(session.length - 1), session.feed([4000])),
                     lambda session: generate(session).result()):
        session = tiny.session(context=128).feed(PROMPT)
        stream = generate(session)
        next(stream)
        tokens = list(stream.tokens)
        overtake(session)
        with pytest.raises(mm.ArgumentError, match="another call has fed or cut"):
            stream.result()
        assert stream.tokens == tokens
        stream.cancel()
        assert stream.result().finish_reason == "cancelled"


def test_a_hook_that_returns_something_is_a_mistake(tiny):
    with pytest.raises(TypeError, match="in place"):
        tiny.generate(PROMPT, max_new_tokens=2, hooks=[("q", lambda tensor, tap: tensor)])
