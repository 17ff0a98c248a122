"""Sessions on disk, as Python sees them. The file itself is tested from C (c/test_snapshot.c)."""

import errno
import os
import pathlib
import threading

import minimax2 as mm
import pytest
from minimax2 import _native
from minimax2.synth import synth
from test_interrupt import with_ctrl_c

IDS = [17 * i % 4000 for i in range(1, 301)]
PROMPT = "def add(a, b):\n"


@pytest.fixture
def saved(tiny, tmp_path):
    """(the path of a session of IDS, its logits)."""
    path = tmp_path / "a.mm2"
    with tiny.session(context=400) as session:
        session.feed(IDS).run()
        session.save(path)
        return path, bytes(session.logits)


def test_it_stands_where_it_stood(tiny, saved):
    path, logits = saved
    for given in (path, str(path), os.fsencode(path)):
        for mapped in (True, False):
            with tiny.restore(given, mapped=mapped) as session:
                assert isinstance(session, mm.Session) and session.model is tiny
                assert (session.tokens, session.pos, session.context) == (IDS, len(IDS), 400)
                assert bytes(session.logits) == logits
                assert session.progress == (0, 0)
    with tiny.restore(path, context=1000, chunk=7, kv_dtype="bf16") as session:
        assert session.context == 1000
        session.feed(IDS).run()
        assert bytes(session.logits) == bytes(tiny(IDS * 2))


def test_a_generation_goes_on_with_the_same_draws(tiny, tmp_path):
    options = dict(seed=7, max_new_tokens=40, repetition_penalty=1.1, dry_multiplier=0.5,
                   bias={tiny.tokenizer.eos: -1e9})
    whole = tiny.generate(PROMPT, **options).tokens
    path = tmp_path / "half"
    with tiny.session(context=200) as session:
        half = session.generate(PROMPT, **{**options, "max_new_tokens": 20}).tokens
        session.save(path)
    with tiny.restore(path) as session:
        rest = session.generate(None, **{**options, "max_new_tokens": 20}).tokens
    assert half + rest == whole


def test_a_conversation_goes_on(tiny, tmp_path):
    """A chat needs nothing of the past but its timeline."""
    options = dict(max_new_tokens=12)
    path = tmp_path / "chat"
    with tiny.chat("Be brief.", **options) as chat:
        chat.send("Hello", seed=1)
        chat.session.save(path)
        expected = chat.send("And now?", seed=2)
    with tiny.chat(**options) as chat:
        chat.session = tiny.restore(path)
        assert chat.send("And now?", seed=2).tokens == expected.tokens


def test_refusals(tiny, blank, saved, tmp_path):
    path, _ = saved

    def refused(error, says, call):
        with pytest.raises(error) as caught:
            call()
        assert says in str(caught.value)
        return caught.value

    with tiny.session() as session:
        for given in (None, 5, ["a"]):
            refused(TypeError, "path", lambda: session.save(given))
            refused(TypeError, "path", lambda: tiny.restore(given))
        refused(mm.ArgumentError, "NUL", lambda: session.save("a\0b"))
        gone = refused(FileNotFoundError, "No such", lambda: session.save(tmp_path / "x" / "y"))
        assert gone.errno == errno.ENOENT
        refused(mm.FileError, "directory", lambda: session.save(tmp_path))
    refused(mm.ArgumentError, "closed", lambda: session.save(path))
    refused(FileNotFoundError, "No such file", lambda: tiny.restore(tmp_path / "x"))
    refused(mm.ArgumentError, "num_hidden_layers is 5 there, 2 here", lambda: blank.restore(path))
    refused(mm.ArgumentError, "a context of 299", lambda: tiny.restore(path, context=299))
    refused(mm.ArgumentError, "context is 0", lambda: tiny.restore(path, context=0))
    refused(mm.ArgumentError, "f32 was asked for", lambda: tiny.restore(path, kv_dtype="f32"))
    refused(mm.ArgumentError, "kv_dtype", lambda: tiny.restore(path, kv_dtype="q8"))
    refused(mm.ArgumentError, "chunk", lambda: tiny.restore(path, chunk=5000))
    refused(TypeError, "mapped", lambda: tiny.restore(path, mapped=None))
    with mm.load(precision="exact", threads=1) as exact:
        refused(mm.ArgumentError, "precision", lambda: exact.restore(path))
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refused(mm.FormatError, "cut short", lambda: tiny.restore(path))
    path.write_bytes(b"x" + data[1:])
    refused(mm.FormatError, "no saved session", lambda: tiny.restore(path))
    damaged = bytearray(data)
    damaged[70000] ^= 1
    path.write_bytes(damaged)
    with tiny.session(context=40).feed([1, 2, 3, 4, 5]) as short:
        short.run()
        short.save(tmp_path / "short")
    few = bytearray((tmp_path / "short").read_bytes())
    few[70000] ^= 1
    (tmp_path / "short").write_bytes(few)
    with tiny.restore(tmp_path / "short").feed([1]) as short:
        refused(mm.FormatError, "positions 0 to 4 at", short.run)
    with tiny.restore(path) as session:
        session.feed([1])
        refused(mm.FormatError, "positions 0 to 255", session.run)
        refused(mm.FormatError, "positions 0 to 255", lambda: session.save(tmp_path / "b"))
        assert not (tmp_path / "b").exists()
        session.rewind(0)
        session.feed(IDS).run()


