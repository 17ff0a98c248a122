"""Batches: many prompts at once, each as it would be alone, and what may happen in between."""

import asyncio
import gc
import random
import signal
import threading

import minimax2 as mm
import numpy as np
import pytest

PROMPTS = ["import os\n", "def fibonacci(n):", [5, 6, 7, 8], "class Reader:\n    ",
           [{"role": "user", "content": "What is 3 + 4?"}]]
OPTIONS = {"seed": 3, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def alone(tiny):
    return [tiny.generate(prompt, **OPTIONS) for prompt in PROMPTS]


def same(made, expected):
    assert [one.tokens for one in made] == [one.tokens for one in expected]
    for one, other in zip(made, expected):
        assert (one.text, one.thinking, one.finish_reason, one.seed, one.logprobs) == (
            other.text, other.thinking, other.finish_reason, other.seed, other.logprobs)


def test_many_prompts_are_answered_as_each_alone(tiny, alone):
    same(tiny.generate(PROMPTS, **OPTIONS), alone)
    same(tiny.generate(tuple(PROMPTS), **OPTIONS), alone)
    same(tiny.batch().generate(iter(PROMPTS), **OPTIONS), alone)
    same(tiny.generate([PROMPTS[0]], **OPTIONS), alone[:1])
    same(tiny.generate([np.array([5, 6, 7, 8])], **OPTIONS), alone[2:3])
    assert tiny.batch().generate([]) == []
    for one in tiny.generate(PROMPTS, **OPTIONS):
        assert one.timing.prompt_seconds > 0 and one.timing.tokens == len(one.tokens)
        assert one.timing.seconds > 0 and one.timing.prompt_tokens > 0


def test_a_stream_of_many_prompts(tiny, alone):
    streams = tiny.generate(PROMPTS, stream=True, **OPTIONS)
    texts, order = [""] * len(PROMPTS), []
    for index, piece in streams:
        assert piece
        texts[index] += piece
        order.append(index)
    assert texts == [one.text for one in alone] and streams.done
    assert order != sorted(order)  # they came together
    same(streams.result(), alone)
    assert [one.seed for one in streams.streams] == [3] * len(PROMPTS)
    assert list(streams) == [] and streams.poll(0) == []


def test_polling_many(tiny, alone):
    streams = tiny.generate(PROMPTS, stream=True, **OPTIONS)
    texts, polls = [""] * len(PROMPTS), 0
    while not streams.done:
        for index, piece in streams.poll(0.0):
            texts[index] += piece
        polls += 1
    assert texts == [one.text for one in alone] and polls > 20


def test_each_may_have_options_of_its_own(tiny):
    seen = []
    own = [{"seed": 1}, {"seed": 2, "stop": ["n"]},
           {"max_new_tokens": 3, "temperature": 0, "seed": 8},
           {"max_new_tokens": 0, "seed": 9}, {"seed": 3, "top_logprobs": 2, "kv_dtype": "f32"},
           {"seed": 4, "bias": {65: 50.0}, "context": 30},
           {"seed": 5, "hooks": [("mlp_out", lambda tensor, tap: seen.append(tap.first))]},
           {"seed": 6, "mask": lambda tokens: np.full(128, 2**32 - 1, np.uint32)},
           {"seed": 7, "logits_processor": lambda ids, logits: logits.__setitem__(65, 9.0)}]
    expected = [tiny.generate("import os", **{"max_new_tokens": 12, **options}) for options in own]
    alone, seen[:] = list(seen), []
    made = tiny.generate([{"prompt": "import os", **options} for options in own],
                         max_new_tokens=12)
    same(made, expected)
    assert seen == alone != []


def test_what_is_wrong_is_refused_before_anything_is_fed(tiny):
    batch = tiny.batch()
    for prompts, named in (
            (["x", {"prompt": "x", "temprature": 0}], "temperature"), (["x", 5], "int"),
            (["x", {"text": "y"}], "prompt"), (["x", ""], "empty"), ("x", "several"),
            (["x", [1] * 5000], "5000"), ([{"prompt": "x", "context": 0}], "context"),
            (5, "several"), (["x", {"prompt": "x", "hooks": [5]}], "hooks")):
        with pytest.raises((mm.Error, TypeError)) as caught:
            batch.generate(prompts)
        assert named in str(caught.value) and len(batch) == 0
    with pytest.raises(TypeError, match="temperature"):
        tiny.generate(PROMPTS, temprature=0)


def test_one_may_be_cancelled_and_others_go_on(tiny, alone):
    streams = tiny.generate(PROMPTS, stream=True, **OPTIONS)
    next(streams)
    streams.streams[1].cancel()
    made = streams.result()
    assert made[1].finish_reason == "cancelled" and len(made[1].tokens) < 24
    assert made[1].tokens == alone[1].tokens[:len(made[1].tokens)]
    same(made[:1] + made[2:], alone[:1] + alone[2:])
    streams = tiny.generate(PROMPTS, stream=True, **OPTIONS)
    threading.Timer(0.02, streams.cancel).start()
    assert all(one.finish_reason in ("cancelled", "length", "stop") for one in streams.result())


def test_each_stream_can_be_followed_apart(tiny, alone):
    streams = tiny.generate(PROMPTS, stream=True, **OPTIONS).streams
    assert "".join(streams[3]) == alone[3].text
    assert streams[3].done and any(stream.tokens for stream in streams[:3])
    same([stream.result() for stream in streams], alone)


def test_prompts_may_join_while_others_are_under_way(tiny, alone):
    batch = tiny.batch(rows=16)
    first = batch.generate(PROMPTS[:2], stream=True, **OPTIONS)
    texts, more = [""] * 2, None
    for index, piece in first:
        texts[index] += piece
        if more is None:
            more = batch.generate(PROMPTS[2:], stream=True, **OPTIONS)
    assert texts == [one.text for one in alone[:2]]
    assert any(stream.tokens for stream in more.streams)
    same(more.result(), alone[2:])
    assert len(batch) == 0


def test_members_of_a_script_go_with_them(tiny, alone):
    with tiny.session(context=64) as session:
        batch = tiny.batch([session.feed("import os\n")])
        streams = batch.generate(PROMPTS, stream=True, **OPTIONS)
        sampler = mm.Sampler(tiny, seed=3)
        mine = []
        while (member := batch.next()) is not None:
            assert member is session
            mine.append(sampler.next(member))
            if len(mine) == 10:
                break
            member.feed([mine[-1]])
        assert mine == alone[0].tokens[:10]
        assert batch.run() is True and streams.done
        same(streams.result(), alone)
        assert batch.sessions == (session,) and batch.next() is None


def test_next_names_each_once(tiny):
    sessions = [tiny.session(context=600) for _ in range(3)]
    for n, session in zip((3, 300, 40), sessions):
        session.feed([1] * n)
    batch = tiny.batch(sessions, rows=16)
    named = []
    while len(named) < 3:
        member = batch.next(seconds=0)
        if member is not None:
            named.append(member)
            assert member.pos == member.length and member.top(1)
    assert set(named) == set(sessions) and named[-1] is sessions[1]
    assert batch.next() is None and batch.run() is True


def test_an_error_in_a_callback_loses_nothing(tiny, alone):
    chance = random.Random(1)

    def mask(tokens):
        if chance.random() < 0.4:
            raise InterruptedError
        return None

    streams = tiny.generate(PROMPTS, stream=True, mask=mask, **OPTIONS)
    texts, refusals = [""] * len(PROMPTS), 0
    while not streams.done:
        try:
            for index, piece in streams:
                texts[index] += piece
        except InterruptedError:
            refusals += 1
    for index, piece in streams:
        texts[index] += piece
    assert refusals > 10 and texts == [one.text for one in alone]
    same(streams.result(), alone)


def test_ctrl_c_loses_nothing(tiny, alone):
    streams = tiny.generate(PROMPTS, stream=True, **OPTIONS)
    chance, stops = random.Random(2), 0
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        while not streams.done:
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0005, 0.01))
                streams.result()
            except KeyboardInterrupt:
                stops += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert stops > 3
    same(streams.result(), alone)


