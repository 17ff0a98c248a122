"""Engines: many generations at once, under asyncio and from threads, each as it would be alone."""

import asyncio
import functools
import gc
import sys
import threading
import time
import weakref

import minimax2 as mm
import numpy as np
import pytest
import test_endings

PROMPTS = ["import os\n", "def fibonacci(n):", [5, 6, 7, 8], "class Reader:\n    ",
           [{"role": "user", "content": "What is 3 + 4?"}]]
OPTIONS = {"seed": 3, "max_new_tokens": 24}
with mm.load(threads=1) as _model:
    ENDLESS = {"max_new_tokens": 4000, "bias": dict.fromkeys(_model.end_tokens, float("-inf"))}
PATIENCE = 60  # seconds after which a test that waits has failed


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


def within(true):
    """Wait until something has happened in another thread."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


async def until(true):
    """Let the loop turn until something has happened."""
    while not true():
        await asyncio.sleep(0.001)


def same(made, expected):
    for one, other in zip(made, expected, strict=True):
        assert (one.tokens, one.text, one.thinking, one.finish_reason, one.seed, one.logprobs) == (
            other.tokens, other.text, other.thinking, other.finish_reason, other.seed,
            other.logprobs)


@pytest.fixture(scope="module")
def alone(tiny):
    return [tiny.generate(prompt, **OPTIONS) for prompt in PROMPTS]


@pytest.fixture
def engine(tiny):
    with tiny.engine(max_sessions=4) as made:
        yield made
    assert made.running == made.waiting == 0


class Gate:
    """A mask that lets its job come to its first token, and no further until it is open."""

    def __init__(self, count=0):
        self.reached, self.open = threading.Event(), threading.Event()
        self.count = count

    def __call__(self, tokens):
        if len(tokens) == self.count:
            self.reached.set()
            assert self.open.wait(PATIENCE)


# ---- The same as alone ----


def test_tasks_are_answered_as_each_alone(tiny, alone):
    async def read(prompt):
        job = tiny.agenerate(prompt, **OPTIONS)
        pieces = [piece async for piece in job]
        assert all(pieces) and job.done and "".join(pieces) == job.text
        return await job

    async def main():
        same(await asyncio.gather(*map(read, PROMPTS)), alone)
        same(await asyncio.gather(*(tiny.agenerate(prompt, **OPTIONS) for prompt in PROMPTS)),
             alone)

    run(main())


@pytest.mark.parametrize("sessions, rows", [(1, None), (3, 2), (64, None)])
def test_a_queue_and_small_passes_change_nothing(tiny, alone, sessions, rows):
    seen = []

    async def main(engine):
        jobs = [engine.agenerate(prompt, **OPTIONS) for prompt in PROMPTS * 2]
        while not all(job.done for job in jobs):
            seen.append(engine.running)
            await asyncio.sleep(0)
        same(await asyncio.gather(*jobs), alone * 2)

    with tiny.engine(max_sessions=sessions, rows=rows) as engine:
        run(main(engine))
    assert max(seen) <= sessions


def test_threads_share_an_engine(engine, alone):
    made = [None] * 15

    def work(index):
        prompt = PROMPTS[index % 5]
        if index % 3:
            made[index] = engine.generate(prompt, **OPTIONS)
        else:
            job = engine.generate(prompt, stream=True, **OPTIONS)
            assert "".join(job) == job.text
            made[index] = job.result()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    same(made, alone * 3)
    assert all(one.timing.tokens == len(one.tokens) and one.timing.seconds > 0 for one in made)


def test_every_option_is_there(tiny, engine):
    seen = []
    own = [{"seed": 1}, {"seed": 2, "stop": ["n"]}, {"temperature": 0, "seed": 8},
           {"max_new_tokens": 0, "seed": 9}, {"seed": 3, "top_logprobs": 2, "kv_dtype": "f32"},
           {"seed": 4, "bias": {65: 50.0}, "context": 8, "chunk": 1},
           {"seed": 5, "hooks": [("mlp_out", lambda tensor, tap: seen.append(tap.first))]},
           {"seed": 6, "mask": lambda tokens: np.full(128, 2**32 - 1, np.uint32)},
           {"seed": 7, "logits_processor": lambda ids, logits: logits.__setitem__(65, 9.0)}]
    own = [{"max_new_tokens": 12, **options} for options in own]
    expected = [tiny.generate("import os", **options) for options in own]
    before, seen[:] = list(seen), []

    async def main():
        jobs = [engine.agenerate("import os", **options) for options in own]
        same(await asyncio.gather(*jobs), expected)

    run(main())
    assert seen == before != []


def test_pieces_of_a_chat_turn(tiny, engine):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    options = {"seed": 5, "max_new_tokens": 80, "tools": tools}
    expected = list(tiny.generate(PROMPTS[4], stream=True, **options).pieces())

    def joined(pieces):
        kinds = {}
        for piece in pieces:
            kinds[piece.kind] = kinds.get(piece.kind, "") + piece.text
        return kinds

    async def main():
        job = engine.agenerate(PROMPTS[4], **options)
        pieces = [piece async for piece in job.apieces()]
        assert joined(pieces)["thinking"] == job.thinking and job.calls == []
        return pieces

    assert joined(run(main())) == joined(expected)
    assert joined(engine.generate(PROMPTS[4], stream=True, **options).pieces()) == joined(expected)


def test_what_came_meanwhile_is_one_piece(engine, alone):
    job = engine.generate(PROMPTS[0], stream=True, **OPTIONS)
    within(lambda: job.done)
    assert list(job) == [alone[0].text] and list(job) == [] and job.result().text == job.text


# ---- Scores ----


def test_a_score_is_what_a_session_says_step_by_step(tiny, blank):
    for model in (tiny, blank):
        ids = [5, 17, 130, 9, 9, 300, 2, 44]
        with model.session(context=16) as session:
            expected = []
            for id, following in zip(ids, ids[1:]):
                session.feed([id]).run()
                expected += session.logprobs([following])
        score = model.score(ids)
        assert score.tokens == ids and score.logprobs == pytest.approx(expected, abs=1e-6)
        assert score.total == pytest.approx(sum(expected), abs=1e-5)
        assert model.score(ids, chunk=3) == score == run(model.ascore(ids))
        assert model.score([7]) == ([7], [])


def test_scores_ride_with_generations(tiny, engine, alone):
    text = "import os\nimport sys\n" * 40

    async def main():
        made, score, other = await asyncio.gather(
            engine.agenerate(PROMPTS[0], **OPTIONS), engine.ascore(text),
            engine.ascore("def f(x):\n"))
        same([made], alone[:1])
        assert score == tiny.score(text) and other == tiny.score("def f(x):\n")
        with pytest.raises(TimeoutError):
            await engine.ascore(text, deadline=0)
        with pytest.raises(mm.ContextFull):
            await engine.ascore([1] * 5000)

    run(main())


def test_nothing_is_scored_by_logits_that_are_none(tiny):
    from minimax2.scoring import Scoring
    from minimax2.trace import Tap

    logits = tiny([5, 6], logits="all")
    logits.numpy()[0, 3] = np.nan
    with pytest.raises(mm.NumericError, match="position 0"):
        Scoring([5, 6])(logits, Tap("logits", 0, 0, 2, logits))


# ---- Cancelling ----


def test_a_cancelled_task_leaves_the_others(engine, alone):
    async def main():
        job = engine.agenerate("x", **ENDLESS)

        async def read():
            async for _ in job:
                pass

        task = asyncio.create_task(read())
        other = engine.agenerate(PROMPTS[1], **OPTIONS)
        await until(lambda: job.tokens)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert job.done and job.finish_reason == "cancelled"
        same([await other], alone[1:2])
        await until(lambda: engine.running == 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job_of_two := engine.agenerate("x", **ENDLESS), 0.02)
        assert job_of_two.done
        made = await job
        assert made.finish_reason == "cancelled" and made.text == job.text

    run(main())


def test_jobs_are_cancelled_in_the_queue_and_by_being_dropped(tiny, alone):
    async def main(engine):
        first = engine.agenerate("x", **ENDLESS)
        waiting, dropped, last = (engine.agenerate(PROMPTS[0], **OPTIONS) for _ in range(3))
        await until(lambda: first.tokens)
        waiting.cancel()
        del dropped
        assert not waiting.begun and (await waiting).finish_reason == "cancelled"
        assert waiting.text == "" and list(waiting) == []
        first = None  # nobody can read it any more
        same([await last], alone[:1])
        async for _ in engine.agenerate("x", **ENDLESS):
            break
        await until(lambda: engine.running == 0)

    with tiny.engine(max_sessions=1) as engine:
        run(main(engine))


def test_another_thread_may_cancel(engine):
    job = engine.generate("x", stream=True, **ENDLESS)
    timer = threading.Timer(0.02, job.cancel)
    timer.start()
    assert job.result().finish_reason == "cancelled"
    for _ in range(200):  # at every moment of its beginning and of its end
        job = engine.generate("x", stream=True, max_new_tokens=2)
        job.cancel()
        assert job.result().finish_reason in ("cancelled", "length")
    timer.join()


# ---- Deadlines and priorities ----


def test_a_deadline_ends_with_what_there_is(tiny):
    with tiny.engine(max_sessions=1) as engine:
        late = engine.generate("x", stream=True, deadline=0.1, **ENDLESS)
        never = engine.generate("x", stream=True, deadline=0.02)
        made = late.result()
        assert made.finish_reason == late.finish_reason == "deadline" and made.tokens
        assert "".join(late) == made.text
        assert never.result().finish_reason == "deadline" and not never.tokens
        assert engine.generate("x", deadline=60, max_new_tokens=2).finish_reason == "length"
    for deadline, error in ((-1, ValueError), ("x", TypeError), (float("nan"), ValueError)):
        with pytest.raises(error, match="deadline"):
            tiny.agenerate("x", deadline=deadline)
    with pytest.raises(TypeError, match="priority"):
        tiny.agenerate("x", priority=0.5)


def test_higher_priorities_begin_earlier_and_take_places(tiny, alone):
    with tiny.engine(max_sessions=1) as engine:
        gate, order = Gate(2), []
        lowest = engine.generate(PROMPTS[0], stream=True, mask=gate, **OPTIONS)
        assert gate.reached.wait(PATIENCE)
        jobs = {}
        for name, priority in (("a", 0), ("b", 2), ("c", 1), ("d", 2), ("e", 0)):
            jobs[name] = engine.generate(
                PROMPTS[1], stream=True, priority=priority, **OPTIONS,
                hooks=[("logits", lambda tensor, tap, name=name: order.append(name))])
        gate.open.set()
        same([lowest.result()], alone[:1])
        same([job.result() for job in jobs.values()], [alone[1]] * 5)
    assert list(dict.fromkeys(order)) == ["b", "d", "c", "a", "e"]
    assert order == sorted(order, key="bdcae".index)  # equals do not take places


def test_nobody_starves(engine):
    """All members of a batch come on by a token a pass."""
    gate = Gate(100)
    first = engine.generate("x", stream=True, mask=gate, **ENDLESS)
    others = [engine.generate("y", stream=True, **ENDLESS) for _ in range(3)]
    assert gate.reached.wait(PATIENCE)
    counts = [len(job.tokens) for job in [first, *others]]
    for job in [first, *others]:
        job.cancel()
    gate.open.set()
    assert 100 in counts and min(counts) >= 90


# ---- Callbacks ----


@pytest.mark.parametrize("broken", [
    {"mask": lambda tokens: 1 / len(tokens[3:]) and None},
    {"mask": lambda tokens: np.zeros(128, np.uint32) if len(tokens) > 2 else None},
    {"logits_processor": lambda ids, logits: 1 / (len(ids) < 7) and None},
    {"hooks": [("q", lambda tensor, tap: 1 / (tap.first < 6) and None)]},
    {"mask": lambda tokens: sys.exit(3)},
])
def test_what_a_callback_raises_reaches_its_task_only(engine, alone, broken):
    async def main():
        jobs = [engine.agenerate(prompt, **OPTIONS) for prompt in PROMPTS[:3]]
        bad = engine.agenerate("import os\n", **OPTIONS, **broken)
        pieces = []
        with pytest.raises((ZeroDivisionError, mm.NumericError, TypeError, SystemExit)):
            async for piece in bad:
                pieces.append(piece)
        assert bad.done and bad.finish_reason is None and "".join(pieces) == bad.text
        with pytest.raises((ZeroDivisionError, mm.NumericError, TypeError, SystemExit)):
            await bad
        same(await asyncio.gather(*jobs), alone[:3])

    run(main())


def test_what_is_wrong_reaches_who_waits(engine):
    with pytest.raises(TypeError, match="temperature"):
        engine.agenerate("x", temprature=0)
    for prompt, options, error in (
            ("", {}, "empty"), ([1] * 5000, {}, "5000"), (5, {}, "prompt"), (None, {}, "prompt"),
            ("x", {"top_k": -5}, "top_k"), ("x", {"context": 0}, "context"),
            ("x" * 50, {"context": 2}, "2"), (["x", "y"], {}, "prompts")):
        with pytest.raises((mm.Error, TypeError), match=error):
            engine.generate(prompt, **options)
    for wrong in (0, -1, 5000, 1.5, "x"):
        with pytest.raises((mm.Error, TypeError), match="max_sessions"):
            engine.model.engine(max_sessions=wrong)
    with pytest.raises(mm.ArgumentError, match="rows"):
        engine.model.engine(rows=0)


def test_an_error_of_the_batch_ends_one_job_and_no_other(engine, alone, monkeypatch):
    """What cannot be laid at a job's door ends the newest."""
    first = engine.generate(PROMPTS[0], stream=True, mask=(gate := Gate(3)), **OPTIONS)
    assert gate.reached.wait(PATIENCE)
    second = engine.generate(PROMPTS[1], stream=True, **OPTIONS)
    go_on, errors = mm.Batch._go_on, [mm.OutOfMemory("no room for a page")]

    def without_memory(batch, deadline):
        if errors and len(batch) == 2:
            raise errors.pop()
        go_on(batch, deadline)

    monkeypatch.setattr(mm.Batch, "_go_on", without_memory)
    gate.open.set()
    with pytest.raises(mm.OutOfMemory, match="no room"):
        second.result()
    same([first.result()], alone[:1])


