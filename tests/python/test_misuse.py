"""What scripts get wrong: always an exception, never a crash, and the object goes on working."""

import copy
import gc
import multiprocessing
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap
import threading

import minimax2 as mm
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
from make_hashes import write  # noqa: E402

IDS = [17 * i % 4000 for i in range(1, 31)]
WRONG_IDS = [
    [-1], [4096], [2**31], [2**40], [-2**31 - 1], [1.0], [True], [np.True_], ["1"], [None], [b"1"],
    [[1]], [1, 2, -1], [], (), "", 5, None, 1.5, b"abc", bytearray(b"ab"), {1: 2},
    np.zeros((2, 2), np.int32), np.zeros(3, np.float32), np.zeros(3, bool), np.array(5),
    np.zeros(0, np.int32), [{"role": "user"}, 5]]


@pytest.fixture(scope="module")
def expected(tiny):
    return bytes(tiny(IDS))


def still_works(session, expected):
    session.sync(IDS)
    session.run()
    assert bytes(session.logits) == expected


@pytest.mark.parametrize("ids", WRONG_IDS, ids=repr)
def test_token_ids(tiny, session, expected, ids):
    session.feed(IDS).run()
    for use in (session.feed, session.sync, tiny, tiny.generate, session.generate, session.trace,
                tiny.run_with_cache):
        if ids is None and use in (session.generate, session.trace):
            continue  # they go on from where the timeline ends
        if repr(ids) in ("['1']", "[[1]]") and use == tiny.generate:
            continue  # several prompts
        with pytest.raises((mm.ArgumentError, TypeError)):
            use(ids)
        assert session.tokens == IDS
    still_works(session, expected)


@pytest.mark.parametrize("ids", [[-1], [4096], [1.0], [True], "a", None, 5])
def test_logprobs_ids(session, ids):
    session.feed(IDS).run()
    with pytest.raises((mm.ArgumentError, TypeError)):
        session.logprobs(ids)


@pytest.mark.parametrize("n", [0, -1, 4097, 2**31, 1.0, True, None, "1"])
def test_top_n(session, n):
    session.feed(IDS).run()
    with pytest.raises((mm.ArgumentError, TypeError)):
        session.top(n)


@pytest.mark.parametrize("context", [0, -1, 4097, 2**31, 2**70, 1.5, "8", True])
def test_contexts(tiny, context):
    with pytest.raises((mm.ArgumentError, TypeError)):
        tiny.session(context=context)


@pytest.mark.parametrize("chunk", [0, -1, 4097, 2**31, 1.5])
def test_chunks(tiny, chunk):
    with pytest.raises((mm.ArgumentError, TypeError)):
        tiny.session(chunk=chunk)


@pytest.mark.parametrize("kv_dtype", ["f16", "BF16", "", 1])
def test_kv_dtypes(tiny, kv_dtype):
    with pytest.raises((mm.ArgumentError, TypeError)):
        tiny.session(kv_dtype=kv_dtype)


@pytest.mark.parametrize("options", [
    {"threads": 0}, {"threads": -1}, {"threads": 1025}, {"threads": 10**12}, {"threads": 1.0},
    {"threads": "2"}, {"threads": True}, {"isa": "sse"}, {"isa": ""}, {"isa": 1},
    {"precision": "best"}, {"precision": None}, {"precision": 1}])
def test_load_options(options):
    with pytest.raises((mm.ArgumentError, TypeError)):
        mm.load(**options)


def test_many_threads(blank_path, blank):
    with mm.load(blank_path, threads=64) as model:
        assert bytes(model([1, 2, 3])) == bytes(blank([1, 2, 3]))


@pytest.mark.parametrize("options", [
    {"temperature": -1}, {"temperature": float("nan")}, {"temperature": "hot"},
    {"temperature": True}, {"top_k": -1}, {"top_k": 2**31}, {"top_k": 1.5}, {"top_p": -0.1},
    {"top_p": 1.1}, {"top_p": float("nan")}, {"min_p": -1}, {"min_p": 1.1}, {"typical_p": 2},
    {"top_n_sigma": -1}, {"repetition_penalty": 0}, {"repetition_penalty": -1},
    {"presence_penalty": float("nan")}, {"frequency_penalty": float("inf")},
    {"penalty_window": -2}, {"dry_multiplier": -1}, {"dry_base": 0.5}, {"dry_allowed_length": 0},
    {"dry_window": -2}, {"seed": -1}, {"seed": 2**64}, {"seed": 1.0}, {"seed": "1"}, {"size": 4},
    {"tmeperature": 1}, {"max_new_tokens": -1}, {"max_new_tokens": 1.0}, {"max_new_tokens": None},
    {"stop": ""}, {"stop": [1]}, {"stop": 1}, {"top_logprobs": -1}, {"top_logprobs": 4097},
    {"bias": {4096: 1.0}}, {"bias": {-1: 1.0}}, {"bias": {1: float("nan")}}, {"bias": {1: "a"}},
    {"bias": [1]}, {"breakers": [4096]}, {"breakers": "a"}, {"mask": 5}, {"mask": "all"},
    {"mask": lambda tokens: 5}, {"mask": np.zeros(127, np.uint32)},
    {"mask": np.zeros(129, np.uint32)}, {"mask": np.zeros(128, np.float32)},
    {"mask": np.zeros(64, np.uint64)}, {"mask": np.zeros(256, np.uint32)[::2]},
    {"mask": np.zeros(128, ">u4")}, {"logits_processor": 5}], ids=repr)
