"""A refused call leaves everything as it was, and its sentence names what was wrong."""

import errno
import os
import pickle

import minimax2 as mm
import numpy as np
import pytest
from minimax2.model import EMBEDDED

IDS = [17 * i % 4000 for i in range(1, 31)]

WRONG_OPTIONS = [  # and what the sentence must name
    ({"temprature": 0}, "temperature"), ({"max_tokens": 3}, "max_new_tokens"),
    ({"nonsense": 1}, "nonsense"), ({"temperature": "1"}, "temperature"),
    ({"temperature": -1}, "temperature"), ({"top_k": 1.5}, "top_k"), ({"top_k": -1}, "top_k"),
    ({"top_k": 2**40}, "top_k"), ({"top_p": "a"}, "top_p"), ({"min_p": [1]}, "min_p"),
    ({"typical_p": True}, "typical_p"), ({"top_n_sigma": {}}, "top_n_sigma"),
    ({"repetition_penalty": 0}, "repetition_penalty"), ({"penalty_window": "1"}, "penalty_window"),
    ({"dry_base": "x"}, "dry_base"), ({"seed": 1.0}, "seed"), ({"seed": -1}, "seed"),
    ({"max_new_tokens": "3"}, "max_new_tokens"), ({"max_new_tokens": -1}, "max_new_tokens"),
    ({"stop": 5}, "stop"), ({"stop": [5]}, "stop"), ({"stop": ""}, "stop"),
    ({"top_logprobs": 1.0}, "top_logprobs"), ({"bias": [1]}, "bias"), ({"bias": {1: "a"}}, "bias"),
    ({"bias": {4096: 1}}, "4096"), ({"breakers": "a"}, "token ids"), ({"mask": 5}, "mask"),
    ({"mask": np.zeros(3, np.uint32)}, "mask"), ({"logits_processor": 5}, "logits_processor"),
    ({"hooks": 5}, "hooks"), ({"hooks": [5]}, "hooks"), ({"hooks": [("q", 5)]}, "hook"),
    ({"hooks": [("nowhere", print)]}, "nowhere"), ({"hooks": [(("q", 99), print)]}, "layer")]


def refused(call, named):
    with pytest.raises((mm.Error, TypeError)) as caught:
        call()
    assert named in str(caught.value)


@pytest.mark.parametrize("options, named", WRONG_OPTIONS, ids=repr)
def test_options_are_checked_before_anything_is_fed(tiny, session, options, named):
    session.feed(IDS).run()
    before = bytes(session.logits)
    for stream in (False, True):
        refused(lambda: session.generate("import os", stream=stream, **options), named)
        refused(lambda: tiny.generate("import os", stream=stream, **options), named)
    assert session.tokens == IDS and bytes(session.logits) == before
    refused(lambda: tiny.chat(**options), named)
    with tiny.chat("Be brief.", seed=1, max_new_tokens=2) as chat:
        for stream in (False, True):
            refused(lambda: chat.send("hello", stream=stream, **options), named)
        assert len(chat.messages) == 1 and chat.session.tokens == []
        chat.send("hello")
        messages, tokens = chat.messages, chat.session.tokens
        refused(lambda: chat.send("hello", **options), named)
        assert (chat.messages, chat.session.tokens) == (messages, tokens)


@pytest.mark.parametrize("text", [5, None, b"x", ["x"], [], "a\0b"])
def test_a_refused_message_leaves_the_chat(tiny, text):
    with tiny.chat("Be brief.") as chat:
        refused(lambda: chat.send(text), "content" if text is not None else "")
        assert len(chat.messages) == 1 and chat.session.tokens == []


def test_a_chat_that_is_full_stays_as_it_was(tiny):
    with tiny.chat(context=80, max_new_tokens=2) as chat:
        chat.send("hi")
        messages, tokens = chat.messages, chat.session.tokens
        with pytest.raises(mm.ContextFull):
            chat.send("word " * 100)
        assert (chat.messages, chat.session.tokens) == (messages, tokens)
    for system in (5, "a\0b"):
        refused(lambda: tiny.chat(system), "content")


@pytest.mark.parametrize("options", [
    {"mask": lambda tokens: np.zeros(3, np.uint32)}, {"mask": lambda tokens: 5},
    {"mask": lambda tokens: 1 / 0}, {"mask": np.zeros(128, np.uint32)},
    {"logits_processor": lambda ids, logits: logits + 1},
    {"logits_processor": lambda ids, logits: logits.fill(0) or 1 / 0},
    {"logits_processor": lambda ids, logits: logits.fill(np.nan)},
    {"logits_processor": lambda ids, logits: logits.fill(-np.inf)},
    {"bias": {i: -np.inf for i in range(4096)}}])
def test_a_refused_draw_leaves_logits_and_timeline(tiny, session, options):
    session.feed(IDS).run()
    before = bytes(session.logits)
    stream = session.generate(stream=True, seed=1, max_new_tokens=3, top_logprobs=2, **options)
    for _ in range(2):
        with pytest.raises((mm.Error, TypeError, ZeroDivisionError)):
            next(stream)
        assert bytes(session.logits) == before and session.tokens == IDS
        assert stream.tokens == [] and not stream.done
    assert len(session.generate(seed=1, max_new_tokens=3, top_k=0).tokens) == 3