def test_ctrl_c_while_members_come_and_go(tiny):
    """Between any two lines: what the batch thinks of its members stays true."""
    sessions = [tiny.session(context=16).feed([n + 1]) for n in range(6)]
    expected = {session: bytes(tiny(session.tokens)) for session in sessions}
    batch, chance, stops = tiny.batch(), random.Random(3), 0
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        while stops < 60:
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.0004))
                while True:
                    for session in sessions:
                        batch.add(session)
                    batch.run(seconds=0)
                    for session in sessions[::2] + sessions[1::2]:
                        batch.remove(session)
            except (KeyboardInterrupt, mm.BusyError):  # busy: it was a member already
                stops += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                for session in batch.sessions:
                    batch.remove(session)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for session in sessions:
        batch.add(session)
        session.rewind(0)
        session.feed(tiny.session(context=8).feed([sessions.index(session) + 1]).tokens)
    assert batch.run() is True and len(batch) == 6
    assert all(bytes(session.logits) == expected[session] for session in sessions)


def test_closing_a_batch_lets_its_streams_go_on_alone(tiny, alone):
    batch = tiny.batch()
    streams = batch.generate(PROMPTS, stream=True, **OPTIONS).streams
    batch.run(seconds=0.005)
    batch.remove(streams[0].session)
    same([streams[0].result()], alone[:1])
    batch.close()
    same([stream.result() for stream in streams], alone)