def test_generate_options(tiny, options):
    with pytest.raises((mm.ArgumentError, TypeError, ValueError, AttributeError)):
        tiny.generate(IDS, **{"max_new_tokens": 2, **options})


@pytest.mark.parametrize("options", [
    {"temperature": 1e-40}, {"temperature": 1e38}, {"top_k": 0}, {"top_k": 10**6}, {"top_p": 0},
    {"top_p": 1}, {"min_p": 1}, {"seed": 2**64 - 1}, {"bias": {1: float("-inf")}}, {"bias": {}},
    {"mask": np.full(128, 2**32 - 1, np.uint32)}, {"mask": np.full(128, -1, np.int32)},
    {"mask": bytearray(b"\xff" * 512)[:0] or memoryview(bytearray(b"\xff" * 512)).cast("I")}])
def test_extreme_options_that_are_fine(tiny, options):
    made = tiny.generate(IDS, max_new_tokens=3, **options)
    assert len(made.tokens) == 3 or made.finish_reason == "stop"


@pytest.mark.parametrize("seconds", [-1, float("nan"), "1", None])
def test_time_budgets(tiny, session, expected, seconds):
    session.feed(IDS)
    if seconds is not None:
        with pytest.raises((mm.ArgumentError, TypeError)):
            session.run(seconds=seconds)
        assert session.pos == 0
    still_works(session, expected)


@pytest.mark.parametrize("object_of", [
    lambda model: model, lambda model: model.session(context=8), lambda model: model.batch(),
    lambda model: model.tokenizer, lambda model: mm.Sampler(model)])
def test_copies_are_refused(tiny, object_of):
    thing = object_of(tiny)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied"):
            duplicate(thing)


def test_results_can_be_kept(tiny):
    made = tiny.generate(IDS, max_new_tokens=3, seed=1, top_logprobs=2)
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made


# ---- Callbacks ----


def test_callbacks_that_raise(session, expected):
    session.feed(IDS)
    for options in ({"mask": lambda tokens: 1 / 0},
                    {"logits_processor": lambda ids, logits: 1 / 0}):
        with pytest.raises(ZeroDivisionError):
            session.generate(max_new_tokens=2, **options)
    still_works(session, expected)


def test_callbacks_that_turn_on_their_session(tiny, session, expected):
    def feed(tokens):
        session.feed([1])

    with pytest.raises(mm.ArgumentError):
        session.generate(IDS, max_new_tokens=3, mask=feed)
    still_works(session, expected)
    victim = tiny.session(context=64)
    with pytest.raises(mm.ArgumentError, match="closed"):
        victim.generate(IDS, max_new_tokens=3, mask=lambda tokens: victim.close())


def test_a_resized_array_is_not_pulled_away(tiny):
    mask = bytearray(b"\xff" * 512)
    view = memoryview(mask).cast("I")
    assert mm.Sampler(tiny, seed=1).pick(np.zeros(4096, np.float32), mask=view) >= 0
    view.release()
    mask.clear()  # no export was left behind


# ---- Threads ----


def test_one_session_is_used_by_one_thread_at_a_time(tiny):
    long = [5] * 1000
    with tiny.session(context=1000) as session:
        session.feed(long)
        busy, others = 0, 0
        thread = threading.Thread(target=session.run)
        thread.start()
        while thread.is_alive():
            try:
                session.rewind(1000)
                others += 1  # between two slices
            except mm.BusyError:
                busy += 1
        thread.join()
        session.run()
        assert busy > 10
        assert bytes(session.logits) == bytes(tiny(long))


