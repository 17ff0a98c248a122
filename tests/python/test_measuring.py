"""Calls that measure: on a model and on a session, with caches, hooks, types of cache, batches."""

import inspect

import minimax2 as mm
import numpy as np
import pytest

IDS = [11 * i % 4000 for i in range(1, 41)]
PROMPT = "def fibonacci(n):"


@pytest.fixture(scope="module")
def exact(tiny):
    with mm.load(threads=2, precision="exact") as model:
        yield model


def test_measuring_calls_take_what_sessions_take(tiny):
    with tiny.session(context=64, kv_dtype="f32") as session:
        expected = bytes(session.feed(IDS).run() and session.logits)
    options = {"kv_dtype": "f32", "chunk": 7, "context": 50}
    assert bytes(tiny(IDS, **options)) == expected != bytes(tiny(IDS))
    assert bytes(tiny(IDS, logits="all", **options)[-1]) == expected
    assert bytes(tiny.run_with_hooks(IDS, [], **options)) == expected
    logits, cache = tiny.run_with_cache(IDS, "resid_post", **options)
    assert bytes(logits) == expected and len(cache.positions) == len(IDS)
    counts = [tap.count for tap in tiny.trace(IDS, "embed", **options)]
    assert counts == [7] * 5 + [5]
    made = tiny.generate(IDS, max_new_tokens=99, seed=1, bias={tiny.tokenizer.eos: -1e9}, **options)
    assert made.finish_reason == "context" and len(made.tokens) == 10
    chat = tiny.chat(**options)
    assert chat.session.context == 50


def test_exact_caches_are_f32(tiny, exact):
    f32 = bytes(exact(IDS, kv_dtype="f32"))
    assert bytes(exact(IDS)) == f32 != bytes(exact(IDS, kv_dtype="bf16"))
    with exact.session(context=64) as session:
        assert bytes(session.feed(IDS).run() and session.logits) == f32
    assert bytes(exact.run_with_cache(IDS, "q")[0]) == f32
    assert exact.cost(1, 100) == exact.cost(1, 100, "f32") != exact.cost(1, 100, "bf16")
    assert tiny.cost(1, 100) == tiny.cost(1, 100, "bf16")
    assert bytes(tiny(IDS)) == bytes(tiny(IDS, kv_dtype="bf16"))


def shift(tensor, tap):
    tensor[:] += 1.0


def test_a_session_measures_where_it_stands(tiny):
    hooks = [(("resid_post", 1), shift)]
    with tiny.session(context=64) as session, tiny.session(context=64) as other:
        session.feed(IDS[:30]).run()
        other.feed(IDS[:30]).run()
        logits, cache = session.run_with_cache(IDS[30:], "resid_post", positions=[-1, 30])
        assert bytes(logits) == bytes(tiny(IDS)) and list(cache.positions) == [39, 30]
        _, whole = tiny.run_with_cache(IDS, "resid_post")
        assert (cache["resid_post", 3].numpy() == whole["resid_post", 3].numpy()[[39, 30]]).all()
        pushed = other.run_with_hooks(IDS[30:], hooks)
        assert bytes(pushed) == bytes(other.logits) != bytes(logits)
        other.rewind(30)
        other.feed(IDS[30:35])
        logits, cache = other.run_with_cache(None, "embed")
        assert cache.positions == range(30, 35) and bytes(logits) == bytes(tiny(IDS[:35]))
        other.feed(IDS[35:])
        other.run_with_hooks(hooks=hooks)
        assert other.pos == len(IDS)
        _, cache = session.run_with_cache([1, 2, 3], "embed", positions=slice(39, 42))
        assert cache.positions == [40, 41]


def test_a_cache_sees_what_hooks_leave(tiny):
    hooks = [("resid_post", shift), (("q", 2), shift)]
    logits, cache = tiny.run_with_cache(IDS, ["resid_post", "attn_out"], [1, 2], hooks=hooks)
    assert bytes(logits) == bytes(tiny.run_with_hooks(IDS, hooks))
    assert set(cache) == {("resid_post", 1), ("resid_post", 2), ("attn_out", 1), ("attn_out", 2)}
    _, plain = tiny.run_with_cache(IDS, "resid_post", 0)
    _, hooked = tiny.run_with_cache(IDS, "resid_post", 0, hooks=hooks)
    difference = hooked["resid_post"].numpy() - plain["resid_post"].numpy()
    assert np.allclose(difference, 1.0, atol=1e-5)


def test_layers_of_a_cache(tiny):
    _, cache = tiny.run_with_cache(IDS, ["resid_post", "logits"])
    rows = [cache["resid_post", layer].numpy() for layer in range(5)]
    assert (cache["resid_post", -1].numpy() == rows[4]).all()
    assert (cache["resid_post", np.int64(-5)].numpy() == rows[0]).all()
    assert (cache["resid_post", 1:4].numpy() == np.stack(rows[1:4])).all()
    assert (cache["resid_post", ::-2].numpy() == np.stack(rows[::-2])).all()
    assert (cache["resid_post", :].numpy() == cache.stack("resid_post").numpy()).all()
    assert ("resid_post", -1) in cache and ("resid_post", -6) not in cache and 5 not in cache
    assert cache["logits"].shape == (40, 4096) and cache.get("q") is None
    with pytest.raises(KeyError, match=r'logits exists once.*cache\["logits"\].numpy\(\)\[:-2:2\]'):
        cache["logits", :-2:2]


