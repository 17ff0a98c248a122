"""Ctrl-C, time budgets and cancel(): stops soon, loses nothing, goes on with the same bits."""

import os
import random
import signal
import threading
import time

import minimax2 as mm
import pytest

IDS = [13 * i % 4000 for i in range(1, 2001)]
PROMPT = "import os\n"
SOON = 0.1  # seconds


def good_quarter(delays):
    """The lower quartile: the machine may be busy with other things."""
    return sorted(delays)[len(delays) // 4]


@pytest.fixture(scope="module")
def expected(tiny):
    return bytes(tiny(IDS))


def with_ctrl_c(after, work):
    """Call work() and send SIGINT after a while: how long it took to come through, or None."""
    sent = []

    def send():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after, send)
    try:
        timer.start()
        work()
        timer.cancel()
        timer.join()  # a signal under way comes through here
        return None
    except KeyboardInterrupt:
        delay = time.perf_counter() - sent[0]
        timer.join()
        return delay


def test_ctrl_c_stops_a_prefill_soon_and_loses_nothing(tiny, expected):
    delays = []
    for _ in range(50):  # prompts, until a fast machine was stopped often enough, too
        with tiny.session(context=len(IDS)) as session:
            session.feed(IDS)
            while session.pos < len(IDS):
                delay = with_ctrl_c(0.02, session.run)
                if delay is not None:
                    delays.append(delay)
                assert session.tokens == IDS
            session.run()
            assert bytes(session.logits) == expected
        if len(delays) > 3:
            break
    assert len(delays) > 3
    assert good_quarter(delays) < SOON


def test_ctrl_c_at_random_in_a_stream(tiny):
    options = dict(max_new_tokens=800, seed=9, bias={tiny.tokenizer.eos: -1e9})
    expected = tiny.generate(PROMPT, **options)
    stream = tiny.generate(PROMPT, stream=True, **options)
    chance = random.Random(1)
    stops, pieces = 0, []
    while not stream.done:
        stops += with_ctrl_c(chance.uniform(0.0, 0.01), lambda: pieces.extend(stream)) is not None
    pieces.extend(stream)
    assert stops > 3
    assert stream.tokens == expected.tokens
    assert stream.text == "".join(pieces) == expected.text


def test_ctrl_c_in_a_trace(tiny, expected):
    with tiny.session(context=len(IDS)) as session:
        taps = session.trace(IDS, "resid_post")
        assert with_ctrl_c(0.05, lambda: list(taps)) is not None
        session.run()
        assert bytes(session.logits) == expected


def test_ctrl_c_while_a_long_message_is_rendered(tiny):
    text, delays = "word " * (1 << 20), []
    start = time.perf_counter()
    tiny.tokenizer.apply_chat_template([{"role": "user", "content": text}])
    whole = time.perf_counter() - start
    for _ in range(4):
        with tiny.chat() as chat:
            delays.append(with_ctrl_c(whole / 4, lambda: chat.send(text)))
            assert not chat.messages and not chat.session.length
    assert good_quarter(delays) < whole / 3


def test_run_returns_when_its_time_is_over(tiny, expected):
    late = []
    with tiny.session(context=len(IDS)) as session:
        session.feed(IDS)
        while True:
            start = time.perf_counter()
            done = session.run(seconds=0.02)
            if done:
                break
            late.append(time.perf_counter() - start - 0.02)
        assert bytes(session.logits) == expected
    assert len(late) > 5 and good_quarter(late) < SOON


def test_poll_returns_when_its_time_is_over(tiny):
    stream = tiny.generate(IDS, max_new_tokens=2, stream=True)
    late = []
    while not stream.done and len(late) < 20:
        start = time.perf_counter()
        stream.poll(0.005)
        late.append(time.perf_counter() - start - 0.005)
    assert len(late) > 5 and good_quarter(late) < SOON


def test_cancel_from_another_thread_in_a_prefill(tiny):
    stream = tiny.generate(IDS, max_new_tokens=5, stream=True)
    threading.Timer(0.05, stream.cancel).start()
    made = stream.result()
    assert made.finish_reason == "cancelled" and made.tokens == []
    assert stream.session.pos < len(IDS)


def test_interrupt_from_another_thread_only_slices(tiny, expected):
    with tiny.session(context=len(IDS)) as session:
        session.feed(IDS)
        over = threading.Event()

        def nag():
            while not over.wait(0.001):
                session.interrupt()

        thread = threading.Thread(target=nag)
        thread.start()
        try:
            assert session.run() is True
        finally:
            over.set()
            thread.join()
        assert bytes(session.logits) == expected


def test_ctrl_c_stops_the_encoding_of_a_long_text(tiny):
    """A word of 32 MiB takes seconds; what was made of it is dropped."""
    text = b" " * (32 << 20)
    assert with_ctrl_c(0.1, lambda: tiny.tokenizer.encode(text)) is not None
    assert tiny.tokenizer.encode("import os") == tiny.tokenizer.encode(b"import os")


def test_a_long_text_is_encoded_whole(tiny):
    text = "def f(x):\n    return x\n" * 60_000  # made in several parts
    assert tiny.tokenizer.decode(tiny.tokenizer.encode(text)) == text
    with pytest.raises(mm.ArgumentError, match="at most"):
        tiny.tokenizer.encode(b"x" * ((64 << 20) + 1))