def test_threads_share_a_model(tiny):
    prompts = [[7 * i % 4000 + k for i in range(1, 60 + k)] for k in range(8)]
    alone = [tiny.generate(prompt, max_new_tokens=8, seed=3).tokens for prompt in prompts]
    results = [[] for _ in prompts]

    def work(k):
        for _ in range(4):
            results[k].append(tiny.generate(prompts[k], max_new_tokens=8, seed=3).tokens)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[tokens] * 4 for tokens in alone]


def test_close_while_another_thread_runs(tiny, expected):
    session = tiny.session(context=2000)
    session.feed([5] * 1500)
    problems = []

    def work():
        try:
            session.run()
        except mm.ArgumentError as error:
            problems.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    session.close()
    thread.join(30)
    assert not thread.is_alive() and all("closed" in problem for problem in problems)


# ---- Collector, memory, file descriptors ----


def test_the_collector_may_come_at_any_time():
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        kept = []
        for _ in range(5):
            model = mm.load(threads=1)
            session = model.session(context=64)
            for tap in session.trace(IDS, ["resid_post", "logits"]):
                kept.append(tap.tensor)
            kept.append(np.from_dlpack(session.logits))
            stream = session.generate(max_new_tokens=3, stream=True)
            kept.append(next(stream, ""))
            loop = [model, session, stream]
            loop.append(loop)
            del model, session, stream, loop
        assert len(kept) == 5 * (6 + 2)
        assert all(np.isfinite(np.asarray(view)).all() for view in kept[::8])
    finally:
        gc.set_threshold(*threshold)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_nothing_leaks(tiny, blank_path):
    def once():
        with mm.load(blank_path, threads=2) as model, model.session(context=512) as session:
            session.feed(range(20)).run()
            np.from_dlpack(session.logits)
            memoryview(session.logits)
            session.logits.__dlpack__()
            session.top(5)
            with pytest.raises(mm.ArgumentError):
                session.feed([-1])
            tiny.tokenizer.decode(tiny.tokenizer.encode("some text"))

    for _ in range(20):
        once()
    memory, files = resident(), len(os.listdir("/proc/self/fd"))
    threads = threading.active_count(), len(os.listdir("/proc/self/task"))
    for _ in range(200):
        once()
    assert resident() - memory < 8 << 20
    assert len(os.listdir("/proc/self/fd")) == files
    assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == threads


def test_many_views(tiny):
    views = [tiny["model.norm.weight"] for _ in range(20_000)]
    assert len({view.address for view in views}) == 1
    del views
    assert tiny["model.norm.weight"].shape == (256,)


# ---- Whole processes ----