def test_a_draw_can_be_tried_again(tiny):
    expected = tiny.generate(IDS, seed=1, max_new_tokens=8, top_logprobs=1)
    refuse = iter([True, False] * 8)

    def mask(tokens):
        if next(refuse):
            raise InterruptedError
        return None

    stream = tiny.generate(IDS, seed=1, max_new_tokens=8, top_logprobs=1, mask=mask, stream=True)
    refusals = 0
    while not stream.done:
        try:
            stream.poll(0)
        except InterruptedError:
            refusals += 1
    assert refusals >= 7 and stream.result().tokens == expected.tokens
    assert stream.result().logprobs == expected.logprobs


@pytest.mark.parametrize("call, named", [
    (lambda s: s.trace("x", "nowhere"), "nowhere"), (lambda s: s.trace("x", "q", 99), "99"),
    (lambda s: s.trace("x", 5), "points"), (lambda s: s.trace("x", "q", 1.5), "layers"),
    (lambda s: s.run_with_hooks("x", [("nowhere", print)]), "nowhere"),
    (lambda s: s.run_with_hooks("x", 5), "hooks"), (lambda s: s.run_with_hooks("x", [5]), "hooks"),
    (lambda s: s.run_with_cache("x", "nowhere"), "nowhere"),
    (lambda s: s.run_with_cache("x", "q", positions=99), "position"),
    (lambda s: s.run_with_cache("x", "q", positions=0), "evaluated before"),
    (lambda s: s.run_with_cache("x", "q", positions="a"), "positions"),
    (lambda s: s.run_with_cache("x", "q", hooks=[("q", 5)]), "hook"),
    (lambda s: s.run_with_hooks(), "nothing to evaluate"),
    (lambda s: s.run(seconds="1"), "seconds"), (lambda s: s.run(seconds=-1), "seconds")])
def test_measuring_calls_check_before_they_feed(session, call, named):
    session.feed(IDS).run()
    before = bytes(session.logits)
    refused(lambda: call(session), named)
    assert session.tokens == IDS and bytes(session.logits) == before


def test_a_prompt_that_is_too_long_says_so(tiny):
    ids = [1] * 9001
    for call in (tiny, tiny.generate, tiny.trace, tiny.run_with_hooks, tiny.run_with_cache):
        with pytest.raises(mm.ContextFull, match="9001 tokens.*4096"):
            call(ids)
    with pytest.raises(mm.ContextFull):
        tiny.generate([1] * 30, context=20)


@pytest.mark.parametrize("options, named", [
    ({"threads": "2"}, "threads"), ({"threads": 0}, "threads"), ({"isa": 1}, "isa"),
    ({"isa": ["avx2"]}, "isa"), ({"precision": None}, "precision"), ({"path": 5}, "path")])
def test_load_names_its_options(options, named):
    refused(lambda: mm.load(**options), named)


@pytest.mark.parametrize("options, named", [
    ({"context": "8"}, "context"), ({"chunk": 1.5}, "chunk"), ({"kv_dtype": 5}, "kv_dtype"),
    ({"kv_dtpye": "f32"}, "kv_dtype")])
def test_sessions_of_measuring_calls_name_their_options(tiny, options, named):
    for call in (tiny, tiny.generate, tiny.trace, tiny.run_with_hooks, tiny.run_with_cache,
                 tiny.chat):
        refused(lambda: call("import os", **options), named)


def test_no_stop_is_no_stop(tiny):
    made = tiny.generate(IDS, max_new_tokens=3, seed=1, stop=None)
    assert made.tokens == tiny.generate(IDS, max_new_tokens=3, seed=1).tokens


# ---- Files ----


def test_missing_files_are_file_not_found(tmp_path):
    missing = tmp_path / "missing: a colon"
    for call in (mm.load, mm.Tokenizer, mm.tokenizer):
        with pytest.raises(FileNotFoundError) as caught:
            call(missing)
        error = caught.value
        assert isinstance(error, mm.FileError) and isinstance(error, mm.Error)
        assert (error.errno, error.filename) == (errno.ENOENT, str(missing))
        assert type(error).__name__ == "FileError"
        assert str(error).startswith(f"{missing}: ") and "No such file" in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.errno, again.filename) == (
            type(error), str(error), error.errno, error.filename)


def test_other_files_are_what_python_calls_them(tmp_path):
    under = tmp_path / "file"
    under.write_bytes(b"")
    with pytest.raises(NotADirectoryError) as caught:
        mm.load(under / "below")
    assert isinstance(caught.value, mm.FileError)
    with pytest.raises(mm.FileError) as caught:
        mm.load(os.devnull)
    assert caught.value.errno is None and "special file" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_sentences_on_files():
    from minimax2.errors import file_error

    for sentence, kind, number in (
            ("/a/b: cannot read it: Is a directory", IsADirectoryError, errno.EISDIR),
            ("/a/b: expected a regular file, found a directory", IsADirectoryError, errno.EISDIR),
            ("/a/b: cannot open it: Permission denied", PermissionError, errno.EACCES),
            ("/a/b: cannot map it: Input/output error", OSError, errno.EIO),
            ("/a/b: no such file", FileNotFoundError, errno.ENOENT)):
        error = file_error(sentence)
        assert isinstance(error, kind) and isinstance(error, mm.FileError)
        assert (str(error), error.errno, error.filename) == (sentence, number, "/a/b")
    error = file_error("something else")
    assert (type(error), str(error), error.errno) == (mm.FileError, "something else", None)
    assert error.code == -3


def test_embedded_is_a_path_that_opens():
    with mm.load(EMBEDDED, threads=1, isa="auto") as model:
        assert len(model) > 0