def test_dropping_everything_half_way(tiny):
    streams = tiny.generate(PROMPTS, stream=True, **OPTIONS)
    next(streams)
    streams.self = streams
    del streams
    gc.collect()


# ---- Looking inside ----


def test_hooks_of_members(tiny):
    def push(tensor, tap):
        tensor[:] += 3.0

    hooks = [(("resid_post", 1), push)]
    ids = [11 * i % 4000 for i in range(1, 41)]
    plain, pushed, both = (tiny.session(context=64) for _ in range(3))
    batch = tiny.batch([plain.feed(ids)])
    batch.add(pushed.feed(ids), hooks=hooks)
    batch.add(both.feed(ids), hooks=hooks + [(("q", 0), lambda tensor, tap: None)])
    assert batch.run() is True
    assert bytes(plain.logits) == bytes(tiny(ids))
    assert bytes(pushed.logits) == bytes(both.logits) == bytes(tiny.run_with_hooks(ids, hooks))
    pushed.feed([1]).rewind(40)  # between two runs it is free
    with pytest.raises(TypeError, match="hook"):
        batch.add(tiny.session(context=8), hooks=[("q", 5)])


def test_a_trace_of_a_batch(tiny):
    ids = [11 * i % 4000 for i in range(1, 41)]
    sessions = [tiny.session(context=64).feed(ids[:n]) for n in (40, 17)]
    batch = tiny.batch(sessions)
    seen = {session: [] for session in sessions}
    for session, tap in batch.trace(["resid_post", "final_norm"], [1, 3]):
        seen[session].append((tap.point, tap.layer, tap.first, tap.count, bytes(tap.tensor)))
    for session, n in zip(sessions, (40, 17)):
        alone = [(tap.point, tap.layer, tap.first, tap.count, bytes(tap.tensor))
                 for tap in tiny.trace(ids[:n], ["resid_post", "final_norm"], [1, 3])]
        assert seen[session] == alone
        assert bytes(session.logits) == bytes(tiny(ids[:n]))