def test_nobody_waits_for_a_thread_that_is_gone(tiny, alone, monkeypatch):
    def broken(engine, batch):
        monkeypatch.undo()
        raise MemoryError("of the thread's own")

    with tiny.engine(max_sessions=1) as engine:
        gate = Gate(1)
        jobs = [engine.generate("x", stream=True, mask=gate, **ENDLESS) for _ in range(2)]
        assert gate.reached.wait(PATIENCE)
        monkeypatch.setattr(mm.Engine, "_admit", broken)
        gate.open.set()
        for job in jobs:
            with pytest.raises(MemoryError, match="own"):
                job.result()
        same([engine.generate(PROMPTS[0], **OPTIONS)], alone[:1])


def test_jobs_that_ended_early_are_not_kept(tiny, monkeypatch):
    monkeypatch.setattr("minimax2.engine._TIDY", 10)
    with tiny.engine(max_sessions=1) as engine:
        gate = Gate(1)
        first = engine.generate("x", stream=True, mask=gate, **ENDLESS)
        assert gate.reached.wait(PATIENCE)
        for _ in range(100):
            engine.generate("x", stream=True, priority=-1, deadline=1000).cancel()
        assert engine.waiting <= 10 and len(engine._deadlines) <= 10
        first.cancel()
        gate.open.set()