def test_a_cache_says_what_it_has(tiny):
    _, cache = tiny.run_with_cache(IDS, ["resid_post", "final_norm"], [0, 2, 3])
    for key in ("q", "resid_post", ("resid_post", 1), ("resid_post", 9), ("resid_post", -9),
                ("resid_post", slice(None)), ("resid_post", "x"), 5, ("resid_post",)):
        with pytest.raises(KeyError, match="resid_post at layers 0, 2, 3, final_norm at layer 4"):
            cache[key]
    with pytest.raises(KeyError, match="it has resid_post"):
        cache.stack("q")
    with pytest.raises(KeyError, match="no tensor"):
        tiny["nothing"]


def test_hooks_get_a_prompt_in_chunks(tiny):
    seen = []
    tiny.run_with_hooks(IDS, [(("resid_post", 0), lambda tensor, tap: seen.append(
        (tap.first, tap.count, len(tensor))))], chunk=16)
    assert seen == [(0, 16, 16), (16, 16, 16), (32, 8, 8)]
    for documented in (mm.Tap, mm.Session.run_with_hooks):
        assert "chunk" in inspect.getdoc(documented) and "first" in inspect.getdoc(documented)


# ---- Batches ----


def test_a_traced_session_joins_no_batch(tiny, session):
    taps = session.trace(IDS, "resid_post", 1)
    with pytest.raises(mm.BusyError, match="trace"):
        tiny.batch([session])
    next(taps)
    batch = tiny.batch()
    with pytest.raises(mm.BusyError, match="trace"):
        batch.add(session)
    assert len(batch) == 0
    taps.close()
    batch.add(session)
    assert batch.run() is True and session.pos == len(IDS)
    assert bytes(session.logits) == bytes(tiny(IDS))


def test_a_batch_made_in_a_hook_is_refused(tiny, session):
    calls = []

    def hook(tensor, tap):
        calls.append(tap.layer)
        with pytest.raises(mm.BusyError, match="trace"):
            tiny.batch([session])

    session.generate(IDS, max_new_tokens=2, hooks=[(("resid_post", 1), hook)],
                     bias={tiny.tokenizer.eos: -1e9})
    assert calls == [1, 1]


def test_a_dropped_trace_does_not_stop_a_batch(tiny, session):
    taps = session.trace(IDS, "resid_post")
    next(taps)
    del taps
    batch = tiny.batch([session])
    assert batch.run() is True and session.pos == len(IDS)
    with pytest.raises(TypeError, match="sessions"):
        batch.add(5)


# ---- The package ----


def test_the_package_has_functions_as_in_lua(tiny, session):
    for name in ("load", "tokenizer", "batch", "chat", "cpu"):
        assert inspect.isfunction(getattr(mm, name))
    assert mm.tokenizer(tiny.path).encode("import os") == tiny.tokenizer.encode("import os")
    assert mm.batch(tiny, [session]).sessions == (session,)
    with mm.chat(tiny, "Be brief.", context=99, seed=3, max_new_tokens=4) as chat:
        assert chat.session.context == 99 and chat.send("hi").seed == 3


@pytest.mark.parametrize("function", [
    mm.Model.generate, mm.Model.chat, mm.Session.generate, mm.Chat.send, mm.Chat, mm.Sampler,
    mm.chat, mm.Model.__call__, mm.Model.run_with_cache])
def test_options_are_in_the_signature(function):
    parameters = inspect.signature(function).parameters
    expected = {"temperature", "top_k", "seed", "bias"} if "seed" in parameters else {"kv_dtype"}
    assert expected <= set(parameters)
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def test_answers_without_thinking(tiny):
    tokenizer = tiny.tokenizer
    question = [{"role": "user", "content": "What is 3 + 4?"}]
    opened = tokenizer.apply_chat_template(question)
    closed = tokenizer.encode("]~b]ai\n<think>\n\n</think>\n\n", special=True)
    with tiny.session(context=128) as session:
        made = session.generate(question, thinking=False, seed=1, max_new_tokens=5)
        before = session.tokens[:-len(made.tokens)]
        assert made.thinking is None
        assert before[-len(closed):] == closed and before[:len(opened) - 1] == opened[:-1]
    with tiny.chat(thinking=False, seed=1, max_new_tokens=5) as chat:
        assert chat.send("What is 3 + 4?").tokens == made.tokens
        assert chat.messages[-1]["thinking"] is None
        second = chat.send("And 5?", thinking=True)
        assert second.thinking is not None
        text = tokenizer.decode(chat.session.tokens, special=True)
        assert text.count("</think>") == 1 and text.count("<think>") == 2