def test_a_copy_is_the_same_model_and_other_weights_are_not(tmp_path):
    for name in ("one", "two"):
        synth(tmp_path / name, like="tiny", layers=2, seed=3)
    synth(tmp_path / "three", like="tiny", layers=2, seed=4)
    path = tmp_path / "session"
    with mm.load(tmp_path / "one", threads=1) as one, one.session(context=40) as session:
        session.feed([1, 2, 3]).run()
        session.save(path)
    with mm.load(tmp_path / "two", threads=1) as two, two.restore(path) as session:
        session.feed([4]).run()
    with mm.load(tmp_path / "three", threads=1) as three:
        with pytest.raises(mm.ArgumentError, match="other weights"):
            three.restore(path)


def test_a_trace_and_a_batch_do_not_mind(tiny, tmp_path):
    path = tmp_path / "a"
    with tiny.session(context=100) as session:
        for _ in session.trace(PROMPT, "resid_post"):
            session.save(path)
            with tiny.restore(path) as other:
                assert other.pos == 0 and other.tokens == session.tokens
        expected = bytes(session.logits)
        with tiny.batch([session]):
            session.save(path)
        assert bytes(tiny.restore(path).logits) == expected


def test_ctrl_c_ends_a_save_without_a_trace(tiny, tmp_path, monkeypatch):
    """The library's part (interrupts) is tested from C; here the call never ends by itself."""
    path = tmp_path / "a.mm2"
    begun, stops = threading.Event(), []

    def endless(call, stop):
        def save():
            begun.set()
            while not stops:
                call()
                path.unlink()
            return _native.OK

        def stopped():
            stops.append(1)
            stop()

        return interruptible(save, stopped)

    interruptible = _native._interruptible
    monkeypatch.setattr(_native, "_interruptible", endless)
    with tiny.session(context=100) as session:
        session.feed(IDS[:50]).run()
        assert with_ctrl_c(0.2, lambda: session.save(path)) is not None
        assert begun.is_set() and stops
        assert not [*pathlib.Path(tmp_path).iterdir()]
        session.feed([1]).run()  # nobody holds it


def test_a_chat_goes_on_with_a_restored_session(tiny, tmp_path):
    with tiny.chat("Be brief.", max_new_tokens=12) as chat:
        chat.send("hi", seed=1)
        chat.session.save(tmp_path / "chat")
        expected = chat.send("and now?", seed=2)
    with tiny.chat("Be brief.", max_new_tokens=12) as again:
        again.session = tiny.restore(tmp_path / "chat")
        assert again.send("and now?", seed=2).tokens == expected.tokens
        assert "and now?" in str(again.messages)