def test_the_loop_turns_while_a_callback_works(tiny, alone):
    """It is only the loop that lets the callback return."""
    async def main():
        gate = Gate(2)
        job = tiny.agenerate(PROMPTS[0], mask=gate, **OPTIONS)
        await until(gate.reached.is_set)
        assert not job.done and len(job.tokens) == 2
        gate.open.set()
        same([await job], alone[:1])

    run(main())


def test_a_callback_cannot_wait_for_its_own_thread(engine):
    def mask(tokens):
        engine.generate("y", max_new_tokens=2)

    with pytest.raises(mm.BusyError, match="callback"):
        engine.generate("x", mask=mask)
    started = []

    def submits(tokens):
        started.append(engine.generate("y", stream=True, max_new_tokens=2))

    engine.generate("x", mask=submits, max_new_tokens=2)
    assert [len(job.result().tokens) for job in started] == [2, 2]


# ---- Ends ----


def test_closing_an_engine_cancels_what_it_has(tiny):
    async def main():
        with tiny.engine(max_sessions=2) as engine:
            jobs = [engine.agenerate("x", **ENDLESS) for _ in range(5)]
            task = asyncio.create_task(engine.ascore("x" * 4000))
            await until(lambda: jobs[1].tokens)
        assert {(await job).finish_reason for job in jobs} == {"cancelled"}
        with pytest.raises(mm.ArgumentError, match="closed"):
            await task
        with pytest.raises(mm.ArgumentError, match="closed"):
            engine.agenerate("x")
        assert engine.closed and "closed" in repr(engine)

    run(main())