def test_a_trace_of_a_batch_excludes_the_rest(tiny):
    session, other = tiny.session(context=64).feed([1, 2, 3]), tiny.session(context=64)
    batch = tiny.batch([session])
    taps = batch.trace("resid_post")
    next(taps)
    for use in (batch.run, batch.next, batch.trace, lambda: batch.add(other),
                lambda: batch.remove(session), lambda: session.feed([1]),
                lambda: batch.generate(["x"])):
        with pytest.raises(mm.BusyError, match="trace"):
            use()
    taps.close()
    assert batch.run() is True and bytes(session.logits) == bytes(tiny([1, 2, 3]))
    session.feed([4])
    taps = batch.trace("resid_post")
    next(taps)
    del taps
    assert batch.run() is True and bytes(session.logits) == bytes(tiny([1, 2, 3, 4]))


def test_hooks_that_turn_on_their_batch(tiny):
    session, other = tiny.session(context=64).feed([1, 2, 3]), tiny.session(context=64)
    batch = tiny.batch()
    refused = []

    def hook(tensor, tap):
        for use in (batch.run, batch.next, lambda: batch.trace("q"), lambda: batch.add(other),
                    lambda: batch.remove(session), lambda: batch.generate(["x"]),
                    lambda: session.feed([1]), lambda: session.rewind(0), session.run):
            with pytest.raises(mm.BusyError):
                use()
            refused.append(use)

    batch.add(session, hooks=[(("resid_post", 1), hook)])
    assert batch.run() is True and len(refused) == 9
    assert bytes(session.logits) == bytes(tiny([1, 2, 3]))


def test_rows(tiny):
    for rows in (0, -1, 5000, 1.5, "8"):
        with pytest.raises((mm.ArgumentError, TypeError), match="rows"):
            tiny.batch(rows=rows)
    with tiny.session(context=600) as session:
        batch = tiny.batch([session.feed([1] * 500)], rows=32)
        assert {tap.count for _, tap in batch.trace("embed")} == {32, 500 % 32}


# ---- What goes wrong half-way ----


def test_a_member_that_is_closed_leaves_its_batch(tiny):
    seen = [[], [], []]
    sessions = [tiny.session(context=16).feed([n + 1]) for n in range(3)]
    batch = tiny.batch()
    for session, mine in zip(sessions, seen):
        batch.add(session, hooks=[(("q", 0), lambda tensor, tap, mine=mine: mine.append(tap))])
    sessions[0].close()
    assert batch.sessions == tuple(sessions[1:])
    with pytest.raises(mm.ArgumentError, match="not a member"):
        batch.remove(sessions[0])
    sessions[2].close()
    assert batch.run() is True and [len(mine) for mine in seen] == [0, 1, 0]
    assert bytes(sessions[1].logits) == bytes(tiny([2]))
    sessions[1].close()
    assert batch.run() is True and len(batch) == 0


class Elsewhere:
    """Another thread that stands in a hook of a batch for the length of a `with` block."""

    def __init__(self, batch, session, use):
        self.inside, self.done, self.error = threading.Event(), threading.Event(), None
        batch.add(session, hooks=[(("q", 0), self.hook)])
        self.thread = threading.Thread(target=self.run, args=(use,))

    def hook(self, tensor, tap):
        self.inside.set()
        assert self.done.wait(30)

    def run(self, use):
        try:
            use()
        except mm.Error as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        assert self.inside.wait(30)
        return self

    def __exit__(self, *exception):
        self.done.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


def test_a_batch_that_another_thread_runs(tiny):
    session, other = (tiny.session(context=16).feed([1, 2]) for _ in range(2))
    batch = tiny.batch()
    with Elsewhere(batch, session, batch.run) as elsewhere:
        for use in (session.close, batch.run, batch.next, lambda: batch.generate(["x"]),
                    lambda: batch.add(other), lambda: batch.remove(session)):
            with pytest.raises(mm.BusyError, match="in use by another thread"):
                use()
        assert batch.sessions == (session,) and not session.closed
    assert elsewhere.error is None and bytes(session.logits) == bytes(tiny([1, 2]))


