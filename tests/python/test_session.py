"""Session and Batch: the timeline's verbs, and the same bits however it came about."""

import math

import minimax2 as mm
import numpy as np
import pytest

IDS = [7 * i % 4000 for i in range(1, 41)]


def logits_of(model, ids, **options):
    with model.session(context=256, **options) as session:
        session.feed(ids).run()
        return bytes(session.logits)


@pytest.fixture(scope="module")
def expected(tiny):
    return logits_of(tiny, IDS)


def test_a_new_session_is_empty(session):
    assert (session.pos, session.length, session.context, session.tokens) == (0, 0, 256, [])
    assert session.run() is True
    assert repr(session) == "<Session 0 of 256 positions, 0 pending>"
    with pytest.raises(mm.ArgumentError):
        session.logits


def test_feed_evaluates_nothing_and_run_everything(session, expected):
    assert session.feed(IDS) is session
    assert (session.pos, session.length, session.tokens) == (0, len(IDS), IDS)
    with pytest.raises(mm.ArgumentError):
        session.logits  # not those of a token that is not evaluated
    assert session.run() is True
    assert session.pos == len(IDS)
    assert session.progress[0] == session.progress[1] > 0
    assert bytes(session.logits) == expected
    assert (session.logits.shape, session.logits.dtype) == ((4096,), "f32")


def test_run_keeps_to_its_time_and_goes_on(tiny, expected):
    with tiny.session(context=256, chunk=1) as session:
        session.feed(IDS)
        stops = 0
        while not session.run(seconds=0):
            stops += 1
        assert stops > 10
        assert bytes(session.logits) == expected


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_do_not_change_the_bits(tiny, expected, chunk):
    assert logits_of(tiny, IDS, chunk=chunk) == expected


def test_token_by_token_does_not_change_the_bits(session, expected):
    for token in IDS:
        session.feed([token]).run()
    assert bytes(session.logits) == expected


def test_rewind_forgets(session, expected):
    session.feed(IDS).run()
    session.feed([1, 2, 3]).run()
    session.rewind(20)
    assert (session.pos, session.length, session.tokens) == (20, 20, IDS[:20])
    with pytest.raises(mm.ArgumentError):
        session.logits
    session.feed(IDS[20:]).run()
    assert bytes(session.logits) == expected


@pytest.mark.parametrize("length", [-1, 41, 2**31, 1.0, True, None])
def test_rewind_refuses(session, length):
    session.feed(IDS).run()
    with pytest.raises((mm.ArgumentError, TypeError)):
        session.rewind(length)
    assert session.tokens == IDS and session.pos == 40


@pytest.mark.parametrize("before, reused", [
    ([], 0),
    (IDS, 40),
    (IDS[:30], 30),
    (IDS[:30] + [5, 6], 30),
    ([9] + IDS, 0),
    (IDS + [4, 5], 39),  # the last token again, for its logits
])
def test_sync_keeps_the_common_beginning(session, expected, before, reused):
    if before:
        session.feed(before).run()
    assert session.sync(IDS) == reused
    session.run()
    assert session.tokens == IDS and bytes(session.logits) == expected


@pytest.mark.parametrize("ids, error", [
    ([1, -1], mm.ArgumentError), ([1, 4096], mm.ArgumentError), ([1] * 257, mm.ContextFull)])
def test_sync_refuses_before_it_cuts(session, expected, ids, error):
    session.feed(IDS).run()
    with pytest.raises(error):
        session.sync(ids)
    assert session.tokens == IDS and bytes(session.logits) == expected


def test_top_and_logprobs_agree_with_numpy(session):
    session.feed(IDS).run()
    logits = session.logits.numpy().astype(np.float64)
    logprobs = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
    best = session.top(5)
    order = np.argsort(-logits, kind="stable")[:5]
    assert [token for token, _ in best] == order.tolist()
    assert [value for _, value in best] == pytest.approx(logprobs[order], abs=1e-4)
    assert session.logprobs([3, 3, 4000]) == pytest.approx(logprobs[[3, 3, 4000]], abs=1e-4)
    assert len(session.top(4096)) == 4096


def test_sample_is_the_samplers_choice(session, tiny):
    session.feed(IDS).run()
    sampler = mm.Sampler(tiny, seed=3)
    assert session.sample(sampler) == sampler.next(session) == mm.Sampler(tiny, seed=3).pick(
        session.logits, session.tokens)
    assert session.sample(mm.Sampler(tiny, temperature=0)) == session.top(1)[0][0]
    assert 0 <= session.sample() < 4096


def test_a_text_prompt_is_encoded(session, tiny):
    session.feed("import os")
    assert session.tokens == tiny.tokenizer.encode("import os")
    session.feed([{"role": "user", "content": "Hi"}])
    assert session.tokens[-3:] == tiny.tokenizer.encode("ai\n<think>\n", special=True)[-3:]


def test_context_is_a_hard_limit(tiny):
    with tiny.session(context=10) as session:
        session.feed(IDS[:10]).run()
        with pytest.raises(mm.ContextFull) as caught:
            session.feed([1])
        assert caught.value.code == -5
        assert session.tokens == IDS[:10] and session.top(1)
        session.rewind(9)
        session.feed([1]).run()
    with tiny.session(context=10) as session, pytest.raises(mm.ContextFull):
        session.feed(IDS)
    with tiny.session() as session:
        assert session.context == 4096


def test_kv_in_float32_is_another_number(tiny, expected):
    other = np.frombuffer(logits_of(tiny, IDS, kv_dtype="f32"), np.float32)
    usual = np.frombuffer(expected, np.float32)
    assert 0 < np.abs(other - usual).max() < 0.2 * np.abs(usual).max()