def test_closing_a_model_lets_jobs_end_that_have_begun(alone):
    model, gate = mm.load(threads=1), Gate(1)
    engine = model.engine(max_sessions=1)
    begun = engine.generate(PROMPTS[0], stream=True, mask=gate, **OPTIONS)
    waiting = engine.generate(PROMPTS[1], stream=True, **OPTIONS)
    assert gate.reached.wait(PATIENCE)
    model.close()
    gate.open.set()
    same([begun.result()], alone[:1])
    for use in (waiting.result, lambda: engine.generate("x"), lambda: model.agenerate("x"),
                model.engine, lambda: run(model.ascore("x"))):
        with pytest.raises(mm.ArgumentError, match="closed"):
            use()


def test_loops_that_end_cancel_their_jobs(tiny, alone):
    kept, engine = [], tiny.engine()

    async def leave(job):
        async def read():
            async for _ in job:
                pass

        kept.append(job)
        asyncio.get_running_loop().reader = asyncio.create_task(read())
        await until(lambda: job.tokens)

    run(leave(engine.agenerate("x", **ENDLESS)))  # it cancels the tasks that are left
    assert kept[0].finish_reason == "cancelled"
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave(engine.agenerate("x", **ENDLESS)))
    loop.close()  # which leaves the task for ever
    # Who was told just before the loop ended, and never heard it, waits for nothing any more.
    assert kept[1].result().finish_reason in ("cancelled", "length")
    loop.reader._log_destroy_pending = False
    run(leave(engine.agenerate(PROMPTS[0], **OPTIONS)))
    assert kept[2].done
    same([engine.generate(PROMPTS[0], **OPTIONS)], alone[:1])