def test_a_batch_closed_while_another_thread_runs_it(tiny):
    session = tiny.session(context=16).feed([1, 2])
    batch = tiny.batch()
    with Elsewhere(batch, session, batch.run) as elsewhere:
        batch.close()
        assert batch.sessions == ()
    assert isinstance(elsewhere.error, mm.ArgumentError) and "closed" in str(elsewhere.error)
    assert session.run() is True and bytes(session.logits) == bytes(tiny([1, 2]))


def fail(*arguments):
    raise ZeroDivisionError


@pytest.mark.parametrize("options", [
    {"logits_processor": fail}, {"hooks": [("q", fail)]}, {"mask": fail},
    {"mask": np.zeros(128, np.uint32)}], ids=repr)
def test_a_generation_that_fails_leaves_nothing_behind(tiny, alone, options):
    batch = tiny.batch()
    streams = batch.generate(PROMPTS[:1], stream=True, **OPTIONS)
    with pytest.raises((ZeroDivisionError, mm.Error)):
        batch.generate(["c", {"prompt": "d", **options}])
    assert batch.sessions == (streams.streams[0].session,)
    same(streams.result(), alone[:1])
    same(batch.generate(PROMPTS, **OPTIONS), alone)


def test_what_a_member_refuses_feeds_nothing(tiny):
    with tiny.chat() as chat:
        session = chat.session
        batch = tiny.batch([session.feed([1, 2])])
        for use in (lambda: session.generate("hello"), lambda: session.generate("x", stream=True),
                    lambda: session.run_with_cache([3]), lambda: session.run_with_hooks([3]),
                    lambda: session.trace([3], "q"), lambda: chat.send("hello")):
            with pytest.raises(mm.BusyError, match="run the batch, or remove the session"):
                use()
            assert session.tokens == [1, 2] and chat.messages == []
        assert batch.run() is True


def test_a_generation_leaves_readiness_to_next(tiny):
    session = tiny.session(context=16).feed([1, 2])
    batch = tiny.batch([session])
    batch.generate(["c"], max_new_tokens=3)
    assert batch.next() is session and batch.next() is None
    session.feed([3])
    batch.generate(["c"], max_new_tokens=3)
    batch.remove(session)
    assert batch.next() is None


def test_async_iteration_over_many(tiny, alone):
    async def collect():
        texts = [""] * len(PROMPTS)
        streams = tiny.generate(PROMPTS, stream=True, **OPTIONS)
        async for index, piece in streams:
            texts[index] += piece
        return texts, streams

    texts, streams = asyncio.run(collect())
    assert texts == [one.text for one in alone] and streams.done


def test_a_cancelled_task_cancels_all(tiny):
    async def collect():
        streams = tiny.generate(PROMPTS, stream=True, max_new_tokens=4000, stop=["\0"])

        async def read():
            async for _ in streams:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return streams

    made = asyncio.run(collect()).result()
    assert all(one.finish_reason in ("cancelled", "stop") for one in made)


def test_what_is_cancelled_is_done_at_once(tiny):
    batch = tiny.batch()
    streams = batch.generate(PROMPTS, stream=True, **OPTIONS)
    next(streams)
    streams.streams[0].cancel()
    assert streams.streams[0].done and not streams.done and len(batch) == len(PROMPTS) - 1
    streams.cancel()
    assert streams.done and len(batch) == 0 and batch.run() is True
    assert {one.finish_reason for one in streams.result()} == {"cancelled"}
    single = tiny.generate("x", stream=True)
    single.cancel()
    assert single.done and single.finish_reason == "cancelled" and list(single) == []


def test_streams_that_are_cancelled_while_another_thread_runs_them(tiny):
    batch = tiny.batch()
    streams = batch.generate(PROMPTS, stream=True, **OPTIONS)
    with Elsewhere(batch, tiny.session(context=16).feed([1, 2]), batch.run) as elsewhere:
        with pytest.raises(mm.BusyError, match="in use by another thread"):
            streams.result()
        streams.cancel()
        assert streams.done and len(batch) == 1
    assert elsewhere.error is None and len(batch) == 1
    assert all(one.session.run() for one in streams.streams)  # members no more