def test_kv_in_int8_is_another_number(tiny, expected):
    other = np.frombuffer(logits_of(tiny, IDS, kv_dtype="int8"), np.float32)
    usual = np.frombuffer(expected, np.float32)
    assert 0 < np.abs(other - usual).max() < 0.2 * np.abs(usual).max()


def test_closing(tiny):
    session = tiny.session(context=16)
    session.feed([1]).run()
    logits = session.logits
    before = bytes(logits)
    session.close()
    session.close()
    assert session.closed and repr(session) == "<Session closed>"
    assert bytes(logits) == before
    for use in (lambda: session.feed([1]), session.run, lambda: session.pos, session.sample,
                lambda: session.logits, lambda: session.tokens, lambda: session.rewind(0),
                session.interrupt, lambda: session.__enter__(), lambda: session.generate(),
                lambda: list(session.trace())):
        with pytest.raises(mm.ArgumentError, match="closed"):
            use()


# ---- Batch ----


def test_a_batch_gives_the_bits_of_each_alone(tiny, expected):
    prompts = [IDS, IDS[:3], [5] * 17, IDS]
    alone = [logits_of(tiny, prompt) for prompt in prompts]
    sessions = [tiny.session(context=64) for _ in prompts]
    with tiny.batch(sessions) as batch:
        assert len(batch) == 4 and batch.sessions == tuple(sessions)
        for session, prompt in zip(sessions, prompts):
            session.feed(prompt)
        assert batch.run() is True
        assert [bytes(session.logits) for session in sessions] == alone
        assert alone[0] == expected


def test_a_batch_keeps_to_its_time(tiny, expected):
    sessions = [tiny.session(context=64, chunk=1) for _ in range(3)]
    with tiny.batch(sessions) as batch:
        for session in sessions:
            session.feed(IDS)
        stops = 0
        while not batch.run(seconds=0):
            stops += 1
        assert stops > 3
        assert {bytes(session.logits) for session in sessions} == {expected}


def test_a_member_is_run_by_its_batch_only(tiny):
    session = tiny.session(context=64)
    batch = tiny.batch([session])
    session.feed(IDS)
    with pytest.raises(mm.BusyError):
        session.run()
    batch.remove(session)
    assert session.run() is True
    with pytest.raises(mm.ArgumentError):
        batch.remove(session)
    batch.add(session)
    with pytest.raises(mm.Error):
        batch.add(session)
    batch.close()
    session.feed([1]).run()
    with pytest.raises(mm.ArgumentError, match="closed"):
        batch.run()


def test_members_share_a_model(tiny, blank):
    with blank.session(context=16) as stranger, tiny.batch() as batch:
        with pytest.raises(mm.ArgumentError):
            batch.add(stranger)
        assert len(batch) == 0


# ---- Forks ----


def test_forks_go_on_as_if_they_were_alone(tiny):
    with tiny.session(context=64) as session:
        session.feed(IDS[:20]).run()
        fork = session.fork()
        assert isinstance(fork, mm.Session) and fork.model is tiny
        assert (fork.tokens, fork.pos, fork.context) == (IDS[:20], 20, 64)
        assert bytes(fork.logits) == bytes(session.logits)
        fork.feed(IDS[20:]).run()
        session.feed(IDS[30:]).run()
        assert bytes(fork.logits) == bytes(tiny(IDS))
        assert bytes(session.logits) == bytes(tiny(IDS[:20] + IDS[30:]))
        session.close()
        fork.rewind(20)
        grandchild = fork.fork()
        fork.close()
        grandchild.feed(IDS[20:]).run()
        assert bytes(grandchild.logits) == bytes(tiny(IDS))


def test_a_fork_of_a_prompt_half_way(tiny):
    with tiny.session(context=64, chunk=8) as session:
        session.feed(IDS)
        session.run(seconds=0)
        with session.fork() as fork:
            assert fork.tokens == IDS
            assert fork.run() and session.run()
            assert bytes(fork.logits) == bytes(session.logits) == bytes(tiny(IDS))


def test_what_a_fork_does_not_take_along(tiny, session):
    session.feed(IDS).run()
    fork = session.fork()
    batch = tiny.batch([session])
    fork.feed([1]).run()  # no member
    batch.close()
    taps = session.trace([1], "resid_post")
    next(taps)
    other = session.fork()
    assert other.run() is True  # no taps
    assert bytes(other.logits) == bytes(fork.logits)
    session.close()
    with pytest.raises(mm.ArgumentError, match="closed"):
        session.fork()


def test_many_answers_from_one_prompt(tiny):
    with tiny.session(context=64) as session:
        session.feed("import os\n").run()
        for seed in range(5):
            with session.fork() as fork:
                made = fork.generate(seed=seed, max_new_tokens=5)
            assert made.tokens == tiny.generate("import os\n", seed=seed, max_new_tokens=5).tokens


def test_what_a_session_of_a_closed_model_can(blank_path):
    model = mm.load(blank_path, threads=1)
    session, sampler = model.session(context=64), mm.Sampler(model, seed=1)
    model.close()
    assert session.feed([1, 2]).run() is True and len(session.top(3)) == 3
    assert session.fork().feed([3]).run() is True
    assert session.sample(sampler) >= 0 and len(list(session.trace([4], "embed"))) == 1
    for use in (lambda: session.feed("x"), lambda: session.generate([1]), session.sample):
        with pytest.raises(mm.ArgumentError, match="this Model is closed"):
            use()
        assert session.tokens == [1, 2, 4]