def test_two_loops_at_once(engine, alone):
    made = []

    async def main():
        made.extend(await asyncio.gather(*(engine.agenerate(prompt, **OPTIONS)
                                           for prompt in PROMPTS)))

    threads = [threading.Thread(target=run, args=(main(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(one.text for one in made) == sorted(one.text for one in alone * 3)


def test_nothing_is_left_of_an_engine_without_jobs():
    model = mm.load(threads=1)
    job = model.agenerate("x", max_new_tokens=2)
    job.result()
    engine, gone = weakref.ref(job._engine), weakref.ref(model)
    within(lambda: engine()._thread is None)
    del job, model
    gc.collect()
    assert engine() is None and gone() is None


SETTING = """
import asyncio, os, sys, threading, time
import minimax2 as mm
model = mm.load(threads=2)
ENDLESS = {"max_new_tokens": 4000, "bias": {token: -1e9 for token in model.end_tokens}}
jobs = [model.agenerate("x", **ENDLESS) for _ in range(70)]
while not jobs[0].tokens:
    time.sleep(0.001)
"""
ends_well = functools.partial(test_endings.ends_well, setting=SETTING)


@pytest.mark.parametrize("code", [
    "pass",
    "model.close()",
    "sys.modules.clear()",
    "os._exit(0)",
    "import atexit; atexit.register(lambda: [jobs[0].cancel(), model.agenerate('x', **ENDLESS)])",
    "threading.Thread(target=jobs[1].result, daemon=True).start()",
    "threading.Thread(target=model.agenerate('x', priority=1, max_new_tokens=9).result).start()",
    """
    def mask(tokens):
        time.sleep(100)
    __import__("minimax2.engine").engine._PATIENCE = 0.1
    del jobs
    kept = model.engine().agenerate("x", mask=mask)
    time.sleep(0.1)
    """,
    """
    async def read(job):
        async for piece in job:
            pass
    async def main():
        for job in jobs[:5]:
            asyncio.get_running_loop().create_task(read(job))
        await asyncio.sleep(0.05)
    asyncio.run(main())
    """,
])
def test_the_end_of_the_interpreter_with_jobs_under_way(code):
    ends_well(code)


def test_an_interrupt_of_who_waits_cancels_nothing_else():
    ends_well("""
        import signal
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            model.agenerate("y", **ENDLESS).result()
        except KeyboardInterrupt:
            print("interrupted", jobs[0].done)
    """, "interrupted False\n")


def test_the_child_of_a_fork_begins_anew():
    ends_well("""
        alone = model.generate("import os", seed=1, max_new_tokens=20).text
        for turn in range(5):
            child = os.fork()
            if not child:
                try:
                    for job in jobs[0], jobs[69]:
                        try:
                            job.result()
                        except mm.Error as error:
                            assert "forked" in str(error), error
                        job.cancel()
                        assert job.done and job.text is not None and job.calls == []
                    async def main():
                        made = [model.agenerate("import os", seed=1, max_new_tokens=20)
                                for _ in range(3)]
                        return await asyncio.gather(*made)
                    assert {made.text for made in asyncio.run(main())} == {alone}
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        assert not jobs[0].done
        for job in jobs:
            job.cancel()
        assert jobs[0].result().finish_reason == "cancelled"
        print(model.agenerate("import os", seed=1, max_new_tokens=20).result().text == alone)
    """, "True\n")


# ---- Streams without an engine ----


def test_many_tasks_read_the_streams_of_one_batch(tiny, alone):
    async def main():
        streams = tiny.generate(PROMPTS, stream=True, **OPTIONS).streams

        async def read(stream):
            return "".join([piece async for piece in stream])

        return await asyncio.gather(*map(read, streams)), streams

    texts, streams = run(main())
    assert texts == [one.text for one in alone]
    same([stream.result() for stream in streams], alone)


def test_after_a_cancelled_task_the_session_is_free(tiny):
    async def main():
        with tiny.session(context=4096) as session:
            for _ in range(20):
                session.rewind(0)
                stream = session.generate("x", stream=True, **ENDLESS)

                async def read(stream=stream):
                    async for _ in stream:
                        pass

                task = asyncio.create_task(read())
                await asyncio.sleep(0.003)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                session.run()  # BusyError if a thread still ran it
                assert stream.done

    run(main())


def test_one_of_many_that_is_cancelled_leaves_the_others(tiny, alone):
    async def main():
        streams = tiny.generate(PROMPTS, stream=True, **OPTIONS).streams
        tasks = [asyncio.create_task(read(stream)) for stream in streams]
        await until(lambda: streams[2].tokens)
        tasks[0].cancel()
        made = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(made[0], asyncio.CancelledError) and streams[0].done
        assert made[1:] == [one.text for one in alone[1:]]

    async def read(stream):
        return "".join([piece async for piece in stream])

    run(main())


def test_a_step_that_a_loop_left_behind_does_not_stop_the_next(tiny, alone):
    stream = tiny.generate(PROMPTS[0], stream=True, **OPTIONS)

    async def some():
        return await anext(stream)

    async def rest():
        return "".join([piece async for piece in stream])

    assert run(some()) + run(some()) + run(rest()) == alone[0].text