def python(code, *arguments, **options):
    """Run a program; (exit code, output, errors)."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
                          capture_output=True, text=True, timeout=60, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "FP8"])
def test_small_stack(kind, tmp_path):
    """Threads of hosts may have little of it: prompts, decoding and few rows at once."""
    code, output, errors = python("""
        import sys, threading
        import minimax2 as mm
        model = mm.load(sys.argv[1], threads=1)
        def run():
            session = model.session(context=64)
            for n in (40, 1, 2, 3, 4):
                session.feed(list(range(n))).run()
            print(len(session.logits.tolist()))
        threading.stack_size(320 * 1024)  # the interpreter takes some
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    """, write(kind, tmp_path))
    assert (code, output, errors) == (0, "144\n", "")


def test_out_of_memory(blank_path):
    code, output, errors = python("""
        import resource, sys
        import minimax2 as mm
        model = mm.load(sys.argv[1], threads=1)
        small = model.session(context=64)
        small.feed([1, 2, 3]).run()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20),) * 2)
        try:
            model.session(context=196608)
        except mm.OutOfMemory as error:
            print(error.code, isinstance(error, MemoryError), error)
        small.feed([4]).run()
        print(len(small.top(3)))
    """, blank_path)
    assert (code, errors) == (0, "")
    first, second = output.splitlines()
    assert first.startswith("-2 True ") and any(c.isdigit() for c in first[8:]) and second == "3"


@pytest.mark.parametrize("ending", [
    "",
    "stream = model.generate('import os', stream=True); next(stream)",
    "taps = session.trace([1, 2], 'resid_post'); next(taps)",
    "import numpy; kept = numpy.from_dlpack(session.logits); view = memoryview(kept)",
    "capsule = session.logits.__dlpack__()",
    "import threading; threading.Thread(target=lambda: [model([1] * 500) for _ in range(1000)],"
    " daemon=True).start(); import time; time.sleep(0.2)",
    "import os; os._exit(0)",
    "loop = [model, session]; loop.append(loop); del model, session",
    "import importlib; importlib.reload(mm)",
    "import sys; sys.modules.clear()",
])
def test_the_interpreter_may_end_at_any_time(ending):
    code, output, errors = python(f"""
        import minimax2 as mm
        model = mm.load(threads=2)
        session = model.session(context=64)
        batch = model.batch()
        sampler = mm.Sampler(model)
        session.feed("import os").run()
        {ending}
    """)
    assert (code, output, errors) == (0, "", "")


def test_a_forked_child_goes_on(tiny, expected):
    with tiny.session(context=64) as session:
        session.feed(IDS[:20]).run()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                session.feed(IDS[20:]).run()
                good = bytes(session.logits) == expected and bytes(tiny(IDS)) == expected
                os.write(write, b"same" if good else b"different")
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            assert pipe.read() == b"same"
        os.waitpid(child, 0)
        session.feed(IDS[20:]).run()
        assert bytes(session.logits) == expected


def _in_a_worker(prompt):
    with mm.load(threads=2) as model:
        return bytes(model(prompt))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(expected, method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_in_a_worker, [IDS] * 4) == [expected] * 4


# ---- Any order of calls ----


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(
    ["feed", "run", "slice", "rewind", "sync", "sample", "top", "logits", "generate", "trace"]),
    st.integers(-2, 40)), max_size=12))
def test_any_order_of_calls_keeps_the_promises(blank, calls):
    """A model of the timeline: what the session says must agree, and the bits with a fresh one."""
    with blank.session(context=32) as session:
        tokens = []
        for verb, n in calls:
            try:
                if verb == "feed":
                    session.feed(range(n))
                    tokens += range(n)
                elif verb == "run":
                    assert session.run() is True
                elif verb == "slice":
                    session.run(seconds=0)
                elif verb == "rewind":
                    session.rewind(n)
                    del tokens[n:]
                elif verb == "sync":
                    session.sync([n] * 3)
                    tokens = [n] * 3
                elif verb == "sample":
                    assert 0 <= session.sample() < 512
                elif verb == "top":
                    session.top(n)
                elif verb == "logits":
                    assert session.logits.shape == (512,)
                elif verb == "generate":
                    tokens += session.generate(max_new_tokens=max(n, 0), seed=1).tokens
                else:
                    for _ in session.trace(None, "resid_post", 1):
                        break
            except mm.Error:
                pass
            assert session.tokens == tokens and session.length == len(tokens)
            assert 0 <= session.pos <= session.length <= session.context
        if tokens:
            session.run()
            try:
                logits = bytes(session.logits)
            except mm.ArgumentError:  # gone with a rewind
                return
            assert logits == bytes(blank(tokens))


# ---- Sentences ----


@pytest.mark.parametrize("prompt", [["a", 5], {"a", "b"}, (x for x in "ab")], ids=repr)
def test_it_says_what_a_prompt_is(tiny, prompt):
    with pytest.raises(TypeError, match="a str, token ids or messages.* several prompts are"):
        tiny.generate(prompt)


@pytest.mark.parametrize("use, sentence", [
    (lambda model: model.generate(["a", ""]), r"prompts\[1\]: the prompt is empty"),
    (lambda model: model.batch().run(float("nan")), "seconds is nan, must be a number that is not"),
    (lambda model: model.batch(rows=0), "rows is 0, must be 1 or more$"),
    (lambda model: model.session(chunk=0), "chunk is 0, must be 1 or more$"),
    (lambda model: model.session(context=0), "context is 0, must be 1 or more$"),
    (lambda model: mm.load(threads=0), "threads is 0, must be 1 or more$")])
def test_it_says_what_is_wrong_and_what_may_be(tiny, use, sentence):
    with pytest.raises(mm.ArgumentError, match=sentence):
        use(tiny)


@pytest.mark.parametrize("name, use", [
    ("mapped", lambda model: mm.load(mapped="no")),
    ("writable", lambda model: mm.load(writable="yes")),
    ("writable", lambda model: mm.load(writable=None)),
    ("stream", lambda model: model.generate("x", stream="no")),
    ("stream", lambda model: model.batch().generate(["x"], stream="no")),
    ("stream", lambda model: model.session(context=8).generate("x", stream="no")),
    ("stream", lambda model: model.chat().send("x", stream="no"))])
def test_words_are_no_booleans(tiny, name, use):
    with pytest.raises(TypeError, match=f"{name} must be a bool,"):
        use(tiny)


@pytest.mark.parametrize("thinking", [10.0, 1.5, float("nan"), np.float64(3), "no"])
def test_a_budget_of_thinking_is_a_whole_number(tiny, thinking):
    """A float must not count as True, which is no limit."""
    with pytest.raises(TypeError, match="number of tokens, not"):
        tiny.generate("x", thinking=thinking)
